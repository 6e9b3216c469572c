"""Every operator, window and aggregate against the same over all rows at once (DuckDB, or plain Python): the answer is the same
under any batch split, number of partitions, parallelism and place of barriers, after a restore, and on any source.

Each program of PROGRAMS runs under each kind of circumstance at least once; SABOT_STREAM_SEEDS=N draws N times as many. The
assertion names the circumstance, which follows from its seed.
"""

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from harness import (
    LATENESS_MS,
    SCHEMA,
    Circumstance,
    Gate,
    Kept,
    Program,
    Row,
    Rows,
    accumulates,
    as_text_allows,
    by_key,
    counted,
    deal,
    differences,
    hops,
    make_table,
    of,
    rows_of,
    run_barriers,
    run_file,
    run_restored,
    run_split,
    run_topic,
    running,
    same_float,
    sessions,
    sources_of,
    tumbles,
    until,
    windowed,
)

import sabot
from sabot import (
    App,
    Batch,
    SabotError,
    Sink,
    Source,
    Stream,
    UserAggregate,
    UserError,
    aggregate_with,
    coalesce,
    col,
    count_window,
    cumulative,
    files,
    hopping,
    lit,
    session,
    struct,
    tumbling,
    when,
)
from sabot.connectors.base import Positions
from sabot.testing import MemoryBroker

SEEDS = range(int(os.environ.get("SABOT_STREAM_SEEDS", "1")))
MINUTE = 60_000


# -- programs: stateless --------------------------------------------------------------------------------------------------


def each_row(function: Any) -> Any:
    """An oracle: row -> the rows that it becomes."""
    return lambda rows: [out for row in rows for out in function(row)]


def doubled(batch: pa.RecordBatch) -> Any:
    return pa.record_batch({"n": batch["n"], "twice": pc.multiply(batch["amount"], 2.0)})


def odd_rows(batch: pa.RecordBatch) -> Any:
    odd = batch.filter(pc.equal(pc.bit_wise_and(batch["n"], 1), 1))
    return None if odd.num_rows == 0 else odd


def words(row: Row) -> Iterable[Row]:
    for place, word in enumerate((row["s"] or "").split()):
        yield {"n": row["n"], "place": place, "word": word}


def union_of_split(stream: Stream) -> Stream:
    yes, no = stream.split(col("amount") > 1000)
    return yes.select("n", side=lit("yes")).union(no.select("n", side=lit("no")))


