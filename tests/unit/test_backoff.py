"""Waits between attempts, and failures in a row."""

import pytest

from sabot.base.backoff import Backoff, Failures


@pytest.mark.parametrize(
    ("failures", "seconds"), [(-1, 0.0), (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (10_000, 0.5)]
)
def test_a_wait_doubles_with_each_failure_up_to_the_longest(failures: int, seconds: float) -> None:
    assert Backoff(0.1, 0.5).wait_s(failures) == seconds


def test_a_first_wait_of_nothing_stays_nothing() -> None:
    assert [Backoff(0.0, 30.0).wait_s(failures) for failures in (1, 2, 10_000)] == [0.0, 0.0, 0.0]


def test_the_longest_wait_holds_for_the_first_one_too() -> None:
    assert Backoff(60.0, 30.0).wait_s(1) == 30.0


def test_failures_in_a_row_wait_longer_and_a_success_begins_anew() -> None:
    failures = Failures(Backoff(5.0, 60.0))
    assert [failures.note("broken", 100.0) for _ in range(3)] == [1, 2, 3]
    assert (failures.count, failures.why, failures.until_s) == (3, "broken", 120.0)
    assert (failures.note("", 200.0), failures.why, failures.until_s) == (0, "", 200.0)
    assert (failures.note("again", 300.0), failures.until_s) == (1, 305.0)


def test_tries_that_fail_together_count_once() -> None:
    failures = Failures(Backoff(1.0, 60.0))
    assert [failures.note("the first try", 0.0, since=0), failures.note("beside it", 10.0, since=0)] == [1, 1]
    assert (failures.why, failures.until_s) == ("beside it", 11.0)
    assert failures.note("the next try", 20.0, since=1) == 2
    failures.note("")
    assert failures.note("one from before the success", 30.0, since=2) == 1


def test_an_excused_failure_counts_and_does_not_wait() -> None:
    failures = Failures(Backoff(5.0, 60.0))
    assert (failures.note("hung", 100.0, excused=1), failures.until_s) == (1, 100.0)
    assert (failures.note("hung", 100.0, excused=1), failures.until_s) == (2, 105.0)
