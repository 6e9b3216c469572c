"""What Kafka clients take of this process, their threads and its memory, and clients that give records up."""

import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError

__all__ = ["LINUX", "MIB", "GivesRowsUp", "GivesUp", "grown", "have_ended", "rss", "threads"]

MIB = 2**20
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads and memory there")


def threads() -> int:
    """How many threads of librdkafka there are."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append(task.read_text())
    return sum(name.startswith("rdk:") for name in names)


def have_ended(running: int) -> bool:
    """Whether no more than these are left, within a minute: one that was joined stands in /proc until it has had a core once more."""
    limit = time.monotonic() + 60
    while threads() > running and time.monotonic() < limit:
        time.sleep(0.01)
    return threads() <= running


def grown(some: Callable[[], object]) -> int:
    """The bytes that this process takes more for `some`, the least of some turns: what leaks does so in each, and other threads and the
    allocator take memory now and then.
    """
    least = None
    for _ in range(3):
        before = rss()
        some()
        more = rss() - before
        least = more if least is None else min(least, more)
    assert least is not None
    return least


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class GivesUp:
    """A producer that has given up its connection to the leader, as one may where a topic is deleted: its reports do not say why. With
    `now` False it is the producer that it was made of.
    """

    def __init__(self, producer: Any) -> None:
        self.now = True
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def produce(self, *record: Any, on_delivery: Any, **how: Any) -> None:
        if not self.now:
            return self._producer.produce(*record, on_delivery=on_delivery, **how)
        on_delivery(KafkaError(KafkaError._DESTROY), None)


class GivesRowsUp(GivesUp):
    """A RecordProducer that has done so."""

    def produce(self, data: pa.RecordBatch, begin: int) -> tuple[int, None]:  # type: ignore[override]
        return data.num_rows, None

    def refused(self) -> tuple[int, int, int, bytes, int]:
        return 1, KafkaError._DESTROY, 0, b"key", 9
