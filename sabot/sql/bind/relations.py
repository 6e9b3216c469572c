"""The binder of queries: it binds the parts of a query one in another, WITH, SELECT, FROM and VALUES, and gives each clause to
its module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import pyarrow as pa

from sabot.api.expr import Expr, col, lit
from sabot.sql.bind.groups import has_aggregate
from sabot.sql.bind.hints import check_ttl, options_hint, state_ttl
from sabot.sql.bind.joins.as_of import bind_system_time
from sabot.sql.bind.joins.conditions import JoinConditions, same_type
from sabot.sql.bind.joins.join import JoinBinder
from sabot.sql.bind.nested import is_over, over_groups, qualified
from sabot.sql.bind.order import limit_of, limited, ordered, with_columns_of_order
from sabot.sql.bind.patterns import bind_match
from sabot.sql.bind.rankings import ranked, ranked_side
from sabot.sql.bind.select import SelectBinder, of_sets
from sabot.sql.bind.set_operations import combined
from sabot.sql.bind.subqueries import (
    bound,
    check_one_row,
    correlated,
    exists,
    in_correlated,
    in_query,
    with_value,
    with_values_of_no_rows,
)
from sabot.sql.bind.table_functions import is_true, table_function, unnested
from sabot.sql.bind.windows import opened
from sabot.sql.scope import (
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    at,
    check_plain,
    is_clock,
    node_of,
    part_of_statement,
    renamed,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Binary,
    Body,
    Call,
    Column,
    Constant,
    Derived,
    Exists,
    Expression,
    Hint,
    In,
    Item,
    Items,
    JoinSource,
    MatchRecognize,
    Name,
    Query,
    SelectBody,
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
from sabot.sql.values import Binder, Context, conjuncts, rebuilt, walk

Lookup = Callable[[tuple[Name, ...], Hint | None], Relation]
"""A function that returns the table or view of a name, read with the options of the hint OPTIONS if there is one; raises
SqlFault if there is none.
"""


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
            query, added = with_columns_of_order(query, query.body)
        waits = waits and query.limit is None and not query.order
        relation = (
            binder._select(query.body, waits=waits) if isinstance(query.body, SelectBody) else binder._body(query.body)
        )
        if query.offset is not None and not (query.order and query.limit is not None):
            raise SqlFault(query.offset.span, "OFFSET needs ORDER BY and LIMIT", "ORDER BY x LIMIT 10 OFFSET 20")
        if query.order:
            return ordered(self._context, query, relation, added)
        return relation if query.limit is None else limited(self._context, query, relation)

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
        return combined([self._body(body.left), self._body(body.right)], body)

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
                values = [self._context.compile(expr, pa.schema([]), {}).value for expr in exprs]
                made[name] = pa.array([value.as_py() for value in values], values[0].type)
            stream = self._context.rows(pa.table(made))
        return Relation(stream, tuple(TableColumn("", name, name, each.type) for name, each in made.items()))

    def _select(self, select: SelectBody, *, waits: bool = False) -> Relation:
        if select.qualify is not None:
            return qualified(self._context, select, select.qualify, self._select)
        grouped = bool(select.group) or select.having is not None or has_aggregate(select.items)
        starred = any(isinstance(item.expression, Star) for item in select.items)
        if grouped and not starred and any(is_over(node) for node in walk(select.items)):
            return over_groups(self._context, select, self._select)
        where = conjuncts(select.where)
        ttl = state_ttl(select.hints)
        binder = QueryBinder(self._context, self._lookup, ttl)
        if select.source is None:
            relation = replace(self._constant_rows({"row": [lit(1)]}, select.span), fields=())
        else:
            relation = binder._source(select.source, where)
        check_ttl(ttl, select, relation)
        if relation.ranking is not None and any(isinstance(node, Query) for each in where for node in walk(each)):
            relation = ranked(self._context, relation, where)  # IN and EXISTS filter the ranked rows
        own = None if isinstance(select.source, JoinSource) else next(iter(ttl.values()), None)
        relation = self._semi_joins(relation, where)
        relation, select, where = self._values_of_queries(relation, select, where)
        if len(select.sets) > 1:
            made = of_sets(self._context, select, relation, where, own)
        else:
            made = SelectBinder(self._context, select, relation, where, waits=waits, ttl=own).bind()
        if select.emit_on_close is not None and made.stream is not None and made.stream.changes:
            raise SqlFault(
                select.emit_on_close,
                "the rows of this query are updated as rows come, and it has no window that closes",
                "GROUP BY window_start, window_end of a window; or without EMIT ON WINDOW CLOSE",
            )
        return made

    # -- FROM ---------------------------------------------------------------------------------------------------------

    def _source(self, source: Source, where: list[Expression]) -> Relation:
        """Returns the rows of FROM. Conditions of `where` that a join uses are taken out of it."""
        if isinstance(source, TableName):
            if source.as_of is not None:
                name = source.parts[-1].text
                hint = f"FROM a JOIN {name} FOR SYSTEM_TIME AS OF a.ts ON a.id = {name}.id"
                raise SqlFault(source.as_of.span, "FOR SYSTEM_TIME AS OF stands behind JOIN", hint)
            relation = self._lookup(source.parts, options_hint(source)).named(source.parts[-1].text)
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
            return table_function(self._context, source, self._argument)
        if isinstance(source, MatchRecognize):
            relation = self._opened(source.input, self._source(source.input, []))
            check_plain(relation, source.input.span, "before MATCH_RECOGNIZE", clocks=True)
            if not source.measures and not source.partition:
                message = "MATCH_RECOGNIZE has the columns of PARTITION BY and MEASURES, and there are none"
                raise SqlFault(source.span, message, "MEASURES FIRST(A.x) AS x")
            relation = bind_match(self._context, source, relation)
            return relation if source.alias is None else renamed(relation, source.alias)
        return self._join(source, where)

    def _argument(self, argument: TableArgument) -> Relation:
        """Returns the rows of the argument TABLE of a table function."""
        table = argument.table
        return self.query(table) if isinstance(table, Query) else self._lookup(table, None)

    # -- joins --------------------------------------------------------------------------------------------------------

    def _join(self, join: JoinSource, where: list[Expression]) -> Relation:
        inner = join.kind in ("INNER", "COMMA", "CROSS")
        left = self._source(join.left, where if inner else [])
        left = self._opened(join.left, left)
        if left.ranking is not None:
            bounds = where if inner or join.kind == "LEFT" else []
            left, join = ranked_side(self._context, join, left, join.left, bounds, ("INNER", "RIGHT"))
        if isinstance(join.right, TableFunction):
            call = join.right.call
            if call.name.text.lower() in self._context.registered:  # LATERAL TABLE(f(x)): f returns an array
                call = Call(Name("UNNEST", call.name.span), (call,), call.span)
            if call.name.text.upper() == "UNNEST":
                return unnested(self._context, join, left, replace(join.right, call=call))
        if isinstance(join.right, Derived) and join.right.lateral:
            return self._lateral(join, left, join.right, where if inner or join.kind == "LEFT" else [])
        if isinstance(join.right, TableName) and join.right.as_of is not None:
            return self._as_of(join, left, join.right)
        right = self._opened(join.right, self._source(join.right, where if inner else []))
        if right.ranking is not None:
            bounds = where if inner or join.kind == "RIGHT" else []
            right, join = ranked_side(self._context, join, right, join.right, bounds, ("INNER", "LEFT"))
        on = JoinConditions(self._context, join, left, right, where if inner else [])
        return JoinBinder(on, self._ttl, where).bind()

    def _opened(self, tree: Source, relation: Relation) -> Relation:
        """Returns the rows of a window table, each once for each of its windows; the rows of any other table unchanged."""
        if relation.window is None:
            return relation
        with at(tree.span):
            return opened(relation, tree.span, self._context.zone)

    def _as_of(self, join: JoinSource, left: Relation, table: TableName) -> Relation:
        node = table.as_of
        is_now = node is not None and is_clock(node)
        if not (is_now or isinstance(node, Column)) or join.kind not in ("INNER", "LEFT"):
            hint = "FOR SYSTEM_TIME AS OF a.ts, its event time, or PROCTIME()"
            message = "AS OF takes a column of time of the left table, behind JOIN or LEFT JOIN"
            raise SqlFault(table.span, message, hint)
        right = self._lookup(table.parts, options_hint(table)).named(table.parts[-1].text)
        right = right if table.alias is None else renamed(right, table.alias)
        return bind_system_time(self._context, join, left, right, table)

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
            own = any(isinstance(each, Query) for each in walk(node)) or bound(self._context, node, inner) is not None
            if own:
                kept.append(node)
                continue
            correlated(self._context, node, outer, inner, what)
            assert isinstance(node, Binary)
            sides = (node.left, node.right)
            pairs.append(sides if bound(self._context, node.left, inner) is None else sides[::-1])
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
            body = replace(body, qualify=_among_first(body, keys, query, limit_of(self._context, query.limit)))
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
        own = [] if is_true(join.on) else conjuncts(join.on)
        kind: Any = "LEFT" if single else "INNER" if join.kind in ("CROSS", "COMMA") else join.kind
        if single and own:
            raise SqlFault(own[0].span, "LATERAL with an aggregate is joined ON TRUE", "conditions stand in WHERE")
        condition = reduce(lambda one, other: Binary("AND", one, other, join.span), [*on, *own])
        join = replace(join, kind=kind, on=condition)
        joining = JoinConditions(self._context, join, left, right, where if kind == "INNER" else [])
        joined = JoinBinder(joining, self._ttl, where).bind()
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
                if at_fault and bound(self._context, node, outer) is not None:
                    return None
            raise

    def _rows_inside(self, query: Query, conditions: list[Expression], what: str) -> Relation:
        """Returns the rows of FROM of a query that uses columns outside (`subqueries.RowsInside`)."""
        body = query.body
        assert isinstance(body, SelectBody)
        assert body.source is not None
        binder = self._with(query) if query.tables else self
        inner = binder._opened(body.source, binder._source(body.source, conditions))
        check_plain(inner, body.span, f"before {what}", clocks=True)
        return binder._semi_joins(inner, conditions)

    def _semi_joins(self, relation: Relation, where: list[Expression]) -> Relation:
        """Joins with the queries of IN (SELECT …) and EXISTS (SELECT …) in WHERE."""
        for node in list(where):
            negated = isinstance(node, Unary) and node.operator == "NOT"
            tree = node.operand if isinstance(node, Unary) and negated else node
            if isinstance(tree, Exists):
                relation = exists(self._context, relation, tree.query, "anti" if negated else "semi", self._rows_inside)
                where.remove(node)
                continue
            if not (isinstance(node, In) and isinstance(node.values, Query)):
                continue
            inner = self._uncorrelated(node.values, relation)
            operands = node.operand.items if isinstance(node.operand, Items) else (node.operand,)
            if node.negated and len(operands) > 1:
                raise SqlFault(node.span, "NOT IN of several columns is not supported", "write NOT EXISTS (SELECT …)")
            if inner is None:
                relation = in_correlated(self._context, relation, node, node.values, operands, self._rows_inside)
            else:
                relation = in_query(self._context, relation, node, inner, node.values, operands)
            where.remove(node)
        return relation


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


def _nothing() -> Relation:
    """Returns a table without columns, for expressions without columns."""
    no_rows: Any = None
    return Relation(no_rows, ())
