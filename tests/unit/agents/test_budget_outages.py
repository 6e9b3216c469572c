"""A job waits for a budget whose database is away for as long as it waits for its journal; it does not end as failed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sabot.agents import Budget, ExecutionRequest, InMemoryLedgerWriter, Ledger, RuntimeKernel
from sabot.agents.accounts.owners import BatchResult, BudgetBatch
from sabot.errors import BrokerUnavailable, JobCancelled, TransientError
from sabot.journal.kafka import PATIENCE_SECONDS
from sabot.llm import Agent, BudgetUnavailable, ExecutionEngine, ScriptedProvider
from tools.agent_tools import PATIENCE, until

BUDGETS = [Budget("default", max_calls_daily=10)]


class Away(InMemoryLedgerWriter):
    """A database that is away while `away` is True. `asked`: the attempts to reach it meanwhile."""

    away, asked = False, 0

    def look(self) -> None:
        if self.away:
            self.asked += 1
            raise BrokerUnavailable("db:5432: server closed the connection")

    async def work(self, batch: BudgetBatch) -> BatchResult:
        self.look()
        return await super().work(batch)

    async def used(self, scope_id: str, since_ms: int) -> Any:
        self.look()
        return await super().used(scope_id, since_ms)


def kernel_of(writer: Away, **options: Any) -> tuple[ScriptedProvider, RuntimeKernel]:
    provider = ScriptedProvider(lambda spec: "yes")
    desk = Agent(ExecutionEngine(provider, retries=0, patience=0), name="desk")
    return provider, RuntimeKernel.create(agent=desk, budgets=Ledger(writer, budgets=BUDGETS, **options))


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Awaitable[None]]:
    """Lets seconds pass on the event loop of the test at once, with some turns of it."""

    async def passes(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + seconds)
        for _ in range(20):
            await asyncio.sleep(0)

    return passes


@pytest.mark.parametrize("shared", [False, True])
async def test_a_job_waits_for_a_budget_whose_server_is_away(
    shared: bool, pass_time: Callable[[float], Awaitable[None]]
) -> None:
    """After ten seconds without an answer, and at once with a ledger of its own, a job ended as failed."""
    writer = Away(shared=shared)
    provider, kernel = kernel_of(writer)
    async with kernel:
        writer.away = True
        handle = await kernel.execute(ExecutionRequest(prompt="hello"))
        await until(lambda: writer.asked > 1, "the attempts to reach the server")
        await pass_time(PATIENCE_SECONDS - 60)
        assert provider.requests == [], "no money is spent unchecked"
        writer.away = False
        assert (await asyncio.wait_for(handle.result(), PATIENCE)).content == "yes"
        assert kernel.ledger is not None
        assert (await kernel.ledger.used("default"))["daily"].calls == 1


@pytest.mark.parametrize("shared", [False, True])
async def test_a_job_fails_when_its_budget_was_away_for_longer_than_the_patience(shared: bool) -> None:
    writer = Away(shared=shared)
    provider, kernel = kernel_of(writer, patience="100ms")
    async with kernel:
        writer.away = True
        handle = await kernel.execute(ExecutionRequest(prompt="hello"))
        with pytest.raises(BudgetUnavailable, match="db:5432: server closed the connection"):
            await handle.result()
        assert provider.requests == []
        writer.away = False


@pytest.mark.parametrize("shared", [False, True])
async def test_a_job_that_waits_for_its_budget_can_be_cancelled_and_its_kernel_closed(shared: bool) -> None:
    writer = Away(shared=shared)
    provider, kernel = kernel_of(writer)
    async with kernel:
        writer.away = True
        first = await kernel.execute(ExecutionRequest(prompt="one"))
        await until(lambda: writer.asked > 1, "the attempts to reach the server")
        await first.cancel("no more")
        with pytest.raises(JobCancelled):
            await asyncio.wait_for(first.result(), PATIENCE)
        await kernel.execute(ExecutionRequest(prompt="two"))
        await until(lambda: kernel.statistics()["running"] == 1, "the job that waits when the kernel is closed")
        writer.away = not shared  # else the end waits for the rows of the ledger
    assert provider.requests == []


async def test_what_is_no_call_waits_for_ten_seconds_only(pass_time: Callable[[float], Awaitable[None]]) -> None:
    writer = Away(shared=True)
    ledger = Ledger(writer, budgets=BUDGETS)
    writer.away = True
    used = asyncio.create_task(ledger.used("default"))
    await until(lambda: writer.asked > 1, "the attempts to reach the server")
    await pass_time(11)
    with pytest.raises(TransientError, match="has not answered for 10 s"):
        await asyncio.wait_for(used, PATIENCE)
    writer.away = False
    await ledger.close()
