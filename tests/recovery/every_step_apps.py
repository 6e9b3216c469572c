"""The pipelines that are crashed at every step: each app ends by itself, and all it does goes below a directory, or is named after it.

Numbers are whole, so sums are exact whatever the order.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

import sabot
from sabot import App, Batch, DeltaSink, Message, ParquetSink, SqlSink, col, tumbling
from sabot.connectors.base import Positions
from sabot.testing import BARRIER, END, ScriptedSource

ACCOUNTS = ["ann", "bob", "cyd"]


def payments(start: int, count: int = 8) -> list[dict[str, object]]:
    """A batch: rows a second apart."""
    return [{"account": ACCOUNTS[n % 3], "amount": n, "ts": n * 1000} for n in range(start, start + count)]


ROWS = [payments(0), payments(8), payments(16), payments(24), END]
SCRIPT = [payments(0), BARRIER, payments(8), payments(16), BARRIER, payments(24), END]


def named(directory: Path) -> App:
    """An app of this directory: on the broker that `prepare` wrote down there, or without one."""
    broker = directory / "broker"
    url, name = broker.read_text().split() if broker.exists() else ("memory://", "steps")
    return App(name, url, state=str(directory / "state"), checkpoint_interval=3600)


def topic_of(directory: Path) -> str:
    """The topic of the results."""
    return f"{(directory / 'broker').read_text().split()[1]}-out"


def windows(app: App) -> sabot.Stream:
    """Sums per account and ten seconds."""
    rows = app.stream(ScriptedSource(SCRIPT), time="ts")
    return (
        rows.filter(col("amount") != 5)
        .key_by("account")
        .window(tumbling("10s"))
        .aggregate(n=sabot.count(), total=sabot.sum("amount"))
    )


def windows_to_kafka(directory: Path) -> App:
    app = named(directory)
    windows(app).to(topic_of(directory), key="account")
    return app


def windows_to_parquet(directory: Path) -> App:
    app = named(directory)
    windows(app).to(ParquetSink(directory / "out/"))
    return app


def windows_to_delta(directory: Path) -> App:
    app = named(directory)
    windows(app).to(DeltaSink(directory / "out", partition_by=["account"]))
    return app


def agent_to_kafka(directory: Path) -> App:
    """State is written before and after an await: a call that is cut in the middle must leave nothing."""
    app = named(directory)

    @app.agent(ScriptedSource(SCRIPT), key="account", sink=topic_of(directory))
    async def running(ctx):
        state = ctx.state()
        account, amount = ctx.message["account"], ctx.message["amount"]
        seen = (await state.get("seen") or 0) + 1
        await state.put("seen", seen)
        await asyncio.sleep(0)
        total = (await state.get("total") or 0) + amount
        await state.put("total", total)
        return {"account": account, "seen": seen, "total": total}

    return app


def agent_to_topics(directory: Path) -> App:
    """Each third result goes into another topic than the others."""
    app = named(directory)
    out = topic_of(directory)

    @app.agent(ScriptedSource(SCRIPT), key="account", sink=[out, f"{out}-cyd"])
    async def running(ctx):
        total = (await ctx.state().get("total") or 0) + ctx.message["amount"]
        await ctx.state().put("total", total)
        row = {"account": ctx.message["account"], "total": total}
        return Message(row, topic=f"{out}-cyd" if row["account"] == "cyd" else out)

    return app


def between_streams(directory: Path) -> App:
    """A stream, an agent and a stream, without a topic: what waits between them when the app dies must not be lost, nor come twice."""
    app = named(directory)

    @app.agent(key="account", concurrency=2)
    async def running(ctx):
        seen = (await ctx.state().get("seen") or 0) + 1
        await ctx.state().put("seen", seen)
        await asyncio.sleep(0)
        return {**ctx.message, "seen": seen}

    script = [payments(0), BARRIER, payments(8), END]
    app.stream(ScriptedSource(script), time="ts").filter(col("amount") != 5).to(running)
    columns = {"account": "string", "amount": "int64", "seen": "int64", "ts": "int64"}
    rows = app.stream(running, schema=columns, time="ts", lateness="1h")
    counts = {"n": sabot.count(), "total": sabot.sum("amount"), "seen": sabot.sum("seen")}
    rows.key_by("account").window(tumbling("10s")).aggregate(**counts).to(ParquetSink(directory / "out/"))
    return app


def agents_to_sqlite(directory: Path) -> App:
    """One agent counts what another one lists: without key= they share their state."""
    app = named(directory)
    sink = SqlSink(
        f"sqlite:///{directory / 'out.db'}", table="totals", schema=pa.schema([("n", pa.int64()), ("sum", pa.int64())])
    )

    @app.agent(ScriptedSource(SCRIPT, name="first"), name="add")
    async def add(ctx):
        state = ctx.state("shared")
        for name, more in (("n", 1), ("sum", ctx.message["amount"])):
            await state.put(name, (await state.get(name) or 0) + more)

    @app.agent(ScriptedSource([payments(0, 4), BARRIER, payments(4, 4), END], name="second"), name="list", sink=sink)
    async def add_and_list(ctx):
        state = ctx.state("shared")
        for name, more in (("n", 1), ("sum", 1000)):
            await state.put(name, (await state.get(name) or 0) + more)
        return {"n": 1, "sum": ctx.message["amount"]}

    return app


def joined_to_sqlite(directory: Path) -> App:
    """Sums per city of payments whose account may be known only later: then they leave the sum of those without a city."""
    app = named(directory)
    paid = app.stream(ScriptedSource([payments(0, 6), BARRIER, payments(6, 6), END], name="paid"), time="ts")
    homes = [{"account": "ann", "city": "Oslo"}, {"account": "bob", "city": "Rome"}]
    known = app.stream(ScriptedSource([homes[:1], BARRIER, homes[1:], END], name="homes"))
    (
        paid.join(known, on="account", how="left")
        .with_columns(city=col("city").fill_null("nowhere"))
        .group_by("city")
        .aggregate(n=sabot.count(), total=sabot.sum("amount"), least=sabot.min("amount"))
        .upsert("city")
        .to(SqlSink(f"sqlite:///{directory / 'out.db'}", table="cities"))
    )
    return app


class ByCursor(ScriptedSource):
    """A script that knows its place by what it remembers alone; its positions only count."""

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        cursor = self.recalled.get(("cursor", 0), b"at 0") if positions else b"at 0"
        super().open({(self.name, 0): int(cursor.removeprefix(b"at "))}, start)
        self.behind = cursor

    recalled: Mapping[tuple[str, int], bytes] = {}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        self.recalled = memory

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        batch = super().read_batch(max_rows, timeout)
        if batch is not None:
            self.behind = b"at %d" % batch.offsets[(self.name, 0)]
        return batch

    def remember(self) -> dict[tuple[str, int], bytes]:
        return {("cursor", 0): self.behind}


def by_cursor_to_sqlite(directory: Path) -> App:
    """Rows, and the results of an agent, of sources that go on at what they remember."""
    app = named(directory)
    url = f"sqlite:///{directory / 'out.db'}"
    app.stream(ByCursor(SCRIPT, name="first")).select("account", "amount").to(SqlSink(url, table="paid"))
    amounts = pa.schema([("amount", pa.int64())])

    @app.agent(ByCursor(SCRIPT, name="second"), name="list", sink=SqlSink(url, table="listed", schema=amounts))
    async def listed(ctx):
        await asyncio.sleep(0)
        return {"amount": ctx.message["amount"]}

    return app


async def rated(row: dict[str, object]) -> dict[str, object]:
    """A call of which one in three comes at once, and the others later."""
    amount = int(str(row["amount"]))
    await asyncio.sleep(amount % 3 / 1000)
    return {**row, "risk": amount % 4}


class Spans(sabot.Process):
    """Sums of an account's parts of ten seconds, told by timers."""

    def process(self, row, ctx):
        part, sums = ctx.timestamp // 10_000, ctx.map("sums")
        sums.put(part, (sums.get(part) or 0) + row["amount"])
        ctx.timers.event((part + 1) * 10_000)

    def on_timer(self, timer, ctx):
        part = timer.at // 10_000 - 1
        total = ctx.map("sums").get(part)
        ctx.map("sums").delete(part)
        return {"account": ctx.key, "first": part, "last": total}


