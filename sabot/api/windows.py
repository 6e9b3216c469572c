"""Windows as users write them: how rows are put together by event time, by the time at which they come, or by count."""

from dataclasses import dataclass
from typing import Literal

from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.config import Duration, parse_seconds
from sabot.errors import UserError

WINDOW_START, WINDOW_END = "window_start", "window_end"  # columns of the results of windows

WindowTime = Literal["event", "processing"]
"""By which time rows are put into windows: the event time of each, or the time at which it comes to the window."""


@dataclass(frozen=True)
class TumblingWindow:
    """Windows [k * size + offset, (k + 1) * size + offset) for each integer k, in ms of event time."""

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
    """Windows that begin every `size_ms`, and end at each multiple of `step_ms` after that: each hour, the day so far."""

    size_ms: int
    step_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class SessionWindow:
    """Rows of a key that are less than `gap_ms` apart, from the first row to `gap_ms` after the last."""

    gap_ms: int
    time: WindowTime = "event"


@dataclass(frozen=True)
class CountWindow:
    """Every `size` rows of a key, in the order in which they come. Fewer at the end of a bounded input make one too."""

    size: int


Window = TumblingWindow | HoppingWindow | CumulativeWindow | SessionWindow | CountWindow


def tumbling(size: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> TumblingWindow:
    """Windows side by side: `tumbling("1m")` begins at each full minute UTC, `offset` later where given.

    time: "processing" puts each row into the window of the time at which it comes, and closes windows by the clock.
    """
    return TumblingWindow(_ms(size, "size"), _ms(offset, "offset", zero=True), _time(time))


def hopping(size: Duration, slide: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> HoppingWindow:
    """Windows that overlap: `hopping("1h", "1m")` begins one of an hour each minute. `size` is a multiple of `slide`.

    time: as of `tumbling`.
    """
    size_ms, slide_ms = _ms(size, "size"), _ms(slide, "slide")
    if size_ms % slide_ms:
        raise UserError(f"hopping: {size!r} is no multiple of {slide!r}", hint="a window is made of whole slides")
    return HoppingWindow(size_ms, slide_ms, _ms(offset, "offset", zero=True), _time(time))


def cumulative(size: Duration, step: Duration, *, offset: Duration = 0, time: WindowTime = "event") -> CumulativeWindow:
    """`cumulative("1d", "1h")`: at each hour, the day so far. `size` is a multiple of `step`. time: as of `tumbling`."""
    size_ms, step_ms = _ms(size, "size"), _ms(step, "step")
    if size_ms % step_ms:
        raise UserError(f"cumulative: {size!r} is no multiple of {step!r}", hint="a window is made of whole steps")
    return CumulativeWindow(size_ms, step_ms, _ms(offset, "offset", zero=True), _time(time))


def session(gap: Duration, *, time: WindowTime = "event") -> SessionWindow:
    """A window per burst of rows of a key: it ends when no row has come for `gap` of event time. time: as of `tumbling`."""
    return SessionWindow(_ms(gap, "gap"), _time(time))


def count_window(size: int) -> CountWindow:
    """Every `size` rows of a key."""
    size = python_value(size)
    if not is_whole(size, 1):
        raise UserError(f"count_window: {size!r} is no number of rows", hint="a whole number, 1 or more")
    return CountWindow(size)


def _time(time: WindowTime) -> WindowTime:
    if time not in ("event", "processing"):
        raise UserError(f"time={time!r}", hint='"event" or "processing"')
    return time


def _ms(value: Duration, name: str, *, zero: bool = False) -> int:
    seconds = parse_seconds(value, name=name)
    ms = round(seconds * 1000)
    if abs(ms - seconds * 1000) > 1e-6 or (ms == 0 and not zero):
        raise UserError(f"{name}: {value!r} is no whole number of milliseconds, 1 or more")
    return ms
