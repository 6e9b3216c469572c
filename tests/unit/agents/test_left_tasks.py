"""Tasks that the function of a job leaves behind, when it has returned, has failed, was cancelled or has no time left: they end with it,
and what they wait for is not made any more. A person who answered later paid for jobs that were over.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import BudgetSpec, ExecutionRequest, LetterRefused, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.clock import ManualClock
from sabot.jobs.run import JobRun
from sabot.llm import tool
from tools.agent_tools import until

PAID: list[str] = []
ENDS = ["cancel", "raise", "return", "time", "again"]
FORMS = ["wait", "shield", "task"]
GOES_ON = asyncio.Event()  # the call under way ends when it is set


@tool(effect="unsafe")
async def pay(whom: str) -> str:
    PAID.append(whom)
    return f"{whom} is paid"


@tool(effect="unsafe")
async def slow(what: str) -> str:
    await GOES_ON.wait()
    PAID.append(what)
    return what


@pytest.fixture(autouse=True)
def nothing_paid() -> None:
    global GOES_ON
    PAID.clear()
    GOES_ON = asyncio.Event()


async def ends(ctx: Any, how: str) -> Any:
    """The end of a function, which has left something behind."""
    if how == "raise":
        raise ValueError("blocked")
    if how == "again" and ctx.message[0] == "again":
        await ctx.continue_as(["return", "none"])
    if how in ("cancel", "time"):
        await ctx.sleep("1h")


async def asks(ctx: Any) -> Any:
    """Leaves a call behind that a person has to allow."""
    how, form = ctx.message
    if form == "wait":
        left = asyncio.create_task(ctx.call(pay, "eve"))
        await asyncio.wait([left], timeout=0.001)
    elif form == "shield":
        left = asyncio.ensure_future(asyncio.shield(ctx.call(pay, "eve")))
    elif form == "task":
        left = asyncio.create_task(ctx.call(pay, "eve"))
    if form != "none":
        await ctx.sleep("10ms")  # of a clock that stands still until the person was asked
    await ends(ctx, how)
    return how


async def loops(ctx: Any) -> Any:
    """Leaves a call under way behind, and a task that has paid two and goes on. The function ends when that task has paid, not after a
    time, which on a busy machine was too short for it.
    """
    how, form = ctx.message
    paid_two = asyncio.Event()

    async def again() -> None:
        for number in range(1000):
            try:
                await ctx.call(pay, str(number))
            except BaseException:
                if form == "catches":
                    continue
                raise
            if number == 1:
                paid_two.set()
            await ctx.sleep("1ms")

    left = [asyncio.create_task(ctx.call(slow, "slow"))]
    if form != "none":
        left.append(asyncio.create_task(again()))
        await paid_two.wait()
    await ends(ctx, how)
    return len(left)


async def over(kernel: RuntimeKernel, how: str, handle: Any) -> None:
    """Brings the function of a job to its end."""
    if how == "cancel":
        await handle.cancel("fraud")


def request(how: str, form: str) -> ExecutionRequest:
    return ExecutionRequest(prompt=[how, form], budgets=BudgetSpec(max_runtime_seconds=100 if how == "time" else None))


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "how", [each for each in ENDS if each != "time"]
)  # time of waiting for a person does not count
async def test_the_question_about_a_call_that_is_left_behind_is_withdrawn(tmp_path: Path, how: str, form: str) -> None:
    policy, clock = PolicyEngine([ToolPolicy(["pay"], require_approval=True)]), ManualClock(1_000.0)
    async with RuntimeKernel.create(agent=asks, journal=tmp_path / "jobs", policy=policy, clock=clock) as kernel:
        handle = await kernel.execute(request(how, form))
        asked = await first_question(kernel)
        await over(kernel, how, handle)
        result = asyncio.ensure_future(handle.result())
        await until(lambda: clock.advance(0.01) or result.done())
        outcome = {"cancel": "cancelled", "raise": "failed"}.get(how, "succeeded")
        assert (await kernel.jobs.get(handle.job_id)).status == outcome  # what is durable, as the inbox reads it too
        with pytest.raises(LetterRefused):
            await kernel.actions.resolve(asked.resume_token, {"approved": True})
    assert PAID == []


async def first_question(kernel: RuntimeKernel) -> Any:
    for _ in range(10_000):
        events = [each for each in await kernel.actions.find()]
        if events:
            return events[0]
        await asyncio.sleep(0.005)
    raise AssertionError("nobody was asked")


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("form", ["raises", "catches"])
@pytest.mark.parametrize("how", [each for each in ENDS if each != "time"])
async def test_nothing_new_is_made_while_a_call_that_is_left_behind_goes_on(
    tmp_path: Path, how: str, form: str
) -> None:
    async with RuntimeKernel.create(agent=loops, journal=tmp_path / "jobs") as kernel:
        handle = await kernel.execute(request(how, form))
        await until(lambda: len(PAID) > 1)
        await over(kernel, how, handle)
        await until(lambda: kernel._host._host.running[handle.job_id].job.finished)  # type: ignore[union-attr]
        paid = len(PAID)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert "slow" not in PAID
        GOES_ON.set()
        await asyncio.wait([asyncio.ensure_future(handle.result())])
        assert PAID.count("slow") == 1
        assert len(PAID) - 1 <= paid + 1  # one call may have been under way


@pytest.mark.parametrize("form", ["raises", "catches"])
async def test_nothing_new_is_made_when_the_time_of_a_job_is_over(tmp_path: Path, form: str) -> None:
    """The call under way has no time left either, so it is in doubt."""
    clock = ManualClock(1_000.0)
    async with RuntimeKernel.create(agent=loops, journal=tmp_path / "jobs", clock=clock) as kernel:
        handle = await kernel.execute(request("time", form))
        while len(PAID) < 2:
            clock.advance(0.001)  # until the task pays again
            await asyncio.sleep(0)
        clock.advance(100)
        asked = await first_question(kernel)
        paid = len(PAID)
        assert asked.type == "in_doubt"
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(PAID) == paid
        await kernel.actions.resolve(asked.resume_token, {"outcome": "not_done"})
        with pytest.raises(TimeoutError):
            await handle.result()
        assert len(PAID) == paid


async def test_a_history_with_effects_behind_the_end_of_the_function_is_replayed_as_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions let tasks go on that were left behind."""
    options: dict[str, Any] = {"agent": loops, "journal": tmp_path / "jobs", "version": "1", "stop_grace": 0.01}
    with monkeypatch.context() as earlier:
        earlier.setattr(JobRun, "_end_tasks", lambda job: None)
        async with RuntimeKernel.create(**options) as kernel:
            handle = await kernel.execute(request("return", "raises"))
            await until(lambda: kernel._host._host.running[handle.job_id].job.finished)  # type: ignore[union-attr]
            paid = len(PAID)
            await until(lambda: len(PAID) > paid + 3)
    async with RuntimeKernel.create(**options) as kernel:
        (handle,) = await kernel.resume()
        paid = len(PAID)
        asked = await first_question(kernel)
        assert asked.type == "in_doubt"
        await kernel.actions.resolve(asked.resume_token, {"outcome": "done", "result": "slow"})
        assert (await handle.result()).output == 2
        assert len(PAID) == paid
