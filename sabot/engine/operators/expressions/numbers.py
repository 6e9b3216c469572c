"""Expressions of numbers: arithmetic (of times and durations too), powers, rounding."""

import decimal
import functools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import (
    broadcast,
    decimal_array,
    decimal_integers,
    decimal_type,
    floats,
    integer_array,
    integers,
    where,
)
from sabot.engine.operators.expressions.casts import common_type, is_number
from sabot.engine.operators.expressions.node import (
    FALSE,
    Compiled,
    Function,
    Steps,
    adapted,
    all_numbers,
    apply,
    constant,
    is_int,
    misfit,
    number,
    to_type,
    unified,
)
from sabot.engine.operators.expressions.rounding import round_decimals, round_to
from sabot.errors import UserError

_MOST_DIGITS = 76  # the most digits of a decimal256
_DIGITS_OF_128 = 38  # of a decimal128

_ARITHMETIC = {"+": pc.add, "-": pc.subtract, "*": pc.multiply, "/": pc.divide}
# A time that does not fit raises ArrowInvalid; numbers wrap.
_OF_TIMES = {"+": pc.add_checked, "-": pc.subtract_checked, "*": pc.multiply_checked, "/": pc.divide}


def _arithmetic(expr: Expr, nodes: list[Compiled]) -> Compiled:
    kind = expr.kind
    texts = [pa.types.is_string(node.type) for node in nodes]
    if (
        kind == "+"
        and any(texts)
        and all(is_text or pa.types.is_null(n.type) for is_text, n in zip(texts, nodes, strict=True))
    ):
        return apply(expr, lambda a, b: pc.binary_join_element_wise(a, b, ""), *unified(expr, nodes))
    if not all_numbers(nodes):
        return _temporal(expr, nodes)
    if kind == "**":
        return _power(expr, *nodes)
    if (
        kind != "/"
        and any(pa.types.is_boolean(n.type) for n in nodes)
        and any(pa.types.is_decimal(n.type) for n in nodes)
    ):
        raise misfit(expr, nodes)
    nodes = _counted(nodes)
    if (
        kind == "*"
        and any(pa.types.is_decimal(n.type) for n in nodes)
        and not any(pa.types.is_floating(n.type) for n in nodes)
    ):
        factors = [_decimal(node) for node in nodes]
        if sum(each.type.precision for each in factors) == _MOST_DIGITS and factors[0].type.bit_width > 128:
            return apply(expr, _whole_product, *factors)
        digits, scale = sum(each.type.precision for each in factors) + 1, sum(each.type.scale for each in factors)
        return apply(expr, _within_38_digits(pc.multiply, factors, digits, scale), *factors)
    nodes = unified(expr, [_fraction(node, nodes) for node in nodes] if kind == "/" else _beside_literals(nodes))
    type = nodes[0].type
    if kind in "+-" and pa.types.is_decimal(type):
        compute = _within_38_digits(_ARITHMETIC[kind], nodes, type.precision + 1, type.scale)
        return apply(expr, compute, *nodes)
    if kind in _ARITHMETIC:
        return apply(expr, _ARITHMETIC[kind], *nodes)
    if pa.types.is_integer(type):
        divide = np.floor_divide if kind == "//" else np.remainder
        return apply(expr, functools.partial(_divided, divide, type), *nodes)
    if kind == "%" and pa.types.is_decimal(type):
        return apply(expr, functools.partial(_decimal_remainder, type), *nodes)
    if not pa.types.is_floating(type):
        raise misfit(expr, nodes)
    return apply(expr, _floor_divided if kind == "//" else _remainder, *nodes)


def _counted(nodes: list[Compiled]) -> list[Compiled]:
    """Converts bools to int64 if no node is a number, and nulls to int64. If one node is a number, later steps
    convert the others to its type.
    """
    has_number = any(not node.plain and is_number(node.type) and not pa.types.is_boolean(node.type) for node in nodes)
    return [
        to_type(node, pa.int64())
        if (pa.types.is_boolean(node.type) and not has_number) or (pa.types.is_null(node.type) and not node.plain)
        else node
        for node in nodes
    ]


