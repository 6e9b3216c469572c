"""Results that change against the same over all rows at once: groups, tables, the first rows of each key, and chains of them.

Each is read as the log of its changes, which makes the batch answer of an empty table and never takes a row that is not there; as
`collect()`, which materializes it; and through sinks that keep the last row of a key. SABOT_STREAM_SEEDS=N draws N times as many.
"""

import asyncio
import json
import math
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import (
    EVENTS,
    Circumstance,
    Joined,
    Kept,
    Row,
    Rows,
    another_way,
    answers_are_the_same,
    by_key,
    differences,
    draw,
    events,
    hops,
    of,
    plain,
    read,
    rows_of,
    rows_read,
    run_crashes,
    sources_of,
    table_after,
    tumbles,
    until,
)

import sabot
from sabot import App, SqlSink, Stream, UserAggregate, UserError, aggregate_with, col, hopping, tumbling
from sabot.testing import ListSink, MemoryBroker

SEEDS = range(int(os.environ.get("SABOT_STREAM_SEEDS", "1")))


def latest(rows: list[Row], *keys: str) -> list[Row]:
    """The last row of each key, in the order in which these came."""
    found: dict[Any, Row] = {}
    for row in rows:
        key = tuple(plain(row[name], zeros_equal=True) for name in keys)
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def groups(keys: Sequence[str], **aggregates: Callable[[list[Row]], Any]) -> Callable[[list[Row]], list[Row]]:
    """The naive group by."""

    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for members in by_key(rows, keys).values():
            ordered = sorted(members, key=lambda row: row.get("ts", 0))
            out.append(
                {**{key: members[0][key] for key in keys}, **{name: made(ordered) for name, made in aggregates.items()}}
            )
        return out

    return answer


def best(
    keys: Sequence[str],
    n: int,
    by: Sequence[tuple[str, bool]],
    *,
    ties: str = "row_number",
    rank: str | None = None,
    columns: Sequence[str] = (),
) -> Callable[[list[Row]], list[Row]]:
    """The naive top n: rows as they came, sorted, and those of them that have their place among the first n."""

    def place_of(row: Row) -> tuple[tuple[int, Any], ...]:
        places = []
        for name, descending in by:
            value = row[name]
            last = value is None or value != value
            places.append((1, 0) if last else (0, -value if descending else value))
        return tuple(places)

    def answer(rows: list[Row]) -> list[Row]:
        out = []
        for members in by_key(rows, keys).values():
            ordered = sorted(members, key=place_of)
            places = [place_of(row) for row in ordered]
            for at, row in enumerate(ordered):
                place = {
                    "row_number": at + 1,
                    "rank": places.index(places[at]) + 1,
                    "dense_rank": len(set(places[: at + 1])),
                }[ties]
                if place <= n:
                    shown = {name: row[name] for name in columns or row}
                    out.append({**shown, **({} if rank is None else {rank: place})})
        return out

    return answer


class Total(UserAggregate):
    """A sum of one's own; nulls count as nothing."""

    type = pa.int64()

    def init(self) -> Any:
        return 0

    def accumulate(self, state: Any, batch: pa.RecordBatch) -> Any:
        return state + sum(value or 0 for value in batch["x"].to_pylist())

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def finish(self, state: Any) -> Any:
        return state


# -- groups ---------------------------------------------------------------------------------------------------------------

EXACT: dict[str, tuple[Any, Any]] = {
    "c": (sabot.count(), of("count")),
    "some": (sabot.count("v"), of("count", "v")),
    "total": (sabot.sum("x"), of("sum", "x")),
    "money": (sabot.sum("v"), of("sum", "v")),
    "odd": (sabot.sum("f"), of("sum", "f")),
    "low": (sabot.min("v"), of("min", "v")),
    "high": (sabot.max("x"), of("max", "x")),
    "odd_low": (sabot.min("f"), of("min", "f")),
    "odd_high": (sabot.max("f"), of("max", "f")),
    "first_s": (sabot.min("s"), of("min", "s")),
    "last_s": (sabot.max("s"), of("max", "s")),
    "kinds": (sabot.count_distinct("s"), of("count_distinct", "s")),
    "least": (sabot.arg_min("s", "n"), of("arg_min", "s", "n")),
    "most": (sabot.arg_max("x", "n"), of("arg_max", "x", "n")),
    "large": (
        sabot.count().filter(col("v") > 20),
        of("count", where=lambda row: row["v"] is not None and row["v"] > 20),
    ),
    "own": (aggregate_with(Total(), "x"), lambda rows: sum(row["x"] or 0 for row in rows)),
}
NEAR: dict[str, tuple[Any, Any]] = {
    "mean": (sabot.mean("v"), of("mean", "v")),
    "variance": (sabot.variance("v"), of("variance", "v")),
    "stddev": (sabot.stddev("x"), of("stddev", "x")),
}
IN_TIME: dict[str, tuple[Any, Any]] = {
    "begin": (sabot.first("s"), of("first", "s")),
    "end": (sabot.last("x"), of("last", "x")),
    "rows": (sabot.collect_list("n"), of("collect_list", "n")),
}


def written(known: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: aggregate for name, (aggregate, _) in known.items()}


def naive(known: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: value for name, (_, value) in known.items()}


ALL = {**EXACT, **NEAR}

