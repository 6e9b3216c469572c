"""Records of a table -> rows with what becomes of their keys: plain rows and tombstones, and Debezium's envelopes."""

import base64
import datetime as dt
import io
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot import App, Avro, files
from sabot._cython.text.json import BadRow
from sabot.codecs import JsonCodec, TableCodec
from sabot.codecs.records import build_records, change_records, record_keys
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER
from sabot.errors import UserError
from tools.registry import LocalRegistry

PEOPLE = pa.schema([("id", pa.int64()), ("name", pa.string()), ("score", pa.float64())])


def records(*pairs: tuple[Any, Any], stamps: Any = None) -> pa.RecordBatch:
    """(key, payload): bytes and None as they are, anything else as JSON."""
    written = [[v if v is None or isinstance(v, bytes) else json.dumps(v).encode() for v in pair] for pair in pairs]
    keys, payloads = [pair[0] for pair in written], [pair[1] for pair in written]
    return build_records(payloads, keys, range(len(pairs)) if stamps is None else stamps, 0, range(len(pairs)))


def read(codec: TableCodec, *pairs: tuple[Any, Any]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    data, bad = codec.decode(records(*pairs))
    data.validate(full=True)
    assert data.schema.equals(codec.schema)
    assert data.num_rows + len(bad) == len(pairs)
    return data.to_pylist(), {row.row: row.reason for row in bad}


def person(id: int | None, name: str | None = None, score: float | None = None, op: int = INSERT) -> dict[str, Any]:
    return {"id": id, "name": name, "score": score, OP_COLUMN: op}


# -- rows and tombstones ------------------------------------------------------------------------------------------------------


def test_rows_come_as_inserts_and_tombstones_as_deletes_in_order() -> None:
    rows, bad = read(
        TableCodec(PEOPLE, ["id"]),
        (b"1", {"id": 1, "name": "ada", "score": 2.5, "more": []}),
        (b"1", None),
        (b"2", {"id": 2, "name": None}),
        (b"-3", None),
        (b"1", {"id": 1, "name": "eve"}),
    )
    assert rows == [
        person(1, "ada", 2.5),
        person(1, op=DELETE),
        person(2),
        person(-3, op=DELETE),
        person(1, "eve"),
    ]
    assert bad == {}


def test_a_batch_without_tombstones_and_one_of_nothing_else() -> None:
    codec = TableCodec(PEOPLE, ["id"])
    assert read(codec, (None, {"id": 1}))[0] == [person(1)]
    assert read(codec, (b"4", None), (b"5", None))[0] == [person(4, op=DELETE), person(5, op=DELETE)]
    assert read(codec) == ([], {})


def test_what_cannot_be_read_is_a_bad_row_and_never_more() -> None:
    rows, bad = read(
        TableCodec(PEOPLE, ["id"]),
        (b"1", b"{"),
        (None, None),
        (b"two", None),
        (b"", None),
        (b"3", {"id": 3}),
        (b"4", {"id": "4"}),
        (b"null", None),
        (None, {"name": "nobody"}),
        (b"\xff", None),
        (b"9", None),
    )
    assert rows == [person(3), person(9, op=DELETE)]
    assert sorted(bad) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert bad[1] == "a deletion without its key 'id': the record has no key"
    assert bad[2].startswith("a deletion without its key 'id': the record's key cannot be read: ")
    assert "id" in bad[5]
    assert bad[6] == "a deletion without its key 'id': the record's key does not say it"
    assert bad[7] == "the key 'id' is null: the record has no key"


def test_a_key_that_only_the_records_key_says_is_taken_from_there() -> None:
    rows, bad = read(
        TableCodec(PEOPLE, ["id"]), (b"7", {"name": "ada"}), (b'{"id": 8}', {"id": None}), (b"9", {"id": 1})
    )
    assert rows == [person(7, "ada"), person(8), person(1)]
    assert not bad


def test_columns_that_may_not_be_null_are_null_only_where_a_key_ends() -> None:
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("name", pa.string(), nullable=False)])
    rows, bad = read(TableCodec(strict, ["id"]), (b"1", {"id": 1}), (b"1", None), (b"2", {"id": 2, "name": "ada"}))
    assert rows == [{"id": 1, "name": None, OP_COLUMN: DELETE}, {"id": 2, "name": "ada", OP_COLUMN: INSERT}]
    assert "name" in bad[0]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (pa.string(), b"it's \xc3\xbc", "it's ü"),
        (pa.string(), b'{"id":1}', '{"id":1}'),
        (pa.string(), b"", ""),
        (pa.binary(), b"\xff\x00", b"\xff\x00"),
        (pa.bool_(), b"true", True),
        (pa.uint64(), b"18446744073709551615", 2**64 - 1),
        (pa.float64(), b"1e+20", 1e20),
        (pa.timestamp("ms"), b"2026-01-31 12:00:00.007", dt.datetime(2026, 1, 31, 12, 0, 0, 7000)),
        (pa.timestamp("ms"), b"1769860800007", dt.datetime(2026, 1, 31, 12, 0, 0, 7000)),
        (pa.timestamp("ms"), b'"2026-01-31T12:00:00.007"', dt.datetime(2026, 1, 31, 12, 0, 0, 7000)),
        (pa.date32(), b"2026-01-31", dt.date(2026, 1, 31)),
        (pa.list_(pa.int64()), b'{"id":[1,2]}', [1, 2]),
    ],
)
def test_a_key_of_one_column_is_its_text_or_its_json(kind: pa.DataType, key: bytes, value: Any) -> None:
    codec = TableCodec(pa.schema([("id", kind), ("n", pa.int64())]), ["id"])
    assert read(codec, (key, None)) == ([{"id": value, "n": None, OP_COLUMN: DELETE}], {})


