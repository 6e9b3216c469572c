"""The values that the types of PostgreSQL hold: which columns fit at all, which single values do not, and times as text."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import PER_SECOND, epoch, integers, near_times, to_unit
from sabot.connectors.sql.rows import json_text, loses_digits, refusals, utc

_INTEGERS = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
_NUMBERS = {*_INTEGERS, "numeric", "real", "double precision"}
_TIMES = {"timestamp without time zone", "timestamp with time zone"}
_BITS = {"real": 24, "double precision": 53}  # of floats
_DAYS, _CLOCKS = {"date"}, {"time without time zone", "time with time zone"}
_KNOWN = _NUMBERS | _TIMES | _DAYS | _CLOCKS | {"boolean", "bytea", "interval", "uuid"}
_BYTES = {'"char"': 1, "name": 63}  # the types that cut texts in silence, and the bytes that they keep

_FIRST_DAY = -2_440_588  # of dates and timestamps: 24 November 4714 BC, the day 0 of astronomers
_DAYS_END, _TIMES_END = 2_145_042_906, 106_762_940  # the first day that a date, and a timestamp, does not reach
_YEAR_1, _YEAR_10000 = -719_162, 2_932_897
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "microseconds"}
_NUL = re.escape("\\u0000")


def takes(declared: str, kind: Any) -> bool:
    """Returns False if a column of this type of PostgreSQL refuses, or would cut, values of an Arrow type."""
    types = pa.types
    if declared.endswith("[]") and types.is_nested(kind):
        return False  # JSON is no text of an array
    if declared not in _KNOWN or types.is_null(kind) or types.is_string(kind):
        return True  # a text is read by the database
    if declared == "interval":
        return bool(types.is_duration(kind))  # the unit of a number would be a guess
    if types.is_integer(kind) or types.is_duration(kind) or (types.is_decimal(kind) and kind.scale <= 0):
        return declared in _NUMBERS
    if types.is_floating(kind) or types.is_decimal(kind):
        return declared in _NUMBERS and declared not in _INTEGERS
    for is_kind, fitting in (
        (types.is_timestamp, _TIMES),
        (types.is_date, _DAYS | _TIMES),
        (types.is_time, _CLOCKS),
        (types.is_boolean, {"boolean"}),
    ):
        if is_kind(kind):
            return declared in fitting
    return declared == "bytea" if not types.is_nested(kind) else False


def tells_apart(declared: str, whole: str, kind: Any) -> bool:
    """Returns True if it is certain that a column keeps all values of an Arrow type, and finds no two of them equal.
    `whole`: the declared type with length and digits. The collation is not looked at.
    """
    types = pa.types
    if types.is_string(kind):
        return declared in ("text", "character varying")
    if types.is_timestamp(kind) or types.is_time(kind):
        return declared in _TIMES | _CLOCKS and kind.unit != "ns"
    if types.is_decimal(kind):
        digits = re.fullmatch(r"numeric\(\d+,(-?\d+)\)", whole)
        return whole == "numeric" or (digits is not None and int(digits[1]) >= kind.scale)
    if types.is_integer(kind) or types.is_duration(kind):
        return declared in _INTEGERS
    return declared == {pa.bool_(): "boolean", pa.date32(): "date", pa.binary(): "bytea"}.get(kind)


def refused_values(name: str, column: Any, declared: str, whole: str) -> dict[int, str]:
    """Returns the reason for each value that a column does not hold, by the number of the row. `declared`: its type, or ""
    if the table is not known; then the type has the width of the values. `whole`: the type with length and digits.
    """
    kind, types = column.type, pa.types
    if types.is_timestamp(kind) or types.is_date(kind):
        return _far(name, column, declared)
    if declared in _BITS and (
        types.is_integer(kind) or types.is_duration(kind) or (types.is_decimal(kind) and kind.scale <= 0)
    ):
        return refusals(
            name, column, loses_digits(column, _BITS[declared]), f"has digits that {declared} does not keep"
        )
    if types.is_integer(kind) or types.is_duration(kind):
        return {} if declared == "interval" else _wide(name, column, declared, whole)
    if types.is_floating(kind):
        return _imprecise(name, column) if declared == "real" else {}
    if types.is_string(kind) and declared != "bytea":
        found = refusals(name, column, pc.match_substring(column, "\0"), "has the character U+0000")
        if most := _BYTES.get(declared):
            found |= refusals(name, column, pc.greater(pc.binary_length(column), most), f"is longer than {declared}")
        if length := re.fullmatch(r"character(?: varying)?\((\d+)\)", whole):
            long = pc.greater(pc.utf8_length(pc.utf8_rtrim(column, " ")), int(length[1]))
            found |= refusals(name, column, long, f"is longer than {whole}")
        return found
    if types.is_nested(kind) and declared in ("", "jsonb") and _has_nul(column):
        # an even number of backslashes before it are characters of the text
        wrong = pc.match_substring_regex(json_text(column, name), rf"(^|[^\\])(\\\\)*{_NUL}")
        return refusals(name, column, wrong, "has the character U+0000, which jsonb does not hold")
    return {}


def _far(name: str, column: Any, declared: str) -> dict[int, str]:
    by_day = pa.types.is_date(column.type)
    days = epoch(utc(column) if not by_day else column, "d")
    end = _DAYS_END if by_day and declared not in _TIMES else _TIMES_END
    wrong = pc.or_(pc.less(days, _FIRST_DAY), pc.greater_equal(days, end))
    return refusals(name, column, wrong, "is a time that PostgreSQL does not have (4714 BC to 294276)")


def _wide(name: str, column: Any, declared: str, whole: str) -> dict[int, str]:
    digits = re.fullmatch(r"numeric\((\d+),(-?\d+)\)", whole)
    least = _INTEGERS.get(declared)
    if digits is not None:
        most: int | None = 10 ** max(0, int(digits[1]) - int(digits[2])) - 1
        low = None if most is None else -most
    elif least is not None:
        low, most = -least, least - 1
    elif declared == "oid":  # the server would wrap a negative one
        low, most = 0, 2**32 - 1
    else:
        return {}
    values = integers(column)
    info = np.iinfo(values.dtype)
    wrong = np.zeros(len(values), bool)
    if low is not None and low > info.min:
        wrong |= values < low
    if most is not None and most < info.max:
        wrong |= values > most
    return refusals(name, column, pc.and_(pa.array(wrong), pc.is_valid(column)), f"does not fit into {whole}")


def _imprecise(name: str, column: Any) -> dict[int, str]:
    values = column.cast(pa.float64()).fill_null(0).to_numpy()
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    wrong = (np.isinf(narrow) & np.isfinite(values)) | ((narrow == 0) & (values != 0))
    return refusals(name, column, pa.array(wrong), "is out of the range of real")


def _has_nul(column: Any) -> bool:
    kind = column.type
    if pa.types.is_string(kind):
        return bool(pc.any(pc.match_substring(column, "\0"), min_count=0).as_py())
    if not pa.types.is_nested(kind):
        return False
    inside = column.flatten()
    return any(map(_has_nul, inside if isinstance(inside, list) else [inside]))


def spans(column: Any) -> Any:
    """Returns durations as texts that PostgreSQL reads as intervals, in microseconds, rounded down."""
    values, word = integers(column), _UNITS[column.type.unit]
    values = np.floor_divide(values, 1_000) if column.type.unit == "ns" else values
    return pc.binary_join_element_wise(
        pa.array(values, mask=~np.asarray(column.is_valid())).cast(pa.string()), word, " "
    )


def moments(column: Any, *, of_utc: bool = False) -> Any:
    """Returns timestamps or dates in a form that Arrow's CSV writer can write and COPY can read: in microseconds, rounded
    down. Years before 1 or above 9999 are written as PostgreSQL writes them. `of_utc`: True to write times without a zone, and
    dates, as instants on the clock of UTC, whatever the zone of the session is.
    """
    if of_utc and getattr(column.type, "tz", None) is None:
        clock = epoch(column, "s") if pa.types.is_date(column.type) else column
        column = clock.cast(pa.timestamp(getattr(column.type, "unit", "s"), "UTC"))
    zone = getattr(column.type, "tz", None)
    if pa.types.is_date(column.type):
        days = epoch(column, "d")
        column = days if pa.types.is_date64(column.type) else column
        if pa.types.is_date64(column.type) or column is days:
            column = days.cast(pa.int32()).view(pa.date32())
    else:
        column = utc(column)
        fine = PER_SECOND[column.type.unit] > PER_SECOND["us"]
        column = to_unit(column, "us") if fine else column
        days = epoch(column, "d")
    least, most = pc.min_max(days).values()
    if not least.is_valid or (least.as_py() >= _YEAR_1 and most.as_py() < _YEAR_10000):
        return column if pa.types.is_date(column.type) else to_unit(column, "us")
    clock = column if zone is None else column.view(pa.timestamp(column.type.unit))
    near, years = near_times(clock, -_YEAR_1)
    year = pc.add(pc.year(near), pa.array(years)) if not isinstance(years, int) else pc.year(near)
    before = pc.less_equal(year, 0)
    shown = pc.cast(pc.if_else(before, pc.subtract(1, year), year), pa.string())
    text = pc.binary_join_element_wise(
        pc.utf8_lpad(shown, 4, "0"), pc.utf8_slice_codeunits(pc.cast(near, pa.string()), 4), ""
    )
    text = pc.binary_join_element_wise(text, "+00", "") if zone is not None else text
    return pc.if_else(before, pc.binary_join_element_wise(text, " BC", ""), text)
