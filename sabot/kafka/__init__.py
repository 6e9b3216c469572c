"""Kafka topics as sources and sinks, and the one place that chooses a connector by the address of the broker.

Importing this room does not load the Kafka client; the first kafka:// address does.
"""

from collections.abc import Mapping
from typing import Any

from sabot.config import parse_broker
from sabot.connectors.base import Sink, Source
from sabot.connectors.memory import MemorySink, MemorySource
from sabot.kafka.sender import RecordSender
from sabot.kafka.sink import KafkaSink
from sabot.kafka.source import KafkaSource

__all__ = ["KafkaSink", "KafkaSource", "RecordSender", "open_sink", "open_source"]


def open_source(topic: str, broker: str, group_id: str, kafka: Mapping[str, Any] | None = None) -> Source:
    """The source of a topic, by the address: memory:// or kafka://. Not opened yet; `kafka` are client
    settings.
    """
    if parse_broker(broker)[0] == "memory":
        return MemorySource(topic, broker, group_id)
    return KafkaSource(topic, broker, group_id, **(kafka or {}))


def open_sink(topic: str, broker: str, kafka: Mapping[str, Any] | None = None) -> Sink:
    """The sink of a topic, by the address: memory:// or kafka://. Not opened yet; `kafka` are client
    settings.
    """
    if parse_broker(broker)[0] == "memory":
        return MemorySink(topic, broker)
    return KafkaSink(topic, broker, **(kafka or {})).of_app()
