"""Policy and budgets decide on a call by a session of a server, as on one by its tools for agents.

The session is used by a tool of a job, or by Sabot itself, for a program of a `ProcessRuntime`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp.server.subscriptions import ToolsListChanged

from sabot.agents import BudgetSpec, ConstraintPolicy, ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.errors import SabotError
from sabot.llm import tool
from sabot.mcp import McpServerPool, ToolCall, ToolServer
from sabot.process import ProcessRuntime, RuntimeConfig, TaskDelegation
from tools.mcp_servers import Desk, in_memory

PROGRAM = """
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    call = {"id": 1, "method": "tools/call", "params": {"name": "transfer", "arguments": {"to": "eve"}}}
    print(json.dumps(call), flush=True)
    answer = json.loads(sys.stdin.readline())
    print(json.dumps({"id": task.get("id"), "result": str(answer)}), flush=True)
"""


class Bank:
    """A server with a tool that pays, in this process, and what it has paid. `pool` has it as the default server too."""

    def __init__(self) -> None:
        paid: list[tuple[str, int]] = []
        self.paid = paid

        @tool
        async def transfer(to: str, amount: int = 500) -> str:
            paid.append((to, amount))
            return "sent"

        self.pool = McpServerPool()
        self.connect = ToolServer("bank", [transfer]).connect
        self.pool.add("bank", connect=self.connect)
        self.pool.add("agent", connect=self.connect)  # the default server, by its name in the pool

    async def by_session(self) -> Any:
        return await (await self.pool.session("bank")).call("transfer", {"to": "eve"})

    async def by_call_tool(self) -> Any:
        return await self.pool.call_tool("desk", ToolCall("transfer", {"to": "eve"}))

    async def by_program(self) -> Any:
        async with ProcessRuntime(RuntimeConfig(mcp=self.pool)) as runtime:
            worker = await runtime.spawn_agent("worker", "dev", sys.executable, ["-u", "-c", PROGRAM])
            return (await runtime.execute_task(worker, TaskDelegation(objective="pay"))).result


Way = Callable[[Bank], Awaitable[Any]]
WAYS = [Bank.by_session, Bank.by_call_tool, Bank.by_program]
DENIED = PolicyEngine([ToolPolicy(["transfer"], denied=True)])


@asynccontextmanager
async def bank() -> AsyncIterator[Bank]:
    made = Bank()
    try:
        yield made
    finally:
        await made.pool.close()


async def said_in_a_tool(
    way: Way, desk: Bank, policy: PolicyEngine | None, *, effect: str = "unsafe", budgets: BudgetSpec | None = None
) -> str:
    @tool(effect=effect)  # type: ignore[arg-type]
    async def delegate() -> str:
        return str(await way(desk))

    async def work(ctx: Any) -> str:
        return str(await ctx.call(delegate))

    async with RuntimeKernel.create(agent=work, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=budgets))
        try:
            return str((await handle.result()).output)
        except SabotError as error:
            return str(error)


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": DENIED}, "tool transfer of MCP server "),
        ({"policy": PolicyEngine([ConstraintPolicy(["transfer"], "amount", max=50)])}, "amount is 500, and at most 50"),
        ({"policy": PolicyEngine([ToolPolicy(["trans*"], require_approval=True)])}, "a person would have to allow it"),
        ({"policy": None, "budgets": BudgetSpec(max_tool_calls=1)}, "the job may call tools 1 times"),
        ({"policy": None, "effect": "read"}, "allows to repeat it"),
    ],
    ids=["denied", "bound of a default", "approval", "budget", "class"],
)
async def test_what_is_declared_holds_for_a_session_that_a_tool_uses(
    way: Way, options: dict[str, Any], words: str
) -> None:
    async with bank() as desk:
        said = await said_in_a_tool(way, desk, **options)
    assert (words in said, desk.paid) == (True, []), said


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_call_that_is_allowed_is_made_with_the_arguments_that_were_judged(way: Way) -> None:
    async with bank() as desk:
        said = await said_in_a_tool(way, desk, PolicyEngine([ConstraintPolicy(["transfer"], "amount", max=600)]))
    assert ("sent" in said, desk.paid) == (True, [("eve", 500)]), said


async def test_rules_know_a_tool_of_a_session_by_the_name_that_agents_have_for_it() -> None:
    async with bank() as desk:
        await desk.pool.tools("bank", prefix="acme_")
        policy = PolicyEngine([ToolPolicy(["acme_transfer"], denied=True)])
        said = await said_in_a_tool(Bank.by_session, desk, policy)
    assert ("tool acme_transfer of MCP server bank is denied" in said, desk.paid) == (True, []), said


async def test_a_session_calls_no_tool_that_rules_cannot_see() -> None:
    async with bank() as desk:

        async def hidden(desk: Bank) -> Any:
            return await (await desk.pool.session("bank")).call("wire", {"to": "eve"})

        said = await said_in_a_tool(hidden, desk, DENIED)
    assert "MCP server bank: it offers no tool wire" in said


@pytest.mark.parametrize("way", [Bank.by_session, Bank.by_call_tool], ids=lambda way: way.__name__)
@pytest.mark.parametrize("listed", [False, True])
async def test_a_session_calls_no_tool_whose_class_is_another_one_than_was_judged(way: Way, listed: bool) -> None:
    """The server had said that it only reads; by the time it said otherwise, a tool that may be repeated had it pay."""
    desk = Desk()
    desk.tools[2]["annotations"] = {"readOnlyHint": True}

    async def send(bank: Bank) -> Any:
        if way is Bank.by_session:
            return await (await bank.pool.session("bank")).call("send", {})
        return await bank.pool.call_tool("desk", ToolCall("send", {}))

    async with bank() as shop:
        shop.pool = McpServerPool()
        for name in ("bank", "agent"):
            shop.pool.add(name, connect=in_memory(lambda key: desk.server()))
            if listed:
                await shop.pool.tools(name, on_change="allow")
        assert "done" in await said_in_a_tool(send, shop, DENIED, effect="read")
        desk.tools[2]["annotations"] = {"readOnlyHint": False}
        await desk.changes.publish(ToolsListChanged())
        async with asyncio.timeout(60):  # until the session has heard of it
            while "its hints are others than when it was offered" not in (
                await said_in_a_tool(send, shop, DENIED, effect="read")
            ):
                pass
        await shop.pool.close()


async def test_a_program_uses_a_session_without_rules() -> None:
    async with bank() as desk:
        for way in WAYS:
            assert "sent" in str(await way(desk))
        assert desk.paid == [("eve", 500)] * 3
        results = await asyncio.gather(*(way(desk) for way in WAYS[:2]))
    assert [each.text for each in results] == ["sent", "sent"]
