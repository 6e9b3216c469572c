"""An app of another process, or a dead one, as the screens see it: made of its places, and read anew each second."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.inspection import AppCheckpoints, control_of
from sabot.engine.plan.drawing import TaskFrame, frames_from, frames_of
from sabot.engine.runtime.watch.figure_rings import FigureRings
from sabot.engine.runtime.watch.guarantees import EdgeGuarantee
from sabot.engine.runtime.watch.log_ring import LogRing
from sabot.engine.runtime.watch.run_record import RECORD_FILE, RunRecord, read_record, shown_settings
from sabot.errors import SabotError, UserError
from sabot.web.payloads import Payloads
from sabot.web.shown import RunFacts, ShownApp
from sabot.web.texts import moment

if TYPE_CHECKING:
    from sabot.app import App

_ASK_SECONDS = 20.0
_UNENDED = ("starting", "running", "stopping")


@dataclass(frozen=True)
class AppPlaces:
    """The places of an app. `state`: its state directory, or None. `app`: the App itself, for what needs its code, or None. `program`:
    as in `ShownApp`.
    """

    id: str
    state: Path | None = None
    checkpoints: AppCheckpoints | None = None
    journal: str | Path | None = None
    app: "App | None" = None
    program: Sequence[str] = ()


class KeptApp(ShownApp):
    """The app that has these places. `refresh` reads them; it is called before anything else, and then each second."""

    def __init__(self, places: AppPlaces, payloads: Payloads) -> None:
        from sabot.agents.app_jobs import AppJobs, AppJobStore, JournalAddress

        self.id = places.id
        self.payloads = payloads
        self.checkpoints = places.checkpoints
        self.live = places.app
        self.here = False
        self.state = places.state
        self.program, self.folder = places.program, Path.cwd()
        self.figures = FigureRings(dict)
        self.log = LogRing()
        self._places = places
        self._record: RunRecord | None = None
        self._problem = ""
        self._seen: tuple[int, int] | None = None  # of the file of the record: its inode and time
        self._tasks: Sequence[TaskFrame] = ()
        self._control: Path | None = None
        address = None if places.journal == "memory" else JournalAddress(str(places.journal), self.id, {})
        self.jobs = None if places.journal is None else AppJobs(AppJobStore(lambda: address, SYSTEM_CLOCK))

    @property
    def running(self) -> bool | None:
        """True if the app runs on this machine, False if it does not run, None if its places do not tell."""
        if self._control is not None:
            return True
        known = self._places.state is not None or (
            self.checkpoints is not None and isinstance(self.checkpoints.storage.directory, Path)
        )
        return False if known else None

    def refresh(self) -> None:
        """Reads the record, if it is a new one, and whether the app runs. Blocks. May be called by any thread, one at a time."""
        try:
            self._control = None if self.checkpoints is None else control_of(self.checkpoints)
        except (SabotError, OSError) as error:  # as of another user: other apps are shown all the same
            self._control, self._problem = None, f"The lock of the app cannot be read: {error}"
            return
        if self._places.state is None:
            return
        try:
            status = (self._places.state / RECORD_FILE).stat()
            seen = status.st_ino, status.st_mtime_ns
            if seen == self._seen:
                return
            record = read_record(self._places.state)
            if record is None:
                return
            tasks = frames_from(record.plan)
        except FileNotFoundError:
            return
        except (SabotError, OSError, KeyError, IndexError, TypeError, ValueError) as error:
            self._problem = f"The record of the run cannot be read: {error}"
            return
        self._problem, self._seen, self._record, self._tasks = "", seen, record, tasks
        if self.live is None:
            self.id = record.app  # until its first start has written the record, its name is that of the folder
        self.figures.load(record.run, record.figures)
        self.log.load(record.log)

    def run(self) -> RunFacts:
        record = self._record
        if record is None:
            state = "running" if self.running else "stopped" if self.running is False else "not known"
            return RunFacts("", state, self._problem, 0.0, 0)
        state = record.state
        if not self.running and state in _UNENDED:
            state = "killed"
        return RunFacts(record.version, state, record.why, record.began, record.restarts, record.events)

    def tasks(self) -> Sequence[TaskFrame]:
        if not self._tasks and self.live is not None:
            self._tasks = frames_of(self.live.plan())
        if not self._tasks:
            raise UserError("the plan is not known: the app has left no record of a run", hint="give --app MODULE:APP")
        return self._tasks

    def settings(self) -> Sequence[tuple[str, str, str]]:
        if self._record is not None:
            return self._record.settings
        return [] if self.live is None else shown_settings(self.live.settings)

    def guarantees(self) -> Sequence[EdgeGuarantee]:
        return () if self._record is None else self._record.guarantees

    def notice(self) -> str:
        if self._problem:
            return self._problem
        if self._record is None:
            return "Nothing is known here of the runs of this app: it has left no record in a state directory."
        at = moment(self._record.at)
        if self.running:
            return Markup(
                "As of {}: the app runs in another process, which tells its figures every ten seconds."
            ).format(at)
        if self.running is None:
            return Markup("As of {}: whether the app runs is not known on this machine.").format(at)
        if self._record.state in _UNENDED:
            return Markup("The app does not run: its process has ended without a stop. All is as of {}.").format(at)
        return Markup("The app does not run. All is as of {}.").format(at)

    def refusal(self) -> str:
        if self._control is not None:
            return ""
        why = "it does not run" if self.running is False else "its state directory is not known here"
        return f"The app cannot be stopped or asked for checkpoints from here: {why}."

    async def _ask_to_stop(self) -> None:
        await self.ask({"stop": True}, _ASK_SECONDS)
