"""How many jobs of an agent or of a kernel run, and which one is next."""

import gc
import weakref
from dataclasses import dataclass

from sabot.agents.admission import JobAdmission, Place


@dataclass(eq=False)
class Job:
    name: str
    place: Place = ""


def jobs(names: str) -> list[Job]:
    return [Job(name) for name in names]


def counts(admission: JobAdmission[Job]) -> tuple[int, int, int]:
    return admission.running, admission.waiting, admission.parked


def test_jobs_that_continue_go_before_those_that_begin_and_each_in_its_order() -> None:
    ran: list[tuple[str, bool]] = []
    admission = JobAdmission[Job](2, lambda job, was_parked: ran.append((job.name, was_parked)))
    a, b, c, d = jobs("abcd")
    for each in (a, b, c, d):
        admission.wait(each)
    admission.go_on()
    assert [name for name, _ in ran] == ["a", "b"]
    admission.park(a)
    assert counts(admission) == (1, 2, 1)
    admission.wait(a, continues=True)
    assert (a.place, counts(admission)) == ("woken", (1, 3, 1)), "it is parked until it runs"
    admission.go_on()
    admission.leave(b)
    admission.go_on()
    assert ran[2:] == [("a", True), ("c", False)]
    assert counts(admission) == (2, 1, 0)


def test_a_job_that_leaves_while_it_waits_takes_no_place() -> None:
    ran: list[str] = []
    admission = JobAdmission[Job](1, lambda job, was_parked: ran.append(job.name))
    a, b, c = jobs("abc")
    admission.park(a)
    admission.wait(a, continues=True)
    admission.wait(b)
    admission.wait(c)
    admission.leave(a)
    admission.leave(b)
    assert counts(admission) == (0, 1, 0)
    admission.go_on()
    assert (ran, counts(admission)) == (["c"], (1, 0, 0))


def test_jobs_that_leave_while_they_wait_are_not_kept_until_there_is_a_place() -> None:
    admission = JobAdmission[Job](1, lambda job, was_parked: None)
    stays, last = jobs("ab")
    admission.wait(stays)
    admission.go_on()
    gone = []
    for job in jobs("cdef"):
        admission.wait(job, continues=job.name < "e")
        gone.append(weakref.ref(job))
        admission.leave(job)
    del job
    gc.collect()
    assert [each() for each in gone] == [None] * 4
    admission.wait(last)
    admission.leave(stays)
    admission.go_on()
    assert (last.place, counts(admission)) == ("running", (1, 0, 0))


def test_a_job_that_is_held_keeps_those_behind_it_and_one_put_at_the_front_goes_before_it() -> None:
    ran: list[str] = []
    held = {"a"}
    admission = JobAdmission[Job](5, lambda job, was_parked: ran.append(job.name), lambda job: job.name in held)
    a, b, c = jobs("abc")
    admission.wait(a)
    admission.wait(b)
    admission.go_on()
    assert ran == []
    admission.wait(c, first=True)
    admission.go_on()
    assert ran == ["c"]
    held.clear()
    admission.go_on()
    assert ran == ["c", "a", "b"]
