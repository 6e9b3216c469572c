"""The options of tables on topics: the places where reading begins and ends, the pace of partitions, and the settings of the
Kafka client.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from sabot.base.config import parse_ms
from sabot.base.redaction import keep_settings
from sabot.sql.scope import at
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.table_options import Options

_log = logging.getLogger(__name__)

FOREVER = "36500d"
"""A century: the time after which nobody waits for what an option of Flink turns off by 0."""

CONSUMERS = frozenset(["group.id", "auto.offset.reset"])
"""Settings of the Kafka client that a source takes by itself, and that a sink does not have."""

COMMITTED = "committed"
_TIMESTAMP = "timestamp"
_OFFSETS = "specific-offsets"
_STARTS = {
    "earliest-offset": "earliest",
    "latest-offset": "latest",
    "group-offsets": COMMITTED,
    "earliest": "earliest",
    "latest": "latest",
    "committed": COMMITTED,
    _TIMESTAMP: _TIMESTAMP,
    _OFFSETS: _OFFSETS,
}
_ENDS = {
    "latest-offset": "now",
    "unbounded": None,
    _TIMESTAMP: _TIMESTAMP,
    _OFFSETS: _OFFSETS,
    "group-offsets": COMMITTED,
}
_OFFSET = re.compile(r"partition:(\d+),offset:(\d+)")

_MODE = "scan.startup.mode"
_RESET = "auto.offset.reset"
_IDLE = "scan.watermark.idle-timeout"
_DRIFT = "scan.watermark.alignment.max-drift"
_GROUP = "scan.watermark.alignment.group"

Place = str | int | dict[int, int] | None


def topic_of(options: Options) -> str:
    """Returns the topic of a table. Raises SqlFault for several topics."""
    hint = "a table for each topic, and a view: SELECT * FROM a UNION ALL SELECT * FROM b"
    span, pattern = options.value_span("topic"), options.key_span("topic-pattern")
    if options.take("topic-pattern") is not None:
        raise SqlFault(pattern, "a table reads one topic, and no pattern of topics", hint)
    topic = options.need("topic")
    if ";" in topic:
        raise SqlFault(span, f"a table reads one topic, and '{topic}' names several", hint)
    return topic


def check_partitioner(options: Options) -> None:
    """Raises SqlFault unless the rows are spread over the partitions as Kafka's own partitioner does it."""
    span = options.value_span("sink.partitioner")
    if (name := options.take("sink.partitioner")) not in (None, "default"):
        message = f"'sink.partitioner' = '{name}': Kafka's partitioner places the rows, by their keys if they have some"
        raise SqlFault(span, message, "'default', with 'key.fields' for the rows that belong into one partition")


def start_of(options: Options) -> Place:
    """Returns the place in a topic where reading begins, as `App.stream` takes it."""
    return _place(options, "scan.startup", _STARTS)


def end_of(options: Options) -> Place:
    """Returns the place in a topic where reading ends, as `App.stream` takes it."""
    span = options.value_span("scan.bounded.mode")
    found = _place(options, "scan.bounded", _ENDS)
    if found == COMMITTED:
        message = "'scan.bounded.mode' = 'group-offsets': reading cannot end at the offsets of a group"
        hint = "'latest-offset', or 'specific-offsets' with these offsets in 'scan.bounded.specific-offsets'"
        raise SqlFault(span, message, hint)
    return found


def _place(options: Options, which: str, choices: Mapping[str, str | None]) -> Place:
    mode = f"{which}.mode"
    span = options.value_span(mode)
    found: str | None = options.choose(mode, choices)
    if found == _OFFSETS:
        return _offsets(options, span, mode, f"{which}.specific-offsets")
    if found != _TIMESTAMP:
        return found
    name = f"{which}.timestamp-millis"
    ms = options.number(name)
    if ms is None or ms != int(ms) or ms < 0:
        message = f"'{mode}' = 'timestamp' needs '{name}', ms since 1970"
        raise SqlFault(span, message, f"'{name}' = '1767225600000'")
    return int(ms)


