"""An agent as an operator: how its calls are made, and what becomes of their errors and results.

The calls are made by a crew (`calls.Crew`) whose workers have a queue each: the lanes. A record agent has `concurrency` lanes; a key
always goes to the same lane, so its records keep their order. A batch agent has one lane. A row stays in its lane until its call has
ended: state writes applied, results emitted and the row ended happen in one step without an `await`, so the rows that are held
(`operators.held`) at a barrier are exactly those that the checkpoint must repeat.

What a record and a batch agent do differently stands in `records` and `batches`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.records import bytes_list
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, apply_writes, timer_changes
from sabot.calls import Crew
from sabot.clock import Clock
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records, header_rows
from sabot.connectors.letters import letter_headers
from sabot.errors import AgentFailed, SabotError, words_of
from sabot.exits import EXITS
from sabot.faults import hint_of
from sabot.metrics import Durations, Sample
from sabot.operators.agents.timers import DueTimer, KeyTimers
from sabot.operators.held import Held, HeldRows
from sabot.state import StateBackend
from sabot.watch import unexpected

__all__ = [
    "AgentOperator",
    "Counters",
    "Port",
    "Row",
    "RowBuffer",
    "records_batch",
    "rows_of",
]

_log = logging.getLogger(__name__)

_SHIP_ROWS = 1024


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


class Counters(Protocol):
    """The figures of an agent that outlive a run: a checkpoint keeps them."""

    messages_processed: int
    errors_count: int
    dead_letters: int
    last_message_time: float | None


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


def records_batch(
    rows: Sequence[tuple[bytes | None, bytes | None, int, int, int, Headers]],
) -> pa.RecordBatch:
    """Rows (payload, key, timestamp, partition, offset, headers) -> RECORD_SCHEMA."""
    payloads, keys, timestamps, partitions, offsets, headers = zip(*rows, strict=True)
    return build_records(payloads, keys, timestamps, partitions, offsets, headers if any(headers) else None)


_NOT_HELD = HeldRows(0)


@dataclass(slots=True)
class Row:
    """One record on its way through a lane, or a timer that is due: then `timer` says which. In a lane a row has no payload any more, as
    `value` is what it says.
    """

    payload: bytes | None
    key: bytes | None
    timestamp: int
    partition: int
    offset: int
    headers: Headers
    topic: str
    value: Any = None
    scope: bytes = b""
    held: HeldRows = _NOT_HELD  # those that it came with, and its place among them
    place: int = 0
    timer: DueTimer | None = None


def rows_of(data: pa.RecordBatch, topic: str) -> list[Row]:
    """RECORD_SCHEMA -> rows for lanes."""
    payload, key, timestamp, partition, offset, headers = data.columns
    return [
        Row(p, k, t, n, o, h, topic)
        for p, k, t, n, o, h in zip(
            bytes_list(payload),
            bytes_list(key),
            timestamp.to_pylist(),
            partition.to_pylist(),
            offset.to_pylist(),
            header_rows(headers),
            strict=True,
        )
    ]


class AgentOperator(ABC):
    """What record and batch agents have in common. One owner: the agent task on its event loop."""

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
        version: str = "",
        capacity_rows: int = 16384,
        capacity_bytes: int = 64 << 20,
    ) -> None:
        self.spec = spec
        self.failure: AgentFailed | None = None
        self.left_behind: list[str] = []  # calls that refused to be cancelled
        self.counters = counters
        self.codecs: dict[str, JsonCodec] = {}  # of a batch agent, by topic: without a schema each has its own
        self.errors_before = counters.errors_count  # in earlier jobs
        self.timers: KeyTimers | None = None  # of a record agent with on_timer=
        self._backend = backend
        self.port = output
        self._dead_port = dead_letters
        self._on_failed = on_failed
        self._on_broken = on_broken
        self._clock = clock
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._results = None if output is None else RowBuffer(output, spec.agent_id, on_broken)
        self._dead: dict[str, RowBuffer] = {}
        self.held: Held[Any] = Held(capacity_rows, capacity_bytes)
        self._batch_seconds = Durations()
        self._notable_rows = 0  # _progressed is called when no more than these are left
        self._room: list[asyncio.Future[None]] = []
        self._quiet: list[asyncio.Future[None]] = []
        name = f"agent {spec.agent_id}"
        self._crew: Crew[Any] = Crew(name, self, spec.calls, clock=clock, loop=self._loop, own_queues=True)
        self._lanes = self._crew.workers

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the lanes; after `quiesce` and `close`, go on."""
        self._crew.start()
        if self.timers is not None:
            self.timers.start()

    async def quiesce(self, grace_s: float) -> None:
        """Take no further row; wait up to `grace_s` seconds for the calls that run."""
        self._stop_timers()
        await self._crew.quiesce(grace_s)
        self._release()  # who waits for its rows would wait for ever

    async def close(self) -> None:
        """Cancel what still runs. Idempotent; queues stay as they are."""
        self._stop_timers()
        await self._crew.close()
        for item in self._crew.left_behind:
            place = f"agent {self.spec.agent_id} at {self._where(item)}"
            if place not in self.left_behind:
                self.left_behind.append(place)
                _log.error("%s: the call refuses to be cancelled and is left behind", place)
        self._release()

    def _stop_timers(self) -> None:
        if self.timers is not None:
            self.timers.stop()

    @property
    def stopped(self) -> bool:
        """It takes no rows: `quiesce` or `close` was called."""
        return self._crew.stopped

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)

    # -- rows in ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Rows to process, in order; always taken (see `full`)."""

    def waiting_rows(self) -> int:
        """Rows in the lanes; from any thread."""
        return self.held.rows

    @property
    def full(self) -> bool:
        """More rows are held than the bound allows, or the receiver of dead letters is full: wait for `writable()`."""
        return not self.held.has_room or self._dead_letters_full

    @property
    def _dead_letters_full(self) -> bool:
        return any(buffer.port.full for buffer in self._dead.values())

    async def writable(self) -> None:
        """Returns when there is room, or the agent has failed. Its own lanes must not wait for it, as they make the room."""
        await self._dead_letters_writable()
        while not self.held.has_room and self.failure is None:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            self._notable_rows = self.held.capacity_rows // 2
            await waiter

    async def _dead_letters_writable(self) -> None:
        for buffer in list(self._dead.values()):
            await buffer.port.writable()

    async def drained(self) -> None:
        """No row will come any more. Returns when every row, and every timer that is due by now, has been processed, or the agent
        has failed or was stopped.
        """
        if self.timers is not None:
            self.timers.let_out()
        while self._unprocessed and self.failure is None and not self._crew.stopped:
            waiter = self._loop.create_future()
            self._quiet.append(waiter)
            await waiter

    @property
    def _unprocessed(self) -> bool:
        return self.held.rows > 0 or (self.timers is not None and self.timers.left_to_fire)

    def _took(self, held: HeldRows) -> None:
        """These rows, or the timers that are due, go into the lanes."""
        held.since = self._clock.monotonic()
        self.held.add(held)
        if not held.left:
            self._batch_seconds.add(0.0)
        self._progressed()

    @abstractmethod
    def over(self, item: Any) -> bool:
        """What the item holds has ended (`held`). -> whether all that came with it has."""

    def _done(self, item: Any) -> None:
        if self.over(item):
            self._batch_seconds.add(self._clock.monotonic() - item.held.since)
        if self.held.rows <= self._notable_rows:
            self._progressed()

    def _progressed(self) -> None:
        """Those who wait for room, or until all is processed, go on if they can."""
        rows, half = self.held.rows, self.held.capacity_rows // 2
        if (self._room and rows <= half) or not rows:
            self._release()
        self._notable_rows = half if self._room else 0

    def _release(self) -> None:
        waiters = self._room + self._quiet
        self._room, self._quiet = [], []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def rows_out(self) -> int:
        """Results handed on."""
        return 0 if self._results is None else self._results.rows_total

    def statistics(self) -> dict[str, Any]:
        """Rows and bytes that wait in the lanes, and their bounds; how many lanes may call now (limit), how often a service was overloaded;
        rows_out; batches that have ended, and how long all took.
        """
        batches = self._batch_seconds.statistics()
        return {
            "rows": self.held.rows,
            "bytes": self.held.nbytes,
            "capacity_rows": self.held.capacity_rows,
            "capacity_bytes": self.held.capacity_bytes,
            "lanes": len(self._lanes),
            "limit": self._crew.limit,
            "overloads": self._crew.overloads,
            "rows_out": self.rows_out,
            "batches": int(batches["count"]),
            "batch_seconds_total": batches["seconds_total"],
            **({} if self.timers is None else self.timers.statistics()),
        }

    def samples(self) -> Iterator[Sample]:
        """For metrics; from any thread. Counts of this operator alone, whatever was restored."""
        agent_id = self.spec.agent_id
        if self._results is not None:
            yield Sample("sabot_records_out_total", self._results.rows_total, agent_id, self._results.port.name)
        dead = {topic: buffer.rows_total for topic, buffer in list(self._dead.items())}
        for topic, rows in {**dict.fromkeys(self.spec.topics, 0), **dead}.items():
            yield Sample("sabot_dead_letters_total", rows, agent_id, topic)
        yield Sample("sabot_agent_errors_total", self.counters.errors_count - self.errors_before, agent_id)
        yield Sample("sabot_batch_seconds", self._batch_seconds.read(), agent_id)

    # -- barriers -----------------------------------------------------------------------------------------------------

    def ship(self) -> None:
        """Results and dead letters so far go to their ports: they belong to the epoch that ends now."""
        for buffer in [self._results, *self._dead.values()]:
            if buffer is not None:
                buffer.ship()

    def schemas(self) -> dict[str, str | None]:
        """By topic, what was inferred of its columns; a checkpoint keeps it."""
        return {topic: codec.text for topic, codec in self.codecs.items()}

    def know(self, schemas: Mapping[str, str | None]) -> None:
        """`schemas` of a checkpoint."""
        if self.spec.schema is None:
            self.codecs = {topic: JsonCodec.of_text(text) for topic, text in schemas.items()} | self.codecs

    @abstractmethod
    def unfinished(self) -> list[Batch]:
        """Rows whose call has not ended, in order: what the checkpoint must repeat."""

    def busy(self) -> tuple[str, float] | None:
        """The call that has been running longest: where it is, and for how many seconds. None when none runs."""
        longest = self._crew.longest()
        return None if longest is None else (f"agent {self.spec.agent_id} at {self._where(longest[0])}", longest[1])

    @abstractmethod
    def _where(self, item: Any) -> str:
        """topic[partition]@offset of what a lane holds."""

    # -- calls: what the crew asks (`calls.Calls`) --------------------------------------------------------------------

    @abstractmethod
    def begin(self, item: Any, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        """Calls the user's function in the context `run`: (its ctx, what it gave, whether that is to be awaited)."""

    @abstractmethod
    def written(self, item: Any, value: Any) -> Any:
        """What the function gave, as it will be emitted. Raises for what cannot be."""

    def ended(self, item: Any, ctx: AgentContext, output: Any) -> Awaitable[None] | None:
        """The call ended well: its state writes, its timers, its results and its row, in one step.

        -> what the lane waits for before the next call.
        """
        try:
            apply_writes(ctx)
        except (Exception, *EXITS) as error:
            self._on_broken(f"state, at {self._where(item)}", error)
            return None
        if self.timers is not None:
            if item.timer is not None:
                self.timers.ended(item.timer)
            if changes := timer_changes(ctx):
                self.timers.apply(item.scope, changes)
        self._end(item, output)
        self._done(item)
        port = self.port
        if port is not None and port.full:
            return port.writable()
        return self._dead_letters_writable() if self._dead and self._dead_letters_full else None

    def attempt_failed(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """As `Calls` says. A failure that concerns a part of the item gives up that part, and does not count as an attempt."""
        if self._salvage(item, failure, attempts):
            return True
        self.counters.errors_count += 1
        return False

    @abstractmethod
    def renew(self, item: Any) -> None:
        """Before another attempt: the failed one may have changed what it was given."""

    def failed(self, item: Any, failure: BaseException, attempts: int) -> Awaitable[None] | None:
        """No attempt is left: the agent fails, or the item is given up. Who asks for the end of the process ends the agent."""
        if self.spec.calls.on_error == "fail" or isinstance(failure, EXITS):
            self.fail(failure, self._where(item))
            return None
        self._bury(item, failure, attempts)
        self._done(item)
        return self._dead_letters_writable() if self._dead_letters_full else None

    def worker_ended(self, item: Any, error: BaseException | None) -> None:
        """A lane has ended, unexpectedly. An error is not the call's own: state may be applied, and the row still wait."""
        where = self.spec.agent_id if item is None else self._where(item)
        if error is None:
            self.fail(RuntimeError("the task that runs the call was cancelled"), where)
        else:
            what = f"a lane of agent {self.spec.agent_id}, at {where},"
            self._on_broken(what, unexpected(what, error))

    def broke(self, what: str, error: SabotError) -> None:
        """A callback of the crew has ended unexpectedly."""
        self._on_broken(what, error)

    @abstractmethod
    def _end(self, item: Any, output: Any) -> None:
        """The call ended well: emit and count. Must not suspend."""

    @abstractmethod
    def _bury(self, item: Any, failure: BaseException, attempts: int) -> None:
        """The item is given up: to the dead letters."""

    def _salvage(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """Gives up the part of the item that the failure concerns, if it says which. True: the rest is to be called again."""
        return False

    def fail(self, error: BaseException, where: str) -> None:
        """The agent ends here: its own error under policy `fail`, or its source or sink broke. Unfinished rows stay."""
        if self.failure is not None:
            return
        words, hint = words_of(error), ""
        if isinstance(error, SabotError):
            words, hint = error.message, error.hint
        self.failure = AgentFailed(
            f"agent {self.spec.agent_id} failed at {where}: {type(error).__name__}: {words}",
            hint=hint
            or ("it asked for the end of the process" if isinstance(error, EXITS) else hint_of(error))
            or "mend the agent and start again, it goes on at that record; or choose on_error='skip' or 'retry'",
        )
        self.failure.__cause__ = error
        self._stop_timers()
        self._crew.end()
        self._release()
        self._on_failed(self)

    def set_apart(self, bad: pa.RecordBatch, topic: str) -> None:
        """What a source could not read (BAD_SCHEMA), to the dead letters."""
        reasons = bad.column("reason").to_pylist()
        self.counters.errors_count += len(reasons)
        rows = rows_of(bad.select(RECORD_SCHEMA.names), topic)
        for row, reason in zip(rows, reasons, strict=True):
            self._dead_letter(row, f"{row.topic}[{row.partition}]@{row.offset}: {reason}", 0)

    def _dead_letter(self, row: Row, error: BaseException | str, attempts: int) -> None:
        """The record as it came, with what happened to it, to the dead letters of its topic."""
        buffer = self._dead.get(row.topic)
        if buffer is None:
            buffer = self._dead[row.topic] = RowBuffer(self._dead_port(row.topic), row.topic, self._on_broken)
        self.counters.dead_letters += 1
        is_record = row.timer is None
        headers = letter_headers(
            error,
            topic=row.topic,
            partition=row.partition if is_record else None,
            offset=row.offset if is_record else None,
            timestamp=row.timestamp,
            agent=self.spec.agent_id,
            attempts=attempts,
            version=self._version,
            step=None if is_record else self._where(row),
        )
        buffer.add(row.payload, row.key, row.timestamp, row.partition, row.offset, (*row.headers, *headers))
