"""A stream goes into an agent without a topic: each row is in the agent's state once, whatever dies, stops or waits."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import AgentFailed, App, UserError, col
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, simulate
from tools.agent_tools import bounded, checkpoint, processed, publish, state_of, until, values

ROWS = [{"n": n, "k": n % 4} for n in range(60)]


def batches(size: int = 5) -> list[pa.RecordBatch]:
    return [pa.RecordBatch.from_pylist(ROWS[start : start + size]) for start in range(0, len(ROWS), size)]


def script(*marks: Any) -> ScriptedSource:
    return ScriptedSource([*batches(), *marks, END])


async def seen_before(ctx: Any) -> int:
    """How many messages of this key there were, this one included."""
    count = (await ctx.state().get("seen") or 0) + 1
    await ctx.state().put("seen", count)
    return int(count)


# What an agent gets


async def test_a_record_agent_gets_each_row_as_from_json(memory_url: str) -> None:
    app, got = App("one", broker=memory_url), []

    @app.agent()
    async def take(ctx: Any) -> None:
        got.append((ctx.message, ctx.key, ctx.topic, ctx.partition, ctx.timestamp > 0))

    row = {"n": 1, "at": pa.scalar(0, pa.timestamp("ms")).as_py(), "who": "ann"}
    app.stream(ScriptedSource([pa.RecordBatch.from_pylist([row]), END])).to(take, key="who")
    await bounded(app.run())
    message, key, topic, partition, timed = got[0]
    assert message["n"] == 1
    assert message["at"] == 0  # as JSON says it
    assert (key, topic, partition, timed) == (b"ann", "one.take", -1, True)


async def test_large_batches_of_a_stream_come_to_a_record_agent_in_parts() -> None:
    """Each part holds the event loop up while it is dealt to the lanes."""
    app = App("one", restart="none")
    app.agent(name="take")(take := lambda ctx: None)
    app.stream(ScriptedSource([pa.RecordBatch.from_pydict({"n": list(range(5000))}), END])).to(take)
    await app.start()
    await until(lambda: processed(app, "take") == 5000)
    assert app.statistics()["operators"]["one.take"]["batches"] == 3
    await bounded(app.stop())


@pytest.mark.parametrize("schema", [None, {"k": "int64"}])
async def test_a_batch_agent_gets_columns(schema: Any) -> None:
    app, got = App("one"), []

    @app.agent(batch=True, schema=schema)
    def take(batch: pa.RecordBatch, ctx: Any) -> None:
        got.append(batch)

    app.stream(script(), time="n").filter(col("n") < 7).to(take)
    await bounded(app.run())
    assert [name for name in got[0].schema.names] == (["n", "k"] if schema is None else ["k"])
    assert pa.Table.from_batches(got).num_rows == 7


async def test_rows_that_do_not_fit_are_dead_letters_of_the_agent(memory_url: str) -> None:
    app = App("one", broker=memory_url)
    app.agent(name="take", schema={"n": "int64", "k": "string"})(take := lambda ctx: None)
    app.stream(script()).to(take)
    await bounded(app.run())
    assert len(values(app, "one.take.dlq")) == len(ROWS)


async def test_an_agent_with_a_topic_reads_both(memory_url: str) -> None:
    app, sink = App("one", broker=memory_url, checkpoint_interval=0.02), ListSink()

    @app.agent("words", sink=sink)
    async def take(ctx: Any) -> Any:
        return {"of": ctx.topic}

    app.stream(script()).to(take)
    publish(app, "words", ["a", "b"])
    await app.start()
    await until(lambda: len(sink.rows) == 62)
    await bounded(app.stop())
    assert Counter(row["of"] for row in sink.rows) == {"words": 2, "one.take": 60}


async def test_two_streams_go_into_one_agent_which_writes_into_another() -> None:
    app, sink = App("one"), ListSink()

    @app.agent(sink=sink)
    async def last(ctx: Any) -> Any:
        return ctx.message

    @app.agent(sink=last)
    async def first(ctx: Any) -> Any:
        return {"n": ctx.message["n"] * 2}

    stream = app.stream(script())
    stream.filter(col("n") < 10).to(first)
    stream.filter(col("n") >= 10).to(first)
    stream.to(last)
    await bounded(app.run())
    assert Counter(row["n"] for row in sink.rows) == Counter([*range(60), *range(0, 120, 2)])


# What is refused


def agents(app: App) -> tuple[Any, Any]:
    @app.agent()
    async def records(ctx: Any) -> None:
        """Takes records."""

    @app.agent(batch=True, schema={"n": "string", "missing": "int64"})
    async def columns(batch: Any, ctx: Any) -> None:
        """Takes columns."""

    return records, columns


def test_changes_go_into_no_agent() -> None:
    app = App("one")
    records, _ = agents(app)
    with pytest.raises(UserError, match=r"to\(agent one\.records\): the rows that come in are changes") as refused:
        app.stream(script()).upsert("k").to(records)
    assert "materialize()" in str(refused.value)


def test_only_agents_of_the_app_are_fed() -> None:
    app = App("one")

    def helper(ctx: Any) -> None:
        """No agent."""

    with pytest.raises(UserError, match=r"helper is no agent of app one .*@app.agent"):
        app.stream(script()).to(helper)


def test_what_an_agent_cannot_take_is_refused_where_it_is_written() -> None:
    app = App("one")
    records, columns = agents(app)
    stream = app.stream(script(), schema={"n": "int64", "k": "int64"})
    with pytest.raises(UserError, match="delivery= is for sinks"):
        stream.to(records, delivery="exactly_once")
    with pytest.raises(UserError, match="there is no column 'nobody'"):
        stream.to(records, key="nobody")
    with pytest.raises(UserError, match="a batch agent gets columns"):
        stream.to(columns, key="n")
    with pytest.raises(UserError, match="there is no column 'missing'"):
        stream.to(columns)


async def test_types_are_checked_at_the_start() -> None:
    app = App("one")
    _, columns = agents(app)
    app.stream(script()).with_columns(missing=col("n")).to(columns)
    with pytest.raises(UserError, match="column 'n' is int64, and the agent's schema= says string"):
        await bounded(app.start())


# Once, whatever happens


@pytest.mark.one_in(20, "half a second of a core each")
@pytest.mark.parametrize("state", ["memory", "rocksdb"])
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_each_row_is_in_the_state_once_whatever_dies(seed: int, parallelism: int, state: str, tmp_path: Path) -> None:
    sink = ListSink()

    def build(folder: Path) -> App:
        place = f"rocksdb://{folder}" if state == "rocksdb" else None
        app = App(
            "one",
            state=place,
            checkpoint_dir=folder / "checkpoints",
            checkpoint_interval=0.02,
            parallelism=parallelism,
            restart="none",
        )
        if place is None:
            app.configure(state="memory")

        @app.agent(sink=sink, key="k", concurrency=3, delivery="exactly_once")
        async def take(ctx: Any) -> Any:
            seen = await seen_before(ctx)
            if ctx.message["n"] % 3 == 0:
                await asyncio.sleep(0.001)
            return {"n": ctx.message["n"], "seen": seen}

        rows = batches()
        marks = [*rows[:3], BARRIER, *rows[3:6], CRASH, *rows[6:9], BARRIER, CRASH, *rows[9:], END]
        app.stream(ScriptedSource(marks)).key_by("k").process(lambda row, ctx: row, schema=rows[0].schema).to(take)
        return app

    simulate(build, seed, crashes=3, stops=1, directory=tmp_path)
    assert Counter(row["n"] for row in sink.rows) == Counter(range(60))
    assert Counter(row["seen"] for row in sink.rows) == {place: 4 for place in range(1, 16)}


@pytest.mark.slow  # half a second of a core
async def test_an_agent_that_has_no_room_holds_no_barrier_up(tmp_path: Path) -> None:
    """The rows of the stream that wait are in the checkpoint, and the next run has each of them once."""
    done: list[int] = []

    def build(opened: asyncio.Event) -> App:
        app = App("one", state=str(tmp_path / "state"), checkpoint_interval="1h")

        @app.agent(batch=True)
        async def take(batch: pa.RecordBatch, ctx: Any) -> None:
            await opened.wait()
            done.extend(batch.column("n").to_pylist())

        numbers = pa.table({"n": list(range(300_000))}).to_batches(max_chunksize=10_000)
        app.stream(ScriptedSource([*numbers, END])).to(take)
        return app

    app = build(asyncio.Event())
    await app.start()
    await until(lambda: app.statistics()["operators"]["one.take"]["rows"] >= 16384)
    rows = 0
    for _ in range(5):  # what one checkpoint takes in is not taken in by each
        await bounded(checkpoint(app))
        rows = app.statistics()["operators"]["one.take"]["rows"]
    assert rows < 300_000, "the readers were held"
    await bounded(app.stop())
    assert done == []
    ready = asyncio.Event()
    ready.set()
    await bounded(build(ready).run())
    assert Counter(done) == Counter(range(300_000))


async def test_a_drained_app_comes_to_its_end(memory_url: str) -> None:
    app, sink = App("one", broker=memory_url), ListSink()

    @app.agent(sink=sink)
    async def take(ctx: Any) -> Any:
        await asyncio.sleep(0.001)
        return ctx.message

    app.stream("numbers", schema={"n": "int64", "k": "int64"}).to(take)
    publish(app, "numbers", ROWS)
    await app.start()
    await until(lambda: app.statistics()["streams"]["read-1/0"]["input"]["rows_in"] == 60)
    await bounded(app.stop(drain=True))
    assert len(sink.rows) == 60


# What fails


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("drain", [False, True])
async def test_rows_behind_a_failed_agent_are_kept(
    drain: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The streams stand still without it, and nobody waits for the app who would hear of that: log and figures say so."""
    done: list[int] = []

    def build(poison: int) -> App:
        app = App("one", state=str(tmp_path / "state"), checkpoint_interval="1h")

        @app.agent()
        async def take(ctx: Any) -> None:
            if ctx.message["n"] == poison:
                raise ValueError("poison")
            done.append(ctx.message["n"])

        app.stream(script()).to(take)
        return app

    app = build(7)
    await app.start()
    await until(lambda: app.agent_runtime.get_stats()["one.take"]["state"] == "failed")
    assert "poison" in app.statistics()["failure"]
    assert "its streams wait for agent one.take" in caplog.text
    await bounded(app.stop(drain=drain))
    assert "poison" in app.statistics()["failure"]
    await bounded(build(-1).run())
    assert Counter(done) == Counter(range(60))


