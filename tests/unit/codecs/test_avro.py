"""Avro's schemas as columns, and what becomes of payloads that no writer should have written."""

import json
from datetime import time
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from sabot import Avro, Protobuf, Registry
from sabot.codecs.avro import AvroCodec, AvroEncoder, arrow_schema, avro_schema, with_references
from sabot.codecs.avro.schema import parsed_record
from sabot.errors import UnknownSchema, UserError


def record(*fields: Any, name: str = "R", **more: Any) -> dict[str, Any]:
    """A record of fields (name, type) or (name, type, default), or dicts."""
    made = [
        each if isinstance(each, dict) else dict(zip(("name", "type", "default"), each, strict=False))
        for each in fields
    ]
    return {"type": "record", "name": name, "fields": made, **more}


def payloads(*values: bytes | None) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.binary())], names=["payload"])


def rows(codec: AvroCodec, *values: bytes | None) -> list[Any]:
    """The good rows, all of which they are."""
    data, bad = codec.decode(payloads(*values))
    assert bad == []
    data.validate(full=True)
    return data.to_pylist()


def reason(codec: AvroCodec, value: bytes | None) -> str:
    """Why a payload is bad, between two that are not looked at."""
    data, bad = codec.decode(payloads(b"", value, b""))
    data.validate(full=True)
    (found,) = (each for each in bad if each.row == 1)
    return found.reason


def varint(number: int) -> bytes:
    """A number as zigzag and base 128."""
    rest, made = (number << 1) ^ (number >> 63), bytearray()
    while rest > 127:
        made.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*made, rest])


def logical(base: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": base, "logicalType": name, **more}


# -- schemas as columns ---------------------------------------------------------------------------------------------------

TYPES: list[tuple[Any, pa.DataType]] = [
    ("null", pa.null()),
    ("boolean", pa.bool_()),
    ("int", pa.int32()),
    ("long", pa.int64()),
    ("float", pa.float32()),
    ("double", pa.float64()),
    ("bytes", pa.binary()),
    ("string", pa.string()),
    (["null", "int"], pa.int32()),
    (logical("int", "date"), pa.date32()),
    (logical("int", "time-millis"), pa.time32("ms")),
    (logical("long", "time-micros"), pa.time64("us")),
    (logical("long", "timestamp-millis"), pa.timestamp("ms", "UTC")),
    (logical("long", "timestamp-micros"), pa.timestamp("us", "UTC")),
    (logical("long", "timestamp-nanos"), pa.timestamp("ns", "UTC")),
    (logical("long", "local-timestamp-millis"), pa.timestamp("ms")),
    (logical("long", "local-timestamp-micros"), pa.timestamp("us")),
    (logical("long", "local-timestamp-nanos"), pa.timestamp("ns")),
    (logical("string", "uuid"), pa.string()),
    ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, pa.string()),
    (logical("bytes", "decimal", precision=9, scale=2), pa.decimal128(9, 2)),
    (logical("bytes", "decimal", precision=39), pa.decimal256(39, 0)),
    (
        {"type": "fixed", "name": "D", "size": 4, "logicalType": "decimal", "precision": 9, "scale": 2},
        pa.decimal128(9, 2),
    ),
    ({"type": "fixed", "name": "F", "size": 12, "logicalType": "duration"}, pa.binary(12)),
    (logical("string", "date"), pa.string()),  # a logical type that does not fit its type is ignored
    (logical("bytes", "decimal", precision=2, scale=3), pa.binary()),
    ({"type": "enum", "name": "E", "symbols": ["A"]}, pa.string()),
    ({"type": "array", "items": "int"}, pa.list_(pa.field("item", pa.int32(), False))),
    ({"type": "map", "values": ["null", "int"]}, pa.map_(pa.string(), pa.int32())),
    (record(("x", ["string", "null"]), name="Inner"), pa.struct([pa.field("x", pa.string())])),
]


@pytest.mark.parametrize(("said", "kind"), TYPES, ids=lambda each: str(each)[:40])
def test_a_type_has_its_column(said: Any, kind: pa.DataType) -> None:
    assert arrow_schema(record(("a", said))).field("a").equals(pa.field("a", kind, "null" in said))


def test_a_schema_is_a_dict_a_text_or_the_path_of_a_file(tmp_path: Path) -> None:
    said = record(("a", "int"))
    path = tmp_path / "r.avsc"
    path.write_text(json.dumps(said))
    assert (
        arrow_schema(said)
        == arrow_schema(json.dumps(said))
        == arrow_schema(path)
        == pa.schema([pa.field("a", pa.int32(), False)])
    )


