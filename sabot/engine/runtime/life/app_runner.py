"""The life of an app: its streams and its agents, started, restarted, checkpointed and stopped together.

The agents run in one task, so their state has one owner and its snapshot is taken at one moment (design decision 10).
One coordinator takes the checkpoints of agents and streams together. A `Run` is everything that is open from a start
to its stop. An app may have several runs, one after another.

        run  ─▶ a Run, until its inputs have ended, or it is stopped or broken ─▶ its stop ─▶ the next Run, if `restart=` allows it
"""

import asyncio
import errno
import logging
import math
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sabot.api.nodes.changes import Materialize
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import Write
from sabot.base.backoff import Backoff, Failures
from sabot.base.config import parse_broker
from sabot.base.figures import AppFigures
from sabot.base.metrics import Health, Metrics, Sample
from sabot.base.os_errors import errno_of
from sabot.base.probes import Page, page_of
from sabot.base.process_exit import Exit, find_exit
from sabot.base.threads import Handle, call_on_loop, run_in_thread, run_to_end, threads
from sabot.base.version import sabot_version
from sabot.clock import process_cpu_seconds
from sabot.connectors.memory import CountSink, MemoryBroker, TableSink
from sabot.engine.calls.judging import judged_by
from sabot.engine.checkpoint import Coordinator
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.host import in_notebook
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.origin import Origin
from sabot.engine.runtime.life.run import LASTING, Run, Undelivered
from sabot.engine.runtime.life.run_record import RunRecorder
from sabot.engine.runtime.life.settings import checkpoint_interval
from sabot.engine.runtime.tasks.blocking import BlockingMonitor
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.watch.app_rates import AppReading
from sabot.engine.runtime.watch.guarantees import guarantees_of
from sabot.engine.runtime.watch.reports import Reporter, Summary, screen_of_person, summary_of
from sabot.errors import (
    AgentFailed,
    BrokerUnavailable,
    CheckpointFailed,
    DataError,
    SabotError,
    TransientError,
    UserError,
    WorkerLost,
)
from sabot.kafka import lost_brokers

if TYPE_CHECKING:
    import pyarrow as pa


_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0  # for the event loop to answer a probe
_FIRST_RECORD_SECONDS = (
    10.0  # the longest wait of `start` for the first record of a stream without a schema; `run` waits without a limit
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK = Backoff(5.0, 60.0)  # the waits of a start that finds no room on the disk
_RESTART_MEMORY_SECONDS = 600.0  # older failures do not count against `restart=`
_MOST_EDGES = 5  # that a line of the log names
_MOST_FAILURES = 64  # that are kept where restarts have no end; the wait has long been the longest

_running: dict[tuple[str, str], "AppRunner"] = {}  # by the id and the broker of the app: the last one that has started


class AppRunner:
    """Runs the agents and the streams of an app together, and takes their checkpoints."""

    def __init__(self, app: AppSpec) -> None:
        self.app = app
        self.coordinator = Coordinator(timeout=app.settings.checkpoint_timeout_s, clock=app.clock)
        self.coordinator.on_complete.append(lambda manifest: self._followed())
        self.coordinator.on_failed = self._checkpoint_failed
        self.metrics = Metrics(app.id, self._samples, {"/healthz": self._healthz, "/ready": self._readiness})
        self.health: Health | None = None  # of child processes
        self.restored_from: int | None = None
        self.left_behind: list[str] = []  # calls that ignored their cancellation when the app stopped
        self.restarts = 0
        self.recorder = RunRecorder(app, self.report, lambda: self.state, lambda: self.restarts)
        self._recording = False
        self._origin = Origin(app)
        self._watch: BlockingMonitor | None = None
        self._reporter: Reporter | None = None
        self._began = self._ended = 0.0  # the last run, on the app's steady clock
        self._run: Run | None = None  # set from the start to the end of the stop
        self._last_figures: dict[str, Any] = {name: {} for name in LASTING}  # those of the last run
        self._failure: SabotError | None = None  # the failure that ended the last run
        self._stalled_by: SabotError | None = None  # of the last run, as in `Run`
        self._left: list[tuple[str, Handle]] = []  # threads of earlier runs that did not end
        self._has_run = self._can_go_back = False
        self._goes_on = False  # the last run has ended for another one to begin
        self._in_run = False  # True while `run` waits and will raise failures
        self._start_failed = False  # the last start has not ended in a run
        self._will_restart = False  # True while `run` waits to begin another run after a failure
        self.says_summary = True
        """False if `run` does not print its counts at the end."""
        self._exit: Exit | None = None  # the user's code asked for the end of the process
        self._leaving: asyncio.Task[None] | None = None
        self._starting: asyncio.Event | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._stop_asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.loop_thread: int | None = None  # the thread of that loop

    @property
    def journal(self) -> Any:
        """The journal of durable agents (`journal.Journal`), as long as it is open here, else None."""
        return None if self._run is None else self._run.journal

    @property
    def running(self) -> bool:
        """True from the beginning of the start to the end of `stop`."""
        return self._run is not None

    @property
    def started(self) -> bool:
        """True while everything is open and runs, before the stop begins."""
        return self._run is not None and self._run.running

    @property
    def starting(self) -> bool:
        """True while everything is being opened."""
        return self._starting is not None

    @property
    def state(self) -> str:
        """The state of the app in words: starting, running, stopping, failed or stopped."""
        state = (
            "running" if self.started else "starting" if self.starting else "stopping" if self.running else "stopped"
        )
        return "failed" if (self.failure or self.stalled_by) and state != "starting" else state

    @property
    def failure(self) -> SabotError | None:
        """The failure that has ended this run, or the last one, or None. After a failure nothing is read or saved any
        more.
        """
        return self._failure if self._run is None else self._run.failure

    @property
    def stalled_by(self) -> SabotError | None:
        """The failure of an agent, if the streams of this run, or of the last one, wait for rows of that agent for
        ever. Otherwise None.
        """
        return self._stalled_by if self._run is None else self._run.stalled_by

    def raise_failure(self) -> None:
        """Raises the failure that has ended the app since its `start`, if there is one. All calls on the app except
        `run` call this first; `run` raises the failure itself.
        """
        if self.started and self._loop is not None and self._loop.is_closed():
            raise UserError(
                f"the event loop in which app {self.app.id} was started has ended, so the app cannot go on",
                hint="call start, send and stop inside one asyncio.run(…); this process still owns the app's directories",
            )
        if self.failure is not None and self.started and not self._in_run:
            raise self.failure

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Restores the last checkpoint, if there is one, and starts every agent, every stream and the periodic checkpoints."""
        if self.started:
            self.raise_failure()
            return
        self._expect_stop()
        try:
            await self._open()
        except SabotError as error:
            if (asked := find_exit(error)) is not None:
                raise asked from None
            raise

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop of this run, or of the last one; None before the first one. It may be closed."""
        return self._loop

    def _expect_stop(self) -> None:
        """Makes `request_stop` apply to the run that begins. Idempotent until that run is over."""
        if self.started or self._in_run or self._starting is not None:
            return
        self._loop = asyncio.get_running_loop()
        self.loop_thread = threading.get_ident()
        self._stop_asked = asyncio.Event()
        self._exit = None

    async def _open(self) -> None:
        if self._starting is not None:
            raise UserError(f"app {self.app.id} is starting already")
        self._failure = self._stalled_by = None
        self._starting = asyncio.Event()
        self._start_failed = True
        try:
            await self._take_place()
            if left := [name for name, thread in self._left if thread.is_alive()]:
                raise UserError(
                    f"app {self.app.id}: a thread of the earlier run has not ended: {left[0]}",
                    hint="restart the process, because two runs cannot use the same objects at once",
                )
            if not self._recording and not threads.simulated:
                self._recording = True
                self.recorder.open()
            self._run = run = Run(
                self.app,
                coordinator=self.coordinator,
                origin=self._origin,
                metrics=self.metrics,
                stop_asked=self._stop_asked,
                first_record_s=math.inf if self._in_run else _FIRST_RECORD_SECONDS,
                heed=self._heed,
                restarts=self.restarts,
                figures=self.report,
                in_run=self._in_run,
            )
            self._began = self.app.clock.monotonic()
            program = f"{self.app.id} {self.app.settings.version}".rstrip()
            python = platform.python_version()
            _log.info("app %s starts: Sabot %s, Python %s, process %d", program, sabot_version(), python, os.getpid())
            try:
                try:
                    await run.open()
                finally:
                    self.restored_from = run.restored_from
                self._tell_guarantees()
                if self._recording:  # without an await: else agents would run before the start is complete
                    self.recorder.begun()
            except BaseException:
                await run_to_end(run.release())
                raise
            self._has_run, self._start_failed = True, False
            _running[self._place] = self
            if self.app.workers is not None:
                self.app.workers.begun()
            self._began = self.app.clock.monotonic()
            if not threads.simulated:
                self._watch = BlockingMonitor(run.busy)
                screen = screen_of_person() if self._in_run else None
                every = self.app.settings.report_s
                self._reporter = Reporter(self._read, self.progress, every, screen=screen, clock=self.app.clock)
        except BaseException:
            await self._run_is_over()
            for agent in self.app.agents.values():
                agent.is_not_started()
            raise
        finally:
            self._starting.set()
            self._starting = None

    def _tell_guarantees(self) -> None:
        """Logs the guarantees of all sources and sinks, one line for each guarantee, and gives them to the record."""
        try:
            with judged_by(self.app.judge_of_functions()):
                edges = guarantees_of(self.app.plan(), self.app.ends, self.app.settings)
        except SabotError:  # the plan is known only with the columns of the data
            return
        self.recorder.guarantees = edges
        for said in dict.fromkeys(each.guarantee for each in edges):
            names = [f"{each.way} {each.name}" for each in edges if each.guarantee == said]
            more = f" and {len(names) - _MOST_EDGES} more" if len(names) > _MOST_EDGES else ""
            _log.info("%s%s: %s", ", ".join(names[:_MOST_EDGES]), more, said)

    @property
    def _place(self) -> tuple[str, str]:
        return self.app.id, self.app.settings.broker

    async def _take_place(self) -> None:
        """Stops, in a notebook, the app of this id that runs in the same event loop: its cell was run again, and the app of
        that name is now this one.
        """
        before = _running.get(self._place)
        if before is None or before is self or before.loop is not self._loop or not in_notebook():
            return
        _log.warning(
            "app %s: the App of an earlier cell still runs; it is stopped, since this one takes its place", self.app.id
        )
        try:
            await before.stop()
        except SabotError as error:
            _log.warning("app %s: the App of the earlier cell: %s", self.app.id, error)

    async def _run_is_over(self) -> None:
        """Stores the results of a run that are needed after its end. Outside of `run`, which may begin another one, also
        ends what lasts over several runs.
        """
        if _running.get(self._place) is self:
            del _running[self._place]
        for watching in (self._watch, self._reporter):
            if watching is not None:
                watching.close()
        self._ended = self.app.clock.monotonic()
        run, self._run, self._watch, self._reporter = self._run, None, None, None
        if run is not None:
            self._failure, self._stalled_by = run.failure, run.stalled_by
            self._last_figures = run.last_figures
            self._can_go_back = run.can_go_back
            self._goes_on = run.goes_on.is_set()
            self._left += run.left
            self.left_behind[:] = run.left_behind
        if not self._in_run:
            await self._life_is_over()

    async def _life_is_over(self) -> None:
        """Writes the record of the run for the last time, and closes the port of the metrics, which stays open while a
        run follows on another one.
        """
        if self._recording:
            self._recording = False
            if self._failure is not None:
                self.recorder.note("failed", str(self._failure))
            self.recorder.ended()
            self.recorder.close()
        if self.metrics.port is not None:
            await run_to_end(run_in_thread(self.metrics.close))

    def _checkpoint_failed(self) -> None:
        self.recorder.note("checkpoint", self.coordinator.statistics()["last_error"])
        if self._run is not None:
            self._run.checkpoint_ended(failed=True)

    async def stop(self, *, drain: bool = False) -> None:
        """Takes a last checkpoint, and stops everything. `drain`: rows that were read are processed first. Idempotent."""
        if self._loop is not None and self._loop.is_closed():
            self.raise_failure()
        if self._starting is not None:
            self._stop_asked.set()  # the start may be waiting for the first record of a stream
            await self._starting.wait()
        if self._stopping is None:
            if not self.started:
                return
            self._stopping = asyncio.ensure_future(self._stop(drain))
            self._stopping.add_done_callback(lambda _: setattr(self, "_stopping", None))
        stopping = self._stopping
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:  # everything is closed, but without the last checkpoint
            stopping.cancel()
            await run_to_end(_ended(stopping))
            raise

    async def _stop(self, drain: bool) -> None:
        assert self._run is not None
        try:
            await self._run.stop(drain=drain)
        finally:
            await self._run_is_over()

    def request_stop(self) -> None:
        """Makes `run` stop in an orderly way; from any thread or signal handler."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    def _heed(self, error: BaseException | None) -> None:
        """Stores an exit of the process that the user's code has asked for, if this error contains one, and begins an
        orderly stop; the exit is raised after it. Ignores all other errors.
        """
        asked = find_exit(error)
        if asked is None or self._exit is not None or self._loop is None:
            return
        self._exit = asked
        self._stop_asked.set()
        if not self._in_run:
            self._leaving = self._loop.create_task(self._leave(asked), name="the user's exit")

    async def _leave(self, asked: Exit) -> None:
        """Makes the event loop raise the exit once everything is closed. Called if no caller waits in `run`, which
        would raise it.
        """
        try:
            await self.stop()
        except SabotError as error:
            _log.error("%s", error)
        asyncio.get_running_loop().call_soon(_raise, asked)

    # -- run and restart --------------------------------------------------------------------------------------------------

    async def run(self, listening: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Runs the app until every input has ended, no agent is left, or the app is stopped. Raises AgentFailed at
        the end, or the KeyboardInterrupt or SystemExit that the user's code raised.

        `listening`: a context that is entered for the whole call and may ask for the stop, such as signal handlers.
        From its start on, `request_stop` applies to this call.
        """
        if not self.app.agents and not self.app.ends:
            raise UserError(
                f"app {self.app.id} has no agents and no streams",
                hint="put @app.agent(...) above a function, or give a stream a sink: app.stream(...).to(...)",
            )
        self._expect_stop()
        before, self._in_run = self._in_run, True
        try:
            with listening():
                await self._run_again_and_again()
        finally:
            self._in_run = before
            if self._has_run and self.says_summary:
                self._print_summary()
            if not self.started:
                await self._life_is_over()

    async def _run_again_and_again(self) -> None:
        failed_at: list[float] = []
        full = Failures(_FULL_DISK)
        self._origin.restarts(None)
        while True:
            error, engine_failure, unfinished = await self._run_once()
            self._failure = error or engine_failure or self._failure
            for each in (error, engine_failure, unfinished):
                self._heed(each)
            if self._exit is not None:
                raise self._exit
            refused = None if isinstance(unfinished, CheckpointFailed | BrokerUnavailable | Undelivered) else unfinished
            cause = error or engine_failure or refused
            if cause is None and self._goes_on and not self._stop_asked.is_set():
                if unfinished is not None:
                    _log.warning("app %s: %s", self.app.id, unfinished)
                if self.app.workers is not None:
                    self.recorder.note("rescale", f"to {self.app.workers.workers} workers, as asked for")
                self._origin.restarts(self.coordinator.statistics()["last_id"])
                continue
            if cause is None:
                break
            maker = self.app.workers
            if await self._may_wait_for_room(cause, full):
                continue
            if (maker is not None and maker.tried_enough) or not await self._may_restart(cause, failed_at):
                if not self._may_take_back(cause):
                    break
                failed_at.clear()
        if error is not None:
            raise error
        failures = [agent.error for agent in self.app.agents.values() if agent.error is not None]
        if not failures and unfinished is not None:
            raise unfinished
        if failures:
            raise AgentFailed("; ".join(f.message for f in failures), hint=failures[0].hint) from failures[0].__cause__

    async def _run_once(self) -> tuple[SabotError | None, SabotError | None, SabotError | None]:
        """Runs from one start to its stop. Returns three errors, each None if there was none: the one that ended the
        run, the one that broke the task of the agents (not the failure of one agent), and the one that the stop
        raised.
        """
        error: SabotError | None = None
        run: Run | None = None
        if self._stop_asked.is_set():
            return None, None, None
        try:
            if not self.started:
                await self._open()
            run = self._run
            assert run is not None
            await run.until_over()
        except StoppedEarly as stopped:
            _log.info("%s", stopped)
        except SabotError as failed:
            if isinstance(failed, WorkerLost) and self._run is None and self._stop_asked.is_set():
                # by the same signal
                _log.info("app %s: %s, while it was stopped before its start was complete", self.app.id, failed)
            else:
                error = failed
        finally:
            run = run or self._run
            unfinished = await self._stopped()
        if run is None:
            return error, None, unfinished
        return (error if error is None or run.taken is None else run.taken), run.agents_failure, unfinished

    async def _stopped(self) -> SabotError | None:
        """Stops the app. Returns the error of `stop` instead of raising it, because it is reported only if there is
        no worse error.
        """
        try:
            await self.stop()
        except SabotError as error:
            return error
        return None

    async def _may_restart(self, error: SabotError, failed_at: list[float]) -> bool:
        """Waits as long as `restart=` asks for, and returns True if the app restarts from its last checkpoint.

        Returns False without a wait after an error that would occur again: a UserError or a DataError, unless it was
        caused by something outside. Returns False too if `restart=` allows no more restarts, if a thread of the last
        run still runs, if a stop is requested, and after a failed first start unless a worker was lost, or unless
        restarts have no end and something outside has failed. `failed_at`: the times of the earlier failures; this
        method adds one.
        """
        attempts, backoff = self.app.settings.restarts
        outside = isinstance(error, TransientError) or isinstance(error.__cause__, OSError | TransientError)
        lasting = isinstance(error, UserError | DataError) and not outside
        hanging = any(thread.is_alive() for _, thread in self._left)
        # If the first start fails, a restart would usually fail again. The death of a worker may be an accident.
        begins = attempts is None and outside and not self._has_run
        can_go_back = self._can_go_back and (self._has_run or isinstance(error, WorkerLost))
        if lasting or hanging or not (can_go_back or begins) or self._stop_asked.is_set():
            return False
        now = self.app.clock.monotonic()
        if attempts is not None:
            failed_at[:] = [*(at for at in failed_at if now - at < _RESTART_MEMORY_SECONDS), now]
            if len(failed_at) > attempts:
                return False
        else:  # the waits double until the app has run for so long
            if failed_at and now - failed_at[-1] - backoff.wait_s(len(failed_at)) > _RESTART_MEMORY_SECONDS:
                failed_at.clear()
            failed_at[:] = [*failed_at[-_MOST_FAILURES:], now]
        delay_s = backoff.wait_s(len(failed_at))
        self._note_restart(error)
        _log.error(
            "app %s: %s; restart %d%s from the last checkpoint in %g s",
            *(self.app.id, error, len(failed_at), "" if attempts is None else f" of {attempts}", delay_s),
        )
        return await self._waited(delay_s)

    async def _may_wait_for_room(self, error: SabotError, full: Failures) -> bool:
        """Waits and returns True if the disk is full: of a start, or of a running app that has to go back to its last
        checkpoint, because output that waits for its checkpoint, or state, cannot be written. The waits have no end, and
        do not count against `restart=`, unless that is "none". `full`: these failures in a row.

        Returns False without a wait after another error, if a thread of the last run still runs, if a stop is requested,
        or if the app cannot go back.
        """
        hanging = any(thread.is_alive() for _, thread in self._left)
        goes_back = self._has_run and self._can_go_back and self.app.settings.restarts.attempts != 0
        if errno_of(error) not in _NO_ROOM or hanging or self._stop_asked.is_set():
            return False
        if not self._start_failed and not goes_back:
            return False
        now = self.app.clock.monotonic()
        if now - full.until_s > _RESTART_MEMORY_SECONDS:  # the app has run for so long
            full.note("")
        full.note(str(error), now)
        wait_s = full.until_s - now
        if self._start_failed:
            self.recorder.note("start", str(error))
        else:
            self._note_restart(error)
        what = "the start" if self._start_failed else "the app"
        _log.error("app %s: %s; %s waits for room, and tries again in %g s", self.app.id, error, what, wait_s)
        return await self._waited(wait_s)

    def _note_restart(self, error: SabotError) -> None:
        self.restarts += 1
        self.recorder.note("restart", str(error))
        self._origin.restarts(self.coordinator.statistics()["last_id"])

    async def _waited(self, seconds: float) -> bool:
        """Waits before another run begins. Returns False if a stop is requested."""
        stopping = asyncio.ensure_future(self._stop_asked.wait())
        self._will_restart = True
        try:
            stopped, _ = await asyncio.wait([stopping], timeout=seconds)
        finally:
            self._will_restart = False
            stopping.cancel()
        return not stopped

    def _may_take_back(self, error: SabotError) -> bool:
        """Gives up a rescale if no run could begin with the new number of workers. Returns True if the app then
        resumes from its last checkpoint with the earlier number. Returns False if there was no rescale, if a thread
        of the last run still runs, or if a stop is requested. `error`: the reason, for the log.
        """
        maker, hanging = self.app.workers, any(thread.is_alive() for _, thread in self._left)
        if maker is None or hanging or self._stop_asked.is_set() or not maker.take_back(str(error)):
            return False
        self._origin.restarts(self.coordinator.statistics()["last_id"])
        self.recorder.note("rescale", f"taken back to {maker.workers} workers: {error}")
        _log.error(
            "app %s: %s; it resumes from the last checkpoint with %d workers, as before",
            self.app.id,
            error,
            maker.workers,
        )
        return True

    async def run_alone(self, node: Node, sink: TableSink, seconds: float | None) -> None:
        """Runs only the steps up to this one, without agents or checkpoints, with state in memory. Returns at the end
        of the input, when the sink is full, or after `seconds`, if given.

        After `seconds`, tables that wait for their end emit the rows that they have; an open window emits nothing.
        """
        app = self.app
        settings = replace(
            app.settings_of_run(Coordinator(clock=app.clock)),
            app=replace(app.settings, until=None),
            open_sink=lambda topic, format: CountSink(topic),
            directory=None,
            has_dead_letters=False,
            first_record_s=math.inf if seconds is None else seconds,
        )
        streams, loop, full = (
            LocalStreams([Write(node, sink, None)], settings),
            asyncio.get_running_loop(),
            asyncio.Event(),
        )
        sink.on_full = lambda: call_on_loop(loop, full.set)
        try:
            await streams.start()
            streams.awaited = True
            filled = asyncio.ensure_future(full.wait())
            try:
                waits: list[asyncio.Future[Any]] = [streams.running, filled]
                done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not done and any(isinstance(each, Materialize) for each in walk([node])):
                    await streams.stop(drain=True)
                if streams.running.done():
                    await streams.running
            finally:
                filled.cancel()
                await streams.close()
        except SabotError as error:
            if (asked := find_exit(error)) is not None:
                raise asked from None
            raise

    # -- checkpoints --------------------------------------------------------------------------------------------------

    @property
    def checkpoint_interval(self) -> float:
        """Returns the seconds between checkpoints. Before the start this is an estimate, because a sink that delivers
        exactly once may shorten them.
        """
        return checkpoint_interval(self.app.settings, exactly_once=False)

    def _followed(self) -> None:
        """Makes the next start resume from a checkpoint of this app, and not from the savepoint. Called when a
        checkpoint of the app is complete.
        """
        self._origin.followed()
        if self._run is not None:
            self._run.checkpoint_ended()

    async def checkpoint(self) -> int:
        """Takes a checkpoint now. Returns its id when all tasks have acknowledged it. Raises CheckpointFailed."""
        if self._starting is not None:  # a checkpoint needs all tasks
            await self._starting.wait()
        self.raise_failure()
        checkpoint_id = self.coordinator.trigger()
        await self.coordinator.wait(checkpoint_id)
        return checkpoint_id

    def checkpoint_from_outside(self) -> None:
        """Takes a checkpoint and waits for it, if the app runs on the event loop of another thread. Otherwise does
        nothing.
        """
        if not self.started or self._loop is None or self._loop.is_closed() or _in_loop(self._loop):
            return
        asyncio.run_coroutine_threadsafe(self.checkpoint(), self._loop).result()

    # -- figures ------------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """Returns (read, total) in bytes for the bounded sources of streams; None if there are none. From any thread."""
        return None if self._run is None else self._run.progress()

    def tap(self, point: TapPoint) -> "list[pa.RecordBatch]":
        """Copies rows behind a step of the present run, as `LocalStreams.tap` does; none if the app does not run. From any thread."""
        run = self._run
        return [] if run is None else run.tap(point)

    def report(self) -> dict[str, Any]:
        """Returns the figures of all long-lived parts, as `App.statistics` describes them. From any thread."""
        scheme, _ = parse_broker(self.app.settings.broker)
        run, failure = self._run, self.failure or self.stalled_by
        return {
            "agents": {agent_id: agent.figures() for agent_id, agent in list(self.app.agents.items())},
            "checkpoints": self.coordinator.statistics(),
            **{
                "state": {},
                "sources": {},
                "operators": {},
                "sinks": {},
                "gate": {},
                "jobs": {},
                "workers": [],
                "agent_tasks": {},
            },
            **(self._last_figures if run is None else run.statistics()),
            "broker": MemoryBroker.get(self.app.settings.broker).statistics() if scheme == "memory" else {},
            "metrics": self.metrics.statistics(),
            "process": {"cpu_seconds": process_cpu_seconds(), "cpus": _processors()},
            "failure": None if failure is None else str(failure),
        }

    def figures(self) -> AppFigures:
        """Returns what `report` tells, as structs. From any thread."""
        return AppFigures.of(self.report())

    @property
    def summary(self) -> Summary:
        """The counts of this run or the last one. From any thread."""
        end = self._ended if self._run is None else self.app.clock.monotonic()
        return summary_of(self.app.id, self.figures(), end - self._began, self.restarts)

    def _read(self) -> AppReading:
        clock = self.app.clock
        return AppReading(self.app.id, clock.monotonic(), clock.time() * 1000, self.restarts, self.figures())

    def _print_summary(self) -> None:
        said, screen = str(self.summary), screen_of_person()
        if screen is None:
            _log.info("%s", "; ".join(line.strip() for line in said.splitlines()))
        else:
            with suppress(OSError, ValueError):  # after SIGHUP the terminal is gone
                print(said, file=screen)

    def _samples(self) -> Iterator[Sample]:
        """Yields metrics samples of the checkpoints and of the open parts. Streams and agents have samples of their
        own.
        """
        yield Sample("sabot_build_info", 1, sabot_version(), platform.python_version(), self.app.settings.version)
        checkpoints = self.coordinator.statistics()
        yield Sample("sabot_checkpoint_failed_total", checkpoints["failed"])
        if checkpoints["last_at"] is not None:
            yield Sample("sabot_checkpoint_seconds", checkpoints["last_seconds"])
            yield Sample("sabot_checkpoint_bytes", checkpoints["last_bytes"])
            yield Sample("sabot_checkpoint_timestamp_seconds", checkpoints["last_at"])
        if checkpoints["failed_at"] is not None:
            yield Sample("sabot_checkpoint_failure_timestamp_seconds", checkpoints["failed_at"])
        yield Sample("sabot_restarts_total", self.restarts)
        if self.health is not None:
            yield from self.health.samples()
        if self._run is not None:
            yield from self._run.samples()

    # -- probes, called from the threads of their server --------------------------------------------------------------

    def _healthz(self) -> Page:
        """Answers whether this process is healthy: the event loop answers, nothing has ended the run for good, and all
        child processes live.
        """
        why = "" if self.failure is None or self._will_restart else self.failure.message
        loop, answered = self._loop, threading.Event()
        if loop is None or loop.is_closed():
            why = why or "the event loop has ended"
        else:
            call_on_loop(loop, answered.set)
            if not answered.wait(_ANSWER_SECONDS):
                why = why or f"the event loop has not answered for {_ANSWER_SECONDS:g} s: a function blocks it"
        report: dict[str, Any] = {}
        if self.health is not None:
            lacks, report["processes"] = self.health.liveness()
            why = why or lacks
        return page_of({"app": self.app.id, "healthy": not why, "why": why, **report}, good=not why)

    def _readiness(self) -> Page:
        """Answers whether the app is ready: everything is open and works. The app is not ready during a start or a
        stop, and after the failure of an agent.
        """
        failed = self.failure or self.stalled_by
        why = "" if failed is None else failed.message
        if not self.started:
            why = why or ("the app is starting" if self.starting else "the app is stopping")
        if broken := [name for name, agent in self.app.agents.items() if agent.error is not None]:
            why = why or f"agents have failed: {', '.join(broken)}"
        report: dict[str, Any] = {"checkpoint": self.coordinator.statistics()["last_id"]}
        if lost := lost_brokers():  # rows that were read are processed, so the app is ready all the same
            report["broker"] = lost
        if self._run is not None and (outages := _outages(self._run.statistics())):
            report["registry"] = outages
        if self.health is not None:
            lacks, report["processes"] = self.health.readiness()
            why = why or lacks
        return page_of({"app": self.app.id, "ready": not why, "why": why, **report}, good=not why)


def _outages(figures: Mapping[str, Any]) -> list[str]:
    """Returns the reasons why sources wait for a schema registry. The app is ready all the same, because rows that it
    has read are processed.
    """
    inputs = [*figures.get("sources", {}).values(), *(task["input"] for task in figures["streams"].values())]
    return sorted({each["registry"] for each in inputs if each.get("registry")})


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _raise(asked: Exit) -> None:
    raise asked


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
