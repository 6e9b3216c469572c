"""Children of a supervisor: how soon one runs, what it costs to have many, how soon one that is stopped is noticed.

    python benchmarks/agents/processes.py --spawns 200 --idle 200

    first_ms               from nothing: the supervisor's start and the first child's
    spawn_p50_ms, _p99     of `spawn`, one after the other, until the program is executed
    trusted_p50_ms, …      of `spawn` in a sandbox of this level, where this system can hold it
    spawns_per_s           of ten at a time, with their ends
    cold_answer_p50_ms     from `spawn` to the child's first answer, a line for a line
    warm_p50_ms, _p99      of `WarmPool.allocate`, each from a pool that is full
    warm_answer_p50_ms     from `allocate` to the first answer
    runner_p50_ms          of `LocalProcessRunner.spawn`
    idle_percent           of one core, that the supervisor and this process use while --idle children sleep, over --seconds
    limited_percent        the same, with limits that are measured
    supervisor_mb          resident, with all of them
    stop_noticed_p50_ms    from SIGSTOP until the child's status is Paused
    shutdown_s             of `runner.shutdown`, until all of --idle agents are gone
    killed_s               from kill -9 of a worker until its --idle children and its supervisor are gone

Counted from /proc: after each part no child is left. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sabot.process import (
    AgentConfig,
    Child,
    Command,
    LocalProcessRunner,
    ProcessRunnerConfig,
    ResourceLimits,
    SandboxUnavailable,
    Supervisor,
    TrustLevel,
    WarmPool,
)

ECHO = Command(argv=["cat"])
SLEEP = Command(argv=["sleep", "1000"])
LIMITED = Command(argv=["sleep", "1000"], limits=ResourceLimits(max_processes=100))


def cpu_seconds(*pids: int) -> float:
    """User and system time that the processes have used."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(figures[11]) + int(figures[12]) for figures in stats) / ticks


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def timed(calls: int, call: Callable[[], Awaitable[Any]]) -> list[float]:
    """Milliseconds of each call, one after the other; what they return is stopped."""
    taken = []
    for _ in range(calls):
        begin = time.perf_counter()
        child = await call()
        taken.append(1000 * (time.perf_counter() - begin))
        await child.kill() if hasattr(child, "config") else await child.stop(0)
    return taken


async def answered(child: Child) -> None:
    """The child has got a line, and has answered it."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"work\n")
    async for line in child.stdout.lines():
        assert line == b"work"
        return


async def warm(supervisor: Supervisor, calls: int) -> dict[str, float]:
    """How soon a child answers that was started for it, and how soon one of a pool."""
    cold, given, answers = [], [], []
    for _ in range(calls):
        begin = time.perf_counter()
        child = await supervisor.spawn(ECHO)
        await answered(child)
        cold.append(1000 * (time.perf_counter() - begin))
        await child.stop(0)
    async with WarmPool(ECHO) as pool:
        for _ in range(calls):
            there = set(children_of(supervisor.pid))
            begin = time.perf_counter()
            child = await pool.allocate()
            given.append(1000 * (time.perf_counter() - begin))
            await answered(child)
            answers.append(1000 * (time.perf_counter() - begin))
            assert child.pid in there, "it was not started for this"
            await pool.give_back(child)
            while pool.status().warm < pool.config.size:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert children_of(supervisor.pid) == []
    return {
        "cold_answer_p50_ms": median(cold),
        "warm_p50_ms": median(given),
        "warm_p99_ms": quantiles(given, n=100)[98],
        "warm_answer_p50_ms": median(answers),
    }


async def idle(supervisor: Supervisor, command: Command, count: int, seconds: float) -> tuple[float, float]:
    """(percent of one core, MB of the supervisor) with so many sleeping children."""
    children = [await supervisor.spawn(command) for _ in range(count)]
    assert len(children_of(supervisor.pid)) == count
    await asyncio.sleep(0.5)
    before, begin = cpu_seconds(supervisor.pid, os.getpid()), time.perf_counter()
    await asyncio.sleep(seconds)
    used = (cpu_seconds(supervisor.pid, os.getpid()) - before) / (time.perf_counter() - begin)
    pages = int(Path(f"/proc/{supervisor.pid}/statm").read_text().split()[1])
    await asyncio.gather(*(child.stop(0) for child in children))
    assert children_of(supervisor.pid) == []
    return 100 * used, pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def stop_noticed(runner: LocalProcessRunner, times: int) -> list[float]:
    """Milliseconds from SIGSTOP until it is known."""
    handle = await runner.spawn(AgentConfig(name="sleeper", model_backend="sleep", task="1000"))
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        os.kill(handle.child.pid, signal.SIGSTOP)
        while not handle.child.paused:  # noqa: ASYNC110
            await asyncio.sleep(0)
        taken.append(1000 * (time.perf_counter() - begin))
        os.kill(handle.child.pid, signal.SIGCONT)
        while handle.child.paused:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await handle.kill()
    return taken


async def killed_worker(count: int) -> float:
    """Seconds from kill -9 of a worker with so many children until none of them, nor its supervisor, is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--worker", str(count), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    supervisor = int(await process.stdout.readline())
    assert len(children_of(supervisor)) == count
    children = children_of(supervisor)
    begin = time.perf_counter()
    process.kill()
    while any(os.path.exists(f"/proc/{pid}") for pid in [supervisor, *children]):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    taken = time.perf_counter() - begin
    await process.wait()
    return taken


