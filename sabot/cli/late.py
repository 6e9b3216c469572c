"""Commands whose modules are imported when they are called, so that `sabot run` and `--help` start without the modules of the others."""

import gc
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import typer
import typer.core

from sabot.base.logs import as_json, set_up_logging
from sabot.base.redaction import redacted_url, scrubbed
from sabot.cli.running import drop_output

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.]*://.*", re.DOTALL)
_WrongWord: Any = typer.BadParameter.__base__  # UsageError, which Typer does not export


class LateCommand(NamedTuple):
    """A command whose modules are imported when it is called."""

    help: str
    """The first line of the command's help."""
    modules: tuple[str, ...]
    """The modules in `sabot.cli` to import, in order; the last one has the command."""
    name: str
    """The name of the function, or of the group of commands, in the last module."""
    settles: bool = False
    """True if the command loads the user's program and then calls `settled` itself."""


class LateGroup(typer.core.TyperGroup):
    """A group that lists its commands by the help in the table, and imports the command that is called."""

    late: Mapping[str, LateCommand] = {}

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _told():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _told():
            return super().invoke(ctx)

    def load(self, name: str) -> Any:
        """Imports the command of this name if that is not done yet, and returns it."""
        if name in self.late:
            self.commands[name] = _loaded(name, self.late[name])
            self.late = {other: command for other, command in self.late.items() if other != name}
        return self.commands[name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the name of the called command, the command itself, and the words after its name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else self.load(name), rest


@contextmanager
def _told() -> Iterator[None]:
    """Handles errors of wrong use, and the end of output that nobody reads, as with `sabot run --help | true`.

    A message of wrong use names the variable of the environment that is wrong. It has no passwords: it repeats words of the command
    line, and a word may be an address with a password, also where the command takes no address. It is JSON if the log of the command
    is.
    """
    try:
        yield
    except BrokenPipeError:
        drop_output()
        raise typer.Exit from None
    except _WrongWord as error:
        message = error.message
        for found in filter(None, map(_ADDRESS.search, sys.argv)):
            message = message.replace(found[0], redacted_url(found[0]))
        error.message = scrubbed(message)
        option = getattr(error, "param", None)
        if option is not None and error.ctx is not None and _source(error.ctx, option.name) == "ENVIRONMENT":
            error.param_hint = repr(option.envvar)
        if not _log_is_json(error.ctx):
            raise
        set_up_logging("info", "json")
        print(as_json(error.format_message(), logging.CRITICAL), file=sys.stderr)
        raise typer.Exit(error.exit_code) from error


def _source(context: Any, name: str) -> str:
    """Returns where the value of a parameter comes from: COMMANDLINE, ENVIRONMENT, DEFAULT_MAP (the file of --settings), DEFAULT."""
    source = context.get_parameter_source(name)
    return "" if source is None else str(source.name)


def _log_is_json(context: Any) -> bool:
    """Returns True if the command, whose words may not all have been read, was to write its log as JSON."""
    if context is None:
        return False
    option = next((each for each in context.command.params if each.name == "log_format"), None)
    if option is None:
        return False
    given = [after for word, after in pairwise([*sys.argv, ""]) if word == "--log-format"]
    given += [word.partition("=")[2] for word in sys.argv if word.startswith("--log-format=")]
    if not given and option.envvar:
        given = [os.environ.get(option.envvar, "")]
    return (given[-1:] or [""])[0] == "json" or (
        not any(given) and (context.default_map or {}).get("log_format") == "json"
    )


def add_late(cli: typer.Typer, commands: Mapping[str, LateCommand]) -> None:
    """Adds these commands to a group of commands."""
    for name, command in commands.items():
        cli.command(name, help=command.help)(_not_loaded)
    cli.info.cls = type("Commands", (LateGroup,), {"late": commands})


def _not_loaded() -> None:
    raise AssertionError("LateGroup loads a command before it is called")


def _loaded(name: str, command: LateCommand) -> Any:
    modules = [import_module(f"sabot.cli.{module}") for module in command.modules]
    if not command.settles:
        settled()
    found = getattr(modules[-1], command.name)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(found)
    return typer.main.get_command(alone)


def settled() -> None:
    """Turns the garbage collector on, after all modules are imported.

    `main` turns it off, because imports make no garbage. The objects of modules (200,000) are frozen, so later collections skip them.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
