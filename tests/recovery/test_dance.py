"""Apps between a source and a sink are killed 20 times, and so are their servers: each row counts once, and is there once."""

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import deltalake
import duckdb
import psycopg
import pyarrow as pa
import pytest
import redis
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError

from sabot.testing.connectors import Dance, Danced
from tools.iceberg_lake import lake_of, rows_in_lake, table_of
from tools.postgres import Postgres
from tools.postgres import server_or_skip as postgres_or_skip
from tools.redis_server import Redis, server_or_skip
from tools.seaweed import Seaweed
from tools.seaweed import server_or_skip as seaweed_or_skip
from tools.web_sender import WebSender
from tools.web_server import WebServer

KILLS = 20
KEYS = 7
GUARD_SECONDS = 60.0

# Each row comes out with the number of rows of its key so far: a row that counts twice in the state, or not at all, shows.
PROGRAM = """
import asyncio
import pyarrow as pa
import sabot
from sabot import App, DeltaSink, DeltaSource, files
from sabot.connectors.http import HttpSink, PollSource, SseSource, WebhookSource
from sabot.connectors.iceberg import IcebergSink, IcebergSource
from sabot.connectors.postgres import PostgresChanges
from sabot.connectors.redis import RedisStreamSink, RedisStreamSource
from sabot.connectors.sql import SqlSink

app = App("danced", state="state", checkpoint_interval="50ms")
SCHEMA = {{"n": "int64", "key": "int64"}}
COUNTED = pa.schema([("n", pa.int64()), ("count", pa.int64())])


@app.agent({source}, key="key", sink={sink}, schema=SCHEMA, concurrency=4)
async def counted(ctx):
    state = ctx.state()
    count = (await state.get("count") or 0) + 1
    await state.put("count", count)
    return {{"n": ctx.message["n"], "count": count}}


{more}
asyncio.run(app.run())
"""


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


def into_duckdb(folder: Path, seed: int) -> Dance:
    program = PROGRAM.format(
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

    return Dance(program, folder, put=Files(folder).put, rows=rows, expected=row, seed=seed)


def sqlite_rows(folder: Path) -> Sequence[Hashable]:
    path = folder / "out.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=GUARD_SECONDS)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'every'").fetchone()
        return connection.execute("SELECT n, count FROM every").fetchall() if there else []


def into_sqlite(folder: Path, seed: int) -> Dance:
    program = PROGRAM.format(
        source='files("in/*.ndjson", follow="20ms")', sink='SqlSink("sqlite:out.db", table="every")', more=""
    )
    put = Files(folder).put
    return Dance(program, folder, put=put, rows=lambda: sqlite_rows(folder), expected=row, seed=seed)


def through_iceberg(folder: Path, seed: int) -> Dance:
    """A table to which another program adds snapshots is followed into another one of the same catalog."""
    lake = lake_of(folder)
    with contextlib.closing(load_catalog("default", **lake)) as catalog:
        catalog.create_namespace("lake")
        catalog.create_table("lake.ins", pa.schema([("n", pa.int64()), ("key", pa.int64())]))

    def put(numbers: Sequence[int]) -> None:
        table = table_of(lake, "lake.ins")
        assert table is not None
        table.append(pa.table({"n": list(numbers), "key": [n % KEYS for n in numbers]}))

    def rows() -> Sequence[Hashable]:
        return [(each["n"], each["count"]) for each in rows_in_lake(lake, "lake.every")]

    program = PROGRAM.format(
        source=f'IcebergSource({lake!r}, "lake.ins", follow="20ms")',
        sink=f'IcebergSink({lake!r}, "lake.every", schema=COUNTED)',
        more="",
    )
    return Dance(program, folder, put=put, rows=rows, expected=row, seed=seed)


def through_delta(folder: Path, seed: int) -> Dance:
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
        return found[: sum(count for _, count, _ in totals_of(folder))]

    program = PROGRAM.format(
        source='DeltaSource("ins", follow="20ms")',
        sink='DeltaSink("every", schema=COUNTED)',
        more="""
stock = app.table(DeltaSource("stock", follow="20ms", keys=["n"]))
totals = stock.group_by("key").aggregate(count=sabot.count(), amount=sabot.sum("amount"))
totals.upsert("key").to(SqlSink("sqlite:totals.db", table="totals"))
""",
    )
    return Dance(program, folder, put=put, rows=rows, expected=row, seed=seed)


