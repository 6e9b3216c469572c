"""Functions for every use of the Kafka client: making clients from settings, converting their errors into
SabotErrors, and making missing topics.

This module loads confluent_kafka; the rest of the room imports it only when an address says kafka://.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import proxy

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sabot.base.config import RECORD_BYTES, checked_topic, parse_broker
from sabot.base.os_errors import hint_of
from sabot.base.redaction import clean_cause, redacted, scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import BrokerUnavailable, SabotError, ServerRefusal, TransientError, UserError
from sabot.kafka.access import Finding, acl_hint, login_hint, look, principal, tidy
from sabot.kafka.settings import checked_settings

log = logging.getLogger("sabot.kafka")

ANSWER_SECONDS = 8.0  # the longest wait of an opening for the broker; callers promise 10 s in all
_NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # 16 zero bytes
_NO_TOPIC_IDS = {KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION}
MESSAGE_BYTES = RECORD_BYTES  # the largest message that a producer of ours accepts; the broker may set a lower bound

# Bounds of what the client fetches ahead, for all partitions of a consumer together: it sends no more requests once it holds so many
# records, or so many bytes of payloads. It counts neither keys and headers (measured: 400 records with headers of 900 kB took 400 MB), nor
# its own 330 bytes per record (1 M records of 127 bytes took 490 MB), nor the responses on their way, one from each broker, each of up to
# `fetch.max.bytes` compressed.
FETCHING = {
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 64 << 10,
    "fetch.max.bytes": 2 << 20,  # with the client's default of 50 MB, 64 partitions took 270 MB
    "fetch.message.max.bytes": 1 << 20,  # of one partition; a larger batch of records is fetched whole all the same
    # The wait in ms before the client looks for room again; with its default of 1000 it idles for a second each time.
    "fetch.queue.backoff.ms": 5,
}

# The meaning of the client's error codes. A lasting fault, which waiting does not mend, is a UserError; any other is a TransientError.
#   _ABSENT      may pass: BrokerUnavailable at an opening; later the client goes on trying, and `BrokerLink` logs it
#   _REFUSED     a login or a certificate is not accepted: lasting at an opening; later, once it has lasted for REFUSED_SECONDS
#   FORBIDDEN    a right is missing: lasting
#   ELECTING     passes within seconds: the broker is starting up
#   UNKNOWN      a topic or partition does not exist: lasting
#   _NO_SUCH_SETTINGS  a topic cannot be made as it is asked for: lasting
#   DAMAGED      records are not what was written: lasting. The client itself would go on behind their batch
#   FENCED       another producer has the transactional id; what that means, only the user of transactions knows
_ABSENT = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._SSL,  # unless it is about a certificate: see `_is_refusal`
}
_REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
FENCED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
ELECTING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
# Reasons why the broker makes or grows no topic with these settings.
_NO_SUCH_SETTINGS = {
    KafkaError.INVALID_CONFIG: "correct config=: its settings are those of Kafka's topics, as texts",
    KafkaError.INVALID_PARTITIONS: "correct partitions=: 1 is the least, and a topic never shrinks",
    KafkaError.INVALID_REPLICATION_FACTOR: "start more brokers, or lower default.replication.factor of the broker",
    KafkaError.INVALID_REPLICA_ASSIGNMENT: "start more brokers, or lower default.replication.factor of the broker",
    KafkaError.POLICY_VIOLATION: "the broker has a policy for topics (create.topic.policy.class.name)",
}
UNKNOWN = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

DAMAGED = {KafkaError._BAD_MSG, KafkaError._NOT_IMPLEMENTED, KafkaError._BAD_COMPRESSION, KafkaError._UNDERFLOW}

REFUSED_SECONDS = 5.0  # a broker that restarts, or learns of a new password, may refuse a valid login for a moment
_TOO_LARGE = (
    "receive.message.max.bytes"  # the client reports a larger answer by this name, and repeats the request for ever
)
_FRESH_SECONDS = 2.0  # reports of the client that no broker answers are ignored for so long after an answer
_FIRST_SECONDS = 1.0  # an opening waits so long for a first answer before it looks for the reason


class NoSuchTopic(UserError):
    """The topic does not exist. If the user has no right to see the topic, the error is a UserError of another class,
    because nobody can say whether that topic exists.
    """


_links: "weakref.WeakSet[BrokerLink]" = weakref.WeakSet()
_links_lock = threading.Lock()


def lost_brokers() -> dict[str, str]:
    """Returns the brokers that do not answer the clients of this process: by address, for how long, and why."""
    found = {}
    with _links_lock:
        links = sorted(_links, key=lambda link: link.address)
    for link in links:
        if link.lost:
            why = f": {link.reason}" if link.reason else ""
            found[f"kafka://{link.address}"] = f"it has not answered for {link.lost_s:.0f} s{why}"
    return found


class BrokerLink:
    """The state of a client's connection to its broker. It logs one line when the broker stops answering and one when
    it answers again, and it has the facts that texts of errors need: the user, the topic, the operation. All methods
    may be called from any thread.
    """

    def __init__(
        self, address: str, what: str, kafka: Mapping[str, Any] | None = None, operation: str = "Read"
    ) -> None:
        """`address`: the broker's, without kafka://. `what`: the client, for log lines, as in "sink of topic 't'".
        `operation`: the operation on the topic, in the terms of Kafka's ACLs: "Read" or "Write". Raises as
        `checked_settings` does.
        """
        self.address = address
        self.reason = ""
        self.lost = False
        # True after a successful opening: a failed opening raises, and only later faults are logged.
        self.opened = False
        self.kafka = checked_settings(kafka)
        self.operation = operation
        self.group = ""  # the consumer group, which is also the transactional id if there is one
        self._what = what
        self._lock = threading.Lock()
        self._since = 0.0
        self._up = -_FRESH_SECONDS  # when the broker last came back
        # The time of the first refusal since the last answer or fault of another kind; None while we are not refused.
        self._refused_at: float | None = None
        self._too_large = ""  # the client's report of an answer that is larger than it accepts
        with _links_lock:
            _links.add(self)

    def on_error(self, error: KafkaError) -> None:
        """Handles a fault that the client itself reports. The client goes on trying."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.down()
        elif _TOO_LARGE in error.str():
            self._too_large = tidy(said(error))
        elif error.code() in _ABSENT | _REFUSED:
            self.reason = tidy(said(error))
            if not _is_refusal(error):
                self._refused_at = None
            elif self._refused_at is None:
                self._refused_at = SYSTEM_CLOCK.monotonic()
                if self.opened:
                    log.warning("%s: kafka://%s refuses a connection: %s", self._what, self.address, self.reason)

    @property
    def refused(self) -> bool:
        """True if the last report or answer refused the login or the certificate of this client."""
        return self._refused_at is not None

    def check(self, proof: Callable[[float], object]) -> None:
        """Raises UserError if a broker that has answered before has refused this client for REFUSED_SECONDS, or if
        its answers are larger than the client accepts.

        `proof`: makes a request on the connections of the refused client itself, within the given seconds, and raises
        KafkaException if the request fails. Another client would not do, as it may still use a connection from before
        the password was changed, and neither would the client's own reports: it repeats an error only once in 30 s.
        """
        at = self._refused_at
        if self.opened and self._too_large:
            raise UserError(
                f"{self._what}: kafka://{self.address} answers with more bytes than the client accepts: {self._too_large}",
                hint=f'kafka={{"{_TOO_LARGE}": …}}: more than the largest batch of records has',
            )
        if not self.opened or at is None or SYSTEM_CLOCK.monotonic() < at + REFUSED_SECONDS:
            return
        try:
            proof(REFUSED_SECONDS)
        except KafkaException:
            raise _refusal(self) from None
        self._refused_at = None

    @property
    def lost_s(self) -> float:
        """The seconds since the broker stopped answering. Only meaningful while `lost` is True."""
        return SYSTEM_CLOCK.monotonic() - self._since

    def down(self) -> None:
        """Handles the report that no broker answers. Reports wait in the client's queue, so a report that comes right
        after an answer is older than the answer, and is ignored.
        """
        with self._lock:
            if self.lost or not self.opened or SYSTEM_CLOCK.monotonic() < self._up + _FRESH_SECONDS:
                return
            self.lost, self._since = True, SYSTEM_CLOCK.monotonic()
        why = f" ({self.reason})" if self.reason else ""
        log.warning("%s: kafka://%s does not answer%s; waiting for it", self._what, self.address, why)

    def up(self, *, proof: bool = True) -> None:
        """Handles an answer of the broker. `proof`: True if the client that does the work got the answer, so that
        this client is no longer refused.
        """
        if proof:
            self._refused_at = None
        if not self.lost:
            return
        with self._lock:
            if not self.lost:
                return
            self.lost = False
            self._up = SYSTEM_CLOCK.monotonic()
        seconds = SYSTEM_CLOCK.monotonic() - self._since
        log.warning("%s: kafka://%s answers again after %.1f s", self._what, self.address, seconds)


