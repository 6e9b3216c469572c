"""Channel: bounded in rows and bytes, first in first out, usable from threads and from an event loop."""

import asyncio
import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import ACTIVE, END, IDLE, Abort, Barrier, Channel, ChannelClosed, Watermark
from tools.command_line import child

LONG = 60.0  # seconds that no test ever waits for: a deadlock fails, it does not hang


def batch(*values):
    return Batch(pa.record_batch({"n": pa.array(values, pa.int64())}))


def values(element):
    return element.data.column("n").to_pylist()


def started(function):
    """Runs it in a thread; `.result()` waits for what it returns or raises."""
    outcome = []

    def run():
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result():
        thread.join(LONG)
        assert not thread.is_alive()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    thread.result = result
    return thread


def test_elements_come_out_in_the_order_in_which_they_went_in():
    channel = Channel()
    elements = [batch(1), Watermark(5), batch(2), IDLE, ACTIVE, Barrier(1), Abort(1), END]
    for element in elements:
        assert channel.put(element)
    assert [channel.get_nowait() for _ in elements] == elements
    assert channel.get_nowait() is None


def test_marks_are_compared_by_value():
    assert Barrier(1) == Barrier(1) != Barrier(2)
    assert Abort(1) == Abort(1) != Barrier(1)
    assert Watermark(1) == Watermark(1) != Watermark(2)
    assert len({Barrier(1), Barrier(1), Abort(1), Watermark(1)}) == 3
    for mark in (Barrier(3), Abort(3), Watermark(-3)):
        assert pickle.loads(pickle.dumps(mark)) == mark
    for mark in (IDLE, ACTIVE, END):
        assert pickle.loads(pickle.dumps(mark)) is mark
    with pytest.raises(ValueError, match="positive"):
        Barrier(0)


def test_a_channel_is_full_by_rows():
    channel = Channel(capacity_rows=3)
    assert channel.put_nowait(batch(1, 2))
    assert channel.put_nowait(batch(3, 4))  # below capacity before it came
    assert not channel.put_nowait(batch(5))
    assert channel.rows == 4
    channel.get_nowait()
    assert channel.put_nowait(batch(5))


def test_a_channel_is_full_by_bytes():
    channel = Channel(capacity_bytes=16)
    assert channel.put_nowait(batch(1))
    assert channel.put_nowait(batch(2))
    assert channel.nbytes == 16
    assert not channel.put_nowait(batch(3))


def test_a_slice_counts_only_its_share_of_bytes():
    channel = Channel(capacity_bytes=100)
    channel.put_nowait(batch(*range(1000)).slice(0, 5))
    assert channel.nbytes == 40


def test_one_batch_larger_than_the_capacity_passes_an_empty_channel():
    channel = Channel(capacity_rows=1, capacity_bytes=1)
    assert channel.put_nowait(batch(*range(100)))
    assert not channel.put_nowait(batch(1))
    assert values(channel.get_nowait()) == list(range(100))


def test_marks_are_accepted_by_a_full_channel():
    channel = Channel(capacity_rows=1)
    channel.put_nowait(batch(1))
    assert channel.put_nowait(Barrier(1))
    assert channel.put(END, timeout=0)
    assert len(channel) == 3


def test_peek_leaves_the_element():
    channel = Channel()
    assert channel.peek_nowait() is None
    channel.put(IDLE)
    assert channel.peek_nowait() is channel.peek_nowait() is channel.get_nowait() is IDLE


def test_what_is_no_element_is_refused():
    with pytest.raises(TypeError, match="accepts batches and marks, not int"):
        Channel().put(5)
    with pytest.raises(ValueError, match="capacity"):
        Channel(capacity_rows=0)


def test_waiting_ends_after_the_timeout():
    channel = Channel(capacity_rows=1)
    assert channel.get(timeout=0.01) is None
    channel.put(batch(1))
    assert channel.put(batch(2), timeout=0.01) is False
    assert channel.put(batch(2), timeout=0) is False
    assert len(channel) == 1


def test_a_waiting_consumer_wakes_when_an_element_comes():
    channel = Channel()
    consumer = started(channel.get)
    channel.put(Watermark(1))
    assert consumer.result() == Watermark(1)


def test_a_waiting_producer_wakes_when_there_is_room():
    channel = Channel(capacity_rows=1)
    channel.put(batch(1))
    producer = started(lambda: channel.put(batch(2)))
    assert values(channel.get(LONG)) == [1]
    assert producer.result() is True
    assert values(channel.get_nowait()) == [2]


def test_closing_wakes_both_sides():
    channel = Channel(capacity_rows=1, name="orders")
    consumer = started(channel.get)
    channel.close()
    assert consumer.result() is None

    channel = Channel(capacity_rows=1, name="orders")
    channel.put(batch(1))
    producer = started(lambda: channel.put(batch(2)))
    channel.close()
    with pytest.raises(ChannelClosed, match="orders"):
        producer.result()


def test_a_closed_channel_holds_nothing_and_takes_nothing():
    channel = Channel()
    channel.put(batch(1))
    channel.close()
    channel.close()
    assert (len(channel), channel.rows, channel.nbytes, channel.get_nowait(), channel.get()) == (0, 0, 0, None, None)
    for put in (channel.put, channel.put_nowait):
        for element in (batch(1), END):
            with pytest.raises(ChannelClosed):
                put(element)


def test_readable_calls_once_for_each_arming():
    channel, calls = Channel(), []
    channel.when_readable(lambda: calls.append("first"))
    assert calls == []
    channel.put(IDLE)
    channel.put(IDLE)
    assert calls == ["first"]
    channel.when_readable(lambda: calls.append("at once"))
    channel.put(IDLE)
    assert calls == ["first", "at once"]