def into_a_store(folder: Path, server: Seaweed, seed: int) -> Dance:
    """Two tables over S3: one of Delta Lake, and one of Iceberg with a REST catalog. Both get all rows."""
    name, options, catalog = f"every-{seed}", server.storage_options, server.catalog
    source = 'files("in/*.ndjson", follow="20ms")'
    program = PROGRAM.format(
        source=source,
        sink=f'DeltaSink("s3://delta/{name}", schema=COUNTED, storage_options={options!r})',
        more=f"""
rows = app.stream({source}, schema=SCHEMA)
rows.to(IcebergSink({catalog!r}, "danced.{name}"))
""",
    )

    def rows() -> Sequence[Hashable]:
        """The rows of one table, as many as the other one has too."""
        try:
            found = deltalake.DeltaTable(f"s3://delta/{name}", storage_options=options).to_pyarrow_table()
            with contextlib.closing(load_catalog("looks", **catalog)) as opened:
                other = opened.load_table(f"danced.{name}").scan().to_arrow()
        except (deltalake.exceptions.TableNotFoundError, NoSuchTableError):
            return []
        assert len(set(other.column("n").to_pylist())) == other.num_rows, "a row is twice in the table of Iceberg"
        return [(each["n"], each["count"]) for each in found.to_pylist()][: other.num_rows]

    return Dance(program, folder, put=Files(folder).put, rows=rows, expected=row, server=server, seed=seed)


def totals_of(folder: Path) -> list[tuple[int, int, int]]:
    """(key, count, amount) of a table of SQLite."""
    path = folder / "totals.db"
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=GUARD_SECONDS)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'totals'").fetchone()
        return connection.execute("SELECT key, count, amount FROM totals ORDER BY key").fetchall() if there else []


def through_redis(folder: Path, server: Redis, seed: int) -> Dance:
    client = redis.Redis.from_url(server.url)

    def put(numbers: Sequence[int]) -> None:
        for n in numbers:
            client.xadd("ins", {"value": payload(n)})

    def rows() -> Sequence[Hashable]:
        found = [json.loads(fields[b"value"]) for _, fields in client.xrange("outs")]
        return [(each["n"], each["count"]) for each in found]

    program = PROGRAM.format(
        source=f'RedisStreamSource("{server.url}", "ins", "danced")',
        sink=f'RedisStreamSink("{server.url}", "outs")',
        more="",
    )
    return Dance(program, folder, put=put, rows=rows, expected=row, server=server, seed=seed)


def into_web(folder: Path, server: WebServer, seed: int) -> Dance:
    idempotent = (server.folder / "idempotent").exists()

    def rows() -> Sequence[Hashable]:
        return [(each["n"], each["count"]) for each in server.rows()]

    program = PROGRAM.format(
        source='files("in/*.ndjson", follow="20ms")',
        sink=f'HttpSink("{server.url}", batch=50, idempotent={idempotent})',
        more="",
    )
    return Dance(program, folder, put=Files(folder).put, rows=rows, expected=row, server=server, seed=seed)


def from_web(folder: Path, server: WebServer, seed: int) -> Dance:
    def put(numbers: Sequence[int]) -> None:
        server.put([json.loads(payload(n)) for n in numbers])

    program = PROGRAM.format(
        source=f'PollSource("{server.origin}/pages", next="link", every="20ms")',
        sink='SqlSink("sqlite:out.db", table="every")',
        more="",
    )
    return Dance(program, folder, put=put, rows=lambda: sqlite_rows(folder), expected=row, server=server, seed=seed)


def from_events(folder: Path, server: WebServer, seed: int) -> Dance:
    def put(numbers: Sequence[int]) -> None:
        server.put([json.loads(payload(n)) for n in numbers])

    program = PROGRAM.format(
        source=f'SseSource("{server.origin}/events", ids="{["given", "consecutive"][seed % 2]}")',
        sink='SqlSink("sqlite:out.db", table="every")',
        more="",
    )
    return Dance(program, folder, put=put, rows=lambda: sqlite_rows(folder), expected=row, server=server, seed=seed)


def from_a_sender(folder: Path, sender: WebSender, seed: int) -> Dance:
    """The server that is killed is the sender, who repeats what was not answered, and what was when he is killed before he notes it."""

    def put(numbers: Sequence[int]) -> None:
        sender.put([payload(n) for n in numbers])

    program = PROGRAM.format(
        source=f'WebhookSource("hooks.db", port={urlsplit(sender.url).port}, path="/in", key="Webhook-Id")',
        sink='SqlSink("sqlite:out.db", table="every")',
        more="",
    )
    return Dance(program, folder, put=put, rows=lambda: sqlite_rows(folder), expected=row, server=sender, seed=seed)


class PostgresKilled:
    """A server of PostgreSQL for a dance."""

    def __init__(self, server: Postgres) -> None:
        self.server = server

    def stop(self) -> None:
        self.server.stop(kill=True)

    def start(self) -> None:
        self.server.start()


def from_postgres(folder: Path, server: Postgres, url: str, seed: int) -> Dance:
    """Two tables: rows that are only added, and rows that change, whose keys change, and that are deleted."""
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

    def rows() -> Sequence[Hashable]:
        """The rows of one output, as many as the other one has too."""
        with contextlib.suppress(psycopg.errors.UndefinedTable), psycopg.connect(url) as connection:
            every = connection.execute("SELECT n, count FROM every").fetchall()
            [(count,)] = connection.execute("SELECT coalesce(sum(count), 0)::int FROM totals").fetchall()
            return every[:count]
        return []

    program = PROGRAM.format(
        source=f'PostgresChanges("{url}", "ins")',
        sink=f'SqlSink("{url}", table="every")',
        more=f"""
stock = app.table(PostgresChanges("{url}", "stock"))
totals = stock.group_by("key").aggregate(count=sabot.count(), amount=sabot.sum("amount"))
totals.upsert("key").to(SqlSink("{url}", table="totals"))
""",
    )
    return Dance(program, folder, put=put, rows=rows, expected=row, server=PostgresKilled(server), seed=seed)


