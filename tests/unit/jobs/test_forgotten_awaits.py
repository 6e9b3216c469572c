"""A coroutine that a job's function makes and never awaits has done nothing: the job fails, names it, and does not succeed without it."""

import asyncio
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from unit.jobs.hosting import Agent, hosting

from sabot.agents.durable.context import DurableContext
from sabot.engine.calls.tools import tool
from sabot.errors import UserError
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent as ModelAgent
from sabot.llm import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider

refunds: list[int] = []


@pytest.fixture(autouse=True)
def no_refunds() -> None:
    refunds.clear()


@tool
async def refund(order: int = 0) -> int:
    refunds.append(order)
    return order


def engine() -> ExecutionEngine:
    return ExecutionEngine(ScriptedProvider(["fine"] * 9))


async def refunds_all(ctx: DurableContext) -> None:
    await ctx.call(refund)


FORGOTTEN: dict[str, Callable[[DurableContext], Any]] = {
    "ctx.call(refund)": lambda ctx: ctx.call(refund, 1),
    "ctx.step(print)": lambda ctx: ctx.step(print, "hello"),
    "ctx.ask(…)": lambda ctx: ctx.ask("confirm", {"message": "may we?"}),
    "ctx.sleep(…)": lambda ctx: ctx.sleep("1h"),
    "ctx.wait(…)": lambda ctx: ctx.wait("paid"),
    "ctx.child(agent)": lambda ctx: ctx.child(agent, {}),
    "ctx.llm(engine).complete(…)": lambda ctx: ctx.llm(engine()).complete("hello"),
    "state.put(…)": lambda ctx: ctx.state().put("key", 1),
    "Agent.run(…)": lambda ctx: ModelAgent(engine()).run("hello", effects=ctx.llm(engine())),
    "refunds_all(…)": refunds_all,
    "wait_for(call)": lambda ctx: asyncio.wait_for(ctx.call(refund, 1), 5),
}


async def agent(ctx: DurableContext) -> None: ...


async def ended(function: Any) -> tuple[Agent, MemoryStorage]:
    home, owner = MemoryStorage(), Agent(function)
    async with hosting(home, owner) as jobs:
        jobs.begin("j1")
        await jobs.over("j1")
    return owner, home


@pytest.mark.parametrize("words", FORGOTTEN)
async def test_a_job_that_forgets_an_await_fails_by_the_name_of_what_it_has_not_done(
    words: str, recwarn: pytest.WarningsRecorder
) -> None:
    async def forgets(ctx: DurableContext) -> str:
        FORGOTTEN[words](ctx)
        return "done"

    owner, _ = await ended(forgets)
    error = owner.errors["j1"]
    assert isinstance(error, UserError)
    assert f"job j1: {words}, in {__file__}, line " in str(error)
    assert "was never awaited, so it was not done" in str(error)
    assert owner.outcomes == {"j1": "failed"}
    assert not refunds
    assert [each for each in recwarn if "never awaited" in str(each.message)] == []  # it is said once


async def test_one_that_a_variable_holds_to_the_end_of_the_function_counts_as_forgotten() -> None:
    async def forgets(ctx: DurableContext) -> str:
        kept = [ctx.call(refund, number) for number in range(3)]
        await kept[0]
        return "done"

    owner, _ = await ended(forgets)
    assert "job j1: ctx.call(refund) was never awaited" in str(owner.errors["j1"])


async def test_one_forgotten_before_the_job_goes_on_with_another_history_is_told_too() -> None:
    async def forgets(ctx: DurableContext) -> None:
        ctx.call(refund, 1)
        ctx.continue_as({"round": 2})

    owner, _ = await ended(forgets)
    assert "ctx.call(refund)" in str(owner.errors["j1"])


async def test_an_error_of_the_function_itself_is_told_before_an_await_that_it_has_forgotten() -> None:
    async def fails(ctx: DurableContext) -> None:
        ctx.call(refund, 1)
        raise ValueError("no such customer")

    owner, _ = await ended(fails)
    assert isinstance(owner.errors["j1"], ValueError)


async def test_effects_that_are_awaited_later_together_or_cancelled_are_not_forgotten(
    recwarn: pytest.WarningsRecorder,
) -> None:
    async def careful(ctx: DurableContext) -> list[int]:
        first, later = ctx.call(refund, 1), asyncio.create_task(ctx.call(refund, 2))
        cancelled = asyncio.create_task(ctx.call(refund, 100))
        cancelled.cancel()  # before it has begun
        with suppress(asyncio.CancelledError):
            await cancelled
        with suppress(TimeoutError):
            await asyncio.wait_for(ctx.wait("never"), 0)
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.call(refund, 3))
            group.create_task(ctx.sleep(0))
        unwanted = ctx.call(refund, 101)
        unwanted.close()  # whoever closes it knows of it
        beside = asyncio.create_task(ctx.call(refund, 6))  # the job waits for its end
        assert not beside.done()
        return [await first, await later, *await asyncio.gather(ctx.call(refund, 4), ctx.call(refund, 5))]

    owner, _ = await ended(careful)
    assert owner.errors == {}
    assert owner.done == {"j1": [1, 2, 4, 5]}
    assert sorted(refunds) == [1, 2, 3, 4, 5, 6]
    assert [each for each in recwarn if "never awaited" in str(each.message)] == []


async def test_a_job_that_the_journal_has_as_succeeded_stays_so_when_it_is_run_over_its_history() -> None:
    home = MemoryStorage()

    async def returns(ctx: DurableContext) -> str:
        return "done"

    async def forgets(ctx: DurableContext) -> str:
        ctx.call(refund, 1)
        return "done"

    async with hosting(home, Agent(returns)) as jobs:
        jobs.begin("j1")
        await jobs.over("j1")
    async with hosting(home, owner := Agent(forgets)) as jobs:
        await jobs.over("j1")
    assert (owner.errors, owner.outcomes) == ({}, {"j1": "succeeded"})


@pytest.mark.parametrize("depth", [0, 1])
def test_a_coroutine_dropped_outside_of_jobs_is_told_by_its_line_as_python_does(
    depth: int, recwarn: pytest.WarningsRecorder
) -> None:
    """With the runtime of jobs loaded, it was told by a line of ours. `depth`: how many calls that made it are kept."""

    async def nothing() -> None:
        """Is never begun."""

    sys.set_coroutine_origin_tracking_depth(depth)
    try:
        nothing()
        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
    finally:
        sys.set_coroutine_origin_tracking_depth(0)
    (told,) = recwarn
    assert told.category is RuntimeWarning
    if depth:
        assert f'File "{__file__}", line {line}' in str(told.message)
    else:
        assert (told.filename, told.lineno) == (__file__, line)
