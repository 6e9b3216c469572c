"""Parquet and Arrow IPC files as sources. An offset in such a file is the number of a row.

The content of a file is not trusted: every batch is checked in full before anything uses an offset in it. Files are read into our own
memory and never mapped, because a mapped file can change after the check, and a read beyond its new end is a SIGBUS.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc
from pyarrow import parquet as pq

from sabot._cython.arrow.border import validate
from sabot.base.arrays import broadcast, epoch
from sabot.codecs.records import HEAD_BYTES, above
from sabot.connectors.files.columns import as_wanted, canonical, distinct, fitted, most_rows
from sabot.connectors.files.paths import SUFFIXES, DataFile, codec_of, open_raw, open_stream
from sabot.connectors.files.remote import RemotePath
from sabot.connectors.files.source import FileReader, FileSource, FoundRows, Share, no_place
from sabot.errors import UserError

# The bound on the bytes of text that dictionaries expand to at a time.
PLAIN_BYTES = 64 << 20
# The bound on the bytes of rows of a fixed width that are decoded at a time: more of them at once cost less for each.
_DECODED_BYTES = 4 << 20
_MAGIC = b"ARROW1"
_UNITS = ["ns", "us", "ms", "s"]
_NS_END = (2**63 - 1) // 1000  # in us


class ParquetSource(FileSource):
    """A source that reads the rows of Parquet files, and only the wanted columns. Readers share row groups."""

    suffixes = SUFFIXES["parquet"]

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        assert self._schema is not None, "open asks for columns"
        given = file, offset, self._share, self._schema, self._record_bytes
        values = self.values_of(file)
        return _ParquetReader(*given) if values is None else _FilledReader(*given, values)

    def values_of(self, file: DataFile) -> Mapping[str, Any] | None:
        """Returns the values (scalars) of columns that are not in the file; others that it lacks are null. None, as here:
        all columns are in each file.
        """
        return None

    def _grows(self, file: DataFile) -> bool:
        return False

    def _end_of(self, file: DataFile) -> int | None:
        with _parquet(file.path) as opened:
            rows: int = opened.metadata.num_rows
            return rows

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        with _parquet(files[0].path) as opened:
            return _columns(opened.schema_arrow, files[0].path)


class ArrowSource(FileSource):
    """A source that reads the rows of Arrow IPC files (also called Feather) or IPC streams; the content tells which
    of the two it is. Readers share the batches of a file. A stream is one piece, and may be compressed as a whole.
    """

    suffixes = SUFFIXES["arrow"]

    def _pieces(self, file: DataFile) -> bool:
        return not _is_stream(file.path)

    def _grows(self, file: DataFile) -> bool:
        return _is_stream(file.path)

    def _open_file(self, file: DataFile, offset: int) -> FileReader:
        assert self._schema is not None, "open asks for columns"
        if _is_stream(file.path):
            return _StreamReader(file, offset, self._share, self._schema, self._record_bytes)
        return _IpcReader(file, offset, self._share, self._schema, self._record_bytes)

    def _infer(self, files: Sequence[DataFile]) -> pa.Schema:
        path = files[0].path
        if _is_stream(path):
            raw, stream = open_stream(path)
            with raw, ipc.open_stream(stream) as opened:
                return _columns(opened.schema, path)
        with open_raw(path) as raw, ipc.open_file(raw) as opened:
            return _columns(opened.schema, path)


def _columns(schema: pa.Schema, path: str) -> pa.Schema:
    distinct(schema.names, path)
    return canonical(schema)


def _parquet(path: str, int96_unit: str = "us") -> pq.ParquetFile:
    """Opens a file. `int96_unit`: the unit of its times in INT96, as Spark and Hive write them. They are of any year, and Arrow would
    make ns of them, which end in 2262: a later one came out as another time.
    """
    if codec_of(path) is not None:
        raise UserError(f"file {path!r}: Parquet is compressed inside, not as a whole", hint="decompress it")
    opened = (
        path.open() if isinstance(path, RemotePath) else path
    )  # ParquetFile closes the file only if it has opened it by its path
    # `pre_buffer` lets other threads fetch the columns of a row group at once: of a store that saves requests, of this machine it
    # costs more than it gives. Pages that have checksums are checked.
    return pq.ParquetFile(
        opened, pre_buffer=opened is not path, page_checksum_verification=True, coerce_int96_timestamp_unit=int96_unit
    )


def _is_stream(path: str) -> bool:
    if codec_of(path) is not None:
        return True
    with open_raw(path) as file:
        start: bytes = file.read(len(_MAGIC))
    if start.startswith(b"FEA1"):
        raise UserError(
            f"file {path!r} is Feather version 1, which is no Arrow IPC", hint="write it again as version 2"
        )
    return start != _MAGIC


class _Slices(FileReader):
    """A reader that cuts batches which are larger than `max_rows`. `_next` gives a batch and the number of its first
    row.
    """

    def __init__(self, file: DataFile, offset: int, schema: pa.Schema, record_bytes: int) -> None:
        self._file = file
        self._schema = schema
        self._is_canonical = canonical(schema).equals(schema)
        self._record_bytes = record_bytes
        self._rest: pa.RecordBatch | None = None
        self._most_rows = 1
        self.offset = offset

    def _next(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        """Returns the next batch of this share that has a row at or behind `offset`; None at the end, with `offset` there."""
        raise NotImplementedError

    def read(self, max_rows: int) -> FoundRows | None:
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
        # Dictionaries and run-end-encoded columns are decoded here, slice by slice: a few bytes of them can stand for 2^31 rows.
        rows = min(max_rows, self._most_rows)
        given = self._rest.slice(0, rows)
        if not (self._is_canonical and given.schema.equals(self._schema)):
            given = fitted(given, self._schema, self._file.path)
        self._rest = self._rest.slice(rows) if self._rest.num_rows > rows else None
        first = self.offset
        self.offset += given.num_rows
        return self._bounded(given, first)

    def _bounded(self, data: pa.RecordBatch, first: int) -> FoundRows:
        """Sets rows above the size bound apart, with the first bytes of their longest column."""
        long = above(data, self._record_bytes)
        if not long:
            return FoundRows(data)
        bad = []
        for row in long:
            one = data.slice(row, 1)
            sizes = [column.nbytes for column in one.columns]
            widest = sizes.index(max(sizes))
            reason = f"{one.nbytes} bytes are more than a record may have (record_bytes={self._record_bytes}): only the first are kept, of"
            bad.append((first + row, _head(one.column(widest)), f"{reason} column {data.schema.names[widest]!r}"))
        good = np.ones(data.num_rows, bool)
        good[long] = False
        return FoundRows(data.filter(pa.array(good)), bad)

    def _sound(self, first: int, data: pa.RecordBatch) -> pa.RecordBatch:
        """Checks that the data of the batch agrees with its types, and returns the batch. Raises ArrowInvalid that
        names the rows and the column.
        """
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
        self._int96: _Int96 | None = None
        try:
            names = self._opened.schema_arrow.names
            # `fitted` reports the columns that are missing.
            self._columns = [name for name in schema.names if name in names]
            types = [self._opened.schema_arrow.field(name).type for name in self._columns if names.count(name) == 1]
            self._decoded_rows = _DECODED_BYTES // max(1, sum(map(_row_bytes, types)))
            metadata = self._opened.metadata
            if any(metadata.schema.column(number).physical_type == "INT96" for number in range(metadata.num_columns)):
                self._int96 = _Int96(file.path, self._opened.schema_arrow, schema, self._columns)
            self._rows: int = metadata.num_rows
            if offset > self._rows:
                raise no_place(f"file {file.path!r}: position {offset} is behind its {self._rows} rows")
        except BaseException:
            self.close()
            raise
        # The row groups of this share: (group, its first row, the row behind its last).
        self._groups: list[tuple[int, int, int]] = []
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
                return self._at - data.num_rows, data if self._int96 is None else self._int96.checked(data)
            if not self._groups:
                self.offset = self._rows
                return None
            group, self._at, _ = self._groups.pop(0)
            self._batches = self._opened.iter_batches(
                max(max_rows, self._decoded_rows), row_groups=[group], columns=self._columns, use_threads=False
            )
            if self._int96 is not None:
                self._int96.begin(group, max(max_rows, self._decoded_rows))

    @property
    def fraction(self) -> float:
        return self.offset / self._rows if self._rows else 1.0

    @property
    def ended(self) -> bool:
        return self._rest is None and self.offset >= self._rows

    def close(self) -> None:
        self._opened.close()
        if self._int96 is not None:
            self._int96.close()


class _Int96:
    """The second reading, as ns, of the columns of a file that have times in INT96. Both readings together show which times us or ns
    do not hold: one of them is cut or wraps.
    """

    def __init__(self, path: str, read: pa.Schema, wanted: pa.Schema, columns: Sequence[str]) -> None:
        """`read`: the columns as us. `wanted`: as the source gives them. `columns`: those that are read."""
        self._path = path
        self._wanted = wanted
        self._opened = _parquet(path, "ns")
        exact = self._opened.schema_arrow
        self._names = [name for name in columns if read.field(name).type != exact.field(name).type]
        self._batches: Any = iter(())
        self._rest: pa.RecordBatch | None = None

    def begin(self, group: int, max_rows: int) -> None:
        """Begins a row group."""
        self._rest = None
        names = self._names
        self._batches = self._opened.iter_batches(max_rows, row_groups=[group], columns=names, use_threads=False)

    def checked(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the next rows, with columns in ns where these are wanted. `data`: the rows in us. Raises UserError for a time that the
        wanted unit does not hold.
        """
        if not self._names:
            return data
        exact = self._taken(data.num_rows)
        for name in self._names:
            number = data.schema.get_field_index(name)
            coarse, fine, kind = data.column(number), exact.column(name), self._wanted.field(name).type
            unit = min(_units(kind), key=_UNITS.index, default="us")
            for these, those in zip(_times_in(coarse), _times_in(fine), strict=True):
                us, ns = epoch(these, "us"), epoch(those, "ns")
                if unit == "ns" and pc.any(pc.or_(pc.greater(us, _NS_END), pc.less(us, -_NS_END))).as_py():
                    raise self._lost(name, kind, "a time before 1677 or after 2262", "us")
                if unit == "us" and pc.any(pc.not_equal(ns, pc.multiply(us, 1000))).as_py():  # both wrap alike
                    raise self._lost(name, kind, "a time with digits after the microseconds", "ns")
            if unit == "ns":
                data = data.set_column(number, data.schema.field(number).with_type(fine.type), fine)
        return data

    def _lost(self, name: str, kind: pa.DataType, what: str, unit: str) -> UserError:
        return UserError(
            f"file {self._path!r}: column {name!r} is to be {kind}, and has {what}",
            hint=f'schema_overrides={{"{name}": "{str(kind).replace("[us", f"[{unit}").replace("[ns", f"[{unit}")}"}}',
        )

    def _taken(self, rows: int) -> pa.RecordBatch:
        """Returns the next rows of the second reading, whose batches may end elsewhere."""
        found = [] if self._rest is None else [self._rest]
        while sum(batch.num_rows for batch in found) < rows:
            found.append(next(self._batches))
        whole = pa.concat_batches(found)
        self._rest = whole.slice(rows)
        return whole.slice(0, rows)

    def close(self) -> None:
        self._opened.close()


