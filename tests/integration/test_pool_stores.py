"""The stores of document 001 over a pool of asyncpg: side by side over one database, in several processes, beside a kernel and without one.

The first test types the code of the document's section "With Persistent Storage".
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    ActionStatus,
    ExecutionRequest,
    IdempotencyConflict,
    IllegalTransition,
    JobManager,
    JobSpec,
    JobStatus,
    LetterRefused,
    PostgresActionStore,
    PostgresJobStore,
    PostgresLedgerWriter,
    RuntimeKernel,
)
from sabot.agents.jobs import TRANSITIONS
from sabot.clock import ManualClock
from sabot.connectors.sql.server import address_of
from sabot.errors import TransientError, UserError
from sabot.llm import Agent, Completion, ExecutionEngine, Price, PriceTable, ScriptedProvider, Usage, assistant
from tools.agent_tools import until
from tools.postgres import server_or_skip

asyncpg = pytest.importorskip("asyncpg")  # of the extra `test`; Sabot itself does not import it


@pytest.fixture
async def pool() -> AsyncIterator[Any]:
    with server_or_skip().database() as url:
        async with asyncpg.create_pool(url, min_size=1, max_size=2) as made:
            yield made


def clerk() -> Agent:
    said = Completion(message=assistant("yes"), usage=Usage(100, 50), model="m", provider="scripted")
    provider = ScriptedProvider(lambda spec: said, model="m")
    return Agent(ExecutionEngine(provider, prices=PriceTable({"m": Price("1", "10")}, version="1")), name="clerk")


async def asks(ctx: Any) -> Any:
    return (await ctx.ask("confirm", {"what": ctx.message})).approved


async def test_the_example_of_the_document_keeps_jobs_actions_and_usage_in_its_tables(pool: Any) -> None:
    agent = clerk()
    engine = agent.engine
    job_store = PostgresJobStore(pool)
    action_store = PostgresActionStore(pool)
    ledger_writer = PostgresLedgerWriter(pool)
    for store in (job_store, action_store, ledger_writer):
        await store.create_tables()
    kernel = RuntimeKernel(
        engine=engine,
        agent=agent,
        job_store=job_store,
        action_store=action_store,
        ledger_writer=ledger_writer,
    )
    handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))
    assert (await handle.result()).content == "yes"
    await kernel.close()
    assert [tuple(row) for row in await pool.fetch("SELECT job_id, status, scope_id FROM runtime_jobs")] == [
        (handle.job_id, "succeeded", "acme")
    ]
    assert await pool.fetchval("SELECT sum(total_tokens) FROM runtime_ledger WHERE job_id = $1", handle.job_id) == 150
    for each in (job_store, action_store, ledger_writer):
        await each.close()


@pytest.mark.slow  # half a second of a core
async def test_other_stores_find_answer_and_cancel_the_jobs_of_a_kernel_while_it_runs_and_while_it_is_away(
    pool: Any,
) -> None:
    mine = PostgresJobStore(pool), PostgresActionStore(pool)
    jobs, actions = JobManager(PostgresJobStore(pool)), ActionManager(PostgresActionStore(pool), poll="5ms")
    async with RuntimeKernel(None, asks, job_store=mine[0], action_store=mine[1]) as kernel:
        one, two, three = [await kernel.execute(ExecutionRequest(prompt=each)) for each in (1, 2, 3)]
        async with asyncio.timeout(60):
            while len(await actions.find(statuses=[ActionStatus.PENDING])) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert {each.status for each in await jobs.find()} == {JobStatus.WAITING_ACTION}
        (asked,) = await actions.find(job_id=one.job_id)
        await actions.resolve(asked.resume_token, {"approved": True}, by="ann")
        assert (await one.result()).output is True
        with pytest.raises(LetterRefused) as second:
            await actions.resolve(asked.resume_token, {"approved": False})
        assert second.value.reason in ("second", "closed")
        await jobs.cancel(two.job_id, "enough")
        await until(lambda: two.done)
        with pytest.raises(IllegalTransition, match="is a run of agent"):
            await jobs.fail(three.job_id)
    (asked,) = await actions.find(job_id=three.job_id)  # the kernel is closed
    assert (await actions.resolve(asked.resume_token, {"approved": False})).status is ActionStatus.RESOLVED
    again = PostgresJobStore(pool)
    async with RuntimeKernel(None, asks, job_store=again) as kernel:
        (handle,) = await kernel.resume()
        assert (await handle.result()).output is False
    assert Counter(str(job.status) for job in await jobs.find()) == {"succeeded": 2, "cancelled": 1}
    for store in (*mine, jobs.store, actions.store, again):
        await store.close()  # type: ignore[attr-defined]


CHILD = """
import asyncio, json, sys
import asyncpg
from sabot.agents import *
async def main():
    async with asyncpg.create_pool(sys.argv[1], min_size=1, max_size=1) as pool:
        jobs, actions = JobManager(PostgresJobStore(pool)), ActionManager(PostgresActionStore(pool))
        writer = PostgresLedgerWriter(pool)
        for store in (jobs.store, actions.store, writer):
            await store.create_tables()
        shared = await jobs.create(JobSpec(scope_id="shared", idempotency_key="k"))
        try:
            await jobs.start(shared.job_id)
            started = 1
        except IllegalTransition:
            started = 0
        for _ in range(5):
            job = await jobs.create(JobSpec(scope_id="own"))
            await jobs.start(job.job_id)
            action = await actions.require_action(ActionSpec(job_id=job.job_id))
            await actions.resolve(action.resume_token, {"confirmed": True})
            await jobs.complete(job.job_id, "r")
        print(json.dumps([shared.job_id, started]))
