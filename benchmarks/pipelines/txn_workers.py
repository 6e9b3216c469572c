"""The job of txn_windows.py in one process with two threads, in two workers, and in other engines with two processes.

    python benchmarks/pipelines/txn_workers.py --rows 5000000 --repeat 3 --peers bytewax,flink,ray

Card transactions in two files, one after the other in time -> amount > 10 -> count, sum and max per account and minute of event time, into
files; a checkpoint each second. `seconds` runs from the first batch that any process takes to the last windows out; the start of processes
is not in it. The windows of each run are compared with DuckDB's, row by row. The best of --repeat rounds, in which all take turns;
benchmarks/peers/txn_peers.py says what the peers do.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import txn_peers
from jvm import NotThere
from make_txns import write_txns
from txn_windows import QUERY, compare, noted_seconds

PROCESSES = 2
CHECKPOINT_MS = 1000
WARM_ROWS = 50_000
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


def measure(way: str, given: Path, answer: pa.Table) -> float:
    """Seconds of a run, whose windows are those of the answer. given: the folders of the input."""
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as name:
        folder = Path(name)
        for each in given.iterdir():
            (folder / each.name).symlink_to(each)
        if way in txn_peers.PEERS:
            seconds, source = txn_peers.run(way, folder, PROCESSES)
        else:
            workers = PROCESSES if way == "workers" else 1
            seconds = noted_seconds(folder / "in" / "*.ndjson", folder, PROCESSES, workers, CHECKPOINT_MS)
            source = f"read_parquet('{folder}/out.parquet')"
        columns = ", ".join(f"{name}::{kind} as {name}" for name, kind in WINDOWS.items())
        with duckdb.connect() as connection:
            compare(connection.sql(f"select {columns} from {source}").to_arrow_table(), answer)
    return seconds


def expected(folder: Path) -> pa.Table:
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
            for way in ways:
                seconds = measure(way, folder, answer)
                print(f"{way}: {seconds:.2f} s, {given.rows / seconds:,.0f} rows/s", file=sys.stderr, flush=True)
                best[way] = min(seconds, best.get(way, seconds))
    figures: dict[str, Any] = {
        way: {"seconds": round(seconds, 3), "rows_s": round(given.rows / seconds)} for way, seconds in best.items()
    }
    of_threads = round(best["workers"] / best["threads"], 3)
    print(json.dumps({"rows": given.rows, "windows": answer.num_rows, **figures, "of_threads": of_threads, **said}))


if __name__ == "__main__":
    main()