def test_a_text_key_that_is_no_text_is_bad_alone() -> None:
    codec = TableCodec(pa.schema([("id", pa.string()), ("n", pa.int64())]), ["id"])
    rows, bad = read(codec, (b"a", None), (b"\xff", None), (None, None), (b"b", None))
    assert [row["id"] for row in rows] == ["a", "b"]
    assert "not UTF-8" in bad[1]
    assert "no key" in bad[2]


def test_a_key_of_several_columns_is_an_object() -> None:
    schema = pa.schema([("a", pa.string()), ("n", pa.int64()), ("b", pa.int32())])
    rows, bad = read(
        TableCodec(schema, ["b", "a"]),
        (b'{"b":1,"a":"x"}', None),
        (b'{"b":1}', None),
        (b"x", None),
        (b'{"b":2,"a":"y"}', {"a": "z", "n": 5}),
    )
    assert rows == [{"a": "x", "n": None, "b": 1, OP_COLUMN: DELETE}, {"a": "z", "n": 5, "b": 2, OP_COLUMN: INSERT}]
    assert bad[1] == "a deletion without its key 'a': the record's key does not say it"
    assert 2 in bad


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int64(), 1_500),
        (pa.timestamp("s"), dt.datetime(1970, 1, 1, 0, 0, 1)),
        (pa.timestamp("us", "UTC"), dt.datetime(1970, 1, 1, 0, 0, 1, 500_000, dt.UTC)),
        (pa.date32(), dt.date(1970, 1, 1)),
    ],
)
def test_the_time_of_a_deletion_is_that_of_its_record(kind: pa.DataType, expected: Any) -> None:
    codec = TableCodec(pa.schema([("id", pa.int64()), ("at", kind)]), ["id"], time="at")
    data, _ = codec.decode(records((b"1", {"id": 1, "at": 86_400_000}), (b"1", None), stamps=[5, 1_500]))
    first, second = data.column("at").to_pylist()
    assert first != expected
    assert second == expected


def test_a_table_says_what_is_wrong_with_its_key() -> None:
    with pytest.raises(UserError, match="'ID'") as wrong:
        TableCodec(PEOPLE, ["ID"])
    assert "id, name, score" in str(wrong.value.hint)
    with pytest.raises(UserError, match="needs a key"):
        TableCodec(PEOPLE, [])
    with pytest.raises(UserError, match="avro"):
        TableCodec(PEOPLE, ["id"], "avro")
    with pytest.raises(UserError, match=OP_COLUMN):
        TableCodec(PEOPLE.append(pa.field(OP_COLUMN, pa.int8())), ["id"])


def test_another_codec_does_the_same() -> None:
    for codec in (TableCodec(PEOPLE, ["id"], "debezium"), TableCodec(PEOPLE, ["id"], time="id")):
        again = codec.another()
        assert again is not codec
        assert again.schema == codec.schema
        assert read(again, (b'{"id":1}', None)) == read(codec, (b'{"id":1}', None))
    assert JsonCodec(PEOPLE).another().schema == PEOPLE
    assert JsonCodec().another().schema is None


# -- what a sink of changes writes is what a table reads --------------------------------------------------------------------------

MOMENTS = st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2200, 1, 1))
KEYS = st.one_of(
    st.tuples(st.just(pa.int64()), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(pa.uint8()), st.integers(0, 255)),
    st.tuples(st.just(pa.bool_()), st.booleans()),
    st.tuples(st.just(pa.float64()), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(pa.string()), st.text(st.characters(codec="utf-8"), max_size=6)),
    st.tuples(st.just(pa.timestamp("s")), MOMENTS.map(lambda moment: moment.replace(microsecond=0))),
    st.tuples(st.just(pa.timestamp("us")), MOMENTS),
    st.tuples(st.just(pa.timestamp("us", "UTC")), MOMENTS.map(lambda moment: moment.replace(tzinfo=dt.UTC))),
    st.tuples(st.just(pa.timestamp("ns")), st.integers(-(2**62), 2**62)),
    st.tuples(st.just(pa.date32()), MOMENTS.map(dt.datetime.date)),
)

written_by = change_records


