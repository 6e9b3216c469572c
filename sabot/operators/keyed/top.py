"""The first n rows of each key, ordered by some columns: of all rows so far (TopN), and of the rows of a window (WindowTopN).

A `RankTable` keeps the rows, and says which are among the first n, and what a batch has changed in that.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.ranked import NUMBER_COLUMN, RankTable
from sabot._cython.windows.window import split_panes
from sabot.api.nodes import keyed as nodes
from sabot.api.nodes.windows import WindowTopN as WindowTopNNode
from sabot.api.windows import WINDOW_END, WINDOW_START
from sabot.codecs.json import schema_text
from sabot.config import is_whole
from sabot.errors import InternalError, UserError
from sabot.operators.base import (
    CHUNK_ROWS,
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    with_marks,
    without_marks,
)
from sabot.operators.columns import key_columns, key_table, time_index
from sabot.operators.keeping import Batches, Columns, Keeper, Keeping, columns_schema, last_watermark
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers, window_of
from sabot.operators.rows.timed import by_arrival
from sabot.operators.slotted import Rows, SlotRows, Slotted
from sabot.operators.windows.panes import PANE_COLUMN, TimeWindow, WindowShape, window_words

__all__ = ["PLACES", "READERS", "TIES", "TopN", "WindowTopN"]

TIES = ("row_number", "rank", "dense_rank")
_TIMESTAMP = pa.timestamp("ms", "UTC")
_CANNOT_CHANGE = "columns of a top_n cannot change between a checkpoint and its restore"
_READ_SLOTS = 8_192  # the rows of so many keys are read at once
_FIRST_SLOT = pa.scalar(0, pa.int32())

Array: TypeAlias = pa.Array


class _Ranked(Keeping):
    """The base of both: their arguments, and the columns of their rows."""

    def __init__(
        self, keys: Sequence[str], n: int, by: Sequence[tuple[str, bool]], ties: str, rank: str | None, id: str
    ) -> None:
        if not is_whole(n, 1):
            raise UserError(f"top_n: {n!r} is no number of rows", hint="a whole number, 1 or more")
        if ties not in TIES:
            raise UserError(f"top_n: ties {ties!r} is unknown", hint=f"one of {', '.join(TIES)}")
        self.id = id
        self._names, self._n, self._by = list(keys), n, [(name, bool(descending)) for name, descending in by]
        self._ties, self._rank = ties, rank

    def _open_rows(self, context: OperatorContext, *, changes: bool = False, ranked: bool = False) -> None:
        """Sets the columns of rows, and how their tables are made. UserError for rows of which no table can be made."""
        self._context = context
        self._rows = without_marks(context.input)
        self._keys, self._key_indices = key_columns(self._names, context.input)
        key_table(self._keys)
        for name, _ in self._by:
            if name not in self._rows.names:
                raise UserError(
                    f"top_n by {name!r}: there is no such column", hint=f"there are {', '.join(self._rows.names)}"
                )
        if self._rank is not None and self._rank in self._rows.names:
            raise UserError(f"top_n: there is a column {self._rank!r} already", hint="give the rank another name")
        by = [(self._rows.get_field_index(name), descending) for name, descending in self._by]

        def table() -> RankTable:
            return RankTable(self._rows, by, self._n, ties=self._ties, ranked=ranked, changes=changes)

        try:
            table()
        except TypeError as error:
            raise UserError(f"top_n: {error}", hint="leave the column out, or cast it") from error
        self._table_of: Callable[[], RankTable] = table

    def _saved_schema(self) -> pa.Schema:
        return self._rows.append(pa.field(NUMBER_COLUMN, pa.int64())).append(pa.field(TIME_COLUMN, pa.int64()))

    def _schema_words(self) -> dict[str, Any]:
        return {
            "keys": columns_schema(self._keys),
            "n": self._n,
            "by": [[name, "descending" if descending else "ascending"] for name, descending in self._by],
            "ties": self._ties,
            "columns": columns_schema(self._rows),
        }

    def _reader_words(self) -> dict[str, Any]:
        return {
            "keys": self._names,
            "n": self._n,
            "by": [list(each) for each in self._by],
            "ties": self._ties,
            "rank": self._rank,
            "input": schema_text(self._context.input),
        }


class TopN(_Ranked):
    """The rows that are among the first `n` of their key, ordered by the columns of `by` (name, descending), as changes.

    Null comes after NaN, and NaN after all numbers, whether descending or not; of equal rows the first to arrive comes first. ties says
    which rows are among the first n: "row_number", n rows; "rank", the rows with fewer than n better ones; "dense_rank", the rows with
    one of the n best values. rank: the name of a column with that number (int64); with "row_number" the key and the rank are unique, and
    a rank that gets another row is an update pair. changes: the input is changes, and all rows are kept; else only the first n are.

    After each batch it emits what has changed: first the rows that leave the result, then those that enter it. A row that leaves has its
    own event time. Rows count in order of arrival; of equal rows the newest is taken away. Where there is a directory, state keeps to the
    memory budget.
    """

    def __init__(
        self,
        keys: Sequence[str],
        n: int,
        by: Sequence[tuple[str, bool]],
        *,
        ties: str = "row_number",
        rank: str | None = None,
        changes: bool = False,
        id: str = "",
    ) -> None:
        super().__init__(keys, n, by, ties, rank, id)
        self._changes = changes
        self._state: _KeptRanks | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        if self._changes != (OP_COLUMN in context.input.names):
            raise InternalError(
                f"top_n over {'changes' if self._changes else 'rows'}: the input has {context.input.names}"
            )
        self._open_rows(context, changes=self._changes, ranked=self._rank is not None)
        self._state = _KeptRanks(self._table_of(), self._keys, self._key_indices, self._saved_schema(), context)
        self._time = int(context.input.get_field_index(TIME_COLUMN))
        self._op = int(context.input.get_field_index(OP_COLUMN)) if self._changes else -1
        rank = [] if self._rank is None else [pa.field(self._rank, pa.int64())]
        self._schema = with_marks(pa.schema([*self._rows, *rank]), op=True, timed=self._time >= 0)
        self.kept = Keeper(context, [self._state], keyed=len(self._names) > 0)
        return self._schema

    def process(self, batch: Batch) -> None:
        assert self._state is not None
        state, data = self._state, batch.data
        table = state.table
        with state.changing:
            slots = state.resolve(batch)
            try:
                table.add(
                    slots,
                    data,
                    selection=batch.selection,
                    ops=data.column(self._op) if self._op >= 0 else None,
                    time=data.column(self._time) if self._time >= 0 else None,
                )
            except KeyError as error:
                raise InternalError(f"top_n: the changes are no valid ones: {error.args[0]}") from error
            vacant = table.settle()
            if len(vacant):
                state.known.remove(vacant)
            pieces = table.pieces(CHUNK_ROWS)
            state.settle()
        for columns, ranks, ops, times in pieces:
            self.emit(Batch(self._result(columns, ranks, ops, times)))

    def _result(self, columns: list[Array], ranks: Array, ops: Array, times: Array) -> pa.RecordBatch:
        columns = [*columns, *([] if self._rank is None else [ranks]), ops, *([times] if self._time >= 0 else [])]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def state_schema(self) -> dict[str, Any]:
        return {"kind": "top_n", **self._schema_words(), "ranked": self._rank is not None, "changes": self._changes}

    def state_reader(self) -> dict[str, Any]:
        return {**self._reader_words(), "changes": self._changes}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The rows that are kept, key by key, in order."""
        if self._state is not None:
            for rows in self._state.every_row():
                yield rows.select(self._rows.names)

    def group_count(self) -> int:
        return 0 if self._state is None else len(self._state.known) + self._state.cold_rows

    def close(self) -> None:
        if self._state is not None:
            self._state.close()
        self._state = None

    def statistics(self) -> dict[str, Any]:
        if self._state is None:
            return {}
        rows = len(self._state.table) + self._state.cold_rows
        return {"keys": len(self._state.known), "rows": rows, **self._state.figures()}


