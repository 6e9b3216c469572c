"""The apps whose checkpoints are kept in `kept/`: their programs, what they read, and what they write into.

A kept checkpoint was written when its app had read the first half of its input. `kept/make.py` writes them, `test_kept_checkpoints`
restores them. A program here must stay as it is for as long as its checkpoint is kept: it is the program that wrote it. Something new is
a new app.
"""

import asyncio
import csv
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

import sabot
from sabot import App, Batch, Stream, UserAggregate, col
from sabot.clock import SystemClock
from sabot.connectors.files import (
    ArrowSink,
    ArrowSource,
    CsvSink,
    CsvSource,
    NdjsonSink,
    NdjsonSource,
    ParquetSink,
    ParquetSource,
)
from sabot.connectors.sql import SqlSink
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.operators.reading import operators_of
from sabot.errors import UserError
from sabot.testing import END, ListSink, MemoryBroker, ScriptedSource

ROWS, FIRST, HALF = 100, 30, 50  # of an input; the rows before the first checkpoint, and before the one that is kept
BATCH = 10  # rows at a time; the checkpoints are between two batches
WRITTEN_S = 1_600_000_000.0  # the clock of the app when it begins and writes its checkpoint, seconds since 1970
RESTORED_S = WRITTEN_S + 7200  # the clock of the app that goes on: processing timers are due
PATIENCE_S = 180.0

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("ts", pa.int64()),
        ("k", pa.string()),
        ("shop", pa.int32()),
        ("x", pa.float64()),
        ("note", pa.string()),
    ]
)
RATES = pa.schema([("ts", pa.int64()), ("number", pa.int32()), ("rate", pa.float64()), ("city", pa.string())])


