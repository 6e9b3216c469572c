"""How rows leave a job: a sink has one thread, behind a gate over the channels of all who write into it.

A chain of a stream writes from its own thread (`task.Output`), which may wait for room. Agents write from the event loop, which
must not wait: a `SinkPort` takes whatever it is given, keeps what the full channel refuses, and says when it is full.

    SinkPort    of a sink that a stream writes too: the stream's stage has the thread, and acknowledges barriers itself
    StreamPort  of a stream that reads an agent
    AgentSink   of a sink that only agents write: the thread is its own, and it tells the agent task what its barriers came to
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Barrier, Channel, ChannelClosed
from sabot.api.words import check_names
from sabot.checkpoint import TaskSnapshot
from sabot.clock import Clock
from sabot.codecs.records import RECORD_SCHEMA
from sabot.errors import SabotError, UserError
from sabot.operators import AgentOperator
from sabot.operators.base import OperatorContext
from sabot.operators.sink import SinkWriter
from sabot.runtime.inputs import GateInput
from sabot.runtime.task import Chain, Link, StreamTask, close_tasks, refused
from sabot.threads import Handle, aside, tell

__all__ = ["AgentSink", "Flushes", "OperatorPort", "SinkPort", "StreamPort", "open_writer"]

_log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0


def open_writer(writer: SinkWriter, columns: Sequence[pa.Schema] = (), input: pa.Schema = RECORD_SCHEMA) -> None:
    """Blocking. columns: those of each stream that comes in, without marks. Raises what opening raises; then the sink is closed."""
    try:
        for schema in columns:
            writer.check_types(schema)
        writer.open(OperatorContext(input))
    except BaseException as error:
        writer.close()
        if isinstance(error, SabotError):  # not from itself: whoever follows its causes would not come to an end
            raise
        raise refused(f"sink {writer.sink.name}", error) from error


class OperatorPort:
    """Another agent as the receiver: a plain call into its lanes."""

    def __init__(self, operator: AgentOperator) -> None:
        self.operator = operator

    @property
    def name(self) -> str:
        """The agent's id."""
        return self.operator.spec.agent_id

    @property
    def takes_records(self) -> bool:
        """A record agent does."""
        return not self.operator.spec.batch

    @property
    def full(self) -> bool:
        """Its lanes hold as much as they may."""
        return self.operator.full

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As it is."""
        return batch

    def put(self, batch: Batch) -> None:
        """Into its lanes; of an agent that has failed they are kept for the checkpoint."""
        self.operator.put(batch)

    async def writable(self) -> None:
        """Until it has room, or has failed."""
        await self.operator.writable()


class Flushes(Protocol):
    """Somebody who must have flushed before the agent task acknowledges a barrier: a sink that agents write, a journal."""

    @property
    def what(self) -> str:
        """For messages: "sink alerts"."""

    @property
    def flushing(self) -> bool:
        """A barrier is under way."""

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """In the moment of the cut, on the event loop. Done when all that came before is safe; -> by track of exactly-once output the last
        part before the barrier. What it raises is why the checkpoint is declined.
        """


class SinkPort:
    """The port of agents into the channel of a sink. All methods on the event loop, unless said otherwise."""

    def __init__(self, name: str, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.rows = 0  # put in this job
        self._loop = loop
        self._channel = channel
        self._backlog: deque[Any] = deque()  # what the full channel refused; operators stop at `full`
        self._room: list[asyncio.Future[None]] = []
        self._armed = False
        self._gone = False  # nobody reads the channel any more

    # -- rows ---------------------------------------------------------------------------------------------------------

    @property
    def takes_records(self) -> bool:
        """The sink turns columns into what it writes, in its thread."""
        return False

    @property
    def full(self) -> bool:
        """The channel refused a batch; wait on `writable()`."""
        return bool(self._backlog)

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As it is: the sink says what it takes."""
        return batch

    def put(self, batch: Batch) -> None:
        """Takes the batch, in order. A broken sink drops it: no checkpoint can complete any more, so it will be made again."""
        self.rows += batch.num_rows
        self._put(batch)

    async def writable(self) -> None:
        """Returns when the sink has room again, or is gone."""
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
        except ChannelClosed:
            self._is_gone()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._channel.when_writable(lambda: tell(self._loop, self._drain))

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
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- barriers, and the end ----------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """For messages."""
        return f"sink {self.name}"

    @property
    def flushing(self) -> bool:
        """A barrier has not come out at the other end."""
        return False

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Everything put before this belongs to the checkpoint. Done when the agent task need wait no more for it, with what the
        sink has `sealed` for the agent task: nothing, where the sink's task acknowledges the barrier itself.
        """
        self._put(Barrier(checkpoint_id))
        flushed: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        flushed.set_result({})
        return flushed

    def over(self, *, finished: bool) -> None:
        """Agents put nothing more. finished: since every input has ended for good."""
        self._put(END)

    async def stop(self) -> None:
        """Idempotent. Writes what was put, and closes the sink, where it is the agents' own."""

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """After `stop`: the sink's thread, if it did not come back."""
        return []

    # -- figures, from any thread -------------------------------------------------------------------------------------

    @property
    def waiting_rows(self) -> int:
        """Rows that are not written yet."""
        return self._channel.rows + sum(batch.num_rows for batch in list(self._backlog) if isinstance(batch, Batch))

    @property
    def rows_out(self) -> int:
        """Rows that are written, or, where others write the sink too, on their way."""
        return self.rows

    def statistics(self) -> dict[str, Any]:
        """rows_out (in this job), waiting (elements that the full channel refused), and the channel."""
        return {"rows_out": self.rows_out, "waiting": len(self._backlog), "channel": self._channel.statistics()}


