"""The select list: its entries, and the columns that come out under their names in SQL."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from sabot.api.expr import Expr, col, lit
from sabot.api.stream import Stream
from sabot.sql.scope import (
    Names,
    Ranking,
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    at,
    clock_column,
    is_clock,
    node_of,
    warn_of_growth,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Column, Expression, Item, SelectBody, Star
from sabot.sql.values import Binder, walk


@dataclass(slots=True)
class OutputColumn:
    """A column of the result. `relation_field`: the field that the column passes on unchanged, or None."""

    name: str
    bound: TypedExpr
    passed: TableColumn | None
    clock: bool = False
    ranking: Ranking | None = None
    shown: pa.DataType | None = None  # as in TableColumn, for a column that is not passed on


def items_of(select: SelectBody, relation: Relation) -> Iterator[Item]:
    """Yields the entries of the select list, with `*` as its columns."""
    for item in select.items:
        if not isinstance(item.expression, Star):
            yield item
            continue
        if item.alias is not None:
            raise SqlFault(item.alias.span, "* has no alias")
        for field in relation.stars(item.expression.qualifier, item.span):
            name = StarName(field.name, item.span, True, field)
            yield Item(Column((name,), item.span), name, item.span)


def output_of(item: Item, relation: Relation, binder: Binder, replaced: dict[int, OutputColumn]) -> OutputColumn:
    """Returns the column of an entry of the select list. `replaced`: the columns of OVER, by the id of their tree."""
    node = item.expression
    name = item.alias.text if item.alias is not None else own_name(node)
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
                return ranked_output(relation.ranking, name)
            return OutputColumn(name, TypedExpr(col(field.column), field.type), field)
    bound = binder.bind(node)
    return OutputColumn(name, bound, None, shown=binder.shown_type(node, bound.type))


def finish(select: SelectBody, relation: Relation, outputs: Sequence[OutputColumn]) -> Relation:
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
        ranking = _kept_for(ranking, columns, names)
    if not columns and any(each.clock for each in fields):
        columns[names.free("row")] = lit(0)  # PROCTIME() alone: it has its value where the rows leave the query
    stream = _selected(select, relation, columns)
    if select.distinct:
        if ranking is not None:
            raise SqlFault(select.span, "DISTINCT with a ranking is not supported")
        warn_of_growth(stream, "SELECT DISTINCT", "all different rows", "GROUP BY a window and the columns bounds it")
        with at(select.span):
            stream = stream.deduplicate(*columns)
    return Relation(stream, tuple(fields), None, ranking)


def _kept_for(ranking: Ranking, columns: dict[str, Expr], names: Names) -> Ranking:
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


def _selected(select: SelectBody, relation: Relation, columns: dict[str, Expr]) -> Stream:
    have = node_of(relation.stream).column_names
    if have == list(columns) and all(expr.column == name for name, expr in columns.items()):
        return relation.stream
    if not columns:
        raise SqlFault(select.span, "the select list has no column with a value")
    with at(select.span):
        return relation.stream.select(**columns)


def condition_of(select: SelectBody, binder: Binder, condition: Expression, clause: str) -> Expr:
    """Returns a condition of WHERE or HAVING. Raises SqlFault, which says so if it uses a name of the select list."""
    try:
        return binder.predicate(condition)
    except SqlFault as error:
        aliases = {item.alias.text.lower() for item in select.items if item.alias is not None}
        wrong = error.fault.span
        for node in walk(condition):
            if isinstance(node, Column) and node.span == wrong and node.parts[-1].text.lower() in aliases:
                hint = f"{clause} does not know the names of the select list: write the expression, or a query outside"
                raise SqlFault(wrong, error.fault.message, hint) from error
        raise


def ranked_output(ranking: Ranking, name: str = "") -> OutputColumn:
    """Returns the column of a ranking, which has no value until a query outside bounds it."""
    return OutputColumn(name, TypedExpr(lit(None, "int64"), pa.int64()), None, ranking=ranking)


def own_name(node: Expression) -> str:
    """Returns the name of a column without an alias, or "" for an expression."""
    return node.parts[-1].text if isinstance(node, Column) else ""
