"""What a checkpoint costs a keyed operator: how long its rows stand still, what is written, and how soon it is back.

    python benchmarks/kernels/checkpoint_cut.py [--rows N] [--passes P] [--operator running|window|all] [--keys int64|string|all]
        [--where memory|directory|all] [--budget BYTES]

N keys, each of which a pass touches once, in random order, in batches of 64 Ki rows; count, sum and max are kept. `window` is one
tumbling window that stays open, `running` a running aggregate. `memory`: no directory; `directory`: one, and a budget of `--budget`
(as a rule more than is needed; what does not fit is in RocksDB). For each:

    cut_ms       `Stateful.snapshot()` when every key has changed: the rows stand still. The worst and the best of all passes
    save_s       writing that, in another thread as a rule; and its bytes
    open         rows/s of a pass with the cut open (each row is put aside before it changes), over rows/s of one without: the best of each
    one_percent  with a directory: the same when one key of a hundred has changed, `seconds` for both, and the shares of the whole
    recovery_s   a new operator restores the last checkpoint and processes one batch

Bytes are those of new files: a checkpoint also links those of older ones. Checked: count and sum of every key after the restore.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.windows import tumbling
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import TIME_COLUMN, Cut, Operator, OperatorContext, Saved
from sabot.engine.operators.keyed.running import RunningAggregate
from sabot.engine.operators.windows.fixed import WindowAggregate

BATCH_ROWS = 65_536
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "amount"),
    AggregateColumn("biggest", "max", "amount"),
]
TYPES = {"int64": pa.int64(), "string": pa.string()}
SMALL_PASSES = 5


class Keys:
    """All keys, and how often each was touched."""

    def __init__(self, rows: int, kind: str) -> None:
        numbers = pa.array(np.arange(rows))
        self.kind = kind
        self.column = numbers if kind == "int64" else pc.binary_join_element_wise("acc", numbers.cast(pa.string()), "")
        self.order = np.random.default_rng(7).permutation(rows).astype(np.int32)
        self.touched = np.zeros(rows, np.int64)
        self.schema = pa.schema([("key", TYPES[kind]), ("amount", pa.int64()), (TIME_COLUMN, pa.int64())])

    def batches(self, some: np.ndarray[Any, Any]) -> Iterator[Batch]:
        for start in range(0, len(some), BATCH_ROWS):
            rows = some[start : start + BATCH_ROWS]
            columns = [self.column.take(pa.array(rows)), pa.array(rows.astype(np.int64)), pa.repeat(1_000, len(rows))]
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))

    def touch(self, operator: Operator, some: np.ndarray[Any, Any]) -> float:
        """-> seconds that the operator took."""
        seconds = 0.0
        for batch in self.batches(some):
            started = time.perf_counter()
            operator.process(batch)
            seconds += time.perf_counter() - started
        self.touched[some] += 1
        return seconds

    def check(self, operator: Operator) -> None:
        seen = np.zeros(len(self.touched), bool)
        for batch in operator.contents():
            key = batch.column("key")
            number = (key if self.kind == "int64" else pc.utf8_slice_codeunits(key, 3).cast(pa.int64())).to_numpy()
            assert not seen[number].any(), "a key is there twice"
            seen[number] = True
            assert (batch.column("n").to_numpy() == self.touched[number]).all(), "counts differ"
            assert (batch.column("total").to_numpy() == self.touched[number] * number).all(), "sums differ"
        assert (seen == (self.touched > 0)).all(), "keys are missing"


class Checkpoints:
    """Writes them, and knows which files are new."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: set[int] = set()
        self.last: Saved | None = None
        self.number = 0

    def save(self, facts: dict[str, Any], state: Cut | None) -> tuple[float, int]:
        """-> seconds, new bytes."""
        assert state is not None
        self.number += 1
        directory = self.root / str(self.number)
        directory.mkdir(parents=True)
        started = time.perf_counter()
        state.save(directory)
        state.discard()
        seconds = time.perf_counter() - started
        found = {entry.st_ino: entry.st_size for entry in map(os.stat, filter(Path.is_file, directory.rglob("*")))}
        new = sum(size for inode, size in found.items() if inode not in self.known)
        self.known |= set(found)
        self.last = Saved(directory, json.loads(json.dumps(facts)))
        return seconds, new


