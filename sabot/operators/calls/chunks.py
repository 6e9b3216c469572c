"""Rows that came together, the calls that they wait for, and the watermarks between them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.flow.channel import ACTIVE, IDLE, Watermark
from sabot.calls.handover import Call
from sabot.operators.row_queue import QueuedRows, RowNumbers

CHUNK_ROWS = 1024  # of which some may wait: as long as one of them does, all are in memory
_TAKE_ROWS = 64  # become Python rows at a time, on the event loop
_LOOK_AHEAD = 4096

Done = tuple[int, int, Any]
"""Of a call that has ended: its first row, how many rows it was made for, its outcome."""


class Chunk(QueuedRows):
    """Rows that came together, and the calls that they wait for (`calls.handover.Work`). `outcomes` has a place for each call.

    settled: by call, whether the operator has its outcome. codes: row -> its call; None: call n is row n's. segment: where it stands.
    """

    data: pa.RecordBatch

    def __init__(self, data: pa.RecordBatch, calls: int, codes: Any = None) -> None:
        super().__init__(data.num_rows, data)
        self.codes = codes
        self.outcomes: list[Any] = [None] * calls
        self.settled = np.zeros(calls, np.bool_)
        self.segment: Segment
        self._taken = 0
        self._known: Any = None  # calls that had settled when this began; never changed

    @property
    def calls(self) -> int:
        return len(self.outcomes) if self._known is None else int((~self._known).sum())

    @property
    def exhausted(self) -> bool:
        return self._taken >= len(self.outcomes)

    def know(self, number: int, outcome: Any) -> None:
        """The outcome of a call, without making it; before it is given to the crew."""
        if self._known is None:
            self._known = np.zeros(len(self.outcomes), np.bool_)
        self._known[number] = self.settled[number] = True
        self.outcomes[number] = outcome

    def take(self, places: Iterator[int]) -> Sequence[Call]:
        first, self._taken = self._taken, min(self._taken + _TAKE_ROWS, len(self.outcomes))
        calls = enumerate(self.arguments(first, self._taken), first)
        known = self._known
        if known is None:
            return [(self, number, argument, next(places)) for number, argument in calls]
        return [(self, number, argument, next(places)) for number, argument in calls if not known[number]]

    def arguments(self, first: int, end: int) -> Sequence[Any]:
        """What the calls first … end - 1 are made with."""
        raise NotImplementedError

    def outcome(self, number: int, result: Any) -> Any:
        raise NotImplementedError

    def ready(self, ordered: bool) -> RowNumbers:
        """The rows that wait and whose calls have settled: they can be emitted now. ordered: those before the first that has not."""
        if ordered:
            return np.arange(self.first, self._settled_until())
        return np.flatnonzero(self._settled(slice(None)) & self.waits())

    def _settled(self, rows: slice) -> Any:
        """By row, whether its call has settled."""
        return self.settled[rows] if self.codes is None else self.settled[self.codes[rows]]

    def _settled_until(self) -> int:
        first = self.first
        while first < self.rows:
            settled = self._settled(slice(first, min(first + _LOOK_AHEAD, self.rows)))
            at = int(settled.argmin())
            if not settled[at]:
                return first + at
            first += len(settled)
        return self.rows

    def done(self, rows: RowNumbers, settled: Any) -> Iterator[Done]:
        """The calls of these rows that have ended, by `settled`; the rows are numbered as they stand in `rows`. Any thread."""
        calls = rows if self.codes is None else self.codes[rows]
        for place in np.flatnonzero(settled[calls]).tolist():
            yield place, 1, self.outcomes[calls[place]]


class Segment:
    """Rows that no mark parts, and the marks behind them. A run of marks of time says no more than its last watermark, and whether the
    input is idle at its end. chunks: how many of its chunks wait.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.watermark: Any = None
        self.idle: Any = None
        self._others: list[Any] = []

    def add_mark(self, mark: Any) -> None:
        """Behind all that is there."""
        if isinstance(mark, Watermark):
            self.watermark = mark
        elif mark is IDLE or mark is ACTIVE:
            self.idle = mark
        else:
            self._others.append(mark)

    @property
    def is_closed(self) -> bool:
        """There are marks: rows that come now belong into the next one."""
        return self.watermark is not None or self.idle is not None or bool(self._others)

    def marks(self) -> list[Any]:
        """In the order in which they are told."""
        told = [self.idle, self.watermark] if self.idle is ACTIVE else [self.watermark, self.idle]
        return [*self._others, *(mark for mark in told if mark is not None)]