def test_a_named_type_is_used_again_by_its_name_within_its_namespace() -> None:
    inner = record(("n", "int"), name="Inner")
    said = record(("a", inner), ("b", "Inner"), ("c", ["null", "org.x.Inner"]), name="Outer", namespace="org.x")
    assert {field.type for field in arrow_schema(said)} == {pa.struct([pa.field("n", pa.int32(), False)])}


BILLIONS = record(("a", "int"), name="R0")
for level in range(1, 40):
    BILLIONS = record(("a", BILLIONS), ("b", f"R{level - 1}"), name=f"R{level}")
DEEP: Any = "int"
for _ in range(5000):
    DEEP = {"type": "array", "items": DEEP}

REFUSED: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("string", "not JSON"),
    ('"string"', "not of a record"),
    (Path("there-is-none.avsc"), "cannot be read"),
    (["null", record()], "not of a record"),
    ({"type": "record", "name": "R"}, "list of fields"),
    ({"type": "record", "fields": []}, "not a name for a type"),
    (record(name="1R"), "not a name for a type"),
    (record(("a b", "int")), "a name of its own"),
    (record(("a", "int"), ("a", "int")), "a name of its own"),
    (record({"name": "a"}), "a: the field has no type"),
    (record(("a", "integer")), "a: 'integer' is not an Avro type"),
    (record(("a", 5)), "5 is not an Avro type"),
    (record(("a", [])), "union"),
    (record(("a", ["int", "int"])), "union"),
    (record(("a", ["null", ["int"]])), "union"),
    (record(("a", ["int", "string"])), "a union of int, string has no column type"),
    (record(("a", {"type": "array", "items": ["int", "string"]})), r"field a\[\]: "),
    (record(("a", {"type": "array"})), "has no 'items'"),
    (record(("a", {"type": "fixed", "name": "F", "size": -1})), "is not a size"),
    (record(("a", {"type": "fixed", "name": "F", "size": 0})), "no bytes"),
    (record(("a", {"type": "fixed", "name": "F", "size": 2**31 - 1})), "2147483647 bytes has no column type"),
    (record(("a", {"type": "enum", "name": "E", "symbols": ["A", "A"]})), "different names"),
    (record(("a", {"type": "enum", "name": "E", "symbols": ["A"], "default": "B"})), "not a symbol"),
    (record(("a", record(name="R"))), "defined twice"),
    (record(("a", logical("bytes", "decimal", precision=77))), "more than 76 digits"),
    (record(("next", ["null", "R"])), "'R' contains itself"),
    (BILLIONS, "more than 10000 types"),
    (record(("a", DEEP)), "nested deeper"),
]


