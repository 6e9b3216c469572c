"""Files that hold columns: the columns that are read and their types, the readers of batches, and the format that writes
batches (`ColumnFormat`).

Streams carry every Arrow type but unions. Extension types (uuid, json) become their storage types, dictionaries and
views become plain types, and decimal32 and decimal64 become decimal128, which the operators know. The content of a file is
not trusted: every batch is checked in full before anything uses an offset in it. An offset in such a file is the number of
a row.
"""

import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.border import validate
from sabot.base.arrays import empty_batch, exact_cast, holds_union, to_unit, twice_named
from sabot.codecs.json import AbsentColumns
from sabot.codecs.records import HEAD_BYTES, above
from sabot.connectors.files.formats.base import FileFormat, FileReader, FoundRows, RowWriter
from sabot.connectors.files.paths import DataFile, check_partitions, checked_names
from sabot.errors import UserError

# The bound on the bytes of text that dictionaries expand to at a time.
PLAIN_BYTES = 64 << 20
# Rows wait for a row group or a batch of a file up to so many bytes, and such a group has at most so many rows.
GROUP_BYTES = 64 << 20
MAX_GROUP_ROWS = 1 << 20
_LEAVE_OUT = 'give the stream a schema={"name": "type"} of the columns that are wanted, or write the file without it'

# A decimal's scale is at most so much more than its precision: Python has no decimals of exponents that damaged files say.
_SCALES = 38


def canonical(schema: pa.Schema) -> pa.Schema:
    """Returns the schema that these columns have after they were read. A column of a type that streams do not support
    keeps its type, so that `checked` can refuse it.
    """
    return pa.schema([_canonical(field) for field in schema])


def _canonical(field: pa.Field) -> pa.Field:
    plain = _renewed(field).remove_metadata()
    return _normal(plain) or plain


def _normal(field: pa.Field) -> pa.Field | None:
    """Returns the field with the type that `normalise` converts it to, or None for a union, which `normalise` cannot
    convert.
    """
    return None if holds_union(field.type) else normalise(empty_batch(pa.schema([field]))).schema.field(0)


