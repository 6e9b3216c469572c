"""The admission of jobs, for a durable agent or a kernel: how many jobs run, which one is next, and how many are parked.

    wait ─▶ waiting ─▶ running ─┬─▶ leave    the job has ended, or is blocked: its place is free
                          ▲     └─▶ park     the job waits for long: its place is free
                          │           │
                        woken ◀─ wait ┘      the job can continue; it counts as parked until it runs

Jobs that continue go before jobs that begin. Among either, the job that has waited longest is the next.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Place: TypeAlias = Literal["", "waiting", "running", "parked", "woken"]
"""The place of a job. "" is that of a job that was not admitted yet, or has left."""


class Placed(Protocol):
    """A job, in the form that `JobAdmission` needs. Only `JobAdmission` changes its `place`."""

    place: Place


Job = TypeVar("Job", bound=Placed)


class JobAdmission(Generic[Job]):
    """The admission of jobs, for one event loop: it decides which jobs run and which wait.

    - `limit`: the most jobs that run at a time.
    - `running`, `waiting`: the numbers of jobs that run and that wait.
    - `parked`: the number of parked jobs, including those that were woken and do not run yet.
    """

    def __init__(
        self, limit: int, run: Callable[[Job, bool], object], held: Callable[[Job], bool] = lambda job: False
    ) -> None:
        """Makes the admission.

        - `limit`: the most jobs that run at a time.
        - `run`: a function that lets a job run. It is called with the job, and with True if the job was parked.
        - `held`: a function that returns True if a job has to wait although a place is free. The owner of the jobs
          calls `go_on` when that has changed.
        """
        self.limit, self.running, self.waiting, self.parked = limit, 0, 0, 0
        self._run, self._held = run, held
        self._continuing: deque[Job] = deque()
        self._beginning: deque[Job] = deque()

    def wait(self, job: Job, *, continues: bool = False, first: bool = False) -> None:
        """Puts a job into the queue of the jobs that continue, or with `continues` False into that of the jobs that
        begin. The job goes to the end of the queue, or to its front if `first` is True. A later call of `go_on` lets it
        run.
        """
        job.place = "woken" if job.place == "parked" else "waiting"
        self.waiting += 1
        queue = self._continuing if continues else self._beginning
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)

    def go_on(self) -> None:
        """Lets the next jobs run. Stops when `limit` jobs run, when no job waits, or when `held` returns True for the
        next job.
        """
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
        """Takes the place away from a running job that will wait for long. The job counts as parked."""
        self.leave(job)
        job.place = "parked"
        self.parked += 1

    def leave(self, job: Job) -> None:
        """Takes the place away from a job that has ended or is blocked."""
        self.running -= job.place == "running"
        self.waiting -= job.place in ("waiting", "woken")
        self.parked -= job.place in ("parked", "woken")
        job.place = ""
