"""The first ten rows of each key, kept up to date, and the same of counts that change.

    python benchmarks/pipelines/top_n.py --rows 5000000 --threads 2 --repeat 3 --peers all --data DIR

    top_n           key, value -> the ten greatest values of each key; keys a fiftieth of the rows
    top_n_updates   key, item -> how often each item came -> the ten most frequent of each key: each count that rises is an
                    update of the one before; items Zipf 1.1 over 1,000, keys a 5,000th of the rows

`seconds` runs from the first byte read to the last change in the sink, which adds up the changes: rows, sums of key and value, and
of their product, must be DuckDB's, which runs the same as one batch. Flink (SQL, ROW_NUMBER() <= 10; benchmarks/peers/flink): parallelism 1
and 2; counts with mini-batches of 20,000 rows. The best of --repeat rounds, in each of which all take turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from flink import flink_peer
from joins import GROUP_ROWS, MOST, START_MS, Answer, Totals, compare, figures_of
from jvm import NotThere

import sabot
from sabot import App
from sabot.connectors.files import files

PROGRAMS = ("top_n", "top_n_updates")
PEERS = ("duckdb", "flink")
N = 10
ROWS_A_KEY = {"top_n": 50, "top_n_updates": 5_000}
ITEMS, ZIPF = 1_000, 1.1

QUERIES = {
    "top_n": "select key, value as n from t qualify row_number() over (partition by key order by value desc) <= {n}",
    "top_n_updates": """
        select key, n from (select key, value, count(*) as n from t group by key, value)
        qualify row_number() over (partition by key order by n desc) <= {n}
    """,
}


def make_file(folder: Path, program: str, rows: int) -> Path:
    """One that is there is taken."""
    path = folder / f"{program}-{rows}.parquet"
    if path.exists():
        return path
    random = np.random.default_rng(11)
    if program == "top_n":
        value = random.integers(0, MOST, rows)
    else:
        shares = np.cumsum(np.arange(1, ITEMS + 1) ** -ZIPF)
        value = np.searchsorted(shares / shares[-1], random.random(rows), side="right")
    key = random.integers(0, max(rows // ROWS_A_KEY[program], 1), rows)
    table = pa.table({"key": key, "ts": START_MS + np.arange(rows), "value": value})
    pq.write_table(table, path, row_group_size=GROUP_ROWS)
    return path


def run(program: str, path: Path, threads: int) -> tuple[dict[str, float], Answer]:
    """-> (seconds, cpu_seconds; the answer)."""
    app = App("top_n", parallelism=threads)
    rows = app.stream(files(path), schema={"key": "int64", "value": "int64"})
    if program == "top_n":
        totals, by = Totals("key", "value"), "value"
    else:
        totals, by = Totals("key", "n"), "n"
        rows = rows.group_by("key", "value").aggregate(n=sabot.count())
    rows.key_by("key").top_n(N, by=by).changelog().to(totals)
    began, cpu = time.perf_counter(), time.process_time()
    app.main()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}, totals.answer


def run_duckdb(program: str, path: Path, threads: int) -> tuple[dict[str, float], Answer]:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"set threads={threads}")
        query = f"""
            with t as (select * from read_parquet('{path}')), best as ({QUERIES[program].format(n=N)})
            select count(*), sum(key)::bigint, sum(n)::bigint, sum(key * n)::bigint from best
        """
        began, cpu = time.perf_counter(), time.process_time()
        answer = connection.execute(query).fetchone()
        taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    assert answer is not None
    return taken, answer


def flink_runner(folder: Path, parallelism: int) -> Callable[..., Any]:
    def run_flink(program: str, path: Path, threads: int) -> tuple[dict[str, float], Answer]:
        raw = flink_peer.raw(path, folder / f"{path.stem}.raw")
        figures = flink_peer.run(program, raw, N, parallelism=parallelism)
        return {name: figures[name] for name in ("seconds", "cpu_seconds")}, tuple(figures["sums"])  # type: ignore[return-value]

    return run_flink


def measure(program: str, path: Path, rows: int, threads: int, repeat: int, peers: dict[str, Any]) -> dict[str, Any]:
    truth = run_duckdb(program, path, threads)[1]
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeat):
        for who, runs in {"sabot": run, **peers}.items():
            taken, answer = runs(program, path, threads)
            compare(program, who, answer, truth)
            if who not in best or taken["seconds"] < best[who]["seconds"]:
                best[who] = taken
    return {"result_rows": truth[0], **figures_of(best, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2, help="of Sabot (its parallelism) and DuckDB")
    parser.add_argument("--peers", default="duckdb", help=f"none, all, or some of {','.join(PEERS)}")
    parser.add_argument("--repeat", type=int, default=1, help="runs; the best one is shown")
    parser.add_argument("--data", type=Path, help="where the files are made, or are; default: a temporary folder")
    options = parser.parse_args()
    names = PEERS if options.peers == "all" else () if options.peers == "none" else options.peers.split(",")
    if not set(names) <= set(PEERS):
        parser.error(f"--peers {options.peers}: known are {','.join(PEERS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        peers: dict[str, Any] = {"duckdb": run_duckdb} if "duckdb" in names else {}
        if "flink" in names:
            try:
                flink_peer.prepare()
            except NotThere as reason:
                print(f"flink: left out: {reason}", file=sys.stderr)
            else:
                peers |= {f"flink-{each}": flink_runner(folder, each) for each in (1, 2)}
        load = os.getloadavg()[0]
        results = {}
        for program in PROGRAMS:
            path = make_file(folder, program, options.rows)
            results[program] = measure(program, path, options.rows, options.threads, options.repeat, peers)
            print(program, json.dumps(results[program]), file=sys.stderr)
    result = {
        "benchmark": "top_n",
        "rows": options.rows,
        "n": N,
        "threads": options.threads,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        **results,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
