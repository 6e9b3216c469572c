"""The plans of queries: what is computed once, what is filtered before a join, and what needs no column more."""

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from sabot import App, UserError
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.expressions.compiled import _compiled
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.sql.syntax.text import SqlError

SCHEMA = {"id": "int64", "kind": "int64", "name": "string", "ts": "int64"}
OTHERS = {"key": "int64", "state": "string", "price": "int64", "ts": "int64"}


@pytest.fixture
def app() -> App:
    app = App("plans")
    some = [{"id": i, "kind": i % 4, "name": f"n{i % 3}", "ts": i * 1000} for i in range(40)]
    more = [{"key": i, "state": "OR" if i % 2 else "CA", "price": i % 5, "ts": i * 1000} for i in range(40)]
    app.register("a", app.stream(some, schema=SCHEMA, time="ts"))
    app.register("b", app.stream(more, schema=OTHERS, time="ts"))
    return app


COUNTS = (
    "SELECT kind, COUNT(*) AS n, window_start AS ws, window_end AS we "
    "FROM TABLE(TUMBLE(TABLE a, DESCRIPTOR(ts), INTERVAL '10' SECOND)) GROUP BY kind, window_start, window_end"
)


def test_conditions_of_one_table_filter_its_rows_before_an_inner_join(app):
    plan = app.sql("EXPLAIN SELECT name, price FROM a JOIN b ON a.id = b.key WHERE kind = 1 AND b.state = 'OR'")
    before, after = plan.split("stage join-1\n")
    assert 'filter col("kind") == 1' in before
    assert 'filter col("state") == "OR"' in before
    assert 'filter col("kind") == 1' in after, "rows that an earlier script has kept must not pass"


def test_an_outer_join_filters_only_the_table_whose_rows_it_keeps(app):
    plan = app.sql("EXPLAIN SELECT name, price FROM a LEFT JOIN b ON a.id = b.key WHERE kind = 1 AND b.state IS NULL")
    before = plan.split("stage join-1\n")[0]
    assert 'filter col("kind") == 1' in before
    assert "state" not in before.split("filter", 2)[-1].split("\n")[0]
    found = app.sql(
        "SELECT id, price FROM a LEFT JOIN b ON a.id = b.key AND b.price < 2 WHERE kind = 1 AND price IS NULL"
    )
    rows = found.materialize().collect().to_pylist()
    assert sorted(row["id"] for row in rows) == [i for i in range(40) if i % 4 == 1 and i % 5 >= 2]


@pytest.mark.parametrize("condition", ["100 / b.price > 30", "CAST(a.name AS BIGINT) = 1", "a.id * a.id > 3"])
def test_a_condition_that_may_fail_is_not_computed_for_rows_without_a_partner(app, condition):
    plan = app.sql(f"EXPLAIN SELECT name, price FROM a JOIN b ON a.id = b.key WHERE {condition}")
    assert "filter" not in plan.split("stage join-1\n")[0]


def test_equal_windows_of_a_statement_are_computed_once(app):
    most = f"SELECT SUM(n) AS m, ws, we FROM ({COUNTS}) c GROUP BY ws, we"
    query = f"SELECT x.kind, x.n FROM ({COUNTS}) x JOIN ({most}) y ON x.ws = y.ws AND x.we = y.we AND x.n >= y.m"
    assert app.sql(f"EXPLAIN {query}").count("by kind: n = count()") == 1


VALUES = (
    "SELECT kind, {}(half) AS n, window_start AS ws, window_end AS we "
    "FROM TABLE({}) GROUP BY kind, window_start, window_end"
)
WINDOWS = [
    "TUMBLE(TABLE r, DESCRIPTOR(ts), INTERVAL '10' SECOND)",
    "HOP(TABLE r, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '10' SECOND)",
    "CUMULATE(TABLE r, DESCRIPTOR(ts), INTERVAL '5' SECOND, INTERVAL '20' SECOND)",
]


