"""Files of lines that are values as they are, such as those of a log: one column of texts, or of bytes. SQL calls this format 'raw'."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import empty_batch
from sabot.base.config import Duration, parse_seconds
from sabot.codecs.raw import RawCodec, RawEncoder
from sabot.connectors.files.followed import FollowedFiles
from sabot.connectors.files.formats.base import FileReader, FoundRows, Share
from sabot.connectors.files.formats.text import (
    BLOCK_BYTES,
    BlockReader,
    Blocks,
    Lines,
    NoBlocks,
    StreamedFile,
    TextFormat,
)
from sabot.connectors.files.paths import DataFile, Paths, name_of
from sabot.connectors.files.source import FileSource
from sabot.errors import UserError

_LINES = Lines()


def lines_of(path: Paths, column: pa.Field, follow: Duration | None) -> FileSource:
    """Returns the source of files whose lines are the values of a column. `follow`: as of `files`."""
    format = LinesFormat(name_of(path), column)
    if follow is None:
        return FileSource(path, format)
    return FollowedFiles(path, format, parse_seconds(follow, name="source.monitor-interval", zero=False))


class LinesFormat(TextFormat):
    r"""The format of files whose lines are the values of one column, without their line breaks (\n, \r\n). An empty line is an empty value.
    A value that is written has no line break and is not null. `column`: the column, of texts or of bytes.
    """

    suffixes = (".txt", ".log")

    def __init__(self, name: str, column: pa.Field) -> None:
        super().__init__(name)
        self._column = column
        self._encoder = RawEncoder()

    def pieces(self, file: DataFile) -> bool:
        return False

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        blocks: Blocks = NoBlocks(offset)
        if share.has(file.number, 0):
            blocks = stream = StreamedFile(file, offset, BLOCK_BYTES, _LINES, self.record_bytes)
            if not pa.types.is_binary(self._column.type):
                stream.refuse_utf16()
        return _LineReader(blocks, pa.schema([self._column]))

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        return pa.schema([self._column])

    def lines(self, batch: Batch) -> bytes:
        values = self._encoder.encode(batch.taken())
        if not len(values):
            return b""
        join: Any = pc.binary_join
        joined: bytes = join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), b"\n")[0].as_py()
        if joined.count(b"\n") >= len(values):
            raise UserError(
                f"file {self.name!r}: a value has a line break, and would be several lines",
                hint="REPLACE(text, U&'\\000A', ' '), or 'format' = 'json'",
            )
        return joined + b"\n"


class _LineReader(BlockReader):
    """A reader whose rows are lines."""

    def __init__(self, blocks: Blocks, schema: pa.Schema) -> None:
        super().__init__(blocks, _LINES)
        self._codec = RawCodec(schema)

    def decode_block(self, blocks: Blocks, end: int) -> FoundRows:
        block = bytes(memoryview(blocks.buffer)[blocks.low : end])
        if not block:
            return FoundRows(empty_batch(self._codec.schema))
        split: Any = pc.split_pattern
        lines = split(pa.array([block.removesuffix(b"\n")], pa.binary()), pattern=b"\n").values
        ends_with: Any = pc.ends_with
        returns = ends_with(lines, pattern=b"\r")
        values = pc.if_else(returns, pc.binary_slice(lines, 0, -1), lines) if b"\r\n" in block else lines
        data, bad = self._codec.decode(pa.RecordBatch.from_arrays([values], names=["payload"]))
        if not bad:
            return FoundRows(data)
        found, at, row = [], blocks.offset, 0
        for each in bad:
            at += sum(len(line) + 1 for line in lines[row : each.row].to_pylist())
            row = each.row
            found.append((at, values[row].as_py(), each.reason))
        return FoundRows(data, found)
