"""The functions of times: parts, patterns of Java, months, zones."""

import datetime
import re
from collections.abc import Callable

import pyarrow as pa

from sabot.api.expr import Expr, instant, lit, when
from sabot.sql.functions.arguments import CallArguments
from sabot.sql.functions.conversions import read_text
from sabot.sql.functions.numbers import divided
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.types import months_within, ms_within, sql_type
from sabot.sql.zones import UTC, is_local, on_the_clock, zone_named

PARTS: dict[str, Callable[[Expr], Expr]] = {
    "YEAR": lambda x: x.dt.year(),
    "QUARTER": lambda x: x.dt.quarter(),
    "MONTH": lambda x: x.dt.month(),
    "WEEK": lambda x: x.dt.week(),
    "DAY": lambda x: x.dt.day(),
    "DOY": lambda x: x.dt.ordinal_day(),
    "DOW": lambda x: x.dt.day_of_week() % lit(7) + lit(1),
    "ISODOW": lambda x: x.dt.day_of_week(),
    "HOUR": lambda x: x.dt.hour(),
    "MINUTE": lambda x: x.dt.minute(),
    "SECOND": lambda x: x.dt.second(),
    "MILLISECOND": lambda x: x.dt.millisecond(),
    "EPOCH": lambda x: x.dt.epoch("s"),
    "DECADE": lambda x: x.dt.year() // lit(10),
    "CENTURY": lambda x: (x.dt.year() + lit(99)) // lit(100),
    "MILLENNIUM": lambda x: (x.dt.year() + lit(999)) // lit(1000),
    "ISOYEAR": lambda x: x.dt.year() + _other_year(x),
}
_JAVA = {
    "yyyy": "%Y",
    "uuuu": "%Y",
    "y": "%Y",
    "u": "%Y",
    "yy": "%y",
    "MM": "%m",
    "dd": "%d",
    "HH": "%H",
    "hh": "%I",
    "mm": "%M",
    "ss": "%S",
    "a": "%p",
    "DDD": "%j",
    "EEE": "%a",
    "EEEE": "%A",
    "MMM": "%b",
    "MMMM": "%B",
}
_WRITTEN = {
    "YYYY": "%G",
    "ww": "%V",
    "Z": "%z",
    "E": "%a",
    "EE": "%a",
    "M": "%-m",
    "d": "%-d",
    "H": "%-H",
    "h": "%-I",
    "m": "%-M",
    "s": "%-S",
    "SSS": "%3f",
    "SSSSSS": "%6f",
    "SSSSSSSSS": "%9f",
}
_READ = {"M": "%m", "d": "%d", "H": "%H", "h": "%I", "m": "%M", "s": "%S", **{"S" * n: f"%{n}f" for n in range(1, 10)}}
_NOT_READ = {
    "yy": "two digits of a year leave its century open: TO_DATE('20' || text, 'yyyy-MM-dd')",
    **dict.fromkeys(("E", "EE", "EEE", "EEEE"), "leave the name of the day out: SUBSTRING(text, 5)"),
    **dict.fromkeys(
        ("Z", "X", "XX", "XXX", "x", "xx", "xxx"), "CAST(text AS TIMESTAMP_LTZ(3)) reads a time with its offset"
    ),
    "DDD": "the day of a year: TIMESTAMPADD(DAY, CAST(text AS INT) - 1, DATE '2024-01-01')",
}
"""Letters with which texts are not read, and what to write instead."""


def java_format(pattern: str, span: Span, *, reads: bool = False) -> str:
    """Returns a pattern of Java's DateTimeFormatter ("yyyy-MM-dd") as one of strftime; `reads`: as one that reads texts.
    Raises SqlFault for letters that have no equivalent.
    """
    made, known = [], _JAVA | (_READ if reads else _WRITTEN)
    if reads:
        known = {word: code for word, code in known.items() if word not in _NOT_READ}
    for match in re.finditer(r"'((?:[^']|'')*)'|([A-Za-z])\2*|(.)", pattern, re.DOTALL):
        quoted, letter, other = match.groups()
        if quoted is not None:
            made.append((quoted.replace("''", "'") or "'").replace("%", "%%"))
        elif letter is not None:
            word = match.group()
            if word not in known:
                there_are = ", ".join(each for each in known if each[0] != "S" or each == "SSS")
                java = "patterns are Java's: yyyy-MM-dd HH:mm:ss" if "%" in pattern else f"there are {there_are}"
                java = _NOT_READ.get(word, java) if reads else java
                raise SqlFault(span, f"{word} of the pattern has no equivalent", java)
            made.append(known[word])
        else:
            made.append(other.replace("%", "%%"))
    return "".join(made)


def _other_year(time: Expr) -> Expr:
    """Returns 1 for a day in the first week of the year that follows, -1 for one in the last week of the year before."""
    week, month = time.dt.week(), time.dt.month()
    after = when((month == 12) & (week == 1)).then(lit(1))
    return after.when((month == 1) & (week > 51)).then(lit(-1)).otherwise(lit(0))


