"""One row for each key, kept current: aggregates whose result is changes.

    rows ──▶ slots of their keys ──▶ results before │ rows are added, or taken away │ results after ──▶ what differs

What changes is emitted once a batch for each key that it touches. Rows that are only added are kept as `aggregates.Aggregator` keeps
them. Of rows that may be taken away again: counts and sums of whole numbers in the store's tables, as sums of what adds and what takes;
the rest beside them by slot, exactly: sums without rounding, values in sorted multisets, rows in order (`_cython.multiset`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch
from sabot._cython.changes import Touches
from sabot._cython.keyed import GroupTable, hash_columns
from sabot._cython.multiset import Arrivals, ExactSums, Multisets, join_keys, split_keys
from sabot._cython.sketch import Quantiles
from sabot.errors import CorruptCheckpoint, UserError
from sabot.operators.aggregates import (
    CHUNK_ROWS,
    Aggregator,
    Call,
    Snapshot,
    calls_reader,
    calls_schema,
    columns_schema,
    owned_groups,
    read_batches,
)
from sabot.operators.base import (
    OP_COLUMN,
    TIME_COLUMN,
    Operator,
    OperatorContext,
    OperatorState,
    SavedState,
    with_marks,
    without_marks,
)
from sabot.operators.gathered import quantile_column
from sabot.operators.packed import NAN, from_ordered, ordered, ordered_width, packed, unpacked
from sabot.operators.sessions import key_table, result_schema
from sabot.operators.weaving import Weave, differ, signs
from sabot.state.rows import RowStore
from sabot.state.tables import TableStore

__all__ = ["GroupAggregate", "Groups", "KeptGroups", "LastOfChanges", "LatestRows"]

Array: TypeAlias = pa.Array
Owned: TypeAlias = Callable[[pa.UInt64Array], pa.BooleanArray]

_ROWS, _TIME = "__rows", "__at"  # hidden calls: how many rows a group has; the time of its row
_KEPT = "kept"
_NEVER = -(2**63)
_LOW = np.int64(0xFFFFFFFF)


class KeptGroups(Operator):
    """One row for each key, kept current: what aggregates and upserts do alike. The result is changes with the unique key `keys`."""

    _groups: "Groups | None" = None

    def __init__(self, keys: Sequence[str], id: str) -> None:
        self.id = id
        self._names = list(keys)

    @abstractmethod
    def _make(self, context: OperatorContext) -> "Groups":
        """What is kept of each key of `_input`, the columns without OP_COLUMN."""

    def _order(self) -> list[str]:
        """The result's columns: the keys, then the fields."""
        return [*self._names, *(field.name for field in self._there().fields)]

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        place = context.input.get_field_index(OP_COLUMN)
        self._input = context.input if place < 0 else context.input.remove(place)
        self._timed = TIME_COLUMN in self._input.names
        self._keys = Aggregator(self._names, [], self._input).keys  # says which columns are missing
        self._groups = self._make(context)
        self._touches = Touches()
        fields = result_schema([*self._keys, *self._groups.fields], timed=False)
        names = self._order()
        self._places = [fields.get_field_index(name) for name in names]
        self._columns = pa.schema([fields.field(place) for place in self._places])
        self._schema = with_marks(self._columns, op=True, timed=self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        groups, data = self._there(), batch.data
        keys = [data.schema.get_field_index(name) for name in self._names]
        table = groups.table()
        slots = table.resolve(data, keys, hashes=batch.hashes, selection=batch.selection)
        touched, first, _, latest = self._touches.of(slots.to_numpy(), self._times(batch))
        asked = pa.array(touched)
        rows, times, before = groups.results(table, asked)
        groups.add(table, slots, batch)
        rows_after, times_after, after = groups.results(table, asked)
        was, now = rows > 0, rows_after > 0
        changed = (
            was | now
            if groups.always_change
            else (was != now) | (was & now & (differ(before, after) if before else False))
        )
        if not groups.always_change:
            groups.note_changes(table, asked, batch, changed, latest)
        if latest is not None:
            latest = np.where(now, times_after, latest) if groups.own_times else np.maximum(times, latest)
        if changed.any():
            weave = Weave(was & changed, now & changed)
            first = pa.array(first) if batch.selection is None else batch.selection.take(pa.array(first))
            columns = [weave.same(data.column(key), first) for key in keys]
            columns += [weave.woven(old, new) for old, new in zip(before, after, strict=True)]
            columns = [columns[place] for place in self._places]
            columns.append(weave.ops())
            if latest is not None:
                columns.append(weave.woven(pa.array(times), pa.array(latest)))
            self.emit(batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))
        if not now.all():
            groups.remove(table, pa.array(touched[~now]))
        groups.settle()

    def _times(self, batch: Batch) -> Any:
        """The event time of each row that counts."""
        if not self._timed:
            return None
        times = batch.data.column(batch.schema.get_field_index(TIME_COLUMN))
        return (times if batch.selection is None else times.take(batch.selection)).to_numpy()

    def snapshot(self) -> tuple[dict[str, Any], OperatorState | None]:
        facts, state = self._there().snapshot()
        return {"tables": facts, **self.about_state(self._there().count)}, state

    def restore(self, saved: list[SavedState]) -> None:
        context = self._context
        some = context.parallelism > 1 or len(saved) > 1 or context.only is not None
        self._there().restore(saved, owned_groups(context, keyed=bool(self._names)) if some else None)

    def contents(self) -> Iterator[pa.RecordBatch]:
        for columns in self._there().contents():
            yield pa.RecordBatch.from_arrays([columns[place] for place in self._places], schema=self._columns)

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()

    def statistics(self) -> dict[str, Any]:
        return {} if self._groups is None else self._groups.statistics()

    def _there(self) -> "Groups":
        assert self._groups is not None
        return self._groups


