"""Event time that is computed from the columns of rows: from an expression, a field of a struct, numbers in another
unit than ms, or texts.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr, instant, lit, when
from sabot.api.expr.time import ZONED
from sabot.base.arrays import epoch, floats, integer_array, is_time, signed, where
from sabot.engine.operators.expressions.compiled import Compiled, compile_expr
from sabot.engine.operators.rows.bad import values_or_nulls
from sabot.errors import DataError, UserError

FAR_MS = 2**61  # further from 1970, sums of times and window sizes would overflow; some 73 million years

# The end of an ISO 8601 text with a zone. "-01" ends a date too, so there must be minutes before.
_US = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # of each unit
_FAR_US = 2.0**62  # no float beyond fits into 64 bits as microseconds


class ComputedTime:
    """A function from rows of one schema to their event times, in ms since 1970 UTC. Threads may share it.

    `where`: the stream or step, for errors. `unit`: the unit of numbers, or None for ms. `format`: the format of
    texts, or None for ISO 8601. `zone`: the time zone of texts and timestamps without one, or None for UTC. Raises
    UserError if the type of the expression has no times, or does not fit the unit, the format or the zone.
    """

    def __init__(
        self,
        where: str,
        expr: Expr,
        unit: str | None,
        format: str | None,
        schema: pa.Schema,
        zone: str | None = None,
    ) -> None:
        self._text = expr.column or expr.text()
        self._unit = unit or "ms"
        try:
            made = compile_expr(expr, schema)
            if pa.types.is_string(made.type) and unit is None:
                times = expr.str.to_datetime(format)
                if zone is not None and (format is None or "%z" not in format):
                    zoned = expr.str.contains(ZONED) if format is None else lit(False)
                    without = when(zoned).then(lit(None)).otherwise(times)  # both branches are computed for all rows
                    times = when(zoned).then(times).otherwise(_utc(without, zone))
                made = compile_expr(times, schema)
            elif zone is not None:
                made = _with_zone(expr, made.type, zone, schema) or made
            elif format is not None:
                raise UserError(
                    f"{made.type} has no format", hint="time_format= is of texts; numbers have a time_unit="
                )
        except UserError as error:
            raise UserError(f"{where}: event time {self._text!r}: {error.message}", hint=error.hint) from error
        self._check(where, expr, made.type, unit)
        self._expr: Compiled = made
        self.numbers = pa.types.is_integer(made.type) or pa.types.is_floating(made.type)
        self.without = f"event time {self._text!r} is null, or out of range"

    def _check(self, where: str, expr: Expr, type: pa.DataType, unit: str | None) -> None:
        numbers = pa.types.is_integer(type) or pa.types.is_floating(type)
        if unit is None and not numbers and not is_time(type):
            raise UserError(
                f"{where}: event time {self._text!r} is {type}, which is no time",
                hint="a timestamp, a date, a text, or a number with its time_unit=",
            )
        if unit is not None and not numbers:
            cast = f'time={expr.text()}.cast("int64"), time_unit="{unit}" where the texts are numbers'
            hint = "leave time_unit= out; where a JSON number is read as a timestamp it counts ms: schema= can make it int64"
            hint = cast if pa.types.is_string(type) else hint
            raise UserError(f"{where}: event time {self._text!r} is {type}, which has no time_unit", hint=hint)

    def of(self, data: pa.RecordBatch) -> tuple[pa.Array, dict[int, str]]:
        """Returns the times, null where a row has none, and for each row whose value cannot be a time the reason, by
        the row's number.
        """
        bad: dict[int, DataError] = {}
        times = within_range(_ms(values_or_nulls("", self._expr, data, bad), self._unit))
        return times, {row: f"event time {self._text!r}: {error.message}" for row, error in bad.items()}


def within_range(times: pa.Array) -> pa.Array:
    """Returns the times (int64, ms) with null for those that are FAR_MS or more from 1970."""
    span = pc.min_max(times)
    if len(times) == times.null_count or -FAR_MS < span["min"].as_py() <= span["max"].as_py() < FAR_MS:
        return times
    return where(pc.and_(pc.greater(times, pa.scalar(-FAR_MS)), pc.less(times, pa.scalar(FAR_MS))), times)


def _ms(values: pa.Array, unit: str) -> pa.Array:
    """Returns times of any type as ms, rounded down, and null for those that do not fit. Floats are rounded to
    microseconds first.
    """
    if pa.types.is_floating(values.type):
        counts = floats(pc.cast(values, pa.float64())) * _US[unit]
        fits = np.abs(counts) < _FAR_US  # not of NaN either
        whole = np.floor_divide(np.rint(np.where(fits, counts, 0)).astype(np.int64), 1000)
        return integer_array(whole, pa.int64(), values, nulls=None if fits.all() else ~fits)
    if pa.types.is_integer(values.type):
        counts = signed(values)
        return counts if unit == "ms" else epoch(counts.view(pa.timestamp(unit)), "ms")
    return epoch(values, "ms")


def _with_zone(expr: Expr, type: pa.DataType, zone: str, schema: pa.Schema) -> Compiled | None:
    """Returns the times in UTC of values that have this zone, or None if the type has a zone of its own. Raises UserError for numbers."""
    if pa.types.is_date(type):
        expr = expr.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(type):
        raise UserError(f"{type} has no time_zone", hint="time_zone= is of texts, dates and timestamps without a zone")
    elif type.tz is not None:
        return None
    return compile_expr(_utc(expr, zone), schema)


def _utc(times: Expr, zone: str) -> Expr:
    """Returns the instants, as `instant` does, as timestamps of UTC without a zone."""
    return instant(times, zone).dt.replace_time_zone(None)
