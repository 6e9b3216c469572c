"""The life of an app: its streams and its agents, started, restarted, checkpointed and stopped together.

The agents run in one task, so their state has one owner and its snapshot is taken at one moment (design decision 10).
One coordinator takes the checkpoints of agents and streams together. A `Run` is everything that is open from a start
to its stop. An app may have several runs, one after another.

        run  ─▶ a Run, until its inputs have ended, or it is stopped or broken ─▶ its stop ─▶ the next Run, if `restart=` allows it
"""

import asyncio
import logging
import os
import platform
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sabot.base.process_exit import Exit, find_exit
from sabot.base.threads import run_to_end
from sabot.base.version import sabot_version
from sabot.engine.checkpoint import Coordinator
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.life.host import in_notebook
from sabot.engine.runtime.life.origin import Origin
from sabot.engine.runtime.life.restarts import Restarts
from sabot.engine.runtime.life.run import Run, Undelivered
from sabot.engine.runtime.life.settings import checkpoint_interval
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.watch.app_watch import AppWatch
from sabot.errors import AgentFailed, BrokerUnavailable, CheckpointFailed, SabotError, UserError, WorkerLost

_log = logging.getLogger(__name__)

_running: dict[tuple[str, str], "AppRunner"] = {}  # by the id and the broker of the app: the last one that has started