STATELESS = [
    Program("nothing at all", lambda s: s, "select * from t"),
    Program("filter", lambda s: s.filter(col("amount") > 100), "select * from t where amount > 100"),
    Program("filter by a null predicate", lambda s: s.filter(col("b")).select("n", "b"), "select n, b from t where b"),
    Program("filter to nothing", lambda s: s.filter(col("n") < 0).select("n", "k"), "select n, k from t where n < 0"),
    Program(
        "filters and columns, one after another",
        lambda s: (
            s.filter(col("n") > 3)
            .with_columns(m=col("n") * 2)
            .filter(col("m") % 3 == 0)
            .select("m")
            .filter(col("m") < 900)
        ),
        "select n * 2 as m from t where n > 3 and n * 2 % 3 = 0 and n * 2 < 900",
    ),
    Program(
        "select",
        lambda s: s.select("s", "f", "n", x=col("amount") / 4),
        each_row(
            lambda r: [{"s": r["s"], "f": r["f"], "n": r["n"], "x": None if r["amount"] is None else r["amount"] / 4}]
        ),
    ),
    Program(
        "with_columns sees the columns as they were",
        lambda s: s.select("n", "amount").with_columns(
            n=col("n") + 1, before=col("n"), amount=col("amount").fill_null(0.0)
        ),
        "select n + 1 as n, coalesce(amount, 0.0) as amount, n as before from t",
    ),
    Program("drop", lambda s: s.drop("s", "f", "at"), 'select * exclude (s, f, "at") from t'),
    Program(
        "rename, also in a circle",
        lambda s: s.select("n", "k", "s").rename({"k": "s", "s": "k"}).filter(col("s") == "a"),
        "select n, k as s, s as k from t where k = 'a'",
    ),
    Program("map_batches", lambda s: s.map_batches(doubled), "select n, amount * 2.0 as twice from t"),
    Program(
        "map_batches that leaves rows out",
        lambda s: s.select("n", "i").map_batches(odd_rows, schema={"n": "int64", "i": "int64"}),
        "select n, i from t where n % 2 = 1",
    ),
    Program(
        "flat_map",
        lambda s: s.flat_map(words, schema={"n": "int64", "place": "int64", "word": "string"}),
        each_row(words),
    ),
    Program(
        "split and union", union_of_split, "select n, if(coalesce(amount > 1000, false), 'yes', 'no') as side from t"
    ),
    Program(
        "union of two sources",
        lambda a, b: a.select("n", "k", "f").union(b.select("n", "k", "f")),
        each_row(lambda r: [{name: r[name] for name in ("n", "k", "f")}]),
        sources=2,
    ),
    Program(
        "expressions of numbers",
        lambda s: s.select(
            "n",
            neg=-col("amount"),
            cut=(col("amount") // 8).cast("int64"),
            rest=col("n") % 7,
            wide=col("i").cast("float64"),
            near=col("amount").round(1),
            abs=col("amount").abs(),
            between=col("amount").between(0, 100),
            any=coalesce(col("amount"), col("n") * 1.0),
        ),
        """select n, -amount as neg, floor(amount / 8)::bigint as cut, n % 7 as rest, i::double as wide, round_even(amount, 1) as near,
           abs(amount) as abs, amount between 0 and 100 as "between", coalesce(amount, n * 1.0::double) as any from t""",
        near=("near",),
    ),
    Program(
        "expressions of booleans and nulls",
        lambda s: s.select(
            "n",
            both=col("b") & (col("amount") > 5),
            either=col("b") | (col("amount") > 5),
            no=~col("b"),
            none=col("k").is_null(),
            some=col("amount").is_not_null(),
            size=when(col("amount") > 1000)
            .then(lit("big"))
            .when(col("amount") > 0)
            .then(lit("small"))
            .otherwise(lit("?")),
            known=col("k").is_in(["a", "Ω", "nothing"]),
            nan=col("f").is_nan(),
        ),
        """select n, b and amount > 5 as both, b or amount > 5 as either, not b as no, k is null as none, amount is not null as some,
           case when amount > 1000 then 'big' when amount > 0 then 'small' else '?' end as size, k in ('a', 'Ω', 'nothing') as known,
           isnan(f) as nan from t""",
    ),
    Program(
        "expressions of strings",
        lambda s: s.select(
            "n",
            up=col("s").str.upper(),
            size=col("s").str.length(),
            part=col("s").str.slice(1, 3),
            has=col("s").str.contains("a|b"),
            begins=col("s").str.startswith("S"),
            word=col("s").str.regexp_extract("([a-z]+)"),
        ),
        """select n, replace(upper(s), 'ẞ', 'SS') as up, length(s) as size, substr(s, 2, 3) as part, regexp_matches(s, 'a|b') as has,
           starts_with(s, 'S') as begins, if(regexp_matches(s, '[a-z]+'), regexp_extract(s, '([a-z]+)', 1), null) as word from t""",
    ),
    Program(
        "expressions of times",
        lambda s: s.select(
            "n",
            hour=col("ts").dt.date_trunc("hour"),
            day=col("ts").dt.day_of_week(),
            text=col("ts").dt.strftime("%Y-%m-%d %H:%M"),
        ),
        """select n, (floor(ts / 3600000.0) * 3600000)::bigint as hour, isodow(make_timestamp(ts * 1000)) as day,
           strftime(make_timestamp(ts * 1000), '%Y-%m-%d %H:%M') as text from t""",
    ),
    Program(
        "a struct, and its field",
        lambda s: s.select("n", p=struct(x="n", y="s")).select("n", y=col("p").struct.field("y"), p="p"),
        each_row(lambda r: [{"n": r["n"], "y": r["s"], "p": {"x": r["n"], "y": r["s"]}}]),
    ),
]

# -- programs: windows ----------------------------------------------------------------------------------------------------

SUMS: dict[str, Any] = {"n": sabot.count(), "total": sabot.sum("amount"), "low": sabot.min("r"), "high": sabot.max("r")}
SUMS_OF: dict[str, Any] = {
    "n": of("count"),
    "total": of("sum", "amount"),
    "low": of("min", "r"),
    "high": of("max", "r"),
}
ROWS: dict[str, Any] = {"n": sabot.count(), "rows": sabot.collect_list("n")}
ROWS_OF: dict[str, Any] = {"n": of("count"), "rows": of("collect_list", "n")}


def keyed(window: Any, *keys: Any, **aggregates: Any) -> Any:
    return lambda s: (s.key_by(*keys) if keys else s).window(window).aggregate(**aggregates)


WINDOWS = [
    Program(
        "tumbling, by SQL",
        keyed(tumbling("1m"), "k", **SUMS),
        """
        select k, floor(ts / 60000.0)::bigint * 60000 as window_start, window_start + 60000 as window_end, count(*) as n,
               sum(amount) as total, min(r) as low, max(r) as high from t group by k, window_start""",
    ),
    Program(
        "hopping, by SQL",
        keyed(hopping("1m", "15s"), "k", n=sabot.count(), total=sabot.sum("amount")),
        """
        select k, w as window_start, w + 60000 as window_end, count(*) as n, sum(amount) as total
        from (select *, unnest(range(floor(ts / 15000.0)::bigint * 15000 - 45000, floor(ts / 15000.0)::bigint * 15000 + 1, 15000)) as w
              from t) group by k, w""",
    ),
    Program(
        "session, by SQL",
        keyed(session("4s"), "k", n=sabot.count(), total=sabot.sum("amount")),
        """
        select k, min(ts) as window_start, max(ts) + 4000 as window_end, count(*) as n, sum(amount) as total
        from (select *, sum(fresh) over (partition by k order by ts) as part
              from (select *, if(ts - lag(ts) over (partition by k order by ts) < 4000, 0, 1) as fresh from t))
        group by k, part""",
    ),
    Program("tumbling, no key", keyed(tumbling("1m"), **SUMS), windowed([], tumbles(MINUTE), **SUMS_OF)),
    Program(
        "tumbling with an offset",
        keyed(tumbling("1m", offset="7s"), "k", **SUMS),
        windowed(["k"], tumbles(MINUTE, 7000), **SUMS_OF),
    ),
    Program(
        "tumbling by two keys",
        keyed(tumbling("30s"), "k", "i", **SUMS),
        windowed(["k", "i"], tumbles(30_000), **SUMS_OF),
    ),
    Program("tumbling by an integer", keyed(tumbling("1m"), "i", **ROWS), windowed(["i"], tumbles(MINUTE), **ROWS_OF)),
    Program("tumbling by a bool", keyed(tumbling("1m"), "b", **SUMS), windowed(["b"], tumbles(MINUTE), **SUMS_OF)),
    Program("tumbling by a float", keyed(tumbling("1m"), "f", **SUMS), windowed(["f"], tumbles(MINUTE), **SUMS_OF)),
    Program(
        "tumbling by long strings", keyed(tumbling("10s"), "s", **SUMS), windowed(["s"], tumbles(10_000), **SUMS_OF)
    ),
    Program(
        "tumbling by an expression",
        keyed(tumbling("1m"), (col("n") % 5).alias("five"), **SUMS),
        lambda rows: windowed(["five"], tumbles(MINUTE), **SUMS_OF)([{**row, "five": row["n"] % 5} for row in rows]),
    ),
    Program(
        "tumbling, time as a timestamp",
        keyed(tumbling("1m"), "k", **ROWS),
        windowed(["k"], tumbles(MINUTE), time="at", **ROWS_OF),
        time="at",
    ),
    Program(
        "tumbling of a millisecond",
        keyed(tumbling("1ms"), "k", n=sabot.count()),
        windowed(["k"], tumbles(1), n=of("count")),
    ),
    Program(
        "tumbling of a year",
        keyed(tumbling("365d"), "k", **SUMS),
        windowed(["k"], tumbles(365 * 86_400_000), **SUMS_OF),
    ),
    Program("hopping", keyed(hopping("1m", "10s"), "k", **ROWS), windowed(["k"], hops(MINUTE, 10_000), **ROWS_OF)),
    Program("hopping, no key", keyed(hopping("30s", "10s"), **SUMS), windowed([], hops(30_000, 10_000), **SUMS_OF)),
    Program(
        "hopping with an offset, two keys",
        keyed(hopping("20s", "5s", offset="3s"), "k", "i", **SUMS),
        windowed(["k", "i"], hops(20_000, 5000, 3000), **SUMS_OF),
    ),
    Program(
        "cumulative",
        keyed(cumulative("1m", "15s"), "k", **SUMS),
        windowed(["k"], accumulates(MINUTE, 15_000), **SUMS_OF),
    ),
    Program(
        "cumulative, no key, offset",
        keyed(cumulative("1m", "20s", offset="5s"), **ROWS),
        windowed([], accumulates(MINUTE, 20_000, 5000), **ROWS_OF),
    ),
    Program("session", keyed(session("10s"), "k", **ROWS), sessions(["k"], 10_000, **ROWS_OF)),
    Program("session, no key", keyed(session("3s"), **SUMS), sessions([], 3000, **SUMS_OF)),
    Program("session by two keys", keyed(session("20s"), "k", "i", **SUMS), sessions(["k", "i"], 20_000, **SUMS_OF)),
    Program("count window", keyed(count_window(7), "k", **ROWS), counted(["k"], 7, **ROWS_OF), arrival=True),
    Program("count window, no key", keyed(count_window(50), **SUMS), counted([], 50, **SUMS_OF), arrival=True),
    Program("count window of one", keyed(count_window(1), "i", **SUMS), counted(["i"], 1, **SUMS_OF), arrival=True),
]

# -- programs: aggregates -------------------------------------------------------------------------------------------------


class Together(UserAggregate):
    """The sum of x * y, with how many rows, as a text: state of several parts."""

    type = pa.string()

    def init(self) -> Any:
        return [0.0, 0]

    def accumulate(self, state: Any, batch: pa.RecordBatch) -> Any:
        for x, y in zip(batch["amount"].to_pylist(), batch["n"].to_pylist(), strict=True):
            state = [state[0] + (x or 0.0) * (y % 8), state[1] + 1]
        return state

    def merge(self, a: Any, b: Any) -> Any:
        return [a[0] + b[0], a[1] + b[1]]

    def finish(self, state: Any) -> Any:
        return f"{state[0]:.6f} of {state[1]}"


def together(rows: list[Row]) -> str:
    return f"{sum((row['amount'] or 0.0) * (row['n'] % 8) for row in rows):.6f} of {len(rows)}"


def many_sql() -> str:
    return """select k, floor(ts / 60000.0)::bigint * 60000 as window_start, window_start + 60000 as window_end, count(*) as n,
        count(amount) as some, sum(amount) as total, min(amount) as low, max(amount) as high, avg(amount) as mean,
        var_samp(amount) as variance, stddev_samp(amount) as stddev, count(distinct i) as kinds, arg_min(s, n) as s_first,
        count(*) filter (where amount > 100) as large, sum(r) filter (where b) as of_b from t group by k, window_start"""


AGGREGATES = [
    Program("many in one pass, by SQL", keyed(
        tumbling("1m"), "k", n=sabot.count(), some=sabot.count("amount"), total=sabot.sum("amount"), low=sabot.min("amount"),
        high=sabot.max("amount"), mean=sabot.mean("amount"), variance=sabot.variance("amount"), stddev=sabot.stddev("amount"),
        kinds=sabot.count_distinct("i"), s_first=sabot.arg_min("s", "n"), large=sabot.count().filter(col("amount") > 100),
        of_b=sabot.sum("r").filter(col("b")),
    ), many_sql().replace("arg_min(s, n)", "arg_min_null(s, n)"), near=("mean", "variance", "stddev")),
]  # fmt: skip

_VALUES = ("i", "g", "amount", "s", "b", "at")


def _over(kind: str, *columns: str, by: str | None = None, near: bool = False) -> Program:
    """One kind of aggregate over several columns, with and without a filter, in two windows at once."""
    make = getattr(sabot, kind)
    more = () if by is None else (by,)
    aggregates: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for column in columns:
        aggregates[column + "_"] = make(column, *more)
        answers[column + "_"] = of(kind, column, by)
        aggregates[column + "_few"] = make(column, *more).filter(col("n") % 3 == 0)
        answers[column + "_few"] = of(kind, column, by, where=lambda row: row["n"] % 3 == 0)
        aggregates[column + "_none"] = make(column, *more).filter(col("n") < 0)
        answers[column + "_none"] = of(kind, column, by, where=lambda row: row["n"] < 0)
    return Program(
        f"aggregate {kind}" + (f" by {by}" if by else ""),
        keyed(hopping("40s", "20s"), "k", **aggregates),
        windowed(["k"], hops(40_000, 20_000), **answers),
        near=tuple(answers) if near else (),
    )


AGGREGATES += [
    _over("count", *_VALUES),
    _over("sum", "i", "f", "amount", near=False),
    _over("min", "i", "f", "g", "at", "s"),
    _over("max", "i", "f", "g", "at", "s"),
    _over("mean", "f", "amount", "r", near=True),
    _over("variance", "amount", "r", near=True),
    _over("stddev", "amount", "r", near=True),
    _over("first", *_VALUES),
    _over("last", *_VALUES),
    _over("any", "k"),
    _over("count_distinct", *_VALUES),
    _over("collect_list", *_VALUES),
    _over("arg_min", *_VALUES, by="r"),
    _over("arg_max", *_VALUES, by="r"),
    _over("arg_max", "n", "s", by="ts"),
    Program(
        "variance with ddof",
        keyed(tumbling("2m"), "k", v0=sabot.variance("amount", ddof=0), s2=sabot.stddev("amount", ddof=2)),
        windowed(["k"], tumbles(2 * MINUTE), v0=of("variance", "amount", ddof=0), s2=of("stddev", "amount", ddof=2)),
        near=("v0", "s2"),
    ),
    Program(
        "an aggregate of expressions, filtered twice",
        keyed(tumbling("1m"), "k", x=sabot.sum(col("amount") * 2 + col("n")).filter(col("b")).filter(col("i") > 0), s=sabot.max(col("s").str.length())),
        windowed(
            ["k"],
            tumbles(MINUTE),
            x=lambda rows: of("sum", "x")([
                {"x": None if r["amount"] is None else r["amount"] * 2 + r["n"]} for r in rows if r["b"] and r["i"] is not None and r["i"] > 0
            ]),
            s=lambda rows: of("max", "x")([{"x": None if r["s"] is None else len(r["s"])} for r in rows]),
        ),
    ),
    Program(
        "an aggregate of one's own",
        keyed(hopping("1m", "30s"), "k", own=aggregate_with(Together(), "amount", "n"), n=sabot.count()),
        windowed(["k"], hops(MINUTE, 30_000), own=together, n=of("count")),
    ),
    Program(
        "an aggregate of one's own, in sessions",
        keyed(session("8s"), "k", own=aggregate_with(Together(), "amount", "n"), odd=aggregate_with(Together(), "amount", "n").filter(col("n") % 2 == 1)),
        sessions(["k"], 8000, own=together, odd=lambda rows: together([row for row in rows if row["n"] % 2])),
    ),
    Program(
        "all kinds in sessions",
        keyed(
            session("6s"), "k", total=sabot.sum("f"), low=sabot.min("s"), kinds=sabot.count_distinct("i"), begin=sabot.first("s"),
            end=sabot.last("n"), rows=sabot.collect_list("r"), best=sabot.arg_max("s", "r"), mean=sabot.mean("amount"), v=sabot.variance("amount"),
        ),
        sessions(
            ["k"], 6000, total=of("sum", "f"), low=of("min", "s"), kinds=of("count_distinct", "i"), begin=of("first", "s"),
            end=of("last", "n"), rows=of("collect_list", "r"), best=of("arg_max", "s", "r"), mean=of("mean", "amount"), v=of("variance", "amount"),
        ),
        near=("mean", "v"),
    ),
]  # fmt: skip

# -- programs: running, reduce, deduplicate, chains -----------------------------------------------------------------------


def larger(so_far: Row, row: Row) -> Row:
    return {**row, "n": so_far["n"] + 1, "amount": max(so_far["amount"] or 0.0, row["amount"] or 0.0)}


def reduced(rows: list[Row]) -> list[Row]:
    out: list[Row] = []
    state: dict[Any, Row] = {}
    for row in rows:
        row = {name: row[name] for name in ("n", "k", "amount", "s")}
        state[row["k"]] = larger(state[row["k"]], row) if row["k"] in state else row
        out.append(state[row["k"]])
    return out


def first_of(*keys: str, within: int | None = None) -> Any:
    def answer(rows: list[Row]) -> list[Row]:
        out: list[Row] = []
        for group in by_key(rows, keys).values():
            since: int | None = None
            for row in group:
                if since is None or (within is not None and row["ts"] - since >= within):
                    since = row["ts"]
                    out.append(row)
        return [{name: row[name] for name in ("n", "ts", *keys)} for row in out]

    return answer


def chain_answer(rows: list[Row]) -> list[Row]:
    minutes = windowed(["k", "i"], tumbles(MINUTE), c=of("count"), total=of("sum", "amount"))(rows)
    busy = [row for row in minutes if row["c"] > 1]
    return [{"i": i, "window_start": start} for i, start in {(row["i"], row["window_start"]) for row in busy}]


def twice_answer(rows: list[Row]) -> list[Row]:
    small = windowed(["k", "i"], tumbles(10_000), c=of("count"), total=of("sum", "amount"))(rows)
    later = [{**row, "ts": row["window_end"] - 1} for row in small]
    return windowed(["i"], tumbles(MINUTE), c=of("sum", "c"), total=of("sum", "total"), parts=of("count"))(later)


def deep_answer(rows: list[Row]) -> list[Row]:
    inner = sessions(["k"], 5000, c=of("count"))(rows)
    middle = windowed(["c"], hops(40_000, 20_000), sessions=of("count"))(
        [{**row, "ts": row["window_end"] - 1} for row in inner]
    )
    return windowed([], tumbles(2 * MINUTE), most=of("max", "sessions"), total=of("sum", "sessions"))(
        [{**row, "ts": row["window_end"] - 1} for row in middle]
    )


RUNNING = [
    Program(
        "running aggregate",
        lambda s: s.key_by("k").aggregate(c=sabot.count(), total=sabot.sum("amount"), low=sabot.min("f"), end=sabot.last("n"), large=sabot.count().filter(col("amount") > 1000)),
        running(["k"], c=of("count"), total=of("sum", "amount"), low=of("min", "f"), end=of("last", "n"), large=of("count", where=lambda r: r["amount"] is not None and r["amount"] > 1000)),
        arrival=True,
    ),
    Program(
        "running aggregate of all rows",
        lambda s: s.aggregate(c=sabot.count(), total=sabot.sum("amount"), kinds=sabot.count_distinct("k")),
        running([], c=of("count"), total=of("sum", "amount"), kinds=of("count_distinct", "k")),
        arrival=True,
    ),
    Program(
        "running aggregate by two keys, of strings",
        lambda s: s.key_by("i", "b").aggregate(c=sabot.count(), low=sabot.min("s"), own=aggregate_with(Together(), "amount", "n")),
        running(["i", "b"], c=of("count"), low=of("min", "s"), own=together),
        arrival=True,
    ),
    Program(
        "running count from several partitions",
        lambda s: s.key_by("k").aggregate(c=sabot.count()),
        running(["k"], c=of("count")),
    ),
    Program("reduce", lambda s: s.select("n", "k", "amount", "s").key_by("k").reduce(larger), reduced, arrival=True),
    Program("deduplicate", lambda s: s.select("n", "ts", "i").deduplicate("i"), first_of("i"), arrival=True),
    Program("deduplicate by two keys", lambda s: s.select("n", "ts", "k", "s").deduplicate("k", "s"), first_of("k", "s"), arrival=True),
    Program("deduplicate a float", lambda s: s.select("n", "ts", "f").deduplicate("f"), first_of("f"), arrival=True),
    Program(
        "deduplicate within a time", lambda s: s.select("n", "ts", "k").deduplicate("k", within="30s"), first_of("k", within=30_000), arrival=True
    ),
    Program("deduplicate from several partitions", lambda s: s.deduplicate("k").select("k"), "select distinct k from t"),
    Program(
        "window, filter, another key, deduplicate",
        lambda s: (
            s.key_by("k", "i").window(tumbling("1m")).aggregate(c=sabot.count(), total=sabot.sum("amount"))
            .filter(col("c") > 1).key_by("i", "window_start").deduplicate().select("i", "window_start")
        ),
        chain_answer,
    ),
    Program(
        "a window over the results of another",
        lambda s: (
            s.key_by("k", "i").window(tumbling("10s")).aggregate(c=sabot.count(), total=sabot.sum("amount"))
            .key_by("i").window(tumbling("1m")).aggregate(c=sabot.sum("c"), total=sabot.sum("total"), parts=sabot.count())
        ),
        twice_answer,
    ),
    Program(
        "three windows, one over another",
        lambda s: (
            s.key_by("k").window(session("5s")).aggregate(c=sabot.count())
            .key_by("c").window(hopping("40s", "20s")).aggregate(sessions=sabot.count())
            .window(tumbling("2m")).aggregate(most=sabot.max("sessions"), total=sabot.sum("sessions"))
        ),
        deep_answer,
    ),
    Program(
        "a window over a union of two sources",
        lambda a, b: a.select("k", "n", "ts").union(b.select("k", "n", "ts")).key_by("k").window(tumbling("30s")).aggregate(**ROWS),
        windowed(["k"], tumbles(30_000), **ROWS_OF),
        sources=2,
    ),
    Program(
        "a union of windows",
        lambda s: (
            s.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count())
            .union(s.key_by("k").window(hopping("2m", "1m")).aggregate(n=sabot.count()))
        ),
        lambda rows: windowed(["k"], tumbles(MINUTE), n=of("count"))(rows) + windowed(["k"], hops(2 * MINUTE, MINUTE), n=of("count"))(rows),
    ),
    Program(
        "a window after steps that change every column",
        lambda s: (
            s.filter(col("n") % 2 == 0).rename({"k": "who", "amount": "money"}).with_columns(money=col("money") * 2, n=lit(1))
            .drop("s").key_by("who").window(tumbling("1m")).aggregate(n=sabot.sum("n"), money=sabot.sum("money"))
        ),
        lambda rows: windowed(["who"], tumbles(MINUTE), n=of("count"), money=of("sum", "money"))(
            [{**r, "who": r["k"], "money": None if r["amount"] is None else r["amount"] * 2} for r in rows if r["n"] % 2 == 0]
        ),
    ),
    Program(
        "a window after map_batches and flat_map",
        lambda s: (
            s.select("n", "ts", "k").map_batches(odd_rows, schema={"n": "int64", "ts": "int64", "k": "string"})
            .flat_map(lambda row: [row, {**row, "n": -row["n"]}], schema={"n": "int64", "ts": "int64", "k": "string"})
            .key_by("k").window(tumbling("1m")).aggregate(c=sabot.count(), low=sabot.min("n"))
        ),
        lambda rows: windowed(["k"], tumbles(MINUTE), c=lambda rs: 2 * len(rs), low=lambda rs: -max(r["n"] for r in rs))([r for r in rows if r["n"] % 2]),
    ),
]  # fmt: skip

