"""Dead letters in a Kafka topic: what stands in each, and which of them were redriven.

What was redriven is noted in a topic of its own, `<topic>.redriven`: each transaction of a redrive writes the ranges of offsets
that it sent. A group's offset would forget after `offsets.retention.minutes` (7 days by default), and cannot say "these, and
not those between them"; the notes last as long as the topic. They carry the id of the letters' topic, so that notes on a topic
that was deleted say nothing about its successor.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition

from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers
from sabot.errors import UNREADABLE, BrokerUnavailable, UserError
from sabot.kafka.client import ANSWER_SECONDS, FETCHING, admin_of, client_of, explain, link_of, partitions_of
from sabot.redaction import clean_cause

__all__ = ["JOURNAL_SUFFIX", "DeadLetter", "DeadLetters", "Note", "Ranges"]

JOURNAL_SUFFIX = ".redriven"
_ORIGIN = "sabot.topic"  # the first of the headers that a dead letter has beside its own
_SILENT_SECONDS = 10.0  # how long a partition may give nothing before its end


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that could not be processed: where it stands, what it was, and what happened to it.

    `headers` are those that the record had by itself. `facts` are the others, without `sabot.`: topic, partition, offset and
    timestamp of the record, agent, error, message, attempts, version; empty for a record that is no dead letter of ours.
    """

    partition: int
    offset: int
    timestamp: int  # ms, when the letter was written
    key: bytes | None
    payload: bytes | None
    headers: Headers
    facts: dict[str, str]
    redriven: bool

    @property
    def place(self) -> str:
        """PARTITION:OFFSET."""
        return f"{self.partition}:{self.offset}"

    def number(self, name: str) -> int | None:
        """A fact that is one; None where it is not there, or somebody else has written it."""
        try:
            return int(self.facts[name])
        except (KeyError, ValueError):
            return None

    def says(self, text: str) -> bool:
        """The text stands in the name of its error or in its message."""
        return text in self.facts.get("error", "") or text in self.facts.get("message", "")


class Note(msgspec.Struct, frozen=True):
    """One transaction of a redrive: the first and last offset of each range that it covers, of one partition."""

    topic_id: str
    partition: int
    ranges: list[tuple[int, int]]
    letters: int
    to: str  # "": each where it came from


