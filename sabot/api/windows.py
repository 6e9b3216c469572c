"""Windows as users write them: groups of rows by event time, by processing time, or by count."""

import datetime
import functools
import re
import zoneinfo
from typing import Literal, cast

from sabot.api.arguments import whole_ms
from sabot.api.expr.time import zone_of
from sabot.base.arrays import is_utc, python_value
from sabot.base.checks import is_whole
from sabot.base.config import DURATIONS, Duration
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

WINDOW_START, WINDOW_END = "window_start", "window_end"  # columns that results of windows have

WindowTime = Literal["event", "processing"]
"""The time by which rows are put into windows: their event time, or the processing time at which they reach the
window.
"""


@dataclass(frozen=True)
class TumblingWindow:
    """Windows of `size_ms` without overlap. A window begins at each multiple of `size_ms` since 1970 UTC, plus
    `offset_ms`; its end is not included.
    """

    size_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


CalendarUnit = Literal["d", "w", "mo", "q", "y"]
"""A day, a week from Monday, a month, a quarter, a year."""


@dataclass(frozen=True)
class CalendarWindow:
    """Windows of `count` days, weeks, months, quarters or years (`unit`) on the calendar of `time_zone`, without
    overlap. A day on which the clock is changed has 23 or 25 hours.

    Days are counted from 1 January 1970, weeks from Monday, 5 January 1970, and longer units from January 1970.
    """

    count: int
    unit: CalendarUnit
    time_zone: str = "UTC"
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
    """Windows that begin every `size_ms`, and end at each multiple of `step_ms` after that. For example, with a size
    of a day and a step of an hour, each hour ends a window with all rows of the day so far.
    """

    size_ms: int
    step_ms: int
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class ClockWindow:
    """Windows whose bounds are times on the clock of `time_zone`. They end every `step_ms` after midnight on this
    clock, also on days of 23 or 25 hours.

    - `grows`: False for windows of the last `size_ms` (hopping windows; tumbling ones if both sizes are equal). True
      for windows that begin every `size_ms` and grow (cumulative windows).
    - If a clock time occurs twice, in autumn, one window ends there: at the second occurrence.
    - If a window would end at a clock time that is skipped, in spring, it ends when the clock is set forward.
    """

    size_ms: int
    step_ms: int
    grows: bool
    time_zone: str
    offset_ms: int = 0
    time: WindowTime = "event"


@dataclass(frozen=True)
class SessionWindow:
    """Windows of the rows of a key that are less than `gap_ms` apart. A window lasts from its first row to `gap_ms`
    after its last one.
    """

    gap_ms: int
    time: WindowTime = "event"


@dataclass(frozen=True)
class CountWindow:
    """Windows of `size` rows of a key each, in order of arrival. If a bounded input ends, the remaining rows are a
    window, too.
    """

    size: int


TimeWindow = TumblingWindow | CalendarWindow | HoppingWindow | CumulativeWindow | ClockWindow
"""Windows whose bounds do not depend on the rows, so that several streams have the same ones."""

Window = TimeWindow | SessionWindow | CountWindow

_DAY_MS = 86_400_000
_FIRST_MONDAY_MS = 4 * _DAY_MS  # 5 January 1970
_YEARS = range(2000, 2038)  # for which the offsets of a zone are compared


def tumbling(
    size: Duration, *, offset: Duration = 0, time: WindowTime = "event", time_zone: str | None = None
) -> TumblingWindow | CalendarWindow | ClockWindow:
    """Returns windows that follow each other without overlap. With `tumbling("1m")` a window begins at each full
    minute UTC.

    - `size`: a duration; "1w" begins on Mondays, and "1mo", "1q", "1y" are months, quarters and years.
    - `offset`: the duration by which each window begins later.
    - `time`: "event"; or "processing", by which each row is in the window of its arrival, and windows are closed by
      the clock.
    - `time_zone`: a name such as "Europe/Berlin": windows then follow the clock there, and those of days or more
      begin at midnight there.

    Raises UserError for a size that is not a whole number of ms, 1 or more. Also raises it for an offset of months or
    longer units, and for an offset of days or weeks in a time zone other than UTC.
    """
    calendar = re.fullmatch(r"\s*(\d+)\s*(d|w|mo|q|y)\s*", size) if isinstance(size, str) else None
    zone = "UTC" if time_zone is None else zone_of("tumbling", time_zone)
    if calendar is None and not is_utc(zone):
        ms, begins = _ms(size, "size"), _offset_ms(offset, size)
        shift = offset_of_windows(zone, ms)
        if shift is None:
            return ClockWindow(ms, ms, False, zone, begins, _time(time))
        return TumblingWindow(ms, (begins + shift) % ms, _time(time))
    if calendar is None or (calendar[2] in ("d", "w") and is_utc(zone)):
        return TumblingWindow(_ms(size, "size"), _offset_ms(offset, size), _time(time))
    if _ms(offset, "offset", zero=True):
        raise UserError(
            f"tumbling: a window of {size!r} begins at midnight, so it has no offset", hint='tumbling("1h")'
        )
    if not 0 < int(calendar[1]) <= 9999:
        raise UserError(f"tumbling: {size!r} is not a size of a window", hint="1 to 9,999 units")
    unit = cast(CalendarUnit, calendar[2])
    return CalendarWindow(int(calendar[1]), unit, "UTC" if is_utc(zone) else zone, _time(time))


