"""Every operator, window and aggregate against the same over all rows at once (DuckDB, or plain Python): the answer is the same
under any batch split, number of partitions, parallelism and place of barriers, after a restore, and on any source.

Each program of PROGRAMS runs under each kind of circumstance at least once, a part of the kinds in `make test`;
SABOT_STREAM_SEEDS=N draws N times as many. The assertion names the circumstance, which follows from its seed.
"""

import asyncio
import json
import math
import os
import random
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
    sessions,
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
from sabot.connectors.base import Bounded, Positions, Scans
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
    Program(
        "many in one pass, by SQL",
        keyed(
            tumbling("1m"),
            "k",
            n=sabot.count(),
            some=sabot.count("amount"),
            total=sabot.sum("amount"),
            low=sabot.min("amount"),
            high=sabot.max("amount"),
            mean=sabot.mean("amount"),
            variance=sabot.variance("amount"),
            stddev=sabot.stddev("amount"),
            kinds=sabot.count_distinct("i"),
            s_first=sabot.arg_min("s", "n"),
            large=sabot.count().filter(col("amount") > 100),
            of_b=sabot.sum("r").filter(col("b")),
        ),
        many_sql().replace("arg_min(s, n)", "arg_min_null(s, n)"),
        near=("mean", "variance", "stddev"),
    ),
]

_VALUES = ("i", "g", "amount", "s", "b", "at")


