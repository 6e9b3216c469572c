"""Keyed tables, in which compiled operators keep groups by key. Each pane (a slice of a window; 0 without windows) has one
table.

    without a directory          with a directory
    GroupTable per pane          HotTable per pane ──settle: the groups idle for longest──▶ RocksDB
        │ all groups                 │ changed groups   ◀──a key that is not hot is looked up──  │ hard links
        ▼                            ▼                                                          ▼
    a checkpoint: deltas (`saved`), and the database of the groups that are not in memory

Files in the directory of a store. None of them is ever the authority, and a start removes them:

    db/<n>/       the database, made at the first eviction
    deltas/       deltas that later cuts need too
    cuts/<n>/     the database as it was at a cut that is not saved yet
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot._cython.groups.tables import KeyFilter, give_back
from sabot.base.disk import make_folder
from sabot.base.os_errors import hint_of
from sabot.engine.state.base import Owned, Saved
from sabot.engine.state.files import remove_tree
from sabot.engine.state.tables.cold import ColdGroups
from sabot.engine.state.tables.hot import CHUNK_ROWS, HotTable, below_bound, pieces
from sabot.engine.state.tables.idle import longest_idle
from sabot.engine.state.tables.restored import PaneFacts, Renewal, SavedGroups
from sabot.engine.state.tables.saved import COLD, Change, ColdCut, Delta, TablesCut, count_deltas
from sabot.errors import CorruptCheckpoint, InternalError, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

__all__ = ["CHUNK_ROWS", "TableStore"]

Array: TypeAlias = pa.Array

_ROW_BYTES = 64  # the approximate size of a group in memory
_RETIRE_ROWS = 1 << 20  # groups that `retire` checks in one call of the kernel
# The number of cleared tables that are kept for later panes, because a batch may open and drop many short-lived
# panes.
_SPARES = 64
_SPARE_BYTES = 32_000_000  # the most bytes of all of those together
_STAY = 0.6  # the share of the groups that stay when room is made
_GONE_KEYS = 100_000  # removed keys that are collected in memory before they are removed from the database
_SWEEP_GROUPS = 200_000  # with fewer cold groups, the database is not scanned for expired ones
_LAST_TICK = 1 << 30
_FORMAT = 1


class TableStore:
    """The tables of one keyed operator in one subtask, by pane. Has one owner, the subtask's thread.

    With a directory, 0.3 of `memory_budget` is for the tables and a sixteenth for RocksDB's block cache (the system's
    file cache has the blocks too). The rest is for groups that a snapshot has copied and not written yet, for
    RocksDB's index (about 2 bytes per group), and for its compactions. With `evictable=False` all groups stay in
    memory, however large, and snapshots still write only the changed ones. `owners`: the indexes of the keys whose
    hash decides which subtask owns a group, or None for all keys.
    """

    def __init__(
        self,
        keys: pa.Schema,
        aggregates: Sequence[tuple[str, pa.DataType | None]],
        *,
        directory: Path | None = None,
        memory_budget: int = 256_000_000,
        evictable: bool = True,
        owners: Sequence[int] | None = None,
    ) -> None:
        self._owners = range(len(keys)) if owners is None else owners
        self._new = partial(GroupTable, keys, aggregates)
        self._new_hot = partial(HotTable, keys, aggregates)
        spare = self._new()
        self._keys, self._states = spare.keys, spare.states
        self._tables: dict[int, GroupTable] = {}
        self._touched: dict[int, HotTable] = {}  # the tables used since the last `settle`
        self._spare = [spare] if directory is None else []
        self._directory = directory
        self._evictable = evictable and directory is not None and len(keys) > 0
        self._table_bytes = memory_budget * 3 // 10
        self._cache_bytes = memory_budget // 16
        self._database: ColdGroups | None = None
        self._deltas: list[Delta] = []
        self._cuts: list[ColdCut] = []
        self._lives = count(1)
        self._numbers = count(1)
        self._tick = self._oldest = 0
        self._lookups = False
        self._runs = 0
        self._evicted = self._faults = self._swept_at = 0
        if directory is not None:
            for name in ("db", "deltas", "cuts"):
                remove_tree(directory / name)
                make_folder(directory / name)

    @property
    def panes(self) -> list[int]:
        """The panes that have groups, ascending."""
        return sorted(self._tables)

    def table(self, pane: int = 0) -> GroupTable:
        """Returns the pane's table, and makes it if it is missing. Call this again for each batch, because `settle`
        may replace the table.
        """
        table = self._tables.get(pane)
        if table is None:
            make = self._new if self._directory is None else partial(self._hot, pane)
            table = self._tables[pane] = self._spare.pop() if self._spare else make()
        if isinstance(table, HotTable):
            table.tick = self._tick
            self._touched[pane] = table
        return table

    def whole(self, pane: int = 0) -> GroupTable | None:
        """Returns the pane's table if it contains all groups of the pane whole. Returns None if some groups, or parts
        of groups, are only in RocksDB.
        """
        table = self.table(pane)
        return None if isinstance(table, HotTable) and (table.parts or table.cold) else table

    def finish(self, pane: int = 0) -> Iterator[list[Array]]:
        """Yields keys and results of all groups of the pane, in pieces of at most CHUNK_ROWS rows.

        The store must not change until the last piece was taken.
        """
        table = self._tables.get(pane)
        if isinstance(table, HotTable) and table.parts:
            for part in table.ranges():
                for slots in pieces(part, CHUNK_ROWS):
                    yield part.finish(slots)
        elif table is not None:
            for slots in pieces(table, CHUNK_ROWS):
                yield table.finish(slots)
            for groups in self._cold(table):
                part = self._new()
                part.merge(groups)
                yield part.finish()

    def export(self, pane: int = 0) -> Iterator[pa.RecordBatch]:
        """Yields keys and accumulators of all groups of the pane (`GroupTable.states`), in pieces of at most
        CHUNK_ROWS rows.

        The store must not change until the last piece was taken.
        """
        table = self._tables.get(pane)
        if isinstance(table, HotTable) and table.parts:
            for part in table.ranges():
                for slots in pieces(part, CHUNK_ROWS):
                    yield part.export(slots)
        elif table is not None:
            for slots in pieces(table, CHUNK_ROWS):
                yield table.export(slots)
            yield from self._cold(table)

    def drop(self, pane: int, *, again: bool = True) -> None:
        """Drops the pane with all its groups. `again`: True if its table may be cleared and reused for a later pane."""
        table = self._tables.pop(pane, None)
        self._touched.pop(pane, None)
        if isinstance(table, HotTable):
            self._faults += table.faults
            if table.database is not None:
                self._take_cuts()
                table.database.drop(pane)
        elif again and table is not None and len(self._spare) < _SPARES and self._room_for_spare(table):
            table.clear()
            self._spare.append(table)

    def _room_for_spare(self, table: GroupTable) -> bool:
        return table.nbytes + sum(spare.nbytes for spare in self._spare) <= _SPARE_BYTES

    def retire(self, aggregate: int, below: int, pane: int = 0) -> int:
        """Removes the groups whose result of that aggregate (an int64 or a time that never decreases) is below the
        bound.

        Returns how many of them were in memory. Matching groups that are only on disk are removed when they are next
        read. The table remembers one bound for that, so a pane must always be retired by the same aggregate. Scans
        all groups in memory: call it rarely.
        """
        table = self._tables.get(pane)
        if table is None:
            return 0
        if isinstance(table, HotTable):
            table.need_whole()
        gone = 0
        for part in pieces(table, _RETIRE_ROWS):
            slots = table.slots() if part is None else part
            slots = slots.filter(below_bound(table.finish(slots)[len(self._keys) + aggregate], below))
            gone += len(slots)
            table.remove(slots)
        if isinstance(table, HotTable):
            if table.bound is None or table.bound[1] < below:
                table.bound = (aggregate, below)
            if table.cold > max(_SWEEP_GROUPS, 2 * self._swept_at):
                self._sweep(table)
        return gone

    def settle(self) -> None:
        """Evicts groups to the database if the memory budget is exceeded. Call it after each batch."""
        if self._directory is None:
            return
        self._tick += 1
        for table in self._touched.values():
            self._lookups = self._lookups or table.lookups
            if table.gone is not None and len(table.gone) > _GONE_KEYS:
                self._take_cuts()
                table.flush_gone()
            if table.left_more_than_stayed:  # writing all remaining groups takes less than listing those gone
                table.begin(next(self._lives))
        self._touched.clear()
        if (
            self._evictable
            # The first sum takes less time.
            and sum(table.nbytes for table in self._tables.values()) > self._table_bytes // 2
            and sum(map(_used, self._hot_tables())) > self._table_bytes
        ):
            self._make_room()

    def longest_untouched(self) -> list[tuple[int, pa.Int32Array]]:
        """Returns (pane, slots) of the groups that were idle for longest, if memory is short. For a caller that
        evicts groups to a store of its own. Needs a directory.
        """
        return [(table.pane, slots) for table, slots in self._victims(self._hot_tables()) if len(slots)]

    def leave(self, pane: int, slots: pa.Int32Array) -> None:
        """Removes groups from the table, because the caller keeps them from now on."""
        table = self.table(pane)
        table.remove(slots)
        if isinstance(table, HotTable) and table.left_more_than_stayed:
            table.begin(next(self._lives))

    def replace(self, pane: int) -> None:
        """Replaces the table of the pane by an empty one, which frees its memory. A snapshot that is not saved yet
        keeps the old table. Needs a directory.
        """
        self._touched.pop(pane, None)
        self._tables[pane] = self._hot(pane)

    def cut(self) -> tuple[dict[str, Any], TablesCut | None]:
        """Takes a snapshot of the tables. Returns the facts (JSON values), and the Cut to save, or None if there is
        nothing to save. Another thread saves it while the owner continues.
        """
        if self._directory is None:
            changes = [Change(pane, 0, table.cut()) for pane, table in self._tables.items() if len(table)]
            panes = [[pane, 0, 0, None, 0, 0, len(self._tables[pane])] for pane in self.panes]
            facts = {"format": _FORMAT, "panes": panes, "deltas": 1 if changes else 0, "cold": False, "runs": 0}
            return facts, TablesCut([Delta(1, changes, own=False)]) if changes else None
        tables = self._hot_tables()
        waiting = sum(delta.rows for delta in self._deltas if not delta.written)
        if waiting > max(CHUNK_ROWS, sum(len(table) for table in tables)):  # none of the last cuts was saved
            for table in tables:
                table.begin(next(self._lives))
        for table in tables:
            if table.gone is not None and len(table.gone):
                self._take_cuts()
                table.flush_gone()
        number = next(self._numbers)
        delta = Delta(number, [change for table in tables for change in table.changes(number)])
        over = self._keep_deltas(delta)
        cut = None
        if self._database is not None:
            cut = ColdCut(self._database, self._directory / "cuts" / str(number))
            self._cuts = [*(cut for cut in self._cuts if cut.pending), cut]
        facts = {
            "format": _FORMAT,
            "panes": [
                [table.pane, table.life, table.since, table.bound, table.cold, table.parts, len(table)]
                for table in tables
            ],
            "deltas": len(self._deltas),
            "cold": cut is not None,
            "runs": self._runs,
        }
        if not self._deltas and cut is None:
            for old in over:
                old.release()
            return facts, None
        return facts, TablesCut(self._deltas, local=self._directory / "deltas", cut=cut, over=over)

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None, renewal: Renewal | None = None) -> None:
        """Restores groups from snapshots. `saved` has an entry for each subtask of the app at the checkpoint. Call it
        while the store is empty.

        `owned`: a function from key hashes to True for each group that belongs to this subtask, or None for all.
        `renewal`: converts groups of a checkpoint with other accumulators to groups of the store. Raises
        CorruptCheckpoint.
        """
        every_group = pa.array(range(KEY_GROUPS), pa.uint64())
        if owned is not None and owned(every_group).true_count == KEY_GROUPS:
            owned = None
        whole = self._directory is not None and len(saved) == 1 and owned is None and renewal is None
        for part in saved:
            if part.facts.get("format") != _FORMAT:
                raise CorruptCheckpoint(f"{part.directory}: is not state of this version of Sabot")
            panes = [PaneFacts(*facts) for facts in part.facts["panes"]]
            if part.facts["deltas"] != count_deltas(part.directory):
                raise CorruptCheckpoint(
                    f"{part.directory} is damaged: the manifest says that it has {part.facts['deltas']} files of changes"
                )
            groups = SavedGroups(part.directory, panes, self._new if renewal is None else renewal.make)
            if part.facts["cold"] and whole:
                self._open_database(ColdGroups.linked, part.directory / COLD)
                for pane in panes:
                    table = self.table(pane.pane)
                    if isinstance(table, HotTable):
                        table.database, table.cold, table.parts = self._database, pane.cold, pane.parts
                        table.lookups = pane.cold > 0
                self._runs = part.facts["runs"]
            if part.facts["cold"] and not whole:
                found = groups.all()
            else:
                self._reserve(panes, owned)
                # without deltas there may be no directory
                found = groups.in_memory() if part.facts["deltas"] else iter(())
            for number, rows in found:
                self._put(number, rows if renewal is None else renewal.groups(rows), owned)
            for pane in panes:
                if pane.bound is not None and renewal is None:
                    self.retire(pane.bound[0], pane.bound[1], pane.pane)

    def _reserve(self, panes: list[PaneFacts], owned: Owned | None) -> None:
        """Makes room for the groups that were in memory."""
        for pane in panes:
            if owned is None and pane.hot:
                room = min(pane.hot, self._table_bytes // _ROW_BYTES) if self._evictable else pane.hot
                self.table(pane.pane).reserve(room)

    def _put(self, pane: int, groups: pa.RecordBatch, owned: Owned | None) -> None:
        """Adds groups of a checkpoint that the store does not have."""
        if owned is not None:
            columns = [groups.column(index) for index in self._owners]
            hashes = hash_columns(columns) if columns else pa.array(np.zeros(groups.num_rows, np.uint64))
            groups = groups.filter(owned(hashes))
        if groups.num_rows:
            # Not HotTable.merge, which would look these keys up in the database.
            GroupTable.merge(self.table(pane), groups)
            self.settle()

    def close(self) -> None:
        """Releases all resources. Idempotent."""
        self._tables = {}
        self._spare = []
        for delta in self._deltas:
            delta.release()
        self._deltas = []
        if self._database is not None:
            self._take_cuts()
            self._database.close()
            self._database = None

    def statistics(self) -> "ToldStep":
        """Returns counts and sizes. May be called from any thread. While groups may be in parts (`HotTable.lookups`
        is False), one group may be counted once as hot and several times as cold.
        """
        tables = list(self._tables.values())
        hot = [table for table in tables if isinstance(table, HotTable)]
        groups = sum(len(table) for table in tables)
        cold = sum(table.cold + table.parts for table in hot)
        filters = sum(table.filter.nbytes for table in hot if table.filter is not None)
        return {
            "groups": groups + cold,
            "hot": groups,
            "cold": cold,
            "dirty": sum(table.statistics()["dirty"] for table in hot),
            "bytes": sum(table.nbytes for table in tables) + filters,
            "disk_bytes": 0 if (database := self._database) is None else database.disk_bytes,
            "evicted_total": self._evicted,
            "faults_total": self._faults + sum(table.faults for table in hot),
        }

    # With a directory

    def _hot(self, pane: int) -> HotTable:
        table = self._new_hot(pane, next(self._lives), self._take_cuts)
        table.lookups = self._lookups
        return table

    def _hot_tables(self) -> list[HotTable]:
        return [table for table in self._tables.values() if isinstance(table, HotTable)]

    def _cold(self, table: GroupTable) -> Iterator[pa.RecordBatch]:
        """Yields the groups of a pane that are not in memory."""
        if isinstance(table, HotTable) and table.cold and table.database is not None:
            for groups in table.database.scan(table.pane):
                found = table.only_cold(groups)
                if found.num_rows:
                    yield found

    def _open_database(self, make: Callable[..., ColdGroups], *source: Path) -> ColdGroups:
        if self._directory is None:
            raise InternalError("a store in memory has no database")
        directory = self._directory / "db" / str(next(self._numbers))
        self._database = make(*source, directory, self._states, len(self._keys), self._cache_bytes)
        return self._database

    def _take_cuts(self) -> None:
        """Makes links to the database's files for the snapshots that are not saved yet. Called before the database
        changes.
        """
        cuts, self._cuts = self._cuts, []
        for cut in cuts:
            cut.take()

    def _make_room(self) -> None:
        """Evicts the groups that were idle for longest to the database."""
        self._take_cuts()
        database = self._database or self._open_database(ColdGroups)
        tables = self._hot_tables()
        self._runs += 1
        for table, slots in self._victims(tables):
            if not len(slots):
                continue
            if table.database is None:
                table.database, table.filter = database, KeyFilter()
            self._evicted += len(slots)
            try:
                table.evict(slots, self._runs)
            except SabotError:
                raise
            except Exception as error:  # rocksdict has no exception class of its own for RocksDB's errors
                raise SabotError(f"state directory {self._directory}: {error}", hint=hint_of(error)) from error
            if table.left_more_than_stayed:
                table.begin(next(self._lives))
        wrapped = self._tick >= _LAST_TICK
        if wrapped:
            self._tick = self._oldest = 0
        for table in tables:
            if wrapped or 2 * len(table) < table.statistics()["slots"]:
                self._tables[table.pane] = self._renewed(table)
        give_back()  # RocksDB's threads leave more free memory in the allocator than the tables take

    def _victims(self, tables: list[HotTable]) -> list[tuple[HotTable, pa.Int32Array]]:
        goal = int(sum(len(table) for table in tables) * (1 - _STAY))
        slots, self._oldest = longest_idle(tables, goal, self._tick, self._oldest)
        return list(zip(tables, slots, strict=True))

    def _renewed(self, table: HotTable) -> HotTable:
        """Returns the same groups in a new table, which takes no more memory than they need."""
        new = self._hot(table.pane)
        new.tick = self._tick
        for slots in pieces(table, CHUNK_ROWS):
            GroupTable.merge(new, GroupTable.export(table, slots))
        new.database, new.filter, new.gone, new.bound = table.database, table.filter, table.gone, table.bound
        new.cold, new.faults, new.lookups, new.parts = table.cold, table.faults, table.lookups, table.parts
        return new

    def _sweep(self, table: HotTable) -> None:
        """Removes cold groups below the bound from the database."""
        database = table.database
        if database is None:
            return
        self._take_cuts()
        bound, table.bound = table.bound, None
        for groups in database.scan(table.pane):
            stale = table.only_cold(groups)
            if stale.num_rows and bound is not None:
                part = self._new()
                part.merge(stale)
                rows = below_bound(part.finish()[len(self._keys) + bound[0]], bound[1])
                stale = stale.filter(rows)
            if stale.num_rows:
                columns = stale.columns[: len(self._keys)]
                database.delete(table.pane, hash_columns(columns), partial(_taken, columns))
                table.cold -= stale.num_rows
        table.bound = bound
        self._swept_at = table.cold

    def _keep_deltas(self, new: Delta) -> list[Delta]:
        """Keeps `new` and the older deltas that some table still needs. Returns the other deltas; they are released
        in another thread, because that removes files.
        """
        since = {table.life: table.since for table in self._hot_tables()}
        kept: list[Delta] = []
        over: list[Delta] = []
        for delta in [*self._deltas, new.hold()]:
            needed = any(delta.number >= since[life] for life in delta.lives if life in since)
            (kept if needed else over).append(delta)
        self._deltas = kept
        return over


def _taken(columns: list[Array], rows: pa.Int32Array) -> list[Array]:
    return [column.take(rows) for column in columns]


def _used(table: HotTable) -> int:
    """Returns the bytes that the groups in memory need. Memory of removed groups does not count, because it is
    reused.
    """
    figures = table.statistics()
    used = figures["bytes"] * figures["groups"] // max(figures["slots"], 1)
    return (
        used + (0 if table.filter is None else table.filter.nbytes) + (0 if table.gone is None else table.gone.nbytes)
    )
