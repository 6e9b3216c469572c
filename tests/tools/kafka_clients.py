"""What Kafka clients take of this process, their threads and its memory, and clients that give records up."""

import contextlib
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError

__all__ = ["LINUX", "MIB", "GivesRowsUp", "GivesUp", "rss", "threads"]

MIB = 2**20
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads and memory there")


def threads() -> int:
    """How many threads of librdkafka there are."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append(task.read_text())
    return sum(name.startswith("rdk:") for name in names)


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