class Ranges:
    """A set of offsets, as sorted ranges that do not touch."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add(self, first: int, last: int) -> None:
        """All from `first` to `last`, both included."""
        at = bisect_right(self._first, first)
        if at and self._last[at - 1] >= first - 1:
            at -= 1
            first = self._first[at]
        end = bisect_right(self._first, last + 1)
        if end > at:
            last = max(last, self._last[end - 1])
        self._first[at:end], self._last[at:end] = [first], [last]

    def __contains__(self, offset: int) -> bool:
        at = bisect_right(self._first, offset)
        return at > 0 and self._last[at - 1] >= offset

    def behind(self, offset: int) -> int:
        """The first offset from this one on that is not in it."""
        at = bisect_right(self._first, offset)
        return self._last[at - 1] + 1 if at and self._last[at - 1] >= offset else offset

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))


class DeadLetters:
    """The dead letters of one topic, as they stood when it was opened. Blocking; one thread. `close` it at the end.

    Raises UserError when there is no such topic, BrokerUnavailable. What comes while it is read is not shown: letters that a
    running job writes because it fails again would else be redriven for ever.
    """

    def __init__(self, topic: str, broker: str, kafka: Mapping[str, Any] | None = None) -> None:
        self.topic = topic
        self.kafka = dict(kafka or {})
        self.link = link_of(broker, f"dead letters in {topic!r}", kafka)
        self._consumer = self._open_consumer()
        try:
            self.partitions = partitions_of(self._consumer, self.link, topic)
            self.topic_id = self._find_topic_id()
            self._held = {index: self._watermarks(topic, index) for index in self.partitions}
        except BaseException:
            self.close()
            raise
        self.redriven: dict[int, Ranges] = {index: Ranges() for index in self.partitions}

    @property
    def journal(self) -> str:
        """The topic of the notes."""
        return self.topic + JOURNAL_SUFFIX

    def read_notes(self) -> None:
        """Fills `redriven` with what stands in the journal now; without one, nothing was redriven."""
        try:
            partitions_of(self._consumer, self.link, self.journal)
        except UserError:
            return
        _, end = self._watermarks(self.journal, 0)
        for message in self._messages(self.journal, 0, 0, end):
            note = self._note(message)
            if note.topic_id == self.topic_id:
                for first, last in note.ranges:
                    self.redriven.setdefault(note.partition, Ranges()).add(first, last)

    def _note(self, message: Any) -> Note:
        try:
            return msgspec.json.decode(message.value() or b"", type=Note)
        except UNREADABLE as error:
            raise UserError(
                f"{self.journal}[0]@{message.offset()} is no note of a redrive: {error}",
                hint="only sabot writes there; what was redriven cannot be told without it",
            ) from error

    def letters(self, *, redriven: bool = False) -> Iterator[DeadLetter]:
        """By partition and offset; with `redriven` those too that were redriven already."""
        for index in self.partitions:
            done = self.redriven[index]
            _, end = self._held[index]
            for message in self._messages(self.topic, index, self.begin(index, redriven=redriven), end):
                if redriven or message.offset() not in done:
                    yield _letter(message, message.offset() in done)

    def begin(self, partition: int, *, redriven: bool = False) -> int:
        """Where `letters` begins to read a partition."""
        first, _ = self._held[partition]
        return first if redriven else self.redriven[partition].behind(first)

    def find(self, partition: int, offset: int) -> DeadLetter:
        """The letter at this place. Raises UserError when none is there."""
        first, end = self._held.get(partition, (0, 0))
        if first <= offset < end:
            for message in self._messages(self.topic, partition, offset, offset + 1):
                return _letter(message, offset in self.redriven[partition])
        held = ", ".join(
            f"{index}:{first} to {index}:{end - 1}" for index, (first, end) in self._held.items() if first < end
        )
        raise UserError(
            f"topic {self.topic!r} has no letter at {partition}:{offset}",
            hint=f"it holds {held}" if held else "it is empty",
        )

    def close(self) -> None:
        """Lets go of the connection. Idempotent."""
        self._consumer.close()

    def _open_consumer(self) -> Any:
        ours = {
            "group.id": f"sabot.dlq.{self.topic}",  # the client wants one; nothing is ever committed to it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",  # what retention has taken meanwhile is not there to be shown
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            **FETCHING,
            "fetch.wait.max.ms": 20,  # the end of a partition is told when a fetch comes back empty
        }
        return client_of(Consumer, self.link, {**self.kafka, "enable.partition.eof": True}, ours)

    def _find_topic_id(self) -> str:
        admin = admin_of(self.link, self.kafka)
        with self._explained(self.topic):
            asked = admin.describe_topics(TopicCollection([self.topic]), request_timeout=ANSWER_SECONDS)
            return str(asked[self.topic].result().topic_id)

    def _watermarks(self, topic: str, index: int) -> tuple[int, int]:
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
            raise explain(error.args[0], self.link, topic) from clean_cause(error)

    def _messages(self, topic: str, index: int, first: int, end: int) -> Iterator[Any]:
        """Committed records with first <= offset < end."""
        if first >= end:
            return
        self._consumer.assign([TopicPartition(topic, index, first)])  # in place of what it read before
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
                    return  # the last stable record may stand before `end`, with a transaction open
                if error is not None and not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
                    raise explain(error, self.link, topic)
        raise BrokerUnavailable(
            f"kafka://{self.link.address} gives no records of {topic}[{index}]", hint="is the broker running?"
        )


def _letter(message: Any, redriven: bool) -> DeadLetter:
    headers: list[tuple[str, bytes]] = message.headers() or []
    own = max((at for at, (name, _) in enumerate(headers) if name == _ORIGIN), default=len(headers))
    # a letter about a letter has two sets of facts: the first belongs to the record
    facts = {name.removeprefix("sabot."): (value or b"").decode(errors="replace") for name, value in headers[own:]}
    return DeadLetter(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple(headers[:own]),
        facts,
        redriven,
    )