class GroupAggregate(KeptGroups):
    """`calls` over all rows of each key, as changes: keys, calls; one row a key, there as long as the key has rows.

    Emitted for each key that a batch touches: an insert, an update pair unless the row is equal to the one before, a delete when the
    key's last row was taken away. Event time of a row: the latest of the key's when the row became what it is; what takes it away has
    the same. Without keys there is one row.

    changes: rows may be taken away; results are those of the rows that are left, exactly (floats: the exact sum, rounded once). Then
    ties of arg_min and arg_max go by the least value, `any` is the least; first, last and collect_list go by event time, then arrival,
    and of equal rows the oldest is taken. Such values are kept in memory; a hot key costs a logarithm a row. user: all rows of a key are
    kept, and the function gets them anew at each change. approx_count_distinct cannot forget: UserError.
    """

    def __init__(self, keys: Sequence[str], calls: Sequence[Call], *, changes: bool, id: str = "") -> None:
        super().__init__(keys, id)
        self._calls, self._changes = list(calls), changes

    def _make(self, context: OperatorContext) -> "Groups":
        return (_Kept if self._changes else _Added)(self._names, self._calls, self._input, context)

    def state_schema(self) -> dict[str, Any]:
        calls = calls_schema(self._calls, self._there().fields, self._input)
        return {"kind": "groups", "keys": columns_schema(self._keys), "changes": self._changes, **calls}

    def state_reader(self) -> dict[str, Any]:
        return {**calls_reader(self._names, self._calls, self._input), "changes": self._changes}


class Groups(ABC):
    """What is kept of each key. fields: what the result has beside the keys.

    always_change: who is touched has another result. own_times: `results` says the times of rows, whatever has touched them.
    """

    fields: list[pa.Field]
    always_change = False
    own_times = False

    @abstractmethod
    def table(self) -> GroupTable:
        """Says the slots of keys; to be asked for again for each batch."""

    @abstractmethod
    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        """-> (how many rows each has, the times of their rows (numpy; of none any), a column a field)."""

    @abstractmethod
    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        """Row i that counts goes to slots[i]; not yet its time, unless they always change."""

    @abstractmethod
    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        """After `add`, unless they always change: which of the touched slots have changed; the latest time that the batch brings each."""

    @abstractmethod
    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        """These have no rows any more."""

    @abstractmethod
    def settle(self) -> None:
        """After each batch."""

    @abstractmethod
    def snapshot(self) -> tuple[dict[str, Any], OperatorState | None]: ...
    @abstractmethod
    def restore(self, saved: list[SavedState], owned: Owned | None) -> None:
        """owned: says which key hashes are to be taken in; None: all."""

    @abstractmethod
    def contents(self) -> Iterator[list[Array]]:
        """Keys and fields of all, in pieces."""

    @property
    @abstractmethod
    def count(self) -> int:
        """About how many keys."""

    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def statistics(self) -> dict[str, Any]: ...


