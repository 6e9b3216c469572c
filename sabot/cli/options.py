"""Options that several commands share."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated

import typer

from sabot.base.logs import LOG_FORMATS, LOG_LEVELS
from sabot.base.redaction import setting_name
from sabot.cli.loading import WrongUse


def log_level(value: str) -> str:
    if value.lower() not in LOG_LEVELS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(LOG_LEVELS)}")
    return value.lower()


def log_format(value: str) -> str:
    if value.lower() not in LOG_FORMATS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(LOG_FORMATS)}")
    return value.lower()


Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="The module and the App in it, or a file of SQL.")]
Functions = Annotated[
    list[str] | None,
    typer.Option("--functions", metavar="MODULE", help="A module whose functions a file of SQL may call; repeatable."),
]
LogLevel = Annotated[
    str, typer.Option(metavar="LEVEL", callback=log_level, help=f"The lowest level to log: {', '.join(LOG_LEVELS)}.")
]
LogFormat = Annotated[
    str,
    typer.Option("--log-format", metavar="FORMAT", callback=log_format, help="The format of log lines: text or json."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Remove the checkpoints and start from the beginning.")]
Kafka = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the Kafka client; repeatable.")
]


def kafka_settings(given: Sequence[str] | None, option: str = "--kafka") -> dict[str, str]:
    """Parses settings of the form NAME=VALUE and returns the values by name. Raises WrongUse if one has no value."""
    settings = {}
    example = "security.protocol=ssl" if option == "--kafka" else "cleanup.policy=compact"
    for setting in given or []:
        name, equals, value = setting.partition("=")
        if not equals:
            raise WrongUse(
                f"{option} {setting_name(setting)} has no value",
                hint=f"write {option} NAME=VALUE, as in {example}",
            )
        settings[name] = value
    return settings


def until_of(given: str | None) -> str | int | datetime | None:
    """Parses the value of `--until`: "now", milliseconds since 1970, or a time in ISO 8601 with a zone. Raises WrongUse for others."""
    if given is None or given == "now":
        return given
    if given.isdecimal():
        return int(given)
    time: datetime | None = None
    with suppress(ValueError):
        time = datetime.fromisoformat(given)
    if time is None or time.tzinfo is None:
        raise WrongUse(
            f"--until {given} is not a time",
            hint="write now, milliseconds since 1970, or a time with a zone: 2026-01-31T00:00:00Z",
        )
    return time
