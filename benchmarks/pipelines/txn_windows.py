"""Card transactions in a file -> amount > 10 -> count, sum and max per account and minute of event time, checkpointed.

    python benchmarks/pipelines/txn_windows.py --input txns.ndjson --threads 2 --checkpoint-ms 100 --out minutes.parquet --peer duckdb

The file comes from make_txns.py. `seconds` runs from the first byte read to the last window out (written, with --out). The answer
is checked: with --peer duckdb against DuckDB's, row by row, which runs the same query over the same file as one batch.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import sabot
from sabot import App, Sink, col, tumbling
from sabot.connectors.files import ParquetSink, files

sys.path.insert(0, str(Path(__file__).parent))
from make_txns import write_txns

SCHEMA = {
    "txn_id": "int64",
    "account": "string",
    "amount": "float64",
    "ts": "int64",
    "merchant": "string",
    "country": "string",
    "is_online": "bool",
}
QUERY = """
    select account, ts // 60000 * 60000 as window_start, count(*) as n, sum(amount) as total, max(amount) as biggest
    from read_json('{path}', format='newline_delimited', columns={{txn_id: 'BIGINT', account: 'VARCHAR', amount: 'DOUBLE',
                   ts: 'BIGINT', merchant: 'VARCHAR', country: 'VARCHAR', is_online: 'BOOLEAN'}})
    where amount > 10 group by all
"""


class Totals(Sink):
    """Adds up what comes; keeps it all where the answer is compared."""

    def __init__(self, keep: bool) -> None:
        self.name = "totals"
        self.windows = self.n = 0
        self.total = self.biggest = 0.0
        self.kept: list[pa.RecordBatch] = []
        self._keep = keep

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: sabot.Batch) -> None:
        data = batch.data
        self.windows += data.num_rows
        self.n += pc.sum(data.column("n")).as_py()
        self.total += pc.sum(data.column("total")).as_py()
        self.biggest = max(self.biggest, pc.max(data.column("biggest")).as_py())
        if self._keep:
            self.kept.append(data)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def run(path: Path, threads: int, checkpoint_ms: int, out: Path | None, keep: bool, state: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        app = App(
            "txn_windows",
            state="memory" if state == "memory" else f"{folder}/state",
            checkpoint_dir=f"{folder}/checkpoints" if checkpoint_ms else None,
            checkpoint_interval=checkpoint_ms / 1000 if checkpoint_ms else None,
            parallelism=threads,
        )
        totals = Totals(keep)
        minutes = (
            app.stream(files(path), schema=SCHEMA, time="ts", lateness="5s")
            .filter(col("amount") > 10)
            .key_by("account")
            .window(tumbling("1m"))
            .aggregate(n=sabot.count(), total=sabot.sum("amount"), biggest=sabot.max("amount"))
        )
        minutes.select("n", "total", "biggest", *(["account", "window_start"] if keep else [])).to(totals)
        if out is not None:
            start = col("window_start").cast("int64").alias("window_start")
            minutes.select("account", start, "n", "total", "biggest").to(ParquetSink(out, overwrite=True))
        began = time.perf_counter()
        app.main()
        seconds = time.perf_counter() - began
        rows = sum(task["input"].get("rows_in", 0) for task in app.statistics()["streams"].values())
        checkpoints = app.statistics()["checkpoints"]["completed"]
    return {
        "rows": rows,
        "seconds": round(seconds, 4),
        "rows_per_s": round(rows / seconds),
        "windows": totals.windows,
        "n": totals.n,
        "total": round(totals.total, 2),
        "biggest": totals.biggest,
        "checkpoints": checkpoints,
        "_totals": totals,
    }


def duckdb_answer(path: Path, threads: int) -> tuple[float, pa.Table]:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"set threads={threads}")
    began = time.perf_counter()
    table = connection.execute(QUERY.format(path=path)).to_arrow_table()
    return time.perf_counter() - began, table


def compare(ours: pa.Table, theirs: pa.Table) -> None:
    """Row by row; sums of floats may differ in the last digits by the order of addition."""
    key = [("account", "ascending"), ("window_start", "ascending")]
    columns = ["account", "window_start", "n", "total", "biggest"]
    ours, theirs = ours.select(columns).sort_by(key), theirs.select(columns).sort_by(key)
    assert ours.num_rows == theirs.num_rows, f"{ours.num_rows} windows, DuckDB has {theirs.num_rows}"
    for name in ("account", "window_start", "n", "biggest"):
        assert pc.all(pc.equal(ours[name], theirs[name])).as_py(), f"column {name} differs"
    assert pc.max(pc.abs(pc.subtract(ours["total"], theirs["total"]))).as_py() < 1e-6, "column total differs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, help="NDJSON; default: made, with --rows")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the file that is made without --input")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-ms", type=int, default=100, help="0: none")
    parser.add_argument("--state", choices=["memory", "rocksdb"], default="memory")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", choices=["duckdb"])
    parser.add_argument("--repeat", type=int, default=1, help="runs; the best one is shown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.input
        if path is not None and not path.is_file():
            parser.error(f"--input {path}: there is no such file (make_txns.py makes one)")
        if path is None:
            path = Path(folder) / "txns.ndjson"
            write_txns(path, options.rows, 0)
        keep = options.peer is not None
        results, peers = [], []
        for _ in range(options.repeat):
            results.append(run(path, options.threads, options.checkpoint_ms, options.out, keep, options.state))
            if keep:
                seconds, answer = duckdb_answer(path, options.threads)
                peers.append(seconds)
        result = min(results, key=lambda each: each["seconds"])
        totals = result.pop("_totals")
        if keep:
            table = pa.Table.from_batches(totals.kept)
            start = table["window_start"].cast(pa.int64())
            table = table.set_column(table.schema.get_field_index("window_start"), "window_start", start)
            compare(table, answer)
            result |= {"duckdb_seconds": round(min(peers), 4), "times_duckdb": round(result["seconds"] / min(peers), 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
