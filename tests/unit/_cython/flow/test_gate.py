"""Gate: barriers of N inputs aligned, watermarks of N inputs joined; compared with a naive twin."""

import asyncio
import random
import threading
from collections import defaultdict

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, Channel, ChannelClosed, Gate, Watermark

LONG = 60.0  # seconds that no test ever waits for: a deadlock fails, it does not hang


def batch(number):
    return Batch(pa.record_batch({"n": pa.array([number], pa.int64())}))


def opened(inputs):
    channels = [Channel(name=str(i)) for i in range(inputs)]
    return channels, Gate(channels)


def drain(gate):
    """Everything that can be read now; a batch as its number."""
    return [(index, number(element)) for index, element in iter(gate.next_nowait, None)]


def number(element):
    return element.data.column("n")[0].as_py() if isinstance(element, Batch) else element


def feed(channels, *elements):
    """(input, element) in this order; an int stands for a batch of that number."""
    for index, element in elements:
        channels[index].put(batch(element) if isinstance(element, int) else element)


# barriers


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_a_barrier_comes_out_when_all_inputs_have_delivered_it(inputs):
    channels, gate = opened(inputs)
    for i in range(inputs):
        assert drain(gate) == []
        assert gate.waiting_for == ([] if i == 0 else list(range(i, inputs)))
        feed(channels, (i, Barrier(1)))
    assert drain(gate) == [(-1, Barrier(1))]
    assert gate.waiting_for == []


@pytest.mark.parametrize("inputs", [2, 5])
def test_what_comes_after_a_barrier_is_held_back_until_the_slowest_input_has_it(inputs):
    channels, gate = opened(inputs)
    for i in range(inputs - 1):
        feed(channels, (i, i), (i, Barrier(1)), (i, 100 + i))
    feed(channels, (inputs - 1, inputs - 1))
    assert drain(gate) == [(i, i) for i in range(inputs)]
    feed(channels, (inputs - 1, 50), (inputs - 1, Barrier(1)))
    assert drain(gate) == [
        (inputs - 1, 50),
        (-1, Barrier(1)),
        *[(i, 100 + i) for i in range(inputs - 1)],
    ]


def test_a_held_input_fills_its_channel_and_slows_its_source():
    fast, slow = Channel(capacity_rows=2), Channel()
    gate = Gate([fast, slow])
    feed([fast], (0, Barrier(1)))
    assert drain(gate) == []
    assert [fast.put_nowait(batch(i)) for i in range(3)] == [True, True, False]
    feed([slow], (0, Barrier(1)))
    assert drain(gate) == [(-1, Barrier(1)), (0, 0), (0, 1)]
    assert fast.put_nowait(batch(2))


def test_an_input_that_ends_counts_as_having_delivered_every_barrier():
    channels, gate = opened(3)
    feed(channels, (0, Barrier(1)), (2, END))
    assert drain(gate) == []
    feed(channels, (1, Barrier(1)))
    assert drain(gate) == [(-1, Barrier(1))]
    feed(channels, (0, Barrier(2)), (1, Barrier(2)))
    assert drain(gate) == [(-1, Barrier(2))]


def test_the_end_of_the_input_that_all_wait_for_completes_the_barrier():
    channels, gate = opened(3)
    feed(channels, (0, Barrier(1)), (1, Barrier(1)), (0, 7))
    assert drain(gate) == []
    assert gate.waiting_for == [2]
    feed(channels, (2, 5), (2, END))
    assert drain(gate) == [(2, 5), (-1, Barrier(1)), (0, 7)]


def test_an_idle_input_still_has_to_deliver_the_barrier():
    channels, gate = opened(2)
    feed(channels, (1, IDLE), (0, Barrier(1)))
    assert drain(gate) == []
    feed(channels, (1, Barrier(1)))
    assert drain(gate) == [(-1, Barrier(1))]


def test_an_abort_lets_the_held_inputs_go_on():
    channels, gate = opened(2)
    feed(channels, (0, Barrier(1)), (0, 10), (1, 20))
    assert drain(gate) == [(1, 20)]
    feed(channels, (1, Abort(1)))
    assert drain(gate) == [(-1, Abort(1)), (0, 10)]
    assert gate.waiting_for == []
    feed(channels, (1, Barrier(1)), (1, 21))
    assert drain(gate) == [(1, 21)]  # the barrier came too late


