"""Sends dead letters back to the topics that they came from, exactly once: a transaction holds records and the note
that they were sent.

A redrive that is killed leaves a transaction open. The next one ends it by claiming the same transactional id; the
committed notes then tell what was sent, and it continues with the rest. Of two redrives at the same time the second
takes over, and the first ends with an error.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException

from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.letters import DeadLetter, Ranges
from sabot.errors import AppLocked, SabotError, TransientError, UserError
from sabot.kafka.admin import settings_of
from sabot.kafka.client import (
    FENCED,
    NoSuchTopic,
    ensure_topic,
    explain,
    fatal_of,
    partitions_of,
    producer_of,
    said,
)
from sabot.kafka.letters import DeadLetters, Note
from sabot.redaction import clean_cause
from sabot.steps import step

log = logging.getLogger("sabot.kafka")

_LETTERS = 2000  # the most dead letters in one transaction
_BYTES = 8 << 20
_TRANSACTION_MS = 60_000
_CALL_SECONDS = 60.0
_UNFIT = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD}
_CLIENT_BATCH_BYTES = 1_000_000  # the client combines records into requests of up to this size
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


@dataclass
class Redriven:
    """The result of a redrive. `topics`: the number of records that went to each topic. `left`: the number of dead
    letters that were not sent, by reason.
    """

    letters: int = 0
    already: int = 0  # the dead letters named by their place that had been redriven before
    topics: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def leave(self, why: str) -> None:
        """Counts a dead letter that is not sent."""
        self.left[why] = self.left.get(why, 0) + 1


@dataclass(frozen=True, slots=True)
class _Sending:
    """A dead letter to be sent. No other waiting dead letter is between offset `begin` and this one's offset, so a
    note may cover that range.
    """

    letter: DeadLetter
    begin: int
    topic: str
    partition: int  # -1: chosen by the record's key
    timestamp: int

    @property
    def nbytes(self) -> int:
        return len(self.letter.payload or b"") + len(self.letter.key or b"")


@dataclass(frozen=True, slots=True)
class _Target:
    """A topic that takes records: its number of partitions (0: there is no such topic), how long it keeps a record,
    and the largest request that it accepts.
    """

    partitions: int
    kept_ms: int = 1 << 62
    batch_bytes: int = 1 << 62


def redrive(
    dead: DeadLetters,
    *,
    to: str | None = None,
    only: list[tuple[int, int]] | None = None,
    error: str = "",
    limit: int | None = None,
    skip: Collection[tuple[int, int]] = (),
    now: bool = False,
) -> Redriven:
    """Sends dead letters with their own key, payload, headers and timestamp to the topic that they came from, or to
    the topic `to`.

    `only`: sends only the dead letters at these places (partition, offset). `skip`: sends all but those at these
    places. `error`: sends those whose error contains this text. `limit`: sends at most so many. `now`: gives the
    current time to a record whose timestamp is older than the topic's retention; the broker may delete such a record
    before it is read, so without `now` it is not sent.

    Each dead letter is sent at most once, ever, whatever happens in between and however often this is called; those
    that are not selected keep waiting. A dead letter that goes back to its own topic goes to its own partition.
    Raises AppLocked if another redrive of the topic has begun, and UserError that names a dead letter which the topic
    does not take.
    """
    done = Redriven()
    ensure_topic(dead.link, dead.notes_topic, dead.kafka, 1, _FOREVER)
    sender = _Sender(dead, to or "")
    try:
        dead.read_notes()  # after the claim, so that no other redrive adds to the notes any more
        chosen = _places(dead, only, done) if only is not None else _waiting(dead)
        wanted = (
            (each, begin) for each, begin in chosen if each.says(error) and (each.partition, each.offset) not in skip
        )
        for batch in _batches(_addressed(islice(wanted, limit), sender, now, done)):
            sender.deliver(batch, done)
    except BaseException:
        sender.give_up()
        raise
    return done


def _waiting(dead: DeadLetters) -> Iterator[tuple[DeadLetter, int]]:
    """Yields each dead letter that waits, with the first offset after the one before it."""
    partition, begin = -1, 0
    for letter in dead.letters():
        if letter.partition != partition:
            partition, begin = letter.partition, dead.begin(letter.partition)
        yield letter, begin if dead.home.grows_at_its_end else letter.offset
        begin = letter.offset + 1


def _places(dead: DeadLetters, only: list[tuple[int, int]], done: Redriven) -> Iterator[tuple[DeadLetter, int]]:
    for partition, offset in sorted(set(only)):
        letter = dead.find(partition, offset)
        if letter.redriven:
            done.already += 1
        else:
            yield letter, offset


def _addressed(
    wanted: Iterator[tuple[DeadLetter, int]], sender: "_Sender", now: bool, done: Redriven
) -> Iterator[_Sending]:
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    for letter, begin in wanted:
        topic = sender.to or letter.facts.get("topic", "")
        if not sender.to and "step" in letter.facts:
            done.leave("they are rows of a step, not records as a topic had them (--to TOPIC sends them)")
            continue
        if not topic:
            done.leave("no dead letters of sabot: they do not say where they came from (--to TOPIC sends them)")
            continue
        target = sender.target(topic)
        if target.partitions == 0:
            done.leave(f"there is no topic {topic!r} to send them to (--to TOPIC sends them elsewhere)")
            continue
        known = letter.number("timestamp")
        stamp = max(0, letter.timestamp if known is None else known)
        if now and stamp < now_ms - target.kept_ms:
            stamp = now_ms
        if stamp < now_ms - target.kept_ms:
            done.leave(
                f"their timestamps are older than the retention of topic {topic!r} (--now gives them the current time)"
            )
            continue
        origin = letter.number("partition")
        if origin is None or sender.to or not 0 <= origin < target.partitions:
            origin = -1
        yield _Sending(letter, begin, topic, origin, stamp)


def _batches(sendings: Iterator[_Sending]) -> Iterator[list[_Sending]]:
    batch: list[_Sending] = []
    nbytes = 0
    for sending in sendings:
        if batch and (len(batch) == _LETTERS or nbytes + sending.nbytes > _BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(sending)
        nbytes += sending.nbytes
    if batch:
        yield batch


class _Sender:
    """The one producer that may send the dead letters of this topic: making it fences the one before it."""

    def __init__(self, dead: DeadLetters, to: str) -> None:
        self.to = to
        self._dead = dead
        self._targets: dict[str, _Target] = {}
        # Records of the open transaction that were refused: place and error.
        self._reports: list[tuple[str, KafkaError]] = []
        self._open = False
        self._producer = self._claim()

    def target(self, topic: str) -> _Target:
        """Returns the facts about a topic, for which the broker is asked once."""
        if topic not in self._targets:
            try:
                count = len(partitions_of(self._producer, self._dead.link, topic))
            except NoSuchTopic:
                count = 0
            self._targets[topic] = _target(self._dead, topic, count) if count else _Target(0)
        return self._targets[topic]

    def deliver(self, batch: list[_Sending], done: Redriven) -> None:
        """Sends the dead letters, and the notes that they were sent, in one transaction."""
        self._transaction(batch)
        done.letters += len(batch)
        for sending in batch:
            done.topics[sending.topic] = done.topics.get(sending.topic, 0) + 1

    def give_up(self) -> None:
        """Aborts the open transaction, so that readers of committed records need not wait for its time-out."""
        if not self._open:
            return
        self._open = False
        try:
            self._producer.purge()
            self._producer.abort_transaction(5)
        except KafkaException as error:
            log.warning(
                "the transaction of this redrive could not be ended (%s): the broker does it within %d s; "
                "until then readers of committed records wait",
                said(error.args[0]),
                2 * _TRANSACTION_MS // 1000,
            )

    def _claim(self) -> Any:
        name = f"sabot.dlq.{self._dead.topic}"
        settings = {
            "transactional.id": name,
            "transaction.timeout.ms": _TRANSACTION_MS,
            # With another strategy a call may hang for ever after a restart of the broker.
            "metadata.recovery.strategy": "none",
        }
        producer = producer_of(self._dead.link, self._dead.kafka, **settings)
        with step("claim", name):
            self._call(producer.init_transactions)
        return producer

    def _transaction(self, batch: list[_Sending]) -> None:
        producer, notes_topic = self._producer, self._dead.notes_topic
        self._reports = []
        with step("begin", notes_topic):
            self._call(lambda _: producer.begin_transaction())
            self._open = True
        for sending in batch:
            with step("produce", sending.topic):
                self._produce(sending)
                if self.target(sending.topic).batch_bytes < _CLIENT_BATCH_BYTES:
                    # One by one, because the client would combine records into a request larger than the topic accepts.
                    self._flush()
        for partition, note in self._notes(batch).items():
            with step("token", notes_topic):
                key = f"{note.topic_id}/{partition}".encode()
                self._accepted(partial(producer.produce, notes_topic, msgspec.json.encode(note), key, partition=0))
        self._flush()
        with step("commit", notes_topic):
            self._call(producer.commit_transaction)
            self._open = False

    def _produce(self, sending: _Sending) -> None:
        letter, refused = sending.letter, partial(self._on_delivery, sending.letter.place)
        place: dict[str, int] = {} if sending.partition < 0 else {"partition": sending.partition}
        self._accepted(
            partial(
                self._producer.produce,
                sending.topic,
                letter.payload,
                letter.key,
                headers=list(letter.headers) or None,
                timestamp=sending.timestamp,
                on_delivery=refused,
                **place,
            ),
            letter.place,
        )

    def _accepted(self, produce: Callable[[], object], letter: str = "") -> None:
        """Calls `produce`, again while the client's queue is full. `letter`: the place of the dead letter, to name it
        if it is refused.
        """
        while True:
            try:
                produce()
                return
            except BufferError:
                self._producer.poll(0.1)
                self._raise_refusal()
            except KafkaException as error:
                if letter:
                    self._on_delivery(letter, error.args[0], None)
                self._raise_refusal()
                raise self._explained(error.args[0]) from clean_cause(error)

    def _notes(self, batch: list[_Sending]) -> dict[int, Note]:
        ranges: dict[int, Ranges] = {}
        counts: dict[int, int] = {}
        for sending in batch:
            partition = sending.letter.partition
            ranges.setdefault(partition, Ranges()).add(sending.begin, sending.letter.offset)
            counts[partition] = counts.get(partition, 0) + 1
        return {
            partition: Note(self._dead.home.id, partition, list(covered), counts[partition], self.to)
            for partition, covered in ranges.items()
        }

    def _on_delivery(self, place: str, error: KafkaError | None, _: Any) -> None:
        """Keeps the error and does nothing else: while `flush` raises, no method of the client's objects may be
        called.
        """
        if error is not None:
            self._reports.append((place, error))

    def _flush(self) -> None:
        deadline = SYSTEM_CLOCK.monotonic() + _CALL_SECONDS
        try:
            while self._producer.flush(1.0) > 0:
                self._raise_refusal()
                if SYSTEM_CLOCK.monotonic() > deadline:
                    raise self._unanswered()
        except KafkaException as error:
            raise self._explained(error.args[0]) from clean_cause(error)
        except SystemError:  # a fatal error of the client got lost in a callback: the commit raises it again
            log.debug("the client lost an error while it flushed", exc_info=True)
        self._raise_refusal()

    def _raise_refusal(self) -> None:
        """Raises UserError for the first refusal whose cause is the record itself; other records of its batch only fail with it."""
        for place, error in self._reports:
            if error.code() in _UNFIT:
                raise UserError(
                    f"dead letter {place} of {self._dead.topic!r} is refused: {said(error)}",
                    hint=f"--skip {place} leaves it out; nothing is sent twice",
                )

    def _call(self, call: Callable[[float], object]) -> None:
        """Makes the call, and repeats it while the client says that this may help, up to a deadline."""
        deadline = SYSTEM_CLOCK.monotonic() + _CALL_SECONDS
        while True:
            try:
                call(10.0)
                return
            except KafkaException as error:
                reason: Any = error.args[0]
                if not reason.retriable():
                    raise self._explained(reason) from clean_cause(error)
                if SYSTEM_CLOCK.monotonic() > deadline:
                    raise self._unanswered() from clean_cause(error)

    def _explained(self, reason: Any) -> SabotError:
        if reason.code() == KafkaError._FATAL:
            reason = fatal_of(self._producer) or reason
        if reason.code() in FENCED:
            self._open = False  # the other redrive has ended our transaction
            return AppLocked(
                f"another redrive of {self._dead.topic!r} has begun, and sends what this one has not sent",
                hint="nothing is sent twice; let the other redrive end",
            )
        explained = explain(reason, self._dead.link, self._dead.topic, "Write")
        explained.hint = explained.hint or "repeat the command: nothing is sent twice"
        return explained

    def _unanswered(self) -> SabotError:
        return TransientError(
            f"kafka://{self._dead.link.address} did not end a transaction within {_CALL_SECONDS:g} s",
            hint="repeat the command: nothing is sent twice",
        )


def _target(dead: DeadLetters, topic: str, partitions: int) -> _Target:
    """Returns the facts about a topic, for which it asks the broker. If we may not read its settings, it is assumed
    to keep records for ever.
    """
    settings = settings_of(dead.link, dead.kafka, topic)
    if settings is None:
        return _Target(partitions)
    largest, retention = int(settings["max.message.bytes"]), int(settings["retention.ms"])
    if "delete" not in settings["cleanup.policy"] or retention < 0:
        return _Target(partitions, batch_bytes=largest)
    return _Target(partitions, retention, largest)
