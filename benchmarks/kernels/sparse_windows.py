"""What a window costs that has few rows: windows whose panes get a row each, beside dense ones over as many rows.

    python benchmarks/kernels/sparse_windows.py [--rows N] [--split N] [--passes P] [--limit-us US]

A WindowAggregate gets batches of `--split` rows, and after each the watermark, so that nearly all windows of a batch
close. Event time rises by `gap` ms a row, with some disorder. µs of processor time a window, in all: rows into panes,
windows that close, results. The best pass counts.

    keys, no keys   count, sum and max of amounts, by one of 1,000 accounts or of all rows
    texts           count and the list of texts: state beside the accumulators
    late            as "keys", with an allowed lateness of 100 windows; an extra row for each 50th window comes late
    calendar        as "keys", in days of Berlin
    hopping, cumulative
                    as "keys", of 10 panes of a second; each row is in a result of 10 or of 5.5 windows
    wide, by key    as "no keys" and "keys", of 60 panes; by key, each window has about 60 results
    wide texts, wide distinct
                    count, and the list or the number of distinct texts, of 60 panes
    200 panes, 1440 panes
                    as "no keys", of fewer rows
    bursts, bursts of 1440 panes
                    as "200 panes" and "1440 panes", of which each hundredth has 100 rows and half of the others one
    top             the greatest amount of each account, in tumbling windows; top of hopping: in those of 10 panes
    dense           as "keys", with 10,000 rows a window: ns a row

Checked: the number of windows, and count, sum and maximum of each against numpy (of top: the maximum). Fails if the
answer is wrong, or if a window takes longer than `--limit-us` (a busy machine takes longer, so without it none does).
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.windows import CalendarWindow, CumulativeWindow, TimeWindow, cumulative, hopping, tumbling
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.top import WindowTopN

START_MS = 1_699_999_200_000  # a full hour, and a midnight of no zone that matters
NUMBERS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "amount"),
    AggregateColumn("most", "max", "amount"),
]
TEXTS = [AggregateColumn("n", "count"), AggregateColumn("texts", "collect_list", "account")]
DISTINCT = [AggregateColumn("n", "count"), AggregateColumn("distinct", "count_distinct", "account")]
TOP: list[AggregateColumn] = []  # stands for a top_n
SCHEMA = pa.schema([("account", pa.string()), ("amount", pa.float64()), (TIME_COLUMN, pa.int64())])
DAY_MS = 86_400_000
Case = tuple[TimeWindow, list[str], list[AggregateColumn], Any, int]


def batches(times: "np.ndarray[Any, Any]", split: int) -> list[pa.RecordBatch]:
    names = pa.array([f"acc{number}" for number in range(1_000)])
    number = np.arange(len(times))
    columns = [names.take(pa.array(number % 1_000)), pa.array(number % 64 / 8), pa.array(times)]
    whole = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    parts = [whole.slice(start, split) for start in range(0, len(times), split)]
    return [pa.RecordBatch.from_pydict(part.to_pydict(), SCHEMA) for part in parts]  # with buffers of their own


def run(
    window: TimeWindow, keys: list[str], calls: list[AggregateColumn], parts: list[pa.RecordBatch], lateness_ms: int
) -> tuple[float, list[pa.RecordBatch], int]:
    """-> seconds of processor time, the results, and the number of late rows."""
    operator: WindowAggregate | WindowTopN
    if calls is TOP:
        operator = WindowTopN(window, keys, 1, [("amount", True)])
    else:
        operator = WindowAggregate(window, keys, calls, allowed_lateness_ms=lateness_ms)
    found: list[pa.RecordBatch] = []
    operator.emit = lambda batch: found.append(batch.data)
    operator.open(OperatorContext(SCHEMA))
    seconds = 0.0
    for part in parts:
        watermark = int(part.column(TIME_COLUMN).to_numpy()[-1])
        started = time.process_time()
        operator.process(Batch(part))
        operator.advance(watermark)
        seconds += time.process_time() - started
    started = time.process_time()
    operator.advance(END_OF_TIME)
    seconds += time.process_time() - started
    late = operator.statistics()["late_rows"]
    operator.close()
    return seconds, found, late


def windows_of(times: "np.ndarray[Any, Any]", window: TimeWindow) -> tuple[Any, Any]:
    """-> the numbers of rows, and the end of a window of each: a row has as many entries as windows."""
    row = np.arange(len(times))
    if isinstance(window, CalendarWindow):
        local = pa.array(times).view(pa.timestamp("ms", window.time_zone))
        ends = pa.compute.ceil_temporal(local, unit="day", ceil_is_strictly_greater=True)
        return row, ends.view(pa.int64()).to_numpy()
    step = getattr(window, "slide_ms", getattr(window, "step_ms", window.size_ms))
    each = [(row, times // step * step + step * (number + 1)) for number in range(window.size_ms // step)]
    rows, ends = (np.concatenate(column) for column in zip(*each, strict=True))
    if isinstance(window, CumulativeWindow):
        last = times[rows] // window.size_ms * window.size_ms + window.size_ms
        rows, ends = rows[ends <= last], ends[ends <= last]
    return rows, ends


def check(found: list[pa.RecordBatch], parts: list[pa.RecordBatch], window: TimeWindow, keys: list[str]) -> int:
    """-> the number of windows. Raises AssertionError if the answer is wrong."""
    rows = pa.Table.from_batches(parts)
    row, ends = windows_of(rows[TIME_COLUMN].to_numpy(), window)
    amounts = rows["amount"].to_numpy()[row]
    number = row % 1_000 if keys else np.zeros(len(row), np.int64)
    groups, at = np.unique(
        ends * 1_000 + number, return_inverse=True
    )  # one number for both: pairs sort ten times as long
    results = pa.Table.from_batches(found)
    names = results["account"].to_pylist() if keys else ["acc0"] * results.num_rows
    over = (results[TIME_COLUMN].to_numpy() + 1).tolist()
    last = {end * 1_000 + int(name[3:]): place for place, (end, name) in enumerate(zip(over, names, strict=True))}
    order = [last[group] for group in groups.tolist()]  # late rows bring a window again
    assert len(last) == len(order), f"{len(last)} groups, expected {len(order)}"
    count = np.bincount(at)
    if "n" not in results.column_names:
        most = np.full(len(order), -1.0)
        np.maximum.at(most, at, amounts)
        assert (results["amount"].to_numpy()[order] == most).all(), "a row is not the first"
        return len(np.unique(ends))
    assert (results["n"].to_numpy()[order] == count).all(), "a count is wrong"
    if "texts" in results.column_names:
        lengths = pa.compute.list_value_length(results["texts"]).to_numpy()
        assert (lengths[order] == count).all(), "a list is wrong"
    elif "distinct" in results.column_names:
        pairs = np.unique(at * 1_000 + row % 1_000)
        assert (results["distinct"].to_numpy()[order] == np.bincount(pairs // 1_000)).all(), (
            "a number of texts is wrong"
        )
    else:
        most = np.full(len(order), -1.0)
        np.maximum.at(most, at, amounts)
        assert (results["total"].to_numpy()[order] == np.bincount(at, amounts)).all(), "a sum is wrong"
        assert (results["most"].to_numpy()[order] == most).all(), "a maximum is wrong"
    return len(np.unique(ends))


def cases(rows: int, split: int) -> dict[str, Case]:
    """-> by its name, a window, its keys, the aggregates, the times of the rows, and the allowed lateness in ms."""
    dice = np.random.default_rng(7)
    number = np.arange(rows)
    each = START_MS + number * 1_000
    disorder = each - dice.integers(0, 2_000, rows)
    disorder[split - 1 :: split] = each[split - 1 :: split] - 2_000  # no row is late
    late = each.copy()
    late[split::50] -= 60_000
    bursts = START_MS + number // 150 * 100_000 + np.where(number % 150 < 100, number % 150, number % 150 % 100 * 2_000)
    days = number * 24_000 // rows * DAY_MS  # to 2035: clocks of later years are only rules
    account = ["account"]
    return {
        "keys": (tumbling("1s"), account, NUMBERS, disorder, 0),
        "no keys": (tumbling("1s"), [], NUMBERS, disorder, 0),
        "texts": (tumbling("1s"), account, TEXTS, disorder, 0),
        "late": (tumbling("1s"), account, NUMBERS, late, 100_000),
        "calendar": (tumbling("1d", time_zone="Europe/Berlin"), account, NUMBERS, days, 0),
        "dense": (tumbling("10s"), account, NUMBERS, START_MS + number, 0),
        "hopping": (hopping("10s", "1s"), account, NUMBERS, disorder, 0),
        "cumulative": (cumulative("10s", "1s"), account, NUMBERS, disorder, 0),
        "wide": (hopping("60s", "1s"), [], NUMBERS, disorder, 0),
        "by key": (hopping("60s", "1s"), account, NUMBERS, disorder[: rows // 5], 0),
        "wide texts": (hopping("60s", "1s"), [], TEXTS, disorder[: rows // 5], 0),
        "wide distinct": (hopping("60s", "1s"), [], DISTINCT, disorder[: rows // 5], 0),
        "200 panes": (hopping("200s", "1s"), [], NUMBERS, disorder[: rows // 5], 0),
        "1440 panes": (hopping("24m", "1s"), [], NUMBERS, disorder[: rows // 20], 0),
        "bursts": (hopping("200s", "1s"), [], NUMBERS, bursts[: rows // 10], 0),
        "bursts of 1440 panes": (hopping("24m", "1s"), [], NUMBERS, bursts[: rows // 20], 0),
        "top": (tumbling("1s"), account, TOP, disorder, 0),
        "top of hopping": (hopping("10s", "1s"), account, TOP, disorder, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--split", type=int, default=8_192, help="rows of a batch")
    parser.add_argument("--passes", type=int, default=3, help="the best of this many passes counts")
    parser.add_argument("--limit-us", type=float, default=float("inf"), help="the most that a window may cost")
    options = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "sparse_windows", "rows": options.rows, "split": options.split}
    for name, (window, keys, calls, times, lateness_ms) in cases(options.rows, options.split).items():
        parts = batches(times, options.split)
        best = float("inf")
        for _ in range(options.passes):
            seconds, found, rejected = run(window, keys, calls, parts, lateness_ms)
            assert not rejected, f"{name}: {rejected} rows are late"
            windows = check(found, parts, window, keys)
            best = min(best, seconds)
        if name == "dense":
            figures["dense, ns a row"] = round(best / options.rows * 1e9, 1)
        else:
            figures[name] = {"windows": windows, "us_a_window": round(best / windows * 1e6, 2)}
    print(json.dumps({**figures, "checked_against": "numpy"}))
    slow = [name for name, each in figures.items() if isinstance(each, dict) and each["us_a_window"] > options.limit_us]
    if slow:
        raise SystemExit(f"a window takes longer than {options.limit_us} us: {', '.join(slow)}")


if __name__ == "__main__":
    main()
