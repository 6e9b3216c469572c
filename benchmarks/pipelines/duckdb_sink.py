"""Rows into a table of DuckDB, exactly once, beside DuckDB's own client.

    python benchmarks/pipelines/duckdb_sink.py --rows 5000000 --rounds 3 --folder DIR

    client   the client alone: reads a file of Parquet as Arrow, and inserts each million rows in a transaction
    sink     the same rows by `SqlSink.deliver`: each million rows is a part, with its token in the same transaction
    app      an app that reads the file and writes the table exactly once, with a checkpoint each second

`seconds` runs from the first byte read until the file is closed, for an app with its start and stop. Number of rows and sums of two columns
must be those of the file. The ways take turns; of each the best round is printed, with processor time, and its rate beside the client's.
"""

import argparse
import asyncio
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sabot import App
from sabot.connectors.base import Track
from sabot.connectors.files import files
from sabot.connectors.sql import SqlSink

ROWS_A_PART = 1_000_000
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64())])


def make_file(folder: Path, rows: int) -> Path:
    path = folder / "rows.parquet"
    random = np.random.default_rng(53)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for first in range(0, rows, ROWS_A_PART):
            ids = np.arange(first, min(first + ROWS_A_PART, rows))
            names = pa.array(ids % 10_007).cast(pa.string())
            writer.write_batch(pa.record_batch([ids, names, random.random(len(ids))], SCHEMA))
    return path


def parts(path: Path) -> Iterator[pa.RecordBatch]:
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        yield file.read_row_group(group).combine_chunks().to_batches()[0]


def by_client(path: Path, target: Path) -> None:
    connection = duckdb.connect(str(target))
    connection.execute("CREATE TABLE rows (id BIGINT, name VARCHAR, amount DOUBLE)")
    for data in parts(path):
        connection.register("come", pa.Table.from_batches([data]))
        connection.execute("BEGIN TRANSACTION")
        connection.execute("INSERT INTO rows SELECT * FROM come")
        connection.execute("COMMIT")
    connection.close()


def by_sink(path: Path, target: Path) -> None:
    sink = SqlSink(f"duckdb://{target}", table="rows")
    sink.expect(SCHEMA)
    sink.claim(Track("bench", "streams.rows", "first"))
    for number, data in enumerate(parts(path), 1):
        sink.deliver(number, [sink.fitting(data)])
    sink.close()


def by_app(path: Path, target: Path) -> None:
    app = App("bench", state=target.parent / "state", checkpoint_interval="1s")
    app.stream(files(path)).to(SqlSink(f"duckdb://{target}", table="rows"), delivery="exactly_once")
    asyncio.run(app.run())


WAYS: dict[str, Callable[[Path, Path], None]] = {"client": by_client, "sink": by_sink, "app": by_app}


def answer_of_file(path: Path) -> tuple[int, int, float]:
    rows = pq.read_table(path)
    return rows.num_rows, int(np.sum(rows["id"].to_numpy())), math.fsum(rows["amount"].to_numpy())


def answer(target: Path) -> tuple[int, int, float]:
    with duckdb.connect(str(target), read_only=True) as connection:
        found = connection.execute("SELECT count(*), sum(id), fsum(amount) FROM rows").fetchone()
    assert found is not None
    return int(found[0]), int(found[1]), float(found[2])


def run(way: str, path: Path, folder: Path, wanted: tuple[int, int, float]) -> dict[str, float]:
    """-> (seconds, cpu_seconds). Ends the process if the table is wrong."""
    place = folder / way
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    began, cpu = time.perf_counter(), time.process_time()
    WAYS[way](path, place / "out.duckdb")
    figures = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    found = answer(place / "out.duckdb")
    if found[:2] != wanted[:2] or not math.isclose(found[2], wanted[2], rel_tol=1e-9):
        sys.exit(f"{way}: the table has {found}, and the file {wanted}")
    shutil.rmtree(place)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written; by default a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        path = make_file(folder, options.rows)
        wanted = answer_of_file(path)
        best: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for way in WAYS:
                figures = run(way, path, folder, wanted)
                if way not in best or figures["seconds"] < best[way]["seconds"]:
                    best[way] = figures
    for way, figures in best.items():
        line = {
            "way": way,
            "rows": options.rows,
            "seconds": round(figures["seconds"], 3),
            "cpu_seconds": round(figures["cpu_seconds"], 3),
            "rows_per_second": round(options.rows / figures["seconds"]),
            "of_client": round(best["client"]["seconds"] / figures["seconds"], 3),
            "of_client_by_cpu": round(best["client"]["cpu_seconds"] / figures["cpu_seconds"], 3),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