def said(error: KafkaError) -> str:
    """Returns the client's text for an error without secrets: the client quotes the parts of
    `sasl.oauthbearer.config` that it cannot read.
    """
    return scrubbed(error.str())


def client_of(
    make: Callable[[dict[str, Any]], Any], link: BrokerLink, kafka: Mapping[str, Any], settings: dict[str, Any]
) -> Any:
    """Makes a client with `make`. Its settings are `settings`, which Sabot chooses, overridden by the user's settings
    `kafka`.

    Raises UserError that names the setting if the client or `checked_settings` refuses one, and TransientError if
    this machine has no resources for another client.
    """
    checked_settings(kafka)
    theirs = kafka.get("error_cb")

    def on_error(error: KafkaError) -> None:
        link.on_error(error)
        if theirs is not None:
            theirs(error)

    defaults = {"bootstrap.servers": link.address, "log_level": 2, "reconnect.backoff.max.ms": 2000}
    conf = {**defaults, **settings, **kafka, "error_cb": on_error}
    if "debug" in kafka and "log_level" not in kafka:
        del conf["log_level"]
    log.debug("client settings: %s", redacted({name: value for name, value in conf.items() if name != "error_cb"}))
    try:
        return make(conf)
    except KafkaException as error:
        if hint := hint_of(error):  # the machine has no resources for one more client
            raise TransientError(f"no Kafka client can be made: {error.args[0].str()}", hint=hint) from error
        raise UserError(
            f"the Kafka client refuses a setting: {error.args[0].str()}",
            hint="settings are those of librdkafka, as in kafka={'security.protocol': 'ssl'}",
        ) from clean_cause(error)
    except (TypeError, ValueError) as error:
        raise UserError(f"the Kafka client refuses a setting: {error}") from clean_cause(error)