def payments(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows half a second apart, up to 600 ms out of order; multiples of 1/8, so that sums are exact in any order."""
    return [
        {
            "n": n,
            "ts": 1_000_000 + n * 500 + n * 37 % 7 * 100,
            "k": ["ann", "bob", None, "cyd", "dan"][n * 7 % 5],
            "shop": n % 3,
            "x": n * 29 % 64 / 8,
            "note": None if n % 13 == 0 else f"note {n % 4}",
        }
        for n in range(count)
    ]


def rates(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows of four shops, of which no payment has the last; their times are among those of the payments."""
    return [
        {"ts": 1_000_250 + n * 500, "number": n % 4, "rate": n * 13 % 32 / 4, "city": f"city {n % 5}"}
        for n in range(count)
    ]


def shops() -> list[dict[str, Any]]:
    """One row of each shop, of before the first payment."""
    return [{"ts": 900_000, "number": n, "rate": n / 4, "city": f"city {n}"} for n in range(3)]


class StartingClock(SystemClock):
    """The machine's clock, as if it had stood at `start_s` when it was made."""

    def __init__(self, start_s: float) -> None:
        self._ahead = start_s - super().time()

    def time(self) -> float:
        return super().time() + self._ahead


# What the app reads and writes


class Stopping:
    """Mixed into a source: it gives `scene.limit` rows, and no more before the limit is another one. In small batches."""

    scene: "Scene"
    given = 0

    @property
    def stands(self) -> bool:
        """It has given all that it may."""
        return self.given >= self.scene.limit or self.exhausted  # type: ignore[attr-defined, no-any-return]

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        room = self.scene.room_for(self)
        if room <= 0:
            time.sleep(min(timeout, 0.002))
            return None
        batch: Batch | None = super().read_batch(min(max_rows, room, BATCH), timeout)  # type: ignore[misc]
        if batch is not None:
            self.given += batch.num_rows
        return batch


class StoppingFiles(Stopping):
    """Mixed into a source of files, which several readers share."""

    def readers(self, count: int) -> Sequence[Any]:
        found: Sequence[Any] = super().readers(count)  # type: ignore[misc]
        self.scene.sources.remove(self)
        self.scene.sources += found
        return found


class Script(Stopping, ScriptedSource):
    """Its position is a number of rows."""

    def open(self, positions: Any, start: str | int = "earliest") -> None:
        super().open(positions, start)
        self.given = self.positions()[self.name, 0]


class Ndjson(StoppingFiles, NdjsonSource):
    """Of files, as are the next three."""


class Csv(StoppingFiles, CsvSource):
    pass


class Parquet(StoppingFiles, ParquetSource):
    pass


class Arrow(StoppingFiles, ArrowSource):
    pass


@dataclass
class Scene:
    """Everything outside the app, below the current folder or in this process.

    limit: rows that each source gives; None: all. last: of the last row, whether it may come yet. hold: calls of the user's that the
    program means to hold end when they are released; waiting: how many there are.
    """

    limit: int | None = None
    hold: bool = False
    waiting: int = 0
    fired: int = 0
    last: Callable[[], bool] = lambda: True
    sinks: dict[str, ListSink] = field(default_factory=dict)
    sources: list[Any] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    broker: str = "memory://kept"

    def room_for(self, source: Any) -> int:
        """How many rows the source may give now."""
        if self.limit is not None:
            return self.limit - int(source.given)
        return BATCH if self.last() else ROWS - 1 - int(source.given)

    def source(self, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = SCHEMA) -> Script:
        """These rows, as columns, or without a schema as records."""
        return self.watched(Script([list(rows), END], name=name, schema=schema))

    def watched(self, source: Any) -> Any:
        source.scene = self
        self.sources.append(source)
        return source

    def sink(self, name: str) -> ListSink:
        """One that keeps its rows."""
        return self.sinks.setdefault(name, ListSink(name))

    async def held(self) -> None:
        """A call that does not end while calls are held."""
        if self.hold:
            self.waiting += 1
            await self.released.wait()

    def payments(self, app: App, name: str = "payments") -> Stream:
        return app.stream(self.source(name, payments()), time="ts", lateness="2s")

    def rates(self, app: App) -> Stream:
        return app.stream(self.source("rates", rates(), RATES), time="ts", lateness="2s")

    def shops(self, app: App) -> Stream:
        return app.stream(self.source("shops", shops(), RATES), time="ts", lateness="2s")


Build = Callable[[App, Scene], None]


@dataclass(frozen=True)
class Program:
    """A program, and how it ran. state: "memory" or "rocksdb". rescales: its result is the same with any parallelism.

    waiting: calls that are in flight in the checkpoint, at least. fired: processing timers that come before the last row. endless: it reads
    topics, whose records `publish` makes.
    prepare: makes what is outside before the app begins. outcome: what is outside in the end, beside what sinks of the scene have got.
    """

    name: str
    build: Build
    state: str
    parallelism: int = 2
    rescales: bool = True
    waiting: int = 0
    fired: int = 0
    endless: bool = False
    prepare: Callable[[], None] = lambda: None
    outcome: Callable[[], dict[str, list[Any]]] = dict

    def app(self, scene: Scene, folder: Path, clock_s: float, parallelism: int | None = None) -> App:
        """The app in this folder. Its budget is so small that groups leave the memory for RocksDB."""
        app = App(
            "kept",
            scene.broker,
            state=str(folder / "state") if self.state == "rocksdb" else "memory",
            checkpoint_dir=folder / "checkpoints",
            checkpoint_interval=3600,
            parallelism=parallelism or self.parallelism,
            memory_budget=1000,
            clock=StartingClock(clock_s),
        )
        self.build(app, scene)
        return app


# Streams


class Longest(UserAggregate):
    """The longest of the values, and how many there were."""

    type = pa.string()

    def init(self) -> Any:
        return {"longest": "", "count": 0}

    def accumulate(self, state: Any, rows: Any) -> Any:
        for value in rows.column("note").to_pylist():
            state = self.merge(state, {"longest": value or "", "count": 1})
        return state

    def merge(self, a: Any, b: Any) -> Any:
        longest = max(a["longest"], b["longest"], key=lambda text: (len(text), text))
        return {"longest": longest, "count": a["count"] + b["count"]}

    def finish(self, state: Any) -> Any:
        return f"{state['longest']} of {state['count']}"


FIGURES = {
    "n": sabot.count(),
    "notes": sabot.count("note"),
    "total": sabot.sum("x"),
    "mean": sabot.mean("x"),
    "spread": sabot.stddev("x"),
    "least": sabot.min("x"),
    "most": sabot.max("note"),
    "begin": sabot.first("n"),
    "end": sabot.last("note"),
    "some": sabot.any("shop"),
    "doubled": sabot.sum(col("x") * 2).filter(col("shop") > 0),
}
GATHERED = {
    "different": sabot.count_distinct("note"),
    "about": sabot.approx_count_distinct("n"),
    "middle": sabot.approx_quantile("x", [0.25, 0.5]),
    "best": sabot.top_k("x", 3),
    "all": sabot.collect_list("n"),
    "low": sabot.arg_min("note", by="n"),
    "high": sabot.arg_max("n", by="x"),
    "longest": sabot.aggregate_with(Longest(), "note"),
}


def windows(app: App, scene: Scene) -> None:
    """All kinds of windows, by keys and without."""
    rows = scene.payments(app)
    by_key = rows.key_by("k")
    for name, window in {
        "tumbling": sabot.tumbling("20s", offset="3s"),
        "hopping": sabot.hopping("30s", "10s"),
        "cumulative": sabot.cumulative("40s", "10s"),
        "session": sabot.session("2500ms"),
    }.items():
        by_key.window(window).aggregate(**FIGURES).named(name).to(scene.sink(name))
        # what windows that share rows keep of a user's function: see `slices`
        gathered = {key: GATHERED[key] for key in GATHERED if key != "longest" or name in ("tumbling", "session")}
        by_key.window(window).aggregate(**gathered).named(f"{name}-gathered").to(scene.sink(f"{name}-gathered"))
    by_key.window(sabot.count_window(7)).aggregate(n=sabot.count(), total=sabot.sum("x")).named("counted").to(
        scene.sink("counted")
    )
    rows.window(sabot.tumbling("20s")).aggregate(n=sabot.count(), total=sabot.sum("x")).named("whole").to(
        scene.sink("whole")
    )
    by_key.window(sabot.hopping("30s", "10s")).top_n(2, "x", ties="rank", rank="place").named("best").to(
        scene.sink("best")
    )


def slices(app: App, scene: Scene) -> None:
    """An aggregate of the user's in windows that share their rows."""
    by_key = scene.payments(app).key_by("k")
    for name, window in {"hopping": sabot.hopping("30s", "10s"), "cumulative": sabot.cumulative("40s", "10s")}.items():
        by_key.window(window).aggregate(longest=GATHERED["longest"]).named(name).to(scene.sink(name))


def one_thread(app: App, scene: Scene) -> None:
    """What depends on where batches end: early and late results, late rows, a sample."""
    rows = app.stream(scene.source("payments", payments()), time="ts")
    late = rows.key_by("k").window(
        sabot.tumbling("20s"), allowed_lateness="5s", emit_every="4s", late=scene.sink("late")
    )
    late.aggregate(n=sabot.count(), total=sabot.sum("x")).named("early").to(scene.sink("early"))
    rows.sample(0.5, seed=3).named("sample").to(scene.sink("sample"))


def longest_note(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """For `reduce`."""
    return {**row, "x": so_far["x"] + row["x"]}


def running(app: App, scene: Scene) -> None:
    """A row out for a row in."""
    rows = scene.payments(app)
    by_key = rows.key_by("k", "shop")
    figures = {name: each for name, each in FIGURES.items() if name not in ("most", "end")}  # these are of strings
    by_key.aggregate(**figures).named("running").to(scene.sink("running"))
    rows.key_by("n").aggregate(n_rows=sabot.count(), total=sabot.sum("x")).named("each").to(scene.sink("each"))
    by_key.aggregate(n=sabot.count(), ttl="9s").named("forgetful").to(scene.sink("forgetful"))
    by_key.reduce(longest_note).named("reduced").to(scene.sink("reduced"))
    by_key.reduce(longest_note, ttl="9s").named("reduced-lately").to(scene.sink("reduced-lately"))
    rows.deduplicate("note", "shop").named("firsts").to(scene.sink("firsts"))
    rows.deduplicate("note", within="15s").named("firsts-lately").to(scene.sink("firsts-lately"))


def changes(app: App, scene: Scene) -> None:
    """Tables that rows change, and tables of these."""
    rows = scene.payments(app)
    groups = rows.group_by("k", "shop").aggregate(n=sabot.count(), total=sabot.sum("x"), last=sabot.last("note"))
    groups = groups.named("groups")
    groups.changelog().to(scene.sink("groups"))
    gathered = rows.group_by("k").aggregate(
        different=sabot.count_distinct("note"),
        best=sabot.top_k("x", 3),
        longest=sabot.aggregate_with(Longest(), "note"),
    )
    gathered.named("gathered").changelog().to(scene.sink("gathered"))
    again = groups.group_by("shop").aggregate(
        keys=sabot.count(), total=sabot.sum("total"), most=sabot.max("n"), different=sabot.count_distinct("n")
    )
    again.named("groups-of-groups").materialize().named("materialized").to(scene.sink("materialized"))
    latest = rows.upsert("k").named("upserted")
    latest.changelog().to(scene.sink("upserted"))
    latest.filter(col("shop") > 0).select("n", "shop").upsert("n").named("upserted-again").changelog().to(
        scene.sink("upserted-again")
    )
    rows.key_by("k").top_n(3, "x", ties="dense_rank", rank="place").named("top").changelog().to(scene.sink("top"))
    latest.key_by("shop").top_n(1, "n").named("top-of-changes").materialize().named("top-kept").to(
        scene.sink("top-of-changes")
    )
    table = app.table(scene.source("table", [{**row, "n": row["n"] % 7} for row in payments()]), key="n", schema=SCHEMA)
    table.named("table").changelog().to(scene.sink("table"))


def over(app: App, scene: Scene) -> None:
    """Columns made of the rows before a row."""
    rows = scene.payments(app).key_by("k")
    total, count = sabot.sum("x"), sabot.count()
    rows.over(total=total, count=count, least=sabot.min("x"), place=sabot.row_number(), rank=sabot.rank()).named(
        "over"
    ).to(scene.sink("over"))
    rows.over(preceding=4, total=total, most=sabot.max("x"), mean=sabot.mean("x"), first=sabot.first("shop")).named(
        "over-rows"
    ).to(scene.sink("over-rows"))
    rows.over(preceding="12s", total=total, count=count, least=sabot.min("x")).named("over-time").to(
        scene.sink("over-time")
    )
    rows.over(before=sabot.lag("x", 3, -1.0), after=sabot.lead("note", 2)).named("over-near").to(
        scene.sink("over-near")
    )


def joins(app: App, scene: Scene) -> None:
    """Rows of two streams, whatever their times. What a broadcast side or a table has is read in the first half."""
    rows, others, table = scene.payments(app), scene.rates(app), scene.shops(app)
    few = others.select("number", "rate", "ts")
    rows.join(few, left_on="shop", right_on="number").group_by("shop").aggregate(
        n=sabot.count(), total=sabot.sum("rate")
    ).named("pairs").materialize().named("pairs-kept").to(scene.sink("inner"))
    for how in ("left", "right", "full", "semi", "anti"):
        one = rows.filter(col("n") % 5 == 0).select("n", "shop", "x")
        other = few.filter(col("rate") > 5).select("number", "rate")
        joined = one.join(other, left_on="x", right_on="rate", how=how).named(how)
        (joined if how == "semi" else joined.changelog()).to(scene.sink(how))
    latest = others.upsert("number").named("latest")
    rows.upsert("k").named("latest-payment").join(latest, left_on="shop", right_on="number", how="left").named(
        "tables"
    ).materialize().named("tables-kept").to(scene.sink("tables"))
    rows.join(table.broadcast(), left_on="shop", right_on="number").named("broadcast").to(scene.sink("broadcast"))
    rows.lookup(table, left_on="shop", right_on="number").named("lookup").to(scene.sink("lookup"))


def time_joins(app: App, scene: Scene) -> None:
    """Rows of two streams that are near each other in event time."""
    rows, others = scene.payments(app), scene.rates(app)
    on = {"left_on": "shop", "right_on": "number"}
    for how in ("inner", "left", "right", "full", "semi", "anti"):
        rows.join(others, **on, how=how, between=("-1s", "700ms")).named(f"between-{how}").to(
            scene.sink(f"between-{how}")
        )
    rows.join(others, **on, how="full", window=sabot.tumbling("10s")).named("same-window").to(scene.sink("same-window"))
    rows.join(others, **on, window=sabot.hopping("10s", "5s")).named("same-hop").to(scene.sink("same-hop"))
    rows.join_asof(others, **on).named("backward").to(scene.sink("backward"))
    rows.join_asof(others, **on, how="inner", strategy="forward", tolerance="3s").named("forward").to(
        scene.sink("forward")
    )
    rows.join_asof(others, **on, strategy="nearest", tolerance="1s").named("nearest").to(scene.sink("nearest"))
    versions = others.upsert("number").filter(col("rate") > 2)
    rows.join_asof(versions, **on).named("versions").to(scene.sink("versions"))
    kept = rows.select("n", "shop", "ts").join(others.select("number", "rate", "ts"), **on, keep=("1h", "1h"))
    kept.named("kept-for-a-while").to(scene.sink("kept-for-a-while"))


def patterns(app: App, scene: Scene) -> None:
    """Partial matches of all kinds of steps."""
    rows = scene.payments(app).key_by("k")
    low, high = col("x") < 2, col("x") >= 4
    rises = sabot.pattern("low", low).then("high", high, times=(2, 4)).within("1m")
    measures = {
        "n": sabot.step("high").count(),
        "most": sabot.step("high").last("x"),
        "at": sabot.step("low").first("n"),
    }
    for skip in ("past_last", "to_next"):
        rows.pattern(rises, skip=skip, **measures).named(f"rises-{skip}").to(scene.sink(f"rises-{skip}"))
    every = sabot.pattern("low", low).then_any("high", high).next("after", col("shop") > 0).within("20s")
    rows.pattern(every, skip="none", at=sabot.step("low").first("n"), last=sabot.step("after").last("n")).named(
        "every"
    ).to(scene.sink("every"))
    greater = sabot.pattern("low", low).then("more", col("x") > sabot.step("low").last("x") + 1).optional()
    greater = greater.then("high", high).without(col("shop") == 1).within("30s")
    rows.pattern(greater, n=sabot.step("more").count(), last=sabot.step("high").last("n")).named("greater").to(
        scene.sink("greater")
    )


def processes(app: App, scene: Scene) -> None:
    """Functions over rows, with state of all kinds, timers of both kinds and a branch; with a broadcast side, and of two streams."""
    rows, table, others = scene.payments(app).key_by("k"), scene.shops(app), scene.rates(app)

    def seen(row: Any, ctx: Any) -> Any:
        count = (ctx.state("count").get() or 0) + 1
        ctx.state("count").put(count)
        ctx.list("notes").add(row["note"])
        ctx.map("shops").put(row["shop"], (ctx.map("shops").get(row["shop"]) or 0.0) + row["x"])
        if count == 1:
            ctx.timers.processing(int(WRITTEN_S + 3600) * 1000, "an hour later")
        ctx.timers.event(2_000_000 + row["shop"], "the end")
        if row["n"] % 9 == 0:
            ctx.side("ninth", {"n": row["n"], "count": count})
        return {"k": ctx.key, "what": "row", "n": count}

    def on_timer(timer: Any, ctx: Any) -> Any:
        if timer.kind == "processing":
            scene.fired += 1
            return {"k": ctx.key, "what": timer.name, "n": 0}
        text = json.dumps([ctx.list("notes").get(), sorted(ctx.map("shops").items().items())])
        return {"k": ctx.key, "what": f"{timer.name} {timer.at} {text}", "n": ctx.state("count").get()}

    result = {"k": "string", "what": "string", "n": "int64"}
    each = rows.process(seen, schema=result, on_timer=on_timer, sides={"ninth": {"n": "int64", "count": "int64"}})
    each = each.named("by-row")
    each.to(scene.sink("by-row"))
    each.side("ninth").to(scene.sink("ninth"))

    def for_a_while(row: Any, ctx: Any) -> Any:
        count = (ctx.state().get() or 0) + 1
        ctx.state().put(count)
        return {"k": ctx.key, "what": str(row["n"]), "n": count}

    ordered = rows.over(place=sabot.row_number()).named("in-order").key_by("k")
    ordered.process(for_a_while, schema=result, ttl="9s").named("with-ttl").to(scene.sink("with-ttl"))

    def totals(keys: Any, batch: Any, ctx: Any) -> Any:
        state = ctx.state("total")
        had = state.get_many(keys).to_pylist()
        now, out = dict(zip(keys.to_pylist(), had, strict=True)), []
        for key, x in zip(keys.to_pylist(), batch.column("x").to_pylist(), strict=True):
            now[key] = (now[key] or 0.0) + x
            out.append(now[key])
        state.put_many(keys, pa.array([now[key] for key in keys.to_pylist()], pa.float64()))
        ctx.timers.event_many(keys, 2_000_000)
        return pa.record_batch({"k": keys, "total": pa.array(out, pa.float64())})

    def total_timer(keys: Any, at: Any, ctx: Any) -> Any:
        return pa.record_batch({"k": keys, "total": pc.negate(ctx.state("total").get_many(keys))})

    rows.process(totals, schema={"k": "string", "total": "float64"}, batch=True, on_timer=total_timer).named(
        "by-batch"
    ).to(scene.sink("by-batch"))

    def priced(row: Any, ctx: Any) -> None:
        ctx.state().put(row["n"])
        ctx.timers.event(2_000_000)

    def by_rules(timer: Any, ctx: Any) -> Any:
        rules = sorted(ctx.broadcast("rules").items().items())
        return {"k": ctx.key, "what": str(rules), "n": ctx.state().get()}

    def rule(row: Any, ctx: Any) -> None:
        ctx.broadcast("rules").put(row["number"], row["city"])

    ruled = rows.connect(table.broadcast()).process(priced, right=rule, on_timer=by_rules, schema=result)
    ruled.named("with-rules").to(scene.sink("with-rules"))

    def left(row: Any, ctx: Any) -> Any:
        ctx.map("left").put(row["n"], row["x"])
        ctx.timers.event(2_000_000, "pairs")

    def right(row: Any, ctx: Any) -> Any:
        ctx.map("right").put(row["ts"], row["rate"])

    def pairs(timer: Any, ctx: Any) -> Any:
        one, other = ctx.map("left").items(), ctx.map("right").items()
        return {"k": str(ctx.key), "what": f"{sum(one.values())} {sum(other.values())}", "n": len(one) + len(other)}

    by_shop = scene.payments(app, "payments by shop").key_by("shop")
    by_shop.connect(others.key_by("number")).process(left, right=right, on_timer=pairs, schema=result).named(
        "connected"
    ).to(scene.sink("connected"))


def calls(app: App, scene: Scene) -> None:
    """Coroutine calls; while calls are held, some do not end, and stand in the checkpoint with the rows behind them."""
    rows = scene.payments(app)

    async def ask(row: dict[str, Any]) -> Any:
        if row["n"] >= 36 and row["n"] % 3 == 0:
            await scene.held()
        if row["n"] % 11 == 0:
            raise ValueError(f"no answer for {row['n']}")
        return None if row["n"] % 17 == 0 else {"n": row["n"], "answer": row["x"] * 2}

    async def ask_all(batch: pa.RecordBatch) -> Any:
        if 36 in batch.column("n").to_pylist():
            await scene.held()
        return pa.record_batch({"n": batch.column("n"), "answer": batch.column("x")})

    async def find(key: Any) -> Any:
        if key == "dan":
            await scene.held()
        return None if key is None else {"name": key.upper(), "letters": len(key)}

    schema = {"n": "int64", "answer": "float64"}
    for name, ordered in (("ordered", True), ("unordered", False)):
        asked = rows.map_async(
            ask, schema=schema, ordered=ordered, on_error="skip", dead_letter=scene.sink(f"{name}-dead")
        )
        asked.named(name).to(scene.sink(name))
    rows.map_async(ask_all, schema=schema, batch=True, rows=4).named("batches").to(scene.sink("batches"))
    found = rows.lookup(find, on="k", schema={"name": "string", "letters": "int64"}, cache=3)
    found.named("looked-up").to(scene.sink("looked-up"))


# Agents


def agents(app: App, scene: Scene) -> None:
    """Agents with state of all kinds, by key and shared, over records and batches, one writing into another; calls in flight."""
    records = [{"account": f"a{n % 7}", "n": n, "x": n % 5} for n in range(ROWS)]

    @app.agent(scene.source("orders", records, None), key="account", sink=scene.sink("bank"), concurrency=4)
    async def bank(ctx: Any) -> Any:
        row, state = ctx.message, ctx.state()
        count = (await state.get("count") or 0) + 1
        await state.put("count", count)
        await ctx.list_state("numbers").add("all", row["n"])
        await ctx.map_state("by-x").put(
            "counts", row["x"], (await ctx.map_state("by-x").get("counts", row["x"]) or 0) + 1
        )
        await ctx.reducing_state("most", max).add("n", row["n"])
        if row["n"] >= 42:
            await scene.held()
        return {"account": row["account"], "count": count, "numbers": await ctx.list_state("numbers").get("all")}

    @app.agent(scene.source("visits", records, None), sink=scene.sink("totals"), dead_letter=scene.sink("dead"))
    async def totals(ctx: Any) -> Any:
        state = ctx.state("totals")
        total = (await state.get("x") or 0) + ctx.message["x"]
        await state.put("x", total)
        return {"n": ctx.message["n"], "total": total}

    @app.agent(name="second", key="account", sink=scene.sink("second"))
    async def second(ctx: Any) -> Any:
        count = (await ctx.state("seen").get("n") or 0) + 1
        await ctx.state("seen").put("n", count)
        return {"account": ctx.message["account"], "seen": count}

    @app.agent(scene.source("clicks", records, None), sink=second)
    async def forwards(ctx: Any) -> Any:
        if ctx.message["n"] % 2:
            return ctx.message
        return None

    schema = {"account": "string", "n": "int64", "x": "int64"}

    @app.agent(scene.source("columns", records, None), batch=True, schema=schema, sink=scene.sink("batches"))
    async def batches(batch: Any, ctx: Any) -> Any:
        seen = await ctx.state("rows").get("n") or 0
        await ctx.state("rows").put("n", seen + batch.num_rows)
        return batch.append_column("place", pa.array(range(seen, seen + batch.num_rows), pa.int64()))


def topics(app: App, scene: Scene) -> None:
    """An agent and a stream in one app, over topics of the embedded broker."""

    @app.agent("visits", sink=scene.sink("visits"))
    async def visits(ctx: Any) -> Any:
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        return {"n": n, "of": ctx.message["n"]}

    schema = {"account": "string", "n": "int64", "ts": "int64"}
    rows = app.stream("orders", schema=schema, time="ts")
    rows.key_by("account").window(sabot.tumbling("2s")).aggregate(n=sabot.count()).named("minutes").to(
        scene.sink("minutes")
    )


def publish(scene: Scene, first: int, end: int) -> None:
    """Records of these numbers, into a log that counts as the one of the first life."""
    broker = MemoryBroker.get(scene.broker)
    broker.log_id = "kept"
    for n in range(first, end):
        row = {"account": f"a{n % 7}", "n": n, "ts": 1_000_000 + n * 100}
        broker.publish("orders", [row])
        broker.publish("visits", [row])


def rows_read(app: App) -> int:
    """How many rows all sources have given in this life."""
    found = app.statistics()
    agents = sum(source["rows_in"] for source in found["sources"].values())
    return int(
        agents
        + sum(task["input"].get("rows_in", 0) for name, task in found["streams"].items() if name.startswith("read"))
    )


# Files, and what is delivered exactly once


def _write_inputs() -> None:
    """The same rows in files of each format, in folders of two files."""
    rows = payments()
    for number, part in enumerate((rows[:60], rows[60:])):
        table = pa.Table.from_pylist(part, schema=SCHEMA)
        for kind in ("ndjson", "csv", "parquet", "arrow"):
            Path("in", kind).mkdir(parents=True, exist_ok=True)
        Path(f"in/ndjson/{number}.ndjson").write_text("".join(json.dumps(row) + "\n" for row in part))
        with Path(f"in/csv/{number}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, SCHEMA.names)
            writer.writeheader()
            writer.writerows(part)
        pyarrow.parquet.write_table(table, f"in/parquet/{number}.parquet", row_group_size=20)
        with pa.ipc.new_file(f"in/arrow/{number}.arrow", SCHEMA) as file:
            file.write_table(table, max_chunksize=20)


def files(app: App, scene: Scene) -> None:
    """Sources and sinks of files of all formats; a part of the output is delivered, a part waits in the checkpoint."""
    made = {
        "ndjson": (Ndjson("in/ndjson", block_bytes=1000), NdjsonSink("out/rows.ndjson")),
        "csv": (Csv("in/csv"), CsvSink("out/csv/")),
        "parquet": (Parquet("in/parquet"), ParquetSink("out/parquet/")),
        "arrow": (Arrow("in/arrow"), ArrowSink("out/arrow/", part_bytes=100_000)),
    }
    for name, (source, sink) in made.items():
        rows = app.stream(scene.watched(source), schema=SCHEMA, time="ts", lateness="10s")
        rows.select("n", "k", "x").to(sink)
        rows.key_by("k").window(sabot.tumbling("20s")).aggregate(n=sabot.count()).named(name).to(scene.sink(name))


def read_outputs() -> dict[str, list[Any]]:
    """What stands in the files."""
    found: dict[str, list[Any]] = {
        "out ndjson": [json.loads(line) for line in Path("out/rows.ndjson").read_text().splitlines()]
    }
    for path in sorted(Path("out/csv").glob("part-*")):
        with path.open() as file:
            found.setdefault("out csv", []).extend(csv.DictReader(file))
    for path in sorted(Path("out/parquet").glob("part-*")):
        found.setdefault("out parquet", []).extend(pyarrow.parquet.read_table(path).to_pylist())
    for path in sorted(Path("out/arrow").glob("part-*")):
        found.setdefault("out arrow", []).extend(pa.ipc.open_file(path).read_all().to_pylist())
    return found


def deliveries(app: App, scene: Scene) -> None:
    """A table of SQLite and a text file that get rows exactly once, and one that gets them at least once."""
    rows = scene.payments(app)
    rows.select("n", "k", "x").to(SqlSink("sqlite:out/rows.db", table="rows"))
    rows.group_by("shop").aggregate(n=sabot.count()).upsert("shop").to(SqlSink("sqlite:out/counts.db", table="counts"))
    rows.select("n", "note").to(NdjsonSink("out/rows.ndjson"))
    rows.select("n").to(NdjsonSink("out/again.ndjson"), delivery="at_least_once")
    rows.select("n", "x").to(scene.sink("columns"))


def read_deliveries() -> dict[str, list[Any]]:
    """What stands in the tables and files."""
    found: dict[str, list[Any]] = {}
    for table in ("rows", "counts"):
        database = sqlite3.connect(f"out/{table}.db")
        found[f"out {table}"] = [list(row) for row in database.execute(f"SELECT * FROM {table}")]
        database.close()
    for name in ("rows", "again"):
        found[f"out {name}.ndjson"] = [json.loads(line) for line in Path(f"out/{name}.ndjson").read_text().splitlines()]
    return found


def _folders() -> None:
    Path("out").mkdir()


def row_patterns(app: App, scene: Scene) -> None:
    """Partial and complete matches of groups, alternatives, and conditions on several rows."""
    rows = scene.payments(app).key_by("k")
    low, high = sabot.pattern("low", col("x") < 2), sabot.pattern("high", col("x") >= sabot.step("low").max("x"))
    turns = sabot.pattern(low | high, times=(2, None)).consecutive()
    turns = turns.next("end", (sabot.step().sum("x") > 9) | (col("shop") == 1))
    measures = {"n": sabot.step().count(), "second": sabot.step("low").first("n", offset=1)}
    for skip in ("past_last", ("to_last", "low")):
        name = f"turns-{skip if isinstance(skip, str) else '-'.join(skip)}"
        rows.pattern(turns, skip=skip, overlap="begun", **measures).named(name).to(scene.sink(name))


PROGRAMS = {
    program.name: program
    for program in [
        *(
            Program(f"{build.__name__.replace('_', '-')}-{state}", build, state)
            for build in (windows, running, changes, over, joins, time_joins, patterns, row_patterns)
            for state in ("memory", "rocksdb")
        ),
        *(Program(f"processes-{state}", processes, state, fired=5) for state in ("memory", "rocksdb")),
        *(Program(f"slices-{state}", slices, state) for state in ("memory", "rocksdb")),
        Program("one-thread", one_thread, "memory", parallelism=1, rescales=False),
        Program("calls", calls, "memory", waiting=12),
        Program("agents-memory", agents, "memory", waiting=2),
        Program("agents-rocksdb", agents, "rocksdb", waiting=2),
        Program("topics", topics, "memory", endless=True),
        Program("files", files, "memory", rescales=False, prepare=_write_inputs, outcome=read_outputs),
        Program("deliveries", deliveries, "rocksdb", prepare=_folders, outcome=read_deliveries),
    ]
}


# What a checkpoint holds, and what came of it


def contents(checkpoints: Path) -> dict[str, Any]:
    """What each operator and agent keeps in the newest checkpoint, as text; of those whose state is no rows, what they keep instead."""
    manifest = CheckpointStorage(checkpoints).latest()
    assert manifest is not None
    app, found = App("kept", checkpoint_dir=checkpoints), {}
    for each in operators_of(manifest):
        try:
            table = app.state(each.id).to_arrow()
        except UserError as error:
            found[each.id] = {"kind": each.kind, "instead": error.message}
            continue
        columns = [f"{field.name} {field.type}" for field in table.schema]
        found[each.id] = {"kind": each.kind, "columns": columns, "rows": sorted(map(repr, table.to_pylist()))}
    return dict(sorted(found.items()))


def outcome(program: Program, scene: Scene) -> dict[str, list[str]]:
    """Everything that the app has put out, as text, in an order of its own. Of changes what they come to: how often each row is there."""
    found = program.outcome() | {name: sink.rows for name, sink in scene.sinks.items()}
    for name in found:
        if name.endswith("-dead"):  # what is said of an error beside its row is no matter of these tests
            found[name] = [{column: row[column] for column in row if column != "error"} for row in found[name]]
    return {name: sorted(map(repr, _settled(rows))) for name, rows in sorted(found.items())}


def _settled(rows: list[Any]) -> list[Any]:
    if not rows or not isinstance(rows[0], dict) or "op" not in rows[0]:
        return rows
    counts: Counter[str] = Counter()
    for row in rows:
        sign = 1 if row.pop("op") in ("insert", "update_after") else -1
        counts[repr(row)] += sign
    assert min(counts.values(), default=0) >= 0, "a row was taken away that had not been there"
    return [row for text in sorted(counts) for row in [text] * counts[text]]


async def until(condition: Callable[[], Any], what: str) -> None:
    """Returns when the condition holds; AssertionError when it does not come true."""
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, f"waited {PATIENCE_S} s in vain for {what}"
        await asyncio.sleep(0.002)


async def finish(program: Program, app: App, scene: Scene, *, restored: bool) -> dict[str, list[str]]:
    """Runs the app to its end. -> outcome."""
    scene.last = lambda: scene.fired >= program.fired
    if not program.endless:
        await asyncio.wait_for(app.run(), PATIENCE_S)
        return outcome(program, scene)
    publish(scene, 0, ROWS)
    await app.start()
    try:
        await until(lambda: rows_read(app) >= 2 * (ROWS - HALF if restored else ROWS), "the records to be read")
    finally:
        await asyncio.wait_for(app.stop(drain=True), PATIENCE_S)
    return outcome(program, scene)
