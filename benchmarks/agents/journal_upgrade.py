"""A journal of format 3 is brought up to date by its first owner: how long that takes, and lists before and after it.

    python benchmarks/agents/journal_upgrade.py [--rows 100000] [--effects 4] [--open 100000] [--stores sqlite,postgres]

Each of --rows jobs has ended, and has 2 entries for each effect and 2 more; each of --open jobs has begun and made one call. All are in
the log. Checked: the counts by status before and after, and the newest jobs of the page. Each figure is a pair: s, and s of this
process's CPU. PostgreSQL is started here, with fsync.
"""

import argparse
import resource
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from job_history import job_id, write

from sabot.agents.job_reads import JobPage, jobs_page
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.opening import open_journal, open_reader
from tools.older_journals import without_list
from tools.postgres import Postgres

AT_ONCE = 10_000  # jobs


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    began, before = time.perf_counter(), time.process_time()
    found = work()
    return found, (round(time.perf_counter() - began, 3), round(time.process_time() - before, 3))


def make(place: str, jobs: int, effects: int, opened: int) -> int:
    """Writes the jobs. Returns the number of entries."""
    journal, count, now_ms = open_journal(place, app="shop"), 0, round(time.time() * 1000)
    for first in range(0, jobs, AT_ONCE):
        some = range(first, min(first + AT_ONCE, jobs))
        count += write(journal, [(job_id(number), number) for number in some], effects, now_ms)
    for first in range(jobs, jobs + opened, AT_ONCE):
        some = range(first, min(first + AT_ONCE, jobs + opened))
        count += write(journal, [(job_id(number), number) for number in some], 1, now_ms, ends=False)
    journal.close()
    return count


@contextmanager
def home_of(store: str, folder: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields the address of a journal, and a function that takes it back to format 3."""
    if store == "sqlite":
        place = Path(folder) / "journal"

        def take_back() -> None:
            with sqlite3.connect(place / "journal.db") as database:
                without_list(database.execute)
                database.execute("PRAGMA user_version = 3")
            database.close()

        yield str(place), take_back
        return
    import psycopg

    server = Postgres("fsync=on")

    def take_back_tables() -> None:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SET search_path = sabot_shop")
            without_list(connection.execute)  # type: ignore[arg-type]
            connection.execute("UPDATE meta SET value = '3' WHERE name = 'format'")

    try:
        yield server.url, take_back_tables
    finally:
        server.remove()


def page_of(place: str) -> JobPage:
    reader = open_reader(place, app="shop")
    try:
        return jobs_page(reader, JobQuery())
    finally:
        reader.close()


def measure(store: str, jobs: int, effects: int, opened: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, home_of(store, folder) as (place, take_back):
        entries = make(place, jobs, effects, opened)
        take_back()
        before, old = timed(lambda: page_of(place))
        owner, took = timed(lambda: open_journal(place, app="shop"))
        owner.close()
        after, new = timed(lambda: page_of(place))
        failed = -(-jobs // 10)
        assert before.counts == after.counts == {"failed": failed, "succeeded": jobs - failed, "running": opened}
        assert [job.job_id for job in after.jobs[:3]] == [job_id(jobs + opened - 1 - number) for number in range(3)]
        memory = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"entries": entries, "page before": old, "brought up to date": took, "page": new, "max MB": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="jobs that have ended")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument("--open", type=int, help="jobs that have not ended; default: as many")
    parser.add_argument("--stores", default="sqlite")
    asked = parser.parse_args()
    opened = asked.rows if asked.open is None else asked.open
    found = {store: measure(store, asked.rows, asked.effects, opened) for store in asked.stores.split(",")}
    print(msgspec.json.encode({"benchmark": "journal_upgrade", **found}).decode())


if __name__ == "__main__":
    main()
