"""The sources of agents. Each source has a thread, which reads batches and puts them into a channel to the agent
task.

The thread runs a task like those of streams, with one output and no operator. It acknowledges no barrier: a
checkpoint contains the positions up to which the agent task has received rows, and not those up to which the thread
has read.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Channel
from sabot.api.agent import AgentSpec
from sabot.api.words import check_names
from sabot.base.threads import Handle, call_on_loop, run_in_thread
from sabot.clock import Clock
from sabot.codecs import Codec
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, bounded, to_records
from sabot.connectors.base import Positions, Scans, Source
from sabot.connectors.places import Place
from sabot.engine.checkpoint import TaskSnapshot
from sabot.engine.operators.agents.batches import decoded
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.runtime.tasks.chain import Chain, Output
from sabot.engine.runtime.tasks.reading import Reader, insertions
from sabot.engine.runtime.tasks.task import StreamTask, close_tasks
from sabot.errors import InternalError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldPort

_STOP_SECONDS = 30.0


def scan_columns(source: Source, spec: AgentSpec) -> None:
    """Tells a source whose rows are columns which columns the agent needs: those of its `schema=` for a batch agent,
    else all. Blocks.

    Raises UserError for columns that the source does not have, and, for a record agent, whose rows become JSON, for
    types that JSON does not have.
    """
    if not isinstance(source, Scans) or source.has_records:  # records come, which the agent decodes
        return
    source.scan(spec.schema if spec.batch else None, None)
    if not spec.batch and source.schema is not None:
        where = f"agent {spec.agent_id}, from {source.name}"
        check_names(where, [] if spec.key is None else [spec.key], source.schema.names)
        JSON.check_types(source.schema, where)


class _RecordInput(Reader):
    """The input of an agent: records as they are, or, with a codec, columns together with their records.

    `clock`: for a record agent, whose rows without records are turned into records; else None.
    """

    def __init__(self, name: str, source: Source, *, codec: Codec | None, max_rows: int, clock: Clock | None) -> None:
        super().__init__(name, source, max_rows=max_rows)
        self._codec = codec
        self._record_clock = clock
        self.passed: deque[Mapping[tuple[str, int], bytes]] = deque()  # the memory behind each batch in the channel

    def _tried(self, batch: Batch) -> Batch | None:
        ready = super()._tried(batch)
        if self.remembers and ready is not None:
            self.passed.append(self.remembered)
        return ready

    def memory(self) -> dict[str, bytes]:
        return {}  # the agent task stores the memory, behind the rows that it has taken

    def _ready(self, batch: Batch) -> Batch:
        if not batch.topic:
            batch = Batch(batch.data, batch.offsets, self.source.name, bad=batch.bad)
        if not batch.data.schema.equals(RECORD_SCHEMA):
            if (rows := insertions(batch.data, self.source)) is not batch.data:
                batch = Batch(rows, batch.offsets, batch.topic, bad=batch.bad)
            return batch if self._record_clock is None else self._as_records(batch, self._record_clock)
        if batch.bad is None:
            batch = bounded(batch, self.record_bytes)
        return batch if self._codec is None else decoded(batch, self._codec)

    def _as_records(self, batch: Batch, clock: Clock) -> Batch:
        try:
            records = to_records(batch, int(clock.time() * 1000))
        except TypeError as error:
            hint = "batch=True passes the columns unchanged to the agent; or leave this column out: app.stream(…).select(…).to(agent)"
            raise UserError(f"{batch.topic}: a row cannot become a JSON record: {error}", hint=hint) from error
        return Batch(records, batch.offsets, batch.topic, bad=batch.bad)


class _Whole(Output):
    """An output that passes on each whole batch, even without a good row, because the offsets and the bad rows of a
    batch are needed.
    """

    def put(self, batch: Batch) -> None:
        self.rows_out += batch.num_rows
        self.batches_out += 1
        self.send(self.channels[0], batch)


class AgentSource:
    """A source of an agent, with its thread and its channel. Methods run on the event loop unless they say otherwise."""

    def __init__(
        self,
        name: str,
        source: Source,
        operator: AgentOperator,
        *,
        codec: Codec | None,
        max_rows: int,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self.source = source
        self.operator = operator
        self.codec = codec
        records = None if operator.spec.batch else clock
        self.input = _RecordInput(name, source, codec=codec, max_rows=max_rows, clock=records)
        self.channel = Channel(name=name)
        self.identity: str | None = None  # the identity of the source's log, if it is part of the ids of durable jobs
        self.again = 0  # how often its records became new durable jobs (`--reprocess`)
        # After the batches that the agent task has taken out of the channel: the offsets, and what the source remembers.
        self.taken: Positions = {}
        self.remembered: Mapping[tuple[str, int], bytes] = {}
        self.on_broken: Callable[[AgentSource, BaseException], None] = lambda source, error: None
        self._loop = loop
        self._left: list[tuple[str, Handle]] = []
        self.task = StreamTask(f"source {name}", self, clock)
        self.task.input = self.input
        output = _Whole([self.channel], ())
        self.task.chain = Chain([output], [output])
        self.task.on_over = self._is_over

    def open(self, positions: Positions | None, start: Place, facts: Mapping[str, Any] | None = None) -> None:
        """Opens the source. Called before `start`. `facts`: the result of `facts` from the checkpoint, or None.
        Blocks. Raises the errors of `Reader.open_source`.
        """
        self.input.open_source(positions, start, facts)
        self.taken = dict(self.source.positions())
        self.remembered = self.input.remembered

    def took(self, batch: Batch) -> None:
        """Notes that the agent task has taken the next batch out of the channel: a checkpoint covers it from now on."""
        self.taken.update(batch.offsets)
        if self.input.remembers:
            self.remembered = self.input.passed.popleft()

    def start(self) -> None:
        """Starts the thread, which begins to poll."""
        self.task.start()

    def facts(self) -> dict[str, Any]:
        """Returns the facts about its log that a checkpoint keeps."""
        return {
            **self.input.log_facts(),
            "identity": self.identity,
            "again": self.again,
            "format": self.operator.spec.format.description,
        }

    async def stop(self) -> None:
        """Ends the thread, commits the positions that were requested last, and closes the source."""
        self._left = await run_in_thread(close_tasks, [self.task], _STOP_SECONDS)

    @property
    def left(self) -> list[tuple[str, Handle]]:
        """The thread, if it did not end. Valid after `stop`."""
        return self._left

    def statistics(self) -> "ToldPort":
        """Returns `rows_in` (read in this run), `ended`, `lag`, the reason why it waits for a schema registry or "",
        `Source.figures`, and the figures of its channel. From any thread.
        """
        return {
            "rows_in": self.input.rows_in,
            "ended": self.task.ended,
            "lag": self.input.lag(),
            "registry": self.input.outage.why,
            "figures": self.input.figures(),
            "channel": self.channel.statistics(),
            **cast("ToldPort", self.task.times.figures()),
        }

    # -- reports of its task, in the task's thread ------------------------------------------------------------------------

    def acknowledge(self, checkpoint_id: int, task: str, snapshot: TaskSnapshot) -> None:
        """Does nothing: the agent task acknowledges the barrier. Called when the barrier is in the channel."""

    def detach(self, task: str, final: TaskSnapshot | None = None) -> None:
        """Does nothing. Called when END is in the channel."""

    def _is_over(self, task: StreamTask) -> None:
        error: BaseException | None = task.error
        if error is not None:
            if isinstance(error, InternalError) and error.__cause__ is not None:
                error = error.__cause__  # the agent's failure puts its own message around the cause
            call_on_loop(self._loop, self.on_broken, self, error)
