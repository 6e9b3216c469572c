"""Parsers and checks of values that users write: durations, sizes, rates, names, addresses and references to secrets."""

import os
import re
import unicodedata
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple

from sabot.base.backoff import Backoff
from sabot.base.checks import is_number, is_whole, shown
from sabot.base.redaction import has_password, keep_secret, keep_url, redacted_url
from sabot.errors import UserError, short_repr

NAME_BYTES = 255
TOPIC_BYTES = 249  # Kafka's bound

RECORD_BYTES = 16 << 20
"""The largest record, in bytes, that a source takes by default; a larger record becomes a dead letter."""

FIELDS = 10_000
"""The most columns, nested fields included, that are inferred from data; a given schema may have more."""

Duration = str | int | float | timedelta

if TYPE_CHECKING:

    class Dollars:
        """The type of a field that takes each number that `amount` reads, and has it as a Decimal."""

        def __get__(self, config: object, owner: object = None) -> Decimal | None: ...
        def __set__(self, config: object, value: Decimal | float | str | None) -> None: ...

else:
    Dollars = Decimal | None  # what journals have

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
DURATIONS = 'write "5s", "100ms" or a number of seconds; the units are ' + ", ".join(_SECONDS)
_BYTES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_MOST_BYTES = 1 << 62
_WHO_CALLS = 'kafka://host:port, kafka={"security.protocol": "SASL_SSL", "sasl.mechanism": …, "sasl.username": …, "sasl.password": …}'


def parse_seconds(value: Duration, *, name: str = "duration", zero: bool = True, hint: str = DURATIONS) -> float:
    """Returns the seconds in `"5s"`, `"100ms"`, a timedelta, or a bare number of seconds.

    `name`: the name of the parameter, for messages. `zero`: False refuses 0. `hint`: the hint of the error for a value
    that is no duration. Raises UserError for such a value, and for a negative or infinite duration.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool):
        raise UserError(f"{name}: {value!r} is no duration", hint=hint)
    elif isinstance(value, int | float | Real):  # numpy's numbers are Real
        try:
            seconds = float(value)
        except OverflowError:
            seconds = float("inf")
    else:
        known = isinstance(value, str)
        match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(us|ms|s|min|m|h|d|w)?\s*", value) if known else None
        if match is None:
            raise UserError(f"{name}: {value!r} is no duration", hint=hint)
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds < 0:
        raise UserError(f"{name}: {value!r} is a negative duration", hint=f"{'0' if zero else '1us'} is the least")
    if not seconds < float("inf"):
        raise UserError(f"{name}: {value!r} is no finite duration")
    if not (seconds or zero):
        raise UserError(f"{name} is zero", hint='write "1s"; 0.1 works too')
    return seconds


def parse_ms(value: Duration, *, name: str = "duration") -> int:
    """Returns the result of `parse_seconds` in milliseconds, rounded. Raises the same errors."""
    ms = parse_seconds(value, name=name) * 1000
    if ms == float("inf"):
        raise UserError(f"{name}: {value!r} is not finite in milliseconds")
    return round(ms)


def amount(name: str, value: object) -> Decimal | None:
    """Returns a number as a Decimal with the digits that the user wrote, or None for None. Raises UserError unless
    the number is finite and not negative.
    """
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or number < 0:
        raise UserError(f"{name}={short_repr(value)}: a number is wanted, finite and not negative")
    return number


def check_numbers(
    config: object, *names: str, zero: bool = False, whole: bool = False, none: bool = False, what: str = ""
) -> None:
    """Checks the attributes `names` of a config object: each must be a finite number above 0.

    `zero`: allows 0. `whole`: demands ints. `none`: allows None. `what`: the owner of the attributes, for messages;
    by default the name of the class. Raises UserError.
    """
    for name in names:
        value = getattr(config, name)
        if none and value is None:
            continue
        fits = is_whole(value, 0) if whole else is_number(value)
        if not fits or not 0 <= value < _MOST_BYTES or not (value or zero):
            taken = (
                f"a {'whole ' if whole else ''}number {'from 0 up' if zero else 'above 0'}{', or None' if none else ''}"
            )
            raise UserError(f"{what or type(config).__name__}: {name}={short_repr(value)}", hint=taken)


def checked_durations(config: object, *names: str, zero: bool = False, none: bool = False, what: str = "") -> None:
    """Replaces the attributes `names`, durations as users write them ("5s", a timedelta, a number of seconds), by
    their seconds.

    Raises UserError for a text that is no duration, and otherwise like `check_numbers`, which has the same
    parameters.
    """
    for name in names:
        if isinstance(value := getattr(config, name), str | timedelta):
            seconds = parse_seconds(value, name=f"{what or type(config).__name__}: {name}")
            object.__setattr__(config, name, seconds)
    check_numbers(config, *names, zero=zero, none=none, what=what)


def parse_bytes(value: str | int, *, name: str = "size") -> int:
    """Returns the number of bytes in `"256MB"`, `"64KiB"`, or a bare number of bytes. Raises UserError for a text
    that is no size, and for sizes below 1 or from 4 EiB up.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([kmg]i?b|b)?\s*", str(value), re.IGNORECASE)
        if match is None:
            raise UserError(f"{name}: {value!r} is no size", hint='write "256MB", "64KiB" or a number of bytes')
        size = int(min(float(match[1]), _MOST_BYTES) * _BYTES[(match[2] or "b").lower()])
    if size >= _MOST_BYTES:
        raise UserError(f"{name}: {str(value)[:40]!r} is more than any machine has")
    if size <= 0:
        raise UserError(f"{name}: {value!r} is not positive")
    return size


