"""A batch agent: its function is called once for each batch, with Arrow as argument and result."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.border import validate
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, CallTimers
from sabot.codecs import Codec
from sabot.codecs.base import many_rows
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, bad_records, to_records
from sabot.connectors.base import Sink
from sabot.engine.calls.functions import awaitable
from sabot.engine.operators.agents.lanes import LaneOperator
from sabot.engine.operators.agents.operator import AgentOperator, Port
from sabot.engine.operators.agents.rows import place_of, rows_of
from sabot.engine.operators.row_queue import QueuedRows
from sabot.errors import RowErrors, UserError


class _HeldBatch(QueuedRows):
    """A batch in the queue, with its call. `columns`, `records`: its rows, without the rows that the agent has named
    as bad.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.num_rows, batch.data if batch.records is None else batch.records, topic=batch.topic)
        self.nbytes = batch.nbytes
        self.offsets = batch.offsets
        self.columns = batch.data
        self.records = batch.records

    @property
    def held(self) -> "_HeldBatch":
        return self


class BatchAgentOperator(LaneOperator):
    """The operator of a batch agent. It calls the function with columns, and stores the undecoded records beside
    them, for dead letters and checkpoints.
    """

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._output = BatchOutput(spec, self.port, self.now_ms)
        self._no_timers = CallTimers(spec.agent_id, fires=False)

    def put(self, batch: Batch) -> None:
        held = _HeldBatch(good_rows(self, with_columns(self, batch)))
        self.hold_rows(held)
        if held.left:
            self.lanes[0].queue.append(held)
            self.lanes[0].rouse()

    def end_rows_of(self, item: _HeldBatch) -> bool:
        if item.left:
            self.held.end_rows(item, item.waiting())
        return True

    def unfinished(self) -> list[Batch]:
        left = [(held.waiting_data(), held.topic) for held in self.held]
        return [Batch(rows, None, topic) for rows, topic in left if rows is not None]

    def _where(self, item: _HeldBatch) -> str:
        ends = ", ".join(f"{topic}[{partition}]@<{offset}" for (topic, partition), offset in item.offsets.items())
        if item.records is not None and item.rows:
            assert item.data is not None
            first = item.data.slice(0, 1).to_pylist()[0]
            return f"{item.topic}[{first['partition']}]@{first['offset']} ({item.rows} rows)"
        return f"{ends or item.topic} ({item.rows} rows)"

    def begin(self, item: _HeldBatch, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        data = item.columns
        ctx = AgentContext(
            data,
            self.backend,
            topic=item.topic,
            agent_id=self.spec.agent_id,
            buffered=True,
            clock=self.clock,
            timers=self._no_timers,
        )
        value = run(self.spec.func, data, ctx) if data.num_rows else None
        return ctx, *awaitable(value)

    def _end(self, item: _HeldBatch, output: pa.RecordBatch | None) -> None:
        if output is not None and output.num_rows and self.results is not None:
            self.results.put(Batch(output, None, self.spec.agent_id))
        self.counters.messages_processed += item.left
        self.counters.last_message_time = self.clock.time()

    def _salvage(self, item: _HeldBatch, failure: BaseException, attempts: int) -> bool:
        data, records = item.columns, item.records
        if not isinstance(failure, RowErrors) or not named_rows(failure, data):
            return False
        self.counters.errors_count += len(failure.rows)
        self._give_up(item, failure.rows, attempts)
        keep = pa.array([row not in failure.rows for row in range(data.num_rows)])
        item.columns, item.records = data.filter(keep), None if records is None else records.filter(keep)
        self.held.end_rows(item, item.waiting()[list(failure.rows)])
        return True

    def renew(self, item: _HeldBatch) -> None:
        """Does nothing: Arrow data cannot be changed."""

    def _send_to_dead_letters(self, item: _HeldBatch, failure: BaseException, attempts: int) -> None:
        self._give_up(item, dict.fromkeys(range(item.left), failure), attempts)

    def _give_up(self, item: _HeldBatch, reasons: dict[int, Any], attempts: int) -> None:
        """Sends rows of the current call's data to the dead letters. `reasons`: the reason for each row, by its
        number.
        """
        data, records = item.columns, item.records
        picked = pa.array(list(reasons), pa.int64())
        rows = to_records(Batch(data.take(picked)), self.now_ms()) if records is None else records.take(picked)
        for row, reason in zip(rows_of(rows, item.topic), reasons.values(), strict=True):
            self.dead_letter(row, reason, attempts)

    def written(self, item: _HeldBatch, value: Any) -> pa.RecordBatch:
        """Returns the result in the form in which it is emitted. Raises TypeError if it is not Arrow, ArrowInvalid if
        it is damaged, and UserError if the receiver cannot accept its types.
        """
        return self._output.written(returned(value))


class BatchOutput:
    """Converts the results of a batch agent to the form that their receiver needs."""

    def __init__(self, spec: AgentSpec, port: Port | None, now_ms: Callable[[], int]) -> None:
        self._spec, self._port, self._now_ms = spec, port, now_ms
        self._checked: pa.Schema | None = None  # the last columns that the sink has accepted
        name, format = next(iter(spec.sink_formats.items()), (spec.agent_id, JSON))
        self._encoder = format.encoder(name)

    def written(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns a result as records (RECORD_SCHEMA) or as columns, as the receiver needs. Raises UserError for
        types that the receiver cannot accept.
        """
        spec, port = self._spec, self._port
        if spec.key is not None and spec.key in batch.schema.names:
            keys = batch.column(spec.key).cast(pa.string()).cast(pa.binary())
            return self._as_records(batch).set_column(1, RECORD_SCHEMA.field(1), keys)
        if port is not None and port.takes_records:
            return self._as_records(batch)
        if isinstance(spec.sink, str) and not spec.writes_json:
            assert spec.sink_format is not None
            spec.sink_format.check_types(batch.schema, f"agent {spec.agent_id}, to {spec.sink}")
        elif isinstance(spec.sink, str):
            # a type that JSON cannot encode must be an error of this call, not of the sink
            to_records(Batch(batch.slice(0, 1)), 0)
        elif isinstance(spec.sink, Sink) and (self._checked is None or not batch.schema.equals(self._checked)):
            spec.sink.check_types(batch.schema)
            self._checked = batch.schema
        return batch if port is None else port.fitted(batch)

    def _as_records(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Converts rows to records. Their partition is -1, because they come from no single record of the input."""
        nowhere = pa.array(np.full(batch.num_rows, -1, dtype=np.int32))
        return to_records(Batch(batch), self._now_ms(), None, self._encoder).set_column(
            3, RECORD_SCHEMA.field(3), nowhere
        )


def returned(value: Any) -> pa.RecordBatch:
    """Converts the result of a batch agent to a RecordBatch with Sabot's column types. Raises TypeError if it is not
    Arrow, and ArrowInvalid if it is damaged.
    """
    if not hasattr(value, "__arrow_c_array__") and not hasattr(value, "__arrow_c_stream__"):
        raise TypeError(f"a batch agent returns a RecordBatch (or Table, or None), not {type(value).__name__}")
    batch = normalise(value)
    validate(batch)
    return batch


def named_rows(error: RowErrors, data: pa.RecordBatch) -> bool:
    """Returns True if the error names at least one row, and every row that it names exists in this batch."""
    return bool(error.rows) and all(0 <= row < data.num_rows for row in error.rows)


def with_columns(operator: AgentOperator, batch: Batch) -> Batch:
    """Returns the batch decoded to columns, with its records beside them. If no schema fits all records, the agent
    fails, and the batch is returned undecoded.
    """
    if batch.records is not None or not batch.data.schema.equals(RECORD_SCHEMA):
        return batch
    try:
        return decoded(batch, operator.codec_for(batch.topic))
    except UserError as error:
        operator.fail(error, f"its input {batch.topic}")
        return batch


def good_rows(operator: AgentOperator, batch: Batch) -> Batch:
    """Returns the batch without the rows that could not be decoded. Those rows are sent to the dead letters."""
    records, bad = batch.records, batch.rejected
    if not bad:
        return batch
    assert records is not None
    operator.counters.errors_count += len(bad)
    rows = pa.array([entry.row for entry in bad], pa.int64())
    for row, entry in zip(rows_of(records.take(rows), batch.topic), bad, strict=True):
        operator.dead_letter(row, f"{place_of(row)}: {entry.reason}", 0)
    good = np.ones(records.num_rows, dtype=bool)
    good[rows.to_numpy()] = False
    return Batch(batch.data, batch.offsets, batch.topic, records.filter(pa.array(good)))


def decoded(batch: Batch, codec: Codec) -> Batch:
    """Returns the batch decoded to columns, with its records beside them; without the records if one record can have
    several rows.
    """
    if (many := many_rows(codec)) is not None:
        rows, _, misread = many(batch.data)
        apart = bad_records(batch.data, misread)
        if batch.bad is not None:
            apart = pa.concat_batches([batch.bad, apart])
        return Batch(rows, batch.offsets, batch.topic, bad=apart if apart.num_rows else None)
    data, bad = codec.decode(batch.data)
    return Batch(data, batch.offsets, batch.topic, batch.data, bad, bad=batch.bad)
