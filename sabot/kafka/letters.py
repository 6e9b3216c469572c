"""Dead letters in a Kafka topic, and the notes on which dead letters, of a topic or another place, were redriven.

The notes are in a topic of their own, `<topic>.redriven`: each transaction of a redrive writes the ranges of offsets that it sent. A
consumer group's offset would not do: it is forgotten after `offsets.retention.minutes` (7 days by default), and cannot say "these, and
not those between them". The notes last as long as the topic. They carry the id of the letters' place, so that notes on a topic that was
deleted say nothing about its successor.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.letters import DeadLetter, Home, Letters, Ranges, letter_of_record
from sabot.errors import UNREADABLE, BrokerUnavailable, UserError
from sabot.kafka.client import (
    ANSWER_SECONDS,
    FETCHING,
    BrokerLink,
    NoSuchTopic,
    client_of,
    explain,
    link_of,
    partitions_of,
    topic_id_of,
)
from sabot.redaction import clean_cause

__all__ = ["DeadLetters", "Note"]

_NOTES_SUFFIX = ".redriven"
_SILENT_SECONDS = 10.0  # a partition that returns nothing for so long, before its end, counts as unavailable


class Note(msgspec.Struct, frozen=True):
    """What one transaction of a redrive has sent of one partition: the first and last offset of each range."""

    topic_id: str
    partition: int
    ranges: list[tuple[int, int]]
    letters: int
    to: str  # the topic; "": each letter went to the topic that it came from


class DeadLetters(Letters):
    """Dead letters whose notes are on a broker, to which they can be sent back: those of a topic, or of another `home`.

    Raises UserError when there is no such topic, BrokerUnavailable.
    """

    def __init__(
        self, topic: str, broker: str, kafka: Mapping[str, Any] | None = None, *, home: Home | None = None
    ) -> None:
        """topic: where the letters are; with a `home`, the name of that place as a part of the notes' topic."""
        self.topic = topic
        self.kafka = dict(kafka or {})
        self.link = link_of(broker, f"dead letters in {topic!r}", kafka)
        self._log = _Log(topic, self.link, self.kafka)
        try:
            super().__init__(_TopicHome(topic, self._log) if home is None else home)
        except BaseException:
            self._log.close()
            raise

    @property
    def notes_topic(self) -> str:
        """The topic of the notes."""
        return self.topic + _NOTES_SUFFIX

    def read_notes(self) -> None:
        """Fills `redriven` with the notes that there are now; without their topic, nothing was redriven."""
        try:
            self._log.partitions(self.notes_topic)
        except NoSuchTopic:
            return
        _, end = self._log.bounds(self.notes_topic, 0)
        for message in self._log.messages(self.notes_topic, 0, 0, end):
            note = self._note(message)
            if note.topic_id == self.home.id:
                for first, last in note.ranges:
                    self.redriven.setdefault(note.partition, Ranges()).add(first, last)

    def _note(self, message: Any) -> Note:
        try:
            return msgspec.json.decode(message.value() or b"", type=Note)
        except UNREADABLE as error:
            raise UserError(
                f"{self.notes_topic}[0]@{message.offset()} is no note of a redrive: {error}",
                hint="only sabot writes there; what was redriven cannot be told without it",
            ) from error

    def close(self) -> None:
        super().close()
        self._log.close()


class _TopicHome:
    """A topic as a place of dead letters (`connectors.letters.Home`)."""

    grows_at_its_end = True

    def __init__(self, topic: str, log: "_Log") -> None:
        self.name = topic
        self.words = f"topic {topic!r}"
        self._log = log
        partitions = log.partitions(topic)
        self.id = log.topic_id(topic)
        self.bounds = {index: log.bounds(topic, index) for index in partitions}

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        for message in self._log.messages(self.name, partition, first, end):
            yield _letter(message)

    def close(self) -> None:
        """Does nothing: the connection belongs to DeadLetters."""


class _Log:
    """Reads topics from one offset to another, with a consumer that commits nothing. `close` it at the end."""

    def __init__(self, topic: str, link: BrokerLink, kafka: Mapping[str, Any]) -> None:
        self._link = link
        self._kafka = kafka
        ours = {
            "group.id": f"sabot.dlq.{topic}",  # the client demands a name; nothing is ever committed under it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",  # letters that retention has removed meanwhile are skipped
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            **FETCHING,
            "fetch.wait.max.ms": 20,  # the end of a partition is reported by a fetch that returns empty
        }
        self._consumer: Any = client_of(Consumer, link, {**kafka, "enable.partition.eof": True}, ours)

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        self._consumer.close()

    def partitions(self, topic: str) -> list[int]:
        """The numbers of the topic's partitions. Raises as `client.partitions_of` does."""
        return partitions_of(self._consumer, self._link, topic)

    def topic_id(self, topic: str) -> str:
        """The broker's id of the topic: a topic that was deleted and made anew under the same name has another one."""
        return topic_id_of(self._link, self._kafka, topic)

    def bounds(self, topic: str, index: int) -> tuple[int, int]:
        """The first offset of a partition, and the offset behind its last."""
        deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
        while True:
            try:
                with self._explained(topic):
                    first, end = self._consumer.get_watermark_offsets(
                        TopicPartition(topic, index), timeout=ANSWER_SECONDS, cached=False
                    )
                    return first, end
            except BrokerUnavailable:
                if SYSTEM_CLOCK.monotonic() > deadline:
                    raise

    @contextmanager
    def _explained(self, topic: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise explain(error.args[0], self._link, topic) from clean_cause(error)

    def messages(self, topic: str, index: int, first: int, end: int) -> Iterator[Any]:
        """The committed records with first <= offset < end."""
        if first >= end:
            return
        self._consumer.assign([TopicPartition(topic, index, first)])  # replaces the partition that was read before
        waited = 0.0
        while waited < _SILENT_SECONDS:
            batch = self._consumer.consume(500, 0.05)
            waited = 0.0 if batch else waited + 0.05
            for message in batch:
                error = message.error()
                if error is None and message.offset() < end:
                    yield message
                if error is None and message.offset() >= end - 1:
                    return
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return  # the last stable offset may be before `end` while a transaction is open
                if error is not None and not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
                    raise explain(error, self._link, topic)
        raise BrokerUnavailable(
            f"kafka://{self._link.address} gives no records of {topic}[{index}]", hint="is the broker running?"
        )


def _letter(message: Any) -> DeadLetter:
    return letter_of_record(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or [],
    )
