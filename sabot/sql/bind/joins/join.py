"""The binder of joins: by keys, within bounds of time or windows, with conditions that filter the joined rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot.api import aggregates
from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.joins import IntervalJoin
from sabot.api.nodes.read import endless_read
from sabot.api.nodes.rows import Drop
from sabot.api.stream import Stream
from sabot.api.windows import SessionWindow, TumblingWindow
from sabot.sql.bind.equal_steps import without_repeats
from sabot.sql.bind.joins.columns import copied, joined
from sabot.sql.bind.joins.conditions import JoinConditions, with_nulls
from sabot.sql.bind.joins.window_tops import window_top, window_top_in_time
from sabot.sql.bind.windows import windows_again
from sabot.sql.registered import has_calls
from sabot.sql.scope import (
    Names,
    Relation,
    TypedExpr,
    at,
    may_expire,
    names_of,
    node_of,
    statement_name,
    steps_of,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Binary,
    Column,
    Expression,
)
from sabot.sql.values import Binder, mirrored, walk

_log = logging.getLogger(__name__)

_EVENT_TIMES = (pa.timestamp("ms"), pa.timestamp("ms", tz="UTC"))
_RANKED = ("window_start", "window_end")  # the columns that a ranking in windows adds


def _with_left_time(stream: Stream) -> Stream:
    """Returns the rows of a join within bounds of time with the event time of the left table, for steps behind it."""
    node = node_of(stream)
    join = node.inputs[0] if isinstance(node, Drop) else node
    assert isinstance(join, IntervalJoin)
    join = replace(join, left_time=True)
    return steps_of(stream).then(node.over(join) if isinstance(node, Drop) else join)


class JoinBinder:
    """The binder of one join. `above`: all conditions of WHERE. `ttl`: the times of the hint STATE_TTL, by the alias of a
    table in lower case.
    """

    def __init__(
        self, on: JoinConditions, ttl: Mapping[str, str] | None = None, above: Sequence[Expression] = ()
    ) -> None:
        self._on = on
        self._ttl = ttl or {}
        self._above = above

    def bind(self) -> Relation:
        """Returns the joined rows."""
        self._on.sort()
        if not self._on.keys:
            for node in self._on.residual:  # a wrong name in ON is no key, and its own error says more
                Binder(self._on.context, self._on.both).bind(node)
            raise SqlFault(
                self._on.join.span,
                "a join needs a column of each table that are equal",
                "FROM a JOIN b ON a.id = b.id",
            )
        window = self._window()
        left, right = self._on.left, self._on.right
        if window is not None:
            left, right = self._beside_bounds(left, 1), self._beside_bounds(right, 2)
            plain = self._on.how == "inner" and not self._on.join.using
            if plain and (ranked := self._ranked(left, right, window)) is not None:
                return ranked
        elif (ranked := self._ranked_in_time(left, right)) is not None:
            return ranked
        if self._on.how != "inner" and self._on.residual:
            if (
                window is None
                and (self._on.lower, self._on.upper) == (None, None)
                and any(map(self._is_of_both, self._on.residual))
            ):
                return self._in_parts()
            left, right = self._conditioned(left, right)
        left, right = self._filtered(left, right)
        left, right, outer = copied(self._on, left, right)
        options: dict[str, Any] = {"how": self._on.how}
        if window is not None:
            options["window"] = window
        elif self._on.lower is not None or self._on.upper is not None:
            options["between"] = tuple(None if ms is None else f"{ms}ms" for ms in (self._on.lower, self._on.upper))
        else:
            keep = (self._kept(left), self._kept(right))
            if keep != (None, None):
                options["keep"] = keep
            self._warn_of_state(left, right, keep)
        left_on, right_on = [key.expr for _, key, _ in self._on.keys], [key.expr for _, _, key in self._on.keys]
        with at(self._on.join.span):
            stream = left.stream.join(right.stream, left_on=left_on, right_on=right_on, **options)
            if "between" in options and self._on.upper is not None and self._on.how in ("inner", "left"):
                stream = _with_left_time(stream)
        return joined(self._on, stream, left, right, outer)

    def _is_of_both(self, node: Expression) -> bool:
        return all(self._on.side(node, side) is None for side in (self._on.left, self._on.right))

    def _in_parts(self) -> Relation:
        """Returns the rows of an outer join with conditions on both tables. Rows with equal values in the columns of ON have
        partners together or not at all, so those without are found by these values.

            a LEFT JOIN b ON a.k = b.k AND a.x < b.y
                  ->     a JOIN b ON …  UNION ALL  the rows of a whose k and x no joined row has, with NULL for b
        """
        plain = replace(self._on.join, kind="INNER")
        on = JoinConditions(self._on.context, plain, self._on.left, self._on.right, [])
        inner = JoinBinder(on, self._ttl).bind()
        joined = [each for each in inner.fields if not each.clock]
        sides = [[each for each in side.fields if not each.clock] for side in (self._on.left, self._on.right)]
        names, size = Names(set()), len(sides[0])
        columns = [names.free(each.column) for each in joined]
        asked = {
            id(self._on.both.find(node.parts)[0])
            for each in self._on.own
            for node in walk(each)
            if isinstance(node, Column)
        }
        kept = (self._on.how in ("left", "full"), self._on.how in ("right", "full"))
        with at(self._on.join.span):
            parts = [
                inner.stream.select(**{name: col(each.column) for name, each in zip(columns, joined, strict=True)})
            ]
            for relation, fields, first, keeps in zip(
                (self._on.left, self._on.right), sides, (0, size), kept, strict=True
            ):
                if not keeps:
                    continue
                used = [(each, columns[first + i]) for i, each in enumerate(fields) if id(each) in asked]
                keys = [
                    pair
                    for each, name in used
                    for pair in with_nulls(
                        self._on.join.on or self._on.own[0],
                        TypedExpr(col(each.column), each.type),
                        TypedExpr(col(name), each.type),
                    )
                ]
                partners = parts[0].select(*(name for _, name in used)).deduplicate(*(name for _, name in used))
                alone = relation.stream.join(
                    partners,
                    left_on=[key.expr for _, key, _ in keys],
                    right_on=[key.expr for _, _, key in keys],
                    how="anti",
                )
                own = {columns[first + i]: col(each.column) for i, each in enumerate(fields)}
                nothing = {name: lit(None, each.type) for name, each in zip(columns, joined, strict=True)}
                parts.append(alone.select(**(nothing | own)))
            stream = parts[0].union(*parts[1:])
        return Relation(
            stream,
            tuple(
                replace(
                    each, column=name, shift_ms=None, window=None, never_null=each.never_null and not kept[i < size]
                )
                for i, (each, name) in enumerate(zip(joined, columns, strict=True))
            ),
        )

    def _ranked(self, left: Relation, right: Relation, window: TumblingWindow) -> Relation | None:
        """Returns the joined rows as the first rows of each window, if the right table has the greatest value of each
        window of the left one (`window_tops`); None for any other join.
        """
        edges = {each.column for each in left.fields if each.window is not None}
        keys = {str(its.expr.column): str(mine.expr.column) for _, mine, its in self._on.keys}
        others = {its: mine for its, mine in keys.items() if mine not in edges}
        compared = [self._compared(node, left, right) for node in self._on.residual]
        compared += [(mine, "=", its) for its, mine in others.items()]
        condition = compared[0] if len(compared) == 1 else None
        if condition is None:
            return None
        value = next((each for each in left.fields if each.column == condition[0]), None)
        if value is None or not _is_ranked(value.type):
            return None
        bounds = {its: mine for its, mine in keys.items() if its not in others}
        mine, its = without_repeats([node_of(left.stream), node_of(right.stream)], statement_name())
        found = window_top(mine, its, bounds, window, condition)
        if found is None or not {each.column for each in right.fields} <= found.columns.keys():
            return None
        with at(self._on.join.span):
            stream = left.stream
            stream = stream.filter(col(found.by).is_not_null()) if found.has_nulls else stream
            keyed = stream.window(window)
            first = keyed.top_n(1, by=[found.by], descending=[found.descending], ties="rank")
        fields = [replace(each, shift_ms=None) for each in left.fields]
        fields += [replace(each, column=found.columns[each.column], shift_ms=None) for each in right.fields]
        return Relation(first, tuple(fields))

    def _ranked_in_time(self, left: Relation, right: Relation) -> Relation | None:
        """Returns the joined rows as the first rows of each window, and those at the very start of a window that equal
        the first rows of the window before, if the bounds of time say that (`window_tops`); None for any other join.
        """
        if self._on.how != "inner" or self._on.residual or len(self._on.keys) != 1 or self._on.lower not in (-1, 0):
            return None
        ((_, one, other),) = self._on.keys
        columns = [each.column for each in left.fields]
        value = next((each for each in left.fields if each.column == one.expr.column), None)
        time = next((each for each in left.fields if each.shift_ms == 0 and each.type in _EVENT_TIMES), None)
        names = Names(set(node_of(left.stream).column_names or ()))
        if value is None or other.expr.column is None or time is None or left.stream.changes or right.stream.changes:
            return None
        if not _is_ranked(value.type) or len(names.taken) > len(columns) or names.taken & {*_RANKED}:
            return None
        mine, its = without_repeats([node_of(left.stream), node_of(right.stream)], statement_name())
        top = window_top_in_time(mine, its, (value.column, other.expr.column), [each.column for each in right.fields])
        if top is None or top[1] != TumblingWindow(top[1].size_ms) or self._on.upper != top[1].size_ms - 1:
            return None
        found, window = top
        passed = {each.column: col(found.columns[each.column]).cast(each.type) for each in right.fields}
        with at(self._on.join.span):
            rows = left.stream.filter(col(found.by).is_not_null()) if found.has_nulls else left.stream
            ranked = rows.window(window)
            first = ranked.top_n(1, by=[found.by], descending=[found.descending], ties="rank")
            stream = first.select(*columns, **passed)
            if self._on.lower == -1:
                best = names.free("best")
                aggregate = (aggregates.max if found.descending else aggregates.min)(found.by)
                before = first.select(found.by).window(window).aggregate(**{best: aggregate})
                starts = rows.filter(col(time.column).cast("int64") % window.size_ms == 0)
                both = starts.join(before, left_on=found.by, right_on=best, between=("-1ms", "-1ms"))
                stream = stream.union(both.select(*columns, **passed))
        fields = [replace(each, shift_ms=None) for each in (*left.fields, *right.fields)]
        return Relation(stream, tuple(fields))

    def _compared(self, node: Expression, left: Relation, right: Relation) -> tuple[str, str, str] | None:
        """Returns a condition as a column of the left table, >= or <=, and a column of the right one."""
        if not isinstance(node, Binary) or node.operator not in (">=", "<="):
            return None
        operator = node.operator
        one, other = self._on.side(node.left, self._on.left), self._on.side(node.right, self._on.right)
        if one is None or other is None:
            one, other = self._on.side(node.right, self._on.left), self._on.side(node.left, self._on.right)
            operator = mirrored(operator)
        if one is None or other is None or one.expr.column is None or other.expr.column is None:
            return None
        names = {each.column for each in left.fields}, {each.column for each in right.fields}
        is_here = one.expr.column in names[0] and other.expr.column in names[1]
        return (one.expr.column, operator, other.expr.column) if is_here else None

    def _filtered(self, left: Relation, right: Relation) -> tuple[Relation, Relation]:
        """Filters the rows of each table before they are joined, by the conditions that are about this table alone.

        The conditions stay behind the join too, for rows that the join of an earlier script has kept without them. A
        condition that may fail for a row is left there, because a row without a partner must not fail.
        """
        sides = []
        own = self._on.residual if self._on.how == "inner" else []
        for side, mine, keeping in (
            (left, self._on.left, ("inner", "left")),
            (right, self._on.right, ("inner", "right")),
        ):
            stream = side.stream
            for node in (*self._above, *own) if self._on.how in keeping and not stream.changes else ():
                if self._on.side(node, mine) is None or has_calls(self._on.context, node):
                    continue
                predicate = Binder(self._on.context, side).predicate(node)
                if _cannot_fail(predicate):
                    with at(node.span):
                        stream = stream.filter(predicate)
            sides.append(replace(side, stream=stream))
        return sides[0], sides[1]

    def _beside_bounds(self, side: Relation, place: int) -> Relation:
        """Renames columns that have the names of the bounds which a join in windows adds. `place`: 1 for the left
        table, 2 for the right one.
        """
        names = names_of(self._on.left)
        names.taken |= names_of(self._on.right).taken
        side, new = beside_bounds(side, names)
        for i, (node, left, right) in enumerate(self._on.keys):
            key = left if place == 1 else right
            column = new.get(key.expr.column or "")
            if column is not None:
                made = TypedExpr(col(column), key.type)
                self._on.keys[i] = (node, made, right) if place == 1 else (node, left, made)
        return side

    def _kept(self, side: Relation) -> str | None:
        """Returns the time for which STATE_TTL, or SET, keeps the rows of a table, or None for ever."""
        tables = dict.fromkeys(each.qualifier for each in side.fields if each.qualifier)
        hinted = next((name for name in tables if name.lower() in self._ttl), None)
        if hinted is None:
            return self._on.context.state_ttl() if may_expire(side.stream) else None
        if not side.stream.changes:
            return self._ttl[hinted.lower()]
        if len(tables) > 1:  # the hint is that of the join which made these rows
            return None
        raise SqlFault(
            self._on.join.span,
            f"STATE_TTL bounds rows that are only added, and those of {hinted} are updated: each is kept until it is deleted",
            f"leave {hinted} out of STATE_TTL, or give the hint to the query that updates the rows",
        )

    def _warn_of_state(self, left: Relation, right: Relation, keep: tuple[str | None, str | None]) -> None:
        for side, kept in ((left, keep[0]), (right, keep[1])):
            node = node_of(side.stream)
            if kept is None and not side.stream.changes and endless_read(node) is not None:
                name = next((each.qualifier for each in side.fields if each.qualifier), "")
                _log.warning(
                    "the join keeps all rows of %s for ever: bound the distance of their times (BETWEEN), or give the "
                    "hint /*+ STATE_TTL('%s' = '1d') */",
                    name or "a table without end",
                    name or "alias",
                )

    def _conditioned(self, left: Relation, right: Relation) -> tuple[Relation, Relation]:
        """Applies the conditions of an outer join's ON that are about one table alone.

        A row that does not meet them has no partner. It is dropped if the join keeps no rows of its table without a
        partner; otherwise its key becomes null, which equals nothing.
        """
        kept = {"left": (True, False), "right": (False, True), "full": (True, True)}[self._on.how]
        sides = [left, right]
        for node in self._on.residual:
            found = [
                i for i, side in enumerate((self._on.left, self._on.right)) if self._on.side(node, side) is not None
            ]
            if not found:
                raise SqlFault(
                    node.span,
                    f"{self._on.join.kind} JOIN by time takes equal columns, bounds of time, and conditions on one of the tables",
                    "JOIN … ON a.id = b.id, and the condition in WHERE: rows without a partner are left out",
                )
            i = found[0]
            predicate = Binder(self._on.context, sides[i]).predicate(node)
            with at(node.span):
                if not kept[i]:
                    sides[i] = replace(sides[i], stream=sides[i].stream.filter(predicate))
                    continue
            tree, *keys = self._on.keys[0]
            key = keys[i]
            keys[i] = TypedExpr(when(predicate).then(key.expr).otherwise(lit(None)), key.type)
            self._on.keys[0] = (tree, keys[0], keys[1])
        return sides[0], sides[1]

    def _window(self) -> Any:
        """Returns the window of a join of two windows' results, or None."""
        if self._on.lower is not None or self._on.upper is not None:
            return None
        return common_window(
            self._on.left, self._on.right, [(mine, its) for _, mine, its in self._on.keys], self._on.join.span
        )


