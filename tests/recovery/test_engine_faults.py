"""Faults that a sceptical reviewer found in the engine, each with its story: no row lost, none counted twice, and stops that stop.

Most of them were races: the moment at which something happens is held open here by an event, so nothing sleeps to be right.
"""

import asyncio
import contextlib
import contextvars
import functools
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sabot import AgentFailed, App, RowErrors, UserError, count
from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Channel
from sabot.api.context import AgentContext
from sabot.connectors.base import Sink
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.agents.kinds import agent_operator
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend
from sabot.errors import AppLocked, CheckpointFailed
from sabot.testing import MemoryBroker, ScriptedSource
from tools.agent_tools import (
    bounded,
    checkpoint,
    crash_image,
    processed,
    publish,
    read_lines,
    records,
    started,
    state_of,
    until,
    values,
    write_lines,
)

pytestmark = pytest.mark.integration


class LateBackend(MemoryBackend):
    """A user's own: its snapshot does other things before it takes its cut."""

    async def snapshot(self):
        for _ in range(20):
            await asyncio.sleep(0)
        return await super().snapshot()


class GatedSink(Sink):
    """Keeps the payloads; each step first says that it was reached, and goes on when its gate is open."""

    def __init__(self):
        self.name = "gated"
        self.payloads: list[bytes] = []
        self.reached = {step: threading.Event() for step in ("open", "write", "flush", "close")}
        self.gates = {step: threading.Event() for step in self.reached}
        self.let()

    def shut(self, *steps: str):
        for step in steps:
            self.gates[step].clear()

    def let(self):
        for gate in self.gates.values():
            gate.set()

    def _pass(self, step: str):
        self.reached[step].set()
        self.gates[step].wait()

    def open(self):
        self._pass("open")

    def write(self, batch):
        self._pass("write")
        self.payloads += batch.data.column(0).to_pylist()

    def flush(self):
        self._pass("flush")

    def close(self):
        self._pass("close")


@pytest.fixture
def app(memory_url):
    app = App("shop", broker=memory_url)
    app.state_backend = MemoryBackend()
    return app


@pytest.fixture
def sink():
    """A sink whose gates are open again at the end, so that no thread stays behind them."""
    sink = GatedSink()
    yield sink
    sink.let()


@pytest.fixture
def narrow(monkeypatch):
    """Channels of few rows: what has a bound reaches it soon."""
    for module in ("agents.source", "tasks.writing"):
        monkeypatch.setattr(f"sabot.engine.runtime.{module}.Channel", functools.partial(Channel, capacity_rows=512))


@pytest.fixture
def impatient(monkeypatch):
    """Calls and sinks that hang are given up sooner than by default."""
    monkeypatch.setattr("sabot.engine.runtime.agents.local_agents._GRACE_SECONDS", 0.05)
    monkeypatch.setattr("sabot.engine.runtime.tasks.writing._STOP_SECONDS", 0.05)


async def kept(app, key="n", namespace="default"):
    """What stands in the app's state, read from outside."""
    return await AgentContext(None, app.state_backend).state(namespace).get(key)


async def increment(ctx, namespace="default"):
    state = ctx.state(namespace)
    await state.put("n", (await state.get("n") or 0) + 1)


def numbers(path, count, field="n"):
    return write_lines(path, ({field: n} for n in range(count)))


def last_cut(checkpoints):
    """What the newest checkpoint says of the agent task."""
    return CheckpointStorage(checkpoints).latest().tasks["agents"].meta


def dead_letters_of(path):
    """The topic for those of a file: its path as a legal name."""
    return str(path).strip("/").replace("/", "-")[-200:] + ".dlq"


def errors_of(app, topic):
    return [dict(record.headers)["sabot.error"].decode() for record in records(app, topic)]


def alive():
    """The threads of sources and sinks."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("source ", "sink "))]


# The cut


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("backend", [MemoryBackend, LateBackend], ids=["ours", "a_users_own"])
async def test_no_update_is_lost_while_checkpoints_are_taken_and_other_calls_run(memory_url, tmp_path, backend):
    """Calls that ended during a snapshot waited before they applied their writes. Calls beside them read the state without
    those writes, and overwrote them: 2,935 of 3,000 increments were left, with no `await` between get and put.
    """
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)
    app.state_backend = backend()

    @app.agent("orders", concurrency=50)
    async def count(ctx):
        await asyncio.sleep(0)
        await increment(ctx)

    publish(app, "orders", list(range(3000)))
    async with started(app):
        while processed(app, "count") < 3000:
            await checkpoint(app)
        assert await kept(app) == 3000


async def test_no_update_is_lost_between_agents_that_share_a_namespace(memory_url, tmp_path):
    """The same, with the default concurrency and several agents."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)
    app.state_backend = LateBackend()
    for topic in ("a", "b", "c"):

        @app.agent(topic, name=topic)
        async def count(ctx):
            await asyncio.sleep(0)
            await increment(ctx, "shared")

        publish(app, topic, list(range(1000)))
    async with started(app):
        while sum(processed(app, topic) for topic in ("a", "b", "c")) < 3000:
            await checkpoint(app)
        assert await kept(app, namespace="shared") == 3000