def producer_of(
    link: BrokerLink, kafka: Mapping[str, Any], make: Callable[[dict[str, Any]], Any] = Producer, /, **settings: Any
) -> Any:
    """Returns an idempotent producer, made by `make`, with the default settings of Sabot's sinks."""
    ours = {
        "enable.idempotence": True,
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": MESSAGE_BYTES,
        "queue.buffering.max.kbytes": 256 << 10,
        "partitioner": "murmur2_random",  # places keys as the Java clients do
        "delivery.report.only.error": True,
        **settings,
    }
    return client_of(make, link, kafka, ours)


def explain(error: KafkaError, link: BrokerLink, topic: str, operation: str = "") -> SabotError:
    """Returns a SabotError for an error of the client. `operation`: the operation on the topic that failed, if it is
    not the operation of the link.
    """
    code = error.code()
    if code in UNKNOWN:
        return NoSuchTopic(
            f"topic {topic!r} does not exist on kafka://{link.address}",
            hint="create it, or correct the name; Sabot never makes a topic that it reads",
        )
    if code in FORBIDDEN:
        return _forbidden(error, link, topic, operation or link.operation)
    if code == KafkaError.TOPIC_EXCEPTION:
        return UserError(f"{topic!r} is no name for a Kafka topic: {error.str()}")
    if code in _NO_SUCH_SETTINGS:
        return UserError(f"topic {topic!r} on kafka://{link.address}: {error.str()}", hint=_NO_SUCH_SETTINGS[code])
    if _is_refusal(error) or (code in _ABSENT and link.refused):
        return _refusal(link, "" if link.refused else tidy(said(error)))
    if code in _ABSENT:
        found = None if link.opened else look(link.address, link.kafka)
        return _absent(link, tidy(said(error)), found)
    return TransientError(f"topic {topic!r} on kafka://{link.address}: {error.str()}")


def _is_refusal(error: KafkaError) -> bool:
    """Returns True if the error refuses the login or the certificate. A connection that is closed during a handshake
    is no refusal: a broker that stops causes that too.
    """
    if error.code() == KafkaError._SSL:
        return "certificate" in error.str()
    return error.code() in _REFUSED or "SASL authentication error" in error.str()


