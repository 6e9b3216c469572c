"""Stores beside a kernel: its jobs and actions are seen in them, asked about and answered by them; its journal holds."""

import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    ActionManager,
    ActionStatus,
    BudgetSpec,
    ExecutionRequest,
    InMemoryActionStore,
    InMemoryJobStore,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    LetterRefused,
    PolicyEngine,
    PolicyRef,
    RuntimeKernel,
    RunVersions,
    SqliteJournal,
    StateManager,
)
from sabot.clock import ManualClock
from sabot.errors import UserError
from tools.agent_tools import until


async def asks(ctx: Any) -> Any:
    reply = await ctx.ask("confirm", {"what": ctx.message}, timeout="1h")
    return reply.approved if reply.outcome == "resolved" else reply.outcome


def memory(path: Path) -> JournalStore:
    return InMemoryJobStore(clock=ManualClock())


def sqlite(path: Path) -> JournalStore:
    return JournalStore(SqliteJournal(path, clock=ManualClock()))


@pytest.mark.parametrize("made", [memory, sqlite])
async def test_the_jobs_and_actions_of_a_kernel_are_seen_and_answered_by_its_stores(
    tmp_path: Path, made: Callable[[Path], JournalStore]
) -> None:
    store = made(tmp_path)
    jobs, actions = JobManager(store), ActionManager(store, poll="1ms")
    async with RuntimeKernel(None, asks, job_store=store, action_store=store) as kernel:
        first = await kernel.execute(ExecutionRequest(prompt=1, scope_id="a", principal_id="ann"))
        second = await kernel.execute(ExecutionRequest(prompt=2, scope_id="b"))
        await until(lambda: kernel.statistics()["parked"] == 2)
        assert [each.job_id for each in await jobs.find(scope_id="a")] == [first.job_id]
        [action] = await actions.find(job_id=first.job_id)
        assert (action.type, dict(action.payload), action.status) == ("confirm", {"what": 1}, "pending")
        assert (await jobs.get(first.job_id)).status is JobStatus.WAITING_ACTION
        await actions.resolve(action.resume_token, {"approved": True}, by="ann")
        assert (await first.result()).output is True
        seen = await jobs.get(first.job_id)
        assert (seen.status, seen.principal_id, seen.agent) == ("succeeded", "ann", "kernel.asks")
        assert (await actions.wait_for_resolution(action.action_id)).by == "ann"
        with pytest.raises(LetterRefused):
            await actions.resolve(action.resume_token, {"approved": False})
        [other] = await actions.find(statuses=[ActionStatus.PENDING])
        assert other.job_id == second.job_id
        await jobs.cancel(second.job_id, "not wanted")
        await until(lambda: second.done)
        assert (await jobs.get(second.job_id)).status is JobStatus.CANCELLED
        with pytest.raises(UserError, match="jobs of a kernel begin with requests"):
            await jobs.create(JobSpec(scope_id="a"))
        assert await jobs.find() == await kernel.jobs.find()
    assert len(await jobs.find()) == 2  # also when the kernel is closed
    store.journal.close()


async def test_who_has_the_result_of_a_job_sees_its_end_in_the_store_at_once(tmp_path: Path) -> None:
    async def echo(ctx: Any) -> Any:
        return ctx.message

    store = JournalStore(SqliteJournal(tmp_path))
    async with RuntimeKernel(None, echo, job_store=store) as kernel:
        for number in range(10):
            handle = await kernel.execute(ExecutionRequest(prompt=number))
            await handle.result()
            assert (await store.get(handle.job_id)).status is JobStatus.SUCCEEDED
            assert [each.status for each in await store.find()] == [JobStatus.SUCCEEDED] * (number + 1)
    store.journal.close()


SAID = {
    "session_id": "c-1",
    "run_id": "night-7",
    "budgets": BudgetSpec(max_tokens=100, max_cost="0.5", max_runtime_seconds=3600),
    "policy_ref": PolicyRef("house"),
    "versions": RunVersions(model_version="m-1", prompt_version="p-2"),
    "metadata": {"ticket": 7, "raw": b"text", "day": date(2026, 1, 2)},
    "idempotency_key": "order-7",
}


@pytest.mark.parametrize("prompt", ["short", "long " * 20_000], ids=["short", "long"])
async def test_the_record_of_a_kernels_job_has_what_its_request_says_as_that_of_a_job_manager(
    tmp_path: Path, prompt: str
) -> None:
    """Its session, run, budgets, policy, versions, metadata and idempotency key were in its BEGIN entry, and not shown."""
    clock = ManualClock()
    policy = PolicyEngine([], name="house")

    def kernel(store: JournalStore) -> RuntimeKernel:
        return RuntimeKernel(None, asks, job_store=store, action_store=store, policy=policy)

    store = JournalStore(SqliteJournal(tmp_path, clock=clock))
    async with kernel(store) as first:
        handle = await first.execute(ExecutionRequest(prompt=prompt, scope_id="a", **SAID))
        await until(lambda: first.statistics()["parked"] == 1)
        states = StateManager(first)
        await states.create(handle.job_id, "asked")
        restored = await states.restore(handle.job_id, "asked", beside=True)
    store.journal.close()
    store = JournalStore(SqliteJournal(tmp_path, clock=clock))
    async with kernel(store) as second:
        seen = [await JobManager(store).get(each) for each in (handle.job_id, restored.job_id)]
        for job in seen:
            found = {name: getattr(job, name) for name in SAID}
            metadata = found.pop("metadata")
            assert found == {name: each for name, each in SAID.items() if name != "metadata"}
            assert {**metadata, "restored": None} == {"ticket": 7, "raw": "text", "day": "2026-01-02", "restored": None}
        assert seen[1].metadata["restored"] == {"job": handle.job_id, "checkpoint": "asked"}
        clock.advance(2 * 3600)
        assert (await JobManager(store).get(handle.job_id)).status is JobStatus.WAITING_ACTION, "the kernel ends it"
        assert await JobManager(store).expire() == []
        assert len(await second.resume()) == 2


