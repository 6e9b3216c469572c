"""Pages of the list of jobs over a journal of many, by each of its conditions: the first page, one in the middle and the last one.

    python benchmarks/agents/job_pages.py [--rows 100000] [--open 100000] [--queued 0] [--store sqlite|postgres] [--shared] [--times 5]

--rows jobs have ended, of which each hundredth has failed, and --open wait for a person; they were created in turns. --queued more are
letters that no worker has taken yet. Of each condition there is a value that many jobs have, and one that only the oldest 50 have: a page
of those is the last that a walk from the newest job finds. Each figure is a pair: the median in ms, and that of CPU in this process.

Checked: the jobs of each page, its counts by status, and the cursor of the next one, against lists in the memory of this program.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import msgspec
from journal_upgrade import home_of

from sabot.agents import JobClient
from sabot.journal import Journal, open_journal
from sabot.journal.begin_facts import stored_key
from sabot.journal.ended_jobs import cursor_of
from sabot.journal.entries import Attempt, Begin, End, Entry, Intent, Letter, encode_entry

NAME, RARE, MOST = "shop", 50, 200
Listed = tuple[int, str, str, dict[str, str]]  # when it was created, in ms, its id, its status, and its facts by name


def jobs_of(asked: argparse.Namespace, first_ms: int) -> Iterator[Listed]:
    """Yields the jobs that have begun, the oldest first."""
    ended, opened = asked.rows, asked.open
    for number in range(ended + opened):
        ends = opened == 0 or (ended > 0 and number % 2 == 0)
        ended, opened = ended - ends, opened - (not ends)
        status = "waiting_action" if not ends else "failed" if ended % 100 == 0 else "succeeded"
        few = "rare" if number < RARE else ""
        facts = {
            "agent": few or "work",
            "scope": few or f"scope-{number % 10}",
            "session": few or f"session-{number % 1000}",
        }
        facts["key"] = few or f"key-{number % 1000}"
        yield first_ms + number, f"{NAME}.{facts['agent']}/{number:07}", status, facts


def entries_of(job: Listed) -> list[Entry]:
    at_ms, name, status, facts = job
    given = {"scope": facts["scope"], "session": facts["session"], "key": stored_key(facts["key"])}
    made: list[Entry] = [Begin(name, at_ms, f"{NAME}.{facts['agent']}", **given), Attempt(name, at_ms, 0, 1)]
    if status == "waiting_action":
        return [*made, Intent(name, at_ms, 1, "ask", "confirm", token=f"token of {name}")]
    return [*made, End(name, at_ms, status)]


async def fill(journal: Journal, jobs: list[Listed]) -> None:
    for job in jobs:
        for entry in entries_of(job):
            await journal.room()
            journal.append(entry)
    await journal.flush()


def queue(journal: Journal, count: int, after_ms: int) -> list[Listed]:
    """Posts letters that begin jobs, which nobody takes. These are the newest jobs."""
    facts = {"agent": "work", "scope": "scope-1", "session": "session-1", "key": "key-1"}
    jobs = [(after_ms + number, f"{NAME}.work/q{number:07}", "queued", facts) for number in range(count)]
    for first in range(0, count, 1000):
        begins = [(job[1], encode_entry(entries_of(job)[0])) for job in jobs[first : first + 1000]]
        assert all(journal.begin([Letter("begin", job=name, name=f"{NAME}.work", body=body) for name, body in begins]))
    return jobs


def questions(jobs: list[Listed]) -> dict[str, dict[str, Any]]:
    """Returns queries by the names of their figures."""
    found: dict[str, dict[str, Any]] = {"all": {}, "since the middle": {"since": jobs[len(jobs) // 2][0] / 1000}}
    found["until the oldest"] = {"until": jobs[RARE][0] / 1000}
    found |= {f"status {each}": {"status": each} for each in sorted({status for _, _, status, _ in jobs})}
    for name in ("agent", "scope", "key", "session"):
        value = jobs[len(jobs) // 2][3][name]
        found |= {f"{name} of many": {name: value}, f"{name} of few": {name: "rare"}}
    found["scope of few, failed"] = {"scope": "rare", "status": "failed"}
    found["agent by its id"] = {"agent": f"{NAME}.rare"}
    return found


def selected(jobs: list[Listed], query: dict[str, Any]) -> list[Listed]:
    """Returns the jobs that a query selects but for its status, the newest first."""

    def fits(job: Listed) -> bool:
        at, _, _, facts = job
        since, until = query.get("since", 0) * 1000, query.get("until", 1e15) * 1000
        named = all(value in (facts[name], f"{NAME}.{facts[name]}") for name, value in query.items() if name in facts)
        return since <= at < until and named

    return sorted(filter(fits, jobs), key=lambda job: job[:2], reverse=True)


async def measure(place: str, jobs: list[Listed], times: int) -> dict[str, list[float]]:
    client, figures = JobClient(place, name=NAME), dict[str, list[float]]()
    for name, query in questions(jobs).items():
        fits = selected(jobs, query)
        counts = dict(Counter(job[2] for job in fits))
        shown = [job for job in fits if query.get("status") in (None, job[2])]
        starts = {"": 0}
        if len(shown) > 2 * MOST:
            starts |= {", in the middle": len(shown) // 2, ", the last": len(shown) - MOST}
        for which, first in starts.items():
            asked, took = (
                query | ({"after": cursor_of(*shown[first - 1][:2])} if first else {}),
                list[tuple[float, float]](),
            )
            for _ in range(times + 1):  # the first one is not counted: it opens the journal
                began, used = time.perf_counter(), time.process_time()
                page = await client.jobs.page(asked)
                took.append(((time.perf_counter() - began) * 1000, (time.process_time() - used) * 1000))
            assert [job.job_id for job in page.jobs] == [job[1] for job in shown[first : first + MOST]], (name, which)
            assert (page.counts, page.found) == (counts, len(shown)), (name, page.counts, counts)
            assert bool(page.following) == (first + MOST < len(shown))
            figures[name + which] = [round(median(each[at] for each in took[1:]), 1) for at in (0, 1)]
    return figures


@contextmanager
def filled(asked: argparse.Namespace) -> Iterator[tuple[str, list[Listed]]]:
    with tempfile.TemporaryDirectory() as folder, home_of(asked.store, folder) as (place, _):
        jobs = list(jobs_of(asked, round(time.time() * 1000) - 10_000_000))
        journal = open_journal(place, app=NAME, shared=asked.shared)
        try:
            asyncio.run(fill(journal, jobs))
            jobs += queue(journal, asked.queued, jobs[-1][0] + 1)
        finally:
            journal.close()
        yield place, jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="jobs that have ended")
    parser.add_argument("--open", type=int, default=100_000, help="jobs that wait for a person")
    parser.add_argument("--queued", type=int, default=0, help="jobs that no worker has taken yet")
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--shared", action="store_true", help="a journal of several workers; PostgreSQL only")
    parser.add_argument("--times", type=int, default=5, help="pages of which the median is printed")
    asked = parser.parse_args()
    with filled(asked) as (place, jobs):
        figures = asyncio.run(measure(place, jobs, asked.times))
    store = f"{asked.store}, shared" if asked.shared else asked.store
    slowest = max(figures, key=lambda name: figures[name][0])
    told = {"store": store, "rows": asked.rows, "open": asked.open, "queued": asked.queued, "slowest": slowest}
    print(msgspec.json.encode({"benchmark": "job_pages", **told, **figures, "load": os.getloadavg()[0]}).decode())


if __name__ == "__main__":
    main()