def make(kind: str, keys: Keys, directory: Path | None, budget: int) -> Operator:
    operator = WindowAggregate(tumbling("1h"), ["key"], CALLS) if kind == "window" else RunningAggregate(["key"], CALLS)
    operator.emit = lambda batch: None
    if directory is not None:
        directory.mkdir(parents=True)
    operator.open(OperatorContext(keys.schema, directory=directory, memory_budget=budget))
    return operator


def cut(operator: Operator) -> tuple[float, tuple[dict[str, Any], Cut | None]]:
    started = time.perf_counter()
    taken = operator.snapshot()
    return time.perf_counter() - started, taken


def measure(kind: str, keys: Keys, root: Path | None, saved: Path, budget: int, passes: int) -> dict[str, Any]:
    operator = make(kind, keys, None if root is None else root / "before", budget)
    checkpoints = Checkpoints(saved)
    keys.touched[:] = 0
    keys.touch(operator, keys.order)
    cuts, saves, quiet, opened = [], [], [], []
    for _ in range(passes):
        quiet.append(keys.touch(operator, keys.order))
        seconds, taken = cut(operator)
        cuts.append(seconds)
        touched = keys.touched.copy()
        opened.append(keys.touch(operator, keys.order))
        saves.append(checkpoints.save(*taken))
    full_s, full_bytes = min(saves)[0], saves[0][1]
    result: dict[str, Any] = {
        "cut_ms": {"worst": round(max(cuts) * 1e3, 2), "best": round(min(cuts) * 1e3, 2)},
        "save_s": round(full_s, 3),
        "bytes": full_bytes,
        "rows_per_s": round(len(keys.order) / min(quiet)),
        "open": round(min(quiet) / min(opened), 2),
    }
    if root is not None:
        checkpoints.save(*operator.snapshot())  # of the rows that came while the cut was open
        some = np.array_split(keys.order, 100)
        small = []
        for number in range(SMALL_PASSES):
            keys.touch(operator, some[number])
            touched = keys.touched.copy()
            cut_s, taken = cut(operator)
            save_s, new = checkpoints.save(*taken)
            small.append((cut_s + save_s, cut_s, new))
        seconds, cut_s, new = min(small)
        result["one_percent"] = {
            "cut_ms": round(max(cut_s for _, cut_s, _ in small) * 1e3, 2),
            "seconds": round(seconds, 3),
            "bytes": new,
            "share_of_seconds": round(seconds / (full_s + min(cuts)), 4),
            "share_of_bytes": round(new / full_bytes, 4),
        }
        print(f"operator: {operator.statistics()}", file=sys.stderr)
    operator.close()
    assert checkpoints.last is not None
    batch = next(keys.batches(keys.order[:BATCH_ROWS]))
    started = time.perf_counter()
    operator = make(kind, keys, None if root is None else root / "after", budget)
    operator.restore([checkpoints.last])
    operator.process(batch)
    result["recovery_s"] = round(time.perf_counter() - started, 3)
    keys.touched = touched
    keys.touched[keys.order[:BATCH_ROWS]] += 1
    keys.check(operator)
    operator.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="keys")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--operator", choices=["running", "window", "all"], default="all")
    parser.add_argument("--keys", choices=[*TYPES, "all"], default="all")
    parser.add_argument("--where", choices=["memory", "directory", "all"], default="all")
    parser.add_argument(
        "--budget", type=int, default=1 << 40, help="memory of the operator, in bytes, with a directory"
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "checkpoint_cut", "rows": options.rows, "budget": options.budget}
    for key_type in TYPES if options.keys == "all" else [options.keys]:
        keys = Keys(options.rows, key_type)
        for kind in ["running", "window"] if options.operator == "all" else [options.operator]:
            for where in ["memory", "directory"] if options.where == "all" else [options.where]:
                with TemporaryDirectory(prefix="checkpoint-cut-") as name:
                    root = Path(name)
                    state = root / "state" if where == "directory" else None
                    found = measure(kind, keys, state, root / "saved", options.budget, options.passes)
                figures.setdefault(kind, {}).setdefault(key_type, {})[where] = found
                print(kind, key_type, where, found, file=sys.stderr)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