def _refusal(link: BrokerLink, reason: str = "") -> ServerRefusal:
    """Returns the error for a login or a certificate that is not accepted."""
    reason = reason or link.reason
    if "SASL" in reason:
        user = principal(link.kafka)
        whose = f" of user {user!r}" if user else ""
        return ServerRefusal(
            f"kafka://{link.address} refuses the login{whose}: {reason}", hint=login_hint(reason, link.kafka)
        )
    found = look(link.address, link.kafka) or Finding(reason, "look at ssl.ca.location and the other ssl.*", True)
    return ServerRefusal(f"kafka://{link.address}: {found.reason}", hint=found.hint)


def _absent(link: BrokerLink, reason: str, found: Finding | None) -> SabotError:
    if found is None:
        why = link.reason or reason
        error = BrokerUnavailable(
            f"kafka://{link.address} does not answer: {why}",
            hint=hint_of(why, "is the broker running, and is the address right?"),
        )
        error.unresolved = "Failed to resolve" in why
        return error
    kind = ServerRefusal if found.sure else BrokerUnavailable
    return kind(f"kafka://{link.address} does not answer: {found.reason}", hint=found.hint)


def _forbidden(error: KafkaError, link: BrokerLink, topic: str, operation: str) -> ServerRefusal:
    """Returns the error for a missing right, with the command that grants it as its hint."""
    user, code = principal(link.kafka), error.code()
    rights = [f"--operation {operation} --topic {topic}"]
    if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        what = f"{operation.lower()} topic {topic!r}"
    elif code == KafkaError.GROUP_AUTHORIZATION_FAILED:
        what, rights = f"read group {link.group!r}, of topic {topic!r}", [f"--operation Read --group {link.group}"]
    elif code == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        what = f"use transactional id {link.group!r}, for topic {topic!r}"
        rights = [f"--operation Write --operation Describe --transactional-id {link.group}"]
    elif operation == "Write":  # the right to write to any topic includes the right to be an idempotent producer
        what = f"write to topic {topic!r}, nor be an idempotent producer"
    else:
        what, rights = f"{operation.lower()} topic {topic!r}", [f"--operation {operation} --cluster"]
    who = f"user {user!r}" if user else "this client"
    return ServerRefusal(
        f"kafka://{link.address}: {who} may not {what} ({tidy(said(error))})",
        hint=acl_hint(user, link.address, *rights),
    )


def flush_of(producer: Any, seconds: float, anew: Callable[[], Any]) -> int:
    """Flushes for at most `seconds`, and returns the number of records that are not delivered yet. Raises
    KafkaException for a fatal error.

    `producer.flush` loses a fatal error: it goes on with the callbacks of the records, and the next callback fails
    with a SystemError whose cause may be the fatal error. If it is not, another producer, which `anew` makes and this
    function only polls, raises the same fatal error.
    """
    try:
        left: int = producer.flush(seconds)
        return left
    except SystemError as broken:
        if isinstance(broken.__cause__, KafkaException):
            raise broken.__cause__ from None
        other, deadline = anew(), SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
        while SYSTEM_CLOCK.monotonic() < deadline:
            other.poll(0.1)
        raise KafkaException(KafkaError(KafkaError._FAIL, f"the client lost its own error: {broken}")) from broken


def end_producer(producer: Any, seconds: float) -> None:
    """Serves the reports of a producer that takes no more records, for at most `seconds`. A fatal error of the client
    is logged and not raised, because the producer ends anyway; it may have hidden reports (`flush_of`).
    """
    try:
        producer.flush(seconds)
    except (KafkaException, SystemError) as error:
        log.debug("a producer ends with a fatal error: %s", scrubbed(str(error)))


def fatal_of(producer: Any) -> KafkaError | None:
    """Returns the fatal error of a producer that has had one in a transaction, or None. `produce` raises _FATAL,
    which does not say the reason.
    """
    try:
        producer.begin_transaction()  # has no effect after a fatal error, nor within a transaction
    except KafkaException as error:
        reason: KafkaError = error.args[0]
        return None if reason.code() == KafkaError._STATE else reason
    return None


