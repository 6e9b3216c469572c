"""Debezium's and Kafka Connect's times and decimals, by the schema around an envelope, and without one."""

import base64
import datetime as dt
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.binary.avro import AvroDecoder
from sabot.codecs import TableCodec
from sabot.codecs.avro.columns import arrow_schema
from sabot.codecs.connect import by_schema
from sabot.codecs.records import build_records
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN

AT = dt.datetime(2026, 1, 31, 12, 0, 0, 7123)
MICROS = 1_769_860_800_007_123
DAY = 20_484
CONNECT = "org.apache.kafka.connect.data."
DEBEZIUM = "io.debezium.time."
DECIMAL = (CONNECT + "Decimal", {"scale": "2"})


def fields(names: dict[str, Any]) -> list[dict[str, Any]]:
    """Fields of a schema of Connect: {field: (name, parameters), or name, or None}."""
    made = []
    for field, name in names.items():
        named, parameters = name if isinstance(name, tuple) else (name, None)
        node = {"type": "int64", "optional": True, "field": field}
        made.append(node | ({"name": named} if named else {}) | ({"parameters": parameters} if parameters else {}))
    return made


def envelope(names: dict[str, Any], after: Any, *, op: str = "c", before: Any = None, compact: bool = True) -> bytes:
    """An envelope with its schema, as Connect's JSON converter writes it."""
    rows = [{"type": "struct", "fields": fields(names), "field": side} for side in ("before", "after")]
    schema = {"type": "struct", "fields": [*rows, {"type": "string", "field": "op"}], "name": "shop.Envelope"}
    payload = {"before": before, "after": after, "op": op, "ts_ms": 1}
    separators = (",", ":") if compact else None
    return json.dumps({"schema": schema, "payload": payload}, separators=separators).encode()


def bare(after: Any) -> bytes:
    return json.dumps({"before": None, "after": after, "op": "c"}).encode()


def octets(value: int) -> str:
    return base64.b64encode(value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)).decode()


def decode(
    codec: TableCodec, *payloads: bytes | None, keys: list[Any] | None = None
) -> tuple[list[Any], dict[int, str]]:
    rows = len(payloads)
    data, bad = codec.decode(build_records(list(payloads), keys, range(rows), 0, range(rows)))
    data.validate(full=True)
    return data.to_pylist(), {row.row: row.reason for row in bad}