class _KeptRanks(Slotted):
    """The keys of a TopN, and the rows of each. rows: their columns in a checkpoint."""

    refusal = ("the rows have", _CANNOT_CHANGE)

    def __init__(
        self, table: RankTable, keys: pa.Schema, indices: Sequence[int], rows: pa.Schema, context: OperatorContext
    ) -> None:
        self.table = table
        super().__init__(key_table(keys), indices, {"rows": rows}, indices, context)

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        return [self.table.export(slots).replace_schema_metadata(self.files["rows"].metadata)]

    def put(self, rows: Rows) -> Any:
        (data,) = rows
        slots = self.known.resolve(data, self.keys_at)
        self.note(slots)
        self.table.load(slots, data, data.column(NUMBER_COLUMN), data.column(TIME_COLUMN))
        self.table.settle()
        return pc.unique(slots)

    def forget(self, slots: pa.Int32Array) -> None:
        self.table.remove(slots)
        self.known.remove(slots)

    def every_row(self) -> Iterator[pa.RecordBatch]:
        """All rows, key by key, in pieces."""
        yield from _exported(self.table, self.known.slots())
        for slots in self.every_read():
            yield self.table.export(slots)

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self.table.nbytes

    def close(self) -> None:
        if not self.is_held:
            self.known.clear()
        super().close()


