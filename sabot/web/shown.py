"""An app as the screens see it: an App of this process, or the places of an app that runs elsewhere, or not at all."""

import asyncio
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sabot.base.redaction import scrubbed
from sabot.engine.checkpoint import ask
from sabot.engine.checkpoint.inspection import AppCheckpoints, control_of
from sabot.engine.plan.drawing import TaskFrame, frames_of
from sabot.engine.runtime.agents.runnable import any_durable
from sabot.engine.runtime.watch.figure_rings import FigureRings
from sabot.engine.runtime.watch.guarantees import EdgeGuarantee
from sabot.engine.runtime.watch.log_ring import LogRing
from sabot.engine.runtime.watch.run_record import RunEvent, shown_settings
from sabot.errors import UserError
from sabot.web.payloads import Payloads

if TYPE_CHECKING:
    from sabot.agents.app_jobs import AppJobs
    from sabot.app import App


@dataclass(frozen=True)
class RunFacts:
    """The facts of the present run of an app, or of its last one. `state`: starting, running, stopping, failed or stopped. `why`: the
    failure that has ended it, or "". `began`: the time when its process began to run it, in seconds since 1970. `events`: those of
    this run and of earlier ones, the oldest first.
    """

    version: str
    state: str
    why: str
    began: float
    restarts: int
    events: Sequence[RunEvent] = ()


class PageHead(ABC):
    """The head of pages. A new `figures.run` makes open pages load anew."""

    id: str
    figures: FigureRings

    @abstractmethod
    def notice(self) -> str:
        """Returns the words that each screen shows above all others, or ""."""


class ShownApp(PageHead):
    """The facts of one app that its screens know, and their ways to it. Used by the thread of the server.

    `payloads`: the values that pages may show. `checkpoints`: None if the app keeps none. `jobs`: those of its durable agents, or None if
    it has no such agents. `live`: the App, if this process has it: only then can its code be asked. `here`: True if it runs in
    this process. `state`: its state directory, or None. `program`: the words by which commands find the program, such as `shop:app`;
    none if they are not known. `folder`: the working directory in which they do.
    """

    log: LogRing
    payloads: Payloads
    checkpoints: AppCheckpoints | None
    jobs: "AppJobs | None"
    live: "App | None"
    program: Sequence[str]
    folder: Path
    here: bool
    state: Path | None
    _stop: tuple[str, str] | None = None  # the run that was asked to stop, and by whom

    @abstractmethod
    def run(self) -> RunFacts:
        """Returns the facts of the present run, or of the last one."""

    @abstractmethod
    def tasks(self) -> Sequence[TaskFrame]:
        """Returns the tasks of the plan, to be drawn. Raises SabotError if they are not known."""

    @abstractmethod
    def settings(self) -> Sequence[tuple[str, str, str]]:
        """Returns the name, the value and the meaning of the settings that a reader may see."""

    @abstractmethod
    def guarantees(self) -> Sequence[EdgeGuarantee]:
        """Returns the guarantees of the sources and sinks, as far as the last start has told them."""

    def start_words(self) -> str:
        """Returns the words for the program in a command that a person can copy: those of `program`, or a word to be replaced."""
        return shlex.join(self.program) or "MODULE:APP"

    def start_command(self, *options: str) -> str:
        """Returns the command that starts the app with its own state and these options, as a person can copy it into any shell."""
        state = () if self.state is None else ("--state", str(self.folder / self.state))
        start = f"sabot run {self.start_words()} {shlex.join([*state, *options])}".rstrip()
        return f"cd {shlex.quote(str(self.folder))} && {start}" if self.program else start

    @abstractmethod
    def refusal(self) -> str:
        """Returns the reason why nobody can be asked to act on the running app, or ""."""

    async def stop(self, by: str) -> None:
        """Asks the app to stop in good order, for the principal `by`. Raises SabotError, and UserError if it stops already: then nothing
        that was asked for with this stop is done.
        """
        run, earlier = self.figures.run, self._stop
        if earlier is not None and earlier[0] == run:
            raise UserError(f"a stop of the app is under way already: {earlier[1]} has asked for it")
        if self.run().state == "stopping":
            raise UserError("a stop of the app is under way already: it was not asked for on this page")
        self._stop = run, by  # before anything is awaited: of two at once one asks
        try:
            await self._ask_to_stop()
        except BaseException:
            self._stop = earlier
            raise

    @abstractmethod
    async def _ask_to_stop(self) -> None:
        """Asks the app to stop. Raises SabotError."""

    async def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Sends a request to the running app, as the command line does, and returns its answer. Raises UserError."""
        control = None if self.checkpoints is None else await asyncio.to_thread(control_of, self.checkpoints)
        if control is None:
            raise UserError("the app does not run on this machine", hint="its actions are there again after its start")
        return await asyncio.to_thread(ask, control, request, timeout)


class LiveApp(ShownApp):
    """An App of this process, as the screens see it."""

    def __init__(self, app: "App", payloads: Payloads, program: Sequence[str] = ()) -> None:
        self.id = app.id
        self.program, self.folder = program, Path.cwd()
        recorder = app.agent_runtime.runner.watch.recorder
        self.figures, self.log = recorder.figures, recorder.log
        self.payloads = payloads
        self.state = app.settings.state_dir
        location = app.settings.checkpoint_place
        self.checkpoints = None if location is None else AppCheckpoints(location, state=self.state)
        self.jobs = app.jobs if any_durable(app.spec.agents.values()) else None
        self.live = self._app = app
        self.here = True
        self._tasks: Sequence[TaskFrame] | None = None

    def run(self) -> RunFacts:
        runner = self._app.agent_runtime.runner
        return RunFacts(
            version=self._app.settings.version,
            state=runner.status.words,
            why=scrubbed(self.figures.last.figures.failure or ""),
            began=runner.watch.recorder.began,
            restarts=runner.status.restarts,
            events=runner.watch.recorder.events,
        )

    def tasks(self) -> Sequence[TaskFrame]:
        if self._tasks is None:
            self._tasks = frames_of(self._app.plan())
        return self._tasks

    def settings(self) -> Sequence[tuple[str, str, str]]:
        return shown_settings(self._app.settings)

    def guarantees(self) -> Sequence[EdgeGuarantee]:
        return self._app.agent_runtime.runner.watch.recorder.guarantees

    def notice(self) -> str:
        return ""

    def refusal(self) -> str:
        return ""

    async def _ask_to_stop(self) -> None:
        self._app.request_stop()
