"""Physical operators: what runs inside a task."""

from typing import Any

from sabot.api.agent import AgentSpec
from sabot.operators.agent import AgentOperator, Counters, Port
from sabot.operators.batch_agent import BatchAgentOperator, decoded
from sabot.operators.record_agent import RecordAgentOperator

__all__ = [
    "AgentOperator",
    "BatchAgentOperator",
    "Counters",
    "Port",
    "RecordAgentOperator",
    "agent_operator",
    "decoded",
]


def agent_operator(spec: AgentSpec, **wiring: Any) -> AgentOperator:
    """The operator that runs this agent."""
    return BatchAgentOperator(spec, **wiring) if spec.batch else RecordAgentOperator(spec, **wiring)
