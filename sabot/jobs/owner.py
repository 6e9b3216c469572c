"""The contract between an agent and its jobs.

JobOwner     an agent: makes the coroutine of a job, takes its result, decides what follows an error
OpenJob      a job that a start of the app finds in the journal
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
"""What follows a failure of a job's function: another attempt ("again"), the end of the job ("end"), or the end of its
agent, with the job left open ("stop").
"""


class OpenJob(NamedTuple):
    """A job in the journal that the restored checkpoint does not cover completely.

    - `agent`: the id of the agent. `key`: the key of the job, which decides on its order.
    - `body`, `digest`: the input and its digest, from the last BEGIN entry. `behalf`, `run`: those of the same entry.
    - `began`, `begun_ms`: the position at which the job began, and the time of its last BEGIN.
    - `fresh`: True if the checkpoint does not know the job, because the job began after it.
    - `ended`, `ended_at`: the END entry and its position; None if the job has not ended.
    - `last`: the position of the last entry.
    - `decided`: the guard's decisions on effects without a result, by ordinal.
    - `cut`: True if a crash came while the first entries of the job were copied from the checkpoint of another job.
      Such a job never runs.
    - `cancelled`: True if the journal has a CANCEL of the job.
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

    - `leaves_at_once`: True if others can see the output of a job before a checkpoint covers it. Then the entries of
      the job must be durable before the output.
    - `code`: the version of the function.
    - `sleep_counts`: True if sleeps use up the time of a job (`time_left`). The time in which a job waits for others
      never counts.
    """

    leaves_at_once: bool
    sleep_counts: bool
    code: str

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """Returns the coroutine of the function for this job. The function gets a context, and the input in
        `job.history.begin.body`.
        """

    def ended(self, job: JobRun, value: Any) -> bytes:
        """Handles the value that the function has returned. In one step, applies the state writes of the job, emits its
        output, and removes its row from the state. Returns the packed output for the END entry.
        """

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        """Decides what follows an error of the function in the attempt `job.history.attempt`. Before it returns "end",
        the owner has handled the error itself, for example by a dead letter.
        """

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        """Returns the seconds that the job may still run, and the name of the option that limits them. Returns None if
        there is no limit. The limit is dropped when the job is parked; if `sleep_counts`, only when it is parked for
        something else than a sleep.
        """

    def backoff_s(self, attempt: int) -> float:
        """Returns the seconds to wait between the failed attempt with this number and the next one."""

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Begins a job of this agent that another job has asked for by `ctx.child`. The new job waits for its turn in
        the order of its key. Raises UserError if it cannot begin.

        - `job_id`, `message`: the id and the input of the new job.
        - `failed`: True if this child has run and failed before, and another attempt of its parent asks for it again.
          Then it runs once more over its recorded effects.
        - `behalf`: the tenant and the actor of the parent.
        """

    def continued(self, job: JobRun, message: Any) -> bytes:
        """Returns the input, as a record, with which the job goes on after `ctx.continue_as(message)`."""

    def parked(self, job_id: str) -> None:
        """Called when a job was parked, so that its coroutine is no longer in memory."""

    def woken(self, job_id: str) -> None:
        """Called when a parked job has to run again. The owner calls `Parking.wake` when the job may do so."""

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Called when the job cannot go on, because this version of the function does not do what the history of the
        job says.
        """

    def job_closed(self, job_id: str, outcome: str) -> None:
        """Called when the END entry of a job was appended. The next job of the same key may begin. `outcome`:
        "succeeded", "failed" or "cancelled".
        """

    def had_ended(self, job: OpenJob) -> None:
        """Called at a start of the app for a job that failed or was cancelled after the restored checkpoint. The job
        does not run again. If it failed, the owner emits its dead letter again.
        """


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job in memory.

    - `last`: the position of the job's last entry.
    - `in_memory`: False once the job was parked, has ended, or has left memory to begin anew.
    - `ending`: True while the end of the job waits until its last entry is durable. `safe`: True once that entry is
      durable.
    - `noting`: True while the host has not handled all effects that the function has asked for or dropped.
    - `due_s`, `limit`: the end of the attempt's time by the steady clock (0 without a limit), and the name of the
      option that sets the limit.
    - `undecided`: the effects on which the guard is deciding, by ordinal.
    - `since_ms`, `since_s`: the time at which the job came into memory, by the wall clock and by the steady clock.
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
        """The end of the attempt's time by the steady clock, if the limit goes on while the job is parked as it is now;
        else 0.
        """
        sleeps = self.owner.sleep_counts and all(ask.kind == "sleep" for ask in self.job.open.values())
        return self.due_s if sleeps else 0.0

    def ran_ms(self, steady_s: float) -> int:
        """Returns the milliseconds that the job has run and slept, with the time of its children. The time in which it
        was parked for others does not count. `steady_s`: the present time by the steady clock.
        """
        return self.job.history.ran_until(self.since_ms) + round((steady_s - self.since_s) * 1000)

    def awaits(self, ordinal: int) -> bool:
        """Returns True if the job still needs the timer of the effect with this ordinal. Ordinal 0 is the time limit of
        the attempt.
        """
        if not ordinal:
            return self.due_s > 0
        ask = self.job.open.get(ordinal)
        return ask is not None and ask.due_ms > 0
