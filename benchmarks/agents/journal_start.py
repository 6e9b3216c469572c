"""The start of a kernel over a journal of many jobs, of which few or none are open, and how it goes on with those.

    python benchmarks/agents/journal_start.py [--rows 10000] [--open 0] [--effects 4] [--times 3] [--store sqlite|postgres] [--shared]
                                              [--resume] [--budgets]

An ended job has two entries and two more for each effect. An open one has made a call and waits for a person: four entries. Each start
is a process of its own, which opens the journal, with --shared as one of several workers. It is checked that the list has each job.

With --resume the kernel goes on with what is open: until a new job has ended (first), and until all open jobs are parked in its memory
again (all). No function makes a call. It is checked that an owner gets a handle for each open job.

With --budgets kernels have a budget, in a ledger beside the journal. The first start reads the whole log then.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent))
from job_history import AGENT
from journal_upgrade import AT_ONCE, home_of, make

from sabot.agents import Budget, ExecutionRequest, Ledger, PostgresLedgerWriter, RuntimeKernel
from sabot.jobs.core import question_token
from sabot.journal import Journal
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Entry, Intent
from sabot.journal.opening import open_journal, open_reader

WAITS = "wait for a person"


async def charge(order: str) -> str:
    return order


async def handle(ctx: Any) -> None:
    """The agent of the jobs."""
    if ctx.message == WAITS:
        await ctx.step(charge, "4711", effect="read")
        await ctx.ask("confirm", {"order": 4711})


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Meter:
    """What a process has needed since it was made."""

    def __init__(self) -> None:
        self._at, self._cpu, self._mb = time.perf_counter(), time.process_time(), memory_mb()

    def read(self, what: str = "") -> dict[str, float]:
        took = time.perf_counter() - self._at, time.process_time() - self._cpu, memory_mb() - self._mb
        return dict(zip((f"{what}seconds", f"{what}cpu", f"{what}MB"), took, strict=True))


def kernel_over(place: str, *, shared: bool, budgets: bool = False) -> RuntimeKernel:
    given: Any = [Budget("*", max_cost_daily=10)] if budgets else None
    if budgets and "://" in place:
        given = Ledger(PostgresLedgerWriter(place, shared=shared), budgets=given)
    return RuntimeKernel.create(agent=handle, name="shop", journal=place, shared=shared, budgets=given)


async def until_parked(kernel: RuntimeKernel, jobs: int) -> None:
    while kernel.statistics()["parked"] < jobs:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def start(place: str, opened: int, *, shared: bool, resumes: bool, budgets: bool) -> dict[str, float]:
    """Starts a kernel. Returns the seconds that it took, the seconds of CPU, and by how many MB the process grew; and the same until the
    moments of --resume.
    """
    meter = Meter()
    async with kernel_over(place, shared=shared, budgets=budgets) as kernel:
        found = meter.read()
        if resumes:
            meter = Meter()
            assert len(await kernel.resume()) == (0 if shared else opened)
            await (await kernel.execute(ExecutionRequest(prompt="at once"))).result()
            found |= meter.read("first ")
            await until_parked(kernel, opened)
            found |= meter.read("all ")
    return found


def park(place: str, jobs: int) -> int:
    """Adds jobs that wait for a person: one that has run, and copies of its entries. Returns the number of entries."""

    async def first() -> list[Entry]:
        async with kernel_over(place, shared=False) as kernel:
            job = await kernel.execute(ExecutionRequest(prompt=WAITS))
            await until_parked(kernel, 1)
        reader = open_reader(place, app="shop")
        try:
            return [entry for _, entry in reader.read(job.job_id)]
        finally:
            reader.close()

    async def copy(journal: Journal, entries: list[Entry]) -> int:
        for number in range(1, jobs):
            job = f"{AGENT}/parked-{number}"
            for entry in entries:
                changes: dict[str, Any] = {"job": job}
                if isinstance(entry, Intent) and entry.token:
                    changes["token"] = question_token(journal.key, job, entry.ordinal)
                await journal.room()
                journal.append(msgspec.structs.replace(entry, **changes))
            if not number % AT_ONCE:
                await journal.flush()
        await journal.flush()
        return jobs * len(entries)

    entries = asyncio.run(first())
    journal = open_journal(place, app="shop")
    try:
        return asyncio.run(copy(journal, entries))
    finally:
        journal.close()


def measure(asked: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, home_of(asked.store, folder) as (place, _):
        entries = make(place, asked.rows, asked.effects, 0) + (park(place, asked.open) if asked.open else 0)
        if asked.shared:
            open_journal(place, app="shop", shared=True).close()  # brings the tables up to date
        flags = [f"--{each}" for each in ("shared", "resume", "budgets") if getattr(asked, each)]
        words = [sys.executable, __file__, "--open", str(asked.open), *flags, "--start", place]
        found = [
            msgspec.json.decode(subprocess.run(words, check=True, capture_output=True, env=dict(os.environ)).stdout)
            for _ in range(asked.times)
        ]
        reader = open_reader(place, app="shop")
        failed = -(-asked.rows // 10)
        counts = {"failed": failed, "succeeded": asked.rows - failed, "waiting_action": asked.open}
        counts["succeeded"] += asked.times if asked.resume else 0
        assert reader.logged_counts(JobQuery()) == {status: count for status, count in counts.items() if count}
        reader.close()
    return {"entries": entries, **{name: round(median(each[name] for each in found), 3) for name in found[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="jobs that have ended")
    parser.add_argument("--open", type=int, default=0, help="jobs that have not ended")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument("--times", type=int, default=3, help="starts, of which the median is printed")
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--shared", action="store_true", help="as one of several workers; PostgreSQL only")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--start", metavar="PLACE", help="only start once over this journal")
    asked = parser.parse_args()
    if asked.start:
        how = {"shared": asked.shared, "resumes": asked.resume, "budgets": asked.budgets}
        found = asyncio.run(start(asked.start, asked.open, **how))
        print(msgspec.json.encode(found).decode())
        return
    store = f"{asked.store}, shared" if asked.shared else asked.store
    print(msgspec.json.encode({"benchmark": "journal_start", "store": store, **measure(asked)}).decode())


if __name__ == "__main__":
    main()
