"""`JobClient` over each home that other processes can reach. What it does is in tests/unit/agents/test_client.py, over SQLite."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import ExecutionRequest, JobClient, JobLimit, JobStatus, RuntimeKernel
from sabot.errors import EffectError, JobCancelled
from sabot.journal.opening import open_journal
from tools.postgres import server_or_skip


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with server_or_skip().database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "jobs")
    name = f"jobs-{uuid.uuid4().hex[:12]}"
    if request.param == "kafka":
        return f"{request.getfixturevalue('kafka_url')}/{name}"
    return f"{request.getfixturevalue('database')}?app={name}"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_clients_begin_await_and_cancel_jobs_of_a_kernel_at_rest_and_at_work(place: str) -> None:
    made: list[Any] = []

    async def double(ctx: Any) -> Any:
        return await ctx.step(lambda: made.append(ctx.message) or ctx.message * 2)

    def kernel() -> RuntimeKernel:
        return RuntimeKernel.create(agent=double, journal=place, name="shop")

    async with kernel():
        pass
    client = JobClient(place, name="shop")
    first = await client.start("double", 1, idempotency_key="k")
    unwanted = await client.start("double", 2)
    await unwanted.cancel()
    assert (await client.start("double", 1, idempotency_key="k")).job_id == first.job_id
    assert (await client.jobs.get(first.job_id)).status == JobStatus.QUEUED
    async with kernel() as running:
        assert (await first.result()).output == 2
        with pytest.raises(JobCancelled):
            await unwanted.result()
        again = await running.execute(ExecutionRequest(prompt=1, idempotency_key="k"))
        assert (again.job_id, (await again.result()).output) == (first.job_id, 2)
        handles = await client.start_all([ExecutionRequest(prompt=n, agent="double") for n in range(3, 9)])
        assert [(await each.result()).output for each in handles] == [n * 2 for n in range(3, 9)]
    assert (await (await client.handle(first.job_id)).result()).output == 2
    assert sorted(made) == [1, *range(3, 9)]


@pytest.mark.one_in(3, "a second over PostgreSQL")
@pytest.mark.parametrize("shared", [False, True])
async def test_a_queued_job_of_an_agent_that_no_kernel_has_can_be_cancelled(
    place: str, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Over SQLite nobody found it from then on; over PostgreSQL it stayed queued for ever."""
    if shared and not place.startswith("postgres"):
        pytest.skip("for a journal that several workers share")

    async def double(ctx: Any) -> Any:
        return ctx.message * 2

    options: dict[str, Any] = {"shared": True} if shared else {}
    client = JobClient(place, name="shop")
    async with RuntimeKernel.create(agent=double, journal=place, name="shop", **options) as kernel:
        await kernel.resume()
        typo = await client.start("duoble", 1, idempotency_key="k")
        assert (await (await client.start("double", 2)).result()).output == 4
        waiting = await kernel.jobs.get(typo.job_id)
        assert (waiting.status, waiting.waits) == (
            JobStatus.QUEUED,
            "no worker that runs has agent shop.duoble" if shared else "this program has no agent shop.duoble",
        )
        theirs = (await client.jobs.page({"status": "queued"})).jobs
        # a reader of a journal with one owner, which may be in another process, knew no reason
        kept = not place.startswith("kafka")  # a journal in Kafka has no notes
        reason = "no worker that runs has agent shop.duoble" if kept else ""
        assert [(each.job_id, each.waits) for each in theirs] == [(typo.job_id, reason)]
        await typo.cancel("a typo")
        with pytest.raises(JobCancelled):
            await typo.result()
        assert (await client.jobs.get(typo.job_id)).status == JobStatus.CANCELLED
        assert [event.type async for event in typo.events()][-1] == "final.error"
        assert (await client.start("duoble", 1, idempotency_key="k")).created is False
        assert (await client.jobs.page({"status": "queued"})).jobs == []
        assert kernel.statistics()["begun"] == kernel.statistics()["ended"] == 2
    async with RuntimeKernel.create(agent=double, journal=place, name="shop", **options) as kernel:
        assert await kernel.resume() == []
        assert [each.job_id for each in (await kernel.jobs.page({"status": "cancelled"})).jobs] == [typo.job_id]
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.one_in(3, "a second over PostgreSQL")
@pytest.mark.parametrize("again", [False, True])
async def test_the_function_of_a_job_that_was_cancelled_before_it_ran_is_not_called_after_a_crash(
    place: str, again: bool
) -> None:
    """The crash came between its CANCEL and its END: the next start called it, and a job that asks for nothing had succeeded."""
    called: list[Any] = []

    async def work(ctx: Any) -> Any:
        called.append(ctx.message)
        if again and len(called) == 1:
            raise ValueError("the first run")
        return 5

    options: dict[str, Any] = {"shared": True} if place.startswith("postgres") else {}

    def kernel() -> RuntimeKernel:
        return RuntimeKernel.create(agent=work, journal=place, name="shop", **options)

    client = JobClient(place, name="shop")
    async with kernel() as running:
        await running.resume()
        if again:
            job = await client.start("work", 1)
            with pytest.raises(EffectError, match="the first run"):
                await job.result()
    if again:
        await client.jobs.retry(job.job_id)
    else:
        job = await client.start("work", 1)
    journal = open_journal(place, app="shop", **options)
    journal.begins.agents = frozenset({"shop.work"})

    def take(*kinds: str) -> None:
        taken = list[str]()
        while taken != [*kinds]:  # a look into a topic may come before the broker has the letter
            found = journal.take()
            assert all(journal.wait_durable(position, 60) for position, _ in found)
            taken += [type(entry).__name__ for _, entry in found]
            assert taken == [*kinds][: len(taken)]

    try:
        take("Begin")
        await client.jobs.signal(job.job_id, "go", 5)
        await job.cancel("no more")
        take("Signal", "Cancel")
    finally:
        journal.close()
    async with kernel() as running:
        await running.resume()
        with pytest.raises(JobCancelled):
            await asyncio.wait_for(job.result(), 60)
        assert (await client.jobs.get(job.job_id)).status == JobStatus.CANCELLED
        assert called == [1] * again
        if not again:
            assert [event.type async for event in job.events()][-1] == "final.error"


