"""The values that the types of DuckDB hold. Each type of a column has a type of Arrow, into which values are cast before
they come: what the cast would cut is refused.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import PER_SECOND, exact_cast
from sabot.connectors.sql.database import quoted
from sabot.connectors.sql.rows import not_held, refusals

_DECLARED = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("ns"): "TIMESTAMP_NS",
    pa.timestamp("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
}
_UNKNOWN = {"BIT", "INTERVAL", "TIME WITH TIME ZONE", "VARIANT", "GEOMETRY", "BIGNUM", "VARINT"}
_DIGITS = 38  # the most of a DECIMAL
_FIRST_TIME = -9_223_372_022_400_000_000  # of a TIMESTAMP, in microseconds: 290309-12-22 BC
_FARTHEST = 2**63 - 1, 2**31 - 1  # what DuckDB takes for infinity, of times and of days


def stored(field: "pa.Field[Any]") -> pa.DataType:
    """Returns the type of Arrow in which a column that the sink makes gets these values. Raises UserError."""
    return _stored(field.type, field.name)


def _stored(kind: Any, name: str) -> pa.DataType:
    types = pa.types
    if types.is_null(kind):
        return pa.string()
    if types.is_float16(kind):
        return pa.float32()
    if types.is_duration(kind):
        return pa.int64()
    if types.is_date(kind):
        return pa.date32()
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_timestamp(kind):
        return pa.timestamp("ns" if kind.tz is None and kind.unit == "ns" else "us", kind.tz and "UTC")
    if types.is_fixed_size_binary(kind) and not types.is_decimal(kind):
        return pa.binary()
    if types.is_decimal(kind):
        digits, scale = (kind.precision, kind.scale) if kind.scale >= 0 else (kind.precision - kind.scale, 0)
        if max(digits, scale) > _DIGITS:
            raise not_held(name, kind)
        return pa.decimal128(max(digits, scale), scale)
    if types.is_map(kind):
        return pa.map_(_stored(kind.key_type, name), _stored(kind.item_type, name))
    if types.is_fixed_size_list(kind):
        return pa.list_(_stored(kind.value_type, name), kind.list_size)
    if types.is_list(kind):
        return pa.list_(_stored(kind.value_type, name))
    if types.is_struct(kind):
        return pa.struct([(each.name, _stored(each.type, name)) for each in kind])
    if kind not in _DECLARED:
        raise not_held(name, kind)
    return kind


def declared_type(own: Any, name: str) -> str:
    """Returns the type of DuckDB for a type that `stored` has returned. Raises UserError for one that DuckDB lacks."""
    types = pa.types
    if types.is_decimal(own):
        return f"DECIMAL({own.precision}, {own.scale})"
    if types.is_map(own):
        return f"MAP({declared_type(own.key_type, name)}, {declared_type(own.item_type, name)})"
    if types.is_fixed_size_list(own) and own.list_size:
        return f"{declared_type(own.value_type, name)}[{own.list_size}]"
    if types.is_list(own):
        return f"{declared_type(own.value_type, name)}[]"
    if types.is_struct(own) and len({each.name.lower() for each in own}) == own.num_fields > 0:
        return f"STRUCT({', '.join(f'{quoted(each.name)} {declared_type(each.type, name)}' for each in own)})"
    if own not in _DECLARED:
        raise not_held(name, own)
    return _DECLARED[own]


def is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def takes(declared: str, own: Any, kind: Any) -> bool:
    """Returns False if a column would cut, or never take, values of a type of Arrow. `declared`, `own`: its type, as
    DuckDB and as Arrow call it.
    """
    types = pa.types
    if types.is_null(kind):
        return True
    if declared in _UNKNOWN or declared.startswith("UNION"):
        return False
    if types.is_nested(kind) or types.is_nested(own):
        return _takes_nested(own, kind)
    if types.is_integer(kind) or types.is_duration(kind):
        return bool(types.is_integer(own) or types.is_decimal(own) or types.is_floating(own))
    if types.is_floating(kind):
        return bool(types.is_floating(own) and own.bit_width >= kind.bit_width)
    if types.is_decimal(kind):
        return bool(types.is_decimal(own) and own.scale >= kind.scale) or bool(
            types.is_integer(own) and kind.scale <= 0
        )
    if types.is_timestamp(kind):
        return bool(types.is_timestamp(own)) and (own.tz is None) == (kind.tz is None)
    if types.is_string(kind):
        return is_text(own)
    if types.is_fixed_size_binary(kind) or types.is_binary(kind):
        return bool(types.is_binary(own))
    return bool(
        (types.is_date(kind) and types.is_date(own))
        or (types.is_time(kind) and types.is_time(own))
        or (types.is_boolean(kind) and types.is_boolean(own))
    )


def _takes_nested(own: Any, kind: Any) -> bool:
    types = pa.types
    if types.is_struct(own) and types.is_struct(kind):
        return [each.name for each in own] == [each.name for each in kind] and all(
            takes("", mine, each.type) for mine, each in zip((each.type for each in own), kind, strict=True)
        )
    if types.is_map(own) and types.is_map(kind):
        return takes("", own.key_type, kind.key_type) and takes("", own.item_type, kind.item_type)
    lists = [each for each in (own, kind) if types.is_list(each) or types.is_fixed_size_list(each)]
    sizes = {getattr(each, "list_size", None) for each in lists}
    return len(lists) == 2 and len(sizes) == 1 and takes("", own.value_type, kind.value_type)


def identifies(declared: str, own: Any) -> bool:
    """Returns True if DuckDB finds no two values of a column equal that Arrow tells apart."""
    return declared not in ("UUID", "JSON") and not (pa.types.is_floating(own) or pa.types.is_nested(own))


def fitted(column: Any, own: pa.DataType) -> Any:
    """Returns a column in the type of Arrow of its column of the table. Texts for a column of another type stay texts, which
    DuckDB reads. Raises Arrow's errors for values that the type does not hold.
    """
    kind = column.type
    if kind == own or (is_text(kind) and not is_text(own)):
        return _within(column)
    if pa.types.is_integer(kind) and pa.types.is_decimal(own):
        # Arrow looks at the types only, and refuses integers that could be too long.
        column = column.cast(pa.decimal128(38, min(own.scale, 18)))
    return _within(exact_cast(column, own))


def refused_values(name: str, column: Any, declared: str, own: Any) -> dict[int, str]:
    """Returns the reason for each value that a column does not hold, by the number of the row."""
    try:
        fitted(column, own)
        return {}
    except pa.ArrowException:  # which does not tell the row, and may be about a value beside a slice of lists
        open_ranges = [pa.array(np.arange(len(column)))]
    why = f"does not fit into {declared}"
    found: dict[int, str] = {}
    while open_ranges:
        part = open_ranges.pop()
        try:
            fitted(column.take(part), own)  # copied: a cast of a slice of lists converts all of their values
        except pa.ArrowException:
            if len(part) == 1:
                row = part[0].as_py()
                found[row] = refusals(name, column.slice(row, 1), pa.array([True]), why)[0]
            else:
                open_ranges += [part.slice(len(part) // 2), part.slice(0, len(part) // 2)]
    return found


def _within(column: Any) -> Any:
    if (wrong := _beyond(column)) is not None and pc.any(wrong, min_count=0).as_py():
        raise pa.ArrowInvalid("a time is beyond those of DuckDB")
    return column


def _beyond(column: Any) -> Any:
    """Returns which times DuckDB would take for others (infinity, 25 o'clock), or None for a column of another type."""
    kind, types = column.type, pa.types
    if types.is_timestamp(kind):
        values = column.view(pa.int64())
        first = _FIRST_TIME if kind.unit == "us" else -_FARTHEST[0] + 1
        return pc.or_(pc.equal(values, _FARTHEST[0]), pc.less(values, first))
    if types.is_date(kind):
        values = column.view(pa.int32())
        return pc.or_(pc.equal(values, _FARTHEST[1]), pc.less(values, -_FARTHEST[1] + 1))
    if types.is_time(kind):
        values = column.view(pa.int64())
        return pc.or_(pc.less(values, 0), pc.greater_equal(values, 86_400 * PER_SECOND[kind.unit]))
    return None
