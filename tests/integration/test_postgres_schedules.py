"""Schedules of several workers of one journal in PostgreSQL: each time begins one job, whoever ends."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from sabot.agents import JobClient, RuntimeKernel, Schedule
from sabot.clock import ManualClock
from sabot.errors import JobCancelled
from sabot.journal.postgres import PostgresInbox, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from tools.agent_tools import until
from tools.postgres import server_or_skip

RAN: list[str] = []


async def work(ctx: Any) -> None:
    """May run again in another worker."""
    if ctx.job_id not in RAN:
        RAN.append(ctx.job_id)


async def asks(ctx: Any) -> None:
    if ctx.job_id not in RAN:
        RAN.append(ctx.job_id)
    await ctx.ask("confirm", {})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@pytest.fixture
def app() -> str:
    RAN.clear()
    return f"app-{uuid.uuid4().hex}"


def seconds(hour: int, minute: int = 0) -> float:
    return datetime(2026, 11, 28, hour, minute, tzinfo=UTC).timestamp()


def kernel_of(url: str, app: str, clock: ManualClock, **options: Any) -> RuntimeKernel:
    options = {"message": "report", **options}
    schedule = Schedule("hourly", options.pop("agent", "work"), "0 * * * *", **options)
    agents = [work, asks]
    return RuntimeKernel.create(
        agent=agents, journal=url, name=app, shared=True, clock=clock, schedules=[schedule], stop_grace=0
    )


async def opened(stack: AsyncExitStack, kernel: RuntimeKernel) -> RuntimeKernel:
    await stack.enter_async_context(kernel)
    await kernel.resume()
    return kernel


def test_each_time_begins_one_job_also_while_workers_come_and_go(url: str, app: str) -> None:
    clock, random = ManualClock(seconds(0, 30)), Random(7)

    async def main() -> None:
        stacks = list[AsyncExitStack]()
        for hour in range(1, 9):
            while len(stacks) < 2:
                stacks.append(AsyncExitStack())
                await opened(stacks[-1], kernel_of(url, app, clock, missed="all", overlap="allow"))
            clock.set(seconds(hour))
            if hour != 4:
                await until(lambda hour=hour: len(RAN) >= hour)
            for _ in range(
                2 if hour == 4 else random.randrange(3)
            ):  # at 4 o'clock they end at once, and 5 may be missed
                await stacks.pop(random.randrange(len(stacks))).aclose()
        if not stacks:
            stacks.append(AsyncExitStack())
            await opened(stacks[-1], kernel_of(url, app, clock))
        client = JobClient(url, name=app)
        jobs = await client.jobs.find()
        assert [job.key for job in jobs] == ["hourly"] * 8
        for job in jobs:
            await (await client.handle(job.job_id)).result()
        for stack in stacks:
            await stack.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(("missed", "more"), [("last", 1), ("all", 4), ("none", 0)])
def test_what_all_workers_have_missed_begins_once(url: str, app: str, missed: str, more: int) -> None:
    clock = ManualClock(seconds(8, 30))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await opened(stack, kernel_of(url, app, clock, missed=missed, overlap="allow"))
            clock.set(seconds(9))
            await until(lambda: len(RAN) == 1)
        clock.set(seconds(13, 30))
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await opened(stack, kernel_of(url, app, clock, missed=missed, overlap="allow"))
            await until(lambda: len(RAN) == 1 + more)
            clock.set(seconds(14))
            await until(lambda: len(RAN) == 2 + more)
        assert len(await JobClient(url, name=app).jobs.find()) == 2 + more

    asyncio.run(main())


def test_no_worker_begins_a_job_while_the_one_before_is_open_in_another(
    url: str, app: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock(seconds(8, 30))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            first = await opened(stack, kernel_of(url, app, clock, agent="asks"))
            clock.set(seconds(9))
            await until(lambda: len(RAN) == 1)
            await opened(stack, kernel_of(url, app, clock, agent="asks"))
            clock.set(seconds(10))
            # a worker that has looked at its schedule only behind the other one's note of 10 o'clock tells nothing
            await until(lambda: f"its job {RAN[0]} is still open" in caplog.text)
            (job,) = await first.jobs.find()
            await first.jobs.cancel(job.job_id)
            with pytest.raises(JobCancelled):  # a client waits until the journal has the end, as the schedules do
                await (await JobClient(url, name=app).handle(job.job_id)).result()
            clock.set(seconds(11))
            await until(lambda: len(RAN) == 2)

    asyncio.run(main())


def test_no_worker_of_another_version_begins_a_job_while_the_one_before_is_open(
    url: str, app: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The job of 9 o'clock is that of one of two messages. The worker with the other one took that of 8 o'clock for the last."""
    clock = ManualClock(seconds(8, 30))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            for message in ("old", "new"):
                await opened(stack, kernel_of(url, app, clock, agent="asks", message=message))
            clock.set(seconds(9))
            await until(lambda: len(RAN) == 1)
            for hour in (10, 11, 12):
                told = caplog.text.count(f"its job {RAN[0]} is still open")
                clock.set(seconds(hour))
                await until(lambda told=told: caplog.text.count(f"its job {RAN[0]} is still open") > told)
            assert len(await JobClient(url, name=app).jobs.find()) == 1

    asyncio.run(main())


def test_a_worker_that_ends_behind_its_letter_leaves_one_job(url: str, app: str) -> None:
    clock = ManualClock(seconds(8, 30))
    schedule = Schedule("hourly", "work", "0 * * * *", message="report")

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await opened(stack, kernel_of(url, app, clock))
        client = JobClient(url, name=app, clock=clock)
        (posted,) = await client.start_all([schedule.request(round(seconds(9)))])
        clock.set(seconds(9))
        async with AsyncExitStack() as stack:
            await opened(stack, kernel_of(url, app, clock))
            assert (await posted.result()).job_id == posted.job_id
            clock.set(seconds(10))
            await until(lambda: len(RAN) == 2)
        assert len(await client.jobs.find()) == 2

    asyncio.run(main())


@pytest.mark.parametrize("then", [{"agent": "asks"}, {"scope": "other"}, {"message": "new"}])
def test_workers_of_two_versions_begin_one_job_at_each_time(url: str, app: str, then: dict[str, str]) -> None:
    """Those with another agent or scope paid twice in each rolling update."""
    clock = ManualClock(seconds(8, 30))

    async def main() -> None:
        async with AsyncExitStack() as stack:
            for options in ({}, then):
                await opened(stack, kernel_of(url, app, clock, missed="all", overlap="allow", **options))
            client = JobClient(url, name=app)
            for hour in range(9, 13):
                clock.set(seconds(hour))
                await until(lambda hour=hour: len(RAN) == hour - 8)
            jobs = await client.jobs.find()
            assert [job.idempotency_key[-6:-4] for job in jobs] == ["09", "10", "11", "12"]

    asyncio.run(main())


def test_of_many_that_replace_one_note_one_does(url: str, app: str) -> None:
    PostgresWorker(url, app).close()
    inboxes = [PostgresInbox(url, app) for _ in range(8)]

    async def main() -> None:
        before = ""
        for turn in range(20):
            noted = [asyncio.to_thread(each.note, "n", f"{turn}-{at}", before) for at, each in enumerate(inboxes)]
            kept = [f"{turn}-{at}" for at, each in enumerate(await asyncio.gather(*noted)) if each]
            with closing(PostgresReader(url, app)) as reader:
                assert list(reader.notes("n").values()) == kept
            assert len(kept) == 1
            before = kept[0]

    asyncio.run(main())
    for each in inboxes:
        each.close()