def _over(kind: str, *columns: str, by: str | None = None, near: bool = False) -> Program:
    """One kind of aggregate over several columns, in two windows at once; with filters over the first column and over text."""
    make = getattr(sabot, kind)
    more = () if by is None else (by,)
    aggregates: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for column in columns:
        aggregates[column + "_"] = make(column, *more)
        answers[column + "_"] = of(kind, column, by)
        if column not in (columns[0], "s"):
            continue
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
    _over("sum", "r", "f", "amount", near=False),
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
    _over("collect_set", "i", "s"),
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
        keyed(
            tumbling("1m"),
            "k",
            x=sabot.sum(col("amount") * 2 + col("n")).filter(col("b")).filter(col("i") > 0),
            s=sabot.max(col("s").str.length()),
        ),
        windowed(
            ["k"],
            tumbles(MINUTE),
            x=lambda rows: of("sum", "x")(
                [
                    {"x": None if r["amount"] is None else r["amount"] * 2 + r["n"]}
                    for r in rows
                    if r["b"] and r["i"] is not None and r["i"] > 0
                ]
            ),
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
        keyed(
            session("8s"),
            "k",
            own=aggregate_with(Together(), "amount", "n"),
            odd=aggregate_with(Together(), "amount", "n").filter(col("n") % 2 == 1),
        ),
        sessions(["k"], 8000, own=together, odd=lambda rows: together([row for row in rows if row["n"] % 2])),
    ),
    Program(
        "all kinds in sessions",
        keyed(
            session("6s"),
            "k",
            total=sabot.sum("f"),
            low=sabot.min("s"),
            kinds=sabot.count_distinct("i"),
            begin=sabot.first("s"),
            end=sabot.last("n"),
            rows=sabot.collect_list("r"),
            best=sabot.arg_max("s", "r"),
            mean=sabot.mean("amount"),
            v=sabot.variance("amount"),
        ),
        sessions(
            ["k"],
            6000,
            total=of("sum", "f"),
            low=of("min", "s"),
            kinds=of("count_distinct", "i"),
            begin=of("first", "s"),
            end=of("last", "n"),
            rows=of("collect_list", "r"),
            best=of("arg_max", "s", "r"),
            mean=of("mean", "amount"),
            v=of("variance", "amount"),
        ),
        near=("mean", "v"),
    ),
]

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
    """Of rows as they came; where a span of event time decides, in its order."""

    def answer(rows: list[Row]) -> list[Row]:
        out: list[Row] = []
        rows = rows if within is None else sorted(rows, key=lambda row: row["ts"])
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
        lambda s: s.key_by("k").aggregate(
            c=sabot.count(),
            total=sabot.sum("amount"),
            low=sabot.min("f"),
            end=sabot.last("n"),
            large=sabot.count().filter(col("amount") > 1000),
        ),
        running(
            ["k"],
            c=of("count"),
            total=of("sum", "amount"),
            low=of("min", "f"),
            end=of("last", "n"),
            large=of("count", where=lambda r: r["amount"] is not None and r["amount"] > 1000),
        ),
        arrival=True,
    ),
    Program(
        "running aggregate of all rows",
        lambda s: s.aggregate(
            c=sabot.count(), total=sabot.sum("amount"), end=sabot.last("b"), mean=sabot.mean("amount")
        ),
        running([], c=of("count"), total=of("sum", "amount"), end=of("last", "b"), mean=of("mean", "amount")),
        arrival=True,
    ),
    Program(
        "running aggregate by two keys",
        lambda s: s.key_by("i", "b").aggregate(
            c=sabot.count("s"), first=sabot.first("ts"), low=sabot.min("g"), total=sabot.sum("r")
        ),
        running(["i", "b"], c=of("count", "s"), first=of("first", "ts"), low=of("min", "g"), total=of("sum", "r")),
        arrival=True,
    ),
    Program(
        "running count from several partitions",
        lambda s: s.key_by("k").aggregate(c=sabot.count()),
        running(["k"], c=of("count")),
    ),
    Program("reduce", lambda s: s.select("n", "k", "amount", "s").key_by("k").reduce(larger), reduced, arrival=True),
    Program(
        "the first rows",
        lambda s: s.select("n", "ts", "s").head(123),
        lambda rows: [{name: row[name] for name in ("n", "ts", "s")} for row in rows[:123]],
        arrival=True,
    ),
    Program(
        "the first rows of a filter, in windows",
        lambda s: s.filter(col("amount") > 1000).head(50).key_by("k").window(tumbling("1m")).aggregate(c=sabot.count()),
        lambda rows: windowed(["k"], tumbles(MINUTE), c=of("count"))(
            [row for row in rows if (row["amount"] or 0) > 1000][:50]
        ),
        arrival=True,
    ),
    Program("deduplicate", lambda s: s.select("n", "ts", "i").deduplicate("i"), first_of("i"), arrival=True),
    Program(
        "deduplicate by two keys",
        lambda s: s.select("n", "ts", "k", "s").deduplicate("k", "s"),
        first_of("k", "s"),
        arrival=True,
    ),
    Program("deduplicate a float", lambda s: s.select("n", "ts", "f").deduplicate("f"), first_of("f"), arrival=True),
    Program(
        "deduplicate within a time",
        lambda s: s.select("n", "ts", "k").deduplicate("k", within="30s"),
        first_of("k", within=30_000),
        arrival=True,
    ),
    Program(
        "deduplicate from several partitions", lambda s: s.deduplicate("k").select("k"), "select distinct k from t"
    ),
    Program(
        "window, filter, another key, deduplicate",
        lambda s: (
            s.key_by("k", "i")
            .window(tumbling("1m"))
            .aggregate(c=sabot.count(), total=sabot.sum("amount"))
            .filter(col("c") > 1)
            .key_by("i", "window_start")
            .deduplicate()
            .select("i", "window_start")
        ),
        chain_answer,
    ),
    Program(
        "a window over the results of another",
        lambda s: (
            s.key_by("k", "i")
            .window(tumbling("10s"))
            .aggregate(c=sabot.count(), total=sabot.sum("amount"))
            .key_by("i")
            .window(tumbling("1m"))
            .aggregate(c=sabot.sum("c"), total=sabot.sum("total"), parts=sabot.count())
        ),
        twice_answer,
    ),
    Program(
        "three windows, one over another",
        lambda s: (
            s.key_by("k")
            .window(session("5s"))
            .aggregate(c=sabot.count())
            .key_by("c")
            .window(hopping("40s", "20s"))
            .aggregate(sessions=sabot.count())
            .window(tumbling("2m"))
            .aggregate(most=sabot.max("sessions"), total=sabot.sum("sessions"))
        ),
        deep_answer,
    ),
    Program(
        "a window over a union of two sources",
        lambda a, b: (
            a.select("k", "n", "ts")
            .union(b.select("k", "n", "ts"))
            .key_by("k")
            .window(tumbling("30s"))
            .aggregate(**ROWS)
        ),
        windowed(["k"], tumbles(30_000), **ROWS_OF),
        sources=2,
    ),
    Program(
        "a union of windows",
        lambda s: (
            s.key_by("k")
            .window(tumbling("1m"))
            .aggregate(n=sabot.count())
            .union(s.key_by("k").window(hopping("2m", "1m")).aggregate(n=sabot.count()))
        ),
        lambda rows: (
            windowed(["k"], tumbles(MINUTE), n=of("count"))(rows)
            + windowed(["k"], hops(2 * MINUTE, MINUTE), n=of("count"))(rows)
        ),
    ),
    Program(
        "a window after steps that change every column",
        lambda s: (
            s.filter(col("n") % 2 == 0)
            .rename({"k": "who", "amount": "money"})
            .with_columns(money=col("money") * 2, n=lit(1))
            .drop("s")
            .key_by("who")
            .window(tumbling("1m"))
            .aggregate(n=sabot.sum("n"), money=sabot.sum("money"))
        ),
        lambda rows: windowed(["who"], tumbles(MINUTE), n=of("count"), money=of("sum", "money"))(
            [
                {**r, "who": r["k"], "money": None if r["amount"] is None else r["amount"] * 2}
                for r in rows
                if r["n"] % 2 == 0
            ]
        ),
    ),
    Program(
        "a window after map_batches and flat_map",
        lambda s: (
            s.select("n", "ts", "k")
            .map_batches(odd_rows, schema={"n": "int64", "ts": "int64", "k": "string"})
            .flat_map(lambda row: [row, {**row, "n": -row["n"]}], schema={"n": "int64", "ts": "int64", "k": "string"})
            .key_by("k")
            .window(tumbling("1m"))
            .aggregate(c=sabot.count(), low=sabot.min("n"))
        ),
        lambda rows: windowed(
            ["k"], tumbles(MINUTE), c=lambda rs: 2 * len(rs), low=lambda rs: -max(r["n"] for r in rs)
        )([r for r in rows if r["n"] % 2]),
    ),
]

