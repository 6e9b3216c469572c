"""The engine's at-least-once sink over a Kafka topic, and a sender of single records that returns their offsets. Loads confluent_kafka."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException

from sabot._cython.arrow.batch import Batch
from sabot._cython.kafka.librdkafka import RecordProducer, rows_above
from sabot.base.redaction import clean_cause
from sabot.base.supervision import watch_call
from sabot.base.threads import run_in_thread, wait_done
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import Headers, to_records
from sabot.connectors.base import LostFloats, Sink, TakesChanges
from sabot.errors import DataError, RowErrors, SabotError, TransientError, UserError, message_of
from sabot.kafka.admin import settings_of
from sabot.kafka.client import (
    MESSAGE_BYTES,
    UNKNOWN,
    BrokerLink,
    end_producer,
    ensure_topic,
    explain,
    flush_of,
    link_of,
    producer_of,
    said,
    topic_fault_behind,
    wait_for_partitions,
)
from sabot.kafka.native import record_producer_of
from sabot.kafka.settings import whole_number

CLOSE_SECONDS = 5.0
FULL_SECONDS = (
    0.1  # a wait for room in the client's queue is interrupted so often, for callbacks and for a caller that ends it
)
_NO_BOUND = 2**63 - 1
MESSAGE_OVERHEAD = 512  # the most that the client's size check adds for a record to its key, payload and headers
_BATCH_BYTES = 1_000_000  # the client's own batch.size
_RULES_SECONDS = 10.0  # the least time between two looks at the settings of a topic that seems to refuse rows
_CODECS = {"lz4", "gzip", "snappy", "zstd"}
# Arrow's codecs do not give the client's sizes to the byte, so a compressed size is only known within these factors.
_SURELY_ABOVE, _SURELY_BELOW = 0.9, 1.1

# The settings of a topic by which it refuses records.
_RULES = (
    "max.message.bytes",
    "compression.type",
    "cleanup.policy",
    "message.timestamp.type",
    "message.timestamp.before.max.ms",
    "message.timestamp.after.max.ms",
)

_BOUNDED_TIMES = (
    "the topic bounds the times of its records: raise its message.timestamp.before.max.ms or message.timestamp.after.max.ms, or "
    "set message.timestamp.type=LogAppendTime"
)
_NO_KEY = "a topic with cleanup.policy=compact takes no record without a key: give key= to .to(), or another topic"
_FAR_TIME = "its time is beyond message.timestamp.before.max.ms or message.timestamp.after.max.ms"
_VALIDATED = f"{_NO_KEY}. Or {_BOUNDED_TIMES}"

# Reasons why the broker never accepts a record, each with a remedy. It refuses the record's batch, so another record may be reported first.
LASTING = {
    KafkaError.INVALID_RECORD: _VALIDATED,
    KafkaError._INVALID_DIFFERENT_RECORD: _VALIDATED,
    KafkaError.INVALID_TIMESTAMP: _BOUNDED_TIMES,
}


@dataclass(frozen=True, slots=True)
class Refused:
    """The first of `count` records that a producer could not deliver."""

    count: int
    error: KafkaError
    partition: int  # -1: none was chosen
    key: bytes | None  # the first bytes of the key
    size: int  # bytes of payload and key

    def __str__(self) -> str:
        place = f", for partition {self.partition}" if self.partition >= 0 else ""
        rest = f"; and {self.count - 1} more records of this sink" if self.count > 1 else ""
        return f"a record of {self.size} bytes with key {self.key!r}{place}{rest}"


def refused_by(producer: RecordProducer) -> Refused | None:
    """Returns the records that were not delivered since the last call, or None."""
    found = producer.refused()
    if found is None:
        return None
    count, code, partition, key, size = found
    return Refused(count, KafkaError(code), partition, key, size)


def produce(producer: RecordProducer, data: pa.RecordBatch, go_on: Callable[[], None]) -> None:
    """Puts rows of RECORD_SCHEMA into the client's queue, in order; their partition and offset are ignored.

    While the queue is full it waits until records are delivered, or given up after message.timeout.ms, and calls
    `go_on`, which raises to end the wait. Raises KafkaException as the client does.
    """
    taken = 0
    while True:
        taken, fault = producer.produce(data, taken)
        if fault is not None:
            raise KafkaException(KafkaError(*fault))
        producer.client.poll(0)
        if taken == data.num_rows:
            return
        producer.wait(FULL_SECONDS)
        go_on()


def largest_record(kafka: Mapping[str, Any]) -> int:
    """Returns the size of the largest record that the client accepts under these settings: key, payload and headers
    together, in bytes.
    """
    return whole_number(kafka, "message.max.bytes", MESSAGE_BYTES) - MESSAGE_OVERHEAD


def check_sizes(data: pa.RecordBatch, limit: int, topic: str, first: int = 0) -> None:
    """Raises RowErrors that name the rows of RECORD_SCHEMA above `limit` bytes. `first`: the number of the first row."""
    if big := rows_above(data, limit):
        why = f"bytes are above message.max.bytes ({limit})"
        raise RowErrors({first + row: f"topic {topic!r}: {size} {why}" for row, size in big.items()})


def batches_within(kafka: Mapping[str, Any], rules: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings `kafka` with a `batch.size` that a topic with these rules takes: the client sends a larger
    record alone, so no record is refused because of those beside it.
    """
    most = int(rules.get("max.message.bytes", _NO_BOUND)) - MESSAGE_OVERHEAD
    if most >= whole_number(kafka, "batch.size", _BATCH_BYTES):
        return dict(kafka)
    return {**kafka, "batch.size": max(1, most)}


