"""One row for each key, kept current: aggregates whose result is changes.

    rows ──▶ slots of their keys ──▶ results before │ rows are added, or taken away │ results after ──▶ what differs

What changes is emitted once a batch for each key that it touches. Rows that are only added are kept as `aggregates.Aggregator` keeps
them. Of rows that may be taken away again: counts and sums of whole numbers in the store's tables, as sums of what adds and what takes;
the rest beside them by slot, exactly: sums without rounding, values in sorted multisets, rows in order (`_cython.groups.multiset`).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.changes import Touches
from sabot.errors import UserError
from sabot.operators.aggregates.aggregator import (
    Aggregator,
    Call,
    calls_reader,
    calls_schema,
    key_columns,
    slot_pieces,
)
from sabot.operators.aggregates.values import (
    Beside,
    Best,
    ChangedRows,
    InOrder,
    Lanes,
    QuantileSketches,
    Sums,
    Values,
    WholeRows,
)
from sabot.operators.base import (
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    Cut,
    OperatorContext,
    Saved,
    with_marks,
    without_marks,
)
from sabot.operators.changes.weaving import Weave, differ, signs
from sabot.operators.keeping import Columns, Keeper, Keeping, Kept, Owned, Stored, columns_schema
from sabot.operators.windows.sessions import key_table, result_schema
from sabot.state.tables.rows import RowStore
from sabot.state.tables.store import TableStore

__all__ = ["GroupAggregate", "Groups", "KeptGroups", "LastOfChanges", "LatestRows"]

Array: TypeAlias = pa.Array

_ROWS, _TIME = "__rows", "__at"  # hidden calls: how many rows a group has; the time of its row
_KEPT = "kept"


class KeptGroups(Keeping):
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
        place = context.input.get_field_index(OP_COLUMN)
        self._input = context.input if place < 0 else context.input.remove(place)
        self._timed = TIME_COLUMN in self._input.names
        self._keys, _ = key_columns(self._names, self._input)
        self._groups = self._make(context)
        self.kept = Keeper(context, self._groups.keeps(), keyed=len(self._names) > 0)
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
        changed = was | now if groups.always_change else was != now
        if before and not groups.always_change:
            changed |= was & now & differ(before, after)
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

    def group_count(self) -> int:
        return self._there().count

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
    def keeps(self) -> list[Kept]:
        """What of it stands in a checkpoint."""

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

    def keeps(self) -> list[Kept]:
        keys = range(len(self.saved_schema) - self._beside())
        beside = Columns(_KEPT, lambda: list(self.saved()), self.load, schema=self.saved_schema, keys=keys)
        return [Stored("tables", self.store), beside]

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
        self._values: list[Values | None] = [  # a call; None: it is the aggregator's
            Values(call, input.field(call.argument).type, field.type) if call.kind == "count_distinct" else None
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
        times = columns[1].fill_null(START_OF_TIME).to_numpy() if self._timed else None
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
            for slots in slot_pieces(table):
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
        for slots in slot_pieces(table):
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

    The store's lanes are sums of int64, to which a row gives, or from which it takes; with the greatest time behind them.
    """

    def __init__(
        self,
        keys: Sequence[str],
        calls: Sequence[Call],
        input: pa.Schema,
        context: OperatorContext,
        beside: Sequence["Beside"] = (),
    ) -> None:
        self._keys = list(keys)
        self._input = input
        self._timed = TIME_COLUMN in input.names
        described = Aggregator(
            keys, calls, input, order=TIME_COLUMN if self._timed else None
        )  # checks, and says the types
        self.fields = list(described.schema)[len(keys) :]
        self._lanes = 1  # how many rows; of each call, what it adds up
        self._parts: list[Lanes | Beside] = [
            self._part(call, field.type) for call, field in zip(calls, self.fields, strict=True)
        ]
        self._parts += beside
        self._holders = [part for part in self._parts if isinstance(part, Beside)]
        self._key_schema = described.keys
        aggregates = [("sum", pa.int64())] * self._lanes + ([("max", pa.int64())] if self._timed else [])
        self.store = TableStore(
            described.keys,
            aggregates,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not self._holders,
        )
        kept = [pa.field(f"{_KEPT} {i}", pa.large_binary()) for i in range(len(self._holders))]
        self.saved_schema = pa.schema([*described.keys, *kept])

    def _part(self, call: Call, result: pa.DataType) -> "Lanes | Beside":
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
            return Sums(call, kind, result)
        if call.kind in ("arg_min", "arg_max"):
            return Best(call, kind, result, self._input.field(call.by).type)
        if call.kind in ("min", "max", "count_distinct", "top_k", "any"):
            return Values(call, kind, result)
        if call.kind == "approx_quantile":
            return QuantileSketches(call)
        return InOrder(call, self._input, result)

    def _lanes_of(self, call: Call, kind: pa.DataType | None, result: pa.DataType) -> "Lanes":
        first = self._lanes
        self._lanes += 1 if call.kind == "count" else 3
        return Lanes(call, kind, result, first)

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        columns = table.values(slots)
        rows = columns[0].fill_null(0).to_numpy()
        times = columns[-1].fill_null(START_OF_TIME).to_numpy() if self._timed else None
        numbers = slots.to_numpy()
        found: list[Array] = []
        for part in self._parts:
            found += [part.results(columns)] if isinstance(part, Lanes) else part.columns(numbers, rows)
        return rows, times, found

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        rows = ChangedRows(batch, slots.to_numpy(), self._timed)
        lanes = [pa.array(rows.by)]
        for part in self._parts:
            if isinstance(part, Lanes):
                lanes += part.lanes(rows)
            else:
                part.add(rows)
        self._accumulate(table, slots, lanes, np.full(len(slots), START_OF_TIME))

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        if self._timed and changed.any():
            zero = pa.array(np.zeros(len(slots), np.int64))
            lanes = [zero] * self._lanes
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
            for slots in slot_pieces(table):
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
            for slots in slot_pieces(table):
                yield [*table.key_columns(slots), *self.results(table, slots)[2]]
            return
        width = len(self._keys)
        for columns in self.store.finish():
            parts = [part for part in self._parts if isinstance(part, Lanes)]
            yield [*columns[:width], *(part.results(columns[width:]) for part in parts)]

    def close(self) -> None:
        self.store.close()
        for holder in self._holders:
            holder.store.clear()

    def statistics(self) -> dict[str, Any]:
        figures = self.store.statistics()
        return {**figures, "bytes": figures["bytes"] + sum(holder.store.nbytes for holder in self._holders)}


class LastOfChanges(_Kept):
    """The last row of each key whose rows may be taken away: all of them are kept, in memory."""

    def __init__(self, keys: Sequence[str], input: pa.Schema, context: OperatorContext) -> None:
        fields = pa.schema([field for field in without_marks(input) if field.name not in keys])
        super().__init__(keys, [], input, context, [WholeRows(fields)])
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
        times = rows.column(TIME_COLUMN).fill_null(START_OF_TIME).to_numpy() if self._timed else None
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

    def keeps(self) -> list[Kept]:
        return [Stored("tables", self, folder="")]

    def cut(self) -> tuple[dict[str, Any], Cut | None]:
        """As a store does: the rows at a barrier."""
        return self._rows.cut()

    def restore(self, saved: Sequence[Saved], owned: Owned | None = None) -> None:
        """As a store does; which slot has which row is found anew."""
        self._rows.restore(saved, owned)
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
