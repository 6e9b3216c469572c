"""The session's time zone (`SET 'table.local-time-zone'`): the clock by which values of TIMESTAMP_LTZ are read and shown.

A value of TIMESTAMP_LTZ is an instant, which the engine has in UTC. A function that asks for its hour, its day or its text
gets the time of day on the clock of the zone instead, which is a TIMESTAMP.

    zone Europe/Berlin     TIMESTAMP_LTZ 2024-07-01 22:30:00Z     ->     TIMESTAMP 2024-07-02 00:30:00
"""

import datetime
import functools
import zoneinfo

import pyarrow as pa

from sabot.sql.scope import TypedExpr

UTC = "UTC"
_UTC_NAMES = ("UTC", "Z", "ETC/UTC", "GMT")
_YEARS = range(2000, 2038)  # for which the offsets of a zone are compared


def zone_named(text: str) -> str | None:
    """Returns the zone of a name, UTC for its other names, or None if there is no such zone."""
    if text.upper() in _UTC_NAMES:
        return UTC
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None
    return text


def is_local(type: pa.DataType) -> bool:
    """Returns True for TIMESTAMP_LTZ."""
    return bool(pa.types.is_timestamp(type)) and type.tz is not None


def on_the_clock(bound: TypedExpr, zone: str) -> TypedExpr:
    """Returns a TIMESTAMP_LTZ as the TIMESTAMP that the clock of the zone shows; any other value unchanged."""
    if not is_local(bound.type) or zone == UTC:
        return bound
    clock = bound.expr.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    return TypedExpr(clock, pa.timestamp(bound.type.unit))


def offset_of_windows(zone: str, every_ms: int) -> int | None:
    """Returns the offset in ms of windows that begin on the clock of the zone each `every_ms` after midnight, or None if it
    changes with the clock.
    """
    rests = {-offset % every_ms for offset in _offsets_ms(zone)}
    return rests.pop() if len(rests) == 1 else None


@functools.cache
def _offsets_ms(zone: str) -> frozenset[int]:
    """The distances of the zone's clock from UTC, in ms."""
    info = zoneinfo.ZoneInfo(zone)
    days = (datetime.datetime(year, month, 1, tzinfo=info) for year in _YEARS for month in range(1, 13))
    return frozenset(int((day.utcoffset() or datetime.timedelta()).total_seconds() * 1000) for day in days)
