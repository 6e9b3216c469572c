"""Copies of the rows behind a step of a running app, for people who look at them.

A tap takes the place of the receiver of a step's rows, between two batches, and passes each batch on to that receiver.
Nothing is asked per batch while nobody looks, since then there is no tap. A tap ends itself with the first batch after its
lease, so it ends with its last viewer, whatever became of him.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import shown
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.records import text_or_hex
from sabot.engine.runtime.tasks.task import StreamTask

ROWS_A_SECOND = 50
LEASE_SECONDS = 6.0  # a page without scripts is loaded again each five seconds
_MOST_COLUMNS = 100  # of a row as Python values
_MOST_BYTES = 1 << 20  # of the rows of one tap in a second; a single row may be larger


class TapPoint(NamedTuple):
    """A place where rows pass. `origin`: the id of a step, or of a stage for the rows that come into its tasks: from its source, or
    through its channels. `branch`: the output branch of the step, or "" for its result.
    """

    origin: str
    branch: str = ""


class Tap:
    """A receiver of batches that passes them on, and keeps copies of rows, at most so many a second.

    It is called by the thread of the task. `holder` and `name`: the object and its attribute that had the receiver before.
    """

    def __init__(self, holder: Any, name: str, rows: int, clock: Clock) -> None:
        self._holder, self._name, self._clock = holder, name, clock
        self._rows = self._left = rows
        self._bytes = _MOST_BYTES
        self._second = clock.monotonic()
        self._taken: deque[pa.RecordBatch] = deque(maxlen=ROWS_A_SECOND)
        self._receive = getattr(holder, name)
        self.until = self._second + LEASE_SECONDS
        setattr(holder, name, self)  # one write: the task's next batch comes here

    def __call__(self, batch: Batch) -> None:
        """Passes a batch on."""
        now = self._clock.monotonic()
        if now >= self._second + 1:
            self._second, self._left, self._bytes = now, self._rows, _MOST_BYTES
        if now > self.until:
            self.end()
        elif self._left and batch.num_rows:
            rows = _last_rows(batch, self._left)
            self._bytes -= rows.nbytes
            self._left = self._left - rows.num_rows if self._bytes > 0 else 0
            self._taken.append(rows)
        self._receive(batch)

    @property
    def in_place(self) -> bool:
        """True until it ends, or the receiver is replaced by another one."""
        return getattr(self._holder, self._name) is self

    def drain(self) -> Iterator[pa.RecordBatch]:
        """Yields the copies since the last call, the oldest first. From any thread."""
        while self._taken:
            yield self._taken.popleft()

    def end(self) -> None:
        """Gives the place back to the former receiver."""
        if self.in_place:
            setattr(self._holder, self._name, self._receive)
        self._taken.clear()


class Taps:
    """The taps of the tasks in this process. From any thread."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taps: dict[tuple[str, TapPoint], Tap] = {}

    def take(self, tasks: Sequence[StreamTask], point: TapPoint, rows: int) -> list[pa.RecordBatch]:
        """Keeps taps at the point in all of these tasks that have it, for six seconds more, and returns the rows that they have copied
        since the last call. `rows`: the most that a tap copies in a second.
        """
        found: list[pa.RecordBatch] = []
        now = self._clock.monotonic()
        with self._lock:
            self._taps = {name: tap for name, tap in self._taps.items() if tap.in_place}
            for task in tasks:
                if not task.built or (place := _place_of(task, point)) is None:
                    continue
                tap = self._taps.get((task.name, point))
                if tap is None:
                    tap = self._taps[task.name, point] = Tap(*place, rows, self._clock)
                elif now > tap.until:
                    # no batch has come since its lease: what it has is of an earlier viewer
                    deque(tap.drain(), maxlen=0)
                tap.until = now + LEASE_SECONDS
                found += tap.drain()
        return found


def share_of(tasks: int) -> int:
    """Returns the most rows that each of so many taps copies in a second."""
    return max(1, ROWS_A_SECOND // max(1, tasks))


def tapped(tasks: Sequence[StreamTask], point: TapPoint) -> list[StreamTask]:
    """Returns the tasks that have the point."""
    return [task for task in tasks if task.built and _place_of(task, point) is not None]


def _place_of(task: StreamTask, point: TapPoint) -> tuple[Any, str] | None:
    """Returns the object and its attribute that has the receiver of the rows at this point, or None."""
    if point == TapPoint(task.name.rpartition("/")[0]):
        return task.chain, "process"
    for link in task.chain.links:
        if link.operator.step.id == point.origin:
            if not point.branch:
                return link.operator, "emit"
            exit = link.exits.get(point.branch)
            return None if exit is None else (exit, "receive")
    return None


def _last_rows(batch: Batch, most: int) -> pa.RecordBatch:
    """Returns copies of the last rows of a batch: of the rows alone, so that the batch is not kept in memory."""
    count = min(most, batch.num_rows, max(1, _MOST_BYTES * batch.num_rows // max(1, batch.nbytes)))
    first = batch.num_rows - count
    selection: Any = batch.selection
    numbers = np.arange(first, batch.num_rows, dtype=np.int32) if selection is None else selection.slice(first)
    rows: pa.RecordBatch = batch.data.take(pa.array(numbers) if selection is None else numbers)
    return rows if rows.nbytes <= _MOST_BYTES else rows.take(pa.array([count - 1]))


def plain_rows(batches: Sequence[pa.RecordBatch]) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the columns of the newest copies, at most a hundred, and all rows as Python values, the oldest first."""
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    for batch in batches:
        columns = [str(name) for name in batch.schema.names[:_MOST_COLUMNS]]
        values = [_values(batch.column(at)) for at in range(len(columns))]
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    return columns, rows


def _values(column: pa.Array) -> list[Any]:
    """Returns the values of a column. Times outside the range of Python's become texts."""
    try:
        return [text_or_hex(value) if isinstance(value, bytes) else value for value in column.to_pylist()]
    except (OverflowError, ValueError):
        return [shown(each) for each in column]
