"""The ways on which a call reaches a tool of an MCP server."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sabot.agents import ExecutionRequest, PolicyEngine, RuntimeKernel, ToolPolicy
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant
from sabot.mcp import McpResult, McpServerPool, McpSession
from sabot.mcp import ToolCall as NamedCall
from sabot.process import ProcessRuntime, RuntimeConfig, TaskDelegation

SERVER = "agent"  # the server's name in the pool: the default server, which a process runtime uses too

Arguments = Mapping[str, Any]
Surface = Callable[[McpServerPool, str, Arguments], Awaitable[str]]
"""Calls the tool with these arguments, and returns the text that its caller gets."""


def asked_for(tool: str, arguments: Arguments) -> ExecutionEngine:
    """An engine whose model calls the tool once, and then answers with what it was told, in angle brackets: an answer
    without text would be an error.
    """
    call = assistant("", ToolCall("c1", tool, json.dumps(arguments)))
    answers = ScriptedProvider(lambda spec: f"<{said.text}>" if (said := spec.messages[-1]).role == "tool" else call)
    return ExecutionEngine(answers, retries=0, patience=0)


async def by_session(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    session: McpSession = await pool.session(SERVER)
    return (await session.call(tool, arguments)).text


async def by_pool(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    return (await pool.call_tool("a1", NamedCall(tool, arguments))).text


async def plainly(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    (made,) = await pool.tools(SERVER, only=[tool])
    answer: str = (await made(**arguments)).text
    return answer


async def by_script(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    (made,) = await pool.tools(SERVER, only=[tool])
    return (await Agent(asked_for(made.name, arguments), tools=[made]).run("go")).content[1:-1]


async def by_kernel(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    """A durable agent that is a model with tools, whose calls a policy judges."""
    (made,) = await pool.tools(SERVER, only=[tool])
    agent = Agent(asked_for(made.name, arguments), tools=[made], name="worker")
    async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([ToolPolicy(["*"])])) as kernel:
        return str((await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).content)[1:-1]


async def by_job(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    """The function of a durable agent."""
    (made,) = await pool.tools(SERVER, only=[tool])

    async def work(ctx: Any) -> str:
        answer: str = (await ctx.call(made, **arguments)).text
        return answer

    async with RuntimeKernel.create(agent=work, policy=PolicyEngine([ToolPolicy(["*"])])) as kernel:
        return str((await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output)


async def by_program(pool: McpServerPool, tool: str, arguments: Arguments) -> str:
    """An instance of a process runtime."""
    call = json.dumps({"id": 7, "method": "tools/call", "params": {"name": tool, "arguments": arguments}})
    script = """while read -r task; do echo "$0"; read -r answer; echo "{\\"result\\": $answer}"; done"""
    async with ProcessRuntime(RuntimeConfig(mcp=pool)) as runtime:
        agent = await runtime.spawn_agent("worker", "developer", "sh", ["-c", script, call])
        said = (await runtime.execute_task(agent, TaskDelegation(objective="go"))).result
        result = said["result"]
        return McpResult(content=result["content"], structured=result.get("structuredContent")).text


SURFACES: list[Surface] = [by_session, by_pool, plainly, by_script, by_kernel, by_job, by_program]
