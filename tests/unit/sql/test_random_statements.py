"""Random statements over random tables, with DuckDB's answers: joins, groups, filters and nulls in all combinations,
whatever the batches, the parallelism and the crashes; and faults that are planted in the binder, which they find.

A failure names the seed of its statement: `-k seed17` runs it again.
"""

import random
from collections import Counter
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sabot import App, UserError, files
from sabot.api.nodes.node import walk
from sabot.sql import functions, values
from sabot.sql.bind import over, relations, select, subqueries
from sabot.sql.bind.joins import conditions
from sabot.sql.scope import node_of
from sabot.sql.syntax import tree
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run

STATEMENTS, MORE, CRASHES = 120, 500, 60
SHARES = {"none": 0.0, "some": 0.2, "most": 0.7}  # of NULL in the tables
NUMBERS = {"a": ["id", "k", "v"], "b": ["id", "k", "w"]}
TEXTS = {"a": ["s"], "b": ["s"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {share: tables(tmp_path_factory.mktemp(share), nulls) for share, nulls in SHARES.items()}


def folder_of(folders, seed):
    return folders["some" if seed < STATEMENTS else [*SHARES][seed % 3]]


def tables(place, nulls):
    """Writes a and b as Parquet files. `nulls`: the share of NULL in their columns."""
    rng = random.Random(11)

    def column(values, count):
        return [None if rng.random() < nulls else rng.choice(values) for _ in range(count)]

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
        self.hints = random.Random(f"hints {seed}")

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

    def condition_of_a_query(self, tables):
        alias, table = self.pick(*tables)
        inner, column = self.pick(("a", "v"), ("b", "w"))
        where = self.condition([("z", inner)], 1)
        return self.pick(
            f"{alias}.k {self.pick('', 'NOT ')}IN (SELECT z.k FROM {inner} z WHERE {where})",
            f"{alias}.{self.pick(*NUMBERS[table])} >= (SELECT {self.pick('MIN', 'MAX')}(z.{column}) FROM {inner} z WHERE {where})",
            f"{self.pick('', 'NOT ')}EXISTS (SELECT 1 FROM {inner} z WHERE z.k = {alias}.k AND {where})",
        )

    def hint(self, tables):
        """Returns STATE_TTL of some tables, for longer than their rows span, so that nothing expires; or nothing."""
        if self.hints.random() < 0.5:
            return ""
        chosen = self.hints.sample(tables, self.hints.randrange(1, len(tables) + 1))
        times = ", ".join(f"'{alias}' = '{self.hints.choice(['85s', '2m', '1d'])}'" for alias, _ in chosen)
        return f" /*+ STATE_TTL({times}) */"

    def statement(self):
        source, tables = self.source()
        where = f" WHERE {self.condition(tables)}" if self.rng.random() < 0.6 else ""
        alone = self.rng.random() >= 0.25
        if not alone:
            where += f"{' AND' if where else ' WHERE'} {self.condition_of_a_query(tables)}"
        kind = self.rng.randrange(5)
        hint = self.hint(tables) if len(tables) > 1 or (alone and kind > 2) else ""
        if kind == 0:
            columns = ", ".join(f"{alias}.id AS {alias}_id" for alias, _ in tables)
            return f"SELECT{hint} {columns}, {self.number(tables)} AS x, {self.text(tables)} AS y FROM {source}{where}"
        if kind == 1:
            return f"SELECT{hint} DISTINCT {self.number(tables, 1)} AS x, {self.text(tables)} AS y FROM {source}{where}"
        if kind == 2:
            partition, value = self.number(tables, 1), self.number(tables, 1)
            ids = ", ".join(f"{alias}.id AS {alias}_id" for alias, _ in tables)
            order = ", ".join(f"{alias}.id{self.pick('', ' DESC')}" for alias, _ in tables)
            down, nulls = self.pick("", " DESC"), self.pick("", "", " NULLS FIRST", " NULLS LAST")
            inner = f"ROW_NUMBER() OVER (PARTITION BY {partition} ORDER BY {value}{down}{nulls}, {order}) AS n"
            bound = self.rng.randrange(1, 4)
            return f"SELECT * FROM (SELECT{hint} {ids}, {inner} FROM {source}{where}) z WHERE n <= {bound}"
        keys = [self.pick(self.number(tables, 1), self.text(tables)) for _ in range(self.rng.randrange(1, 3))]
        keys = [key for key in dict.fromkeys(keys) if not key.lstrip("-").isdigit()] or ["a.k"]
        filtered = f" FILTER (WHERE {self.condition(tables, 1)})" if self.rng.random() < 0.4 else ""
        value = self.number(tables, 1)
        aggregates = [
            f"COUNT(*){filtered} AS n",
            f"SUM({value}){filtered} AS total",
            f"{self.pick('MIN', 'MAX')}({self.pick(value, self.text(tables))}) AS edge",
            f"COUNT(DISTINCT {self.text(tables)}) AS texts",
            f"SUM(DISTINCT {value}){filtered} AS each_once",
            "AVG(a.d) AS mean",
        ]
        chosen = self.rng.sample(aggregates, self.rng.randrange(1, 4))
        having = (
            f" HAVING {self.pick('COUNT(*) > 2', f'SUM({value}) > 0', 'MIN(a.k) IS NOT NULL')}" if kind == 4 else ""
        )
        named = [f"{key} AS key{i}" for i, key in enumerate(keys)]
        group = f"SELECT{hint} {', '.join([*named, *chosen])} FROM {source}{where} GROUP BY {', '.join(keys)}{having}"
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


@pytest.mark.one_in(36, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", range(STATEMENTS), ids=lambda seed: f"seed{seed}")
def test_a_random_statement_has_duckdbs_answer(folders, seed):
    text = Statements(seed).statement()
    expected = counted(theirs(folders["some"], text))
    assert counted(ours(folders["some"], text, 1 + seed % 2)) == expected, text


@pytest.mark.slow
@pytest.mark.parametrize("first", range(STATEMENTS, MORE, 20), ids=lambda first: f"from{first}")
def test_more_random_statements_have_duckdbs_answer(folders, first):
    for seed in range(first, min(first + 20, MORE)):
        text, folder = Statements(seed).statement(), folder_of(folders, seed)
        assert counted(ours(folder, text, 1 + seed % 3)) == counted(theirs(folder, text)), f"seed {seed}: {text}"


def over_crashes(folder, text, seed, place):
    """Returns the rows of a statement whose tables come in pieces of any size, with barriers and crashes between."""
    sink = ListSink()

    def build(directory):
        app = App("crashes", parallelism=1 + seed % 2, state=str(directory), checkpoint_dir=directory / "checkpoints")
        app.configure(checkpoint_interval=None)
        given = {}
        for name in "ab":
            rng, table = random.Random(f"{seed} {name}"), pq.read_table(folder / f"{name}.parquet")
            script, at = [], 0
            while at < table.num_rows:
                size = rng.choice([1, 3, 11, 40])
                script.append(table.slice(at, size))
                at += size
            for mark in [BARRIER] * 3 + [CRASH]:
                script.insert(rng.randrange(len(script) + 1), mark)
            source = ScriptedSource([*script, END], name=name, schema=table.schema)
            given[name] = app.stream(source, time="t")
        stream = app.sql(text, **given)
        (stream.changelog() if stream.changes else stream).to(sink, delivery="exactly_once")
        return app

    assert run(build, place) > 1
    found = Counter()
    for row in sink.rows:
        sign = 1 if row.pop("op", "insert") in ("insert", "update_after") else -1
        (key,) = counted(pa.Table.from_pylist([row]))
        found[key] += sign
    return +found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MORE, MORE + CRASHES), ids=lambda seed: f"seed{seed}")
def test_a_random_statement_has_its_answer_over_crashes(folders, seed, tmp_path):
    text, folder = Statements(seed).statement(), folder_of(folders, seed)
    assert over_crashes(folder, text, seed, tmp_path) == counted(theirs(folder, text)), text


@pytest.mark.slow
def test_the_statements_cover_the_steps_with_changes_outer_joins_and_nulls(folders):
    """Each step is there over rows and over changes, each join of each kind, with each share of NULL."""
    seen = Counter()
    for seed in range(MORE):
        share = folder_of(folders, seed).name
        app = App("random")
        a, b = (app.stream(files(str(folder_of(folders, seed) / f"{name}.parquet")), time="t") for name in "ab")
        for node in walk([node_of(app.sql(Statements(seed).statement(), a=a, b=b))]):
            changes = any(upstream.changes for upstream in node.inputs)
            seen[type(node).__name__, getattr(node, "how", ""), changes, share.rstrip("0123456789")] += 1
            expires = getattr(node, "ttl_ms", None) or any(getattr(node, "keep_ms", ()))
            seen[type(node).__name__, "expires"] += bool(expires)
    assert seen["Join", "expires"] > 20
    assert seen["GroupAggregate", "expires"] > 20
    for share in SHARES:
        for how in ("inner", "left", "right", "full", "semi", "anti"):
            assert seen["Join", how, False, share] > 2, (how, share)
        for how in ("inner", "left", "semi"):
            assert seen["Join", how, True, share] > 0, (how, share)
        for step in ("Filter", "Select", "GroupAggregate", "Deduplicate", "TopN"):
            for changes in (False, True):
                assert seen[step, "", changes, share] > 2, (step, changes, share)


# -- faults that are planted in the binder ----------------------------------------------------------------------------


def without_clause(**clauses):
    """A fault: SELECT without these clauses."""

    def plant(patch):
        whole = select.SelectBinder.__init__

        def broken(self, context, body, relation, where, **options):
            whole(self, context, replace(body, **clauses), relation, where, **options)

        patch.setattr(select.SelectBinder, "__init__", broken)

    return plant


def outer_joins_are_inner(patch):
    patch.setattr(conditions, "_HOW", {**conditions._HOW, "LEFT": "inner"})


def full_joins_are_left(patch):
    patch.setattr(conditions, "_HOW", {**conditions._HOW, "FULL": "left"})


def nulls_are_the_greatest(patch):
    whole = over.order_columns

    def broken(context, relation, order):
        last = [each.descending if each.nulls_first is None else each.nulls_first for each in order]
        return whole(
            context, relation, [replace(each, nulls_first=nulls) for each, nulls in zip(order, last, strict=True)]
        )

    patch.setattr(over, "order_columns", broken)


def orders_are_ascending(patch):
    whole = over.order_columns
    patch.setattr(
        over, "order_columns", lambda a, b, order: whole(a, b, [replace(each, descending=False) for each in order])
    )


def not_in_is_in(patch):
    whole = values._BINDERS[tree.In]
    patch.setitem(values._BINDERS, tree.In, lambda self, node: whole(self, replace(node, negated=False)))


def between_is_above(patch):
    patch.setitem(
        values._BINDERS,
        tree.Between,
        lambda self, node: self.bind(tree.Binary(">=", node.operand, node.lower, node.span)),
    )


def null_is_distinct_from_nothing(patch):
    patch.setattr(
        values.Binder,
        "_distinct_from",
        lambda self, node: self.bind(tree.Binary("<>", node.left, node.right, node.span)),
    )


def filters_of_aggregates_are_lost(patch):
    whole = functions.aggregate
    patch.setattr(functions, "aggregate", lambda call, argument, predicate, zone: whole(call, argument, None, zone))


def distinct_aggregates_count_all(patch):
    whole = functions.aggregate
    patch.setattr(
        functions,
        "aggregate",
        lambda call, argument, predicate, zone: whole(replace(call, distinct=False), argument, predicate, zone),
    )


def further_conditions_of_joins_are_lost(patch):
    whole = conditions.JoinConditions.sort

    def broken(self):
        whole(self)
        self.residual = []

    patch.setattr(conditions.JoinConditions, "sort", broken)


def one_condition_of_where_counts(patch):
    whole = relations.conjuncts
    patch.setattr(relations, "conjuncts", lambda node: whole(node)[:1])


def nulls_of_a_query_do_not_count(patch):
    def broken(stream, inner, mine, its):
        return stream.join(inner, left_on=mine.expr, right_on=its.expr, how="anti")

    patch.setattr(subqueries, "without_partners", broken)


def not_exists_is_exists(patch):
    whole = relations.exists
    patch.setattr(relations, "exists", lambda a, b, query, how, rows: whole(a, b, query, "semi", rows))


def state_is_kept_for_a_moment(patch):
    patch.setattr(relations, "state_ttl", lambda hints, whole=relations.state_ttl: dict.fromkeys(whole(hints), "1s"))


FAULTS = {
    "HAVING is lost": without_clause(having=None),
    "DISTINCT is lost": without_clause(distinct=False),
    "outer joins are inner": outer_joins_are_inner,
    "full joins are left": full_joins_are_left,
    "nulls are the greatest": nulls_are_the_greatest,
    "orders are ascending": orders_are_ascending,
    "NOT IN is IN": not_in_is_in,
    "BETWEEN has no upper bound": between_is_above,
    "NULL IS DISTINCT FROM nothing": null_is_distinct_from_nothing,
    "FILTER is lost": filters_of_aggregates_are_lost,
    "COUNT DISTINCT counts all": distinct_aggregates_count_all,
    "further conditions of joins are lost": further_conditions_of_joins_are_lost,
    "one condition of WHERE counts": one_condition_of_where_counts,
    "nulls of a query do not count": nulls_of_a_query_do_not_count,
    "NOT EXISTS is EXISTS": not_exists_is_exists,
    "STATE_TTL is one second": state_is_kept_for_a_moment,
}


@pytest.mark.one_in(16, "up to four seconds of a core each; they show that the statements find faults")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_binder_is_found(folders, fault, monkeypatch):
    FAULTS[fault](monkeypatch)
    for seed in range(STATEMENTS):
        text, folder = Statements(seed).statement(), folders["some"]
        try:
            found = counted(ours(folder, text, 1))
        except UserError:
            return
        if found != counted(theirs(folder, text)):
            return
    pytest.fail(f"{STATEMENTS} statements have their answer although {fault}")
