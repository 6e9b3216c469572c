"""Files that are one JSON array, [{…}, {…}], as records: each element of the array is a record.

A block ends behind a comma between two elements, so each block begins at an element. The positions of these commas are found in whole
blocks: quotes without a backslash tell which bytes are in texts, and brackets outside of texts tell the depth.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sabot.connectors.files.blocks import Buffer, StreamedFile
from sabot.connectors.files.paths import DataFile, open_stream
from sabot.errors import UserError

_HEAD_BYTES = 4096
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[(?=\s*(?:\{|\]\s*$|$))")
_CLOSE = ord("]")


def begin_of_array(file: DataFile) -> int:
    """Returns the offset after the opening bracket of a file that is one array of objects, or 0 if the file is none."""
    raw, stream = open_stream(file.path)
    with raw, stream:
        found = _BEGIN.match(stream.read(_HEAD_BYTES))
    return 0 if found is None else found.end()


class Elements(NamedTuple):
    """The elements of a block: their texts, and the positions of these texts in the block. `close`: the position behind the closing
    bracket of the array, or 0 if it is not in the block.
    """

    texts: list[bytes]
    starts: list[int]
    close: int


class ArrayElements:
    """The way to find the ends of elements: commas outside of texts and of inner brackets, and the closing bracket of the array."""

    ends: Sequence[bytes] = (b",", b"[", b"]")

    def last(self, buffer: Buffer, low: int, high: int) -> int:
        ends = _ends(buffer, low, high)
        return low + int(ends[-1]) + 1 if len(ends) else low

    def first(self, buffer: Buffer, low: int, high: int) -> int:
        ends = _ends(buffer, low, high)
        return low + int(ends[0]) + 1 if len(ends) else high

    def split(self, buffer: Buffer, low: int, high: int) -> Elements:
        """Returns the elements of `buffer[low:high]`. A blank element is among them, except before the closing bracket, and at the end of
        a block.
        """
        data = bytes(memoryview(buffer)[low:high])
        ends = _ends(buffer, low, high).tolist()
        closed = bool(ends) and data[ends[-1]] == _CLOSE
        bounds = [-1, *ends] if closed or (ends and ends[-1] == len(data) - 1) else [-1, *ends, len(data)]
        texts, starts = [], []
        for before, after in pairwise(bounds):
            piece = data[before + 1 : after].lstrip()
            if piece or not (closed and after == bounds[-1]):
                texts.append(piece.rstrip())
                starts.append(after - len(piece))
        return Elements(texts, starts, bounds[-1] + 1 if closed else 0)


def _ends(buffer: Buffer, low: int, high: int) -> Any:
    """Returns the positions of the commas between elements in `buffer[low:high]`, which begins in the array and outside of an element;
    and the position of the array's closing bracket, as the last one, if it is there.
    """
    data = np.frombuffer(buffer, np.uint8)[low:high]
    quotes = data == ord('"')
    if buffer.find(b"\\", low, high) >= 0:
        # A quote after an odd number of backslashes is a character of the text.
        places = np.flatnonzero(quotes)
        other = np.arange(1, len(data) + 1)
        other[data == ord("\\")] = 0
        behind = np.concatenate(
            ([0], np.maximum.accumulate(other))
        )  # the number of bytes up to the last one that is no backslash
        quotes[places[(places - behind[places]) % 2 == 1]] = False
    outside = np.cumsum(quotes) % 2 == 0
    step = np.zeros(len(data), np.int8)
    for mark, by in (("{", 1), ("[", 1), ("}", -1), ("]", -1)):
        step[(data == ord(mark)) & outside] = by
    depth = np.cumsum(step, dtype=np.int32)
    commas = np.flatnonzero((data == ord(",")) & outside & (depth == 0))
    close = np.flatnonzero(depth < 0)[:1]
    return commas if not len(close) else np.append(commas[commas < close[0]], close)


class ArrayFile(StreamedFile):
    """A file that is one array, read by one reader. `closed`: True if the array has ended before `offset`."""

    def __init__(self, file: DataFile, offset: int, block_bytes: int, record_bytes: int) -> None:
        super().__init__(file, offset, block_bytes, ArrayElements(), record_bytes)
        self._path, self._most = file.path, record_bytes
        self.closed = self.before == b"]"

    def _step_over(self) -> None:
        # The next comma may be inside of the element, so the element cannot be skipped without its end.
        raise UserError(
            f"file {self._path!r}: the element of its array at offset {self.offset} has more than {self._most} bytes",
            hint="files(…, record_bytes=) allows larger ones; or write one object a line (NDJSON)",
        )
