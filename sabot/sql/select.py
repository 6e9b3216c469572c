"""The binder of SELECT: rows, groups, aggregates, rankings, and the columns that come out."""

import datetime
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import pyarrow as pa

from sabot.api.aggregates import Aggregate, count
from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.read import endless_read
from sabot.api.over import OverFunction, dense_rank, lag, lead, rank, row_number
from sabot.api.stream import KeyedStream, Stream
from sabot.api.windows import SessionWindow, count_window
from sabot.api.words import ALL_ROWS
from sabot.base.checks import is_whole
from sabot.sql import functions
from sabot.sql.registered import has_calls, with_calls
from sabot.sql.scope import (
    Names,
    Ranking,
    Relation,
    StarName,
    TableColumn,
    TimeWindow,
    TypedExpr,
    WindowEdge,
    at,
    clock_column,
    hint_of_time,
    is_clock,
    may_expire,
    names_of,
    node_of,
    steps_of,
    warn_of_growth,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Between,
    Binary,
    Call,
    Column,
    Constant,
    Derived,
    Expression,
    Item,
    Name,
    Parameter,
    SelectBody,
    Sort,
    Star,
    Window,
)
from sabot.sql.types import sql_type
from sabot.sql.values import Binder, Context, constant_text, key_of, mirrored, rebuilt, walk
from sabot.sql.windows import (
    EDGES,
    GROUP_WINDOWS,
    bounds_type,
    check_sessions,
    group_window,
    opened,
    shown_bounds,
    windows_again,
)
from sabot.sql.zones import is_local

_log = logging.getLogger(__name__)

_LISTS = ("collect_list", "collect_set")
AT_THE_END = count_window(ALL_ROWS)
"""The window of all rows of a key, which only the end of the input closes."""

_RANKINGS = {"ROW_NUMBER": "row_number", "RANK": "rank", "DENSE_RANK": "dense_rank"}
_PLACES: dict[str, Callable[[], OverFunction]] = {"row_number": row_number, "rank": rank, "dense_rank": dense_rank}


