"""A graph of operators. A node starts when all nodes before it have ended. Independent nodes run side by side.

A graph has no loops. `workflow` has loops, and routes that the state decides.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sabot.base.checks import check_called
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr
from sabot.specified.flows.base import (
    Flow,
    FlowCycle,
    Operator,
    OperatorContext,
    OperatorLike,
    OperatorResult,
    as_operator,
    fields_of,
    step,
    usage_of,
)


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of a graph: an operator, an agent or a function, and an id by which edges refer to it."""

    id: str
    operator: OperatorLike


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class GraphEdge:
    """An edge of a graph. The node with the id `target` waits for the node with the id `source`, and gets the content
    of its result. `when` is a function that gets this content. If the function returns False, the edge is not followed:
    the content is not passed on. None always passes it on.
    """

    source: str
    target: str
    when: Callable[[Any], bool] | None = None


class ExecutionGraph:
    """A graph of nodes and edges, which a GraphExecutor executes."""

    def __init__(self) -> None:
        self.nodes: dict[str, Operator] = {}
        self.edges: list[GraphEdge] = []

    def add_node(self, node: GraphNode) -> "ExecutionGraph":
        """Adds a node, and returns this graph. Raises UserError if the graph already has a node with this id, or if its
        operator is not valid.
        """
        if not isinstance(node, GraphNode):
            raise UserError(f"graph: {short_repr(node)} is no node", hint="graph.add_node(GraphNode(id, operator))")
        if not isinstance(node.id, str) or not node.id or node.id in self.nodes:
            raise UserError(f"graph: node {short_repr(node.id)}", hint="an id is a text, which no other node has")
        self.nodes[node.id] = as_operator(node.operator, f"graph: node {node.id}")
        return self

    def add_edge(self, edge: GraphEdge) -> "ExecutionGraph":
        """Adds an edge, and returns this graph. The nodes of the edge may be added later. Raises UserError if the graph
        already has this edge.
        """
        if not isinstance(edge, GraphEdge):
            raise UserError(f"graph: {short_repr(edge)} is no edge", hint="graph.add_edge(GraphEdge(source, target))")
        if edge.when is not None and not callable(edge.when):
            raise UserError(
                f"graph: edge {edge.source} -> {edge.target}: when={short_repr(edge.when)}",
                hint="a function of the content",
            )
        check_called(f"graph: edge {edge.source} -> {edge.target}", when=edge.when)
        if any((each.source, each.target) == (edge.source, edge.target) for each in self.edges):
            raise UserError(
                f"graph: there are two edges from {edge.source} to {edge.target}", hint="one has both conditions"
            )
        self.edges.append(edge)
        return self

    def into(self, node: str) -> list[GraphEdge]:
        """Returns the edges to this node, in the order in which they were added."""
        return [edge for edge in self.edges if edge.target == node]

    @property
    def last(self) -> list[str]:
        """The ids of the nodes from which no edge leads to another node."""
        return [node for node in self.nodes if all(edge.source != node for edge in self.edges)]

    def checked(self) -> "ExecutionGraph":
        """Checks this graph, and returns it. Raises UserError if the graph has no nodes, or an edge to a missing node.
        Raises FlowCycle if nodes wait for each other in a circle.
        """
        if not self.nodes:
            raise UserError("graph: it has no nodes", hint="graph.add_node(GraphNode(id, operator))")
        for edge in self.edges:
            for node in (edge.source, edge.target):
                if node not in self.nodes:
                    raise UserError(
                        f"graph: edge {edge.source} -> {edge.target}: there is no node {short_repr(node)}",
                        hint=f"nodes are: {', '.join(self.nodes)}",
                    )
        before = {node: [edge.source for edge in self.into(node)] for node in self.nodes}
        try:
            TopologicalSorter(before).prepare()
        except CycleError as error:
            raise FlowCycle(
                f"graph: its nodes wait for each other: {' -> '.join(reversed(error.args[1]))}",
                hint="a loop belongs into a Workflow, where it has a bound",
            ) from None
        return self


