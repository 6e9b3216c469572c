"""The record of the runs of an app in its state directory: what the console shows of an app of another process, or of a dead one.

A thread reads the figures once a second into rings, and writes the record each ten seconds and at the end. The file is replaced
as a whole, and is bounded: too long a log is cut, and too many figures are left out.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from sabot.api.settings import Settings
from sabot.base.dataclass import dataclass
from sabot.base.disk import make_folder, private, regular
from sabot.base.options import options_of
from sabot.base.redaction import redacted_url, scrubbed, scrubbed_values, without_password
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.plan.drawing import flat_frames, frames_of
from sabot.engine.runtime.agents.runnable import any_durable
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.watch.figure_rings import FigureRings, KeptFigures
from sabot.engine.runtime.watch.guarantees import EdgeGuarantee
from sabot.engine.runtime.watch.log_ring import LogLine, LogRing
from sabot.errors import SabotError, UserError

_log = logging.getLogger(__name__)

RECORD_FILE = "run.json"
_TICK_SECONDS = 1.0
_TICKS_A_WRITE = 10
_FIRST_WRITE = 4  # the tick from which on rates are known
_MOST_EVENTS = 100  # of each kind
_MOST_REASON = 1_000  # characters
_MOST_LOG = 250_000  # characters of the lines of the log
_MOST_BYTES = 4 << 20
_SETTINGS = (
    "broker",
    "state",
    "checkpoint_dir",
    "checkpoint_interval",
    "parallelism",
    "memory_budget",
    "restart",
    "start",
    "until",
)

EventKind: TypeAlias = Literal["start", "restart", "rescale", "killed", "failed", "checkpoint"]
"""The kind of an event of a run. killed: the process ended without a stop. failed: a failure has ended the run. checkpoint: one failed."""


@dataclass(frozen=True)
class RunEvent:
    """An event in the runs of an app. `at`: seconds since 1970; of a kill the time of the last record before it, so at most ten seconds
    earlier. `version`: that of the program, as the app names it.
    """

    at: float
    kind: EventKind
    reason: str
    version: str = ""


@dataclass(frozen=True)
class RunRecord:
    """The record of the runs of an app. `run`: another text for each process. `at`: the time when it was written. `state`: starting,
    running, stopping, failed or stopped. `settings`: name, value and meaning. `checkpoint_dir`, `journal`: the places as addresses
    without passwords; "" for places in the state directory. `plan`: as `flat_frames` gives it. `events`: the oldest first.
    """

    app: str
    run: str
    version: str
    pid: int
    at: float
    began: float
    state: str
    why: str
    restarts: int
    figures: KeptFigures
    settings: Sequence[tuple[str, str, str]] = ()
    checkpoint_dir: str = ""
    journal: str = ""
    durable: bool = False
    plan: Sequence[Mapping[str, Any]] = ()
    guarantees: Sequence[EdgeGuarantee] = ()
    events: Sequence[RunEvent] = ()
    log: Sequence[LogLine] = ()


def read_record(folder: Path) -> RunRecord | None:
    """Returns the record in a state directory, or None if there is none. Raises UserError if it cannot be read."""
    path = folder / RECORD_FILE
    try:
        with open(path, "rb", opener=regular) as file:
            text = file.read(_MOST_BYTES + 1)
        return msgspec.json.decode(text, type=RunRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            hint="it is written anew while the app runs",
        ) from error


def shown_settings(settings: Settings) -> list[tuple[str, str, str]]:
    """Returns the name, the value and the meaning of the settings that a reader may see: none of clients, and no passwords."""
    helps = options_of(Settings)
    rows = []
    for name in _SETTINGS:
        value = getattr(settings, name)
        text = redacted_url(value) if isinstance(value, str) else "" if value is None else repr(value)
        rows.append((name, scrubbed(text), helps[name].help))
    return rows


class RunRecorder:
    """The figures, the events and the log of an app's runs in this process, and the thread that records them.

    It is open while a run or a console needs it. It writes only between `begun` and the end of the run: before, another process may
    have the state directory. `figures`, `events` and `log` may be read by any thread.
    """

    def __init__(
        self,
        app: AppSpec,
        report: Callable[[], dict[str, Any]],
        status: AppStatus,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`report`: returns the figures, from any thread."""
        self.figures = FigureRings(report, clock)
        self.log = LogRing()
        self.began = clock.time()
        self._app, self._status, self._clock = app, status, clock
        self._folder: Path | None = None  # set while records are written
        self._events: deque[RunEvent] = deque()
        self._plan: Sequence[Mapping[str, Any]] | None = None
        self.guarantees: Sequence[EdgeGuarantee] = ()
        self._holds = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._refused = False  # the last write has failed

    @property
    def events(self) -> Sequence[RunEvent]:
        """The events, the oldest first; with those of earlier processes."""
        with self._lock:
            return list(self._events)

    def open(self) -> None:
        """Begins to read the figures once a second. Each `open` needs one `close`."""
        with self._lock:
            self._holds += 1
            if self._holds > 1:
                return
            self.log.open()
            self._over = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._over,), name="sabot-figures", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends what `open` began. Blocks until the thread has ended, if nobody else needs it."""
        with self._lock:
            self._holds -= 1
            if self._holds:
                return
            thread, self._thread = self._thread, None
            self._over.set()
        self.log.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def begun(self) -> None:
        """Begins to write: this process has the state directory now. Blocks. Idempotent."""
        folder = self._app.settings.state_dir
        if folder is None or self._folder is not None:
            return
        try:
            before = read_record(folder)
        except UserError as error:
            _log.warning("the record of earlier runs is lost: %s", error)
            before = None
        with self._lock:
            if before is not None and before.run != self.figures.run:
                self._events.extendleft(reversed(before.events))
                if before.state not in ("stopped", "failed"):
                    said = "its process ended without a stop: it was killed, or the machine failed; this is its last sign of life"
                    self._events.append(RunEvent(before.at, "killed", said, before.version))
        self._folder = folder
        self.note("start", "")
        self._write()

    def ended(self) -> None:
        """Writes the record for the last time. Blocks. Idempotent."""
        if self._folder is not None:
            self.figures.take()
            self._write()
            self._folder = None

    def note(self, kind: EventKind, reason: str) -> None:
        """Adds an event that happens now."""
        event = RunEvent(self._clock.time(), kind, scrubbed(reason)[:_MOST_REASON], self._app.settings.version)
        with self._lock:
            self._events.append(event)
            same = [each for each in self._events if each.kind == kind]
            if len(same) > _MOST_EVENTS:
                self._events.remove(same[0])

    def _run(self, over: threading.Event) -> None:
        following = self._clock.monotonic()
        while not over.wait(max(0.0, following - self._clock.monotonic())):
            following = max(following + _TICK_SECONDS, self._clock.monotonic())
            try:
                if (number := self.figures.take().number) % _TICKS_A_WRITE == 0 or number == _FIRST_WRITE:
                    self._write()
            except Exception:
                _log.exception("the figures of app %s could not be read", self._app.id)

    def _write(self) -> None:
        folder = self._folder
        if folder is None:
            return
        path = folder / RECORD_FILE
        unfinished = path.with_suffix(".tmp")
        try:
            text = self._text()
            make_folder(folder)
            with suppress(FileNotFoundError):
                unfinished.unlink()
            with open(unfinished, "xb", opener=private) as file:
                file.write(text)
            os.replace(unfinished, path)
            self._refused = False
        except OSError as error:  # the app itself needs no record
            if not self._refused:
                _log.warning("the record of the run cannot be written: %s", error)
            self._refused = True

    def _text(self) -> bytes:
        app, settings = self._app, self._app.settings
        figures = self.figures.kept()
        record = RunRecord(
            app=app.id,
            run=self.figures.run,
            version=settings.version,
            pid=os.getpid(),
            at=self._clock.time(),
            began=self.began,
            state=self._status.words,
            why=scrubbed(str(figures.ticks[-1].figures.failure or "") if figures.ticks else ""),
            restarts=self._status.restarts,
            figures=figures,
            settings=shown_settings(settings),
            checkpoint_dir=_place(settings.checkpoint_dir),
            journal=_place(settings.journal, without_password),
            durable=any_durable(self._app.agents.values()),
            plan=self._flat_plan(),
            guarantees=self.guarantees,
            events=self.events,
            log=self._end_of_log(),
        )
        text = _encoded(record)
        if len(text) > _MOST_BYTES:
            text = _encoded(replace(record, plan=(), log=(), figures=replace(figures, ticks=())))
        return text

    def _flat_plan(self) -> Sequence[Mapping[str, Any]]:
        if self._plan is None:
            try:
                self._plan = flat_frames(frames_of(self._app.plan()))
            except SabotError:  # the console of the app says why
                self._plan = ()
        return self._plan

    def _end_of_log(self) -> list[LogLine]:
        left, found = _MOST_LOG, []
        for line in self.log.lines():
            left -= line.characters + 100
            if left < 0:
                break
            found.append(line)
        return found[::-1]


def _place(given: object, shown: Callable[[str], str] = redacted_url) -> str:
    """Returns a place of the settings as another process finds it; "" if there is none, or if only the program can open it. `shown`: leaves
    passwords out of an address.
    """
    if given is None or isinstance(given, tuple):
        return ""
    text = str(given)
    return shown(text) if "://" in text or text == "memory" else str(Path(text).absolute())


def _encoded(record: RunRecord) -> bytes:
    """Returns the record as JSON, without known secrets. What JSON cannot say is a text."""
    plain = msgspec.to_builtins(record, enc_hook=str)
    for name in ("figures", "plan", "log", "events"):  # a line may be older than the secret in it
        plain[name] = scrubbed_values(plain[name])
    return msgspec.json.encode(plain)
