"""The optimised graph -> stages: each node is put into the plan by the function that its operator's module has for it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pyarrow as pa

from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Read, Write
from sabot.config import dead_letter_topic
from sabot.errors import UserError
from sabot.operators.layout.sites import Layout, Site
from sabot.operators.layout.stages import Edge, Reading
from sabot.operators.layout.themes import PLACES
from sabot.plan.optimise import check_nodes, optimise, time_use, used_columns
from sabot.plan.paths import path_of
from sabot.plan.stages import Plan

__all__ = ["make_plan"]


def make_plan(writes: Iterable[Write], *, parallelism: int = 1, readers: Mapping[str, int] | None = None) -> Plan:
    """Stages for these sinks and all that leads to them. Raises UserError for programs that cannot run.

    readers: by stage, how many readers a source has that must keep as many (those of a checkpoint).
    """
    writes = list(writes)
    check_nodes(writes)
    return _Planner(optimise(writes), parallelism, readers or {}).plan()


class _Planner:
    def __init__(self, writes: list[Write], parallelism: int, readers: Mapping[str, int]) -> None:
        self._writes = writes
        self._readers = readers
        self._layout = Layout(parallelism, used_columns(writes))
        self._time = time_use(writes)
        self._sites: dict[int, Site] = {}

    def plan(self) -> Plan:
        for write in self._writes:
            for node in walk([write.input]):
                if id(node) not in self._sites:
                    self._sites[id(node)] = self._placed(node)
            site = self._sites[id(write.input)]
            sink = self._layout.sink(write.sink, write.key, write.delivery, site.unique if site.changes else None)
            site.targets.append(Edge(sink, changes=site.changes))
        stages = self._layout.stages
        upstream_first = [stage for stage in stages if stage.sink is None]
        return Plan(upstream_first + [stage for stage in stages if stage.sink is not None])

    def _placed(self, node: Node) -> Site:
        """Where its rows come out; its inputs have their places."""
        inputs = [self._sites[id(upstream)] for upstream in node.inputs]
        if isinstance(node, Read):
            site = self._read(node)
        elif type(node) in PLACES:
            site = PLACES[type(node)](node, *inputs)
        else:
            raise UserError(f"{type(node).__name__} is no step of a stream")
        if site.timed and id(node) in self._time.matters:
            node.check_event_time()
        path = path_of(node, [each.path for each in inputs])
        return replace(site, path=path, changes=node.changes, unique=node.unique)

    def _read(self, node: Read) -> Site:
        layout, used = self._layout, self._layout.used[id(node)]
        timed = id(node) in self._time.read
        columns: tuple[str, ...] | None = None
        if used is not None and node.schema is not None:
            columns = tuple(name for name in node.schema.names if name in used) or _one_column(node.schema)
        elif used is not None:
            columns = tuple(sorted(used))
        reading = Reading(node, columns, timed)
        stage = layout.stage("read", layout.parallelism, reading=reading)
        stage.parallelism = self._readers.get(stage.id) or layout.parallelism
        letters = node.dead_letter
        reading.dead_letters = Edge(
            layout.sink(dead_letter_topic(letters, node.name) if isinstance(letters, str) else letters)
        )
        return Site(layout, stage, stage.targets, timed=timed)


def _one_column(schema: pa.Schema) -> tuple[str, ...]:
    """For a program that uses no column, only rows: the cheapest one."""
    cheap = [field.name for field in schema if pa.types.is_primitive(field.type)]
    return tuple((cheap or schema.names)[:1])