async def test_an_agent_that_fails_while_the_app_is_drained_does_not_hold_it_up(tmp_path: Path) -> None:
    """Its lanes are full, and rows of the stream wait before them: they are kept too."""
    done: list[int] = []

    def build(poison: int, opened: asyncio.Event) -> App:
        app = App("one", state=str(tmp_path / "state"), checkpoint_interval="1h")

        @app.agent(batch=True)
        async def take(batch: pa.RecordBatch, ctx: Any) -> None:
            await opened.wait()
            numbers = batch.column("n").to_pylist()
            if poison in numbers:
                raise ValueError("poison")
            done.extend(numbers)

        numbers = pa.table({"n": list(range(40_000))}).to_batches(max_chunksize=10_000)
        app.stream(ScriptedSource([*numbers, END])).to(take)
        return app

    opened = asyncio.Event()
    app = build(7, opened)
    await app.start()
    await until(lambda: app.statistics()["operators"]["one.take"]["rows"] >= 16384)
    stopping = asyncio.ensure_future(app.stop(drain=True))
    await until(lambda: state_of(app, "take") == "stopping")
    for _ in range(20):
        await asyncio.sleep(0)
    opened.set()
    await bounded(stopping)
    assert done == []
    await bounded(build(-1, opened).run())
    assert Counter(done) == Counter(range(40_000))


