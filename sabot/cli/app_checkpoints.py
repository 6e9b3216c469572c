"""Finds the checkpoints that the word APP of the command line means: of an app, in a directory, or in an object store."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.checkpoint.places import Location, is_local_place
from sabot.checkpoint.protocol import read_manifest_name
from sabot.cli.loading import WrongUse, load_app
from sabot.errors import CorruptCheckpoint, UserError
from sabot.redaction import redacted_url
from sabot.state import state_directory

AppWord = Annotated[
    str,
    typer.Argument(
        metavar="APP", help="module:app, or where checkpoints are: a checkpoint or state directory, a URI, a savepoint."
    ),
]
_APP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_AT = re.compile(r"(.+)@(\d+)")


class KeepsNoCheckpoints(UserError):
    """The app has no place for checkpoints."""


@dataclass
class AppCheckpoints:
    """The checkpoints of one app, in `location`. chosen: the id that the user gave with the place, as APP@ID; 0: the newest. state: the
    directory in which the app may have its state.
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
        """The location of this name below the checkpoints."""
        if isinstance(self.location, tuple):
            return self.location[0], f"{self.location[1]}/{name}"
        if isinstance(self.storage.directory, Path):
            return self.storage.directory / name
        path, question, settings = os.fspath(self.location).partition("?")
        return f"{path.rstrip('/')}/{name}{question}{settings}"

    def manifest(self, checkpoint_id: int | None = None) -> Manifest:
        """The manifest of the checkpoint with this id, or of the chosen one, or of the newest. Its files are not checked.

        Raises UserError where there is none, CorruptCheckpoint.
        """
        ids = self.storage.ids()
        if not ids:
            self.storage.latest()  # raises where the checkpoints are of another format
            raise UserError(f"{self.place} holds no checkpoint", hint="the app writes one after checkpoint_interval=")
        wanted = checkpoint_id or self.chosen or ids[-1]
        if wanted not in ids:
            raise UserError(f"{self.place} has no checkpoint {wanted}", hint=f"it has {', '.join(map(str, ids))}")
        try:
            return self.storage.read(wanted)
        except CorruptCheckpoint as error:
            error.hint = "an older one is read with its ID" if len(ids) > 1 else ""  # the usual hint is about a restore
            raise

    def runs(self) -> bool:
        """Whether a worker runs the app now. That can be known only of a directory on this machine."""
        return self.storage.in_use()


def control_of(app: AppCheckpoints) -> Path | None:
    """The folder in which the app is asked that runs on this machine now; None: none does, or it has no folder here."""
    beside = [] if app.state is None else [app.state / "scratch"]  # where checkpoints are in an object store
    for place in [app.storage.directory, *beside]:
        if isinstance(place, Path) and is_local_place(place) and CheckpointStorage(place).in_use():
            return place
    return None


def find_checkpoints(word: str) -> AppCheckpoints:
    """The app that `word` names. Raises WrongUse, KeepsNoCheckpoints."""
    at = _AT.fullmatch(word)
    if at is not None and not Path(word).exists():
        return replace(find_checkpoints(at[1]), chosen=int(at[2]))
    if _APP.fullmatch(word) and not Path(word).exists():
        return _of_app(word)
    if "://" in word and not word.startswith(("file://", "rocksdb://")):
        return AppCheckpoints(word)
    path = Path(state_directory(word) or word) if word.startswith("rocksdb://") else Path(word.removeprefix("file://"))
    manifest = read_manifest_name(path.name)
    if manifest is not None and path.is_file():
        return AppCheckpoints(path.parent.parent, manifest.checkpoint_id)
    if not path.is_dir():
        raise WrongUse(
            f"there is no directory {redacted_url(word)}", hint="write module:app, or where the checkpoints are"
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
            hint="one that gets them on the command line (sabot run --state DIR) is named by that DIR",
        )
    return AppCheckpoints(base / "checkpoints", state=base)
