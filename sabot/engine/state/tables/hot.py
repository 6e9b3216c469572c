"""A table whose groups may be in memory or in a database. It tracks which groups the next snapshot has to write.

While rows are only added (`update`, `merge`), nothing is looked up in the database. A group may then be in several
parts: evictions write parts to `Parts`, and the table has the part since the last one.

The first call that needs whole groups (`resolve`, or `update` with `want_slots`) changes that. Then a group is either
hot (in the GroupTable) or cold (only in the database, in `ColdGroups`). A requested key that is not hot is looked up,
and the group found is merged in: from then on the group is hot, and its old value in the database is never read.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.tables import KeyFilter
from sabot.engine.state.tables.cold import ColdGroups
from sabot.engine.state.tables.parts import ranges_of
from sabot.engine.state.tables.saved import Change
from sabot.errors import InternalError

Array: TypeAlias = pa.Array
Aggregates: TypeAlias = Sequence[tuple[str, pa.DataType | None]]

CHUNK_ROWS = 65_536
_COMPACT_GROUPS = 1_000_000  # with fewer parts in the database, parts of the same group are not merged there
_ROTATION = 64  # a changing table writes every group again within so many cuts, so that old deltas can be dropped


class HotTable(GroupTable):
    """The groups of one pane that are in memory (hot). Slots, `slots` and `len` count only these; `TableStore`
    returns all groups of the pane.

    `life`: a number that changes when the pane is dropped and made again, so that a checkpoint does not mix both.
    `since`: the number of the first delta that is valid for this life, 0 if none was written. `lookups`: True if hot
    groups are complete because keys are looked up in the database; if False, the database may have `parts` parts of
    groups. `cold`: with lookups, the number of groups that are only in the database.
    """

    def __init__(
        self, keys: pa.Schema, aggregates: Aggregates, pane: int, life: int, before_write: Callable[[], None]
    ) -> None:
        """`before_write`: called before each change of the database."""
        super().__init__(keys, aggregates)
        self._before_write = before_write
        self._aggregates = aggregates
        self._width = len(keys)
        self._probe: GroupTable | None = None
        self.pane = pane
        self.database: ColdGroups | None = None
        self.filter: KeyFilter | None = None  # the keys that the database may have, or None if unknown
        # (aggregate, limit): groups whose result is below the limit count as removed.
        self.bound: tuple[int, int] | None = None
        self.gone: GroupTable | None = None  # keys that were removed, and that the database may still have
        self.lookups = False
        self.cold = 0
        self.parts = self._compacted = 0
        self.faults = 0
        self.begin(life)

    def begin(self, life: int) -> None:
        """Begins a new life of the pane (`life`): no earlier delta is valid for it, and the next snapshot writes
        every group.
        """
        self.life = life
        self.since = 0
        self._left: list[pa.RecordBatch] = []
        self._left_rows = 0
        self._cursor = 0  # the slots below it were written in this rotation
        self._rotation = 0  # the delta with which this rotation began

    # Calls that need groups. Groups that are not hot are looked up first

    def update(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        arguments: Sequence[int],
        filters: Sequence[int] | None = None,
        *,
        order: int = -1,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        want_slots: bool = False,
    ) -> pa.Int32Array | None:
        if want_slots:
            self.need_whole()
        if self.cold:
            hashes = self._fetch(data, keys, hashes, selection)
        return super().update(
            data,
            keys,
            arguments,
            filters,
            order=order,
            hashes=hashes,
            selection=selection,
            want_slots=want_slots,
        )

    def resolve(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        *,
        hashes: pa.UInt64Array | None = None,
        selection: pa.Int32Array | None = None,
        insert: bool = True,
    ) -> pa.Int32Array:
        self.need_whole()
        if self.cold:
            hashes = self._fetch(data, keys, hashes, selection)
        return super().resolve(data, keys, hashes=hashes, selection=selection, insert=insert)

    def merge(self, state: pa.RecordBatch, *, selection: pa.Int32Array | None = None) -> pa.Int32Array:
        if self.cold:
            self._fetch(state, range(self._width), None, selection)
        return super().merge(state, selection=selection)

    def finish(self, slots: pa.Int32Array | None = None) -> list[Array]:
        self._check_whole()
        return super().finish(slots)

    def export(self, slots: pa.Int32Array | None = None) -> pa.RecordBatch:
        self._check_whole()
        return super().export(slots)

    def _check_whole(self) -> None:
        if self.parts:
            raise InternalError("groups were requested by slot, but groups on disk have no slots: call `resolve` first")

    def need_whole(self) -> None:
        """Makes every group whole: merges its parts in the database, and its accumulators in memory if it is hot.
        From now on a key that is not hot is looked up in the database (`lookups`). Slots that were returned before
        are no longer valid. The second call does nothing.
        """
        if self.lookups:
            return
        self.lookups = True
        database = self.database
        if database is None or not self.parts:
            return
        self._before_write()
        keys = range(self._width)
        table = self._other()
        for _, parts in database.parts.read(self.pane):
            table.clear()
            for part in parts:
                table.merge(part)
            groups = table.export()
            slots = super().resolve(groups, keys, insert=False)
            hot = slots.filter(pc.greater_equal(slots, 0))
            if len(hot):
                later = super().export(hot)
                super().remove(hot)
                table.merge(later)
                slots = table.resolve(later, keys)
                super().merge(table.export(slots))
                table.remove(slots)
            slots = table.slots()
            hashes = table.hashes(slots)
            database.write(self.pane, hashes, partial(_taken, table, slots))
            if self.filter is not None:
                self.filter.add(hashes)
            self.cold += len(slots)
        database.parts.drop(self.pane)
        self.parts = 0

    def _other(self) -> GroupTable:
        return GroupTable(self.keys, self._aggregates)

    def ranges(self) -> Iterator[GroupTable]:
        """Yields tables that together have all groups of the pane, each group once: a table for each range of key
        groups, with the parts in the database and the hot groups merged. A table is valid until the next one is
        taken. Yields nothing without a database.
        """
        database = self.database
        if database is None:
            return
        live = self.slots()
        hot = {number: live.take(rows) for number, rows in ranges_of(self.hashes(live))}
        table = self._other()
        for number, parts in database.parts.read(self.pane):
            table.clear()
            for part in parts:
                table.merge(part)
            if number in hot:
                table.merge(super().export(hot.pop(number)))
            yield table
        for slots in hot.values():
            table.clear()
            table.merge(super().export(slots))
            yield table

    def _fetch(
        self,
        data: pa.RecordBatch,
        keys: Sequence[int],
        hashes: pa.UInt64Array | None,
        selection: pa.Int32Array | None,
    ) -> pa.UInt64Array:
        """Makes the groups of these rows hot. Returns the hashes of the rows' keys."""
        if hashes is None:
            hashes = hash_columns([data.column(index) for index in keys], selection)
        slots = super().resolve(data, keys, hashes=hashes, selection=selection, insert=False).to_numpy()
        missing = np.flatnonzero(slots < 0).astype(np.int32)
        if len(missing):
            rows = pa.array(missing if selection is None else selection.to_numpy()[missing])
            if self.filter is not None:
                rows = self.filter.candidates(hashes, rows)
            if len(rows):
                self._load(data, keys, hashes, rows)
        return hashes

    def _load(self, data: pa.RecordBatch, keys: Sequence[int], hashes: pa.UInt64Array, rows: pa.Int32Array) -> None:
        database = self.database
        if database is None:
            return
        if self._probe is None:
            self._probe = GroupTable(self.keys, [])
        self._probe.resolve(data, keys, hashes=hashes, selection=rows)
        wanted = self._probe.slots()
        found = database.read(self.pane, self._probe.key_columns(wanted), self._probe.hashes(wanted))
        self._probe.clear()
        found = self._without_gone(found)
        self.cold -= found.num_rows
        expired = self._expired(found)
        if expired.true_count:
            stale = found.filter(expired)
            self._forget(stale.columns[: self._width], stale.num_rows)
            found = found.filter(pc.invert(expired))
        super().merge(found)
        self.faults += found.num_rows

    def only_cold(self, found: pa.RecordBatch) -> pa.RecordBatch:
        """Returns those of the groups found in the database that are not in memory, were not removed, and are not
        below the bound.
        """
        slots = super().resolve(found, range(self._width), insert=False)
        found = self._without_gone(found.filter(pc.less(slots, 0)))
        return found.filter(pc.invert(self._expired(found)))

    def _without_gone(self, found: pa.RecordBatch) -> pa.RecordBatch:
        if self.gone is None or not len(self.gone):
            return found
        return found.filter(pc.less(self.gone.resolve(found, range(self._width), insert=False), 0))

    def _expired(self, found: pa.RecordBatch) -> pa.BooleanArray:
        """Returns True for the groups below the bound."""
        if self.bound is None or not found.num_rows:
            return pa.repeat(pa.scalar(False), found.num_rows)
        aggregate, bound = self.bound
        table = self._other()
        table.merge(found)  # each key occurs once, so slots are row numbers
        return below_bound(table.finish()[self._width + aggregate], bound)

    def _forget(self, keys: list[Array], rows: int) -> None:
        """Notes that the values of these keys in the database are obsolete."""
        if self.gone is None:
            self.gone = GroupTable(self.keys, [])
        self.gone.resolve(_batch(keys, self.keys, rows), range(self._width))

    # Groups that leave memory

    def remove(self, slots: pa.Int32Array) -> None:
        self._check_whole()
        if self.database is not None:
            hashes = self.hashes(slots)
            rows = pa.array(np.arange(len(slots), dtype=np.int32))
            rows = rows if self.filter is None else self.filter.candidates(hashes, rows)
            if len(rows):
                self._forget(self.key_columns(slots.take(rows)), len(rows))
        self.leave(slots)

    def clear(self) -> None:
        raise InternalError("a pane of a store is dropped, not cleared")

    def leave(self, slots: pa.Int32Array) -> None:
        """Removes the groups from memory, and records their keys for the next delta. Called when groups are removed,
        evicted or handed to another owner.
        """
        if self.since and len(slots):
            self._left.append(_batch(self.key_columns(slots), self.keys, len(slots)))
            self._left_rows += len(slots)
        super().remove(slots)

    def evict(self, slots: pa.Int32Array, run: int) -> None:
        """Writes these groups to the database, and takes them out of memory."""
        database = self.database
        if database is None:
            raise InternalError("no database to evict to")
        hashes = self.hashes(slots)

        def take(rows: pa.Int32Array) -> list[Array]:
            columns: list[Array] = GroupTable.export(self, slots.take(rows)).columns
            return columns

        if self.lookups:
            self.flush_gone()
            database.write(self.pane, hashes, take)
            if self.filter is not None:
                self.filter.add(hashes)
            self.cold += len(slots)
        else:
            database.parts.write(self.pane, run, hashes, take)
            self.parts += len(slots)
            if self.parts > max(_COMPACT_GROUPS, 3 * self._compacted):
                self.parts = self._compacted = database.parts.compact(self.pane, self._other())
        self.leave(slots)

    def flush_gone(self) -> None:
        """Removes the keys in `gone` from the database."""
        gone, database = self.gone, self.database
        if gone is not None and database is not None and len(gone):
            slots = gone.slots()
            database.delete(self.pane, gone.hashes(slots), lambda rows: gone.key_columns(slots.take(rows)))
            gone.clear()

    # Changes for a cut

    @property
    def left_more_than_stayed(self) -> bool:
        return self._left_rows > max(len(self), CHUNK_ROWS)

    def changes(self, number: int) -> list[Change]:
        """Returns the changes for delta `number`. Together, the deltas from `since` on contain the hot groups.

        The changes are the groups that have changed since the last delta, and as many others in rotation. So after
        some deltas every group was written again, and old deltas are not needed any more.
        """
        left, self._left, self._left_rows = self._left, [], 0
        if not self.since:
            self.since, self._cursor, self._rotation = number, 0, number + 1
            cut = self.cut()
        else:
            dirty = self.statistics()["dirty"]
            if not dirty and not left:
                return []
            cut = self.cut((self._cursor, max(dirty, len(self) // _ROTATION + 1)))
            self._cursor = cut.next_slot
            if not cut.next_slot:  # the rotation is complete
                self.since, self._rotation = self._rotation, number + 1
        changes = [Change(self.pane, self.life, keys) for keys in left]
        if len(cut):
            changes.append(Change(self.pane, self.life, cut))
        return changes


def pieces(table: GroupTable, rows: int) -> list[pa.Int32Array | None]:
    """Returns the slots of all groups in pieces of `rows`, or a single None if one piece is enough."""
    if len(table) <= rows:
        return [None] if len(table) else []
    slots = table.slots()
    return [slots.slice(start, rows) for start in range(0, len(slots), rows)]


def _taken(table: GroupTable, slots: pa.Int32Array, rows: pa.Int32Array) -> list[Array]:
    columns: list[Array] = table.export(slots.take(rows)).columns
    return columns


def below_bound(values: Array, bound: int) -> pa.BooleanArray:
    """Returns True for the values (int64 or times) below the bound; False for null."""
    return pc.fill_null(pc.less(values.view(pa.int64()), pa.scalar(bound, pa.int64())), False)


def _batch(columns: list[Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    if not columns:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
