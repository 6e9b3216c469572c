"""Random statements over random tables, with DuckDB's answers: joins, groups, filters and nulls in all combinations.

A failure names the seed of its statement: `-k seed17` runs it again.
"""

import random
from collections import Counter
from datetime import datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, files

STATEMENTS = 120
NUMBERS = {"a": ["id", "k", "v"], "b": ["id", "k", "w"]}
TEXTS = {"a": ["s"], "b": ["s"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("random")
    rng = random.Random(11)

    def column(values, count):
        return [None if rng.random() < 0.2 else rng.choice(values) for _ in range(count)]

    def table(count, number, type):
        return pa.table(
            {
                "id": pa.array(range(count), "int64"),
                "k": pa.array(column(range(6), count), "int64"),
                number: pa.array(column(range(-9, 9), count), type),
                "s": pa.array(column(["", "x", "y", "Z", "zz"], count), "string"),
                "d": pa.array(column([Decimal("1.50"), Decimal("-0.25")], count), pa.decimal128(8, 2)),
                "flag": pa.array(column([True, False], count), "bool"),
                "t": pa.array([1_700_000_000_000 + 700 * i for i in range(count)], pa.timestamp("ms")),
            }
        )

    pq.write_table(table(120, "v", "int32"), place / "a.parquet", row_group_size=17)
    pq.write_table(table(50, "w", "int64"), place / "b.parquet", row_group_size=9)
    return place


class Statements:
    """A writer of random statements that DuckDB and Flink understand alike."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def pick(self, *choices):
        return self.rng.choice(choices)

    def number(self, tables, depth=2):
        if depth == 0 or self.rng.random() < 0.4:
            alias, table = self.pick(*tables)
            return self.pick(f"{alias}.{self.pick(*NUMBERS[table])}", str(self.rng.randrange(-5, 6)))
        left, right = self.number(tables, depth - 1), self.number(tables, depth - 1)
        return self.pick(
            f"({left} {self.pick('+', '-', '*')} {right})",
            f"COALESCE({left}, {right})",
            f"CASE WHEN {self.condition(tables, 0)} THEN {left} ELSE {right} END",
            f"ABS({left})",
        )

    def text(self, tables):
        alias, table = self.pick(*tables)
        column = f"{alias}.{self.pick(*TEXTS[table])}"
        return self.pick(column, f"UPPER({column})", f"({column} || 'x')", f"COALESCE({column}, 'none')")

    def condition(self, tables, depth=2):
        if depth and self.rng.random() < 0.5:
            left, right = self.condition(tables, depth - 1), self.condition(tables, depth - 1)
            return self.pick(f"({left} AND {right})", f"({left} OR {right})", f"NOT ({left})")
        alias, table = self.pick(*tables)
        number, text = self.number(tables, 0), self.text(tables)
        column = self.pick(*NUMBERS[table], *TEXTS[table], "flag", "d")
        return self.pick(
            f"{alias}.{self.pick(*NUMBERS[table])} {self.pick('<', '<=', '=', '<>', '>', '>=')} {number}",
            f"{text} {self.pick('<', '=', '<>', '>=')} {self.pick(repr('x'), repr('Z'), text)}",
            f"{alias}.{column} IS {self.pick('', 'NOT ')}NULL",
            f"{alias}.flag",
            f"{alias}.d {self.pick('<', '>=', '=')} {self.pick('1.5', '0', '-0.25')}",
            f"{alias}.{self.pick(*NUMBERS[table])} BETWEEN -2 AND 4",
            f"{alias}.k {self.pick('', 'NOT ')}IN (1, 3, {self.rng.randrange(6)})",
            f"{alias}.{self.pick(*NUMBERS[table])} IS DISTINCT FROM {number}",
        )

    def source(self):
        """Returns FROM and the tables in it."""
        kind = self.rng.randrange(6)
        if kind == 0:
            return "a", [("a", "a")]
        if kind == 1:
            inside = self.condition([("q", "a")], 1)
            return f"(SELECT * FROM a q WHERE {inside}) a", [("a", "a")]
        tables = [("a", "a"), ("b", "b")]
        how = self.pick("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
        on = self.pick("a.k = b.k", "a.s = b.s AND a.k = b.k", "a.k + 1 = b.k", "b.w = a.v")
        if how in ("LEFT JOIN", "RIGHT JOIN") and self.rng.random() < 0.4:
            on += f" AND {self.condition([self.pick(*tables)], 1)}"
        elif how == "JOIN" and self.rng.random() < 0.4:
            on += f" AND {self.condition(tables, 1)}"
        source = f"a {how} b ON {on}"
        if self.rng.random() < 0.25:
            how = self.pick("JOIN", "LEFT JOIN")
            return f"{source} {how} b c ON c.id = {self.pick('a.id', 'b.id')}", [*tables, ("c", "b")]
        return source, tables

    def statement(self):
        source, tables = self.source()
        where = f" WHERE {self.condition(tables)}" if self.rng.random() < 0.6 else ""
        kind = self.rng.randrange(5)
        if kind == 0:
            columns = ", ".join(f"{alias}.id AS {alias}_id" for alias, _ in tables)
            return f"SELECT {columns}, {self.number(tables)} AS x, {self.text(tables)} AS y FROM {source}{where}"
        if kind == 1:
            return f"SELECT DISTINCT {self.number(tables, 1)} AS x, {self.text(tables)} AS y FROM {source}{where}"
        if kind == 2:
            partition, value = self.number(tables, 1), self.number(tables, 1)
            ids = ", ".join(f"{alias}.id AS {alias}_id" for alias, _ in tables)
            order = ", ".join(f"{alias}.id{self.pick('', ' DESC')}" for alias, _ in tables)
            down, nulls = self.pick("", " DESC"), self.pick("", "", " NULLS FIRST", " NULLS LAST")
            inner = f"ROW_NUMBER() OVER (PARTITION BY {partition} ORDER BY {value}{down}{nulls}, {order}) AS n"
            bound = self.rng.randrange(1, 4)
            return f"SELECT * FROM (SELECT {ids}, {inner} FROM {source}{where}) z WHERE n <= {bound}"
        keys = [self.pick(self.number(tables, 1), self.text(tables)) for _ in range(self.rng.randrange(1, 3))]
        keys = [key for key in dict.fromkeys(keys) if not key.lstrip("-").isdigit()] or ["a.k"]
        filtered = f" FILTER (WHERE {self.condition(tables, 1)})" if self.rng.random() < 0.4 else ""
        value = self.number(tables, 1)
        aggregates = [
            f"COUNT(*){filtered} AS n",
            f"SUM({value}){filtered} AS total",
            f"{self.pick('MIN', 'MAX')}({self.pick(value, self.text(tables))}) AS edge",
            f"COUNT(DISTINCT {self.text(tables)}) AS texts",
            "AVG(a.d) AS mean",
        ]
        chosen = self.rng.sample(aggregates, self.rng.randrange(1, 4))
        having = (
            f" HAVING {self.pick('COUNT(*) > 2', f'SUM({value}) > 0', 'MIN(a.k) IS NOT NULL')}" if kind == 4 else ""
        )
        named = [f"{key} AS key{i}" for i, key in enumerate(keys)]
        group = f"SELECT {', '.join([*named, *chosen])} FROM {source}{where} GROUP BY {', '.join(keys)}{having}"
        if self.rng.random() < 0.2:
            return f"SELECT key0, COUNT(*) AS groups FROM ({group}) g GROUP BY key0"
        return group


def ours(folder, text, parallelism):
    app = App("random", parallelism=parallelism)
    a, b = (app.stream(files(str(folder / f"{name}.parquet")), time="t") for name in "ab")
    return app.sql(text, a=a, b=b).materialize().collect()


def theirs(folder, text):
    with duckdb.connect() as connection:
        connection.execute("set default_null_order = 'NULLS_FIRST_ON_ASC_LAST_ON_DESC'")
        for name in "ab":
            connection.execute(f"create view {name} as select * from '{folder}/{name}.parquet'")
        return connection.sql(text).to_arrow_table()


def counted(table):
    def value(each):
        if isinstance(each, float | Decimal):
            return round(float(each), 6)
        return each.replace(tzinfo=None) if isinstance(each, datetime) else each

    columns = [[value(each) for each in table.column(i).to_pylist()] for i in range(table.num_columns)]
    return Counter(zip(*columns, strict=True))


@pytest.mark.parametrize("seed", range(STATEMENTS), ids=lambda seed: f"seed{seed}")
def test_a_random_statement_has_duckdbs_answer(folder, seed):
    text = Statements(seed).statement()
    expected = counted(theirs(folder, text))
    assert counted(ours(folder, text, 1 + seed % 2)) == expected, text