@pytest.mark.parametrize("raises", ["before", "after"])
async def test_a_state_write_that_raises_is_not_applied_twice_after_the_restart(memory_url, tmp_path, raises):
    """The disk was full at the second write of a call; the first had happened already, or the one that raised had too. The row
    was still in the lane, so the last checkpoint held half of the call and repeated all of it.
    """

    class FullOnce(MemoryBackend):
        calls = 0

        def write(self, namespace, key, value):
            self.calls += namespace == "b"
            full = namespace == "b" and self.calls == 20
            if full and raises == "before":
                raise OSError(28, "no space")
            super().write(namespace, key, value)
            if full:
                raise OSError(28, "no space")

    numbers(tmp_path / "in", 50)

    def build(backend):
        app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints")
        app.state_backend = backend

        @app.agent(NdjsonSource(tmp_path / "in"))
        async def count(ctx):
            await increment(ctx, "a")
            await increment(ctx, "b")

        return app

    with pytest.raises(AgentFailed, match="no space"):
        await bounded(build(FullOnce()).run())
    app = build(MemoryBackend())
    await bounded(app.run())
    assert [await kept(app, namespace=name) for name in "ab"] == [50, 50]


async def test_writes_held_back_during_a_snapshot_that_then_fail_stop_the_app(memory_url, tmp_path):
    """Nobody heard of it when the writes that a user's own backend had not taken yet could not be handed to it afterwards."""
    cutting, cut = asyncio.Event(), asyncio.Event()

    class Full(MemoryBackend):
        full = False

        async def snapshot(self):
            cutting.set()
            await cut.wait()
            taken = await super().snapshot()
            self.full = cutting.is_set()
            return taken

        def write(self, namespace, key, value):
            if self.full:
                raise OSError(28, "no space")
            super().write(namespace, key, value)

    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)
    app.state_backend = Full()

    @app.agent("orders")
    async def count(ctx):
        await increment(ctx)

    run = asyncio.create_task(app.run())
    await until(lambda: app.agent_runtime.runner.running and state_of(app, "count") == "running")
    app.agent_runtime.checkpoint_coordinator.trigger()
    await bounded(cutting.wait())
    publish(app, "orders", [1, 2, 3])
    await until(lambda: processed(app, "count") == 3)
    cut.set()
    with pytest.raises(AgentFailed, match=r"state.*no space"):
        await bounded(run)


async def test_a_snapshot_of_a_checkpoint_that_was_given_up_and_ends_during_the_next_lets_no_write_into_it(
    memory_url, tmp_path
):
    """A row counted twice, once in some twenty runs of a random program under load. When the first snapshot ended, the writes that were
    held back for the second one reached the backend too, and the row that had made them was one that the second checkpoint repeats.
    """
    asked, cuts, going_on = [], [asyncio.Event() for _ in range(3)], asyncio.Event()

    class Slow(MemoryBackend):
        async def snapshot(self):
            asked.append(cuts[len(asked)])
            await asked[-1].wait()
            return await super().snapshot()

    def build(checkpoints, backend):
        app = App("shop", broker=memory_url, checkpoint_dir=checkpoints)
        app.state_backend = backend

        @app.agent("orders")
        async def count(ctx):
            await going_on.wait()
            await increment(ctx)

        return app

    app = build(tmp_path / "checkpoints", Slow())
    publish(app, "orders", [1])
    async with started(app):
        await until(lambda: app.statistics()["operators"]["shop.count"]["rows"] == 1)
        first = asyncio.create_task(checkpoint(app))
        await until(lambda: len(asked) == 1)
        app.agent_runtime.checkpoint_coordinator.decline(1, "agents", "given up by the test")
        with pytest.raises(CheckpointFailed, match="given up"):
            await first
        second = asyncio.create_task(checkpoint(app))
        await until(lambda: second.done() or len(asked) == 2)
        cuts[0].set()
        for _ in range(20):  # it ends, and the task hears of it
            await asyncio.sleep(0)
        going_on.set()
        await until(lambda: processed(app, "count") == 1)
        cuts[1].set()
        cuts[2].set()
        with pytest.raises(CheckpointFailed, match="still takes the snapshot of an earlier checkpoint"):
            await second
        while True:
            try:
                await checkpoint(app)
                break
            except (
                CheckpointFailed
            ) as error:  # a thread tells the task of the end of the first snapshot, in its own time
                assert "still takes the snapshot of an earlier checkpoint" in str(error)  # noqa: PT017
        image = crash_image(tmp_path / "checkpoints", tmp_path / "image")
    after = build(image, MemoryBackend())
    async with started(after):
        await until(lambda: after.statistics()["operators"]["shop.count"]["rows"] == 0)
        assert await kept(after) == 1


