"""Arithmetic of SQL, and the functions of numbers."""

import math
from collections.abc import Callable
from decimal import Decimal
from operator import and_, or_

import pyarrow as pa

from sabot.api.expr import Expr, instant, lit, max_horizontal, when
from sabot.sql.functions.arguments import CallArguments, balanced
from sabot.sql.functions.conversions import AWAY, MOST_DIGITS, cast, is_number, roomy
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import SqlFault
from sabot.sql.zones import UTC, is_local


def beside(left: TypedExpr, right: TypedExpr) -> tuple[TypedExpr, TypedExpr]:
    """Returns two operands whose constant is a plain literal if the other one decides the type: BIGINT + 1, FLOAT * 2.
    A constant is an INT, and decides beside narrower numbers: SMALLINT * 1000 is an INT. A FLOAT beside a whole number
    makes a FLOAT of both.
    """
    if left.type == pa.float32() and pa.types.is_integer(right.type):
        return left, _beside(right, left)
    if right.type == pa.float32() and pa.types.is_integer(left.type):
        return _beside(left, right), right
    return (_beside(left, right), right) if left.expr.kind == "lit" else (left, _beside(right, left))


def _beside(one: TypedExpr, other: TypedExpr) -> TypedExpr:
    is_whole_number = pa.types.is_integer(one.type)
    if is_whole_number and one.expr.kind == "lit" and other.expr.kind != "lit" and is_number(other.type):
        narrower = pa.types.is_integer(other.type) and other.type.bit_width < one.type.bit_width
        return one if narrower else TypedExpr(lit(one.expr.option("value")), one.type)
    if is_whole_number and other.type == pa.float32():
        return TypedExpr(one.expr.cast(other.type), other.type)
    return one


def divided(operator: str, left: TypedExpr, right: TypedExpr, *, positive: bool = False) -> Expr:
    """Returns `/` or `%` of Flink: `/` of integers and `%` of all numbers truncate towards zero (the engine's `//` and `%` round down).
    `positive`: True if the divisor is known to be greater than 0.
    """
    a, b = left.expr, right.expr
    if not all(map(is_number, (left.type, right.type))):
        return a / b if operator == "/" else a % b
    if operator == "/" and not all(pa.types.is_integer(each.type) for each in (left, right)):
        return a / b
    if any(pa.types.is_floating(each.type) for each in (left, right)):
        return Expr("fmod", (a, b))
    quotient, rest = a // b, a % b
    positive = positive or (right.expr.kind == "lit" and right.expr.option("value") > 0)
    apart = (rest != 0) & ((a < 0) if positive else (a < 0) ^ (b < 0))
    whole = all(pa.types.is_integer(each.type) for each in (left, right))
    narrow = whole and left.type.bit_width < 64 and right.type.bit_width < 64  # else a literal has 64 bits by itself
    one, nothing = (lit(each, left.type if narrow else None) for each in (1, 0))
    if operator == "/":
        return quotient + when(apart).then(one).otherwise(nothing)
    return rest - when(apart).then(b).otherwise(nothing)


_KEPT_DIGITS = 6  # the digits behind the point that a product keeps, if those in front of it have no room


def product(left: TypedExpr, right: TypedExpr) -> Expr:
    """Returns `*`. A product of decimals with more than 38 digits gives up digits behind the point down to 6, as Flink's:

    DECIMAL(38, 18) * DECIMAL(38, 18)   DECIMAL(38, 6)
    """
    types = [each.type for each in (left, right)]
    if not all(map(pa.types.is_decimal, types)):
        return left.expr * right.expr
    digits, scale = sum(each.precision for each in types), sum(each.scale for each in types)
    kept = max(MOST_DIGITS - (digits - scale), min(scale, _KEPT_DIGITS))
    if digits <= MOST_DIGITS or kept >= scale:
        return left.expr * right.expr
    wide = [each.expr.cast(pa.decimal256(each.type.precision, each.type.scale)) for each in (left, right)]
    return (wide[0] * wide[1]).round(kept, mode=AWAY).cast(pa.decimal128(MOST_DIGITS, kept))


def mod(arguments: CallArguments) -> Expr:
    return divided("%", *beside(arguments.bound(0), arguments.bound(1)))


_TRUNCATED = {
    **{"SECOND": "1s", "MINUTE": "1m", "HOUR": "1h", "DAY": "1d", "WEEK": "1w"},
    **{"MONTH": "1mo", "QUARTER": "1q", "YEAR": "1y"},
}


