"""How rows reach the agents: a thread for each source, which puts whole batches into the channel of the agent task's gate.

The thread is a task as streams have, of one output and no operator. It acknowledges no barrier, because a source stands where the
agent task has taken its rows, not where its thread has read them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Channel
from sabot.checkpoint import TaskSnapshot
from sabot.clock import Clock
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import RECORD_SCHEMA, bounded
from sabot.connectors.base import Positions, Source
from sabot.errors import InternalError
from sabot.operators import AgentOperator, decoded
from sabot.runtime.reading import Reader
from sabot.runtime.task import Chain, Output, StreamTask, close_tasks
from sabot.threads import Handle, aside, tell

__all__ = ["AgentSource"]

_STOP_SECONDS = 30.0


class _RecordInput(Reader):
    """Of an agent: records as they are, or with a codec the columns with the records behind them."""

    def __init__(self, name: str, source: Source, *, codec: JsonCodec | None, max_rows: int) -> None:
        super().__init__(name, source, max_rows=max_rows)
        self._codec = codec

    def _ready(self, batch: Batch) -> Batch:
        if not batch.topic:
            batch = Batch(batch.data, batch.offsets, self.source.name, bad=batch.bad)
        if batch.bad is None and batch.data.schema.equals(RECORD_SCHEMA):
            batch = bounded(batch, self.source.record_bytes)
        return batch if self._codec is None else decoded(batch, self._codec)


class _Whole(Output):
    """Takes batches whole, also those of which no row was good: their offsets and their bad rows go on."""

    def put(self, batch: Batch) -> None:
        self.rows_out += batch.num_rows
        self.send(self.channels[0], batch)


class AgentSource:
    """A source of an agent, with its thread and its channel. On the event loop, unless said otherwise."""

    def __init__(
        self,
        name: str,
        source: Source,
        operator: AgentOperator,
        *,
        codec: JsonCodec | None,
        max_rows: int,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self.source = source
        self.operator = operator
        self.codec = codec
        self.input = _RecordInput(name, source, codec=codec, max_rows=max_rows)
        self.channel = Channel(name=name)
        self.taken: Positions = {}  # the offsets after what the agent task has taken out of the channel
        self.on_broken: Callable[[AgentSource, BaseException], None] = lambda source, error: None
        self._loop = loop
        self._left: list[tuple[str, Handle]] = []
        self.task = StreamTask(f"source {name}", self, clock)
        self.task.input = self.input
        output = _Whole([self.channel], (), self.task)
        self.task.chain = Chain([output], [output])
        self.task.on_over = self._is_over

    def open(self, positions: Positions | None, start: str | int) -> None:
        """Blocking; before `start`. Raises what Source.open raises."""
        self.source.open(positions, start)
        self.taken = dict(self.source.positions())

    def start(self) -> None:
        """The thread begins to poll."""
        self.task.start()

    async def stop(self) -> None:
        """Ends the thread, commits what was asked for last, closes the source."""
        self._left = await aside(close_tasks, [self.task], _STOP_SECONDS)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """After `stop`: its thread, if it did not come back."""
        return self._left

    def statistics(self) -> dict[str, Any]:
        """rows_in (read in this job), ended, lag, and its channel; from any thread."""
        return {
            "rows_in": self.input.rows_in,
            "ended": self.task.ended,
            "lag": self.input.lag(),
            "channel": self.channel.statistics(),
        }

    # -- what its task says, in the task's thread ---------------------------------------------------------------------

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """The barrier is in the channel."""

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """So is the end."""

    def _is_over(self, task: StreamTask) -> None:
        error: BaseException | None = task.error
        if error is not None:
            if isinstance(error, InternalError) and error.__cause__ is not None:
                error = error.__cause__  # the agent's failure says it in its own words
            tell(self._loop, self.on_broken, self, error)
