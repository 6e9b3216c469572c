"""Every function of numbers beside Python's own, which is exact: integers that wrap, `fractions`, `decimal`, `round`, `math`.

pyarrow computes most of these functions, and not all of its kernels are right: `round` of floats from eleven digits on, and of decimals
that do not fit their type any more, came out wrong without an error.
"""

import decimal
import math
import operator
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sabot.api.expr import Expr, col
from sabot.base.arrays import decimal_type, scalar_of
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import DataError, UserError

EXACT = decimal.Context(prec=2000, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float32(), pa.float64()]
NUMBERS = settings(max_examples=40, deadline=None)

# Amounts with few digits, ties, whole numbers around 2**53, powers of two, and any pattern of bits.
floats = st.one_of(
    st.integers(-(10**7), 10**7).map(lambda cents: cents / 1000),
    st.integers(-(10**6), 10**6).map(lambda n: (n + 0.5) / 10**4),
    st.integers(-(2**55), 2**55).map(float),
    st.tuples(st.integers(2**52, 2**54), st.integers(0, 20)).map(lambda pair: pair[0] / 10.0 ** pair[1]),
    st.integers(-80, 80).map(lambda n: 2.0**n),
    st.floats(allow_nan=False, allow_infinity=False),
)
narrow = st.floats(width=32, allow_nan=False, allow_infinity=False)
whole_types = st.sampled_from(INTEGERS)
decimal_types = st.one_of(
    st.sampled_from([(10, 2), (38, 10), (38, 18), (38, 20), (5, 5), (18, 0), (1, 1), (60, 20), (76, 0), (76, 75)]),
    st.integers(1, 75).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p))),
).map(lambda pair: decimal_type(*pair))


def bounds(type: pa.DataType) -> tuple[int, int]:
    if pa.types.is_unsigned_integer(type):
        return 0, 2**type.bit_width - 1
    return -(2 ** (type.bit_width - 1)), 2 ** (type.bit_width - 1) - 1


def wrapped(value: int, type: pa.DataType) -> int:
    low, _ = bounds(type)
    return (value - low) % 2**type.bit_width + low


def integers_of(type: pa.DataType) -> st.SearchStrategy[int]:
    low, high = bounds(type)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0, 1, high - 1, low + 1]))


