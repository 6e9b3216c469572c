"""Options that several commands share."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from sabot.base.logs import LOG_FORMATS, LOG_LEVELS
from sabot.base.options import Option, options_of
from sabot.base.redaction import setting_name
from sabot.cli.loading import WrongUse

F = TypeVar("F", bound=Callable[..., Any])


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


def with_options(declared: type) -> Callable[[F], F]:
    """Returns a decorator that puts the options of a dataclass in the place of the last parameter of a command, `**given`: those that
    have a metavar.
    """
    from sabot.api.settings import Settings

    of_app = {each.name for each in fields(Settings)}
    made = [_parameter(name, each, name in of_app) for name, each in options_of(declared).items() if each.metavar]

    def decorate(command: F) -> F:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        target: Any = command
        target.__signature__ = signature.replace(parameters=[*own, *made])
        return command

    return decorate


def _parameter(name: str, each: Option, of_app: bool) -> inspect.Parameter:
    """Returns the parameter of a typer command. A setting of the app that is not given is None, so the program's own value applies."""
    types: dict[type, Any] = {bool: bool, list: list[str] | None, int: int | None}
    hint = typer.Option(
        f"--{name.rstrip('_').replace('_', '-')}",
        metavar=each.metavar.strip() or None,
        help=f"{each.help[0].upper()}{each.help[1:]}.",
        min=each.bounds[0],
        max=each.bounds[1],
        callback=None if of_app or each.check is None else lambda value: each.checked(name, value),
    )
    default = False if each.kind is bool else None if of_app else each.default
    annotation = Annotated[types.get(each.kind, str | None), hint]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
