"""The start of a kernel over a journal whose jobs have all ended: what a reader of the whole log costs.

    python benchmarks/agents/journal_start.py [--rows 10000] [--effects 4] [--times 3] [--store sqlite|postgres]

A job has two entries and two more for each effect. Each start is a process of its own, which opens the journal and resumes its
jobs. It is checked that there are none to resume, and that the list has each job with its outcome.
"""

import argparse
import asyncio
import os
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
    """The agent of the jobs, which calls nothing: none of them is open."""


async def start(place: str) -> dict[str, float]:
    """Starts a kernel, and returns the seconds that it took, and the seconds of CPU."""
    at, cpu = time.perf_counter(), time.process_time()
    async with RuntimeKernel.create(agent=handle, name="shop", journal=place) as kernel:
        resumed = await kernel.resume()
        took, cpu = time.perf_counter() - at, time.process_time() - cpu
        assert resumed == []
    return {"seconds": took, "cpu": cpu}


def measure(store: str, jobs: int, effects: int, times: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, home_of(store, folder) as (place, _):
        entries = make(place, jobs, effects, 0)
        words = [sys.executable, __file__, "--start", place]
        found = [
            msgspec.json.decode(subprocess.run(words, check=True, capture_output=True, env=dict(os.environ)).stdout)
            for _ in range(times)
        ]
        reader = open_reader(place, app="shop")
        failed = -(-jobs // 10)
        assert reader.logged_counts(JobQuery()) == {"failed": failed, "succeeded": jobs - failed}
        reader.close()
    return {"entries": entries, **{name: round(median(each[name] for each in found), 3) for name in found[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="jobs, which have all ended")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument("--times", type=int, default=3, help="starts, of which the median is printed")
    parser.add_argument("--store", default="sqlite")
    parser.add_argument("--start", metavar="PLACE", help="only start once over this journal")
    asked = parser.parse_args()
    if asked.start:
        print(msgspec.json.encode(asyncio.run(start(asked.start))).decode())
        return
    found = measure(asked.store, asked.rows, asked.effects, asked.times)
    print(msgspec.json.encode({"benchmark": "journal_start", "store": asked.store, **found}).decode())


if __name__ == "__main__":
    main()
