"""The latency of a run while the console reads state, compared with the same run alone.

    python benchmarks/pipelines/console_reads.py --pairs 10

Records come at a fixed rate through the stream of `latency.py`, in pairs of runs: alone, and while the reader process of a console reads
one page after the other of a state in RocksDB; `--pause 0` reads without a pause. Each page's number of rows is checked, and the answer of
each run.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import latency
import numpy as np
import pyarrow as pa

import sabot
from sabot import App
from sabot.checkpoint import CheckpointStorage
from sabot.checkpoint.state_reads import PAGE_ROWS, rows_in
from sabot.testing import END, ListSink, ScriptedSource
from sabot.web.reader import ConsoleReader

URL = "memory://console-reads"


class Reading(threading.Thread):
    """Reads pages of state, one after the other, as a console does in its thread, until `stop` is set. `pause`: seconds between two."""

    def __init__(self, place: Path, pause: float) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.pause = pause
        self.pages = 0
        self.warm, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._read())

    async def _read(self) -> None:
        reader, cursor = ConsoleReader(), ""
        while not self.stop.is_set():
            page = await reader.read(rows_in, str(self.place), 0, "totals", None, cursor)
            assert len(page.rows) == PAGE_ROWS or not page.following
            cursor = page.following
            self.pages += 1
            self.warm.set()
            await asyncio.sleep(self.pause)
        reader.close()


async def make_state(folder: Path, keys: int) -> Path:
    """Runs an app that keeps a total for each key, and returns the place of its checkpoints."""
    place = folder / "kept"
    app = App("state", state=str(folder / "state"), checkpoint_dir=str(place))
    parts = [pa.record_batch({"k": np.arange(first, min(keys, first + 10_000))}) for first in range(0, keys, 10_000)]
    rows = app.stream(ScriptedSource([*parts, END])).key_by("k")
    rows.aggregate(n=sabot.count()).named("totals").to(ListSink())
    await app.run()
    newest = CheckpointStorage(place).latest()
    assert newest is not None
    return place


def p99_ms(rate: int, seconds: float) -> float:
    _, found = asyncio.run(latency.run(rate, int(rate * seconds), URL))
    return float(np.percentile(found, 99)) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rate", type=int, default=50_000, help="rows per second")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two pages")
    parser.add_argument("--keys", type=int, default=100_000, help="of the state")
    options = parser.parse_args()
    alone, beside, pages = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        place = asyncio.run(make_state(Path(folder), options.keys))
        p99_ms(options.rate, 1.0)  # warms up
        for pair in range(options.pairs):
            for reads in (False, True) if pair % 2 else (True, False):
                reading = Reading(place, options.pause) if reads else None
                if reading is not None:
                    reading.start()
                    assert reading.warm.wait(60)
                (beside if reads else alone).append(p99_ms(options.rate, options.seconds))
                if reading is not None:
                    reading.stop.set()
                    reading.join()
                    pages += reading.pages
                time.sleep(0.2)
    ratios = [after / before for before, after in zip(alone, beside, strict=True)]
    result = {
        "benchmark": "console_reads",
        "pairs": options.pairs,
        "rows_per_s": options.rate,
        "state_keys": options.keys,
        "pause_s": options.pause,
        "p99_ms_alone": round(statistics.median(alone), 3),
        "p99_ms_while_read": round(statistics.median(beside), 3),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "pages_per_s": round(pages / (options.pairs * options.seconds), 2),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
