"""Rows that the receiver of a sink refuses: which rows of a batch these are, and how they become dead letters."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.records import bytes_list
from sabot.base.arrays import empty_batch
from sabot.base.stored_names import stored_name
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import HEAD_BYTES, RECORD_SCHEMA, build_records, carries_changes, header_rows
from sabot.engine.letters.form import ROW_HEADER, letter_headers, letters_of_rows
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


def letters_of_refused(
    batches: Sequence[pa.RecordBatch],
    refused: Mapping[int, str],
    *,
    step: str,
    agent: str,
    version: str,
    ids: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """Returns the dead letters of rows that a receiver refuses, in their order. `refused`: the reasons, by the number of
    the row over all batches. A record keeps its payload, key and headers; any other row is its payload, as JSON. `ids`:
    as in `with_row_ids`; by default a digest of step, payload and key, which equal rows share.
    """
    made, first = [], 0
    for data, own in zip(batches, by_batch(batches, refused), strict=True):
        if own:
            rows = data.take(pa.array(own))
            errors = [(stored_name(DataError), refused[first + row]) for row in own]
            if carries_changes(rows.schema):
                rows = rows.select(rows.schema.names[:-1])
            made.append(_letters_of_results(rows, errors, {"step": step, "agent": agent, "version": version}))
        first += data.num_rows
    letters = pa.Table.from_batches(made, RECORD_SCHEMA).combine_chunks().to_batches()[0]
    if ids is None:
        payloads, keys = (bytes_list(letters.column(name)) for name in ("payload", "key"))
        ids = [_digest(agent, step, key, payload) for key, payload in zip(keys, payloads, strict=True)]
    return with_row_ids(letters, ids)


def _digest(agent: str, step: str, key: bytes | None, payload: bytes | None) -> str:
    whole = hashlib.blake2b(digest_size=12)
    for each in (agent.encode(), step.encode(), key or b"", payload or b""):
        whole.update(len(each).to_bytes(8, "big") + each)
    return whole.hexdigest()


def with_row_ids(letters: pa.RecordBatch, ids: Sequence[str]) -> pa.RecordBatch:
    """Returns dead letters of refused rows (RECORD_SCHEMA), each with this id as `sabot.row`, its last header, in place
    of the one that it has.
    """
    payload, key, timestamp, partition, offset, headers = letters.columns
    own = [each[:-1] if each and each[-1][0] == ROW_HEADER else each for each in header_rows(headers)]
    named = [(*each, (ROW_HEADER, id.encode())) for each, id in zip(own, ids, strict=True)]
    return build_records(bytes_list(payload), bytes_list(key), timestamp, partition, offset, named)


def _letters_of_results(
    rows: pa.RecordBatch, errors: Sequence[tuple[str, str]], origin: Mapping[str, str]
) -> pa.RecordBatch:
    none = [None] * len(errors)
    if not rows.schema.equals(RECORD_SCHEMA):
        return letters_of_rows(rows, errors, none, times=None, topic="", places=None, **origin)
    payload, key, timestamp, _, _, headers = rows.columns
    now = int(SYSTEM_CLOCK.time() * 1000)
    times = [now if each is None else each for each in timestamp.to_pylist()]
    facts = [
        letter_headers(error, topic="", partition=None, offset=None, timestamp=time, attempts=None, **origin)
        for error, time in zip(errors, times, strict=True)
    ]
    headers = [(*own, *more) for own, more in zip(header_rows(headers), facts, strict=True)]
    # A topic takes no time far ahead of its clock: where the record's own was refused, that of the letter would be too.
    return build_records(
        bytes_list(payload), bytes_list(key), [min(each, now) for each in times], 0, [0] * len(facts), headers
    )
