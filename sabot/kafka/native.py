"""Clients that read and write records as columns, through the librdkafka that the Python client has loaded
(docs/decisions/022).

The Python client still makes these clients: it owns the connection, runs the callbacks when it is polled, and answers
questions about the topic.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from confluent_kafka import Consumer, Producer, cimpl

from sabot._cython.kafka.librdkafka import RecordProducer, RecordQueue, load_client
from sabot.codecs.records import RECORD_SCHEMA
from sabot.kafka.client import BrokerLink, client_of, producer_of

_log = logging.getLogger("sabot.kafka")


@cache
def _load() -> None:
    """Finds librdkafka in this process, once."""
    _log.debug("librdkafka %s", load_client(cimpl.__file__))


def record_queue_of(
    link: BrokerLink, kafka: Mapping[str, Any], settings: dict[str, Any], *, headers: bool
) -> RecordQueue:
    """Returns a consumer. Its settings are `settings`, overridden by the user's settings `kafka`. `headers`: False if
    records are read without headers.
    """
    _load()

    def make(conf: dict[str, Any]) -> RecordQueue:
        return RecordQueue(Consumer, RECORD_SCHEMA, conf, headers=headers)

    queue: RecordQueue = client_of(make, link, kafka, settings)
    return queue


def record_producer_of(
    link: BrokerLink, kafka: Mapping[str, Any], topic: str, partitions: int, **settings: Any
) -> RecordProducer:
    """Returns an idempotent producer to one topic, which has `partitions` partitions, with the default settings of
    Sabot's sinks. `partitions`: 0 for a topic that is opened later, by `open_topic`.
    """
    _load()

    def make(conf: dict[str, Any]) -> RecordProducer:
        return RecordProducer(Producer, topic, _groups(partitions, kafka), conf)

    producer: RecordProducer = producer_of(link, kafka, make, **settings)
    return producer


def open_topic(producer: RecordProducer, topic: str, partitions: int, kafka: Mapping[str, Any]) -> None:
    """Opens the topic of a producer that `record_producer_of` made with these settings and 0 partitions."""
    producer.open_topic(topic, _groups(partitions, kafka))


def _groups(partitions: int, kafka: Mapping[str, Any]) -> int:
    """Returns the number of partitions by which the producer groups rows (`RecordProducer`)."""
    return min(partitions, 1) if {"partitioner", "default.topic.config"} & kafka.keys() else partitions
