"""Functions that make the nodes of joins and lookups from the arguments of `Stream.join`, `join_asof` and `lookup`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sabot.api.arguments import flat, interval_ms, join_keys, keep_ms, whole_ms
from sabot.api.calls import LookupCall, LookupOptions
from sabot.api.expr import Expr, col
from sabot.api.nodes.calls import LookupAsync
from sabot.api.nodes.joins import MADE_KEY, AsofJoin, IntervalJoin, Join, JoinByTime, Lookup, WindowJoin
from sabot.api.nodes.node import Node, check_columns
from sabot.api.nodes.rows import Broadcast, Drop, WithColumns
from sabot.api.stream.outputs import late_sink
from sabot.api.windows import TimeWindow
from sabot.base.checks import Of, OneOf, check
from sabot.connectors.base import Sink
from sabot.connectors.checks import check_sink
from sabot.errors import UserError

DRIFT = "5m"
_HOWS = ("inner", "left", "right", "full", "semi", "anti")
_SUFFIX = Of(str, 'a text, which is added to names: suffix="_right"')

_ByTime = TypeVar("_ByTime", bound=JoinByTime)

Keys = tuple[tuple[str, ...], tuple[str, ...]]
"""The key columns of the left stream, and those of the right stream."""


def keyed_sides(
    where: str, left: Node, right: Node, on: Any, left_on: Any, right_on: Any, how: Any = ""
) -> tuple[Node, Node, Keys, list[str]]:
    """Returns four values: the left step and the right step of a join, with their keys as columns; the names of the
    key columns; and the names of the columns that were added to the left step for keys that are expressions.

    The result of the join must not contain the added columns. Raises UserError for keys that are not valid. `where`:
    the name of the step, for messages.
    """
    pairs = list(zip(*join_keys(where, on, left_on, right_on), strict=True))
    # A right row without a partner has its key only in the column of the left, which is dropped; so the right keeps its own.
    if how in ("right", "full"):
        pairs = [(mine, col(its) if isinstance(mine, Expr) and isinstance(its, str) else its) for mine, its in pairs]
    left, left_keys, made = _with_keys(where, left, [mine for mine, _ in pairs])
    if isinstance(right, Broadcast):
        inner, right_keys, _ = _with_keys(where, right.input, [its for _, its in pairs])
        return left, replace(right, input=inner), (left_keys, right_keys), made
    right, right_keys, _ = _with_keys(where, right, [its for _, its in pairs])
    return left, right, (left_keys, right_keys), made


def _with_keys(where: str, node: Node, keys: Sequence[str | Expr]) -> tuple[Node, tuple[str, ...], list[str]]:
    """Returns three values: a step that has these keys as columns, the names of the key columns, and the names of
    those that were added for keys that are expressions.
    """
    names = tuple(key if isinstance(key, str) else f"{MADE_KEY}{i}" for i, key in enumerate(keys))
    made = tuple((name, key) for name, key in zip(names, keys, strict=True) if isinstance(key, Expr))
    if made:
        check_columns(where, node, sorted(frozenset().union(*(expr.columns for _, expr in made))))
        node = WithColumns(node, made)
    return node, names, [name for name, _ in made]


def without_made(node: Node, made: Sequence[str]) -> Node:
    """Returns a step after `node` that drops the columns that were added for keys that are expressions (`made`)."""
    node.check()
    return Drop(node, tuple(made)) if made else node


def join_node(
    left: Node,
    right: Node,
    keys: Keys,
    how: Any,
    suffix: str,
    *,
    between: Any,
    window: Any,
    keep: Any,
    max_drift: Any,
    late: Any,
) -> Join:
    """Returns the step of `Stream.join`. Raises UserError for arguments that contradict each other."""
    given = (left, right, *keys, check("join: how", how, OneOf(_HOWS)), check("join: suffix", suffix, _SUFFIX))
    if between is not None and window is not None:
        raise UserError("join: between= and window= are two kinds of joins", hint="give one of them")
    node: Join
    if between is not None:
        lower_ms, upper_ms = interval_ms(between, how)
        node = IntervalJoin(*given, lower_ms=lower_ms, upper_ms=upper_ms)
    elif window is not None:
        if not isinstance(window, TimeWindow):
            raise UserError(f"join: two streams cannot share {window!r}", hint='tumbling("1m"), hopping("1h", "1m")')
        if window.time == "processing":
            raise UserError(
                "join: rows of two streams meet in windows of event time only",
                hint="without window=, keep= sets how long rows wait for each other",
            )
        node = WindowJoin(*given, window=window)
    else:
        node = Join(*given, keep_ms=keep_ms(keep))
    if keep is not None and type(node) is not Join:
        raise UserError("join: between= and window= already limit how long rows are kept", hint="leave keep= out")
    if isinstance(node.right, Broadcast):
        _check_broadcast(node)
    _check_keep(node)
    if late is not None:
        if not isinstance(node, JoinByTime):
            raise UserError("join: without between= and window= no row is too late", hint="leave late= out")
        node = _with_late("join", node, late)
    if node.needs_time:
        return replace(node, max_drift_ms=_drift_ms("join", max_drift))
    if max_drift not in (DRIFT, None):
        raise UserError("join: max_drift= is for joins by event time", hint="give between=, window= or keep= too")
    return node


def asof_node(
    left: Node,
    right: Node,
    keys: Keys,
    how: Any,
    suffix: str,
    *,
    strategy: Any,
    tolerance: Any,
    max_drift: Any,
    late: Any,
) -> AsofJoin:
    """Returns the step of `Stream.join_asof`. Raises UserError if an argument is not valid."""
    strategy = check("join_asof: strategy", strategy, OneOf(("backward", "forward", "nearest")))
    if strategy != "backward" and tolerance is None:
        raise UserError(
            f"join_asof: strategy={strategy!r} needs a tolerance",
            hint='tolerance="5s" sets how long a row waits for it',
        )
    how = check("join_asof: how", how, OneOf(("left", "inner")))
    if isinstance(right, Broadcast):
        raise UserError(
            "join_asof: the other stream is broadcast, which is for join, lookup and connect",
            hint="leave .broadcast() out: rows of both streams go by their keys",
        )
    tolerance_ms = None if tolerance is None else whole_ms(tolerance, "tolerance")
    suffix = check("join_asof: suffix", suffix, _SUFFIX)
    node = AsofJoin(left, right, *keys, how, suffix, strategy=strategy, tolerance_ms=tolerance_ms)
    return replace(_with_late("join_asof", node, late), max_drift_ms=_drift_ms("join_asof", max_drift))


def _with_late(where: str, node: _ByTime, late: Any) -> _ByTime:
    """Returns the join with its sinks for late rows. Raises UserError if a sink cannot be written to, or if the right
    stream is changes and has a sink: late changes are still applied.

    `late`: one topic, Sink or list for both streams, or a tuple of two (for the left stream, for the right stream);
    None for no sink. Late rows are appended to a list as dicts.
    """
    pair = isinstance(late, tuple)
    if (pair and len(late) != 2) or (isinstance(late, list) and any(isinstance(each, str | Sink) for each in late)):
        raise UserError(
            f"{where}: late={late!r} is not a pair of sinks",
            hint='late=("late-orders", "late-payments"), None for one of them; a list gets the late rows of both sides',
        )
    given = late if pair else (late, None if node.right.changes else late)
    ours, theirs = (
        late_sink(each, f"{where}: late", 'late="late-orders", or a pair: ("late-orders", "late-payments")')
        for each in given
    )
    if theirs is not None and node.right.changes:
        raise UserError(
            f"{where}: the other stream is changes, and late changes still apply to later rows",
            hint=f"late=({ours!r}, None)",
        )
    return replace(node, late=ours, late_right=theirs)


def lookup_node(left: Node, right: Node, keys: Keys, how: Any, suffix: str) -> Lookup:
    """Returns the step of `Stream.lookup` in a table. Raises UserError if `how` or `suffix` is not valid."""
    how, suffix = check("lookup: how", how, OneOf(("left", "inner"))), check("lookup: suffix", suffix, _SUFFIX)
    return Lookup(left, right, *keys, how, suffix)


def lookup_async_node(
    node: Node, function: Any, on: Any, how: Any, suffix: str, dead_letter: str | Sink | None, options: LookupOptions
) -> Node:
    """Returns the step of `Stream.lookup` with a coroutine function. Raises UserError if an argument is not valid.

    `on`: the keys. It is None if the user gave `left_on=` or `right_on=`; then UserError is raised.
    """
    if on is None:
        raise UserError("lookup: a function needs on=, the columns whose values it gets", hint='on="account"')
    if dead_letter is not None:
        check_sink(dead_letter, "lookup: dead_letter")
    made: list[str] = []
    if not all(isinstance(key, str) for key in flat([on])):
        node, on, made = _with_keys("lookup", node, join_keys("lookup", on, None, None)[0])
    call = LookupCall.of(function, on=on, how=how, **options)
    return without_made(LookupAsync(node, call, check("lookup: suffix", suffix, _SUFFIX), dead_letter), made)


def _drift_ms(step: str, max_drift: Any) -> int | None:
    return None if max_drift is None else whole_ms(max_drift, f"{step}: max_drift")


def _check_keep(node: Join) -> None:
    """Raises UserError if `keep=` is given for a stream whose rows cannot be removed by time. These are a stream of
    changes (its rows are deleted by changes), and a right stream of which all rows are needed: with "semi" or "anti",
    or if it is broadcast.
    """
    for name, side, ms in zip(("this", "the other"), node.inputs, node.keep_ms, strict=True):
        if ms is not None and side.changes:
            hint = "give None for it: a row of changes is kept until it is deleted"
            raise UserError(f"join: keep= of {name} stream, whose rows are changes", hint=hint)
    if node.keep_ms[1] is not None and (node.how in ("semi", "anti") or isinstance(node.right, Broadcast)):
        raise UserError(
            "join: keep= of the other stream, of which all rows are kept with "
            f"{'.broadcast()' if node.how not in ('semi', 'anti') else f'how={node.how!r}'}",
            hint="keep=(…, None); between=(…) limits the distance of a partner",
        )


def _check_broadcast(node: Join) -> None:
    """Raises UserError for a join that is impossible if the right stream is broadcast.

    Rows of the left stream are then not repartitioned. So a subtask does not know the left rows of other subtasks,
    and cannot know whether a right row has no partner.
    """
    by_time = type(node) is not Join
    if by_time or node.how in ("right", "full"):
        raise UserError(
            f"join: a broadcast stream cannot be joined {'by time' if by_time else repr(node.how)}",
            hint='how="inner", "left", "semi" or "anti", without between= and window=; or without .broadcast()',
        )
    if node.left.changes:
        raise UserError(
            "join: a stream of changes cannot be joined with a broadcast one", hint="leave .broadcast() out"
        )
