"""Tables that are read, as they are at the start, before the streams that look into them."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import until

import sabot
from sabot import App, Batch, Source, Stream, UserError
from sabot.codecs.records import build_records
from sabot.connectors.base import Positions
from sabot.kafka import KafkaSource
from sabot.testing import ListSink, MemoryBroker

ORDERS = {"k": "int64", "n": "int64"}
NAMES = {"k": "int64", "name": "string"}


class Away(KafkaSource):
    """A topic whose broker gives nothing until it is back."""

    def __init__(self, topic: str, url: str) -> None:
        super().__init__(topic, url)
        self.back = threading.Event()

    def readers(self, count: int) -> Sequence[Source]:
        return [self]

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        return super().read_batch(max_rows, 0) if self.back.wait(timeout) else None


class Silent(Source):
    """A table that never ends, and had so many rows at the start: row i names the key i % rows. It does not say where its end is."""

    def __init__(self, rows: int, *, says: bool = True) -> None:
        self.name = "growing"
        self.at, self.rows, self.says = 0, rows, says

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self.at = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        text = f'{{"k": {self.at % self.rows}, "name": "{self.at}"}}'.encode()
        data = build_records([text], None, np.zeros(1), 0, np.array([self.at]))
        self.at += 1
        return Batch(data, self.positions(), self.name)

    def positions(self) -> Positions:
        return {(self.name, 0): self.at}

    def close(self) -> None:
        """Nothing is open."""


class Growing(Silent):
    """As Silent, and says where its end is."""

    def backlog(self) -> int | None:
        return max(0, self.rows - self.at)


def publish(url: str, topic: str, rows: Sequence[dict[str, Any]]) -> None:
    MemoryBroker.get(url).publish(topic, list(rows))


def orders_of(count: int, keys: int, since: int = 0) -> list[dict[str, Any]]:
    return [{"k": n * 7 % keys, "n": n} for n in range(since, since + count)]


def names_of(keys: int, word: str = "n") -> list[dict[str, Any]]:
    return [{"k": k, "name": f"{word}{k}"} for k in range(keys)]


@asynccontextmanager
async def running(app: App) -> Any:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def input_of(app: App, topic: str) -> dict[str, Any]:
    """The figures of the one reader of a topic."""
    tasks = app.statistics()["streams"].values()
    return next(task["input"] for task in tasks if task["input"].get("source") == topic)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("way", ["table", "stream", "upserted", "grouped", "called"])
async def test_every_row_finds_the_table_as_it_was_at_the_start(memory_url: str, parallelism: int, way: str) -> None:
    publish(memory_url, "names", names_of(5000))
    publish(memory_url, "orders", orders_of(500, 5000))
    app = App("cold", memory_url, checkpoint_interval="20ms", parallelism=parallelism)

    def stream() -> Stream:
        return app.stream("names", schema=NAMES)

    async def again(row: dict[str, Any]) -> dict[str, Any]:
        return {"k": row["k"], "name": row["name"]}

    table = {
        "table": lambda: app.table("names", key="k", schema=NAMES),
        "stream": stream,
        "upserted": lambda: stream().upsert("k"),
        "grouped": lambda: stream().group_by("k").aggregate(name=sabot.max("name")),
        "called": lambda: stream().map_async(again, schema=NAMES).upsert("k"),
    }[way]()
    out = ListSink()
    app.stream("orders", schema=ORDERS).lookup(table, on="k").to(out)
    async with running(app):
        await until(lambda: len(out.rows) >= 500, "the orders")
    assert {row["n"]: row["name"] for row in out.rows} == {n: f"n{n * 7 % 5000}" for n in range(500)}


async def test_barriers_pass_and_progress_is_told_while_a_table_is_awaited(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(memory_url, "names", names_of(30))
    publish(memory_url, "orders", orders_of(20, 30))
    names, out = Away("names", memory_url), ListSink()
    app = App("away", memory_url, checkpoint_dir=str(tmp_path), checkpoint_interval="1h")
    app.stream("orders", schema=ORDERS).lookup(app.table(names, key="k", schema=NAMES), on="k").to(out)
    with caplog.at_level(logging.INFO, "sabot"):
        async with running(app):
            assert await app.agent_runtime.trigger_checkpoint() > 0
            assert await app.agent_runtime.trigger_checkpoint() > 0
            waits, first = input_of(app, "orders"), input_of(app, "names")
            assert (waits["rows_in"], waits["waits_for"], first["backlog"]) == (0, ["join-1"], 30)
            names.back.set()
            await until(lambda: input_of(app, "orders")["rows_in"] == 20, "the orders to be read")
            assert (input_of(app, "orders")["waits_for"], input_of(app, "names")["backlog"]) == ([], 0)
            assert await app.agent_runtime.trigger_checkpoint() > 0
    assert sorted(row["name"] for row in out.rows) == sorted(f"n{n * 7 % 30}" for n in range(20))
    assert "names is read first: 30 records are left; until then orders is paused" in caplog.text
    assert "names has been read up to its end at the start" in caplog.text


@pytest.mark.slow  # half a second of a core
async def test_a_table_that_grows_for_ever_is_awaited_as_it_was_at_the_start(memory_url: str) -> None:
    publish(memory_url, "orders", orders_of(50, 200))
    out = ListSink()
    app = App("grows", memory_url, checkpoint_interval="20ms")
    app.stream("orders", schema=ORDERS).lookup(app.table(Growing(200), key="k", schema=NAMES), on="k").to(out)
    async with running(app):
        await until(lambda: len(out.rows) == 50, "the orders")
    assert all(row["name"] is not None and int(row["name"]) % 200 == row["k"] for row in out.rows)


@pytest.mark.parametrize("empty", [["names"], ["orders"], ["names", "orders"]])
async def test_nothing_waits_for_a_table_without_rows(memory_url: str, empty: list[str]) -> None:
    for topic, rows in {"names": names_of(3), "orders": orders_of(3, 3)}.items():
        publish(memory_url, topic, [] if topic in empty else rows)
    out = ListSink()
    app = App("empty", memory_url, checkpoint_interval="20ms")
    app.stream("orders", schema=ORDERS).lookup(app.table("names", key="k", schema=NAMES), on="k").to(out)
    async with running(app):
        await until(lambda: input_of(app, "orders")["waits_for"] == [], "the table")
        publish(memory_url, "orders", orders_of(1, 3, since=9))
        await until(lambda: 9 in [row["n"] for row in out.rows], "the last order")
    assert {row["name"] for row in out.rows} <= ({None} if "names" in empty else {"n0", "n1", "n2"})


async def test_a_table_and_a_stream_of_one_topic(memory_url: str) -> None:
    publish(memory_url, "names", names_of(100))
    out = ListSink()
    app = App("one", memory_url, checkpoint_interval="20ms")
    table = app.table("names", key="k", schema=NAMES)
    app.stream("names", schema=NAMES).lookup(table.rename({"name": "last"}), on="k").to(out)
    async with running(app):
        await until(lambda: len(out.rows) == 100, "all rows")
    assert all(row["last"] == row["name"] for row in out.rows)


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_tables_of_tables_are_read_in_their_order(memory_url: str, parallelism: int) -> None:
    """The table of countries is looked into by accounts, and by the orders too, which look into the accounts."""
    publish(memory_url, "countries", [{"c": c, "land": f"l{c}"} for c in range(1000)])
    publish(memory_url, "accounts", [{"k": k, "c": k % 1000} for k in range(3000)])
    publish(memory_url, "orders", orders_of(300, 3000))
    out = ListSink()
    app = App("chain", memory_url, checkpoint_interval="20ms", parallelism=parallelism)
    countries = app.table("countries", key="c", schema={"c": "int64", "land": "string"})
    accounts = app.stream("accounts", schema={"k": "int64", "c": "int64"})
    named = app.stream("orders", schema=ORDERS).lookup(accounts.lookup(countries, on="c").upsert("k"), on="k")
    named.lookup(countries, on="c", suffix="_again").to(out)
    async with running(app):
        await until(lambda: len(out.rows) == 300, "the orders")
    assert all(row["land"] == row["land_again"] == f"l{row['k'] % 1000}" for row in out.rows)


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("crash", [False, True])
async def test_a_restart_reads_first_what_came_meanwhile(memory_url: str, tmp_path: Path, crash: bool) -> None:
    """The second life begins with names that changed while nobody ran. A crash: nothing behind the checkpoint has happened."""
    out = ListSink()

    def app_of(folder: str) -> App:
        app = App("again", memory_url, checkpoint_dir=tmp_path / folder, checkpoint_interval="1h", parallelism=2)
        table = app.table("names", key="k", schema=NAMES)
        app.stream("orders", schema=ORDERS).lookup(table, on="k").to(out)
        return app

    def new_of(out: ListSink) -> dict[int, str]:
        """Without those of the first life, which the copied checkpoint still had to deliver."""
        return {row["n"]: row["name"] for row in out.rows if row["n"] >= 100}

    publish(memory_url, "names", names_of(2000))
    publish(memory_url, "orders", orders_of(100, 2000))
    app = app_of("first")
    await app.start()
    await until(lambda: input_of(app, "orders")["rows_in"] == 100, "the orders")
    assert await app.agent_runtime.trigger_checkpoint() > 0
    await until(lambda: len(out.rows) == 100, "their rows")
    assert {row["n"]: row["name"] for row in out.rows} == {n: f"n{n * 7 % 2000}" for n in range(100)}
    shutil.copytree(tmp_path / "first", tmp_path / "copied")
    if crash:
        publish(memory_url, "orders", orders_of(100, 2000, since=100))
        await until(lambda: input_of(app, "orders")["rows_in"] == 200, "orders behind the checkpoint")
    await app.stop()
    publish(memory_url, "names", names_of(2000, "m"))
    publish(memory_url, "orders", orders_of(100, 2000, since=200 if crash else 100))
    out = ListSink()
    async with running(app_of("copied" if crash else "first")) as app:
        assert app.agent_runtime.runner.restored_from is not None
        total = 200 if crash else 100
        await until(lambda: input_of(app, "orders")["rows_in"] == total, "the orders")
        assert await app.agent_runtime.trigger_checkpoint() > 0
        await until(lambda: len(new_of(out)) == total, "their rows")
    assert new_of(out) == {n: f"m{n * 7 % 2000}" for n in range(100, 100 + total)}


async def test_a_table_is_read_beside_where_that_is_said(memory_url: str) -> None:
    publish(memory_url, "names", names_of(10))
    publish(memory_url, "orders", orders_of(10, 10))
    names, out = Away("names", memory_url), ListSink()
    app = App("beside", memory_url, checkpoint_interval="20ms")
    table = app.table(names, key="k", schema=NAMES, first=False)
    app.stream("orders", schema=ORDERS).lookup(table, on="k").to(out)
    async with running(app):
        await until(lambda: len(out.rows) == 10, "the orders")
        names.back.set()
    assert {row["name"] for row in out.rows} == {None}


@pytest.mark.parametrize("how", ["right", "left", "asof"])
async def test_other_joins_wait_for_a_table_that_is_to_be_first(memory_url: str, how: str) -> None:
    publish(memory_url, "orders", orders_of(10, 10))
    publish(memory_url, "names", names_of(10))
    names, out = Away("names", memory_url), ListSink()
    app = App("others", memory_url)
    table = app.table(names, key="k", schema=NAMES, first=None if how == "asof" else True)
    orders = app.stream("orders", schema=ORDERS)
    joins = {"right": lambda: orders.join(table, on="k"), "left": lambda: table.join(orders, on="k")}
    joined = orders.join_asof(table, on="k") if how == "asof" else joins[how]().changelog()
    joined.to(out)
    async with running(app):
        await until(lambda: input_of(app, "names")["backlog"] == 10, "the table")
        assert input_of(app, "orders")["waits_for"] == ["join-1"]
        names.back.set()
        await until(lambda: input_of(app, "orders")["rows_in"] == 10, "the orders")


async def test_what_ends_while_it_waits(memory_url: str) -> None:
    """A stop that drains does not wait for a table that does not come."""
    publish(memory_url, "orders", orders_of(10, 10))
    publish(memory_url, "names", names_of(10))
    app = App("drained", memory_url)
    table = app.table(Away("names", memory_url), key="k", schema=NAMES)
    app.stream("orders", schema=ORDERS).lookup(table, on="k").to(ListSink())
    await app.start()
    await asyncio.wait_for(app.stop(drain=True), 60)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_windows_behind_a_lookup_do_not_wait_for_event_time_of_the_table(
    memory_url: str, tmp_path: Path, parallelism: int
) -> None:
    """Nor behind a restart: the table is a day behind, has no new rows, and is not idle yet."""
    day_ms = 86_400_000
    publish(memory_url, "names", [{**row, "at": 0} for row in names_of(10)])

    def orders(since_ms: int) -> None:
        publish(memory_url, "orders", [{"k": n % 10, "n": n, "ts": since_ms + n * 1000} for n in range(61)])

    async def closed(more: int) -> set[tuple[float, int]]:
        """What so many windows are: (their start in s, the rows in them)."""
        app, out = App("windows", memory_url, checkpoint_dir=tmp_path, parallelism=parallelism), ListSink()
        app.configure(checkpoint_interval="20ms")
        table = app.table("names", key="k", schema={**NAMES, "at": "int64"}, time="at", idle="1h")
        named = app.stream("orders", schema={**ORDERS, "ts": "int64"}, time="ts").lookup(table, on="k")
        named.key_by("name").window(sabot.tumbling("1m")).aggregate(n=sabot.count(), at=sabot.last("at")).to(out)
        async with running(app):
            await until(lambda: len(out.rows) == more, "the windows")
        return {(row["window_start"].timestamp(), row["n"]) for row in out.rows}

    orders(day_ms)
    assert await closed(10) == {(86_400, 6)}
    orders(2 * day_ms)
    assert await closed(11) == {(86_460, 1), (172_800, 6)}, "that of the last order of the first day, too"


async def test_the_table_closes_the_windows_of_a_stream_that_has_ended(memory_url: str, tmp_path: Path) -> None:
    (tmp_path / "orders.ndjson").write_text('{"k": 1, "n": 1, "ts": 5}\n')
    publish(memory_url, "names", [{**names_of(2)[1], "at": 100_000}])
    app, out = App("ended", memory_url, checkpoint_interval="20ms"), ListSink()
    table = app.table("names", key="k", schema={**NAMES, "at": "int64"}, time="at")
    orders = app.stream(sabot.files(tmp_path / "orders.ndjson"), time="ts")
    orders.lookup(table, on="k").key_by("name").window(sabot.tumbling("1m")).aggregate(n=sabot.count()).to(out)
    async with running(app):
        await until(lambda: [(row["name"], row["n"]) for row in out.rows] == [("n1", 1)], "the window")


def test_what_cannot_be_first_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    def refusal(stream: Stream) -> str:
        with pytest.raises(UserError, match="cannot be read first") as refused:
            stream.explain()
        return str(refused.value.message)

    app = App("refused")
    orders = app.stream("orders", schema=ORDERS)
    silent = app.table(Silent(3), key="k", schema=NAMES, first=True)
    assert "growing cannot tell where its end is" in refusal(orders.lookup(silent, on="k"))
    table = app.table("names", key="k", schema=NAMES, first=True)
    itself = table.changelog().select("k").lookup(table, on="k")
    assert "names would wait for it, and it for names" in refusal(itself)

    @app.agent("orders")
    def priced(ctx: Any) -> Any:
        return ctx.message

    app.stream(priced, schema=ORDERS).lookup(table, on="k").to(ListSink())
    with pytest.raises(UserError, match=r"agent refused\.priced emits results when it has them, and cannot wait"):
        app.graph()
    with pytest.raises(UserError, match="first='yes'"):
        app.table("names", key="k", schema=NAMES, first="yes")  # type: ignore[arg-type]


def test_what_cannot_be_first_is_read_beside_where_nobody_asks(tmp_path: Path) -> None:
    app = App("beside")
    orders = app.stream("orders", schema=ORDERS)
    table = app.table("names", key="k", schema=NAMES)
    first = {
        "a table": orders.lookup(table, on="k"),
        "one that does not say where its end is": orders.lookup(app.table(Silent(3), key="k", schema=NAMES), on="k"),
        "itself": table.changelog().select("k").lookup(table, on="k"),
        "a stream of versions": orders.join_asof(app.stream("names", schema=NAMES), on="k"),
        "a table of versions": orders.join_asof(table, on="k"),
        "a join of all": orders.join(table, on="k").changelog(),
    }
    assert [name for name, stream in first.items() if "before all others" in stream.explain()] == [
        "a table",
        "a table of versions",
    ]