def hopping(
    size: Duration,
    slide: Duration,
    *,
    offset: Duration = 0,
    time: WindowTime = "event",
    time_zone: str | None = None,
) -> HoppingWindow | ClockWindow:
    """Returns windows that overlap. With `hopping("1h", "1m")` a window of one hour begins each minute.

    `offset` and `time` are those of `tumbling`. `time_zone`: a name such as "Europe/Berlin": windows then follow the
    clock there, so that `hopping("7d", "1d", …)` are seven days from midnight to midnight. Raises UserError if `size`
    is not a multiple of `slide`.
    """
    size_ms, slide_ms = _ms(size, "size"), _ms(slide, "slide")
    if size_ms % slide_ms:
        raise UserError(f"hopping: {size!r} is not a multiple of {slide!r}", hint="a window is made of whole slides")
    zone = "UTC" if time_zone is None else zone_of("hopping", time_zone)
    begins = _offset_ms(offset, slide)
    shift = 0 if is_utc(zone) else offset_of_windows(zone, slide_ms)
    if shift is None:
        return ClockWindow(size_ms, slide_ms, False, zone, begins, _time(time))
    return HoppingWindow(size_ms, slide_ms, (begins + shift) % slide_ms if shift else begins, _time(time))


def cumulative(
    size: Duration,
    step: Duration,
    *,
    offset: Duration = 0,
    time: WindowTime = "event",
    time_zone: str | None = None,
) -> CumulativeWindow | ClockWindow:
    """Returns windows that grow. With `cumulative("1d", "1h")` a window ends each hour, and contains the rows since
    the beginning of the day.

    `offset` and `time` are those of `tumbling`, and `time_zone` is that of `hopping`. Raises UserError if `size` is
    not a multiple of `step`.
    """
    size_ms, step_ms = _ms(size, "size"), _ms(step, "step")
    if size_ms % step_ms:
        raise UserError(f"cumulative: {size!r} is not a multiple of {step!r}", hint="a window is made of whole steps")
    zone = "UTC" if time_zone is None else zone_of("cumulative", time_zone)
    begins = _offset_ms(offset, size)
    shift = 0 if is_utc(zone) else offset_of_windows(zone, size_ms)
    if shift is None:
        return ClockWindow(size_ms, step_ms, True, zone, begins, _time(time))
    return CumulativeWindow(size_ms, step_ms, (begins + shift) % size_ms if shift else begins, _time(time))


def session(gap: Duration, *, time: WindowTime = "event") -> SessionWindow:
    """Returns windows of activity: a window of a key ends when the key has had no row for `gap` of event time.

    `time` is that of `tumbling`. Raises UserError for a gap that is not a whole number of ms, 1 or more.
    """
    return SessionWindow(_ms(gap, "gap"), _time(time))


def count_window(size: int) -> CountWindow:
    """Returns windows of `size` rows of a key each. Raises UserError if `size` is not a whole number, 1 or more."""
    size = python_value(size)
    if not is_whole(size, 1):
        raise UserError(f"count_window: {size!r} is not a number of rows", hint="a whole number, 1 or more")
    return CountWindow(size)


def offset_of_windows(zone: str, every_ms: int) -> int | None:
    """Returns the offset in ms, from multiples of `every_ms` since 1970 UTC, of windows that begin every `every_ms`
    after midnight on the clock of the zone. Returns None if the offset is not always the same: in Berlin, each hour
    begins with an hour of UTC, but days begin at 22:00 or 23:00 UTC.
    """
    rests = {-offset % every_ms for offset in _offsets_ms(zone)}
    return rests.pop() if len(rests) == 1 else None


@functools.cache
def _offsets_ms(zone: str) -> frozenset[int]:
    """Returns the different offsets from UTC that the clock of the zone has had or will have, in ms."""
    info = zoneinfo.ZoneInfo(zone)
    days = (datetime.datetime(year, month, 1, tzinfo=info) for year in _YEARS for month in range(1, 13))
    return frozenset(int((day.utcoffset() or datetime.timedelta()).total_seconds() * 1000) for day in days)


def _time(time: WindowTime) -> WindowTime:
    if time not in ("event", "processing"):
        raise UserError(f"time={time!r} is unknown", hint='"event" or "processing"')
    return time


def _offset_ms(offset: Duration, every: Duration) -> int:
    """Returns the offset in ms of windows that begin once in `every`: `offset`, plus the four days from 1 January
    1970 to the first Monday, if `every` is in weeks.
    """
    weeks = isinstance(every, str) and every.strip().endswith("w")
    return _ms(offset, "offset", zero=True) + (_FIRST_MONDAY_MS if weeks else 0)


def _ms(value: Duration, name: str, *, zero: bool = False) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(mo|q|y)\s*", value):
        raise UserError(
            f"{name}: {value!r} has no fixed length", hint='windows of months, quarters and years are tumbling("1mo")'
        )
    more = "; tumbling also takes months, quarters and years: mo, q, y" if name == "size" else ""
    return whole_ms(value, name, least=0 if zero else 1, hint=DURATIONS + more)