def rounded(method: str, arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        expr, type = arguments.bound(0)
        if not pa.types.is_decimal(type):
            return getattr(expr, method)()  # type: ignore[no-any-return]
        whole = getattr(roomy(expr, type), method)()
        return whole.cast(pa.decimal128(type.precision, 0)) if type.scale else expr
    unit = arguments.word(1)
    every = _TRUNCATED.get(unit)
    expr, type = arguments.bound(0)
    if pa.types.is_time(type):
        return _time_of_day(method, arguments, unit, expr, type)
    if every is None:
        name = arguments.call.name.text.upper()
        message = f"{name}(… TO {unit}) is not supported"
        raise SqlFault(arguments.items[1].tree.span, message, f"there are {', '.join(_TRUNCATED)}")
    time = arguments.clock(0)
    made = time.dt.date_trunc(every)
    if method == "ceil":
        made = when(made == time).then(made).otherwise(made.dt.offset_by(every))
    is_instant = is_local(arguments.bound(0).type) and arguments.zone != UTC
    return instant(made, arguments.zone) if is_instant else made


_SECONDS = {"HOUR": 3600, "MINUTE": 60, "SECOND": 1}
_OF_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _time_of_day(method: str, arguments: CallArguments, unit: str, expr: Expr, type: pa.DataType) -> Expr:
    """Returns a TIME at the begin of its hour, minute or second, or of the next one; that behind the last one of a day is 00:00."""
    if unit not in _SECONDS:
        message = f"{arguments.call.name.text.upper()}(… TO {unit}) of a TIME is not supported"
        raise SqlFault(arguments.items[1].tree.span, message, f"there are {', '.join(_SECONDS)}")
    size, day = _SECONDS[unit] * _OF_SECOND[type.unit], 86_400 * _OF_SECOND[type.unit]
    since = expr.cast("int64") + (size - 1 if method == "ceil" else 0)
    return ((since - since % size) % day).cast("int32" if type.bit_width == 32 else "int64").cast(type)


def to_digits(arguments: CallArguments) -> Expr:
    digits = arguments.whole(1, "the number of digits") if len(arguments) > 1 else 0
    expr, type = arguments.bound(0)
    if digits < 0 and pa.types.is_integer(type):
        return expr.cast("decimal(20, 0)").round(digits, mode=AWAY).cast(type)
    if not pa.types.is_decimal(type):
        return expr.round(digits, mode=AWAY)
    if digits >= type.scale:
        return expr
    kept = max(digits, 0)
    precision = min(type.precision - type.scale + kept + 1, MOST_DIGITS)
    return roomy(expr, type).round(digits, mode=AWAY).cast(pa.decimal128(precision, kept))


def truncated(arguments: CallArguments) -> Expr:
    """Returns a number without the digits behind these, cut off towards zero."""
    digits = arguments.whole(1, "the number of digits") if len(arguments) > 1 else 0
    expr, type = arguments.bound(0)
    if pa.types.is_floating(type):
        made = Expr("value.truncate", (_double(arguments.bound(0)), lit(digits)))
        return made if type == pa.float64() else made.cast(type)
    scale = type.scale if pa.types.is_decimal(type) else 0
    if digits >= scale or not is_number(type):
        return expr if is_number(type) else expr.round(digits)  # whose error names the type
    if not pa.types.is_decimal(type):
        if digits < -18:  # more digits than a BIGINT has
            return expr * lit(0)
        wide, unit = TypedExpr(expr.cast("int64"), pa.int64()), TypedExpr(lit(10**-digits), pa.int64())
        return (wide.expr - divided("%", wide, unit, positive=True)).cast(type)
    kept = max(digits, 0)
    unit = TypedExpr(lit(Decimal(10**-digits) if digits < 0 else Decimal(1).scaleb(-digits)), type)
    rest = divided("%", arguments.bound(0), unit, positive=True)
    return (expr - rest).cast(pa.decimal128(max(type.precision - type.scale + kept, 1), kept))


def logarithm(arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        return arguments.expr(0).log()
    return arguments.expr(1).log() / arguments.expr(0).log()


def extreme(pick: Callable[..., Expr], arguments: CallArguments) -> Expr:
    """Returns the greatest or the least argument, by `pick`; NULL if one of them is NULL."""
    bounds = [arguments.bound(i) for i in range(len(arguments))]
    units = [each.type.unit for each in bounds if is_local(each.type)]
    local = pa.timestamp(max(units, key=("s", "ms", "us", "ns").index), tz=UTC) if units else None
    exprs = [
        cast(each, local, arguments.zone, strict=True) if local is not None and each.type != local else each.expr
        for each in bounds
    ]
    nulls = balanced([each.is_null() for each in exprs], or_)
    if all(pa.types.is_boolean(each.type) or pa.types.is_null(each.type) for each in bounds):
        return when(nulls).then(lit(None)).otherwise(balanced(exprs, or_ if pick is max_horizontal else and_))
    floats = [each.expr for each in bounds if pa.types.is_floating(each.type) and each.expr.kind != "lit"]
    chosen = when(nulls).then(lit(None))
    if floats and pick is max_horizontal:  # NaN is the greatest number; the engine leaves it out
        chosen = chosen.when(balanced([each.is_nan() for each in floats], or_)).then(lit(math.nan))
    return chosen.otherwise(pick(*exprs))


def of_doubles(kind: str, arguments: CallArguments) -> Expr:
    """Returns an expression of this kind over DOUBLE values, as functions of angles have them in Flink."""
    return Expr(kind, tuple(_double(each) for each in map(arguments.bound, range(len(arguments)))))


def _double(bound: TypedExpr) -> Expr:
    return bound.expr if bound.type == pa.float64() else bound.expr.cast("float64")


def cotangent(arguments: CallArguments) -> Expr:
    return lit(1.0) / of_doubles("tan", arguments)


def in_degrees(factor: float, arguments: CallArguments) -> Expr:
    """Returns an angle times `factor`."""
    return _double(arguments.bound(0)) * lit(factor)


def power(arguments: CallArguments) -> Expr:
    """Returns POWER, which is a DOUBLE for whole numbers too, as in Flink: their powers soon exceed a BIGINT."""
    base, exponent = (
        each.expr if pa.types.is_floating(each.type) else each.expr.cast("float64")
        for each in (arguments.bound(0), arguments.bound(1))
    )
    return base**exponent