PROGRAMS = [*STATELESS, *WINDOWS, *AGGREGATES, *RUNNING]
TABLES = ["plain", "old", "large", "hot", "sparse", "huge", "one", "empty"]

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
each_seed = pytest.mark.parametrize("seed", SEEDS)

_tables: dict[tuple[str, str, int], pa.Table] = {}
_answers: dict[tuple[str, str, str, int], list[Row]] = {}


def table_of(data: str, form: str = "", seed: int = 0) -> pa.Table:
    """The rows of this kind, made once; `form`: as a text file can hold them."""
    key = (data, form, seed)
    if key not in _tables:
        table = make_table(data, seed)
        _tables[key] = as_text_allows(table, form) if form else table
    return _tables[key]


def check(
    program: Program, got: pa.Table, how: Circumstance, seed: int, *, form: str = "", repeated: bool = False
) -> None:
    key = (program.name, how.data, form, seed)
    if key not in _answers:
        _answers[key] = program.answer(table_of(how.data, form, seed))
    stateless = program in STATELESS
    wrong = differences(got, _answers[key], near=program.near, repeated=repeated, zeros_equal=not stateless)
    assert not wrong, f"{program.name!r}, {form} {how}\n{wrong}"


def small(program: Program, data: list[str]) -> list[str]:
    """Long rows make long answers, where each window lists them."""
    return [each for each in data if not (each in ("huge", "large") and "tumbling of a millisecond" in program.name)]


