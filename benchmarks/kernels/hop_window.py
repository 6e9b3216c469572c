"""Hopping windows on one core: what they cost beside tumbling ones over the same rows, by key.

    python benchmarks/kernels/hop_window.py [--rows N] [--keys zipf|uniform|few|all] [--window "1h/1m"|"1m/1s"|all] [--passes P]

Event time rises 0.5 ms a row, with up to 2 s of disorder, as in the file of `make_txns.py`. Keys: 100,000 accounts, Zipf 1.2
("zipf") and uniform, and 1,000 uniform ("few"). A WindowAggregate (count, sum and max of amounts) gets batches of `--split` rows,
and after each the watermark. Beside hop(size, slide), and in turns with it: tumbling(slide), which has the same panes, and
tumbling(size), which has the same windows, but side by side. The best pass of each counts. ns of processor time a row, in parts:

    process   rows into panes
    merge     all of `advance` but the results: panes come into a window and leave it, panes are dropped
    results   accumulators become columns, and batches

`cost` is process + merge; `of_slide` and `of_size`: the hop's, divided by that of tumbling. Counted are rows of whole windows, from
the second on: in the first one the state grows, which is new memory. Where rows are too few for that, all of them are ("whole").
1m/1s gets a quarter of the rows. Checked: number and sum over all windows, and all groups of some of them, against numpy.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.windows import HoppingWindow, TumblingWindow, hopping, tumbling
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.engine.operators.windows.fixed import WindowAggregate

START_MS = 1_700_000_000_000
DISORDER_MS = 2_000
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "amount"),
    AggregateColumn("biggest", "max", "amount"),
]
ACCOUNTS = {"zipf": 100_000, "uniform": 100_000, "few": 1_000}
WINDOWS = {"1h/1m": 1, "1m/1s": 4}  # of so many rows one
SAMPLES = 5

Window = TumblingWindow | HoppingWindow


class Rows:
    """The rows, drawn, and as batches with buffers of their own. `number` is the account's."""

    def __init__(self, rows: int, keys: str, split: int) -> None:
        random = np.random.default_rng(7)
        accounts = ACCOUNTS[keys]
        if keys == "zipf":
            cumulative = np.cumsum(np.arange(1, accounts + 1) ** -1.2)
            self.number = np.searchsorted(cumulative / cumulative[-1], random.random(rows)).clip(max=accounts - 1)
        else:
            self.number = random.integers(0, accounts, rows)
        self.amount = np.rint(random.lognormal(4.0, 1.2, rows) * 64) / 64  # sums are exact
        self.time = START_MS + np.arange(rows) // 2 - random.integers(0, DISORDER_MS, rows, endpoint=True)
        self.names = pa.array([f"acc{i}" for i in range(accounts)])
        self.split = split

    def batches(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Each with the watermark that follows it."""
        for start in range(0, len(self.time), self.split):
            part = slice(start, start + self.split)
            columns = [self.names.take(pa.array(self.number[part])), self.amount[part], self.time[part]]
            yield (
                pa.RecordBatch.from_arrays(
                    [pa.array(column) for column in columns], ["account", "amount", TIME_COLUMN]
                ),
                int(self.time[: start + self.split][-DISORDER_MS * 2 :].max()) - DISORDER_MS,
            )


class Timed(WindowAggregate):
    """Knows what its results took."""

    results_s = 0.0

    def _emit(self, *window: Any) -> None:
        started = time.thread_time()
        super()._emit(*window)
        self.results_s += time.thread_time() - started


class Found:
    """What came out: numbers, and the windows of the sample."""

    def __init__(self, sample: list[int]) -> None:
        self.sample: dict[int, list[pa.RecordBatch]] = {end: [] for end in sample}
        self.n, self.total, self.windows = 0, 0.0, set[int]()

    def __call__(self, batch: Batch) -> None:
        data = batch.data
        self.n += int(data.column("n").to_numpy().sum())
        self.total += float(data.column("total").to_numpy().sum())
        lasts = data.column(TIME_COLUMN).to_numpy()
        begins = np.flatnonzero(np.diff(lasts, prepend=lasts[0] - 1))  # a batch has whole windows, one behind the other
        for begin, after in itertools.pairwise([*begins.tolist(), len(lasts)]):
            end = int(lasts[begin]) + 1
            self.windows.add(end)
            if end in self.sample:
                self.sample[end].append(data.slice(begin, after - begin))


def run(rows: Rows, window: Window, size_ms: int) -> dict[str, float]:
    """-> ns a row of each part, for rows of windows of this size. Raises AssertionError where the answer is wrong."""
    slide = window.slide_ms if isinstance(window, HoppingWindow) else window.size_ms
    first, last = int(rows.time.min()) // slide * slide, int(rows.time.max()) // slide * slide + window.size_ms
    ends = np.arange(first + slide, last + 1, slide)
    found = Found([int(end) for end in ends[np.linspace(0, len(ends) - 1, SAMPLES).astype(int)]])
    operator = Timed(window, ["account"], CALLS)
    operator.emit = found
    operator.open(
        OperatorContext(pa.schema([("account", pa.string()), ("amount", pa.float64()), (TIME_COLUMN, pa.int64())]))
    )
    count = len(rows.time)
    begin, end = counted_rows(count, size_ms)
    process = advance = results = 0.0
    emitted = at = 0
    for batch, watermark in rows.batches():
        before = operator.results_s, operator.statistics()["results"]
        started = time.thread_time()
        operator.process(Batch(batch))
        processed = time.thread_time()
        operator.advance(watermark)
        if begin <= at < end:
            advance += time.thread_time() - processed
            process += processed - started
            results += operator.results_s - before[0]
            emitted += operator.statistics()["results"] - before[1]
        at += batch.num_rows
    operator.advance(END_OF_TIME)
    late = operator.statistics()["late_rows"]
    operator.close()
    check(rows, window, slide, found, ends)
    assert late == 0
    parts = {"process": process, "merge": advance - results, "results": results, "cost": process + advance - results}
    return {
        **{part: seconds / (end - begin) * 1e9 for part, seconds in parts.items()},
        "results_per_row": emitted / (end - begin),
    }


def counted_rows(rows: int, size_ms: int) -> tuple[int, int]:
    """The rows of whole windows after the first; all where there are none."""
    size = 2 * size_ms
    return (size, rows // size * size) if rows >= 2 * size else (0, rows)


def check(rows: Rows, window: Window, slide: int, found: Found, ends: "np.ndarray[Any, Any]") -> None:
    times = window.size_ms // slide
    assert found.n == times * len(rows.time), (found.n, times * len(rows.time))
    assert found.total == times * rows.amount.sum(), "the sum over all windows is wrong"
    panes = np.unique(rows.time // slide * slide)
    wanted = {int(end) for end in ends if np.searchsorted(panes, end - window.size_ms) < np.searchsorted(panes, end)}
    assert found.windows == wanted, "other windows than those that have rows"
    for end, parts in found.sample.items():
        inside = (rows.time >= end - window.size_ms) & (rows.time < end)
        number, amount = rows.number[inside], rows.amount[inside]
        there, at = np.unique(number, return_inverse=True)
        biggest = np.zeros(len(there))
        np.maximum.at(biggest, at, amount)
        answer = {
            "account": rows.names.take(pa.array(there)),
            "n": np.bincount(at, minlength=len(there)),
            "total": np.bincount(at, amount, minlength=len(there)),
            "biggest": biggest,
        }
        by = [("account", "ascending")]
        if not parts:
            assert not len(there), f"no results of the window that ends at {end}"
            continue
        got = pa.Table.from_batches(parts)
        assert set(got["window_end"].cast(pa.int64()).to_pylist()) == {end}
        assert got.select(list(answer)).sort_by(by).equals(pa.table(answer).sort_by(by)), (
            f"the window to {end} is wrong"
        )


def measure(rows: Rows, name: str, passes: int) -> dict[str, object]:
    size, slide = name.split("/")
    windows: dict[str, Window] = {"hop": hopping(size, slide), "slide": tumbling(slide), "size": tumbling(size)}
    best: dict[str, dict[str, float]] = {}
    for _ in range(passes):
        for kind, window in windows.items():
            ns = run(rows, window, windows["size"].size_ms)
            if kind not in best or ns["cost"] < best[kind]["cost"]:
                best[kind] = ns
    begin, end = counted_rows(len(rows.time), windows["size"].size_ms)
    return {
        **{kind: {part: round(value, 2) for part, value in ns.items()} for kind, ns in best.items()},
        "rows": end - begin,
        "whole": begin == 0,
        "of_slide": round(best["hop"]["cost"] / best["slide"]["cost"], 2),
        "of_size": round(best["hop"]["cost"] / best["size"]["cost"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_000_000)
    parser.add_argument("--keys", choices=[*ACCOUNTS, "all"], default="all")
    parser.add_argument("--window", choices=[*WINDOWS, "all"], default="all")
    parser.add_argument("--split", type=int, default=32_768, help="rows of a batch")
    parser.add_argument("--passes", type=int, default=2, help="the best of this many passes counts")
    options = parser.parse_args()
    figures: dict[str, object] = {"benchmark": "hop_window", "rows": options.rows, "split": options.split}
    for keys in ACCOUNTS if options.keys == "all" else [options.keys]:
        for name in WINDOWS if options.window == "all" else [options.window]:
            rows = Rows(options.rows // WINDOWS[name], keys, options.split)
            figures[f"{keys} {name}"] = measure(rows, name, options.passes)
    print(json.dumps({**figures, "checked_against": "numpy"}))


if __name__ == "__main__":
    main()
