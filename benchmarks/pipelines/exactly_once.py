"""What exactly once costs: the same program from a real broker into it, at least once and exactly once, a checkpoint each second.

    python benchmarks/pipelines/exactly_once.py --seconds 30                 runs of 30 s, as many rows as that takes
    python benchmarks/pipelines/exactly_once.py --rows 20000 --programs stream

    stream    filter, compute, one record out for nine of ten rows
    windows   count and sum per account and 100 s of event time, one record out for ten rows
    agent     a record agent: keyed state get + put, one record out for each row

The input topic is filled once. The rounds go A B, B A, A B, ...; each run is a process of its own, from the first row read to the last
result at the broker, the final checkpoint included. The answer of every run is checked on what `read_committed` shows: every result is
there, once. `cost_percent` compares the medians of the rates, `cpu_percent` those of the processor time that the runs took; with
--bound P the exit code is 1 when a cost is above P.
"""

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

import sabot
from sabot import App, col, tumbling
from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import JsonDecoder
from sabot.codecs.records import RECORD_SCHEMA, row_records
from sabot.kafka import KafkaSink, KafkaSource, admin

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tools.broker import running

MODES = ("at_least_once", "exactly_once")
COMPARED = ("rows_per_s", "cpu_seconds")
PROGRAMS = ("stream", "windows", "agent")
SCHEMA = {"n": "int64", "account": "string", "amount": "int64", "ts": "int64"}
PARTITIONS, ACCOUNTS = 4, 10_000
BASE_MS, WINDOW_MS = 1_790_000_000_000, 100_000
CHUNK_ROWS = 20_000
CALIBRATION_ROWS = 500_000
WARM = 1.1  # a short run is so much slower than a long one
QUIET_SECONDS = 120.0  # a run in which nothing is read for so long has failed


# The input, and what is to come of it


def rows_of(first: int, count: int) -> pa.RecordBatch:
    """Row n: one of ten amounts is 0; a row of event time each ms."""
    n = np.arange(first, first + count)
    account = pa.array(np.char.add("acc", (n * 7919 % ACCOUNTS).astype(str)))
    return pa.record_batch(
        {"n": n, "account": account, "amount": pa.array(n % 10), "ts": pa.array(BASE_MS + n)}, schema=pa_schema()
    )


def pa_schema() -> pa.Schema:
    return pa.schema([("n", pa.int64()), ("account", pa.string()), ("amount", pa.int64()), ("ts", pa.int64())])


def fill(broker: str, topic: str, rows: int) -> None:
    """The rows in order, by account in the partitions."""
    admin.create_topic(broker, topic, PARTITIONS, config={"retention.ms": "-1"})
    sink = KafkaSink(topic, broker)
    sink.open()
    for first in range(0, rows, CHUNK_ROWS):
        part = rows_of(first, min(CHUNK_ROWS, rows - first))
        sink.write(Batch(row_records(part, part.column("account").cast(pa.binary()), 0), None, topic))
    sink.flush()
    sink.close()


def results(broker: str, topic: str, columns: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """What readers of committed records see of the topic, decoded."""
    source = KafkaSource(topic, broker, f"check-{uuid.uuid4().hex}")
    source.open(None, "earliest")
    decoder = JsonDecoder(pa.schema(list(columns.items())))
    quiet_since = time.perf_counter()
    while (batch := source.read_batch(65_536, 0.2)) is not None or list(source.lag().values()) != [0] * PARTITIONS:
        if batch is None:
            assert time.perf_counter() < quiet_since + QUIET_SECONDS, f"topic {topic} has more, and it does not come"
            continue
        quiet_since = time.perf_counter()
        data, bad = decoder.decode(batch.data.column(RECORD_SCHEMA.get_field_index("payload")))
        assert not bad, bad[0]
        yield data
    source.close()


def check_rows(broker: str, topic: str, wanted: Any, value: Callable[[Any], Any], name: str) -> int:
    """Of each wanted row number one result, with its value."""
    times = np.zeros(len(wanted), np.int64)
    for data in results(broker, topic, {"n": pa.int64(), name: pa.int64()}):
        n, values = data.column(0).to_numpy(), data.column(1).to_numpy()
        assert np.array_equal(values, value(n)), f"{name} is wrong"
        times += np.bincount(n, minlength=len(wanted))
    wrong = np.flatnonzero(times != wanted)
    assert not len(wrong), f"row {wrong[0]} came {times[wrong[0]]} times, {len(wrong)} rows are wrong"
    return int(times.sum())


def check_stream(broker: str, topic: str, rows: int) -> int:
    return check_rows(broker, topic, np.arange(rows) % 10 != 0, lambda n: n % 10 * 2, "twice")


def check_agent(broker: str, topic: str, rows: int) -> int:
    """ACCOUNTS and 7919 have no common divisor: row n is its account's (n // ACCOUNTS + 1)th."""
    return check_rows(broker, topic, np.ones(rows, bool), lambda n: n // ACCOUNTS + 1, "seen")


def check_windows(broker: str, topic: str, rows: int) -> int:
    """Each pair of account and window once; all rows and the whole sum are in them."""
    seen: set[tuple[str, int]] = set()
    count = total = windows = 0
    columns = {"account": pa.string(), "window_start": pa.int64(), "rows": pa.int64(), "sum": pa.int64()}
    for data in results(broker, topic, columns):
        windows += data.num_rows
        seen.update(zip(data.column(0).to_pylist(), data.column(1).to_pylist(), strict=True))
        count += int(data.column(2).to_numpy().sum())
        total += int(data.column(3).to_numpy().sum())
    assert len(seen) == windows, f"{windows - len(seen)} windows came twice"
    assert count == rows, f"the windows have {count} of {rows} rows"
    assert total == int((np.arange(rows) % 10).sum()), "the sum is wrong"
    return windows


CHECKS = {"stream": check_stream, "windows": check_windows, "agent": check_agent}


# One run


def build(app: App, program: str, mode: Any, source: str, out: str) -> None:
    if program == "agent":

        @app.agent(source, key="account", sink=out, concurrency=64, delivery=mode)
        async def count(ctx):  # type: ignore[no-untyped-def]
            state = ctx.state()
            seen = (await state.get("seen") or 0) + 1
            await state.put("seen", seen)
            return {"n": ctx.message["n"], "seen": seen}

        return
    stream = app.stream(source, schema=SCHEMA, time="ts")
    if program == "stream":
        stream = stream.filter(col("amount") > 0).select("n", "account", twice=col("amount") * 2)
        stream.to(out, key="account", delivery=mode)
    else:
        windows = stream.key_by("account").window(tumbling(f"{WINDOW_MS}ms"))
        windows.aggregate(rows=sabot.count(), sum=sabot.sum("amount")).to(out, key="account", delivery=mode)


def rows_done(app: App, program: str) -> int:
    if program == "agent":
        return sum(int(agent.messages_processed) for agent in app.agent_runtime.agents.values())
    return sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values() if "input" in task)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        app = App(f"bench-{uuid.uuid4().hex[:8]}", options.broker, state=f"{folder}/state", checkpoint_interval="1s")
        build(app, options.program, options.mode, options.input, options.out)
        await app.start()
        try:
            done, began, cpu = 0, time.perf_counter(), time.process_time()
            moved = began
            while done < options.rows:
                await asyncio.sleep(0.005)
                now, before, done = time.perf_counter(), done, rows_done(app, options.program)
                if before == 0:
                    began, cpu = now, time.process_time()
                moved = now if done > before else moved
                assert now < moved + QUIET_SECONDS, f"{done} of {options.rows} rows, and no more come"
        finally:
            await app.stop(drain=True)
        seconds = time.perf_counter() - began
        cpu = time.process_time() - cpu
        checkpoints = app.statistics()["checkpoints"]["completed"]
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "rows_per_s": round(options.rows / seconds),
        "checkpoints": checkpoints,
    }


