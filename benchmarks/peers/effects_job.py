"""The job of benchmarks/agents/effects.py, the same one for every engine: steps one after the other, each of which adds one to a number.

Only the standard library is imported, because this module runs in the peers' environments too. Each effects_*.py is started as

    python effects_NAME.py KIND ADDRESS --jobs 200 --steps 20 --at-once 64 --alone 200

runs a job of 5 steps to warm up, one job of --alone steps that nothing runs beside, then --jobs jobs of --steps steps, at most --at-once
at a time, and prints the figures as one JSON object.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable

__all__ = ["Meter", "arguments", "expected", "measure", "say"]

WARM_STEPS = 5


def expected(steps: int) -> int:
    """What a job of so many steps returns."""
    return steps * (steps + 1) // 2


class Meter:
    """Counts the calls of the step, and takes the times. One at a time measures: `begin`, the jobs, `end`."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.calls = 0
        self.waited: list[float] = []  # seconds of each step, as its job sees it
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def end(self) -> tuple[float, float]:
        """(seconds, seconds of the processor) since `begin`."""
        return time.perf_counter() - self._began, time.process_time() - self._cpu

    async def step(self, number: int) -> int:
        """The step itself: nothing that takes time."""
        self.calls += 1
        return number + 1

    async def job(self, step: Callable[[int], Awaitable[int]], steps: int) -> int:
        """The steps, each of which `step` makes durable in the engine's way."""
        total = 0
        for number in range(steps):
            began = time.perf_counter()
            total += await step(number)
            self.waited.append(time.perf_counter() - began)
        return total

    def percentile(self, share: float) -> float:
        """Milliseconds of a step; 0: of jobs of one step, an engine that measures from step to step knows none."""
        waited = sorted(self.waited)
        return 0.0 if not waited else round(waited[min(len(waited) - 1, int(share * len(waited)))] * 1000, 4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("address")
    for name in ("--jobs", "--steps", "--at-once", "--alone"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


async def measure(meter: Meter, run: Callable[[str, int], Awaitable[int]], options: argparse.Namespace) -> None:
    """`run(name, steps)` runs one job to its end and returns what it returned."""
    gate = asyncio.Semaphore(options.at_once)

    async def one(name: str, steps: int) -> int:
        async with gate:
            return await run(name, steps)

    await run("warm", WARM_STEPS)
    meter.begin()
    totals = [await run("alone", options.alone)]
    alone = {"calls": meter.calls, "p50_ms": meter.percentile(0.5), "p99_ms": meter.percentile(0.99)}
    meter.begin()
    totals += await asyncio.gather(*(one(f"job-{number}", options.steps) for number in range(options.jobs)))
    say(meter, totals, alone, options)


def say(meter: Meter, totals: list[int], alone: dict[str, float], options: argparse.Namespace) -> None:
    """Prints the figures of the jobs since `begin`. totals: what the jobs returned, the one of `alone` first."""
    seconds, cpu = meter.end()
    steps = options.jobs * options.steps
    figures = {
        "effects_per_s": round(steps / seconds),
        "effects_per_cpu_s": round(steps / cpu),
        "step_p50_ms": meter.percentile(0.5),
        "step_p99_ms": meter.percentile(0.99),
        "alone_p50_ms": alone["p50_ms"],
        "alone_p99_ms": alone["p99_ms"],
    }
    print(json.dumps({"figures": figures, "calls": [alone["calls"], meter.calls], "totals": totals}), flush=True)
