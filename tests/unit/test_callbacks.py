"""Functions of users that are called, and not awaited: an async one is refused by name, where it is given."""

import functools
from collections.abc import Callable
from typing import Any, cast

import pytest

from sabot.agents import InMemoryLedgerWriter, Ledger
from sabot.agents.durable.agent_functions import agent_function
from sabot.agents.jobs import JobManager
from sabot.base.checks import check_called
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider
from sabot.mcp import McpServerPool, ToolServer
from sabot.process import HealthMonitor, LifecycleManager, ProcessRuntime, ResourceManager
from sabot.specified.flows import ExecutionGraph, GraphEdge

Given = Callable[..., Any]


async def later(*given: object) -> dict[str, str]:
    """What nobody awaits."""
    return {}


class Later:
    """Is called like a function."""

    async def __call__(self, *given: object) -> None:
        """Nothing."""


class Plain:
    """Makes objects that are called like async functions, and is itself called at once."""

    async def __call__(self) -> None:
        """Nothing."""


def an_agent() -> Agent:
    return Agent(ExecutionEngine(ScriptedProvider("x")), name="desk")


TAKE: dict[str, Given] = {
    "ProcessRuntime: on_state": lambda given: ProcessRuntime(on_state=given),
    "LifecycleManager: on_state": lambda given: LifecycleManager(on_state=given),
    "ResourceManager: on_report": lambda given: ResourceManager(LifecycleManager(), on_report=given),
    "ResourceManager: on_violation": lambda given: ResourceManager(LifecycleManager(), on_violation=given),
    "HealthMonitor: on_change": lambda given: HealthMonitor(on_change=given),
    "HealthMonitor: instance 'a': child": lambda given: HealthMonitor().register("a", given),
    "HealthMonitor: instance 'a': is_suspended": lambda given: HealthMonitor().register("a", is_suspended=given),
    "MCP server desk: environment": lambda given: McpServerPool().add("desk", command=["desk"], environment=given),
    "MCP server desk: headers": lambda given: McpServerPool().add("desk", url="http://desk", headers=given),
    "MCP server desk: connect": lambda given: McpServerPool().add("desk", connect=given),
    "JobManager: on_event": lambda given: JobManager(cast("Any", None), on_event=given),
    "Ledger: on_decision": lambda given: Ledger(InMemoryLedgerWriter(), on_decision=given),
    "graph: edge a -> b: when": lambda given: ExecutionGraph().add_edge(GraphEdge("a", "b", when=given)),
    "agent 'desk': prompt": lambda given: agent_function(an_agent(), prompt=given, reply=None, session=False),
    "agent 'desk': reply": lambda given: agent_function(an_agent(), prompt=None, reply=given, session=False),
}


@pytest.mark.parametrize("where", TAKE)
@pytest.mark.parametrize("given", [later, functools.partial(later, 1), Later(), Later().__call__])
def test_an_async_function_that_nobody_awaits_is_refused_by_name(where: str, given: Given) -> None:
    with pytest.raises(UserError, match="is async, but it is called without await") as raised:
        TAKE[where](given)
    assert raised.value.message.startswith(f"{where}=")


async def test_that_of_a_server_is_refused_before_it_serves() -> None:
    with pytest.raises(UserError, match=r"serve_http: on_start=.* is async"):
        await ToolServer("desk", []).serve_http(port=0, on_start=later)  # type: ignore[arg-type]


def test_what_is_called_at_once_passes() -> None:
    check_called(
        "here", function=print, nothing=None, values={"a": "b"}, text="text", a_class=Plain, made=lambda: later()
    )
