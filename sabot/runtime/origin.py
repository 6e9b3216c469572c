"""Which checkpoint a start goes on from: the newest of the job's own, a savepoint of the user's choice, or none."""

import logging
import re
from pathlib import Path
from typing import Any, Protocol

from sabot.checkpoint import CheckpointStorage, Manifest
from sabot.errors import CorruptCheckpoint, UserError
from sabot.redaction import redacted_url

__all__ = ["Origin", "identity"]

_log = logging.getLogger(__name__)

_FAR_GENERATIONS = 4096  # from a savepoint to what goes on from it: the job it was taken from uses the numbers between


class Asked(Protocol):
    """What the user says of the next start. It is forgotten when a checkpoint of the job's own has followed."""

    id: str
    from_: str | None
    redeliver: str | None


class Origin:
    """Of the starts of one job. Blocking, unless said otherwise."""

    def __init__(self, asked: Asked) -> None:
        self.savepoint: str | None = None  # asked for, and no checkpoint has followed it yet
        self._asked = asked
        self._place: object = None  # of the checkpoints, in this run or the last one
        self._back_to: tuple[object, int] | None = None  # in a restart: where, and which checkpoint has to be there

    def begin(self) -> None:
        """A start. Does not block."""
        self.savepoint = self._asked.from_

    def opened(self, storage: CheckpointStorage | None) -> None:
        """Where this run keeps its checkpoints. Does not block."""
        self._place = None if storage is None else storage.directory

    def restarts(self, last_id: int | None) -> None:
        """The run after this one goes back to this checkpoint at least; None: it is the first, whatever there is. Does not block."""
        if last_id is None:
            self._back_to = None
        elif last_id and self._place is not None:
            self._back_to = self._place, last_id

    def check_place(self) -> None:
        """In a restart, before a directory would be made anew. Raises UserError."""
        if self._back_to is not None and isinstance(self._back_to[0], Path) and not self._back_to[0].exists():
            raise self._gone(*self._back_to)

    def find(self, storage: CheckpointStorage) -> Manifest | None:
        """The newest checkpoint, or the savepoint that was asked for."""
        if self.savepoint is None:
            found = storage.latest()
            if self._back_to is not None and (found is None or found.checkpoint_id < self._back_to[1]):
                raise self._gone(*self._back_to)
            return found
        try:
            newest = storage.latest()
        except CorruptCheckpoint as error:
            _log.warning("%s; the savepoint takes its place", error.message)
            newest = None
        dated = re.search(r"@\d+$", self.savepoint)
        location, _, number = self.savepoint.rpartition("@") if dated else (self.savepoint, "", "")
        savepoint = CheckpointStorage(location)
        found = savepoint.read(int(number)) if number else savepoint.latest()
        if found is None:
            raise UserError(
                f"{savepoint.directory} holds no checkpoint",
                hint="give the directory that `sabot savepoint create` named",
            )
        if number:
            savepoint.verify(found)
        if newest is not None and newest.describe.get("from") == identity(found):
            _log.warning(
                "app %s has gone on from %s before, and goes on from where it was then (back to the savepoint once more: --fresh)",
                *(self._asked.id, f"{savepoint.directory}@{number}" if number else savepoint.directory),
            )
            self.savepoint = self._asked.from_ = None
            return newest
        ours = newest is not None and newest.incarnation == found.incarnation
        storage.claim_above(found.generation + (0 if ours else _FAR_GENERATIONS))
        return found

    def followed(self) -> None:
        """A checkpoint of the job's own is complete: the next start goes on from there. Does not block."""
        self.savepoint = self._asked.from_ = self._asked.redeliver = None

    def refuse_without_storage(self) -> None:
        """Raises UserError where a savepoint was asked for and no checkpoint could follow it. Does not block."""
        if self.savepoint is not None:
            raise UserError(
                f"app {self._asked.id}: it cannot start from {redacted_url(self.savepoint)} and then keep no checkpoints",
                hint="App(..., state=DIRECTORY), or checkpoint_dir=",
            )

    def _gone(self, directory: object, checkpoint_id: int) -> UserError:
        return UserError(
            f"app {self._asked.id} cannot go back to checkpoint {checkpoint_id}, which it has made: {directory} has it no more",
            hint="was the directory removed, renamed or unmounted while the job ran? Bring it back, and start again",
        )


def identity(manifest: Manifest) -> list[Any]:
    """Which checkpoint it is, wherever it lies."""
    return [manifest.incarnation, manifest.generation, manifest.checkpoint_id]
