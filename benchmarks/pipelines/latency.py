"""How long a record takes through a stream on the embedded broker: topic -> decode, filter, project, encode -> topic.

    python benchmarks/pipelines/latency.py --seconds 4

The peak rate is measured first; then records come at half of it, in batches that linger 5 ms, each row with the time at which it was
made (the linger counts), and a reader of the results compares that with its clock. p50 and p99 over all rows that came out; the answer
is checked: every row that passes the filter comes out once, with its value.
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pyarrow as pa

from sabot import App, Batch, col
from sabot._cython.text.json import JsonDecoder
from sabot.codecs.records import row_records
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource

SCHEMA = {"id": "int64", "made_us": "int64", "amount": "float64"}
OUT = JsonDecoder(pa.schema([("id", pa.int64()), ("made_us", pa.int64()), ("euro", pa.float64())]))
LINGER_SECONDS = 0.005
PART_ROWS = 16_384


def records(first: int, made_us: np.ndarray) -> pa.RecordBatch:
    """Rows as JSON records; every tenth amount is 10 or less."""
    ids = np.arange(first, first + len(made_us))
    rows = pa.record_batch({"id": ids, "made_us": made_us, "amount": (ids % 10) * 4.0 + 10.0})
    return row_records(rows, None, 0)


class Reader(threading.Thread):
    """Reads the results until `expected` rows have come."""

    def __init__(self, source: MemorySource, expected: int) -> None:
        super().__init__(daemon=True)
        self.source = source
        self.expected = expected
        self.rows = self.wrong = 0
        self.ids = 0
        self.latencies: list[np.ndarray] = []
        self.began = self.last = 0.0

    def run(self) -> None:
        while self.rows < self.expected:
            batch = self.source.read_batch(65_536, 0.5)
            if batch is None:
                continue
            arrived = int((time.perf_counter() - self.began) * 1e6)
            data, bad = OUT.decode(batch.data.column("payload"))
            ids, made, euro = (data.column(i).to_numpy() for i in range(3))
            self.wrong += len(bad) + int((euro != ((ids % 10) * 4.0 + 10.0) * 2).sum())
            self.ids += int(ids.sum())
            self.latencies.append(arrived - made)
            self.rows += data.num_rows
            self.last = time.perf_counter()


async def run(
    rate: float | None, rows: int, url: str, beside: Callable[[App], AbstractContextManager[object]] = nullcontext
) -> tuple[float, np.ndarray]:
    """-> (rows per second from first in to last out, latencies in µs). `beside`: entered with the app while rows are fed."""
    MemoryBroker.get(url).reset()
    app = App("latency", broker=url)
    stream = app.stream("in", schema=SCHEMA).filter(col("amount") > 10)
    stream.select("id", "made_us", euro=col("amount") * 2).to("out")
    await app.start()
    source = MemorySource("out", url)
    source.open(None)
    passing = np.arange(rows) % 10 != 0
    reader = Reader(source, int(passing.sum()))
    sink = MemorySink("in", url)
    sink.open()
    ticks = [(0.0, part) for part in all_at_once(rows)] if rate is None else paced(rows, rate)

    def fed() -> float:
        with beside(app):
            reader.start()
            began = reader.began = time.perf_counter()
            feed(sink, ticks, began)
            reader.join(120)
            return began

    began = await asyncio.to_thread(fed)
    assert reader.rows == reader.expected, f"{reader.rows} rows came out of {reader.expected}"
    assert reader.wrong == 0
    assert reader.ids == int(np.flatnonzero(passing).sum())
    source.close()
    await app.stop()
    return rows / (reader.last - began), np.concatenate(reader.latencies)


def all_at_once(rows: int) -> list[Batch]:
    """Everything, made beforehand."""
    sizes = [(first, min(PART_ROWS, rows - first)) for first in range(0, rows, PART_ROWS)]
    return [Batch(records(first, np.zeros(size, np.int64)), None, "in") for first, size in sizes]


def paced(rows: int, rate: float) -> list[tuple[float, Batch]]:
    """(seconds after the start, what was made in the 5 ms before), made beforehand: the making must not take the engine's cores."""
    ticks = []
    first, due = 0, LINGER_SECONDS
    while first < rows:
        end = min(rows, max(first + 1, int(due * rate)))
        made = np.arange(first, end) / rate * 1e6  # µs after the start
        ticks.append((due, Batch(records(first, made.astype(np.int64)), None, "in")))
        first, due = end, due + LINGER_SECONDS
    return ticks


def feed(sink: MemorySink, ticks: list[tuple[float, Batch]], began: float) -> None:
    """Writes each when its time has come."""
    for due, batch in ticks:
        wait = began + due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        sink.write(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the run that finds the peak")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the run at half of it")
    options = parser.parse_args()
    peak, _ = asyncio.run(run(None, options.rows, "memory://latency"))
    rate = peak / 2
    seconds = min(options.seconds, max(0.2, 20 * options.rows / peak))
    achieved, latencies = asyncio.run(run(rate, int(rate * seconds), "memory://latency"))
    p50, p99 = np.percentile(latencies, [50, 99]) / 1000
    result = {
        "benchmark": "latency",
        "peak_rows_per_s": round(peak),
        "rows_per_s": round(achieved),
        "rows": int(rate * seconds),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(float(latencies.max()) / 1000, 3),
        "linger_ms": LINGER_SECONDS * 1000,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