def test_an_abort_behind_a_held_barrier_is_not_seen_before_it_is_released():
    channels, gate = opened(2)
    feed(channels, (0, Barrier(1)), (0, Abort(1)))
    assert drain(gate) == []
    feed(channels, (1, Abort(1)))
    assert drain(gate) == [(-1, Abort(1))]  # once, though both inputs brought it


def test_an_abort_goes_on_to_tasks_further_on_though_nothing_waits_here():
    channels, gate = opened(2)
    feed(channels, (0, Abort(3)), (1, Barrier(3)), (0, Barrier(2)), (0, 1))
    assert drain(gate) == [(-1, Abort(3)), (0, 1)]
    feed(channels, (0, Barrier(4)), (1, Barrier(4)), (0, Abort(4)), (1, Abort(4)))
    assert drain(gate) == [(-1, Barrier(4)), (-1, Abort(4))]


def test_an_abort_out_of_band_is_as_one_in_band():
    channels, gate = opened(2)
    feed(channels, (0, Barrier(1)), (0, 10))
    assert drain(gate) == []
    gate.abort(1)
    assert drain(gate) == [(-1, Abort(1)), (0, 10)]
    gate.abort(1)
    feed(channels, (1, Abort(1)))
    assert drain(gate) == []
    with pytest.raises(ValueError, match="positive"):
        gate.abort(0)


def test_a_newer_barrier_aborts_the_older():
    channels, gate = opened(3)
    feed(channels, (0, Barrier(1)), (0, 10), (0, Barrier(2)))
    assert drain(gate) == []
    feed(channels, (1, Barrier(2)), (1, 11), (2, 12))
    assert drain(gate) == [(-1, Abort(1)), (2, 12), (0, 10)]
    assert gate.waiting_for == [2]
    feed(channels, (2, Barrier(1)), (2, 13), (2, Barrier(2)))
    assert drain(gate) == [(2, 13), (-1, Barrier(2)), (1, 11)]


def test_repeated_and_older_barriers_are_dropped():
    channels, gate = opened(2)
    feed(channels, (0, Barrier(5)), (1, Barrier(5)), (0, Barrier(5)), (1, Barrier(4)), (0, 1), (1, Barrier(5)))
    assert drain(gate) == [(-1, Barrier(5)), (0, 1)]
    assert gate.waiting_for == []


def test_an_older_barrier_does_not_disturb_the_one_awaited():
    channels, gate = opened(3)
    feed(channels, (0, Barrier(5)), (1, Barrier(3)), (1, Barrier(5)), (2, Abort(2)), (2, Barrier(5)))
    assert drain(gate) == [(-1, Abort(2)), (-1, Barrier(5))]


# watermarks, idleness, end


def test_the_watermark_is_the_minimum_of_the_inputs():
    channels, gate = opened(3)
    feed(channels, (0, Watermark(10)), (1, Watermark(20)))
    assert drain(gate) == []
    feed(channels, (2, Watermark(5)))
    assert drain(gate) == [(-1, Watermark(5))]
    feed(channels, (2, Watermark(30)), (0, Watermark(9)), (0, Watermark(15)))
    assert drain(gate) == [(-1, Watermark(10)), (-1, Watermark(15))]


def test_an_idle_input_does_not_hold_the_watermark():
    channels, gate = opened(2)
    feed(channels, (0, Watermark(10)), (1, IDLE))
    assert drain(gate) == [(-1, Watermark(10))]
    feed(channels, (1, Watermark(3)), (1, ACTIVE))
    assert drain(gate) == []  # it does not go back
    feed(channels, (0, Watermark(20)))
    assert drain(gate) == []
    feed(channels, (1, Watermark(12)))
    assert drain(gate) == [(-1, Watermark(12))]


@pytest.mark.parametrize("idle", [0, 1])
def test_an_idle_input_counts_again_as_soon_as_something_waits_in_its_channel(idle):
    """Its ACTIVE and its rows were put before another input's watermark, which was read first: the rows were late."""
    channels, gate = opened(2)
    awake = 1 - idle
    feed(channels, (idle, Watermark(5)), (idle, IDLE), (awake, Watermark(5)))
    assert drain(gate) == [(-1, Watermark(5))]
    feed(channels, (idle, ACTIVE), (awake, Watermark(9)))
    assert drain(gate) == []
    feed(channels, (idle, Watermark(7)))
    assert drain(gate) == [(-1, Watermark(7))]


