"""Flows of agents: chain, parallel, map and reduce, plan and execute, debate, router, graph, workflow. A flow that runs in a
durable job is durable, too.

base       operators (the steps of flows), the context of a flow, its limits and errors
patterns   operators that consist of other operators
graph      a node runs when the nodes before it have ended
workflow   nodes run one after the other, with loops; the state decides which is the next
"""

from sabot.specified.flows.base import (
    AgentStep,
    DepthExceeded,
    FlowCycle,
    FlowError,
    FlowFailed,
    FlowTimeout,
    FunctionStep,
    Operator,
    OperatorContext,
    OperatorResult,
    OrchestrationConfig,
)
from sabot.specified.flows.graph import ExecutionGraph, GraphEdge, GraphExecutor, GraphNode, GraphResult
from sabot.specified.flows.patterns import (
    ChainOperator,
    DebateOperator,
    MapReduceOperator,
    ParallelOperator,
    PlannerExecutorOperator,
    Router,
)
from sabot.specified.flows.workflow import (
    AgentNode,
    ConditionalNode,
    EndNode,
    ParallelNode,
    Workflow,
    WorkflowState,
)

__all__ = [
    "AgentNode",
    "AgentStep",
    "ChainOperator",
    "ConditionalNode",
    "DebateOperator",
    "DepthExceeded",
    "EndNode",
    "ExecutionGraph",
    "FlowCycle",
    "FlowError",
    "FlowFailed",
    "FlowTimeout",
    "FunctionStep",
    "GraphEdge",
    "GraphExecutor",
    "GraphNode",
    "GraphResult",
    "MapReduceOperator",
    "Operator",
    "OperatorContext",
    "OperatorResult",
    "OrchestrationConfig",
    "ParallelNode",
    "ParallelOperator",
    "PlannerExecutorOperator",
    "Router",
    "Workflow",
    "WorkflowState",
]
