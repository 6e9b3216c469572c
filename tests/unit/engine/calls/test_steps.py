"""`watched`: a coroutine behaves as without it, and steps that take long are named in the log."""

import asyncio
import re
from typing import Any

import pytest

from sabot.clock import ManualClock
from sabot.engine.calls.steps import watched


def held_s(caplog: pytest.LogCaptureFixture) -> list[float]:
    """The seconds of the warnings."""
    return [float(each) for each in re.findall(r"tool slow blocked the event loop for ([\d.]+) s", caplog.text)]


async def of(work: Any) -> Any:
    clock = ManualClock()
    return await watched(work(clock), "tool slow", clock)


async def test_what_it_returns_and_the_steps_that_are_long(caplog: pytest.LogCaptureFixture) -> None:
    async def work(clock: ManualClock) -> str:
        clock.advance(2)
        first = await asyncio.to_thread(str, 1)
        clock.advance(0.5)
        second = await asyncio.sleep(0, "2")
        clock.advance(1)
        return first + second

    assert await of(work) == "12"
    assert held_s(caplog) == [2.0, 1.0]


async def test_an_error_of_what_it_waits_for_is_its_own_to_handle(caplog: pytest.LogCaptureFixture) -> None:
    async def work(clock: ManualClock) -> str:
        try:
            await asyncio.to_thread(int, "x")
        except ValueError:
            clock.advance(4)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await of(work)
    assert held_s(caplog) == [4.0]


async def test_a_cancellation_reaches_it_and_it_may_clean_up() -> None:
    began, cleaned = asyncio.Event(), []

    async def work(clock: ManualClock) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    task = asyncio.create_task(of(work))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_what_is_no_coroutine_is_waited_for_as_it_is() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(7)
    assert await watched(future, "tool slow", ManualClock()) == 7
