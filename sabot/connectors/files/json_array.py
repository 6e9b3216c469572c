"""Files that are one JSON array, [{…}, {…}], as records: each element of the array is a record.

A block ends behind a comma between two elements, so each block begins at an element.
"""

import re
from collections.abc import Sequence

from sabot._cython.text.split import element_end
from sabot.connectors.files.blocks import Buffer, StreamedFile
from sabot.connectors.files.paths import DataFile, open_stream
from sabot.errors import UserError

_HEAD_BYTES = 4096
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[(?=\s*(?:\{|\]\s*$|$))")


def begin_of_array(file: DataFile) -> int:
    """Returns the offset after the opening bracket of a file that is one array of objects, or 0 if the file is none."""
    raw, stream = open_stream(file.path)
    with raw, stream:
        found = _BEGIN.match(stream.read(_HEAD_BYTES))
    return 0 if found is None else found.end()


class ArrayElements:
    """The way to find the ends of elements: commas outside of texts and of inner brackets, and the closing bracket of the array."""

    ends: Sequence[bytes] = (b",", b"[", b"]")

    def last(self, buffer: Buffer, low: int, high: int) -> int:
        with memoryview(buffer) as whole, whole[low:high] as data:
            return low + element_end(data)

    def first(self, buffer: Buffer, low: int, high: int) -> int:
        with memoryview(buffer) as whole, whole[low:high] as data:
            end = element_end(data, 1)
        return low + end if end else high

    def unclosed(self, buffer: Buffer, low: int, high: int) -> list[int]:
        """Returns an empty list: the reader of elements finds what is not closed."""
        return []


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
