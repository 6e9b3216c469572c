"""Quotas of tokens are fed with what a ledger has: its hours are the quota's hours."""

import sys
from collections.abc import AsyncIterator

import pytest

from sabot.agents import Budget, ExecutionContext, InMemoryLedgerWriter, Ledger
from sabot.clock import ManualClock
from sabot.llm import Usage
from sabot.process import (
    Command,
    LifecycleConfig,
    LifecycleManager,
    LifecycleState,
    ResourceManager,
    ResourceQuota,
    Supervisor,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="child processes run on Linux")


@pytest.fixture
async def lives() -> AsyncIterator[LifecycleManager]:
    async with LifecycleManager(LifecycleConfig(idle_suspend=None)) as manager:
        yield manager
    (await Supervisor.running()).close()


@pytest.mark.slow  # a second of a core, or more
async def test_what_the_ledger_has_of_an_agent_counts_in_its_quota(lives: LifecycleManager) -> None:
    clock = ManualClock(1_000_000.0)
    ledger = Ledger(InMemoryLedgerWriter(), budgets=[Budget("reviewer", max_tokens_hourly=10**6)], clock=clock)

    async def tokens_of(agent_id: str) -> int:
        return (await ledger.used(agent_id))["hourly"].tokens

    resources = ResourceManager(lives, tokens_of=tokens_of, clock=clock)
    agent = await lives.spawn(Command(argv=["sleep", "1000"]), agent_id="reviewer")
    await resources.set_quota("reviewer", ResourceQuota(cpu=None, memory=None, tokens_per_hour=100))
    context = ExecutionContext(scope_id="reviewer", principal_id="ann", job_id="job")
    row = await ledger.record_model_usage(context, Usage(60, 40), model="m")
    assert (await resources.check("reviewer")).tokens == 100
    assert agent.state is LifecycleState.RUNNING
    await resources.report_tokens("reviewer", row)  # of the program itself, which no ledger has seen
    assert agent.state is LifecycleState.SUSPENDED
    clock.advance(3600)
    assert (await resources.check("reviewer")).tokens == 0
    assert agent.state is LifecycleState.RUNNING
