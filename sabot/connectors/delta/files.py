"""Rows of files of a table of Delta Lake: without those that a deletion vector marks, and under the names that the table has for its
columns.

A table with column mapping has other names in its files than in its columns, or finds columns by ids (mode "id"). A column by whose
values the files are divided is in no file, so its value comes from the log. A column that a file lacks is null.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import broadcast
from sabot.base.dataclass import dataclass
from sabot.codecs.engine_columns import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER
from sabot.connectors.files.formats.base import FileReader, FoundRows, Share
from sabot.connectors.files.formats.columns import canonical
from sabot.connectors.files.formats.parquet import ParquetFormat, open_parquet
from sabot.connectors.files.paths import DataFile
from sabot.errors import UserError

__all__ = ["FROM_FILE", "Columns", "Mask", "Removed", "RowFile", "masks", "physical_name"]

_KIND = "_change_type"  # a column of a file of the change feed
_REMOVES, _ADDS = ("delete", "update_preimage"), ("insert", "update_postimage")
_PHYSICAL, _ID, _FIELD_ID = b"delta.columnMapping.physicalName", b"delta.columnMapping.id", b"PARQUET:field_id"
Mask = np.ndarray[Any, np.dtype[np.bool_]]
"""For each row of a file whether it is there."""
FROM_FILE: Final = -1
"""In place of the op of a file: each row of a file of the change feed says it."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A data file, or one of the change feed. `values`: of the columns by which files are divided, by their names in files. `keep`: for
    each row whether it is there; None: all are. `beyond`: the same for rows behind the end of `keep`. `op`: of all rows, FROM_FILE, or
    None for rows without.
    """

    file: DataFile
    values: Mapping[str, pa.Scalar]
    keep: Mask | None = None
    op: int | None = None
    beyond: bool = True


@dataclass(frozen=True, slots=True)
class Removed:
    """The rows that a commit removes. `removed`: files with these rows. `added`: files with the rows that it adds, of which those that have
    the key of a removed row replace it.
    """

    removed: Sequence[RowFile]
    added: Sequence[RowFile]


class _Files(ParquetFormat):
    """The format of the files of one table. `values`: of the columns that the file that is opened lacks."""

    values: Mapping[str, pa.Scalar] = {}

    def values_of(self, file: DataFile) -> Mapping[str, Any]:
        return self.values


class Columns:
    """The columns of a table that are read, and how files have them.

    `table`: all columns, with the names and ids of the log in their metadata. `mode`: "none", "name" or "id". `names`: the columns of the
    rows. `keys`: those that name a row, or () for rows without ops.
    """

    def __init__(
        self, where: str, table: pa.Schema, mode: str, names: Sequence[str], keys: Sequence[str], record_bytes: int
    ) -> None:
        self.names, self.keys = list(names), list(keys)
        self._where = where
        self._mode = mode
        self._read = [*names, *(key for key in keys if key not in names)]
        self._plain = pa.schema([table.field(name) for name in self._read])
        self._shown = canonical(pa.schema([pa.field(field.name, field.type) for field in self._plain]))
        self._format = _Files("lake")
        self._format.record_bytes = record_bytes

    def described(self, table: pa.Schema) -> list[tuple[str, str, pa.DataType | None]]:
        """Returns for each column that is read its name, and its name in files and its type in a table, or None."""
        return [
            (field.name, physical_name(field), field.type)
            for field in (
                table.field(name) if name in table.names else pa.field(name, pa.null()) for name in self._read
            )
        ]

    def rows_in(self, file: DataFile) -> int:
        """Returns the number of rows of a file, as its end says it."""
        return self._format.end_of(file) or 0

    def open(self, file: RowFile | Removed, row: int, share: Share) -> FileReader:
        """Opens a file at a row."""
        if isinstance(file, Removed):
            return _HeldRows(self._removed(file), row)
        return _RowReader(self, file, self._opened(file, self._plain, row, share))

    def _opened(self, file: RowFile, columns: pa.Schema, row: int, share: Share) -> FileReader:
        """Opens a file, whose rows then have the names of the file."""
        wanted = [_in_files(field) for field in columns]
        if self._mode == "id":
            with open_parquet(file.file.path) as opened:
                found = list(opened.schema_arrow)
            if not any(_field_id(field) for field in found):
                raise UserError(
                    f"{self._where}: file {file.file.path!r} has no ids of columns, by which this table finds them",
                    hint="rewrite the table by the program that made it",
                )
            wanted = [_by_id(field, found) for field in columns]
            values = {_by_id(field, found).name: file.values.get(physical_name(field)) for field in columns}
            self._format.values = {name: value for name, value in values.items() if value is not None}
        else:
            self._format.values = file.values
        more = [pa.field(_KIND, pa.string())] if file.op == FROM_FILE else []
        return self._format.open_file(file.file, row, share, canonical(pa.schema([*wanted, *more])))

    def logical(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows under the names of the table, at all depths."""
        return pa.record_batch(_Renamed(data, self._shown))

    def with_op(self, data: pa.RecordBatch, op: Any) -> pa.RecordBatch:
        """Returns the columns of the rows, with the op at the end."""
        rows = data.select(self.names)
        ops = op if isinstance(op, pa.Array) else broadcast(pa.scalar(op, pa.int8()), data.num_rows)
        fields = [*rows.schema, pa.field(OP_COLUMN, pa.int8())]
        return pa.RecordBatch.from_arrays([*rows.columns, ops], schema=pa.schema(fields))

    def _removed(self, commit: Removed) -> pa.RecordBatch:
        """Returns a deletion for each key that a commit removes and does not add again, in the order of the files."""
        gone = pa.concat_tables(self._keys_in(commit.removed, _REMOVES))
        there = pa.concat_tables(self._keys_in(commit.added, _ADDS))
        place = "\0row"
        gone = gone.append_column(place, pa.array(np.arange(gone.num_rows)))
        gone = gone.group_by(self.keys, use_threads=False).aggregate([(place, "min")])
        left = gone.join(there.group_by(self.keys).aggregate([]), self.keys, join_type="left anti")
        left = left.sort_by(f"{place}_min").select(self.keys).combine_chunks()
        shown = pa.schema([self._shown.field(name) for name in self.names])
        columns: list[Any] = [
            left.column(field.name).combine_chunks() if field.name in self.keys else pa.nulls(left.num_rows, field.type)
            for field in shown
        ]
        rows = pa.RecordBatch.from_arrays([*columns, broadcast(pa.scalar(DELETE, pa.int8()), left.num_rows)],
                                          schema=pa.schema([*shown, pa.field(OP_COLUMN, pa.int8())]))  # fmt: skip
        return rows

    def _keys_in(self, files: Sequence[RowFile], kinds: Sequence[str]) -> list[pa.Table]:
        """Returns the keys of the rows of files, of those of the change feed the rows of these kinds."""
        columns = pa.schema([self._plain.field(key) for key in self.keys])
        shown = pa.schema([self._shown.field(key) for key in self.keys])
        found = [shown.empty_table()]
        for file in files:
            reader = self._opened(file, columns, 0, Share(0, 1))
            try:
                while (rows := _kept(reader, reader.read(1 << 16), file)) is not None:
                    data = rows.data
                    if file.op == FROM_FILE:
                        data = data.filter(pc.is_in(data.column(_KIND), pa.array(kinds))).drop_columns([_KIND])
                    found.append(pa.Table.from_batches([pa.record_batch(_Renamed(data, shown))]))
            finally:
                reader.close()
        return found