GROUPS = [
    Joined(
        "groups of rows",
        lambda a: a.group_by("k").aggregate(**written(ALL)),
        groups(["k"], **naive(ALL)),
        sources=1,
        changes=True,
        key=("k",),
        near=tuple(NEAR),
    ),
    Joined(
        "groups of rows, by SQL",
        lambda a: a.group_by("k", "j").aggregate(
            c=sabot.count(), total=sabot.sum("x"), low=sabot.min("v"), s=sabot.max("s")
        ),
        "select k, j, count(*) as c, sum(x)::bigint as total, min(v) as low, max(s) as s from a group by k, j",
        sources=1,
        changes=True,
        key=("k", "j"),
    ),
    Joined(
        "groups by expressions",
        lambda a: a.group_by(col("j"), big=col("x") > 3).aggregate(c=sabot.count(), total=sabot.sum("x")),
        "select j, x > 3 as big, count(*) as c, sum(x)::bigint as total from a group by 1, 2",
        sources=1,
        changes=True,
        key=("j", "big"),
    ),
    Joined(
        "groups by a float",
        lambda a: a.group_by("f").aggregate(c=sabot.count(), total=sabot.sum("x")),
        groups(["f"], c=of("count"), total=of("sum", "x")),
        sources=1,
        changes=True,
        key=("f",),
    ),
    Joined(
        "groups in the order of time",
        lambda a: a.group_by("k").aggregate(**written(IN_TIME)),
        groups(["k"], **naive(IN_TIME)),
        sources=1,
        changes=True,
        key=("k",),
        data=("distinct",),
    ),
    Joined(
        "groups by an expression",
        lambda a: a.group_by((col("n") % 7).alias("seven")).aggregate(c=sabot.count(), total=sabot.sum(col("x") * 2)),
        "select n % 7 as seven, count(*) as c, sum(x * 2)::bigint as total from a group by seven",
        sources=1,
        changes=True,
        key=("seven",),
    ),
    Joined(
        "all rows as one group",
        lambda a: a.group_by().aggregate(c=sabot.count(), total=sabot.sum("x"), high=sabot.max("v")),
        "select count(*) as c, sum(x)::bigint as total, max(v) as high from a",
        sources=1,
        changes=True,
        data=("plain", "old", "hot", "one"),
    ),
    Joined(
        "groups of a table",
        lambda a: a.upsert("k", "x").group_by("k").aggregate(**written(ALL)),
        lambda a: groups(["k"], **naive(ALL))(latest(a, "k", "x")),
        sources=1,
        changes=True,
        key=("k",),
        arrival=True,
        near=tuple(NEAR),
    ),
    Joined(  # each row of the table moves from group to group, and groups end
        "groups of a table by what changes",
        lambda a: a.upsert("k").group_by("j").aggregate(**written(ALL)),
        lambda a: groups(["j"], **naive(ALL))(latest(a, "k")),
        sources=1,
        changes=True,
        key=("j",),
        arrival=True,
        near=tuple(NEAR),
    ),
    Joined(
        "groups of a table in the order of time",
        lambda a: a.upsert("k", "x").group_by("k").aggregate(**written(IN_TIME)),
        lambda a: groups(["k"], **naive(IN_TIME))(latest(a, "k", "x")),
        sources=1,
        changes=True,
        key=("k",),
        arrival=True,
        data=("distinct",),
    ),
    Joined(
        "all rows of a table as one group",
        lambda a: a.upsert("j").group_by().aggregate(c=sabot.count(), total=sabot.sum("f"), high=sabot.max("v")),
        lambda a: groups([], c=of("count"), total=of("sum", "f"), high=of("max", "v"))(latest(a, "j")),
        sources=1,
        changes=True,
        arrival=True,
        data=("plain", "old", "hot", "one"),
    ),
    Joined(
        "groups of groups of groups",
        lambda a: (
            a.group_by("k", "j")
            .aggregate(c=sabot.count(), total=sabot.sum("x"))
            .group_by("j")
            .aggregate(c=sabot.sum("c"), most=sabot.max("c"), parts=sabot.count(), total=sabot.sum("total"))
            .group_by("parts")
            .aggregate(c=sabot.sum("c"), most=sabot.max("most"), j=sabot.min("j"))
        ),
        """select parts, sum(c)::bigint as c, max(most) as most, min(j) as j from (
             select j, sum(c) as c, max(c) as most, count(*) as parts from (
               select k, j, count(*) as c from a group by k, j) group by j) group by parts""",
        sources=1,
        changes=True,
        key=("parts",),
    ),
    Joined(
        "groups, and those of them that are large",
        lambda a: a.group_by("k").aggregate(c=sabot.count(), total=sabot.sum("x")).filter((col("total") % 3) == 0),
        "select k, count(*) as c, sum(x)::bigint as total from a group by k having sum(x) % 3 = 0",
        sources=1,
        changes=True,
        key=("k",),
    ),
    Joined(
        "columns of groups",
        lambda a: (
            a.group_by("k", "j")
            .aggregate(c=sabot.count(), total=sabot.sum("x"))
            .with_columns(half=col("c") // 2)
            .rename({"k": "who"})
            .drop("j", "c")
            .select("half", "who", twice=col("total") * 2)
        ),
        "select (count(*) // 2)::bigint as half, k as who, (sum(x) * 2)::bigint as twice from a group by k, j",
        sources=1,
        changes=True,
    ),
    Joined(
        "groups of two streams together",
        lambda a, b: (
            a.group_by("k")
            .aggregate(c=sabot.count())
            .union(b.filter(col("x") > 0).group_by("k").aggregate(c=sabot.count()))
        ),
        "select k, count(*) as c from a group by k union all select k, count(*) as c from b where x > 0 group by k",
        changes=True,
    ),
    Joined(
        "groups of groups of two streams together",
        lambda a, b: (
            a.group_by("k")
            .aggregate(c=sabot.count())
            .union(b.group_by("k").aggregate(c=sabot.count()))
            .group_by("c")
            .aggregate(keys=sabot.count_distinct("k"), low=sabot.min("k"))
        ),
        """select c, count(distinct k) as keys, min(k) as low from (select k, count(*) as c from a group by k
           union all select k, count(*) as c from b group by k) group by c""",
        changes=True,
        key=("c",),
    ),
    Joined(
        "values that a group has once",
        lambda a: a.group_by("k", "x").aggregate(c=sabot.count()).deduplicate("k").select("k"),
        "select distinct k from a",
        sources=1,
        changes=True,
        key=("k",),
    ),
    Joined(
        "the greatest values of a group",
        lambda a: a.group_by("k").aggregate(high=sabot.top_k("x", 3)),
        groups(["k"], high=lambda rows: sorted((row["x"] for row in rows if row["x"] is not None), reverse=True)[:3]),
        sources=1,
        changes=True,
        key=("k",),
    ),
    Joined(
        "the rows at the end, and their groups",
        lambda a: (
            a.group_by("k", "j").aggregate(c=sabot.count()).materialize().group_by("k").aggregate(parts=sabot.count())
        ),
        "select k, count(*) as parts from (select distinct k, j from a) group by k",
        sources=1,
        changes=True,
        key=("k",),
    ),
]

# -- tables ---------------------------------------------------------------------------------------------------------------

SOME = ("n", "k", "x", "s")


def some(rows: list[Row], columns: Sequence[str] = SOME) -> list[Row]:
    return [{name: row[name] for name in columns} for row in rows]


TABLES = [
    Joined(
        "the last row of each key",
        lambda a: a.select(*SOME).upsert("k"),
        lambda a: some(latest(a, "k")),
        sources=1,
        changes=True,
        key=("k",),
        arrival=True,
    ),
    Joined(
        "the last row of each two keys",
        lambda a: a.select("x", "k", "v").upsert("k", "x"),
        lambda a: some(latest(a, "k", "x"), ("x", "k", "v")),
        sources=1,
        changes=True,
        key=("k", "x"),
        arrival=True,
    ),
    Joined(
        "a table, filtered and by another column",
        lambda a: a.select(*SOME).upsert("k").filter(col("x") > 0).with_columns(x=col("x") * 2),
        lambda a: [{**row, "x": row["x"] * 2} for row in some(latest(a, "k")) if row["x"] is not None and row["x"] > 0],
        sources=1,
        changes=True,
        key=("k",),
        arrival=True,
    ),
    Joined(  # by a key that is not that of the changes: of the rows of a key one stays
        "keys of groups",
        lambda a: a.group_by("k", "j").aggregate(c=sabot.count()).upsert("k").select("k"),
        "select distinct k from a",
        sources=1,
        changes=True,
        key=("k",),
    ),
    Joined(
        "groups over a join over a table",
        lambda a, b: (
            a.select("n", "k", "x")
            .upsert("k")
            .join(b.select("k", "v", m="n"), on="k", how="left")
            .group_by("x")
            .aggregate(c=sabot.count("m"), keys=sabot.count_distinct("k"), low=sabot.min("v"))
        ),
        """select x, count(m) as c, count(distinct k) as keys, min(v) as low from (
             select t.k, t.x, b.v, b.n as m from (select k, arg_max_null(x, n) as x from a group by k) t left join b on t.k = b.k)
           group by x""",
        changes=True,
        key=("x",),
        arrival=True,
    ),
    Joined(
        "a join of a top n and groups, and its groups",
        lambda a, b: (
            a.select("n", "k", "x")
            .key_by("k")
            .top_n(3, by=["x", "n"])
            .join(b.group_by("k").aggregate(c=sabot.count()), on="k", how="full")
            .group_by("c")
            .aggregate(rows=sabot.count("n"), total=sabot.sum("x"), low=sabot.min("k"))
        ),
        """select c, count(n) as rows, sum(x)::bigint as total, min(k) as low from (
             select coalesce(t.k, g.k) as k, t.n, t.x, g.c from
             (select * from a qualify row_number() over (partition by k order by x desc nulls last, n desc) <= 3) t
             full outer join (select k, count(*) as c from b group by k) g on t.k = g.k) group by c""",
        changes=True,
        key=("c",),
    ),
]

# -- the first rows of each key -------------------------------------------------------------------------------------------


def first_rows(
    name: str,
    n: int,
    by: Any,
    ways_of: Any = True,
    *,
    keys: Sequence[str] = ("k",),
    ties: Any = "row_number",
    rank: str | None = None,
    columns: Sequence[str] = ("n", "k", "x", "v"),
    **options: Any,
) -> Joined:
    names = [by] if isinstance(by, str) else list(by)
    descending = [ways_of] * len(names) if isinstance(ways_of, bool) else list(ways_of)
    order = list(zip(names, descending, strict=True))
    return Joined(
        name,
        lambda a: a.select(*columns).key_by(*keys).top_n(n, by, descending=ways_of, ties=ties, rank=rank),
        lambda a: best(keys, n, order, ties=ties, rank=rank, columns=columns)(a),
        sources=1,
        changes=True,
        key=(*keys, rank) if rank is not None and ties == "row_number" else (),
        **options,
    )


TOP = [
    first_rows("top 3", 3, ["x", "n"]),
    first_rows("top 3 with their place", 3, ["x", "n"], rank="place"),
    first_rows("top 1, least first", 1, ["v", "n"], False, rank="place"),
    first_rows("top 4, up and down", 4, ["x", "v", "n"], [True, False, True]),
    first_rows("top 3, ties by arrival", 3, "x", arrival=True),
    first_rows("top 3, ties by arrival, with their place", 3, "x", False, rank="place", arrival=True),
    first_rows("top 3 with ties", 3, "x", ties="rank"),
    first_rows("top 3 with ties and place", 3, "x", False, ties="rank", rank="place"),
    first_rows("top 2 values", 2, "x", ties="dense_rank"),
    first_rows("top 2 values and place", 2, ["x", "v"], [False, True], ties="dense_rank", rank="place"),
    first_rows("top 5 of floats", 5, ["f", "n"], columns=("n", "k", "f"), rank="place"),
    first_rows("top 5 of floats, least first", 5, ["f", "n"], False, columns=("n", "k", "f"), ties="rank"),
    first_rows("top 100 of two keys", 100, "n", keys=("k", "j"), columns=("n", "k", "j", "s")),
    Joined(
        "top 2 of equal rows",
        lambda a: a.select("k", "x").key_by("k").top_n(2, by="x"),
        lambda a: best(["k"], 2, [("x", True)], columns=("k", "x"))(a),
        sources=1,
        changes=True,
    ),
    Joined(
        "top 3 of a table",
        lambda a: a.select("n", "k", "x", "s").upsert("s", "k", "x").key_by("k").top_n(3, by=["x", "n"], rank="place"),
        lambda a: best(["k"], 3, [("x", True), ("n", True)], rank="place", columns=("n", "k", "x", "s"))(
            latest(a, "s", "k", "x")
        ),
        sources=1,
        changes=True,
        key=("k", "place"),
        arrival=True,
    ),
    Joined(
        "top 2 of groups with ties",
        lambda a: (
            a.group_by("k", "j").aggregate(c=sabot.count()).key_by("k").top_n(2, by="c", ties="rank", rank="place")
        ),
        """select k, j, count(*) as c, rank() over (partition by k order by c desc) as place from a group by k, j qualify place <= 2""",
        sources=1,
        changes=True,
    ),
    Joined(
        "top 2 of groups by what they count",
        lambda a: (
            a.group_by("k", "x")
            .aggregate(c=sabot.count(), last=sabot.max("n"))
            .key_by("c")
            .top_n(2, by="last", rank="place")
        ),
        """select k, x, count(*) as c, max(n) as last, row_number() over (partition by c order by max(n) desc) as place from a
           group by k, x qualify place <= 2""",
        sources=1,
        changes=True,
        key=("c", "place"),
    ),
    Joined(
        "groups of the top 3",
        lambda a: (
            a.select("n", "k", "x")
            .key_by("k")
            .top_n(3, by=["x", "n"])
            .group_by("x")
            .aggregate(c=sabot.count(), m=sabot.max("n"))
        ),
        """select x, count(*) as c, max(n) as m from (select * from a qualify
           row_number() over (partition by k order by x desc nulls last, n desc) <= 3) group by x""",
        sources=1,
        changes=True,
        key=("x",),
    ),
    Joined(
        "the top 2 of the top 5",
        lambda a: (
            a.select("n", "k", "j", "v")
            .key_by("k")
            .top_n(5, by=["v", "n"])
            .key_by("j")
            .top_n(2, by=["n"], descending=False)
        ),
        lambda a: best(["j"], 2, [("n", False)], columns=("n", "k", "j", "v"))(
            best(["k"], 5, [("v", True), ("n", True)])(a)
        ),
        sources=1,
        changes=True,
    ),
]

# -- the first rows of windows: final, no changes -------------------------------------------------------------------------


def window_top(
    spans: Callable[[int], list[tuple[int, int]]],
    keys: Sequence[str],
    columns: Sequence[str],
    answer: Any,
    rank: str | None,
) -> Callable[[list[Row]], list[Row]]:
    def made(rows: list[Row]) -> list[Row]:
        out: list[Row] = []
        windows: dict[tuple[int, int], list[Row]] = {}
        for row in rows:
            for span in spans(row["ts"]):
                windows.setdefault(span, []).append(row)
        for (start, end), members in windows.items():
            for row in answer(members):
                place = {} if rank is None else {rank: row[rank]}
                out.append({**{name: row[name] for name in columns}, "window_start": start, "window_end": end, **place})
        return out

    return made


WINDOW_TOP = [
    Joined(
        f"top {n} of windows, {ties}",
        lambda a, n=n, ties=ties, rank=rank, window=window: (
            a.select("n", "k", "x")
            .key_by("k")
            .window(window)
            .top_n(n, by=["x", "n"] if ties == "row_number" else "x", ties=ties, rank=rank)
        ),
        window_top(
            spans,
            ["k"],
            ("n", "k", "x"),
            best(["k"], n, [("x", True)] if ties != "row_number" else [("x", True), ("n", True)], ties=ties, rank=rank),
            rank,
        ),
        sources=1,
    )
    for n, ties, rank, window, spans in [
        (1, "row_number", None, tumbling("5s"), tumbles(5000)),
        (3, "row_number", "place", hopping("20s", "10s"), hops(20_000, 10_000)),
        (2, "rank", "place", tumbling("30s"), tumbles(30_000)),
        (1, "dense_rank", None, tumbling("1m"), tumbles(60_000)),
    ]
]

PROGRAMS = [*GROUPS, *TABLES, *TOP, *WINDOW_TOP]


@pytest.mark.one_in(15, "some hundredths of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_changes_come_to_the_batch_answer(program: Joined, seed: int, tmp_path: Path) -> None:
    await answers_are_the_same(program, "split", seed, tmp_path)


@pytest.mark.one_in(30, "each program is run under any split above")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_changes_come_to_the_batch_answer_in_another_way(program: Joined, seed: int, tmp_path: Path) -> None:
    await answers_are_the_same(program, another_way(program, seed), seed, tmp_path)


def test_the_programs_have_names_of_their_own() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


# -- pairs ----------------------------------------------------------------------------------------------------------------


def log_of(build: Callable[[Stream], Stream], table: pa.Table, split: str = "one", parallelism: int = 1) -> list[Row]:
    app = App("log", parallelism=parallelism)
    return rows_of(build(app.stream(Rows(table, split=split), time="ts", lateness="10s")).changelog().collect())


def test_a_group_changes_by_one_pair_for_each_batch() -> None:
    table = events("plain").filter(pa.compute.equal(events("plain")["k"], "a")).select(["n", "ts", "k"])
    log = log_of(lambda s: s.group_by("k").aggregate(c=sabot.count()), table)
    assert [(row["op"], row["c"]) for row in log[:3]] == [("insert", 1), ("update_before", 1), ("update_after", 2)]
    assert len(log) == 2 * table.num_rows - 1
    assert [row["op"] for row in log[1:]] == ["update_before", "update_after"] * (table.num_rows - 1)
    together = log_of(lambda s: s.group_by("k").aggregate(c=sabot.count()), table, split="all")
    assert [(row["op"], row["c"]) for row in together] == [("insert", table.num_rows)]


def test_a_filter_that_a_row_leaves_makes_a_delete_of_half_a_pair() -> None:
    table = events("plain").filter(pa.compute.equal(events("plain")["k"], "a")).select(["n", "ts", "k"])
    log = log_of(lambda s: s.group_by("k").aggregate(c=sabot.count()).filter(col("c") != 3), table.slice(0, 4))
    assert [(row["op"], row["c"]) for row in log] == [
        ("insert", 1),
        ("update_before", 1),
        ("update_after", 2),
        ("delete", 2),
        ("insert", 4),
    ]


def test_a_row_that_comes_again_changes_nothing() -> None:
    table = pa.table({"ts": pa.array([1, 2, 3], pa.int64()), "k": ["a", "a", "a"], "x": [7, 7, 7]})
    log = log_of(lambda s: s.select("k", "x").upsert("k"), table)
    assert [(row["op"], row["x"]) for row in log] == [("insert", 7)]


def test_a_group_whose_last_row_is_taken_is_deleted() -> None:
    table = pa.table({"ts": pa.array([1, 2], pa.int64()), "k": ["a", "a"], "x": [1, 2]})
    log = log_of(lambda s: s.select("k", "x").upsert("k").group_by("x").aggregate(c=sabot.count()), table)
    assert sorted((row["x"], row["op"]) for row in log) == [(1, "delete"), (1, "insert"), (2, "insert")]


# -- sinks that keep the row of a key -------------------------------------------------------------------------------------

KEYED = [program for program in PROGRAMS if program.key and program.changes and not program.near]
KEYED = KEYED if len(SEEDS) > 1 else KEYED[::3]


def upserted(program: Joined) -> Joined:
    return Joined(
        program.name,
        lambda *given: program.build(*given).upsert(*program.key),
        program.oracle,
        sources=program.sources,
        arrival=program.arrival,
        data=program.data,
    )


def wrong_rows(got: list[Row], program: Joined, table: pa.Table) -> str:
    want = program.answer(table)
    return differences(pa.Table.from_pylist(got), want, near=program.near) if got or want else ""


@pytest.mark.one_in(8, "half a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", KEYED, ids=lambda program: program.name)
async def test_the_rows_of_keys_in_a_sink_are_the_answer_exactly_once_over_crashes(
    program: Joined, seed: int, tmp_path: Path
) -> None:
    how = draw(program, "sink", seed)
    sink = ListSink()
    await asyncio.to_thread(run_crashes, upserted(program), events(how.data, seed), how, tmp_path, sink)
    wrong = wrong_rows(sink.current, program, events(how.data, seed))
    assert not wrong, f"{program.name!r} {how}\n{wrong}"
    there: set[Any] = set()
    for row in sink.rows:
        key = tuple(plain(row[name], zeros_equal=True) for name in program.key)
        assert row["__op"] in (0, 2, 3)
        assert row["__op"] != 3 or key in there, f"{program.name!r} {how}: {row} deletes what is not there"
        (there.discard if row["__op"] == 3 else there.add)(key)


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name",
    [
        "groups, and those of them that are large",
        "the last row of each key",
        "top 3 with their place",
        "groups of groups of groups",
    ],
)
async def test_a_sql_table_of_changes_is_the_answer(name: str, seed: int, tmp_path: Path) -> None:
    program = next(each for each in PROGRAMS if each.name == name)
    how = draw(program, "sql", seed)
    # SQL: null is no key
    table = events(how.data, seed).filter(pa.compute.is_valid(events(how.data, seed)["k"]))
    app = App("sql", parallelism=how.parallelism, state=str(tmp_path), checkpoint_dir=tmp_path / "checkpoints")
    app.configure(checkpoint_interval=0.01)
    url = tmp_path / "rows.db"
    read(app, upserted(program), sources_of(program, table, how)).to(SqlSink(f"sqlite:///{url}", table="rows"))
    await app.run()
    with sqlite3.connect(url) as connection:
        connection.row_factory = sqlite3.Row
        got = [dict(row) for row in connection.execute("select * from rows")]
    wrong = wrong_rows(got, program, table)
    assert not wrong, f"{name!r} {how}\n{wrong}"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["groups, and those of them that are large", "the last row of each key", "top 3 with their place"]
)
async def test_a_topic_of_changes_read_as_a_table_is_the_answer(name: str, seed: int, memory_url: str) -> None:
    """Into a compacted topic and out of it again: a key that is gone is a tombstone."""
    program = next(each for each in PROGRAMS if each.name == name)
    how = draw(program, "topic", seed)
    table = events(how.data, seed).filter(
        pa.compute.is_valid(events(how.data, seed)["k"])
    )  # a record without its key is no row
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("rows", partitions=3)
    app = App("out", broker=memory_url, parallelism=how.parallelism)
    built = read(app, upserted(program), sources_of(program, table, how))
    schema = built.schema
    built.to("rows")
    await app.run()
    got = await table_in_topic(memory_url, "rows", program.key, schema, parallelism=how.parallelism)
    wrong = differences(got, program.answer(table))
    assert not wrong, f"{name!r} {how}\n{wrong}"