def common_window(left: Relation, right: Relation, keys: Sequence[tuple[TypedExpr, TypedExpr]], span: Span) -> Any:
    """Returns the window whose start and end are among the equal columns of two tables, or None."""
    edges: dict[str, Any] = {}
    for mine, its in keys:
        one = next((each for each in left.fields if each.column == mine.expr.column), None)
        other = next((each for each in right.fields if each.column == its.expr.column), None)
        if one is None or other is None or one.window is None or one.window != other.window:
            continue
        edges[one.window.edge] = one.window.window
    if set(edges) != {"start", "end"}:
        return None
    return None if isinstance(edges["end"], SessionWindow) else windows_again(edges["end"], span)


def beside_bounds(side: Relation, names: Names) -> tuple[Relation, dict[str, str]]:
    """Renames columns that have the names of the bounds which a join in windows adds. Returns the new names too."""
    known = node_of(side.stream).column_names or ()
    new = {name: names.free(f"row_{name}") for name in ("window_start", "window_end") if name in known}
    if not new:
        return side, new
    fields = tuple(replace(each, column=new.get(each.column, each.column)) for each in side.fields)
    return replace(side, stream=side.stream.rename(new), fields=fields), new


def _is_ranked(type: pa.DataType) -> bool:
    """Returns True for values that equal the greatest one if they are first by it. NaN is not so."""
    return bool(pa.types.is_integer(type) or pa.types.is_temporal(type))


_CANNOT_FAIL = frozenset(
    [
        *("col", "lit", "alias", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^", "not", "is_null", "is_not_null"),
        *("is_in", "between", "fill_null", "str.lower", "str.upper", "str.startswith", "str.endswith", "str.contains"),
    ]
)
"""The kinds of expressions that have a value, or NULL, whatever the values of their inputs are."""


def _cannot_fail(expr: Expr) -> bool:
    """Returns True if an expression has a value, or NULL, for each row. A cast, a sum or a division may fail."""
    if expr.kind == "%" and expr.inputs[1].kind == "lit":
        return bool(expr.inputs[1].option("value")) and _cannot_fail(expr.inputs[0])
    return expr.kind in _CANNOT_FAIL and all(map(_cannot_fail, expr.inputs))
