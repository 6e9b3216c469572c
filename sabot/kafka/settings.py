"""The settings of the Kafka client that users give. Secrets among them are registered, and some settings are reserved
for Sabot.

Exactly once needs positions that only a checkpoint commits, records of committed transactions only, and producers
that write each record once and report refused ones. The client would silently accept a user's setting that
contradicts this, so Sabot refuses such a setting. It accepts a reserved setting whose value is the one that Sabot
sets. Users may freely set limits, times and the connection.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sabot.base.redaction import has_password, keep_settings, redacted_url, setting_name
from sabot.errors import UserError, short_repr

_TRUE, _FALSE = frozenset(["true", "t", "1"]), frozenset(["false", "f", "0"])  # as librdkafka reads them


class _Ours(NamedTuple):
    """A setting that is reserved for Sabot. `same`: the values that mean the same as Sabot's own, in lower case.
    `hint`: another way for the user to get the effect that the setting may have been meant for.
    """

    why: str
    same: frozenset[str] = frozenset()
    hint: str = "leave it out"


_COMMITS = (
    "positions are committed with checkpoints: a record that the client commits by itself would be lost in a crash"
)
_WRITES_ONCE = "a record that is sent again would be written twice, or one that is acknowledged be lost"
_REPORTS = "Sabot learns from it what the broker has refused"
_ASSIGNS = "Sabot assigns partitions itself, and one worker runs an app"

_BROKER = _Ours("the address of the broker sets it", hint='leave it out; App(broker="kafka://one:9092,two:9092")')

_OURS = {
    "bootstrap.servers": _BROKER,
    "metadata.broker.list": _BROKER,
    "enable.auto.commit": _Ours(_COMMITS, _FALSE),
    "auto.commit.enable": _Ours(_COMMITS, _FALSE),
    "enable.auto.offset.store": _Ours(_COMMITS, _FALSE),
    "auto.offset.reset": _Ours(
        "a position that the topic no longer has is an error here, never a silent jump",
        frozenset(["error"]),
        'leave it out; App(start="latest"), or start= of an agent, says where to begin without a checkpoint',
    ),
    "isolation.level": _Ours(
        "records of transactions that were aborted, or still may be, would be read", frozenset(["read_committed"])
    ),
    "enable.partition.eof": _Ours("Sabot learns from it that a partition was read to its end", _TRUE),
    "allow.auto.create.topics": _Ours(
        "a source whose name is wrong would make the topic, and wait for ever",
        _FALSE,
        "leave it out, and make the topic: `sabot topics create`, or app.topic(…)",
    ),
    "group.id": _Ours(
        "each source has a group of its own, and so has the token of each exactly-once sink",
        hint='leave it out; a group of your choice: KafkaSource(topic, broker, "group")',
    ),
    "group.instance.id": _Ours(_ASSIGNS),
    "group.protocol": _Ours(_ASSIGNS, frozenset(["classic"])),
    "partition.assignment.strategy": _Ours(_ASSIGNS),
    "enable.idempotence": _Ours(_WRITES_ONCE, _TRUE),
    "acks": _Ours(_WRITES_ONCE, frozenset(["all", "-1"])),
    "request.required.acks": _Ours(_WRITES_ONCE, frozenset(["all", "-1"])),
    "transactional.id": _Ours(
        "each exactly-once sink has one of its own, made of the names of app and sink",
        hint='leave it out; exactly once is .to(…, delivery="exactly_once")',
    ),
    "delivery.report.only.error": _Ours(_REPORTS),
    **{name: _Ours(_REPORTS) for name in ("on_delivery", "dr_cb", "dr_msg_cb")},
    **{name: _Ours("Sabot learns from it which commits were refused") for name in ("on_commit", "offset_commit_cb")},
    "rebalance_cb": _Ours(_ASSIGNS),
}

_PLAIN = {"acks", "retries", "debug", "partitioner", "log_level", "logger", "enabled_events", "opaque"}
"""The names of the client's settings that have no dot, beside those of callbacks."""