class StoredGroups(Groups):
    """Groups whose keys and lanes are a TableStore's; beside it there may be columns of a state for each slot, in memory."""

    store: TableStore
    saved_schema: pa.Schema  # of `saved`: the keys, then what is kept beside

    def table(self) -> GroupTable:
        return self.store.table()

    def settle(self) -> None:
        self.store.settle()

    @property
    def count(self) -> int:
        return self.store.statistics()["groups"]

    @abstractmethod
    def saved(self) -> Iterator[pa.RecordBatch]: ...
    @abstractmethod
    def load(self, state: pa.RecordBatch) -> None:
        """What `saved` gave, of groups that the store has."""

    def snapshot(self) -> tuple[dict[str, Any], OperatorState | None]:
        facts, tables = self.store.snapshot()
        kept = list(self.saved())
        if tables is None and not kept:
            return facts, None
        return facts, Snapshot(tables, {_KEPT: (self.saved_schema, kept)} if kept else {})

    def restore(self, saved: list[SavedState], owned: Owned | None) -> None:
        self.store.restore([SavedState(part.directory / "tables", part.facts["tables"]) for part in saved], owned)
        width = len(self.saved_schema) - self._beside()
        for part in saved:
            for state in read_batches(part.directory, _KEPT):
                if not state.schema.equals(self.saved_schema):
                    raise CorruptCheckpoint(
                        f"{part.directory}: the state has other columns than the program now keeps",
                        hint="keys, aggregates and their columns cannot change between a checkpoint and its restore",
                    )
                if owned is not None:
                    keys = state.columns[:width]
                    hashes = hash_columns(keys) if keys else pa.array(np.zeros(state.num_rows, np.uint64))
                    state = state.filter(owned(hashes))
                if state.num_rows:
                    self.load(state)

    @abstractmethod
    def _beside(self) -> int:
        """How many columns of `saved_schema` are not keys."""


class _Added(StoredGroups):
    """Of rows that are only added: an Aggregator's groups, with a count of rows, and the time.

    Distinct values are counted beside it: an Aggregator would look at all of a group's to count them, after each batch.
    """

    def __init__(self, keys: Sequence[str], calls: Sequence[Call], input: pa.Schema, context: OperatorContext) -> None:
        timed = TIME_COLUMN in input.names
        order = TIME_COLUMN if timed else None
        hidden = [Call(_ROWS, "count"), *([Call(_TIME, "max", TIME_COLUMN)] if timed else [])]
        described = Aggregator(keys, calls, input, order=order)  # checks, and says the types
        self.fields = list(described.schema)[len(keys) :]
        self._values: list[_Values | None] = [  # a call; None: it is the aggregator's
            _Values(call, input.field(call.argument).type, field.type) if call.kind == "count_distinct" else None
            for call, field in zip(calls, self.fields, strict=True)
        ]
        self._holders = [holder for holder in self._values if holder is not None]
        others = [call for call, holder in zip(calls, self._values, strict=True) if holder is None]
        self._aggregator = aggregator = Aggregator(keys, [*hidden, *others], input, order=order)
        self.always_change = any(c.kind == "count" and c.argument is None and c.where is None for c in calls)
        self._timed = timed
        self.store = TableStore(
            aggregator.keys,
            aggregator.kernel,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not (aggregator.needs_slots or self._holders),
        )
        self._extras = aggregator.extras()
        kept = [pa.field(f"{_KEPT} {i}", pa.large_binary()) for i in range(len(self._holders))]
        self.saved_schema = pa.schema([*aggregator.gathered, *kept])
        # times are noted when it is known what has changed: two runs over the lanes, each with the others' filters never true
        self._filters = aggregator.filters
        self._time_filters: list[int] | None = None
        if timed and not self.always_change:
            time, never = aggregator.lane("max", TIME_COLUMN), aggregator.width
            self._filters = [never if lane == time else each for lane, each in enumerate(aggregator.filters)]
            self._time_filters = [-1 if lane == time else never for lane in range(len(aggregator.filters))]

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        columns = self._aggregator.values(table, self._extras, slots)
        rows = columns[0].to_numpy()
        times = columns[1].fill_null(_NEVER).to_numpy() if self._timed else None
        others = iter(columns[1 + self._timed :])
        numbers = slots.to_numpy()
        found = [next(others) if holder is None else holder.results(numbers, rows) for holder in self._values]
        return rows, times, found

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        data, selection = self._columns(batch.data), batch.selection
        aggregator = self._aggregator
        table.accumulate(slots, data, aggregator.arguments, self._filters, order=aggregator.order, selection=selection)
        if aggregator.needs_slots:
            self._extras.add(slots, data, selection)
        if self._holders:
            rows = ChangedRows(batch, slots.to_numpy(), self._timed)
            for holder in self._holders:
                holder.add(rows)

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        if self._timed and changed.any():
            some = pa.array(np.where(changed, slots.to_numpy(), np.int32(-1)))
            data = batch.data.slice(0, len(slots))  # of these rows the times alone count
            data = data.set_column(data.schema.get_field_index(TIME_COLUMN), TIME_COLUMN, pa.array(latest))
            table.accumulate(some, self._columns(data), self._aggregator.arguments, self._time_filters)

    def _columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        data = self._aggregator.columns(data)
        if self._time_filters is None:
            return data
        return data.append_column("never", pa.array(np.zeros(data.num_rows, bool)))

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        raise AssertionError("groups to which rows are only added stay")

    def _beside(self) -> int:
        return len(self.saved_schema) - len(self._aggregator.keys)

    def saved(self) -> Iterator[pa.RecordBatch]:
        if self._beside():
            table = self.store.table()
            for slots in _pieces(table):
                states = [holder.store.save(slots.to_numpy()) for holder in self._holders]
                columns = [*table.key_columns(slots), *self._extras.states(slots), *states]
                yield pa.RecordBatch.from_arrays(columns, schema=self.saved_schema)

    def load(self, state: pa.RecordBatch) -> None:
        slots = self.store.table().resolve(state, range(len(self._aggregator.keys)))
        self._extras.merge(slots, state)
        for holder, column in zip(self._holders, state.columns[len(self._aggregator.gathered) :], strict=True):
            holder.store.load(slots.to_numpy(), column)

    def contents(self) -> Iterator[list[Array]]:
        table = self.store.whole()
        if table is None:  # then there is nothing beside it
            hidden = 1 + self._timed
            width = len(self._aggregator.keys)
            for piece in self._aggregator.results(self.store, 0, self._extras):
                yield [*piece.columns[:width], *piece.columns[width + hidden :]]
            return
        for slots in _pieces(table):
            yield [*table.key_columns(slots), *self.results(table, slots)[2]]

    def close(self) -> None:
        self.store.close()
        self._extras.clear()
        for holder in self._holders:
            holder.store.clear()

    def statistics(self) -> dict[str, Any]:
        figures = self.store.statistics()
        beside = self._extras.nbytes + sum(holder.store.nbytes for holder in self._holders)
        return {**figures, "bytes": figures["bytes"] + beside}


