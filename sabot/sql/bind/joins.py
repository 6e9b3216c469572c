"""The binder of joins: keys, bounds of time, and conditions that filter the joined rows."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot.api import aggregates
from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.api.nodes.changes import GroupAggregate, Upsert
from sabot.api.nodes.joins import IntervalJoin, TwoInputs, WindowJoin
from sabot.api.nodes.keyed import Over, TopN
from sabot.api.nodes.node import time_column
from sabot.api.nodes.node import walk as steps_before
from sabot.api.nodes.read import endless_read
from sabot.api.nodes.rows import Drop, RowStep
from sabot.api.nodes.windows import AggregateWindow
from sabot.api.stream import Stream
from sabot.api.windows import SessionWindow, TumblingWindow
from sabot.sql.bind.equal_steps import without_repeats
from sabot.sql.bind.groups import AT_THE_END
from sabot.sql.bind.lookups import AskedTable, asked_table, reads_database
from sabot.sql.bind.window_tops import window_top, window_top_in_time
from sabot.sql.bind.windows import windows_again
from sabot.sql.functions import cast
from sabot.sql.registered import has_calls, with_calls
from sabot.sql.scope import (
    Names,
    Relation,
    StarName,
    TableColumn,
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
    Between,
    Binary,
    Column,
    Expression,
    Interval,
    JoinSource,
    Name,
)
from sabot.sql.types import common_type, interval_ms, sql_type
from sabot.sql.values import Binder, Context, conjuncts, mirrored, walk
from sabot.sql.zones import is_local

_log = logging.getLogger(__name__)

_HOW = {"INNER": "inner", "COMMA": "inner", "CROSS": "inner", "LEFT": "left", "RIGHT": "right", "FULL": "full"}
_COMPARISONS = ("<", "<=", ">", ">=")
_EVENT_TIMES = (pa.timestamp("ms"), pa.timestamp("ms", tz="UTC"))
_FROM_LAST_MS = {"time": 0, "end": 1}  # of a window's bounds, in ms
_RANKED = ("window_start", "window_end")  # the columns that a ranking in windows adds


def _versions(stream: Stream) -> Stream | None:
    """Returns rows with one row for each key as a table of versions, each valid from its event time on, or None if the rows
    change in another way.

        ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) = 1, where ts is the event time     ->     upsert(k)
        SELECT k, SUM(x) AS x … GROUP BY k     ->     SUM(x) OVER (PARTITION BY k ORDER BY ts) of each row, then upsert(k)

    The changes of the GROUP BY itself would not do: rows of one batch are one change, so versions between them are lost.
    """
    above: list[Any] = []
    node = node_of(stream)
    while isinstance(node, RowStep):
        above.append(node)
        node = node.input
    if isinstance(node, Upsert):
        return stream
    if isinstance(node, GroupAggregate) and node.keys and node.ttl_ms is None and not node.input.changes:
        table = _running(stream, node)
        return None if table is None else _with_steps(table, above)
    last = isinstance(node, TopN) and node.n == 1 and node.ties == "row_number" and not node.input.changes
    if not last or not isinstance(node, TopN) or node.by != ((time_column(node.input), True),):
        return None
    table = steps_of(stream).then(Upsert(node.input, node.keys))
    if node.rank is not None:
        table = table.with_columns(**{node.rank: lit(1, "int64")})
    return _with_steps(table, above)


def _ends_in_lists(stream: Stream) -> bool:
    """Returns True for a GROUP BY of lists over rows that end."""
    node: Any = node_of(stream)
    while isinstance(node, RowStep):
        node = node.input
    return isinstance(node, AggregateWindow) and node.window == AT_THE_END


def _with_versions(stream: Stream) -> str:
    """Returns what has versions in place of a table that has none, for a hint."""
    node: Any = node_of(stream)
    while isinstance(node, RowStep):
        node = node.input
    if isinstance(node, TwoInputs):
        return "join its tables one after the other, each FOR SYSTEM_TIME AS OF the same time"
    if isinstance(node, GroupAggregate) and node.keys:
        return "group rows that are not updated, without STATE_TTL"
    return (
        "the last row of each key: SELECT … FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY ts DESC) AS n "
        "FROM t) WHERE n = 1"
    )


def _running(stream: Stream, node: GroupAggregate) -> Stream | None:
    """Returns the aggregates of each key after each row as a table of versions, or None if the rows have no event time."""
    if time_column(node.input) is None:
        return None
    names = Names(set(node.input.column_names or ()))
    columns = {name: names.free(name) for name, _ in node.aggregates}
    over = Over(node.input, node.keys, tuple((columns[name], each) for name, each in node.aggregates))
    over.check()
    rows = steps_of(stream).then(over)
    _ = rows.schema  # raises UserError for an aggregate that has no value after each row
    rows = rows.select(*node.keys, **{name: col(column) for name, column in columns.items()})
    return steps_of(rows).then(Upsert(node_of(rows), node.keys))


def _with_steps(table: Stream, above: Sequence[Any]) -> Stream:
    """Returns the table with the steps that were above it, the lowest one last."""
    for each in reversed(above):
        table = steps_of(table).then(replace(each, input=node_of(table)))
    return table


def _with_left_time(stream: Stream) -> Stream:
    """Returns the rows of a join within bounds of time with the event time of the left table, for steps behind it."""
    node = node_of(stream)
    join = node.inputs[0] if isinstance(node, Drop) else node
    assert isinstance(join, IntervalJoin)
    join = replace(join, left_time=True)
    return steps_of(stream).then(node.over(join) if isinstance(node, Drop) else join)


class JoinBinder:
    """The binder of one join: which conditions are keys, which are bounds of time, and which are left for a filter.

    `where`: conditions of WHERE, from which the join takes those that it uses. `above`: all conditions of WHERE.
    """

    def __init__(
        self,
        context: Context,
        join: JoinSource,
        left: Relation,
        right: Relation,
        where: list[Expression],
        ttl: Mapping[str, str] | None = None,
        above: Sequence[Expression] = (),
    ) -> None:
        self._context = context
        self._ttl = ttl or {}
        if join.natural:
            join = replace(join, using=_common_names(left, right, join.span))
        self._join = join
        self._how = _HOW[join.kind]
        own = conjuncts(join.on)
        self._left = with_calls(context, left, own)
        right = self._apart(self._left, right)
        self._right = with_calls(context, right, own, self._left)
        self._both = Relation(left.stream, (*self._left.fields, *self._right.fields))
        self._own = own + [self._using(name) for name in join.using]
        self._where = where
        self._above = above
        self._keys: list[tuple[Expression, TypedExpr, TypedExpr]] = []
        self._lower: int | None = None  # bounds of (right event time - left event time), in ms
        self._upper: int | None = None
        self._bounds: list[Expression] = []  # the conditions with these bounds
        self._residual: list[Expression] = []
        # event time has whole ms; the rows of an inner join, which are found by it, are then filtered by their own times
        self._exact = self._how == "inner" and any(map(_is_finer, self._both.fields))

    def _apart(self, left: Relation, right: Relation) -> Relation:
        """Returns the right table with other columns where the left one has columns of these names."""
        names = Names({each.column for each in left.fields})
        names.taken |= set(node_of(left.stream).column_names or ())
        known = [each.column for each in right.fields if not each.clock]
        new = {column: names.free(column) for column in dict.fromkeys(known)}
        changed = {old: name for old, name in new.items() if old != name}
        hidden = [name for name in node_of(right.stream).column_names or () if name not in new]
        stream = right.stream
        if hidden and len(hidden) < len(node_of(right.stream).column_names or ()):
            stream = stream.drop(*hidden)
        if changed:
            stream = stream.rename(changed)
        fields = tuple(replace(each, column=new.get(each.column, each.column)) for each in right.fields)
        return replace(right, stream=stream, fields=fields)

    def _using(self, name: Name) -> Expression:
        sides = []
        for relation in (self._left, self._right):
            field, _ = relation.find((name,))
            sides.append(Column((StarName(field.name, name.span, True, field),), name.span))
        return Binary("=", sides[0], sides[1], name.span)

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _sort_conditions(self) -> None:
        for node in self._own:
            for each in walk(node):
                if isinstance(each, Column):
                    self._both.find(each.parts)  # a name that both tables have is neither's
            if not self._classify(node):
                self._residual.append(node)
        for node in list(self._where):
            if self._belongs(node) and self._classify(node):
                self._where.remove(node)

    def _belongs(self, node: Expression) -> bool:
        """Returns True if a condition of WHERE is about these two tables."""
        try:
            Binder(self._context, self._both).bind(node)
        except SqlFault:
            return False
        return True

    def _classify(self, node: Expression) -> bool:
        """Uses a condition as a key or as a bound of time. Returns True if nothing of it is left to check."""
        if isinstance(node, Between) and not node.negated and not node.symmetric:
            lower = self._bound_of_time(node.operand, ">=", node.lower)
            upper = self._bound_of_time(node.operand, "<=", node.upper)
            if lower is None or upper is None:
                return False
            for bound in (lower, upper):
                self._narrow(*bound)
            self._bounds.append(node)
            return not self._exact
        if not isinstance(node, Binary):
            return False
        if node.operator in ("=", "IS NOT DISTINCT FROM"):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                left, right = self._side(one, self._left), self._side(other, self._right)
                if left is not None and right is not None:
                    keys = same_type(node, left, right, self._context.zone)
                    self._keys += [(node, *keys)] if node.operator == "=" else _with_nulls(node, *keys)
                    return True
            return False
        if node.operator in _COMPARISONS:
            found = self._bound_of_time(node.left, node.operator, node.right)
            if found is not None:
                self._narrow(*found)
                self._bounds.append(node)
                return not self._exact
        return False

    def _side(self, node: Expression, relation: Relation) -> TypedExpr | None:
        try:
            bound = Binder(self._context, relation).bind(node)
        except SqlFault:
            return None
        other = self._right if relation is self._left else self._left
        names = {each.column for each in other.fields}
        return bound if bound.expr.columns and not bound.expr.columns & names else None

    def _bound_of_time(self, left: Expression, operator: str, right: Expression) -> tuple[str, int] | None:
        """Returns (">=" or "<=", ms) for the distance of the right table's event time from that of the left table,
        or None if the comparison is not about these.
        """
        one, other = self._time(left), self._time(right)
        if one is None or other is None or one[0] is other[0]:
            return None
        # one.time + a <op> other.time + b
        (table, a), (_, b) = one, other
        if table is self._right:
            a, b, operator = b, a, mirrored(operator)
        # left + a <op> right + b, so (right - left) <mirrored op> a - b
        distance, operator = a - b, mirrored(operator)
        if operator in ("<", ">") and self._exact:
            return f"{operator}=", distance
        if operator in ("<", ">"):
            return f"{operator}=", distance - 1 if operator == "<" else distance + 1
        return operator, distance

    def _narrow(self, operator: str, ms: int) -> None:
        if operator == ">=":
            self._lower = ms if self._lower is None else max(self._lower, ms)
        else:
            self._upper = ms if self._upper is None else min(self._upper, ms)

    def _time(self, node: Expression) -> tuple[Relation, int] | None:
        """Returns the table whose event time an expression is, and its distance from it in ms."""
        if isinstance(node, Binary) and node.operator in ("+", "-") and isinstance(node.right, Interval):
            found = self._time(node.left)
            amount = interval_ms(node.right)
            return None if found is None else (found[0], found[1] + (amount if node.operator == "+" else -amount))
        if not isinstance(node, Column):
            return None
        try:
            field, further = self._both.find(node.parts)
        except SqlFault:
            return None
        if further or field.shift_ms is None:
            return None
        table = self._left if any(each is field for each in self._left.fields) else self._right
        return table, field.shift_ms

    # -- binding ------------------------------------------------------------------------------------------------------

    def bind(self) -> Relation:
        """Returns the joined rows."""
        self._sort_conditions()
        if not self._keys:
            for node in self._residual:  # a wrong name in ON is no key, and its own error says more
                Binder(self._context, self._both).bind(node)
            raise SqlFault(
                self._join.span,
                "a join needs a column of each table that are equal",
                "FROM a JOIN b ON a.id = b.id",
            )
        window = self._window()
        left, right = self._left, self._right
        if window is not None:
            left, right = self._beside_bounds(left, 1), self._beside_bounds(right, 2)
            plain = self._how == "inner" and not self._join.using
            if plain and (ranked := self._ranked(left, right, window)) is not None:
                return ranked
        elif (ranked := self._ranked_in_time(left, right)) is not None:
            return ranked
        if self._how != "inner" and self._residual:
            if (
                window is None
                and (self._lower, self._upper) == (None, None)
                and any(map(self._is_of_both, self._residual))
            ):
                return self._in_parts()
            left, right = self._conditioned(left, right)
        left, right = self._filtered(left, right)
        left, right, outer = self._copied(left, right)
        options: dict[str, Any] = {"how": self._how}
        if window is not None:
            options["window"] = window
        elif self._lower is not None or self._upper is not None:
            options["between"] = tuple(None if ms is None else f"{ms}ms" for ms in (self._lower, self._upper))
        else:
            keep = (self._kept(left), self._kept(right))
            if keep != (None, None):
                options["keep"] = keep
            self._warn_of_state(left, right, keep)
        left_on, right_on = [key.expr for _, key, _ in self._keys], [key.expr for _, _, key in self._keys]
        with at(self._join.span):
            stream = left.stream.join(right.stream, left_on=left_on, right_on=right_on, **options)
            if "between" in options and self._upper is not None and self._how in ("inner", "left"):
                stream = _with_left_time(stream)
        return self._joined(stream, left, right, outer)

    def _is_of_both(self, node: Expression) -> bool:
        return all(self._side(node, side) is None for side in (self._left, self._right))

    def _in_parts(self) -> Relation:
        """Returns the rows of an outer join with conditions on both tables. Rows with equal values in the columns of ON have
        partners together or not at all, so those without are found by these values.

            a LEFT JOIN b ON a.k = b.k AND a.x < b.y
                  ->     a JOIN b ON …  UNION ALL  the rows of a whose k and x no joined row has, with NULL for b
        """
        plain = replace(self._join, kind="INNER")
        inner = JoinBinder(self._context, plain, self._left, self._right, [], self._ttl).bind()
        joined = [each for each in inner.fields if not each.clock]
        sides = [[each for each in side.fields if not each.clock] for side in (self._left, self._right)]
        names, size = Names(set()), len(sides[0])
        columns = [names.free(each.column) for each in joined]
        asked = {
            id(self._both.find(node.parts)[0]) for each in self._own for node in walk(each) if isinstance(node, Column)
        }
        kept = (self._how in ("left", "full"), self._how in ("right", "full"))
        with at(self._join.span):
            parts = [
                inner.stream.select(**{name: col(each.column) for name, each in zip(columns, joined, strict=True)})
            ]
            for relation, fields, first, keeps in zip((self._left, self._right), sides, (0, size), kept, strict=True):
                if not keeps:
                    continue
                used = [(each, columns[first + i]) for i, each in enumerate(fields) if id(each) in asked]
                keys = [
                    pair
                    for each, name in used
                    for pair in _with_nulls(
                        self._join.on or self._own[0],
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
        keys = {str(its.expr.column): str(mine.expr.column) for _, mine, its in self._keys}
        others = {its: mine for its, mine in keys.items() if mine not in edges}
        compared = [self._compared(node, left, right) for node in self._residual]
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
        with at(self._join.span):
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
        if self._how != "inner" or self._residual or len(self._keys) != 1 or self._lower not in (-1, 0):
            return None
        ((_, one, other),) = self._keys
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
        if top is None or top[1] != TumblingWindow(top[1].size_ms) or self._upper != top[1].size_ms - 1:
            return None
        found, window = top
        passed = {each.column: col(found.columns[each.column]).cast(each.type) for each in right.fields}
        with at(self._join.span):
            rows = left.stream.filter(col(found.by).is_not_null()) if found.has_nulls else left.stream
            ranked = rows.window(window)
            first = ranked.top_n(1, by=[found.by], descending=[found.descending], ties="rank")
            stream = first.select(*columns, **passed)
            if self._lower == -1:
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
        one, other = self._side(node.left, self._left), self._side(node.right, self._right)
        if one is None or other is None:
            one, other = self._side(node.right, self._left), self._side(node.left, self._right)
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
        own = self._residual if self._how == "inner" else []
        for side, mine, keeping in ((left, self._left, ("inner", "left")), (right, self._right, ("inner", "right"))):
            stream = side.stream
            for node in (*self._above, *own) if self._how in keeping and not stream.changes else ():
                if self._side(node, mine) is None or has_calls(self._context, node):
                    continue
                predicate = Binder(self._context, side).predicate(node)
                if _cannot_fail(predicate):
                    with at(node.span):
                        stream = stream.filter(predicate)
            sides.append(replace(side, stream=stream))
        return sides[0], sides[1]

    def _beside_bounds(self, side: Relation, place: int) -> Relation:
        """Renames columns that have the names of the bounds which a join in windows adds. `place`: 1 for the left
        table, 2 for the right one.
        """
        names = names_of(self._left)
        names.taken |= names_of(self._right).taken
        side, new = beside_bounds(side, names)
        for i, (node, left, right) in enumerate(self._keys):
            key = left if place == 1 else right
            column = new.get(key.expr.column or "")
            if column is not None:
                made = TypedExpr(col(column), key.type)
                self._keys[i] = (node, made, right) if place == 1 else (node, left, made)
        return side

    def _kept(self, side: Relation) -> str | None:
        """Returns the time for which STATE_TTL, or SET, keeps the rows of a table, or None for ever."""
        tables = dict.fromkeys(each.qualifier for each in side.fields if each.qualifier)
        hinted = next((name for name in tables if name.lower() in self._ttl), None)
        if hinted is None:
            return self._context.state_ttl() if may_expire(side.stream) else None
        if not side.stream.changes:
            return self._ttl[hinted.lower()]
        if len(tables) > 1:  # the hint is that of the join which made these rows
            return None
        raise SqlFault(
            self._join.span,
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

    def bind_lookup(self) -> Relation:
        """Returns the rows of the left table with the row that the right one has at the moment of processing."""
        if self._left.stream.changes:
            message = "these rows are updated as others come, and a lookup takes rows that are only added"
            raise SqlFault(
                self._join.left.span,
                message,
                "look up first, and group or rank the joined rows; or a JOIN without AS OF",
            )
        table = asked_table(self._right.stream)
        if table is not None:
            return self._bind_database(table)
        if reads_database(self._right.stream):
            name = next((each.qualifier for each in self._right.fields), "this query")
            message = f"{name} is computed from all rows of a database, and AS OF a PROCTIME() asks for those of a key"
            hint = "FOR SYSTEM_TIME AS OF the table itself, or a view with columns and WHERE; JOIN without it reads all at the start"
            raise SqlFault(self._join.right.span, message, hint)
        return self._bind_point(lambda stream, other, options: stream.lookup(other, **options))

    def _bind_database(self, table: AskedTable) -> Relation:
        """Returns the rows of the left table with those that a table of a database has for their keys when they are processed:
        a row for each of them.
        """
        left, right, span = self._left, self._right, self._join.span
        self._sort_conditions()
        keys, further = [], [*self._bounds]
        for node, mine, its in self._keys:
            name = table.columns[next(iter(its.expr.columns))].column if _is_plain(its) else None
            keys += [] if name is None else [(name, mine.expr)]
            further += [node] if name is None else []
        for node in self._residual:
            found = self._constant(node)
            name = None if found is None else table.columns[found[0]].column
            if found is None or name is None:
                further.append(node)
            else:
                keys.append((name, found[1]))
        if not keys:
            message = "AS OF of a table of a database needs ON a.key = b.key"
            raise SqlFault(self._join.span, message, "the column of the database itself, without a function around it")
        names = names_of(left)
        names.taken |= {each.column for each in right.fields}
        made = {names.free("key"): key for _, key in keys}
        rows = names.free("found")
        function, options = table.finds([name for name, _ in keys])
        outer = self._how == "left"
        types = {each.column: each.type for each in right.fields if not each.clock}
        columns, conditions = table.of_row(col(rows), types, outer=outer)
        with at(span):
            stream = left.stream.with_columns(**made)
            stream = stream.lookup(function, on=list(made), how="left" if outer else "inner", **options)
            stream = stream.rename({"found": rows}) if rows != "found" else stream
            stream = stream.explode(rows, keep_nulls=outer, empty_as_null=outer)
            for condition in conditions:
                stream = stream.filter(condition)
            stream = stream.with_columns(**columns).drop(rows, *made)
        asked = steps_of(right.stream)
        begun = asked.owner.begun_streams
        for read in set(begun).intersection(steps_before([asked.node])):
            begun.remove(read)  # the table is not read, so its rows need no sink
        times = node_of(stream).event_times
        fields = [replace(each, shift_ms=each.shift_ms if each.column in times else None) for each in left.fields]
        fields += [replace(each, shift_ms=None, never_null=each.never_null and not outer) for each in right.fields]
        relation = Relation(stream, tuple(fields))
        whole = table.key and set(table.key) <= {name for name, _ in keys}
        if outer and (further or table.conditions) and not whole:
            message = "a condition of LEFT JOIN on a table of a database stands beside all columns of its PRIMARY KEY"
            place = further[0].span if further else self._join.right.span
            raise SqlFault(place, message, "PRIMARY KEY (id) NOT ENFORCED, and ON a.id = b.id AND …")
        return self._with_further(relation, further, {each.column for each in right.fields})

    def _constant(self, node: Expression) -> tuple[str, Expr] | None:
        """Returns a condition `column = constant` about the right table as its column and the constant."""
        if not isinstance(node, Binary) or node.operator != "=":
            return None
        for one, other in ((node.left, node.right), (node.right, node.left)):
            mine = self._side(one, self._right)
            if mine is None or mine.expr.column is None:
                continue
            if not any(isinstance(each, Column) for each in walk(other)):
                its = Binder(self._context, self._left).bind(other)
                return mine.expr.column, same_type(node, mine, its, self._context.zone)[1].expr
        return None

    def _with_further(self, relation: Relation, conditions: Sequence[Expression], its: Collection[str]) -> Relation:
        """Returns joined rows that fulfil further conditions of ON. Of a LEFT JOIN, the others have no partner. `its`: the columns of the
        right table.
        """
        if not conditions:
            return relation
        relation = with_calls(self._context, relation, conditions)
        binder = Binder(self._context, relation)
        for condition in conditions:
            with at(condition.span):
                predicate = binder.predicate(condition)
                if self._how == "inner":
                    stream = relation.stream.filter(predicate)
                else:
                    kept = {
                        each.column: when(predicate).then(col(each.column)).otherwise(lit(None, each.type))
                        for each in relation.fields
                        if each.column in its and not each.clock
                    }
                    stream = relation.stream.with_columns(**kept)
                relation = replace(relation, stream=stream)
        return relation

    def bind_as_of(self) -> Relation:
        """Returns the rows of the left table with the version of the right one at their event time."""
        if self._left.stream.changes:
            raise SqlFault(
                self._join.left.span,
                "these rows are updated as others come, and FOR SYSTEM_TIME AS OF an event time takes final ones",
                "the first row by the event time is final (ROW_NUMBER() … ORDER BY ts, = 1); or join first, and rank the joined rows",
            )
        self._check_versions()
        right = self._right
        if _ends_in_lists(right.stream):
            name = next((each.qualifier for each in right.fields), "this table")
            raise SqlFault(
                self._join.right.span,
                f"{name} has its lists when its rows have ended, so it has no versions by event time",
                "ARRAY_AGG and LISTAGG in GROUP BY of a window; or aggregates of one value, such as MAX",
            )
        if right.stream.changes:
            with at(self._join.right.span):
                found = _versions(right.stream)
            if found is None:
                name = next((each.qualifier for each in right.fields), "this table")
                raise SqlFault(
                    self._join.right.span,
                    f"{name} is updated as rows come, so it has no versions by event time",
                    f"{_with_versions(right.stream)}; or AS OF a column PROCTIME(), for the rows that exist",
                )
            self._right = replace(right, stream=found)
        return self._bind_point(lambda stream, other, options: stream.join_asof(other, **options))

    def _check_versions(self) -> None:
        """Raises SqlFault if a declared table has no versions: no event time, or a key that ON leaves out. Warns if it
        has no key.
        """
        right, name = self._right, next((each.qualifier for each in self._right.fields), "")
        if right.key is None:
            return
        span = self._join.right.span
        if not any(each.shift_ms == 0 for each in right.fields):
            raise SqlFault(
                span,
                f"{name} has no event time, so its rows are valid at no time",
                "AS OF a column PROCTIME() of the left table asks the database"
                if asked_table(right.stream) is not None
                else "WATERMARK FOR ts AS ts in CREATE TABLE",
            )
        columns = [node for each in self._own for node in walk(each) if isinstance(node, Column)]
        found = [self._both.find(node.parts)[0] for node in columns]
        asked = {each.name.lower() for each in found if any(each is mine for mine in right.fields)}
        left_out = next((each for each in right.key if each.lower() not in asked), None)
        if left_out is not None:
            raise SqlFault(
                span,
                f"ON leaves out {left_out} of the PRIMARY KEY of {name}",
                f"… AND a.{left_out} = {name}.{left_out}",
            )
        if not right.key:
            message = (
                "%s has no PRIMARY KEY: FOR SYSTEM_TIME AS OF takes its last row with the values of ON at that time"
            )
            _log.warning(message, name)

    def _bind_point(self, make: Callable[[Any, Any, dict[str, Any]], Any]) -> Relation:
        self._sort_conditions()
        further, self._residual = [*self._residual, *self._bounds], []
        if not self._keys:
            raise SqlFault(self._join.span, "AS OF needs ON a.key = b.key", "a column of each table that are equal")
        left, right, outer = self._copied(self._left, self._right)
        left_on, right_on = [key.expr for _, key, _ in self._keys], [key.expr for _, _, key in self._keys]
        options = {"left_on": left_on, "right_on": right_on, "how": self._how}
        with at(self._join.span):
            stream = make(left.stream, right.stream, options)
        relation = self._joined(stream, left, right, outer)
        own = {each.column for each in relation.fields} - {each.column for each in left.fields}
        return self._with_further(relation, further, own)

    def _copied(self, left: Relation, right: Relation) -> tuple[Relation, Relation, dict[str, str]]:
        """Copies key columns that the joined rows would not have: the engine drops the keys of the right table, which
        differ from those of the left one if the join is an outer one, or if the left key is computed.
        """
        outer: dict[str, str] = {}
        names = Names({each.column for each in (*left.fields, *right.fields)})

        def copied(relation: Relation, keys: Sequence[TypedExpr]) -> Relation:
            made: dict[str, Expr] = {}
            for key in keys:
                column = key.expr.column
                if column is not None and column not in outer:
                    outer[column] = names.free(f"{column}0")
                    made[outer[column]] = col(column)
            return replace(relation, stream=relation.stream.with_columns(**made)) if made else relation

        if self._how in ("left", "full"):
            right = copied(right, [key for _, _, key in self._keys])
        elif self._how == "inner":
            right = copied(right, [its for _, mine, its in self._keys if mine.expr.column is None])
        if self._how in ("right", "full"):
            left = copied(left, [key for _, key, _ in self._keys])
        return left, right, outer

    def _joined(self, stream: Any, left: Relation, right: Relation, outer: dict[str, str]) -> Relation:
        """Returns the relation of the joined stream: a key of the right table is the key of the left one."""
        same = {
            key_right.expr.column: key_left.expr.column
            for _, key_left, key_right in self._keys
            if key_right.expr.column is not None and key_left.expr.column is not None
        }
        node = node_of(stream)
        step = node.inputs[0] if isinstance(node, Drop) else node
        fields = []
        sides = [(each, self._how in ("inner", "left")) for each in left.fields]
        sides += [(each, self._how in ("inner", "right")) for each in right.fields]
        for each, kept in sides:
            column = outer.get(each.column, each.column)
            if each.clock:
                fields += [] if stream.changes else [each]
                continue
            if node.column_names is not None and column not in node.column_names:
                column = same.get(each.column) or column
            of_left = len(fields) < len(left.fields)
            shift = each.shift_ms if step.keeps_time and of_left else None
            if isinstance(step, WindowJoin) and each.window is not None and kept:
                shift = _FROM_LAST_MS.get(each.window.edge)  # the time of a joined row is the last ms of its window
            fields.append(replace(each, column=column, shift_ms=shift, never_null=each.never_null and kept))
        relation = Relation(stream, tuple(fields))
        if self._join.using:
            split = sum(not (each.clock and stream.changes) for each in left.fields)
            relation = _merged(relation, self._join, split)
        if self._how == "inner" and self._residual:
            relation = with_calls(self._context, relation, self._residual)
            binder = Binder(self._context, relation)
            for condition in self._residual:
                with at(condition.span):
                    relation = replace(relation, stream=relation.stream.filter(binder.predicate(condition)))
        return relation

    def _conditioned(self, left: Relation, right: Relation) -> tuple[Relation, Relation]:
        """Applies the conditions of an outer join's ON that are about one table alone.

        A row that does not meet them has no partner. It is dropped if the join keeps no rows of its table without a
        partner; otherwise its key becomes null, which equals nothing.
        """
        kept = {"left": (True, False), "right": (False, True), "full": (True, True)}[self._how]
        sides = [left, right]
        for node in self._residual:
            found = [i for i, side in enumerate((self._left, self._right)) if self._side(node, side) is not None]
            if not found:
                raise SqlFault(
                    node.span,
                    f"{self._join.kind} JOIN by time takes equal columns, bounds of time, and conditions on one of the tables",
                    "JOIN … ON a.id = b.id, and the condition in WHERE: rows without a partner are left out",
                )
            i = found[0]
            predicate = Binder(self._context, sides[i]).predicate(node)
            with at(node.span):
                if not kept[i]:
                    sides[i] = replace(sides[i], stream=sides[i].stream.filter(predicate))
                    continue
            tree, *keys = self._keys[0]
            key = keys[i]
            keys[i] = TypedExpr(when(predicate).then(key.expr).otherwise(lit(None)), key.type)
            self._keys[0] = (tree, keys[0], keys[1])
        return sides[0], sides[1]

    def _window(self) -> Any:
        """Returns the window of a join of two windows' results, or None."""
        if self._lower is not None or self._upper is not None:
            return None
        return common_window(self._left, self._right, [(mine, its) for _, mine, its in self._keys], self._join.span)


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


