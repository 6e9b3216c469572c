"""Expressions of times: their parts, rounding down, conversion to text. `times` computes the values."""

import functools
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import PER_SECOND, as_timestamp, epoch, integers, is_time, is_utc, near_times, where
from sabot.engine.operators.expressions import times
from sabot.engine.operators.expressions.casts import RefusedValues
from sabot.engine.operators.expressions.node import FALSE, Compiled, Steps, apply, to_type
from sabot.engine.operators.expressions.zones import later_times, times_at
from sabot.errors import UserError


def _near(part: Callable[[pa.Array], pa.Array], times: pa.Array) -> pa.Array:
    return part(near_times(times)[0])


def _year(times: pa.Array) -> pa.Array:
    near, years = near_times(times)
    return pc.year(near) if isinstance(years, int) else pc.add(pc.year(near), pa.array(years))


_PARTS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "dt.date": lambda x: pc.cast(epoch(x, "d"), pa.int32()).view(pa.date32()),
    "dt.year": _year,
    **{
        f"dt.{name}": functools.partial(_near, part)
        for name, part in {
            "quarter": pc.quarter,
            "week": pc.iso_week,
            "ordinal_day": pc.day_of_year,
            "month": pc.month,
            "day": pc.day,
            "hour": pc.hour,
            "minute": pc.minute,
            "second": pc.second,
            "millisecond": pc.millisecond,
            "day_of_week": functools.partial(pc.day_of_week, count_from_zero=False, week_start=1),
        }.items()
    },
}
_CHANGED = 'the clock was changed: ambiguous="earliest" or "latest" takes one of two times, non_existent="null" drops skipped ones'
_CLOCK_PARTS = {"dt.hour", "dt.minute", "dt.second", "dt.millisecond"}


def _time_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    kind = expr.kind
    if pa.types.is_null(node.type):
        node = to_type(node, pa.timestamp("ms"))
    if not is_time(node.type) or (kind in _CLOCK_PARTS and pa.types.is_date(node.type)):
        raise UserError(
            f"{expr.text()} cannot be computed: {kind} of {node.type}",
            hint='a text: .str.to_datetime("%Y-%m-%d %H:%M") first; a date: .cast("timestamp[us]"); a number: ms since 1970 as int64',
        )
    if kind in _PARTS:
        part = _PARTS[kind]
        return apply(expr, lambda x: part(times.local(x)), node)
    if kind == "dt.epoch":
        return apply(expr, functools.partial(_epoch, unit=expr.option("unit")), node)
    if kind == "dt.strftime":
        return apply(expr, times.format_time(expr.option("format"), node.type), node)
    if kind == "dt.offset_by":
        return apply(expr, times.offset(expr.option("by"), node.type), node)
    return apply(expr, times.truncate(expr.option("every"), node.type), node)


_TOTALS = {  # ns of each unit
    "days": 86_400 * 10**9,
    "hours": 3_600 * 10**9,
    "minutes": 60 * 10**9,
    "seconds": 10**9,
    "milliseconds": 10**6,
    "microseconds": 10**3,
}


def _total(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_null(node.type):
        node = to_type(node, pa.duration("us"))
    if not pa.types.is_duration(node.type):
        raise UserError(
            f"{expr.text()} cannot be computed: {node.type} is not a duration",
            hint="the difference of two times is one",
        )
    wanted = _TOTALS[expr.kind.removeprefix("dt.total_")]
    have = 10**9 // PER_SECOND[node.type.unit]

    def total(x: pa.Array) -> pa.Array:
        whole = x.view(pa.int64())
        if have >= wanted:
            return pc.multiply_checked(whole, have // wanted)
        return pc.divide(whole, wanted // have)  # of integers, rounded towards zero

    return apply(expr, total, node)


def _zone_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_null(node.type):
        node = to_type(node, pa.timestamp("us"))
    if not is_time(node.type) or pa.types.is_date(node.type):
        raise UserError(
            f"{expr.text()} cannot be computed: {node.type} is not a timestamp", hint='.cast("timestamp[us]")'
        )
    zone = expr.option("time_zone")
    if expr.kind == "dt.convert_time_zone":
        return apply(expr, lambda x: as_timestamp(x).view(pa.timestamp(as_timestamp(x).type.unit, zone)), node)
    if zone is None:
        return apply(expr, times.local, node)
    return apply(expr, lambda x: _in_zone(times.local(x), zone, expr), node, can_fail=True)


def _in_zone(clock: pa.Array, zone: str, expr: Expr) -> pa.Array:
    """Returns the times at which the clock of a zone shows these times. Raises RefusedValues as the options of the expression say."""
    target = pa.timestamp(clock.type.unit, zone)
    if is_utc(zone):
        return clock.view(target)
    first = times_at(integers(clock), clock.view(target))
    skipped = pc.not_equal(times.local(first), clock)
    later, twice = later_times(first)
    again = pc.and_(pa.array(twice), pc.is_valid(first))
    ambiguous, raises = expr.option("ambiguous"), pa.repeat(FALSE, len(clock))
    if ambiguous == "raise":
        raises = again
    elif ambiguous == "latest":
        first = pc.if_else(again, later, first)
    elif ambiguous == "null":
        first = where(pc.invert(again), first)
    if expr.option("non_existent") == "raise":
        raises = pc.or_(raises, skipped.fill_null(False))
    else:
        first = where(pc.invert(skipped), first)
    if pc.any(raises, min_count=0).as_py():
        raise RefusedValues(expr.text(), clock, target, raises, _CHANGED)
    return first


def _epoch(times: pa.Array, unit: str) -> pa.Array:
    made = epoch(times, unit)
    if made.null_count > times.null_count:
        raise pa.ArrowInvalid(f"the {unit} since 1970 do not fit into 64 bits")
    return made


STEPS: Steps = {
    **dict.fromkeys([*_PARTS, "dt.epoch", "dt.strftime", "dt.date_trunc", "dt.offset_by"], _time_step),
    **dict.fromkeys([f"dt.total_{unit}" for unit in _TOTALS], _total),
    **dict.fromkeys(["dt.replace_time_zone", "dt.convert_time_zone"], _zone_step),
}
