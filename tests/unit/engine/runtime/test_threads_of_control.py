"""Threads of control: a step at a time, on a thread or by hand; sources that are held; what a full channel refuses."""

import asyncio
import functools
import logging
import threading
from types import SimpleNamespace

import pyarrow as pa
import pytest

from sabot import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, Watermark
from sabot.base.threads import threads
from sabot.clock import ManualClock
from sabot.engine.checkpoint import Coordinator
from sabot.engine.runtime.agents.source import AgentSource
from sabot.engine.runtime.life.build import Build
from sabot.engine.runtime.tasks.chain import Chain, Output
from sabot.engine.runtime.tasks.event_time import SourceTime
from sabot.engine.runtime.tasks.reading import SourceInput
from sabot.engine.runtime.tasks.task import StreamTask
from sabot.engine.runtime.tasks.watermarks import Watermarks
from sabot.errors import TransientError, UserError
from sabot.testing import ScriptedSource
from sabot.testing.script import END as THE_END

ROWS = pa.record_batch({"n": [1, 2, 3]})


def source_input(script, *, clock=None, timed=False, time="n", watermarks=None):
    source = ScriptedSource(script)
    made = SourceInput(
        "script",
        source,
        codec=None,
        format={},
        schema=source.schema if not timed else source.schema.append(pa.field("__time", pa.int64())),
        time=SourceTime("script", time) if timed and time else None,
        timed=timed,
        watermarks=watermarks or Watermarks(0, 1000),
        dead_letter=lambda records: None,
        origin={},
        inferred=None,
        clock=clock or ManualClock(),
    )
    made.open(None, "earliest", None)
    return made


def elements(take):
    """All that come without waiting."""
    found = []
    while (element := take(0.0)) is not None:
        found.append(element)
    return found


def test_a_thread_takes_its_steps_until_it_is_over():
    left, over = [3, 2, 1], threading.Event()

    def step(wait_seconds):
        if not left:
            over.set()
            return False
        return left.pop() or None

    thread = threads.spawn("counts down", step)
    assert not thread.is_alive()
    thread.start()
    thread.join(60)
    assert over.is_set()
    assert not thread.is_alive()


def test_a_held_source_serves_barriers_and_reads_no_more():
    source = source_input([ROWS, ROWS, THE_END])
    assert source.next(0.0).num_rows == 3
    source.hold(True)
    source.request_barrier(7)
    assert elements(source.next) == [Barrier(7)]
    assert source.facts()["positions"] == [["script", 0, 3]]
    source.hold(False)
    assert source.next(0.0).num_rows == 3


def test_the_end_of_a_held_source_comes_all_the_same():
    source = source_input([ROWS])
    source.hold(True)
    source.end()
    assert elements(source.next) == [END]


def test_a_source_does_not_fall_silent_while_it_is_held():
    clock, watermarks = ManualClock(), Watermarks(0, 1000)
    source = source_input([ROWS, ROWS], clock=clock, timed=True, watermarks=watermarks)
    source.hold(True)
    elements(source.next)
    clock.advance(60)
    assert watermarks.read(int(clock.monotonic() * 1000)) == (False, watermarks.read(0)[1])
    source.hold(False)
    assert source.next(0.0).num_rows == 3


def agent_source(script, *, max_rows, kind=ScriptedSource):
    source = AgentSource(
        "agent/script",
        kind(script),
        SimpleNamespace(spec=SimpleNamespace(batch=True)),
        codec=None,
        max_rows=max_rows,
        clock=ManualClock(),
        loop=asyncio.new_event_loop(),
    )
    source.open(None, "earliest")
    return source


def test_a_held_source_of_an_agent_serves_barriers_and_reads_no_more():
    source = agent_source([[1, 2], THE_END], max_rows=10)
    source.input.hold(True)
    source.input.request_barrier(1)
    assert [source.task.step(0.0), source.task.step(0.0)] == [True, None]
    assert source.channel.get_nowait() == Barrier(1)
    source.input.hold(False)
    while source.task.step(0.0) is not False:
        """On to the end."""
    assert source.channel.get_nowait().num_rows == 2
    assert source.channel.get_nowait() is END


def test_a_source_of_an_agent_keeps_what_its_full_channel_refuses(monkeypatch):
    monkeypatch.setattr("sabot.engine.runtime.agents.source.Channel", functools.partial(Channel, capacity_rows=1))
    source = agent_source([[1], [2], THE_END], max_rows=1)
    assert [source.task.step(0.0), source.task.step(0.0), source.task.step(0.0)] == [True, True, None]
    source.input.request_barrier(1)
    assert source.task.step(0.0) is None
    found = [source.channel.get_nowait()]
    while source.task.step(0.0) is not False:
        if len(source.channel):
            found.append(source.channel.get_nowait())
    found += [source.channel.get_nowait() for _ in range(len(source.channel))]
    assert [each.num_rows if isinstance(each, Batch) else each for each in found] == [1, 1, Barrier(1), END]


