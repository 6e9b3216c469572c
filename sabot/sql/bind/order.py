"""ORDER BY, LIMIT and OFFSET of a query."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sabot.api.expr import col
from sabot.api.nodes.changes import SortRows
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.api.windows import CalendarWindow, ClockWindow, HoppingWindow, TumblingWindow
from sabot.base.checks import is_whole
from sabot.sql.bind.groups import has_aggregate
from sabot.sql.bind.over import columns_of, order_columns
from sabot.sql.bind.rankings import keyed
from sabot.sql.functions import is_known
from sabot.sql.moments import with_clocks
from sabot.sql.scope import (
    Relation,
    StarName,
    TableColumn,
    at,
    check_plain,
    names_of,
    node_of,
    steps_of,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import (
    Call,
    Column,
    Constant,
    Derived,
    Expression,
    Item,
    Name,
    Parameter,
    Query,
    SelectBody,
    Sort,
    Star,
    TableName,
)
from sabot.sql.values import Context, alike, walk


def ordered(context: Context, query: Query, relation: Relation, added: int) -> Relation:
    """Returns the rows of ORDER BY: with LIMIT, the first ones, which are updated as rows come; without, all rows,
    at the end of the input, or by event time. `added`: the number of columns at the end that only the order needs.
    """
    if any(each.clock for each in relation.fields):
        relation = with_clocks(context, relation, query.span)
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
        return replace(relation, stream=_sorted(context, query, relation, order, fields), fields=fields)
    if limit_of(context, query.limit) == 0:
        with at(query.limit.span):
            rows = relation.stream.materialize().head(0).select(*(each.column for each in fields))
            return replace(relation, stream=rows, fields=fields)
    by, ordered = order_columns(context, relation, order)
    names = [name for name, _ in by]
    skipped = 0 if query.offset is None else limit_of(context, query.offset, "OFFSET")
    place = names_of(ordered).free("place") if skipped else None
    with at(query.span):
        most = skipped + limit_of(context, query.limit)
        stream = keyed(ordered.stream).top_n(most, by=names, descending=[down for _, down in by], rank=place)
        stream = stream if place is None else stream.filter(col(place) > skipped)
        if endless_read(node_of(stream)) is None:  # the first rows are final, and come in their order
            stream = stream.sort(names, descending=[down for _, down in by], nulls_last=True)
        return replace(relation, stream=stream.select(*(each.column for each in fields)), fields=fields)


def _sorted(
    context: Context, query: Query, relation: Relation, order: Sequence[Sort], fields: Sequence[TableColumn]
) -> Stream:
    names, ordered = columns_of(context, relation, [sort.expression for sort in order])
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


def limited(context: Context, query: Query, relation: Relation) -> Relation:
    """Returns the first rows of a query with LIMIT and without ORDER BY."""
    assert query.limit is not None
    stream, number = relation.stream, limit_of(context, query.limit)
    if stream.changes and endless_read(node_of(stream)) is not None:
        by = relation.fields[-1].name if relation.fields else "x"
        raise SqlFault(
            query.limit.span,
            "the rows of this query are updated and have no end, so there are no first ones without an order",
            f"ORDER BY {by} DESC LIMIT {number}: these rows, kept up to date",
        )
    with at(query.limit.span):
        return replace(relation, stream=stream.materialize().head(number))


def limit_of(context: Context, node: Expression, what: str = "LIMIT") -> int:
    """Returns the number of LIMIT or OFFSET (`what`). Raises SqlFault for anything else."""
    value: Any = int(node.text) if isinstance(node, Constant) and node.kind == "integer" else None
    if isinstance(node, Parameter):
        value = context.parameters.get(node.name)
    if not is_whole(value, 0):
        message = f"{what} takes a whole number, 0 or more"
        raise SqlFault(node.span, message, f"{what} 10, or {what} :n with a parameter")
    return int(value)


def _is_time(column: TableColumn) -> bool:
    """Returns True for the event time of the rows, and for bounds of windows that have a fixed distance from it."""
    edge = column.window
    fixed = edge is not None and isinstance(edge.window, TumblingWindow | CalendarWindow | HoppingWindow)
    fixed = fixed or (edge is not None and isinstance(edge.window, ClockWindow) and not edge.window.grows)
    return column.shift_ms is not None or fixed


def with_columns_of_order(query: Query, body: SelectBody) -> tuple[Query, int]:
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
