"""Jobs of durable steps that do nothing: what the durability of a step costs, here and elsewhere, in one run on one machine.

    python benchmarks/agents/effects.py --rows 20000 --steps 20 --at-once 64 --stores all --peers all --repeat 3

Each engine runs --rows steps in jobs of --steps, --at-once jobs at a time, in a process of its own with one event loop, and before that one
job of --alone steps beside which nothing runs. Peers run --peer-rows steps; rates do not depend on how many.

    effects_per_s, effects_per_cpu_s   of all jobs; for each second of the processor too, that of servers left out
    step_p50_ms, step_p99_ms           of a step, as its job sees it, with --at-once jobs
    alone_p50_ms, alone_p99_ms         of a step beside which nothing runs
    direct_us                          of calling the same function without an engine
    fsync_ms                           4 KiB appended to a file in the same folder and fsynced, before each round: no durable step is faster

    sabot-sqlite, -postgres, -kafka    "read": the result is written in the background; "unsafe": the intent is committed before the call
    dbos-sqlite, -postgres             a step: its result is committed before the workflow goes on
    langgraph-sqlite, -postgres        "node": a graph whose checkpoint of each step is committed before the next one begins;
                                       "task": results are written in the background

PostgreSQL and the broker are started here, PostgreSQL with fsync, and stopped behind the run. The peers are installed into .venv-peers/.
Checked: what each job returned, how often its step was called, and for the peers that all steps are in the store. The last line is one
JSON object.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from effects_job import Meter, expected
from journal import fsync_ms
from venvs import python_of

from tools.broker import BrokerMissing, running
from tools.postgres import Postgres, PostgresMissing

SCRIPTS = Path(__file__).parents[1] / "peers"
PEERS = ("dbos", "langgraph")
KINDS = {"sabot": ("read", "unsafe"), "dbos": ("step",), "langgraph": ("node", "task")}  # of steps
STORES = {"sabot": ("sqlite", "postgres", "kafka"), "dbos": ("sqlite", "postgres"), "langgraph": ("sqlite", "postgres")}
SQLITE = {"sabot": "{}", "dbos": "sqlite:///{}/store.db", "langgraph": "{}/store.db"}  # addresses, with a folder
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
    command = [python, str(SCRIPTS / f"effects_{engine}.py"), kind, address, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{engine} {kind}: exit {done.returncode}\n{done.stderr[-4000:]}")
    said = json.loads(lines[-1])
    check(said, options.steps, jobs, options.alone, f"{engine} {kind}")
    figures: dict[str, float] = said["figures"]
    return figures


def known(names: list[str]) -> dict[str, str]:
    """The Python of each peer that is wanted and can be installed, and our own."""
    found = {"sabot": sys.executable}
    for peer in names:
        try:
            found[peer] = python_of(peer)
        except subprocess.CalledProcessError:
            print(f"{peer}: left out: its packages cannot be installed", file=sys.stderr)
    return found


class Servers:
    """Those that are wanted and can be started here."""

    def __init__(self, stores: list[str], opened: ExitStack) -> None:
        self._postgres: Postgres | None = None
        self._broker = ""
        try:
            if "postgres" in stores:
                self._postgres = Postgres("fsync=on", "max_connections=100")
                opened.callback(self._postgres.remove)
            if "kafka" in stores:
                self._broker = opened.enter_context(running(None))
        except (PostgresMissing, BrokerMissing) as missing:
            print(f"left out: {missing}", file=sys.stderr)
        self.stores = [store for store in stores if store == "sqlite" or self._has(store)]

    def _has(self, store: str) -> bool:
        return self._postgres is not None if store == "postgres" else bool(self._broker)

    @contextmanager
    def empty(self, engine: str, store: str) -> Iterator[str]:
        """The address of a new store."""
        if store == "kafka":
            yield f"{self._broker}/bench-{time.time_ns()}"
        elif store == "postgres":
            assert self._postgres is not None
            with self._postgres.database() as address:
                yield address
        else:
            with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
                yield SQLITE[engine].format(folder)


def chosen(word: str, of: Collection[str]) -> list[str]:
    """none, all, or some."""
    names = {"none": [], "all": list(of)}.get(word, word.split(","))
    if unknown := set(names) - set(of):
        raise SystemExit(f"{', '.join(sorted(unknown))}: there are {', '.join(of)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="steps in all")
    parser.add_argument("--steps", type=int, default=20, help="of a job")
    parser.add_argument("--at-once", type=int, default=64, help="jobs at a time")
    parser.add_argument("--alone", type=int, default=300, help="steps of the job that runs alone")
    parser.add_argument("--stores", default="sqlite", help=f"all, or some of {','.join(STORES['sabot'])}")
    parser.add_argument("--peers", default="none", help=f"none, all, or some of {','.join(PEERS)}")
    parser.add_argument("--peer-rows", type=int, default=4_000, help="steps in all, of a peer")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median of each figure is given")
    options = parser.parse_args()
    pythons = known(chosen(options.peers, PEERS))
    runs: dict[str, list[dict[str, float]]] = {}
    probes = []
    with ExitStack() as opened:
        servers = Servers(chosen(options.stores, STORES["sabot"]), opened)
        for _ in range(options.repeat):
            with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
                probes.append(fsync_ms(Path(folder)))
            for engine, python in pythons.items():
                rows = options.rows if engine == "sabot" else options.peer_rows
                for store, kind in itertools.product(servers.stores, KINDS[engine]):
                    if store not in STORES[engine]:
                        continue
                    with servers.empty(engine, store) as address:
                        figures = measure(python, engine, kind, address, rows, options)
                    name = f"{engine}-{store} {kind}"
                    print(name, json.dumps(figures), file=sys.stderr, flush=True)
                    runs.setdefault(name, []).append(figures)
    outcome: dict[str, Any] = {"benchmark": "effects", "rows": options.rows, "steps": options.steps}
    outcome |= {"at_once": options.at_once, "fsync_ms": round(median(probes), 3), "direct_us": direct_us()}
    outcome |= {name: {each: median(run[each] for run in found) for each in found[0]} for name, found in runs.items()}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
