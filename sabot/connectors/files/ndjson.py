"""NDJSON files as sources: one JSON value a line, as records or decoded into columns."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.text.json import JsonDecoder
from sabot.base.config import RECORD_BYTES
from sabot.codecs.json import INFERENCE_ROWS, JsonCodec
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions
from sabot.connectors.files.blocks import BlockReader, Blocks, Lines, open_blocks
from sabot.connectors.files.paths import SUFFIXES, DataFile, Paths, codec_of, cut_anywhere
from sabot.connectors.files.source import FileReader, FileSource, FoundRows, global_offset
from sabot.errors import UserError

BLOCK_BYTES = 4 << 20
SHARED_BYTES = 7 << 20  # about 30,000 rows of 250 bytes: with several readers a shuffle deals each batch out in parts
NEWLINE, RETURN = 10, 13
_LINES = Lines()
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")  # the beginning of an array of objects
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class NdjsonSource(FileSource):
    """A source that reads the lines of NDJSON files: as records (RECORD_SCHEMA, with the line without its end as
    payload), or decoded into columns after `scan`.

    Blank lines are skipped; the last line may lack its end. Records have no keys and no headers, and the time of the
    file's last change as timestamp. Several readers share a plain file in chunks; a compressed file has one reader.

    `block_bytes`: the number of bytes that are read and decoded at a time, and the size of a chunk. None: 4 MB, or 7
    MB if several readers share the files. After a restore from a checkpoint, the chunks have the size that the
    checkpoint stores.
    """

    suffixes = SUFFIXES["ndjson"]
    has_records = True

    def __init__(self, path: Paths, *, block_bytes: int | None = None, record_bytes: int | str = RECORD_BYTES) -> None:
        super().__init__(path, record_bytes)
        self._given_bytes = block_bytes
        self._block_bytes = block_bytes or BLOCK_BYTES

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
        return cut_anywhere(file.path)

    def _end_of(self, file: DataFile) -> int | None:
        return file.size if codec_of(file.path) is None else None

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        blocks = open_blocks(file, offset, self._share, self._block_bytes, self._record_bytes)
        if self._schema is None:
            return _Payloads(blocks, file, self._share.index)
        return _Columns(blocks, JsonDecoder(self._schema))

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        """Returns the columns that are inferred from the first 1,000 rows of the first file that has a JSON object.
        Raises UserError if there are rows, but none of them is an object.
        """
        codec = JsonCodec()
        wrong: UserError | None = None
        for file in files:
            head = NdjsonSource(file.path, block_bytes=min(self._block_bytes, 1 << 20), record_bytes=self._record_bytes)
            head.open(None)
            rows: list[pa.RecordBatch] = []
            count = 0
            while count < INFERENCE_ROWS and not head.exhausted:
                read = head.read_batch(INFERENCE_ROWS - count, 0)
                if read is not None and read.bad is not None:
                    bad_one = read.bad.slice(0, 1).to_pylist()[0]
                    wrong = wrong or _no_lines(file.path, bad_one["payload"], bad_one["reason"])
                if read is not None and read.num_rows:
                    rows.append(read.data)
                    count += read.num_rows
            head.close()
            if not rows:
                continue
            first = rows[0].column(0)[0].as_py()
            try:
                _, bad = codec.decode(pa.concat_batches(rows))
            except UserError as error:
                raise UserError(f"file {file.path!r}: {error.message}", hint=error.hint) from error
            if _ARRAY.match(first):
                raise _no_lines(file.path, first, bad[0].reason)
            if codec.schema is not None:
                return codec.schema
            wrong = wrong or _no_lines(file.path, first, bad[0].reason)
        if wrong is not None:
            raise wrong
        return pa.schema([])


def _no_lines(path: str, first: bytes, reason: str) -> UserError:
    hint = "one JSON object a line; schema= sets all other lines apart"
    if _ARRAY.match(first):
        hint = "one JSON object a line, and this is one array: jq -c '.[]' makes lines of it"
    elif first.startswith(_UTF16):
        hint = "it is in UTF-16: convert it to UTF-8 (iconv -f utf-16 -t utf-8)"
    return UserError(f"file {path!r} does not hold JSON objects, its first line: {reason}", hint=hint)


class _Columns(BlockReader):
    """A reader that decodes lines into columns."""

    def __init__(self, blocks: Blocks, decoder: JsonDecoder) -> None:
        super().__init__(blocks, _LINES)
        self._decoder = decoder

    def _decode(self, blocks: Blocks, end: int) -> FoundRows:
        view = memoryview(blocks.buffer)[blocks.low : end]
        data, bad = self._decoder.decode_lines(view)
        rows = [(blocks.offset + row.start, bytes(view[row.start : row.end]), row.reason) for row in bad]
        if rows and rows[0][0] == 0 and _ARRAY.match(rows[0][1]):
            rows[0] = (*rows[0][:2], f"{rows[0][2]}; one JSON object a line is read, no array of them")
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
        columns: list[Any] = [
            pa.Array.from_buffers(pa.binary(), rows, buffers),
            pa.nulls(rows, pa.binary()),
            pa.array(np.full(rows, self._file.stamp, dtype=np.int64)),
            pa.array(np.full(rows, self._partition, dtype=np.int32)),
            pa.array(starts + global_offset(self._file, blocks.offset)),
            pa.nulls(rows, RECORD_SCHEMA.field("headers").type),
        ]
        return FoundRows(pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA))
