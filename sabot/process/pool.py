"""A pool of instances of one command. It keeps the free members and the callers that wait for one, and starts members
that are missing.

   a member is missing  ──> it is started (after a wait that grows with each failure in a row) ──> `offer`
   `offer`              ──> the caller that has waited longest gets the member; if none waits, it is free until `take`

The owner of a pool says how many members are missing, which makes the kind of the pool: the owner of a fixed pool
counts the callers that wait, that of a warm pool its free members, and that of an autoscaled pool the replicas that it
wants to have. The owner also tells the pool when a member has done work (`was_of_use`), which sets the count of
failures to 0.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from sabot.base.backoff import Backoff, Failures
from sabot.base.supervision import TaskSet
from sabot.clock import Clock
from sabot.process.client import Child
from sabot.process.errors import AgentError, CommunicationError, TerminateFailed
from sabot.process.instance import LONGEST_WAIT_S, Instance

_log = logging.getLogger(__name__)


M = TypeVar("M")


class Pool(Generic[M]):
    """A pool of members, each with a child process: the replicas of a fleet, or the children of a warm pool.

    - `members`: a dict of the members that have not ended. The value of a member is `failures.count` at the time when
      the member was started.
    - `free`: a dict of the members that no caller uses, the longest free first. The value of a member is the time at
      which it became free, in seconds of a monotonic clock.
    - `starting`: the number of starts that are under way, or that wait because of earlier failures.
    - `failures`: the count of members that have failed, or did not start, since the last call of `was_of_use`.
    - `tasks`: the asyncio tasks of the pool, which `close` cancels.
    """

    def __init__(
        self,
        what: str,
        *,
        start: Callable[[], Awaitable[tuple[M, Child]]],
        missing: Callable[[], int],
        ended: Callable[[M, Child, bool], str],
        end: Callable[[M], Coroutine[Any, Any, None]],
        given: Callable[[M, bool], object],
        can_work: Callable[[M], bool] = lambda member: True,
        tells_errors: bool = False,
        first_wait_s: float = 1.0,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """Makes a pool without members.

        - `what`: the pool's name, in log lines.
        - `start`: a coroutine function that starts a member, and returns the member and its child when the member is
          ready.
        - `missing`: a function that returns how many members the pool lacks. The pool subtracts those that are being
          started.
        - `ended`: a function that is called when a member has ended by itself, with the member, its child, and True
          if the member was free. It returns the reason if this end is a failure of the program, and "" if it is none.
        - `end`: a coroutine function that ends a member, and never raises.
        - `given`: a function that is called with a member and True when a caller gets the member. It is called with
          the member and False if that caller was cancelled before it could use the member.
        - `can_work`: a function that is called before a member is given to a caller. If it returns False, the pool
          ends the member instead.
        - `tells_errors`: what happens if a start fails. With True, the error is raised in the caller that has waited
          longest. With False, the pool logs an AgentError or an OSError and tries again; after any other error it only
          logs that error, and the next call of `fill` tries again.
        - `first_wait_s`: seconds from a failure to the next start; each further failure in a row doubles the wait.
        """
        self.members: dict[M, int] = {}
        self.free: dict[M, float] = {}
        self.starting = 0
        self.failures = Failures(Backoff(first_wait_s, max(first_wait_s, LONGEST_WAIT_S)))
        self.running = False
        self.tasks = TaskSet(what)
        self._what = what
        self._start = start
        self._missing = missing
        self._ended = ended
        self._end = end
        self._given = given
        self._can_work = can_work
        self._tells_errors = tells_errors
        self._clock = clock
        self._sleep = sleep
        self._waiting: deque[asyncio.Future[M]] = deque()

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a member."""
        return sum(not each.done() for each in self._waiting)

    async def begin(self, count: int) -> list[BaseException]:
        """Starts `count` members at the same time, waits until these starts are over, and returns the errors of those that failed."""
        self.running = True
        self.starting += count
        first = [self.tasks.begin(self._begun(), awaited=True) for _ in range(count)]
        started = await asyncio.gather(*first, return_exceptions=True)
        return [each for each in started if isinstance(each, BaseException)]

    def fill(self) -> None:
        """Starts as many members as the pool lacks, without waiting until they are ready. Does nothing before `begin`
        and after `stop`.
        """
        if self.running:
            missing = max(0, self._missing() - self.starting)
            self.starting += missing
            for _ in range(missing):
                self.tasks.begin(self._replace())

    def take(self) -> M | None:
        """Returns the member that has been free for longest and can work, and marks it as used by the caller. Returns
        None if there is no such member. Never waits.
        """
        for member in list(self.free):
            if self._can_work(member):
                del self.free[member]
                self._given(member, True)
                self.fill()
                return member
            self.retire(member)
        return None

    async def wait(self, *, first: bool = False, wait_s: float | None = None) -> M:
        """Waits until a member is free for this caller, and returns the member. `first`: True if this caller is served
        before all others that wait. Raises TimeoutError after `wait_s` seconds; with None it waits without a limit. Also
        raises the error that `stop` or `close` was given, and with `tells_errors` the error of a start.
        """
        waiting: asyncio.Future[M] = asyncio.get_running_loop().create_future()
        self._waiting.insert(0 if first else len(self._waiting), waiting)
        late = None if wait_s is None else asyncio.ensure_future(self._sleep(wait_s))
        if late is not None:
            late.add_done_callback(lambda _: None if waiting.done() else waiting.set_exception(TimeoutError()))
        self.fill()
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._given(waiting.result(), False)
                self.offer(waiting.result())
            raise
        finally:
            if late is not None:
                late.cancel()
            with suppress(ValueError):
                self._waiting.remove(waiting)

    def offer(self, member: M) -> None:
        """Marks a member as free, and gives it to the caller that has waited longest. If no caller waits, the member
        stays free. Does nothing if the member has ended.
        """
        if member not in self.members:
            return
        self.free[member] = self._clock.monotonic()
        while self.waiting and (free := self.take()) is not None:
            self._first().set_result(free)

    def retire(self, member: M) -> "asyncio.Task[None]":
        """Begins to end a member that must not be used any more, and starts another one if one is missing. Returns
        the asyncio task that ends the member.
        """
        self.free.pop(member, None)
        ending = self.tasks.begin(self._end(member))
        self.fill()
        return ending

    def was_of_use(self) -> None:
        """Sets the count of failures to 0. Called when a member has done work, which proves that the program works."""
        self.failures.note("")

    def failed(self, since: int, why: str) -> None:
        """Counts a failure for the reason `why`. `since`: the count of failures when the member was started; if other members have
        failed since then, this failure is not counted again.
        """
        self.failures.note(why, self._clock.monotonic(), since=since)
        _log.warning("%s: a child %s", self._what, why)

    async def stop(self, refusal: Callable[[], Exception]) -> None:
        """Stops starting members. In each caller that waits, `wait` raises the error that `refusal` returns. The
        members are not ended.
        """
        self.running = False
        while self.waiting:
            self._first().set_exception(refusal())
        await self.tasks.cancel()
        self.starting = 0

    async def close(self, refusal: Callable[[], Exception]) -> None:
        """Does what `stop` does, and then ends all members."""
        await self.stop(refusal)
        await asyncio.gather(*map(self._end, list(self.members)))
        self.members.clear()
        self.free.clear()

    async def _begun(self) -> None:
        try:
            await self._enter()
        finally:
            self.starting -= 1

    async def _replace(self) -> None:
        """Starts a member that the pool lacks. If earlier members have failed, waits before the start; the wait is
        longer the more have failed in a row.

        If the start fails:

        - With `tells_errors` the error is raised in the caller that has waited longest for a member. The failure is
          counted, and the start is not tried again.
        - Without it, an AgentError or an OSError is counted as a failure, and the start is tried again. Any other error
          is raised here.
        """
        begun = False
        try:
            while not begun:
                if (left := self.failures.until_s - self._clock.monotonic()) > 0:
                    await self._sleep(left)
                since = self.failures.count
                try:
                    await self._enter()
                    begun = True
                except Exception as error:
                    if not (self._tells_errors or isinstance(error, AgentError | OSError)):
                        raise
                    self.failed(since, f"did not start: {error}")
                    if self._tells_errors:
                        if self.waiting:
                            self._first().set_exception(error)
                        break
        finally:
            self.starting -= 1
        self.fill()  # the new member may have gone to a waiting caller

    async def _enter(self) -> None:
        failures = self.failures.count
        member, child = await self._start()
        self.members[member] = failures
        self.tasks.begin(self._watch(member, child))
        self.offer(member)

    async def _watch(self, member: M, child: Child) -> None:
        """Waits until the child of a member has ended, and removes the member from the pool. Counts a failure if the
        function `ended` that was passed to the constructor returns a reason. Starts other members if some are missing.
        """
        with suppress(CommunicationError):  # the supervisor was killed, and its child too
            await child.wait()
        if (since := self.members.pop(member, None)) is None:  # its owner has ended it, and needs no replacement
            self.fill()
            return
        was_free = self.free.pop(member, None) is not None
        if why := self._ended(member, child, was_free):
            self.failed(since, why)
        self.fill()

    def _first(self) -> "asyncio.Future[M]":
        """Removes the caller that has waited longest from those that wait, and returns its future. Call this only if some
        caller waits.
        """
        while (waiting := self._waiting.popleft()).done():
            pass
        return waiting


async def end_member(instance: Instance, grace_s: float, why: str) -> None:
    """Ends an instance that its pool does not need any more. If its process cannot be killed, logs that and returns;
    the supervisor remains responsible for the process.
    """
    try:
        await instance.end(grace_s, why)
    except TerminateFailed as error:
        _log.warning("%s", error)
