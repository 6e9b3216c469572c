"""All interleavings of two takers of one lane: a model of `seats`, and faults that it must find.

Three jobs wait in a lane with one seat. The first one waits for a person, who answers when the second job has ended. Taker 0 is
killed at any moment, also within its transaction; taker 1 lives, and goes on with what the dead one had.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

LIMIT, TAKERS = 1, (0, 1)
# of a job: queued, claimed (its letter), open (its function runs), waits (and has its seat), parked (it has given it up), wants (to go
# on, and has none), ended
SEATED = ("claimed", "open", "waits")


class Job(NamedTuple):
    status: str = "queued"
    taker: int = -1
    has_rested: bool = False
    seatless: bool = False  # its seat is not counted, by a fault


class State(NamedTuple):
    """lock: who has that of the agent. phase: of each taker, how far its transaction is. counted: the seats that it has seen. ghosts:
    seats that count, and that nobody has.
    """

    jobs: tuple[Job, ...] = (Job(), Job(), Job())
    lock: frozenset[int] = frozenset()
    phase: tuple[str, ...] = ("idle", "idle")
    counted: tuple[int, ...] = (0, 0)
    alive: tuple[bool, ...] = (True, True)
    reaped: bool = False
    ghosts: int = 0

    def job(self, number: int, job: Job) -> "State":
        return self._replace(jobs=(*self.jobs[:number], job, *self.jobs[number + 1 :]))

    def at(self, taker: int, phase: str, counted: int = 0) -> "State":
        phases, counts = list(self.phase), list(self.counted)
        phases[taker], counts[taker] = phase, counted
        return self._replace(phase=tuple(phases), counted=tuple(counts))

    def seats(self) -> int:
        return self.ghosts + sum(job.status in SEATED and not job.seatless for job in self.jobs)


def following(state: State, fault: str) -> Iterator[State]:
    for taker in TAKERS:
        if state.alive[taker]:
            yield from transaction(state, taker, fault)
            yield from running(state, taker, fault)
    if state.alive[0]:
        yield state.at(0, "idle")._replace(alive=(False, True), lock=state.lock - {0})
    elif not state.reaped:
        yield reap(state, fault)


def transaction(state: State, taker: int, fault: str) -> Iterator[State]:
    """The lock, the count behind it, and the claim with its commit. One that finds the lock comes again."""
    phase, has_work = state.phase[taker], any(job.status in ("queued", "wants") for job in state.jobs)
    early = fault == "the count is older than the lock"
    if phase == "idle" and has_work:
        if early:
            yield state.at(taker, "counted", state.seats())
        elif not state.lock or fault == "no lock":
            yield state.at(taker, "locked")._replace(lock=state.lock | {taker})
    elif phase == "locked":
        yield state.at(taker, "claims", state.seats())
    elif phase == "counted" and not state.lock:
        yield state.at(taker, "claims", state.counted[taker])._replace(lock=state.lock | {taker})
    elif phase == "claims":
        yield claim(state, taker)


def claim(state: State, taker: int) -> State:
    after, seats = state.at(taker, "idle")._replace(lock=state.lock - {taker}), state.counted[taker]
    for number, job in enumerate(state.jobs):  # those that go on are first
        if job.status == "wants" and job.taker == taker and seats < LIMIT:
            after, seats = after.job(number, job._replace(status="open")), seats + 1
    for number, job in enumerate(state.jobs):
        if job.status == "queued" and seats < LIMIT and all(each.status != "wants" for each in state.jobs):
            after, seats = after.job(number, job._replace(status="claimed", taker=taker)), seats + 1
    return after


def running(state: State, taker: int, fault: str) -> Iterator[State]:
    for number, job in enumerate(state.jobs):
        if job.taker != taker:
            continue
        may_answer = state.jobs[1].status == "ended"
        if job.status == "claimed":
            yield state.job(number, job._replace(status="open"))
        elif job.status == "open" and number == 0 and not job.has_rested:
            yield state.job(number, job._replace(status="waits", has_rested=True))
        elif job.status == "open":
            yield state.job(number, job._replace(status="ended"))
        elif job.status == "waits":
            if may_answer:
                yield state.job(number, job._replace(status="open"))
            if fault != "a seat that is given up is not written":
                yield state.job(number, job._replace(status="parked"))
        elif job.status == "parked" and may_answer:
            without = fault == "a job goes on without a seat"
            yield state.job(number, job._replace(status="open" if without else "wants"))


def reap(state: State, fault: str) -> State:
    """The living taker frees the letters that the dead one had claimed, and has its open jobs."""
    after = state._replace(reaped=True)
    for number, job in enumerate(state.jobs):
        if job.taker != 0 or job.status == "ended":
            continue
        if job.status == "claimed":
            after = after.job(number, job._replace(status="queued", taker=-1))
            after = after._replace(ghosts=after.ghosts + (fault == "the seat of a freed letter counts"))
        else:
            loses = fault == "a job that moves loses its seat"
            after = after.job(number, job._replace(taker=1, seatless=loses))
    return after


def walked(fault: str) -> list[str]:
    """Returns what is wrong in the states that can be reached: more jobs than seats, or a state from which no way leads to the end
    of all jobs.
    """
    wrong, before, left, good = set[str](), {State(): set[State]()}, [State()], list[State]()
    while left:
        state = left.pop()
        above = sum(job.status in SEATED for job in state.jobs) > LIMIT
        if above:
            wrong.add("above the limit")
        if above or all(job.status == "ended" for job in state.jobs):
            good.append(state)
            continue
        for each in following(state, fault):
            if each not in before:
                before[each] = set()
                left.append(each)
            before[each].add(state)
    ends = set(good)
    while good:
        further = before[good.pop()] - ends
        ends |= further
        good += further
    return sorted(wrong | ({"a job is left"} if before.keys() - ends else set()))


def test_two_takers_pass_no_limit_and_leave_no_job() -> None:
    assert walked("") == []


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("no lock", "above the limit"),
        ("the count is older than the lock", "above the limit"),
        ("a job goes on without a seat", "above the limit"),
        ("a job that moves loses its seat", "above the limit"),
        ("the seat of a freed letter counts", "a job is left"),
        ("a seat that is given up is not written", "a job is left"),
    ],
)
def test_a_planted_fault_is_found(fault: str, wrong: str) -> None:
    assert wrong in walked(fault)
