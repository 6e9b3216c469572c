"""State of grouped aggregates whose input may remove rows."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator, slot_pieces
from sabot.engine.operators.aggregates.decimals import named_by
from sabot.engine.operators.aggregates.migration import StateLayout, StatePlace
from sabot.engine.operators.aggregates.values import (
    ArgMinMax,
    ChangedRows,
    DecimalMeans,
    OrderedValues,
    QuantileSketches,
    SlotValues,
    Sums,
    Values,
    WholeRows,
    WholeSums,
)
from sabot.engine.operators.base import START_OF_TIME, TIME_COLUMN, OperatorContext, without_marks
from sabot.engine.operators.changes.state import KEPT, Array, StoredGroups
from sabot.engine.state.tables.store import TableStore
from sabot.errors import UserError


class RemovableGroups(StoredGroups):
    """Groups that keep, for each aggregate, enough to remove a row again.

    The accumulators in the store are sums of int64: adding a row adds to them, removing one subtracts. If rows have
    event times, the last accumulator is the greatest event time.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        input: pa.Schema,
        context: OperatorContext,
        beside: Sequence["SlotValues"] = (),
    ) -> None:
        self._keys = list(keys)
        self._input = input
        self._timed = TIME_COLUMN in input.names
        order = TIME_COLUMN if self._timed else None
        # checks the columns, and gives the types of the results
        described = Aggregator(keys, aggregates, input, order=order)
        self.fields = list(described.schema)[len(keys) :]
        self._figures = 1  # the number of sums in the store: the row count, then those of each aggregate
        self._parts: list[WholeSums | SlotValues] = [
            self._part(aggregate, field.type) for aggregate, field in zip(aggregates, self.fields, strict=True)
        ]
        self._parts += beside
        self._holders = [part for part in self._parts if isinstance(part, SlotValues)]
        self._key_schema = described.keys
        figures = [("sum", pa.int64())] * self._figures + ([("max", pa.int64())] if self._timed else [])
        self.store = TableStore(
            described.keys,
            figures,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not self._holders,
            owners=context.owners(keys),
        )
        kept = [pa.field(f"{KEPT} {i}", pa.large_binary()) for i in range(len(self._holders))]
        self.saved_schema = pa.schema([*described.keys, *kept])
        names = iter(field.name for field in kept)
        places = [
            StatePlace(part.accumulators, ()) if isinstance(part, WholeSums) else StatePlace((), [next(names)])
            for part in self._parts
        ]
        hidden = [StatePlace([0], ()), *([StatePlace([self._figures], ())] if self._timed else [])]
        self.layout = StateLayout(partial(GroupTable, described.keys, figures), self.saved_schema, [*places, *hidden])
        self.make_empty = partial(RemovableGroups, keys, aggregates, input, OperatorContext(input))
        self.begin(context)

    def _part(self, aggregate: AggregateColumn, result: pa.DataType) -> "WholeSums | SlotValues":
        if aggregate.kind == "approx_count_distinct":
            raise UserError(
                f"{aggregate.name}: approx_count_distinct does not work over changes, since it cannot remove a row",
                hint="use count_distinct",
            )
        kind = None if aggregate.argument is None else self._input.field(aggregate.argument).type
        whole = kind is not None and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))
        if aggregate.kind == "count" or (whole and aggregate.kind in ("sum", "mean")):
            return self._added(WholeSums(aggregate, kind, result, self._figures))
        if aggregate.adds_decimals(self._input):
            return self._added(DecimalMeans(aggregate, kind, result, self._figures))
        if aggregate.kind in ("sum", "mean", "variance", "stddev"):
            return Sums(aggregate, kind, result)
        if aggregate.kind in ("arg_min", "arg_max"):
            return ArgMinMax(aggregate, kind, result, self._input.field(aggregate.by).type)
        if aggregate.kind in ("min", "max", "count_distinct", "collect_set", "top_k", "any"):
            return Values(aggregate, kind, result)
        if aggregate.kind == "approx_quantile":
            return QuantileSketches(aggregate)
        return OrderedValues(aggregate, self._input, result)

    def _added(self, part: "WholeSums") -> "WholeSums":
        self._figures += len(part.accumulators)
        return part

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        columns = table.values(slots)
        rows = columns[0].fill_null(0).to_numpy()
        times = columns[-1].fill_null(START_OF_TIME).to_numpy() if self._timed else None
        numbers = slots.to_numpy()
        found: list[Array] = []
        with named_by(lambda row: self._key_of(table, slots.slice(row, 1))):
            for part in self._parts:
                found += [part.results(columns)] if isinstance(part, WholeSums) else part.columns(numbers, rows)
        return rows, times, found

    def _key_of(self, table: GroupTable, slot: pa.Int32Array) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(table.key_columns(slot), schema=self._key_schema)

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        rows = ChangedRows(batch, slots.to_numpy(), self._timed)
        figures = [pa.array(rows.by)]
        for part in self._parts:
            if isinstance(part, WholeSums):
                figures += part.figures(rows)
            else:
                part.add(rows)
        self._accumulate(table, slots, figures, np.full(len(slots), START_OF_TIME))

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        if self._timed and changed.any():
            zero = pa.array(np.zeros(len(slots), np.int64))
            figures = [zero] * self._figures
            self._accumulate(table, pa.array(np.where(changed, slots.to_numpy(), np.int32(-1))), figures, latest)

    def _accumulate(self, table: GroupTable, slots: pa.Int32Array, figures: list[Array], times: Any) -> None:
        if self._timed:
            figures = [*figures, pa.array(times)]
        data = pa.RecordBatch.from_arrays(figures, names=[str(i) for i in range(len(figures))])
        table.accumulate(slots, data, range(len(figures)))

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        table.remove(slots)
        self.forget(0, slots)

    def saved_of(self, table: GroupTable, slots: pa.Int32Array) -> pa.RecordBatch:
        states = [holder.store.save(slots.to_numpy()) for holder in self._holders]
        return pa.RecordBatch.from_arrays([*table.key_columns(slots), *states], schema=self.saved_schema)

    def load(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        for holder, column in zip(self._holders, state.columns[len(self._keys) :], strict=True):
            holder.store.load(slots.to_numpy(), column)

    def take_parts(self, other: "RemovableGroups", numbers: Sequence[int]) -> None:
        """Copies the state of the aggregates number `numbers` from `other`, which has the same aggregates. These
        groups must have no state for them yet.
        """
        accumulators = {index for number in numbers for index in self.layout.places[number].accumulators}
        width, blank = len(self._keys), self.layout.table()
        holders = [
            (place, each) for place, each in enumerate(self._holders) if each in [self._parts[n] for n in numbers]
        ]
        for rows in other.every():
            nothing = blank.export(blank.resolve(rows.slice(0, 1), range(width)))
            keys = rows.columns[:width]
            repeated = pa.array(np.zeros(rows.num_rows, np.int32))
            state = [
                rows.column(name)
                if int(name.partition(".")[0]) in accumulators
                else nothing.column(name).take(repeated)
                for name in nothing.schema.names[width:]
            ]
            with self.changing:
                self.fetch(Batch(rows), range(width))
                table = self.store.table()
                self.note(table.resolve(rows, range(width)))
                slots = table.merge(pa.RecordBatch.from_arrays([*keys, *state], schema=nothing.schema))
                for place, holder in holders:
                    holder.store.load(slots.to_numpy(), rows.column(len(nothing.schema) + place))
                self.settle()
            blank.clear()

    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        for holder in self._holders:
            holder.store.remove(slots.to_numpy())

    def forget_all(self) -> None:
        for holder in self._holders:
            holder.store.clear()

    @property
    def nbytes(self) -> int:
        return sum(holder.store.nbytes for holder in self._holders)

    def contents_in_memory(self) -> Iterator[list[Array]]:
        if self._holders:
            table = self.store.table()
            for slots in slot_pieces(table):
                yield [*table.key_columns(slots), *self.results(table, slots)[2]]
            return
        width = len(self._keys)
        for columns in self.store.finish():
            parts = [part for part in self._parts if isinstance(part, WholeSums)]
            yield [*columns[:width], *(part.results(columns[width:]) for part in parts)]


class LastOfChanges(RemovableGroups):
    """The last row of each key of an input that may remove rows. All rows of a key are kept."""

    def __init__(self, keys: Sequence[str], input: pa.Schema, context: OperatorContext) -> None:
        fields = pa.schema([field for field in without_marks(input) if field.name not in keys])
        super().__init__(keys, [], input, context, [WholeRows(fields)])
        self.fields = list(fields)
        self.make_empty = partial(LastOfChanges, keys, input, OperatorContext(input))
