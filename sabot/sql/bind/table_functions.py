"""Table functions: the windows of TABLE(TUMBLE(…)) and its kin, ML_PREDICT, and UNNEST."""

from collections.abc import Callable

import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.sql.bind.windows import TABLE_WINDOWS, form_of, positional, table_window
from sabot.sql.functions import is_known
from sabot.sql.registered import RegisteredModel, predicted, with_calls
from sabot.sql.scope import (
    Relation,
    TableColumn,
    at,
    names_of,
    renamed,
)
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import (
    Call,
    Column,
    Constant,
    Descriptor,
    Expression,
    JoinSource,
    ModelArgument,
    TableArgument,
    TableFunction,
)
from sabot.sql.types import sql_type
from sabot.sql.values import Binder, Context

RowsOf = Callable[[TableArgument], Relation]
"""A function that binds the argument TABLE of a table function."""


def table_function(context: Context, source: TableFunction, rows: RowsOf) -> Relation:
    """Returns the rows of a table function in FROM: a window table, or ML_PREDICT."""
    name = source.call.name.text.upper()
    if name == "ML_PREDICT":
        relation = _predicted(context, source.call, rows)
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
    relation = table_window(source.call, rows(first).named(""), context.zone)
    return relation if source.alias is None else renamed(relation, source.alias)


def _predicted(context: Context, call: Call, rows: RowsOf) -> Relation:
    """Returns the table of ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column, …))."""
    given = positional(call).arguments
    form = "ML_PREDICT(TABLE t, MODEL m, DESCRIPTOR(column))"
    if len(given) < 3 or not (
        isinstance(given[0], TableArgument) and isinstance(given[1], ModelArgument) and isinstance(given[2], Descriptor)
    ):
        raise SqlFault(call.span, "ML_PREDICT needs a table, a model and the columns that the model reads", form)
    if len(given) > 3:
        raise SqlFault(given[3].span, "ML_PREDICT has no options", 'app.register("m", engine, concurrency=10)')
    table, model, descriptor = given[0], given[1], given[2]
    relation = rows(table)
    registered = context.registered.get(model.name.text.lower())
    if not isinstance(registered, RegisteredModel):
        message = f"there is no model {model.name.text}"
        raise SqlFault(model.span, message, f'app.register("{model.name.text}", engine, output={{…}})')
    columns = []
    for name in descriptor.columns:
        field, _ = relation.find((name,))
        columns.append((name, field))
    with at(call.span):
        return predicted(relation, registered, columns)


def unnested(context: Context, join: JoinSource, left: Relation, table: TableFunction) -> Relation:
    """Returns the rows of `left` with those of UNNEST(array): a row for each element."""
    on_true = join.on is None or is_true(join.on)
    if join.kind not in ("CROSS", "COMMA", "INNER", "LEFT") or not on_true or join.using:
        raise SqlFault(join.span, "UNNEST is joined by CROSS JOIN, or by LEFT JOIN … ON TRUE")
    if len(table.call.arguments) != 1:
        raise SqlFault(table.span, "UNNEST has one array", "CROSS JOIN UNNEST(a) AS u (x)")
    left = with_calls(context, left, table.call.arguments)
    binder = Binder(context, left)
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


def is_true(node: Expression | None) -> bool:
    """Returns True for the condition TRUE."""
    return isinstance(node, Constant) and node.text.upper() == "TRUE"