def one(kind: pa.DataType, name: Any, value: Any) -> Any:
    """The column `v` of this type that a value of the named type becomes; the reason where it is a bad row."""
    codec = TableCodec(pa.schema([("id", pa.int64()), ("v", kind)]), ["id"], "debezium")
    rows, bad = decode(codec, envelope({"id": None, "v": name}, {"id": 1, "v": value}))
    return bad[0] if bad else rows[0]["v"]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("name", "value", "kind", "expected"),
    [
        (DEBEZIUM + "Timestamp", MICROS // 1000, pa.timestamp("us"), AT.replace(microsecond=7000)),
        (DEBEZIUM + "MicroTimestamp", MICROS, pa.timestamp("us"), AT),
        (DEBEZIUM + "MicroTimestamp", MICROS, pa.timestamp("ms", "UTC"), AT.replace(microsecond=7000, tzinfo=dt.UTC)),
        (DEBEZIUM + "MicroTimestamp", -1, pa.timestamp("ms"), dt.datetime(1969, 12, 31, 23, 59, 59, 999000)),
        (DEBEZIUM + "MicroTimestamp", MICROS, pa.date32(), AT.date()),
        (DEBEZIUM + "NanoTimestamp", MICROS * 1000 + 999, pa.timestamp("us"), AT),
        (CONNECT + "Timestamp", MICROS // 1000, pa.timestamp("us"), AT.replace(microsecond=7000)),
        (
            DEBEZIUM + "ZonedTimestamp",
            "2026-01-31T13:00:00.007123+01:00",
            pa.timestamp("us", "UTC"),
            AT.replace(tzinfo=dt.UTC),
        ),
        (DEBEZIUM + "Date", DAY, pa.date32(), AT.date()),
        (DEBEZIUM + "Date", DAY, pa.timestamp("ms"), dt.datetime(2026, 1, 31)),
        (CONNECT + "Date", DAY, pa.date64(), AT.date()),
        (DEBEZIUM + "Time", 43_200_007, pa.time32("ms"), dt.time(12, 0, 0, 7000)),
        (DEBEZIUM + "MicroTime", 43_200_007_123, pa.time64("us"), dt.time(12, 0, 0, 7123)),
        (DEBEZIUM + "MicroTime", 43_200_007_123, pa.time32("ms"), dt.time(12, 0, 0, 7000)),
        (DEBEZIUM + "NanoTime", 43_200_007_123_999, pa.time64("us"), dt.time(12, 0, 0, 7123)),
        (CONNECT + "Time", 43_200_007, pa.time64("us"), dt.time(12, 0, 0, 7000)),
        (DECIMAL, octets(-1230), pa.decimal128(10, 2), Decimal("-12.30")),
        (DECIMAL, octets(10**30), pa.decimal128(38, 2), Decimal(10**30).scaleb(-2)),
        (DECIMAL, octets(1230), pa.float64(), 12.3),
        (DECIMAL, octets(1200), pa.int64(), 12),
        (DECIMAL, octets(-1230), pa.string(), "-12.30"),
        (
            "io.debezium.data.VariableScaleDecimal",
            {"scale": 3, "value": octets(12300)},
            pa.decimal128(10, 2),
            Decimal("12.30"),
        ),
        (DEBEZIUM + "MicroTimestamp", None, pa.timestamp("us"), None),
        (DECIMAL, None, pa.decimal128(10, 2), None),
        (DEBEZIUM + "MicroTimestamp", MICROS, pa.int64(), MICROS),
    ],
)
def test_the_schema_around_an_envelope_says_the_unit(name: Any, value: Any, kind: pa.DataType, expected: Any) -> None:
    assert one(kind, name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        (DEBEZIUM + "MicroTime", 86_400_000_000, pa.time64("us"), "MicroTime is not a value of type time64"),
        (DEBEZIUM + "MicroTimestamp", 2**62, pa.timestamp("ns"), "MicroTimestamp is not a value of type timestamp"),
        (DEBEZIUM + "MicroTimestamp", 5, pa.time32("s"), "MicroTimestamp is not a value of type time32"),
        (
            *(DECIMAL, octets(10**12), pa.decimal128(10, 2)),
            "10000000000.00 has 11 digits before the point and 0 behind it, and decimal128(10, 2) has room for 8 and 2 "
            "(declare the column as decimal(13, 2) in schema=",
        ),
        (
            *(DEBEZIUM.replace(".time.", ".data.") + "VariableScaleDecimal", {"scale": 3, "value": octets(-1234)}),
            *(pa.decimal128(5, 2), "-1.234 has 1 digit before the point and 3 behind it"),
        ),
        (DECIMAL, octets(1230), pa.int64(), "Decimal is not a value of type int64"),
        (DECIMAL, "12.30", pa.decimal128(10, 2), "Decimal is not a value of type decimal128"),
        (DECIMAL, "AAA", pa.decimal128(10, 2), "Decimal is not a value of type decimal128"),
        (DECIMAL, "A=A=", pa.decimal128(10, 2), "Decimal is not a value of type decimal128"),
        (DECIMAL, "", pa.decimal128(10, 2), "Decimal is not a value of type decimal128"),
        (
            (CONNECT + "Decimal", {"scale": "900"}),
            octets(1),
            pa.decimal128(10, 2),
            "Decimal is not a value of type decimal128",
        ),
    ],
)
def test_what_does_not_fit_the_column_is_a_bad_row_that_names_both(
    name: Any, value: Any, kind: Any, words: str
) -> None:
    assert words in one(kind, name, value)


