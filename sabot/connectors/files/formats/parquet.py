"""Parquet files. Of a file only the wanted columns are read; readers share row groups. Rows are gathered into row groups.

Files are read into our own memory and never mapped, because a mapped file can change after the check, and a read beyond its
new end is a SIGBUS.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import broadcast, epoch
from sabot.base.checks import OneOf, check
from sabot.codecs.json import paths_of
from sabot.connectors.files.formats.base import FileReader, FoundRows, RowWriter, Share, no_place, tell_columns
from sabot.connectors.files.formats.columns import (
    ColumnFormat,
    ColumnReader,
    Gathered,
    all_columns,
    canonical,
    width_of,
)
from sabot.connectors.files.paths import DataFile, RemotePath, codec_of, last_bytes
from sabot.errors import UserError

if TYPE_CHECKING:  # it is loaded with the first Parquet file
    from pyarrow.parquet import ParquetFile

_ROWS = 1 << 18  # of a row group
_COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "brotli", "none")
# The bound on the bytes of rows of a fixed width that are decoded at a time: more of them at once cost less for each.
_DECODED_BYTES = 4 << 20
_UNITS = ["ns", "us", "ms", "s"]
_NS_END = (2**63 - 1) // 1000  # in us


class ParquetFormat(ColumnFormat):
    """The format of Parquet files. `compression`: "snappy", "zstd", "lz4", "gzip", "brotli" or "none"."""

    suffixes = (".parquet", ".pq")

    def __init__(self, name: str, compression: str = "snappy") -> None:
        super().__init__(name)
        self._compression = check("compression", compression, OneOf(_COMPRESSIONS))

    def open_file(self, file: DataFile, offset: int, share: Share, schema: pa.Schema | None) -> FileReader:
        assert schema is not None, "open asks for columns"
        given = file, offset, share, schema, self.record_bytes
        values = self.values_of(file)
        reader = _ParquetReader(*given) if values is None else _FilledReader(*given, values)
        reader.guessed = () if self.inferred is None else self.inferred.guessed
        tell_columns(self.inferred, file, paths_of(reader.in_file))
        return reader

    def values_of(self, file: DataFile) -> Mapping[str, Any] | None:
        """Returns the values (scalars) of columns that are not in the file; others that it lacks are null. None, as here:
        all columns are in each file.
        """
        return None

    def grows(self, file: DataFile) -> bool:
        return False

    def is_whole(self, file: DataFile) -> bool:
        return last_bytes(file, 4) in (b"PAR1", b"PARE")

    def end_of(self, file: DataFile) -> int | None:
        with open_parquet(file.path) as opened:
            rows: int = opened.metadata.num_rows
            return rows

    def infer(self, files: Sequence[DataFile]) -> pa.Schema:
        with open_parquet(files[0].path) as opened:
            return all_columns(opened.schema_arrow, files[0].path)

    def check_values(self, data: pa.RecordBatch) -> None:
        for field, column in zip(data.schema, data.columns, strict=True):
            if getattr(field.type, "unit", "") == "s" and pa.types.is_timestamp(field.type):
                with self.writing():  # Parquet has no seconds
                    column.cast(pa.timestamp("ms", field.type.tz))

    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as opened:
            yield from opened.iter_batches(use_threads=False)

    def columns_in(self, path: Path) -> list[str]:
        from pyarrow.parquet import read_schema

        try:
            return list(read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"file {os.fspath(path)!r} is damaged: {error}", hint="repair it or move it away"
            ) from error

    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        from pyarrow.parquet import ParquetWriter

        return Gathered(ParquetWriter(file, schema, compression=self._compression), file, _ROWS)


def open_parquet(path: str, int96_unit: str = "us") -> "ParquetFile":
    """Opens a file. `int96_unit`: the unit of its times in INT96, as Spark and Hive write them. They are of any year, and Arrow would
    make ns of them, which end in 2262: a later one came out as another time.
    """
    from pyarrow.parquet import ParquetFile

    if codec_of(path) is not None:
        raise UserError(f"file {path!r}: Parquet is compressed inside, not as a whole", hint="decompress it")
    # ParquetFile closes the file only if it has opened it by its path
    opened = path.open() if isinstance(path, RemotePath) else path
    # `pre_buffer` lets other threads fetch the columns of a row group at once: of a store that saves requests, of this machine it
    # costs more than it gives. Pages that have checksums are checked.
    return ParquetFile(
        opened, pre_buffer=opened is not path, page_checksum_verification=True, coerce_int96_timestamp_unit=int96_unit
    )


class _ParquetReader(ColumnReader):
    def __init__(self, file: DataFile, offset: int, share: Share, schema: pa.Schema, record_bytes: int) -> None:
        super().__init__(file, offset, schema, record_bytes)
        self._opened = open_parquet(file.path)
        self._int96: _Int96 | None = None
        try:
            self.in_file = self._opened.schema_arrow
            names = self.in_file.names
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

    def next_batch(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
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
        self._opened = open_parquet(path, "ns")
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
        # `keys` and `items` are those of the array before it was cut
        whole = array.take(pa.array(range(len(array)), pa.int64()))
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
        self._absent = None  # columns that were added to a table later are null in its first files
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


def _row_bytes(kind: pa.DataType) -> int:
    """Returns the bytes that a decoded value takes, or _DECODED_BYTES if only its rows tell."""
    expands = pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
    return _DECODED_BYTES if expands else -(-width_of(kind) // 8)
