"""The time of a job (`max_runtime_seconds`) is that of its children too, and so are its calls of tools."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import BudgetSpec, ChildLimits, ExecutionRequest, JobStatus, RuntimeKernel, tool
from sabot.clock import ManualClock
from sabot.errors import EffectError
from sabot.journal.memory import MemoryStorage
from tools.agent_tools import until


class Tree:
    """Agents of which one asks another for something, by a clock that is moved by hand."""

    def __init__(self):
        self.clock, self.seen = ManualClock(1_000.0), []
        self.storage = MemoryStorage(self.clock)

        async def sleeper(ctx):
            await ctx.sleep(ctx.message)
            return "slept"

        async def asker(ctx):
            return (await ctx.ask("confirm", {})).outcome

        async def parent(ctx):
            try:
                return await ctx.child(sleeper, ctx.message)
            except EffectError as error:
                self.seen.append(error)
                await ctx.sleep("1h")

        async def twice(ctx):
            return [await ctx.child(sleeper, "6s"), await ctx.child(sleeper, "6s")]

        async def beside(ctx):
            return await asyncio.gather(*(ctx.child(sleeper, "6s") for _ in range(3)))

        async def approved(ctx):
            return [await ctx.child(asker, 1), await ctx.child(sleeper, "6s")]

        async def busy(ctx):
            left = asyncio.ensure_future(ctx.child(sleeper, "1h"))
            while not left.done():
                await ctx.sleep("100ms")

        self.agents = [parent, twice, beside, approved, busy, sleeper, asker]

    def kernel(self, **how):
        return RuntimeKernel.create(agent=self.agents, journal=self.storage, clock=self.clock, **how)

    async def begin(self, kernel, agent, prompt=1):
        return await kernel.execute(
            ExecutionRequest(prompt=prompt, agent=agent, budgets=BudgetSpec(max_runtime_seconds=10))
        )

    async def parks(self, kernel, jobs):
        await until(lambda: kernel.statistics()["parked"] == jobs)


@pytest.mark.parametrize("restarts", [False, True])
async def test_the_time_of_a_job_is_that_of_its_children_too(restarts):
    """A child slept on for as long as it liked, and its parent waited for it."""
    tree = Tree()
    kernel = tree.kernel()
    handle = await tree.begin(kernel, "parent", "1h")
    await tree.parks(kernel, 2)
    tree.clock.advance(4)
    if restarts:
        await kernel.close()
        kernel = tree.kernel()
        handle, _ = await kernel.resume()
        await tree.parks(kernel, 2)
    tree.clock.advance(6)
    with pytest.raises(TimeoutError, match="max_runtime_seconds=10"):
        await handle.result()
    await until(lambda: kernel.statistics()["ended"] == 2)
    await kernel.close()
    (told,) = set(map(str, tree.seen))
    assert (
        f"TimeoutError: job {handle.job_id}~1 ran longer than max_runtime_seconds=10, which job {handle.job_id} had left"
        in told
    )


async def test_children_one_after_the_other_share_the_time_and_those_side_by_side_have_it_each():
    tree = Tree()
    async with tree.kernel() as kernel:
        beside, twice = [await tree.begin(kernel, name) for name in ("beside", "twice")]
        await tree.parks(kernel, 6)
        tree.clock.advance(6)
        assert (await beside.result()).output == ["slept"] * 3
        await tree.parks(kernel, 2)
        tree.clock.advance(4)
        with pytest.raises((TimeoutError, EffectError), match="ran longer than max_runtime_seconds"):
            await twice.result()
        await until(lambda: kernel.statistics()["parked"] == 0)


async def test_the_time_in_which_a_child_waits_for_a_person_is_nobodys():
    tree = Tree()
    async with tree.kernel() as kernel:
        handle = await tree.begin(kernel, "approved")
        await tree.parks(kernel, 2)
        tree.clock.advance(2 * 86_400)
        (action,) = await kernel.actions.find()
        await kernel.actions.resolve(action.resume_token, {"approved": True})
        await until(lambda: kernel.statistics()["begun"] == 3)
        await tree.parks(kernel, 2)
        tree.clock.advance(6)
        assert (await handle.result()).output == ["resolved", "slept"]


@pytest.mark.parametrize("outlive", [False, True])
async def test_a_child_that_nobody_waits_for_ends_with_the_time_of_its_job_unless_it_may_outlive_it(outlive):
    tree = Tree()
    async with tree.kernel(children=ChildLimits(outlive=outlive)) as kernel:
        handle = await tree.begin(kernel, "busy")
        child = f"{handle.job_id}~2"
        await until(lambda: kernel.statistics()["begun"] == 2)
        tree.clock.advance(10)
        with pytest.raises(TimeoutError, match="max_runtime_seconds=10"):
            await handle.result()
        if outlive:
            await tree.parks(kernel, 1)
            tree.clock.advance(3_600)
        await until(lambda: kernel.statistics()["ended"] == 2)
        record = await kernel.jobs.get(child)
        assert record.status == (JobStatus.SUCCEEDED if outlive else JobStatus.CANCELLED)


async def test_an_open_child_is_no_call_of_a_tool_behind_a_restart(tmp_path: Path) -> None:
    """Its effect was taken up as a call of a tool, so a job that may call 3 tools called 2."""
    made: list[int] = []

    @tool
    async def pay(number: int) -> None:
        made.append(number)

    async def child(ctx: Any) -> None:
        await ctx.call(pay, 1)
        await ctx.ask("confirm", {})
        for number in (2, 3, 4):
            with suppress(EffectError):
                await ctx.call(pay, number)

    async def lead(ctx: Any) -> None:
        await ctx.child(child, None)

    def kernel() -> RuntimeKernel:
        return RuntimeKernel.create(agent=[lead, child], journal=tmp_path / "jobs")

    async with kernel() as first:
        job = await first.execute(ExecutionRequest(prompt="go", budgets=BudgetSpec(max_tool_calls=3)))
        await until(lambda: made)
        while not (asked := await first.actions.find(statuses=["pending"])):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    async with kernel() as second:
        await second.resume()
        await second.actions.resolve(asked[0].resume_token, {"approved": True})
        await (await second.handle(job.job_id)).result()
    assert made == [1, 2, 3]


async def test_the_time_of_a_job_passes_also_if_the_clock_was_ahead_before_a_restart() -> None:
    """The clock was set back by an hour between two processes: for an hour no time passed, and the job went on."""
    tree, ticks = Tree(), []

    async def tick():
        ticks.append(tree.clock.time())

    async def ticking(ctx):
        for _ in range(30):
            await ctx.step(tick, effect="read")
            await ctx.sleep("3s")

    tree.agents.append(ticking)
    tree.clock.set(tree.clock.time() + 3_600)
    async with tree.kernel() as kernel:
        job = (await tree.begin(kernel, "ticking")).job_id
        await tree.parks(kernel, 1)
    tree.clock.set(tree.clock.time() - 3_600)
    async with tree.kernel() as kernel:
        await kernel.resume()
        handle = await kernel.handle(job)
        ended = asyncio.ensure_future(handle.result())
        while not ended.done():
            tree.clock.advance(1)
            await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError, match="ran longer than max_runtime_seconds=10"):
            await ended
    assert len(ticks) <= 5  # 3 seconds apart; the wait over the change of the clock may count for nothing
