"""The binder of queries: WITH, UNION, and the tables and joins of FROM."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Literal

import pyarrow as pa

from sabot.api.aggregates import sum
from sabot.api.expr import Expr, col, lit, min_horizontal, when
from sabot.api.nodes.changes import SortRows
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.api.windows import CalendarWindow, ClockWindow, HoppingWindow, TumblingWindow
from sabot.base.checks import is_whole
from sabot.base.config import parse_ms
from sabot.sql.bind.groups import has_aggregate, is_aggregate
from sabot.sql.bind.joins import JoinBinder, beside_bounds, common_window, same_type
from sabot.sql.bind.over import columns_of, complete_window, order_columns
from sabot.sql.bind.patterns import bind_match
from sabot.sql.bind.rankings import RankingBinder, keyed
from sabot.sql.bind.select import SelectBinder
from sabot.sql.bind.subqueries import check_one_row, with_value, with_values_of_no_rows, without_partners
from sabot.sql.bind.windows import TABLE_WINDOWS, form_of, opened, positional, table_window
from sabot.sql.functions import is_known
from sabot.sql.moments import with_clocks
from sabot.sql.registered import RegisteredModel, predicted, with_calls
from sabot.sql.scope import (
    Names,
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    at,
    is_clock,
    names_of,
    node_of,
    part_of_statement,
    steps_of,
    warn_of_growth,
)
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import (
    Alias,
    Binary,
    Body,
    Call,
    Column,
    Constant,
    Derived,
    Descriptor,
    Exists,
    Expression,
    Hint,
    In,
    Item,
    Items,
    JoinSource,
    MatchRecognize,
    ModelArgument,
    Name,
    Parameter,
    Query,
    SelectBody,
    SetOperation,
    Sort,
    Source,
    Star,
    Subquery,
    TableArgument,
    TableFunction,
    TableName,
    Unary,
    ValuesBody,
    Window,
)
from sabot.sql.types import common_type, sql_type
from sabot.sql.values import Binder, Context, alike, conjuncts, rebuilt, walk

_log = logging.getLogger(__name__)

_WAYS_TO_JOIN = ("BROADCAST", "SHUFFLE_HASH", "SHUFFLE_MERGE", "NEST_LOOP", "LOOKUP", "MULTI_JOIN")

Lookup = Callable[[tuple[Name, ...], Hint | None], Relation]
"""A function that returns the table or view of a name, read with the options of the hint OPTIONS if there is one; raises
SqlFault if there is none.
"""


_SEMI_JOINED = "a JOIN with bounds of time (BETWEEN) keeps the rows within them"


class QueryBinder:
    """Binds queries. `lookup`: the tables that they may read."""

    def __init__(self, context: Context, lookup: Lookup, ttl: Mapping[str, str] | None = None) -> None:
        self._context = context
        self._lookup = lookup
        self._ttl = ttl or {}  # of STATE_TTL, by the alias of a table in lower case

    def query(self, query: Query, *, waits: bool = False) -> Relation:
        """Returns the rows of a query. `waits`: True if the rows of a window table may wait for an outer GROUP BY."""
        binder = self._with(query) if query.tables else self
        added = 0
        if query.order and isinstance(query.body, SelectBody):
            query, added = _with_columns_of_order(query, query.body)
        waits = waits and query.limit is None and not query.order
        relation = (
            binder._select(query.body, waits=waits) if isinstance(query.body, SelectBody) else binder._body(query.body)
        )
        if query.offset is not None and not (query.order and query.limit is not None):
            raise SqlFault(query.offset.span, "OFFSET needs ORDER BY and LIMIT", "ORDER BY x LIMIT 10 OFFSET 20")
        if query.order:
            return self._ordered(query, relation, added)
        if query.limit is None:
            return relation
        stream, number = relation.stream, self._limit(query.limit)
        if stream.changes and endless_read(node_of(stream)) is not None:
            by = relation.fields[-1].name if relation.fields else "x"
            raise SqlFault(
                query.limit.span,
                "the rows of this query are updated and have no end, so there are no first ones without an order",
                f"ORDER BY {by} DESC LIMIT {number}: these rows, kept up to date",
            )
        with at(query.limit.span):
            return replace(relation, stream=stream.materialize().head(number))

    def _ordered(self, query: Query, relation: Relation, added: int) -> Relation:
        """Returns the rows of ORDER BY: with LIMIT, the first ones, which are updated as rows come; without, all rows,
        at the end of the input, or by event time. `added`: the number of columns at the end that only the order needs.
        """
        if any(each.clock for each in relation.fields):
            relation = with_clocks(self._context, relation, query.span)
        check_plain(relation, query.span, "before ORDER BY")
        order = []
        for sort in query.order:
            node = sort.expression
            if isinstance(node, Constant) and node.kind == "integer":
                if not 1 <= int(node.text) <= len(relation.fields):
                    raise SqlFault(node.span, f"the select list has no entry {node.text}")
                field = relation.fields[int(node.text) - 1]
                node = Column((StarName(field.name, node.span, True, field),), node.span)
            order.append(replace(sort, expression=node))
        fields = relation.fields[: len(relation.fields) - added]
        if query.limit is None:
            return replace(relation, stream=self._sorted(query, relation, order, fields), fields=fields)
        if self._limit(query.limit) == 0:
            with at(query.limit.span):
                rows = relation.stream.materialize().head(0).select(*(each.column for each in fields))
                return replace(relation, stream=rows, fields=fields)
        by, ordered = order_columns(self._context, relation, order)
        names = [name for name, _ in by]
        skipped = 0 if query.offset is None else self._limit(query.offset, "OFFSET")
        place = names_of(ordered).free("place") if skipped else None
        with at(query.span):
            most = skipped + self._limit(query.limit)
            stream = keyed(ordered.stream).top_n(most, by=names, descending=[down for _, down in by], rank=place)
            stream = stream if place is None else stream.filter(col(place) > skipped)
            if endless_read(node_of(stream)) is None:  # the first rows are final, and come in their order
                stream = stream.sort(names, descending=[down for _, down in by], nulls_last=True)
            return replace(relation, stream=stream.select(*(each.column for each in fields)), fields=fields)

    def _sorted(self, query: Query, relation: Relation, order: Sequence[Sort], fields: Sequence[TableColumn]) -> Stream:
        names, ordered = columns_of(self._context, relation, [sort.expression for sort in order])
        by_time = endless_read(node_of(relation.stream)) is not None
        first = next((each for each in relation.fields if each.column == names[0]), None)
        if by_time and (relation.stream.changes or order[0].descending or first is None or not _is_time(first)):
            raise SqlFault(
                query.order[0].span,
                "ORDER BY of a stream without an end begins with its event time, ascending",
                "ORDER BY … LIMIT 10; of a group: ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) and WHERE n <= 10",
            )
        # NULL is the smallest value
        last = [sort.descending if sort.nulls_first is None else not sort.nulls_first for sort in order]
        keys = tuple(zip(names, [sort.descending for sort in order], last, strict=True))
        with at(query.span):
            node = SortRows(node_of(ordered.stream), keys, by_time)
            stream = steps_of(ordered.stream).then(node)
            columns = [each.column for each in fields]
            return stream if node.column_names == columns else stream.select(*columns)

    def _limit(self, node: Expression, what: str = "LIMIT") -> int:
        value: Any = int(node.text) if isinstance(node, Constant) and node.kind == "integer" else None
        if isinstance(node, Parameter):
            value = self._context.parameters.get(node.name)
        if not is_whole(value, 0):
            message = f"{what} takes a whole number, 0 or more"
            raise SqlFault(node.span, message, f"{what} 10, or {what} :n with a parameter")
        return int(value)

    def _with(self, query: Query) -> "QueryBinder":
        tables: dict[str, Relation] = {}

        def lookup(parts: tuple[Name, ...], hint: Hint | None) -> Relation:
            found = tables.get(parts[0].text.lower()) if len(parts) == 1 else None
            if found is not None and hint is not None:
                message = f"{parts[0].text} is a query of WITH, which has no options"
                raise SqlFault(hint.span, message, "give the hint OPTIONS to the table that the query reads")
            return found or self._lookup(parts, hint)

        binder = QueryBinder(self._context, lookup)
        for alias, each in query.tables:
            with part_of_statement(alias.name.text.lower()):
                tables[alias.name.text.lower()] = renamed(binder.query(each), alias)
        return binder

    def _body(self, body: Body) -> Relation:
        if isinstance(body, Query):
            return self.query(body)
        if isinstance(body, SelectBody):
            return self._select(body)
        if isinstance(body, ValuesBody):
            return self._values(body)
        return self._set_operation(body)

    def _values(self, body: ValuesBody) -> Relation:
        """Returns the rows of VALUES. Their columns are called EXPR$0, EXPR$1, … as in Flink."""
        binder = Binder(self._context, _nothing())
        width = len(body.rows[0])
        columns: list[list[TypedExpr]] = [[] for _ in range(width)]
        for row in body.rows:
            if len(row) != width:
                span = row[0].span.to(row[-1].span)
                raise SqlFault(span, f"this row has {len(row)} values, and the first one {width}")
            for column, node in zip(columns, row, strict=True):
                bound = binder.bind(node)
                type = bound.type if not column else common_type(column[0].type, bound.type)
                if type is None:
                    message = f"this value is {sql_type(bound.type)}, and those above it are {sql_type(column[0].type)}"
                    raise SqlFault(node.span, message, f"CAST(… AS {sql_type(column[0].type)})")
                column.append(bound)
                column[0] = TypedExpr(column[0].expr, type)
        return self._constant_rows(
            {f"EXPR${i}": [each.expr.cast(column[0].type) for each in column] for i, column in enumerate(columns)},
            body.span,
        )

    def _constant_rows(self, columns: Mapping[str, Sequence[Expr]], span: Span) -> Relation:
        """Returns rows whose values are expressions without columns."""
        made = {}
        with at(span):
            for name, exprs in columns.items():
                values = [self._context.compile(expr, pa.schema([])).value for expr in exprs]
                made[name] = pa.array([value.as_py() for value in values], values[0].type)
            stream = self._context.rows(pa.table(made))
        return Relation(stream, tuple(TableColumn("", name, name, each.type) for name, each in made.items()))

    def _set_operation(self, body: SetOperation) -> Relation:
        relations = [self._body(body.left), self._body(body.right)]
        fields = _common_fields(relations, body)
        columns = [each.column for each in fields]
        with at(body.span):
            streams = [self._as_columns(relation, fields) for relation in relations]
            if body.operator != "UNION":
                return Relation(self._compared(streams, columns, body), tuple(fields))
            stream = streams[0].union(*streams[1:])
            if not body.all:
                warn_of_growth(stream, "UNION", "all different rows", "UNION ALL keeps none")
                stream = stream.deduplicate(*columns)
        return Relation(stream, tuple(fields))

    def _compared(self, streams: Sequence[Stream], columns: Sequence[str], body: SetOperation) -> Stream:
        """Returns the different rows of the left query that the right one has (INTERSECT) or has not (EXCEPT). With ALL a row
        comes as often as in the query that has it less often, or as often as the left query has it more often.

        GROUP BY takes two NULL for the same, as INTERSECT does and a join does not.
        """
        names = Names(set(columns))
        counts = [names.free("left"), names.free("right")]
        left, right = (
            stream.with_columns(**{name: lit(int(i == j)) for j, name in enumerate(counts)})
            for i, stream in enumerate(streams)
        )
        both = left.union(right)
        hint = "a join by time keeps those within its bounds"
        warn_of_growth(both, body.operator, "all different rows of both queries", hint)
        grouped = both.group_by(*columns).aggregate(**{name: sum(name) for name in counts})
        mine, its = map(col, counts)
        if not body.all:
            return grouped.filter((mine > 0) & (its > 0 if body.operator == "INTERSECT" else its == 0)).select(*columns)
        times = min_horizontal(mine, its) if body.operator == "INTERSECT" else mine - its
        each = names.free("each")  # a list with a value for each time that the row comes
        repeated = grouped.filter(times > 0).with_columns(**{each: Expr("value.repeat", (lit(","), times - 1))})
        return repeated.with_columns(**{each: col(each).str.split(",")}).explode(each).select(*columns)

    def _as_columns(self, relation: Relation, fields: Sequence[TableColumn]) -> Stream:
        """Returns the rows with these columns, in their order, with their types."""
        columns: dict[str, Expr] = {}
        for each, wanted in zip(relation.fields, fields, strict=True):
            expr = col(each.column)
            columns[wanted.column] = expr if each.type == wanted.type else expr.cast(wanted.type)
        names = node_of(relation.stream).column_names
        if names == list(columns) and all(expr.column == name for name, expr in columns.items()):
            return relation.stream
        return relation.stream.select(**columns)

    def _select(self, select: SelectBody, *, waits: bool = False) -> Relation:
        if select.qualify is not None:
            return self._qualified(select, select.qualify)
        grouped = bool(select.group) or select.having is not None or has_aggregate(select.items)
        starred = any(isinstance(item.expression, Star) for item in select.items)
        if grouped and not starred and any(_is_over(node) for node in walk(select.items)):
            return self._over_groups(select)
        where = conjuncts(select.where)
        ttl = state_ttl(select.hints)
        binder = QueryBinder(self._context, self._lookup, ttl)
        if select.source is None:
            relation = replace(self._constant_rows({"row": [lit(1)]}, select.span), fields=())
        else:
            relation = binder._source(select.source, where)
        check_ttl(ttl, select, relation)
        if relation.ranking is not None and any(isinstance(node, Query) for each in where for node in walk(each)):
            relation = self._ranked(relation, where)  # IN and EXISTS filter the ranked rows
        own = None if isinstance(select.source, JoinSource) else next(iter(ttl.values()), None)
        relation = self._semi_joins(relation, where)
        relation, select, where = self._values_of_queries(relation, select, where)
        if len(select.sets) > 1:
            made = self._of_sets(select, relation, where, own)
        else:
            made = SelectBinder(self._context, select, relation, where, waits=waits, ttl=own).bind()
        if select.emit_on_close is not None and made.stream is not None and made.stream.changes:
            raise SqlFault(
                select.emit_on_close,
                "the rows of this query are updated as rows come, and it has no window that closes",
                "GROUP BY window_start, window_end of a window; or without EMIT ON WINDOW CLOSE",
            )
        return made

    def _of_sets(
        self, select: SelectBody, relation: Relation, where: Sequence[Expression], ttl: str | None
    ) -> Relation:
        """Returns the rows of GROUPING SETS, ROLLUP and CUBE: those of a GROUP BY for each set, of the same rows of FROM."""
        made = [
            SelectBinder(self._context, replace(select, sets=(some,)), relation, where, ttl=ttl).bind()
            for some in select.sets
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

    def _qualified(self, select: SelectBody, qualify: Expression) -> Relation:
        """Returns the rows of SELECT … QUALIFY: those of a query inside that meet the condition outside."""
        added: list[Item] = []
        shown_names = {item.alias.text.lower() for item in select.items if item.alias is not None}
        plain = [item.expression for item in select.items if isinstance(item.expression, Column)]
        shown_names |= {node.parts[-1].text.lower() for node in plain}
        every = any(isinstance(item.expression, Star) for item in select.items)
        grouped = bool(select.group) or has_aggregate(select.items)

        def is_inside(node: Any) -> bool:
            if isinstance(node, Column):  # a column that only the query inside has
                return len(node.parts) > 1 or not (every or node.parts[0].text.lower() in shown_names)
            return _is_over(node) or (grouped and is_aggregate(node))

        def outside(node: Any) -> Any:
            if is_inside(node):
                name = Name(f"qualify{len(added)}", node.span, True)
                added.append(Item(node, name, node.span))
                return Column((name,), node.span)
            return node

        condition = rebuilt(qualify, outside)
        inner = self._select(replace(select, qualify=None, items=(*select.items, *added)))
        shown = inner.fields[: len(inner.fields) - len(added)]
        items = tuple(
            Item(Column((StarName(each.name, select.span, True, each),), select.span), None, select.span)
            for each in shown
        )
        outer = replace(
            select,
            distinct=False,
            items=items,
            where=None,
            group=(),
            sets=(),
            having=None,
            qualify=None,
            hints=(),
            source=None,
        )
        return SelectBinder(self._context, outer, inner, conjuncts(condition)).bind()

    def _over_groups(self, select: SelectBody) -> Relation:
        """Returns the rows of a SELECT with groups and OVER: those of OVER over a query inside that has the groups.

            SELECT k, RANK() OVER (ORDER BY SUM(x)) AS r FROM t GROUP BY k
        as
            SELECT k, RANK() OVER (ORDER BY over1) AS r FROM (SELECT k, SUM(x) AS over1 FROM t GROUP BY k)
        """
        over = [any(_is_over(node) for node in walk(item)) for item in select.items]
        inside = [
            # a number in the place of OVER, so that GROUP BY 1 still means the first entry
            Item(Constant("integer", "0", item.span), None, item.span) if has else item
            for item, has in zip(select.items, over, strict=True)
        ]
        shown: dict[str, int] = {}
        for i, item in enumerate(inside):
            name = item.alias or (item.expression.parts[-1] if isinstance(item.expression, Column) else None)
            if name is not None:
                shown[name.text.lower()] = i

        def moved(node: Any) -> Any:
            """Returns a column that the query inside has for an expression without OVER."""
            if not any(isinstance(each, Column) or is_aggregate(each) for each in walk(node)):
                return node
            known = shown.get(node.parts[0].text.lower()) if isinstance(node, Column) and len(node.parts) == 1 else None
            if known is None:
                known = len(inside)
                inside.append(Item(node, Name(f"over{known}", node.span, True), node.span))
            return Column((StarName(str(known), node.span, True),), node.span)

        def split(node: Any) -> Any:
            if _is_over(node):
                window = complete_window(node.over, select.windows)
                order = tuple(replace(each, expression=moved(each.expression)) for each in window.order)
                window = replace(window, partition=tuple(map(moved, window.partition)), order=order)
                rows = None if node.filter is None else moved(node.filter)
                return replace(node, arguments=tuple(map(moved, node.arguments)), filter=rows, over=window)
            without = isinstance(node, Expression) and not any(_is_over(each) for each in walk(node))
            return moved(node) if without else node

        outside = [
            rebuilt(item.expression, split) if has else None for item, has in zip(select.items, over, strict=True)
        ]
        inner = self._select(replace(select, items=tuple(inside), distinct=False, windows=()))

        def found(node: Any) -> Any:
            if isinstance(node, Column) and isinstance(node.parts[0], StarName) and node.parts[0].column is None:
                field = inner.fields[int(node.parts[0].text)]
                return Column((StarName(field.name, node.span, True, field),), node.span)
            return node

        items = []
        for i, (item, made) in enumerate(zip(select.items, outside, strict=True)):
            alias = item.alias
            if made is None:
                if alias is None and isinstance(item.expression, Column):
                    alias = item.expression.parts[-1]
                made = Column((StarName(str(i), item.span, True),), item.span)
            items.append(Item(rebuilt(made, found), alias, item.span))
        middle = replace(select, items=tuple(items), where=None, group=(), sets=(), having=None, hints=(), source=None)
        return SelectBinder(self._context, middle, inner, []).bind()

    # -- FROM ---------------------------------------------------------------------------------------------------------

    def _source(self, source: Source, where: list[Expression]) -> Relation:
        """Returns the rows of FROM. Conditions of `where` that a join uses are taken out of it."""
        if isinstance(source, TableName):
            if source.as_of is not None:
                name = source.parts[-1].text
                hint = f"FROM a JOIN {name} FOR SYSTEM_TIME AS OF a.ts ON a.id = {name}.id"
                raise SqlFault(source.as_of.span, "FOR SYSTEM_TIME AS OF stands behind JOIN", hint)
            relation = self._lookup(source.parts, _options_hint(source)).named(source.parts[-1].text)
            return relation if source.alias is None else renamed(relation, source.alias)
        if isinstance(source, Derived):
            if source.lateral:
                raise SqlFault(
                    source.span, "LATERAL needs a table before it", "FROM a, LATERAL (SELECT … WHERE b.k = a.k)"
                )
            if source.alias is None:
                return self.query(source.query, waits=True)
            with part_of_statement(source.alias.name.text.lower()):
                return renamed(self.query(source.query, waits=True), source.alias)
        if isinstance(source, TableFunction):
            return self._table_function(source)
        if isinstance(source, MatchRecognize):
            relation = self._opened(source.input, self._source(source.input, []))
            check_plain(relation, source.input.span, "before MATCH_RECOGNIZE", clocks=True)
            if not source.measures and not source.partition:
                message = "MATCH_RECOGNIZE has the columns of PARTITION BY and MEASURES, and there are none"
                raise SqlFault(source.span, message, "MEASURES FIRST(A.x) AS x")
            relation = bind_match(self._context, source, relation)
            return relation if source.alias is None else renamed(relation, source.alias)
        return self._join(source, where)

    def _table_function(self, source: TableFunction) -> Relation:
        name = source.call.name.text.upper()
        if name == "ML_PREDICT":
            relation = self._predicted(source.call)
            return relation if source.alias is None else renamed(relation, source.alias)
        if name == "UNNEST":
            raise SqlFault(source.span, "UNNEST needs a table before it", "FROM t CROSS JOIN UNNEST(t.tags) AS u (tag)")
        if name not in TABLE_WINDOWS:
            hint = f"there are {', '.join(TABLE_WINDOWS)}, ML_PREDICT"
            if source.lateral:
                hint = "CROSS JOIN UNNEST(array) AS t (x), as of SPLIT(text, ',')"
                if not is_known(name):
                    versions = "JOIN rates FOR SYSTEM_TIME AS OF t.ts ON … finds the version of a row"
                    hint = f"{hint}; {versions}" if [*map(type, source.call.arguments)] == [Column] else hint
                    hint = f'app.register("{source.call.name.text}", function) of one that returns an array; or {hint}'
            elif name.startswith(("READ_", "SCAN_")):
                hint = "a file has quotes: FROM 'flights.csv'"
            raise SqlFault(source.call.name.span, f"there is no table function {source.call.name.text}", hint)
        arguments = positional(source.call).arguments
        first = arguments[0] if arguments else None
        if not isinstance(first, TableArgument):
            span = source.call.span if first is None else first.span
            table = first.parts[-1].text if isinstance(first, Column) else "t"
            raise SqlFault(span, f"{name} needs TABLE {table}", form_of(name, table))
        if first.partition and name != "SESSION":
            raise SqlFault(first.span, f"{name} has no PARTITION BY", "leave it out, and write its columns in GROUP BY")
        inner = self.query(first.table) if isinstance(first.table, Query) else self._lookup(first.table, None)
        relation = table_window(source.call, inner.named(""), self._context.zone)
        return relation if source.alias is None else renamed(relation, source.alias)

    def _predicted(self, call: Call) -> Relation:
        """Returns the table of ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column, …))."""
        given = positional(call).arguments
        form = "ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column))"
        if len(given) < 3 or not (
            isinstance(given[0], TableArgument)
            and isinstance(given[1], ModelArgument)
            and isinstance(given[2], Descriptor)
        ):
            raise SqlFault(call.span, "ML_PREDICT needs a table, a model and the columns that the model reads", form)
        if len(given) > 3:
            raise SqlFault(given[3].span, "ML_PREDICT has no options", 'app.register("m", engine, concurrency=10)')
        table, model, descriptor = given[0], given[1], given[2]
        relation = self.query(table.table) if isinstance(table.table, Query) else self._lookup(table.table, None)
        registered = self._context.registered.get(model.name.text.lower())
        if not isinstance(registered, RegisteredModel):
            message = f"there is no model {model.name.text}"
            raise SqlFault(model.span, message, f'app.register("{model.name.text}", engine, output={{…}})')
        columns = []
        for name in descriptor.columns:
            field, _ = relation.find((name,))
            columns.append((name, field))
        with at(call.span):
            return predicted(relation, registered, columns)

    # -- joins --------------------------------------------------------------------------------------------------------

    def _join(self, join: JoinSource, where: list[Expression]) -> Relation:
        inner = join.kind in ("INNER", "COMMA", "CROSS")
        left = self._source(join.left, where if inner else [])
        left = self._opened(join.left, left)
        if left.ranking is not None:
            bounds = where if inner or join.kind == "LEFT" else []
            left, join = self._ranked_side(join, left, join.left, bounds, ("INNER", "RIGHT"))
        if isinstance(join.right, TableFunction):
            call = join.right.call
            if call.name.text.lower() in self._context.registered:  # LATERAL TABLE(f(x)): f returns an array
                call = Call(Name("UNNEST", call.name.span), (call,), call.span)
            if call.name.text.upper() == "UNNEST":
                return self._unnested(join, left, replace(join.right, call=call))
        if isinstance(join.right, Derived) and join.right.lateral:
            return self._lateral(join, left, join.right, where if inner or join.kind == "LEFT" else [])
        if isinstance(join.right, TableName) and join.right.as_of is not None:
            return self._as_of(join, left, join.right)
        right = self._opened(join.right, self._source(join.right, where if inner else []))
        if right.ranking is not None:
            bounds = where if inner or join.kind == "RIGHT" else []
            right, join = self._ranked_side(join, right, join.right, bounds, ("INNER", "LEFT"))
        return JoinBinder(self._context, join, left, right, where if inner else [], self._ttl, where).bind()

    def _ranked(self, relation: Relation, conditions: list[Expression]) -> Relation:
        """Returns the rows with their ranking, and takes the condition that bounds it out of `conditions`."""
        assert relation.ranking is not None
        span = relation.ranking.span
        every = (Item(Star((), span), None, span),)
        select = SelectBody(False, every, None, None, (), None, (), None, (), None, span)
        found, bounding = RankingBinder(self._context, select, relation, conditions).bind()
        conditions[:] = [each for each in conditions if each is not bounding]
        return found

    def _ranked_side(
        self, join: JoinSource, side: Relation, tree: Source, where: list[Expression], on: tuple[str, ...]
    ) -> tuple[Relation, JoinSource]:
        """Returns a table of a join with its ranking, by a condition of WHERE, or of ON for these kinds of joins (`on`). The
        condition has the name of the table: `r.n = 1`. Takes the condition out of `where`, or of the join.
        """

        assert side.ranking is not None
        rank = next(each for each in side.fields if each.column == side.ranking.column)

        def is_bound(node: Expression) -> bool:
            columns = [each for each in walk(node) if isinstance(each, Column)]
            names = {tuple(part.text.lower() for part in each.parts) for each in columns}
            return names == {(rank.qualifier.lower(), rank.name.lower())}

        conditions = conjuncts(join.on) if join.kind in on else []
        for given in (where, conditions):
            bounds = [each for each in given if is_bound(each)]
            if not bounds:
                continue
            kept = list(bounds)
            side = self._ranked(side, kept)
            given[:] = [each for each in given if each in kept or each not in bounds]
            if given is conditions:
                join = replace(join, on=reduce(lambda a, b: Binary("AND", a, b, join.span), given) if given else None)
            return side, join
        hint = f"WHERE {rank.qualifier}.{rank.name} <= 3"
        if join.kind not in ("INNER", "COMMA", "CROSS") or not rank.qualifier:
            hint = "JOIN (SELECT … FROM (SELECT …, ROW_NUMBER() OVER (…) AS n FROM t) WHERE n <= 3) AS r"
        raise SqlFault(tree.span, "the ranking of this table needs a bound before it is joined", hint)

    def _opened(self, tree: Source, relation: Relation) -> Relation:
        """Returns the rows of a window table, each once for each of its windows; the rows of any other table unchanged."""
        if relation.window is None:
            return relation
        with at(tree.span):
            return opened(relation, tree.span, self._context.zone)

    def _unnested(self, join: JoinSource, left: Relation, table: TableFunction) -> Relation:
        """Returns the rows of `left` with those of UNNEST(array): a row for each element."""
        on_true = join.on is None or _is_true(join.on)
        if join.kind not in ("CROSS", "COMMA", "INNER", "LEFT") or not on_true or join.using:
            raise SqlFault(join.span, "UNNEST is joined by CROSS JOIN, or by LEFT JOIN … ON TRUE")
        if len(table.call.arguments) != 1:
            raise SqlFault(table.span, "UNNEST has one array", "CROSS JOIN UNNEST(a) AS u (x)")
        left = with_calls(self._context, left, table.call.arguments)
        binder = Binder(self._context, left)
        bound = binder.bind(table.call.arguments[0])
        if pa.types.is_map(bound.type):
            bound = binder.typed(Expr("map.entries", (bound.expr,)), table.call.span)
        if not pa.types.is_list(bound.type):
            raise SqlFault(table.call.span, f"UNNEST of {sql_type(bound.type)}", "it takes an ARRAY or a MAP")
        names, element = names_of(left), bound.type.value_type
        column, outer = names.free("element"), join.kind == "LEFT"
        lists, place = {column: bound.expr}, names.free("ordinality")
        if table.ordinality:
            lists[place] = Expr("list.places", (bound.expr,))
        with at(table.span):
            stream = left.stream.with_columns(**lists)
            stream = stream.explode(*lists, empty_as_null=outer, keep_nulls=outer)
        qualifier = "" if table.alias is None else table.alias.name.text
        fields = [TableColumn(qualifier, "EXPR$0", column, element)]
        if pa.types.is_struct(element):
            made = {names.free(each.name): (each, col(column)[each.name]) for each in element}
            stream = stream.with_columns(**{name: expr for name, (_, expr) in made.items()})
            fields = [TableColumn(qualifier, each.name, name, each.type) for name, (each, _) in made.items()]
        if table.ordinality:
            fields.append(TableColumn(qualifier, "ORDINALITY", place, pa.int32()))
        added = Relation(stream, tuple(fields))
        if table.alias is not None:
            added = renamed(added, table.alias)
        return Relation(stream, (*left.fields, *added.fields))

    def _as_of(self, join: JoinSource, left: Relation, table: TableName) -> Relation:
        node = table.as_of
        is_now = node is not None and is_clock(node)
        if not (is_now or isinstance(node, Column)) or join.kind not in ("INNER", "LEFT"):
            hint = "FOR SYSTEM_TIME AS OF a.ts, its event time, or PROCTIME()"
            message = "AS OF takes a column of time of the left table, behind JOIN or LEFT JOIN"
            raise SqlFault(table.span, message, hint)
        right = self._lookup(table.parts, _options_hint(table)).named(table.parts[-1].text)
        right = right if table.alias is None else renamed(right, table.alias)
        binder = JoinBinder(self._context, join, left, right, [])
        if is_now or (isinstance(node, Column) and _is_clock_of(right, node, left)):
            return binder.bind_lookup()
        assert isinstance(node, Column)
        field, further = left.find(node.parts)
        if field.clock:
            return binder.bind_lookup()
        if further or field.shift_ms != 0:
            times = [each.name for each in left.fields if each.shift_ms == 0]
            hint = f"the event time is {times[0]}" if times else "declare it: WATERMARK FOR ts AS ts"
            raise SqlFault(node.span, f"{node.parts[-1].text} is neither the event time nor PROCTIME()", hint)
        return binder.bind_as_of()

    def _values_of_queries(
        self, relation: Relation, select: SelectBody, where: list[Expression]
    ) -> tuple[Relation, SelectBody, list[Expression]]:
        """Joins the rows with the queries that stand in the place of values, and puts columns into their places."""

        def column_of(node: Any) -> Any:
            nonlocal relation
            if not isinstance(node, Subquery):
                return node
            if relation.window is not None:
                raise SqlFault(
                    node.span, "a query as a value cannot stand beside a window table", "write it in a query outside"
                )
            inner = self._uncorrelated(node.query, relation)
            keys: list[tuple[TypedExpr, TypedExpr]] = []
            if inner is None:
                inner, keys = self._by_outer_columns(node.query, relation)
            elif node_of(inner.stream).unique != ():  # a table of one row, such as an aggregate in WITH
                check_one_row(node.query)
            with at(node.span):
                relation, field = with_value(self._context, relation, inner, node.query, keys)
            return Column((StarName("", node.span, True, field),), node.span)

        where = list(rebuilt(tuple(where), column_of))
        if not (select.group or select.having is not None or has_aggregate(select.items)):
            select = replace(select, items=rebuilt(select.items, column_of))
        return relation, select, where

    def _by_outer_columns(self, query: Query, outer: Relation) -> tuple[Relation, list[tuple[TypedExpr, TypedExpr]]]:
        """Returns the values of a query that uses columns of the query outside, for each value of the columns that equal
        them, and these pairs of columns.

            SELECT MAX(b.x) FROM b WHERE b.k = a.k AND b.y > 3
        as
            SELECT MAX(b.x), b.k FROM b WHERE b.y > 3 GROUP BY b.k
        """
        body = query.body
        plain = isinstance(body, SelectBody) and body.source is not None and not (query.order or query.limit)
        if not plain or not isinstance(body, SelectBody) or body.group or not has_aggregate(body.items):
            raise SqlFault(
                query.span,
                "a query as a value that uses columns of the query outside has one aggregate, and no GROUP BY or LIMIT",
                "SELECT MAX(b.x) FROM b WHERE b.k = a.k",
            )
        if len(body.items) != 1:
            raise SqlFault(query.span, "a query as a value has one column")
        binder = self._with(query) if query.tables else self
        body, pairs = binder._split(body, outer, "a value")
        made = binder._select(replace(body, group=tuple(tree for _, tree in pairs)))
        value, *columns = made.fields
        bound = Binder(self._context, outer)
        found = [
            same_type(tree, bound.bind(mine), TypedExpr(col(field.column), field.type), self._context.zone)
            for (mine, tree), field in zip(pairs, columns, strict=True)
        ]
        return replace(made, fields=(value,)), found

    def _split(
        self, body: SelectBody, outer: Relation, what: str
    ) -> tuple[SelectBody, list[tuple[Expression, Expression]]]:
        """Returns a SELECT that uses columns of the rows outside without the conditions that do, and with a column for its
        side of each of them; and both sides of these conditions, the one of `outer` first.
        """
        conditions = conjuncts(body.where)
        assert body.source is not None
        inner = self._source(body.source, list(conditions))
        kept: list[Expression] = []
        pairs: list[tuple[Expression, Expression]] = []
        for node in conditions:
            own = any(isinstance(each, Query) for each in walk(node)) or self._bound(node, inner) is not None
            if own:
                kept.append(node)
                continue
            self._correlated(node, outer, inner, what)
            assert isinstance(node, Binary)
            sides = (node.left, node.right)
            pairs.append(sides if self._bound(node.left, inner) is None else sides[::-1])
        where = reduce(lambda one, other: Binary("AND", one, other, body.span), kept) if kept else None
        keys = [Item(tree, Name(f"outer{i}", body.span, True), body.span) for i, (_, tree) in enumerate(pairs)]
        return replace(body, items=(*body.items, *keys), where=where), pairs

    def _lateral(self, join: JoinSource, left: Relation, table: Derived, where: list[Expression]) -> Relation:
        """Returns rows with those of a query for each of them, LATERAL (SELECT …): a join with the rows of the query for all
        values of the columns that equal columns outside.

            FROM a, LATERAL (SELECT y FROM b WHERE b.k = a.k ORDER BY y DESC LIMIT 3)
        as
            FROM a JOIN (SELECT y, k FROM b QUALIFY ROW_NUMBER() OVER (PARTITION BY k ORDER BY y DESC) <= 3) AS b ON b.k = a.k

        An aggregate without GROUP BY has a row also if no row is equal.
        """
        query, body = table.query, table.query.body
        form = "LATERAL (SELECT x FROM b WHERE b.k = a.k ORDER BY x DESC LIMIT 3)"
        if not isinstance(body, SelectBody) or body.source is None or body.sets or query.offset is not None:
            raise SqlFault(table.span, "LATERAL takes a SELECT … FROM … WHERE …", form)
        if bool(query.order) != (query.limit is not None):
            raise SqlFault(table.span, "LIMIT of LATERAL has an ORDER BY, and ORDER BY a LIMIT", form)
        if join.kind not in ("CROSS", "COMMA", "INNER", "LEFT") or join.using:
            raise SqlFault(join.span, "LATERAL is joined by CROSS JOIN, or by LEFT JOIN … ON TRUE", form)
        binder = self._with(query) if query.tables else self
        given = body
        body, pairs = binder._split(body, left, "LATERAL")
        if not pairs:
            raise SqlFault(table.span, "the query of LATERAL has no column that equals one outside", form)
        keys = tuple(tree for _, tree in pairs)
        groups = bool(body.group) or has_aggregate(given.items)
        single = groups and not body.group
        if single and body.having is not None:
            raise SqlFault(body.having.span, "LATERAL with HAVING needs GROUP BY", form)
        if groups:
            body = replace(body, group=(*body.group, *keys))
        if query.limit is not None and not single:
            body = replace(body, qualify=_among_first(body, keys, query, self._limit(query.limit)))
        made = binder._select(body)
        check_plain(made, table.span, "in LATERAL")
        values = replace(made, fields=made.fields[: len(made.fields) - len(keys)])
        values = values if table.alias is None else renamed(values, table.alias)
        hidden = [replace(each, qualifier="", name="", merged=True) for each in made.fields[len(values.fields) :]]
        right = replace(values, fields=(*values.fields, *hidden))
        on = [
            Binary("=", mine, Column((StarName("", tree.span, True, field),), tree.span), tree.span)
            for (mine, tree), field in zip(pairs, hidden, strict=True)
        ]
        own = [] if _is_true(join.on) else conjuncts(join.on)
        kind: Any = "LEFT" if single else "INNER" if join.kind in ("CROSS", "COMMA") else join.kind
        if single and own:
            raise SqlFault(own[0].span, "LATERAL with an aggregate is joined ON TRUE", "conditions stand in WHERE")
        condition = reduce(lambda one, other: Binary("AND", one, other, join.span), [*on, *own])
        joined = JoinBinder(
            self._context,
            replace(join, kind=kind, on=condition),
            left,
            right,
            where if kind == "INNER" else [],
            self._ttl,
            where,
        ).bind()
        kept = replace(joined, fields=joined.fields[: len(joined.fields) - len(hidden)])
        if not single:
            return kept
        unmatched = col(joined.fields[-1].column).is_null()
        return with_values_of_no_rows(self._context, kept, made, given, unmatched)

    def _uncorrelated(self, query: Query, outer: Relation) -> Relation | None:
        """Returns the rows of a query, or None if it uses columns of the query outside."""
        try:
            return self.query(query)
        except SqlFault as error:
            for node in walk(query.body):
                at_fault = isinstance(node, Column) and node.span.start <= error.fault.span.start < node.span.end
                if at_fault and self._bound(node, outer) is not None:
                    return None
            raise

    def _semi_joins(self, relation: Relation, where: list[Expression]) -> Relation:
        """Joins with the queries of IN (SELECT …) and EXISTS (SELECT …) in WHERE."""
        for node in list(where):
            negated = isinstance(node, Unary) and node.operator == "NOT"
            exists = node.operand if isinstance(node, Unary) and negated else node
            if isinstance(exists, Exists):
                relation = self._exists(relation, exists.query, "anti" if negated else "semi")
                where.remove(node)
                continue
            if not (isinstance(node, In) and isinstance(node.values, Query)):
                continue
            inner = self._uncorrelated(node.values, relation)
            operands = node.operand.items if isinstance(node.operand, Items) else (node.operand,)
            if node.negated and len(operands) > 1:
                raise SqlFault(node.span, "NOT IN of several columns is not supported", "write NOT EXISTS (SELECT …)")
            if inner is None:
                relation = self._in_correlated(relation, node, node.values, operands)
                where.remove(node)
                continue
            check_plain(inner, node.values.span, "before IN")
            _check_width(node.values, len(inner.fields), len(operands))
            binder = Binder(self._context, relation)
            keys = [
                same_type(node, binder.bind(operand), TypedExpr(col(its.column), its.type), self._context.zone)
                for operand, its in zip(operands, inner.fields, strict=True)
            ]
            for side in (relation, inner):
                warn_of_growth(side.stream, "IN (SELECT …)", "all rows", _SEMI_JOINED)
            with at(node.span):
                if node.negated:
                    stream = without_partners(relation.stream, inner.stream, *keys[0])
                else:
                    left_on, right_on = [mine.expr for mine, _ in keys], [its.expr for _, its in keys]
                    stream = relation.stream.join(inner.stream, left_on=left_on, right_on=right_on, how="semi")
            relation = replace(relation, stream=stream)
            where.remove(node)
        return relation

    def _exists(self, relation: Relation, query: Query, how: Literal["semi", "anti"]) -> Relation:
        """Returns the rows that have a partner in a query, or those that have none (`how`)."""
        relation, inner, body, keys = self._inside(relation, query, "EXISTS")
        both = Relation(inner.stream, (*inner.fields, *relation.fields))
        for item in body.items:  # their values do not matter, but a wrong name is an error
            if not isinstance(item.expression, Star) and self._bound(item.expression, inner) is None:
                Binder(self._context, both).bind(item.expression)
        if not keys:
            raise SqlFault(query.span, "EXISTS needs a condition that joins its query", "WHERE b.id = a.id")
        return self._semi_joined(relation, inner, keys, how, query.span, "EXISTS (SELECT …)")

    def _in_correlated(self, relation: Relation, node: In, query: Query, operands: Sequence[Expression]) -> Relation:
        """Returns the rows for which IN, or NOT IN, of a query that uses columns of the query outside is true.

        NOT IN drops a row if the query has, for this row, a row that is equal or NULL; and if its own value is NULL and
        the query has any row.
        """
        relation, inner, body, keys = self._inside(relation, query, "IN")
        if any(isinstance(item.expression, Star) for item in body.items):
            raise SqlFault(query.span, "the query of IN names its column", "x IN (SELECT y FROM …)")
        _check_width(query, len(body.items), len(operands))
        outside, inside = Binder(self._context, relation), Binder(self._context, inner)
        values = [
            same_type(node, outside.bind(operand), inside.bind(item.expression), self._context.zone)
            for operand, item in zip(operands, body.items, strict=True)
        ]
        how: Literal["semi", "anti"] = "anti" if node.negated else "semi"
        relation = self._semi_joined(relation, inner, [*keys, *values], how, node.span, "IN (SELECT …)")
        if node.negated:
            ((mine, its),) = values
            nulls = replace(inner, stream=inner.stream.filter(its.expr.is_null()))
            relation = self._semi_joined(relation, nulls, keys, how, node.span, "IN (SELECT …)")
            missing = when(mine.expr.is_null()).then(lit(True)).otherwise(lit(None))
            without = (TypedExpr(missing, pa.bool_()), TypedExpr(lit(True), pa.bool_()))
            relation = self._semi_joined(relation, inner, [*keys, without], how, node.span, "IN (SELECT …)")
        return relation

    def _inside(
        self, relation: Relation, query: Query, what: str
    ) -> tuple[Relation, Relation, SelectBody, list[tuple[TypedExpr, TypedExpr]]]:
        """Returns `relation`, the rows of a query that uses columns of it, the SELECT of this query, and the equal columns: those
        of `relation`, and its own. Rows of a window table get the bounds of their windows if the query is joined by these;
        else they wait for their GROUP BY.
        """
        body = query.body
        if not isinstance(body, SelectBody) or body.source is None or query.limit is not None or query.order:
            raise SqlFault(query.span, f"{what} takes a SELECT … FROM … WHERE …")
        if body.group or body.having is not None or body.qualify is not None or has_aggregate(body.items):
            instead = "write WHERE x IN (SELECT …), or a join" if what == "EXISTS" else "write a join"
            raise SqlFault(body.span, f"{what} takes no groups and aggregates", instead)
        binder = self._with(query) if query.tables else self
        conditions = conjuncts(body.where)
        inner = binder._opened(body.source, binder._source(body.source, conditions))
        check_plain(inner, body.span, f"before {what}", clocks=True)
        inner = binder._semi_joins(inner, conditions)
        joining = []
        for node in conditions:
            if self._bound(node, inner) is None:
                joining.append(node)
                continue
            with at(node.span):
                predicate = Binder(self._context, inner).predicate(node)
                inner = replace(inner, stream=inner.stream.filter(predicate))
        keys = [self._correlated(node, relation, inner, what) for node in joining]
        if relation.window is not None:
            bounds = {each.column for each in relation.fields if each.window is not None}
            if any(mine.expr.columns & bounds for mine, _ in keys):
                with at(query.span):
                    relation = opened(relation, query.span, self._context.zone)
                keys = [self._correlated(node, relation, inner, what) for node in joining]
        return relation, inner, body, keys

    def _semi_joined(
        self,
        relation: Relation,
        inner: Relation,
        keys: Sequence[tuple[TypedExpr, TypedExpr]],
        how: Literal["semi", "anti"],
        span: Span,
        what: str,
    ) -> Relation:
        """Returns the rows that have a partner in another table, or those that have none. If the bounds of a window are
        among the equal columns, the rows are final, and both tables keep those of open windows alone.
        """
        window = common_window(relation, inner, keys, span)
        options: dict[str, Any] = {"how": how}
        if window is None:
            for side in (relation, inner):
                warn_of_growth(side.stream, what, "all rows", _SEMI_JOINED)
        else:
            options["window"] = window
            names = names_of(relation)
            names.taken |= names_of(inner).taken
            relation, mine = beside_bounds(relation, names)
            inner, its = beside_bounds(inner, names)
            keys = [(_moved(one, mine), _moved(other, its)) for one, other in keys]
        left_on, right_on = [key.expr for key, _ in keys], [key.expr for _, key in keys]
        with at(span):
            stream = relation.stream.join(inner.stream, left_on=left_on, right_on=right_on, **options)
        return replace(relation, stream=stream)

    def _correlated(self, node: Expression, outer: Relation, inner: Relation, what: str) -> tuple[TypedExpr, TypedExpr]:
        """Returns the two sides of a condition `outer column = inner column`."""
        if isinstance(node, Binary) and node.operator == "=":
            for one, other in ((node.left, node.right), (node.right, node.left)):
                left, right = self._bound(one, outer), self._bound(other, inner)
                if left is not None and right is not None and self._bound(one, inner) is None:
                    return same_type(node, left, right, self._context.zone)
        Binder(self._context, Relation(inner.stream, (*inner.fields, *outer.fields))).bind(node)  # a wrong name
        raise SqlFault(node.span, f"the query of {what} is joined by equal columns only", "write a join")

    def _bound(self, node: Expression, relation: Relation) -> TypedExpr | None:
        try:
            return Binder(self._context, relation).bind(node)
        except SqlFault:
            return None


def _moved(key: TypedExpr, renamed: Mapping[str, str]) -> TypedExpr:
    """Returns a key whose columns have these new names."""
    return TypedExpr(key.expr.renamed(renamed), key.type) if key.expr.columns & renamed.keys() else key


def _check_width(query: Query, columns: int, wanted: int) -> None:
    if columns != wanted:
        raise SqlFault(query.span, f"the query of IN has {wanted} column{'s' * (wanted > 1)}")


def _is_time(column: TableColumn) -> bool:
    """Returns True for the event time of the rows, and for bounds of windows that have a fixed distance from it."""
    edge = column.window
    fixed = edge is not None and isinstance(edge.window, TumblingWindow | CalendarWindow | HoppingWindow)
    fixed = fixed or (edge is not None and isinstance(edge.window, ClockWindow) and not edge.window.grows)
    return column.shift_ms is not None or fixed


def _with_columns_of_order(query: Query, body: SelectBody) -> tuple[Query, int]:
    """Returns the query with further columns for entries of ORDER BY that are no columns of the result, and their number.

    SELECT a FROM t ORDER BY b     ->     SELECT a, b AS order0 FROM t ORDER BY order0, and then a alone

    An entry that the select list has too becomes its position: UPPER(a) of SELECT DISTINCT UPPER(a) … ORDER BY UPPER(a).
    """
    query = replace(
        query, order=tuple(replace(each, expression=_of_selected(each.expression, body)) for each in query.order)
    )
    names = set()
    for item in body.items:
        node = item.expression
        if item.alias is not None:
            names.add(item.alias.text.lower())
        elif isinstance(node, Column):
            names.add(node.parts[-1].text.lower())
        elif isinstance(node, Star) and not node.qualifier:
            return query, 0
    added: list[Item] = []
    order = []
    for sort in query.order:
        node = sort.expression
        columns = [each for each in walk(node) if isinstance(each, Column)]
        own = all(len(each.parts) == 1 and each.parts[0].text.lower() in names for each in columns)
        # a function of the program is called among the rows of the SELECT
        called = any(isinstance(each, Call) and not is_known(each.name.text.upper()) for each in walk(node))
        if own and not called and not has_aggregate([Item(node, None, node.span)]):
            order.append(sort)
            continue
        name = Name(f"order{len(added)}", node.span, True)
        added.append(Item(node, name, node.span))
        order.append(replace(sort, expression=Column((name,), node.span)))
    if not added:
        return query, 0
    if body.distinct:
        span = added[0].span
        raise SqlFault(span, "ORDER BY of SELECT DISTINCT goes by columns of the select list", "select it too")
    return replace(query, body=replace(body, items=(*body.items, *added)), order=tuple(order)), len(added)


def _of_selected(node: Expression, body: SelectBody) -> Expression:
    """Returns an entry of ORDER BY without the name of the table where `*` has its columns, or as the position of an equal
    entry of the select list; any other entry unchanged.
    """
    starred = any(isinstance(item.expression, Star) for item in body.items)
    source = body.source
    alias = source.alias.name if isinstance(source, TableName | Derived) and source.alias is not None else None
    alias = source.parts[-1] if isinstance(source, TableName) and alias is None else alias
    if starred and isinstance(node, Column) and len(node.parts) == 2 and alias is not None:
        return replace(node, parts=node.parts[1:]) if alike(node.parts[0], alias) else node
    if starred or (isinstance(node, Column) and len(node.parts) == 1):
        return node
    place = next((i for i, item in enumerate(body.items, 1) if alike(item.expression, node)), None)
    return node if place is None or isinstance(node, Constant) else Constant("integer", str(place), node.span)


def _is_clock_of(right: Relation, node: Column, left: Relation) -> bool:
    """Returns True for a column PROCTIME() of the right table, which the left one does not have."""
    try:
        left.find(node.parts)
    except SqlFault:
        return any(each.clock and each.name.lower() == node.parts[-1].text.lower() for each in right.fields)
    return False


def _is_true(node: Expression | None) -> bool:
    return isinstance(node, Constant) and node.text.upper() == "TRUE"


def _among_first(body: SelectBody, keys: Sequence[Expression], query: Query, most: int) -> Expression:
    """Returns the condition that a row is one of the first ones of its keys, in the order of the query."""
    aliases = {item.alias.text.lower(): item.expression for item in body.items if item.alias is not None}

    def of_alias(node: Any) -> Any:
        plain = isinstance(node, Column) and len(node.parts) == 1
        return aliases.get(node.parts[0].text.lower(), node) if plain else node

    order = tuple(replace(each, expression=of_alias(each.expression)) for each in query.order)
    window = Window(None, tuple(keys), order, None, query.span)
    place = Call(Name("ROW_NUMBER", query.span), (), query.span, over=window)
    return Binary("<=", place, Constant("integer", str(most), query.span), query.span)


def _is_over(node: Any) -> bool:
    return isinstance(node, Call) and node.over is not None


def _nothing() -> Relation:
    """Returns a table without columns, for expressions without columns."""
    no_rows: Any = None
    return Relation(no_rows, ())


def _common_fields(relations: Sequence[Relation], body: SetOperation) -> list[TableColumn]:
    """Returns the columns of UNION, INTERSECT or EXCEPT: the names of the left query, and types that have the values of both."""
    left, right = relations
    names = [each.name for each in left.fields]
    if len(names) != len(right.fields):
        message = f"{body.operator} of {len(names)} and {len(right.fields)} columns"
        raise SqlFault(body.right.span, message, "both queries have the same columns; CAST(NULL AS …) stands for one")
    for relation in (left, right):
        check_plain(relation, body.span, f"before {body.operator}")
    fields = []
    for mine, its in zip(left.fields, right.fields, strict=True):
        shown = mine.shown if mine.shown == its.shown else None
        type = common_type(mine.type, its.type) or common_type(mine.sql_type, its.sql_type)
        if type is None:
            message = f"column {mine.name} of {body.operator} is {sql_type(mine.sql_type)} and {sql_type(its.sql_type)}"
            raise SqlFault(body.right.span, message, f"CAST({its.name} AS {sql_type(mine.sql_type)})")
        shift = mine.shift_ms if mine.shift_ms == its.shift_ms else None
        never = mine.never_null and its.never_null
        mine = replace(mine, qualifier="", column=mine.name, type=type, shift_ms=shift, window=None)
        fields.append(replace(mine, never_null=never, shown=shown))
    return fields


def check_plain(relation: Relation, span: Span, place: str, *, clocks: bool = False) -> None:
    """Raises SqlFault for rows with columns that have no values yet. `place`: the clause that needs them. `clocks`: True
    if columns of the time of processing are allowed.
    """
    for each in relation.fields:
        if each.clock and not clocks:
            message = f"{each.name} is the time of processing, which has no value in a row {place}"
            raise SqlFault(span, message, "name the other columns in place of *")
    if relation.ranking is not None or relation.window is not None:
        raise SqlFault(span, f"group or bound the rows of this query {place}")


def _options_hint(table: TableName) -> Hint | None:
    """Returns the hint OPTIONS of a table in FROM. Raises SqlFault for any other hint there."""
    for hint in table.hints:
        if hint.name.text.upper() != "OPTIONS":
            raise SqlFault(hint.span, f"the hint {hint.name.text} is not supported", "OPTIONS('path' = 'other.json')")
        if len(table.hints) > 1:
            raise SqlFault(table.hints[1].span, "a table has one hint OPTIONS")
    return table.hints[0] if table.hints else None


def state_ttl(hints: Sequence[Hint]) -> dict[str, str]:
    """Returns the times of the hint STATE_TTL('a' = '1d'), by the alias of a table in lower case."""
    found: dict[str, str] = {}
    for hint in hints:
        if hint.name.text.upper() in _WAYS_TO_JOIN:
            _log.warning("the hint %s has no effect: it chooses how Flink joins", hint.name.text.upper())
            continue
        if hint.name.text.upper() != "STATE_TTL":
            raise SqlFault(hint.span, f"the hint {hint.name.text} is not supported", "there is STATE_TTL('a' = '1d')")
        for alias, time in hint.options:
            with at(hint.span):
                found[alias.lower()] = f"{parse_ms(time, name='STATE_TTL')}ms"
    return found


def check_ttl(ttl: Mapping[str, str], select: SelectBody, relation: Relation) -> None:
    """Raises SqlFault if the hint STATE_TTL names a table that FROM does not have. Warns where it has no effect, since the
    query neither joins tables nor groups rows.
    """
    known = {each.qualifier.lower(): each.qualifier for each in relation.fields if each.qualifier}
    for alias in ttl:
        if alias not in known:
            message = f'FROM has no table "{alias}"'
            raise SqlFault(select.hints[0].span, message, list_names(alias, known.values()))
        ranked = relation.ranking is not None or any(
            isinstance(each, Call) and each.over for each in walk(select.items)
        )
        if not isinstance(select.source, JoinSource) and not select.group and not ranked:
            _log.warning(
                "STATE_TTL('%s') has no effect: it bounds the rows of a join, and the keys of a GROUP BY and of first rows",
                known[alias],
            )


def renamed(relation: Relation, alias: Alias) -> Relation:
    """Returns the table under an alias, with the names of its columns if the alias has them."""
    if not alias.columns:
        return relation.named(alias.name.text)
    if len(alias.columns) != len(relation.fields):
        message = f"{alias.name.text} has {len(relation.fields)} columns, and {len(alias.columns)} names"
        raise SqlFault(alias.name.span.to(alias.columns[-1].span), message)
    fields = [
        replace(each, name=name.text, qualifier=alias.name.text)
        for each, name in zip(relation.fields, alias.columns, strict=True)
    ]
    return replace(relation, fields=tuple(fields))