@pytest.mark.one_in(3, "a second over PostgreSQL")
async def test_a_failed_job_that_waits_for_a_seat_to_run_again_is_queued(place: str) -> None:
    """Lists said that it had failed, and nobody knew that it was to run again."""
    gates = {name: asyncio.Event() for name in ("fails", "busy")}
    is_busy = asyncio.Event()
    runs = list[str]()

    async def work(ctx: Any) -> Any:
        runs.append(ctx.message)
        if ctx.message == "busy":
            is_busy.set()
        await ctx.step(gates[ctx.message].wait)
        if runs == ["fails"]:
            raise ValueError("the first run")
        return len(runs)

    options: dict[str, Any] = {"shared": True} if place.startswith("postgres") else {}
    limits = [JobLimit("work", concurrency=1, parked="holds")]
    client = JobClient(place, name="shop")
    async with RuntimeKernel.create(agent=work, journal=place, name="shop", limits=limits, **options) as kernel:
        await kernel.resume()
        failed = await client.start("work", "fails", scope="acme")
        gates["fails"].set()
        with pytest.raises(EffectError, match="the first run"):
            await failed.result()
        busy = await client.start("work", "busy", scope="acme")
        await is_busy.wait()
        await client.jobs.retry(failed.job_id)
        for jobs in (client.jobs, kernel.jobs):
            record = await jobs.get(failed.job_id)
            assert (record.status, record.result_ref) == (JobStatus.QUEUED, "")
            for query in ({}, {"scope": "acme"}, {"text": "work"}):
                page = await jobs.page(query)
                assert {each.job_id: each.status for each in page.jobs} == {
                    busy.job_id: JobStatus.RUNNING,
                    failed.job_id: JobStatus.QUEUED,
                }
                assert (page.counts, page.found) == ({"running": 1, "queued": 1}, 2)
            assert [each.job_id for each in (await jobs.page({"status": "queued"})).jobs] == [failed.job_id]
            assert (await jobs.page({"status": "failed"})).jobs == []
            assert [each.job_id for each in await jobs.find(statuses=[JobStatus.QUEUED])] == [failed.job_id]
            assert await jobs.find(statuses=[JobStatus.FAILED]) == []
        reader = client if options else kernel
        assert (await reader.jobs.get(failed.job_id)).waits == "its lane is full: 1 of 1"
        await failed.cancel("not again")
        with pytest.raises(JobCancelled):
            await failed.result()
        assert (await client.jobs.get(failed.job_id)).status == JobStatus.CANCELLED
        await client.jobs.retry(failed.job_id)
        assert (await client.jobs.get(failed.job_id)).status == JobStatus.QUEUED
        result = asyncio.ensure_future(failed.result())
        gates["busy"].set()
        assert (await busy.result()).output == 2
        assert (await asyncio.wait_for(result, 60)).output == 3
    assert runs == ["fails", "busy", "fails"]
