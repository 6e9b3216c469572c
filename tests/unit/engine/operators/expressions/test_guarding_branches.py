"""A branch guards: what fails in it fails only for its own rows, whatever else is in the batch.

`CASE WHEN REGEXP(s, '^[0-9]+$') THEN CAST(s AS INT) ELSE -1 END` made a dead letter of 'abc'.
"""

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App
from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.engine.operators.expressions import choices, comparisons
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.engine.operators.rows.bad import values_or_nulls
from sabot.errors import DataError

TEXTS = ["1", "abc", "7", None, "x9", "30", "", "4"]
ROWS = [{"row": n, "s": text, "k": "ab"[n % 2], "m": n % 3} for n, text in enumerate(TEXTS)]
TABLE = pa.Table.from_pylist(
    ROWS, schema=pa.schema([("row", "int64"), ("s", "string"), ("k", "string"), ("m", "int64")])
)
NUMBER, IS_NUMBER = col("s").cast("int64"), col("s").str.contains("^[0-9]+$")

Row = dict[str, Any]
Lazy = Callable[[Row], Any]


def values_of(expr: Expr) -> list[Any]:
    return App("guarding").stream(TABLE).select(value=expr).collect()["value"].to_pylist()


@pytest.mark.parametrize(
    ("expr", "wanted"),
    [
        (when(IS_NUMBER).then(NUMBER).otherwise(-1), [1, -1, 7, -1, -1, 30, -1, 4]),
        (when(~IS_NUMBER).then(-1).otherwise(NUMBER), [1, -1, 7, None, -1, 30, -1, 4]),
        (when(~IS_NUMBER).then(-1).when(NUMBER > 5).then(NUMBER).otherwise(0), [0, -1, 7, 0, -1, 30, -1, 0]),
        (IS_NUMBER & (NUMBER > 5), [False, False, True, None, False, True, False, False]),
        (~IS_NUMBER | (NUMBER > 5), [False, True, True, None, True, True, True, False]),
        (coalesce(when(IS_NUMBER).then(None).otherwise(0), NUMBER), [1, 0, 7, 0, 0, 30, 0, 4]),
        (when(IS_NUMBER).then(None).otherwise(0).fill_null(NUMBER + 1), [2, 0, 8, 0, 0, 31, 0, 5]),
        (when(IS_NUMBER).then(col("m") // (NUMBER - NUMBER)).otherwise(2), [None, 2, None, 2, 2, None, 2, None]),
    ],
    ids=lambda each: each.text()[:60] if isinstance(each, Expr) else "",
)
def test_a_branch_is_computed_for_its_own_rows_where_it_fails_for_others(expr: Expr, wanted: list[Any]) -> None:
    assert values_of(expr) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CASE WHEN REGEXP(s, '^[0-9]+$') THEN CAST(s AS INT) ELSE -1 END", [1, -1, 7, -1, -1, 30, -1, 4]),
        ("CASE REGEXP(s, '^[0-9]+$') WHEN TRUE THEN CAST(s AS INT) ELSE -1 END", [1, -1, 7, -1, -1, 30, -1, 4]),
        ("IF(REGEXP(s, '^[0-9]+$'), CAST(s AS INT), -1)", [1, -1, 7, -1, -1, 30, -1, 4]),
        ("NOT REGEXP(s, '^[0-9]+$') OR CAST(s AS INT) > 5", [False, True, True, None, True, True, True, False]),
        ("REGEXP(s, '^[0-9]+$') AND CAST(s AS INT) > 5", [False, False, True, None, False, True, False, False]),
        ("COALESCE(TRY_CAST(s AS INT), CHAR_LENGTH(s))", [1, 3, 7, None, 2, 30, 0, 4]),
    ],
)
def test_a_branch_of_sql_guards(text: str, wanted: list[Any]) -> None:
    app = App("guarding")
    app.register("t", app.stream(TABLE))
    assert app.sql(f"SELECT {text} AS v FROM t").collect()["v"].to_pylist() == wanted


def test_the_argument_of_an_aggregate_is_computed_for_the_rows_of_its_filter() -> None:
    app = App("guarding")
    stream = app.stream(TABLE)
    small = IS_NUMBER & (NUMBER < 10)
    found = stream.group_by("k").aggregate(
        all=sabot.sum(NUMBER).filter(IS_NUMBER), small=sabot.sum(NUMBER).filter(small), rows=sabot.count()
    )
    wanted = [{"k": "a", "all": 8, "small": 8, "rows": 4}, {"k": "b", "all": 34, "small": 4, "rows": 4}]
    assert sorted(found.collect().to_pylist(), key=lambda row: row["k"]) == wanted
    app.register("t", stream)
    text = "SELECT k, SUM(CAST(s AS INT)) FILTER (WHERE REGEXP(s, '^[0-9]+$')) AS n FROM t GROUP BY k"
    assert {row["k"]: row["n"] for row in app.sql(text).collect().to_pylist()} == {"a": 8, "b": 34}


