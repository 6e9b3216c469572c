"""A limit of money holds where nobody knows what a model costs: the call is not made, or a person is asked; and known prices are known."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import Budget, BudgetSpec, ExecutionRequest, RuntimeKernel
from sabot.agents.durable.context import DurableContext
from sabot.connectors.memory import MemoryBroker
from sabot.errors import EffectError, UserError
from sabot.llm import Agent as ModelAgent
from sabot.llm import (
    BudgetExceeded,
    CallBudget,
    Completion,
    ExecutionEngine,
    ModelUnavailable,
    OpenAIProvider,
    Price,
    PriceTable,
    ScriptedProvider,
    Usage,
    assistant,
)
from sabot.testing import FakeModelServer
from tools.agent_tools import started, until

UNKNOWN = "and the price of m is not known"


def unpriced(*answers: Any) -> tuple[ExecutionEngine, ScriptedProvider]:
    provider = ScriptedProvider(list(answers) or ["yes"] * 9, model="m")
    return ExecutionEngine(provider, retries=0, patience=0), provider


def asking(engine: ExecutionEngine) -> Any:
    async def asks(ctx: DurableContext) -> str:
        return (await ctx.llm(engine).complete("hello", max_tokens=10)).content

    return asks


# -- what is known ------------------------------------------------------------------------------------------------------------


async def test_a_cost_limit_holds_for_a_model_of_a_vendor_whose_prices_are_known_without_being_told_them() -> None:
    with FakeModelServer("hello") as server:
        engine = ExecutionEngine(OpenAIProvider("gpt-4", base_url=server.openai_url, api_key="k"), retries=0)
        async with RuntimeKernel.create(agent=asking(engine)) as kernel:
            dear = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_cost="0.0000001")))  # type: ignore[arg-type]
            with pytest.raises(
                Exception, match=r"the job may cost \$0\.0000001: \$0 are used.* this one may cost \$0\.00"
            ):
                await dear.result()
            cheap = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_cost=Decimal(1))))
            assert (await cheap.result()).output == "hello"
        answer = await engine.complete("hello")
        await engine.close()
    assert answer.cost is not None
    assert answer.cost > 0
    assert answer.prices_version.startswith("genai-prices ")


# -- jobs: BudgetSpec ---------------------------------------------------------------------------------------------------------


async def test_a_job_with_a_limit_of_money_does_not_ask_a_model_whose_price_is_not_known() -> None:
    engine, provider = unpriced()
    async with RuntimeKernel.create(agent=asking(engine)) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_cost=Decimal(100))))
        with pytest.raises(Exception, match=rf"the job may cost \$100, {UNKNOWN}: give its price"):
            await job.result()
    assert provider.requests == []


async def test_an_agent_that_a_model_runs_is_refused_as_well() -> None:
    engine, provider = unpriced()
    async with RuntimeKernel.create(agent=ModelAgent(engine)) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt="hello", budgets=BudgetSpec(max_cost=Decimal(100))))
        with pytest.raises(Exception, match=UNKNOWN):
            await job.result()
    assert provider.requests == []


async def test_a_person_may_allow_a_call_whose_price_is_not_known() -> None:
    engine, provider = unpriced()
    async with RuntimeKernel.create(agent=asking(engine)) as kernel:
        budget = BudgetSpec(max_cost=Decimal(100), unpriced="ask")
        job = await kernel.execute(ExecutionRequest(prompt=1, budgets=budget))
        question: list[Any] = []
        while not question:
            question = await kernel.actions.find()
            assert provider.requests == []
        assert UNKNOWN in str(question[0].payload)
        assert question[0].payload["always"] == []
        with pytest.raises(UserError, match="asks each time"):  # it was taken, and asked again
            await kernel.actions.resolve(question[0].resume_token, {"approved": True, "always": "job"})
        await kernel.actions.resolve(question[0].resume_token, {"approved": True})
        assert (await job.result()).output == "yes"
    assert len(provider.requests) == 1


async def test_a_job_without_a_limit_of_money_asks_whom_it_likes() -> None:
    engine, _ = unpriced()
    async with RuntimeKernel.create(agent=asking(engine)) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_turns=5, max_tokens=5000)))
        assert (await job.result()).output == "yes"


async def test_a_model_that_stands_in_for_one_that_failed_needs_a_price_too() -> None:
    prices = PriceTable({"m": Price("1", "1")}, version="1")
    spare = ScriptedProvider(["never"], model="spare")
    first = ScriptedProvider([ModelUnavailable("down", sent=False)], model="m")
    engine = ExecutionEngine(first, fallback=[spare], retries=0, patience=0, prices=prices)
    async with RuntimeKernel.create(agent=asking(engine)) as kernel:
        job = await kernel.execute(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_cost=Decimal(100))))
        with pytest.raises(Exception, match="the price of spare is not known"):
            await job.result()
    assert spare.requests == []


async def test_a_request_made_before_there_was_a_choice_is_the_same_request() -> None:
    """A new field that says nothing changes no idempotency key."""
    assert "unpriced" not in BudgetSpec(max_cost=Decimal(1)).content
    assert BudgetSpec(unpriced="ask").content["unpriced"] == "ask"


@pytest.mark.parametrize("made", [lambda: BudgetSpec(unpriced="allow"), lambda: Budget("a", unpriced="allow")])  # type: ignore[arg-type]
def test_what_follows_is_one_of_two_words(made: Any) -> None:
    with pytest.raises(UserError, match=r"unpriced='allow' \(one of 'deny', 'ask'\)"):
        made()


# -- scopes: Budget ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
async def test_a_scope_with_a_limit_of_money_does_not_ask_a_model_whose_price_is_not_known(
    memory_url: str, tmp_path: Path, durable: bool
) -> None:
    engine, provider = unpriced()
    app = App("shop", memory_url, state=str(tmp_path), budgets=[Budget("shop", max_cost_daily=Decimal(100))])

    @app.agent("questions", sink="answers", durable=durable)
    async def handle(ctx: Any) -> Any:
        try:
            return (await ctx.llm(engine).complete("hello")).content
        except BudgetExceeded as error:
            return [error.message]

    broker = MemoryBroker.get(memory_url)
    async with started(app):
        broker.publish("questions", [{"text": "hi"}])
        await until(lambda: broker.records("answers"))
    ((said,),) = [record.value for record in broker.records("answers")]
    assert f"the daily budget of shop has $100, {UNKNOWN}" in said
    assert provider.requests == []


async def test_a_person_may_allow_a_scope_a_call_whose_price_is_not_known(memory_url: str, tmp_path: Path) -> None:
    engine, provider = unpriced()
    budget = Budget("shop", max_cost_daily=Decimal(100), unpriced="ask")
    app = App("shop", memory_url, state=str(tmp_path), budgets=[budget])
    app.llm_agent("questions", engine, name="desk", sink="answers")
    broker = MemoryBroker.get(memory_url)
    async with started(app):
        broker.publish("questions", [{"text": "hi"}])
        async with asyncio.timeout(60):
            while not (questions := await app.actions.find()):  # noqa: ASYNC110 (parked before its question is durable)
                await asyncio.sleep(0.01)
        (question,) = questions
        assert UNKNOWN in str(question.payload)
        assert provider.requests == []
        await app.actions.resolve(question.resume_token, {"approved": True})
        await until(lambda: broker.records("answers"))
    assert len(provider.requests) == 1


async def test_a_limit_of_tokens_alone_needs_no_price(memory_url: str, tmp_path: Path) -> None:
    engine, _ = unpriced()
    app = App("shop", memory_url, state=str(tmp_path), budgets=[Budget("shop", max_tokens_daily=100_000)])
    app.llm_agent("questions", engine, name="desk", sink="answers")
    broker = MemoryBroker.get(memory_url)
    async with started(app):
        broker.publish("questions", [{"text": "hi"}])
        await until(lambda: broker.records("answers"))


def test_rows_of_a_stream_are_not_asked_about_where_the_model_has_no_price(memory_url: str) -> None:
    engine, provider = unpriced()
    app = App("shop", memory_url, budgets=[Budget("shop", max_cost_daily=Decimal(100))])
    MemoryBroker.get(memory_url).publish("questions", [{"text": "hi"}])
    rows = app.stream("questions", schema={"text": "string"}, until="now")
    rows.map_llm("{text}", engine, on_error="skip", dead_letter="left").to("answers")
    app.main()
    (letter,) = MemoryBroker.get(memory_url).records("left")
    assert UNKNOWN in str(letter.headers)
    assert provider.requests == []


# -- calls of one engine: CallBudget --------------------------------------------------------------------------------------------


async def test_a_budget_of_an_engine_that_limits_money_makes_no_call_whose_price_is_not_known() -> None:
    provider = ScriptedProvider(["yes"] * 3, model="m")
    engine = ExecutionEngine(provider, budget=CallBudget(max_cost=1), retries=0)
    with pytest.raises(BudgetExceeded, match=rf"the budget has \$1, {UNKNOWN}") as caught:
        await engine.complete("hello")
    assert "PriceTable" in caught.value.hint
    assert provider.requests == []


async def test_the_budget_of_one_call_holds_too_and_a_price_of_nothing_is_a_price() -> None:
    engine, provider = unpriced()
    with pytest.raises(BudgetExceeded, match=UNKNOWN):
        await engine.complete("hello", budget=CallBudget(max_cost=1))
    free = PriceTable({"m": Price("0", "0")}, version="local")
    engine = ExecutionEngine(provider, budget=CallBudget(max_cost=1), prices=free)
    assert (await engine.complete("hello")).cost == 0


# -- answers that name another model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counted_by", ["job", "scope", "engine"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_under_a_name_without_a_price_costs_what_the_model_that_was_asked_costs(
    counted_by: str, streamed: bool
) -> None:
    """A gateway answered for `m` as `gpt-9`: each answer cost nothing, and a budget of $0.35 paid all thirteen of $0.1."""
    named = Completion(message=assistant("yes"), model="gpt-9", usage=Usage(input_tokens=1000))
    provider = ScriptedProvider([named] * 13, model="m")
    prices = PriceTable({"m": Price(100, 100)}, version="1")
    own = CallBudget(max_cost="0.35") if counted_by == "engine" else None
    engine = ExecutionEngine(provider, prices=prices, budget=own, retries=0, patience=0)

    async def asks(ctx: DurableContext) -> int:
        for made in range(13):
            try:
                if streamed:
                    async for _ in ctx.llm(engine).stream("hello", max_tokens=100):
                        pass
                else:
                    assert (await ctx.llm(engine).complete("hello", max_tokens=100)).cost == Decimal("0.1")
            except (BudgetExceeded, EffectError):
                return made
        return 13

    budgets = [Budget("*", max_cost_daily=Decimal("0.35"))] if counted_by == "scope" else []
    async with RuntimeKernel.create(agent=asks, budgets=budgets) as kernel:
        limits = BudgetSpec(max_cost=Decimal("0.35")) if counted_by == "job" else BudgetSpec()
        job = await kernel.execute(ExecutionRequest(prompt=1, budgets=limits))
        made = (await job.result()).output
    assert made == len(provider.requests) == 4  # by what is used, and the bound of the next one, which is small
