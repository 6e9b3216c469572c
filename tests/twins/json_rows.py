"""What a JSON decoder with a schema must give, one row at a time: json.loads, msgspec, and the rules of sabot/_cython/text/json.pyi."""

import json
import math
import struct
from decimal import Decimal
from typing import Any, NoReturn

import msgspec
import pyarrow as pa


def fits(value: Any, field: pa.Field) -> Any:
    """The value as pa.array takes it; ValueError where it does not fit the field."""
    data_type = field.type
    if value is None:
        if not field.nullable:
            raise ValueError("null")
        return None
    if pa.types.is_boolean(data_type):
        if isinstance(value, bool):
            return value
    elif pa.types.is_integer(data_type):
        if isinstance(value, int) and not isinstance(value, bool):
            pa.scalar(value, data_type)  # raises where it is out of range
            return value
    elif pa.types.is_floating(data_type):
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            if data_type == pa.float32():
                number = struct.unpack("f", struct.pack("f", number))[0]
            if math.isfinite(number):
                return number
    elif pa.types.is_decimal(data_type):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**data_type.precision:
            return Decimal(value)
    elif data_type in (pa.string(), pa.binary()):
        if isinstance(value, str):
            return value.encode() if data_type == pa.binary() else value.encode().decode()
    elif pa.types.is_struct(data_type):
        if isinstance(value, dict):
            return {child.name: fits(value.get(child.name), child) for child in data_type}
    elif pa.types.is_map(data_type):
        if isinstance(value, dict):
            return [(str(name.encode(), "utf-8"), fits(item, data_type.item_field)) for name, item in value.items()]
    elif pa.types.is_list(data_type) and isinstance(value, list):
        return [fits(item, data_type.value_field) for item in value]
    raise ValueError("type")


def no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def by_json(payload: bytes) -> Any:
    """The value as the standard library reads it, strictly: no NaN, no Infinity, UTF-8 only. ValueError if it is no JSON."""
    return json.loads(payload.decode("utf-8-sig"), parse_constant=no_constant)


def by_msgspec(payload: bytes) -> Any:
    """The value as msgspec reads it; ValueError if it is no JSON, half a surrogate pair, or a number beyond all doubles."""
    try:
        return msgspec.json.decode(payload.removeprefix(b"\xef\xbb\xbf"))
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def row_of(schema: pa.Schema, value: Any) -> dict[str, Any]:
    """The decoded row as Python objects. ValueError, OverflowError or ArrowInvalid: a bad row."""
    if not isinstance(value, dict):
        raise ValueError("no object")
    return {field.name: fits(value.get(field.name), field) for field in schema}


REFUSED = (ValueError, OverflowError, pa.ArrowInvalid)


def twin(schema: pa.Schema, payloads: list[bytes | None]) -> tuple[list[dict[str, Any]], list[int]]:
    """-> (the rows as Python objects, the numbers of the bad rows)."""
    rows, bad = [], []
    for i, payload in enumerate(payloads):
        try:
            if payload is None:
                raise ValueError("null")
            rows.append(row_of(schema, by_json(payload)))
        except REFUSED:
            bad.append(i)
    return rows, bad
