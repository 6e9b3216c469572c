"""Encodes the defaults of fields, which a schema gives as JSON, in Avro's binary encoding."""

import struct
from typing import Any

from sabot.codecs.avro.schema import (
    NO_DEFAULT,
    UNITS_OF_DAY,
    AvroArray,
    AvroEnum,
    AvroField,
    AvroFixed,
    AvroMap,
    AvroPrimitive,
    AvroRecord,
    AvroType,
    AvroUnion,
    Logical,
)
from sabot.errors import UserError

_BITS = {"int": 32, "long": 64}
_FLOATS = ("NaN", "Infinity", "-Infinity")  # the spellings of Java's writer; JSON has no such numbers


class _Unfit(Exception):
    """Raised for a value that is not of its type."""


def encoded_default(field: AvroField, path: str) -> bytes:
    """Returns the encoded default of a field that has one. Raises UserError if it is not a value of the field's type."""
    try:
        return _encoded(field.type, field.default)
    except _Unfit as error:
        raise UserError(f"field {path}: its default is {error}") from error


def _encoded(kind: AvroType, value: Any) -> bytes:
    match kind:
        case AvroUnion():
            return _of_union(kind, value)
        case AvroRecord() if isinstance(value, dict):
            return b"".join(_of_field(each, value) for each in kind.fields)
        case AvroArray() if isinstance(value, list):
            return _blocks([_encoded(kind.items, each) for each in value])
        case AvroMap() if isinstance(value, dict):
            return _blocks([_plain("string", name) + _encoded(kind.values, each) for name, each in value.items()])
        case AvroEnum() if value in kind.symbols:
            return _number(kind.symbols.index(value))
        case AvroFixed() if isinstance(value, str) and len(value) == kind.size and _is_latin(value):
            if _means(kind.logical, value):
                return value.encode("latin-1")
        case AvroPrimitive():
            made = _plain(kind.name, value)
            if _means(kind.logical, value):
                return made
    raise _Unfit(f"{value!r:.60}, which is not a value of type {kind}")


def _means(logical: Logical | None, value: Any) -> bool:
    """Returns True if a value of the plain type is valid for its logical type too, by the rules for payloads."""
    if logical is None:
        return True
    if logical.name == "decimal":
        unscaled = int.from_bytes(value.encode("latin-1"), "big", signed=True)
        return bool(value) and abs(unscaled) < 10**logical.precision
    return logical.name not in UNITS_OF_DAY or 0 <= value < UNITS_OF_DAY[logical.name]


def _of_union(kind: AvroUnion, value: Any) -> bytes:
    """Encodes a value with the first branch that it fits. (Up to Avro 1.11 it had to fit the first branch of all.)"""
    for number, branch in enumerate(kind.branches):
        try:
            return _number(number) + _encoded(branch, value)
        except _Unfit:
            continue
    raise _Unfit(f"{value!r:.60}, which is not a value of type {kind}")


def _of_field(field: AvroField, values: dict[str, Any]) -> bytes:
    value = values.get(field.name, field.default)
    if value is NO_DEFAULT:
        raise _Unfit(f"a record without its field {field.name!r}")
    return _encoded(field.type, value)


def _plain(name: str, value: Any) -> bytes:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "null" if value is None:
            return b""
        case "boolean" if isinstance(value, bool):
            return bytes([value])
        case "int" | "long" if (
            is_number and -(2 ** (_BITS[name] - 1)) <= value < 2 ** (_BITS[name] - 1) and value == int(value)
        ):
            return _number(int(value))
        case "float" | "double" if is_number or value in _FLOATS:
            try:
                return struct.pack("<f" if name == "float" else "<d", float(value))
            except OverflowError:
                pass  # the number is not of the type: raised below
        case "bytes" if isinstance(value, str) and _is_latin(value):
            return _sized(value.encode("latin-1"))
        case "string" if isinstance(value, str):
            try:
                return _sized(value.encode())
            except UnicodeEncodeError:
                pass  # half of a surrogate pair, which JSON allows: raised below
    raise _Unfit(f"{value!r:.60}, which is not a value of type {name}")


def _is_latin(value: str) -> bool:
    """Returns True if each character stands for one byte."""
    return all(ord(each) < 256 for each in value)


def _blocks(items: list[bytes]) -> bytes:
    return b"".join([_number(len(items)), *items, b"\0"]) if items else b"\0"


def _sized(value: bytes) -> bytes:
    return _number(len(value)) + value


def _number(value: int) -> bytes:
    """Returns a number in zigzag and base-128 encoding."""
    rest = value << 1 ^ value >> 63
    made = bytearray()
    while rest > 127:
        made.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*made, rest])