asyncio.run(main())
"""


@pytest.mark.slow
async def test_stores_of_several_processes_make_one_job_of_one_key_and_start_it_once(pool: Any) -> None:
    url = address_of(pool, "test")
    children = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, url, stdout=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    said = [json.loads((await child.communicate())[0]) for child in children]
    assert (len({job_id for job_id, _ in said}), sum(started for _, started in said)) == (1, 1)
    counted = await pool.fetch("SELECT scope_id, status, count(*) FROM runtime_jobs GROUP BY 1, 2 ORDER BY 1")
    assert [tuple(row) for row in counted] == [("own", "succeeded", 15), ("shared", "running", 1)]


@pytest.fixture
async def store(pool: Any) -> AsyncIterator[PostgresJobStore]:
    made = PostgresJobStore(pool, clock=ManualClock(1000.0))
    yield made
    await made.close()


async def test_a_job_of_a_manager_keeps_to_the_table_of_transitions(store: PostgresJobStore) -> None:
    jobs, actions = JobManager(store), ActionManager(store)
    spec = JobSpec(scope_id="t", idempotency_key="k", metadata={"a": "b\0c"}, tags={"sabot": [1]}, deadline=5000.0)
    job = await jobs.create(spec)
    assert (job.status, job.metadata, job.tags, job.deadline) == ("queued", {"a": "b\0c"}, {"sabot": [1]}, 5000.0)
    with pytest.raises(IllegalTransition):
        await jobs.complete(job.job_id)
    with pytest.raises(IdempotencyConflict):
        await jobs.create(JobSpec(scope_id="t", idempotency_key="k", metadata={"a": "other"}))
    await jobs.start(job.job_id)
    store.clock.advance(2)  # type: ignore[attr-defined]
    action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"n": 1}, timeout_seconds=5))
    assert (await jobs.get(job.job_id)).status is JobStatus.WAITING_ACTION
    store.clock.advance(4)  # type: ignore[attr-defined]
    await actions.resolve(action.resume_token, {"confirmed": True}, by="ann")
    assert (action.status, action.resolution, action.by) == ("resolved", {"confirmed": True}, "ann")
    ended = await jobs.complete(job.job_id, "r1")
    assert (ended.result_ref, ended.ran_seconds, ended.completed_at) == ("r1", 2.0, 1006.0)
    assert TRANSITIONS[ended.status] == frozenset()
    assert await jobs.create(spec) == ended
    assert await jobs.find(statuses=[JobStatus.SUCCEEDED]) == [ended]
    with pytest.raises(UserError, match="there is none of this name"):
        await jobs.get("job-of-nobody")
    assert await store.trim(3600) == 0
    store.clock.advance(7200)  # type: ignore[attr-defined]
    assert await store.trim(3600) == 5
    assert await jobs.find() == await actions.find() == []


async def test_a_question_is_answered_once_in_time_and_by_its_token(store: PostgresJobStore) -> None:
    actions = ActionManager(store, poll="1ms")
    action = await actions.require_action(ActionSpec(job_id="job-123", timeout_seconds=300))
    late = await actions.require_action(ActionSpec(job_id="job-123", timeout_seconds=1))
    store.clock.advance(2)  # type: ignore[attr-defined]
    reasons = []
    await actions.resolve(action.resume_token, {"confirmed": True})
    for token in (action.resume_token, late.resume_token, "guessed"):
        with pytest.raises(LetterRefused) as refused:
            await actions.resolve(token, {"confirmed": False})
        reasons.append(refused.value.reason)
    assert reasons == ["second", "expired", "unknown"]
    assert (action.resolution, late.status) == ({"confirmed": True}, "expired")


async def test_of_many_answers_at_once_one_is_accepted(store: PostgresJobStore) -> None:
    action = await ActionManager(store).require_action(ActionSpec(job_id="job"))
    others = [PostgresActionStore(store.home, clock=store.clock) for _ in range(4)]
    said = await asyncio.gather(
        *(ActionManager(each).resolve(action.resume_token, {"n": n}) for n, each in enumerate(others)),
        return_exceptions=True,
    )
    assert Counter(getattr(each, "reason", "taken") for each in said) == {"taken": 1, "second": 3}
    for each in others:
        await each.close()


async def test_an_entry_whose_commit_was_not_answered_is_not_written_twice(
    store: PostgresJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, transaction, broken = JobManager(store), store._tables.transaction, []
    job = await jobs.create(JobSpec(scope_id="t"))

    def breaks() -> Any:
        found = transaction()
        leave = found.__exit__

        class Broken:
            __enter__ = staticmethod(found.__enter__)

            def __exit__(self, *error: Any) -> None:
                leave(*error)
                if not broken:
                    broken.append(1)
                    raise TransientError("the server is gone")

        return Broken()

    assert (await jobs.start(job.job_id)).status is JobStatus.RUNNING
    monkeypatch.setattr(store._tables, "transaction", breaks)
    moved = await store.move(job.job_id, JobStatus.SUCCEEDED, result_ref="r")
    assert (broken, moved.status, moved.result_ref) == ([1], "succeeded", "r")


async def test_a_question_whose_commit_was_not_answered_is_returned_and_not_that_of_another_process(
    store: PostgresJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last question of the job was returned, with the token of another one's answer."""
    transaction, add, broken = store._tables.transaction, store._change, list[Any]()
    other = PostgresActionStore(store.home, clock=store.clock)

    @contextmanager
    def breaks() -> Iterator[Any]:
        with transaction() as connection:
            yield connection
        if changing and not broken:
            broken.append(asyncio.run(other.require(ActionSpec(job_id="job", type="input"))))
            raise TransientError("the server is gone")

    async def change(*args: Any, **options: Any) -> Any:
        changing.append(True)
        return await add(*args, **options)

    changing: list[bool] = []
    monkeypatch.setattr(store._tables, "transaction", breaks)
    monkeypatch.setattr(store, "_change", change)
    action = await store.require(ActionSpec(job_id="job", type="confirm"))
    assert [each.type for each in (action, *broken)] == ["confirm", "input"]
    assert len(await store.actions(job_id="job")) == 2
    await other.close()


