"""Runs the programs of Peer.java: fetches Flink's jars by Maven once, compiles once, and starts a JVM for each run.

    flink_peer.prepare()                                              # NotThere: no Java, no Maven, or no way to the jars
    flink_peer.run("regular", left, right, 0, parallelism=2)          # {"seconds": 12.3, "cpu_seconds": 20.1, "sums": [...]}

Flink reads rows as longs from a mapped file (`raw`), which costs it next to nothing: its own Parquet reader needs Hadoop's libraries, and
decoding CSV would take more than most of these programs. Its start, and the planning of a query, are not in the figures.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jvm import JavaPeer

__all__ = ["VERSION", "prepare", "raw", "run"]

VERSION = "1.20.0"
HEAP = "10g"
PATIENCE_SECONDS = 1800
MANY_BYTES = 100_000_000  # 4 million rows
PEER = JavaPeer(Path(__file__).parent, "Peer", {"org.apache.flink.table.factories.Factory": "Peer$Factory"})
prepare = PEER.prepare


def raw(parquet: Path, path: Path) -> Path:
    """Its rows as longs, row by row, in a file that is made if it is not there. -> the file."""
    if not path.exists():
        table = pq.read_table(parquet)
        rows = np.column_stack([column.to_numpy() for column in table.columns])
        rows.astype("<i8").tofile(path)
    return path


def run(program: str, *files_and_number: Path | int, parallelism: int, runs: int | None = None) -> dict[str, Any]:
    """The fastest of `runs` runs in one JVM: the first finds it cold. files first, then the program's number (ms, rows).

    runs: None: two, or one of many rows, which take so long that the start does not matter.
    """
    *files, number = files_and_number
    if runs is None:
        runs = 1 if sum(Path(str(file)).stat().st_size for file in files) > MANY_BYTES else 2
    command = PEER.command(HEAP, program, str(parallelism), str(runs), str(number), *map(str, files))
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"flink {program}: exit {done.returncode}\n{done.stderr[:4000]}")
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures
