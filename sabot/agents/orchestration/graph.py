"""A graph of operators by what they need from each other: a node starts when all before it have ended, independent ones side by side.

For loops and routes by state there is `workflow`.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sabot.agents.orchestration.base import (
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
from sabot.base.checks import check_called
from sabot.errors import UserError, short_repr


@dataclass(frozen=True, slots=True)
class GraphNode:
    """An operator, by the name that edges call it."""

    id: str
    operator: OperatorLike


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """`target` is given the content of `source`, and waits for it. when: `f(content)`, whether it goes this way at all."""

    source: str
    target: str
    when: Callable[[Any], bool] | None = None


class ExecutionGraph:
    """Nodes and edges. `checked` says whether it can be executed."""

    def __init__(self) -> None:
        self.nodes: dict[str, Operator] = {}
        self.edges: list[GraphEdge] = []

    def add_node(self, node: GraphNode) -> "ExecutionGraph":
        """Raises UserError for an id that is there already."""
        if not isinstance(node, GraphNode):
            raise UserError(f"graph: {short_repr(node)} is no node", hint="graph.add_node(GraphNode(id, operator))")
        if not isinstance(node.id, str) or not node.id or node.id in self.nodes:
            raise UserError(f"graph: node {short_repr(node.id)}", hint="an id is a text, which no other node has")
        self.nodes[node.id] = as_operator(node.operator, f"graph: node {node.id}")
        return self

    def add_edge(self, edge: GraphEdge) -> "ExecutionGraph":
        """Its nodes may be added later. Raises UserError for an edge that is there already."""
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
        """The edges that end there, in the order in which they were added."""
        return [edge for edge in self.edges if edge.target == node]

    @property
    def last(self) -> list[str]:
        """The nodes from which no edge goes on."""
        return [node for node in self.nodes if all(edge.source != node for edge in self.edges)]

    def checked(self) -> "ExecutionGraph":
        """Itself. Raises UserError where it has no nodes, or an edge to one that is not there; FlowCycle where nodes wait for others."""
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
    """What came of a graph, and by the id of a node what came of that: `results["planner"].content`. A node that did not run is not in it.

    content: of the last node, or by id where there are several that ran.
    """

    nodes: Mapping[str, OperatorResult] = field(default_factory=dict)

    def __getitem__(self, node: str) -> OperatorResult:
        return self.nodes[node]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


class GraphExecutor(Flow):
    """Executes a graph, as an operator.

    A node is given the input's fields and, by its id, the content of each node before it; "text" too, where that is one. It does not run
    where no edge goes to it, though some end there. A node that fails stops those behind it; the others run, and the graph has failed.
    The result is a GraphResult.
    """

    def __init__(self, graph: ExecutionGraph, *, name: str = "") -> None:
        super().__init__(name=name)
        if not isinstance(graph, ExecutionGraph):
            raise UserError(f"GraphExecutor: {short_repr(graph)} is no graph", hint="an ExecutionGraph")
        self.graph = graph.checked()

    async def execute(self, input_data: Any, context: Any = None) -> GraphResult:
        """As `Flow.execute`; the result has those of the nodes, too."""
        found = await super().execute(input_data, context)
        assert isinstance(found, GraphResult)
        return found

    async def _flow(self, given: Any, context: OperatorContext) -> GraphResult:
        self.graph.checked()  # it may have been added to
        config = context.config
        room = asyncio.Semaphore(config.max_parallel if config.parallel_execution else 1)
        running: dict[str, asyncio.Task[OperatorResult | None]] = {}

        async def run(node: str) -> OperatorResult | None:
            edges = self.graph.into(node)
            before = {edge.source: await asyncio.shield(running[edge.source]) for edge in edges}
            contents = _contents(edges, before)
            if contents is None:
                return None
            async with room:
                return await step(self.graph.nodes[node], _given(given, contents), context)

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
    """What the nodes before a node hand over to it; None: it is not to run."""
    contents = {}
    for edge in edges:
        result = before[edge.source]
        if result is not None and not result.success:
            return None
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
