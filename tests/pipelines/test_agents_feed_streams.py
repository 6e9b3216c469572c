"""What an agent gives is the source of a stream, without a topic: each row once, whatever dies, stops or waits."""

import asyncio
import datetime
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import AgentFailed, App, UserError, col, tumbling
from sabot.engine.runtime.agents.output import AgentOutput
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, simulate
from tools.agent_tools import bounded, publish, until, values

ROWS = [{"n": n, "k": n % 4, "ts": 1000 * n} for n in range(60)]
COLUMNS = {"n": "int64", "k": "int64", "ts": "int64"}
PARTS = [pa.RecordBatch.from_pylist(ROWS[start : start + 5]) for start in range(0, 60, 5)]


def passing(app: App, topic: Any, **options: Any) -> Any:
    """An agent that gives what it gets."""

    @app.agent(topic, name=options.pop("name", "give"), **options)
    async def give(ctx: Any) -> Any:
        return ctx.message

    return give


def source() -> ScriptedSource:
    return ScriptedSource([list(ROWS), END], name="rows")


# What a stream gets


async def test_the_rows_of_a_record_agent_are_decoded_by_the_schema(memory_url: str) -> None:
    app, sink = App("one", broker=memory_url), ListSink()

    @app.agent(ScriptedSource([[1, 2, 3], END], name="numbers"))
    async def give(ctx: Any) -> Any:
        yield {"n": ctx.message, "more": "left out"}
        yield {"n": "no number"}

    app.stream(give, schema={"n": "int64", "x": "string"}).to(sink)
    await bounded(app.run())
    assert sink.rows == [{"n": n, "x": None} for n in (1, 2, 3)]
    assert values(app, "one.give.dlq") == [{"n": "no number"}] * 3


async def test_the_columns_of_a_batch_agent_get_the_types_of_the_schema() -> None:
    app, sink = App("one"), ListSink()

    @app.agent(source(), batch=True, schema=COLUMNS)
    def give(batch: pa.RecordBatch, ctx: Any) -> Any:
        return batch.append_column("more", batch.column("n"))

    app.stream(give, schema={"n": "float64", "k": "int64"}).filter(col("n") < 2).to(sink)
    await bounded(app.run())
    assert sink.rows == [{"n": 0.0, "k": 0}, {"n": 1.0, "k": 1}]


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"gone": "int64"}, "there is no column 'gone'"),
        ({"word": "int64"}, "stream of one.give: "),
        ({"at": "date32"}, "stream of one.give: .* would be .* as date32"),
        ({"pairs": pa.list_(pa.float32())}, "stream of one.give: 1e\\+40 would be inf as float"),
    ],
)
async def test_columns_that_do_not_fit_are_the_call_s_error(schema: Any, says: str) -> None:
    app = App("one")

    @app.agent(source(), batch=True, schema=COLUMNS)
    def give(batch: pa.RecordBatch, ctx: Any) -> Any:
        at = datetime.datetime(2024, 1, 1, 5)
        return pa.RecordBatch.from_pydict({"word": ["no number"], "at": [at], "pairs": [[1.0, 1e40]]})

    app.stream(give, schema=schema).to(ListSink())
    with pytest.raises(AgentFailed, match=says):
        await bounded(app.run())


async def test_records_have_the_event_time_of_the_row_that_they_were_made_from(memory_url: str) -> None:
    app, sink = App("one", broker=memory_url), ListSink()
    give = passing(app, "rows")
    app.stream(give, schema={"n": "int64"}).window(tumbling("1s")).aggregate(n=sabot.count()).to(sink)
    for row in range(3):
        await app.send("rows", {"n": row}, timestamp=10_000 + 600 * row)
    await app.start()
    await until(lambda: app.statistics()["streams"]["read-1/0"]["input"]["rows_in"] == 3)
    await bounded(app.stop(drain=True))
    assert [row["n"] for row in sink.rows] == [2, 1]


