"""Dead letters in a topic of the embedded broker, and notes there of those that were sent back (redriven).

The notes are in the broker, as the records are: both end with the process.
"""

from collections.abc import Iterator

from sabot.codecs.records import Record, iterate_records
from sabot.connectors.memory.broker import MemoryBroker
from sabot.engine.letters.form import DeadLetter, letter_of_record
from sabot.engine.letters.places import Home, Letters
from sabot.engine.letters.redrive import Redriven, Redriver, Selection, Sending, Target, redrive_selected
from sabot.errors import UserError

_ROWS = 500  # read at once
_ALL = Selection()


class MemoryLetters(Letters):
    """Dead letters in a topic, or in another `home`, with the notes of the embedded broker.

    Raises UserError if there is no such topic.
    """

    def __init__(self, topic: str, broker: MemoryBroker, *, home: Home | None = None) -> None:
        self.broker = broker
        super().__init__(MemoryHome(topic, broker) if home is None else home)

    def read_notes(self) -> None:
        """Fills `redriven` with the notes that there are now."""
        self.redriven |= self.broker.sent_back(self.home.id)

    def record(self, topic: str, partition: int, offset: int) -> DeadLetter | None:
        home = MemoryHome(topic, self.broker)
        first, end = home.bounds.get(partition, (0, 0))
        return next(home.read(partition, offset, offset + 1), None) if first <= offset < end else None


class MemoryHome(Home):
    """A topic of the embedded broker as a place of dead letters (`letters.places.Home`)."""

    grows_at_its_end = True

    def __init__(self, topic: str, broker: MemoryBroker) -> None:
        self.name = topic
        self.words = f"topic {topic!r}"
        if topic not in broker.topics():
            raise UserError(f"{self.words} does not exist", hint="it is made with its first record")
        self.id = f"{broker.log_id}/{topic}"
        self._topic = broker.topic(topic)
        with self._topic.lock:
            self.bounds = {part.index: (part.first, part.end) for part in self._topic.partitions}

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        while first < end:
            with self._topic.lock:
                part = self._topic.partitions[partition]
                first = max(first, part.first)  # the oldest may be dropped meanwhile
                pieces = part.slices(first, min(_ROWS, end - first))
            found = [each for piece in pieces for each in iterate_records(piece, self.name)]
            if not found:
                return
            for each in found:
                yield letter_of_record(partition, each.offset, each.timestamp, each.key, each.payload, each.headers)
            first = found[-1].offset + 1

    def before(self, partition: int, end: int, count: int) -> int:
        return max(0, end - count)

    def close(self) -> None:
        """Does nothing: the broker belongs to the process."""


def redrive(dead: MemoryLetters, selection: Selection = _ALL) -> Redriven:
    """Sends the selected dead letters back, as in `redrive_selected`. Each is sent at most once while the process
    lives, whatever happens in between and however often this is called, also by several threads.
    """
    dead.read_notes()
    return redrive_selected(dead, _MemorySender(dead), selection)


class _MemorySender(Redriver):
    """A sender of dead letters to topics of the embedded broker."""

    def __init__(self, dead: MemoryLetters) -> None:
        self._dead = dead

    def target(self, topic: str) -> Target:
        """Returns the facts about a topic. The embedded broker drops records by size, not by age."""
        return Target(self._dead.broker.topics().get(topic, 0))

    def deliver(self, batch: list[Sending], done: Redriven) -> None:
        """Sends the dead letters one by one, each together with its note."""
        for sending in batch:
            letter = sending.letter
            record = Record(
                letter.payload, letter.key, sending.headers, sending.timestamp, "", letter.partition, letter.offset
            )
            partition = None if sending.partition < 0 else sending.partition
            if self._dead.broker.send_back(self._dead.home.id, sending.begin, record, sending.topic, partition):
                done.sent(sending)
            else:
                done.already += 1
