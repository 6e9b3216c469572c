"""The jobs of a host that have not ended, as trees: `ctx.child` begins a job below another one.

job ── job~3 ── job~3~1         a cancel of `job` is one of all that stands below it, in one step; what was asked for before
 └──── job~4                    that and begins only now is cancelled at its BEGIN
"""

from collections.abc import Iterator

_CHILD = "~"  # between the id of a job and the ordinal of its child


def child_id(job_id: str, ordinal: int) -> str:
    """The id of the job that this effect of a job begins."""
    return f"{job_id}{_CHILD}{ordinal}"


def parent_of(job_id: str) -> tuple[str, int]:
    """The job that has begun it, and by which effect; ("", 0): none has."""
    parent, _, number = job_id.rpartition(_CHILD)
    ordinal = int(number) if number.isdecimal() else 0
    return (parent, ordinal) if ordinal and child_id(parent, ordinal) == job_id else ("", 0)


def first_of(job_id: str) -> str:
    """The first job of its tree: itself, where no job has begun it."""
    while parent := parent_of(job_id)[0]:
        job_id = parent
    return job_id


class OpenJobs:
    """On the event loop of the host. cancelled: jobs that were told to end, or will be at their BEGIN."""

    def __init__(self) -> None:
        self.cancelled: set[str] = set()
        self._agents: dict[str, str] = {}
        self._asked: dict[str, set[str]] = {}  # by job, the children that it asked for, and that are not open yet
        self._coming: set[str] = set()  # whose BEGIN is not in the journal
        self._unwanted: set[str] = set()  # of those two, children that nobody waits for any more
        self._children: dict[str, set[str]] = {}

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._agents

    def agent_of(self, job_id: str) -> str:
        """The id of its agent; "" where the job has ended."""
        return self._agents.get(job_id, "")

    def ask(self, job_id: str) -> None:
        """A child is asked for: its agent adds it, or says that it does not begin."""
        self._asked.setdefault(parent_of(job_id)[0], set()).add(job_id)

    def not_begun(self, job_id: str) -> None:
        """A child that was asked for does not begin."""
        self._came(job_id)
        self._unwanted.discard(job_id)

    def add(self, job_id: str, agent_id: str, *, begun: bool, cancelled: bool = False) -> None:
        """A job of this agent. begun: its BEGIN is in the journal; cancelled: so is a CANCEL."""
        self._agents[job_id] = agent_id
        self._came(job_id)
        if not begun:
            self._coming.add(job_id)
        if cancelled:
            self.cancelled.add(job_id)
        if parent := parent_of(job_id)[0]:
            self._children.setdefault(parent, set()).add(job_id)

    def begins(self, job_id: str) -> bool:
        """Its BEGIN is about to be recorded. -> whether it is cancelled with that."""
        self._coming.discard(job_id)
        if job_id in self._unwanted or parent_of(job_id)[0] in self.cancelled:
            self._unwanted.discard(job_id)
            self.cancelled.add(job_id)
        return job_id in self.cancelled

    def remove(self, job_id: str) -> None:
        """It has ended. What it has begun and not waited for stands below the job above it."""
        del self._agents[job_id]
        self.cancelled.discard(job_id)
        self._coming.discard(job_id)
        self._asked.pop(job_id, None)
        left, parent = self._children.pop(job_id, set()), parent_of(job_id)[0]
        if siblings := self._children.get(parent):
            siblings.discard(job_id)
            siblings |= left
            if not siblings:
                del self._children[parent]

    def drop(self, job_id: str) -> bool:
        """Nobody waits for this child any more. -> whether it has to be told; else it has ended, ends by itself, or at its BEGIN."""
        if job_id in self._coming or job_id in self._asked.get(parent_of(job_id)[0], ()):
            self._unwanted.add(job_id)
            return False
        return job_id in self._agents and job_id not in self.cancelled

    def cancel(self, job_id: str) -> Iterator[str]:
        """An open job was told to end. -> those below it that have to be told too, the nearest first."""
        if job_id not in self._agents:
            return
        self.cancelled.add(job_id)
        below = [job_id]
        for each in below:
            for child in sorted(self._children.get(each, ())):
                below.append(child)
                if child not in self.cancelled and child not in self._coming:
                    yield child
                self.cancelled.add(child)

    def _came(self, job_id: str) -> None:
        """What was asked for is there, or will never be."""
        parent = parent_of(job_id)[0]
        if asked := self._asked.get(parent):
            asked.discard(job_id)
            if not asked:
                del self._asked[parent]

    def chain(self, job_id: str) -> list[str]:
        """The agents from the first job of the tree down to this one; "…" for jobs that have ended."""
        above, parent = [self.agent_of(job_id)], parent_of(job_id)[0]
        while parent:
            above.append(self.agent_of(parent) or "…")
            parent = parent_of(parent)[0]
        return above[::-1]