def test_a_gate_is_idle_when_all_its_inputs_are():
    channels, gate = opened(2)
    feed(channels, (0, IDLE), (0, IDLE))
    assert drain(gate) == []
    feed(channels, (1, IDLE), (1, IDLE))
    assert drain(gate) == [(-1, IDLE)]
    feed(channels, (0, Watermark(7)), (0, ACTIVE), (1, ACTIVE), (1, Watermark(8)))
    assert drain(gate) == [(-1, ACTIVE), (-1, Watermark(7))]


def test_an_input_that_ends_counts_as_idle():
    channels, gate = opened(3)
    feed(channels, (0, Watermark(10)), (1, IDLE), (2, END))
    assert drain(gate) == [(-1, Watermark(10))]
    feed(channels, (0, END))
    assert drain(gate) == [(-1, IDLE)]
    feed(channels, (1, END))
    assert drain(gate) == [(-1, END)]


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_end_comes_out_once_when_all_inputs_ended(inputs):
    channels, gate = opened(inputs)
    for i in range(inputs):
        assert drain(gate) == []
        feed(channels, (i, i), (i, END), (i, 99))
        assert gate.next_nowait()[0] == i
    assert gate.next(LONG) == (-1, END)
    assert gate.next() is None  # nothing can come any more
    assert gate.statistics()["ended"] == inputs


# service


def test_inputs_are_served_in_turn():
    channels, gate = opened(3)
    feed(channels, *[(0, i) for i in range(4)], (1, 10), (1, 11), (2, 20))
    assert [index for index, _ in drain(gate)] == [0, 1, 2, 0, 1, 0, 0]


def test_next_waits_for_any_input():
    for index in range(3):
        channels, gate = opened(3)
        producer = threading.Timer(0, feed, (channels, (index, 7)))
        producer.start()
        assert number(gate.next(LONG)[1]) == 7
        producer.join()
    assert gate.next(timeout=0.01) is None


def test_abort_wakes_a_waiting_task():
    _, gate = opened(2)
    aborter = threading.Timer(0, gate.abort, (4,))
    aborter.start()
    assert gate.next(LONG) == (-1, Abort(4))
    aborter.join()


def test_closing_wakes_the_task_and_the_producers():
    channels, gate = opened(2)
    closer = threading.Timer(0, gate.close)
    closer.start()
    assert gate.next(LONG) is None
    closer.join(LONG)
    assert gate.next() is None
    for channel in channels:
        with pytest.raises(ChannelClosed):
            channel.put(END)


def test_readable_calls_once_for_each_arming():
    channels, gate = opened(2)
    calls = []
    gate.when_readable(lambda: calls.append(1))
    assert calls == []
    feed(channels, (1, 1), (0, 2))
    assert calls == [1]
    gate.when_readable(lambda: calls.append(2))
    assert calls == [1, 2]


def test_readable_does_not_call_for_a_held_input_but_for_its_release():
    channels, gate = opened(2)
    calls = []
    feed(channels, (0, Barrier(1)), (0, 5))
    assert drain(gate) == []
    gate.when_readable(lambda: calls.append("called"))
    feed(channels, (0, 6))
    assert calls == []
    gate.abort(1)
    assert calls == ["called"]
    assert drain(gate) == [(-1, Abort(1)), (0, 5), (0, 6)]


def test_readable_calls_when_the_gate_closes():
    _, gate = opened(2)
    calls = []
    gate.when_readable(lambda: calls.append(1))
    gate.close()
    assert calls == [1]


def test_statistics_name_what_is_awaited():
    channels, gate = opened(3)
    feed(channels, (0, Barrier(2)), (1, IDLE), (2, END), (0, 5))
    assert drain(gate) == []
    assert gate.statistics() == {
        "inputs": 3,
        "ended": 1,
        "idle": 1,
        "held": 1,
        "rows": 1,
        "bytes": 8,
        "awaited": 2,
        "barriers_total": 0,
        "aborts_total": 0,
        "alignment_seconds": 0.0,
    }


def test_a_gate_needs_an_input():
    with pytest.raises(ValueError, match="at least one channel"):
        Gate([])


# the twin


