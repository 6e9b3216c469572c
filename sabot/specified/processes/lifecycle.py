"""The lifecycle manager of the specification 002 (`docs/names.md`): it keeps instances by their ids, and looks for idle ones.

One verb works on an instance at a time, and others wait. A verb does nothing if the instance is already in the state
that the verb leads to. The phases and the verbs themselves are those of `process.instance`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sabot.base.checks import check_called
from sabot.base.config import Duration, check_numbers, checked_durations, parse_seconds
from sabot.base.supervision import TaskSet
from sabot.base.threads import run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.process.client import Child
from sabot.process.command import Command
from sabot.process.document_names import LifecycleState
from sabot.process.errors import (
    AgentNotSpawned,
    RestartFailed,
    ResumeFailed,
    SuspendFailed,
    UnknownAgent,
)
from sabot.process.inspection import UsageMeter
from sabot.process.instance import Instance, RestartPolicy
from sabot.process.phases import OVER, RUNS, Phase

_log = logging.getLogger("sabot.process.lifecycle")

_ENDED_KEPT = 1000  # the most ended instances that a manager still lists
_IDLE_SHARE = 0.01  # of one core: an instance that computes less and writes nothing is idle

IDLE = "it was idle"
"""The reason of an idle instance's suspension. Such an instance goes on as soon as it is used."""


@dataclass(frozen=True, kw_only=True)
class LifecycleConfig:
    """The settings of a lifecycle manager. Times are in seconds.

    - `spawn_timeout`: the longest time from the start of an instance until it is ready.
    - `shutdown_timeout`: the time from SIGTERM to SIGKILL, and the longest time that `checkpoint` may take.
    - `max_restarts`: the most restarts in a row of an instance that fails.
    - `restart_backoff`: the wait before the first restart in a row. Before each further restart the wait doubles, up
      to 60 s.
    - `stable_after`: when a process has run for so long, the count of restarts in a row starts again at 0.
    - `idle_suspend`: the time without work after which an instance is suspended; None to never suspend idle
      instances.
    - `release_idle`: True to save the state of an instance before it is suspended as idle (with the manager's
      `checkpoint`), and to end its process, which frees its memory. With False the process is only stopped.
    """

    spawn_timeout: float = 60.0
    shutdown_timeout: float = 30.0
    max_restarts: int = 5
    restart_backoff: float = 1.0
    stable_after: float = 300.0
    idle_suspend: float | None = 300.0
    release_idle: bool = False

    def __post_init__(self) -> None:
        checked_durations(self, "spawn_timeout")
        checked_durations(self, "shutdown_timeout", "restart_backoff", "stable_after", zero=True)
        checked_durations(self, "idle_suspend", none=True)
        check_numbers(self, "max_restarts", zero=True, whole=True)

    def policy(self) -> RestartPolicy:
        """Returns the restart policy that these settings describe."""
        return RestartPolicy(
            most=self.max_restarts, first_wait_s=self.restart_backoff, stable_after_s=self.stable_after
        )


@dataclass(frozen=True)
class InstanceInfo:
    """A view of an instance at one moment.

    - `state`: its state, by the names of specification 002.
    - `pid`: the process id; 0 if the instance has no process. `started_at`: the start of this process in seconds
      since 1970; 0 if there is none.
    - `restarts`: the number of restarts since the first start. `why`: the reason of the last end or suspension.
    - `next_start_at`: the time at which the next process will be started, in seconds since 1970; None if no start is
      planned.
    """

    id: str
    name: str
    state: LifecycleState
    pid: int
    started_at: float
    restarts: int
    why: str
    next_start_at: float | None


