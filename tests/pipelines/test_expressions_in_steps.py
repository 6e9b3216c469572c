"""Expressions as keys of joins and lookups, and arithmetic with aggregates, against DuckDB over all rows at once."""

import json
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from harness import database

import sabot
from sabot import App, Stream, UserError, col, count_window, files, lit, tumbling, when

Rows = list[dict[str, Any]]
LOWER = col("name").str.lower()


def drawn(seed: int) -> tuple[Rows, Rows]:
    """Orders by a name in any case, and a table by code and region."""
    seeded = random.Random(seed)
    names = ["Ada", "ADA", "bob", "Bob", "eve", None]
    orders = [
        {
            "ts": i * 1000,
            "id": i,
            "name": seeded.choice(names),
            "n": seeded.choice([0, 3, 7, -2, None]),
            "m": seeded.randrange(5),
        }
        for i in range(60)
    ]
    codes = [{"at": 0, "code": code, "region": region} for region, code in enumerate(["ada", "bob", "zoe"])]
    return orders, codes


def written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Case:
    def __init__(self, tmp_path: Path, seed: int, parallelism: int) -> None:
        orders, codes = drawn(seed)
        self.app = App("shop", parallelism=parallelism)
        self.orders = self.app.stream(files(written(tmp_path / "orders.ndjson", orders)), time="ts", lateness="1h")
        self.codes = self.app.stream(files(written(tmp_path / "codes.ndjson", codes)), time="at")
        self.database = database().cursor()
        for name in ("orders", "codes"):
            self.database.execute(
                f"create temp table {name} as from read_json('{tmp_path}/{name}.ndjson', format='newline_delimited')"
            )

    def agrees(self, stream: Stream, query: str) -> None:
        made = stream.collect()
        expected = self.database.sql(f"select {', '.join(made.column_names)} from ({query})").arrow().read_all()
        assert rows_of(made.to_pylist()) == rows_of(expected.to_pylist())


def rows_of(rows: Rows) -> list[str]:
    return sorted(repr({name: plain(value) for name, value in row.items()}) for row in rows)


def plain(value: Any) -> Any:
    """DuckDB's sums of integers are decimals."""
    return int(value) if isinstance(value, Decimal) else round(value, 9) if isinstance(value, float) else value


