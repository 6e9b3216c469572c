"""Apps between a source and a sink are killed again and again, and so are their servers: the dances of all connectors.

    python tests/recovery/connector_dances.py --kills 200 --seeds 1,2,3 [KIND …]

Each kind and seed prints a line of JSON: rows, kills of the app and of the server, lost, repeated and wrong rows, seconds, and what else
the kind counts. Without a KIND all of them dance, one after the other. Exit code 0: each kind has held what its class promises.

Each row comes out with the number of rows of its key so far: a row that counts twice in the state, or not at all, shows. Where the class is
"at most once" (websocket) a row comes out alone, and what is lost is counted.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import psycopg
import pyarrow as pa
import pytest
import redis
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

sys.path.insert(0, str(Path(__file__).parents[1]))

from sabot.errors import UserError
from sabot.testing.connectors import Dance, Danced
from tools.broker import free_ports
from tools.iceberg_lake import lake_of, rows_of
from tools.leftovers import leftovers
from tools.postgres import Postgres
from tools.postgres import server_or_skip as postgres_or_skip
from tools.redis_server import server_or_skip as redis_or_skip
from tools.seaweed import server_or_skip as seaweed_or_skip
from tools.warm_starts import WarmStarts
from tools.web_feed import WebFeed
from tools.web_sender import WebSender
from tools.web_server import WebServer

KEYS = 7
GUARD_SECONDS = 60.0
FORK = "_fork_exec"  # by which subprocess starts a process

IMPORTED = {
    "sabot": ("DeltaSink", "DeltaSource", "files"),
    "sabot.connectors.http": ("HttpSink", "PollSource", "SseSource", "WebhookSource", "WebsocketSource"),
    "sabot.connectors.iceberg": ("IcebergSink", "IcebergSource"),
    "sabot.connectors.postgres": ("PostgresChanges",),
    "sabot.connectors.redis": ("RedisStreamSink", "RedisStreamSource"),
    "sabot.connectors.sql": ("SqlSink",),
}
LIBRARIES = (
    *IMPORTED,
    "deltalake",
    "duckdb",
    "psycopg",
    "pyiceberg.catalog.rest",
    "pyiceberg.catalog.sql",
    "redis",
    "sabot.connectors.iceberg.driver",
    "websockets.sync.client",
)
"""What the programs import, up to 2.3 s of a core. They are killed while they work, and not while they import."""
PROGRAM = """
import asyncio
import pyarrow as pa
import sabot
from sabot import App
{imports}

app = App("danced", state="state", checkpoint_interval="50ms")
SCHEMA = {{"n": "int64", "key": "int64"}}
COUNTED = pa.schema([("n", pa.int64()), ("count", pa.int64())])


@app.agent({source}, key="key", sink={sink}, schema=SCHEMA, concurrency=4)
async def counted(ctx):
    state = ctx.state()
    count = (await state.get("count") or 0) + 1
    await state.put("count", count)
    return {result}


{more}
asyncio.run(app.run())
"""


@dataclass(frozen=True)
class Floor:
    """A dance, and what has to hold at its end. `check`: raises AssertionError. `figures`: what else is told."""

    dance: Dance
    check: Callable[[Danced], None] = lambda danced: once(danced)
    figures: Callable[[], Mapping[str, int]] = dict


Kind = Callable[[Path, int], contextlib.AbstractContextManager[Floor]]


def once(danced: Danced) -> None:
    assert (danced.lost, danced.repeated, danced.wrong) == ([], [], [])


def program(source: str, sink: str, more: str = "", result: str = '{"n": ctx.message["n"], "count": count}') -> str:
    used = f"{source} {sink} {more}"
    imports = [f"from {room} import {name}" for room, names in IMPORTED.items() for name in names if f"{name}(" in used]
    return PROGRAM.format(imports="\n".join(imports), source=source, sink=sink, more=more, result=result)


def row(n: int) -> tuple[int, int]:
    return n, n // KEYS + 1


def payload(n: int) -> str:
    return json.dumps({"n": n, "key": n % KEYS})


class Files:
    """A folder of files that is followed: each put is a file, which is whole when it has its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "in"
        self.folder.mkdir()
        self.count = 0

    def put(self, numbers: Sequence[int]) -> None:
        path = self.folder / f"{self.count:05}.ndjson"
        self.count += 1
        part = path.with_suffix(".part")
        part.write_text("".join(f"{payload(n)}\n" for n in numbers))
        os.replace(part, path)


