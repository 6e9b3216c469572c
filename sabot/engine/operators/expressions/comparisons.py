"""Expressions that are true or false: comparisons, membership and logic. Operations on bits are here too, since they
have the operators of logic.
"""

import decimal
import functools
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.compare import LITERALS, LiteralSet, equal_literal
from sabot.api.expr import Expr
from sabot.api.expr.time import reads_as_moment
from sabot.base.arrays import floats, integer_range, where
from sabot.engine.operators.expressions.casts import common_type
from sabot.engine.operators.expressions.node import (
    Compiled,
    Function,
    Steps,
    adapted,
    apply,
    carefully,
    computed_for,
    constant,
    is_int,
    to_compare,
    to_type,
    true_where,
    unified,
    with_branches,
)
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MOST_DIGITS = 76  # the most digits of a decimal256
_BITS = {"&": pc.bit_wise_and, "|": pc.bit_wise_or, "^": pc.bit_wise_xor}
_LOGIC = {"&": pc.and_kleene, "|": pc.or_kleene, "^": pc.xor}


def _logic(expr: Expr, nodes: list[Compiled]) -> Compiled:
    types = [node.type for node in nodes]
    if all(pa.types.is_boolean(type) or pa.types.is_null(type) for type in types):
        left, right = (to_type(node, pa.bool_()) for node in nodes)
        both = apply(expr, _LOGIC[expr.kind], left, right)
        return both if expr.kind == "^" else with_branches(both, partial(_decided, expr.kind, left, right))
    if all(pa.types.is_integer(type) or pa.types.is_null(type) for type in types):
        return apply(expr, _BITS[expr.kind], *unified(expr, nodes))
    raise UserError(
        f"{expr.text()} cannot be computed: {expr.kind} of {types[0]} and {types[1]}",
        hint='both sides must be true or false, or integers; & binds tighter than >, so write (col("a") > 1) & (col("b") < 2)',
    )


def _decided(kind: str, left: Compiled, right: Compiled, data: pa.RecordBatch) -> pa.Array:
    """Returns `left & right` or `left | right`. The right side is computed for rows that the left one does not decide."""
    found = carefully(left, data)
    undecided = true_where(found) if kind == "&" else pc.invert(true_where(found))
    if found.null_count:
        undecided = pc.or_(undecided, found.is_null())
    return _LOGIC[kind](found, computed_for(right, data, undecided))


