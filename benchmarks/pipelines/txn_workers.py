"""The program of txn_windows.py in one process with two threads, in two workers, and in other engines with two processes.

    python benchmarks/pipelines/txn_workers.py --rows 5000000 --repeat 3 --peers bytewax,flink,ray

Card transactions in two files, one after the other in time -> amount > 10 -> count, sum and max per account and minute of event time, into
files; a checkpoint each second. `seconds` runs from the first batch that any process takes to the last windows out; the start of processes
is not in it. The windows of each run are compared with DuckDB's, row by row. The best of --repeat rounds, in which all take turns;
benchmarks/peers/txn_peers.py says what the peers do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

import sabot
from sabot import App, col, tumbling
from sabot.connectors.files import files

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import txn_peers
from jvm import NotThere
from make_txns import write_txns
from txn_windows import QUERY, SCHEMA, compare

HERE = Path(__file__).parent
PROCESSES = 2
WARM_ROWS = 50_000
READ = {"account": "string", "amount": "float64", "ts": "int64"}
WRITTEN = {"account": "string", "window_start": "int64", "n": "int64", "total": "float64", "biggest": "float64"}
WINDOWS = {"account": "VARCHAR", "window_start": "BIGINT", "n": "BIGINT", "total": "DOUBLE", "biggest": "DOUBLE"}


def write_files(folder: Path, rows: int, parts: int) -> None:
    """Transactions of make_txns.py: those of a file are later than those of the file before."""
    folder.mkdir(parents=True)
    write_txns(folder / "0.ndjson", rows, 7)
    lines = (folder / "0.ndjson").read_bytes().splitlines(keepends=True)
    for part in range(parts):
        (folder / f"{part}.ndjson").write_bytes(
            b"".join(lines[len(lines) * part // parts : len(lines) * (part + 1) // parts])
        )


def noted(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Notes that this process has a batch now."""
    with open(Path(os.environ["TXN_FOLDER"], f"{os.getpid()}.span"), "a", encoding="ascii") as file:
        file.write(f"{time.time()}\n")
    return batch


def build(folder: Path) -> App:
    app = App(
        "txn_workers",
        parallelism=PROCESSES,
        checkpoint_dir=str(folder / "checkpoints"),
        checkpoint_interval=1.0,
    )
    txns = app.stream(files(f"{folder}/in/*.ndjson"), schema=SCHEMA, time="ts", lateness="5s")
    minutes = (
        txns.select("account", "amount", "ts")
        .map_batches(noted, schema=READ)  # said, so that nothing is asked of the function before it runs
        .filter(col("amount") > 10)
        .key_by("account")
        .window(tumbling("1m"))
        .aggregate(n=sabot.count(), total=sabot.sum("amount"), biggest=sabot.max("amount"))
    )
    start = col("window_start").cast("int64").alias("window_start")
    found = minutes.select("account", start, "n", "total", "biggest").map_batches(noted, schema=WRITTEN)
    found.to(sabot.NdjsonSink(str(folder / "out.ndjson"), overwrite=True))
    return app


def run_sabot(folder: Path, workers: int) -> tuple[float, str]:
    """Seconds of one run of `sabot run`, and what its windows are in, for DuckDB."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TXN_FOLDER": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", "-m", "sabot", "run", "txn_workers:app", "--loglevel", "warning"]
    if workers > 1:
        command += ["--workers", str(workers)]
    subprocess.run(command, env=environment, check=True, cwd=folder)
    times = [float(line) for file in folder.glob("*.span") for line in file.read_text("ascii").splitlines()]
    return max(times) - min(times), f"read_json('{folder}/out.ndjson')"


def measure(way: str, given: Path, answer: pa.Table) -> float:
    """Seconds of a run, whose windows are those of the answer. given: the folders of the input."""
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        folder = Path(name)
        for each in given.iterdir():
            (folder / each.name).symlink_to(each)
        if way in txn_peers.PEERS:
            seconds, source = txn_peers.run(way, folder, PROCESSES)
        else:
            seconds, source = run_sabot(folder, PROCESSES if way == "workers" else 1)
        columns = ", ".join(f"{name}::{kind} as {name}" for name, kind in WINDOWS.items())
        import duckdb

        with duckdb.connect() as connection:
            compare(connection.sql(f"select {columns} from {source}").to_arrow_table(), answer)
    return seconds


def expected(folder: Path) -> pa.Table:
    import duckdb  # not in the workers, which import this file too

    with duckdb.connect() as connection:
        return connection.sql(QUERY.format(path=folder / "in" / "*.ndjson")).to_arrow_table()


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--repeat", type=int, default=1)
    options.add_argument("--peers", default="", help=", ".join(txn_peers.PEERS))
    given = options.parse_args()
    ways, said, best = ["threads", "workers"], {}, dict[str, float]()
    for peer in filter(None, given.peers.split(",")):
        try:
            txn_peers.prepare(peer)
            ways.append(peer)
        except NotThere as reason:
            said[peer] = str(reason)
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        folder = Path(name)
        write_files(folder / "in", given.rows, PROCESSES)
        write_files(folder / "warm", WARM_ROWS, 1)
        answer = expected(folder)
        for _ in range(given.repeat):
            for way in ways.copy():
                try:
                    seconds = measure(way, folder, answer)
                except txn_peers.Failed as error:
                    said[way] = str(error)
                    ways.remove(way)
                    continue
                print(f"{way}: {seconds:.2f} s, {given.rows / seconds:,.0f} rows/s", file=sys.stderr, flush=True)
                best[way] = min(seconds, best.get(way, seconds))
    figures: dict[str, Any] = {
        way: {"seconds": round(seconds, 3), "rows_s": round(given.rows / seconds)} for way, seconds in best.items()
    }
    of_threads = round(best["workers"] / best["threads"], 3)
    print(json.dumps({"rows": given.rows, "windows": answer.num_rows, **figures, "of_threads": of_threads, **said}))


if __name__ == "__main__":
    main()
elif "TXN_FOLDER" in os.environ:  # `sabot run txn_workers:app` imports this file
    app = build(Path(os.environ["TXN_FOLDER"]))
