"""Values that are gathered by slot: lists, distinct values, texts, and others without a fixed width.

Each batch appends its values as rows (slot, value, …) to a tail. When the tail has doubled, it is reduced to the
values that the aggregate needs: one for each group, the distinct ones, or all of a list. Before values of slots are
read, the tail is sorted by slot and becomes a run. Runs are merged so that each is at least twice as long as the next
(a log-structured merge tree: O'Neil, Cheng, Gawlick, O'Neil 1996). So each row is merged a logarithmic number of
times, and the time of a read depends on the rows that it returns and not on the number of groups. Memory is at most
twice the values of lists, or six times the reduced values (which runs and tail may repeat), and two batches.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import empty_batch
from sabot.engine.operators.aggregates.decimals import SumOverflow
from sabot.engine.operators.aggregates.gather import (
    ROWS,
    VALUES,
    Array,
    Gather,
    GatheredValues,
    joined,
    ranges,
    selected,
)
from sabot.engine.operators.aggregates.reducers import REDUCERS, plain_floats, top

REDUCE_ROWS = 65_536  # the fewest rows that are reduced: below, it saves nothing
PIECE_ROWS = 32_768  # rows that are reduced at once, so that lookups stay in the processor's cache
RUN_BYTES = 1 << 29  # the most bytes of a merged run of lists, since the offsets of texts have 31 bits


class _Run:
    """Columns (home, value[, rank][, order]), reduced, with ascending homes. `Pairs` says what a home is."""

    def __init__(self, batch: pa.RecordBatch, age: int) -> None:
        self.batch = batch
        self.homes = batch.column(0).to_numpy()
        self.rows: int = batch.num_rows
        self.nbytes: int = batch.nbytes
        self.age = age
        """The age at which the run was made. A row is dead if its home was emptied at a later age."""
        self.dead = 0  # the number of rows whose home was emptied

    def spans(self, homes: Any, born: Any) -> tuple[Any, Any]:
        """Returns, for each of these homes, the number of its first row in this run, and how many rows it has. A home
        that was emptied after the run was written has 0 rows.

        `homes`: ascending. `born`: by home, the age at which it was emptied last, or None if no home ever was.
        """
        first = np.searchsorted(self.homes, homes)
        sizes = np.searchsorted(self.homes, homes, side="right") - first
        if born is not None:
            sizes[born[homes] > self.age] = 0
        return first, sizes

    def living(self, born: Any) -> pa.RecordBatch:
        """Returns the rows whose home was not emptied after they were written."""
        return self.batch.filter(pa.array(born[self.homes] <= self.age)) if self.dead else self.batch


class Pairs(GatheredValues):
    """Values as columns (home, value[, rank][, order]): runs, and a tail in the order of arrival.

        runs    older, longer ── newer, shorter │ tail
        home    0 0 0 1 2 2 2 … │ 0 2 2 │ 1 2 2 │ 2 0 1 0 …

    A home is the number under which rows are stored; the rows of slot s are stored under home[s]. To merge two slots,
    the rows of the smaller are moved; if the source is the larger, the two slots first swap their homes. So a row is
    moved only when the number of its slot's rows doubles. To empty a home, the current age is recorded for it: its
    rows in older runs are then dead. The next merge removes dead rows, at the latest when half of all rows are dead.
    """

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._schema = pa.schema([pa.field("slot", pa.int32()), *gather.columns])
        self._reducer = partial(top, gather.option) if gather.reduce == "top" else REDUCERS[gather.reduce]
        if gather.reduce == "sum":
            self._reducer = self._summed
        self._arrived = 0  # the number of rows so far: the rank of first and last if there is no `order`
        self.clear()

    def _summed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Reduces sums. Raises SumOverflow with the name of the aggregate; its `place` is the slot, or -1 if slots
        have been moved.
        """
        try:
            return REDUCERS["sum"](batch)
        except SumOverflow as error:
            what = f"{self.gather.name}: a sum of {self.gather.column!r} {error.message.removeprefix('a sum ')}"
            raise SumOverflow(what, error.hint, error.place if self._home is None else -1) from error

    def clear(self) -> None:
        self._runs: list[_Run] = []
        self._home: Any = None  # by slot, or None if each slot is its own home, and none was emptied
        self._born: Any = None  # by home: the age at which it was emptied last
        self._age = 0
        self._empty_tail()

    def _empty_tail(self) -> None:
        self._tail: list[pa.RecordBatch] = []
        self._tail_rows = self._tail_bytes = 0
        self._reduced_rows = 0  # the number of rows that the last reduction left

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        slots, selection = gather.counted(slots, data, selection)
        value = selected(data.column(gather.argument), selection)
        columns = [value]
        if gather.reduce in ROWS:
            columns.append(
                self._arrivals(len(slots)) if gather.rank < 0 else selected(data.column(gather.rank), selection)
            )
        elif gather.reduce in VALUES:
            columns = [plain_floats(value).cast(gather.columns[0].type)]
        if gather.columns[-1].name == "order":
            columns.append(selected(data.column(gather.order), selection))
        batch = pa.RecordBatch.from_arrays([slots, *columns], schema=self._schema)
        if gather.reduce in VALUES:
            batch = _without(batch, value, nan=gather.reduce == "top")
        elif gather.skip_null_rank:
            batch = _without(batch, columns[1], nan=True)
        self._append(batch)

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        parents = pc.list_parent_indices(columns[0])
        flat = [pc.list_flatten(column) for column in columns]
        if self.gather.reduce in ROWS and self.gather.rank < 0:
            flat[1] = self._arrivals(len(parents))
        self._append(pa.RecordBatch.from_arrays([slots.take(parents), *flat], schema=self._schema))

    def results(self, slots: pa.Int32Array) -> Array:
        batch, bounds = self._rows_of(slots.to_numpy())
        values = batch.column(1)
        if self.gather.reduce == "distinct":
            if not pa.types.is_list(self.gather.type):
                return pa.array(np.diff(bounds))
            values = _ascending(values, bounds)
            return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values, type=self.gather.type)
        if self.gather.reduce in ("list", "top"):
            return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values)
        return values.take(pa.array(bounds[:-1], mask=bounds[:-1] == bounds[1:]))

    def results_over(self, slots: Any, first: Any, sizes: Any) -> Array:
        if self.gather.reduce not in ("list", "distinct"):
            return super().results_over(slots, first, sizes)
        batch, bounds = self._rows_of(slots)
        begin, end = bounds[first], bounds[first + sizes]
        if self.gather.reduce == "list":
            values, counts = batch.column(1).take(pa.array(ranges(begin, end - begin))), end - begin
        else:
            numbers = batch.column(1).dictionary_encode()
            before = _same_before(numbers.indices.to_numpy())
            if not pa.types.is_list(self.gather.type):
                return pa.array(_differing(before, begin, end))
            parents, rows = np.repeat(np.arange(len(begin)), end - begin), ranges(begin, end - begin)
            new = before[rows] < begin[parents]
            counts = np.bincount(parents[new], minlength=len(begin))
            values = batch.column(1).take(pa.array(rows[new]))
        ends = np.concatenate([[0], np.cumsum(counts)])
        if self.gather.reduce == "distinct":
            values = _ascending(values, ends)
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values, type=self.gather.type)

    def states(self, slots: pa.Int32Array) -> list[Array]:
        batch, bounds = self._rows_of(slots.to_numpy())
        offsets = pa.array(bounds.astype(np.int32))
        return [pa.ListArray.from_arrays(offsets, column) for column in batch.columns[1:]]

    def move(self, into: Any, source: Any) -> None:
        self._flush()
        if not self._runs or not len(source):
            return
        targets, which = np.unique(into, return_inverse=True)
        self._reach(max(source.max(), targets.max()))
        self._swap(targets, which, source)
        homes = self._home[source]
        batch, bounds = self._rows_of(source)
        self._vacate(homes)
        if batch.num_rows:
            self._to_tail(_renumbered(batch, np.repeat(self._home[into], np.diff(bounds))))

    def _swap(self, targets: Any, which: Any, source: Any) -> None:
        """Swaps homes before slots are merged. Each target gets the home that has the most rows, among its own home
        and those of its sources. The source that had this home gets the target's former home.

        `targets`: the slots into which others are merged. `source`: the slots that are merged. `which`: for each of
        these, the index of its target.
        """
        members = np.concatenate([targets, source])
        group = np.concatenate([np.arange(len(targets)), which])
        sizes = np.sum([sizes for _, _, sizes in self._spans(self._home[members])], axis=0)
        by_size = np.lexsort((-sizes, group))  # stable: a target precedes sources with as many rows
        largest = members[by_size[np.flatnonzero(np.diff(group[by_size], prepend=-1))]]
        self._home[targets], self._home[largest] = self._home[largest], self._home[targets]

    def remove(self, slots: Any) -> None:
        self._flush()
        if self._runs and len(slots):
            self._reach(slots.max())
            self._vacate(self._home[slots])

    @property
    def nbytes(self) -> int:
        stamps = 0 if self._home is None else self._home.nbytes + self._born.nbytes
        return int(stamps) + self._tail_bytes + sum(run.nbytes for run in self._runs)

    def _arrivals(self, rows: int) -> Array:
        self._arrived += rows
        return pa.array(np.arange(self._arrived - rows, self._arrived))

    def _append(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            if self._home is not None:
                slots = batch.column(0).to_numpy()
                self._reach(slots.max())
                batch = _renumbered(batch, self._home[slots])
            self._to_tail(batch)

    def _to_tail(self, batch: pa.RecordBatch) -> None:
        self._tail.append(batch)
        self._tail_rows += batch.num_rows
        self._tail_bytes += batch.nbytes
        if self._tail_bytes > RUN_BYTES:
            self._flush()
        elif self._tail_rows >= max(2 * self._reduced_rows, REDUCE_ROWS):
            reduced = self._reducer(joined(self._tail))
            self._tail, self._tail_rows, self._tail_bytes = [reduced], reduced.num_rows, reduced.nbytes
            self._reduced_rows = reduced.num_rows

    def _flush(self) -> None:
        """Makes a run of the tail."""
        if self._tail:
            batch, is_reduced = joined(self._tail), self._tail_rows == self._reduced_rows
            self._empty_tail()
            self._push(batch, is_reduced)

    def _push(self, batch: pa.RecordBatch, is_reduced: bool) -> None:
        """Merges these rows with the newest runs that are less than twice as long, and adds the result as a run.
        `is_reduced`: True if none of the rows can go unless it is merged with others.
        """
        parts, rows, size = [batch], batch.num_rows, batch.nbytes
        while self._runs and self._runs[-1].rows < 2 * rows:
            if self.gather.reduce == "list" and self._runs[-1].nbytes + size > RUN_BYTES:
                break
            run = self._runs.pop()
            rows, size = rows + run.rows, size + run.nbytes
            parts.append(run.living(self._born))
        if parts := [part for part in reversed(parts) if part.num_rows]:
            alone = is_reduced and len(parts) == 1
            self._runs.append(_Run(_sorted(parts[0]) if alone else self._reduced(joined(parts)), self._age))

    def _reduced(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows that the aggregate needs, ascending by slot. They are reduced in pieces; no piece ends
        within the rows of a slot.
        """
        batch = _sorted(batch)
        if self.gather.reduce == "list":
            return batch
        slots = batch.column(0).to_numpy()
        cuts = np.unique(np.searchsorted(slots, slots[::PIECE_ROWS])).tolist()  # the first rows of the pieces
        ends = [*cuts[1:], len(slots)]
        return joined(
            [_sorted(self._reducer(batch.slice(cut, end - cut))) for cut, end in zip(cuts, ends, strict=True)]
        )

    def _rows_of(self, slots: Any) -> tuple[pa.RecordBatch, Any]:
        """Returns the rows kept of these slots, and bounds: the rows of slots[i] are rows bounds[i] to bounds[i + 1],
        with i in their column 0.

        The rows of a list are sorted by order, then by arrival.
        """
        self._flush()
        homes = slots
        if self._home is not None:
            self._reach(slots.max(initial=-1))
            homes = self._home[slots]
        pieces = []
        for run, first, sizes in self._spans(homes):
            if sizes.any():
                taken = _taken(run.batch, first, sizes)
                pieces.append(_renumbered(taken, np.repeat(np.arange(len(slots), dtype=np.int32), sizes)))
        if not pieces:
            return empty_batch(self._schema), np.zeros(len(slots) + 1, np.int64)
        batch = joined(pieces)
        if len(pieces) > 1:
            batch = self._reduced(batch)
        if self.gather.reduce == "list" and len(batch.columns) > 2:
            batch = _ordered(batch)
        return batch, np.searchsorted(batch.column(0).to_numpy(), np.arange(len(slots) + 1))

    def _spans(self, homes: Any) -> Iterator[tuple[_Run, Any, Any]]:
        """Yields, for each run, the run, the first row of each home in it, and the number of the home's rows in it."""
        ascending = np.argsort(homes)
        asked = homes[ascending]
        for run in self._runs:
            first, sizes = np.empty((2, len(homes)), np.int64)
            first[ascending], sizes[ascending] = run.spans(asked, self._born)
            yield run, first, sizes

    def _reach(self, slot: int) -> None:
        """Extends `_home` and `_born` so that they have an entry for this slot and for every home that occurs in a
        run.
        """
        known = 0 if self._home is None else len(self._home)
        if slot >= known:
            slot = max([slot, *(int(run.homes[-1]) for run in self._runs)])
            grown = np.arange(max(2 * known, slot + 1, 64), dtype=np.int32)
            born = np.zeros(len(grown), np.int64)
            if known:
                grown[:known], born[:known] = self._home, self._born
            self._home, self._born = grown, born

    def _vacate(self, homes: Any) -> None:
        """Marks the rows of these homes dead. Writes the runs anew if half of all rows are dead."""
        for run, _, sizes in self._spans(homes):
            run.dead += int(sizes.sum())
        self._age += 1
        self._born[homes] = self._age
        if 2 * sum(run.dead for run in self._runs) > sum(run.rows for run in self._runs):
            runs, self._runs = self._runs, []
            for run in runs:
                self._push(run.living(self._born), is_reduced=True)


def _without(batch: pa.RecordBatch, column: Array, nan: bool = False) -> pa.RecordBatch:
    """Returns the rows where `column` is not null, and not NaN if `nan` is True."""
    floats = nan and pa.types.is_floating(column.type)
    if column.null_count == 0 and not floats:
        return batch
    keep = pc.is_valid(column)
    return batch.filter(pc.and_not(keep, pc.is_nan(column)) if floats else keep)


def _renumbered(batch: pa.RecordBatch, slots: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(slots), *batch.columns[1:]], schema=batch.schema)


def _taken(batch: pa.RecordBatch, first: Any, sizes: Any) -> pa.RecordBatch:
    """Returns these ranges of rows. Without a copy if they are most of the batch, one behind the other."""
    rows = int(sizes.sum())
    if 2 * rows > batch.num_rows and (first[1:] == first[:-1] + sizes[:-1]).all():
        return batch.slice(int(first[0]), rows)
    return batch.take(pa.array(ranges(first, sizes)))


def _same_before(numbers: Any) -> Any:
    """Returns for each row the last row before it with the same number, or -1."""
    pairs = numbers.astype(np.int64) << 32 | np.arange(len(numbers))
    pairs.sort()
    rows = pairs & 0xFFFFFFFF
    before = np.full(len(numbers), -1)
    again = pairs[1:] >> 32 == pairs[:-1] >> 32
    before[rows[1:][again]] = rows[:-1][again]
    return before


def _differing(before: Any, begin: Any, end: Any) -> Any:
    """Returns how many different values there are in each range of rows. `before`: for each row, the last one before it
    with its value, or -1. A range that begins behind another does not end before it.

    A row counts in those ranges that it is in and that begin after the row before it. These ranges are neighbours.
    """
    order = np.lexsort((end, begin))
    begins, ends = begin[order], end[order]
    rows = np.arange(len(before))
    first = np.maximum(np.searchsorted(ends, rows, "right"), np.searchsorted(begins, before, "right"))
    last = np.maximum(np.searchsorted(begins, rows, "right"), first)
    changes = np.bincount(first, minlength=len(order) + 1) - np.bincount(last, minlength=len(order) + 1)
    counts = np.empty(len(order), np.int64)
    counts[order] = np.cumsum(changes)[:-1]
    return counts


def _sorted(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows sorted by slot. Rows of a slot stay in their order."""
    slots = batch.column(0).to_numpy()
    if (slots[1:] >= slots[:-1]).all():
        return batch
    keys = slots.astype(np.int64) << 32 | np.arange(len(slots))  # sorting such keys is far faster than a stable argsort
    keys.sort()
    return batch.take(pa.array(keys & 0xFFFFFFFF))


def _ordered(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns rows with ascending slots, those of a slot sorted by the column "order", nulls last. Rows of equal
    order stay in their order.
    """
    column = batch.column("order")
    slots, order = batch.column(0).to_numpy(), (column.fill_null(0) if column.null_count else column).to_numpy()
    if column.null_count:
        return batch.take(pa.array(np.lexsort((order, column.is_null().to_numpy(zero_copy_only=False), slots))))
    if ((order[1:] >= order[:-1]) | (slots[1:] != slots[:-1])).all():
        return batch
    least = int(order.min())
    places = len(slots).bit_length()
    times = (int(order.max()) - least).bit_length()
    if places + times + int(slots[-1]).bit_length() > 63:
        return batch.take(pa.array(np.lexsort((order, slots))))
    keys = (slots.astype(np.int64) << times | order - least) << places | np.arange(len(slots))
    keys.sort()
    return batch.take(pa.array(keys & (1 << places) - 1))


def _ascending(values: Array, bounds: Any) -> Array:
    """Returns the values, those between two bounds in ascending order."""
    parents = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    rows = pa.RecordBatch.from_arrays([pa.array(parents), values], names=["slot", "value"])
    return values.take(pc.sort_indices(rows, [("slot", "ascending"), ("value", "ascending")]))
