"""Rows into tables of Delta Lake and Iceberg, and out of them, beside the clients alone.

    python benchmarks/pipelines/lakes.py --rows 2000000 --rounds 3

    delta-client, iceberg-client            appends of a million rows each by deltalake and by pyiceberg
    delta-sink, iceberg-sink                the same rows by `deliver`: each million is a part, with its token in the same commit
    delta-client-read, iceberg-client-read  the table as Arrow, by deltalake and by pyiceberg
    delta-source, iceberg-source            the same table by `DeltaSource` and `IcebergSource`, in batches

Tables are in a folder of this machine, which the sinks sync and the clients do not; the catalog of Iceberg is a SQLite file. Number of rows
and sum of a column must be those that were written. The ways take turns; of each the round with the least processor time is printed, and
its rate beside the client's.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import load_catalog

from sabot import DeltaSink, DeltaSource
from sabot.connectors.base import Source, Track
from sabot.connectors.iceberg import IcebergSink, IcebergSource

ROWS_A_PART = 1_000_000
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("amount", pa.float64())])
Answer = tuple[int, int]  # the number of rows, and the sum of their ids


def parts(rows: int) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(53)
    for first in range(0, rows, ROWS_A_PART):
        ids = np.arange(first, min(first + ROWS_A_PART, rows))
        yield pa.record_batch([ids, pa.array(ids % 10_007).cast(pa.string()), random.random(len(ids))], SCHEMA)


def catalog_of(folder: Path) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"{folder}/lake"}


def answer(table: pa.Table) -> Answer:
    return table.num_rows, pc.sum(table.column("id")).as_py()


def delta_client(folder: Path, given: list[pa.RecordBatch]) -> None:
    for data in given:
        deltalake.write_deltalake(folder / "client", pa.Table.from_batches([data]), mode="append")


def iceberg_client(folder: Path, given: list[pa.RecordBatch]) -> None:
    with closing(load_catalog("default", **catalog_of(folder))) as catalog:
        catalog.create_namespace_if_not_exists("bench")
        table = catalog.create_table("bench.client", SCHEMA)
        for data in given:
            table.append(pa.Table.from_batches([data]))


def deliver(sink: DeltaSink | IcebergSink, given: list[pa.RecordBatch]) -> None:
    sink.claim(Track("bench", "streams.rows", "first"))
    for number, data in enumerate(given, 1):
        sink.deliver(number, [sink.fitting(data)])
    sink.close()


def read(source: Source) -> Answer:
    source.open(None)
    rows = total = 0
    while (batch := source.read_batch(65_536, 0)) is not None:
        rows, total = rows + batch.num_rows, total + pc.sum(batch.data.column("id")).as_py()
    source.close()
    return rows, total


def delta_table(folder: Path) -> Answer:
    return answer(deltalake.DeltaTable(folder / "sink").to_pyarrow_table())


def iceberg_table(folder: Path) -> Answer:
    with closing(load_catalog("default", **catalog_of(folder))) as catalog:
        return answer(catalog.load_table("bench.sink").scan().to_arrow())


WRITERS: dict[str, Callable[[Path, list[pa.RecordBatch]], None]] = {
    "delta-client": delta_client,
    "delta-sink": lambda folder, given: deliver(DeltaSink(folder / "sink", schema=SCHEMA), given),
    "iceberg-client": iceberg_client,
    "iceberg-sink": lambda folder, given: deliver(IcebergSink(catalog_of(folder), "bench.sink", schema=SCHEMA), given),
}
READERS: dict[str, Callable[[Path], Answer]] = {
    "delta-client-read": delta_table,
    "delta-source": lambda folder: read(DeltaSource(folder / "sink")),
    "iceberg-client-read": iceberg_table,
    "iceberg-source": lambda folder: read(IcebergSource(catalog_of(folder), "bench.sink")),
}
BESIDE = {"delta-sink": "delta-client", "iceberg-sink": "iceberg-client"}
BESIDE |= {"delta-source": "delta-client-read", "iceberg-source": "iceberg-client-read"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    given = list(parts(options.rows))
    expected = options.rows, options.rows * (options.rows - 1) // 2
    best: dict[str, tuple[float, float]] = {}

    def timed(way: str, work: Callable[[], object]) -> object:
        began, cpu = time.perf_counter(), time.process_time()
        found = work()
        figures = time.process_time() - cpu, time.perf_counter() - began
        best[way] = min(best.get(way, figures), figures)
        return found

    for _ in range(options.rounds):
        folder = Path(tempfile.mkdtemp())
        try:
            for way, write in WRITERS.items():
                timed(way, lambda write=write, folder=folder: write(folder, given))
            for way, look in READERS.items():
                found = timed(way, lambda look=look, folder=folder: look(folder))
                if found != expected:
                    sys.exit(f"{way}: {found}, and {expected} was written")
        finally:
            shutil.rmtree(folder)
    for way, (cpu, seconds) in best.items():
        beside = best[BESIDE.get(way, way)][0] / cpu
        figures_of = {"rows": options.rows, "cpu_seconds": round(cpu, 3), "seconds": round(seconds, 3)}
        print(json.dumps({"way": way, **figures_of, "beside_client": round(beside, 2)}))


if __name__ == "__main__":
    main()
