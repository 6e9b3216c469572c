"""One case for each operator of streams, for the suite of `sabot.engine.operators.base.Operator`: how it is made, and what comes in."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.agent import AgentSpec
from sabot.api.expr import col, lit
from sabot.api.functions import process_spec
from sabot.api.nodes.node import Node
from sabot.api.patterns import pattern, step
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow, cumulative, hopping, tumbling
from sabot.engine.calls import CallOptions
from sabot.engine.operators.agents.feed import AgentFeed
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    Operator,
    OperatorContext,
    Saved,
    Stateful,
)
from sabot.engine.operators.calls.lookups import LookupAsync
from sabot.engine.operators.calls.map_async import MapAsync
from sabot.engine.operators.calls.map_llm import MapLlm
from sabot.engine.operators.changes.expiring import ExpiringGroups
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.changes.materialize import Materialize
from sabot.engine.operators.changes.sorting import SortRows, places_of
from sabot.engine.operators.changes.steps import Changelog, Upsert
from sabot.engine.operators.functions.process import process_operator
from sabot.engine.operators.joins.asof import AsofJoin
from sabot.engine.operators.joins.interval import IntervalJoin
from sabot.engine.operators.joins.join import Join, TableLookup
from sabot.engine.operators.joins.sides import Sides
from sabot.engine.operators.joins.window import WindowJoin
from sabot.engine.operators.keyed.ordered import EventOrder, SortedByTime
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_state import OverColumn
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.rows.exploded import Explode
from sabot.engine.operators.rows.mapped import FlatMap, MapBatches
from sabot.engine.operators.rows.marked import AsInserts, WithoutPairs, WithoutTime
from sabot.engine.operators.rows.stateless import Drop, EndVersions, Filter, Rename, Select, WithColumns
from sabot.engine.operators.rows.subset import Head, Sample
from sabot.engine.operators.rows.timed import ArrivalTime, NewTime
from sabot.engine.operators.windows.fixed import LocalCombine, WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.llm import ExecutionEngine, ScriptedProvider
from sabot.llm.asking import map_llm_node

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("shop", pa.int32()),
        ("n", pa.int64()),
        ("x", pa.float64()),
        ("note", pa.string()),
        (TIME_COLUMN, pa.int64()),
    ]
)
CHANGES = SCHEMA.insert(len(SCHEMA) - 1, pa.field(OP_COLUMN, pa.int8()))
RIGHT = pa.schema([("number", pa.int32()), ("rate", pa.float64()), ("city", pa.string()), (TIME_COLUMN, pa.int64())])
RIGHT_CHANGES = RIGHT.insert(len(RIGHT) - 1, pa.field(OP_COLUMN, pa.int8()))
COUNT = 90


def rows(count: int = COUNT, *, in_order: bool = False) -> list[Row]:
    """Up to 40 ms out of order, by a key that may be null; `n` tells the rows apart, `x` is a multiple of 1/8."""
    found = [
        {
            "user": [None, "ann", "bob", "cyd", "dan", "eve", "fay"][n * 5 % 7],
            "shop": n % 3,
            "n": n,
            "x": n * 37 % 32 / 8,
            "note": None if n % 11 == 0 else f"note {n * 3 % 5}",
            TIME_COLUMN: 1000 + n * 10 + n * 7 % 5 * 10,
        }
        for n in range(count)
    ]
    return sorted(found, key=lambda row: row[TIME_COLUMN]) if in_order else found


def cities(count: int = 24) -> list[Row]:
    """Of three shops, of which the rows have two, and one more; their times are among those of the rows."""
    return [
        {"number": [0, 1, 3][n % 3], "rate": n * 11 % 16 / 4, "city": f"city {n % 5}", TIME_COLUMN: 1005 + n * 40}
        for n in range(count)
    ]


def changed(given: list[Row], key: str, value: str) -> list[Row]:
    """The rows as changes: some are updated (a pair) or deleted later, never what is not there."""
    found: list[Row] = []
    there: list[Row] = []
    for number, row in enumerate(given):
        found.append({**row, OP_COLUMN: INSERT})
        there.append(row)
        if number % 3 == 2:
            old = there.pop(number % len(there))
            found.append({**old, OP_COLUMN: DELETE, TIME_COLUMN: row[TIME_COLUMN]})
        if number % 4 == 3:
            place = number % len(there)
            old = there[place]
            new = {**old, value: old[value] + 1, TIME_COLUMN: row[TIME_COLUMN]}
            found.append({**old, OP_COLUMN: UPDATE_BEFORE, TIME_COLUMN: row[TIME_COLUMN]})
            found.append({**new, OP_COLUMN: UPDATE_AFTER})
            there[place] = new
    return found


def table(given: list[Row]) -> list[Row]:
    """The rows as the records of a table by `shop`: a row replaces the one of its key, or takes it away."""
    return [{**row, OP_COLUMN: DELETE if row["n"] % 7 == 6 else INSERT} for row in given]


@dataclass(frozen=True, eq=False)
class Case:
    """An operator and its input. make: a new one, ready for `open`. right: of two inputs, the second.

    right_first: what a row finds depends on the rows of the right that came before it; these come first. rescales: rows may be dealt to
    another number of subtasks after a restore. punctual: no row comes out below the watermark that was told before, and the event time of
    a row that is final does not depend on when the watermark came. Changes are not: what takes a row away has the row's time. versions: the
    op of a row says what begins with it, not what becomes of a table.
    """

    name: str
    make: Callable[[], Operator]
    rows: list[Row]
    schema: pa.Schema = SCHEMA
    keys: tuple[str, ...] = ("user",)
    right: list[Row] | None = None
    right_schema: pa.Schema = RIGHT
    right_keys: tuple[str, ...] = ("number",)
    right_first: bool = False
    broadcast: bool = False
    rescales: bool = True
    punctual: bool = True
    versions: bool = False

    @property
    def kind(self) -> type[Operator]:
        made = self.make()
        return type(made.last if isinstance(made, Pair) else made)


class Pair(Stateful):
    """Two operators as a chain calls them, the first of which keeps no state."""

    def __init__(self, first: Operator, last: Stateful) -> None:
        self.first, self.last = first, last

    def open(self, context: OperatorContext) -> pa.Schema:
        self.first.emit = self.last.process
        self.last.emit = self.emit
        between = self.first.open(context)
        return self.last.open(
            OperatorContext(
                between,
                context.subtask,
                context.parallelism,
                context.directory,
                context.memory_budget,
                context.branches,
            )
        )

    def process(self, batch: Batch) -> None:
        self.first.process(batch)

    def advance(self, watermark_ms: int) -> int | None:
        self.first.advance(watermark_ms)
        return self.last.advance(watermark_ms)

    def snapshot(self) -> Any:
        return self.last.snapshot()

    def state_schema(self) -> dict[str, Any]:
        return self.last.state_schema()

    def restore(self, saved: list[Saved], forgets: frozenset[str] = frozenset()) -> None:
        self.last.restore(saved, forgets)

    def contents(self) -> Iterator[pa.RecordBatch]:
        return self.last.contents()

    def finish(self) -> None:
        self.first.finish()
        self.last.finish()

    def close(self) -> None:
        self.first.close()
        self.last.close()


# Functions of the user's


class Listed:
    """An aggregate of the user's: the values, in order of their size."""

    type = pa.string()
    name = "Listed"

    def init(self) -> Any:
        return []

    def accumulate(self, state: Any, values: Any) -> Any:
        return sorted([*state, *values.to_pylist()])

    def merge(self, a: Any, b: Any) -> Any:
        return sorted(a + b)

    def finish(self, state: Any) -> Any:
        return json.dumps(state)


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index("x"), "x", pc.multiply(batch.column("x"), 2.0))


