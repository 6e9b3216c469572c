"""Waits between attempts."""

import pytest

from sabot.base.backoff import Backoff


@pytest.mark.parametrize(
    ("failures", "seconds"), [(-1, 0.0), (0, 0.0), (1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (10_000, 0.5)]
)
def test_a_wait_doubles_with_each_failure_up_to_the_longest(failures: int, seconds: float) -> None:
    assert Backoff(0.1, 0.5).wait_s(failures) == seconds


def test_a_first_wait_of_nothing_stays_nothing() -> None:
    assert [Backoff(0.0, 30.0).wait_s(failures) for failures in (1, 2, 10_000)] == [0.0, 0.0, 0.0]


def test_the_longest_wait_holds_for_the_first_one_too() -> None:
    assert Backoff(60.0, 30.0).wait_s(1) == 30.0