class _Kept(StoredGroups):
    """Of rows that may be taken away again: what each call needs for that.

    The store's lanes are sums of int64 or uint64, to which a row gives, or from which it takes; with the greatest time behind them.
    """

    def __init__(
        self,
        keys: Sequence[str],
        calls: Sequence[Call],
        input: pa.Schema,
        context: OperatorContext,
        beside: Sequence["_Beside"] = (),
    ) -> None:
        self._keys = list(keys)
        self._input = input
        self._timed = TIME_COLUMN in input.names
        described = Aggregator(
            keys, calls, input, order=TIME_COLUMN if self._timed else None
        )  # checks, and says the types
        self.fields = list(described.schema)[len(keys) :]
        self._lanes: list[pa.DataType] = [pa.int64()]  # how many rows
        self._parts: list[_Lanes | _Beside] = [
            self._part(call, field.type) for call, field in zip(calls, self.fields, strict=True)
        ]
        self._parts += beside
        self._holders = [part for part in self._parts if isinstance(part, _Beside)]
        self._key_schema = described.keys
        aggregates = [("sum", kind) for kind in self._lanes] + ([("max", pa.int64())] if self._timed else [])
        self.store = TableStore(
            described.keys,
            aggregates,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not self._holders,
        )
        kept = [pa.field(f"{_KEPT} {i}", pa.large_binary()) for i in range(len(self._holders))]
        self.saved_schema = pa.schema([*described.keys, *kept])

    def _part(self, call: Call, result: pa.DataType) -> "_Lanes | _Beside":
        if call.kind == "approx_count_distinct":
            raise UserError(
                f"{call.name}: approx_count_distinct over changes: it cannot forget a row that is taken away",
                hint="count_distinct can",
            )
        kind = None if call.argument is None else self._input.field(call.argument).type
        whole = kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
        if call.kind == "count" or (whole and call.kind in ("sum", "mean")):
            return self._lanes_of(call, kind, result)
        if call.kind in ("sum", "mean", "variance", "stddev"):
            return _Sums(call, kind, result)
        if call.kind in ("arg_min", "arg_max"):
            return _Best(call, kind, result, self._input.field(call.by).type)
        if call.kind in ("min", "max", "count_distinct", "top_k", "any"):
            return _Values(call, kind, result)
        if call.kind == "approx_quantile":
            return _Quantiles(call)
        return _InOrder(call, self._input, result)

    def _lanes_of(self, call: Call, kind: pa.DataType | None, result: pa.DataType) -> "_Lanes":
        lanes = {"count": [pa.int64()], "sum": [pa.int64(), result], "mean": [pa.int64()] * 3}[call.kind]
        first = len(self._lanes)
        self._lanes += lanes
        return _Lanes(call, kind, result, first)

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        columns = table.values(slots)
        rows = columns[0].fill_null(0).to_numpy()
        times = columns[-1].fill_null(_NEVER).to_numpy() if self._timed else None
        numbers = slots.to_numpy()
        found: list[Array] = []
        for part in self._parts:
            found += [part.results(columns)] if isinstance(part, _Lanes) else part.columns(numbers, rows)
        return rows, times, found

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        rows = ChangedRows(batch, slots.to_numpy(), self._timed)
        lanes = [pa.array(rows.by)]
        for part in self._parts:
            if isinstance(part, _Lanes):
                lanes += part.lanes(rows)
            else:
                part.add(rows)
        self._accumulate(table, slots, lanes, np.full(len(slots), _NEVER))

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        if self._timed and changed.any():
            zero = pa.array(np.zeros(len(slots), np.int64))
            lanes = [zero if kind == pa.int64() else zero.cast(kind) for kind in self._lanes]
            self._accumulate(table, pa.array(np.where(changed, slots.to_numpy(), np.int32(-1))), lanes, latest)

    def _accumulate(self, table: GroupTable, slots: pa.Int32Array, lanes: list[Array], times: Any) -> None:
        if self._timed:
            lanes = [*lanes, pa.array(times)]
        data = pa.RecordBatch.from_arrays(lanes, names=[str(i) for i in range(len(lanes))])
        table.accumulate(slots, data, range(len(lanes)))

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        table.remove(slots)
        for holder in self._holders:
            holder.store.remove(slots.to_numpy())

    def _beside(self) -> int:
        return len(self._holders)

    def saved(self) -> Iterator[pa.RecordBatch]:
        if self._holders:
            table = self.store.table()
            for slots in _pieces(table):
                states = [holder.store.save(slots.to_numpy()) for holder in self._holders]
                yield pa.RecordBatch.from_arrays([*table.key_columns(slots), *states], schema=self.saved_schema)

    def load(self, state: pa.RecordBatch) -> None:
        width = len(self._keys)
        slots = self.store.table().resolve(state, range(width)).to_numpy()
        for holder, column in zip(self._holders, state.columns[width:], strict=True):
            holder.store.load(slots, column)

    def contents(self) -> Iterator[list[Array]]:
        if self._holders:
            table = self.store.table()
            for slots in _pieces(table):
                yield [*table.key_columns(slots), *self.results(table, slots)[2]]
            return
        width = len(self._keys)
        for columns in self.store.finish():
            parts = [part for part in self._parts if isinstance(part, _Lanes)]
            yield [*columns[:width], *(part.results(columns[width:]) for part in parts)]

    def close(self) -> None:
        self.store.close()
        for holder in self._holders:
            holder.store.clear()

    def statistics(self) -> dict[str, Any]:
        figures = self.store.statistics()
        return {**figures, "bytes": figures["bytes"] + sum(holder.store.nbytes for holder in self._holders)}


