"""Which windows hold a row, when they end, and which rows are late: beside a list of all windows there are."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow
from sabot.engine.operators.base import END_OF_TIME
from sabot.engine.operators.windows import panes
from sabot.engine.operators.windows.panes import START_OF_TIME, TimeWindow, WindowShape
from sabot.errors import UserError

STEPS = st.integers(1, 5)
TIMES = st.integers(-30, 30)


@st.composite
def windows(draw: st.DrawFn) -> TimeWindow:
    step, count, offset = draw(STEPS), draw(STEPS), draw(st.integers(0, 7))
    kinds = [TumblingWindow(step, offset), HoppingWindow(step * count, step, offset)]
    return draw(st.sampled_from([*kinds, CumulativeWindow(step * count, step, offset)]))


def every_window(window: TimeWindow) -> list[tuple[int, int]]:
    """(start, end) of all from -200 to 200, by hand."""
    size, found = window.size_ms, []
    for k in range(-200, 200):
        if isinstance(window, TumblingWindow):
            found.append((k * size + window.offset_ms, (k + 1) * size + window.offset_ms))
        elif isinstance(window, HoppingWindow):
            start = k * window.slide_ms + window.offset_ms
            found.append((start, start + size))
        else:
            start = k * size + window.offset_ms
            found += [(start, start + part) for part in range(window.step_ms, size + 1, window.step_ms)]
    return sorted(found, key=lambda bounds: bounds[1])


@settings(max_examples=60, deadline=None)
@given(
    window=windows(),
    times=st.lists(TIMES, max_size=6),
    after=TIMES,
    more=st.none() | st.integers(0, 40),
    few=st.sampled_from([0, panes.FEW_ROWS]),
)
def test_ends_are_those_of_the_windows_that_hold_rows(
    window: TimeWindow, times: list[int], after: int, more: int | None, few: int
) -> None:
    """Also where many panes have rows, which go by runs of panes."""
    shape = WindowShape(window)
    with_rows = sorted({shape.pane(time) for time in times})
    upto = None if more is None else after + more
    held = [
        (start, end)
        for start, end in every_window(window)
        if any(start <= time < end for time in times) and after < end <= (1000 if upto is None else upto)
    ]
    with patch.object(panes, "FEW_ROWS", few):
        ends = list(shape.ends(with_rows, after, upto))
    assert [(shape.start(end), end) for end in ends] == held
    assert all(shape.last_end(pane) >= end for end in ends for pane in with_rows if shape.start(end) <= pane < end)


@settings(max_examples=60, deadline=None)
@given(window=windows(), watermark=TIMES)
def test_rows_are_late_when_all_their_windows_are_over(window: TimeWindow, watermark: int) -> None:
    least = min(start for start, end in every_window(window) if end > watermark)
    assert WindowShape(window).late_before(watermark) == least


@settings(max_examples=60, deadline=None)
@given(window=windows(), times=st.lists(TIMES, max_size=4), watermark=TIMES, lateness=st.integers(0, 20))
def test_reopened_windows_are_over_and_still_take_late_rows(
    window: TimeWindow, times: list[int], watermark: int, lateness: int
) -> None:
    shape = WindowShape(window)
    ends = [
        end
        for start, end in every_window(window)
        if any(start <= time < end for time in times) and watermark - lateness < end <= watermark
    ]
    assert shape.reopened_ends({shape.pane(time) for time in times}, watermark, lateness) == ends


def test_late_before_is_a_time_that_there_is() -> None:
    shape = WindowShape(TumblingWindow(60_000))
    assert shape.late_before(START_OF_TIME) == START_OF_TIME
    assert START_OF_TIME < shape.late_before(END_OF_TIME) <= END_OF_TIME


def test_a_window_is_made_of_whole_panes() -> None:
    with pytest.raises(UserError, match="a window of 10 ms is not a multiple of 3 ms"):
        WindowShape(HoppingWindow(10, 3))