@each_seed
@each_program
def test_the_answer_is_the_same_under_any_split_and_parallelism(program: Program, seed: int) -> None:
    for data in small(program, TABLES):
        how = Circumstance.drawn(f"{program.name} {data} {seed} split", program, [data])
        check(program, run_split(program, table_of(data, "", seed), how), how, seed)


@each_seed
@each_program
def test_the_answer_is_the_same_from_files_of_any_format(program: Program, seed: int, tmp_path: Path) -> None:
    for kind in ("parquet", "arrow", "ndjson", "csv"):
        how = Circumstance.drawn(
            f"{program.name} {kind} {seed} file", program, ["plain", "old", "one", "empty", "huge"]
        )
        form = kind if kind in ("ndjson", "csv") else ""
        if form and reads_more_than_text(program):
            continue
        if kind == "csv" and how.data == "huge":
            how.data = "sparse"
        got = run_file(program, table_of(how.data, form, seed), how, kind, tmp_path)
        check(program, got, how, seed, form=form)


@each_seed
@each_program
async def test_the_answer_is_the_same_from_topics(program: Program, seed: int, memory_url: str) -> None:
    if reads_more_than_text(program):
        program = WINDOWS[seed % len(WINDOWS)]
    how = Circumstance.drawn(f"{program.name} {seed} topic", program, ["plain", "old", "sparse", "one"])
    got = await run_topic(program, table_of(how.data, "ndjson", seed), how, memory_url)
    check(program, got, how, seed, form="ndjson")


