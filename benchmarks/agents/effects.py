"""Jobs of durable steps that do nothing: what the durability of a step costs, here and elsewhere, in one run on one machine.

    python benchmarks/agents/effects.py --rows 20000 --steps 20 --at-once 64 --peers all --repeat 3

Each engine runs --rows steps in jobs of --steps, --at-once jobs at a time, in a process of its own with one event loop, and before that one
job of --alone steps beside which nothing runs. Peers run --peer-rows steps; rates do not depend on how many.

    effects_per_s, effects_per_cpu_s   of all jobs; for each second of the processor too, the server's time of PostgreSQL left out
    step_p50_ms, step_p99_ms           of a step, as its job sees it, with --at-once jobs
    alone_p50_ms, alone_p99_ms         of a step beside which nothing runs
    direct_us                          of calling the same function without an engine
    fsync_ms                           4 KiB appended to a file in the same folder and fsynced, before each round: no durable step is faster

    dbos-sqlite, -postgres             a step: its result is committed before the workflow goes on
    langgraph-sqlite, -postgres        "node": a graph whose checkpoint of each step is committed before the next one begins;
                                       "task": results are written in the background

PostgreSQL is started here, with fsync, and stopped behind the run. The peers are installed into .venv-peers/. Checked: what each job
returned, how often its step was called, and that all steps are in the store. The last line is one JSON object.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from effects_job import Meter, expected
from journal import fsync_ms
from venvs import python_of

from tools.postgres import Postgres, PostgresMissing

PEERS = Path(__file__).parents[1] / "peers"
KINDS = {"dbos": ("step",), "langgraph": ("node", "task")}  # of steps, by peer
SCHEMES = {"dbos": "sqlite:///", "langgraph": ""}
STORES = ("sqlite", "postgres")
PATIENCE_SECONDS = 1800


def direct_us(calls: int = 10_000) -> float:
    """Median of a call of the step without an engine."""
    meter = Meter()
    asyncio.run(meter.job(meter.step, calls))
    return round(meter.percentile(0.5) * 1000, 2)


def check(said: dict[str, Any], steps: int, jobs: int, alone: int, who: str) -> None:
    totals = [expected(alone)] + [expected(steps)] * jobs
    assert said["totals"] == totals, f"{who}: jobs returned {said['totals']}"
    assert said["calls"] == [alone, jobs * steps], f"{who}: the step was called {said['calls']} times"


def measure(
    python: str, engine: str, kind: str, address: str, rows: int, options: argparse.Namespace
) -> dict[str, float]:
    """One run of one engine -> its figures. Raises AssertionError where an answer is wrong."""
    jobs = max(1, rows // options.steps)
    numbers = {"--jobs": jobs, "--steps": options.steps, "--at-once": options.at_once, "--alone": options.alone}
    words = [str(word) for pair in numbers.items() for word in pair]
    command = [python, str(PEERS / f"effects_{engine}.py"), kind, address, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{engine} {kind}: exit {done.returncode}\n{done.stderr[-4000:]}")
    said = json.loads(lines[-1])
    check(said, options.steps, jobs, options.alone, f"{engine} {kind}")
    figures: dict[str, float] = said["figures"]
    return figures


def known(names: str) -> dict[str, str]:
    """The Python of each peer that is wanted and can be installed."""
    wanted = {"none": [], "all": list(KINDS)}.get(names, names.split(","))
    if unknown := set(wanted) - set(KINDS):
        raise SystemExit(f"--peers: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    found = {}
    for peer in wanted:
        try:
            found[peer] = python_of(peer)
        except subprocess.CalledProcessError:
            print(f"{peer}: left out: its packages cannot be installed", file=sys.stderr)
    return found


def server_for(names: Collection[str]) -> Postgres | None:
    """A server that commits to the disk; None where there is none, or nobody asks for it."""
    if not names:
        return None
    try:
        return Postgres("fsync=on", "max_connections=100")
    except PostgresMissing as missing:
        print(f"PostgreSQL: left out: {missing}", file=sys.stderr)
        return None


@contextmanager
def empty_store(kind: str, server: Postgres | None, scheme: str) -> Iterator[str]:
    """The address of a new one. scheme: what stands before the path of a SQLite file."""
    if kind == "postgres":
        assert server is not None
        with server.database() as address:
            yield address
    else:
        with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
            yield f"{scheme}{folder}/store.db"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="steps in all")
    parser.add_argument("--steps", type=int, default=20, help="of a job")
    parser.add_argument("--at-once", type=int, default=64, help="jobs at a time")
    parser.add_argument("--alone", type=int, default=300, help="steps of the job that runs alone")
    parser.add_argument("--peers", default="none", help=f"none, all, or some of {','.join(KINDS)}")
    parser.add_argument("--peer-rows", type=int, default=4_000, help="steps in all, of a peer")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median of each figure is given")
    options = parser.parse_args()
    peers = known(options.peers)
    server = server_for(peers)
    runs: dict[str, list[dict[str, float]]] = {}
    probes = []
    try:
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
                probes.append(fsync_ms(Path(folder)))
            for peer, python in peers.items():
                for store, kind in itertools.product(STORES, KINDS[peer]):
                    if store == "postgres" and server is None:
                        continue
                    with empty_store(store, server, SCHEMES[peer]) as address:
                        figures = measure(python, peer, kind, address, options.peer_rows, options)
                    name = f"{peer}-{store} {kind}"
                    print(name, json.dumps(figures), file=sys.stderr, flush=True)
                    runs.setdefault(name, []).append(figures)
    finally:
        if server is not None:
            server.remove()
    outcome: dict[str, Any] = {"benchmark": "effects", "rows": options.rows, "steps": options.steps}
    outcome |= {"at_once": options.at_once, "fsync_ms": round(median(probes), 3), "direct_us": direct_us()}
    outcome |= {name: {each: median(run[each] for run in found) for each in found[0]} for name, found in runs.items()}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
