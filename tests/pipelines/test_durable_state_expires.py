"""Durable agents whose state expires (`ttl=`): a job reads at its own time, so a replay reads what the first run has read."""

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pipelines.test_durable_agents import Shop, checkpoint, crash, figures, jobs

from sabot import App, UserError
from sabot.agents.job_checks import check_jobs
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend, Snapshot, StateBackend
from sabot.journal.sqlite import SqliteReader
from tools.agent_tools import started, until

TTL = 60


@pytest.fixture
def shop(memory_url: str, tmp_path: Path) -> Shop:
    return Shop(memory_url, tmp_path / "state")


@pytest.fixture(params=["memory", "rocksdb"])
async def backend(request: pytest.FixtureRequest, shop: Shop, tmp_path: Path) -> AsyncIterator[Any]:
    kind = RocksDBBackend if request.param == "rocksdb" else MemoryBackend
    backend = kind(BackendConfig(request.param, tmp_path / "own", ttl=TTL), clock=shop.clock)
    yield backend
    await backend.close()


def counting(shop: Shop) -> Callable[[Any], Any]:
    """Counts the tickets of a customer, and tells the shop of the count: another count than before the crash would block the job."""

    async def handle(ctx: Any) -> Any:
        order, sleeps = ctx.message["order"], ctx.message.get("sleeps", 0)
        count = (await ctx.state().get("count") or 0) + 1
        await ctx.call(shop.refund, f"{order}: {count}")
        if sleeps:
            await ctx.sleep(sleeps)
        await ctx.state().put("count", count)
        return {"order": order, "count": count}

    return handle


def app_of(shop: Shop, backend: StateBackend, **options: Any) -> App:
    app = shop.app(counting(shop), **options)
    app.state_backend = backend
    return app


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_job_that_runs_again_reads_what_has_expired_since_it_began(shop: Shop, backend: Any) -> None:
    """The checkpoint comes when the count has expired: it was removed there, and the job that had read it is run over its history."""
    app = app_of(shop, backend)
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 1)
    shop.clock.advance(TTL / 2)
    shop.ticket("ann", 2, sleeps=2 * TTL)
    await until(lambda: jobs(app)["parked"] == 1)
    shop.clock.advance(TTL)
    await checkpoint(app)
    await crash(app)
    app = app_of(shop, backend)
    async with started(app):
        await until(lambda: jobs(app)["parked"] == 1)
        shop.clock.advance(TTL)
        await until(lambda: len(shop.answers()) == 2)
        shop.clock.advance(TTL - 1)
        shop.ticket("ann", 3)  # the count of the second ticket was written when that one woke
        await until(lambda: len(shop.answers()) == 3)
    assert shop.calls == ["1: 1", "2: 2", "3: 3"]
    assert [each["count"] for each in shop.answers()] == [1, 2, 3]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_what_no_open_job_may_read_any_more_is_removed(shop: Shop, backend: Any) -> None:
    app = app_of(shop, backend)
    async with started(app):
        shop.ticket("ann", 1)
        shop.ticket("bob", 2, sleeps=TTL)
        await until(lambda: jobs(app)["parked"] == 1 and len(shop.answers()) == 1)
        shop.clock.advance(TTL - 1)
        await checkpoint(app)
        assert backend.statistics()["keys"] == 1
        shop.clock.advance(1)
        await until(lambda: len(shop.answers()) == 2)  # and a count of bob's
        await checkpoint(app)
        shop.ticket("ann", 3)
        await until(lambda: len(shop.answers()) == 3)
        await until(lambda: figures(app)["rows"] == 0)
        shop.clock.advance(TTL)
        await checkpoint(app)
        assert [list(backend.items(name)) for name in backend.namespaces()] == []
        assert app.state_backend is backend
    assert [each["count"] for each in shop.answers()] == [1, 1, 1]


@pytest.mark.one_in(6, "the tests above have each way of the counts by itself")
@pytest.mark.parametrize("seed", range(12))
async def test_a_run_that_is_killed_gives_the_counts_of_one_that_is_not(shop: Shop, seed: int) -> None:
    """Tickets come at times, the process is killed at times, with checkpoints at times: the counts are those of a plain model."""
    rng = random.Random(seed)
    backend = MemoryBackend(BackendConfig("memory", ttl=TTL), clock=shop.clock)
    life = Life(shop, backend)
    counts: dict[str, tuple[int, float]] = {}  # of a customer: the count, when it expires
    expected: dict[int, int] = {}
    await life.begin()
    for order in range(5):
        customer, sleeps = rng.choice("ab"), rng.choice([0, 0, TTL // 2, 3 * TTL])
        count, expires_s = counts.get(customer, (0, 0.0))
        expected[order] = (count if expires_s > shop.clock.time() else 0) + 1
        shop.ticket(customer, order, sleeps=sleeps)
        await life.rest(order, sleeps)
        for step in rng.choices(["checkpoint", "kill", "nothing"], k=2):
            if step == "checkpoint":
                await checkpoint(life.app)
            elif step == "kill":
                await crash(life.app)
                await life.begin()
                await life.rest(order, sleeps)
            shop.clock.advance(sleeps / 2)
        await life.rest(order, 0)
        counts[customer] = expected[order], shop.clock.time() + TTL
        shop.clock.advance(rng.choice([0, TTL // 3, TTL]))
    await life.app.stop()
    await backend.close()
    assert shop.calls == [f"{order}: {count}" for order, count in expected.items()]
    assert {(each["order"], each["count"]) for each in shop.answers()} == set(expected.items())


class Life:
    """An app that is begun again and again over one backend."""

    def __init__(self, shop: Shop, backend: StateBackend) -> None:
        self.shop, self.backend = shop, backend

    async def begin(self) -> None:
        self.app = app_of(self.shop, self.backend)
        await self.app.start()

    async def rest(self, order: int, sleeps: float) -> None:
        """Returns when the last ticket is parked where it sleeps, else answered."""
        if sleeps:
            await until(lambda: jobs(self.app)["parked"] == 1)
        else:
            await until(lambda: any(each["order"] == order for each in self.shop.answers()))
        await until(lambda: figures(self.app)["running"] == 0)


async def test_a_check_of_open_jobs_reads_at_their_time_too(shop: Shop, tmp_path: Path) -> None:
    backend = MemoryBackend(BackendConfig("memory", ttl=TTL), clock=shop.clock)
    app = app_of(shop, backend)
    await app.start()
    shop.ticket("ann", 1)
    await until(lambda: len(shop.answers()) == 1)
    await checkpoint(app)
    shop.clock.advance(TTL)
    shop.ticket("ann", 2, sleeps="1h")
    await until(lambda: jobs(app)["parked"] == 1)
    await crash(app)
    agents = {name: agent.spec for name, agent in app.agent_runtime.agents.items()}
    storage = CheckpointStorage(shop.directory / "checkpoints")
    reader = SqliteReader(shop.directory)
    try:
        checked = check_jobs(
            reader, storage.latest(), agents, version=app.settings.version, clock=shop.clock, backend=app.state_backend
        )
        assert [job.verdict for job in checked] == ["ok"]
    finally:
        reader.close()
        await backend.close()


async def test_a_backend_of_the_users_own_whose_values_expire_is_refused(shop: Shop) -> None:
    """Nobody can tell it at which time a read is to be judged."""

    class Own(MemoryBackend):
        async def snapshot(self) -> Snapshot:
            return await super().snapshot()

    app = app_of(shop, Own(BackendConfig("memory", ttl=TTL), clock=shop.clock))
    with pytest.raises(UserError, match="in a backend of your own"):
        await app.start()