PROGRAMS = [*STATELESS, *WINDOWS, *AGGREGATES, *RUNNING]
TABLES = ["plain", "old", "large", "hot", "sparse", "huge", "one", "empty"]

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
each_seed = pytest.mark.parametrize("seed", SEEDS)
a_part = pytest.mark.one_in(24, "each program is run under any split and parallelism")

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


@pytest.mark.one_in(15, "each program has three tables, and each kind of step is in several programs")
@pytest.mark.parametrize("table", range(3))
@each_seed
@each_program
def test_the_answer_is_the_same_under_any_split_and_parallelism(program: Program, seed: int, table: int) -> None:
    some = random.Random(f"{program.name} {seed}").sample(TABLES[1:], 2)
    for data in small(program, ["plain", *some][table : table + 1]):
        how = Circumstance.drawn(f"{program.name} {data} {seed} split", program, [data])
        check(program, run_split(program, table_of(data, "", seed), how), how, seed)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@a_part
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


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@a_part
@each_seed
@each_program
async def test_the_answer_is_the_same_from_topics(program: Program, seed: int, memory_url: str) -> None:
    if reads_more_than_text(program):
        program = WINDOWS[seed % len(WINDOWS)]
    how = Circumstance.drawn(f"{program.name} {seed} topic", program, ["plain", "old", "sparse", "one"])
    got = await run_topic(program, table_of(how.data, "ndjson", seed), how, memory_url)
    check(program, got, how, seed, form="ndjson")


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@a_part
@each_seed
@each_program
async def test_the_answer_is_the_same_wherever_barriers_fall(program: Program, seed: int, tmp_path: Path) -> None:
    how = Circumstance.drawn(f"{program.name} {seed} barrier", program, ["plain", "old", "sparse", "hot", "one"])
    check(program, await run_barriers(program, table_of(how.data, "", seed), how, tmp_path), how, seed)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@a_part
@each_seed
@each_program
async def test_the_answer_is_the_same_after_a_crash_and_a_restore(program: Program, seed: int, tmp_path: Path) -> None:
    how = Circumstance.drawn(f"{program.name} {seed} crash", program, ["plain", "old", "sparse", "hot"])
    got = await run_restored(program, table_of(how.data, "", seed), how, tmp_path, crash=True)
    check(program, got, how, seed, repeated=True)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@a_part
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


WHOLE = {
    "count_distinct": (sabot.count_distinct("k"), of("count_distinct", "k")),
    "collect_list": (sabot.collect_list("n"), of("collect_list", "n")),
    "min of text": (sabot.min("s"), of("min", "s")),
    "last of text": (sabot.last("s"), of("last", "s")),
    "arg_max": (sabot.arg_max("n", "r"), of("arg_max", "n", "r")),
    "one's own": (aggregate_with(Together(), "amount", "n"), together),
}


@pytest.mark.parametrize(("aggregate", "value"), WHOLE.values(), ids=WHOLE.keys())
def test_a_running_aggregate_of_whole_values_is_the_answer_or_is_refused(aggregate: Any, value: Any) -> None:
    program = Program(
        "whole", lambda s: s.key_by("k").aggregate(c=sabot.count(), x=aggregate), running(["k"], c=of("count"), x=value)
    )
    how = Circumstance(seed=1, split="mixed", parallelism=2)
    try:
        got = run_split(program, table_of("plain"), how)
    except UserError as refused:
        if "x (" not in str(refused) or "window" not in str(refused):  # its column, and what to write in its place
            raise
        return
    check(program, got, how, 0)


@pytest.mark.one_in(2, "each program, and each parallelism, is in one of its cases")
@pytest.mark.parametrize("later", [1, 2, 4])
@pytest.mark.parametrize(
    "name", ["tumbling, by SQL", "session", "running aggregate", "three windows, one over another", "deduplicate"]
)
async def test_the_answer_with_another_parallelism_after_a_crash_is_the_same(
    name: str, later: int, tmp_path: Path
) -> None:
    program = next(each for each in PROGRAMS if each.name == name)
    how = Circumstance.drawn(f"{name} {later} rescale", program, ["plain"])
    how.parallelism = 3
    got = await run_restored(program, table_of("plain"), how, tmp_path, crash=True, later=later)
    check(program, got, how, 0, repeated=True)


# -- results as they come: late rows, allowed lateness, early results -----------------------------------------------------


