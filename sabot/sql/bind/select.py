"""The binder of SELECT: what its clauses do, in the order in which they do it.

rankings        WHERE n <= 3 of a ranking that a query inside has computed
this module     windows opened, WHERE, columns computed once or left out
groups          GROUP BY, HAVING and the aggregates; or
over            OVER
select_list     the columns that come out
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sabot.api.expr import col
from sabot.api.windows import SessionWindow
from sabot.sql.bind.groups import (
    GroupBinder,
    check_no_aggregate,
    has_aggregate,
    has_bounds,
    is_aggregate,
    resolved_groups,
)
from sabot.sql.bind.over import OverBinder
from sabot.sql.bind.rankings import RankingBinder
from sabot.sql.bind.select_list import OutputColumn, condition_of, finish, items_of, output_of
from sabot.sql.bind.windows import opened
from sabot.sql.moments import has_moments, with_moments
from sabot.sql.registered import has_calls, with_calls
from sabot.sql.scope import Names, Relation, TypedExpr, at, names_of, node_of
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Binary, Call, Column, Derived, Expression, Item, SelectBody
from sabot.sql.values import Binder, Context, key_of, walk

_COSTLY = ("REGEXP_EXTRACT", "REGEXP_REPLACE", "JSON_VALUE", "JSON_QUERY")


def _is_costly(node: Any) -> bool:
    return isinstance(node, Call) and node.name.text.upper() in _COSTLY


class SelectBinder:
    """The binder of one SELECT over a bound FROM. `where`: the conditions that the joins of FROM have not used. `waits`:
    True if the rows of a window table may stay without their windows, for a GROUP BY of the query outside. `ttl`: the
    time of the hint STATE_TTL for a GROUP BY, or None.
    """

    def __init__(
        self,
        context: Context,
        select: SelectBody,
        relation: Relation,
        where: Sequence[Expression],
        *,
        waits: bool = False,
        ttl: str | None = None,
    ) -> None:
        self._context = context
        self._ttl = ttl
        self._select = select
        self._relation = relation
        self._where = list(where)
        self._waits = waits

    def bind(self) -> Relation:
        """Returns the rows of the SELECT."""
        select = self._select
        relation, bounding = RankingBinder(self._context, select, self._relation, self._where, self._ttl).bind()
        self._where = [each for each in self._where if each is not bounding]
        grouped = bool(select.group) or select.having is not None or has_aggregate(select.items)
        if grouped and relation.window is not None:
            self._filter_windows(relation)
            select = self._select
        if isinstance(relation.window, SessionWindow) and self._where:
            raise SqlFault(
                self._where[0].span,
                "WHERE of a table of sessions is not supported: it would change which rows are together",
                "filter the rows before, in a view or in SESSION(TABLE (SELECT … WHERE …), …)",
            )
        waits = relation.window is not None and not grouped and self._may_wait(relation)
        waited = isinstance(select.source, Derived) and not self._groups_windows(relation)
        if relation.window is not None and (waited if grouped else not waits):
            with at(select.span):
                relation = opened(relation, select.span, self._context.zone)
        items = list(items_of(select, relation))
        if not grouped:
            relation = self._computed_once(relation, items)  # before WHERE, which reads the columns too
        # Conditions with functions of the user are the last: these functions get the rows that the others let pass.
        calling = [each for each in self._where if has_calls(self._context, each) or has_moments(each, relation)]
        relation = self._filtered(relation, [each for each in self._where if each not in calling])
        if calling:
            relation = with_moments(self._context, relation, calling, "WHERE")
            relation = self._filtered(with_calls(self._context, relation, calling), calling)
        if not grouped:
            relation = self._narrowed(relation, items)
        relation = with_moments(self._context, relation, items)
        relation = with_calls(self._context, relation, [*items, *select.group])
        if grouped:
            rows, groups = GroupBinder(self._context, select, self._relation, self._ttl).bind(relation, items)
            return finish(select, rows, groups)
        relation, replaced = OverBinder(self._context, select, self._ttl).bind(relation, items)
        binder = Binder(self._context, relation, None)
        outputs = [output_of(item, relation, binder, replaced) for item in items]
        if not waits:
            return finish(select, relation, outputs)
        bounds = [(i, output) for i, output in enumerate(outputs) if _is_bound(relation, output)]
        finished = finish(select, relation, [output for output in outputs if not _is_bound(relation, output)])
        fields = list(finished.fields)
        names = Names({each.name for each in fields})
        for i, output in bounds:
            assert output.passed is not None
            fields.insert(i, replace(output.passed, qualifier="", name=names.free(output.name)))
        return replace(finished, fields=tuple(fields), window=relation.window)

    def _filter_windows(self, relation: Relation) -> None:
        """Makes conditions of WHERE on the bounds of the windows alone conditions of HAVING: they hold for all rows of a window or for
        none, and rows have no bounds before they are grouped.
        """
        for condition in list(self._where):
            columns = [node for node in walk(condition) if isinstance(node, Column)]
            if columns and all(relation.find(node.parts)[0].window is not None for node in columns):
                self._where.remove(condition)
                having = self._select.having
                both = condition if having is None else Binary("AND", having, condition, condition.span)
                self._select = replace(self._select, having=both)

    def _groups_windows(self, relation: Relation) -> bool:
        """Returns True if GROUP BY has both bounds of the window table, and nothing else needs them in each row."""
        edges = set()
        for node in resolved_groups(self._select, relation, list(items_of(self._select, relation))):
            field = relation.find(node.parts)[0] if isinstance(node, Column) else None
            if field is not None and field.window is not None:
                edges.add(field.window.edge)
        trees = [*self._select.items, *([self._select.having] if self._select.having is not None else [])]
        inside: list[Any] = [node for tree in trees for node in walk(tree) if is_aggregate(node)]
        return {"start", "end"} <= edges and not has_bounds([*self._where, *inside], relation)

    def _may_wait(self, relation: Relation) -> bool:
        """Returns True if a query outside may group the rows by their windows: if this one only filters the rows of a
        window table, computes columns of each row, and passes on the bounds and the event time.

            SELECT window_start, window_end, SUM(half) FROM (
                SELECT amount / 2 AS half, ts, window_start, window_end FROM TABLE(HOP(…)) WHERE amount > 0)
            GROUP BY window_start, window_end
        """
        if not self._waits or self._select.distinct or relation.ranking is not None:
            return False
        items = list(items_of(self._select, relation))
        plain = [item.expression for item in items if isinstance(item.expression, Column)]
        passed = [relation.find(node.parts)[0] for node in plain if isinstance(node, Column) and len(node.parts) < 3]
        edges = {each.window.edge for each in passed if each.window is not None}
        if not {"start", "end"} <= edges or not any(
            each.shift_ms is not None and each.window is None for each in passed
        ):
            return False
        inside: list[Any] = [*self._where, *(item.expression for item in items if item.expression not in plain)]
        running = any(isinstance(node, Call) and node.over is not None for tree in inside for node in walk(tree))
        return not running and not has_bounds(inside, relation)

    def _narrowed(self, relation: Relation, items: Sequence[Item]) -> Relation:
        """Drops columns that the select list does not use, before a function of the user takes whole batches."""
        nodes = [node for item in items for node in walk(item)]
        called = [node for node in nodes if isinstance(node, Call)]
        if any(node.over is not None for node in called) or not any(has_calls(self._context, node) for node in called):
            return relation
        used = {str(each.expr.column) for each in relation.calls.values()}
        used |= {relation.find(node.parts)[0].column for node in nodes if isinstance(node, Column)}
        names = node_of(relation.stream).column_names or ()
        kept = [name for name in names if name in used]
        if not kept or len(kept) == len(names) or relation.ranking is not None:
            return relation
        fields = tuple(each for each in relation.fields if each.column in used or each.clock)
        return replace(relation, stream=relation.stream.select(*kept), fields=fields)

    def _computed_once(self, relation: Relation, items: Sequence[Item]) -> Relation:
        """Returns the table with a column for each costly call that both WHERE and the select list have.

        The value is the same in both places, since these functions depend on their arguments alone, and WHERE computes
        it for all rows anyway.
        """
        known: dict[Any, TypedExpr] = {}
        asked = [node for tree in self._where for node in walk(tree) if _is_costly(node)]
        selected = [key_of(node, relation) for item in items for node in walk(item.expression) if _is_costly(node)]
        stream = relation.stream
        names = names_of(relation)
        for node in asked:
            key = key_of(node, relation)
            if key in known or key not in selected or has_calls(self._context, node):
                continue
            bound = Binder(self._context, relation).bind(node)
            name = names.free("computed_once")
            with at(node.span):
                stream = stream.with_columns(**{name: bound.expr})
            known[key] = TypedExpr(col(name), bound.type)
        return replace(relation, stream=stream, calls={**relation.calls, **known}) if known else relation

    def _filtered(self, relation: Relation, conditions: Sequence[Expression]) -> Relation:
        binder = Binder(self._context, relation)
        for condition in conditions:
            check_no_aggregate(condition)
        predicates = [(condition, condition_of(self._select, binder, condition, "WHERE")) for condition in conditions]
        stream = relation.stream
        for condition, predicate in predicates:
            with at(condition.span):
                stream = stream.filter(predicate)
        return replace(relation, stream=stream)


def _is_bound(relation: Relation, output: OutputColumn) -> bool:
    """Returns True for a bound of a window table's windows, which the rows do not have yet."""
    edge = None if output.passed is None else output.passed.window
    return edge is not None and edge.window is relation.window


def of_sets(
    context: Context, select: SelectBody, relation: Relation, where: Sequence[Expression], ttl: str | None
) -> Relation:
    """Returns the rows of GROUPING SETS, ROLLUP and CUBE: those of a GROUP BY for each set, of the same rows of FROM."""
    made = [
        SelectBinder(context, replace(select, sets=(some,)), relation, where, ttl=ttl).bind() for some in select.sets
    ]
    with at(select.span):
        stream = made[0].stream.union(*(each.stream for each in made[1:]))
        fields = tuple(
            replace(
                same[0],
                shown=next((each.shown for each in same if each.shown is not None), None),
                never_null=all(each.never_null for each in same),
                window=None,
            )
            for same in zip(*(each.fields for each in made), strict=True)
        )
        if select.distinct:
            stream = stream.deduplicate(*(each.column for each in fields))
    return replace(made[0], stream=stream, fields=fields)
