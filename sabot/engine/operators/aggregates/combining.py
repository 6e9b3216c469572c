"""The first of two phases of an aggregate in windows: each batch becomes one partial state for each key and pane."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.windows import TimeWindow
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, Aggregator
from sabot.engine.operators.aggregates.gather import joined
from sabot.engine.operators.base import TIME_COLUMN, Operator, OperatorContext
from sabot.engine.operators.columns import time_index
from sabot.engine.operators.windows.panes import PANE_COLUMN, shape_of
from sabot.errors import InternalError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

ROWS_COLUMN = "__rows"  # the number of rows that a partial state combines

_INPUT = b"sabot.input"  # a key of the metadata of partial states' schema: the columns of the rows that were combined
_INT64 = pa.int64()


class LocalCombine(Operator):
    """The first phase of a two-phase aggregate, before rows change threads. It combines the rows of a batch by key
    and pane.

    It emits the states of the aggregates as columns, with PANE_COLUMN and ROWS_COLUMN. Their receiver is a
    `WindowAggregate(…, partial=True)` with the same window, keys and aggregates. LocalCombine has no state. It saves
    time if a batch has many rows of each group.
    """

    def __init__(self, window: TimeWindow, keys: Sequence[str], aggregates: Sequence[AggregateColumn]) -> None:
        self._shape = shape_of(window)
        self._keys, self._aggregates = tuple(keys), tuple(aggregates)
        self._rows_in = self._rows_out = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        self._time = time_index(context.input, "windows of event time")
        aggregates = [*self._aggregates, AggregateColumn(ROWS_COLUMN, "count")]
        self._aggregator = Aggregator(self._keys, aggregates, context.input, order=TIME_COLUMN)
        counts = zip(self._aggregator.kernel, self._aggregator.arguments, self._aggregator.filters, strict=True)
        self._rows = self._aggregator.states.names.index(f"{list(counts).index((('count', None), -1, -1))}.count")
        self._table, self._extras = self._aggregator.table(), self._aggregator.extras()
        pane = pa.field(PANE_COLUMN, _INT64)
        self._by_pane = Aggregator(
            [*self._keys, PANE_COLUMN], aggregates, context.input.append(pane), order=TIME_COLUMN
        )
        fields = [*self._aggregator.states, pa.field(PANE_COLUMN, pa.int64()), pa.field(ROWS_COLUMN, pa.int64())]
        self._schema = pa.schema(fields, metadata={_INPUT: context.input.serialize().to_pybytes()})
        return self._schema

    def process(self, batch: Batch) -> None:
        times = batch.data.column(self._time)
        sparse = self._shape.sparse_rows(times, batch.selection)
        states = self._states(batch, times) if sparse is None else self._states_by_pane(batch.data, *sparse)
        if states:
            combined = joined(states)
            self._rows_in += batch.num_rows
            self._rows_out += combined.num_rows
            self.emit(batch.with_data(combined))

    def _states(self, batch: Batch, times: pa.Int64Array) -> list[pa.RecordBatch]:
        states = []
        for pane, rows in self._shape.split(times, batch.selection)[1]:
            self._aggregator.add(self._table, self._extras, batch.data, rows, batch.hashes)
            for state in self._aggregator.export_of(self._table, self._extras):
                columns = [
                    *state.columns,
                    repeated(pane, state.num_rows),
                    state.column(self._rows),
                ]
                states.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._table.clear()
            self._extras.clear()
        return states

    def _states_by_pane(self, data: pa.RecordBatch, rows: Any, times: Any) -> list[pa.RecordBatch]:
        """Combines rows of many panes at once: a table for each of these panes would take longer than its rows."""
        panes = np.zeros(data.num_rows, np.int64)
        panes[rows] = self._shape.starts(times)
        table, extras = self._by_pane.table(), self._by_pane.extras()
        self._by_pane.add(table, extras, data.append_column(PANE_COLUMN, pa.array(panes)), pa.array(rows))
        kept = [*self._aggregator.states.names, PANE_COLUMN, self._aggregator.states.names[self._rows]]
        states = self._by_pane.export_of(table, extras)
        return [
            pa.RecordBatch.from_arrays([state.column(name) for name in kept], schema=self._schema) for state in states
        ]

    def statistics(self) -> "ToldStep":
        return {"rows_in": self._rows_in, "rows_out": self._rows_out}


def combined_input(partial: pa.Schema) -> pa.Schema:
    """Returns the columns of the input rows from which partial states were computed. `partial`: the columns of the
    partial states. Raises InternalError for other columns.
    """
    metadata = partial.metadata or {}
    if _INPUT not in metadata:
        raise InternalError(f"{partial.names} are not the columns of partial states of a window")
    return pa.ipc.read_schema(pa.py_buffer(metadata[_INPUT]))


def repeated(value: int, rows: int, kind: pa.DataType = _INT64) -> pa.Array:
    """Returns a column that repeats the value `rows` times."""
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(np.full(rows, value, np.int64))], 0)