async def test_the_app_stops_when_an_agent_fails_that_a_stream_feeds(memory_url: str) -> None:
    app = App("one", broker=memory_url)

    @app.agent()
    async def take(ctx: Any) -> None:
        raise ValueError("poison")

    app.agent("others", name="other")(lambda ctx: None)
    app.stream("numbers", schema={"n": "int64"}).to(take)
    publish(app, "numbers", ROWS)
    with pytest.raises(AgentFailed, match="poison"):
        await bounded(app.run())


@pytest.mark.parametrize("drain", [False, True])
async def test_a_stream_that_fails_ends_the_run_of_its_agent(drain: bool) -> None:
    app = App("one", restart="none")

    @app.agent()
    async def take(ctx: Any) -> None:
        """Takes what comes."""

    def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise ValueError("poison")

    app.stream(ScriptedSource([*batches()])).map_batches(fail, schema=batches()[0].schema, on_error="fail").to(take)
    await app.start()
    await until(lambda: app.statistics()["failure"] is not None)
    with pytest.raises(UserError, match="poison"):
        await bounded(app.stop(drain=drain))


async def test_an_agent_that_is_stopped_by_itself_goes_on_where_it_was(memory_url: str) -> None:
    app, done = App("one", broker=memory_url), []
    publish(app, "numbers", ROWS)

    @app.agent()
    async def take(ctx: Any) -> None:
        done.append(ctx.message["n"])

    app.stream("numbers", schema={"n": "int64"}).to(take)
    await app.start()
    process = app.agent_runtime.agents["one.take"]
    await bounded(process.stop())
    await bounded(checkpoint(app))
    await bounded(process.start())
    await until(lambda: len(done) == 60)
    await bounded(app.stop())
    assert Counter(done) == Counter(range(60))