def _not(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_integer(node.type):
        return apply(expr, pc.bit_wise_not, node)
    return apply(expr, pc.invert, to_type(node, pa.bool_()) if pa.types.is_null(node.type) else node)


def _comparison(expr: Expr, nodes: list[Compiled]) -> Compiled:
    _warn_of_moments(expr, nodes)
    pair = comparable(expr, nodes)
    return apply(expr, comparison_of(expr.kind, *pair), *pair)


def _warn_of_moments(expr: Expr, nodes: Sequence[Compiled]) -> None:
    """Warns of texts that are compared with the text of a time: 'T' and ' ' between date and hour are not equal."""
    if not all(pa.types.is_string(node.type) for node in nodes) or all(node.value is not None for node in nodes):
        return
    given = [node.value.as_py() for node in nodes if node.value is not None]
    asked = next(each for each, node in zip(expr.inputs, nodes, strict=True) if node.value is None)
    _warn_of_texts(asked, given)


def _warn_of_texts(asked: Expr, given: Sequence[Any]) -> None:
    moment = next((each for each in given if isinstance(each, str) and reads_as_moment(each)), None)
    if moment is not None:
        _warn_of_moment(asked.text(), moment)


@functools.cache  # an expression is compiled in each task
def _warn_of_moment(asked: str, moment: str) -> None:
    _log.warning(
        "%s is a text and is compared with '%s' character by character, so that '2024-01-01T08:00' is greater than any "
        "'2024-01-01 08:…'; compare times: %s.str.to_datetime(), in SQL CAST(… AS TIMESTAMP(3))",
        asked,
        moment,
        asked,
    )


def comparable(expr: Expr, nodes: Sequence[Compiled]) -> list[Compiled]:
    """Converts the nodes to one type in which they can be compared. Raises UserError if there is none."""
    kinds = {node.type for node in nodes}
    if pa.uint64() in kinds and all(pa.types.is_integer(kind) for kind in kinds) and _adapts(nodes) is None:
        return [to_type(node, pa.decimal128(20, 0)) for node in nodes]
    if any(not node.plain and pa.types.is_decimal(node.type) for node in nodes):
        nodes = _as_written(nodes)
    made = unified(expr, nodes, to_compare)
    return [to_type(node, pa.int64()) for node in made] if pa.types.is_null(made[0].type) else made


def _as_written(nodes: Sequence[Compiled]) -> list[Compiled]:
    """Converts literal floats that are compared with decimals: 3.3 becomes the decimal 3.3, and not the float nearest
    to 3.3.

    A literal stays a float if a column of floats takes part, or if no decimal of 76 digits can hold both the literal
    and the other values. The decimals are then compared by their nearest floats, with the same result.
    """
    made = [_written(node) for node in nodes]
    type: pa.DataType | None = pa.null()
    for node in made:
        type = None if type is None else common_type(type, node.type)
    types = [node.type for node in made if not pa.types.is_null(node.type)]
    parts = [(each.precision, each.scale) if pa.types.is_decimal(each) else (20, 0) for each in types]
    digits = max(precision - scale for precision, scale in parts) + max(scale for _, scale in parts)
    return made if digits <= _MOST_DIGITS and type is not None and pa.types.is_decimal(type) else list(nodes)


def _written(node: Compiled) -> Compiled:
    """Converts a literal float to the decimal with the same digits, if it has at most 76. Returns any other node as
    it is.
    """
    value = node.value.as_py() if node.plain else None
    if not isinstance(value, float) or not math.isfinite(value):
        return node
    written = decimal.Decimal(repr(value))
    plain = format(written, "f")  # all digits of 1E+20, because scales are not negative
    digits = sum(map(str.isdigit, plain))
    return constant(pa.scalar(decimal.Decimal(plain))) if digits <= _MOST_DIGITS else node


def _adapts(nodes: Sequence[Compiled]) -> pa.DataType | None:
    """Returns the type in which these integers can be compared, or None if there is none: because a column of signed
    and one of unsigned 64-bit integers take part, or because the columns' type cannot hold a literal.
    """
    type: pa.DataType | None = pa.null()
    for node in nodes:
        if not node.plain and type is not None:
            type = common_type(type, node.type)
    if type is None or all(not node.plain or adapted(node, type) is not None for node in nodes):
        return type
    return None


def comparison_of(kind: str, a: Compiled, b: Compiled) -> Function:
    """Returns the function that compares two nodes. NaN equals NaN and is greater than all numbers.

    Comparisons of Arrow are false for NaN. If one side cannot be NaN, an inverted comparison gives the right result:
    x > 5 is computed as not x <= 5.
    """
    plain: Function = _COMPARE[kind]
    if kind in ("==", "!=") and is_bytes(a.type) and (a.value is None) != (b.value is None):
        return _literal_equality(kind, a, b)
    if not pa.types.is_floating(a.type) or _never_nan(a, b, kind in ("==", "!=")):
        return plain
    if _no_nan(b):
        return _inverted({">": pc.less_equal, ">=": pc.less}[kind]) if kind in (">", ">=") else plain
    if _no_nan(a):
        return _inverted({"<": pc.greater_equal, "<=": pc.greater}[kind]) if kind in ("<", "<=") else plain
    aware: dict[str, Function] = {
        "==": _equal,
        "!=": lambda x, y: pc.invert(_equal(x, y)),
        ">": _greater,
        ">=": _at_least,
        "<": lambda x, y: _greater(y, x),
        "<=": lambda x, y: _at_least(y, x),
    }
    careful = aware[kind]
    return lambda x, y: plain(x, y) if _without_nan(x) and _without_nan(y) else careful(x, y)


def _without_nan(values: Any) -> bool:
    """Returns True if no value is NaN. A NaN in the memory behind a null counts too."""
    return isinstance(values, pa.Array) and not np.isnan(floats(values)).any()


def is_bytes(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_binary(type))


def _literal_equality(kind: str, a: Compiled, b: Compiled) -> Function:
    """Returns the function that compares strings with a constant."""
    constant = a.value if b.value is None else b.value
    if not constant.is_valid:
        unknown: Function = _COMPARE[kind]
        return unknown
    wanted = constant.as_buffer().to_pybytes()

    def same(x: Any, y: Any) -> pa.Array:
        return equal_literal(y if isinstance(x, pa.Scalar) else x, wanted)

    return same if kind == "==" else lambda x, y: pc.invert(same(x, y))


def _inverted(function: Function) -> Function:
    return lambda x, y: pc.invert(function(x, y))


def _never_nan(a: Compiled, b: Compiled, equality: bool) -> bool:
    return (equality and (_no_nan(a) or _no_nan(b))) or (_no_nan(a) and _no_nan(b))


def _no_nan(node: Compiled) -> bool:
    return node.value is not None and not (node.value.is_valid and math.isnan(node.value.as_py()))


def _equal(x: Any, y: Any) -> Any:
    return pc.or_(pc.equal(x, y), pc.and_(pc.is_nan(x), pc.is_nan(y)))


def _greater(x: Any, y: Any) -> Any:
    return pc.and_(pc.invert(pc.less_equal(x, y)), pc.invert(pc.is_nan(y)))


def _at_least(x: Any, y: Any) -> Any:
    return pc.or_(pc.greater_equal(x, y), pc.is_nan(x))


def _between(expr: Expr, nodes: list[Compiled]) -> Compiled:
    _warn_of_moments(expr, nodes)
    value, lower, upper = comparable(expr, nodes)
    closed = expr.option("closed")
    above = comparison_of(">=" if closed in ("both", "left") else ">", value, lower)
    below = comparison_of("<=" if closed in ("both", "right") else "<", value, upper)
    return apply(expr, lambda x, low, high: pc.and_kleene(above(x, low), below(x, high)), value, lower, upper)


def _is_in(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    given = [value for value in expr.option("values") if value is not None and not _never_in(value, node.type)]
    if pa.types.is_string(node.type):
        _warn_of_texts(expr.inputs[0], given)
    try:
        values = by_value(literal_array(given, node.type))
    except (TypeError, OverflowError, ValueError) as error:
        raise UserError(f"{expr.text()} cannot be computed: the column is {node.type}: {error}") from error
    if is_bytes(node.type) and len(values) <= LITERALS:
        return apply(expr, LiteralSet(value.as_buffer().to_pybytes() for value in values).holds, node)

    def found(x: Any) -> Any:
        made = pc.is_in(by_value(x), value_set=values)
        return where(pc.is_valid(x), made) if x.null_count else made

    return apply(expr, found, node)


def _never_in(value: Any, type: pa.DataType) -> bool:
    """Returns True for an integer that a column of integers cannot hold, so that it equals no value of the column."""
    if not is_int(value) or not pa.types.is_integer(type):
        return False
    low, high = integer_range(type)
    return not low <= value <= high


def literal_array(values: list[Any], type: pa.DataType) -> pa.Array:
    """Returns values as an array of a column's type. Raises TypeError, OverflowError or ValueError for a value that
    the type cannot hold exactly. (pyarrow would cut off 1.5 to an integer, and a time to whole seconds or days.)
    """
    made = pa.array(values, type)
    if pa.types.is_integer(type) and made.to_pylist() != values:
        raise ValueError("not all values are integers")
    for value, kept in zip(values, made, strict=True) if pa.types.is_temporal(type) else ():
        own = pa.scalar(value)
        if pa.types.is_temporal(own.type) and kept.cast(own.type) != own:
            raise ValueError(f"{value} has digits that {type} has not")
    return made


def by_value(values: pa.Array) -> pa.Array:
    """Returns floats with equal bits where they are equal: 0.0 for -0.0, and one NaN (0.0 / 0.0 has another sign).
    pyarrow looks values up by their bits. Values of other types are returned unchanged.
    """
    if values.type not in (pa.float32(), pa.float64()):
        return values
    return pc.if_else(pc.is_nan(values), pa.scalar(math.nan, values.type), pc.add(values, pa.scalar(0, values.type)))


STEPS: Steps = {
    **dict.fromkeys(["==", "!=", "<", "<=", ">", ">="], _comparison),
    **dict.fromkeys(["&", "|", "^"], _logic),
    "not": _not,
    "is_in": _is_in,
    "between": _between,
}
