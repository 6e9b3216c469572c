"""A topic as a log: it is read from one offset to another, and appended to by a caller that waits for the offsets. No
group, no transaction.
"""

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from sabot.base.redaction import clean_cause
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import BrokerUnavailable, DataError, SabotError, TransientError
from sabot.kafka.client import (
    ANSWER_SECONDS,
    DAMAGED,
    FETCHING,
    BrokerLink,
    NoSuchTopic,
    admin_of,
    client_of,
    end_producer,
    explain,
    fatal_behind,
    partitions_of,
    producer_of,
    said,
    topic_fault_behind,
    topic_id_of,
)

log = logging.getLogger("sabot.kafka")

_LOOK_SECONDS = 1.0  # how often a broker that does not answer is asked whether it refuses the login
_SPARE_SECONDS = 5.0  # the client's own time-out comes first: it says more
_PARTITIONS_SECONDS = 10.0  # the time between two looks for new partitions of a topic that is followed
_WAIT_SECONDS = 0.05  # of one look for records
_SILENT_LOOKS = (
    200  # if a partition returns nothing in so many looks, before its end, the broker must answer a question
)
_MOST_LOOKS = 600  # if the broker answers, but the partition returns nothing in so many looks, it counts as unavailable
_PASSING = {KafkaError._PARTITION_EOF, KafkaError._ALL_BROKERS_DOWN, KafkaError.GROUP_AUTHORIZATION_FAILED}
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}


class RecordsGone(DataError):
    """The partition no longer has a record at an offset that it had."""


