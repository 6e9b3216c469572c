"""The checkpoint from which a start resumes: the newest one of the app, a savepoint that the user has chosen, or
none.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sabot._cython.groups.partition import HASH_VERSION
from sabot.base.redaction import redacted_url
from sabot.base.version import sabot_version
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.restore import Asked
from sabot.errors import CorruptCheckpoint, UserError

_log = logging.getLogger(__name__)

# An app that resumes from a savepoint skips this many generations, because the app that wrote the savepoint goes on with the next ones.
_FAR_GENERATIONS = 4096


class Origin:
    """Chooses the checkpoint for each start of one app. Its methods block, unless they say otherwise."""

    def __init__(self, app: AppSpec) -> None:
        self.savepoint: str | None = None  # set until a checkpoint of the app has followed the savepoint
        self.asked = Asked()  # what this start does with the state of the result of `find`
        self._app = app
        self._place: object = None  # the directory of the checkpoints, in this run or the last one
        # In a restart: the directory, and the checkpoint that must be there.
        self._back_to: tuple[object, int] | None = None

    def begin(self) -> None:
        """Called when a start begins. Does not block."""
        self.savepoint = self._app.settings.from_

    def opened(self, storage: CheckpointStorage | None) -> None:
        """Notes the storage of this run's checkpoints. Does not block."""
        self._place = None if storage is None else storage.directory

    def restarts(self, last_id: int | None) -> None:
        """Makes the next run resume from this checkpoint or a later one. If `last_id` is None, it resumes from the
        newest checkpoint. Does not block.
        """
        if last_id is None:
            self._back_to = None
        elif last_id and self._place is not None:
            self._back_to = self._place, last_id

    def check_place(self) -> None:
        """Raises UserError if this is a restart and the directory of the checkpoints is missing; otherwise an empty
        one would be made.
        """
        if self._back_to is not None and isinstance(self._back_to[0], Path) and not self._back_to[0].exists():
            raise self._gone(*self._back_to)

    def find(self, storage: CheckpointStorage) -> Manifest | None:
        """Returns the checkpoint to restore: the newest one of the app, or None if there is none, or if the app starts
        afresh. If the user asked for a savepoint, returns the savepoint, unless the app has started from it before and made
        a checkpoint since.

        Raises UserError if the savepoint is missing, or, at a restart, if the checkpoint to which the app goes back
        is.
        """
        found, settings = self._find(storage), self._app.settings
        self.asked = Asked() if found is None else Asked(settings.dropped, settings.refilled, settings.reemitted)
        return found

    def describe(self, origin: Manifest | None) -> dict[str, Any]:
        """Returns the description that every checkpoint of this run contains. `origin`: the result of `find`. Does
        not block.
        """
        facts: dict[str, Any] = {
            "app": self._app.id,
            "version": self._app.settings.version,
            "hash": HASH_VERSION,
            "sabot": sabot_version(),
        }
        if origin is not None:  # it may be the savepoint with which the program was started
            facts["from"] = origin.describe.get("from") if self.savepoint is None else identity(origin)
        if self._app.settings.dropped:
            facts["dropped"] = sorted(self._app.settings.dropped)
        if self._app.settings.refilled:
            facts["refilled"] = sorted(self._app.settings.refilled)
        if self._app.settings.reemitted:
            facts["reemitted"] = sorted(self._app.settings.reemitted)
        return facts

    def _find(self, storage: CheckpointStorage) -> Manifest | None:
        afresh = self._app.settings.fresh
        if self.savepoint is None:
            found = None if afresh else storage.latest()
            if self._back_to is not None and (found is None or found.checkpoint_id < self._back_to[1]):
                raise self._gone(*self._back_to)
            return found
        try:
            newest = None if afresh else storage.latest()
        except CorruptCheckpoint as error:
            _log.warning("%s; the start uses the savepoint instead", error.message)
            newest = None
        location, number = place_and_number(self.savepoint)
        savepoint = CheckpointStorage(location)
        found = savepoint.read(int(number)) if number else savepoint.latest()
        if found is None:
            raise UserError(
                f"there is no savepoint in {savepoint.directory}",
                hint="give the location that `sabot savepoint create` printed",
            )
        if number:
            savepoint.verify(found)
        if newest is not None and newest.describe.get("from") == identity(found):
            _log.warning(
                "app %s has started from %s before, so it resumes from its own newest checkpoint (--fresh starts from the savepoint again)",
                *(self._app.id, f"{savepoint.directory}@{number}" if number else savepoint.directory),
            )
            self.savepoint = None
            self._app.settings = replace(self._app.settings, from_=None)
            return newest
        ours = newest is not None and newest.incarnation == found.incarnation
        storage.claim_above(found.generation + (0 if ours else _FAR_GENERATIONS))
        return found

    def give_up_earlier(self, storage: CheckpointStorage | None) -> None:
        """Gives up the earlier checkpoints of an app that starts afresh. Called when nothing refuses the start any more, so
        that a refused start leaves them as they were. The settings for that start are reset.
        """
        if storage is not None and self._app.settings.fresh:
            storage.clear()
            self._app.settings = replace(self._app.settings, fresh=False, forget_effects=False)

    def followed(self) -> None:
        """Makes the next start resume from the app's own checkpoints. Called when one is complete. Does not block."""
        self.savepoint = None
        self._app.settings = replace(self._app.settings, from_=None, redeliver=None)

    def refuse_without_storage(self) -> None:
        """Raises UserError if a savepoint was asked for but no checkpoint could follow it. Does not block."""
        if self.savepoint is not None:
            raise UserError(
                f"app {self._app.id} cannot start from {redacted_url(self.savepoint)}, because it keeps no checkpoints",
                hint="App(..., state=DIRECTORY), or checkpoint_dir=",
            )

    def _gone(self, directory: object, checkpoint_id: int) -> UserError:
        return UserError(
            f"app {self._app.id} cannot restart from its checkpoint {checkpoint_id}, which is no longer in {directory}",
            hint="if the directory was removed, renamed or unmounted while the app ran, restore it and start again",
        )


def place_and_number(savepoint: str) -> tuple[str, str]:
    """Splits `PATH@ID` into path and checkpoint id; "" means the newest checkpoint at the path."""
    dated = re.search(r"@\d+$", savepoint)
    location, _, number = savepoint.rpartition("@") if dated else (savepoint, "", "")
    return location, number


def identity(manifest: Manifest) -> list[Any]:
    """Returns the values that identify a checkpoint even if it was copied: incarnation, generation and id."""
    return [manifest.incarnation, manifest.generation, manifest.checkpoint_id]
