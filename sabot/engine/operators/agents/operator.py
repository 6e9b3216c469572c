"""The base of all agents' operators.

Input rows stay in a queue (`operators.row_queue`) until they have ended. State writes, results and the end of a row
happen in one step without an `await`. So the rows in the queue at a barrier are exactly those that a restore must
process again. Results and dead letters are put into ports. While the queue or a port for dead letters is full, the
agent task reads no input.

`lanes` makes the calls of agents that are not durable, `durable` runs jobs.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.agent import AgentSpec
from sabot.base.metrics import Durations, Sample, call_samples
from sabot.base.os_errors import hint_of
from sabot.base.process_exit import EXITS
from sabot.clock import Clock
from sabot.codecs import Codec
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, Headers
from sabot.engine.calls.error_log import ErrorLog
from sabot.engine.letters.form import attempts_before, letter_headers
from sabot.engine.letters.log import ReasonCounts
from sabot.engine.operators.agents.counters import Counters
from sabot.engine.operators.agents.payloads import RowPayloads, check_sample, payloads_of
from sabot.engine.operators.agents.rows import RecordReader, Result, Row, null_fields, place_of, records_batch, rows_of
from sabot.engine.operators.agents.timers import KeyTimers
from sabot.engine.operators.nulled import Nulled
from sabot.engine.operators.row_queue import QueuedRows, RowQueue
from sabot.engine.operators.state_facts import AgentFacts
from sabot.engine.state import StateBackend
from sabot.errors import AgentFailed, SabotError, UserError, message_of

if TYPE_CHECKING:
    from sabot.base.figures import ToldLanes

_log = logging.getLogger(__name__)

_SHIP_ROWS = 1024
_WAYS = 'nan="null" allows it without a warning, nan="fail" makes it an error'


class Port(Protocol):
    """A receiver of batches from an agent: the channel of a sink, or another agent."""

    @property
    def name(self) -> str:
        """The name of the sink, or the id of the agent."""

    @property
    def takes_records(self) -> bool:
        """True if the receiver needs records (RECORD_SCHEMA), False if it also takes columns."""

    @property
    def full(self) -> bool:
        """True if the caller must await `writable()` before it makes more rows. `put` still accepts rows that have
        been made.
        """

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with the columns and types of the receiver. Raises UserError for columns that it cannot
        take.
        """

    def put(self, batch: Batch) -> None:
        """Accepts the batch, in order. Never refuses and never blocks."""

    async def writable(self) -> None:
        """Waits until the receiver has room again, or is gone."""


class RowBuffer:
    """A buffer that joins the results of single calls to batches of RECORD_SCHEMA for a port."""

    def __init__(self, port: Port, topic: str, on_broken: Callable[[str, BaseException], None]) -> None:
        self.port = port
        self.rows_total = 0
        self._topic = topic
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._rows: list[tuple[bytes | None, bytes | None, int, int, int, Headers]] = []

    def add(
        self,
        payload: bytes | None,
        key: bytes | None,
        timestamp: int,
        partition: int,
        offset: int,
        headers: Headers = (),
    ) -> None:
        """Adds a row. The buffer is shipped when it has enough rows, at the latest in the next turn of the event
        loop.
        """
        rows = self._rows
        if not rows:
            self._loop.call_soon(self.ship)
        rows.append((payload, key, timestamp, partition, offset, headers))
        if len(rows) >= _SHIP_ROWS:
            self.ship()

    def ship(self) -> None:
        """Puts all rows of the buffer into the port. An error is reported to `on_broken`."""
        if self._rows:
            rows, self._rows = self._rows, []
            try:
                self.put(Batch(records_batch(rows), None, self._topic))
            except Exception as error:  # the calls of these rows have ended, so the rows must not be lost
                self._on_broken(f"output to {self.port.name}", error)

    def put(self, batch: Batch) -> None:
        """Puts a batch into the port. Rows of the buffer are not shipped first."""
        self.rows_total += batch.num_rows
        self.port.put(batch)


