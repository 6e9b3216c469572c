"""Chooses the operator that runs an agent."""

from collections.abc import Callable
from typing import Any

from sabot.api.agent import AgentSpec
from sabot.engine.operators.agents.batches import BatchAgentOperator
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.operators.agents.records import RecordAgentOperator


def agent_operator(
    spec: AgentSpec, durable: Callable[..., AgentOperator] | None = None, **wiring: Any
) -> AgentOperator:
    """Makes the operator of an agent. `durable`: makes that of a durable agent, or None for any other agent. `wiring`:
    the arguments of the constructor.
    """
    if durable is not None:
        return durable(spec, **wiring)
    return BatchAgentOperator(spec, **wiring) if spec.batch else RecordAgentOperator(spec, **wiring)
