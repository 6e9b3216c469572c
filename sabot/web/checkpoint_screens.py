"""The screens of the checkpoints of an app and of one of them, read in threads: disks and object stores may be slow."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec

from sabot.base.redaction import has_password, redacted_url, scrubbed
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.inspection import (
    AppCheckpoints,
    CheckpointRecord,
    KeptSavepoint,
    SavepointRecord,
    checkpoint_records,
    control_of,
    copy_checkpoint,
    create_savepoint,
    savepoint_place,
    savepoint_records,
    task_records,
)
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.places import Location
from sabot.engine.runtime.life.outcomes import StateOutcome
from sabot.errors import SabotError, UserError
from sabot.web.commands import said_by
from sabot.web.screen import BY, Action, Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

_log = logging.getLogger(__name__)

_ASK_SECONDS = 60.0
_MOST_FAILURES = 10
_MOST_REASON = 2_000  # characters


class KeptCheckpoints:
    """The kept checkpoints of an app, as they were when they were last read. Used by the server's thread.

    `app`: None if the app keeps no checkpoints. `records`: the oldest first. `damaged`: the message about a damaged one, or "". `unread`:
    True until they were read for the first time.
    """

    def __init__(self, app: AppCheckpoints | None) -> None:
        self.app = app
        self.records: list[CheckpointRecord] = []
        self.damaged = ""
        self.unread = app is not None
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

    def rows(self, query: Query) -> Rows:
        """Returns the records for CSV and JSON."""
        return [asdict(each) for each in self.records]

    async def savepoint(self) -> SavepointRecord:
        """Makes a savepoint beside the checkpoints. Raises SabotError if that is not possible."""
        return await asyncio.to_thread(create_savepoint, self.places(), None, _ASK_SECONDS)

    def new_place(self) -> Location:
        """Returns the place of a new savepoint beside the checkpoints."""
        return savepoint_place(self.places(), None)

    def places(self) -> AppCheckpoints:
        """Returns the app, which keeps checkpoints."""
        assert self.app is not None  # without checkpoints there are no such actions
        return self.app

    async def _read(self, app: AppCheckpoints) -> None:
        try:
            self.records, self.damaged = await asyncio.to_thread(checkpoint_records, app)
            self.unread = False
        except (SabotError, OSError) as error:
            self._read_at = None
            _log.warning("the checkpoints cannot be read for the console: %s", error)


class CheckpointScreens:
    """The facts of the screen of checkpoints, and its actions. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._kept = KeptCheckpoints(app.checkpoints)
        self._savepoint_at_stop: Location | None = None

    def group(self) -> ScreenGroup:
        """Returns the screens and their actions; none if the app keeps no checkpoints."""
        if self._kept.app is None:
            return ScreenGroup()
        screen = Screen(
            "Checkpoints",
            "/checkpoints",
            ("checkpoints",),
            self._checkpoints_facts,
            self._read_checkpoints,
            self._kept.rows,
        )
        actions: dict[str, Action] = {
            "checkpoint": self._checkpoint,
            "savepoint": self._savepoint,
            "stop-with-savepoint": self._stop_with_savepoint,
            "drop-savepoint": self._drop_savepoint,
        }
        one = Screen("Checkpoint", "/checkpoint", more=self._one_facts, rows=self._task_rows, listed=False)
        plan = Screen(
            "New program",
            "/checkpoint/plan",
            more=self._plan_facts,
            rows=self._plan_rows,
            role="act",
            listed=False,
        )
        return ScreenGroup({"checkpoints": screen, "checkpoint": one, "checkpoint-plan": plan}, actions)

    def _checkpoints_facts(self, query: Query) -> dict[str, Any]:
        statistics = self._app.figures.last.figures.checkpoints
        self._kept.read_if_new(statistics.last_id)
        return {
            "kept": list(reversed(self._kept.records)),
            "damaged": self._kept.damaged,
            "unread": self._kept.unread,
            "statistics": statistics,
            "failures": [each for each in reversed(self._app.run().events) if each.kind == "checkpoint"][
                :_MOST_FAILURES
            ],
        }

    async def _read_checkpoints(self, query: Query) -> dict[str, Any]:
        found, problem = await run_in_thread(self._savepoints)
        return {
            "place": redacted_url(self._kept.place),
            "savepoints": list(reversed(found)),
            "problem": problem,
            "refusal": self._app.refusal(),
            "start": self._app.start_command,
        }

    def _savepoints(self) -> tuple[list[KeptSavepoint], str]:
        """Returns the savepoints, and the reason why they cannot be read, or "". Blocks."""
        try:
            return [*savepoint_records(self._kept.places()).values()], ""
        except SabotError as error:
            return [], scrubbed(str(error))

    async def _one_facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the page of one checkpoint. Raises UserError if it is not there."""
        manifest = await run_in_thread(self._manifest, query)
        return {
            "checkpoint": manifest,
            "size": sum({file.name: file.size for file in manifest.contents.values()}.values()),
            "tasks": task_records(manifest),
            "version": manifest.describe.get("version", ""),
        }

    async def _task_rows(self, query: Query) -> Rows:
        return [asdict(each) for each in task_records(await run_in_thread(self._manifest, query))]

    async def _plan_facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the page that says what the program, as it is on the disk now, would keep. Raises UserError if there is
        no such checkpoint.
        """
        manifest = await run_in_thread(self._manifest, query)
        facts = {"checkpoint": manifest, "program": " ".join(self._app.program), "outcomes": None, "problem": ""}
        try:
            outcomes, problem = await self._outcomes(manifest)
        except UserError as error:
            return facts | {"problem": scrubbed(str(error))}
        return facts | {"outcomes": outcomes, "problem": problem}

    async def _plan_rows(self, query: Query) -> Rows:
        outcomes, _ = await self._outcomes(await run_in_thread(self._manifest, query))
        return [asdict(each) for each in outcomes]

    async def _outcomes(self, manifest: Manifest) -> tuple[list[StateOutcome], str]:
        """Returns the outcome for each stored state, and the reason why a start would be refused, or "". The program is loaded by a
        process of its own: this one has the code with which it began. Raises UserError if the outcomes are not known.
        """
        app, program = self._kept.places(), self._app.program
        if not program:
            raise UserError(
                "the console does not know the program", hint="it does if the app runs by sabot run MODULE:APP"
            )
        if isinstance(app.location, tuple) or has_password(str(app.location)):
            raise UserError(
                "the place of the checkpoints cannot be given to another process: it has a password, or is a file system object"
            )
        place = f"{app.location}@{manifest.checkpoint_id}"
        status, out, err = await said_by("plan", *program, "--against", place, "--json")
        outcomes = [found for line in out.splitlines() if (found := _outcome(line)) is not None]
        problem = scrubbed(err.strip().rpartition("\n")[2][:_MOST_REASON]) if status else ""
        if status and not outcomes:
            raise UserError(f"the program cannot be planned: {problem}")
        return outcomes, problem

    def _manifest(self, query: Query) -> Manifest:
        """Returns the manifest of the checkpoint of an address. Blocks. Raises UserError."""
        wanted = query.get("id", "")
        app = self._kept.places()
        found = next((each for each in app.storage.ids() if str(each) == wanted), None)
        if found is None:
            raise UserError(
                "there is no such checkpoint any more: only the last ones are kept", hint="a savepoint stays"
            )
        return app.manifest(found)

    async def _checkpoint(self, form: Mapping[str, str]) -> str:
        taken = int((await self._app.ask({"checkpoint": True}, _ASK_SECONDS))["checkpoint"])
        return f"Checkpoint {taken} is complete."

    async def _savepoint(self, form: Mapping[str, str]) -> str:
        made = await self._kept.savepoint()
        place = redacted_url(made.savepoint)
        start = self._app.start_command("--from", place)
        return f"Checkpoint {made.checkpoint} is kept in {place}\nA start from it: {start}"

    async def _drop_savepoint(self, form: Mapping[str, str]) -> str:
        return await run_in_thread(self._drop, form.get("savepoint", ""))

    def _drop(self, name: str) -> str:
        """Removes the savepoint of this name. Blocks. Raises SabotError."""
        app = self._kept.places()
        found = next((place for place, each in savepoint_records(app).items() if each.name == name), None)
        if found is None:
            raise UserError("there is no such savepoint any more", hint="load the list again")
        app.storage.drop_savepoint(found)
        return f"The savepoint in {redacted_url(found)} is removed."

    async def _stop_with_savepoint(self, form: Mapping[str, str]) -> str:
        place = self._kept.new_place()
        if not self._app.here:
            await self._app.stop(form[BY])
            return await self._savepoint_of_another(place)
        # before the stop: another thread calls `after_run`
        before, self._savepoint_at_stop = (self._savepoint_at_stop, place)
        try:
            await self._app.stop(form[BY])
        except SabotError:
            self._savepoint_at_stop = before
            raise
        return f"The app stops. Its last checkpoint is then kept in {redacted_url(str(place))}"

    async def _savepoint_of_another(self, place: Location) -> str:
        """Waits until the app of another process has stopped, and keeps its last checkpoint. Raises SabotError."""
        app = self._kept.places()
        deadline = SYSTEM_CLOCK.monotonic() + _ASK_SECONDS
        while await asyncio.to_thread(control_of, app) is not None:
            if SYSTEM_CLOCK.monotonic() > deadline:
                raise UserError(
                    f"the app has not stopped within {_ASK_SECONDS:g} s, and nothing is kept",
                    hint="make a savepoint when it has stopped",
                )
            await asyncio.sleep(0.2)
        made = await asyncio.to_thread(copy_checkpoint, app, place)
        return f"The app has stopped. Checkpoint {made.checkpoint} is kept in {redacted_url(made.savepoint)}"

    def after_run(self) -> SavepointRecord | None:
        """Makes the savepoint that was asked for with the stop, and returns it; None if none was. Called when the run has ended without
        an error, by any thread. Blocks. Raises SabotError.
        """
        place, app = self._savepoint_at_stop, self._kept.app
        return None if place is None or app is None else copy_checkpoint(app, place)


def _outcome(line: str) -> StateOutcome | None:
    """Returns the outcome in a line of the command's output, or None for a line that the program itself has printed."""
    try:
        return msgspec.json.decode(line, type=StateOutcome)
    except msgspec.DecodeError:
        return None
