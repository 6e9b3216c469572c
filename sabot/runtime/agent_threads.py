"""The threads beside the agent task: one that reads each source."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from sabot._cython.batch import Batch
from sabot._cython.channel import END, Barrier, Channel, ChannelClosed
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, bounded
from sabot.connectors.base import Positions, Source
from sabot.exits import EXITS
from sabot.operators import decoded
from sabot.runtime.inputs import commit_offsets
from sabot.threads import Handle, aside, threads

__all__ = ["SourceTask"]

_log = logging.getLogger(__name__)

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


def closed(connector: Source) -> None:
    """Closes it. What that raises is told and changes nothing: all that counts was flushed, or is in a checkpoint."""
    try:
        connector.close()
    except (Exception, *EXITS):
        _log.exception("%s could not be closed", connector.name)
