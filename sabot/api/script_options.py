"""The options of a script that ends in `app.main(sys.argv[1:])`: those of `sabot run` that set the app."""

import argparse
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from sabot.api.settings import Settings
from sabot.base.logs import LOG_LEVELS
from sabot.base.options import Option, options_of

_NOT_OF_SCRIPTS = ("from_",)
"""Settings whose option needs more of the command line than a script has."""

_OF_RUN = ("--from", "--functions", "--listen", "--ray", "--reload", "--secrets", "--web", "--workers")
"""How the options of `sabot run` begin that scripts do not have."""


def script_parser() -> argparse.ArgumentParser:
    """Returns the parser of a script's options. It names the script in its messages, and exits with code 2 for wrong
    options.
    """
    parser = argparse.ArgumentParser(
        description="Runs the app until its input ends, or Ctrl-C. Options override the settings of the program.",
        allow_abbrev=False,
    )
    for name, each in options_of(Settings).items():
        if each.metavar and name not in _NOT_OF_SCRIPTS:
            help = f"{each.help[0].upper()}{each.help[1:]}.".replace("%", "%%")
            parser.add_argument(f"--{name.replace('_', '-')}", help=help, default=None, **_kind_of(each))
    parser.add_argument("--loglevel", choices=LOG_LEVELS, default="info", help="The lowest level to log.")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="The format of log lines.")
    return parser


def settings_of(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[dict[str, Any], str, str]:
    """Parses a script's command line. Returns the settings that it gives, by name; the log level; and the format of
    log lines.
    """
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_hint_of(unknown[0].partition('=')[0])}")
    given = vars(known)
    level, form = given.pop("loglevel"), given.pop("log_format")
    if given["until"] is not None:
        given["until"] = _time_of(given["until"])
    return {name: value for name, value in given.items() if value is not None}, level, form


def hint_with_program(hint: str, program: str) -> str:
    """Returns the hint of an error, with the whole command instead of an option alone: "start afresh (--fresh)"
    becomes "start afresh (sabot run shop:app --fresh)". `program`: the command with which the app was started,
    without its options.
    """
    names = "|".join(name.replace("_", "-") for name, each in options_of(Settings).items() if each.metavar)
    return re.sub(
        rf"(^|[(;:,] ?|\b(?:with|or|start) )(--(?:{names})\b)", lambda found: f"{found[1]}{program} {found[2]}", hint
    )


def _hint_of(unknown: str) -> str:
    """Returns a hint in parentheses for an option that the script does not have: the command to use instead, or an
    option with a similar name. Returns "" if there is no hint.
    """
    if unknown.startswith(_OF_RUN):
        return f" ({unknown} needs the command: sabot run module:app {unknown})"
    names = [f"--{name.replace('_', '-')}" for name, each in options_of(Settings).items() if each.metavar]
    near = get_close_matches(unknown, names, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _kind_of(each: Option) -> dict[str, Any]:
    if each.kind is bool:
        return {"action": "store_true"}
    if each.kind is list:
        return {"action": "append", "metavar": each.metavar}
    return {"type": int if each.kind is int else str, "metavar": each.metavar}


def _time_of(given: str) -> Any:
    """Returns a text as ms (int) or as a datetime, if it has such a form. Returns any other text unchanged; the
    setting checks it later.
    """
    if given.isdecimal():
        return int(given)
    with suppress(ValueError):
        return datetime.fromisoformat(given)
    return given