def fatal_behind(producer: Any, error: KafkaError) -> KafkaError:
    """Returns the reason of a producer's fatal error. `error`: the error that `produce` has just raised.

    If `error` is _FATAL, which names no reason, the producer is polled for the reason, which the client raises only
    once; after ANSWER_SECONDS without an answer, `error` is returned. Only the thread that polls the producer may
    call this.
    """
    deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
    while error.code() == KafkaError._FATAL and SYSTEM_CLOCK.monotonic() < deadline:
        try:
            producer.poll(0.1)
        except KafkaException as told:
            error = told.args[0]
    return error


def topic_fault_behind(producer: Any, error: KafkaError, topic: str) -> KafkaError:
    """Returns the reason why a record was not delivered. `error`: the error of its delivery report.

    If `error` is _DESTROY, which names no reason, the client has no leader for the partition any more and has given up
    its records, as it sometimes does for a topic that was deleted. Then the broker is asked what is wrong with the
    topic; `error` is returned if nothing is, or if the broker does not answer within ANSWER_SECONDS. Not to be called
    in a callback of the client, nor for a client that is closed.
    """
    if error.code() != KafkaError._DESTROY:
        return error
    try:
        found = producer.list_topics(topic, timeout=ANSWER_SECONDS)
    except KafkaException:
        return error
    wrong: KafkaError | None = found.topics[topic].error
    return wrong or error


def metadata_of(client: Any, link: BrokerLink, topic: str, deadline: float) -> Any:
    """Returns the broker's metadata of a topic ("": of all topics). Raises UserError if the broker refuses the login,
    and BrokerUnavailable.

    After a fault it polls the client to learn the reason. Do not call it with a consumer that reads already, because
    the polls would lose records.
    """
    seconds, looked = _FIRST_SECONDS, link.opened
    while True:
        left = max(0.1, deadline - SYSTEM_CLOCK.monotonic())
        try:
            found = client.list_topics(topic or None, timeout=min(seconds, left))
            break
        except KafkaException as error:
            client.poll(0)  # runs `error_cb`, which is given the reason
            reason: Any = error.args[0]
            error.__traceback__ = (
                None  # a frame of it has the client, which would go on for as long as the error is kept
            )
            last = SYSTEM_CLOCK.monotonic() > deadline or reason.code() not in _ABSENT
            if last or link.refused:
                raise explain(reason, link, topic) from clean_cause(error)
            if not looked:
                at_fault, looked = look(link.address, link.kafka), True
                if at_fault is not None and at_fault.sure:
                    raise _absent(link, "", at_fault) from clean_cause(error)
            client.poll(0.1)
        seconds = left
    link.up(proof=not link.opened)  # after the opening, `client` is another client than the one that does the work
    return found


def partitions_of(client: Any, link: BrokerLink, topic: str, timeout: float | None = None) -> list[int]:
    """Returns the numbers of a topic's partitions, as the broker has them. Raises as `metadata_of` does; NoSuchTopic
    if the topic does not exist, and UserError if the user has no right to see it.
    """
    checked_topic(topic, "topic", kafka=True)
    deadline = SYSTEM_CLOCK.monotonic() + (ANSWER_SECONDS if timeout is None else timeout)
    while True:
        found = metadata_of(client, link, topic, deadline).topics[topic]
        if found.error is None:
            return sorted(found.partitions)
        if found.error.code() != KafkaError.LEADER_NOT_AVAILABLE or SYSTEM_CLOCK.monotonic() > deadline:
            raise explain(found.error, link, topic)
        client.poll(0.1)


def committed_of(consumer: Any, places: list[Any], timeout: float) -> list[Any]:
    """Returns the group's committed offsets of these partitions, as TopicPartitions. Raises KafkaException.

    If the group is forbidden, the call itself only times out, and the next poll returns the reason; so the call is
    made with short time-outs and polls between them. It must not be used with a consumer that reads already: records
    would be lost.
    """
    deadline = SYSTEM_CLOCK.monotonic() + timeout
    while True:
        left = max(0.1, deadline - SYSTEM_CLOCK.monotonic())
        try:
            found: list[Any] = consumer.committed(places, min(_FIRST_SECONDS, left))
            return found
        except KafkaException as error:
            reason: Any = error.args[0]
            if reason.code() != KafkaError._TIMED_OUT:
                raise
            event = consumer.poll(0)
            told = None if event is None else event.error()
            if told is not None and told.code() in FORBIDDEN:
                raise KafkaException(told) from None
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise


