"""Converts Avro schemas to columns, and columns to Avro schemas.

null, boolean, int, long, float, double      null, bool, int32, int64, float32, float64
bytes, string, enum, fixed(n)                binary, string, string, fixed_size_binary(n)
record, array, map                           struct, list, map<string, …>
union of null and one type                   a nullable column of that type
date, time-millis, -micros, -nanos           date32, time32[ms], time64[us], time64[ns]
timestamp-millis, -micros, -nanos            timestamp[ms, us, ns, tz=UTC]
local-timestamp-millis, -micros, -nanos      timestamp[ms, us, ns]
decimal(p, s) of bytes or fixed              decimal128(p, s), decimal256(p, s) above 38 digits
uuid of string or fixed(16)                  string
"""

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot.codecs.avro.schema import (
    AvroArray,
    AvroEnum,
    AvroFixed,
    AvroMap,
    AvroPrimitive,
    AvroRecord,
    AvroType,
    AvroUnion,
    Logical,
    SchemaLike,
    parsed_record,
)
from sabot.errors import UserError

_PLAIN = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_LOGICAL = {
    "date": pa.date32(),
    "time-millis": pa.time32("ms"),
    "time-micros": pa.time64("us"),
    "time-nanos": pa.time64("ns"),
    "timestamp-millis": pa.timestamp("ms", "UTC"),
    "timestamp-micros": pa.timestamp("us", "UTC"),
    "timestamp-nanos": pa.timestamp("ns", "UTC"),
    "local-timestamp-millis": pa.timestamp("ms"),
    "local-timestamp-micros": pa.timestamp("us"),
    "local-timestamp-nanos": pa.timestamp("ns"),
    "uuid": pa.string(),
}
_MOST_DIGITS = 76
# a column of fixed values has room for each row, even for nulls, whatever the payloads contain
_MOST_FIXED_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def arrow_schema(schema: SchemaLike) -> pa.Schema:
    """Returns the columns of payloads with this schema. A column is nullable if its field is a union with null.

    Raises UserError for a schema that is not a record, and for a field without a column type: a union other than of
    null and one type, a decimal of more than 76 digits, a record that contains itself.
    """
    return columns_of(parsed_record(schema), None)


def columns_of(record: AvroRecord, names: Sequence[str] | None) -> pa.Schema:
    """Returns the columns of a record, or only those with these names, in their order. Raises UserError for a field
    without a column type and for an unknown or repeated name.
    """
    fields = {each.name: each for each in record.fields}
    if names is None:
        names = list(fields)
    unknown = [name for name in names if name not in fields]
    if unknown:
        raise UserError(
            f"the Avro schema {record.name!r} has no field {unknown[0]!r}",
            hint=f"its fields are {', '.join(fields) or 'none'}",
        )
    if len(set(names)) < len(names):
        raise UserError(f"a field of the Avro schema {record.name!r} is named twice: {', '.join(names)}")
    return pa.schema([_field(name, fields[name].type, name) for name in names])


def is_null(kind: AvroType) -> bool:
    """Returns True if the type is null."""
    return isinstance(kind, AvroPrimitive) and kind.name == "null"


def nullable_type(kind: AvroType, path: str) -> tuple[AvroType, bool]:
    """Returns the type of a value that is not null, and True if null is allowed. Raises UserError for a union of
    several types.
    """
    if not isinstance(kind, AvroUnion):
        return kind, is_null(kind)
    others = [each for each in kind.branches if not is_null(each)]
    if len(others) > 1:
        raise UserError(
            f"field {path}: a {kind} has no column type",
            hint="read with a schema that leaves the field out, or has one of the types in its place",
        )
    nullable = len(others) < len(kind.branches)
    return (others[0] if others else kind.branches[0]), nullable


def _field(name: str, kind: AvroType, path: str) -> Any:
    inner, nullable = nullable_type(kind, path)
    return pa.field(name, _type(inner, path), nullable)


def _type(kind: AvroType, path: str) -> pa.DataType:
    match kind:
        case AvroArray():
            return pa.list_(_field("item", kind.items, f"{path}[]"))
        case AvroMap():
            return pa.map_(pa.string(), _field("value", kind.values, f"{path}{{}}"))
        case AvroRecord():
            return pa.struct([_field(each.name, each.type, f"{path}.{each.name}") for each in kind.fields])
        case AvroEnum():
            return pa.string()
        case AvroPrimitive() | AvroFixed() if kind.logical is not None:
            return _logical_type(kind.logical, path)
        case AvroFixed():
            if not 0 < kind.size <= _MOST_FIXED_BYTES:
                raise UserError(
                    f"field {path}: a fixed of {kind.size or 'no'} bytes has no column type",
                    hint=f"1 to {_MOST_FIXED_BYTES} bytes; bytes have any length",
                )
            return pa.binary(kind.size)
        case AvroPrimitive():
            return _PLAIN[kind.name]
        case _:
            raise UserError(f"field {path}: a {kind} has no column type")