def _beside_literals(nodes: list[Compiled]) -> list[Compiled]:
    """Converts integers that are computed with an integer literal to at least 32 bits with a sign, so that 64 * 1000
    of an int16 is 64,000, and 3 - 5 of a uint32 is -2. Integers of 64 bits keep their type.
    """
    if not any(node.plain and is_int(node.value.as_py()) for node in nodes):
        return nodes
    narrow = [not node.plain and pa.types.is_integer(node.type) and node.type.bit_width < 64 for node in nodes]
    types = [
        common_type(node.type, pa.int32()) if is_narrow else None for node, is_narrow in zip(nodes, narrow, strict=True)
    ]
    return [node if type is None else to_type(node, type) for node, type in zip(nodes, types, strict=True)]


def _decimal(node: Compiled) -> Compiled:
    if pa.types.is_decimal(node.type):
        return node
    literal = node.plain and node.value.is_valid
    return constant(pa.scalar(decimal.Decimal(node.value.as_py()))) if literal else to_type(node, pa.decimal128(20, 0))


def _fraction(node: Compiled, nodes: list[Compiled]) -> Compiled:
    """Converts an operand of `/`. A float is unchanged. If the other operand is a column of float32, a literal or an
    integer of at most 16 bits becomes float32. Everything else becomes float64.
    """
    if pa.types.is_floating(node.type):
        return node
    beside_float32 = any(not each.plain and each.type == pa.float32() for each in nodes)
    narrow = node.plain or (pa.types.is_integer(node.type) and node.type.bit_width <= 16)
    return to_type(node, pa.float32() if beside_float32 and narrow else pa.float64())


def _divided(divide: Any, type: pa.DataType, a: Any, b: Any) -> pa.Array:
    """Divides integers, rounding down. Division by 0 gives null."""
    nulls = None
    if isinstance(b, pa.Scalar):
        if not b.is_valid or b.as_py() == 0:
            return pa.nulls(len(a), type)
        divisor: Any = np.array(b.as_py(), dtype=str(type))
    else:
        divisor = integers(b)
        zero = divisor == 0
        if zero.any():
            nulls = zero
    number: Any = integers(a) if isinstance(a, pa.Array) else np.array(a.as_py() or 0, dtype=str(type))
    with np.errstate(divide="ignore", over="ignore"):
        return integer_array(divide(number, divisor), type, a, b, nulls=nulls)


def _within_38_digits(compute: Any, nodes: list[Compiled], digits: int, scale: int) -> Function:
    """Returns a function that computes decimals of 128 bits whose results may have more digits than the 38 that such a decimal has. It
    gives decimals with 38 digits, and raises ArrowInvalid for a value with more.
    """
    if digits <= _DIGITS_OF_128 or scale > _DIGITS_OF_128 or any(node.type.bit_width > 128 for node in nodes):
        return compute  # type: ignore[no-any-return]
    if digits > _MOST_DIGITS:
        compute = _whole_product

    def computed(a: Any, b: Any) -> Any:
        wide = (pc.cast(each, pa.decimal256(each.type.precision, each.type.scale)) for each in (a, b))
        return pc.cast(compute(*wide), pa.decimal128(_DIGITS_OF_128, scale))

    return computed


def _whole_product(a: Any, b: Any) -> pa.Array:
    """Returns the product of decimals of 256 bits whose digits are 76 together. pyarrow's type for it would have one more, so it
    multiplies them only if the values of one side have a digit less than their type.
    """
    type = pa.decimal256(_MOST_DIGITS, a.type.scale + b.type.scale)
    for narrow, wide in ((a, b), (b, a)):
        try:
            less = pc.cast(narrow, pa.decimal256(narrow.type.precision - 1, narrow.type.scale))
        except pa.ArrowInvalid:
            continue
        return pc.cast(pc.multiply(less, wide), type)
    rows = len(a) if isinstance(a, pa.Array) else len(b)
    a, b = broadcast(a, rows), broadcast(b, rows)
    product = decimal_integers(a, room=0).astype(object) * decimal_integers(b, room=0).astype(object)
    return decimal_array(product, type, where(pc.and_(a.is_valid(), b.is_valid()), a))


