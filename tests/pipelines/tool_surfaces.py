"""The surfaces on which tools are called, each as a function that lets a model or a client make calls, and returns the texts
that it gets: a script, an agent as a tool, a durable agent, a kernel, and a server of MCP.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mcp import Client

from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.connectors.memory import MemoryBroker
from sabot.llm import RequestSpec, Tool, ToolCall, assistant
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.mcp import ToolServer
from tools.agent_tools import started, until

Tools = Sequence[tuple[Tool, str]]
"""Tools, each with the arguments of one call as JSON."""


def agent_with(tools: Tools, name: str = "asks") -> tuple[Agent, list[str]]:
    """Returns an agent whose model makes each call, and the texts that the model gets."""
    shown: list[str] = []

    def answer(spec: RequestSpec) -> Any:
        said = [each.text for each in spec.messages if each.role == "tool"]
        if not said:
            return assistant("", *(ToolCall(f"c{at}", each.name, said) for at, (each, said) in enumerate(tools)))
        shown[:] = said
        return "done"

    return Agent(ExecutionEngine(ScriptedProvider(answer)), tools=[each for each, _ in tools], name=name), shown


async def in_a_script(tools: Tools, url: str, path: Path) -> list[str]:
    agent, shown = agent_with(tools)
    await agent.run("go")
    return shown


async def in_an_agent_that_is_a_tool(tools: Tools, url: str, path: Path) -> list[str]:
    inner, shown = agent_with(tools)
    call = ToolCall("c", inner.name, '{"prompt": "go"}')
    await Agent(ExecutionEngine(ScriptedProvider([assistant("", call), "done"])), tools=[inner], name="outer").run("go")
    return shown


async def in_a_job(tools: Tools, url: str, path: Path) -> list[str]:
    agent, shown = agent_with(tools)
    app = App("values", url, state=str(path), checkpoint_interval=3600)
    app.llm_agent("asked", agent.engine, tools=[each for each, _ in tools], sink="answers")
    async with started(app):
        MemoryBroker.get(url).publish("asked", [{"prompt": "go"}])
        await until(lambda: MemoryBroker.get(url).records("answers"))
    return shown


async def in_a_kernel(tools: Tools, url: str, path: Path) -> list[str]:
    agent, shown = agent_with(tools)
    async with RuntimeKernel(None, agent, journal=path) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    return shown


async def over_mcp(tools: Tools, url: str, path: Path) -> list[str]:
    async with Client(ToolServer("values", [each for each, _ in tools]).server) as client:
        return [(await client.call_tool(each.name, json.loads(said))).content[0].text for each, said in tools]  # type: ignore[union-attr]


SURFACES = (in_a_script, in_an_agent_that_is_a_tool, in_a_job, in_a_kernel, over_mcp)
