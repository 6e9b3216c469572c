"""What is said of a worker: sums over its tasks, rates between heartbeats, and nothing where nothing is known."""

from typing import Any

import pytest

from sabot.engine.workers.messages import Beat
from sabot.engine.workers.pace import Pace


def beat(rows: int, *, cpu: float | None = 0.0, lag: int = 0) -> Beat:
    figures: dict[str, Any] = {
        "read/0": {"rows": rows, "input": {"lag": {"t[0]": lag, "t[1]": 1}}},
        "keyed/0": {"rows": 2 * rows, "input": {"rows": 7}},
    }
    return Beat(figures=figures, memory_bytes=1000, cpu_seconds=cpu)


def test_rates_are_those_between_the_first_and_the_last_heartbeat() -> None:
    pace = Pace()
    for second in range(3):
        pace.add(10.0 + second, beat(100 * second, cpu=second / 2, lag=5))
    found = pace.report(["read/0", "keyed/0"], 12.5)
    assert found["tasks"] == {
        "keyed/0": {"rows": 400, "rows_per_second": 200.0, "lag": None},
        "read/0": {"rows": 200, "rows_per_second": 100.0, "lag": 6},
    }
    del found["tasks"]
    assert found == {
        "rows": 600,
        "rows_per_second": 300.0,
        "lag": 6,
        "cpu_percent": 50.0,
        "memory_bytes": 1000,
        "silent_seconds": 0.5,
    }


def test_only_the_last_seconds_count() -> None:
    pace = Pace()
    for second in range(60):
        pace.add(float(second), beat(0 if second < 54 else 10 * (second - 54)))
    assert pace.report(["read/0"], 60.0)["rows_per_second"] == pytest.approx(10.0)


@pytest.mark.parametrize("beats", [[], [Beat()], [Beat(), Beat()]])
def test_what_is_not_known_is_not_made_up(beats: list[Beat]) -> None:
    pace = Pace()
    for second, each in enumerate(beats):
        pace.add(float(second), each)
    found = pace.report(["read/0"], 9.0)
    unknown = {"rows": None, "rows_per_second": None, "lag": None}
    assert found["tasks"] == {"read/0": unknown}
    assert {name: found[name] for name in unknown} == unknown
    assert (found["cpu_percent"], found["memory_bytes"]) == (None, None)


def test_a_task_that_has_just_begun_is_counted_from_nothing() -> None:
    pace = Pace()
    pace.add(1.0, Beat())
    pace.add(2.0, beat(30))
    assert pace.report(["read/0"], 2.0)["rows_per_second"] == 30.0


def test_a_worker_without_tasks_has_the_figures_of_its_process() -> None:
    pace = Pace()
    pace.add(1.0, Beat(memory_bytes=7, cpu_seconds=1.0))
    pace.add(2.0, Beat(memory_bytes=8, cpu_seconds=1.25))
    found = pace.report([], 2.0)
    assert (found["tasks"], found["rows"], found["cpu_percent"], found["memory_bytes"]) == ({}, None, 25.0, 8)


def test_a_task_of_agents_has_what_they_have_read() -> None:
    pace = Pace()
    for second in range(3):
        samples: list[tuple[str, float | list[float], str, str, str]] = [
            ("sabot_records_in_total", 10 * second, "cards", "t", ""),
            ("sabot_records_in_total", 5 * second, "loans", "t", ""),
            ("sabot_records_in_total", 1000 * second, "of another task", "t", ""),
            ("sabot_consumer_lag", 3, "cards", "t", "0"),
            ("sabot_consumer_lag", 4, "cards", "t", "1"),
        ]
        pace.add(float(second), Beat(samples=samples, agents={"agents": {"agents": {"cards": {}, "loans": {}}}}))
    found = pace.report(["agents"], 2.0)
    assert found["tasks"] == {"agents": {"rows": 30, "rows_per_second": 15.0, "lag": 7}}
