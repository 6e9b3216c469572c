"""The owners of jobs, and jobs as their host sees them.

JobOwner     an agent: makes the function's context, takes its result, decides what follows an error
OpenJob      a job that a start finds in the journal
RunningJob   a job in memory
"""

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from sabot.errors import NonDeterminism
from sabot.jobs.guard import NOBODY, Behalf, DecidedEffect
from sabot.jobs.run import Ask, JobRun
from sabot.journal import Position
from sabot.journal.entries import Body, End

AfterFailure = Literal["again", "end", "stop"]
"""What follows when a job's function has failed: another attempt, its end, or the end of its agent (the job stays open)."""


class OpenJob(NamedTuple):
    """A job in the journal that the restored checkpoint does not cover completely.

    `body` and `digest` are those of its BEGIN entry, `began` the position of that entry, `begun_ms` its time. `fresh`
    is True if the checkpoint does not know the job. `ended` is its END entry, or None, and `ended_at` the position of
    END; `last` is the position of its last entry. `behalf` and `run` are those of its last BEGIN. `decided` has the
    guard's decisions on effects without a result, by ordinal. `cut` is True if the job was to go on from a checkpoint
    of another job and a crash came before all of its first entries were written: such a job is never run. `cancelled`
    is True if a CANCEL entry stands in the journal.
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
    """The agent of a job. All methods are called on the event loop, and must not suspend.

    `leaves_at_once` is True if the output can be seen before a checkpoint covers it; then the journal must be durable
    first. `code` is the version of the function. `sleep_counts` is True if a job uses up its time (`time_left`) while
    it sleeps; the time in which it waits for others never counts.
    """

    leaves_at_once: bool
    sleep_counts: bool
    code: str

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """Returns the coroutine of the function, with a context for the record in `job.history.begin.body`."""

    def ended(self, job: JobRun, value: Any) -> bytes:
        """Handles the value that the function has returned: applies the state writes of the job, emits its output, and removes
        its row from the state, in one step. Returns the packed output for the END entry.
        """

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        """Decides what follows an error of the function in attempt `job.history.attempt`. With "end" the owner has
        already handled the error, for example by a dead letter.
        """

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        """Returns the seconds that the job may run from now on, and the name of the option that limits it; None without
        a limit. The limit ends when the job is parked; with `sleep_counts` only when it is parked for others.
        """

    def backoff_s(self, attempt: int) -> float:
        """Returns the seconds to wait after this attempt before the next one."""

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Begins a job with this id and this input, which another job has asked for (`ctx.child`), on behalf of that
        job. It waits for its turn in the order of its key. Raises UserError.

        `failed`: True if the child has run and failed, and another attempt of its parent asks for it again: it runs
        once more, over its recorded effects.
        """

    def continued(self, job: JobRun, message: Any) -> bytes:
        """Returns the record with which the job goes on after `ctx.continue_as(message)`."""

    def parked(self, job_id: str) -> None:
        """Called when the job was parked, which has removed its coroutine from memory."""

    def woken(self, job_id: str) -> None:
        """Called when an entry has come for a parked job. `Parking.wake` lets the job run."""

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Called when the job cannot go on with this version of the code."""

    def job_closed(self, job_id: str, outcome: str) -> None:
        """Called when END was appended, with the outcome "succeeded", "failed" or "cancelled". The key of the job is
        free.
        """

    def had_ended(self, job: OpenJob) -> None:
        """Called at a start for a job that failed or was cancelled after the restored checkpoint. It is not run. If it
        has failed, its dead letter is emitted again.
        """


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job in memory.

    `last` is the position of its last entry. `in_memory` is False once this run of the job was parked, has ended or
    began anew. `ending` is True while its end waits until the last entry is durable, `safe` once it is. `noting` is
    True while effects that it has asked for or dropped are still to be taken up. `due_s` is the end of its time by
    the steady clock (0 without a limit), and `limit` the name of the option that set it. `undecided` has the effects on
    which the guard decides at present, by ordinal. `since_ms` and `since_s` are the time at which it came into
    memory, by the wall clock and by the steady clock.
    """

    job: JobRun
    owner: JobOwner
    last: Position | None = None
    in_memory: bool = True
    ending: bool = False
    safe: bool = False
    noting: bool = False
    due_s: float = 0.0
    limit: str = ""
    undecided: dict[int, Ask] = field(default_factory=dict)
    since_ms: int = 0
    since_s: float = 0.0

    @property
    def limit_s(self) -> float:
        """The end of the job's time by the steady clock if the limit also applies while the job is parked; else 0."""
        sleeps = self.owner.sleep_counts and all(ask.kind == "sleep" for ask in self.job.open.values())
        return self.due_s if sleeps else 0.0

    def ran_ms(self, steady_s: float) -> int:
        """Returns the milliseconds that the job has run and slept, together with its children. Time in which it was
        parked for others does not count.
        """
        return self.job.history.ran_until(self.since_ms) + round((steady_s - self.since_s) * 1000)

    def awaits(self, ordinal: int) -> bool:
        """Returns True if the timer of this ordinal is still needed. Ordinal 0 is the time limit of the attempt."""
        if not ordinal:
            return self.due_s > 0
        ask = self.job.open.get(ordinal)
        return ask is not None and ask.due_ms > 0
