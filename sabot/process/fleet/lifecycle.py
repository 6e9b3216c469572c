"""The lives of agents that are processes: spawned, suspended, resumed, started again when they fail, terminated.

    pending ──> running ──> suspended            pending: its program is being started, or waits for that
       ^  │        │  ^─────────┘ │              failed: its restarts are used up
       │  v        v              v              terminated: it was, or has ended by itself with 0
       └─ failed ──────> terminated

One verb works on an agent at a time; another one waits. A verb that finds the agent where it is to bring it does nothing.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType

from sabot.backoff import Backoff
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, check_called, parse_seconds
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
_ENDED_KEPT = 1000  # agents that have ended, of which a manager still tells
_STOPPED = "somebody else has stopped its process (SIGSTOP)"
_IDLE_SHARE = 0.01  # of one core: who computes less and writes nothing is idle


Checkpoint = Callable[[AgentInstance], Awaitable[Command]]
"""Saves what a running agent has, and gives the command with which it goes on from there."""


class LifecycleManager:
    """Starts agents as children of this machine and leads their lives. They end with `close`, and with this process, however it ends.

    checkpoint: saves what a running agent has, and gives the command with which it goes on from there; by it memory is given back.
    on_state: called with an agent, its state before, and the new one. sleep: waits before restarts and between looks for idle agents.
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
        self._agents: dict[str, AgentInstance] = {}
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
        """Starts an agent. Returns when its program was executed, and `ready` has returned.

        An id of an agent that has not ended gives that agent, if its command was this one. Raises AgentNotSpawned. A caller that is
        cancelled leaves no process.
        """
        if self._closed:
            raise AgentNotSpawned("the lifecycle manager is closed, and starts no agent")
        there = None if agent_id is None else self._agents.get(agent_id)
        if there is not None and not (there.is_over and there.child is None):
            return await self._same(there, command)
        agent_id = agent_id or uuid.uuid4().hex
        agent = self._agents[agent_id] = AgentInstance(agent_id, name, command, ready=ready, on_state=self._on_state)
        self._forget_the_oldest()
        if self.config.idle_suspend is not None and not self._looking:
            self._looking = True
            self._tasks.begin(self._look_for_idle(self.config.idle_suspend))
        try:
            await asyncio.shield(self._tasks.begin(self._start_first(agent), awaited=True))
        except asyncio.CancelledError:
            await run_to_end(self._terminate(agent, 0.0, "its spawn was cancelled"))
            raise
        if agent.state is not LifecycleState.RUNNING:
            raise AgentNotSpawned(f"agent {agent.label}: {agent.why}")
        return agent

    def adopt(self, child: Child, command: Command, *, agent_id: str | None = None, name: str = "") -> AgentInstance:
        """Takes a process that something else leads, a fleet or a warm pool, as an agent, until it has ended: it is listed, suspended,
        resumed and terminated as others are, and quotas hold for it; it is never started again, nor idle, nor ended by `close`.
        """
        agent = AgentInstance(agent_id or uuid.uuid4().hex, name, command, on_state=self._on_state)
        self._agents[agent.id] = agent
        self._forget_the_oldest()
        agent.is_adopted, agent.child = True, child
        agent.become(LifecycleState.RUNNING)
        self._tasks.begin(self._watch(agent, child))
        return agent

    async def suspend(self, agent_id: str, *, release_memory: bool = False, why: str = "") -> AgentInstance:
        """Stops all processes of the agent where they are (SIGSTOP): they use no CPU, and keep their memory and connections.

        release_memory: the manager's `checkpoint` saves it instead, and its processes end. Raises SuspendFailed; UnknownAgent.
        """
        agent = self.agent(agent_id)
        await run_to_end(self._suspend(agent, release_memory, why or "it was suspended"))
        return agent

    async def resume(self, agent_id: str) -> AgentInstance:
        """Lets a suspended agent go on, in a new process where its old one has ended. Raises ResumeFailed; UnknownAgent."""
        agent = self.agent(agent_id)
        await run_to_end(self._resume(agent))
        return agent

    async def restart(self, agent_id: str, *, at_once: bool = False, why: str = "") -> AgentInstance:
        """Ends the agent's process in good order, if it has one, and starts another one. Returns when that runs.

        It counts, and waits, as after a failure. at_once: it does neither, and the count begins anew. Raises RestartFailed, also when its
        restarts are used up; UnknownAgent.
        """
        agent = self.agent(agent_id)
        await run_to_end(self._restart(agent, at_once, why or "it was restarted"))
        if await agent.until(LifecycleState.RUNNING, LifecycleState.SUSPENDED, *OVER) in OVER:
            raise RestartFailed(f"agent {agent.label} was not started again: {agent.why}")
        return agent

    async def terminate(self, agent_id: str, *, grace_seconds: Duration | None = None, why: str = "") -> AgentInstance:
        """Ends the agent for good: its stdin is closed, SIGTERM, and SIGKILL to who lives after the grace, `shutdown_timeout` if None.

        Raises TerminateFailed when something of it still runs; UnknownAgent.
        """
        agent = self.agent(agent_id)
        grace_s = None if grace_seconds is None else parse_seconds(grace_seconds, name="terminate: grace_seconds")
        await run_to_end(self._terminate(agent, grace_s, why or "it was terminated"))
        return agent

    async def close(self) -> None:
        """Terminates all agents. Returns when nothing of them is left; raises TerminateFailed where that cannot be done."""
        self._closed = True
        await run_to_end(self._close())

    # -- who is there -------------------------------------------------------------------------------------------------

    def agent(self, agent_id: str) -> AgentInstance:
        """The agent of this id. Raises UnknownAgent."""
        if (found := self._agents.get(agent_id)) is None:
            raise UnknownAgent(f"there is no agent {agent_id!r}", hint="list_agents() has them")
        return found

    def list_agents(self) -> list[InstanceInfo]:
        """All agents, and of those that have ended the last thousand."""
        for agent in self._agents.values():
            if not agent.lock.locked():  # else a verb is about to say what it is
                self._see(agent)
        return [agent.info for agent in self._agents.values()]

    async def wait(self, agent_id: str) -> LifecycleState:
        """Returns when the agent is terminated, or failed for good. Raises UnknownAgent."""
        return await self.agent(agent_id).until(*OVER)

    @asynccontextmanager
    async def in_use(self, agent_id: str) -> AsyncIterator[AgentInstance]:
        """Inside, the agent is not idle; if it was suspended because it was, it goes on. Raises ResumeFailed where it does not run."""
        agent = self.agent(agent_id)
        agent.users += 1
        try:
            await run_to_end(self._wake(agent))
            yield agent
        finally:
            agent.users -= 1
            agent.active_at = self._clock.monotonic()

    async def suspend_idle(self) -> list[str]:
        """Looks at all running agents once, and suspends those that have been idle for `idle_suspend`: they were not in use, wrote nothing
        and used less than a hundredth of a core. -> their ids
        """
        asleep = []
        for agent in list(self._agents.values()):
            if not agent.lock.locked():
                self._see(agent)
            if agent.state is LifecycleState.RUNNING and not agent.is_adopted and await self._is_idle(agent):
                try:
                    await run_to_end(self._suspend(agent, self.config.release_idle, "it was idle", if_idle=True))
                except SuspendFailed as error:  # the next look tries again
                    _log.warning("%s", error)
                else:
                    asleep += [agent.id] if agent.is_asleep else []
        return asleep

    # -- starts -------------------------------------------------------------------------------------------------------

    async def _same(self, agent: AgentInstance, command: Command) -> AgentInstance:
        if agent.first_command != command:
            raise AgentNotSpawned(
                f"agent {agent.id!r} is {agent.state}, with another command", hint="terminate it, or take another id"
            )
        if await agent.until(LifecycleState.RUNNING, LifecycleState.SUSPENDED, *OVER) in OVER:
            raise AgentNotSpawned(f"agent {agent.label}: {agent.why}")
        return agent

    async def _start_first(self, agent: AgentInstance) -> None:
        async with agent.lock:
            if agent.state is not LifecycleState.PENDING:  # terminated before it was started
                return
            try:
                await self._start(agent)
            except AgentNotSpawned as error:
                agent.why = error.message
                agent.become(LifecycleState.TERMINATED if agent.given_up.is_set() else LifecycleState.FAILED)

    async def _start(self, agent: AgentInstance) -> None:
        """Gives the agent a process that is ready; the lock is held. Raises AgentNotSpawned, and nothing of the process is left then."""
        seconds = self.config.spawn_timeout
        agent.next_start_at = None
        try:
            async with asyncio.timeout(seconds) as limit:
                agent.child = await (await Supervisor.running()).spawn(agent.command)
                await self._until_ready(agent, agent.child)
        except Exception as error:
            why = f"it was not ready in {seconds:g} s" if limit.expired() else message_of(error)
            if agent.child is not None:
                try:
                    await self._stop(agent, agent.child, 0.0)
                except TerminateFailed as worse:  # it stays the agent's child until it has ended
                    why = f"{why}; {worse.message}"
                    self._tasks.begin(self._watch(agent, agent.child))
            raise AgentNotSpawned(why) from error
        now = self._clock.monotonic()
        agent.running_since = agent.active_at = now
        agent.seen = (0, 0.0)
        agent.become(LifecycleState.RUNNING)
        self._tasks.begin(self._watch(agent, agent.child))

    async def _until_ready(self, agent: AgentInstance, child: Child) -> None:
        """Raises what `ready` raises, and AgentNotSpawned where the agent has ended, or is to."""
        if agent.ready is not None:
            ready = asyncio.ensure_future(agent.ready(child))
            others = [asyncio.ensure_future(child.wait()), asyncio.ensure_future(agent.given_up.wait())]
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
        if agent.given_up.is_set():
            raise AgentNotSpawned("it was terminated before it was ready")

    async def _restart(self, agent: AgentInstance, at_once: bool, why: str) -> None:
        async with agent.lock:
            own = self.config
            if agent.is_adopted:
                raise RestartFailed(f"agent {agent.label} is not started again here", hint="who has started it does")
            if agent.state is LifecycleState.TERMINATED or self._closed:
                raise RestartFailed(f"agent {agent.label} is terminated: {agent.why}", hint="spawn another one")
            if agent.state is LifecycleState.PENDING and not at_once:  # it is about to be started
                return
            if not at_once and agent.failures >= own.max_restarts:
                raise RestartFailed(
                    f"agent {agent.label} was started again {own.max_restarts} times: {agent.why}",
                    hint="restart(at_once=True) begins the count anew",
                )
            if agent.child is not None:
                try:
                    await self._stop(agent, agent.child, own.shutdown_timeout)
                except TerminateFailed as error:
                    raise RestartFailed(error.message) from error
            agent.why, agent.is_asleep = why, False
            if at_once:
                agent.failures = 0
                self._plan(agent, 0.0)
            else:
                self._plan_again(agent)

    def _plan_again(self, agent: AgentInstance) -> None:
        """Its next start, after a wait; or none any more."""
        own = self.config
        if agent.failures >= own.max_restarts:
            times = f" after {agent.failures} restarts" if agent.failures else ""
            _log.warning("agent %s has failed%s: %s", agent.label, times, agent.why)
            agent.become(LifecycleState.FAILED)
        else:
            agent.failures += 1
            longest_s = max(own.restart_backoff, _LONGEST_BACKOFF_SECONDS)
            self._plan(agent, Backoff(own.restart_backoff, longest_s).wait_s(agent.failures))

    def _plan(self, agent: AgentInstance, seconds: float) -> None:
        self._drop_plan(agent)
        agent.next_start_at = self._clock.time() + seconds
        if agent.state is not LifecycleState.PENDING:
            agent.become(LifecycleState.PENDING)
        agent.waiting = self._tasks.begin(self._start_later(agent, seconds))

    def _drop_plan(self, agent: AgentInstance) -> None:
        agent.next_start_at = None
        if agent.waiting is not None:
            agent.waiting.cancel()
            agent.waiting = None

    async def _start_later(self, agent: AgentInstance, seconds: float) -> None:
        if seconds:
            await self._sleep(seconds)
        async with agent.lock:
            agent.waiting = None  # from here on it is not cancelled
            agent.restarts += 1
            try:
                await self._start(agent)
            except AgentNotSpawned as error:
                agent.why = error.message
                if agent.given_up.is_set():
                    agent.become(LifecycleState.TERMINATED)
                else:
                    self._plan_again(agent)

    # -- ends ---------------------------------------------------------------------------------------------------------

    async def _watch(self, agent: AgentInstance, child: Child) -> None:
        """Until this process of the agent has ended, and for what follows then."""
        try:
            status: ExitStatus | None = await child.wait()
        except CommunicationError:
            status = None
        async with agent.lock:
            if agent.child is not child:  # a verb has ended it
                return
            agent.child, agent.why = None, child.how
            if agent.is_adopted:
                agent.become(LifecycleState.TERMINATED)
                return
            if agent.state is not LifecycleState.RUNNING:  # suspended: `resume` starts another one
                return
            if agent.given_up.is_set() or (status is not None and status.success):
                agent.become(LifecycleState.TERMINATED)
                return
            if self._clock.monotonic() - agent.running_since >= self.config.stable_after:
                agent.failures = 0
            self._plan_again(agent)

    async def _stop(self, agent: AgentInstance, child: Child, grace_seconds: float) -> None:
        """The lock is held. Raises TerminateFailed."""
        try:
            async with asyncio.timeout(grace_seconds + _KILL_SECONDS):
                await child.stop(grace_seconds)
        except TimeoutError as error:
            raise TerminateFailed(
                f"agent {agent.label} (pid {child.pid}) was sent SIGKILL, and has not ended in {_KILL_SECONDS:g} s",
                hint="it hangs in the kernel, or its supervisor is stopped",
            ) from error
        except CommunicationError:  # its supervisor was killed, and it with that one
            pass
        agent.child = None

    async def _terminate(self, agent: AgentInstance, grace_seconds: float | None, why: str) -> None:
        agent.given_up.set()
        if grace_seconds == 0 and agent.child is not None:
            agent.child.kill()  # whoever waits in the lock for its end in good order
        async with agent.lock:
            self._drop_plan(agent)
            if agent.state is LifecycleState.TERMINATED:
                return
            if agent.child is not None:
                grace = self.config.shutdown_timeout if grace_seconds is None else grace_seconds
                await self._stop(agent, agent.child, grace)
            agent.why = why
            agent.become(LifecycleState.TERMINATED)

    async def _close(self) -> None:
        alive = [
            each for each in self._agents.values() if not (each.is_adopted or each.state is LifecycleState.TERMINATED)
        ]
        ended = [self._terminate(agent, None, "its manager was closed") for agent in alive]
        errors = [each for each in await asyncio.gather(*ended, return_exceptions=True) if each is not None]
        await self._tasks.cancel()
        if errors:
            raise errors[0]

    # -- suspended ----------------------------------------------------------------------------------------------------

    async def _suspend(self, agent: AgentInstance, release: bool, why: str, *, if_idle: bool = False) -> None:
        async with agent.lock:
            child = agent.child
            if if_idle and (agent.users or agent.state is not LifecycleState.RUNNING):
                return
            if agent.state is LifecycleState.SUSPENDED and (child is None or not release):
                agent.why, agent.is_asleep = why, False
                return
            if child is None or child.is_over or agent.state not in (LifecycleState.RUNNING, LifecycleState.SUSPENDED):
                raise SuspendFailed(f"agent {agent.label} is not suspended: it is {agent.state}, and has no process")
            if release:
                await self._release(agent, child)
            else:
                child.pause()
                try:
                    await self._sent(child)
                except CommunicationError as error:
                    child.resume()
                    raise SuspendFailed(f"agent {agent.label} was not suspended: {error.message}") from error
            agent.why, agent.is_asleep = why, if_idle
            if agent.state is not LifecycleState.SUSPENDED:
                agent.become(LifecycleState.SUSPENDED)

    async def _release(self, agent: AgentInstance, child: Child) -> None:
        where = f"agent {agent.label}: its memory cannot be given back"
        if agent.is_adopted:
            raise SuspendFailed(f"{where}: it is not started again here", hint="suspend(…) alone stops its processes")
        if self._checkpoint is None:
            raise SuspendFailed(f"{where}: the manager has no checkpoint", hint="LifecycleManager(checkpoint=...)")
        child.resume()  # it may have to say what it has
        try:
            async with asyncio.timeout(self.config.shutdown_timeout):
                command = await self._checkpoint(agent)
            await self._stop(agent, child, self.config.shutdown_timeout)
        except Exception as error:
            if agent.state is LifecycleState.SUSPENDED:
                child.pause()
            raise SuspendFailed(f"agent {agent.label} was not suspended: {message_of(error)}") from error
        agent.command = command

    async def _resume(self, agent: AgentInstance) -> None:
        async with agent.lock:
            agent.active_at = self._clock.monotonic()
            if agent.state in OVER:
                raise ResumeFailed(
                    f"agent {agent.label} does not go on: it is {agent.state}, {agent.why}", hint="spawn another one"
                )
            self._see(agent)
            if agent.state is LifecycleState.SUSPENDED:
                await self._go_on(agent)

    async def _go_on(self, agent: AgentInstance) -> None:
        if agent.child is not None and not agent.child.is_over:
            agent.child.resume()
            try:
                await self._sent(agent.child)
            except CommunicationError as error:
                agent.child.pause()
                raise ResumeFailed(f"agent {agent.label} does not go on: {error.message}") from error
            agent.become(LifecycleState.RUNNING)
        else:
            agent.become(LifecycleState.PENDING)
            try:
                await self._start(agent)
            except AgentNotSpawned as error:
                agent.become(LifecycleState.SUSPENDED)
                raise ResumeFailed(f"agent {agent.label} does not go on: {error.message}") from error
        agent.is_asleep = False

    async def _wake(self, agent: AgentInstance) -> None:
        async with agent.lock:
            self._see(agent)
            if agent.state is LifecycleState.SUSPENDED and agent.is_asleep:
                await self._go_on(agent)
            if agent.state is not LifecycleState.RUNNING:
                raise ResumeFailed(f"agent {agent.label} is {agent.state}: {agent.why}")

    def _see(self, agent: AgentInstance) -> None:
        """An agent whose process somebody else has stopped is suspended, until that one or `resume` lets it go on."""
        child = agent.child
        if child is None or child.is_over:
            return
        if agent.state is LifecycleState.RUNNING and child.paused:
            agent.why, agent.is_asleep = _STOPPED, False
            agent.become(LifecycleState.SUSPENDED)
        elif agent.state is LifecycleState.SUSPENDED and agent.why is _STOPPED and not child.paused:
            agent.become(LifecycleState.RUNNING)

    async def _sent(self, child: Child) -> None:
        """Returns when the supervisor has done what it was asked before: it answers in order. Raises CommunicationError."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await child.usage()
        except TimeoutError as error:
            raise CommunicationError(f"its supervisor has not answered in {_ANSWER_SECONDS:g} s") from error

    async def _is_idle(self, agent: AgentInstance) -> bool:
        """Whether it has done nothing for `idle_suspend`, as far as the looks before this one can tell."""
        child, now = agent.child, self._clock.monotonic()
        if child is None or agent.users or self.config.idle_suspend is None:
            return False
        try:
            used = await child.usage()
        except CommunicationError:  # its supervisor was killed: its end is on the way
            return False
        written, computed = child.output_bytes - agent.seen[0], used.cpu_seconds - agent.seen[1]
        agent.seen = (child.output_bytes, used.cpu_seconds)
        if written or computed > _IDLE_SHARE * self._look_seconds(self.config.idle_suspend):
            agent.active_at = now
        return now - agent.active_at >= self.config.idle_suspend

    def _look_seconds(self, idle_suspend: float) -> float:
        return min(10.0, idle_suspend / 10)

    async def _look_for_idle(self, idle_suspend: float) -> None:
        while True:
            await self._sleep(self._look_seconds(idle_suspend))
            await self.suspend_idle()

    # -- what they share ----------------------------------------------------------------------------------------------

    def _forget_the_oldest(self) -> None:
        over = [agent.id for agent in self._agents.values() if agent.is_over and agent.child is None]
        for agent_id in over[: max(0, len(over) - _ENDED_KEPT)]:
            del self._agents[agent_id]
