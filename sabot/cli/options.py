"""Options that several commands share."""

import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sabot.base.logs import LOG_FORMATS, LOG_LEVELS
from sabot.base.options import Option, options_of
from sabot.base.redaction import setting_name
from sabot.cli.loading import WrongUse

F = TypeVar("F", bound=Callable[..., Any])

_HTTP = re.compile(r"(?:(?P<host>[^:\[\]]+|\[[^\]]+\]):)?(?P<port>\d{1,5})")
_PORT_MOST = 65_535


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


def with_options(declared: type, *, elsewhere: bool = False) -> Callable[[F], F]:
    """Returns a decorator that puts the options of a dataclass in the place of the last parameter of a command, `**given`: those that
    have a metavar.

    `elsewhere`: True if they may also come from the environment, as SABOT_STATE, and from the file of `--settings`, except those that
    apply to one start: a variable would apply them to each.
    """
    from sabot.api.settings import Settings

    of_app = {each.name for each in fields(Settings)}
    shown = {name: each for name, each in options_of(declared).items() if each.metavar}
    made = [_parameter(name, each, name in of_app, elsewhere and not each.once) for name, each in shown.items()]
    if elsewhere:
        made.append(_settings_file(shown))

    def decorate(command: F) -> F:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        target: Any = command
        target.__signature__ = signature.replace(parameters=[*own, *made])
        return command

    return decorate


def _settings_file(options: Mapping[str, Option]) -> inspect.Parameter:
    """Returns the parameter of `--settings`. It is read before all others, whose defaults it gives."""

    def read(context: typer.Context, path: Path | None) -> None:
        for name, each in options.items():
            if each.once and variable_of(name) in os.environ:
                raise typer.BadParameter(f"{variable_of(name)}: {_of_one_start(name)}")
        if path is not None:
            context.default_map = _settings_in(path, options)

    hint = typer.Option(
        "--settings",
        metavar="FILE",
        help="A TOML file with further options of this command, which the environment and the command line override.",
        envvar=variable_of("settings"),
        show_envvar=False,
        is_eager=True,
        expose_value=False,
        callback=read,
    )
    return inspect.Parameter(
        "settings", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, hint]
    )


def variable_of(name: str) -> str:
    """Returns the name of the variable of the environment for an option of `sabot run`."""
    return f"SABOT_{name.rstrip('_').upper()}"


def _of_one_start(name: str) -> str:
    return f"it applies to one start, so give it on the command line: {_word_of(name)}"


def _word_of(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _settings_in(path: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    """Returns the options in a file by the names of their parameters. Raises typer.BadParameter."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    given = {}
    for word, value in found.items():
        name = word.replace("-", "_")
        if name not in options and f"{name}_" in options:
            name = f"{name}_"
        if name not in options:
            near = get_close_matches(name, options, 1)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
            raise typer.BadParameter(f"{path}: there is no option {word}{hint}")
        if options[name].once:
            raise typer.BadParameter(f"{path}: {word}: {_of_one_start(name)}")
        kind = options[name].kind
        fits = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
        if not fits and (kind is not str or isinstance(value, bool | list | dict)):
            said = {bool: "true or false", int: "a whole number", list: "a list of texts"}.get(kind, "a text")
            raise typer.BadParameter(f"{path}: {word} = {value!r} is not {said}")
        given[name] = [str(each) for each in value] if kind is list else value if kind is bool else str(value)
    return given


def _parameter(name: str, each: Option, of_app: bool, elsewhere: bool) -> inspect.Parameter:
    """Returns the parameter of a typer command. A setting of the app that is not given is None, so the program's own value applies."""
    types: dict[type, Any] = {bool: bool, list: list[str] | None, int: int | None}
    hint = typer.Option(
        _word_of(name),
        envvar=variable_of(name) if elsewhere else None,
        show_envvar=False,  # one rule for all of them
        metavar=each.metavar.strip() or None,
        help=f"{each.help[0].upper()}{each.help[1:]}.",
        min=each.bounds[0],
        max=each.bounds[1],
        callback=None if of_app or each.check is None else lambda value: each.checked(name, value),
    )
    default = False if each.kind is bool else None if of_app else each.default
    annotation = Annotated[types.get(each.kind, str | None), hint]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def http_address(http: str) -> tuple[str, int]:
    """Returns the host and the port of the option --http. The host is 127.0.0.1 if it names none."""
    found = _HTTP.fullmatch(http)
    if found is None or int(found["port"]) > _PORT_MOST:
        raise WrongUse(f"--http {http!r} is not an address", hint="write PORT, HOST:PORT or [IPv6]:PORT")
    return (found["host"] or "127.0.0.1").strip("[]"), int(found["port"])


def token_of(file: str | None, variable: str) -> str | None:
    """Returns the token in the file of the option --token-file, or in a variable of the environment; None if there is none."""
    if file is None:
        return os.environ.get(variable)
    try:
        return Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise WrongUse(f"--token-file {file} cannot be read: {why}", hint="name a text file with the token") from error
