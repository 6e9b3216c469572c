"""What is known of a node's rows before anything runs: their columns, whether they are changes, and of which unique key.

With it a misspelt column is an error where it is written, not where it would run.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar
from weakref import WeakKeyDictionary

from sabot.api.expr import Expr, col
from sabot.api.nodes import (
    AggregateWindow,
    AsofJoin,
    Broadcast,
    Changelog,
    Connect,
    Deduplicate,
    Drop,
    EndVersions,
    Filter,
    FlatMap,
    GroupAggregate,
    IntervalJoin,
    Join,
    Lookup,
    LookupAsync,
    MapAsync,
    MapBatches,
    Match,
    Materialize,
    Node,
    Over,
    Process,
    Read,
    Reduce,
    Rename,
    RunningAggregate,
    Select,
    Side,
    TopN,
    Union,
    Upsert,
    Versions,
    WindowJoin,
    WindowTopN,
    WithColumns,
    Write,
)
from sabot.api.patterns import MATCH_END, MATCH_START
from sabot.api.windows import WINDOW_END, WINDOW_START, CountWindow
from sabot.codecs.marks import OP_COLUMN, TIME_COLUMN
from sabot.connectors.base import Source
from sabot.errors import SabotError, UserError

__all__ = [
    "OP",
    "WINDOW_COLUMNS",
    "answer_names",
    "check_columns",
    "check_event_time",
    "check_node",
    "columns_of",
    "event_times",
    "is_changes",
    "is_upserted",
    "named_columns",
    "right_names",
    "step_name",
    "unique_key",
]

T = TypeVar("T")


def _remembered(find: Callable[[Node], T]) -> Callable[[Node], T]:
    """Each node is asked once, however many steps and streams stand on it."""
    known: WeakKeyDictionary[Node, T] = WeakKeyDictionary()

    def ask(node: Node) -> T:
        if node not in known:
            known[node] = find(node)
        return known[node]

    ask.__doc__ = find.__doc__
    return ask


OP = "op"  # the column that a changelog has for people
_OURS = {OP_COLUMN, TIME_COLUMN}
WINDOW_COLUMNS = (WINDOW_START, WINDOW_END)


@_remembered
def columns_of(node: Node) -> list[str] | None:
    """The names of a node's columns as the program has them; None where a function, or records to come, decide."""
    match node:
        case Read():
            return _columns_read(node)
        case MapBatches() | FlatMap():
            return None if node.schema is None else list(node.schema.names)
        case MapAsync():
            return list(node.call.schema.names)
        case Match():
            return [*node.keys, MATCH_START, MATCH_END, *(name for name, _ in node.measures)]
        case Process() | Connect():
            return list(node.spec.schema.names)
        case Side():
            return list(node.input.spec.sides[node.name].names)
        case Select():
            return [name for name, _ in node.columns]
        case RunningAggregate() | GroupAggregate():
            return [*node.keys, *(name for name, _ in node.aggregates)]
        case AggregateWindow():
            if isinstance(node.window, CountWindow):
                return None  # with event time it has the bounds of its windows too
            return [*node.keys, *WINDOW_COLUMNS, *(name for name, _ in node.aggregates)]
        case Join():
            return _columns_of_join(node)
    known = columns_of(node.inputs[0]) if node.inputs else None
    if known is None:
        return None
    match node:
        case WithColumns():
            return known + [name for name, _ in node.columns if name not in known]
        case Drop():
            return [name for name in known if name not in node.names]
        case Rename():
            return [dict(node.names).get(name, name) for name in known]
        case Changelog():
            return [OP, *known]
        case TopN():
            return known + ([] if node.rank is None else [node.rank])
        case WindowTopN():
            return [*known, *WINDOW_COLUMNS, *([] if node.rank is None else [node.rank])]
        case Over():
            return [*known, *(name for name, _ in node.columns)]
        case LookupAsync():
            return [*known, *(new for _, new in answer_names(node))]
        case _:
            return known


