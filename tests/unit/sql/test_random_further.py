"""Random statements with DuckDB's answers: orders with OFFSET and FETCH, LISTAGG, versions as of a time, and days of a
session's zone; and faults that are planted in the binder, which they find.

A failure names the seed of its statement: `-k seed17` runs it again.
"""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_random_statements import (
    Statements,
    counted,
    distinct_aggregates_count_all,
    filters_of_aggregates_are_lost,
    one_condition_of_where_counts,
    outer_joins_are_inner,
    tables,
)

from sabot import App, UserError, col, files
from sabot.api.nodes.node import walk
from sabot.sql.bind import groups, order
from sabot.sql.bind.joins import as_of
from sabot.sql.options import SqlOptions
from sabot.sql.scope import node_of

STATEMENTS, MORE = 48, 400
KINDS = ("order", "list", "versions", "days")
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland", "UTC")
BEGIN = datetime(2024, 3, 8, tzinfo=UTC)  # the clocks of New York, Berlin and Auckland change in the 40 days behind it


class Pair(NamedTuple):
    """A statement as we and as DuckDB read it. `zone`: the session's, whose clock DuckDB has as column `lt`."""

    ours: str
    theirs: str
    zone: str


class Further(Statements):
    """A writer of statements of one kind."""

    def pair(self, kind):
        return getattr(self, kind)()

    def where(self, tables, chance=0.5):
        return f" WHERE {self.condition(tables)}" if self.rng.random() < chance else ""

    def nulls(self):
        return f"{self.pick('', ' DESC')}{self.pick('', '', ' NULLS FIRST', ' NULLS LAST')}"

    def order(self):
        source, tables = self.source()
        if self.rng.random() < 0.5:
            ids = [f"{alias}.id" for alias, _ in tables]
            columns = ", ".join(f"{each} AS id{i}" for i, each in enumerate(ids))
            keys = [f"{self.number(tables, 1)} + 0{self.nulls()}", *(f"{each}{self.nulls()}" for each in ids)]
            text = f"SELECT {columns}, {self.text(tables)} AS y FROM {source}{self.where(tables)} ORDER BY {', '.join(keys)}"
        else:
            group = (
                f"SELECT a.k AS key0, a.s AS key1, COUNT(*) AS n FROM {source}{self.where(tables)} GROUP BY a.k, a.s"
            )
            text = f"{group} ORDER BY n{self.nulls()}, key0{self.nulls()}, key1{self.nulls()}"
        first, count = self.rng.randrange(1, 12), self.rng.randrange(1, 9)
        behind = self.pick(
            f" OFFSET {first} ROWS FETCH NEXT {count} ROWS ONLY", f" LIMIT {count} OFFSET {first}", f" LIMIT {count}"
        )
        skipped = f" LIMIT {count}" if "OFFSET" not in behind else f" LIMIT {count} OFFSET {first}"
        return Pair(text + behind, text + skipped, "UTC")

    def list(self):
        source, tables = self.source()
        ids = ", ".join(f"{alias}.id{self.nulls()}" for alias, _ in tables)
        order = f"{self.number(tables, 1)} + 0{self.nulls()}, {ids}"
        filtered = f" FILTER (WHERE {self.condition(tables, 1)})" if self.rng.random() < 0.6 else ""
        text, once = self.text(tables), self.text(tables)
        behind = f"FROM {source}{self.where(tables, 0.2)} GROUP BY a.k"
        values = [
            (f"LISTAGG({text}, '-') WITHIN GROUP (ORDER BY {order}){filtered}", f"string_agg({text}, '-' ORDER BY {order}){filtered}"),
            (f"LISTAGG(DISTINCT {once}, '+'){filtered}", f"string_agg(DISTINCT {once}, '+' ORDER BY {once}){filtered}"),
            (f"COUNT(DISTINCT {once}){filtered}",) * 2,
            (f"AVG(DISTINCT a.d){filtered}",) * 2,
        ]  # fmt: skip
        chosen = self.rng.sample(values, self.rng.randrange(1, 4))
        return Pair(*(f"SELECT a.k, {', '.join(each)} {behind}" for each in zip(*chosen, strict=True)), "UTC")

    def versions(self):
        inside = self.where([("q", "b")], 0.4)
        how, key = self.pick("JOIN", "LEFT JOIN"), self.pick("k", "s")
        newest = f"SELECT *, ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY t DESC) AS n FROM b q{inside}"
        view = f"CREATE VIEW newest AS SELECT id, k, w, s, d, flag, t FROM ({newest}) WHERE n = 1;"
        columns = f"SELECT a.id, b.id AS v, b.w + a.v AS x, {self.text([('a', 'a'), ('b', 'b')])} AS y"
        where = self.where([("a", "a"), ("b", "b")])
        ours = f"{view} {columns} FROM a {how} newest FOR SYSTEM_TIME AS OF a.t AS b ON a.{key} = b.{key}{where}"
        asof = f"ASOF {how} (SELECT * FROM b q{inside}) b ON a.{key} = b.{key} AND a.t >= b.t"
        return Pair(ours, f"{columns} FROM a {asof}{where}", "UTC")

    def days(self):
        zone = self.pick(*ZONES)
        where = f" WHERE {self.pick('v > 0', 'HOUR(t) < 12', 'v IS NOT NULL', 'CAST(t AS DATE) < DATE ' + repr('2024-03-31'))}"
        where = where if self.rng.random() < 0.5 else ""
        value = self.pick("SUM(v)", "COUNT(DISTINCT v)", "MAX(v)", "COUNT(*)")
        local = where.replace("(t", "(lt")
        form = self.rng.randrange(3)
        if form == 0:
            ours = f"SELECT k, HOUR(t) AS h, CAST(t AS DATE) AS day, {value} AS n FROM z{where} GROUP BY k, HOUR(t), CAST(t AS DATE)"
            theirs = f"SELECT k, hour(lt) AS h, lt::DATE AS day, {value} AS n FROM z{local} GROUP BY ALL"
        else:
            rows = f"(SELECT * FROM z{where})" if where else "z"
            name = "z" if form == 1 else "later"
            view = (
                ""
                if name == "z"
                else f"CREATE VIEW later AS SELECT id, k, v, t FROM {rows}{'' if rows == 'z' else ' y'};"
            )
            inside = "" if name == "later" else where
            ours = (
                f"{view} SELECT k, CAST(window_start AS TIMESTAMP(3)) AS day, {value} AS n FROM TABLE(TUMBLE(TABLE {name}, "
                f"DESCRIPTOR(t), INTERVAL '1' DAY)){inside} GROUP BY k, window_start, window_end"
            )
            theirs = f"SELECT k, date_trunc('day', lt)::TIMESTAMP AS day, {value} AS n FROM z{local} GROUP BY ALL"
        return Pair(f"SET 'table.local-time-zone' = '{zone}'; {ours}", theirs, zone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tables(tmp_path_factory.mktemp("further"), 0.2)
    rng = random.Random(5)
    at = int(BEGIN.timestamp() * 1000)
    rows = [
        {"id": i, "k": rng.choice([None, 0, 1]), "v": rng.choice([None, -2, 1, 3]), "t": at + i * 7_860_000}
        for i in range(440)
    ]
    schema = pa.schema({"id": pa.int64(), "k": pa.int64(), "v": pa.int64(), "t": pa.timestamp("ms", "UTC")})
    pq.write_table(pa.Table.from_pylist(rows, schema), place / "z.parquet", row_group_size=31)
    return place


def stream(folder, pair, parallelism):
    app = App("further", parallelism=parallelism)
    return app.sql(pair.ours, **{n: app.stream(files(str(folder / f"{n}.parquet")), time="t") for n in "abz"})


def ours(folder, pair, parallelism):
    return counted(stream(folder, pair, parallelism).materialize().collect())


def theirs(folder, pair):
    clock = pq.read_table(folder / "z.parquet")
    local = pc.local_timestamp(clock["t"].cast(pa.timestamp("ms", pair.zone)))
    with duckdb.connect() as connection:
        connection.execute("set default_null_order = 'NULLS_FIRST_ON_ASC_LAST_ON_DESC'")
        for name in "ab":
            connection.execute(f"create view {name} as select * from '{folder}/{name}.parquet'")
        connection.register("z", clock.drop(["t"]).append_column("lt", local))
        return counted(connection.sql(pair.theirs).to_arrow_table())


def pair_of(seed):
    return Further(seed).pair(KINDS[seed % len(KINDS)])


@pytest.mark.one_in(24, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", range(STATEMENTS), ids=lambda seed: f"seed{seed}")
def test_a_random_statement_of_each_kind_has_duckdbs_answer(folder, seed):
    pair = pair_of(seed)
    assert ours(folder, pair, 1 + seed // 4 % 2) == theirs(folder, pair), pair.ours


@pytest.mark.slow
@pytest.mark.parametrize("first", range(STATEMENTS, MORE, 22), ids=lambda first: f"from{first}")
def test_more_random_statements_of_each_kind_have_duckdbs_answer(folder, first):
    for seed in range(first, min(first + 22, MORE)):
        pair = pair_of(seed)
        assert ours(folder, pair, 1 + seed // 4 % 3) == theirs(folder, pair), f"seed {seed}: {pair.ours}"


@pytest.mark.slow
def test_the_statements_cover_each_kind_of_step_and_most_have_rows(folder):
    seen = Counter()
    for seed in range(MORE):
        pair, kind = pair_of(seed), KINDS[seed % len(KINDS)]
        seen[kind, "rows"] += bool(theirs(folder, pair)) if seed < STATEMENTS else 0
        seen["zone", pair.zone] += kind == "days"
        for node in walk([node_of(stream(folder, pair, 1))]):
            seen[kind, type(node).__name__, getattr(node, "how", ""), any(each.changes for each in node.inputs)] += 1
    for kind in KINDS:
        assert seen[kind, "rows"] > STATEMENTS // len(KINDS) // 2, kind
    for zone in ZONES:
        assert seen["zone", zone] > 9, zone
    for changes in (False, True):
        assert seen["order", "TopN", "", changes] > 9
        assert seen["list", "GroupAggregate", "", changes] > 9
    for how in ("inner", "left"):
        assert seen["versions", "AsofJoin", how, True] > 9, (how, seen)
    assert seen["days", "AggregateWindow", "", False] > 20


# -- faults that are planted in the binder ----------------------------------------------------------------------------


def limits_are(changed):
    """A fault: other numbers of LIMIT, FETCH and OFFSET."""

    def plant(patch):
        whole = order.limit_of
        patch.setattr(order, "limit_of", lambda *given: changed(whole(*given), *given[2:]))

    return plant


def the_zone_is_utc(patch):
    patch.setattr(SqlOptions, "zone", property(lambda self: "UTC"))


def lists_are_reversed(patch):
    whole = groups.GroupBinder._order_of_list

    def broken(*given):
        order = whole(*given)
        return [replace(each, descending=not each.descending) for each in order] if isinstance(order, tuple) else order

    patch.setattr(groups.GroupBinder, "_order_of_list", broken)


def orders_are(changed):
    """A fault: another order of the rows that LIMIT bounds."""

    def plant(patch):
        whole = order.order_columns
        patch.setattr(order, "order_columns", lambda a, b, by: whole(a, b, [changed(each) for each in by]))

    return plant


def versions_are_the_first(patch):
    whole = as_of.versions

    def broken(stream):
        found = whole(stream)
        return None if found is None else found.filter(col("id") < 25)

    patch.setattr(as_of, "versions", broken)


FAULTS = {
    "OFFSET is lost": limits_are(lambda number, *what: 0 if what else number),
    "LIMIT takes one more": limits_are(lambda number, *what: number if what else number + 1),
    "orders of LIMIT are ascending": orders_are(lambda each: replace(each, descending=False)),
    "NULLS FIRST is lost": orders_are(lambda each: replace(each, nulls_first=None)),
    "the zone is UTC": the_zone_is_utc,
    "lists are in the reverse order": lists_are_reversed,
    "DISTINCT is lost": distinct_aggregates_count_all,
    "FILTER is lost": filters_of_aggregates_are_lost,
    "outer joins are inner": outer_joins_are_inner,
    "later versions are lost": versions_are_the_first,
    "one condition of WHERE counts": one_condition_of_where_counts,
}


@pytest.mark.slow  # a second or two of a core each
@pytest.mark.one_in(11, "up to two seconds of a core each; they show that the statements find faults")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_binder_is_found(folder, fault, monkeypatch):
    FAULTS[fault](monkeypatch)
    for seed in range(STATEMENTS):
        pair = pair_of(seed)
        try:
            found = ours(folder, pair, 1)
        except UserError:
            return
        if found != theirs(folder, pair):
            return
    pytest.fail(f"{STATEMENTS} statements have their answer although {fault}")
