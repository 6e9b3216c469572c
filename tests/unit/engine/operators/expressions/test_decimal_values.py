"""Decimals in expressions: beside literal floats, and as floats."""

import decimal
import math
import operator
import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from sabot.api.expr import Expr, coalesce, col, lit, max_horizontal, when
from sabot.base.arrays import exact_cast
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import DataError, UserError


def evaluate(expr: Expr, batch: pa.RecordBatch) -> pa.Array:
    return compile_expr(expr, batch.schema)(batch)


HUNDREDTHS = pa.decimal128(10, 2)


def _hundredths(count: int = 1000) -> pa.RecordBatch:
    return pa.record_batch({"v": pa.array([decimal.Decimal(i).scaleb(-2) for i in range(-count, count)], HUNDREDTHS)})


@pytest.mark.parametrize("kind", [HUNDREDTHS, pa.decimal128(38, 2), pa.decimal256(60, 2)])
def test_a_literal_float_beside_decimals_is_the_decimal_that_is_written(kind: pa.DataType) -> None:
    values = _hundredths().column("v")
    batch = pa.record_batch({"v": values.cast(kind)})
    exact = values.to_pylist()
    for number in (3.3, 0.07, -0.29, 3.305, 0.0, 1e-9, 5):
        written = decimal.Decimal(repr(number))
        for each, compare in (("==", operator.eq), (">", operator.gt), ("<=", operator.le), ("!=", operator.ne)):
            expected = [compare(value, written) for value in exact]
            assert evaluate(compare(col("v"), number), batch).to_pylist() == expected, (number, each)
            assert evaluate(compare(lit(number), col("v")), batch).to_pylist() == [
                compare(written, value) for value in exact
            ]
    inside = evaluate(col("v").is_between(3.3, 3.31), batch)
    assert batch.filter(inside).column(0).to_pylist() == [decimal.Decimal("3.30"), decimal.Decimal("3.31")]


@pytest.mark.parametrize("number", [1e300, -1e300, 1e75, 1e-300, math.inf, -math.inf, math.nan, 12345678901234567.0])
def test_floats_of_any_size_are_compared_with_decimals(number: float) -> None:
    values = [decimal.Decimal(0), decimal.Decimal("12345678901234567.11"), decimal.Decimal("-0.01"), None]
    for kind in (pa.decimal128(38, 2), pa.decimal256(76, 2)):
        batch = pa.record_batch({"v": pa.array(values, kind)})
        expected = [None if v is None else math.isnan(number) or v < decimal.Decimal(number) for v in values]
        assert evaluate(col("v") < number, batch).to_pylist() == expected
        assert evaluate(col("v") == number, batch).to_pylist() == [None if v is None else v == number for v in values]


def test_decimals_become_the_nearest_floats() -> None:
    batch = _hundredths()
    exact = [float(value) for value in batch.column("v").to_pylist()]
    assert evaluate(col("v").cast("float64"), batch).to_pylist() == exact
    assert evaluate(col("v") * 1.0, batch).to_pylist() == exact
    assert evaluate(col("v").cast("float32"), batch).to_pylist() == np.array(exact, np.float32).tolist()
    dice = random.Random(4)
    for kind in (pa.decimal128(38, 0), pa.decimal128(38, 30), pa.decimal256(76, 40), pa.decimal128(20, -5)):
        drawn = [decimal.Decimal(dice.randrange(-(10**18), 10**18)).scaleb(-kind.scale) for _ in range(50)]
        wide = pa.array([None, *drawn, decimal.Decimal(0)], kind)
        made = evaluate(col("v").cast("float64"), pa.record_batch({"v": wide.slice(0)})).to_pylist()
        assert made == [None, *map(float, drawn), 0.0]
        part = pa.record_batch({"v": wide.slice(1, 3)})
        assert evaluate(col("v").cast("float64"), part).to_pylist() == [float(value) for value in drawn[:3]]


def _floor_remainder(value: decimal.Decimal | None, divisor: decimal.Decimal | None) -> decimal.Decimal | None:
    if value is None or not divisor:
        return None
    with decimal.localcontext(prec=200):
        rest = value % divisor  # has the sign of the dividend
        return rest + divisor if rest and (rest < 0) != (divisor < 0) else rest


