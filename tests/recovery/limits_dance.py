"""kill -9 of four workers of one journal in PostgreSQL, whose agents have limits; then it is counted how many jobs ran at once.

    python tests/recovery/limits_dance.py [--jobs 10000] [--rated 1200] [--concurrency 40] [--rate 20] [--seed 1]

--jobs jobs of one agent run, at most --concurrency at once, while a worker is killed each 2 to 5 s and another one started. Then --rated
jobs of a second agent begin, at most --rate in any second, without kills. The last line is JSON:

    above, most      moments at which more jobs than --concurrency were open, by the times of their first and last entries; the most jobs
    per_s            jobs that ended in a second, of the first agent
    rate_most        the most jobs that began within a second, by the times at which their workers began them: each a moment after it was
                     claimed, when it counted, so a machine that is slow for a moment puts some of two seconds into one
    early            jobs of the second agent that began sooner than the rate allows, counted from when they were asked for
    rate_kept        the rate at which the jobs of the second agent began, as a share of --rate; asked: within 5 %
    kills            workers that were killed
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from test_kernel_kill import Workers

from sabot.agents import ExecutionRequest, JobClient, RuntimeKernel
from sabot.journal import open_reader
from sabot.journal.entries import Begin, End
from tools.command_line import SABOT
from tools.leftovers import leftovers
from tools.postgres import Postgres

WORKERS = 4
PATIENCE_S = 1_500.0
DESK = """
import asyncio
from sabot.agents import JobLimit, RuntimeKernel

async def look() -> None:
    await asyncio.sleep(0.02)

async def limited(ctx):
    await ctx.step(look, effect="read")

async def rated(ctx):
    await ctx.step(look, effect="read")

limits = [JobLimit("limited", concurrency={concurrency}), JobLimit("rated", rate="{rate}/s")]
kernel = RuntimeKernel.create(agent=[limited, rated], journal={url!r}, shared=True, limits=limits)
"""


def most_at_once(spans: list[tuple[int, int]], limit: int) -> tuple[int, int]:
    """Returns the most of these spans that overlap, and how many begin while as many as the limit are there. Who ends has left."""
    events = sorted([(begun, 1) for begun, _ in spans] + [(ended, -1) for _, ended in spans])
    count = most = above = 0
    for _, change in events:
        count += change
        most = max(most, count)
        above += change > 0 and count > limit
    return most, above


def most_in_a_second(begun: list[int]) -> int:
    """Returns the most of these times, in ms, that lie within a second. They rise."""
    return max(bisect_right(begun, at + 999) - number for number, at in enumerate(begun))


def spans_of(url: str, jobs: list[str]) -> Iterator[tuple[int, int]]:
    """Yields the times in ms of the first BEGIN and the END of each job."""
    reader = open_reader(url, app="kernel")
    try:
        for job in jobs:
            entries = [entry for _, entry in reader.history.entries(job)]
            begun = next(each.at_ms for each in entries if isinstance(each, Begin))
            yield begun, next(each.at_ms for each in reversed(entries) if isinstance(each, End))
    finally:
        reader.close()


async def _killed(workers: Workers, running: list[Any], seed: int, over: asyncio.Event) -> int:
    draws, kills = random.Random(seed), 0
    while not over.is_set():
        try:
            async with asyncio.timeout(draws.uniform(2.0, 5.0)):
                await over.wait()
        except TimeoutError:
            running.pop(draws.randrange(len(running))).kill()
            running.append(await workers.start())
            kills += 1
    return kills


async def _started(client: JobClient, agent: str, count: int) -> list[str]:
    asked = [ExecutionRequest(prompt=number, agent=agent) for number in range(count)]
    return [handle.job_id for handle in await client.start_all(asked)]


async def _until_ended(client: JobClient, agent: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (counts := (await client.jobs.page({"agent": agent}, most=1)).counts).get("succeeded", 0) < count:
            assert "failed" not in counts, counts
            await asyncio.sleep(0.5)


async def dance(folder: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    async def nothing(ctx: Any) -> None: ...

    async with RuntimeKernel.create(agent=nothing, journal=url, shared=True):
        pass
    (folder / "desk.py").write_text(DESK.format(url=url, concurrency=options.concurrency, rate=options.rate))
    with Workers(folder, url, [*SABOT, "jobs", "work", "desk:kernel"]) as workers:
        running = [await workers.start() for _ in range(WORKERS)]
        client, over, began = JobClient(url), asyncio.Event(), time.monotonic()
        killing = asyncio.create_task(_killed(workers, running, options.seed, over))
        jobs = await _started(client, "limited", options.jobs)
        await _until_ended(client, "limited", options.jobs)
        seconds = time.monotonic() - began
        over.set()
        kills = await killing
        asked_ms = int(time.time() * 1000) - 1
        rated = await _started(client, "rated", options.rated)
        await _until_ended(client, "rated", options.rated)
    most, above = most_at_once(await asyncio.to_thread(lambda: list(spans_of(url, jobs))), options.concurrency)
    begun = sorted(at for at, _ in await asyncio.to_thread(lambda: list(spans_of(url, rated))))
    pace = (len(begun) - options.rate) / (begun[-1] - begun[0]) * 1000  # the first ones may begin at once
    found = {"jobs": len(jobs), "above": above, "most": most, "per_s": round(options.jobs / seconds, 1), "kills": kills}
    return found | {
        "early": sum(at < asked_ms + number // options.rate * 1000 for number, at in enumerate(begun)),
        "rate_most": most_in_a_second(begun),
        "rate_kept": round(pace / options.rate, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rated", type=int, default=1_200)
    parser.add_argument("--concurrency", type=int, default=40)
    parser.add_argument("--rate", type=int, default=20, help="a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = leftovers().folder(Path(tempfile.mkdtemp(prefix="sabot-limits-")))
    server = Postgres("fsync=on")
    try:
        found = asyncio.run(dance(folder, server.url, options))
    finally:
        server.remove()
    print(json.dumps(found))
    sys.exit(bool(found["above"] or found["early"] or abs(found["rate_kept"] - 1) > 0.05))


if __name__ == "__main__":
    main()
