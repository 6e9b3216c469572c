"""JSON files: one value a line, or one array of objects, [{…}, {…}], of which each element is a record. They are read as records,
or decoded into columns, and written as lines.

A block of an array ends behind a comma between two elements, so each block begins at an element.
"""

import codecs
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import BadRow
from sabot._cython.text.split import element_end, elements
from sabot.base.arrays import empty_batch, integer_array
from sabot.base.checks import Whole, check
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.json import (
    INFERENCE_ROWS,
    AbsentColumns,
    InferredColumns,
    JsonCodec,
    JsonEncoder,
    TimesInJson,
    decoder_of,
)
from sabot.codecs.records import RECORD_SCHEMA, to_records
from sabot.connectors.files.formats.base import (
    DAMAGED,
    FileReader,
    FoundRows,
    Share,
    note_inferred,
    position_of,
    tell_columns,
    unreadable,
)
from sabot.connectors.files.formats.text import (
    BlockReader,
    Blocks,
    Buffer,
    Lines,
    NoBlocks,
    Records,
    StreamedFile,
    TextFormat,
    hint_of_utf16,
    open_blocks,
)
from sabot.connectors.files.paths import DataFile, codec_of, cut_anywhere, last_bytes, open_stream
from sabot.errors import UserError

_BLOCK_BYTES = 4 << 20
_SHARED_BYTES = 7 << 20  # about 30,000 rows of 250 bytes: with several readers a shuffle deals each batch out in parts
NEWLINE, RETURN = 10, 13
_REST_BYTES = 1024  # of the text behind an array, in a dead letter
_CUT = "the file ends here without the closing bracket of its array, so it may have been cut off"
_BLANKS = list(b" \t\r")  # a line of them is no record
_BEHIND = "only blanks may come after the closing bracket of the array"
_LINES = Lines()
_LOOKED_AT_BYTES = 1_000_000  # in which the names of columns are looked for
_BEGIN_BYTES = 4096
_ARRAYS = 10_000
_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[(?=\s*(?:\{|\]\s*$|$))")


class NdjsonFormat(TextFormat):
    """The format of NDJSON files, and of files that are one array of objects. `block_bytes`: as in `NdjsonSource`.
    `compression`, `times`: as in `NdjsonSink`.
    """

    suffixes = (".ndjson", ".jsonl", ".json")
    has_records = True
    infers = True
    needs_suffix = False
    floats_lost = "not_finite"

    def __init__(
        self, name: str, *, block_bytes: int | None = None, compression: str | None = None, times: TimesInJson = "ms"
    ) -> None:
        super().__init__(name, compression)
        self._given_bytes = None if block_bytes is None else check("block_bytes", block_bytes, Whole(1))
        self._block_bytes = block_bytes or _BLOCK_BYTES
        self._arrays: dict[tuple[str, int, int], int] = {}  # by path, size and time: `_begin_of_array`
        self._encoder = JsonEncoder(times, f"file {name!r}")

    # -- reading -------------------------------------------------------------------------------------------------------

    def chunk_bytes(self, stored: int | None, *, restored: bool) -> int | None:
        # The size of the chunks decides which of them a reader reads. Old checkpoints do not contain it.
        usual = _BLOCK_BYTES if restored else _SHARED_BYTES
        self._block_bytes = stored or self._given_bytes or usual
        return self._block_bytes

    def pieces(self, file: DataFile) -> bool:
        return cut_anywhere(file.path) and not self._array_begin(file)

    def _array_begin(self, file: DataFile) -> int:
        facts = file.path, file.size, file.stamp
        if facts not in self._arrays:
            if len(self._arrays) >= _ARRAYS:  # of a folder that goes on
                self._arrays.clear()
            try:
                self._arrays[facts] = _begin_of_array(file)
            except DAMAGED as error:
                raise unreadable(file.path, error, 0) from error
        return self._arrays[facts]

    def is_whole(self, file: DataFile) -> bool:
        return (
            codec_of(file.path) is not None or not self._array_begin(file) or last_bytes(file, 64).rstrip()[-1:] == b"]"
        )

    def rest_of_record(self, file: DataFile, offset: int) -> tuple[int, bytes]:
        return (offset, b"") if self._array_begin(file) else super().rest_of_record(file, offset)

    def end_of(self, file: DataFile) -> int | None:
        return file.size if codec_of(file.path) is None else None

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        return self._opened(file, offset, share, schema, self._block_bytes)

    def _opened(
        self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None, block_bytes: int
    ) -> FileReader:
        # Columns that were inferred may first appear later, so only misspelt ones are told.
        absent = AbsentColumns(file.path, alike=True) if file.number == offset == share.index == 0 else None
        if begin := self._array_begin(file):
            decoder = None if schema is None else _Decoder(self.inferred, file, schema)
            array: _ArrayFile | NoBlocks = NoBlocks(max(offset, begin))
            if share.has(file.number, 0):
                array = _ArrayFile(replace(file, whole=True), max(offset, begin), block_bytes, self.record_bytes)
            return _ElementReader(array, decoder, file, share.index, offset > 0, absent)
        blocks = open_blocks(file, offset, share, block_bytes, self.record_bytes)
        if schema is None:
            return _Payloads(blocks, file, share.index)
        return _Columns(blocks, _Decoder(self.inferred, file, schema), absent)

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        """Returns the columns that are inferred from the first rows (1,000, or as `inferring` says) of the first file that has a JSON
        object. Raises UserError if there are rows, but none of them is an object.
        """
        sample = INFERENCE_ROWS if self.infer_rows is None else self.infer_rows
        codec = JsonCodec(sample_rows=sample)
        wrong: UserError | None = None
        for file in files:
            rows: list[pa.RecordBatch] = []
            count = 0
            head = self._opened(file, 0, Share(0, 1), None, min(self._block_bytes, 1 << 20))
            with closing(head):
                while count < sample and (read := _read(head, file, sample - count)) is not None:
                    if read.bad:
                        _, payload, reason = read.bad[0]
                        wrong = wrong or _no_lines(file.path, payload, reason)
                    if read.data.num_rows:
                        rows.append(read.data)
                        count += read.data.num_rows
            if not rows:
                continue
            first = rows[0].column(0)[0].as_py()
            try:
                _, bad = codec.decode(pa.concat_batches(rows))
            except UserError as error:
                raise UserError(f"file {file.path!r}: {error.message}", hint=error.hint) from error
            if codec.schema is not None:
                note_inferred(self.name, file, count, codec.schema)
                return codec.schema
            wrong = wrong or _no_lines(file.path, first, bad[0].reason)
        if wrong is not None:
            raise wrong
        return pa.schema([])

    # -- writing -------------------------------------------------------------------------------------------------------

    def lines(self, batch: Batch) -> bytes:
        records = to_records(batch, int(SYSTEM_CLOCK.time() * 1000), encoder=self._encoder)
        payload: Any = records.column(0).fill_null(b"null")
        lines = _join(payload)
        if lines.count(b"\n") != len(payload):
            for end in ("\n", "\r"):
                payload = pc.replace_substring(payload, end, " ")
            lines = _join(payload)
        return lines


class _Decoder:
    """A decoder of the rows of one file, which logs the fields that inferred columns leave out."""

    def __init__(self, inferred: InferredColumns | None, file: DataFile, schema: pa.Schema) -> None:
        self._inferred, self._file, self._others = inferred, file, 0
        self._decoder = decoder_of(schema, inferred)

    def lines(self, view: memoryview) -> tuple[pa.RecordBatch, list[BadRow]]:
        return self._told(self._decoder.decode_lines(view))

    def payloads(self, payloads: Any) -> tuple[pa.RecordBatch, list[BadRow]]:
        return self._told(self._decoder.decode(payloads))

    def _told(self, decoded: tuple[pa.RecordBatch, list[BadRow]]) -> tuple[pa.RecordBatch, list[BadRow]]:
        if self._decoder.others > self._others:
            self._others = self._decoder.others
            tell_columns(self._inferred, self._file, self._decoder.other_names(), "field")
        return decoded


def _join(payload: Any) -> bytes:
    """Returns all rows as lines, each with its line break."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(payload)], pa.int32()), payload)
    join: Any = pc.binary_join
    joined: bytes = join(whole, b"\n")[0].as_py()
    return joined + b"\n"


def _read(head: FileReader, file: DataFile, rows: int) -> FoundRows | None:
    try:
        return head.read(rows)
    except DAMAGED as error:
        raise unreadable(file.path, error, head.offset) from error


def _no_lines(path: str, first: bytes, reason: str) -> UserError:
    usual = "one JSON object a line, or one array of objects; schema= sets all other lines apart"
    why = f"file {path!r} does not hold JSON objects, its first line: {reason}"
    return UserError(why, hint=hint_of_utf16(first) or usual)


class _Columns(BlockReader):
    """A reader that decodes lines into columns."""

    def __init__(self, blocks: Blocks, decoder: _Decoder, absent: AbsentColumns | None) -> None:
        super().__init__(blocks, _LINES)
        self._decoder = decoder
        self._absent = absent  # None when the first block has been looked at

    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        low = _behind_lone_mark(blocks, end)
        view = memoryview(blocks.buffer)[low:end]
        data, bad = self._decoder.lines(view)
        if self._absent is not None and data.num_rows and not bad:
            first = bytes(view[:_LOOKED_AT_BYTES]).splitlines()
            whole = first if end - low <= _LOOKED_AT_BYTES else first[:-1]
            self._absent.look(data, data.schema.names, lambda: [line for line in whole if line.strip()])
            if not self._absent.is_done:
                self._absent.tell()
            self._absent = None
        at = blocks.offset + low - blocks.low
        return FoundRows(data, [(at + row.start, bytes(view[row.start : row.end]), row.reason) for row in bad])


class _Payloads(BlockReader):
    """A reader that returns lines as records."""

    def __init__(self, blocks: Blocks, file: DataFile, partition: int) -> None:
        super().__init__(blocks, _LINES)
        self._file = file
        self._partition = partition

    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        low = _behind_lone_mark(blocks, end)
        if end == low:
            return FoundRows(empty_batch(RECORD_SCHEMA))
        block = bytes(memoryview(blocks.buffer)[low:end])
        data = np.frombuffer(block, np.uint8)
        stops = np.flatnonzero(data == NEWLINE)
        starts = np.concatenate(([0], stops + 1))
        if data[-1] == NEWLINE:
            starts = starts[:-1]
        else:
            stops = np.append(stops, len(block))
        if b"\r\n" in block:
            stops = stops - ((stops > starts) & (stops < len(block)) & (data[stops - 1] == RETURN))
        bare = block.replace(b"\r\n", b"").replace(b"\n", b"")
        full = stops > starts
        indented = np.flatnonzero(full)[np.isin(data[starts[full]], _BLANKS)]
        blank = [line for line in indented.tolist() if not block[starts[line] : stops[line]].strip(b" \t\r")]
        full[blank] = False
        if not full.all():
            starts, stops = starts[full], stops[full]
        if blank:
            bare = b"".join([block[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)])
        rows = len(starts)
        offsets = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(stops - starts, out=offsets[1:])
        buffers: Any = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(bare)]
        payloads = pa.Array.from_buffers(pa.binary(), rows, buffers)
        starts = starts + blocks.offset + low - blocks.low
        return FoundRows(_records(payloads, starts, self._file, self._partition))


def _behind_lone_mark(blocks: Blocks, end: int) -> int:
    """Returns the start of the block; the place behind a byte order mark, if the file begins with one that nothing follows in its line."""
    behind = blocks.low + len(codecs.BOM_UTF8)
    lone = blocks.offset == 0 and blocks.buffer[blocks.low : behind] == codecs.BOM_UTF8
    return behind if lone and (behind == end or blocks.buffer[behind] in (NEWLINE, RETURN)) else blocks.low


def _begin_of_array(file: DataFile) -> int:
    """Returns the offset after the opening bracket of a file that is one array of objects, or 0 if the file is none."""
    raw, stream = open_stream(file.path)
    with raw, stream:
        found = _BEGIN.match(stream.read(_BEGIN_BYTES))
    return 0 if found is None else found.end()


class _Elements(Records):
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


class _ArrayFile(StreamedFile):
    """A file that is one array, read by one reader. `closed`: True if the array has ended before `offset`."""

    def __init__(self, file: DataFile, offset: int, block_bytes: int, record_bytes: int) -> None:
        super().__init__(file, offset, block_bytes, _Elements(), record_bytes)
        self._path, self._most = file.path, record_bytes
        self.closed = self.before == b"]"

    def _step_over(self) -> None:
        # The next comma may be inside of the element, so the element cannot be skipped without its end.
        raise UserError(
            f"file {self._path!r}: the element of its array at offset {self.offset} has more than {self._most} bytes",
            hint="files(…, record_bytes=) allows larger ones; or write one object a line (NDJSON)",
        )


class _ElementReader(BlockReader):
    """A reader of the elements of an array, which it decodes into columns, or returns as records if there is no decoder."""

    def __init__(
        self,
        blocks: _ArrayFile | NoBlocks,
        decoder: _Decoder | None,
        file: DataFile,
        partition: int,
        again: bool,
        absent: AbsentColumns | None,
    ) -> None:
        super().__init__(blocks, _Elements())
        self._array = blocks
        self._decoder = decoder
        self._absent = absent  # None when the first rows have been looked at
        self._file = file
        self._partition = partition
        # The offset behind the array's closing bracket, if it is known.
        self._close = blocks.offset if isinstance(blocks, _ArrayFile) and blocks.closed else None
        # True if a dead letter has said that the array has no closing bracket: with the last elements, or, if `again`,
        # by the reader before this one, whose position was the end of the file.
        self._cut = again and not blocks.next() if isinstance(blocks, _ArrayFile) else True

    def read(self, max_rows: int) -> FoundRows | None:
        found, blocks = super().read(max_rows), self._array
        if not self._told and not blocks.ended and blocks.low == blocks.limit:
            blocks.next()  # the block ended with an element, so it is not known yet if the file does
        if self._told or not blocks.ended or blocks.low < blocks.limit:
            return found
        # The letter is in the batch of the last elements: their position is the end of the file, and never comes again.
        self._cut = True
        data, bad = (self.decode_block(blocks, blocks.low).data, []) if found is None else found
        return FoundRows(data, [*bad, (blocks.offset, b"", _CUT)])

    @property
    def ended(self) -> bool:
        return super().ended and self._told

    @property
    def _told(self) -> bool:
        return self._close is not None or self._cut

    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        closed = self._close is not None and blocks.offset >= self._close
        with memoryview(blocks.buffer) as buffer, buffer[blocks.low : blocks.low if closed else end] as block:
            payloads, starts, close = elements(block)
        if close:
            self._close = blocks.offset + close
        data, bad = self._rows(payloads, starts + blocks.offset)
        behind = bytes(memoryview(blocks.buffer)[blocks.low + close : end]).strip() if closed or close else b""
        if behind:
            bad.append((blocks.offset + close, behind[:_REST_BYTES], _BEHIND))
        return FoundRows(data, bad)

    def _rows(self, payloads: Any, offsets: Any) -> tuple[pa.RecordBatch, list[tuple[int, bytes, str]]]:
        """Returns the rows of elements, and the bad ones. `offsets`: of the elements in the file."""
        if self._decoder is None:
            return _records(payloads, offsets, self._file, self._partition), []
        data, bad = self._decoder.payloads(payloads)
        if self._absent is not None and data.num_rows:
            self._absent.look(data, data.schema.names, payloads.slice(0, INFERENCE_ROWS).drop_null().to_pylist)
            if not self._absent.is_done:
                self._absent.tell()
            self._absent = None
        return data, [(int(offsets[row.row]), payloads[row.row].as_py(), row.reason) for row in bad]


def _records(payloads: Any, offsets: Any, file: DataFile, partition: int) -> pa.RecordBatch:
    """Returns records of a file. `offsets`: those in the file."""
    rows = len(payloads)
    columns: list[Any] = [
        payloads,
        pa.nulls(rows, pa.binary()),
        integer_array(np.full(rows, file.stamp, dtype=np.int64), RECORD_SCHEMA.field("timestamp").type),
        integer_array(np.full(rows, partition, dtype=np.int32), pa.int32()),
        integer_array(offsets + position_of(file.number, 0), pa.int64()),
        pa.nulls(rows, RECORD_SCHEMA.field("headers").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)
