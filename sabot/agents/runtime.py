"""The public names for the agents of an app."""

from sabot.runtime.agents.process import AgentProcess, AgentState
from sabot.runtime.agents.runtime import AgentRuntime

__all__ = ["AgentProcess", "AgentRuntime", "AgentState"]
