"""Agents on the engine."""

from sabot.agents.runtime import AgentProcess, AgentRuntime, AgentState

__all__ = ["AgentProcess", "AgentRuntime", "AgentState"]