@pytest.mark.slow  # a second of a core
@settings(max_examples=80, deadline=None)
@given(
    keys=st.lists(KEYS, min_size=1, max_size=3),
    ops=st.lists(st.sampled_from([INSERT, UPDATE_AFTER, DELETE]), min_size=1, max_size=6),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=3),
)
def test_changes_that_become_records_read_back_as_they_were(keys: list[Any], ops: list[int], name: str) -> None:
    names = [f"{name}{number}" for number in range(len(keys))]
    columns = [pa.array([value] * len(ops), kind) for kind, value in keys]
    data = pa.RecordBatch.from_arrays(
        [pa.array(range(len(ops))), *columns, pa.array(ops, pa.int8())], names=["n ", *names, OP_COLUMN]
    )
    written = written_by(data, names, 17)
    assert written.column("payload").is_null().to_pylist() == [op == DELETE for op in ops]
    codec = TableCodec(pa.schema(list(data.schema)[:-1]), names)
    found, bad = codec.decode(written)
    assert not bad
    wanted = [
        {
            **row,
            "n ": None if row[OP_COLUMN] == DELETE else row["n "],
            OP_COLUMN: DELETE if row[OP_COLUMN] == DELETE else INSERT,
        }
        for row in data.to_pylist()
    ]
    assert found.to_pylist() == wanted


@pytest.mark.slow  # some seconds, in which the example is made smaller
def test_keys_that_lose_digits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: times are written in whole milliseconds."""

    def cut(data: pa.RecordBatch, *given: Any) -> pa.RecordBatch:
        columns = [
            each.cast(pa.timestamp("ms", each.type.tz), safe=False).cast(each.type, safe=False)
            if pa.types.is_timestamp(each.type)
            else each
            for each in data.columns
        ]
        return change_records(pa.RecordBatch.from_arrays(columns, schema=data.schema), *given)

    monkeypatch.setitem(globals(), "written_by", cut)
    with pytest.raises(AssertionError):
        test_changes_that_become_records_read_back_as_they_were()


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns")])
@pytest.mark.parametrize("keys", [["at"], ["at", "id"]])
def test_times_that_differ_below_a_millisecond_are_two_keys(kind: Any, keys: list[str]) -> None:
    """Both were the same ms: a row was lost, and a deletion hit the wrong one."""
    at = pa.array(
        [1_700_000_000_123_001, 1_700_000_000_123_999, 1_700_000_000_123_000, 1_700_000_000_123_001], pa.int64()
    )
    at = at.cast(pa.timestamp("us")).cast(kind)
    data = pa.RecordBatch.from_pydict(
        {
            "at": at,
            "id": [1, 1, 1, 1],
            "v": ["a", "b", "c", None],
            OP_COLUMN: pa.array([INSERT] * 3 + [DELETE], pa.int8()),
        }
    )
    written = change_records(data, keys, 17)
    assert len(set(written["key"].to_pylist())) == 3
    assert written["key"][0] == written["key"][3], "a deletion has the key of its row"
    if len(keys) == 2:
        assert written["key"][2].as_py() == b'{"at":1700000000123,"id":1}', "whole ms are written as ever"
    found, bad = TableCodec(pa.schema(list(data.schema)[:-1]), keys).decode(written)
    assert not bad
    assert found["at"].equals(at)
    assert found["v"].to_pylist() == ["a", "b", "c", None]


def test_the_key_of_a_record_gives_digits_only_to_the_time_of_its_payload() -> None:
    """A record's key may be another thing than the key of the table."""
    codec = TableCodec(pa.schema([("at", pa.timestamp("us")), ("v", pa.int64())]), ["at"])
    keys = [b"42", b"not a time", None, b"2023-11-14 22:13:20.123456", b"2023-11-14 22:13:21.123456"]
    found, bad = codec.decode(records(*((key, {"at": 1_700_000_000_123, "v": 1}) for key in keys)))
    assert not bad
    whole = dt.datetime(2023, 11, 14, 22, 13, 20, 123000)
    assert found["at"].to_pylist() == [whole, whole, whole, whole.replace(microsecond=123456), whole]


def test_keys_of_records_are_text_or_json_whatever_holds_them() -> None:
    def keys(array: Any) -> list[bytes | None]:
        return record_keys(pa.record_batch([array], names=["k"]), ["k"]).to_pylist()

    assert keys(pa.array(["a", None])) == [b"a", None]
    assert keys(pa.array(["a", None]).dictionary_encode()) == [b"a", None]
    assert keys(pa.array(["a", "b", "c"], pa.large_string()).slice(1, 1)) == [b"b"]
    assert keys(pa.array([[1, 2]])) == [b'{"k":[1,2]}']
    both = pa.record_batch({"a": ["x", "y"], "b": [1, 2]})
    assert record_keys(both, ["b", "a"]).to_pylist() == [b'{"b":1,"a":"x"}', b'{"b":2,"a":"y"}']
    assert record_keys(both, []).to_pylist() == [b"{}", b"{}"]


# -- the codec against a twin in plain Python ---------------------------------------------------------------------------------


def twin(pairs: list[tuple[bytes | None, bytes | None]]) -> tuple[list[dict[str, Any]], list[int]]:
    """TableCodec of (id: int64, name: string) row by row."""
    rows, bad = [], []
    for number, (key, payload) in enumerate(pairs):
        try:
            row = {} if payload is None else json.loads(payload)
            id, name = row.get("id"), row.get("name")
            if id is None and key is not None:
                id = json.loads(key)
            if not isinstance(id, int) or not isinstance(name, str | None):
                raise ValueError
        except (ValueError, AttributeError):
            bad.append(number)
            continue
        rows.append({"id": id, "name": name, OP_COLUMN: DELETE if payload is None else INSERT})
    return rows, bad


