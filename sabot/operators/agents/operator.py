"""An agent as an operator: what any agent has, however its calls are made.

Rows come in, and stay in a queue (`operators.row_queue`) until they have ended. State writes, results and the end of a row happen in one
step without an `await`, so the rows in the queue at a barrier are exactly those that the checkpoint must repeat. Results and dead letters
leave through ports. Who brings rows waits while there is no room for them.

How calls are made stands in `lanes`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.agent import AgentSpec
from sabot.calls.error_log import ErrorLog
from sabot.clock import Clock
from sabot.codecs import Codec
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, Headers
from sabot.connectors.letters import letter_headers
from sabot.errors import AgentFailed, SabotError, UserError, message_of
from sabot.metrics import Durations, Sample
from sabot.operators.agents.counters import Counters
from sabot.operators.agents.payloads import RowPayloads, payloads_of
from sabot.operators.agents.rows import RecordReader, Result, Row, nulled_in, place_of, records_batch, rows_of
from sabot.operators.agents.timers import KeyTimers
from sabot.operators.nulled import Nulled
from sabot.operators.row_queue import QueuedRows, RowQueue
from sabot.os_errors import hint_of
from sabot.process_exit import EXITS
from sabot.state import StateBackend

_log = logging.getLogger(__name__)

_SHIP_ROWS = 1024
_WAYS = 'nan="null" says that this is meant, nan="fail" makes it an error'


class Port(Protocol):
    """Where batches leave an operator: a sink's channel, or another agent's lanes."""

    @property
    def name(self) -> str:
        """The sink's name, or the agent's id."""

    @property
    def takes_records(self) -> bool:
        """The receiver needs records (RECORD_SCHEMA); if not, columns will do."""

    @property
    def full(self) -> bool:
        """Who writes is to wait for `writable()` before it makes more; `put` still takes what was made."""

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns as the receiver takes them. Raises UserError for those that it cannot take."""

    def put(self, batch: Batch) -> None:
        """Takes the batch, in order; never refuses."""

    async def writable(self) -> None:
        """Returns when the receiver has room again, or is gone."""


class RowBuffer:
    """Results of single calls, gathered into one batch of RECORD_SCHEMA for the port."""

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
        """One row. It is shipped when enough rows have gathered, at the latest in the loop's next turn."""
        rows = self._rows
        if not rows:
            self._loop.call_soon(self.ship)
        rows.append((payload, key, timestamp, partition, offset, headers))
        if len(rows) >= _SHIP_ROWS:
            self.ship()

    def ship(self) -> None:
        """Everything gathered goes to the port."""
        if self._rows:
            rows, self._rows = self._rows, []
            try:
                self.put(Batch(records_batch(rows), None, self._topic))
            except Exception as error:  # the calls behind these rows have ended: they must not get lost
                self._on_broken(f"output to {self.port.name}", error)

    def put(self, batch: Batch) -> None:
        """Rows that are a batch already."""
        self.rows_total += batch.num_rows
        self.port.put(batch)