@dataclass(slots=True)
class OutputColumn:
    """A column of the result. `relation_field`: the field that the column passes on unchanged, or None."""

    name: str
    bound: TypedExpr
    passed: TableColumn | None
    clock: bool = False
    ranking: Ranking | None = None
    shown: pa.DataType | None = None  # as in TableColumn, for a column that is not passed on


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
        self._floats: dict[Any, pa.DataType] = {}
        self._lists: dict[Any, tuple[str, bool | Sequence[Sort] | None]] = {}
        """The separator of each LISTAGG and its order (`_order_of_list`), by `key_of` of the call."""
        self._arguments: dict[str, tuple[pa.DataType, pa.DataType]] = {}
        """The types, in the engine and in SQL, of arguments of aggregates that have two, by the aggregate's column."""

    def bind(self) -> Relation:
        """Returns the rows of the SELECT."""
        select = self._select
        relation, bounding = self.ranked()
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
        items = list(self._items(relation))
        if not grouped:
            relation = self._computed_once(relation, items)
        calling = [condition for condition in self._where if has_calls(self._context, condition)]
        relation = self._filtered(relation, [each for each in self._where if each not in calling])
        relation = self._filtered(with_calls(self._context, relation, calling), calling)
        if not grouped:
            relation = self._narrowed(relation, items)
        relation = with_calls(self._context, relation, [*items, *select.group])
        if grouped:
            return self._grouped(relation, items)
        relation, replaced = self._over(relation, items)
        binder = Binder(self._context, relation, None)
        outputs = [self._output(item, relation, binder, replaced) for item in items]
        if not waits:
            return self._finish(relation, outputs)
        bounds = [(i, output) for i, output in enumerate(outputs) if _is_bound(relation, output)]
        finished = self._finish(relation, [output for output in outputs if not _is_bound(relation, output)])
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
        for node in self._resolved_groups(relation, list(self._items(relation))):
            field = relation.find(node.parts)[0] if isinstance(node, Column) else None
            if field is not None and field.window is not None:
                edges.add(field.window.edge)
        trees = [*self._select.items, *([self._select.having] if self._select.having is not None else [])]
        inside: list[Any] = [node for tree in trees for node in walk(tree) if is_aggregate(node)]
        return {"start", "end"} <= edges and not self._has_bounds([*self._where, *inside], relation)

    def _has_bounds(self, trees: Sequence[Any], relation: Relation) -> bool:
        columns = [node for tree in trees for node in walk(tree) if isinstance(node, Column)]
        return any(relation.find(node.parts)[0].window is not None for node in columns)

    def _may_wait(self, relation: Relation) -> bool:
        """Returns True if a query outside may group the rows by their windows: if this one only filters the rows of a
        window table, computes columns of each row, and passes on the bounds and the event time.

            SELECT window_start, window_end, SUM(half) FROM (
                SELECT amount / 2 AS half, ts, window_start, window_end FROM TABLE(HOP(…)) WHERE amount > 0)
            GROUP BY window_start, window_end
        """
        if not self._waits or self._select.distinct or relation.ranking is not None:
            return False
        items = list(self._items(relation))
        plain = [item.expression for item in items if isinstance(item.expression, Column)]
        passed = [relation.find(node.parts)[0] for node in plain if isinstance(node, Column) and len(node.parts) < 3]
        edges = {each.window.edge for each in passed if each.window is not None}
        if not {"start", "end"} <= edges or not any(
            each.shift_ms is not None and each.window is None for each in passed
        ):
            return False
        inside: list[Any] = [*self._where, *(item.expression for item in items if item.expression not in plain)]
        running = any(isinstance(node, Call) and node.over is not None for tree in inside for node in walk(tree))
        return not running and not self._has_bounds(inside, relation)

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
        predicates = [(condition, self._condition(binder, condition, "WHERE")) for condition in conditions]
        stream = relation.stream
        for condition, predicate in predicates:
            with at(condition.span):
                stream = stream.filter(predicate)
        return replace(relation, stream=stream)

    def _condition(self, binder: Binder, condition: Expression, clause: str) -> Expr:
        """Returns a condition of WHERE or HAVING. Raises SqlFault, which says so if it uses a name of the select list."""
        try:
            return binder.predicate(condition)
        except SqlFault as error:
            aliases = {item.alias.text.lower() for item in self._select.items if item.alias is not None}
            wrong = error.fault.span
            for node in walk(condition):
                if isinstance(node, Column) and node.span == wrong and node.parts[-1].text.lower() in aliases:
                    hint = (
                        f"{clause} does not know the names of the select list: write the expression, or a query outside"
                    )
                    raise SqlFault(wrong, error.fault.message, hint) from error
            raise

    # -- the select list ----------------------------------------------------------------------------------------------

    def _items(self, relation: Relation) -> Iterator[Item]:
        """The entries of the select list, with `*` as its columns."""
        for item in self._select.items:
            if not isinstance(item.expression, Star):
                yield item
                continue
            if item.alias is not None:
                raise SqlFault(item.alias.span, "* has no alias")
            for field in relation.stars(item.expression.qualifier, item.span):
                name = StarName(field.name, item.span, True, field)
                yield Item(Column((name,), item.span), name, item.span)

    def _has_aggregate(self, node: Expression) -> bool:
        return any(is_aggregate(each) for each in walk(node))

    def _output(
        self, item: Item, relation: Relation, binder: Binder, replaced: dict[int, OutputColumn]
    ) -> OutputColumn:
        node = item.expression
        name = item.alias.text if item.alias is not None else _own_name(node)
        found = replaced.get(id(node))
        if found is not None:
            return replace(found, name=name)
        if is_clock(node):
            return OutputColumn(name, TypedExpr(lit(None), pa.null()), None, clock=True)
        if isinstance(node, Column):
            field, further = relation.find(node.parts)
            if not further:
                if field.clock:
                    return OutputColumn(name, TypedExpr(lit(None), pa.null()), None, clock=True)
                if relation.ranking is not None and field.column == relation.ranking.column:
                    return _ranked(relation.ranking, name)
                return OutputColumn(name, TypedExpr(col(field.column), field.type), field)
        bound = binder.bind(node)
        return OutputColumn(name, bound, None, shown=binder.shown_type(node, bound.type))

    def _finish(self, relation: Relation, outputs: Sequence[OutputColumn]) -> Relation:
        """Selects the columns of the result, under their names in SQL."""
        names = Names()
        fields: list[TableColumn] = []
        columns: dict[str, Expr] = {}
        ranking: Ranking | None = None
        for i, output in enumerate(outputs):
            name = names.free(output.name or f"EXPR${i}")
            if output.clock:
                fields.append(clock_column(name))
                continue
            if output.ranking is not None:
                ranking = replace(output.ranking, column=name)
                fields.append(TableColumn("", name, name, pa.int64()))
                continue
            columns[name] = output.bound.expr
            passed = output.passed
            fields.append(
                TableColumn("", name, name, output.bound.type, shown=output.shown)
                if passed is None
                else replace(passed, qualifier="", name=name, column=name, merged=False)
            )
        if ranking is not None:
            ranking = self._kept_for(ranking, columns, names)
        stream = self._selected(relation, columns)
        if self._select.distinct:
            if ranking is not None:
                raise SqlFault(self._select.span, "DISTINCT with a ranking is not supported")
            warn_of_growth(
                stream, "SELECT DISTINCT", "all different rows", "GROUP BY a window and the columns bounds it"
            )
            with at(self._select.span):
                stream = stream.deduplicate(*columns)
        return Relation(stream, tuple(fields), None, ranking)

    def _kept_for(self, ranking: Ranking, columns: dict[str, Expr], names: Names) -> Ranking:
        """Adds the columns that a ranking needs and the select list leaves out, under names that nothing else has."""
        kept: dict[str, str] = {}
        for column in dict.fromkeys([*ranking.partition, *(by for by, _ in ranking.by)]):
            found = next((name for name, expr in columns.items() if expr.column == column), None)
            if found is None:
                found = names.free(column)
                columns[found] = col(column)
            kept[column] = found
        by = tuple((kept[name], descending) for name, descending in ranking.by)
        return replace(ranking, partition=tuple(kept[name] for name in ranking.partition), by=by)

    def _selected(self, relation: Relation, columns: dict[str, Expr]) -> Stream:
        have = node_of(relation.stream).column_names
        if have == list(columns) and all(expr.column == name for name, expr in columns.items()):
            return relation.stream
        if not columns:
            raise SqlFault(self._select.span, "the select list has no column with a value")
        with at(self._select.span):
            return relation.stream.select(**columns)

    # -- GROUP BY -----------------------------------------------------------------------------------------------------

    def _grouped(self, relation: Relation, items: Sequence[Item]) -> Relation:
        select = self._select
        binder = Binder(self._context, relation)
        replaced: dict[Any, TypedExpr] = {}
        keys: dict[str, Expr] = {}
        place = select.group[-1].span if select.group else select.items[0].span
        window = _WindowUse(relation, self._context.zone, place)
        before, names = names_of(relation), Names()
        aliases = {
            key_of(item.expression, relation): item.alias.text for item in items if item.alias and self._is_plain(item)
        }
        pending: list[tuple[Any, str]] = []  # keys whose type is known once the stream is made
        shown: dict[str, pa.DataType | None] = {}  # as in TableColumn, by the column of the result
        groups = list(self._resolved_groups(relation, items))
        if isinstance(relation.window, SessionWindow):
            check_sessions(groups, relation, self._select.span)
        for node in groups:
            if window.takes(node, relation):
                continue
            if relation.window is not None and self._has_bounds([node], relation):
                message = "a key of a window's GROUP BY is not computed from its bounds"
                raise SqlFault(node.span, message, "GROUP BY window_start, window_end, and compute in the select list")
            bound = binder.bind(node)
            key = key_of(node, relation)
            column = bound.expr.column
            if column is None or column in keys:  # a new column beside those that the rows have
                column = before.free(aliases.get(key, f"key{len(keys)}"))
            names.taken.add(column)
            keys[column] = bound.expr
            shown[column] = binder.shown_type(node, bound.type)
            pending.append((key, column))
        trees = [item.expression for item in items]
        trees += [select.having] if select.having is not None else []
        aggregates: dict[str, Aggregate | Expr] = {}
        known: dict[Any, str] = {}
        means: dict[Any, tuple[str, str, pa.DataType]] = {}
        for tree, alias in [(tree, items[i].alias if i < len(items) else None) for i, tree in enumerate(trees)]:
            for call in walk(tree):
                if is_aggregate(call) and key_of(call, relation) not in known:
                    wanted = alias.text if alias is not None and call is tree else f"EXPR${len(aggregates)}"
                    self._add_aggregate(call, binder, relation, wanted, names, aggregates, known, means)
        stream = window.shown(self._aggregated(relation, window, keys, aggregates, names), relation)
        schema = stream.schema
        for key, name in pending:
            replaced[key] = TypedExpr(col(name), schema.field(name).type)
        for key, name in known.items():
            replaced[key] = _as_argument(TypedExpr(col(name), schema.field(name).type), self._floats.get(key))
            if str(key[1]).upper() == "LISTAGG":
                separator, order = self._lists[key]
                texts = col(name)
                if isinstance(order, bool):
                    texts = texts.list.sort(descending=order)
                elif order is not None:
                    ways = [each.descending for each in order]
                    # NULL is the smallest value
                    last = [each.descending if each.nulls_first is None else not each.nulls_first for each in order]
                    by = [f"by{i}" for i in range(len(order))]
                    texts = texts.list.field("text", by=by, descending=ways, nulls_last=last)
                some = when(col(name).list.len() > 0).then(texts.list.join(separator)).otherwise(lit(None))
                replaced[key] = TypedExpr(some, pa.string())
        for key, (total, number, type) in means.items():
            replaced[key] = _mean(type, *(TypedExpr(col(each), pa.int64()) for each in (total, number)))
        replaced |= window.replaced(relation, schema, items, select.having)
        for name, types in self._arguments.items():
            shown[name] = _shown_aggregate(schema.field(name).type, *types)
        shown |= window.shown_types(relation)
        grouped = Relation(
            stream,
            tuple(TableColumn("", each.name, each.name, each.type, shown=shown.get(each.name)) for each in schema),
        )
        after = Binder(self._context, grouped, replaced, relation)
        if select.having is not None:
            predicate = self._condition(after, select.having, "HAVING")
            with at(select.having.span):
                grouped = replace(grouped, stream=grouped.stream.filter(predicate))
        outputs = []
        for item in items:
            bound = after.bind(item.expression)
            name = item.alias.text if item.alias is not None else _own_name(item.expression)
            type, field = after.shown_type(item.expression, bound.type), window.field_of(bound)
            passed = None if field is None else replace(field, shown=type)
            outputs.append(OutputColumn(name, bound, passed, shown=type))
        return self._finish(grouped, outputs)

    def _is_plain(self, item: Item) -> bool:
        return not self._has_aggregate(item.expression)

    def _resolved_groups(self, relation: Relation, items: Sequence[Item]) -> Iterator[Expression]:
        """The expressions of GROUP BY; an alias of the select list and a position stand for their expression."""
        for node in self._select.group:
            if isinstance(node, Constant) and node.kind == "integer":
                position = int(node.text)
                if not 1 <= position <= len(items):
                    raise SqlFault(node.span, f"the select list has no entry {position}")
                yield items[position - 1].expression
                continue
            if isinstance(node, Column) and len(node.parts) == 1:
                try:
                    relation.find(node.parts)
                except SqlFault:
                    text = node.parts[0].text
                    found = next((item for item in items if item.alias and item.alias.text == text), None)
                    if found is None:
                        raise
                    yield found.expression
                    continue
            yield node

    def _add_aggregate(
        self,
        call: Call,
        binder: Binder,
        relation: Relation,
        wanted: str,
        names: Names,
        aggregates: dict[str, Aggregate | Expr],
        known: dict[Any, str],
        means: dict[Any, tuple[str, str, pa.DataType]],
    ) -> None:
        name = call.name.text.upper()
        key = key_of(call, relation)
        inner = next((node for each in call.arguments for node in walk(each) if is_aggregate(node)), None)
        if inner is not None:
            hint = f"{name}(x) of a query inside: FROM (SELECT {inner.name.text.upper()}(…) AS x FROM t GROUP BY key)"
            raise SqlFault(inner.span, "an aggregate has no other aggregate inside", hint)
        if name == "LISTAGG" and call.arguments:
            separator = (
                "," if len(call.arguments) == 1 else constant_text(call.arguments[1], "the separator of LISTAGG")
            )
            self._lists[key] = separator, self._order_of_list(call, relation)
            call = replace(call, arguments=(call.arguments[0], *call.arguments[2:]))
        _check_arguments(call)
        argument = None if call.star else binder.bind(call.arguments[0])
        predicate = None if call.filter is None else binder.predicate(call.filter)
        if name == "AVG" and argument is not None and pa.types.is_integer(argument.type):
            total, number = names.free(f"{wanted}_sum"), names.free(f"{wanted}_count")
            base = replace(call, filter=None)
            for column, kind in ((total, "SUM"), (number, "COUNT")):
                part = replace(base, name=replace(call.name, text=kind))
                with at(call.span):
                    aggregates[column] = functions.aggregate(part, argument, predicate, self._context.zone)
            means[key] = (total, number, argument.type)
            return
        column = names.free(wanted)
        shown = None if argument is None else binder.shown_type(call.arguments[0], argument.type)
        if argument is not None and shown is not None:
            self._arguments[column] = argument.type, shown
        order = self._lists[key][1] if key in self._lists else None
        with at(call.span):
            if argument is not None and isinstance(order, tuple):
                by = [binder.bind(each.expression).expr for each in order]
                aggregates[column] = functions.listed(argument, by, predicate, self._context.zone)
            else:
                aggregates[column] = functions.aggregate(call, argument, predicate, self._context.zone)
        known[key] = column
        if argument is not None and argument.type == pa.float32() and name in ("SUM", "AVG"):
            self._floats[key] = argument.type

    def _order_of_list(self, call: Call, relation: Relation) -> bool | Sequence[Sort] | None:
        """Returns True for LISTAGG(x) WITHIN GROUP (ORDER BY x DESC), False for ascending texts, None for the order of event
        time, which is that of the engine, and the entries of ORDER BY for any other order.
        """
        if not call.order:
            return None
        sort, text = call.order[0], call.arguments[0]
        node = sort.expression
        if len(call.order) == 1 and key_of(node, relation) == key_of(text, relation):
            if not pa.types.is_string(Binder(self._context, relation).bind(text).type):
                raise SqlFault(node.span, "the texts of LISTAGG are sorted as texts", "LISTAGG(CAST(x AS STRING))")
            return sort.descending
        field = relation.find(node.parts)[0] if isinstance(node, Column) else None
        if call.distinct:
            raise SqlFault(node.span, "LISTAGG(DISTINCT …) is ordered by its own text", "WITHIN GROUP (ORDER BY x)")
        if len(call.order) > 1 or field is None or field.shift_ms is None or sort.descending:
            return call.order
        return None

    def _aggregated(
        self,
        relation: Relation,
        window: "_WindowUse",
        keys: dict[str, Expr],
        aggregates: dict[str, Aggregate | Expr],
        names: Names,
    ) -> Stream:
        stream = window.prepared(relation.stream)
        plain = [name for name, expr in keys.items() if expr.column == name]
        computed = {name: expr for name, expr in keys.items() if name not in plain}
        plain = [*plain, *window.keys]
        with at(self._select.span):
            found = window.window
            lists = found is None and not stream.changes and self._has_lists(stream, aggregates)
            if found is None and not lists:
                grouped = stream.group_by(*plain, **computed)
                ttl = self._ttl_of_groups(stream, list(keys))
                return grouped.aggregate(ttl=ttl, **(aggregates or {names.free("rows"): count()}))
            if self._ttl is not None:
                _log.warning("STATE_TTL has no effect on the GROUP BY of a window, which keeps no rows for ever")
            by = stream.key_by(*plain, **computed) if plain or computed else stream
            if found is None:
                rows = by.window(AT_THE_END).aggregate(**aggregates)
                return rows.select(*plain, *computed, *aggregates)
            return by.window(found).aggregate(**(aggregates or {names.free("rows"): count()}))

    def _has_lists(self, stream: Stream, aggregates: Mapping[str, Aggregate | Expr]) -> bool:
        """Returns True if an aggregate of a GROUP BY without a window lists the values of rows that end. It has a row for
        each key at the end of the rows then: results after each batch would repeat the values of the batches before, in a
        time that grows with the square of the number of rows. Warns of that for rows without an end.
        """
        if not any(isinstance(each, Aggregate) and each.kind in _LISTS for each in aggregates.values()):
            return False
        if endless_read(node_of(stream)) is None:
            return True
        _log.warning(
            "ARRAY_AGG and LISTAGG without a window give all values of a key again whenever rows come; a window bounds them"
        )
        return False

    def _ttl_of_groups(self, stream: Stream, keys: Sequence[str]) -> str | None:
        """Returns the time after which a key of GROUP BY without rows starts anew, or None for never.

        Raises SqlFault if the hint STATE_TTL asks for it and the rows have no event time, or are updated. Warns if the
        keys of a stream without an end are kept for ever.
        """
        if not keys:
            return None
        if self._ttl is not None and stream.changes:
            raise SqlFault(
                self._select.hints[0].span,
                "STATE_TTL bounds a GROUP BY of rows that are only added, and these rows are updated",
                "give it to the query inside that updates them, or group by a window",
            )
        span = self._select.span if self._ttl is None else self._select.hints[0].span
        return self._ttl_of(stream, self._ttl, span, f"GROUP BY {', '.join(keys)}", "a row for each key")

    def _ttl_of(self, stream: Stream, hinted: str | None, span: Span, what: str, kept: str) -> str | None:
        """Returns the time that STATE_TTL (`hinted`) or the session gives the state of a clause, or None for no end.

        Raises SqlFault if STATE_TTL asks for it and the rows have no event time. Warns if the state of a stream without an
        end is kept for ever: `what` is the clause, `kept` what it keeps.
        """
        if hinted is not None:
            if not may_expire(stream):
                raise SqlFault(
                    span,
                    "STATE_TTL counts event time, and these rows have none",
                    "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND in CREATE TABLE",
                )
            return hinted
        ttl = self._context.state_ttl()
        if ttl is not None and may_expire(stream):
            return ttl
        name = next((each.qualifier for each in self._relation.fields if each.qualifier), "")
        instead = "a window bounds it: FROM TABLE(TUMBLE(…))"
        if may_expire(stream) and name:
            instead += f", or the hint /*+ STATE_TTL('{name}' = '1d') */"
        elif ttl is not None:
            instead = f"'table.exec.state.ttl' has no effect without an event time; {instead}"
        warn_of_growth(stream, what, kept, instead)
        return None

    # -- OVER and rankings --------------------------------------------------------------------------------------------

    def _over(self, relation: Relation, items: Sequence[Item]) -> tuple[Relation, dict[int, OutputColumn]]:
        """Adds the columns of OVER. A ranking becomes a `Ranking`, which an outer query bounds."""
        replaced: dict[int, OutputColumn] = {}
        for item in items:
            calls = [node for node in walk(item.expression) if isinstance(node, Call) and node.over is not None]
            if not calls:
                continue
            if calls != [item.expression]:
                relation, output = self._computed_of_over(relation, item.expression, calls)
                replaced[id(item.expression)] = output
                continue
            call = calls[0]
            window = self._window_of(call)
            partition, relation = columns_of(self._context, relation, window.partition)
            if call.name.text.upper() == "ROW_NUMBER" and (arrival := _arrival(relation, window.order)):
                _check_plain_call(call)
                replaced[id(item.expression)] = _ranked(
                    Ranking("", "row_number", partition, (), call.span, arrival, self._ttl)
                )
                continue
            order, relation = order_columns(self._context, relation, window.order)
            kind = _RANKINGS.get(call.name.text.upper())
            if kind is not None:
                _check_plain_call(call)
                if call.arguments or call.star:
                    raise SqlFault(call.span, f"{call.name.text} has no argument", f"{call.name.text}() OVER (…)")
                if window.frame is not None:
                    raise SqlFault(window.frame.span, f"{call.name.text} has no frame")
                ties = cast(Literal["row_number", "rank", "dense_rank"], kind)
                if not order:
                    hint = f"{call.name.text}() OVER (PARTITION BY key ORDER BY x)"
                    raise SqlFault(call.span, f"{call.name.text} needs ORDER BY", hint)
                time: Literal["event", ""] = "event" if _by_event_time(relation, order) else ""
                replaced[id(item.expression)] = _ranked(Ranking("", ties, partition, order, call.span, time, self._ttl))
                continue
            relation = self._running(relation, call, window, partition, order)
            made = relation.fields[-1]
            bound = TypedExpr(col(made.column), made.type)
            replaced[id(item.expression)] = OutputColumn("", bound, None, shown=made.shown)
        if sum(each.ranking is not None for each in replaced.values()) > 1:
            raise SqlFault(self._select.span, "two rankings in one SELECT", "write them in two queries")
        return relation, replaced

    def _computed_of_over(
        self, relation: Relation, tree: Expression, calls: Sequence[Call]
    ) -> tuple[Relation, OutputColumn]:
        """Returns an expression that has calls of OVER in it, such as x - LAG(x) OVER (…), and the rows with their columns."""
        columns: dict[int, Column] = {}
        for call in calls:
            if call.name.text.upper() in _RANKINGS:
                hint = f"SELECT … FROM (SELECT …, {call.name.text} … OVER (…) AS n FROM t) WHERE n <= 3"
                raise SqlFault(call.span, f"{call.name.text} … OVER stands in the select list by itself", hint)
            window = self._window_of(call)
            partition, relation = columns_of(self._context, relation, window.partition)
            order, relation = order_columns(self._context, relation, window.order)
            relation = self._running(relation, call, window, partition, order)
            name = StarName("", call.span, True, relation.fields[-1])
            columns[id(call)] = Column((name,), call.span)
        made = rebuilt(tree, lambda node: columns.get(id(node), node))
        binder = Binder(self._context, relation)
        bound = binder.bind(made)
        return relation, OutputColumn("", bound, None, shown=binder.shown_type(made, bound.type))

    def _window_of(self, call: Call) -> Window:
        return complete_window(cast(Window, call.over), self._select.windows)

    def _running(
        self,
        relation: Relation,
        call: Call,
        window: Window,
        partition: tuple[str, ...],
        order: tuple[tuple[str, bool], ...],
    ) -> Relation:
        """Adds a column of an aggregate, LAG or LEAD over the rows up to each row, in the order of event time."""
        name = call.name.text.upper()
        if name not in ("LAG", "LEAD", *_RANKINGS) and not functions.is_aggregate(name):
            hint = "there are the aggregates, LAG, LEAD, and ROW_NUMBER, RANK and DENSE_RANK"
            raise SqlFault(call.span, f"{name} is no function of OVER", hint)
        if not _by_event_time(relation, order):
            hint = f"{call.name.text}(…) OVER (… ORDER BY {hint_of_time(relation, ')')}"
            if not order:
                hint += f"; for all rows of a key: JOIN (SELECT key, {name}(…) AS x FROM t GROUP BY key)"
            raise SqlFault(call.span, f"{call.name.text} OVER needs ORDER BY the event time, ascending", hint)
        binder = Binder(self._context, relation)
        made: Any
        parts: list[Any] = []  # of AVG of whole numbers: their sum and their number
        if name in ("LAG", "LEAD"):
            _check_plain_call(call)
            if not 1 <= len(call.arguments) <= 3:
                raise SqlFault(call.span, f"{name} takes 1 to 3 arguments", f"{name}(x[, offset[, default]]) OVER (…)")
            if window.frame is not None:
                raise SqlFault(window.frame.span, f"{name} has no frame")
            value = binder.bind(call.arguments[0])
            with at(call.span):
                made = (lag if name == "LAG" else lead)(value.expr, *self._constants_of_lag(call, binder, value))
        elif functions.is_aggregate(name):
            if name != "LISTAGG":
                _check_arguments(call)
            argument = binder.bind(call.arguments[0]) if call.arguments else None
            predicate = None if call.filter is None else binder.predicate(call.filter)
            with at(call.span):
                made = functions.aggregate(call, argument, predicate, self._context.zone)
                if name == "AVG" and argument is not None and pa.types.is_integer(argument.type) and not call.distinct:
                    kinds = [replace(call, name=replace(call.name, text=kind)) for kind in ("SUM", "COUNT")]
                    mean_of = argument.type
                    parts = [functions.aggregate(each, argument, predicate, self._context.zone) for each in kinds]
            if isinstance(made, Expr) or name == "LISTAGG":
                what = "DISTINCT" if call.distinct else name
                raise SqlFault(call.span, f"{what} has no value after each row", f"{name} in GROUP BY of a window")
        else:
            made = _PLACES[_RANKINGS[name]]()
        preceding, peers = _preceding(window, self._context, relation)
        names = names_of(relation)
        columns = {names.free("over"): each for each in parts or [made]}
        with at(call.span):
            stream = keyed(relation.stream, partition).over(preceding=preceding, **columns)
            if peers and name not in ("LAG", "LEAD"):
                stream = steps_of(stream).then(replace(node_of(stream), peers=True))  # type: ignore[call-arg]
            schema = stream.schema
        bound = [TypedExpr(col(column), schema.field(column).type) for column in columns]
        (column, *_), value = columns, bound[0]
        if parts:
            column, value = names.free("over"), _mean(mean_of, *bound)
            with at(call.span):
                stream = stream.with_columns(**{column: value.expr}).drop(*columns)
        shown = None
        if call.arguments:
            node, type = call.arguments[0], binder.bind(call.arguments[0]).type
            shown = _shown_aggregate(value.type, type, binder.shown_type(node, type))
        fields = (*relation.fields, TableColumn("", column, column, value.type, shown=shown))
        return replace(relation, stream=stream, fields=fields)

    def _constants_of_lag(self, call: Call, binder: Binder, value: TypedExpr) -> Iterator[Any]:
        """Yields the arguments of LAG or LEAD behind the first one, which are constants. `value`: the first one."""
        name = call.name.text.upper()
        for i, node in enumerate(call.arguments[1:]):
            bound = binder.bind(node)
            wanted = pa.int64() if i == 0 else value.type
            constant = binder.constant_of_type(bound, wanted)
            if i == 0 and (constant is None or constant < 1):
                message = f"the second argument of {name} is a constant number of rows, 1 or more"
                raise SqlFault(node.span, message, f"{name}(x, 2) OVER (…)")
            if constant is None and not pa.types.is_null(bound.type):
                message = f"the default of {name} is a constant {sql_type(wanted)}"
                hint = f"COALESCE({name}(x) OVER (…), y), if x is never NULL" if bound.expr.columns else "write a CAST"
                raise SqlFault(node.span, message, hint)
            yield constant

    def ranked(self) -> tuple[Relation, Expression | None]:
        """Returns the rows of FROM with their ranking, and the condition of WHERE that bounds it, such as `n <= 3`; None for
        the condition if there is no ranking.
        """
        relation = self._relation
        ranking = relation.ranking
        if ranking is None:
            return relation, None
        found = [(each, self._bound_of(each, relation, ranking)) for each in self._where]
        bounds = [(*bound, each) for each, bound in found if bound is not None]
        if not bounds:
            return unbounded(relation, ranking), None
        bound, is_whole, condition = next((each for each in bounds if each[1]), bounds[0])
        bounding = condition if is_whole else None
        rank = ranking.column if self._uses(relation, ranking.column, bounding) else None
        by, descending = [name for name, _ in ranking.by], [down for _, down in ranking.by]
        windowed = None if ranking.time in ("first", "last") else self._rank_in_window(relation, ranking, bound, rank)
        if windowed is not None:
            return windowed, bounding
        ttl = self._ttl_of_first_rows(relation.stream, ranking, bound)
        with at(ranking.span):
            stream = relation.stream
            by_key = keyed(stream, ranking.partition)
            if ttl is not None or ranking.time in ("first", "last"):
                first = by_key.deduplicate(within=ttl) if ttl else self._one_by_arrival(stream, by_key, ranking, bound)
                stream = first.with_columns(**{rank: lit(1)}) if rank else first
            elif ranking.time == "event" and not stream.changes:
                place = rank or names_of(relation).free("place")
                numbered = _numbered(relation, replace(ranking, column=place)).stream
                stream = numbered.filter(col(place) <= lit(bound))
                stream = stream if rank else stream.drop(place)
            else:
                stream = by_key.top_n(bound, by=by, descending=descending, ties=ranking.ties, rank=rank)
        fields = tuple(each for each in relation.fields if rank or each.column != ranking.column)
        return replace(relation, stream=stream, fields=fields, ranking=None), bounding

    def _ttl_of_first_rows(self, stream: Stream, ranking: Ranking, bound: int) -> str | None:
        """Returns the event time after which a key has a first row again, or None for never. Raises and warns as `_ttl_of`
        does.
        """
        hinted = ranking.ttl or self._ttl
        one = bound == 1 and ranking.ties == "row_number" and ranking.time in ("event", "first") and not stream.changes
        if one:
            return self._ttl_of(stream, hinted, ranking.span, "ROW_NUMBER", "each key")
        if hinted is not None:
            _log.warning("STATE_TTL has no effect on a ranking, except on the first row of each key by event time")
        return None

    def _one_by_arrival(self, stream: Stream, by_key: KeyedStream, ranking: Ranking, bound: int) -> Stream:
        """Returns the first row of each key that arrives, which no later one changes, or the last one, kept up to date."""
        if bound != 1:
            hint = "WHERE n = 1; or ORDER BY the event time, or any column"
            raise SqlFault(ranking.span, "one row of each key is kept in the order of arrival", hint)
        if ranking.time == "first":
            return by_key.deduplicate()
        if not ranking.partition:
            raise SqlFault(ranking.span, "the last row to arrive needs PARTITION BY", "PARTITION BY the key")
        return stream.upsert(*ranking.partition)

    def _rank_in_window(self, relation: Relation, ranking: Ranking, bound: int, rank: str | None) -> Relation | None:
        """Returns the first rows of each window, if the ranking is partitioned by both bounds of a window.

        They come when the window closes, and no row is updated. Returns None for any other ranking.
        """
        edges = {
            each.window.edge: each
            for each in relation.fields
            if each.window is not None and each.window.edge != "time" and each.column in ranking.partition
        }
        if set(edges) != {"start", "end"} or relation.stream.changes:
            return None
        window = windows_again(cast(WindowEdge, edges["end"].window).window, ranking.span)
        columns = [each.column for each in edges.values()]
        taken = names_of(relation)
        renamed = {name: taken.free(f"row_{name}") for name in columns if name in ("window_start", "window_end")}
        keys = [name for name in ranking.partition if name not in columns]
        by, descending = [name for name, _ in ranking.by], [down for _, down in ranking.by]
        with at(ranking.span):
            stream = relation.stream.rename(renamed) if renamed else relation.stream
            stream = (
                keyed(stream, keys)
                .window(window)
                .top_n(
                    bound,
                    by=[renamed.get(name, name) for name in by],
                    descending=descending,
                    ties=ranking.ties,
                    rank=rank,
                )
            )
        fields = tuple(
            replace(each, column=renamed.get(each.column, each.column), shift_ms=None)
            for each in relation.fields
            if rank or each.column != ranking.column
        )
        return replace(relation, stream=stream, fields=fields, ranking=None)

    def _bound_of(self, condition: Expression, relation: Relation, ranking: Ranking) -> tuple[int, bool] | None:
        """Returns the greatest rank that a condition allows, and True if it allows all ranks up to it, so that nothing of it
        is left to check; None for a condition that does not bound the rank.
        """
        is_whole = True
        if isinstance(condition, Between) and not condition.negated:
            lower = condition.lower
            is_whole = isinstance(lower, Constant) and lower.kind == "integer" and int(lower.text) == 1
            condition = Binary("<=", condition.operand, condition.upper, condition.span)
        if not isinstance(condition, Binary):
            return None
        for side, other, operator in (
            (condition.left, condition.right, condition.operator),
            (condition.right, condition.left, mirrored(condition.operator) if condition.operator in _SIDES else ""),
        ):
            is_rank = isinstance(side, Column) and relation.find(side.parts)[0].column == ranking.column
            number = self._whole_number(other)
            if is_rank and number is not None:
                bound = {"<=": number, "<": number - 1, "=": number}.get(operator)
                if bound is not None and bound < 1:
                    raise SqlFault(condition.span, "ranks begin at 1, so no row has this one", "WHERE n <= 3, or n = 1")
                return None if bound is None else (bound, is_whole and (operator != "=" or number == 1))
        return None

    def _whole_number(self, node: Expression) -> int | None:
        """Returns the value of a constant or a parameter that is a whole number, or None for any other expression."""
        if isinstance(node, Constant) and node.kind == "integer":
            return int(node.text)
        value = self._context.parameters.get(node.name) if isinstance(node, Parameter) else None
        return value if is_whole(value, 0) else None

    def _uses(self, relation: Relation, column: str, bounding: Expression | None) -> bool:
        others = [each for each in self._where if each is not bounding]
        trees: list[Any] = [*self._select.items, *others, *self._select.group]
        trees += [self._select.having] if self._select.having is not None else []
        for tree in trees:
            for node in walk(tree):
                if isinstance(node, Star):
                    return True
                if isinstance(node, Column):
                    try:
                        if relation.find(node.parts)[0].column == column:
                            return True
                    except SqlFault:
                        continue
        return False


