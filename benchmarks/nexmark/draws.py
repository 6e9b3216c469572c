"""Random numbers and texts that hang on a seed and on the number of an event alone, so that any split gives the same stream."""

import zlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Bytes: TypeAlias = npt.NDArray[np.uint8]

POOL_BYTES = 1 << 20  # of random characters; a random text is a piece of it


class Random:
    """Draws for events. Each purpose has its own draw of an event, whatever else is drawn for it."""

    def __init__(self, seed: int, events: Ints) -> None:
        self._state = _mix(events.astype(np.uint64) + _mix(np.array([seed], np.uint64)))

    def below(self, bound: int | Ints, purpose: str) -> Ints:
        """A number from 0 to bound - 1, of equal chance up to 1 in 2**32; `bound` is at most 2**31, and of all events or of each."""
        high = self._draw(purpose) >> np.uint64(32)
        drawn: Ints = ((high * np.asarray(bound, np.uint64)) >> np.uint64(32)).astype(np.int64)
        return drawn

    def fraction(self, purpose: str) -> npt.NDArray[np.float64]:
        """A number from 0 to 1, 1 excluded."""
        return (self._draw(purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _draw(self, purpose: str) -> Words:
        return _mix(self._state ^ _mix(np.array([zlib.crc32(purpose.encode())], np.uint64)))


def _mix(words: Words) -> Words:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


class TextPool:
    """Random characters from `a` to `z`, of which one in 13 is `between` instead where there is one. Texts are pieces of them."""

    def __init__(self, seed: int, between: str = "") -> None:
        random = Random(seed, np.arange(POOL_BYTES))
        self._bytes: Bytes = (random.below(26, "letter") + ord("a")).astype(np.uint8)
        if between:
            self._bytes[random.below(13, "between") == 0] = ord(between)

    def texts(self, random: Random, lengths: Ints, purpose: str) -> pa.StringArray:
        """A text of each length, all at most half a pool long."""
        longest = int(lengths.max(initial=1))
        starts = random.below(POOL_BYTES // 2, purpose)
        windows = np.lib.stride_tricks.sliding_window_view(self._bytes, longest)[starts]
        characters = windows[np.arange(longest) < lengths[:, None]]
        offsets = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(characters))
