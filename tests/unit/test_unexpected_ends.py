"""Tasks, callbacks and threads of the engine that end unexpectedly, by failures put into each: logged, in the statistics, raised
by `run()`, and by the next call where `start()` was used. Nothing stands still in silence.
"""

import asyncio
import errno
import json
import logging
import os
import re
import subprocess
import sys

import pytest

from sabot import App, NdjsonSink, SabotError, UserError, col
from sabot.base.backoff import Backoff
from sabot.base.process_exit import find_exit
from sabot.base.supervision import unexpected_end, watch_call, watch_task
from sabot.connectors.memory import MemorySink, MemorySource
from sabot.engine.calls import Crew
from sabot.engine.calls.handover import Handover
from sabot.engine.checkpoint import Coordinator, Requests
from sabot.engine.delivery.parts import PartWriter
from sabot.engine.delivery.tracks import TrackWork
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.operators.agents.records import RecordAgentOperator
from sabot.engine.operators.rows.stateless import Filter
from sabot.engine.runtime.agents.process import AgentProcess
from sabot.engine.runtime.agents.task import AgentTask
from sabot.engine.runtime.life import restarts
from sabot.errors import InternalError, TransientError
from tools.agent_tools import bounded, publish, state_of, until, values

BURST = [RecursionError("maximum recursion depth exceeded"), MemoryError()]