@each_seed
@each_program
async def test_the_answer_is_the_same_wherever_barriers_fall(program: Program, seed: int, tmp_path: Path) -> None:
    how = Circumstance.drawn(f"{program.name} {seed} barrier", program, ["plain", "old", "sparse", "hot", "one"])
    check(program, await run_barriers(program, table_of(how.data, "", seed), how, tmp_path), how, seed)


@each_seed
@each_program
async def test_the_answer_is_the_same_after_a_crash_and_a_restore(program: Program, seed: int, tmp_path: Path) -> None:
    how = Circumstance.drawn(f"{program.name} {seed} crash", program, ["plain", "old", "sparse", "hot"])
    got = await run_restored(program, table_of(how.data, "", seed), how, tmp_path, crash=True)
    check(program, got, how, seed, repeated=True)


@each_seed
@each_program
async def test_the_answer_is_the_same_after_a_stop_and_a_start(program: Program, seed: int, tmp_path: Path) -> None:
    how = Circumstance.drawn(f"{program.name} {seed} stop", program, ["plain", "old", "sparse", "one"])
    got = await run_restored(program, table_of(how.data, "", seed), how, tmp_path, crash=False)
    check(program, got, how, seed)


def reads_more_than_text(program: Program) -> bool:
    """Whether it reads the column of timestamps, which text files do not have here."""
    return program.time == "at" or program.name == "drop" or any(f"{kind}" in program.name for kind in _OF_ALL_TYPES)


_OF_ALL_TYPES = [
    f"aggregate {kind}" for kind in ("count", "min", "max", "first", "last", "collect_list", "arg_min", "arg_max")
]
