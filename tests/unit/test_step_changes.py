"""Every step that keeps state, with a change of each of its options: the start says what the change means for the
state, or the step goes on as if the program had always been the new one.

`STEPS` has a program for each step, and beside it the changed ones. A test finds the options that no change covers, so
a new option of a step needs a line here.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import (
    App,
    UserError,
    col,
    count_window,
    cumulative,
    hopping,
    lag,
    lead,
    pattern,
    rank,
    row_number,
    session,
    step,
    tumbling,
)
from sabot.api.expr import Expr
from sabot.api.nodes.node import Node, walk
from sabot.connectors.base import Sink
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.operators.layout import operator_table
from sabot.engine.plan import Planned, Verdict, compare, make_plan, planned
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.testing import lives
from tools.agent_tools import bounded, publish, until, values

ROWS = {
    "k": "string",
    "j": "string",
    "n": "int64",
    "m": "int64",
    "x": "float64",
    "d": "decimal(12, 2)",
    "s": "string",
    "w": "string",
    "ts": "int64",
    "at": "int64",
}
RIGHT = {
    "key": "string",
    "other": "string",
    "rate": "float64",
    "city": "string",
    "since": "int64",
    "later": "int64",
}
GIVEN = 24  # rows of each stream before the change, and as many after it
END = {0: 2 * GIVEN}
_brokers = count()


def row_of(number: int) -> dict[str, Any]:
    numbers = {"n": number, "m": number * 7 % 5, "x": number * 3 % 8 / 4, "d": f"{number * 5 % 9 / 4}"}
    times = {"ts": 1_000 + number * 250, "at": 1_500 + number * 250}
    texts = {"k": f"{number % 3}", "j": f"{number % 2}", "s": f"{number * 3 % 4}"}
    return {**texts, **numbers, "w": f"2024-01-01 00:00:{number:02d}", **times}


def right_of(number: int) -> dict[str, Any]:
    rest = {
        "rate": number % 4 / 2,
        "city": f"{number % 5}",
        "since": 1_100 + number * 250,
        "later": 1_600 + number * 250,
    }
    return {"key": f"{number % 4}", "other": f"{(number + 1) % 3}", **rest}


class Inputs:
    """The streams of a program. `types`: columns with another type than in ROWS and RIGHT. `time`: that of the rows."""

    def __init__(self, app: App, types: Mapping[str, str], time: str = "ts") -> None:
        self.app, self._time = app, time
        self._rows = {name: types.get(name, kind) for name, kind in ROWS.items()}
        self._right = {name: types.get(name, kind) for name, kind in RIGHT.items()}
        self.asked: set[str] = set()

    def rows(self, **options: Any) -> Any:
        self.asked.add("rows")
        return self.app.stream("rows", schema=self._rows, **{"time": self._time, **options})

    def plain(self, **options: Any) -> Any:
        """The rows with the time of their records."""
        return self.rows(time=None, **options)

    def right(self, time: str | None = "since") -> Any:
        self.asked.add("right")
        return self.app.stream("right", schema=self._right, **({"time": time} if time else {}))

    def table(self, key: str = "key") -> Any:
        self.asked.add("right")
        return self.app.table("right", key=key, schema=self._right)

    def changes(self) -> Any:
        """Changes: the last row of each `m`."""
        return self.plain().upsert("m")


Program = Callable[[Inputs], Any]


@dataclass(frozen=True)
class Change:
    """A changed program. `means`: "refused"; "goes": the step goes on as if the program had always been this one; "new
    rows": it goes on, and the change holds for the rows from here on; "begins": it begins anew, and loses nothing.
    """

    program: Program
    means: str


def refused(program: Program) -> Change:
    return Change(program, "refused")


def goes(program: Program) -> Change:
    return Change(program, "goes")


def new_rows(program: Program) -> Change:
    return Change(program, "new rows")


def begins(program: Program) -> Change:
    return Change(program, "begins")


@dataclass(frozen=True)
class Kind:
    """A step, and its changes. `columns`: the columns of which the step's state may depend on the type."""

    program: Program
    changes: Mapping[str, Change]
    columns: tuple[str, ...] = ()
    waits: bool = False  # for calls, of which some end only in the second start
    subtasks: int = 2  # 1 if a result depends on the order in which the rows of several keys arrive


# Functions of the user's


def longer(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "n": so_far["n"] + row["n"]}


def shorter(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "n": so_far["n"] - row["n"]}