def repeated(row: Row) -> list[Row]:
    return [{"user": row["user"], "n": row["n"]}] * (row["n"] % 3)


def summed(so_far: Row, row: Row) -> Row:
    return {**row, "x": so_far["x"] + row["x"], "shop": max(so_far["shop"], row["shop"])}


async def asked(row: Row) -> Any:
    return None if row["n"] % 5 == 0 else [{"n": row["n"], "twice": row["x"] * 2}] * (1 + row["n"] % 2)


async def found(key: Any) -> Any:
    return None if key == "bob" else {"name": key.upper()}


def answered() -> MapLlm:
    """A model that says the name of a user in capitals."""
    engine = ExecutionEngine(ScriptedProvider(lambda spec: spec.messages[-1].text.upper()))
    options = {"concurrency": 3, "ordered": True, "on_error": "fail", "cache": 2}
    node = map_llm_node(Node(), "{user}", engine, "name", "", None, options, {}, lambda: None)
    return MapLlm(node.asked, keys=["user"])


def counted(row: Row, ctx: Any) -> Any:
    """State of all kinds, and timers at the end of time."""
    count = (ctx.state("count").get() or 0) + 1
    ctx.state("count").put(count)
    ctx.list("numbers").add(row["n"])
    ctx.map("shops").put(row["shop"], (ctx.map("shops").get(row["shop"]) or 0.0) + row["x"])
    ctx.timers.event(1_000_000 + row["shop"], "end")
    return {"user": ctx.key, "what": str(row["n"]), "count": count}