_CA = "ssl.ca.location, a file with certificates in PEM"
_FORMAT = "leave it out: format= says how records are read and written"
_JAVA = {
    "sasl.jaas.config": "sasl.username and sasl.password",
    **dict.fromkeys(["sasl.login.class", "sasl.login.callback.handler.class"], "leave it out"),
    "sasl.client.callback.handler.class": 'sasl.oauthbearer.method="oidc" asks a server for tokens',
    **dict.fromkeys(["ssl.truststore.location", "ssl.truststore.password", "ssl.truststore.type"], _CA),
    "ssl.truststore.certificates": "ssl.ca.pem",
    "ssl.keystore.type": "ssl.keystore.location has PKCS#12; for PEM, ssl.certificate.location and ssl.key.location",
    "ssl.keystore.certificate.chain": "ssl.certificate.pem",
    "ssl.keystore.key": "ssl.key.pem",
    **dict.fromkeys(["key.serializer", "value.serializer", "key.deserializer", "value.deserializer"], _FORMAT),
    "max.request.size": "message.max.bytes",
    "buffer.memory": "queue.buffering.max.kbytes",
    "fetch.max.wait.ms": "fetch.wait.max.ms",
    "max.poll.records": "leave it out",
    "default.api.timeout.ms": "leave it out",
}
"""Settings of Kafka's Java client that librdkafka lacks, and what to write instead."""


def checked_settings(kafka: object, what: str = "kafka") -> dict[str, Any]:
    """Returns the settings as a new dict, empty for None, and registers the secrets among them. Raises UserError for
    a reserved setting, for one of the Java client alone, for one whose secret the client would print in its messages and
    log lines, and for a value that is no dict. `what`: the owner of the settings, for the message.
    """
    if kafka is None:
        return {}
    if not isinstance(kafka, Mapping):
        raise UserError(f"{what} is a {type(kafka).__name__}", hint='client settings: {"security.protocol": "ssl"}')
    keep_settings(kafka)
    for name, value in kafka.items():
        _check(what, name, value)
    return dict(kafka)


def whole_number(kafka: Mapping[str, Any], name: str, default: int) -> int:
    """Returns a setting that is a number, or `default` without it. Raises UserError for a value that is none."""
    value = kafka.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"kafka: {name}={short_repr(value)} is no whole number",
            hint="the client has no units: bytes and milliseconds, as in 10485760",
        ) from error


def _check(what: str, name: str, value: object) -> None:
    if setting_name(name) != name:
        raise UserError(
            f"{what}: {setting_name(name)!r} is no name of a setting", hint='write {"sasl.password": "…"}: name, value'
        )
    if "." not in name and name not in _PLAIN and name not in _OURS and not name.endswith("_cb"):
        raise UserError(
            f"{what}: {name}= is neither an argument nor a setting of the client",
            hint=f"settings of the client have dots in their names, as {name.replace('_', '.')!r} may be one"
            if "_" in name
            else "settings of the client have dots in their names: {'linger.ms': 50}",
        )
    if isinstance(value, str) and has_password(value):
        raise UserError(
            f"{what}: {name} is {redacted_url(value)!r} with a password in it, which the client would log",
            hint="user and password have settings of their own: sasl.oauthbearer.client.id and .secret, sasl.username and sasl.password",
        )
    if name == "default.topic.config" and isinstance(value, Mapping):  # of the client's first versions
        for inner, each in value.items():
            _check(f"{what}: {name}", inner, each)
    if name in _JAVA:
        raise UserError(f"{what}: {name} is a setting of the Java client, which this one lacks", hint=_JAVA[name])
    ours = _OURS.get(name)
    if ours is not None and str(value).strip().lower() not in ours.same:
        raise UserError(f"{what}: {name}={short_repr(value)} is not for users to set: {ours.why}", hint=ours.hint)