def refused_by_topic(
    data: pa.RecordBatch, rules: Mapping[str, str], kafka: Mapping[str, Any], topic: str, now_ms: int
) -> tuple[dict[int, str], list[int]]:
    """Returns the rows of RECORD_SCHEMA that a topic with these rules refuses, with the reason (too large, without a
    key, or of a time that it does not take), and those of which only the broker can say whether they are too large.
    """
    found, doubtful = _too_large(data, rules, kafka)
    if "compact" in rules.get("cleanup.policy", "") and data.column("key").null_count:
        without = np.flatnonzero(data.column("key").is_null().to_numpy(zero_copy_only=False))
        found |= {int(row): _NO_KEY for row in without}
    before, after = (int(rules.get(f"message.timestamp.{end}.max.ms", _NO_BOUND)) for end in ("before", "after"))
    if min(before, after) < _NO_BOUND and rules.get("message.timestamp.type") != "LogAppendTime":
        least, most = (each.as_py() for each in pc.min_max(data.column("timestamp")).values())
        if least is not None and (now_ms - least > before or most - now_ms > after):
            age = now_ms - data.column("timestamp").fill_null(now_ms).to_numpy()
            wrong = np.flatnonzero((age > before) | (-age > after))
            found |= {int(row): _FAR_TIME for row in wrong}
    return {row: f"topic {topic!r} refuses a record: {why}" for row, why in found.items()}, doubtful


def _too_large(
    data: pa.RecordBatch, rules: Mapping[str, str], kafka: Mapping[str, Any]
) -> tuple[dict[int, str], list[int]]:
    """Returns the rows above max.message.bytes for certain, and those that may be. The limit holds for a record as it
    travels and is stored, compressed.
    """
    most = int(rules.get("max.message.bytes", _NO_BOUND))
    codec = str(kafka.get("compression.type", kafka.get("compression.codec", "lz4"))).lower()
    kept = rules.get("compression.type", "producer") in ("producer", codec)
    found: dict[int, str] = {}
    doubtful: list[int] = []
    for row, size in rows_above(data, most - MESSAGE_OVERHEAD).items():
        least, surely_above = size, 1.0
        payload = data.column("payload")[row].as_buffer()
        if codec in _CODECS and payload is not None:
            least = size - payload.size + min(payload.size, pa.compress(payload, codec).size)
            surely_above = _SURELY_ABOVE
        if least * surely_above > most:
            found[row] = f"{size} bytes are above max.message.bytes ({most})"
        elif not kept or least * _SURELY_BELOW + MESSAGE_OVERHEAD > most:
            doubtful.append(row)
    return found, doubtful


