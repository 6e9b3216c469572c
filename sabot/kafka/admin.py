"""Topics of a Kafka broker: makes, grows, lists and deletes them, and reads and changes their settings. All functions
block.
"""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewPartitions

from sabot.base.redaction import clean_cause
from sabot.clock import SYSTEM_CLOCK
from sabot.kafka.client import (
    ANSWER_SECONDS,
    BrokerLink,
    NoSuchTopic,
    admin_of,
    ensure_topic,
    explain,
    link_of,
    metadata_of,
    partitions_of,
    said,
    wait_for_partitions,
)
from sabot.steps import step

log = logging.getLogger("sabot.kafka")


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
    with admin_of(link, kafka or {}) as admin:
        if partitions > len(partitions_of(admin, link, topic)):
            try:
                admin.create_partitions([NewPartitions(topic, partitions)])[topic].result()
            except KafkaException as error:
                raise explain(error.args[0], link, topic, "Alter") from clean_cause(error)
            wait_for_partitions(admin, link, topic, partitions)


def made_topic(broker: str, topic: str, partitions: int, config: Mapping[str, str], kafka: Mapping[str, Any]) -> int:
    """Makes the topic if it is missing; an existing topic stays as it is. Returns its number of partitions."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Create")
    ensure_topic(link, topic, kafka, partitions, config)
    with admin_of(link, kafka) as admin:
        return len(partitions_of(admin, link, topic))


def delete_topic(broker: str, topic: str, *, kafka: Mapping[str, Any] | None = None) -> None:
    """Deletes the topic, if there is one."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Delete")
    with admin_of(link, kafka or {}) as admin:
        try:
            admin.delete_topics([topic])[topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise explain(error.args[0], link, topic) from clean_cause(error)


def partitions(broker: str, topic: str, *, kafka: Mapping[str, Any] | None = None) -> int:
    """Returns the number of partitions of the topic, or 0 if there is no such topic."""
    link = link_of(broker, f"topic {topic!r}", kafka, "Describe")
    try:
        with admin_of(link, kafka or {}) as admin:
            return len(partitions_of(admin, link, topic))
    except NoSuchTopic:
        return 0


def topics(broker: str, *, kafka: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Returns the number of partitions by topic, without the broker's internal topics."""
    link = link_of(broker, "topics", kafka, "Describe")
    with admin_of(link, kafka or {}) as admin:
        found = metadata_of(admin, link, "", SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS).topics
    return {name: len(topic.partitions) for name, topic in found.items() if not name.startswith("__")}


def settings_of(link: BrokerLink, kafka: Mapping[str, Any], topic: str) -> dict[str, str] | None:
    """Returns the settings of a topic. Returns None, and logs a warning, if the user has no right to read them."""
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    with admin_of(link, kafka) as admin:
        try:
            found = admin.describe_configs([resource], request_timeout=ANSWER_SECONDS)[resource].result()
        except KafkaException as error:
            log.warning("topic %r: its settings are unknown: %s", topic, said(error.args[0]))
            return None
        return {name: entry.value for name, entry in found.items()}


def set_topic(link: BrokerLink, kafka: Mapping[str, Any], topic: str, name: str, value: str) -> None:
    """Changes one setting of a topic, or logs a warning if that is not possible."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    with admin_of(link, kafka) as admin:
        try:
            with step("configure", topic):
                admin.incremental_alter_configs([resource], request_timeout=ANSWER_SECONDS)[resource].result()
        except KafkaException as error:
            log.warning("topic %r: %s=%s cannot be set: %s", topic, name, value, said(error.args[0]))


def replicas_of(link: BrokerLink, kafka: Mapping[str, Any], topic: str) -> int:
    """Returns the number of replicas of a topic's first partition. Raises as `client.metadata_of` does."""
    with admin_of(link, kafka) as admin:
        found = metadata_of(admin, link, topic, SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS).topics[topic]
        return len(found.partitions[0].replicas)


def delete_before(link: BrokerLink, kafka: Mapping[str, Any], topic: str, offsets: Mapping[int, int]) -> None:
    """Deletes the records of these partitions before the offsets, or logs a warning if that is not possible."""
    places = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
    with admin_of(link, kafka) as admin:
        try:
            with step("remove", f"{topic} {dict(offsets)}"):
                for answer in admin.delete_records(places, request_timeout=ANSWER_SECONDS).values():
                    answer.result()
        except KafkaException as error:
            log.warning("topic %r: records cannot be deleted: %s", topic, said(error.args[0]))