def duckdb_rows(path: Path, *statements: str) -> list[list[Any]]:
    """The rows that another program sees; it waits while the app has the file. Nothing while a table is missing."""
    end = time.monotonic() + GUARD_SECONDS
    while path.exists():
        try:
            with duckdb.connect(path, read_only=True) as connection:
                return [connection.execute(each).fetchall() for each in statements]
        except duckdb.IOException:  # the app writes
            assert time.monotonic() < end
            time.sleep(0.01)
        except duckdb.CatalogException:  # no part has arrived
            break
    return [[] for _ in statements]


@contextlib.contextmanager
def into_duckdb(folder: Path, seed: int) -> Iterator[Floor]:
    """Rows, and a table that is kept up to date, which another program reads meanwhile."""
    text = program(
        source='files("in/*.ndjson", follow="20ms")',
        sink='SqlSink("duckdb:out.duckdb", table="every")',
        more="""
rows = app.stream(files("in/*.ndjson", follow="20ms"), schema=SCHEMA)
totals = rows.group_by("key").aggregate(count=sabot.count())
totals.upsert("key").to(SqlSink("duckdb:out.duckdb", table="totals"))
""",
    )

    def rows() -> Sequence[Hashable]:
        """The rows that both tables have: each is delivered by itself."""
        every, totals = duckdb_rows(folder / "out.duckdb", "SELECT n, count FROM every", "SELECT count FROM totals")
        return every[: sum(count for (count,) in totals)]

    def check(danced: Danced) -> None:
        once(danced)
        totals, every = duckdb_rows(
            folder / "out.duckdb",
            "SELECT key, count FROM totals ORDER BY key",
            f"SELECT n % {KEYS}, count(*) FROM every GROUP BY ALL ORDER BY 1",
        )
        assert totals == every

    yield Floor(Dance(text, folder, put=Files(folder).put, rows=rows, expected=row, seed=seed), check)


def sqlite_rows(folder: Path, columns: str = "n, count") -> list[tuple[int, ...]]:
    path = folder / "out.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=GUARD_SECONDS)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'every'").fetchone()
        return connection.execute(f"SELECT {columns} FROM every").fetchall() if there else []


def to_sqlite(folder: Path, source: str, **given: Any) -> Dance:
    text = program(source, 'SqlSink("sqlite:out.db", table="every")')
    return Dance(text, folder, rows=lambda: sqlite_rows(folder), expected=row, **given)


@contextlib.contextmanager
def into_sqlite(folder: Path, seed: int) -> Iterator[Floor]:
    yield Floor(to_sqlite(folder, 'files("in/*.ndjson", follow="20ms")', put=Files(folder).put, seed=seed))


@contextlib.contextmanager
def through_iceberg(folder: Path, seed: int) -> Iterator[Floor]:
    """A table to which another program adds snapshots is followed into another one of the same catalog."""
    lake = lake_of(folder)
    with contextlib.closing(load_catalog("default", **lake)) as catalog:
        catalog.create_namespace("lake")
        catalog.create_table("lake.ins", pa.schema([("n", pa.int64()), ("key", pa.int64())]))
        every = SnapshotRows(
            lambda: catalog.load_table("lake.every"),
            lambda table: [(each["n"], each["count"]) for each in rows_of(table)],
        )

        def put(numbers: Sequence[int]) -> None:
            rows = pa.table({"n": list(numbers), "key": [n % KEYS for n in numbers]})
            catalog.load_table("lake.ins").append(rows)

        text = program(
            source=f'IcebergSource({lake!r}, "lake.ins", follow="20ms")',
            sink=f'IcebergSink({lake!r}, "lake.every", schema=COUNTED, gather="150ms")',
        )
        yield Floor(Dance(text, folder, put=put, rows=every.rows, expected=row, seed=seed))


class SnapshotRows:
    """The rows of a table of Iceberg, which `load` loads. Those of a snapshot never change, so `read` reads them once."""

    def __init__(self, load: Callable[[], Table], read: Callable[[Table], Sequence[Hashable]]) -> None:
        self.load, self.read = load, read
        self._snapshot: Snapshot | None = None
        self._rows: Sequence[Hashable] = []

    def rows(self) -> Sequence[Hashable]:
        try:
            table = self.load()
        except NoSuchTableError:
            return []
        if (snapshot := table.current_snapshot()) != self._snapshot:
            self._rows, self._snapshot = self.read(table), snapshot
        return self._rows