def calls_to_parquet(directory: Path) -> App:
    """Rows wait for calls; what comes of them goes through timers, and through a pattern."""
    app = named(directory)
    rows = app.stream(ScriptedSource([payments(0), BARRIER, payments(8), END]), time="ts")
    schema = {"account": "string", "amount": "int64", "ts": "int64", "risk": "int64"}
    calls = rows.map_async(rated, schema=schema, concurrency=3, ordered=False).key_by("account")
    columns = {"account": "string", "first": "int64", "last": "int64"}
    rising = sabot.pattern("low", col("risk") <= 1).then("high", col("risk") >= 2).within("10s")
    low, high = sabot.step("low"), sabot.step("high")
    matches = calls.pattern(rising, first=low.first("amount"), last=high.last("amount"))
    calls.process(Spans(), schema=columns).union(matches.select(*columns)).to(ParquetSink(directory / "out/"))
    return app


def _newest(app: App, directory: Path, **aggregates: Any) -> App:
    """The windows of each account as a table, in a database that gets the columns which it lacks."""
    rows = app.stream(ScriptedSource(ROWS), time="ts")
    counted = rows.key_by("account").window(tumbling("10s")).aggregate(n=sabot.count(), **aggregates).named("windows")
    table = counted.upsert("account", "window_start").named("table")
    table.to(SqlSink(f"sqlite:///{directory / 'out.db'}", table="windows", evolve=True))
    return app


def before_the_change(directory: Path) -> App:
    return _newest(named(directory), directory)


def refilled(directory: Path) -> App:
    """The changed program of `before_the_change`: an aggregate more, for which the state is computed and written again."""
    app = _newest(named(directory), directory, total=sabot.sum("amount"))
    app.configure(refill=["table"], reemit=["windows"])
    return app
