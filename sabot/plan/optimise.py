"""The graph as written -> a graph that gives the same rows for less: filters go towards the source, unused columns are not read."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from sabot._cython.batch import normalise
from sabot.api.expr import Expr, col
from sabot.api.nodes import (
    AggregateWindow,
    AsofJoin,
    Broadcast,
    Changelog,
    Deduplicate,
    Drop,
    EndVersions,
    Filter,
    FlatMap,
    GroupAggregate,
    Join,
    LookupAsync,
    MapBatches,
    Match,
    Materialize,
    Node,
    Over,
    Read,
    Reduce,
    Rename,
    RunningAggregate,
    Sample,
    Select,
    TopN,
    Union,
    Upsert,
    Versions,
    WindowTopN,
    WithColumns,
    Write,
)
from sabot.api.shape import (
    OP,
    WINDOW_COLUMNS,
    answer_names,
    check_node,
    columns_of,
    is_changes,
    named_columns,
    right_names,
)

__all__ = ["Columns", "check_nodes", "optimise", "used_columns", "walk", "with_schemas"]

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
    """The same graph, its Read nodes with these schemas (by the id of the node), in canonical types."""
    made: dict[int, Node] = {}
    for node in walk(writes):
        inputs = tuple(made[id(upstream)] for upstream in node.inputs)
        if isinstance(node, Read):
            schema = schemas[id(node)]
            canonical = None if schema is None else normalise(schema.empty_table()).schema
            made[id(node)] = replace(node, schema=canonical, inferred=node.schema is None)
        else:
            made[id(node)] = node.over(*inputs)
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
        if isinstance(node, AsofJoin) and is_changes(node.right):
            return replace(node, left=self.rewrite(node.left), right=self.rewrite(_versions(node.right)))
        return node.over(*map(self.rewrite, node.inputs))

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
                if predicate.columns <= made.keys() and all(made[name].column for name in predicate.columns):
                    moved = predicate.substitute({name: made[name] for name in predicate.columns})
                    return replace(below, input=self._filtered(moved, below.input))
            if isinstance(below, Union):
                return replace(below, streams=tuple(self._filtered(predicate, each) for each in below.streams))
        return Filter(self.rewrite(below), predicate)


def _versions(node: Node) -> Node:
    """A table whose rows count from event time to event time: all of them, also those that others of their batch replace."""
    if isinstance(node, Upsert):
        return Versions(node.input, node.deletes)
    if isinstance(node, Filter):
        return EndVersions(_versions(node.input), node.predicate)
    return node.over(_versions(node.inputs[0]))


@dataclass
class _Needs:
    columns: dict[int, Columns]

    def add(self, node: Node, columns: Columns) -> None:
        known = self.columns.get(id(node), frozenset())
        self.columns[id(node)] = None if columns is None or known is None else known | columns


def check_nodes(writes: Iterable[Write]) -> None:
    """What `api.shape` knows of every step. Before `optimise`, which moves steps to where more columns are."""
    for node in walk(writes):
        check_node(node)


def used_columns(writes: Iterable[Write]) -> Mapping[int, Columns]:
    """id(node) -> the columns of its rows that anything below uses (event time aside)."""
    nodes = walk(writes)
    needs = _Needs({})
    for node in reversed(nodes):
        for upstream, columns in _asks(node, needs.columns.get(id(node), frozenset())):
            needs.add(upstream, columns)
    return needs.columns


def _asks(node: Node, wanted: Columns) -> list[tuple[Node, Columns]]:
    """What a node asks of its inputs when `wanted` is asked of it."""
    if isinstance(node, Write | MapBatches | FlatMap | Reduce):
        return [(node.input, None)]
    if isinstance(node, Filter | EndVersions):
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
    if isinstance(node, AggregateWindow | WindowTopN) and node.late is not None:
        return [(node.input, None)]  # late rows leave as they came
    if isinstance(node, AggregateWindow | RunningAggregate | GroupAggregate):
        return [(node.input, frozenset(node.keys).union(*(aggregate.columns for _, aggregate in node.aggregates)))]
    if isinstance(node, Join):
        return _asks_of_join(node, wanted)
    if isinstance(node, TopN | WindowTopN):
        kept = None if wanted is None else wanted - {node.rank, *WINDOW_COLUMNS}
        return [(node.input, _with(kept, frozenset([*node.keys, *(name for name, _ in node.by)])))]
    if isinstance(node, Over):
        kept = None if wanted is None else wanted - {name for name, _ in node.columns}
        return [(node.input, _with(kept, named_columns(node)[0]))]
    if isinstance(node, Match):
        return [(node.input, named_columns(node)[0])]
    if isinstance(node, Deduplicate | Upsert):
        return [(node.input, _with(wanted, frozenset(node.keys)))]
    if isinstance(node, Changelog):
        return [(node.input, None if wanted is None else wanted - {OP})]
    if isinstance(node, Drop | Materialize | Broadcast | Sample | Versions):
        return [(node.inputs[0], wanted)]
    if isinstance(node, LookupAsync):
        kept = None if wanted is None else wanted - {new for _, new in answer_names(node)}
        return [(node.input, _with(kept, frozenset(node.call.on)))]
    return [(upstream, None) for upstream in node.inputs]


def _with(columns: Columns, more: frozenset[str]) -> Columns:
    return None if columns is None else columns | more


def _asks_of_join(node: Join, wanted: Columns) -> list[tuple[Node, Columns]]:
    left, names = columns_of(node.left), right_names(node)
    if wanted is None or left is None or names is None:
        return [(node.left, None), (node.right, frozenset(node.right_keys) if names == [] else None)]
    of_right = frozenset(old for old, new in names if new in wanted)
    return [
        (node.left, wanted.intersection(left) | frozenset(node.left_keys)),
        (node.right, of_right | frozenset(node.right_keys)),
    ]