def late_rows(statistics: Any) -> int:
    """Of all operators."""
    if not isinstance(statistics, dict):
        return 0
    return sum(value if name == "late_rows" else late_rows(value) for name, value in statistics.items())


@pytest.mark.one_in(12, "a quarter of a second of a core each")
@each_seed
@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("split", ["one", "mixed", "all"])
async def test_rows_are_on_time_or_late_and_none_is_lost(
    split: str, parallelism: int, partitions: int, seed: int
) -> None:
    table = make_table("plain", seed)
    kept, late = Kept(), Kept("late")
    app = App("late", parallelism=parallelism)
    source = Rows(table, partitions=partitions, split=split, seed=seed)
    app.stream(source, time="ts", lateness="100ms").key_by("k").window(tumbling("2s"), late=late).aggregate(**ROWS).to(
        kept
    )
    await app.run()
    results, left = rows_of(kept.table()), rows_of(late.table())
    numbers = sorted([n for row in results for n in row["rows"]] + [row["n"] for row in left])
    assert numbers == list(range(table.num_rows)), f"{split=} {parallelism=} {partitions=} {seed=}"
    windows = [(row["k"], row["window_start"]) for row in results]
    assert len(set(windows)) == len(windows), "a window came twice"
    times = table["ts"].to_pylist()
    for n in (row["n"] for row in left):
        before = max((times[m] for m in range(n % partitions, n, partitions)), default=-math.inf)
        assert times[n] // 2000 * 2000 + 2000 <= before - 100, f"row {n} was not late"
    if split == "one" and partitions == 1:  # partitions that advance together hold each other's watermark back
        assert left
    assert late_rows(app.statistics()) == len(left)


async def test_late_rows_have_all_columns_of_the_stream() -> None:
    late = Kept("late")
    app = App("late")
    source = Rows(make_table("plain"), split="one")
    app.stream(source, time="ts").key_by("k").window(tumbling("1s"), late=late).aggregate(n=sabot.count()).to(Kept())
    await app.run()
    assert late.table().column_names == SCHEMA.names


async def test_late_rows_without_a_side_output_are_counted() -> None:
    app = App("late")
    app.stream(Rows(make_table("plain"), split="one"), time="ts").window(tumbling("1s")).aggregate(n=sabot.count()).to(
        Kept()
    )
    await app.run()
    assert late_rows(app.statistics()) > 0


SPANS = [
    (tumbling("2s"), tumbles(2000)),
    (hopping("4s", "2s"), hops(4000, 2000)),
    (cumulative("6s", "2s"), accumulates(6000, 2000)),
]


@pytest.mark.one_in(12, "half a second of a core each")
@each_seed
@pytest.mark.parametrize(
    ("partitions", "parallelism", "split"),
    [(1, 1, "one"), (1, 3, "one"), (1, 2, "mixed"), (3, 2, "mixed"), (2, 1, "all")],
)
@pytest.mark.parametrize("window", SPANS, ids=["tumbling", "hopping", "cumulative"])
def test_with_allowed_lateness_the_last_result_of_a_window_is_the_answer(
    window: Any, partitions: int, parallelism: int, split: str, seed: int
) -> None:
    table = make_table("plain", seed)
    app = App("allowed", parallelism=parallelism)
    source = Rows(table, partitions=partitions, split=split, seed=seed)
    stream = app.stream(source, time="ts", lateness="100ms").key_by("k")
    got = rows_of(stream.window(window[0], allowed_lateness=LATENESS_MS / 1000).aggregate(**ROWS).collect())
    want = windowed(["k"], window[1], **ROWS_OF)(rows_of(table))
    assert last_of_each(got) == last_of_each(want), f"{partitions=} {parallelism=} {split=} {seed=}"
    if split == "one":
        assert len(got) > len(want), "no window was emitted again"


@pytest.mark.one_in(8, "a quarter of a second of a core each")
@each_seed
@pytest.mark.parametrize(
    ("partitions", "parallelism", "split"), [(1, 1, "one"), (1, 3, "mixed"), (3, 2, "mixed"), (1, 2, "all")]
)
@pytest.mark.parametrize(
    "window",
    [(tumbling("1m"), tumbles(MINUTE)), (hopping("1m", "20s"), hops(MINUTE, 20_000))],
    ids=["tumbling", "hopping"],
)
def test_early_results_are_those_of_the_rows_so_far(
    window: Any, partitions: int, parallelism: int, split: str, seed: int
) -> None:
    table = make_table("plain", seed)
    app = App("early", parallelism=parallelism)
    source = Rows(table, partitions=partitions, split=split, seed=seed)
    stream = app.stream(source, time="ts", lateness=f"{LATENESS_MS}ms").key_by("k").window(window[0], emit_every="7s")
    got = rows_of(stream.aggregate(**ROWS).collect())
    want = last_of_each(windowed(["k"], window[1], **ROWS_OF)(rows_of(table)))
    assert last_of_each(got) == want, f"{partitions=} {parallelism=} {split=} {seed=}"
    if partitions == 1:
        for row in got:
            latest = max(row["rows"])
            assert row["rows"] == [n for n in want[row["k"], row["window_start"], row["window_end"]][1] if n <= latest]
    if split == "one":
        assert len(got) > len(want), "there were no early results"


