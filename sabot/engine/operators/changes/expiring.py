"""Aggregates by key whose keys expire: the changes of a table, of which only the keys with recent rows are state."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.rows.changes import Touches
from sabot._cython.windows.sessions import RunTable
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, aggregates_reader
from sabot.engine.operators.base import OperatorContext, Saved, with_marks
from sabot.engine.operators.changes.weaving import Weave, differ
from sabot.engine.operators.columns import result_schema, time_index
from sabot.engine.operators.readers import StateReaders, aggregates_of
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts, columns_schema
from sabot.engine.operators.windows.sessions import RunAggregates, plus_ms

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep


class ExpiringGroups(StatefulOperator):
    """The `aggregates` of the rows of each key since its rows were last `ttl_ms` or more of event time apart, as changes
    of a table with one row (keys, aggregates) for each key. Rows must come in the order of their event time.

    A batch emits for each key an insert if the key starts, or an update pair if its result has changed. A key that
    expires is forgotten, and emits nothing: its row stays in the table that a sink has made of the changes, until the
    insert with which the key starts anew replaces it.
    """

    def __init__(self, keys: Sequence[str], aggregates: Sequence[AggregateColumn], ttl_ms: int) -> None:
        self._names, self._aggregates, self._ttl_ms = list(keys), list(aggregates), ttl_ms
        self._state: Any = None  # a RunAggregates: the rows of a key between two expiries are a run

    def open(self, context: OperatorContext) -> pa.Schema:
        self._input = context.input
        self._time = time_index(context.input, "group_by with a ttl")
        self._runs, self._touches = RunTable(idle_ms=self._ttl_ms), Touches()
        self._state = RunAggregates(self._names, self._aggregates, context, self._runs, self._due)
        self.state_parts = StateParts(context, [self._state])
        self._columns = result_schema([*self._state.keys, *self._state.results], timed=False)
        self._schema = with_marks(self._columns, op=True, timed=True)
        return self._schema

    def _due(self, runs: pa.RecordBatch) -> Any:
        return plus_ms(runs.column("last"), self._ttl_ms)

    def process(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        state: RunAggregates = self._state
        times = batch.data.column(self._time)
        with state.changing:
            runs, began, _, ended = self._runs.add(state.resolve(batch), times, batch.selection)
            state.begin(began)
            some = times if batch.selection is None else times.take(batch.selection)
            touched, _, _, latest = self._touches.of(runs.to_numpy(), some.to_numpy())
            numbers = pa.array(touched)
            before = state.aggregates(numbers)
            state.add(runs.to_numpy(), batch.data, batch.selection)
            after = state.aggregates(numbers)
            was = ~np.isin(touched, began.to_numpy())
            changed = ~was | differ(before, after)
            keys = state.key_columns(numbers)
            state.remove(ended)
            state.settle()
        if not changed.any():
            return
        weave = Weave(was & changed, changed)
        columns = [weave.woven(key, key) for key in keys]
        columns += [weave.woven(old, new) for old, new in zip(before, after, strict=True)]
        columns += [weave.ops(), weave.woven(pa.array(latest), pa.array(latest))]
        self.emit(batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))

    def advance(self, watermark_ms: int) -> None:
        for _ in self._state.due(watermark_ms):
            with self._state.changing:
                self._state.remove(self._runs.advance(watermark_ms))

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._state.before_restore(saved, self.forgets)

    def group_count(self) -> int:
        return 0 if self._state is None else int(self._state.count)

    def contents(self) -> Iterator[pa.RecordBatch]:
        for _, keys, aggregates in self._state.contents():
            yield pa.RecordBatch.from_arrays([*keys, *aggregates], schema=self._columns)

    def state_schema(self) -> StateSchema:
        keys = columns_schema(self._state.keys)
        aggregates: StateSchema = self._state.aggregates_schema()
        return {"kind": "expiring groups", "keys": keys, "ttl": self._ttl_ms, **aggregates}

    def state_reader(self) -> StateReader:
        return {**aggregates_reader(self._names, self._aggregates, self._input), "ttl_ms": self._ttl_ms}

    def close(self) -> None:
        if self._state is not None:
            self._state.clear()

    def statistics(self) -> "ToldStep":
        return {} if self._state is None else self._state.statistics()


def _read_with(reader: Mapping[str, Any]) -> ExpiringGroups:
    return ExpiringGroups(reader["keys"], aggregates_of(reader), reader["ttl_ms"])


STATE_READERS: StateReaders = {"expiring groups": _read_with}
