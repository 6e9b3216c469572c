"""Sinks for Parquet and Arrow IPC files, which gather small batches into large ones."""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.border import validate
from sabot.base.checks import FLAG, OneOf, check
from sabot.base.config import Duration
from sabot.connectors.files.format import FileFormat
from sabot.connectors.files.growing import GrowingFile, PendingFile
from sabot.connectors.files.partitions import PartitionedFile, PartitionedPart, check_partitions, checked_names
from sabot.connectors.files.parts import FilePart, RowWriter, SealedPart, batches_of_frame, frame_of_batches
from sabot.connectors.files.sink import FileSink
from sabot.errors import UserError

PARQUET_ROWS = 1 << 18
ARROW_ROWS = 1 << 16
GROUP_BYTES = 64 << 20
MAX_GROUP_ROWS = 1 << 20
_PARQUET_COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "brotli", "none")


class ColumnFormat(FileFormat[pa.RecordBatch]):
    """The format of files that hold columns: its rows are batches of one schema."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._schema: pa.Schema | None = None

    @abstractmethod
    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        """Returns the writer of a new file with these columns."""

    @abstractmethod
    def _batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yields the batches of a complete file."""

    def forget(self) -> None:
        self._schema = None

    @property
    def outgrown(self) -> bool:
        known = self.evolve and self.expected is not None and self._schema is not None
        return known and not self._schema.equals(self.expected.remove_metadata())  # type: ignore[union-attr]

    def new_part(self, path: Path, *, hidden: bool, truncate: bool) -> FilePart[pa.RecordBatch]:
        return PartitionedPart(path, self, self.partition_by) if self.partition_by else SealedPart(path, self)

    def new_growth(self, path: Path, *, hidden: bool) -> GrowingFile[pa.RecordBatch]:
        return PartitionedFile(path, self, self.partition_by) if self.partition_by else PendingFile(path, self)

    def rows(self, batch: Batch, *, first: bool) -> pa.RecordBatch:
        if first and self.partition_by:  # the files are written long after these rows came
            self.accept(batch, None)
        return self._fitting(_own(self.columns(batch)))

    def try_types(self, empty: pa.RecordBatch) -> None:
        self._writer(pa.BufferOutputStream(), empty.schema).close()

    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        schema = self.columns(empty).schema.remove_metadata()
        if self.partition_by:
            check_partitions(schema, self.partition_by, f"file {self.name!r}")
        before = self._schema if before is None else before
        if before is not None and not schema.equals(before.remove_metadata()):
            raise self._other_columns(schema, before)
        self._writer(pa.BufferOutputStream(), schema).close()

    def try_empty(self) -> None:
        writer = self.start(pa.BufferOutputStream(), None)
        if writer is not None:
            writer.close()

    def _fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows. Raises UserError if their columns differ from those of the first rows of the file."""
        if self._schema is None:
            self._schema = data.schema.remove_metadata()
        elif not data.schema.equals(self._schema):
            raise self._other_columns(data.schema, self._schema)
        return data

    # -- the encoding --------------------------------------------------------------------------------------------------

    def _other_columns(self, schema: pa.Schema, before: pa.Schema) -> UserError:
        return UserError(
            f"file {self.name!r}: rows with the columns {_described(schema)} do not fit those before: {_described(before)}",
            hint="select and cast to the same columns before the sink, or give another path; overwrite=True begins empty",
        )

    def start(self, file: Any, first: pa.RecordBatch | None) -> RowWriter[pa.RecordBatch] | None:
        """Returns a writer of a new file with the columns of `first`, or of the plan; None if neither is known."""
        schema = self.expected if first is None else first.schema
        return None if schema is None else self._writer(file, schema.remove_metadata())

    def size(self, rows: pa.RecordBatch) -> int:
        """Returns the bytes that the columns take in memory, uncompressed."""
        found: int = rows.nbytes
        return found

    def read(self, path: Path) -> Iterator[pa.RecordBatch]:
        for data in self._batches(path):
            try:
                validate(data)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"file {os.fspath(path)!r} is damaged: {error}", hint="repair it or move it away"
                ) from error
            yield self._fitting(data.replace_schema_metadata(None))

    def frame(self, rows: list[pa.RecordBatch]) -> pa.Buffer:
        """Returns the batches, which have one schema, as an Arrow IPC stream."""
        return frame_of_batches(rows)

    def unframe(self, frame: pa.Buffer) -> Iterator[pa.RecordBatch]:
        """Yields the batches of an Arrow IPC stream. Raises UserError if the file that they belong to has other
        columns.
        """
        for data in batches_of_frame(frame):
            yield self._fitting(data)


class Parquet(ColumnFormat):
    suffix = ".parquet"

    def check_values(self, data: pa.RecordBatch) -> None:
        for field, column in zip(data.schema, data.columns, strict=True):
            if getattr(field.type, "unit", "") == "s" and pa.types.is_timestamp(field.type):
                with self.writing():  # Parquet has no seconds
                    column.cast(pa.timestamp("ms", field.type.tz))

    def __init__(self, name: str, compression: str) -> None:
        super().__init__(name)
        self._compression = check("compression", compression, OneOf(_PARQUET_COMPRESSIONS))

    def _batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as opened:
            yield from opened.iter_batches(use_threads=False)

    def columns_in(self, path: Path) -> list[str]:
        try:
            return list(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"file {os.fspath(path)!r} is damaged: {error}", hint="repair it or move it away"
            ) from error

    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return _Gathered(pq.ParquetWriter(file, schema, compression=self._compression), file, PARQUET_ROWS)


class ParquetSink(FileSink):
    """A sink that writes Parquet files. Rows are gathered into row groups of 262,144 rows, or of 64 MiB.
    `compression`: "snappy", "zstd", "lz4", "gzip", "none". `evolve`: True to write further parts of a folder with columns
    that its newest part lacks; without it they end the start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str = "snappy",
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
        evolve: bool = False,
    ) -> None:
        format = Parquet(os.fspath(path), compression)
        format.evolve = check("evolve", evolve, FLAG)
        format.partition_by = checked_names(partition_by)
        super().__init__(format, overwrite=overwrite, part_bytes=part_bytes, part_time=part_time)


