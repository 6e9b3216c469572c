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
    Sabot's sinks.
    """
    _load()
    groups = 1 if {"partitioner", "default.topic.config"} & kafka.keys() else partitions

    def make(conf: dict[str, Any]) -> RecordProducer:
        return RecordProducer(Producer, topic, groups, conf)

    producer: RecordProducer = producer_of(link, kafka, make, **settings)
    return producer
