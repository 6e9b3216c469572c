"""Text files. They are read as blocks of whole lines, in a buffer of bounded size: by chunks, or as a stream. They are written
as lines (`TextFormat`): a plain file is appended to, and a compressed one is written as a whole.

The next block overwrites the buffer, so whatever is kept of a block is copied. The buffer grows up to the size bound of a record. Of a
record above the bound only the first bytes are kept, and the offset at which the next record begins.
"""

import codecs
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import empty_batch
from sabot.codecs.records import HEAD_BYTES, RECORD_SCHEMA
from sabot.connectors.files.formats.base import FileFormat, FileReader, FoundRows, RowWriter, Share, no_place
from sabot.connectors.files.formats.columns import ColumnFormat
from sabot.connectors.files.paths import (
    COMPRESSION,
    DataFile,
    checked_names,
    codec_of,
    cut_anywhere,
    open_raw,
    open_stream,
    size_now,
)
from sabot.errors import InternalError, UserError

SLACK_BYTES = 16 << 10  # read beyond a chunk, to reach the end of its last line
SKIP_BYTES = 1 << 20
BLOCK_BYTES = FIRST_BYTES = 1 << 20
_BEGIN_BYTES = 4096
_MARKS_OF_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONVERT = "it is in UTF-16: convert it to UTF-8 (iconv -f utf-16 -t utf-8)"
_ENDINGS = {codec: suffix for suffix, codec in reversed(COMPRESSION.items())}

Buffer: TypeAlias = bytearray | mmap.mmap


class Records(ABC):
    """A way to find the ends of records in `buffer[low:high]`, which begins at the start of a record."""

    ends: Sequence[bytes]
    """The bytes that may be the last one of a record."""

    @abstractmethod
    def last(self, buffer: Buffer, low: int, high: int) -> int:
        """Returns the end of the last whole record, or `low` if there is none."""

    @abstractmethod
    def first(self, buffer: Buffer, low: int, high: int) -> int:
        """Returns the end of the first record, or `high` if the record does not end before that."""

    @abstractmethod
    def unclosed(self, buffer: Buffer, low: int, high: int) -> list[int]:
        """Returns the starts, the last one first, of the records whose quotes are not closed before `high`, the end of the file. Of
        each only the first line is left out, and the next record begins behind it.
        """


class Lines(Records):
    """Records that are lines."""

    ends: Sequence[bytes] = (b"\n",)

    def last(self, buffer: Buffer, low: int, high: int) -> int:
        """Returns the position after the last newline, or `low` if there is none."""
        return buffer.rfind(b"\n", low, high) + 1 or low

    def first(self, buffer: Buffer, low: int, high: int) -> int:
        """Returns the position after the first newline, or `high` if there is none."""
        return buffer.find(b"\n", low, high) + 1 or high

    def unclosed(self, buffer: Buffer, low: int, high: int) -> list[int]:
        """Returns an empty list: lines have no quotes."""
        return []


class LongRecord(NamedTuple):
    """A record above the size bound, or the first line of one with a quote that is not closed: its offset, its first bytes, and its
    length in bytes.
    """

    offset: int
    head: bytes
    length: int


