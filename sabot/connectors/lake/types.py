"""Columns of rows beside those of a table, as Arrow types: which are missing, which fit, and the values in the table's types."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.base.arrays import epoch, integer_array, integers, shown, to_unit
from sabot.errors import UserError

_DIGITS = {8: 3, 16: 5, 32: 10, 64: 19}  # of the largest integer with so many bits


def lake_type(kind: Any, format: str, own: Callable[[Any], pa.DataType | None]) -> pa.DataType:
    """Returns the type of a column in a format, which holds each value of `kind`. Timestamps keep microseconds. A column of nulls keeps
    its type, because it fits any column. `own`: the types for which the format has one that the other format does not have. Raises
    UserError for a type that the format does not have.
    """
    types = pa.types
    if (found := own(kind)) is not None:
        return found
    if types.is_uint32(kind):
        return pa.int64()
    if types.is_uint64(kind):
        return pa.decimal128(20, 0)
    if types.is_float16(kind):
        return pa.float32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if types.is_date(kind):
        return pa.date32()
    if types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_decimal(kind) and kind.precision <= 38 and kind.scale >= 0:
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", lake_type(kind.value_type, format, own)))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, lake_type(field.type, format, own)) for field in kind])
    if types.is_map(kind):
        return pa.map_(lake_type(kind.key_type, format, own), lake_type(kind.item_type, format, own))
    plain = (types.is_boolean, types.is_signed_integer, types.is_floating, types.is_string, types.is_binary)
    if types.is_null(kind) or any(is_kind(kind) for is_kind in plain):
        return kind
    raise UserError(f"{format} has no type for {kind}", hint="cast it, or leave it out, before the sink")


def in_words(schema: pa.Schema) -> str:
    """Returns the columns as messages show them."""
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def declared(schema: pa.Schema) -> pa.Schema:
    """Returns these columns for a table in which they are made: a column of nulls, whose type is not known yet, is text."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema])


def holds(column: Any, kind: Any) -> bool:
    """Returns True if a column of a table holds each value of `kind`, both types of one format, without loss."""
    types = pa.types
    if types.is_null(kind) or column.equals(kind):
        return True
    if types.is_decimal(column):
        whole = column.precision - column.scale
        if types.is_integer(kind):
            return bool(_DIGITS[kind.bit_width] <= whole)
        return bool(types.is_decimal(kind) and kind.scale <= column.scale and kind.precision - kind.scale <= whole)
    for same in (types.is_integer, types.is_floating):
        if same(column) and same(kind):
            return bool(kind.bit_width <= column.bit_width)
    if types.is_list(column) and types.is_list(kind):
        return holds(column.value_type, kind.value_type)
    if types.is_map(column) and types.is_map(kind):
        return holds(column.key_type, kind.key_type) and holds(column.item_type, kind.item_type)
    if types.is_struct(column) and types.is_struct(kind):
        inside = list(column)
        return [field.name for field in inside] == [field.name for field in kind] and all(
            holds(field.type, given.type) for field, given in zip(inside, kind, strict=True)
        )
    return False


def missing_fields(schema: pa.Schema, columns: pa.Schema) -> pa.Schema:
    """Returns those columns of `schema` that a table with `columns` lacks. Case is ignored in names."""
    known = {name.lower() for name in columns.names}
    return pa.schema([field for field in schema if field.name.lower() not in known])


def misfit(schema: pa.Schema, columns: pa.Schema, format: str) -> str:
    """Returns the reason why a table with `columns` cannot take rows with `schema`, or "". Missing columns are none.
    `format`: the format of the table, for the text.
    """
    folded = {name.lower(): name for name in columns.names}
    for field in schema:
        name = folded.get(field.name.lower())
        if name is not None and name != field.name:
            return (
                f"its column {name} and the column {field.name} of the rows differ only by case, which {format} ignores"
            )
        if name is not None and not holds(kind := columns.field(name).type, field.type):
            return f"its column {name} is {kind}, which does not hold {field.type}"
    lacking = [field.name for field in columns if not field.nullable and field.name not in schema.names]
    return f"its column {lacking[0]} is NOT NULL, and the rows do not have it" if lacking else ""


def converted(data: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Returns the rows with these types, column by column. Raises UserError, whose text begins with `where`, for a value
    that the type does not hold.
    """
    if data.schema.equals(schema):
        return data
    arrays = [_converted(*each, where) for each in zip(data.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _converted(column: Any, field: Any, where: str) -> Any:
    given, kind = column.type, field.type
    if given.equals(kind):
        return column
    try:
        if pa.types.is_timestamp(given):
            return to_unit(column, kind.unit).cast(kind)
        if pa.types.is_time(given) and given.unit == "ns":
            return integer_array(np.floor_divide(integers(column), 1_000), kind, column)
        if pa.types.is_date64(given):
            return epoch(column, "d").cast(pa.int32()).view(kind)
        return column.cast(kind)
    except pa.ArrowException as error:
        raise UserError(
            f"{where}: column {field.name}: {error}",
            hint="cast the column, or leave it out (select), before the sink",
        ) from error


def check_times(
    data: pa.RecordBatch, where: str, format: str, days: tuple[int, int], is_kind: Callable[[Any], bool]
) -> None:
    """Raises UserError, whose text begins with `where`, for a date or timestamp before the first or behind the last of these days
    since 1970, also in structs. `is_kind`: returns True for the types that are looked at.
    """
    columns = list(zip(data.schema.names, data.columns, strict=True))
    for path, column in columns:  # grows below
        kind = column.type
        if pa.types.is_struct(kind):
            columns += [(f"{path}.{field.name}", each) for field, each in zip(kind, column.flatten(), strict=True)]
        if not is_kind(kind) or len(column) == column.null_count:
            continue
        there = column.drop_null()
        counted = integers(epoch(there, "d"))
        wrong = np.flatnonzero((counted < days[0]) | (counted > days[1]))
        if len(wrong):
            raise UserError(
                f"{where}: column {path} has a time that {format} does not have: {shown(there[int(wrong[0])])}",
                hint="filter such rows before the sink",
            )


def in_order(data: pa.RecordBatch, columns: pa.Schema, where: str) -> pa.RecordBatch:
    """Returns the rows with all columns of a table, in its order; those that `data` does not have are null."""
    known = dict(zip(data.schema.names, data.columns, strict=True))
    arrays: Sequence[Any] = [known.get(field.name, pa.nulls(data.num_rows)) for field in columns]
    plain = pa.RecordBatch.from_arrays(arrays, names=columns.names)
    return converted(plain, pa.schema([pa.field(field.name, field.type) for field in columns]), where)
