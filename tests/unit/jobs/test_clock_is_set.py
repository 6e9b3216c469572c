"""Jobs on a machine whose clock somebody sets, back or forth, while they run and between two lives of their host."""

import asyncio
from typing import Any

import pytest
from unit.jobs.hosting import Agent, hosting

from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError
from sabot.journal.memory import MemoryStorage


@pytest.mark.parametrize("jump_s", [-86400, 86400])
async def test_a_clock_that_is_set_moves_no_timer_of_this_life(jump_s: int) -> None:
    """Set back by an hour, a sleep of 5 s did not end, and a time-out of 4 s let a step of 8 s through; set forth, both came at once."""
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "gives up":
            try:
                async with asyncio.timeout(3600):
                    await ctx.wait("never")
            except TimeoutError:
                return "gave up"
        await ctx.sleep("1h")
        return "slept"

    async with hosting(home, Agent(f, clock)) as jobs:
        for job in ("sleeps", "gives up"):
            jobs.begin(job, job)
            await jobs.parks(job)
        clock.set(clock.time() + jump_s)
        jobs.begin("later", "sleeps")
        await jobs.parks("later")
        clock.advance(3500)
        await asyncio.sleep(0.1)
        assert not jobs.agent.outcomes
        clock.advance(101)
        for job in ("sleeps", "gives up", "later"):
            await jobs.over(job)
        assert jobs.agent.done == {"sleeps": "slept", "gives up": "gave up", "later": "slept"}


@pytest.mark.parametrize(("jump_s", "left_s"), [(-86400, 3600), (1800, 1800)])
async def test_what_is_left_of_a_wait_over_a_restart_goes_by_the_time_of_day_and_is_never_more_than_all_of_it(
    jump_s: int, left_s: int
) -> None:
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        await ctx.sleep("1h")
        await ctx.sleep("1h")
        return ctx.now() / 1000

    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("job")
        await jobs.parks("job")
    clock.set(clock.time() + jump_s)
    async with hosting(home, Agent(f, clock)) as jobs:
        await jobs.parks("job")
        clock.advance(left_s - 5)
        await asyncio.sleep(0.1)
        assert not jobs.agent.wakes
        clock.advance(6)
        await jobs.parks("job", wakes=1)
        clock.advance(3595)
        await asyncio.sleep(0.1)
        assert not jobs.agent.outcomes
        clock.advance(6)
        await jobs.over("job")


async def test_the_time_of_an_attempt_is_not_cut_by_a_clock_that_is_set_forth() -> None:
    """An attempt of 2 s was cut as one that "ran longer than timeout=4s"."""
    clock = ManualClock()
    go = asyncio.Event()

    @tool(effect="read")
    async def look() -> str:
        await go.wait()
        return "found"

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(look)

    async with hosting(MemoryStorage(clock), Agent(f, clock, timeout_s=4)) as jobs:
        jobs.begin("job")
        await jobs.until(lambda: jobs.host.statistics()["in_flight"] == 1)
        clock.set(clock.time() + 3600)
        clock.advance(2)
        await asyncio.sleep(0.1)
        go.set()
        await jobs.over("job")
        assert jobs.agent.done == {"job": "found"}


async def test_a_function_that_polls_until_a_time_comes_to_its_end_after_the_clock_was_set_back() -> None:
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        loop = asyncio.get_running_loop()
        until, rounds = loop.time() + 20, 0
        while loop.time() < until:
            await ctx.sleep(10)
            rounds += 1
        return rounds

    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("job")
        await jobs.parks("job")
    clock.set(clock.time() - 86400)
    async with hosting(home, Agent(f, clock)) as jobs:
        async with asyncio.timeout(60):
            while "job" not in jobs.agent.outcomes:
                await asyncio.sleep(0.1)
                clock.advance(11)
        assert jobs.agent.done["job"] <= 4


async def test_a_further_attempt_has_all_the_time_of_its_time_out_after_the_clock_was_set_back() -> None:
    """The results that it kept had later times than the attempt, so `asyncio.timeout` around them was over at once, in
    this attempt and in each that followed."""
    clock = ManualClock()
    home = MemoryStorage(clock)
    hangs = asyncio.Event()
    said: list[str] = ["", "fails", "", "", "fails", "hangs", "fails", ""]

    @tool(effect="read")
    async def look() -> str:
        if (next_said := said.pop(0)) == "hangs":
            hangs.set()
            await asyncio.Event().wait()
        if next_said:
            raise ValueError(next_said)
        return "found"

    async def f(ctx: DurableContext) -> Any:
        async with asyncio.timeout(60):
            for _ in range(2):
                await ctx.call(look)
                await ctx.sleep(40)
                await ctx.call(look)
            await ctx.sleep(40)
            return "found"

    async with hosting(home, Agent(f, clock, verdict="again")) as jobs:
        jobs.begin("job")
        await jobs.parks("job")
        clock.advance(41)
        await jobs.parks("job", wakes=1)
        clock.advance(41)
        await jobs.until(hangs.is_set)
    clock.set(clock.time() - 86400)
    async with hosting(home, Agent(f, clock, verdict="again")) as jobs:
        await jobs.parks("job")
        clock.advance(41)
        await jobs.over("job")
        assert [type(each) for each in jobs.agent.errors.values()] == [EffectError]
        assert jobs.agent.done == {"job": "found"}
