"""Memory over a long run: a producer that never stops, an app whose state does not grow, a reader of its results.

    python benchmarks/pipelines/memory_flat.py                                 10 M rows, state in memory and in RocksDB
    python benchmarks/pipelines/memory_flat.py --pipeline fraud --state rocksdb

    producer thread --payments--> record agent: state get + put of 10,000 accounts --counts--> reader thread
    the generator   ------------> the fraud demo's agents: 5,000 customers, 10,000 terminals --alerts--> reader thread

Everything is in one process on the embedded broker, whose topics are full after the warm-up: full topics hold their writers
back, and keep their size. Each run is a fresh process. Its RSS is read each second; what it has after the first two
million rows is the level. Checked: a line through the later samples rises less than --bound-mb over the run, no sample
lies more than --bound-mb above the level, and every result came once and in order per account (fraud: as many alerts as
the state says). A run too short for eight such samples checks its results only; its `flat` is null.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot import App
from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import JsonDecoder
from sabot.codecs.records import build_records
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.demos.fraud.app import build, read_figures
from sabot.demos.fraud.generator import FraudSource
from sabot.engine.state import open_backend

ACCOUNTS = 10_000
POOL_ROWS = 200_000  # the records repeat after so many
CHUNK_ROWS = 8_000
RETENTION_BYTES = {"record": 64 << 20, "fraud": 2 << 20}  # of each topic; all are full before the warm-up ends
SAMPLE_SECONDS = 1.0
WARM_UP_ROWS = 2_000_000  # both topics are full by then, and the allocators have what they keep
FEWEST_SAMPLES = 8
STATES = ("memory", "rocksdb")
MB = 1e6


class Worker(threading.Thread):
    """A thread whose exception is raised by `result`."""

    def __init__(self, name: str, run: Callable[[threading.Event], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = run
        self.stopping = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work(self.stopping)
        except BaseException as error:  # for `look`, in the main thread
            self._error = error

    def look(self) -> None:
        if self._error is not None:
            raise self._error


class Payments:
    """Seeded records of 10,000 accounts, 100 bytes each: row i of the stream is row i % POOL_ROWS of the pool."""

    def __init__(self) -> None:
        draw = random.Random(1)
        self.accounts = np.array([draw.randrange(ACCOUNTS) for _ in range(POOL_ROWS)])
        payloads = [
            b'{"txn_id": %d, "account": "acc%d", "amount": %.2f, "ts": %d, "merchant": "shop", "online": true}'
            % (number, account, draw.random() * 100, 1_700_000_000_000 + number)
            for number, account in enumerate(self.accounts.tolist())
        ]
        self.pool = build_records(payloads, None, [0] * POOL_ROWS, 0, range(POOL_ROWS))

    def counts(self, rows: int) -> Any:
        """Records per account among the first `rows`."""
        cycles, rest = divmod(rows, POOL_ROWS)
        whole = np.bincount(self.accounts, minlength=ACCOUNTS) * cycles
        return whole + np.bincount(self.accounts[:rest], minlength=ACCOUNTS)

    def publish(self, sink: MemorySink, rows: int, stopping: threading.Event) -> None:
        sent = 0
        while sent < rows and not stopping.is_set():
            first = sent % POOL_ROWS
            part = self.pool.slice(first, min(CHUNK_ROWS, rows - sent, POOL_ROWS - first))
            sink.write(Batch(part, None, sink.name))  # waits while the topic is full
            sent += part.num_rows


class CountsReader:
    """Reads the results and checks that each account counts 1, 2, 3, ... without a gap."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source
        self._decoder = JsonDecoder(pa.schema([("account", pa.string()), ("seen", pa.int64())]))
        self.last = np.zeros(ACCOUNTS, np.int64)
        self.rows = 0

    def read(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            batch = self._source.read_batch(65_536, 0.2)
            if batch is not None:
                self.check(batch.data)

    def check(self, records: pa.RecordBatch) -> None:
        results, bad = self._decoder.decode(records.column(0))
        assert not bad, bad[0]
        text = b"".join(results["account"].cast(pa.binary()).to_pylist()).split(b"acc")[1:]
        account = np.array(text, dtype=np.int64)
        order = np.argsort(account, kind="stable")
        account, seen = account[order], results["seen"].to_numpy()[order]
        first = np.flatnonzero(np.diff(account, prepend=-1))
        sizes = np.diff(first, append=len(account))
        nth = np.arange(len(account)) - np.repeat(first, sizes) + 1
        wrong = np.flatnonzero(seen != self.last[account] + nth)
        assert not len(wrong), f"acc{account[wrong[0]]}: {seen[wrong[0]]} after {self.last[account[wrong[0]]]}"
        self.last[account[first]] += sizes
        self.rows += len(account)


class RecordAgent:
    """The record agent of record_agent.py between two full topics."""

    ends_by_itself = False

    def __init__(self, app: App, rows: int) -> None:
        self._payments = Payments()
        self._rows = rows
        self._source = MemorySource("counts", app.broker)
        self._source.open(None, "earliest")
        self._reader = CountsReader(self._source)
        sink = MemorySink("payments", app.broker)
        sink.open()
        self.workers = [
            Worker("producer", lambda stopping: self._payments.publish(sink, rows, stopping)),
            Worker("reader", self._reader.read),
        ]

        @app.agent("payments", key="account", sink="counts", concurrency=64)
        async def count(ctx):  # type: ignore[no-untyped-def]
            state = ctx.state()
            seen = (await state.get("seen") or 0) + 1
            await state.put("seen", seen)
            return {"account": ctx.message["account"], "seen": seen}

    def rows_done(self) -> int:
        return self._reader.rows

    async def check(self, app: App) -> None:
        assert self._reader.rows == self._rows, f"{self._reader.rows} results of {self._rows}"
        assert np.array_equal(self._reader.last, self._payments.counts(self._rows))


class Fraud:
    """The fraud demo's two agents, fed by the generator; their alerts are read and counted."""

    ends_by_itself = True

    def __init__(self, app: App, rows: int) -> None:
        self._rows = rows
        self._alerts = 0
        self._source = MemorySource("alerts", app.broker)
        self._source.open(None, "earliest")
        self.workers = [Worker("reader", self._read)]
        self._meter = build(app, FraudSource(rows, 0), seed=0)

    def _read(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            batch = self._source.read_batch(65_536, 0.2)
            self._alerts += 0 if batch is None else batch.num_rows

    def rows_done(self) -> int:
        return self._meter.rows

    async def check(self, app: App) -> None:
        assert app.state_backend is not None
        figures = await read_figures(app.state_backend)
        assert figures.rows == self._rows
        reader = self.workers[0]
        reader.stopping.set()
        await asyncio.to_thread(reader.join)
        while (batch := self._source.read_batch(65_536, 0.0)) is not None:
            self._alerts += batch.num_rows
        assert self._alerts == figures.alerts == figures.flagged, (self._alerts, figures)


def rss_mb() -> float:
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())])) * 1024 / MB