def _units(kind: pa.DataType) -> set[str]:
    """Returns the units of the times in a type, at any depth."""
    if pa.types.is_timestamp(kind):
        return {kind.unit}
    return {unit for number in range(kind.num_fields) for unit in _units(kind.field(number).type)}


def _times_in(array: pa.Array) -> Iterator[pa.Array]:
    """Yields the columns of times in a column, at any depth."""
    kind = array.type
    if pa.types.is_timestamp(kind):
        yield array
    elif pa.types.is_map(kind):
        whole = array.take(
            pa.array(range(len(array)), pa.int64())
        )  # `keys` and `items` are those of the array before it was cut
        yield from _times_in(whole.keys)
        yield from _times_in(whole.items)
    elif pa.types.is_struct(kind):
        for each in array.flatten():
            yield from _times_in(each)
    elif kind.num_fields:
        yield from _times_in(array.flatten())


class _FilledReader(_ParquetReader):
    """A reader of a file that lacks columns. `values`: the values (scalars) of those that are the same in all rows."""

    def __init__(
        self,
        file: DataFile,
        offset: int,
        share: Share,
        schema: pa.Schema,
        record_bytes: int,
        values: Mapping[str, Any],
    ) -> None:
        super().__init__(file, offset, share, schema, record_bytes)
        self._whole = schema
        self._values = values
        self._schema = pa.schema([field for field in schema if field.name in self._columns])
        self._is_canonical = canonical(self._schema).equals(self._schema)

    def read(self, max_rows: int) -> FoundRows | None:
        found = super().read(max_rows)
        if found is None or found.data.schema.equals(self._whole):
            return found
        data = found.data
        arrays = [
            data.column(field.name) if field.name in self._columns else self._filled(field, data.num_rows)
            for field in self._whole
        ]
        return FoundRows(pa.RecordBatch.from_arrays(arrays, schema=self._whole), found.bad)

    def _filled(self, field: Any, rows: int) -> Any:
        value = self._values.get(field.name)
        return pa.nulls(rows, field.type) if value is None else broadcast(value.cast(field.type), rows)


