"""Snapshots ("cuts") of rows that are stored by the slots of a table. A cut is the state as it was at a barrier:
another thread saves it while the owner of the state continues. A barrier copies no rows.

    at a barrier    only the slots are noted
    afterwards      the thread that saves reads their rows, some thousand slots at a time. Before the owner changes a slot that was not
                    read yet, it copies the rows of the slot
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import RLock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.state_parts import Batches
from sabot.errors import SabotError

Rows: TypeAlias = list[pa.RecordBatch]
"""Rows as columns of several files of a checkpoint, each with as many rows as the others."""

MEMORY_SHARE = 0.5
"""The share of a memory budget for state in memory. The rest is for copies of rows that have changed since a barrier
whose snapshot is not saved yet.
"""

_PIECE_SLOTS = 8_192  # how many slots a cut reads at a time at most, while the owner waits
_PIECE_BYTES = 16_000_000  # about how many bytes these have
_FREE = nullcontext()


class OpenRows:
    """The rows of the slots of a table as they were at a barrier. The thread that saves reads them piece by piece.
    Rows that the owner is about to change are copied first.

    `slots`: the number of slots, or their numbers (numpy). `lock`: held while rows are read or changed. `piece`: the
    number of slots that are read at a time.
    """

    def __init__(
        self, rows_of: Callable[[pa.Int32Array], Rows], slots: Any, lock: "AbstractContextManager[Any]", piece: int
    ) -> None:
        self._piece = piece
        self._rows_of: Callable[[pa.Int32Array], Rows] | None = rows_of
        self._slots, self._lock = slots, lock
        self._marks: tuple[Any, Any] | None = None
        self._aside: list[Rows] = []  # the copied rows of slots that had not been read
        self._aside_again: list[Rows] = []  # the copied rows of slots that had been read: a second reading needs them

    def _marked(self) -> tuple[Any, Any]:
        """Returns two arrays by slot: True if the rows of the slot have not changed since the barrier, and True if
        they have been read. The arrays are made at the first call, since that takes longer than a barrier may.
        """
        if self._marks is None:
            if isinstance(self._slots, int):
                there = np.ones(self._slots, np.bool_)
            else:
                there = np.zeros(int(self._slots.max(initial=-1)) + 1, np.bool_)
                there[self._slots] = True
            self._marks = there, np.zeros(len(there), np.bool_)
        return self._marks

    def before(self, slots: Any) -> None:
        """Copies the rows of these slots (numpy), which are about to change. The caller has the lock."""
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
        """Yields all rows as they were at the barrier, piece by piece, from the beginning. Raises SabotError if the
        snapshot is discarded meanwhile.
        """
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
        """Releases the rows. The caller has the lock."""
        self._rows_of, self._marks = None, None
        self._aside, self._aside_again = [], []

    @property
    def is_closed(self) -> bool:
        return self._rows_of is None


class OpenCuts:
    """The snapshots of one owner's state that another thread is still reading. If the state has several tables, such
    as the panes of a window, each table is a part with a name; if it has one table, the name is None.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Any, OpenRows]] = []
        self._lock = RLock()

    @property
    def changing(self) -> "AbstractContextManager[Any]":
        """The context in which the owner changes or reads the state. The owner emits nothing within it."""
        return self._lock if self._open else _FREE

    def note(self, slots: pa.Int32Array, part: Any = None) -> None:
        """Prepares these slots of `part`, a table of the operator's state, for a change: each snapshot of that table
        that is not saved yet copies the rows of the slots first. Must be called before each change.
        """
        for name, rows in self._open:
            if name == part:
                rows.before(slots.to_numpy())

    def holds(self, part: Any = None) -> bool:
        """Returns True if a snapshot of this part is not saved yet. The owner must not clear the part then. `part`:
        the name of a table, or None.
        """
        return any(name == part for name, _ in self._open)

    def open(
        self, rows_of: Callable[[pa.Int32Array], Rows], slots: Any, part: Any = None, *, nbytes: int = 0
    ) -> OpenRows:
        """Begins a snapshot, and returns the rows of these slots as they are now.

        `rows_of`: returns the rows of slots. `slots`: the number of all slots, or the numbers of some (numpy).
        `part`: the name of their table, or None. `nbytes`: the bytes of all rows, by which the size of pieces is
        chosen, or 0 if unknown.
        """
        most = _PIECE_BYTES * slots // nbytes if nbytes else _PIECE_SLOTS
        rows = OpenRows(rows_of, slots, self._lock, max(min(_PIECE_SLOTS, most), 1))
        self._open.append((part, rows))
        return rows

    def over(self, cuts: Iterable[OpenRows]) -> None:
        """Ends these snapshots, which have been saved or discarded. Called from any thread."""
        with self._lock:
            for each in cuts:
                each.close()
            self._open = [(part, each) for part, each in self._open if not each.is_closed]


class SlotRows(OpenCuts):
    """The snapshots of rows that are stored beside tables, by the slots of the tables. They are the rows of a
    `RowsPart`, which then copies nothing at a barrier.
    """

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__()
        self._schema = schema

    def cut(self, parts: Iterable[tuple[Any, GroupTable, Callable[[pa.Int32Array], pa.RecordBatch]]]) -> Batches:
        """Returns the rows of all parts as they are now. Each part is its name, its table, and a function that
        returns the rows of slots.
        """
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
