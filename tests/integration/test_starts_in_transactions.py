"""Jobs that begin in the open transaction of a caller: a row of the program and its job are committed together, or neither is."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from sabot.agents import ExecutionRequest, JobClient, JobLimit, RuntimeKernel
from sabot.errors import IdempotencyConflict, TransientError, UserError
from sabot.journal.memory import MemoryStorage
from sabot.journal.postgres import PostgresJournal, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from tools.agent_tools import until
from tools.postgres import server_or_skip

RAN: list[Any] = []
WAITS = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def work(ctx: Any) -> Any:
    RAN.append(ctx.message)
    return ctx.message


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE orders (name text PRIMARY KEY)")
        yield url


@pytest.fixture
def place(database: str) -> str:
    """The address of a journal that workers share, which has none now."""
    RAN.clear()
    url = f"{database}?app=app-{uuid.uuid4().hex}"
    PostgresWorker(url).close()
    return url


def client_of(place: str) -> JobClient:
    return JobClient(place, name=place.rpartition("app=")[2])


def kernel_of(place: str, **options: Any) -> RuntimeKernel:
    return RuntimeKernel.create(agent=work, journal=place, name=place.rpartition("app=")[2], shared=True, **options)


def orders(database: str) -> set[str]:
    with psycopg.connect(database, autocommit=True) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM orders").fetchall()}


async def queued(client: JobClient) -> list[str]:
    return [job.job_id for job in await client.jobs.find()]


@asynccontextmanager
async def opened(database: str, kind: str) -> AsyncIterator[Any]:
    """A connection of either kind, whose rows have a class of the program's own."""
    if kind == "async":
        connection: Any = await psycopg.AsyncConnection.connect(database, row_factory=dict_row)
        try:
            yield connection
        finally:
            await connection.close()
    else:
        with psycopg.connect(database, row_factory=dict_row) as connection:
            yield connection
            connection.rollback()


async def run(connection: Any, what: str, *values: Any) -> Any:
    """Calls a method of a connection of either kind."""
    found = getattr(connection, what)(*values)
    return await found if asyncio.iscoroutine(found) else found


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_job_is_there_with_the_commit_of_its_row_and_goes_with_a_rollback(
    database: str, place: str, kind: str
) -> None:
    client, name = client_of(place), f"order-{uuid.uuid4().hex}"
    async with opened(database, kind) as connection:
        await run(connection, "execute", "INSERT INTO orders VALUES (%s)", (name,))
        lost = await client.start("work", "lost", connection=connection)
        assert lost.created
        assert await queued(client) == []
        await run(connection, "rollback")
        assert (await queued(client), name in orders(database)) == ([], False)
        await run(connection, "execute", "INSERT INTO orders VALUES (%s)", (name,))
        kept = await client.start("work", "kept", idempotency_key="k", priority=3, connection=connection)
        again = await client.start("work", "kept", idempotency_key="k", connection=connection)
        assert (again.job_id, kept.created, again.created) == (kept.job_id, True, False)
        with pytest.raises(IdempotencyConflict, match="key 'k'"):  # and the transaction goes on
            await client.start("work", "another", idempotency_key="k", connection=connection)
        assert (await queued(client), name in orders(database)) == ([], False)
        await run(connection, "commit")
    assert (await queued(client), name in orders(database)) == ([kept.job_id], True)
    async with kernel_of(place):
        assert (await kept.result()).output == "kept"
        with pytest.raises(UserError, match="there is none of this name"):
            await lost.result()
    async with opened(database, kind) as connection:
        ended = await client.start("work", "kept", idempotency_key="k", connection=connection)
        assert (ended.created, (await ended.result()).output) == (False, "kept")
        with pytest.raises(IdempotencyConflict):
            await client.start("work", "another", idempotency_key="k", connection=connection)
    assert RAN == ["kept"]


