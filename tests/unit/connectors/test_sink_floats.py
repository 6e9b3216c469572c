"""NaN and infinities, where a sink's format has no form for them: null with a warning, null because the user says so, or refused."""

import dataclasses
import logging
import math
import sqlite3

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import AgentFailed, App, SqlSink, UserError
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import encode_json, nulled_fields
from sabot.connectors.console import console
from sabot.connectors.files import CsvSink, NdjsonSink, ParquetSink
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.sink import SinkWriter
from sabot.testing import ListSink, ScriptedSource
from sabot.testing.script import END
from tools.agent_tools import publish, started, until, values

NAN, INF = math.nan, math.inf
ROWS = pa.record_batch({"id": [1, 2, 3, 4], "x": [0.5, NAN, None, -INF], "y": [1.0, 2.0, INF, 3.0], "z": [1.0] * 4})


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


def scores(app, *batches):
    return app.stream(ScriptedSource([*(batches or (ROWS,)), END], schema=(batches or (ROWS,))[0].schema))


def writer(sink, nan=None, key=None):
    made = SinkWriter(sink, key, None, lambda: 0, nan=nan)
    made.open(OperatorContext(ROWS.schema))
    return made


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if "for which its format has no form" in each.getMessage()]


def counts(figures):
    """All counts of floats that became null, at any depth."""
    for name, value in figures.items():
        if name == "nulled":
            yield value
        elif isinstance(value, dict):
            yield from counts(value)


async def test_json_has_null_and_says_so_once_for_each_column(app, caplog):
    scores(app, ROWS, ROWS).to("scores")
    await app.run()
    assert [row["x"] for row in values(app, "scores")] == [0.5, None, None, None] * 2
    first, second = warnings(caplog)
    assert "sink scores: column 'x' is nan in row 1 of " in first
    assert "sink scores: column 'y' is inf in row 2 of " in second
    assert 'nan="fail"' in first
    assert [*counts(app.statistics()["streams"])] == [6]


async def test_null_that_is_meant_is_counted_and_not_told_of(app, caplog):
    scores(app).to("scores", nan="null")
    await app.run()
    assert [row["x"] for row in values(app, "scores")] == [0.5, None, None, None]
    assert warnings(caplog) == []


async def test_fail_stops_the_app_before_the_batch_is_written(app):
    scores(app).to("scores", nan="fail")
    with pytest.raises(UserError, match=r"sink scores: column 'x' is nan in row 1 of 4") as raised:
        await app.run()
    assert "col('x').is_finite()" in raised.value.hint
    assert values(app, "scores") == []


async def test_sqlite_keeps_infinities_and_has_null_for_nan(app, tmp_path, caplog):
    scores(app).to(SqlSink(f"sqlite:///{tmp_path}/s.db", "scores"))
    await app.run()
    with sqlite3.connect(tmp_path / "s.db") as database:
        assert database.execute("SELECT x, y FROM scores ORDER BY id").fetchall() == [
            *[(0.5, 1.0), (None, 2.0), (None, INF), (-INF, 3.0)]
        ]
    assert len(warnings(caplog)) == 1


async def test_formats_that_have_them_keep_them_and_say_nothing(app, tmp_path, caplog):
    stream, made = scores(app), ListSink()
    for sink in (ParquetSink(tmp_path / "s.parquet"), CsvSink(tmp_path / "s.csv"), made):
        stream.to(sink, nan="fail")
    await app.run()
    assert math.isnan(pq.read_table(tmp_path / "s.parquet")["x"][1].as_py())
    assert "nan" in (tmp_path / "s.csv").read_text()
    assert math.isnan(made.rows[1]["x"])
    assert warnings(caplog) == []


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_each_way_of_delivery_refuses_them(memory_url, tmp_path, delivery):
    app = App("shop", broker=memory_url, state=str(tmp_path / "state"))
    scores(app).to(NdjsonSink(tmp_path / "s.ndjson"), delivery=delivery, nan="fail")
    with pytest.raises(UserError, match="column 'x' is nan"):
        await app.run()


