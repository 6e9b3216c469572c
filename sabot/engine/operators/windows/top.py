"""The first n rows of each key and window, ordered by some columns.

Rows are kept by panes (`panes`), with a `RankTable` for each: a row that is among the first n of a window is among
the first n of its pane.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.ranked import NUMBER_COLUMN, RankTable
from sabot.api.nodes import windows as nodes
from sabot.api.windows import WINDOW_END, WINDOW_START, TimeWindow
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.base import CHUNK_ROWS, START_OF_TIME, TIME_COLUMN, OperatorContext, Saved, with_marks
from sabot.engine.operators.columns import key_table, time_index
from sabot.engine.operators.cuts import Rows, SlotRows
from sabot.engine.operators.keyed.top import CANNOT_CHANGE, RankedOperator, ranked_of, saved_columns
from sabot.engine.operators.late_rows import LateRows
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.output import OutputBuffer
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.timed import by_arrival
from sabot.engine.operators.spilled import FewerColumns, SpilledGroups
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import Batches, RowsPart, StateParts, last_watermark, only_columns_of
from sabot.engine.operators.windows.panes import (
    PANE_COLUMN,
    Numbers,
    RowsOfPanes,
    WindowShape,
    shape_of,
    stored_window,
    window_of,
    window_text,
)
from sabot.engine.operators.windows.sparse import MOST_KEYS, SparseState, Spread, TouchedGroups, few_rows
from sabot.engine.state.tables.idle import longest_idle
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_TIMESTAMP = pa.timestamp("ms", "UTC")
_SHARE = 0.4  # the share of the keys that leave the memory when the budget is exceeded


class WindowTopN(RankedOperator):
    """Emits the rows that are among the first `n` of their key and window: their columns, window_start, window_end
    (exclusive), and the rank if `rank` names a column for it.

    The rows of a window are emitted when the watermark reaches its end: windows in order of their ends, keys in any
    order, the rows of a key in order of rank. `by`, `ties`, `rank`, `parted_by`: as in TopN. `allowed_lateness_ms`:
    the time for which a window still accepts rows after its end. If a row comes in that time, the next `advance`
    emits all rows of the row's key again. A row is late if this time is over for all its windows. It is then emitted
    to the branch "late", without TIME_COLUMN.

    A snapshot copies nothing. With a directory, panes keep to the memory budget. A window of several panes is in
    memory while it is emitted.
    """

    def __init__(
        self,
        window: TimeWindow,
        keys: Sequence[str],
        n: int,
        by: Sequence[tuple[str, bool]],
        *,
        ties: str = "row_number",
        rank: str | None = None,
        allowed_lateness_ms: int = 0,
        parted_by: tuple[str, ...] = (),
    ) -> None:
        super().__init__(keys, n, by, ties, rank)
        self.parted_by = parted_by
        self._window, self._shape, self._lateness = window, shape_of(window), allowed_lateness_ms
        self._windows_emitted = self._arrivals = 0
        self._panes: _Panes | None = None
        self._fewer_columns: FewerColumns | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        context = replace(context, parted_by=self.parted_by)
        self._time = time_index(context.input, "a top_n of a window")
        self.open_rows(context)
        self._late = LateRows(context, self.step.text, place=self.step.origin.place)
        # by pane: the keys of rows that arrived after a window of the pane was emitted
        self._reopened: dict[int, GroupTable] = {}
        self._watermark = self._late_before = START_OF_TIME
        self._output = OutputBuffer(lambda batch: self.emit(batch))
        bounds = [pa.field(WINDOW_START, _TIMESTAMP), pa.field(WINDOW_END, _TIMESTAMP)]
        rank = [] if self.rank is None else [pa.field(self.rank, pa.int64())]
        result = pa.schema([*self.rows, *bounds, *rank])
        if len(set(result.names)) < len(result):
            raise UserError(
                "a column or the rank of a window's top_n has the name window_start or window_end",
                hint="give it another name",
            )
        self._schema = with_marks(result, op=False, timed=True)
        self._panes = _Panes(lambda: _Pane(self.keys, self.key_indices, self.table_of()))
        self._kept_rows = SlotRows(self._paned_schema())
        self._spilled = SpilledGroups(
            *(self._panes, self._panes, self._kept_rows, self.saved_schema(), self.key_indices, context),
            migration=lambda: self._fewer_columns,
            owners=[self.key_indices[place] for place in context.owners(self.names)],
        )
        self._sparse: SparseRows | None = None
        if few_rows(self._shape) > 1 and len(self.names) <= MOST_KEYS:
            self._sparse = SparseRows(
                *(self._shape, self.keys, self.key_indices, self.table_of, self._paned_schema(), context)
            )
        self.state_parts = self._make_parts(context)
        return self._schema

    @property
    def _of_panes(self) -> "_Panes":
        assert self._panes is not None, "open comes first"
        return self._panes

    def process(self, batch: Batch) -> None:
        data, shape = batch.data, self._shape
        # with `parted_by`, the hashes are those of a part of the keys
        hashes = None if self.parted_by else batch.hashes
        times, sparse, few = data.column(self._time), self._sparse, None
        if sparse is not None:
            few = sparse.split(times, batch.selection, self._late_before, self._of_panes.panes)
        if few is None:
            late, panes = shape.split(times, batch.selection, self._late_before)
        else:
            late, panes = few.late, few.dense
        self._late.came(batch.num_rows)
        if late is not None:
            self._late.reject(batch, late, self._watermark)
        for _, rows in shape.partly_over(panes, self._watermark - self._lateness):
            self._late.note((times if rows is None else times.take(rows)).to_numpy(), self._watermark, partly=True)
        if sparse is not None and (few is not None or sparse.starts):
            self._add_sparse(sparse, data, few, panes)
        with self._kept_rows.changing:
            for start, rows in panes:
                self._spilled.fetch(start, data, self.key_indices, hashes, rows)
                pane = self._of_panes.pane(start)
                slots = pane.known.resolve(data, self.key_indices, hashes=hashes, selection=rows)
                self._kept_rows.note(slots, start)
                pane.rows.add(slots, data, selection=rows, time=times, arrival=self._arrivals)
                pane.rows.settle()
            self._settle()
        for start, rows in [*panes, *([] if few is None or not self._lateness else few.over(shape, self._watermark))]:
            if shape.pane_end(start) <= self._watermark and self._lateness:
                if start not in self._reopened:
                    self._reopened[start] = self._keys_table()
                self._reopened[start].resolve(data, self.key_indices, hashes=hashes, selection=rows)
        self._arrivals += data.num_rows

    def _add_sparse(self, sparse: "SparseRows", data: pa.RecordBatch, few: Spread | None, panes: RowsOfPanes) -> None:
        """Adds the rows of sparse panes. `panes`: the rows of dense panes, and of those that become dense."""
        for start in sparse.grown(panes):
            with self._kept_rows.changing, sparse.changing:
                self._of_panes.put(start, sparse.leave(start))
        if few is not None and len(few.rows):
            times = data.column(self._time)
            if not self._shape.is_one_pane:
                over = few.panes < self._shape.pane(self._watermark - self._lateness)
                if over.any():
                    some = times.take(pa.array(few.rows[over]))
                    self._late.note(some.to_numpy(), self._watermark, partly=True)
            with sparse.changing:
                sparse.add(data, few, times, self._arrivals)

    def _settle(self) -> None:
        self._of_panes.tick += 1
        self._spilled.settle()

    def _keys_table(self) -> GroupTable:
        return GroupTable(self.keys, [("count", None)])  # a table without columns would have no rows

    def advance(self, watermark_ms: int) -> None:
        before = self._watermark
        if watermark_ms <= before:
            return
        self._emit_reopened(before)
        self._emit_windows(self._shape.ends(self._all_panes(), before, watermark_ms))
        self._output.flush()
        self._set_watermark(watermark_ms)
        if self._sparse is not None:
            with self._sparse.changing:
                self._sparse.drop_before(self._late_before)
        starts = self._of_panes.panes
        over = starts[: bisect_left(starts, self._late_before)]
        self._of_panes.drop(over)
        if over:
            self._spilled.drop_to(over[-1])

    def _all_panes(self) -> list[int]:
        """Returns the starts of all panes, ascending."""
        panes = self._of_panes.panes
        return panes if self._sparse is None or not self._sparse.starts else sorted({*panes, *self._sparse.starts})

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = self._shape.late_before(watermark_ms - self._lateness)

    def _emit_reopened(self, watermark: int) -> None:
        """Emits windows again that were emitted before and have received late rows since then. Only the keys with
        late rows are emitted.
        """
        if not self._reopened:
            return
        ends, touched = self._shape.reopened_ends(self._reopened, watermark, self._lateness), None
        if self.names and ends:
            touched = TouchedGroups(self._keys_table(), self.key_indices, self._shape, ends)
            for keys in self._reopened_keys():
                touched.add(keys)
        self._emit_windows(ends, touched)
        self._reopened.clear()

    def _emit_windows(self, ends: list[int], touched: TouchedGroups | None = None) -> None:
        """Emits the rows of windows, in order of their ends. `touched`: the keys whose rows are emitted, or None for
        all.
        """
        pieces = self._results(ends)
        while ends:
            with nullcontext() if self._sparse is None else self._sparse.changing:
                rows = next(pieces, None)
            if rows is None:
                break
            self._output.add(rows if touched is None else touched.only(rows))
        self._windows_emitted += len(ends)

    def _results(self, ends: list[int]) -> Iterator[pa.RecordBatch]:
        sparse, panes = self._sparse, self._of_panes.panes
        if sparse is None or not sparse.starts:
            for end in ends:
                yield from self._results_of(end, panes)
            return
        every = self._all_panes()
        for alone, run in sparse.runs(ends, panes):
            if alone:
                for columns, ranks, lasts in sparse.windows(run):
                    yield self._result(columns, ranks, self._shape.starts_of(lasts + 1), lasts + 1)
            else:
                for end in run.tolist():
                    yield from self._results_of(end, every)

    def _results_of(self, end: int, panes: list[int]) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a window that has a dense pane. `panes`: all panes."""
        start = self._shape.start(end)
        for table in self._tables(panes[bisect_left(panes, start) : bisect_left(panes, end)]):
            table.members()
            for columns, ranks, _, _ in table.pieces(CHUNK_ROWS):
                yield self._result(columns, ranks, *(np.full(len(ranks), ms) for ms in (start, end)))

    def _result(self, columns: list[pa.Array], ranks: pa.Array, starts: Any, ends: Any) -> pa.RecordBatch:
        bounds = [pa.array(times).view(_TIMESTAMP) for times in (starts, ends)]
        rank = [] if self.rank is None else [ranks]
        return pa.RecordBatch.from_arrays([*columns, *bounds, *rank, pa.array(ends - 1)], schema=self._schema)

    def _tables(self, starts: Sequence[int]) -> Iterator[RankTable]:
        """Yields tables with the first n rows of all these panes. The rows of a key are in one table."""
        if len(starts) == 1:
            for part in self._parts(starts[0]):
                yield part.rows
            return
        together = self._of_panes.new()
        for start in starts:
            for part in self._parts(start):
                together.absorb(part)
        yield together.rows

    def _parts(self, start: int) -> "Iterator[_Pane]":
        """Yields the keys of a pane that are in memory, then those on disk, piece by piece. The latter stay on disk. If
        the pane is sparse too, because some of its keys come from a subtask in which it was, those come first.
        """
        groups = [] if self._sparse is None or start not in self._sparse.starts else [self._sparse.pane(start)]
        if start in self._of_panes.panes:
            yield self._of_panes.pane(start)
            groups.extend(self._spilled.read(start))
        for rows in groups:
            part = self._of_panes.new()
            part.load(rows)
            yield part

    def _paned_schema(self) -> pa.Schema:
        return self.saved_schema().append(pa.field(PANE_COLUMN, pa.int64()))

    def state_schema(self) -> StateSchema:
        window, lateness = window_text(self._window), self._lateness
        return {"kind": "window top_n", **self.schema_facts(), "window": window, "allowed_lateness": lateness}

    def state_reader(self) -> StateReader:
        return {
            **self.reader_facts(),
            "window": stored_window(self._window),
            "allowed_lateness": self._lateness,
        }

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the first rows of all windows that still accept rows, as far as they have arrived."""
        yield from self._results(self._shape.ends(self._all_panes(), self._watermark - self._lateness))

    def _make_parts(self, context: OperatorContext) -> StateParts:
        schema = self._keys_table().export().schema.append(pa.field(PANE_COLUMN, pa.int64()))
        paned, owners = self._paned_schema(), context.owners(self.names)
        of_rows = [self.key_indices[place] for place in owners]
        rows: Any = {"schema": paned, "keys": of_rows, "renewed": partial(only_columns_of, paned)}
        return StateParts(
            context,
            [
                RowsPart("rows", self._cut_rows, self._load, **rows, what="the rows have", hint=CANNOT_CHANGE),
                RowsPart("reopened", self._reopened_keys, self._load_reopened, schema=schema, keys=owners),
                self._spilled,
                *([] if self._sparse is None else [self._sparse]),
            ],
            keyed=len(self.names) > 0,
        )

    def _cut_rows(self) -> Batches | list[pa.RecordBatch]:
        panes = [
            (start, pane.known, partial(self._pane_rows, start, pane))
            for start, pane in self._of_panes.items()
            if len(pane.known)
        ]
        return self._kept_rows.cut(panes) if panes else []

    def _pane_rows(self, start: int, pane: "_Pane", slots: pa.Int32Array) -> pa.RecordBatch:
        rows, schema = pane.rows.export(slots), self._paned_schema()
        rows = rows.append_column(schema.field(PANE_COLUMN), pa.array(np.full(rows.num_rows, start)))
        return rows.replace_schema_metadata(schema.metadata)

    def group_count(self) -> int:
        sparse = 0 if self._sparse is None else len(self._sparse.known)
        return self._spilled.count + sparse + sum(len(pane.known) for _, pane in self._of_panes.items())

    def own_facts(self) -> OwnFacts:
        return {"watermark": self._watermark, **self._late.facts(), "arrivals": self._arrivals}

    def before_restore(self, saved: Sequence[Saved]) -> None:
        now, reader = (
            self.saved_schema(),
            next((part.facts["reader"] for part in saved if "reader" in part.facts), None),
        )
        input = None if reader is None else schema_of_text(reader["input"])
        then = now if input is None else saved_columns(input)
        self._fewer_columns = None if then.equals(now) else FewerColumns(then, partial(only_columns_of, now))

    def after_restore(self, saved: Sequence[Saved]) -> None:
        for start in self._spilled.panes:
            self._of_panes.pane(start)
        self._arrivals = max((part.facts["arrivals"] for part in saved), default=0)
        self._set_watermark(last_watermark(saved, START_OF_TIME))
        self._late.restore(self.state_parts.share(saved))
        self._settle()

    def _load(self, data: pa.RecordBatch) -> None:
        starts = data.column(PANE_COLUMN).to_numpy()
        for start in np.unique(starts).tolist():
            self._of_panes.put(start, data.filter(pa.array(starts == start)))

    def _reopened_keys(self) -> list[pa.RecordBatch]:
        return [
            keys.export().append_column(PANE_COLUMN, pa.array(np.full(len(keys), start)))
            for start, keys in self._reopened.items()
        ]

    def _load_reopened(self, keys: pa.RecordBatch) -> None:
        start = keys.column(PANE_COLUMN)[0].as_py()
        self._reopened.setdefault(start, self._keys_table()).merge(keys.drop_columns([PANE_COLUMN]))

    def close(self) -> None:
        if self._panes is not None:
            self._panes.drop(self._panes.panes)
            self._spilled.close()
            self._reopened.clear()
            if self._sparse is not None:
                self._sparse.close()
            self._late.tell_rest()

    def statistics(self) -> "ToldStep":
        if self._panes is None:
            return {}
        panes = [pane for _, pane in self._panes.items()]
        sparse, nbytes = self._sparse, sum(pane.nbytes for pane in panes)
        figures = self._spilled.statistics(
            {
                "groups": sum(len(pane.known) for pane in panes) + (0 if sparse is None else len(sparse.known)),
                "cold": 0,
                "bytes": nbytes + (0 if sparse is None else sparse.nbytes),
                "evicted_total": 0,
                "faults_total": 0,
            }
        )
        return {
            "panes": len(panes) + (0 if sparse is None else len(sparse.starts)),
            "keys": figures["groups"],
            "rows": sum(len(pane.rows) for pane in panes) + (0 if sparse is None else sparse.rows) + figures["cold"],
            "bytes": figures["bytes"],
            "disk_bytes": figures["disk_bytes"],
            "cold": figures["cold"],
            "evicted_total": figures["evicted_total"],
            "faults_total": figures["faults_total"],
            **self._late.statistics(),
            "windows": self._windows_emitted,
        }


class _Pane:
    """The keys of a pane, or of a piece of it, and the rows of each key that are among the first n."""

    def __init__(self, keys: pa.Schema, indices: Sequence[int], rows: RankTable) -> None:
        self._keys, self._indices = keys, indices
        self.known, self.rows = key_table(keys), rows

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self.rows.nbytes

    def load(self, data: pa.RecordBatch) -> None:
        """Adds saved rows. Their keys must not be in the pane."""
        slots = self.known.resolve(data, self._indices)
        self.rows.load(slots, data, data.column(NUMBER_COLUMN), data.column(TIME_COLUMN))
        self.rows.settle()

    def absorb(self, other: "_Pane") -> None:
        """Adds the rows of another pane."""
        slots = other.known.slots().to_numpy()
        if len(slots):
            places = np.zeros(slots.max() + 1, np.int32)
            places[slots] = self.known.resolve(other._all_keys(), range(len(self._keys))).to_numpy()
            self.rows.absorb(other.rows, pa.array(places))

    def _all_keys(self) -> pa.RecordBatch:
        """Returns the keys of all slots, in the order of the slots."""
        if len(self._keys):
            return pa.RecordBatch.from_arrays(self.known.key_columns(), schema=self._keys)
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(self.known), pa.struct([])))  # no keys: one group


class SparseRows(SparseState):
    """The rows of all sparse panes: for each key and pane those that are among the first n.

    `keys`, `indices`: the key columns, and their indices in the input. `table_of`: makes an empty table of rows.
    `saved`: the columns of the rows in a checkpoint, of which the pane is the last.
    """

    refusal = ("the rows have", CANNOT_CHANGE)

    def __init__(
        self,
        shape: WindowShape,
        keys: pa.Schema,
        indices: Sequence[int],
        table_of: Callable[[], RankTable],
        saved: pa.Schema,
        context: OperatorContext,
    ) -> None:
        self._table_of, self._table = table_of, table_of()
        self._by = pa.schema([*keys, saved.field(PANE_COLUMN)])
        self._owned, self._indices = list(indices), [*indices, len(context.input)]
        owners = [indices[place] for place in context.owners(keys.names)] or [0]
        super().__init__(
            *(shape, key_table(self._by), self._indices, {"sparse": saved}),
            *([*indices, len(saved) - 1], context),
            owners=owners,
            spills=False,
            fewer=few_rows(shape),
        )

    def add(self, data: pa.RecordBatch, few: Spread, times: pa.Int64Array, arrivals: int) -> None:
        """Adds rows to their panes, which must not be dense. Call it within `changing`. `times`: the times of all rows
        of `data`. `arrivals`: the arrival number of its first row.
        """
        column = np.zeros(data.num_rows, np.int64)
        column[few.rows] = few.panes
        data, selection = data.append_column(PANE_COLUMN, pa.array(column)), pa.array(few.rows)
        slots = self.known.resolve(data, self._indices, selection=selection)
        self.place(slots, few.panes)
        self._table.add(slots, data, selection=selection, time=times, arrival=arrivals)
        self._table.settle()

    def leave(self, pane: int) -> pa.RecordBatch:
        """Removes a pane, and returns its rows. Call it within `changing`."""
        rows, slots = self.pane(pane), pa.array(self.slots_of(pane))
        self.note(slots)
        self.forget(slots)
        self.starts.discard(pane)
        return rows

    def pane(self, pane: int) -> pa.RecordBatch:
        """Returns the rows of a pane."""
        return self._table.export(pa.array(self.slots_of(pane)))

    def windows(self, ends: Numbers) -> Iterator[tuple[list[pa.Array], pa.Int64Array, Numbers]]:
        """Yields the rows of windows with these ends, all of whose panes are sparse, in pieces: their columns, their
        ranks, and the last ms of the window of each. `ends`: ascending.
        """
        for some, slots, _ in self.window_pieces(ends):
            rows = self._table.export(pa.array(slots))
            at, end_of_each = self.in_windows(some, self.shape.starts(rows.column(TIME_COLUMN).to_numpy()))
            each, ends_of_rows = rows.take(pa.array(at)), pa.array(end_of_each)
            keys = [*(each.column(index) for index in self._owned), ends_of_rows]
            known = key_table(self._by)
            into = known.resolve(pa.RecordBatch.from_arrays(keys, schema=self._by), range(len(keys)))
            table = self._table_of()
            table.load(into, each, each.column(NUMBER_COLUMN), pa.array(end_of_each - 1))
            table.members()
            for columns, ranks, _, lasts in table.pieces(CHUNK_ROWS):
                yield columns, ranks, lasts.to_numpy()

    # The methods of `SlotState`

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        rows, saved = self._table.export(self.taken(slots.to_numpy())), self.files["sparse"]
        panes = self.shape.starts(rows.column(TIME_COLUMN).to_numpy())
        return [pa.RecordBatch.from_arrays([*rows.columns, pa.array(panes)], schema=saved)]

    def put(self, rows: Rows) -> Numbers:
        (data,) = rows
        slots = self.known.resolve(data, self.keys_at)
        self.place(slots, data.column(PANE_COLUMN).to_numpy())
        self._table.load(slots, data, data.column(NUMBER_COLUMN), data.column(TIME_COLUMN))
        self._table.settle()
        found: Numbers = slots.to_numpy()
        return found

    def forget(self, slots: pa.Int32Array) -> None:
        self._table.remove(slots)
        self.free(slots)

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        return self.files_in(saved)

    def renewed(self, rows: Rows) -> Rows:
        """Returns rows without the columns that the program no longer keeps."""
        return [only_columns_of(self.files["sparse"], rows[0])]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self._table)

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self._table.nbytes + self.pane_of.nbytes


class _Panes:
    """The panes, by their starts. The object is given to `SpilledGroups` both as its `PaneTables` and as its
    `PaneGroups`. `new`: creates an empty pane.
    """

    def __init__(self, new: Callable[[], _Pane]) -> None:
        self.new = new
        self.tick = 0
        self._panes: dict[int, _Pane] = {}
        self._starts: list[int] = []  # ascending

    @property
    def panes(self) -> list[int]:
        return self._starts

    def items(self) -> list[tuple[int, _Pane]]:
        return list(self._panes.items())

    def pane(self, start: int) -> _Pane:
        pane = self._panes.get(start)
        if pane is None:
            pane = self._panes[start] = self.new()
            self._starts.insert(bisect_left(self._starts, start), start)
        pane.known.tick = self.tick
        return pane

    def drop(self, starts: Sequence[int]) -> None:
        """Removes panes that are over. A snapshot that is not saved yet keeps references to their rows."""
        gone = set(starts)
        self._starts = [start for start in self._starts if start not in gone]
        for start in gone:
            del self._panes[start]

    def table(self, pane: int) -> GroupTable:
        return self.pane(pane).known

    def longest_untouched(self) -> list[tuple[int, pa.Int32Array]]:
        panes = self.items()
        tables = [pane.known for _, pane in panes]
        leaving, _ = longest_idle(tables, int(sum(map(len, tables)) * _SHARE) + 1, self.tick)
        return [(start, slots) for (start, _), slots in zip(panes, leaving, strict=True) if len(slots)]

    def leave(self, pane: int, slots: pa.Int32Array) -> None:
        self.table(pane).remove(slots)

    def rows_of(self, pane: int, slots: pa.Int32Array) -> pa.RecordBatch:
        return self.pane(pane).rows.export(slots)

    def put(self, pane: int, rows: pa.RecordBatch) -> None:
        self.pane(pane).load(rows)

    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        self.pane(pane).rows.remove(slots)

    def shrink(self, pane: int) -> None:
        old, new = self._panes[pane], self.new()
        new.known.tick = self.tick
        self._panes[pane] = new
        left = old.known.slots()
        for start in range(0, len(left), CHUNK_ROWS):
            new.load(old.rows.export(left.slice(start, CHUNK_ROWS)))

    def bytes_of(self, pane: int) -> int:
        return self.pane(pane).nbytes


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_window_top_n(node: nodes.WindowTopN, point: PlanPoint) -> PlanPoint:
    point, parted_by = point.partition_by_some(node.keys, "ranked")
    make = partial(
        WindowTopN,
        node.window,
        node.keys,
        node.n,
        node.by,
        ties=node.ties,
        rank=node.rank,
        allowed_lateness_ms=node.allowed_lateness_ms,
        parted_by=parted_by,
    )
    point = by_arrival(point) if node.gives_time else point
    return point.step(node.text(), make, id=node.id).late_to("late", node.late)


PLANNERS: Planners = {nodes.WindowTopN: plan_window_top_n}


def _read_with(reader: Mapping[str, Any]) -> WindowTopN:
    return WindowTopN(window_of(reader), **ranked_of(reader), allowed_lateness_ms=reader["allowed_lateness"])


STATE_READERS: StateReaders = {"window top_n": _read_with}