async def table_in_topic(
    url: str,
    topic: str,
    key: Sequence[str],
    schema: pa.Schema,
    *,
    parallelism: int = 1,
    more: Callable[[], None] | None = None,
    **options: Any,
) -> pa.Table:
    """What `app.table` makes of a topic, by its log. more: publishes the rest when the app runs."""
    broker = MemoryBroker.get(url)
    kept = Kept()
    app = App("in", broker=url, parallelism=parallelism)
    app.table(topic, key=list(key), schema=schema, **options).changelog().to(kept)
    await app.start()
    try:
        if more is not None:
            more()
        records = len(broker.records(topic))
        await until(lambda: rows_read(app.statistics()) >= records, f"{records} records to be read")
    finally:
        await app.stop(drain=True)
    return table_after(kept.table(), key)


ACCOUNTS = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64())])


def account_history(seed: int, length: int = 200) -> list[tuple[int, Row | None]]:
    """(id, its row or None where it ends), in order; some end that are not there, some are put again as they are."""
    rng = random.Random(f"accounts {seed}")
    history: list[tuple[int, Row | None]] = []
    for _ in range(length):
        id = rng.randrange(12)
        row = {"id": id, "name": rng.choice(["ada", "eve", "Ω", None]), "amount": rng.randrange(8) / 4}
        history.append((id, None if rng.random() < 0.3 else row))
    return history


