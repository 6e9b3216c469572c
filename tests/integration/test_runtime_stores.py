"""The stores of the runtime in PostgreSQL and Redis: the tables are as documented, and servers that are missing are told of (rows 1.24 to
1.28, 2.19)."""

import asyncio
import contextlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from sabot.agents import Ledger, LedgerEvent, PostgresLedgerWriter
from sabot.agents.accounts.gate import brought_up
from sabot.errors import SabotError, TransientError, UserError
from sabot.journal import MemoryJournal
from tools.broker import free_ports
from tools.postgres import Postgres, server_or_skip


@pytest.fixture
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        yield url


def run(url: str, statement: str) -> "list[tuple[Any, ...]]":
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


def columns(url: str, table: str) -> dict[str, str]:
    found = run(
        url,
        "SELECT column_name, data_type FROM information_schema.columns "
        f"WHERE table_name = '{table}' AND table_schema = 'public' ORDER BY ordinal_position",
    )
    return dict(found)


def keys(url: str, table: str) -> set[tuple[str, str]]:
    found = run(
        url,
        "SELECT c.constraint_type, k.column_name FROM information_schema.table_constraints c JOIN "
        "information_schema.key_column_usage k USING (constraint_schema, constraint_name) "
        f"WHERE c.table_name = '{table}' AND c.constraint_type IN ('PRIMARY KEY', 'UNIQUE')",
    )
    return set(found)


def row(event_id: str, **fields: Any) -> LedgerEvent:
    return LedgerEvent(
        event_id=event_id, **{"type": "model", "scope_id": "tenant", "at_ms": 1_774_958_400_123, **fields}
    )


# -- the ledger ------------------------------------------------------------------------------------------------------------


async def test_the_table_of_the_ledger_is_as_documented(database: str) -> None:
    writer = PostgresLedgerWriter(database)
    await writer.write(
        [row("1", job_id="j", principal_id="ann", input_tokens=7, output_tokens=2, cost=Decimal("0.10"))]
    )
    await writer.close()
    time = "timestamp with time zone"
    words = dict.fromkeys(["event_id", "type", "job_id", "scope_id", "principal_id"], "text")
    counts = dict.fromkeys(["input_tokens", "output_tokens", "total_tokens"], "integer")
    ours = {"name": "text", "reserved_tokens": "integer"}
    assert columns(database, "runtime_ledger") == words | counts | ours | {"cost": "numeric", "timestamp": time}
    assert keys(database, "runtime_ledger") == {("PRIMARY KEY", "event_id")}
    ((tokens, cost, at),) = run(database, "SELECT total_tokens, cost, timestamp AT TIME ZONE 'UTC' FROM runtime_ledger")
    assert (tokens, str(cost), str(at)) == (9, "0.10", "2026-03-31 12:00:00.123000")


async def test_writers_that_begin_side_by_side_make_one_table_and_each_row_once(database: str) -> None:
    writers = [PostgresLedgerWriter(database) for _ in range(4)]
    rows = [row(str(number), input_tokens=1) for number in range(300)]
    await asyncio.gather(*(each.write(rows[::step]) for each, step in zip(writers, (1, -1, 1, -1), strict=True)))
    assert (await writers[0].used("tenant", 0)).tokens == 300
    assert (await writers[1].used("tenant", 1_774_958_400_124)).tokens == 0
    for each in writers:
        await each.close()


async def test_a_user_who_may_only_write_is_given_the_table(database: str) -> None:
    maker = PostgresLedgerWriter(database)
    await maker.write([])
    await maker.close()
    with contextlib.suppress(psycopg.errors.DuplicateObject):
        run(database, "CREATE ROLE scribe LOGIN")
    run(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    run(database, "GRANT SELECT, INSERT ON runtime_ledger TO scribe")
    scribe = PostgresLedgerWriter(database.replace("sabot@", "scribe@"))
    await scribe.write([row("1", input_tokens=5)])
    assert (await scribe.used("tenant", 0)).tokens == 5
    run(database, "DROP TABLE runtime_ledger")
    with pytest.raises(UserError, match="ledger"):
        await scribe.used("tenant", 0)
    await scribe.close()


@pytest.mark.slow  # a server of its own is made, stopped and started
async def test_rows_wait_for_a_server_that_is_away() -> None:
    server_or_skip()
    server = Postgres()
    try:
        ledger = Ledger(PostgresLedgerWriter(server.url))
        ledger.record(row("1", input_tokens=5))
        await ledger.flush()
        server.stop(kill=True)
        ledger.record(row("2", input_tokens=5))
        with pytest.raises(TransientError):
            await ledger.flush()
        server.start()
        await ledger.flush()
        assert (await ledger.writer.used("tenant", 0)).tokens == 10
        await ledger.close()
    finally:
        server.remove()


# -- what is missing -------------------------------------------------------------------------------------------------------


async def test_a_missing_server_is_told_of_at_the_start() -> None:
    (port,) = free_ports(1)
    ledger = Ledger(PostgresLedgerWriter(f"postgresql://u:s3cret@127.0.0.1:{port}/none"))
    with pytest.raises(SabotError, match=f"PostgreSQL at 127.0.0.1:{port}/none") as refused:
        await brought_up(ledger, MemoryJournal())
    assert "s3cret" not in str(refused.value)


def test_a_pool_is_no_address() -> None:
    with pytest.raises(UserError, match=r"PostgresLedgerWriter: .* is no address"):
        PostgresLedgerWriter(object())  # type: ignore[arg-type]
