"""Durations, sizes and broker addresses as users write them, read in one place."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from sabot.errors import UserError

__all__ = [
    "Duration",
    "Restart",
    "legal_topic",
    "parse_broker",
    "parse_bytes",
    "parse_restart",
    "parse_seconds",
    "redacted",
]

Duration = str | int | float | timedelta

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_SECRET = re.compile(r"password|secret|token|key$|key\.|pem|jaas|credentials", re.IGNORECASE)


def parse_seconds(value: Duration, *, name: str = "duration") -> float:
    """`"5s"`, `"100ms"`, a timedelta, or a bare number of seconds -> seconds, not negative."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool):
        raise UserError(f"{name}: {value!r} is no duration", hint='write "5s", "100ms" or a number of seconds')
    elif isinstance(value, int | float):
        seconds = float(value)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)?\s*", value)
        if match is None:
            raise UserError(f"{name}: {value!r} is no duration", hint='write "5s", "100ms" or a number of seconds')
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{name}: {value!r} is negative or not finite")
    return seconds


def parse_bytes(value: str | int, *, name: str = "size") -> int:
    """`"256MB"`, `"64KiB"` or a number of bytes -> bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?\s*", str(value), re.IGNORECASE)
        if match is None:
            raise UserError(f"{name}: {value!r} is no size", hint='write "256MB", "64KiB" or a number of bytes')
        size = int(float(match[1]) * _BYTES[(match[2] or "b").lower()])
    if size <= 0:
        raise UserError(f"{name}: {value!r} is not positive")
    return size


class Restart(NamedTuple):
    """What happens when a task of a job fails: so many restarts from the last checkpoint, each after a wait; then the job fails."""

    attempts: int
    delay_s: float


def parse_restart(value: str) -> Restart:
    """`"fixed(3, 1s)"` -> three restarts, one second after each failure; `"none"`: no restart."""
    if value == "none":
        return Restart(0, 0.0)
    match = re.fullmatch(r"fixed\(\s*(\d+)\s*,([^,)]+)\)", value)
    if match is None:
        raise UserError(
            f"restart={value!r}", hint='write "fixed(3, 1s)": how often, and the wait before each; or "none"'
        )
    return Restart(int(match[1]), parse_seconds(match[2], name="restart"))


def parse_broker(url: str) -> tuple[str, str]:
    """`kafka://host:port[,host:port]` -> `("kafka", "host:port,…")`; `memory://name` -> `("memory", "name")`."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("kafka", "memory") or (scheme == "kafka" and not rest):
        raise UserError(f"broker {url!r} is no broker address", hint="write memory:// or kafka://host:port")
    return scheme, rest.rstrip("/")


def legal_topic(name: str) -> str:
    """A source's name as a part of a Kafka topic's name: a file's path is none."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-200:]


def redacted(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings as they may be logged: values of secret-looking names are hidden."""
    return {name: "***" if _SECRET.search(name) else value for name, value in settings.items()}
