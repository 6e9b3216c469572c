"""The gate of a task: which batches it puts together, and what stays between them."""

import threading

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, Watermark
from sabot._cython.groups.partition import hash_columns
from sabot.engine.runtime.tasks.inputs import GateInput
from sabot.testing import ManualClock


def batch(*numbers: int) -> Batch:
    return Batch(pa.record_batch({"n": pa.array(numbers, pa.int64())}))


def taken(input: GateInput, count: int) -> list[object]:
    """The next elements: of a batch its numbers."""
    elements = [input.next(0) for _ in range(count)]
    return [each.data.column(0).to_pylist() if isinstance(each, Batch) else each for each in elements]


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.mark.parametrize(
    ("gathers", "expected"),
    [
        (False, [[1, 2], Watermark(5), [3], Watermark(6), [4], Barrier(1), [5], END]),
        (True, [[1, 2, 3, 4], Watermark(6), Barrier(1), [5], END]),
    ],
)
def test_rows_overtake_watermarks_only_where_nothing_goes_by_them(channel, gathers, expected):
    """A barrier is never overtaken, and of several watermarks the last one is left."""
    for each in (batch(1), batch(2), Watermark(5), batch(3), Watermark(6), batch(4), Barrier(1), batch(5), END):
        channel.put(each)
    assert taken(GateInput([channel], gathers=gathers), len(expected)) == expected


def test_the_halves_that_a_shuffle_by_two_makes_are_joined_and_keep_their_hashes():
    """What has come already is joined up to about a batch of a source. A barrier ends that, and nothing is waited for."""
    channel = Channel(capacity_rows=1_000_000)
    keys = pa.array(range(32_768), pa.int64())
    whole = Batch(pa.record_batch({"n": keys}))
    even, odd = (
        whole.with_selection(pa.array(range(first, 32_768, 2), pa.int32()), hash_columns([keys])) for first in (0, 1)
    )
    for each in (odd, even, odd, Barrier(1), even, whole, whole):
        channel.put(each)
    input = GateInput([channel])
    found = [input.next(0) for _ in range(5)]
    assert found[0].data.column(0).to_pylist() == [*range(1, 32_768, 2), *range(0, 32_768, 2)]
    assert found[0].hashes.equals(hash_columns([found[0].data.column(0)]))
    assert found[1:3] == [odd, Barrier(1)]
    assert [each.num_rows for each in found[3:]] == [16_384 + 32_768, 32_768]
    assert input.next(0) is None


def test_batches_of_many_bytes_are_not_joined_further():
    channel = Channel()
    texts = Batch(pa.record_batch({"text": pa.array(["x" * (6 << 20)])}))
    for _ in range(4):
        channel.put(texts)
    input = GateInput([channel])
    assert [input.next(0).num_rows for _ in range(2)] == [3, 1]


def test_rows_of_the_other_side_come_behind_the_watermark_before_them():
    left, right = Channel(), Channel()
    input = GateInput([left, right], frozenset([1]), gathers=True)
    right.put(Watermark(7))
    assert input.next(0) is None
    left.put(batch(1))
    left.put(Watermark(5))
    assert taken(input, 1) == [[1]]
    right.put(batch(2))
    assert taken(input, 2) == [Watermark(5), [2]]
    assert input.right


def test_a_small_batch_waits_for_others_as_long_as_the_one_before_took(channel, monkeypatch):
    """It waits in the gate, so what comes meanwhile wakes it; the first one, and those of a task that may not wait, never wait."""
    waits: list[float] = []
    input = GateInput([channel], gathers=True)
    gate = input.gate

    class Watched:
        next_nowait = gate.next_nowait
        waiting_for = ()

        def next(self, seconds: float) -> object:
            waits.append(seconds)
            return gate.next(0)

    input.gate = Watched()  # type: ignore[assignment]
    clock = ManualClock()
    monkeypatch.setattr("sabot.engine.runtime.tasks.inputs.SYSTEM_CLOCK", clock)
    channel.put(batch(1))
    input.next(1.0)
    assert waits == []
    clock.advance(0.004)
    channel.put(batch(2))
    input.next(1.0)
    assert waits == [pytest.approx(0.004, abs=1e-4)]
    clock.advance(60)
    channel.put(batch(3))
    input.next(0)
    assert waits[1:] == [0]
    clock.advance(60)
    channel.put(batch(4))
    input.next(1.0)
    assert waits[2:] == [pytest.approx(0.02, abs=1e-4)]


def test_a_batch_that_comes_while_a_small_one_waits_is_joined(channel):
    input = GateInput([channel], gathers=True)
    input._took = 60.0  # the bound is that of the module
    channel.put(batch(1))
    later = threading.Thread(target=channel.put, args=(batch(2),))
    later.start()
    later.join()
    assert taken(input, 1) == [[1, 2]]
