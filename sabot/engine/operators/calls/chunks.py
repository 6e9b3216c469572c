"""The parts of the queue of rows that wait for calls: chunks of rows, and segments between marks."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.flow.channel import ACTIVE, IDLE, Watermark
from sabot.engine.calls.handover import Call
from sabot.engine.operators.row_queue import QueuedRows, RowNumbers

CHUNK_ROWS = 1024  # all rows of a chunk stay in memory as long as one of them waits
_TAKE_ROWS = 64  # the number of rows that become Python objects at a time, on the event loop
_LOOK_AHEAD = 4096

EndedCall = tuple[int, int, Any]
"""A call that has ended: (the number of its first row, the number of its rows, its outcome)."""


class Chunk(QueuedRows):
    """Rows that came together, and the calls that they wait for (a `calls.handover.Work`). `outcomes` has a place for
    each call.

    `codes`: the number of each row's call, or None if row n has call n. `settled`: True for each call whose outcome
    the operator has. `segment`: the segment of the chunk.
    """

    data: pa.RecordBatch

    def __init__(self, data: pa.RecordBatch, calls: int, codes: Any = None) -> None:
        super().__init__(data.num_rows, data)
        self.codes = codes
        self.outcomes: list[Any] = [None] * calls
        self.settled = np.zeros(calls, np.bool_)
        self.segment: Segment
        self._taken = 0
        self._known: Any = None  # by call, True if it was settled before the first one was made; not changed later

    @property
    def calls(self) -> int:
        return len(self.outcomes) if self._known is None else int((~self._known).sum())

    @property
    def exhausted(self) -> bool:
        return self._taken >= len(self.outcomes)

    def set_outcome(self, number: int, outcome: Any) -> None:
        """Sets the outcome of a call that need not be made. Called before the chunk is given to the crew."""
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
        """Returns the arguments of the calls first … end - 1."""
        raise NotImplementedError

    def argument(self, number: int) -> Any:
        return self.arguments(number, number + 1)[0]

    def outcome(self, number: int, result: Any) -> Any:
        raise NotImplementedError

    def ready(self, ordered: bool) -> RowNumbers:
        """Returns the waiting rows that can be emitted now: those whose calls have settled. If `ordered` is True,
        only the rows before the first whose call has not.
        """
        if ordered:
            return np.arange(self.first, self._settled_until())
        return np.flatnonzero(self._settled(slice(None)) & self.waits())

    def _settled(self, rows: slice) -> Any:
        """Returns True for each row whose call has settled."""
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

    def done(self, rows: RowNumbers, settled: Any) -> Iterator[EndedCall]:
        """Yields the calls of `rows` that have ended. `settled`: True for each call of the chunk that has ended. In
        the result, rows are numbered by their positions in `rows`. May be called by any thread.
        """
        calls = rows if self.codes is None else self.codes[rows]
        for place in np.flatnonzero(settled[calls]).tolist():
            yield place, 1, self.outcomes[calls[place]]


class Segment:
    """The rows between two groups of marks, and the marks that follow these rows. Of several marks in succession,
    only the last watermark and the last change of idleness are kept.

    `chunks`: the number of the segment's chunks that have waiting rows.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.watermark: Any = None
        self.idle: Any = None
        self._others: list[Any] = []

    def add_mark(self, mark: Any) -> None:
        """Adds a mark behind all rows and marks."""
        if isinstance(mark, Watermark):
            self.watermark = mark
        elif mark is IDLE or mark is ACTIVE:
            self.idle = mark
        else:
            self._others.append(mark)

    @property
    def is_closed(self) -> bool:
        """True if there are marks behind the rows. Further rows go into the next segment."""
        return self.watermark is not None or self.idle is not None or bool(self._others)

    def marks(self) -> list[Any]:
        """Returns the marks in the order in which they are passed on."""
        told = [self.idle, self.watermark] if self.idle is ACTIVE else [self.watermark, self.idle]
        return [*self._others, *(mark for mark in told if mark is not None)]