class _IpcReader(_Slices):
    """A reader of the batches of this share. Of other readers' batches it reads only enough to count their rows."""

    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._share = share
        self._raw = open_raw(file.path)
        try:
            whole = ipc.open_file(self._raw).schema
            fields = [number for number, name in enumerate(whole.names) if name in schema.names]
            least = _narrowest(whole)  # an empty list would select all columns; to count rows, one is enough
            self._opened = ipc.open_file(self._raw, options=_only(fields or least))
            self._counted = ipc.open_file(self._raw, options=_only(least))
        except BaseException:
            self.close()
            raise
        self._batch = 0
        self._at = 0  # the number of the first row of that batch

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
    """A reader of one batch after the other, from the beginning."""

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
    """Returns the first bytes of a text or binary value; nothing for columns of other types."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return bytes(column.view(pa.binary())[0].as_buffer()[:HEAD_BYTES])
    return b""


def _narrowest(schema: pa.Schema) -> list[int]:
    """Returns a list with one index: that of the column whose rows take the fewest bytes. Returns an empty list if
    there are no columns.
    """
    return sorted(range(len(schema)), key=lambda number: _width(schema.field(number).type))[:1]


def _width(kind: pa.DataType) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # this type has no fixed width
        return 1 << 31


def _row_bytes(kind: pa.DataType) -> int:
    """Returns the bytes that a decoded value takes, or _DECODED_BYTES if only its rows tell."""
    expands = pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return _DECODED_BYTES if expands else -(-_width(kind) // 8)


def _only(fields: list[int]) -> ipc.IpcReadOptions:
    # The buffers of a file may lie at any address; those that are not aligned for their type are copied.
    return ipc.IpcReadOptions(
        included_fields=fields, use_threads=False, ensure_alignment=ipc.Alignment.DataTypeSpecific
    )
