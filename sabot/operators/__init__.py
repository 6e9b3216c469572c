"""Physical operators: what runs inside a task."""

from typing import Any

from sabot.api.agent import AgentSpec
from sabot.operators.agents.batches import BatchAgentOperator, decoded
from sabot.operators.agents.operator import AgentOperator, Counters, Port
from sabot.operators.agents.records import RecordAgentOperator

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
