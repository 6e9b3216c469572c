"""The joins of benchmarks/pipelines/joins.py in Pathway, in its static mode: the batch form of its streaming engine.

    joins_pathway.prepare()                                            # NotThere: it cannot be installed
    joins_pathway.run("regular", left, right, 0, threads)              # {"seconds": 12.3, "cpu_seconds": 20.1, "sums": [...]}

It is installed into .venv-peers/, by requirements-pathway.txt. It does not read Parquet: the files are given to it as CSV, written once;
program "read" only reads and adds up both, for comparison. The result is reduced to one row in
Pathway, and that is subscribed to, so no Python runs for each row.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import venvs
from venvs import python_of

__all__ = ["prepare", "run"]

PATIENCE_SECONDS = 600


def prepare() -> None:
    """It is installed afterwards. Raises NotThere."""
    venvs.prepare("pathway")


def run(join: str, left: Path, right: Path, half_ms: int, threads: int) -> dict[str, Any]:
    """One run in a process of its own. left, right: Parquet files."""
    texts = []
    for path in (left, right):
        text = path.with_suffix(".csv")
        if not text.exists():
            from pyarrow import csv, parquet

            csv.write_csv(parquet.read_table(path), text)
        texts.append(str(text))
    command = [python_of("pathway"), __file__, join, *texts, str(half_ms)]
    environment = {**os.environ, "PATHWAY_THREADS": str(threads), "PATHWAY_MONITORING_LEVEL": "none"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"pathway {join}: exit {done.returncode}\n{done.stderr[-4000:]}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def program(join: str, left: str, right: str, half_ms: int) -> dict[str, Any]:
    """Runs in Pathway's own environment."""
    import pathway as pw

    class Left(pw.Schema):
        key: int
        ts: int
        x: int

    class Right(pw.Schema):
        key: int
        ts: int
        y: int

    one = pw.io.csv.read(left, schema=Left, mode="static")
    other = pw.io.csv.read(right, schema=Right, mode="static")
    if join == "read":
        both = one.select(x=pw.this.x, y=0).concat_reindex(other.select(x=0, y=pw.this.y))
    elif join == "interval":
        near = pw.temporal.interval(-half_ms, half_ms)
        both = one.interval_join(other, one.ts, other.ts, near, one.key == other.key).select(x=one.x, y=other.y)
    elif join == "asof":
        found = one.asof_join(
            other, one.ts, other.ts, one.key == other.key, how=pw.JoinMode.LEFT, defaults={other.y: 0}
        )
        both = found.select(x=one.x, y=other.y)
    elif join == "regular":
        both = one.join(other, one.key == other.key).select(x=one.x, y=other.y)
    else:
        both = one.join_left(other, one.key == other.key).select(x=one.x, y=pw.coalesce(other.y, 0))
    totals = both.select(pw.this.x, pw.this.y, z=pw.this.x * pw.this.y).reduce(
        n=pw.reducers.count(), x=pw.reducers.sum(pw.this.x), y=pw.reducers.sum(pw.this.y), z=pw.reducers.sum(pw.this.z)
    )
    seen: dict[str, int] = {}

    def on_change(key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        if is_addition:
            seen.update(row)

    pw.io.subscribe(totals, on_change)
    began, cpu = time.perf_counter(), time.process_time()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "sums": [seen[name] for name in ("n", "x", "y", "z")],
    }


if __name__ == "__main__":
    print(json.dumps(program(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