class Blocks(ABC):
    """A reader of a file in blocks. After `next()`, `buffer[low:high]` holds whole records, and `buffer[low]` is byte
    `offset` of the file.

        low        high                   limit
         |aaaa|bbbbb|cccccccccccccccccccccc|ddd        c is above the size bound, d is not whole yet
    """

    buffer: Buffer
    low = 0
    high = 0
    limit = 0
    offset = 0
    long: LongRecord | None = None
    """The record before `buffer[low:high]`, if it was above the bound."""
    ended = False
    """True if nothing comes after `buffer[low:limit]`."""

    def __init__(self, records: Records, record_bytes: int) -> None:
        self._records = records
        self._record_bytes = record_bytes

    def next(self) -> bool:
        """Loads the next block, or sets `long`; after it, either the block has records or `long` is set. Returns
        False at the end of the file; then `offset` is the end.
        """
        self.long = None
        if self.high == self.limit and not self._load():
            return False
        if self.high == self.low:
            self._step_over()
        return True

    @abstractmethod
    def _load(self) -> bool:
        """Reads the next bytes and calls `_found`."""

    @abstractmethod
    def _pass(self) -> int:
        """Reads on to the end of the record behind `buffer[limit]`; returns its remaining bytes. Drops the buffer up to that end."""

    def _found(self, low: int, limit: int) -> None:
        """Makes the records of `buffer[low:limit]` the block: sets `high` to the end of the last whole record, or to
        the start of the first record above the size bound.
        """
        self.low, self.limit = low, limit
        high = low
        while limit - high > self._record_bytes:
            end = self._records.last(self.buffer, high, high + self._record_bytes)
            if end == high:
                break
            high = end
        else:
            high = limit
        self.high = high

    def _step_over(self) -> None:
        """Steps over the record at `low`, which is above the bound or not closed, to the next line."""
        ends = [self.buffer.find(mark, self.low, self.limit) + 1 for mark in self._records.ends]
        end = min(filter(None, ends), default=0)
        head = bytes(memoryview(self.buffer)[self.low : min(end or self.limit, self.low + HEAD_BYTES)])
        at = self.offset
        if end:
            self.offset += end - self.low
            self._found(end, self.limit)
        else:
            self.offset += self.limit - self.low + self._pass()
        self.long = LongRecord(at, head, self.offset - at)

    def reason(self, long: LongRecord) -> str:
        """Returns the reason why the record becomes a dead letter, for its error text."""
        if long.length <= self._record_bytes:
            if self.ended and long.length + self.limit - self.low <= self._record_bytes:
                return "a quote that is not closed before the end of the file"
            return f"a quote that is not closed within {self._record_bytes} bytes (record_bytes=)"
        return f"{long.length} bytes are more than a record may have (record_bytes={self._record_bytes}): only the first of them are kept"

    def take(self, end: int) -> None:
        """Moves `low` and `offset` to `buffer[end]`: the records before it have been read."""
        self.offset += end - self.low
        self.low = end

    @property
    @abstractmethod
    def fraction(self) -> float:
        """Returns the fraction of the file that has been read."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""


class ChunkedFile(Blocks):
    """A plain file that several readers share by chunks: chunk k has the lines that START in bytes [k * chunk_bytes,
    (k + 1) * chunk_bytes) of the file, each up to its end.

             chunk 0        chunk 1        chunk 2
          |aaaaa|bbbbbbb|cc|dddddddddddddddddd|ee|ff|      a, b, c: chunk 0;  d: chunk 1;  e, f: chunk 2

    To find the first line of a chunk, a reader searches from the byte before the chunk, because a line starts behind
    each newline.
    """

    def __init__(self, file: DataFile, offset: int, share: Share, chunk_bytes: int, record_bytes: int) -> None:
        super().__init__(Lines(), record_bytes)
        self._file = file
        self._share = share
        self._chunk_bytes = chunk_bytes
        self._fd = os.open(file.path, os.O_RDONLY)
        self._size = file.size if file.whole else self._end_of_lines(offset, file.size)
        self._chunk = offset // chunk_bytes
        # A chunk, the byte before it, and some bytes behind it. A bytearray would first write zeros into all of that.
        self.buffer = self._spare = mmap.mmap(-1, min(1 + chunk_bytes + SLACK_BYTES, file.size + 1), mmap.MAP_PRIVATE)
        self.offset, self.ended = offset, offset >= self._size
        try:
            if offset > self._size or (0 < offset < self._size and os.pread(self._fd, 1, offset - 1) != b"\n"):
                raise no_place(f"file {file.path!r}: position {offset} is no start of a line in its {self._size} bytes")
        except BaseException:
            self.close()
            raise

    def _end_of_lines(self, offset: int, size: int) -> int:
        """Returns the end of the last line that has its line break, or `offset`; `size` if the line behind that is above the bound."""
        end = size
        while end > offset:
            start = max(offset, end - SLACK_BYTES)
            if found := os.pread(self._fd, end - start, start).rfind(b"\n") + 1:
                return start + found
            end = start
        return size if size - offset > self._record_bytes else offset

    def _load(self) -> bool:
        while self._chunk * self._chunk_bytes < self._size:
            chunk = self._chunk
            self._chunk += 1
            if self._share.has(self._file.number, chunk) and self._lines_of(chunk):
                return True
        self.offset, self.ended = self._size, True
        return False

    def _lines_of(self, chunk: int) -> bool:
        """Loads the lines of the chunk that are not read yet. Returns False if no line starts in the chunk."""
        first = chunk * self._chunk_bytes
        end = min(first + self._chunk_bytes, self._size)  # lines that start here or later belong to the next chunk
        at = max(first, self.offset)  # `offset` is the start of a line, and all lines before it have been taken
        if at >= end:
            return False
        looking = at > self.offset
        start = at - 1 if looking else at
        self.buffer = self._spare
        filled = self._read(start, min(end + SLACK_BYTES, self._size), 0)
        low = 0
        if looking:
            low = self.buffer.find(b"\n", 0, min(end - 1 - start, filled)) + 1
            if low == 0:
                return False
        high = filled
        if end < self._size:
            high = self.buffer.find(b"\n", end - 1 - start, filled) + 1
            # The start of the last line.
            begin = max(low, self.buffer.rfind(b"\n", low, min(end - 1 - start, filled)) + 1)
            longest = begin + self._record_bytes + 1
            while high == 0 and start + filled < self._size and filled < longest:
                before = filled
                filled = self._read(start, min(start + min(2 * filled, longest), self._size), filled)
                high = self.buffer.find(b"\n", before, filled) + 1
            high = high or filled
        self.offset = start + low
        self._found(low, high)
        self.ended = start + high >= self._size
        return high > low

    def _pass(self) -> int:
        at = behind = self.offset + self.limit - self.low
        while at < self._size:
            piece = os.pread(self._fd, min(SKIP_BYTES, self._size - at), at)
            if not piece:
                raise _shorter(self._file, os.fstat(self._fd).st_size, at)
            found = piece.find(b"\n") + 1
            at += found or len(piece)
            if found:
                break
        self.low = self.high = self.limit = 0
        self.ended = at >= self._size
        return at - behind

    def _read(self, start: int, stop: int, filled: int) -> int:
        """Reads until the buffer holds bytes [start, stop) of the file; returns how many bytes it holds. Raises UserError if the file
        has become shorter.
        """
        if stop - start > len(self.buffer):
            longer = bytearray(stop - start)  # for one long line; later blocks use the buffer of the usual size again
            longer[:filled] = memoryview(self.buffer)[:filled]
            self.buffer = longer
        view = memoryview(self.buffer)
        while start + filled < stop:
            got = os.preadv(self._fd, [view[filled : stop - start]], start + filled)
            if got == 0:
                raise _shorter(self._file, os.fstat(self._fd).st_size, start + filled)
            filled += got
        return filled

    @property
    def fraction(self) -> float:
        return self.offset / self._size if self._size else 1.0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class StreamedFile(Blocks):
    """A file that one reader reads from the beginning to the end. It is either compressed (its offsets count
    decompressed bytes), or its records can be told apart only from the beginning.
    """

    def __init__(self, file: DataFile, offset: int, block_bytes: int, records: Records, record_bytes: int) -> None:
        super().__init__(records, record_bytes)
        self._file = file
        self._plain = codec_of(file.path) is None
        self._block_bytes = block_bytes
        self.buffer = bytearray(block_bytes)
        self._filled = 0
        self._end_reached = False
        self._unclosed: list[int] | None = None  # of the last bytes of the file, once they are read: see Records
        self._raw, self._stream = open_stream(file.path)
        self.before = b""  # the byte before `offset`
        try:
            self._skip(offset)
        except BaseException:
            self.close()
            raise
        self.offset = offset
        self.ended = self._plain and offset >= file.size

    def _skip(self, offset: int) -> None:
        if offset == 0:
            return
        last = b""
        left = offset
        if self._plain and offset <= self._file.size:
            self._raw.seek(offset - 1)
            left = 1
        while left:
            last = self._stream.read(min(left, SKIP_BYTES))
            if not last:
                raise no_place(f"file {self._file.path!r}: position {offset} is behind its end, {offset - left}")
            left -= len(last)
        self.before = last[-1:]
        if self.before not in self._records.ends and self._stream.read(1):
            raise no_place(f"file {self._file.path!r}: position {offset} is no start of a line")

    def refuse_utf16(self) -> None:
        """Raises UserError, and closes the file, if it is read from its beginning, and begins in UTF-16."""
        if self.offset:
            return
        try:
            self._fill()
            begin = bytes(self.buffer[: min(self._filled, _BEGIN_BYTES)])
            if begin.startswith(_MARKS_OF_UTF16) or _is_utf16(begin):
                raise UserError(f"file {self._file.path!r} is not in UTF-8: its first line", hint=_CONVERT)
        except BaseException:
            self.close()
            raise

    def _load(self) -> bool:
        rest = self._filled - self.limit
        self.buffer[:rest] = self.buffer[self.limit : self._filled]
        self._filled = rest
        if len(self.buffer) > self._block_bytes > 2 * rest:
            self.buffer = bytearray(memoryview(self.buffer)[: self._block_bytes])
        while True:
            self._fill()
            self.ended = self._end_reached
            final = self._end_reached and self._file.whole
            whole = self._filled if final else self._records.last(self.buffer, 0, self._filled)
            if whole == 0 and self._end_reached and self._filled <= self._record_bytes:  # its end is not written yet
                self.low = self.high = self.limit = 0
                return False
            if whole == 0 and not self._end_reached and len(self.buffer) <= self._record_bytes:
                longer = bytearray(min(2 * len(self.buffer), self._record_bytes + 1))  # for one long line
                longer[: self._filled] = memoryview(self.buffer)[: self._filled]
                self.buffer = longer
                continue
            self._found(0, whole or self._filled)
            return self.limit > 0

    def _found(self, low: int, limit: int) -> None:
        super()._found(low, limit)
        if not low < self.high == limit == self._filled:
            return
        if not (self._end_reached and self._file.whole):
            # Behind a line that was stepped over, the last record of the buffer may be cut off.
            self.high = self.limit = self._records.last(self.buffer, low, limit)
            return
        if self._unclosed is None:
            self._unclosed = self._records.unclosed(self.buffer, low, limit)
        while self._unclosed and self._unclosed[-1] < low:
            self._unclosed.pop()
        if self._unclosed:
            self.high = self._unclosed[-1]

    def _pass(self) -> int:
        behind = 0
        while not self._end_reached:
            self._filled = 0
            self._fill()
            ends = [self.buffer.find(mark, 0, self._filled) + 1 for mark in self._records.ends]
            end = min(filter(None, ends), default=0)
            behind += end or self._filled
            if end:
                self.low = self.high = self.limit = end
                self.ended = self._end_reached and end == self._filled
                return behind
        self.low = self.high = self.limit = self._filled = 0
        self.ended = True
        return behind

    def _fill(self) -> None:
        view = memoryview(self.buffer)
        while self._filled < len(view) and not self._end_reached:
            room = len(view) - self._filled
            if self._plain:  # bytes that are appended meanwhile are read when the file is opened again
                room = min(room, self._file.size - self._raw.tell())
            got = self._stream.readinto(view[self._filled : self._filled + room]) if room > 0 else 0
            self._filled += got
            self._end_reached = got == 0
            if self._end_reached and self._plain and self._raw.tell() < self._file.size:
                raise _shorter(self._file, size_now(self._file.path, self._raw), self._raw.tell())

    @property
    def fraction(self) -> float:
        if self._plain:
            return self.offset / self._file.size if self._file.size else 1.0
        return min(1.0, self._raw.tell() / self._file.size) if self._file.size else 1.0

    def close(self) -> None:
        self._stream.close()
        self._raw.close()


def _shorter(file: DataFile, size: int, offset: int) -> UserError:
    return UserError(
        f"file {file.path!r} became shorter while it was read: it had {file.size} bytes and has {size},"
        f" nothing is left to read at offset {offset}",
        hint="rotate a log by renaming it (logrotate's copytruncate cuts off what is not read yet); write new data to a new"
        " file; to read the file as it is now, start afresh (--fresh)",
    )


def open_blocks(file: DataFile, offset: int, share: Share, block_bytes: int, record_bytes: int) -> Blocks:
    """Opens the lines of a file that belong to this share."""
    if cut_anywhere(file.path):
        return ChunkedFile(file, offset, share, block_bytes, record_bytes)
    if not share.has(file.number, 0):
        return NoBlocks(offset)
    return StreamedFile(file, offset, block_bytes, Lines(), record_bytes)


class NoBlocks(Blocks):
    """A file of which this reader reads nothing, because other readers read all of it."""

    def __init__(self, offset: int) -> None:
        super().__init__(Lines(), 0)
        self.buffer = bytearray()
        self.offset = offset
        self.ended = True

    def _load(self) -> bool:
        return False

    def _pass(self) -> int:
        return 0

    @property
    def fraction(self) -> float:
        return 1.0

    def close(self) -> None:
        """Does nothing, as no file is open."""


class BlockReader(FileReader):
    """A reader that turns blocks of text into batches. A batch has a whole block, or a part of a block that has more
    than `max_rows` rows.
    """

    def __init__(self, blocks: Blocks, records: Records) -> None:
        self._blocks = blocks
        self._records = records
        self._row_bytes = 0.0  # the mean size of the rows so far; 0: not known
        self.offset = blocks.offset

    @abstractmethod
    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        """Decodes `buffer[low:end]`, which may hold no rows. The result refers to no byte of the buffer."""

    def read(self, max_rows: int) -> FoundRows | None:
        blocks = self._blocks
        while True:
            if blocks.low == blocks.high and not blocks.next():
                self.offset = blocks.offset
                return None
            if blocks.long is not None:
                long, blocks.long = blocks.long, None
                self.offset = blocks.offset
                return FoundRows(
                    self.decode_block(blocks, blocks.low).data, [(long.offset, long.head, blocks.reason(long))]
                )
            end = self._end(blocks, max_rows)
            found = self.decode_block(blocks, end)
            rows = found.data.num_rows + len(found.bad)
            if rows > max_rows:
                if end == self._records.first(blocks.buffer, blocks.low, blocks.high):
                    raise InternalError(f"{rows} rows where one was expected, in {end - blocks.low} bytes")
                self._row_bytes = 0.9 * (end - blocks.low) / rows
                continue
            if rows:
                self._row_bytes = (end - blocks.low) / rows
            blocks.take(end)
            self.offset = blocks.offset
            if rows:
                return found

    def _end(self, blocks: Blocks, max_rows: int) -> int:
        """Returns the position in the buffer at which the next batch ends: at most `max_rows` rows, estimated by the
        length of the rows so far.
        """
        length = blocks.high - blocks.low
        if length <= self._row_bytes * max_rows or self._row_bytes == 0:
            return blocks.high
        parts = math.ceil(length / (self._row_bytes * max_rows))
        limit = blocks.low + math.ceil(length / parts)
        end = self._records.last(blocks.buffer, blocks.low, limit)
        return end if end > blocks.low else self._records.first(blocks.buffer, blocks.low, blocks.high)

    @property
    def fraction(self) -> float:
        return self._blocks.fraction

    @property
    def ended(self) -> bool:
        blocks = self._blocks
        if blocks.low < blocks.limit or blocks.long is not None or not blocks.ended:
            return False
        self.offset = blocks.offset
        return True

    def close(self) -> None:
        self._blocks.close()


# -- writing -----------------------------------------------------------------------------------------------------------


_ENDS = (b"\n", b"\r")


class TextFormat(FileFormat[bytes]):
    """The format of files of lines of text. A plain file is appended to; a compressed one is written as a whole (see
    `parts`).
    """

    compresses = True

    def __init__(self, name: str, compression: str | None = None) -> None:
        super().__init__(name)
        self.compression = codec_of(name) if compression is None else compression
        if self.compression not in (None, *_ENDINGS):
            raise UserError(f"{compression!r} is no compression of text files", hint=f"one of {', '.join(_ENDINGS)}")
        self._first = b""  # the beginning of what a file had when it was opened

    @abstractmethod
    def lines(self, batch: Batch) -> bytes:
        """Returns the rows as text, each with its line break."""

    def head(self, schema: pa.Schema) -> bytes:
        """Returns the text before the first row: a header, or nothing."""
        return b""

    def end_of_rows(self, file: BinaryIO, size: int) -> int:
        return end_of_lines(file, size)

    def rest_of_record(self, file: DataFile, offset: int) -> tuple[int, bytes]:
        if offset == 0 or codec_of(file.path) is not None:
            return offset, b""
        end, head = offset, b""
        with open_raw(file.path) as raw:
            raw.seek(offset - 1)
            if raw.read(1) in _ENDS:
                return offset, b""
            while end < file.size and (piece := raw.read(min(SKIP_BYTES, file.size - end))):
                found = min(filter(None, (piece.find(mark) + 1 for mark in _ENDS)), default=0)
                head = (head + piece[: found or len(piece)])[:HEAD_BYTES]
                end += found or len(piece)
                if found:
                    break
        return end, head

    def by_columns(self, partition_by: Sequence[str]) -> ColumnFormat:
        return _DividedText(self, partition_by)

    @property
    def ending(self) -> str:
        return self.suffix + ("" if self.compression is None else _ENDINGS[self.compression])

    @property
    def continues(self) -> bool:
        return self.compression is None

    def forget(self) -> None:
        self._first = b""

    def begins_with(self, rows: bytes | None) -> None:
        self._first = b"" if rows is None else rows[:FIRST_BYTES]

    def try_rows(self, data: pa.RecordBatch) -> None:
        with self.writing():
            self.lines(Batch(data))

    def rows(self, batch: Batch, *, first: bool) -> bytes:
        lines = self.lines(batch)
        head = self.head(batch.schema)
        if first:
            self._first = head
            return head + lines
        if not self._first.startswith(head):
            raise self._other_head(self._first, head)
        return lines

    def _other_head(self, begun: bytes, head: bytes) -> UserError:
        return UserError(
            f"file {self.name!r} begins with {begun[:200].splitlines()[0]!r}, and not with {head.rstrip()!r}",
            hint="write other columns into another file",
        )

    def try_types(self, empty: pa.RecordBatch) -> None:
        self.lines(Batch(empty))

    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        self.lines(empty)
        head = self.head(empty.schema)
        begun = self._first if before is None else self.head(before)
        if begun and not begun.startswith(head):
            raise self._other_head(begun, head)

    def before_first(self) -> bytes | None:
        return None if self.expected is None else self.head(self.expected) or None

    # -- as the encoding of a compressed file --------------------------------------------------------------------------

    def start(self, file: Any, first: bytes | None) -> RowWriter[bytes]:
        """Returns a writer into `file`. There is always one, because a text file without rows is a file too."""
        return _PlainText(file) if self.compression is None else _CompressedText(file, self.compression)

    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        """Returns a writer of a new file to which columns are written. Raises UserError for columns that the format
        cannot hold.
        """
        return _TextRows(self, self.start(file, None), schema)

    def size(self, rows: bytes) -> int:
        return len(rows)

    def read(self, path: Path) -> Iterator[bytes]:
        with pa.CompressedInputStream(pa.OSFile(os.fspath(path)), self.compression) as stream:
            while text := stream.read(BLOCK_BYTES):
                self._first = self._first or text
                yield text

    def frame(self, rows: list[bytes]) -> bytes:
        return b"".join(rows)

    def unframe(self, frame: pa.Buffer) -> Iterator[bytes]:
        text = frame.to_pybytes()
        self._first = self._first or text[:FIRST_BYTES]
        yield text


class _PlainText:
    def __init__(self, file: Any) -> None:
        self.write = file.write
        self.tell = file.tell

    def close(self) -> None:
        """Does nothing: there is no buffer, and the caller that opened the file closes it."""


class _CompressedText:
    def __init__(self, file: Any, codec: str | None) -> None:
        self._file = file
        self._stream = pa.CompressedOutputStream(file, codec)

    def write(self, rows: bytes) -> None:
        self._stream.write(rows)

    def close(self) -> None:
        self._stream.close()

    def tell(self) -> int:
        at: int = self._file.tell()
        return at


class _DividedText(ColumnFormat):
    """The format of text in partitions: rows wait as columns, by which they are divided, and each file of a part is
    text.
    """

    compresses = True

    def __init__(self, text: TextFormat, by: Sequence[str]) -> None:
        super().__init__(text.name)
        self._text = text
        self.suffixes = text.suffixes  # type: ignore[misc]
        self.partition_by = checked_names(by)
        self.floats_lost = text.floats_lost

    @property
    def ending(self) -> str:
        return self._text.ending

    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return self._text.writer(file, schema)

    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        raise InternalError(f"{path}: a part of a folder is not read again")

    def columns(self, batch: Batch) -> pa.RecordBatch:
        if batch.schema.equals(RECORD_SCHEMA):
            if not self.partition_by and self._text.has_records:
                return batch.taken()
            raise UserError(
                f"file {self.name!r}: records that are not decoded have no columns, by which rows are divided or written as CSV",
                hint="decode them first: a stream, or a batch agent with a schema",
            )
        return super().columns(batch)

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        return self._text.open_file(file, offset, share, schema)

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        return self._text.infer(files)


class _TextRows:
    """A file of text to which columns are written."""

    def __init__(self, format: TextFormat, into: RowWriter[bytes], schema: pa.Schema) -> None:
        self._format = format
        self._into = into
        format.try_types(empty_batch(schema))
        if head := format.head(schema):
            into.write(head)

    def write(self, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            self._into.write(self._format.lines(Batch(rows)))

    def close(self) -> None:
        self._into.close()

    def tell(self) -> int:
        return self._into.tell()


def hint_of_utf16(first: bytes) -> str:
    """Returns what to do with a file in UTF-16, by its first line; "" for one that is not. No name and no JSON has a character 0."""
    return _CONVERT if first.startswith(_MARKS_OF_UTF16) or b"\0" in first else ""


def _is_utf16(begin: bytes) -> bool:
    """Returns True if every second byte is mostly 0 and the others are not, as texts of Latin letters are in UTF-16. A row of UTF-8 may
    have a character 0 in a text, or in bytes.
    """
    half = len(begin) // 2
    even, odd = begin[::2].count(0), begin[1::2].count(0)
    return 2 * max(even, odd) >= half > 8 * min(even, odd)


def end_of_lines(file: BinaryIO, size: int) -> int:
    """Returns the end of the last whole line."""
    keep = size
    while keep > 0:
        start = max(0, keep - BLOCK_BYTES)
        file.seek(start)
        newline = file.read(keep - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        keep = start
    return 0
