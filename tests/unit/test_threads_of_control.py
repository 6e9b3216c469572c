"""Threads of control: a step at a time, on a thread or by hand; sources that are held; what a full channel refuses."""

import threading

import pyarrow as pa

from sabot import Batch
from sabot._cython.channel import END, Barrier, Channel, Watermark
from sabot.checkpoint import Coordinator
from sabot.clock import ManualClock
from sabot.runtime.agent_threads import SourceTask
from sabot.runtime.inputs import SourceInput, Watermarks
from sabot.runtime.task import Chain, Output, StreamTask
from sabot.testing import ScriptedSource
from sabot.testing.script import END as THE_END
from sabot.threads import threads

ROWS = pa.record_batch({"n": [1, 2, 3]})


def source_input(script, *, clock=None, timed=False, watermarks=None):
    source = ScriptedSource(script)
    made = SourceInput(
        "script",
        source,
        codec=None,
        schema=source.schema if not timed else source.schema.append(pa.field("__time", pa.int64())),
        time="n" if timed else None,
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
    thread.join(5)
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


def test_a_held_source_of_an_agent_serves_barriers_and_reads_no_more():
    source = SourceTask("agent/script", ScriptedSource([[1, 2], THE_END]), codec=None, max_rows=10)
    source.open(None, "earliest")
    source.hold(True)
    source.request_barrier(1)
    assert source.step(0.0) is None
    assert source.channel.get_nowait() == Barrier(1)
    source.hold(False)
    assert [source.step(0.0), source.step(0.0)] == [True, True]
    assert source.channel.get_nowait().num_rows == 2
    assert source.channel.get_nowait() is END


def test_a_source_of_an_agent_keeps_what_its_full_channel_refuses():
    source = SourceTask("agent/script", ScriptedSource([[1], [2], THE_END]), codec=None, max_rows=1)
    source.channel = Channel(capacity_rows=1)
    source.open(None, "earliest")
    assert [source.step(0.0), source.step(0.0), source.step(0.0)] == [True, True, None]
    source.request_barrier(1)  # overtakes what is not in the channel, and so is not covered
    assert source.step(0.0) is None
    assert [source.channel.get_nowait().num_rows, source.channel.get_nowait()] == [1, Barrier(1)]
    assert [source.step(0.0), source.step(0.0)] == [True, True]
    assert [source.channel.get_nowait().num_rows, source.channel.get_nowait()] == [1, END]


def test_a_task_that_may_not_wait_keeps_the_order_of_what_a_full_channel_refuses():
    coordinator = Coordinator()
    task = StreamTask("t/0", coordinator)
    channel = Channel(capacity_rows=1)
    output = Output([channel], (), task)
    task.chain = Chain([output], [output])

    class Given:
        elements = [Batch(ROWS), Batch(ROWS), Watermark(5), Batch(ROWS), END]  # noqa: RUF012 - a fake

        def next(self, wait_seconds):
            return self.elements.pop(0) if self.elements else None

        def facts(self):
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