@pytest.mark.parametrize(("said", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_no_schema_of_columns_is_refused(said: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        arrow_schema(said)


def test_columns_are_those_asked_for_in_their_order() -> None:
    said = record(("a", "int"), ("b", "string"), ("c", ["int", "string"]))
    codec = AvroCodec(said, columns=["b", "a"])
    assert codec.schema.names == ["b", "a"]
    assert rows(codec, b"\x02\x02x\x00\x08", b"\x04\x02y\x02\x02z") == [{"b": "x", "a": 1}, {"b": "y", "a": 2}]
    with pytest.raises(UserError, match="no field 'd'"):
        AvroCodec(said, columns=["d"])
    with pytest.raises(UserError, match="is named twice"):
        AvroCodec(said, columns=["a", "a"])


# -- evolution ------------------------------------------------------------------------------------------------------------

INT, LONG, FLOAT = varint(-3), varint(2**40), b"\x00\x00\xc0\x3f"
PROMOTED: list[tuple[str, str, bytes, Any]] = [
    ("int", "long", INT, -3),
    ("int", "float", INT, -3.0),
    ("int", "double", INT, -3.0),
    ("long", "float", LONG, 2.0**40),
    ("long", "double", LONG, 2.0**40),
    ("float", "double", FLOAT, 1.5),
    ("string", "bytes", b"\x04hi", b"hi"),
    ("bytes", "string", b"\x04hi", "hi"),
]


@pytest.mark.parametrize(("old", "new", "value", "expected"), PROMOTED, ids=lambda each: str(each))
def test_a_type_is_promoted_here_and_in_unions(old: str, new: str, value: bytes, expected: Any) -> None:
    for writer, reader, payload in (
        (old, new, value),
        (old, ["null", new], value),
        (["null", old], ["null", new], b"\x02" + value),
        ([old, "null"], ["null", new], b"\x00" + value),
        (["boolean", old], new, b"\x02" + value),
        ({"type": "array", "items": old}, {"type": "array", "items": new}, b"\x02" + value + b"\0"),
    ):
        codec = AvroCodec(record(("a", reader)), writer_schema=record(("a", writer)))
        (row,) = rows(codec, payload)
        assert row["a"] in (expected, [expected])


E_ABC = {"type": "enum", "name": "E", "symbols": ["A", "B", "C"]}
E_AC = {"type": "enum", "name": "E", "symbols": ["C", "A"]}
MISFITS: list[tuple[Any, Any, str]] = [
    (record(("a", "long")), record(("a", "int")), "the writer's long is not read as int"),
    (record(("a", "string")), record(("a", "int")), "the writer's string is not read as int"),
    (record(("a", ["null", "string"])), record(("a", ["null", "int"])), "the writer's string is not read as int"),
    (record(("a", "null")), record(("a", "int")), "the writer has null"),
    (record(), record(("a", "int")), "field a: the writer does not have it, and it has no default"),
    (record(), record(("a", "int", "x")), "field a: its default is 'x', which is not a value of type int"),
    (
        record(("a", record(name="In"))),
        record(("a", record(("b", "int"), name="In"))),
        r"field a\.b: the writer does not have it",
    ),
    (record(name="S"), record(name="R"), "the writer's record 'S' is not the reader's 'R'"),
    (
        record(("a", logical("long", "timestamp-millis"))),
        record(("a", logical("long", "timestamp-micros"))),
        "timestamp-micros",
    ),
    (
        record(("a", logical("bytes", "decimal", precision=4))),
        record(("a", logical("bytes", "decimal", precision=5))),
        "decimal",
    ),
    (record(("a", logical("int", "date"))), record(("a", logical("long", "timestamp-millis"))), "date"),
    (
        record(("a", {"type": "fixed", "name": "F", "size": 2})),
        record(("a", {"type": "fixed", "name": "F", "size": 3})),
        r"fixed\(2\) is not read as fixed\(3\)",
    ),
]


@pytest.mark.parametrize(("writer", "reader", "words"), MISFITS, ids=lambda each: str(each)[-30:])
def test_schemas_that_do_not_fit_are_refused_before_any_payload(writer: Any, reader: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        AvroCodec(reader, writer_schema=writer)


WRONG_DEFAULTS: list[tuple[Any, Any]] = [
    ("int", float("inf")),  # 1e999 in a registry's JSON
    ("long", float("nan")),
    ("int", 2**31),
    ("long", 0.5),
    ("double", []),
    ("float", {}),
    (["null", "double"], [1]),
    ("string", "\ud800"),
    ({"type": "map", "values": "int"}, {"\ud800": 1}),
    ({"type": "fixed", "name": "F", "size": 2}, "\u0100a"),
    (logical("int", "time-millis"), -5),
    (logical("long", "time-micros"), 86_400_000_000),
    (logical("bytes", "decimal", precision=2), "\x00\x64"),
    (logical("bytes", "decimal", precision=2), ""),
    ({"type": "fixed", "name": "F", "size": 2, "logicalType": "decimal", "precision": 2}, "\xff\x9c"),
]


@pytest.mark.parametrize(("kind", "default"), WRONG_DEFAULTS, ids=repr)
def test_a_default_that_is_no_value_of_its_type_is_named_where_it_is_needed(kind: Any, default: Any) -> None:
    """A registry takes such schemas from clients that do not check them: a record must not end the app by a bare TypeError."""
    reader = json.dumps(record(("b", kind, default)))
    assert AvroCodec(reader).schema.names == ["b"], "a writer that has the field needs no default"
    with pytest.raises(UserError, match="field b: its default is "):
        AvroCodec(reader, writer_schema=record())
    codec = AvroCodec(reader, schema_of=lambda id: json.dumps(record()))
    assert "its default is" in reason(codec, b"\0\0\0\0\1")


def test_a_default_at_the_border_of_its_logical_type_is_read() -> None:
    reader = record(
        ("a", logical("int", "time-millis"), 86_399_999),
        ("b", logical("bytes", "decimal", precision=2), "\x00\x63"),
        ("c", {"type": "fixed", "name": "F", "size": 2, "logicalType": "decimal", "precision": 2}, "\xff\x9d"),
        ("d", ["string", "null"], None),
    )
    (row,) = rows(AvroCodec(reader, writer_schema=record()), b"")
    assert row == {"a": time(23, 59, 59, 999_000), "b": Decimal(99), "c": Decimal(-99), "d": None}


def test_a_namespace_of_null_is_none() -> None:
    """Some generators of schemas write it, and Java reads it so."""
    inner = record(("x", "int"), name="In", namespace=None)
    said = record(("a", inner), ("b", "In"), name="R", namespace="shop")
    assert parsed_record(said).name == "shop.R"
    assert rows(AvroCodec(said), b"\x02\x04") == [{"a": {"x": 1}, "b": {"x": 2}}]
    whole = with_references(
        json.dumps(record(("a", "shop.In"), namespace="shop")), [json.dumps({**inner, "name": "shop.In"})]
    )
    assert rows(AvroCodec(whole), b"\x02") == [{"a": {"x": 1}}]


def test_fields_are_found_by_name_and_by_alias_and_the_rest_is_passed_over_or_has_its_default() -> None:
    inner = record(("p", "string"), ("q", "int"), name="In")
    writer = record(
        ("gone", {"type": "map", "values": {"type": "array", "items": ["null", inner]}}),
        ("old", "int"),
        ("any", ["null", "int", {"type": "fixed", "name": "F", "size": 3}, "string"]),
        ("in", "In"),
        ("flags", {"type": "array", "items": "boolean"}),
        ("last", "string"),
    )
    reader = record(
        ("last", "string"),
        {"name": "new", "type": "long", "aliases": ["old"]},
        {"name": "in", "type": record(("q", "int"), ("r", ["null", "string"], None), name="In2", aliases=["In"])},
        ("more", {"type": "array", "items": record(("x", "double", 0.5), name="X")}, [{}, {"x": 2}]),
        ("text", "string", "dé"),
        ("raw", "bytes", "\u00ff"),
        ("by", {"type": "map", "values": "int"}, {"k": 7}),
        ("kind", {"type": "enum", "name": "K", "symbols": ["A", "B"]}, "B"),
        ("fix", {"type": "fixed", "name": "Fix", "size": 2}, "ab"),
        ("nan", "double", "NaN"),
        ("maybe", ["null", "int"], None),
    )
    gone = varint(1) + b"\x02a" + varint(-2) + varint(5) + b"\x02\x02z\x0e\x00" + b"\0\0"
    flags = varint(-2) + varint(2) + b"\x01\x00" + varint(1) + b"\x01" + b"\0"
    payload = gone + varint(-9) + b"\x04abc" + b"\x04hi\x0a" + flags + b"\x08done"
    expected = {
        "last": "done",
        "new": -9,
        "in": {"q": 5, "r": None},
        "more": [{"x": 0.5}, {"x": 2.0}],
        "text": "dé",
        "raw": b"\xff",
        "by": [("k", 7)],
        "kind": "B",
        "fix": b"ab",
        "nan": float("nan"),
        "maybe": None,
    }
    codec = AvroCodec(reader, writer_schema=writer)
    assert repr(rows(codec, payload, payload)) == repr([expected] * 2)
    assert all(codec.decode(payloads(payload[:end]))[1] for end in range(len(payload)))


def test_a_symbol_that_the_reader_does_not_have_is_its_default_or_makes_a_bad_row() -> None:
    writer = record(("a", E_ABC))
    assert rows(AvroCodec(record(("a", {**E_AC, "default": "C"})), writer_schema=writer), b"\x00", b"\x02") == [
        {"a": "A"},
        {"a": "C"},
    ]
    assert reason(AvroCodec(record(("a", E_AC)), writer_schema=writer), b"\x02") == (
        "field a: the reader's schema has no symbol B at byte 0"
    )


def test_a_branch_that_the_reader_does_not_have_makes_a_bad_row() -> None:
    codec = AvroCodec(record(("a", "long")), writer_schema=record(("a", ["null", "int", "string"])))
    assert rows(codec, b"\x02\x06") == [{"a": 3}]
    assert "the writer has null" not in reason(codec, b"\x00")
    assert reason(codec, b"\x00").startswith("field a: the value is a null")
    assert reason(codec, b"\x04\x02x").startswith("field a: the value is a string")


def test_decimals_that_are_alike_are_read_from_bytes_and_from_fixed() -> None:
    of_bytes = logical("bytes", "decimal", precision=5, scale=2)
    of_fixed = {"type": "fixed", "name": "D", "size": 6, "logicalType": "decimal", "precision": 5, "scale": 2}
    for writer, payload in (
        (of_bytes, b"\x04\xff\x85"),
        (of_fixed, b"\xff\xff\xff\xff\xff\x85"),
        (of_bytes, b"\x50" + b"\xff" * 39 + b"\x85"),
    ):
        for reader in (of_bytes, of_fixed):
            assert rows(AvroCodec(record(("a", reader)), writer_schema=record(("a", writer))), payload) == [
                {"a": Decimal("-1.23")}
            ]


# -- payloads that are bad --------------------------------------------------------------------------------------------------

STRINGS = {"type": "array", "items": "string"}
NULLS = {"type": "array", "items": "null"}
EMPTY = {"type": "array", "items": record(name="Empty")}
HUGE = 2**62
BAD: list[tuple[Any, bytes, str]] = [
    ("int", b"", "ends too early at byte 0"),
    ("int", varint(2**31), "out of range for an int"),
    ("long", b"\x80" * 9 + b"\x02", "more than 64 bits"),
    ("long", b"\xff" * 12, "more than 64 bits"),
    ("long", b"\xff" * 9, "ends too early at byte 9"),
    ("int", b"\x02\x02", "there are bytes after the end of the record at byte 1"),
    ("boolean", b"\x02", "a boolean is neither 0 nor 1"),
    ("string", varint(-1), "a length is negative"),
    ("string", varint(HUGE), "ends too early"),
    ("bytes", varint(-HUGE), "a length is negative"),
    ("string", b"\x04\xc3\x28", "invalid UTF-8"),
    ("string", varint(20) + b"a" * 18 + b"\xed\xa0", "invalid UTF-8"),
    (["null", "int"], b"\x04\x00", "no such branch"),
    (["null", "int"], b"\x01", "no such branch"),
    (E_ABC, b"\x06", "no such symbol"),
    (E_ABC, b"\x01", "no such symbol"),
    (logical("bytes", "decimal", precision=2), b"\x02\x64", "more digits than its type"),
    (logical("bytes", "decimal", precision=2), b"\x04\xff\x9c", "more digits than its type"),
    (logical("bytes", "decimal", precision=2), b"\x00", "a decimal has no bytes"),
    (logical("bytes", "decimal", precision=76), varint(40) + b"\x01" + b"\0" * 39, "more digits than its type"),
    (logical("int", "time-millis"), varint(86_400_000), "not within a day"),
    (logical("long", "time-micros"), varint(-1), "not within a day"),
    (STRINGS, varint(HUGE) + b"\x02a", "more items than fit into the payload"),
    (STRINGS, varint(-(2**63)) + varint(2) + b"\x02a\x00", "more items than fit into the payload"),
    (STRINGS, varint(-1) + varint(-2) + b"\x02a\x00", "a length is negative"),
    (STRINGS, varint(-1) + varint(HUGE) + b"\x02a\x00", "ends too early"),
    (STRINGS, varint(-1) + varint(1) + b"\x02a\x00", "not the length that it states"),
    (NULLS, varint(10**6) + b"\0", "more items than fit into the payload"),
    (EMPTY, varint(HUGE) + b"\0", "more items than fit into the payload"),
    (EMPTY, varint(3) * 10**4 + b"\0", "more items than fit into the payload"),
    ({"type": "map", "values": "null"}, varint(HUGE) + b"\x02a\0", "more items than fit into the payload"),
    ({"type": "map", "values": "null"}, varint(1) + b"\x02\xff\0", "invalid UTF-8"),
    ({"type": "fixed", "name": "F", "size": 9}, b"12345678", "ends too early"),
]


@pytest.mark.parametrize(
    ("kind", "payload", "words"), BAD, ids=[f"{number} {words}" for number, (_, _, words) in enumerate(BAD)]
)
def test_a_damaged_payload_is_a_bad_row_that_says_where(kind: Any, payload: bytes, words: str) -> None:
    assert words in reason(AvroCodec(record(("a", kind))), payload)


@pytest.mark.parametrize("kind", [NULLS, EMPTY], ids=["nulls", "empty records"])
def test_items_without_bytes_are_as_many_as_the_payload_has_bytes_at_most(kind: Any) -> None:
    """Else a payload of some bytes would become millions of rows; and passed over, an endless loop."""
    said = record(("a", kind), ("b", "string"))
    few = varint(5) + b"\0" + b"\x08abcd"
    (row,) = rows(AvroCodec(said), few)
    assert len(row["a"]) == 5
    for columns in (None, ["b"]):
        assert "more items" in reason(AvroCodec(said, columns=columns), varint(8) + b"\0" + b"\x08abcd")


def test_a_null_payload_is_a_bad_row() -> None:
    assert reason(AvroCodec(record(("a", "int"))), None) == "the payload is null"


def test_a_bad_row_leaves_nothing_in_nested_columns() -> None:
    kind = {
        "type": "array",
        "items": record(("s", ["null", "string"]), ("m", {"type": "map", "values": "string"}), name="In"),
    }
    codec = AvroCodec(record(("a", kind), ("b", "boolean")))
    good = varint(2) + b"\x02\x02x" + varint(1) + b"\x02k\x02v\0" + b"\x00\x00" + b"\0" + b"\x01"
    data, bad = codec.decode(payloads(good, good[:-1] + b"\x07", good, good[:-1], good))
    data.validate(full=True)
    assert [each.row for each in bad] == [1, 3]
    assert data.to_pylist() == [{"a": [{"s": "x", "m": [("k", "v")]}, {"s": None, "m": []}], "b": True}] * 3
    assert data.column(0).values.field("m").offset == 0


# -- Confluent's wire format --------------------------------------------------------------------------------------------------


def test_payloads_of_several_writers_are_read_in_their_order() -> None:
    asked: list[int] = []

    def schema_of(id: int) -> str:
        asked.append(id)
        if id not in known:
            raise UnknownSchema(id, "it was never registered")
        return known[id]

    known = {
        1: json.dumps(record(("a", "int"))),
        2: json.dumps(record(("b", "string"), ("a", "long"))),
        3: json.dumps(record(("b", "int"))),
    }
    known[4] = "nonsense"
    codec = AvroCodec(record(("a", "long")), schema_of=schema_of)
    some = [
        *(
            b"\0\0\0\0\x01\x02",
            b"\0\0\0\0\x02\x02x\x04",
            b"\0\0\0\x01\x00\x02",
            b"\0\0\0\0\x01\x06",
            b"\x01\0\0\0\x01\x02",
            b"\0\0\0\0",
        ),
        *(None, b"\0\0\0\0\x02\x02x", b"\0\0\0\0\x03\x02", b"\0\0\0\0\x04\x02", b"\0\0\0\0\x02\x02y\x08"),
    ]
    data, bad = codec.decode(payloads(*some))
    assert data.column("a").to_pylist() == [1, 2, 3, 4]
    reasons = {each.row: each.reason for each in bad}
    assert list(reasons) == [2, 4, 5, 6, 7, 8, 9]
    assert reasons[2] == "schema id 256: it was never registered"
    assert reasons[4] == reasons[5] == "the payload does not begin with the id of a schema: a byte 0, and 4 bytes"
    assert reasons[6] == "the payload is null"
    assert reasons[7] == "field a: the payload ends too early at byte 7"
    assert "field a: the writer does not have it" in reasons[8]
    assert "not JSON" in reasons[9]
    codec.decode(payloads(*some))
    assert asked == [1, 2, 256, 3, 4, 256], "only an unknown id is asked for again"


def test_what_a_registry_raises_stops_the_batch_which_may_come_again() -> None:
    answers: list[Any] = [ConnectionError("down"), json.dumps(record(("a", "int")))]

    def schema_of(id: int) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    codec = AvroCodec(record(("a", "int")), schema_of=schema_of)
    with pytest.raises(ConnectionError):
        codec.decode(payloads(b"\0\0\0\0\x01\x02"))
    assert rows(codec, b"\0\0\0\0\x01\x02") == [{"a": 1}]


def test_payloads_with_an_id_are_written_and_read() -> None:
    said = record(("a", "int"), ("s", ["null", "string"]))
    batch = pa.record_batch({"a": pa.array([1, 2], pa.int32()), "s": ["x", None]})
    written = AvroEncoder(said, schema_id=258).encode(batch)
    assert written.to_pylist() == [b"\0\0\0\x01\x02\x02\x02\x02x", b"\0\0\0\x01\x02\x04\x00"]
    codec = AvroCodec(said, schema_of={258: json.dumps(said)}.__getitem__)
    assert rows(codec, *written.to_pylist()) == batch.to_pylist()
    with pytest.raises(UserError, match="not the id of a schema"):
        AvroEncoder(said, schema_id=-1)


# -- writing ------------------------------------------------------------------------------------------------------------------

WRITTEN: list[tuple[Any, pa.Array, list[Any]]] = [
    ("int", pa.array([1, -1], pa.int64()), [1, -1]),
    ("long", pa.array([7], pa.uint8()), [7]),
    ("double", pa.array([1.5], pa.float32()), [1.5]),
    ("double", pa.array([3], pa.int32()), [3.0]),
    ("float", pa.array([3], pa.int8()), [3.0]),
    ("string", pa.array([b"x"]), ["x"]),
    ("string", pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    ("bytes", pa.array(["x"]), [b"x"]),
    ({"type": "fixed", "name": "F", "size": 2}, pa.array([b"ab"]), [b"ab"]),
    (E_ABC, pa.array(["C", "A"]), ["C", "A"]),
    (
        {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"},
        pa.array(["00000000-0000-4000-8000-00000000000A"]),
        None,
    ),
    (logical("long", "timestamp-millis"), pa.array([-1500], pa.timestamp("us")), [-2]),
    (logical("long", "timestamp-micros"), pa.array([-2], pa.timestamp("s", "UTC")), [-2_000_000]),
    (logical("long", "timestamp-millis"), pa.array([5], pa.int64()), [5]),
    (logical("int", "date"), pa.array([86_400_000 * 3], pa.date64()), [3]),
    (logical("int", "time-millis"), pa.array([1_999], pa.time64("us")), [1]),
    (logical("long", "time-micros"), pa.array([2], pa.time32("s")), [2_000_000]),
    (logical("long", "time-nanos"), pa.array([86_399_999_999_999], pa.time64("ns")), [86_399_999_999_999]),
    (["null", "int"], pa.nulls(2), [None, None]),
]


@pytest.mark.parametrize(("kind", "column", "expected"), WRITTEN, ids=lambda each: str(each)[:40])
def test_a_column_is_written_as_a_type_that_can_hold_it(
    kind: Any, column: pa.Array, expected: list[Any] | None
) -> None:
    said = record(("a", kind))
    written = AvroEncoder(said).encode(pa.record_batch([column], names=["a"]))
    data, bad = AvroCodec(said).decode(pa.record_batch([written], names=["payload"]))
    assert bad == []
    found = data.column("a")
    if pa.types.is_temporal(found.type):
        found = found.cast(pa.int32() if found.type.bit_width == 32 else pa.int64())
    assert found.to_pylist() == (["00000000-0000-4000-8000-00000000000a"] if expected is None else expected)


UNWRITABLE: list[tuple[Any, pa.Array, str]] = [
    ("int", pa.array([1, 2**31]), "row 1, column 'a' .* out of range"),
    ("long", pa.array([2**64 - 1], pa.uint64()), "row 0, column 'a' .* out of range"),
    ("int", pa.array([1, None]), "row 1, column 'a' .* is null, which the schema does not allow"),
    ("string", pa.array([b"\xff"]), "is not valid UTF-8"),
    (E_ABC, pa.array(["A", "D"]), "row 1, .* not a symbol of the enum"),
    ({"type": "fixed", "name": "F", "size": 2}, pa.array([b"abc"]), "has 3 bytes instead of 2"),
    ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, pa.array(["0"]), "is not a UUID"),
    ({"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}, pa.array(["x" * 36]), "is not a UUID"),
    (
        {"type": "fixed", "name": "D", "size": 1, "logicalType": "decimal", "precision": 9},
        pa.array([Decimal(127), Decimal(128)], pa.decimal128(9, 0)),
        "row 1, .* needs more than 1 bytes",
    ),
    (logical("long", "timestamp-nanos"), pa.array([2**60], pa.timestamp("s")), "out of range"),
    (logical("int", "time-millis"), pa.array([0, 86_400_000]), "row 1, column 'a' .* out of range"),
    (logical("long", "time-micros"), pa.array([-1], pa.time64("us")), "row 0, column 'a' .* out of range"),
    ({"type": "array", "items": "int"}, pa.array([[1], [1, None]]), r"row 1, column 'a\[\]' .* is null"),
    (record(("x", "int"), name="In"), pa.array([{"x": 1}, {"x": None}]), r"row 1, column 'a\.x' .* is null"),
    ("int", pa.array([1.5]), "of type double is not written as int"),
    ("double", pa.array([1]), "of type int64 is not written as double .*cast"),
    ("string", pa.array([1]), "not written as string"),
    (["int", "string"], pa.array([1]), "a union of int, string is not written"),
    (logical("long", "timestamp-micros"), pa.array([1]), "not written as long"),
    (logical("bytes", "decimal", precision=5, scale=2), pa.array([Decimal("1.5")]), "not written as bytes"),
]


@pytest.mark.parametrize(("kind", "column", "words"), UNWRITABLE, ids=[words for _, _, words in UNWRITABLE])
def test_a_value_or_column_that_the_schema_cannot_hold_is_refused(kind: Any, column: pa.Array, words: str) -> None:
    encoder = AvroEncoder(record(("a", kind)))
    with pytest.raises(UserError, match=words):
        encoder.encode(pa.record_batch([column], names=["a"]))


def test_columns_are_found_by_name_and_a_field_without_one_gets_its_default() -> None:
    said = record(("a", "int"), ("b", ["null", "string"], None), ("c", {"type": "array", "items": "int"}, [1]))
    encoder = AvroEncoder(said)
    written = encoder.encode(pa.record_batch({"b": ["x"], "a": pa.array([1], pa.int32())}))
    assert rows(AvroCodec(said), *written.to_pylist()) == [{"a": 1, "b": "x", "c": [1]}]
    again = encoder.another().encode(pa.record_batch({"a": pa.array([2], pa.int32())}))
    assert rows(AvroCodec(said), *again.to_pylist()) == [{"a": 2, "b": None, "c": [1]}]
    with pytest.raises(UserError, match="column 'a' is missing"):
        encoder.encode(pa.record_batch({"b": ["x"]}))
    with pytest.raises(UserError, match="column 'd' is not in the Avro schema"):
        encoder.encode(pa.record_batch({"a": [1], "d": [2]}))


def test_slices_of_nested_columns_are_written_as_they_are_read() -> None:
    inner = pa.struct([("n", pa.int64()), ("tags", pa.list_(pa.string()))])
    table = pa.table(
        {
            "in": pa.array([{"n": n, "tags": ["t"] * n} if n % 4 else None for n in range(12)], inner),
            "map": pa.array(
                [[(f"k{k}", k) for k in range(n % 3)] for n in range(12)], pa.map_(pa.string(), pa.int64())
            ),
        }
    )
    said = avro_schema(table.schema, "R")
    for start, length in ((0, 12), (3, 5), (11, 1), (5, 0)):
        batch = table.slice(start, length).to_batches()[0] if length else table.to_batches()[0].slice(5, 0)
        assert rows(AvroCodec(said), *AvroEncoder(said).encode(batch).to_pylist()) == batch.to_pylist()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (pa.duration("s"), "no type for duration"),
        (pa.decimal128(5, -2), "no type for decimal"),
    ],
    ids=str,
)
def test_a_column_that_avro_has_no_type_for_is_refused(kind: pa.DataType, words: str) -> None:
    with pytest.raises(UserError, match=words):
        avro_schema(pa.schema([("a", kind)]), "R")


def test_records_and_fixed_types_of_columns_have_names_of_their_own() -> None:
    """The columns a.b and a_b would both be R_a_b."""
    inner = pa.struct([("n", pa.int32())])
    columns = pa.schema([("a", pa.struct([("b", inner), ("c", pa.binary(2))])), ("a_b", inner), ("a_c", pa.binary(3))])
    assert arrow_schema(avro_schema(columns, "R")) == columns


def test_names_that_avro_does_not_allow_are_refused() -> None:
    with pytest.raises(UserError, match="column 'a b'"):
        avro_schema(pa.schema([("a b", pa.int64())]), "R")
    with pytest.raises(UserError, match="'1R' is not a name"):
        avro_schema(pa.schema([("a", pa.int64())]), "1R")


def test_a_nullable_record_whose_one_field_is_nullable_is_passed_over_whole() -> None:
    """Both unions have a number of a branch; one of them was read as the beginning of what follows."""
    inner = {"type": "record", "name": "Place", "fields": [{"name": "lat", "type": ["null", "double"]}]}
    fields = [{"name": "id", "type": "long"}, {"name": "place", "type": ["null", inner]}, {"name": "n", "type": "int"}]
    schema = {"type": "record", "name": "Row", "fields": fields}
    rows = [{"id": n, "place": place, "n": n} for n, place in enumerate([{"lat": 1.5}, {"lat": None}, None])]
    payloads = AvroEncoder(schema).encode(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(schema)))
    batch = pa.RecordBatch.from_arrays([payloads], names=["payload"])
    found, bad = AvroCodec(schema, columns=["id", "n"]).decode(batch)
    assert (found.to_pylist(), bad) == ([{"id": n, "n": n} for n in range(3)], [])


@pytest.mark.parametrize("given", ["http://ada:pw@localhost:8081", 8081, Registry], ids=["address", "port", "class"])
def test_a_registry_that_is_an_address_is_refused_with_the_registry_to_write(given: Any) -> None:
    """It was an AttributeError in the middle of a start."""
    for make in (partial(Avro, registry=given), partial(Protobuf, Timestamp, registry=given)):
        with pytest.raises(UserError, match=rf"registry=…\) is a {type(given).__name__}, and no registry") as refused:
            make()
        assert refused.value.hint is not None
        assert refused.value.hint.endswith('registry=Registry("http://localhost:8081"))')
