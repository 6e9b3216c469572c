"""The engine's exactly-once sink over a Kafka topic: each part is one transaction, which also commits the part's
number, as an offset of a consumer group that belongs to the track. docs/decisions/007 has the experiments behind each
choice. This module loads confluent_kafka.

After any error, as after a crash, the sink abandons the producer, makes a new one, lets the broker end the
transaction of the old one (`init_transactions`), and reads the number of the last part that was committed.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as Overdue
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from sabot._cython.arrow.batch import Batch
from sabot.base.redaction import clean_cause
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.records import to_records
from sabot.connectors.base import KeepsToken, Token, Track
from sabot.engine.letters.refused import refused_in
from sabot.errors import AppLocked, BrokerUnavailable, SabotError, TransientError, UserError
from sabot.kafka.client import (
    ANSWER_SECONDS,
    FENCED,
    FORBIDDEN,
    UNKNOWN,
    BrokerLink,
    client_of,
    committed_of,
    connection_of,
    explain,
    fatal_of,
    said,
    topic_fault_behind,
)
from sabot.kafka.native import open_topic, record_producer_of
from sabot.kafka.settings import whole_number
from sabot.kafka.writer import (
    CLOSE_SECONDS,
    LASTING,
    KafkaWriter,
    Refused,
    batches_within,
    check_sizes,
    largest_record,
    produce,
    refusal,
    refused_by,
    refused_by_topic,
)
from sabot.steps import step

_log = logging.getLogger("sabot.kafka")

CALL_SECONDS = 10.0  # the time-out given to one call of the client
GRACE_SECONDS = 5.0  # the seconds after its time-out at which a call counts as one that never returns
KNOWN_SECONDS = 3.0  # the time to read a token before the track is claimed
CLAIM_SECONDS = 30.0  # the time for the broker to end the last producer's transaction, and to return the token
# the time to find the topic or make it; an absent broker is reported after a quarter of that
TOPIC_SECONDS = 4 * ANSWER_SECONDS
TRANSACTION_MS = 60_000  # the longest wait of readers behind a transaction that no producer takes over
FAULTS_IN_A_ROW = 10
LEFT_CLIENTS = 8  # how many abandoned clients of a process may still be alive: each may hold a part in memory

_LOADING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
}
_NO_TRANSACTIONS = {KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION}
# The consequence of another fault, which the next call raises.
_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}

T = TypeVar("T")


class KafkaDelivery(KafkaWriter, KeepsToken):
    """A KafkaWriter that also delivers parts. An app uses either `write` or `deliver`, never both.

    The broker gives the same error to a producer whose transaction timed out and to one whose track another process
    has claimed. `still_ours` tells the two cases apart. If it is None, the track counts as lost (AppLocked).
    """

    def __init__(self, topic: str, broker: str, kafka: Mapping[str, Any], format: Format = JSON) -> None:
        super().__init__(topic, broker, kafka, format)
        self._client: _Client | None = None
        self._track = Track("", "", "")
        self._seq = -1  # the number of the last part of this incarnation that was committed
        self._settled = 0  # the number that `settle` was last given
        self._tokened = False  # the topic has a token of this track
        self._faults = 0
        self._lost = False  # the broker has fenced us, and `still_ours` has not returned True
        self._transaction_seconds = whole_number(kafka, "transaction.timeout.ms", TRANSACTION_MS) / 1000

    def known(self, track: Track) -> Token | None:
        """Returns the last token that was committed, even while a producer has a transaction open. Makes the topic if
        it is missing, unless its first dead letter makes it.
        """
        client = _Client(self._link)
        self._link.group = _track_id(track)
        settings = {"group.id": _track_id(track), "isolation.level": "read_uncommitted", "enable.auto.commit": False}
        deadline = SYSTEM_CLOCK.monotonic() + KNOWN_SECONDS
        try:
            with step("topic", self.name):
                if not client.call(self._partitions, TOPIC_SECONDS + GRACE_SECONDS):
                    return None
            client.place = self.name
            client.consumer = client_of(Consumer, self._link, connection_of(self._kafka), settings)
            while True:
                try:
                    return client.call(partial(client.committed, KNOWN_SECONDS), KNOWN_SECONDS + GRACE_SECONDS)
                except KafkaException as error:
                    if SYSTEM_CLOCK.monotonic() > deadline or error.args[0].code() in FORBIDDEN:
                        return None  # `claim` asks again, and raises the reason
                    client.call(lambda: threading.Event().wait(0.1), GRACE_SECONDS)
        finally:
            client.leave(abort=False)

    def claim(self, track: Track) -> Token | None:
        self._leave(abort=False)
        # Asked before `init_transactions` fences anyone: otherwise two workers would fence each other for ever.
        ours = self._is_ours()
        if ours is False or (self._lost and ours is None):
            raise self._taken_over(track)
        self._lost = False
        self._track = track
        self._link.group = _track_id(track)
        client = self._client = _Client(self._link)
        with self._or_leave(client), step("claim", self.name):
            partitions = client.call(self._partitions, TOPIC_SECONDS + GRACE_SECONDS)
            client.call(lambda: self._connect(client, partitions), GRACE_SECONDS)
            deadline = SYSTEM_CLOCK.monotonic() + CLAIM_SECONDS
            self._ask(client, client.init, deadline)
            if not partitions and client.call(self._partitions, TOPIC_SECONDS + GRACE_SECONDS):
                return self.claim(track)  # the last producer has made the topic, before it was shut out
            found = self._ask(client, client.committed, deadline) if partitions else None
            empty = found is None and self.only_letters and self._ask(client, client.has_no_records, deadline)
            client.call(client.forget_consumer, CLOSE_SECONDS + GRACE_SECONDS)
        client.claimed = self._link.opened = True
        self._tokened = found is not None
        self._seq = found.seq if found is not None and found.incarnation == track.incarnation else -1
        return Token(0, track.incarnation, empty=True) if empty else found

    def _partitions(self) -> int:
        """Makes the topic if it is missing, and reads its settings. Returns the number of its partitions, or 0 for a
        missing topic that is made with its first dead letter.
        """
        if partitions := self.ensure_topic(make=not self.only_letters):
            self.read_rules()
        return partitions

    def _is_ours(self) -> bool | None:
        """Returns True if this process owns the app, or None if that is unknown."""
        return None if self.still_ours is None else self.still_ours()

    def _connect(self, client: "_Client", partitions: int) -> None:
        """Makes the producer and the consumer, in the client's thread. The consumer only reads the token: it never
        subscribes, so it is no member of its group.
        """
        name = _track_id(self._track)
        ours = {
            "transactional.id": name,
            "transaction.timeout.ms": TRANSACTION_MS,
            # With another strategy a call may hang for ever after a restart of the broker.
            "metadata.recovery.strategy": "none",
        }
        kafka = batches_within(self._kafka, self.rules)
        client.records = record_producer_of(self._link, kafka, self.name, partitions, **ours)
        client.producer = client.records.client
        reading = {"group.id": name, "isolation.level": "read_committed", "enable.auto.commit": False}
        client.consumer = client_of(Consumer, self._link, connection_of(self._kafka), reading)
        client.group = client.consumer.consumer_group_metadata()
        client.partitions = partitions
        client.place = self.name if partitions else ""

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Encodes the rows as records, in the caller's thread rather than in the track's."""
        rows = to_records(Batch(data), int(SYSTEM_CLOCK.time() * 1000), self._keys, self.encoder)
        check_sizes(rows, largest_record(self._kafka), self.name)
        return rows

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows that the client refuses, else those that the topic refuses by its settings, else those that
        the broker refuses in transactions that are aborted.
        """
        found = refused_in(batches, self.fitting)
        if found or self._client is None:  # `write` sends no row that the topic is known to refuse
            return found
        first, now_ms = 0, int(SYSTEM_CLOCK.time() * 1000)
        for data in batches:
            refused, _ = refused_by_topic(data, self.rules, self._kafka, self.name, now_ms)
            found |= {first + row: why for row, why in refused.items()}
            first += data.num_rows
        return found or refused_in(batches, self._tried)

    def _tried(self, data: pa.RecordBatch) -> None:
        self.claim(self._track)  # a producer of which the broker has refused a record begins no other transaction
        client = self._claimed()
        with self._or_leave(client):
            deadline = self._begin(client)
            with step("try", self.name):
                self._produce(client, [data], deadline)
        self._leave(abort=True)

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Writes a part in one transaction, which has to be committed within `transaction.timeout.ms`. Does nothing
        if the receiver has the part already. Raises UserError before `claim`, and as `Delivers.deliver` says.
        """
        if self._claimed() and seq <= self._seq:
            return
        if self.only_letters and not self._tokened:
            self._begin_track()
        client = self._claimed()
        with self._or_leave(client):
            deadline = self._begin(client)
            with step("produce", self.name):
                self._produce(client, batches, deadline)
            self._commit(client, seq, deadline)

    def _begin_track(self) -> None:
        """Makes the topic if it is missing, and sets the token in a transaction without records. If the process ends
        before that, the next start finds no topic or one without records, so no part is there. If it ends in the
        transaction of the first part, which may leave aborted records, the next start finds the token.
        """
        client = self._claimed()
        with self._or_leave(client), step("first", self.name):
            if not client.place:
                made = client.call(self.ensure_topic, TOPIC_SECONDS + GRACE_SECONDS)
                client.call(lambda: open_topic(client.records, self.name, made, self._kafka), GRACE_SECONDS)
                client.place, client.partitions = self.name, made
        self.settle(self._settled)

    def settle(self, seq: int) -> None:
        """Commits the token in a transaction without records. Called at each start, and when a track has sent nothing for an hour, because
        a broker forgets offsets that are not renewed (`offsets.retention.minutes`, 7 days).
        """
        client = self._claimed()
        self._settled = seq
        if not client.place:
            return
        with self._or_leave(client):
            self._commit(client, seq, self._begin(client))
        self._tokened = True

    def _begin(self, client: "_Client") -> float:
        with step("begin", self.name):
            client.call(client.begin, GRACE_SECONDS)
        return SYSTEM_CLOCK.monotonic() + self._transaction_seconds

    def _produce(self, client: "_Client", batches: Sequence[pa.RecordBatch], deadline: float) -> None:
        limit, now_ms, first = largest_record(self._kafka), int(SYSTEM_CLOCK.time() * 1000), 0

        def go_on() -> None:
            client.check()
            self._link.check(client.prove)
            if client.refused() is not None or SYSTEM_CLOCK.monotonic() > deadline:
                raise _Enough

        try:
            for batch in batches:
                rows = to_records(Batch(batch), now_ms)
                check_sizes(rows, limit, self.name, first)
                first += rows.num_rows
                send = partial(produce, client.records, rows, go_on)
                client.call(send, deadline - SYSTEM_CLOCK.monotonic() + GRACE_SECONDS)
            while client.call(lambda: client.producer.flush(1.0), GRACE_SECONDS):
                go_on()
        except _Enough:
            if client.refused() is None:
                raise self._late() from None
        refused = client.refused()
        if refused is not None and refused.error.code() not in _PURGED:
            raise self._refusal(client, refused)

    def _commit(self, client: "_Client", seq: int, deadline: float) -> None:
        token = Token(seq, self._track.incarnation)
        with step("token", self.name):
            self._ask(client, partial(client.send_token, token), deadline)
        if (refused := client.refused()) is not None:
            raise self._refusal(client, refused)
        with step("commit", self.name):
            self._ask(client, client.commit, deadline)
        self._seq, self._faults = seq, 0
        self._link.up()

    def _ask(self, client: "_Client", call: Callable[[float], T], deadline: float) -> T:
        """Makes a call that takes a time-out, and repeats it until `deadline` while the client says that this may
        help.
        """
        while True:
            seconds = max(0.1, min(CALL_SECONDS, deadline - SYSTEM_CLOCK.monotonic()))
            try:
                return client.call(partial(call, seconds), seconds + GRACE_SECONDS)
            except KafkaException as error:
                reason = error.args[0]
                again = reason.retriable() or reason.code() in _LOADING or reason.code() == KafkaError._TIMED_OUT
                if not again:
                    raise
                self._link.check(lambda left: client.call(partial(client.prove, left), left + GRACE_SECONDS))
                if SYSTEM_CLOCK.monotonic() > deadline:
                    if client.claimed:
                        raise
                    raise BrokerUnavailable(
                        f"kafka://{self._link.address} did not prepare topic {self.name!r} for exactly once within "
                        f"{CLAIM_SECONDS:g} s: {said(reason)}",
                        hint="do all its brokers run, with the topics __transaction_state and __consumer_offsets?",
                    ) from clean_cause(error)
                # A pause, in which `error_cb` may be called.
                client.call(lambda: client.producer.poll(0.1), GRACE_SECONDS)

    @contextmanager
    def _or_leave(self, client: "_Client") -> Iterator[None]:
        """Abandons the client after any error of the block, and raises the error again; a KafkaException becomes a
        SabotError. If the error ends the app, the transaction is aborted first, so that readers need not wait for it.
        """
        try:
            try:
                yield
            except KafkaException as error:
                raise self._fault(error.args[0]) from clean_cause(error)
        except BaseException as error:
            # After a passing error `claim` ends the transaction. After a final error none comes, so abort it for waiting readers.
            final = isinstance(error, Exception) and not isinstance(error, TransientError | AppLocked)
            if self._client is client:
                self._leave(abort=final)
                if final:
                    client.ended(CLOSE_SECONDS)
            raise

    def _fault(self, error: KafkaError, size: int | None = None) -> Exception:
        """Returns the SabotError for an error of the client, by the table of docs/decisions/007. `size`: the size of
        the record that the error is about, in bytes, or None.
        """
        code, address = error.code(), self._link.address
        if code in FENCED:
            if not self._is_ours():
                return self._taken_over(self._track)
            return self._bounded(
                f"another producer has taken this track, or a transaction took longer than transaction.timeout.ms: {said(error)}"
            )
        if code == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            return UserError(
                f"topic {self.name!r}: kafka://{address} refuses transaction.timeout.ms {self._transaction_seconds:g} s",
                hint="it may not be above the broker's transaction.max.timeout.ms",
            )
        if code in _NO_TRANSACTIONS:
            return UserError(
                f"kafka://{address} has no transactions: {said(error)}", hint="use delivery='at_least_once'"
            )
        if code in FORBIDDEN:
            # the token is an offset of the topic: to commit one is a right of readers
            operation = "Read" if "commit offsets" in error.str() else "Write"
            fault = explain(error, self._link, self.name, operation)
            return UserError(fault.message, hint=f"{fault.hint}; or use delivery='at_least_once'")
        if code == KafkaError.MSG_SIZE_TOO_LARGE or code in LASTING or code in UNKNOWN:
            return refusal(error, self._link, self.name, size)
        if code in (KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT):
            return self._late()
        return self._bounded(said(error))

    def _refusal(self, client: "_Client", refused: Refused) -> Exception:
        ask = partial(topic_fault_behind, client.producer, refused.error, self.name)
        fault = self._fault(client.call(ask, ANSWER_SECONDS + GRACE_SECONDS), refused.size)
        fault.add_note(str(refused))
        return fault

    def _late(self) -> Exception:
        """Returns the error for a deadline that passed: the broker does not answer, or it is too slow."""
        if self._link.lost:
            why = f": {self._link.reason}" if self._link.reason else ""
            return BrokerUnavailable(f"kafka://{self._link.address} does not answer{why}")
        return self._bounded(
            f"a transaction took more than {self._transaction_seconds:g} s",
            hint="is the broker overloaded? raise transaction.timeout.ms",
        )

    def _bounded(self, what: str, hint: str = "") -> SabotError:
        """Returns the error for a fault that a new producer may overcome: a TransientError, or, after FAULTS_IN_A_ROW
        such faults, an error that ends the app.
        """
        self._faults += 1
        what = f"topic {self.name!r} on kafka://{self._link.address}: {what}"
        if self._faults < FAULTS_IN_A_ROW:
            return TransientError(what, hint=hint)
        return SabotError(f"{what}, {self._faults} times in a row", hint=hint)

    def _taken_over(self, track: Track) -> AppLocked:
        self._lost = True
        return AppLocked(
            f"another worker delivers to topic {self.name!r} as {_track_id(track)!r}: it has taken app {track.app!r} over",
            hint="stop one of the two; app ids are to be unique on a broker",
        )

    def _claimed(self) -> "_Client":
        if self._client is None:
            raise UserError(f"the sink of topic {self.name!r} is not open: claim comes before deliver and settle")
        return self._client

    def _leave(self, *, abort: bool) -> "_Client | None":
        client, self._client = self._client, None
        if client is not None:
            client.leave(abort)
        return client

    def finish(self) -> None:
        if self._producer is not None:
            self.flush()

    def close(self) -> None:
        """May be called from another thread while a call hangs."""
        self._lost = False
        client = self._leave(abort=True)
        if client is not None and not client.ended(CLOSE_SECONDS):
            _log.warning("topic %r: the Kafka client is still closing", self.name)
        super().close()


