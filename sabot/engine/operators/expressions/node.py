"""The node of a compiled expression (`Compiled`), and helpers that make nodes: constants, common types, errors that
name the value.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import (
    PER_SECOND,
    broadcast,
    decimal_floats,
    empty_array,
    integer_array,
    integer_range,
    integers,
    scalar_of,
    shown,
)
from sabot.base.dataclass import dataclass
from sabot.engine.operators.expressions.casts import (
    RefusedValues,
    common_type,
    is_number,
    literal_integer,
    places_of,
)
from sabot.engine.operators.expressions.rounding import upscaled
from sabot.errors import DataError, UserError

Function = Callable[..., Any]

FALSE, TRUE = scalar_of(False, pa.bool_()), scalar_of(True, pa.bool_())
_COARSER = '.cast("timestamp[us]") or .cast("duration[us]") first: a coarser unit has a greater range'
_DIGITS_OF_INTEGER = 20
_SHOWN = 200  # the most characters of a value in a message
_DOES_NOT_FIT = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError)


@dataclass(frozen=True, slots=True)
class Compiled:
    """An expression for batches of one schema. A call with a batch returns an array of `type` with a value for each
    row. Threads may share it.

    `run`: like a call, but may return one scalar for all rows. `can_fail`: True if a value may raise a DataError by a
    rule of the expression, such as a strict cast; the batch must then have selected rows only. `value`: the value of
    an expression without columns, or None if it has columns. `plain`: True for a literal without a given type, which
    takes the type of the other operand. `careful`: like `run`, but computes each branch (of `when`, `&`, `coalesce`)
    only for the rows that need its value; None if the expression has no branch. A call tries `run` first, so a branch
    costs no selection of rows unless a row fails.
    """

    type: pa.DataType
    run: Callable[[pa.RecordBatch], Any]
    can_fail: bool = False
    value: Any = None
    plain: bool = False
    careful: Callable[[pa.RecordBatch], Any] | None = None

    def __call__(self, data: pa.RecordBatch) -> pa.Array:
        try:
            return broadcast(self.run(data), data.num_rows)
        except DataError:
            if self.careful is None:
                raise
        return carefully(self, data)


Steps = dict[str, Callable[[Expr, list[Compiled]], Compiled]]
"""The functions that make nodes, by kind of expression. Each is called with the expression and the nodes of its
inputs.
"""


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def constant(value: pa.Scalar, can_fail: bool = False) -> Compiled:
    return Compiled(value.type, lambda data: value, can_fail, value)


def apply(expr: Expr, function: Function, *nodes: Compiled, can_fail: bool = False) -> Compiled:
    """Makes a node that calls `function` with the values of `nodes`: arrays, or scalars for constants.

    `function` is called once without rows to find the type of its result; a UserError says if the types do not fit.
    Without columns the node is a constant. A value that pyarrow refuses later raises a DataError that shows the
    value. `can_fail`: see `Compiled`.
    """
    fails = can_fail or any(node.can_fail for node in nodes)
    try:
        if all(node.value is not None for node in nodes):
            return constant(broadcast(function(*(broadcast(node.value, 1) for node in nodes)), 1)[0], fails)
        sample = function(*(empty_array(node.type) if node.value is None else node.value for node in nodes))
    except _DOES_NOT_FIT as error:
        raise misfit(expr, nodes, error) from error

    def of(runs: list[Callable[[pa.RecordBatch], Any]]) -> Callable[[pa.RecordBatch], Any]:
        def run(data: pa.RecordBatch) -> Any:
            values = [each(data) for each in runs]
            try:
                return function(*values)
            except pa.ArrowInvalid as error:
                raise _refused(expr, function, values, error) from error

        return run

    careful = of([node.careful or node.run for node in nodes]) if any(node.careful for node in nodes) else None
    return Compiled(sample.type, of([node.run for node in nodes]), fails, careful=careful)


def carefully(node: Compiled, data: pa.RecordBatch) -> pa.Array:
    """Returns the values of a node, whose branches are computed only for the rows that need them."""
    return broadcast((node.careful or node.run)(data), data.num_rows)


def computed_for(node: Compiled, data: pa.RecordBatch, rows: pa.BooleanArray) -> pa.Array:
    """Returns the values of a node for the rows of a batch for which `rows` is True, and null for the others. Raises
    DataError if the node fails for one of these rows.
    """
    own = data.filter(rows)
    if own.num_rows == data.num_rows:
        return carefully(node, data)
    if not own.num_rows:
        return pa.nulls(data.num_rows, node.type)
    try:
        return carefully(node, own).take(places_of(rows))
    except RefusedValues as error:
        raise error.spread(rows) from error


def with_branches(node: Compiled, careful: Callable[[pa.RecordBatch], Any]) -> Compiled:
    """Returns the node with a function that computes each of its branches only for the rows that need it."""
    return node if node.value is not None else replace(node, careful=careful)


def true_where(values: pa.BooleanArray) -> pa.BooleanArray:
    """Returns False for null."""
    return pc.coalesce(values, FALSE) if values.null_count else values


def _refused(expr: Expr, function: Function, values: list[Any], error: pa.ArrowInvalid) -> DataError:
    """Returns the error for rows that a step refuses: pyarrow's text, with the first value that is refused. It is
    found by calling the step with halves of the rows.
    """
    rows = max(len(each) for each in values if isinstance(each, pa.Array))
    first, given = 0, ""
    while rows:
        size = (rows + 1) // 2  # the first half, or a single row
        reason = _reason(function, values, first, size)
        if reason is None:
            first, size = first + size, rows - size
            reason = _reason(function, values, first, size)
        if reason is None:  # no half fails alone
            break
        error, rows = reason, size
        if size == 1:
            given = " for " + " and ".join(_cut(shown(each[first])) for each in values if isinstance(each, pa.Array))
            break
    return DataError(
        f"{expr.text()} cannot be computed{given}: {error}", hint="filter such rows out first, or cast to a larger type"
    )


def _reason(function: Function, values: list[Any], first: int, rows: int) -> pa.ArrowInvalid | None:
    """Returns the error that the step raises for these rows, or None if it accepts them."""
    try:
        function(*(each.slice(first, rows) if isinstance(each, pa.Array) else each for each in values))
    except pa.ArrowInvalid as error:
        return error
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def misfit(expr: Expr, nodes: Sequence[Compiled], error: Exception | None = None) -> UserError:
    """Returns the error for types that an expression does not accept, with a cast as hint. `error`: pyarrow's error,
    if there is one.
    """
    found = " and ".join(str(node.type) for node in nodes)
    texts = any(pa.types.is_string(node.type) for node in nodes)
    nested = any(pa.types.is_nested(node.type) for node in nodes)
    times = [node.type for node in nodes if pa.types.is_timestamp(node.type) or pa.types.is_date(node.type)]
    to = str(times[0]) if texts and times else "string" if texts else "float64"
    hint = "" if nested else f'cast one of them: .cast("{to}")'
    if expr.kind in ("==", "!=") and pa.types.is_list(nodes[-1].type) and nodes[-1].value is not None:
        hint = f"{'~' * (expr.kind == '!=')}{expr.inputs[0].text()}.is_in({nodes[-1].value.as_py()!r})"
    written = [node.value.as_py() for node in nodes if node.value is not None and pa.types.is_string(node.type)]
    if times and written and written[0] is not None:
        hint = f'a text is not a time; write lit("{written[0]}").cast("{to}")'
    reason = f": {error}" if error is not None and "no kernel" not in str(error) else ""
    return UserError(f"{expr.text()} cannot be computed: {expr.kind} of {found}{reason}", hint=hint)


def to_type(node: Compiled, type: pa.DataType) -> Compiled:
    """Converts a node to a type that can hold its values. A value that does not fit raises DataError, or UserError if
    it is a constant: a time that is too far from 1970 for the unit of the type, or a decimal with more digits than 76.
    """
    if node.type == type:
        return node
    if node.value is not None:
        try:
            return constant(_held(node.value, type), node.can_fail)
        except pa.ArrowInvalid as error:
            raise UserError(f"{shown(node.value)} does not fit {type}", hint=_hint_of(type)) from error
    return _converted(node, type, _moved, node.can_fail or _may_not_fit(node.type, type))


def to_compare(node: Compiled, type: pa.DataType) -> Compiled:
    """Converts a node as `to_type` does, for a comparison: a time that is too far from 1970 for the unit of the type
    becomes the first or last one of the type, which has the same order.
    """
    if node.type == type or not _are_times(node.type, type):
        return to_type(node, type)
    if node.value is not None:
        return constant(times_within(broadcast(node.value, 1), type)[0], node.can_fail)
    return _converted(node, type, times_within, node.can_fail)


def _converted(node: Compiled, type: pa.DataType, function: Function, can_fail: bool) -> Compiled:
    run, careful = node.run, node.careful
    again = None if careful is None else lambda data: function(careful(data), type)
    return Compiled(type, lambda data: function(run(data), type), can_fail, careful=again)


def _are_times(source: pa.DataType, target: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(source) and pa.types.is_temporal(target))


def _may_not_fit(source: pa.DataType, target: pa.DataType) -> bool:
    if _are_times(source, target):
        return _steps_of_day(target) > _steps_of_day(source)
    if not _rescales(source, target):
        return False
    digits = source.precision - source.scale if pa.types.is_decimal(source) else _DIGITS_OF_INTEGER
    return bool(digits > target.precision - target.scale)


def _rescales(source: pa.DataType, target: pa.DataType) -> bool:
    return pa.types.is_decimal(target) and bool(pa.types.is_decimal(source) or pa.types.is_integer(source))


def _hint_of(type: pa.DataType) -> str:
    return 'cast one of them: .cast("float64")' if pa.types.is_decimal(type) else _COARSER


def _moved(values: Any, type: pa.DataType) -> Any:
    try:
        return _cast(values, type)
    except pa.ArrowInvalid as error:
        for value in values if isinstance(values, pa.Array) else [values]:
            try:
                _held(value, type)
            except pa.ArrowInvalid:
                raise DataError(f"{shown(value)} does not fit {type}", hint=_hint_of(type)) from error
        raise


def times_within(values: Any, type: pa.DataType) -> Any:
    """Converts times or durations to a type with a finer unit. A value out of its range becomes the first or last one
    of the type.
    """
    try:
        return pc.cast(values, type)
    except pa.ArrowInvalid:
        if isinstance(values, pa.Scalar):
            return times_within(broadcast(values, 1), type)[0]
    steps = _steps_of_day(type) // _steps_of_day(values.type)
    ticks, most = integers(values).astype(np.int64), (2**63 - 1) // steps
    made = np.where(ticks > most, 2**63 - 1, np.where(ticks < -most, -(2**63), ticks * steps))
    return integer_array(made, type, values)


def _steps_of_day(type: pa.DataType) -> int:
    if pa.types.is_date(type):
        return 1 if pa.types.is_date32(type) else 86_400_000
    return 86_400 * PER_SECOND[type.unit]


def _held(value: pa.Scalar, type: pa.DataType) -> pa.Scalar:
    return _cast(broadcast(value, 1), type)[0]


def _cast(values: pa.Array, type: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(values.type) and pa.types.is_floating(type):
        return decimal_floats(values, type)
    if _rescales(values.type, type):
        return upscaled(values, type)
    return pc.cast(values, type, safe=_are_times(values.type, type))


def adapted(node: Compiled, type: pa.DataType) -> Compiled | None:
    """Converts a plain literal to `type`. Returns None if the type cannot hold the literal's value exactly."""
    value = node.value.as_py()
    if value is None:
        return constant(scalar_of(None, type))
    integer, floating = is_int(value), isinstance(value, float)
    if integer and pa.types.is_integer(type):
        low, high = integer_range(type)
        return constant(scalar_of(value, type)) if low <= value <= high else None
    if (integer or floating) and pa.types.is_floating(type):
        return constant(_held(node.value, type))
    is_point = isinstance(value, datetime.date) and pa.types.is_timestamp(type)
    if is_point or (isinstance(value, datetime.timedelta) and pa.types.is_duration(type)):
        try:
            return constant(_held(node.value, type))
        except pa.ArrowInvalid:  # the type is too coarse, or its range too small
            return None
    return None