@pytest.mark.parametrize(
    ("column", "count"),
    [
        (pa.array([[1.0], [NAN, INF], None, []]), 2),
        (pa.array([{"a": 1.0}, {"a": NAN}, None, {"a": None}]), 1),
        (pa.array([1.0, NAN, 1.0, NAN]).dictionary_encode(), 2),
        (pa.array([1.0, NAN, None, INF], pa.float32()), 2),
    ],
)
def test_floats_within_other_values_and_of_any_width_are_seen(column, count, caplog):
    made = writer(console())
    made.process(Batch(pa.record_batch({"v": column}), {("orders", 0): 9}, "orders"))
    assert made.statistics() == {"sink": "console", "rows_out": 4, "nulled": count}
    [told] = warnings(caplog)
    assert "column 'v' " in told
    assert "in row 1 of 4 from orders, before orders[0]@9" in told


def test_with_a_key_rows_are_json_whatever_the_sink(caplog):
    made = writer(ListSink(), key="id")
    made.process(Batch(ROWS))
    assert made.nulled == 3
    made.flush()
    assert [row["x"] for row in made.sink.rows] == [0.5, None, None, None]


def test_a_batch_without_them_costs_no_word(caplog):
    caplog.set_level(logging.WARNING)
    made = writer(console())
    made.process(Batch(ROWS.slice(0, 1)))
    made.process(Batch(ROWS.slice(0, 0)))
    assert made.statistics() == {"sink": "console", "rows_out": 1}
    assert warnings(caplog) == []


def test_nested_values_are_json_in_postgres_whose_columns_of_floats_have_all():
    sink = SqlSink("postgresql://nobody@127.0.0.1:1/none", "scores")
    assert sink.floats_lost(pa.float64()) is None
    assert sink.floats_lost(pa.list_(pa.float64())) == "not_finite"


async def test_nan_is_null_or_fail_and_one_for_a_sink(app):
    stream = scores(app)
    with pytest.raises(UserError, match=r"to\('scores'\): nan='zero'"):
        stream.to("scores", nan="zero")
    stream.to("scores", nan="fail")
    scores(app).to("scores")
    with pytest.raises(UserError, match="with different nan="):
        await app.run()


# -- agents ----------------------------------------------------------------------------------------------------------


def told_by_agents(caplog):
    return [each.getMessage() for each in caplog.records if "JSON has no form" in each.getMessage()]


async def test_a_result_of_a_record_agent_is_told_of_once_for_each_field(app, caplog):
    @app.agent("orders", sink="scores")
    def score(ctx):
        n = ctx.message["n"]
        return (
            {"n": n, "x": NAN, "of": [{"y": np.float32(INF)}], "none": None}
            if n
            else {"n": 0, "none": None, "t": "null"}
        )

    @app.agent("orders", sink="more")
    def several(ctx):
        yield {"x": 1.0}
        yield {"z": -INF}

    publish(app, "orders", [{"n": 0}, {"n": 1}, {"n": 2}])
    async with started(app):
        await until(lambda: len(values(app, "scores")) == 3 and len(values(app, "more")) == 6)
        figures = app.statistics()["operators"]
    assert values(app, "scores")[1] == {"n": 1, "x": None, "of": [{"y": None}], "none": None}
    assert figures["shop.score"]["nulled"] == 4
    assert figures["shop.several"]["nulled"] == 3
    told = sorted(told_by_agents(caplog))
    assert len(told) == 3
    assert "agent shop.score: 'of[].y' of its result for orders[0]@1 is NaN or infinite" in told[0]
    assert "agent shop.score: 'x' of its result" in told[1]
    assert "agent shop.several: 'z' of its result" in told[2]


