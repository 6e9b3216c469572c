"""What the console costs a run: CPU time with its figures and with three tabs, p99 while state is read and while jobs are listed.

    python benchmarks/pipelines/console_cost.py --rounds 10

Records come at a fixed rate through the stream of `latency.py`. A round has a run of each kind, in another order each time: alone; with a
console, which takes its figures each second; with a console and three open tabs; while the reader process of a console reads one page of a
state in RocksDB after the other; while a console lists the jobs of a history. Each ratio is that of two runs of one round. The answers of
each run, of each page of state, and of each list are checked, and that each tab was sent its figures. CPU time is that of the process of
the run, in which the console's server is; `console_ms_per_s` is that of the server's threads alone, which needs no pairs. Then a page is
loaded beside a thousand idle connections.
"""

import argparse
import asyncio
import http.client
import json
import os
import resource
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import latency
import numpy as np
import pyarrow as pa

import sabot
from sabot import App
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.checkpoint.state_reads import PAGE_ROWS, rows_in
from sabot.testing import END, ListSink, ScriptedSource
from sabot.web.console import Console
from sabot.web.reader import ConsoleReader

sys.path.append(str(Path(__file__).parents[1] / "agents"))
from job_history import Visit, make

URL = "memory://console-cost"
TABS = 3
IDLE_CONNECTIONS = 1_000
Beside = Callable[[App], AbstractContextManager[object]]


class Reading(threading.Thread):
    """Reads pages of state, one after the other, as a console does in its thread, until `stop` is set. `pause`: seconds between two."""

    def __init__(self, place: Path, pause: float) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.pause = pause
        self.pages = 0
        self.warm, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._read())

    async def _read(self) -> None:
        reader, cursor = ConsoleReader(), ""
        while not self.stop.is_set():
            page = await reader.read(rows_in, str(self.place), 0, "totals", None, cursor)
            assert len(page.rows) == PAGE_ROWS or not page.following
            cursor = page.following
            self.pages += 1
            self.warm.set()
            await asyncio.sleep(self.pause)
        reader.close()


class Listing(threading.Thread):
    """Loads the page of jobs of a console, one time after the other, until `stop` is set. `pause`: seconds between two."""

    def __init__(self, port: int, token: str, jobs: int, pause: float) -> None:
        super().__init__(daemon=True)
        self.browser, self.jobs, self.pause = Visit(port, token), jobs, pause
        self.pages = 0
        self.warm, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            text = self.browser.get("/jobs")
            assert f"{self.jobs:,} jobs as of" in text, text[:2000]
            self.pages += 1
            self.warm.set()
            self.stop.wait(self.pause)


class Tab(threading.Thread):
    """The event stream of a page, read until the console closes it."""

    def __init__(self, port: int, token: str) -> None:
        super().__init__(daemon=True)
        self._client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._client.request("GET", "/events/app", headers={"Authorization": f"Bearer {token}"})
        self._answer = self._client.getresponse()
        assert self._answer.status == 200, self._answer.read()
        self.told = threading.Event()

    def run(self) -> None:
        while line := self._answer.readline():
            if line.startswith(b"id:"):
                self.told.set()


@contextmanager
def with_console(app: App, tabs: int, spent: list[float]) -> Iterator[None]:
    """A console of the app, with so many tabs that are open. The CPU seconds of its threads are added to `spent`."""
    others = set(threading.enumerate())
    console = Console(app, port=0)
    opened = [Tab(console.port, console.access.token("act")) for _ in range(tabs)]
    for tab in opened:
        tab.start()
    own = [*{*threading.enumerate()} - others - {*opened}]
    before = sum(map(thread_seconds, own))
    yield
    spent.append(sum(map(thread_seconds, own)) - before)
    for tab in opened:
        assert tab.told.wait(60), "no figures came"
    console.close()
    for tab in opened:
        tab.join(60)


@contextmanager
def working(thread: Reading | Listing) -> Iterator[None]:
    thread.start()
    assert thread.warm.wait(60)
    yield
    thread.stop.set()
    thread.join()


async def make_state(folder: Path, keys: int) -> Path:
    """Runs an app that keeps a total for each key, and returns the place of its checkpoints."""
    place = folder / "kept"
    app = App("state", state=str(folder / "state"), checkpoint_dir=str(place))
    parts = [pa.record_batch({"k": np.arange(first, min(keys, first + 10_000))}) for first in range(0, keys, 10_000)]
    rows = app.stream(ScriptedSource([*parts, END])).key_by("k")
    rows.aggregate(n=sabot.count()).named("totals").to(ListSink())
    await app.run()
    newest = CheckpointStorage(place).latest()
    assert newest is not None
    return place


