"""Dead letters in a Kafka topic; and those of any place with their notes on a Kafka broker (`kafka.redrive`)."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sabot.engine.letters.form import DeadLetter, letter_of_record
from sabot.engine.letters.places import Home, Letters, Ranges
from sabot.engine.letters.redrive import Redriven, Selection, redrive_selected
from sabot.errors import UNREADABLE, UserError
from sabot.kafka.client import NoSuchTopic, link_of
from sabot.kafka.log import TopicLog
from sabot.kafka.redrive import KafkaRedriver, Note, notes_topic_of

_ALL = Selection()


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
        return notes_topic_of(self.topic)

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


class _TopicHome(Home):
    """A topic as a place of dead letters (`letters.places.Home`)."""

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


def redrive(dead: DeadLetters, selection: Selection = _ALL) -> Redriven:
    """Sends the selected dead letters back, as in `redrive_selected`.

    Each dead letter is sent at most once, ever, whatever happens in between and however often this is called. Raises
    AppLocked if another redrive of the topic has begun, and UserError that names a dead letter which the topic does
    not take.
    """
    sender = KafkaRedriver(dead.topic, dead.link, dead.kafka, home_id=dead.home.id, to=selection.to)
    try:
        dead.read_notes()  # after the claim, so that no other redrive adds to the notes any more
        return redrive_selected(dead, sender, selection)
    except BaseException:
        sender.give_up()
        raise