async def test_checkpoints_that_are_given_up_keep_no_snapshots(memory_url, tmp_path, sink, impatient):
    """While a sink stood still every checkpoint timed out, and each left its task and its snapshot on the disk behind."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_timeout=0.02)
    app.state_backend = RocksDBBackend(BackendConfig("rocksdb", path=str(tmp_path / "db")))

    @app.agent("orders", sink=sink)
    async def count(ctx):
        await increment(ctx)
        return 1

    publish(app, "orders", [1, 2, 3])
    sink.shut("flush")
    await app.start()
    for _ in range(5):
        with pytest.raises(CheckpointFailed):
            await bounded(app.agent_runtime.trigger_checkpoint())
    await until(lambda: not os.listdir(tmp_path / "db" / "snapshots"), "snapshots to go")
    sink.let()
    with contextlib.suppress(CheckpointFailed):  # 20 ms may be too short for the last one too
        await bounded(app.stop())
    await app.state_backend.close()


async def test_checkpoints_that_are_given_up_keep_no_snapshots_of_rows_that_wait_for_a_job(
    memory_url, tmp_path, sink, impatient
):
    """Those of the state went, and those of mailboxes and timers stayed: on the disk, and as copies of all that changed."""
    app = App("shop", broker=memory_url, state=tmp_path / "state", checkpoint_timeout=0.1)
    orders = write_lines(tmp_path / "orders.ndjson", ({"customer": "a", "n": n} for n in range(3)))

    @app.agent(NdjsonSource(orders), key="customer", sink=sink, durable=True)
    async def remind(ctx):
        await ctx.sleep("1h")
        return ctx.message

    await app.start()
    await until(lambda: app.statistics()["operators"]["shop.remind"]["mailbox_rows"] == 2)
    sink.shut("flush")
    for _ in range(3):
        with pytest.raises(CheckpointFailed):
            await bounded(app.agent_runtime.trigger_checkpoint())
    await until(lambda: not os.listdir(tmp_path / "state" / "mailboxes" / "snapshots"), "snapshots to go")
    sink.let()
    with contextlib.suppress(CheckpointFailed):
        await bounded(app.stop())


# What a checkpoint keeps


@pytest.fixture
def two_shapes(tmp_path):
    write_lines(tmp_path / "x", [{"a": 1}, {"a": 2}])
    write_lines(tmp_path / "y", [{"b": "one"}, {"b": "two"}])
    return [tmp_path / "x", tmp_path / "y"]


async def test_schemas_are_kept_by_topic_over_a_restart(memory_url, tmp_path, two_shapes):
    """A batch agent of two topics had one inferred schema for what the checkpoint repeats: rows of the other topic lost their
    columns, or went to the dead letters.
    """
    hold, seen = asyncio.Event(), []

    def build(checkpoints):
        app = App("shop", broker=memory_url, checkpoint_dir=checkpoints)

        @app.agent([NdjsonSource(path) for path in two_shapes], batch=True, dead_letter=NdjsonSink(tmp_path / "dead"))
        async def gather(batch, ctx):
            seen.extend(batch.to_pylist())
            await hold.wait()

        return app

    first = build(tmp_path / "checkpoints")
    async with started(first):
        await until(lambda: seen and first.statistics()["operators"]["shop.gather"]["rows"] == 4)
        await checkpoint(first)
        image = crash_image(tmp_path / "checkpoints", tmp_path / "image")
        hold.set()
    seen.clear()
    await bounded(build(image).run())
    assert sorted(seen, key=str) == [{"a": 1}, {"a": 2}, {"b": "one"}, {"b": "two"}]
    assert read_lines(tmp_path / "dead") == []


async def test_schemas_of_a_file_and_of_an_agent_that_writes_here_are_kept_apart(memory_url, tmp_path, two_shapes):
    """The same for a batch agent that reads a topic and is another agent's sink, after a clean end."""

    async def run():
        seen = []
        app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints")

        @app.agent(NdjsonSource(two_shapes[0]), batch=True, dead_letter=NdjsonSink(tmp_path / "dead"))
        def down(batch, ctx):
            seen.extend(batch.to_pylist())

        @app.agent(NdjsonSource(two_shapes[1]), sink=down)
        async def up(ctx):
            return {"c": ctx.message["b"]}

        await bounded(app.run())
        return sorted(seen, key=str)

    assert await run() == [{"a": 1}, {"a": 2}, {"c": "one"}, {"c": "two"}]
    for path, row in zip(two_shapes, ('{"a": 3}\n', '{"b": "three"}\n'), strict=True):
        with path.open("a") as file:
            file.write(row)
    assert await run() == [{"a": 3}, {"c": "three"}]
    assert read_lines(tmp_path / "dead") == []


