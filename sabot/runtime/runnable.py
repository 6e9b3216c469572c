"""An agent as its run sees it, in the process that runs its calls and in the one that the user has started."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sabot.api.agent import AgentSpec
from sabot.connectors.base import Source
from sabot.errors import AgentFailed, SabotError
from sabot.operators import Counters
from sabot.state import StateBackend

if TYPE_CHECKING:
    from sabot.runtime.local_agents import LocalAgents


class RunnableAgent(Counters, Protocol):
    """An agent as its run sees it: its counters, and the changes of its status. All on the event loop."""

    agent_id: str
    spec: AgentSpec | None
    error: AgentFailed | None
    process: asyncio.Task[None] | None  # the processing loop, which ends when the agent fails
    state_backend: StateBackend | None

    def starts(self, broker: str, kafka: dict[str, Any]) -> None:
        """A run begins."""

    def runs_in(self, agents: "LocalAgents") -> None:
        """The agent has started, as one of these agents."""

    def runs_elsewhere(self) -> None:
        """The agent has started, in another process."""

    def failed_elsewhere(self, failure: AgentFailed) -> None:
        """The agent has failed at a record, in another process."""

    def take_figures(self, figures: Mapping[str, Any]) -> None:
        """Takes what `figures` gave in the process that runs the agent."""

    def stops(self) -> None:
        """The agent is being stopped."""

    def is_not_started(self) -> None:
        """The start has failed."""

    def halted(self, failure: SabotError) -> None:
        """The run is broken and cannot go on, whatever this agent does."""

    def released(self) -> None:
        """The run is over."""

    def on_failed(self, failure: AgentFailed) -> None:
        """The agent has failed at a record."""

    def open_source(self, topic: str, group_id: str) -> Source:
        """Opens the source of one of its topics."""

    def figures(self) -> dict[str, Any]:
        """Returns the figures that `App.statistics` describes."""
