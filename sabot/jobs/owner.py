"""Who a job belongs to, and what the parts of a host have in common.

JobOwner       an agent: makes the function's context, takes what it returns, decides what follows an error
RunningJob     a job in memory
HostServices   the host, as `effects`, `parking` and `timers` see it
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from sabot.errors import NonDeterminism
from sabot.jobs.guard import NOBODY, Behalf, DecidedEffect
from sabot.jobs.history import PARKS_MS, Delivery
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.tree import OpenJobs
from sabot.journal import Body, End, Entry, Journal, Position

Verdict = Literal["again", "end", "stop"]
"""What follows when a job's function has failed: another attempt, its end, or the end of its agent (the job stays open)."""

Item = Callable[[], Awaitable[None] | None]
"""Something that the host's task does in its turn."""


class OpenJob(NamedTuple):
    """A job that a restored checkpoint does not cover whole. body: of its BEGIN, the record. fresh: the checkpoint knows nothing of it.
    ended: its END, where there is one; ended_at: where that stands. last: where the last of its entries stands. begun_ms: when it began.
    behalf, run: of its last BEGIN. decided: what was decided of its effects that have no result, by ordinal. cut: it was to go on from
    a checkpoint of another job, and a crash came before all of that was written: nobody may run it. cancelled: it was told to end.
    """

    job_id: str
    agent: str
    key: bytes
    body: Body
    digest: bytes
    began: Position
    fresh: bool
    ended: End | None
    ended_at: Position | None = None
    last: Position | None = None
    begun_ms: int = 0
    behalf: Behalf = NOBODY
    decided: Mapping[int, DecidedEffect] = MappingProxyType({})
    run: int = 1
    cut: bool = False
    cancelled: bool = False


class JobOwner(Protocol):
    """What a job is a run of: an agent. All methods are called on the event loop, and must not suspend.

    leaves_at_once: its output is seen before a checkpoint covers it, so the journal must be durable first. code: the version of the
    function. sleep_counts: whether a job that sleeps uses up the time that it has (`time_left`); waiting for others never does.
    """

    leaves_at_once: bool
    sleep_counts: bool
    code: str

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """Makes the function's context, and its coroutine, for the record in `job.history.begin.body`."""

    def ended(self, job: JobRun, value: Any) -> bytes:
        """The function has returned: its state writes, its output and its row, in one step. Returns the output packed, for END."""

    def failed(self, job: JobRun, error: BaseException) -> Verdict:
        """The function has raised, in attempt `job.history.attempt`. "end": the owner has dealt with it (dead letter)."""

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        """How many seconds it may run from now on, until it is parked (with `sleep_counts`: waits for others), and the option that says so.
        None: as long as it likes.
        """

    def backoff_s(self, attempt: int) -> float:
        """How long to wait before the attempt behind this one."""

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """A job with this id and this input, asked for by another job (`ctx.child`), whose behalf is its own: in the order of its key.
        Raises UserError.

        failed: it had begun, and failed, which another attempt of the other job does not take for an answer: it is tried once more, over
        what it has done.
        """

    def continued(self, job: JobRun, message: Any) -> bytes:
        """The record of a job that goes on with this input (`ctx.continue_as`)."""

    def parked(self, job_id: str) -> None:
        """It holds no coroutine any more."""

    def woken(self, job_id: str) -> None:
        """Something has come for it. `Parking.wake` lets it run."""

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """It cannot go on with this code."""

    def job_closed(self, job_id: str, outcome: str) -> None:
        """END is appended: "succeeded", "failed", "cancelled". Its key is free."""

    def had_ended(self, job: OpenJob) -> None:
        """It had failed, or was cancelled, behind the restored checkpoint: it is not run, and its dead letter is emitted again."""


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job in memory. last: of its last entry. ending: its end waits until that is durable. safe: it is. noting: turns whose asks are not
    in the journal. due_s: when its time is over, by the steady clock; 0: it may run on. limit: what says so. judging: what it has asked
    for and is being decided, by ordinal. since_ms: when it came into memory; since_s: the same, by the steady clock.
    """

    job: JobRun
    owner: JobOwner
    last: Position | None = None
    ending: bool = False
    safe: bool = False
    noting: int = 0
    due_s: float = 0.0
    limit: str = ""
    judging: dict[int, Ask] = field(default_factory=dict)
    since_ms: int = 0
    since_s: float = 0.0

    @property
    def limit_s(self) -> float:
        """When its time is over though it is parked; 0: parked it may stay as long as it likes."""
        sleeps = self.owner.sleep_counts and all(ask.kind == "sleep" for ask in self.job.open.values())
        return self.due_s if sleeps else 0.0

    def ran_ms(self, steady_s: float) -> int:
        """How long it has run and slept, with its children, without the time in which it was parked for others."""
        return self.job.history.ran_until(self.since_ms) + round((steady_s - self.since_s) * 1000)

    def may_park(self, now_s: float, steady_s: float) -> bool:
        """Whether nothing comes for it soon, as far as is known."""
        soon = 0 < self.limit_s <= steady_s + PARKS_MS / 1000
        return not self.judging and not soon and self.job.may_park(now_s)

    def awaits(self, ordinal: int) -> bool:
        """Whether the timer of this ordinal counts: 0 is the time of the attempt."""
        if not ordinal:
            return self.due_s > 0
        ask = self.job.open.get(ordinal)
        return ask is not None and ask.due_ms > 0


class HostServices(Protocol):
    """The host, as its parts see it. All on its event loop. jobs: that it knows, and that have not ended."""

    journal: Journal
    jobs: OpenJobs

    @property
    def stopping(self) -> bool:
        """Nothing new is begun, and no effect made."""

    def running_job(self, job_id: str) -> RunningJob | None:
        """The job, if it is in memory."""

    def is_running(self, running: RunningJob) -> bool:
        """Whether this is that job still: it may have ended, parked or begun anew."""

    def owner_of(self, agent_id: str) -> JobOwner | None:
        """The agent of this id, if it is durable."""

    def put(self, item: Item) -> None:
        """To be done behind all that waits."""

    def put_front(self, items: Sequence[Item]) -> None:
        """To be done before all that waits, as nothing may be delivered in between."""

    def put_later(self, wait_s: float, item: Item) -> None:
        """To be done after so many seconds."""

    def append(self, entry: Entry, running: RunningJob | None = None) -> Position:
        """Into the journal. Only from within an item."""

    def run(self, running: RunningJob, turn: Callable[..., None], *given: Any) -> None:
        """A turn of the job, and what follows of it."""

    def settle(self, running: RunningJob) -> None:
        """The job is quiet: it goes on to wait, parks, or ends; not before all that it has asked is in the journal."""

    def deliver(self, position: Position, entry: Delivery) -> None:
        """An entry has come for a job: it is told, or woken. What comes of that stands behind it in the journal, and is told behind it."""

    def deliver_all(self, entries: Sequence[tuple[Position, Entry]]) -> None:
        """Entries that were appended in one step have come for jobs."""

    def replay_job(self, job_id: str, entries: list[tuple[Position, Entry]]) -> None:
        """A job runs over its history."""

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> "asyncio.Task[None]":
        """Starts a task of its own, for what waits. It is cancelled when the host is closed."""

    def now_ms(self) -> int:
        """The time, in ms since 1970: of entries, and of what must survive a restart. It never goes back while the host lives."""

    def steady_s(self) -> float:
        """A count of seconds, by which all is measured that happens in the life of the host."""
