"""Groups by pane with state beside their tables (texts, lists, values, the first rows). Groups without recent rows go
to disk.

    over the budget     the groups that were not touched for longest go to `Segments` on disk, whole: accumulators and the state beside them
    rows of a group     bring the group back before they are added
    a pane is read      piece by piece; its groups on disk stay there
    a checkpoint        links the segments, beside the deltas and the columns of the groups in memory

A group is either in memory or on disk, never in parts. So its state is the same with a budget and without one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import give_back
from sabot.engine.operators.aggregates.migration import StateMigration
from sabot.engine.operators.base import CHUNK_ROWS, Cut, OperatorContext, Saved
from sabot.engine.operators.cuts import MEMORY_SHARE, SlotRows
from sabot.engine.operators.slot_state import keys_of_rows
from sabot.engine.operators.state_parts import Batches, Owned, StatePart, key_hashes, take_over
from sabot.engine.state.segments import Segments, read_segments

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_COLD = "cold"
_MEASURED_ROWS, _MEASURED_BATCHES = 1_024, 8  # the memory of groups is measured after this number of rows or batches
_PANE = pa.field("__pane", pa.int64())
_PANE_BITS = 16  # the number of upper bits of a sort key that come from the pane
_SPREAD = 0x9E3779B97F4A7C15  # odd, so that panes next to each other differ in their upper bits


class PaneTables(Protocol):
    """The tables of the groups, by pane: a TableStore, or another class with these methods."""

    @property
    def panes(self) -> list[int]:
        """The panes that have a table."""

    def table(self, pane: int) -> GroupTable:
        """Returns the pane's table, which is created if it does not exist."""

    def longest_untouched(self) -> list[tuple[int, pa.Int32Array]]:
        """Returns (pane, slots) of the groups that should go to disk when the budget is exceeded."""

    def leave(self, pane: int, slots: pa.Int32Array) -> None:
        """Removes groups from the pane's table."""