class _RowReader(FileReader):
    """The rows of a file that are there, as the table shows them."""

    def __init__(self, columns: Columns, file: RowFile, inner: FileReader) -> None:
        self._columns, self._file, self._inner = columns, file, inner
        self.offset = inner.offset

    def read(self, max_rows: int) -> FoundRows | None:
        found = _kept(self._inner, self._inner.read(max_rows), self._file)
        self.offset = self._inner.offset
        if found is None:
            return None
        data, columns = found.data, self._columns
        if self._file.op is None:
            return FoundRows(columns.logical(data).select(columns.names), found.bad)
        if self._file.op != FROM_FILE:
            return FoundRows(columns.with_op(columns.logical(data), self._file.op), found.bad)
        data = data.filter(pc.is_in(data.column(_KIND), pa.array(_ADDS)))
        ops = pc.if_else(
            pc.equal(data.column(_KIND), "insert"), pa.scalar(INSERT, pa.int8()), pa.scalar(UPDATE_AFTER, pa.int8())
        )
        return FoundRows(columns.with_op(columns.logical(data.drop_columns([_KIND])), ops), found.bad)

    @property
    def fraction(self) -> float:
        return self._inner.fraction

    def close(self) -> None:
        self._inner.close()


class _HeldRows(FileReader):
    """Rows in memory."""

    def __init__(self, rows: pa.RecordBatch, row: int) -> None:
        self._rows, self.offset = rows, row

    def read(self, max_rows: int) -> FoundRows | None:
        found = self._rows.slice(self.offset, max_rows)
        self.offset += found.num_rows
        return FoundRows(found) if found.num_rows else None

    @property
    def fraction(self) -> float:
        return 0.0

    def close(self) -> None:
        """There is nothing to release."""