async def test_a_stream_of_an_agent_reads_what_another_gave_to_it() -> None:
    app, sink = App("one"), ListSink()
    last = passing(app, None, name="last")
    passing(app, source(), sink=last)
    rows = app.stream(last, schema=COLUMNS, time="ts")
    rows.key_by("k").window(tumbling("30s")).aggregate(n=sabot.count()).to(sink)
    await bounded(app.run())
    assert sum(row["n"] for row in sink.rows) == 60


# What is refused


def test_what_cannot_be_read_is_refused_where_it_is_written() -> None:
    app = App("one")
    give, busy = passing(app, "rows"), passing(app, "rows", name="busy", sink="out")
    with pytest.raises(UserError, match=r"stream\(agent one\.give\): the columns are not known"):
        app.stream(give)
    with pytest.raises(UserError, match="the agent has a sink= already"):
        app.stream(busy, schema=COLUMNS)
    with pytest.raises(UserError, match="print is no agent of app one"):
        app.stream(print, schema=COLUMNS)


async def test_one_stream_reads_an_agent() -> None:
    app = App("one")
    give = passing(app, source())
    for _ in range(2):
        app.stream(give, schema=COLUMNS).to(ListSink())
    with pytest.raises(UserError, match=r"two streams read agent one\.give .*make one stream, and use it twice"):
        await bounded(app.start())


@pytest.mark.parametrize("through", [False, True])
async def test_a_ring_is_refused_and_named(through: bool) -> None:
    app = App("one")
    give, other = passing(app, None), passing(app, None, name="other")
    app.stream(give, schema=COLUMNS).to(other if through else give)
    if through:
        app.stream(other, schema=COLUMNS).to(give)
    ring = r"one\.give -> one\.other -> one\.give" if through else r"one\.give -> one\.give"
    with pytest.raises(UserError, match=f"agents and streams write into each other in a ring: {ring}"):
        await bounded(app.start())


def test_the_plan_shows_agents_among_streams() -> None:
    app = App("one")
    give = passing(app, "words")
    app.stream(source(), schema=COLUMNS).to(give)
    app.stream(give, schema=COLUMNS).to("out")
    graph = app.graph().splitlines()
    assert '    sone_give_in[["agent one.give"]]' in graph
    assert "  sfeed_1 --> sone_give_in" in graph
    assert "  sone_give_in --> sread_2_in" in graph


# Once, whatever happens