async def test_rows_into_a_batch_agent_that_fit_no_schema_stay_in_the_checkpoint(memory_url, tmp_path):
    """The receiver raised while results were handed to it: the calls behind them had ended, so those rows were in no checkpoint
    and in no lane; or the state of the last call was applied and its row still in the lane, to be applied once more.
    """
    numbers(tmp_path / "in", 300)
    seen = []

    def build(schema):
        app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints")
        app.state_backend = MemoryBackend()

        @app.agent(batch=True, schema=schema, dead_letter=NdjsonSink(tmp_path / "dead"))
        def down(batch, ctx):
            seen.extend(batch.column("n").to_pylist())

        @app.agent(NdjsonSource(tmp_path / "in"), sink=down)
        async def up(ctx):
            await increment(ctx)
            n = ctx.message["n"]
            return {"n": n, "v": 1 if n % 2 else "one"}

        return app

    with pytest.raises(AgentFailed, match=r"its type is .* in one row and .* in another"):
        await bounded(build(None).run())
    assert last_cut(tmp_path / "checkpoints")["agents"]["shop.down"]["unfinished"]
    app = build({"n": "int64", "v": "string"})
    await bounded(app.run())
    assert await kept(app) == 300
    assert seen == list(range(0, 300, 2))
    dead = [json.loads(letter["payload"]) for letter in read_lines(tmp_path / "dead")]
    assert [row["n"] for row in dead] == list(range(1, 300, 2))


async def test_dead_letters_of_a_topic_that_the_program_no_longer_reads_go_to_one_that_it_does(memory_url, tmp_path):
    """Rows of the old topic were in the checkpoint; giving one up raised KeyError, at every start again."""
    numbers(tmp_path / "old", 1, "old")
    numbers(tmp_path / "new", 1, "new")
    hold, called = asyncio.Event(), asyncio.Event()

    def build(path, checkpoints):
        app = App("shop", broker=memory_url, checkpoint_dir=checkpoints)

        @app.agent(NdjsonSource(path), name="check", on_error="skip")
        async def check(ctx):
            called.set()
            await hold.wait()
            raise ValueError("bad")

        return app

    async with started(first := build(tmp_path / "old", tmp_path / "checkpoints")):
        await bounded(called.wait())
        await checkpoint(first)
        image = crash_image(tmp_path / "checkpoints", tmp_path / "image")
        hold.set()
    app = build(tmp_path / "new", image)
    await bounded(app.run())
    letters = records(app, dead_letters_of(tmp_path / "new"))
    assert [letter.value for letter in letters] == [{"old": 0}, {"new": 0}]
    assert [Path(dict(letter.headers)["sabot.topic"].decode()).name for letter in letters] == ["old", "new"]


async def test_dead_letters_of_a_source_whose_batches_name_no_topic_carry_the_sources_name(app, tmp_path):
    """A user's Source may leave the topic of its batches empty; the dead letters' topic was looked up by it."""

    class Nameless(NdjsonSource):
        def read_batch(self, max_rows, timeout):
            batch = super().read_batch(max_rows, timeout)
            return batch and Batch(batch.data, batch.offsets)

    numbers(tmp_path / "in", 1)
    topics = []

    @app.agent(Nameless(tmp_path / "in"), on_error="skip")
    async def check(ctx):
        topics.append(ctx.topic)
        raise ValueError("bad")

    await bounded(app.run())
    assert topics == [str(tmp_path / "in")]
    assert values(app, dead_letters_of(tmp_path / "in")) == [{"n": 0}]


# Backpressure


async def chances():
    """Time for what must not happen any more; a test that is right stays right however long this takes."""
    for _ in range(50):
        await asyncio.sleep(0.002)


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"{no json", id="undecodable"),
        pytest.param(b"1", id="raising", marks=pytest.mark.slow),  # three seconds of a core
    ],
)
async def test_dead_letters_wait_for_their_sink_as_results_do(app, sink, narrow, payload):
    """A slow dead-letter sink was no reason to wait: all of a bad topic stood in memory before it."""
    rows = 10_000

    @app.agent("orders", on_error="skip", dead_letter=sink)
    async def refuse(ctx):
        raise ValueError("bad")

    publish(app, "orders", [payload] * rows)
    sink.shut("write")
    async with started(app):
        await until(lambda: app.statistics()["sinks"]["gated"]["waiting"], "a full sink")
        await chances()
        assert app.agent_runtime.get_stats()["shop.refuse"]["dead_letters"] < 6000
        sink.let()
        await until(lambda: len(sink.payloads) == rows, "every dead letter")


async def test_a_lane_that_waits_for_its_dead_letters_does_not_wait_for_room_that_only_it_can_make(
    app, sink, monkeypatch
):
    """It waited until its agent was "writable". Meanwhile a second input filled the lanes, and nobody was left to empty them."""
    narrow = functools.partial(agent_operator, capacity_rows=8)
    monkeypatch.setattr("sabot.engine.runtime.agents.local_agents.agent_operator", narrow)
    for module in ("agents.source", "tasks.writing"):
        monkeypatch.setattr(f"sabot.engine.runtime.{module}.Channel", functools.partial(Channel, capacity_rows=1))

    @app.agent(["x", "y"], on_error="skip", dead_letter=sink)
    async def refuse(ctx):
        raise ValueError("bad")

    def waiting():
        return app.statistics()["operators"]["shop.refuse"]["rows"]

    sink.shut("write")
    async with started(app):
        for done in (1, 2, 3):  # one in the sink's hands, one in its channel, one that the channel refuses
            publish(app, "x", ["bad"])
            await until(lambda done=done: app.agent_runtime.get_stats()["shop.refuse"]["dead_letters"] == done)
        await until(lambda: app.statistics()["sinks"]["gated"]["waiting"], "a full sink")
        publish(app, "y", ["bad"] * 20)
        await until(lambda: waiting() >= 8, "full lanes")
        sink.let()
        await until(lambda: len(sink.payloads) == 23, "every dead letter")