class AgentOperator(ABC):
    """The base class of all agents' operators. It belongs to the agent task, on its event loop."""

    timers: KeyTimers | None = None  # only for a record agent with on_timer=

    def __init__(
        self,
        spec: AgentSpec,
        *,
        backend: StateBackend | None,
        output: Port | None,
        dead_letters: Callable[[str], Port],
        on_failed: Callable[["AgentOperator"], None],
        on_broken: Callable[[str, BaseException], None],
        clock: Clock,
        counters: Counters,
        branches: Mapping[str, Port] = MappingProxyType({}),
        version: str = "",
        capacity_rows: int = 16384,
        capacity_bytes: int = 64 << 20,
    ) -> None:
        """`output`: the receiver of results, or None. `branches`: the sinks that a result may name, the first sink
        first. `dead_letters`: returns the port for dead letters of a topic. `on_failed`: called when the agent has
        failed. `on_broken`: called with a description and the error if state and output may no longer agree.
        """
        self.spec = spec
        self.backend = backend
        self.port = output
        self.on_broken = on_broken
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.failure: AgentFailed | None = None
        # Called on the event loop when the first row comes into the empty queue, and when the last row has left it.
        self.on_queue_changed: Callable[[], None] = _nothing
        self.blocked_jobs: dict[str, SabotError] = {}  # of a durable agent: the reasons by job id
        self.left_behind: list[str] = []  # the places of calls that could not be cancelled
        self.counters = counters
        self.codecs: dict[str, Codec] = {}  # by topic, because without a schema each topic has its own columns
        self.payload_of = payloads_of(spec)
        self.error_log = ErrorLog(f"agent {spec.agent_id}", clock)
        self.errors_before = counters.errors_count  # the count of earlier runs
        self.key_kinds: set[str] = set()  # the kinds of values that keys have had, in earlier runs too
        self._nulled = Nulled(spec.nan, _WAYS, _log)  # counts floats of results that JSON writes as null, in this run
        self.results = None if output is None else RowBuffer(output, spec.agent_id, on_broken)
        self.branches: dict[str, RowBuffer] = {}
        for name, port in branches.items():
            first = self.results if not self.branches else None
            self.branches[name] = first or RowBuffer(port, spec.agent_id, on_broken)
        self._outputs = list(self.branches.values()) or ([] if self.results is None else [self.results])
        self.held: RowQueue[Any] = RowQueue(capacity_rows, capacity_bytes)
        self._dead_port = dead_letters
        self._dead: dict[str, RowBuffer] = {}
        self._reasons = ReasonCounts()
        self._on_failed = on_failed
        self._version = version
        self._batch_seconds = Durations()
        self._notable_rows = 0  # `_progressed` is called when no more rows than these are left
        self._room: list[asyncio.Future[None]] = []
        self._quiet: list[asyncio.Future[None]] = []

    # -- start and end ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Begins to process rows; also after `quiesce` and `close`."""

    @abstractmethod
    async def quiesce(self, grace_s: float) -> None:
        """Stops processing new rows, and waits up to `grace_s` seconds for calls in flight."""

    @abstractmethod
    async def close(self) -> None:
        """Cancels calls in flight. Waiting rows stay in the queue. Idempotent."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """True if the agent processes no rows, because `quiesce` or `close` was called."""

    def now_ms(self) -> int:
        """Returns the processing time in ms since 1970."""
        return int(self.clock.time() * 1000)

    # -- input --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Adds rows to the queue, in order. Never refuses; the caller must look at `full` first."""

    def waiting_rows(self) -> int:
        """Returns the number of rows that have not ended. May be called from any thread."""
        return self.held.rows

    @property
    def full(self) -> bool:
        """True if the queue or a receiver of dead letters is full. The caller must then await `writable()`."""
        return not self.has_room or self.dead_letters_full

    @property
    def has_room(self) -> bool:
        """True if the queue has room for more rows."""
        return self.held.has_room

    @property
    def dead_letters_full(self) -> bool:
        """True if a receiver of dead letters is full. The next call must first await `dead_letters_writable()`."""
        return bool(self._dead) and any(buffer.port.full for buffer in self._dead.values())

    async def writable(self) -> None:
        """Waits until there is room, or the agent has failed. The agent's own calls must not await it, since only
        they make room.
        """
        await self.dead_letters_writable()
        while not self.has_room and self.failure is None:
            waiter = self.loop.create_future()
            self._room.append(waiter)
            self._notable_rows = self.held.capacity_rows // 2
            await waiter

    async def dead_letters_writable(self) -> None:
        """Waits until all receivers of dead letters have room, or are gone."""
        for buffer in list(self._dead.values()):
            await buffer.port.writable()

    async def drained(self) -> None:
        """Waits until every row has been processed, or the agent has failed or was stopped. Called when no more rows
        will come.
        """
        while self.unprocessed and self.failure is None and not self.stopped:
            waiter = self.loop.create_future()
            self._quiet.append(waiter)
            await waiter

    @property
    def unprocessed(self) -> bool:
        """True if `drained` must wait."""
        return self.held.rows > 0

    def hold_rows(self, held: QueuedRows) -> None:
        """Adds rows, or timers that are due, to the queue."""
        held.since = self.clock.monotonic()
        was_empty = not self.held.rows
        self.held.add(held)
        if was_empty:
            self.on_queue_changed()
        if not held.left:
            self._batch_seconds.add(0.0)
        self._progressed()

    def take_records(self, reader: RecordReader, batch: Batch) -> list[Row]:
        """Decodes a batch of records, adds the rows to the queue, and returns them. Rows that cannot be processed
        become dead letters.
        """
        held, rows, bad = reader.read(batch, self.now_ms())
        for row, error in bad:
            self.counters.errors_count += 1
            self.error_log.add(error, place_of(row), "it is a dead letter")
            self.dead_letter(row, error, 0)
        self.hold_rows(held)
        return rows

    def rows_ended(self, held: QueuedRows, *, last: bool) -> None:
        """Called when rows have ended and have left `self.held`. `last`: True if all rows that came together have
        ended.
        """
        if last:
            self._batch_seconds.add(self.clock.monotonic() - held.since)
        if self.held.rows <= self._notable_rows:
            self._progressed()

    def _progressed(self) -> None:
        """Wakes the callers that wait for room, or for the end of all rows, if they can go on."""
        rows, half = self.held.rows, self.held.capacity_rows // 2
        if not rows:
            self.on_queue_changed()
        if (self._room and rows <= half) or not rows:
            self.release()
        self._notable_rows = half if self._room else 0

    def release(self) -> None:
        """Wakes all callers that wait for room or for the end of all rows. Each caller checks its condition again."""
        waiters = self._room + self._quiet
        self._room, self._quiet = [], []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def check_results(self, output: Sequence[Result], value: Any, origin: str) -> Sequence[Result]:
        """Checks the results of a call, and returns them. Raises UserError for a topic that is not one of the agent's
        sinks, and for NaN and infinities with nan="fail".

        Without nan="fail", the first NaN or infinity of each field, which JSON writes as null, is logged as a
        warning. `origin`: the row or job of the call, for messages.
        """
        for name in null_fields(value, output) if self.spec.writes_json else ():
            said = repr(name) if name else "the value"
            what = f"{said} of its result for {origin} is NaN or infinite, for which JSON has no form"
            text = what if self.spec.nan == "fail" else f"agent {self.spec.agent_id}: {what}"
            self._nulled.note(name, 1, partial(str, text), 'return None in its place, or set nan="null"')
        for _, _, _, topic in output:
            if topic is not None and topic not in self.branches:
                raise _unknown_topic(self.spec, topic, list(self.branches))
        return output

    # -- metrics ------------------------------------------------------------------------------------------------------

    @property
    def rows_out(self) -> int:
        """The number of results that were passed on."""
        return sum(buffer.rows_total for buffer in self._outputs)

    def statistics(self) -> "ToldLanes":
        """Returns the figures of its queue and of its batches, and the number of rows that it has emitted."""
        batches = self._batch_seconds.statistics()
        return {
            "rows": self.held.rows,
            "bytes": self.held.nbytes,
            "capacity_rows": self.held.capacity_rows,
            "capacity_bytes": self.held.capacity_bytes,
            "rows_out": self.rows_out,
            "batches": int(batches["count"]),
            "batch_seconds_total": batches["seconds_total"],
            "dead_letter_reasons": self._reasons.statistics(),
            **({"nulled": self._nulled.count} if self._nulled.count else {}),
        }

    def samples(self) -> Iterator[Sample]:
        """Yields samples for metrics. May be called from any thread. Counts begin with this operator, also after a
        restore.
        """
        agent_id = self.spec.agent_id
        yield from call_samples(agent_id, self.statistics())
        for reason, count in self._reasons.statistics().items():
            yield Sample("sabot_dead_letter_reasons_total", count, agent_id, "", reason)
        for buffer in self._outputs:
            yield Sample("sabot_records_out_total", buffer.rows_total, agent_id, buffer.port.name)
        if self._nulled.count:
            yield Sample(
                "sabot_sink_nulled_total", self._nulled.count, agent_id, "" if self.port is None else self.port.name
            )
        dead = {topic: buffer.rows_total for topic, buffer in list(self._dead.items())}
        for topic, rows in {**dict.fromkeys(self.spec.topics, 0), **dead}.items():
            yield Sample("sabot_dead_letters_total", rows, agent_id, topic)
        yield Sample("sabot_agent_errors_total", self.counters.errors_count - self.errors_before, agent_id)
        yield Sample("sabot_batch_seconds", self._batch_seconds.read(), agent_id)

    def open_payloads(self) -> None:
        """Asks the schema registry for the schemas of results, so that no call has to wait for one. Blocks."""
        if isinstance(self.payload_of, RowPayloads):
            self.payload_of.open()
        check_sample(self.spec, self.payload_of)

    def make_codec(self, topic: str, text: str | None = None) -> Codec:
        """Makes the codec of a topic. Blocks if a schema registry must be asked.

        `text`: the codec's text from a checkpoint, or None.
        """
        return self.spec.format.codec(topic, self.spec.schema, None, text)

    def codec_for(self, topic: str) -> Codec:
        """Returns the codec for records of a topic. The first call for a topic may block, as `make_codec`."""
        codec = self.codecs.get(topic)
        if codec is None:
            codec = self.codecs[topic] = self.make_codec(topic)
        return codec

    # -- barriers -----------------------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Puts all results and dead letters so far into their ports. Called at a barrier, because they belong to the
        epoch that ends.
        """
        for buffer in [*self._outputs, *self._dead.values()]:
            buffer.ship()

    def schemas(self) -> dict[str, str | None]:
        """Returns, for each topic, the text of its codec with the inferred columns, for the checkpoint."""
        return {topic: codec.text for topic, codec in self.codecs.items()}

    def own_facts(self) -> AgentFacts:
        """Returns the facts for a checkpoint beside rows and counters; `take_facts` restores them."""
        return {"schemas": self.schemas(), "format": self.spec.format.description, "key_kinds": sorted(self.key_kinds)}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Restores the `own_facts` of a checkpoint. Called before any row comes."""
        if facts.get("format", JSON.description) == self.spec.format.description:
            self.restore_schemas(facts["schemas"])
        self.key_kinds.update(facts.get("key_kinds", ()))

    def restore_schemas(self, schemas: Mapping[str, str | None]) -> None:
        """Restores the `schemas` of a checkpoint."""
        self.codecs = {topic: self.make_codec(topic, text) for topic, text in schemas.items()} | self.codecs

    def put_restored(self, batch: Batch, log: str | None) -> None:
        """Adds rows of a checkpoint. `log`: the identity of the topic's log at the checkpoint, or None if the
        checkpoint has none.
        """
        self.put(batch)

    @abstractmethod
    def unfinished(self) -> list[Batch]:
        """Returns the rows whose calls have not ended, in order: a restore must process them again."""

    @abstractmethod
    def busy(self) -> tuple[str, float] | None:
        """Returns the place of the longest running call, and its time in seconds, or None if no call runs."""

    def earliest_read_ms(self) -> int | None:
        """Returns the earliest time (ms since 1970) as of which the agent's state may still be read, or None if it is
        only read as of now.
        """
        return None

    # -- errors -------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException, where: str) -> None:
        """Ends the agent: because its function raised and on_error="fail", or because its source or sink has failed.
        `error`: the cause. `where`: the record or place, for the message. Unfinished rows stay in the queue. Only the
        first call has an effect.
        """
        if self.failure is not None:
            return
        words, hint = message_of(error), ""
        if isinstance(error, SabotError):
            words, hint = error.message, error.hint
        self.failure = AgentFailed(
            f"agent {self.spec.agent_id} failed at {where}: {type(error).__name__}: {words}",
            hint=hint
            or ("the function asked for the end of the process" if isinstance(error, EXITS) else hint_of(error))
            or "correct the agent and start again: it continues at that record; or choose on_error='skip' or 'retry'",
        )
        self.failure.__cause__ = error
        self.end_calls()
        self.release()
        self._on_failed(self)

    def inputs_over(self) -> None:
        """Fails the agent if jobs are blocked when all inputs have ended, because their results are missing from the
        output.
        """
        if self.blocked_jobs:
            (job_id, error), count = next(iter(self.blocked_jobs.items())), len(self.blocked_jobs)
            more = f" and {count - 1} more jobs, which are blocked" if count > 1 else ", which is blocked"
            self.fail(error, f"the end of its input: it has no result of job {job_id}{more}")

    def policy(self, error: BaseException) -> str:
        """Returns the value of `on_error=` that applies to this error."""
        return "skip" if isinstance(error, self.spec.buried) else self.spec.calls.on_error

    def log_error(self, error: BaseException, where: str, attempts: int) -> None:
        """Logs an error after which the agent continues. With on_error="fail" logs nothing, because the agent's
        failure reports the error.
        """
        calls, policy = self.spec.calls, self.policy(error)
        if policy == "fail":
            return
        again = policy == "retry" and attempts <= calls.retry.retries
        fate = (
            f"attempt {attempts} of {calls.retry.retries + 1}, another one follows" if again else "it is a dead letter"
        )
        self.error_log.add(error, where, fate)

    @abstractmethod
    def end_calls(self) -> None:
        """Cancels calls in flight and begins no more. Called when the agent has failed."""

    def set_apart(self, bad: pa.RecordBatch, topic: str) -> None:
        """Sends records that a source could not read (BAD_SCHEMA) to the dead letters."""
        reasons = bad.column("reason").to_pylist()
        self.counters.errors_count += len(reasons)
        rows = rows_of(bad.select(RECORD_SCHEMA.names), topic)
        for row, reason in zip(rows, reasons, strict=True):
            self.dead_letter(row, f"{place_of(row)}: {reason}", 0)

    def dead_letter(
        self, row: Row, error: BaseException | str | tuple[str, str], attempts: int | None, step: str | None = None
    ) -> None:
        """Sends a record as it came, with the error, to the dead letters of its topic.

        `error`: an exception, a text, or a pair of class name and message. `attempts`: the number of calls, or None
        if unknown. `step`: for a row that is not a record of the topic, the step that made it.
        """
        buffer = self._dead.get(row.topic)
        if buffer is None:
            buffer = self._dead[row.topic] = RowBuffer(self._dead_port(row.topic), row.topic, self.on_broken)
        self.counters.dead_letters += 1
        self._reasons.add(error)
        headers = letter_headers(
            error,
            topic=row.topic,
            partition=row.partition if step is None else None,
            offset=row.offset if step is None else None,
            timestamp=row.timestamp,
            agent=self.spec.agent_id,
            attempts=None if attempts is None else attempts + attempts_before(row.headers),
            version=self._version,
            step=step,
        )
        buffer.add(row.payload, row.key, row.timestamp, row.partition, row.offset, (*row.headers, *headers))


def _nothing() -> None:
    """Does nothing. It stands for the callback of an operator whose work no task measures."""


def _unknown_topic(spec: AgentSpec, topic: str, known: list[str]) -> UserError:
    place = f"none of its sinks: {', '.join(known)}" if known else "no sink of its own, as it has none"
    if not known and callable(spec.sink):
        place = "no sink, as its results go to another agent"
    names = ", ".join(f'"{name}"' for name in [*known, topic])
    return UserError(
        f"agent {spec.agent_id}: Message(topic={topic!r}) is for {place}",
        hint=f"name all topics where the agent is declared: sink=[{names}]",
    )