async def test_an_open_transaction_of_a_caller_holds_up_no_other_letter_and_no_worker(
    database: str, place: str
) -> None:
    """Neither starts, nor answers, nor cancels, nor the takes of workers; also if it stays open for longer than a lease."""

    async def asks(ctx: Any) -> Any:
        return (await ctx.ask("confirm", {})).resolution

    client, name = client_of(place), place.rpartition("app=")[2]
    kernel = RuntimeKernel.create(agent=[work, asks], journal=place, name=name, shared=True)
    async with kernel, opened(database, "async") as connection:
        asking, cancelled = await client.start("asks", 1), await client.start("asks", 2)
        await until(lambda: kernel.statistics()["parked"] == 2)
        await client.start("work", "mine", idempotency_key="k", connection=connection)
        other = await client.start("work", "other")
        assert (await other.result()).output == "other"
        (question,) = await asking.get_pending_actions()
        await asking.resolve_action(question.resume_token, {"approved": True})
        assert (await asking.result()).output == {"approved": True}
        await cancelled.cancel("not needed")
        await until(lambda: not kernel.statistics()["parked"])
        assert RAN == ["other"]
        await connection.commit()
        await until(lambda: RAN == ["other", "mine"])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_start_that_waits_for_an_open_transaction_ends_no_lease_and_begins_the_job_once(
    database: str, place: str, ends: str
) -> None:
    limits = [JobLimit("work", concurrency=5)]  # so `execute` of the kernel begins jobs by its own inbox
    async with kernel_of(place, limits=limits) as kernel, opened(database, "async") as connection:
        client = client_of(place)
        first = await client.start("work", "k", idempotency_key="k", connection=connection)
        starts: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.start("work", "k", idempotency_key="k")),
            asyncio.create_task(kernel.execute(ExecutionRequest(prompt="k", agent="work", idempotency_key="k"))),
        ]
        with psycopg.connect(database, autocommit=True) as watching:
            await until(lambda: len(watching.execute(WAITS).fetchall()) >= 2)
        for number in range(3):  # the worker goes on
            handle = await client.start("work", number)
            assert (await handle.result()).output == number
        assert not any(each.done() for each in starts)
        await getattr(connection, ends)()
        handles = await asyncio.gather(*starts)
        assert {each.job_id for each in handles} == {first.job_id}
        assert [(await each.result()).output for each in handles] == ["k", "k"]
    assert RAN == [0, 1, 2, "k"]


async def test_transactions_that_begin_the_same_jobs_wait_one_for_the_other(place: str) -> None:
    """In whatever order each names them: otherwise the server would end one of two that wait each for the other."""
    client, keys = client_of(place), [str(number) for number in range(50)]

    def requests(order: list[str]) -> list[ExecutionRequest]:
        return [ExecutionRequest(prompt=key, agent="work", idempotency_key=key) for key in order]

    found = await asyncio.gather(*(client.start_all(requests(keys[::step])) for step in (1, -1) * 4))
    assert all(len({each.job_id for each in handles}) == 50 for handles in found)
    assert sum(each.created for handles in found for each in handles) == 50
    assert len(await queued(client)) == 50


async def test_jobs_of_one_list_are_queued_in_its_order(place: str) -> None:
    client = client_of(place)
    asked = [ExecutionRequest(prompt=n, agent="work", idempotency_key=str(n) if n % 3 else None) for n in range(900)]
    handles = await client.start_all([*asked, asked[1]])
    assert [each.created for each in handles] == [True] * 900 + [False]
    assert handles[900].job_id == handles[1].job_id
    with closing(PostgresReader(place)) as reader:
        assert [letter.job for letter in reader.letters()] == [each.job_id for each in handles[:900]]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_connection_without_a_transaction_is_refused(database: str, place: str, kind: str) -> None:
    client = client_of(place)
    async with opened(database, kind) as connection:
        await run(connection, "set_autocommit", True)
        with pytest.raises(UserError, match="commits each statement by itself"):
            await client.start("work", 1, connection=connection)
        await run(connection, "set_autocommit", False)
        with pytest.raises(psycopg.Error):
            await run(connection, "execute", "SELECT 1 / 0")
        with pytest.raises(UserError, match="its transaction has failed"):
            await client.start("work", 1, connection=connection)
        await run(connection, "rollback")
    with pytest.raises(TransientError):  # it is closed
        await client.start("work", 1, connection=connection)
    assert await queued(client) == []


async def test_a_start_gives_up_after_its_lock_timeout_behind_an_open_transaction_and_may_be_repeated(
    database: str, place: str
) -> None:
    """It is 30 s, and here less, by the address."""
    client, other = (
        client_of(place),
        client_of(f"{database}?options=-c%20lock_timeout%3D50ms&{place.partition('?')[2]}"),
    )
    async with opened(database, "async") as connection:
        first = await client.start("work", "k", idempotency_key="k", connection=connection)
        with pytest.raises(TransientError):
            await other.start("work", "k", idempotency_key="k")
        await connection.commit()
    again = await other.start("work", "k", idempotency_key="k")
    assert (again.job_id, again.created) == (first.job_id, False)


async def test_a_start_within_a_transaction_that_cannot_be_says_why(database: str, place: str, tmp_path: Path) -> None:
    async with opened(database, "async") as connection:
        for wrong in (database, object(), 5):
            with pytest.raises(UserError, match="no connection of psycopg"):
                await client_of(place).start("work", 1, connection=wrong)
        owned = f"{database}?app=one-{uuid.uuid4().hex}"
        PostgresJournal(owned).close()
        with pytest.raises(UserError, match=r"has one owner(.|\n)*shared=True"):
            await client_of(owned).start("work", 1, connection=connection)
        with pytest.raises(UserError, match="does not have the journal"):
            await client_of(f"{database}?app=none").start("work", 1, connection=connection)
        for elsewhere in (tmp_path, MemoryStorage()):
            with pytest.raises(UserError, match="connection= is for a journal in PostgreSQL"):
                await JobClient(elsewhere).start("work", 1, connection=connection)
        kept = await client_of(place).start("work", 1, connection=connection)  # none of these has ended the transaction
        await connection.commit()
    assert await queued(client_of(place)) == [kept.job_id]