class AgentInstance(Instance):
    """An instance of a lifecycle manager. It adds to `Instance` the name of its state in specification 002, and the
    values by which the manager finds out whether the instance is idle.
    """

    def __init__(self, command: Command, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> None:
        """Makes an instance. `options`: the other keyword arguments of `Instance`."""
        super().__init__(command, clock=clock, **options)
        self.first_command = command
        self.is_adopted = False  # True if a fleet or a pool starts and ends it
        self.users = 0  # callers inside of `in_use`
        self.active_at = 0.0
        self.written_bytes = 0  # output of its process at the last look
        self.meter = UsageMeter(clock)  # of its manager; of its fleet, if that has started it

    @property
    def state(self) -> LifecycleState:
        """The state of the instance, by the names of specification 002 (`LifecycleState`)."""
        return self.phase.lifecycle_state

    @property
    def is_asleep(self) -> bool:
        """True if the instance was suspended because it was idle."""
        return self.phase is Phase.SUSPENDED and self.suspended_for is IDLE

    @property
    def info(self) -> InstanceInfo:
        """A view of the instance at this moment."""
        started_at = self.child.started_at if self.child is not None and self.pid else 0.0
        return InstanceInfo(
            self.id, self.name, self.state, self.pid, started_at, self.restarts, self.why, self.next_start_at
        )

    async def until_over(self) -> LifecycleState:
        """Waits until the instance is terminated or has failed for good, and returns that state."""
        return (await self.until(lambda phase: phase in OVER)).lifecycle_state


OnState = Callable[[AgentInstance, LifecycleState, LifecycleState], None]
"""A listener, called with an instance, its state before, and the new one."""

Checkpoint = Callable[[AgentInstance], Awaitable[Command]]
"""A function that saves the state of a running instance, and returns the command with which it goes on from there."""


class LifecycleManager:
    """A manager that starts instances as child processes on this machine. `close` ends them, and so does the end of
    this process, in whatever way it ends.

    - `checkpoint`: a coroutine function that is called with a running instance, saves its state, and returns the
      command with which its next process continues. Without this function, `suspend` cannot use `release_memory`.
    - `on_state`: called with an instance, its state before, and the new one.
    - `sleep`: a coroutine function with which the manager waits a number of seconds: before restarts, and between
      searches for idle instances.
    """

    def __init__(
        self,
        config: LifecycleConfig | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        on_state: OnState | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_called("LifecycleManager", on_state=on_state)
        self.config = config or LifecycleConfig()
        self._checkpoint = checkpoint
        self._on_state = on_state
        self._clock = clock
        self._sleep = sleep
        self._instances: dict[str, AgentInstance] = {}
        self._tasks = TaskSet("the lifecycle manager")
        self._looking = False
        self._closed = False

    async def __aenter__(self) -> "LifecycleManager":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- verbs --------------------------------------------------------------------------------------------------------

    async def spawn(
        self,
        command: Command,
        *,
        agent_id: str | None = None,
        name: str = "",
        ready: Callable[[Child], Awaitable[object]] | None = None,
    ) -> AgentInstance:
        """Starts an instance, and returns it as soon as its program runs and `ready` has returned.

        - `agent_id`: the id of the instance; None for a new id. If an instance with this id has not ended, no process
          is started: if its command is equal to `command`, that instance is returned, and otherwise AgentNotSpawned
          is raised.
        - `name`: the name of the instance in messages; with "" it is the name of the program.
        - `ready`: a coroutine function that is called with the new process, and returns when the process is ready.

        Raises AgentNotSpawned if the program does not start, is not ready within `spawn_timeout`, or if the manager is
        closed. If the caller is cancelled, the process is ended.
        """
        if self._closed:
            raise AgentNotSpawned("the lifecycle manager is closed, and starts no agent")
        there = None if agent_id is None else self._instances.get(agent_id)
        if there is not None and not (there.is_over and there.child is None):
            return await self._same(there, command)
        instance = self._add(
            command,
            name=name,
            instance_id=agent_id,
            policy=self.config.policy(),
            ready=ready,
            ready_within_s=self.config.spawn_timeout,
        )
        if self.config.idle_suspend is not None and not self._looking:
            self._looking = True
            self._tasks.every(_look_seconds(self.config.idle_suspend), self.suspend_idle, self._sleep)
        try:
            await asyncio.shield(self._tasks.begin(instance.start(), awaited=True))
        except asyncio.CancelledError:
            await run_to_end(instance.end(0.0, "its spawn was cancelled"))
            raise
        except Exception as error:
            raise AgentNotSpawned(f"instance {instance.label}: {instance.why}") from error
        instance.active_at = self._clock.monotonic()
        return instance

    def adopt(self, instance: AgentInstance) -> None:
        """Lists an instance of a fleet or of a warm pool among those of this manager until the instance has ended.

        The instance can then be suspended, resumed and terminated by its id, and can have a quota. The manager does not
        restart it, does not suspend it as idle, and does not end it in `close`: its fleet or pool does that.
        """
        instance.is_adopted, instance.on_phase = True, self._tell
        self._list(instance)

    async def suspend(self, agent_id: str, *, release_memory: bool = False, why: str = "") -> AgentInstance:
        """Stops all processes of the instance where they are (SIGSTOP): they use no CPU, and keep their memory and
        connections. With `release_memory`, calls the manager's `checkpoint` to save the instance's state, and ends
        its processes instead.

        `why`: the reason, for messages. Raises SuspendFailed if it cannot be suspended; UnknownAgent if there is no
        instance with this id.
        """
        instance = self.agent(agent_id)
        await run_to_end(self._suspend(instance, release_memory, why or "it was suspended"))
        return instance

    async def resume(self, agent_id: str) -> AgentInstance:
        """Continues a suspended instance, in a new process if its old one has ended. Does nothing if the instance is not
        suspended. Raises ResumeFailed if it cannot be continued or has ended; UnknownAgent if there is no instance with
        this id.
        """
        instance = self.agent(agent_id)
        instance.active_at = self._clock.monotonic()
        await run_to_end(instance.resume())
        return instance

    async def restart(self, agent_id: str, *, at_once: bool = False, why: str = "") -> AgentInstance:
        """Ends the instance's process with SIGTERM (later SIGKILL), if it has a process, and starts another one.
        Returns when the new process is ready.

        The restart counts as one after a failure, so the process starts after the same wait. With `at_once` there is no
        wait, and the count of restarts in a row starts again at 0. Raises RestartFailed if the instance cannot be
        restarted, for example because its restarts are used up; UnknownAgent if there is no instance with this id.
        """
        instance = self.agent(agent_id)
        if instance.is_adopted:
            raise RestartFailed(f"instance {instance.label} is not started again here", hint="its owner does that")
        await run_to_end(
            instance.restart(why or "it was restarted", grace_s=self.config.shutdown_timeout, at_once=at_once)
        )
        if await instance.until(_settled) in OVER:
            raise RestartFailed(f"instance {instance.label} was not started again: {instance.why}")
        return instance

    async def terminate(self, agent_id: str, *, grace_seconds: Duration | None = None, why: str = "") -> AgentInstance:
        """Ends the instance for good: closes its stdin, sends SIGTERM, and sends SIGKILL `grace_seconds` later
        (`shutdown_timeout` if None). `why`: the reason, for messages.

        Raises TerminateFailed if one of its processes still runs; UnknownAgent if there is no instance with this id.
        """
        instance = self.agent(agent_id)
        grace_s = self.config.shutdown_timeout
        if grace_seconds is not None:
            grace_s = parse_seconds(grace_seconds, name="terminate: grace_seconds")
        await run_to_end(instance.end(grace_s, why or "it was terminated"))
        return instance

    async def close(self) -> None:
        """Terminates all instances that this manager has started, and waits until their processes have ended. From then
        on `spawn` raises AgentNotSpawned. Raises TerminateFailed if one of these processes still runs.
        """
        self._closed = True
        await run_to_end(self._close())

    # -- the instances ------------------------------------------------------------------------------------------------

    def agent(self, agent_id: str) -> AgentInstance:
        """Returns the instance with this id. Raises UnknownAgent if there is none."""
        if (found := self._instances.get(agent_id)) is None:
            raise UnknownAgent(f"there is no instance {agent_id!r}", hint="list_agents() has them")
        return found

    def list_agents(self) -> list[InstanceInfo]:
        """Returns views of all instances that have not ended, and of the last thousand that have ended."""
        for instance in self._instances.values():
            instance.see()
        return [instance.info for instance in self._instances.values()]

    async def wait(self, agent_id: str) -> LifecycleState:
        """Waits until the instance is terminated, or has failed for good, and returns this state. Raises UnknownAgent
        if there is no instance with this id.
        """
        return await self.agent(agent_id).until_over()

    @asynccontextmanager
    async def in_use(self, agent_id: str) -> AsyncIterator[AgentInstance]:
        """Prevents that the instance counts as idle during the `with` block. If it is suspended because it was idle,
        resumes it before the block begins. Raises ResumeFailed if the instance does not run at the beginning of the
        block; UnknownAgent if there is no instance with this id.
        """
        instance = self.agent(agent_id)
        instance.users += 1
        try:
            await run_to_end(self._wake(instance))
            yield instance
        finally:
            instance.users -= 1
            instance.active_at = self._clock.monotonic()

    async def suspend_idle(self) -> list[str]:
        """Checks all running instances once, and suspends the idle ones. Returns the ids of those that it has
        suspended.

        An instance is idle if for `idle_suspend` seconds it was not in use (`in_use`), wrote no output, and used less
        than a hundredth of a core.
        """
        asleep = []
        for instance in list(self._instances.values()):
            if instance.see() in RUNS and not instance.is_adopted and await self._is_idle(instance):
                try:
                    await run_to_end(self._suspend(instance, self.config.release_idle, IDLE))
                except SuspendFailed as error:  # the next look tries again
                    _log.warning("%s", error)
                else:
                    asleep += [instance.id] if instance.is_asleep else []
        return asleep

    # -- internals ----------------------------------------------------------------------------------------------------

    def _add(self, command: Command, **options: Any) -> AgentInstance:
        instance = AgentInstance(
            command, on_phase=self._tell, tasks=self._tasks, clock=self._clock, sleep=self._sleep, **options
        )
        self._list(instance)
        return instance

    def _list(self, instance: AgentInstance) -> None:
        self._instances[instance.id] = instance
        over = [each.id for each in self._instances.values() if each.is_over and not each.pid]
        for agent_id in over[: max(0, len(over) - _ENDED_KEPT)]:
            del self._instances[agent_id]

    def _tell(self, instance: AgentInstance, before: Phase, phase: Phase) -> None:
        if phase is Phase.READY:
            instance.active_at, instance.written_bytes = self._clock.monotonic(), 0
        was, now = before.lifecycle_state, phase.lifecycle_state
        if self._on_state is not None and was is not now:
            self._on_state(instance, was, now)

    async def _same(self, instance: AgentInstance, command: Command) -> AgentInstance:
        if instance.first_command != command:
            raise AgentNotSpawned(
                f"instance {instance.id!r} is {instance.state}, with another command",
                hint="terminate it, or take another id",
            )
        if await instance.until(_settled) in OVER:
            raise AgentNotSpawned(f"instance {instance.label}: {instance.why}")
        return instance

    async def _close(self) -> None:
        alive = [
            each
            for each in self._instances.values()
            if not (each.is_adopted or each.phase in (Phase.COMPLETED, Phase.TERMINATED))
        ]
        ended = [instance.end(self.config.shutdown_timeout, "its manager was closed") for instance in alive]
        errors = [each for each in await asyncio.gather(*ended, return_exceptions=True) if each is not None]
        await self._tasks.cancel()
        if errors:
            raise errors[0]

    async def _suspend(self, instance: AgentInstance, release: bool, why: str) -> None:
        def is_in_use() -> bool:
            return why is IDLE and bool(instance.users or instance.phase not in RUNS)

        if not release:
            await instance.suspend(why, unless=is_in_use)
            return
        where = f"instance {instance.label}: its memory cannot be given back"
        if instance.is_adopted:
            raise SuspendFailed(f"{where}: it is not started again here", hint="suspend(…) alone stops its processes")
        if self._checkpoint is None:
            raise SuspendFailed(f"{where}: the manager has no checkpoint", hint="LifecycleManager(checkpoint=...)")
        await instance.release(self._checkpoint, self.config.shutdown_timeout, why, unless=is_in_use)

    async def _wake(self, instance: AgentInstance) -> None:
        if not instance.is_over:
            await instance.resume(only_if=lambda: instance.is_asleep)
        if instance.phase not in RUNS:
            raise ResumeFailed(f"instance {instance.label} is {instance.state}: {instance.why}")

    async def _is_idle(self, instance: AgentInstance) -> bool:
        """Measures the instance. Returns True if every measurement of the last `idle_suspend` seconds has found it
        idle: not in use, without new output, and with less than a hundredth of a core in use.
        """
        child, now = instance.child, self._clock.monotonic()
        if child is None or instance.users or self.config.idle_suspend is None:
            return False
        if await instance.meter.look(child) is None:
            return False
        if child.output_bytes > instance.written_bytes or (instance.meter.cores or 0.0) > _IDLE_SHARE:
            instance.active_at, instance.written_bytes = now, child.output_bytes
        return now - instance.active_at >= self.config.idle_suspend


def _settled(phase: Phase) -> bool:
    """Returns True if an instance in this phase does not change by itself soon: its process runs or is suspended, or
    the instance has ended.
    """
    return phase in (*RUNS, Phase.SUSPENDED, *OVER)


def _look_seconds(idle_suspend: float) -> float:
    return min(10.0, idle_suspend / 10)