class AgentOperator(ABC):
    """What all agents have in common. One owner: the agent task on its event loop."""

    timers: KeyTimers | None = None  # of a record agent with on_timer=

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
        """branches: the sinks that a result may name, the first one first. on_broken: is told, with what it was, of errors after which
        state and output may no longer agree.
        """
        self.spec = spec
        self.backend = backend
        self.port = output
        self.on_broken = on_broken
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.failure: AgentFailed | None = None
        self.blocked_jobs: dict[str, SabotError] = {}  # of a durable agent, with the reasons
        self.left_behind: list[str] = []  # calls that refused to be cancelled
        self.counters = counters
        self.codecs: dict[str, Codec] = {}  # by topic: without a schema each has its own
        self.payload_of = payloads_of(spec)
        self.error_log = ErrorLog(f"agent {spec.agent_id}", clock)
        self.errors_before = counters.errors_count  # in earlier runs
        self.key_kinds: set[str] = set()  # which kinds of values the keys were that it has seen, in earlier runs too
        self._nulled = Nulled(spec.nan, _WAYS, _log)  # floats of its results that JSON has as null, in this run
        self.results = None if output is None else RowBuffer(output, spec.agent_id, on_broken)
        self.branches: dict[str, RowBuffer] = {}
        for name, port in branches.items():
            first = self.results if not self.branches else None
            self.branches[name] = first or RowBuffer(port, spec.agent_id, on_broken)
        self._outputs = list(self.branches.values()) or ([] if self.results is None else [self.results])
        self.held: RowQueue[Any] = RowQueue(capacity_rows, capacity_bytes)
        self._dead_port = dead_letters
        self._dead: dict[str, RowBuffer] = {}
        self._on_failed = on_failed
        self._version = version
        self._batch_seconds = Durations()
        self._notable_rows = 0  # _progressed is called when no more than these are left
        self._room: list[asyncio.Future[None]] = []
        self._quiet: list[asyncio.Future[None]] = []

    # -- life ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Begin to process rows; after `quiesce` and `close`, go on."""

    @abstractmethod
    async def quiesce(self, grace_s: float) -> None:
        """Take no further row; wait up to `grace_s` seconds for the calls that run."""

    @abstractmethod
    async def close(self) -> None:
        """Cancel what still runs. Idempotent; rows that wait stay as they are."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """It takes no rows: `quiesce` or `close` was called."""

    def now_ms(self) -> int:
        """The clock, in ms since 1970."""
        return int(self.clock.time() * 1000)

    # -- rows in ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Rows to process, in order; always taken (see `full`)."""

    def waiting_rows(self) -> int:
        """Rows that have not ended; from any thread."""
        return self.held.rows

    @property
    def full(self) -> bool:
        """More rows are held than the bound allows, or the receiver of dead letters is full: wait for `writable()`."""
        return not self.has_room or self.dead_letters_full

    @property
    def has_room(self) -> bool:
        """More rows may be held."""
        return self.held.has_room

    @property
    def dead_letters_full(self) -> bool:
        """A receiver of dead letters is full: wait for `dead_letters_writable()` before the next call."""
        return bool(self._dead) and any(buffer.port.full for buffer in self._dead.values())

    async def writable(self) -> None:
        """Returns when there is room, or the agent has failed. Its own calls must not wait for it, as they make the room."""
        await self.dead_letters_writable()
        while not self.has_room and self.failure is None:
            waiter = self.loop.create_future()
            self._room.append(waiter)
            self._notable_rows = self.held.capacity_rows // 2
            await waiter

    async def dead_letters_writable(self) -> None:
        """Returns when all receivers of dead letters have room, or are gone."""
        for buffer in list(self._dead.values()):
            await buffer.port.writable()

    async def drained(self) -> None:
        """No row will come any more. Returns when every row has been processed, or the agent has failed or was stopped."""
        while self.unprocessed and self.failure is None and not self.stopped:
            waiter = self.loop.create_future()
            self._quiet.append(waiter)
            await waiter

    @property
    def unprocessed(self) -> bool:
        """`drained` has something to wait for."""
        return self.held.rows > 0

    def took(self, held: QueuedRows) -> None:
        """These rows, or the timers that are due, are going to be processed."""
        held.since = self.clock.monotonic()
        self.held.add(held)
        if not held.left:
            self._batch_seconds.add(0.0)
        self._progressed()

    def take_records(self, reader: RecordReader, batch: Batch) -> list[Row]:
        """The rows of a batch of records, which are held from now on. Those that cannot be processed are dead letters."""
        held, rows, bad = reader.read(batch, self.now_ms())
        for row, error in bad:
            self.counters.errors_count += 1
            self.error_log.add(error, place_of(row), "it is a dead letter")
            self.dead_letter(row, error, 0)
        self.took(held)
        return rows

    def rows_ended(self, held: QueuedRows, *, last: bool) -> None:
        """Rows that came so have ended, in `self.held` too. last: all that came with them have."""
        if last:
            self._batch_seconds.add(self.clock.monotonic() - held.since)
        if self.held.rows <= self._notable_rows:
            self._progressed()

    def _progressed(self) -> None:
        """Those who wait for room, or until all is processed, go on if they can."""
        rows, half = self.held.rows, self.held.capacity_rows // 2
        if (self._room and rows <= half) or not rows:
            self.release()
        self._notable_rows = half if self._room else 0

    def release(self) -> None:
        """Those who wait for room, or until all is processed, look again."""
        waiters = self._room + self._quiet
        self._room, self._quiet = [], []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def routed(self, output: Sequence[Result], value: Any, origin: str) -> Sequence[Result]:
        """The results made of what a call gave. Raises UserError for one whose topic is none of the agent's sinks, and with nan="fail" for
        NaN and infinities.

        Else the first of these of each field, for which JSON has null, is a warning. origin: what the call was about.
        """
        for name in nulled_in(value, output) if self.spec.writes_json else ():
            said = repr(name) if name else "the value"
            what = f"{said} of its result for {origin} is NaN or infinite, for which JSON has no form"
            told = what if self.spec.nan == "fail" else f"agent {self.spec.agent_id}: {what}"
            self._nulled.note(name, 1, partial(str, told), 'return None where that is meant; or nan="null"')
        for _, _, _, topic in output:
            if topic is not None and topic not in self.branches:
                raise _unknown_topic(self.spec, topic, list(self.branches))
        return output

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def rows_out(self) -> int:
        """Results handed on."""
        return sum(buffer.rows_total for buffer in self._outputs)

    def statistics(self) -> dict[str, Any]:
        """Rows and bytes that are held, and their bounds; rows_out; batches that have ended, and how long all took."""
        batches = self._batch_seconds.statistics()
        return {
            "rows": self.held.rows,
            "bytes": self.held.nbytes,
            "capacity_rows": self.held.capacity_rows,
            "capacity_bytes": self.held.capacity_bytes,
            "rows_out": self.rows_out,
            "batches": int(batches["count"]),
            "batch_seconds_total": batches["seconds_total"],
            **({"nulled": self._nulled.count} if self._nulled.count else {}),
        }

    def samples(self) -> Iterator[Sample]:
        """For metrics; from any thread. Counts of this operator alone, whatever was restored."""
        agent_id = self.spec.agent_id
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
        """Asks a schema registry for what its results need, so that no call waits for one. Blocking."""
        if isinstance(self.payload_of, RowPayloads):
            self.payload_of.open()

    def make_codec(self, topic: str, text: str | None = None) -> Codec:
        """How a topic is decoded whose records were not seen yet. text: what a checkpoint keeps of its codec. Blocking, where a schema
        registry must be asked.
        """
        return self.spec.format.codec(topic, self.spec.schema, None, text)

    def codec_for(self, topic: str) -> Codec:
        """How the records of a topic are decoded."""
        codec = self.codecs.get(topic)
        if codec is None:
            codec = self.codecs[topic] = self.make_codec(topic)
        return codec

    # -- barriers -----------------------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Results and dead letters so far go to their ports: they belong to the epoch that ends now."""
        for buffer in [*self._outputs, *self._dead.values()]:
            buffer.ship()

    def schemas(self) -> dict[str, str | None]:
        """By topic, what was inferred of its columns; a checkpoint keeps it."""
        return {topic: codec.text for topic, codec in self.codecs.items()}

    def own_facts(self) -> dict[str, Any]:
        """What a checkpoint keeps beside rows and counters; `take_facts` gets it again."""
        return {"schemas": self.schemas(), "format": self.spec.format.description, "key_kinds": sorted(self.key_kinds)}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """`own_facts` of a checkpoint. Before any row comes."""
        if facts.get("format", JSON.description) == self.spec.format.description:
            self.know(facts["schemas"])
        self.key_kinds.update(facts.get("key_kinds", ()))

    def know(self, schemas: Mapping[str, str | None]) -> None:
        """`schemas` of a checkpoint."""
        self.codecs = {topic: self.make_codec(topic, text) for topic, text in schemas.items()} | self.codecs

    @abstractmethod
    def unfinished(self) -> list[Batch]:
        """Rows whose call has not ended, in order: what the checkpoint must repeat."""

    @abstractmethod
    def busy(self) -> tuple[str, float] | None:
        """The call that has been running longest: where it is, and for how many seconds. None when none runs."""

    def earliest_read_ms(self) -> int | None:
        """No read of its state will be judged at an earlier time, in ms since 1970. None: none before the present."""
        return None

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(self, error: BaseException, where: str) -> None:
        """The agent ends here: its own error under policy `fail`, or its source or sink broke. Unfinished rows stay."""
        if self.failure is not None:
            return
        words, hint = message_of(error), ""
        if isinstance(error, SabotError):
            words, hint = error.message, error.hint
        self.failure = AgentFailed(
            f"agent {self.spec.agent_id} failed at {where}: {type(error).__name__}: {words}",
            hint=hint
            or ("it asked for the end of the process" if isinstance(error, EXITS) else hint_of(error))
            or "mend the agent and start again, it goes on at that record; or choose on_error='skip' or 'retry'",
        )
        self.failure.__cause__ = error
        self.end_calls()
        self.release()
        self._on_failed(self)

    def inputs_over(self) -> None:
        """Fails the agent where nothing comes any more and jobs are blocked: without their results the output is not whole."""
        if self.blocked_jobs:
            (job_id, error), count = next(iter(self.blocked_jobs.items())), len(self.blocked_jobs)
            more = f" and {count - 1} more jobs, which are blocked" if count > 1 else ", which is blocked"
            self.fail(error, f"the end of its input: it has no result of job {job_id}{more}")

    def policy(self, error: BaseException) -> str:
        """Returns what `on_error=` says of this error."""
        return "skip" if isinstance(error, self.spec.buried) else self.spec.calls.on_error

    def log_error(self, error: BaseException, where: str, attempts: int) -> None:
        """A call has failed, and the agent goes on: the log says so. Under policy `fail` the failure of the agent says it."""
        calls, policy = self.spec.calls, self.policy(error)
        if policy == "fail":
            return
        again = policy == "retry" and attempts <= calls.retry.retries
        fate = f"attempt {attempts} of {calls.retry.retries + 1}, there is another" if again else "it is a dead letter"
        self.error_log.add(error, where, fate)

    @abstractmethod
    def end_calls(self) -> None:
        """The agent has failed: no call begins any more, ever, and those that run are cancelled."""

    def set_apart(self, bad: pa.RecordBatch, topic: str) -> None:
        """What a source could not read (BAD_SCHEMA), to the dead letters."""
        reasons = bad.column("reason").to_pylist()
        self.counters.errors_count += len(reasons)
        rows = rows_of(bad.select(RECORD_SCHEMA.names), topic)
        for row, reason in zip(rows, reasons, strict=True):
            self.dead_letter(row, f"{place_of(row)}: {reason}", 0)

    def dead_letter(
        self, row: Row, error: BaseException | str | tuple[str, str], attempts: int | None, step: str | None = None
    ) -> None:
        """The record as it came, with what happened to it, to the dead letters of its topic. error: also a pair of a class name and its
        message. step: for what is no record of the topic.
        """
        buffer = self._dead.get(row.topic)
        if buffer is None:
            buffer = self._dead[row.topic] = RowBuffer(self._dead_port(row.topic), row.topic, self.on_broken)
        self.counters.dead_letters += 1
        headers = letter_headers(
            error,
            topic=row.topic,
            partition=row.partition if step is None else None,
            offset=row.offset if step is None else None,
            timestamp=row.timestamp,
            agent=self.spec.agent_id,
            attempts=attempts,
            version=self._version,
            step=step,
        )
        buffer.add(row.payload, row.key, row.timestamp, row.partition, row.offset, (*row.headers, *headers))


def _unknown_topic(spec: AgentSpec, topic: str, known: list[str]) -> UserError:
    place = f"none of its sinks: {', '.join(known)}" if known else "no sink of its own, as it has none"
    if not known and callable(spec.sink):
        place = "no sink, as its results go to another agent"
    names = ", ".join(f'"{name}"' for name in [*known, topic])
    return UserError(
        f"agent {spec.agent_id}: Message(topic={topic!r}) is for {place}",
        hint=f"name all topics where the agent is declared: sink=[{names}]",
    )
