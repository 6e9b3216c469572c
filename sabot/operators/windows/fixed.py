"""Aggregates in windows of event time: tumbling, hopping and cumulative.

Rows are aggregated once, into panes that do not overlap (see `panes`). Only panes are state; windows that are merged of several panes
are a cache (`_Merged`).
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable, SlidingTable
from sabot._cython.windows.window import split_panes
from sabot.api.nodes import windows as nodes
from sabot.api.windows import CountWindow, SessionWindow
from sabot.errors import UserError
from sabot.operators.aggregates.aggregator import AggregateColumn, Aggregator, aggregates_reader, aggregates_schema
from sabot.operators.aggregates.arguments import with_arguments
from sabot.operators.aggregates.carried import Carried, Shape, carried
from sabot.operators.aggregates.combining import ROWS_COLUMN, LocalCombine, combined_input, repeated
from sabot.operators.aggregates.extras import Extras
from sabot.operators.base import CHUNK_ROWS, START_OF_TIME, TIME_COLUMN, Operator, OperatorContext, Saved
from sabot.operators.columns import time_index
from sabot.operators.keeping import Batches, Columns, Keeper, Keeping, StoredTables, columns_schema, last_watermark
from sabot.operators.keyed.running import CountAggregate
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers, aggregates_of, described, window_of
from sabot.operators.rows.timed import by_arrival
from sabot.operators.slotted import SlotRows
from sabot.operators.windows.panes import PANE_COLUMN, TimeWindow, WindowShape, window_words
from sabot.operators.windows.sessions import SessionAggregate
from sabot.state.tables.store import TableStore

__all__ = ["PLACES", "READERS", "WindowAggregate"]

_MOST_NUMBERS = 2**30  # how many panes a SlidingTable numbers before it begins anew
_INT64 = pa.int64()
_FIRST_SLOT = pa.scalar(0, pa.int32())  # pyarrow takes 30 µs to make a scalar of a number where pandas is not installed
_WINDOW_TIME = pa.timestamp("ms", tz="UTC")


class WindowAggregate(Keeping):
    """`aggregates` by `keys` and window: emits the keys, window_start, window_end (exclusive), the aggregates, and TIME_COLUMN, which is
    the last ms of the window.

    A window is emitted when the watermark reaches its end: windows in order of their ends, groups in any order; a window without rows
    is not emitted. allowed_lateness_ms: for so long after the end of a window, a row that comes for it makes the next `advance` emit its
    group again, with all its rows. A row is late when all its windows are over, lateness included: it leaves by the branch "late",
    without TIME_COLUMN.
    emit_every_ms: when the watermark passes a multiple of it, windows that are not yet complete are emitted as they are.
    partial: batches are what LocalCombine emits. Their late rows are counted, but cannot leave by the branch.

    With a directory, panes keep to the memory budget; the cache of a hopping or cumulative window does not count.
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
        id: str = "",
    ) -> None:
        if emit_every_ms is not None and emit_every_ms < 1:
            raise UserError(f"emit_every: {emit_every_ms} ms is no interval", hint="1 ms or more")
        self.id = id
        self._window = window
        self._shape = WindowShape(window)
        self._keys, self._aggregates = tuple(keys), tuple(aggregates)
        self._lateness, self._every, self._partial = allowed_lateness_ms, emit_every_ms, partial
        self._late_rows = self._windows_emitted = self._rows_emitted = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        rows = combined_input(context.input) if self._partial else context.input
        time_index(rows, "windows of event time")
        self._time = context.input.get_field_index(PANE_COLUMN if self._partial else TIME_COLUMN)
        self._aggregator = Aggregator(self._keys, self._aggregates, rows, order=TIME_COLUMN)
        self._late = context.branches.get("late")
        self._store = self._aggregator.store(context)
        self._extras: dict[int, Extras] = {}
        self._panes: list[int] = []  # the starts of the panes that hold rows, ascending
        # pane -> the keys of rows that came for it after one of its windows was emitted
        self._reopened: dict[int, GroupTable] = {}
        self._merged = self._cache()
        self.kept = self._keeper(context)
        self._carried: Carried | None = None
        self._watermark = START_OF_TIME
        self._late_before = START_OF_TIME
        result = self._aggregator.schema
        bounds = [pa.field("window_start", _WINDOW_TIME), pa.field("window_end", _WINDOW_TIME)]
        time = pa.field(TIME_COLUMN, _INT64)
        fields = [*list(result)[: len(self._keys)], *bounds, *list(result)[len(self._keys) :], time]
        self._schema = pa.schema(fields)
        if len(set(self._schema.names)) < len(fields):
            raise UserError("an aggregate or a key of a window is called window_start or window_end", hint="rename it")
        return self._schema

    def process(self, batch: Batch) -> None:
        data = batch.data
        late, panes = split_panes(
            data.column(self._time),
            self._shape.step,
            self._shape.offset,
            batch.selection,
            late_before=self._late_before,
        )
        if late is not None:
            self._refuse(batch, late)
        with self._beside.changing:
            for pane, rows in panes:
                self._add(pane, data, rows, batch.hashes)
            self._store.settle()

    def _add(self, pane: int, data: pa.RecordBatch, rows: pa.Int32Array | None, hashes: pa.UInt64Array | None) -> None:
        at = bisect_left(self._panes, pane)
        if at == len(self._panes) or self._panes[at] != pane:
            self._panes.insert(at, pane)
            self._extras[pane] = self._new_extras(pane)
        table = self._store.table(pane)
        if self._partial:
            self._aggregator.merge(table, self._extras[pane], data, rows)
        else:
            self._aggregator.add(table, self._extras[pane], data, rows, hashes)
        if pane + self._shape.step <= self._watermark:
            self._merged.forget()
            if self._lateness:
                if pane not in self._reopened:
                    self._reopened[pane] = self._keys_table()
                keys = [data.schema.get_field_index(name) for name in self._keys]
                self._reopened[pane].resolve(data, keys, hashes=hashes, selection=rows)

    def _new_extras(self, pane: int) -> Extras:
        return self._aggregator.extras(partial(self._beside.note, pane))

    def _refuse(self, batch: Batch, late: pa.Int32Array) -> None:
        if self._partial:
            self._late_rows += pc.sum(batch.data.column(ROWS_COLUMN).take(late)).as_py()
            return
        self._late_rows += len(late)
        if self._late is not None:
            self._late(batch.with_data(batch.data.drop_columns([TIME_COLUMN]).take(late)))

    def advance(self, watermark_ms: int) -> None:
        before = self._watermark
        if watermark_ms <= before:
            return
        self._emit_reopened(before)
        for end in self._shape.ends(self._panes, before, watermark_ms):
            self._emit_window(self._merged, end)
        self._set_watermark(watermark_ms)
        if self._every is not None and before // self._every != watermark_ms // self._every:
            self._emit_early()
        over = bisect_left(self._panes, self._late_before)
        for pane in self._panes[:over]:
            with self._beside.changing:
                self._store.drop(pane, again=not self._beside.holds(pane))
            del self._extras[pane]
        del self._panes[:over]

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = self._shape.late_before(watermark_ms - self._lateness)

    def _emit_reopened(self, watermark: int) -> None:
        """Emits anew the windows for which rows have come since they were emitted; only the groups of these rows."""
        if not self._reopened:
            return
        merged = self._cache()
        for end in self._shape.reopened_ends(self._reopened, watermark, self._lateness):
            touched = self._keys_table()
            for pane in self._reopened:
                if self._shape.start(end) <= pane < end:
                    touched.merge(self._reopened[pane].export())
            self._emit_window(merged, end, touched)
        self._reopened.clear()

    def _cache(self) -> "_Merged":
        return _Merged(self._aggregator, self._store, self._extras, slides=not self._shape.grows)

    def _keys_table(self) -> GroupTable:
        return GroupTable(self._aggregator.keys, [("count", None)])  # one column, so that states without keys have rows

    def _emit_early(self) -> None:
        """Emits the windows that end after the watermark as they are now."""
        if self._panes:
            merged = self._cache()
            for end in self._shape.ends(self._panes, self._watermark):
                self._emit_window(merged, end)

    def _emit_window(self, merged: "_Merged", end: int, touched: GroupTable | None = None) -> None:
        """Emits the results of a window. touched: the keys whose results are emitted; None: all."""
        pieces = self._results(merged, end, touched)
        while True:
            with self._beside.changing:
                results = next(pieces, None)
            if results is None:
                break
            self._rows_emitted += results.num_rows
            self.emit(Batch(results))
        self._windows_emitted += 1

    def _results(self, merged: "_Merged", end: int, touched: GroupTable | None = None) -> Iterator[pa.RecordBatch]:
        start = self._shape.start(end)
        panes = self._panes[bisect_left(self._panes, start) : bisect_left(self._panes, end)]
        merged.slide(panes)
        width = len(self._keys)
        keys = list(range(width))
        for result in merged.results(panes):
            if touched is not None and width:
                result = result.filter(pc.greater_equal(touched.resolve(result, keys, insert=False), _FIRST_SLOT))
            rows = result.num_rows
            if not rows:
                continue
            bounds = [repeated(ms, rows, _WINDOW_TIME) for ms in (start, end)]
            columns = [*result.columns[:width], *bounds, *result.columns[width:]]
            columns.append(repeated(end - 1, rows))
            yield pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def state_schema(self) -> dict[str, Any]:
        result = list(self._aggregator.schema)[len(self._keys) :]
        return {
            "kind": "window",
            "keys": columns_schema(self._aggregator.keys),
            "window": window_words(self._window),
            "allowed_lateness": self._lateness,
            **aggregates_schema(self._aggregates, result, self._aggregator.input),
        }

    def state_reader(self) -> dict[str, Any]:
        return {
            **aggregates_reader(self._keys, self._aggregates, self._aggregator.input),
            "window": [type(self._window).__name__, asdict(self._window)],
            "allowed_lateness": self._lateness,
        }

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The windows that are not over, lateness included, as they are now."""
        if self._panes:
            merged = self._cache()
            for end in self._shape.ends(self._panes, self._watermark - self._lateness):
                yield from self._results(merged, end)

    def group_count(self) -> int:
        return self._store.statistics()["groups"]

    def noted(self) -> dict[str, Any]:
        return {"watermark": self._watermark, "late_rows": self._late_rows}

    def foretell(self, saved: Sequence[Saved]) -> None:
        now, shape = self.state_schema()["aggregates"], self._aggregator.shape
        self._carried = carried(saved, now, self.forgets, shape, self._shape_in)

    def _shape_in(self, reader: Mapping[str, Any]) -> Shape:
        """Where the state of the aggregates that `reader` describes stands."""
        return Aggregator(self._keys, *described(reader), order=TIME_COLUMN).shape

    def recall(self, saved: Sequence[Saved]) -> None:
        self._panes = sorted(self._store.panes)
        for pane in self._panes:
            self._extras.setdefault(pane, self._new_extras(pane))
        self._set_watermark(last_watermark(saved, START_OF_TIME))
        self._late_rows = self.kept.once(saved, "late_rows")
        self._store.settle()

    def _keeper(self, context: OperatorContext) -> Keeper:
        """Keeps the groups, what the kernel cannot keep of them, and the keys of windows that must be emitted again.

        The last column of the latter two is the pane of the row.
        """
        keys, pane = range(len(self._keys)), pa.field(PANE_COLUMN, pa.int64())
        gathered, reopened = self._aggregator.gathered.append(pane), self._keys_table().export().schema.append(pane)
        self._beside = SlotRows(gathered)
        return Keeper(
            context,
            [
                StoredTables("tables", self._store, lambda: self._carried),
                Columns(
                    "gathered", self._gathered, self._load_gathered, schema=gathered, keys=keys, renewed=self._renewed
                ),
                Columns("reopened", self._reopened_keys, self._load_reopened, schema=reopened, keys=keys),
            ],
            keyed=len(self._keys) > 0,
        )

    def _gathered(self) -> Batches | list[pa.RecordBatch]:
        if not self._aggregator.needs_slots or not self._panes:
            return []
        tables = ((pane, self._store.table(pane), self._extras[pane]) for pane in self._panes)
        return self._beside.cut(
            (pane, table, partial(self._saved_of, pane, table, extras)) for pane, table, extras in tables
        )

    def _saved_of(self, pane: int, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        return _with_pane(self._aggregator.gathered_of(table, extras, slots), pane)

    def _renewed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows if self._carried is None else self._carried.beside(rows)

    def _load_gathered(self, rows: pa.RecordBatch) -> None:
        pane, state = _without_pane(rows)
        extras = self._extras.setdefault(pane, self._new_extras(pane))
        self._aggregator.merge_gathered(self._store.table(pane), extras, state)

    def _reopened_keys(self) -> list[pa.RecordBatch]:
        return [_with_pane(table.export(), pane) for pane, table in self._reopened.items()]

    def _load_reopened(self, rows: pa.RecordBatch) -> None:
        pane, keys = _without_pane(rows)
        if pane not in self._reopened:
            self._reopened[pane] = self._keys_table()
        self._reopened[pane].merge(keys)

    def close(self) -> None:
        if hasattr(self, "_store"):
            self._store.close()
            self._extras.clear()
            self._reopened.clear()
            self._merged.forget()

    def statistics(self) -> dict[str, Any]:
        if not hasattr(self, "_merged"):
            return {}
        figures = self._store.statistics()
        return {
            **figures,
            "bytes": figures["bytes"] + sum(extras.nbytes for extras in list(self._extras.values())),
            "panes": len(self._panes),
            "late_rows": self._late_rows,
            "windows": self._windows_emitted,
            "results": self._rows_emitted,
            "merges": self._merged.merges,
        }


class _Merged:
    """Windows of several panes, asked for in order of their ends: one table, which panes enter and leave.

    A slide costs what the groups of its panes cost, however long the window is and however many groups it has: each pane enters once,
    leaves once, and in between is turned once from the back to the front, as `SlidingTable` describes. It keeps at most twice the panes.
    """

    def __init__(self, aggregator: Aggregator, store: TableStore, extras: dict[int, Extras], *, slides: bool) -> None:
        self._aggregator, self._store, self._extras = aggregator, store, extras
        self._slides = slides  # panes leave one by one; else they leave all at once, and there is no front and no back
        self._keys = list(range(len(aggregator.keys)))
        self._window = SlidingTable(aggregator.keys, aggregator.kernel)
        self._gathered = aggregator.extras()  # by the slots of the window; of all its panes
        self._gathered_back = aggregator.extras()
        self._front: deque[_Turned] = deque()
        self._back: list[_Come] = []  # has all panes of a window that does not slide
        self._number = 0  # the number of the pane that entered last
        self.merges = 0

    def forget(self) -> None:
        """Clears the cache, since panes have changed."""
        self._window.clear()
        self._gathered.clear()
        self._gathered_back.clear()
        self._front.clear()
        self._back.clear()
        self._number = 0

    def slide(self, panes: list[int]) -> None:
        """Makes the window consist of these panes."""
        if len(panes) == 1:
            return
        while self._front and self._front[0].pane < panes[0]:
            self._leave(self._front.popleft())
        if (self._back and self._back[0].pane < panes[0]) or self._number > _MOST_NUMBERS:
            self.forget()  # after a gap, or when the next cumulative window begins
        last = self._back[-1].pane if self._back else self._front[-1].pane if self._front else None
        for pane in panes:
            if last is None or pane > last:
                self._enter(pane)
        if self._slides and not self._front:
            self._turn()

    def results(self, panes: list[int]) -> Iterator[pa.RecordBatch]:
        """The results of the window, in pieces. panes: those of the last `slide`."""
        if len(panes) == 1:
            return self._aggregator.results(self._store, panes[0], self._extras[panes[0]])
        return self._aggregator.results_of(self._window, self._gathered)

    def _enter(self, pane: int) -> None:
        self._number += 1
        known = None
        for table, whole in self._tables(pane):
            slots = self._window.enter(table, self._number if self._slides else 0)
            self.merges += 1
            self._gather(self._gathered, table, pane, slots)
            if self._slides:
                self._gather(self._gathered_back, table, pane, slots)
            known = slots if whole else None
        self._back.append(_Come(pane, self._number, known))

    def _turn(self) -> None:
        """Moves all panes of the back to the front."""
        self._gathered_back.clear()
        for pane, number, known in reversed(self._back):
            left = []
            for table, whole in self._tables(pane):
                slots = known if whole else None
                if slots is None:  # some of the pane's groups were, or are, on disk
                    slots = self._window.resolve(table.export(), self._keys, insert=False)
                later = self._kept(self._gathered_back, slots)
                self._window.turn(table, number, slots)
                self.merges += 1
                self._gather(self._gathered_back, table, pane, slots)
                left.append((slots, later))
            self._front.appendleft(_Turned(pane, number, left))
        self._gathered_back.clear()
        self._back.clear()

    def _leave(self, pane: "_Turned") -> None:
        for slots, later in reversed(pane.left):
            self._window.leave(pane.number, slots)
            self.merges += 1
            if self._aggregator.needs_slots:
                self._gathered.remove(slots)
                self._add(self._gathered, slots, later)
                self._add(self._gathered, slots, self._kept(self._gathered_back, slots))

    def _tables(self, pane: int) -> Iterator[tuple[GroupTable, bool]]:
        """The pane's groups: (its table, True); where some are on disk, (a table with a piece of them, False) for each piece."""
        table = self._store.whole(pane)
        if table is not None:
            yield table, True
            return
        for state in self._store.export(pane):
            piece = self._aggregator.table()
            piece.merge(state)
            yield piece, False

    # What the kernel cannot keep, by the slots of the window

    def _gather(self, into: Extras, table: GroupTable, pane: int, slots: pa.Int32Array) -> None:
        if self._aggregator.needs_slots:
            self._add(into, slots, self._aggregator.export_gathered(table, self._extras[pane]))

    def _kept(self, extras: Extras, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        if not self._aggregator.needs_slots:
            return []
        names = self._aggregator.gathered.names[len(self._keys) :]
        pieces = [slots.slice(start, CHUNK_ROWS) for start in range(0, len(slots), CHUNK_ROWS)]
        return [pa.RecordBatch.from_arrays(extras.states(piece), names=names) for piece in pieces]

    def _add(self, into: Extras, slots: pa.Int32Array, states: Iterable[pa.RecordBatch]) -> None:
        start = 0
        for state in states:
            into.merge(slots.slice(start, state.num_rows), state)
            start += state.num_rows


class _Come(NamedTuple):
    """A pane that entered the window, and is in the back."""

    pane: int
    number: int
    slots: pa.Int32Array | None  # those of its groups in the window; None: it entered in pieces


class _Turned(NamedTuple):
    """A pane in the front. left: for each piece of it, the slots in the window, and what later panes of the front have gathered."""

    pane: int
    number: int
    left: list[tuple[pa.Int32Array, list[pa.RecordBatch]]]


def _with_pane(batch: pa.RecordBatch, pane: int) -> pa.RecordBatch:
    return batch.append_column(PANE_COLUMN, repeated(pane, batch.num_rows))


def _without_pane(rows: pa.RecordBatch) -> tuple[int, pa.RecordBatch]:
    """(pane, the rows) of a batch that `_with_pane` made."""
    return rows.column(rows.num_columns - 1)[0].as_py(), rows.drop_columns([PANE_COLUMN])


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_window(node: nodes.AggregateWindow, site: Site) -> Site:
    window, lateness = node.window, node.allowed_lateness_ms
    # With two phases late rows cannot leave.
    alone = not node.keys and site.layout.parallelism > 1 and node.late is None
    if alone and not isinstance(window, CountWindow | SessionWindow) and not node.gives_time:
        return _in_two_phases(node, window, site)
    site = site.together(node.keys, "window")
    site, aggregates = with_arguments(by_arrival(site) if node.gives_time else site, node.aggregates)
    make: Callable[[], Operator]
    if isinstance(window, SessionWindow):
        make = partial(
            SessionAggregate, window.gap_ms, node.keys, aggregates, allowed_lateness_ms=lateness, time=window.time
        )
    elif isinstance(window, CountWindow):
        make = partial(CountAggregate, window.size, node.keys, aggregates)
    else:
        every = node.emit_every_ms
        make = partial(
            WindowAggregate, window, node.keys, aggregates, allowed_lateness_ms=lateness, emit_every_ms=every
        )
    return site.step(node.text(), make, id=node.id).beside("late", node.late)


def _in_two_phases(node: nodes.AggregateWindow, window: TimeWindow, site: Site) -> Site:
    """Without keys all rows go to one subtask, so each batch is combined before it goes there."""
    lateness, every = node.allowed_lateness_ms, node.emit_every_ms
    site, aggregates = with_arguments(site, node.aggregates)
    site = site.step(f"combine {node.text()}", partial(LocalCombine, window, (), aggregates)).together((), "window")
    make = partial(
        WindowAggregate, window, (), aggregates, allowed_lateness_ms=lateness, emit_every_ms=every, partial=True
    )
    return site.step(node.text(), make, id=node.id)


PLACES: Places = {nodes.AggregateWindow: place_window}


def _read_with(reader: Mapping[str, Any]) -> Operator:
    lateness = reader["allowed_lateness"]
    return WindowAggregate(window_of(reader), reader["keys"], aggregates_of(reader), allowed_lateness_ms=lateness)


READERS: Readers = dict.fromkeys(["tumbling", "hopping", "cumulative"], _read_with)