class KafkaWriter(Sink, TakesChanges):
    """A sink with one idempotent producer. The error for a refused record is raised by `flush`, or by the next
    `write`.
    """

    format: Format

    def __init__(self, topic: str, broker: str, kafka: Mapping[str, Any], format: Format = JSON) -> None:
        self.name = topic
        self.format = format
        self.encoder = format.encoder(topic)
        self._link = link_of(broker, f"sink of topic {topic!r}", kafka, "Write")
        self._kafka = kafka
        self._producer: RecordProducer | None = None
        self._unflushed = False
        self._unmade = False  # the sink is open, and its topic is made with the first row
        self._keys: Sequence[str] | None = None  # the key columns, when the rows are changes of a table
        self.rules: Mapping[str, str] = {}  # the settings by which the topic refuses records; none if they are unknown
        self._rules_at = 0.0

    def check_types(self, schema: pa.Schema) -> None:
        self.format.check_types(schema, f"topic {self.name!r}")

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return self.format.floats_lost(kind)

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._keys = keys

    def ensure_topic(self, *, make: bool = True) -> int:
        """Makes the topic if it is missing, and returns its number of partitions. A topic for changes is made
        compacted, which keeps the last record of each key. With `make=False` it returns 0 for a missing topic, or the
        error that the broker would return if it had to make the topic.
        """
        config = {} if self._keys is None else {"cleanup.policy": "compact"}
        return ensure_topic(self._link, self.name, self._kafka, config=config, make=make)

    def open(self) -> None:
        if partitions := self.ensure_topic(make=not self.only_letters):
            self._connect_to(partitions)
        self._unmade = not partitions
        self._link.opened = True

    def _connect_to(self, partitions: int) -> None:
        self.read_rules()
        kafka = batches_within(self._kafka, self.rules)
        self._producer = record_producer_of(self._link, kafka, self.name, partitions)
        self._unmade = False

    def read_rules(self) -> None:
        found = settings_of(self._link, self._kafka, self.name) or {}
        self.rules = {name: found[name] for name in _RULES if name in found}
        self._rules_at = SYSTEM_CLOCK.monotonic()

    def _judged(self, data: pa.RecordBatch) -> list[int]:
        """Raises RowErrors for rows of RECORD_SCHEMA that the topic refuses. Returns those of which only the broker can
        say it.
        """
        now_ms = int(SYSTEM_CLOCK.time() * 1000)
        refused, doubtful = refused_by_topic(data, self.rules, self._kafka, self.name, now_ms)
        if refused and SYSTEM_CLOCK.monotonic() - self._rules_at > _RULES_SECONDS:
            self.read_rules()  # somebody may have raised the limit
            refused, doubtful = refused_by_topic(data, self.rules, self._kafka, self.name, now_ms)
        if refused:
            raise RowErrors(refused)
        return doubtful

    def write(self, batch: Batch) -> None:
        if self._unmade and batch.num_rows:
            self._connect_to(self.ensure_topic())
        if self._unmade:
            return
        producer = self._opened()
        data = to_records(batch, int(SYSTEM_CLOCK.time() * 1000), self._keys, self.encoder)
        check_sizes(data, largest_record(self._kafka), self.name)
        refused: dict[int, str] = {}
        sent = 0
        for row in self._judged(data):
            self._put(producer, data.slice(sent, row - sent))
            self.flush()
            try:
                self._put(producer, data.slice(row, 1))
                self.flush()
            except DataError as error:
                refused[row] = message_of(error)
            sent = row + 1
        self._put(producer, data.slice(sent))
        if refused:  # the other rows come again, so they are written twice, as at least once allows
            raise RowErrors(refused)

    def _put(self, producer: RecordProducer, data: pa.RecordBatch) -> None:
        self._unflushed = self._unflushed or data.num_rows > 0
        try:
            produce(producer, data, self._go_on)
        except KafkaException as error:
            raise refusal(error.args[0], self._link, self.name) from clean_cause(error)
        self._raise_refused(producer)

    def _go_on(self) -> None:
        if self._producer is None:
            raise TransientError(f"topic {self.name!r}: the sink was closed while it waited")
        self._link.check(lambda seconds: self._opened().client.list_topics(self.name, timeout=seconds))

    def _raise_refused(self, producer: RecordProducer) -> None:
        if refused := refused_by(producer):
            error = topic_fault_behind(producer.client, refused.error, self.name)
            fault = refusal(error, self._link, self.name, refused.size)
            fault.add_note(str(refused))
            if isinstance(fault, DataError):
                self._raise_changed(fault)
            raise fault

    def _raise_changed(self, fault: DataError) -> None:
        """Raises TransientError if the topic has got other rules since they were read: when the rows come again, those
        that it refuses are found before they are sent.
        """
        known = self.rules
        self.read_rules()
        if self.rules != known:
            raise TransientError(
                f"{fault.message}; the settings of the topic have changed since the start",
                hint="the rows come again from the last checkpoint",
            ) from fault

    def flush(self) -> None:
        if self._unmade:
            return
        producer = self._opened()
        waiting, self._unflushed = self._unflushed, False  # len(producer) would not do: it also counts error events
        try:
            while waiting and flush_of(producer.client, 1.0, lambda: producer_of(self._link, self._kafka)) > 0:
                self._go_on()
        except KafkaException as error:
            raise refusal(error.args[0], self._link, self.name) from clean_cause(error)
        self._raise_refused(producer)
        if waiting:
            self._link.up()

    def close(self) -> None:
        producer, self._producer, self._unmade = self._producer, None, False
        if producer is not None:
            producer.client.purge()
            end_producer(producer.client, CLOSE_SECONDS)

    def _opened(self) -> RecordProducer:
        if self._producer is None:
            raise UserError(f"the sink of topic {self.name!r} is not open")
        return self._producer


