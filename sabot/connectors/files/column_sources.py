"""Parquet and Arrow IPC files as sources. An offset in such a file is the number of a row."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot.connectors.files.columns import canonical, checked, distinct, fitted
from sabot.connectors.files.paths import DataFile, codec_of, open_stream
from sabot.connectors.files.source import FileReader, FileSource, Found, Share, no_place
from sabot.errors import UserError

__all__ = ["ArrowSource", "ParquetSource"]

_MAGIC = b"ARROW1"


class ParquetSource(FileSource):
    """Rows of Parquet files; only the wanted columns are read. Readers share row groups."""

    suffixes = (".parquet", ".pq")

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        if self._schema is None:
            self._schema = checked(self.infer_schema(), self.name)
        return _ParquetReader(file, offset, self._share, self._schema)

    def _end_of(self, file: DataFile) -> int | None:
        with _parquet(file.path) as opened:
            rows: int = opened.metadata.num_rows
            return rows

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        with _parquet(files[0].path) as opened:
            return _columns(opened.schema_arrow, files[0].path)


class ArrowSource(FileSource):
    """Rows of Arrow IPC files (also called Feather) or streams; which of the two, the file tells. Readers share the batches of a
    file; a stream is one piece, and may be compressed as a whole.
    """

    suffixes = (".arrow", ".arrows", ".ipc", ".feather")

    def _pieces(self, file: DataFile) -> bool:
        return not _is_stream(file.path)

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        if self._schema is None:
            self._schema = checked(self.infer_schema(), self.name)
        if _is_stream(file.path):
            return _StreamReader(file, offset, self._share, self._schema)
        return _IpcReader(file, offset, self._share, self._schema)

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        path = files[0].path
        if _is_stream(path):
            raw, stream = open_stream(path)
            with raw, ipc.open_stream(stream) as opened:
                return _columns(opened.schema, path)
        with pa.memory_map(path) as mapped, ipc.open_file(mapped) as opened:
            return _columns(opened.schema, path)


def _columns(schema: pa.Schema, path: str) -> pa.Schema:
    distinct(schema.names, path)
    return canonical(schema)


def _parquet(path: str) -> pq.ParquetFile:
    if codec_of(path) is not None:
        raise UserError(f"file {path!r}: Parquet is compressed inside, not as a whole", hint="decompress it")
    return pq.ParquetFile(path)


def _is_stream(path: str) -> bool:
    if codec_of(path) is not None:
        return True
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC))
    if start.startswith(b"FEA1"):
        raise UserError(
            f"file {path!r} is Feather version 1, which is no Arrow IPC", hint="write it again as version 2"
        )
    return start != _MAGIC


class _Slices(FileReader):
    """Rows of batches that may be larger than what is asked for. `_next` gives a batch and the number of its first row."""

    def __init__(self, file: DataFile, offset: int, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._rest: pa.RecordBatch | None = None
        self.offset = offset

    def _next(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        """The next batch of this share of which a row lies at or behind `offset`; None at the end, with `offset` there."""
        raise NotImplementedError

    def read(self, max_rows: int) -> Found | None:
        while self._rest is None:
            found = self._next(max_rows)
            if found is None:
                return None
            first, data = found
            rest = data.slice(max(0, self.offset - first))
            self.offset = max(first, self.offset)
            if rest.num_rows:
                self._rest = fitted(rest, self._schema, self._file.path)
        given = self._rest.slice(0, max_rows)
        self._rest = self._rest.slice(max_rows) if self._rest.num_rows > max_rows else None
        self.offset += given.num_rows
        return Found(given)


class _ParquetReader(_Slices):
    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema) -> None:
        super().__init__(file, offset, schema)
        self._opened = _parquet(file.path)
        try:
            names = self._opened.schema_arrow.names
            self._columns = [name for name in schema.names if name in names]  # `fitted` names those that are not there
            metadata = self._opened.metadata
            self._rows: int = metadata.num_rows
            if offset > self._rows:
                raise no_place(f"file {file.path!r}: position {offset} is behind its {self._rows} rows")
        except BaseException:
            self.close()
            raise
        self._groups: list[tuple[int, int, int]] = []  # (group, its first row, the row behind it), of this share
        first = 0
        for group in range(metadata.num_row_groups):
            end = first + metadata.row_group(group).num_rows
            if end > offset and share.has(file.number, group):
                self._groups.append((group, first, end))
            first = end
        self._batches: Any = iter(())
        self._at = 0

    def _next(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        while True:
            data = next(self._batches, None)
            if data is not None:
                self._at += data.num_rows
                return self._at - data.num_rows, data
            if not self._groups:
                self.offset = self._rows
                return None
            group, self._at, _ = self._groups.pop(0)
            self._batches = self._opened.iter_batches(
                max_rows, row_groups=[group], columns=self._columns, use_threads=False
            )

    @property
    def fraction(self) -> float:
        return self.offset / self._rows if self._rows else 1.0

    @property
    def ended(self) -> bool:
        return self._rest is None and self.offset >= self._rows

    def close(self) -> None:
        self._opened.close()


class _IpcReader(_Slices):
    """The batches of a file lie where they are: memory is mapped, and nothing is copied unless it is compressed."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema) -> None:
        super().__init__(file, offset, schema)
        self._share = share
        self._mapped = pa.memory_map(file.path)
        try:
            whole = ipc.open_file(self._mapped)
            fields = [number for number, name in enumerate(whole.schema.names) if name in schema.names]
            # no field would be all of them; to count the rows of the others' batches, one is enough
            self._opened = ipc.open_file(self._mapped, options=_only(fields or [0]))
            self._counted = ipc.open_file(self._mapped, options=_only([0]))
        except BaseException:
            self.close()
            raise
        self._batch = 0
        self._at = 0  # the first row of that batch

    def _next(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        while self._batch < self._opened.num_record_batches:
            mine = self._share.has(self._file.number, self._batch)
            data = (self._opened if mine else self._counted).get_batch(self._batch)
            self._batch += 1
            first, self._at = self._at, self._at + data.num_rows
            if mine and self._at > self.offset:
                return first, data
        if self.offset > self._at:
            raise no_place(f"file {self._file.path!r}: position {self.offset} is behind its {self._at} rows")
        self.offset = self._at
        return None

    @property
    def fraction(self) -> float:
        batches = self._opened.num_record_batches
        return self._batch / batches if batches else 1.0

    def close(self) -> None:
        self._mapped.close()


class _StreamReader(_Slices):
    """One batch after the other, from the beginning."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema) -> None:
        super().__init__(file, offset, schema)
        self._raw, self._stream = open_stream(file.path)
        self._mine = share.has(file.number, 0)
        self._at = 0
        try:
            self._opened = ipc.open_stream(self._stream) if self._mine else None
            if self._opened is not None:
                fields = [number for number, name in enumerate(self._opened.schema.names) if name in schema.names]
                self._raw.close()
                self._raw, self._stream = open_stream(file.path)
                self._opened = ipc.open_stream(self._stream, options=_only(fields or [0]))
        except BaseException:
            self.close()
            raise

    def _next(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        while self._opened is not None:
            try:
                data = self._opened.read_next_batch()
            except StopIteration:
                break
            first, self._at = self._at, self._at + data.num_rows
            if self._at > self.offset:
                return first, data
        if self._opened is not None and self.offset > self._at:
            raise no_place(f"file {self._file.path!r}: position {self.offset} is behind its {self._at} rows")
        self.offset = max(self.offset, self._at)
        return None

    @property
    def fraction(self) -> float:
        return min(1.0, self._raw.tell() / self._file.size) if self._mine and self._file.size else 1.0

    def close(self) -> None:
        self._raw.close()


def _only(fields: list[int]) -> ipc.IpcReadOptions:
    return ipc.IpcReadOptions(included_fields=fields, use_threads=False)
