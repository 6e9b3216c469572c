"""A sink that writes to a topic of the embedded broker, at least once or exactly once."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import carries_changes, to_records
from sabot.connectors.base import KeepsToken, LostFloats, Sink, TakesChanges, Token, Track
from sabot.connectors.memory.broker import MemoryBroker
from sabot.connectors.memory.topic import Topic, take
from sabot.engine.letters.refused import refused_in
from sabot.errors import UserError
from sabot.steps import step


class MemorySink(Sink, TakesChanges, KeepsToken):
    """A sink that writes to a topic of the embedded broker. When `write` returns the rows are in the topic. Changes
    become records with keys, and tombstones.

    While a topic is full of records that its live readers have not read, `write` waits; after `write_timeout` seconds
    it raises TransientError. Delivers exactly once, as long as the process lives: the broker keeps the tokens.
    """

    lasting = False
    format: Format

    def __init__(
        self, topic: str, broker_url: str = "memory://", format: Format = JSON, *, write_timeout: float = 300.0
    ) -> None:
        self.name = topic
        self.format = format
        self._encoder = format.encoder(topic)
        self._broker = MemoryBroker.get(broker_url)
        self._write_timeout = write_timeout
        self._topic: Topic | None = None
        self._track: Track | None = None
        self._owner: object = None
        self._keys: Sequence[str] | None = None  # the key of the table whose changes are written

    def check_types(self, schema: pa.Schema) -> None:
        self.format.check_types(schema, f"topic {self.name!r}")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.format.floats_lost(kind)

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._keys = keys

    def open(self) -> None:
        self._track = None
        self._topic = self._broker.topic(self.name)

    def write(self, batch: Batch) -> None:
        topic = self._opened()
        data = self._records(batch.taken())
        with step("append", self.name):
            topic.write([data], lambda: self._topic is None, self._write_timeout)

    def flush(self) -> None:
        """Only checks that the sink is open: `write` returns when the rows are in the topic."""
        self._opened()

    def claim(self, track: Track) -> Token | None:
        again = track == self._track
        if not again:
            self._owner = object()
        self._topic = self._broker.topic(self.name)
        with step("claim", track.key):
            token = self._broker.claim(track, self._owner, again=again)
        self._track = track
        return token

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns rows as records, if the sink has another format than JSON or writes changes: a later run, which may
        deliver these rows, may have another format.
        """
        changes = self._keys is not None and carries_changes(data.schema)
        return self._records(data) if changes or self.format != JSON else data

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        return refused_in(batches, self._records)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        topic, track, owner = self._opened(), self._claimed(), self._owner
        # a copy, because the delivered rows may be mapped from a file that is removed next
        rows = [take(self._records(data), np.arange(data.num_rows)) for data in batches if data.num_rows]

        def together(append: Callable[[], None]) -> None:
            self._broker.advance(track, owner, seq, append)

        with step("append", self.name):
            topic.write(rows, lambda: self._topic is None, self._write_timeout, together)

    def settle(self, seq: int) -> None:
        self._opened()
        with step("token", self.name):
            self._broker.advance(self._claimed(), self._owner, seq, lambda: None, anyhow=True)

    def close(self) -> None:
        topic, self._topic, self._track = self._topic, None, None
        if topic is not None:
            with topic.lock:
                topic.writable.notify_all()

    def _records(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return to_records(Batch(data), int(SYSTEM_CLOCK.time() * 1000), self._keys, self._encoder)

    def _opened(self) -> Topic:
        if self._topic is None:
            raise UserError(f"the sink of topic {self.name!r} is not open")
        return self._topic

    def _claimed(self) -> Track:
        if self._track is None:
            raise UserError(f"the sink of topic {self.name!r} is not open for parts: no track was claimed")
        return self._track