def at_the_end(history: list[tuple[int, Row | None]]) -> list[Row]:
    return [row for row in dict(history).values() if row is not None]


def as_debezium(history: list[tuple[int, Row | None]]) -> list[tuple[int, Any]]:
    """The same as a connector writes it: envelopes, and a tombstone behind each delete."""
    there: dict[int, Row] = {}
    records: list[tuple[int, Any]] = []
    for at, (id, row) in enumerate(history):
        before = there.get(id)
        envelope = {"before": before, "after": row, "source": {"table": "accounts"}, "ts_ms": 1_700_000_000_000 + at}
        if row is None:
            if there.pop(id, None) is None:
                continue
            records += [(id, {**envelope, "op": "d"}), (id, None)]
        else:
            there[id] = row
            records.append((id, {**envelope, "op": "u" if before else "r" if at < 20 else "c"}))
    return records


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("format", ["json", "debezium"])
async def test_a_table_of_a_topic_is_its_last_rows(format: Any, parallelism: int, seed: int, memory_url: str) -> None:
    history = account_history(seed)
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("accounts", partitions=3)
    records = list(history if format == "json" else as_debezium(history))

    def publish(some: list[tuple[int, Any]]) -> None:
        for id, value in some:
            broker.publish("accounts", [value], key=str(id) if id % 2 else json.dumps({"id": id}))

    publish(records[:90])
    got = await table_in_topic(
        memory_url,
        "accounts",
        ["id"],
        ACCOUNTS,
        parallelism=parallelism,
        more=lambda: publish(records[90:]),
        format=format,
    )
    wrong = differences(got, at_the_end(history))
    assert not wrong, wrong


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("seed", SEEDS)
async def test_groups_of_a_table_of_a_topic_go_on_after_a_stop(seed: int, memory_url: str, tmp_path: Path) -> None:
    history = account_history(seed + 100)
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("accounts", partitions=2)
    kept = Kept()
    published = 0
    for until_row in (70, 140, len(history)):
        app = App(
            "groups", broker=memory_url, parallelism=2, state=str(tmp_path), checkpoint_dir=tmp_path / "checkpoints"
        )
        accounts = app.table("accounts", key="id", schema=ACCOUNTS)
        accounts.group_by("name").aggregate(
            c=sabot.count(), total=sabot.sum("amount"), ids=sabot.max("id")
        ).changelog().to(kept)
        await app.start()
        for id, row in history[published:until_row]:
            broker.publish("accounts", [row], key=str(id))
        rows = until_row - published
        published = until_row
        await until(lambda app=app, rows=rows: rows_read(app.statistics()) >= rows, "the records to be read")
        await app.stop(drain=until_row == len(history))
        kept = kept.again()
    want = groups(["name"], c=of("count"), total=of("sum", "amount"), ids=of("max", "id"))(at_the_end(history))
    wrong = differences(table_after(kept.table(), ["name"]), want)
    assert not wrong, wrong