@pytest.mark.slow  # a second of a core, or more
async def test_a_stopped_agent_holds_back_who_writes_into_it_and_goes_on_when_it_is_started(app, narrow):
    """The lanes of a stopped agent filled up without bound, 300,000 rows and more."""
    rows, seen = 40_000, []

    @app.agent()
    async def down(ctx):
        seen.append(ctx.message)

    @app.agent("orders", sink=down)
    async def up(ctx):
        return ctx.message

    def waiting():
        return app.statistics()["operators"]["shop.down"]

    async with started(app):
        await app.agent_runtime.agents["shop.down"].stop()
        publish(app, "orders", list(range(rows)))
        await until(lambda: waiting()["rows"] >= waiting()["capacity_rows"], "full lanes")
        await chances()
        assert waiting()["rows"] <= waiting()["capacity_rows"] + 2048
        assert seen == []
        await app.agent_runtime.agents["shop.down"].start()
        await until(lambda: len(seen) == rows)
    assert seen == list(range(rows))


# One agent stops


async def test_drain_ends_although_an_agent_was_stopped_by_itself(memory_url, tmp_path):
    """Its rows are never processed, and `stop(drain=True)` waited for them for ever. The next start takes them up."""
    for name in ("slow", "quick"):
        numbers(tmp_path / name, 2000)
    seen, stopped = [], False

    def build():
        app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints")

        @app.agent(NdjsonSource(tmp_path / "slow"))
        async def slow(ctx):
            await asyncio.sleep(0 if stopped else 0.01)  # so the stop comes before its end
            seen.append(ctx.message["n"])

        @app.agent(NdjsonSource(tmp_path / "quick"))
        async def quick(ctx):
            pass

        return app

    app = build()
    await app.start()
    await until(lambda: len(seen) >= 3)
    await app.agent_runtime.agents["shop.slow"].stop()
    stopped = True
    await until(lambda: processed(app, "quick") == 2000)
    assert len(seen) < 2000
    await bounded(app.stop(drain=True))  # a disk may take its time
    await bounded(build().run())
    assert seen == list(range(2000))


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("behind", ["a_source", "an_agent"])
async def test_drain_ends_although_an_agent_that_was_stopped_has_no_room(app, narrow, impatient, behind):
    """Who writes into a stopped agent waits for room in its lanes; the drain waited for who waits. Found by random crashes."""

    async def down(ctx):
        await asyncio.Event().wait()

    app.agent("orders" if behind == "a_source" else None)(down)
    if behind == "an_agent":

        @app.agent("orders", sink=down)
        async def up(ctx):
            return ctx.message

    def waiting():
        return app.statistics()["operators"]["shop.down"]

    publish(app, "orders", list(range(40_000)))
    await app.start()
    await until(lambda: waiting()["rows"] >= waiting()["capacity_rows"], "full lanes")
    await app.agent_runtime.agents["shop.down"].stop()
    await bounded(app.stop(drain=True))


async def test_drain_ends_although_the_inputs_had_ended_when_an_agent_was_stopped(app, tmp_path, impatient):
    """The app waited already for the rows of the agent upstream, which the drain then stopped. Found by random crashes."""
    numbers(tmp_path / "orders", 20)

    @app.agent()
    async def down(ctx):
        pass

    @app.agent(NdjsonSource(tmp_path / "orders"), sink=down)
    async def up(ctx):
        await asyncio.Event().wait()

    await app.start()
    await until(lambda: app.statistics()["gate"]["ended"] == 1, "the end of the input")
    await app.agent_runtime.agents["shop.down"].stop()
    await bounded(app.stop(drain=True))


async def test_an_agent_that_starts_again_while_the_end_waits_for_another_loses_no_result(app, tmp_path):
    """Its turn had passed while it was stopped: its sink got the end, its later results were lost, and the state had them."""
    for name in ("others", "orders"):
        numbers(tmp_path / name, 3)
    called, let_first, let_second = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @app.agent(NdjsonSource(tmp_path / "others"), concurrency=1)
    async def second(ctx):
        await let_second.wait()

    @app.agent(NdjsonSource(tmp_path / "orders"), sink=NdjsonSink(tmp_path / "out"), concurrency=1)
    async def first(ctx):
        called.set()
        await let_first.wait()
        return ctx.message

    agent = app.agent_runtime.agents["shop.first"]
    runs = asyncio.create_task(app.run())
    await bounded(called.wait())
    await until(lambda: app.statistics()["gate"]["ended"] == 2, "the end of the inputs")
    called.clear()
    stops = asyncio.create_task(agent.stop())
    await until(lambda: state_of(app, "first") != "running", "the stop")
    let_first.set()
    await bounded(stops)
    let_first.clear()
    await chances()  # its turn passes
    await agent.start()
    await bounded(called.wait())
    let_second.set()
    await until(lambda: processed(app, "second") == 3)
    await chances()  # the task would end now
    let_first.set()
    await bounded(runs)
    assert [row["n"] for row in read_lines(tmp_path / "out")] == [0, 1, 2]


