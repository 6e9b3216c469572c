"""`KafkaSink`: batches to a topic, through an idempotent producer."""

from typing import Any

from sabot._cython.batch import Batch
from sabot.config import parse_broker
from sabot.connectors.base import Sink
from sabot.connectors.memory import MemorySink

__all__ = ["KafkaSink"]


class KafkaSink(Sink):
    """A topic of a kafka:// or memory:// broker, made if it is missing.

    Defaults of the producer: idempotent, `linger.ms` 5, `compression.type` lz4, keys placed as the Java
    clients place them. Other keyword arguments are settings of the Kafka client, with dots: `**{"linger.ms":
    50}`.
    """

    def __init__(self, topic: str, broker: str = "memory://", **kafka: Any) -> None:
        self.name = topic
        self.broker = broker
        self._sink: Sink
        if parse_broker(broker)[0] == "memory":
            self._sink = MemorySink(topic, broker)
        else:
            from sabot.kafka.writer import KafkaWriter

            self._sink = KafkaWriter(topic, broker, kafka)

    def open(self) -> None:
        self._sink.open()

    def write(self, batch: Batch) -> None:
        """As `Sink.write`. A record above `message.max.bytes` raises RowErrors before any of the batch is
        sent.
        """
        self._sink.write(batch)

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self._sink.close()
