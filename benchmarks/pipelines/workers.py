"""A function in plain Python over the rows of a file, in the threads of one process, and in several processes.

    python benchmarks/pipelines/workers.py --rows 2000000 --workers 2 --repeat 3

The function parses a text of each row with `re` and adds a checksum of it, some microseconds a row, which hold the interpreter. Then rows
are summed by key. `seconds` runs from the first batch that any process takes to the last one that any has done; the start of processes is
not in it. The sums must be those of the same function over all rows. The best of --repeat rounds, in which both take turns.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import sabot
from sabot import App
from sabot.connectors.files import files

HERE = Path(__file__).parent
KEYS = 100
GROUP_ROWS = 16_384
TEXT = re.compile(r"user=(\w+) took=(\d+)ms")


def text_of(row: int) -> str:
    """What a line of a log may look like."""
    return f"GET /items/{row % 977} user=u{row % KEYS} took={row * 7919 % 1000}ms"


def parsed(text: str) -> tuple[str, int]:
    """The user, and the milliseconds with a checksum of the text."""
    found = TEXT.search(text)
    assert found is not None
    return found[1], int(found[2]) + zlib.crc32(text.encode()) % 7


def parse(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The step of the user's: one call of `parsed` a row. Notes when this process has begun and ended."""
    began = time.time()
    rows = [parsed(text) for text in batch.column("text").to_pylist()]
    out = pa.record_batch(
        {"user": [user for user, _ in rows], "took": pa.array([took for _, took in rows], pa.int64())}
    )
    with open(Path(os.environ["WORKERS_FOLDER"], f"{os.getpid()}.span"), "a", encoding="ascii") as file:
        file.write(f"{began} {time.time()}\n")
    return out


def build(folder: Path) -> App:
    """The program, over the files of a folder."""
    app = App("workers", parallelism=int(os.environ["WORKERS_PARALLELISM"]))
    lines = app.stream(files(str(folder / "in.parquet")), schema={"text": "string"})
    took = lines.map_batches(parse, schema={"user": "string", "took": "int64"})
    sums = took.group_by("user").aggregate(total=sabot.sum("took"), n=sabot.count())
    sums.materialize().to(sabot.NdjsonSink(str(folder / "out.ndjson"), overwrite=True))
    return app


def run(folder: Path, parallelism: int, workers: int) -> float:
    """The seconds of one run of `sabot run`. Raises where the answer is wrong."""
    for left in folder.glob("*.span"):
        left.unlink()
    environment = {
        **os.environ,
        "WORKERS_FOLDER": str(folder),
        "WORKERS_PARALLELISM": str(parallelism),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-P", "-m", "sabot", "run", "workers:app", "--loglevel", "warning"]
    if workers > 1:
        command += ["--workers", str(workers)]
    subprocess.run(command, env=environment, check=True, cwd=folder)
    spans = [
        tuple(map(float, line.split()))
        for file in folder.glob("*.span")
        for line in file.read_text("ascii").splitlines()
    ]
    return max(end for _, end in spans) - min(began for began, _ in spans)


def check(folder: Path, rows: int) -> None:
    """Compares the sums with those of the function over all rows."""
    wanted: Counter[str] = Counter()
    for row in range(rows):
        user, took = parsed(text_of(row))
        wanted[user] += took
    with open(folder / "out.ndjson", encoding="utf-8") as file:
        found = {row["user"]: row["total"] for row in map(json.loads, file)}
    if found != dict(wanted):
        raise SystemExit(f"wrong sums: {sum(found.values())}, not {sum(wanted.values())}")


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=2_000_000)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--repeat", type=int, default=1)
    given = options.parse_args()
    ways = {"one_thread": (1, 1), "threads": (given.workers, 1), "workers": (given.workers, given.workers)}
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pa.table({"text": [text_of(row) for row in range(given.rows)]})
        pq.write_table(table, folder / "in.parquet", row_group_size=GROUP_ROWS)
        for _ in range(given.repeat):
            for way, (parallelism, workers) in ways.items():
                seconds = run(folder, parallelism, workers)
                check(folder, given.rows)
                best[way] = min(seconds, best.get(way, seconds))
    figures = {
        way: {"seconds": round(seconds, 3), "rows_s": round(given.rows / seconds)} for way, seconds in best.items()
    }
    print(
        json.dumps(
            {
                "rows": given.rows,
                "workers": given.workers,
                **figures,
                "times": round(best["one_thread"] / best["workers"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
elif "WORKERS_FOLDER" in os.environ:  # `sabot run workers:app` imports this file
    app = build(Path(os.environ["WORKERS_FOLDER"]))
