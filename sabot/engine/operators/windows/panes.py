"""Panes: the pieces into which windows of event time are divided. The functions compute the pane of a row, the
windows of a pane, and which rows are late.

Panes do not overlap. A tumbling window and a window of the calendar are one pane, a hopping window has size / slide
panes. A cumulative window grows by a pane with each step.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.windows.window import min_max, split_panes
from sabot.api.windows import (
    CalendarWindow,
    ClockWindow,
    CumulativeWindow,
    HoppingWindow,
    TimeWindow,
    TumblingWindow,
    Window,
)
from sabot.base.stored_names import stored_field, stored_name
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME
from sabot.engine.operators.expressions.zones import Intervals, clock_of, times_at
from sabot.errors import DataError, UserError

FEW_ROWS = 64  # a pane with fewer rows in a batch has few
MANY_PANES = 4  # fewer panes with few rows take no time that matters
PANE_COLUMN = "__pane"  # the start of the pane in ms, in partial states and in checkpoints

_FARTHEST = 2**55  # ms from 1970: a million years, more than the units of the calendar need

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

RowsOfPanes: TypeAlias = list[tuple[int, pa.Int32Array | None]]
"""Pairs of the start of a pane and the indices of its rows (None for all rows of the batch), by ascending starts."""


class WindowShape:
    """The times of a window's panes, in ms. Every window ends where a pane ends, and is identified by this end.
    Raises UserError if the size is not a multiple of the slide or step.
    """

    grows = False
    """True if all windows that begin together have the same first pane."""
    is_one_pane = True
    """True if each window consists of one pane."""
    most_panes = 1
    """The most panes of a window."""
    farthest = 2**61
    """The farthest that a time may be from 1970, in ms."""

    def __init__(self, window: TumblingWindow | HoppingWindow | CumulativeWindow) -> None:
        self.size = window.size_ms
        self.offset = window.offset_ms
        self.step = window.size_ms
        if isinstance(window, HoppingWindow):
            self.step = window.slide_ms
        elif isinstance(window, CumulativeWindow):
            self.step = window.step_ms
        self.grows = isinstance(window, CumulativeWindow)
        self.most_panes = self.size // self.step
        self.is_one_pane = self.most_panes == 1
        if self.size % self.step:
            raise UserError(
                f"a window of {self.size} ms is not a multiple of {self.step} ms",
                hint="choose a size that is a multiple of the step or slide",
            )

    @cached_property
    def pane_ms(self) -> int:
        """The length of a pane in ms. In a calendar, that of one of them."""
        return self.pane_end(self.pane(0)) - self.pane(0)

    def sparse_rows(self, times: pa.Int64Array, selection: pa.Int32Array | None) -> tuple[Any, Any] | None:
        """Returns the indices of the rows, and their times (numpy), if the rows seem to be in many panes with few rows
        each. Else returns None, at next to no cost. `times`, `selection`: as for `split`.
        """
        count = len(times) if selection is None else len(selection)
        if count < MANY_PANES or times.null_count:
            return None
        first, last = (0, count - 1) if selection is None else (selection[0].as_py(), selection[count - 1].as_py())
        panes = abs(times[last].as_py() - times[first].as_py()) // self.pane_ms + 1
        if panes < MANY_PANES or count >= FEW_ROWS * panes:
            return None
        rows = np.arange(count, dtype=np.int32) if selection is None else selection.to_numpy()
        values = times.to_numpy()[rows]
        in_range = -self.farthest < values.min() and values.max() < self.farthest  # `split` raises an error if not
        return (rows, values) if in_range else None

    def pane(self, time: int) -> int:
        """Returns the start of the pane of a row with this time."""
        return time - (time - self.offset) % self.step

    def starts(self, times: Any) -> Any:
        """Returns the start of the pane of each time (numpy, ms)."""
        return times - (times - self.offset) % self.step

    def blocks(self, times: Numbers) -> Numbers:
        """Returns the number of the block of the pane of each time. A block is as many panes as a window has at most,
        counted from 1970. The panes of a window are in at most two blocks, and in a cumulative window in one.
        """
        found: Numbers = (times - self.offset) // self.size
        return found

    def block_start(self, time: int) -> int:
        """Returns the start of the block of this time."""
        return time - (time - self.offset) % self.size

    def ends_of(self, panes: Any) -> Any:
        """Returns the end of each pane. `panes`: the starts of the panes (numpy, ms)."""
        return panes + self.step

    def pane_end(self, pane: int) -> int:
        """Returns the end of the pane with this start, which is the start of the next one."""
        return pane + self.step

    def split(
        self, times: pa.Int64Array, selection: pa.Int32Array | None, late_before: int = START_OF_TIME
    ) -> tuple[pa.Int32Array | None, RowsOfPanes]:
        """Divides rows by pane: returns (the indices of late rows or None, the rows of each pane).

        `selection`: the indices of the rows that count, or None for all. `late_before`: the time below which rows are late. Raises
        DataError for a time that is out of range.
        """
        return split_panes(times, self.step, self.offset, selection, late_before=late_before)

    def start(self, end: int) -> int:
        """Returns the start of the window with this end."""
        return end - self.step - (end - self.step - self.offset) % self.size if self.grows else end - self.size

    def starts_of(self, ends: Numbers) -> Numbers:
        """Returns the start of the window with each of these ends, which are ascending, as the starts are then."""
        found: Numbers = ends - self.size
        if self.grows:
            found = ends - self.step - (ends - self.step - self.offset) % self.size
        return found

    def last_end(self, pane: int) -> int:
        """Returns the end of the last window that contains this pane."""
        return (pane - (pane - self.offset) % self.size if self.grows else pane) + self.size

    def late_before(self, watermark: int) -> int:
        """Returns the event time below which rows are late at this watermark: all windows of an earlier row are over."""
        time = self.pane(watermark - self.size) + self.step
        if self.grows:
            time = watermark - (watermark - self.offset) % self.size
        return max(START_OF_TIME, min(time, END_OF_TIME))

    def ends(self, panes: Sequence[int], after: int, upto: int | None = None) -> list[int]:
        """Returns, ascending, the ends of windows that have rows, with after < end <= upto. Windows without rows are
        skipped, not visited one by one.

        `panes`: the starts of the panes with rows, ascending. `upto`: the last end, or None for no bound.
        """
        first = self.pane_end(self.pane(after))
        if not panes or (upto is not None and first > upto):
            return []
        with_rows = panes[bisect_left(panes, self.start(first)) :]
        pairs: Iterable[tuple[int, int]] = zip(with_rows, with_rows, strict=True)
        if len(with_rows) > FEW_ROWS and not self.grows:  # panes whose windows overlap: the first and last of each run
            found = np.array(with_rows)
            cuts = np.flatnonzero(np.diff(found) > self.size)
            pairs = zip(found[[0, *(cuts + 1)]].tolist(), found[[*cuts, -1]].tolist(), strict=True)
        return _each(((begin + self.step, self.last_end(end)) for begin, end in pairs), self.step, first, upto)

    def partly_over(self, panes: RowsOfPanes, watermark: int) -> RowsOfPanes:
        """Returns those panes of which the first window, but not each window, is over at this watermark. `panes`: panes
        whose rows are not late, by ascending starts.
        """
        if self.is_one_pane:
            return []
        return list(takewhile(lambda pane: pane[0] < watermark and self.pane_end(pane[0]) <= watermark, panes))

    def reopened_ends(self, panes: Iterable[int], watermark: int, lateness: int) -> list[int]:
        """Returns, ascending, the ends of windows that contain one of these panes, are over at this watermark, and
        still accept late rows.
        """
        ends: set[int] = set()
        for pane in panes:
            end = self.pane_end(max(pane, self.pane(watermark - lateness)))
            last = min(self.last_end(pane), self.pane(watermark))
            while end <= last:
                ends.add(end)
                end = self.pane_end(end)
        return sorted(ends)


class CalendarShape(WindowShape):
    """The times of windows of a calendar, each of which is one pane, from the start of one unit to the start of the next, in ms UTC.

    A unit starts when the clock of the zone first shows its midnight. If the clock skips that midnight, the unit starts with the end of
    the gap.
    """

    farthest = _FARTHEST

    def __init__(self, window: CalendarWindow) -> None:
        self._count, self._unit = window.count, window.unit
        self._ahead = np.arange(1, 3)  # the first may be a day that the zone has skipped
        self._type = pa.timestamp("ms", window.time_zone)
        self._known = (0, 0)  # the pane that was computed last: its start and end

    def pane(self, time: int) -> int:
        return self._bounds(time)[0]

    def pane_end(self, pane: int) -> int:
        return self._bounds(pane)[1]

    def start(self, end: int) -> int:
        return self.pane(end - 1)

    def starts_of(self, ends: Numbers) -> Numbers:
        found: Numbers = self.starts(ends - 1)
        return found

    def ends(self, panes: Sequence[int], after: int, upto: int | None = None) -> list[int]:
        if not panes or (upto is not None and self.pane_end(panes[0]) > upto):
            return []
        ends: list[int] = self.ends_of(np.array(panes)).tolist()
        return [end for end in ends if after < end and (upto is None or end <= upto)]

    def ends_of(self, panes: Any) -> Any:
        numbers = self._number(panes)
        ends = np.array(self._begin(numbers + 1))
        skipped = np.flatnonzero(ends <= panes)  # the zone has skipped what comes next
        for step in self._ahead[1:].tolist():
            if not len(skipped):
                break
            ends[skipped] = self._begin(numbers[skipped] + step)
            skipped = skipped[ends[skipped] <= panes[skipped]]
        return ends

    def last_end(self, pane: int) -> int:
        return self.pane_end(pane)

    def late_before(self, watermark: int) -> int:
        return self.pane(watermark)

    def split(
        self, times: pa.Int64Array, selection: pa.Int32Array | None, late_before: int = START_OF_TIME
    ) -> tuple[pa.Int32Array | None, RowsOfPanes]:
        ends = min_max(times, selection)
        if ends is None:
            return None, []
        least, greatest = ends
        if least < -_FARTHEST or greatest > _FARTHEST:
            raise DataError(
                f"the event time {least if least < -_FARTHEST else greatest} ms is out of range for windows of a calendar",
                hint="event time is milliseconds since 1970; is the column in another unit?",
            )
        start, end = self._bounds(least)
        if least >= late_before and greatest < end:
            return None, [(start, selection)]
        rows = np.arange(len(times), dtype=np.int32) if selection is None else selection.to_numpy()
        values = times.to_numpy(zero_copy_only=False)[rows]
        late = rows[values < late_before]
        rows, values = rows[values >= late_before], values[values >= late_before]
        if not len(rows):  # np.split would make one part of no rows
            return pa.array(late), []
        starts, found = np.unique(self.starts(values), return_inverse=True)
        order = np.argsort(found, kind="stable")
        parts = np.split(rows[order], np.cumsum(np.bincount(found, minlength=len(starts)))[:-1])
        panes = [(int(start), pa.array(part)) for start, part in zip(starts, parts, strict=True)]
        return (pa.array(late) if len(late) else None), panes

    def _bounds(self, time: int) -> tuple[int, int]:
        """Returns the start and the end of the pane of a time. Beyond the range of times of rows, each ms is a pane."""
        start, end = self._known
        if start <= time < end:
            return self._known
        if not -_FARTHEST <= time <= _FARTHEST:
            return time, time + 1
        start = int(self.starts(np.array([time]))[0])
        after = self._begin(self._number(np.array([start])) + self._ahead)
        self._known = start, int(after[after > start][0])
        return self._known

    def starts(self, times: Any) -> Any:
        numbers, found = np.unique(self._number(times), return_inverse=True)
        before, start, after = (self._begin(numbers + step)[found] for step in (-1, 0, 1))
        # The clock may show a day whose midnight is still to come, or the day before after it was put back over midnight.
        return np.where(times < start, before, np.where(times >= after, after, start))

    def _number(self, times: Any) -> Any:
        """Returns the number of the unit that the clock of the zone shows at each time, counted from 1970."""
        clock = clock_of(pa.array(times).view(self._type)).view(pa.int64()).to_numpy()
        if self._unit in _DAYS:
            return np.floor_divide(clock - _FIRST_DAY_MS[self._unit], self._count * _DAYS[self._unit] * _DAY_MS)
        months = clock.view("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
        return np.floor_divide(months, self._count * _MONTHS[self._unit])

    def _begin(self, numbers: Any) -> Any:
        """Returns the time at which each of these units starts."""
        if self._unit in _DAYS:
            clock = numbers * (self._count * _DAYS[self._unit] * _DAY_MS) + _FIRST_DAY_MS[self._unit]
        else:
            months = (numbers * (self._count * _MONTHS[self._unit])).view("datetime64[M]")
            clock = months.astype("datetime64[ms]").astype(np.int64)
        return times_at(clock, pa.array(clock).view(self._type)).view(pa.int64()).to_numpy()


class ClockShape(CalendarShape):
    """The times of windows on the clock of a zone. A pane is a step of the clock, from the time at which it first shows its start.

    The clock counts as one that stands still while it shows times again, so that it never goes back:

        Berlin, 27 October 2024     00:30Z 02:30     00:59Z 02:59     01:00Z 02:59:59.999     01:59Z 02:59:59.999     02:00Z 03:00
    """

    def __init__(self, window: ClockWindow) -> None:
        self._type = pa.timestamp("ms", window.time_zone)
        self._known = self._block = (0, 0)
        self._step, self._size, self._offset = window.step_ms, window.size_ms, window.offset_ms
        self._steps = self.most_panes = window.size_ms // window.step_ms
        self.is_one_pane = self._steps == 1
        self.grows = window.grows
        self._ahead = np.arange(1, _LONGEST_GAP_MS // window.step_ms + 3)  # panes that the clock may skip

    def start(self, end: int) -> int:
        if not -_FARTHEST < end <= _FARTHEST:
            return end - 1
        last = self._one(end - 1)
        first = last - self._place(last) if self.grows else last + 1 - self._steps
        return self._time(first)

    def starts_of(self, ends: Numbers) -> Numbers:
        last = self._number(ends - 1)
        found: Numbers = self._begin(last - last % self._steps if self.grows else last + 1 - self._steps)
        return found

    def ends(self, panes: Sequence[int], after: int, upto: int | None = None) -> list[int]:
        if not panes:
            return []
        near = abs(after) <= _FARTHEST
        if near and upto is not None and self.pane_end(self.pane(after)) > upto:
            return []
        numbers = self._number(np.array(panes)).tolist()
        spans = ((n + 1, n + self._steps - (self._place(n) if self.grows else 0)) for n in numbers)
        # The clock may skip panes: then several windows end at one time, and have the same rows.
        first = self._one(after) if near else -(2**62)
        last = self._one(upto) + len(self._ahead) if upto is not None and abs(upto) <= _FARTHEST else None
        ends: list[int] = np.unique(self._begin(np.array(_each(spans, 1, first, last), np.int64))).tolist()
        return [end for end in ends if after < end and (upto is None or end <= upto)]

    def last_end(self, pane: int) -> int:
        if not -_FARTHEST <= pane <= _FARTHEST:
            return pane + 1
        number = self._one(pane)
        return self._time(number + self._steps - (self._place(number) if self.grows else 0))

    def late_before(self, watermark: int) -> int:
        if not -_FARTHEST <= watermark <= _FARTHEST:
            return watermark
        number = self._one(watermark)
        return self._time(number - self._place(number) if self.grows else number + 1 - self._steps)

    def blocks(self, times: Numbers) -> Numbers:
        found: Numbers = self._number(times) // self._steps
        return found

    def block_start(self, time: int) -> int:
        start, end = self._block
        if not start <= time < end:
            number = self._one(time) // self._steps * self._steps
            start, end = self._block = self._time(number), self._time(number + self._steps)
        return start

    def _place(self, number: int) -> int:
        """Returns the place of a pane among those of the windows that begin together."""
        return number % self._steps

    def _one(self, time: int) -> int:
        return int(self._number(np.array([time]))[0])

    def _time(self, number: int) -> int:
        return int(self._begin(np.array([number]))[0])

    def starts(self, times: Any) -> Any:
        numbers, found = np.unique(self._number(times), return_inverse=True)
        return self._begin(numbers)[found]

    def _number(self, times: Any) -> Any:
        found = Intervals.of(times, self._type.tz, "ms")
        back = found.offsets[np.maximum(found.rows - 1, 0)] - found.offsets[found.rows]  # more than 0: it was put back
        clock = np.maximum(times - found.cycles, found.starts[found.rows] + np.maximum(back, 0) - (back > 0))
        clock = clock + found.offsets[found.rows] + found.cycles
        return np.floor_divide(clock - self._offset, self._step)

    def _begin(self, numbers: Any) -> Any:
        clock = numbers * self._step + self._offset
        return times_at(clock, pa.array(clock).view(self._type)).view(pa.int64()).to_numpy()


def _each(spans: Iterable[tuple[int, int]], step: int, first: int, last: int | None) -> list[int]:
    """Returns, ascending and once, the numbers from `first` to `last` that one of these spans has. A span is the
    numbers from its first to its last one by `step`. Both rise from span to span. `last`: None for no bound.
    """
    found: list[int] = []
    for low, high in spans:
        first = max(first, low)
        if last is not None and first > last:
            break
        found += range(first, (high if last is None else min(high, last)) + 1, step)
        first = max(first, high + step)
    return found


def places_in(counts: Numbers) -> Numbers:
    """Returns for runs of these lengths the place of each element in its run: 0, 1, 2, 0, 1 for 3 and 2."""
    ends = np.cumsum(counts)
    found: Numbers = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
    return found


_LONGEST_GAP_MS = 26 * 3_600_000  # Samoa has skipped a day
_DAY_MS = 86_400_000
_DAYS = {"d": 1, "w": 7}
_FIRST_DAY_MS = {"d": 0, "w": 4 * _DAY_MS}  # weeks begin on Mondays: 5 January 1970
_MONTHS = {"mo": 1, "q": 3, "y": 12}


def shape_of(window: TimeWindow) -> WindowShape:
    """Returns the shape of a window. Raises UserError as `WindowShape` does."""
    if isinstance(window, ClockWindow):
        return ClockShape(window)
    return CalendarShape(window) if isinstance(window, CalendarWindow) else WindowShape(window)


def window_text(window: Window) -> str:
    """Returns the window as text for `state_schema`, with its times in ms: "hopping(300, 100)"."""
    figures = [value for name, value in vars(window).items() if (value or name != "offset_ms") and value != "event"]
    return f"{stored_name(type(window)).removesuffix('Window').lower()}({', '.join(map(str, figures))})"


def stored_window(window: TimeWindow) -> list[Any]:
    """Returns the window for `state_reader`: the stored name of its class, and the values of its fields by stored
    name.
    """
    kind = type(window)
    return [stored_name(kind), {stored_field(kind, each.name): getattr(window, each.name) for each in fields(kind)}]


def window_of(reader: Mapping[str, Any]) -> Any:
    """Returns the window from `reader["window"]`, where `stored_window` has put it."""
    name, values = reader["window"]
    kind = _WINDOWS[name]
    return kind(
        **{each.name: values[stored] for each in fields(kind) if (stored := stored_field(kind, each.name)) in values}
    )


_WINDOWS = {
    stored_name(each): each for each in (TumblingWindow, CalendarWindow, HoppingWindow, CumulativeWindow, ClockWindow)
}