ANY_KEY = st.sampled_from([None, b"1", b"2", b"x", b"null", b"3.5", b"\xff"])
ANY_PAYLOAD = st.sampled_from(
    [None, b'{"id":1,"name":"a"}', b'{"id":2}', b'{"name":"b"}', b"{", b"[]", b'{"id":"1"}', b'{"id":null,"name":7}']
)


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(ANY_KEY, ANY_PAYLOAD), max_size=12), cut=st.integers(0, 12))
def test_any_records_become_what_plain_python_makes_of_them(pairs: list[Any], cut: int) -> None:
    codec = TableCodec(pa.schema([("id", pa.int64()), ("name", pa.string())]), ["id"])
    data, bad = codec.decode(records((None, None), *pairs).slice(1))
    wanted, wrong = twin(pairs)
    assert data.to_pylist() == wanted
    assert [each.row for each in bad] == wrong
    assert all(isinstance(each, BadRow) and each.reason for each in bad)


# -- Debezium ---------------------------------------------------------------------------------------------------------------


def envelope(op: str, before: Any = None, after: Any = None, **more: Any) -> dict[str, Any]:
    source = {"version": "3.0.0", "connector": "postgresql", "table": "people", "lsn": 24023128, "snapshot": "false"}
    return {
        "before": before,
        "after": after,
        "source": source,
        "op": op,
        "ts_ms": 1_714_000_000_142,
        "transaction": None,
        **more,
    }


def wrapped(payload: Any) -> dict[str, Any]:
    return {
        "schema": {"type": "struct", "fields": [{"field": "op", "type": "string"}], "optional": False},
        "payload": payload,
    }


ADA, EVE = {"id": 1, "name": "ada", "score": 1.5}, {"id": 2, "name": "eve", "score": None}
STORY = [
    ({"id": 1}, envelope("r", None, ADA)),
    ({"id": 2}, envelope("c", None, EVE)),
    ({"id": 2}, envelope("u", EVE, {**EVE, "score": 9.0})),
    ({"id": 1}, envelope("u", None, {**ADA, "name": "Ada"})),
    ({"id": 2}, envelope("d", {**EVE, "score": 9.0}, None)),
    ({"id": 2}, None),
    ({"id": 1}, envelope("d", None, None)),
]
TOLD = [
    person(1, "ada", 1.5),
    person(2, "eve"),
    person(2, "eve", 9.0),
    person(1, "Ada", 1.5),
    person(2, op=DELETE),
    person(2, op=DELETE),
    person(1, op=DELETE),
]


def test_what_another_converter_has_written_is_told() -> None:
    _, bad = read(TableCodec(PEOPLE, ["id"], "debezium"), (b"k", b"\0\0\0\0\1\2\2"), (b"k", b"x"))
    assert ["needs the JSON converter" in bad[row] for row in (0, 1)] == [True, False]


@pytest.mark.parametrize("how", ["plain", "with schemas", "mixed"])
def test_envelopes_are_rows_by_key(how: str) -> None:
    codec = TableCodec(PEOPLE, ["id"], "debezium")

    def said(number: int, value: Any) -> Any:
        return (
            wrapped(value)
            if value is not None and (how == "with schemas" or (how == "mixed" and number % 3))
            else value
        )

    story = [(said(number, key), said(number, payload)) for number, (key, payload) in enumerate(STORY)]
    for _ in range(2):  # it learns which way most are
        assert read(codec, *story) == (TOLD, {})


def test_envelopes_that_say_nothing_of_a_row_are_bad_rows() -> None:
    rows, bad = read(
        TableCodec(PEOPLE, ["id"], "debezium"),
        ({"id": 1}, envelope("t")),
        (None, envelope("d", None, None)),
        ({"id": 1}, {"id": 1, "name": "flat"}),
        ({"id": 1}, envelope("c", None, None)),
        ({"id": 1}, envelope("m", message={"prefix": "p", "content": "AA=="})),
        ({"id": 1}, b"nonsense"),
        ({"id": 1}, envelope("u", None, {"id": 1, "name": 5})),
        (None, None),
        (None, envelope("c", None, {"name": "nobody"})),
        ("text", None),
        (None, envelope("c", None, ADA)),
        (None, wrapped(envelope("t"))),
        (None, wrapped(None)),
    )
    assert rows == [person(1, "ada", 1.5)]
    assert "truncated" in bad[0]
    assert bad[1] == "a deletion without its key 'id': the record has no key"
    assert "not a Debezium envelope" in bad[2]
    assert "op 'c' without a row" in bad[3]
    assert "op 'm'" in bad[4]
    assert "name" in bad[6]
    assert "the record has no key" in bad[7]
    assert "the key 'id' is null" in bad[8]
    assert "cannot be read" in bad[9]
    assert "truncated" in bad[11]
    assert "not a Debezium envelope" in bad[12]
    assert len(bad) == 12


