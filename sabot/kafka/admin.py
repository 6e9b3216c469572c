"""Topics of a Kafka broker: make, grow, list, delete."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.cimpl import NewPartitions

from sabot.clock import SYSTEM_CLOCK
from sabot.kafka.client import (
    ANSWER_SECONDS,
    NoSuchTopic,
    admin_of,
    ensure_topic,
    explain,
    link_of,
    metadata_of,
    partitions_of,
    wait_for_partitions,
)
from sabot.redaction import clean_cause

__all__ = ["create_topic", "delete_topic", "partitions", "topics"]


def create_topic(
    broker: str,
    topic: str,
    partitions: int = -1,
    *,
    config: Mapping[str, str] | None = None,
    kafka: Mapping[str, Any] | None = None,
) -> None:
    """Makes the topic if it is missing, and grows it to `partitions` if it has fewer (-1: the broker's default)."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Create")
    ensure_topic(link, topic, kafka or {}, partitions, config)
    admin = admin_of(link, kafka or {})
    if partitions > len(partitions_of(admin, link, topic)):
        try:
            admin.create_partitions([NewPartitions(topic, partitions)])[topic].result()
        except KafkaException as error:
            raise explain(error.args[0], link, topic, "Alter") from clean_cause(error)
        wait_for_partitions(admin, link, topic, partitions)


def delete_topic(broker: str, topic: str, *, kafka: Mapping[str, Any] | None = None) -> None:
    """Deletes the topic; nothing happens when there is none."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Delete")
    admin = admin_of(link, kafka or {})  # a variable, because the request would end with the client that made it
    try:
        admin.delete_topics([topic])[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise explain(error.args[0], link, topic) from clean_cause(error)


def partitions(broker: str, topic: str, *, kafka: Mapping[str, Any] | None = None) -> int:
    """How many partitions the topic has; 0 when there is no such topic."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Describe")
    try:
        return len(partitions_of(admin_of(link, kafka or {}), link, topic))
    except NoSuchTopic:
        return 0


def topics(broker: str, *, kafka: Mapping[str, Any] | None = None) -> dict[str, int]:
    """The number of partitions by topic, without the broker's internal topics."""
    link = link_of(broker, "topics", kafka, "Describe")
    found = metadata_of(admin_of(link, kafka or {}), link, "", SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS).topics
    return {name: len(topic.partitions) for name, topic in found.items() if not name.startswith("__")}