def _columns_read(node: Read) -> list[str] | None:
    """As given, or as the data of a Source tells."""
    schema = node.schema
    if schema is None and isinstance(node.source, Source):
        try:
            schema = node.source.infer_schema()
        except (SabotError, OSError):
            return None  # the start will say what is wrong with it
    return None if schema is None else list(schema.names)


def _columns_of_join(node: Join) -> list[str] | None:
    left, names = columns_of(node.left), right_names(node)
    if left is None or names is None:
        return None
    return [*left, *(WINDOW_COLUMNS if isinstance(node, WindowJoin) else ()), *(new for _, new in names)]


def right_names(node: Join) -> list[tuple[str, str]] | None:
    """(column of the right, its name in the result), without its keys; None where the columns are not known."""
    if node.how in ("semi", "anti"):
        return []
    left, right = columns_of(node.left), columns_of(node.right)
    if left is None or right is None:
        return None
    taken = {*left, *(WINDOW_COLUMNS if isinstance(node, WindowJoin) else ())}
    names = [(name, name + node.suffix if name in taken else name) for name in right if name not in node.right_keys]
    for _, new in names:
        if new in taken:
            raise UserError(
                f"join: two columns of the result would be called {new!r}",
                hint='choose another suffix="…", or rename one',
            )
        taken.add(new)
    return names


def answer_names(node: LookupAsync) -> list[tuple[str, str]]:
    """(column of the answers, its name in the result)."""
    known = columns_of(node.input) or []
    return [(name, name + node.suffix if name in known else name) for name in node.call.call.schema.names]


@_remembered
def is_changes(node: Node) -> bool:
    """Whether rows of the node may take back what was said before."""
    match node:
        case GroupAggregate() | Upsert() | TopN() | Versions() | EndVersions():
            return True
        case Changelog() | Materialize():
            return False
        case AsofJoin() | Lookup() | IntervalJoin() | WindowJoin():
            return False
        case Join():
            return node.how not in ("inner", "semi") or is_changes(node.left) or is_changes(node.right)
        case Filter() | Select() | WithColumns() | Drop() | Rename() | Union() | Deduplicate() | Broadcast():
            return any(map(is_changes, node.inputs))
        case _:
            return False


@_remembered
def unique_key(node: Node) -> tuple[str, ...] | None:
    """Columns of which a table made of the changes has each value once; None: not known, or no changes."""
    if not is_changes(node):
        return None
    match node:
        case GroupAggregate() | Upsert():
            return node.keys
        case TopN():
            return None if node.rank is None or node.ties != "row_number" else (*node.keys, node.rank)
        case Filter() | Broadcast():
            return unique_key(node.inputs[0])
        case Deduplicate():
            return node.keys
    key = unique_key(node.inputs[0]) if node.inputs else None
    if key is None:
        return None
    match node:
        case Select():
            kept = {expr.name: name for name, expr in node.columns if expr.same(col(expr.name))}
            return tuple(kept[name] for name in key) if set(key) <= kept.keys() else None
        case WithColumns():
            return None if set(key) & {name for name, _ in node.columns} else key
        case Drop():
            return None if set(key) & set(node.names) else key
        case Rename():
            return tuple(dict(node.names).get(name, name) for name in key)
        case _:
            return None


@_remembered
def event_times(node: Node) -> frozenset[str]:
    """The names that stand for the event time of a node's rows: of the column that it was read from, through all steps.

    Event time goes with the row, and its column keeps that meaning under another name. Where the column is gone its name still stands for
    it, so that no other comes under it unseen; a function over batches that gives the column again gives new event times. Behind steps
    that make rows of several, event time is no column's: none. Several: behind a union.
    """
    match node:
        case Read():
            return frozenset() if node.time is None else frozenset([node.time])
        case Union():
            return frozenset().union(*map(event_times, node.inputs))
        case _ if _has_other_times(node):
            return frozenset()
    return frozenset(_behind(node, time) or time for time in event_times(node.inputs[0]))


