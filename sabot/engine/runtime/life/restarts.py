"""What follows when a run of an app has ended by a failure: another run from the last checkpoint, after a wait, or none."""

import asyncio
import errno
import logging
from collections.abc import Callable

from sabot.base.backoff import Backoff, Failures
from sabot.base.os_errors import errno_of
from sabot.base.threads import Handle
from sabot.engine.checkpoint import Coordinator
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.life.origin import Origin
from sabot.engine.runtime.life.run import Run
from sabot.engine.runtime.watch.run_record import RunRecorder
from sabot.errors import DataError, SabotError, TransientError, UserError, WorkerLost

_log = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK = Backoff(5.0, 60.0)  # the waits of a start that finds no room on the disk
_MEMORY_SECONDS = 600.0  # older failures do not count against `restart=`
_MOST_FAILURES = 64  # that are kept where restarts have no end; the wait has long been the longest


class Restarts:
    """Decides whether another run of an app follows a failure, and waits before it.

    - `has_run`: a start of the app has ended in a run. `start_failed`: the last start has not.
    - `can_go_back`: another run can resume from the last checkpoint.
    - `left`: threads of earlier runs that did not end.
    """

    def __init__(
        self,
        app: AppSpec,
        coordinator: Coordinator,
        origin: Origin,
        status: AppStatus,
        recorder: RunRecorder,
        stop_asked: Callable[[], asyncio.Event],
    ) -> None:
        """`stop_asked`: returns the event that is set when the user asks for a stop."""
        self.has_run = self.can_go_back = False
        self.start_failed = False
        self.left: list[tuple[str, Handle]] = []
        self._app = app
        self._coordinator = coordinator
        self._origin = origin
        self._status = status
        self._recorder = recorder
        self._stop_asked = stop_asked
        self.begin()

    def begin(self) -> None:
        """Forgets the failures of an earlier `run`: a new one has all of its restarts."""
        self._failed_at: list[float] = []
        self._full = Failures(_FULL_DISK)
        self._origin.restarts(None)

    def ended(self, run: Run) -> None:
        """Notes what a run that has ended leaves behind."""
        self.can_go_back = run.can_go_back
        self.left += run.left

    def hanging(self) -> str | None:
        """Returns the name of a thread of an earlier run that has not ended, or None."""
        return next((name for name, thread in self.left if thread.is_alive()), None)

    def goes_on(self) -> None:
        """Makes the next run resume from the last checkpoint, or a later one."""
        self._origin.restarts(self._coordinator.statistics()["last_id"])

    async def follows(self, error: SabotError) -> bool:
        """Waits until another run may begin after this error. Returns False if none follows."""
        maker = self._app.workers
        if await self._may_wait_for_room(error):
            return True
        if (maker is None or not maker.tried_enough) and await self._may_restart(error):
            return True
        if not self._may_take_back(error):
            return False
        self._failed_at.clear()
        return True

    async def _may_restart(self, error: SabotError) -> bool:
        """Waits as long as `restart=` asks for, and returns True if the app restarts from its last checkpoint.

        Returns False without a wait after an error that would occur again: a UserError or a DataError, unless it was
        caused by something outside. Returns False too if `restart=` allows no more restarts, if a thread of the last
        run still runs, if a stop is requested, and after a failed first start unless a worker was lost, or unless
        restarts have no end and something outside has failed.
        """
        attempts, backoff = self._app.settings.restarts
        outside = isinstance(error, TransientError) or isinstance(error.__cause__, OSError | TransientError)
        lasting = isinstance(error, UserError | DataError) and not outside
        hanging = self.hanging() is not None
        # If the first start fails, a restart would usually fail again. The death of a worker may be an accident.
        begins = attempts is None and outside and not self.has_run
        can_go_back = self.can_go_back and (self.has_run or isinstance(error, WorkerLost))
        if lasting or hanging or not (can_go_back or begins) or self._stop_asked().is_set():
            return False
        now = self._app.clock.monotonic()
        if attempts is not None:
            self._failed_at[:] = [*(at for at in self._failed_at if now - at < _MEMORY_SECONDS), now]
            if len(self._failed_at) > attempts:
                return False
        else:  # the waits double until the app has run for so long
            if self._failed_at and now - self._failed_at[-1] - backoff.wait_s(len(self._failed_at)) > _MEMORY_SECONDS:
                self._failed_at.clear()
            self._failed_at[:] = [*self._failed_at[-_MOST_FAILURES:], now]
        delay_s = backoff.wait_s(len(self._failed_at))
        self._note(error)
        _log.error(
            "app %s: %s; restart %d%s from the last checkpoint in %g s",
            *(self._app.id, error, len(self._failed_at), "" if attempts is None else f" of {attempts}", delay_s),
        )
        return await self._waited(delay_s)

    async def _may_wait_for_room(self, error: SabotError) -> bool:
        """Waits and returns True if the disk is full: of a start, or of a running app that has to go back to its last
        checkpoint, because output that waits for its checkpoint, or state, cannot be written. The waits have no end, and
        do not count against `restart=`, unless that is "none".

        Returns False without a wait after another error, if a thread of the last run still runs, if a stop is requested,
        or if the app cannot go back.
        """
        hanging = self.hanging() is not None
        goes_back = self.has_run and self.can_go_back and self._app.settings.restarts.attempts != 0
        if errno_of(error) not in _NO_ROOM or hanging or self._stop_asked().is_set():
            return False
        if not self.start_failed and not goes_back:
            return False
        now = self._app.clock.monotonic()
        if now - self._full.until_s > _MEMORY_SECONDS:  # the app has run for so long
            self._full.note("")
        self._full.note(str(error), now)
        wait_s = self._full.until_s - now
        if self.start_failed:
            self._recorder.note("start", str(error))
        else:
            self._note(error)
        what = "the start" if self.start_failed else "the app"
        _log.error("app %s: %s; %s waits for room, and tries again in %g s", self._app.id, error, what, wait_s)
        return await self._waited(wait_s)

    def _note(self, error: SabotError) -> None:
        self._status.restarts += 1
        self._recorder.note("restart", str(error))
        self.goes_on()

    async def _waited(self, seconds: float) -> bool:
        """Waits before another run begins. Returns False if a stop is requested."""
        stopping = asyncio.ensure_future(self._stop_asked().wait())
        self._status.will_restart = True
        try:
            stopped, _ = await asyncio.wait([stopping], timeout=seconds)
        finally:
            self._status.will_restart = False
            stopping.cancel()
        return not stopped

    def _may_take_back(self, error: SabotError) -> bool:
        """Gives up a rescale if no run could begin with the new number of workers. Returns True if the app then
        resumes from its last checkpoint with the earlier number. Returns False if there was no rescale, if a thread
        of the last run still runs, or if a stop is requested. `error`: the reason, for the log.
        """
        maker, hanging = self._app.workers, self.hanging() is not None
        if maker is None or hanging or self._stop_asked().is_set() or not maker.take_back(str(error)):
            return False
        self.goes_on()
        self._recorder.note("rescale", f"taken back to {maker.workers} workers: {error}")
        _log.error(
            "app %s: %s; it resumes from the last checkpoint with %d workers, as before",
            self._app.id,
            error,
            maker.workers,
        )
        return True
