"""Finds joins of windows' rows with the greatest value of each window, which are the first rows of each window.

    FROM counts JOIN (SELECT MAX(n) AS m, ws, we FROM counts GROUP BY ws, we) tops
        ON counts.ws = tops.ws AND counts.we = tops.we AND counts.n >= tops.m

Both sides read the same step `counts`. So for each window that has a row there is one m, the greatest n that is not
NULL, and the join gives the rows with n >= m, which are those with n = m: the rows of rank 1 by n, ties included. A
window in which all n are NULL gives no row. Floats are left out, since NaN equals nothing and is the greatest of an
order. The ranking keeps no row of the others, and compares each row once.

The bounds of the windows may be said by event time:

    FROM bids JOIN (SELECT MAX(price) AS m, window_end AS we FROM bids in windows of 10 s GROUP BY window) tops
        ON bids.price = tops.m WHERE bids.ts BETWEEN tops.we - INTERVAL '10' SECOND AND tops.we

A row is in its own window, whose end it is joined with, and if it came at the very start of its window, also with the
end of the window before. So the rows are those of rank 1 of each window, and those at the start of a window whose price
is m of the window before. The second are joined as they were, but they are few; and m of a window is the price of its
rows of rank 1.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sabot.api.nodes.node import Node
from sabot.api.nodes.rows import Rename, Select
from sabot.api.nodes.windows import AggregateWindow
from sabot.api.windows import TumblingWindow

_KINDS = {">=": "max", "<=": "min"}


class WindowTop(NamedTuple):
    """The ranking that a join is. `columns`: for each column of the right table, the equal column of the left one."""

    by: str
    descending: bool
    columns: Mapping[str, str]
    has_nulls: bool


def window_top(
    left: Node, right: Node, keys: Mapping[str, str], window: TumblingWindow, compared: tuple[str, str, str]
) -> WindowTop | None:
    """Returns the ranking that an inner join of windows is, or None if it is another join.

    `keys`: the bounds of the windows, as columns of the left by those of the right. `window`: the window of the join.
    `compared`: the other condition: a column of the left, the operator, and a column of the right.
    """
    value, operator, greatest = compared
    made, columns = _source_of(right, [*keys, greatest])
    if (
        not isinstance(made, AggregateWindow)
        or made.window != window
        or set(made.keys) != {columns[key] for key in keys}
    ):
        return None
    aggregate = dict(made.aggregates).get(columns[greatest])
    if aggregate is None or aggregate.predicate is not None or aggregate.argument is None:
        return None
    wanted = {_KINDS[operator]} if operator in _KINDS else {"max", "min"}
    argument = aggregate.argument.column
    if aggregate.kind not in wanted or argument is None:
        return None
    base, below = _source_of(made.input, [*made.keys, argument])
    rows, own = _source_of(left, [*keys.values(), value])
    if rows is not base or own[value] != below[argument]:
        return None
    if any(own[mine] != below[columns[its]] for its, mine in keys.items()):
        return None
    counted = dict(base.aggregates).get(own[value]) if isinstance(base, AggregateWindow) else None
    has_nulls = counted is None or counted.kind != "count"
    return WindowTop(value, aggregate.kind == "max", {**keys, greatest: value}, has_nulls)


def window_top_in_time(
    left: Node, right: Node, compared: tuple[str, str], columns: Sequence[str]
) -> tuple[WindowTop, TumblingWindow] | None:
    """Returns the ranking and the windows of an inner join of rows with the greatest value of their windows, or None if
    the right table is another one.

    `compared`: the column of the left and of the right that are equal. `columns`: those of the right; the ranking has
    each of them as the value, as window_start or as window_end.
    """
    made, names = _source_of(right, list(columns))
    if not isinstance(made, AggregateWindow) or not isinstance(made.window, TumblingWindow):
        return None
    mine, its = compared
    found = window_top(left, right, {}, made.window, (mine, "=", its))
    if found is None:
        return None
    bounds = {name: names[name] for name in columns if names[name] in ("window_start", "window_end")}
    passed = {**bounds, **found.columns}
    if not passed.keys() >= set(columns):
        return None
    return WindowTop(found.by, found.descending, passed, found.has_nulls), made.window


def _source_of(node: Node, names: list[str]) -> tuple[Node, dict[str, str]]:
    """Returns the step that makes these columns, behind steps that only choose and rename columns, and their names there."""
    found = {name: name for name in names}
    while isinstance(node, Select | Rename):
        before: dict[str, str | None]
        if isinstance(node, Select):
            before = {name: expr.column for name, expr in node.columns}
        else:
            before = {name: name for name in node.input.column_names or ()}
            before |= {new: old for old, new in node.names}
        passed = {name: before.get(column) for name, column in found.items()}
        if None in passed.values():
            break
        found = {name: column for name, column in passed.items() if column is not None}
        node = node.input
    return node, found
