"""What every use of the Kafka client shares: its settings, its errors in our words, and topics made if
missing.

Loads confluent_kafka; the rest of the room imports this module only when an address says kafka://.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sabot.clock import SYSTEM_CLOCK
from sabot.config import parse_broker, redacted
from sabot.errors import BrokerUnavailable, SabotError, TransientError, UserError

__all__ = [
    "ANSWER_SECONDS",
    "FORBIDDEN",
    "MESSAGE_BYTES",
    "UNKNOWN",
    "Link",
    "admin_of",
    "client_of",
    "connection_of",
    "ensure_topic",
    "explain",
    "link_of",
    "partitions_of",
    "producer_of",
    "wait_for_partitions",
]

log = logging.getLogger("sabot.kafka")

ANSWER_SECONDS = 8.0  # how long an opening waits for the broker; callers promise 10 s in all
MESSAGE_BYTES = 16 << 20  # the largest message that a producer of ours takes, before the broker has its say

_ABSENT = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
}
FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.SASL_AUTHENTICATION_FAILED,
}
UNKNOWN = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}

_FRESH_SECONDS = 2.0  # how long an answer is believed against the client


class Link:
    """Whether the broker answers, in one line on loss and one on return. Called from any thread."""

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        self.reason = ""
        self.lost = False
        self.opened = False  # an opening that fails raises; only what comes later is logged
        self._what = what
        self._lock = threading.Lock()
        self._since = 0.0
        self._up = -_FRESH_SECONDS  # when it last came back

    def on_error(self, error: KafkaError) -> None:
        """The client's own report of a fault; it goes on trying by itself."""
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.down()
        elif error.code() in _ABSENT:
            self.reason = error.str()

    def down(self) -> None:
        """Nobody answers. The client's reports wait in a queue: right after an answer they tell of before."""
        with self._lock:
            if self.lost or not self.opened or SYSTEM_CLOCK.monotonic() < self._up + _FRESH_SECONDS:
                return
            self.lost, self._since = True, SYSTEM_CLOCK.monotonic()
        why = f" ({self.reason})" if self.reason else ""
        log.warning("%s: kafka://%s does not answer%s; waiting for it", self._what, self.address, why)

    def up(self) -> None:
        """Somebody answered."""
        if not self.lost:
            return
        with self._lock:
            if not self.lost:
                return
            self.lost = False
            self._up = SYSTEM_CLOCK.monotonic()
        seconds = SYSTEM_CLOCK.monotonic() - self._since
        log.warning("%s: kafka://%s answers again after %.1f s", self._what, self.address, seconds)


def client_of(
    make: Callable[[dict[str, Any]], Any], link: Link, kafka: Mapping[str, Any], settings: dict[str, Any]
) -> Any:
    """A client made by `make` with our `settings`, over them the user's. UserError names a setting it
    refuses.
    """
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
        raise UserError(
            f"the Kafka client refuses a setting: {error.args[0].str()}",
            hint="settings are those of librdkafka, as in kafka={'security.protocol': 'ssl'}",
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"the Kafka client refuses a setting: {error}") from error


def producer_of(link: Link, kafka: Mapping[str, Any], **settings: Any) -> Any:
    """An idempotent producer with the defaults of our sinks."""
    ours = {
        "enable.idempotence": True,
        "linger.ms": 5,
        "compression.type": "lz4",
        "message.max.bytes": MESSAGE_BYTES,
        "queue.buffering.max.kbytes": 256 << 10,
        "partitioner": "murmur2_random",  # where the Java clients put a key
        "delivery.report.only.error": True,
        **settings,
    }
    return client_of(Producer, link, kafka, ours)


def explain(error: KafkaError, link: Link, topic: str) -> SabotError:
    """The client's error as one of ours."""
    code = error.code()
    if code in UNKNOWN:
        return UserError(
            f"topic {topic!r} does not exist on kafka://{link.address}",
            hint="create it, or correct the name; topics of sources are never made by themselves",
        )
    if code in FORBIDDEN:
        return UserError(f"topic {topic!r} on kafka://{link.address}: {error.str()}")
    if code == KafkaError.TOPIC_EXCEPTION:
        return UserError(f"{topic!r} is no name for a Kafka topic: {error.str()}")
    if code in _ABSENT:
        return BrokerUnavailable(
            f"kafka://{link.address} does not answer: {link.reason or error.str()}",
            hint="is the broker running, and is the address right?",
        )
    return TransientError(f"topic {topic!r} on kafka://{link.address}: {error.str()}")


def partitions_of(client: Any, link: Link, topic: str, timeout: float | None = None) -> list[int]:
    """The partitions of a topic, asked of the broker. UserError when it does not exist, BrokerUnavailable.

    Polls the client when there is a fault, to learn the reason: not for a consumer that is reading already.
    """
    deadline = SYSTEM_CLOCK.monotonic() + (ANSWER_SECONDS if timeout is None else timeout)
    while True:
        try:
            found = client.list_topics(topic, timeout=max(0.1, deadline - SYSTEM_CLOCK.monotonic())).topics[topic]
        except KafkaException as error:
            client.poll(0)  # serves the callback that knows the reason
            raise explain(error.args[0], link, topic) from error
        link.up()
        if found.error is None:
            return sorted(found.partitions)
        if found.error.code() != KafkaError.LEADER_NOT_AVAILABLE or SYSTEM_CLOCK.monotonic() > deadline:
            raise explain(found.error, link, topic)
        client.poll(0.1)


def ensure_topic(
    link: Link, topic: str, kafka: Mapping[str, Any], partitions: int = -1, config: Mapping[str, str] | None = None
) -> None:
    """Makes the topic if it is missing, with the broker's own defaults where `partitions` is -1."""
    admin = admin_of(link, kafka)
    try:
        partitions_of(admin, link, topic)
        return
    except UserError as missing:
        if "does not exist" not in missing.message:
            raise
    request = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=dict(config or {}))
    outcome = admin.create_topics([request], operation_timeout=ANSWER_SECONDS, request_timeout=ANSWER_SECONDS)
    try:
        outcome[topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise explain(error.args[0], link, topic) from error
    wait_for_partitions(admin, link, topic, 1)


def wait_for_partitions(client: Any, link: Link, topic: str, count: int) -> None:
    """Returns when the broker itself lists so many partitions; creation is known to its metadata a little
    later.
    """
    deadline = SYSTEM_CLOCK.monotonic() + ANSWER_SECONDS
    while True:
        try:
            if len(partitions_of(client, link, topic)) >= count:
                return
        except UserError:
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise
        if SYSTEM_CLOCK.monotonic() > deadline:
            raise TransientError(f"topic {topic!r} on kafka://{link.address} does not show {count} partitions yet")
        client.poll(0.05)


def admin_of(link: Link, kafka: Mapping[str, Any]) -> Any:
    """An admin client with the connection settings among `kafka`."""
    return client_of(AdminClient, link, connection_of(kafka), {})


def connection_of(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that say how the broker is reached: what every client of a job shares."""
    connection = ("security.", "sasl.", "ssl", "oauth", "client.", "socket.", "broker.", "metadata.", "enable.ssl")
    return {name: value for name, value in kafka.items() if name.startswith(connection) or name == "debug"}


def link_of(broker: str, what: str) -> Link:
    """The link to a kafka:// address."""
    scheme, address = parse_broker(broker)
    if scheme != "kafka":
        raise UserError(f"{broker!r} is no Kafka address", hint="write kafka://host:port")
    return Link(address, what)