class TopicLog:
    """A reader of topics from one offset to another, with a consumer that commits nothing. `close` it at the end.

    `name`: the name of the client's group, which the client demands; nothing is ever committed under it.
    `fetch_wait_ms`: the time for which the broker delays the answer that there is nothing new. `settings`: further
    settings of the consumer.
    """

    def __init__(
        self, name: str, link: BrokerLink, kafka: Mapping[str, Any], *, fetch_wait_ms: int = 20, **settings: Any
    ) -> None:
        self._link = link
        self._kafka = kafka
        self._at: tuple[str, int, int] | None = None  # topic, partition and offset at which the consumer goes on
        self._assigned = False
        ours = {
            "group.id": name,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",  # what retention has removed meanwhile is skipped
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            **FETCHING,
            "fetch.wait.max.ms": fetch_wait_ms,  # the end of a partition is reported by a fetch that returns empty
            **settings,
        }
        self._consumer: Any = client_of(Consumer, link, {**kafka, "enable.partition.eof": True}, ours)

    def close(self) -> None:
        """Closes the connection. May be called twice."""
        self._consumer.close()

    def rest(self) -> None:
        """Stops fetching ahead until `messages` is called again."""
        if self._assigned:
            self._at, self._assigned = None, False
            self._consumer.unassign()

    def partitions(self, topic: str) -> list[int]:
        """Returns the numbers of the topic's partitions. Raises as `client.partitions_of` does."""
        return partitions_of(self._consumer, self._link, topic)

    def topic_id(self, topic: str) -> str:
        """Returns the broker's id of the topic. A topic that was deleted and made again under the same name has
        another id.
        """
        with admin_of(self._link, self._kafka) as admin:
            return topic_id_of(admin, self._link, topic)

    def bounds(self, topic: str, index: int, seconds: float = ANSWER_SECONDS) -> tuple[int, int]:
        """Returns the first offset of a partition, and the offset after its last. Raises TransientError after
        `seconds`, and as `client.explain` says.
        """
        deadline = SYSTEM_CLOCK.monotonic() + seconds
        while True:
            try:
                with self._explained(topic):
                    first, end = self._consumer.get_watermark_offsets(
                        TopicPartition(topic, index), timeout=seconds, cached=False
                    )
                    return first, end
            except (TransientError, NoSuchTopic) as error:
                # A client whose brokers are gone forgets the partitions of a topic, and not every broker knows at once who leads a new one.
                left = deadline - SYSTEM_CLOCK.monotonic()
                self.rest()
                if index not in partitions_of(self._consumer, self._link, topic, max(0.0, left)) or left < 0:
                    raise error

    @contextmanager
    def _explained(self, topic: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise explain(error.args[0], self._link, topic) from clean_cause(error)

    def messages(self, topic: str, index: int, first: int, end: int) -> Iterator[Any]:
        """Yields the committed records with first <= offset < end. Ends earlier, at the last stable offset, if a
        transaction is open. If the last call ended at `first`, the consumer simply continues.

        Raises BrokerUnavailable, and as `client.explain` says; DataError for damaged records (wrong checksums only
        with `check.crcs`); RecordsGone for an offset that is before the partition's first one or after its end (with
        `auto.offset.reset=error`).
        """
        if first >= end:
            return
        reached = first
        went_on = self._at == (topic, index, first)
        if not went_on:
            self._consumer.assign([TopicPartition(topic, index, first)])  # replaces the partition that was read before
            self._assigned = True
        self._at = None
        silent, left = 0, end - first
        while silent < _MOST_LOOKS:
            batch = self._consumer.consume(min(500, left), _WAIT_SECONDS)  # returns at once when it has so many records
            silent = 0 if batch else silent + 1
            if silent == _SILENT_LOOKS:  # a broker on a busy machine is slow; one that is gone does not answer this
                self.bounds(topic, index)
                self._consumer.assign([TopicPartition(topic, index, reached)])
                self._assigned = True
            for number, message in enumerate(batch, 1):
                error = message.error()
                if error is None and message.offset() < end:
                    yield message
                    reached = message.offset() + 1
                if error is None:
                    left = max(1, end - 1 - message.offset())
                if error is None and message.offset() >= end - 1:
                    if message.offset() >= end and message.offset() >= self.bounds(topic, index)[1]:
                        raise DataError(
                            f"{topic}[{index}] is damaged: a record at offset {reached} or later says that its offset is {message.offset()}"
                        )
                    if message.offset() == end - 1 and number == len(batch):
                        self._at = (topic, index, end)
                    return
                if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    continue  # an error about the group, which is not used
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    if went_on and message.offset() <= first:
                        continue  # the end of the call before this one
                    return  # the last stable offset may be before `end` while a transaction is open
                if error is not None and error.code() in DAMAGED:
                    raise DataError(f"{topic}[{index}] is damaged: {said(error)}")
                if error is not None and error.code() in _OUT_OF_RANGE:
                    low, high = self.bounds(topic, index)
                    if not low <= reached < high:
                        raise RecordsGone(f"{topic}[{index}] has no record at offset {reached}: {said(error)}")
                    continue  # the client read ahead from an offset that a damaged record says
                if error is not None and not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
                    raise explain(error, self._link, topic)
        raise BrokerUnavailable(
            f"kafka://{self._link.address} gives no records of {topic}[{index}] from offset {reached} on",
            hint="is the broker running, and is the partition undamaged on its disk? the log of the broker tells",
        )

    def follow(self, topic: str, offsets: Mapping[int, int]) -> Iterator[Any]:
        """Yields the committed records from these offsets on, by partition, as they arrive, without end. Yields None
        whenever no record has come for half a second. Partitions that are new are read from their first record.
        Raises BrokerUnavailable, as `client.explain` says, and DataError for damaged records.
        """
        at: dict[int, int] = {}
        look_at = 0.0
        self._at, self._assigned = None, True
        while True:
            if SYSTEM_CLOCK.monotonic() >= look_at:
                look_at = SYSTEM_CLOCK.monotonic() + _PARTITIONS_SECONDS
                found = {index: at.get(index, offsets.get(index, 0)) for index in self.partitions(topic)}
                if found.keys() != at.keys():
                    at = found
                    self._consumer.assign([TopicPartition(topic, index, offset) for index, offset in at.items()])
            batch = self._consumer.consume(500, 0.5)
            for message in batch:
                error = message.error()
                if error is None:
                    at[message.partition()] = message.offset() + 1
                    yield message
                elif error.code() in DAMAGED:
                    raise DataError(f"{topic} is damaged: {said(error)}")
                elif not error.retriable() and error.code() not in _PASSING:
                    raise explain(error, self._link, topic)
            if not batch:
                yield None


class TopicAppender:
    """A writer that appends records to a topic, and returns their offsets. Its methods may be called from any thread.
    `close` it at the end.

    `patience_s`: the seconds that a record waits for a broker that does not answer. `batch_bytes`: the size of one
    request to a partition.
    """

    def __init__(
        self,
        link: BrokerLink,
        kafka: Mapping[str, Any],
        topic: str,
        *,
        patience_s: float,
        batch_bytes: int = 1_000_000,
    ) -> None:
        self._link = link
        self._topic = topic
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._until = math.inf  # the time at which records that are not acknowledged are given up
        settings = {
            "linger.ms": 0,
            "acks": "all",
            "batch.size": batch_bytes,
            "message.timeout.ms": round(patience_s * 1000),
            "topic.metadata.propagation.max.ms": 10_000,  # the time in which a missing topic may still appear
            "delivery.report.only.error": False,
        }
        self._producer = producer_of(link, kafka, **settings)
        self._fatal: KafkaError | None = None  # nothing is appended after it

    def hurry(self, seconds: float) -> None:
        """Makes all records, including those that are being appended, wait for the broker no longer than `seconds`
        from now on.
        """
        self._until = SYSTEM_CLOCK.monotonic() + seconds

    def append(self, partition: int, records: Sequence[bytes], seconds: float | None = None) -> list[int]:
        """Appends the records and returns their offsets, when all replicas in sync have stored them. If it raises
        SabotError, nobody knows whether the broker has stored the records.

        `seconds`: the time to wait, if it is less than `patience_s`.
        """
        with self._lock:
            return self._append(partition, records, self._patience_s if seconds is None else seconds)

    def _append(self, partition: int, records: Sequence[bytes], seconds: float) -> list[int]:
        offsets: list[int] = []
        faults: list[KafkaError] = []

        def told(error: KafkaError | None, message: Any) -> None:
            if error is None:
                offsets.append(message.offset())
            else:
                faults.append(error)

        producer, now = self._producer, SYSTEM_CLOCK.monotonic()
        deadline = now + seconds + (_SPARE_SECONDS if seconds == self._patience_s else 0.0)
        look_at = now + _LOOK_SECONDS
        waiting = list(reversed(records))
        try:
            while len(offsets) < len(records):
                try:
                    while waiting:
                        producer.produce(self._topic, waiting[-1], partition=partition, on_delivery=told)
                        waiting.pop()
                except BufferError:
                    log.debug("the queue of the client is full")
                producer.poll(0.1)
                if faults:
                    raise KafkaException(faults[0])
                now = SYSTEM_CLOCK.monotonic()
                if now > min(deadline, self._until):
                    raise self._fault(KafkaError(KafkaError._MSG_TIMED_OUT))
                if now > look_at:
                    look_at = now + _LOOK_SECONDS
                    self._link.check(lambda left: producer.list_topics(self._topic, timeout=left))
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.fatal() or reason.code() == KafkaError._FATAL:
                reason = self._fatal = self._fatal or fatal_behind(producer, reason)
            else:
                reason = topic_fault_behind(producer, reason, self._topic)
            raise self._fault(reason) from clean_cause(error)
        self._link.up()
        return sorted(offsets)

    def _fault(self, error: KafkaError) -> SabotError:
        if error.code() == KafkaError._MSG_TIMED_OUT:
            why = f" ({self._link.reason})" if self._link.reason else ""
            return TransientError(
                f"kafka://{self._link.address} did not acknowledge records within {self._patience_s:g} s{why}",
                hint="is the broker running? the next read of the topic shows whether it has them",
            )
        return explain(error, self._link, self._topic, "Write")

    def close(self) -> None:
        """Closes the connection, and drops records that were not acknowledged. May be called twice."""
        self._producer.purge()
        end_producer(self._producer, 1.0)