class ChangedRows:
    """The rows of a batch of changes that count, for those who add them up."""

    def __init__(self, batch: Batch, slots: Any, timed: bool) -> None:
        self._batch = batch
        self._columns: dict[str, Array] = {}
        self.slots = slots
        place = batch.schema.get_field_index(OP_COLUMN)
        self.takes = np.zeros(len(slots), bool) if place < 0 else signs(self.column(OP_COLUMN))
        self.by = np.where(self.takes, np.int64(-1), np.int64(1))
        self.times = self.column(TIME_COLUMN).to_numpy() if timed else np.zeros(len(slots), np.int64)

    def column(self, name: str) -> Array:
        if name not in self._columns:
            column = self._batch.data.column(self._batch.schema.get_field_index(name))
            selection = self._batch.selection
            self._columns[name] = column if selection is None else column.take(selection)
        return self._columns[name]

    def whole(self) -> pa.RecordBatch:
        """All columns of the user's."""
        names = without_marks(self._batch.schema).names
        return pa.RecordBatch.from_arrays([self.column(name) for name in names], names=names)

    def counting(self, call: Call, values: Array | None) -> Any:
        """Which rows count: the filter holds, and the value, where there are some, is not null."""
        keep = np.ones(len(self.slots), bool)
        if call.where is not None:
            keep &= self.column(call.where).fill_null(False).to_numpy(zero_copy_only=False)
        if values is not None and values.null_count:
            keep &= values.is_valid().to_numpy(zero_copy_only=False)
        return keep


