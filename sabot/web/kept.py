"""The checkpoints of the app that a console belongs to, read in a thread: disks and object stores may be slow."""

import asyncio
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sabot.checkpoint import ask
from sabot.checkpoint.inspection import (
    AppCheckpoints,
    CheckpointRecord,
    SavepointRecord,
    checkpoint_records,
    control_of,
    create_savepoint,
    savepoint_place,
)
from sabot.checkpoint.places import Location
from sabot.errors import SabotError, UserError
from sabot.state import state_directory

if TYPE_CHECKING:
    from sabot.app import App

_log = logging.getLogger(__name__)

_ASK_SECONDS = 60.0


class KeptCheckpoints:
    """The kept checkpoints of an app, as they were when they were last read. Used by the server's thread.

    `app`: None if the app keeps no checkpoints. `records`: the oldest first. `damaged`: the message about a damaged one, or "".
    """

    def __init__(self, app: "App") -> None:
        base = state_directory(app.settings.state)
        location = app.settings.checkpoint_dir or (None if base is None else base / "checkpoints")
        self.app = None if location is None else AppCheckpoints(location, state=base)
        self.records: list[CheckpointRecord] = []
        self.damaged = ""
        self._read_at: int | None = None  # the id of the newest checkpoint when they were read
        self._reading: asyncio.Task[None] | None = None

    @property
    def place(self) -> str:
        """The place of the checkpoints, for people."""
        return "" if self.app is None else self.app.place

    def read_if_new(self, last_id: int) -> None:
        """Begins to read the checkpoints, if the app has a newer one than when they were read. The next tick shows them."""
        if self.app is not None and last_id != self._read_at and (self._reading is None or self._reading.done()):
            self._read_at = last_id
            self._reading = asyncio.get_running_loop().create_task(self._read(self.app))

    def rows(self, query: Any) -> list[dict[str, Any]]:
        """Returns the records for CSV and JSON."""
        return [asdict(each) for each in self.records]

    async def checkpoint(self) -> int:
        """Takes a checkpoint now, and returns its id. Raises UserError if the app does not run."""
        app = self._running_app()
        control = await asyncio.to_thread(control_of, app)
        if control is None:
            raise UserError("the app does not run now", hint="it takes checkpoints again after its start")
        answer = await asyncio.to_thread(ask, control, {"checkpoint": True}, _ASK_SECONDS)
        return int(answer["checkpoint"])

    async def savepoint(self) -> SavepointRecord:
        """Makes a savepoint beside the checkpoints. Raises SabotError if that is not possible."""
        return await asyncio.to_thread(create_savepoint, self._running_app(), None, _ASK_SECONDS)

    def new_place(self) -> Location:
        """Returns the place of a new savepoint beside the checkpoints."""
        return savepoint_place(self._running_app(), None)

    def _running_app(self) -> AppCheckpoints:
        assert self.app is not None  # without checkpoints there are no such actions
        return self.app

    async def _read(self, app: AppCheckpoints) -> None:
        try:
            self.records, self.damaged = await asyncio.to_thread(checkpoint_records, app)
        except (SabotError, OSError) as error:
            self._read_at = None
            _log.warning("the checkpoints cannot be read for the console: %s", error)
