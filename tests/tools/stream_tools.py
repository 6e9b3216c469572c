"""What the tests of streams on a broker share: payments, the windows of them by plain Python, and what an output says."""

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Producer

HOUR = 3_600_000
BASE = (int(time.time()) // 3600 - 2) * HOUR  # a recent hour: a broker drops records whose own time is days ago
SCHEMA = {"account": "string", "amount": "float64", "id": "int64", "ts": "int64"}
PARTITIONS, WINDOW, DISORDER = 4, 10_000, 2_000

Row = dict[str, Any]
Answer = dict[tuple[str, int], tuple[int, float, list[int]]]  # (account, start of the window) -> count, sum, ids


def payments(count: int, *, first: int = 0) -> list[Row]:
    """Event time rises 20 ms a row, up to 2 s out of order; amounts are multiples of 1/64, a tenth of them not above 0."""
    return [_payment(number) for number in range(first, first + count)]


def _payment(number: int) -> Row:
    rng = random.Random(number)
    return {
        "account": f"a{rng.randrange(30)}",
        "amount": rng.randrange(-640, 6400) / 64,
        "id": number,
        "ts": BASE + number * 20 + rng.randrange(DISORDER),
    }


def send(
    settings: Mapping[str, Any], topic: str, rows: Sequence[Row], *, slices: int = PARTITIONS, stamp: bool = False
) -> None:
    """Rows one after the other to the partitions in turn, with keys; safe when this returns. stamp: `ts` is the record's own time."""
    producer = Producer(dict(settings))
    for number, row in enumerate(rows):
        when = {"timestamp": row["ts"]} if stamp else {}
        producer.produce(topic, json.dumps(row), row["account"], partition=number % slices, **when)
    assert producer.flush(60) == 0


def tick(settings: Mapping[str, Any], topic: str, *, slices: int = PARTITIONS, stamp: bool = False) -> None:
    """A row of three hours later in each partition: every window of before is complete."""
    row = {"account": "tick", "amount": 1.0, "id": -1, "ts": BASE + 3 * HOUR - 1}
    send(settings, topic, [row] * slices, slices=slices, stamp=stamp)


def expected(rows: Iterable[Row]) -> Answer:
    """The windows that plain Python makes of the rows."""
    windows = defaultdict(list)
    for row in rows:
        if row["amount"] > 0:
            windows[row["account"], row["ts"] // WINDOW * WINDOW].append(row)
    return {
        window: (len(inside), sum(row["amount"] for row in inside), sorted(row["id"] for row in inside))
        for window, inside in windows.items()
    }


def answers(rows: Iterable[Row]) -> Answer:
    """What an output says; AssertionError where it says two things of one window."""
    found: Answer = {}
    for row in rows:
        assert row["window_end"] == row["window_start"] + WINDOW
        window = (row["n"], row["total"], sorted(row["ids"]))
        assert found.setdefault((row["account"], row["window_start"]), window) == window
    return found