@contextlib.contextmanager
def through_delta(folder: Path, seed: int) -> Iterator[Floor]:
    """A table that is followed into another one, and one whose rows change, by the change feed or by the files of each commit."""
    feed = {"delta.enableChangeDataFeed": str(seed % 2 == 1).lower()}
    ins, stock, every = (folder / name for name in ("ins", "stock", "every"))
    columns = pa.schema([(name, pa.int64()) for name in ("n", "key", "amount")])
    deltalake.DeltaTable.create(ins, deltalake.Schema.from_arrow(columns.remove(2)))
    deltalake.DeltaTable.create(stock, deltalake.Schema.from_arrow(columns), configuration=feed)

    def put(numbers: Sequence[int]) -> None:
        first, last = min(numbers), max(numbers)
        there = deltalake.DeltaTable(stock)
        there.update(predicate=f"n % 5 = {first % 5}", updates={"amount": "amount + 1"})
        there.update(predicate=f"n % 11 = {last % 11}", updates={"n": "n + 1000000"})  # another key
        keys = [n % KEYS for n in numbers]
        for rows in ([*numbers, -1], [-2]):
            more = {"n": rows, "key": [n % KEYS for n in rows], "amount": rows}
            deltalake.write_deltalake(stock, pa.table(more), mode="append")
        deltalake.DeltaTable(stock).delete("n < 0")
        if first % 4 == 0:
            deltalake.DeltaTable(stock).optimize.compact()
        deltalake.write_deltalake(ins, pa.table({"n": list(numbers), "key": keys}), mode="append")

    def rows() -> Sequence[Hashable]:
        """The rows of one output, as many as the other one has too."""
        files = deltalake.DeltaTable(every).file_uris() if deltalake.DeltaTable.is_deltatable(str(every)) else []
        if not files:
            return []
        found = duckdb.sql("SELECT n, count FROM read_parquet($1)", params=[files]).fetchall()
        return both(found, totals_of(folder), sums())

    sums_of: dict[int, list[tuple[int, int, int]]] = {}  # of a version of the table, which never changes

    def sums() -> list[tuple[int, int, int]]:
        table = deltalake.DeltaTable(stock)
        if (version := table.version()) not in sums_of:
            there = pa.table(table.scan().read_all())
            sums_of.clear()
            grouped = duckdb.from_arrow(there).aggregate("key, count(*), sum(amount)::BIGINT", "key")
            sums_of[version] = grouped.order("key").fetchall()
        return sums_of[version]

    text = program(
        source='DeltaSource("ins", follow="20ms")',
        sink='DeltaSink("every", schema=COUNTED, gather="150ms")',
        more="""
stock = app.table(DeltaSource("stock", follow="20ms", keys=["n"]))
totals = stock.group_by("key").aggregate(count=sabot.count(), amount=sabot.sum("amount"))
totals.upsert("key").to(SqlSink("sqlite:totals.db", table="totals"))
""",
    )

    def check(danced: Danced) -> None:
        once(danced)
        assert sums()
        assert totals_of(folder) == sums()

    yield Floor(Dance(text, folder, put=put, rows=rows, expected=row, seed=seed), check)


@contextlib.contextmanager
def into_a_store(folder: Path, seed: int) -> Iterator[Floor]:
    """Two tables over S3: one of Delta Lake, and one of Iceberg with a REST catalog. Both get all rows."""
    server = seaweed_or_skip()
    name, options, catalog = f"every-{seed}", server.storage_options, server.catalog
    source = 'files("in/*.ndjson", follow="20ms")'
    text = program(
        source=source,
        sink=f'DeltaSink("s3://delta/{name}", schema=COUNTED, storage_options={options!r})',
        more=f"""
rows = app.stream({source}, schema=SCHEMA)
rows.to(IcebergSink({catalog!r}, "danced.{name}", gather="150ms"))
""",
    )

    every: dict[int, list[tuple[int, int]]] = {}  # the rows of a version of Delta Lake, which never change

    def rows() -> Sequence[Hashable]:
        """The rows of one table, as many as the other one has too."""
        other = lake.rows()
        try:
            table = deltalake.DeltaTable(f"s3://delta/{name}", storage_options=options)
        except deltalake.exceptions.TableNotFoundError:
            return []
        if (version := table.version()) not in every:
            every.clear()
            every[version] = [(each["n"], each["count"]) for each in table.to_pyarrow_table().to_pylist()]
        return every[version][: len(other)]

    def load() -> Table:
        with contextlib.closing(load_catalog("looks", **catalog)) as opened:  # anew: the server may have been killed
            return opened.load_table(f"danced.{name}")

    def numbers(table: Table) -> Sequence[int]:
        found: list[int] = table.scan().to_arrow().column("n").to_pylist()
        assert len(set(found)) == len(found), "a row is twice in the table of Iceberg"
        return found

    lake = SnapshotRows(load, numbers)
    yield Floor(Dance(text, folder, put=Files(folder).put, rows=rows, expected=row, server=server, seed=seed))