def _has_other_times(node: Node) -> bool:
    """Its rows are made of several, or by the user's functions with their own times."""
    if isinstance(node, Join):
        return not isinstance(node, AsofJoin | Lookup)
    return isinstance(
        node, AggregateWindow | GroupAggregate | Materialize | Match | Process | Connect | Side | WindowTopN
    )


def check_event_time(node: Node) -> None:
    """Raises UserError where a step puts other values under the name of event time. Only of rows whose event time something uses."""
    if isinstance(node, Read | Union) or _has_other_times(node):
        return
    for time in sorted(event_times(node.inputs[0])):
        if _behind(node, time) is None:
            raise UserError(
                f"{step_name(node)}: {time!r} is the stream's event time, and windows would still go by what it was",
                hint="give the new column another name; or read it again in map_batches, which takes event time from its output",
            )


def _behind(node: Node, time: str) -> str | None:
    """The name of event time behind a step whose first input calls it `time`; None: the step gives that name to something else."""
    made = _made(node)
    if time in made:
        return time if made[time] == time else None
    if isinstance(node, WithColumns):
        return time
    return next((name for name, column in made.items() if column == time), time)


def _made(node: Node) -> dict[str, str | None]:
    """The columns that a step gives names to -> the column that each is no more than; None: another value."""
    match node:
        case Select() | WithColumns():
            return {name: expr.column for name, expr in node.columns}
        case Rename():
            return {new: old for old, new in node.names}
        case Over():
            return dict.fromkeys(name for name, _ in node.columns)
        case RunningAggregate():
            return dict.fromkeys(name for name, _ in node.aggregates)
        case TopN():
            return {} if node.rank is None else {node.rank: None}
        case Changelog():
            return {OP: None}
        case Join():
            return dict.fromkeys(new for _, new in right_names(node) or ())
        case LookupAsync():
            return dict.fromkeys(new for _, new in answer_names(node))
        case _:
            return {}


def is_upserted(node: Node) -> bool:
    """Whether the program says by which key its changes are to be kept: `.upsert(…)` stands before, and only steps without state after."""
    if isinstance(node, Upsert):
        return True
    if isinstance(node, Filter | Select | WithColumns | Drop | Rename):
        return is_upserted(node.input)
    return False


# -- checks -----------------------------------------------------------------------------------------------------------

_ANYTHING = (
    EndVersions,
    Versions,
    Filter,
    Select,
    WithColumns,
    Drop,
    Rename,
    Union,
    Deduplicate,
    Broadcast,
    GroupAggregate,
    Upsert,
    TopN,
)
_TAKE_CHANGES = (*_ANYTHING, Changelog, Materialize, Write)
_WORDS = {
    "RunningAggregate": "aggregate",
    "AggregateWindow": "window",
    "WindowTopN": "window",
    "GroupAggregate": "group_by",
    "IntervalJoin": "join(…, between=)",
    "WindowJoin": "join(…, window=)",
    "AsofJoin": "join_asof",
    "TopN": "top_n",
    "Write": "to",
    "WithColumns": "with_columns",
    "FlatMap": "flat_map",
    "MapBatches": "map_batches",
    "Match": "pattern",
    "MapAsync": "map_async",
    "LookupAsync": "lookup",
    "Connect": "process",
}


def step_name(node: Node) -> str:
    """The step as users write it."""
    name = type(node).__name__
    return _WORDS.get(name, name.lower())


def check_node(node: Node) -> None:
    """Raises UserError where a step names a column that is not there, or cannot take the changes that come."""
    for upstream, named in zip(node.inputs, named_columns(node), strict=True):
        check_columns(step_name(node), upstream, sorted(named))
    if isinstance(node, Join):
        right_names(node)
    if not isinstance(node, Read | Write):
        for name in _OURS.intersection(columns_of(node) or ()):
            raise UserError(
                f"{step_name(node)}: no column can be called {name!r}", hint="a column of ours stands there"
            )
    _check_changes(node)
    if isinstance(node, TopN | WindowTopN) and node.rank in (columns_of(node.input) or ()):
        raise UserError(f"top_n: rank={node.rank!r} is the name of another column", hint="choose another name")
    if isinstance(node, AsofJoin) and is_changes(node.right):
        _check_versions(node)


