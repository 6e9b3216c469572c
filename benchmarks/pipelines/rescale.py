"""State of some size over 4 workers, restored into 2 and then into 8: is it the same, how long does it take, and in how much memory?

    python benchmarks/pipelines/rescale.py --rows 5000000 --folder /tmp/rescale

Each key has a text of 1,000 bytes and a count. The first run, of 4 workers, reads every key with its text. The second, of 2 workers, goes
on from its last checkpoint and reads every key once more, without the text; so does the third, of 8. Each row comes out with what the
state has of its key, and is compared with what that must be: in the run of number n each key once, counted n times, with its own text.
`restore_s` runs from the start of the command to the running tasks, which have their state then, and has the imports of all workers in
it; `read_s` from there to the checkpoint that has all rows of the run. `peak_mb` is the greatest sum of the memory of all workers, and
`peak_worker_mb` the most that one had.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pyarrow as pa

import sabot
from sabot import App, Batch, Source
from sabot.connectors.base import Positions, Scans
from sabot.engine.checkpoint import CheckpointStorage, Manifest

HERE = Path(__file__).parent
RUNS = (4, 2, 8)  # workers
PARTITIONS = 8
TEXT_BYTES = 1000
COLUMNS = pa.schema([("key", pa.int64()), ("text", pa.string())])
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
POOL = "".join(Random(1).choices(LETTERS, k=1 << 20))


def text_of(key: int) -> str:
    """Of a key: its number, and letters of which hardly two keys have the same."""
    at = key * 7919 % (len(POOL) - TEXT_BYTES)
    return f"{key:012d}{POOL[at : at + TEXT_BYTES - 12]}"


class Keys(Source, Scans):
    """So many rounds over all keys, each partition its share. Only the first round has texts. Then it waits."""

    name = "keys"
    schema = COLUMNS

    def __init__(self, keys: int, rounds: int, partitions: Sequence[int] = tuple(range(PARTITIONS))) -> None:
        self._keys, self._rounds = keys, rounds
        self._per_round = keys // PARTITIONS
        self._at = dict.fromkeys(partitions, 0)

    def readers(self, count: int) -> Sequence[Source]:
        shares = [tuple(self._at)[number::count] for number in range(min(count, PARTITIONS))]
        return [Keys(self._keys, self._rounds, share) for share in shares]

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        return True

    def infer_schema(self) -> pa.Schema:
        return COLUMNS

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._at = {number: (positions or {}).get((self.name, number), 0) for number in self._at}

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        number = min(self._at, key=self._at.__getitem__)
        at = self._at[number]
        rows = min(max_rows, self._per_round - at % self._per_round)
        if at >= self._rounds * self._per_round:
            time.sleep(timeout)
            return None
        first = at % self._per_round
        keys = [number + PARTITIONS * each for each in range(first, first + rows)]
        texts = [text_of(key) if at < self._per_round else "" for key in keys]
        self._at[number] = at + rows
        return Batch(pa.record_batch([keys, texts], schema=COLUMNS), {(self.name, number): at + rows}, self.name)

    def positions(self) -> Positions:
        return {(self.name, number): at for number, at in self._at.items()}

    def close(self) -> None:
        """Nothing to let go of."""


def compared(batch: pa.RecordBatch) -> pa.RecordBatch:
    """By count: how many rows there are, the sum of their keys, and how many have another text than theirs."""
    found: dict[int, list[int]] = {}
    for key, n, text in zip(*(batch.column(name).to_pylist() for name in ("key", "n", "text")), strict=True):
        sums = found.setdefault(n, [0, 0, 0])
        sums[0] += 1
        sums[1] += key
        sums[2] += text != text_of(key)
    columns = list(zip(*((n, *sums) for n, sums in found.items()), strict=True)) or [[]] * 4
    return pa.record_batch([pa.array(each, pa.int64()) for each in columns], names=["n", "rows", "keys", "wrong"])


def build(folder: Path, keys: int, rounds: int) -> App:
    """The program."""
    app = App("rescale", state=str(folder / "state"), checkpoint_interval="10s", memory_budget="1GB")
    rows = app.stream(Keys(keys, rounds))
    kept = rows.group_by("key").aggregate(n=sabot.count(), text=sabot.max("text")).changelog()
    now = kept.filter(sabot.col("op").is_in(["insert", "update_after"]))
    sums = now.map_batches(compared, schema=dict.fromkeys(("n", "rows", "keys", "wrong"), "int64"))
    sums.to(sabot.NdjsonSink(str(folder / "out.ndjson")), delivery="exactly_once")
    return app


class Memory:
    """What the processes below one have, looked at now and then."""

    def __init__(self) -> None:
        self.peak_mb = self.peak_worker_mb = 0.0

    def look(self, parent: int) -> None:
        """Children only: the coordinator keeps no state."""
        of_each = []
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text("ascii").split():
            try:
                text = Path(f"/proc/{pid}/status").read_text("ascii")
            except OSError:  # it has just ended
                continue
            found = re.search(r"VmRSS:\s+(\d+) kB", text)
            of_each.append(0 if found is None else int(found[1]) / 1024)
        self.peak_mb = max(self.peak_mb, sum(of_each))
        self.peak_worker_mb = max([self.peak_worker_mb, *of_each])


def read_rows(manifest: Manifest | None) -> int:
    """How many rows the checkpoint has of the source."""
    metas = [] if manifest is None else [task.meta for task in manifest.tasks.values()]
    return sum(at for meta in metas for _, _, at in meta["input"].get("positions", ()))


def run(folder: Path, keys: int, rounds: int, workers: int) -> dict[str, float]:
    """One run, until a checkpoint has all its rows and it has ended in good order. Raises SystemExit where it fails."""
    environment = {
        **os.environ,
        "RESCALE": f"{keys} {rounds} {folder}",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-P", "-m", "sabot", "run", "rescale:app", "--workers", str(workers)]
    command += ["--parallelism", str(workers)]
    log, memory, began = folder / f"run{rounds}.log", Memory(), time.monotonic()
    storage, runs_at = CheckpointStorage(folder / "state" / "checkpoints"), 0.0
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
        try:
            # By its manifest only: `latest` reads all files, and would be most of what is measured.
            while read_rows(manifest := storage.read(last) if (last := storage.last_id()) else None) < rounds * keys:
                if process.poll() is not None:
                    raise SystemExit(f"the run of {workers} workers has ended: {log.read_text('utf-8')[-3000:]}")
                if not runs_at and "streams run in" in log.read_text("utf-8"):
                    runs_at = time.monotonic()
                memory.look(process.pid)
                time.sleep(0.2)
            over = time.monotonic()
            process.send_signal(signal.SIGTERM)
            if process.wait(300):
                raise SystemExit(f"the run of {workers} workers has failed: {log.read_text('utf-8')[-3000:]}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert manifest is not None
    check(folder, keys, rounds)
    return {
        "workers": workers,
        "restore_s": round(runs_at - began, 1),
        "read_s": round(over - runs_at, 1),
        "peak_mb": round(memory.peak_mb),
        "peak_worker_mb": round(memory.peak_worker_mb),
        "checkpoint_mb": round(manifest.nbytes / 1e6),
    }


def check(folder: Path, keys: int, rounds: int) -> None:
    """Raises SystemExit where a key was lost, came twice, or has another text or count than it must have."""
    found: Counter[tuple[int, str]] = Counter()
    with open(folder / "out.ndjson", encoding="utf-8") as file:
        for row in map(json.loads, file):
            found.update({(row["n"], name): row[name] for name in ("rows", "keys", "wrong")})
    for n in range(1, rounds + 1):
        sums = tuple(found.pop((n, name), 0) for name in ("rows", "keys", "wrong"))
        if sums != (keys, keys * (keys - 1) // 2, 0):
            raise SystemExit(f"count {n}: (rows, sum of keys, wrong texts) are {sums}, of {keys} keys")
    if found:
        raise SystemExit(f"counts that no key has: {dict(found)}")


def main() -> None:
    """Prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--rows", type=int, default=100_000, help="as many keys, a kilobyte of state each; a multiple of 8"
    )
    options.add_argument("--folder", type=Path, help="an empty one, on a disk with room for four times the state")
    given = options.parse_args()
    keys = given.rows // PARTITIONS * PARTITIONS
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        runs = [run(Path(name), keys, number, workers) for number, workers in enumerate(RUNS, 1)]
    print(json.dumps({"keys": keys, "state_mb": round(keys * TEXT_BYTES / 1e6), "runs": runs}))


if __name__ == "__main__":
    main()
elif "RESCALE" in os.environ:  # `sabot run rescale:app` imports this file
    asked = os.environ["RESCALE"].split(" ", 2)
    app = build(Path(asked[2]), int(asked[0]), int(asked[1]))