def last_of_each(rows: list[Row]) -> dict[Any, Any]:
    return {(row["k"], row["window_start"], row["window_end"]): (row["n"], row["rows"]) for row in rows}


async def test_windows_close_while_the_input_goes_on_even_if_a_partition_is_silent(memory_url: str) -> None:
    broker, kept = MemoryBroker.get(memory_url), Kept()
    broker.create_topic("in", partitions=2)
    app = App("idle", broker=memory_url)
    stream = app.stream("in", schema={"k": "string", "ts": "int64"}, time="ts", lateness="1s", idle="50ms")
    stream.key_by("k").window(tumbling("10s")).aggregate(n=sabot.count()).to(kept)
    await app.start()
    try:
        broker.publish("in", [{"k": "a", "ts": 1000 * i} for i in range(35)], partition=0)
        await until(
            lambda: sum(each.num_rows for each in kept.waiting) >= 3, "three windows, with one partition silent"
        )
        assert [row["n"] for row in rows_of(pa.Table.from_batches(kept.waiting))] == [10, 10, 10]
    finally:
        await app.stop(drain=True)
    assert [row["n"] for row in rows_of(kept.table())] == [10, 10, 10, 5]


# -- where results go -----------------------------------------------------------------------------------------------------

MINUTES = pa.schema(
    [
        ("k", pa.string()),
        *((name, pa.timestamp("ms", "UTC")) for name in ("window_start", "window_end")),
        ("n", pa.int64()),
        ("total", pa.float64()),
    ]
)


async def test_results_in_a_topic_and_in_files_are_the_results(memory_url: str, tmp_path: Path) -> None:
    table = table_of("plain", "ndjson")
    app = App("out", broker=memory_url, parallelism=2)
    stream = app.stream(Rows(table, split="mixed"), time="ts", lateness=f"{LATENESS_MS}ms")
    minutes = stream.key_by("k").window(tumbling("1m")).aggregate(n=sabot.count(), total=sabot.sum("amount"))
    minutes.to("minutes", key="k")
    sinks = {"parquet": sabot.ParquetSink, "arrow": sabot.ArrowSink, "csv": sabot.CsvSink, "ndjson": sabot.NdjsonSink}
    for kind, sink in sinks.items():
        minutes.to(sink(str(tmp_path / f"minutes.{kind}")))
    await app.run()
    want = windowed(["k"], tumbles(MINUTE), n=of("count"), total=of("sum", "amount"))(rows_of(table))
    for kind in sinks:
        got = App("again").stream(files(str(tmp_path / f"minutes.{kind}")), schema=MINUTES).collect()
        expected = (
            [{**row, "k": row["k"] or None} for row in want] if kind == "csv" else want
        )  # CSV has no empty strings
        got = (
            pa.Table.from_pylist([{**row, "k": row["k"] or None} for row in got.to_pylist()], schema=MINUTES)
            if kind == "csv"
            else got
        )
        assert not (wrong := differences(got, expected)), f"{kind}: {wrong}"
    records = MemoryBroker.get(memory_url).records("minutes")
    assert all(record.key == (None if record.value["k"] is None else record.value["k"].encode()) for record in records)
    kept, again = Kept(), App("again", broker=memory_url)
    again.stream("minutes", schema=MINUTES).to(kept)
    await again.start()
    try:
        await until(lambda: sum(each.num_rows for each in kept.waiting) >= len(want), "the results to be read again")
    finally:
        await again.stop()
    assert not (wrong := differences(kept.table(), want)), wrong


async def test_a_bounded_app_that_ended_is_complete_and_writes_nothing_again(tmp_path: Path) -> None:
    kept, program = Kept(), WINDOWS[0]
    for _ in range(2):
        app = App("ended", checkpoint_dir=tmp_path, state="memory")
        sink = kept.again()
        program.build(app.stream(Rows(table_of("plain"), split="mixed"), time="ts", lateness=f"{LATENESS_MS}ms")).to(
            sink
        )
        await app.run()
    assert not (wrong := differences(pa.Table.from_batches(kept.landed), program.answer(table_of("plain")))), wrong