def extract(arguments: CallArguments) -> Expr:
    part = PARTS.get(arguments.word(0))
    if part is None:
        raise SqlFault(arguments.items[0].tree.span, f"EXTRACT({arguments.word(0)} …) is not supported")
    return part(arguments.expr(1) if arguments.word(0) == "EPOCH" else arguments.clock(1))


def date_format(arguments: CallArguments) -> Expr:
    tree, time = arguments.items[1].tree, arguments.clock(0)
    if pa.types.is_string(arguments.bound(0).type):
        time = read_text(time, pa.timestamp("us"), strict=False)
    format = java_format(arguments.constant(1, "string", "the pattern"), tree.span)
    if "%z" in format and is_local(arguments.bound(0).type):
        return arguments.expr(0).dt.convert_time_zone(arguments.zone).dt.strftime(format)
    return time.dt.strftime(re.sub(r"((?:%%)*)%z", r"\1+0000", format))


_FIRST_DAY = [("1970 ", "%Y ", "Y"), ("01 ", "%m ", "mbB"), ("01 ", "%d ", "d")]
"""What stands for the parts of a day that a pattern lacks, as in Flink: the text, its code, and the codes that give it."""


def to_time(method: str, arguments: CallArguments) -> Expr:
    text = arguments.expr(0)
    if len(arguments) == 1:
        type = pa.date32() if method == "to_date" else pa.timestamp("us")
        return read_text(text, type, strict=False)
    span = arguments.items[1].tree.span
    pattern = arguments.constant(1, "string", "the pattern")
    format = java_format(pattern, span, reads=True)
    codes = re.findall(r"%[1-9]?([A-Za-z%])", format)
    twice = next((code for code in codes if code != "%" and codes.count(code) > 1), None)
    if twice or {"H", "I"} <= {*codes} or ("I" in codes) != ("p" in codes):
        hint = f"{arguments.call.name.text.upper()}(text, 'MM/dd/yyyy hh:mm:ss a')"
        message = (
            f"the pattern {pattern!r} has a part of the time twice" if twice else "hh and a stand together, without HH"
        )
        raise SqlFault(span, message, hint)
    for value, part, others in _FIRST_DAY:
        if not {*others} & {*codes}:
            text, format = lit(value) + text, part + format
    return getattr(text.str, method)(format, strict=False)  # type: ignore[no-any-return]


def convert_tz(arguments: CallArguments) -> Expr:
    """Returns a local time as a text on the clock of another zone. Zones of columns are looked up for each row."""
    there = read_text(arguments.expr(0), pa.timestamp("us"), strict=False)
    zones = "a name as 'Europe/Berlin', or an offset as '+08:00'"
    if any(arguments.expr(i).columns for i in (1, 2)):
        return Expr("value.convert_tz", (there, *(arguments.plain_text(i, zones) for i in (1, 2))))
    before, after = (_zone(arguments, i) for i in (1, 2))
    return instant(there, before).dt.convert_time_zone(after).dt.strftime("%Y-%m-%d %H:%M:%S")


def at_time_zone(bound: TypedExpr, zone: str) -> Expr | None:
    """Returns an instant as the time on the clock of a zone, a time on that clock as the instant, and None for any other
    type.
    """
    if not pa.types.is_timestamp(bound.type):
        return None
    return on_the_clock(bound, zone).expr if is_local(bound.type) else instant(bound.expr, zone)


def known_zone(zone: str, span: Span) -> str:
    """Returns a time zone by its name. Raises SqlFault if there is none."""
    known = zone_named(zone)
    if known is None:
        raise SqlFault(span, f"there is no time zone '{zone}'", "'Europe/Berlin', '+08:00', 'UTC'")
    return known


def _zone(arguments: CallArguments, place: int) -> str:
    return known_zone(arguments.constant(place, "string", "the time zone"), arguments.items[place].tree.span)


def to_timestamp_ltz(arguments: CallArguments) -> Expr:
    if pa.types.is_string(arguments.bound(0).type):
        return instant(to_time("to_datetime", arguments), _zone(arguments, 2) if len(arguments) > 2 else UTC)
    digits = int(arguments.constant(1, "integer", "the number of digits")) if len(arguments) > 1 else 3
    if digits not in (0, 3):
        raise SqlFault(arguments.items[1].tree.span, "the number of digits is 0 for seconds, or 3 for milliseconds")
    ms = arguments.expr(0) * lit(1000) if digits == 0 else arguments.expr(0)
    return ms.cast(pa.timestamp("ms", tz="UTC"))


def from_unixtime(arguments: CallArguments) -> Expr:
    """Returns seconds since 1970 as a text on the clock of the session's zone."""
    pattern = "%Y-%m-%d %H:%M:%S"
    if len(arguments) > 1:
        pattern = java_format(arguments.constant(1, "string", "the pattern"), arguments.items[1].tree.span)
    seconds, type = arguments.bound(0)
    if not pa.types.is_integer(type):
        message = f"FROM_UNIXTIME takes whole seconds, and this is {sql_type(type)}"
        raise SqlFault(arguments.items[0].tree.span, message, "DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm:ss') of a time")
    moment = (seconds.cast("int64") * lit(1000)).cast(pa.timestamp("ms", tz=UTC))
    return on_the_clock(TypedExpr(moment, pa.timestamp("ms", tz=UTC)), arguments.zone).expr.dt.strftime(pattern)


