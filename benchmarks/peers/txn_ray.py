"""The program of benchmarks/pipelines/txn_workers.py in Ray Data, which is a batch: two workers with a CPU each, blocks of Arrow.

    python txn_ray.py FOLDER PROCESSES        FOLDER/in is read, FOLDER/out is written

A first run over FOLDER/warm has started the workers. Prints the seconds of the second. Started by txn_peers.py in an environment of its
own.
"""

import json
import logging
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data.aggregate import Count, Max, Sum

MINUTE_MS = 60_000


def minutes(rows: pa.Table) -> pa.Table:
    rows = rows.filter(pc.greater(rows["amount"], 10))
    start = pc.multiply(pc.divide(rows["ts"], MINUTE_MS), MINUTE_MS)
    return rows.select(["account", "amount"]).append_column("window_start", start)


def run(source: Path, out: Path) -> None:
    rows = ray.data.read_json(str(source), file_extensions=["ndjson"]).map_batches(
        minutes, batch_format="pyarrow", batch_size=None
    )
    groups = rows.groupby(["account", "window_start"])
    found = groups.aggregate(
        Count(alias_name="n"), Sum("amount", alias_name="total"), Max("amount", alias_name="biggest")
    )
    found.write_parquet(str(out))


def main() -> None:
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    options = {"num_cpus": processes, "include_dashboard": False, "object_store_memory": 1 << 30}
    ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    run(folder / "warm", folder / "warm-out")
    began = time.perf_counter()
    run(folder / "in", folder / "out")
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
