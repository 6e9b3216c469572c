"""Random programs under a seeded scheduler give DuckDB's answer, whatever crashes, stops and rescales come between (see graphs).

make simulate SEEDS=2000                     as many as one likes
SABOT_SEEDS=300 pytest tests/simulation      more than the few of a normal run
"""

import os

import pytest
from graphs import Seed

pytestmark = pytest.mark.integration

FEW = 8  # seeds a test
SEEDS = int(os.environ.get("SABOT_SEEDS", "24"))


@pytest.mark.parametrize("first", range(0, SEEDS, FEW))
def test_the_answer_is_that_of_all_rows_at_once(first: int) -> None:
    for number in range(first, min(first + FEW, SEEDS)):
        Seed(number).run()


def test_the_same_seed_takes_the_same_steps() -> None:
    drawn = map(Seed, range(100))
    seed = next(each.number for each in drawn if each.crashes and each.values and each.state == "memory")
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
    ):
        assert word in text
    assert {seed.crashes for seed in seeds} == {0, 1, 2, 3}
    assert len({str(seed) for seed in seeds}) == 200
