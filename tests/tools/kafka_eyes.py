"""Topics and groups of a real broker as a plain consumer sees them: no code under test."""

from confluent_kafka import Consumer, KafkaError, TopicPartition

__all__ = ["committed", "token"]


def committed(url: str, topic: str, isolation: str = "read_committed") -> list[bytes]:
    """The records that a plain consumer sees, to the end of every partition."""
    plain = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": "reader", "enable.auto.commit": False}
    reader = Consumer({**plain, "isolation.level": isolation, "enable.partition.eof": True})
    indexes = reader.list_topics(topic, 30).topics[topic].partitions
    reader.assign([TopicPartition(topic, index, 0) for index in indexes])
    found, ended = [], 0
    while ended < len(indexes):
        for message in reader.consume(10_000, 0.05):
            if message.error() is None:
                found.append(message.value())
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended += 1
    reader.close()
    return found


def token(url: str, group: str, topic: str) -> tuple[int, str]:
    """The offsets that a plain consumer finds in the group."""
    plain = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": group, "enable.auto.commit": False}
    reader = Consumer(plain)
    (found,) = reader.committed([TopicPartition(topic, 0)], 30)
    reader.close()
    return found.offset, found.metadata