class WindowTopN(_Ranked):
    """The rows that are among the first `n` of their key and window: their columns, window_start, window_end (exclusive), the rank.

    A window's rows are emitted when the watermark reaches its end: windows in order of their ends, keys in any order, the rows of a key
    in order of their rank. `by`, `ties` and `rank` are those of TopN. allowed_lateness_ms: for so long after the end of a window, a row
    that comes for it makes the next `advance` emit all rows of its key again. A row is late when all its windows are over, lateness
    included: it leaves by the branch "late", without TIME_COLUMN.

    Rows are kept in memory, by panes; a cut copies nothing. A row that is among the first n of a window is among the first n of its pane.
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
        id: str = "",
    ) -> None:
        super().__init__(keys, n, by, ties, rank, id)
        self._window, self._shape, self._lateness = window, WindowShape(window), allowed_lateness_ms
        self._late_rows = self._windows_emitted = self._arrivals = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        self._time = time_index(context.input, "a top_n of a window")
        self._open_rows(context)
        self._late = context.branches.get("late")
        self._panes: dict[int, _Pane] = {}
        self._starts: list[int] = []  # the starts of the panes, ascending
        # pane -> the keys of rows that came for it after one of its windows was emitted
        self._reopened: dict[int, GroupTable] = {}
        self._watermark = self._late_before = START_OF_TIME
        bounds = [pa.field(WINDOW_START, _TIMESTAMP), pa.field(WINDOW_END, _TIMESTAMP)]
        rank = [] if self._rank is None else [pa.field(self._rank, pa.int64())]
        result = pa.schema([*self._rows, *bounds, *rank])
        if len(set(result.names)) < len(result):
            raise UserError(
                "a column or the rank of a window's top_n is called window_start or window_end", hint="rename it"
            )
        self._schema = with_marks(result, op=False, timed=True)
        self._kept_rows = SlotRows(self._saved_schema())
        self.kept = self._keeper(context)
        return self._schema

    def process(self, batch: Batch) -> None:
        data, shape = batch.data, self._shape
        times = data.column(self._time)
        late, panes = split_panes(times, shape.step, shape.offset, batch.selection, late_before=self._late_before)
        if late is not None:
            self._late_rows += len(late)
            if self._late is not None:
                self._late(batch.with_data(data.drop_columns([TIME_COLUMN]).take(late)))
        for start, rows in panes:
            pane = self._pane(start)
            with self._kept_rows.changing:
                slots = pane.known.resolve(data, self._key_indices, hashes=batch.hashes, selection=rows)
                self._kept_rows.note(start, slots)
                pane.table.add(slots, data, selection=rows, time=times, arrival=self._arrivals)
                pane.table.settle()
            if start + shape.step <= self._watermark and self._lateness:
                if start not in self._reopened:
                    self._reopened[start] = self._keys_table()
                self._reopened[start].resolve(data, self._key_indices, hashes=batch.hashes, selection=rows)
        self._arrivals += data.num_rows

    def _pane(self, start: int) -> "_Pane":
        pane = self._panes.get(start)
        if pane is None:
            pane = self._panes[start] = _Pane(key_table(self._keys), self._table_of())
            self._starts.insert(bisect_left(self._starts, start), start)
        return pane

    def _keys_table(self) -> GroupTable:
        return GroupTable(self._keys, [("count", None)])  # one column, so that states without keys have rows

    def advance(self, watermark_ms: int) -> None:
        before = self._watermark
        if watermark_ms <= before:
            return
        self._emit_reopened(before)
        for end in self._shape.ends(self._starts, before, watermark_ms):
            self._emit_window(end)
        self._set_watermark(watermark_ms)
        over = bisect_left(self._starts, self._late_before)
        for start in self._starts[:over]:
            del self._panes[start]
        del self._starts[:over]

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = self._shape.late_before(watermark_ms - self._lateness)

    def _emit_reopened(self, watermark: int) -> None:
        """Emits anew the windows for which rows have come since they were emitted; only the keys of these rows."""
        if not self._reopened:
            return
        for end in self._shape.reopened_ends(self._reopened, watermark, self._lateness):
            touched = self._keys_table()
            for start, keys in self._reopened.items():
                if self._shape.start(end) <= start < end:
                    touched.merge(keys.export())
            self._emit_window(end, touched)
        self._reopened.clear()

    def _emit_window(self, end: int, touched: GroupTable | None = None) -> None:
        """Emits the rows of a window. touched: the keys whose rows are emitted; None: all."""
        for rows in self._results(end, touched):
            self.emit(Batch(rows))
        self._windows_emitted += 1

    def _results(self, end: int, touched: GroupTable | None = None) -> Iterator[pa.RecordBatch]:
        start = self._shape.start(end)
        table = self._merged(self._starts[bisect_left(self._starts, start) : bisect_left(self._starts, end)])
        table.members()
        for columns, ranks, _, _ in table.pieces(CHUNK_ROWS):
            count = len(ranks)
            bounds = [pa.array(np.full(count, ms)).view(_TIMESTAMP) for ms in (start, end)]
            rank = [] if self._rank is None else [ranks]
            columns = [*columns, *bounds, *rank, pa.array(np.full(count, end - 1))]
            rows = pa.RecordBatch.from_arrays(columns, schema=self._schema)
            if touched is not None and self._names:
                known = touched.resolve(rows, self._key_indices, insert=False)
                rows = rows.filter(pc.greater_equal(known, _FIRST_SLOT))
            if rows.num_rows:
                yield rows

    def _merged(self, starts: Sequence[int]) -> RankTable:
        """A table with the first n rows of these panes together."""
        if len(starts) == 1:
            return self._panes[starts[0]].table
        known, table = key_table(self._keys), self._table_of()
        for start in starts:
            pane = self._panes[start]
            slots = pane.known.slots().to_numpy()
            places = np.zeros(slots.max() + 1, np.int32)
            places[slots] = known.resolve(pane.keys(self._keys), range(len(self._keys))).to_numpy()
            table.absorb(pane.table, pa.array(places))
        return table

    def _saved_schema(self) -> pa.Schema:
        return super()._saved_schema().append(pa.field(PANE_COLUMN, pa.int64()))

    def state_schema(self) -> dict[str, Any]:
        window = {"window": window_words(self._window), "allowed_lateness": self._lateness}
        return {"kind": "window top_n", **self._schema_words(), **window}

    def state_reader(self) -> dict[str, Any]:
        window = {"window": [type(self._window).__name__, asdict(self._window)], "allowed_lateness": self._lateness}
        return {**self._reader_words(), **window}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """The windows that are not over, lateness included, as they are now."""
        for end in self._shape.ends(self._starts, self._watermark - self._lateness):
            yield from self._results(end)

    def _keeper(self, context: OperatorContext) -> Keeper:
        schema = self._keys_table().export().schema.append(pa.field(PANE_COLUMN, pa.int64()))
        rows: Any = {"schema": self._saved_schema(), "keys": self._key_indices, "what": "the rows have"}
        return Keeper(
            context,
            [
                Columns("rows", self._cut_rows, self._load, **rows, hint=_CANNOT_CHANGE),
                Columns(
                    "reopened", self._reopened_keys, self._load_reopened, schema=schema, keys=range(len(self._keys))
                ),
            ],
            keyed=len(self._names) > 0,
        )

    def _cut_rows(self) -> Batches | list[pa.RecordBatch]:
        panes = [
            (start, pane.known, partial(self._pane_rows, start, pane))
            for start, pane in self._panes.items()
            if len(pane.known)
        ]
        return self._kept_rows.cut(panes) if panes else []

    def _pane_rows(self, start: int, pane: "_Pane", slots: pa.Int32Array) -> pa.RecordBatch:
        rows, schema = pane.table.export(slots), self._saved_schema()
        rows = rows.append_column(schema.field(PANE_COLUMN), pa.array(np.full(rows.num_rows, start)))
        return rows.replace_schema_metadata(schema.metadata)

    def group_count(self) -> int:
        return sum(len(pane.known) for pane in self._panes.values())

    def noted(self) -> dict[str, Any]:
        return {"watermark": self._watermark, "late_rows": self._late_rows, "arrivals": self._arrivals}

    def recall(self, saved: Sequence[Saved]) -> None:
        for pane in self._panes.values():
            pane.table.settle()
        self._arrivals = max((part.facts["arrivals"] for part in saved), default=0)
        self._set_watermark(last_watermark(saved, START_OF_TIME))
        self._late_rows = self.kept.once(saved, "late_rows")

    def _load(self, data: pa.RecordBatch) -> None:
        starts = data.column(PANE_COLUMN).to_numpy()
        for start in np.unique(starts).tolist():
            rows, pane = data.filter(pa.array(starts == start)), self._pane(start)
            slots = pane.known.resolve(rows, self._key_indices)
            pane.table.load(slots, rows, rows.column(NUMBER_COLUMN), rows.column(TIME_COLUMN))

    def _reopened_keys(self) -> list[pa.RecordBatch]:
        return [
            keys.export().append_column(PANE_COLUMN, pa.array(np.full(len(keys), start)))
            for start, keys in self._reopened.items()
        ]

    def _load_reopened(self, keys: pa.RecordBatch) -> None:
        start = keys.column(PANE_COLUMN)[0].as_py()
        self._reopened.setdefault(start, self._keys_table()).merge(keys.drop_columns([PANE_COLUMN]))

    def close(self) -> None:
        if hasattr(self, "_panes"):
            self._panes.clear()
            self._starts.clear()
            self._reopened.clear()

    def statistics(self) -> dict[str, Any]:
        if not hasattr(self, "_panes"):
            return {}
        panes = self._panes.values()
        return {
            "panes": len(self._panes),
            "keys": sum(len(pane.known) for pane in panes),
            "rows": sum(len(pane.table) for pane in panes),
            "bytes": sum(pane.known.nbytes + pane.table.nbytes for pane in panes),
            "late_rows": self._late_rows,
            "windows": self._windows_emitted,
        }


class _Pane:
    """The keys of a pane, and the rows of each key that are among the first n."""

    def __init__(self, known: GroupTable, table: RankTable) -> None:
        self.known, self.table = known, table

    def keys(self, schema: pa.Schema) -> pa.RecordBatch:
        """The keys of all slots, in the order of the slots."""
        if len(schema):
            return pa.RecordBatch.from_arrays(self.known.key_columns(), schema=schema)
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(self.known), pa.struct([])))  # no keys: one group


def _exported(table: RankTable, slots: pa.Int32Array) -> Iterator[pa.RecordBatch]:
    """The rows of these slots, in pieces."""
    for start in range(0, len(slots), _READ_SLOTS):
        yield table.export(slots.slice(start, _READ_SLOTS))


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_top_n(node: nodes.TopN, site: Site) -> Site:
    site = site.together(node.keys, "ranked")
    make = partial(TopN, node.keys, node.n, node.by, ties=node.ties, rank=node.rank, changes=site.changes)
    return site.step(node.text(), make, id=node.id)


def place_window_top_n(node: WindowTopNNode, site: Site) -> Site:
    make = partial(
        WindowTopN,
        node.window,
        node.keys,
        node.n,
        node.by,
        ties=node.ties,
        rank=node.rank,
        allowed_lateness_ms=node.allowed_lateness_ms,
    )
    site = site.together(node.keys, "ranked")
    site = by_arrival(site) if node.gives_time else site
    return site.step(node.text(), make, id=node.id).beside("late", node.late)


PLACES: Places = {nodes.TopN: place_top_n, WindowTopNNode: place_window_top_n}


def _ranked(reader: Mapping[str, Any]) -> dict[str, Any]:
    by = [(name, descending) for name, descending in reader["by"]]
    return {"keys": reader["keys"], "n": reader["n"], "by": by, "ties": reader["ties"], "rank": reader["rank"]}


READERS: Readers = {
    "top_n": lambda reader: TopN(**_ranked(reader), changes=reader["changes"]),
    "window top_n": lambda reader: WindowTopN(
        window_of(reader), **_ranked(reader), allowed_lateness_ms=reader["allowed_lateness"]
    ),
}
