"""An agent as an operator: lanes that call the user's function, its errors, its results.

A record agent has `concurrency` lanes, each one long-lived coroutine on the event loop; a key always goes to the same lane, so
its records keep their order. A batch agent has one lane. A row stays in its lane's queue until its call has ended: state writes
applied, results emitted and the row taken off happen in one step without an `await`, so whatever stands in the queues at a
barrier is exactly what the checkpoint must repeat.

`AgentOperator` is the life of a lane; what a record and a batch agent call differently stands in `record_agent` and `batch_agent`.
"""

import asyncio
import contextvars
import inspect
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.batch import Batch
from sabot._cython.rows import bytes_list
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext
from sabot.clock import Clock
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records, header_rows
from sabot.connectors.base import dead_letter_headers
from sabot.errors import AgentFailed, SabotError
from sabot.exits import EXITS
from sabot.faults import hint_of
from sabot.metrics import Durations, Sample
from sabot.state import StateBackend
from sabot.watch import unexpected, watched

__all__ = [
    "AgentOperator",
    "Counters",
    "Lane",
    "Port",
    "Resume",
    "Row",
    "RowBuffer",
    "awaitable",
    "records_batch",
    "rows_of",
]

_log = logging.getLogger(__name__)

_SHIP_ROWS = 1024
_CANCEL_SECONDS = 5.0
_SLICE_SECONDS = 0.002  # a lane that never waits gives the loop to others after this long


class Port(Protocol):
    """Where batches leave an operator: a sink's channel, or another agent's lanes."""

    @property
    def name(self) -> str:
        """The sink's name, or the agent's id."""

    @property
    def takes_records(self) -> bool:
        """It wants RECORD_SCHEMA; otherwise columns will do."""

    @property
    def full(self) -> bool:
        """Time to wait on `writable()` before making more; `put` is still accepted."""

    def put(self, batch: Batch) -> None:
        """Takes the batch, in order; never refuses."""

    async def writable(self) -> None:
        """Returns when the receiver has room again, or is gone."""


class Counters(Protocol):
    """Who keeps an agent's figures."""

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
        """One row; shipped when enough have gathered, at the latest when the loop comes round."""
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


@dataclass(slots=True)
class Row:
    """One record on its way through a lane."""

    payload: bytes | None
    key: bytes | None
    timestamp: int
    partition: int
    offset: int
    headers: Headers
    topic: str
    value: Any = None
    scope: bytes = b""
    number: int = 0  # in the order in which rows came to the agent
    size: int = 64  # bytes, roughly


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


class Resume:
    """Goes on awaiting a coroutine that was begun by hand, in its own context; everything else is the lane task's."""

    __slots__ = ("_coroutine", "_run", "_waiting")

    def __init__(self, run: Callable[..., Any], coroutine: Any, waiting: Any) -> None:
        self._run = run
        self._coroutine = coroutine
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine, waiting = self._run, self._coroutine, self._waiting
        try:
            while True:
                try:
                    sent = yield waiting
                except BaseException as error:  # thrown in by the loop: cancellation above all
                    waiting = run(coroutine.throw, error)
                else:
                    waiting = run(coroutine.send, sent)
        except StopIteration as stop:
            return stop.value


def awaitable(value: Any) -> tuple[Any, bool]:
    """What a function gave -> (a coroutine, True) if it is to be awaited, (the value, False) if not."""
    if value is None or not inspect.isawaitable(value):
        return value, False
    return (value if hasattr(value, "send") else _awaited(value)), True


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


