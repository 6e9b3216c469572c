"""The question whether a call was made shows the arguments with which a person has allowed it."""

import asyncio
from typing import Any

from sabot.agents import ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy, tool


async def test_the_question_in_doubt_has_what_was_changed_at_the_approval() -> None:
    """It showed 500, and the call was one of 40: who looked for a payment of 500 found none, and it was paid twice."""
    made: list[int] = []

    @tool
    async def pay_doubtful(order: str, amount: int = 500) -> str:
        made.append(amount)
        raise TimeoutError("no answer")

    async def function(ctx: Any) -> Any:
        return await ctx.call(pay_doubtful, "o-1")

    policy = PolicyEngine([ToolPolicy(["pay_doubtful"], require_approval=True)])
    async with RuntimeKernel.create(agent=function, policy=policy) as kernel, asyncio.timeout(60):
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        asked = await _question(handle, "confirm")
        assert "edited" not in asked.payload
        await handle.resolve_action(asked.resume_token, {"approved": True, "arguments": {"amount": 40}})
        doubt = await _question(handle, "in_doubt")
        assert made == [40]
        assert doubt.payload["edited"] == {"amount": 40}
        await handle.resolve_action(doubt.resume_token, {"outcome": "done", "result": "paid"})
        assert (await handle.result()).output == "paid"


async def _question(handle: Any, kind: str) -> Any:
    while True:
        for each in await handle.get_pending_actions():
            if each.type == kind:
                return each
        await asyncio.sleep(0.01)
