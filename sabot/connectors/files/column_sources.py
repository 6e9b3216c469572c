"""Parquet and Arrow IPC files as sources. An offset in such a file is the number of a row.

What a file says is not trusted: every batch is checked in full before anything follows an offset of it. So it is read into
memory of ours, never mapped: a mapped file can change behind the check, and ends the process with SIGBUS where it gets shorter.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.border import validate
from sabot.codecs.records import HEAD_BYTES, above
from sabot.connectors.files.columns import as_wanted, canonical, checked, distinct, fitted, most_rows
from sabot.connectors.files.paths import DataFile, codec_of, open_stream
from sabot.connectors.files.source import FileReader, FileSource, Found, Share, no_place
from sabot.errors import UserError

__all__ = ["ArrowSource", "ParquetSource"]

PLAIN_BYTES = 64 << 20  # of texts that dictionaries become at once
_MAGIC = b"ARROW1"


class ParquetSource(FileSource):
    """Rows of Parquet files; only the wanted columns are read. Readers share row groups."""

    suffixes = (".parquet", ".pq")

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        if self._schema is None:
            self._schema = checked(self.infer_schema(), self.name)
        return _ParquetReader(file, offset, self._share, self._schema, self._record_bytes)

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
            return _StreamReader(file, offset, self._share, self._schema, self._record_bytes)
        return _IpcReader(file, offset, self._share, self._schema, self._record_bytes)

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        path = files[0].path
        if _is_stream(path):
            raw, stream = open_stream(path)
            with raw, ipc.open_stream(stream) as opened:
                return _columns(opened.schema, path)
        with pa.OSFile(path) as raw, ipc.open_file(raw) as opened:
            return _columns(opened.schema, path)


def _columns(schema: pa.Schema, path: str) -> pa.Schema:
    distinct(schema.names, path)
    return canonical(schema)


def _parquet(path: str) -> pq.ParquetFile:
    if codec_of(path) is not None:
        raise UserError(f"file {path!r}: Parquet is compressed inside, not as a whole", hint="decompress it")
    return pq.ParquetFile(path, page_checksum_verification=True)  # of files that have check sums


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

    def __init__(self, file: DataFile, offset: int, schema: pa.Schema, record_bytes: int) -> None:
        self._file = file
        self._schema = schema
        self._record_bytes = record_bytes
        self._rest: pa.RecordBatch | None = None
        self._most_rows = 1
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
            data = self._sound(first, data)
            rest = data.slice(max(0, self.offset - first))
            self.offset = max(first, self.offset)
            if rest.num_rows:
                self._rest = rest
                self._most_rows = most_rows(rest, PLAIN_BYTES)
        # dictionaries and runs become plain here, by slices: a few bytes of them can say 2^31 rows
        rows = min(max_rows, self._most_rows)
        given = fitted(self._rest.slice(0, rows), self._schema, self._file.path)
        self._rest = self._rest.slice(rows) if self._rest.num_rows > rows else None
        first = self.offset
        self.offset += given.num_rows
        return self._bounded(given, first)

    def _bounded(self, data: pa.RecordBatch, first: int) -> Found:
        """Rows above the bound are set apart, with the first bytes of their longest column."""
        long = above(data, self._record_bytes)
        if not long:
            return Found(data)
        bad = []
        for row in long:
            one = data.slice(row, 1)
            sizes = [column.nbytes for column in one.columns]
            widest = sizes.index(max(sizes))
            reason = f"{one.nbytes} bytes are more than a record may have (record_bytes={self._record_bytes}): these are the first of"
            bad.append((first + row, _head(one.column(widest)), f"{reason} column {data.schema.names[widest]!r}"))
        good = np.ones(data.num_rows, bool)
        good[long] = False
        return Found(data.filter(pa.array(good)), bad)

    def _sound(self, first: int, data: pa.RecordBatch) -> pa.RecordBatch:
        """The batch; pa.ArrowInvalid naming the rows and the column where it is not what its types say."""
        data = as_wanted(data, self._schema)
        try:
            validate(data)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"rows {first} to {first + data.num_rows - 1}, {error}") from error
        return data


class _ParquetReader(_Slices):
    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
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
    """The batches of a file; of those of other readers as little as tells how many rows they have."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._share = share
        self._raw = pa.OSFile(file.path)
        try:
            whole = ipc.open_file(self._raw).schema
            fields = [number for number, name in enumerate(whole.names) if name in schema.names]
            least = _narrowest(whole)  # no field would be all of them; to count rows, one is enough
            self._opened = ipc.open_file(self._raw, options=_only(fields or least))
            self._counted = ipc.open_file(self._raw, options=_only(least))
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
        self._raw.close()


class _StreamReader(_Slices):
    """One batch after the other, from the beginning."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._raw, self._stream = open_stream(file.path)
        self._mine = share.has(file.number, 0)
        self._at = 0
        try:
            self._opened = ipc.open_stream(self._stream) if self._mine else None
            if self._opened is not None:
                whole = self._opened.schema
                fields = [number for number, name in enumerate(whole.names) if name in schema.names]
                self._raw.close()
                self._raw, self._stream = open_stream(file.path)
                self._opened = ipc.open_stream(self._stream, options=_only(fields or _narrowest(whole)))
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


def _head(column: Any) -> bytes:
    """The first bytes of a text; of other columns nothing."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return bytes(column.view(pa.binary())[0].as_buffer()[:HEAD_BYTES])
    return b""


def _narrowest(schema: pa.Schema) -> list[int]:
    """The column, if there is one, whose rows take least."""
    return sorted(range(len(schema)), key=lambda number: _width(schema.field(number).type))[:1]


def _width(kind: pa.DataType) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # of no fixed width
        return 1 << 31


def _only(fields: list[int]) -> ipc.IpcReadOptions:
    # a file may have its numbers anywhere: those that lie askew are copied
    return ipc.IpcReadOptions(
        included_fields=fields, use_threads=False, ensure_alignment=ipc.Alignment.DataTypeSpecific
    )