def parse_rate(value: str | float, *, name: str = "rate") -> float:
    """Returns the number per second in `"50/s"`, `"300/m"`, `"1000/h"`, or a bare number per second. Raises UserError
    unless it is positive and finite.
    """
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*/\s*([smhd])\s*", value) if isinstance(value, str) else None
    if match is not None:
        rate = float(match[1]) / _SECONDS[match[2]]
    elif is_number(value):
        rate = float(value)
    else:
        raise UserError(f"{name}: {value!r} is no rate", hint='write "50/s", "300/m" or a number a second')
    if not 0 < rate < float("inf"):
        raise UserError(
            f"{name}: {value!r} is not positive, or not finite",
            hint="write 0.5, say, or leave it out: then it has no limit",
        )
    return rate


class Restart(NamedTuple):
    """The restart policy of an app: the number of restarts from the last checkpoint, after which the app fails, or None
    for no end; and the wait before each.
    """

    attempts: int | None
    wait: Backoff


def parse_restart(value: str) -> Restart:
    """Parses a restart policy: `"fixed(3, 1s)"` means three restarts, one second after each failure; `"backoff(1s, 60s)"`
    means restarts without an end, after waits that double from a second to a minute; `"none"` means no restart. Raises
    UserError.
    """
    if value == "none":
        return Restart(0, Backoff(0.0, 0.0))
    match = re.fullmatch(r"fixed\(\s*(\d{1,18})\s*,([^,)]+)\)", value)
    if match is not None:
        wait_s = parse_seconds(match[2], name="restart")
        return Restart(int(match[1]), Backoff(wait_s, wait_s))
    match = re.fullmatch(r"backoff\(([^,)]+),([^,)]+)\)", value)
    if match is None:
        raise UserError(
            f"restart={value!r}",
            hint='write "fixed(3, 1s)": how often, and the wait before each; "backoff(1s, 60s)": without an end, the '
            'first wait and the longest; or "none"',
        )
    first_s, longest_s = (parse_seconds(each, name="restart", zero=False) for each in match.groups())
    if longest_s < first_s:
        raise UserError(f"restart={value!r}: the longest wait is shorter than the first", hint='"backoff(1s, 60s)"')
    return Restart(None, Backoff(first_s, longest_s))


class Keep(NamedTuple):
    """A bound on things that are over: the seconds for which they are kept, and the most bytes of them."""

    seconds: float
    most_bytes: int


def parse_keep(value: str, *, name: str) -> Keep | None:
    """Parses what is kept: `"30d, 512MB"` means 30 days, and 512 MB at most; `"none"` means nothing, which is None. Raises
    UserError.
    """
    if value == "none":
        return None
    seconds, comma, size = str(value).partition(",")
    if not comma:
        raise UserError(f"{name}={value!r}", hint='write "30d, 512MB": for how long, and how much at most; or "none"')
    return Keep(parse_seconds(seconds, name=name, zero=False), parse_bytes(size, name=name))


def parse_broker(url: str) -> tuple[str, str]:
    """Splits the address of a broker into scheme and rest: `kafka://host:port[,host:port]` into `("kafka",
    "host:port,…")`, and `memory://name` into `("memory", "name")`. Raises UserError, also for a user or a password in
    the address.
    """
    if not isinstance(url, str):
        raise UserError(f"broker={url!r} is no text", hint="write memory:// or kafka://host:port")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("kafka", "memory") or (scheme == "kafka" and not rest):
        keep_url(url)
        raise UserError(
            f"broker {redacted_url(url)!r} is no broker address", hint="write memory:// or kafka://host:port"
        )
    if scheme == "kafka" and (wrong := re.search(r"[@?#\s]", rest)):
        keep_url(url)
        shown = re.split(r"[?#\s]", redacted_url(url))[0]
        raise UserError(
            f"broker {shown!r}: an address has no {wrong[0]!r}; it has hosts and ports, and user and password are settings",
            hint=_WHO_CALLS,
        )
    return scheme, rest.rstrip("/")