def numbered(row: Row, ctx: Any) -> Any:
    """State of one kind, and no timers."""
    count = (ctx.state("count").get() or 0) + 1
    ctx.state("count").put(count)
    return {"user": ctx.key, "what": str(row["n"]), "count": count}


def at_the_end(timer: Any, ctx: Any) -> Any:
    shops = sorted(ctx.map("shops").items().items())
    what = f"{timer.at} {ctx.list('numbers').get()} {shops}"
    return {"user": str(ctx.key), "what": what, "count": ctx.state("count").get()}


def summed_by_batch(keys: Any, batch: Any, ctx: Any) -> Any:
    state = ctx.state("total")
    now = dict(zip(keys.to_pylist(), state.get_many(keys).to_pylist(), strict=True))
    totals = []
    for key, x in zip(keys.to_pylist(), batch.column("x").to_pylist(), strict=True):
        now[key] = (now[key] or 0.0) + x
        totals.append(now[key])
    state.put_many(keys, pa.array([now[key] for key in keys.to_pylist()], pa.float64()))
    ctx.timers.event_many(keys, 1_000_000)
    return pa.record_batch({"user": keys, "total": pa.array(totals, pa.float64())})


def negated_at_the_end(keys: Any, at: Any, ctx: Any) -> Any:
    return pa.record_batch({"user": keys, "total": pc.negate(ctx.state("total").get_many(keys))})


def left_row(row: Row, ctx: Any) -> None:
    ctx.map("left").put(row["n"], row["x"])
    ctx.timers.event(1_000_000, "end")


def right_row(row: Row, ctx: Any) -> None:
    ctx.map("right").put(row["rate"], row["city"])
    ctx.timers.event(1_000_000, "end")


def both_at_the_end(timer: Any, ctx: Any) -> Any:
    sides = [sorted(ctx.map(side).items().items()) for side in ("left", "right")]
    return {"user": str(ctx.key), "what": json.dumps(sides), "count": 0}


def rule(row: Row, ctx: Any) -> None:
    ctx.broadcast("rules").put(row["number"], row["city"])


def ruled(row: Row, ctx: Any) -> Any:
    ctx.state().put(row["n"])
    return {"user": ctx.key, "what": str(ctx.broadcast("rules").get(row["shop"])), "count": row["n"]}


# The cases