@pytest.mark.one_in(16, "half a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("chain", [False, True], ids=["one agent", "two agents"])
@pytest.mark.parametrize("batch", [False, True], ids=["records", "columns"])
@pytest.mark.parametrize("seed", range(2))
def test_each_row_comes_out_once_whatever_dies(
    seed: int, batch: bool, chain: bool, parallelism: int, tmp_path: Path
) -> None:
    """stream -> agent -> stream, and with two agents -> agent -> stream: rows as they are, and windows over them."""
    rows, windows = ListSink("rows"), ListSink("windows")

    def build(folder: Path) -> App:
        app = App(
            "one",
            parallelism=parallelism,
            state=str(folder),
            checkpoint_interval=0.02,
            restart="none",
        )
        marks = [*PARTS[:3], BARRIER, *PARTS[3:6], CRASH, *PARTS[6:9], BARRIER, CRASH, *PARTS[9:], END]

        async def columns(given: pa.RecordBatch, ctx: Any) -> Any:
            await asyncio.sleep(0.001)
            return given

        async def records(ctx: Any) -> Any:
            seen = (await ctx.state().get("seen") or 0) + 1
            await ctx.state().put("seen", seen)
            if ctx.message["n"] % 3 == 0:
                await asyncio.sleep(0.001)
            return {**ctx.message, "seen": seen}

        agent, other = (columns, records) if batch else (records, columns)
        if batch or chain:
            app.agent(batch=True)(columns)
        if not batch or chain:
            app.agent(key="k", concurrency=3)(records)
        app.stream(ScriptedSource(marks)).filter(col("n") >= 10).to(agent)
        out = app.stream(agent, schema=COLUMNS, time="ts", lateness="60s")
        if chain:
            out.to(other)
            out = app.stream(other, schema=COLUMNS, time="ts", lateness="60s")
        out.to(rows, delivery="exactly_once")
        out.key_by("k").window(tumbling("10s")).aggregate(n=sabot.count()).to(windows, delivery="exactly_once")
        return app

    simulate(build, seed, crashes=3, stops=1, directory=tmp_path)
    assert Counter(row["n"] for row in rows.rows) == Counter(range(10, 60))
    assert sorted(row["n"] for row in windows.rows) == [2] * 10 + [3] * 10


@pytest.mark.slow  # half a second of a core
async def test_rows_wait_where_the_stream_does_not_take_them() -> None:
    """A slow stream slows the agent, and its sources: nothing is lost on the way."""
    app, sink = App("one", checkpoint_interval=0.05), ListSink()
    numbers = pa.table({"n": list(range(300_000))}).to_batches(max_chunksize=10_000)

    @app.agent(ScriptedSource([*numbers, END], name="numbers"), batch=True)
    def give(batch: pa.RecordBatch, ctx: Any) -> Any:
        return batch

    app.stream(give, schema={"n": "int64"}).map_batches(lambda batch: batch).aggregate(n=sabot.count()).to(sink)
    await bounded(app.run())
    assert max(row["n"] for row in sink.rows) == 300_000


@pytest.mark.slow  # half a second of a core
async def test_windows_stay_open_behind_an_agent_that_failed(tmp_path: Path) -> None:
    """They close when the rows that it did not finish have come, in the next run."""
    sink = ListSink()

    def build(poison: int) -> App:
        app = App("one", state=str(tmp_path / "state"), restart="none")

        @app.agent(name="give")
        async def give(ctx: Any) -> Any:
            if ctx.message["n"] == poison:
                raise ValueError("poison")
            return ctx.message

        app.stream(ScriptedSource([*PARTS, END])).to(give)
        rows = app.stream(give, schema=COLUMNS, time="ts")
        rows.window(tumbling("1h")).aggregate(n=sabot.count()).to(sink)
        return app

    with pytest.raises(AgentFailed, match="poison"):
        await bounded(build(30).run())
    assert sink.rows == []
    await bounded(build(-1).run())
    assert [row["n"] for row in sink.rows] == [60]
    await bounded(build(-1).run())
    assert [row["n"] for row in sink.rows] == [60], "what had ended is not given twice"


@pytest.mark.parametrize("drain", [False, True])
async def test_a_stop_keeps_windows_open_and_a_drain_closes_them(drain: bool, memory_url: str) -> None:
    app, sink = App("one", broker=memory_url, checkpoint_interval=0.02), ListSink()
    give = passing(app, "rows")
    app.stream(give, schema=COLUMNS, time="ts").window(tumbling("1h")).aggregate(n=sabot.count()).to(sink)
    publish(app, "rows", ROWS)
    await app.start()
    await until(lambda: app.statistics()["streams"]["read-1/0"]["input"]["rows_in"] == 60)
    await bounded(app.stop(drain=drain))
    assert [row["n"] for row in sink.rows] == ([60] if drain else [])


@pytest.mark.parametrize("drain", [False, True])
async def test_a_stream_that_fails_behind_an_agent_ends_the_run(drain: bool) -> None:
    app = App("one", restart="none")
    give = passing(app, ScriptedSource([list(ROWS)], name="rows"))

    def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise ValueError("poison")

    app.stream(give, schema=COLUMNS).map_batches(fail, schema=PARTS[0].schema, on_error="fail").to(ListSink())
    await app.start()
    await until(lambda: app.statistics()["failure"] is not None)
    with pytest.raises(UserError, match="poison"):
        await bounded(app.stop(drain=drain))


def test_rows_that_an_agent_works_on_are_no_silence() -> None:
    output = AgentOutput("one.give", pa.schema([]))
    assert output.lag() == {("one.give", 0): 0}
    output.unfinished = lambda: 3
    assert output.lag() == {("one.give", 0): 3}
