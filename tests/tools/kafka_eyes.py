"""Topics and groups of a real broker as a plain consumer sees them: no code under test."""

import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

__all__ = ["committed", "messages", "token"]

PATIENCE = 60.0  # seconds without a record until a topic has no end: a transaction is open


def committed(url: str, topic: str, isolation: str = "read_committed", *, is_open: bool = False) -> list[bytes]:
    """The payloads that a plain consumer sees, to the end of every partition."""
    return [message.value() for message in messages(url, topic, isolation, is_open=is_open)]


def messages(
    url: str, topic: str, isolation: str = "read_committed", least: int = 0, *, is_open: bool = False
) -> list[Any]:
    """The same, as the client's messages. Nobody writes into the topic meanwhile.

    least: so many are known to be there. is_open: a transaction stays open, and what is behind its begin is not seen. Else all are over:
    their marks are written after their commit has returned, and before the marks a partition seems to end where they begin.
    """
    plain = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": "reader", "enable.auto.commit": False}
    ends = {"enable.partition.eof": True, "fetch.wait.max.ms": 10}  # the end is told after this wait without a record
    reader = Consumer({**plain, "isolation.level": isolation, **ends})
    indexes = reader.list_topics(topic, 30).topics[topic].partitions
    places = [TopicPartition(topic, index, 0) for index in indexes]
    bounds = {} if is_open else {place.partition: _end(plain, place) for place in places}
    reader.assign(places)
    found, ended, limit = [], set(), time.monotonic() + PATIENCE
    while len(ended) < len(indexes) or len(found) < least:
        assert time.monotonic() < limit, f"{topic} does not come to its end with {len(found)}: a transaction is open"
        for message in reader.consume(10_000, 0.02):
            limit = time.monotonic() + PATIENCE
            if message.error() is None:
                found.append(message)
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                if message.offset() >= bounds.get(message.partition(), 0):
                    ended.add(message.partition())
    reader.close()
    return found


def _end(settings: dict[str, Any], place: TopicPartition) -> int:
    """The offset behind all that is in the partition, in open transactions too."""
    looking = Consumer({**settings, "isolation.level": "read_uncommitted"})
    try:
        return int(looking.get_watermark_offsets(place, 30)[1])
    finally:
        looking.close()


def token(url: str, group: str, topic: str) -> tuple[int, str]:
    """The offsets that a plain consumer finds in the group."""
    plain = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": group, "enable.auto.commit": False}
    reader = Consumer(plain)
    (found,) = reader.committed([TopicPartition(topic, 0)], 30)
    reader.close()
    return found.offset, found.metadata