def _stored(kind: Any) -> Any:
    """Returns the type with storage types in place of extension types."""
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type)
    if pa.types.is_decimal(kind):
        if abs(kind.scale) > kind.precision + _SCALES:
            raise pa.ArrowInvalid(f"a type {kind}, of which no value has all its digits")
        return pa.decimal128(kind.precision, kind.scale) if kind.bit_width < 128 else kind
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _stored(kind.value_type), kind.ordered)
    if pa.types.is_map(kind):
        return pa.map_(_renewed(kind.key_field), _renewed(kind.item_field))
    if pa.types.is_struct(kind):
        return pa.struct([_renewed(field) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_renewed(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_renewed(kind.value_field))
    return pa.large_list(_renewed(kind.value_field)) if pa.types.is_large_list(kind) else kind


def _renewed(field: pa.Field) -> pa.Field:
    return field.with_type(_stored(field.type)).with_name(field.name)  # UnicodeDecodeError for a name that is no text


def picked(schema: pa.Schema, columns: Sequence[str] | None, name: str) -> pa.Schema:
    """Returns the wanted columns of a schema, in the order wanted. Raises UserError for a column that the schema does
    not have.
    """
    schema = schema.remove_metadata()
    if columns is None:
        return schema
    missing = [column for column in columns if column not in schema.names]
    if missing:
        raise UserError(
            f"{name!r} has no column {', '.join(map(repr, missing))}",
            hint=f"it has {', '.join(map(repr, schema.names)) or 'none: it is empty, or give schema='}",
        )
    return pa.schema([schema.field(column) for column in columns])


def checked(schema: pa.Schema, name: str) -> pa.Schema:
    """Returns the schema. Raises UserError for a column whose type streams do not support."""
    for field in schema:
        kind = _stored(field.type)
        if field.type != kind:
            raise UserError(
                f"file {name!r}: column {field.name!r} cannot be read as {field.type}", hint=f"give {kind} in schema="
            )
        if _normal(field) is None:
            raise UserError(
                f"file {name!r}: column {field.name!r} is {field.type}, which streams do not support", hint=_LEAVE_OUT
            )
    return schema


def distinct(fields: Iterable[pa.Field], path: str) -> None:
    """Raises UserError if two columns of a file, or two fields of a struct in it, have one name."""
    if twice := twice_named(fields):
        raise UserError(f"file {path!r} has two columns {twice!r}", hint=_LEAVE_OUT)


def as_wanted(data: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the batch. A text column that `schema` wants as binary becomes binary, without a check, because its
    bytes need not be UTF-8.
    """
    for number, field in enumerate(data.schema):
        if field.name in schema.names and schema.field(field.name).type == pa.binary() and field.type == pa.string():
            data = data.set_column(number, field.with_type(pa.binary()), data.column(number).view(pa.binary()))
    return data


def fitted(data: pa.RecordBatch, schema: pa.Schema, path: str, guessed: Collection[str] = ()) -> pa.RecordBatch:
    """Returns these columns in the wanted types; times in a coarser unit are rounded down, as JSON's are, except in the
    columns `guessed`, whose unit nobody has asked for. Raises UserError if a column is missing or a value does not fit.
    """
    data = _plain(_wanted(data, schema, path), path)
    if data.schema.equals(schema):
        return data
    columns: list[Any] = []
    for field in schema:
        column: Any = data.column(field.name)
        if column.type != field.type:
            try:
                times = pa.types.is_timestamp(column.type) and pa.types.is_timestamp(field.type)
                if times and field.name not in guessed:
                    column = to_unit(column, field.type.unit)
                column = exact_cast(column, field.type)
            except pa.ArrowException as error:
                raise UserError(
                    f"file {path!r}: column {field.name!r} is {column.type}, wanted is {field.type}: {error}",
                    hint="give the source's stream a schema= that fits all files",
                ) from error
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema) if columns else data


def most_rows(data: pa.RecordBatch, size: int) -> int:
    """Returns a number of rows of the batch, at least 1, whose dictionary values have together at most `size` bytes
    if each is as long as the longest.
    """
    longest = 1
    for column in data.columns:
        kind = column.type
        if pa.types.is_dictionary(kind) and (
            pa.types.is_binary(kind.value_type) or pa.types.is_string(kind.value_type)
        ):
            longest = max(longest, pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    return max(1, size // longest)


def _wanted(data: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    names = data.schema.names
    if names == schema.names:
        return data
    for name in schema.names:
        if name not in names:
            raise UserError(
                f"file {path!r} has no column {name!r}",
                hint="all files of a source have the same columns: leave it out, or read it by a source of its own",
            )
    distinct([field for field in data.schema if field.name in schema.names], path)
    return data.select(schema.names)


def _plain(data: pa.RecordBatch, path: str) -> pa.RecordBatch:
    """Returns the batch with canonical types, and storage types in place of extension types."""
    for number, field in enumerate(data.schema):
        kind = _stored(field.type)
        if kind != field.type:
            data = data.set_column(number, field.with_type(kind), data.column(number).cast(kind))
    try:
        return normalise(data)
    except pa.ArrowNotImplementedError as error:
        raise UserError(
            f"file {path!r}: a column is of a type that streams do not support: {error}", hint=_LEAVE_OUT
        ) from error


def all_columns(schema: pa.Schema, path: str) -> pa.Schema:
    distinct(schema, path)
    return canonical(schema)


def width_of(kind: pa.DataType) -> int:
    try:
        return int(kind.bit_width)
    except ValueError:  # this type has no fixed width
        return 1 << 31


# -- reading -----------------------------------------------------------------------------------------------------------


class ColumnReader(FileReader):
    """A reader that cuts batches which are larger than `max_rows`. `next_batch` gives a batch and the number of its first
    row.
    """

    def __init__(self, file: DataFile, offset: int, schema: pa.Schema, record_bytes: int) -> None:
        self.file = file
        self.in_file = schema  # all columns of the file, once it is open
        self.guessed: Collection[str] = ()  # those whose types were inferred from an earlier file
        self._schema = schema
        self._is_canonical = canonical(schema).equals(schema)
        self._record_bytes = record_bytes
        self._rest: pa.RecordBatch | None = None
        self._most_rows = 1
        self.offset = offset
        # A field of a struct that the first file lacks; `fitted` refuses a file that lacks a column.
        self._absent = AbsentColumns(file.path) if file.number == offset == 0 else None

    def next_batch(self, max_rows: int) -> tuple[int, pa.RecordBatch] | None:
        """Returns the next batch of this share that has a row at or behind `offset`; None at the end, with `offset` there."""
        raise NotImplementedError

    def read(self, max_rows: int) -> FoundRows | None:
        while self._rest is None:
            found = self.next_batch(max_rows)
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
            if self._absent is not None and self.offset == 0:
                self._absent.look_at_types(given.schema, self._schema, given.num_rows)
            given = fitted(given, self._schema, self.file.path, self.guessed)
            if self._absent is not None and not self._absent.is_done:
                self._absent.tell()
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


def _head(column: Any) -> bytes:
    """Returns the first bytes of a text or binary value; nothing for columns of other types."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return bytes(column.view(pa.binary())[0].as_buffer()[:HEAD_BYTES])
    return b""


# -- writing -----------------------------------------------------------------------------------------------------------


class ColumnFormat(FileFormat[pa.RecordBatch]):
    """The format of files that hold columns: its rows are batches of one schema."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._schema: pa.Schema | None = None

    @abstractmethod
    def writer(self, file: Any, schema: pa.Schema) -> RowWriter[pa.RecordBatch]:
        """Returns the writer of a new file with these columns."""

    @abstractmethod
    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Yields the batches of a complete file."""

    def by_columns(self, partition_by: Sequence[str]) -> "ColumnFormat":
        self.partition_by = checked_names(partition_by)
        return self

    def forget(self) -> None:
        self._schema = None

    @property
    def outgrown(self) -> bool:
        known = self.evolve and self.expected is not None and self._schema is not None
        return known and not self._schema.equals(self.expected.remove_metadata())  # type: ignore[union-attr]

    def rows(self, batch: Batch, *, first: bool) -> pa.RecordBatch:
        if first and self.partition_by:  # the files are written long after these rows came
            self.accept(batch, None)
        return self._fitting(_own(self.columns(batch)))

    def try_types(self, empty: pa.RecordBatch) -> None:
        self.writer(pa.BufferOutputStream(), empty.schema).close()

    def accept(self, empty: Batch, before: pa.Schema | None) -> None:
        schema = self.columns(empty).schema.remove_metadata()
        if self.partition_by:
            check_partitions(schema, self.partition_by, f"file {self.name!r}")
        before = self._schema if before is None else before
        if before is not None and not schema.equals(before.remove_metadata()):
            raise self._other_columns(schema, before)
        self.writer(pa.BufferOutputStream(), schema).close()

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
        return None if schema is None else self.writer(file, schema.remove_metadata())

    def size(self, rows: pa.RecordBatch) -> int:
        found: int = rows.nbytes
        return found

    def read(self, path: Path) -> Iterator[pa.RecordBatch]:
        for data in self.batches(path):
            try:
                validate(data)
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"file {os.fspath(path)!r} is damaged: {error}", hint="repair it or move it away"
                ) from error
            yield self._fitting(data.replace_schema_metadata(None))

    def frame(self, rows: list[pa.RecordBatch]) -> pa.Buffer:
        sink = pa.BufferOutputStream()
        with ipc.new_stream(sink, rows[0].schema) as writer:
            for batch in rows:
                writer.write_batch(batch)
        return sink.getvalue()

    def unframe(self, frame: pa.Buffer) -> Iterator[pa.RecordBatch]:
        """Yields the batches of an Arrow IPC stream. Raises UserError if the file that they belong to has other
        columns.
        """
        with ipc.open_stream(frame) as reader:
            for data in reader:
                yield self._fitting(data)


class Gathered:
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
