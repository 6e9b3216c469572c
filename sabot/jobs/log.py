"""The log of a host: appends entries to the journal, and passes them to a listener.

   append ─▶ journal
         └─▶ notices, in order ─▶ durable? ─▶ listener

The listener gets an entry only when the entry is durable, so no crash can undo what the listener has seen. It gets each
entry at least once: after a start of the app, the entries of open jobs come again from the first one on. Other notices,
such as a piece of a model's answer, keep their place among the entries. The host does not wait for the listener until
AHEAD_MOST notices wait.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, NamedTuple, Protocol

from sabot.base.threads import run_in_thread, run_to_end
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.judging import with_judge
from sabot.errors import NonDeterminism, SabotError, TransientError
from sabot.jobs.events import Event
from sabot.jobs.host_state import HostState
from sabot.jobs.owner import RunningJob
from sabot.jobs.tree import is_retry
from sabot.journal import Position
from sabot.journal.entries import Begin, End, Entry

_log = logging.getLogger(__name__)

AHEAD_MOST = 10_000
"""The number of notices that may wait for the listener. With more of them, the host waits for the listener."""

LAST_SECONDS = 5.0
"""The seconds that the host waits for a slow listener when it closes."""

_CLAIM_SECONDS = 0.05  # the seconds between two looks whether the claim holds again
_SILENT_SECONDS = 5.0  # the seconds that a stop waits for a journal in which nothing becomes durable


class Fragment(NamedTuple):
    """A piece of a model's answer, which is published while the model is still writing. It is not recorded in the
    journal. `number`: the number of the piece in its attempt, from 0. `agent`: the name of the agent that asked as a tool
    of another one, or "".
    """

    job: str
    ordinal: int
    attempt: int
    number: int
    text: str
    reasoning: str
    at_ms: int
    agent: str = ""


class Blocked(NamedTuple):
    """A notice that a job cannot continue, because its function has requested an effect that is not the one in its
    recorded history.
    """

    job: str
    error: NonDeterminism
    at_ms: int


class EarlierEnd(NamedTuple):
    """A notice of the END entry of a run of a job that was retried since. `end`: the entry."""

    job: str
    end: End
    at_ms: int


Notice = Entry | Fragment | Blocked | EarlierEnd


def notices_of(entries: Iterable[Entry]) -> list[Notice]:
    """Returns the notices of all entries of a job, in order."""
    notices: list[Notice] = []
    ended_at = -1
    for entry in entries:
        if isinstance(entry, End):
            ended_at = len(notices)
        elif isinstance(entry, Begin) and is_retry(entry) and isinstance(end := notices[ended_at], End):
            notices[ended_at] = EarlierEnd(end.job, end, end.at_ms)
        notices.append(entry)
    return notices


class Listener(Protocol):
    """A receiver of notices about the jobs of a host: their entries, pieces of models' answers, and blocked jobs."""

    async def publish(self, notice: Notice) -> None:
        """Receives one notice. The next notice is passed only after this call has returned. An error of this method
        stops the app.
        """

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True if the listener wants to receive the pieces of models' answers in this job. Models are then
        asked to stream their answers.
        """


class JobLog:
    """Appends the entries of a host's jobs to the journal, and passes them to a listener when they are durable.
    Belongs to the event loop of the host (`JobHost`).
    """

    def __init__(
        self,
        host: HostState,
        listener: Listener | None,
        kept: Callable[[], Awaitable[None]],
        judge: Callable[[], Any],
    ) -> None:
        """Makes the log.

        - `listener`: receives the notices; None for no listener.
        - `kept`: a coroutine function that waits until all data that was derived from results is durable outside of
          the journal, such as the usage that the guard has counted. `trim` awaits it before it removes results from
          the journal.
        - `judge`: returns the judge of the calls that handlers of the listener make, or None.
        """
        self._kept = kept
        self.journal = host.journal
        self.listener = listener
        self._judge = judge
        self.unapplied: dict[str, Position] = {}  # by job that had ended before the start: the position of its END
        self._host = host
        self._ends: dict[int, int] = {}  # by partition: the offset behind its last entry
        self._flushing = 0
        self._unpublished: deque[tuple[Position | None, Notice | asyncio.Future[None]]] = deque()
        # A task that goes on while the host runs: to start one for each entry would take longer than to tell of it.
        self._publisher: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # while it waits for the next notice
        self._context = copy_context()
        self.behind: asyncio.Future[None] | None = None
        """A future, while more than AHEAD_MOST notices wait; it is done when the listener has caught up. Otherwise
        None.
        """
        # By partition: the ends of jobs that wait for the disk.
        self._awaited: dict[int, deque[tuple[Position, Event]]] = {}
        self._leaving = False

    async def open(self) -> None:
        """Reads from the journal, by partition, the offset behind the last entry. These offsets are needed for
        `facts`.
        """
        self._ends = await run_to_end(run_in_thread(self.journal.positions))

    def append(self, entry: Entry, running: RunningJob | None = None) -> Position:
        """Appends an entry to the journal, and passes it to the listener once it is durable. Returns the position of
        the entry. `running`: the job in memory whose last entry this becomes. May only be called while an event is
        handled, when the journal has room.
        """
        position = self.journal.append(entry)
        if running is not None:
            running.last = position
        self._ends[position.partition] = position.offset + 1
        if self.listener is not None:
            self._publish(position, entry)
        return position

    def note_taken(self, entries: Collection[tuple[Position, Entry]]) -> None:
        """Passes entries to the listener that come from the inbox: the journal has made them from letters. Leaves out BEGIN
        entries, which come when their jobs run, but for those of jobs that were cancelled before.
        """
        over = {entry.job for _, entry in entries if isinstance(entry, End)}
        for position, entry in entries:
            self._ends[position.partition] = position.offset + 1
            if self.listener is not None and (not isinstance(entry, Begin) or entry.job in over):
                self._publish(position, entry)

    def note_begun(self, position: Position, begin: Begin) -> None:
        """Passes the BEGIN entry of a new job to the listener, which the journal has made from a letter, as soon as the job runs."""
        if self.listener is not None:
            self._publish(position, begin)

    def when_durable(self, position: Position, event: Event) -> None:
        """Puts an event into the queue of the host as soon as the entry at this position is durable."""
        if (awaited := self._awaited.get(position.partition)) is not None:
            awaited.append((position, event))
            return
        self._awaited[position.partition] = deque([(position, event)])
        self._host.spawn(self._await_disk(position.partition), "what waits for the ends of jobs to be durable")

    async def _await_disk(self, partition: int) -> None:
        awaited = self._awaited[partition]
        try:
            while awaited:
                await self.journal.durable(awaited[0][0])
                self._host.put(awaited.popleft()[1])
        finally:
            del self._awaited[partition]

    async def sendable(self, first: Position | None) -> None:
        """Waits until a call may be sent. Two conditions have to be met: the entry at `first` is durable (None for no
        such entry), and this process has a valid claim on the journal. While the server of the journal is away, the
        claim may expire; this method then waits until it is renewed. Raises JournalFailed if another process has got
        the claim.
        """
        if first is not None:
            await self.journal.durable(first)
        while self.journal.claim_left() <= 0:
            await self.journal.room()
            await asyncio.sleep(_CLAIM_SECONDS)

    # -- listeners ----------------------------------------------------------------------------------------------------

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True if there is a listener and it wants to receive the pieces of models' answers in this job."""
        return self.listener is not None and await self.listener.wants_fragments(job_id)

    def fragment(self, effect: EffectId, number: int, text: str, reasoning: str, agent: str = "") -> None:
        """Passes a piece of a model's answer to the listener, if there is one. `effect`: the call of the model. The
        other arguments are those of a Fragment.
        """
        now_ms = self._host.now_ms()
        self._publish_now(Fragment(effect.job, effect.ordinal, effect.attempt, number, text, reasoning, now_ms, agent))

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Tells the listener that a job cannot continue with the present code of its function."""
        self._publish_now(Blocked(job_id, error, self._host.now_ms()))

    def _publish_now(self, notice: Fragment | Blocked) -> None:
        if self.listener is not None:
            self._publish(None, notice)

    def publish_again(self, entries: Sequence[tuple[Position, Entry]]) -> None:
        """Passes entries of a job to the listener again. Called when the app starts: the listener may not have received
        them, because the app may have crashed before. Also called for a job that is retried, because what follows is about
        effects of its earlier run too.
        """
        if self.listener is not None:
            for notice in notices_of(entry for _, entry in entries):
                self._publish(None, notice)

    def _publish(self, position: Position | None, notice: Notice) -> None:
        self._unpublished.append((position, notice))
        if self.behind is None and len(self._unpublished) > AHEAD_MOST and not self._leaving:
            self.behind = asyncio.get_running_loop().create_future()
        if self._publisher is None:
            # for what handlers of events call; in the context of the host, and not of the first job that is told of
            spawn = self._context.run(with_judge, self._host.spawn, self._judge())
            self._publisher = spawn(self._publish_all(), "what tells listeners of jobs")
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _publish_all(self) -> None:
        listener, unpublished = self.listener, self._unpublished
        assert listener is not None
        try:
            while True:
                if not unpublished:
                    self._idle = asyncio.get_running_loop().create_future()
                    await self._idle
                    self._idle = None
                count = len(unpublished)
                last = {at.partition: at for at, _ in unpublished if at is not None}
                for position in last.values():
                    await self.journal.durable(position)
                for _ in range(count):
                    _, notice = unpublished[0]
                    if not isinstance(notice, asyncio.Future):
                        await listener.publish(notice)
                    elif not notice.done():
                        notice.set_result(None)
                    unpublished.popleft()
                self._catch_up()
        finally:
            self._publisher = self._idle = None

    def _catch_up(self) -> None:
        if self.behind is not None and (self._leaving or len(self._unpublished) <= AHEAD_MOST):
            if not self.behind.done():  # otherwise the waiting task was cancelled
                self.behind.set_result(None)
            self.behind = None

    def stop_waiting(self) -> None:
        """Makes the host stop waiting for a slow listener, now and later. Called when the host stops."""
        self._leaving = True
        self._catch_up()

    async def wait_caught_up(self) -> None:
        """Waits until the listener has received all notices that were published before this call."""
        await self._caught_up(None)

    async def wait_published(self) -> None:
        """Waits until the listener has received all notices. Gives up after LAST_SECONDS."""
        await self._caught_up(LAST_SECONDS)

    async def _caught_up(self, timeout_s: float | None) -> None:
        if self._unpublished and self._publisher is not None:
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._unpublished.append((None, told))
            await asyncio.wait([told, self._publisher], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    # -- barriers -----------------------------------------------------------------------------------------------------

    @property
    def what(self) -> str:
        """The name of the journal in messages."""
        return self.journal.where

    @property
    def flushing(self) -> bool:
        """True while a checkpoint waits until the entries of the journal are durable."""
        return self._flushing > 0

    def barrier(self, checkpoint_id: int) -> "asyncio.Future[Mapping[str, int]]":
        """Starts a task that waits until all entries which the journal has now are durable. Called at the barrier of
        a checkpoint, which has to wait for the task. Returns the task as a future; its result is an empty dict.
        `checkpoint_id` is not used.

        The task raises JournalFailed if the entries cannot become durable. While the host is stopping, it raises
        TransientError if no entry has become durable for some seconds.
        """
        self._flushing += 1
        return asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> Mapping[str, int]:
        flushed = asyncio.get_running_loop().create_task(self.journal.flush())
        try:
            while not flushed.done():
                before = self.journal.positions()
                await asyncio.wait([flushed], timeout=_SILENT_SECONDS)
                if self._host.stopping and not flushed.done() and self.journal.positions() == before:
                    raise TransientError(f"{self.journal.where} has not answered for {_SILENT_SECONDS:g} s")
            flushed.result()
        finally:
            flushed.cancel()
            self._flushing -= 1
        return {}

    def facts(self) -> dict[str, Any]:
        """Returns the facts about the journal that a checkpoint stores:

        - `identity`: the id of this journal, by which a restore recognizes it.
        - `where`: its name for people, who look for the journal of a savepoint.
        - `positions`: pairs of a partition and the offset behind its last entry.
        - `unapplied`: jobs that had ended before the app started, and that this run of the app has not replayed yet.
          Their output and their changes of the state are not in the checkpoint, because only the replay makes them. A
          restore looks for ended jobs only from `positions` on, and the END entries of these jobs are older. So each
          job is named here, with the position of its END entry.
        """
        return {
            "identity": self.journal.identity,
            "where": str(self.journal.where),
            "positions": [[*place] for place in sorted(self._ends.items())],
            "unapplied": [[job_id, *position] for job_id, position in sorted(self.unapplied.items())],
        }

    def trim(
        self, needed: Callable[[], Mapping[int, int] | None], forget_before_ms: int, *, sessions: bool = False
    ) -> None:
        """Removes from the journal the entries of ended jobs that no checkpoint needs any more. This runs in a task;
        the method does not wait for it.

        - `needed`: a function that returns, by partition, the first offset whose entries some checkpoint still needs.
          It returns None if that is unknown now; then nothing is removed. It may block.
        - `forget_before_ms`, `sessions`: are passed to `Journal.trim`.
        """

        def trim() -> None:
            positions = needed()
            if positions is not None:
                with suppress(TransientError):  # the next checkpoint trims
                    self.journal.trim(positions, forget_before_ms, sessions=sessions)

        async def when_kept() -> None:
            try:
                await self._kept()
            except (SabotError, OSError) as error:
                where = self.journal.where
                _log.warning("%s is not trimmed: what its results have used is not kept elsewhere: %s", where, error)
                return
            await run_in_thread(trim)

        self._host.spawn(when_kept(), "the trimming of the journal")
