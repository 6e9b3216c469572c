"""The contract of an agent with its run, in the process that runs its calls and in the process that the user has
started.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sabot.api.agent import AgentSpec
from sabot.connectors.base import Source
from sabot.engine.checkpoint import Coordinator
from sabot.engine.operators.agents.counters import Counters
from sabot.engine.runtime.life.parts import TaskCoordinator
from sabot.engine.state import StateBackend
from sabot.errors import AgentFailed, SabotError

if TYPE_CHECKING:
    from sabot.engine.runtime.agents.task import AgentTask


class RunningAgents(Protocol):
    """The running agents of a process, with the methods that an agent calls (`local_agents.LocalAgents`)."""

    coordinator: TaskCoordinator
    task: "AgentTask"

    def topics_of(self, agent_id: str) -> list[str]:
        """Returns the names of the inputs of an agent."""

    async def stop_agent(self, agent_id: str) -> None:
        """Stops one agent from taking rows; the others run on."""

    def restart_agent(self, agent_id: str) -> None:
        """Starts an agent that `stop_agent` has stopped."""

    async def finish(self, coordinator: Coordinator) -> None:
        """Stops agents that run outside of an app, and takes a last checkpoint."""


class RunnableAgent(Counters, Protocol):
    """An agent with the methods that its run calls: its counters and its status. All calls come from the event loop."""

    agent_id: str
    spec: AgentSpec | None
    error: AgentFailed | None
    process: asyncio.Task[None] | None  # the processing loop, which ends when the agent fails
    state_backend: StateBackend | None

    def starts(self, broker: str, kafka: dict[str, Any]) -> None:
        """Called when a run begins."""

    def runs_in(self, agents: RunningAgents) -> None:
        """Called when the agent has started in this process, as one of `agents`."""

    def runs_elsewhere(self) -> None:
        """Called when the agent has started in another process."""

    def failed_elsewhere(self, failure: AgentFailed) -> None:
        """Called when the agent has failed at a record, in another process."""

    def take_figures(self, figures: Mapping[str, Any]) -> None:
        """Stores the result of `figures` from the process that runs the agent."""

    def stops(self) -> None:
        """Called when the agent begins to stop."""

    def is_not_started(self) -> None:
        """Called when the start has failed."""

    def halted(self, failure: SabotError) -> None:
        """Called when the run has failed and cannot go on, and the cause is not this agent."""

    def released(self) -> None:
        """Called when the run is over."""

    def on_failed(self, failure: AgentFailed) -> None:
        """Called when the agent has failed at a record."""

    def open_source(self, topic: str, group_id: str) -> Source:
        """Opens the source of one of the agent's topics."""

    def figures(self) -> dict[str, Any]:
        """Returns the figures that `App.statistics` describes."""


def any_durable(agents: Iterable[RunnableAgent]) -> bool:
    """Returns True if one of the agents is durable; those without a spec are not."""
    return any(agent.spec is not None and agent.spec.durable for agent in agents)
