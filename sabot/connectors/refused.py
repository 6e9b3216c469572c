"""Rows that the receiver of a sink refuses: which rows of a batch these are, and how they travel to the dead letters."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.codecs.records import HEAD_BYTES, RECORD_SCHEMA, empty_batch
from sabot.errors import AppLocked, DataError, RowErrors, UserError, message_of

_MARK = "__refused"
_MARKED = RECORD_SCHEMA.append(pa.field(_MARK, pa.null()))


def is_refusal(error: BaseException) -> bool:
    """Returns True for an error by which a receiver may refuse rows, rather than fail or belong to another process: one
    of ours, or that of an encoder for a value.
    """
    return isinstance(error, UserError | DataError | TypeError | ValueError) and not isinstance(error, AppLocked)


def refused_in(batches: Sequence[pa.RecordBatch], attempt: Callable[[pa.RecordBatch], object]) -> dict[int, str]:
    """Returns the rows that `attempt` refuses, by their number over all batches, with the reason. They are found by
    bisection: an attempt that succeeds has taken its rows, and later rows are tried after it.

    Returns no rows if a batch without rows is refused too: then the fault is not in the values.
    """
    found: dict[int, str] = {}

    def look(data: pa.RecordBatch, first: int) -> None:
        try:
            attempt(data)
        except Exception as error:
            if not is_refusal(error):
                raise
            if data.num_rows <= 1:
                why = error.rows if isinstance(error, RowErrors) else {}
                found[first] = why.get(0) or message_of(error)
                return
            rows = np.arange(data.num_rows)
            half = data.num_rows // 2
            for part in (rows[:half], rows[half:]):  # copied: a cast of a slice of lists converts all of their values
                look(data.take(pa.array(part)), first + int(part[0]))

    first = 0
    for data in batches:
        if data.num_rows:
            try:
                attempt(empty_batch(data.schema))
            except Exception as error:
                if not is_refusal(error):
                    raise
                return {}
            look(data, first)
        first += data.num_rows
    return found


def by_batch(batches: Sequence[pa.RecordBatch], refused: Iterable[int]) -> list[list[int]]:
    """Returns the numbers of rows over all batches as the numbers of rows of each batch, in order."""
    numbers = np.sort(np.fromiter(refused, np.int64))
    ends = np.cumsum([data.num_rows for data in batches])
    parts = np.split(numbers, np.searchsorted(numbers, ends))
    return [(part - end + data.num_rows).tolist() for part, end, data in zip(parts, ends, batches, strict=False)]


def parted(batches: Sequence[pa.RecordBatch], refused: Iterable[int]) -> list[pa.RecordBatch]:
    """Returns the batches without the rows with these numbers."""
    left = []
    for data, rows in zip(batches, by_batch(batches, refused), strict=True):
        if rows:
            kept = np.ones(data.num_rows, bool)
            kept[rows] = False
            data = data.filter(pa.array(kept))
        left.append(data)
    return left


def marked(letters: pa.RecordBatch) -> pa.RecordBatch:
    """Returns dead letters (RECORD_SCHEMA) as they are kept in a part, among the rows of the sink that refused them."""
    return pa.RecordBatch.from_arrays([*letters.columns, pa.nulls(letters.num_rows)], schema=_MARKED)


def shortened(letters: pa.RecordBatch, rows: Collection[int]) -> pa.RecordBatch:
    """Returns dead letters (RECORD_SCHEMA), of which those with these numbers have only the first bytes of payload and key."""
    cut: Any = pa.array([row in rows for row in range(letters.num_rows)])
    payload, key, *others = letters.columns
    heads = [pc.if_else(cut, pc.binary_slice(each, 0, HEAD_BYTES), each) for each in (payload, key)]
    return pa.RecordBatch.from_arrays([*heads, *others], schema=RECORD_SCHEMA)


def letters_in(batches: Sequence[pa.RecordBatch]) -> tuple[list[pa.RecordBatch], list[pa.RecordBatch]]:
    """Returns the rows of a part, and the dead letters in it."""
    rows = [data for data in batches if data.schema.names[-1:] != [_MARK]]
    return rows, [data.drop_columns([_MARK]) for data in batches if data.schema.names[-1:] == [_MARK]]