@pytest.mark.parametrize(("a", "b"), [((10, 2), (5, 1)), ((38, 2), (20, 10)), ((60, 20), (50, 2)), ((9, 0), (7, 7))])
def test_the_remainder_of_decimals_is_exact_and_has_the_sign_of_the_divisor(
    a: tuple[int, int], b: tuple[int, int]
) -> None:
    dice = random.Random(7)

    def some(precision: int, scale: int) -> decimal.Decimal | None:
        digits = dice.choice([0, dice.randrange(10 ** dice.randint(1, precision - 1))]) * dice.choice([1, -1])
        with decimal.localcontext(prec=80):
            return dice.choice([None, *[decimal.Decimal(digits).scaleb(-scale)] * 9])

    values, divisors = [some(*a) for _ in range(500)], [some(*b) for _ in range(500)]
    types = (pa.decimal256(p, s) if p > 38 else pa.decimal128(p, s) for p, s in (a, b))
    batch = pa.record_batch({"a": pa.array(values, next(types)), "b": pa.array(divisors, next(types))})
    expected = [_floor_remainder(*pair) for pair in zip(values, divisors, strict=True)]
    assert evaluate(col("a") % col("b"), batch).to_pylist() == expected
    assert evaluate(col("a") % 7, batch).to_pylist() == [_floor_remainder(each, decimal.Decimal(7)) for each in values]
    assert evaluate(col("a") % 0, batch).null_count == 500


@pytest.mark.parametrize(("a", "b"), [((38, 2), (3, 2)), ((38, 4), (38, 10)), ((30, 5), (20, 5)), ((37, 0), (37, 0))])
def test_decimals_are_computed_as_far_as_38_digits_hold_the_result(a: tuple[int, int], b: tuple[int, int]) -> None:
    dice = random.Random(8)

    def some(precision: int, scale: int) -> decimal.Decimal:
        with decimal.localcontext(prec=80):
            return decimal.Decimal(dice.randrange(-(10 ** min(precision, 9)), 10 ** min(precision, 9))).scaleb(-scale)

    left, right = [some(*a) for _ in range(300)], [some(*b) for _ in range(300)]
    batch = pa.record_batch({"a": pa.array(left, pa.decimal128(*a)), "b": pa.array(right, pa.decimal128(*b))})
    with decimal.localcontext(prec=80):
        for kind, compute in (("+", operator.add), ("-", operator.sub), ("*", operator.mul)):
            expected = [compute(x, y) for x, y in zip(left, right, strict=True)]
            assert evaluate(compute(col("a"), col("b")), batch).to_pylist() == expected, kind
        assert evaluate(col("a") * 3, batch).to_pylist() == [each * 3 for each in left]


def test_a_result_with_more_than_38_digits_is_an_error_that_shows_the_values() -> None:
    most = decimal.Decimal(10**38 - 1)
    batch = pa.record_batch({"a": pa.array([most], pa.decimal128(38, 0))})
    for expr in (col("a") + 1, col("a") * 10, col("a") * col("a")):
        with pytest.raises(DataError, match="9" * 37):
            evaluate(expr, batch)
    assert evaluate(col("a") - 1, batch).to_pylist() == [decimal.Decimal(10**38 - 2)]


WIDE = pa.record_batch(
    {
        "x": pa.array([decimal.Decimal(2), decimal.Decimal("1E+75")], pa.decimal256(76, 0)),
        "y": pa.array([decimal.Decimal("1.5")] * 2, pa.decimal256(76, 10)),
        "i": pa.array([2, 2**63 - 1], pa.int64()),
        "z": pa.array([decimal.Decimal("1.5")] * 2, pa.decimal256(76, 70)),
    }
)


@pytest.mark.parametrize(
    ("expr", "first"),
    [
        (col("x") > col("y"), True),
        (col("x") % col("y"), decimal.Decimal("0.5")),
        (coalesce(col("x"), col("y")), decimal.Decimal(2)),
        (when(col("x") != 0).then(col("x")).otherwise(col("y")), decimal.Decimal(2)),
        (max_horizontal(col("x"), col("y")), decimal.Decimal(2)),
        (col("i") > col("z"), True),
        (coalesce(col("i"), col("z")), decimal.Decimal(2)),
    ],
)
def test_a_number_that_needs_more_than_76_digits_beside_another_decimal_is_named(expr: Expr, first: object) -> None:
    """10**75 became -5.2 * 10**66, or was less than 1.5. Integers beside decimals(76, 70) ended the app, even a 2."""
    assert evaluate(expr, WIDE.slice(0, 1)).to_pylist() == [first]
    with pytest.raises(DataError, match="does not fit decimal256") as caught:
        evaluate(expr, WIDE)
    assert caught.value.hint == 'cast one of them: .cast("float64")'


def test_a_literal_that_needs_more_than_76_digits_beside_a_decimal_is_refused_with_a_cast_of_numbers() -> None:
    with pytest.raises(UserError, match="4611686018427387904 does not fit decimal256") as caught:
        compile_expr(col("z") < 2**62, WIDE.schema)
    assert caught.value.hint == 'cast one of them: .cast("float64")'