class PaneGroups(Protocol):
    """The groups of an operator, by pane: their tables, and the state beside these, by the slots of the tables."""

    def rows_of(self, pane: int, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the whole state of these groups: keys, accumulators, and the columns beside them. A group has one
        row, or several rows in succession.
        """

    def put(self, pane: int, rows: pa.RecordBatch) -> None:
        """Adds groups that the pane does not have. `rows`: as from `rows_of`."""

    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        """Removes the state beside the table in these slots."""

    def shrink(self, pane: int) -> None:
        """Releases the memory of free slots, if it can. Called when the pane has more free slots than groups."""

    def bytes_of(self, pane: int) -> int:
        """Returns the bytes that the pane takes in memory."""


class FewerColumns(NamedTuple):
    """The conversion `whole` of a checkpoint's rows, which have the columns `states`, to a program with fewer columns."""

    states: pa.Schema
    whole: Callable[[pa.RecordBatch], pa.RecordBatch]


class SpilledGroups(StatePart):
    """The groups on disk. Only the thread that owns the store may use it.

    `groups`: the state of the panes. `store`: their tables. `rows`: the columns of `PaneGroups.rows_of`. `keys`: the
    indices of the key columns among them. `open_rows`: the snapshots of the state beside the tables, by pane.
    `migration`: at a restore, returns the conversion of groups of a checkpoint with other columns, or None. `spills`:
    False if there is no state beside the tables; the store then keeps to the budget by itself. `owners`: the indices
    of the columns whose hash decides to which subtask a group belongs, or None for the keys.

    Without a directory, or without keys, all groups stay in memory.
    """

    def __init__(
        self,
        groups: PaneGroups,
        store: PaneTables,
        open_rows: SlotRows,
        rows: pa.Schema,
        keys: Sequence[int],
        context: OperatorContext,
        migration: Callable[[], StateMigration | FewerColumns | None] = lambda: None,
        *,
        spills: bool = True,
        owners: Sequence[int] | None = None,
    ) -> None:
        self._groups, self._store, self._open_rows, self._migration = groups, store, open_rows, migration
        self._keys = list(keys)
        self._owners = self._keys if owners is None else list(owners)
        self._schema = rows.insert(0, _PANE)
        self._most_bytes = int(context.memory_budget * MEMORY_SHARE)
        self._count: dict[int, int] = {}  # by pane: the number of rows of its groups on disk
        self._bytes: dict[int, int] = {}  # by pane: its bytes in memory when it was measured last
        self._touched: set[int] = set()
        self._all_bytes = self._evicted = self._evicted_groups = self._back = 0
        self._rows = self._batches = self._read_bytes = 0  # since the last measurement
        self._cold: Segments | None = None
        if spills and context.directory is not None and keys:
            self._cold = Segments(self._schema, context.directory / _COLD)

    @property
    def panes(self) -> list[int]:
        """The panes with groups on disk."""
        return list(self._count)

    @property
    def count(self) -> int:
        """The number of rows of groups on disk."""
        return sum(list(self._count.values()))

    def holds(self, pane: int) -> bool:
        """Returns True if some groups of the pane are on disk."""
        return pane in self._count

    def fetch(
        self,
        pane: int,
        data: pa.RecordBatch,
        keys: Sequence[int],
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
    ) -> None:
        """Brings the groups of these rows into memory. Call it before rows are added to the pane. `keys`: the indices
        of the key columns.
        """
        if self._cold is None:
            return
        rows = data.num_rows if selection is None else len(selection)
        self._rows += rows
        self._read_bytes += data.nbytes * rows // max(data.num_rows, 1)
        self._touched.add(pane)
        if pane in self._count:
            if hashes is None:
                hashes = hash_columns([data.column(index) for index in keys], selection)
            table = self._store.table(pane)
            slots = table.resolve(data, keys, hashes=hashes, selection=selection, insert=False).to_numpy()
            missing = np.flatnonzero(slots < 0)
            if len(missing):
                places = missing if selection is None else selection.to_numpy()[missing]
                for found in self._cold.take(_places(hashes.to_numpy()[places], pane)):
                    self._back += found.num_rows
                    self._read_bytes += found.nbytes
                    self._put(found)

    def read(self, pane: int) -> Iterator[pa.RecordBatch]:
        """Yields the groups of the pane that are on disk, piece by piece, with the columns of `PaneGroups.rows_of`.
        They stay on disk.
        """
        if self._cold is not None and pane in self._count:
            for rows in self._cold.due_at(pane):
                yield self._without_pane(rows)

    def drop_to(self, pane: int) -> None:
        """Removes the groups on disk of this pane and of all panes before it."""
        if self._cold is not None:
            if any(each <= pane for each in self._count):
                self._cold.drop_due(pane)
            self._count = {each: rows for each, rows in self._count.items() if each > pane}
            self._touched = {each for each in self._touched if each > pane}
            for each in [each for each in self._bytes if each <= pane]:
                self._all_bytes -= self._bytes.pop(each)

    def settle(self) -> None:
        """Moves groups to disk if they exceed the budget. Call it after each batch, while no other thread can read a
        snapshot.
        """
        if self._cold is None:
            return
        self._batches += 1
        few = self._rows < _MEASURED_ROWS and self._batches < _MEASURED_BATCHES
        if few and self._read_bytes < self._most_bytes // 4:
            return
        self._rows = self._batches = self._read_bytes = 0
        self._measure()
        if self._all_bytes > self._most_bytes and sum(map(self._used, self._bytes)) > self._most_bytes:
            self._make_room(self._cold)

    def close(self) -> None:
        """Closes and releases the segments on disk. Idempotent."""
        if self._cold is not None:
            self._cold.close()
        self._count = {}

    def statistics(self, of_store: "ToldStep") -> "ToldStep":
        """Returns the store's figures, with the groups on disk added: about as many as their rows say."""
        cold, count = self._cold, self.count
        return {
            **of_store,
            "groups": of_store["groups"] + keys_of_rows(count, self._evicted_groups, self._evicted),
            "cold": of_store["cold"] + count,
            "bytes": of_store["bytes"] + (0 if cold is None else cold.nbytes),
            "disk_bytes": of_store.get("disk_bytes", 0) + (0 if cold is None else cold.disk_bytes),
            "evicted_total": of_store["evicted_total"] + self._evicted,
            "faults_total": of_store["faults_total"] + self._back,
        }

    # Checkpoints

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        if self._cold is None or not self._count:
            return {}, {}
        cut = self._cold.cut()
        return {"segments": cut.facts}, {_COLD: cut}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        """Restores the groups that were on disk. Call it after the groups that were in memory are restored."""
        migration = self._migration()
        self._touched.update(self._store.panes)
        for part in saved:
            told = part.facts.get("segments") or ()
            if told and self._cold is not None and migration is None:
                take_over(self._cold, part.directory / _COLD, told, owned, [1 + index for index in self._owners])
                self._count = self._cold.count_by_due()
            elif told:
                schema = self._schema if migration is None else migration.states.insert(0, _PANE)
                for rows in read_segments(part.directory / _COLD, schema, told):
                    self._restored(rows, owned, migration)

    def _restored(
        self, rows: pa.RecordBatch, owned: Owned | None, migration: StateMigration | FewerColumns | None
    ) -> None:
        if migration is not None and rows.num_rows:
            columns = [rows.column(0), *migration.whole(self._without_pane(rows)).columns]
            rows = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        if owned is not None:
            rows = rows.filter(owned(self._hashes_of(self._without_pane(rows), self._owners)))
        for pane in np.unique(rows.column(0).to_numpy()).tolist():
            self._rows += rows.num_rows
            self._touched.add(pane)
            self._groups.put(pane, self._without_pane(rows.filter(pc.equal(rows.column(0), pane))))
        self.settle()

    # Moving groups to disk and back

    def _put(self, rows: pa.RecordBatch) -> None:
        panes, counts = np.unique(rows.column(0).to_numpy(), return_counts=True)
        for pane, count in zip(panes.tolist(), counts.tolist(), strict=True):
            some = rows if len(panes) == 1 else rows.filter(pc.equal(rows.column(0), pane))
            self._groups.put(pane, self._without_pane(some))
            self._count[pane] -= count
            if not self._count[pane]:
                del self._count[pane]

    def _hashes_of(self, rows: pa.RecordBatch, keys: Sequence[int]) -> pa.UInt64Array:
        return key_hashes([rows.column(index) for index in keys], rows.num_rows)

    def _without_pane(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.select(range(1, rows.num_columns))

    def _measure(self) -> None:
        for pane in self._touched:
            now = self._groups.bytes_of(pane)
            self._all_bytes += now - self._bytes.get(pane, 0)
            self._bytes[pane] = now
        self._touched.clear()

    def _used(self, pane: int) -> int:
        """Returns the bytes that the pane's groups in memory need. The memory of free slots is not counted, since it
        is used again.
        """
        figures = self._store.table(pane).statistics()
        return self._bytes[pane] * figures["groups"] // max(figures["slots"], 1)

    def _make_room(self, cold: Segments) -> None:
        waiting: list[tuple[int, pa.RecordBatch, Any]] = []
        size = 0
        for pane, idle in self._store.longest_untouched():
            for start in range(0, len(idle), CHUNK_ROWS):
                slots = idle.slice(start, CHUNK_ROWS)
                self._open_rows.note(slots, pane)
                rows = self._groups.rows_of(pane, slots)
                waiting.append((pane, rows, _places(self._hashes_of(rows, self._keys).to_numpy(), pane)))
                self._evicted_groups += len(slots)
                self._groups.forget(pane, slots)
                self._store.leave(pane, slots)
                size += rows.nbytes
                if size > self._most_bytes // 4:
                    self._write(cold, waiting)
                    waiting, size = [], 0
            self._touched.add(pane)
            figures = self._store.table(pane).statistics()
            if 2 * figures["groups"] < figures["slots"]:
                self._groups.shrink(pane)
        self._write(cold, waiting)
        self._measure()
        give_back()

    def _write(self, cold: Segments, waiting: list[tuple[int, pa.RecordBatch, Any]]) -> None:
        parts = []
        for pane, rows, _ in waiting:
            columns = [pa.array(np.full(rows.num_rows, pane)), *rows.columns]
            parts.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._count[pane] = self._count.get(pane, 0) + rows.num_rows
            self._evicted += rows.num_rows
        if parts:
            rows = pa.concat_batches(parts)
            places = np.concatenate([places for _, _, places in waiting])
            cold.write([(rows, places, rows.column(0).to_numpy())])


def _places(hashes: Any, pane: int) -> Any:
    """Returns the sort key of each group in the segments (numpy uint64): 16 bits mixed from the pane, then the upper
    48 bits of the hash. So the groups of a pane lie together, and panes are in no order; two panes may share their 16
    bits.
    """
    head = (pane * _SPREAD & (1 << 64) - 1) >> (64 - _PANE_BITS)
    return hashes >> np.uint64(_PANE_BITS) | np.uint64(head << (64 - _PANE_BITS))
