"""Short runs of the dances of workers, and that these find what is wrong."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import limits_dance

from tools.postgres import server_or_skip


@pytest.mark.slow  # it starts a server of PostgreSQL and some ten interpreters
@pytest.mark.parametrize("journal", ["postgres", "sqlite"])
def test_a_web_app_that_is_killed_and_updated_makes_each_refund_once_and_delivers_each_answer(
    tmp_path: Path, journal: str
) -> None:
    """Ten minutes of it, and how long its jobs wait: web_dance.py --minutes 10. A run this short says little of waits."""
    import web_dance  # which needs the packages of a web server

    if journal == "sqlite":
        found = web_dance.dance(tmp_path, str(tmp_path / "jobs"), 12.0, 52)
    else:
        with server_or_skip().database() as url:
            found = web_dance.dance(tmp_path, url, 12.0, 52)
    assert found["jobs"] > 0
    assert [found[name] for name in web_dance.BAD if name != "late"] == [0] * (len(web_dance.BAD) - 1), found


@pytest.mark.slow  # it starts a server of PostgreSQL and some eight interpreters
async def test_no_limit_is_passed_while_workers_are_killed(tmp_path: Path) -> None:
    """10,000 jobs: limits_dance.py."""
    options = argparse.Namespace(jobs=150, rated=60, concurrency=5, rate=20, seed=1)
    with server_or_skip().database() as url:
        found = await limits_dance.dance(tmp_path, url, options)
    assert found["above"] == 0, found
    assert 0 < found["most"] <= 5
    assert found["early"] == 0, found  # how long it takes, and how evenly jobs begin, is up to the machine


def test_jobs_above_a_limit_and_a_rate_are_found() -> None:
    assert limits_dance.most_at_once([(0, 5), (5, 9), (2, 5)], 2) == (2, 0)
    assert limits_dance.most_at_once([(0, 6), (5, 9), (2, 6)], 2) == (3, 1)
    assert limits_dance.most_in_a_second([0, 500, 999, 1_000]) == 3
    assert limits_dance.most_in_a_second([0, 500, 999, 999, 1_000]) == 4
