"""Passes the rows of a stream to an agent without a topic: through a channel from a task of the stream into the lanes
of the agent, with the stream's barriers.

As soon as a barrier is passed on, the positions of the stream's readers cover the rows before it. The agents of an
app are cut (their snapshot is taken) at one moment, and do not wait for the barriers of streams: a stream may itself
wait for rows of an agent, and an agent with full lanes would delay a barrier for long. So a barrier comes into a feed
before or after the cut:

    before   the rows behind the barrier belong to the next epoch, and stay in the channel until the cut
    after    the rows between the cut and the barrier belong to this epoch. They go into the lanes like others, and also into the
             snapshot, as rows whose calls have not ended. Until the barrier has come they are taken even if the lanes are full; their
             number is bounded by the contents of the channels before the agent, and by the rows that the steps behind those channels
             make of them: a window that closes, or a join, makes many rows of few. The agent task acknowledges once it has them.

While the lanes are full, the readers from which the rows come are paused; otherwise each checkpoint would take in
more rows.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Abort, Barrier, Channel
from sabot.base.supervision import watch_call, watch_task
from sabot.base.threads import call_on_loop
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.runtime.tasks.reading import Reader
from sabot.errors import SabotError


class StreamFeed:
    """The channel of a stream into an agent. All methods run on the event loop."""

    def __init__(
        self,
        channel: Channel,
        operator: AgentOperator,
        readers: list[Reader],
        on_broken: Callable[[str, SabotError], None],
    ) -> None:
        """`readers`: the readers from which the rows come. `on_broken`: called with an internal error, after which no
        checkpoint may be taken.
        """
        self.name = channel.name
        self.operator = operator
        self.recorded: list[Batch] = []  # rows that came after the last cut and before its barrier, in order
        self.rows_in = 0  # rows taken out of the channel in this run
        self.over = asyncio.Event()  # no more rows come
        self._channel = channel
        self._readers = readers
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._settled = 0  # the last checkpoint for which the agents were cut, or that was aborted
        self._arrived = 0  # the checkpoint whose barrier came before the cut; 0: none
        self._awaited: asyncio.Future[Mapping[str, int]] | None = (
            None  # done when the barrier comes, if it comes after the cut
        )
        self._ending = False  # True while the inputs end
        self._waiting: asyncio.Task[None] | None = None  # a wait for room in the lanes
        self._armed = False
        self._scheduled = False
        what = f"the hand-over of rows from {self.name}"
        self._read_safely = watch_call(self._read, what, partial(on_broken, what))

    def start(self) -> None:
        """Begins to read the channel."""
        self._arm()

    def go_on(self) -> None:
        """Checks again whether the agent has room. Called when the agent has changed."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._read_safely)

    def take_all(self) -> None:
        """Puts all rows of the channel into the agent's lanes, for the last checkpoint, even if the agent does not
        process them any more. Called while the inputs end.
        """
        self._ending = True
        self.go_on()

    def give_up(self) -> None:
        """Ends the feed without END, because the stream has failed: no checkpoint can be complete any more."""
        self._is_over()

    def close(self) -> None:
        """Closes the channel for the stream. Idempotent."""
        self._is_over()
        if self._waiting is not None:
            self._waiting.cancel()
        self._channel.close()

    @property
    def waiting_rows(self) -> int:
        """The number of rows in the channel. From any thread."""
        return self._channel.rows

    # -- barriers (`writing.Flushes`) ---------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """The name of the feed in messages."""
        return self.name

    @property
    def flushing(self) -> bool:
        """True if the agents have taken their snapshot and the stream's barrier has not come yet."""
        return self._awaited is not None

    def barrier(self, checkpoint_id: int) -> asyncio.Future[Mapping[str, int]]:
        """Called when the agents take their snapshot for this checkpoint. The returned future is done when all rows
        before the stream's barrier are in the lanes, or recorded for the snapshot.
        """
        arrived, self._arrived = self._arrived, 0
        self._settled = checkpoint_id
        self.recorded = []
        come: asyncio.Future[Mapping[str, int]] = self._loop.create_future()
        if arrived == checkpoint_id or self.over.is_set():
            come.set_result({})
        else:
            self._awaited = come
        self.go_on()
        return come

    def take_recorded(self) -> list[Batch]:
        """Returns the rows that came between the agents' snapshot and the stream's barrier, and removes them from
        this object.
        """
        recorded, self.recorded = self.recorded, []
        return recorded

    def abort(self, checkpoint_id: int) -> None:
        """Aborts the checkpoint: nothing waits for its barrier, and rows behind it may be taken. Later checkpoints
        are not affected.
        """
        if checkpoint_id >= self._settled:
            self._settled = checkpoint_id
            self._awaited = None
            self.recorded = []
        if self._arrived <= checkpoint_id:
            self._arrived = 0
            self.go_on()

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._channel.when_readable(lambda: call_on_loop(self._loop, self._is_readable))

    def _is_readable(self) -> None:
        self._armed = False
        self.go_on()

    def _read(self) -> None:
        """Reads the next element, and schedules the next read on the event loop, so that other callbacks run in
        between.
        """
        self._scheduled = False
        if self._arrived or self.over.is_set() or not self._may_take():
            return
        element = self._channel.get_nowait()
        if element is None:
            self._arm()
            return
        if isinstance(element, Batch):
            self.rows_in += element.num_rows
            if self._awaited is not None:
                self.recorded.append(element)
            self.operator.put(element)
        elif isinstance(element, Barrier):
            self._came(element.checkpoint_id)
        elif isinstance(element, Abort):
            self.abort(element.checkpoint_id)
        elif element is END:
            self._is_over()
        self.go_on()

    def _came(self, checkpoint_id: int) -> None:
        if checkpoint_id > self._settled:
            self._arrived = checkpoint_id
        elif checkpoint_id == self._settled:
            self._has_come()

    def _has_come(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result({})
        self._awaited = None

    def _is_over(self) -> None:
        self.over.set()
        self._has_come()
        self._hold(False)

    def _may_take(self) -> bool:
        """Returns True if the next rows may be put into the lanes: they have room, or a barrier is awaited, or the
        inputs end and the agent has failed or was stopped. If the lanes are full, pauses the readers until there is
        room.
        """
        operator = self.operator
        serves = operator.failure is None and not operator.stopped
        room = serves and not operator.full
        self._hold(not room)
        if room or self._awaited is not None or (self._ending and not serves):
            return True
        if serves and self._waiting is None:
            what = f"the wait for room in agent {operator.spec.agent_id}"
            self._waiting = watch_task(self._loop.create_task(self._wait()), what, partial(self._on_broken, what))
        return False

    async def _wait(self) -> None:
        try:
            await self.operator.writable()
        finally:
            self._waiting = None
        self.go_on()

    def _hold(self, held: bool) -> None:
        for reader in self._readers:
            if held and not self.over.is_set():
                reader.pause_for(self.name)
            elif self.name in reader.waits_for:
                reader.resume_for(self.name)
