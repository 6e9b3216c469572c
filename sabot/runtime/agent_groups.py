"""Which agents of an app run in one task: those that share state, in Python or in Sabot, have to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sabot.api.agent import AgentSpec

__all__ = ["TASK", "AgentGroup", "agent_groups"]

TASK = "agents"
"""The task of all agents that have none of their own."""


@dataclass(frozen=True)
class AgentGroup:
    """The agents of one task, by their ids, upstream or not. room: the name under which it writes output exactly once."""

    task: str
    agents: tuple[str, ...]

    @property
    def room(self) -> str:
        """Who writes, for the ids of exactly-once output."""
        return self.task


def agent_groups(specs: Sequence[AgentSpec]) -> list[AgentGroup]:
    """The tasks of these agents, the shared one first."""
    return [AgentGroup(TASK, tuple(spec.agent_id for spec in specs))] if specs else []
