"""Threads for sync calls: used again, ended when idle, and never ended with a call. Their turns are run here by hand."""

from collections.abc import Callable, Iterator

import pytest

from sabot.base.threads import Turn, threads
from sabot.clock import ManualClock
from sabot.engine.calls.pool import ThreadPool


class ByHand:
    """A thread whose turns the test runs."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def start(self) -> None:
        """It has no life of its own."""

    def join(self, timeout: float | None = None) -> None:
        raise AssertionError("nobody waits for it")

    def is_alive(self) -> bool:
        return True


@pytest.fixture
def made() -> Iterator[list[ByHand]]:
    found: list[ByHand] = []

    def make(name: str, turn: Turn) -> ByHand:
        found.append(ByHand(turn))
        return found[-1]

    threads.made_by(make)
    yield found
    threads.made_by(None)


def work(seen: list[str], name: str) -> Callable[[], Callable[[], None]]:
    def call() -> Callable[[], None]:
        seen.append(name)
        return lambda: seen.append(f"{name} told")

    return call


def test_a_thread_that_is_free_takes_the_next_call(made: list[ByHand]) -> None:
    pool, seen = ThreadPool(ManualClock()), []
    pool.run(work(seen, "a"))
    pool.run(work(seen, "b"))
    assert (len(made), pool.alive) == (2, 2)
    assert [each.turn(0.0) for each in made] == [True, True]
    pool.run(work(seen, "c"))
    assert (len(made), pool.alive) == (2, 2)
    assert [each.turn(0.0) for each in made] == [None, True]
    assert seen == ["a", "a told", "b", "b told", "c", "c told"]


def test_a_thread_is_free_before_its_result_is_told(made: list[ByHand]) -> None:
    """Who hears of it gives the place to the next call, which must find this thread."""
    pool, seen = ThreadPool(ManualClock()), []
    pool.run(lambda: lambda: pool.run(work(seen, "next")))
    assert (made[0].turn(0.0), made[0].turn(0.0), len(made), seen) == (True, True, 1, ["next", "next told"])


def test_a_thread_ends_when_it_is_idle_and_not_with_a_call_that_came_at_that_moment(made: list[ByHand]) -> None:
    clock = ManualClock()
    pool, seen = ThreadPool(clock), []
    pool.run(work(seen, "a"))
    made[0].turn(0.0)
    clock.advance(4.9)
    assert made[0].turn(0.0) is None
    clock.advance(0.1)
    pool.run(work(seen, "b"))
    assert not pool.ends(made[0].turn.__self__)  # type: ignore[attr-defined]  # it had found nothing, just before the call came
    assert made[0].turn(0.0) is True
    clock.advance(5.0)
    assert made[0].turn(0.0) is False
    assert pool.alive == 0
    pool.run(work(seen, "c"))
    assert (len(made), pool.alive, seen[:4]) == (2, 1, ["a", "a told", "b", "b told"])
