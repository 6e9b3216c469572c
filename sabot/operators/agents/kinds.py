"""Chooses the operator that runs an agent."""

from typing import Any

from sabot.api.agent import AgentSpec
from sabot.operators.agents.batches import BatchAgentOperator
from sabot.operators.agents.durable import DurableAgentOperator
from sabot.operators.agents.durable_batches import DurableBatchOperator
from sabot.operators.agents.operator import AgentOperator
from sabot.operators.agents.records import RecordAgentOperator


def agent_operator(spec: AgentSpec, **wiring: Any) -> AgentOperator:
    """Makes the operator of an agent. `wiring`: the arguments of its constructor; a durable agent has further ones."""
    if spec.durable:
        return (DurableBatchOperator if spec.batch else DurableAgentOperator)(spec, **wiring)
    return BatchAgentOperator(spec, **wiring) if spec.batch else RecordAgentOperator(spec, **wiring)