class AppRunner:
    """Runs the agents and the streams of an app together, and takes their checkpoints."""

    def __init__(self, app: AppSpec) -> None:
        self.app = app
        self.coordinator = Coordinator(timeout=app.settings.checkpoint_timeout_s, clock=app.clock)
        self.coordinator.on_complete.append(lambda manifest: self._followed())
        self.coordinator.on_failed = self._checkpoint_failed
        self.status = AppStatus()
        self.watch = AppWatch(app, self.status, self.coordinator)
        self.restored_from: int | None = None
        self.left_behind: list[str] = []  # calls that ignored their cancellation when the app stopped
        self._origin = Origin(app)
        recorder = self.watch.recorder
        self._restarts = Restarts(app, self.coordinator, self._origin, self.status, recorder, lambda: self._stop_asked)
        self._run: Run | None = None  # set from the start to the end of the stop
        self._goes_on = False  # the last run has ended for another one to begin
        self._in_run = False  # True while `run` waits and will raise failures
        self._exit: Exit | None = None  # the user's code asked for the end of the process
        self._leaving: asyncio.Task[None] | None = None
        self._starting: asyncio.Event | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._stop_asked = asyncio.Event()

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
        return self.status.phase == "running"

    def raise_failure(self) -> None:
        """Raises the failure that has ended the app since its `start`, if there is one. All calls on the app except
        `run` call this first; `run` raises the failure itself.
        """
        loop, failure = self.status.loop, self.status.failure
        if self.started and loop is not None and loop.is_closed():
            raise UserError(
                f"the event loop in which app {self.app.id} was started has ended, so the app cannot go on",
                hint="call start, send and stop inside one asyncio.run(…); this process still owns the app's directories",
            )
        if failure is not None and self.started and not self._in_run:
            raise failure

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

    def _expect_stop(self) -> None:
        """Makes `request_stop` apply to the run that begins. Idempotent until that run is over."""
        if self.started or self._in_run or self._starting is not None:
            return
        self.status.loop, self.status.loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._stop_asked = asyncio.Event()
        self._exit = None

    async def _open(self) -> None:
        if self._starting is not None:
            raise UserError(f"app {self.app.id} is starting already")
        self.status.failure = self.status.stalled_by = None
        self.status.phase = "starting"
        self._starting = asyncio.Event()
        self._restarts.start_failed = True
        try:
            await self._take_place()
            if (left := self._restarts.hanging()) is not None:
                raise UserError(
                    f"app {self.app.id}: a thread of the earlier run has not ended: {left}",
                    hint="restart the process, because two runs cannot use the same objects at once",
                )
            self.watch.open()
            self._run = run = Run(
                self.app,
                coordinator=self.coordinator,
                origin=self._origin,
                status=self.status,
                watch=self.watch,
                stop_asked=self._stop_asked,
                heed=self._heed,
                in_run=self._in_run,
            )
            program = f"{self.app.id} {self.app.settings.version}".rstrip()
            python = platform.python_version()
            _log.info("app %s starts: Sabot %s, Python %s, process %d", program, sabot_version(), python, os.getpid())
            try:
                self.watch.begins()
                try:
                    await run.open()
                finally:
                    self.restored_from = run.restored_from
                self.watch.begun(in_run=self._in_run)
            except BaseException:
                await run_to_end(run.release())
                raise
            self._restarts.has_run, self._restarts.start_failed = True, False
            _running[self._place] = self
            if self.app.workers is not None:
                self.app.workers.begun()
        except BaseException:
            await self._run_is_over()
            self.status.phase = "stopped"
            for agent in self.app.agents.values():
                agent.is_not_started()
            raise
        finally:
            self._starting.set()
            self._starting = None

    @property
    def _place(self) -> tuple[str, str]:
        return self.app.id, self.app.settings.broker

    async def _take_place(self) -> None:
        """Stops, in a notebook, the app of this id that runs in the same event loop: its cell was run again, and the app of
        that name is now this one.
        """
        before = _running.get(self._place)
        if before is None or before is self or before.status.loop is not self.status.loop or not in_notebook():
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
        run, self._run = self._run, None
        if run is not None:
            self._restarts.ended(run)
            self._goes_on = run.goes_on.is_set()
            self.left_behind[:] = run.left_behind
        if self._starting is None:
            self.status.phase = "stopped"
        try:
            self.watch.over()
        finally:  # the app's clock, which it asks, may be a user's own that raises
            if not self._in_run:
                await self.watch.close()

    def _checkpoint_failed(self) -> None:
        self.watch.recorder.note("checkpoint", self.coordinator.statistics()["last_error"])
        if self._run is not None:
            self._run.checkpoint_ended(failed=True)

    async def stop(self, *, drain: bool = False) -> None:
        """Takes a last checkpoint, and stops everything. `drain`: rows that were read are processed first. Idempotent."""
        if self.status.loop is not None and self.status.loop.is_closed():
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
        loop = self.status.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._stop_asked.set)

    def _heed(self, error: BaseException | None) -> None:
        """Stores an exit of the process that the user's code has asked for, if this error contains one, and begins an
        orderly stop; the exit is raised after it. Ignores all other errors.
        """
        asked = find_exit(error)
        loop = self.status.loop
        if asked is None or self._exit is not None or loop is None:
            return
        self._exit = asked
        self._stop_asked.set()
        if not self._in_run:
            self._leaving = loop.create_task(self._leave(asked), name="the user's exit")

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
            if self._restarts.has_run:
                self.watch.print_summary()
            if not self.started:
                await self.watch.close()

    async def _run_again_and_again(self) -> None:
        self._restarts.begin()
        while True:
            error, engine_failure, unfinished = await self._run_once()
            self.status.failure = error or engine_failure or self.status.failure
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
                    self.watch.recorder.note("rescale", f"to {self.app.workers.workers} workers, as asked for")
                self._restarts.goes_on()
                continue
            if cause is None or not await self._restarts.follows(cause):
                break
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
        return (await self.coordinator.take()).checkpoint_id

    def checkpoint_from_outside(self) -> None:
        """Takes a checkpoint and waits for it, if the app runs on the event loop of another thread. Otherwise does
        nothing.
        """
        loop = self.status.loop
        if not self.started or loop is None or loop.is_closed() or _in_loop(loop):
            return
        asyncio.run_coroutine_threadsafe(self.checkpoint(), loop).result()


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _raise(asked: Exit) -> None:
    raise asked


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])
