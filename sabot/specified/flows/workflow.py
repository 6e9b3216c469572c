"""A workflow executes one node after the other (document 002). The state decides which node is the next. A workflow may have
loops, which have a limit.

AgentNode        runs an operator, whose content goes into the state
ConditionalNode  chooses the next node
ParallelNode     runs several operators side by side
EndNode          ends the workflow

The state is a set of fields: those of the input, and the content of each node under the node's id. Between two nodes it
is a value that can be stored (`WorkflowState`). In a durable job nothing has to be stored: after a crash the job runs
again over its journal.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import msgspec

from sabot.base.checks import is_whole
from sabot.base.config import Duration, check_numbers, checked_durations
from sabot.base.options import answers_wrong_options
from sabot.engine.calls.usage import Usage
from sabot.errors import UserError, short_repr
from sabot.specified.flows.base import (
    DepthExceeded,
    Flow,
    FlowCycle,
    FlowFailed,
    OperatorContext,
    OperatorLike,
    OperatorResult,
    OrchestrationConfig,
    as_operator,
    fields_of,
    run_parallel,
    step,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visited:
    """The base class of the nodes of a workflow. One execution of the workflow can visit the node at most `max_visits`
    times; None sets no limit. When it would visit the node once more, it continues at the node with the id `exhausted`
    instead. If `exhausted` is "", it raises DepthExceeded.
    """

    max_visits: int | None = None
    exhausted: str = ""

    def __post_init__(self) -> None:
        if self.max_visits is not None and not is_whole(self.max_visits, 1):
            raise UserError(
                f"{type(self).__name__}: max_visits={short_repr(self.max_visits)}", hint="a whole number, at least 1"
            )


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class AgentNode(_Visited):
    """A node of a workflow that executes an operator, an agent or a function. The operator gets the state of the
    workflow, which is a dict of fields. The content of its result is stored in the state twice: as the field with the
    node's id, and as the field "text". `next` is the id of the next node.
    """

    id: str
    operator: OperatorLike
    next: str

    def ways(self) -> Iterator[str]:
        """Yields the ids of the nodes that can be the next one after this node."""
        yield self.next


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class ConditionalNode(_Visited):
    """A node of a workflow that chooses the next node. `choose` is an operator or a function that gets the state of the
    workflow and returns the name of a route; True means the route "yes", and False means "no". `routes` contains the id
    of the next node for each route. `default` is the id of the next node for any other name; with "" the execution
    fails.
    """

    id: str
    choose: OperatorLike
    routes: Mapping[str, str]
    default: str = ""

    def ways(self) -> Iterator[str]:
        """Yields the ids of the nodes that can be the next one after this node."""
        yield from self.routes.values()
        if self.default:
            yield self.default


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class ParallelNode(_Visited):
    """A node of a workflow that executes several operators at the same time. Each of them gets the state of the
    workflow. The list of the contents of their results is stored in the state, as the field with the node's id. `next`
    is the id of the next node.
    """

    id: str
    branches: Sequence[OperatorLike]
    next: str

    def ways(self) -> Iterator[str]:
        """Yields the ids of the nodes that can be the next one after this node."""
        yield self.next


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class EndNode(_Visited):
    """A node that ends the workflow. `content` is the name of the field of the state whose value is the content of the
    workflow's result. With "" that content is the whole state.
    """

    id: str
    content: str = ""

    def ways(self) -> Iterator[str]:
        """Yields nothing, because the workflow ends at this node."""
        yield from ()


WorkflowNode = AgentNode | ConditionalNode | ParallelNode | EndNode


class WorkflowState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one execution of a workflow, before a node is executed.

    - `node`: the id of the next node.
    - `fields`: the fields of the state: those of the input, and those that earlier nodes have added.
    - `visits`: the number of visits of each node, by node id.
    - `steps`: the number of nodes that have been executed.
    """

    node: str
    fields: dict[str, Any]
    visits: dict[str, int] = {}
    steps: int = 0

    def to_bytes(self) -> bytes:
        """Encodes the state as msgpack. Raises UserError if a field cannot be encoded."""
        try:
            return msgspec.msgpack.encode(self)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the state of a workflow at {self.node} cannot be written down: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> "WorkflowState":
        """Decodes a state that `to_bytes` has encoded. Raises UserError for other data."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"this is no state of a workflow: {error}") from error


@answers_wrong_options
class Workflow(Flow):
    """An operator that executes nodes one after the other. Each node determines the next one, so there can be branches
    and loops.

    - `start`: the id of the first node; by default it is the first one in the list.
    - `max_depth`: the most nodes that one execution may visit, repeated visits included.
    - `max_branches`: the most operators of a ParallelNode.
    - `timeout_seconds`: the time limit of one execution; None sets no limit. It is not applied to a workflow inside of
      another flow.
    - `on_step`: a function, async or not, that is called with the WorkflowState after each node. If such a state is
      passed to `execute` as the input, the execution continues from it.

    The constructor raises UserError for nodes that are missing or not valid, FlowCycle (E2010) for a loop in which no
    node has `max_visits`, and DepthExceeded (E2011) for a ParallelNode with too many operators or none.

    If a node fails, `execute` returns a result with `success=False` and a FlowFailed (E2012) as its error. In these
    cases it raises an error instead:

    - FlowTimeout (E2013) if the time limit has passed.
    - DepthExceeded (E2011) if the execution visits too many nodes, or one node too often, or if flows are nested too
      deeply.
    - FlowFailed (E2012) if a ConditionalNode chooses a route that does not exist, or if the state lacks the field that
      the EndNode names.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[WorkflowNode],
        *,
        start: str = "",
        max_depth: int = 100,
        max_branches: int = 10,
        timeout_seconds: Duration | None = 3600.0,
        on_step: Callable[[WorkflowState], Any] | None = None,
    ) -> None:
        super().__init__(name=name)
        self.nodes: dict[str, WorkflowNode] = {}
        if isinstance(nodes, str) or not isinstance(nodes, Sequence):
            raise UserError(f"workflow {name}: nodes={short_repr(nodes)}", hint="a list: [AgentNode(…), EndNode(…)]")
        for node in nodes:
            if not isinstance(node, WorkflowNode):
                raise UserError(
                    f"workflow {name}: {short_repr(node)} is no node",
                    hint="an AgentNode, ConditionalNode, ParallelNode or EndNode",
                )
            if node.id in self.nodes:
                raise UserError(f"workflow {name}: two nodes are called {short_repr(node.id)}")
            self.nodes[node.id] = node
        if not self.nodes:
            raise UserError(f"workflow {name} has no nodes")
        self.start = start or next(iter(self.nodes))
        self.max_depth, self.max_branches = max_depth, max_branches
        self.timeout_seconds: float | None = timeout_seconds  # type: ignore[assignment]  # below it is made seconds
        check_numbers(self, "max_depth", "max_branches", whole=True, what=f"workflow {name}")
        checked_durations(self, "timeout_seconds", none=True, what=f"workflow {name}")
        self._on_step = on_step
        self._check()
        self._operators = {
            node.id: as_operator(node.choose if isinstance(node, ConditionalNode) else node.operator, f"node {node.id}")
            for node in self.nodes.values()
            if isinstance(node, AgentNode | ConditionalNode)
        }
        self._branches = {
            node.id: [as_operator(each, f"node {node.id}") for each in node.branches]
            for node in self.nodes.values()
            if isinstance(node, ParallelNode)
        }

    def _check(self) -> None:
        there = f"nodes are: {', '.join(self.nodes)}"
        if self.start not in self.nodes:
            raise UserError(f"workflow {self.name}: there is no node {short_repr(self.start)} to start at", hint=there)
        for node in self.nodes.values():
            for way in [*node.ways(), *([node.exhausted] if node.exhausted else [])]:
                if way not in self.nodes:
                    raise UserError(
                        f"workflow {self.name}: node {node.id} leads to {short_repr(way)}, which is not there",
                        hint=there,
                    )
            if isinstance(node, ParallelNode) and not 0 < len(node.branches) <= self.max_branches:
                raise DepthExceeded(
                    f"workflow {self.name}: node {node.id} has {len(node.branches)} branches, of at most {self.max_branches}"
                )
        if not any(isinstance(node, EndNode) for node in self.nodes.values()):
            raise UserError(f"workflow {self.name} has no end", hint="an EndNode")
        # The search stops at nodes with a bound, since a loop through one of them ends.
        ways = {
            node.id: [*node.ways()] if node.max_visits is None else [node.exhausted] if node.exhausted else []
            for node in self.nodes.values()
        }
        try:
            TopologicalSorter(ways).prepare()
        except CycleError as error:
            raise FlowCycle(
                f"workflow {self.name}: a loop has no bound: {' -> '.join(error.args[1])}",
                hint="max_visits= at one of its nodes",
            ) from None

    def _seconds(self, config: OrchestrationConfig) -> float | None:
        return self.timeout_seconds

    async def _flow(self, given: Any, context: OperatorContext) -> OperatorResult:
        state = given if isinstance(given, WorkflowState) else WorkflowState(node=self.start, fields=fields_of(given))
        if state.node not in self.nodes:
            raise UserError(f"workflow {self.name}: there is no node {short_repr(state.node)} to go on at")
        usage = Usage()
        while True:
            node = self.nodes[state.node]
            if isinstance(node, EndNode):
                if node.content and node.content not in state.fields:
                    raise FlowFailed(f"workflow {self.name}: at its end {node.id} the state has no {node.content!r}")
                content = state.fields[node.content] if node.content else state.fields
                return OperatorResult(content, usage=usage, metadata={"end": node.id, "state": state})
            visits = state.visits.get(node.id, 0) + 1
            if node.max_visits is not None and visits > node.max_visits:
                if not node.exhausted:
                    raise DepthExceeded(
                        f"workflow {self.name}: a run has come to node {node.id} {node.max_visits} times, and comes again",
                        hint="exhausted= says where it goes on then",
                    )
                state = msgspec.structs.replace(state, node=node.exhausted)
                continue
            if state.steps >= self.max_depth:
                raise DepthExceeded(
                    f"workflow {self.name}: a run has been at {state.steps} nodes, and has not ended",
                    hint="max_depth=…",
                )
            result, fields, way = await self._visit(node, state.fields, context)
            usage += result.usage
            if not result.success:
                failed = FlowFailed(
                    f"workflow {self.name}: node {node.id} has failed: {result.error or result.content}"
                )
                failed.__cause__ = result.error
                return replace(result, error=failed, usage=usage, metadata={"node": node.id, "state": state})
            state = WorkflowState(
                node=way, fields=fields, visits={**state.visits, node.id: visits}, steps=state.steps + 1
            )
            if self._on_step is not None:
                told = self._on_step(state)
                if inspect.isawaitable(told):
                    await told

    async def _visit(
        self, node: WorkflowNode, fields: dict[str, Any], context: OperatorContext
    ) -> tuple[OperatorResult, dict[str, Any], str]:
        """Executes a node. Returns the node's result, the fields of the state after it, and the id of the next node."""
        match node:
            case AgentNode():
                result = await step(self._operators[node.id], fields, context)
                return result, {**fields, node.id: result.content, "text": result.content}, node.next
            case ParallelNode():
                results = await run_parallel([(each, fields) for each in self._branches[node.id]], context)
                failed = [each for each in results if not each.success]
                usage = Usage()
                for each in results:
                    usage += each.usage
                result = replace((failed or results)[0], usage=usage)
                return result, {**fields, node.id: [each.content for each in results]}, node.next
            case ConditionalNode():
                result = await step(self._operators[node.id], fields, context)
                way = self._way(node, result.content) if result.success else ""
                return result, fields, way
        raise AssertionError(node)

    def _way(self, node: ConditionalNode, chosen: Any) -> str:
        name = {True: "yes", False: "no"}[chosen] if isinstance(chosen, bool) else str(chosen).strip()
        way = node.routes.get(name, node.default)
        if not way:
            raise FlowFailed(
                f"workflow {self.name}: node {node.id} chose {short_repr(chosen)}; routes are: {', '.join(node.routes)}"
            )
        return way
