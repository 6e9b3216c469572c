"""Trees of jobs: `ctx.child` begins a job below another one. This part of the durable core decides what follows for the
jobs of a tree. It does no I/O.

   job ── job~3 ── job~3~1         a cancel of `job` cancels all jobs below it, in one step; a child that was asked for
    └──── job~4                    before that, and whose turn comes after it, does not begin

The functions return the entries that follow from an event. The host appends all of these before it delivers the first
one. So no job of the tree can begin another one in between.
"""

from collections.abc import Iterable, Iterator

from sabot.api.child_limits import ChildLimits
from sabot.errors import EffectError
from sabot.journal.entries import REQUEST, Begin, Cancel, EffectResult

UNAWAITED_CHILD = "its parent waits no longer"
"""The reason in the CANCEL entry of a child that its parent awaits no longer."""

_CHILD = "~"  # stands between the id of a job and the ordinal of its child


def child_id(job_id: str, ordinal: int) -> str:
    """Returns the id of the child that a job requests by its effect with this ordinal."""
    return f"{job_id}{_CHILD}{ordinal}"


def parent_of(job_id: str) -> tuple[str, int]:
    """Returns the id of a job's parent, and the ordinal of the effect by which the parent has requested the job.
    Returns ("", 0) if the job has no parent.
    """
    if _CHILD not in job_id:
        return "", 0
    parent, _, number = job_id.rpartition(_CHILD)
    ordinal = int(number) if number.isdecimal() else 0
    return (parent, ordinal) if ordinal and child_id(parent, ordinal) == job_id else ("", 0)


def first_of(job_id: str) -> str:
    """Returns the id of the job at the top of the tree of parents and children to which this job belongs. It may be
    the job itself.
    """
    while parent := parent_of(job_id)[0]:
        job_id = parent
    return job_id


def is_retry(begin: Begin) -> bool:
    """Returns True if a BEGIN entry begins a job of a kernel again, because somebody has asked for it (`retry`). Its body
    is then the request of the job's last BEGIN entry, with other limits. Returns False for a child that runs again because
    its parent does, and for a job whose dead letter was sent again: these have the input of their first BEGIN entry.
    """
    return begin.run > 1 and begin.form == REQUEST and not parent_of(begin.job)[0]


