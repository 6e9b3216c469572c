"""One child process and its successors: an instance, its phases, and the verbs that change them.

                 start                 work              suspend, SIGSTOP
    new ──> starting ──> ready ──> busy <──> idle   (each) <──────────> suspended
            │ ^   ^         └─────────┬────────┘                         │ │  │
            │ │   │                   v  end, or by itself               │ │  │
            │ │   └── waiting <── stopping                               │ │  │
            │ │          ^            v                                  │ │  │
            v │          │   completed, terminated, failed <── end ──────┘ │  │
         failed          └───────────────────────────────── restart ───────┘  │
              └───────────────────── resume, if its process has ended ────────┘

A verb is a method that changes the phase: start, end, suspend and so on. A verb that ends a process also decides what
follows. If a process ends by itself, `_decide_after_end` decides: another start, or a last phase. If the instance has a
TaskSet, this is called by the task `_watch`, which waits for the end of the process; else it is called by `see`.
`restart` gives a failed instance another process. The tables in `phases` have the phases and their changes.

Four attributes have to do with an end:

- `_ended`: the function `ended` that was passed to the constructor; it is called with each process that has ended.
- `end_asked`: True once the instance is to end for good.
- `_end_was_called`: an event that only `end` sets; it wakes a start that waits until its process is ready.
- `_gone`: an event that is set when the present process has ended and `_ended` has returned.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sabot.base.backoff import Backoff
from sabot.base.supervision import TaskSet, call_listener
from sabot.base.threads import run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import IllegalTransition, message_of
from sabot.process.client import Child, ExitStatus, Supervisor
from sabot.process.command import Command
from sabot.process.errors import (
    CommunicationError,
    RestartFailed,
    ResumeFailed,
    SpawnFailed,
    SuspendFailed,
    TerminateFailed,
    Timeout,
)
from sabot.process.inspection import usage_of
from sabot.process.phases import NEXT, OVER, RUNS, Phase

_log = logging.getLogger(__name__)

_UNANSWERED = "its supervisor has not answered in time"
_KILL_SECONDS = 10.0  # for SIGKILL to end what it was sent to
LONGEST_WAIT_S = 60.0
"""The longest wait before a start after failures, unless the first wait is longer."""

STOPPED_BY_OTHERS = "somebody else has stopped its process (SIGSTOP)"
"""The text of `why` when somebody else than the owner has suspended the instance, by a signal SIGSTOP to its process."""


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """The rule by which an instance starts another process when its process has ended.

    - `most`: the most restarts in a row. If the process ends once more after that, the instance fails.
    - `first_wait_s`: seconds before the first restart in a row. Before each further restart the wait doubles, up to
      60 s.
    - `stable_after_s`: if a process has run for so many seconds, the count of restarts in a row starts again at 0.
    - `after_success`: True if an instance whose process has ended with exit code 0 is also restarted.
    """

    most: int = 0
    first_wait_s: float = 1.0
    stable_after_s: float = math.inf
    after_success: bool = False

    def wait_s(self, failures: int) -> float:
        """Returns the seconds to wait before a restart. `failures`: the number of failures in a row before this
        restart, at least 1.
        """
        return Backoff(self.first_wait_s, max(self.first_wait_s, LONGEST_WAIT_S)).wait_s(failures)


class Instance:
    """A program that runs as a child process on this machine. If its process ends, it may get another one
    (RestartPolicy). It has at most one process at a time.

    - `name`: the name that was given, or else the name of the program. `label`: the name in messages, which includes
      the id if no name was given.
    - `child`: the present process; None if there is none. `command`: the command for the next process.
    - `phase`: what the instance does at present, such as `Phase.READY`.
    - `why`: the reason of the last end or suspension. `suspended_for`: the reason of the last suspension.
    - `restarts`: the number of restarts since the first start. `failures`: the number of failures in a row.
    - `next_start_at`: the time at which the next process will be started, in seconds since 1970; None if no start is
      planned.
    - `end_asked`: True once the instance is to end for good, by a call of `end` or by a signal that its owner has
      sent.
    - `lock`: a lock that `start`, `end`, `restart`, `suspend`, `resume` and similar methods hold, so that only one of
      them works at a time.
    """

    def __init__(
        self,
        command: Command,
        *,
        name: str = "",
        instance_id: str | None = None,
        policy: RestartPolicy | None = None,
        ready: Callable[[Child], Awaitable[object]] | None = None,
        ready_within_s: float | None = None,
        ended: Callable[[Child], Awaitable[bool]] | None = None,
        on_phase: "Callable[[Any, Phase, Phase], object] | None" = None,
        tasks: TaskSet | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Makes an instance; `start` starts its first process.

        - `name`: the name in messages; with "" the name of the program. `instance_id`: the id; None for a new one.
        - `policy`: the restart policy; None for an instance that has one process and no restarts.
        - `ready`: a coroutine function that is called with each new process, and returns when the process is ready.
          If it takes longer than `ready_within_s` seconds, the start fails.
        - `ended`: a coroutine function that is called with each process that has ended, before the next process is
          started. If it returns True, the end counts as a failure of the program, by the restart policy. If it
          returns False, the end is no failure, and the next process starts at once.
        - `on_phase`: called with the instance, the phase before, and the new phase.
        - `tasks`: a set of asyncio tasks of the owner, to which the instance adds tasks that wait for the end of its
          processes. If it is None, the instance notices an end only when `see` is called, and it has no restarts.
        - `sleep`: a coroutine function that waits the given number of seconds before a restart.
        """
        self.id = instance_id or uuid.uuid4().hex
        self.name = name or command.argv[0]
        self.label = repr(name) if name else f"{self.id!r} ({self.name})"
        self.command = command
        self.policy = policy
        self.phase = Phase.NEW
        self.child: Child | None = None
        self.why = ""
        self.restarts = 0
        self.failures = 0
        self.next_start_at: float | None = None
        self.lock = asyncio.Lock()
        self.end_asked = False
        self._end_was_called = asyncio.Event()
        self._ready = ready
        self._ready_within_s = ready_within_s
        self._ended = ended
        self.on_phase = on_phase
        self._tasks = tasks
        self._clock = clock
        self._sleep = sleep
        self._changed = asyncio.Event()
        self._running_since = 0.0
        self._runs_as = Phase.READY  # the phase to which a resumed instance returns
        self.suspended_for = ""
        self._planned: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()  # the process has ended, and `ended` has returned

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.id} {self.phase}>"

    @property
    def is_over(self) -> bool:
        """True if no further process will be started for the instance. Its last process may still be about to end."""
        return self.end_asked or self.phase in OVER

    @property
    def pid(self) -> int:
        """The pid of the present process; 0 if there is none."""
        return 0 if self.child is None or self.child.is_over else self.child.pid

    def become(self, phase: Phase) -> None:
        """Changes to this phase, and calls `on_phase`. Raises IllegalTransition if the table `phases.NEXT` does not
        allow the change.
        """
        before = self.phase
        if phase not in NEXT[before]:
            raise IllegalTransition(f"instance {self.label}: one that is {before} does not become {phase}")
        self.phase = phase
        self._changed.set()
        call_listener(f"the listener to phases of instance {self.label}", self.on_phase, self, before, phase)

    async def until(self, condition: Callable[[Phase], bool]) -> Phase:
        """Waits until `condition` returns True for the phase, and returns the phase."""
        while not condition(self.phase):
            self._changed.clear()
            await self._changed.wait()
        return self.phase

    # -- verbs --------------------------------------------------------------------------------------------------------

    async def start(self) -> Child:
        """Starts the first process, and returns it when it is ready.

        - Raises SpawnFailed, and does nothing, if the instance was started or ended before.
        - Raises the errors of `Supervisor.spawn` and of the function `ready` that was passed to the constructor.
        - Raises SpawnFailed if the process ends before it is ready, or if `end` is called during the start.
        - Raises Timeout if the process is not ready after `ready_within_s` seconds.

        After an error of the start the process has ended; if it could not be killed, `why` says so. The phase is then
        TERMINATED if `end` or the cancellation of the caller was the cause, and FAILED otherwise.
        """
        async with self.lock:
            if self.phase is not Phase.NEW:
                raise SpawnFailed(f"instance {self.label}: it is {self.phase}, and an instance is started once")
            try:
                return await self._start()
            except BaseException as error:
                was_ended = self.end_asked or not isinstance(error, Exception)
                self.become(Phase.TERMINATED if was_ended else Phase.FAILED)
                raise

    async def end(self, grace_s: float, why: str) -> None:
        """Ends the instance for good, and its process: closes stdin, sends SIGTERM, and sends SIGKILL `grace_s`
        seconds later. `why`: the reason, for messages.

        Raises TerminateFailed if the process, or a descendant of it, still runs.
        """
        self.end_asked = True
        self._end_was_called.set()
        self._changed.set()
        if grace_s == 0 and self.child is not None:
            self.child.kill()  # overtakes an end with a grace that holds the lock
        async with self.lock:
            self._drop_plan()
            if self.phase in (Phase.COMPLETED, Phase.TERMINATED):
                return
            if self.child is not None:
                await self._stop(self.child, grace_s, why)
            self.why = why
            self.become(Phase.TERMINATED)

    async def end_and_plan(self, child: Child, why: str, *, counts: bool = True) -> None:
        """Kills the process `child`, and plans the start of another one, as after a failure of the process: the failure
        is counted, and the start waits as the restart policy says. With `counts` False no failure is counted, and the
        start does not wait. If the instance has no restart policy, or its restarts are used up, no start is planned,
        and the phase becomes FAILED. `why`: the reason, for messages.

        Does nothing if `child` is not the present process of the instance any more. Raises TerminateFailed if the
        process, or a descendant of it, still runs.
        """
        async with self.lock:
            if self.child is child and self.phase in (*RUNS, Phase.SUSPENDED):
                await self._stop(child, 0.0, why)
                self._plan(counts=counts)

    async def restart(self, why: str, *, grace_s: float, at_once: bool = False) -> None:
        """Ends the process, if there is one, and plans the start of another one, as after a failure of the process: the
        failure is counted, and the start waits as the restart policy says. Does nothing if a start is planned already,
        or if the instance was not started yet.

        With `at_once` the start does not wait, the count of failures in a row starts again at 0, and a start that is
        planned already is replaced.

        `why`: the reason, for messages. `grace_s`: seconds from SIGTERM to SIGKILL. Raises RestartFailed if the
        instance has ended for good or has no restart policy, if its restarts are used up, or if its process could not
        be ended.
        """
        async with self.lock:
            if self.end_asked or self.phase in (Phase.COMPLETED, Phase.TERMINATED) or self.policy is None:
                raise RestartFailed(f"instance {self.label} is terminated: {self.why}", hint="spawn another one")
            if self.phase is Phase.NEW or (self.phase is Phase.WAITING and not at_once):
                return
            if not at_once and self.failures >= self.policy.most:
                raise RestartFailed(
                    f"instance {self.label} was started again {self.policy.most} times: {self.why}",
                    hint="restart(at_once=True) begins the count anew",
                )
            if self.child is not None:
                try:
                    await self._stop(self.child, grace_s, why)
                except TerminateFailed as error:
                    raise RestartFailed(error.message) from error
            self.why = why
            if at_once:
                self.failures = 0
            self._plan(counts=not at_once)

    async def suspend(self, why: str, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Suspends the instance: stops its process and all descendants where they are (SIGSTOP). If the owner has
        suspended the instance before, only replaces the reason. `why`: the reason, for messages.

        `unless`: a function that is called when the instance's lock was acquired; if it returns True, the instance is
        not suspended. Raises SuspendFailed if the instance has no process, or if its supervisor does not answer; then
        the instance keeps its phase.
        """
        async with self.lock:
            child = self.child
            if unless():
                return
            was_suspended = self.phase is Phase.SUSPENDED
            if not was_suspended or self.suspended_for is STOPPED_BY_OTHERS:  # they have stopped the program alone
                child = self._suspendable()
                child.pause()
                try:
                    if await usage_of(child) is None:  # the supervisor answers in order
                        raise SuspendFailed(f"instance {self.label} was not suspended: {_UNANSWERED}")
                except BaseException:  # also a caller that is cancelled
                    if not was_suspended:
                        child.resume()
                    raise
            self._suspended(why)

    async def release(
        self,
        checkpoint: Callable[[Any], Awaitable[Command]],
        grace_s: float,
        why: str,
        *,
        unless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Suspends the instance by ending its process, which frees the memory.

        - `checkpoint`: a coroutine function that is called with the instance. It saves the state of the program, and
          returns the command with which `resume` starts the next process.
        - `grace_s`: the most seconds that `checkpoint` may take, and also the seconds from SIGTERM to SIGKILL.
        - `why`: the reason, for messages.
        - `unless`: a function that is called when the instance's lock was acquired; if it returns True, nothing is
          done.

        Raises SuspendFailed if the state is not saved, or if the process does not end; then the instance keeps its
        phase.
        """
        async with self.lock:
            if unless():
                return
            if not (self.phase is Phase.SUSPENDED and self.child is None):
                child = self._suspendable()
                child.resume()  # it may have to answer the checkpoint
                try:
                    async with asyncio.timeout(grace_s):
                        command = await checkpoint(self)
                    await self._kill_after(child, grace_s)
                except BaseException as error:
                    if self.phase is Phase.SUSPENDED:
                        child.pause()
                    if isinstance(error, Exception):
                        raise SuspendFailed(f"instance {self.label} was not suspended: {message_of(error)}") from error
                    raise
                self.child, self.command = None, command
            self._suspended(why)

    async def resume(self, *, only_if: Callable[[], bool] = lambda: True) -> None:
        """Continues a suspended instance, in a new process if the old one has ended. Does nothing if the instance is
        not suspended.

        `only_if`: a function that is called when the instance's lock was acquired; if it returns False, nothing is
        done.

        Raises ResumeFailed if the instance has ended or has failed. Raises it also if the instance cannot be continued;
        the instance then stays suspended.
        """
        async with self.lock:
            if self.phase in OVER:
                raise ResumeFailed(
                    f"instance {self.label} does not go on: it is {self.phase}, {self.why}", hint="spawn another one"
                )
            self._see()
            if self.phase is not Phase.SUSPENDED or not only_if():
                return
            if self.child is not None and not self.child.is_over:
                self.child.resume()
                try:
                    if await usage_of(self.child) is None:
                        raise ResumeFailed(f"instance {self.label} does not go on: {_UNANSWERED}")
                except BaseException:
                    self.child.pause()
                    raise
                self.become(self._runs_as)
            else:
                try:
                    await self._start()
                except BaseException as error:
                    self.become(Phase.SUSPENDED)
                    if isinstance(error, Exception):
                        raise ResumeFailed(f"instance {self.label} does not go on: {self.why}") from error
                    raise

    def see(self) -> Phase:
        """Looks at the process, changes the phase if the process has changed by itself, and returns the phase.

        It notices that somebody else has stopped the process (SIGSTOP) or continued it (SIGCONT). Without a TaskSet
        it also notices that the process has ended. If another method is just changing the instance (it holds the
        lock), `see` only returns the present phase.
        """
        if not self.lock.locked():
            self._see()
        return self.phase

    def _see(self) -> None:
        child = self.child
        if child is None:
            return
        if child.is_over:
            if self._tasks is None and self.phase not in OVER:  # else `_watch` awaits the end
                self.why = child.how
                self._decide_after_end(child)
        elif self.phase in RUNS and child.paused:
            self._suspended(STOPPED_BY_OTHERS)
        elif self.phase is Phase.SUSPENDED and self.suspended_for is STOPPED_BY_OTHERS and not child.paused:
            self.become(self._runs_as)

    def work(self, *, begins: bool) -> None:
        """Records that the instance begins work (`begins` is True), or that its work is done: enters the phase BUSY
        or IDLE. A suspended instance stays SUSPENDED, and enters BUSY or IDLE when it is resumed in the same process.
        """
        runs_as = self._runs_as if self.phase is Phase.SUSPENDED else self.phase
        if runs_as in RUNS and begins is not (runs_as is Phase.BUSY):
            phase = Phase.BUSY if begins else Phase.IDLE
            if self.phase is Phase.SUSPENDED:
                self._runs_as = phase
            else:
                self.become(phase)

    # -- starts -------------------------------------------------------------------------------------------------------

    async def _start(self) -> Child:
        """Starts a process, and returns it when it is ready. The caller must hold the lock.

        If an error is raised, `self.why` contains the reason, the process has ended, and `self.child` is None. If the
        process could not be killed, `self.child` is that process until it has ended.
        """
        self.next_start_at = None
        self.become(Phase.STARTING)
        try:
            async with asyncio.timeout(self._ready_within_s) as limit:
                child = self.child = await (await Supervisor.running()).spawn(self.command)
                self._gone = asyncio.Event()
                if self._tasks is not None:
                    self._tasks.begin(self._watch(child, self._gone))
                await self._until_ready(child)
        except BaseException as error:
            here = f"instance {self.label}: "
            self.why = message_of(error).removeprefix(here)
            if limit.expired():
                self.why = f"it was not ready in {self._ready_within_s:g} s"
            if self.child is not None:
                await run_to_end(self._undo(self.child))
            if limit.expired():
                raise Timeout(f"{here}{self.why}") from error
            raise
        self._running_since = self._clock.monotonic()
        self.become(Phase.READY)
        return child

    async def _undo(self, child: Child) -> None:
        """Ends a process that has not become ready. `self.why` must contain the reason why it did not. If the process
        cannot be killed, appends this error to `self.why`.
        """
        why = self.why
        try:
            await self._stop(child, 0.0, why)
        except TerminateFailed as worse:
            self.why = f"{why}; {worse.message}"

    async def _until_ready(self, child: Child) -> None:
        """Waits until the function `ready` of the constructor has returned for the process. Raises the errors of `ready`;
        SpawnFailed if the process ends before, or if `end` is called.
        """
        if self._ready is not None:
            ready = asyncio.ensure_future(self._ready(child))
            others = [asyncio.ensure_future(child.wait()), asyncio.ensure_future(self._end_was_called.wait())]
            try:
                await asyncio.wait([ready, *others], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    ready.result()
                elif others[0].done():
                    raise SpawnFailed(f"instance {self.label}: it was not ready before {child.how}")
            finally:
                for each in (ready, *others):
                    each.cancel()
                await asyncio.wait([ready, *others])
        if self.end_asked:
            raise SpawnFailed(f"instance {self.label}: it was terminated before it was ready")

    def _plan(self, *, counts: bool = True) -> None:
        """Plans the next start after a failure, and enters the phase WAITING. If the restarts are used up, enters
        FAILED instead. With `counts` False, counts no failure, and the start does not wait. The caller must hold the
        lock.
        """
        policy = self.policy
        if policy is None or self._tasks is None or (counts and self.failures >= policy.most):
            times = f" after {self.failures} restarts" if self.failures else ""
            _log.warning("instance %s has failed%s: %s", self.label, times, self.why)
            self.become(Phase.FAILED)
            return
        self.failures += counts
        seconds = policy.wait_s(self.failures) if counts else 0.0
        self._drop_plan()
        self.next_start_at = self._clock.time() + seconds
        if self.phase is not Phase.WAITING:
            self.become(Phase.WAITING)
        self._planned = self._tasks.begin(self._start_later(seconds))

    def _drop_plan(self) -> None:
        self.next_start_at = None
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None

    async def _start_later(self, seconds: float) -> None:
        if seconds:
            await self._sleep(seconds)
        async with self.lock:
            self._planned = None  # from here on it is not cancelled
            self.restarts += 1
            try:
                await self._start()
            except Exception:  # `why` has it
                if self.end_asked:
                    self.become(Phase.TERMINATED)
                else:
                    self._plan()

    # -- ends ---------------------------------------------------------------------------------------------------------

    async def _watch(self, child: Child, gone: asyncio.Event) -> None:
        """Waits until the process has ended, calls the function `ended` of the constructor, and sets the event `gone`.
        If the process has ended by itself, then calls `_decide_after_end`. If another method (such as `end` or
        `restart`) has ended the process, that method decides what follows.
        """
        try:
            with suppress(CommunicationError):  # its supervisor was killed, and the process with it
                await child.wait()
            if self.child is child and self.phase in (*RUNS, Phase.SUSPENDED):
                self.why = child.how
            counts = self._ended is None or await self._ended(child)
        finally:  # also if the owner cancels its tasks: a verb may wait for this
            gone.set()
        async with self.lock:
            if self.child is child:  # else a verb has ended it, and goes on from there
                self.child = None
                self._decide_after_end(child, counts=counts)

    def _decide_after_end(self, child: Child, *, counts: bool = True) -> None:
        """Decides what follows after a process has ended by itself: plans another start, or enters the phase
        COMPLETED, TERMINATED or FAILED. `counts`: True if the end counts as a failure of the program.
        """
        policy, end = self.policy, self._end_of(child.status)
        if self.phase in (Phase.WAITING, *OVER):  # a verb has failed to end it, and went on
            return
        if self.phase is Phase.SUSPENDED and policy is not None:  # `resume` and `restart` give it another process
            return
        if self.phase in RUNS:
            self.become(Phase.STOPPING)
        if policy is None or self.end_asked or (end is Phase.COMPLETED and not policy.after_success):
            self.become(end)
            return
        if self._clock.monotonic() - self._running_since >= policy.stable_after_s:
            self.failures = 0
        self._plan(counts=counts)

    def _end_of(self, status: ExitStatus | None) -> Phase:
        """Returns the phase of an instance whose process has ended and that gets no other one: COMPLETED, TERMINATED
        or FAILED. `status`: the end of the process; None if its supervisor was killed.
        """
        if status is not None and status.success:
            return Phase.COMPLETED
        is_killed = status is None or (status.signal is not None and status.limit is None)
        return Phase.TERMINATED if self.end_asked and is_killed else Phase.FAILED

    async def _stop(self, child: Child, grace_s: float, why: str) -> None:
        """Ends the process for the reason `why`, waits until the function `ended` of the constructor has returned, and
        sets `self.child` to None. The caller must hold the lock. Raises TerminateFailed if the process still runs.
        """
        if self.phase in RUNS:
            self.become(Phase.STOPPING)
        self.why = why
        await self._kill_after(child, grace_s)
        if self._tasks is not None:
            await self._gone.wait()
        self.child, self.why = None, why

    async def _kill_after(self, child: Child, grace_s: float) -> None:
        """Ends the process: SIGTERM, and SIGKILL after `grace_s` seconds. Raises TerminateFailed if it still runs 10 s after that."""
        try:
            async with asyncio.timeout(grace_s + _KILL_SECONDS):
                await child.stop(grace_s)
        except TimeoutError as error:
            raise TerminateFailed(
                f"instance {self.label} (pid {child.pid}) was sent SIGKILL, and has not ended in {_KILL_SECONDS:g} s",
                hint="it hangs in the kernel, or its supervisor is stopped",
            ) from error
        except CommunicationError:  # its supervisor was killed, and the process with it
            pass

    # -- suspended ----------------------------------------------------------------------------------------------------

    def _suspendable(self) -> Child:
        if self.child is None or self.child.is_over or self.phase not in (*RUNS, Phase.SUSPENDED):
            raise SuspendFailed(f"instance {self.label} is not suspended: it is {self.phase}, and has no process")
        return self.child

    def _suspended(self, why: str) -> None:
        self.why = self.suspended_for = why
        if self.phase is not Phase.SUSPENDED:
            self._runs_as = self.phase
            self.become(Phase.SUSPENDED)