class Arrow(ColumnFormat):
    suffix = ".arrow"

    def __init__(self, name: str, compression: str | None) -> None:
        super().__init__(name)
        if compression is not None:
            check("compression", compression, OneOf(("lz4", "zstd")))
        self._options = ipc.IpcWriteOptions(compression=compression)

    def _batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        with pa.OSFile(os.fspath(path)) as file, ipc.open_file(file) as opened:
            for number in range(opened.num_record_batches):
                yield opened.get_batch(number)

    def _writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        return _Gathered(ipc.new_file(file, schema, options=self._options), file, ARROW_ROWS, joins=True)


class ArrowSink(FileSink):
    """A sink that writes files of Arrow IPC (the file format). `compression`: None, "lz4" or "zstd"."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        compression: str | None = None,
        part_bytes: int | None = None,
        part_time: Duration | None = None,
        partition_by: Sequence[str] = (),
    ) -> None:
        format = Arrow(os.fspath(path), compression)
        format.partition_by = checked_names(partition_by)
        super().__init__(format, overwrite=overwrite, part_bytes=part_bytes, part_time=part_time)


class _Gathered:
    """A writer that gathers small batches into large ones."""

    def __init__(self, writer: Any, file: Any, rows: int, *, joins: bool = False) -> None:
        self._joins = joins  # for a writer that would write each small batch by itself
        self._writer = writer
        self._file = file
        self._full_rows = rows
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, rows: pa.RecordBatch) -> None:
        self._batches.append(rows)
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        if self._rows >= self._full_rows or self._bytes >= GROUP_BYTES:
            self._write_out()

    def _write_out(self) -> None:
        batches, self._batches, self._rows, self._bytes = self._batches, [], 0, 0
        if batches:
            table = pa.Table.from_batches([pa.concat_batches(batches)] if self._joins else batches)
            self._writer.write_table(table, MAX_GROUP_ROWS)

    def close(self) -> None:
        try:
            self._write_out()
        finally:
            self._writer.close()

    def tell(self) -> int:
        at: int = self._file.tell()
        return at


def _own(data: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows. If they are a small part of a large buffer, copies them, because while they wait for more
    rows they would keep that buffer in memory.
    """
    if data.get_total_buffer_size() <= 2 * data.nbytes + (64 << 10):
        return data
    return pa.concat_batches([data, data.slice(0, 0)])


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
