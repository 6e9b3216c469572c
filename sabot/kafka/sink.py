"""`KafkaSink`: writes batches to a topic, at least once through an idempotent producer, exactly once in transactions."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.codecs.base import Format
from sabot.codecs.formats import format_of
from sabot.connectors.base import KeepsToken, Sink, TakesChanges, Token, Track, stands_before
from sabot.kafka.topics import open_sink


@stands_before("sink")
class KafkaSink(Sink, TakesChanges, KeepsToken):
    """A sink that writes to a topic of a kafka:// or memory:// broker. The topic is made if it is missing. Changes
    become records with keys, and tombstones. A topic that is made for changes is compacted. An existing topic should
    be compacted too (`cleanup.policy=compact`): otherwise its retention deletes keys that rarely change.

    `format`: the format in which rows become records, JSON by default (docs/formats.md).

    Defaults of the producer: idempotent, `linger.ms` 5, `compression.type` lz4, keys placed as the Java clients place
    them, and with exactly once `transaction.timeout.ms` 60000. Other keyword arguments are settings of the Kafka
    client, with dots: `**{"linger.ms": 50}`.

    Exactly once: a part is one transaction, which readers with `isolation.level=read_committed` see whole. The number
    of the last part is kept as the offset of consumer group `sabot.<app>.<sink>.0` at partition 0 of the topic. No
    other consumer may use that group; the metadata of the offset is the app's incarnation.
    """

    def __init__(
        self, topic: str, broker: str = "memory://", *, format: str | Format | None = None, **kafka: Any
    ) -> None:
        self.name = topic
        self.broker = broker
        self.sink = open_sink(topic, broker, kafka, format_of(format, f"KafkaSink({topic!r})"))

    @property
    def address(self) -> str:
        return f"{self.name}@{self.broker}"

    # `stands_before` would pass these on too, but type checkers would miss them: they are abstract.

    def open(self) -> None:
        self.sink.open()

    def write(self, batch: Batch) -> None:
        self.sink.write(batch)

    def flush(self) -> None:
        self.sink.flush()

    def close(self) -> None:
        self.sink.close()

    def claim(self, track: Track) -> Token | None:
        return self.sink.claim(track)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        self.sink.deliver(seq, batches)

    def settle(self, seq: int) -> None:
        self.sink.settle(seq)

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self.sink.expect_changes(schema, keys)
