"""Joins of rows with queries: of NOT IN (SELECT …), and of a query in the place of a value."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from sabot.api.aggregates import max as greatest
from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.sql.bind.groups import has_aggregate, is_aggregate
from sabot.sql.scope import Names, Relation, TableColumn, TypedExpr, names_of, node_of
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Case, Constant, Expression, Query, SelectBody, ValuesBody
from sabot.sql.values import Binder, Context, rebuilt


def without_partners(stream: Stream, inner: Stream, mine: TypedExpr, its: TypedExpr) -> Stream:
    """Returns the rows for which `mine NOT IN (SELECT its …)` is true.

    A row whose key is in the query is dropped. A comparison with NULL is neither true nor false, so a NULL on
    either side drops the row too, but for one case: the query has no rows.

        key     query         NOT IN
        1       2, 3          true
        1       2, NULL       NULL
        NULL    2             NULL
        NULL    (no rows)     true
    """
    found = stream.join(inner, left_on=mine.expr, right_on=its.expr, how="anti")
    names = Names(set(node_of(stream).column_names or ()))
    nulls = names.free("nulls")  # 1 if the query has a NULL, 0 if it has none, NULL if it has no rows
    every = Names(set(node_of(inner).column_names or ())).free("every")
    rows = (
        inner.group_by(**{every: lit(0)})
        .aggregate(ttl=None, **{nulls: greatest(its.expr.is_null().cast("int64"))})
        .select(nulls)
    )
    passes = col(nulls).is_null() | ((col(nulls) == 0) & mine.expr.is_not_null())
    return found.join(rows, left_on=lit(0), right_on=lit(0), how="left").filter(passes).drop(nulls)


def check_one_row(query: Query) -> None:
    """Raises SqlFault for a query in the place of a value that may have several rows."""
    body = query.body
    limited = isinstance(query.limit, Constant) and query.limit.text == "1"
    single = isinstance(body, ValuesBody) and len(body.rows) == 1
    if isinstance(body, SelectBody) and not body.group:
        single = body.source is None or has_aggregate(body.items)
    if not (limited or single):
        raise SqlFault(
            query.span,
            "a query as a value has one row: one aggregate without GROUP BY, or LIMIT 1",
            "SELECT MAX(x) FROM t",
        )


def with_value(
    context: Context,
    relation: Relation,
    inner: Relation,
    query: Query,
    keys: Sequence[tuple[TypedExpr, TypedExpr]],
) -> tuple[Relation, TableColumn]:
    """Returns the rows with the value of a query in a column that only its own place in the statement finds. `keys`: equal
    columns of the rows and of the query, if it has a value for each value of these columns.

    As long as the query has no row, the value is that of its aggregates over no rows (`_without_rows`). The rows are
    updated when the value changes. A query whose input ends gives its value then, and never changes it.
    """
    if len(inner.fields) != 1:
        raise SqlFault(query.span, "a query as a value has one column")
    (field,) = inner.fields
    names = names_of(relation)
    name, found = names.free("value"), names.free("found")
    otherwise = _without_rows(context, inner, query.body)
    columns = {name: col(field.column)} | ({} if otherwise is None else {found: lit(True)})
    places = [names.free("key") for _ in keys]
    columns |= {place: its.expr for place, (_, its) in zip(places, keys, strict=True)}
    rows = inner.stream.select(**columns)
    if rows.changes and endless_read(node_of(rows)) is None:
        rows = rows.materialize()
    left_on: list[Expr] = [mine.expr for mine, _ in keys] or [lit(0)]
    right_on: list[Expr] = [col(place) for place in places] or [lit(0)]
    stream = relation.stream.join(rows, left_on=left_on, right_on=right_on, how="left")
    if otherwise is not None:
        value = when(col(found).is_null()).then(otherwise.cast(field.type)).otherwise(col(name))
        stream = stream.with_columns(**{name: value}).drop(found)
    added = TableColumn("", "", name, field.type, merged=True, shown=field.shown)
    return replace(relation, stream=stream, fields=(*relation.fields, added)), added


def with_values_of_no_rows(
    context: Context, relation: Relation, inner: Relation, body: SelectBody, unmatched: Expr
) -> Relation:
    """Returns the rows of a join with the aggregates of a SELECT without GROUP BY (LATERAL) whose values are those of no
    rows where the SELECT has none, such as 0 for COUNT(*). `relation`: its last fields are those of the SELECT. `inner`:
    the rows of the SELECT. `unmatched`: true in the rows of the join for which the SELECT has no row.
    """
    names, columns, fields = names_of(relation), {}, list(relation.fields)
    for place, item in enumerate(body.items, len(fields) - len(body.items)):
        otherwise = _without_rows(context, inner, replace(body, items=(item,)))
        if otherwise is not None:
            field, column = fields[place], names.free("value")
            columns[column] = when(unmatched).then(otherwise.cast(field.type)).otherwise(col(field.column))
            fields[place] = replace(field, column=column)
    return (
        replace(relation, stream=relation.stream.with_columns(**columns), fields=tuple(fields)) if columns else relation
    )


def _without_rows(context: Context, inner: Relation, body: Any) -> Expr | None:
    """Returns the value of a query with aggregates and without GROUP BY whose table has no rows, or None if it is NULL.

        SELECT COUNT(*) + 1                    1
        SELECT COALESCE(SUM(x), 0)             0
        SELECT COUNT(*) … HAVING COUNT(*) > 5  NULL

    The engine has no row for such a query until its table has one. `inner`: the rows of the query.
    """
    if not isinstance(body, SelectBody) or body.group or body.qualify is not None or not has_aggregate(body.items):
        return None
    made: Expression = body.items[0].expression
    if body.having is not None:
        made = Case(None, ((body.having, made),), None, made.span)

    def of_no_rows(node: Any) -> Any:
        if not is_aggregate(node):
            return node
        counts = node.name.text.upper() in ("COUNT", "APPROX_COUNT_DISTINCT")
        return Constant("integer", "0", node.span) if counts else Constant("null", "NULL", node.span)

    try:
        value = Binder(context, Relation(inner.stream, ())).bind(rebuilt(made, of_no_rows)).expr
    except SqlFault:  # NULL = 1 is refused where a text says so
        return None
    return None if context.compile(value, pa.schema([])).value.as_py() is None else value