def _is_plain(key: TypedExpr) -> bool:
    """Returns True for a column, also one that is cast for its comparison."""
    return key.expr.column is not None or (key.expr.kind == "cast" and key.expr.inputs[0].column is not None)


def _is_finer(column: TableColumn) -> bool:
    """Returns True for an event time with more digits than ms."""
    return column.shift_ms is not None and pa.types.is_timestamp(column.type) and column.type.unit in ("us", "ns")


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


def same_type(node: Expression, left: TypedExpr, right: TypedExpr, zone: str) -> tuple[TypedExpr, TypedExpr]:
    """Returns the keys of a join with one type; a TIMESTAMP beside a TIMESTAMP_LTZ is on the clock of the session's zone.
    Raises SqlFault at `node` if their types cannot be compared.
    """
    if pa.types.is_timestamp(left.type) and pa.types.is_timestamp(right.type):
        local = next((each.type for each in (left, right) if is_local(each.type)), left.type)
        left, right = (
            each if is_local(each.type) == is_local(local) else TypedExpr(cast(each, local, zone, strict=True), local)
            for each in (left, right)
        )
    type = common_type(left.type, right.type)
    if type is None:
        message = f"{sql_type(left.type)} and {sql_type(right.type)} are never equal"
        raise SqlFault(node.span, message, "write a CAST")
    keys = [key if key.type == type else TypedExpr(key.expr.cast(type), type) for key in (left, right)]
    return keys[0], keys[1]


