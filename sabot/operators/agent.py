"""An agent as an operator: lanes that call the user's function, its errors, its results.

A record agent has `concurrency` lanes, each one long-lived coroutine on the event loop; a key always goes to the same lane, so
its records keep their order. A batch agent has one lane. A row stays in its lane's queue until its call has ended: state writes
applied, results emitted and the row taken off happen in one step without an `await`, so whatever stands in the queues at a
barrier is exactly what the checkpoint must repeat.
"""

import asyncio
import contextvars
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.batch import Batch, normalise
from sabot._cython.partition import hash_rows
from sabot._cython.rows import bytes_list, state_key
from sabot.api.agent import AgentSpec
from sabot.api.context import AgentContext, Message
from sabot.clock import Clock
from sabot.codecs.json import JsonCodec
from sabot.connectors.base import (
    RECORD_SCHEMA,
    Headers,
    build_records,
    decode_json,
    encode_json,
    header_rows,
    to_records,
)
from sabot.errors import AgentFailed, DataError, RowErrors
from sabot.metrics import Durations, Sample
from sabot.state import StateBackend

__all__ = [
    "AgentOperator",
    "BatchAgentOperator",
    "Counters",
    "Port",
    "RecordAgentOperator",
    "agent_operator",
    "decoded",
]

_SHIP_ROWS = 1024
_SLICE_SECONDS = 0.002  # a lane that never waits gives the loop to others after this long
_decode = msgspec.json.Decoder().decode


class Port(Protocol):
    """Where batches leave an operator: a sink's channel, or another agent's lanes."""

    @property
    def name(self) -> str:
        """The sink's name, or the agent's id."""

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

    def __init__(self, port: Port, topic: str, loop: asyncio.AbstractEventLoop) -> None:
        self.port = port
        self.rows_total = 0
        self._topic = topic
        self._loop = loop
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
            self.put(Batch(_records_batch(rows), None, self._topic))

    def put(self, batch: Batch) -> None:
        """Rows that are a batch already."""
        self.rows_total += batch.num_rows
        self.port.put(batch)


