"""The engine's source over a Kafka topic. It assigns partitions and sets positions itself, and never takes part in a
group's rebalance.

Records come through a `RecordQueue`, which takes them from librdkafka without Python and gives columns. The Python
client does the rest: it owns the connection, is polled for the callbacks (errors, commits, tokens, statistics), and
answers questions about the topic.

The position after a batch is its last offset + 1. Transaction markers and aborted records have offsets too, which no
reader sees. A position may be such an offset; the broker continues after it, so nothing is lost or read twice. The
client's own `position()` gives the same number at the price of a call per partition. Only `lag` needs more: the
offset with which the client reports the end of a partition also covers markers at the end.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from sabot._cython.arrow.batch import Batch
from sabot._cython.kafka.librdkafka import RecordQueue
from sabot.base.config import RECORD_BYTES
from sabot.base.redaction import clean_cause
from sabot.base.supervision import watch_call
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Positions, Source, TakesBound
from sabot.connectors.places import Bound, goes_on_at, made_again, offsets_of
from sabot.errors import BrokerUnavailable, DataError, InternalError, SabotError, TransientError, UserError
from sabot.kafka.client import (
    ANSWER_SECONDS,
    DAMAGED,
    ELECTING,
    FETCHING,
    FORBIDDEN,
    NoSuchTopic,
    admin_of,
    committed_of,
    explain,
    link_of,
    partitions_of,
    said,
    topic_id_of,
)
from sabot.kafka.native import record_queue_of
from sabot.kafka.settings import whole_number

log = logging.getLogger("sabot.kafka")

CLOSE_SECONDS = 5.0
LAG_SECONDS = 0.5  # the greatest age of the figures of `lag`
WARN_SECONDS = 60.0  # the time between two warnings of refused commits
WAIT_SECONDS = 0.1  # a wait for records is interrupted so often, for the client's callbacks and for new partitions
_HEADERS = RECORD_SCHEMA.get_field_index("headers")
_LOST = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}


class KafkaReader(Source, TakesBound):
    """A source that reads the partitions of `topic`, and looks for new ones every `partition_check` seconds."""

    def __init__(
        self,
        topic: str,
        broker: str,
        group_id: str,
        partition_check: float,
        kafka: Mapping[str, Any],
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`share`: (i, n) makes this the reader of every n-th partition, beginning with the i-th."""
        self.name = topic
        self.group_id = group_id
        self._broker = broker
        self._link = link_of(broker, f"source of topic {topic!r}", kafka)
        self._link.group = group_id or f"sabot.{topic}"
        self._check_seconds = partition_check
        self._kafka = kafka
        self.record_bytes = max(RECORD_BYTES, whole_number(kafka, "message.max.bytes", 0))
        self._share = share
        self._queue: RecordQueue | None = None
        self._headers = True  # records come with their headers
        self._consumer: Any = None
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()  # partitions that are paused
        self._held: dict[int, tuple[int, int]] = {}  # the offsets that the broker held of the partitions at `open`
        self._goals: dict[int, int] = {}  # the ends of the partitions as of `open`, or the bound if it is before them
        self._ends: dict[int, int] = {}  # the offset at which the client last reported the end of a partition
        self._highs: dict[int, int] = {}  # high watermarks as of `_looked`, for `lag` in other threads
        self._looked = 0.0
        self._new: list[int] = []  # new partitions that `_watch_partitions` has found
        self._fault: SabotError | None = None  # a lasting fault that another thread has found; the next read raises it
        self._topic_id: str | None = None  # None: not asked for yet
        self._refused_at = -WARN_SECONDS  # when a refused commit was last a warning
        self._refused = 0  # commits that were refused since then, without a warning
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None

    def readers(self, count: int) -> Sequence[Source]:
        with admin_of(self._link, self._kafka) as admin:
            partitions = len(partitions_of(admin, self._link, self.name))
        readers = min(count, partitions)
        if readers < 2:
            return [self]
        found = [
            KafkaReader(self.name, self._broker, self.group_id, self._check_seconds, self._kafka, (index, readers))
            for index in range(readers)
        ]
        for reader in found:
            reader.skips_removed = self.skips_removed
            if self.bound is not None:
                reader.end_at(Bound(self.bound.asked))
        return found

    def leave_headers(self) -> None:
        self._headers = False

    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        if self._headers or self._queue is None:
            return records
        places = (records.column(name).to_numpy() for name in ("partition", "offset"))
        return records.set_column(_HEADERS, RECORD_SCHEMA.field(_HEADERS), self._queue.headers(*places))

    @property
    def exhausted(self) -> bool:
        return self.bound is not None and self._queue is not None and self.bound.reached

    def topic_id(self) -> str:
        if self._topic_id is None:
            with admin_of(self._link, self._kafka) as admin:
                self._topic_id = topic_id_of(admin, self._link, self.name)
        return self._topic_id

    def identity(self) -> str | None:
        return self.topic_id() or None

    def _made_anew(self, admin: Any) -> UserError | None:
        """Returns the error if the topic of this name is another one than the topic that was opened. Returns None if
        it is the same, or has no id.
        """
        try:
            now = topic_id_of(admin, self._link, self.name)
        except SabotError as error:
            log.debug("topic %r: its id is not known: %s", self.name, error)
            return None
        before = self._topic_id
        if before is None and not self._closing.is_set():
            self._topic_id = now
        return None if not before or now in ("", before) else made_again(self.name, before, now, "while it was read")

    def _as_it_is_now(self, error: SabotError) -> SabotError:
        """Returns the error to raise for `error`. A topic that was missing may have been made again meanwhile: then its
        positions mean nothing, and the user has to know that rather than that there was no topic for a moment.
        """
        if not isinstance(error, NoSuchTopic):
            return error
        with admin_of(self._link, self._kafka) as admin:
            return self._made_anew(admin) or error

    def _own(self, indexes: list[int]) -> list[int]:
        return [index for index in indexes if index % self._share[1] == self._share[0]]

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        ours = {
            "group.id": self._link.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",  # a position that retention has removed is an error, never a silent jump
            "allow.auto.create.topics": False,
            "isolation.level": "read_committed",
            "check.crcs": True,
            **FETCHING,
            # Backpressure may last long, and no group waits for this consumer.
            "max.poll.interval.ms": 86_400_000,
            "on_commit": self._on_commit,
        }
        kafka = {**self._kafka, "enable.partition.eof": True}
        self._closing.clear()
        self._queue = record_queue_of(self._link, kafka, ours, headers=self._headers)
        self._consumer = self._queue.client
        try:
            restored = {index: at for (name, index), at in (positions or {}).items() if name == self.name}
            self._positions = self._resolve(partitions_of(self._consumer, self._link, self.name), restored, start)
        except BaseException:
            self.close()
            raise
        self._ends, self._new, self._fault = {}, [], None
        self._highs, self._looked, self._paused = {}, 0.0, set()
        self._assign(self._consumer.assign, self._positions)
        self._look_for_bound(self._positions)
        self._link.opened = True
        watch = watch_call(
            self._watch_partitions, f"the thread that looks for new partitions of topic {self.name!r}", self._broke
        )
        self._watch = threading.Thread(target=watch, name=f"kafka-watch-{self.name}", daemon=True)
        self._watch.start()

    def _resolve(self, every: list[int], restored: dict[int, int], start: str | int) -> dict[int, int]:
        """Returns the first offset to read of each partition of this reader, and stores where they end. Raises
        UserError for an offset that the broker does not hold.
        """
        indexes = self._own(every)
        gone = sorted(set(restored) - set(every))
        if gone:
            raise UserError(
                f"{self.name}[{gone[0]}]: there is no such partition, and the checkpoint continues in it at {restored[gone[0]]}",
                hint="was the topic deleted and made again? start afresh (--fresh), or restore the topic",
            )
        self._held = {index: self._held_by_broker(index) for index in indexes}
        ours = {index: at for index, at in restored.items() if index in indexes}
        missing = [index for index in indexes if index not in ours]
        chosen = offsets_of("earliest" if restored else start, self, missing, every) | ours
        if self.bound is not None:
            self.bound.settle(self, indexes, every)
        for index, position in chosen.items():
            chosen[index] = goes_on_at(self.name, index, position, self._held[index], skips=self.skips_removed)
        self._goals = {index: self._last(index, end) for index, (_, end) in self._held.items()}
        return chosen

    def _held_by_broker(self, index: int) -> tuple[int, int]:
        found: tuple[int, int] = self._ask(
            lambda _, timeout: self._consumer.get_watermark_offsets(
                TopicPartition(self.name, index), timeout=timeout, cached=False
            ),
            None,
        )
        return found

    def span(self, partition: int) -> tuple[int, int]:
        """Returns the first offset of a partition that the broker held at `open`, and the offset after its last, for
        `connectors.places.offsets_of`.
        """
        return self._held[partition]

    def committed(self, partitions: Collection[int]) -> dict[int, int]:
        """Returns the offsets that the group has committed, for `connectors.places.offsets_of`."""
        asked = [TopicPartition(self.name, index) for index in partitions]
        return _offsets(self._ask(partial(committed_of, self._consumer), asked))

    def at(self, partitions: Collection[int], ms: int) -> dict[int, int]:
        """Returns the first offset with this time or a later one, by partition, for `connectors.places.offsets_of`."""
        asked = [TopicPartition(self.name, index, ms) for index in partitions]
        return _offsets(self._ask(self._consumer.offsets_for_times, asked))

    def _ask(self, call: Any, argument: Any) -> Any:
        """Makes a request to the broker, and repeats it while the broker is starting up. Raises BrokerUnavailable
        after ANSWER_SECONDS.
        """
        deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
        while True:
            try:
                return call(argument, timeout=max(0.1, deadline - SYSTEM_CLOCK.monotonic()))
            except KafkaException as error:
                reason = error.args[0]
                again = reason.retriable() or reason.code() in ELECTING
                if SYSTEM_CLOCK.monotonic() > deadline or not again:
                    raise explain(reason, self._link, self.name) from clean_cause(error)
                self._consumer.poll(0)
                self._closing.wait(0.1)

    def _assign(self, assign: Callable[[list[TopicPartition]], object], positions: Mapping[int, int]) -> None:
        assert self._queue is not None
        self._queue.follow(self.name, positions)
        assign([TopicPartition(self.name, index, position) for index, position in positions.items()])

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        queue = self._queue
        if queue is None:
            raise UserError(f"the source of topic {self.name!r} is not open")
        if self.exhausted:
            return None
        now = SYSTEM_CLOCK.monotonic()
        if now - self._looked > LAG_SECONDS:
            self._looked = now
            self._look_at_ends(self._positions)
        deadline = now + timeout
        wait = 0.0
        while True:
            if self._fault is not None:
                raise self._as_it_is_now(self._fault)
            self._link.check(self._prove)
            self._serve()
            if self._new:
                self._take_new()
            data, covered, events = queue.read(max_rows, wait)
            for code, text, index, offset in events:
                self._notice(KafkaError(code, text), index, offset)
            if data is not None and self.bound is not None:
                data, covered = self._within(self.bound, data, covered)
            if data is not None:
                # Not reported to the link: the records may have been fetched before the broker was lost.
                self._positions.update(covered)
                self._look_at_ends(covered)
                self._look_for_bound(covered)
                if data.num_rows:
                    return Batch(data, {(self.name, index): offset for index, offset in covered.items()}, self.name)
            left = deadline - SYSTEM_CLOCK.monotonic()
            if left <= 0 or self.exhausted:
                return None
            wait = min(left, WAIT_SECONDS)

    def _within(
        self, bound: Bound, data: pa.RecordBatch, covered: dict[int, int]
    ) -> tuple[pa.RecordBatch, dict[int, int]]:
        """Returns the records before the bound, and the positions after them, which are never above the bound."""
        if any(at > bound.of(index) for index, at in covered.items()):
            data = bound.before(data)
        ends = {index: bound.of(index) for index in covered}
        return data, {
            index: min(at, ends[index]) for index, at in covered.items() if self._positions[index] < ends[index]
        }

    def _look_for_bound(self, indexes: Iterable[int]) -> None:
        """Notes which of these partitions have reached the bound, and stops fetching from them."""
        if self.bound is None:
            return
        over = [index for index in indexes if self.bound.comes(index, self._reached(index))]
        if over:
            self._consumer.pause([TopicPartition(self.name, index) for index in over])

    def _reached(self, index: int) -> int:
        """Returns the offset before which nothing is left to read of a partition: markers and aborted records at its
        end count as read.
        """
        return max(self._positions.get(index, 0), self._ends.get(index, 0))

    def _serve(self) -> None:
        """Runs the client's callbacks that are due, and handles the faults that belong to no partition."""
        while (event := self._consumer.poll(0)) is not None:
            if event.error() is None:
                raise InternalError(f"{self.name}[{event.partition()}]@{event.offset()} has come past its queue")
            self._notice(event.error(), event.partition(), event.offset())

    def _prove(self, seconds: float) -> None:
        """Raises KafkaException unless the broker accepts the consumer's login."""
        for index in list(self._positions)[:1]:
            self._consumer.get_watermark_offsets(TopicPartition(self.name, index), timeout=seconds, cached=False)

    def _notice(self, error: KafkaError, index: int, offset: int | None) -> None:
        """Handles an event that is no record: the end of a partition, or a fault. Raises the faults that the client
        cannot overcome by itself.
        """
        if error.code() == KafkaError._PARTITION_EOF:
            self._ends[index] = offset or 0
            self._look_for_bound([index])
        elif error.code() in _LOST:
            with admin_of(self._link, self._kafka) as admin:
                anew = self._made_anew(admin)
            if anew:
                raise anew
            raise UserError(
                f"{self.name}[{index}]: position {self._positions.get(index)} does not exist any more: {said(error)}",
                hint=f"retention has removed it; raise the topic's retention, and go on without what is gone (--from-earliest {self.name})",
            )
        elif error.code() in DAMAGED and offset is not None:  # without an offset the client repeats the request
            raise DataError(
                f"{self.name}[{index}] is damaged from offset {offset} on: {said(error)}",
                hint="restore the partition from a replica, and start again; or give up the damaged batch and all state: --fresh and "
                "start={partition: offset} after it",
            )
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._link.down()
        elif not error.retriable():
            reason = explain(error, self._link, self.name)
            if not isinstance(reason, TransientError):
                raise self._as_it_is_now(reason)
            log.warning("%s", reason)

    def _take_new(self) -> None:
        """Adds the new partitions at their beginning. The other partitions stay assigned: records of a partition that
        is assigned again would no longer come through the RecordQueue.
        """
        new, self._new = self._new, []
        new = [index for index in new if index not in self._positions]
        if not new or self.bound is not None:
            return
        self._positions.update(dict.fromkeys(new, 0))
        log.info("topic %r: reading new partitions %s", self.name, new)
        self._assign(self._consumer.incremental_assign, dict.fromkeys(new, OFFSET_BEGINNING))

    def _broke(self, error: SabotError) -> None:
        """Stores the error with which the watching thread has ended, so that the next read raises it. Called in that
        thread.
        """
        self._fault = error

    def _watch_partitions(self) -> None:
        """Looks, in a thread of its own, for new partitions, for another topic under this name, and for the return of
        a lost broker.

        It uses a client of its own: on the consumer's connection an answer would queue after fetches, and polling the
        consumer in this thread would take records away from `read_batch`.
        """
        with admin_of(self._link, self._kafka) as client:
            self._fault = self._made_anew(client)  # notes the id with which later ones are compared
            missing = 0
            next_check = SYSTEM_CLOCK.monotonic() + self._check_seconds
            while not self._closing.wait(min(1.0, self._check_seconds)):
                if not self._link.lost and not missing and SYSTEM_CLOCK.monotonic() < next_check:
                    continue
                next_check = SYSTEM_CLOCK.monotonic() + self._check_seconds
                try:
                    indexes = self._own(partitions_of(client, self._link, self.name, 5.0))
                    self._new = [index for index in indexes if index not in self._positions]
                    missing = 0
                    self._fault = self._made_anew(client) or self._fault
                except UserError as error:
                    # The topic is gone or forbidden, if two looks in a row say so: a broker may be starting up.
                    missing += 1
                    if missing > 1:
                        self._fault = error
                except BrokerUnavailable:
                    self._link.down()
                except SabotError as error:
                    log.warning("topic %r: cannot look for new partitions: %s", self.name, error)

    def positions(self) -> Positions:
        return {(self.name, index): offset for index, offset in self._positions.items()}

    def commit(self, positions: Positions) -> None:
        """Sends the offsets without waiting for the answer. A refusal is logged when it comes."""
        own = [TopicPartition(self.name, index, at) for (name, index), at in positions.items() if name == self.name]
        if not own:
            return
        try:
            self._consumer.commit(offsets=own, asynchronous=True)
        except KafkaException as error:
            raise explain(error.args[0], self._link, self.name) from clean_cause(error)

    def _on_commit(self, error: KafkaError | None, _: list[Any]) -> None:
        if error is not None and error.code() in FORBIDDEN:
            self._fault = explain(error, self._link, self.name)
        elif error is not None:
            now = SYSTEM_CLOCK.monotonic()
            if now - self._refused_at < WARN_SECONDS:
                self._refused += 1
                return
            more = f" ({self._refused} times more since the last warning)" if self._refused else ""
            self._refused_at, self._refused = now, 0
            log.warning(
                "group %r: offsets of topic %r are not committed: %s%s", self.group_id, self.name, said(error), more
            )

    def _look_at_ends(self, indexes: Iterable[int]) -> None:
        """Stores the high watermarks of these partitions for `lag`. Called in the reading thread, because the client
        holds a lock while it consumes, for which another thread would have to wait.
        """
        for index in indexes:
            try:
                _, high = self._consumer.get_watermark_offsets(TopicPartition(self.name, index), cached=True)
            except KafkaException:  # the client has not fetched from this partition yet
                continue
            if high is not None and high != OFFSET_INVALID:
                self._highs[index] = high

    def lag(self) -> dict[tuple[str, int], int]:
        return {
            (self.name, index): max(0, self._last(index, high) - self._reached(index))
            for index, high in list(self._highs.items())
        }

    def _last(self, index: int, high: int) -> int:
        """Returns the offset at which this source ends in a partition: `high`, the end of the records there, or the
        bound if that is lower.
        """
        return high if self.bound is None else min(high, self.bound.of(index))

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        wanted = {index for name, index in partitions if name == self.name}
        over = () if self.bound is None else self.bound.over
        paused = set() if self._queue is None else set(self._queue.hold(sorted(wanted)))
        for change, indexes in (
            (self._consumer.pause, paused),
            (self._consumer.resume, self._paused - wanted - set(over)),
        ):
            if indexes:
                change([TopicPartition(self.name, index) for index in sorted(indexes)])
        self._paused = self._paused & wanted | paused

    def backlog(self) -> int:
        return sum(max(0, goal - self._reached(index)) for index, goal in self._goals.items())

    def close(self) -> None:
        self._closing.set()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.join(CLOSE_SECONDS + 1)
        self._topic_id = None
        self._headers = True  # the next reader may need them
        queue, self._queue = self._queue, None
        consumer, self._consumer = self._consumer, None
        if queue is None:
            return
        queue.close()
        # The client waits for its last commits, which may take minutes when the broker is gone; so it closes in a thread of its own.
        closer = threading.Thread(target=consumer.close, name=f"kafka-close-{self.name}", daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if closer.is_alive():
            log.warning("topic %r: the Kafka client is still closing; its last commits may be lost", self.name)


def _offsets(found: Iterable[TopicPartition]) -> dict[int, int]:
    """Returns the offsets by partition, without those of -1, by which the broker says that there is none."""
    return {each.partition: each.offset for each in found if each.offset >= 0}