class KafkaSender:
    """A producer of single records, which returns their offsets, with one thread that serves its delivery reports."""

    def __init__(self, broker: str, kafka: Mapping[str, Any]) -> None:
        self._link = link_of(broker, "sender", kafka, "Write")
        self._kafka = kafka
        self._lock = threading.Lock()
        self._topics: set[str] = set()
        self._producer: Any = None
        self._thread: threading.Thread | None = None
        self._waiting: dict[Future[int], str] = {}  # callers that wait for an offset, each with its topic
        self._fault: SabotError | None = None  # the error that ended the thread
        self._closed = False

    async def send(
        self,
        topic: str,
        payload: bytes | None,
        key: bytes | None,
        headers: Headers,
        timestamp: int | None,
        partition: int | None,
    ) -> int:
        if topic not in self._topics:
            await run_in_thread(self._prepare, topic)
        sent: Future[int] = Future()

        def on_delivery(error: KafkaError | None, message: Any) -> None:
            if sent.done():  # it was given the error that ended the thread
                return
            if error is None:
                self._link.up()
                sent.set_result(message.offset())
            else:
                sent.set_exception(KafkaException(error))

        place: dict[str, int] = {} if partition is None else {"partition": partition}
        if timestamp is not None:
            place["timestamp"] = timestamp
        self._waiting[sent] = topic
        try:
            await self._produce(sent, topic, payload, key, list(headers) or None, on_delivery, place)
            await wait_done(sent)
        finally:
            del self._waiting[sent]
        try:
            return sent.result()
        except KafkaException as error:
            size = len(payload or b"") + len(key or b"")
            raise await self._undelivered(error.args[0], topic, size) from clean_cause(error)

    async def _undelivered(self, error: KafkaError, topic: str, size: int) -> Exception:
        """Returns the error for a record that was not delivered. A topic that is gone, or was for a moment, is made
        again by the next call.
        """
        given_up, producer = error.code() == KafkaError._DESTROY, self._producer
        if given_up and producer is not None:  # asked here, because the thread that had the report serves all topics
            error = await run_in_thread(topic_fault_behind, producer, error, topic)
        if given_up or error.code() in UNKNOWN:
            self._topics.discard(topic)
        return refusal(error, self._link, topic, size)

    async def _produce(
        self,
        sent: Future[int],
        topic: str,
        payload: bytes | None,
        key: bytes | None,
        headers: Any,
        on_delivery: Any,
        place: dict[str, int],
    ) -> None:
        """Puts a record into the client's queue, and waits while the queue is full."""
        asked = False
        while not sent.done():
            if self._fault is not None:
                raise self._fault
            producer = self._producer
            if producer is None:  # `_give_up` has dropped it meanwhile
                await run_in_thread(self._prepare, topic)
                continue
            try:
                producer.produce(topic, payload, key, headers=headers, on_delivery=on_delivery, **place)
                if producer is self._producer:
                    return
                raise TransientError(f"topic {topic!r}: the Kafka client was given up while it took a record")
            except BufferError:
                # The queue is full; the thread's polls empty it, at the latest after message.timeout.ms.
                await asyncio.sleep(0.05)
            except KafkaException as error:
                if error.args[0].code() in UNKNOWN and not asked:
                    asked = True  # the topic was made again, or the partition is newer than the client's metadata
                    await run_in_thread(self._look_again, producer, topic)
                    continue
                if error.args[0].code() == KafkaError._UNKNOWN_PARTITION and place.get("partition") is not None:
                    raise UserError(f"topic {topic!r} has no such partition: {said(error.args[0])}") from clean_cause(
                        error
                    )
                if error.args[0].code() == KafkaError._FATAL:
                    await asyncio.sleep(0.05)  # the thread's next poll has the reason, and gives it to `sent`
                    continue
                raise refusal(error.args[0], self._link, topic) from clean_cause(error)

    def _look_again(self, producer: Any, topic: str) -> None:
        """Makes the topic if it is missing, and waits until the producer knows it."""
        ensure_topic(self._link, topic, self._kafka)
        wait_for_partitions(producer, self._link, topic, 1)

    def _prepare(self, topic: str) -> None:
        ensure_topic(self._link, topic, self._kafka)
        with self._lock:
            if self._closed:
                raise UserError("the sender is closed")
            if self._producer is None:
                # Without linger, because each caller waits for its own record. Records of concurrent callers still travel together.
                self._producer = producer_of(
                    self._link, self._kafka, **{"linger.ms": 0, "delivery.report.only.error": False}
                )
                serve = watch_call(self._serve, "the thread of the Kafka sender", self._broke)
                self._thread = threading.Thread(target=serve, name="kafka-sender", daemon=True)
                self._thread.start()
            self._link.opened = True
            self._topics.add(topic)

    def _broke(self, error: SabotError) -> None:
        """Called when the thread ends with an error: all callers that wait for an offset get it, and all later calls
        raise it.
        """
        self._fault = error
        for sent in list(self._waiting):
            if not sent.done():
                sent.set_exception(error)

    def _serve(self) -> None:
        producer = self._producer
        while not self._closed:
            try:
                producer.poll(0.2)
                self._link.check(lambda seconds: producer.list_topics(timeout=seconds))
            except KafkaException as error:  # a fatal error: this producer sends nothing any more
                return self._give_up(producer, error.args[0])
            except UserError as error:
                return self._give_up(producer, error)

    def _give_up(self, producer: Any, why: KafkaError | UserError) -> None:
        """Drops the producer, and raises the error in each waiting caller, with the name of its topic. Later calls
        make a new producer, because a right that was missing may have been granted meanwhile.
        """
        with self._lock:
            if self._closed:
                return
            self._topics.clear()
            self._producer = self._thread = None
            self._link.opened = False
        producer.purge()
        for sent, topic in list(self._waiting.items()):
            if not sent.done():
                sent.set_exception(why if isinstance(why, UserError) else refusal(why, self._link, topic))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._topics.clear()
            thread, producer = self._thread, self._producer
        if thread is not None:
            thread.join()
            end_producer(producer, CLOSE_SECONDS)
            self._producer = self._thread = None
        for sent, topic in list(self._waiting.items()):  # nobody serves their reports any more
            if not sent.done():
                sent.set_exception(
                    TransientError(
                        f"topic {topic!r}: the sender was closed before kafka://{self._link.address} acknowledged a record"
                    )
                )


def refusal(error: KafkaError, link: BrokerLink, topic: str, size: int | None = None) -> Exception:
    """Returns the error for a record that the producer or the broker refuses. `size`: the bytes of the record's
    payload and key, or None.
    """
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        large = "" if size is None else f" of {size} bytes"
        return DataError(
            f"topic {topic!r}: a record{large} is too large: {said(error)}",
            hint="raise message.max.bytes of the client, the broker and the topic (max.message.bytes)",
        )
    if error.code() in LASTING:
        return DataError(f"topic {topic!r} refuses a record: {said(error)}", hint=LASTING[error.code()])
    if error.code() == KafkaError._MSG_TIMED_OUT:
        return TransientError(
            f"topic {topic!r}: kafka://{link.address} did not take a record within message.timeout.ms"
        )
    if error.code() in UNKNOWN:
        return UserError(
            f"topic {topic!r} is not on kafka://{link.address} any more",
            hint="was it deleted while the app wrote to it? a new start, or the next app.send, makes it again",
        )
    return explain(error, link, topic)