def unix_timestamp(arguments: CallArguments) -> Expr:
    """Returns the seconds since 1970 of a text on the clock of the session's zone; the least BIGINT for a text that is no
    time, as in Flink.
    """
    text = arguments.plain_text(0, "EXTRACT(EPOCH FROM ts) of a time")
    seconds = instant(to_time("to_datetime", arguments), arguments.zone).dt.epoch("s")
    wrong = when(text.is_not_null()).then(lit(-(1 << 63))).otherwise(lit(None))
    return when(seconds.is_not_null()).then(seconds).otherwise(wrong)


_DAY_MS = 86_400_000
_TABLE_UNITS_MS = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000, "WEEK": 604_800_000}


def _unit_ms(arguments: CallArguments) -> int:
    unit = arguments.word(0)
    if unit not in _TABLE_UNITS_MS:
        raise SqlFault(arguments.items[0].tree.span, f"{unit} is no unit of {arguments.call.name.text}", "DAY, HOUR, …")
    return _TABLE_UNITS_MS[unit]


_UNIT_MONTHS = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}


def timestampdiff(arguments: CallArguments) -> Expr:
    if (months := _UNIT_MONTHS.get(arguments.word(0))) is not None:
        whole = _months_between(arguments.clock(1), arguments.clock(2))
        return divided("/", TypedExpr(whole, pa.int64()), TypedExpr(lit(months), pa.int64()))
    start, end = (arguments.expr(i).dt.epoch("ms") for i in (1, 2))
    distance = TypedExpr(end - start, pa.int64())
    return divided("/", distance, TypedExpr(lit(_unit_ms(arguments)), pa.int64()))


def _months_between(start: Expr, end: Expr) -> Expr:
    """Returns the whole months between two times: those that have passed to the day and the time of day."""
    first, last = (time.dt.year() * lit(12) + time.dt.month() for time in (start, end))
    rest = [time.dt.epoch("ms") - time.dt.date_trunc("1mo").dt.epoch("ms") for time in (start, end)]
    months = last - first
    less = when((months > 0) & _is_early(start, end, *rest)).then(lit(1))
    less = less.when((months < 0) & _is_early(end, start, *rest[::-1])).then(lit(-1))
    return months - less.otherwise(lit(0))


def _is_early(start: Expr, end: Expr, after_start: Expr, after_end: Expr) -> Expr:
    """Returns True if the last month up to the end is not whole. The last day of a shorter month ends it: 29 February is
    one month after 31 January. `after_start`, `after_end`: the milliseconds since the begin of their months.
    """
    last_day = end.dt.date_trunc("1mo").dt.offset_by("1mo").dt.offset_by("-1d").dt.day()
    whole_days = (start.dt.day() - last_day) * lit(_DAY_MS)
    return after_end < when(whole_days > 0).then(after_start - whole_days).otherwise(after_start)


def plus_months(time: TypedExpr, months: int | Expr, zone: str) -> Expr:
    """Returns a time moved by months (a number, or one of each row); a TIMESTAMP_LTZ on the clock of the session's zone,
    so that its time of day stays.

    zone Europe/Berlin     2024-03-15 12:00 there (11:00Z) + 1 MONTH     ->     2024-04-15 12:00 there (10:00Z)
    """
    if isinstance(months, int) and not months:
        return time.expr
    clock = on_the_clock(time, zone)
    if isinstance(months, int):
        moved = clock.expr.dt.offset_by(f"{months}mo")
    else:
        moved = Expr("value.add_months", (clock.expr.cast(pa.timestamp("us")), months)).cast(clock.type)
    return instant(moved, zone) if is_local(time.type) and zone != UTC else moved


def timestampadd(arguments: CallArguments) -> Expr:
    number, type = arguments.bound(1)
    amount = number.option("value") if number.kind == "lit" else None
    span = arguments.items[1].tree.span
    if not pa.types.is_integer(type):
        raise SqlFault(
            span, f"the number of TIMESTAMPADD is a whole one, and this is {sql_type(type)}", "CAST(… AS INT)"
        )
    if (months := _UNIT_MONTHS.get(arguments.word(0))) is not None:
        moved = number.cast("int64") * lit(months) if amount is None else months_within(amount * months, span)
        return plus_months(arguments.bound(2), moved, arguments.zone)
    if amount is None:
        time = number.cast("int64") * lit(datetime.timedelta(milliseconds=_unit_ms(arguments)))
    else:
        time = lit(datetime.timedelta(milliseconds=ms_within(amount * _unit_ms(arguments), span)))
    made = arguments.expr(2) + time
    is_date = pa.types.is_date(arguments.bound(2).type) and _unit_ms(arguments) % _DAY_MS == 0
    return made.cast("date32") if is_date else made
