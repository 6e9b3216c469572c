"""The graph as written -> a graph that gives the same rows for less: filters go towards the source, unused columns are not read."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.api.stream import (
    AggregateWindow,
    Deduplicate,
    Drop,
    Filter,
    FlatMap,
    MapBatches,
    Node,
    Read,
    Reduce,
    Rename,
    RunningAggregate,
    Select,
    Union,
    WithColumns,
    Write,
)
from sabot.api.windows import CountWindow
from sabot.errors import UserError

__all__ = ["Columns", "check_columns", "columns_of", "optimise", "used_columns", "walk", "with_schemas"]

Columns = frozenset[str] | None
"""Names of columns; None: all."""


def walk(writes: Iterable[Node]) -> list[Node]:
    """Every node once, inputs before those that read them."""
    order: dict[int, Node] = {}

    def visit(node: Node) -> None:
        if id(node) in order:
            return
        for upstream in node.inputs:
            visit(upstream)
        order[id(node)] = node

    for write in writes:
        visit(write)
    return list(order.values())


def with_schemas(writes: Iterable[Write], schemas: Mapping[int, pa.Schema | None]) -> list[Write]:
    """The same graph, its Read nodes with these schemas (by the id of the node)."""
    made: dict[int, Node] = {}
    for node in walk(writes):
        inputs = tuple(made[id(upstream)] for upstream in node.inputs)
        if isinstance(node, Read):
            made[id(node)] = replace(node, schema=schemas[id(node)], inferred=node.schema is None)
        elif isinstance(node, Union):
            made[id(node)] = replace(node, streams=inputs)
        else:
            made[id(node)] = replace(node, input=inputs[0])  # type: ignore[call-arg]
    return [write for node in writes if isinstance(write := made[id(node)], Write)]


def optimise(writes: Iterable[Write]) -> list[Write]:
    """Filters stand as near to the source as they can."""
    writes = list(writes)
    pushdown = _Pushdown(writes)
    return [replace(write, input=pushdown.rewrite(write.input)) for write in writes]


class _Pushdown:
    def __init__(self, writes: list[Write]) -> None:
        self._readers = Counter(id(upstream) for node in walk(writes) for upstream in node.inputs)
        self._done: dict[int, Node] = {}

    def rewrite(self, node: Node) -> Node:
        if id(node) not in self._done:
            self._done[id(node)] = self._rewritten(node)
        return self._done[id(node)]

    def _rewritten(self, node: Node) -> Node:
        if isinstance(node, Filter):
            return self._filtered(node.predicate, node.input)
        if isinstance(node, Union):
            return replace(node, streams=tuple(self.rewrite(stream) for stream in node.streams))
        if not node.inputs:
            return node
        (upstream,) = node.inputs
        return replace(node, input=self.rewrite(upstream))  # type: ignore[call-arg]

    def _filtered(self, predicate: Expr, below: Node) -> Node:
        """Filter(predicate) over `below`, moved past as many steps as have nobody else to feed and do not make its columns."""
        if self._readers[id(below)] == 1:
            if isinstance(below, WithColumns) and not predicate.columns & {name for name, _ in below.columns}:
                return replace(below, input=self._filtered(predicate, below.input))
            if isinstance(below, Drop):
                return replace(below, input=self._filtered(predicate, below.input))
            if isinstance(below, Rename):
                old_names = {new: old for old, new in below.names}
                if not predicate.columns & {old for old, _ in below.names} - old_names.keys():
                    moved = predicate.substitute({new: col(old) for new, old in old_names.items()})
                    return replace(below, input=self._filtered(moved, below.input))
            if isinstance(below, Select):
                made = dict(below.columns)
                if predicate.columns <= made.keys() and all(_plain(made[name]) for name in predicate.columns):
                    moved = predicate.substitute({name: made[name] for name in predicate.columns})
                    return replace(below, input=self._filtered(moved, below.input))
            if isinstance(below, Union):
                return replace(below, streams=tuple(self._filtered(predicate, each) for each in below.streams))
        return Filter(self.rewrite(below), predicate)


def _plain(expr: Expr) -> bool:
    """No more than a column under another name."""
    (name, *more) = [*expr.columns] or [""]
    return not more and expr.same(col(name)) if name else False


@dataclass
class _Needs:
    columns: dict[int, Columns]

    def add(self, node: Node, columns: Columns) -> None:
        known = self.columns.get(id(node), frozenset())
        self.columns[id(node)] = None if columns is None or known is None else known | columns


def used_columns(writes: Iterable[Write]) -> Mapping[int, Columns]:
    """id(node) -> the columns of its rows that anything below uses (event time aside)."""
    nodes = walk(writes)
    needs = _Needs({})
    for node in reversed(nodes):
        for upstream, columns in _asks(node, needs.columns.get(id(node), frozenset())):
            needs.add(upstream, columns)
    return needs.columns


def columns_of(node: Node) -> list[str] | None:
    """The names of a node's columns as the program has them; None where a function, or records to come, decide."""
    if isinstance(node, Read):
        return None if node.schema is None else list(node.schema.names)
    if isinstance(node, Select):
        return [name for name, _ in node.columns]
    if isinstance(node, RunningAggregate):
        return [*node.keys, *(name for name, _ in node.aggregates)]
    if isinstance(node, AggregateWindow):
        if isinstance(node.window, CountWindow):
            return None  # with event time it has the bounds of its windows too
        return [*node.keys, "window_start", "window_end", *(name for name, _ in node.aggregates)]
    below = columns_of(node.inputs[0]) if node.inputs and not isinstance(node, MapBatches | FlatMap) else None
    if below is None:
        return None
    if isinstance(node, WithColumns):
        return below + [name for name, _ in node.columns if name not in below]
    if isinstance(node, Drop):
        return [name for name in below if name not in node.names]
    if isinstance(node, Rename):
        return [dict(node.names).get(name, name) for name in below]
    return below


