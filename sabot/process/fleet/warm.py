"""A pool of children that are started before they are needed, and wait for their first line on stdin.

start ─▶ warm ─▶ given out ─▶ given back: ended, or reset and warm again
          ├─▶ it ends, or is stopped: replaced, never given out
          └─▶ it grows too old: replaced
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from types import TracebackType

from sabot.backoff import Backoff
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, check_numbers, checked_durations, parse_seconds
from sabot.errors import UserError
from sabot.metrics import Sample
from sabot.process.client import Child, Supervisor
from sabot.process.command import Command
from sabot.process.errors import AgentError, CommunicationError, SpawnFailed, WarmPoolExhausted
from sabot.process.fleet.lifecycle import LifecycleManager
from sabot.process.limits import ResourceLimits
from sabot.process.tree import numbers_of
from sabot.supervision import TaskSet
from sabot.threads import run_to_end

_log = logging.getLogger(__name__)

_BACKOFF = Backoff(1.0, 60.0)  # after children that ended at once, one after the other


@dataclass(frozen=True, kw_only=True)
class WarmPoolConfig:
    """size: children that are kept warm. max_age_secs: an older one is never given out. refresh_interval_secs: between two looks, each of
    which replaces the children that would be too old at the next one. spawn_timeout_secs: until a child is warm. grace_secs: from SIGTERM
    to SIGKILL.
    """

    size: int = 5
    refresh_interval_secs: float = 3600
    max_age_secs: float = 7200
    spawn_timeout_secs: float = 60
    grace_secs: float = 5

    def __post_init__(self) -> None:
        check_numbers(self, "size", whole=True)
        checked_durations(self, "refresh_interval_secs", "max_age_secs", "spawn_timeout_secs")
        checked_durations(self, "grace_secs", zero=True)


@dataclass(frozen=True)
class WarmPoolStatus:
    """The pool at this moment, and since its start. ages_secs: of the warm children, the oldest first. failure: why the last child that
    ended while it was warm, or could not be started, did so; "" when one was given out after that.
    """

    warm: int
    starting: int
    given_out: int
    ages_secs: tuple[float, ...]
    spawned: int
    allocated: int
    refused: int
    died: int
    refreshed: int
    failure: str


@dataclass(frozen=True, eq=False)
class _Warm:
    child: Child
    since: float  # by the clock's steady count of seconds
    was_out: bool  # it has done work before, and was reset


class WarmPool:
    """Keeps children of one command warm. They end with `close`, also those that were given out, and with this process, however it ends.

    command: needs a stdin, on which a child gets its work. The time that its limits give begins when the child is given out.
    ready: a line of stdout with which a child says that it is warm; without it a child is warm when its program was executed.
    reset: called with a child that is given back; a child for which it returns True is given out again. It has to make sure that the
    program has forgotten the work before, and to read what that says of it to the end: a child whose stdout has more, or whose stdin has
    not taken all, is ended, since whoever got it next would take it for an answer. What is in stderr is thrown away. Without `reset` each
    child that is given back is ended.
    lives: its children are instances of this manager, too, so that quotas hold for them. sleep: waits between looks, and before a
    replacement.
    """

    def __init__(
        self,
        command: Command,
        config: WarmPoolConfig | None = None,
        *,
        ready: str | None = None,
        reset: Callable[[Child], Awaitable[bool]] | None = None,
        lives: LifecycleManager | None = None,
        name: str = "warm",
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if command.stdin != "pipe" or (ready is not None and command.stdout != "pipe"):
            raise UserError(
                f"{command.argv[0]}: a warm child gets its work on stdin, and says on stdout that it is ready",
                hint='leave stdin and stdout at "pipe"',
            )
        limits = command.limits or ResourceLimits.none()
        self.config = config or WarmPoolConfig()
        self.name = name
        self._seconds = limits.max_task_duration
        self.command = (
            command if command.limits is None else replace(command, limits=limits.without("max_task_duration"))
        )
        self._ready = None if ready is None else ready.encode()
        self._reset = reset
        self._lives = lives
        self._clock = clock
        self._sleep = sleep
        self._children: dict[Child, int] = {}  # all that have not ended, and in which round each was started
        self._warm: deque[_Warm] = deque()  # the oldest first
        self._given_out: set[Child] = set()
        self._starting = 0
        self._waiting: deque[asyncio.Future[Child]] = deque()
        self._tasks = TaskSet(f"warm pool {self.name!r}")
        self._running = False
        self._round = 0  # how often a child has ended warm, or did not start; children that end together count once
        self._good_round = 0  # the last one in which a child was given out
        self._failure = ""
        self._counts = {"spawned": 0, "allocated": 0, "refused": 0, "died": 0, "refreshed": 0}

    async def start(self) -> None:
        """Returns when the pool is full. Raises SpawnFailed when one of its children does not start: then none is left."""
        if self._running:
            return
        self._running = True
        try:
            self._starting += self.config.size
            first = [self._tasks.begin(self._start_one(), awaited=True) for _ in range(self.config.size)]
            ended = await asyncio.gather(*first, return_exceptions=True)
            for each in ended:
                if isinstance(each, BaseException):
                    raise each
        except BaseException:
            await run_to_end(self.close())
            raise
        self._tasks.begin(self._refresh())

    async def __aenter__(self) -> "WarmPool":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_to_end(self.close())

    @property
    def children(self) -> list[Child]:
        """The warm ones, the oldest first."""
        return [each.child for each in self._warm]

    async def allocate(self, wait_secs: Duration | None = 0.0) -> Child:
        """Gives out the oldest warm child, and starts another one in its place.

        wait_secs: how long to wait for one where there is none; None: until there is one. Raises WarmPoolExhausted (E2092).
        """
        if not self._running:
            raise UserError(f"warm pool {self.name!r} does not run", hint="await pool.start() before, or `async with`")
        wait_s = None if wait_secs is None else parse_seconds(wait_secs, name="allocate: wait_secs")
        child = self._take()
        if child is None:
            child = await self._wait(wait_s)
        return child

    async def give_back(self, child: Child) -> None:
        """Takes back a child that `allocate` gave: it is ended, or reset. Does nothing for another one."""
        if child not in self._given_out:
            return
        self._given_out.discard(child)
        again = False
        try:
            if self._reset is not None and _is_fit(child):
                child.end_after(None)
                with suppress(CommunicationError):
                    again = await self._reset(child)
        finally:
            if again and self._running and _is_fit(child) and self._is_quiet(child):
                self._enter(child, was_out=True)
            else:
                await run_to_end(self._end(child))

    @asynccontextmanager
    async def borrowed(self, wait_secs: Duration | None = 0.0) -> AsyncIterator[Child]:
        """A child of `allocate`, that is given back at the end."""
        child = await self.allocate(wait_secs)
        try:
            yield child
        finally:
            await run_to_end(self.give_back(child))

    async def refresh(self) -> int:
        """Replaces the children that would be too old at the next look. -> how many"""
        oldest = self._clock.monotonic() + self.config.refresh_interval_secs - self.config.max_age_secs
        stale = [each for each in self._warm if each.since < oldest]
        for each in stale:
            self._warm.remove(each)
        self._counts["refreshed"] += len(stale)
        self._fill()
        await asyncio.gather(*(self._end(each.child) for each in stale))
        return len(stale)

    def status(self) -> WarmPoolStatus:
        """The pool at this moment."""
        now = self._clock.monotonic()
        ages = tuple(now - each.since for each in self._warm)
        return WarmPoolStatus(
            warm=len(ages),
            starting=self._starting,
            given_out=len(self._given_out),
            ages_secs=ages,
            failure=self._failure,
            **self._counts,
        )

    def samples(self) -> list[Sample]:
        """Its figures for Prometheus. From any thread."""
        states = {"warm": len(self._warm), "starting": self._starting, "given_out": len(self._given_out)}
        counts = {name: count for name, count in self._counts.items() if name != "spawned"}
        return [
            *(Sample("sabot_warm_pool_children", count, self.name, state) for state, count in states.items()),
            *(Sample("sabot_warm_pool_events_total", count, self.name, what) for what, count in counts.items()),
        ]

    async def close(self) -> None:
        """Ends all its children, also those that were given out. Who waits for one gets WarmPoolExhausted."""
        self._running = False
        while self._waiting:
            if not (waiting := self._waiting.popleft()).done():
                waiting.set_exception(self._exhausted("it was closed"))
        await self._tasks.cancel()
        await asyncio.gather(*map(self._end, self._children))
        await self._tasks.ended()  # what sees the end of a child that was just being started
        self._starting = 0
        self._children.clear()
        self._warm.clear()
        self._given_out.clear()

    # -- giving out -----------------------------------------------------------------------------------------------------

    def _take(self) -> Child | None:
        """The oldest child that can be given out. The others on the way are replaced."""
        found = None
        while self._warm:
            each = self._warm.popleft()
            too_old = self._clock.monotonic() - each.since > self.config.max_age_secs
            if too_old or (each.was_out and not self._is_quiet(each.child)):
                self._counts["refreshed"] += 1
            elif _is_fit(each.child):
                found = each.child
                self._give(found)
                break
            else:
                self._counts["died"] += 1
                self._failed(self._children.get(each.child, 0), "was stopped, or ended, while it was warm")
            self._tasks.begin(self._end(each.child))
        self._fill()
        return found

    def _give(self, child: Child) -> None:
        self._given_out.add(child)
        self._good_round, self._failure = self._round, ""
        self._counts["allocated"] += 1
        if self._seconds is not None:
            child.end_after(self._seconds)

    async def _wait(self, wait_secs: float | None) -> Child:
        if wait_secs == 0:
            self._counts["refused"] += 1
            raise self._exhausted("none of its children is warm")
        waiting: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        late = None if wait_secs is None else asyncio.ensure_future(self._sleep(wait_secs))
        try:
            await asyncio.wait([each for each in (waiting, late) if each], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            self._counts["refused"] += 1
            raise self._exhausted(f"none of its children was warm in {wait_secs:g} s")
        except asyncio.CancelledError:
            if waiting.done() and waiting.exception() is None:  # nobody takes it now
                self._tasks.begin(self.give_back(waiting.result()))
            raise
        finally:
            waiting.cancel()
            with suppress(ValueError):
                self._waiting.remove(waiting)
            if late is not None:
                late.cancel()

    def _exhausted(self, why: str) -> WarmPoolExhausted:
        because = f"; the last one {self._failure}" if self._failure else ""
        return WarmPoolExhausted(
            f"warm pool {self.name!r} of {self.command.argv[0]}: {why}{because}",
            hint="wait (wait_secs=), or make the pool larger (size=)",
        )

    # -- keeping it full ----------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Starts what is missing."""
        if self._running:
            missing = max(0, self.config.size - len(self._warm) - self._starting)
            self._starting += missing
            for _ in range(missing):
                self._tasks.begin(self._replace())

    async def _start_one(self) -> None:
        try:
            await self._spawn()
        finally:
            self._starting -= 1

    async def _replace(self) -> None:
        """Starts a child in the place of another one; later each time, where the last ones have ended while they were warm."""
        try:
            while True:
                if failures := self._round - self._good_round:
                    await self._sleep(_BACKOFF.wait_s(failures))
                round_ = self._round
                try:
                    await self._spawn()
                    break
                except (AgentError, OSError) as error:
                    self._failed(round_, f"did not start: {error}")
        finally:
            self._starting -= 1
        self._fill()  # it may have gone to who waited for one

    def _failed(self, round_: int, why: str) -> None:
        self._round = max(self._round, round_ + 1)
        self._failure = why
        _log.warning("warm pool %r: a child of %s %s", self.name, self.command.argv[0], why)

    def _is_quiet(self, child: Child) -> bool:
        """Whether nothing of the work before is on the way to whoever gets the child next."""
        while child.stderr is not None and child.stderr.read_nowait():
            pass
        has_rest = (child.stdout is not None and child.stdout.has_unread) or (child.stdin and child.stdin.has_unsent)
        if has_rest:
            _log.warning(
                "warm pool %r: a child of %s has output of its last work, or input, that nobody has read, and is ended",
                *(self.name, self.command.argv[0]),
            )
        return not has_rest

    def _enter(self, child: Child, *, was_out: bool = False) -> None:
        """The child is warm: whoever has waited longest gets it."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._give(child)
                waiting.set_result(child)
                return
        self._warm.append(_Warm(child, self._clock.monotonic(), was_out))

    async def _watch(self, child: Child) -> None:
        """Sees the end of a child, wherever it is then."""
        with suppress(CommunicationError):  # the supervisor was killed, and the child with it
            await child.wait()
        round_ = self._children.pop(child, 0)
        self._given_out.discard(child)
        if warm := [each for each in self._warm if each.child is child]:
            self._warm.remove(warm[0])
            self._counts["died"] += 1
            self._failed(round_, f"ended while it was warm: {child.how}")
            self._fill()

    async def _spawn(self) -> None:
        """Starts a child, which enters the pool when it is warm."""
        child = await run_to_end(self._begin())
        if self._ready is not None:
            try:
                async with asyncio.timeout(self.config.spawn_timeout_secs):
                    await self._until_ready(child)
            except TimeoutError:
                await run_to_end(self._end(child))
                raise SpawnFailed(
                    f"{self.command.argv[0]} was not warm in {self.config.spawn_timeout_secs:g} s",
                    hint=f"it is to say {self._ready.decode()!r} on its stdout",
                ) from None
            except BaseException:
                await run_to_end(self._end(child))
                raise
        self._counts["spawned"] += 1
        self._enter(child)

    async def _begin(self) -> Child:
        round_ = self._round
        child = await (await Supervisor.running()).spawn(self.command)
        self._children[child] = round_
        if self._lives is not None:
            self._lives.adopt(child, self.command, name=self.name)
        self._tasks.begin(self._watch(child))
        return child

    async def _until_ready(self, child: Child) -> None:
        assert child.stdout is not None
        async for line in child.stdout.lines():
            if line == self._ready:
                return
        await child.wait()
        raise SpawnFailed(f"{self.command.argv[0]} has ended before it was warm: {child.how}")

    async def _refresh(self) -> None:
        while True:
            await self._sleep(self.config.refresh_interval_secs)
            await self.refresh()

    async def _end(self, child: Child) -> None:
        with suppress(CommunicationError):
            await child.stop(self.config.grace_secs)


def _is_fit(child: Child) -> bool:
    """It runs: it has not ended, also where the supervisor has not said so yet, and is not stopped."""
    return not child.is_over and not child.paused and numbers_of(child.pid) is not None
