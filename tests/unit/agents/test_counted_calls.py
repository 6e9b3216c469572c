"""What counts as a call in budgets and limits: one that was made, or may have been. One that was denied, turned away or not
sent, and an answer of a cache, counts nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    Budget,
    BudgetSpec,
    ConstraintPolicy,
    DurableContext,
    ExecutionRequest,
    InMemoryLedgerWriter,
    Ledger,
    PolicyEngine,
    RuntimeEventType,
    RuntimeKernel,
    SqliteLedgerWriter,
    tool,
)
from sabot.engine.calls.errors import ModelTimeout
from sabot.errors import EffectError, NotSent
from sabot.llm import (
    Agent,
    BudgetExceeded,
    CallBudget,
    ExecutionEngine,
    MemoryCache,
    ModelError,
    ModelUnreachable,
    RateLimited,
    ScriptedProvider,
    ToolCall,
    assistant,
)
from sabot.mcp import McpUnavailable


class ConnectError(Exception):
    """That of httpx."""


ConnectError.__module__ = "httpx"


async def asked(handle: Any) -> Any:
    async for event in handle.events():
        if event.type == RuntimeEventType.ACTION_REQUIRED and (pending := await handle.get_pending_actions()):
            return pending[0]
    raise AssertionError("nobody was asked")


NOT_MADE: dict[str, Callable[[], Exception]] = {
    "not sent": lambda: NotSent("the disk is full"),
    "refused connection": lambda: ConnectionRefusedError("no"),
    "httpx": lambda: ConnectError("no"),
    "no server of MCP": lambda: McpUnavailable("fs", "it does not start"),
}
MADE = {"its own": lambda: ValueError("no such order"), "an answer": lambda: RuntimeError("503")}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("why", [*NOT_MADE, *MADE])
async def test_a_tool_that_was_not_called_counts_nothing_in_the_limits_of_the_job(
    why: str, restart: bool, tmp_path: Path
) -> None:
    tried: list[int] = []
    fails = {**NOT_MADE, **MADE}[why]

    @tool(effect="idempotent")
    async def pay(order: int) -> int:
        tried.append(order)
        if len(tried) < 3:
            raise fails()
        return order

    async def f(ctx: DurableContext) -> list[str]:
        said = []
        for order in range(4):
            if order == 2:
                await ctx.ask("confirm", {})
            try:
                said.append(str(await ctx.call(pay, order)))
            except (EffectError, BudgetExceeded) as error:
                said.append("limit" if "may call tools" in str(error) else "failed")
        return said

    made = {"agent": f, "journal": tmp_path / "jobs"}
    async with RuntimeKernel.create(**made) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=BudgetSpec(max_tool_calls=2)))
        pending = await asked(handle)
        if not restart:
            await handle.resolve_action(pending.resume_token, {"approved": True})
            result = await handle.result()
    if restart:
        async with RuntimeKernel.create(**made) as kernel:
            (handle,) = await kernel.resume()
            await handle.resolve_action((await asked(handle)).resume_token, {"approved": True})
            result = await handle.result()
    counted = ["failed", "failed", "2", "3"] if why in NOT_MADE else ["failed", "failed", "limit", "limit"]
    assert result.output == counted


async def test_a_denied_tool_counts_nothing_in_the_limits_of_the_job() -> None:
    @tool
    async def pay(amount: int) -> int:
        return amount

    async def f(ctx: DurableContext) -> list[str]:
        said = []
        for amount in (500, 600, 5, 6, 7):
            try:
                said.append(str(await ctx.call(pay, amount)))
            except (EffectError, BudgetExceeded) as error:
                said.append("limit" if "may call tools" in str(error) else "denied")
        return said

    policy = PolicyEngine([ConstraintPolicy(["pay"], "amount", max=50)])
    async with RuntimeKernel.create(agent=f, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=BudgetSpec(max_tool_calls=2)))
        assert (await handle.result()).output == ["denied", "denied", "5", "6", "limit"]


FREE: dict[str, Callable[[], ModelError]] = {
    "unreachable": lambda: ModelUnreachable("no connection", sent=False),
    "turned away": lambda: RateLimited("too many"),
}


@pytest.mark.parametrize("where", ["job", "scope", "scope, SQLite"])
@pytest.mark.parametrize("why", [*FREE, "in time", "cached"])
async def test_a_model_that_was_not_asked_counts_nothing(why: str, where: str, tmp_path: Path) -> None:
    fails = FREE.get(why, lambda: ModelTimeout("late"))
    answers = ["yes", "no"] if why == "cached" else [fails(), fails(), "yes", "no"]
    cache = {"cache": MemoryCache()} if why == "cached" else {}
    engine = ExecutionEngine(ScriptedProvider(answers, model="m"), retries=0, **cache)

    async def f(ctx: DurableContext) -> list[str]:
        said = []
        for text in ("a", "a", "b", "c") if why == "cached" else "abcd":
            try:
                said.append((await ctx.llm(engine).complete(text, temperature=0, max_tokens=5)).content)
            except (ModelError, EffectError, BudgetExceeded) as error:
                limits = "may ask models" in str(error) or "calls" in str(error)
                said.append("limit" if limits else "failed")
            except Exception as error:  # TurnLimitExceeded
                said.append("limit" if "may ask models" in str(error) else repr(error))
        return said

    writer = SqliteLedgerWriter(tmp_path / "ledger.db") if "SQLite" in where else InMemoryLedgerWriter()
    budgets = [Budget("default", max_calls_daily=2)] if where != "job" else []
    ledger = Ledger(writer, budgets=budgets)
    limits = BudgetSpec(max_turns=2) if where == "job" else None
    async with RuntimeKernel.create(agent=f, budgets=ledger) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=limits))
        found = (await handle.result()).output
    wanted = {"in time": ["failed", "failed", "limit", "limit"], "cached": ["yes", "yes", "no", "limit"]}
    assert found == wanted.get(why, ["failed", "failed", "yes", "no"])
    if "SQLite" in where:
        await ledger.close()
        again = SqliteLedgerWriter(tmp_path / "ledger.db")
        assert (await again.used("default", 0)).calls == 2, "as the database counts them"
        await again.close()


async def test_a_tool_that_was_not_called_counts_nothing_in_the_budget_of_an_engine() -> None:
    tried: list[int] = []

    @tool(retries=0)
    async def pay(order: int) -> str:
        tried.append(order)
        if len(tried) == 1:
            raise NotSent("no connection")
        return "paid"

    budget = CallBudget(max_tool_calls=1)
    wanted = [assistant("", ToolCall(str(order), "pay", f'{{"order": {order}}}')) for order in (1, 2)]
    engine = ExecutionEngine(ScriptedProvider([*wanted, "done"]), budget=budget)
    result = await Agent(engine, tools=[pay]).run("go")
    assert (result.content, tried, budget.tool_calls) == ("done", [1, 2], 1)
