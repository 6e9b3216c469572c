"""Keyed tables: what compiled operators keep by key. A pane (a window's slice, or 0 where there are none) has one table.

    without a directory          with one
    GroupTable a pane            HotTable a pane ──settle: the groups longest untouched──▶ RocksDB
        │ all of it                  │ what changed     ◀──a key that is not hot is looked up──  │ hard links
        ▼                            ▼                                                          ▼
    a checkpoint: deltas (tables_saved), and the database of what was not in memory

Files, below the directory of a store; none of them is an authority, and a start removes them:

    db/<n>/       the database, made when something is evicted first
    deltas/       deltas that later cuts need too
    cuts/<n>/     the database as it was at a cut that is not saved yet
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot._cython.groups.tables import KeyFilter, give_back
from sabot.disk import make_folder
from sabot.errors import CorruptCheckpoint, InternalError, SabotError
from sabot.faults import hint_of
from sabot.state.base import Saved
from sabot.state.files import remove_tree
from sabot.state.tables.cold import ColdGroups, read_cold
from sabot.state.tables.hot import CHUNK_ROWS, HotTable, below_bound, pieces
from sabot.state.tables.saved import COLD, Change, ColdCut, Delta, TablesCut, count_deltas, read_changes

__all__ = ["CHUNK_ROWS", "TableStore"]

Array: TypeAlias = pa.Array

_ROW_BYTES = 64  # of a group in memory, about
_RETIRE_ROWS = 1 << 20  # looked at in one go
_SPARES = 64  # cleared tables that are kept for the next panes: a batch may open and drop many short ones
_SPARE_BYTES = 32_000_000  # of all of them
_STAY = 0.6  # of the groups that stay when room is made
_GONE_KEYS = 100_000  # removed keys that are kept in memory until the database hears of them
_SWEEP_GROUPS = 200_000  # cold groups, at least, for which expired ones are looked for
_LAST_TICK = 1 << 30
_FORMAT = 1

Owned = Callable[[pa.UInt64Array], pa.BooleanArray]
"""Key hashes -> which of them belong to this subtask."""


class TableStore:
    """The tables of one keyed operator in one subtask, by pane. One owner, the subtask's thread.

    Of `memory_budget`, where there is a directory, 0.3 are for the tables; a sixteenth for RocksDB's blocks (the system's file cache
    has them too); the rest for what a cut copies and is not written yet, for what RocksDB needs to find its blocks (about 2
    bytes a group), and for its compactions. `evictable=False`: all groups stay
    in memory, whatever they take, and cuts still write only what changed.
    """

    def __init__(
        self,
        keys: pa.Schema,
        aggregates: Sequence[tuple[str, pa.DataType | None]],
        *,
        directory: Path | None = None,
        memory_budget: int = 256_000_000,
        evictable: bool = True,
    ) -> None:
        self._new = partial(GroupTable, keys, aggregates)
        self._new_hot = partial(HotTable, keys, aggregates)
        spare = self._new()
        self._keys, self._states = spare.keys, spare.states
        self._tables: dict[int, GroupTable] = {}
        self._touched: dict[int, HotTable] = {}  # since the last `settle`
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
        """Those that hold something, ascending."""
        return sorted(self._tables)

    def table(self, pane: int = 0) -> GroupTable:
        """The pane's table, made when it is missing. To be asked for again for each batch: `settle` may replace it."""
        table = self._tables.get(pane)
        if table is None:
            make = self._new if self._directory is None else partial(self._hot, pane)
            table = self._tables[pane] = self._spare.pop() if self._spare else make()
        if isinstance(table, HotTable):
            table.tick = self._tick
            self._touched[pane] = table
        return table

    def whole(self, pane: int = 0) -> GroupTable | None:
        """The pane's table, if all of its groups stand in it: none in RocksDB, or on the way there."""
        table = self.table(pane)
        return None if isinstance(table, HotTable) and (table.parts or table.cold) else table

    def finish(self, pane: int = 0) -> Iterator[list[Array]]:
        """Keys and results of all groups of the pane, in pieces of at most CHUNK_ROWS rows.

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
        """Keys and accumulators of all groups of the pane (`GroupTable.states`), in pieces of at most CHUNK_ROWS rows.

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

    def drop(self, pane: int) -> None:
        """The pane is over."""
        table = self._tables.pop(pane, None)
        self._touched.pop(pane, None)
        if isinstance(table, HotTable):
            self._faults += table.faults
            if table.database is not None:
                self._take_cuts()
                table.database.drop(pane)
        elif table is not None and len(self._spare) < _SPARES and self._room_for_spare(table):
            table.clear()
            self._spare.append(table)

    def _room_for_spare(self, table: GroupTable) -> bool:
        return table.nbytes + sum(spare.nbytes for spare in self._spare) <= _SPARE_BYTES

    def retire(self, aggregate: int, below: int, pane: int = 0) -> int:
        """Removes the groups whose result of that aggregate (an int64 or a time, that never falls) is below the bound.

        -> how many were in memory. Those that are not go when they are met, from now on, so a pane keeps to one aggregate.
        Costs a look at every group that is in memory: to be called now and then.
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
        """To be called after each batch: keeps the memory budget."""
        if self._directory is None:
            return
        self._tick += 1
        for table in self._touched.values():
            self._lookups = self._lookups or table.lookups
            if table.gone is not None and len(table.gone) > _GONE_KEYS:
                self._take_cuts()
                table.flush_gone()
            if table.left_more_than_stayed:  # the next cut writes all that stayed instead
                table.begin(next(self._lives))
        self._touched.clear()
        if (
            self._evictable
            and sum(table.nbytes for table in self._tables.values()) > self._table_bytes // 2  # cheaper to ask
            and sum(map(_used, self._hot_tables())) > self._table_bytes
        ):
            self._make_room()

    def cut(self) -> tuple[dict[str, Any], TablesCut | None]:
        """The tables as they are now: facts (JSON values), and what is to be saved, which is read from them while the owner goes on."""
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

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
        """What `cut` took comes back: one entry for each subtask of the job that was. Before anything else is put in.

        owned: says which groups are this subtask's; None: all. Raises CorruptCheckpoint.
        """
        every_group = pa.array(range(KEY_GROUPS), pa.uint64())
        if owned is not None and owned(every_group).true_count == KEY_GROUPS:
            owned = None
        for part in saved:
            if part.facts.get("format") != _FORMAT:
                raise CorruptCheckpoint(f"{part.directory}: is no state of this version of Sabot")
            panes = [_Pane(*facts) for facts in part.facts["panes"]]
            if part.facts["deltas"] != count_deltas(part.directory):
                raise CorruptCheckpoint(f"{part.directory}: there should be {part.facts['deltas']} deltas of state")
            cold = part.directory / COLD
            if not part.facts["cold"]:
                if part.facts["deltas"]:  # else there may be no directory
                    self._load_hot(part, panes, owned)
            elif self._directory is not None and self._database is None and len(saved) == 1 and owned is None:
                self._open_database(ColdGroups.linked, cold)
                for pane in panes:
                    table = self.table(pane.pane)
                    if isinstance(table, HotTable):
                        table.database, table.cold, table.parts = self._database, pane.cold, pane.parts
                        table.lookups = pane.cold > 0
                self._runs = part.facts["runs"]
                self._load_hot(part, panes, owned)
            else:
                hot = self._image(part.directory, panes)
                for number, are_parts, groups in read_cold(cold, self._states, len(self._keys), self._new):
                    if number in hot:
                        self._put(number, self._beside(hot[number], groups, are_parts), owned)
                for number, table in hot.items():
                    for slots in pieces(table, CHUNK_ROWS):
                        self._put(number, table.export(slots), owned)
            for pane in panes:
                if pane.bound is not None:
                    self.retire(pane.bound[0], pane.bound[1], pane.pane)

    def _load_hot(self, part: Saved, panes: list["_Pane"], owned: Owned | None) -> None:
        """What stood in memory."""
        for pane in panes:
            if owned is None and pane.hot:
                room = min(pane.hot, self._table_bytes // _ROW_BYTES) if self._evictable else pane.hot
                self.table(pane.pane).reserve(room)
        for number, groups in self._latest(part.directory, panes):
            self._put(number, groups, owned)

    def _image(self, directory: Path, panes: list["_Pane"]) -> dict[int, GroupTable]:
        """The groups that stood in memory, by pane, in tables beside the store."""
        tables = {pane.pane: self._new() for pane in panes}
        for number, groups in self._latest(directory, panes):
            tables[number].merge(groups)
        return tables

    def _latest(self, directory: Path, panes: list["_Pane"]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(pane, groups) that stood in memory, each group once: of each change, from the newest on, what no newer one has."""
        since = {(pane.pane, pane.life): pane.since for pane in panes}
        changes = [  # mapped, not read
            change
            for change in read_changes(directory, self._keys, self._states)
            if change.number >= since.get((change.pane, change.life), change.number + 1)
        ]
        seen = {pane.pane: GroupTable(self._keys, []) for pane in panes}
        columns = range(len(self._keys))
        oldest = min((change.number for change in changes), default=0)
        if changes and changes[0].number > oldest:
            for pane in panes:
                seen[pane.pane].reserve(pane.hot)
        for change in changes:
            table = seen[change.pane]
            if change.number == oldest and change.gone:
                continue
            for start in range(0, change.groups.num_rows, CHUNK_ROWS):
                groups = change.groups.slice(start, CHUNK_ROWS)
                if change.number > oldest:
                    before = len(table)
                    slots = table.resolve(groups, columns)
                    new = pc.greater_equal(
                        slots, before
                    )  # slots are given out in order, of a table that nothing leaves
                elif len(table):
                    new = pc.less(table.resolve(groups, columns, insert=False), 0)
                else:
                    new = None
                if not change.gone:
                    yield change.pane, groups if new is None else groups.filter(new)

    def _beside(self, hot: GroupTable, groups: pa.RecordBatch, are_parts: bool) -> pa.RecordBatch:
        """What the database had of some groups, made whole: groups that were hot count alone, or are taken over as a part."""
        slots = hot.resolve(groups, range(len(self._keys)), insert=False)
        if not are_parts:
            return groups.filter(pc.less(slots, 0))
        slots = slots.filter(pc.greater_equal(slots, 0))
        if not len(slots):
            return groups
        table = self._new()
        table.merge(groups)
        table.merge(hot.export(slots))
        hot.remove(slots)
        return table.export()

    def _put(self, pane: int, groups: pa.RecordBatch, owned: Owned | None) -> None:
        """Groups of a checkpoint that the store has not."""
        if owned is not None:
            columns = groups.columns[: len(self._keys)]
            hashes = hash_columns(columns) if columns else pa.array(np.zeros(groups.num_rows, np.uint64))
            groups = groups.filter(owned(hashes))
        if groups.num_rows:
            GroupTable.merge(self.table(pane), groups)  # not HotTable's: it would look for them among the cold ones
            self.settle()

    def close(self) -> None:
        """Lets go of everything. Idempotent."""
        self._tables = {}
        self._spare = []
        for delta in self._deltas:
            delta.release()
        self._deltas = []
        if self._database is not None:
            self._take_cuts()
            self._database.close()
            self._database = None

    def statistics(self) -> dict[str, int]:
        """Figures, from any thread. Where nothing was ever looked up, a group may count as hot, and as cold several times."""
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
            "evicted_total": self._evicted,
            "faults_total": self._faults + sum(table.faults for table in hot),
        }

    # The part with a directory

    def _hot(self, pane: int) -> HotTable:
        table = self._new_hot(pane, next(self._lives), self._take_cuts)
        table.lookups = self._lookups
        return table

    def _hot_tables(self) -> list[HotTable]:
        return [table for table in self._tables.values() if isinstance(table, HotTable)]

    def _cold(self, table: GroupTable) -> Iterator[pa.RecordBatch]:
        """The groups of a pane that are not in memory."""
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
        """Before the database changes: it is kept as it was for the cuts that are not saved yet."""
        cuts, self._cuts = self._cuts, []
        for cut in cuts:
            cut.take()

    def _make_room(self) -> None:
        """The groups that were not touched for longest go to the database."""
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
            except Exception as error:  # rocksdict has no class of its own for what RocksDB reports
                raise SabotError(f"state directory {self._directory}: {error}", hint=hint_of(error)) from error
            if table.left_more_than_stayed:
                table.begin(next(self._lives))
        wrapped = self._tick >= _LAST_TICK
        if wrapped:
            self._tick = self._oldest = 0
        for table in tables:
            if wrapped or 2 * len(table) < table.statistics()["slots"]:
                self._tables[table.pane] = self._renewed(table)
        give_back()  # RocksDB's threads leave more free memory behind than the tables take

    def _victims(self, tables: list[HotTable]) -> list[tuple[HotTable, pa.Int32Array]]:
        goal = int(sum(len(table) for table in tables) * (1 - _STAY))
        low, high = self._oldest, self._tick + 1  # idle since `low`: fewer than the goal; since `high`: all
        while high - low > 1:
            middle = (low + high) // 2
            if sum(len(table.idle_since(middle)) for table in tables) < goal:
                low = middle
            else:
                high = middle
        self._oldest = low
        before = [table.idle_since(low).to_numpy() for table in tables]
        idle = [table.idle_since(high).to_numpy() for table in tables]
        last = [np.setdiff1d(new, old, assume_unique=True) for new, old in zip(idle, before, strict=True)]
        # those of the last tick: a share of each table's
        wanted = max(goal - sum(map(len, before)), 0)
        share = min(wanted / max(sum(map(len, last)), 1), 1.0)
        return [
            (table, pa.array(np.concatenate([old, new[: math.ceil(len(new) * share)]])))
            for table, old, new in zip(tables, before, last, strict=True)
        ]

    def _renewed(self, table: HotTable) -> HotTable:
        """The same groups in a table that takes no more memory than they need."""
        new = self._hot(table.pane)
        new.tick = self._tick
        for slots in pieces(table, CHUNK_ROWS):
            GroupTable.merge(new, GroupTable.export(table, slots))
        new.database, new.filter, new.gone, new.bound = table.database, table.filter, table.gone, table.bound
        new.cold, new.faults, new.lookups, new.parts = table.cold, table.faults, table.lookups, table.parts
        return new

    def _sweep(self, table: HotTable) -> None:
        """Cold groups below the bound leave the database."""
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
        """`new` and those before it that some table needs still. -> the others, to be let go where nobody waits: files go with them."""
        since = {table.life: table.since for table in self._hot_tables()}
        kept: list[Delta] = []
        over: list[Delta] = []
        for delta in [*self._deltas, new.hold()]:
            needed = any(delta.number >= since[life] for life in delta.lives if life in since)
            (kept if needed else over).append(delta)
        self._deltas = kept
        return over


class _Pane(NamedTuple):
    """The facts about a pane in a checkpoint."""

    pane: int
    life: int
    since: int  # the first delta that counts
    bound: tuple[int, int] | None
    cold: int  # groups that are only in the database
    parts: int  # of groups, in the database
    hot: int = 0  # groups in memory, or not known


def _taken(columns: list[Array], rows: pa.Int32Array) -> list[Array]:
    return [column.take(rows) for column in columns]


def _used(table: HotTable) -> int:
    """Bytes of the groups that are there; what removed ones have left behind will be used again."""
    figures = table.statistics()
    used = figures["bytes"] * figures["groups"] // max(figures["slots"], 1)
    return (
        used + (0 if table.filter is None else table.filter.nbytes) + (0 if table.gone is None else table.gone.nbytes)
    )