class JobTree:
    """The jobs of a host that have not ended, as trees of parents and children.

    - `limits`: by the id of an agent, the limits on the children that its jobs may begin.
    - `cancelled`: the jobs that were cancelled. It includes jobs that were cancelled before they began; these never
      begin.
    """

    def __init__(self) -> None:
        self.limits: dict[str, ChildLimits] = {}
        self.cancelled: set[str] = set()
        self._agents: dict[str, str] = {}
        self._asked: dict[str, set[str]] = {}  # by job: the children that it asked for and that are not open yet
        self._coming: set[str] = set()  # the jobs whose BEGIN is not in the journal
        self._unwanted: set[str] = set()  # children in these two that nobody waits for any more
        self._above: dict[str, str] = {}  # by job: the nearest job above it that has not ended
        self._below: dict[str, set[str]] = {}  # by job: the jobs directly below it

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._agents

    def __iter__(self) -> Iterator[str]:
        return iter(self._agents)

    def agent_of(self, job_id: str) -> str:
        """Returns the id of the job's agent; "" if the job has ended."""
        return self._agents.get(job_id, "")

    # -- begins -------------------------------------------------------------------------------------------------------

    def refusal(self, job_id: str, child: str, *, cancelled: bool) -> EffectError | None:
        """Returns an error if the job must not begin a child, and None if it may, perhaps after others have ended.
        `child`: the id of the child's agent. `cancelled`: True if the job's function has received a cancel.
        """
        if cancelled or job_id in self.cancelled:
            return EffectError("JobCancelled", f"job {job_id} was cancelled, and begins no child {child}")
        agent, chain = self.agent_of(job_id), self.chain(job_id)
        limits = self.limits[agent]
        if len(chain) > limits.max_depth:
            why = f"jobs of {agent} may be {limits.max_depth} levels of children deep (ChildLimits(max_depth=…))"
        elif not limits.max_child_jobs:
            why = f"a job of {agent} may have no children (ChildLimits(max_child_jobs=…))"
        else:
            return None
        return EffectError("DepthExceeded", f"{' > '.join([*chain, child])} is not begun: {why}")

    def ask(self, job_id: str) -> None:
        """Records that a job has requested the child `job_id`. Afterwards, either the child's agent has to call
        `add`, or the host has to call `not_begun`.
        """
        self._asked.setdefault(parent_of(job_id)[0], set()).add(job_id)
        self._unwanted.discard(job_id)

    def has_begun(self, job_id: str) -> bool:
        """Returns True if a job is open, and the journal has its BEGIN entry."""
        return job_id in self._agents and job_id not in self._coming

    def wants(self, job_id: str) -> bool:
        """Records that a job awaits the open child `job_id` in another attempt. A child that has not begun then begins. Returns
        True if the child was cancelled, so that it has to run again when it has ended.
        """
        self._unwanted.discard(job_id)
        return job_id in self.cancelled

    def not_begun(self, job_id: str) -> None:
        """Records that the child `job_id`, which its parent has requested, will not begin."""
        self._came(job_id)
        self._unwanted.discard(job_id)

    def add(self, job_id: str, agent_id: str, *, begun: bool, cancelled: bool = False) -> None:
        """Adds a job of the agent `agent_id`. `begun`: True if the journal has the BEGIN entry of the job.
        `cancelled`: True if the journal has a CANCEL entry of the job.
        """
        self._agents[job_id] = agent_id
        self._came(job_id)
        if not begun:
            self._coming.add(job_id)
        if cancelled:
            self.cancelled.add(job_id)
        above = parent_of(job_id)[0]
        while above and above not in self._agents:
            above = parent_of(above)[0]
        self._hang(job_id, above)

    def begins(self, job_id: str) -> bool:
        """Returns True if a job may begin now. Called once, just before its BEGIN entry is recorded. Returns False if
        the job was cancelled, or if its parent no longer awaits it. The journal then gets no entry of the job: a
        BEGIN followed by a CANCEL would not be safe, because after a crash between the two the job would run.
        """
        self._coming.discard(job_id)
        unwanted = job_id in self._unwanted or not self.cancelled.isdisjoint((job_id, parent_of(job_id)[0]))
        self._unwanted.discard(job_id)
        return not unwanted

    # -- cancels and ends ---------------------------------------------------------------------------------------------

    def cancel(self, cancel: Cancel, now_ms: int) -> list[Cancel]:
        """Handles the CANCEL entry of a job. Returns a CANCEL entry for each job below it that has begun and was not
        cancelled before; a parent is before its children. Jobs below it that have not begun yet will not begin.

        The steps of a cancel:

        - `JobLetters.take` turns the letter of the inbox into a CANCEL entry, and appends the entries that this
          method returns.
        - `JobHost.deliver` passes each entry to `JobRun.deliver`, which cancels the function. A parked job is woken
          first.
        - `core.drop` decides which effects of the function continue.
        - `JobHost.settle` ends the job when no running call may still change something outside.
        """
        told: list[Cancel] = []
        if cancel.job not in self._agents:
            return told
        self.cancelled.add(cancel.job)
        below = [cancel.job]
        for each in below:
            for child in sorted(self._below.get(each, ())):
                below.append(child)
                if child not in self.cancelled and child not in self._coming:
                    told.append(Cancel(child, now_ms, f"job {cancel.job} was cancelled: {cancel.reason}", cancel.by))
                self.cancelled.add(child)
        return told

    def leave(self, job_id: str, ordinals: Iterable[int], why: str, now_ms: int) -> list[Cancel]:
        """Handles the open children of a job that is about to end or to begin a new history. If children of the job's
        agent may outlive their parent, returns an empty list. Otherwise cancels the children, and returns the CANCEL
        entries (see `drop`).

        `ordinals`: the ordinals of the effects by which the job has requested the children. `why`: the reason in the
        entries.
        """
        return [] if self.limits[self.agent_of(job_id)].outlive else self.drop(job_id, ordinals, why, now_ms)

    def drop(self, job_id: str, ordinals: Iterable[int], why: str, now_ms: int) -> list[Cancel]:
        """Cancels children that a job no longer awaits. Returns the CANCEL entries for these children and for all
        jobs below them. Children that have not begun yet will not begin, and get no entry.

        `ordinals`: the ordinals of the effects by which the job has requested the children. `why`: the reason in the
        entries.
        """
        told: list[Cancel] = []
        for ordinal in ordinals:
            child = child_id(job_id, ordinal)
            if child in self._coming or child in self._asked.get(job_id, ()):
                self._unwanted.add(child)  # the child will not begin
            elif child in self._agents and child not in self.cancelled:
                cancel = Cancel(child, now_ms, why)
                told += [cancel, *self.cancel(cancel, now_ms)]
        return told

    def end(self, job_id: str) -> None:
        """Removes a job that has ended. Its open children are then below the nearest open job above it."""
        del self._agents[job_id]
        self.cancelled.discard(job_id)
        self._coming.discard(job_id)
        self._asked.pop(job_id, None)
        above = self._above.get(job_id, "")
        for left in self._below.pop(job_id, ()):
            self._hang(left, above)
        self._hang(job_id, "")

    def result(
        self, job_id: str, now_ms: int, outcome: str, body: bytes, labels: tuple[str, ...], ran_ms: int = 0
    ) -> EffectResult | None:
        """Returns the RESULT entry by which the end of a job is reported to its parent. Returns None if the job has
        no parent, or if the parent has ended.

        `outcome`, `body`, `labels`: the values of these fields in the END entry of the job. `ran_ms`: the
        milliseconds that the job has run.
        """
        parent, ordinal = parent_of(job_id)
        if parent not in self._agents:
            return None
        said = "ok" if outcome == "succeeded" else outcome
        return EffectResult(parent, now_ms, ordinal, 1, said, body, labels=labels, ran_ms=ran_ms)

    def chain(self, job_id: str) -> list[str]:
        """Returns the ids of the agents of this job and of all jobs above it, from the top of the tree down. A job
        above it that has ended is shown as "…".
        """
        above, parent = [self.agent_of(job_id)], parent_of(job_id)[0]
        while parent:
            above.append(self.agent_of(parent) or "…")
            parent = parent_of(parent)[0]
        return above[::-1]

    def _hang(self, job_id: str, above: str) -> None:
        """Puts a job below the job `above` in the tree, and removes it from its former place. If `above` is "", the
        job then has no job above it.
        """
        before = self._above.pop(job_id, "")
        if below := self._below.get(before):
            below.discard(job_id)
            if not below:
                del self._below[before]
        if above:
            self._above[job_id] = above
            self._below.setdefault(above, set()).add(job_id)

    def _came(self, job_id: str) -> None:
        parent = parent_of(job_id)[0]
        if asked := self._asked.get(parent):
            asked.discard(job_id)
            if not asked:
                del self._asked[parent]
