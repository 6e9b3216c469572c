"""Events of users in a Parquet file -> those that follow a pattern, within five minutes -> who, when, how much.

    python benchmarks/pipelines/pattern.py --rows 10000000 --keys 10000 --repeat 3 --peers flink

    fails   a login, three failures or more, no logout, a purchase
    steps   a login, a failure, a purchase: also in Flink's CEP (benchmarks/peers/flink), parallelism 1 and 2

Between the rows of a match others may stand, and no row is in two matches of a user. `seconds` runs from the first byte read to the
last match out, in one thread with --threads 1: reading, order by event time, the pattern. `operator_seconds` is the pattern alone, over the
same rows in memory, in order, in batches of 65,536 with a watermark behind each. The answers are checked against matchers in plain Python
that know these patterns only; Flink's by its number of matches, and sums of users, of the last 16 bits of the purchases' times, and of
their products.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from flink import flink_peer
from jvm import NotThere

import sabot
from sabot import App, Sink, col
from sabot._cython.arrow.batch import Batch
from sabot.api.patterns import Pattern, pattern, step
from sabot.connectors.files import files
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.engine.operators.patterns.match import Pattern as PatternOperator

KINDS = {"view": 0.40, "click": 0.25, "search": 0.15, "login": 0.08, "logout": 0.06, "fail": 0.05, "buy": 0.01}
MINUTES = 5
BATCH_ROWS = 65_536


def the_pattern() -> Pattern:
    return (
        pattern("login", col("kind") == "login")
        .then("fail", col("kind") == "fail", times=(3, None))
        .without(col("kind") == "logout")
        .then("buy", col("kind") == "buy")
        .within(f"{MINUTES}m")
    )


def three_steps() -> Pattern:
    steps = pattern("login", col("kind") == "login").then("fail", col("kind") == "fail")
    return steps.then("buy", col("kind") == "buy").within(f"{MINUTES}m")


PATTERNS = {"fails": the_pattern, "steps": three_steps}
MEASURES = {"fails": step("fail").count(), "amount": step("buy").last("amount")}


def make_events(rows: int, keys: int, per_second: int) -> pa.Table:
    """`per_second` events a second of all users together, in order of time."""
    rng = np.random.default_rng(5)
    kinds = rng.choice(len(KINDS), rows, p=list(KINDS.values()))
    return pa.table(
        {
            "user": rng.integers(0, keys, rows),
            "kind": pa.array(list(KINDS)).take(pa.array(kinds)),
            "amount": rng.integers(1, 100_000, rows) / 100,
            "ts": np.arange(rows) * 1000 // per_second,
        }
    )


class Kept(Sink):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.name = "kept"
        self.batches: list[pa.RecordBatch] = []

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: sabot.Batch) -> None:
        self.batches.append(batch.data)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def run_app(path: Path, threads: int, pattern: Pattern) -> tuple[float, float, list[pa.RecordBatch]]:
    """The program as a user writes it; -> seconds, those of the processors, matches."""
    schema = {"user": "int64", "kind": "string", "amount": "float64", "ts": "int64"}
    app, kept = App("pattern", parallelism=threads), Kept()
    stream = app.stream(files(path), schema=schema, time="ts", lateness="0s")
    stream.key_by("user").pattern(pattern, **MEASURES).to(kept)
    began, cpu = time.perf_counter(), time.process_time()
    app.main()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return seconds, cpu_seconds, kept.batches


def run_operator(events: pa.Table, pattern: Pattern) -> tuple[float, list[pa.RecordBatch], dict[str, Any]]:
    """The operator alone; -> seconds, matches, its figures when most was in it."""
    data = events.append_column(TIME_COLUMN, events["ts"]).combine_chunks().to_batches()[0]
    operator = PatternOperator(["user"], pattern, "past_last", list(MEASURES.items()))
    found: list[pa.RecordBatch] = []
    operator.emit = lambda batch: found.append(batch.taken())
    operator.open(OperatorContext(data.schema))
    figures: dict[str, Any] = {"partial_matches": -1}
    seconds = 0.0
    for start in range(0, data.num_rows, BATCH_ROWS):
        rows = data.slice(start, BATCH_ROWS)
        until = rows.column(TIME_COLUMN)[-1].as_py()
        began = time.perf_counter()
        operator.process(Batch(rows))
        operator.advance(until)
        seconds += time.perf_counter() - began
        if len(operator._table) > figures["partial_matches"]:
            figures = operator.statistics()
    began = time.perf_counter()
    operator.advance(END_OF_TIME)
    return seconds + time.perf_counter() - began, found, figures


def twin(events: pa.Table, name: str) -> list[tuple[Any, ...]]:
    """The same by hand: per user the logins of the last five minutes, each with its failures."""
    asked = events.filter(pc.is_in(events["kind"], pa.array(["login", "fail", "logout", "buy"])))
    least, most = (3, len(events)) if name == "fails" else (1, 1)
    logins: defaultdict[int, list[list[int]]] = defaultdict(list)
    matches = []
    columns = [asked[name].to_pylist() for name in ("user", "kind", "amount", "ts")]
    for user, kind, amount, ts in zip(*columns, strict=True):
        mine = logins[user]
        while mine and ts - mine[0][0] > MINUTES * 60_000:
            mine.pop(0)
        if kind == "login":
            mine.append([ts, 0])
        elif kind == "fail":
            for login in mine:
                login[1] = min(login[1] + 1, most)
        elif kind == "logout":
            if name == "fails":
                logins[user] = [login for login in mine if login[1] < 3]
        else:
            first = next((login for login in mine if login[1] >= least), None)
            if first is not None:
                matches.append((user, first[0], ts, first[1], amount))
                mine.clear()
    return sorted(matches)


def answer(batches: list[pa.RecordBatch]) -> list[tuple[Any, ...]]:
    if not batches:
        return []
    matches = pa.Table.from_batches(batches)
    times = [matches[name].cast("int64").to_pylist() for name in ("match_start", "match_end")]
    others = [matches[name].to_pylist() for name in ("user", "fails", "amount")]
    return sorted(zip(others[0], *times, *others[1:], strict=True))


def run_flink(events: pa.Table, folder: Path, want: list[tuple[Any, ...]]) -> dict[str, Any]:
    """What Flink takes for "steps", by parallelism; nothing where it is not there."""
    try:
        flink_peer.prepare()
    except NotThere as reason:
        print(f"flink: left out: {reason}", file=sys.stderr)
        return {}
    codes = {"login": 0, "fail": 1, "buy": 2}
    kinds = np.array([codes.get(kind, 3) for kind in KINDS])
    numbers = pc.index_in(events["kind"], pa.array(list(KINDS))).to_numpy()
    path = folder / "events.raw"
    np.column_stack([events["user"].to_numpy(), events["ts"].to_numpy(), kinds[numbers]]).astype("<i8").tofile(path)
    low = [(user, end & 0xFFFF) for user, _, end, _, _ in want]
    sums = [len(low), sum(u for u, _ in low), sum(t for _, t in low), sum(u * t for u, t in low)]
    figures = {}
    for parallelism in (1, 2):
        taken = flink_peer.run("pattern", path, MINUTES * 60_000, parallelism=parallelism)
        assert taken["sums"] == sums, (
            f"flink has {taken['sums']}, the twin {sums} (matches, sums of users, times, products)"
        )
        figures[f"flink-{parallelism}"] = rates(len(events), taken["seconds"], taken["cpu_seconds"])
    return figures


def rates(rows: int, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "rows_per_s": round(rows / seconds),
        "rows_per_cpu_s": round(rows / max(cpu_seconds, 1e-9)),
    }


def measure(
    name: str, events: pa.Table, path: Path, threads: int, repeat: int
) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """-> figures, the matches."""
    want = twin(events, name)
    runs_of_app = [run_app(path, threads, PATTERNS[name]()) for _ in range(repeat)]
    alone = [run_operator(events, PATTERNS[name]()) for _ in range(repeat)]
    for matches in [*(run[2] for run in runs_of_app), *(each[1] for each in alone)]:
        if answer(matches) != want:
            count = sum(batch.num_rows for batch in matches)
            print(f"{name}: {count} matches are not the {len(want)} of the twin", file=sys.stderr)
            sys.exit(1)
    best, operator_seconds = min(runs_of_app, key=lambda run: run[0]), min(each[0] for each in alone)
    figures = {
        "matches": len(want),
        **rates(len(events), *best[:2]),
        "operator_seconds": round(operator_seconds, 4),
        "operator_rows_per_s": round(len(events) / operator_seconds),
        "most_partial_matches": alone[0][2]["partial_matches"],
        "state_bytes": alone[0][2]["bytes"],
    }
    return figures, want


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=10_000, help="at most a hundredth of the rows")
    parser.add_argument("--per-second", type=int, default=1_000, help="events a second of event time, of all users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="runs; the best ones are shown")
    parser.add_argument("--peers", default="none", choices=["none", "all", "flink"])
    options = parser.parse_args()
    keys = max(min(options.keys, options.rows // 100), 1)
    events = make_events(options.rows, keys, options.per_second)
    result: dict[str, Any] = {
        "benchmark": "pattern",
        "rows": options.rows,
        "keys": keys,
        "threads": options.threads,
    }
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        pq.write_table(events, path)
        for name in PATTERNS:
            result[name], want = measure(name, events, path, options.threads, options.repeat)
        if options.peers != "none":
            result["steps"] |= run_flink(events, Path(folder), want)
    result["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