def check_columns(writes: Iterable[Write]) -> None:
    """Every column that a step names is there. Before `optimise`, which moves steps to where more columns are."""
    for node in walk(writes):
        named = sorted(_named(node))
        for known in filter(None, map(columns_of, node.inputs)):
            for name in named:
                if name not in known:
                    close = difflib.get_close_matches(name, known, 1)
                    hint = f"did you mean {close[0]!r}? " if close else ""
                    hint += f"the columns are {', '.join(known)}"
                    raise UserError(f"{type(node).__name__}: there is no column {name!r}", hint=hint)


def _named(node: Node) -> frozenset[str]:
    """The columns of its input that a step names."""
    if isinstance(node, Filter):
        return node.predicate.columns
    if isinstance(node, Select | WithColumns):
        return frozenset().union(*(expr.columns for _, expr in node.columns))
    if isinstance(node, Drop):
        return frozenset(node.names)
    if isinstance(node, Rename):
        return frozenset(old for old, _ in node.names)
    if isinstance(node, AggregateWindow | RunningAggregate):
        return frozenset(node.keys).union(*(aggregate.columns for _, aggregate in node.aggregates))
    if isinstance(node, Deduplicate | Reduce):
        return frozenset(node.keys)
    if isinstance(node, Write):
        return frozenset() if node.key is None else frozenset([node.key])
    return frozenset()


def _asks(node: Node, wanted: Columns) -> list[tuple[Node, Columns]]:
    """What a node asks of its inputs when `wanted` is asked of it."""
    if isinstance(node, Write | MapBatches | FlatMap | Reduce):
        return [(node.input, None)]
    if isinstance(node, Filter):
        return [(node.input, _with(wanted, node.predicate.columns))]
    if isinstance(node, Select):
        return [(node.input, frozenset().union(*(expr.columns for _, expr in node.columns)))]
    if isinstance(node, WithColumns):
        made = {name for name, _ in node.columns}
        kept = None if wanted is None else wanted - made
        return [(node.input, _with(kept, frozenset().union(*(expr.columns for _, expr in node.columns))))]
    if isinstance(node, Rename):
        if wanted is None:
            return [(node.input, None)]
        new_names = {new: old for old, new in node.names}
        return [(node.input, frozenset(new_names.get(name, name) for name in wanted))]
    if isinstance(node, Union):
        return [(stream, wanted) for stream in node.streams]
    if isinstance(node, AggregateWindow | RunningAggregate):
        if isinstance(node, AggregateWindow) and node.late is not None:
            return [(node.input, None)]  # late rows leave as they came
        return [(node.input, frozenset(node.keys).union(*(aggregate.columns for _, aggregate in node.aggregates)))]
    if isinstance(node, Deduplicate):
        return [(node.input, _with(wanted, frozenset(node.keys)))]
    if isinstance(node, Drop):
        return [(node.input, wanted)]
    return [(upstream, None) for upstream in node.inputs]


def _with(columns: Columns, more: frozenset[str]) -> Columns:
    return None if columns is None else columns | more