def test_types_come_as_connect_writes_them() -> None:
    schema = pa.schema(
        [
            ("id", pa.int32()),
            ("price", pa.decimal128(10, 2)),
            ("day", pa.date32()),
            ("late", pa.date64()),
            ("clock", pa.time32("ms")),
            ("fine", pa.time64("us")),
            ("at", pa.timestamp("us")),
            ("zoned", pa.timestamp("ms", "UTC")),
            ("blob", pa.binary()),
        ]
    )
    row = {
        "id": 1,
        "price": "-12.30",
        "day": 20_484,
        "late": 1,
        "clock": 3_600_001,
        "fine": 5,
        "at": 1_769_860_800_007,
        "zoned": "2026-01-31T12:00:00.007Z",
        "blob": base64.b64encode(b"\xff").decode(),
    }
    moment = dt.datetime(2026, 1, 31, 12, 0, 0, 7000)
    codec = TableCodec(schema, ["id"], "debezium")
    assert read(codec, ({"id": 1}, envelope("c", None, row)), ({"id": 1}, envelope("c", None, {"id": 2}))) == (
        [
            {
                "id": 1,
                "price": Decimal("-12.30"),
                "day": dt.date(2026, 1, 31),
                "late": dt.date(1970, 1, 2),
                "clock": dt.time(1, 0, 0, 1000),
                "fine": dt.time(0, 0, 0, 5000),
                "at": moment,
                "zoned": moment.replace(tzinfo=dt.UTC),
                "blob": b"/w==",
                OP_COLUMN: INSERT,
            },
            {**dict.fromkeys(schema.names), "id": 2, OP_COLUMN: INSERT},
        ],
        {},
    )


def test_decimals_as_bytes_are_bad_rows_that_name_the_setting() -> None:
    schema = pa.schema([("id", pa.int64()), ("price", pa.decimal128(10, 2))])
    rows, bad = read(
        TableCodec(schema, ["id"], "debezium"),
        (None, envelope("c", None, {"id": 1, "price": "AN3h"})),
        (None, envelope("c", None, {"id": 2, "price": "7"})),
        (None, envelope("c", None, {"id": 3, "price": "1.234"})),
        (None, envelope("c", None, {"id": 4, "price": None})),
    )
    assert [row["price"] for row in rows] == [Decimal("7.00"), None]
    assert "'AN3h' is not a value of type decimal128(10, 2)" in bad[0]
    assert "decimal.handling.mode=string" in bad[0]
    assert bad[2] == (
        "field price: 1.234 has 1 digit before the point and 3 behind it, and decimal128(10, 2) has room for 8 and 2 "
        "(declare the column as decimal(11, 3) in schema=, or as float64, which rounds; then redrive these records)"
    )


@pytest.mark.parametrize(
    ("kind", "good", "value", "bad"),
    [
        (
            pa.int64(),
            b" 5 ",
            5,
            [b'5,"id":9', b'5 , "i\\u0064":9', b'5,"zz":[1]', b"5,6", b'5},{"id":9', b'5],"id":[9', b'5,"":'],
        ),
        (pa.float64(), b"0.5", 0.5, [b'0.5,"id":9']),
        (pa.bool_(), b"true", True, [b'true,"id":false']),
        (
            pa.date32(),
            b"2026-01-31",
            dt.date(2026, 1, 31),
            [b'2026-01-31","id":"2026-02-01', b'"2026-01-31","id":"2026-02-01"'],
        ),
        (pa.list_(pa.int64()), b"[1,2]", [1, 2], [b'[1],"id":[2]', b'[1]],"id":[[2]', b"[1],[2]"]),
    ],
)
def test_a_key_says_one_value_and_no_more(kind: pa.DataType, good: bytes, value: Any, bad: list[bytes]) -> None:
    codec = TableCodec(pa.schema([("id", kind), ("v", pa.string())]), ["id"])
    row = {"id": value, "v": "x", OP_COLUMN: INSERT}
    for payload in ({"v": "x"}, None):
        rows, reasons = read(codec, (good, payload), *[(key, payload) for key in bad], (good, payload))
        assert rows == [row if payload else {"id": value, "v": None, OP_COLUMN: DELETE}] * 2
        assert sorted(reasons) == list(range(1, len(bad) + 1))
        assert all("the record's key cannot be read" in reason for reason in reasons.values())


def test_keys_of_types_that_connect_writes_its_own_way() -> None:
    schema = pa.schema([("day", pa.date32()), ("price", pa.decimal128(10, 2)), ("n", pa.int64())])
    key, day = {"day": 20_484, "price": "1.50"}, dt.date(2026, 1, 31)
    ended = {"day": day, "price": Decimal("1.50"), "n": None, OP_COLUMN: DELETE}
    codec = TableCodec(schema, ["day", "price"], "debezium")
    rows, bad = read(
        codec,
        (key, None),
        (wrapped(key), None),
        (None, envelope("d", {**key, "n": 7})),
        ({**key, "price": "AA"}, None),
        (None, envelope("d", {**key, "price": "AA"})),
        (None, envelope("u", {**key, "price": "AA"}, {**key, "n": 1})),
    )
    assert rows == [ended, ended, ended, {**ended, "n": 1, OP_COLUMN: INSERT}]
    assert sorted(bad) == [3, 4]
    assert "price" in bad[3]


