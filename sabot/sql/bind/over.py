"""OVER: aggregates, LAG and LEAD up to each row, and rankings."""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.api.over import lag, lead, row_number
from sabot.sql import functions
from sabot.sql.bind.rankings import PLACES, keyed
from sabot.sql.bind.select_list import OutputColumn, ranked_output
from sabot.sql.moments import ordered_by_clock
from sabot.sql.scope import (
    Ranking,
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    at,
    hint_of_time,
    is_clock,
    names_of,
    node_of,
    steps_of,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Call, Column, Expression, Item, Name, SelectBody, Sort, Window
from sabot.sql.types import sql_type
from sabot.sql.values import Binder, Context, key_of, rebuilt, walk

_RANKINGS = {"ROW_NUMBER": "row_number", "RANK": "rank", "DENSE_RANK": "dense_rank"}


class OverBinder:
    """The binder of the calls with OVER in a select list. `ttl`: the time of the hint STATE_TTL, or None."""

    def __init__(self, context: Context, select: SelectBody, ttl: str | None) -> None:
        self._context = context
        self._select = select
        self._ttl = ttl

    def bind(self, relation: Relation, items: Sequence[Item]) -> tuple[Relation, dict[int, OutputColumn]]:
        """Returns the rows with the columns of OVER, and the output columns by the id of their tree. A ranking becomes a `Ranking`,
        which an outer query bounds.
        """
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
                replaced[id(item.expression)] = ranked_output(
                    Ranking("", "row_number", partition, (), call.span, arrival, self._ttl)
                )
                continue
            relation = ordered_by_clock(self._context, relation, window.order)
            order, relation = order_columns(self._context, relation, window.order)
            kind = _RANKINGS.get(call.name.text.upper())
            if kind is not None:
                self._note_keys(relation, items, window, partition, replaced)
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
                replaced[id(item.expression)] = ranked_output(
                    Ranking("", ties, partition, order, call.span, time, self._ttl)
                )
                continue
            relation = self._running(relation, call, window, partition, order)
            made = relation.fields[-1]
            bound = TypedExpr(col(made.column), made.type)
            replaced[id(item.expression)] = OutputColumn("", bound, None, shown=made.shown)
        if sum(each.ranking is not None for each in replaced.values()) > 1:
            raise SqlFault(self._select.span, "two rankings in one SELECT", "write them in two queries")
        return relation, replaced

    def _note_keys(
        self,
        relation: Relation,
        items: Sequence[Item],
        window: Window,
        partition: Sequence[str],
        replaced: dict[int, OutputColumn],
    ) -> None:
        """Lets entries of the select list that are computed as a key of a ranking is be this key, so that queries outside know it."""
        keys = {key_of(node, relation): name for node, name in zip(window.partition, partition, strict=True)}
        binder = Binder(self._context, relation)
        for item in items:
            node = item.expression
            if not isinstance(node, Column) and (name := keys.get(key_of(node, relation))) is not None:
                type = binder.bind(node).type
                shown = binder.shown_type(node, type)
                replaced[id(node)] = OutputColumn("", TypedExpr(col(name), type), None, shown=shown)

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
            relation = ordered_by_clock(self._context, relation, window.order)
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
                functions.check_arguments(call)
            first = None
            if call.distinct and name in functions.FIRST_ONES:
                relation, first = self._first_of_each(relation, call, window, partition)
                call, binder = replace(call, distinct=False), Binder(self._context, relation)
            argument = functions.argument_of(call, binder.bind, self._context.zone)
            predicate = None if call.filter is None else binder.predicate(call.filter)
            if first is not None:
                predicate = first if predicate is None else predicate & first
            with at(call.span):
                made = functions.aggregate(call, argument, predicate, self._context.zone)
                if name == "AVG" and argument is not None and pa.types.is_integer(argument.type) and not call.distinct:
                    kinds = [replace(call, name=replace(call.name, text=kind)) for kind in ("SUM", "COUNT")]
                    mean_of = argument.type
                    parts = [functions.aggregate(each, argument, predicate, self._context.zone) for each in kinds]
            if isinstance(made, Expr) or name in functions.LISTED:
                what = "DISTINCT" if call.distinct else name
                raise SqlFault(call.span, f"{what} has no value after each row", f"{name} in GROUP BY of a window")
        else:
            made = PLACES[_RANKINGS[name]]()
        preceding, peers = _preceding(window, self._context, relation)
        by_clock = relation.calls.get("order")
        # in the order of arrival, as in Flink
        peers = peers and (by_clock is None or order[0][0] != by_clock.expr.column)
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
            column, value = names.free("over"), functions.mean_of(mean_of, *bound)
            with at(call.span):
                stream = stream.with_columns(**{column: value.expr}).drop(*columns)
        shown = None
        if call.arguments:
            node, type = call.arguments[0], Binder(self._context, relation).bind(call.arguments[0]).type
            shown = functions.shown_aggregate(value.type, type, binder.shown_type(node, type))
        fields = (*relation.fields, TableColumn("", column, column, value.type, shown=shown))
        return replace(relation, stream=stream, fields=fields)

    def _first_of_each(
        self, relation: Relation, call: Call, window: Window, partition: tuple[str, ...]
    ) -> tuple[Relation, Expr]:
        """Returns the rows with a column of the number of each row among those of its key with the same arguments, and the
        condition that a row is the first of them. The aggregate of these rows is that of the different values.

            COUNT(DISTINCT x) OVER (PARTITION BY k ORDER BY ts)
        as
            COUNT(x) FILTER (WHERE n = 1) OVER (PARTITION BY k ORDER BY ts), where
            n is ROW_NUMBER() OVER (PARTITION BY k, x ORDER BY ts)
        """
        if _preceding(window, self._context, relation)[0] is not None:
            hint = "ROWS UNBOUNDED PRECEDING, or GROUP BY of a window"
            raise SqlFault(call.span, "DISTINCT of a frame with a begin has no value after each row", hint)
        counted = [*call.arguments] if call.filter is None else [*call.arguments, call.filter]
        columns, relation = columns_of(self._context, relation, counted)
        place = names_of(relation).free("place")
        with at(call.span):
            stream = keyed(relation.stream, (*partition, *columns)).over(**{place: row_number()})
        return replace(relation, stream=stream), col(place) == 1

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


def columns_of(context: Context, relation: Relation, nodes: Sequence[Expression]) -> tuple[tuple[str, ...], Relation]:
    """Returns the columns of these expressions; one that is computed becomes a column of the rows first."""
    names = []
    for node in nodes:
        column, _, relation = _column_of(context, relation, node)
        names.append(column)
    return tuple(names), relation


def _column_of(context: Context, relation: Relation, node: Expression) -> tuple[str, pa.DataType, Relation]:
    """Returns the column of an expression, its type, and the rows with it."""
    bound = Binder(context, relation).bind(node)
    column = bound.expr.column
    if column is None:
        column = names_of(relation).free("by")
        with at(node.span):
            stream = relation.stream.with_columns(**{column: bound.expr})
        relation = replace(relation, stream=stream)
    return column, bound.type, relation


def order_columns(
    context: Context, relation: Relation, order: Sequence[Sort]
) -> tuple[tuple[tuple[str, bool], ...], Relation]:
    """Returns the columns of ORDER BY, as pairs of a column and True for the greatest first, and the rows with them."""
    by = []
    for sort in order:
        name, type, relation = _column_of(context, relation, sort.expression)
        # NULL is the smallest value in Flink, and comes last in the engine
        nulls_first = not sort.descending if sort.nulls_first is None else sort.nulls_first
        has_nulls = not any(each.column == name and each.never_null for each in relation.fields)
        if nulls_first and has_nulls:
            present = names_of(relation).free(f"{name}_present")
            with at(sort.span):
                stream = relation.stream.with_columns(**{present: col(name).is_not_null().cast("int64")})
            relation = replace(relation, stream=stream)
            by.append((present, False))
        if sort.descending and pa.types.is_floating(type):
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


def _arrival(relation: Relation, order: Sequence[Sort]) -> Literal["", "first", "last"]:
    """Returns "first" or "last" if rows are ordered by the time of processing alone, ascending or descending; else ""."""
    if len(order) != 1:
        return ""
    node = order[0].expression
    if not is_clock(node) and not (isinstance(node, Column) and relation.find(node.parts)[0].clock):
        return ""
    return "last" if order[0].descending else "first"


def _by_event_time(relation: Relation, order: Sequence[tuple[str, bool]]) -> bool:
    """Returns True if rows are ordered by the event time alone, ascending."""
    if len(order) != 1 or order[0][1]:
        return False
    return any(each.column == order[0][0] and each.shift_ms is not None for each in relation.fields)


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
