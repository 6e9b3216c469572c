"""The start of a kernel over a journal of many jobs, of which few or none are open.

    python benchmarks/agents/journal_start.py [--rows 10000] [--open 0] [--effects 4] [--times 3] [--store sqlite|postgres]

An ended job has two entries and two more for each effect, and an open one has three. Each start is a process of its own, which
opens the journal and reads its open jobs. It is checked that these are the open ones, and that the list has each job.
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
from journal_upgrade import home_of, make

from sabot.agents import RuntimeKernel
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.opening import open_reader


async def handle(ctx: Any) -> None:
    """The agent of the jobs. None of them goes on."""


def memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def start(place: str, opened: int) -> dict[str, float]:
    """Starts a kernel, and returns the seconds that it took, the seconds of CPU, and by how many MB the process grew."""
    at, cpu, held = time.perf_counter(), time.process_time(), memory_mb()
    async with RuntimeKernel.create(agent=handle, name="shop", journal=place) as kernel:
        took, cpu, grown = time.perf_counter() - at, time.process_time() - cpu, memory_mb() - held
        assert kernel._host is not None
        assert len(kernel._host.open) == opened
    return {"seconds": took, "cpu": cpu, "MB": grown}


def measure(store: str, jobs: int, opened: int, effects: int, times: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, home_of(store, folder) as (place, _):
        entries = make(place, jobs, effects, opened)
        words = [sys.executable, __file__, "--open", str(opened), "--start", place]
        found = [
            msgspec.json.decode(subprocess.run(words, check=True, capture_output=True, env=dict(os.environ)).stdout)
            for _ in range(times)
        ]
        reader = open_reader(place, app="shop")
        failed = -(-jobs // 10)
        counts = {"failed": failed, "succeeded": jobs - failed, "running": opened}
        assert reader.logged_counts(JobQuery()) == {status: count for status, count in counts.items() if count}
        reader.close()
    return {"entries": entries, **{name: round(median(each[name] for each in found), 3) for name in found[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="jobs that have ended")
    parser.add_argument("--open", type=int, default=0, help="jobs that have not ended")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument("--times", type=int, default=3, help="starts, of which the median is printed")
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--start", metavar="PLACE", help="only start once over this journal")
    asked = parser.parse_args()
    if asked.start:
        print(msgspec.json.encode(asyncio.run(start(asked.start, asked.open))).decode())
        return
    found = measure(asked.store, asked.rows, asked.open, asked.effects, asked.times)
    print(msgspec.json.encode({"benchmark": "journal_start", "store": asked.store, **found}).decode())


if __name__ == "__main__":
    main()
