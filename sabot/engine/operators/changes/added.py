"""State of grouped aggregates whose input only adds rows."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator, slot_pieces
from sabot.engine.operators.aggregates.distinct import distinct_sets
from sabot.engine.operators.aggregates.migration import StateLayout, StatePlace
from sabot.engine.operators.aggregates.values import ChangedRows
from sabot.engine.operators.base import START_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.engine.operators.changes.state import KEPT, Array, StoredGroups
from sabot.engine.state.tables.store import TableStore

_ROWS, _TIME = "__rows", "__at"  # hidden aggregates: the group's row count; the event time of its result


class AddedGroups(StoredGroups):
    """Groups whose state is that of an `Aggregator`, with two hidden aggregates: the number of rows, and the event
    time of the result.

    Distinct values are kept outside of the Aggregator (`aggregates.distinct`): the Aggregator would count all
    distinct values of a group anew for the result after each batch.
    """

    def __init__(
        self, keys: Sequence[str], aggregates: Sequence[AggregateColumn], input: pa.Schema, context: OperatorContext
    ) -> None:
        timed = TIME_COLUMN in input.names
        order = TIME_COLUMN if timed else None
        hidden = [AggregateColumn(_ROWS, "count"), *([AggregateColumn(_TIME, "max", TIME_COLUMN)] if timed else [])]
        # checks the columns, and gives the types of the results
        described = Aggregator(keys, aggregates, input, order=order)
        self.fields = list(described.schema)[len(keys) :]
        self._sets = distinct_sets([each for each in aggregates if each.kind == "count_distinct"], input)
        counts = {each.aggregate.name: each for kept in self._sets for each in kept.counts}
        # for each aggregate its count of distinct values, or None if it is in the Aggregator
        self._counts = [counts.get(each.name) for each in aggregates]
        self._kept_counts = [each for each in self._counts if each is not None]
        others = [aggregate for aggregate, count in zip(aggregates, self._counts, strict=True) if count is None]
        self._aggregator = aggregator = Aggregator(keys, [*hidden, *others], input, order=order)
        self.always_change = any(c.kind == "count" and c.argument is None and c.where is None for c in aggregates)
        self._timed = timed
        self.store = TableStore(
            aggregator.keys,
            aggregator.kernel,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not (aggregator.needs_slots or self._sets),
            owners=context.owners(keys),
        )
        self._extras = aggregator.extras()
        kept = [pa.field(f"{KEPT} {i}", pa.large_binary()) for i in range(len(self._kept_counts))]
        self.saved_schema = pa.schema([*aggregator.gathered, *kept])
        standing, beside = iter(aggregator.layout.places[len(hidden) :]), iter(kept)
        places = [next(standing) if count is None else StatePlace((), [next(beside).name]) for count in self._counts]
        self.layout = StateLayout(
            aggregator.table, self.saved_schema, [*places, *aggregator.layout.places[: len(hidden)]]
        )
        # Event times are recorded only for groups whose results have changed, which is known after the other accumulators are updated. So
        # there are two passes over the accumulators; in each, a filter that is never true leaves out the accumulators of the other pass.
        self._filters = aggregator.filters
        self._time_filters: list[int] | None = None
        if timed and not self.always_change:
            time, never = aggregator.kernel_index("max", TIME_COLUMN), aggregator.width
            self._filters = [never if place == time else each for place, each in enumerate(aggregator.filters)]
            self._time_filters = [-1 if place == time else never for place in range(len(aggregator.filters))]
        self.make_empty = partial(AddedGroups, keys, aggregates, input, OperatorContext(input))
        self.begin(context)

    def results(self, table: GroupTable, slots: pa.Int32Array) -> tuple[Any, Any, list[Array]]:
        columns = self._aggregator.values(table, self._extras, slots)
        rows = columns[0].to_numpy()
        times = columns[1].fill_null(START_OF_TIME).to_numpy() if self._timed else None
        others = iter(columns[1 + self._timed :])
        numbers = slots.to_numpy()
        found = [next(others) if count is None else count.results(numbers) for count in self._counts]
        return rows, times, found

    def add(self, table: GroupTable, slots: pa.Int32Array, batch: Batch) -> None:
        data, selection = self._columns(batch.data), batch.selection
        aggregator = self._aggregator
        table.accumulate(slots, data, aggregator.arguments, self._filters, order=aggregator.order, selection=selection)
        if aggregator.needs_slots:
            self._extras.add(slots, data, selection)
        if self._sets:
            rows = ChangedRows(batch, slots.to_numpy(), self._timed)
            for kept in self._sets:
                kept.add(rows)

    def note_changes(self, table: GroupTable, slots: pa.Int32Array, batch: Batch, changed: Any, latest: Any) -> None:
        if self._timed and changed.any():
            some = pa.array(np.where(changed, slots.to_numpy(), np.int32(-1)))
            data = batch.data.slice(0, len(slots))  # only the times of these rows are used
            data = data.set_column(data.schema.get_field_index(TIME_COLUMN), TIME_COLUMN, pa.array(latest))
            table.accumulate(some, self._columns(data), self._aggregator.arguments, self._time_filters)

    def _columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        data = self._aggregator.columns(data)
        if self._time_filters is None:
            return data
        return data.append_column("never", pa.array(np.zeros(data.num_rows, bool)))

    def remove(self, table: GroupTable, slots: pa.Int32Array) -> None:
        raise AssertionError("a group to which rows are only added is never removed")

    def saved_of(self, table: GroupTable, slots: pa.Int32Array) -> pa.RecordBatch:
        states = [count.save(slots.to_numpy()) for count in self._kept_counts]
        columns = [*table.key_columns(slots), *self._extras.states(slots), *states]
        return pa.RecordBatch.from_arrays(columns, schema=self.saved_schema)

    def load(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        self._extras.merge(slots, state)
        for count, column in zip(self._kept_counts, state.columns[len(self._aggregator.gathered) :], strict=True):
            count.load(slots.to_numpy(), column)

    def forget(self, pane: int, slots: pa.Int32Array) -> None:
        self._extras.remove(slots)
        for kept in self._sets:
            kept.remove(slots.to_numpy())

    def forget_all(self) -> None:
        self._extras.clear()
        for kept in self._sets:
            kept.clear()

    @property
    def nbytes(self) -> int:
        return self._extras.nbytes + sum(kept.nbytes for kept in self._sets)

    def contents_in_memory(self) -> Iterator[list[Array]]:
        table = self.store.whole()
        if table is None:  # some groups are on disk; then there is no state outside the store
            hidden = 1 + self._timed
            width = len(self._aggregator.keys)
            for piece in self._aggregator.results(self.store, 0, self._extras):
                yield [*piece.columns[:width], *piece.columns[width + hidden :]]
            return
        for slots in slot_pieces(table):
            yield [*table.key_columns(slots), *self.results(table, slots)[2]]
