"""JSON files as sources: one value a line, or one array of objects; as records or decoded into columns."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.text.json import JsonDecoder
from sabot._cython.text.split import elements
from sabot.base.checks import Whole, check
from sabot.base.config import RECORD_BYTES
from sabot.codecs.json import INFERENCE_ROWS, AbsentColumns, JsonCodec, with_days
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions
from sabot.connectors.files.blocks import BlockReader, Blocks, Lines, NoBlocks, open_blocks
from sabot.connectors.files.json_array import ArrayElements, ArrayFile, begin_of_array
from sabot.connectors.files.paths import SUFFIXES, DataFile, Paths, codec_of, cut_anywhere
from sabot.connectors.files.source import DAMAGED, FileReader, FileSource, FoundRows, global_offset
from sabot.errors import UserError

BLOCK_BYTES = 4 << 20
SHARED_BYTES = 7 << 20  # about 30,000 rows of 250 bytes: with several readers a shuffle deals each batch out in parts
NEWLINE, RETURN = 10, 13
_REST_BYTES = 1024  # of the text behind an array, in a dead letter
_CUT = "the file ends here without the closing bracket of its array, so it may have been cut off"
_BEHIND = "only blanks may come after the closing bracket of the array"
_LINES = Lines()
_ELEMENTS = ArrayElements()
_LOOKED_AT_BYTES = 1_000_000  # in which the names of columns are looked for
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class NdjsonSource(FileSource):
    """A source that reads the lines of NDJSON files: as records (RECORD_SCHEMA, with the line without its end as
    payload), or decoded into columns after `scan`. If a file is one array of objects, the elements take the place of the lines.

    Blank lines are skipped; the last line may lack its end. Records have no keys and no headers, and the time of the
    file's last change as timestamp. Several readers share a plain file in chunks; a compressed file, or an array, has one
    reader.

    `block_bytes`: the number of bytes that are read and decoded at a time, and the size of a chunk. None: 4 MB, or 7
    MB if several readers share the files. After a restore from a checkpoint, the chunks have the size that the
    checkpoint stores.
    """

    suffixes = SUFFIXES["ndjson"]
    has_records = True
    infers = True

    def __init__(self, path: Paths, *, block_bytes: int | None = None, record_bytes: int | str = RECORD_BYTES) -> None:
        super().__init__(path, record_bytes)
        self._given_bytes = None if block_bytes is None else check("block_bytes", block_bytes, Whole(1))
        self._block_bytes = block_bytes or BLOCK_BYTES
        self._arrays: dict[str, int] = {}  # by path: `begin_of_array`

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        if self._share.count > 1:
            # The size of the chunks decides which of them this reader reads. Old checkpoints do not contain it.
            usual = BLOCK_BYTES if self.place in (positions or {}) else SHARED_BYTES
            self._block_bytes = (positions or {}).get(self._chunks, self._given_bytes or usual)
        super().open(positions, start)

    def positions(self) -> Positions:
        found = super().positions()
        return {**found, self._chunks: self._block_bytes} if self._share.count > 1 else found

    @property
    def _chunks(self) -> tuple[str, int]:
        """The partition under which the positions of this source contain the chunk size."""
        return f"{self.name}#chunks", self._share.index

    def _pieces(self, file: DataFile) -> bool:
        return cut_anywhere(file.path) and not self._array_begin(file)

    def _array_begin(self, file: DataFile) -> int:
        if file.path not in self._arrays:
            try:
                self._arrays[file.path] = begin_of_array(file)
            except DAMAGED as error:
                raise self.unreadable(file, error) from error
        return self._arrays[file.path]

    def _end_of(self, file: DataFile) -> int | None:
        return file.size if codec_of(file.path) is None else None

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        if begin := self._array_begin(file):
            return self._open_array(file, max(offset, begin), offset > 0)
        blocks = open_blocks(file, offset, self._share, self._block_bytes, self._record_bytes)
        if self._schema is None:
            return _Payloads(blocks, file, self._share.index)
        # Columns that were inferred may first appear later, so only misspelt ones are told.
        absent = AbsentColumns(file.path, alike=True) if file.number == offset == self._share.index == 0 else None
        return _Columns(blocks, JsonDecoder(self._schema), absent)

    def _open_array(self, file: DataFile, offset: int, again: bool) -> FileReader:
        decoder = None if self._schema is None else JsonDecoder(self._schema)
        blocks: ArrayFile | NoBlocks = NoBlocks(offset)
        if self._share.has(file.number, 0):
            blocks = ArrayFile(file, offset, self._block_bytes, self._record_bytes)
        return _Elements(blocks, decoder, file, self._share.index, again)

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        """Returns the columns that are inferred from the first rows (1,000, or as `inferring` says) of the first file that has a JSON
        object. Raises UserError if there are rows, but none of them is an object.
        """
        sample = INFERENCE_ROWS if self.infer_rows is None else self.infer_rows
        codec = JsonCodec(sample_rows=sample)
        wrong: UserError | None = None
        for file in files:
            rows: list[pa.RecordBatch] = []
            count = 0
            with closing(
                NdjsonSource(file.path, block_bytes=min(self._block_bytes, 1 << 20), record_bytes=self._record_bytes)
            ) as head:
                head.open(None)
                while count < sample and not head.exhausted:
                    read = head.read_batch(sample - count, 0)
                    if read is not None and read.bad is not None:
                        bad_one = read.bad.slice(0, 1).to_pylist()[0]
                        wrong = wrong or _no_lines(file.path, bad_one["payload"], bad_one["reason"])
                    if read is not None and read.num_rows:
                        rows.append(read.data)
                        count += read.num_rows
            if not rows:
                continue
            first = rows[0].column(0)[0].as_py()
            try:
                _, bad = codec.decode(pa.concat_batches(rows))
            except UserError as error:
                raise UserError(f"file {file.path!r}: {error.message}", hint=error.hint) from error
            if codec.schema is not None:
                self.note_inferred(file, count, codec.schema)
                return codec.schema
            wrong = wrong or _no_lines(file.path, first, bad[0].reason)
        if wrong is not None:
            raise wrong
        return pa.schema([])


def _no_lines(path: str, first: bytes, reason: str) -> UserError:
    hint = "one JSON object a line, or one array of objects; schema= sets all other lines apart"
    if first.startswith(_UTF16):
        hint = "it is in UTF-16: convert it to UTF-8 (iconv -f utf-16 -t utf-8)"
    return UserError(f"file {path!r} does not hold JSON objects, its first line: {reason}", hint=hint)


class _Columns(BlockReader):
    """A reader that decodes lines into columns."""

    def __init__(self, blocks: Blocks, decoder: JsonDecoder, absent: AbsentColumns | None) -> None:
        super().__init__(blocks, _LINES)
        self._decoder = decoder
        self._absent = absent  # None when the first block has been looked at

    def _decode(self, blocks: Blocks, end: int) -> FoundRows:
        view = memoryview(blocks.buffer)[blocks.low : end]
        data, bad = self._decoder.decode_lines(view)
        data = with_days(data, bad, lambda decoder: decoder.decode_lines(view))
        if self._absent is not None and data.num_rows and not bad:
            first = bytes(view[:_LOOKED_AT_BYTES]).splitlines()
            whole = first if end - blocks.low <= _LOOKED_AT_BYTES else first[:-1]
            self._absent.look(data, data.schema.names, lambda: [line for line in whole if line.strip()])
            if not self._absent.is_done:
                self._absent.tell()
            self._absent = None
        rows = [(blocks.offset + row.start, bytes(view[row.start : row.end]), row.reason) for row in bad]
        return FoundRows(data, rows)


class _Payloads(BlockReader):
    """A reader that returns lines as records."""

    def __init__(self, blocks: Blocks, file: DataFile, partition: int) -> None:
        super().__init__(blocks, _LINES)
        self._file = file
        self._partition = partition

    def _decode(self, blocks: Blocks, end: int) -> FoundRows:
        if end == blocks.low:
            return FoundRows(pa.RecordBatch.from_pylist([], schema=RECORD_SCHEMA))
        block = bytes(memoryview(blocks.buffer)[blocks.low : end])
        data = np.frombuffer(block, np.uint8)
        stops = np.flatnonzero(data == NEWLINE)
        starts = np.concatenate(([0], stops + 1))
        if data[-1] == NEWLINE:
            starts = starts[:-1]
        else:
            stops = np.append(stops, len(block))
        if b"\r\n" in block:
            stops = stops - ((stops > starts) & (stops < len(block)) & (data[stops - 1] == RETURN))
        full = stops > starts
        if not full.all():
            starts, stops = starts[full], stops[full]
        rows = len(starts)
        offsets = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(stops - starts, out=offsets[1:])
        bare = block.replace(b"\r\n", b"").replace(b"\n", b"")
        buffers: Any = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(bare)]
        payloads = pa.Array.from_buffers(pa.binary(), rows, buffers)
        return FoundRows(_records(payloads, starts + blocks.offset, self._file, self._partition))


class _Elements(BlockReader):
    """A reader of the elements of an array, which it decodes into columns, or returns as records if there is no decoder."""

    def __init__(
        self, blocks: ArrayFile | NoBlocks, decoder: JsonDecoder | None, file: DataFile, partition: int, again: bool
    ) -> None:
        super().__init__(blocks, _ELEMENTS)
        self._array = blocks
        self._decoder = decoder
        self._file = file
        self._partition = partition
        # The offset behind the array's closing bracket, if it is known.
        self._close = blocks.offset if isinstance(blocks, ArrayFile) and blocks.closed else None
        # True if a dead letter has said that the array has no closing bracket: with the last elements, or, if `again`,
        # by the reader before this one, whose position was the end of the file.
        self._cut = again and not blocks.next() if isinstance(blocks, ArrayFile) else True

    def read(self, max_rows: int) -> FoundRows | None:
        found, blocks = super().read(max_rows), self._array
        if not self._told and not blocks.ended and blocks.low == blocks.limit:
            blocks.next()  # the block ended with an element, so it is not known yet if the file does
        if self._told or not blocks.ended or blocks.low < blocks.limit:
            return found
        # The letter is in the batch of the last elements: their position is the end of the file, and never comes again.
        self._cut = True
        data, bad = (self._decode(blocks, blocks.low).data, []) if found is None else found
        return FoundRows(data, [*bad, (blocks.offset, b"", _CUT)])

    @property
    def ended(self) -> bool:
        return super().ended and self._told

    @property
    def _told(self) -> bool:
        return self._close is not None or self._cut

    def _decode(self, blocks: Blocks, end: int) -> FoundRows:
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
        data, bad = self._decoder.decode(payloads)
        data = with_days(data, bad, lambda decoder: decoder.decode(payloads))
        return data, [(int(offsets[row.row]), payloads[row.row].as_py(), row.reason) for row in bad]


def _records(payloads: Any, offsets: Any, file: DataFile, partition: int) -> pa.RecordBatch:
    """Returns records of a file. `offsets`: those in the file."""
    rows = len(payloads)
    columns: list[Any] = [
        payloads,
        pa.nulls(rows, pa.binary()),
        pa.array(np.full(rows, file.stamp, dtype=np.int64)),
        pa.array(np.full(rows, partition, dtype=np.int32)),
        pa.array(offsets + global_offset(file, 0)),
        pa.nulls(rows, RECORD_SCHEMA.field("headers").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)
