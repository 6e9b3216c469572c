"""The runtime of document 004: instances that are given tasks, watched, and started again when they end."""

import asyncio
import inspect
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from sabot.base.checks import Of, check, check_called
from sabot.base.config import check_numbers, checked_durations
from sabot.base.supervision import TaskSet
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import MissingExtra, UserError, short_repr
from sabot.process.client import Child
from sabot.process.command import INHERITED, Command, are_texts
from sabot.process.document_names import ProcessState
from sabot.process.errors import AgentNotFound, ExecutionError, SpawnFailed, TerminateFailed, Timeout
from sabot.process.inspection import silence, usage_of
from sabot.process.instance import RestartPolicy
from sabot.process.limits import ResourceLimits
from sabot.process.phases import RUNS, Phase
from sabot.process.sandbox.levels import Sandbox, TrustLevel, sandbox_of, stricter
from sabot.process.streams import LastWords
from sabot.specified.processes.executor import (
    AgentExecutor,
    ExecutorStatistics,
    RuntimeAgent,
    ToolAudit,
    ToolServerConfig,
    ToolServers,
)
from sabot.specified.processes.task_lines import TaskLines

_log = logging.getLogger("sabot.process.runtime")
_LINE_BYTES = 10 << 20  # of an answer, where output is not limited
_PUBLISHED = (Phase.READY, Phase.WAITING, Phase.FAILED)  # phases whose begin may be an event
# Limits that are held here, and not by the supervisor of the process.
_OF_TASKS = ("max_task_duration", "max_output_bytes", "max_tool_calls_per_task", "max_tool_calls_per_minute")


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """The settings of the processes of a runtime.

    - `max_concurrent_processes`: the most instances at a time.
    - `spawn_timeout`: the longest time, in seconds, from the start of an instance until it is ready.
    - `shutdown_grace_period`: seconds from SIGTERM to SIGKILL.
    - `enable_isolation`: True if instances get only some harmless variables of this process's environment
      (`INHERITED` in `sabot.process.command`, such as `PATH` and `HOME`); with False they get all of its variables.
    - `trust`: the level of trust or the sandbox of all instances (see `Command.trust`).
    """

    max_concurrent_processes: int = 10
    spawn_timeout: float = 30.0
    shutdown_grace_period: float = 10.0
    enable_isolation: bool = True
    trust: Sandbox | TrustLevel | str | None = None

    def __post_init__(self) -> None:
        sandbox_of(self.trust)
        check_numbers(self, "max_concurrent_processes", whole=True)
        checked_durations(self, "spawn_timeout")
        checked_durations(self, "shutdown_grace_period", zero=True)


@dataclass(frozen=True, kw_only=True)
class MonitoringConfig:
    """The settings of health checks, measurements and logs of instances.

    - `health_check_interval`: seconds between two checks of all instances.
    - `heartbeat_timeout`: if an instance that sends heartbeats writes nothing for longer than so many seconds, its
      process is ended.
    - `enable_metrics`: True if the usage of instances is measured each `metrics_interval` seconds.
    - `enable_log_aggregation`: True if the output of instances is kept for `ProcessRuntime.logs`: the newest
      `log_buffer_bytes` bytes of each instance, without its answers to tasks.
    """

    health_check_interval: float = 10.0
    heartbeat_timeout: float = 30.0
    enable_metrics: bool = True
    metrics_interval: float = 5.0
    enable_log_aggregation: bool = True
    log_buffer_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        checked_durations(self, "health_check_interval", "heartbeat_timeout", "metrics_interval")
        check_numbers(self, "log_buffer_bytes", whole=True)


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """The settings of restarts.

    - `enable_auto_restart`: True if an instance whose process ends gets another process.
    - `max_restart_attempts`: the most restarts in a row; after a completed task the count starts again at 0. An
      instance that has used up its restarts is degraded: it gets no further process.
    - `backoff_seconds`: the seconds before the first restart in a row. Before each further restart the wait doubles,
      up to 60 s.
    - `enable_graceful_degradation`: True if the tasks of a degraded instance are done by another instance of the same
      type. With False, or if there is no other one, these tasks fail.
    - `failure_threshold`: a process is ended when so many health checks in a row have found it stopped (SIGSTOP).
    """

    enable_auto_restart: bool = True
    max_restart_attempts: int = 3
    enable_graceful_degradation: bool = True
    backoff_seconds: float = 5.0
    failure_threshold: int = 3

    def __post_init__(self) -> None:
        check_numbers(self, "failure_threshold", whole=True)
        check_numbers(self, "max_restart_attempts", zero=True, whole=True)
        checked_durations(self, "backoff_seconds", zero=True)

    def policy(self) -> RestartPolicy:
        """Returns the restart policy that these settings describe. When a task is done, the executor sets the instance's count of
        failures to 0.
        """
        return RestartPolicy(most=self.max_restart_attempts, first_wait_s=self.backoff_seconds, after_success=True)


