"""Arguments that no value fits, or whose results would fill the memory: refused where they are written, or harmless."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from sabot.api.expr import Expr, col, when
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import UserError

ROWS = pa.record_batch(
    {
        "flag": pa.array([True, None]),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        "list": pa.array([[1, 2], None]),
        "text": pa.array(["abc", None]),
        "at": pa.array([5, None]).view(pa.timestamp("ms")),
    }
)


def evaluate(expr: Expr) -> list[Any]:
    return list(compile_expr(expr, ROWS.schema)(ROWS).to_pylist())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: col("text").str.replace_all("", "x", literal=True), "text to replace is empty"),
        (lambda: col("text").str.pad_start(10_001), "more than 10,000"),
        (lambda: col("text").str.pad_end(2**63 - 1), "more than 10,000"),
        (lambda: col("text").str.pad_start(2**70), "64 bits"),
        (lambda: col("text").str.slice(2**70), "64 bits"),
        (lambda: col("text").str.slice(0, 2**70), "64 bits"),
        (lambda: col("text").str.extract("(a)", 2**70), "64 bits"),
        (lambda: col("list").list.get(-(2**70)), "64 bits"),
        (lambda: col("price").round(2**70), "64 bits"),
        (lambda: col("at").dt.truncate(f"{10**20}h"), "too long"),
        (lambda: col("at").dt.truncate("106752d"), "too long"),
        (lambda: col("at").dt.truncate("10000y"), "too long"),
        (lambda: col("at").dt.truncate(dt.timedelta.max), "too long"),
    ],
)
def test_an_argument_beyond_all_bounds_is_refused_where_it_is_written(make: Callable[[], Expr], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("far", [2**31 - 1, 2**31, 2**40, 2**63 - 1])
def test_places_beyond_all_values_have_none(far: int) -> None:
    for index in (far, -far):
        assert evaluate(col("list").list.get(index)) == [None, None]
        assert evaluate(col("text").str.split("b").list.get(index)) == [None, None]
    assert evaluate(col("text").str.slice(far)) == ["", None]
    assert evaluate(col("text").str.slice(far, far)) == ["", None]
    assert evaluate(col("text").str.slice(1, far)) == ["bc", None]
    assert evaluate(col("text").str.slice(-far, far)) in (["abc", None], ["", None])
    assert evaluate(col("text").str.slice(-far)) == ["abc", None]


@pytest.mark.parametrize(("every", "first"), [("106751d", dt.datetime(1970, 1, 1)), ("9999y", dt.datetime(1970, 1, 1))])
def test_the_longest_lengths_of_time_are_taken(every: str, first: dt.datetime) -> None:
    assert evaluate(col("at").dt.truncate(every)) == [first, None]


@pytest.mark.parametrize(
    "expr",
    [
        col("flag") + col("price"),
        col("price") * col("flag"),
        col("price") % col("flag"),
        col("flag") == col("price"),
        col("price") < col("flag"),
        col("flag").fill_null(col("price")),
        col("price").clip(col("flag")),
        when(col("flag")).then(col("flag")).otherwise(col("price")),
    ],
)
def test_a_boolean_beside_a_decimal_is_refused_where_it_is_written(expr: Expr) -> None:
    with pytest.raises(UserError, match=r"of .*(bool|decimal).* and .*(bool|decimal)"):
        compile_expr(expr, ROWS.schema)
