"""Dead letters in a Kafka topic, and notes of the dead letters, in a topic or elsewhere, that were sent back
(redriven).

The notes are in a topic of their own, `<topic>.redriven`: each transaction of a redrive writes the ranges of offsets
that it sent. A consumer group's offset would not do: it is forgotten after `offsets.retention.minutes` (7 days by
default), and cannot say "these, and not those between them". The notes last as long as their topic. They have the id
of the place of the dead letters, so that notes for a topic that was deleted do not count for a topic that is made
later under the same name.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sabot.connectors.letters import DeadLetter, Home, Letters, Ranges, letter_of_record
from sabot.errors import UNREADABLE, UserError
from sabot.kafka.client import NoSuchTopic, link_of
from sabot.kafka.log import TopicLog

_NOTES_SUFFIX = ".redriven"


class Note(msgspec.Struct, frozen=True):
    """The dead letters of one partition that one transaction of a redrive has sent: the first and last offset of each
    range.
    """

    topic_id: str
    partition: int
    ranges: list[tuple[int, int]]
    letters: int
    to: str  # the topic; "": each letter went to the topic that it came from


class DeadLetters(Letters):
    """Dead letters in a topic, or in another `home`, with notes on a broker, to which they can be sent back.

    Raises UserError if there is no such topic, and BrokerUnavailable.
    """

    def __init__(
        self, topic: str, broker: str, kafka: Mapping[str, Any] | None = None, *, home: Home | None = None
    ) -> None:
        """`topic`: the topic of the dead letters; with a `home`, the name of that place, which becomes a part of the
        notes' topic.
        """
        self.topic = topic
        self.kafka = dict(kafka or {})
        self.link = link_of(broker, f"dead letters in {topic!r}", kafka)
        self._log = TopicLog(f"sabot.dlq.{topic}", self.link, self.kafka)
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
        """Fills `redriven` with the notes that there are now. Without their topic, nothing was redriven."""
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

    def record(self, topic: str, partition: int, offset: int) -> DeadLetter | None:
        found = next(self._log.messages(topic, partition, offset, offset + 1), None)
        return None if found is None else _letter(found)

    def _note(self, message: Any) -> Note:
        try:
            return msgspec.json.decode(message.value() or b"", type=Note)
        except UNREADABLE as error:
            raise UserError(
                f"{self.notes_topic}[0]@{message.offset()} is no note of a redrive: {error}",
                hint="only Sabot writes to this topic; without its notes nobody knows which dead letters were redriven",
            ) from error

    def close(self) -> None:
        super().close()
        self._log.close()


class _TopicHome:
    """A topic as a place of dead letters (`connectors.letters.Home`)."""

    grows_at_its_end = True

    def __init__(self, topic: str, log: TopicLog) -> None:
        self.name = topic
        self.words = f"topic {topic!r}"
        self._log = log
        try:
            partitions = log.partitions(topic)
        except NoSuchTopic as error:
            error.hint = "it is made with the first dead letter; if there was one, is the name right?"
            raise
        self.id = log.topic_id(topic)
        self.bounds = {index: log.bounds(topic, index) for index in partitions}

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        for message in self._log.messages(self.name, partition, first, end):
            yield _letter(message)

    def before(self, partition: int, end: int, count: int) -> int:
        return max(0, end - count)

    def close(self) -> None:
        """Does nothing: the connection belongs to DeadLetters."""


def _letter(message: Any) -> DeadLetter:
    return letter_of_record(
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or [],
    )
