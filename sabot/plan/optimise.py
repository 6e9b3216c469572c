"""From the graph as written to one that gives the same rows at less cost: filters move towards the source, unused columns are not read.

The nodes say which columns a step needs, and past which steps a filter may move (`api/nodes`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot.api.expr import Expr
from sabot.api.nodes.joins import AsofJoin
from sabot.api.nodes.node import Columns, Node, walk
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.nodes.rows import Filter
from sabot.api.windows import CumulativeWindow, HoppingWindow, SessionWindow, TumblingWindow
from sabot.connectors.places import Place
from sabot.operators.windows.panes import WindowShape

__all__ = [
    "TimeUse",
    "check_nodes",
    "closing_time",
    "ending",
    "optimise",
    "present_columns",
    "time_use",
    "used_columns",
    "walk",
    "with_schemas",
]


def with_schemas(ends: Iterable[StreamEnd], schemas: Mapping[int, pa.Schema | None]) -> list[StreamEnd]:
    """The same graph, whose Read nodes have these schemas in canonical types. schemas: by the id of the node."""

    def known(node: Read) -> Read:
        schema = schemas[id(node)]
        canonical = None if schema is None else normalise(schema.empty_table()).schema
        return replace(node, schema=canonical, inferred=node.schema is None)

    return _with_reads(ends, known)


def ending(ends: Iterable[StreamEnd], until: Place | None) -> list[StreamEnd]:
    """The same graph, whose topics without an end of their own end there; None: nowhere."""
    return list(ends) if until is None else _with_reads(ends, lambda node: node.ending(until))


def _with_reads(ends: Iterable[StreamEnd], changed: Callable[[Read], Read]) -> list[StreamEnd]:
    """The same graph over changed Read nodes."""
    made: dict[int, Node] = {}
    for node in walk(ends):
        inputs = (made[id(upstream)] for upstream in node.inputs)
        made[id(node)] = changed(node) if isinstance(node, Read) else node.over(*inputs)
    return [end for node in ends if isinstance(end := made[id(node)], StreamEnd)]


def check_nodes(ends: Iterable[StreamEnd]) -> None:
    """Lets every node check itself. Comes before `optimise`, which moves steps to where there are more columns."""
    for node in walk(ends):
        node.check()


def optimise(ends: Iterable[StreamEnd]) -> list[StreamEnd]:
    """The same graph with each filter as near to the source as it can be."""
    ends = list(ends)
    pushdown = _Pushdown(ends)
    return [replace(end, input=pushdown.rewrite(end.input)) for end in ends]


class _Pushdown:
    def __init__(self, ends: list[StreamEnd]) -> None:
        self._readers = Counter(id(upstream) for node in walk(ends) for upstream in node.inputs)
        self._done: dict[int, Node] = {}

    def rewrite(self, node: Node) -> Node:
        if id(node) not in self._done:
            self._done[id(node)] = self._rewritten(node)
        return self._done[id(node)]

    def _rewritten(self, node: Node) -> Node:
        if isinstance(node, Filter):
            return self._filtered(node.predicate, node.input)
        if isinstance(node, AsofJoin) and node.right.changes:
            return replace(node, left=self.rewrite(node.left), right=self.rewrite(node.right.versions()))
        return node.over(*map(self.rewrite, node.inputs))

    def _filtered(self, predicate: Expr, below: Node) -> Node:
        """Filter(predicate) over `below`, moved past all steps that feed no other step and do not make its columns."""
        moved = below.moved_before(predicate) if self._readers[id(below)] == 1 else None
        if moved is None:
            return Filter(self.rewrite(below), predicate)
        return below.over(*(self._filtered(moved, upstream) for upstream in below.inputs))


def used_columns(ends: Iterable[StreamEnd]) -> Mapping[int, Columns]:
    """id(node) -> the columns of its rows that steps behind it use, without event time."""
    used: dict[int, Columns] = {}
    for node in reversed(walk(ends)):
        for upstream, columns in zip(node.inputs, node.asks(used.get(id(node), frozenset())), strict=True):
            known = used.get(id(upstream), frozenset())
            used[id(upstream)] = None if columns is None or known is None else known | columns
    return used


def present_columns(ends: Iterable[StreamEnd], used: Mapping[int, Columns]) -> Mapping[int, Columns]:
    """id(node) -> the columns that its rows have: those that are used behind it, and those that only steps before it used, and that come
    through; without event time. Some may be named that are gone. None: not known. used: `used_columns`.
    """
    present: dict[int, Columns] = {}
    for node in walk(ends):
        names, wanted = node.column_names, used.get(id(node))
        before = [present[id(upstream)] for upstream in node.inputs]
        if names is None:
            present[id(node)] = None
        elif wanted is None or None in before or (before and node.asks(frozenset()) == node.asks(None)):
            present[id(node)] = frozenset(names)  # it makes all of its columns, whatever is asked for
        else:
            present[id(node)] = wanted.union(*filter(None, before)).intersection(names)
    return present


@dataclass(frozen=True)
class TimeUse:
    """Ids of nodes of a graph. read: sources whose rows carry event time, since a step behind needs it or has a use for it. matters: steps
    behind which a result depends on event time.
    """

    read: frozenset[int]
    matters: frozenset[int]


def time_use(ends: Iterable[StreamEnd]) -> TimeUse:
    """Which sources are read with event time, and where results depend on it."""
    needed: set[int] = set()
    carried: set[int] = set()
    asked: set[int] = set()
    nodes = walk(ends)
    for node in reversed(nodes):
        inputs = {id(upstream) for upstream in node.inputs}
        behind = not node.gives_time  # what steps behind it need of event time, it needs too
        if (behind and id(node) in needed) or node.needs_time:
            needed |= {id(node.inputs[0])} if node.time_of_left else inputs
        if id(node) in carried or node.carries_time:
            carried |= inputs
        if (behind and id(node) in asked) or node.goes_by_time:
            asked |= inputs
    reads = [node for node in nodes if isinstance(node, Read)]
    read = {id(node) for node in reads if id(node) in needed or (id(node) in carried and node.has_time)}
    return TimeUse(frozenset(read), frozenset(needed | asked))


def closing_time(ends: Iterable[StreamEnd], read: Read) -> Callable[[int], int]:
    """A function of the greatest event time of a source: the watermark at which all windows are over that its rows are in, and those behind
    these windows. Steps that give rows another event time, and what is behind them, do not count.
    """
    nodes = walk(ends)

    def closing(greatest_ms: int) -> int:
        times = {id(read): greatest_ms}
        watermark_ms = greatest_ms + 1
        for node in nodes:
            before = [times[id(upstream)] for upstream in node.inputs if id(upstream) in times]
            if not before or node.gives_time:
                continue
            time_ms, window = max(before), getattr(node, "window", None)
            if isinstance(window, SessionWindow):
                time_ms += window.gap_ms - 1
            elif isinstance(window, TumblingWindow | HoppingWindow | CumulativeWindow):
                shape = WindowShape(window)
                time_ms = shape.last_end(shape.pane(time_ms)) - 1
            times[id(node)] = time_ms
            watermark_ms = max(watermark_ms, time_ms + 1)
        return watermark_ms

    return closing