@pytest.mark.one_in(12, "a tenth of a second of a core each")
@pytest.mark.parametrize("window", WINDOWS, ids=["tumble", "hop", "cumulate"])
@pytest.mark.parametrize(
    ("inner", "most", "condition"),
    [
        *(("COUNT", "MAX", "x.n >= y.m"), ("COUNT", "MAX", "x.n = y.m"), ("SUM", "MAX", "y.m <= x.n")),
        *(("MIN", "MIN", "x.n <= y.m"), ("MAX", "MIN", "y.m = x.n")),
    ],
)
def test_the_rows_with_the_greatest_value_of_their_window_are_those_of_the_join(window, inner, most, condition):
    numbers = random.Random(7)
    given = [
        {
            "kind": numbers.randrange(5),
            "half": numbers.choice([None, 1, 2, 3]),
            "ts": i * 700 - numbers.randrange(3) * 300,
        }
        for i in range(200)
    ] + [{"kind": k, "half": None, "ts": 300_000 + k} for k in range(3)]
    values = VALUES.format(inner, window)
    query = (
        f"SELECT x.kind, x.n, y.m, y.ws, x.we FROM ({values}) x JOIN (SELECT {most}(n) AS m, ws, we FROM ({values}) c GROUP BY ws, we) y "
        f"ON x.ws = y.ws AND x.we = y.we AND "
    )
    found = []
    for text in (condition, condition.replace("x.n", "x.n + 0")):
        app = App("tops")
        app.register(
            "r", app.stream(given, schema={"kind": "int64", "half": "int64", "ts": "int64"}, time="ts", lateness="5s")
        )
        plan = app.sql(f"EXPLAIN {query}{text}")
        found.append((plan.count("top 1 of"), sorted(map(repr, app.sql(query + text).collect().to_pylist()))))
    assert [tops for tops, _ in found] == [1, 0]
    assert found[0][1] == found[1][1]
    assert len(found[0][1]) > 10


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("most", "where", "condition"),
    [
        ("SELECT MAX(n) AS m, ws, we FROM ({}) c WHERE n > 1 GROUP BY ws, we", "", "x.n >= y.m"),
        ("SELECT MAX(n) AS m, ws, we FROM ({}) c GROUP BY ws, we", " WHERE kind > 1", "x.n >= y.m"),
        ("SELECT MAX(n) FILTER (WHERE kind > 1) AS m, ws, we FROM ({}) c GROUP BY ws, we", "", "x.n >= y.m"),
        ("SELECT MAX(n) AS m, ws, we FROM ({}) c GROUP BY ws, we", "", "x.n <= y.m"),
        ("SELECT MAX(n) AS m, ws, we FROM ({}) c GROUP BY ws, we", "", "x.kind >= y.m"),
        ("SELECT MAX(n) AS m, ws, we, kind FROM ({}) c GROUP BY ws, we, kind", "", "x.n >= y.m"),
        ("SELECT MAX(n) AS m, COUNT(*) AS k, ws, we FROM ({}) c GROUP BY ws, we", "", "x.n >= y.m"),
    ],
)
def test_a_join_with_other_rows_is_no_ranking(app, most, where, condition):
    query = f"SELECT x.kind, x.n FROM (SELECT * FROM ({COUNTS}) z{where}) x JOIN ({most.format(COUNTS)}) y "
    assert "top 1" not in app.sql(f"EXPLAIN {query} ON x.ws = y.ws AND x.we = y.we AND {condition}")


def test_equal_windows_of_two_statements_stay_apart(app):
    app.sql("CREATE TABLE one WITH ('connector' = 'blackhole'); CREATE TABLE two WITH ('connector' = 'blackhole')")
    plan = app.sql(f"EXPLAIN STATEMENT SET BEGIN INSERT INTO one {COUNTS}; INSERT INTO two {COUNTS}; END")
    assert plan.count("by kind: n = count()") == 2


def test_the_order_of_event_time_needs_no_column_for_nulls(app):
    query = (
        "SELECT * FROM (SELECT x.id, b.ts, ROW_NUMBER() OVER (PARTITION BY x.id ORDER BY b.{}) AS r "
        "FROM a x {} JOIN b ON x.id = b.key) WHERE r <= 1"
    )
    assert "present" not in app.sql("EXPLAIN " + query.format("ts", ""))
    assert "present" in app.sql("EXPLAIN " + query.format("price", ""))
    assert "present" in app.sql("EXPLAIN " + query.format("ts", "LEFT"))


