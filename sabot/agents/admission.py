"""The admission of jobs, of a durable agent and of a kernel: how many run, which one is next, and how many are parked.

    wait ─▶ waiting ─▶ running ─┬─▶ leave    it has ended, or is blocked: its place is free
                          ▲     └─▶ park     it waits for long: its place is free
                          │           │
                        woken ◀─ wait ┘      it has something to do, and is parked until it runs

Jobs that continue go before those that begin. In both, the one that has waited longest is the next.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Place: TypeAlias = Literal["", "waiting", "running", "parked", "woken"]
"""The place of a job, or "" for a job that was not admitted yet or has left."""


class Placed(Protocol):
    """A job as its owner has it. Only `JobAdmission` changes its place."""

    place: Place


Job = TypeVar("Job", bound=Placed)


class JobAdmission(Generic[Job]):
    """The admission of jobs, which decides which of them run. For one event loop.

    `limit` is the most jobs that run at a time. `running` and `waiting` count jobs; `parked` counts the parked ones,
    including those that are woken.
    """

    def __init__(
        self, limit: int, run: Callable[[Job, bool], object], held: Callable[[Job], bool] = lambda job: False
    ) -> None:
        """Makes the admission. `run` lets a job run, and gets True if it was parked. `held` returns True if this job,
        which is the next one, has to wait though a place is free; its owner calls `go_on` when that has changed.
        """
        self.limit, self.running, self.waiting, self.parked = limit, 0, 0, 0
        self._run, self._held = run, held
        self._continuing: deque[Job] = deque()
        self._beginning: deque[Job] = deque()

    def wait(self, job: Job, *, continues: bool = False, first: bool = False) -> None:
        """Puts a job at the end of those that continue, or of those that begin; or at their front. `go_on` lets it run."""
        job.place = "woken" if job.place == "parked" else "waiting"
        self.waiting += 1
        queue = self._continuing if continues else self._beginning
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)

    def go_on(self) -> None:
        """Lets jobs run until `limit` jobs run, no job waits, or the next one is held."""
        while self.running < self.limit and (queue := self._continuing or self._beginning):
            job = queue[0]
            if job.place not in ("waiting", "woken"):  # the job has left the queue
                queue.popleft()
                continue
            if self._held(job):
                return
            queue.popleft()
            was_parked = job.place == "woken"
            self.leave(job)
            job.place = "running"
            self.running += 1
            self._run(job, was_parked)

    def park(self, job: Job) -> None:
        """Frees the place of a job that waits for long."""
        self.leave(job)
        job.place = "parked"
        self.parked += 1

    def leave(self, job: Job) -> None:
        """Frees the place of a job that has ended or is blocked."""
        self.running -= job.place == "running"
        self.waiting -= job.place in ("waiting", "woken")
        self.parked -= job.place in ("parked", "woken")
        job.place = ""