def columns_of(context: Context, relation: Relation, nodes: Sequence[Expression]) -> tuple[tuple[str, ...], Relation]:
    """Returns the columns of these expressions; one that is computed becomes a column of the rows first."""
    names = []
    for node in nodes:
        bound = Binder(context, relation).bind(node)
        column = bound.expr.column
        if column is None:
            column = names_of(relation).free("by")
            with at(node.span):
                stream = relation.stream.with_columns(**{column: bound.expr})
            relation = replace(relation, stream=stream)
        names.append(column)
    return tuple(names), relation


def order_columns(
    context: Context, relation: Relation, order: Sequence[Sort]
) -> tuple[tuple[tuple[str, bool], ...], Relation]:
    """Returns the columns of ORDER BY, as pairs of a column and True for the greatest first, and the rows with them."""
    by = []
    for sort in order:
        (name,), relation = columns_of(context, relation, [sort.expression])
        # NULL is the smallest value in Flink, and comes last in the engine
        nulls_first = not sort.descending if sort.nulls_first is None else sort.nulls_first
        has_nulls = not any(each.column == name and each.never_null for each in relation.fields)
        if nulls_first and has_nulls:
            present = names_of(relation).free(f"{name}_present")
            with at(sort.span):
                stream = relation.stream.with_columns(**{present: col(name).is_not_null().cast("int64")})
            relation = replace(relation, stream=stream)
            by.append((present, False))
        if sort.descending and pa.types.is_floating(relation.stream.schema.field(name).type):
            # NaN is the greatest number, and comes behind all others in the rankings of the engine
            number = names_of(relation).free(f"{name}_number")
            with at(sort.span):
                stream = relation.stream.with_columns(**{number: (~col(name).is_nan()).fill_null(True).cast("int64")})
            relation = replace(relation, stream=stream)
            by.append((number, False))
        by.append((name, sort.descending))
    return tuple(by), relation


