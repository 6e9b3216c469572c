"""Kafka's half of a redrive: sends dead letters back to the topics that they came from, exactly once. A transaction
holds records and the note that they were sent.

A redrive that is killed leaves a transaction open. The next one ends it by claiming the same transactional id; the
committed notes then tell what was sent, and it continues with the rest. Of two redrives at the same time the second
takes over, and the first ends with an error.

The notes are in a topic of their own, `<topic>.redriven`: each transaction writes the ranges of offsets that it sent.
A consumer group's offset would not do: it is forgotten after `offsets.retention.minutes` (7 days by default), and
cannot say "these, and not those between them". The notes last as long as their topic. They have the id of the place of
the dead letters, so that notes for a topic that was deleted do not count for a topic that is made later under the same
name.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException

from sabot.base.redaction import clean_cause
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.letters.places import Ranges
from sabot.engine.letters.redrive import Redriven, Redriver, Sending, Target
from sabot.errors import AppLocked, SabotError, TransientError, UserError
from sabot.kafka.admin import settings_of
from sabot.kafka.client import (
    FENCED,
    BrokerLink,
    NoSuchTopic,
    ensure_topic,
    explain,
    fatal_of,
    partitions_of,
    producer_of,
    said,
)
from sabot.steps import step

log = logging.getLogger("sabot.kafka")

_TRANSACTION_MS = 60_000
_CALL_SECONDS = 60.0
_UNFIT = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_TIMESTAMP, KafkaError.INVALID_RECORD}
_CLIENT_BATCH_BYTES = 1_000_000  # the client combines records into requests of up to this size
_FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
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


def notes_topic_of(topic: str) -> str:
    """Returns the name of the topic of the notes about the dead letters in a topic."""
    return topic + _NOTES_SUFFIX


class KafkaRedriver(Redriver):
    """The one producer that may send the dead letters of a topic (`letters.redrive.Redriver`): making it fences the one
    before it, and makes the topic of the notes.
    """

    def __init__(self, topic: str, link: BrokerLink, kafka: Mapping[str, Any], *, home_id: str, to: str) -> None:
        """`home_id`: the id of the place of the dead letters (`Home.id`). `to`: the topic to which all of them go, or ""."""
        self._topic, self._link, self._kafka = topic, link, kafka
        self._home_id, self._to = home_id, to
        self._notes_topic = notes_topic_of(topic)
        self._targets: dict[str, Target] = {}
        # Records of the open transaction that were refused: place and error.
        self._reports: list[tuple[str, KafkaError]] = []
        self._open = False
        ensure_topic(link, self._notes_topic, kafka, 1, _FOREVER)
        self._producer = self._claim()

    def target(self, topic: str) -> Target:
        """Returns the facts about a topic, for which the broker is asked once."""
        if topic not in self._targets:
            try:
                count = len(partitions_of(self._producer, self._link, topic))
            except NoSuchTopic:
                count = 0
            self._targets[topic] = self._target(topic, count) if count else Target(0)
        return self._targets[topic]

    def _target(self, topic: str, partitions: int) -> Target:
        """Returns the facts about a topic, for which it asks the broker. If we may not read its settings, it is assumed
        to keep records for ever.
        """
        settings = settings_of(self._link, self._kafka, topic)
        if settings is None:
            return Target(partitions)
        largest, retention = int(settings["max.message.bytes"]), int(settings["retention.ms"])
        if "delete" not in settings["cleanup.policy"] or retention < 0:
            return Target(partitions, batch_bytes=largest)
        return Target(partitions, retention, largest)

    def deliver(self, batch: list[Sending], done: Redriven) -> None:
        """Sends the dead letters, and the notes that they were sent, in one transaction."""
        self._transaction(batch)
        for sending in batch:
            done.sent(sending)

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
        name = f"sabot.dlq.{self._topic}"
        settings = {
            "transactional.id": name,
            "transaction.timeout.ms": _TRANSACTION_MS,
            # With another strategy a call may hang for ever after a restart of the broker.
            "metadata.recovery.strategy": "none",
        }
        producer = producer_of(self._link, self._kafka, **settings)
        with step("claim", name):
            self._call(producer.init_transactions)
        return producer

    def _transaction(self, batch: list[Sending]) -> None:
        producer, notes_topic = self._producer, self._notes_topic
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

    def _produce(self, sending: Sending) -> None:
        letter, refused = sending.letter, partial(self._on_delivery, sending.letter.place)
        place: dict[str, int] = {} if sending.partition < 0 else {"partition": sending.partition}
        self._accepted(
            partial(
                self._producer.produce,
                sending.topic,
                letter.payload,
                letter.key,
                headers=list(sending.headers),
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

    def _notes(self, batch: list[Sending]) -> dict[int, Note]:
        ranges: dict[int, Ranges] = {}
        counts: dict[int, int] = {}
        for sending in batch:
            partition = sending.letter.partition
            ranges.setdefault(partition, Ranges()).add(sending.begin, sending.letter.offset)
            counts[partition] = counts.get(partition, 0) + 1
        return {
            partition: Note(self._home_id, partition, list(covered), counts[partition], self._to)
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
                    f"dead letter {place} of {self._topic!r} is refused: {said(error)}",
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
                f"another redrive of {self._topic!r} has begun, and sends what this one has not sent",
                hint="nothing is sent twice; let the other redrive end",
            )
        explained = explain(reason, self._link, self._topic, "Write")
        explained.hint = explained.hint or "repeat the command: nothing is sent twice"
        return explained

    def _unanswered(self) -> SabotError:
        return TransientError(
            f"kafka://{self._link.address} did not end a transaction within {_CALL_SECONDS:g} s",
            hint="repeat the command: nothing is sent twice",
        )