def unified(
    expr: Expr, nodes: Sequence[Compiled], to: Callable[[Compiled, pa.DataType], Compiled] = to_type
) -> list[Compiled]:
    """Converts the nodes to one common type: that of the columns, if it can hold all plain literals. Raises UserError
    if there is no common type. `to`: the function that converts.
    """
    type: pa.DataType | None = pa.null()
    for node in nodes:
        if not node.plain and type is not None:
            type = common_type(type, node.type)
    adapts = type is not None and not pa.types.is_null(type)
    for node in nodes:
        if node.plain and type is not None and not (adapts and adapted(node, type) is not None):
            value = node.value.as_py()
            narrow = is_int(value) and pa.types.is_integer(type)
            type = common_type(type, literal_integer(value, type) if narrow else node.type)
    if type is None:
        raise misfit(expr, nodes)
    return [(adapted(node, type) if node.plain else None) or to(node, type) for node in nodes]


def all_numbers(nodes: Sequence[Compiled]) -> bool:
    return all(is_number(node.type) or pa.types.is_null(node.type) for node in nodes)


def number(expr: Expr, node: Compiled) -> Compiled:
    """Returns the node of a number; a column of nulls becomes int64. Raises UserError for bool and all types that are
    no numbers.
    """
    if pa.types.is_null(node.type):
        return to_type(node, pa.int64())
    if not is_number(node.type) or pa.types.is_boolean(node.type):
        raise misfit(expr, [node])
    return node