class Lane:
    """A queue and the coroutine that serves it."""

    __slots__ = ("overtime", "queue", "started", "task", "wake")

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.started = 0.0  # monotonic, of the call that is running; 0: none
        self.overtime = False


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
        self._pending_rows = 0
        self._pending_bytes = 0
        self._batch_rows = 0  # in all batches so far
        self._batches: deque[tuple[int, float]] = deque()  # not ended: _batch_rows with it, arrival
        self._batch_seconds = Durations()
        self._notable_rows = 0  # _progressed is called when no more than these are pending
        self._capacity_rows = capacity_rows
        self._capacity_bytes = capacity_bytes
        self._room: list[asyncio.Future[None]] = []
        self._quiet: list[asyncio.Future[None]] = []
        self._stopping = False
        self._stop_asked = asyncio.Event()
        self._lanes = [Lane() for _ in range(spec.calls.concurrency)]
        self._watchdog: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the lanes."""
        for number, lane in enumerate(self._lanes):
            lane.task = self._loop.create_task(self._serve(lane), name=f"{self.spec.agent_id}#{number}")
            lane.task.add_done_callback(self._lane_ended)
        if self.spec.calls.timeout_s is not None:
            what = f"what watches over timeout= of agent {self.spec.agent_id}"
            watchdog = self._loop.create_task(self._watch(self.spec.calls.timeout_s))
            self._watchdog = watched(watchdog, what, partial(self._on_broken, what), stopped=lambda: self._stopping)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        """A lane ends only by being stopped; anything else ends the agent loudly."""
        if self._stopping or self.failure is not None:
            return
        item = next((lane.queue[0] for lane in self._lanes if lane.task is task and lane.queue), None)
        where = self.spec.agent_id if item is None else self._where(item)
        if task.cancelled():
            self.fail(RuntimeError("the task that runs the call was cancelled"), where)
        elif (
            error := task.exception()
        ) is not None:  # not the call's own: state may be applied, and the row still wait
            what = f"a lane of agent {self.spec.agent_id}, at {where},"
            self._on_broken(what, unexpected(what, error))

    async def quiesce(self, grace_s: float) -> None:
        """Take no further row; wait up to `grace_s` seconds for the calls that run."""
        self._stopping = True
        self._stop_asked.set()
        for lane in self._lanes:
            lane.wake.set()
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        self._release()  # who waits for its rows would wait for ever

    async def close(self) -> None:
        """Cancel what still runs. Idempotent; queues stay as they are."""
        self._stopping = True
        tasks = [t for lane in self._lanes if (t := lane.task) is not None]
        if self._watchdog is not None:
            tasks.append(self._watchdog)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        for lane in self._lanes:
            if lane.task is not None and not lane.task.done() and lane.queue:
                place = f"agent {self.spec.agent_id} at {self._where(lane.queue[0])}"
                if place not in self.left_behind:
                    self.left_behind.append(place)
                    _log.error("%s: the call refuses to be cancelled and is left behind", place)
            lane.started = 0.0
        self._release()

    @property
    def stopped(self) -> bool:
        """It takes no rows: `quiesce` or `close` was called."""
        return self._stopping

    def restart(self) -> None:
        """Serve the lanes again after `quiesce` and `close`."""
        self._stopping = False
        self._stop_asked.clear()
        self.start()

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)

    # -- rows in ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Rows to process, in order; always taken (see `full`)."""

    @property
    def full(self) -> bool:
        """More rows wait than the bound allows, or the dead letters do; wait on `writable()`."""
        return self._crowded or self._dead_letters_full

    @property
    def _dead_letters_full(self) -> bool:
        return any(buffer.port.full for buffer in self._dead.values())

    @property
    def _crowded(self) -> bool:
        return self._pending_rows >= self._capacity_rows or self._pending_bytes >= self._capacity_bytes

    async def writable(self) -> None:
        """Returns when there is room, or the agent has failed. Not for its own lanes: they are the ones that make room."""
        await self._dead_letters_writable()
        while self._crowded and self.failure is None:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            self._notable_rows = max(self._notable_rows, self._capacity_rows // 2)
            await waiter

    async def _dead_letters_writable(self) -> None:
        for buffer in list(self._dead.values()):
            await buffer.port.writable()

    async def drained(self) -> None:
        """Returns when every row has been processed, or the agent has failed or was stopped."""
        while self._pending_rows and self.failure is None and not self._stopping:
            waiter = self._loop.create_future()
            self._quiet.append(waiter)
            await waiter

    def _took(self, rows: int, nbytes: int) -> None:
        """A batch goes into the lanes. It has ended when as many rows have as came in until now."""
        self._pending_rows += rows
        self._pending_bytes += nbytes
        self._batch_rows += rows
        self._batches.append((self._batch_rows, self._clock.monotonic()))
        self._progressed()

    def _done(self, rows: int, nbytes: int) -> None:
        self._pending_rows -= rows
        self._pending_bytes -= nbytes
        if self._pending_rows <= self._notable_rows:
            self._progressed()

    def _progressed(self) -> None:
        """Batches may have ended, and those who wait may go on."""
        pending, batches = self._pending_rows, self._batches
        while batches and batches[0][0] <= self._batch_rows - pending:
            self._batch_seconds.add(self._clock.monotonic() - batches.popleft()[1])
        if (self._room and 2 * pending <= self._capacity_rows) or not pending:
            self._release()
        next_end = self._batch_rows - batches[0][0] if batches else 0
        self._notable_rows = max(next_end, self._capacity_rows // 2) if self._room else next_end

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
        """Rows and bytes that wait in the lanes, and their bounds; rows_out; batches that have ended, and how long all took."""
        batches = self._batch_seconds.statistics()
        return {
            "rows": self._pending_rows,
            "bytes": self._pending_bytes,
            "capacity_rows": self._capacity_rows,
            "capacity_bytes": self._capacity_bytes,
            "lanes": len(self._lanes),
            "rows_out": self.rows_out,
            "batches": int(batches["count"]),
            "batch_seconds_total": batches["seconds_total"],
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
        running = [lane for lane in self._lanes if lane.started and lane.queue]
        if not running:
            return None
        lane = min(running, key=lambda lane: lane.started)
        return (
            f"agent {self.spec.agent_id} at {self._where(lane.queue[0])}",
            self._clock.monotonic() - lane.started,
        )

    @abstractmethod
    def _where(self, item: Any) -> str:
        """topic[partition]@offset of what a lane holds."""

    # -- calls --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, item: Any, run: Callable[..., Any]) -> tuple[AgentContext, Any, bool]:
        """Calls the user's function in the context `run`: (its ctx, what it gave, whether that is to be awaited)."""

    @abstractmethod
    def _written(self, item: Any, value: Any) -> Any:
        """What the function gave, as it will be emitted. Raises for what cannot be."""

    @abstractmethod
    def _end(self, item: Any, output: Any) -> None:
        """The call ended well: emit and count. Must not suspend."""

    @abstractmethod
    def _bury(self, item: Any, failure: BaseException, attempts: int) -> None:
        """The item is given up: to the dead letters."""

    @abstractmethod
    def _size(self, item: Any) -> tuple[int, int]:
        """Rows and bytes, as `put` counted them."""

    def _salvage(self, item: Any, failure: BaseException, attempts: int) -> bool:
        """The failure concerns a part of the item, which is given up, and the rest is tried again: True."""
        return False

    @abstractmethod
    def _renew(self, item: Any) -> None:
        """Before another attempt: the failed one may have changed what it was given."""

    async def _serve(self, lane: Lane) -> None:
        """The lane's life: take, call, apply, emit, take off."""
        queue, monotonic, fresh = lane.queue, self._clock.monotonic, self._context.copy
        begin, written, port = self._begin, self._written, self.port
        attempts = 0
        slice_end = monotonic() + _SLICE_SECONDS
        while not self._stopping:
            if not queue:
                lane.wake.clear()
                await lane.wake.wait()
                slice_end = monotonic() + _SLICE_SECONDS
                continue
            item = queue[0]
            failure: BaseException | None = None
            output: Any = None
            lane.started = now = monotonic()
            try:
                run = fresh().run
                ctx, value, pending = begin(item, run)
                if pending:
                    try:
                        waiting = run(value.send, None)
                    except StopIteration as stop:
                        value = stop.value
                    else:
                        value = await Resume(run, value, waiting)
                        now = monotonic()
                        slice_end = now + _SLICE_SECONDS
                if value is not None:
                    output = written(item, value)
            except asyncio.CancelledError:
                failure = self._cancelled(lane)
                if failure is None:
                    raise
            except EXITS as asked:  # whatever on_error= says: the app stops, and this row is not done
                lane.started = 0.0
                self.fail(asked, self._where(item))
                return
            except BaseException as error:
                failure = error
            lane.started = 0.0
            late, lane.overtime = lane.overtime, False
            if lane.task is not None and lane.task.cancelling():
                if failure is not None and self._stopping:
                    return  # the call was cancelled to stop the lane, and made an error of its own of it
                # TaskGroup leaves some behind (3.11), and so does a call that answers all the same
                for _ in range(lane.task.cancelling()):
                    lane.task.uncancel()
            if failure is not None and late:
                failure = TimeoutError(f"the call took longer than timeout={self.spec.calls.timeout_s}s")
            if self.failure is not None:
                return
            if failure is None:
                try:
                    ctx._apply()
                except (Exception, *EXITS) as error:
                    self._on_broken(f"state, at {self._where(item)}", error)
                    return
                self._end(item, output)
            else:
                if self._salvage(item, failure, attempts + 1):
                    continue
                attempts += 1
                self.counters.errors_count += 1
                if self.spec.calls.on_error == "fail":
                    self.fail(failure, self._where(item))
                    return
                if attempts <= self.spec.calls.retry.retries:
                    await asyncio.sleep(self.spec.calls.retry.wait_s(attempts - 1))
                    self._renew(item)
                    continue
                self._bury(item, failure, attempts)
                now = slice_end  # an agent that only fails must give the loop to others too
            queue.popleft()
            attempts = 0
            self._done(*self._size(item))
            if port is not None and port.full:
                await self._unless_stopped(port.writable())
            elif self._dead and self._dead_letters_full:
                await self._unless_stopped(self._dead_letters_writable())
            elif now < slice_end:
                continue
            else:
                await asyncio.sleep(0)
            slice_end = monotonic() + _SLICE_SECONDS

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Waits for room, or until the agent is to stop."""
        ends = [self._loop.create_task(waiting), self._loop.create_task(self._stop_asked.wait())]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        finally:
            for end in ends:
                end.cancel()

    async def _watch(self, timeout_s: float) -> None:
        """Cancels calls that run longer than the agent's `timeout`; the lane turns that into a TimeoutError."""
        while True:
            await asyncio.sleep(max(timeout_s / 8, 0.005))
            late = self._clock.monotonic() - timeout_s
            for lane in self._lanes:
                if lane.started and lane.started < late and not lane.overtime and lane.task is not None:
                    lane.overtime = True
                    lane.task.cancel()

    def _cancelled(self, lane: Lane) -> Exception | None:
        """A CancelledError came out of a call: the error that it means; None when the lane itself is to end."""
        if self._stopping or self.failure is not None or lane.task is None:
            return None
        if lane.overtime or not lane.task.cancelling():
            return RuntimeError("the call was cancelled from inside")
        return None

    def fail(self, error: BaseException, where: str) -> None:
        """The agent ends here: its own error under policy `fail`, or its source or sink broke. Unfinished rows stay."""
        if self.failure is not None:
            return
        words, hint = _words(error), ""
        if isinstance(error, SabotError):
            words, hint = error.message, error.hint
        self.failure = AgentFailed(
            f"agent {self.spec.agent_id} failed at {where}: {type(error).__name__}: {words}",
            hint=hint
            or ("it asked for the end of the process" if isinstance(error, EXITS) else hint_of(error))
            or "mend the agent and start again, it goes on at that record; or choose on_error='skip' or 'retry'",
        )
        self.failure.__cause__ = error
        for lane in self._lanes:
            if lane.task is not None and lane.task is not asyncio.current_task():
                lane.task.cancel()
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
        kind, message = ("DataError", error) if isinstance(error, str) else (type(error).__name__, _words(error))
        self.counters.dead_letters += 1
        headers = dead_letter_headers(
            topic=row.topic,
            partition=row.partition,
            offset=row.offset,
            timestamp=row.timestamp,
            agent=self.spec.agent_id,
            error=kind,
            message=message,
            attempts=attempts,
            version=self._version,
        )
        buffer.add(row.payload, row.key, row.timestamp, row.partition, row.offset, (*row.headers, *headers))


def _words(error: BaseException) -> str:
    """What the error says; an error may fail at that too."""
    try:
        return str(error)
    except Exception as worse:
        return f"(its message cannot be read: {type(worse).__name__})"
