"""Keyed tables: how fast rows go into them, and what a snapshot costs.

    python benchmarks/kernels/state_tables.py [--rows N] [--keys K] [--budget BYTES] [--dirty N]

Rows have a uniform string key of K, an int and a float, and come in batches of 64 Ki; count, sum and max are kept. Four times:
`memory`; `rocksdb`: RocksDB behind, and a budget that holds all; `adding`: with `--budget`, rows are only added, as windows do;
`looking_up`: with `--budget`, each key's group is needed, as in running aggregates and deduplication. Then snapshots, in memory and
with a directory, of `--dirty` groups that changed. Checked: the groups, and the sums of counts, ints and maxima, are the same.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.engine.state.tables.store import TableStore

BATCH_ROWS = 65_536
KEYS = pa.schema([("account", pa.string())])
AGGREGATES = [("count", None), ("sum", pa.int64()), ("max", pa.float64())]


def batches(rows: int, keys: int, seed: int = 7) -> Iterator[pa.RecordBatch]:
    random = np.random.default_rng(seed)
    for start in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - start)
        numbers = pa.array(random.integers(0, keys, count)).cast(pa.string())
        accounts = pc.binary_join_element_wise("acc", numbers, "")
        yield pa.record_batch(
            [accounts, pa.array(random.integers(0, 1000, count)), pa.array(random.random(count))],
            names=["account", "amount", "score"],
        )


def fill(store: TableStore, rows: int, keys: int, *, look_up: bool) -> tuple[float, float, list[Any]]:
    """-> seconds of the rows, seconds of the results, the answer."""
    rows_s = 0.0
    for batch in batches(rows, keys):
        start = time.perf_counter()
        table = store.table()
        if look_up:
            table.accumulate(table.resolve(batch, [0]), batch, [-1, 1, 2])
        else:
            table.update(batch, [0], [-1, 1, 2])
        store.settle()
        rows_s += time.perf_counter() - start
    start = time.perf_counter()
    answer = [0, 0, 0, 0.0]
    for columns in store.finish():
        answer[0] += len(columns[0])
        for index, column in enumerate(columns[1:]):
            answer[index + 1] += pc.sum(column).as_py()
    answer[3] = round(answer[3], 3)
    return rows_s, time.perf_counter() - start, answer


def snapshots(store: TableStore, root: Path, dirty: int) -> dict[str, float]:
    """Snapshots of a store with `dirty` groups, all of which change in between. The best of some."""
    data = next(batches(1, 1))
    data = pa.record_batch(
        [pa.array([f"acc{i}" for i in range(dirty)]), pa.repeat(pa.scalar(1), dirty), pa.repeat(pa.scalar(0.5), dirty)],
        schema=data.schema,
    )
    waits, totals = [], []
    for number in range(8):
        store.table().update(data, [0], [-1, 1, 2])
        directory = root / f"saved{number}"
        directory.mkdir()
        start = time.perf_counter()
        _, state = store.cut()
        waits.append(time.perf_counter() - start)
        if state is not None:
            state.save(directory)
            state.discard()
        totals.append(time.perf_counter() - start)
    return {"sync_ms": round(min(waits) * 1e3, 2), "total_ms": round(min(totals) * 1e3, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--budget", type=int, default=64_000_000)
    parser.add_argument("--dirty", type=int, default=30_000)
    parser.add_argument("--only-budget", action="store_true", help="leave out what needs memory for all keys")
    options = parser.parse_args()
    result: dict[str, Any] = {"rows": options.rows, "keys": options.keys, "budget": options.budget}
    answers = []
    with TemporaryDirectory() as name:
        root = Path(name)
        runs: dict[str, int | None] = {"adding": options.budget, "looking_up": options.budget}
        if not options.only_budget:
            runs = {"memory": None, "rocksdb": 1 << 40, **runs}
        for run, budget in runs.items():
            directory = None if budget is None else root / run
            store = TableStore(KEYS, AGGREGATES, directory=directory, memory_budget=budget or 0)
            rows_s, finish_s, answer = fill(store, options.rows, options.keys, look_up=run == "looking_up")
            answers.append(answer)
            result[f"{run}_rows_per_s"] = round(options.rows / rows_s)
            result[f"{run}_finish_groups_per_s"] = round(answer[0] / finish_s)
            result[f"{run}_statistics"] = store.statistics()
            print(run, result[f"{run}_rows_per_s"], "rows/s", store.statistics(), file=sys.stderr)
            store.close()
        for run, directory in {"memory": None, "rocksdb": root / "snapshots"}.items():
            (root / f"{run}-saved").mkdir()
            store = TableStore(KEYS, AGGREGATES, directory=directory)
            result[f"{run}_snapshot"] = snapshots(store, root / f"{run}-saved", options.dirty)
            store.close()
    result["dirty"] = options.dirty
    result["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["groups"] = answers[0][0]
    if any(answer != answers[0] for answer in answers):
        sys.exit(f"the answers differ: {answers}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
