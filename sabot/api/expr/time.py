"""The methods of `col("ts").dt`, for columns of times."""

import datetime
import re
import zoneinfo
from collections.abc import Mapping
from typing import ClassVar, Generic

from sabot.api.elsewhere import TIMES, NamedElsewhere
from sabot.api.expr.made import E, Make
from sabot.base.checks import TEXT, OneOf, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

ZONED = r"(Z|[+-]\d\d:?\d\d)$"
"""The pattern of texts of ISO 8601 that say their own time zone, as the engine reads them."""

_MOMENT = re.compile(r"\s*\d{4}-\d{1,2}-\d{1,2}[ T]\d{1,2}:\d{2}\S*\s*")


def reads_as_moment(text: str) -> bool:
    """Returns True for the text of a date with a time of day: "2024-01-01 08:10"."""
    return _MOMENT.fullmatch(text) is not None


_LENGTHS = {
    "nanosecond": "1ns",
    "microsecond": "1us",
    "millisecond": "1ms",
    "second": "1s",
    "minute": "1m",
    "hour": "1h",
    "day": "1d",
    "week": "1w",
    "month": "1mo",
    "quarter": "1q",
    "year": "1y",
}

_MOST = {
    **{"ns": 2**63 - 1, "us": 2**63 // 10**3, "ms": 2**63 // 10**6, "s": 2**63 // 10**9},
    **{"m": 153_722_867, "h": 2_562_047, "d": 106_751, "w": 15_250, "mo": 119_988, "q": 39_996, "y": 9_999},
}
"""The greatest number of each unit in a duration: 63 bits of nanoseconds, or 9,999 years."""


@dataclass(frozen=True, slots=True)
class DateExpr(NamedElsewhere, Generic[E]):
    """The methods of `col("ts").dt`, for columns of times: timestamps, dates, and int64 as ms since 1970 UTC.

    A timestamp with a time zone is read on the clock of its zone. Parts of a time, such as `year()`, are int64.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = TIMES
    _of_engine: ClassVar[str] = "make"
    make: Make[E]

    def date_trunc(self, every: str | datetime.timedelta) -> E:
        """Rounds down to a whole unit: "hour", "1h", "15m", "1d", "1w" (from Monday), "1mo", "1q", "1y" and so on.
        The type stays the same.

        `every`: the unit, as a text or a timedelta. Raises UserError for a unit that is 0, longer than 106,751 days
        or 9,999 years, or cannot be read.
        """
        return self.make("dt.date_trunc", every=_length_of("date_trunc: every", every))

    def offset_by(self, by: str) -> E:
        """Adds a duration to the time, such as "1h", "-15m", "1d", "2w", "1mo", "1q" or "-1y".

        Days and longer units change the date on the clock of the time zone; if the month has no such day, its last
        day is used. Raises UserError for a duration that cannot be read.
        """
        text = check("offset_by: by", by, TEXT)
        length = _length_of("offset_by: by", text.removeprefix("-"))
        return self.make("dt.offset_by", by=f"{'-' * text.startswith('-')}{length}")

    def strftime(self, format: str) -> E:
        """Returns the time as a text. `format`: the codes of the Rust library chrono, such as "%Y-%m-%d %H:%M:%S".

        %3f, %6f and %9f are the digits of a fraction of a second; %.3f adds the decimal point. %-d, %-m, %-H, %-I, %-M
        and %-S have no zero before a single digit.
        """
        return self.make("dt.strftime", format=check("strftime: format", format, TEXT))

    def epoch(self, unit: str = "us") -> E:
        """Returns the time since 1970 UTC as an int64 number of units. `unit`: "ns", "us", "ms", "s" or "d". Raises
        UserError for another unit.
        """
        check("dt.epoch", unit, OneOf(("ns", "us", "ms", "s", "d")))
        return self.make("dt.epoch", unit=unit)

    def date(self) -> E:
        """Returns the date, on the clock of the time zone."""
        return self.make("dt.date")

    def year(self) -> E:
        """Returns the year."""
        return self.make("dt.year")

    def quarter(self) -> E:
        """Returns the quarter of the year, 1 to 4."""
        return self.make("dt.quarter")

    def month(self) -> E:
        """Returns the month, 1 to 12."""
        return self.make("dt.month")

    def week(self) -> E:
        """Returns the week of ISO 8601, 1 to 53."""
        return self.make("dt.week")

    def ordinal_day(self) -> E:
        """Returns the day of the year, 1 to 366."""
        return self.make("dt.ordinal_day")

    def day(self) -> E:
        """Returns the day of the month, 1 to 31."""
        return self.make("dt.day")

    def hour(self) -> E:
        """Returns the hour, 0 to 23."""
        return self.make("dt.hour")

    def minute(self) -> E:
        """Returns the minute, 0 to 59."""
        return self.make("dt.minute")

    def second(self) -> E:
        """Returns the second, 0 to 59."""
        return self.make("dt.second")

    def millisecond(self) -> E:
        """Returns the milliseconds within the second, 0 to 999."""
        return self.make("dt.millisecond")

    def day_of_week(self) -> E:
        """Returns the day of the week, Monday 1 to Sunday 7."""
        return self.make("dt.day_of_week")

    def total_days(self) -> E:
        """Returns a duration in whole days, rounded towards zero."""
        return self.make("dt.total_days")

    def total_hours(self) -> E:
        """Returns a duration in whole hours, rounded towards zero."""
        return self.make("dt.total_hours")

    def total_minutes(self) -> E:
        """Returns a duration in whole minutes, rounded towards zero."""
        return self.make("dt.total_minutes")

    def total_seconds(self) -> E:
        """Returns a duration in whole seconds, rounded towards zero."""
        return self.make("dt.total_seconds")

    def total_milliseconds(self) -> E:
        """Returns a duration in whole milliseconds, rounded towards zero."""
        return self.make("dt.total_milliseconds")

    def total_microseconds(self) -> E:
        """Returns a duration in whole microseconds, rounded towards zero."""
        return self.make("dt.total_microseconds")

    def replace_time_zone(self, time_zone: str | None, *, ambiguous: str = "raise", non_existent: str = "raise") -> E:
        """Keeps the clock time of a timestamp, and replaces its zone: 12:00 stays 12:00. None removes the zone.

        - `time_zone`: a name such as "Europe/Berlin".
        - `ambiguous`: what to do with a clock time that occurs twice, in autumn: "raise" (an error of the row,
          DataError), "earliest", "latest" or "null".
        - `non_existent`: what to do with a clock time that is skipped, in spring: "raise" or "null".

        Raises UserError for an unknown zone or word.
        """
        check("replace_time_zone: ambiguous", ambiguous, OneOf(("raise", "earliest", "latest", "null")))
        check("replace_time_zone: non_existent", non_existent, OneOf(("raise", "null")))
        zone = None if time_zone is None else zone_of("replace_time_zone", time_zone)
        return self.make("dt.replace_time_zone", time_zone=zone, ambiguous=ambiguous, non_existent=non_existent)

    def convert_time_zone(self, time_zone: str) -> E:
        """Converts a timestamp to another time zone: the instant stays the same, and its clock time is that of the
        zone. A timestamp without a zone is read as UTC.

        `time_zone`: a name such as "Europe/Berlin". Raises UserError for an unknown zone.
        """
        return self.make("dt.convert_time_zone", time_zone=zone_of("convert_time_zone", time_zone))

    truncate = date_trunc
    weekday = day_of_week
    to_string = strftime


def zone_of(where: str, time_zone: str) -> str:
    """Returns the name of a time zone unchanged. Raises UserError if there is no zone of this name; the message
    begins with `where`.
    """
    try:
        zoneinfo.ZoneInfo(check(f"{where}: time_zone", time_zone, TEXT))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UserError(f"{where}: there is no time zone {time_zone!r}", hint='"Europe/Berlin", "UTC"') from error
    return time_zone


def _length_of(where: str, every: str | datetime.timedelta) -> str:
    """Returns a duration as a text of a number and a unit: "1h" for "hour". `every`: a text or a timedelta. Raises
    UserError if it cannot be read, or is too long; the message begins with `where`.
    """
    if isinstance(every, datetime.timedelta):
        every = f"{every // datetime.timedelta(microseconds=1)}us"
    text = _LENGTHS.get(check(where, every, TEXT).removesuffix("s"), every)
    match = re.fullmatch(r"(\d+)(ns|us|ms|s|m|h|d|w|mo|q|y)", text)
    if match is None or int(match[1]) == 0:
        raise UserError(f"dt.{where}={every!r} is not a length of time", hint='"hour", "15m", "1d", "1w", "1mo", "1y"')
    if int(match[1]) > _MOST[match[2]]:
        raise UserError(f"dt.{where}={every!r} is too long", hint="up to 106,751 days, or 9,999 years")
    return text
