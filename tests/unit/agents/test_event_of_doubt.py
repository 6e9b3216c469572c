"""The events of an effect with two questions: whether it may be made, and whether it was made."""

import asyncio
from typing import Any

from sabot.agents import ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy, tool


async def test_each_question_about_an_approved_call_is_told() -> None:
    """The second one had the id of the first, and was dropped: who answers at events never heard of it."""

    @tool
    async def pay_told(order: str) -> str:
        raise TimeoutError("no answer")

    async def function(ctx: Any) -> Any:
        return await ctx.call(pay_told, "o-1")

    policy = PolicyEngine([ToolPolicy(["pay_told"], require_approval=True)])
    answers: list[dict[str, Any]] = [{"approved": True}, {"outcome": "done", "result": "paid"}]
    async with RuntimeKernel.create(agent=function, policy=policy) as kernel, asyncio.timeout(60):
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        told = []
        async for event in handle.events():
            if event.type == "action.required":
                told.append(event.data["type"])
                await handle.resolve_action(event.data["resume_token"], answers.pop(0))
            if event.type == "action.resolved":
                told.append(event.type)
        assert told == ["confirm", "action.resolved", "in_doubt", "action.resolved"]
        assert (await handle.result()).output == "paid"
