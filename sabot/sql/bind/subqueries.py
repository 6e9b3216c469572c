"""Queries inside conditions and values: IN (SELECT …) and EXISTS, as joins, and a query in the place of a value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa

from sabot.api.aggregates import max as greatest
from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.sql.bind.groups import has_aggregate, is_aggregate
from sabot.sql.bind.joins.conditions import same_type
from sabot.sql.bind.joins.join import beside_bounds, common_window
from sabot.sql.bind.windows import opened
from sabot.sql.scope import (
    Names,
    Relation,
    TableColumn,
    TypedExpr,
    at,
    check_plain,
    names_of,
    node_of,
    warn_of_growth,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Binary,
    Case,
    Constant,
    Expression,
    In,
    Query,
    SelectBody,
    Star,
    ValuesBody,
)
from sabot.sql.values import Binder, Context, conjuncts, rebuilt

_SEMI_JOINED = "a JOIN with bounds of time (BETWEEN) keeps the rows within them"

RowsInside = Callable[[Query, list[Expression], str], Relation]
"""A function that binds FROM of a query which uses columns of the rows outside. It takes conditions out of the list that joins
use. The text names the place of the query, for messages.
"""


def in_query(
    context: Context, relation: Relation, node: In, inner: Relation, query: Query, operands: Sequence[Expression]
) -> Relation:
    """Returns the rows for which IN, or NOT IN, of a query without columns of the rows is true. `inner`: its rows."""
    check_plain(inner, query.span, "before IN")
    _check_width(query, len(inner.fields), len(operands))
    binder = Binder(context, relation)
    keys = [
        same_type(node, binder.bind(operand), TypedExpr(col(its.column), its.type), context.zone)
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
    return replace(relation, stream=stream)


def exists(
    context: Context, relation: Relation, query: Query, how: Literal["semi", "anti"], rows: RowsInside
) -> Relation:
    """Returns the rows that have a partner in a query, or those that have none (`how`)."""
    relation, inner, body, keys = _inside(context, relation, query, "EXISTS", rows)
    both = Relation(inner.stream, (*inner.fields, *relation.fields))
    for item in body.items:  # their values do not matter, but a wrong name is an error
        if not isinstance(item.expression, Star) and bound(context, item.expression, inner) is None:
            Binder(context, both).bind(item.expression)
    if not keys:
        raise SqlFault(query.span, "EXISTS needs a condition that joins its query", "WHERE b.id = a.id")
    return _semi_joined(relation, inner, keys, how, query.span, "EXISTS (SELECT …)")


def in_correlated(
    context: Context, relation: Relation, node: In, query: Query, operands: Sequence[Expression], rows: RowsInside
) -> Relation:
    """Returns the rows for which IN, or NOT IN, of a query that uses columns of the query outside is true.

    NOT IN drops a row if the query has, for this row, a row that is equal or NULL; and if its own value is NULL and
    the query has any row.
    """
    relation, inner, body, keys = _inside(context, relation, query, "IN", rows)
    if any(isinstance(item.expression, Star) for item in body.items):
        raise SqlFault(query.span, "the query of IN names its column", "x IN (SELECT y FROM …)")
    _check_width(query, len(body.items), len(operands))
    outside, inside = Binder(context, relation), Binder(context, inner)
    values = [
        same_type(node, outside.bind(operand), inside.bind(item.expression), context.zone)
        for operand, item in zip(operands, body.items, strict=True)
    ]
    how: Literal["semi", "anti"] = "anti" if node.negated else "semi"
    relation = _semi_joined(relation, inner, [*keys, *values], how, node.span, "IN (SELECT …)")
    if node.negated:
        ((mine, its),) = values
        nulls = replace(inner, stream=inner.stream.filter(its.expr.is_null()))
        relation = _semi_joined(relation, nulls, keys, how, node.span, "IN (SELECT …)")
        missing = when(mine.expr.is_null()).then(lit(True)).otherwise(lit(None))
        without = (TypedExpr(missing, pa.bool_()), TypedExpr(lit(True), pa.bool_()))
        relation = _semi_joined(relation, inner, [*keys, without], how, node.span, "IN (SELECT …)")
    return relation


def _inside(
    context: Context, relation: Relation, query: Query, what: str, rows: RowsInside
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
    conditions = conjuncts(body.where)
    inner = rows(query, conditions, what)
    joining = []
    for node in conditions:
        if bound(context, node, inner) is None:
            joining.append(node)
            continue
        with at(node.span):
            predicate = Binder(context, inner).predicate(node)
            inner = replace(inner, stream=inner.stream.filter(predicate))
    keys = [correlated(context, node, relation, inner, what) for node in joining]
    if relation.window is not None:
        bounds = {each.column for each in relation.fields if each.window is not None}
        if any(mine.expr.columns & bounds for mine, _ in keys):
            with at(query.span):
                relation = opened(relation, query.span, context.zone)
            keys = [correlated(context, node, relation, inner, what) for node in joining]
    return relation, inner, body, keys


def _semi_joined(
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


def correlated(
    context: Context, node: Expression, outer: Relation, inner: Relation, what: str
) -> tuple[TypedExpr, TypedExpr]:
    """Returns the two sides of a condition `outer column = inner column`."""
    if isinstance(node, Binary) and node.operator == "=":
        for one, other in ((node.left, node.right), (node.right, node.left)):
            left, right = bound(context, one, outer), bound(context, other, inner)
            if left is not None and right is not None and bound(context, one, inner) is None:
                return same_type(node, left, right, context.zone)
    Binder(context, Relation(inner.stream, (*inner.fields, *outer.fields))).bind(node)  # a wrong name
    raise SqlFault(node.span, f"the query of {what} is joined by equal columns only", "write a join")


def bound(context: Context, node: Expression, relation: Relation) -> TypedExpr | None:
    """Returns the expression of a tree over one table, or None if it has other names."""
    try:
        return Binder(context, relation).bind(node)
    except SqlFault:
        return None


def _moved(key: TypedExpr, renamed: Mapping[str, str]) -> TypedExpr:
    """Returns a key whose columns have these new names."""
    return TypedExpr(key.expr.renamed(renamed), key.type) if key.expr.columns & renamed.keys() else key


def _check_width(query: Query, columns: int, wanted: int) -> None:
    if columns != wanted:
        raise SqlFault(query.span, f"the query of IN has {wanted} column{'s' * (wanted > 1)}")


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
    return None if context.compile(value, pa.schema([]), {}).value.as_py() is None else value