@pytest.fixture
def app(memory_url, tmp_path):
    """An agent whose results and state are in checkpoints, in an app of its own."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, checkpoint_interval=0.02, restart="none")

    @app.agent("orders", sink="copies", timeout="50ms")
    async def copy(ctx):
        return ctx.message

    return app


def burst(monkeypatch, owner, name, error):
    """From now on this method ends with the error."""
    original = getattr(owner, name)

    def fails(*args, **options):
        raise error

    async def fails_later(*args, **options):
        raise error

    monkeypatch.setattr(owner, name, fails_later if asyncio.iscoroutinefunction(original) else fails)


async def told(app, what, caplog):
    """The app runs since `start()`: the failure is in the log and the statistics, each call raises it, and then it can start again."""
    await until(lambda: app.statistics()["failure"] is not None, "the failure")
    assert what in app.statistics()["failure"]
    assert any(what in record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
    calls = [
        lambda: app.send("orders", {"n": 2}),
        app.agent_runtime.trigger_checkpoint,
        app.start,
    ]
    for call in calls:
        with pytest.raises(SabotError) as raised:
            await bounded(call())
        assert what in str(raised.value)
    with pytest.raises(SabotError) as raised:
        await bounded(app.stop())
    assert what in str(raised.value)
    await bounded(app.stop())  # which was told once
    assert what in app.statistics()["failure"]  # until the next start


async def fails(app, place, error, monkeypatch):
    """The app runs since `start()`, and fails at this place. -> the words for it"""
    owner, name, what = place
    burst(monkeypatch, owner, name, error)
    publish(app, "orders", [{"n": 1}])
    await app.start()
    await until(lambda: app.statistics()["failure"] is not None, "the failure")
    return what


async def goes_on(app, monkeypatch):
    """Nothing fails any more: the app goes on from its last checkpoint, as if nothing had been."""
    monkeypatch.undo()
    await app.start()
    await until(lambda: {"n": 1} in values(app, "copies"))
    assert app.statistics()["failure"] is None


AGENT_PLACES = {
    "the agent task": (AgentTask, "_take", "the task that hands records to agents"),
    "the hand-over of rows": (RecordAgentOperator, "put", "the task that hands records to agents"),
    "the end of a call": (RecordAgentOperator, "_end", "a lane of agent shop.copy, at orders[0]@0"),
    "checkpoints": (Coordinator, "beat", "the task of checkpoints"),
    "requests": (Requests, "pending", "the task of requests"),
    "the writer of a checkpoint": (Coordinator, "_complete", "the writer of checkpoint 1"),
    "an agent's loop": (AgentProcess, "_processing_loop", "the processing loop of agent shop.copy"),
    "the watchdog": (Crew, "_watch", "the timer for timeout= of agent shop.copy"),
    "a sink's thread": (MemorySink, "write", "sink copies"),
}


@pytest.mark.one_in(12, "some hundredths of a second of a core each")
@pytest.mark.parametrize("error", BURST, ids=["RecursionError", "MemoryError"])
@pytest.mark.parametrize("place", AGENT_PLACES)
async def test_it_is_told_to_the_next_call_after_start(app, place, error, monkeypatch, caplog):
    what = await fails(app, AGENT_PLACES[place], error, monkeypatch)
    assert state_of(app, "copy") == "failed"
    assert what in app.agent_runtime.get_stats()["shop.copy"]["failure"]
    await told(app, what, caplog)
    await goes_on(app, monkeypatch)
    assert app.agent_runtime.get_stats()["shop.copy"]["failure"] is None
    await bounded(app.stop())


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("place", AGENT_PLACES)
async def test_it_is_raised_by_run(app, place, monkeypatch):
    owner, name, what = AGENT_PLACES[place]
    burst(monkeypatch, owner, name, RecursionError("too deep"))
    publish(app, "orders", [{"n": 1}])
    with pytest.raises(SabotError) as raised:
        await bounded(app.run())
    assert what in str(raised.value)
    assert what in app.statistics()["failure"]
    monkeypatch.undo()
    publish(app, "orders", [{"n": 2}])
    running = asyncio.ensure_future(app.run())
    await until(lambda: {"n": 2} in values(app, "copies"))
    app.request_stop()
    await bounded(running)


async def test_run_restarts_what_a_failure_of_the_engine_ended(memory_url, tmp_path, monkeypatch):
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, restart="fixed(3, 1ms)")
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    take, left = AgentTask._take, [RecursionError("too deep"), MemoryError()]

    def fails_twice(self, index, batch):
        if left:
            raise left.pop()
        take(self, index, batch)

    monkeypatch.setattr(AgentTask, "_take", fails_twice)
    publish(app, "orders", [1, 2])
    running = asyncio.ensure_future(app.run())
    await until(lambda: seen == [1, 2])
    app.request_stop()
    await bounded(running)
    assert app.agent_runtime.runner.status.restarts == 2


async def test_restarts_without_an_end_wait_longer_and_longer(memory_url, tmp_path, monkeypatch, caplog):
    """An app that met an outage of ten minutes ended with it, whatever number of restarts it was given."""
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, restart="backoff(1ms, 4ms)")
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)

    take, left = AgentTask._take, [RecursionError("too deep") for _ in range(5)]

    def fails(self, index, batch):
        if left:
            raise left.pop()
        take(self, index, batch)

    monkeypatch.setattr(AgentTask, "_take", fails)
    publish(app, "orders", [1])
    running = asyncio.ensure_future(app.run())
    await until(lambda: seen == [1])
    app.request_stop()
    await bounded(running)
    waits = re.findall(r"restart \d from the last checkpoint in (\S+) s", caplog.text)
    assert waits == ["0.001", "0.002", "0.004", "0.004", "0.004"]


@pytest.mark.parametrize("restart", ["backoff(1ms, 4ms)", "fixed(3, 1ms)"])
async def test_without_an_end_a_first_start_that_fails_outside_is_tried_again(
    memory_url, tmp_path, restart, monkeypatch
):
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, restart=restart)
    copies(app)
    starts = failing_starts(app, monkeypatch, *[TransientError("the store does not answer")] * 2)
    running = asyncio.ensure_future(app.run())
    if restart.startswith("fixed"):  # it would usually fail again, and whoever started the app should see it
        with pytest.raises(TransientError):
            await bounded(running)
        assert len(starts) == 1
        return
    await until(lambda: app.agent_runtime.runner.started)
    app.request_stop()
    await bounded(running)
    assert len(starts) == 3


async def test_a_start_waits_for_room_on_a_full_disk(memory_url, tmp_path, monkeypatch, caplog):
    """A running app goes on while its disk is full, and takes its next checkpoint when there is room; a start ended."""
    monkeypatch.setattr(restarts, "_FULL_DISK", Backoff(0.001, 0.002))
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, restart="none")
    copies(app)
    full = UserError("checkpoint directory cannot be used: No space left on device")
    starts = failing_starts(app, monkeypatch, *[full] * 5)
    running = asyncio.ensure_future(app.run())
    await until(lambda: app.agent_runtime.runner.started)
    assert len(starts) == 6
    assert app.agent_runtime.runner.status.restarts == 0
    assert caplog.text.count("the start waits for room, and tries again in 0.00") == 5
    app.request_stop()
    await bounded(running)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("restart", ["fixed(3, 1ms)", "backoff(1ms, 2ms)", "none"])
async def test_an_app_whose_waiting_output_finds_no_room_waits_for_it(
    memory_url, tmp_path, monkeypatch, caplog, restart
):
    """Of the output of an exactly-once sink, which waits in files for its checkpoint. Three restarts within three seconds did
    not help, and the app ended.
    """
    monkeypatch.setattr(restarts, "_FULL_DISK", Backoff(0.001, 0.002))
    app = App("shop", broker=memory_url, state=tmp_path / "state", restart=restart)
    app.stream([{"n": n} for n in range(100)]).to(NdjsonSink(tmp_path / "out.ndjson"))
    write, tried = PartWriter._write, []

    def no_room(self, data):
        tried.append(1)
        if len(tried) <= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(PartWriter, "_write", no_room)
    if restart == "none":
        with pytest.raises(SabotError, match="No space left on device"):
            await bounded(app.run())
        assert len(tried) == 1
        return
    await bounded(app.run())
    assert caplog.text.count("the app waits for room, and tries again in 0.00") == 5
    assert app.agent_runtime.runner.status.restarts == 5  # they are shown, and do not count against `restart=`
    lines = (tmp_path / "out.ndjson").read_text().splitlines()
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(100))


async def test_a_stop_ends_the_wait_for_room(memory_url, tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "_FULL_DISK", Backoff(600.0, 600.0))
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path)
    copies(app)
    starts = failing_starts(app, monkeypatch, UserError("checkpoint directory cannot be used: Disk quota exceeded"))
    running = asyncio.ensure_future(app.run())
    await until(lambda: starts)
    app.request_stop()
    with pytest.raises(UserError, match="quota"):
        await bounded(running)
    assert len(starts) == 1


def copies(app):
    @app.agent("orders")
    async def copy(ctx):
        """Nothing to do."""


def failing_starts(app, monkeypatch, *errors):
    """Makes the first starts of the app fail with these errors. Returns the list to which each start adds itself."""
    starts, left, open_storage = [], list(errors), app.spec.open_storage

    def opened():
        starts.append(1)
        if left:
            raise left.pop()
        return open_storage()

    monkeypatch.setattr(app.spec, "open_storage", opened)
    return starts


async def test_an_agents_source_that_breaks_is_its_failure_and_the_others_go_on(app, monkeypatch):
    read = MemorySource.read_batch

    def breaks(self, max_rows, timeout):
        if self.name == "orders":
            raise MemoryError
        return read(self, max_rows, timeout)

    monkeypatch.setattr(MemorySource, "read_batch", breaks)
    seen = []

    @app.agent("others")
    async def other(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [1])
    publish(app, "others", [2])
    await app.start()
    await until(lambda: state_of(app, "copy") == "failed" and seen == [2])
    assert "source shop.copy/orders" in app.agent_runtime.get_stats()["shop.copy"]["failure"]
    assert state_of(app, "other") == "running"
    await app.agent_runtime.trigger_checkpoint()
    await bounded(app.stop())


async def test_an_agent_that_waits_for_room_in_another_does_not_wait_for_ever(memory_url, monkeypatch, caplog):
    app = App("shop", broker=memory_url)
    gone = asyncio.Event()

    @app.agent("orders")
    async def slow(ctx):
        await gone.wait()

    burst(monkeypatch, AgentOperator, "writable", RecursionError("too deep"))
    monkeypatch.setattr(AgentOperator, "full", property(lambda self: True))
    publish(app, "orders", [1])
    await app.start()
    await told(app, "the wait for room in agent shop.slow", caplog)


async def test_an_acknowledgement_that_breaks_fails_its_checkpoint_at_once(app, monkeypatch):
    publish(app, "orders", [1])
    app.configure(checkpoint_interval=60.0)
    await app.start()
    acknowledge = Coordinator.acknowledge
    burst(monkeypatch, Coordinator, "acknowledge", RecursionError("too deep"))
    with pytest.raises(SabotError, match="the acknowledgement has ended unexpectedly: RecursionError: too deep"):
        await bounded(app.agent_runtime.trigger_checkpoint())
    monkeypatch.setattr(Coordinator, "acknowledge", acknowledge)
    await bounded(app.agent_runtime.trigger_checkpoint())
    await bounded(app.stop())


async def test_a_task_of_the_engine_that_is_cancelled_from_outside_is_told(app, caplog):
    await app.start()
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "agent task"]
    task.cancel()
    await told(app, "cancelled from outside", caplog)


async def test_a_task_of_an_agent_by_itself_is_told_in_its_figures(memory_url, monkeypatch):
    app = App("shop", broker=memory_url)

    @app.agent("orders")
    async def check(ctx):
        """Nothing."""

    agent = app.agent_runtime.agents["shop.check"]
    agent.open_source = lambda topic, group: MemorySource(topic, memory_url, group)
    burst(monkeypatch, AgentTask, "_take", MemoryError())
    publish(app, "orders", [1])
    await agent.start()
    await until(lambda: agent.state.value == "failed")
    assert "MemoryError" in agent.failure
    await bounded(agent.stop())


# Streams


@pytest.fixture
def stream_app(memory_url, tmp_path):
    app = App("shop", broker=memory_url, checkpoint_dir=tmp_path, checkpoint_interval=0.02, restart="none")
    app.stream("orders", schema={"n": "int64"}).filter(col("n") > 0).to("copies", delivery="exactly_once")
    return app


STREAM_PLACES = {
    "an operator": (Filter, "process", "task"),
    "a source": (MemorySource, "read_batch", "task"),
    "a sink": (MemorySink, "deliver", "sink copies"),
    "a track of delivery": (TrackWork, "_is_delivered", "sink copies"),
}


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize("error", BURST, ids=["RecursionError", "MemoryError"])
@pytest.mark.parametrize("place", STREAM_PLACES)
async def test_a_stream_tells_the_next_call_after_start(stream_app, place, error, monkeypatch, caplog):
    what = await fails(stream_app, STREAM_PLACES[place], error, monkeypatch)
    await told(stream_app, what, caplog)
    assert type(error).__name__ in stream_app.statistics()["failure"]
    await goes_on(stream_app, monkeypatch)
    assert values(stream_app, "copies") == [{"n": 1}]
    await bounded(stream_app.stop())


async def test_after_a_failure_no_checkpoint_pretends_that_the_app_goes_on(stream_app, monkeypatch, caplog):
    burst(monkeypatch, Filter, "process", ValueError("odd"))
    publish(stream_app, "orders", [{"n": 1}])
    await stream_app.start()
    await until(lambda: stream_app.statistics()["failure"] is not None)
    failed = stream_app.statistics()["checkpoints"]["failed"]
    for _ in range(5):
        assert stream_app.agent_runtime.checkpoint_coordinator.beat() is None
    assert stream_app.statistics()["checkpoints"]["failed"] == failed
    assert [r.getMessage() for r in caplog.records if "odd" in r.getMessage() and "goes on" in r.getMessage()] == []
    assert len([r for r in caplog.records if "odd" in r.getMessage() and r.levelno == logging.ERROR]) == 1
    with pytest.raises(SabotError, match="odd"):
        await bounded(stream_app.stop())


async def test_agents_beside_a_stream_that_failed_read_no_more(stream_app, monkeypatch):
    """No checkpoint covers what they would do: the next start would do it again."""
    seen = []

    @stream_app.agent("others")
    async def other(ctx):
        seen.append(ctx.message)

    burst(monkeypatch, Filter, "process", ValueError("odd"))
    publish(stream_app, "orders", [{"n": 1}])
    await stream_app.start()
    await until(lambda: stream_app.statistics()["failure"] is not None)
    assert state_of(stream_app, "other") == "failed"
    (source,) = stream_app.agent_runtime.runner._run.parts.agents.task.sources
    assert source.input.held
    with pytest.raises(SabotError, match="odd"):
        await bounded(stream_app.stop())
    assert seen == []


async def test_calls_beside_a_stream_that_cannot_be_handed_over_are_told(memory_url, monkeypatch, caplog):
    app = App("shop", broker=memory_url)

    async def look_up(row):
        return {**row, "found": True}

    app.stream("orders", schema={"n": "int64"}).map_async(look_up, schema={"n": "int64", "found": "bool"}).to("copies")
    burst(monkeypatch, Handover, "_take", RecursionError("too deep"))
    publish(app, "orders", [{"n": 1}])
    await app.start()
    await told(app, "a turn of its calls has ended unexpectedly: RecursionError: too deep", caplog)


# The mechanism


async def test_watched_tells_errors_and_unwanted_cancellations_alone():
    async def heard_of(work, *, stopped=True, cancel=False):
        heard = []
        task = watch_task(asyncio.ensure_future(work), "a task", heard.append, stopped=lambda: stopped)
        await asyncio.sleep(0)
        if cancel:
            task.cancel()
        await asyncio.wait([task])
        return [str(error) for error in heard]

    async def ends(error):
        raise error

    hint = "(the next start goes on from the last checkpoint)"
    assert await heard_of(asyncio.sleep(0)) == []
    assert await heard_of(ends(SabotError("ours"))) == ["ours"]
    assert await heard_of(ends(RecursionError("deep"))) == [
        f"a task has ended unexpectedly: RecursionError: deep {hint}"
    ]
    assert await heard_of(asyncio.sleep(60), cancel=True) == []
    assert await heard_of(asyncio.sleep(60), cancel=True, stopped=False) == [
        f"a task has ended unexpectedly: RuntimeError: it was cancelled from outside {hint}"
    ]


def test_guarded_tells_and_returns():
    heard = []

    def run(what):
        raise MemoryError(what)

    watch_call(run, "a thread", heard.append)("no room")
    assert isinstance(heard[0], InternalError)
    assert "a thread has ended unexpectedly: MemoryError: no room" in str(heard[0])
    assert isinstance(heard[0].__cause__, MemoryError)
    assert unexpected_end("it", heard[0]) is heard[0]
    asked = KeyboardInterrupt()
    assert find_exit(unexpected_end("a callback", asked)) is asked


LOOPS = """
import asyncio
from sabot import App, UserError

app = App("loops", broker="memory://loops", state="memory")

@app.agent("t")
async def a(ctx):
    pass

asyncio.run(app.start())
for call in (lambda: app.send("t", 1), app.stop, app.start):
    try:
        asyncio.run(call())
    except UserError as error:
        print(error)
"""


@pytest.mark.usefixtures("warm_starts")
def test_an_app_whose_event_loop_has_ended_says_so() -> None:
    """asyncio.run(app.start()), then asyncio.run(app.send(…)): it was an InternalError, and "Event loop is closed". Nobody can stop such
    an app, so it has a process of its own: here it would go on, and log, beside all tests to come.
    """
    ended = subprocess.run([sys.executable, "-c", LOOPS], capture_output=True, text=True, check=True, timeout=60)
    said = r"event loop in which app loops was started has ended.*one asyncio\.run"
    assert len(re.findall(said, ended.stdout)) == 3, ended.stdout + ended.stderr
