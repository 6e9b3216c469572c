"""The stores of the runtime in PostgreSQL and Redis: the tables are as documented, and servers that are missing are told of (rows 1.24 to
1.28, 2.19)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    BudgetSpec,
    ExecutionRequest,
    IllegalTransition,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    Ledger,
    LedgerEvent,
    LetterRefused,
    PolicyRef,
    PostgresJobStore,
    PostgresJobViews,
    PostgresLedgerWriter,
    RuntimeKernel,
    RunVersions,
)
from sabot.agents.accounts.journal_rows import update_ledger
from sabot.clock import ManualClock
from sabot.errors import BrokerUnavailable, DataError, SabotError, TransientError, UserError
from sabot.journal.entries import Begin, End, Entry, Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.opening import open_reader
from tools.agent_tools import until
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


@pytest.mark.slow  # a second of a core, or more
async def test_the_table_of_the_ledger_is_as_documented(database: str) -> None:
    writer = PostgresLedgerWriter(database)
    await writer.write(
        [row("1", job_id="j", principal_id="ann", input_tokens=7, output_tokens=2, cost=Decimal("0.10"))]
    )
    await writer.close()
    time = "timestamp with time zone"
    words = dict.fromkeys(["event_id", "type", "job_id", "scope_id", "principal_id"], "text")
    counts = dict.fromkeys(["input_tokens", "output_tokens", "total_tokens"], "bigint")
    ours = {"name": "text", "reserved_tokens": "bigint"}
    assert columns(database, "runtime_ledger") == words | counts | ours | {"cost": "numeric", "timestamp": time}
    assert keys(database, "runtime_ledger") == {("PRIMARY KEY", "event_id")}
    ((tokens, cost, at),) = run(database, "SELECT total_tokens, cost, timestamp AT TIME ZONE 'UTC' FROM runtime_ledger")
    assert (tokens, str(cost), str(at)) == (9, "0.10", "2026-03-31 12:00:00.123000")


def narrow(database: str) -> None:
    """The table as it was made before."""
    for column in ("input_tokens", "output_tokens", "total_tokens", "reserved_tokens"):
        run(database, f"ALTER TABLE runtime_ledger ALTER COLUMN {column} TYPE INTEGER")


async def test_the_table_of_an_earlier_version_is_altered_and_where_it_cannot_be_its_rows_go_on(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    big = row("big", input_tokens=3 * 10**9)
    maker = PostgresLedgerWriter(database)
    await maker.write([row("1", input_tokens=7)])
    await maker.close()
    narrow(database)
    maker = PostgresLedgerWriter(database)
    await maker.write([big])
    assert columns(database, "runtime_ledger")["total_tokens"] == "bigint"
    assert (await maker.used("tenant", 0)).tokens == 3 * 10**9 + 7
    await maker.close()
    run(database, "DELETE FROM runtime_ledger")
    narrow(database)
    run(database, "CREATE VIEW spent AS SELECT sum(total_tokens) FROM runtime_ledger")
    maker = PostgresLedgerWriter(database)
    await maker.write([row("1", input_tokens=7)])
    assert "runtime_ledger.total_tokens stays INTEGER" in caplog.text
    kept = {name: kind for name, kind in columns(database, "runtime_ledger").items() if name.endswith("tokens")}
    assert kept == {each: "integer" if each == "total_tokens" else "bigint" for each in kept}
    with pytest.raises(DataError, match="out of range"):
        await maker.write([big])
    await maker.close()


@pytest.mark.slow  # half a second of a core
async def test_the_address_says_whose_journal_it_is_and_its_jobs_end_in_the_store_with_their_results(
    database: str,
) -> None:
    async def echo(ctx: Any) -> Any:
        return ctx.message

    store = PostgresJobStore(f"{database}?app=first")
    async with RuntimeKernel.create(agent=echo, name="zed", job_store=store) as kernel:
        for number in range(5):
            handle = await kernel.execute(ExecutionRequest(prompt=number))
            await handle.result()
            assert (await store.get(handle.job_id)).status is JobStatus.SUCCEEDED
    await store.close()
    for app, jobs in (("first", 5), ("other", 0)):
        async with RuntimeKernel.create(agent=echo, name="zed", journal=f"{database}?app={app}") as kernel:
            assert len(await kernel.jobs.find()) == jobs
    found = run(database, "SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE 'sabot_%'")
    assert sorted(found) == [("sabot_first",), ("sabot_other",)]


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
    run(database, "GRANT SELECT, INSERT, UPDATE ON runtime_ledger TO scribe")
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


# -- jobs and actions ------------------------------------------------------------------------------------------------------

SPEC = JobSpec(
    scope_id="tenant",
    principal_id="ann",
    idempotency_key="k",
    budgets=BudgetSpec(max_cost=10.0),  # type: ignore[arg-type]
    policy_ref=PolicyRef("production"),
    metadata={"n": [1]},
    tags={"a": "b\0c"},
    deadline=5000.0,
)
JOBS = "SELECT job_id, status, scope_id, principal_id, progress, deadline, metadata, tags, policy_ref FROM runtime_jobs ORDER BY job_id"
ALL = ["SELECT * FROM runtime_jobs ORDER BY job_id", "SELECT * FROM runtime_actions ORDER BY action_id"]


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[PostgresJobStore, JobManager, ActionManager]]:
    store = PostgresJobStore(url, clock=ManualClock(1000.0))
    try:
        yield store, JobManager(store), ActionManager(store)
    finally:
        await store.close()


async def test_the_tables_of_jobs_and_actions_are_as_documented(database: str) -> None:
    views = PostgresJobViews(database)
    assert await views.refresh(MemoryJournal()) == 0
    await views.close()
    time = "timestamp with time zone"
    assert columns(database, "runtime_jobs") == {
        **dict.fromkeys(["job_id", "scope_id", "principal_id", "session_id", "run_id", "status"], "text"),
        **dict.fromkeys(["created_at", "updated_at", "started_at", "completed_at"], time),
        **dict.fromkeys(["deadline", "progress"], "double precision"),
        **dict.fromkeys(["budgets", "policy_ref", "versions", "metadata", "tags"], "jsonb"),
    }
    assert columns(database, "runtime_actions") == {
        **dict.fromkeys(["action_id", "job_id", "type", "status"], "text"),
        **dict.fromkeys(["payload", "resolution"], "jsonb"),
        "resume_token": "text",
        **dict.fromkeys(["created_at", "expires_at", "resolved_at"], time),
    }
    assert keys(database, "runtime_jobs") == {("PRIMARY KEY", "job_id")}
    assert keys(database, "runtime_actions") == {("PRIMARY KEY", "action_id"), ("UNIQUE", "resume_token")}


async def test_a_store_in_postgres_keeps_jobs_and_shows_them(database: str) -> None:
    async with opened(database) as (store, jobs, actions):
        job = await jobs.create(SPEC)
        assert run(database, JOBS)[0][1] == "queued"
        await jobs.start(job.job_id)
        action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"sum": 7}, timeout_seconds=1e17))
        assert run(database, JOBS)[0][1] == "waiting_action"
        asked = run(
            database, "SELECT action_id, job_id, type, status, payload, resolution, resume_token FROM runtime_actions"
        )
        assert asked == [(action.action_id, job.job_id, "confirm", "pending", {"sum": 7}, None, action.resume_token)]
        await actions.resolve(action.resume_token, {"approved": True}, by="bob")
        assert (await jobs.complete(job.job_id, "s3://result")).status is JobStatus.SUCCEEDED
        found = run(database, JOBS)
        told = {"n": [1], "sabot": {"idempotency_key": "k", "result_ref": "s3://result"}}
        tags = {"a": "b\N{REPLACEMENT CHARACTER}c"}
        assert found == [
            (job.job_id, "succeeded", "tenant", "ann", 1.0, 5000.0, told, tags, {"name": "production", "version": ""})
        ]
        assert run(database, "SELECT status, resolution FROM runtime_actions") == [("resolved", {"approved": True})]
        other = await jobs.create(JobSpec(scope_id="other"))
        await jobs.start(other.job_id)
        await jobs.fail(other.job_id, "no disk")
        before = [run(database, each) for each in ALL]
        run(database, "DROP TABLE runtime_jobs")
        run(database, "DELETE FROM runtime_actions")
        assert await store.rebuild() == 2
        assert [run(database, each) for each in ALL] == before
    async with opened(database) as (store, jobs, actions):  # as after a crash: all is read from the journal
        assert (await jobs.create(SPEC)).job_id == job.job_id
        with pytest.raises(IllegalTransition):
            await jobs.start(job.job_id)
        with pytest.raises(LetterRefused):
            await actions.resolve(action.resume_token, {"approved": False})


async def test_who_has_read_less_of_the_journal_does_not_win(database: str) -> None:
    home = MemoryStorage(ManualClock(1000.0))
    journal, slow, fast = (
        MemoryJournal(home, clock=ManualClock(1000.0)),
        PostgresJobViews(database),
        PostgresJobViews(database),
    )
    store = JournalStore(journal)
    jobs = JobManager(store)
    job = await jobs.create(SPEC)

    class Early(MemoryReader):
        """Reads what stood there when it was made."""

        def __init__(self) -> None:
            super().__init__(home)
            self._seen = list(super().read())

        def read(self, *_: Any, **__: Any) -> Any:
            return iter(self._seen)

    early = Early()
    await jobs.start(job.job_id)
    await jobs.complete(job.job_id)
    assert await fast.refresh(journal) == 1
    assert await slow.refresh(early) == 0
    assert run(database, "SELECT status FROM runtime_jobs") == [("succeeded",)]
    run(database, "UPDATE runtime_jobs SET status = 'queued'")
    await jobs.create(JobSpec(scope_id="another"))
    assert await fast.refresh(journal) == 1, "only what is new"
    assert await fast.rebuild(journal) == 2
    assert sorted(run(database, "SELECT status FROM runtime_jobs")) == [("queued",), ("succeeded",)]
    for each in (slow, fast):
        await each.close()


async def test_jobs_of_agents_are_shown_as_they_go_on_and_run_again(database: str) -> None:
    journal, views = MemoryJournal(), PostgresJobViews(database)
    look = "SELECT status, scope_id, metadata, extract(epoch FROM created_at)::int FROM runtime_jobs"

    async def shown(*entries: Entry) -> list[tuple[Any, ...]]:
        for entry in entries:
            journal.append(entry)
        await journal.flush()
        await views.refresh(journal)
        return run(database, look)

    begin = Begin("refunds/1", 1000, agent="refund", scope="tenant")
    assert await shown(begin) == [("running", "tenant", {"sabot": {"agent": "refund"}}, 1)]
    question = Intent("refunds/1", 2000, 1, "ask", "confirm", b"d", "", b"{}", "token")
    assert (await shown(question))[0][0] == "waiting_action"
    ended = await shown(End("refunds/1", 3000, "failed", "no money"))
    assert ended == [("failed", "tenant", {"sabot": {"agent": "refund", "error": "no money"}}, 1)]
    assert run(database, "SELECT action_id, status FROM runtime_actions") == [("refunds/1/1", "cancelled")]
    assert await shown(msgspec.structs.replace(begin, at_ms=9000)) == [
        ("running", "tenant", {"sabot": {"agent": "refund"}}, 1)
    ]
    assert await views.refresh(journal) == 0
    await views.close()


async def test_journals_share_the_tables_and_each_is_made_anew_alone(database: str) -> None:
    views, made = PostgresJobViews(database), []
    for scope in ("one", "two"):
        store = JournalStore(MemoryJournal())
        await JobManager(store).create(JobSpec(scope_id=scope))
        await views.refresh(store.journal)
        made.append(store)
    run(database, "UPDATE runtime_jobs SET status = 'lost'")
    assert await views.rebuild(made[0].journal) == 1
    assert sorted(run(database, "SELECT scope_id, status FROM runtime_jobs")) == [("one", "queued"), ("two", "lost")]
    await views.close()


@pytest.mark.slow  # half a second of a core
async def test_a_job_of_a_kernel_does_not_wait_for_its_tables(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresJobStore(database)
    async with RuntimeKernel(None, asks, job_store=store, journal=tmp_path) as kernel:
        sound, store.views = store.views, PostgresJobViews(f"postgresql://u@127.0.0.1:{free_ports(1)[0]}/none")
        first, second = [await kernel.execute(ExecutionRequest(prompt=each)) for each in (1, 2)]
        await first.cancel()
        await until(lambda: first.done)
        await until(lambda: "the tables of jobs are behind" in caplog.text)  # in a thread of its own, maybe later
        assert caplog.text.count("the tables of jobs are behind") == 1
        store.views = sound
        await second.cancel()
        await until(lambda: second.done)
    assert run(database, "SELECT status FROM runtime_jobs") == [("cancelled",)] * 2
    await store.close()


# -- what is missing -------------------------------------------------------------------------------------------------------


async def test_a_missing_server_is_told_of_at_the_start() -> None:
    (port,) = free_ports(1)
    ledger = Ledger(PostgresLedgerWriter(f"postgresql://u:s3cret@127.0.0.1:{port}/none"))
    with pytest.raises(SabotError, match=f"PostgreSQL at 127.0.0.1:{port}/none") as refused:
        await update_ledger(ledger, MemoryJournal())
    assert "s3cret" not in str(refused.value)


async def test_a_store_whose_server_is_missing_says_so_when_its_tables_are_made() -> None:
    url = f"postgresql://u:s3cret@127.0.0.1:{free_ports(1)[0]}/none"
    with pytest.raises(BrokerUnavailable, match="PostgreSQL at 127") as refused:
        await PostgresJobStore(url).create_tables()
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("made", [PostgresLedgerWriter, PostgresJobStore, PostgresJobViews])
def test_what_is_neither_a_pool_nor_an_address_is_refused(made: Any) -> None:
    with pytest.raises(UserError, match=rf"{made.__name__}: .* is no address .*a pool of asyncpg"):
        made(object())


# -- beside a kernel ---------------------------------------------------------------------------------------------------------


async def asks(ctx: Any) -> Any:
    return (await ctx.ask("confirm", {"what": ctx.message})).approved


async def test_a_kernel_over_the_journal_of_its_store_is_shown_in_the_tables(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    def shown(what: str) -> list[Any]:
        return [each for (each,) in run(database, f"SELECT {what}")]

    store = PostgresJobStore(database)
    async with RuntimeKernel(None, asks, job_store=store, action_store=store) as kernel:
        said: Any = {
            "session_id": "c-1",
            "run_id": "r-1",
            "budgets": BudgetSpec(max_tokens=9),
            "metadata": {"ticket": 7},
        }
        said |= {"idempotency_key": "k", "versions": RunVersions(model_version="m-1")}
        handles = [await kernel.execute(ExecutionRequest(prompt=1, scope_id="a", **said))]
        await until(lambda: shown("status FROM runtime_jobs") == ["waiting_action"])
        columns = "session_id, run_id, budgets->>'max_tokens', versions->>'model_version', metadata->>'ticket'"
        row = run(database, f"SELECT {columns}, metadata->'sabot'->>'idempotency_key' FROM runtime_jobs")
        assert row == [("c-1", "r-1", "9", "m-1", "7", "k")], "as those of a JobManager"
        handles.append(await kernel.execute(ExecutionRequest(prompt=1, scope_id="a")))
        await until(lambda: shown("status FROM runtime_jobs") == ["waiting_action"] * 2)
        [action] = await ActionManager(store).find(job_id=handles[0].job_id)
        assert shown("resume_token FROM runtime_actions WHERE job_id = '" + handles[0].job_id + "'") == [
            action.resume_token
        ]
        await ActionManager(store).resolve(action.resume_token, {"approved": True})
        assert (await handles[0].result()).output is True
        await until(lambda: "succeeded" in shown("status FROM runtime_jobs"))
        assert (await JobManager(store).get(handles[1].job_id)).status == "waiting_action"
    await store.close()
    one, two = sorted(each.job_id for each in handles)
    run(database, f"UPDATE runtime_jobs SET status = 'failed' WHERE job_id = '{one}'")
    run(database, f"UPDATE runtime_sequence SET sequence = sequence + 1000 WHERE job_id = '{two}'")
    store = PostgresJobStore(database)
    async with RuntimeKernel(None, asks, job_store=store) as kernel:
        await kernel.start()
        assert sorted(shown("status FROM runtime_jobs")) == ["succeeded", "waiting_action"]
        said = [each.getMessage() for each in caplog.records if "the journal holds" in each.getMessage()]
        assert len(said) == 1
        assert f"the tables are wrong about 2 jobs, {one} among them" in said[0]
    with contextlib.closing(open_reader(database, app="kernel")) as journal:
        assert await store.views.wrong(journal) == []
    await store.close()


async def test_a_kernel_with_another_journal_is_shown_in_the_tables_while_the_server_is_there(
    database: str, tmp_path: Path
) -> None:
    store = PostgresJobStore(database)
    kernel = RuntimeKernel.create(agent=asks, action_store=store, journal=tmp_path)
    async with kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        found = "SELECT job_id FROM runtime_jobs WHERE status = 'waiting_action'"
        await until(lambda: run(database, found) == [(handle.job_id,)])
        await handle.cancel("enough")
        await until(lambda: handle.done)
    assert run(database, "SELECT status FROM runtime_jobs") == [("cancelled",)]
    assert run(database, "SELECT status FROM runtime_actions") == [("cancelled",)]
    await store.close()
