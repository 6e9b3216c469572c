"""Where the time of a task goes: its states, the pieces of its work, and the rows on its edges."""

import threading
import time

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, Watermark
from sabot.engine.operators.base import Operator, Polled, StepInfo, WaitsForCalls, WritesOutside
from sabot.engine.runtime.tasks.chain import Chain, Link, Output
from sabot.engine.runtime.tasks.inputs import GateInput
from sabot.engine.runtime.tasks.task import StreamTask
from sabot.engine.runtime.tasks.task_times import TaskState, TaskTimes, TimedWork
from sabot.testing import ManualClock

ROWS = pa.record_batch({"n": [1, 2, 3]})


class Hands:
    """The two clocks of a thread, moved by hand."""

    def __init__(self):
        self.wall = self.cpu = 100.0
        self.times = TaskTimes(lambda: self.wall, lambda: self.cpu, lambda: lambda: self.cpu)

    def compute(self, seconds):
        self.wall += seconds
        self.cpu += seconds

    def rest(self, seconds):
        self.wall += seconds

    def figures(self):
        return {name: round(seconds, 6) for name, seconds in self.times.read().items() if seconds}


@pytest.fixture
def hands():
    return Hands()


def test_a_task_that_computes_one_long_batch_is_busy_while_it_does(hands):
    hands.times.begin()
    hands.compute(7.0)
    assert hands.figures() == {"busy": 7.0}
    assert (hands.times.figures()["state"], hands.times.figures()["state_seconds"]) == ("busy", 7.0)


def test_what_a_busy_task_does_not_compute_is_contended(hands):
    hands.times.begin()
    hands.compute(1.0)
    hands.rest(3.0)
    assert hands.figures() == {"busy": 1.0, "contended": 3.0}


def test_a_wait_inside_of_a_call_is_no_work_of_it(hands):
    times, part = hands.times, TimedWork()
    times.begin()

    def call():
        hands.compute(1.0)
        times.wait(TaskState.BACKPRESSURED, hands.rest, 5.0)
        hands.compute(2.0)

    times.run(part, call)
    assert hands.figures() == {"busy": 3.0, "backpressured": 5.0}
    assert times.seconds_of(part) == 3.0


def test_work_that_calls_other_work_does_not_count_meanwhile(hands):
    times, outer, inner = hands.times, TimedWork(), TimedWork()
    times.begin()

    def call():
        hands.compute(1.0)
        times.run(inner, hands.compute, 10.0)
        hands.compute(1.0)

    times.run(outer, call)
    assert (times.seconds_of(outer), times.seconds_of(inner)) == (2.0, 10.0)


def test_present_work_counts(hands):
    part, found = TimedWork(), []
    hands.times.begin()

    def call():
        hands.compute(4.0)
        found.append(hands.times.seconds_of(part))

    hands.times.run(part, call)
    assert found == [4.0]


def test_the_seconds_of_all_states_add_up_to_the_time_since_the_start(hands):
    hands.times.begin()
    for number, state in enumerate(TaskState):
        hands.times.wait(state, hands.rest, number)
        hands.compute(1.0)
    assert sum(hands.times.read().values()) == hands.wall - 100.0
    assert hands.times.read()["busy"] == len(TaskState)


def test_figures_never_go_back_though_two_clocks_are_read(hands):
    hands.times.begin()
    hands.rest(0.01)
    first = hands.times.read()
    hands.cpu += 0.01  # the processor's clock follows late
    assert all(first[name] <= seconds for name, seconds in hands.times.read().items())


def test_an_ended_task_keeps_its_seconds(hands):
    hands.times.begin()
    hands.compute(2.0)
    hands.times.end()
    hands.rest(50.0)
    assert hands.figures() == {"busy": 2.0}
    assert (hands.times.figures()["state"], hands.times.figures()["state_seconds"]) == ("", 0.0)


class Coordinator:
    def acknowledge(self, checkpoint_id, task, snapshot):
        """Takes the snapshot."""

    def detach(self, task, final=None):
        """Takes the last one."""


class Passes(Operator):
    """An operator that does something with each batch."""

    def __init__(self, id, act=lambda: None):
        self.step = StepInfo(id)
        self._act = act

    def process(self, batch):
        self._act()
        self.emit(batch)


class Writer(WritesOutside):
    def __init__(self, act):
        self.step = StepInfo("write-1")
        self._act = act

    def process(self, batch):
        self._act()

    def flush(self):
        self._act()
        return {}


class Calls(WaitsForCalls, Polled):
    """An operator that has no room until `room` is set."""

    left_behind = ()

    def __init__(self):
        self.step = StepInfo("map_async-1")
        self.room = False

    def poll(self, now_ms):
        """Nothing has ended."""

    @property
    def has_room(self):
        return self.room

    @property
    def is_empty(self):
        return True


