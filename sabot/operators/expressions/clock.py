"""Expressions of times: their parts, rounding down, conversion to text. `times` computes the values."""

import functools

import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.arrays import epoch, is_time
from sabot.errors import UserError
from sabot.operators.expressions import times
from sabot.operators.expressions.node import Compiled, Steps, apply, to_type

_PARTS = {
    "dt.date": lambda x: pc.cast(epoch(x, "d"), pa.int32()).view(pa.date32()),
    "dt.year": pc.year,
    "dt.quarter": pc.quarter,
    "dt.week": pc.iso_week,
    "dt.ordinal_day": pc.day_of_year,
    "dt.month": pc.month,
    "dt.day": pc.day,
    "dt.hour": pc.hour,
    "dt.minute": pc.minute,
    "dt.second": pc.second,
    "dt.millisecond": pc.millisecond,
    "dt.day_of_week": functools.partial(pc.day_of_week, count_from_zero=False, week_start=1),
}
_CLOCK_PARTS = {"dt.hour", "dt.minute", "dt.second", "dt.millisecond"}


def _time_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    kind = expr.kind
    if pa.types.is_null(node.type):
        node = to_type(node, pa.timestamp("ms"))
    if not is_time(node.type) or (kind in _CLOCK_PARTS and pa.types.is_date(node.type)):
        raise UserError(
            f"{expr.text()} cannot be computed: {kind} of {node.type}",
            hint="cast to a timestamp first, or to int64 as ms since 1970 UTC",
        )
    if kind in _PARTS:
        part = _PARTS[kind]
        return apply(expr, lambda x: part(times.local(x)), node)
    if kind == "dt.epoch":
        return apply(expr, functools.partial(_epoch, unit=expr.option("unit")), node)
    if kind == "dt.strftime":
        return apply(expr, times.format_time(expr.option("format"), node.type), node)
    return apply(expr, times.truncate(expr.option("every"), node.type), node)


def _epoch(times: pa.Array, unit: str) -> pa.Array:
    made = epoch(times, unit)
    if made.null_count > times.null_count:
        raise pa.ArrowInvalid(f"the {unit} since 1970 do not fit into 64 bits")
    return made


STEPS: Steps = dict.fromkeys([*_PARTS, "dt.epoch", "dt.strftime", "dt.date_trunc"], _time_step)
