"""Finds the checkpoints that the argument APP names: those of an app, of a directory, or of an object store."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sabot.base.redaction import redacted_url
from sabot.cli.loading import WrongUse, is_script, load_app
from sabot.engine.checkpoint.inspection import AppCheckpoints
from sabot.engine.checkpoint.places import is_local_place
from sabot.engine.checkpoint.protocol import read_manifest_name
from sabot.engine.state import state_directory
from sabot.errors import UserError

AppWord = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="The app (module:app or a file of SQL), or the place of its checkpoints: a checkpoint or state directory, a URI, a savepoint.",
    ),
]
_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_AT = re.compile(r"(.+)@(\d+)")


class KeepsNoCheckpoints(UserError):
    """The error for an app that has no place for checkpoints."""


def find_checkpoints(word: str, state: str | None = None) -> AppCheckpoints:
    """Returns the checkpoints that `word` names. `state`: the state directory of the app, if the command line has one.

    Raises WrongUse if there is no such app or directory, and KeepsNoCheckpoints if the app has no place for checkpoints.
    """
    at = _AT.fullmatch(word)
    if at is not None and not Path(word).exists():
        return replace(find_checkpoints(at[1], state), chosen=int(at[2]))
    if state is not None:
        return find_checkpoints(state)
    if names_program(word):
        return _of_app(word)
    if "://" in word and not word.startswith(("file://", "rocksdb://")):
        return AppCheckpoints(word)
    path = Path(state_directory(word) or word) if word.startswith("rocksdb://") else Path(word.removeprefix("file://"))
    manifest = read_manifest_name(path.name)
    if manifest is not None and path.is_file():
        return AppCheckpoints(path.parent.parent, manifest.checkpoint_id)
    if not path.is_dir():
        raise WrongUse(
            f"there is no directory {redacted_url(word)}", hint="write module:app, or the directory of the checkpoints"
        )
    below = path / "checkpoints"
    return AppCheckpoints(below if is_local_place(below) else path, state=path)


def names_program(word: str) -> bool:
    """Returns True if the argument APP is `module:app` or a file of SQL, and not a place of checkpoints."""
    return is_script(word) or (_APP.fullmatch(word) is not None and not Path(word).exists())


def _of_app(word: str) -> AppCheckpoints:
    app = load_app(word)
    place = app.settings.checkpoint_place
    if place is None:
        raise KeepsNoCheckpoints(
            f"app {app.id} keeps no checkpoints: it has neither a state directory nor checkpoint_dir=",
            hint=f"if it runs with sabot run --state DIR, write that DIR in place of {word}",
        )
    return AppCheckpoints(place, state=app.settings.state_dir)