def counted(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
    seen = (ctx.state("seen").get() or 0) + 1
    ctx.state("seen").put(seen)
    return {"n": row.get("n"), "seen": seen}


def counted_twice(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
    made = counted(row, ctx)
    return {**made, "seen": made["seen"] * 2}


def aside(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
    ctx.side("more", {"n": row["n"]})
    return counted(row, ctx)


def counted_batch(keys: Any, batch: Any, ctx: Any) -> Any:
    made = []
    for key, n in zip(keys.to_pylist(), batch.column("n").to_pylist(), strict=True):
        one = pa.array([key], keys.type)
        seen = (ctx.state("seen").get_many(one)[0].as_py() or 0) + 1
        ctx.state("seen").put_many(one, pa.array([seen]))
        made.append({"n": n, "seen": seen})
    return pa.RecordBatch.from_pylist(made, COUNTED)


def at_the_time(timer: Any, ctx: Any) -> None:
    return None


def known(row: dict[str, Any], ctx: Any) -> None:
    ctx.state("known").put(row["rate"])


def unknown(row: dict[str, Any], ctx: Any) -> None:
    return None


def told(row: dict[str, Any], ctx: Any) -> None:
    ctx.broadcast("rates").put(row["key"], row["rate"])


COUNTED = pa.schema({"n": pa.int64(), "seen": pa.int64()})


class Patience:
    """Calls that do not end in the first start of a program, so that their rows are in its checkpoint."""

    waits = False


async def asked(row: dict[str, Any]) -> dict[str, Any]:
    if Patience.waits and row["n"] % 4 != 3:  # the other calls end, and wait for those before them
        await asyncio.Event().wait()
    return {"n": row["n"], "name": row["s"]}


async def asked_for_many(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [await asked(row) for row in batch.to_pylist()], pa.schema({"n": pa.int64(), "name": pa.string()})
    )


async def answer(spec: Any) -> str:
    if Patience.waits:
        await asyncio.Event().wait()
    return str(spec.messages[-1].text.upper())


async def asked_otherwise(row: dict[str, Any]) -> dict[str, Any]:
    return await asked(row)


async def found(key: Any) -> dict[str, Any]:
    if Patience.waits:
        await asyncio.Event().wait()
    return {"name": f"{key}"}


async def found_otherwise(key: Any) -> dict[str, Any]:
    return await found(key)


def summed(rows: pa.Table) -> pa.Table:
    return pa.table({"rows": [rows.num_rows]})


def summed_otherwise(rows: pa.Table) -> pa.Table:
    return pa.table({"rows": [rows.num_rows * 2]})


class Sums(sabot.UserAggregate):
    type = pa.float64()

    def init(self) -> Any:
        return 0.0

    def accumulate(self, state: Any, batch: Any) -> Any:
        return state + sum(float(value) for value in batch.column(0).to_pylist())

    def merge(self, a: Any, b: Any) -> Any:
        return a + b

    def finish(self, state: Any) -> Any:
        return state


class Products(Sums):
    pass


TOTAL = {"total": sabot.sum("m")}
RISE = pattern("low", col("m") < 2).then("high", col("m") > 2, times=(1, 2))
SEEN = {"n": step("high").count(), "last": step("high").last("n")}
OFTEN = {"schema": {"n": "int64", "name": "string"}}
ANSWERED = {"on": "s", "schema": {"name": "string"}}


def grouped(**aggregates: Any) -> Program:
    return lambda s: s.plain().group_by("k").aggregate(**aggregates)


def in_window(window: Any, **options: Any) -> Program:
    return lambda s: s.rows().key_by("k").window(window, **options).aggregate(**TOTAL, half=sabot.mean("d"))


def first_in(
    window: Any, *, n: int = 2, by: Any = "m", top: Mapping[str, Any] | None = None, **options: Any
) -> Program:
    return lambda s: s.rows().key_by("k").window(window, **options).top_n(n, by, **(top or {}))


def top(n: int = 2, by: Any = "m", **options: Any) -> Program:
    return lambda s: s.plain().key_by("k").top_n(n, by, **options)


def over(*, preceding: Any = None, **columns: Any) -> Program:
    return lambda s: s.rows().key_by("k").over(preceding=preceding, **columns)


def matched(pattern: Any, *, measures: Mapping[str, Any] = SEEN, **options: Any) -> Program:
    return lambda s: s.rows().key_by("k").pattern(pattern, **options, **measures)


def joined(left: Any = "k", right: Any = "key", **options: Any) -> Program:
    return lambda s: s.rows().join(s.right(), left_on=left, right_on=right, **options)


def as_of(left: str = "k", right: str = "key", **options: Any) -> Program:
    return lambda s: s.rows().join_asof(s.right(), left_on=left, right_on=right, **options)


def looked_up(left: str = "k", right: str = "key", **options: Any) -> Program:
    return lambda s: s.plain().lookup(s.table(right), left_on=left, right_on=right, **options)


def run_by(function: Any = counted, *, schema: Any = COUNTED, key: str = "k", **options: Any) -> Program:
    return lambda s: s.rows().key_by(key).process(function, schema=schema, **options)


def connected(function: Any = counted, *, right: Any = known, keys: Any = ("k", "key"), **options: Any) -> Program:
    options = {"schema": COUNTED, **options}
    return lambda s: (
        s.rows().key_by(keys[0]).connect(s.right().key_by(keys[1])).process(function, right=right, **options)
    )


def called(function: Any = asked, **options: Any) -> Program:
    return lambda s: s.plain().map_async(function, **{**OFTEN, **options})


def called_by_key(function: Any = found, **options: Any) -> Program:
    return lambda s: s.plain().lookup(function, **{**ANSWERED, **options})


def asked_of_a_model(prompt: Any = "say {s}", *, instructions: str = "", **options: Any) -> Program:
    engine = ExecutionEngine(ScriptedProvider(answer))
    return lambda s: s.plain().map_llm(prompt, engine, instructions=instructions, **options)


def in_sql(query: str) -> Program:
    def program(s: Inputs) -> Any:
        return s.app.sql(query, given=s.rows())

    return program


STEPS: dict[str, Kind] = {
    "running": Kind(
        lambda s: s.plain().key_by("k").aggregate(**TOTAL),
        {
            "keys": refused(lambda s: s.plain().key_by("j").aggregate(**TOTAL)),
            "more keys": refused(lambda s: s.plain().key_by("k", "j").aggregate(**TOTAL)),
            "aggregates": refused(lambda s: s.plain().key_by("k").aggregate(total=sabot.sum("n"))),
            "ttl": refused(lambda s: s.rows().key_by("k").aggregate(ttl="1h", **TOTAL)),
        },
        ("k", "m"),
    ),
    "running, kept": Kind(
        lambda s: s.rows().key_by("k").aggregate(ttl="1h", **TOTAL),
        {
            "ttl": new_rows(lambda s: s.rows().key_by("k").aggregate(ttl="2h", **TOTAL)),
            "no ttl": refused(lambda s: s.plain().key_by("k").aggregate(**TOTAL)),
        },
        ("k", "m"),
    ),
    "reduce": Kind(
        lambda s: s.plain().select("k", "j", "n", "m").key_by("k").reduce(longer),
        {
            "keys": refused(lambda s: s.plain().select("k", "j", "n", "m").key_by("j").reduce(longer)),
            "function": new_rows(lambda s: s.plain().select("k", "j", "n", "m").key_by("k").reduce(shorter)),
            "columns": refused(lambda s: s.plain().select("k", "j", "n").key_by("k").reduce(longer)),
            "ttl": refused(lambda s: s.rows().select("k", "j", "n", "m").key_by("k").reduce(longer, ttl="1h")),
        },
        ("k", "n", "m"),
    ),
    "deduplicate": Kind(
        lambda s: s.plain().deduplicate("s"),
        {
            "keys": refused(lambda s: s.plain().deduplicate("k")),
            "within": refused(lambda s: s.rows().deduplicate("s", within="1s")),
        },
        ("s",),
    ),
    "deduplicate, within": Kind(
        lambda s: s.rows().deduplicate("s", within="1s"),
        {"within": new_rows(lambda s: s.rows().deduplicate("s", within="2s"))},
        ("s",),
    ),
    "deduplicate changes": Kind(
        lambda s: s.changes().deduplicate("k"),
        {"keys": refused(lambda s: s.changes().deduplicate("s"))},
        ("k",),
        subtasks=1,
    ),
    "top_n": Kind(
        top(),
        {
            "keys": refused(lambda s: s.plain().key_by("j").top_n(2, "m")),
            "n": refused(top(3)),
            "fewer": refused(top(1)),
            "by": refused(top(by="n")),
            "more by": refused(top(by=["m", "n"])),
            "descending": refused(top(descending=False)),
            "ties": refused(top(ties="rank")),
            "dense": refused(top(ties="dense_rank")),
            "changes": refused(lambda s: s.changes().key_by("k").top_n(2, "m")),
            "rank": refused(top(rank="place")),
        },
        ("k", "m", "n", "d", "s"),
    ),
    "top_n, ranked": Kind(top(rank="place"), {"rank": goes(top(rank="position"))}, ("m",)),
    "over": Kind(
        over(total=sabot.sum("m")),
        {
            "keys": refused(lambda s: s.rows().key_by("j").over(total=sabot.sum("m"))),
            "columns": refused(over(total=sabot.sum("n"))),
            "preceding": refused(over(total=sabot.sum("m"), preceding=3)),
            "preceding time": refused(over(total=sabot.sum("m"), preceding="1s")),
            "filter": refused(over(total=sabot.sum("m").filter(col("n") > 3))),
        },
        ("k", "m"),
    ),
    "over rows": Kind(
        over(total=sabot.sum("m"), least=sabot.min("d"), preceding=3),
        {"preceding": refused(over(total=sabot.sum("m"), least=sabot.min("d"), preceding=4))},
        ("k", "m", "d"),
    ),
    "over time": Kind(
        over(total=sabot.sum("m"), preceding="2s"),
        {"preceding": refused(over(total=sabot.sum("m"), preceding="3s"))},
        ("k", "m"),
    ),
    "over, lag": Kind(
        over(before=lag("m"), place=rank(), number=row_number()),
        {
            "offset": refused(over(before=lag("m", 2), place=rank(), number=row_number())),
            "argument": refused(over(before=lag("n"), place=rank(), number=row_number())),
            "default": goes(over(before=lag("m", 1, 9), place=rank(), number=row_number())),
            "kind": goes(over(before=lag("m"), place=sabot.dense_rank(), number=row_number())),
            "further": goes(over(before=lag("m"), place=rank(), number=row_number(), same=lag("m"))),
        },
        ("k", "m"),
    ),
    "over, lag 2": Kind(
        over(before=lag("m", 2)),
        {"offset": goes(over(before=lag("m")))},
        ("k", "m"),
    ),
    "over, lead": Kind(
        over(after=lead("m")),
        {
            "offset": refused(over(after=lead("m", 2))),
            "default": refused(over(after=lead("m", 1, 9))),
            "argument": refused(over(after=lead("n"))),
        },
        ("k", "m"),
    ),
    "over in SQL": Kind(
        in_sql("SELECT k, n, SUM(m) OVER (PARTITION BY k ORDER BY ts ROWS UNBOUNDED PRECEDING) AS total FROM given"),
        {"peers": goes(in_sql("SELECT k, n, SUM(m) OVER (PARTITION BY k ORDER BY ts) AS total FROM given"))},
        ("k", "m"),
    ),
    "pattern": Kind(
        matched(RISE),
        {
            "keys": refused(lambda s: s.rows().key_by("j").pattern(RISE, **SEEN)),
            "predicate": refused(matched(pattern("low", col("m") < 1).then("high", col("m") > 2, times=(1, 2)))),
            "name": refused(
                matched(
                    pattern("small", col("m") < 2).then("high", col("m") > 2, times=(1, 2)),
                )
            ),
            "times": refused(matched(pattern("low", col("m") < 2).then("high", col("m") > 2, times=(1, 3)))),
            "optional": refused(
                matched(pattern("low", col("m") < 2, times=(0, 1)).then("high", col("m") > 2, times=(1, 2)))
            ),
            "within": refused(matched(RISE.within("3s"))),
            "ending": refused(matched(RISE.within("3s").without(col("m") == 2))),
            "forbidden": refused(
                matched(pattern("low", col("m") < 2).without(col("m") == 2).then("high", col("m") > 2, times=(1, 2)))
            ),
            "skip": refused(matched(RISE, skip="to_next")),
            "overlap": refused(matched(RISE, overlap="begun")),
            "measures": refused(matched(RISE, measures={"n": step("high").count(), "last": step("high").first("m")})),
            "next": refused(matched(pattern("low", col("m") < 2).next("high", col("m") > 2, times=(1, 2)))),
            "any": refused(matched(pattern("low", col("m") < 2).then_any("high", col("m") > 2, times=(1, 2)))),
            "greedy": refused(matched(RISE.greedy())),
            "reluctant": refused(matched(RISE.reluctant())),
            "consecutive": refused(matched(RISE.consecutive())),
            "least": refused(matched(pattern("low", col("m") < 2).then("high", col("m") > 2, times=2))),
            "second predicate": refused(matched(pattern("low", col("m") < 2).then("high", col("m") > 3, times=(1, 2)))),
            "group": refused(matched(pattern("low", col("m") < 2).then(pattern("high", col("m") > 2), times=(1, 2)))),
            "alternatives": refused(
                matched(
                    pattern("low", col("m") < 2).then(pattern("high", col("m") > 2) | pattern("end", col("m") == 0))
                )
            ),
            "max_partial": new_rows(matched(RISE, max_partial=500)),
            "late": goes(matched(RISE, late="late")),
        },
        ("k", "m", "n"),
    ),
    "tumbling": Kind(
        in_window(tumbling("2s")),
        {
            "keys": refused(lambda s: s.rows().key_by("j").window(tumbling("2s")).aggregate(**TOTAL)),
            "size": refused(in_window(tumbling("3s"))),
            "offset": refused(in_window(tumbling("2s", offset="1s"))),
            "time": refused(in_window(tumbling("2s", time="processing"))),
            "calendar": refused(in_window(tumbling("1mo"))),
            "lateness": refused(in_window(tumbling("2s"), allowed_lateness="1s")),
            "emit_every": new_rows(in_window(tumbling("2s"), emit_every="1s")),
            "late": goes(in_window(tumbling("2s"), late="late")),
            "aggregates": refused(
                lambda s: s.rows().key_by("k").window(tumbling("2s")).aggregate(total=sabot.sum("n"))
            ),
        },
        ("k", "m", "d"),
    ),
    "calendar": Kind(
        in_window(tumbling("1mo")),
        {
            "count": refused(in_window(tumbling("2mo"))),
            "unit": refused(in_window(tumbling("1y"))),
            "zone": refused(in_window(tumbling("1mo", time_zone="Europe/Berlin"))),
            "time": refused(in_window(tumbling("1mo", time="processing"))),
        },
    ),
    "hopping": Kind(
        in_window(hopping("2s", "1s")),
        {
            "size": refused(in_window(hopping("3s", "1s"))),
            "slide": refused(in_window(hopping("2s", "500ms"))),
            "offset": refused(in_window(hopping("2s", "1s", offset="500ms"))),
            "time": refused(in_window(hopping("2s", "1s", time="processing"))),
        },
        ("k", "m", "d"),
    ),
    "cumulative": Kind(
        in_window(cumulative("4s", "1s")),
        {
            "kind": refused(in_window(hopping("4s", "1s"))),
            "size": refused(in_window(cumulative("6s", "1s"))),
            "step": refused(in_window(cumulative("4s", "2s"))),
            "offset": refused(in_window(cumulative("4s", "1s", offset="1s"))),
            "time": refused(in_window(cumulative("4s", "1s", time="processing"))),
        },
        ("k", "m", "d"),
    ),
    "by the clock": Kind(
        in_window(cumulative("1d", "6h", time_zone="Europe/Berlin")),
        {
            "size": refused(in_window(cumulative("2d", "6h", time_zone="Europe/Berlin"))),
            "step": refused(in_window(cumulative("1d", "12h", time_zone="Europe/Berlin"))),
            "grows": refused(in_window(hopping("1d", "6h", time_zone="Europe/Berlin"))),
            "zone": refused(in_window(cumulative("1d", "6h", time_zone="America/New_York"))),
            "offset": refused(in_window(cumulative("1d", "6h", time_zone="Europe/Berlin", offset="1h"))),
            "time": refused(in_window(cumulative("1d", "6h", time_zone="Europe/Berlin", time="processing"))),
        },
    ),
    "session": Kind(
        in_window(session("1s")),
        {
            "gap": refused(in_window(session("2s"))),
            "time": refused(in_window(session("1s", time="processing"))),
            "late": goes(in_window(session("1s"), late="late")),
        },
        ("k", "m", "d"),
    ),
    "count window": Kind(
        lambda s: s.rows().key_by("k").window(count_window(5)).aggregate(**TOTAL),
        {
            "size": refused(lambda s: s.rows().key_by("k").window(count_window(6)).aggregate(**TOTAL)),
        },
        ("k", "m"),
    ),
    "apply": Kind(
        lambda s: s.rows().key_by("k").window(tumbling("2s")).apply(summed, schema={"rows": "int64"}),
        {
            "function": refused(
                lambda s: s.rows().key_by("k").window(tumbling("2s")).apply(summed_otherwise, schema={"rows": "int64"})
            )
        },
        ("k", "m", "d", "s"),
    ),
    "window top_n": Kind(
        first_in(tumbling("2s")),
        {
            "keys": refused(lambda s: s.rows().key_by("j").window(tumbling("2s")).top_n(2, "m")),
            "window": refused(first_in(tumbling("3s"))),
            "n": refused(first_in(tumbling("2s"), n=3)),
            "by": refused(first_in(tumbling("2s"), by="n")),
            "descending": refused(first_in(tumbling("2s"), top={"descending": False})),
            "ties": refused(first_in(tumbling("2s"), top={"ties": "rank"})),
            "rank": goes(first_in(tumbling("2s"), top={"rank": "place"})),
            "lateness": refused(first_in(tumbling("2s"), allowed_lateness="1s")),
            "late": goes(first_in(tumbling("2s"), late="late")),
        },
        ("k", "m", "d", "s"),
    ),
    "group_by": Kind(
        grouped(
            total=sabot.sum("m"),
            some=sabot.sum("m").filter(col("n") > 2),
            spread=sabot.variance("m", ddof=0),
            half=sabot.approx_quantile("m", 0.5),
            best=sabot.top_k("m", 2),
            at=sabot.arg_max("n", by="m"),
            mine=sabot.aggregate_with(Sums(), "m"),
        ),
        {
            "keys": refused(lambda s: s.plain().group_by("j").aggregate(total=sabot.sum("m"))),
            "kind": refused(grouped(total=sabot.max("m"))),
            "argument": refused(grouped(total=sabot.sum("n"))),
            "predicate": refused(grouped(some=sabot.sum("m").filter(col("n") > 3))),
            "ddof": goes(grouped(spread=sabot.variance("m", ddof=2))),
            "q": refused(grouped(half=sabot.approx_quantile("m", 0.9))),
            "k": refused(grouped(best=sabot.top_k("m", 3))),
            "by": refused(grouped(at=sabot.arg_max("n", by="x"))),
            "function": refused(grouped(mine=sabot.aggregate_with(Products(), "m"))),
            "computed": goes(grouped(total=sabot.sum("m"), twice=sabot.sum("m") * 2)),
            "ttl": refused(lambda s: s.rows().group_by("k").aggregate(ttl="1h", total=sabot.sum("m"))),
        },
        ("k", "m", "n"),
    ),
    "group_by, kept": Kind(
        lambda s: s.rows().group_by("k").aggregate(ttl="1h", **TOTAL),
        {
            "ttl": new_rows(lambda s: s.rows().group_by("k").aggregate(ttl="2h", **TOTAL)),
            "keys": refused(lambda s: s.rows().group_by("j").aggregate(ttl="1h", **TOTAL)),
        },
        ("k", "m"),
    ),
    "group_by over changes": Kind(
        lambda s: s.changes().group_by("k").aggregate(**TOTAL, least=sabot.min("x")),
        {
            "keys": refused(lambda s: s.changes().group_by("j").aggregate(**TOTAL)),
            "changes": refused(lambda s: s.plain().group_by("k").aggregate(**TOTAL)),
        },
        ("k", "m", "x"),
        subtasks=1,
    ),
    "upsert": Kind(
        lambda s: s.plain().upsert("k"),
        {
            "keys": refused(lambda s: s.plain().upsert("j")),
            "changes": refused(lambda s: s.changes().upsert("k")),
            "fewer columns": goes(lambda s: s.plain().select("k", "n").upsert("k")),
        },
        ("k", "m", "d", "s"),
    ),
    "upsert changes": Kind(
        lambda s: s.changes().upsert("k"),
        {"keys": refused(lambda s: s.changes().upsert("j"))},
        ("k", "d"),
        subtasks=1,
    ),
    "table": Kind(
        lambda s: s.table(),
        {
            "keys": refused(lambda s: s.table("other")),
            "deletes": goes(lambda s: s.right(None).upsert("key")),
        },
        ("key", "rate"),
    ),
    "sort": Kind(
        lambda s: s.rows().sort("ts", "m"),
        {
            "by": goes(lambda s: s.rows().sort("ts", "x")),
            "within": goes(lambda s: s.rows().sort("ts", "m", descending=[False, True])),
        },
        ("m", "d"),
    ),
    "sort at the end": Kind(
        lambda s: s.plain(until=END).sort("m", "n"),
        {
            "by": goes(lambda s: s.plain(until=END).sort("x", "n")),
            "by_time": refused(lambda s: s.rows().sort("ts", "m")),
        },
        ("m", "d"),
    ),
    "materialize": Kind(
        lambda s: s.plain(until=END).upsert("m").materialize(),
        {"keys": refused(lambda s: s.plain(until=END).upsert("k").materialize())},
        ("m", "d", "s"),
    ),
    "sorted": Kind(
        lambda s: s.rows().sorted(within="1s"),
        {
            "within": new_rows(lambda s: s.rows().sorted(within="2s")),
            "late": goes(lambda s: s.rows().sorted(within="1s", late="late")),
        },
        ("m", "d"),
    ),
    "join": Kind(
        joined(),
        {
            "left key": refused(joined("s")),
            "right key": refused(joined(right="other")),
            "how": refused(joined(how="left")),
            "suffix": goes(joined(suffix="_of_right")),
            "computed": refused(joined(col("k") + "", col("key") + "")),
            "keep": refused(joined(keep="1h")),
            "broadcast": refused(lambda s: s.rows().join(s.right().broadcast(), left_on="k", right_on="key")),
            "left changes": refused(lambda s: s.rows().upsert("n").join(s.right(), left_on="k", right_on="key")),
            "right changes": refused(lambda s: s.rows().join(s.right().upsert("city"), left_on="k", right_on="key")),
        },
        ("k", "key", "m", "d", "rate"),
    ),
    "join by computed keys": Kind(
        joined(col("k") + "", col("key") + ""),
        {
            "left key": refused(joined(col("s") + "", col("key") + "")),
            "right key": refused(joined(col("k") + "", col("other") + "")),
        },
    ),
    "join, kept": Kind(
        joined(keep=("1s", "2s")),
        {"left": refused(joined(keep=("2s", "2s"))), "right": refused(joined(keep=("1s", "3s")))},
        ("k", "key"),
    ),
    "interval join": Kind(
        joined(between=("-1s", "1s")),
        {
            "left key": refused(joined("s", between=("-1s", "1s"))),
            "right key": refused(joined(right="other", between=("-1s", "1s"))),
            "how": refused(joined(how="left", between=("-1s", "1s"))),
            "suffix": goes(joined(suffix="_of_right", between=("-1s", "1s"))),
            "lower": refused(joined(between=("-2s", "1s"))),
            "upper": refused(joined(between=("-1s", "2s"))),
            "max_drift": goes(joined(between=("-1s", "1s"), max_drift="1m")),
            "late": goes(joined(between=("-1s", "1s"), late="late")),
        },
        ("k", "key", "m", "d", "rate"),
    ),
    "window join": Kind(
        joined(window=tumbling("2s")),
        {
            "left key": refused(joined("s", window=tumbling("2s"))),
            "right key": refused(joined(right="other", window=tumbling("2s"))),
            "how": refused(joined(how="left", window=tumbling("2s"))),
            "suffix": goes(joined(suffix="_of_right", window=tumbling("2s"))),
            "window": refused(joined(window=tumbling("3s"))),
            "offset": refused(joined(window=tumbling("2s", offset="1s"))),
            "max_drift": goes(joined(window=tumbling("2s"), max_drift="1m")),
            "late": goes(joined(window=tumbling("2s"), late="late")),
        },
        ("k", "key", "m", "d", "rate"),
    ),
    "as-of join": Kind(
        as_of(),
        {
            "left key": refused(as_of("s")),
            "right key": refused(as_of(right="other")),
            "how": refused(as_of(how="inner")),
            "suffix": goes(as_of(suffix="_of_right")),
            "strategy": refused(as_of(strategy="forward", tolerance="1s")),
            "tolerance": refused(as_of(tolerance="1s")),
            "max_drift": goes(as_of(max_drift="1m")),
            "late": goes(as_of(late="late")),
            "versions": refused(lambda s: s.rows().join_asof(s.right().upsert("key"), left_on="k", right_on="key")),
        },
        ("k", "key", "m", "d", "rate"),
    ),
    "as-of join, within": Kind(
        as_of(tolerance="1s"),
        {
            "strategy": refused(as_of(strategy="forward", tolerance="1s")),
            "nearest": refused(as_of(strategy="nearest", tolerance="1s")),
            "tolerance": refused(as_of(tolerance="2s")),
        },
        ("k", "rate"),
    ),
    "lookup": Kind(
        looked_up(),
        {
            "left key": goes(looked_up("s")),
            "how": goes(looked_up(how="inner")),
            "suffix": goes(looked_up(suffix="_of_right")),
        },
        ("k", "key", "rate"),
    ),
    "lookup of a stream": Kind(
        lambda s: s.plain().lookup(s.right(None).upsert("city"), left_on="k", right_on="key"),
        {
            "right key": new_rows(
                lambda s: s.plain().lookup(s.right(None).upsert("city"), left_on="k", right_on="other")
            ),
        },
        ("key", "rate"),
        subtasks=1,
    ),
    "process": Kind(
        run_by(),
        {
            "keys": refused(run_by(key="j")),
            "function": new_rows(run_by(counted_twice)),
            "schema": goes(run_by(schema={"n": "float64", "seen": "int64"})),
            "batch": goes(run_by(counted_batch, batch=True)),
            "on_timer": goes(run_by(on_timer=at_the_time)),
            "sides": goes(run_by(aside, sides={"more": {"n": "int64"}})),
            "ttl": refused(run_by(ttl="1h")),
            "on_error": goes(run_by(on_error="dead_letter")),
            "order": new_rows(run_by(order="time")),
        },
        ("k",),
    ),
    "connect": Kind(
        connected(),
        {
            "left key": refused(connected(keys=("j", "key"))),
            "right key": refused(connected(keys=("k", "other"))),
            "right": new_rows(connected(right=unknown)),
            "on_error": goes(connected(on_error="dead_letter")),
            "broadcast": refused(
                lambda s: (
                    s.rows().key_by("k").connect(s.right().broadcast()).process(counted, right=told, schema=COUNTED)
                )
            ),
        },
        ("k",),
    ),
    "map_async": Kind(
        called(),
        {
            "function": new_rows(called(asked_otherwise)),
            "schema": goes(called(schema={"n": "float64", "name": "string"})),
            "ordered": new_rows(called(ordered=False)),
            "concurrency": goes(called(concurrency=3)),
            "timeout": goes(called(timeout="20s")),
            "retries": goes(called(retries=2)),
            "on_error": goes(called(on_error="skip")),
            "dead_letter": goes(called(on_error="skip", dead_letter="dead")),
            "rate": goes(called(rate=100_000)),
            "backoff": goes(called(retries=2, backoff="10ms")),
            "batch": goes(called(asked_for_many, batch=True)),
            "rows": goes(called(asked_for_many, batch=True, rows=3)),
        },
        ("m", "d"),
        waits=True,
    ),
    "lookup by calls": Kind(
        called_by_key(),
        {
            "function": new_rows(called_by_key(found_otherwise)),
            "on": goes(called_by_key(on="j")),
            "how": goes(called_by_key(how="inner")),
            "suffix": goes(called_by_key(suffix="_of_right")),
            "schema": goes(called_by_key(schema={"name": "binary"})),
            "dead_letter": goes(called_by_key(on_error="skip", dead_letter="dead")),
            "cache": goes(called_by_key(cache=3)),
            "cache_ttl": goes(called_by_key(cache_ttl="1m")),
        },
        ("s",),
        waits=True,
    ),
    "map_llm": Kind(
        asked_of_a_model(),
        {
            "prompt": new_rows(asked_of_a_model("shout {k}")),
            "instructions": new_rows(asked_of_a_model(instructions="be brief")),
            "output": goes(asked_of_a_model(output="said")),
            "concurrency": goes(asked_of_a_model(concurrency=3)),
            "ordered": goes(asked_of_a_model(ordered=False)),
            "on_error": goes(asked_of_a_model(on_error="skip")),
            "dead_letter": goes(asked_of_a_model(on_error="skip", dead_letter="dead")),
            "cache": goes(asked_of_a_model(cache=0)),
        },
        ("m", "d"),
        waits=True,
    ),
    "head": Kind(
        lambda s: s.plain().head(30),
        {"n": new_rows(lambda s: s.plain().head(40))},
    ),
    "sample": Kind(
        lambda s: s.plain().sample(0.5),
        {"fraction": begins(lambda s: s.plain().sample(0.6)), "seed": begins(lambda s: s.plain().sample(0.5, seed=2))},
    ),
    "with_time": Kind(
        lambda s: s.plain().with_time("ts"),
        {
            "time": begins(lambda s: s.plain().with_time("at")),
            "expression": begins(lambda s: s.plain().with_time(col("ts") + 1)),
            "unit": begins(lambda s: s.plain().with_time("ts", time_unit="s")),
            "lateness": goes(lambda s: s.plain().with_time("ts", lateness="1s")),
        },
    ),
    "with_time, texts": Kind(
        lambda s: s.plain().with_time("w"),
        {
            "format": begins(lambda s: s.plain().with_time("w", time_format="%Y-%m-%d %H:%M:%S")),
            "zone": begins(lambda s: s.plain().with_time("w", time_zone="Europe/Berlin")),
        },
    ),
}


# Their runs


class Shop:
    """An app whose program changes from start to start. `folder`: its checkpoints."""

    def __init__(self, folder: Path, kind: Kind, time: str = "ts", *, named: bool = True) -> None:
        self.folder, self.kind = folder, kind
        self.url = f"memory://step-changes-{next(_brokers)}"
        self.given = 0
        self.time, self.named = time, named

    def app(self, program: Program, types: Mapping[str, str]) -> tuple[App, set[str]]:
        app = App("shop", parallelism=self.kind.subtasks, broker=self.url, state="memory", checkpoint_dir=self.folder)
        inputs = Inputs(app, types, self.time)
        made = program(inputs).named("step") if self.named else program(inputs)
        (made.changelog() if made.changes else made).to("made")
        return app, inputs.asked

    def verdict(self, program: Program, types: Mapping[str, str] = {}) -> Verdict:
        return self.verdict_of(self.operators(program, types))

    def operators(self, program: Program, types: Mapping[str, str] = {}) -> list[Planned]:
        return planned(make_plan(self.app(program, types)[0].spec.ends, parallelism=self.kind.subtasks))

    def verdict_of(self, operators: Sequence[Planned]) -> Verdict:
        return next(each for each in compare(operators, self.manifest()) if each.id == "step")

    def manifest(self) -> Manifest:
        found = CheckpointStorage(self.folder).latest()
        assert isinstance(found, Manifest)
        return found

    def saved_schema(self) -> dict[str, Any]:
        """The fingerprint of the step in the checkpoint."""
        found = [task.meta.get("operators", {}).get("step") for task in self.manifest().tasks.values()]
        return dict(next(each for each in found if each)["schema"])

    async def run(self, program: Program, types: Mapping[str, str] = {}, *, last: bool) -> list[str]:
        """The rows that come out for the next GIVEN rows of each input. `last`: the input ends after them."""
        app, asked = self.app(program, types)
        broker = MemoryBroker.get(self.url)
        before = len(values(app, "made")) if "made" in broker.topics() else 0
        numbers = range(self.given, self.given + GIVEN)
        if "right" in asked:
            publish(app, "right", [right_of(number) for number in numbers])
        if "rows" in asked:
            publish(app, "rows", [row_of(number) for number in numbers])
        self.given += GIVEN
        Patience.waits = self.kind.waits and not last
        await app.start()
        await until(lambda: rows_read(app) == GIVEN * len(asked), "the rows")
        await bounded(app.stop(drain=last))
        made = values(app, "made")[before:] if "made" in broker.topics() else []
        if not any(row.keys() >= {"op"} for row in made):
            return sorted(map(repr, made))
        net: Counter[str] = Counter()  # what becomes of a table; an update may also be a deletion and an insertion
        for row in made:
            op = row.pop("op")
            net[repr(row)] += 1 if op in ("insert", "update_after") else -1
        return sorted(f"{row} {number}" for row, number in net.items() if number)


def rows_read(app: App) -> int:
    inputs = [each["input"] for each in app.statistics()["streams"].values()]
    return sum(each.get("rows_in", 0) for each in inputs)


def is_possible(kind: Kind, types: Mapping[str, str], time: str = "ts") -> bool:
    """Returns True if the step takes columns of these types, and this event time."""
    try:
        Shop(Path("none"), kind, time).operators(kind.program, types)
    except UserError:
        return False
    return True


async def compared(
    folder: Path, kind: Kind, program: Program, types: Mapping[str, str] = {}, time: str = "ts"
) -> tuple[list[str], list[str]] | None:
    """The rows after a change, and those of a program that was never another one; None if the start is refused."""
    changed, fresh = Shop(folder / "changed", kind), Shop(folder / "fresh", kind)
    await changed.run(kind.program, last=False)
    changed.time = fresh.time = time
    try:
        made = await changed.run(program, types, last=True)
    except UserError as error:
        if "state that would be lost" in str(error):
            return None
        raise
    await fresh.run(program, types, last=False)
    return made, await fresh.run(program, types, last=True)


TYPES = {
    "string": ["int64", "binary"],
    "int64": ["int32", "float64", "string", "uint64", "decimal(12, 2)"],
    "float64": ["float32", "string", "decimal(12, 2)"],
    "decimal(12, 2)": ["decimal(12, 4)", "decimal(30, 2)", "float64", "string"],
}
OUTCOMES = {
    "refused": ("refuse",),
    "goes": ("keep", "migrate", "refill"),
    "new rows": ("keep", "migrate", "refill"),
    "begins": ("new",),
}
Begun = Callable[[str], Awaitable[Shop]]


@pytest.fixture(scope="module")
def begun() -> Iterator[Begun]:
    """Returns the app of a step, which has had its first rows and was stopped. It is made once."""
    made: dict[str, Shop] = {}
    with lives.temporary_directory() as folder:

        async def shop(name: str) -> Shop:
            if name not in made:
                made[name] = Shop(folder / name, STEPS[name])
                await made[name].run(STEPS[name].program, last=False)
            return made[name]

        yield shop


SAYS_WHAT = re.compile(r" (was|were) .*, (is|are) | is (gone|new) |its rows are of .*, whose state would not go on")
each_kind = pytest.mark.parametrize("name", STEPS)


@pytest.mark.one_in(27, "some hundredths of a second of a core each")
@each_kind
async def test_a_changed_option_of_a_step_is_refused_or_goes_on_as_this_table_says(begun: Begun, name: str) -> None:
    kind, shop = STEPS[name], await begun(name)
    assert shop.verdict(kind.program).outcome in ("keep", "migrate")
    for what, change in kind.changes.items():
        verdict = shop.verdict(change.program)
        assert verdict.outcome in OUTCOMES[change.means], (what, verdict.why)
        if verdict.outcome == "refuse":
            assert SAYS_WHAT.search(verdict.why), (what, verdict.why)


@pytest.mark.slow  # half a second of a core for each change
@each_kind
async def test_a_step_with_another_option_goes_on_as_if_it_had_always_had_it(tmp_path: Path, name: str) -> None:
    kind = STEPS[name]
    for what, change in kind.changes.items():
        if change.means == "goes":
            both = await compared(tmp_path / what, kind, change.program)
            assert both is not None, what
            assert both[0] == both[1], what


@pytest.mark.slow
@each_kind
async def test_a_column_of_another_type_is_refused_or_goes_on_as_if_it_had_always_had_it(
    tmp_path: Path, name: str
) -> None:
    kind = STEPS[name]
    for column in kind.columns:
        for type in TYPES[{**ROWS, **RIGHT}[column]]:
            folder = tmp_path / f"{column} {type}"
            if not is_possible(kind, {column: type}):
                continue
            both = await compared(folder, kind, kind.program, {column: type})
            assert both is None or both[0] == both[1], (column, type)


@pytest.mark.slow
@each_kind
async def test_another_event_time_is_refused_or_goes_on_as_if_it_had_always_been_it(tmp_path: Path, name: str) -> None:
    kind = STEPS[name]
    if is_possible(kind, {}, "at"):
        both = await compared(tmp_path, kind, kind.program, time="at")
        assert both is None or both[0] == both[1]


# Checkpoints of earlier versions


def of_an_earlier_version(shop: Shop) -> Manifest:
    """The checkpoint without the entries that earlier versions did not write."""
    manifest = shop.manifest()
    for task in manifest.tasks.values():
        for facts in task.meta.get("operators", {}).values():
            for name in ("arguments", "right_keys"):
                facts.get("schema", {}).pop(name, None)
    return manifest


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("name", "program", "types"),
    [
        ("tumbling", in_window(tumbling("2s")), {"d": "decimal(12, 4)"}),
        ("session", in_window(session("1s")), {"d": "float64"}),
        ("over rows", STEPS["over rows"].program, {"m": "float64"}),
        ("group_by", STEPS["group_by"].program, {"m": "float64"}),
        ("join", joined(right="other"), {}),
        ("window join", joined(right="other", window=tumbling("2s")), {}),
    ],
)
async def test_state_of_an_earlier_version_is_refused_if_a_type_or_key_changes_at_the_same_start(
    begun: Begun, name: str, program: Program, types: dict[str, str]
) -> None:
    shop = await begun(name)
    manifest = of_an_earlier_version(shop)

    def verdict(program: Program, types: Mapping[str, str] = {}) -> Verdict:
        return next(each for each in compare(shop.operators(program, types), manifest) if each.id == "step")

    assert verdict(STEPS[name].program).outcome == "keep"
    assert verdict(program, types).outcome == "refuse"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("name", ["join", "interval join", "connect", "over, lag", "over, lead", "tumbling"])
async def test_a_step_without_a_name_is_found_and_refused_too(tmp_path: Path, name: str) -> None:
    kind = STEPS[name]
    shop = Shop(tmp_path, kind, named=False)
    await shop.run(kind.program, last=False)
    for what, change in kind.changes.items():
        if change.means == "refused":
            found = compare(shop.operators(change.program), shop.manifest())
            assert any(each.loses for each in found), what


# What the table covers


def step_of(program: Program) -> Node:
    app = App("shop", broker="memory://step-changes")
    made = program(Inputs(app, {})).named("step")
    return next(node for node in walk([made._node]) if getattr(node, "id", "") == "step")


NOT_OPTIONS = {"input", "left", "right", "streams", "id", "origin"}
NO_CHANGES = {
    "Aggregate.computed": "it computes the result of the state",
    "Upsert.kept": "the planner sets it",
    **{f"{kind}.keep_ms": "of join only" for kind in ("AsofJoin", "IntervalJoin", "WindowJoin", "Lookup")},
    "Lookup.max_drift_ms": "of joins by event time only",
    "IntervalJoin.left_time": "of SQL; the rows that are kept are the same",
}
REDUNDANT = {
    ("pattern", "remembered"): "what predicates remember is in the text of the pattern",
    ("rows in order", "keys"): "the rows of one subtask have none; before another step they are those of the step",
}


def options_of(value: Any, owner: str = "") -> Iterator[tuple[str, str]]:
    """Yields the fields of a node, and those of the descriptions in them, with their values as text."""
    owner = owner or type(value).__name__
    for each in fields(value):
        if each.name not in NOT_OPTIONS:
            inner = getattr(value, each.name)
            yield f"{owner}.{each.name}", repr(inner)
            yield from inner_options(inner)


def inner_options(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, tuple):
        for each in value:
            yield from inner_options(each)
    elif is_dataclass(value) and not isinstance(value, type | Expr | Sink):
        yield from options_of(value)


def test_each_option_of_each_step_with_state_is_changed_in_this_table() -> None:
    there: set[str] = set()
    changed: set[str] = set()
    for kind in STEPS.values():
        before = set(options_of(step_of(kind.program)))
        there |= {name for name, _ in before}
        for change in kind.changes.values():
            changed |= {name for name, _ in before ^ set(options_of(step_of(change.program)))}
    assert there - changed == NO_CHANGES.keys(), "changes in STEPS, for these options, are missing or too many"
    with_state = {
        node
        for module in (name for names in operator_table._MODULES.values() for name in names)
        for node in getattr(import_module(f"sabot.engine.operators.{module}"), "PLANNERS", {})
        if any(each.name == "id" for each in fields(node))
    }
    assert {type(step_of(kind.program)) for kind in STEPS.values()} == with_state


@pytest.mark.slow
async def test_a_fact_that_a_fingerprint_lacks_is_found_by_these_changes(begun: Begun) -> None:
    there: set[tuple[str, str]] = set()
    found: set[tuple[str, str]] = set()
    for name, kind in STEPS.items():
        shop = await begun(name)
        saved = shop.saved_schema()
        there |= {(saved["kind"], fact) for fact in saved}
        programs = [shop.operators(change.program) for change in kind.changes.values()]
        programs += [
            shop.operators(kind.program, {column: type})
            for column in kind.columns
            for type in TYPES[{**ROWS, **RIGHT}[column]]
            if is_possible(kind, {column: type})
        ]
        for operators in programs:
            whole = shop.verdict_of(operators)
            for fact, value in saved.items():
                without = [
                    replace(each, schema={**each.schema, fact: value}) if each.id == "step" else each
                    for each in operators
                ]
                lacking = shop.verdict_of(without)
                if (whole.outcome, whole.why) != (lacking.outcome, lacking.why):
                    found.add((saved["kind"], fact))
    assert {each for each in there - found if each[1] not in ("kind", "order")} == REDUNDANT.keys()
