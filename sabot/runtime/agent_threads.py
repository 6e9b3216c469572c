"""The threads beside the agent task: one that reads each source, one that writes into each sink."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from sabot._cython.batch import Batch
from sabot._cython.channel import END, Barrier, Channel, ChannelClosed
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, bounded
from sabot.connectors.base import Positions, Sink, Source
from sabot.errors import SabotError
from sabot.exits import EXITS
from sabot.operators import decoded
from sabot.runtime.inputs import commit_offsets
from sabot.threads import Handle, aside, tell, threads

__all__ = ["SinkTask", "SourceTask"]

_log = logging.getLogger(__name__)

_SINK_STOP_SECONDS = 5.0
_SOURCE_STOP_SECONDS = 30.0


class SourceTask:
    """The thread of one source. Requests (barriers, commits) are served between polls, also while the channel is full."""

    def __init__(self, name: str, source: Source, *, codec: JsonCodec | None, max_rows: int) -> None:
        self.name = name
        self.source = source
        self.channel = Channel(name=name)
        self.error: BaseException | None = None
        self.ended = False
        self.exhausted = False  # ended by itself
        self.rows_in = 0
        self.on_error: Callable[[SourceTask], None] | None = None
        self.codec = codec
        self._max_rows = max_rows
        self.taken: Positions = {}  # the offsets after what the task has taken out of the channel; the task's own
        self._requests: deque[Callable[[], None]] = deque()
        self._waiting: Batch | None = None  # read, and the channel is full
        self._paused = False
        self._held = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threads.spawn(f"source {name}", self.step)

    def open(self, positions: Positions | None, start: str | int) -> None:
        """Blocking; before `start`. Raises what Source.open raises."""
        self.source.open(positions, start)
        self.taken = dict(self.source.positions())

    def start(self) -> None:
        """The thread begins to poll."""
        self._thread.start()

    def request_barrier(self, checkpoint_id: int) -> None:
        """Emit a barrier as soon as possible; from any thread."""
        self._requests.append(lambda: self._mark(Barrier(checkpoint_id)))
        self._wake.set()

    def request_commit(self, positions: Positions) -> None:
        """Commit positions of a complete checkpoint; from any thread."""
        self._requests.append(lambda: commit_offsets(self.source, positions))
        self._wake.set()

    def pause(self, paused: bool = True) -> None:
        """Read no more (or go on reading); requests are still served."""
        self._paused = paused

    def hold(self, held: bool) -> None:
        """Read no more for now (or go on); requests are still served."""
        self._held = held
        self._wake.set()

    def end(self) -> None:
        """Read no more and let the input end here, behind what was read; requests are still served."""
        self._paused = True
        self._requests.append(self._end)
        self._wake.set()

    async def stop(self) -> None:
        """Serves what was requested, ends the thread, closes the source."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            await aside(self._thread.join, _SOURCE_STOP_SECONDS)
            if self._thread.is_alive():
                _log.error("source %s does not come back, and is left behind", self.name)
        else:
            await aside(closed, self.source)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """After `stop`: its thread, if it did not come back."""
        return [(f"source {self.name}", self._thread)] if self._thread.is_alive() else []

    def statistics(self) -> dict[str, Any]:
        """rows_in (read in this job), ended, lag, and its channel; from any thread."""
        return {
            "rows_in": self.rows_in,
            "ended": self.ended,
            "lag": {f"{topic}[{partition}]": lag for (topic, partition), lag in self.source.lag().items()},
            "channel": self.channel.statistics(),
        }

    # -- in the thread ------------------------------------------------------------------------------------------------

    def step(self, wait_seconds: float) -> bool | None:
        """Reads a batch (`threads.Turn`)."""
        try:
            took = self._turn(wait_seconds)
        except ChannelClosed:
            _log.debug("source %s: its task is gone", self.name)
            took = False
        except BaseException as error:
            self.error = error
            if self.on_error is not None:
                self.on_error(self)
            took = False
        if took is False:
            closed(self.source)
        return took

    def _turn(self, wait_seconds: float) -> bool | None:
        self._serve()
        if self._stopping:
            self._serve()  # what came between the two
            return False
        if self._waiting is not None and not self.ended:
            if self.channel.put(self._waiting, timeout=wait_seconds):
                self._waiting = None
                return True
            return None
        if self._held or self._paused or self.ended:
            self._wake.wait(wait_seconds)
            self._wake.clear()
            return None
        batch = self.source.read_batch(self._max_rows, wait_seconds)
        if batch is not None:
            batch = self._decoded(batch)
            if not self.channel.put_nowait(batch):
                self._waiting = batch
        elif self.source.exhausted:
            self.exhausted = True
            self._end()
        else:
            return None
        return True

    def _decoded(self, batch: Batch) -> Batch:
        self.rows_in += batch.num_rows
        if not batch.topic:
            batch = Batch(batch.data, batch.offsets, self.source.name, bad=batch.bad)
        if batch.bad is None and batch.data.schema.equals(RECORD_SCHEMA):
            batch = bounded(batch, self.source.record_bytes)
        return batch if self.codec is None else decoded(batch, self.codec)

    def _serve(self) -> None:
        while self._requests:
            self._requests.popleft()()

    def _mark(self, mark: Any) -> None:
        if not self.ended:
            self.channel.put_nowait(mark)

    def _end(self) -> None:
        self._mark(END)
        self.ended = True