class _Lanes:
    """count, and sum and mean of whole numbers: lanes of the store, from `first` on.

    sum: how many values, their sum. mean: how many, the sum of what is above the low 32 bits, that of the low ones.
    """

    def __init__(self, call: Call, kind: pa.DataType | None, result: pa.DataType, first: int) -> None:
        self._call, self._kind, self._result, self._first = call, kind, result, first

    def lanes(self, rows: ChangedRows) -> list[Array]:
        call = self._call
        values = None if call.argument is None else rows.column(call.argument)
        by = np.where(rows.counting(call, values), rows.by, np.int64(0))
        if call.kind == "count" or values is None:
            return [pa.array(by)]
        unsigned = pa.types.is_uint64(self._kind)
        wide = pa.uint64() if unsigned else pa.int64()
        numbers = values.cast(wide).fill_null(0).to_numpy()
        if call.kind == "sum":
            sums = numbers.astype(np.int64) * by  # wraps, signed or not
            return [pa.array(by), pa.array(sums.view(np.uint64) if self._result == pa.uint64() else sums)]
        high = (numbers >> (np.uint64(32) if unsigned else np.int64(32))).astype(np.int64)
        return [pa.array(by), pa.array(high * by), pa.array((numbers.astype(np.int64) & _LOW) * by)]

    def results(self, columns: Sequence[Array]) -> Array:
        counts = columns[self._first].fill_null(0)
        if self._call.kind == "count":
            return counts
        n = counts.to_numpy()
        if self._call.kind == "sum":
            return pc.if_else(pa.array(n > 0), columns[self._first + 1], pa.scalar(None, self._result))
        high, low = (columns[self._first + lane].fill_null(0).to_numpy() for lane in (1, 2))
        high, low = high + (low >> 32), low & _LOW
        total = high.astype(np.longdouble) * np.longdouble(2**32) + low.astype(np.longdouble)
        means = (total / np.maximum(n, 1)).astype(np.float64)
        return pa.array(means, mask=n <= 0)


class _Beside(ABC):
    """What one call keeps by slot, beside the store's tables."""

    store: ExactSums | Multisets | Arrivals | Quantiles

    @abstractmethod
    def add(self, rows: ChangedRows) -> None: ...
    def columns(self, slots: Any, counts: Any) -> list[Array]:
        """The fields that it gives. counts: how many rows each slot has."""
        return [self.results(slots, counts)]

    def results(self, slots: Any, counts: Any) -> Array:
        """Of one that gives one field."""
        raise NotImplementedError