def complete_window(window: Window, named: Sequence[tuple[Name, Window]]) -> Window:
    """Returns a window of OVER with what it takes from the window that it names. `named`: those of the clause WINDOW.

        OVER (w ROWS 2 PRECEDING) … WINDOW w AS (PARTITION BY k ORDER BY ts)
    as
        OVER (PARTITION BY k ORDER BY ts ROWS 2 PRECEDING)

    Raises SqlFault if there is no window of this name, or if the window says again what the other one says.
    """
    if window.base is None:
        return window
    found = [i for i, (name, _) in enumerate(named) if name.text.lower() == window.base.text.lower()]
    if not found:
        raise SqlFault(window.base.span, f"there is no window {window.base.text}", "WINDOW name AS (…)")
    base = complete_window(named[found[0]][1], named[: found[0]])  # a window names those before it
    again = "PARTITION BY" if window.partition else "ORDER BY" if window.order and base.order else ""
    if again or (base.frame is not None and (window.order or window.frame is not None)):
        raise SqlFault(
            window.span,
            f"a window that names {window.base.text} cannot change its {again or 'frame'}",
            "write PARTITION BY, ORDER BY and the frame in one place",
        )
    return replace(base, order=base.order or window.order, frame=base.frame or window.frame, span=window.span)


def unbounded(relation: Relation, ranking: Ranking) -> Relation:
    """Returns the rows with their places, where no condition bounds these. Raises SqlFault if later rows change them."""
    if ranking.time != "event" or relation.stream.changes:
        raise SqlFault(
            ranking.span,
            "a ranking needs a bound, unless it is by the event time, ascending",
            "SELECT * FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3",
        )
    with at(ranking.span):
        return _numbered(relation, ranking)


