"""Two streams of rows, joined by key: within an interval of event time, as of a time, and without one (regular; left with updates).

    python benchmarks/pipelines/joins.py --rows 5000000 --threads 2 --repeat 3 --peers all --data DIR

    left:  key, ts, x        right: key, ts, y        as many rows of each, a fifth as many keys; Parquet files (--data keeps them)

    interval   right.ts within ± a tenth of the files' time of left.ts     inner          one pair a row of the left
    asof       the right's last row at or before left.ts                   left
    regular    all pairs of equal keys                                     inner          five pairs a row
    left       the same, of a key's rows that have no partner too          left: changes

Event time rises 7 ms a row, and rows are up to 2 s out of order; 5 s of lateness are given, so that no row is late. `seconds` runs from
the first byte read to the last row in the sink, which adds them up: how many, sums of x, y and x * y. DuckDB's answer must be the same;
so must be that of each peer:

    duckdb, polars   the same files as one batch, with as many threads
    flink            SQL in one JVM (benchmarks/peers/flink), parallelism 1 and 2, state on the heap, objects reused
    pathway          its static mode, the same files, in a virtual environment of its own (.venv-peers/)

The best of --repeat rounds, in each of which all take turns. cpu_seconds: of the whole process, while the timed part ran.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sabot import App, Batch, Sink
from sabot.connectors.files import files

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import joins_pathway
from flink import flink_peer
from jvm import NotThere

JOINS = ("interval", "asof", "regular", "left")
PEERS = ("duckdb", "polars", "flink", "pathway")
MS_A_ROW = 7
ROWS_A_KEY = 5
START_MS = 1_700_000_000_000
DISORDER_MS = 2_000
LATENESS = "5s"
MOST = 100_000  # of x and y; their products add up within 64 bits
GROUP_ROWS = 1 << 16

Answer = tuple[int, int, int, int]  # rows, sum of x, of y, of x * y


def half_ms(rows: int) -> int:
    """How far apart the rows of a pair may be, in the interval join."""
    return rows * MS_A_ROW // 10


def make_side(rows: int, seed: int, value: str, odd: int) -> pa.Table:
    """One stream. No two rows, of both, have the same time."""
    random = np.random.default_rng(seed)
    came = np.argsort(np.arange(rows) + random.integers(0, DISORDER_MS // MS_A_ROW, rows, endpoint=True), kind="stable")
    return pa.table(
        {
            "key": random.integers(0, max(rows // ROWS_A_KEY, 1), rows),
            "ts": START_MS + came * MS_A_ROW + odd,
            value: random.integers(0, MOST, rows),
        }
    )


def make_files(folder: Path, rows: int) -> tuple[Path, Path]:
    """-> the two files; those that are there are taken."""
    paths = folder / f"left-{rows}.parquet", folder / f"right-{rows}.parquet"
    for odd, (path, value) in enumerate(zip(paths, ("x", "y"), strict=True)):
        if not path.exists():
            pq.write_table(make_side(rows, 7 + odd, value, 3 * odd), path, row_group_size=GROUP_ROWS)
    return paths


class Totals(Sink):
    """Adds up what comes: rows, two columns and their product; of changes it takes off what is taken back."""

    def __init__(self, x: str = "x", y: str = "y") -> None:
        self.name = "totals"
        self.sums = [0, 0, 0, 0]
        self._columns = x, y

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        data = batch.data
        if "op" in data.schema.names:
            op = data.column("op")
            taken = pc.is_in(op, pa.array(["delete", "update_before"]))
            if pc.any(taken).as_py():
                self._add(data.filter(taken), -1)
                data = data.filter(pc.invert(taken))
        self._add(data, 1)

    def _add(self, data: pa.RecordBatch, sign: int) -> None:
        x, y = (data.column(name) for name in self._columns)
        sums = [pc.sum(each).as_py() or 0 for each in (x, y, pc.multiply(x, y))]
        for place, value in enumerate([data.num_rows, *sums]):
            self.sums[place] += sign * value

    @property
    def answer(self) -> Answer:
        return self.sums[0], self.sums[1], self.sums[2], self.sums[3]

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def run(join: str, left: Path, right: Path, rows: int, threads: int) -> tuple[dict[str, float], Answer]:
    """-> (seconds, cpu_seconds; the answer)."""
    app, timed = App("joins", parallelism=threads), join in ("interval", "asof")
    columns = {"key": "int64", **({"ts": "int64"} if timed else {})}
    times = {"time": "ts", "lateness": LATENESS} if timed else {}
    one = app.stream(files(left), schema=columns | {"x": "int64"}, **times)
    other = app.stream(files(right), schema=columns | {"y": "int64"}, **times)
    half = half_ms(rows) / 1000
    totals = Totals()
    if join == "interval":
        joined = one.join(other, on="key", between=(-half, half)).select("x", "y")
    elif join == "asof":
        joined = one.join_asof(other, on="key").select("x", "y")
    elif join == "regular":
        joined = one.join(other, on="key").select("x", "y")
    else:
        joined = one.join(other, on="key", how="left").select("x", "y").changelog()
    joined.to(totals)
    began, cpu = time.perf_counter(), time.process_time()
    app.main()
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return taken, totals.answer


QUERIES = {
    "interval": "from l join r on l.key = r.key and r.ts between l.ts - {half} and l.ts + {half}",
    "asof": "from l asof left join r on l.key = r.key and l.ts >= r.ts",
    "regular": "from l join r on l.key = r.key",
    "left": "from l left join r on l.key = r.key",
}


def run_duckdb(join: str, left: Path, right: Path, rows: int, threads: int) -> tuple[dict[str, float], Answer]:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"set threads={threads}")
        query = f"""
            with l as (select key, ts, x from read_parquet('{left}')), r as (select key, ts, y from read_parquet('{right}'))
            select count(*), sum(x)::bigint, coalesce(sum(y), 0)::bigint, coalesce(sum(x * y), 0)::bigint
            {QUERIES[join].format(half=half_ms(rows))}
        """
        began, cpu = time.perf_counter(), time.process_time()
        answer = connection.execute(query).fetchone()
        taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    assert answer is not None
    return taken, answer


def run_polars(join: str, left: Path, right: Path, rows: int, threads: int) -> tuple[dict[str, float], Answer]:
    import polars as pl

    assert pl.thread_pool_size() == threads, "polars has been imported before"
    one, other = pl.scan_parquet(left), pl.scan_parquet(right)
    half = half_ms(rows)
    if join == "interval":
        apart = pl.col("ts_right") - pl.col("ts")
        joined = one.join(other, on="key").filter(apart.is_between(-half, half))
    elif join == "asof":
        joined = one.sort("ts").join_asof(other.sort("ts"), on="ts", by="key", check_sortedness=False)
    else:
        joined = one.join(other, on="key", how="inner" if join == "regular" else "left")
    sums = joined.select(pl.len(), pl.sum("x"), pl.sum("y"), z=(pl.col("x") * pl.col("y")).sum())
    began, cpu = time.perf_counter(), time.process_time()
    answer = sums.collect(engine="streaming").row(0)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}, answer


def peers_of(names: Sequence[str], threads: int, folder: Path, rows: int) -> dict[str, Callable[..., Any]]:
    """Name -> what runs it; those that are not there are left out, with a word."""
    known: dict[str, Callable[..., Any]] = {}
    if "duckdb" in names:
        known["duckdb"] = run_duckdb
    if "polars" in names:
        try:
            import polars
        except ModuleNotFoundError:
            print("polars is not installed: left out", file=sys.stderr)
        else:
            print(f"polars {polars.__version__}", file=sys.stderr)
            known["polars"] = run_polars
    if "flink" in names:
        try:
            flink_peer.prepare()
        except NotThere as reason:
            print(f"flink: left out: {reason}", file=sys.stderr)
        else:
            for parallelism in (1, 2):
                known[f"flink-{parallelism}"] = flink_runner(folder, parallelism)
    if "pathway" in names:
        try:
            joins_pathway.prepare()
        except NotThere as reason:
            print(f"pathway: left out: {reason}", file=sys.stderr)
        else:
            known["pathway"] = run_pathway
    return known


def flink_runner(folder: Path, parallelism: int) -> Callable[..., Any]:
    def run_flink(join: str, left: Path, right: Path, rows: int, threads: int) -> tuple[dict[str, float], Answer]:
        raw = [flink_peer.raw(path, folder / f"{path.stem}.raw") for path in (left, right)]
        figures = flink_peer.run(join, *raw, half_ms(rows), parallelism=parallelism)
        return {name: figures[name] for name in ("seconds", "cpu_seconds")}, tuple(figures["sums"])  # type: ignore[return-value]

    return run_flink


def run_pathway(join: str, left: Path, right: Path, rows: int, threads: int) -> tuple[dict[str, float], Answer]:
    figures = joins_pathway.run(join, left, right, half_ms(rows), threads)
    return {name: figures[name] for name in ("seconds", "cpu_seconds")}, tuple(figures["sums"])  # type: ignore[return-value]


def compare(join: str, who: str, answer: Sequence[int], truth: Sequence[int]) -> None:
    assert list(answer) == list(truth), (
        f"{join}: {who} has {list(answer)}, DuckDB {list(truth)} (rows, sums of x, y, x * y)"
    )


def measure(join: str, paths: tuple[Path, Path], rows: int, threads: int, repeat: int, peers: Any) -> dict[str, Any]:
    """-> of each its best run: seconds, cpu_seconds, rows_per_s, rows_per_cpu_s (rows of both inputs)."""
    truth = run_duckdb(join, *paths, rows, threads)[1]
    best: dict[str, dict[str, float]] = {}
    gave_up: dict[str, Any] = {}
    for _ in range(repeat):
        for who, runs in {"sabot": run, **peers}.items():
            if who in gave_up:
                continue
            try:
                taken, answer = runs(join, *paths, rows, threads)
            except subprocess.TimeoutExpired as late:
                gave_up[who] = {"stopped_after_s": late.timeout}
                continue
            compare(join, who, answer, truth)
            if who not in best or taken["seconds"] < best[who]["seconds"]:
                best[who] = taken
    figures: dict[str, Any] = {"result_rows": truth[0], **gave_up}
    return figures | figures_of(best, 2 * rows)


def figures_of(best: dict[str, dict[str, float]], rows: int) -> dict[str, Any]:
    """Who -> seconds, rates, and how many times of its seconds Sabot takes."""
    figures: dict[str, Any] = {}
    for who, taken in best.items():
        figures[who] = {name: round(value, 3) for name, value in taken.items()}
        figures[who] |= {
            f"rows_per_{name.removesuffix('seconds')}s": round(rows / max(value, 1e-9)) for name, value in taken.items()
        }
        if who != "sabot":
            figures[who]["sabot_takes"] = round(best["sabot"]["seconds"] / taken["seconds"], 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each stream")
    parser.add_argument("--threads", type=int, default=2, help="of Sabot (its parallelism), DuckDB, polars and Pathway")
    parser.add_argument("--joins", default="all", help=f"all, or some of {','.join(JOINS)}")
    parser.add_argument("--peers", default="duckdb", help=f"none, all, or some of {','.join(PEERS)}")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the best one is shown")
    parser.add_argument("--data", type=Path, help="where the files are made, or are; default: a temporary folder")
    options = parser.parse_args()
    joins = JOINS if options.joins == "all" else options.joins.split(",")
    names = PEERS if options.peers == "all" else () if options.peers == "none" else options.peers.split(",")
    for given, among in ((joins, JOINS), (names, PEERS)):
        if not set(given) <= set(among):
            parser.error(f"{','.join(given)}: known are {','.join(among)}")
    os.environ["POLARS_MAX_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = make_files(folder, options.rows)
        peers = peers_of(names, options.threads, folder, options.rows)
        load = os.getloadavg()[0]
        results = {}
        for join in joins:
            results[join] = measure(join, paths, options.rows, options.threads, options.repeat, peers)
            print(join, json.dumps(results[join]), file=sys.stderr)
    result = {
        "benchmark": "joins",
        "rows": options.rows,
        "keys": max(options.rows // ROWS_A_KEY, 1),
        "threads": options.threads,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        **results,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