def test_results_have_the_types_of_their_aggregates() -> None:
    stream = (
        App("types").stream(Rows(table_of("plain")), time="ts", lateness="5s").key_by("k", "i").window(tumbling("1m"))
    )
    got = stream.aggregate(
        n=sabot.count(),
        total=sabot.sum("amount"),
        whole=sabot.sum("r"),
        low=sabot.min("at"),
        high=sabot.max("s"),
        mean=sabot.mean("i"),
        v=sabot.variance("r"),
        d=sabot.stddev("r"),
        first=sabot.first("b"),
        last=sabot.last("f"),
        any=sabot.any("s"),
        kinds=sabot.count_distinct("s"),
        rows=sabot.collect_list("at"),
        best=sabot.arg_max("at", "r"),
        own=aggregate_with(Together(), "amount", "n"),
    ).collect()
    moment = pa.timestamp("ms", "UTC")
    assert dict(zip(got.schema.names, got.schema.types, strict=True)) == {
        "k": pa.string(),
        "i": pa.int64(),
        "window_start": moment,
        "window_end": moment,
        "n": pa.int64(),
        "total": pa.float64(),
        "whole": pa.int64(),
        "low": moment,
        "high": pa.string(),
        "mean": pa.float64(),
        "v": pa.float64(),
        "d": pa.float64(),
        "first": pa.bool_(),
        "last": pa.float64(),
        "any": pa.string(),
        "kinds": pa.int64(),
        "rows": pa.list_(moment),
        "best": moment,
        "own": pa.string(),
    }


# -- bounds ---------------------------------------------------------------------------------------------------------------


class Endless(Source, Bounded, Scans):
    """Gives 4,096 rows at a time until it has been told that it is enough."""

    name = "endless"
    bounded = True

    def __init__(self) -> None:
        self.rows_read = 0
        self.enough = threading.Event()

    def scan(self, schema: pa.Schema | None, columns: Any) -> bool:
        return columns is None or set(columns) <= {"n", "ts", "k"}

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("n", pa.int64()), ("ts", pa.int64()), ("k", pa.int64())])

    def infer_schema(self) -> pa.Schema:
        return self.schema

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.rows_read = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.enough.is_set():
            return None
        numbers = pa.array(range(self.rows_read, self.rows_read + min(4096, max_rows)), pa.int64())
        self.rows_read += len(numbers)
        data = pa.record_batch([numbers, numbers, pc.bit_wise_and(numbers, 63)], schema=self.schema)
        return Batch(data, self.positions(), self.name)

    @property
    def exhausted(self) -> bool:
        return self.enough.is_set()

    def positions(self) -> Positions:
        return {(self.name, 0): self.rows_read}

    def close(self) -> None:
        """Nothing to let go of."""