class _Cortex:
    """The servers of the tools of a runtime for which none are given: those of `McpConfig()`, if the program is there."""

    def __repr__(self) -> str:
        return "McpConfig()"

    def tool_servers(self) -> Any:
        if shutil.which("cortex") is None:
            return None
        try:
            # by its name, since `sabot.mcp` is built on this package
            return import_module("sabot.mcp").McpConfig().tool_servers()
        except MissingExtra as error:
            _log.warning("there is a program cortex on PATH, and the runtime has no tools of it: %s", error)
            return None


_CORTEX = _Cortex()


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """The settings of a runtime.

    - `resources`: the limits of each instance, with all that it starts. The limits of time, output and calls of tools
      apply to each task.
    - `mcp`: the servers of the tools that instances may call. If it is a `McpConfig`, the runtime makes a pool from it at
      `start`, and closes the pool at `shutdown`. If it is a `McpServerPool`, the runtime does not close it. By default it
      is the program `cortex`, if there is one on PATH. With None instances have no tools.
    """

    process: ProcessConfig = field(default_factory=ProcessConfig)
    resources: ResourceLimits = field(default_factory=ResourceLimits)
    mcp: ToolServers | ToolServerConfig | None = field(default_factory=lambda: _CORTEX)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)

    def __post_init__(self) -> None:
        check(
            "RuntimeConfig: mcp", self.mcp, Of(ToolServers | ToolServerConfig | None, "a McpConfig, or a McpServerPool")
        )


@dataclass(frozen=True)
class ProcessEvent:
    """An event of a runtime or of a lead agent.

    - `type`: the name of the event. Of an instance: `agent.spawned`, `agent.failed`, `agent.restarted`,
      `agent.degraded` or `agent.terminated`. Of a task: `task.submitted`, `task.acquired`, `task.process_checked`,
      `task.tools_checked`, `task.started`, `task.tool_call`, `task.collected` or `task.released`. Of a query:
      `query.received`, `query.planned`, `query.answered` or `query.failed`.
    - `agent_id`: the id of the instance, or the name of the lead agent. `task_id`: the id of the task or the query;
      "" if the event is about none.
    - `at`: the time in seconds since 1970.
    - `tool_call`: the call of a tool, in an event `task.tool_call`; else None. This event is published when the call
      has ended or was refused.
    """

    type: str
    agent_id: str
    task_id: str
    at: float
    tool_call: ToolAudit | None = None


class ProcessEventBus(Protocol):
    """The interface of an object to which a runtime or a lead agent publishes its events."""

    async def publish(self, event: Any) -> None:
        """Handles an event. If this method raises an error, the error is logged, and the runtime continues."""


@dataclass(frozen=True)
class ProcessStatistics:
    """The usage of all instances of a runtime, with their descendants.

    - `active_processes`: the number of processes now. `total_memory_bytes`: their resident memory now.
    - `total_cpu_time_ms`: the CPU time since the start of the runtime, also of processes that have ended.
    """

    active_processes: int
    total_memory_bytes: int
    total_cpu_time_ms: float


@dataclass(frozen=True)
class RuntimeStatistics:
    """The statistics of a runtime.

    - `total_agents_spawned`: the number of instances that were started. `active_agents`: the number of instances that
      have a process now.
    - `total_tasks_executed`: the number of tasks that instances have begun and that have ended.
    - `success_rate`: the share of these tasks that returned a result, from 0 to 1; it is 1 if there was none.
    - `processes`: the usage of the instances. `tasks`: the statistics of the tasks.
    """

    total_agents_spawned: int
    active_agents: int
    total_tasks_executed: int
    success_rate: float
    processes: ProcessStatistics
    tasks: ExecutorStatistics