class StreamPort(SinkPort):
    """The port of an agent into the stream that reads it."""

    def __init__(self, agent_id: str, columns: pa.Schema, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(f"stream of {agent_id}", channel, loop)
        self._columns = columns

    @property
    def what(self) -> str:
        return self.name

    def fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns that the stream's schema= says, with its types. Raises UserError."""
        if batch.schema.equals(RECORD_SCHEMA) or batch.schema.equals(self._columns):
            return batch
        check_names(self.name, self._columns.names, batch.schema.names)
        try:
            return batch.select(self._columns.names).cast(self._columns)
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"{self.name}: {error}", hint="its schema= says the types of the columns") from error

    def over(self, *, finished: bool) -> None:
        """The stream ends by `end`."""

    def end(self) -> None:
        """The agent gives nothing more: the windows of the stream close. Not after a failure, nor of an agent that was stopped."""
        self._put(END)


class AgentSink(SinkPort):
    """A sink that only agents write, with its thread: a task of a gate and a `SinkWriter`, as streams have.

    The agent task acknowledges for it, so the task tells its cuts to this object instead of the coordinator.
    """

    def __init__(self, writer: SinkWriter, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        name = writer.sink.name
        channel = Channel(name=f"sink {name}")
        super().__init__(name, channel, loop)
        self.writer = writer
        self.error: SabotError | None = None
        self.on_broken: Callable[[AgentSink], None] = lambda sink: None
        self._flushed: dict[int, asyncio.Future[Mapping[str, int]]] = {}
        self._last = 0  # checkpoint
        self._final: Mapping[str, int] | None = None  # what was sealed at the end of all inputs
        self._left: list[tuple[str, Handle]] = []
        self.task = StreamTask(f"sink {name}", self, clock)
        self.task.input = GateInput([channel])
        self.task.chain = Chain([Link(writer, [])], [])
        self.task.on_over = lambda task: tell(loop, self._ended)

    def open(self) -> None:
        """Blocking; before `start`. Raises what `open_writer` raises."""
        open_writer(self.writer)

    def start(self) -> None:
        """The thread begins to write."""
        self.task.start()

    @property
    def flushing(self) -> bool:
        return bool(self._flushed)

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Done when everything put before is flushed, with what the sink has `sealed`."""
        self._last = checkpoint_id
        flushed: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        self._flushed[checkpoint_id] = flushed
        if self.error is not None or self._final is not None:
            self._answer()
        else:
            self._put(Barrier(checkpoint_id))
        return flushed

    def over(self, *, finished: bool) -> None:
        """Results are completed only where they are complete: after a stop the next run goes on with them."""
        if finished:
            self._put(END)

    async def stop(self) -> None:
        """A sink that does not come back is left behind: no checkpoint counts on it."""
        seconds = _STOP_SECONDS
        if self.task.handle.is_alive() and self.error is None:
            flushed, _ = await asyncio.wait([self.barrier(self._last + 1)], timeout=_STOP_SECONDS)
            seconds = _STOP_SECONDS if flushed else 0.1
        self._left = await aside(close_tasks, [self.task], seconds)
        if self._left:
            _log.error("%d rows for it are not written", self.waiting_rows)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        return self._left

    @property
    def rows_out(self) -> int:
        return self.writer.rows_out

    def _answer(self) -> None:
        """To every barrier under way: how the sink ended."""
        for flushed in self._flushed.values():
            if not flushed.done():
                if self.error is not None:
                    flushed.set_exception(self.error)
                    flushed.exception()  # whoever waits for it has it; after an abort nobody does
                else:
                    flushed.set_result(self._final or {})
        self._flushed.clear()

    def _ended(self) -> None:
        """The thread is over."""
        error = self.task.error
        if error is not None and self.error is None:
            _log.error("%s", error)
            self.error = error if isinstance(error, SabotError) else SabotError(f"sink {self.name}: {error}")
            self._is_gone()
            self._answer()
            self.on_broken(self)

    # -- what its task says, in the task's thread ---------------------------------------------------------------------

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """A barrier has come, and everything before it is flushed."""
        tell(self._loop, self._has_flushed, checkpoint_id, snapshot.sealed)

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Every input has ended, and the sink is finished."""
        tell(self._loop, self._has_finished, {} if final is None else final.sealed)

    def _has_flushed(self, checkpoint_id: int, sealed: Mapping[str, int]) -> None:
        flushed = self._flushed.pop(checkpoint_id, None)
        if flushed is not None and not flushed.done():
            flushed.set_result(sealed)

    def _has_finished(self, sealed: Mapping[str, int]) -> None:
        self._final = sealed
        self._answer()