def both(
    every: Sequence[Hashable], totals: Sequence[tuple[int, ...]], sums: Sequence[tuple[int, ...]]
) -> Sequence[Hashable]:
    """The rows of one output, as many as the other one has counted in (key, count, amount), and not all before that is as it must be: rows
    that are there only for a while may fill a count.
    """
    counted = sum(count for _, count, _ in totals)
    return every[:counted] if totals == sums else every[: min(counted, len(every) - 1)]


def totals_of(folder: Path) -> list[tuple[int, int, int]]:
    """(key, count, amount) of a table of SQLite."""
    path = folder / "totals.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=GUARD_SECONDS)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'totals'").fetchone()
        return connection.execute("SELECT key, count, amount FROM totals ORDER BY key").fetchall() if there else []


@contextlib.contextmanager
def through_redis(folder: Path, seed: int) -> Iterator[Floor]:
    server = redis_or_skip(keeps=True)
    client = redis.Redis.from_url(server.url)
    read: list[tuple[bytes, Hashable]] = []  # of the output: its entries never change

    def put(numbers: Sequence[int]) -> None:
        pipeline = client.pipeline(transaction=False)  # the server waits once for the disk, and not for each row
        for n in numbers:
            pipeline.xadd("ins", {"value": payload(n)})
        pipeline.execute()

    def entries(behind: str) -> list[tuple[bytes, Hashable]]:
        found = [(name, json.loads(fields[b"value"])) for name, fields in client.xrange("outs", behind)]
        return [(name, (each["n"], each["count"])) for name, each in found]

    def rows() -> Sequence[Hashable]:
        read.extend(entries(f"({read[-1][0].decode()}" if read else "-"))
        return [each for _, each in read]

    def check(danced: Danced) -> None:
        once(danced)
        assert read == entries("-")

    text = program(
        source=f'RedisStreamSource("{server.url}", "ins", "danced")',
        sink=f'RedisStreamSink("{server.url}", "outs")',
    )
    try:
        yield Floor(Dance(text, folder, put=put, rows=rows, expected=row, server=server, seed=seed), check)
    finally:
        server.remove()


@contextlib.contextmanager
def web_server(folder: Path, *, idempotent: bool = False) -> Iterator[WebServer]:
    server = WebServer(folder / "kept", idempotent=idempotent)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def into_web(folder: Path, seed: int) -> Iterator[Floor]:
    """The server knows the keys of requests."""
    with web_server(folder, idempotent=True) as server:
        yield Floor(to_web(folder, server, seed))


@contextlib.contextmanager
def into_a_web_without_keys(folder: Path, seed: int) -> Iterator[Floor]:
    """The server has rows twice, but only those of requests whose keys came twice."""

    def check(danced: Danced) -> None:
        assert (danced.lost, danced.wrong) == ([], [])
        rows = [(each["n"], each["count"]) for each in server.rows()]
        assert len({*zip(server.keys(), rows, strict=True)}) == len(set(rows)) == danced.rows
        assert len(danced.repeated) == len(rows) - danced.rows

    with web_server(folder) as server:
        yield Floor(to_web(folder, server, seed), check)


def to_web(folder: Path, server: WebServer, seed: int) -> Dance:
    idempotent = (server.folder / "idempotent").exists()

    def rows() -> Sequence[Hashable]:
        return [(each["n"], each["count"]) for each in server.rows()]

    text = program(
        source='files("in/*.ndjson", follow="20ms")',
        sink=f'HttpSink("{server.url}", batch=50, idempotent={idempotent})',
    )
    return Dance(text, folder, put=Files(folder).put, rows=rows, expected=row, server=server, seed=seed)


@contextlib.contextmanager
def from_web(folder: Path, seed: int) -> Iterator[Floor]:
    def put(numbers: Sequence[int]) -> None:
        server.put([json.loads(payload(n)) for n in numbers])

    with web_server(folder) as server:
        source = f'PollSource("{server.origin}/pages", next="link", every="20ms")'
        yield Floor(to_sqlite(folder, source, put=put, server=server, seed=seed))