async def test_fields_without_end_are_counted_and_do_not_fill_the_log(app, caplog):
    @app.agent("orders", sink="scores")
    def score(ctx):
        return {f"field {number}": NAN for number in range(150)}

    publish(app, "orders", [{"n": 0}])
    async with started(app):
        await until(lambda: app.statistics()["operators"]["shop.score"].get("nulled") == 150)
    assert len(told_by_agents(caplog)) == 100


async def test_columns_of_a_batch_agent_are_told_of_by_their_sink(app, caplog):
    @app.agent("orders", sink="scores", batch=True, schema={"n": "int64"})
    def score(batch, ctx):
        return pa.record_batch({"x": pa.array([NAN] * batch.num_rows)})

    publish(app, "orders", [{"n": 1}, {"n": 2}])
    async with started(app):
        await until(lambda: len(values(app, "scores")) == 2)
        assert app.statistics()["sinks"]["scores"]["nulled"] == 2
    assert len(warnings(caplog)) == 1
    assert values(app, "scores") == [{"x": None}] * 2


async def test_an_agent_says_what_becomes_of_nan(app, caplog):
    @app.agent("orders", sink="meant", nan="null")
    async def meant(ctx):
        return {"x": NAN}

    @app.agent("orders", sink="refused", nan="fail", on_error="skip")
    async def refused(ctx):
        return {"n": ctx.message["n"], "x": NAN if ctx.message["n"] == 1 else 1.0}

    publish(app, "orders", [{"n": 1}, {"n": 2}])
    async with started(app):
        await until(lambda: len(values(app, "meant")) == 2 and len(values(app, "refused")) == 1)
        await until(lambda: len(values(app, "orders.dlq")) == 1)
    assert values(app, "refused") == [{"n": 2, "x": 1.0}]
    assert values(app, "orders.dlq") == [{"n": 1}]
    [told] = told_by_agents(caplog)
    assert "agent shop.refused: UserError: 'x' of its result for " in told
    assert "it is a dead letter" in told


async def test_nan_of_a_batch_agent_stops_the_app(app):
    @app.agent("orders", sink="scores", batch=True, schema={"n": "int64"}, nan="fail")
    def score(batch, ctx):
        return pa.record_batch({"x": pa.array([NAN] * batch.num_rows)})

    publish(app, "orders", [{"n": 1}])
    with pytest.raises(
        AgentFailed, match=r"'x' is nan in row 0 of 1 from shop\.score, for which its format has no form"
    ):
        await app.run()
    assert values(app, "scores") == []


async def test_writers_of_one_sink_agree_on_nan(app, tmp_path):
    def agent(name, sink, nan, app=app):
        app.agent("orders", sink=sink, nan=nan, name=name)(lambda ctx: None)

    with pytest.raises(UserError, match="nan='zero'"):
        agent("wrong", "scores", "zero")
    with pytest.raises(UserError, match="nan='fail' without a topic or Sink"):
        agent("nowhere", None, "fail")
    agent("one", "scores", "fail")
    agent("two", "scores", None)
    with pytest.raises(UserError, match=r"sink scores: agent shop\.two and another writer have different nan="):
        await app.start()
    both, sink = App("both", broker=app.broker), NdjsonSink(tmp_path / "scores.ndjson")
    scores(both).to(sink)
    agent("three", sink, "null", both)
    with pytest.raises(UserError, match=r"agent both\.three and another writer have different nan="):
        await both.start()


@dataclasses.dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ({"a": 1.0, "t": "null", "none": None, "raw": msgspec.Raw(b"null"), "b": b"x"}, []),
        (NAN, [""]),
        ({"points": [Point(INF), Point(1.0), Point(NAN)]}, ["points[].x", "points[].x"]),
        ({1: (NAN,), "array": np.array([1.0, NAN]), "small": np.float32(INF)}, ["1[]", "array[]", "small"]),
    ],
)
def test_places_of_values_that_json_has_as_null(value, places):
    encode_json(value)
    assert sorted(nulled_fields(value)) == places
