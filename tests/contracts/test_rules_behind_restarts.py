"""The walk of rules behind a restart: a program that had `policy=` or `budgets=`, and has it no longer, makes no call of its
open jobs, on any surface and in any way. The next start with the option makes each call once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from contracts.test_rules_contract import EFFECTS, RECORDED, WAYS, Desk
from sabot import App
from sabot.agents import Budget, ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.connectors.memory import MemoryBroker
from sabot.jobs.history import History
from tools.agent_tools import started, until

Call = Callable[[Any, Desk], Awaitable[Any]]


def _called_in(place: str, way: str) -> Call:
    return lambda ctx, desk: EFFECTS[place](ctx, desk, way)


CALLS: Mapping[str, Call] = {
    **RECORDED,
    **{f"{place}, {way}": _called_in(place, way) for place in EFFECTS for way in WAYS},
}
DECLARED: Mapping[str, Mapping[str, Any]] = {
    "policy": {"policy": PolicyEngine([ToolPolicy(["refund"], warn=True)])},
    "budgets": {"budgets": [Budget("*", max_calls_daily=100_000)]},
}


class Jobs:
    """The jobs of a program, one for each call: a job waits for a person, and then makes its call. `place`: where it does."""

    def __init__(self, place: str, path: Path, url: str) -> None:
        self.place, self.path, self.url = place, path, url
        self.desks = {name: Desk() for name in CALLS}

    async def waits(self, ctx: Any) -> None:
        if self.place == "next history" and "again" not in ctx.message:
            ctx.continue_as({**ctx.message, "again": True})
        name = ctx.message["call"]
        await ctx.ask("confirm", {"call": name})
        await CALLS[name](ctx, self.desks[name])

    async def lead(self, ctx: Any) -> None:
        await ctx.child(self.waits, ctx.message)

    def made(self) -> dict[str, int]:
        return {name: len(desk.made) for name, desk in self.desks.items()}

    def kernel(self, **options: Any) -> RuntimeKernel:
        agents = [self.lead, self.waits] if self.place == "child" else [self.waits]
        return RuntimeKernel.create(agent=agents, journal=str(self.path), **options)

    def app(self, **options: Any) -> App:
        app = App("shop", self.url, state=str(self.path), checkpoint_interval=3600, **options)
        app.agent("orders", name="work", durable=True, concurrency=len(CALLS))(self.waits)
        return app


async def _answer(actions: Any) -> None:
    for each in await _asked(actions):
        await actions.resolve(each.resume_token, {"approved": True})


async def _asked(actions: Any) -> list[Any]:
    found: list[Any] = []
    while len(found) < len(CALLS):
        found = await actions.find(statuses=["pending"])
        await asyncio.sleep(0.002)
    return found


def _blocked(option: str, caplog: pytest.LogCaptureFixture) -> int:
    return sum(f"{option}= judged the calls" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("option", DECLARED)
@pytest.mark.parametrize("place", ["job", "child", "next history"])
async def test_no_call_of_a_kernel_is_made_without_the_option_of_its_first_start(
    place: str, option: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs(place, tmp_path, "")
    async with jobs.kernel(**DECLARED[option]) as kernel:
        for name in CALLS:
            await kernel.execute(ExecutionRequest(prompt={"call": name}))
        await _asked(kernel.actions)
    async with jobs.kernel() as kernel:
        await kernel.resume()
        await _answer(kernel.actions)
        await until(lambda: _blocked(option, caplog) >= len(CALLS))
    assert jobs.made() == dict.fromkeys(CALLS, 0)
    async with jobs.kernel(**DECLARED[option]) as kernel:
        for each in await kernel.resume():
            await each.result()
    assert jobs.made() == dict.fromkeys(CALLS, 1)


@pytest.mark.parametrize("option", DECLARED)
async def test_no_call_of_an_app_is_made_without_the_option_of_its_first_start(
    option: str, memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = Jobs("job", tmp_path, memory_url)
    async with started(app := jobs.app(**DECLARED[option])):
        MemoryBroker.get(memory_url).publish("orders", [{"call": name} for name in CALLS])
        await _asked(app.actions)
    async with started(app := jobs.app()):
        await _answer(app.actions)
        await until(lambda: _blocked(option, caplog) >= len(CALLS))
    assert jobs.made() == dict.fromkeys(CALLS, 0)
    async with started(jobs.app(**DECLARED[option])):
        await until(lambda: 0 not in jobs.made().values(), str(jobs.made()))
    assert jobs.made() == dict.fromkeys(CALLS, 1)


async def test_a_kernel_that_forgets_what_was_declared_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted door: nothing compares the options of this start with those of the first one."""
    jobs = Jobs("job", tmp_path, "")
    async with jobs.kernel(**DECLARED["policy"]) as kernel:
        for name in CALLS:
            await kernel.execute(ExecutionRequest(prompt={"call": name}))
        await _asked(kernel.actions)
    monkeypatch.setattr(History, "lost", lambda self, declared: "")
    async with jobs.kernel() as kernel:
        handles = await kernel.resume()
        await _answer(kernel.actions)
        for each in handles:
            await each.result()
    assert 0 not in jobs.made().values()
