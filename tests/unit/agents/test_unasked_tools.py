"""A rule that asks a person cannot ask for an agent without jobs: an app with such an agent does not start."""

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sabot import App
from sabot.agents import (
    AgentStep,
    ChainOperator,
    ConstraintPolicy,
    DataAccessPolicy,
    LabelPolicy,
    PolicyEngine,
    ToolPolicy,
)
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, tool
from tools.agent_tools import started

ASKS = ToolPolicy(["refund"], require_approval=True)


@tool
async def refund(order: str, amount: int = 10) -> str:
    """Pays money back."""
    return order


@tool(effect="read", open_world=True)
async def page(url: str) -> str:
    """Reads a page."""
    return url


async def pays(order: str) -> str:
    return await refund(order)


class Till:
    @tool(name="refund")
    async def refunds(self, order: str) -> str:
        """Pays money back."""
        return order

    async def pays(self, order: str) -> str:
        return await self.refunds(order)


engine = ExecutionEngine(ScriptedProvider("yes"))
till, worker = Till(), Agent(engine, tools=[refund])
lead = Agent(engine, name="lead", tools=[worker])
by_name = {"pay": refund}
later = partial(refund, amount=5)
flow = ChainOperator([AgentStep(worker)])
module = types.ModuleType("tools_of_shop")
module.refund = refund  # type: ignore[attr-defined]


async def by_itself(ctx: Any) -> None:
    await refund("o-1")


async def at_a_time(timer: Any, ctx: Any) -> None:
    await refund("o-1")


async def by_a_function(ctx: Any) -> None:
    await pays("o-1")


async def by_a_method(ctx: Any) -> None:
    await till.refunds("o-1")


async def by_a_method_of_a_method(ctx: Any) -> None:
    await till.pays("o-1")


async def by_an_agent(ctx: Any) -> None:
    await lead.run("pay")


async def by_a_dict(ctx: Any) -> None:
    await by_name["pay"]("o-1")


async def by_a_partial(ctx: Any) -> None:
    await later("o-1")


async def by_a_flow(ctx: Any) -> None:
    await flow.execute("pay")


async def by_a_module(ctx: Any) -> None:
    await module.refund("o-1")


async def by_a_lambda(ctx: Any) -> None:
    await (lambda: refund("o-1"))()


async def by_a_default(ctx: Any, pay: Any = refund) -> None:
    await pay("o-1")


def _in_a_closure() -> Callable[..., Any]:
    held = refund

    async def by_a_closure(ctx: Any) -> None:
        await held("o-1")

    return by_a_closure


class Handler:
    async def __call__(self, ctx: Any) -> None:
        await refund("o-1")


async def by_nothing(ctx: Any) -> None:
    """Names no tool, though its module has them."""


async def reads(ctx: Any) -> None:
    await page("u")
    await refund("o-1")


REACHES = [
    by_itself,
    by_a_function,
    by_a_method,
    by_a_method_of_a_method,
    by_an_agent,
    by_a_dict,
    by_a_partial,
    by_a_flow,
    by_a_module,
    by_a_lambda,
    by_a_default,
    _in_a_closure(),
    partial(by_a_default, pay=refund),
    Handler(),
]


def shop(url: str, function: Any, *rules: Any, **options: Any) -> App:
    app = App("shop", url, policy=PolicyEngine(list(rules)), **({"journal": "memory"} if options else {}))
    app.agent("orders", name="handle", **options)(function)
    return app


@pytest.mark.parametrize("function", REACHES)
async def test_an_app_does_not_start_if_an_agent_without_jobs_can_call_a_tool_that_needs_approval(
    memory_url: str, function: Any
) -> None:
    with pytest.raises(UserError) as caught:
        await shop(memory_url, function, ASKS).start()
    assert "ToolPolicy refund would ask a person about the tool refund, which agent shop.handle" in caught.value.message
    assert "durable=True" in caught.value.hint
    assert "denied=True" in caught.value.hint


async def test_an_app_does_not_start_if_an_agent_without_jobs_may_call_an_agent_that_needs_approval(
    memory_url: str,
) -> None:
    with pytest.raises(UserError) as caught:
        await shop(memory_url, by_an_agent, ToolPolicy(["agent"], require_approval=True)).start()
    assert "would ask a person about the tool agent, which agent shop.handle can call" in caught.value.message
    assert "effects=ctx.llm(engine)" in caught.value.hint


async def test_the_function_of_timers_is_looked_at_too(memory_url: str) -> None:
    app = App("shop", memory_url, policy=PolicyEngine([ASKS]))
    app.agent("orders", name="handle", key="id", on_timer=at_a_time)(by_nothing)
    with pytest.raises(UserError, match="would ask a person about the tool refund"):
        await app.start()


@pytest.mark.parametrize(
    ("function", "rules", "options"),
    [
        (by_itself, [ASKS], {"durable": True}),
        (by_nothing, [ASKS], {}),
        (by_itself, [ASKS, ToolPolicy(["refund"], denied=True)], {}),
        (by_itself, [ToolPolicy(["refund"], require_approval=True, denied_scopes=["shop"])], {}),
        (by_itself, [ConstraintPolicy(["refund"], "amount", max=50)], {}),
        (by_itself, [LabelPolicy()], {}),
        (reads, [LabelPolicy(otherwise="warn")], {}),
        (reads, [DataAccessPolicy(["untrusted"], allowed_scopes=["shop"])], {}),
    ],
)
async def test_an_app_starts_if_nobody_would_have_to_be_asked_in_vain(
    memory_url: str, function: Any, rules: list[Any], options: Any
) -> None:
    async with started(shop(memory_url, function, *rules, **options)):
        pass


@pytest.mark.parametrize(
    "rule",
    [
        ConstraintPolicy(["refund"], "amount", max=50, otherwise="ask"),
        LabelPolicy(),
        DataAccessPolicy(["untrusted"], allowed_tools=["page"], otherwise="ask"),
    ],
)
async def test_rules_that_ask_by_arguments_or_labels_are_found_too(memory_url: str, rule: Any) -> None:
    with pytest.raises(UserError, match="would ask a person about the tool"):
        await shop(memory_url, reads, rule).start()


@pytest.mark.parametrize(
    "rule", [LabelPolicy(otherwise="deny"), DataAccessPolicy(["untrusted"], allowed_models=["small*"])]
)
async def test_an_agent_that_forgets_what_it_has_read_is_not_judged_by_it(memory_url: str, rule: Any) -> None:
    with pytest.raises(UserError, match="by what was read before") as caught:
        await shop(memory_url, reads, rule).start()
    assert "durable=True" in caught.value.hint
