"""The public names for the agents of an app."""

from sabot.engine.runtime.agents.process import AgentProcess, AgentState
from sabot.engine.runtime.agents.runtime import AgentRuntime

__all__ = ["AgentProcess", "AgentRuntime", "AgentState"]