@pytest.fixture(params=[(1, 1), (2, 2)], ids=["one", "two"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(tmp_path, *request.param)


@pytest.mark.one_in(8, "a tenth of a second of a core each; the kinds take them alike")
@pytest.mark.parametrize("how", ["inner", "left", "right", "full", "semi", "anti"])
def test_joins_on_expressions(case: Case, how: Any) -> None:
    joined = case.orders.drop("ts").join(case.codes.drop("at"), left_on=LOWER, right_on="code", how=how)
    case.agrees(joined, f"from orders {how} join codes on lower(name) = code")
    columns = ["id", "name", "n", "m", *([] if how in ("semi", "anti") else ["region"])]
    assert set(joined.collect().column_names) - {"code"} == set(columns)  # no key that was made


def test_the_rights_key_is_kept_where_the_lefts_goes(case: Case) -> None:
    joined = case.orders.join(case.codes, left_on=LOWER, right_on="code", how="right").select("id", "code")
    case.agrees(joined, "from orders right join codes on lower(name) = code")


@pytest.mark.one_in(8, "a tenth of a second of a core each; the kinds take them alike")
@pytest.mark.parametrize(
    ("build", "query"),
    [
        (
            lambda o, c: o.join(c, left_on=["m", LOWER], right_on=[col("region") + 1, "code"]),
            "orders join codes on m = region + 1 and lower(name) = code",
        ),
        (
            lambda o, c: o.join(c.broadcast(), left_on=LOWER, right_on=col("code").str.strip()),
            "orders join codes on lower(name) = code",
        ),
        (lambda o, c: o.lookup(c, left_on=LOWER, right_on="code"), "orders left join codes on lower(name) = code"),
        (
            lambda o, c: o.lookup(c.upsert("code"), left_on=LOWER, right_on="code", how="inner"),
            "orders join codes on lower(name) = code",
        ),
        (
            lambda o, c: o.join_asof(c.upsert("code"), left_on=LOWER, right_on="code"),
            "orders left join codes on lower(name) = code",
        ),
        (
            lambda o, c: o.join(c, left_on=LOWER, right_on="code", between=("-1d", "1d")),
            "orders join codes on lower(name) = code",
        ),
        (
            lambda o, c: o.join(c, left_on=LOWER, right_on="code", window=tumbling("1d")),
            "orders join codes on lower(name) = code",
        ),
    ],
)
def test_all_kinds_of_joins_take_expressions(case: Case, build: Callable[[Stream, Stream], Stream], query: str) -> None:
    joined = build(case.orders, case.codes)
    case.agrees(joined.select("id", "name", "region"), f"from {query}")
    assert not [name for name in joined.collect().column_names if name.startswith("__")]


def test_the_same_expression_on_both_sides(case: Case) -> None:
    others = case.orders.select("ts", other="id", name="name").filter(col("other") < 5)
    joined = case.orders.join(others, on=LOWER, between=("-1d", "1d")).select("id", "other", "name_right")
    case.agrees(
        joined,
        "select a.id, b.id as other, b.name as name_right from orders a join orders b on lower(a.name) = lower(b.name) where b.id < 5",
    )


async def region_of(code: str) -> dict[str, Any] | None:
    return {"region": {"ada": 0, "bob": 1}[code]} if code in ("ada", "bob") else None


def test_a_function_is_asked_for_the_value_of_an_expression(case: Case) -> None:
    looked_up = case.orders.lookup(region_of, on=LOWER, schema={"region": "int64"}).drop("ts")
    case.agrees(looked_up, "from orders left join codes on lower(name) = code")


SHARE = sabot.sum("n") / sabot.count()
COMPUTED: dict[str, Any] = {
    "share": SHARE,
    "total": sabot.sum("n"),
    "spread": sabot.max("n") - sabot.min("n"),
    "percent": (100 * sabot.count("n") / sabot.count()).round(1),
    "often": sabot.count().filter(col("n") > 2) > 3,
    "kind": when(sabot.sum("n") > 20).then(lit("big")).otherwise(lit("small")),
    "left_over": -sabot.sum("m") % 7 + sabot.mean("n").fill_null(0.0),
    "safe": when(sabot.sum("m") == 0).then(lit(-1.0)).otherwise(sabot.sum("n") / sabot.sum("m")),
    "whole": (sabot.count("n") != sabot.count()) & ~(sabot.max("m") > 2),
    "squared": abs(sabot.min("n")) ** 2,
}
IN_SQL = """
    sum(n) / count(*) as share, sum(n) as total, max(n) - min(n) as spread,
    round_even(100 * count(n) / count(*), 1) as percent, count(*) filter (n > 2) > 3 as often,
    case when sum(n) > 20 then 'big' else 'small' end as kind,
    ((-sum(m) % 7) + 7) % 7 + coalesce(avg(n), 0) as left_over,
    case when sum(m) = 0 then -1 else sum(n) / sum(m) end as safe,
    count(n) <> count(*) and not max(m) > 2 as whole, (abs(min(n)) ** 2)::bigint as squared
"""


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("keys", [("name",), ("name", "m"), ()])
def test_arithmetic_with_aggregates_of_groups(case: Case, keys: tuple[str, ...]) -> None:
    made = case.orders.group_by(*keys).aggregate(**COMPUTED)
    assert made.collect().column_names == [*keys, *COMPUTED]
    grouped = f"group by {', '.join(keys)}" if keys else ""
    case.agrees(made, f"select {', '.join([*keys, IN_SQL])} from orders {grouped}")


@pytest.mark.one_in(2, "a tenth of a second of a core each")
def test_arithmetic_with_aggregates_of_windows(case: Case) -> None:
    made = case.orders.key_by("name").window(tumbling("20s")).aggregate(**COMPUTED)
    assert made.collect().column_names == ["name", "window_start", "window_end", *COMPUTED]
    case.agrees(
        made.drop("window_start", "window_end"), f"select name, {IN_SQL} from orders group by name, ts // 20000"
    )
    counted = case.orders.window(count_window(60)).aggregate(share=SHARE, n=sabot.count())
    case.agrees(counted.select("share", "n"), "select sum(n) / count(*) as share, count(*) as n from orders")


def test_arithmetic_with_running_aggregates(case: Case) -> None:
    made = case.orders.filter(col("name") == "eve").key_by("name").aggregate(share=SHARE, n=sabot.count())
    case.agrees(
        made,
        "select name, sum(n) over w / count(*) over w as share, count(*) over w as n from orders where name = 'eve' "
        "window w as (order by id rows unbounded preceding)",
    )


@pytest.mark.one_in(2, "a tenth of a second of a core each")
def test_exact_quantiles_in_groups_in_windows_and_over_changes(case: Case) -> None:
    asked = {
        "half": sabot.median("n"),
        "q": sabot.quantile("n", 0.75, "linear"),
        "late": sabot.median(when(col("m") > 1).then("n")),
        "later": sabot.median("n").filter(col("m") > 2),
        "more": (sabot.median("n") + 1).round(1),
    }
    quantiles = (
        "median(n) as half, quantile_cont(n, 0.75) as q, median(n) filter (m > 1) as late, "
        "median(n) filter (m > 2) as later, round(median(n) + 1, 1) as more"
    )
    case.agrees(case.orders.group_by("m").aggregate(**asked), f"select m, {quantiles} from orders group by m")
    window = case.orders.key_by("m").window(tumbling("20s")).aggregate(**asked).drop("window_start", "window_end")
    case.agrees(window, f"select m, {quantiles} from orders group by m, ts // 20000")
    of_each = case.orders.group_by("m", "name").aggregate(n=sabot.max("n"))
    case.agrees(
        of_each.group_by("name").aggregate(m=sabot.median("n")),
        "select name, median(n) as m from (select name, max(n) as n from orders group by m, name) group by name",
    )


def test_rows_are_filtered_by_values_of_columns(case: Case) -> None:
    case.agrees(
        case.orders.filter(col("n") > 0, name="Ada", m=2).drop("ts"),
        "from orders where n > 0 and name = 'Ada' and m = 2",
    )
    with pytest.raises(UserError, match="there is no column 'nmae'"):
        case.orders.filter(nmae="Ada")
    with pytest.raises(UserError, match="filter needs a predicate"):
        case.orders.filter()


def test_a_plan_names_the_parts_of_a_median_after_its_column() -> None:
    orders = App("shop").stream("orders", schema={"k": "string", "n": "int64"})
    plan = orders.group_by("k").aggregate(mid=sabot.median("n"), top=sabot.quantile("n", 0.9)).explain()
    assert 'group by k: __mid = collect_list(col("n"))' in plan
    assert 'select k, mid = col("__mid").list.quantile(0.5' in plan
    assert 'top = col("__mid").list.quantile(0.9' in plan, "one list is kept for both"
    with pytest.raises(UserError, match=r"mid \(collect_list of n\): this aggregate has no result after each row"):
        orders.key_by("k").aggregate(mid=sabot.median("n")).explain()
    with pytest.raises(UserError, match=r"over: mid=collect_list.* is computed of all values of a group") as refused:
        orders.key_by("k").over(preceding=5, mid=sabot.median("n"))
    assert "group_by" in refused.value.hint


def test_an_aggregate_that_is_asked_for_twice_is_kept_once() -> None:
    orders = App("shop").stream("orders", schema={"k": "string", "n": "int64"})
    plan = orders.group_by("k").aggregate(total=sabot.sum("n"), share=SHARE, twice=2 * sabot.sum("n")).explain()
    assert 'group by k: total = sum(col("n")), __share = count()' in plan
    assert 'select k, total, share = col("total") / col("__share"), twice = 2 * col("total")' in plan


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda s: s.filter(sabot.sum("n") > 2),
            r"sum\(col\(\"n\"\)\) is an aggregate, which has no value in a single row",
        ),
        (lambda s: s.select(col("n") - sabot.mean("n")), "is an aggregate, which has no value in a single row"),
        (lambda s: s.group_by("k").aggregate(x=sabot.sum(sabot.sum("n") / 2)), "has no value in a single row"),
        (lambda s: s.group_by("k").aggregate(x=col("n") / 2), r"x=\(col\(\"n\"\) / 2\) is not an aggregate"),
        (lambda s: s.group_by("k").aggregate(k=sabot.sum("n") / 2), "'k' is the name of another column"),
        (lambda s: s.group_by("k").aggregate(SHARE), "needs a name"),
        (lambda s: s.group_by("k").aggregate(x=sabot.sum("n") or sabot.count()), "has no truth value"),
        (lambda s: s.group_by("k").aggregate(x=sabot.sum("n") == None), "None would be null in every row"),  # noqa: E711
        (lambda s: s.group_by("k").aggregate(x=sabot.sum("n") / col("m")), "there is no column 'm'"),
        (lambda s: s.join(s, left_on=col("x").str.lower(), right_on="k"), "join: there is no column 'x'"),
        (lambda s: s.join(s, on=3), "join: 3 is neither a column nor an expression"),
        (lambda s: s.lookup(s, on=[col("n") + 1, col("n") + 1]), r"the key \(col\(\"n\"\) \+ 1\) is named twice"),
        (
            lambda s: s.lookup(region_of, on=3, schema={"region": "int64"}),
            "lookup: 3 is neither a column nor an expression",
        ),
    ],
)
def test_what_is_no_key_and_no_aggregate_is_an_error_where_it_is_written(
    write: Callable[[Stream], Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        write(App("shop").stream("orders", schema={"k": "string", "n": "int64"}))


@pytest.mark.parametrize("step", ["group_by", "window", "over"])
def test_an_aggregate_of_an_expression_leaves_a_column_of_the_user_as_it_is(step: str) -> None:
    """Sabot computes such a value in a column called __0: it took the place of the key, and rows were grouped by it."""
    rows = App("names").stream([{"__0": "a", "x": 1, "ts": 1}, {"__0": "a", "x": 2, "ts": 2}], time="ts")
    twice = sabot.sum(col("x") * 2)
    if step == "group_by":
        found = rows.group_by("__0").aggregate(twice=twice)
    elif step == "window":
        found = rows.key_by("__0").window(tumbling("1s")).aggregate(twice=twice)
    else:
        found = rows.key_by("x").over(twice=twice)
    table = found.collect()
    wanted = [("a", 6)] if step != "over" else [("a", 2), ("a", 4)]
    assert list(zip(table["__0"].to_pylist(), table["twice"].to_pylist(), strict=True)) == wanted