def task_of(channels, *links, outputs=()):
    task = StreamTask("window-1/0", Coordinator(), ManualClock())
    task.input = GateInput(channels)
    task.chain = Chain(links, outputs)
    return task


def running(task, until, seconds=60.0):
    """Runs the task in its thread until `until` holds, and stops it."""
    task.start()
    give_up = time.monotonic() + seconds
    while not until() and time.monotonic() < give_up:
        time.sleep(0.002)
    found = task.times.figures()
    task.stop()
    assert task.join(seconds)
    return found


def test_a_task_before_a_full_channel_is_backpressured_and_not_busy():
    source, full = Channel(), Channel(capacity_rows=1)
    task = StreamTask("read-1/0", Coordinator(), ManualClock())
    output = Output([full], (), target="write-1")
    task.input, task.chain = GateInput([source]), Chain([output], [output])
    for time_ms in range(3):
        source.put(Batch(ROWS))
        source.put(Watermark(time_ms))  # without it the batches would be joined
    found = running(task, lambda: task.times.label == "backpressured" and task.times.read()["backpressured"] > 0.1)
    assert found["state"] == "backpressured"
    assert found["time"]["backpressured"] > 0.1 > found["time"]["busy"]
    (edge,) = task.statistics()["edges"]
    assert (edge["from"], edge["to"], edge["rows"], edge["fill"]) == ("read-1", "write-1", 6, 1.0)


def test_a_task_without_input_is_idle_and_one_behind_half_a_barrier_aligns():
    channels = [Channel(), Channel()]
    task = task_of(channels, Link(Passes("filter-1"), [Output([Channel()], ())]))
    task.start()
    wait_for(lambda: task.times.read()["idle"] > 0.1)
    assert task.times.read()["aligning"] == 0.0
    channels[0].put(Barrier(1))
    wait_for(lambda: task.times.read()["aligning"] > 0.1)
    assert task.times.label in ("aligning", "busy")  # it looks each 50 ms
    channels[1].put(Barrier(1))
    wait_for(lambda: task.times.label == "idle")
    task.stop()
    assert task.join(60)


def wait_for(condition, seconds=60.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def test_a_task_whose_calls_have_no_room_waits():
    calls = Calls()
    calls.emit = print
    task = task_of([Channel()], Link(calls, []))
    found = running(task, lambda: task.times.read()["waiting"] > 0.1)
    assert found["time"]["waiting"] > found["time"]["idle"]


def test_a_task_that_writes_waits_for_its_sink_in_writes_and_commits():
    gate, opened = Channel(), threading.Event()
    task = task_of([gate], Link(Writer(lambda: opened.wait(0.1)), []))
    gate.put(Batch(ROWS))
    gate.put(Barrier(1))
    found = running(task, lambda: task.times.read()["backpressured"] > 0.19)
    assert found["time"]["backpressured"] > 0.19  # of 0.2 s: it is contended only while others have the core


def test_one_long_batch_is_seen_while_it_is_computed():
    """Its rows do not move for minutes, and it is no idle task."""
    source, over = Channel(), threading.Event()

    def compute():
        while not over.is_set():
            sum(range(1000))

    task = task_of([source], Link(Passes("slow-1", compute), [Output([Channel()], ())]))
    source.put(Batch(ROWS))
    task.start()
    try:
        wait_for(lambda: task.times.read()["busy"] > 0.2)
        figures = task.statistics()
        assert figures["state"] == "busy"
        assert figures["operators"]["slow-1"]["seconds"] > 0.2
    finally:
        over.set()
        task.stop()
    assert task.join(60)


def test_rows_are_counted_on_each_edge_of_a_chain_that_forks():
    source = Channel()
    left, right, late = (Output([Channel(name=name)], (), target=name) for name in ("write-1", "write-2", "write-3"))
    second = Link(Passes("compute-2"), [right])
    first = Link(Passes("filter-1"), [left, second], {"late": [late]})
    task = task_of([source], first, outputs=[left, right, late])
    source.put(Batch(ROWS))
    source.put(END)
    while task.step(0.0) is not False:
        """On to the end."""
    figures = task.statistics()
    assert [(each["from"], each["branch"], each["to"], each["rows"], each["batches"]) for each in figures["edges"]] == [
        ("window-1", "", "filter-1", 3, 1),
        ("filter-1", "", "write-1", 3, 1),
        ("filter-1", "", "compute-2", 3, 1),
        ("filter-1", "late", "write-3", 0, 0),
        ("compute-2", "", "write-2", 3, 1),
    ]
    operators = figures["operators"]
    assert [(operators[id]["rows_in"], operators[id]["rows_out"]) for id in ("filter-1", "compute-2")] == [(3, 3)] * 2
