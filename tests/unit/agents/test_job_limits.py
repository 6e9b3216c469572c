"""What one job may use, with its children: `BudgetSpec`, over crashes, and in flows that do not count in it."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents import (
    Budget,
    BudgetSpec,
    ChainOperator,
    ExecutionRequest,
    InMemoryLedgerWriter,
    Ledger,
    ModelPolicy,
    OperatorContext,
    OrchestrationConfig,
    PolicyEngine,
    RuntimeKernel,
)
from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.durable.context import DurableContext
from sabot.agents.kernel.jobs import encode_request
from sabot.clock import ManualClock
from sabot.errors import EffectError, UserError
from sabot.jobs.guard import APART, guard_of
from sabot.journal.entries import EffectResult
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent as ModelAgent
from sabot.llm import (
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    Price,
    PriceTable,
    RequestContext,
    RequestSpec,
    ScriptedProvider,
    TurnLimitExceeded,
    Usage,
    assistant,
    tool,
)
from sabot.llm.token_counts import input_tokens_of

PRICES = PriceTable({"m": Price("1", "10")}, version="1")


def answer(spec: RequestSpec) -> Completion:
    """Reads what is estimated, and writes as much as it may, but 90 tokens at most."""
    used = Usage(input_tokens_of(spec), min(90, spec.max_tokens or 90))
    return Completion(message=assistant("yes"), usage=used, model="m", provider="scripted")


def engine(**options: Any) -> tuple[ExecutionEngine, ScriptedProvider]:
    provider = ScriptedProvider(answer, model="m")
    return ExecutionEngine(provider, retries=0, patience=0, **options), provider


def ask(prompt: Any = 1, **budget: Any) -> ExecutionRequest:
    return ExecutionRequest(prompt=prompt, budgets=BudgetSpec(**budget))


@tool(effect="read")
async def look(name: str) -> str:
    """Looks."""
    return name


async def says(kernel: RuntimeKernel, request: ExecutionRequest) -> Any:
    return (await (await kernel.execute(request)).result()).output


def kept_of(limits: JobLimits) -> dict[str, Any]:
    """What is kept of each job that has not ended."""
    return limits._jobs


async def test_a_dearer_model_to_which_a_budget_degrades_is_within_what_the_job_may_cost() -> None:
    prices = PriceTable({"m": Price("1", "10"), "dear": Price("1000", "10000")}, version="1")
    asking, provider = engine(prices=prices)

    async def job(ctx: Any) -> Any:
        try:
            return (await ctx.llm(asking).complete("one", max_tokens=100)).content
        except BudgetExceeded as error:
            return error.message

    budget = Budget("app", max_calls_daily=0, exhausted="degrade", degrade_to="dear")
    for most, said in (
        ("1.017", "m was not done: dear, in place of m: the job may cost $1.017: $0 are used"),
        ("1.018", "yes"),
    ):
        by = Ledger(InMemoryLedgerWriter(), budgets=[budget])
        kernel = RuntimeKernel.create(agent=job, budgets=by)
        request = ExecutionRequest(prompt=1, scope_id="app", budgets=BudgetSpec(max_cost=most))
        assert said in await says(kernel, request)
        assert (await by.standing("app")).reserved.calls == 0
        await kernel.close()
    assert [each.model for each in provider.requests] == ["dear"]


@pytest.mark.parametrize(
    ("limits", "error", "made"),
    [
        ({"max_turns": 2}, TurnLimitExceeded, 2),
        ({"max_tokens": 310}, BudgetExceeded, 4),
        ({"max_cost": Decimal("0.003")}, BudgetExceeded, 3),
    ],
)
async def test_a_function_that_asks_models_itself_is_within_the_limits_of_its_job(
    limits: dict[str, Any], error: type[Exception], made: int
) -> None:
    """A call uses 91 tokens, and costs 0.000901; it may use 118, 18 of them to read, and cost 0.001018."""
    asks, provider = engine(prices=PRICES)

    async def f(ctx: DurableContext) -> Any:
        for _ in range(10):
            await ctx.llm(asks).complete("one", max_tokens=100)

    async with RuntimeKernel.create(agent=f) as kernel:
        with pytest.raises(error, match="the job may"):
            await says(kernel, ask(**limits))
        assert len(provider.requests) == made
        assert asks.statistics()["input_tokens"] + asks.statistics()["output_tokens"] <= 310


@pytest.mark.parametrize("options", [{"model": "gpt-9"}, {"max_tokens": 70_000}])
async def test_options_go_around_neither_the_policy_nor_the_budget(options: dict[str, Any]) -> None:
    asks, provider = engine()
    policy = PolicyEngine()
    policy.add_rule(ModelPolicy(["gpt-9"], denied=True))

    async def f(ctx: DurableContext) -> Any:
        with pytest.raises(UserError, match="policies and budgets would not see it"):
            await ctx.llm(asks).complete("one", options=options)
        return "refused"

    async with RuntimeKernel.create(agent=f, policy=policy, budgets=[Budget("t", max_tokens_daily=10_000)]) as kernel:
        assert await says(kernel, ExecutionRequest(prompt=1, scope_id="t")) == "refused"
        assert provider.requests == []
        assert (await kernel.ledger.used("t"))["daily"].tokens == 0


async def test_tools_of_a_function_count_too() -> None:
    async def f(ctx: DurableContext) -> Any:
        seen = [await ctx.call(look, "a"), await ctx.step(str.upper, "b", effect="local")]
        try:
            seen.append(await ctx.call(look, "c"))
        except EffectError as error:
            seen.append(error.type)
        return seen

    async with RuntimeKernel.create(agent=f) as kernel:
        assert await says(kernel, ask(max_tool_calls=2)) == ["a", "B", "BudgetExceeded"]
        assert await says(kernel, ask(max_tool_calls=3)) == ["a", "B", "c"]
        assert await says(kernel, ask()) == ["a", "B", "c"]


@pytest.mark.parametrize(
    ("limits", "made"),
    [
        ({}, ["look", "yes"]),
        ({"max_tool_calls": 9}, ["BudgetExceeded", "BudgetExceeded"]),
        ({"max_tokens": 9_000}, ["BudgetExceeded", "BudgetExceeded"]),
    ],
)
async def test_a_task_that_a_tool_leaves_behind_has_no_limits_of_its_own(
    limits: dict[str, Any], made: list[str]
) -> None:
    """Earlier versions forgot the limits with the end of the job, and the task could call as often as it liked."""
    asks, _ = engine()
    over, left = asyncio.Event(), list[asyncio.Task[list[str]]]()

    @tool
    async def leave() -> None:
        left.append(asyncio.create_task(later()))

    async def later() -> list[str]:
        await over.wait()
        said = await asyncio.gather(look("look"), asks.complete("one"), return_exceptions=True)
        return [type(each).__name__ if isinstance(each, Exception) else getattr(each, "content", each) for each in said]

    async def child(ctx: DurableContext) -> None:
        await ctx.call(leave)

    async def parent(ctx: DurableContext) -> None:
        await ctx.call(leave)
        await ctx.child(child, None)

    async with RuntimeKernel.create(agent=[parent, child]) as kernel:
        await says(kernel, replace(ask(**limits), agent="parent"))
        over.set()
        assert await asyncio.gather(*left) == [made, made]


async def test_all_jobs_of_a_tree_share_what_the_first_one_may_use() -> None:
    asks, provider = engine()
    worker = ModelAgent(asks, name="worker", max_tokens=90)

    async def lead(ctx: DurableContext) -> Any:
        said = await asyncio.gather(*(ctx.child(middle, number) for number in range(5)), return_exceptions=True)
        return [each if isinstance(each, str) else type(each).__name__ for each in said]

    async def middle(ctx: DurableContext) -> Any:
        await ctx.llm(asks).complete("before", max_tokens=90)
        return (await ctx.child("worker", f"number {ctx.message}"))["content"]

    async with RuntimeKernel.create(agent=[lead, middle, worker], engine=asks) as kernel:
        said = await says(kernel, ask(max_tokens=600))
        used = asks.statistics()["input_tokens"] + asks.statistics()["output_tokens"]
        assert 450 < used <= 600
        firsts = sum(
            request.messages[-1].text == "before" for request in provider.requests
        )  # one may come behind a worker's
        assert 0 < said.count("yes") == len(provider.requests) - firsts
        # 730 were enough for all of them where the last ones got small answers one after the other
        assert said.count("EffectError") == 5 - said.count("yes") > 0
        provider.requests.clear()
        assert await says(kernel, ask()) == ["yes"] * 5
        provider.requests.clear()
        await says(kernel, ask(max_turns=3))
        assert len(provider.requests) == 3


class Tree:
    """A job that asks a model twice and begins two jobs, which ask once each; it reads 5 tokens, 25 at most, and writes 90."""

    def __init__(self) -> None:
        self.engine, self.provider = engine(prices=PRICES)

    async def __call__(self, ctx: DurableContext) -> Any:
        model = ctx.llm(self.engine)
        try:
            await model.complete("one two three four", max_tokens=90)
            if isinstance(ctx.message, dict):
                await asyncio.gather(*(ctx.child("agent", f"child {number}") for number in (1, 2)))
                await model.complete("one two three four", max_tokens=90)
        except (TurnLimitExceeded, EffectError) as error:
            return str(type(error).__name__)
        return "all"


LIMITED = {"prompt": 1, "budgets": {"max_turns": 3, "max_tokens": 1000}}


async def test_after_a_crash_at_any_step_a_tree_uses_no_more_than_it_may() -> None:
    home, first, limits = MemoryStorage(ManualClock(1_000.0)), Tree(), JobLimits()
    async with hosting(home, Agent(first), guard=limits) as running:
        running.begin("job", LIMITED)
        await running.over("job")
    assert (len(first.provider.requests), running.agent.done["job"]) == (3, "TurnLimitExceeded")
    assert kept_of(limits) == {}
    written = entries(home)
    for count in range(1, len(written)):
        tree, again = Tree(), JobLimits()
        cut = prefix(home, count)
        async with hosting(cut, Agent(tree), guard=again) as running:
            await running.over("job")
        done = [
            each
            for each in entries(cut)
            if type(each).__name__ == "EffectResult" and each.outcome == "ok" and each.body
        ]
        assert running.agent.outcomes["job"] == "succeeded"
        assert kept_of(again) == {}, count
        answered = sum(b"yes" in bytes(each.body) for each in done)
        assert answered <= 3, count


async def test_a_call_is_not_made_again_where_its_attempts_together_would_not_fit() -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    begin = {"prompt": 1, "budgets": {"max_tokens": 180}}  # an attempt may use 115
    async with hosting(home, Agent(Tree()), guard=JobLimits()) as running:
        running.begin("job", begin)
        await running.over("job")
    tree, limits = Tree(), JobLimits()
    async with hosting(prefix(home, 2), Agent(tree), guard=limits) as running:  # BEGIN, INTENT: it may have been made
        await running.over("job")
    assert tree.provider.requests == []
    assert isinstance(running.agent.errors["job"], BudgetExceeded)
    assert "attempts before it" in str(running.agent.errors["job"])


async def test_what_calls_without_a_result_may_have_used_counts_after_a_crash() -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(Tree()), guard=JobLimits()) as running:
        running.begin("job", LIMITED)
        await running.over("job")
    limits = JobLimits()
    async with hosting(prefix(home, 2), Agent(Tree()), guard=limits, resume=False):  # BEGIN, INTENT
        used = kept_of(limits)["job"].most()
    assert (used.tokens, used.calls) == (16 + len("one two three four") // 2 + 90, 1)


# -- what tools ask of models by themselves -----------------------------------------------------------------------------------


class Asks:
    """A job whose tool asks a model by itself, and which asks it too: what each was told, or by which error it was kept from it."""

    def __init__(self) -> None:
        self.engine, self.provider = engine(prices=PRICES)

        @tool(effect="read")
        async def asks(text: str) -> str:
            """Asks a model."""
            return (await self.engine.complete(text, max_tokens=90)).content

        self.tool = asks

    async def __call__(self, ctx: DurableContext) -> list[str]:
        said = []
        for text in ("one", "two"):
            try:
                said.append(await ctx.call(self.tool, text))
            except EffectError as error:
                said.append(error.type)
        try:
            said.append((await ctx.llm(self.engine).complete("three", max_tokens=90)).content)
        except (BudgetExceeded, TurnLimitExceeded) as error:
            said.append(type(error).__name__)
        return said


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_turns": 1}, ["yes", "TurnLimitExceeded", "TurnLimitExceeded"]),
        ({"max_turns": 2}, ["yes", "yes", "TurnLimitExceeded"]),
        ({"max_cost": 0.001}, ["yes", "BudgetExceeded", "BudgetExceeded"]),
        ({"max_tokens": 100}, ["yes", "BudgetExceeded", "BudgetExceeded"]),
        ({"max_tool_calls": 2}, ["yes", "yes", "yes"]),
    ],
)
async def test_what_tools_ask_of_models_counts_in_the_budget_of_their_job(
    limit: dict[str, Any], said: list[str]
) -> None:
    """It was judged by the budget of the scope alone."""
    asks = Asks()
    async with RuntimeKernel.create(agent=asks.__call__, budgets=[Budget("default", max_calls_daily=99)]) as kernel:
        assert await says(kernel, ask(**limit)) == said
    assert len(asks.provider.requests) == said.count("yes")


async def test_what_tools_have_asked_counts_after_a_crash_too() -> None:
    home, begin = MemoryStorage(ManualClock(1_000.0)), {"prompt": 1, "budgets": {"max_turns": 1}}
    async with hosting(home, Agent(Asks()), guard=JobLimits()) as running:
        running.begin("job", begin)
        await running.over("job")
    assert running.agent.done["job"] == ["yes", "TurnLimitExceeded", "TurnLimitExceeded"]
    results = [at for at, each in enumerate(entries(home), 1) if isinstance(each, EffectResult)]
    for count in results:
        asks, limits = Asks(), JobLimits()
        async with hosting(prefix(home, count), Agent(asks), guard=limits) as running:
            await running.over("job")
        assert running.agent.done["job"] == ["yes", "TurnLimitExceeded", "TurnLimitExceeded"], count
        assert (asks.provider.requests, kept_of(limits), limits._within) == ([], {}, {})


async def test_what_a_tool_of_a_child_asks_counts_for_the_parent_and_one_that_is_left_out_does_not() -> None:
    asks = Asks()

    async def child(ctx: DurableContext) -> Any:
        return await ctx.call(asks.tool, "child")

    async def parent(ctx: DurableContext) -> Any:
        APART.set(ctx.message)
        await ctx.call(asks.tool, "apart, or not")
        APART.set(False)
        try:
            return await ctx.child("child", 1)
        except EffectError as error:
            return error.type

    async with RuntimeKernel.create(agent=[parent, child]) as kernel:
        request = ExecutionRequest(prompt=True, agent="parent", budgets=BudgetSpec(max_turns=1))
        assert await says(kernel, request) == "yes"
        assert await says(kernel, replace(request, prompt=False)) == "TurnLimitExceeded"


async def test_calls_that_share_their_context_are_counted_each() -> None:
    """The first that ended gave back what was reserved for the others, and they had no row."""
    asks, provider = engine()
    provider.hold()
    ledger = Ledger(InMemoryLedgerWriter(), budgets=[Budget("default", max_calls_daily=99)])

    @tool(effect="read")
    async def many() -> int:
        """Asks three times at once, for one request."""
        return len(await asks.complete_many(["one", "two", "three"], context=RequestContext()))

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(many)

    async with RuntimeKernel.create(agent=f, budgets=ledger) as kernel:
        handle = await kernel.execute(ask(max_turns=3))
        await provider.arrived(3)
        provider.release()
        assert (await handle.result()).output == 3
        await ledger.flush()
        assert [each.type for each in ledger.writer.events].count("model") == 3
        assert (await ledger.used("default"))["daily"].calls == 3


async def test_steps_of_a_flow_may_be_left_out_of_the_budget_of_its_job() -> None:
    asks, provider = engine()
    step = ModelAgent(asks, name="step", max_tokens=10)

    async def f(ctx: DurableContext) -> Any:
        config = OrchestrationConfig(inherit_budgets=ctx.message)
        within = OperatorContext(effects=OperatorContext.of(ctx).effects, config=config)
        result = await ChainOperator([step, step, step]).execute("go", within)
        await ctx.llm(asks).complete("beside", max_tokens=10)
        return result.success

    async with RuntimeKernel.create(agent=f) as kernel:
        assert await says(kernel, ask(False, max_turns=1)) is True
        assert len(provider.requests) == 4
        provider.requests.clear()
        with pytest.raises(TurnLimitExceeded):
            await says(kernel, ask(True, max_turns=1))
        assert len(provider.requests) == 1


async def test_the_limits_of_a_job_stand_beside_policy_and_budgets() -> None:
    asks, provider = engine()

    async def f(ctx: DurableContext) -> Any:
        spec = await ctx.llm(asks).complete("one")
        return spec.content

    async with RuntimeKernel.create(agent=f, policy=PolicyEngine(), budgets=[]) as kernel:
        assert await says(kernel, ask(max_tokens=500)) == "yes"
        assert kernel.ledger is not None
        await kernel.ledger.flush()
        (sums,) = await kernel.ledger.writer.sums([], 0)
    assert sums.calls == 1
    assert 0 < (provider.requests[0].max_tokens or 0) < 500
    assert guard_of([]) is None


def test_a_request_without_limits_is_none_of_its_business() -> None:
    from sabot.journal.entries import Begin

    limits = JobLimits()
    limits.begin_job(Begin("a", 1, "kernel.f", encode_request(ask(1))))
    limits.begin_job(Begin("b", 1, "kernel.f", encode_request(ask({"budgets": {"max_turns": 1}}))))
    limits.begin_job(Begin("c", 1, "kernel.f", encode_request(ask(1, max_runtime_seconds=5))))
    assert kept_of(limits) == {}
    limits.begin_job(Begin("d", 1, "kernel.f", encode_request(ask(1, max_turns=5))))
    limits.begin_job(Begin("d~1", 1, "kernel.f", b"\xc0"))
    limits.begin_job(Begin("d~01", 1, "kernel.f", b"\xc0"))
    assert list(kept_of(limits)) == ["d", "d~1"]