def _numbered(relation: Relation, ranking: Ranking) -> Relation:
    """Returns the rows with their places by event time. No later row changes the place of a row that event time has passed."""
    rows = keyed(relation.stream, ranking.partition)
    numbered = rows.over(preceding=None, **{ranking.column: _PLACES[ranking.ties]()})
    return replace(relation, stream=numbered, ranking=None)


def keyed(stream: Stream, keys: Sequence[str] = ()) -> KeyedStream:
    """Returns the stream by these keys; without keys, all rows have one, in a column of a free name."""
    if keys:
        return stream.key_by(*keys)
    return stream.key_by(**{Names(set(node_of(stream).column_names or ())).free("every"): lit(0)})


def _arrival(relation: Relation, order: Sequence[Sort]) -> Literal["", "first", "last"]:
    """Returns "first" or "last" if rows are ordered by the time of processing alone, ascending or descending; else ""."""
    if len(order) != 1:
        return ""
    node = order[0].expression
    if not is_clock(node) and not (isinstance(node, Column) and relation.find(node.parts)[0].clock):
        return ""
    return "last" if order[0].descending else "first"


def _ranked(ranking: Ranking, name: str = "") -> OutputColumn:
    return OutputColumn(name, TypedExpr(lit(None, "int64"), pa.int64()), None, ranking=ranking)