@contextlib.contextmanager
def from_events(folder: Path, seed: int) -> Iterator[Floor]:
    def put(numbers: Sequence[int]) -> None:
        server.put([json.loads(payload(n)) for n in numbers])

    with web_server(folder) as server:
        source = f'SseSource("{server.origin}/events", ids="{["given", "consecutive"][seed % 2]}")'
        yield Floor(to_sqlite(folder, source, put=put, server=server, seed=seed))


@contextlib.contextmanager
def from_a_sender(folder: Path, seed: int) -> Iterator[Floor]:
    """The server that is killed is the sender, who repeats what was not answered, and what was when he is killed before he notes it."""
    (port,) = free_ports(1)
    sender = WebSender(folder / "outbox", f"http://127.0.0.1:{port}/in")

    def put(numbers: Sequence[int]) -> None:
        sender.put([payload(n) for n in numbers])

    def check(danced: Danced) -> None:
        once(danced)
        assert sender.repeated()

    source = f'WebhookSource("hooks.db", port={port}, path="/in", key="Webhook-Id")'
    dance = to_sqlite(folder, source, put=put, server=sender, seed=seed)
    try:
        yield Floor(dance, check, lambda: {"requests_repeated": sender.repeated()})
    finally:
        sender.stop()


@contextlib.contextmanager
def from_a_websocket(folder: Path, seed: int) -> Iterator[Floor]:
    """The server sends each row once, to who is connected then. So rows are lost with the app, or with the server that had noted them."""
    feed = WebFeed(folder / "feed")
    text = program(
        f'WebsocketSource("{feed.url}")', 'SqlSink("sqlite:out.db", table="every")', result='{"n": ctx.message["n"]}'
    )

    def arrived() -> list[int]:
        return [n for (n,) in sqlite_rows(folder, "n")]

    def lost(there: Sequence[int]) -> set[int]:
        """The rows behind which something arrived that was sent later. A negative row says how many were sent before its connection."""
        sent = max((n + 1 if n >= 0 else -n for n in there), default=0)
        return set(range(sent)).difference(there)

    def rows() -> Sequence[Hashable]:
        """The rows that are there, and those that never will be: a dance waits for no others."""
        there = arrived()
        return [*(n for n in there if n >= 0), *lost(there)]

    dance = Dance(
        text,
        folder,
        put=lambda numbers: feed.put([payload(n) for n in numbers]),
        rows=rows,
        expected=lambda n: n,
        server=feed,
        seed=seed,
    )
    try:
        yield Floor(dance, figures=lambda: {"lost_by_class": len(lost(arrived()))})
    finally:
        feed.stop()


class PostgresKilled:
    """A server of PostgreSQL for a dance."""

    def __init__(self, server: Postgres) -> None:
        self.server = server

    def stop(self) -> None:
        self.server.stop(kill=True)

    def start(self) -> None:
        self.server.start()


@contextlib.contextmanager
def from_postgres(folder: Path, seed: int) -> Iterator[Floor]:
    """Two tables: rows that are only added, and rows that change, whose keys change, and that are deleted."""
    server = postgres_or_skip()
    with server.database() as url:
        yield of_postgres(folder, server, url, seed)