async def test_an_agent_that_is_stopped_and_started_goes_on_where_it_was(app):
    """It began to read from the start again, over the state that it had."""
    seen = []

    @app.agent("orders")
    async def count(ctx):
        await increment(ctx)
        seen.append(ctx.message)

    agent = app.agent_runtime.agents["shop.count"]
    async with started(app):
        for begin in (0, 10, 20):
            publish(app, "orders", list(range(begin, begin + 10)))
            await until(lambda upto=begin + 10: len(seen) == upto)
            await agent.stop()
            assert state_of(app, "count") == "stopped"
            await agent.start()
            assert state_of(app, "count") == "running"
        assert await kept(app) == 30
    assert seen == list(range(30))
    assert state_of(app, "count") == "stopped"


# Calls and cancellation


async def test_a_timeout_holds_when_the_call_makes_another_error_of_its_cancellation(app):
    """As many client libraries do. The lane kept a count of cancellations, and the watchdog never struck again: the second call
    hung for ever.
    """
    calls = []

    @app.agent("orders", timeout=0.05, on_error="skip")
    async def check(ctx):
        calls.append(ctx.message)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("tool gone") from error

    publish(app, "orders", [1, 2, 3])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 3)
    assert calls == [1, 2, 3]
    assert errors_of(app, "orders.dlq") == ["TimeoutError"] * 3


async def test_a_call_that_cancels_its_own_task_ends_its_agent_and_the_record_is_named(app):
    """The lane ended without a word: the agent said RUNNING, and processed nothing any more."""
    seen = []

    @app.agent("orders", on_error="skip")
    async def check(ctx):
        if ctx.message == 2:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        seen.append(ctx.message)

    publish(app, "orders", [1, 2, 3])
    with pytest.raises(AgentFailed, match=r"shop\.check failed at orders\[0\]@1.*cancelled"):
        await bounded(app.run())
    assert (seen, state_of(app, "check")) == ([1], "failed")


@pytest.mark.parametrize("policy", ["skip", "retry", "fail"])
async def test_a_stop_does_not_bury_the_row_whose_call_made_an_error_of_its_cancellation(
    memory_url, tmp_path, impatient, policy
):
    """The stop cancelled the call, the call raised ConnectionError, and a good record went to the dead letters, or its agent
    failed.
    """
    called = asyncio.Event()
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)

    @app.agent("orders", on_error=policy, retries=0)
    async def check(ctx):
        called.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ConnectionError("closed") from error

    publish(app, "orders", [1])
    run = asyncio.create_task(app.run())
    await bounded(called.wait())
    app.request_stop()
    await bounded(run)
    assert records(app, "orders.dlq") == []
    assert last_cut(tmp_path)["agents"]["shop.check"]["unfinished"]
    assert state_of(app, "check") == "stopped"


async def raises():
    raise ValueError("child")


async def fails_in_a_task_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(raises())


async def awaits_a_cancelled_child():
    child = asyncio.create_task(asyncio.sleep(60))
    child.cancel()
    await child


async def hangs():
    await asyncio.sleep(60)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("second", [awaits_a_cancelled_child, hangs, fails_in_a_task_group])
async def test_task_groups_and_stray_cancellations_do_not_kill_a_lane(app, second):
    """In Python 3.11 a TaskGroup that fails leaves its task's count of cancellations raised; the next CancelledError that came
    out of a call was then taken for the end of the lane.
    """
    seen = []
    odd = {1: fails_in_a_task_group, 2: second}

    # Of the calls one hangs, in one of the cases: the others must not be cut on a busy machine.
    @app.agent("orders", on_error="skip", timeout=3.0 if second is hangs else 60.0)
    async def check(ctx):
        if ctx.message in odd:
            await odd[ctx.message]()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        seen.append(ctx.message)

    publish(app, "orders", [0, 1, 2, 3, 4])
    async with started(app):
        await until(lambda: len(seen) + len(records(app, "orders.dlq")) == 5)
        assert state_of(app, "check") == "running"
    assert seen == [0, 3, 4]
    assert values(app, "orders.dlq") == [1, 2]


async def test_context_variables_are_fresh_for_each_call_of_a_batch_agent(app, tmp_path):
    """What one call set, the next one saw."""
    variable, seen = contextvars.ContextVar("variable", default=None), []
    numbers(tmp_path / "in", 4)

    @app.agent(NdjsonSource(tmp_path / "in", block_bytes=10), batch=True)
    async def check(batch, ctx):
        seen.append(variable.get())
        variable.set(1)
        await asyncio.sleep(0)

    await bounded(app.run())
    assert len(seen) > 1
    assert set(seen) == {None}


