"""The admission of jobs, for a durable agent or a kernel: how many jobs run, which one is next, and how many are parked.

    wait ─▶ waiting ─▶ running ─┬─▶ leave    the job has ended, or is blocked: its place is free
                          ▲     └─▶ park     the job waits for long: its place is free
                          │           │
                        woken ◀─ wait ┘      the job can continue; it counts as parked until it runs

Jobs that continue go before jobs that begin. Among either, the job that has waited longest is the next.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

Place: TypeAlias = Literal["", "waiting", "running", "parked", "woken"]
"""The place of a job. "" is that of a job that was not admitted yet, or has left."""


class Placed(Protocol):
    """The interface of the jobs that `JobAdmission` manages. `place` is the state of the job in the admission:
    "waiting", "running", "parked", "woken", or "" if the job is not admitted. Only `JobAdmission` changes it.
    """

    place: Place


Job = TypeVar("Job", bound=Placed)


class JobAdmission(Generic[Job]):
    """The admission of jobs: it decides which jobs run and which jobs wait, so that at most `limit` jobs run at a time.
    Only one event loop may use it.

    - `running`: the number of jobs that run now.
    - `waiting`: the number of jobs in the queues, which run as soon as fewer than `limit` jobs run.
    - `parked`: the number of jobs that `park` has taken out of the running jobs, because they wait for something that
      takes long. A parked job that is back in a queue counts in both `parked` and `waiting` until it runs.
    """

    def __init__(
        self, limit: int, run: Callable[[Job, bool], object], held: Callable[[Job], bool] = lambda job: False
    ) -> None:
        """Makes the admission, with no jobs.

        - `limit`: the most jobs that run at a time.
        - `run`: a function that starts or continues a job. It gets the job, and True if the job was parked before.
        - `held`: a function that gets the next job of a queue, and returns True if this job must not run yet. Then no
          job runs until the next call of `go_on`. The owner of the admission makes that call when the job may run.
        """
        self.limit, self.running, self.waiting, self.parked = limit, 0, 0, 0
        self._run, self._held = run, held
        # by the address of the job: one that leaves is removed at once, wherever it is
        self._continuing: OrderedDict[int, Job] = OrderedDict()
        self._beginning: OrderedDict[int, Job] = OrderedDict()

    def wait(self, job: Job, *, continues: bool = False, first: bool = False) -> None:
        """Appends a job to one of two queues, from which `go_on` later takes the next job to run. Jobs that have begun
        before (`continues=True`) have a queue of their own, which `go_on` empties first. With `first=True` the job
        becomes the first in its queue instead of the last.
        """
        job.place = "woken" if job.place == "parked" else "waiting"
        self.waiting += 1
        queue = self._continuing if continues else self._beginning
        queue[id(job)] = job
        if first:
            queue.move_to_end(id(job), last=False)

    def go_on(self) -> None:
        """Runs the next jobs from the queues, one after the other. Stops when `limit` jobs run, when the queues are
        empty, or when `held` returns True for the next job.
        """
        while self.running < self.limit and (queue := self._continuing or self._beginning):
            job = next(iter(queue.values()))
            if self._held(job):
                return
            was_parked = job.place == "woken"
            self.leave(job)
            job.place = "running"
            self.running += 1
            self._run(job, was_parked)

    def park(self, job: Job) -> None:
        """Moves a running job to the parked jobs, because it waits for something that takes long. It no longer counts
        in `running`, so another job can run; the caller calls `go_on` for that.
        """
        self.leave(job)
        job.place = "parked"
        self.parked += 1

    def leave(self, job: Job) -> None:
        """Removes a job from the admission, because it has ended or is blocked. The job no longer counts in `running`,
        `waiting` or `parked`. If it was running, another job can run; the caller calls `go_on` for that.
        """
        self.running -= job.place == "running"
        if job.place in ("waiting", "woken"):
            self.waiting -= 1
            if self._beginning.pop(id(job), None) is None:
                del self._continuing[id(job)]
        self.parked -= job.place in ("parked", "woken")
        job.place = ""
