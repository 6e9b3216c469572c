"""Columns of types that a sink can never write are refused at the start, by sink, column and type, with the way out."""

import datetime
import decimal

import pyarrow as pa
import pytest

from sabot import App, SqlSink, UserError, col
from sabot.connectors.files import ArrowSink, CsvSink, NdjsonSink, ParquetSink
from sabot.connectors.sql.postgres import PostgresDatabase
from sabot.testing import ListSink, ScriptedSource
from sabot.testing.script import END
from tools.agent_tools import publish, records, started, state_of, until, values

PRICES = pa.record_batch({"id": ["a"], "price": pa.array([decimal.Decimal("1.50")])})
HOURS = pa.record_batch({"id": ["a"], "opens": [datetime.timedelta(hours=9)]})
INTERVAL = pa.month_day_nano_interval()


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


def prices(app, data=HOURS):
    source = ScriptedSource([data, END], schema=data.schema)
    return app.stream(source), source


def database(path):
    return SqlSink(f"sqlite:///{path}/p.db", "prices")


@pytest.mark.parametrize(
    ("make", "kind", "what"),
    [
        (lambda path: "prices", pa.duration("s"), "topic 'prices': column 'v' of type duration[s] cannot be written as JSON"),
        (lambda path: "prices", pa.list_(pa.duration("s")), "topic 'prices': column 'v' of type list<item: duration[s]>"),
        (lambda path: NdjsonSink(path / "p.ndjson"), pa.duration("s"), "p.ndjson': column 'v' of type duration[s]"),
        (lambda path: CsvSink(path / "p.csv"), pa.list_(pa.int64()), "p.csv': column 'v' of type list<item: int64> cannot"),
        (lambda path: CsvSink(path / "p.csv"), INTERVAL, "p.csv': column 'v' of type month_day_nano_interval"),
        (lambda path: ParquetSink(path / "p.parquet"), INTERVAL, "p.parquet': column 'v' of type month_day_nano_interval"),
        (database, INTERVAL, "column 'v' of type month_day_nano_interval cannot be written as SQL"),
        (database, pa.map_(pa.int64(), pa.int64()), "column 'v' of type map<int64, int64>"),
    ],
)  # fmt: skip
async def test_a_sink_refuses_at_the_start_what_its_format_cannot_say(app, tmp_path, make, kind, what):
    data = pa.record_batch({"id": ["a"], "v": pa.nulls(1, kind)})
    stream, source = prices(app, data)
    stream.to(make(tmp_path))
    with pytest.raises(UserError) as raised:
        await app.start()
    assert what in raised.value.message
    assert "drop('v')" in raised.value.hint
    assert source.positions() == {("script", 0): 0}  # nothing was read
    assert app.statistics()["failure"] is None


async def test_what_the_hint_says_helps(app):
    stream, _ = prices(app)
    stream.with_columns(opens=col("opens").cast("string")).to("prices")
    await app.run()
    assert values(app, "prices") == [{"id": "a", "opens": "32400000000"}]


async def test_a_sink_of_several_streams_is_asked_for_each(app):
    one, _ = prices(app, pa.record_batch({"id": ["a"]}))
    two, _ = prices(app)
    one.to("prices")
    two.to("prices")
    with pytest.raises(UserError, match="topic 'prices': column 'opens' of type duration"):
        await app.start()


async def test_with_a_key_rows_are_json_whatever_the_sink(app):
    stream, _ = prices(app)
    stream.to(ListSink(), key="id")
    with pytest.raises(UserError, match=r"sink 'list', with key='id': column 'opens' of type duration"):
        await app.start()


async def test_changes_are_asked_for_too(app):
    stream, _ = prices(app)
    stream.upsert("id").to("prices")
    with pytest.raises(UserError, match="topic 'prices': column 'opens' of type duration"):
        await app.start()


async def test_sinks_that_hold_decimals_and_records_as_they_are_are_not_refused(app, tmp_path):
    made = ListSink()
    stream, _ = prices(app, PRICES)
    for sink in (
        ParquetSink(tmp_path / "p.parquet"),
        ArrowSink(tmp_path / "p.arrow"),
        CsvSink(tmp_path / "p.csv"),
        made,
    ):
        stream.to(sink)
    stream.to(SqlSink(f"sqlite:///{tmp_path}/p.db", "prices"))
    await app.run()
    assert made.rows == PRICES.to_pylist()


async def test_a_result_of_a_batch_agent_that_its_sink_cannot_say_is_the_calls_error(app, tmp_path):
    @app.agent("orders", sink=CsvSink(tmp_path / "out.csv"), batch=True, schema={"n": "int64"}, on_error="skip")
    def lists(batch, ctx):
        n = batch["n"].to_pylist()
        return batch if n[0] < 2 else pa.record_batch({"n": [n]})

    publish(app, "orders", [{"n": 1}])
    async with started(app):
        await until(lambda: app.agent_runtime.get_stats()["shop.lists"]["messages_processed"] == 1)
        publish(app, "orders", [{"n": 2}])
        await until(lambda: len(records(app, "orders.dlq")) == 1)
        assert state_of(app, "lists") == "running"
        publish(app, "orders", [{"n": 0}])
        await until(lambda: app.agent_runtime.get_stats()["shop.lists"]["messages_processed"] == 2)
    assert (tmp_path / "out.csv").read_text().split() == ['"n"', "1", "0"]
    assert b"cannot be written as csv" in dict(records(app, "orders.dlq")[0].headers)["sabot.message"]


def test_postgres_is_asked_without_a_connection():
    database = PostgresDatabase("postgresql://nobody@127.0.0.1:1/none", "prices", ())
    database.try_types(PRICES.slice(0, 0))
    with pytest.raises(UserError, match="column 'v'"):
        database.try_types(pa.record_batch({"v": pa.array([], INTERVAL)}))