@pytest.mark.slow  # half a second of a core
def test_a_cast_of_a_decimal_never_makes_another_number() -> None:
    """pyarrow's check misses products that overflow 256 bits: 55088414089574380765088.61 became 2909724.72."""
    dice = random.Random(5)
    for _ in range(2000):
        digits, most = dice.randint(1, 76), dice.randint(1, 76)
        scale = dice.randint(0, min(digits, most))
        source, target = pa.decimal256(digits, scale), pa.decimal256(most, dice.randint(scale, most))
        number = dice.randint(10 ** (digits - 1), 10**digits - 1)
        value = decimal.Decimal((0, tuple(map(int, str(number))), -scale))
        batch = pa.record_batch({"v": pa.array([value], source)})
        fits = number * 10 ** (target.scale - scale) < 10**most
        cast = evaluate(col("v").cast(target, strict=False), batch).to_pylist()
        assert cast == [value if fits else None], (source, target)


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize(
    "kind", [pa.decimal128(38, 0), pa.decimal128(38, 6), pa.decimal256(76, 4), pa.decimal128(38, 38)]
)
def test_a_text_is_the_decimal_that_it_shows_or_none(kind: pa.DataType) -> None:
    """pyarrow keeps the low bits of a number that its 128 or 256 bits do not hold: 39 nines became a negative number, 1.5 with
    60 zeros behind it 0.
    """
    dice = random.Random(9)
    texts = ["9" * n for n in (37, 38, 39, 40, 76, 77, 78, 200, 5000)] + [
        f"{m}e{n}" for m in (1, 9, 99, 12) for n in (35, 36, 37, 38, 75, 76)
    ]
    for _ in range(400):
        whole, behind = (
            "".join(dice.choices("0123456789", k=dice.choice([1, 2, 30, 38, 39, 45, 76, 80]))) for _ in range(2)
        )
        behind = dice.choice([behind, "0" * 70, "5" + "0" * 70, ""])
        texts.append(
            dice.choice(["", "-", "+"]) + dice.choice([whole, "0" * 50 + whole[:3]]) + dice.choice(["", f".{behind}"])
        )
    texts += ["", "x" * 50, "1_000" * 10, "e", "1e", "nan", f"{'1' * 40}e", "1e9999999999999999999999"]
    exact = decimal.Context(prec=10_000)

    def shown_by(text: str) -> decimal.Decimal | None:
        try:
            number = decimal.Decimal(text) if "_" not in text and "n" not in text else None
        except decimal.InvalidOperation:
            return None
        scaled = None if number is None or number.adjusted() > 200 else exact.scaleb(number, kind.scale)
        fits = scaled is not None and scaled == scaled.to_integral_value() and exact.abs(scaled) < 10**kind.precision
        return number if fits else None

    expected = [shown_by(each) for each in texts]
    assert 5 < sum(each is not None for each in expected) < len(expected)
    for given, type in ((pa.array(texts), kind), (pa.array([[each] for each in texts]), pa.list_(kind))):
        made = []
        for place in range(len(texts)):
            batch = pa.record_batch({"v": given.slice(place, 1)})
            try:
                found = evaluate(col("v").cast(type, strict=False), batch)
            except DataError:
                found = pa.array([None])
            made.append(found.to_pylist()[0])
        assert [each[0] if isinstance(each, list) else each for each in made] == expected, type


@pytest.mark.parametrize(
    "made",
    [
        lambda texts: pa.array(texts).dictionary_encode(),
        lambda texts: pa.array(texts, pa.large_string()).dictionary_encode(),
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts, pa.string_view()),
        lambda texts: pa.array([text.encode() for text in texts]),
        lambda texts: pa.array([text.encode() for text in texts], pa.large_binary()),
    ],
)
def test_a_decimal_of_each_kind_of_text_is_exact_too(made: Callable[[list[str]], "pa.Array"]) -> None:
    """The low bits of 39 nines were a number there, also for `schema=` over a frame of polars, which has views of texts."""
    kind, long = pa.decimal128(38, 2), "9" * 39
    good, bad = made(["1.50", "12e1"]), made([long])
    expected = [decimal.Decimal("1.50"), decimal.Decimal(120)]
    assert exact_cast(good, kind).to_pylist() == expected
    assert evaluate(col("v").cast(kind), pa.record_batch({"v": good})).to_pylist() == expected
    with pytest.raises(pa.ArrowInvalid, match="does not fit"):
        exact_cast(bad, kind)
    with pytest.raises(DataError, match="is no decimal128"):
        evaluate(col("v").cast(kind), pa.record_batch({"v": bad}))
    nested = pa.StructArray.from_arrays([bad], names=["v"])
    with pytest.raises(pa.ArrowInvalid, match="does not fit"):
        exact_cast(nested, pa.struct([("v", kind)]))
