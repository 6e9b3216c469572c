"""Selects dead letters and addresses them to the topics that they go back to, whatever broker takes them.

A `Redriver` sends: it is the broker's half, with the notes that make each dead letter go back once
(`kafka.redrive`, `letters.memory`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, TypeAlias

from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers
from sabot.engine.letters.form import ATTEMPTS_HEADER, BEFORE_HEADER, DeadLetter
from sabot.engine.letters.places import Letters

_LETTERS = 2000  # the most dead letters in one call of `deliver`
_BYTES = 8 << 20

Remedy: TypeAlias = Literal["to", "create", "now"]


def every_letter(letter: DeadLetter) -> bool:
    """Returns True: the selection of all dead letters."""
    return True


@dataclass(frozen=True)
class Selection:
    """The dead letters to be redriven, and how.

    `to`: the topic to send to, or "" for the topic that each one came from. `only`: the places (partition, offset) to
    choose from, or None for all. `wanted`: returns True for a dead letter that is to be sent. `limit`: the most to
    send. `now`: True gives the current time to a record whose timestamp is older than the topic's retention; the
    broker may delete such a record before it is read, so otherwise it is not sent.
    """

    to: str = ""
    only: list[tuple[int, int]] | None = None
    wanted: Callable[[DeadLetter], bool] = every_letter
    limit: int | None = None
    now: bool = False


@dataclass
class Redriven:
    """The result of a redrive. `topics`: the number of records that went to each topic. `left`: the number of dead
    letters that were not sent, by reason. `remedies`: by reason, what would send them: another topic, a topic of
    that name, or the current time.
    """

    letters: int = 0
    already: int = 0  # the dead letters named by their place that had been redriven before
    topics: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    remedies: dict[str, Remedy] = field(default_factory=dict)

    def leave(self, why: str, remedy: Remedy) -> None:
        """Counts a dead letter that is not sent."""
        self.left[why] = self.left.get(why, 0) + 1
        self.remedies[why] = remedy

    def add(self, other: "Redriven") -> None:
        """Adds the result of a later redrive of other dead letters of the same place. `already` stays, since the later
        one counts what the earlier one has sent.
        """
        self.letters += other.letters
        for counts, more in ((self.topics, other.topics), (self.left, other.left)):
            for name, count in more.items():
                counts[name] = counts.get(name, 0) + count
        self.remedies |= other.remedies

    def sent(self, sending: "Sending") -> None:
        """Counts a dead letter that was sent."""
        self.letters += 1
        self.topics[sending.topic] = self.topics.get(sending.topic, 0) + 1


@dataclass(frozen=True, slots=True)
class Sending:
    """A dead letter to be sent. No other waiting dead letter is between offset `begin` and this one's offset, so a
    note may cover that range.
    """

    letter: DeadLetter
    begin: int
    topic: str
    partition: int  # -1: chosen by the record's key
    timestamp: int
    headers: Headers
    """The record's own headers, and the place and the attempts of its dead letter in place of those of an earlier one."""

    @property
    def nbytes(self) -> int:
        """The bytes of the payload and the key."""
        return len(self.letter.payload or b"") + len(self.letter.key or b"")


@dataclass(frozen=True, slots=True)
class Target:
    """A topic that takes records: its number of partitions (0: there is no such topic), how long it keeps a record,
    and the largest request that it accepts.
    """

    partitions: int
    kept_ms: int = 1 << 62
    batch_bytes: int = 1 << 62


class Redriver(ABC):
    """The half of a broker in a redrive. Its methods block, and are called from one thread."""

    @abstractmethod
    def target(self, topic: str) -> Target:
        """Returns the facts about a topic."""

    @abstractmethod
    def deliver(self, batch: list[Sending], done: Redriven) -> None:
        """Sends the dead letters, and notes that they were sent. A dead letter that has a note is never sent again."""


def redrive_selected(dead: Letters, redriver: Redriver, selection: Selection) -> Redriven:
    """Sends the selected dead letters with their own key, payload, headers and timestamp, and the headers `sabot.letter` and
    `sabot.letter.attempts`.

    Those that are not selected keep waiting. A dead letter that goes back to its own topic goes to its own partition.
    """
    done = Redriven()
    chosen = _waiting(dead) if selection.only is None else _places(dead, selection.only, done)
    wanted = ((each, begin) for each, begin in chosen if selection.wanted(each))
    for batch in _batches(_addressed(dead, islice(wanted, selection.limit), redriver, selection, done)):
        redriver.deliver(batch, done)
    return done


def _waiting(dead: Letters) -> Iterator[tuple[DeadLetter, int]]:
    """Yields each dead letter that waits, with the first offset after the one before it."""
    partition, begin = -1, 0
    for letter in dead.letters():
        if letter.partition != partition:
            partition, begin = letter.partition, dead.begin(letter.partition)
        yield letter, begin if dead.home.grows_at_its_end else letter.offset
        begin = letter.offset + 1


def _places(dead: Letters, only: list[tuple[int, int]], done: Redriven) -> Iterator[tuple[DeadLetter, int]]:
    for partition, offset in sorted(set(only)):
        letter = dead.find(partition, offset)
        if letter.redriven:
            done.already += 1
        else:
            yield letter, offset


def _addressed(
    dead: Letters,
    wanted: Iterator[tuple[DeadLetter, int]],
    redriver: Redriver,
    selection: Selection,
    done: Redriven,
) -> Iterator[Sending]:
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    for letter, begin in wanted:
        topic = selection.to or letter.facts.get("topic", "")
        if not selection.to and "step" in letter.facts:
            done.leave("they are rows of a step, not records as a topic had them", "to")
            continue
        if not topic:
            done.leave("no dead letters of sabot: they do not say where they came from", "to")
            continue
        target = redriver.target(topic)
        if target.partitions == 0:
            done.leave(f"there is no topic {topic!r} to send them to", "create")
            continue
        known = letter.number("timestamp")
        stamp = max(0, letter.timestamp if known is None else known)
        if selection.now and stamp < now_ms - target.kept_ms:
            stamp = now_ms
        if stamp < now_ms - target.kept_ms:
            done.leave(f"their timestamps are older than the retention of topic {topic!r}", "now")
            continue
        origin = letter.number("partition")
        if origin is None or selection.to or not 0 <= origin < target.partitions:
            origin = -1
        name = dead.home.name.rpartition("/")[2]  # of a file: its folder is not for the readers of the topic
        before = f"{name} {letter.place}".encode(errors="backslashreplace")
        # In front: if the record is a dead letter itself, the headers behind its `sabot.topic` are facts about it.
        ours = {BEFORE_HEADER: before}
        if (attempts := letter.number("attempts")) is not None:
            ours[ATTEMPTS_HEADER] = str(attempts).encode()
        own = (*ours.items(), *(each for each in letter.headers if each[0] not in (BEFORE_HEADER, ATTEMPTS_HEADER)))
        yield Sending(letter, begin, topic, origin, stamp, own)


def _batches(sendings: Iterator[Sending]) -> Iterator[list[Sending]]:
    batch: list[Sending] = []
    nbytes = 0
    for sending in sendings:
        if batch and (len(batch) == _LETTERS or nbytes + sending.nbytes > _BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(sending)
        nbytes += sending.nbytes
    if batch:
        yield batch