CALLS = [
    AggregateColumn("count", "count"),
    AggregateColumn("total", "sum", "x"),
    AggregateColumn("spread", "stddev", "x", ddof=0),
    AggregateColumn("least", "min", "n"),
    AggregateColumn("most", "max", "note"),
    AggregateColumn("begin", "first", "n"),
    AggregateColumn("end", "last", "note"),
]
EXACT = [call for call in CALLS if call.kind != "stddev"]  # in whatever order parts are put together
NUMBERS = [call for call in CALLS if call.argument != "note"]
GATHERED = [
    AggregateColumn("notes", "count_distinct", "note"),
    AggregateColumn("about", "approx_count_distinct", "n"),
    AggregateColumn("best", "top_k", "x", k=3),
    AggregateColumn("low", "arg_min", "note", by="n"),
    AggregateColumn("mine", "user", "n", function=Listed()),
]
TAKEN = [
    AggregateColumn("count", "count"),
    AggregateColumn("total", "sum", "x"),
    AggregateColumn("least", "min", "n"),
    AggregateColumn("most", "max", "note"),
    AggregateColumn("notes", "count_distinct", "note"),
    AggregateColumn("best", "top_k", "x", k=2),
    AggregateColumn("mine", "user", "n", function=Listed()),
]
WINDOWS = {
    "tumbling": TumblingWindow(200, 30),
    "hopping": HoppingWindow(300, 100),
    "cumulative": CumulativeWindow(400, 100),
}
PLACES = [OverColumn("row", "row_number"), OverColumn("place", "rank"), OverColumn("before", "lag", "x", 2, -1.0)]
ROLLING = [OverColumn("count", "count"), OverColumn("total", "sum", "x"), OverColumn("least", "min", "x")]
RISES = pattern("low", col("x") < 1).then("high", col("x") >= 2, times=(1, 3)).within("400ms")
RISE_MEASURES = [("count", step("high").count()), ("last", step("high").last("n"))]
RESULT = {"user": "string", "what": "string", "count": "int64"}
SIDES = Sides(("shop",), ("number",), (("rate", "rate"), ("city", "city")))
NO_SIDES = Sides(("shop",), ("number",), ())
APPEND, SORTED = rows(), rows(in_order=True)
CHANGED, TABLE = changed(rows(), "n", "x"), table(rows())
RIGHT_CHANGED = changed(cities(), "rate", "rate")
HOWS = ("inner", "left", "right", "full", "semi", "anti")


def _of(how: str) -> Sides:
    return NO_SIDES if how in ("semi", "anti") else SIDES


def _joined(name: str, make: Callable[[], Operator], **options: Any) -> Case:
    given = {"keys": ("shop",), "right": cities(), **options}
    return Case(name, make, given.pop("rows", APPEND), **given)


FED = AgentSpec.of("app.agent", print, batch=True, schema={"n": "int64", "note": "string"})

BY_DECIMALS = {  # these are checked once more with decimals for users
    "hopping window",
    "session",
    "reduce",
    "groups of changes",
    "top_n, rank",
    "over time",
}


def with_decimals(case: Case) -> Case:
    """The case with a decimal in the place of each user's name."""
    kind = pa.decimal128(30, 2)
    schema = case.schema.set(0, pa.field("user", kind))
    given = [
        {**row, "user": None if row["user"] is None else Decimal(ord(row["user"][0]) - 100) / 4} for row in case.rows
    ]
    return replace(case, name=f"{case.name}, by decimals", rows=given, schema=schema)