def _logical_type(logical: Logical, path: str) -> pa.DataType:
    if logical.name != "decimal":
        return _LOGICAL[logical.name]
    if logical.precision > _MOST_DIGITS:
        raise UserError(f"field {path}: {logical} has more than {_MOST_DIGITS} digits, which no column type has")
    make = pa.decimal128 if logical.precision <= 38 else pa.decimal256
    return make(logical.precision, logical.scale)


def avro_schema(schema: pa.Schema, name: str) -> dict[str, Any]:
    """Returns an Avro schema for columns, as JSON: a record with this name. Nullable columns are unions with null,
    and null is their default.

    Raises UserError for a name or a type that Avro does not have: names consist of letters, digits and _ (the name of
    the record may have parts with dots between them); there are no durations, no decimals
    with a scale below 0, and no maps with keys that are not texts.
    """
    if not all(map(_NAME.fullmatch, name.split("."))):
        raise UserError(
            f"{name!r} is not a name for an Avro schema", hint="letters, digits and _, with dots between them"
        )
    plain = name.rpartition(".")[2]
    return {"type": "record", "name": name, "fields": _written_fields(schema, plain, "", {plain})}


def _written_fields(fields: Any, name: str, path: str, names: set[str]) -> list[dict[str, Any]]:
    made = []
    for field in fields:
        if not _NAME.fullmatch(field.name):
            raise UserError(
                f"column {path + field.name!r} has a name that Avro does not allow",
                hint=f"rename it: letters, digits and _, as in {name}_1",
            )
        kind = _written_field(field, f"{name}_{field.name}", path + field.name, names)
        made.append({"name": field.name, "type": kind, **({"default": None} if isinstance(kind, list) else {})})
    return made


def _written_field(field: Any, name: str, path: str, names: set[str]) -> Any:
    kind = _written_type(field.type, name, path, names)
    return ["null", kind] if field.nullable and kind != "null" else kind


def _written_type(kind: pa.DataType, name: str, path: str, names: set[str]) -> Any:
    """Returns the Avro type of a column. `name`: the name for a record or fixed type; if it is taken, it gets "_" at
    its end. `names`: the names that are taken, to which the new one is added. `path`: the place of the column, for
    errors. Raises UserError for a type that Avro lacks, and for a name of a field that Avro does not allow.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return _written_type(kind.value_type, name, path, names)
    if types.is_struct(kind) or types.is_fixed_size_binary(kind):
        while name in names:
            name += "_"
        names.add(name)
    if types.is_struct(kind):
        return {"type": "record", "name": name, "fields": _written_fields(kind, name, f"{path}.", names)}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return {"type": "array", "items": _written_field(kind.value_field, name, f"{path}[]", names)}
    if types.is_map(kind) and kind.key_type in (pa.string(), pa.large_string()):
        return {"type": "map", "values": _written_field(kind.item_field, name, f"{path}{{}}", names)}
    if types.is_fixed_size_binary(kind):
        return {"type": "fixed", "name": name, "size": kind.byte_width}
    if types.is_decimal(kind) and kind.scale >= 0:
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.precision, "scale": kind.scale}
    if types.is_timestamp(kind):
        unit = {"s": "millis", "ms": "millis", "us": "micros", "ns": "nanos"}[kind.unit]
        return {"type": "long", "logicalType": f"{'local-' if kind.tz is None else ''}timestamp-{unit}"}
    if types.is_date(kind):
        return {"type": "int", "logicalType": "date"}
    if types.is_time32(kind):
        return {"type": "int", "logicalType": "time-millis"}
    if types.is_time64(kind):
        return {"type": "long", "logicalType": f"time-{'micros' if kind.unit == 'us' else 'nanos'}"}
    for said, is_one in (
        ("null", types.is_null),
        ("boolean", types.is_boolean),
        ("string", lambda each: types.is_string(each) or types.is_large_string(each) or types.is_string_view(each)),
        ("bytes", lambda each: types.is_binary(each) or types.is_large_binary(each) or types.is_binary_view(each)),
        ("int", lambda each: each in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16())),
        ("long", types.is_integer),
        ("float", lambda each: each == pa.float32()),
        ("double", lambda each: each == pa.float64()),
    ):
        if is_one(kind):
            return said
    raise UserError(
        f"column {path!r}: Avro has no type for {kind}",
        hint="cast it before, or give a schema with the type that it is to have",
    )
