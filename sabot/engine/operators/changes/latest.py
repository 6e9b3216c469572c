"""The last row of each key, where each row replaces the one before it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.changes import Touches
from sabot.engine.operators.base import OP_COLUMN, START_OF_TIME, TIME_COLUMN, Cut, OperatorContext, Saved
from sabot.engine.operators.changes.state import Array, Groups
from sabot.engine.operators.changes.weaving import signs
from sabot.engine.operators.columns import key_table
from sabot.engine.operators.state_parts import Owned, StatePart, StorePart
from sabot.engine.state.tables.rows import RowStore

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep


class LatestRows(Groups):
    """A store of the last row of each key. A row replaces the row of its key that came before, or, with the op
    DELETE, removes it.

    A RowStore keeps the rows under ids. `_ids` has the id of each slot's row, or -1 for a slot without a row.
    """

    own_times = True

    def __init__(self, keys: Sequence[str], input: pa.Schema, context: OperatorContext) -> None:
        self._names, self._input = list(keys), input
        self._timed = TIME_COLUMN in input.names
        folder, memory = context.directory, context.memory_budget
        later = set(input.names).difference(keys)  # the start has checked which columns the program may add
        self._rows = RowStore(input, self._names, directory=folder, memory_bytes=memory, later=later)
        self._known = key_table(pa.schema([input.field(name) for name in keys]))
        self._ids: Any = np.zeros(0, np.int64)
        self._touches = Touches()
        # Set between `add` and `note_changes`: the last row of each key of the batch, and True if it stays or False if it is a delete.
        self._new: tuple[pa.RecordBatch, Any] | None = None
        self._places = [i for i, field in enumerate(input) if field.name not in keys and field.name != TIME_COLUMN]
        self.fields = [input.field(place) for place in self._places]

    def table(self) -> GroupTable:
        return self._known

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        if self._new is None:
            self._reach(len(slots) and int(pc.max(slots).as_py()))
            ids = self._ids[slots.to_numpy()]
            rows, there = self._rows.table.take(pa.array(ids)), ids >= 0
        else:
            rows, there = self._new
        times = rows.column(TIME_COLUMN).fill_null(START_OF_TIME).to_numpy() if self._timed else None
        return there.astype(np.int64), times, [rows.column(place) for place in self._places]

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        data = batch.taken()
        _, _, _, last = self._touches.of(slots.to_numpy(), np.arange(len(slots)))
        rows = data.take(pa.array(last))
        stays = np.ones(len(last), bool)
        if OP_COLUMN in data.schema.names:
            stays = ~signs(rows.column(OP_COLUMN))
        self._new = rows.select(self._input.names), stays

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        assert self._new is not None
        rows, stays = self._new
        self._new = None
        touched = slots.to_numpy()
        gone = self._ids[touched[changed]]
        self._rows.table.remove(pa.array(gone[gone >= 0]))
        self._ids[touched[changed]] = -1
        come = np.flatnonzero(changed & stays)
        self._ids[touched[come]] = self._rows.table.insert(rows.take(pa.array(come))).to_numpy()

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        table.remove(slots)

    def settle(self) -> None:
        """Does nothing: a RowStore moves rows to disk by itself when its memory budget is exceeded."""

    def parts(self) -> list[StatePart]:
        return [StorePart("tables", self, folder="")]

    def cut(self) -> tuple[dict[str, Any], Cut | None]:
        """Returns the facts and the snapshot of the rows. Called as a method of `Store`."""
        return self._rows.cut()

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
        """Restores the rows, and looks up the slot of each row's key. Called as a method of `Store`."""
        self._rows.restore(saved, owned)
        for rows in self._pieces():
            slots = self._known.resolve(rows, [rows.schema.get_field_index(name) for name in self._names])
            self._reach(int(pc.max(slots).as_py()))
            self._ids[slots.to_numpy()] = rows.column("__id").to_numpy()

    def _pieces(self) -> Iterator[pa.RecordBatch]:
        cut = self._rows.table.cut()
        try:
            yield from cut.read()
        finally:
            cut.close()

    def contents(self) -> Iterator[list[Array]]:
        for rows in self._pieces():
            yield [*(rows.column(name) for name in self._names), *(rows.column(place) for place in self._places)]

    def current(self) -> Iterator[tuple[int, Any, list[Array]]]:
        for rows in self._pieces():
            times = rows.column(TIME_COLUMN).fill_null(START_OF_TIME).to_numpy() if self._timed else None
            columns = [*(rows.column(name) for name in self._names), *(rows.column(place) for place in self._places)]
            yield rows.num_rows, times, columns

    @property
    def count(self) -> int:
        return len(self._known)

    def close(self) -> None:
        self._rows.close()
        self._known.clear()

    def statistics(self) -> "ToldStep":
        figures = self._rows.statistics()
        nbytes = figures["bytes"] + self._known.nbytes + self._ids.nbytes
        return {"groups": len(self._known), "bytes": nbytes, "disk_bytes": figures.get("disk_bytes", 0)}

    def _reach(self, slot: int) -> None:
        if slot >= len(self._ids):
            grown = np.full(max(slot + 1, 2 * len(self._ids), 1024), -1, np.int64)
            grown[: len(self._ids)] = self._ids
            self._ids = grown
