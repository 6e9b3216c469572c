"""Rewrites the graph into one that gives the same rows at less cost: filters move towards the source, and unused
columns are not read.

The nodes say which columns a step needs, and past which steps a filter may move (`api/nodes`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot.api.expr import Expr
from sabot.api.nodes.functions import Connect, Process
from sabot.api.nodes.joins import AsofJoin
from sabot.api.nodes.node import Columns, Node, walk
from sabot.api.nodes.origin import StepOrigin
from sabot.api.nodes.read import Read, StreamEnd, TableFormat
from sabot.api.nodes.rows import Broadcast, Filter, MapBatches
from sabot.api.windows import SessionWindow, TimeWindow
from sabot.base.arrays import empty_batch
from sabot.base.dataclass import dataclass
from sabot.connectors.places import Place
from sabot.engine.operators.windows.panes import shape_of

__all__ = [
    "TimeUse",
    "behind_known",
    "check_nodes",
    "closing_time",
    "ending",
    "ending_at",
    "optimise",
    "present_columns",
    "rows_at_a_time",
    "time_use",
    "used_columns",
    "walk",
    "with_schemas",
]

_NEVER_MS = 2**53


def with_schemas(ends: Iterable[StreamEnd], schemas: Mapping[int, pa.Schema | None]) -> list[StreamEnd]:
    """Returns the same graph, with these schemas, in canonical types, in its Read nodes. `schemas`: the schema of
    each Read node, by the id of the node; None if it is not known.
    """

    def known(node: Read) -> Read:
        schema = schemas[id(node)]
        canonical = None if schema is None else normalise(empty_batch(schema)).schema
        if canonical is not None and canonical == node.schema and not node.inferred:
            return node
        return replace(node, schema=canonical, inferred=node.schema is None)

    return _with_reads(ends, known)


# Each is computed once, and is then in the node's __dict__.
_ANSWERS = ("column_names", "changes", "unique", "event_times")
_BY_CLASS = (Process, Connect, Broadcast)  # the step behind one of these looks which one it is


def behind_known(node: Node, known: Mapping[Node, pa.Schema]) -> Node:
    """Returns the same steps up to `node`, for its columns alone: the last steps before it whose columns are in `known`
    are replaced by sources with these columns, which answer as the steps do. The other steps are planned, and not
    all that are before them.

        read ▶ group by ▶ group by ▶ filter        known: the second group by
        known rows ▶ filter
    """
    made: dict[Node, Node] = {}

    def cut(each: Node) -> Node:
        if each in made:
            return made[each]
        columns = known.get(each)
        if isinstance(each, AsofJoin):
            found: Node = each.over(cut(each.left), each.right)  # it reads the versions of its right (`Node.versions`)
        elif columns is None or isinstance(each, _BY_CLASS):
            found = each.over(*map(cut, each.inputs))
        else:
            table = TableFormat(()) if each.changes else None
            found = Read("known rows", columns, None, 0, 0, "{topic}.dlq", table)
            vars(found).update((name, getattr(each, name)) for name in _ANSWERS)
        made[each] = found
        return found

    return cut(node)


def ending(ends: Iterable[StreamEnd], until: Place | None) -> list[StreamEnd]:
    """Returns the same graph, in which each topic without an end of its own ends at `until`. If `until` is None,
    returns the ends unchanged.
    """
    return list(ends) if until is None else _with_reads(ends, lambda node: node.ending(until))


def ending_at(ends: Iterable[StreamEnd], places: Mapping[str, Place]) -> list[StreamEnd]:
    """Returns the same graph, in which the topics of `places` end at these places, and no source becomes idle."""

    def bounded(node: Read) -> Read:
        return replace(node, until=places.get(node.name), idle_ms=_NEVER_MS, idle_closes=False)

    return _with_reads(ends, bounded)


def _with_reads(ends: Iterable[StreamEnd], changed: Callable[[Read], Read]) -> list[StreamEnd]:
    """Returns the same graph over changed Read nodes."""
    made: dict[int, Node] = {}
    for node in walk(ends):
        inputs = (made[id(upstream)] for upstream in node.inputs)
        made[id(node)] = changed(node) if isinstance(node, Read) else node.over(*inputs)
    return [end for node in ends if isinstance(end := made[id(node)], StreamEnd)]


def check_nodes(ends: Iterable[StreamEnd]) -> None:
    """Calls `check` of every node. Must be called before `optimise`: filters that it moves meet other columns, so
    errors would name columns that the user does not expect. Raises UserError.
    """
    for node in walk(ends):
        node.check()


def optimise(ends: Iterable[StreamEnd]) -> list[StreamEnd]:
    """Returns the same graph with each filter as near to the source as possible."""
    ends = list(ends)
    pushdown = _Pushdown(ends)
    return [replace(end, input=pushdown.rewrite(end.input)) for end in ends]


class _Pushdown:
    def __init__(self, ends: list[StreamEnd]) -> None:
        self._readers = Counter(id(upstream) for node in walk(ends) for upstream in node.inputs)
        # By the node, not by its id: the steps of `versions` live no longer than this, and another one may get their ids.
        self._done: dict[Node, Node] = {}

    def rewrite(self, node: Node) -> Node:
        if node not in self._done:
            self._done[node] = self._rewritten(node)
        return self._done[node]

    def _rewritten(self, node: Node) -> Node:
        if isinstance(node, Filter):
            return self._filtered(node.predicate, node.input, node.origin)
        if isinstance(node, AsofJoin) and node.right.changes:
            return replace(node, left=self.rewrite(node.left), right=self.rewrite(node.right.versions()))
        return node.over(*map(self.rewrite, node.inputs))

    def _filtered(self, predicate: Expr, below: Node, origin: StepOrigin) -> Node:
        """Returns `below` with the filter moved up as far as possible: past each step that no other step reads and
        that does not make a column of the filter.
        """
        moved = below.moved_before(predicate) if self._readers[id(below)] == 1 else None
        if moved is None:
            return Filter(self.rewrite(below), predicate, origin=origin)
        return below.over(*(self._filtered(moved, upstream, origin) for upstream in below.inputs))


def used_columns(ends: Iterable[StreamEnd]) -> Mapping[int, Columns]:
    """Returns, by the id of a node, the columns of its rows that later steps use, without event time."""
    used: dict[int, Columns] = {}
    for node in reversed(walk(ends)):
        for upstream, columns in zip(node.inputs, node.asks(used.get(id(node), frozenset())), strict=True):
            known = used.get(id(upstream), frozenset())
            used[id(upstream)] = None if columns is None or known is None else known | columns
    return used


def present_columns(ends: Iterable[StreamEnd], used: Mapping[int, Columns]) -> Mapping[int, Columns]:
    """Returns, by the id of a node, the columns that its rows have at run time, without event time, or None if they
    are unknown.

    These are the columns that later steps use, and columns that only earlier steps use and that pass through. The
    result may contain columns that a step has removed. `used`: the result of `used_columns`.
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
    """The use of event time in a graph, as ids of nodes. `read`: the sources whose rows carry event time, because a
    later step needs it or makes use of it. `matters`: the steps before a result that depends on event time.
    """

    read: frozenset[int]
    matters: frozenset[int]