CASES = [
    Case("filter", lambda: Filter(col("x") > 1), APPEND),
    Case(
        "select",
        lambda: Select([("n", col("n")), ("y", col("x") + col("shop"))]),
        APPEND,
    ),
    Case("with_columns", lambda: WithColumns([("y", col("x") * 2), ("one", lit(1))]), APPEND),
    Case("drop", lambda: Drop(["note", "x"]), APPEND),
    Case("with_time", lambda: NewTime("n", 0, unit="s"), APPEND, punctual=False),
    Case("arrival time", ArrivalTime, APPEND, punctual=False),
    Case("rename", lambda: Rename({"x": "amount"}), APPEND),
    Case("map_batches", lambda: MapBatches(doubled), APPEND),
    Case("flat_map", lambda: FlatMap(repeated, pa.schema([("user", pa.string()), ("n", pa.int64())])), APPEND),
    Case(
        "explode",
        lambda: Explode(["note"]),
        [{**row, "note": None if row["note"] is None else ["a", None, row["note"]][row["n"] % 4 :]} for row in APPEND],
        SCHEMA.set(SCHEMA.get_field_index("note"), pa.field("note", pa.list_(pa.string()))),
    ),
    Case("head", lambda: Head(COUNT // 2), APPEND, keys=()),
    Case("sample", lambda: Sample(0.5, 7), APPEND, rescales=False),
    Case("without time", WithoutTime, APPEND, punctual=False),
    Case("as inserts", AsInserts, APPEND),
    Case("rows for an agent", lambda: AgentFeed(FED), APPEND, punctual=False),
    Case(
        "end versions",
        lambda: EndVersions(col("x") > 1),
        [{**row, OP_COLUMN: INSERT} for row in APPEND],
        CHANGES,
        versions=True,
    ),
    Case("without pairs", WithoutPairs, CHANGED, CHANGES),
    Case("event order", lambda: EventOrder(("user",)), APPEND),
    Case("sorted by event time", lambda: SortedByTime(30), APPEND, keys=()),
    Case(
        "sort by event time",
        lambda: EventOrder((), partial(places_of, by=((TIME_COLUMN, False, False), ("x", True, False)))),
        APPEND,
        keys=(),
    ),
    Case("changelog", Changelog, CHANGED, CHANGES),
    *(
        Case(f"{name} window", lambda window=window: WindowAggregate(window, ["user"], [*CALLS, *GATHERED]), APPEND)
        for name, window in WINDOWS.items()
    ),
    Case("window without keys", lambda: WindowAggregate(WINDOWS["hopping"], [], CALLS[:3]), APPEND, keys=()),
    Case(
        "window in two phases",
        lambda: Pair(
            LocalCombine(WINDOWS["tumbling"], [], EXACT[:4]),
            WindowAggregate(WINDOWS["tumbling"], [], EXACT[:4], partial=True),
        ),
        APPEND,
        keys=(),
    ),
    Case("session", lambda: SessionAggregate(25, ["user"], [*CALLS, *GATHERED]), APPEND),
    Case("count window", lambda: CountAggregate(4, ["user"], NUMBERS), APPEND, punctual=False),
    Case("running aggregate", lambda: RunningAggregate(["user"], NUMBERS), APPEND),
    Case("running aggregate, ttl", lambda: RunningAggregate(["user"], NUMBERS, ttl_ms=60), SORTED),
    Case("reduce", lambda: Reduce(["user"], summed), APPEND),
    Case("reduce, ttl", lambda: Reduce(["user"], summed, 60), SORTED),
    Case("deduplicate", lambda: Deduplicate(["user", "shop"]), APPEND, keys=("user", "shop")),
    Case("deduplicate, within", lambda: Deduplicate(["user"], 150), SORTED),
    Case("groups", lambda: GroupAggregate(["user"], [*NUMBERS, *GATHERED[:1]], changes=False), APPEND),
    Case("groups, ttl", lambda: ExpiringGroups(["user"], [*NUMBERS, *GATHERED[:1]], 60), SORTED),
    Case("groups of changes", lambda: GroupAggregate(["user"], TAKEN, changes=True), CHANGED, CHANGES),
    Case("one group of changes", lambda: GroupAggregate([], TAKEN[:2], changes=True), CHANGED, CHANGES, keys=()),
    Case("upsert", lambda: Upsert(["user"], changes=False), APPEND),
    Case("upsert of changes", lambda: Upsert(["n"], changes=True), CHANGED, CHANGES, keys=("n",)),
    Case("upsert with deletes", lambda: Upsert(["shop"], changes=True, deletes=True), TABLE, CHANGES, keys=("shop",)),
    Case("materialize", lambda: Materialize(["user"]), CHANGED, CHANGES, punctual=False),
    Case("sort", lambda: SortRows((("x", True, False), ("n", False, True))), CHANGED, CHANGES, keys=(), punctual=False),
    Case("materialize without keys", Materialize, CHANGED, CHANGES, keys=(), punctual=False),
    *(
        Case(f"top_n, {ties}", lambda ties=ties: TopN(["user"], 2, [("x", True)], ties=ties, rank="place"), APPEND)
        for ties in ("row_number", "rank", "dense_rank")
    ),
    Case("top_n of changes", lambda: TopN(["user"], 2, [("x", True), ("n", False)], changes=True), CHANGED, CHANGES),
    *(
        Case(
            f"top_n of a {name} window",
            lambda window=window: WindowTopN(window, ["user"], 2, [("x", True)], rank="place"),
            APPEND,
        )
        for name, window in WINDOWS.items()
    ),
    Case("over", lambda: Over(["user"], [*ROLLING, *PLACES]), SORTED),
    Case("over rows", lambda: Over(["user"], ROLLING, preceding_rows=3), SORTED),
    Case("over time", lambda: Over(["user"], ROLLING, preceding_ms=150), SORTED),
    Case("over, lead", lambda: Over(["user"], [OverColumn("after", "lead", "x", 2)]), SORTED),
    *(
        Case(f"pattern, {skip}", lambda skip=skip: Pattern(["user"], RISES, skip, RISE_MEASURES), SORTED)
        for skip in ("past_last", "to_next", "none")
    ),
    Case(
        "pattern, begun",
        lambda: Pattern(["user"], RISES, ("to_last", "high"), RISE_MEASURES, overlap="begun"),
        SORTED,
    ),
    Case(
        "process",
        lambda: process_operator(["user"], process_spec(counted, schema=RESULT, on_timer=at_the_end)),
        APPEND,
        punctual=False,
    ),
    Case(
        "process, batch",
        lambda: process_operator(
            ["user"],
            process_spec(
                summed_by_batch, schema={"user": "string", "total": "float64"}, batch=True, on_timer=negated_at_the_end
            ),
        ),
        APPEND,
        punctual=False,
    ),
    Case(
        "process without timers",
        lambda: process_operator(["user"], process_spec(numbered, schema=RESULT)),
        SORTED,
    ),
    _joined(
        "connect",
        lambda: process_operator(
            ["shop"],
            process_spec(left_row, right=right_row, two_inputs=True, schema=RESULT, on_timer=both_at_the_end),
            right_keys=["number"],
        ),
        punctual=False,
    ),
    _joined(
        "connect, broadcast",
        lambda: process_operator(
            ["user"], process_spec(ruled, right=rule, two_inputs=True, broadcast=True, schema=RESULT)
        ),
        keys=("user",),
        right_first=True,
        broadcast=True,
        punctual=False,
    ),
    *(_joined(f"{how} join", lambda how=how: Join(_of(how), how), punctual=False) for how in HOWS),
    *(
        _joined(
            f"{how} join of changes",
            lambda how=how: Join(_of(how), how, left_changes=True, right_changes=True),
            rows=CHANGED,
            schema=CHANGES,
            right=RIGHT_CHANGED,
            right_schema=RIGHT_CHANGES,
            punctual=False,
        )
        for how in HOWS
    ),
    _joined(
        "broadcast join", lambda: Join(SIDES, "inner", broadcast=True), right_first=True, broadcast=True, punctual=False
    ),
    Case(
        "map_async",
        lambda: MapAsync(
            asked,
            pa.schema([("n", pa.int64()), ("twice", pa.float64())]),
            keys=["user"],
            options=CallOptions(concurrency=5),
        ),
        APPEND,
    ),
    Case(
        "lookup by calls",
        lambda: LookupAsync(found, ["user"], pa.schema([("name", pa.string())]), keys=["user"]),
        APPEND,
    ),
    Case("map_llm", answered, APPEND),
    _joined("lookup", lambda: TableLookup(SIDES, "left"), right_first=True, punctual=False),
    _joined(
        "broadcast lookup",
        lambda: TableLookup(SIDES, "left", broadcast=True),
        right_first=True,
        broadcast=True,
        punctual=False,
    ),
    *(_joined(f"{how} interval join", lambda how=how: IntervalJoin(_of(how), how, -100, 70)) for how in HOWS),
    _joined("interval join by left time", lambda: IntervalJoin(SIDES, "left", -100, 70, left_time=True)),
    *(_joined(f"{how} window join", lambda how=how: WindowJoin(_of(how), how, TumblingWindow(150))) for how in HOWS),
    _joined("window join, hopping", lambda: WindowJoin(SIDES, "full", HoppingWindow(200, 100))),
    _joined("as-of join, backward", lambda: AsofJoin(SIDES, "left")),
    _joined("as-of join, forward", lambda: AsofJoin(SIDES, "inner", strategy="forward", tolerance_ms=60)),
    _joined("as-of join, nearest", lambda: AsofJoin(SIDES, "left", strategy="nearest", tolerance_ms=50)),
    _joined(
        "as-of join of versions",
        lambda: AsofJoin(SIDES, "left", right_changes=True),
        right=[{**row, OP_COLUMN: DELETE if row["rate"] > 3 else INSERT} for row in cities()],
        right_schema=RIGHT_CHANGES,
    ),
]
CASES += [with_decimals(case) for case in CASES if case.name in BY_DECIMALS]

LATE_CASES = [  # what they make depends on where the watermark stands, so only equal runs can be compared
    Case(
        "window, lateness",
        lambda: WindowAggregate(WINDOWS["hopping"], ["user"], CALLS, allowed_lateness_ms=100),
        APPEND,
    ),
    Case(
        "window, early results",
        lambda: WindowAggregate(WINDOWS["cumulative"], ["user"], CALLS, emit_every_ms=70),
        APPEND,
    ),
    Case("session, lateness", lambda: SessionAggregate(25, ["user"], CALLS, allowed_lateness_ms=100), APPEND),
    Case(
        "top_n of a window, lateness",
        lambda: WindowTopN(WINDOWS["hopping"], ["user"], 2, [("x", True)], allowed_lateness_ms=100),
        APPEND,
    ),
]
ON_THE_CLOCK = {  # in zones and on the calendar, whose panes are computed by numpy
    "months": tumbling("1mo"),
    "days in Berlin": tumbling("1d", time_zone="Europe/Berlin"),
    "weeks in Berlin": tumbling("1w", time_zone="Europe/Berlin"),
    "six hours in Berlin": tumbling("6h", time_zone="Europe/Berlin"),
    "hopping in Berlin": hopping("2d", "1d", time_zone="Europe/Berlin"),
    "cumulative in Berlin": cumulative("1d", "6h", time_zone="Europe/Berlin"),
}
CLOCK_CASES = [
    Case(f"{kind} of {name}", partial(make, window), APPEND)
    for name, window in ON_THE_CLOCK.items()
    for kind, make in {
        "aggregate": lambda window: WindowAggregate(window, ["user"], [*CALLS, *GATHERED]),
        "aggregate, lateness": lambda window: WindowAggregate(window, ["user"], CALLS, allowed_lateness_ms=100),
        "aggregate, early results": lambda window: WindowAggregate(window, ["user"], CALLS, emit_every_ms=70),
        "top_n": lambda window: WindowTopN(window, ["user"], 2, [("x", True)]),
        "top_n, lateness": lambda window: WindowTopN(window, ["user"], 2, [("x", True)], allowed_lateness_ms=100),
        "two phases": lambda window: Pair(
            LocalCombine(window, [], EXACT[:4]), WindowAggregate(window, [], EXACT[:4], partial=True)
        ),
    }.items()
]