async def worker(count: int) -> None:
    supervisor = await Supervisor.running()
    for _ in range(count):
        await supervisor.spawn(SLEEP)
    print(supervisor.pid, flush=True)
    await asyncio.sleep(1000)


async def measured(options: argparse.Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}
    begin = time.perf_counter()
    supervisor = await Supervisor.running()
    await (await supervisor.spawn(SLEEP)).stop(0)
    figures["first_ms"] = 1000 * (time.perf_counter() - begin)
    taken = await timed(options.spawns, lambda: supervisor.spawn(SLEEP))
    figures |= {"spawn_p50_ms": median(taken), "spawn_p99_ms": quantiles(taken, n=100)[98]}
    for level in TrustLevel:
        confined = replace(SLEEP, trust=level)
        with suppress(SandboxUnavailable):
            await (await supervisor.spawn(confined)).stop(0)
            figures[f"{level}_p50_ms"] = median(await timed(options.spawns, partial(supervisor.spawn, confined)))

    async def one() -> None:
        assert (await (await supervisor.spawn(Command(argv=["true"]))).wait()).success

    begin = time.perf_counter()
    for _ in range(options.spawns // 10):
        await asyncio.gather(*(one() for _ in range(10)))
    figures["spawns_per_s"] = options.spawns // 10 * 10 / (time.perf_counter() - begin)

    figures |= await warm(supervisor, options.spawns)
    async with LocalProcessRunner(ProcessRunnerConfig(enable_health_checks=False)) as runner:
        config = AgentConfig(name="sleeper", model_backend="sleep", task="1000")
        figures["runner_p50_ms"] = median(await timed(options.spawns, lambda: runner.spawn(config)))
        figures["stop_noticed_p50_ms"] = median(await stop_noticed(runner, 20))
    figures["idle_percent"], figures["supervisor_mb"] = await idle(supervisor, SLEEP, options.idle, options.seconds)
    figures["limited_percent"], _ = await idle(supervisor, LIMITED, options.idle, options.seconds)

    async with LocalProcessRunner() as runner:
        for _ in range(options.idle):
            await runner.spawn(config)
        begin = time.perf_counter()
    figures["shutdown_s"] = time.perf_counter() - begin
    assert children_of(supervisor.pid) == []
    figures["killed_s"] = await killed_worker(options.idle)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spawns", type=int, default=200)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rows", type=int, help="a short run: so many children at most, and half a second")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        options.spawns, options.idle = (min(count, options.rows) for count in (options.spawns, options.idle))
        options.seconds = 0.5
    if options.worker:
        asyncio.run(worker(options.worker))
        return
    figures = {name: round(figure, 2) for name, figure in asyncio.run(measured(options)).items()}
    for name, figure in figures.items():
        print(f"{name:24}{figure}")
    print(json.dumps({"benchmark": "processes", "idle": options.idle, "spawns": options.spawns, **figures}))


if __name__ == "__main__":
    main()
