"""The binder of queries: WITH, UNION, and the tables and joins of FROM."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from sabot.api import aggregates
from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.api.nodes.changes import SortRows
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow, tumbling
from sabot.config import parse_ms
from sabot.sql.equal_steps import without_repeats
from sabot.sql.patterns import bind_match
from sabot.sql.registered import RegisteredModel, has_calls, predicted, with_calls
from sabot.sql.scope import (
    Names,
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    at,
    names_of,
    node_of,
    part_of_statement,
    statement_name,
    steps_of,
)
from sabot.sql.select import SelectBinder, columns_of, has_aggregate, order_columns
from sabot.sql.subqueries import check_one_row, with_value, without_partners
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Alias,
    Between,
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
    Interval,
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
)
from sabot.sql.types import common_type, interval_ms, sql_type
from sabot.sql.values import Binder, Context, conjuncts, mirrored, rebuilt, walk
from sabot.sql.window_tops import window_top, window_top_in_time
from sabot.sql.windows import TABLE_WINDOWS, opened, positional, table_window

_log = logging.getLogger(__name__)

Lookup = Callable[[tuple[Name, ...]], Relation]
"""A function that returns the table or view of a name; raises SqlFault if there is none."""

_HOW = {"INNER": "inner", "COMMA": "inner", "CROSS": "inner", "LEFT": "left", "RIGHT": "right", "FULL": "full"}
_COMPARISONS = ("<", "<=", ">", ">=")


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
        if query.offset is not None:
            raise SqlFault(
                query.offset.span, "OFFSET is not supported", "ORDER BY … LIMIT n, and skip rows of the result"
            )
        if query.order:
            return self._ordered(query, relation, added)
        if query.limit is None:
            return relation
        with at(query.limit.span):
            return replace(relation, stream=relation.stream.head(self._limit(query.limit)))

    def _ordered(self, query: Query, relation: Relation, added: int) -> Relation:
        """Returns the rows of ORDER BY: with LIMIT, the first ones, which are updated as rows come; without, all rows,
        at the end of the input, or by event time. `added`: the number of columns at the end that only the order needs.
        """
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
        by, ordered = order_columns(self._context, relation, order)
        names = [name for name, _ in by]
        with at(query.span):
            keyed = ordered.stream.key_by(every=lit(0))
            stream = keyed.top_n(self._limit(query.limit), by=names, descending=[down for _, down in by])
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

    def _limit(self, node: Expression) -> int:
        value: Any = int(node.text) if isinstance(node, Constant) and node.kind == "integer" else None
        if isinstance(node, Parameter):
            value = self._context.parameters.get(node.name)
        if not isinstance(value, int):
            raise SqlFault(node.span, "LIMIT takes a whole number")
        return value

    def _with(self, query: Query) -> "QueryBinder":
        tables: dict[str, Relation] = {}

        def lookup(parts: tuple[Name, ...]) -> Relation:
            found = tables.get(parts[0].text.lower()) if len(parts) == 1 else None
            return found or self._lookup(parts)

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
        return self._union(body)

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

    def _union(self, body: SetOperation) -> Relation:
        if body.operator != "UNION":
            raise SqlFault(body.span, f"{body.operator} is not supported", "write a join, or WHERE x IN (SELECT …)")
        left, right = self._body(body.left), self._body(body.right)
        names = [each.name for each in left.fields]
        if len(names) != len(right.fields):
            message = f"UNION of {len(names)} and {len(right.fields)} columns"
            raise SqlFault(body.right.span, message)
        for relation in (left, right):
            check_plain(relation, body.span, "before UNION")
        fields = []
        for mine, its in zip(left.fields, right.fields, strict=True):
            type = common_type(mine.type, its.type)
            if type is None:
                message = f"column {mine.name} of UNION is {sql_type(mine.type)} and {sql_type(its.type)}"
                raise SqlFault(body.right.span, message, f"CAST({its.name} AS {sql_type(mine.type)})")
            shift = mine.shift_ms if mine.shift_ms == its.shift_ms else None
            never = mine.never_null and its.never_null
            mine = replace(mine, qualifier="", column=mine.name, type=type, shift_ms=shift, window=None)
            fields.append(replace(mine, never_null=never))
        with at(body.span):
            streams = [self._as_columns(relation, fields) for relation in (left, right)]
            stream = streams[0].union(streams[1])
            if not body.all:
                stream = stream.deduplicate(*(each.column for each in fields))
        return Relation(stream, tuple(fields))

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
        where = conjuncts(select.where)
        binder = QueryBinder(self._context, self._lookup, state_ttl(select.hints))
        if select.source is None:
            relation = replace(self._constant_rows({"row": [lit(1)]}, select.span), fields=())
        else:
            relation = binder._source(select.source, where)
        relation = self._semi_joins(relation, where)
        relation, select, where = self._values_of_queries(relation, select, where)
        return SelectBinder(self._context, select, relation, where, waits=waits).bind()

    def _qualified(self, select: SelectBody, qualify: Expression) -> Relation:
        """Returns the rows of SELECT … QUALIFY: those of a query inside that meet the condition outside."""
        added: list[Item] = []

        def outside(node: Any) -> Any:
            if isinstance(node, Call) and node.over is not None:
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
            select, distinct=False, items=items, where=None, group=(), having=None, qualify=None, hints=(), source=None
        )
        return SelectBinder(self._context, outer, inner, conjuncts(condition)).bind()

    # -- FROM ---------------------------------------------------------------------------------------------------------

    def _source(self, source: Source, where: list[Expression]) -> Relation:
        """Returns the rows of FROM. Conditions of `where` that a join uses are taken out of it."""
        if isinstance(source, TableName):
            if source.as_of is not None:
                raise SqlFault(source.as_of.span, "FOR SYSTEM_TIME AS OF stands behind JOIN")
            if source.hints:
                raise SqlFault(source.hints[0].span, f"the hint {source.hints[0].name.text} is not supported")
            relation = self._lookup(source.parts).named(source.parts[-1].text)
            return relation if source.alias is None else renamed(relation, source.alias)
        if isinstance(source, Derived):
            if source.lateral:
                raise SqlFault(source.span, "LATERAL (SELECT …) is not supported")
            if source.alias is None:
                return self.query(source.query, waits=True)
            with part_of_statement(source.alias.name.text.lower()):
                return renamed(self.query(source.query, waits=True), source.alias)
        if isinstance(source, TableFunction):
            return self._table_function(source)
        if isinstance(source, MatchRecognize):
            relation = self._opened(source.input, self._source(source.input, []))
            check_plain(relation, source.input.span, "before MATCH_RECOGNIZE", clocks=True)
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
            raise SqlFault(source.call.name.span, f"there is no table function {source.call.name.text}", hint)
        arguments = positional(source.call).arguments
        first = arguments[0] if arguments else None
        if not isinstance(first, TableArgument):
            raise SqlFault(source.call.span, f"{name} needs TABLE t", "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL …)")
        if first.partition:
            raise SqlFault(first.span, "PARTITION BY of a table argument is not supported", "write it in GROUP BY")
        inner = self.query(first.table) if isinstance(first.table, Query) else self._lookup(first.table)
        relation = table_window(source.call, inner.named(""))
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
        relation = self.query(table.table) if isinstance(table.table, Query) else self._lookup(table.table)
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
        if isinstance(join.right, TableFunction) and join.right.call.name.text.upper() == "UNNEST":
            return self._unnested(join, left, join.right)
        if isinstance(join.right, TableName) and join.right.as_of is not None:
            return self._as_of(join, left, join.right)
        right = self._opened(join.right, self._source(join.right, where if inner else []))
        for side, tree in ((left, join.left), (right, join.right)):
            if side.ranking is not None:
                raise SqlFault(tree.span, "group or bound the rows of this table before they are joined")
        return _JoinBinder(self._context, join, left, right, where if inner else [], self._ttl, where).bind()

    def _opened(self, tree: Source, relation: Relation) -> Relation:
        """Returns the rows of a window table, each once for each of its windows; the rows of any other table unchanged."""
        if relation.window is None:
            return relation
        with at(tree.span):
            return opened(relation, tree.span)

    def _unnested(self, join: JoinSource, left: Relation, table: TableFunction) -> Relation:
        """Returns the rows of `left` with those of UNNEST(array): a row for each element."""
        is_true = isinstance(join.on, Constant) and join.on.text.upper() == "TRUE"
        if join.kind not in ("CROSS", "COMMA", "INNER", "LEFT") or not (join.on is None or is_true) or join.using:
            raise SqlFault(join.span, "UNNEST is joined by CROSS JOIN, or by LEFT JOIN … ON TRUE")
        if table.ordinality or len(table.call.arguments) != 1:
            raise SqlFault(table.span, "UNNEST has one array, and no ORDINALITY")
        bound = Binder(self._context, left).bind(table.call.arguments[0])
        if not pa.types.is_list(bound.type):
            raise SqlFault(table.call.span, f"UNNEST of {sql_type(bound.type)}", "it takes an ARRAY")
        names, element = names_of(left), bound.type.value_type
        column, outer = names.free("element"), join.kind == "LEFT"
        with at(table.span):
            stream = left.stream.with_columns(**{column: bound.expr})
            stream = stream.explode(column, empty_as_null=outer, keep_nulls=outer)
        qualifier = "" if table.alias is None else table.alias.name.text
        fields = [TableColumn(qualifier, "EXPR$0", column, element)]
        if pa.types.is_struct(element):
            made = {names.free(each.name): (each, col(column)[each.name]) for each in element}
            stream = stream.with_columns(**{name: expr for name, (_, expr) in made.items()})
            fields = [TableColumn(qualifier, each.name, name, each.type) for name, (each, _) in made.items()]
        added = Relation(stream, tuple(fields))
        if table.alias is not None:
            added = renamed(added, table.alias)
        return Relation(stream, (*left.fields, *added.fields))

    def _as_of(self, join: JoinSource, left: Relation, table: TableName) -> Relation:
        node = table.as_of
        if not isinstance(node, Column) or join.kind not in ("INNER", "LEFT"):
            raise SqlFault(table.span, "AS OF takes a column of time of the left table, behind JOIN or LEFT JOIN")
        field, further = left.find(node.parts)
        right = self._lookup(table.parts).named(table.parts[-1].text)
        right = right if table.alias is None else renamed(right, table.alias)
        binder = _JoinBinder(self._context, join, left, right, [])
        if field.clock:
            return binder.bind_lookup()
        if further or field.shift_ms != 0:
            raise SqlFault(node.span, f"{node.parts[-1].text} is neither the event time nor PROCTIME()")
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
            check_one_row(node.query)
            inner = self._not_correlated(node.query, relation)
            with at(node.span):
                relation, field = with_value(relation, inner, node.query, node.span)
            return Column((StarName("", node.span, True, field),), node.span)

        where = list(rebuilt(tuple(where), column_of))
        if not (select.group or select.having is not None or has_aggregate(select.items)):
            select = replace(select, items=rebuilt(select.items, column_of))
        return relation, select, where

    def _not_correlated(self, query: Query, outer: Relation) -> Relation:
        try:
            return self.query(query)
        except SqlFault as error:
            for node in walk(query.body):
                at_fault = isinstance(node, Column) and node.span.start <= error.fault.span.start < node.span.end
                if at_fault and self._bound(node, outer) is not None:
                    hint = "join it: LEFT JOIN (SELECT key, MAX(x) AS x FROM t GROUP BY key) m ON …"
                    message = "this query cannot use columns of the query outside"
                    raise SqlFault(node.span, message, hint) from error
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
            inner = self._not_correlated(node.values, relation)
            check_plain(inner, node.values.span, "before IN")
            operands = node.operand.items if isinstance(node.operand, Items) else (node.operand,)
            if len(inner.fields) != len(operands):
                raise SqlFault(
                    node.values.span, f"the query of IN has {len(operands)} column{'s' * (len(operands) > 1)}"
                )
            if node.negated and len(operands) > 1:
                raise SqlFault(node.span, "NOT IN of several columns is not supported", "write NOT EXISTS (SELECT …)")
            binder = Binder(self._context, relation)
            keys = [
                same_type(node, binder.bind(operand), TypedExpr(col(its.column), its.type))
                for operand, its in zip(operands, inner.fields, strict=True)
            ]
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
        body = query.body
        if not isinstance(body, SelectBody) or body.source is None or query.limit is not None or query.order:
            raise SqlFault(query.span, "EXISTS takes a SELECT … FROM … WHERE …")
        if body.group or body.having is not None or body.qualify is not None or has_aggregate(body.items):
            raise SqlFault(body.span, "EXISTS takes no groups and aggregates", "write WHERE x IN (SELECT …), or a join")
        binder = self._with(query) if query.tables else self
        conditions = conjuncts(body.where)
        inner = binder._source(body.source, conditions)
        check_plain(inner, body.span, "before EXISTS", clocks=True)
        inner = binder._semi_joins(inner, conditions)
        keys: list[tuple[TypedExpr, TypedExpr]] = []
        for node in conditions:
            own = self._bound(node, inner)
            if own is not None:
                with at(node.span):
                    predicate = Binder(self._context, inner).predicate(node)
                    inner = replace(inner, stream=inner.stream.filter(predicate))
                continue
            keys.append(self._correlated(node, relation, inner))
        if not keys:
            raise SqlFault(query.span, "EXISTS needs a condition that joins its query", "WHERE b.id = a.id")
        left_on, right_on = [key.expr for key, _ in keys], [key.expr for _, key in keys]
        with at(query.span):
            stream = relation.stream.join(inner.stream, left_on=left_on, right_on=right_on, how=how)
        return replace(relation, stream=stream)

    def _correlated(self, node: Expression, outer: Relation, inner: Relation) -> tuple[TypedExpr, TypedExpr]:
        """Returns the two sides of a condition `outer column = inner column`."""
        if isinstance(node, Binary) and node.operator == "=":
            for one, other in ((node.left, node.right), (node.right, node.left)):
                left, right = self._bound(one, outer), self._bound(other, inner)
                if left is not None and right is not None and self._bound(one, inner) is None:
                    return same_type(node, left, right)
        Binder(self._context, Relation(inner.stream, (*inner.fields, *outer.fields))).bind(node)  # a wrong name
        raise SqlFault(node.span, "the query of EXISTS is joined by equal columns only", "write a join")

    def _bound(self, node: Expression, relation: Relation) -> TypedExpr | None:
        try:
            return Binder(self._context, relation).bind(node)
        except SqlFault:
            return None


def _is_time(column: TableColumn) -> bool:
    """Returns True for the event time of the rows, and for bounds of windows that have a fixed distance from it."""
    edge = column.window
    fixed = edge is not None and isinstance(edge.window, TumblingWindow | HoppingWindow)
    return column.shift_ms is not None or fixed


def _with_columns_of_order(query: Query, body: SelectBody) -> tuple[Query, int]:
    """Returns the query with further columns for entries of ORDER BY that are no columns of the result, and their number.

    SELECT a FROM t ORDER BY b     ->     SELECT a, b AS order0 FROM t ORDER BY order0, and then a alone
    """
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
        if own and not has_aggregate([Item(node, None, node.span)]):
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


def _nothing() -> Relation:
    """Returns a table without columns, for expressions without columns."""
    no_rows: Any = None
    return Relation(no_rows, ())


_CANNOT_FAIL = frozenset(
    [
        *("col", "lit", "alias", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^", "not", "is_null", "is_not_null"),
        *("is_in", "between", "fill_null", "str.lower", "str.upper", "str.startswith", "str.endswith", "str.contains"),
    ]
)
"""The kinds of expressions that have a value, or NULL, whatever the values of their inputs are."""


def cannot_fail(expr: Expr) -> bool:
    """Returns True if an expression has a value, or NULL, for each row. A cast, a sum or a division may fail."""
    if expr.kind == "%" and expr.inputs[1].kind == "lit":
        return bool(expr.inputs[1].option("value")) and cannot_fail(expr.inputs[0])
    return expr.kind in _CANNOT_FAIL and all(map(cannot_fail, expr.inputs))


def check_plain(relation: Relation, span: Span, place: str, *, clocks: bool = False) -> None:
    """Raises SqlFault for rows with columns that have no values yet. `place`: the clause that needs them. `clocks`: True
    if columns of the time of processing are allowed.
    """
    for each in relation.fields:
        if each.clock and not clocks:
            raise SqlFault(span, f"{each.name} is the time of processing, which has no value in a row")
    if relation.ranking is not None or relation.window is not None:
        raise SqlFault(span, f"group or bound the rows of this query {place}")


def state_ttl(hints: Sequence[Hint]) -> dict[str, str]:
    """Returns the times of the hint STATE_TTL('a' = '1d'), by the alias of a table in lower case."""
    found: dict[str, str] = {}
    for hint in hints:
        if hint.name.text.upper() != "STATE_TTL":
            raise SqlFault(hint.span, f"the hint {hint.name.text} is not supported", "there is STATE_TTL('a' = '1d')")
        for alias, time in hint.options:
            with at(hint.span):
                found[alias.lower()] = f"{parse_ms(time, name='STATE_TTL')}ms"
    return found


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


def same_type(node: Expression, left: TypedExpr, right: TypedExpr) -> tuple[TypedExpr, TypedExpr]:
    """Returns the keys of a join with one type. Raises SqlFault at `node` if their types cannot be compared."""
    type = common_type(left.type, right.type)
    if type is None:
        message = f"{sql_type(left.type)} and {sql_type(right.type)} are never equal"
        raise SqlFault(node.span, message, "write a CAST")
    cast = [key if key.type == type else TypedExpr(key.expr.cast(type), type) for key in (left, right)]
    return cast[0], cast[1]


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
            chosen = TableColumn("", left.name, column, left.type)
        made.append(replace(chosen, qualifier="", name=left.name))
        for old in (left, right):
            fields[fields.index(old)] = replace(old, merged=True)
    return Relation(stream, (*made, *fields))


_EVENT_TIMES = (pa.timestamp("ms"), pa.timestamp("ms", tz="UTC"))
_RANKED = ("every", "window_start", "window_end")  # the columns that a ranking in windows adds


def _is_ranked(type: pa.DataType) -> bool:
    """Returns True for values that equal the greatest one if they are first by it. NaN is not so."""
    return bool(pa.types.is_integer(type) or pa.types.is_temporal(type))


class _JoinBinder:
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
        self._residual: list[Expression] = []

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
        """Uses a condition as a key or as a bound of time, and returns True; False if it is neither."""
        if isinstance(node, Between) and not node.negated:
            lower = self._bound_of_time(node.operand, ">=", node.lower)
            upper = self._bound_of_time(node.operand, "<=", node.upper)
            if lower is None or upper is None:
                return False
            for bound in (lower, upper):
                self._narrow(*bound)
            return True
        if not isinstance(node, Binary):
            return False
        if node.operator == "=":
            for one, other in ((node.left, node.right), (node.right, node.left)):
                left, right = self._side(one, self._left), self._side(other, self._right)
                if left is not None and right is not None:
                    self._keys.append((node, *same_type(node, left, right)))
                    return True
            return False
        if node.operator in _COMPARISONS:
            found = self._bound_of_time(node.left, node.operator, node.right)
            if found is not None:
                self._narrow(*found)
                return True
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
        return self._joined(stream, left, right, outer)

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
            keyed = stream.key_by(every=lit(0)).window(window)
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
            ranked = rows.key_by(every=lit(0)).window(window)
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
                if cannot_fail(predicate):
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
        known = node_of(side.stream).column_names or ()
        new = {name: names.free(f"row_{name}") for name in ("window_start", "window_end") if name in known}
        if not new:
            return side
        for i, (node, left, right) in enumerate(self._keys):
            key = left if place == 1 else right
            column = new.get(key.expr.column or "")
            if column is not None:
                made = TypedExpr(col(column), key.type)
                self._keys[i] = (node, made, right) if place == 1 else (node, left, made)
        fields = tuple(replace(each, column=new.get(each.column, each.column)) for each in side.fields)
        return replace(side, stream=side.stream.rename(new), fields=fields)

    def _kept(self, side: Relation) -> str | None:
        """Returns the time for which STATE_TTL keeps the rows of a table, or None for ever."""
        return next(
            (self._ttl[each.qualifier.lower()] for each in side.fields if each.qualifier.lower() in self._ttl), None
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
        return self._bind_point(lambda stream, other, options: stream.lookup(other, **options))

    def bind_as_of(self) -> Relation:
        """Returns the rows of the left table with the version of the right one at their event time."""
        return self._bind_point(lambda stream, other, options: stream.join_asof(other, **options))

    def _bind_point(self, make: Callable[[Any, Any, dict[str, Any]], Any]) -> Relation:
        self._sort_conditions()
        if not self._keys or self._residual:
            node = self._residual[0] if self._residual else self._join
            raise SqlFault(node.span, "AS OF needs ON a.key = b.key, and nothing else")
        left, right, outer = self._copied(self._left, self._right)
        left_on, right_on = [key.expr for _, key, _ in self._keys], [key.expr for _, _, key in self._keys]
        options = {"left_on": left_on, "right_on": right_on, "how": self._how}
        with at(self._join.span):
            stream = make(left.stream, right.stream, options)
        return self._joined(stream, left, right, outer)

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
        fields = []
        sides = [(each, self._how in ("inner", "left")) for each in left.fields]
        sides += [(each, self._how in ("inner", "right")) for each in right.fields]
        for each, kept in sides:
            column = outer.get(each.column, each.column)
            if each.clock:
                continue
            if node.column_names is not None and column not in node.column_names:
                column = same.get(each.column) or column
            shift = each.shift_ms if node.event_times.get(column) else None
            fields.append(replace(each, column=column, shift_ms=shift, never_null=each.never_null and kept))
        relation = Relation(stream, tuple(fields))
        if self._join.using:
            relation = _merged(relation, self._join, sum(not each.clock for each in left.fields))
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
                    f"{self._join.kind} JOIN takes equal columns, bounds of time, and conditions on one of the tables",
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
        edges: dict[str, Any] = {}
        for _, left, right in self._keys:
            one = next((each for each in self._left.fields if each.column == left.expr.column), None)
            other = next((each for each in self._right.fields if each.column == right.expr.column), None)
            if one is None or other is None or one.window is None or one.window != other.window:
                continue
            edges[one.window.edge] = one.window.window
        if set(edges) != {"start", "end"} or self._lower is not None or self._upper is not None:
            return None
        window = edges["end"]
        if isinstance(window, TumblingWindow):
            every = window.size_ms
        elif isinstance(window, HoppingWindow):
            every = window.slide_ms
        elif isinstance(window, CumulativeWindow):
            every = window.step_ms
        else:
            return None
        return tumbling(f"{every}ms", offset=f"{window.offset_ms % every}ms")