async def test_a_plain_function_may_return_a_future(app, tmp_path, sink):
    """Of a thread pool, say. Only coroutines were awaited rightly; a Future ended the lane."""
    numbers(tmp_path / "in", 3)
    with ThreadPoolExecutor(1) as pool:

        @app.agent(NdjsonSource(tmp_path / "in"), sink=sink)
        def double(ctx):
            return asyncio.get_running_loop().run_in_executor(pool, lambda: 2 * ctx.message["n"])

        await bounded(app.run())
    assert sink.payloads == [b"0", b"2", b"4"]


async def test_row_errors_take_the_row_numbers_of_numpy(app, tmp_path, sink):
    """Bad rows come from np.flatnonzero more often than from a loop; an np.int64 was no row number."""
    numbers(tmp_path / "in", 4)
    seen = []

    @app.agent(NdjsonSource(tmp_path / "in"), batch=True, dead_letter=sink)
    def check(batch, ctx):
        bad = np.flatnonzero(batch.column("n").to_numpy() == 2)
        if len(bad):
            raise RowErrors(dict.fromkeys(bad, "two"))
        seen.extend(batch.column("n").to_pylist())

    await bounded(app.run())
    assert (seen, sink.payloads) == ([0, 1, 3], [b'{"n": 2}'])


# Sinks


async def test_a_sink_that_breaks_ends_run_and_is_named(app, sink):
    """run() went on for ever: every checkpoint failed, and nobody said so but the log."""

    def write(batch):
        raise OSError("disk gone")

    sink.write = write

    @app.agent("orders", sink=sink)
    async def copy(ctx):
        return ctx.message

    publish(app, "orders", [1])
    with pytest.raises(AgentFailed, match=r"sink gated.*disk gone"):
        await bounded(app.run())


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("cancelled", [False, True], ids=["stopped", "cancelled_too"])
async def test_a_sink_that_hangs_does_not_hold_up_the_stop_for_ever(memory_url, tmp_path, sink, impatient, cancelled):
    """stop() waited for the sink's thread, and could not even be cancelled."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, checkpoint_timeout=60 if cancelled else 0.1)

    @app.agent("orders", sink=sink)
    async def copy(ctx):
        return ctx.message

    sink.shut("write", "flush")
    publish(app, "orders", list(range(100_000)))
    await app.start()
    await until(sink.reached["write"].is_set)
    stop = asyncio.create_task(app.stop())
    if cancelled:
        await asyncio.sleep(0)
        stop.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else CheckpointFailed):
        await bounded(stop)
    assert not app.agent_runtime.runner.running
    sink.let()
    await until(lambda: not alive(), "the thread that was left behind to end")


# Starts and stops


def test_one_app_runs_on_one_event_loop_after_the_other(memory_url):
    """Events and queues of the first loop were used on the second: run() returned at once, and stop() raised."""
    app, seen = App("shop", broker=memory_url), []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    async def start_and_stop(number):
        publish(app, "orders", [number])
        async with started(app):
            await until(lambda: number in seen)
            assert await checkpoint(app) > 0
            assert state_of(app, "check") == "running"

    async def run():
        publish(app, "orders", [3])
        running = asyncio.create_task(app.run())
        await until(lambda: 3 in seen)
        assert not running.done()
        app.request_stop()
        await bounded(running)

    asyncio.run(start_and_stop(1))
    asyncio.run(start_and_stop(2))
    asyncio.run(run())
    assert state_of(app, "check") == "stopped"


@pytest.mark.parametrize("drain", [False, True])
def test_a_stop_beside_run_leaves_a_last_checkpoint(memory_url, tmp_path, drain):
    """run() returned before stop() had ended, so asyncio.run cancelled the stop in the middle of its checkpoint."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)
    app.state_backend = MemoryBackend()

    @app.agent("orders")
    async def count(ctx):
        await increment(ctx)

    async def stop():
        await until(lambda: app.agent_runtime.runner.running and processed(app, "count") == 1000)
        await app.stop(drain=drain)

    async def main():
        publish(app, "orders", list(range(1000)))
        stopping = asyncio.create_task(stop())
        await bounded(app.run())
        return stopping

    stopping = asyncio.run(main())
    assert stopping.done()
    assert not stopping.cancelled()
    assert last_cut(tmp_path)["agents"]["shop.count"]["messages_processed"] == 1000


async def test_two_starts_at_once_are_one_start_and_a_refusal(app):
    """Both opened everything, and each record was processed twice."""
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [1, 2, 3])
    first, second = await asyncio.gather(app.start(), app.start(), return_exceptions=True)
    assert first is None
    assert isinstance(second, UserError)
    await until(lambda: processed(app, "check") == 3)
    await app.stop()
    assert seen == [1, 2, 3]


async def test_a_stop_during_the_start_stops_what_was_started(app, sink):
    """stop() saw nothing that ran, and returned; the app ran on behind it."""

    @app.agent("orders", sink=sink)
    async def check(ctx):
        return ctx.message

    sink.shut("open")
    start = asyncio.create_task(app.start())
    await until(sink.reached["open"].is_set)
    stop = asyncio.create_task(app.stop())
    await asyncio.sleep(0)
    sink.let()
    await bounded(asyncio.gather(start, stop))
    assert not app.agent_runtime.runner.running
    assert state_of(app, "check") == "stopped"


