"""The places that the contract suites run on: how each is filled and read from outside, beside the code under
test.
"""

import asyncio
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sabot.connectors.base import Headers, Record, Sink, Source, iterate_records
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.kafka import KafkaSink, KafkaSource, RecordSender

PAYLOADS = [json.dumps({"n": n}).encode() for n in range(10)]


class MemoryPlace:
    """A topic of the embedded broker."""

    name = "memory"
    exact = True  # keeps keys, headers, timestamps and payloads that are no line of text
    groups = True

    def __init__(self, url: str, topic: str) -> None:
        self.topic = topic
        self.url = url
        self.broker = MemoryBroker.get(url)

    def create(self, partitions: int = 1) -> None:
        self.broker.create_topic(self.topic, partitions)

    def put(
        self,
        payloads: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> None:
        self.broker.publish(self.topic, payloads, key=key, headers=headers, timestamp=timestamp, partition=partition)

    def source(self, group: str = "g") -> Source:
        return MemorySource(self.topic, self.url, group)

    def sink(self) -> Sink:
        return MemorySink(self.topic, self.url)

    def records(self) -> list[Record]:
        return self.broker.records(self.topic)


class FilePlace:
    """An NDJSON file."""

    name = "ndjson"
    exact = False
    groups = False

    def __init__(self, folder: Path) -> None:
        self.topic = os.fspath(folder / "rows.ndjson")

    def create(self, partitions: int = 1) -> None:
        Path(self.topic).touch()

    def put(self, payloads: Sequence[bytes | None]) -> None:
        with open(self.topic, "ab") as file:
            file.writelines(payload + b"\n" for payload in payloads if payload is not None)

    def source(self, group: str = "g") -> Source:
        return NdjsonSource(self.topic)

    def sink(self) -> Sink:
        return NdjsonSink(self.topic)

    def records(self) -> list[Record]:
        if not os.path.exists(self.topic):
            return []
        lines = Path(self.topic).read_bytes().split(b"\n")
        assert lines.pop() == b""
        return [Record(line, None) for line in lines]


class KafkaPlace(MemoryPlace):
    """A topic of a real broker."""

    name = "kafka"

    def __init__(self, url: str, topic: str) -> None:
        from sabot.kafka import admin

        self.topic = topic
        self.url = url
        self.admin = admin
        self.sender = _sender(url)

    def create(self, partitions: int = 1) -> None:
        self.admin.create_topic(self.url, self.topic, partitions, config={"max.message.bytes": "16777216"})

    def put(self, payloads: Sequence[bytes | None], **where: object) -> None:
        async def send() -> None:
            for payload in payloads:
                await self.sender.send(self.topic, payload, **where)  # type: ignore[arg-type]

        asyncio.run(send())

    def source(self, group: str = "g") -> Source:
        return KafkaSource(self.topic, self.url, f"{self.topic}.{group}", partition_check=0.2)

    def sink(self) -> Sink:
        return KafkaSink(self.topic, self.url)

    def records(self) -> list[Record]:
        source = self.source("records")
        source.open(None, "latest")
        end = source.positions()
        source.close()
        source.open(None)
        found: list[Record] = []
        while source.positions() != end:
            batch = source.read_batch(65536, 5)
            assert batch is not None
            found += iterate_records(batch.data, self.topic)
        source.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))


@functools.cache
def _sender(url: str) -> RecordSender:
    """One for all tests: an idempotent producer takes half a second to get its id."""
    return RecordSender(url)


Place = MemoryPlace | FilePlace | KafkaPlace