class SinkTask:
    """The thread of one sink, and the port through which operators reach it."""

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop) -> None:
        self.sink = sink
        self.error: BaseException | None = None
        self.rows_out = 0
        self._loop = loop
        self._channel = Channel(name=f"sink {sink.name}")
        self._backlog: deque[Any] = deque()  # what the full channel refused; operators stop at `full`
        self._flushed: dict[int, asyncio.Future[Mapping[str, int]]] = {}
        self._room: list[asyncio.Future[None]] = []
        self._armed = False
        self._finished = False
        self.on_broken: Callable[[SinkTask], None] | None = None
        self._thread = threads.spawn(f"sink {sink.name}", self.step)

    def start(self) -> None:
        """The thread begins to write; the sink is open."""
        self._thread.start()

    @property
    def name(self) -> str:
        """The sink's."""
        return self.sink.name

    @property
    def waiting_rows(self) -> int:
        """Rows that are not written yet; from any thread."""
        return self._channel.rows + sum(batch.num_rows for batch in list(self._backlog) if isinstance(batch, Batch))

    def statistics(self) -> dict[str, Any]:
        """rows_out (written in this job), waiting (elements that its full channel refused), and its channel; from any thread."""
        return {"rows_out": self.rows_out, "waiting": len(self._backlog), "channel": self._channel.statistics()}

    @property
    def takes_records(self) -> bool:
        """The sink turns columns into what it writes, in its thread."""
        return False

    @property
    def full(self) -> bool:
        """The channel refused a batch; wait on `writable()`."""
        return bool(self._backlog)

    def put(self, batch: Batch) -> None:
        """Takes the batch, in order. A broken sink drops it: no checkpoint can complete any more, so it will be made again."""
        self._put(batch)

    async def writable(self) -> None:
        """Returns when the sink has room again, or is broken."""
        while self._backlog and self.error is None:
            waiter = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    @property
    def flushing(self) -> bool:
        """A barrier has not come out at the other end."""
        return bool(self._flushed)

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Everything put before this will be flushed; done when it is, with what the sink has `sealed`."""
        flushed: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        self._flushed[checkpoint_id] = flushed
        if self.error is not None:
            self._report(checkpoint_id, self.error)
        else:
            self._put(Barrier(checkpoint_id))
        return flushed

    async def stop(self, *, finished: bool = False) -> None:
        """Writes what was put, flushes, closes; `finished`: every input has ended for good.

        A sink that does not come back is left behind: no checkpoint counts on it.
        """
        self._finished = finished
        if self._thread.is_alive():
            self._put(END)
            await aside(self._thread.join, _SINK_STOP_SECONDS)
        if self._thread.is_alive():
            _log.error("sink %s does not come back; %d rows are not written", self.sink.name, self.waiting_rows)
        else:
            await aside(closed, self.sink)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """After `stop`: its thread, if it did not come back."""
        return [(f"sink {self.name}", self._thread)] if self._thread.is_alive() else []

    def _put(self, element: Any) -> None:
        if self.error is not None:
            return
        try:
            if self._backlog or not self._channel.put_nowait(element):
                self._backlog.append(element)
                self._arm()
        except ChannelClosed:
            _log.debug("sink %s: broken just now", self.sink.name)  # `_broken` is on its way

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
                return  # `_broken` is on its way
            self._backlog.popleft()
        self._release()

    def _release(self) -> None:
        waiters, self._room = self._room, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _report(self, checkpoint_id: int, outcome: Mapping[str, int] | BaseException) -> None:
        flushed = self._flushed.pop(checkpoint_id, None)
        if flushed is None or flushed.done():
            return
        if isinstance(outcome, BaseException):
            flushed.set_exception(SabotError(f"sink {self.sink.name}: {outcome}"))
        else:
            flushed.set_result(outcome)

    def _broken(self, error: BaseException) -> None:
        self.error = error
        self._backlog.clear()
        for checkpoint_id in list(self._flushed):
            self._report(checkpoint_id, error)
        self._release()
        if self.on_broken is not None:
            self.on_broken(self)

    # -- in the thread ------------------------------------------------------------------------------------------------

    def step(self, wait_seconds: float) -> bool | None:
        """Writes an element (`threads.Turn`)."""
        try:
            return self._turn(wait_seconds)
        except BaseException as error:
            _log.error("sink %s: %s", self.sink.name, error)
            tell(self._loop, self._broken, error)
            self._channel.close()
            return False

    def _turn(self, wait_seconds: float) -> bool | None:
        element = self._channel.get(wait_seconds)
        if element is None:
            return None
        if isinstance(element, Batch):
            self.sink.write(element)
            self.rows_out += element.num_rows
        elif isinstance(element, Barrier):
            self.sink.flush()
            tell(self._loop, self._report, element.checkpoint_id, self.sink.sealed)
        elif element is END:
            if self._finished:
                self.sink.finish()
            else:
                self.sink.flush()
            return False
        return True


def closed(connector: Source | Sink) -> None:
    """Closes it. What that raises is told and changes nothing: all that counts was flushed, or is in a checkpoint."""
    try:
        connector.close()
    except (Exception, *EXITS):
        _log.exception("%s could not be closed", connector.name)
