"""The output of an app: a sink has one thread, behind a gate over the channels of all its writers.

A chain of a stream writes from its own thread (`chain.Output`), which may block until the channel has room. Agents
write from the event loop, which must not block: a `SinkPort` takes every batch, keeps those that the full channel
refuses, and says when it is full.

    SinkPort    for a sink that a stream writes too: the stream's stage has the thread, and acknowledges barriers itself
    StreamPort  for a stream that reads an agent
    AgentSink   for a sink that only agents write: it has a thread of its own, and reports to the agent task the parts that a barrier sealed
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, ChannelClosed
from sabot.api.words import check_names
from sabot.base.arrays import exact_cast
from sabot.base.metrics import Sample
from sabot.base.os_errors import hint_of
from sabot.base.threads import Handle, call_on_loop, run_in_thread
from sabot.clock import Clock
from sabot.codecs.records import RECORD_SCHEMA
from sabot.engine.checkpoint import TaskSnapshot
from sabot.engine.operators.base import OperatorContext
from sabot.engine.operators.sink import SinkWriter
from sabot.engine.runtime.tasks.chain import Chain, Link
from sabot.engine.runtime.tasks.inputs import GateInput
from sabot.engine.runtime.tasks.task import StreamTask, close_tasks
from sabot.errors import SabotError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldPort
    from sabot.engine.operators.agents.operator import AgentOperator

_log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


def open_writer(writer: SinkWriter, columns: Sequence[pa.Schema] = (), input: pa.Schema = RECORD_SCHEMA) -> None:
    """Opens the sink of a writer. `columns`: the columns of each input stream, without marks. Blocks. If it raises,
    the sink is closed.
    """
    try:
        for schema in columns:
            writer.check_types(schema)
        writer.open(OperatorContext(input))
    except BaseException as error:
        writer.close()
        # An error must not be its own cause: code that follows causes would loop for ever.
        if isinstance(error, SabotError):
            raise
        raise refused(f"sink {writer.sink.name}", error) from error


class OperatorPort:
    """A port into another agent: `put` adds the batch to that agent's lanes, by a plain call."""

    def __init__(self, operator: "AgentOperator") -> None:
        self.operator = operator

    @property
    def name(self) -> str:
        """The id of the agent."""
        return self.operator.spec.agent_id

    @property
    def takes_records(self) -> bool:
        """True if it is a record agent."""
        return not self.operator.spec.batch

    @property
    def full(self) -> bool:
        """True if its lanes have reached their limit."""
        return self.operator.full

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch unchanged."""
        return batch

    def put(self, batch: Batch) -> None:
        """Puts the batch into the agent's lanes. If the agent has failed, the batch stays in the lanes for the
        checkpoint.
        """
        self.operator.put(batch)

    async def writable(self) -> None:
        """Returns when the agent has room, or has failed."""
        await self.operator.writable()


class Flushes(Protocol):
    """An object for which the agent task waits before it acknowledges a barrier: a sink that agents write, a stream
    that feeds an agent, or a journal.
    """

    @property
    def what(self) -> str:
        """The name in messages, such as "sink alerts"."""

    @property
    def flushing(self) -> bool:
        """True while the future of a barrier is not done."""

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Called when the agents take their snapshot, on the event loop. The returned future is done when everything
        before the barrier is safe. Its result is, by track of exactly-once output, the last part before the barrier.
        If it raises, the checkpoint is declined.
        """


