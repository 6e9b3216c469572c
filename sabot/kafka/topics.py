"""Chooses the connector of a topic by the address of its broker, memory:// or kafka://. No other module makes this choice.

The first kafka:// address loads the Kafka client, so a program without one does not need it.
"""

import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sabot.base.config import Duration, parse_broker, parse_seconds
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import Headers
from sabot.connectors.memory import MemoryBroker, MemorySink, MemorySource
from sabot.kafka.settings import checked_settings

if TYPE_CHECKING:
    from sabot.kafka.reader import KafkaReader
    from sabot.kafka.transactions import KafkaDelivery


def lost_brokers() -> dict[str, str]:
    """Returns the brokers that do not answer the clients of this process: by address, for how long, and why."""
    client = sys.modules.get("sabot.kafka.client")  # without a kafka:// address so far it is not loaded
    return {} if client is None else dict(client.lost_brokers())


def open_source(
    topic: str,
    broker: str,
    group_id: str,
    kafka: Mapping[str, Any] | None = None,
    *,
    partition_check: Duration = "30s",
) -> "KafkaReader | MemorySource":
    """Returns the source of a topic, not opened yet. `kafka`: settings of the client. `partition_check`: the time
    between two looks for new partitions.
    """
    seconds = parse_seconds(partition_check, name="partition_check", zero=False)
    if _in_memory(broker):
        checked_settings(kafka)
        return MemorySource(topic, broker, group_id)
    from sabot.kafka.reader import KafkaReader

    return KafkaReader(topic, broker, group_id, seconds, kafka or {})


def open_sink(
    topic: str, broker: str, kafka: Mapping[str, Any] | None = None, format: Format | None = None
) -> "KafkaDelivery | MemorySink":
    """Returns the sink of a topic, not opened yet. `kafka`: settings of the client. `format`: the format of the
    records, or None for JSON.

    Its `address` is the topic alone, because the same broker may have another address tomorrow.
    """
    if _in_memory(broker):
        checked_settings(kafka)
        return MemorySink(topic, broker, format or JSON)
    from sabot.kafka.transactions import KafkaDelivery

    return KafkaDelivery(topic, broker, kafka or {}, format or JSON)


def make_topic(
    topic: str,
    partitions: int,
    broker: str,
    config: Mapping[str, str] | None = None,
    kafka: Mapping[str, Any] | None = None,
) -> int:
    """Makes the topic with `partitions` partitions if it is missing; an existing topic stays as it is. Returns its
    number of partitions. Blocks.

    `config`: settings of a new topic of a kafka:// broker. Raises the errors of `Sink.open`.
    """
    if not _in_memory(broker):
        from sabot.kafka.admin import made_topic

        return made_topic(broker, topic, partitions, config or {}, kafka or {})
    here = MemoryBroker.get(broker)
    if topic not in here.topics():
        here.create_topic(topic, partitions)
    return here.topics()[topic]


class RecordSender:
    """A sender of records to topics of a kafka:// or memory:// broker, for any event loop and thread. `close` it at
    the end.
    """

    def __init__(self, broker: str, kafka: Mapping[str, Any] | None = None) -> None:
        self.broker = broker
        self._memory = _in_memory(broker)
        self._kafka_settings = dict(kafka or {})
        self._lock = threading.Lock()
        self._kafka: Any = None

    async def send(
        self,
        topic: str,
        payload: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> int:
        """Sends a record, and returns its offset once the broker has it. `timestamp`: ms since 1970, or None for now.
        Makes the topic if it is missing.

        Raises BrokerUnavailable (naming the address), UserError (partition, rights), DataError (too large) or
        TransientError. A call that is cancelled may still send.
        """
        if self._memory:
            return await MemoryBroker.get(self.broker).send(topic, payload, key, headers, timestamp, partition)
        offset: int = await self._sender().send(topic, payload, key, headers, timestamp, partition)
        return offset

    async def reach(self, seconds: float) -> None:
        """Waits until a broker answers, for at most `seconds`. Raises BrokerUnavailable, which names the address, and
        UserError if the broker refuses the login or the certificate.
        """
        if not self._memory:
            await run_in_thread(self._reach, seconds)

    def _reach(self, seconds: float) -> None:
        from sabot.kafka.client import ANSWER_SECONDS, admin_of, link_of, metadata_of

        link, deadline = link_of(self.broker, "sender", self._kafka_settings, "Write"), SYSTEM_CLOCK.monotonic()
        deadline += min(seconds, ANSWER_SECONDS)
        with admin_of(link, self._kafka_settings) as admin:
            metadata_of(admin, link, "", deadline)

    def _sender(self) -> Any:
        with self._lock:
            if self._kafka is None:
                from sabot.kafka.writer import KafkaSender

                self._kafka = KafkaSender(self.broker, self._kafka_settings)
            return self._kafka

    def close(self) -> None:
        """Waits up to 5 s for records that are not delivered yet, and closes the connection. A call of `send` that still
        waits then raises TransientError. May be called twice.
        """
        with self._lock:
            sender, self._kafka = self._kafka, None
        if sender is not None:
            sender.close()


def _in_memory(broker: str) -> bool:
    return parse_broker(broker)[0] == "memory"