class _Enough(Exception):
    """The signal that ends the production of a part: a record was refused, or the deadline has passed."""


class _Client:
    """The producer and the consumer of one claim, and the one thread that makes all their calls.

    A call that never returns thus costs no more than this thread and the client's memory: the client is abandoned,
    and counted (LEFT_CLIENTS).
    """

    _left: ClassVar["list[_Client]"] = []
    _lock: ClassVar = threading.Lock()

    def __init__(self, link: BrokerLink) -> None:
        self._await_room()
        self.records: Any = None  # the RecordProducer
        self.producer: Any = None  # its client
        self.consumer: Any = None
        self.group: Any = None
        self.place = ""  # the topic, or "" if it is not made yet
        self.partitions = 0
        self._refused: Refused | None = None
        self.claimed = False
        self.open = False  # a transaction is open that may still be aborted
        self._link = link
        self._gone = False
        self._pending: Future[Any] | None = None
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kafka-track", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (given := self._calls.get()) is not None:
            future, function = given
            try:
                result, fault = None if future.cancelled() else function(), None
            except BaseException as error:  # raised again in the thread that made the call
                result, fault = None, self._reason(error)
            with suppress(InvalidStateError):  # the caller does not wait any more
                if fault is None:
                    future.set_result(result)
                else:
                    future.set_exception(fault)
            del given, future, function, result, fault

    def _reason(self, error: BaseException) -> BaseException:
        """Returns the error to raise for `error`. A fatal error of the client may make the next callback of the same
        call fail, and be hidden by a SystemError; or another thread of the client gets it first, and a call here
        raises only that there was a fatal error.
        """
        if self.producer is not None:
            if isinstance(error, SystemError):
                lost = KafkaError(KafkaError._FAIL, f"the client lost its own error: {error}")
                error = KafkaException(fatal_of(self.producer) or lost)
            elif isinstance(error, KafkaException) and error.args[0].code() == KafkaError._FATAL:
                error = KafkaException(fatal_of(self.producer) or error.args[0])
        if isinstance(error, KafkaException):
            # the frames of the traceback would keep the producer alive as long as the error
            return error.with_traceback(None)
        return error

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """Makes the call in the client's thread, and returns its result or raises its error. Raises TransientError if
        the call does not return within `seconds`, or if the client is abandoned.
        """
        future: Future[T] = Future()
        self._pending = future
        self._calls.put((future, function))
        if self._gone:  # `leave` was called meanwhile, and may not have seen this call
            future.cancel()
        try:
            return future.result(max(0.0, seconds))
        except CancelledError:
            raise TransientError("the sink was closed while it delivered") from None
        except Overdue:
            if not future.cancel():
                return future.result()  # the call returned just now, or raised a TimeoutError of its own
            raise TransientError(
                f"kafka://{self._link.address}: the Kafka client did not return within {seconds:.0f} s"
            ) from None

    def check(self) -> None:
        """Raises TransientError if the client is abandoned. Called in the client's thread."""
        if self._gone:
            raise TransientError("the sink was closed while it delivered")

    def refused(self) -> Refused | None:
        """Returns the first record that was not delivered since the client was made, with the number of all such
        records; or None.
        """
        records = self.records  # read once, because `_end` sets it to None in another thread
        if self._refused is None and records is not None:
            self._refused = refused_by(records)
        return self._refused

    def prove(self, seconds: float) -> None:
        """Raises KafkaException unless the broker accepts the producer's login. Called in the client's thread."""
        self.producer.list_topics(self.place or None, timeout=seconds)

    def init(self, seconds: float) -> None:
        """Ends the open transaction of the track's last producer, and fences that producer off."""
        self.producer.init_transactions(seconds)

    def begin(self) -> None:
        self.producer.begin_transaction()
        self.open = True

    def send_token(self, token: Token, seconds: float) -> None:
        place = TopicPartition(self.place, 0, token.seq, token.incarnation)
        self.producer.send_offsets_to_transaction([place], self.group, seconds)

    def commit(self, seconds: float) -> None:
        self.open = False  # from here on only the broker knows whether it is committed
        self.producer.commit_transaction(seconds)

    def committed(self, seconds: float) -> Token | None:
        """Returns the committed token, or None. With `read_committed` the broker answers only when no transaction on
        it is open.
        """
        (found,) = committed_of(self.consumer, [TopicPartition(self.place, 0)], seconds)
        if found.error is not None:
            raise KafkaException(found.error)
        return Token(found.offset, found.metadata or "") if found.offset >= 0 else None

    def has_no_records(self, seconds: float) -> bool:
        """Returns True if the topic is missing, or if no partition ever had a record."""
        for partition in range(self.partitions):
            bounds = self.consumer.get_watermark_offsets(TopicPartition(self.place, partition), timeout=seconds)
            if bounds is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            if bounds[1] > 0:
                return False
        return True

    def forget_consumer(self) -> None:
        self.consumer.close()
        self.consumer = None

    def leave(self, abort: bool) -> None:
        """Abandons the client: wakes the waiting caller, and ends the thread as soon as its call returns. Never
        blocks; callable from any thread.
        """
        self._gone = True
        pending = self._pending
        if pending is not None:
            pending.cancel()
        self._calls.put((Future(), lambda: self._end(abort)))
        self._calls.put(None)
        with self._lock:
            self._left.append(self)

    def _end(self, abort: bool) -> None:
        producer, consumer = self.producer, self.consumer
        self.records = self.producer = self.consumer = self._pending = None
        if producer is not None:
            producer.purge()
            if abort and self.open:
                try:
                    producer.abort_transaction(CLOSE_SECONDS / 2)
                except KafkaException as error:  # the transaction ends by its time-out, or at the next claim
                    _log.debug("a transaction stays open until it times out: %s", error)
        # producer.close() is not called: it would wait for the abort, and the broker may be gone. Dropping the last reference suffices.
        if consumer is not None:
            consumer.close()

    def ended(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @classmethod
    def _await_room(cls) -> None:
        with cls._lock:
            cls._left[:] = [each for each in cls._left if each._thread.is_alive()]
            waiting = list(cls._left)
        if len(waiting) >= LEFT_CLIENTS and not waiting[0].ended(ANSWER_SECONDS):
            raise SabotError(
                f"{len(waiting)} Kafka clients never returned from a call",
                hint="a process cannot end them: restart the worker",
            )


def _track_id(track: Track) -> str:
    """Returns the transactional id of the track, which is also the consumer group of its token. A sink has one track,
    with the number 0.
    """
    return f"{track.key}.0"
