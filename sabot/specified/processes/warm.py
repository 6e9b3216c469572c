"""A warm pool: instances that are started before they are needed, and wait for their first line on stdin.

start ─▶ warm ─▶ given out ─▶ given back: ended, or reset and warm again
          ├─▶ it ends, or is stopped: replaced, never given out
          └─▶ it grows too old: replaced
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from sabot.base.config import Duration, check_numbers, checked_durations, parse_seconds
from sabot.base.metrics import Sample
from sabot.base.proc import numbers_of
from sabot.base.threads import run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UserError
from sabot.process.client import Child
from sabot.process.command import Command
from sabot.process.errors import CommunicationError, SpawnFailed, Timeout, WarmPoolExhausted
from sabot.process.limits import ResourceLimits
from sabot.process.phases import Phase
from sabot.process.pool import Pool, end_member
from sabot.specified.processes.lifecycle import AgentInstance, LifecycleManager

_log = logging.getLogger("sabot.process.warm")


@dataclass(frozen=True, kw_only=True)
class WarmPoolConfig:
    """The settings of a warm pool. A child is warm if it was started and waits for a user.

    - `size`: the number of children that are kept warm.
    - `max_age_secs`: the age above which a child is not given to a user any more. The age of a child is the time since
      it became warm: at its start, or when it was given back and reset.
    - `refresh_interval_secs`: seconds between two calls of `refresh`. Each call replaces the warm children that would
      be too old at the next call.
    - `spawn_timeout_secs`: the longest time from the start of a child until it is warm. `grace_secs`: seconds from
      SIGTERM to SIGKILL.
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
    """The state of a warm pool, and its counts since its start.

    - `warm`, `starting`, `given_out`: the numbers of children that wait for a user, that are being started, and that
      have a user, all at this moment.
    - `ages_secs`: the ages of the warm children in seconds, the oldest first.
    - `spawned`: the number of children that were started. `allocated`: how often a child was given to a user.
      `refused`: how often a caller got WarmPoolExhausted instead.
    - `died`: the number of warm children that have ended, or that somebody has stopped. `refreshed`: the number of
      warm children that were replaced because of their age.
    - `failure`: the reason of the last failure of a child (it did not start, or ended while it was warm); "" if a
      child was given to a user since then.
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


class WarmPool:
    """A pool of child processes of one command that were started in advance ("warm"), so that a user gets one without
    waiting for its start. `close` ends all children, including those that have a user, and so does the end of this
    process, in whatever way it ends.
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
        """Makes a pool; `start` starts its children.

        - `command`: the command of a child. Its stdin must be a pipe, on which a child gets its work. The time limit
          of the command begins when a child is given to a user.
        - `ready`: the line that a child writes to stdout when it is warm; with None a child is warm as soon as its
          program runs.
        - `reset`: a coroutine function that is called with a child that its user has given back. It has to make the
          program forget the earlier work, and to read the program's output to the end. If it returns True, the child
          is warm again; otherwise the child is ended. The child is also ended if it still has unread stdout or unsent
          input, which the next user would get; unread stderr is dropped. Without `reset`, each child that is given
          back is ended.
        - `lives`: a lifecycle manager that lists the children among its instances, so that they can have quotas.
        - `name`: the name of the pool in messages and Prometheus metrics.
        - `sleep`: a coroutine function with which the pool waits a number of seconds: between the calls of `refresh`,
          and before a new start after a failure.
        """
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
        self._line = None if ready is None else ready.encode()
        self._reset = reset
        self._lives = lives
        self._clock = clock
        self._sleep = sleep
        self._given_out: dict[Child, AgentInstance] = {}
        self._pool: Pool[AgentInstance] = Pool(
            f"warm pool {name!r}",
            start=self._start,
            missing=lambda: self.config.size - len(self._pool.free),
            ended=self._ended,
            end=self._end,
            given=self._given,
            can_work=self._can_work,
            clock=clock,
            sleep=sleep,
        )
        self._counts = {"spawned": 0, "allocated": 0, "refused": 0, "died": 0, "refreshed": 0}

    async def start(self) -> None:
        """Starts `size` children, and waits until all are warm. Does nothing if the pool runs already. Raises the error
        of a child that does not start, such as SpawnFailed; then the others are ended.
        """
        if self._pool.running:
            return
        try:
            for error in await self._pool.begin(self.config.size):
                raise error
        except BaseException:
            await run_to_end(self.close())
            raise
        self._pool.tasks.every(self.config.refresh_interval_secs, self.refresh, self._sleep)

    async def __aenter__(self) -> "WarmPool":
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await run_to_end(self.close())

    @property
    def children(self) -> list[Child]:
        """The warm children, the oldest first."""
        return [each.child for each in self._pool.free if each.child is not None]

    async def allocate(self, wait_secs: Duration | None = 0.0) -> Child:
        """Returns the oldest warm child to the caller, who is then its user, and starts another child in its place.

        `wait_secs`: the longest time to wait if no child is warm; with None the call waits until there is one. Raises
        WarmPoolExhausted (E2092) if no child is warm after that time, or if the pool is closed meanwhile; UserError if
        the pool does not run.
        """
        instance = await self.take(wait_secs)
        assert instance.child is not None
        return instance.child

    async def take(self, wait_secs: Duration | None = 0.0) -> AgentInstance:
        """Does the same as `allocate`, but returns the `AgentInstance` of the child instead of the child itself."""
        if not self._pool.running:
            raise UserError(f"warm pool {self.name!r} does not run", hint="await pool.start() before, or `async with`")
        wait_s = None if wait_secs is None else parse_seconds(wait_secs, name="allocate: wait_secs")
        instance = self._pool.take()
        if instance is None and wait_s != 0:
            with suppress(TimeoutError):
                instance = await self._pool.wait(wait_s=wait_s)
        if instance is None:
            self._counts["refused"] += 1
            raise self._exhausted(f"none of its children {f'was warm in {wait_s:g} s' if wait_s else 'is warm'}")
        assert instance.child is not None
        self._pool.was_of_use()
        self._counts["allocated"] += 1
        if self._seconds is not None:
            instance.child.end_after(self._seconds)
        return instance

    async def give_back(self, child: Child) -> None:
        """Ends a child that `allocate` has returned; or, if the pool has a `reset`, resets the child, so that it can
        be given to another user. Does nothing for any other child.
        """
        instance = self._given_out.pop(child, None)
        if instance is None:
            return
        again = False
        try:
            if self._reset is not None and _is_fit(child):
                child.end_after(None)
                with suppress(CommunicationError):
                    again = await self._reset(child)
        finally:
            if again and self._pool.running and _is_fit(child) and self._is_quiet(child):
                instance.work(begins=False)
                self._pool.offer(instance)
            else:
                await run_to_end(self._end(instance))

    @asynccontextmanager
    async def borrowed(self, wait_secs: Duration | None = 0.0) -> AsyncIterator[Child]:
        """Calls `allocate`, gives the child to the `with` block, and calls `give_back` after the block."""
        child = await self.allocate(wait_secs)
        try:
            yield child
        finally:
            await run_to_end(self.give_back(child))

    async def refresh(self) -> int:
        """Replaces the warm children that would be older than `max_age_secs` at the next call. Returns the number of
        these children.
        """
        oldest = self._clock.monotonic() + self.config.refresh_interval_secs - self.config.max_age_secs
        stale = [each for each, since in self._pool.free.items() if since < oldest]
        self._counts["refreshed"] += len(stale)
        await asyncio.gather(*map(self._pool.retire, stale))
        return len(stale)

    def status(self) -> WarmPoolStatus:
        """Returns a view of the pool at this moment."""
        now = self._clock.monotonic()
        ages = tuple(now - since for since in self._pool.free.values())
        return WarmPoolStatus(
            warm=len(ages),
            starting=self._pool.starting,
            given_out=len(self._given_out),
            ages_secs=ages,
            failure=self._pool.failures.why,
            **self._counts,
        )

    def samples(self) -> list[Sample]:
        """Returns the pool's Prometheus samples. May be called from any thread."""
        pool = self._pool
        states = {"warm": len(pool.free), "starting": pool.starting, "given_out": len(self._given_out)}
        counts = {name: count for name, count in self._counts.items() if name != "spawned"}
        return [
            *(Sample("sabot_warm_pool_children", count, self.name, state) for state, count in states.items()),
            *(Sample("sabot_warm_pool_events_total", count, self.name, what) for what, count in counts.items()),
        ]

    async def close(self) -> None:
        """Ends all children, also those that have a user. Callers that wait in `allocate` get WarmPoolExhausted."""
        await self._pool.close(lambda: self._exhausted("it was closed"))
        self._given_out.clear()

    # -- internals ----------------------------------------------------------------------------------------------------

    def _can_work(self, instance: AgentInstance) -> bool:
        """Returns True if a warm child can be given to a user. Otherwise counts the child as refreshed (it is too
        old, or has output of earlier work) or as died (it has ended or is stopped); the caller then ends it.
        """
        assert instance.child is not None
        too_old = self._clock.monotonic() - self._pool.free[instance] > self.config.max_age_secs
        if too_old or (instance.phase is Phase.IDLE and not self._is_quiet(instance.child)):
            self._counts["refreshed"] += 1
        elif not _is_fit(instance.child):
            self._counts["died"] += 1
            self._pool.failed(self._pool.members[instance], "was stopped, or ended, while it was warm")
        else:
            return True
        return False

    def _given(self, instance: AgentInstance, is_given: bool) -> None:
        assert instance.child is not None
        if is_given:
            self._given_out[instance.child] = instance
        else:
            self._given_out.pop(instance.child, None)
        instance.work(begins=is_given)

    def _exhausted(self, why: str) -> WarmPoolExhausted:
        because = f"; the last one {self._pool.failures.why}" if self._pool.failures.why else ""
        return WarmPoolExhausted(
            f"warm pool {self.name!r} of {self.command.argv[0]}: {why}{because}",
            hint="wait (wait_secs=), or make the pool larger (size=)",
        )

    def _is_quiet(self, child: Child) -> bool:
        """Returns True if the child has no unread stdout and no unsent stdin, which its next user would get. Drops
        its unread stderr.
        """
        while child.stderr is not None and child.stderr.read_nowait():
            pass
        has_rest = (child.stdout is not None and child.stdout.has_unread) or (child.stdin and child.stdin.has_unsent)
        if has_rest:
            _log.warning(
                "warm pool %r: a child of %s has output of its last work, or input, that nobody has read, and is ended",
                *(self.name, self.command.argv[0]),
            )
        return not has_rest

    async def _start(self) -> tuple[AgentInstance, Child]:
        instance = AgentInstance(
            self.command,
            name=self.name,
            ready=None if self._line is None else self._until_ready,
            ready_within_s=self.config.spawn_timeout_secs,
            clock=self._clock,
        )
        try:
            child = await instance.start()
        except Timeout as error:
            raise SpawnFailed(
                f"{self.command.argv[0]} was not warm in {self.config.spawn_timeout_secs:g} s",
                hint="" if self._line is None else f"it is to say {self._line.decode()!r} on its stdout",
            ) from error
        if self._lives is not None:
            self._lives.adopt(instance)
        self._counts["spawned"] += 1
        return instance, child

    async def _until_ready(self, child: Child) -> None:
        assert child.stdout is not None
        async for line in child.stdout.lines():
            if line == self._line:
                return
        await asyncio.Event().wait()  # the child has closed its stdout: wait until its end is noticed

    def _ended(self, instance: AgentInstance, child: Child, was_warm: bool) -> str:
        instance.see()
        self._given_out.pop(child, None)
        self._counts["died"] += was_warm
        return f"ended while it was warm: {child.how}" if was_warm else ""

    async def _end(self, instance: AgentInstance) -> None:
        await end_member(instance, self.config.grace_secs, "its warm pool has ended it")


def _is_fit(child: Child) -> bool:
    """Returns True if the child runs: its process has not ended, and nobody has stopped it (SIGSTOP). It looks at the
    process itself, so it also notices an end that the supervisor has not reported yet.
    """
    return not child.trouble and numbers_of(child.pid) is not None