def with_state(memory_url, directory, sink):
    app = App("shop", broker=memory_url, state=str(directory))

    @app.agent("orders", sink=sink)
    async def check(ctx):
        return ctx.message

    return app


async def test_two_apps_with_checkpoints_of_their_own_do_not_share_the_tables_of_one_state_directory(tmp_path):
    """The second one removed the tables of the first one while they were in use. Seen with --workers, where nothing had the directory."""

    def build(name):
        app = App(name, state=tmp_path / "state", checkpoint_dir=tmp_path / name)
        app.state_backend = MemoryBackend()
        stream = app.stream(ScriptedSource([[{"k": 1}]]), schema={"k": "int64"})
        stream.group_by("k").aggregate(n=count()).changelog().to(NdjsonSink(tmp_path / f"{name}.ndjson"))
        return app

    first = build("first")
    async with started(first):
        with pytest.raises(AppLocked, match="is in use by process"):
            await build("second").start()
    async with started(build("second")):
        pass


@pytest.mark.parametrize("moment", ["lock", "open"])
async def test_a_start_that_is_cancelled_leaves_no_lock_and_no_thread(memory_url, tmp_path, sink, monkeypatch, moment):
    """A step of the start runs in a thread and cannot be cancelled: it took the lock after everybody had gone."""
    reached, go, lock = sink.reached["open"], sink.gates["open"], CheckpointStorage.lock
    if moment == "lock":
        reached, go = threading.Event(), threading.Event()

        def slow_disk(storage):
            reached.set()
            go.wait()
            lock(storage)

        monkeypatch.setattr(CheckpointStorage, "lock", slow_disk)
    go.clear()
    run = asyncio.create_task(with_state(memory_url, tmp_path, sink).run())
    try:
        await until(reached.is_set)
        run.cancel()
        await asyncio.sleep(0)
    finally:
        go.set()
    with pytest.raises(asyncio.CancelledError):
        await bounded(run)
    await until(lambda: not alive(), "the threads to end")
    async with started(with_state(memory_url, tmp_path, sink)):
        pass


@pytest.mark.parametrize("first", ["starting", "running"])
async def test_a_run_that_is_cancelled_again_while_it_closes_leaves_no_lock_and_no_thread(
    memory_url, tmp_path, sink, first
):
    """The second cancellation broke off the closing itself: threads went on, and the directory stayed locked."""
    sink.shut("close", *(["open"] if first == "starting" else []))
    app = with_state(memory_url, tmp_path, sink)
    run = asyncio.create_task(app.run())
    await until(sink.reached["open"].is_set)
    if first == "running":
        await until(lambda: app.agent_runtime.runner.running and state_of(app, "check") == "running")
    run.cancel()
    await asyncio.sleep(0)
    sink.gates["open"].set()
    await until(sink.reached["close"].is_set)
    for _ in range(3):
        run.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    sink.let()
    with pytest.raises(asyncio.CancelledError):
        await bounded(run)
    await until(lambda: not alive(), "the threads to end")
    async with started(with_state(memory_url, tmp_path, sink)):
        pass


@pytest.mark.parametrize("through", ["record", "batch"])
async def test_offsets_are_not_committed_past_rows_that_a_chained_agent_has_not_finished(app, through):
    """Those of the reader were committed to the end while the agent that it writes into had finished none."""
    done = []

    @app.agent()
    async def down(ctx):
        if not release.is_set() and ctx.message["n"] == 3:
            await release.wait()
        done.append(ctx.message["n"])

    @app.agent("orders", sink=down, batch=through == "batch", name="up")
    def up(message, _=None):
        return message if through == "batch" else message.message

    release = asyncio.Event()
    publish(app, "orders", [{"n": n} for n in range(10)])
    async with started(app):
        await until(lambda: len(done) == 3)
        await app.agent_runtime.trigger_checkpoint()
        await app.agent_runtime.trigger_checkpoint()  # its barrier comes behind the commit of the first
        committed = MemoryBroker.get(app.broker).committed("shop.up-group", "orders")
        assert committed == ({0: 3} if through == "record" else {})
        release.set()
        await until(lambda: len(done) == 10)
    assert MemoryBroker.get(app.broker).committed("shop.up-group", "orders") == {0: 10}


async def test_a_file_that_grew_after_its_app_had_ended_is_read_on_once(memory_url, tmp_path):
    """The last checkpoint was left out where the one before was of the end: what came since was read again at each start."""
    numbers(tmp_path / "orders", 3)
    seen = []

    def build():
        app = App("shop", broker=memory_url, checkpoint_dir=tmp_path / "checkpoints")

        @app.agent(NdjsonSource(tmp_path / "orders"))
        async def read(ctx):
            seen.append(ctx.message["n"])

        return app

    await bounded(build().run())
    with open(tmp_path / "orders", "a") as file:
        file.write('{"n": 3}\n')
    for _ in range(2):
        await bounded(build().run())
    assert seen == [0, 1, 2, 3]