async def run(pipeline: str, state: str, rows: int) -> tuple[list[tuple[int, float]], float, int]:
    """-> (rows done, RSS in MB) each second, seconds, checkpoints."""
    app = App("flat", state=state, checkpoint_interval="1s")
    MemoryBroker.get(app.broker).retention_bytes = RETENTION_BYTES[pipeline]
    backend = app.state_backend = open_backend(state, "db")
    assert backend is not None
    work = RecordAgent(app, rows) if pipeline == "record" else Fraud(app, rows)
    samples: list[tuple[int, float]] = []
    began = next_sample = time.perf_counter()
    running = asyncio.create_task(app.run())
    for worker in work.workers:
        worker.start()
    try:
        while not running.done() and (work.ends_by_itself or work.rows_done() < rows):
            if time.perf_counter() >= next_sample:
                samples.append((work.rows_done(), rss_mb()))
                next_sample += SAMPLE_SECONDS
            for worker in work.workers:
                worker.look()
            await asyncio.sleep(0.02)
        seconds = time.perf_counter() - began
        samples.append((work.rows_done(), rss_mb()))
        app.request_stop()
        await running
        await work.check(app)
    finally:
        for worker in work.workers:
            worker.stopping.set()
        await backend.close()
    return samples, seconds, app.statistics()["checkpoints"]["completed"]


def judge(samples: list[tuple[int, float]], bound_mb: float) -> dict[str, Any]:
    """The figures of the samples after the warm-up; of all, where there are none."""
    later = [(done, mb) for done, mb in samples if done >= WARM_UP_ROWS]
    enough = len(later) >= FEWEST_SAMPLES
    later = later or samples
    figures: dict[str, Any] = {
        "rss_start_mb": round(later[0][1], 1),
        "rss_end_mb": round(later[-1][1], 1),
        "rss_max_mb": round(max(mb for _, mb in later), 1),
        "samples": len(later),
        "slope_mb_per_million_rows": None,
        "flat": None,
    }
    if enough:
        done, mb = np.array(later).T
        slope = float(np.polyfit(done / 1e6, mb, 1)[0])
        level = float(np.median(mb[: FEWEST_SAMPLES // 2]))
        figures["slope_mb_per_million_rows"] = round(slope, 3)
        figures["flat"] = bool(slope * (done[-1] - done[0]) / 1e6 < bound_mb and mb.max() - level < bound_mb)
    return figures


def run_one(arguments: argparse.Namespace) -> None:
    """In a process of its own: one pipeline, one state."""
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        state = folder if arguments.state == "rocksdb" else arguments.state
        samples, seconds, checkpoints = asyncio.run(run(arguments.pipeline, state, arguments.rows))
    figures = {"rows_per_s": round(arguments.rows / seconds), "seconds": round(seconds, 1), "checkpoints": checkpoints}
    if arguments.samples:
        figures["series"] = [(done, round(mb, 1)) for done, mb in samples]  # type: ignore[assignment]
    print(json.dumps({**figures, **judge(samples, arguments.bound_mb)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--pipeline", choices=["record", "fraud"], default="record")
    parser.add_argument("--state", choices=[*STATES, "both"], default="both")
    parser.add_argument("--bound-mb", type=float, default=32.0)
    parser.add_argument("--samples", action="store_true", help="also give every sample")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        run_one(arguments)
        return
    outcome: dict[str, Any] = {
        "benchmark": "memory_flat",
        "pipeline": arguments.pipeline,
        "rows": arguments.rows,
        "bound_mb": arguments.bound_mb,
    }
    for state in STATES if arguments.state == "both" else [arguments.state]:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--here", "--state", state],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"state {state}: the run failed")
        outcome[state] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(outcome))
    if any(outcome[state]["flat"] is False for state in STATES if state in outcome):
        sys.exit(1)


if __name__ == "__main__":
    main()
