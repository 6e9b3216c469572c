"""An agent that is a tool of another one is called by the name of this tool: rules, people and budgets decide on the call, and
then on each call that the agent makes.
"""

import asyncio
from typing import Any

import pytest
from unit.jobs.hosting import entries

from sabot.agents import (
    AgentPolicy,
    BudgetSpec,
    DataAccessPolicy,
    ExecutionRequest,
    PolicyEngine,
    RedactionPolicy,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.durable.models import JobModel
from sabot.agents.job_view import JobView
from sabot.errors import UserError
from sabot.journal.entries import Intent
from sabot.journal.memory import MemoryReader, MemoryStorage
from sabot.llm import Agent, CallBudget, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool
from tools.agent_tools import until

ASKS = ToolPolicy(["helper"], require_approval=True)


class Team:
    """A lead that hands `given` over to `helper`, which pays once. `prompts` has what the helper was told."""

    def __init__(self, given: str = "pay o-1", budget: CallBudget | None = None) -> None:
        self.paid: list[str] = []
        self.prompts: list[str] = []
        self.given = given

        @tool
        async def refund(order: str) -> str:
            """Pays money back."""
            self.paid.append(order)
            return f"paid {order}"

        self.engine = ExecutionEngine(ScriptedProvider(self._answer, model="m"), retries=0, patience=0, budget=budget)
        self.helper = Agent(self.engine, name="helper", tools=[refund])
        self.lead = Agent(self.engine, name="lead", tools=[self.helper])

    def _answer(self, spec: Any) -> Any:
        last = spec.messages[-1]
        if last.role == "tool":
            return last.text
        if spec.tools[0].name == "helper":
            return assistant("", ToolCall("1", "helper", f'{{"prompt": "{self.given}", "amount": 5}}'))
        self.prompts.append(last.text)
        return assistant("", ToolCall("1", "refund", f'{{"order": "{last.text}"}}'))

    async def work(self, ctx: Any) -> str:
        return (await self.lead.run("go", effects=ctx.llm(self.engine))).content


def kernel_of(team: Team, *rules: Any, journal: MemoryStorage | None = None, work: Any = None) -> RuntimeKernel:
    policy = PolicyEngine(list(rules)) if rules else None
    return RuntimeKernel.create(agent=work or team.work, policy=policy, journal=journal or MemoryStorage())


async def result(kernel: RuntimeKernel, **options: Any) -> str:
    return str((await (await kernel.execute(ExecutionRequest(prompt="go", **options))).result()).content)


def calls(home: MemoryStorage) -> list[str]:
    return [each.name for each in entries(home) if isinstance(each, Intent) and each.kind == "call"]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_person_decides_with_which_prompt_an_agent_is_called(restarts: bool) -> None:
    team, home = Team(), MemoryStorage()
    async with kernel_of(team, ASKS, journal=home) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await until(lambda: kernel.statistics()["parked"])
        if not restarts:
            (asked,) = await kernel.actions.find(statuses=["pending"])
            await kernel.actions.resolve(asked.resume_token, {"approved": True, "arguments": {"prompt": "o-2"}})
            assert (await handle.result()).content == "paid o-2"
    if restarts:
        async with kernel_of(team, ASKS, journal=home) as kernel:
            (handle,) = await kernel.resume()
            (asked,) = await kernel.actions.find(statuses=["pending"])
            await kernel.actions.resolve(asked.resume_token, {"approved": True, "arguments": {"prompt": "o-2"}})
            assert (await handle.result()).content == "paid o-2"
    assert (team.prompts, team.paid) == (["o-2"], ["o-2"])
    (shown,) = JobView.of(MemoryReader(home)).actions.values()
    assert shown.payload["arguments"] == [[], {"prompt": "pay o-1"}]


async def test_a_model_reads_why_its_agent_was_not_called() -> None:
    team = Team()
    async with kernel_of(team, ASKS) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await until(lambda: kernel.statistics()["parked"])
        (asked,) = await kernel.actions.find(statuses=["pending"])
        await kernel.actions.resolve(asked.resume_token, {"approved": False, "comment": "ask Ann first"})
        assert "ask Ann first" in str((await handle.result()).content)
    assert (team.prompts, team.paid) == ([], [])


@pytest.mark.parametrize("durable", [True, False])
async def test_texts_are_hidden_from_an_agent_that_is_a_tool(durable: bool) -> None:
    team = Team("pin 1234")

    async def in_a_step(ctx: Any) -> Any:
        async def runs() -> str:
            return (await team.lead.run("go")).content

        return await ctx.step(runs)

    rule = RedactionPolicy([r"\d{4}"], tool_patterns=["helper"], model_patterns=[])
    async with kernel_of(team, rule, work=None if durable else in_a_step) as kernel:
        await result(kernel)
    assert team.prompts == ["pin ***"]


async def test_a_call_of_an_agent_counts_in_the_budget_of_a_job() -> None:
    team = Team()
    async with kernel_of(team) as kernel:
        said = await result(kernel, budgets=BudgetSpec(max_tool_calls=1))
    assert "the job may call tools 1 times" in said
    assert (team.prompts, team.paid) == (["pay o-1"], []), "the first call is that of the helper"


async def test_a_call_of_an_agent_counts_in_the_budget_of_an_engine() -> None:
    team = Team(budget=CallBudget(max_tool_calls=1))
    said = (await team.lead.run("go")).content
    assert "BudgetExceeded" in said
    assert team.paid == []


async def test_labelled_data_go_to_the_agents_that_may_have_them() -> None:
    team = Team()

    @tool(effect="read", labels={"pii"})
    async def customer() -> str:
        return "Ann"

    async def work(ctx: Any) -> str:
        await ctx.call(customer)
        return await team.work(ctx)

    for allowed, prompts in (["desk.*"], []), (["help*"], ["pay o-1"]):
        rule = DataAccessPolicy(["pii"], allowed_agents=allowed)
        async with kernel_of(team, rule, work=work) as kernel:
            assert ("may not go to tool helper" in await result(kernel)) is (not prompts)
        assert team.prompts == prompts


@pytest.mark.parametrize("rule", [ToolPolicy(["helper"], denied=True), AgentPolicy(["helper"], denied=True)])
async def test_the_name_of_an_agent_that_is_a_tool_is_known_at_the_start(rule: Any) -> None:
    team = Team()
    async with kernel_of(team, rule) as kernel:
        assert "PolicyDenied" in await result(kernel)
    wrong = type(rule)(["helpper"], denied=True)
    with pytest.raises(UserError, match="there is none of this name") as caught:
        async with kernel_of(team, wrong):
            pass
    assert "did you mean 'helper'?" in str(caught.value.hint)


@pytest.mark.parametrize("attempts", [1, 2])
async def test_jobs_of_an_earlier_version_go_on_and_their_next_agents_are_judged(
    attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions recorded no call of an agent as a tool, so its place in the journal is that of another effect."""
    team, home = Team(), MemoryStorage()

    async def twice(ctx: Any) -> list[str]:
        first = await team.work(ctx)
        await ctx.wait("go on")
        return [first, await team.work(ctx)]

    made = JobModel.call

    async def before(self: Any, called: Any, arguments: Any, said: str = "") -> Any:
        return arguments["prompt"] if called.is_agent else await made(self, called, arguments)

    with monkeypatch.context() as earlier:
        earlier.setattr(JobModel, "call", before)
        async with kernel_of(team, journal=home, work=twice) as kernel:
            await kernel.execute(ExecutionRequest(prompt="go"))
            await until(lambda: kernel.statistics()["parked"])
    assert calls(home) == ["llm", "llm", "refund", "llm", "llm"]
    for _ in range(attempts - 1):  # it is only read again
        async with kernel_of(team, journal=home, work=twice) as kernel:
            await kernel.resume()
            await asyncio.sleep(0)
    rule = ToolPolicy(["helper"], denied=True)
    async with kernel_of(team, rule, journal=home, work=twice) as kernel:
        (handle,) = await kernel.resume()
        await kernel.jobs.signal(handle.job_id, "go on")
        first, second = (await handle.result()).output
    assert first == "paid pay o-1"
    assert "PolicyDenied" in second
    assert calls(home)[5:] == ["llm", "helper", "llm"]
    assert team.paid == ["pay o-1"]