def test_a_large_batch_of_envelopes_costs_no_python_per_row() -> None:
    """Not a time: what is counted are the calls of the kernel, which has a whole batch each."""
    codec = TableCodec(PEOPLE, ["id"], "debezium")
    count = 5_000
    batch = records(
        *[({"id": n}, wrapped(envelope("u", None, {"id": n, "name": "x", "score": n / 2}))) for n in range(count)]
    )
    first, bad = codec.decode(batch)
    assert not bad
    assert first.num_rows == count
    calls = []
    (program,) = codec._rows._programs.values()

    class Counting:
        def __init__(self, decoder: Any) -> None:
            self._decoder = decoder

        def decode(self, payloads: Any) -> Any:
            calls.append(len(payloads))
            return self._decoder.decode(payloads)

    program.decoder = Counting(program.decoder)
    again, _ = codec.decode(batch)
    assert again.equals(first)
    assert calls == [count]  # it knows by now that they are wrapped
    assert np.array_equal(again.column("score").to_numpy(), np.arange(count) / 2)


# -- keys in any format -------------------------------------------------------------------------------------------------------


def encoded(format: Any, **columns: Any) -> list[bytes]:
    return list(format.encoder("people").encode(pa.RecordBatch.from_pydict(columns)).to_pylist())


@pytest.mark.parametrize("kind", ["int64", "string"])
async def test_a_tombstone_whose_key_is_in_avro_deletes_its_row(memory_url: str, kind: str) -> None:
    """The way of Debezium with Avro: keys became dead letters, or texts of no row, so that deleted rows stayed."""
    registry = LocalRegistry()
    ids = ["a", "b"] if kind == "string" else [1, 2]
    key = Avro(registry=registry, subject="people-key")
    keys = encoded(key, id=pa.array(ids, kind))
    values = encoded(Avro(registry=registry), id=pa.array(ids, kind), name=["Ann", "Bob"])
    app = App("avro", memory_url)
    for at, payload in ((0, values[0]), (1, values[1]), (0, None)):
        await app.send("people", payload, key=keys[at])
    table = app.table("people", key="id", format=Avro(registry=registry), until="now")
    assert table.materialize().collect().to_pylist() == [{"id": ids[1], "name": "Bob"}]


def named(kind: str, name: str, **more: Any) -> dict[str, Any]:
    """A type to which Connect's Avro converter gives only a name: older ones write no logicalType."""
    return {"type": kind, "connect.version": 1, "connect.name": name, **more}


EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
CONNECT, DEBEZIUM = "org.apache.kafka.connect.data.", "io.debezium.time."
NAMED_KEYS: dict[str, tuple[Any, list[Any]]] = {  # types of Avro, named as a writer likes, and two values
    "enum": ({"type": "enum", "name": "Shop", "symbols": ["A", "B"]}, ["A", "B"]),
    "maybe enum": (["null", {"type": "enum", "name": "Shop", "symbols": ["A", "B"]}], ["A", "B"]),
    "uuid": ({"type": "string", "logicalType": "uuid"}, [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))]),
    "time": ({"type": "int", "logicalType": "time-millis"}, [dt.time(), dt.time(23, 59, 59, 999000)]),
    "fine time": ({"type": "long", "logicalType": "time-micros"}, [dt.time(0, 0, 0, 1), dt.time(0, 0, 0, 2)]),
    "day": ({"type": "int", "logicalType": "date"}, [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "fixed decimal": (
        {"type": "fixed", "name": "Price", "size": 5, "logicalType": "decimal", "precision": 9, "scale": 3},
        [Decimal("0.001"), Decimal("-0.001")],
    ),
    "decimal of Connect": (
        named("bytes", CONNECT + "Decimal", **{"connect.parameters": {"scale": "2"}}),
        [Decimal("1.10"), Decimal("-2.00")],
    ),
    "decimal of Connect with its digits": (
        named("bytes", CONNECT + "Decimal", scale=2, precision=10),
        [Decimal("1.10"), Decimal("-2.00")],
    ),
    "time of Connect": (
        named("long", CONNECT + "Timestamp"),
        [dt.datetime(1969, 12, 31, 23, 59, 59, 999000, dt.UTC), EPOCH],
    ),
    "day of Connect": (named("int", CONNECT + "Date"), [dt.date(1969, 12, 31), dt.date(1970, 1, 1)]),
    "clock of Connect": (named("int", CONNECT + "Time"), [dt.time(0, 0, 0, 1000), dt.time(23, 59, 59, 999000)]),
    "nanoseconds of Debezium": (named("long", DEBEZIUM + "NanoTime"), [dt.time(0, 0, 0, 1), dt.time(0, 0, 0, 2)]),
    "fixed uuid": (
        {"type": "fixed", "name": "Id", "size": 16, "logicalType": "uuid"},
        [str(uuid.UUID(int=1)), str(uuid.UUID(int=2))],
    ),
}
PLAIN_OF: dict[str, Callable[[Any], Any]] = {  # what such a type is without its meaning
    "decimal of Connect": lambda value: int(value * 100).to_bytes(2, "big", signed=True),
    "decimal of Connect with its digits": lambda value: int(value * 100).to_bytes(2, "big", signed=True),
    "time of Connect": lambda value: (value - EPOCH) // dt.timedelta(milliseconds=1),
    "day of Connect": lambda value: (value - EPOCH.date()).days,
    "clock of Connect": lambda value: (
        ((value.hour * 60 + value.minute) * 60 + value.second) * 1000 + value.microsecond // 1000
    ),
    "nanoseconds of Debezium": lambda value: value.microsecond * 1000,
    "fixed uuid": lambda value: uuid.UUID(value).bytes,
}


@pytest.mark.parametrize("form", ["record", "alone"])
@pytest.mark.parametrize("name", NAMED_KEYS)
async def test_a_tombstone_in_avro_deletes_its_row_whatever_the_type_of_its_key_is(
    memory_url: str, name: str, form: str
) -> None:
    """Of enums, of UUIDs in 16 bytes and of keys without a record they were dead letters, so that deleted rows stayed; a
    table whose key is a time of day was refused. Connect's own types were numbers where they had only a name.
    """
    kind, ids = NAMED_KEYS[name]
    plain, registry = PLAIN_OF.get(name), LocalRegistry()
    value = {"type": "record", "name": "db.Row", "fields": [{"name": "id", "type": kind}, {"name": "n", "type": "int"}]}
    key = {"type": "record", "name": "db.Key", "fields": [{"name": "id", "type": kind}]} if form == "record" else kind

    def written(subject: str, schema: Any, row: Any) -> bytes:
        file, text = io.BytesIO(), json.dumps(schema)
        bare = json.loads(text.replace('"logicalType": "uuid"', '"is": "uuid"')) if plain else schema
        fastavro.schemaless_writer(file, bare, row)
        return b"\0" + registry.register(subject, text, "AVRO").to_bytes(4) + file.getvalue()

    app = App("avro", memory_url)
    for id, n in ((ids[0], 1), (ids[1], 2), (ids[0], None)):
        id = plain(id) if plain else id
        payload = None if n is None else written("people-value", value, {"id": id, "n": n})
        await app.send("people", payload, key=written("people-key", key, {"id": id} if form == "record" else id))
    table = app.table("people", key="id", format=Avro(registry=registry), until="now")
    assert table.materialize().collect().to_pylist() == [{"id": ids[1], "n": 2}]


AVRO_OF = {
    kind: Avro({"type": "record", "name": "k", "fields": [{"name": "id", "type": kind}]}) for kind in ("long", "int")
}


@pytest.mark.parametrize("key", [*AVRO_OF.values(), "registry", "csv", "json"], ids=str)
async def test_keys_have_any_format_of_payloads(memory_url: str, key: Any) -> None:
    found = Avro(registry=LocalRegistry()) if key == "registry" else key
    kind = pa.int32() if key == AVRO_OF["int"] else pa.int64()
    keys = [b"1", b"2"] if isinstance(found, str) else encoded(found, id=pa.array([1, 2], kind))
    app = App("keys", memory_url)
    for at, payload in ((0, {"name": "Ann"}), (1, {"name": "Bob"}), (0, None)):
        await app.send("people", payload, key=keys[at])
    schema = {"id": "int64", "name": "string"}
    table = app.table("people", key="id", schema=schema, key_format=found, until="now")
    assert table.materialize().collect().to_pylist() == [{"id": 2, "name": "Bob"}]


async def test_a_key_in_another_format_than_declared_is_a_dead_letter_and_one_in_arrow_is_refused(
    memory_url: str,
) -> None:
    app = App("keys", memory_url)
    await app.send("people", None, key=b"\xff")
    schema = {"id": "int64", "name": "string"}
    avro = Avro({"type": "record", "name": "k", "fields": [{"name": "id", "type": "string"}]})
    assert (
        app.table("people", key="id", schema=schema, key_format="csv", until="now").materialize().collect().num_rows
        == 0
    )
    with pytest.raises(UserError, match="whose records have many rows"):
        app.table("people", key="id", schema=schema, key_format="arrow")
    assert (
        app.table("people", key="id", schema=schema, key_format=avro, until="now").materialize().collect().num_rows == 0
    )


# -- dates as days ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
@pytest.mark.parametrize("form", ["payload", "key", "lines", "array"])
def test_a_date_in_plain_json_is_in_days_in_ms_or_a_text(tmp_path: Path, form: str, kind: pa.DataType) -> None:
    """Kafka Connect writes days, which were taken as ms: each was 1970-01-01."""
    days = [dt.date(2024, 1, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(1970, 1, 2), dt.date(1969, 12, 31)]
    numbers = [(day - dt.date(1970, 1, 1)).days for day in days]
    written = [*numbers, *(86_400_000 * each for each in numbers), *map(str, days), 0, "1970-01-01", None]
    rows = [{"n": n, "d": each} for n, each in enumerate(written)]
    schema = pa.schema([("n", pa.int64()), ("d", kind)])
    expected = [*days, *days, *days, dt.date(1970, 1, 1), dt.date(1970, 1, 1), None]
    if form == "payload":
        found, bad = JsonCodec(schema).decode(records(*((None, row) for row in rows), (None, b"{"), (None, {"d": "x"})))
        assert [each.row for each in bad] == [len(rows), len(rows) + 1]
    elif form == "key":
        codec = TableCodec(schema, ["n", "d"])
        found, _ = codec.decode(records(*((row, None) for row in rows[:-1])))
        expected = expected[:-1]
    else:
        file = tmp_path / "days.json"
        lines = [json.dumps(row) for row in rows]
        file.write_text("[" + ",".join(lines) + "]" if form == "array" else "\n".join(["{", *lines]))
        source = files(file)
        source.scan(schema, None)
        source.open(None)
        found = source.read_batch(100, 0).data
    assert found["d"].to_pylist() == expected


def test_plain_rows_may_have_the_schema_of_connect_around_them() -> None:
    """Connect's default for values as for keys: each row was a dead letter, or nulls."""
    fields = [
        {"field": "id", "type": "int64"},
        {"field": "at", "type": "int64", "name": "io.debezium.time.MicroTimestamp"},
        {"field": "day", "type": "int32", "name": "io.debezium.time.Date"},
        {
            "field": "price",
            "type": "bytes",
            "name": "org.apache.kafka.connect.data.Decimal",
            "parameters": {"scale": "2"},
        },
    ]
    around = {"type": "struct", "fields": fields}
    price = base64.b64encode((1999).to_bytes(2, "big")).decode()
    row = {"id": 1, "at": 1_700_000_000_123_456, "day": 19723, "price": price}
    kinds = [("id", pa.int64()), ("at", pa.timestamp("us")), ("day", pa.date32()), ("price", pa.decimal128(9, 2))]
    codec = TableCodec(pa.schema(kinds), ["id"])
    found, bad = read(
        codec,
        ({"id": 1}, {"schema": around, "payload": row}),
        ({"id": 2}, {"id": 2, "at": 1_700_000_000_123, "day": "2024-01-01", "price": 5}),
        ({"schema": around, "payload": {"id": 3}}, {"schema": around, "payload": {**row, "id": 3}}),
        ({"id": 4}, {"schema": around, "payload": None}),
        ({"id": 5}, {"schema": around, "payload": {**row, "id": 5, "day": "soon"}}),
        ({"id": 1}, None),
    )
    made = {"at": dt.datetime(2023, 11, 14, 22, 13, 20, 123456), "day": dt.date(2024, 1, 1), "price": Decimal("19.99")}
    assert [(each["id"], each[OP_COLUMN]) for each in found] == [(1, INSERT), (2, INSERT), (3, INSERT), (1, DELETE)]
    assert found[0] == {"id": 1, **made, OP_COLUMN: INSERT}
    assert found[2] == {"id": 3, **made, OP_COLUMN: INSERT}
    assert found[1]["price"] == 5
    assert list(bad) == [3, 4]
    assert "no row in payload" in bad[3]
    assert "day" in bad[4]


NESTED = pa.struct([("d", pa.date32()), ("name", pa.string()), ("more", pa.list_(pa.date32()))])


@pytest.mark.parametrize("form", ["payload", "key", "lines", "array"])
def test_dates_in_lists_and_structs_of_plain_json_are_in_days_in_ms_or_texts_too(tmp_path: Path, form: str) -> None:
    day, other = dt.date(2024, 1, 1), dt.date(1987, 6, 5)
    number, another = ((each - dt.date(1970, 1, 1)).days for each in (day, other))
    schema = pa.schema(
        [("n", pa.int64()), ("one", NESTED), ("many", pa.list_(NESTED)), ("days", pa.list_(pa.date32()))]
    )
    first, last = dt.date(1970, 1, 1), dt.date(1969, 12, 31)
    empty = {"d": None, "name": "x", "more": None}
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (
            {"one": {"d": number, "name": "a", "more": [number, None, another]}, "days": [another, number]},
            {"one": {"d": day, "name": "a", "more": [day, None, other]}, "days": [other, day]},
        ),
        ({"one": None, "many": [], "days": None}, {"one": None, "many": [], "days": None}),
        (
            {"many": [{"d": number, "name": "b", "more": []}, None, {"name": "x"}], "days": []},
            {"many": [{"d": day, "name": "b", "more": []}, None, empty], "days": []},
        ),
        (
            {"one": {"d": "2024-01-01", "name": None, "more": [number]}, "days": [number * 86_400_000, "1970-01-01"]},
            {"one": {"d": day, "name": None, "more": [day]}, "days": [day, dt.date(1970, 1, 1)]},
        ),
        ({"one": {"d": 0}, "days": [0, -1]}, {"one": {**empty, "d": first, "name": None}, "days": [first, last]}),
    ]
    given = [{"n": n, **row} for n, (row, _) in enumerate(rows)]
    if form == "payload":
        found, bad = JsonCodec(schema).decode(records((None, b"{"), *((None, row) for row in given)))
        assert [each.row for each in bad] == [0]
    elif form == "key":
        codec = TableCodec(pa.schema([("n", pa.int64()), ("one", pa.struct([("d", pa.date32())]))]), ["n", "one"])
        found, _ = codec.decode(records(*(({"n": row["n"], "one": {"d": number}}, None) for row in given)))
        assert found["one"].to_pylist() == [{"d": day}] * len(rows)
        return
    else:
        file = tmp_path / "days.json"
        lines = [json.dumps(row) for row in given]
        file.write_text("[" + ",".join(lines) + "]" if form == "array" else "\n".join(lines))
        source = files(file)
        source.scan(schema, None)
        source.open(None)
        found = source.read_batch(100, 0).data
    expected = [{"n": n, **dict.fromkeys(["one", "many", "days"]), **right} for n, (_, right) in enumerate(rows)]
    assert found.select(schema.names).to_pylist() == expected
    found.validate(full=True)
