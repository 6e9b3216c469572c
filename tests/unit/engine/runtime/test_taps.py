"""Taps: rows are copied while somebody looks, at most so many, and the step gets its receiver back."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.clock import ManualClock
from sabot.engine.runtime.tasks.taps import LEASE_SECONDS, Tap, TapPoint, Taps


class Step:
    """A holder of a receiver, as an operator is."""

    def __init__(self) -> None:
        self.got: list[Batch] = []
        self.emit: Any = self.got.append


def batch(first: int, last: int, **columns: Any) -> Batch:
    return Batch(pa.RecordBatch.from_pydict({"n": list(range(first, last)), **columns}))


def numbers(tap: Tap) -> list[int]:
    return [n for rows in tap.drain() for n in rows.column("n").to_pylist()]


def test_a_tap_passes_every_batch_on_and_copies_the_last_rows_of_it() -> None:
    step, clock = Step(), ManualClock()
    tap = Tap(step, "emit", 50, clock)
    given = [batch(0, 30), batch(30, 130), batch(130, 140)]
    for each in given:
        step.emit(each)
    assert step.got == given
    assert numbers(tap) == [*range(30), *range(110, 130)], "50 in a second"
    clock.advance(1)
    step.emit(batch(140, 150))
    assert numbers(tap) == list(range(140, 150))


def test_the_rows_of_a_selection_are_copied_and_no_others() -> None:
    step = Step()
    tap = Tap(step, "emit", 3, ManualClock())
    data = batch(0, 10).data
    step.emit(Batch(data, selection=pa.array([1, 3, 5, 7], pa.int32())))
    assert numbers(tap) == [3, 5, 7]


def test_a_tap_that_nobody_renews_ends_with_the_next_batch() -> None:
    step, clock = Step(), ManualClock()
    before = step.emit
    tap = Tap(step, "emit", 50, clock)
    clock.advance(LEASE_SECONDS)
    step.emit(batch(0, 1))
    assert tap.in_place
    clock.advance(0.1)
    step.emit(batch(1, 2))
    assert step.emit is before
    assert len(step.got) == 2
    assert numbers(tap) == [], "an ended tap keeps nothing"


def test_a_tap_leaves_a_receiver_alone_that_another_has_put_there() -> None:
    step, clock = Step(), ManualClock()
    tap = Tap(step, "emit", 50, clock)
    other: list[Batch] = []
    step.emit = other.append
    tap.end()
    step.emit(batch(0, 1))
    assert len(other) == 1


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("rows", [1, 200])
def test_the_copies_of_a_second_are_bounded_in_bytes(rows: int) -> None:
    step = Step()
    tap = Tap(step, "emit", 50, ManualClock())
    for _ in range(20):
        step.emit(batch(0, rows, text=["x" * (3 << 20 if rows == 1 else 100_000)] * rows))
    copied = list(tap.drain())
    assert sum(each.nbytes for each in copied) < 4 << 20
    assert sum(each.num_rows for each in copied) >= 1


def test_a_copy_does_not_keep_its_batch_in_memory() -> None:
    step = Step()
    tap = Tap(step, "emit", 50, ManualClock())
    step.emit(batch(0, 100_000))
    (copied,) = tap.drain()
    assert copied.get_total_buffer_size() < 10_000


def test_a_point_has_one_tap_whoever_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    step, clock = Step(), ManualClock()
    before = step.emit
    monkeypatch.setattr("sabot.engine.runtime.tasks.taps._place_of", lambda task, point: (step, "emit"))
    task: Any = SimpleNamespace(name="read-1/0", built=True)
    taps, point = Taps(clock), TapPoint("step")
    assert taps.take([task], point, 50) == []
    tap = step.emit
    step.emit(batch(0, 3))
    clock.advance(LEASE_SECONDS + 1)  # and no batch comes
    assert taps.take([task], point, 50) == [], "rows of an earlier viewer"
    assert step.emit is tap
    step.emit(batch(3, 5))
    assert [rows.num_rows for rows in taps.take([task], point, 50)] == [2]
    clock.advance(LEASE_SECONDS + 1)
    step.emit(batch(5, 6))
    assert step.emit is before
    assert taps.take([task], point, 50) == []
    assert step.emit is not tap


def test_taps_of_no_task_take_nothing() -> None:
    assert Taps(ManualClock()).take([], TapPoint("x"), 50) == []