def _decimal_remainder(type: pa.DataType, a: Any, b: Any) -> pa.Array:
    """Returns what is left of a division of decimals of one type that rounds down. Division by 0 gives null."""
    rows = len(a) if isinstance(a, pa.Array) else len(b)
    a, b = broadcast(a, rows), broadcast(b, rows)
    divisor = decimal_integers(b, room=0)
    zero = divisor == 0
    rest = decimal_integers(a, room=0) % np.where(zero, 1, divisor)
    return decimal_array(rest, type, where(pa.array(~zero & b.is_valid()), a))


def _floor_divided(a: Any, b: Any) -> Any:
    return pc.floor(pc.divide(a, b))


def _remainder(a: Any, b: Any) -> Any:
    return pc.subtract(a, pc.multiply(pc.floor(pc.divide(a, b)), b))


def _float_remainder(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of the remainder of SQL, of a division that cuts off: it has the sign of the dividend, and is exact,
    where a - floor(a / b) * b loses all digits of a number far below b.
    """

    def rest(a: Any, b: Any) -> pa.Array:
        rows = len(a) if isinstance(a, pa.Array) else len(b)
        a, b = broadcast(a, rows), broadcast(b, rows)
        with np.errstate(all="ignore"):
            made = pa.array(np.fmod(floats(a), floats(b)), a.type)
        return where(pc.and_(a.is_valid(), b.is_valid()), made) if a.null_count or b.null_count else made

    return apply(expr, rest, *unified(expr, [number(expr, node) for node in nodes]))


def _power(expr: Expr, base: Compiled, exponent: Compiled) -> Compiled:
    base, exponent = _beside_literals([base, exponent])
    if any(pa.types.is_boolean(node.type) for node in (base, exponent)):
        raise misfit(expr, (base, exponent))
    if pa.types.is_decimal(base.type):
        base = to_type(base, pa.float64())
    if pa.types.is_null(base.type) or pa.types.is_null(exponent.type):
        base, exponent = (
            to_type(node, pa.int64()) if pa.types.is_null(node.type) else node for node in (base, exponent)
        )
    if pa.types.is_integer(base.type) and pa.types.is_integer(exponent.type):
        if exponent.value is not None and exponent.value.is_valid and exponent.value.as_py() < 0:
            raise UserError(
                f"{expr.text()} has a negative exponent, so it is not an integer",
                hint='cast the base: .cast("float64") ** …',
            )
        wide = pa.uint64() if pa.types.is_unsigned_integer(base.type) else pa.int64()
        type = base.type

        def integer_power(a: Any, b: Any) -> Any:
            """The power of integers, which wraps; null where the exponent is negative."""
            if isinstance(b, pa.Array) and pa.types.is_signed_integer(b.type):
                b = where(pc.greater_equal(b, pa.scalar(0, b.type)), b)
            made = pc.power(pc.cast(a, wide, safe=False), pc.cast(b, wide, safe=False))
            return pc.cast(made, type, safe=False)

        return apply(expr, integer_power, base, exponent)
    type = base.type if pa.types.is_floating(base.type) and not base.plain else exponent.type
    if not pa.types.is_floating(type) or (exponent.plain and type != base.type):
        type = pa.float64()
    return apply(expr, pc.power, to_type(base, type), to_type(exponent, type))


def _temporal(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of arithmetic with times and durations. pyarrow decides which types may be combined."""
    if expr.kind not in _ARITHMETIC:
        raise misfit(expr, nodes)
    left, right = nodes
    for one, other in ((left, right), (right, left)):
        if one.plain and pa.types.is_timestamp(other.type) and pa.types.is_duration(one.type):
            fitting = adapted(one, pa.duration(other.type.unit)) or one
            left, right = (fitting, right) if one is left else (left, fitting)
    if pa.types.is_temporal(left.type) and common_type(left.type, right.type) is not None:
        left, right = unified(expr, [left, right])
    if expr.kind == "/" and pa.types.is_duration(left.type) and pa.types.is_integer(right.type):
        return apply(expr, _duration_divided, left, right)
    return apply(expr, _OF_TIMES[expr.kind], left, right)


def _duration_divided(a: Any, b: Any) -> Any:
    """Divides a duration by an integer. Division by 0 gives null, as for integers."""
    if isinstance(b, pa.Scalar):
        b = b if b.as_py() != 0 else pa.scalar(None, b.type)
    elif not np.all(integers(b)):
        b = where(pc.not_equal(b, pa.scalar(0, b.type)), b)
    return pc.divide(a, b)


def _negative(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_unsigned_integer(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {node.type} has no sign", hint='.cast("int64") first')
    return apply(expr, pc.negate, node if pa.types.is_duration(node.type) else number(expr, node))


def _absolute(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    return apply(expr, pc.abs, node if pa.types.is_duration(node.type) else number(expr, node))


def _rounded(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = number(expr, nodes[0])
    if pa.types.is_integer(node.type):
        return node
    if expr.kind == "round":
        away = dict(expr.options).get("mode") == "half_away_from_zero"
        return apply(expr, functools.partial(round_to, digits=expr.option("decimals"), away=away), node)
    if pa.types.is_decimal(node.type):
        return apply(expr, functools.partial(round_decimals, digits=0, kind=expr.kind), node)
    return apply(expr, pc.floor if expr.kind == "floor" else pc.ceil, node)


def _of_floats(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = number(expr, nodes[0])
    node = node if pa.types.is_floating(node.type) else to_type(node, pa.float64())
    return apply(expr, _OF_FLOATS.get(expr.kind) or _logarithm(expr, node), node)


_OF_FLOATS: dict[str, Function] = {
    "sqrt": pc.sqrt,
    "exp": pc.exp,
    **{name: getattr(pc, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")},
    "is_nan": pc.is_nan,
    "is_finite": pc.is_finite,
    "is_infinite": pc.is_inf,
}


def _angle(expr: Expr, nodes: list[Compiled]) -> Compiled:
    y, x = (to_type(number(expr, node), pa.float64()) for node in nodes)
    return apply(expr, pc.atan2, y, x)


def _logarithm(expr: Expr, node: Compiled) -> Function:
    known: dict[float, Function] = {math.e: pc.ln, 2.0: pc.log2, 10.0: pc.log10}
    base = expr.option("base")
    return known.get(base) or (lambda x: pc.divide(pc.ln(x), pa.scalar(math.log(base), node.type)))


def _fill_nan(expr: Expr, nodes: list[Compiled]) -> Compiled:
    number(expr, nodes[0])
    if not pa.types.is_floating(nodes[0].type):
        return nodes[0]
    return apply(expr, lambda x, value: pc.if_else(pc.is_nan(x), value, x), *unified(expr, nodes))


def _sign(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = number(expr, nodes[0])
    type = node.type
    if not pa.types.is_decimal(type):
        return apply(expr, lambda x: pc.cast(pc.sign(x), type), node)
    scale = max(type.scale, 0)
    # has room for one digit before the point
    type = decimal_type(min(max(type.precision, scale + 1), _MOST_DIGITS), scale)
    kind = np.dtype("int64" if scale <= 18 else object)
    return apply(expr, lambda x: decimal_array(integers(pc.sign(x)).astype(kind) * 10**scale, type, x), node)


def _clip(expr: Expr, nodes: list[Compiled]) -> Compiled:
    if not (is_number(nodes[0].type) or pa.types.is_temporal(nodes[0].type) or pa.types.is_null(nodes[0].type)):
        raise misfit(expr, nodes)
    nodes = unified(expr, nodes)

    def clipped(x: Any, lower: Any, upper: Any) -> Any:
        for bound, beyond in ((lower, pc.less), (upper, pc.greater)):
            if not isinstance(bound, pa.Scalar) or bound.is_valid:
                x = pc.if_else(pc.coalesce(beyond(x, bound), FALSE), bound, x)
        return x

    return apply(expr, clipped, *nodes)


STEPS: Steps = {
    **dict.fromkeys(["+", "-", "*", "/", "//", "%", "**"], _arithmetic),
    "neg": _negative,
    "abs": _absolute,
    **dict.fromkeys(["round", "floor", "ceil"], _rounded),
    **dict.fromkeys([*_OF_FLOATS, "log"], _of_floats),
    "atan2": _angle,
    "fill_nan": _fill_nan,
    "fmod": _float_remainder,
    "sign": _sign,
    "clip": _clip,
}