def check(danced: Danced, kills: int) -> None:
    assert (danced.lost, danced.repeated, danced.wrong) == ([], [], [])
    assert danced.app_kills + danced.server_kills >= kills


@pytest.mark.slow  # 22 processes
@pytest.mark.parametrize("dance", [into_duckdb, into_sqlite, through_iceberg, through_delta])
def test_an_app_that_is_killed_again_and_again_loses_and_repeats_no_row(
    dance: Callable[[Path, int], Dance], tmp_path: Path
) -> None:
    check(dance(tmp_path, 53).run(KILLS), KILLS)
    if dance is into_duckdb:
        totals, every = duckdb_rows(
            tmp_path / "out.duckdb",
            "SELECT key, count FROM totals ORDER BY key",
            f"SELECT n % {KEYS}, count(*) FROM every GROUP BY ALL ORDER BY 1",
        )
        assert totals == every
    if dance is through_delta:
        stock = pa.table(deltalake.DeltaTable(tmp_path / "stock").scan().read_all())
        sums = duckdb.sql("SELECT key, count(*), sum(amount)::BIGINT FROM stock GROUP BY key ORDER BY key").fetchall()
        assert totals_of(tmp_path) == sums
        assert stock.num_rows


@pytest.mark.slow  # 22 processes, and as many starts of a server
def test_an_app_and_an_object_store_that_are_killed_again_and_again_lose_and_repeat_no_row(tmp_path: Path) -> None:
    check(into_a_store(tmp_path, seaweed_or_skip(), 53).run(KILLS), KILLS)


@pytest.mark.slow  # 22 processes, and as many starts of a server
def test_an_app_and_a_redis_server_that_are_killed_again_and_again_lose_and_repeat_no_entry(tmp_path: Path) -> None:
    server = server_or_skip(keeps=True)
    try:
        check(through_redis(tmp_path, server, 53).run(KILLS), KILLS)
    finally:
        server.remove()


@pytest.mark.slow  # 22 processes, and as many starts of a server
def test_an_app_and_a_postgres_server_that_are_killed_again_and_again_lose_and_repeat_no_change(tmp_path: Path) -> None:
    server = postgres_or_skip()
    with server.database() as url:
        check(from_postgres(tmp_path, server, url, 53).run(KILLS), KILLS)
        with psycopg.connect(url) as connection:
            totals = connection.execute("SELECT key, count, amount FROM totals ORDER BY key").fetchall()
            own = connection.execute(
                "SELECT key, count(*), sum(amount) FROM stock GROUP BY key ORDER BY key"
            ).fetchall()
    assert totals == own


@pytest.mark.slow  # 22 processes, and as many starts of a server
@pytest.mark.parametrize("idempotent", [True, False])
def test_an_app_and_a_web_server_that_are_killed_again_and_again_lose_no_row(tmp_path: Path, idempotent: bool) -> None:
    """A server that does not look at keys has rows twice, but only those of requests whose keys came twice."""
    server = WebServer(tmp_path / "kept", idempotent=idempotent)
    try:
        danced = into_web(tmp_path, server, 53).run(KILLS)
    finally:
        server.stop()
    assert (danced.lost, danced.wrong) == ([], [])
    if idempotent:
        check(danced, KILLS)
        return
    rows = [(each["n"], each["count"]) for each in server.rows()]
    assert len({*zip(server.keys(), rows, strict=True)}) == len(set(rows)) == danced.rows
    assert len(danced.repeated) == len(rows) - danced.rows


@pytest.mark.slow  # 22 processes, and as many starts of a server
def test_an_app_and_an_api_that_are_killed_again_and_again_lose_and_repeat_no_row(tmp_path: Path) -> None:
    server = WebServer(tmp_path / "kept")
    try:
        check(from_web(tmp_path, server, 53).run(KILLS), KILLS)
    finally:
        server.stop()


@pytest.mark.slow  # 22 processes, and as many starts of a server
def test_an_app_and_a_server_of_events_that_are_killed_again_and_again_lose_and_repeat_no_row(tmp_path: Path) -> None:
    server = WebServer(tmp_path / "kept")
    try:
        check(from_events(tmp_path, server, 53).run(KILLS), KILLS)
    finally:
        server.stop()


@pytest.mark.slow  # 22 processes, and as many starts of a sender
def test_an_app_and_a_sender_that_are_killed_again_and_again_lose_and_repeat_no_request(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    sender = WebSender(tmp_path / "outbox", f"http://127.0.0.1:{port}/in")
    try:
        check(from_a_sender(tmp_path, sender, 53).run(KILLS), KILLS)
    finally:
        sender.stop()
    assert sender.repeated()