def checked_text(value: object, what: str) -> str:
    """Returns the value if it is a str that messages, databases and manifests can hold. Raises UserError for NUL, and
    for half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise UserError(f"{what}={shown(value)} is no str")
    if "\0" in value:
        raise UserError(f"{what}={shown(value)} has a NUL in it", hint="no database and no path can hold it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what}={shown(value)} cannot be written as UTF-8",
            hint=f"character {error.start} is half of a surrogate pair",
        ) from None
    return value


def checked_name(value: object, what: str, *, longest: int = NAME_BYTES) -> str:
    """Returns the value if it can name something: in a line of a log, a Kafka group, a header, a table.

    Raises UserError if it is empty, is longer than `longest` bytes of UTF-8, or has control characters.
    """
    name = checked_text(value, what)
    if not name:
        raise UserError(f"{what} is empty")
    control = next((place for place, character in enumerate(name) if unicodedata.category(character) == "Cc"), None)
    if control is not None:
        raise UserError(f"{what}={shown(name)} has a control character in it", hint=f"it is character {control}")
    size = len(name.encode())
    if size > longest:
        raise UserError(f"{what}={shown(name)} has {size} bytes", hint=f"{longest} are the most")
    return name


def checked_no_password(name: str, what: str) -> str:
    """Returns the name, unless it is an address with a password or token in it, which raises UserError."""
    if has_password(name):
        keep_url(name)
        raise UserError(
            f"{what} {redacted_url(name)!r} has a password or a token in it",
            hint="names are written to checkpoints, dead letters, metrics and log lines: give a name without secrets",
        )
    return name


def checked_topic(value: object, what: str, *, kafka: bool = False) -> str:
    """Returns the value if it can name a topic. `kafka`: True for a topic of a Kafka broker, which allows few
    characters. Raises UserError.
    """
    name = checked_no_password(checked_name(value, what, longest=TOPIC_BYTES), what)
    if kafka and (not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in (".", "..")):
        raise UserError(
            f"{what}={shown(name)} is no name of a Kafka topic",
            hint='letters, digits, ".", "_" and "-"; not "." or ".."',
        )
    return name


_ONE_SLASH = re.compile(r"(s3|gs|gcs|az|abfss?|hdfs|viewfs|file|rocksdb):/(?!/)(.*)", re.DOTALL)


def checked_path(value: object, what: str) -> str:
    """Returns the value as a str if it can be a path or a URI. Raises UserError, also for `s3:/…`, which `pathlib`
    makes of `s3://…`.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path:
        raise UserError(f"{what}={shown(value)} is no path", hint="a str that is not empty, or a Path")
    if "\0" in path:
        raise UserError(f"{what}={shown(path)} has a NUL in it", hint="no path can hold it")
    if (cut := _ONE_SLASH.match(path)) is not None:
        scheme, rest = cut.groups()
        address = f"{scheme}://{'/' if scheme in ('file', 'rocksdb') else ''}{rest}"
        raise UserError(
            f"{what}: {scheme}:/ begins neither a path nor an address",
            hint=f"write {shown(address)}, as a str: pathlib makes one slash of two",
        )
    return path


def legal_topic(name: str) -> str:
    """Replaces the characters of a source's name, such as the path of a file, that the name of a Kafka topic must not
    have.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-200:]


def dead_letter_topic(template: str, topic: str) -> str:
    """Returns the topic for the dead letters of `topic`, made from a template such as `"{topic}.dlq"`."""
    return template.replace("{topic}", legal_topic(topic))


class Secret:
    """A reference to a secret by the name of an environment variable. `repr`, messages and journals show only that
    name.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self) -> str:
        """Returns the value of the secret, which messages hide from now on. Raises UserError if the variable is
        missing or empty.
        """
        value = os.environ.get(self.name, "")
        if not value:
            raise UserError(f"the secret {self.name} is not there", hint=f"set the environment variable {self.name}")
        keep_secret(value)
        return value

    def __repr__(self) -> str:
        return f"secret({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.name == self.name

    def __hash__(self) -> int:
        return hash((Secret, self.name))


def secret(name: str) -> Secret:
    """Makes a reference to the secret in the environment variable `name`, for a call of a tool: `ctx.call(charge,
    key=secret("STRIPE_KEY"))`.

    The tool gets the value, and the journal records the name. If the variable is missing, the call fails before
    anything is sent. Raises UserError for a name with a password in it.
    """
    return Secret(checked_no_password(checked_name(name, "secret"), "secret"))
