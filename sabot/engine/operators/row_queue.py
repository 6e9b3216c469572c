"""A queue of rows that wait for a call and survive a barrier: rows of agents, and rows of `map_async`, `lookup` and
`map_llm`.

    add ──▶ QueuedRows ▸ QueuedRows ▸ QueuedRows      in order of arrival, bounded by rows and bytes
            rows end one by one or many at once; a QueuedRows is removed when all its rows have ended
    barrier ──▶ the rows that have not ended: a checkpoint keeps them, and a restore adds them again in this order

A row has ended when the effects of its call are in the state and in the output: then the checkpoint does not need it
any more. All rows of a QueuedRows stay in memory as long as one of them waits, so rows are copied only when a barrier
asks for the remaining ones.

The two users differ:

- The calls of an agent end in any order, and their results are emitted at once. So its rows end one by one, and the queue keeps no results
  (`operators.agents`).
- The results of `map_async`, `lookup` and `map_llm` are emitted in the order of the rows, or at least do not cross a watermark. So results
  wait too, and are saved beside the rows (`calls.async_operator`).
"""

from collections.abc import Collection, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

RowNumbers = Any  # numpy, int64: rows of a QueuedRows


class QueuedRows:
    """Rows that were added to the queue together.

    `rows`: their number. `data`: the rows, or None if no checkpoint saves them. `topic`: their source. `since`: the
    time when they came, in seconds of a clock. `left`: the number of rows that have not ended. Rows end either by
    `end` and `end_rows`, or only by `end_first`.
    """

    def __init__(self, rows: int, data: pa.RecordBatch | None = None, *, topic: str = "", since: float = 0.0) -> None:
        self.rows = self.left = rows
        self.data = data
        self.topic = topic
        self.since = since
        self.nbytes: int = 0 if data is None else data.nbytes
        self._first = 0  # the rows before this one have ended
        self._ended: bytearray | None = None  # by row, 1: it has ended. None: all rows from `_first` on wait

    def end(self, row: int) -> None:
        """Ends this row, which must not have ended before."""
        if self._ended is None:
            self._ended = bytearray(self.rows)
        self._ended[row] = 1
        self.left -= 1

    def end_rows(self, rows: RowNumbers) -> None:
        """Ends these rows, which must not have ended before."""
        if self._ended is None:
            self._ended = bytearray(self.rows)
        np.frombuffer(self._ended, np.uint8)[rows] = 1
        self.left -= len(rows)

    def end_first(self, count: int) -> None:
        """Ends the first `count` rows that have not ended."""
        self._first += count
        self.left -= count

    @property
    def first(self) -> int:
        """The first row that has not ended. Only for rows that end by `end_first`."""
        return self._first

    def waits(self) -> Any:
        """Returns True for each row that has not ended (numpy bool). Not for rows that end by `end_first`."""
        if self._ended is None:
            return np.ones(self.rows, np.bool_)
        return np.frombuffer(self._ended, np.uint8) == 0

    def waiting(self) -> RowNumbers:
        """Returns the rows that have not ended, in order."""
        if self._ended is None:
            return np.arange(self._first, self.rows)
        return np.flatnonzero(self.waits())

    def waiting_data(self, without: Collection[int] = ()) -> pa.RecordBatch | None:
        """Returns the rows that have not ended, as columns, or None if there are none, and if no checkpoint saves
        them. `without`: rows to leave out.
        """
        if self.data is None or self.left == len(without):
            return None
        if self.left == self.rows and not without:
            return self.data
        waiting = self.waiting()
        return self.data.take(pa.array(waiting[~np.isin(waiting, list(without))] if without else waiting))


H = TypeVar("H", bound=QueuedRows)


class RowQueue(Generic[H]):
    """A queue of QueuedRows, in order of arrival. One thread owns it; other threads may read the figures."""

    def __init__(self, capacity_rows: int, capacity_bytes: int) -> None:
        self.capacity_rows, self.capacity_bytes = capacity_rows, capacity_bytes
        self.rows = self.nbytes = 0  # rows that wait; bytes of all rows that are in memory because of them
        self._queued: dict[int, H] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def __iter__(self) -> Iterator[H]:
        """Must not be changed while it is iterated."""
        return iter(self._queued.values())

    @property
    def first(self) -> H | None:
        """The oldest QueuedRows, or None."""
        return next(iter(self._queued.values()), None)

    @property
    def has_room(self) -> bool:
        """True if the queue is below its limits of rows and bytes. Rows that are added although there is no room are
        queued too.
        """
        return self.rows < self.capacity_rows and self.nbytes < self.capacity_bytes

    def add(self, queued: H) -> None:
        """Adds a QueuedRows at the end, and counts its rows that have not ended."""
        if queued.left:
            self._queued[id(queued)] = queued
            self.rows += queued.left
            self.nbytes += queued.nbytes

    def end(self, queued: H, row: int) -> bool:
        """Ends this row. Returns True if all rows of its QueuedRows have ended now. Agents call this for each record."""
        marks = queued._ended
        if marks is None:
            marks = queued._ended = bytearray(queued.rows)
        marks[row] = 1
        queued.left -= 1
        self.rows -= 1
        return not queued.left and self._drop(queued)

    def end_rows(self, queued: H, rows: RowNumbers) -> bool:
        """Ends these rows. Returns True if all rows of their QueuedRows have ended now."""
        queued.end_rows(rows)
        self.rows -= len(rows)
        return not queued.left and self._drop(queued)

    def end_first(self, queued: H, count: int) -> bool:
        """Ends the first `count` rows that have not ended. Returns True if all rows of their QueuedRows have ended
        now.
        """
        queued.end_first(count)
        self.rows -= count
        return not queued.left and self._drop(queued)

    def _drop(self, queued: H) -> bool:
        del self._queued[id(queued)]
        self.nbytes -= queued.nbytes
        return True
