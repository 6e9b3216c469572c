"""Checkpoints of an app while a thousand calls of its durable agent are in flight: a barrier waits for none of them.

    python benchmarks/agents/calls_in_flight.py --rows 1000 --checkpoints 30

--rows jobs make an `unsafe` call each, which does not return before it is told to. Checkpoints are taken before the jobs begin, while
all calls are in flight, and after each of them a job more is let in, so that the journal has something to write at each barrier.

    idle_ms        of a checkpoint without jobs, median
    in_flight_ms   with the calls in flight
    fsync_ms       4 KiB appended to a file in the same folder and fsynced: a commit of the journal takes one or a few of them

Checked: all calls were in flight during the checkpoints, each was made once, and each job has its result. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from journal import fsync_ms

from sabot import App

PATIENCE_SECONDS = 300.0
MOST_ROWS = 1000


async def checkpoints(app: App, count: int, between: Any) -> float:
    """Median in ms. between: is awaited before each."""
    taken = []
    for number in range(count):
        await between(number)
        began = time.perf_counter()
        await app.agent_runtime.trigger_checkpoint()
        taken.append(time.perf_counter() - began)
    return round(median(taken) * 1000, 2)


async def measure(folder: Path, rows: int, count: int) -> dict[str, float]:
    go = asyncio.Event()
    calls: list[int] = []
    results: dict[int, int] = {}
    app = App("in-flight", state=str(folder / "state"), checkpoint_interval="10m")

    async def pay(number: int) -> int:
        calls.append(number)
        await go.wait()
        return number * 2

    @app.agent("orders", durable=True, concurrency=rows + count)
    async def handle(ctx: Any) -> None:
        number = ctx.message["number"]
        results[number] = await ctx.step(pay, number, effect="unsafe")

    async def until(true: Any, what: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not true():
                assert not app.statistics()["failure"], f"{what}: {app.statistics()['failure']}"
                await asyncio.sleep(0.005)

    async def nothing(number: int) -> None:
        """Before a checkpoint of an idle app."""

    async def one_more(number: int) -> None:
        await app.send("orders", {"number": rows + number})
        await until(lambda: len(calls) == rows + number + 1, "a call")

    await app.start()
    idle_ms = await checkpoints(app, count, nothing)
    for number in range(rows):
        await app.send("orders", {"number": number})
    await until(lambda: len(calls) == rows, "the calls")
    in_flight_ms = await checkpoints(app, count, one_more)
    assert not results, "a call did not wait"
    go.set()
    await until(lambda: len(results) == rows + count, "the results")
    assert sorted(calls) == list(range(rows + count)), "a call was made twice, or not at all"
    assert results == {number: number * 2 for number in calls}
    await app.stop()
    return {"idle_ms": idle_ms, "in_flight_ms": in_flight_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=MOST_ROWS, help=f"calls in flight, {MOST_ROWS} at most")
    parser.add_argument("--checkpoints", type=int, default=30, help="checkpoints of each kind")
    options = parser.parse_args()
    rows = min(options.rows, MOST_ROWS)
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        outcome: dict[str, Any] = {"benchmark": "calls_in_flight", "rows": rows}
        outcome |= {"fsync_ms": round(fsync_ms(Path(folder)), 3)}
        outcome |= asyncio.run(measure(Path(folder), rows, options.checkpoints))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