def ensure_topic(
    link: BrokerLink,
    topic: str,
    kafka: Mapping[str, Any],
    partitions: int = -1,
    config: Mapping[str, str] | None = None,
    *,
    make: bool = True,
) -> int:
    """Makes the topic if it is missing, with the broker's own defaults if `partitions` is -1. Returns its number of
    partitions.

    With `make=False` a missing topic is not made. The broker says only whether it would make it, and 0 is returned.
    """
    with admin_of(link, kafka) as admin:
        try:
            return len(partitions_of(admin, link, topic))
        except NoSuchTopic:
            log.debug("topic %r is missing, and %s", topic, "is made" if make else "will be made by its first record")
        request = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=dict(config or {}))
        seconds = {"operation_timeout": ANSWER_SECONDS, "request_timeout": ANSWER_SECONDS}
        outcome = admin.create_topics([request], validate_only=not make, **seconds)
        try:
            outcome[topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raised = explain(error.args[0], link, topic, "Create")
                unknown = [name for name in config or () if "_" in name]  # no name of Kafka's has one
                if unknown and error.args[0].code() == KafkaError.INVALID_CONFIG:
                    raised.hint = ", ".join(f"{name!r} is written {name.replace('_', '.')!r}" for name in unknown)
                raise raised from clean_cause(error)
            make = True  # somebody else has made it just now
        return wait_for_partitions(admin, link, topic, 1) if make else 0


def wait_for_partitions(client: Any, link: BrokerLink, topic: str, count: int) -> int:
    """Waits until the broker's metadata lists `count` partitions, which takes a moment after they are made, and
    returns their number. Raises TransientError if they are not there after ANSWER_SECONDS, and as `partitions_of` does.
    """
    deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
    while True:
        try:
            if (listed := len(partitions_of(client, link, topic))) >= count:
                return listed
        except NoSuchTopic:
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise
        if SYSTEM_CLOCK.monotonic() > deadline:
            raise TransientError(f"topic {topic!r} on kafka://{link.address} does not show {count} partitions yet")
        client.poll(0.05)


def make_admin(link: BrokerLink, kafka: Mapping[str, Any]) -> Any:
    """Returns an admin client with the connection settings among `kafka`."""
    return client_of(AdminClient, link, connection_of(kafka), {})


@contextmanager
def admin_of(link: BrokerLink, kafka: Mapping[str, Any]) -> Iterator[Any]:
    """Yields an admin client with the connection settings among `kafka`, which ends with the block.

    The client has no `close`: its threads and sockets end with the last reference to it. An error keeps the frames that
    it has passed, with their variables, for as long as somebody keeps the error. So the frames get a proxy.
    """
    client = make_admin(link, kafka)
    try:
        yield proxy(client)
    finally:
        del client


def topic_id_of(admin: Any, link: BrokerLink, topic: str) -> str:
    """Returns the broker's id of the topic, or "" if the broker is older than Kafka 2.8 or does not tell the id. A
    topic that was deleted and made again under the same name has another id. Raises as `explain` says.
    """
    try:
        asked = admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_SECONDS)
        found = str(asked[topic].result().topic_id)
    except KafkaException as error:
        if error.args[0].code() in _NO_TOPIC_IDS:
            return ""
        raise explain(error.args[0], link, topic) from clean_cause(error)
    return "" if found == _NO_TOPIC_ID else found


def connection_of(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings for the connection to the broker, such as security and addresses, which all clients of an
    app share.
    """
    connection = (
        *("security.", "sasl.", "enable.sasl.", "oauth", "ssl", "enable.ssl.", "https."),
        *("client.", "socket.", "broker.", "metadata.", "api.", "connections.", "reconnect.", "plugin."),
    )
    return {name: value for name, value in kafka.items() if name.startswith(connection) or name == "debug"}


def link_of(broker: str, what: str, kafka: Mapping[str, Any] | None = None, operation: str = "Read") -> BrokerLink:
    """Returns the link to a kafka:// address, for a client with these settings."""
    scheme, address = parse_broker(broker)
    if scheme != "kafka":
        raise UserError(f"{broker!r} is no Kafka address", hint="write kafka://host:port")
    return BrokerLink(address, what, kafka, operation)
