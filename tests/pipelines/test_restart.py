"""An app whose task fails goes on from its last checkpoint, so often as `restart=` says, and nobody sees it in the results."""

import asyncio
import itertools
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

import sabot
from sabot import AgentFailed, App, Batch, Sink, Source, TransientError, UserError
from sabot.connectors.base import Bounded, Positions, Scans
from sabot.testing import END, ListSink, ScriptedSource, simulate
from tools.agent_tools import bounded, checkpoint, publish, until

SCHEMA = pa.schema([("n", pa.int64())])


def dicts(rows: Any) -> list[dict[str, int]]:
    return [{"n": n} for n in rows]


def restarts(app: App) -> float:
    for family in text_string_to_metric_families(app.agent_runtime.runner.watch.metrics.text()):
        for sample in family.samples:
            if sample.name == "sabot_restarts_total":
                return float(sample.value)
    raise AssertionError("sabot_restarts_total is not among the metrics")


class Trouble:
    """Raises what it is given, one error a call, when a batch with this number comes; then nothing any more."""

    def __init__(self, at: int, errors: list[BaseException], *, forever: bool = False) -> None:
        self.at = at
        self.errors = errors
        self.forever = forever
        self.seen: Counter[int] = Counter()
        self.failed = 0

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = batch.column("n").to_pylist()
        if self.at in rows and (self.forever or self.failed < len(self.errors)):
            self.failed += 1
            raise self.errors[(self.failed - 1) % len(self.errors)]
        self.seen.update(rows)
        return batch


def through(
    url: str, folder: Path, sink: Sink, trouble: Callable[[pa.RecordBatch], pa.RecordBatch], **settings: Any
) -> App:
    """The numbers of the topic "in" through the trouble; counted on the way, so that lost or repeated state would be seen."""
    settings = {"restart": "fixed(3, 1ms)", "checkpoint_interval": "1h", **settings}
    app = App("restarts", url, checkpoint_dir=str(folder / "checkpoints"), **settings)
    stream = app.stream("in", schema=SCHEMA).map_batches(trouble, schema=SCHEMA, on_error="fail")
    stream.with_columns(k=sabot.lit(0)).key_by("k").aggregate(n=sabot.count()).select("n").to(sink)
    return app


