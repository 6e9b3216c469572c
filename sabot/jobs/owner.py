"""The contract between an agent and its jobs.

JobOwner     an agent: makes the coroutine of a job, takes its result, decides what follows an error
OpenJob      a job that a start of the app finds in the journal
RunningJob   a job in memory
"""

from collections import deque
from collections.abc import Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

import msgspec

from sabot.errors import NonDeterminism
from sabot.jobs.guard import NOBODY, Behalf, DecidedEffect
from sabot.jobs.run import Ask, JobRun
from sabot.journal import Position
from sabot.journal.entries import Body, End

AfterFailure = Literal["again", "end", "stop"]
"""What follows a failure of a job's function: another attempt ("again"), the end of the job ("end"), or the end of its
agent, with the job left open ("stop").
"""


NOTHING_DECIDED: Mapping[int, DecidedEffect] = MappingProxyType({})


# of 100,000 of them the garbage collector would look at each, again and again
class OpenJob(msgspec.Struct, frozen=True, gc=False):
    """A job that the app finds in the journal when it starts. Either it has not ended, or its end is not part of the
    restored checkpoint.

    - `agent`: the id of the agent. `key`: the key of the job; jobs with the same key run one after the other.
    - `body`: the input. `digest`: the digest of the input. `behalf`: the tenant and the actor. `run`: the number of the
      run. `begun_ms`: the time of the BEGIN entry. All of these are from the last BEGIN entry.
    - `began`: the position of the BEGIN entry with which the job began.
    - `fresh`: True if the job began after the restored checkpoint.
    - `ended`, `ended_at`: the END entry and its position; None if the job has not ended.
    - `last`: the position of the last entry.
    - `decided`: the guard's decisions on effects without a result, by ordinal.
    - `cut`: True if the app crashed while it copied the job's first entries from a checkpoint of another job. Such a
      job never runs.
    - `cancelled`: True if the journal has a CANCEL entry of the job.
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
    decided: Mapping[int, DecidedEffect] = NOTHING_DECIDED
    run: int = 1
    cut: bool = False
    cancelled: bool = False


class JobOwner(Protocol):
    """The owner of jobs: the agent whose function they run. All methods are called on the event loop, and must not
    suspend.

    - `leaves_at_once`: True if others can read the output of a job before it is part of a checkpoint. The host then
      waits until all entries of the job are durable before it calls `ended`, which emits the output.
    - `code`: the version of the function.
    - `sleep_counts`: True if the time in which a job sleeps is part of its time limit (`time_left`). The time in
      which it waits for people, signals or children is never part of it.
    """

    leaves_at_once: bool
    sleep_counts: bool
    code: str

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """Returns the coroutine that runs the agent's function for this job. The input of the function is made from
        `job.history.begin.body`.
        """

    def ended(self, job: JobRun, value: Any) -> bytes:
        """Handles the value that the function has returned: applies the changes that the job has made to the agent's
        state, and emits the job's output. Nothing else runs on the event loop meanwhile. Returns the packed output,
        which is stored in the END entry, and notes its form in `job.form`.
        """

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        """Handles an error of the function in the attempt `job.history.attempt`. Returns "again" if another attempt
        has to follow after `backoff_s`. Returns "end" if the job has to end as failed; the owner has then handled the
        error, for example by a dead letter. Returns "stop" if the whole agent stops; the job then remains open.
        """

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        """Returns the seconds that the job's attempt may still take, and the text of the option that limits it, such
        as "timeout=30s". Returns None if there is no limit.

        The host drops the limit when the job is parked. It keeps the limit only if `sleep_counts` is True and the job
        waits for nothing but timers.
        """

    def backoff_s(self, attempt: int) -> float:
        """Returns the seconds to wait between the failed attempt with this number and the next one."""

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        """Begins a job of this agent, because another job has called `ctx.child`. If the agent cannot run the new job
        yet, the job waits until the agent can. Raises UserError or DataError if the job must not begin, for example
        because the agent cannot read the input.

        - `job_id`, `message`: the id and the input of the new job.
        - `failed`: True if this child has run before, and has failed or was cancelled. It then runs again, and keeps the recorded results
          of its effects.
        - `behalf`: the tenant and the actor of the parent.
        """

    def continued(self, job: JobRun, message: Any) -> bytes:
        """Returns the input with which the job continues after `ctx.continue_as(message)`, as bytes for the new BEGIN
        entry.
        """

    def parked(self, job_id: str) -> None:
        """Called when a job was parked. Its coroutine is then no longer in memory."""

    def woken(self, job_id: str) -> None:
        """Called when a parked job has to run again, for example because an answer has arrived. The owner then has to
        call `Parking.wake` as soon as the job may run.
        """

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Called when a job cannot continue, because the function has requested another effect than the job's history
        has. `error`: says what differs.
        """

    def job_closed(self, job_id: str, outcome: str) -> None:
        """Called when a job has ended and its END entry was appended. The owner may now begin the next job with the
        same key. `outcome`: "succeeded", "failed" or "cancelled".
        """

    def had_ended(self, job: OpenJob) -> None:
        """Called when the app starts, for a job that failed or was cancelled, and whose end is not part of the
        restored checkpoint. The function of the job does not run again. If the job has failed, the owner emits its
        dead letter again.
        """


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job in memory.

    - `job`, `owner`: the run of the job's function, and the job's agent.
    - `last`: the position of the job's last entry.
    - `in_memory`: False once the job was parked, has ended, or has to be loaded again for another attempt. Other code
      may still refer to the object then.
    - `safe`: True once the function has ended and the job's last entry is durable.
    - `ending`: True while the host waits until the last entry is durable, and while a failed job waits for its next
      attempt.
    - `noting`: True while the function has requested or cancelled effects that the host has not handled yet.
    - `due_s`: the time at which the attempt has to end, by the monotonic clock; 0 for no limit. `limit`: the text of
      the option that sets the limit, such as "timeout=30s".
    - `waiting_children`: the children that the function has requested, and that wait until others of the job have ended
      (`ChildLimits.max_child_jobs`). They are in the order of their ordinals, and behind all children that have begun.
    - `undecided`: the effects on which the guard is still deciding, by ordinal.
    - `since_ms`, `since_s`: the time at which the job came into memory, in milliseconds since 1970, and in seconds by
      the monotonic clock.
    - `context`: the context variables of the job's effects, from the first one on; each effect has a copy.
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
    waiting_children: deque[Ask] = field(default_factory=deque)
    since_ms: int = 0
    since_s: float = 0.0
    context: Context | None = None

    @property
    def limit_s(self) -> float:
        """The time at which the attempt has to end, by the monotonic clock, if the job is parked now; 0 for no limit. A
        parked job keeps its limit only if the owner's `sleep_counts` is True and all open effects of the job are
        timers.
        """
        sleeps = self.owner.sleep_counts and all(ask.kind == "sleep" for ask in self.job.open.values())
        return self.due_s if sleeps else 0.0

    def ran_ms(self, steady_s: float) -> int:
        """Returns the milliseconds that the job has run in its whole life. Includes the time in which it slept, and
        the time in which its children ran. Does not include the time in which it was parked for people, signals or
        children. `steady_s`: the present time by the monotonic clock.
        """
        return self.job.history.ran_until(self.since_ms) + round((steady_s - self.since_s) * 1000)

    def awaits(self, ordinal: int) -> bool:
        """Returns True if the job still needs the timer of the effect with this ordinal. Ordinal 0 stands for the
        time limit of the job's attempt.
        """
        if not ordinal:
            return self.due_s > 0
        ask = self.job.open.get(ordinal)
        return ask is not None and ask.due_ms > 0