class SinkPort:
    """The port through which agents write into the channel of a sink. Its methods run on the event loop, unless said otherwise."""

    def __init__(self, name: str, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.rows = 0  # the rows that were put in this run
        self.takes_dead_letters = False
        self._loop = loop
        self._channel = channel
        # Elements that the full channel refused; operators stop while the port is `full`.
        self._backlog: deque[Any] = deque()
        self._room: list[asyncio.Future[None]] = []
        self._armed = False
        self._gone = False  # nothing reads the channel any more
        self.on_full_changed: Callable[[], None] = _nothing  # called on the event loop when `full` has changed

    # -- rows ---------------------------------------------------------------------------------------------------------

    @property
    def takes_records(self) -> bool:
        """True, because the sink itself converts columns, in its thread."""
        return False

    @property
    def full(self) -> bool:
        """True if the channel has refused a batch; then await `writable()`."""
        return bool(self._backlog)

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch unchanged, because the sink checks it."""
        return batch

    def put(self, batch: Batch) -> None:
        """Accepts the batch, after the earlier ones. A broken sink drops it: no checkpoint can complete any more, so
        a restart makes the batch again.
        """
        self.rows += batch.num_rows
        self._put(batch)

    async def writable(self) -> None:
        """Returns when the sink has room again, or when it has stopped to read."""
        while self._backlog:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    def _put(self, element: Any) -> None:
        if self._gone:
            return
        try:
            if self._backlog or not self._channel.put_nowait(element):
                self._backlog.append(element)
                self._arm()
                if len(self._backlog) == 1:
                    self.on_full_changed()
        except ChannelClosed:
            self._is_gone()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._channel.when_writable(lambda: call_on_loop(self._loop, self._drain))

    def _drain(self) -> None:
        self._armed = False
        while self._backlog:
            try:
                if not self._channel.put_nowait(self._backlog[0]):
                    self._arm()
                    return
            except ChannelClosed:
                self._is_gone()
                return
            self._backlog.popleft()
        self._release()

    def _is_gone(self) -> None:
        self._gone = True
        self._backlog.clear()
        self._release()

    def _release(self) -> None:
        self.on_full_changed()
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- barriers and the end ---------------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """The name of the sink in messages."""
        return f"sink {self.name}"

    @property
    def flushing(self) -> bool:
        """True while a barrier has not reached the sink's thread."""
        return False

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Makes the rows that were put before this call part of the checkpoint. The returned future is done when the
        agent task may acknowledge.

        Its result is the last part of each track of exactly-once output (`sealed` of the sink). The result is empty
        if a stream writes the sink too: that stream's task acknowledges the barrier for this sink.
        """
        self._put(Barrier(checkpoint_id))
        flushed: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        flushed.set_result({})
        return flushed

    def over(self, *, finished: bool) -> None:
        """Notes that agents put no more rows. `finished`: True if every input has ended for good."""
        self._put(END)

    async def stop(self) -> None:
        """Writes the rows that were put, and closes the sink if only agents write it. Idempotent."""

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """The thread of the sink, if it did not end. Valid after `stop`."""
        return []

    # -- figures, from any thread -------------------------------------------------------------------------------------

    @property
    def waiting_rows(self) -> int:
        """Returns how many rows are not written yet."""
        return self._channel.rows + sum(batch.num_rows for batch in list(self._backlog) if isinstance(batch, Batch))

    @property
    def rows_out(self) -> int:
        """Returns how many rows were written in this run. If streams write the sink too, rows on their way to it are
        included.
        """
        return self.rows

    @property
    def nulled(self) -> int:
        """The number of floats that became null because the sink's format has no form for them; 0 if streams write
        the sink too, which count them.
        """
        return 0

    def statistics(self) -> "ToldPort":
        """Returns the figures of every port: those that it does not have are left out."""
        figures: ToldPort = {
            "rows_out": self.rows_out,
            "waiting": len(self._backlog),
            "channel": self._channel.statistics(),
        }
        if self.takes_dead_letters:
            figures["dead_letters"] = True
        return {**figures, "nulled": self.nulled} if self.nulled else figures

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples. From any thread."""
        yield Sample("sabot_channel_rows", self.waiting_rows, "sink", self.name)
        if self.nulled:
            yield Sample("sabot_sink_nulled_total", self.nulled, "sink", self.name)


class StreamPort(SinkPort):
    """The port of an agent for the stream that reads it."""

    def __init__(self, agent_id: str, columns: pa.Schema, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(f"stream of {agent_id}", channel, loop)
        self._columns = columns

    @property
    def what(self) -> str:
        return self.name

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns of the stream's `schema=`, with its types. Raises UserError."""
        if batch.schema.equals(RECORD_SCHEMA) or batch.schema.equals(self._columns):
            return batch
        check_names(self.name, self._columns.names, batch.schema.names)
        try:
            columns = [exact_cast(batch.column(field.name), field.type) for field in self._columns]
            return pa.RecordBatch.from_arrays(columns, names=self._columns.names).cast(self._columns)
        except (pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{self.name}: {error}", hint="emit values of the types in the stream's schema=, or correct schema="
            ) from error

    def over(self, *, finished: bool) -> None:
        """Does nothing, because `end` ends the stream."""

    def end(self) -> None:
        """Ends the stream, because the agent emits no more rows: its windows close. Not called for an agent that has
        failed or was stopped.
        """
        self._put(END)


class SeveralSinks:
    """The ports of an agent with several sinks, as one port. Results without a named sink go into the first."""

    takes_records = False

    def __init__(self, ports: Sequence[SinkPort]) -> None:
        self.name = ports[0].name
        self._ports = ports

    @property
    def full(self) -> bool:
        """True if one of the ports is full."""
        return any(port.full for port in self._ports)

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch unchanged."""
        return batch

    def put(self, batch: Batch) -> None:
        """Puts the batch into its sink, like `SinkPort.put`."""
        self._ports[0].put(batch)

    async def writable(self) -> None:
        """Returns when each port has room again, or its sink has stopped to read."""
        for port in self._ports:
            await port.writable()


class AgentSink(SinkPort):
    """A sink that only agents write, with its thread. The thread runs a task of a gate and a `SinkWriter`, as for streams.

    The agent task acknowledges barriers for it, so its task reports to this object instead of the coordinator.
    """

    def __init__(self, writer: SinkWriter, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        name = writer.sink.name
        channel = Channel(name=f"sink {name}")
        super().__init__(name, channel, loop)
        self.writer = writer
        self.error: SabotError | None = None
        self.on_broken: Callable[[AgentSink], None] = lambda sink: None
        self._flushed: dict[int, asyncio.Future[Mapping[str, int]]] = {}
        self._last = 0  # the id of the last checkpoint
        self._final: Mapping[str, int] | None = None  # what was sealed when all inputs had ended
        self._left: list[tuple[str, Handle]] = []
        self.task = StreamTask(f"sink {name}", self, clock)
        self.task.input = GateInput([channel])
        self.task.chain = Chain([Link(writer, [])], [])
        self.task.on_over = lambda task: call_on_loop(loop, self._ended)

    def open(self) -> None:
        """Opens the sink. Called before `start`. Blocks. Raises the errors of `open_writer`."""
        open_writer(self.writer)

    def start(self) -> None:
        """Starts the thread, which begins to write."""
        self.task.start()

    @property
    def flushing(self) -> bool:
        return bool(self._flushed)

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Returns a future that is done when everything put before is flushed. Its result is `sealed` of the sink."""
        self._last = checkpoint_id
        flushed: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        self._flushed[checkpoint_id] = flushed
        if self.error is not None or self._final is not None:
            self._answer()
        else:
            self._put(Barrier(checkpoint_id))
        return flushed

    def over(self, *, finished: bool) -> None:
        """Lets the sink complete its result, if the input is complete (`finished`). After a stop it does nothing: the
        next run continues the result.
        """
        if finished:
            self._put(END)

    async def stop(self) -> None:
        """Stops the thread. A thread that does not end is abandoned, because no checkpoint depends on it."""
        seconds = _STOP_SECONDS
        if self.task.handle.is_alive() and self.error is None:
            flushed, _ = await asyncio.wait([self.barrier(self._last + 1)], timeout=_STOP_SECONDS)
            seconds = _STOP_SECONDS if flushed else 0.1
        self._left = await run_in_thread(close_tasks, [self.task], seconds)
        if self._left:
            _log.error("the thread of sink %s did not end: %d rows are not written", self.name, self.waiting_rows)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        return self._left

    @property
    def rows_out(self) -> int:
        return self.writer.rows_out

    @property
    def nulled(self) -> int:
        return self.writer.nulled

    def statistics(self) -> "ToldPort":
        """Returns the figures of every port, and where the time of the sink's thread goes (`TaskTimes.figures`)."""
        return {**super().statistics(), **self.task.times.figures()}

    def samples(self) -> Iterator[Sample]:
        yield from super().samples()
        yield from self.task.times.samples(self.task.name)

    def _answer(self) -> None:
        """Ends the future of every barrier that is under way, because the sink has ended."""
        for flushed in self._flushed.values():
            if not flushed.done():
                if self.error is not None:
                    flushed.set_exception(self.error)
                    # Marks the exception as retrieved: the waiter has it too, and after an abort there is no waiter.
                    flushed.exception()
                else:
                    flushed.set_result(self._final or {})
        self._flushed.clear()

    def _ended(self) -> None:
        """Called when the thread has ended."""
        error = self.task.error
        if error is not None and self.error is None:
            _log.error("%s", error)
            self.error = error if isinstance(error, SabotError) else SabotError(f"sink {self.name}: {error}")
            self._is_gone()
            self._answer()
            self.on_broken(self)

    # -- reports of its task, in the task's thread ------------------------------------------------------------------------

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Ends the future of a barrier. Called by the sink's task when everything before the barrier is flushed."""
        call_on_loop(self._loop, self._has_flushed, checkpoint_id, snapshot.sealed)

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Called when every input has ended and the sink is finished."""
        call_on_loop(self._loop, self._has_finished, {} if final is None else final.sealed)

    def _has_flushed(self, checkpoint_id: int, sealed: Mapping[str, int]) -> None:
        flushed = self._flushed.pop(checkpoint_id, None)
        if flushed is not None and not flushed.done():
            flushed.set_result(sealed)

    def _has_finished(self, sealed: Mapping[str, int]) -> None:
        self._final = sealed
        self._answer()


def _nothing() -> None:
    """Does nothing. It stands for the callback of a port whose work no task measures."""


def refused(what: str, error: BaseException) -> UserError:
    """Returns the error for a source or sink whose own code raised while it was opened."""
    return UserError(f"{what} cannot be opened: {type(error).__name__}: {error}", hint=hint_of(error))
