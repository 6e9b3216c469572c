"""The lives of child processes: spawned, suspended, resumed, started again when they fail, terminated.

    pending ──> running ──> suspended            pending: its program is being started, or waits for that
       ^  │        │  ^─────────┘ │              failed: its restarts are used up
       │  v        v              v              terminated: it was, or has ended by itself with 0
       └─ failed ──────> terminated

One verb works on an instance at a time; another one waits. A verb that finds the instance where it is to bring it does nothing.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType

from sabot.backoff import Backoff
from sabot.checks import check_called
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, parse_seconds
from sabot.errors import message_of
from sabot.process.client import Child, Supervisor
from sabot.process.command import Command
from sabot.process.errors import (
    AgentNotSpawned,
    CommunicationError,
    RestartFailed,
    ResumeFailed,
    SuspendFailed,
    TerminateFailed,
    UnknownAgent,
)
from sabot.process.fleet.instances import OVER, AgentInstance, InstanceInfo, LifecycleConfig, LifecycleState, OnState
from sabot.process.status import ExitStatus
from sabot.supervision import TaskSet
from sabot.threads import run_to_end

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0  # for the supervisor to say that a signal was sent
_LONGEST_BACKOFF_SECONDS = 60.0  # unless `restart_backoff` is longer
_KILL_SECONDS = 10.0  # for SIGKILL to end what it was sent to
_ENDED_KEPT = 1000  # instances that have ended, of which a manager still tells
_STOPPED = "somebody else has stopped its process (SIGSTOP)"
_IDLE_SHARE = 0.01  # of one core: who computes less and writes nothing is idle


Checkpoint = Callable[[AgentInstance], Awaitable[Command]]
"""Saves what a running instance has, and gives the command with which it goes on from there."""


class LifecycleManager:
    """Starts instances as children of this machine and leads their lives. They end with `close`, and with this process, however it ends.

    checkpoint: saves what a running instance has, and gives the command with which it goes on from there; by it memory is given back.
    on_state: called with an instance, its state before, and the new one. sleep: waits before restarts and between looks for idle instances.
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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        """Starts an instance. Returns when its program was executed, and `ready` has returned.

        An id of an instance that has not ended gives that instance, if its command was this one. Raises AgentNotSpawned. A caller that is
        cancelled leaves no process.
        """
        if self._closed:
            raise AgentNotSpawned("the lifecycle manager is closed, and starts no agent")
        there = None if agent_id is None else self._instances.get(agent_id)
        if there is not None and not (there.is_over and there.child is None):
            return await self._same(there, command)
        agent_id = agent_id or uuid.uuid4().hex
        instance = self._instances[agent_id] = AgentInstance(
            agent_id, name, command, ready=ready, on_state=self._on_state
        )
        self._forget_the_oldest()
        if self.config.idle_suspend is not None and not self._looking:
            self._looking = True
            self._tasks.begin(self._look_for_idle(self.config.idle_suspend))
        try:
            await asyncio.shield(self._tasks.begin(self._start_first(instance), awaited=True))
        except asyncio.CancelledError:
            await run_to_end(self._terminate(instance, 0.0, "its spawn was cancelled"))
            raise
        if instance.state is not LifecycleState.RUNNING:
            raise AgentNotSpawned(f"instance {instance.label}: {instance.why}")
        return instance

    def adopt(self, child: Child, command: Command, *, agent_id: str | None = None, name: str = "") -> AgentInstance:
        """Takes a process that something else leads, a fleet or a warm pool, as an instance, until it has ended: it is listed, suspended,
        resumed and terminated as others are, and quotas hold for it; it is never started again, nor idle, nor ended by `close`.
        """
        instance = AgentInstance(agent_id or uuid.uuid4().hex, name, command, on_state=self._on_state)
        self._instances[instance.id] = instance
        self._forget_the_oldest()
        instance.is_adopted, instance.child = True, child
        instance.become(LifecycleState.RUNNING)
        self._tasks.begin(self._watch(instance, child))
        return instance

    async def suspend(self, agent_id: str, *, release_memory: bool = False, why: str = "") -> AgentInstance:
        """Stops all processes of the instance where they are (SIGSTOP): they use no CPU, and keep their memory and connections.

        release_memory: the manager's `checkpoint` saves it instead, and its processes end. Raises SuspendFailed; UnknownAgent.
        """
        instance = self.agent(agent_id)
        await run_to_end(self._suspend(instance, release_memory, why or "it was suspended"))
        return instance

    async def resume(self, agent_id: str) -> AgentInstance:
        """Lets a suspended instance go on, in a new process where its old one has ended. Raises ResumeFailed; UnknownAgent."""
        instance = self.agent(agent_id)
        await run_to_end(self._resume(instance))
        return instance

    async def restart(self, agent_id: str, *, at_once: bool = False, why: str = "") -> AgentInstance:
        """Ends the instance's process in good order, if it has one, and starts another one. Returns when that runs.

        It counts, and waits, as after a failure. at_once: it does neither, and the count begins anew. Raises RestartFailed, also when its
        restarts are used up; UnknownAgent.
        """
        instance = self.agent(agent_id)
        await run_to_end(self._restart(instance, at_once, why or "it was restarted"))
        if await instance.until(LifecycleState.RUNNING, LifecycleState.SUSPENDED, *OVER) in OVER:
            raise RestartFailed(f"instance {instance.label} was not started again: {instance.why}")
        return instance

    async def terminate(self, agent_id: str, *, grace_seconds: Duration | None = None, why: str = "") -> AgentInstance:
        """Ends the instance for good: its stdin is closed, SIGTERM, and SIGKILL to who lives after the grace, `shutdown_timeout` if None.

        Raises TerminateFailed when something of it still runs; UnknownAgent.
        """
        instance = self.agent(agent_id)
        grace_s = None if grace_seconds is None else parse_seconds(grace_seconds, name="terminate: grace_seconds")
        await run_to_end(self._terminate(instance, grace_s, why or "it was terminated"))
        return instance

    async def close(self) -> None:
        """Terminates all instances. Returns when nothing of them is left; raises TerminateFailed where that cannot be done."""
        self._closed = True
        await run_to_end(self._close())

    # -- who is there -------------------------------------------------------------------------------------------------

    def agent(self, agent_id: str) -> AgentInstance:
        """The instance of this id. Raises UnknownAgent."""
        if (found := self._instances.get(agent_id)) is None:
            raise UnknownAgent(f"there is no instance {agent_id!r}", hint="list_agents() has them")
        return found

    def list_agents(self) -> list[InstanceInfo]:
        """All instances, and of those that have ended the last thousand."""
        for instance in self._instances.values():
            if not instance.lock.locked():  # else a verb is about to say what it is
                self._see(instance)
        return [instance.info for instance in self._instances.values()]

    async def wait(self, agent_id: str) -> LifecycleState:
        """Returns when the instance is terminated, or failed for good. Raises UnknownAgent."""
        return await self.agent(agent_id).until(*OVER)

    @asynccontextmanager
    async def in_use(self, agent_id: str) -> AsyncIterator[AgentInstance]:
        """Inside, the instance is not idle; if it was suspended because it was, it goes on. Raises ResumeFailed where it does not run."""
        instance = self.agent(agent_id)
        instance.users += 1
        try:
            await run_to_end(self._wake(instance))
            yield instance
        finally:
            instance.users -= 1
            instance.active_at = self._clock.monotonic()

    async def suspend_idle(self) -> list[str]:
        """Looks at all running instances once, and suspends those that have been idle for `idle_suspend`: they were not in use, wrote
        nothing and used less than a hundredth of a core. -> their ids
        """
        asleep = []
        for instance in list(self._instances.values()):
            if not instance.lock.locked():
                self._see(instance)
            if instance.state is LifecycleState.RUNNING and not instance.is_adopted and await self._is_idle(instance):
                try:
                    await run_to_end(self._suspend(instance, self.config.release_idle, "it was idle", if_idle=True))
                except SuspendFailed as error:  # the next look tries again
                    _log.warning("%s", error)
                else:
                    asleep += [instance.id] if instance.is_asleep else []
        return asleep

    # -- starts -------------------------------------------------------------------------------------------------------

    async def _same(self, instance: AgentInstance, command: Command) -> AgentInstance:
        if instance.first_command != command:
            raise AgentNotSpawned(
                f"instance {instance.id!r} is {instance.state}, with another command",
                hint="terminate it, or take another id",
            )
        if await instance.until(LifecycleState.RUNNING, LifecycleState.SUSPENDED, *OVER) in OVER:
            raise AgentNotSpawned(f"instance {instance.label}: {instance.why}")
        return instance

    async def _start_first(self, instance: AgentInstance) -> None:
        async with instance.lock:
            if instance.state is not LifecycleState.PENDING:  # terminated before it was started
                return
            try:
                await self._start(instance)
            except AgentNotSpawned as error:
                instance.why = error.message
                instance.become(LifecycleState.TERMINATED if instance.given_up.is_set() else LifecycleState.FAILED)

    async def _start(self, instance: AgentInstance) -> None:
        """Gives the instance a process that is ready; the lock is held. Raises AgentNotSpawned, and nothing of the process is left then."""
        seconds = self.config.spawn_timeout
        instance.next_start_at = None
        try:
            async with asyncio.timeout(seconds) as limit:
                instance.child = await (await Supervisor.running()).spawn(instance.command)
                await self._until_ready(instance, instance.child)
        except Exception as error:
            why = f"it was not ready in {seconds:g} s" if limit.expired() else message_of(error)
            if instance.child is not None:
                try:
                    await self._stop(instance, instance.child, 0.0)
                except TerminateFailed as worse:  # it stays the instance's child until it has ended
                    why = f"{why}; {worse.message}"
                    self._tasks.begin(self._watch(instance, instance.child))
            raise AgentNotSpawned(why) from error
        now = self._clock.monotonic()
        instance.running_since = instance.active_at = now
        instance.seen = (0, 0.0)
        instance.become(LifecycleState.RUNNING)
        self._tasks.begin(self._watch(instance, instance.child))

    async def _until_ready(self, instance: AgentInstance, child: Child) -> None:
        """Raises what `ready` raises, and AgentNotSpawned where the instance has ended, or is to."""
        if instance.ready is not None:
            ready = asyncio.ensure_future(instance.ready(child))
            others = [asyncio.ensure_future(child.wait()), asyncio.ensure_future(instance.given_up.wait())]
            try:
                await asyncio.wait([ready, *others], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    ready.result()
                elif others[0].done():
                    raise AgentNotSpawned(f"it was not ready before {child.how}")
            finally:
                for each in (ready, *others):
                    each.cancel()
                await asyncio.wait([ready, *others])
        if instance.given_up.is_set():
            raise AgentNotSpawned("it was terminated before it was ready")

    async def _restart(self, instance: AgentInstance, at_once: bool, why: str) -> None:
        async with instance.lock:
            own = self.config
            if instance.is_adopted:
                raise RestartFailed(
                    f"instance {instance.label} is not started again here", hint="who has started it does"
                )
            if instance.state is LifecycleState.TERMINATED or self._closed:
                raise RestartFailed(
                    f"instance {instance.label} is terminated: {instance.why}", hint="spawn another one"
                )
            if instance.state is LifecycleState.PENDING and not at_once:  # it is about to be started
                return
            if not at_once and instance.failures >= own.max_restarts:
                raise RestartFailed(
                    f"instance {instance.label} was started again {own.max_restarts} times: {instance.why}",
                    hint="restart(at_once=True) begins the count anew",
                )
            if instance.child is not None:
                try:
                    await self._stop(instance, instance.child, own.shutdown_timeout)
                except TerminateFailed as error:
                    raise RestartFailed(error.message) from error
            instance.why, instance.is_asleep = why, False
            if at_once:
                instance.failures = 0
                self._plan(instance, 0.0)
            else:
                self._plan_again(instance)

    def _plan_again(self, instance: AgentInstance) -> None:
        """Its next start, after a wait; or none any more."""
        own = self.config
        if instance.failures >= own.max_restarts:
            times = f" after {instance.failures} restarts" if instance.failures else ""
            _log.warning("instance %s has failed%s: %s", instance.label, times, instance.why)
            instance.become(LifecycleState.FAILED)
        else:
            instance.failures += 1
            longest_s = max(own.restart_backoff, _LONGEST_BACKOFF_SECONDS)
            self._plan(instance, Backoff(own.restart_backoff, longest_s).wait_s(instance.failures))

    def _plan(self, instance: AgentInstance, seconds: float) -> None:
        self._drop_plan(instance)
        instance.next_start_at = self._clock.time() + seconds
        if instance.state is not LifecycleState.PENDING:
            instance.become(LifecycleState.PENDING)
        instance.waiting = self._tasks.begin(self._start_later(instance, seconds))

    def _drop_plan(self, instance: AgentInstance) -> None:
        instance.next_start_at = None
        if instance.waiting is not None:
            instance.waiting.cancel()
            instance.waiting = None

    async def _start_later(self, instance: AgentInstance, seconds: float) -> None:
        if seconds:
            await self._sleep(seconds)
        async with instance.lock:
            instance.waiting = None  # from here on it is not cancelled
            instance.restarts += 1
            try:
                await self._start(instance)
            except AgentNotSpawned as error:
                instance.why = error.message
                if instance.given_up.is_set():
                    instance.become(LifecycleState.TERMINATED)
                else:
                    self._plan_again(instance)

    # -- ends ---------------------------------------------------------------------------------------------------------

    async def _watch(self, instance: AgentInstance, child: Child) -> None:
        """Until this process of the instance has ended, and for what follows then."""
        try:
            status: ExitStatus | None = await child.wait()
        except CommunicationError:
            status = None
        async with instance.lock:
            if instance.child is not child:  # a verb has ended it
                return
            instance.child, instance.why = None, child.how
            if instance.is_adopted:
                instance.become(LifecycleState.TERMINATED)
                return
            if instance.state is not LifecycleState.RUNNING:  # suspended: `resume` starts another one
                return
            if instance.given_up.is_set() or (status is not None and status.success):
                instance.become(LifecycleState.TERMINATED)
                return
            if self._clock.monotonic() - instance.running_since >= self.config.stable_after:
                instance.failures = 0
            self._plan_again(instance)

    async def _stop(self, instance: AgentInstance, child: Child, grace_seconds: float) -> None:
        """The lock is held. Raises TerminateFailed."""
        try:
            async with asyncio.timeout(grace_seconds + _KILL_SECONDS):
                await child.stop(grace_seconds)
        except TimeoutError as error:
            raise TerminateFailed(
                f"instance {instance.label} (pid {child.pid}) was sent SIGKILL, and has not ended in {_KILL_SECONDS:g} s",
                hint="it hangs in the kernel, or its supervisor is stopped",
            ) from error
        except CommunicationError:  # its supervisor was killed, and it with that one
            pass
        instance.child = None

    async def _terminate(self, instance: AgentInstance, grace_seconds: float | None, why: str) -> None:
        instance.given_up.set()
        if grace_seconds == 0 and instance.child is not None:
            instance.child.kill()  # whoever waits in the lock for its end in good order
        async with instance.lock:
            self._drop_plan(instance)
            if instance.state is LifecycleState.TERMINATED:
                return
            if instance.child is not None:
                grace = self.config.shutdown_timeout if grace_seconds is None else grace_seconds
                await self._stop(instance, instance.child, grace)
            instance.why = why
            instance.become(LifecycleState.TERMINATED)

    async def _close(self) -> None:
        alive = [
            each
            for each in self._instances.values()
            if not (each.is_adopted or each.state is LifecycleState.TERMINATED)
        ]
        ended = [self._terminate(instance, None, "its manager was closed") for instance in alive]
        errors = [each for each in await asyncio.gather(*ended, return_exceptions=True) if each is not None]
        await self._tasks.cancel()
        if errors:
            raise errors[0]

    # -- suspended ----------------------------------------------------------------------------------------------------

    async def _suspend(self, instance: AgentInstance, release: bool, why: str, *, if_idle: bool = False) -> None:
        async with instance.lock:
            child = instance.child
            if if_idle and (instance.users or instance.state is not LifecycleState.RUNNING):
                return
            if instance.state is LifecycleState.SUSPENDED and (child is None or not release):
                instance.why, instance.is_asleep = why, False
                return
            if (
                child is None
                or child.is_over
                or instance.state not in (LifecycleState.RUNNING, LifecycleState.SUSPENDED)
            ):
                raise SuspendFailed(
                    f"instance {instance.label} is not suspended: it is {instance.state}, and has no process"
                )
            if release:
                await self._release(instance, child)
            else:
                child.pause()
                try:
                    await self._sent(child)
                except CommunicationError as error:
                    child.resume()
                    raise SuspendFailed(f"instance {instance.label} was not suspended: {error.message}") from error
            instance.why, instance.is_asleep = why, if_idle
            if instance.state is not LifecycleState.SUSPENDED:
                instance.become(LifecycleState.SUSPENDED)

    async def _release(self, instance: AgentInstance, child: Child) -> None:
        where = f"instance {instance.label}: its memory cannot be given back"
        if instance.is_adopted:
            raise SuspendFailed(f"{where}: it is not started again here", hint="suspend(…) alone stops its processes")
        if self._checkpoint is None:
            raise SuspendFailed(f"{where}: the manager has no checkpoint", hint="LifecycleManager(checkpoint=...)")
        child.resume()  # it may have to say what it has
        try:
            async with asyncio.timeout(self.config.shutdown_timeout):
                command = await self._checkpoint(instance)
            await self._stop(instance, child, self.config.shutdown_timeout)
        except Exception as error:
            if instance.state is LifecycleState.SUSPENDED:
                child.pause()
            raise SuspendFailed(f"instance {instance.label} was not suspended: {message_of(error)}") from error
        instance.command = command

    async def _resume(self, instance: AgentInstance) -> None:
        async with instance.lock:
            instance.active_at = self._clock.monotonic()
            if instance.state in OVER:
                raise ResumeFailed(
                    f"instance {instance.label} does not go on: it is {instance.state}, {instance.why}",
                    hint="spawn another one",
                )
            self._see(instance)
            if instance.state is LifecycleState.SUSPENDED:
                await self._go_on(instance)

    async def _go_on(self, instance: AgentInstance) -> None:
        if instance.child is not None and not instance.child.is_over:
            instance.child.resume()
            try:
                await self._sent(instance.child)
            except CommunicationError as error:
                instance.child.pause()
                raise ResumeFailed(f"instance {instance.label} does not go on: {error.message}") from error
            instance.become(LifecycleState.RUNNING)
        else:
            instance.become(LifecycleState.PENDING)
            try:
                await self._start(instance)
            except AgentNotSpawned as error:
                instance.become(LifecycleState.SUSPENDED)
                raise ResumeFailed(f"instance {instance.label} does not go on: {error.message}") from error
        instance.is_asleep = False

    async def _wake(self, instance: AgentInstance) -> None:
        async with instance.lock:
            self._see(instance)
            if instance.state is LifecycleState.SUSPENDED and instance.is_asleep:
                await self._go_on(instance)
            if instance.state is not LifecycleState.RUNNING:
                raise ResumeFailed(f"instance {instance.label} is {instance.state}: {instance.why}")

    def _see(self, instance: AgentInstance) -> None:
        """An instance whose process somebody else has stopped is suspended, until that one or `resume` lets it go on."""
        child = instance.child
        if child is None or child.is_over:
            return
        if instance.state is LifecycleState.RUNNING and child.paused:
            instance.why, instance.is_asleep = _STOPPED, False
            instance.become(LifecycleState.SUSPENDED)
        elif instance.state is LifecycleState.SUSPENDED and instance.why is _STOPPED and not child.paused:
            instance.become(LifecycleState.RUNNING)

    async def _sent(self, child: Child) -> None:
        """Returns when the supervisor has done what it was asked before: it answers in order. Raises CommunicationError."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await child.usage()
        except TimeoutError as error:
            raise CommunicationError(f"its supervisor has not answered in {_ANSWER_SECONDS:g} s") from error

    async def _is_idle(self, instance: AgentInstance) -> bool:
        """Whether it has done nothing for `idle_suspend`, as far as the looks before this one can tell."""
        child, now = instance.child, self._clock.monotonic()
        if child is None or instance.users or self.config.idle_suspend is None:
            return False
        try:
            used = await child.usage()
        except CommunicationError:  # its supervisor was killed: its end is on the way
            return False
        written, computed = child.output_bytes - instance.seen[0], used.cpu_seconds - instance.seen[1]
        instance.seen = (child.output_bytes, used.cpu_seconds)
        if written or computed > _IDLE_SHARE * self._look_seconds(self.config.idle_suspend):
            instance.active_at = now
        return now - instance.active_at >= self.config.idle_suspend

    def _look_seconds(self, idle_suspend: float) -> float:
        return min(10.0, idle_suspend / 10)

    async def _look_for_idle(self, idle_suspend: float) -> None:
        while True:
            await self._sleep(self._look_seconds(idle_suspend))
            await self.suspend_idle()

    # -- what they share ----------------------------------------------------------------------------------------------

    def _forget_the_oldest(self) -> None:
        over = [instance.id for instance in self._instances.values() if instance.is_over and instance.child is None]
        for agent_id in over[: max(0, len(over) - _ENDED_KEPT)]:
            del self._instances[agent_id]
