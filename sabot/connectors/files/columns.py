"""The columns of a file that are read, and their types.

Streams carry every Arrow type but unions. Extension types (uuid, json) become their storage types, dictionaries and
views become plain types, and decimal32 and decimal64 become decimal128, which the operators know.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import normalise
from sabot.base.arrays import to_unit
from sabot.errors import UserError

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
    try:
        return normalise(pa.schema([field]).empty_table()).schema.field(0)
    except pa.ArrowNotImplementedError:
        return None


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


def distinct(names: Sequence[str], path: str) -> None:
    """Raises UserError if two columns of a file have one name."""
    twice = sorted({name for name, times in Counter(names).items() if times > 1})
    if twice:
        raise UserError(f"file {path!r} has two columns {', '.join(map(repr, twice))}", hint=_LEAVE_OUT)


def as_wanted(data: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the batch. A text column that `schema` wants as binary becomes binary, without a check, because its
    bytes need not be UTF-8.
    """
    for number, field in enumerate(data.schema):
        if field.name in schema.names and schema.field(field.name).type == pa.binary() and field.type == pa.string():
            data = data.set_column(number, field.with_type(pa.binary()), data.column(number).view(pa.binary()))
    return data


def fitted(data: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """Returns these columns in the wanted types; times in a coarser unit are rounded down, as JSON's are. Raises UserError
    if a column is missing or a value does not fit.
    """
    data = _plain(_wanted(data, schema, path), path)
    if data.schema.equals(schema):
        return data
    columns: list[Any] = []
    for field in schema:
        column: Any = data.column(field.name)
        if column.type != field.type:
            try:
                if pa.types.is_timestamp(column.type) and pa.types.is_timestamp(field.type):
                    column = to_unit(column, field.type.unit)
                column = column.cast(field.type)
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
    distinct([name for name in names if name in schema.names], path)
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