def test_a_later_callback_replaces_an_earlier_one():
    channel, calls = Channel(), []
    channel.when_readable(lambda: calls.append("first"))
    channel.when_readable(lambda: calls.append("second"))
    channel.put(IDLE)
    assert calls == ["second"]


def test_writable_calls_when_a_batch_would_be_accepted():
    channel, calls = Channel(capacity_rows=2), []
    channel.when_writable(lambda: calls.append("at once"))
    assert calls == ["at once"]
    channel.put(batch(1))
    channel.put(Watermark(1))
    channel.put(batch(2, 3, 4))
    channel.when_writable(lambda: calls.append("room"))
    channel.get_nowait()
    channel.get_nowait()
    assert calls == ["at once"]  # three rows are still more than it may hold
    channel.get_nowait()
    assert calls == ["at once", "room"]


def test_closing_calls_both_callbacks():
    channel, calls = Channel(capacity_rows=1), []
    channel.when_readable(lambda: calls.append("readable"))
    channel.put(batch(1))
    channel.get_nowait()
    channel.when_readable(lambda: calls.append("closed"))
    channel.close()
    channel.when_readable(lambda: calls.append("closed already"))
    channel.when_writable(lambda: calls.append("closed to producers"))
    assert calls == ["readable", "closed", "closed already", "closed to producers"]


def test_a_callback_may_use_the_channel():
    channel, seen = Channel(), []

    def read():
        seen.append(channel.get_nowait())
        channel.when_readable(read)

    channel.when_readable(read)
    channel.put(Watermark(1))
    channel.put(Watermark(2))
    assert seen == [Watermark(1), Watermark(2)]


def test_what_a_callback_raises_is_reported_and_does_not_reach_the_other_side(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: reported.append(report.exc_value))
    channel, error = Channel(), RuntimeError("event loop is closed")

    def fail():
        raise error

    channel.when_readable(fail)
    assert channel.put(IDLE)
    assert reported == [error]


def test_statistics_count_what_passed():
    channel = Channel(capacity_rows=2, capacity_bytes=1000)
    channel.put(batch(1, 2))
    channel.put_nowait(batch(3))
    channel.put(batch(3), timeout=0)
    channel.put(IDLE)
    assert channel.statistics() == {
        "rows": 2,
        "bytes": 16,
        "elements": 2,
        "capacity_rows": 2,
        "capacity_bytes": 1000,
        "rows_total": 2,
        "batches_total": 1,
        "full_total": 2,
    }


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("capacity_rows", [1, 7, 100_000])
def test_two_threads_pass_everything_in_order(capacity_rows):
    channel = Channel(capacity_rows=capacity_rows)
    sent = [batch(i, i + 1) if i % 5 else Watermark(i) for i in range(5000)]

    def produce():
        for element in sent:
            assert channel.put(element)
        channel.put(END)

    producer = started(produce)
    received = list(iter(lambda: channel.get(LONG), END))
    producer.result()
    assert len(received) == len(sent)
    assert all(a is b for a, b in zip(received, sent, strict=True))
    assert (channel.rows, channel.nbytes) == (0, 0)


async def test_a_thread_feeds_an_event_loop():
    channel, loop = Channel(capacity_rows=3), asyncio.get_running_loop()
    producer = started(lambda: [channel.put(batch(i)) for i in range(2000)] and channel.put(END))
    received = []
    while True:
        element = channel.get_nowait()
        if element is END:
            break
        if element is None:
            ready = asyncio.Event()
            channel.when_readable(lambda ready=ready: loop.call_soon_threadsafe(ready.set))
            await asyncio.wait_for(ready.wait(), LONG)
        else:
            received += values(element)
    assert await asyncio.to_thread(producer.result)
    assert received == list(range(2000))


async def test_two_coroutines_of_one_loop_share_a_channel():
    channel = Channel(capacity_rows=2)

    async def writable():
        room = asyncio.Event()
        channel.when_writable(room.set)
        await asyncio.wait_for(room.wait(), LONG)

    async def produce():
        for i in range(500):
            while not channel.put_nowait(batch(i)):
                await writable()
        channel.put_nowait(END)

    async def consume():
        received = []
        while True:
            element = channel.get_nowait()
            if element is END:
                return received
            if element is None:
                there = asyncio.Event()
                channel.when_readable(there.set)
                await asyncio.wait_for(there.wait(), LONG)
            else:
                received += values(element)

    _, received = await asyncio.gather(produce(), consume())
    assert received == list(range(500))


@pytest.mark.one_in(4, "they wait in one function")
@pytest.mark.parametrize(
    "call", ["Channel().get()", "full.put(batch)", "Gate([Channel()]).next()", "Channel().get(timeout=3600)"]
)
def test_ctrl_c_interrupts_the_main_thread(call):
    # the story: a blocking call that only looks at its condition variable makes a program that cannot be stopped
    program = f"""
        import pyarrow as pa
        from sabot._cython.arrow.batch import Batch
        from sabot._cython.flow.channel import Channel, Gate
        batch = Batch(pa.record_batch({{"n": [1]}}))
        full = Channel(capacity_rows=1)
        full.put(batch)
        try:
            print("waiting", flush=True)
            {call}
        except KeyboardInterrupt:
            print("stopped", len(full))
    """
    with child(sys.executable, "-c", textwrap.dedent(program), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "stopped 1\n"
        assert process.wait(LONG) == 0