def test_without_a_schema_a_time_in_another_unit_is_a_bad_row_that_names_the_setting() -> None:
    schema = pa.schema(
        [("id", pa.int64()), ("at", pa.timestamp("us")), ("clock", pa.time64("us")), ("day", pa.date32())]
    )
    for wrap in (False, True):
        codec = TableCodec(schema, ["id"], "debezium")

        def written(after: Any, wrap: bool = wrap) -> bytes:
            return envelope(dict.fromkeys(schema.names), after) if wrap else bare(after)

        rows, bad = decode(
            codec,
            written({"id": 1, "at": MICROS}),
            written({"id": 2, "at": MICROS // 1000}),
            written({"id": 3, "at": -MICROS}),
            written({"id": 4, "clock": 86_400_000}),
            written({"id": 5, "clock": 43_200_000_000}),
            written({"id": 6, "at": MICROS * 1000}),
            written({"id": 7, "at": None, "clock": 1}),
        )
        assert [row["id"] for row in rows] == [2, 7]
        assert f"{MICROS} ms since 1970 is not a time in the years 1 to 9999" in bad[0]
        assert all("time.precision.mode=connect, or schemas.enable=true" in bad[row] for row in (0, 2, 3, 4))
        assert sorted(bad) == [0, 2, 3, 4, 5]


def test_each_envelope_is_read_by_its_own_schema() -> None:
    """A table whose column changed, other tables in one topic, a schema behind its payload, one with spaces."""
    schema = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us"))])
    codec = TableCodec(schema, ["id"], "debezium")
    units = {"Timestamp": 1000, "MicroTimestamp": 1, "NanoTimestamp": 0.001}
    payloads = []
    for number in range(200):
        name, per = list(units.items())[number % 3]
        more = {f"other{number % 30}": None}  # more schemas than are looked for by their first bytes
        after = {"id": number, "at": int((MICROS // 1000 * 1000) / per)}
        payload = envelope({"id": None, "at": DEBEZIUM + name} | more, after, compact=number % 5 > 0)
        if number % 7 == 0:
            payload = json.dumps(dict(reversed(json.loads(payload).items()))).encode()
        payloads.append(payload)
    payloads += [bare({"id": 200, "at": MICROS // 1000}), b"nonsense", b'{"schema":']
    rows, bad = decode(codec, *payloads)
    assert [row["id"] for row in rows] == list(range(201))
    assert {row["at"] for row in rows} == {AT.replace(microsecond=7000)}
    assert sorted(bad) == [201, 202]


def test_a_deleted_key_is_read_by_the_schema_of_its_record_key() -> None:
    schema = pa.schema([("at", pa.timestamp("us")), ("price", pa.decimal128(10, 2)), ("n", pa.int64())])
    codec = TableCodec(schema, ["at", "price"], "debezium")
    names = {"at": DEBEZIUM + "MicroTimestamp", "price": DECIMAL}
    key = {"at": MICROS, "price": octets(1230)}
    record_key = json.dumps({"schema": {"type": "struct", "fields": fields(names)}, "payload": key}).encode()
    gone = {"at": AT, "price": Decimal("12.30"), "n": None, OP_COLUMN: DELETE}
    rows, bad = decode(
        codec,
        None,
        envelope(names, None, op="d", before=key),
        envelope(names, None, op="d"),
        envelope(names, {**key, "n": 1}),
        keys=[record_key, None, record_key, None],
    )
    assert bad == {}
    assert rows == [gone, gone, gone, {**gone, "n": 1, OP_COLUMN: INSERT}]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-(10**37), 10**37), st.integers(-(2**66), 2**66)), max_size=20),
    st.integers(0, 10),
)
def test_decimals_as_bytes_are_those_of_python(values: list[int | None], scale: int) -> None:
    codec = TableCodec(pa.schema([("id", pa.int64()), ("v", pa.decimal256(60, 20))]), ["id"], "debezium")
    name = (CONNECT + "Decimal", {"scale": str(scale)})
    payloads = [
        envelope({"id": None, "v": name}, {"id": n, "v": None if value is None else octets(value)})
        for n, value in enumerate(values)
    ]
    rows, bad = decode(codec, *payloads)
    assert bad == {}
    assert [row["v"] for row in rows] == [v if v is None else Decimal(f"{v}e-{scale}") for v in values]


def test_a_schema_is_read_once_for_a_batch() -> None:
    payloads = [
        envelope({"id": None, "at": DEBEZIUM + "MicroTimestamp"}, {"id": n, "at": MICROS + n}) for n in range(5000)
    ]
    ((schema, rows),) = by_schema(pa.array(payloads))
    assert b"MicroTimestamp" in schema
    assert np.array_equal(rows, np.arange(5000))


def test_avro_of_connect_says_the_unit_by_its_name() -> None:
    """As Connect's Avro converter registers a table: only Connect's own types have a logicalType."""

    def named(kind: str, name: str) -> dict[str, Any]:
        return {"type": kind, "connect.version": 1, "connect.name": DEBEZIUM + name}

    columns = arrow_schema(
        {
            "type": "record",
            "name": "Value",
            "fields": [
                {"name": "ms", "type": named("long", "Timestamp")},
                {"name": "us", "type": ["null", named("long", "MicroTimestamp")], "default": None},
                {"name": "ns", "type": named("long", "NanoTimestamp")},
                {"name": "day", "type": named("int", "Date")},
                {"name": "clock", "type": named("int", "Time")},
                {"name": "fine", "type": named("long", "MicroTime")},
                {"name": "zoned", "type": named("string", "ZonedTimestamp")},
            ],
        }
    )
    assert [str(kind) for kind in columns.types] == [
        *["timestamp[ms]", "timestamp[us]", "timestamp[ns]", "date32[day]", "time32[ms]", "time64[us]", "string"]
    ]
    assert AvroDecoder(columns) is not None


def connect_node(kind: pa.DataType, leaf: Any) -> dict[str, Any]:
    """A node of Connect's schema for a type whose leaves are all of this named type."""
    if pa.types.is_list(kind):
        return {"type": "array", "optional": True, "items": connect_node(kind.value_type, leaf)}
    if pa.types.is_struct(kind):
        inside = [connect_node(each.type, leaf) | {"field": each.name} for each in kind]
        return {"type": "struct", "name": "shop.Part", "optional": True, "fields": inside}
    (node,) = fields({"leaf": leaf})
    return {name: value for name, value in node.items() if name != "field"}


def nested(depths: Any, kind: pa.DataType, written: Any, value: Any) -> tuple[pa.DataType, Any, Any]:
    """The type, the JSON and the value with a level of lists ("list") or structs ("struct") for each depth."""
    for level in depths:
        if level == "list":
            kind, written, value = pa.list_(kind), [written, None, written], [value, None, value]
        else:
            kind = pa.struct([("x", kind), ("n", kind)])
            written, value = {"x": written, "n": None}, {"x": value, "n": None}
    return kind, written, value


TYPES = [
    (DEBEZIUM + "Timestamp", MICROS // 1000, pa.timestamp("us"), AT.replace(microsecond=7000)),
    (DEBEZIUM + "MicroTimestamp", MICROS, pa.timestamp("us"), AT),
    (DEBEZIUM + "NanoTimestamp", MICROS * 1000, pa.timestamp("us"), AT),
    (DEBEZIUM + "Date", DAY, pa.date32(), AT.date()),
    (CONNECT + "Date", DAY, pa.date64(), AT.date()),
    (DEBEZIUM + "MicroTime", 43_200_007_123, pa.time64("us"), dt.time(12, 0, 0, 7123)),
    (DEBEZIUM + "Time", 43_200_007, pa.time32("ms"), dt.time(12, 0, 0, 7000)),
    (DECIMAL, octets(-1230), pa.decimal128(10, 2), Decimal("-12.30")),
    (None, MICROS // 1000, pa.timestamp("us"), AT.replace(microsecond=7000)),
    (None, DAY, pa.date32(), AT.date()),
    (None, 43_200_007, pa.time64("us"), dt.time(12, 0, 0, 7000)),
    (None, "-12.30", pa.decimal128(10, 2), Decimal("-12.30")),
]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["list", "struct"]), max_size=4), st.sampled_from(TYPES), st.data())
def test_values_inside_lists_and_structs_are_those_of_columns(depths: Any, case: Any, data: Any) -> None:
    name, written, kind, value = case
    whole, inside, expected = nested(depths, kind, written, value)
    schema = pa.schema([("id", pa.int64()), ("v", whole)])
    there = data.draw(st.lists(st.booleans(), min_size=1, max_size=6))
    payloads = []
    for number, some in enumerate(there):
        after = {"id": number, "v": inside if some else None}
        payload = json.loads(envelope({"id": None}, after))
        for side in payload["schema"]["fields"][:2]:
            side["fields"].append(connect_node(whole, name) | {"field": "v"})
        payloads.append(json.dumps(payload if name else payload["payload"]).encode())
    rows, bad = decode(TableCodec(schema, ["id"], "debezium"), *payloads)
    assert bad == {}
    assert [row["v"] for row in rows] == [expected if some else None for some in there]


def test_a_key_of_a_struct_is_read_by_the_schema_around_it() -> None:
    kind = pa.struct([("day", pa.date32())])
    node = connect_node(kind, DEBEZIUM + "Date") | {"field": "id"}
    key = {"schema": {"type": "struct", "fields": [node]}, "payload": {"id": {"day": DAY}}}
    codec = TableCodec(pa.schema([("id", kind), ("n", pa.int64())]), ["id"], "debezium")
    rows, bad = decode(codec, None, keys=[json.dumps(key).encode()])
    assert (rows, bad) == ([{"id": {"day": AT.date()}, "n": None, OP_COLUMN: DELETE}], {})


def test_a_wrong_value_inside_a_list_is_a_bad_row_that_names_its_place() -> None:
    kind = pa.list_(pa.struct([("price", pa.decimal128(5, 2)), ("at", pa.timestamp("us"))]))
    codec = TableCodec(pa.schema([("id", pa.int64()), ("v", kind)]), ["id"], "debezium")
    good = {"price": "1.50", "at": 1}
    rows, bad = decode(
        codec,
        bare({"id": 1, "v": [good, {"price": "1.234", "at": 1}]}),
        bare({"id": 2, "v": [good]}),
        bare({"id": 3, "v": [good, None, {"at": MICROS}]}),
        bare({"id": 4, "v": None}),
    )
    assert [row["id"] for row in rows] == [2, 4]
    assert bad[0].startswith("field v[].price: 1.234 has 1 digit before the point and 3 behind it")
    assert bad[2].startswith(f"field v[].at: {MICROS} ms since 1970 is not a time in the years 1 to 9999")


UNTOUCHED = "__debezium_unavailable_value"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.string(), UNTOUCHED),
        (pa.binary(), UNTOUCHED),
        (pa.binary(), base64.b64encode(UNTOUCHED.encode()).decode()),
        (pa.string(), UNTOUCHED.encode().hex()),
        (pa.string(), json.dumps({UNTOUCHED: UNTOUCHED}, separators=(",", ":"))),
        (pa.decimal128(10, 2), UNTOUCHED),
        (pa.list_(pa.string()), [UNTOUCHED]),
        (pa.list_(pa.int32()), list(UNTOUCHED.encode())),
        (pa.list_(pa.float64()), list(UNTOUCHED.encode())),
        (pa.struct([("x", pa.list_(pa.string()))]), {"x": ["a", UNTOUCHED]}),
    ],
)
def test_the_placeholder_of_a_large_value_that_an_update_did_not_touch_is_a_bad_row(kind: Any, value: Any) -> None:
    schema = pa.schema([("id", pa.int64()), ("v", kind)])
    rows = [{"id": 1}, {"id": 2, "v": value}, {"id": 3}]
    debezium = decode(TableCodec(schema, ["id"], "debezium"), *map(bare, rows))
    kept = [{"id": id, "v": None, OP_COLUMN: INSERT} for id in (1, 3)]
    assert debezium[0] == kept
    assert list(debezium[1]) == [1]
    assert f"field v: {UNTOUCHED} in place of a large value" in debezium[1][1]
    assert "REPLICA IDENTITY FULL" in debezium[1][1]
    if not pa.types.is_decimal(kind):  # rows that ExtractNewRecordState has made
        flat = decode(TableCodec(schema, ["id"]), *(json.dumps(row).encode() for row in rows))
        assert flat == (kept, debezium[1])


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("format", ["json", "debezium"])
@pytest.mark.parametrize(
    ("kind", "name", "written", "value"),
    [
        (pa.int64(), None, 7, 7),
        (pa.string(), None, "ada", "ada"),
        (pa.binary(), None, "ada", b"ada"),
        (pa.date32(), CONNECT + "Date", DAY, AT.date()),
        (pa.timestamp("us"), DEBEZIUM + "MicroTimestamp", MICROS, AT),
        (pa.decimal128(10, 2), DECIMAL, octets(1230), Decimal("12.30")),
    ],
)
def test_a_tombstone_whose_key_has_a_schema_around_it_deletes_the_row(
    format: str, kind: Any, name: Any, written: Any, value: Any
) -> None:
    """Connect's JSON converter writes a schema around keys unless key.converter.schemas.enable=false."""
    (alone,) = fields({"id": name})
    of_struct = {"schema": {"type": "struct", "fields": [alone]}, "payload": {"id": written}}
    of_value = {"schema": alone, "payload": written}
    keys = [json.dumps(key, separators=seps).encode() for key in (of_struct, of_value) for seps in (None, (",", ":"))]
    codec = TableCodec(pa.schema([("id", kind), ("n", pa.int64())]), ["id"], format)
    rows, bad = decode(codec, None, None, None, None, keys=keys)
    assert (rows, bad) == ([{"id": value, "n": None, OP_COLUMN: DELETE}] * 4, {})


def test_keys_with_and_without_a_schema_around_them_are_in_one_topic() -> None:
    of_connect = json.dumps(
        {"schema": {"type": "struct", "fields": fields({"a": None, "b": None})}, "payload": {"a": 1, "b": 2}}
    )
    keys = [b'{"a":3,"b":4}', of_connect.encode(), b"nonsense", None, b'{"a":5,"b":6}']
    codec = TableCodec(pa.schema([("a", pa.int64()), ("b", pa.int64()), ("n", pa.int64())]), ["a", "b"])
    rows, bad = decode(codec, *[None] * 5, keys=keys)
    assert [(row["a"], row["b"], row[OP_COLUMN]) for row in rows] == [(3, 4, DELETE), (1, 2, DELETE), (5, 6, DELETE)]
    assert sorted(bad) == [2, 3]
