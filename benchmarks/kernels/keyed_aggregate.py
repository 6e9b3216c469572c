"""Keyed aggregation on one core: rows of decoded batches -> count, sum and max by key.

    python benchmarks/kernels/keyed_aggregate.py [--rows N] [--distribution uniform|zipf|both] [--split ROWS]

Accounts "acc0" to "acc99999", uniform and Zipf 1.2, and amounts that are multiples of 1/64, so that sums are exact. Ours takes
batches of `--split` rows, as a stream has them, with the key hash computed in the same time; pyarrow takes one table,
`group_by(..., use_threads=False)`. Passes take turns, the best of each counts. Also: the same with an int64 key, and with two
key columns. Checked: every group's results, against pyarrow.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import hash_columns

ACCOUNTS = 100_000
AGGREGATES = [("count", None), ("sum", pa.float64()), ("max", pa.float64())]
KEYS = {"string": ["account"], "int64": ["number"], "string+int64": ["account", "minute"]}


def make_rows(rows: int, distribution: str, seed: int = 7) -> pa.RecordBatch:
    random = np.random.default_rng(seed)
    if distribution == "uniform":
        number = random.integers(0, ACCOUNTS, rows)
    else:
        weights = 1 / np.arange(1, ACCOUNTS + 1) ** 1.2
        number = np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(rows)).clip(0, ACCOUNTS - 1)
    accounts = pa.array([f"acc{i}" for i in range(ACCOUNTS)])
    return pa.record_batch(
        {
            "account": accounts.take(pa.array(number)),
            "number": pa.array(number),
            "minute": pa.array(np.sort(random.integers(0, 3, rows)) * 60_000),
            "amount": pa.array(np.round(random.lognormal(3.5, 1.2, rows) * 64) / 64),
        }
    )


def batches_of(data: pa.RecordBatch, split: int) -> list[pa.RecordBatch]:
    """As a decoder makes them: each with buffers of its own."""
    starts = range(0, data.num_rows, split)
    return [data.take(pa.array(np.arange(start, min(start + split, data.num_rows)))) for start in starts]


def ours(batches: list[pa.RecordBatch], keys: list[str]) -> GroupTable:
    schema = batches[0].schema
    columns = [schema.get_field_index(name) for name in keys]
    amount = schema.get_field_index("amount")
    table = GroupTable(pa.schema([schema.field(name) for name in keys]), AGGREGATES)
    for batch in batches:
        hashes = hash_columns([batch.column(i) for i in columns])
        table.update(batch, columns, [-1, amount, amount], hashes=hashes)
    return table


def by_pyarrow(table: pa.Table, keys: list[str]) -> pa.Table:
    return table.group_by(keys, use_threads=False).aggregate([([], "count_all"), ("amount", "sum"), ("amount", "max")])


def check(table: GroupTable, answer: pa.Table, keys: list[str]) -> None:
    names = [*keys, "count_all", "amount_sum", "amount_max"]
    got = pa.table(table.finish(), names=names).sort_by([(key, "ascending") for key in keys])
    wanted = answer.select(names).sort_by([(key, "ascending") for key in keys])
    assert got.equals(wanted.combine_chunks().cast(got.schema)), "the answers differ"


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(data: pa.RecordBatch, keys: list[str], split: int, passes: int) -> dict[str, float]:
    columns = data.select([*keys, "amount"])
    batches, table = batches_of(columns, split), pa.Table.from_batches([columns])
    check(ours(batches, keys), by_pyarrow(table, keys), keys)
    mine, theirs = [], []
    for _ in range(passes):
        mine.append(seconds_of(lambda: ours(batches, keys)))
        theirs.append(seconds_of(lambda: by_pyarrow(table, keys)))
    return {
        "rows_per_s": round(data.num_rows / min(mine)),
        "pyarrow_rows_per_s": round(data.num_rows / min(theirs)),
        "ratio": round(min(theirs) / min(mine), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--distribution", choices=["uniform", "zipf", "both"], default="both")
    parser.add_argument("--split", type=int, default=32_768, help="rows of a batch")
    parser.add_argument("--passes", type=int, default=3, help="the best of this many passes counts")
    parser.add_argument("--keys", choices=[*KEYS, "all"], default="all")
    options = parser.parse_args()
    figures: dict[str, object] = {"benchmark": "keyed_aggregate", "rows": options.rows, "split": options.split}
    for distribution in ("uniform", "zipf") if options.distribution == "both" else (options.distribution,):
        data = make_rows(options.rows, distribution)
        figures[distribution] = {
            name: measure(data, keys, options.split, options.passes)
            for name, keys in KEYS.items()
            if options.keys in (name, "all")
        }
    print(json.dumps({**figures, "checked_against": "pyarrow"}))


if __name__ == "__main__":
    main()