@dataclass(frozen=True, slots=True)
class GraphResult(OperatorResult, Mapping[str, OperatorResult]):
    """The result of a graph. It is also a mapping of the results of all nodes that ran, by node id:
    `results["planner"].content`.

    `content` is the content of the node from which no edge leads to another node. If several such nodes ran, or none,
    it is a mapping of their contents by node id.
    """

    nodes: Mapping[str, OperatorResult] = field(default_factory=dict)

    def __getitem__(self, node: str) -> OperatorResult:
        return self.nodes[node]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@answers_wrong_options
class GraphExecutor(Flow):
    """An operator that executes a graph, and returns a GraphResult. A node starts when all nodes from which an edge
    leads to it have ended. Nodes that do not depend on each other run at the same time.

    A node gets the fields of the graph's input. For each edge that is followed, it also gets the content of the source
    node, as a field with the id of that node. If only one edge is followed, that content is also the field "text". A
    node with incoming edges does not run if none of them is followed.

    If a node fails, the nodes that depend on it, directly or through other nodes, do not run. The other nodes still
    run, and the GraphResult has `success=False`.
    """

    def __init__(self, graph: ExecutionGraph, *, name: str = "") -> None:
        super().__init__(name=name)
        if not isinstance(graph, ExecutionGraph):
            raise UserError(f"GraphExecutor: {short_repr(graph)} is no graph", hint="an ExecutionGraph")
        self.graph = graph.checked()

    async def execute(self, input_data: Any, context: Any = None) -> GraphResult:
        """Executes the graph with the input `input_data`, and returns the results of its nodes. If a node fails, the
        result has `success=False`. Raises FlowTimeout if this takes too long, and DepthExceeded if the graph is nested
        too deeply.
        """
        found = await super().execute(input_data, context)
        assert isinstance(found, GraphResult)
        return found

    async def _flow(self, given: Any, context: OperatorContext) -> GraphResult:
        self.graph.checked()  # nodes and edges may have been added since
        config = context.config
        room = asyncio.Semaphore(config.max_parallel if config.parallel_execution else 1)
        running: dict[str, asyncio.Task[OperatorResult | None]] = {}
        lost: set[str] = set()  # nodes that have failed, and those that depend on them

        async def run(node: str) -> OperatorResult | None:
            edges = self.graph.into(node)
            before = {edge.source: await asyncio.shield(running[edge.source]) for edge in edges}
            if any(edge.source in lost for edge in edges):
                lost.add(node)
                return None
            contents = _contents(edges, before)
            if contents is None:
                return None
            async with room:
                result = await step(self.graph.nodes[node], _given(given, contents), context)
            if not result.success:
                lost.add(node)
            return result

        for node in self._in_order():
            running[node] = asyncio.create_task(run(node))
        try:
            found = {node: await running[node] for node in self.graph.nodes}
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.wait(running.values())
        return self._result({node: result for node, result in found.items() if result is not None})

    def _in_order(self) -> list[str]:
        before = {node: [edge.source for edge in self.graph.into(node)] for node in self.graph.nodes}
        return list(TopologicalSorter(before).static_order())

    def _result(self, results: Mapping[str, OperatorResult]) -> GraphResult:
        failed = [result for result in results.values() if not result.success]
        last = {node: results[node].content for node in self.graph.last if node in results}
        return GraphResult(
            next(iter(last.values())) if len(last) == 1 else last,
            success=not failed,
            error=failed[0].error if failed else None,
            usage=usage_of(list(results.values())),
            nodes=results,
        )


def _contents(edges: Sequence[GraphEdge], before: Mapping[str, OperatorResult | None]) -> dict[str, Any] | None:
    """Returns the contents that a node gets along its incoming edges, by the id of the source node. `before` contains
    the results of the source nodes, with None for a node that did not run. Returns None if the node must not run,
    because none of its incoming edges is followed.
    """
    contents = {}
    for edge in edges:
        result = before[edge.source]
        if result is not None and (edge.when is None or edge.when(result.content)):
            contents[edge.source] = result.content
    return contents if contents or not edges else None


def _given(given: Any, contents: Mapping[str, Any]) -> Any:
    if not contents:
        return given
    fields = {**fields_of(given), **contents}
    if len(contents) == 1:
        fields["text"] = next(iter(contents.values()))
    return fields