# -- the address of a pool ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "words", "address"),
    [
        ("postgresql://u:p%40x@h:1/db", {"ssl": "require"}, "postgresql://u:p%40x@h:1/db?sslmode=require"),
        ("postgres://u@[::1]:5/db?application_name=x", {}, "postgresql://u@[::1]:5/db?application_name=x"),
        (None, {"host": "/tmp/x", "user": "a b", "database": "d d"}, "postgresql://a%20b@/d%20d?host=%2Ftmp%2Fx"),
        (None, {"host": ["a", "b"], "port": [1, 2], "database": "x"}, "postgresql:///x?host=a%2Cb&port=1%2C2"),
        ("postgresql://u@h/db", {"password": "p/", "ssl": False}, "postgresql://u:p%2F@h/db?sslmode=disable"),
        (
            "postgresql://h/db",
            {"server_settings": {"search_path": "a, b"}},
            "postgresql://h/db?options=-c%20search_path%3Da%2C%5C%20b",
        ),
    ],
)
async def test_the_address_of_a_pool_is_what_it_was_made_with(dsn: str | None, words: Any, address: str) -> None:
    assert address_of(asyncpg.create_pool(dsn, min_size=0, **words), "test") == address


@pytest.mark.parametrize(
    ("words", "said"),
    [({"password": lambda: "secret"}, "password="), ({"ssl": True}, "ssl="), ({"connect": print}, "connect=")],
)
async def test_a_pool_that_connects_by_code_of_the_program_is_refused_with_what_to_do(words: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"PostgresJobStore: the pool has {said} .*give the address"):
        PostgresJobStore(asyncpg.create_pool("postgresql://u:s3cret@h/db", min_size=0, **words))