@pytest.mark.parametrize("journal", ["own", "other"])
async def test_two_stores_show_one_kernel(tmp_path: Path, journal: str) -> None:
    jobs, actions = InMemoryJobStore(), InMemoryActionStore()
    place = tmp_path if journal == "other" else None
    async with RuntimeKernel.create(agent=asks, job_store=jobs, action_store=actions, journal=place) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        await until(lambda: kernel.statistics()["parked"] == 1)
        await kernel.record(handle.job_id)
        [action] = await ActionManager(actions).find()
        await ActionManager(actions).resolve(action.resume_token, {"approved": True})
        assert (await handle.result()).output is True
        assert (await JobManager(jobs).get(handle.job_id)).status == "succeeded"


async def test_a_store_whose_journal_has_other_jobs_says_so_and_shows_the_kernels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = InMemoryJobStore()
    mine = await JobManager(store).create(JobSpec(scope_id="a"))
    with caplog.at_level(logging.WARNING):
        async with RuntimeKernel.create(agent=asks, job_store=store, journal=tmp_path) as kernel:
            handle = await kernel.execute(ExecutionRequest(prompt=1))
            await kernel.record(handle.job_id)
            assert [each.job_id for each in await JobManager(store).find()] == [handle.job_id]
            assert await store.get(mine.job_id) is None
    [said] = [each.message for each in caplog.records if "journal of the kernel holds" in each.message]
    assert "has 1 job of its own, and not those of" in said


async def test_what_cannot_show_a_kernel_is_refused() -> None:
    with pytest.raises(UserError, match=r"job_store=.*does not show the jobs of a kernel"):
        RuntimeKernel.create(agent=asks, job_store={})
    store = InMemoryJobStore()
    RuntimeKernel.create(agent=asks, job_store=store)
    with pytest.raises(UserError, match="is that of another kernel"):
        RuntimeKernel.create(agent=asks, job_store=store)


async def test_a_kernel_over_the_journal_of_its_store_goes_on_after_a_restart(tmp_path: Path) -> None:
    for again in (False, True):
        store = JournalStore(SqliteJournal(tmp_path))
        async with RuntimeKernel.create(agent=asks, job_store=store) as kernel:
            if not again:
                handle = await kernel.execute(ExecutionRequest(prompt=1))
                await until(lambda: kernel.statistics()["parked"] == 1)
            else:
                [handle] = await kernel.resume()
                [action] = await ActionManager(store).find()
                await ActionManager(store).resolve(action.resume_token, {"approved": False})
                assert (await handle.result()).output is False
        store.journal.close()


class Fails(InMemoryJobStore):
    """A store that shows a kernel's jobs elsewhere, and cannot."""

    fails_at, left = "", False

    async def show(self, journal: Any) -> None:
        if self.fails_at == "show":
            raise UserError("the place is full")

    async def became_durable(self) -> None:
        if self.fails_at == "became_durable":
            raise UserError("the place is full")

    async def leave(self) -> None:
        self.left = True


async def test_a_store_that_fails_stops_the_kernel_which_then_closes_its_journal(tmp_path: Path) -> None:
    fails = Fails()
    kernel = RuntimeKernel(None, asks, journal=tmp_path, job_store=fails)
    handle = await kernel.execute(ExecutionRequest(prompt=1))
    await until(lambda: kernel.statistics()["parked"] == 1)
    fails.fails_at = "became_durable"
    with pytest.raises(UserError, match="the place is full"):
        await kernel.close()
    assert fails.left
    with pytest.raises(UserError, match=r"the place is full|was closed before the end"):
        await handle.result()
    async with RuntimeKernel(None, asks, journal=tmp_path) as kernel:
        assert [each.job_id for each in await kernel.resume()] == [handle.job_id]


async def test_a_start_that_one_store_refuses_leaves_the_others(tmp_path: Path) -> None:
    first, second = Fails(), Fails()
    second.fails_at = "show"
    kernel = RuntimeKernel(None, asks, journal=tmp_path, job_store=first, action_store=second)
    with pytest.raises(UserError, match="the place is full"):
        await kernel.start()
    assert first.left
    first.left, second.fails_at = False, ""
    async with kernel:
        assert not first.left
    assert first.left
