"""Physical operators: what runs inside a task."""

from typing import Any

from sabot.api.agent import AgentSpec
from sabot.operators.agents.batches import BatchAgentOperator, decoded
from sabot.operators.agents.durable import DurableAgentOperator
from sabot.operators.agents.durable_batches import DurableBatchOperator
from sabot.operators.agents.operator import AgentOperator, Counters, Port
from sabot.operators.agents.records import RecordAgentOperator

__all__ = [
    "AgentOperator",
    "BatchAgentOperator",
    "Counters",
    "DurableAgentOperator",
    "Port",
    "RecordAgentOperator",
    "agent_operator",
    "decoded",
]


def agent_operator(spec: AgentSpec, **wiring: Any) -> AgentOperator:
    """The operator that runs this agent. A durable one takes some wiring of its own."""
    if spec.durable:
        return (DurableBatchOperator if spec.batch else DurableAgentOperator)(spec, **wiring)
    return BatchAgentOperator(spec, **wiring) if spec.batch else RecordAgentOperator(spec, **wiring)