class ProcessRuntime:
    """A runtime that runs instances as child processes on this machine, and sends them tasks as JSON lines on stdin.
    `shutdown` ends the instances, and so does the end of this process, in whatever way it ends.

    - `message_bus`: an object whose method `publish` is called with a ProcessEvent for each step; None for no events.
    - `on_state`: called with an instance, the state of its process before, and the new one.
    - `sleep`: a coroutine function with which the runtime waits a number of seconds: between health checks and before
      restarts.
    """

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        message_bus: ProcessEventBus | None = None,
        *,
        on_state: Callable[[RuntimeAgent, ProcessState, ProcessState], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        check_called("ProcessRuntime", on_state=on_state)
        check_bus("ProcessRuntime", message_bus)
        self.config = config or RuntimeConfig()
        self.executor = AgentExecutor(self._choose, None, clock, self._publish)
        self.execute_task = self.executor.execute_task
        self.execute_tasks_parallel = self.executor.execute_tasks_parallel
        self._own_servers: Any = None  # made of a McpConfig
        self._bus = message_bus
        self._on_state = on_state
        self._clock = clock
        self._sleep = sleep
        self._instances: dict[str, RuntimeAgent] = {}
        self._starting = 0
        self._spawned = 0
        self._cpu_of_ended = 0.0
        self._running = False
        self._tasks = TaskSet("the runtime of processes")

    async def start(self) -> None:
        """Starts the runtime: begins the health checks, and from then on instances can be spawned. Raises UserError if
        `RuntimeConfig.mcp` names a program that does not exist.
        """
        if self._running:
            return
        self._find_tools()
        self._running = True
        watch = self.config.monitoring
        self._tasks.every(watch.health_check_interval, self.check_health, self._sleep)
        if watch.enable_metrics:
            self._tasks.every(watch.metrics_interval, self._measure, self._sleep)

    async def __aenter__(self) -> "ProcessRuntime":
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.shutdown()

    async def spawn_agent(
        self,
        name: str,
        type: str,
        cmd: str,
        args: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        working_dir: str | os.PathLike[str] | None = None,
        limits: ResourceLimits | None = None,
        trust: Sandbox | TrustLevel | str | None = None,
        wait_ready: bool = False,
    ) -> str:
        """Starts an instance, and returns its id.

        - `type`: a word for the kind of its work, such as "search". `cmd`, `args`: the program and its arguments.
        - `limits`, `trust`: the limits and the level of trust of this instance. They can be stricter than those of
          the runtime, but not less strict.
        - `wait_ready`: True if the instance is ready when its program writes the line `{"method": "ready"}`; with
          False it is ready as soon as its program runs.

        Raises UserError if the runtime was not started, or is shut down during this call; SpawnFailed if the program
        does not start, or if `max_concurrent_processes` instances run already; TrustExceeded if `trust` is less strict
        than that of the runtime; Timeout if the instance is not ready within `spawn_timeout`.
        """
        self._check_running()
        if not are_texts(args):
            raise UserError(f"instance {name!r}: args={short_repr(args)}", hint='a list of texts: ["mcp", "stdio"]')
        own = self.config.process
        alive = sum(not instance.is_over for instance in self._instances.values())
        if alive + self._starting >= own.max_concurrent_processes:
            raise SpawnFailed(
                f"instance {name!r}: max_concurrent_processes={own.max_concurrent_processes} run already",
                hint="terminate one, or allow more",
            )
        environment = environment or {}
        whole, watch = self.config.resources.narrowed(limits), self.config.monitoring
        command = Command(
            argv=[cmd, *args],
            environment=environment,
            inherit=INHERITED if own.enable_isolation else tuple(os.environ),
            working_dir=working_dir,
            stderr="pipe" if watch.enable_log_aggregation else "null",
            limits=whole.without(*_OF_TASKS),
            trust=stricter(own.trust, trust),
            output_bytes=(whole.max_output_bytes or _LINE_BYTES) + 1,
            lossless=True,
        )
        recovery = self.config.recovery
        instance: RuntimeAgent = RuntimeAgent(
            command,
            type,
            whole,
            LastWords(watch.log_buffer_bytes if watch.enable_log_aggregation else 0),
            name=name,
            policy=recovery.policy() if recovery.enable_auto_restart else None,
            ready=lambda child: self._ready(instance, child, wait_ready),
            ready_within_s=own.spawn_timeout,
            ended=lambda child: self._ended(instance, child),
            on_phase=self._told,
            tasks=self._tasks,
            clock=self._clock,
            sleep=self._sleep,
        )
        self._starting += 1
        try:
            await instance.start()
        except Timeout as error:
            raise Timeout(error.message, hint='it says {"method": "ready"} on its stdout') from error
        finally:
            self._starting -= 1
        if not self._running:
            await self._end(instance, "the runtime was shut down")
            self._check_running()
        self._instances[instance.id] = instance
        self._spawned += 1
        await self._publish("agent.spawned", instance.id)
        return instance.id

    async def terminate(self, agent_id: str) -> None:
        """Ends an instance for good: sends SIGTERM, and sends SIGKILL to its processes that still run
        `shutdown_grace_period` seconds later. Raises AgentNotFound if there is no instance with this id. Raises
        TerminateFailed if one of its processes still runs; then the instance remains in `list_agents`.
        """
        instance = self.agent(agent_id)
        await self._end(instance, "it was terminated")
        self._instances.pop(agent_id, None)
        await self._publish("agent.terminated", agent_id)

    async def shutdown(self) -> None:
        """Ends all instances as `terminate` does, stops the health checks, and closes the tool servers that `start` has
        made. Does all of this even if a process cannot be ended; then raises TerminateFailed.
        """
        self._running = False
        ended = await asyncio.gather(
            *(self._end(instance, "the runtime was shut down") for instance in self._instances.values()),
            return_exceptions=True,
        )
        self._instances.clear()
        await self._tasks.cancel()
        servers, self._own_servers = self._own_servers, None
        if servers is not None:
            await servers.close()
        for each in ended:
            if isinstance(each, BaseException):
                raise each

    def agent(self, agent_id: str) -> RuntimeAgent:
        """Returns the instance with this id. Raises AgentNotFound if there is none."""
        if (found := self._instances.get(agent_id)) is None:
            raise AgentNotFound(f"the runtime has no instance {agent_id!r}", hint="was it terminated?")
        return found

    def list_agents(self) -> list[RuntimeAgent]:
        """Returns all instances that were not terminated."""
        return list(self._instances.values())

    def logs(self, agent_id: str) -> str:
        """Returns the newest output of the instance on stdout and stderr, without its answers to tasks. Raises
        AgentNotFound if there is no instance with this id.
        """
        return self.agent(agent_id).log.text()

    async def check_health(self) -> list[str]:
        """Checks all instances once, and ends the processes that hang. A process hangs if too many checks in a row
        have found it stopped (SIGSTOP), or if it sends no heartbeats any more. Returns the ids of the instances whose
        processes were ended. If a process cannot be ended, logs that, and continues with the next instance.
        """
        hung, now_s = [], self._clock.monotonic()
        for instance in self.list_agents():
            lines = instance.lines
            if lines is None or instance.phase not in RUNS:
                continue
            stopped = lines.child.trouble if instance.pid else ""  # else its end is being seen
            why = silence(lines.beat_at_s, now_s, self.config.monitoring.heartbeat_timeout)
            if lines.stops.note(stopped) >= self.config.recovery.failure_threshold:
                why = stopped
            if why:
                try:
                    await instance.end_and_plan(lines.child, why)
                except TerminateFailed as error:  # the end is seen when it comes, and the next start is planned then
                    _log.warning("%s", error)
                else:
                    hung.append(instance.id)
        return hung

    async def get_statistics(self) -> RuntimeStatistics:
        """Measures the usage of all instances, and returns the statistics of the runtime."""
        await self._measure()
        alive = [instance for instance in self._instances.values() if instance.pid]
        used = [instance.usage for instance in alive if instance.usage is not None]
        cpu = self._cpu_of_ended + sum(each.cpu_seconds for each in used)
        tasks = self.executor.get_statistics()
        return RuntimeStatistics(
            self._spawned,
            len(alive),
            tasks.total_tasks,
            tasks.successful_tasks / tasks.total_tasks if tasks.total_tasks else 1.0,
            ProcessStatistics(
                sum(each.processes for each in used), sum(each.memory_bytes for each in used), 1000 * cpu
            ),
            tasks,
        )

    def _check_running(self) -> None:
        if not self._running:
            raise UserError("the runtime does not run", hint="await runtime.start() before instances are spawned")

    def _choose(self, agent_id: str) -> RuntimeAgent:
        """Returns the instance that does the tasks for this id. That is the instance with the id, or another one of
        the same type if that instance gets no further process and `RecoveryConfig.enable_graceful_degradation` is
        set.

        Raises AgentNotFound if there is no instance with this id; ExecutionError if no instance can do the tasks.
        """
        instance = self.agent(agent_id)
        if not instance.is_over:
            return instance
        if self.config.recovery.enable_graceful_degradation:
            others = [each for each in self._instances.values() if each.type == instance.type and not each.is_over]
            if others:
                return min(others, key=lambda each: each.turn.locked())
        raise ExecutionError(
            f"instance {instance.name!r} is not started any more: {instance.why}",
            hint="terminate it, and spawn another one",
        )

    def _told(self, instance: RuntimeAgent, before: Phase, phase: Phase) -> None:
        if phase in _PUBLISHED:
            kinds = []
            if before is Phase.STOPPING:
                kinds.append("agent.failed")
            if before is Phase.STARTING and phase is Phase.READY:
                kinds.append("agent.restarted")
            if instance.degraded:
                kinds.append("agent.degraded")
            if instance.id in self._instances:  # else its first process is being started
                for each in kinds:
                    self._tasks.begin(self._publish(each, instance.id))
        if self._on_state is not None and (was := before.process_state) is not (now := phase.process_state):
            self._on_state(instance, was, now)

    async def _ready(self, instance: RuntimeAgent, child: Child, wait_ready: bool) -> None:
        """Begins to read the output of a new process, and returns when the process is ready. `wait_ready`: True if it
        is ready when it writes `{"method": "ready"}`; with False it is ready at once.
        """
        instance.lines = TaskLines(instance.label, child, instance.log, instance.limits, self._clock)
        if wait_ready:
            await instance.lines.ready.wait()

    async def _ended(self, instance: RuntimeAgent, child: Child) -> bool:
        """Reads the rest of the output of a process that has ended. If the process had a task, the task fails.
        Returns True if the end counts as a failure of the program, and False if its task was the cause, for example
        because the task had exceeded a limit.
        """
        instance.usage = None
        self._cpu_of_ended += 0.0 if child.status is None else child.status.cpu_seconds
        lines = instance.lines
        if lines is None or lines.child is not child:  # the process has ended before it was read
            return True
        await lines.read_to_end(instance.why)
        return lines.is_at_fault

    async def _end(self, instance: RuntimeAgent, why: str) -> None:
        await instance.end(self.config.process.shutdown_grace_period, why)

    async def _measure(self) -> None:
        async def one(instance: RuntimeAgent) -> None:
            child = instance.child
            if child is not None and not child.is_over:
                instance.usage = await usage_of(child)

        await asyncio.gather(*map(one, self.list_agents()))

    def _find_tools(self) -> None:
        given = self.config.mcp
        if isinstance(given, ToolServerConfig):
            self._own_servers = self.executor.tools = given.tool_servers()
            if self._own_servers is None:
                self.executor.no_tools = "this runtime has no tools: there is no program cortex on PATH"
                if given is not _CORTEX:
                    _log.warning("%s (McpConfig(cortex_binary_path=…) names another)", self.executor.no_tools)
        else:
            self.executor.tools = given

    async def _publish(self, kind: str, agent_id: str, task_id: str = "", tool_call: ToolAudit | None = None) -> None:
        if self._bus is not None:
            await publish(self._bus, ProcessEvent(kind, agent_id, task_id, self._clock.time(), tool_call))


def check_bus(where: str, bus: object) -> None:
    """Raises UserError if the object is neither None nor a bus that takes a ProcessEvent: if it has no method `publish`, or
    if the type of that method's parameter is another one, as that of a bus for the events of jobs.
    """
    method = getattr(bus, "publish", None)
    if bus is not None and not callable(method):
        raise UserError(f"{where}: message_bus={short_repr(bus)} has no method publish", hint=_BUS_HINT)
    try:
        parameters = [] if method is None else [*inspect.signature(method, eval_str=True).parameters.values()]
    except (NameError, TypeError, ValueError, AttributeError):  # what cannot be read is taken
        return
    kind = parameters[0].annotation if parameters else Any
    if isinstance(kind, type) and kind not in (Any, inspect.Parameter.empty) and kind not in ProcessEvent.__mro__:
        raise UserError(
            f"{where}: publish of message_bus={short_repr(bus)} takes a {kind.__qualname__}, and no ProcessEvent",
            hint=_BUS_HINT,
        )


_BUS_HINT = "an object with `async def publish(self, event: ProcessEvent)`"


async def publish(bus: ProcessEventBus, event: ProcessEvent) -> None:
    """Publishes the event on the bus. If the bus raises an error, logs it, and does not raise it."""
    try:
        await bus.publish(event)
    except Exception:
        _log.exception("the message bus has not taken %s", event.type)
