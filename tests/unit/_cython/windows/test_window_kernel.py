"""`_cython/windows/window` beside its twin in plain Python: rows by pane, late rows apart."""

import time as clock
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.windows.window import min_max, split_panes
from sabot.errors import DataError

START = -(2**63)


def naive(times: list[int], size: int, offset: int, rows: list[int] | None, late_before: int):
    late, panes = [], defaultdict(list)
    for row in range(len(times)) if rows is None else rows:
        if times[row] < late_before:
            late.append(row)
        else:
            panes[(times[row] - offset) // size * size + offset].append(row)
    return late, sorted(panes.items())


def plain(times: list[int], result):
    late, panes = result
    everything = list(range(len(times)))
    return [] if late is None else late.to_pylist(), [
        (start, everything if rows is None else rows.to_pylist()) for start, rows in panes
    ]


NEAR = st.integers(-50, 50)
FAR = st.integers(-(2**61), 2**61)


@settings(max_examples=150, deadline=None)
@given(
    times=st.lists(NEAR, max_size=40) | st.lists(FAR, max_size=8) | st.lists(NEAR | FAR, max_size=12),
    size=st.integers(1, 12) | st.sampled_from([1000, 2**52, 2**61]),
    offset=st.integers(-20, 20),
    late_before=st.just(START) | NEAR | FAR,
    data=st.data(),
)
def test_rows_go_to_the_panes_that_plain_python_gives(times, size, offset, late_before, data):
    rows = data.draw(st.none() | st.lists(st.sampled_from(range(len(times))), max_size=30)) if times else None
    selection = None if rows is None else pa.array(rows, pa.int32())
    result = split_panes(pa.array(times, pa.int64()), size, offset, selection, late_before=late_before)
    late, panes = plain(times, result)
    assert (late, panes) == (naive(times, size, offset, rows, late_before))
    chosen = [times[row] for row in (range(len(times)) if rows is None else rows)]
    assert min_max(pa.array(times, pa.int64()), selection) == ((min(chosen), max(chosen)) if chosen else None)


def test_times_and_selections_may_be_slices():
    times = pa.array([9, 1, 5, 12, 7], pa.int64()).slice(1, 4)  # 1 5 12 7
    rows = pa.array([0, 3, 2, 0], pa.int32()).slice(1, 3)
    assert plain([1, 5, 12, 7], split_panes(times, 10, 0, rows)) == ([], [(0, [3, 0]), (10, [2])])
    assert min_max(times, rows) == (1, 12)


def test_a_batch_in_one_pane_is_not_touched():
    rows = pa.array([2, 0], pa.int32())
    assert split_panes(pa.array([11, 12, 13], pa.int64()), 10, 0) == (None, [(10, None)])
    late, [(start, same)] = split_panes(pa.array([11, 12, 13], pa.int64()), 10, 0, rows)
    assert (late, start) == (None, 10)
    assert same is rows


def test_time_before_1970_is_rounded_down_too():
    assert plain([-1, -10, -11], split_panes(pa.array([-1, -10, -11]), 10, 0)) == ([], [(-20, [2]), (-10, [0, 1])])


def test_a_batch_of_ten_thousand_panes_costs_what_its_rows_cost():
    def best(times: pa.Array) -> float:
        seconds = []
        for _ in range(5):
            begun = clock.thread_time()
            split_panes(times, 1000, 0)
            seconds.append(clock.thread_time() - begun)
        return min(seconds)

    generator = np.random.default_rng(1)
    few = best(pa.array(generator.integers(0, 1_000_000, 100_000)))  # 1,000 panes
    many = best(pa.array(generator.integers(0, 20_000_000, 100_000)))  # 20,000 panes
    assert many < 60 * few + 0.01  # quadratic would be 400 times


def test_times_that_cannot_be_are_refused():
    with pytest.raises(DataError, match=r"event time 9223372036854775807 ms is out of range.*milliseconds"):
        split_panes(pa.array([5, 2**63 - 1]), 10, 0)
    with pytest.raises(ValueError, match="null"):
        split_panes(pa.array([5, None], pa.int64()), 10, 0)
    with pytest.raises(TypeError, match="int64, not int32"):
        split_panes(pa.array([5], pa.int32()), 10, 0)
    with pytest.raises(ValueError, match="not 0"):
        split_panes(pa.array([5], pa.int64()), 0, 0)
    assert split_panes(pa.array([START, 5]), 10, 0, late_before=-100)[0].to_pylist() == [0]
