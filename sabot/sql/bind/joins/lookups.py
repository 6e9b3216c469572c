"""Tables of databases behind FOR SYSTEM_TIME AS OF a PROCTIME(): what a view of one makes of each of its rows, and the
question for the rows of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import Read
from sabot.api.nodes.rows import Drop, Filter, Rename, RowStep, Select, WithColumns
from sabot.api.stream import Stream
from sabot.sql.bind.joins.columns import with_further
from sabot.sql.bind.joins.conditions import JoinConditions, same_type
from sabot.sql.scope import FindsRows, Relation, TypedExpr, at, names_of, node_of, steps_of
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Binary, Column, Expression
from sabot.sql.values import Binder
from sabot.sql.values import walk as nodes_of

_STEPS = (Filter, Select, WithColumns, Rename, Drop)


@dataclass(frozen=True, slots=True)
class AskedTable:
    """A table whose rows are made of those that a database has.

    `finds`: finds these by columns of the database. `key`: the PRIMARY KEY. `columns`: the columns of the table, over those of
    the database. `conditions`: what a row of the database fulfils that is one of the table.
    """

    finds: FindsRows
    key: tuple[str, ...]
    columns: dict[str, Expr]
    conditions: list[Expr] = field(default_factory=list)

    def behind(self, step: RowStep) -> "AskedTable":
        """Returns the table that one of `_STEPS` makes of this one."""
        known, conditions = self.columns, self.conditions
        if isinstance(step, Filter):
            conditions = [*conditions, step.predicate.substitute(known)]
        elif isinstance(step, Select | WithColumns):
            made = {name: expr.substitute(known) for name, expr in step.columns}
            known = made if isinstance(step, Select) else {**known, **made}
        elif isinstance(step, Rename):
            names = dict(step.names)
            known = {names.get(name, name): expr for name, expr in known.items()}
        elif isinstance(step, Drop):
            known = {name: expr for name, expr in known.items() if name not in step.names}
        return AskedTable(self.finds, self.key, known, conditions)

    def of_row(self, row: Expr, types: Mapping[str, pa.DataType], *, outer: bool) -> tuple[dict[str, Expr], list[Expr]]:
        """Returns the columns of the table, and its conditions, over a row of the database. `types`: of these columns. `outer`: True
        if there may be no row; then all columns are null, also if the row is none of the table.
        """
        parts = {name: row[name] for name in {name for each in self.columns.values() for name in each.columns}}
        parts |= {name: row[name] for each in self.conditions for name in each.columns}
        conditions = [each.substitute(parts) for each in self.conditions]
        found = {name: self.columns[name].substitute(parts) for name in types}
        if not outer:
            return found, conditions
        there = row.is_not_null()
        for each in conditions:
            there = there & each
        for name, type in types.items():
            if conditions or self.columns[name].column is None:
                found[name] = when(there).then(found[name]).otherwise(lit(None, type))
        return found, []


def asked_table(stream: Stream) -> AskedTable | None:
    """Returns how the rows of a table are made of those of a database, each of one; None for any other table."""
    above, node = [], node_of(stream)
    while isinstance(node, _STEPS):
        above.append(node)
        node = node.input
    table = _of_database(node)
    for step in reversed(above):
        table = None if table is None else table.behind(step)
    return table


def reads_database(stream: Stream) -> bool:
    """Returns True if the rows of a table are computed from all rows that a table of a database has."""
    return any(_of_database(node) is not None for node in walk([node_of(stream)]))


def _of_database(node: object) -> AskedTable | None:
    finds: FindsRows | None = getattr(node.source, "finds", None) if isinstance(node, Read) else None
    if finds is None:
        return None
    assert isinstance(node, Read)
    return AskedTable(finds, node.source.key, {name: col(name) for name in node.column_names or ()})  # type: ignore[union-attr]


def bind_database(on: JoinConditions, table: AskedTable) -> Relation:
    """Returns the rows of the left table with those that a table of a database has for their keys when they are processed:
    a row for each of them.
    """
    left, right, span = on.left, on.right, on.join.span
    on.sort()
    keys, further = [], [*on.bounds]
    for node, mine, its in on.keys:
        name = table.columns[next(iter(its.expr.columns))].column if _is_plain(its) else None
        keys += [] if name is None else [(name, mine.expr)]
        further += [node] if name is None else []
    for node in on.residual:
        found = _constant(on, node)
        name = None if found is None else table.columns[found[0]].column
        if found is None or name is None:
            further.append(node)
        else:
            keys.append((name, found[1]))
    if not keys:
        message = "AS OF of a table of a database needs ON a.key = b.key"
        raise SqlFault(on.join.span, message, "the column of the database itself, without a function around it")
    names = names_of(left)
    names.taken |= {each.column for each in right.fields}
    made = {names.free("key"): key for _, key in keys}
    rows = names.free("found")
    function, options = table.finds([name for name, _ in keys])
    outer = on.how == "left"
    types = {each.column: each.type for each in right.fields if not each.clock}
    columns, conditions = table.of_row(col(rows), types, outer=outer)
    with at(span):
        stream = left.stream.with_columns(**made)
        stream = stream.lookup(function, on=list(made), how="left" if outer else "inner", **options)
        stream = stream.rename({"found": rows}) if rows != "found" else stream
        stream = stream.explode(rows, keep_nulls=outer, empty_as_null=outer)
        for condition in conditions:
            stream = stream.filter(condition)
        stream = stream.with_columns(**columns).drop(rows, *made)
    asked = steps_of(right.stream)
    begun = asked.owner.begun_streams
    for read in set(begun).intersection(walk([asked.node])):
        begun.remove(read)  # the table is not read, so its rows need no sink
    times = node_of(stream).event_times
    fields = [replace(each, shift_ms=each.shift_ms if each.column in times else None) for each in left.fields]
    fields += [replace(each, shift_ms=None, never_null=each.never_null and not outer) for each in right.fields]
    relation = Relation(stream, tuple(fields))
    whole = table.key and set(table.key) <= {name for name, _ in keys}
    if outer and (further or table.conditions) and not whole:
        message = "a condition of LEFT JOIN on a table of a database stands beside all columns of its PRIMARY KEY"
        place = further[0].span if further else on.join.right.span
        raise SqlFault(place, message, "PRIMARY KEY (id) NOT ENFORCED, and ON a.id = b.id AND …")
    return with_further(on, relation, further, {each.column for each in right.fields})


def _constant(on: JoinConditions, node: Expression) -> tuple[str, Expr] | None:
    """Returns a condition `column = constant` about the right table as its column and the constant."""
    if not isinstance(node, Binary) or node.operator != "=":
        return None
    for one, other in ((node.left, node.right), (node.right, node.left)):
        mine = on.side(one, on.right)
        if mine is None or mine.expr.column is None:
            continue
        if not any(isinstance(each, Column) for each in nodes_of(other)):
            its = Binder(on.context, on.left).bind(other)
            return mine.expr.column, same_type(node, mine, its, on.context.zone)[1].expr
    return None


def _is_plain(key: TypedExpr) -> bool:
    """Returns True for a column, also one that is cast for its comparison."""
    return key.expr.column is not None or (key.expr.kind == "cast" and key.expr.inputs[0].column is not None)
