"""A layer of an engine's middleware changes requests after policy and budgets have decided on them: they decide again."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import msgspec
import pytest

from sabot import App
from sabot.agents import (
    Budget,
    BudgetSpec,
    ExecutionRequest,
    ModelPolicy,
    PolicyEngine,
    RedactionPolicy,
    RuntimeKernel,
)
from sabot.connectors.memory import MemoryBroker
from sabot.errors import UserError
from sabot.llm import MIDDLEWARE, ExecutionEngine, Price, PriceTable, ScriptedProvider, user
from sabot.llm.middleware import ModelCall
from tools.agent_tools import started, until

PRICES = PriceTable({"small": Price(0, 1), "big": Price(0, 1_000_000)}, version="1")
DENIED = PolicyEngine([ModelPolicy(["big"], denied=True)])


def changed(call: ModelCall, **fields: Any) -> ModelCall:
    call.spec = msgspec.structs.replace(call.spec, **fields)
    return call


async def other_model(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, model="big"))


async def copy_with_other_model(call: ModelCall, forward: Any) -> Any:
    return await forward(dataclasses.replace(call, spec=msgspec.structs.replace(call.spec, model="big")))


async def more_text(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, messages=(*call.spec.messages, user("pin 1234 " + "x" * 400))))


async def longer(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, max_tokens=5000))


async def no_bound(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, max_tokens=None))


async def twice(call: ModelCall, forward: Any) -> Any:
    await forward(call)
    return await forward(call)


async def both(call: ModelCall, forward: Any) -> Any:
    return (await asyncio.gather(forward(call), forward(dataclasses.replace(call))))[0]


async def shorter(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, max_tokens=3))


async def a_new_call(call: ModelCall, forward: Any) -> Any:
    return await forward(ModelCall(kind="complete", spec=call.spec, context=call.context))


async def model_as_an_option(call: ModelCall, forward: Any) -> Any:
    return await forward(changed(call, options={"model": "big"}))


def engine_with(layer: Any) -> tuple[ExecutionEngine, ScriptedProvider]:
    provider = ScriptedProvider("yes", model="small")
    options: dict[str, Any] = {"prices": PRICES, "retries": 0, "patience": 0}
    return ExecutionEngine(provider, middleware=(*MIDDLEWARE, layer), **options), provider


async def in_job(engine: ExecutionEngine, **given: Any) -> str:
    return await _run(lambda ctx: ctx.llm(engine).complete("hello", max_tokens=10), **given)


async def in_a_tool(engine: ExecutionEngine, **given: Any) -> str:
    async def asks() -> str:
        return (await engine.complete("hello", max_tokens=10)).content

    return await _run(lambda ctx: ctx.step(asks), **given)


async def _run(job: Callable[[Any], Awaitable[Any]], **given: Any) -> str:
    async def work(ctx: Any) -> str:
        try:
            await job(ctx)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "answered"

    budgets = given.pop("limits", BudgetSpec())
    async with RuntimeKernel.create(agent=work, **given) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=budgets))
        return str((await handle.result()).output)


async def in_an_agent(engine: ExecutionEngine, **given: Any) -> str:
    given.pop("limits", None)
    said, url = list[str](), f"memory://changed-{next(_numbers)}"
    app = App("shop", url, **given)

    @app.agent("questions")
    async def handle(ctx: Any) -> None:
        try:
            await ctx.llm(engine).complete("hello", max_tokens=10)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        else:
            said.append("answered")

    async with started(app):
        MemoryBroker.get(url).publish("questions", [{"a": 1}])
        await until(lambda: said)
    return said[0]


_numbers = count()
SURFACES = [in_job, in_a_tool, in_an_agent]


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("layer", [other_model, copy_with_other_model])
async def test_a_model_that_a_layer_chooses_is_judged(layer: Any, surface: Any) -> None:
    """The rule had judged the model of the request, and the layer asked the one that it denies."""
    engine, provider = engine_with(layer)
    assert "model big" in await surface(engine, policy=DENIED)
    assert provider.requests == []
    assert await surface(engine, policy=PolicyEngine([])) == "answered"
    assert [each.model for each in provider.requests] == ["big"]


@pytest.mark.parametrize("surface", SURFACES)
async def test_texts_that_a_layer_adds_are_hidden(surface: Any) -> None:
    engine, provider = engine_with(more_text)
    assert await surface(engine, policy=PolicyEngine([RedactionPolicy([r"\d{4}"])])) == "answered"
    assert provider.requests[0].messages[-1].text.startswith("pin *** ")


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(
    ("layer", "budget", "limits"),
    [
        (other_model, Budget("*", max_cost_daily="0.01"), BudgetSpec(max_cost="0.01")),
        (more_text, Budget("*", max_tokens_daily=100), BudgetSpec(max_tokens=100)),
        (longer, Budget("*", max_tokens_daily=100), BudgetSpec(max_tokens=100)),
    ],
)
async def test_a_request_that_a_layer_makes_dearer_has_to_fit(
    layer: Any, budget: Any, limits: Any, surface: Any
) -> None:
    for given in ({"budgets": [budget]}, {"limits": limits}):
        engine, provider = engine_with(layer)
        if surface is in_an_agent and "limits" in given:
            continue
        assert "BudgetExceeded" in await surface(engine, **given)
        assert provider.requests == []


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("layer", [twice, both])
async def test_each_request_of_a_layer_counts(layer: Any, surface: Any) -> None:
    engine, provider = engine_with(layer)
    assert "BudgetExceeded" in await surface(engine, budgets=[Budget("*", max_calls_daily=1)])
    assert len(provider.requests) == 1
    assert await surface(engine, budgets=[Budget("*", max_calls_daily=2)]) == "answered"
    assert len(provider.requests) == 3


BESIDE = ScriptedProvider("yes", model="big")


async def asks_another_engine(call: ModelCall, forward: Any) -> Any:
    return await ExecutionEngine(BESIDE, retries=0).complete(call.spec)


async def asks_before(call: ModelCall, forward: Any) -> Any:
    await ExecutionEngine(BESIDE, retries=0).complete("is it safe?")
    return await forward(call)


async def asks_a_provider(call: ModelCall, forward: Any) -> Any:
    return await BESIDE.complete(call.spec)


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("layer", [asks_another_engine, asks_before, asks_a_provider])
async def test_a_model_that_a_layer_asks_itself_is_judged(layer: Any, surface: Any) -> None:
    """In the effect of a job all requests were taken for that of the job, which had been judged."""
    BESIDE.requests.clear()
    engine, provider = engine_with(layer)
    said = await surface(engine, policy=DENIED)
    assert "asks a provider without an engine" in said if layer is asks_a_provider else "model big is denied" in said
    assert BESIDE.requests == provider.requests == []
    engine, _ = engine_with(asks_before)
    assert await surface(engine, budgets=[Budget("*", max_calls_daily=2)]) == "answered"
    engine, provider = engine_with(asks_before)
    assert "BudgetExceeded" in await surface(engine, budgets=[Budget("*", max_calls_daily=1)])
    assert (len(BESIDE.requests), provider.requests) == (1, [])


async def test_texts_that_a_layer_embeds_are_hidden() -> None:
    embedded: list[Any] = []

    class Embeds(ScriptedProvider):
        async def embed(self, texts: Any, **how: Any) -> Any:
            embedded.append(texts)
            return await super().embed(texts, **how)

    async def other_texts(call: ModelCall, forward: Any) -> Any:
        call.texts = ("pin 1234",)
        return await forward(call)

    engine = ExecutionEngine(Embeds("yes"), middleware=(other_texts,), retries=0)

    async def embeds() -> int:
        return len((await engine.embed(["a"])).vectors)

    said = await _run(lambda ctx: ctx.step(embeds), policy=PolicyEngine([RedactionPolicy([r"\d{4}"])]))
    assert (said, embedded) == ("answered", [("pin ***",)])


async def test_what_no_request_may_have_a_layer_does_not_give_it() -> None:
    engine, provider = engine_with(model_as_an_option)
    assert "policies and budgets would not see it" in await in_job(engine, policy=DENIED)
    assert provider.requests == []


async def test_a_bound_that_a_layer_takes_away_stays() -> None:
    engine, provider = engine_with(no_bound)
    assert await in_job(engine, limits=BudgetSpec(max_tokens=1000)) == "answered"
    assert [each.max_tokens for each in provider.requests] == [10]


async def test_a_layer_may_make_a_request_smaller() -> None:
    engine, provider = engine_with(shorter)
    assert await in_job(engine, budgets=[Budget("*", max_tokens_daily=100)], policy=DENIED) == "answered"
    assert [each.max_tokens for each in provider.requests] == [3]


async def test_a_call_that_a_layer_makes_itself_is_refused() -> None:
    engine, provider = engine_with(a_new_call)
    with pytest.raises(UserError, match="on which nobody has decided"):
        await engine.complete("hello")
    assert provider.requests == []
