"""`fields=`: the key, headers, place and time of records as columns of a stream, beside those of their payloads."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, UserError, col, files, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.codecs import JsonCodec
from sabot.codecs.fields import FieldCodec
from sabot.codecs.records import build_records
from sabot.connectors.base import Bounded, Positions, Source
from sabot.testing import ListSink, MemoryBroker
from tools.agent_tools import bounded, started, until, values

SCHEMA = {"n": "int64"}
KEYS = [b"a", None, "é".encode(), b"b"]
HEADERS: list[Any] = [(("trace", b"1"), ("by", b"x"), ("trace", b"2")), (), (("by", b"y"),), ()]


def records(keys: Any = KEYS, headers: Any = HEADERS) -> pa.RecordBatch:
    payloads = [b'{"n":%d}' % n for n in range(len(keys))]
    return build_records(payloads, keys, [1000 * n for n in range(len(keys))], 3, range(10, 10 + len(keys)), headers)


def decoded(data: pa.RecordBatch, *fields: str) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    codec = FieldCodec(JsonCodec(pa.schema([("n", pa.int64())])), [(field, field) for field in fields])
    rows, bad = codec.decode(data)
    assert rows.schema == codec.schema
    return rows, [(each.row, each.reason) for each in bad]


def test_each_field_is_a_column_of_its_own_type() -> None:
    fields = ("key", "key_bytes", "headers", "headers.trace", "partition", "offset", "timestamp")
    rows, bad = decoded(records().slice(1), *fields)
    assert not bad
    assert list(map(str, rows.schema.types[1:])) == [
        *("string", "binary", "list<item: struct<name: string, value: binary>>", "string"),
        *("int32", "int64", "timestamp[ms, tz=UTC]"),
    ]
    assert rows["key"].to_pylist() == [None, "é", "b"]
    assert rows["key_bytes"].to_pylist() == KEYS[1:]
    assert rows["headers"].to_pylist() == [None, [{"name": "by", "value": b"y"}], None]
    assert (rows["partition"].to_pylist(), rows["offset"].to_pylist()) == ([3] * 3, [11, 12, 13])
    assert rows["timestamp"].cast(pa.int64()).to_pylist() == [1000, 2000, 3000]


def test_of_several_headers_of_a_name_the_last_one_counts() -> None:
    assert decoded(records(), "headers.trace")[0].column(1).to_pylist() == ["2", None, None, None]
    assert decoded(records().slice(1), "headers.by")[0].column(1).to_pylist() == [None, "y", None]
    assert decoded(records(headers=None), "headers.by")[0].column(1).to_pylist() == [None] * 4


def test_fields_stay_with_their_records_where_some_are_bad() -> None:
    """A payload that is no JSON, a key and a header that are no text: the others keep their own keys."""
    data = records([b"a", b"b", b"\xff", b"d", b"e"], [(), (), (), (("by", b"\xfe"),), ()])
    data = data.set_column(0, data.schema.field(0), pa.array([b"{", *data["payload"].to_pylist()[1:]]))
    rows, bad = decoded(data, "key", "headers.by", "offset")
    assert rows.to_pylist() == [
        {"n": n, "key": key, "headers.by": None, "offset": 10 + n} for n, key in [(1, "b"), (4, "e")]
    ]
    assert [row for row, _ in bad] == [0, 2, 3]
    assert bad[1][1] == "its key is not UTF-8 text: b'\\xff' (the field 'key_bytes' gives it as bytes)"
    assert bad[2][1].startswith("its header 'by' is not UTF-8 text")


class Columns(Source, Bounded):
    """Gives columns, and does not say so before it is read."""

    name = "columns"
    exhausted = False

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Nothing to open."""

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        return Batch(pa.record_batch({"n": [1]}), {(self.name, 0): 1}, self.name)

    def positions(self) -> Positions:
        return {(self.name, 0): 0}

    def close(self) -> None:
        """Nothing is open."""


def topic(url: str, count: int = 4) -> App:
    broker = MemoryBroker.get(url)
    broker.create_topic("in", 2)
    for n in range(count):
        broker.publish("in", [{"n": n}], key=b"k%d" % (n % 2))
    return App("fields", url)


def test_columns_are_read_as_far_as_they_are_used(memory_url: str) -> None:
    stream = topic(memory_url).stream("in", schema=SCHEMA, fields={"k": "key", "at": "offset"})
    assert stream.schema.names == ["n", "k", "at"]
    assert "read in: k" in stream.select("k").explain()
    assert sorted(stream.select("k").collect(limit=4)["k"].to_pylist()) == ["k0", "k0", "k1", "k1"]
    assert "read in: k, at\n" in stream.filter(col("at") > 0).select("k").explain()


def test_columns_that_are_inferred_have_the_fields_behind_them(memory_url: str) -> None:
    stream = topic(memory_url).stream("in", fields=["key", "timestamp"])
    assert stream.collect(limit=4).column_names == ["n", "key", "timestamp"]


