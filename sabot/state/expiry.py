"""Time to live, once for all backends: a stored value carries the moment at which it stops counting.

    sealed value = 8 bytes expiry (ms since 1970 UTC, big endian) + value

The time is processing time, read from the backend's clock. An expired value reads as absent; it is removed at a snapshot.
"""

from collections.abc import Sequence

from sabot.clock import Clock

__all__ = ["Expiry", "convert"]

_WIDTH = 8


class Expiry:
    """Seals values that live `ttl_ms` from now, and opens those that are still alive."""

    __slots__ = ("_clock", "_ttl_ms")

    def __init__(self, ttl_ms: int, clock: Clock) -> None:
        self._ttl_ms = ttl_ms
        self._clock = clock

    def now_mark(self) -> bytes:
        """A sealed value is expired when its first 8 bytes are not greater than this."""
        return int(self._clock.time() * 1000).to_bytes(_WIDTH, "big")

    def _end_mark(self) -> bytes:
        return (int(self._clock.time() * 1000) + self._ttl_ms).to_bytes(_WIDTH, "big")

    def seal(self, value: bytes | None) -> bytes | None:
        return None if value is None else self._end_mark() + value

    def open(self, sealed: bytes | None) -> bytes | None:
        if sealed is None or sealed[:_WIDTH] <= self.now_mark():
            return None
        return sealed[_WIDTH:]

    def seal_many(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        end = self._end_mark()
        return [None if value is None else end + value for value in values]

    def open_many(self, sealed: Sequence[bytes | None]) -> list[bytes | None]:
        now = self.now_mark()
        return [None if value is None or value[:_WIDTH] <= now else value[_WIDTH:] for value in sealed]


def convert(value: bytes, sealed: bool, expiry: Expiry | None) -> bytes:
    """A stored value of a snapshot as a backend with `expiry` keeps it: a job may gain or lose its ttl between two runs.

    What had no expiry gets a full time to live from now; what had one loses it.
    """
    if sealed and expiry is None:
        return value[_WIDTH:]
    if not sealed and expiry is not None:
        return expiry._end_mark() + value
    return value
