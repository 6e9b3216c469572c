"""Tables of databases behind FOR SYSTEM_TIME AS OF a PROCTIME(): what a view of one makes of each of its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from sabot.api.expr import Expr, col, lit, when
from sabot.api.nodes.node import walk
from sabot.api.nodes.read import Read
from sabot.api.nodes.rows import Drop, Filter, Rename, RowStep, Select, WithColumns
from sabot.api.stream import Stream
from sabot.sql.scope import FindsRows, node_of

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