def test_of_the_positions_to_commit_the_last_ones_count():
    """A source whose thread waits for room is asked at each checkpoint; what it is asked for does not pile up."""

    class Committing(ScriptedSource):
        def commit(self, positions):
            committed.append(positions)

    source = agent_source([[1], THE_END], max_rows=1, kind=Committing)
    committed = []
    for offset in range(100):
        source.input.request_commit({("script", 0): offset})
    source.task.step(0.0)
    assert committed == [{("script", 0): 99}]


def test_a_server_to_which_offsets_cannot_be_committed_is_told_once_and_again_when_they_are(caplog):
    """An app with a checkpoint each half second said it each half second, while the source said once that its server was away."""

    class Committing(ScriptedSource):
        def commit(self, positions):
            if positions[("script", 0)] in (1, 2, 3, 5):
                raise TransientError("the server is away")

    source = agent_source([[*range(7)], THE_END], max_rows=1, kind=Committing)
    with caplog.at_level(logging.INFO, "sabot"):
        for offset in range(7):
            source.input.request_commit({("script", 0): offset})
            source.task.step(0.0)
            while len(source.channel):
                source.channel.get_nowait()
    told = [record.getMessage() for record in caplog.records]
    failed = "source script: offsets could not be committed, each checkpoint tries again: the server is away"
    assert told == [failed, "source script: offsets are committed again"] * 2


def test_a_task_that_may_not_wait_keeps_the_order_of_what_a_full_channel_refuses():
    coordinator = Coordinator()
    task = StreamTask("t/0", coordinator)
    channel = Channel(capacity_rows=1)
    output = Output([channel], ())
    task.chain = Chain([output], [output])

    class Given:
        elements = [Batch(ROWS), Batch(ROWS), Watermark(5), Batch(ROWS), END]  # noqa: RUF012 - a fake

        def next(self, wait_seconds):
            return self.elements.pop(0) if self.elements else None

        def facts(self):
            return {}

        def memory(self):
            return {}

        def interrupt(self):
            """Nothing waits."""

    task.input = Given()
    found, over = [], False
    while not over or len(channel):
        took = task.step(0.0)
        over = over or took is False
        if took is None or over:
            found.append(channel.get_nowait())
    assert [e.num_rows if isinstance(e, Batch) else e for e in found] == [3, 3, Watermark(5), 3, END]
    assert task.ended


@pytest.mark.parametrize("rows", [100, 20_000])
def test_small_parts_of_a_shuffle_are_slices_of_one_copy_and_large_ones_selections(rows):
    numbers = pa.record_batch({"n": range(rows), "s": [f"row {n}" for n in range(rows)]})
    chosen = pa.array(range(0, rows, 2), pa.int32())
    for batch in (Batch(numbers), Batch(numbers).with_selection(chosen)):
        channels = [Channel() for _ in range(2)]
        Output(channels, ["n"]).put(batch)
        parts = [channel.get_nowait() for channel in channels]
        found = [row for part in parts for row in part.taken().to_pylist()]
        assert sorted(found, key=lambda row: row["n"]) == batch.taken().to_pylist()
        assert [part.taken().column("n").to_pylist() for part in parts] == [
            sorted(part.taken().column("n").to_pylist()) for part in parts
        ]
        assert len({part.data.column("s").buffers()[2].address for part in parts}) == 1
        assert [part.selection is None for part in parts] == [rows == 100] * 2


def test_a_column_that_holds_no_time_is_refused_with_its_stream_and_name():
    reader = source_input([pa.record_batch({"n": ["noon"]})], timed=True)
    with pytest.raises(
        UserError, match="stream script: the column of event time, 'n', has type string, which is not a time"
    ):
        elements(reader.next)


def test_rows_without_time_are_refused_with_the_stream_and_its_columns():
    reader = source_input([ROWS], timed=True, time=None)
    with pytest.raises(UserError, match="stream script: a step needs event time") as failure:
        elements(reader.next)
    assert failure.value.hint == 'app.stream(…, time="ts") names the column with the event time'


def test_a_source_that_waits_longer_than_it_may_is_found_out(monkeypatch):
    """What waits for its own reasons cannot be told from a source without rows otherwise."""
    clock = ManualClock()
    monkeypatch.setattr("sabot.engine.runtime.tasks.reading.SYSTEM_CLOCK", clock)
    input = source_input([ROWS, ROWS])
    read, seconds = input.source.read_batch, [0.05, 0.5]

    def slow(max_rows, timeout):
        clock.advance(seconds.pop(0))
        return read(max_rows, timeout)

    input.source.read_batch = slow
    input.next(0.05)
    assert input.statistics()["overdue_seconds"] == 0.0
    input.next(0.05)
    assert input.statistics()["overdue_seconds"] == pytest.approx(0.45)


def test_tasks_are_listed_while_the_thread_of_the_start_adds_stages() -> None:
    """Seen before: `App.statistics()` during a start raised RuntimeError, of a dictionary that changed while it was read."""
    build = Build.__new__(Build)

    class Adding:
        """A stage during whose turn the thread comes and adds the next."""

        @property
        def tasks(self) -> dict[int, str]:
            build.stages[f"stage {len(build.stages)}"] = SimpleNamespace(tasks={0: "later"})
            return {0: "first"}

    build.stages = {"stage 0": Adding()}
    assert build.tasks == ["first"]
    assert len(build.stages) == 2