def thread_seconds(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(rate: int, rows: int, beside: Beside) -> tuple[float, float]:
    """Returns the p99 of a run in ms, and the CPU seconds of this process while rows were fed."""
    used = 0.0

    @contextmanager
    def counted(app: App) -> Iterator[None]:
        nonlocal used
        with beside(app):
            before = cpu_seconds()
            yield
            used = cpu_seconds() - before

    _, found = asyncio.run(latency.run(rate, rows, URL, counted))
    return float(np.percentile(found, 99)) / 1000, used


def page_beside_idle_ms() -> float:
    """Returns the median time of a page while idle connections are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    console = Console(App("idle"), port=0)
    browser = Visit(console.port, console.access.token("act"))
    with ExitStack() as idle:
        for _ in range(IDLE_CONNECTIONS):
            idle.enter_context(socket.create_connection(("127.0.0.1", console.port)))
        took = []
        for _ in range(5):
            began = time.perf_counter()
            text = browser.get("/")
            took.append(time.perf_counter() - began)
            assert "<h1>" in text
    console.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return statistics.median(took) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=150_000, help="of each run; the state and the history have at most as many"
    )
    parser.add_argument("--rate", type=int, default=50_000, help="rows per second")
    parser.add_argument("--rounds", type=int, help="default: 10, and 1 for less than 100,000 rows")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two pages of state, or two lists")
    parser.add_argument("--keys", type=int, default=100_000, help="of the state")
    parser.add_argument("--jobs", type=int, default=10_000, help="of the history")
    options = parser.parse_args()
    rounds = options.rounds or (10 if options.rows >= 100_000 else 1)
    seconds = options.rows / options.rate
    keys, jobs = min(options.keys, options.rows), min(options.jobs, options.rows // 15)
    with tempfile.TemporaryDirectory() as folder:
        place = asyncio.run(make_state(Path(folder), keys))
        journal = str(Path(folder) / "journal")
        make(journal, jobs, 1, 0)
        shop = App("shop", "memory://", state=str(Path(folder) / "shop"), journal=journal)
        shop.agent("tickets", name="handle", durable=True)(lambda ctx: None)
        history = Console(shop, port=0)
        spent: dict[str, list[float]] = {"rings": [], "tabs": []}
        kinds: dict[str, Beside] = {
            "alone": nullcontext,
            "rings": lambda app: with_console(app, 0, spent["rings"]),
            "tabs": lambda app: with_console(app, TABS, spent["tabs"]),
            "state": lambda app: working(Reading(place, options.pause)),
            "jobs": lambda app: working(Listing(history.port, history.access.token("act"), jobs + 1, options.pause)),
        }
        measured(options.rate, options.rows // 3, nullcontext)  # warms up
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        names = list(kinds)
        for turn in range(rounds):
            for kind in names[turn % len(names) :] + names[: turn % len(names)]:
                found[kind].append(measured(options.rate, options.rows, kinds[kind]))
        history.close()

    def ratios(kind: str, figure: int) -> list[float]:
        """Returns the median, the lowest and the highest ratio to the run alone."""
        each = sorted(one[figure] / alone[figure] for one, alone in zip(found[kind], found["alone"], strict=True))
        return [round(value, 3) for value in (statistics.median(each), each[0], each[-1])]

    result = {
        "benchmark": "console_cost",
        "rounds": rounds,
        "rows": options.rows,
        "rows_per_s": options.rate,
        "state_keys": keys,
        "jobs": jobs,
        "p99_ms_alone": round(statistics.median(p99 for p99, _ in found["alone"]), 3),
        "cpu_s_alone": round(statistics.median(cpu for _, cpu in found["alone"]), 3),
        **{f"cpu_ratio_{kind}": ratios(kind, 1) for kind in spent},
        **{
            f"console_ms_per_s_{kind}": round(1000 * statistics.median(each) / seconds, 2)
            for kind, each in spent.items()
        },
        **{f"p99_ratio_{kind}": ratios(kind, 0) for kind in names[1:]},
        "page_ms_beside_1000_idle": round(page_beside_idle_ms(), 1),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
