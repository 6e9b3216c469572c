"""Makes the stages of a plan from the optimised graph. For each kind of node, the module of its operator has a
function that adds the node to the plan (`PLANNERS`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.expr import Expr, col
from sabot.api.nodes.agents import AgentRead, Feed
from sabot.api.nodes.node import Node, check_event_time, walk
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.api.nodes.rows import Filter
from sabot.api.nodes.times import WithTime
from sabot.base.config import dead_letter_topic
from sabot.codecs.formats import format_of
from sabot.engine.operators.layout.operator_table import planner_of
from sabot.engine.operators.layout.plan_points import Layout, PlanPoint
from sabot.engine.operators.layout.stages import HINT_OF_MANY_STEPS, Aligned, Edge, Reading, Stage
from sabot.engine.operators.rows.stateless import only_columns
from sabot.engine.plan.agents import arranged, place_of_sink
from sabot.engine.plan.lineage import Lineages, computed_behind, computed_texts, lineages_behind, said
from sabot.engine.plan.optimise import (
    check_nodes,
    closing_time,
    optimise,
    present_columns,
    rows_at_a_time,
    time_use,
    used_columns,
)
from sabot.engine.plan.paths import path_of, steps_of
from sabot.engine.plan.stages import Plan
from sabot.errors import UserError


class SavedSource(NamedTuple):
    """A source in a checkpoint. `name`: its name (`Read.name`). `readers`: the number of its readers."""

    stage: str
    name: str
    readers: int


def make_plan(
    ends: Iterable[StreamEnd],
    *,
    agents: Sequence[AgentSpec] = (),
    parallelism: int = 1,
    saved: Sequence[SavedSource] = (),
) -> Plan:
    """Returns the plan for these ends of streams, with all steps that lead to them, and for the agents. Raises
    UserError for a program that cannot run.

    `saved`: the sources in a checkpoint from which the plan continues. The stage of a source keeps its id and its
    number of readers, although the program may read other sources before it.
    """
    ends = list(ends)
    try:
        check_nodes(ends)
        return _Planner(optimise(ends), arranged(agents, ends), parallelism, saved).plan()
    except RecursionError:
        raise UserError("the program has too many steps in a row", hint=HINT_OF_MANY_STEPS) from None


class _Planner:
    def __init__(
        self, ends: list[StreamEnd], agents: Sequence[AgentSpec], parallelism: int, saved: Sequence[SavedSource]
    ) -> None:
        self._ends = ends
        self._agents = {spec.agent_id: Stage(spec.agent_id, 1, agent=spec) for spec in agents}  # downstream first
        self._saved = list(saved)
        self._time = time_use(ends)
        used = used_columns(ends)
        self._present = present_columns(ends, used)
        self._layout = Layout(parallelism, used, self._time.matters, {each.stage for each in saved})
        self._points: dict[int, PlanPoint] = {}
        self._lineages: dict[int, Lineages] = {}
        self._conditions: dict[int, dict[str, str]] = {}  # see `StepInfo.conditions`
        self._computed: dict[int, Mapping[str, Expr]] = {}  # see `computed_behind`
        self._by_time: dict[str, bool] = {}  # by stage, True if one of its nodes uses event time

    def plan(self) -> Plan:
        for end in self._ends:
            for node in walk([end.input]):
                if id(node) not in self._points:
                    self._points[id(node)] = self._placed(node)
            self._end(end, self._points[id(end.input)])
        for stage in self._agents.values():
            self._join_agents(stage)
        stages = self._layout.stages
        letters = {place_of_sink(each.refused) for each in stages if each.refused is not None}
        for stage in stages:
            if stage.sink is not None and place_of_sink(stage.sink[0]) in letters:
                stage.refused = None  # a dead letter that its own sink refuses ends the app
            stage.by_time = self._by_time.get(stage.id, True)
        upstream_first = [stage for stage in stages if stage.sink is None]
        sinks = [stage for stage in stages if stage.sink is not None]
        return Plan([*upstream_first, *sinks, *reversed(self._agents.values())])

    def _end(self, end: StreamEnd, point: PlanPoint) -> None:
        """Adds the edge by which the rows of a stream leave it."""
        if isinstance(end, Feed):
            point = planner_of(Feed)(end, point)
            point.targets.append(Edge(self._agents[end.agent.agent_id]))
        elif isinstance(end, Write):
            changes = point.unique if point.changes else None
            format = format_of(end.format, "to") if isinstance(end.sink, str) else None
            sink = self._layout.sink(end.sink, end.key, end.delivery, changes, end.nan, format)
            sink.fed.append((steps_of(point.path), self._made(end.input)))
            point.targets.append(Edge(point.refusing(sink), changes=point.changes))

    def _made(self, node: Node) -> str:
        """Returns the columns of a node's rows and the filters that they have passed, as text."""
        columns, conditions = self._computed[id(node)], self._conditions[id(node)]
        names = node.column_names or columns
        return repr([sorted(conditions), [f"{name} = {columns.get(name, col(name)).text()}" for name in names]])

    def _join_agents(self, stage: Stage) -> None:
        """Adds the edge from an agent to another agent into which it writes."""
        assert stage.agent is not None
        for other in self._agents.values():
            if other.agent is not None and other.agent.func is stage.agent.sink:
                stage.targets.append(Edge(other))

    def _placed(self, node: Node) -> PlanPoint:
        """Returns the point of the plan where the rows of the node leave it. The inputs of the node are already in
        the plan.
        """
        inputs = [self._points[id(upstream)] for upstream in node.inputs]
        times = frozenset[str]().union(*(each.times for each in inputs if each.timed))
        if isinstance(node, Read | WithTime):
            kept, times = times | {node.said_time}, frozenset([node.said_time])
        else:
            # kept rows have their event times if a later step needs them
            kept = times if node.keeps_times or (node.keeps_rows and id(node) in self._time.matters) else frozenset()
        inputs = [replace(each, times=kept) for each in inputs]
        self._layout.origin = node.origin
        point = self._read(node) if isinstance(node, Read) else self._step(node, inputs)
        matters = id(node) in self._time.matters
        if point.timed and matters:
            check_event_time(node)
        by_time = matters or node.needs_time or node.goes_by_time
        self._by_time[point.stage.id] = self._by_time.get(point.stage.id, False) or by_time
        self._trace(node, point, inputs)
        path = path_of(node, [each.path for each in inputs])
        times = frozenset() if node.gives_time and not isinstance(node, WithTime) else times
        return replace(point, path=path, times=times, changes=node.changes, unique=node.unique)

    def _trace(self, node: Node, point: PlanPoint, inputs: Sequence[PlanPoint]) -> None:
        """Notes the lineage of the changes that come into the node's step, and of those that come out of it."""
        step = None if any(point.targets is each.targets for each in inputs) else point.last
        before = [self._lineages[id(upstream)] for upstream in node.inputs]
        conditions = {text: place for each in node.inputs for text, place in self._conditions[id(each)].items()}
        if step is not None:
            step.conditions = conditions
        own = {node.predicate.text(): node.origin.place} if isinstance(node, Filter) else {}
        self._conditions[id(node)] = {**conditions, **own}
        computed = [self._computed[id(upstream)] for upstream in node.inputs]
        self._computed[id(node)] = computed_behind(node, computed)
        if step is not None and hasattr(node, "id") and not any(before):
            step.computed = computed_texts(node, computed, self._layout.used[id(node)])
        if step is not None and not step.lineage:
            step.by_time = id(node) in self._time.matters
            step.lineage = said(node, before, self._layout.used[id(node)])
        self._lineages[id(node)] = lineages_behind(node, before, step)

    def _step(self, node: Node, inputs: list[PlanPoint]) -> PlanPoint:
        return planner_of(type(node))(node, *self._narrowed(node, inputs))

    def _narrowed(self, node: Node, inputs: list[PlanPoint]) -> list[PlanPoint]:
        """Returns the points of a step's inputs. If the step keeps whole rows, a step is added before it that removes
        the columns which neither it nor a later step uses.
        """
        if not node.keeps_rows:
            return inputs
        narrowed = []
        for point, upstream, asked in zip(inputs, node.inputs, node.asks(self._layout.used[id(node)]), strict=True):
            present, names = self._present[id(upstream)], upstream.column_names
            if asked is not None and present is not None and names is not None and not present <= asked:
                point = only_columns(point, [(name, col(name)) for name in names if name in asked])
            narrowed.append(point)
        return narrowed

    def _read(self, node: Read) -> PlanPoint:
        layout, used = self._layout, self._layout.used[id(node)]
        timed = id(node) in self._time.read
        columns: tuple[str, ...] | None = None
        if used is not None and node.columns is not None:
            columns = tuple(name for name in node.columns.names if name in used) or _one_column(node.columns)
        elif used is not None:
            columns = tuple(sorted(used))
        closing = closing_time(self._ends, node) if node.idle_closes else None
        reading = Reading(node, columns, timed, closing, rows_at_a_time(self._ends, node))
        aligned = None if node.max_drift_ms is None else Aligned(frozenset([node]), node.max_drift_ms)
        before = next((each for each in self._saved if each.name == node.name), None)
        if before is not None:
            self._saved.remove(before)
        stage = layout.stage(
            "read", layout.parallelism, id=None if before is None else before.stage, reading=reading, aligned=aligned
        )
        if isinstance(node, AgentRead):
            stage.parallelism = 1  # so its rows stay in their order
            self._agents[node.agent.agent_id].targets.append(Edge(stage))
        else:
            stage.parallelism = layout.parallelism if before is None else before.readers
        letters = node.dead_letter
        letters = dead_letter_topic(letters, node.name) if isinstance(letters, str) else letters
        stage.dead_letters = Edge(layout.sink(letters), timeless=True)
        return PlanPoint(
            layout, stage, stage.targets, timed=timed, on_error=node.on_error, dead_letter=letters, topic=node.name
        )


def _one_column(schema: pa.Schema) -> tuple[str, ...]:
    """Returns the one column to read for a program that uses rows but no column: one of fixed width, if there is one."""
    cheap = [field.name for field in schema if pa.types.is_primitive(field.type)]
    return tuple((cheap or schema.names)[:1])