def test_the_time_of_a_record_may_be_event_time_by_its_name(memory_url: str) -> None:
    stream = topic(memory_url).stream("in", schema=SCHEMA, fields={"at": "timestamp"}, time="at")
    assert "event time from at" in stream.key_by("n").window(tumbling("1s")).aggregate(c=sabot.count()).explain()
    with pytest.raises(UserError, match="time='timestamp' is not one of the columns"):
        topic(memory_url).stream("in", schema=SCHEMA, fields={"at": "timestamp"}, time="timestamp")


def test_a_column_of_the_payload_of_that_name_is_refused_by_its_name(memory_url: str) -> None:
    app = topic(memory_url)
    said = r"stream in: 'n' is a column of the payloads and also of fields= .*\{\"record_n\": \"key\"\}"
    with pytest.raises(UserError, match=said):
        app.stream("in", schema=SCHEMA, fields={"n": "key"})
    with pytest.raises(UserError, match=said):
        app.stream("in", fields={"n": "key"}).collect(limit=1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("key", "fields='key' .fields=.{2}key"),
        (["topic"], "fields= has 'topic', which is not a field of a record .one of 'key'"),
        (["headers."], "fields= has 'headers.', which"),
        ({"key": 3}, "fields= has 3"),
        (["key", "key"], "cannot name a column 'key' .each has a name of its own"),
    ],
)
def test_what_is_no_field_is_refused(memory_url: str, fields: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        App("fields", memory_url).stream("in", fields=fields)


def test_rows_that_are_no_records_have_no_fields(memory_url: str, tmp_path: Path) -> None:
    app = App("fields", memory_url)
    (tmp_path / "rows.ndjson").write_text('{"n": 1}\n')
    with pytest.raises(UserError, match=r"rows\.ndjson has rows"):
        app.stream(files(tmp_path / "rows.ndjson"), fields=["offset"])
    with pytest.raises(UserError, match=r"its source returns columns \(leave fields= out"):
        app.stream(Columns(), schema=SCHEMA, fields=["offset"]).collect()

    @app.agent("in")
    async def doubled(ctx: Any) -> Any:
        return ctx.message

    with pytest.raises(UserError, match="fields= are for records"):
        app.stream(doubled, schema=SCHEMA, fields=["offset"])


async def test_a_stream_that_lives_may_take_fields_in(memory_url: str, tmp_path: Path) -> None:
    """They are columns that the checkpoint did not have: what was counted stays, inferred columns too."""
    topic(memory_url)
    for life, fields in enumerate([[], ["partition"]]):
        app = App("fields", memory_url, state=str(tmp_path / "state"))
        counts = (
            app.stream("in", fields=fields).key_by("n").aggregate(c=sabot.count(), **{f: sabot.max(f) for f in fields})
        )
        counts.to("counts", delivery="at_least_once")
        async with started(app):
            MemoryBroker.get(memory_url).publish("in", [{"n": 3}], partition=1)
            last = {"n": 3, "c": 2 + life} | dict.fromkeys(fields, 1)
            await until(lambda app=app, wanted=last: wanted in values(app, "counts"))
            await bounded(app.stop())


async def test_a_table_has_the_fields_of_the_records_that_its_rows_came_in(memory_url: str) -> None:
    """Also behind a tombstone and a record that is bad; event time may be one of them."""
    broker, app, out = MemoryBroker.get(memory_url), App("table", memory_url, checkpoint_interval="20ms"), ListSink()

    def publish(*records: tuple[bytes, bytes | None]) -> None:
        for key, payload in records:
            broker.publish("names", [payload], key=key)

    publish((b"a", b'{"name":"Ada"}'), (b"a", b"{"), (b"b", b'{"name":"Bob"}'))
    schema = {"k": "string", "name": "string"}
    fields = {"at": "offset", "of": "key", "when": "timestamp"}
    table = app.table("names", key="k", schema=schema, fields=fields, time="when")
    table.select("k", "name", "at", "of").changelog().to(out)
    async with started(app):
        await until(lambda: len(out.rows) == 2)
        publish((b"a", None), (b"b", b'{"name":"Eve"}'))
        await until(lambda: len(out.rows) == 5)
    assert sorted(map(repr, out.rows[:2])) == [
        "{'op': 'insert', 'k': 'a', 'name': 'Ada', 'at': 0, 'of': 'a'}",
        "{'op': 'insert', 'k': 'b', 'name': 'Bob', 'at': 2, 'of': 'b'}",
    ]
    assert {"op": "delete", "k": "a", "name": "Ada", "at": 0, "of": "a"} in out.rows[2:]
    assert {"op": "update_after", "k": "b", "name": "Eve", "at": 4, "of": "b"} in out.rows[2:]
    with pytest.raises(UserError, match="a record of debezium may change two rows"):
        app.table("orders", key="k", schema=schema, format="debezium", fields=["offset"])


async def test_a_table_whose_key_is_a_field_of_the_record_is_refused_by_name(memory_url: str) -> None:
    app = App("keys", memory_url)
    await app.send("rows", {"a": 1}, key="x")
    rows = app.table("rows", key="k", schema={"a": "int64"}, fields={"k": "key"}, until="now")
    with pytest.raises(UserError, match="a table needs a key among its columns, not 'k'"):
        rows.materialize().collect()
