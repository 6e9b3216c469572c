"""PostgreSQL and Redis restarted every 5 seconds under load: what callers see meanwhile, and that all counts are exact afterwards."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    Budget,
    ExecutionRequest,
    JobManager,
    JobSpec,
    PostgresJobStore,
    PostgresLedgerWriter,
    RedisJobCache,
    RedisSignalChannel,
    RuntimeKernel,
)
from sabot.base.threads import run_in_thread
from sabot.errors import TransientError
from sabot.llm import Agent, Completion, ExecutionEngine, Price, PriceTable, ScriptedProvider, Usage, assistant
from tools.postgres import Postgres
from tools.postgres import server_or_skip as postgres_or_skip
from tools.redis_server import Redis
from tools.redis_server import server_or_skip as redis_or_skip

SECONDS = 30.0
EVERY_SECONDS = 5.0
AWAY_SECONDS = 0.5
ANSWER = Usage(100, 50)


class Load:
    """Callers that go on until `over`. seen: the errors that they got, by class; each of them is tried again. done: what they did."""

    def __init__(self) -> None:
        self.over = False
        self.seen: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    async def until_done(self, call: Any, *args: Any, **named: Any) -> Any:
        """What the call returns, tried again for as long as its server is away."""
        while True:
            try:
                return await call(*args, **named)
            except TransientError as error:
                self.seen[f"{type(error).__name__} of {'a named' if '127.0.0.1' in str(error) else 'a'} server"] += 1
                await asyncio.sleep(0.05)


async def restarts(postgres: Postgres, redis: Redis, load: Load) -> None:
    """Both servers go, at turns killed and stopped, and come back."""
    clock, rounds = asyncio.get_running_loop(), 0
    end = clock.time() + SECONDS
    while clock.time() < end or rounds < 2 or not load.done["managed"]:  # a busy machine takes longer for a round
        await asyncio.sleep(EVERY_SECONDS)
        rounds += 1
        await asyncio.gather(run_in_thread(postgres.stop, kill=rounds % 2 == 1), run_in_thread(redis.stop))
        await asyncio.sleep(AWAY_SECONDS)
        await asyncio.gather(run_in_thread(postgres.start), run_in_thread(redis.start))
    load.done["restarts"] = rounds
    load.over = True


async def kernel_jobs(kernel: RuntimeKernel, load: Load) -> None:
    """A caller of a kernel: one job after the other."""
    while not load.over:
        handle = await kernel.execute(ExecutionRequest(prompt="hello", scope_id="acme"))
        assert (await handle.result()).content == "yes"
        load.done["kernel"] += 1


async def managed_jobs(
    number: int, jobs: JobManager, asking: ActionManager, answering: ActionManager, load: Load
) -> None:
    """A job that waits for an answer, which comes by another manager; and is read twice when it is over, the second time from the cache."""
    count = 0
    while not load.over:
        count += 1
        spec = JobSpec(scope_id="acme", idempotency_key=f"{number} {count}")
        job = await load.until_done(jobs.create, spec)
        await load.until_done(jobs.start, job.job_id)
        ask = ActionSpec(job_id=job.job_id, type="confirm", payload={"n": count})
        action = await load.until_done(asking.require_action, ask)
        waits = asyncio.create_task(load.until_done(asking.wait_for_resolution, action.action_id))
        await load.until_done(answering.resolve, action.resume_token, {"approved": True, "n": count})
        assert (await waits).resolution == {"approved": True, "n": count}
        await load.until_done(jobs.complete, job.job_id, f"r{count}")
        for _ in range(2):
            assert (await load.until_done(jobs.get, job.job_id)).status == "succeeded"
        load.done["managed"] += 1


@contextlib.asynccontextmanager
async def servers() -> AsyncIterator[tuple[Postgres, Redis]]:
    postgres_or_skip()
    redis_or_skip()
    with contextlib.ExitStack() as gone:
        postgres = Postgres("fsync=on")
        gone.callback(postgres.remove)
        redis = Redis()
        gone.callback(redis.remove)
        yield postgres, redis


@pytest.mark.slow  # half a minute of restarts
async def test_counts_are_exact_though_both_servers_are_restarted_every_five_seconds() -> None:
    load = Load()
    async with servers() as (postgres, redis):
        said = Completion(message=assistant("yes"), usage=ANSWER, model="m", provider="scripted")
        provider = ScriptedProvider(lambda spec: said, model="m")
        engine = ExecutionEngine(provider, retries=0, prices=PriceTable({"m": Price("1", "10")}, version="1"))
        store = PostgresJobStore(postgres.url)
        budget = Budget("acme", max_cost_monthly=Decimal(10**6))
        async with (
            RuntimeKernel.create(
                agent=Agent(engine, name="clerk"),
                journal=postgres.url,
                budgets=[budget],
                ledger_writer=PostgresLedgerWriter(postgres.url),
            ) as kernel,
            RedisSignalChannel(redis.url) as mine,
            RedisSignalChannel(redis.url) as theirs,
        ):
            jobs = JobManager(RedisJobCache(store, redis.url))
            asking, answering = ActionManager(store, mine, poll="100ms"), ActionManager(store, theirs)
            callers = [kernel_jobs(kernel, load) for _ in range(4)]
            callers += [managed_jobs(number, jobs, asking, answering, load) for number in range(4)]
            await asyncio.gather(restarts(postgres, redis, load), *callers)
            assert kernel.ledger is not None
            await kernel.ledger.flush()
            used = (await kernel.ledger.used("acme"))["monthly"]
        print(load.done, load.seen)
        calls = len(provider.requests)
        assert load.done["kernel"] == calls, "a job has asked its model twice, or not at all"
        assert (used.calls, used.tokens) == (calls, calls * ANSWER.total_tokens)
        with psycopg.connect(postgres.url, autocommit=True) as database:
            rows = database.execute(
                "SELECT count(*), sum(total_tokens), min(type), max(type) FROM runtime_ledger"
            ).fetchone()
            assert rows == (calls, calls * ANSWER.total_tokens, "model", "model")
            tables = ["SELECT * FROM runtime_jobs ORDER BY job_id", "SELECT * FROM runtime_actions ORDER BY action_id"]
            count = "SELECT status, count(*) FROM {} GROUP BY status"
            assert database.execute(count.format("runtime_jobs")).fetchall() == [("succeeded", load.done["managed"])]
            assert database.execute(count.format("runtime_actions")).fetchall() == [("resolved", load.done["managed"])]
            shown = [database.execute(each).fetchall() for each in tables]
            assert await store.rebuild() == load.done["managed"]
            assert [database.execute(each).fetchall() for each in tables] == shown
        await store.close()
    assert load.done["restarts"] > 1
    assert load.done["managed"] > 0
    assert set(load.seen) <= {"BrokerUnavailable of a named server", "TransientError of a named server"}