class NaiveGate:
    """What the contract says, one element at a time, on plain lists. `given(i, element)` -> what comes out because of it."""

    def __init__(self, inputs):
        self.waiting = [[] for _ in range(inputs)]
        self.held, self.ended, self.idle = set(), set(), set()
        self.marks = [None] * inputs
        self.turn = 0
        self.awaited = self.settled = self.aborted = 0
        self.watermark = None
        self.all_idle = False
        self.out = []

    def abort(self, checkpoint_id):
        if checkpoint_id > self.aborted:
            self.aborted, self.settled = checkpoint_id, max(self.settled, checkpoint_id)
            if self.awaited and self.awaited <= checkpoint_id:
                self.awaited, self.held = 0, set()
            self.out.append((-1, Abort(checkpoint_id)))

    def run(self):
        """Reads inputs in turn until all that are left are held, ended or empty."""
        while True:
            inputs = range(len(self.waiting))
            order = [(self.turn + k) % len(self.waiting) for k in inputs]
            free = [i for i in order if i not in self.held | self.ended and self.waiting[i]]
            if not free:
                result, self.out = self.out, []
                return result
            self.turn = free[0] + 1
            self.read(free[0], self.waiting[free[0]].pop(0))

    def read(self, i, element):
        match element:
            case int():
                self.out.append((i, element))
            case Barrier(checkpoint_id=new):
                if new > self.settled and new >= self.awaited:
                    if self.awaited and new > self.awaited:
                        self.abort(self.awaited)
                    self.awaited = new
                    self.held.add(i)
            case Abort(checkpoint_id=old):
                self.abort(old)
            case Watermark(timestamp_ms=time):
                self.marks[i] = time if self.marks[i] is None else max(self.marks[i], time)
            case _ if element is END:
                self.ended.add(i)
            case _ if element is IDLE:
                self.idle.add(i)
            case _ if element is ACTIVE:
                self.idle.discard(i)
        inputs = set(range(len(self.waiting)))
        if self.awaited and self.held | self.ended == inputs:
            self.out.append((-1, Barrier(self.awaited)))
            self.settled, self.awaited, self.held = self.awaited, 0, set()
        if self.ended == inputs:
            self.out.append((-1, END))
            return
        active = inputs - self.ended - {j for j in self.idle if not self.waiting[j]}
        if self.all_idle != (not active):
            self.all_idle = not active
            self.out.append((-1, IDLE if self.all_idle else ACTIVE))
        marks = [self.marks[j] for j in active]
        if active and None not in marks and (self.watermark is None or min(marks) > self.watermark):
            self.watermark = min(marks)
            self.out.append((-1, Watermark(self.watermark)))