async def test_a_table_of_a_file_keeps_the_last_row_of_a_key() -> None:
    table = events("plain").select(["n", "k", "x"])
    app = App("file")
    got = app.table(Rows(table, split="seven"), key="k", schema=table.schema).collect()
    wrong = differences(got, some(latest(rows_of(table), "k"), ("n", "k", "x")))
    assert not wrong, wrong


# -- what is about -------------------------------------------------------------------------------------------------------


def many(rows: int = 20_000) -> pa.Table:
    rng = random.Random(7)
    return pa.table(
        {
            "ts": pa.array(range(rows), pa.int64()),
            "k": [rng.choice("ab") for _ in range(rows)],
            "x": pa.array([rng.randrange(rows // 2) for _ in range(rows)], pa.int64()),
            "v": pa.array(
                [None if rng.random() < 0.05 else rng.lognormvariate(0, 2) * rng.choice([1, -1]) for _ in range(rows)]
            ),
        }
    )


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("windowed", [False, True])
def test_what_is_approximate_is_within_its_bounds(windowed: bool, parallelism: int) -> None:
    table = many()
    parts = [0.0, 0.01, 0.25, 0.5, 0.9, 0.999, 1.0]
    asked = {
        "kinds": sabot.approx_count_distinct("x"),
        "few": sabot.approx_count_distinct(col("x") % 500),
        "quantiles": sabot.approx_quantile("v", parts),
        "middle": sabot.approx_quantile("v", 0.5),
        "top": sabot.top_k("v", 5),
    }
    stream = App("about", parallelism=parallelism).stream(
        Rows(table, split="thousand", partitions=2), time="ts", lateness="1m"
    )
    keyed = (
        stream.key_by("k").window(tumbling("10m")).aggregate(**asked)
        if windowed
        else stream.group_by("k").aggregate(**asked)
    )
    got = rows_of(keyed.collect())
    assert len(got) == 2
    for row in got:
        members = table.filter(pa.compute.equal(table["k"], row["k"]))
        exact = len(set(members["x"].to_pylist()))
        assert abs(row["kinds"] - exact) <= 5 * 0.016 * exact, (row["kinds"], exact)
        assert row["few"] == 500
        values = sorted(value for value in members["v"].to_pylist() if value is not None)
        for part, found in zip(parts, row["quantiles"], strict=True):
            truth = values[math.floor(part * (len(values) - 1))]
            assert abs(found - truth) <= 0.01 * abs(truth) * (1 + 1e-9), (part, found, truth)
        assert row["middle"] == row["quantiles"][3]
        assert row["top"] == values[::-1][:5]


def test_quantiles_and_the_greatest_values_of_a_table_forget_what_is_replaced() -> None:
    table = events("plain")
    stream = App("about", parallelism=2).stream(Rows(table, split="seven")).upsert("k", "x")
    got = (
        stream.group_by("j")
        .aggregate(about=sabot.approx_quantile("v", [0.0, 0.5, 1.0]), top=sabot.top_k("x", 3))
        .collect()
    )
    want = {
        row["j"]: row
        for row in groups(["j"], v=of("collect_list", "v"), x=of("collect_list", "x"))(latest(rows_of(table), "k", "x"))
    }
    assert got.num_rows == len(want)
    for row in got.to_pylist():
        values = sorted(value for value in want[row["j"]]["v"] if value is not None)
        for part, found in zip((0.0, 0.5, 1.0), row["about"], strict=True):
            truth = values[math.floor(part * (len(values) - 1))]
            assert abs(found - truth) <= 0.01 * abs(truth) * (1 + 1e-9)
        assert row["top"] == sorted((value for value in want[row["j"]]["x"] if value is not None), reverse=True)[:3]


def test_describe_says_what_a_stream_holds() -> None:
    table = events("plain")
    got = {row["column"]: row for row in App("about").stream(Rows(table, split="mixed")).describe().to_pylist()}
    assert list(got) == table.column_names
    for name in table.column_names:
        values = [value for value in table[name].to_pylist() if value is not None]
        row = got[name]
        assert (row["type"], row["count"], row["nulls"]) == (
            str(table.schema.field(name).type),
            len(values),
            240 - len(values),
        )
        assert row["distinct"] == len({plain(value, zeros_equal=True) for value in values}), name
        if name in ("n", "ts", "x", "v"):
            assert math.isclose(row["mean"], sum(values) / len(values), rel_tol=1e-9)
            assert math.isclose(row["std"], of("stddev", name)(table.to_pylist()), rel_tol=1e-7)
            assert (float(row["min"]), float(row["max"])) == (min(values), max(values))
            ordered = sorted(values)
            for part, column in ((0.25, "25%"), (0.5, "50%"), (0.75, "75%")):
                place = part * (len(ordered) - 1)
                assert row[column] in {ordered[math.floor(place)], ordered[math.ceil(place)]}, (name, column)
        if name in ("k", "s"):
            assert (row["min"], row["max"], row["mean"], row["50%"]) == (min(values), max(values), None, None)


def test_describe_of_many_rows_estimates_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of a hundred times 17.3 was 17.13."""
    monkeypatch.setattr("sabot.api.stream.stream.EXACT_ROWS", 99)
    table = pa.table({"x": [17.3] * 100, "n": [-12_345] * 99 + [7]})
    got = {row["column"]: row for row in App("about").stream(Rows(table)).describe().to_pylist()}
    assert [got["x"][part] for part in ("25%", "50%", "75%")] == [17.3] * 3
    assert all(-12_345 <= got["n"][part] <= 7 for part in ("25%", "50%", "75%"))


def test_describe_of_nothing_has_a_row_for_each_column() -> None:
    got = App("about").stream(Rows(events("empty"))).describe()
    assert got["column"].to_pylist() == EVENTS.names
    assert got["count"].to_pylist() == [0] * len(EVENTS)


def test_describe_of_changes_is_of_the_rows_at_the_end() -> None:
    app = App("about")
    stream = app.stream(Rows(events("plain"), split="seven")).group_by("k").aggregate(c=sabot.count())
    sizes = list(map(len, by_key(rows_of(events("plain")), ["k"]).values()))
    for each in (stream.filter(col("c") > 0).select("c"), stream.materialize()):
        got = {row["column"]: row for row in each.describe().to_pylist()}
        assert (got["c"]["count"], got["c"]["max"]) == (len(sizes), str(max(sizes)))


def test_a_sample_has_about_its_share_and_is_the_same_again() -> None:
    table = many()
    app = App("about")

    def sample(fraction: float, seed: int = 0) -> list[int]:
        return app.stream(Rows(table, split="thousand")).sample(fraction, seed=seed).collect()["ts"].to_pylist()

    assert sample(0.0) == []
    assert sample(1.0) == list(range(table.num_rows))
    tenth = sample(0.1)
    assert abs(len(tenth) - 2000) <= 5 * math.sqrt(20_000 * 0.1 * 0.9)
    assert tenth == sorted(set(tenth))
    assert tenth == sample(0.1)
    assert tenth != sample(0.1, seed=1)
    # no part of the rows is favoured
    assert abs(sum(tenth) / len(tenth) - 10_000) < 5 * 5774 / math.sqrt(len(tenth))


@pytest.mark.slow  # a second of a core
def test_the_schema_is_that_of_the_rows() -> None:
    for program in [*GROUPS, *TABLES, *TOP, *WINDOW_TOP]:
        app = App("schema")
        built = program.build(
            *(app.stream(Rows(events("plain"), name=f"rows{i}"), time="ts") for i in range(program.sources))
        )
        assert built.schema.names == list(program.answer(events("plain"))[0]), program.name
        assert built.schema.equals(built.collect().schema), program.name


# -- what is refused ------------------------------------------------------------------------------------------------------


def a_stream() -> Stream:
    return App("refused").stream("a", schema=EVENTS, time="ts")


class OnlyRows(Kept):
    """A sink that can only add rows."""


REFUSED: dict[str, tuple[Callable[[Stream], Any], list[str]]] = {
    "a misspelt key": (lambda s: s.group_by("kk"), ["'kk'", "n, ts, k"]),
    "a misspelt column of a sum": (lambda s: s.group_by("k").aggregate(t=sabot.sum("vv")), ["'vv'", "n, ts, k"]),
    "a misspelt column behind groups": (
        lambda s: s.group_by("k").aggregate(total=sabot.sum("x")).filter(col("totl") > 1),
        ["'totl'", "'total'", "k, total"],
    ),
    "a misspelt key of a table": (lambda s: s.upsert("key"), ["'key'", "n, ts, k"]),
    "a misspelt order": (lambda s: s.key_by("k").top_n(3, by="amount"), ["'amount'", "n, ts, k"]),
    "a misspelt column to lag": (lambda s: s.key_by("k").over(b=sabot.lag("prize")), ["'prize'", "n, ts, k"]),
    "a misspelt selection": (lambda s: s.select("n", "sss"), ["'sss'", "n, ts, k"]),
    "a misspelt drop": (lambda s: s.drop("nn"), ["'nn'", "n, ts, k"]),
    "a misspelt rename": (lambda s: s.rename({"nn": "m"}), ["'nn'", "n, ts, k"]),
    "no first rows": (lambda s: s.key_by("k").top_n(0, by="x"), ["0"]),
    "another word for ties": (lambda s: s.key_by("k").top_n(1, by="x", ties="first"), ["first", "row_number"]),  # type: ignore[arg-type]
    "directions for other columns": (
        lambda s: s.key_by("k").top_n(1, by="x", descending=[True, False]),
        ["descending= has 2 values for 1 columns"],
    ),
    "an aggregate without a name": (lambda s: s.group_by("k").aggregate(sabot.count()), ["name"]),
    "no aggregates": (lambda s: s.group_by("k").aggregate(), ["aggregate"]),
    "an aggregate named as a key": (lambda s: s.group_by("k").aggregate(k=sabot.count()), ["'k'"]),
    "no key of a table": (lambda s: s.upsert(), ["key"]),
    "a share of two": (lambda s: s.sample(2), ["2"]),
    "the log of rows": (lambda s: s.changelog(), ["changelog", "no changes"]),
    "changes in a window": (
        lambda s: s.upsert("k").key_by("k").window(tumbling("1m")).aggregate(c=sabot.count()),
        ["changes", "window", "materialize"],
    ),
    "the first rows of windows of changes": (
        lambda s: s.upsert("k").key_by("k").window(tumbling("1m")).top_n(1, by="x"),
        ["changes"],
    ),
    "a running aggregate of changes": (
        lambda s: s.upsert("k").key_by("k").aggregate(c=sabot.count()),
        ["changes", "group_by"],
    ),
    "a reduction of changes": (lambda s: s.upsert("k").key_by("k").reduce(lambda a, b: b), ["changes", "reduce"]),
    "over of changes": (lambda s: s.upsert("k").key_by("k").over(c=sabot.count()), ["changes", "over"]),
    "a process of changes": (
        lambda s: s.upsert("k").key_by("k").process(lambda r, c: None, schema={"k": "string"}),
        ["changes", "process"],
    ),
    "a pattern of changes": (
        lambda s: s.upsert("k").key_by("k").pattern(sabot.pattern("a", col("x") > 1)),
        ["changes", "pattern"],
    ),
    "a function over changes": (lambda s: s.upsert("k").map_batches(lambda b: b), ["changes", "map_batches"]),
    "rows of changes": (lambda s: s.upsert("k").flat_map(lambda r: [r], schema=EVENTS), ["changes", "flat_map"]),
    "a call for changes": (
        lambda s: s.upsert("k").map_async(_nothing, schema={"k": "string"}),
        ["changes", "map_async"],
    ),
    "the head of changes": (lambda s: s.upsert("k").head(3), ["changes", "head", "top_n", "materialize"]),
    "fewer than no rows": (lambda s: s.head(-1), ["head", "-1"]),
    "half a row": (lambda s: s.head(0.5), ["head", "0.5"]),  # type: ignore[arg-type]
    "a sample of changes": (lambda s: s.upsert("k").sample(0.5), ["changes", "sample"]),
    "duplicates of changes within a time": (
        lambda s: s.upsert("k").deduplicate("x", within="1m"),
        ["changes", "deduplicate"],
    ),
    "changes into a sink of rows": (
        lambda s: s.group_by("k").aggregate(c=sabot.count()).to(OnlyRows()),
        ["changes", "materialize", "changelog", "upsert"],
    ),
    "a table into a sink of rows": (lambda s: s.upsert("k").to(OnlyRows()), ["changes", "materialize"]),
    "changes into a topic without a key": (
        lambda s: s.group_by("k").aggregate(c=sabot.count()).to("out"),
        ["changes", ".upsert('k')"],
    ),
    "changes of no known key into a topic": (lambda s: s.key_by("k").top_n(3, by="x").to("out"), ["changes", "upsert"]),
    "another key beside that of a table": (lambda s: s.upsert("k").to("out", key="n"), ["key="]),
    "a table whose key is gone": (lambda s: s.upsert("k").drop("k").to("out"), ["key"]),
    "about how many in changes": (
        lambda s: s.upsert("k").group_by("j").aggregate(c=sabot.approx_count_distinct("x")).explain(),
        ["approx_count_distinct", "count_distinct"],
    ),
    "no such quantile": (lambda s: s.group_by("k").aggregate(q=sabot.approx_quantile("x", 1.5)), ["1.5"]),
    "the sum of a text": (lambda s: s.group_by("k").aggregate(q=sabot.sum("s")).explain(), ["sum", "string"]),
    "the first rows by a list": (lambda s: s.key_by("k").top_n(1, by="k", rank="n"), ["'n'"]),
}


async def _nothing(row: Row) -> None:
    """A call."""


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_when_it_is_written(build: Callable[[Stream], Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        build(a_stream())
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in words), said


TABLE_REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another format": ({"key": "id", "schema": ACCOUNTS, "format": "avro"}, ["avro", "debezium"]),
    "a misspelt key": ({"key": "idd", "schema": ACCOUNTS}, ["'idd'", "id, name, amount"]),
    "envelopes of unknown columns": ({"key": "id", "format": "debezium"}, ["schema"]),
    "a misspelt time": ({"key": "id", "schema": ACCOUNTS, "time": "at"}, ["at", "amount"]),
}


@pytest.mark.parametrize(("options", "words"), TABLE_REFUSED.values(), ids=TABLE_REFUSED.keys())
def test_a_table_that_cannot_be_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        App("refused").table("accounts", **options)
    said = f"{refused.value} {refused.value.hint}"
    assert all(word in said for word in words), said


def test_the_plan_says_where_rows_are_changes() -> None:
    text = a_stream().group_by("k").aggregate(c=sabot.count()).filter(col("c") > 1).explain()
    assert "changes" in text
    assert "changes" not in a_stream().filter(col("x") > 1).explain()


def test_a_circumstance_says_how_it_was_drawn() -> None:
    assert draw(GROUPS[0], "split", 3) == draw(GROUPS[0], "split", 3)
    assert isinstance(draw(GROUPS[0], "split", 3), Circumstance)


def test_a_torn_log_is_seen() -> None:
    """The check of logs, checked."""
    good = {"op": ["insert", "update_before", "update_after", "delete"], "k": ["a", "a", "a", "a"], "c": [1, 1, 2, 2]}
    assert table_after(pa.table(good), ["k"]).num_rows == 0
    for at, op in ((0, "delete"), (1, "delete"), (2, "insert"), (3, "insert"), (3, "update_before")):
        ops = list(good["op"])
        ops[at] = op
        with pytest.raises(AssertionError):
            table_after(pa.table({**good, "op": ops}), ["k"])