class Running:
    """`async with Running(app) as run`: the app runs; `run.over` is its `App.run`."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __aenter__(self) -> "Running":
        self.over = asyncio.ensure_future(self.app.run())
        await until(lambda: self.over.done() or self.read() is not None, "the start")
        return self

    async def __aexit__(self, *error: object) -> None:
        self.app.request_stop()
        await asyncio.wait([self.over], timeout=60)
        assert self.over.done()
        self.over.cancelled() or self.over.exception()

    def read(self) -> int | None:
        tasks = self.app.statistics()["streams"]
        return next((task["input"]["rows_in"] for name, task in tasks.items() if name.startswith("read")), None)


# -- failures that pass ---------------------------------------------------------------------------------------------------


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("error", [TransientError("away"), ConnectionError("reset by peer"), TimeoutError("late")])
async def test_a_task_that_fails_for_a_while_goes_on_from_the_last_checkpoint(
    memory_url: str, tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ListSink()
    trouble = Trouble(4, [error, error])
    app = through(memory_url, tmp_path, sink, trouble)
    async with Running(app) as run:
        publish(app, "in", dicts([1, 2, 3]))
        await until(lambda: sum(trouble.seen.values()) == 3)
        await checkpoint(app)
        await until(lambda: len(sink.rows) == 3)
        with caplog.at_level(logging.WARNING, "sabot"):
            publish(app, "in", dicts([4, 5]))
            await until(lambda: trouble.seen[5], "the app to go on")
        await until(lambda: run.read() is not None)
        await checkpoint(app)
        await until(lambda: len(sink.rows) == 5, "the rest")
        assert restarts(app) == 2
        assert trouble.failed == 2
        assert [trouble.seen[n] for n in (1, 2, 3)] == [1, 1, 1], "what the checkpoint covers is not read again"
    assert sink.rows == dicts([1, 2, 3, 4, 5])
    await run.over
    assert str(error) in caplog.text, "the log says why"


async def test_a_failure_before_the_first_checkpoint_starts_over(memory_url: str, tmp_path: Path) -> None:
    sink = ListSink()
    trouble = Trouble(3, [OSError("flaky")])
    app = through(memory_url, tmp_path, sink, trouble)
    publish(app, "in", dicts([1, 2]))
    async with Running(app) as run:
        await until(lambda: sum(trouble.seen.values()) == 2)
        publish(app, "in", dicts([3]))
        await until(lambda: trouble.seen[3], "the app to start over")
        await until(lambda: run.read() is not None)
        await checkpoint(app)
        await until(lambda: len(sink.rows) == 3)
    assert sink.rows == dicts([1, 2, 3])


@pytest.mark.parametrize("how", ["away", "empty"])
async def test_a_restart_whose_checkpoint_is_gone_does_not_begin_from_nothing(
    memory_url: str, tmp_path: Path, how: str
) -> None:
    """A volume that was unmounted, or a folder that was renamed, while the app ran: it counted from 1 again, without a word."""
    trouble = Trouble(2, [OSError("flaky")])
    app = through(memory_url, tmp_path, ListSink(), trouble)
    publish(app, "in", dicts([1]))
    async with Running(app) as run:
        await until(lambda: trouble.seen[1])
        await checkpoint(app)
        (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
        if how == "empty":
            (tmp_path / "checkpoints").mkdir()
        publish(app, "in", dicts([2]))
        with pytest.raises(UserError, match=r"cannot restart from its checkpoint 1, .*no longer in.*unmounted"):
            await bounded(run.over)
    assert (tmp_path / "checkpoints").exists() == (how == "empty"), "nothing is made in its place"
    (tmp_path / "checkpoints").exists() and shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    async with Running(app):
        await until(lambda: trouble.seen[2], "the app goes on where it was")
    assert trouble.seen[1] == 1


class FlakySource(Source, Bounded, Scans):
    """Gives 0 to 99 in tens; its connection breaks at each of the given places, once."""

    name = "flaky"

    def __init__(self, breaks: set[int]) -> None:
        self.breaks = breaks
        self.at = 0
        self.is_held: Callable[[], bool] = lambda: False

    def scan(self, schema: pa.Schema | None, columns: Any) -> bool:
        return True

    def infer_schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.at = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.at in self.breaks:
            self.breaks.discard(self.at)
            raise ConnectionError("the line is dead")
        if self.exhausted or (self.at >= 50 and self.is_held()):
            return None
        rows = pa.record_batch({"n": list(range(self.at, self.at + 10))}, schema=SCHEMA)
        self.at += 10
        return Batch(rows, {(self.name, 0): self.at}, self.name)

    @property
    def exhausted(self) -> bool:
        return self.at >= 100

    def positions(self) -> Positions:
        return {(self.name, 0): self.at}

    def close(self) -> None:
        """Nothing to let go of."""


async def test_a_source_that_breaks_is_opened_again_at_the_checkpoint(tmp_path: Path) -> None:
    sink, app = ListSink(), App("source", checkpoint_dir=str(tmp_path), restart="fixed(3, 1ms)")
    app.stream(FlakySource({0, 30, 70})).to(sink)
    await bounded(app.run())
    assert sink.rows == dicts(range(100))
    assert restarts(app) == 3


class Forgetful(FlakySource):
    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        batch = super().read_batch(max_rows, timeout)
        return None if batch is None else Batch(batch.data)


@pytest.mark.parametrize("by", ["stream", "agent"])
async def test_rows_whose_offsets_a_source_does_not_say_are_refused(by: str, tmp_path: Path) -> None:
    """A restart would read them once more, beside the state and the results in which they are."""
    sink, app = ListSink(), App("source", checkpoint_dir=str(tmp_path))
    if by == "stream":
        app.stream(Forgetful(set())).to(sink)
    else:

        @app.agent(Forgetful(set()), batch=True, sink=sink)
        async def same(batch: pa.RecordBatch, ctx: object) -> pa.RecordBatch:
            return batch

    with pytest.raises((UserError, AgentFailed), match="source flaky: read_batch returned 10 rows without the offsets"):
        await bounded(app.run())
    assert not sink.rows


class FlakySink(Sink):
    """At least once; refuses the first batches that it is given."""

    name = "flaky"

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors
        self.rows: list[Any] = []

    def open(self) -> None:
        """Ready."""

    def write(self, batch: Batch) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.rows += batch.taken().column("n").to_pylist()

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


async def test_a_sink_that_breaks_gets_the_rows_again(tmp_path: Path) -> None:
    sink, app = (
        FlakySink([OSError("full"), TransientError("busy")]),
        App("sink", checkpoint_dir=str(tmp_path), restart="fixed(3, 1ms)"),
    )
    app.stream(ScriptedSource([dicts(range(5)), dicts(range(5, 9)), END], schema=SCHEMA)).to(sink)
    await bounded(app.run())
    assert set(sink.rows) == set(range(9)), "at least once"
    assert restarts(app) == 2


@pytest.mark.parametrize("when", ["while it runs", "at its end"])
async def test_a_receiver_that_breaks_is_one_more_failure_of_a_task(tmp_path: Path, when: str) -> None:
    """(Finding 6: at the end of a bounded app it was the end of the app.)"""
    broken = [OSError("io"), OSError("io")]

    class Broken(ListSink):
        def deliver(self, seq: int, batches: Any) -> None:
            if broken:
                raise broken.pop()
            super().deliver(seq, batches)

    sink = Broken()
    interval = "10ms" if when == "while it runs" else "1h"
    app = App("receiver", checkpoint_dir=str(tmp_path), checkpoint_interval=interval, restart="fixed(3, 1ms)")
    source = FlakySource(set())
    if when == "while it runs":
        source.is_held = lambda: bool(broken)  # its second half comes when the receiver has failed
    app.stream(source).to(sink)
    await bounded(app.run())
    assert sink.rows == dicts(range(100))
    assert restarts(app) == 2


async def test_state_of_agents_beside_the_failing_stream_is_exact(memory_url: str, tmp_path: Path) -> None:
    counted, sink = ListSink("counted"), ListSink()
    trouble = Trouble(3, [OSError("flaky")])
    app = through(memory_url, tmp_path, sink, trouble, state="memory", checkpoint_interval="20ms")

    @app.agent("words", sink=counted)
    async def count(ctx: Any) -> Any:
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        return {"word": ctx.message, "n": n}

    async with Running(app) as run:
        publish(app, "words", ["a", "b", "c"])
        publish(app, "in", dicts([1, 2]))
        await until(lambda: app.statistics()["agents"]["restarts.count"]["messages_processed"] == 3)
        publish(app, "words", ["d"])
        publish(app, "in", dicts([3]))
        await until(lambda: trouble.seen[3], "the app to go on")
        await until(lambda: run.read() is not None)
        publish(app, "words", ["e"])
        await until(lambda: len(counted.rows) == 5)
        await until(lambda: len(sink.rows) == 3)
    assert counted.rows == [{"word": word, "n": n + 1} for n, word in enumerate("abcde")]
    assert restarts(app) == 1


# -- failures that stay ---------------------------------------------------------------------------------------------------


async def test_a_poison_record_ends_the_app_after_so_many_restarts(memory_url: str, tmp_path: Path) -> None:
    sink = ListSink()
    trouble = Trouble(3, [OSError("always")], forever=True)
    app = through(memory_url, tmp_path, sink, trouble)
    async with Running(app) as run:
        publish(app, "in", dicts([1, 2]))
        await until(lambda: sum(trouble.seen.values()) == 2)
        await checkpoint(app)
        publish(app, "in", dicts([3]))
        with pytest.raises(Exception, match="always"):
            await bounded(run.over)
    assert trouble.failed == 4, "the first time, and three restarts"
    assert restarts(app) == 3
    assert sink.rows == dicts([1, 2])
    healthy = Trouble(0, [])
    mended = through(memory_url, tmp_path, sink, healthy)
    async with Running(mended):
        await until(lambda: healthy.seen[3])
        await checkpoint(mended)
        await until(lambda: len(sink.rows) == 3, "the next start delivers")
    assert sink.rows == dicts([1, 2, 3])


@pytest.mark.parametrize(("restart", "calls"), [("none", 1), ("fixed(1, 1ms)", 2), ("fixed(5, 0s)", 6)])
async def test_restart_says_how_often(memory_url: str, tmp_path: Path, restart: str, calls: int) -> None:
    trouble = Trouble(3, [OSError("always")], forever=True)
    app = through(memory_url, tmp_path, ListSink(), trouble, restart="none")
    app.configure(restart=restart)
    publish(app, "in", dicts([3]))
    with pytest.raises(Exception, match="always"):
        await bounded(app.run())
    assert trouble.failed == calls


@pytest.mark.parametrize(
    "restart", ["sometimes", "fixed", "fixed(3)", "fixed(-1, 1s)", "fixed(x, 1s)", "fixed(3, soon)", ""]
)
def test_another_restart_is_refused_and_the_right_ones_are_named(restart: str) -> None:
    with pytest.raises(UserError) as caught:
        App("app", restart=restart)
    assert "restart" in caught.value.message
    assert caught.value.hint


async def test_what_the_user_did_wrong_is_told_at_once(memory_url: str, tmp_path: Path) -> None:
    trouble = Trouble(3, [UserError("no such currency", hint="add it to the table")], forever=True)
    app = through(memory_url, tmp_path, ListSink(), trouble)
    publish(app, "in", dicts([3]))
    with pytest.raises(UserError, match="no such currency"):
        await bounded(app.run())
    assert trouble.failed == 1
    assert restarts(app) == 0


async def test_a_bug_in_the_users_function_never_loops(memory_url: str, tmp_path: Path) -> None:
    trouble = Trouble(3, [ZeroDivisionError("division by zero")], forever=True)
    app = through(memory_url, tmp_path, ListSink(), trouble)
    publish(app, "in", dicts([3]))
    with pytest.raises(Exception, match="division by zero"):
        await bounded(app.run())
    assert 1 <= trouble.failed <= 4


async def test_an_agent_that_fails_by_its_policy_does_not_restart_the_app(memory_url: str, tmp_path: Path) -> None:
    calls = 0
    app = App("policy", memory_url, checkpoint_dir=str(tmp_path), restart="fixed(3, 1ms)")

    @app.agent("in", on_error="fail")
    async def picky(ctx: Any) -> None:
        nonlocal calls
        calls += 1
        raise ValueError("not this one")

    publish(app, "in", dicts([1]))
    with pytest.raises(AgentFailed, match="not this one"):
        await bounded(app.run())
    assert calls == 1
    assert restarts(app) == 0


async def test_a_start_that_fails_is_no_failure_of_a_task(tmp_path: Path) -> None:
    """What cannot be opened in the first place is told at once."""
    opened = 0

    class Missing(FlakySource):
        def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
            nonlocal opened
            opened += 1
            raise UserError("there is no such feed")

    app = App("missing", checkpoint_dir=str(tmp_path), restart="fixed(3, 1ms)")
    app.stream(Missing(set())).to(ListSink())
    with pytest.raises(UserError, match="no such feed"):
        await bounded(app.run())
    assert opened == 1


async def test_stopping_ends_the_wait_for_a_restart(memory_url: str, tmp_path: Path) -> None:
    trouble = Trouble(3, [OSError("always")], forever=True)
    app = through(memory_url, tmp_path, ListSink(), trouble, restart="fixed(3, 1h)")
    publish(app, "in", dicts([3]))
    run = asyncio.ensure_future(app.run())
    await until(lambda: trouble.failed == 1)
    threading.Timer(0.05, app.request_stop).start()
    await asyncio.wait([run], timeout=60)
    assert run.done(), "an hour is not waited"
    run.exception()
    assert trouble.failed == 1


# -- in virtual time ------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # two seconds of a core
def test_failures_that_are_far_apart_do_not_add_up() -> None:
    """Three within ten minutes are allowed; here are six, each 250 s or more after the one before."""
    failed: list[int] = []

    class OnceEach(FlakySink):
        def write(self, batch: Batch) -> None:
            for record in batch.taken().column("payload").to_pylist():
                if (n := int(record)) not in failed:
                    failed.append(n)
                    raise OSError("flaky")
                self.rows.append(n)

    sink = OnceEach([])

    def build(folder: Path) -> App:
        app = App("apart", checkpoint_dir=str(folder), restart="fixed(3, 1s)")

        @app.agent(ScriptedSource([*range(6), END]), sink=sink)
        async def slow(ctx: Any) -> Any:
            await asyncio.sleep(250)
            return ctx.message

        return app

    found = simulate(build, seed=7)
    assert set(sink.rows) == set(range(6))
    assert len(failed) == 6
    assert found.seconds >= 6 * 250


def test_the_app_waits_before_it_starts_again() -> None:
    waits: list[float] = []

    def build(folder: Path) -> App:
        app = App("waits", checkpoint_dir=str(folder), restart="fixed(3, 20s)")

        class Broken(FlakySink):
            def write(self, batch: Batch) -> None:
                waits.append(app.clock.monotonic())
                raise OSError("always")

        app.stream(ScriptedSource([dicts([1]), END], schema=SCHEMA)).to(Broken([]))
        return app

    with pytest.raises(Exception, match="always"):
        simulate(build, seed=3)
    assert len(waits) == 4
    assert all(later - earlier >= 20 for earlier, later in itertools.pairwise(waits))
