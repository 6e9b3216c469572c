"""GROUP BY: keys, windows, aggregates, HAVING."""

import datetime
import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal, cast

import pyarrow as pa

from sabot.api.aggregates import Aggregate, count
from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.api.windows import SessionWindow, count_window
from sabot.api.words import ALL_ROWS
from sabot.sql import functions
from sabot.sql.bind.select_list import OutputColumn, condition_of, own_name
from sabot.sql.bind.windows import (
    EDGES,
    GROUP_WINDOWS,
    bounds_type,
    check_sessions,
    group_window,
    shown_bounds,
    windows_again,
)
from sabot.sql.moments import check_no_moment
from sabot.sql.scope import (
    Names,
    Relation,
    TableColumn,
    TimeWindow,
    TypedExpr,
    WindowEdge,
    at,
    names_of,
    node_of,
    ttl_of,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import Call, Column, Constant, Expression, Item, SelectBody, Sort
from sabot.sql.values import Binder, Context, constant_text, key_of, walk
from sabot.sql.zones import is_local

_log = logging.getLogger(__name__)

_LISTS = ("collect_list", "collect_set")
AT_THE_END = count_window(ALL_ROWS)
"""The window of all rows of a key, which only the end of the input closes."""


class GroupBinder:
    """The binder of GROUP BY and HAVING, and of the aggregates of a select list. `ttl`: the time of the hint STATE_TTL, or
    None.
    """

    def __init__(self, context: Context, select: SelectBody, relation: Relation, ttl: str | None) -> None:
        """`relation`: the rows of FROM."""
        self._context = context
        self._select = select
        self._relation = relation
        self._ttl = ttl
        self._floats: dict[Any, pa.DataType] = {}
        self._lists: dict[Any, tuple[str, bool | Sequence[Sort] | None]] = {}
        """The separator of each LISTAGG and its order (`_order_of_list`), by `key_of` of the call."""
        self._listed: dict[Any, Call] = {}
        """The calls of other aggregates that list values, by `key_of`."""
        self._arguments: dict[str, tuple[pa.DataType, pa.DataType]] = {}
        """The types, in the engine and in SQL, of arguments of aggregates that have two, by the aggregate's column."""

    def bind(self, relation: Relation, items: Sequence[Item]) -> tuple[Relation, list[OutputColumn]]:
        """Returns the rows of the groups, and the columns that come out of them. `items`: the entries of the select list."""
        select = self._select
        binder = Binder(self._context, relation)
        replaced: dict[Any, TypedExpr] = {}
        keys: dict[str, Expr] = {}
        place = select.group[-1].span if select.group else select.items[0].span
        window = _WindowUse(relation, self._context.zone, place)
        before, names = names_of(relation), Names()
        aliases = {
            key_of(item.expression, relation): item.alias.text
            for item in items
            if item.alias and not has_aggregate([item])
        }
        pending: list[tuple[Any, str]] = []  # keys whose type is known once the stream is made
        shown: dict[str, pa.DataType | None] = {}  # as in TableColumn, by the column of the result
        groups = list(resolved_groups(select, relation, items))
        if isinstance(relation.window, SessionWindow):
            check_sessions(groups, relation, self._select.span)
        for node in groups:
            if window.takes(node, relation):
                continue
            if relation.window is not None and has_bounds([node], relation):
                message = "a key of a window's GROUP BY is not computed from its bounds"
                raise SqlFault(node.span, message, "GROUP BY window_start, window_end, and compute in the select list")
            check_no_moment(node, "key of a GROUP BY")
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
        with at(select.span):
            schema = stream.schema
        left_out = self._left_out(binder, relation, items, groups)
        for key, bound in left_out.items():
            replaced[key] = TypedExpr(lit(None).cast(bound.type), bound.type)
        kept = {key_of(node, relation) for node in groups}
        for call in [node for tree in trees for node in walk(tree) if is_grouping(node)]:
            replaced[key_of(call, relation)] = _grouping(call, relation, kept, left_out)
        for key, name in pending:
            replaced[key] = TypedExpr(col(name), schema.field(name).type)
        for key, name in known.items():
            replaced[key] = functions.as_argument(TypedExpr(col(name), schema.field(name).type), self._floats.get(key))
            if key in self._listed:
                replaced[key] = functions.finished(self._listed[key], replaced[key])
            if key in self._lists:
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
            replaced[key] = functions.mean_of(type, *(TypedExpr(col(each), pa.int64()) for each in (total, number)))
        replaced |= window.replaced(relation, schema, items, select.having)
        for name, types in self._arguments.items():
            shown[name] = functions.shown_aggregate(schema.field(name).type, *types)
        shown |= window.shown_types(relation)
        grouped = Relation(
            stream,
            tuple(TableColumn("", each.name, each.name, each.type, shown=shown.get(each.name)) for each in schema),
        )
        after = Binder(self._context, grouped, replaced, relation)
        if select.having is not None:
            predicate = condition_of(select, after, select.having, "HAVING")
            with at(select.having.span):
                grouped = replace(grouped, stream=grouped.stream.filter(predicate))
        outputs = []
        for item in items:
            bound = after.bind(item.expression)
            name = item.alias.text if item.alias is not None else own_name(item.expression)
            type, field = after.shown_type(item.expression, bound.type), window.field_of(bound)
            passed = None if field is None else replace(field, shown=type)
            outputs.append(OutputColumn(name, bound, passed, shown=type))
        return grouped, outputs

    def _left_out(
        self, binder: Binder, relation: Relation, items: Sequence[Item], groups: Sequence[Expression]
    ) -> dict[Any, TypedExpr]:
        """Returns the expressions of other grouping sets than this one, which are NULL in its rows, by `key_of`."""
        found: dict[Any, TypedExpr] = {}
        if not self._select.sets:
            return found
        kept = {key_of(node, relation) for node in groups}
        for node in resolved_groups(replace(self._select, sets=()), relation, items):
            key = key_of(node, relation)
            window = isinstance(node, Call) and node.name.text.upper() in GROUP_WINDOWS
            if key not in kept and not window and not has_bounds([node], relation):
                found[key] = binder.bind(node)
        return found

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
        functions.check_arguments(call)
        argument = functions.argument_of(call, binder.bind, self._context.zone)
        predicate = None if call.filter is None else binder.predicate(call.filter)
        if name in functions.LISTED and name != "LISTAGG":
            self._listed[key] = call
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
        shown = (
            None if argument is None or len(call.arguments) > 1 else binder.shown_type(call.arguments[0], argument.type)
        )
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
        session, what = self._context.state_ttl(), f"GROUP BY {', '.join(keys)}"
        return ttl_of(self._relation, stream, self._ttl, session, span, what, "a row for each key")


def resolved_groups(select: SelectBody, relation: Relation, items: Sequence[Item]) -> Iterator[Expression]:
    """Yields the expressions of GROUP BY, or of the grouping set that is being bound; an alias of the select list and a
    position stand for their expression.
    """
    for node in select.sets[0] if select.sets else select.group:
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


def has_bounds(trees: Sequence[Any], relation: Relation) -> bool:
    """Returns True if trees name a bound of a window table's windows."""
    columns = [node for tree in trees for node in walk(tree) if isinstance(node, Column)]
    return any(relation.find(node.parts)[0].window is not None for node in columns)


def is_aggregate(node: Any) -> bool:
    """Returns True for a call of an aggregate without OVER."""
    return isinstance(node, Call) and node.over is None and functions.is_aggregate(node.name.text.upper())


def is_grouping(node: Any) -> bool:
    """Returns True for a call of GROUPING or GROUPING_ID."""
    return isinstance(node, Call) and node.name.text.upper() in ("GROUPING", "GROUPING_ID")


def _grouping(call: Call, relation: Relation, kept: Set[Any], left_out: Mapping[Any, Any]) -> TypedExpr:
    """Returns GROUPING(a, b, …): a number whose bits, the last one for the last argument, are 1 for what this set leaves out."""
    bits = 0
    for node in call.arguments:
        key = key_of(node, relation)
        if key not in kept and key not in left_out:
            raise SqlFault(
                node.span,
                f"GROUP BY does not have this argument of {call.name.text.upper()}",
                "GROUP BY CUBE (a, b): GROUPING(a)",
            )
        bits = 2 * bits + (key in left_out)
    if not call.arguments:
        raise SqlFault(call.span, f"{call.name.text.upper()} takes expressions of GROUP BY", "GROUPING(a)")
    return TypedExpr(lit(bits).cast(pa.int64()), pa.int64())


def check_no_aggregate(condition: Expression) -> None:
    """Raises SqlFault if a condition of WHERE has an aggregate."""
    found = next((node for node in walk(condition) if is_aggregate(node)), None)
    if found is not None:
        message = f"the aggregate {found.name.text.upper()} has no value in a single row"
        raise SqlFault(found.span, message, "HAVING, behind GROUP BY, takes conditions on aggregates")


def has_aggregate(items: Sequence[Item]) -> bool:
    """Returns True if an entry of a select list has an aggregate."""
    return any(is_aggregate(node) for item in items for node in walk(item))


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
        bounds["window_time"] = self._time
        for name, bound in bounds.items():
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
