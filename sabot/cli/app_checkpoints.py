"""Finds the checkpoints that the argument APP names: those of an app, of a directory, or of an object store."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.checkpoint.places import Location, is_local_place
from sabot.checkpoint.protocol import read_manifest_name
from sabot.cli.loading import WrongUse, is_script, load_app
from sabot.errors import CorruptCheckpoint, UserError
from sabot.redaction import redacted_url
from sabot.state import state_directory

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


@dataclass
class AppCheckpoints:
    """The checkpoints of one app.

    `location`: the place of the checkpoints. `chosen`: the id that the user gave as APP@ID, or 0 for the newest checkpoint. `state`: the
    directory where the app may have its state, or None.
    """

    location: Location
    chosen: int = 0
    state: Path | None = None
    storage: CheckpointStorage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = CheckpointStorage(self.location)

    @property
    def place(self) -> str:
        """The place of the checkpoints, for messages."""
        return str(self.storage.directory)

    def below(self, name: str) -> Location:
        """Returns the location of `name` below the place of the checkpoints."""
        if isinstance(self.location, tuple):
            return self.location[0], f"{self.location[1]}/{name}"
        if isinstance(self.storage.directory, Path):
            return self.storage.directory / name
        path, question, settings = os.fspath(self.location).partition("?")
        return f"{path.rstrip('/')}/{name}{question}{settings}"

    def manifest(self, checkpoint_id: int | None = None) -> Manifest:
        """Returns the manifest of the checkpoint with this id. Without an id, returns the one that the user has
        named, or else the newest. Does not check its files.

        Raises UserError if there is no such checkpoint, and CorruptCheckpoint if the manifest cannot be read.
        """
        ids = self.storage.ids()
        if not ids:
            self.storage.latest()  # raises if the checkpoints have another format
            raise UserError(
                f"{self.place} holds no checkpoint", hint="the app writes the first after checkpoint_interval="
            )
        wanted = checkpoint_id or self.chosen or ids[-1]
        if wanted not in ids:
            raise UserError(f"{self.place} has no checkpoint {wanted}", hint=f"it has {', '.join(map(str, ids))}")
        try:
            return self.storage.read(wanted)
        except CorruptCheckpoint as error:
            # The usual hint is about a restore.
            error.hint = (
                "name an older checkpoint by its id; `sabot checkpoints list` shows them" if len(ids) > 1 else ""
            )
            raise

    def runs(self) -> bool:
        """Returns True if a process on this machine runs the app now. Always False for checkpoints in an object store."""
        return self.storage.in_use()


def control_of(app: AppCheckpoints) -> Path | None:
    """Returns the folder through which requests reach the app that runs on this machine, or None if no app runs there."""
    beside = [] if app.state is None else [app.state / "scratch"]  # used if the checkpoints are in an object store
    for place in [app.storage.directory, *beside]:
        if isinstance(place, Path) and is_local_place(place) and CheckpointStorage(place).in_use():
            return place
    return None


def find_checkpoints(word: str) -> AppCheckpoints:
    """Returns the checkpoints that `word` names.

    Raises WrongUse if there is no such app or directory, and KeepsNoCheckpoints if the app has no place for checkpoints.
    """
    at = _AT.fullmatch(word)
    if at is not None and not Path(word).exists():
        return replace(find_checkpoints(at[1]), chosen=int(at[2]))
    if is_script(word) or (_APP.fullmatch(word) and not Path(word).exists()):
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


def _of_app(word: str) -> AppCheckpoints:
    app = load_app(word)
    base = state_directory(app.settings.state)
    if app.settings.checkpoint_dir is not None:
        return AppCheckpoints(app.settings.checkpoint_dir, state=base)
    if base is None:
        raise KeepsNoCheckpoints(
            f"app {app.id} keeps no checkpoints: it has neither a state directory nor checkpoint_dir=",
            hint="if it runs with sabot run --state DIR, name that DIR",
        )
    return AppCheckpoints(base / "checkpoints", state=base)
