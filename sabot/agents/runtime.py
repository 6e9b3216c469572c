"""The public names for the agents of an app."""

from sabot.runtime.agent_process import AgentProcess, AgentState
from sabot.runtime.agent_runtime import AgentRuntime

__all__ = ["AgentProcess", "AgentRuntime", "AgentState"]