def decimals_of(type: pa.DataType) -> st.SearchStrategy[Decimal]:
    """Decimals of a type: any, its bounds, and quotients of ones in binary, at which pyarrow divides wrongly."""
    most = 10**type.precision - 1
    ones = st.tuples(st.integers(1, 5), st.integers(0, type.scale), st.integers(0, 9)).map(
        lambda made: min((2 ** (32 * made[0]) - 1) * 10 ** made[1] + made[2] * 10 ** max(made[1] - 1, 0), most)
    )
    return st.one_of(ones, st.integers(-most, most), st.sampled_from([most, -most, most // 2 + 1, 0, 1])).map(
        lambda digits: EXACT.scaleb(Decimal(digits), -type.scale)
    )


def evaluate(expr: Expr, **columns: pa.Array) -> list[Any]:
    batch = pa.record_batch(columns)
    values = compile_expr(expr, batch.schema)(batch)
    values.validate(full=True)
    return list(values.to_pylist())


def same(found: list[Any], expected: list[Any]) -> None:
    def bits(value: Any) -> Any:
        return "nan" if value != value else struct.pack(">d", value) if isinstance(value, float) else value

    assert [bits(each) for each in found] == [bits(each) for each in expected]


def nearest(value: Any, type: pa.DataType) -> float:
    """The float of this type that is nearest to an exact value."""
    with np.errstate(over="ignore"):
        try:
            return float(np.float32(value)) if type == pa.float32() else float(value)
        except OverflowError:
            return math.copysign(math.inf, value)


def to_digits(value: Decimal, digits: int, rounding: str = decimal.ROUND_HALF_EVEN) -> Decimal:
    return value.quantize(EXACT.scaleb(Decimal(1), -digits), rounding=rounding, context=EXACT)


def fits(value: Decimal, type: pa.DataType) -> bool:
    return EXACT.abs(value) < EXACT.scaleb(Decimal(1), type.precision - type.scale)


# -- rounding -------------------------------------------------------------------------------------------------------------


@NUMBERS
@example([0.1, 2.675, 1e22, 45.55, 0.125], 11)
@given(st.lists(floats, min_size=1, max_size=30), st.one_of(st.integers(-30, 40), st.integers(-400, 400)))
def test_floats_round_to_the_float_nearest_to_the_decimal_number(values: list[float], digits: int) -> None:
    def rounded(value: float) -> float:
        try:
            return round(value, digits)
        except OverflowError:
            return math.copysign(math.inf, value)

    same(evaluate(col("x").round(digits), x=pa.array(values)), [rounded(value) for value in values])


@NUMBERS
@given(st.lists(narrow, min_size=1, max_size=30), st.integers(-10, 12))
def test_narrow_floats_do_too(values: list[float], digits: int) -> None:
    expected = [nearest(round(value, digits), pa.float32()) for value in values]
    same(evaluate(col("x").round(digits), x=pa.array(values, pa.float32())), expected)


def test_infinities_and_missing_values_round_to_themselves() -> None:
    values = [math.inf, -math.inf, math.nan, None, -0.04, 1.25]
    for digits in (1, 11, -1, 30, 400):
        found = evaluate(col("x").round(digits), x=pa.array(values))
        same(found, [v if v is None or not math.isfinite(v) else round(v, digits) for v in values])


@NUMBERS
@given(st.data(), decimal_types, st.integers(-20, 80), st.sampled_from(["round", "floor", "ceil"]))
def test_decimals_round_exactly_or_are_refused(data: Any, type: pa.DataType, digits: int, kind: str) -> None:
    values = data.draw(st.lists(decimals_of(type), min_size=1, max_size=10))
    if kind == "round":
        step = col("x").round(digits)
        made = [value if digits >= type.scale else to_digits(value, digits) for value in values]
    else:
        step = getattr(col("x"), kind)()
        made = [
            to_digits(value, 0, decimal.ROUND_FLOOR if kind == "floor" else decimal.ROUND_CEILING) for value in values
        ]
    if all(fits(value, type) for value in made):
        assert evaluate(step, x=pa.array(values, type)) == made
    else:
        with pytest.raises(DataError, match="cannot be computed for"):
            evaluate(step, x=pa.array(values, type))


def test_a_price_that_does_not_fit_when_it_is_rounded_is_refused_and_not_zero() -> None:
    prices = pa.array([Decimal("99999999.99"), Decimal("1.00")], pa.decimal128(10, 2))
    for step in (col("price").round(), col("price").round(1), col("price").ceil()):
        with pytest.raises(DataError, match=r"99999999\.99"):
            evaluate(step, price=prices)


def test_the_greatest_number_of_32_bits_and_a_half_rounds_up() -> None:
    amounts = pa.array([Decimal("4294967295.5"), None, Decimal("-4294967295.5")], pa.decimal128(38, 20))
    assert evaluate(col("x").round(), x=amounts) == [Decimal(4294967296), None, Decimal(-4294967296)]
    assert evaluate(col("x").ceil(), x=amounts) == [Decimal(4294967296), None, Decimal(-4294967295)]
    assert evaluate(col("x").floor(), x=amounts.slice(1)) == [None, Decimal(-4294967296)]
    wide = pa.array([Decimal("18446744073709551614")], pa.decimal256(60, 20))
    assert evaluate(col("x").cast("decimal(60, 0)"), x=wide) == [Decimal(18446744073709551614)]
    assert evaluate(col("x").cast("uint64"), x=wide) == [18446744073709551614]


@pytest.mark.parametrize("digits", [10**9, -(10**9)])
def test_more_digits_than_any_number_has_cost_nothing(digits: int) -> None:
    for value in (Decimal("123.45"), 123.45):
        assert evaluate(col("x").round(digits), x=pa.array([value])) == [value if digits > 0 else 0]


# -- one value ------------------------------------------------------------------------------------------------------------

OF_FLOATS: dict[str, Callable[[float], float]] = {
    "floor": lambda x: math.copysign(float(math.floor(x)), x),
    "ceil": lambda x: math.copysign(float(math.ceil(x)), x),
    "abs": abs,
    "sign": lambda x: math.copysign(1.0, x) if x else 0.0,
    "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
}


@NUMBERS
@given(st.lists(floats, min_size=1, max_size=30), st.sampled_from(sorted(OF_FLOATS)))
def test_functions_of_floats_are_exact(values: list[float], kind: str) -> None:
    same(evaluate(getattr(col("x"), kind)(), x=pa.array(values)), [OF_FLOATS[kind](value) for value in values])


@NUMBERS
@given(st.lists(floats, min_size=1, max_size=30), st.sampled_from(["exp", "log", "log2", "log10"]))
def test_transcendental_functions_differ_from_python_in_the_last_digit_at_most(values: list[float], kind: str) -> None:
    step = {"exp": col("x").exp(), "log": col("x").log(), "log2": col("x").log(2), "log10": col("x").log(10)}[kind]
    for value, found in zip(values, evaluate(step, x=pa.array(values)), strict=True):
        try:
            expected = getattr(math, kind)(value)
        except OverflowError:
            expected = math.inf
        except ValueError:
            expected = -math.inf if value == 0 else math.nan
        assert found == pytest.approx(expected, rel=4e-16, abs=5e-324, nan_ok=True), (value, found, expected)


@NUMBERS
@given(st.data(), whole_types)
def test_functions_of_integers_wrap_and_nothing_else(data: Any, type: pa.DataType) -> None:
    values = data.draw(st.lists(integers_of(type), min_size=1, max_size=20))
    x = pa.array(values, type)
    assert evaluate(col("x").abs(), x=x) == [wrapped(abs(v), type) for v in values]
    assert evaluate(col("x").sign(), x=x) == [(v > 0) - (v < 0) for v in values]
    assert evaluate(~col("x"), x=x) == [wrapped(~v, type) for v in values]
    for same_again in (col("x").round(2), col("x").floor(), col("x").ceil()):
        assert evaluate(same_again, x=x) == values
    same(evaluate(col("x").sqrt(), x=x), [math.sqrt(float(v)) if v >= 0 else math.nan for v in values])
    if pa.types.is_signed_integer(type):
        assert evaluate(-col("x"), x=x) == [wrapped(-v, type) for v in values]


@NUMBERS
@given(st.data(), decimal_types)
def test_functions_of_decimals_are_exact(data: Any, type: pa.DataType) -> None:
    values = data.draw(st.lists(decimals_of(type), min_size=1, max_size=10))
    x = pa.array(values, type)
    assert evaluate(col("x").abs(), x=x) == [EXACT.abs(v) for v in values]
    assert evaluate(-col("x"), x=x) == [EXACT.minus(v) for v in values]
    assert evaluate(col("x").sign(), x=x) == [(v > 0) - (v < 0) for v in values]
    same(evaluate(col("x").sqrt(), x=x), [math.sqrt(float(v)) if v >= 0 else math.nan for v in values])


# -- two values -----------------------------------------------------------------------------------------------------------


@NUMBERS
@given(st.data(), whole_types)
def test_integers_add_and_multiply_modulo_their_width(data: Any, type: pa.DataType) -> None:
    pairs = data.draw(st.lists(st.tuples(integers_of(type), integers_of(type)), min_size=1, max_size=20))
    a, b = (pa.array(each, type) for each in zip(*pairs, strict=True))
    for sign in (operator.add, operator.sub, operator.mul):
        assert evaluate(sign(col("a"), col("b")), a=a, b=b) == [wrapped(sign(*pair), type) for pair in pairs]
    for sign in (operator.floordiv, operator.mod):
        expected = [wrapped(sign(*pair), type) if pair[1] else None for pair in pairs]
        assert evaluate(sign(col("a"), col("b")), a=a, b=b) == expected
    powers = [wrapped(x ** (y % 70), type) for x, y in pairs]
    small = pa.array([y % 70 for _, y in pairs], type)
    assert evaluate(col("a") ** col("b"), a=a, b=small) == powers
    quotients = [
        float(np.divide(np.float64(x), np.float64(y))) if y else math.copysign(math.inf, x) if x else math.nan
        for x, y in pairs
    ]
    same(evaluate(col("a") / col("b"), a=a, b=b), quotients)


@NUMBERS
@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=20))
def test_floats_are_added_multiplied_and_divided_with_one_rounding(pairs: list[tuple[float, float]]) -> None:
    a, b = (pa.array(each) for each in zip(*pairs, strict=True))
    with np.errstate(all="ignore"):
        for sign in (operator.add, operator.sub, operator.mul, operator.truediv):
            expected = [float(sign(np.float64(x), np.float64(y))) for x, y in pairs]
            same(evaluate(sign(col("a"), col("b")), a=a, b=b), expected)
        # As polars has them: the floor of the rounded quotient, and what it leaves.
        floors = [float(np.floor(np.float64(x) / np.float64(y))) for x, y in pairs]
        same(evaluate(col("a") // col("b"), a=a, b=b), floors)
        left = [float(np.float64(x) - np.float64(n) * np.float64(y)) for (x, y), n in zip(pairs, floors, strict=True)]
        same(evaluate(col("a") % col("b"), a=a, b=b), left)


@NUMBERS
@given(st.data(), decimal_types, decimal_types)
def test_decimals_are_computed_exactly_or_refused(data: Any, one: pa.DataType, other: pa.DataType) -> None:
    pairs = data.draw(st.lists(st.tuples(decimals_of(one), decimals_of(other)), min_size=1, max_size=10))
    a = pa.array([x for x, _ in pairs], one)
    b = pa.array([y for _, y in pairs], other)
    for sign, exact in ((operator.add, EXACT.add), (operator.sub, EXACT.subtract), (operator.mul, EXACT.multiply)):
        try:
            found = evaluate(sign(col("a"), col("b")), a=a, b=b)
        except (UserError, DataError):
            continue  # the digits of both do not fit one type
        assert found == [exact(*pair) for pair in pairs]


# -- casts ----------------------------------------------------------------------------------------------------------------


def cast_or_null(value: Any, source: pa.DataType, target: pa.DataType) -> Any:
    """What a cast that is not strict gives, computed by Python."""
    if pa.types.is_floating(target):
        return nearest(value, target)
    if pa.types.is_decimal(target):
        made = to_digits(EXACT.create_decimal(value), target.scale)
        exact = pa.types.is_floating(source) or made == value
        return made if exact and fits(made, target) else None
    low, high = bounds(target)
    if pa.types.is_decimal(source) and value != int(value):
        return None  # a decimal with a fraction is no integer
    return int(value) if low <= int(value) <= high else None


@settings(max_examples=120, deadline=None)
@given(
    st.data(),
    st.one_of(whole_types, st.sampled_from(FLOATS), decimal_types),
    st.one_of(whole_types, st.sampled_from(FLOATS), decimal_types),
)
def test_casts_give_the_value_or_null(data: Any, source: pa.DataType, target: pa.DataType) -> None:
    if pa.types.is_decimal(source):
        of = decimals_of(source)
    else:
        of = integers_of(source) if pa.types.is_integer(source) else narrow if source == pa.float32() else floats
    values = data.draw(st.lists(of, min_size=1, max_size=10))
    expected = [value if source == target else cast_or_null(value, source, target) for value in values]
    x = pa.array(values, source)
    same(evaluate(col("x").cast(target, strict=False), x=x), expected)
    if None in expected:
        with pytest.raises(DataError):
            evaluate(col("x").cast(target), x=x)
    else:
        same(evaluate(col("x").cast(target), x=x), expected)


@NUMBERS
@given(st.data(), st.one_of(whole_types, st.sampled_from(FLOATS), decimal_types))
def test_numbers_survive_as_text(data: Any, type: pa.DataType) -> None:
    if pa.types.is_decimal(type):
        of = decimals_of(type)
    else:
        of = integers_of(type) if pa.types.is_integer(type) else narrow if type == pa.float32() else floats
    values = data.draw(st.lists(of, min_size=1, max_size=10))
    same(evaluate(col("x").cast("string").cast(type), x=pa.array(values, type)), values)


DECIMALS = [
    "0",
    "-0",
    "0.0",
    "1.5",
    "-1.5",
    "0.001",
    "1E+3",
    "123E-5",
    "1E-38",
    "1E+40",
    "NaN",
    "12345678901234567890.123",
    "9" * 38,
]


@pytest.mark.parametrize(
    "type",
    [
        None,
        pa.decimal128(10, 2),
        pa.decimal128(38, 10),
        pa.decimal128(5, 0),
        pa.decimal256(50, 3),
        pa.float64(),
        pa.int64(),
    ],
    ids=str,
)
def test_a_scalar_of_a_decimal_is_that_of_pyarrow(type):
    """It is made without pyarrow's conversion, which imports pandas."""

    def made(by, value):
        try:
            scalar = by(value, type)
        except Exception as error:
            return error.__class__
        return scalar.type, repr(scalar.as_py())

    for value in map(Decimal, DECIMALS):
        assert made(scalar_of, value) == made(pa.scalar, value), value
