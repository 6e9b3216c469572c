"""The outputs of a stream: the check that a sink can take its changes, and its rows as text."""

import pyarrow as pa

from sabot.api.nodes.node import Node
from sabot.connectors.base import Sink
from sabot.connectors.defaults import takes_changes
from sabot.errors import UserError


def check_takes_changes(node: Node, sink: str | Sink, key: str | None) -> None:
    """Raises UserError unless the sink can store changes, and the program names the key by which rows replace each
    other.
    """
    name = repr(sink) if isinstance(sink, str) else f"{type(sink).__name__}({sink.name!r})"
    if not isinstance(sink, str) and not takes_changes(sink):
        raise UserError(
            f"to({name}): the rows are changes (updates and deletes of earlier ones), and this sink can only add rows",
            hint=".materialize().to(…) writes the final rows, .changelog().to(…) each change as a row; "
            "a topic or a SqlSink takes .upsert(key)",
        )
    if not node.upserted:
        unique = node.unique
        hint = f".upsert({', '.join(map(repr, unique))})" if unique else '.upsert("key")'
        raise UserError(
            f"to({name}): the rows are changes (updates and deletes of earlier ones), and nothing says which row they change",
            hint=f"{hint}.to(…) keeps the last row of each key; .materialize() writes the final rows, .changelog() each change as a row",
        )
    if node.unique is None:
        raise UserError(
            f"to({name}): a step after upsert dropped a column of its key", hint="keep the columns of the key"
        )
    if key is not None:
        raise UserError(
            f"to({name}): key= is given, but rows after upsert have the key of upsert", hint="leave key= out"
        )


def shown(table: pa.Table) -> str:
    """Returns a table as text, in aligned columns."""
    columns = [
        [name, *(str(value) for value in table.column(i).to_pylist())] for i, name in enumerate(table.column_names)
    ]
    if not columns:
        return "(no columns)"
    widths = [max(map(len, cells)) for cells in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
