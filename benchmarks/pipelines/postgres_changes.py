"""Rows and changes of a table of PostgreSQL, beside psycopg alone.

    python benchmarks/pipelines/postgres_changes.py --rows 300000 --rounds 3

    client-changes   the client alone: START_REPLICATION, and a list of the messages
    changes          the same changes by `PostgresChanges`, as columns
    client-rows      the client alone: COPY (FORMAT binary) of the whole table, and a list of the messages
    rows             the same rows by `PostgresChanges` with until="now", as columns
    app              an app: app.table of a table into which as many rows are added meanwhile, counts and sums by account

The table has an id, a text of 8 characters, a numeric(12,2) and a timestamptz; the changes are insertions in transactions of 1,000 rows.
The server is one of its own, on a port of loopback. Processor time is that of this process, without the server. The sums of ids and
amounts must be those that the server answers. The ways take turns; of each the round with the least processor time is printed, with its
rows per second of processor time, and its rate beside the client's.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from sabot import App, count
from sabot import sum as total
from sabot.connectors.places import Bound
from sabot.connectors.postgres import PostgresChanges
from sabot.testing import ListSink

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tools.postgres import Postgres

AT_ONCE = 10_000
ROWS_A_TRANSACTION = 1_000
TABLE = "CREATE TABLE orders (id bigint PRIMARY KEY, account varchar(8), amount numeric(12,2), at timestamptz)"
MADE = (
    "SELECT n, 'a' || lpad((n % 1000)::text, 7, '0'), n % 9973 + 0.25, '2024-01-01'::timestamptz + n * interval '1 s'"
)
START = b"START_REPLICATION SLOT client LOGICAL 0/0 (proto_version '1', binary 'true', publication_names 'client')"


class Table:
    """The table and its server. `place`: the position and the memory of a source from before the first row."""

    def __init__(self, server: Postgres, rows: int) -> None:
        self.url, self.rows = server.url, rows
        with server.connect() as sql:
            sql.execute(TABLE)
            sql.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
            sql.execute("CREATE PUBLICATION client FOR TABLE orders")
            sql.execute("SELECT pg_create_logical_replication_slot('client', 'pgoutput')")
            source = self.source()
            source.open(None, "latest")
            self.place = source.positions(), source.remember()
            source.close()
            for first in range(0, rows, ROWS_A_TRANSACTION):
                last = min(first + ROWS_A_TRANSACTION, rows) - 1
                sql.execute(f"INSERT INTO orders {MADE} FROM generate_series({first}, {last}) n")
            (self.sums,) = sql.execute("SELECT sum(id), sum(amount) FROM orders").fetchall()

    def source(self) -> PostgresChanges:
        source = PostgresChanges(self.url, "orders")
        source.app = "bench"
        source.scan(None, None)
        return source

    def is_whole(self, batches: list[pa.RecordBatch]) -> bool:
        found = pa.Table.from_batches(batches)
        sums = pc.sum(found["id"]).as_py(), pc.sum(found["amount"]).as_py()
        return (found.num_rows, sums) == (self.rows, self.sums)


def client_changes(table: Table) -> bool:
    with closing(psycopg.connect(table.url, autocommit=True, replication="database")) as connection:
        pgconn = connection.pgconn
        pgconn.send_query(START)
        assert pgconn.get_result().status == psycopg.pq.ExecStatus.COPY_BOTH
        messages, found = [], 0
        while found < table.rows:
            _, data = pgconn.get_copy_data(0)
            message = bytes(data)
            if message[:1] == b"w":
                messages.append(message)
                found += message[25:26] == b"I"
        return found == table.rows


def read(table: Table, source: PostgresChanges) -> bool:
    batches, found = [], 0
    while found < table.rows:
        batch = source.read_batch(AT_ONCE, 10.0)
        if batch is not None:
            batches.append(batch.data)
            found += batch.data.num_rows
    source.close()
    return table.is_whole(batches)


def changes(table: Table) -> bool:
    source = table.source()
    positions, memory = table.place
    source.recall(memory)
    source.open(positions)
    return read(table, source)


def client_rows(table: Table) -> bool:
    with (
        psycopg.connect(table.url) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY orders TO STDOUT (FORMAT binary)") as copy,
    ):
        messages = [bytes(data) for data in copy]
    return len(messages) == table.rows + 1  # the end is one


def rows(table: Table) -> bool:
    source = table.source()
    source.end_at(Bound("now"))
    source.open(None)
    return read(table, source)


def app(table: Table) -> bool:
    return asyncio.run(counted(table))


async def counted(table: Table) -> bool:
    with psycopg.connect(table.url, autocommit=True) as sql, tempfile.TemporaryDirectory() as folder:
        sql.execute("DROP TABLE IF EXISTS added")
        sql.execute(TABLE.replace("orders", "added"))
        sql.execute("ALTER TABLE added REPLICA IDENTITY FULL")
        made, sink = App("bench", state=f"{folder}/state"), ListSink()
        added = made.table(PostgresChanges(table.url, "added"))
        added.group_by("account").aggregate(n=count(), amount=total("amount")).upsert("account").to(sink)
        await made.start()
        for first in range(0, table.rows, 20 * ROWS_A_TRANSACTION):
            last = min(first + 20 * ROWS_A_TRANSACTION, table.rows) - 1
            sql.execute(f"INSERT INTO added {MADE} FROM generate_series({first}, {last}) n")
        while rows_in(made) < table.rows:  # noqa: ASYNC110 - an app has no event for it
            await asyncio.sleep(0.05)
        while sum(row[1] for row in sums(sink)) < table.rows:  # noqa: ASYNC110 - nor has a sink
            await asyncio.sleep(0.05)
        await made.stop()
        wanted = sql.execute(
            "SELECT account, count(*), sum(amount) FROM added GROUP BY account ORDER BY account"
        ).fetchall()
        sql.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE '%added%'"
        )
        return sums(sink) == wanted


def rows_in(made: App) -> int:
    return sum(
        task["input"]["rows_in"] for task in made.statistics()["streams"].values() if "rows_in" in task.get("input", {})
    )


def sums(sink: ListSink) -> list[tuple[Any, ...]]:
    """Returns the newest row of each account. `ListSink.current` makes a dict of each change, which took ten times as long as the app."""
    if not sink.batches:
        return []
    rows = sink.table().select(["account", "n", "amount"])
    places = (
        rows.append_column("place", pa.array(range(rows.num_rows))).group_by("account").aggregate([("place", "max")])
    )
    return sorted(tuple(row.values()) for row in rows.take(places["place_max"]).to_pylist())


WAYS: dict[str, Callable[[Table], bool]] = {
    "client-changes": client_changes,
    "changes": changes,
    "client-rows": client_rows,
    "rows": rows,
    "app": app,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    best: dict[str, tuple[float, float]] = {}
    server = Postgres("wal_level=logical")
    try:
        table = Table(server, options.rows)
        for _ in range(options.rounds):
            for way, run in WAYS.items():
                began, cpu = time.perf_counter(), time.process_time()
                whole = run(table)
                figures = time.process_time() - cpu, time.perf_counter() - began
                if not whole:
                    sys.exit(f"{way}: the rows are not those of the server")
                best[way] = min(best.get(way, figures), figures)
    finally:
        server.remove()
    for way, (cpu, seconds) in best.items():
        client = best["client-rows" if way in ("client-rows", "rows") else "client-changes"]
        beside = {"beside_client": round(client[0] / cpu, 2)}
        figures_of = {"rows": options.rows, "cpu_seconds": round(cpu, 3), "seconds": round(seconds, 3)}
        print(json.dumps({"way": way, **figures_of, "rows_per_cpu_second": round(options.rows / cpu), **beside}))


if __name__ == "__main__":
    main()
