"""The groups of sparse panes: panes with few rows, which share one table.

A table for each pane takes about 0.1 ms to make, to read and to clear. That is nothing for a pane with thousands of
rows, and nearly all of the time if each row has a pane of its own. So panes that get few rows of a batch in which
there are many such panes are kept together, by a key that has the pane as its last column:

    dense     a table for each pane, with the groups by key    the results of a pane are those of its table
    sparse    one table, with the groups by key and pane       the results of many panes are computed at once

A pane is either dense or sparse. A sparse pane that gets more rows or groups becomes dense (`SparsePanes.grown`).

A window of several panes that are all sparse is merged anew, together with those that close at the same watermark
(`SparsePanes.windows`), and each group is merged once for each watermark. Groups with extras, and the rows of a top_n,
are merged once for each window, so such panes have few rows only if a window of them has few too. Many windows that
close together and have few dense panes get the groups of these beside the sparse ones; any other window that has a
dense pane gets its sparse panes as tables (`SparsePanes.pane`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable, WindowMerge
from sabot._cython.groups.partition import hash_columns
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator
from sabot.engine.operators.aggregates.migration import StateLayout, StateMigration, migration_of
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, START_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.readers import described
from sabot.engine.operators.slot_state import SlotState
from sabot.engine.operators.windows.panes import (
    FEW_ROWS,
    MANY_PANES,
    PANE_COLUMN,
    Numbers,
    RowsOfPanes,
    WindowShape,
    places_in,
)

_GROWN_TABLE = 65_536  # with so many groups, panes with many of them are looked for
_GROWN_PANE = 1_024  # a pane with so many groups becomes dense
_MOST_MERGED = 512  # the groups that are merged for each window, with which panes still have few rows
_MOST_PANES = 2_048  # windows of more panes have no sparse ones: each watermark takes time for the panes of a window
_MOST_BYTES = 32_000_000  # about as many bytes of groups are merged at once
MOST_KEYS = 31  # a table has at most 32, and that of sparse panes has the pane too
_FREE = END_OF_TIME  # the pane of a slot without a group
_PANE = pa.field(PANE_COLUMN, pa.int64())

SparseGroups: TypeAlias = tuple[Numbers, Numbers]
"""The slots of groups by ascending panes, and the start of the pane of each."""

NO_GROUPS: SparseGroups = (np.zeros(0, np.int32), np.zeros(0, np.int64))


class Spread(NamedTuple):
    """The rows of a batch in which many panes have few rows each.

    `late`: the indices of the late rows, or None. `dense`: the rows of each dense pane. `rows`, `panes`: the rows of
    sparse panes, and the pane of each.
    """

    late: pa.Int32Array | None
    dense: RowsOfPanes
    rows: Numbers
    panes: Numbers

    def over(self, shape: WindowShape, watermark: int) -> RowsOfPanes:
        """Returns the rows of those sparse panes of which a window is over at this watermark, by pane."""
        late = self.panes < shape.pane(watermark)
        rows, panes = self.rows[late], self.panes[late]
        return [(int(pane), pa.array(rows[panes == pane])) for pane in np.unique(panes)]


class SparseState(SlotState):
    """State for each key and sparse pane: the base of SparsePanes and, for the rows of a top_n, of `top.SparseRows`.

    `known`: an empty table, whose last key is the pane. `spills`: True if groups go to disk when they exceed the memory
    budget. If not, all panes become dense then. `fewer`: the rows of a batch from which on a pane has not few
    (`few_rows`). The other parameters: as for SlotState.

    `starts`: the starts of the sparse panes. `pane_of`: the pane of each slot.
    """

    def __init__(
        self,
        shape: WindowShape,
        known: GroupTable,
        key_indices: Sequence[int],
        files: Mapping[str, pa.Schema],
        keys: Sequence[int],
        context: OperatorContext,
        *,
        owners: Sequence[int],
        spills: bool,
        fewer: int,
    ) -> None:
        self.shape, self._few_rows = shape, fewer
        self.pane_of = np.zeros(0, np.int64)
        self._grown_table, self._grown_pane = _GROWN_TABLE, _GROWN_PANE
        if not shape.is_one_pane:  # a group counts in several windows
            self._grown_table, self._grown_pane = _GROWN_TABLE // 8, 4 * self._few_rows
        self._checked = self._grown_table  # the number of groups at which panes with many of them are looked for
        self._stays = context.directory is not None and not spills
        self.starts: set[int] = set()
        # Half of a budget: the other half is for dense panes, which have their own bounds.
        shared = replace(context, memory_budget=context.memory_budget // 2)
        shared = shared if spills else replace(shared, directory=None)
        super().__init__(known, key_indices, files, keys, shared, "sparse", owners=owners)

    # Rows in

    def split(
        self, times: pa.Int64Array, selection: pa.Int32Array | None, late_before: int, dense: Sequence[int]
    ) -> Spread | None:
        """Divides the rows of a batch, or returns None if no pane of it is to be sparse that is not sparse already.
        `dense`: the starts of the dense panes. The other parameters: as for `WindowShape.split`.
        """
        found = self.shape.sparse_rows(times, selection)
        if found is None:
            return None
        rows, values = found
        late = None
        on_time = values >= late_before
        if not on_time.all():
            late = pa.array(rows[~on_time])
            rows, values = rows[on_time], values[on_time]
        starts, places, counts = np.unique(self.shape.starts(values), return_inverse=True, return_counts=True)
        fewer = self.fewer(len(starts))
        known = np.fromiter((start in self.starts for start in starts.tolist()), np.bool_, len(starts))
        few = (counts < fewer) & ~np.isin(starts, dense)
        if np.count_nonzero(few & ~known) < MANY_PANES:
            few &= known
        parts: RowsOfPanes = [
            (int(starts[place]), pa.array(rows[places == place])) for place in np.flatnonzero(~few).tolist()
        ]
        chosen = few[places]
        return Spread(late, parts, rows[chosen], starts[places[chosen]])

    def fewer(self, panes: int) -> int:
        """Returns the rows from which on a pane of a batch with rows in so many panes has not few."""
        return self._few_rows

    def place(self, slots: pa.Int32Array, panes: Numbers) -> None:
        """Notes that rows of these panes are about to be added to these slots."""
        self.note(slots)  # before the slots have panes: a snapshot must not see groups that are newer than it
        highest = max(slots.to_numpy().max(initial=-1), -1)
        if highest >= len(self.pane_of):
            grown = np.full(max(2 * len(self.pane_of), highest + 1, 1_024), _FREE, np.int64)
            grown[: len(self.pane_of)] = self.pane_of
            self.pane_of = grown
        self.pane_of[slots.to_numpy()] = panes
        self.starts.update(np.unique(panes).tolist())

    # Panes that become dense

    def grown(self, rows: RowsOfPanes) -> list[int]:
        """Returns the sparse panes that should become dense: those of `rows`, and, from time to time, those with many
        groups; all, if they do not go to disk and exceed the budget. Returns none while some groups are on
        disk, because a pane becomes dense as a whole.
        """
        if self.cold_rows:
            return []
        if self._stays and self.exceeds_budget:
            return sorted(self.starts)
        found = [pane for pane, some in rows if pane in self.starts]
        if len(self.known) >= self._checked:
            starts, counts = np.unique(self.pane_of[self.pane_of != _FREE], return_counts=True)
            many = counts >= max(self._grown_pane, 4 * self.fewer(1))
            found += starts[many].tolist()
            self._checked = max(self._grown_table, 2 * (len(self.known) - int(counts[many].sum())))
        return list(dict.fromkeys(found))

    def slots_of(self, pane: int) -> Numbers:
        """Returns the slots of the groups of a pane."""
        return np.flatnonzero(self.pane_of == pane).astype(np.int32)

    def _by_pane(self, slots: Numbers) -> SparseGroups:
        panes = self.pane_of[slots]
        order = np.argsort(panes, kind="stable")
        return slots[order].astype(np.int32), panes[order]

    def window_pieces(self, ends: Numbers) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
        """Divides windows, all of whose panes are sparse, into pieces of about as many groups as may be merged at once.
        Yields the ends of each piece, and the slots and panes of the groups in its windows, by ascending panes. `ends`:
        ascending.
        """
        starts = self.shape.starts_of(ends)
        slots, panes = self._by_pane(np.flatnonzero((self.pane_of >= starts[0]) & (self.pane_of < ends[-1])))
        firsts, lasts = np.searchsorted(panes, starts), np.searchsorted(panes, ends)
        upto = np.cumsum(lasts - firsts)
        most = max(min(CHUNK_ROWS, _MOST_BYTES * len(self.known) // max(self.nbytes, 1)), 1)
        begin = done = 0
        while begin < len(ends):
            end = max(int(np.searchsorted(upto, done + most, "right")), begin + 1)
            groups = slice(int(firsts[begin]), int(lasts[end - 1]))
            yield ends[begin:end], slots[groups], panes[groups]
            begin, done = end, int(upto[end - 1])

    def in_windows(self, ends: Numbers, panes: Numbers) -> tuple[Numbers, Numbers]:
        """Returns, window by window, the places of the panes that are in it, and the end of the window for each of
        them. `ends`, `panes`: ascending.
        """
        firsts, lasts = np.searchsorted(panes, self.shape.starts_of(ends)), np.searchsorted(panes, ends)
        counts = lasts - firsts
        return np.repeat(firsts, counts) + places_in(counts), np.repeat(ends, counts)

    def runs(self, ends: Sequence[int], dense: Sequence[int]) -> Iterator[tuple[bool, Numbers]]:
        """Divides windows into runs: those without a dense pane (True), and the others. `dense`: the dense panes."""
        found, starts = np.array(ends, np.int64), np.array(dense, np.int64)
        alone = np.searchsorted(starts, self.shape.starts_of(found)) == np.searchsorted(starts, found)
        bounds = [0, *(np.flatnonzero(np.diff(alone)) + 1).tolist(), len(found)]
        for begin, end in pairwise(bounds):
            if end > begin:
                yield bool(alone[begin]), found[begin:end]

    def drop_before(self, time: int) -> None:
        """Removes the panes that begin before this time. Call it within `changing`."""
        if not self.starts:
            return
        slots = np.flatnonzero(self.pane_of < time).astype(np.int32)
        if len(slots):
            self.starts.difference_update(np.unique(self.pane_of[slots]).tolist())
            self.note(pa.array(slots))
            self.forget(pa.array(slots))

    def free(self, slots: pa.Int32Array) -> None:
        """Removes these slots from the keys."""
        self.known.remove(slots)
        self.pane_of[slots.to_numpy()] = _FREE

    def taken(self, slots: Numbers) -> pa.Int32Array:
        """Returns those of these slots that have a group."""
        slots = slots[slots < len(self.pane_of)]
        return pa.array(slots[self.pane_of[slots] != _FREE])


class SparsePanes(SparseState):
    """The groups of all sparse panes of a window.

    If windows consist of several panes, no group goes to disk, because a window needs all its groups at each slide.

    `keys`, `aggregates`, `rows`: as for `Aggregator`. `partial`: True if the input comes from LocalCombine.
    `watermark`: the watermark, which the owner of the state sets. `together`: about as many windows end at a watermark
    (`note_ended`), or 0 as long as none has ended.

    The rows of the checkpoint have the columns `Aggregator.states`, the pane being the last key.
    """

    def __init__(
        self,
        shape: WindowShape,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        rows: pa.Schema,
        context: OperatorContext,
        *,
        lateness_ms: int,
        partial: bool,
    ) -> None:
        self._lateness, self._partial = lateness_ms, partial
        self._names = [*keys, PANE_COLUMN]
        self.aggregator = self._aggregator_of(aggregates, rows)
        self._extras = self.aggregator.extras()
        self._migration: StateMigration | None = None
        self._late_groups = self._keys_table()  # groups with rows that arrived after their window was emitted
        self.watermark = START_OF_TIME
        self.together = 0
        columns = context.input if partial else context.input.append(_PANE)
        self._indices = [columns.get_field_index(name) for name in self._names]
        super().__init__(
            *(shape, self.aggregator.table(), self._indices, {"sparse": self.aggregator.states}),
            *(range(len(self._names)), context),
            owners=context.owners(keys) or [0],  # without keys subtask 0 has all rows, whatever their hash is
            spills=shape.is_one_pane,
            fewer=few_rows(shape, whole=not self.aggregator.needs_slots),
        )

    def _aggregator_of(self, aggregates: Sequence[AggregateColumn], rows: pa.Schema) -> Aggregator:
        return Aggregator(self._names, aggregates, rows.append(_PANE), order=TIME_COLUMN)

    def _keys_table(self) -> GroupTable:
        return GroupTable(self.aggregator.keys, [("count", None)])

    def add(self, data: pa.RecordBatch, rows: Numbers, panes: Numbers) -> None:
        """Adds rows to their panes, which must not be dense. Call it within `changing`. `rows`: their indices in
        `data`. `panes`: the start of the pane of each.
        """
        if not self._partial:
            column = np.zeros(data.num_rows, np.int64)
            column[rows] = panes
            data = data.append_column(_PANE, pa.array(column))
        selection, keys = pa.array(rows), self._indices
        hashes = hash_columns([data.column(index) for index in keys], selection)
        self.fetch(data, hashes, selection)
        slots = self.known.resolve(data, keys, hashes=hashes, selection=selection)
        self.place(slots, panes)
        if self._partial:
            self.aggregator.merge(self.known, self._extras, data, selection)
        else:
            self.aggregator.add(self.known, self._extras, data, selection, hashes)
        if self._lateness:
            again = panes < self._over_before(self.watermark)
            if again.any():
                self._late_groups.resolve(data, keys, hashes=hashes, selection=pa.array(rows[again]))

    def fewer(self, panes: int) -> int:
        """As for SparseState. Merging a group takes its time once for each watermark, so a pane may have more of them if
        many windows end together. Before windows have ended, those of a batch are thought to do so.
        """
        if self.aggregator.needs_slots:
            return self._few_rows
        together = self.together or panes
        return max(self._few_rows, min(FEW_ROWS, _MOST_MERGED * together // (self.shape.most_panes + together)))

    def note_ended(self, windows: int) -> None:
        """Notes how many windows end at a watermark, if any do."""
        if windows:
            self.together = max(windows, self.together // 2)

    def leave(self, pane: int) -> Iterator[pa.RecordBatch]:
        """Removes a pane, and yields its groups (`Aggregator.states`, without the column of the pane), in pieces. Call it
        within `changing`.
        """
        slots = self.slots_of(pane)
        yield from self._groups(slots)
        self.note(pa.array(slots))
        self.forget(pa.array(slots))
        self.starts.discard(pane)

    def _groups(self, slots: Numbers) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(slots), CHUNK_ROWS):
            some = pa.array(slots[start : start + CHUNK_ROWS])
            yield self.aggregator.export_slots(self.known, self._extras, some).drop_columns([PANE_COLUMN])

    def late_keys(self, pane: int) -> pa.RecordBatch:
        """Returns the groups of the pane that have rows that arrived after their window was emitted, as rows of a
        table of keys.
        """
        rows = self._late_groups.export()
        return rows.filter(pa.array(rows.column(PANE_COLUMN).to_numpy() == pane)).drop_columns([PANE_COLUMN])

    # Results out

    def steps(self, watermark: int) -> Iterator[int]:
        """Yields watermarks up to this one. At each, the groups whose windows end by then are in memory. The caller
        should remove what is over before it requests the next one.
        """
        last = self.watermark
        while True:
            at = self.full_at(CHUNK_ROWS, watermark)
            at = at if last < at else watermark
            with self.changing:
                self.bring_due(at)
            yield at
            if at >= watermark:
                return
            last = at

    def ended(self, after: int, upto: int | None = None) -> SparseGroups:
        """Returns the groups in memory whose windows end in after < end <= upto."""
        if not self.starts:
            return NO_GROUPS
        before = _FREE if upto is None else self._over_before(upto)
        slots = np.flatnonzero((self.pane_of >= self._over_before(after)) & (self.pane_of < before))
        return self._by_pane(slots)

    def _over_before(self, watermark: int) -> int:
        """Returns the time before which the panes whose windows are over at this watermark begin."""
        return max(START_OF_TIME, min(self.shape.pane(watermark), _FREE))

    def emitted_again(self) -> SparseGroups:
        """Returns the groups that must be emitted again, and forgets that they must. Call it within `changing`."""
        if not len(self._late_groups):
            return NO_GROUPS
        rows = self._late_groups.export()
        self._late_groups.clear()
        hashes = hash_columns([rows.column(index) for index in self.keys_at])
        self.fetch(rows, hashes, None, self.keys_at)
        slots = self.known.resolve(rows, list(self.keys_at), hashes=hashes, insert=False).to_numpy()
        slots = slots[slots >= 0]  # a pane that has become dense is not here any more
        return self._by_pane(slots[self.pane_of[slots] < self._over_before(self.watermark)])

    def take_late_keys(self) -> pa.RecordBatch:
        """Returns the keys and panes of the groups that have rows that arrived after a window of theirs was emitted, and
        forgets them.
        """
        rows = self._late_groups.export()
        self._late_groups.clear()
        return rows

    def pieces(self, after: int) -> Iterator[SparseGroups]:
        """Yields the groups whose windows end after this time: those in memory, then those on disk, piece by piece. A
        piece is valid until the next one is requested.
        """
        yield self.ended(after)
        for slots in self.every_read():
            yield self._by_pane(slots[self.pane_of[slots] >= self._over_before(after)])

    @property
    def count(self) -> int:
        """The number of groups, in memory and on disk."""
        return len(self.known) + self.cold_rows

    def results(self, slots: Numbers, panes: Numbers) -> tuple[list[pa.Array], Numbers]:
        """Returns the columns of the results of these groups, keys and aggregates, and the end of the window of each."""
        columns = self.aggregator.finish(self.known, self._extras, pa.array(slots)).columns
        starts, found = np.unique(panes, return_inverse=True)
        width = len(self._names)
        return [*columns[: width - 1], *columns[width:]], self.shape.ends_of(starts)[found]

    def pane(self, pane: int) -> Iterator[pa.RecordBatch]:
        """Yields the groups of a pane (`Aggregator.states`, without the column of the pane), in pieces."""
        return self._groups(self.slots_of(pane))

    def windows(
        self, ends: Numbers, dense: Iterable[tuple[int, pa.RecordBatch]] = ()
    ) -> Iterator[tuple[list[pa.Array], Numbers]]:
        """Yields the results of windows with these ends, in pieces: their columns, keys and aggregates, and the end of
        the window of each row. `ends`: ascending. `dense`: the dense panes of these windows, and the groups of each
        (`Aggregator.states`, without the column of the pane); empty if an aggregate has extras.
        """
        if self.aggregator.needs_slots:
            yield from self._windows_with_extras(ends)
            return
        place = len(self._names) - 1
        starts = self.shape.starts_of(ends)
        table, slots = self.known, np.flatnonzero((self.pane_of >= starts[0]) & (self.pane_of < ends[-1]))
        slots, panes = self._by_pane(slots)
        joined = [_with_pane(rows, pane, self.aggregator.states) for pane, rows in dense]
        if joined:
            table = self.aggregator.table()
            joined.append(self.aggregator.export_slots(self.known, self._extras, pa.array(slots)))
            slots = np.concatenate([table.merge(rows).to_numpy() for rows in joined])
            panes = np.concatenate([rows.column(PANE_COLUMN).to_numpy() for rows in joined])
            order = np.argsort(panes, kind="stable")
            slots, panes = slots[order], panes[order]
        merge = self._merge(table, slots, panes, ends)
        while (found := merge.read(CHUNK_ROWS)) is not None:
            columns, windows = found
            results = self.aggregator.compose(columns[place + 1 :], [])
            yield [*columns[:place], *results], ends[windows.to_numpy()]

    def _windows_with_extras(self, ends: Numbers) -> Iterator[tuple[list[pa.Array], Numbers]]:
        place = len(self._names) - 1
        for some, slots, panes in self.window_pieces(ends):
            merge = self._merge(self.known, slots, panes, some)
            by_key = slots[merge.order().to_numpy()]
            while (found := merge.read(CHUNK_ROWS)) is not None:
                columns, windows = found
                first, last = (each.to_numpy() for each in merge.spans())
                keys, groups = columns[:place], (by_key, first, last - first + 1)
                results = self.aggregator.over(keys, columns[place + 1 :], self._extras, *groups)
                yield [*keys, *results], some[windows.to_numpy()]

    def _merge(self, table: GroupTable, slots: Numbers, panes: Numbers, ends: Numbers) -> WindowMerge:
        """Returns the results of windows with these ends, merged from groups by ascending panes."""
        # A complete block is merged from its end, unless it is a cumulative window (as in MergedPanes).
        last = self.shape.blocks(ends - 1 if self.shape.grows else ends)
        times = (self.shape.blocks(panes), self.shape.starts_of(ends), ends, last)
        return WindowMerge(table, pa.array(slots), *map(pa.array, times))

    # The methods of `SlotState`

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        return [self.aggregator.export_slots(self.known, self._extras, self.taken(slots.to_numpy()))]

    def put(self, rows: Rows) -> Numbers:
        slots = self.known.resolve(rows[0], list(self.keys_at))
        self.place(slots, rows[0].column(PANE_COLUMN).to_numpy())
        self.aggregator.merge(self.known, self._extras, rows[0])
        found: Numbers = slots.to_numpy()
        return found

    def forget(self, slots: pa.Int32Array) -> None:
        if self.aggregator.needs_slots:
            self._extras.remove(slots)
        self.free(slots)

    def due_of(self, rows: Rows) -> Numbers:
        """Returns for each group the end of its window, or, if the window has been emitted, the end of its lateness."""
        starts, found = np.unique(rows[0].column(PANE_COLUMN).to_numpy(), return_inverse=True)
        ends = self.shape.ends_of(starts)
        late = np.minimum(ends, END_OF_TIME - self._lateness) + self._lateness
        due: Numbers = np.where(ends > self.watermark, ends, late)[found]
        return due

    def restore_late_groups(self, keys: pa.RecordBatch) -> None:
        self._late_groups.merge(keys)

    def late_groups(self) -> list[pa.RecordBatch]:
        """Returns the keys of the groups that must be emitted again, for a checkpoint."""
        return [self._late_groups.export()] if len(self._late_groups) else []

    @property
    def late_schema(self) -> pa.Schema:
        return self._late_groups.states

    def before_restore(self, saved: Sequence[Saved], now: Sequence[Sequence[str]], forgets: frozenset[str]) -> None:
        """Sets how the aggregates of the checkpoint are converted to those of the program. Called before a restore."""

        def was(reader: Mapping[str, Any]) -> StateLayout:
            return self._aggregator_of(*described(reader)).layout

        self._migration = migration_of(saved, now, forgets, self.aggregator.layout, was)

    def restore(self, saved: Sequence[Saved], owned: Callable[[pa.UInt64Array], pa.BooleanArray] | None) -> None:
        super().restore(saved, owned)
        for _ in self.every_read():  # segments are linked, not read; but `starts` needs their panes
            pass

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        return self.files if self._migration is None else {"sparse": self._migration.states}

    def renewed(self, rows: Rows) -> Rows:
        return rows if self._migration is None else [self._migration.whole(rows[0])]

    def close(self) -> None:
        if not self.is_held:
            self.known.clear()
            self._extras.clear()
        self._late_groups.clear()
        super().close()

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self._extras.nbytes + self.pane_of.nbytes


def _with_pane(groups: pa.RecordBatch, pane: int, states: pa.Schema) -> pa.RecordBatch:
    """Returns groups of a dense pane with the columns `states` of sparse ones."""
    return groups.append_column(PANE_COLUMN, pa.array(np.full(groups.num_rows, pane))).select(states.names)


class TouchedGroups:
    """The groups of windows that are emitted again, because late rows came for them.

    `known`: an empty table of keys. `keys`: the indices of the key columns in results. `ends`: the ends of the windows,
    ascending.
    """

    def __init__(self, known: GroupTable, keys: Sequence[int], shape: WindowShape, ends: Sequence[int]) -> None:
        self._known, self._keys = known, list(keys)
        self._ends = np.array(ends, np.int64)
        self._starts = shape.starts_of(self._ends)
        self._groups: list[Numbers] = []

    def add(self, rows: pa.RecordBatch) -> None:
        """Adds groups to all windows that contain their pane. `rows`: their keys, then maybe others, and PANE_COLUMN."""
        panes = rows.column(PANE_COLUMN).to_numpy()
        slots = self._known.resolve(rows, list(range(len(self._known.keys)))).to_numpy()
        firsts = np.searchsorted(self._ends, panes, "right")
        counts = np.maximum(np.searchsorted(self._starts, panes, "right") - firsts, 0)
        self._groups.append(self._number(np.repeat(slots, counts), np.repeat(firsts, counts) + places_in(counts)))

    def only(self, results: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the results of these groups. TIME_COLUMN is the last ms of their window."""
        slots = self._known.resolve(results, self._keys, insert=False).to_numpy()
        windows = np.searchsorted(self._ends, results.column(TIME_COLUMN).to_numpy() + 1)
        groups = np.concatenate([*self._groups, np.zeros(0, np.int64)])
        return results.filter(pa.array((slots >= 0) & np.isin(self._number(slots, windows), groups)))

    def _number(self, slots: Numbers, windows: Numbers) -> Numbers:
        found: Numbers = slots.astype(np.int64) * len(self._ends) + windows
        return found


def few_rows(shape: WindowShape, *, whole: bool = False) -> int:
    """Returns the number of rows of a batch from which on a pane has not few: less than 2 if no pane is sparse. `whole`:
    True if the groups of a window are merged once for each watermark, and not once for each window.
    """
    if shape.is_one_pane:
        return FEW_ROWS
    fewer = min(FEW_ROWS, _MOST_MERGED // shape.most_panes)
    return max(fewer, 2) if whole and shape.most_panes <= _MOST_PANES else fewer
