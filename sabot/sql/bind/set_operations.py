"""UNION, INTERSECT and EXCEPT of two queries."""

from collections.abc import Sequence
from dataclasses import replace

from sabot.api.aggregates import sum
from sabot.api.expr import Expr, col, lit, min_horizontal
from sabot.api.stream import Stream
from sabot.sql.scope import (
    Names,
    Relation,
    TableColumn,
    at,
    check_plain,
    node_of,
    warn_of_growth,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import (
    SetOperation,
)
from sabot.sql.types import common_type, sql_type


def combined(relations: Sequence[Relation], body: SetOperation) -> Relation:
    """Returns the rows of two queries as UNION, INTERSECT or EXCEPT combines them."""
    fields = _common_fields(relations, body)
    columns = [each.column for each in fields]
    with at(body.span):
        streams = [_as_columns(relation, fields) for relation in relations]
        if body.operator != "UNION":
            return Relation(_compared(streams, columns, body), tuple(fields))
        stream = streams[0].union(*streams[1:])
        if not body.all:
            warn_of_growth(stream, "UNION", "all different rows", "UNION ALL keeps none")
            stream = stream.deduplicate(*columns)
    return Relation(stream, tuple(fields))


def _compared(streams: Sequence[Stream], columns: Sequence[str], body: SetOperation) -> Stream:
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


def _as_columns(relation: Relation, fields: Sequence[TableColumn]) -> Stream:
    """Returns the rows with these columns, in their order, with their types."""
    columns: dict[str, Expr] = {}
    for each, wanted in zip(relation.fields, fields, strict=True):
        expr = col(each.column)
        columns[wanted.column] = expr if each.type == wanted.type else expr.cast(wanted.type)
    names = node_of(relation.stream).column_names
    if names == list(columns) and all(expr.column == name for name, expr in columns.items()):
        return relation.stream
    return relation.stream.select(**columns)


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