def _offsets(options: Options, span: Span, mode: str, name: str) -> dict[int, int]:
    """Returns the offsets of 'partition:0,offset:42;partition:1,offset:300'. `span`: the place of the mode."""
    text = options.take(name)
    parts = [_OFFSET.fullmatch(each.strip()) for each in (text or "").rstrip("; ").split(";")]
    pairs = [(int(each[1]), int(each[2])) for each in parts if each is not None]
    if len(pairs) < len(parts) or len(dict(pairs)) < len(pairs):
        message = f"'{mode}' = 'specific-offsets' needs '{name}', an offset of each partition"
        raise SqlFault(span, message, f"'{name}' = 'partition:0,offset:42;partition:1,offset:300'")
    return dict(pairs)


def refuse_start(options: Options, why: str) -> None:
    """Raises SqlFault for a table whose changes are read from the first record, if the options say another place."""
    span = options.value_span(_MODE)
    if start_of(options) not in (None, "earliest"):
        raise SqlFault(span, f"table {options.table} is read from its first record: {why}", "'earliest-offset'")


def pace_of(options: Options, *, timed: bool) -> dict[str, str]:
    """Returns the options of `App.stream` about partitions that are silent, or ahead of the others in event time.

    `timed`: True if the table has an event time.
    """
    given = [span for name in (_IDLE, _DRIFT) if (span := options.key_span(name)) != options.span]
    found = {"idle": options.duration(_IDLE), "max_drift": options.duration(_DRIFT)}
    span = options.key_span(_GROUP)
    if options.take(_GROUP) is not None:
        if found["max_drift"] is None:
            raise SqlFault(span, f"'{_GROUP}' needs the option '{_DRIFT}'", f"'{_DRIFT}' = '1 min'")
        _log.warning(
            "table %s: '%s' is about the partitions of this table, and not about other tables of the group: those that a join by "
            "event time reads wait for each other without it",
            options.table,
            _DRIFT,
        )
    pace = {name: value for name, value in found.items() if value is not None}
    if pace and not timed:
        message = f"table {options.table} has no event time, which this option is about"
        raise SqlFault(given[0], message, "WATERMARK FOR ts AS ts - INTERVAL '5' SECOND")
    if "idle" in pace:
        pace["idle"] = endless(pace["idle"])
    return pace


def refuse_drift(options: Options) -> None:
    """Raises SqlFault for a table of changes whose partitions should wait for each other."""
    message = f"the partitions of table {options.table} cannot wait for each other, since its rows are updated"
    if (span := options.key_span(_DRIFT)) != options.span:
        raise SqlFault(span, message, "leave it out: a join by event time reads its tables at most 5 minutes apart")


def endless(duration: str) -> str:
    """Returns a duration of Flink's of which 0 means that the wait has no end."""
    return duration if parse_ms(duration) else FOREVER


_LOGIN = re.compile(r"\s*([\w.$]+)\s+(?:required|requisite|sufficient|optional)\b(.*?);?\s*", re.DOTALL)
_ENTRY = re.compile(r"""\s*([\w.]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|([^\s;"']+))""", re.DOTALL)
_MECHANISMS = {"PlainLoginModule": ("PLAIN",), "ScramLoginModule": ("SCRAM-SHA-256", "SCRAM-SHA-512")}
_OTHER_LOGINS = {
    "OAuthBearerLoginModule": "'properties.sasl.oauthbearer.method' = 'oidc', with 'properties.sasl.oauthbearer.client.id', "
    "'….client.secret' and '….token.endpoint.url'",
    "Krb5LoginModule": "'properties.sasl.kerberos.principal', '….keytab' and '….service.name'",
}


