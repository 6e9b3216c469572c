"""The session's time zone (`SET 'table.local-time-zone'`): the clock by which values of TIMESTAMP_LTZ are read and shown.

A value of TIMESTAMP_LTZ is an instant, which the engine has in UTC. A function that asks for its hour, its day or its text
gets the time of day on the clock of the zone instead, which is a TIMESTAMP.

    zone Europe/Berlin     TIMESTAMP_LTZ 2024-07-01 22:30:00Z     ->     TIMESTAMP 2024-07-02 00:30:00
"""

import re
import zoneinfo

import pyarrow as pa

from sabot.sql.scope import TypedExpr

UTC = "UTC"
_UTC_NAMES = ("UTC", "Z", "ETC/UTC", "GMT")
_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])(\d{1,2})(?::?00)?", re.IGNORECASE)


def zone_named(text: str) -> str | None:
    """Returns the zone of a name or of an offset in whole hours (+08:00, GMT-5), UTC for its other names, or None if there
    is no such zone.
    """
    if text.upper() in _UTC_NAMES:
        return UTC
    if (offset := _OFFSET.fullmatch(text)) is not None:
        sign, hours = "-" if offset[1] == "+" else "+", int(offset[2])
        text = f"Etc/GMT{sign}{hours}" if hours else UTC  # whose signs are those of POSIX: west of Greenwich is +
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
