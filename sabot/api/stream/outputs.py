"""The outputs of a stream: the sinks that a program gives, the check that one can take changes, and rows as text."""

from typing import Any, get_args

import pyarrow as pa

from sabot.api.arguments import RowPolicy
from sabot.api.nodes.node import Node
from sabot.base.arrays import shown as value_shown
from sabot.connectors.base import Sink, takes_changes
from sabot.connectors.checks import check_sink, sink_of
from sabot.connectors.rows import ListOfRows
from sabot.errors import UserError


def place_of(given: Any, where: str) -> Any:
    """Returns the topic or Sink for what a program gives as a sink. A list becomes a Sink that appends the rows to it
    as dicts. A Source whose place can also be written to, such as `files(…)`, becomes a Sink for this place. Any
    other value is returned unchanged.

    Raises UserError for any other Source. `where`: the text with which the error message begins.
    """
    return ListOfRows(given) if isinstance(given, list) else sink_of(given, where)


def late_sink(given: Any, where: str, hint: str = 'late="late-orders", late=SINK or late=a_list') -> str | Sink | None:
    """Returns the topic or Sink for late rows; None if `given` is None, so that they are dropped. Raises UserError
    for a value that is no sink. Also raises it for words such as "drop" or "dead_letter", which would be taken as
    names of topics.

    `where`: the text with which the error message begins. `hint`: the hint of the error.
    """
    if given is None:
        return None
    if isinstance(given, str) and given in (*get_args(RowPolicy), "drop", "ignore"):
        raise UserError(
            f"{where}: {given!r} would be the name of a topic",
            hint='late="{topic}.dlq" makes late rows dead letters; without late= they are dropped and counted',
        )
    place = place_of(given, where)
    check_sink(place, where, hint)
    return place  # type: ignore[no-any-return]


def check_takes_changes(node: Node, sink: str | Sink, key: str | None) -> None:
    """Raises UserError if changes cannot be written to the sink: the sink cannot store changes, or the program has
    not named the key by which rows replace each other (with `upsert`). Also raises it if `key` is given, since the
    key is that of `upsert`.
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
    columns = [[name, *_texts(table.column(i))] for i, name in enumerate(table.column_names)]
    if not columns:
        return "(no columns)"
    widths = [max(map(len, cells)) for cells in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _texts(column: pa.ChunkedArray) -> list[str]:
    try:
        return [str(value) for value in column.to_pylist()]
    except (OverflowError, ValueError):  # a time has no Python value
        return [_text(value) for value in column]


def _text(value: pa.Scalar) -> str:
    try:
        return str(value.as_py())
    except (OverflowError, ValueError):
        return value_shown(value)
