"""A table as the log describes it in front of its rows, beside the table that the program was planned with."""

from collections.abc import Sequence

from sabot._cython.binary.pgoutput import SentRelation
from sabot.connectors.postgres.catalog import CatalogTable
from sabot.connectors.postgres.names import FRESH
from sabot.connectors.postgres.types import column_of
from sabot.errors import UserError


def places_of(sent: SentRelation, table: CatalogTable, names: Sequence[str], behind: str, *, later: bool) -> list[int]:
    """Returns for each column of the log its place among `names`, or -1. `later`: True if columns may be missing, as they were added
    since. `behind`: the table and the place in its log, for messages. Raises UserError for a table whose changes would be incomplete.
    """
    places: list[int] = []
    for name, kind, modifier, _ in sent.columns:
        place = names.index(name) if name in names else -1
        places.append(place)
        known = table.columns.get(name)
        if place >= 0 and known is not None and (kind, modifier) != (known.type, known.modifier):
            changed = column_of(name, kind, modifier, table.types) if kind in table.types else None
            if changed != (known.arrow, known.kind):
                raise UserError(
                    f"{behind} column {name}, which the program uses, is not {known.declared}",
                    hint=f"its type was changed: {FRESH}",
                )
    there = {name for name, *_ in sent.columns}
    if not later and (gone := [name for name in names if name not in there]):
        raise UserError(
            f"{behind} it has no column {gone[0]}, which the program uses",
            hint=f"the column was dropped or renamed: change the program and {FRESH}",
        )
    told = [name for name, *_, key in sent.columns if key]
    if sent.identity in ("d", "i") and set(told) != set(table.keys):
        raise UserError(
            f"{behind} an UPDATE or a DELETE brings {', '.join(told)}, and the key is {', '.join(table.keys)}",
            hint=f"the primary key or the REPLICA IDENTITY was changed: {FRESH}",
        )
    moving = [name for name in names if table.columns[name].moves and name not in table.keys]
    if moving and sent.identity != "f":
        raise UserError(
            f"{behind} it has no REPLICA IDENTITY FULL: an UPDATE may bring no {moving[0]}",
            hint=f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL, and {FRESH}",
        )
    return places