def test_an_argument_that_another_aggregate_needs_for_all_rows_still_fails() -> None:
    stream = App("guarding").stream(TABLE)
    both = stream.group_by("k").aggregate(some=sabot.sum(NUMBER).filter(IS_NUMBER), all=sabot.sum(NUMBER))
    with pytest.raises(DataError, match="'abc' is no int64"):
        both.collect()


# -- any expression, beside a lazy evaluation of each row by itself ---------------------------------------------------


class Refused(Exception):
    pass


def number_of(row: Row) -> int | None:
    text = row["s"]
    if text is not None and not text.isdigit():
        raise Refused
    return None if text is None else int(text)


def numeric(rng: random.Random, depth: int) -> tuple[Expr, Lazy]:
    kind = rng.choice(["cast", "m", "one"] if depth == 0 else ["when", "when", "coalesce", "add", "cast"])
    if kind == "cast":
        return NUMBER, number_of
    if kind == "m":
        return col("m"), lambda row: row["m"]
    if kind == "one":
        return lit(1, "int64"), lambda row: 1
    (a, lazy_a), (b, lazy_b) = numeric(rng, depth - 1), numeric(rng, depth - 1)
    if kind == "coalesce":
        return coalesce(a, b), lambda row: lazy_b(row) if (value := lazy_a(row)) is None else value
    if kind == "add":

        def added(row: Row) -> int | None:
            left, right = lazy_a(row), lazy_b(row)
            return None if left is None or right is None else left + right

        return a + b, added
    asked, lazy_asked = logical(rng, depth - 1)
    return when(asked).then(a).otherwise(b), lambda row: lazy_a(row) if lazy_asked(row) else lazy_b(row)


def logical(rng: random.Random, depth: int) -> tuple[Expr, Lazy]:
    kind = rng.choice(["is_number", "k"] if depth == 0 else ["and", "or", "not", "above", "is_number"])
    if kind == "is_number":
        return IS_NUMBER, lambda row: None if row["s"] is None else row["s"].isdigit()
    if kind == "k":
        return col("k") == "a", lambda row: row["k"] == "a"
    if kind == "above":
        a, lazy = numeric(rng, depth - 1)
        return a > 3, lambda row: None if (value := lazy(row)) is None else value > 3
    a, lazy_a = logical(rng, depth - 1)
    if kind == "not":
        return ~a, lambda row: None if (value := lazy_a(row)) is None else not value
    b, lazy_b = logical(rng, depth - 1)
    decides = kind == "or"

    def both(row: Row) -> bool | None:
        left = lazy_a(row)
        if left is decides:
            return decides
        right = lazy_b(row)
        return decides if right is decides else None if left is None or right is None else not decides

    return (a | b if decides else a & b), both


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("seed", range(60))
def test_exactly_the_rows_fail_that_fail_by_themselves(seed: int) -> None:
    rng = random.Random(f"branches {seed}")
    expr, lazy = numeric(rng, 4)
    wanted, refused = {}, []
    for row in ROWS:
        try:
            wanted[row["row"]] = lazy(row)
        except Refused:
            refused.append(row["row"])
    compiled, bad = compile_expr(expr, TABLE.schema), dict[int, DataError]()
    (batch,) = TABLE.to_batches()
    found = values_or_nulls("", compiled, batch, bad).to_pylist()
    assert sorted(bad) == refused, expr.text()
    assert {n: value for n, value in enumerate(found) if n not in bad} == wanted, expr.text()


def test_branches_that_guard_nothing_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: rows fail in branches that are not theirs."""
    for module in (choices, comparisons):
        monkeypatch.setattr(module, "with_branches", lambda node, careful: node)

    def tried() -> None:
        for seed in range(60):
            test_exactly_the_rows_fail_that_fail_by_themselves(seed)

    with pytest.raises(AssertionError):
        tried()


def test_a_long_chain_that_fails_is_computed_in_linear_time() -> None:
    """Each link was computed for all rows and then for its own, and so on below it: 2 to the power of 200."""
    chain, cases = NUMBER > 0, NUMBER
    for n in range(200):
        chain = chain & (col("k") != str(n))
    for n in range(40):
        cases = when(col("k") != str(n)).then(cases).otherwise(1)
    for expr in (chain, cases):
        with pytest.raises(DataError, match="'abc' is no int64"):
            values_of(expr)