MARKS = st.one_of(
    st.integers(0, 5),
    st.integers(1, 6).map(Barrier),
    st.integers(1, 6).map(Barrier),
    st.integers(1, 6).map(Abort),
    st.integers(-3, 20).map(Watermark),
    st.sampled_from([IDLE, ACTIVE]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), MARKS),
        st.tuples(st.just("put"), st.integers(0, 4), MARKS),
        st.tuples(st.just("put"), st.integers(0, 4), MARKS),
        st.tuples(st.just("end"), st.integers(0, 4), st.none()),
        st.tuples(st.just("abort"), st.integers(1, 6), st.none()),
        st.tuples(st.just("read"), st.none(), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(st.sampled_from([1, 2, 3, 5]), STEPS)
def test_the_gate_does_what_its_naive_twin_does(inputs, steps):
    channels, gate = opened(inputs)
    twin = NaiveGate(inputs)
    for verb, index, element in [*steps, ("read", None, None)]:
        if verb == "put":
            feed(channels, (index % inputs, element))
            twin.waiting[index % inputs].append(element)
        elif verb == "end":
            feed(channels, (index % inputs, END))
            twin.waiting[index % inputs].append(END)
        elif verb == "abort":
            assert drain(gate) == twin.run()
            gate.abort(index)
            twin.abort(index)
        else:
            assert drain(gate) == twin.run()
            assert set(gate.waiting_for) == (set(range(inputs)) - twin.held - twin.ended if twin.awaited else set())


# threads


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(("inputs", "capacity_rows"), [(1, 1), (2, 3), (5, 2), (5, 100)])
@pytest.mark.parametrize("reader", ["blocking", "event loop"])
def test_threads_agree_on_the_rows_before_each_barrier(inputs, capacity_rows, reader):
    barriers, rng = 20, random.Random(inputs * 1000 + capacity_rows)
    plans = []
    for i in range(inputs):
        plan, number = [], 0
        for checkpoint_id in range(1, barriers + 1):
            for _ in range(rng.randrange(30 if i else 5)):
                plan.append(i * 10_000 + number)
                number += 1
            plan.append(Barrier(checkpoint_id))
        plans.append([*plan, END])

    channels = [Channel(capacity_rows=capacity_rows) for _ in range(inputs)]
    gate = Gate(channels)
    threads = [
        threading.Thread(target=feed, args=([channel], *[(0, element) for element in plan]), daemon=True)
        for channel, plan in zip(channels, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    received = list(_blocking(gate)) if reader == "blocking" else asyncio.run(_on_an_event_loop(gate))
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()

    assert _epochs(received, inputs) == [
        {i: rows for i, plan in enumerate(plans) if (rows := _rows_of_epoch(plan, epoch))}
        for epoch in range(1, barriers + 2)
    ]


def _blocking(gate):
    while (found := gate.next(LONG)) is not None:
        yield found


async def _on_an_event_loop(gate):
    loop, received = asyncio.get_running_loop(), []
    while True:
        found = gate.next_nowait()
        if found is None:
            ready = asyncio.Event()
            gate.when_readable(lambda ready=ready: loop.call_soon_threadsafe(ready.set))
            await asyncio.wait_for(ready.wait(), LONG)
            continue
        received.append(found)
        if found[1] is END:
            return received


def _epochs(received, inputs):
    """Per epoch: input -> its rows in order."""
    epochs, rows = [], defaultdict(list)
    for index, element in received:
        if isinstance(element, Batch):
            rows[index].append(number(element))
        else:
            assert element == Barrier(len(epochs) + 1) or element is END
            epochs.append(dict(rows))
            rows.clear()
    return epochs


def _rows_of_epoch(plan, epoch):
    start = plan.index(Barrier(epoch - 1)) + 1 if epoch > 1 else 0
    end = plan.index(Barrier(epoch)) if Barrier(epoch) in plan else len(plan) - 1
    return plan[start:end]


def test_aborts_from_a_thread_never_lose_rows():
    channels = [Channel(capacity_rows=2) for _ in range(3)]
    gate = Gate(channels)
    plans = [[], [], []]
    for i, plan in enumerate(plans):
        for checkpoint_id in range(1, 60):
            plan += [i * 10_000 + checkpoint_id, Barrier(checkpoint_id)]
    threads = [
        threading.Thread(target=feed, args=([channel], *[(0, e) for e in [*plan, END]]), daemon=True)
        for channel, plan in zip(channels, plans, strict=True)
    ]
    threads.append(threading.Thread(target=lambda: [gate.abort(i) for i in range(1, 60, 3)], daemon=True))
    for thread in threads:
        thread.start()
    received = list(_blocking(gate))
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    for i, plan in enumerate(plans):
        assert [number(e) for index, e in received if index == i] == [e for e in plan if isinstance(e, int)]
    settled = [e for index, e in received if index == -1]
    done = [e.checkpoint_id for e in settled if isinstance(e, Barrier)]
    aborted = [e.checkpoint_id for e in settled if isinstance(e, Abort)]
    assert done == sorted(set(done))
    assert aborted == sorted(set(aborted))
    assert settled[-1] is END


@pytest.mark.parametrize("first", [0, 1])
def test_time_stands_where_it_stands_whichever_of_two_inputs_goes_idle_first(first):
    channels, gate = opened(2)
    feed(channels, (0, Watermark(1000)))
    feed(channels, (first, IDLE))
    given = drain(gate)
    feed(channels, (1 - first, IDLE))
    given += drain(gate)
    assert given == [(-1, Watermark(1000)), (-1, IDLE)]


def test_a_gate_that_is_woken_gives_nothing_and_goes_on():
    channels, gate = opened(1)
    gate.wake()
    assert gate.next(60.0) is None
    feed(channels, (0, Watermark(1)))
    assert gate.next(60.0) == (-1, Watermark(1))
    assert not gate.ended(0)
    feed(channels, (0, END))
    assert gate.next(60.0) == (-1, END)
    assert gate.ended(0)
