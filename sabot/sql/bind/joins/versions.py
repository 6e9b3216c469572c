"""Tables of versions, which FOR SYSTEM_TIME AS OF an event time reads: what the rows of a query are as one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sabot.api.expr import col, lit
from sabot.api.nodes.changes import GroupAggregate, Upsert
from sabot.api.nodes.joins import TwoInputs
from sabot.api.nodes.keyed import Over, TopN
from sabot.api.nodes.rows import RowStep
from sabot.api.nodes.windows import AggregateWindow
from sabot.api.stream import Stream
from sabot.sql.bind.groups import AT_THE_END
from sabot.sql.scope import Names, node_of, steps_of, time_of_rows


def versions(stream: Stream) -> Stream | None:
    """Returns rows with one row for each key as a table of versions, each valid from its event time on, or None if the rows
    change in another way.

        ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) = 1, where ts is the event time     ->     upsert(k)
        SELECT k, SUM(x) AS x … GROUP BY k     ->     SUM(x) OVER (PARTITION BY k ORDER BY ts) of each row, then upsert(k)

    The changes of the GROUP BY itself would not do: rows of one batch are one change, so versions between them are lost.
    """
    above: list[Any] = []
    node = node_of(stream)
    while isinstance(node, RowStep):
        above.append(node)
        node = node.input
    if isinstance(node, Upsert):
        return stream
    if isinstance(node, GroupAggregate) and node.keys and node.ttl_ms is None and not node.input.changes:
        table = _running(stream, node)
        return None if table is None else _with_steps(table, above)
    last = isinstance(node, TopN) and node.n == 1 and node.ties == "row_number" and not node.input.changes
    if not last or not isinstance(node, TopN) or node.by != ((time_of_rows(steps_of(stream).then(node.input)), True),):
        return None
    table = steps_of(stream).then(Upsert(node.input, node.keys))
    if node.rank is not None:
        table = table.with_columns(**{node.rank: lit(1, "int64")})
    return _with_steps(table, above)


def ends_in_lists(stream: Stream) -> bool:
    """Returns True for a GROUP BY of lists over rows that end."""
    node: Any = node_of(stream)
    while isinstance(node, RowStep):
        node = node.input
    return isinstance(node, AggregateWindow) and node.window == AT_THE_END


def what_has_versions(stream: Stream) -> str:
    """Returns what has versions in place of a table that has none, for a hint."""
    node: Any = node_of(stream)
    while isinstance(node, RowStep):
        node = node.input
    if isinstance(node, TwoInputs):
        return "join its tables one after the other, each FOR SYSTEM_TIME AS OF the same time"
    if isinstance(node, GroupAggregate) and node.keys:
        return "group rows that are not updated, without STATE_TTL"
    return (
        "the last row of each key: SELECT … FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY id ORDER BY ts DESC) AS n "
        "FROM t) WHERE n = 1"
    )


def _running(stream: Stream, node: GroupAggregate) -> Stream | None:
    """Returns the aggregates of each key after each row as a table of versions, or None if the rows have no event time."""
    if time_of_rows(steps_of(stream).then(node.input)) is None:
        return None
    names = Names(set(node.input.column_names or ()))
    columns = {name: names.free(name) for name, _ in node.aggregates}
    over = Over(node.input, node.keys, tuple((columns[name], each) for name, each in node.aggregates))
    over.check()
    rows = steps_of(stream).then(over)
    _ = rows.schema  # raises UserError for an aggregate that has no value after each row
    rows = rows.select(*node.keys, **{name: col(column) for name, column in columns.items()})
    return steps_of(rows).then(Upsert(node_of(rows), node.keys))


def _with_steps(table: Stream, above: Sequence[Any]) -> Stream:
    """Returns the table with the steps that were above it, the lowest one last."""
    for each in reversed(above):
        table = steps_of(table).then(replace(each, input=node_of(table)))
    return table
