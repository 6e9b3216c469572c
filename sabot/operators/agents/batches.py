"""A batch agent: one call per batch, Arrow in, Arrow out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.border import validate
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, CallTimers
from sabot.calls.functions import awaitable
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, to_records
from sabot.connectors.base import Sink
from sabot.errors import RowErrors, UserError
from sabot.operators.agents.operator import AgentOperator, rows_of

__all__ = ["BatchAgentOperator", "decoded"]


class BatchAgentOperator(AgentOperator):
    """Batches of columns; the undecoded records travel along, for dead letters and checkpoints."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._current: tuple[pa.RecordBatch, pa.RecordBatch | None] | None = None
        self._to_records = self.port is not None and self.port.takes_records
        self._no_timers = CallTimers(spec.agent_id, fires=False)
        self._checked: pa.Schema | None = None  # columns that the sink takes

    def put(self, batch: Batch) -> None:
        if batch.records is None and batch.data.schema.equals(RECORD_SCHEMA):
            codec = self.codecs.setdefault(batch.topic, JsonCodec(self.spec.schema))
            try:
                batch = decoded(batch, codec)
            except UserError as error:  # no schema fits: the records stay as they are, for the checkpoint
                self.fail(error, f"its input {batch.topic}")
        if batch.rejected:
            batch = self._reject(batch)
        self._took(batch.num_rows, batch.nbytes)
        self._lanes[0].queue.append(batch)
        self._lanes[0].rouse()

    def _reject(self, batch: Batch) -> Batch:
        """Rows that could not be decoded -> dead letters; -> the same batch without them."""
        records, bad = batch.records, batch.rejected
        assert records is not None
        self.counters.errors_count += len(bad)
        rows = pa.array([entry.row for entry in bad], pa.int64())
        for row, entry in zip(rows_of(records.take(rows), batch.topic), bad, strict=True):
            self._dead_letter(row, f"{row.topic}[{row.partition}]@{row.offset}: {entry.reason}", 0)
        good = np.ones(records.num_rows, dtype=bool)
        good[rows.to_numpy()] = False
        return Batch(batch.data, batch.offsets, batch.topic, records.filter(pa.array(good)))

    def unfinished(self) -> list[Batch]:
        batches = []
        for position, batch in enumerate(self._lanes[0].items()):
            data, records = batch.data, batch.records
            if position == 0 and self._current is not None:
                data, records = self._current
            batches.append(Batch(data if records is None else records, None, batch.topic))
        return batches

    def _where(self, item: Batch) -> str:
        ends = ", ".join(f"{topic}[{partition}]@<{offset}" for (topic, partition), offset in item.offsets.items())
        if item.records is not None and item.records.num_rows:
            first = item.records.slice(0, 1).to_pylist()[0]
            return f"{item.topic}[{first['partition']}]@{first['offset']} ({item.num_rows} rows)"
        return f"{ends or item.topic} ({item.num_rows} rows)"

    def begin(self, item: Batch, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        if self._current is None:
            self._current = (item.data, item.records)
        data = self._current[0]
        ctx = AgentContext(
            data,
            self._backend,
            topic=item.topic,
            agent_id=self.spec.agent_id,
            buffered=True,
            clock=self._clock,
            timers=self._no_timers,
        )
        value = run(self.spec.func, data, ctx) if data.num_rows else None
        return ctx, *awaitable(value)

    def _end(self, item: Batch, output: pa.RecordBatch | None) -> None:
        assert self._current is not None
        rows = self._current[0].num_rows
        self._current = None
        if output is not None and output.num_rows and self._results is not None:
            self._results.put(Batch(output, None, self.spec.agent_id))
        self.counters.messages_processed += rows
        self.counters.last_message_time = self._clock.time()

    def _salvage(self, item: Batch, failure: BaseException, attempts: int) -> bool:
        assert self._current is not None
        data, records = self._current
        if not isinstance(failure, RowErrors) or not self._named_rows(failure, data):
            return False
        self.counters.errors_count += len(failure.rows)
        self._give_up(item, failure.rows, attempts)
        keep = pa.array([row not in failure.rows for row in range(data.num_rows)])
        self._current = (data.filter(keep), None if records is None else records.filter(keep))
        return True

    def renew(self, item: Batch) -> None:
        """Arrow data does not change."""

    def _bury(self, item: Batch, failure: BaseException, attempts: int) -> None:
        assert self._current is not None
        self._give_up(item, dict.fromkeys(range(self._current[0].num_rows), failure), attempts)
        self._current = None

    @staticmethod
    def _named_rows(error: RowErrors, data: pa.RecordBatch) -> bool:
        return bool(error.rows) and all(0 <= row < data.num_rows for row in error.rows)

    def _give_up(self, item: Batch, reasons: dict[int, Any], attempts: int) -> None:
        """These rows of the current data, each with its reason, to the dead letters."""
        assert self._current is not None
        data, records = self._current
        picked = pa.array(list(reasons), pa.int64())
        rows = to_records(Batch(data.take(picked)), self._now_ms()) if records is None else records.take(picked)
        for row, reason in zip(rows_of(rows, item.topic), reasons.values(), strict=True):
            self._dead_letter(row, reason, attempts)

    def written(self, item: Batch, value: Any) -> pa.RecordBatch:
        """What a batch agent returned -> RECORD_SCHEMA or columns for its port. Raises TypeError for anything but Arrow, ArrowInvalid
        for what is damaged.
        """
        if not hasattr(value, "__arrow_c_array__") and not hasattr(value, "__arrow_c_stream__"):
            raise TypeError(f"a batch agent returns a RecordBatch (or Table, or None), not {type(value).__name__}")
        batch = normalise(value)
        validate(batch)
        if self.spec.key is not None and self.spec.key in batch.schema.names:
            keys = batch.column(self.spec.key).cast(pa.string()).cast(pa.binary())
            return self._as_records(batch).set_column(1, RECORD_SCHEMA.field(1), keys)
        if self._to_records:
            return self._as_records(batch)
        if isinstance(self.spec.sink, str):
            to_records(Batch(batch.slice(0, 1)), 0)  # a type that JSON cannot say is this call's error, not the sink's
        elif isinstance(self.spec.sink, Sink) and (self._checked is None or not batch.schema.equals(self._checked)):
            self.spec.sink.check_types(batch.schema)
            self._checked = batch.schema
        return batch

    def _as_records(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Rows as JSON records; partition -1: a row of a batch agent comes from no one row of its input."""
        nowhere = pa.array(np.full(batch.num_rows, -1, dtype=np.int32))
        return to_records(Batch(batch), self._now_ms()).set_column(3, RECORD_SCHEMA.field(3), nowhere)


def decoded(batch: Batch, codec: JsonCodec) -> Batch:
    """Records -> columns, with the records behind them."""
    data, bad = codec.decode(batch.data)
    return Batch(data, batch.offsets, batch.topic, batch.data, bad, bad=batch.bad)