class _Renamed:
    """Rows under other names, with the same buffers, as `pa.record_batch` takes them."""

    def __init__(self, rows: pa.RecordBatch, names: pa.Schema) -> None:
        self._rows, self._names = rows, names

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self._names.__arrow_c_schema__(), self._rows.__arrow_c_array__()[1]


def _kept(reader: FileReader, found: FoundRows | None, file: RowFile) -> FoundRows | None:
    """Returns those of the last rows of the reader of a file that are there."""
    if found is None or file.keep is None:
        return found
    end = reader.offset
    first = end - found.data.num_rows - len(found.bad)
    there = np.full(end - first, file.beyond)
    known = file.keep[first:end]
    there[: len(known)] = known
    bad = [each for each in found.bad if there[each[0] - first]]
    good = np.delete(there, [each[0] - first for each in found.bad])
    return FoundRows(found.data.filter(pa.array(good)), bad)


def physical_name(field: pa.Field) -> str:
    """Returns the name of a column in files."""
    found = (field.metadata or {}).get(_PHYSICAL)
    return str(field.name) if found is None else found.decode()


def _field_id(field: pa.Field) -> bytes | None:
    return (field.metadata or {}).get(_FIELD_ID)


def _in_files(field: pa.Field) -> pa.Field:
    """Returns a column as files have it that were written for it."""
    return pa.field(physical_name(field), _inside(field.type, _in_files), field.nullable)


def _by_id(field: pa.Field, found: Sequence[pa.Field], kind: Any = None) -> pa.Field:
    """Returns a column under the name of the one in a file, `found`, that has its id; under a name of no column if there is none."""
    number = (field.metadata or {}).get(_ID, b"")
    same = next((each for each in found if _field_id(each) == number), None)
    name = f"\0{number.decode()}" if same is None else same.name
    return pa.field(name, _inside(field.type, _by_id, None if same is None else same.type), field.nullable)


def _inside(kind: Any, named: Any, found: Any = None) -> pa.DataType:
    """Returns a type with the names that `named` gives to its columns. `found`: the type in the file, for `_by_id`."""
    types = pa.types

    def inner(field: Any, other: Any) -> Any:
        return _inside(field.type, named, None if other is None else other.type)

    if types.is_struct(kind):
        if named is _by_id:
            there: list[pa.Field] = list(found) if found is not None and types.is_struct(found) else []
            return pa.struct([_by_id(field, there) for field in kind])
        return pa.struct([named(field) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        other = found.value_field if found is not None and types.is_list(found) else None
        return pa.list_(kind.value_field.with_type(inner(kind.value_field, other)))
    if types.is_map(kind):
        same = found if found is not None and types.is_map(found) else None
        key, item = (inner(getattr(kind, each), getattr(same, each, None)) for each in ("key_field", "item_field"))
        return pa.map_(key, item)
    return kind


def masks(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, Mask]]:
    """Yields the address of each file that has a deletion vector, and for each of its rows whether it is there."""
    for batch in batches:
        for address, keep in zip(batch.column("filepath"), batch.column("selection_vector"), strict=True):
            yield address.as_py(), np.asarray(keep.values.to_numpy(zero_copy_only=False), bool)
