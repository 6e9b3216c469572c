"""Random programs under a seeded scheduler give DuckDB's answer, whatever crashes, stops and rescales come between (see graphs).

make simulate SEEDS=2000                     as many as one likes
SABOT_SEEDS=300 pytest tests/simulation      more than the few of a normal run
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from graphs import Seed

from sabot.engine.calls.effects import Doubt
from sabot.errors import AgentFailed
from sabot.jobs.history import History
from sabot.jobs.owner import OpenJob
from sabot.journal.entries import EffectResult, Entry

pytestmark = pytest.mark.integration

FEW = 4  # seeds a test
SEEDS = int(os.environ.get("SABOT_SEEDS", "2"))


@pytest.mark.parametrize("first", range(0, SEEDS, FEW))
def test_the_answer_is_that_of_all_rows_at_once(first: int) -> None:
    for number in range(first, min(first + FEW, SEEDS)):
        Seed(number).run()


@pytest.mark.one_in(12, "a second of a core each")
@pytest.mark.parametrize("part", ["values", "jobs"])
def test_the_same_seed_takes_the_same_steps(part: str) -> None:
    drawn = map(Seed, range(100))
    seed = next(each.number for each in drawn if each.crashes and getattr(each, part) and each.state == "memory")
    once, again = Seed(seed).run(), Seed(seed).run()
    assert once == again
    assert len(once.steps) > 20
    assert once.steps != Seed(seed + 1).run().steps


def test_the_seeds_are_of_many_kinds() -> None:
    seeds = [Seed(number) for number in range(200)]
    text = " ".join(map(str, seeds))
    for word in (
        "ndjson",
        "parquet",
        "sqlite",
        "union all",
        "group by",
        "unnest",
        "lag(at_)",
        "distinct",
        "where",
        "directory",
        "at least once",
        "running",
        "changelog",
        "upsert",
        "inner join",
        "left join",
        "right join",
        "full outer join",
        "where exists",
        "where not exists",
        "window_start",
        "l_ts",  # as-of joins
        "qualify",
        "range 1000 preceding",
        "computed",  # patterns and process functions
        "lefts",
        "rules",
        "called",
        "length",
        "told",
    ):
        assert word in text
    assert {seed.crashes for seed in seeds} == {0, 1, 2, 3}
    assert len({str(seed) for seed in seeds}) == 200


def again(*asked: Any, **named: Any) -> Doubt:
    """Whatever the class of the effect."""
    return Doubt.AGAIN


def without_results(history: History, entry: Entry) -> None:
    """What an app has been told before a crash is forgotten."""
    if not isinstance(entry, EffectResult):
        add(history, entry)


def none_open(*asked: Any, **named: Any) -> list[OpenJob]:
    """A start finds no app that it has to go on with."""
    return []


add = History.add
FAULTS = [
    ("sabot.jobs.core.in_doubt", again, "done more than once"),
    ("sabot.jobs.host.History.add", without_results, "blocked|done more than once|lost"),
    ("sabot.jobs.host.open_jobs", none_open, "blocked|lost|not over|done more than once"),
]


@pytest.mark.slow  # several seeds, until one has its crash where the fault shows
@pytest.mark.parametrize(("name", "wrong", "told"), FAULTS)
def test_a_fault_of_durable_agents_is_found(
    name: str, wrong: Callable[..., Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer can be wrong: each way of forgetting what was done fails within some seeds."""
    monkeypatch.setattr(name, wrong)
    with pytest.raises((AssertionError, AgentFailed), match=told):  # an agent may say at its end that jobs are blocked
        run_jobs(range(500))


def run_jobs(numbers: Iterable[int]) -> None:
    """The durable agents of these seeds, alone."""
    for seed in map(Seed, numbers):
        if seed.jobs is not None and seed.crashes:
            seed.values, seed.outputs, seed.sinks = [], [], []
            seed.run()