def time_use(ends: Iterable[StreamEnd]) -> TimeUse:
    """Returns two sets of nodes: the sources that are read with event time, and the steps before a result that
    depends on it.
    """
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


def rows_at_a_time(ends: Iterable[StreamEnd], read: Read) -> int | None:
    """Returns the most rows that a source is read at a time, because a barrier waits for the rows before it: the least `rows=` of the
    `map_batches` behind it; None if there is none.
    """
    behind, most = {id(read)}, []
    for node in walk(ends):
        if any(id(upstream) in behind for upstream in node.inputs):
            behind.add(id(node))
            most += [node.most_rows] if isinstance(node, MapBatches) and node.most_rows is not None else []
    return min(most, default=None)


def closing_time(ends: Iterable[StreamEnd], read: Read) -> Callable[[int], int]:
    """Returns a function that computes, from the greatest event time of a source, the watermark that closes all
    windows with its rows, and all windows behind these. Steps that give rows another event time, and the steps behind
    them, are left out.
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
            elif isinstance(window, TimeWindow):
                shape = shape_of(window)
                time_ms = shape.last_end(shape.pane(time_ms)) - 1
            times[id(node)] = time_ms
            watermark_ms = max(watermark_ms, time_ms + 1)
        return watermark_ms

    return closing