# All runs


def one(broker: str, program: str, mode: str, source: str, rows: int) -> dict[str, Any]:
    """A run in a process of its own, and the check of its answer."""
    out = f"out-{uuid.uuid4().hex[:8]}"
    admin.create_topic(broker, out, PARTITIONS, config={"retention.ms": "-1"})
    words = ["--here", "--broker", broker, "--program", program, "--mode", mode, "--input", source, "--out", out]
    done = subprocess.run(
        [sys.executable, __file__, *words, "--rows", str(rows)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{program}, {mode}: the run failed")
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    outcome["results"] = CHECKS[program](broker, out, rows)
    admin.delete_topic(broker, out)
    print(f"{program} {mode}: {outcome}", file=sys.stderr, flush=True)
    return outcome


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of the runs, what they differ by, and each run."""
    at_least, exactly = ({name: median(each[name] for each in found[mode]) for name in COMPARED} for mode in MODES)
    figures: dict[str, Any] = {
        f"{mode}_rows_per_s": round(median(each["rows_per_s"] for each in found[mode])) for mode in MODES
    }
    figures["cost_percent"] = round(100 * (1 - exactly["rows_per_s"] / at_least["rows_per_s"]), 2)
    figures["cpu_percent"] = round(100 * (exactly["cpu_seconds"] / at_least["cpu_seconds"] - 1), 2)
    for mode in MODES:
        figures[f"{mode}_runs"] = [
            [each[name] for name in ("seconds", *COMPARED, "checkpoints")] for each in found[mode]
        ]
    return figures


def measure(broker: str, options: argparse.Namespace) -> dict[str, Any]:
    name = f"in-{uuid.uuid4().hex[:8]}"
    rates: dict[str, float] = {}
    if options.rows is None:
        fill(broker, f"{name}-first", CALIBRATION_ROWS)
        for program in options.programs:
            rates[program] = one(broker, program, "at_least_once", f"{name}-first", CALIBRATION_ROWS)["rows_per_s"]
    outcome: dict[str, Any] = {}
    for program in options.programs:  # each has an input of its length: a stop in the middle of one would be no end
        rows = options.rows or math.ceil(rates[program] * options.seconds * WARM)
        source = f"{name}-{program}"
        fill(broker, source, rows)
        found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
        for number in range(options.rounds):
            for mode in MODES[:: 1 if number % 2 == 0 else -1]:
                found[mode].append(one(broker, program, mode, source, rows))
        admin.delete_topic(broker, source)
        outcome[program] = {"rows": rows, **summary(found)}
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="of each run, in place of --seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="that a run shall take")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--bound", type=float, help="percent")
    parser.add_argument("--broker", metavar="URL", help="kafka://HOST:PORT; default: our own")
    for name in ("--program", "--mode", "--input", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(asyncio.run(run(options))))
        return
    with running(options.broker) as broker:
        outcome = measure(broker, options)
    print(json.dumps({"benchmark": "exactly_once", "rounds": options.rounds, **outcome}))
    if options.bound is not None and any(
        outcome[program]["cost_percent"] > options.bound for program in options.programs
    ):
        sys.exit(1)


if __name__ == "__main__":
    main()
