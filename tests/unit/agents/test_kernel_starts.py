"""A kernel leaves what is open in the journal when it starts, and reads it tree by tree when it goes on with it."""

import asyncio
import logging

import pytest

from sabot.agents import (
    ActionStatus,
    Budget,
    ExecutionRequest,
    IdempotencyConflict,
    JobLimit,
    JobStatus,
    RuntimeKernel,
)
from sabot.agents.store import cancel_letter
from sabot.errors import JobCancelled, UserError
from sabot.journal import open_inbox, open_reader
from sabot.journal.base import EVERY
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Begin, Cancel, Intent
from sabot.journal.sqlite import SqliteJournal
from tools.agent_tools import PATIENCE, until

MANY = 150  # more than are read together


def ask(prompt, **fields):
    return ExecutionRequest(prompt=prompt, **fields)


async def lead(ctx):
    if ctx.message == "quick":
        return "done"
    if ctx.message == "child":
        return await ctx.child(below, 1)
    return (await ctx.ask("confirm", {"number": ctx.message})).approved


async def below(ctx):
    return (await ctx.ask("confirm", {"number": ctx.message})).approved


def kernel_over(place, **options):
    return RuntimeKernel.create(agent=[lead, below], journal=place, **options)


async def parked(kernel, jobs):
    await until(lambda: kernel.statistics()["parked"] == jobs)


@pytest.fixture
async def place(tmp_path):
    """A journal with open jobs, which all wait for a person: "a" with a child, and others."""
    async with kernel_over(tmp_path) as kernel:
        await kernel.execute(ask("child", idempotency_key="a"))
        await kernel.execute(ask(2, idempotency_key="b"))
        await kernel.execute(ask(3))
        await parked(kernel, 4)
    return tmp_path


def entries_of(place, *kinds):
    reader = open_reader(place)
    found = [entry for _, entry in reader.read() if isinstance(entry, kinds)]
    reader.close()
    return found


class Reads:
    """The jobs whose entries a journal has read."""

    def __init__(self, monkeypatch):
        self.jobs = []
        whole, several = SqliteJournal.read, SqliteJournal.read_jobs

        def read(journal, job=None, start=None):
            self.jobs.append(job)
            return whole(journal, job, start)

        def read_jobs(journal, jobs):
            self.jobs += jobs
            return several(journal, jobs)

        monkeypatch.setattr(SqliteJournal, "read", read)
        monkeypatch.setattr(SqliteJournal, "read_jobs", read_jobs)


async def answer_all(kernel):
    for action in await kernel.actions.find(statuses=[ActionStatus.PENDING]):
        await kernel.actions.resolve(action.resume_token, {"approved": True})


async def test_a_start_reads_no_entry_of_the_open_jobs(place, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sabot")
    reads = Reads(monkeypatch)
    async with kernel_over(place) as kernel:
        assert reads.jobs == []
        assert "4 open jobs: await kernel.resume()" in caplog.text
        handle = await kernel.execute(ask("quick"))
        assert (await handle.result()).output == "done"
        assert set(reads.jobs) <= {handle.job_id}
        assert len(await kernel.jobs.find(statuses=[JobStatus.WAITING_ACTION])) == 3


async def test_all_open_jobs_go_on_in_the_order_in_which_they_began_while_new_ones_begin(tmp_path):
    async with kernel_over(tmp_path) as kernel:
        begun = [(await kernel.execute(ask(number))).job_id for number in range(MANY)]
        await parked(kernel, MANY)
    async with kernel_over(tmp_path, max_jobs=4) as kernel:
        handles = await kernel.resume()
        assert [handle.job_id for handle in handles] == begun
        assert await kernel.resume() == []
        new = await kernel.execute(ask("quick"))
        assert (await new.result()).output == "done"
        await parked(kernel, MANY)
        await answer_all(kernel)
        results = await asyncio.wait_for(asyncio.gather(*(each.result() for each in handles)), PATIENCE)
        assert [each.output for each in results] == [True] * MANY
    assert len(entries_of(tmp_path, Begin)) == MANY + 1
    assert len(entries_of(tmp_path, Intent)) == MANY


async def test_a_cancel_before_the_resume_reaches_the_jobs_below(place):
    async with kernel_over(place) as kernel:
        child = next(each.job for each in entries_of(place, Begin) if each.agent == "kernel.below")
        root = child.rpartition("~")[0]
        inbox = open_inbox(place)
        inbox.post(cancel_letter(root, "enough"))
        inbox.close()
        await until(lambda: [each.job for each in entries_of(place, Cancel)] == [root, child])
        with pytest.raises(UserError, match="not resumed"):
            await kernel.handle(root)
        handles = {handle.job_id: handle for handle in await kernel.resume()}
        assert len(handles) == 4
        for job_id in (root, child):
            with pytest.raises(JobCancelled):
                await handles[job_id].result()
        await parked(kernel, 2)
    assert [each.job for each in entries_of(place, Cancel)] == [root, child]


async def test_a_key_that_comes_again_goes_on_with_its_tree_only(place, monkeypatch):
    async with kernel_over(place) as kernel:
        reads = Reads(monkeypatch)
        root = await kernel.execute(ask("child", idempotency_key="a"))
        await parked(kernel, 2)
        assert {each.partition("~")[0] for each in reads.jobs} == {root.job_id}
        with pytest.raises(IdempotencyConflict):
            await kernel.execute(ask(9, idempotency_key="b"))
        assert len(await kernel.resume()) == 2
        await parked(kernel, 4)


async def test_an_answer_before_the_resume_is_there_after_it(place):
    async with kernel_over(place) as kernel:
        await answer_all(kernel)
        handles = await kernel.resume()
        assert [(await handle.result()).output for handle in handles] == [True] * 4


async def test_budgets_count_what_open_jobs_may_use_before_they_are_resumed(place, monkeypatch):
    reads = Reads(monkeypatch)
    async with kernel_over(place, budgets=[Budget("default", max_tokens_monthly=10)]) as kernel:
        assert len([each for each in reads.jobs if each is not None]) >= 4
        assert len(await kernel.resume()) == 4
        await parked(kernel, 4)


async def test_a_start_refuses_open_jobs_of_an_agent_that_is_gone(place):
    with pytest.raises(UserError, match=r"open jobs of agents that this kernel does not have: kernel\.below"):
        await RuntimeKernel.create(agent=lead, journal=place).start()


async def test_what_is_open_holds_its_seat_before_it_is_read(tmp_path):
    limits = [JobLimit("lead", per="agent", concurrency=1, parked="holds")]
    async with kernel_over(tmp_path, limits=limits) as kernel:
        await kernel.execute(ask(1))
        await parked(kernel, 1)
    async with kernel_over(tmp_path, limits=limits) as kernel:
        second = asyncio.ensure_future(kernel.execute(ask("quick")))
        await asyncio.sleep(0.1)
        assert len(open_marks(tmp_path)) == 1
        (first,) = await kernel.resume()
        await answer_all(kernel)
        assert (await first.result()).output is True
        assert (await (await second).result()).output == "done"


def open_marks(place):
    reader = open_reader(place)
    found = reader.open_marks()
    assert found == [mark for mark in reversed(reader.logged(JobQuery(), EVERY)) if not mark.outcome]
    reader.close()
    return found