def check_columns(where: str, node: Node, names: Iterable[str]) -> None:
    """Raises UserError for the first of these that is no column of the node's rows, as far as they are known."""
    known = columns_of(node)
    if known is None:
        return
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"{where}: there is no column {name!r}", hint=f"{hint}the columns are {', '.join(known)}")


def _check_changes(node: Node) -> None:
    if isinstance(node, _TAKE_CHANGES) and not isinstance(node, Deduplicate):
        return
    if isinstance(node, Deduplicate):
        if is_changes(node.input) and node.within_ms is not None:
            raise _refused(node, "deduplicate(within=)")
        return
    if type(node) is Join:
        return
    inputs = node.inputs[:1] if isinstance(node, AsofJoin | Lookup) else node.inputs
    if any(map(is_changes, inputs)):
        raise _refused(node, step_name(node))


def _refused(node: Node, what: str) -> UserError:
    more = (
        'group_by("key").aggregate(…) takes changes; ' if isinstance(node, RunningAggregate | AggregateWindow) else ""
    )
    return UserError(
        f"{what}: the rows that come in are changes (updates and deletes of earlier ones), which it cannot take",
        hint=f"{more}.materialize() waits for the final rows, .changelog() gives each change as a row of its own",
    )


def _check_versions(node: AsofJoin) -> None:
    """Changes hold from event time to event time only where rows of an append stream replace each other, by the key of the join."""
    right = node.right
    while isinstance(right, Select | WithColumns | Drop | Rename | Filter):
        right = right.input
    if not isinstance(right, Upsert) or is_changes(right.input):
        raise UserError(
            "join_asof: the other stream changes as rows come, not by event time", hint=".lookup(…) joins what is there"
        )
    key = unique_key(node.right) or right.keys
    if set(key) != set(node.right_keys):
        raise UserError(
            f"join_asof: the other stream has one row for each {', '.join(key)}, not for each {', '.join(node.right_keys)}",
            hint=f"join on {', '.join(key)}, or .upsert({', '.join(map(repr, node.right_keys))})",
        )


def named_columns(node: Node) -> list[frozenset[str]]:
    """For each input of a step, the columns of it that the step names."""
    if isinstance(node, Join | Connect):
        return [frozenset(node.left_keys), frozenset(node.right_keys)]
    return [_named(node)] * len(node.inputs)


def _named(node: Node) -> frozenset[str]:
    match node:
        case Filter() | EndVersions():
            return node.predicate.columns
        case Select() | WithColumns():
            return _columns(expr for _, expr in node.columns)
        case Drop():
            return frozenset(node.names)
        case Rename():
            return frozenset(old for old, _ in node.names)
        case AggregateWindow() | RunningAggregate() | GroupAggregate():
            return frozenset(node.keys).union(*(aggregate.columns for _, aggregate in node.aggregates))
        case TopN() | WindowTopN():
            return frozenset([*node.keys, *(name for name, _ in node.by)])
        case Deduplicate() | Reduce() | Upsert():
            return frozenset(node.keys)
        case Process():
            return frozenset(node.keys)
        case Match():
            return frozenset(node.keys) | node.pattern.columns | _columns(expr for _, expr in node.measures)
        case LookupAsync():
            return frozenset(node.call.on)
        case Over():
            return frozenset(node.keys).union(*(each.columns for _, each in node.columns))
        case Write():
            return frozenset() if node.key is None else frozenset([node.key])
        case _:
            return frozenset()


def _columns(exprs: Iterable[Expr]) -> frozenset[str]:
    return frozenset().union(*(expr.columns for expr in exprs))
