"""Events of users in a Parquet file -> a login, three failures or more, no logout, a purchase, within five minutes -> who, when, how many.

    python benchmarks/pipelines/pattern.py --rows 10000000 --keys 10000

`seconds` runs from the first byte read to the last match out, in one thread with --threads 1: reading, order by event time, the
pattern. `operator_seconds` is the pattern alone, over the same rows in memory, in order, in batches of 65,536 with a watermark behind
each. The answer of both is checked against a matcher in plain Python that knows this pattern only.
"""

import argparse
import json
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

import sabot
from sabot import App, Sink, col
from sabot._cython.batch import Batch
from sabot.api.patterns import Pattern, pattern, step
from sabot.connectors.files import files
from sabot.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.operators.pattern import Pattern as PatternOperator

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


def run_job(path: Path, threads: int) -> tuple[float, pa.Table]:
    """The program as a user writes it."""
    schema = {"user": "int64", "kind": "string", "amount": "float64", "ts": "int64"}
    app, kept = App("pattern", parallelism=threads), Kept()
    stream = app.stream(files(path), schema=schema, time="ts", lateness="0s")
    stream.key_by("user").pattern(the_pattern(), **MEASURES).to(kept)
    began = time.perf_counter()
    app.main()
    return time.perf_counter() - began, pa.Table.from_batches(kept.batches)


def run_operator(events: pa.Table) -> tuple[float, pa.Table, dict[str, Any]]:
    """The operator alone; -> seconds, matches, its figures when most was in it."""
    data = events.append_column(TIME_COLUMN, events["ts"]).combine_chunks().to_batches()[0]
    operator = PatternOperator(["user"], the_pattern(), "past_last", list(MEASURES.items()))
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
    return seconds + time.perf_counter() - began, pa.Table.from_batches(found), figures


def twin(events: pa.Table) -> list[tuple[Any, ...]]:
    """The same by hand: per user the logins of the last five minutes, each with its failures."""
    asked = events.filter(pc.is_in(events["kind"], pa.array(["login", "fail", "logout", "buy"])))
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
                login[1] += 1
        elif kind == "logout":
            logins[user] = [login for login in mine if login[1] < 3]
        else:
            first = next((login for login in mine if login[1] >= 3), None)
            if first is not None:
                matches.append((user, first[0], ts, first[1], amount))
                mine.clear()
    return sorted(matches)


def answer(matches: pa.Table) -> list[tuple[Any, ...]]:
    times = [matches[name].cast("int64").to_pylist() for name in ("match_start", "match_end")]
    others = [matches[name].to_pylist() for name in ("user", "fails", "amount")]
    return sorted(zip(others[0], *times, *others[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--per-second", type=int, default=1_000, help="events a second of event time, of all users")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="runs; the best ones are shown")
    options = parser.parse_args()
    events = make_events(options.rows, options.keys, options.per_second)
    want = twin(events)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        pq.write_table(events, path)
        jobs = [run_job(path, options.threads) for _ in range(options.repeat)]
    alone = [run_operator(events) for _ in range(options.repeat)]
    for matches in [*(job[1] for job in jobs), *(each[1] for each in alone)]:
        if answer(matches) != want:
            print(f"{matches.num_rows} matches are not the {len(want)} of the twin", file=sys.stderr)
            sys.exit(1)
    seconds, operator_seconds = min(job[0] for job in jobs), min(each[0] for each in alone)
    result = {
        "rows": options.rows,
        "keys": options.keys,
        "threads": options.threads,
        "matches": len(want),
        "seconds": round(seconds, 4),
        "rows_per_s": round(options.rows / seconds),
        "operator_seconds": round(operator_seconds, 4),
        "operator_rows_per_s": round(options.rows / operator_seconds),
        "most_partial_matches": alone[0][2]["partial_matches"],
        "state_bytes": alone[0][2]["bytes"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