def _records_batch(
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

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        return 64 if self.payload is None else 64 + len(self.payload)


def _rows(data: pa.RecordBatch, topic: str) -> list[Row]:
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


class _Resume:
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


class _Lane:
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
        clock: Clock,
        counters: Counters,
        version: str = "",
        capacity_rows: int = 16384,
        capacity_bytes: int = 64 << 20,
    ) -> None:
        self.spec = spec
        self.failure: AgentFailed | None = None
        self.counters = counters
        self.errors_before = counters.errors_count  # in earlier jobs
        self._backend = backend
        self.port = output
        self._dead_port = dead_letters
        self._on_failed = on_failed
        self._clock = clock
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._results = None if output is None else RowBuffer(output, spec.agent_id, self._loop)
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
        self._frozen: asyncio.Event | None = None
        self._stopping = False
        self._lanes = [_Lane() for _ in range(spec.concurrency)]
        self._watchdog: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the lanes."""
        for number, lane in enumerate(self._lanes):
            lane.task = self._loop.create_task(self._serve(lane), name=f"{self.spec.agent_id}#{number}")
            lane.task.add_done_callback(self._lane_ended)
        if self.spec.timeout_s is not None:
            self._watchdog = self._loop.create_task(self._watch(self.spec.timeout_s))

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        """A lane ends only by being stopped; anything else is a defect of ours, and ends the agent loudly."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error, "inside the engine")

    async def quiesce(self, grace_s: float) -> None:
        """Take no further row; wait up to `grace_s` seconds for the calls that run."""
        self._stopping = True
        for lane in self._lanes:
            lane.wake.set()
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)

    async def close(self) -> None:
        """Cancel what still runs. Idempotent; queues stay as they are."""
        self._stopping = True
        tasks = [t for lane in self._lanes if (t := lane.task) is not None]
        if self._watchdog is not None:
            tasks.append(self._watchdog)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        for lane in self._lanes:
            lane.started = 0.0
        self._release()

    def freeze(self, thaw: asyncio.Event | None) -> None:
        """While a snapshot is taken no call may end: it waits for `thaw`. None: go on."""
        self._frozen = thaw

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)

    # -- rows in ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def put(self, batch: Batch) -> None:
        """Rows to process, in order; always taken (see `full`)."""

    @property
    def full(self) -> bool:
        """More rows wait than the bound allows; wait on `writable()`."""
        return self._pending_rows >= self._capacity_rows or self._pending_bytes >= self._capacity_bytes

    async def writable(self) -> None:
        """Returns when there is room, or the agent has failed."""
        while self.full and self.failure is None and not self._stopping:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            self._notable_rows = max(self._notable_rows, self._capacity_rows // 2)
            await waiter

    async def drained(self) -> None:
        """Returns when every row has been processed, or the agent has failed."""
        while self._pending_rows and self.failure is None:
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
    async def _serve(self, lane: _Lane) -> None:
        """The lane's life: take, call, apply, emit, take off."""

    async def _watch(self, timeout_s: float) -> None:
        """Cancels calls that run longer than the agent's `timeout`; the lane turns that into a TimeoutError."""
        while True:
            await asyncio.sleep(max(timeout_s / 8, 0.005))
            late = self._clock.monotonic() - timeout_s
            for lane in self._lanes:
                if lane.started and lane.started < late and not lane.overtime and lane.task is not None:
                    lane.overtime = True
                    lane.task.cancel()

    @staticmethod
    def _forgive(lane: _Lane) -> None:
        """The call answered after all, cancelled as it was: the lane goes on."""
        lane.overtime = False
        if lane.task is not None:
            lane.task.uncancel()

    def _cancelled(self, lane: _Lane) -> Exception | None:
        """A CancelledError came out of a call. Ours to stop the lane: None. The watchdog's or the user's own: the error it means."""
        task = lane.task
        assert task is not None
        if lane.overtime:
            lane.overtime = False
            if task.uncancel() == 0 and not self._stopping:
                return TimeoutError(f"the call took longer than timeout={self.spec.timeout_s}s")
            return None
        if task.cancelling():
            return None
        return RuntimeError("the call was cancelled from inside")

    def _fail(self, error: BaseException, where: str) -> None:
        """Policy `fail`: this agent ends here; its unfinished rows stay for the checkpoint."""
        if self.failure is not None:
            return
        self.failure = AgentFailed(
            f"agent {self.spec.agent_id} failed at {where}: {type(error).__name__}: {_words(error)}",
            hint="mend the agent and start again, it goes on at that record; or choose on_error='skip' or 'retry'",
        )
        self.failure.__cause__ = error
        for lane in self._lanes:
            if lane.task is not None and lane.task is not asyncio.current_task():
                lane.task.cancel()
        self._release()
        self._on_failed(self)

    def fail(self, error: BaseException, where: str) -> None:
        """Something around the agent failed for good: its source, or the sink that it writes to."""
        self._fail(error, where)

    def _dead_letter(self, row: Row, error: BaseException | str, attempts: int) -> None:
        """The record as it came, with what happened to it, to the dead letters of its topic."""
        buffer = self._dead.get(row.topic)
        if buffer is None:
            buffer = self._dead[row.topic] = RowBuffer(self._dead_port(row.topic), row.topic, self._loop)
        kind, message = ("DataError", error) if isinstance(error, str) else (type(error).__name__, _words(error))
        self.counters.dead_letters += 1
        facts = {
            "topic": row.topic,
            "partition": row.partition,
            "offset": row.offset,
            "timestamp": row.timestamp,
            "agent": self.spec.agent_id,
            "error": kind,
            "message": message,
            "attempts": attempts,
            "version": self._version,
        }
        headers = tuple(
            (f"sabot.{name}", str(value).encode(errors="backslashreplace")) for name, value in facts.items()
        )
        buffer.add(row.payload, row.key, row.timestamp, row.partition, row.offset, (*row.headers, *headers))


def _words(error: BaseException) -> str:
    """What the error says; an error may fail at that too."""
    try:
        return str(error)
    except Exception as worse:
        return f"(its message cannot be read: {type(worse).__name__})"


class RecordAgentOperator(AgentOperator):
    """A record agent: one call per record."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self._turn = 0
        self._call = _gathering(spec.func)
        self._checker = None if spec.schema is None else JsonCodec(spec.schema)
        self._prefix = "" if spec.key is None else f"{spec.agent_id}/"

    def put(self, batch: Batch) -> None:
        rows = []
        records = to_records(batch, self._now_ms())
        reasons = self._misfits(records)
        for number, row in enumerate(_rows(records, batch.topic)):
            try:
                if number in reasons:
                    raise DataError(f"{self._where(row)}: {reasons[number]}")
                self._decode(row)
            except DataError as error:
                self.counters.errors_count += 1
                self._dead_letter(row, error, 0)
            else:
                rows.append(row)
        self._took(len(rows), sum(row.size for row in rows))
        lanes = self._lanes
        count = len(lanes)
        if count == 1:
            lanes[0].queue.extend(rows)
            lanes[0].wake.set()
            return
        if self.spec.key is not None:
            for row in rows:
                self._enqueue(lanes[(row.scope[0] << 8 | row.scope[1]) % count], row)
            return
        for row, key_hash in zip(rows, hash_rows([row.key for row in rows]), strict=True):
            if row.key is None:
                self._turn += 1
                key_hash = self._turn
            self._enqueue(lanes[key_hash % count], row)

    def _misfits(self, records: pa.RecordBatch) -> dict[int, str]:
        """With `schema=`: which records do not fit it, and why. The agent gets the others as json.loads gives them."""
        if self._checker is None:
            return {}
        return {bad.row: bad.reason for bad in self._checker.decode(records)[1]}

    @staticmethod
    def _enqueue(lane: _Lane, row: Row) -> None:
        lane.queue.append(row)
        lane.wake.set()

    def _decode(self, row: Row) -> None:
        """Gives the row its value, and with `key=` the scope of its state. Raises DataError."""
        payload = row.payload
        if payload is None:
            raise DataError(f"{self._where(row)}: the payload is null", hint="a tombstone has no JSON value")
        try:
            row.value = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            row.value = decode_json(payload, where=self._where(row))
        if self.spec.key is not None:
            key = row.value.get(self.spec.key) if isinstance(row.value, dict) else None
            if key is None:
                raise DataError(f"{self._where(row)}: no key: field {self.spec.key!r} is missing or null")
            try:
                row.scope = state_key(key)
            except (TypeError, ValueError, OverflowError) as error:
                raise DataError(f"{self._where(row)}: no key: field {self.spec.key!r}: {error}") from error

    def unfinished(self) -> list[Batch]:
        batches: list[Batch] = []
        by_topic: dict[str, list[Row]] = {}
        for lane in self._lanes:
            for row in lane.queue:
                by_topic.setdefault(row.topic, []).append(row)
        for topic, rows in by_topic.items():
            rows.sort(key=lambda row: (row.partition, row.offset))
            columns = [(r.payload, r.key, r.timestamp, r.partition, r.offset, r.headers) for r in rows]
            batches.append(Batch(_records_batch(columns), None, topic))
        return batches

    def _where(self, item: Row) -> str:
        return f"{item.topic}[{item.partition}]@{item.offset}"

    async def _serve(self, lane: _Lane) -> None:
        queue = lane.queue
        spec = self.spec
        call, coroutine_function = self._call
        agent_id, backend, prefix = spec.agent_id, self._backend, self._prefix
        results, port = self._results, self.port
        monotonic, time = self._clock.monotonic, self._clock.time
        new_context = self._context.copy
        attempts = 0
        slice_end = monotonic() + _SLICE_SECONDS
        while not self._stopping:
            if not queue:
                lane.wake.clear()
                await lane.wake.wait()
                slice_end = monotonic() + _SLICE_SECONDS
                continue
            row = queue[0]
            ctx = AgentContext(
                row.value,
                backend,
                key=row.key,
                headers=row.headers,
                timestamp=row.timestamp,
                topic=row.topic,
                partition=row.partition,
                offset=row.offset,
                agent_id=agent_id,
                buffered=True,
                scope=row.scope,
                prefix=prefix,
            )
            failure: Exception
            lane.started = now = monotonic()
            try:
                run = new_context().run
                result = call(ctx) if coroutine_function else run(call, ctx)
                if coroutine_function or inspect.isawaitable(result):
                    try:
                        waiting = run(result.send, None)
                    except StopIteration as stop:
                        result = stop.value
                    else:
                        result = await _Resume(run, result, waiting)
                        now = monotonic()
                        slice_end = now + _SLICE_SECONDS
                if result is None:
                    messages: Sequence[Result] = _NOTHING
                else:
                    messages = result.results if type(result) is _Several else (_result(result),)
            except asyncio.CancelledError:
                meant = self._cancelled(lane)
                if meant is None:
                    raise
                failure = meant
            except Exception as raised:
                failure = raised
            else:
                lane.started = 0.0
                if lane.overtime:
                    self._forgive(lane)
                while self._frozen is not None:
                    await self._frozen.wait()
                if self.failure is not None:
                    return
                ctx._apply()
                if results is not None:
                    for payload, key, headers in messages:
                        results.add(
                            payload, row.key if key is None else key, row.timestamp, row.partition, row.offset, headers
                        )
                queue.popleft()
                attempts = 0
                self.counters.messages_processed += 1
                self.counters.last_message_time = time()
                self._done(1, row.size)
                if port is not None and port.full:
                    await port.writable()
                    slice_end = monotonic() + _SLICE_SECONDS
                elif now > slice_end:
                    await asyncio.sleep(0)
                    slice_end = monotonic() + _SLICE_SECONDS
                continue
            lane.started = 0.0
            attempts += 1
            self.counters.errors_count += 1
            if spec.on_error == "fail":
                self._fail(failure, self._where(row))
                return
            if spec.on_error == "retry" and attempts <= spec.retries:
                await asyncio.sleep(spec.backoff_s * 2 ** (attempts - 1))
                self._decode(row)  # the call may have changed its value
                continue
            while self._frozen is not None:
                await self._frozen.wait()
            self._dead_letter(row, failure, attempts)
            queue.popleft()
            attempts = 0
            self._done(1, row.size)
            await asyncio.sleep(0)


Result = tuple[bytes, bytes | None, Headers]  # payload, key (None: the key of the input), headers


_NOTHING: tuple[Result, ...] = ()


def _result(value: Any) -> Result:
    """A value or Message as it will be written. Raises UserError for what JSON cannot say."""
    key: bytes | None = None
    headers: Headers = ()
    if isinstance(value, Message):
        key, headers, value = value.key, value.headers, value.value
    return value if isinstance(value, bytes) else encode_json(value), key, headers


@dataclass(slots=True)
class _Several:
    """What a call yielded, written down at once: the agent may go on changing the values."""

    results: list[Result]


def _gathering(func: Callable[..., Any]) -> tuple[Callable[[AgentContext], Any], bool]:
    """The function to call, and whether it is a coroutine function; generators are gathered into _Several."""
    target = func if inspect.isroutine(func) or not hasattr(func, "__call__") else type(func).__call__  # noqa: B004
    target = getattr(func, "func", target)  # functools.partial
    if inspect.isasyncgenfunction(target):

        async def gather(ctx: AgentContext) -> _Several:
            return _Several([_result(value) async for value in func(ctx) if value is not None])

        return gather, True
    if inspect.isgeneratorfunction(target):
        return lambda ctx: _Several([_result(value) for value in func(ctx) if value is not None]), False
    return func, inspect.iscoroutinefunction(target)


class BatchAgentOperator(AgentOperator):
    """A batch agent: one call per batch, Arrow in, Arrow out."""

    def __init__(self, spec: AgentSpec, **wiring: Any) -> None:
        super().__init__(spec, **wiring)
        self.codec = JsonCodec(spec.schema)
        self._current: tuple[pa.RecordBatch, pa.RecordBatch | None] | None = None

    def put(self, batch: Batch) -> None:
        if batch.records is None and batch.data.schema.equals(RECORD_SCHEMA):
            batch = decoded(batch, self.codec)
        if batch.rejected:
            batch = self._reject(batch)
        self._took(batch.num_rows, batch.nbytes)
        self._lanes[0].queue.append(batch)
        self._lanes[0].wake.set()

    def _reject(self, batch: Batch) -> Batch:
        """Rows that could not be decoded -> dead letters; -> the same batch without them."""
        records, bad = batch.records, batch.rejected
        assert records is not None
        self.counters.errors_count += len(bad)
        rows = pa.array([entry.row for entry in bad], pa.int64())
        for row, entry in zip(_rows(records.take(rows), batch.topic), bad, strict=True):
            self._dead_letter(row, entry.reason, 0)
        good = np.ones(records.num_rows, dtype=bool)
        good[rows.to_numpy()] = False
        return Batch(batch.data, batch.offsets, batch.topic, records.filter(pa.array(good)))

    def unfinished(self) -> list[Batch]:
        batches = []
        for position, batch in enumerate(self._lanes[0].queue):
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

    async def _serve(self, lane: _Lane) -> None:
        queue = lane.queue
        spec = self.spec
        attempts = 0
        while not self._stopping:
            if not queue:
                lane.wake.clear()
                await lane.wake.wait()
                continue
            batch: Batch = queue[0]
            if self._current is None:
                self._current = (batch.data, batch.records)
            data, records = self._current
            ctx = AgentContext(data, self._backend, topic=batch.topic, agent_id=spec.agent_id, buffered=True)
            failure: Exception
            lane.started = self._clock.monotonic()
            try:
                result = self._context.copy().run(spec.func, data, ctx) if data.num_rows else None
                if inspect.isawaitable(result):
                    result = await result
                output = None if result is None else self._checked(result)
            except asyncio.CancelledError:
                meant = self._cancelled(lane)
                if meant is None:
                    raise
                failure = meant
            except Exception as raised:
                failure = raised
            else:
                lane.started = 0.0
                if lane.overtime:
                    self._forgive(lane)
                while self._frozen is not None:
                    await self._frozen.wait()
                if self.failure is not None:
                    return
                if output is not None and output.num_rows and self._results is not None:
                    self._results.put(Batch(output, None, spec.agent_id))
                ctx._apply()
                queue.popleft()
                self._current = None
                attempts = 0
                self.counters.messages_processed += data.num_rows
                self.counters.last_message_time = self._clock.time()
                self._done(batch.num_rows, batch.nbytes)
                if self.port is not None and self.port.full:
                    await self.port.writable()
                await asyncio.sleep(0)
                continue
            lane.started = 0.0
            while self._frozen is not None:
                await self._frozen.wait()
            if isinstance(failure, RowErrors) and self._named_rows(failure, data):
                self.counters.errors_count += len(failure.rows)
                self._bury(
                    data,
                    records,
                    batch.topic,
                    {row: str(why) for row, why in failure.rows.items()},
                    attempts + 1,
                )
                keep = pa.array([row not in failure.rows for row in range(data.num_rows)])
                self._current = (data.filter(keep), None if records is None else records.filter(keep))
                continue
            attempts += 1
            self.counters.errors_count += 1
            if spec.on_error == "fail":
                self._fail(failure, self._where(batch))
                return
            if spec.on_error == "retry" and attempts <= spec.retries:
                await asyncio.sleep(spec.backoff_s * 2 ** (attempts - 1))
                continue
            self._bury(data, records, batch.topic, dict.fromkeys(range(data.num_rows), failure), attempts)
            queue.popleft()
            self._current = None
            attempts = 0
            self._done(batch.num_rows, batch.nbytes)
            await asyncio.sleep(0)

    @staticmethod
    def _named_rows(error: RowErrors, data: pa.RecordBatch) -> bool:
        return bool(error.rows) and all(isinstance(row, int) and 0 <= row < data.num_rows for row in error.rows)

    def _bury(
        self,
        data: pa.RecordBatch,
        records: pa.RecordBatch | None,
        topic: str,
        reasons: dict[int, Any],
        attempts: int,
    ) -> None:
        picked = pa.array(list(reasons), pa.int64())
        rows = to_records(Batch(data.take(picked)), self._now_ms()) if records is None else records.take(picked)
        for row, reason in zip(_rows(rows, topic), reasons.values(), strict=True):
            self._dead_letter(row, reason, attempts)

    def _checked(self, result: Any) -> pa.RecordBatch:
        """What a batch agent returned -> RECORD_SCHEMA or columns for its port. Raises TypeError for anything but Arrow."""
        if not hasattr(result, "__arrow_c_array__") and hasattr(result, "__arrow_c_stream__"):
            table = pa.table(result).combine_chunks()
            result = table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=table.schema)
        if not hasattr(result, "__arrow_c_array__"):
            raise TypeError(f"a batch agent returns a RecordBatch (or Table, or None), not {type(result).__name__}")
        batch = normalise(result)
        if self.spec.key is not None and self.spec.key in batch.schema.names:
            records = to_records(Batch(batch), self._now_ms())
            keys = batch.column(self.spec.key).cast(pa.string()).cast(pa.binary())
            return records.set_column(1, RECORD_SCHEMA.field(1), keys)
        return batch


def decoded(batch: Batch, codec: JsonCodec) -> Batch:
    """Records -> columns, with the records behind them."""
    data, bad = codec.decode(batch.data)
    return Batch(data, batch.offsets, batch.topic, batch.data, bad)


def agent_operator(spec: AgentSpec, **wiring: Any) -> AgentOperator:
    """The operator that runs this agent."""
    return BatchAgentOperator(spec, **wiring) if spec.batch else RecordAgentOperator(spec, **wiring)
