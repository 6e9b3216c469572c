"""Checks of the columns that come into an operator, and of those that it makes: keys, event time, the columns of a
result.
"""

from collections.abc import Sequence

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.base import TIME_COLUMN
from sabot.errors import UserError


def column_index(schema: pa.Schema, name: str, what: str) -> int:
    """Returns the index of a column. Raises UserError, whose message begins with `what`, if the column is missing or
    there are two.
    """
    index: int = schema.get_field_index(name)
    if index < 0:
        raise UserError(f"{what}: there is no column {name!r}", hint=f"there are {', '.join(schema.names)}")
    return index


def key_columns(names: Sequence[str], input: pa.Schema) -> tuple[pa.Schema, list[int]]:
    """Returns the columns that rows are grouped by, and their indices. Raises UserError for a column that is missing,
    exists twice, or cannot be a key.
    """
    indices = [column_index(input, name, "group by") for name in names]
    keys = pa.schema([input.field(index) for index in indices])
    key_table(keys)
    return keys, indices


def key_table(keys: pa.Schema) -> GroupTable:
    """Returns a table that gives each key a slot, without accumulators. Raises UserError for types that cannot be
    keys.
    """
    try:
        return GroupTable(keys, [])
    except TypeError as error:
        raise UserError(f"cannot group by {keys.names}: {error}") from error


def key_at(batch: Batch, indices: Sequence[int], row: int) -> pa.RecordBatch:
    """Returns the key of one of the selected rows, as columns with one row. `indices`: those of the key columns."""
    place = pa.array([row]) if batch.selection is None else batch.selection.slice(row, 1)
    return batch.data.select(list(indices)).take(place)


def no_event_time(what: str) -> UserError:
    """Returns the error for rows without event time. `what`: its message, a whole sentence that says which step needs
    event time, or which rows have none.
    """
    return UserError(what, hint="name the stream's time column: app.stream(..., time='ts')")


def time_index(input: pa.Schema, who: str) -> int:
    """Returns the index of the column of event time. Raises UserError if there is none; `who` is the plural subject
    of the message.
    """
    index = int(input.get_field_index(TIME_COLUMN))
    if index < 0:
        raise no_event_time(f"{who} need event time")
    return index


def result_schema(fields: Sequence[pa.Field], *, timed: bool) -> pa.Schema:
    """Returns the columns of a result, with TIME_COLUMN last if it is timed. Raises UserError if two columns have one
    name.
    """
    check_distinct([field.name for field in fields])
    return pa.schema([*fields, pa.field(TIME_COLUMN, pa.int64())] if timed else fields)


def check_distinct(names: Sequence[str], who: str = "", hint: str = "give the aggregate another name") -> None:
    """Raises UserError, whose message begins with `who`, if two columns of a result have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{who}the result would have two columns {twice!r}", hint=hint)