def _with_nulls(node: Expression, left: TypedExpr, right: TypedExpr) -> list[tuple[Expression, TypedExpr, TypedExpr]]:
    """Returns keys that are equal where both values are equal or NULL: whether they are NULL, and the values."""
    type = left.type
    if pa.types.is_string(type) or pa.types.is_binary(type):
        instead = pa.scalar("", pa.string()).cast(type)
    else:
        try:
            instead = pa.scalar(0, pa.int32()).cast(type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            instead = pa.scalar(0, type) if pa.types.is_timestamp(type) else None
    if instead is None:
        raise SqlFault(node.span, f"{sql_type(type)} is no key of a join", "compare its parts")
    nulls = [TypedExpr(each.expr.is_null(), pa.bool_()) for each in (left, right)]
    values = [TypedExpr(coalesce(each.expr, lit(instead)), type) for each in (left, right)]
    return [(node, nulls[0], nulls[1]), (node, values[0], values[1])]


def _common_names(left: Relation, right: Relation, span: Span) -> tuple[Name, ...]:
    """Returns the names of the columns that both tables of a NATURAL JOIN have. Raises SqlFault if there are none."""
    known = {each.name for each in right.fields if not each.merged}
    found = dict.fromkeys(each.name for each in left.fields if not each.merged and each.name in known)
    if not found:
        raise SqlFault(span, "the two tables of NATURAL JOIN have no column of one name", "JOIN … ON a.id = b.key")
    return tuple(Name(name, span, True) for name in found)


def _merged(joined: Relation, join: JoinSource, split: int) -> Relation:
    """Returns the rows of a join with one column for each key of USING, before the other columns.

    `split`: the number of the left table's columns.
    """
    sides = [replace(joined, fields=joined.fields[:split]), replace(joined, fields=joined.fields[split:])]
    names, stream, fields = names_of(joined), joined.stream, list(joined.fields)
    made = []
    for name in join.using:
        left, right = (side.find((name,))[0] for side in sides)
        chosen = right if join.kind == "RIGHT" else left
        if join.kind == "FULL":
            column = names.free(left.name)
            with at(name.span):
                stream = stream.with_columns(**{column: coalesce(col(left.column), col(right.column))})
            chosen = TableColumn("", left.name, column, left.type, shown=left.shown)
        made.append(replace(chosen, qualifier="", name=left.name))
        for old in (left, right):
            fields[fields.index(old)] = replace(old, merged=True)
    return Relation(stream, (*made, *fields))