def _by_event_time(relation: Relation, order: Sequence[tuple[str, bool]]) -> bool:
    """Returns True if rows are ordered by the event time alone, ascending."""
    if len(order) != 1 or order[0][1]:
        return False
    return any(each.column == order[0][0] and each.shift_ms is not None for each in relation.fields)


def _is_bound(relation: Relation, output: OutputColumn) -> bool:
    """Returns True for a bound of a window table's windows, which the rows do not have yet."""
    edge = None if output.passed is None else output.passed.window
    return edge is not None and edge.window is relation.window


_SIDES = ("=", "<", "<=", ">", ">=", "<>")


def is_aggregate(node: Any) -> bool:
    """Returns True for a call of an aggregate without OVER."""
    return isinstance(node, Call) and node.over is None and functions.is_aggregate(node.name.text.upper())


def check_no_aggregate(condition: Expression) -> None:
    """Raises SqlFault if a condition of WHERE has an aggregate."""
    found = next((node for node in walk(condition) if is_aggregate(node)), None)
    if found is not None:
        message = f"the aggregate {found.name.text.upper()} has no value in a single row"
        raise SqlFault(found.span, message, "HAVING, behind GROUP BY, takes conditions on aggregates")


def _shown_aggregate(type: pa.DataType, argument: pa.DataType, shown: pa.DataType | None) -> pa.DataType | None:
    """Returns the type in SQL of an aggregate (`TableColumn.shown`): that of its argument for MAX and its kin, and a list of
    them for ARRAY_AGG. `type`, `argument`: the types of both in the engine. `shown`: that of the argument in SQL.
    """
    if shown is None:
        return None
    return shown if type == argument else pa.list_(shown) if type == pa.list_(argument) else None


