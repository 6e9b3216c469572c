"""Random Protobuf types, messages and encodings of them, and the rows that the library of Protobuf itself reads out of a payload."""

import math
import random
import string
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message import DecodeError

__all__ = ["KNOWN", "compiled", "encodings", "library_row", "plain_rows", "random_message", "random_type"]

P = descriptor_pb2.FieldDescriptorProto
NUMBERS = [
    *(P.TYPE_DOUBLE, P.TYPE_FLOAT, P.TYPE_INT64, P.TYPE_UINT64, P.TYPE_INT32, P.TYPE_FIXED64, P.TYPE_FIXED32),
    *(P.TYPE_BOOL, P.TYPE_UINT32, P.TYPE_SFIXED32, P.TYPE_SFIXED64, P.TYPE_SINT32, P.TYPE_SINT64),
]
KEYS = [kind for kind in NUMBERS if kind not in (P.TYPE_DOUBLE, P.TYPE_FLOAT)] + [P.TYPE_STRING]
KNOWN = ["Timestamp", "Duration", *(f"{name}Value" for name in
         ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"))]  # fmt: skip
_FILES = ["timestamp", "duration", "wrappers"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLOSED_VALUES = [("RED", 0), ("GREEN", 1), ("BLUE", 5), ("NEGATIVE", -3), ("FAR", 2**31 - 1)]


def compiled(file: descriptor_pb2.FileDescriptorProto, name: str) -> Any:
    """The class of a message of this file, which may import what google.protobuf has."""
    from google.protobuf import duration_pb2, timestamp_pb2, wrappers_pb2

    pool = descriptor_pool.DescriptorPool()
    for module in (timestamp_pb2, duration_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def random_type(rng: random.Random, plain: bool = False) -> Any:
    """The class of a message of proto2 or proto3 with fields of any type, labels and nesting.

    plain: without what the library reads in its own way where a payload is damaged. In proto2, text that is not UTF-8 are bytes. A
    pair of a map with an unknown field is skipped.
    """
    syntax = "proto3" if plain else rng.choice(["proto2", "proto3"])
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax=syntax)
    file.dependency.extend(f"google/protobuf/{name}.proto" for name in _FILES)
    enum = file.enum_type.add(name="Color")
    for name, number in CLOSED_VALUES:
        enum.value.add(name=name, number=number)
    count = rng.randrange(1, 5)
    for place in range(count):
        made = file.message_type.add(name=f"M{place}")
        _add_message(rng, made, syntax, [f".t.M{n}" for n in range(place + 1, count)], maps=not plain)
    return compiled(file, "t.M0")


def _add_message(rng: random.Random, made: Any, syntax: str, below: list[str], maps: bool = True) -> None:
    numbers: set[int] = set()
    oneof = rng.random() < 0.4
    if oneof:
        made.oneof_decl.add(name="choice")
        for place in range(rng.randrange(1, 5)):
            field = _add_field(rng, made, f"o{place}", numbers, syntax, below)
            field.label, field.oneof_index = P.LABEL_OPTIONAL, 0
    for place in range(rng.choice([0, 1, 2, 3, 5, 8])):
        way = rng.random()
        if way < 0.12 and maps:
            _add_map(rng, made, f"f{place}", numbers, syntax, below)
            continue
        field = _add_field(rng, made, f"f{place}", numbers, syntax, below)
        field.label = P.LABEL_REPEATED if way < 0.4 else P.LABEL_OPTIONAL
        if way > 0.95 and syntax == "proto2":
            field.label = P.LABEL_REQUIRED
        if way < 0.4 and field.type in (*NUMBERS, P.TYPE_ENUM) and rng.random() < 0.7:
            field.options.packed = rng.random() < 0.5
        if way > 0.8 and syntax == "proto3" and field.type not in (P.TYPE_MESSAGE, P.TYPE_GROUP):
            field.proto3_optional = True
            field.oneof_index = len(made.oneof_decl)
            made.oneof_decl.add(name=f"_{field.name}")


def _number(rng: random.Random, numbers: set[int]) -> int:
    while True:
        number = rng.choice([rng.randrange(1, 16), rng.randrange(1, 300), rng.randrange(20000, 2**29)])
        if number not in numbers:
            numbers.add(number)
            return number


def _add_field(rng: random.Random, made: Any, name: str, numbers: set[int], syntax: str, below: list[str]) -> Any:
    field = made.field.add(name=name, number=_number(rng, numbers), label=P.LABEL_OPTIONAL)
    way = rng.random()
    if way < 0.55:
        field.type = rng.choice(NUMBERS)
    elif way < 0.7:
        field.type = rng.choice([P.TYPE_STRING, P.TYPE_BYTES])
    elif way < 0.78:
        field.type, field.type_name = P.TYPE_ENUM, ".t.Color"
    elif way < 0.88 or not below:
        field.type, field.type_name = P.TYPE_MESSAGE, f".google.protobuf.{rng.choice(KNOWN)}"
    elif way < 0.92 and syntax == "proto2":
        group = made.nested_type.add(name=name.capitalize())
        _add_message(rng, group, syntax, [])
        field.type, field.type_name = P.TYPE_GROUP, name.capitalize()
    else:
        field.type, field.type_name = P.TYPE_MESSAGE, rng.choice(below)
    return field


def _add_map(rng: random.Random, made: Any, name: str, numbers: set[int], syntax: str, below: list[str]) -> None:
    entry = made.nested_type.add(name=f"{name.capitalize()}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=P.LABEL_OPTIONAL, type=rng.choice(KEYS))
    value = _add_field(rng, entry, "value", {1}, "proto3", below)
    value.number, value.label = 2, P.LABEL_OPTIONAL
    field = made.field.add(name=name, number=_number(rng, numbers), label=P.LABEL_REPEATED, type=P.TYPE_MESSAGE)
    field.type_name = f"{name.capitalize()}Entry"


# -- messages


def random_message(rng: random.Random, made: Any, required: bool = True) -> Any:
    """Fills a message of any type, sometimes with the values at the ends of the ranges."""
    descriptor = made.DESCRIPTOR
    if descriptor.full_name == "google.protobuf.Timestamp":
        made.seconds = rng.choice([0, 1, -1, rng.randrange(-62135596800, 253402300800), 1_700_000_000])
        made.nanos = rng.choice([0, 1, 999, 1000, 999999999, rng.randrange(10**9)])
        return made
    if descriptor.full_name == "google.protobuf.Duration":
        sign = rng.choice([-1, 1])
        made.seconds, made.nanos = (
            sign * rng.choice([0, 1, 86399, 315576000000]),
            sign * rng.choice([0, 1500, 999999999]),
        )
        return made
    for field in descriptor.fields:
        if field.is_repeated:
            _fill_repeated(rng, made, field)
        elif rng.random() < 0.6 or (field.is_required and required):
            if field.message_type is not None:
                getattr(made, field.name).SetInParent()
                random_message(rng, getattr(made, field.name), required)
            else:
                setattr(made, field.name, _value(rng, field))
    return made


def _fill_repeated(rng: random.Random, made: Any, field: Any) -> None:
    items = getattr(made, field.name)
    for _ in range(rng.choice([0, 0, 1, 2, 3, 20])):
        if field.message_type is None:
            items.append(_value(rng, field))
        elif not field.message_type.GetOptions().map_entry:
            random_message(rng, items.add())
        else:
            key, value = field.message_type.fields
            if value.message_type is None:
                items[_value(rng, key)] = _value(rng, value)
            else:
                random_message(rng, items[_value(rng, key)])


def _value(rng: random.Random, field: Any) -> Any:
    bits = {F.CPPTYPE_INT32: 32, F.CPPTYPE_UINT32: 32, F.CPPTYPE_INT64: 64, F.CPPTYPE_UINT64: 64}.get(field.cpp_type)
    if bits:
        signed = field.cpp_type in (F.CPPTYPE_INT32, F.CPPTYPE_INT64)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return rng.choice([0, 1, low, high, 127, 128, 300, rng.randrange(low, high + 1), rng.randrange(0, 1000)])
    if field.cpp_type in (F.CPPTYPE_DOUBLE, F.CPPTYPE_FLOAT):
        return rng.choice([0.0, -0.0, 1.5, math.inf, math.nan, rng.randrange(-1000, 1000) / 8])
    if field.cpp_type == F.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.cpp_type == F.CPPTYPE_ENUM:
        known = [value.number for value in field.enum_type.values]
        return rng.choice(known if field.enum_type.is_closed else [*known, 7, -1000])
    if field.type == F.TYPE_BYTES:
        return rng.randbytes(rng.choice([0, 1, 5, 200]))
    return "".join(
        rng.choice([*string.ascii_letters, "é", "日", "𝄞", "\0"]) for _ in range(rng.choice([0, 1, 5, 40, 200]))
    )


def encodings(rng: random.Random, kind: Any) -> bytes:
    """A payload that is a message of this class, not always as the library writes one: fields twice, messages in pieces, unknown fields."""
    pieces = [random_message(rng, kind()).SerializePartialToString() for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    payload = b"".join(pieces)
    unknown = [b"\xf8\x7f\x07", b"\xfa\x7f\x02ab", b"\xfd\x7f1234", b"\xf9\x7f12345678", b"\xfb\x7f\x08\x01\xfc\x7f"]
    while rng.random() < 0.3:
        payload = rng.choice([payload + rng.choice(unknown), rng.choice(unknown) + payload])
    return payload


# -- what the library reads


def library_row(kind: Any, payload: bytes | None) -> dict[str, Any] | None:
    """The row of a payload as google.protobuf reads it, through its objects; None: it is a bad row."""
    if payload is None:
        return None
    made = kind()
    try:
        made.ParseFromString(payload)
        return _row(made) if made.IsInitialized() else None
    except (DecodeError, UnicodeDecodeError, _OutOfRange):
        return None


class _OutOfRange(Exception):
    """A time is outside of the ranges that google.protobuf states."""


def _row(made: Any) -> dict[str, Any]:
    return {field.name: _column(made, field) for field in made.DESCRIPTOR.fields}


def _column(made: Any, field: Any) -> Any:
    if field.is_repeated:
        items = getattr(made, field.name)
        if field.message_type is None or not field.message_type.GetOptions().map_entry:
            return [_plain(field, item) for item in items]
        key, value = field.message_type.fields
        return sorted([(_plain(key, each), _plain(value, items[each])) for each in items], key=lambda pair: pair[0])
    if field.has_presence and not made.HasField(field.name):
        return None
    return _plain(field, getattr(made, field.name))


def _plain(field: Any, value: Any) -> Any:
    if field.type == F.TYPE_ENUM:
        known = field.enum_type.values_by_number.get(value)
        return str(value) if known is None else known.name
    if field.message_type is None:
        return _comparable(value)
    name = field.message_type.full_name
    if name == "google.protobuf.Timestamp":
        if not -62135596800 <= value.seconds <= 253402300799 or not 0 <= value.nanos < 10**9:
            raise _OutOfRange
        return EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    if name == "google.protobuf.Duration":
        wrong = abs(value.seconds) > 315576000000 or abs(value.nanos) >= 10**9
        if wrong or value.seconds * value.nanos < 0:
            raise _OutOfRange
        return timedelta(seconds=value.seconds, microseconds=math.trunc(value.nanos / 1000))
    return _comparable(value.value) if name.startswith("google.protobuf.") else _row(value)


def _comparable(value: Any) -> Any:
    """Floats with their sign, and NaN as a value that is equal to itself."""
    return repr(value) if isinstance(value, float) else value


def plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as `library_row` has them."""
    return [
        {field.name: _of_arrow(value, field.type) for field, value in zip(batch.schema, row.values(), strict=True)}
        for row in batch.to_pylist()
    ]


def _of_arrow(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_map(kind):
        pairs = [(each, _of_arrow(item, kind.item_type)) for each, item in value]
        return sorted(pairs, key=lambda pair: pair[0])
    if pa.types.is_list(kind):
        return [_of_arrow(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {name: _of_arrow(item, kind.field(name).type) for name, item in value.items()}
    return _comparable(value)


def payload_array(payloads: Sequence[bytes | None]) -> Any:
    """The payloads as records have them."""
    return pa.record_batch([pa.array(payloads, pa.binary())], names=["payload"])