def _login(options: Options, settings: dict[str, Any], span: Span) -> None:
    """Replaces 'sasl.jaas.config', a setting of the Java client, by the user and the password in it. `span`: its place.

    org.apache.kafka.common.security.plain.PlainLoginModule required username="ada" password="…";
    """
    text = settings.pop("sasl.jaas.config")
    keep_settings({"sasl.jaas.config": text})
    if '=\\"' in text:  # as it stands in texts for Java
        text = text.replace('\\"', '"')
    found = _LOGIN.fullmatch(text)
    module = found[1].rsplit(".", 1)[-1] if found else ""
    names = "'properties.sasl.username' and 'properties.sasl.password'"
    if module not in _MECHANISMS:
        what = f"the login by {module}" if module else "'properties.sasl.jaas.config' in this form"
        raise SqlFault(span, f"{what} is not there", _OTHER_LOGINS.get(module, f"{names} for PLAIN and SCRAM"))
    given = {each[1]: next(filter(None, each.groups()[1:]), "") for each in _ENTRY.finditer(found[2] if found else "")}
    user, password = (re.sub(r"\\(.)", r"\1", given.get(each, "")) for each in ("username", "password"))
    if not user or not password:
        raise SqlFault(span, f"'properties.sasl.jaas.config' of {module} has no username and password", names)
    mechanism = str(settings.get("sasl.mechanism") or settings.get("sasl.mechanisms") or "").upper()
    if mechanism not in _MECHANISMS[module]:
        said = f"'properties.sasl.mechanism' = '{mechanism}'" if mechanism else "no 'properties.sasl.mechanism'"
        hint = " or ".join(f"'properties.sasl.mechanism' = '{each}'" for each in _MECHANISMS[module])
        raise SqlFault(span, f"table {options.table} has a login by {module}, and {said}", hint)
    if not str(settings.get("security.protocol", "")).upper().startswith("SASL_"):
        message = f"table {options.table} has a login that its connection does not use"
        raise SqlFault(span, message, "'properties.security.protocol' = 'SASL_SSL'")
    settings |= {"sasl.username": user, "sasl.password": password}


def client_of(options: Options) -> tuple[str | None, dict[str, Any]]:
    """Returns the servers of a table, or None for those of the app, and the settings of the Kafka client. Raises SqlFault
    for settings that the engine needs itself.
    """
    from sabot.kafka.settings import checked_settings

    span = options.value_span("properties.sasl.jaas.config")
    settings: dict[str, Any] = options.prefixed("properties.")
    if "sasl.jaas.config" in settings:
        _login(options, settings, span)
    if str(settings.get("ssl.truststore.type", "")).upper() == "PEM":
        del settings["ssl.truststore.type"]  # the only form of certificates that the client has
    servers = settings.pop("bootstrap.servers", None)
    with at(options.span):
        own = {name: value for name, value in settings.items() if name not in CONSUMERS}
        checked_settings(own, f"table {options.table}")
    return servers, settings


def reset_of(options: Options, settings: dict[str, Any], start: Place, span: Span) -> Place:
    """Returns the place where reading begins. 'properties.auto.offset.reset', whose place is `span`, is taken out of the
    settings.

    As in Flink, the option is about partitions for which the group has no offset, so it counts with 'group-offsets' alone;
    and a table with a group and without a mode begins at the offsets of its group.
    """
    place = COMMITTED if start is None and settings.get("group.id") else start
    reset = settings.pop(_RESET, None)
    if reset is None:
        return place
    if place != COMMITTED:
        _log.warning(
            "table %s: the option 'properties.%s' has no effect, since '%s' comes first", options.table, _RESET, _MODE
        )
    elif reset.lower() not in ("earliest", "smallest", "beginning"):
        message = f"'properties.{_RESET}' = '{reset}': a partition without an offset of the group is read from its first record"
        raise SqlFault(span, message, f"leave it out, or '{_MODE}' = 'latest-offset' for all partitions")
    return place
