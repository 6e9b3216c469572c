"""Windows as users write them: groups of rows by event time, by processing time, or by count."""

from dataclasses import dataclass
from typing import Literal

from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.config import Duration, parse_seconds
from sabot.errors import UserError

WINDOW_START, WINDOW_END = "window_start", "window_end"  # columns that results of windows have

WindowTime = Literal["event", "processing"]
"""The time by which rows are put into windows: their event time, or the processing time at which they reach the
window.
"""


@dataclass(frozen=True)
class TumblingWindow:
    """Windows of `size_ms` without overlap: [k * size + offset, (k + 1) * size + offset) for each integer k, in ms."""

    size_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class HoppingWindow:
    """Windows of `size_ms` that begin every `slide_ms`. A row is in size / slide of them."""

    size_ms: int
    slide_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class CumulativeWindow:
    """Windows that begin every `size_ms` and end at each multiple of `step_ms` after that. With a day and an hour:
    each hour, the day so far.
    """

    size_ms: int
    step_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class SessionWindow:
    """Windows of rows of a key that are less than `gap_ms` apart. A window lasts from its first row to `gap_ms` after
    its last one.
    """

    gap_ms: int
    time: WindowTime = "event"


@dataclass(frozen=True)
class CountWindow:
    """Windows of `size` rows of a key each, in order of arrival. Fewer rows at the end of a bounded input make a
    window too.
    """

    size: int


Window = TumblingWindow | HoppingWindow | CumulativeWindow | SessionWindow | CountWindow


def tumbling(size: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> TumblingWindow:
    """Returns windows that follow each other without overlap: `tumbling("1m")` begins one at each full minute UTC.

    `offset`: the time by which each window begins later. `time`: "event", or "processing", which puts each row into
    the window of its arrival, and closes windows by the clock. Raises UserError for a size that is not a whole number
    of ms, 1 or more.
    """
    return TumblingWindow(_ms(size, "size"), _ms(offset, "offset", zero=True), _time(time))


def hopping(size: Duration, slide: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> HoppingWindow:
    """Returns windows that overlap: `hopping("1h", "1m")` begins a window of one hour each minute.

    `offset` and `time` are those of `tumbling`. Raises UserError unless `size` is a multiple of `slide`.
    """
    size_ms, slide_ms = _ms(size, "size"), _ms(slide, "slide")
    if size_ms % slide_ms:
        raise UserError(f"hopping: {size!r} is not a multiple of {slide!r}", hint="a window is made of whole slides")
    return HoppingWindow(size_ms, slide_ms, _ms(offset, "offset", zero=True), _time(time))


def cumulative(size: Duration, step: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> CumulativeWindow:
    """Returns windows that grow: `cumulative("1d", "1h")` gives at each hour the day so far.

    `offset` and `time` are those of `tumbling`. Raises UserError unless `size` is a multiple of `step`.
    """
    size_ms, step_ms = _ms(size, "size"), _ms(step, "step")
    if size_ms % step_ms:
        raise UserError(f"cumulative: {size!r} is not a multiple of {step!r}", hint="a window is made of whole steps")
    return CumulativeWindow(size_ms, step_ms, _ms(offset, "offset", zero=True), _time(time))


def session(gap: Duration, *, time: WindowTime = "event") -> SessionWindow:
    """Returns windows of bursts: a window of a key ends when the key has had no row for `gap` of event time.

    `time` is that of `tumbling`. Raises UserError for a gap that is not a whole number of ms, 1 or more.
    """
    return SessionWindow(_ms(gap, "gap"), _time(time))


def count_window(size: int) -> CountWindow:
    """Returns windows of `size` rows of a key each. Raises UserError unless `size` is a whole number, 1 or more."""
    size = python_value(size)
    if not is_whole(size, 1):
        raise UserError(f"count_window: {size!r} is not a number of rows", hint="a whole number, 1 or more")
    return CountWindow(size)


def _time(time: WindowTime) -> WindowTime:
    if time not in ("event", "processing"):
        raise UserError(f"time={time!r} is unknown", hint='"event" or "processing"')
    return time


def _ms(value: Duration, name: str, *, zero: bool = False) -> int:
    seconds = parse_seconds(value, name=name)
    ms = round(seconds * 1000)
    if abs(ms - seconds * 1000) > 1e-6 or (ms == 0 and not zero):
        raise UserError(f"{name}: {value!r} is not a whole number of milliseconds, 1 or more")
    return ms