def of_postgres(folder: Path, server: Postgres, url: str, seed: int) -> Floor:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE ins (n int PRIMARY KEY, key int)")
        connection.execute("CREATE TABLE stock (id int PRIMARY KEY, key int, amount int)")

    def put(numbers: Sequence[int]) -> None:
        first, last = min(numbers), max(numbers)
        with psycopg.connect(url) as connection:  # one transaction, in which the rows that are counted come last
            connection.execute("UPDATE stock SET amount = amount + 1 WHERE id %% 5 = %s", (first % 5,))
            connection.execute("UPDATE stock SET key = (key + 1) %% 3 WHERE id %% 7 = %s", (last % 7,))
            connection.execute("UPDATE stock SET id = -id WHERE id %% 11 = %s", (last % 11,))
            connection.execute("INSERT INTO stock SELECT 1000000 + g, 0, 1 FROM generate_series(1, 20) g")
            connection.execute("DELETE FROM stock WHERE id > 1000000")
            for n in numbers:
                connection.execute("INSERT INTO stock VALUES (%s, %s, %s)", (n + 1, n % 3, n))
                connection.execute("INSERT INTO ins VALUES (%s, %s)", (n, n % KEYS))

    def sums() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """(key, count, amount) of what the app has written, and of the table."""
        with psycopg.connect(url) as connection:
            totals = connection.execute("SELECT key, count, amount FROM totals ORDER BY key").fetchall()
            own = connection.execute(
                "SELECT key, count(*), sum(amount) FROM stock GROUP BY key ORDER BY key"
            ).fetchall()
        return totals, own

    def rows() -> Sequence[Hashable]:
        """The rows of one output, as many as the other one has too."""
        with contextlib.suppress(psycopg.errors.UndefinedTable), psycopg.connect(url) as connection:
            return both(connection.execute("SELECT n, count FROM every").fetchall(), *sums())
        return []

    text = program(
        source=f'PostgresChanges("{url}", "ins")',
        sink=f'SqlSink("{url}", table="every")',
        more=f"""
stock = app.table(PostgresChanges("{url}", "stock"))
totals = stock.group_by("key").aggregate(count=sabot.count(), amount=sabot.sum("amount"))
totals.upsert("key").to(SqlSink("{url}", table="totals"))
""",
    )

    def check(danced: Danced) -> None:
        once(danced)
        totals, own = sums()
        assert totals == own

    return Floor(Dance(text, folder, put=put, rows=rows, expected=row, server=PostgresKilled(server), seed=seed), check)


KINDS: Mapping[str, Kind] = {
    "redis": through_redis,
    "duckdb": into_duckdb,
    "sqlite": into_sqlite,
    "postgres": from_postgres,
    "iceberg": through_iceberg,
    "delta": through_delta,
    "store": into_a_store,
    "http-sink": into_web,
    "http-sink-without-keys": into_a_web_without_keys,
    "poll": from_web,
    "sse": from_events,
    "webhook": from_a_sender,
    "websocket": from_a_websocket,
}


def dance(name: str, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Runs a dance, and returns its figures. Raises AssertionError if it did not hold what the class promises."""
    began = time.monotonic()
    with KINDS[name](folder, seed) as floor:
        danced = floor.dance.run(kills)
        figures = {
            "kind": name,
            "seed": seed,
            "rows": danced.rows,
            "app_kills": danced.app_kills,
            "server_kills": danced.server_kills,
            "lost": len(danced.lost),
            "repeated": len(danced.repeated),
            "wrong": len(danced.wrong),
            **floor.figures(),
            "seconds": round(time.monotonic() - began),
        }
        try:
            assert danced.app_kills + danced.server_kills >= kills
            floor.check(danced)
        except AssertionError as error:
            error.add_note(f"{figures}")
            raise
    return figures


@contextlib.contextmanager
def warm_with_libraries() -> Iterator[None]:
    """Programs that are started here are forked from an interpreter that has imported LIBRARIES, where a process can be forked so."""
    cold = getattr(subprocess, FORK, None)
    if sys.platform != "linux" or cold is None:
        yield
        return
    warm = WarmStarts(cold)
    setattr(subprocess, FORK, warm.fork_exec)
    try:
        warm.expect(*LIBRARIES)
        yield
    finally:
        setattr(subprocess, FORK, cold)
        warm.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seeds", default="1,2,3", help="default: 1,2,3")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a dance that fails")
    options = parser.parse_args()
    if unknown := set(options.kinds).difference(KINDS):
        parser.error(f"no dance of {', '.join(sorted(unknown))}")
    with warm_with_libraries():
        failed = dance_all(options.kinds or list(KINDS), options.kills, options.seeds.split(","), options.keep)
    leftovers().finish()
    sys.exit(failed > 0)


def dance_all(kinds: Sequence[str], kills: int, seeds: Sequence[str], keep: bool) -> int:
    """Runs dances, and prints the figures of each. Returns how many have failed."""
    failed = 0
    for seed in map(int, seeds):
        for name in kinds:
            folder = Path(tempfile.mkdtemp(prefix=f"sabot-dance-{name}-{seed}-"))
            try:
                figures = dance(name, folder, kills, seed)
            except pytest.skip.Exception as missing:  # others dance on
                failed += 1
                figures = {"kind": name, "seed": seed, "failed": str(missing)}
            except (AssertionError, UserError) as error:
                failed += 1
                figures = {"kind": name, "seed": seed, "failed": str(error), "notes": getattr(error, "__notes__", [])}
            print(json.dumps(figures), flush=True)
            if "failed" not in figures or not keep:
                shutil.rmtree(folder, ignore_errors=True)
    return failed


if __name__ == "__main__":
    main()