def _mean(type: pa.DataType, total: TypedExpr, number: TypedExpr) -> TypedExpr:
    """Returns AVG of whole numbers of a type, which is one too: cut off towards zero, and NULL without a number."""
    quotient = functions.divided("/", total, number)
    made = when(number.expr > 0).then(quotient).otherwise(lit(None))
    return TypedExpr(made if type.bit_width == 64 else made.cast(type, strict=False), type)


def _as_argument(value: TypedExpr, type: pa.DataType | None) -> TypedExpr:
    """Returns SUM or AVG of a FLOAT as a FLOAT; any other aggregate, whose `type` is None, unchanged."""
    return value if type is None else TypedExpr(value.expr.cast(type), type)


def _check_arguments(call: Call) -> None:
    """Raises SqlFault unless an aggregate has as many arguments as it takes, or is COUNT(*)."""
    name = call.name.text.upper()
    wanted = 0 if call.star else 2 if name == "PERCENTILE" else 1
    if len(call.arguments) == wanted and (not call.star or name == "COUNT"):
        return
    hints = {"MIN": "LEAST(x, y)", "MAX": "GREATEST(x, y)"}
    hints["COUNT"] = "SELECT COUNT(*) FROM (SELECT DISTINCT a, b FROM t)" if call.distinct else "COUNT(*)"
    hints["LISTAGG"] = "LISTAGG(text[, separator])"
    hints["PERCENTILE"] = "PERCENTILE(x, 0.5)"
    number = "two arguments" if name == "PERCENTILE" else "one argument"
    message = f"{name} takes {number}" + (", or *" if name == "COUNT" else "")
    raise SqlFault(call.span, message, hints.get(name, f"{name}(x)"))


def has_aggregate(items: Sequence[Item]) -> bool:
    """Returns True if an entry of a select list has an aggregate."""
    return any(is_aggregate(node) for item in items for node in walk(item))


def _own_name(node: Expression) -> str:
    return node.parts[-1].text if isinstance(node, Column) else ""


def _preceding(window: Window, context: Context, relation: Relation) -> tuple[Any, bool]:
    """Returns the rows or the time before each row that a frame has, None for all earlier rows, and True if the frame has
    all rows of equal time too. Without a frame it is that of RANGE UNBOUNDED PRECEDING, as in Flink and in standard SQL.
    """
    frame = window.frame
    if frame is None:
        return None, True
    if frame.end.kind != "CURRENT ROW" or frame.start.kind == "FOLLOWING":
        raise SqlFault(frame.span, "a frame ends at CURRENT ROW", "ROWS BETWEEN 5 PRECEDING AND CURRENT ROW")
    if frame.start.amount is None:
        if frame.start.kind == "PRECEDING":
            return None, frame.unit == "RANGE"
        return (0 if frame.unit == "ROWS" else datetime.timedelta(0)), False
    bound = Binder(context, relation).bind(frame.start.amount)
    if bound.expr.kind != "lit":
        raise SqlFault(frame.start.span, "the length of a frame is a constant")
    value = bound.expr.option("value")
    if frame.unit == "ROWS" and not isinstance(value, int):
        raise SqlFault(
            frame.start.span, "ROWS counts rows", "RANGE BETWEEN INTERVAL '1' HOUR PRECEDING AND CURRENT ROW"
        )
    if frame.unit == "RANGE" and not isinstance(value, datetime.timedelta):
        raise SqlFault(frame.start.span, "RANGE has an interval", "ROWS BETWEEN 5 PRECEDING AND CURRENT ROW")
    return value, False


