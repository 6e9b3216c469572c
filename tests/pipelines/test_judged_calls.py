"""Models that agents without jobs and streams ask: judged by the app's policy and budgets, and recorded."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from sabot import App
from sabot.agents import Budget, Decision, ModelPolicy, PolicyDenied, PolicyEngine, RedactionPolicy
from sabot.connectors.memory import MemoryBroker
from sabot.llm import (
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    ModelUnavailable,
    Price,
    PriceTable,
    ScriptedProvider,
    Usage,
    assistant,
)
from tools.agent_tools import started, until

PRICES = PriceTable({"m": Price("1", "10")}, version="1")


def answer(spec: Any) -> Completion:
    if spec.messages[-1].text == "break":
        raise ModelUnavailable("it broke off")
    return Completion(
        message=assistant(spec.messages[-1].text), usage=Usage(10, 40), model=spec.model or "m", provider="scripted"
    )


class Shop:
    def __init__(self, url: str) -> None:
        self.url, self.broker = url, MemoryBroker.get(url)
        self.provider = ScriptedProvider(answer, model="m")
        self.engine = ExecutionEngine(self.provider, prices=PRICES, retries=0, patience=0)

    def app(self, **options: Any) -> App:
        return App("shop", self.url, **options)

    def put(self, *texts: str) -> None:
        self.broker.publish("questions", [{"text": text} for text in texts])

    def said(self, topic: str = "answers") -> list[Any]:
        return [record.value for record in self.broker.records(topic)]


@pytest.fixture
def shop(memory_url: str) -> Shop:
    return Shop(memory_url)


def asking(shop: Shop, app: App, *, directly: bool = False) -> None:
    @app.agent("questions", sink="answers")
    async def handle(ctx: Any) -> Any:
        asked = shop.engine if directly else ctx.llm(shop.engine)
        try:
            return (await asked.complete(ctx.message["text"], max_tokens=50)).content
        except (PolicyDenied, BudgetExceeded, ModelUnavailable) as error:
            return [type(error).__name__, error.message]


async def rows(app: App) -> list[tuple[Any, ...]]:
    assert app.accounts is not None
    await app.accounts.flush()
    return [
        (each.group, each.calls, each.input_tokens, each.doubt_tokens)
        for each in await app.accounts.writer.sums(["scope", "type"], 0)
    ]


@pytest.mark.parametrize("directly", [False, True])
async def test_a_model_that_the_policy_denies_is_not_asked_by_an_agent_without_jobs(shop: Shop, directly: bool) -> None:
    app = shop.app(policy=PolicyEngine([ModelPolicy(model_patterns=["m"], allowed_scopes=["others"])]))
    asking(shop, app, directly=directly)
    async with started(app):
        shop.put("hi")
        await until(shop.said)
    ((kind, message),) = shop.said()
    assert kind == "PolicyDenied"
    assert message == "m was not asked: scope shop may not use model m (rule ModelPolicy m)"
    assert shop.provider.requests == []
    assert (await shop.engine.complete("outside of the app")).content == "outside of the app"


async def test_what_needs_a_person_is_denied_where_nobody_can_be_asked(shop: Shop) -> None:
    app = shop.app(policy=PolicyEngine([ModelPolicy(model_patterns=["m"], require_approval=True)]))
    asking(shop, app)
    async with started(app):
        shop.put("hi")
        await until(shop.said)
    assert "only durable agents ask" in shop.said()[0][1]


async def test_a_call_is_made_as_the_policy_says(shop: Shop) -> None:
    policy = PolicyEngine([RedactionPolicy([r"\d{4}"]), ModelPolicy(model_patterns=["m"], degrade_to="small")])
    app = shop.app(policy=policy)
    asking(shop, app)
    async with started(app):
        shop.put("pin 1234")
        await until(shop.said)
    assert shop.said() == ["pin ***"]
    assert [each.model for each in shop.provider.requests] == ["small"]


async def test_an_agent_without_jobs_spends_no_more_than_a_budget_has_and_its_calls_have_rows(shop: Shop) -> None:
    app = shop.app(budgets=[Budget("shop", max_tokens_daily=150, warn_at=1)])
    asking(shop, app)
    async with started(app):
        for number, text in enumerate(["one", "break", "two"], 1):
            shop.put(text)
            await until(lambda count=number: len(shop.said()) == count)
    one, broke, two = shop.said()
    assert (one, broke[0], two[0]) == ("one", "ModelUnavailable", "BudgetExceeded")
    doubt = 16 + 3 + 50  # at most: a message, "break" two by two, and the answer
    assert await rows(app) == [(("shop", "doubt"), 1, 0, doubt), (("shop", "model"), 1, 10, 0)]
    assert (await app.accounts.used("shop"))["daily"].tokens == 50 + doubt  # type: ignore[union-attr]


async def test_rows_of_a_stream_whose_prompts_are_denied_go_where_errors_go(shop: Shop) -> None:
    def rule(call: Any) -> Any:
        return Decision.DENY if "secret" in call.spec.messages[-1].text else None

    app = shop.app(policy=PolicyEngine([rule]), budgets=[])
    stream = app.stream("questions", schema=pa.schema({"text": pa.string()}))
    stream.map_llm("{text}", shop.engine, on_error="skip", dead_letter="left", max_tokens=50).to("answers")
    async with started(app):
        shop.put("one", "a secret", "two")
        await until(lambda: len(shop.said()) == 2 and shop.said("left"))
    assert sorted(row["content"] for row in shop.said()) == ["one", "two"]
    (left,) = shop.broker.records("left")
    assert any(b"PolicyDenied" in value for _, value in left.headers)
    assert await rows(app) == [(("shop", "model"), 2, 20, 0)]


async def test_a_batch_agent_is_told_which_rows_were_denied(shop: Shop) -> None:
    def rule(call: Any) -> Any:
        return Decision.DENY if "secret" in call.spec.messages[-1].text else None

    app = shop.app(policy=PolicyEngine([rule]))

    @app.agent("questions", sink="answers", batch=True, schema=pa.schema({"text": pa.string()}))
    async def label(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        return await ctx.llm(shop.engine).map("{text}", batch, output="said", error="error")

    async with started(app):
        shop.put("one", "a secret")
        await until(lambda: len(shop.said()) == 2)
    one, denied = sorted(shop.said(), key=lambda row: row["text"], reverse=True)
    assert (one["said"], one["error"], denied["said"]) == ("one", None, None)
    assert "PolicyDenied" in denied["error"]


async def test_a_call_of_a_job_is_judged_once_as_its_effect(shop: Shop) -> None:
    asked: list[str] = []

    def rule(call: Any) -> Any:
        asked.append(call.effect.job)

    app = shop.app(policy=PolicyEngine([rule]), budgets=[Budget("shop", max_cost_daily=Decimal(1))], journal="memory")

    @app.agent("questions", sink="answers", durable=True)
    async def handle(ctx: Any) -> Any:
        return (await ctx.llm(shop.engine).complete(ctx.message["text"], max_tokens=50)).content

    async with started(app):
        shop.put("hi")
        await until(shop.said)
    assert len(asked) == 1
    assert await rows(app) == [(("shop", "model"), 1, 10, 0)]