class Stuck(Kept):
    """Writes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__("stuck")
        self.free = threading.Event()
        self.rows = 0

    def write(self, batch: Batch) -> None:
        assert self.free.wait(60)
        self.rows += batch.num_rows


@pytest.mark.one_in(6, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("keyed_too", [False, True], ids=["stateless", "keyed"])
async def test_a_sink_that_stands_still_stops_the_source(keyed_too: bool, parallelism: int) -> None:
    source, sink = Endless(), Stuck()
    app = App("bounds", parallelism=parallelism)
    stream = app.stream(source, schema=source.schema, time="ts")
    (stream.key_by("k").aggregate(n=sabot.count()) if keyed_too else stream.filter(col("n") >= 0)).to(sink)
    running_app = asyncio.ensure_future(app.run())
    seen, since = -1, time.monotonic()
    while seen <= 0 or time.monotonic() - since < 0.4:  # until it has begun, and has read nothing for so long
        await asyncio.sleep(0.02)
        if source.rows_read != seen:
            seen, since = source.rows_read, time.monotonic()
        assert seen < 4_000_000, f"{seen} rows were read and nothing was written"
        assert not running_app.done()
    assert seen > 0
    source.enough.set()
    sink.free.set()
    await asyncio.wait_for(running_app, 60)
    assert sink.rows == source.rows_read


async def test_a_key_that_stands_still_does_not_stop_the_others() -> None:
    others = threading.Event()
    waited: list[bool] = []

    def wait_for_others(so_far: Row, row: Row) -> Row:
        if row["k"] == "hot":
            waited.append(others.wait(60))
        return row

    class Watching(Kept):
        def write(self, batch: Batch) -> None:
            super().write(batch)
            if any(k != "hot" for k in batch.taken()["k"].to_pylist()):
                others.set()

    keys = ["hot", "hot", *(f"k{i}" for i in range(40)), "hot"] * 20
    table = pa.table({"n": pa.array(range(len(keys)), pa.int64()), "k": keys})
    app, kept = App("hot", parallelism=4), Watching()
    app.stream(Rows(table, split="all")).key_by("k").reduce(wait_for_others).to(kept)
    await app.run()
    assert waited
    assert all(waited), "the results of other keys came only after the hot key's"
    assert sorted(row["n"] for row in rows_of(kept.table())) == list(range(len(keys)))


# -- errors ---------------------------------------------------------------------------------------------------------------

MISSPELT = {
    "filter": lambda s: s.filter(col("amuont") > 1),
    "select": lambda s: s.select("n", "amuont"),
    "with_columns": lambda s: s.with_columns(x=col("amuont")),
    "drop": lambda s: s.drop("amuont"),
    "rename": lambda s: s.rename({"amuont": "x"}),
    "key_by": lambda s: s.key_by("amuont").window(tumbling("1m")).aggregate(n=sabot.count()),
    "aggregate": lambda s: s.key_by("k").window(tumbling("1m")).aggregate(n=sabot.sum("amuont")),
    "aggregate filter": lambda s: s.window(tumbling("1m")).aggregate(n=sabot.count().filter(col("amuont") > 1)),
    "running": lambda s: s.key_by("k").aggregate(n=sabot.sum("amuont")),
    "deduplicate": lambda s: s.deduplicate("amuont"),
    "after a window": lambda s: (
        s.window(tumbling("1m")).aggregate(amount=sabot.sum("amount")).filter(col("amuont") > 1)
    ),
    "after a drop": lambda s: s.rename({"amount": "amuont"}).drop("amuont").select("amuont"),
}


@pytest.mark.parametrize("build", MISSPELT.values(), ids=MISSPELT.keys())
def test_a_misspelt_column_is_named_before_anything_runs(build: Any) -> None:
    source = Rows(table_of("plain"))
    with pytest.raises(UserError, match="amuont"):
        build(App("errors").stream(source, schema=SCHEMA, time="ts")).explain()
    with pytest.raises(UserError, match="amuont"):
        build(App("errors").stream(source, time="ts")).collect()
    assert source.rows_read == 0


WRONG_TYPES = {
    "filter by text": lambda s: s.filter(col("s")),
    "text plus a number": lambda s: s.select(x=col("s") + 1),
    "sum of text": lambda s: s.window(tumbling("1m")).aggregate(x=sabot.sum("s")),
    "mean of text": lambda s: s.key_by("k").window(session("1m")).aggregate(x=sabot.mean("s")),
    "running sum of text": lambda s: s.key_by("k").aggregate(x=sabot.sum("s")),
    "methods of times of text": lambda s: s.select(x=col("s").dt.hour()),
    "union of other columns": lambda s: s.select("s").union(s.select("n")),
    "a number compared with text": lambda s: s.filter(col("s") > 1),
}


@pytest.mark.parametrize("build", WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_a_wrong_type_is_told_before_anything_runs(build: Any) -> None:
    source = Rows(table_of("plain"))
    with pytest.raises(UserError, match=r"\bs\b"):
        build(App("errors").stream(source, schema=SCHEMA, time="ts")).explain()
    with pytest.raises(UserError, match=r"\bs\b"):
        build(App("errors").stream(source, time="ts")).collect()
    assert source.rows_read == 0


def test_a_misspelt_time_column_is_named() -> None:
    with pytest.raises(UserError, match="tss"):
        App("errors").stream(Rows(table_of("plain")), time="tss").window(tumbling("1m")).aggregate(
            n=sabot.count()
        ).collect()


def test_a_window_without_event_time_is_told() -> None:
    with pytest.raises(UserError, match="time"):
        App("errors").stream(Rows(table_of("plain"))).window(tumbling("1m")).aggregate(n=sabot.count()).collect()


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
async def test_after_an_error_in_a_function_was_mended_the_app_goes_on(parallelism: int, tmp_path: Path) -> None:
    table, kept, broken, gate = table_of("plain"), Kept(), True, Gate(0.5)

    def fragile(batch: pa.RecordBatch) -> pa.RecordBatch:
        if broken and batch.num_rows and max(batch["n"].to_pylist()) >= 200:
            raise ValueError("two hundred")
        return batch

    def build(app: App, sink: Sink, gate: Gate | None) -> None:
        stream = app.stream(Rows(table, split="seven", gate=gate, name="rows"), time="ts", lateness=f"{LATENESS_MS}ms")
        (
            stream.select("n", "k", "ts")
            .map_batches(fragile, schema={"n": "int64", "k": "string", "ts": "int64"}, on_error="fail")
            .key_by("k")
            .window(tumbling("30s"))
            .aggregate(**ROWS)
            .to(sink)
        )

    app = App("mended", checkpoint_dir=tmp_path, state="memory", parallelism=parallelism)
    build(app, kept, gate)
    running_app = asyncio.ensure_future(app.run())
    await until(lambda: gate.reached(1) or running_app.done(), "half of the rows")
    await app.agent_runtime.trigger_checkpoint()
    gate.open_to(1.0)
    with pytest.raises(SabotError, match="two hundred") as caught:
        await asyncio.wait_for(running_app, 60)
    message = str(caught.value)
    assert "map_batches" in message, message
    assert "ValueError" in message, message
    offsets = [int(word) for word in "".join(c if c.isdigit() else " " for c in message).split()]
    assert "rows" in message, message
    assert any(100 <= offset <= 210 for offset in offsets), f"no offset in {message!r}"

    broken, again = False, kept.again()
    app = App("mended", checkpoint_dir=tmp_path, state="memory", parallelism=parallelism)
    build(app, again, None)
    await asyncio.wait_for(app.run(), 60)
    assert app.agent_runtime.runner.restored_from is not None
    want = windowed(["k"], tumbles(30_000), **ROWS_OF)(rows_of(table))
    assert not (wrong := differences(again.table(), want, repeated=True)), wrong


BAD = [
    b"not json",
    b'{"n": "text"}',
    b'{"n": 5',
    b'{"n": 1e300}',
    b"[1, 2]",
    b'{"n": 1, "k": "\xff"}',
    b'{"n": 99999999999999999999}',
]


async def test_bad_lines_go_to_the_dead_letters_and_the_rest_goes_on(memory_url: str, tmp_path: Path) -> None:
    path = tmp_path / "in.ndjson"
    lines = [json.dumps({"n": i, "k": "ab"[i % 2]}).encode() for i in range(200)]
    for place, bad in enumerate(BAD):
        lines.insert(place * 20 + 3, bad)
    path.write_bytes(b"\n".join(lines) + b"\n")
    app, kept = App("letters", broker=memory_url, version="7"), Kept()
    stream = app.stream(files(str(path)), schema={"n": "int64", "k": "string"}, dead_letter="letters")
    stream.key_by("k").aggregate(c=sabot.count(), total=sabot.sum("n")).to(kept)
    await app.run()
    assert sorted((row["k"], row["c"]) for row in rows_of(kept.table())) == [
        (k, c) for k in "ab" for c in range(1, 101)
    ]
    letters = MemoryBroker.get(memory_url).records("letters")
    assert sorted(letter.payload for letter in letters) == sorted(BAD)
    for letter in letters:
        headers = dict(letter.headers)
        assert headers.keys() >= {f"sabot.{name}" for name in ("topic", "partition", "offset", "error", "message")}
        assert str(path) in headers["sabot.topic"].decode()
        assert headers["sabot.message"]


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_bad_payloads_of_a_topic_go_to_its_dead_letters(parallelism: int, memory_url: str) -> None:
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", partitions=2)
    bad: dict[tuple[int, int], bytes | None] = {}
    for p in range(2):
        for i in range(100):
            broker.publish("in", [{"n": i, "ts": i}], partition=p, key=f"key{i}")
            if i % 20 == p:
                payload = [*BAD, None][(i // 20 + 5 * p) % 8]
                bad[p, broker.publish("in", [payload], partition=p, key="bad", headers=(("h", b"1"),))] = payload
    app, kept = App("letters", broker=memory_url, parallelism=parallelism), Kept()
    app.stream("in", schema={"n": "int64", "ts": "int64"}, time="ts").window(tumbling("10s")).aggregate(
        n=sabot.count("n")
    ).to(kept)
    await app.start()
    try:
        await until(lambda: len(broker.records("in.dlq")) >= len(bad), f"{len(bad)} dead letters")
    finally:
        await app.stop(drain=True)
    assert sum(row["n"] for row in rows_of(kept.table())) == 200
    letters = broker.records("in.dlq")
    assert {where(letter): letter.payload for letter in letters} == bad
    assert len(letters) == len(bad)
    for letter in letters:
        headers = dict(letter.headers)
        assert headers["sabot.topic"] == b"in"
        assert headers["sabot.error"]
        assert headers["sabot.message"]
        assert letter.key == b"bad"
        assert headers["h"] == b"1"


def where(letter: Any) -> tuple[int, int]:
    headers = dict(letter.headers)
    return int(headers["sabot.partition"]), int(headers["sabot.offset"])


@pytest.mark.parametrize("moment", [None, 2**63 - 1, -(2**63)], ids=["null", "too late", "too early"])
async def test_a_row_without_a_time_that_can_be_goes_to_the_dead_letters(moment: int | None, memory_url: str) -> None:
    table = pa.table({"n": pa.array([0, 1, 2], pa.int64()), "ts": pa.array([1000, moment, 2000], pa.int64())})
    app, kept = App("times", broker=memory_url), Kept()
    app.stream(Rows(table), time="ts", dead_letter="letters").window(tumbling("1m")).aggregate(**ROWS).to(kept)
    await app.run()
    assert [row["rows"] for row in rows_of(kept.table())] == [[0, 2]]
    assert len(MemoryBroker.get(memory_url).records("letters")) == 1


async def test_a_checkpoint_fails_at_once_where_a_step_has_failed(tmp_path: Path) -> None:
    reached = threading.Event()

    def failing(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows:
            reached.set()
            raise ValueError("two hundred")
        return batch

    app = App("failed", checkpoint_dir=tmp_path, checkpoint_timeout="60s")
    source = Rows(table_of("plain"), gate=Gate(0.5))  # it has not ended
    app.stream(source, time="ts").deduplicate("k").map_batches(failing, on_error="fail").to(Kept())
    await app.start()
    try:
        await until(reached.is_set, "the first batch")
        with pytest.raises(SabotError, match="two hundred"):
            await asyncio.wait_for(app.agent_runtime.trigger_checkpoint(), 60)
    finally:
        with pytest.raises(SabotError, match="two hundred"):
            await app.stop()
