"""The timers of process functions, with their keys: in memory, on disk, and in a checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.flow.timers import TimerTable
from sabot.engine.operators.base import START_OF_TIME, OperatorContext, Saved
from sabot.engine.operators.columns import key_table
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.slot_state import SlotState
from sabot.engine.operators.state_parts import Owned
from sabot.errors import CorruptCheckpoint

_DUE_ROWS = 65_536  # about how many due timers are brought back from disk at once
_ABOUT = (("at", pa.int64()), ("kind", pa.int8()), ("name", pa.string()), ("serial", pa.int64()), ("order", pa.int64()))


class KeysWithTimers(SlotState):
    """The keys that have timers, and their timers.

    `forgotten`: a function that is called with slots whose keys have gone to disk.
    """

    kind = "kind"

    def __init__(self, keys: pa.Schema, context: OperatorContext) -> None:
        self.timers = TimerTable()
        self.forgotten: Callable[[pa.Int32Array], None] = lambda slots: None
        self._base = (0, 0)  # added to the serials and orders of restored timers
        names = [f"key.{i}" for i in range(len(keys))]
        fields = [
            *(pa.field(name, key.type) for name, key in zip(names, keys, strict=True)),
            *map(pa.field, *zip(*_ABOUT, strict=True)),
        ]
        self._indices = list(range(len(keys)))
        super().__init__(key_table(keys), self._indices, {"timers": pa.schema(fields)}, self._indices, context)

    def __len__(self) -> int:
        """Returns the number of timers."""
        return len(self.timers) + self.cold_rows

    @property
    def nbytes(self) -> int:
        return self.timers.nbytes + self.known.nbytes

    def slots_of(self, keys: pa.RecordBatch, hashes: pa.UInt64Array) -> pa.Int32Array:
        """Returns the slots of these keys, whose timers are brought into memory, so that they can be changed."""
        with self.changing:
            self.fetch(keys, hashes, None)
            slots = self.known.resolve(keys, self._indices, hashes=hashes)
            self.note(slots)
        return slots

    def free(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Frees the slots of keys without timers, among `slots` and the keys whose last timer has fired. Returns the
        freed slots.
        """
        with self.changing:
            vacant = self.timers.vacant(slots)
            if len(vacant):
                self.known.remove(vacant)
        return vacant

    def firing(self, kind: int, limit: int) -> Iterator[int]:
        """Yields times in ascending order, the last one being `limit`. At each of them, all timers up to this time
        are in memory, and the caller fires them.
        """
        last = START_OF_TIME
        # A function may set timers for times below `last`, and these may go to disk: they fire with the next time.
        while last < (at := self.full_at(_DUE_ROWS, limit, kind)) < limit:
            yield from self._ready(kind, at)
            last = at
        yield from self._ready(kind, limit)

    def _ready(self, kind: int, at: int) -> Iterator[int]:
        self.bring(kind, at)
        yield at
        with self.changing:
            self.settle()

    def bring(self, kind: int, at: int) -> None:
        """Brings all timers up to this time into memory, so that they can fire."""
        with self.changing:
            self.bring_due(at, kind)
            if self.is_held:
                self.note(self.timers.due(at, kind))

    def bring_some(self, kind: int, least: int, most: int) -> int:
        """Brings timers into memory, all up to the returned time, which lies between `least` and `most`."""
        at = max(least, self.full_at(_DUE_ROWS, most, kind))
        self.bring(kind, at)
        return at

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        timers = self.timers.rows_of(slots)
        columns = [*self.known.key_columns(timers.column(0)), *timers.columns[1:]]
        return [pa.RecordBatch.from_arrays(columns, schema=self.files["timers"])]

    def put(self, rows: Rows) -> None:
        width = len(self._indices)
        slots = self.known.resolve(rows[0], self._indices)
        self.note(slots)
        timers = pa.RecordBatch.from_arrays(
            [slots, *rows[0].columns[width:]], names=["slot", *(name for name, _ in _ABOUT)]
        )
        try:
            self.timers.put_back(slots, timers, *self._base)
        except ValueError as error:
            raise CorruptCheckpoint(f"the timers of a checkpoint cannot be set: {error}") from error

    def forget(self, slots: pa.Int32Array) -> None:
        self.timers.evict(slots)
        self.known.remove(slots)
        self.forgotten(slots)

    def due_of(self, rows: Rows) -> Any:
        return rows[0].column("at").to_numpy()

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        """Restores timers. Timers that are due at the same time fire in the order in which they were saved; if
        several subtasks saved timers, those of the first subtask come first, and so on.
        """
        if len(saved) == 1:
            super().restore(saved, owned)
            return
        for part in saved:
            self._base = self.timers.last
            super().restore([part], owned or _all)
        self._base = (0, 0)


def _all(hashes: pa.UInt64Array) -> pa.BooleanArray:
    return pa.array(np.ones(len(hashes), np.bool_))
