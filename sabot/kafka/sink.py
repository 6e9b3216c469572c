"""`KafkaSink`: batches to a topic, at least once through an idempotent producer, exactly once in transactions."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.connectors.base import Lane, Sink, Token
from sabot.kafka.topics import open_sink

__all__ = ["KafkaSink"]


class KafkaSink(Sink):
    """A topic of a kafka:// or memory:// broker, made if it is missing. Changes become records with keys, and tombstones. A topic that is
    made for changes is compacted; one that exists should be (`cleanup.policy=compact`), or its retention drops keys that rarely change.

    Defaults of the producer: idempotent, `linger.ms` 5, `compression.type` lz4, keys placed as the Java
    clients place them, and with exactly once `transaction.timeout.ms` 60000. Other keyword arguments are settings of the
    Kafka client, with dots: `**{"linger.ms": 50}`.

    Exactly once: a part is one transaction, which readers with `isolation.level=read_committed` see whole. The number of the last part is
    kept as the offset of consumer group `sabot.<job>.<sink>.0` at partition 0 of the topic. No other consumer may use that group; the
    metadata of the offset is the job's incarnation.
    """

    takes_changes = True

    def __init__(self, topic: str, broker: str = "memory://", **kafka: Any) -> None:
        self.name = topic
        self.broker = broker
        self._sink = open_sink(topic, broker, kafka)
        self.keeps_token = self._sink.keeps_token
        self.lasting = self._sink.lasting

    @property
    def still_ours(self) -> Callable[[], bool] | None:
        return self._sink.still_ours

    @still_ours.setter
    def still_ours(self, still_ours: Callable[[], bool] | None) -> None:
        self._sink.still_ours = still_ours

    @property
    def address(self) -> str:
        return f"{self.name}@{self.broker}"

    @property
    def delivers(self) -> bool:
        return self._sink.delivers

    def start_afresh(self) -> None:
        self._sink.start_afresh()

    def check_types(self, schema: pa.Schema) -> None:
        self._sink.check_types(schema)

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._sink.expect_changes(schema, keys)

    def open(self) -> None:
        self._sink.open()

    def write(self, batch: Batch) -> None:
        """See `Sink.write`. A record above `message.max.bytes` raises RowErrors before any record of the batch is sent."""
        self._sink.write(batch)

    def flush(self) -> None:
        self._sink.flush()

    def known(self, lane: Lane) -> Token | None:
        return self._sink.known(lane)

    def claim(self, lane: Lane) -> Token | None:
        return self._sink.claim(lane)

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `Sink.fitting`: the rows as records. Raises RowErrors for records above `message.max.bytes`."""
        return self._sink.fitting(data)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """See `Sink.deliver`. A record that is too large raises RowErrors (with its row in the part) or DataError; then readers see nothing
        of the part.
        """
        self._sink.deliver(seq, batches)

    def settle(self, seq: int) -> None:
        self._sink.settle(seq)

    def finish(self) -> None:
        self._sink.finish()

    def close(self) -> None:
        self._sink.close()