def _check_plain_call(call: Call) -> None:
    """Raises SqlFault if a function of OVER that is no aggregate has a clause of one."""
    if call.distinct or call.filter is not None or call.order:
        name = call.name.text.upper()
        hint = "WHERE in a query inside, which leaves the other rows out"
        raise SqlFault(call.span, f"{name} is no aggregate: no DISTINCT, FILTER or WITHIN GROUP", hint)


class _WindowUse:
    """The window of a GROUP BY: of a window table, of TUMBLE(…) in GROUP BY, or of rows that a window has made."""

    def __init__(self, relation: Relation, zone: str, groups: Span) -> None:
        self._zone = zone
        self._groups = groups  # the place of GROUP BY
        self.window: TimeWindow | None = None
        self.keys: list[str] = []
        self._span: Span | None = None
        self._again: TimeWindow | None = None  # the window of the rows below, grouped once more
        self._edges: dict[str, str] = {}  # of the rows below: "start" and "end", to their column
        self._shown: dict[str, pa.DataType | None] = {}  # their types in SQL, as in TableColumn
        self._calls: dict[str, Call] = {}
        self._renamed: dict[str, str] = {}
        self._seen: set[str] = set()
        self._table = relation.window
        self._time: TypedExpr | None = None

    def takes(self, node: Expression, relation: Relation) -> bool:
        """Returns True if an expression of GROUP BY is part of the window, and not a key."""
        if isinstance(node, Call) and node.name.text.upper() in GROUP_WINDOWS:
            if self.window is not None:
                raise SqlFault(node.span, "a GROUP BY has one window")
            self.window = group_window(node, relation, self._zone)
            self._calls["window"] = node
            return True
        if not isinstance(node, Column):
            return False
        field, further = relation.find(node.parts)
        if further or field.window is None or (field.window.edge == "time" and self._table is None):
            return False
        self._span = node.span
        self._seen.add(field.window.edge)
        if self._table is not None:
            self.window = self._table
            return True
        self._again = field.window.window
        self._edges[field.window.edge] = field.column
        self._shown[field.window.edge] = field.shown
        return True

    def prepared(self, stream: Stream) -> Stream:
        """Returns the rows for the window, and sets `window` and `keys`."""
        if self._table is not None and self.window is None:
            hint = "GROUP BY …, window_start, window_end"
            raise SqlFault(self._span or self._groups, "GROUP BY needs window_start and window_end", hint)
        if self._table is not None and self._seen - {"time"} != {"start", "end"}:
            hint = "GROUP BY window_start, window_end"
            raise SqlFault(cast(Span, self._span), "GROUP BY needs both window_start and window_end", hint)
        if self._again is None:
            return stream
        if set(self._edges) != {"start", "end"}:
            raise SqlFault(cast(Span, self._span), "GROUP BY needs both the start and the end of the window")
        self.window = windows_again(self._again, cast(Span, self._span))
        taken = Names(set(node_of(stream).column_names or ()))
        for edge, column in self._edges.items():
            if column in ("window_start", "window_end"):
                self._renamed[column] = taken.free(f"row_{column}")
                self._edges[edge] = self._renamed[column]
        self.keys = list(self._edges.values())
        return stream.rename(self._renamed) if self._renamed else stream

    def shown(self, stream: Stream, relation: Relation) -> Stream:
        """Returns the results of the window with bounds of the type that its event time has in this session."""
        if self.window is None or self._again is not None:
            return stream
        type = bounds_type(relation, self.window.time, self._zone)
        if is_local(type):
            return stream
        return stream.with_columns(**{name: col(name).cast(type) for name in ("window_start", "window_end")})

    def shown_types(self, relation: Relation) -> dict[str, pa.DataType | None]:
        """Returns the types in SQL (`TableColumn.shown`) of the columns that have the bounds of the window."""
        if self._again is not None:
            return {column: self._shown[edge] for edge, column in self._edges.items()}
        type = None if self.window is None else shown_bounds(relation, self.window.time, self._zone)
        return dict.fromkeys(("window_start", "window_end"), type) if type is not None else {}

    def replaced(
        self, relation: Relation, schema: pa.Schema, items: Sequence[Item], having: Expression | None
    ) -> dict[Any, TypedExpr]:
        """Returns the columns that stand for the bounds of the window, by the expressions that name them."""
        found: dict[Any, TypedExpr] = {}
        if self.window is None:
            return found
        if self._again is not None:
            for field in relation.fields:
                if field.window is not None and field.window.edge in self._edges:
                    column = self._edges[field.window.edge]
                    found["column", field.column] = TypedExpr(col(column), schema.field(column).type)
            return found
        bounds = {name: TypedExpr(col(name), schema.field(name).type) for name in ("window_start", "window_end")}
        self._time = TypedExpr(col("window_end") - lit(datetime.timedelta(milliseconds=1)), bounds["window_end"].type)
        for name, bound in (*bounds.items(), ("window_time", self._time)):
            found["column", name] = bound
        trees = [item.expression for item in items] + ([having] if having is not None else [])
        for tree in trees:
            for node in walk(tree):
                if isinstance(node, Call) and node.name.text.upper() in EDGES:
                    edge = self._edge_call(node, relation)
                    found[key_of(node, relation)] = bounds[edge]
        return found

    def _edge_call(self, node: Call, relation: Relation) -> str:
        kind, edge = EDGES[node.name.text.upper()]
        window = self._calls.get("window")
        mine = None if window is None else replace(window, name=node.name)
        if window is None or window.name.text.upper() != kind or key_of(mine, relation) != key_of(node, relation):
            raise SqlFault(node.span, f"{node.name.text} needs the same {kind}(…) in GROUP BY")
        return edge

    def field_of(self, bound: TypedExpr) -> TableColumn | None:
        """Returns a field with the role of a window's bound, for a column that has it unchanged."""
        if bound is self._time and self.window is not None:
            edge = WindowEdge("time", self.window)
            return TableColumn("", "window_time", "window_time", bound.type, 0, edge, never_null=True)
        column = bound.expr.column
        if column is None or self.window is None:
            return None
        window = self._again or self.window
        edges: dict[str, Literal["start", "end"]] = {"window_start": "start", "window_end": "end"}
        if self._again is not None:
            edges = {column: cast(Literal["start", "end"], edge) for edge, column in self._edges.items()}
        if column not in edges:
            return None
        shift = 1 if edges[column] == "end" else None
        edge = WindowEdge(edges[column], window)
        return TableColumn("", column, column, bound.type, shift, edge, never_null=True)