class _Sums(_Beside):
    """sum, mean, variance and stddev: exact."""

    def __init__(self, call: Call, kind: pa.DataType, result: pa.DataType) -> None:
        self._call, self._result = call, result
        self._whole = pa.types.is_decimal(kind) and call.kind == "sum"
        self.store: ExactSums = ExactSums(squares=call.kind in ("variance", "stddev"))

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, values)
        slots, takes = rows.slots[keep], rows.takes[keep]
        values = values.filter(pa.array(keep))
        kind = values.type
        if self._whole:
            values = values.cast(self._result)
            width = self._result.bit_width // 64
            words = (
                np.frombuffer(values.buffers()[1], np.uint64)[values.offset * width :] if len(values) else np.zeros(0)
            )
            self.store.add_words(slots, words[: len(values) * width].reshape(-1, width), True, takes)
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            unsigned = pa.types.is_unsigned_integer(kind)
            words = values.cast(pa.uint64() if unsigned else pa.int64()).to_numpy().view(np.uint64)
            self.store.add_words(slots, words.reshape(-1, 1), not unsigned, takes)
        else:
            self.store.add_reals(slots, values.cast(pa.float64(), safe=False).to_numpy(), takes)

    def results(self, slots: Any, counts: Any) -> Array:
        if self._call.kind == "mean":
            return self.store.means(slots)
        if self._call.kind in ("variance", "stddev"):
            variance = self.store.variances(slots, self._call.ddof)
            return pc.sqrt(variance) if self._call.kind == "stddev" else variance
        if not self._whole:
            return self.store.sums(slots)
        try:
            words, valid = self.store.whole(slots, self._result.bit_width // 64)
        except OverflowError as error:
            raise UserError(
                f"{self._call.name}: the sum of {self._call.argument!r} is more than {self._result} holds",
                hint="cast the column to float64, or to a decimal256",
            ) from error
        bits = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(self._result, len(slots), [bits, pa.py_buffer(words)])


class _Values(_Beside):
    """min, max, any, count_distinct, top_k: which values there are, and how often."""

    def __init__(self, call: Call, kind: pa.DataType, result: pa.DataType) -> None:
        self._call, self._kind, self._result = call, kind, result
        self._real = pa.types.is_floating(kind)
        self.store: Multisets = Multisets()

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, None if self._call.kind == "any" else values)
        if self._real and self._call.kind == "top_k":
            keep &= ~pc.is_nan(values).fill_null(True).to_numpy(zero_copy_only=False)
        values = values.filter(pa.array(keep))
        found = packed([values], len(values)) if self._call.kind == "any" else ordered(values)
        self.store.add(rows.slots[keep], found, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        kind = self._call.kind
        if kind == "count_distinct":
            return pa.array(self.store.differing(slots))
        if kind == "any":
            return unpacked(self.store.least(slots), [self._kind])[0]
        if kind == "top_k":
            sizes, values = self.store.best(slots, self._call.k or 1)
            bounds = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
            return pa.ListArray.from_arrays(bounds, from_ordered(values, self._kind), type=self._result)
        asked = self.store.least if kind == "min" else self.store.greatest
        return from_ordered(asked(slots, NAN) if self._real else asked(slots), self._kind)


class _Quantiles(_Beside):
    """approx_quantile: a sketch, which can forget values."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.store: Quantiles = Quantiles()

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(str(self._call.argument))
        keep = rows.counting(self._call, values)
        numbers = values.filter(pa.array(keep)).cast(pa.float64(), safe=False).to_numpy()
        self.store.add(rows.slots[keep], numbers, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        return quantile_column(self.store, slots, self._call.q)


class _Best(_Beside):
    """arg_min, arg_max: pairs of what it goes by, and the value."""

    def __init__(self, call: Call, kind: pa.DataType, result: pa.DataType, by: pa.DataType) -> None:
        self._call, self._kind = call, kind
        self._width = ordered_width(by)
        self.store: Multisets = Multisets()

    def add(self, rows: ChangedRows) -> None:
        values, by = rows.column(str(self._call.argument)), rows.column(str(self._call.by))
        keep = rows.counting(self._call, by)
        if pa.types.is_floating(by.type):
            keep &= ~pc.is_nan(by).fill_null(True).to_numpy(zero_copy_only=False)
        mask = pa.array(keep)
        by, values = by.filter(mask), values.filter(mask)
        keys = join_keys([ordered(by), packed([values], len(values))], [self._width, -1])
        self.store.add(rows.slots[keep], keys, rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        least = self._call.kind == "arg_min"
        keys = self.store.least(slots) if least else self.store.first_of_greatest(slots, self._width)
        missing = keys.is_null()
        values = split_keys(keys.drop_null(), [self._width, -1])[1]
        if keys.null_count:
            places = np.cumsum(~missing.to_numpy(zero_copy_only=False)) - 1
            values = values.take(pa.array(places, mask=missing.to_numpy(zero_copy_only=False)))
        return unpacked(values, [self._kind])[0]


class _InOrder(_Beside):
    """first, last, collect_list, user: values by event time, then as they came."""

    def __init__(self, call: Call, input: pa.Schema, result: pa.DataType) -> None:
        self._call, self._result = call, result
        names = without_marks(input).names if call.argument is None else [call.argument]
        self._schema = pa.schema([input.field(name) for name in names])
        self.store: Arrivals = Arrivals()

    def add(self, rows: ChangedRows) -> None:
        call = self._call
        keep = rows.counting(call, None)
        columns = [rows.column(name).filter(pa.array(keep)) for name in self._schema.names]
        values = packed(columns, int(keep.sum()))
        self.store.add(rows.slots[keep], values, rows.times[keep], rows.takes[keep])

    def results(self, slots: Any, counts: Any) -> Array:
        kinds = self._schema.types
        if self._call.kind in ("first", "last"):
            return unpacked(self.store.first(slots) if self._call.kind == "first" else self.store.last(slots), kinds)[0]
        sizes, rows = self.store.all(slots)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        if self._call.kind == "collect_list":
            offsets = pa.array(bounds.astype(np.int32))
            return pa.ListArray.from_arrays(offsets, unpacked(rows, kinds)[0], type=self._result)
        batch = pa.RecordBatch.from_arrays(unpacked(rows, kinds), schema=self._schema)
        return self._made(batch if self._call.argument is None else batch.column(0), bounds, counts)

    def _made(self, values: Any, bounds: Any, counts: Any) -> Array:
        """What the user's function makes of each slot's rows."""
        function = self._call.function
        results: list[Any] = []
        for first, end, there in zip(bounds[:-1].tolist(), bounds[1:].tolist(), (counts > 0).tolist(), strict=True):
            if not there:
                results.append(None)
                continue
            try:
                state = function.init()
                if end > first:
                    state = function.accumulate(state, values.slice(first, end - first))
                results.append(function.finish(state))
            except Exception as error:
                name = getattr(function, "name", type(function).__qualname__)
                raise UserError(
                    f"aggregate {self._call.name}: {name}: {type(error).__name__}: {error}; over {end - first} rows"
                ) from error
        try:
            return pa.array(results, self._result)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"aggregate {self._call.name}: finish gave what is no {self._result}: {error}",
                hint="its `type` says what finish gives: change one of them",
            ) from error


class _WholeRows(_Beside):
    """All columns but the keys, of the row that came last and was not taken away."""

    def __init__(self, fields: pa.Schema) -> None:
        self._schema = fields
        self.store: Arrivals = Arrivals()

    def add(self, rows: ChangedRows) -> None:
        values = packed([rows.column(name) for name in self._schema.names], len(rows.slots))
        self.store.add(rows.slots, values, np.zeros(len(rows.slots), np.int64), rows.takes)

    def columns(self, slots: Any, counts: Any) -> list[Array]:
        return unpacked(self.store.last(slots), self._schema.types)


class LastOfChanges(_Kept):
    """The last row of each key whose rows may be taken away: all of them are kept, in memory."""

    def __init__(self, keys: Sequence[str], input: pa.Schema, context: OperatorContext) -> None:
        fields = pa.schema([field for field in without_marks(input) if field.name not in keys])
        super().__init__(keys, [], input, context, [_WholeRows(fields)])
        self.fields = list(fields)


class LatestRows(Groups):
    """The last row of each key, where a row takes the place of the one before, or (op DELETE) takes it away.

    Rows are a RowStore's, under ids; here stands which slot has which.
    """

    own_times = True

    def __init__(self, keys: Sequence[str], input: pa.Schema, context: OperatorContext) -> None:
        self._names, self._input = list(keys), input
        self._timed = TIME_COLUMN in input.names
        self._rows = RowStore(input, self._names, directory=context.directory, memory_bytes=context.memory_budget)
        self._known = key_table(pa.schema([input.field(name) for name in keys]))
        self._ids: Any = np.zeros(0, np.int64)
        self._touches = Touches()
        self._new: tuple[pa.RecordBatch, Any] | None = (
            None  # of the touched keys: their last row of the batch, and whether it stays
        )
        self._places = [i for i, field in enumerate(input) if field.name not in keys and field.name != TIME_COLUMN]
        self.fields = [input.field(place) for place in self._places]

    def table(self) -> GroupTable:
        return self._known

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        if self._new is None:
            self._reach(len(slots) and int(pc.max(slots).as_py()))
            ids = self._ids[slots.to_numpy()]
            rows, there = self._rows.table.take(pa.array(ids)), ids >= 0
        else:
            rows, there = self._new
        times = rows.column(TIME_COLUMN).fill_null(_NEVER).to_numpy() if self._timed else None
        return there.astype(np.int64), times, [rows.column(place) for place in self._places]

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        data = batch.taken()
        _, _, _, last = self._touches.of(slots.to_numpy(), np.arange(len(slots)))
        rows = data.take(pa.array(last))
        stays = np.ones(len(last), bool)
        if OP_COLUMN in data.schema.names:
            stays = ~signs(rows.column(OP_COLUMN))
        self._new = rows.select(self._input.names), stays

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        assert self._new is not None
        rows, stays = self._new
        self._new = None
        touched = slots.to_numpy()
        gone = self._ids[touched[changed]]
        self._rows.table.remove(pa.array(gone[gone >= 0]))
        self._ids[touched[changed]] = -1
        come = np.flatnonzero(changed & stays)
        self._ids[touched[come]] = self._rows.table.insert(rows.take(pa.array(come))).to_numpy()

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        table.remove(slots)

    def settle(self) -> None:
        """Rows have no budget to keep: see RowStore."""

    def snapshot(self) -> tuple[dict[str, Any], OperatorState | None]:
        return self._rows.snapshot()

    def restore(self, saved: list[SavedState], owned: Owned | None) -> None:
        parts = [SavedState(part.directory, part.facts["tables"]) for part in saved]
        self._rows.restore(parts, owned)
        for rows in self._pieces():
            slots = self._known.resolve(rows, [rows.schema.get_field_index(name) for name in self._names])
            self._reach(int(pc.max(slots).as_py()))
            self._ids[slots.to_numpy()] = rows.column("__id").to_numpy()

    def _pieces(self) -> Iterator[pa.RecordBatch]:
        cut = self._rows.table.cut()
        try:
            yield from cut.read()
        finally:
            cut.close()

    def contents(self) -> Iterator[list[Array]]:
        for rows in self._pieces():
            yield [*(rows.column(name) for name in self._names), *(rows.column(place) for place in self._places)]

    @property
    def count(self) -> int:
        return len(self._known)

    def close(self) -> None:
        self._rows.close()
        self._known.clear()

    def statistics(self) -> dict[str, Any]:
        figures = self._rows.statistics()
        return {"groups": len(self._known), "bytes": figures["bytes"] + self._known.nbytes + self._ids.nbytes}

    def _reach(self, slot: int) -> None:
        if slot >= len(self._ids):
            grown = np.full(max(slot + 1, 2 * len(self._ids), 1024), -1, np.int64)
            grown[: len(self._ids)] = self._ids
            self._ids = grown


def _pieces(table: GroupTable) -> Iterator[pa.Int32Array]:
    slots = table.slots()
    for start in range(0, len(slots), CHUNK_ROWS):
        yield slots.slice(start, CHUNK_ROWS)
