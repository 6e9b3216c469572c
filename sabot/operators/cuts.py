"""Rows by the slots of a table, as a cut reads them later: nothing is copied at the barrier.

at a barrier    only which slots there are is noted
afterwards      the thread that saves reads them, some thousand at a time; who is about to change a slot that was not read yet puts its
                rows aside first
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot.errors import SabotError
from sabot.operators.state_parts import Batches

Rows: TypeAlias = list[pa.RecordBatch]
"""Rows as columns of several files of a checkpoint, which have as many rows each."""

MEMORY_SHARE = 0.5
"""How much of a memory budget is for what is in memory; as much again is for rows that an open cut needs and that have changed since."""

_PIECE_SLOTS = 8_192  # how many slots a cut reads at a time at most, while the owner waits
_PIECE_BYTES = 16_000_000  # about how many bytes these have
_FREE = nullcontext()


class OpenRows:
    """The rows of the slots of a table as they were at a barrier: read piece by piece by the thread that saves them, while the owner puts
    aside what he is about to change. slots: how many there were, or which. piece: how many are read at a time.
    """

    def __init__(
        self, rows_of: Callable[[pa.Int32Array], Rows], slots: Any, lock: "AbstractContextManager[Any]", piece: int
    ) -> None:
        self._piece = piece
        self._rows_of: Callable[[pa.Int32Array], Rows] | None = rows_of
        self._slots, self._lock = slots, lock
        self._marks: tuple[Any, Any] | None = None
        self._aside: list[Rows] = []  # of slots that have changed
        self._aside_again: list[Rows] = []  # of those that had been read before; who reads anew needs them

    def _marked(self) -> tuple[Any, Any]:
        """By slot: whether it is as it was, whether it has been read. Made late, since that takes longer than a barrier may."""
        if self._marks is None:
            if isinstance(self._slots, int):
                there = np.ones(self._slots, np.bool_)
            else:
                there = np.zeros(int(self._slots.max(initial=-1)) + 1, np.bool_)
                there[self._slots] = True
            self._marks = there, np.zeros(len(there), np.bool_)
        return self._marks

    def before(self, slots: Any) -> None:
        """These slots (numpy) will change. The caller has the lock."""
        there, was_read = self._marked()
        slots = slots[slots < len(there)]
        slots = slots[there[slots]]
        if len(slots) and self._rows_of is not None:
            slots = np.unique(slots)
            there[slots] = False
            read = was_read[slots]
            for which, kept in ((~read, self._aside), (read, self._aside_again)):
                if which.any():
                    kept.append(self._rows_of(pa.array(slots[which])))

    def read(self) -> Iterator[Rows]:
        """All rows as they were, piece by piece, from the first one on."""
        place = given = 0
        with self._lock:
            there, was_read = self._marked()
            self._aside, self._aside_again = self._aside + self._aside_again, []
            was_read[:] = False
        while True:
            with self._lock:
                if self._rows_of is None:
                    raise SabotError("a cut of state was discarded while it was saved")
                if given < len(self._aside):
                    rows, given = self._aside[given], given + 1
                elif place < len(there):
                    some = place + np.flatnonzero(there[place : place + self._piece])
                    place += self._piece
                    rows = self._rows_of(pa.array(some.astype(np.int32)))
                    was_read[some] = True
                else:
                    return
            if rows[0].num_rows:
                yield rows

    def close(self) -> None:
        """Lets go of the rows. The caller has the lock."""
        self._rows_of, self._marks = None, None
        self._aside, self._aside_again = [], []

    @property
    def is_closed(self) -> bool:
        return self._rows_of is None


class OpenCuts:
    """The cuts that still read the state of one owner. A part of the state is what stands beside one table, as that of a pane; it has any
    name, None where there is one table.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Any, OpenRows]] = []
        self._lock = RLock()

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        """In which the owner changes the state, and reads it; nothing is emitted in it."""
        return self._lock if self._open else _FREE

    def note(self, slots: pa.Int32Array, part: Any = None) -> None:
        """To be called before the rows of these slots change."""
        for name, rows in self._open:
            if name == part:
                rows.before(slots.to_numpy())

    def holds(self, part: Any = None) -> bool:
        """Whether a cut still reads this part, which must not be cleared then."""
        return any(name == part for name, _ in self._open)

    def open(
        self, rows_of: Callable[[pa.Int32Array], Rows], slots: Any, part: Any = None, *, nbytes: int = 0
    ) -> OpenRows:
        """The rows of these slots (numpy; or the number of all) as they are now. nbytes: of them together, so that pieces are small."""
        most = _PIECE_BYTES * slots // nbytes if nbytes else _PIECE_SLOTS
        rows = OpenRows(rows_of, slots, self._lock, max(min(_PIECE_SLOTS, most), 1))
        self._open.append((part, rows))
        return rows

    def over(self, cuts: Iterable[OpenRows]) -> None:
        """These are saved, or will not be. Any thread."""
        with self._lock:
            for each in cuts:
                each.close()
            self._open = [(part, each) for part, each in self._open if not each.is_closed]


class SlotRows(OpenCuts):
    """Rows that stand beside tables, by their slots: for `RowsPart`, whose cut then copies nothing."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__()
        self._schema = schema

    def cut(self, parts: Iterable[tuple[Any, GroupTable, Callable[[pa.Int32Array], pa.RecordBatch]]]) -> Batches:
        """The rows of all parts as they are now: of each its name, its table, and what gives the rows of slots."""
        cuts = []
        for name, table, rows_of in parts:
            count = table.statistics()["slots"]
            slots = count if count == len(table) else table.slots().to_numpy()
            cuts.append(self.open(partial(_alone, rows_of), slots, name))
        return Batches(
            self._schema, lambda: (rows[0] for each in cuts for rows in each.read()), partial(self.over, cuts)
        )


def _alone(rows_of: Callable[[pa.Int32Array], pa.RecordBatch], slots: pa.Int32Array) -> Rows:
    return [rows_of(slots)]
