"""Aggregates in windows of event time: tumbling, hopping and cumulative.

Each row is aggregated once, into its pane. Panes do not overlap (`panes`). Only panes are state; the results of
windows with several panes are merged in a cache (`merged`). Panes with few rows share one table (`sparse`).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.api.nodes import windows as nodes
from sabot.api.windows import CountWindow, SessionWindow, TimeWindow
from sabot.engine.operators.aggregates.aggregator import (
    AggregateColumn,
    Aggregator,
    aggregates_reader,
    aggregates_schema,
)
from sabot.engine.operators.aggregates.arguments import with_arguments
from sabot.engine.operators.aggregates.combining import ROWS_COLUMN, LocalCombine, combined_input, repeated
from sabot.engine.operators.aggregates.extras import Extras
from sabot.engine.operators.aggregates.migration import StateLayout, StateMigration, migration_of
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    Operator,
    OperatorContext,
    Restorable,
    Saved,
)
from sabot.engine.operators.columns import time_index
from sabot.engine.operators.cuts import SlotRows
from sabot.engine.operators.keyed.running import CountAggregate
from sabot.engine.operators.late_rows import LateRows
from sabot.engine.operators.layout.plan_points import Keys, Planners, PlanPoint
from sabot.engine.operators.output import OutputBuffer
from sabot.engine.operators.readers import StateReaders, aggregates_of, described
from sabot.engine.operators.rows.timed import by_arrival
from sabot.engine.operators.spilled import SpilledGroups
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import (
    Batches,
    RowsPart,
    StatefulOperator,
    StatePart,
    StateParts,
    TablesPart,
    columns_schema,
    last_watermark,
)
from sabot.engine.operators.windows.merged import MergedPanes
from sabot.engine.operators.windows.panes import (
    PANE_COLUMN,
    Numbers,
    RowsOfPanes,
    shape_of,
    stored_window,
    window_of,
    window_text,
)
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.sparse import (
    MOST_KEYS,
    NO_GROUPS,
    SparseGroups,
    SparsePanes,
    Spread,
    TouchedGroups,
    few_rows,
)
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_INT64 = pa.int64()
_NO_CHANGE = nullcontext()
_WINDOW_TIME = pa.timestamp("ms", tz="UTC")
# So many windows that end at one watermark are merged together, if they have half as many dense panes, with no more
# groups than these. A dense pane takes about half as long as a window of its own.
MANY_WINDOWS = 16
_MOST_TOGETHER = 65_536


class WindowAggregate(StatefulOperator):
    """Aggregates rows by `keys` and window. It emits the keys, window_start, window_end (exclusive), the aggregates,
    and TIME_COLUMN, which is the last ms of the window.

    A window is emitted when the watermark reaches its end: windows in order of their ends, groups in any order. A
    window without rows is not emitted. `allowed_lateness_ms`: the time for which a window still accepts rows after
    its end. If a row comes in that time, the next `advance` emits the row's group again, with all its rows. A row is
    late if this time is over for all its windows. It is then emitted to the branch "late", without TIME_COLUMN.
    `emit_every_ms`: if not None, all windows that are not complete are emitted, as they are at that moment, whenever
    the watermark passes a multiple of this time. `partial`: True if the input comes from LocalCombine. Its late rows
    are counted, but not emitted to the branch. `parted_by`: the keys that decide to which subtask a row goes, and to
    which subtask its state belongs, if they are only some of `keys`; else empty.

    With a directory, panes and their extras keep to the memory budget. The cache of a hopping or cumulative window is
    not counted.
    """

    def __init__(
        self,
        window: TimeWindow,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        *,
        allowed_lateness_ms: int = 0,
        emit_every_ms: int | None = None,
        partial: bool = False,
        parted_by: tuple[str, ...] = (),
    ) -> None:
        if emit_every_ms is not None and emit_every_ms < 1:
            raise UserError(f"emit_every: {emit_every_ms} ms is too short", hint="give 1 ms or more")
        self.parted_by = parted_by
        self._window = window
        self._shape = shape_of(window)
        self._keys, self._aggregates = tuple(keys), tuple(aggregates)
        self._lateness, self._every, self._partial = allowed_lateness_ms, emit_every_ms, partial
        self._windows_emitted = self._rows_emitted = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        context = replace(context, parted_by=self.parted_by)
        rows = combined_input(context.input) if self._partial else context.input
        time_index(rows, "windows of event time")
        self._time = context.input.get_field_index(PANE_COLUMN if self._partial else TIME_COLUMN)
        self._aggregator = Aggregator(self._keys, self._aggregates, rows, order=TIME_COLUMN)
        self._key_indices = [context.input.get_field_index(name) for name in self._keys]
        self._late = LateRows(context, self.step.text, place=self.step.origin.place)
        self._store = self._aggregator.store(context)
        self._extras: dict[int, Extras] = {}
        self._panes: list[int] = []  # the starts of the panes with rows, ascending
        # by pane: the keys of rows that arrived after a window of the pane was emitted
        self._reopened: dict[int, GroupTable] = {}
        self._migration: StateMigration | None = None
        self._sparse: SparsePanes | None = None
        whole = not self._aggregator.needs_slots
        if few_rows(self._shape, whole=whole) > 1 and len(self._keys) <= MOST_KEYS:
            self._sparse = SparsePanes(
                *(self._shape, self._keys, self._aggregates, rows, context),
                lateness_ms=self._lateness,
                partial=self._partial,
            )
        self.state_parts = self._make_parts(context)
        self._merged = self._new_cache()
        self._output = OutputBuffer(lambda batch: self.emit(batch))
        self._watermark = START_OF_TIME
        self._late_before = START_OF_TIME
        result = self._aggregator.schema
        bounds = [pa.field("window_start", _WINDOW_TIME), pa.field("window_end", _WINDOW_TIME)]
        time = pa.field(TIME_COLUMN, _INT64)
        fields = [*list(result)[: len(self._keys)], *bounds, *list(result)[len(self._keys) :], time]
        self._schema = pa.schema(fields)
        if len(set(self._schema.names)) < len(fields):
            raise UserError(
                "an aggregate or a key of a window has the name window_start or window_end", hint="give it another name"
            )
        return self._schema

    def process(self, batch: Batch) -> None:
        data = batch.data
        # with `parted_by`, the hashes are those of a part of the keys
        hashes = None if self.parted_by else batch.hashes
        times, sparse, few = data.column(self._time), self._sparse, None
        if sparse is not None:
            few = sparse.split(times, batch.selection, self._late_before, self._panes)
        if few is None:
            late, panes = self._shape.split(times, batch.selection, self._late_before)
        else:
            late, panes = few.late, few.dense
        self._late.came(self._rows_of(batch))
        if late is not None:
            self._reject_late(batch, late)
        for _, rows in self._shape.partly_over(panes, self._watermark - self._lateness):
            self._late.note(*self._late_of(data, rows), partly=True)
        if few is not None and not self._shape.is_one_pane:
            over = few.rows[few.panes < self._shape.pane(self._watermark - self._lateness)]
            if len(over):
                self._late.note(*self._late_of(data, pa.array(over)), partly=True)
        if sparse is not None and (few is not None or sparse.starts):
            panes = self._add_sparse(sparse, data, few, panes)
        with self._open_rows.changing:
            for pane, rows in panes:
                self._add(pane, data, rows, hashes)
            self._settle()

    def _add_sparse(
        self, sparse: SparsePanes, data: pa.RecordBatch, few: Spread | None, panes: RowsOfPanes
    ) -> RowsOfPanes:
        """Adds the rows of sparse panes. `panes`: the rows of panes that should be dense. Returns those of panes that
        are.
        """
        self._make_dense(sparse, panes)
        with sparse.changing:
            for pane, rows in panes:
                if pane in sparse.starts:  # it stays so, because some of its groups are on disk
                    some = _numbers(rows, data.num_rows)
                    sparse.add(data, some, np.full(len(some), pane))
            if few is not None and len(few.rows):
                sparse.add(data, few.rows, few.panes)
            sparse.settle()
        if few is not None and self._shape.pane_end(int(few.panes.min(initial=END_OF_TIME))) <= self._watermark:
            self._merged.forget()
        return [(pane, rows) for pane, rows in panes if pane not in sparse.starts]

    def _make_dense(self, sparse: SparsePanes, rows: RowsOfPanes) -> None:
        """Gives a table of their own to sparse panes with many rows or groups. `rows`: the rows of a batch by pane."""
        for pane in sparse.grown(rows):
            self._move(sparse, pane)
            self._know(pane)

    def _move(self, sparse: SparsePanes, pane: int) -> None:
        """Moves the groups of a pane that are in memory to a table of its own."""
        late = sparse.late_keys(pane)
        if late.num_rows:
            self._reopened_in(pane).merge(late)
        with self._open_rows.changing, sparse.changing:
            for groups in sparse.leave(pane):
                self.put(pane, groups)

    def _settle(self) -> None:
        self._store.settle()
        self._spilled.settle()

    def _add(self, pane: int, data: pa.RecordBatch, rows: pa.Int32Array | None, hashes: pa.UInt64Array | None) -> None:
        self._know(pane)
        self._spilled.fetch(pane, data, self._key_indices, hashes, rows)
        table = self._store.table(pane)
        if self._partial:
            self._aggregator.merge(table, self._extras_of(pane), data, rows)
        else:
            self._aggregator.add(table, self._extras_of(pane), data, rows, hashes)
        if self._shape.pane_end(pane) <= self._watermark:
            self._merged.forget()
            if self._lateness:
                self._reopened_in(pane).resolve(data, self._key_indices, hashes=hashes, selection=rows)

    def _know(self, pane: int) -> None:
        at = bisect_left(self._panes, pane)
        if at == len(self._panes) or self._panes[at] != pane:
            self._panes.insert(at, pane)

    def _reopened_in(self, pane: int) -> GroupTable:
        """Returns the keys of the pane's rows that arrived after a window of the pane was emitted."""
        if pane not in self._reopened:
            self._reopened[pane] = self._keys_table()
        return self._reopened[pane]

    def _extras_of(self, pane: int) -> Extras:
        """Returns the extras of this pane. They are created if they do not exist."""
        extras = self._extras.get(pane)
        if extras is None:
            extras = self._extras[pane] = self._aggregator.extras(partial(self._open_rows.note, part=pane))
        return extras

    def _rows_of(self, batch: Batch) -> int:
        """Returns the number of rows of the input that a batch stands for."""
        if not self._partial:
            return batch.num_rows
        counts = batch.data.column(ROWS_COLUMN)
        return pc.sum(counts if batch.selection is None else counts.take(batch.selection)).as_py() or 0

    def _reject_late(self, batch: Batch, late: pa.Int32Array) -> None:
        if self._partial:
            self._late.note(*self._late_of(batch.data, late))
        else:
            self._late.reject(batch, late, self._watermark)

    def _late_of(self, data: pa.RecordBatch, rows: pa.Int32Array | None) -> tuple[Any, int, Any]:
        """Returns the times of late rows, the watermark, and how many rows of the input each of them stands for."""
        some = data if rows is None else data.select([PANE_COLUMN, ROWS_COLUMN] if self._partial else [self._time])
        some = some if rows is None else some.take(rows)
        if self._partial:
            return some.column(PANE_COLUMN).to_numpy(), self._watermark, some.column(ROWS_COLUMN).to_numpy()
        return some.column(TIME_COLUMN).to_numpy(), self._watermark, None

    def advance(self, watermark_ms: int) -> None:
        before = self._watermark
        if watermark_ms <= before:
            return
        self._emit_reopened(before)
        if self._sparse is not None and self._sparse.starts and self._shape.is_one_pane:
            self._advance_sparse(self._sparse, watermark_ms)
        else:
            ends = self._ends(before, watermark_ms)
            if self._sparse is not None:
                self._sparse.note_ended(len(ends))
            self._emit_windows(ends, self._merged)
            self._set_watermark(watermark_ms)
            self._drop_over()
        if self._every is not None and before // self._every != watermark_ms // self._every:
            self._emit_early()
        self._output.flush()

    def _advance_sparse(self, sparse: SparsePanes, watermark_ms: int) -> None:
        for watermark in sparse.steps(watermark_ms):
            ends = self._shape.ends(self._panes, self._watermark, watermark)
            groups = sparse.ended(self._watermark, watermark)
            self._emit_with_sparse(groups, ends, self._merged)
            self._set_watermark(watermark)
            self._drop_over()

    def _ends(self, after: int, upto: int | None = None) -> list[int]:
        """Returns, ascending, the ends of windows with rows that end in after < end <= upto."""
        return self._shape.ends(self._all_panes(), after, upto)

    def _all_panes(self) -> list[int]:
        """Returns the starts of all panes, ascending. A window of one pane that is sparse goes ways of its own."""
        if self._sparse is None or not self._sparse.starts or self._shape.is_one_pane:
            return self._panes
        return sorted({*self._panes, *self._sparse.starts})

    def _drop_over(self) -> None:
        """Drops the panes whose windows accept no more rows."""
        if self._sparse is not None and self._sparse.starts:
            with self._sparse.changing:
                self._sparse.drop_before(self._late_before)
                self._sparse.settle()
        over = bisect_left(self._panes, self._late_before)
        for pane in self._panes[:over]:
            with self._open_rows.changing:
                self._store.drop(pane, again=not self._open_rows.holds(pane))
            del self._extras[pane]
        if over:
            self._spilled.drop_to(self._panes[over - 1])
        del self._panes[:over]

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = self._shape.late_before(watermark_ms - self._lateness)
        if self._sparse is not None:
            self._sparse.watermark = watermark_ms

    def _emit_reopened(self, watermark: int) -> None:
        """Emits windows again that were emitted before and have received late rows since then. Only the groups with
        late rows are emitted.
        """
        groups, late = NO_GROUPS, self._reopened_keys()
        if self._sparse is not None and self._lateness:
            with self._sparse.changing:
                if self._shape.is_one_pane:
                    groups = self._sparse.emitted_again()
                else:
                    late.append(self._sparse.take_late_keys())
        panes = {pane for rows in late for pane in rows.column(PANE_COLUMN).to_pylist()}
        if not panes and not len(groups[0]):
            return
        ends = self._shape.reopened_ends(panes, watermark, self._lateness)
        touched = None
        if self._keys and ends:
            touched = TouchedGroups(self._keys_table(), range(len(self._keys)), self._shape, ends)
            for rows in late:
                touched.add(rows)
        self._emit_with_sparse(groups, ends, self._new_cache(), touched)
        self._reopened.clear()

    def _new_cache(self) -> MergedPanes:
        return MergedPanes(self._aggregator, self._store, self._extras, self._spilled, self._sparse, self._shape)

    def _keys_table(self) -> GroupTable:
        return GroupTable(self._aggregator.keys, [("count", None)])  # a table without columns would have no rows

    def _emit_early(self) -> None:
        """Emits all windows that end after the watermark, with the rows that they have so far."""
        merged, ends = self._new_cache(), self._ends(self._watermark)
        if self._sparse is None or not self._shape.is_one_pane:
            self._emit_windows(ends, merged)
            return
        pieces = self._sparse.pieces(self._watermark)
        while True:
            with self._sparse.changing:
                groups = next(pieces, None)
            if groups is None:
                return
            self._emit_with_sparse(groups, ends, merged)
            ends = []  # groups on disk come last

    def _emit_with_sparse(
        self, groups: SparseGroups, ends: list[int], merged: MergedPanes, touched: TouchedGroups | None = None
    ) -> None:
        """Emits windows in order of their ends. `groups`: those of sparse panes that are a window each. `ends`: the
        ends of the other windows. `merged`, `touched`: as for `_emit_windows`.
        """
        slots, panes = groups
        done = begin = 0
        while done < len(panes) and begin < len(ends):
            upto = int(np.searchsorted(panes, ends[begin]))
            self._emit_sparse(slots[done:upto], panes[done:upto])
            next_pane = panes[upto] if upto < len(panes) else END_OF_TIME
            dense = max(bisect_right(ends, next_pane), begin + 1)
            self._emit_windows(ends[begin:dense], merged, touched)
            done, begin = upto, dense
        self._emit_sparse(slots[done:], panes[done:])
        self._emit_windows(ends[begin:], merged, touched)

    def _emit_sparse(self, slots: Any, panes: Any) -> None:
        """Emits the results of groups of sparse panes."""
        if self._sparse is None or not len(slots):
            return
        for start in range(0, len(slots), CHUNK_ROWS):
            with self._sparse.changing:
                results = self._sparse_results(
                    self._sparse, slots[start : start + CHUNK_ROWS], panes[start : start + CHUNK_ROWS]
                )
            self._rows_emitted += results.num_rows
            self._output.add(results)
        self._windows_emitted += 1 + int(np.count_nonzero(np.diff(panes)))

    def _sparse_results(self, sparse: SparsePanes, slots: Any, panes: Any) -> pa.RecordBatch:
        results, ends = sparse.results(slots, panes)
        return self._result(results, panes, ends)

    def _emit_windows(self, ends: list[int], merged: MergedPanes, touched: TouchedGroups | None = None) -> None:
        """Emits the results of the windows with these ends, which are ascending. `merged`: the cache of windows.
        `touched`: the groups whose results are emitted, or None for all.
        """
        pieces = self._results(ends, merged)
        sparse = self._sparse if self._sparse is not None and self._sparse.starts else None
        while ends:
            with self._open_rows.changing, _NO_CHANGE if sparse is None else sparse.changing:
                results = next(pieces, None)
            if results is None:
                break
            results = results if touched is None else touched.only(results)
            self._rows_emitted += results.num_rows
            self._output.add(results)
        self._windows_emitted += len(ends)

    def _results(self, ends: list[int], merged: MergedPanes) -> Iterator[pa.RecordBatch]:
        """Yields the results of windows, in order of their ends, in pieces."""
        panes = self._all_panes()
        dense = self._merged_together(ends)
        runs: Iterable[tuple[bool, Numbers]] = [(dense is not None, np.array(ends, np.int64))]
        if dense is None and panes is not self._panes and self._sparse is not None:
            runs = self._sparse.runs(ends, self._panes)
        for together, run in runs:
            if together and self._sparse is not None:
                rows = ((pane, groups) for pane in dense or [] for groups in self._store.export(pane))
                for columns, each in self._sparse.windows(run, rows):
                    yield self._result(columns, self._shape.starts_of(each), each)
            else:
                for end in run.tolist():
                    yield from self._results_of(end, panes, merged)

    def _merged_together(self, ends: list[int]) -> list[int] | None:
        """Returns the dense panes of the windows with these ends, if these windows are merged together. Returns None if
        `MergedPanes` takes less time for those with a dense pane, since it merges each pane once for the windows of all
        watermarks.
        """
        if len(ends) < MANY_WINDOWS or self._sparse is None or self._shape.is_one_pane or self._aggregator.needs_slots:
            return None
        panes = self._panes[bisect_left(self._panes, self._shape.start(ends[0])) : bisect_left(self._panes, ends[-1])]
        if 2 * len(panes) > len(ends):
            return None
        groups = 0
        for pane in panes:
            table = self._store.whole(pane)
            groups += _MOST_TOGETHER + 1 if table is None else len(table)
            if groups > _MOST_TOGETHER:
                return None
        return panes

    def _results_of(self, end: int, panes: list[int], merged: MergedPanes) -> Iterator[pa.RecordBatch]:
        """Yields the results of a window that has a dense pane, or no sparse one. `panes`: all panes."""
        start = self._shape.start(end)
        some = panes[bisect_left(panes, start) : bisect_left(panes, end)]
        merged.slide(some, end)
        for result in merged.results(some):
            if result.num_rows:
                bounds = [repeated(ms, result.num_rows, _WINDOW_TIME) for ms in (start, end)]
                width = len(self._keys)
                columns = [*result.columns[:width], *bounds, *result.columns[width:]]
                columns.append(repeated(end - 1, result.num_rows))
                yield pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _result(self, results: list[pa.Array], starts: Any, ends: Any) -> pa.RecordBatch:
        bounds = [pa.array(times).view(_WINDOW_TIME) for times in (starts, ends)]
        width = len(self._keys)
        columns = [*results[:width], *bounds, *results[width:], pa.array(ends - 1)]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def state_schema(self) -> StateSchema:
        result = list(self._aggregator.schema)[len(self._keys) :]
        return {
            "kind": "window",
            "keys": columns_schema(self._aggregator.keys),
            "window": window_text(self._window),
            "allowed_lateness": self._lateness,
            **aggregates_schema(self._aggregates, result, self._aggregator.input),
        }

    def state_reader(self) -> StateReader:
        return {
            **aggregates_reader(self._keys, self._aggregates, self._aggregator.input),
            "window": stored_window(self._window),
            "allowed_lateness": self._lateness,
        }

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the results of all windows that still accept rows, with the rows that they have so far."""
        yield from self._results(self._ends(self._watermark - self._lateness), self._new_cache())
        if self._sparse is not None and self._shape.is_one_pane:
            for slots, panes in self._sparse.pieces(self._watermark - self._lateness):
                for start in range(0, len(slots), CHUNK_ROWS):
                    piece = slice(start, start + CHUNK_ROWS)
                    yield self._sparse_results(self._sparse, slots[piece], panes[piece])

    def group_count(self) -> int:
        sparse = 0 if self._sparse is None else self._sparse.count
        return self._store.statistics()["groups"] + self._spilled.count + sparse

    def own_facts(self) -> OwnFacts:
        return {"watermark": self._watermark, **self._late.facts()}

    def before_restore(self, saved: Sequence[Saved]) -> None:
        now, layout = self.state_schema()["aggregates"], self._aggregator.layout
        self._migration = migration_of(saved, now, self.forgets, layout, self._layout_in)
        if self._sparse is not None:
            self._sparse.before_restore(saved, now, self.forgets)
            self._sparse.watermark = last_watermark(saved, START_OF_TIME)

    def _layout_in(self, reader: Mapping[str, Any]) -> StateLayout:
        """Returns the layout of the state of the aggregates that `reader` describes."""
        return Aggregator(self._keys, *described(reader), order=TIME_COLUMN).layout

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._panes = sorted({*self._store.panes, *self._spilled.panes})
        for pane in self._panes:
            self._extras_of(pane)
        self._set_watermark(last_watermark(saved, START_OF_TIME))
        self._late.restore(self.state_parts.share(saved))
        if self._sparse is not None:
            self._move_dense(self._sparse)
        self._settle()

    def _move_dense(self, sparse: SparsePanes) -> None:
        """Moves the sparse groups of dense panes to their tables, after a restore. With another parallelism a subtask
        gets the groups of several: a pane may have been dense in one of them, and sparse in another.
        """
        both = [pane for pane in self._panes if pane in sparse.starts]
        if not both:
            return
        for _ in sparse.every():  # groups on disk too: those that stay sparse go back to disk below
            for pane in both:
                self._move(sparse, pane)
        with sparse.changing:
            sparse.settle()

    def _make_parts(self, context: OperatorContext) -> StateParts:
        """Returns the parts of the state: the groups, their extras, and the keys of groups that must be emitted
        again.

        The rows of extras and of these keys have the pane in their last column.
        """
        keys, pane = range(len(self._keys)), pa.field(PANE_COLUMN, pa.int64())
        owners = context.owners(self._keys)
        gathered, reopened = self._aggregator.gathered.append(pane), self._keys_table().export().schema.append(pane)
        self._open_rows = SlotRows(gathered)
        self._spilled = SpilledGroups(
            self,
            self._store,
            self._open_rows,
            self._aggregator.states,
            keys,
            context,
            self._current_migration,
            spills=self._aggregator.needs_slots,
            owners=owners,
        )
        sparse: list[StatePart] = []
        if self._sparse is not None:
            rows, load, schema = self._sparse.late_groups, self._sparse.restore_late_groups, self._sparse.late_schema
            sparse = [self._sparse, RowsPart("sparse_reopened", rows, load, schema=schema, keys=owners)]
        return StateParts(
            context,
            [
                TablesPart("tables", self._store, self._current_migration),
                RowsPart(
                    "gathered", self._gathered, self._load_gathered, schema=gathered, keys=owners, renewed=self._renewed
                ),
                RowsPart("reopened", self._reopened_keys, self._load_reopened, schema=reopened, keys=owners),
                self._spilled,
                *sparse,
            ],
            keyed=len(self._keys) > 0,
        )

    def _current_migration(self) -> StateMigration | None:
        return self._migration

    # The methods of `PaneGroups`

    def rows_of(self, pane: int, slots: pa.Int32Array) -> pa.RecordBatch:
        return self._aggregator.export_slots(self._store.table(pane), self._extras[pane], slots)

    def put(self, pane: int, rows: pa.RecordBatch) -> None:
        self._aggregator.merge(self._store.table(pane), self._extras_of(pane), rows)

    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        self._extras[pane].remove(slots)

    def shrink(self, pane: int) -> None:
        left = list(self._aggregator.export_of(self._store.table(pane), self._extras[pane]))
        self._store.replace(pane)
        del self._extras[pane]
        self._extras_of(pane)
        for rows in left:
            self.put(pane, rows)

    def bytes_of(self, pane: int) -> int:
        return self._store.table(pane).nbytes + self._extras_of(pane).nbytes

    # The parts of a checkpoint

    def _gathered(self) -> Batches | list[pa.RecordBatch]:
        if not self._aggregator.needs_slots or not self._panes:
            return []
        tables = ((pane, self._store.table(pane), self._extras[pane]) for pane in self._panes)
        return self._open_rows.cut(
            (pane, table, partial(self._saved_of, pane, table, extras)) for pane, table, extras in tables
        )

    def _saved_of(self, pane: int, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        return _with_pane(self._aggregator.gathered_of(table, extras, slots), pane)

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self._migration is None else self._migration.beside(rows)

    def _load_gathered(self, rows: pa.RecordBatch) -> None:
        pane, state = _without_pane(rows)
        self._aggregator.merge_gathered(self._store.table(pane), self._extras_of(pane), state)

    def _reopened_keys(self) -> list[pa.RecordBatch]:
        return [_with_pane(table.export(), pane) for pane, table in self._reopened.items()]

    def _load_reopened(self, rows: pa.RecordBatch) -> None:
        pane, keys = _without_pane(rows)
        self._reopened_in(pane).merge(keys)

    def close(self) -> None:
        if hasattr(self, "_store"):
            self._store.close()
            self._spilled.close()
            self._extras.clear()
            self._reopened.clear()
            self._merged.forget()
            if self._sparse is not None:
                self._sparse.close()
            self._late.tell_rest()

    def statistics(self) -> "ToldStep":
        if not hasattr(self, "_merged"):
            return {}
        figures = self._spilled.statistics(self._store.statistics())
        figures["bytes"] += sum(extras.nbytes for extras in list(self._extras.values()))
        if self._sparse is not None:
            figures["groups"] += self._sparse.count
            sparse = self._sparse.figures()
            figures["bytes"] += sparse["bytes"]
            figures["disk_bytes"] += sparse["disk_bytes"]
            figures["cold"] += sparse["cold"]
            figures["evicted_total"] += sparse["evicted_total"]
            figures["faults_total"] += sparse["faults_total"]
        return {
            **figures,
            "panes": len(self._panes) + (0 if self._sparse is None else len(self._sparse.starts)),
            **self._late.statistics(),
            "windows": self._windows_emitted,
            "results": self._rows_emitted,
            "merges": self._merged.merges,
        }


def _with_pane(batch: pa.RecordBatch, pane: int) -> pa.RecordBatch:
    return batch.append_column(PANE_COLUMN, repeated(pane, batch.num_rows))


def _numbers(rows: pa.Int32Array | None, count: int) -> Any:
    """Returns the indices of rows (numpy). `rows`: the indices, or None for all `count` rows."""
    return np.arange(count, dtype=np.int32) if rows is None else rows.to_numpy()


def _without_pane(rows: pa.RecordBatch) -> tuple[int, pa.RecordBatch]:
    """Returns the pane, and the rows without the column of the pane. The reverse of `_with_pane`."""
    return rows.column(rows.num_columns - 1)[0].as_py(), rows.drop_columns([PANE_COLUMN])


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_window(node: nodes.AggregateWindow, point: PlanPoint) -> PlanPoint:
    window, lateness = node.window, node.allowed_lateness_ms
    # The first phase combines rows, so two phases cannot emit late rows.
    alone = not node.keys and point.layout.parallelism > 1 and node.late is None
    if alone and not isinstance(window, CountWindow | SessionWindow) and not node.gives_time:
        return _in_two_phases(node, window, point)
    parted_by: Keys = ()
    if isinstance(window, CountWindow | SessionWindow):
        point = point.partition_by(node.keys, "window")
    else:
        point, parted_by = point.partition_by_some(node.keys, "window")
    point, aggregates = with_arguments(by_arrival(point) if node.gives_time else point, node.aggregates, node.keys)
    make: Callable[[], Operator]
    if isinstance(window, SessionWindow):
        make = partial(
            SessionAggregate, window.gap_ms, node.keys, aggregates, allowed_lateness_ms=lateness, time=window.time
        )
    elif isinstance(window, CountWindow):
        make = partial(CountAggregate, window.size, node.keys, aggregates)
    else:
        make = partial(
            WindowAggregate,
            window,
            node.keys,
            aggregates,
            allowed_lateness_ms=lateness,
            emit_every_ms=node.emit_every_ms,
            parted_by=parted_by,
        )
    return point.step(node.text(), make, id=node.id).late_to("late", node.late)


def _in_two_phases(node: nodes.AggregateWindow, window: TimeWindow, point: PlanPoint) -> PlanPoint:
    """Plans a window without keys in two phases. All rows go to one subtask, so each batch is combined to a few
    partial states before that.
    """
    lateness, every = node.allowed_lateness_ms, node.emit_every_ms
    point, aggregates = with_arguments(point, node.aggregates, node.keys)
    point = point.step(f"combine {node.text()}", partial(LocalCombine, window, (), aggregates)).partition_by(
        (), "window"
    )
    make = partial(
        WindowAggregate, window, (), aggregates, allowed_lateness_ms=lateness, emit_every_ms=every, partial=True
    )
    return point.step(node.text(), make, id=node.id)


PLANNERS: Planners = {nodes.AggregateWindow: plan_window}


def _read_with(reader: Mapping[str, Any]) -> Restorable:
    lateness = reader["allowed_lateness"]
    return WindowAggregate(window_of(reader), reader["keys"], aggregates_of(reader), allowed_lateness_ms=lateness)


STATE_READERS: StateReaders = dict.fromkeys(["tumbling", "hopping", "cumulative"], _read_with)