def calls(app: App, query: str, *functions: Callable[..., Any]) -> int:
    """How often these functions are called while a query is bound."""
    count, codes = 0, {each.__code__ for each in functions}

    def look(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code in codes

    sys.setprofile(look)
    try:
        app.sql(query)
    finally:
        sys.setprofile(None)
    return count


def compilations(app: App, query: str) -> int:
    """How many expressions are compiled while a query is bound; the parts of an expression count too."""
    return calls(app, query, _compiled)


@pytest.mark.parametrize(("row", "each"), [("id + 1 AS id", 6), ("id + 1 AS id, UPPER(name) AS name", 8)])
def test_each_level_of_a_query_is_compiled_once(app, row, each):
    def filtered(levels: int) -> str:
        query = "a"
        for level in range(levels):
            query = f"(SELECT {row} FROM {query} WHERE id > {level}) t{level}"
        return f"SELECT * FROM {query}"

    assert [compilations(app, filtered(levels)) for levels in (1, 2, 20)] == [each, 2 * each, 20 * each]


GROUPED = "SELECT id, kind, SUM(ts) AS ts FROM {} GROUP BY id, kind"
OVER = "SELECT id, kind, ts, SUM(id) OVER (PARTITION BY kind ORDER BY ts) AS s FROM {}"


SUMMED = "SELECT kind, SUM(n) AS n, ws, we FROM {} GROUP BY kind, ws, we"


def nested(row: str, levels: int, name: str) -> str:
    query = "a"
    for level in range(levels):
        query = f"({row.format(query)}) {name}_{level}"
    return f"SELECT * FROM {query}"


def of_names(row: str, levels: int, name: str) -> list[tuple[str, str]]:
    return [(f"{name}_{level}", row.format(f"{name}_{level - 1}" if level else "a")) for level in range(levels)]


def in_with(row: str, levels: int, name: str) -> str:
    tables = [f"{each} AS ({query})" for each, query in of_names(row, levels, name)]
    return f"WITH {', '.join(tables)} SELECT * FROM {name}_{levels - 1}"


def in_views(row: str, levels: int, name: str) -> str:
    views = [f"CREATE VIEW {each} AS {query}" for each, query in of_names(row, levels, name)]
    return f"{'; '.join(views)}; SELECT * FROM {name}_{levels - 1}"


@pytest.mark.one_in(3, "a third of a second of a core each")
@pytest.mark.parametrize("written", [nested, in_with, in_views])
@pytest.mark.parametrize(("row", "operator"), [(GROUPED, GroupAggregate), (OVER, Over), (SUMMED, WindowAggregate)])
def test_each_query_inside_another_one_is_planned_once(app, written, row, operator):
    if row is SUMMED:
        app.sql(f"CREATE VIEW c AS {COUNTS}; DROP TABLE IF EXISTS a; CREATE VIEW a AS SELECT * FROM c")
    opened = [calls(app, written(row, levels, f"t{levels}"), operator.open) for levels in (2, 4, 16)]
    assert opened == [2, 4, 16]


def test_the_parts_of_an_expression_are_compiled_once(app):
    sums = [compilations(app, f"SELECT id{' + id' * terms} AS x FROM a") for terms in (10, 20, 180)]
    texts = [compilations(app, f"SELECT name{' || name' * terms} AS x FROM a") for terms in (10, 20, 180)]
    assert [sums[1] - sums[0], sums[2] - sums[1]] == [2 * 10, 2 * 160]
    assert [texts[1] - texts[0], texts[2] - texts[1]] == [2 * 10, 2 * 160]


def test_a_program_of_too_many_queries_one_in_another_is_refused_with_words(app):
    row = "SELECT id + 1 AS id FROM {} WHERE id > 0"
    app.sql(in_views(row, 300, "u"))
    with pytest.raises(UserError, match=r"too many steps in a row"):
        app.sql("EXPLAIN SELECT * FROM u_299")
    with pytest.raises(UserError, match=r"too many steps in a row"):
        app.sql("SELECT * FROM u_299").collect()


def test_a_key_of_too_many_columns_is_refused_at_its_place(app):
    names = ", ".join(f"c{i}" for i in range(300))
    numbers = ", ".join(f"id + {i} AS c{i}" for i in range(300))
    with pytest.raises(SqlError, match=r"SQL:1:1: a key has 300 columns that are not text"):
        app.sql(f"SELECT {names}, COUNT(*) AS n FROM (SELECT {numbers} FROM a) b GROUP BY {names}")
