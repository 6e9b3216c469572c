"""The runner of document 003. It starts a program for one task, and returns a handle, by which the caller reads the
output of the program, sends it signals, and waits for its end.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sabot.base.config import Duration, check_numbers, checked_durations, parse_seconds
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError, short_repr
from sabot.process import backends
from sabot.process.backends import AgentConfig, AgentProgram, program_of, type_of
from sabot.process.client import Child, ExitStatus
from sabot.process.command import Command, are_texts
from sabot.process.document_names import AgentStatus
from sabot.process.errors import (
    AgentError,
    CommunicationError,
    ExecutionError,
    InvalidContext,
    IoError,
    NotFound,
    SpawnFailed,
    Timeout,
)
from sabot.process.inspection import UsageMeter
from sabot.process.instance import Instance
from sabot.process.limits import ResourceLimits
from sabot.process.sandbox.levels import Sandbox, TrustLevel, sandbox_of, stricter
from sabot.process.streams import json_of

_log = logging.getLogger("sabot.process.runner")
_NEEDED = ("name", "model_backend", "task")
_GRACE_SECONDS = 2.0  # from SIGTERM to SIGKILL, for a program that has written its result and does not end
_ENDED_KEPT = 1000  # the most ended instances that a runner still lists


class AgentSignal(StrEnum):
    """A signal that can be sent to an instance: INTERRUPT is SIGINT, TERMINATE is SIGTERM, KILL is SIGKILL, PAUSE is
    SIGSTOP, and RESUME is SIGCONT.
    """

    INTERRUPT = "Interrupt"
    TERMINATE = "Terminate"
    KILL = "Kill"
    PAUSE = "Pause"
    RESUME = "Resume"


@dataclass(frozen=True, kw_only=True)
class ProcessRunnerConfig:
    """The settings of a runner.

    - `working_dir`: the working directory of instances whose configuration has none; if None, that of this process.
    - `trust`: the level of trust or the sandbox of all instances (see `Command.trust`).
    - `enable_json_streaming`: True if programs that can write events as JSON lines are told to do so.
    - `enable_health_checks`: True if the usage of every instance is measured each `health_check_interval_secs`
      seconds.
    - `max_concurrent_agents`: the most instances at a time; None for any number.
    """

    working_dir: str | os.PathLike[str] | None = None
    trust: Sandbox | TrustLevel | str | None = None
    enable_json_streaming: bool = True
    enable_health_checks: bool = True
    health_check_interval_secs: float = 30
    max_concurrent_agents: int | None = None

    def __post_init__(self) -> None:
        checked_durations(self, "health_check_interval_secs")
        check_numbers(self, "max_concurrent_agents", whole=True, none=True)
        sandbox_of(self.trust)


@dataclass(frozen=True)
class AgentMetrics:
    """The usage of an instance with all its descendants.

    - `cpu_usage`: percent of one core, on average since the last measurement, or since the start if there was none.
    - `memory_mb`: resident memory in MB of 2**20 bytes. `uptime_secs`: seconds since the start.
    - `messages_sent`: the number of writes to stdin. `messages_received`: the number of lines and pieces that were
      read from stdout.
    """

    cpu_usage: float
    memory_mb: float
    uptime_secs: float
    messages_sent: int
    messages_received: int


@dataclass(frozen=True)
class AgentInfo:
    """A view of an instance at one moment. `metrics`: the usage when it was last measured."""

    id: str
    name: str
    model_backend: str
    status: AgentStatus
    pid: int
    started_at: float
    metrics: AgentMetrics | None = None


class AgentHandle:
    """A handle of an instance that a runner has started. Its streams may be used only in the event loop that started
    it.

    - `id`: the id of the instance. `child`: its process.
    - `session_id`: the id of the program's own session, by which another instance can continue the session
      (`AgentConfig.resume`). It is None until the program has written it to stdout.
    """

    def __init__(
        self, config: AgentConfig, program: AgentProgram, instance: Instance, child: Child, *, events: bool
    ) -> None:
        self._instance = instance
        self.id = instance.id
        self.config = config
        self.child = child
        self.session_id = config.resume
        self.metrics: AgentMetrics | None = None
        self._program = program
        self._events = events and program.answer is not None
        self._sent = 0
        self._received = 0
        self._said: list[Any] = []  # of what `lines` has read: the lines, or the events, that make the answer
        self._said_bytes = 0
        self._keeps_all = False
        self._has_result = False
        self._due_s: float | None = None  # the time at which a program with a result is ended, by the loop's clock
        self._is_late = False  # it was ended then
        self._meter = UsageMeter(SYSTEM_CLOCK, child)

    def __repr__(self) -> str:
        return f"<AgentHandle {self.config.name!r} {self.id} {self.status()}>"

    @property
    def info(self) -> AgentInfo:
        """A view of the instance at this moment."""
        child, config = self.child, self.config
        return AgentInfo(
            self.id, config.name, config.model_backend, self.status(), child.pid, child.started_at, self.metrics
        )

    def status(self) -> AgentStatus:
        """Returns the present status."""
        return self._instance.see().agent_status

    async def wait(self, timeout_secs: Duration | None = None) -> ExitStatus:
        """Waits until the program and all that it has started have ended, and returns the end of the program. Raises Timeout
        if that takes longer than `timeout_secs`; the instance is not ended then. But a program whose result `lines` has
        read is ended if it does not end within 5 seconds.
        """
        seconds = None if timeout_secs is None else parse_seconds(timeout_secs, name="wait: timeout_secs")
        try:
            async with asyncio.timeout(seconds):
                try:
                    async with asyncio.timeout_at(self._due_s) as due:
                        return await self.child.wait()
                except TimeoutError:
                    if not due.expired():
                        raise
                    return await self._end_late()
        except TimeoutError as error:
            raise Timeout(f"instance {self.config.name!r} has not ended in {seconds:g} s") from error

    async def answer(self) -> str:
        """Waits for the end of the program, and returns its final answer: the text of its result event, or all of its
        stdout if it writes no events. What `lines` and `events` have read before is part of the answer, but not what
        `read_stdout` has read. If the program has written its result event, and does not end within 5 seconds or is
        ended for a limit, the answer counts.

        - Raises ProviderError if the program reports that its model has failed, or ends well without a result event.
        - Raises ExecutionError if the program does not end with 0.
        - Raises CommunicationError if a part of its output was lost (see `lines`), or if more than
          `AgentConfig.output_bytes` of text were read by others.
        """
        if self._said_bytes > self.config.output_bytes and not self._keeps_all:
            raise CommunicationError(
                f"instance {self.config.name!r}: more than {self.config.output_bytes:,} bytes of its answer were read before",
                hint="call answer() alone, or give it a higher AgentConfig(output_bytes=…)",
            )
        self._keeps_all = True
        async for _ in self.lines():
            pass
        status = await self.wait()
        if not self._events or self._program.answer is None:
            answer = "\n".join(self._said)
        elif status.success or self._said:
            answer = self._program.answer(self._said)
        is_whole = self._has_result and (self._is_late or status.code is None or status.limit is not None)
        if not (status.success or is_whole):
            raise ExecutionError(f"instance {self.config.name!r} {status.how}{await self._last_words()}")
        return answer

    async def lines(self) -> AsyncIterator[str]:
        """Yields the lines of stdout, without their line ends. Ends a program that has written its result event and
        does not end within 5 seconds. Raises CommunicationError for a line that is longer than
        `AgentConfig.output_bytes`, and if output was dropped because it was not read in time.
        """
        assert self.child.stdout is not None
        source = self.child.stdout.lines()
        while True:
            try:
                async with asyncio.timeout_at(self._due_s):
                    line = await anext(source, None)
            except TimeoutError:  # its output has no end, and nothing more is expected
                await self._end_late()
                source = self.child.stdout.lines()
                continue
            if line is None:
                return
            self._received += 1
            text = line.decode(errors="replace")
            if self.session_id is None and self._program.session is not None:
                self.session_id = self._program.session_of(json_of(text))
            self._note(text)
            yield text

    def _note(self, line: str) -> None:
        """Keeps what the answer needs of a line."""
        if not self._events:
            self._said_bytes += len(line)
            if self._keeps_all or self._said_bytes <= self.config.output_bytes:
                self._said.append(line)
            return
        kind = type_of(line, self._program.told)
        if kind is None:
            return
        self._said.append(json_of(line))
        if kind == self._program.result:
            self._has_result = True
            if not self._is_late:
                self._due_s = asyncio.get_running_loop().time() + backends.RESULT_SECONDS

    async def _end_late(self) -> ExitStatus:
        """Ends a program that has written its result and does not end. Returns its end."""
        _log.warning(
            "instance %r has written its result, and has not ended within %g s: it is ended",
            self.config.name,
            backends.RESULT_SECONDS,
        )
        self._is_late, self._due_s = True, None
        return await self.stop(_GRACE_SECONDS)

    async def events(self) -> AsyncIterator[Any]:
        """Yields the value of each line of stdout that is JSON. Skips all other lines."""
        async for line in self.lines():
            if (event := json_of(line)) is not None:
                yield event

    async def write_stdin(self, data: bytes) -> None:
        """Writes the bytes to stdin. If the pipe is full, waits until at most 64 KB of them are still in memory.
        Raises CommunicationError if the program does not read its stdin any more, or was started with an empty stdin.
        """
        if self.child.stdin is None:
            raise CommunicationError(
                f"{self._program.name} gets its task as an argument, and its stdin is empty", hint="spawn another one"
            )
        self.child.stdin.write(data)
        self._sent += 1
        await self.child.stdin.drain()

    async def read_stdout(self) -> bytes | None:
        """Returns unread output of stdout, at most 64 KB. Returns None if there is none now, and also at the end of
        the stream. Does not wait.

        Raises CommunicationError if earlier output was dropped because it was not read in time.
        """
        assert self.child.stdout is not None
        found = self.child.stdout.read_nowait() or None
        self._received += found is not None
        return found

    async def read_stderr(self) -> bytes | None:
        """Returns unread output of stderr, in the same way as `read_stdout` does for stdout."""
        assert self.child.stderr is not None
        return self.child.stderr.read_nowait() or None

    async def signal(self, what: AgentSignal) -> None:
        """Sends a signal. KILL, PAUSE and RESUME are sent to the program and all its descendants. INTERRUPT and
        TERMINATE are sent to the program's process group, as a terminal does. Raises InvalidContext for a value that
        is no AgentSignal.
        """
        if what not in tuple(AgentSignal):
            raise InvalidContext(
                f"instance {self.config.name!r}: signal({short_repr(what)})",
                hint="AgentSignal.INTERRUPT, TERMINATE, KILL, PAUSE or RESUME",
            )
        self._instance.end_asked |= what not in (AgentSignal.PAUSE, AgentSignal.RESUME)
        send = {
            AgentSignal.INTERRUPT: lambda: self.child.signal(signal.SIGINT),
            AgentSignal.TERMINATE: lambda: self.child.signal(signal.SIGTERM),
            AgentSignal.KILL: self.child.kill,
            AgentSignal.PAUSE: self.child.pause,
            AgentSignal.RESUME: self.child.resume,
        }
        send[what]()

    async def kill(self) -> ExitStatus:
        """Ends the instance and all that it has started, now. Returns its end."""
        await self.signal(AgentSignal.KILL)
        return await self.wait()

    async def stop(self, grace_seconds: Duration = 5.0) -> ExitStatus:
        """Closes stdin, sends SIGTERM to all processes of the instance, and SIGKILL to those that still run `grace_seconds`
        later. Returns the end of the program.
        """
        grace_s = parse_seconds(grace_seconds, name="stop: grace_seconds")
        self._instance.end_asked = True
        return await self.child.stop(grace_s)

    async def measure(self) -> AgentMetrics:
        """Measures the usage of the instance."""
        usage = await self.child.usage()
        self._meter.note(self.child, usage)
        cpu, uptime = 100 * (self._meter.cores or 0.0), time.time() - self.child.started_at
        self.metrics = AgentMetrics(cpu, usage.memory_bytes / (1 << 20), uptime, self._sent, self._received)
        return self.metrics

    async def _last_words(self) -> str:
        assert self.child.stderr is not None
        with suppress(CommunicationError):  # an earlier reader has missed some output
            self.child.stderr.read_nowait(0)
        said = (await self.child.stderr.read(1 << 20)).decode(errors="replace").strip()
        return f": {said[-500:]}" if said else ""


class GracefulShutdown:
    """The orderly end of an instance: stdin is closed, its processes get SIGTERM, and those that still run after `timeout_secs`
    seconds get SIGKILL.
    """

    def __init__(self, timeout_secs: Duration = 5.0) -> None:
        self.timeout_secs = parse_seconds(timeout_secs, name="GracefulShutdown: timeout_secs")

    async def shutdown(self, handle: AgentHandle | Child) -> ExitStatus:
        """Ends the instance, and returns its end when nothing of it is left."""
        return await handle.stop(self.timeout_secs)


class LocalProcessRunner:
    """A runner that starts instances as child processes on this machine. `shutdown` ends them, and so does the end of
    this process, in whatever way it ends.

    `limits`: the limits of every instance; a single instance can only have lower ones.
    """

    def __init__(self, config: ProcessRunnerConfig | None = None, *, limits: ResourceLimits | None = None) -> None:
        self.config = config or ProcessRunnerConfig()
        self._limits = limits
        self._running: dict[str, AgentHandle] = {}
        self._ended: dict[str, AgentInfo] = {}
        self._starting = 0
        self._health: asyncio.Task[None] | None = None

    @classmethod
    def with_config(cls, config: ProcessRunnerConfig) -> "LocalProcessRunner":
        """Makes a runner with these settings."""
        return cls(config)

    async def spawn(self, config: AgentConfig) -> AgentHandle:
        """Starts an instance, and returns its handle. All its errors are AgentErrors:

        - SpawnFailed: the program does not start, `max_concurrent_agents` instances run already, or the system is not
          Linux.
        - SandboxError, a SpawnFailed: the sandbox of the program cannot be made. TrustExceeded, a SandboxError: the
          instance asks for more trust than the runner gives.
        - InvalidContext: the configuration is not valid, or the program does not support it.
        - IoError: the system lacks open files or memory.
        - CommunicationError: the supervisor does not answer.
        """
        if not isinstance(config, AgentConfig):
            raise InvalidContext(
                f"spawn({short_repr(config)})", hint="AgentConfig(name=..., model_backend=..., task=...)"
            )
        try:
            command, program = self._command(config)
        except AgentError:
            raise
        except UserError as error:
            raise InvalidContext(f"instance {config.name!r}: {error.message}", hint=error.hint) from error
        most = self.config.max_concurrent_agents
        if most is not None and len(self._alive()) + self._starting >= most:
            raise SpawnFailed(
                f"instance {config.name!r}: max_concurrent_agents={most} run already",
                hint="wait for one, or allow more",
            )
        instance = Instance(command, name=config.name)
        self._starting += 1
        try:
            child = await instance.start()
        except AgentError:
            raise
        except UserError as error:  # another system than Linux
            raise SpawnFailed(
                f"instance {config.name!r} could not be started: {error.message}", hint=error.hint
            ) from error
        except OSError as error:  # the supervisor could not be started
            raise IoError(f"instance {config.name!r} could not be started: {error.strerror or error}") from error
        finally:
            self._starting -= 1
        handle = AgentHandle(config, program, instance, child, events=self.config.enable_json_streaming)
        self._running[handle.id] = handle
        if self.config.enable_health_checks and (self._health is None or self._health.done()):
            self._health = asyncio.ensure_future(self._measure_all())
        return handle

    async def list_agents(self) -> list[AgentInfo]:
        """Returns views of the instances that run, and of the last thousand that have ended."""
        return [*(handle.info for handle in self._alive()), *self._ended.values()]

    async def get_agent(self, agent_id: str) -> AgentInfo | None:
        """Returns a view of the instance with this id. Returns None if there is no instance with this id, or if it has
        ended and is not among the last thousand that have.
        """
        handle = self._running.get(agent_id)
        return self._ended.get(agent_id) if handle is None else handle.info

    async def kill(self, agent_id: str) -> ExitStatus | None:
        """Ends the instance now (SIGKILL), and returns the end of its program. Returns None if the instance has ended
        already. Raises NotFound if there is no instance with this id.
        """
        handle = self._find(agent_id)
        return None if handle is None else await handle.kill()

    async def signal(self, agent_id: str, what: AgentSignal) -> None:
        """Sends a signal to the instance. Does nothing if it has ended. Raises NotFound if there is no instance with
        this id.
        """
        handle = self._find(agent_id)
        if handle is not None:
            await handle.signal(what)

    async def shutdown(self, grace_seconds: Duration = 5.0) -> None:
        """Stops the health checks and ends all instances: closes stdin, sends SIGTERM, and SIGKILL to processes that
        still run `grace_seconds` later. Raises CommunicationError if the end of an instance was not reported 30 s after
        SIGKILL; UserError if `grace_seconds` is not a valid duration, and then all instances still run.
        """
        grace_s = parse_seconds(grace_seconds, name="shutdown: grace_seconds")
        handles = self._alive()
        ended = await asyncio.gather(*(handle.stop(grace_s) for handle in handles), return_exceptions=True)
        self._alive()
        if self._health is not None:
            self._health.cancel()
            await asyncio.wait([self._health])
            self._health = None
        for handle, each in zip(handles, ended, strict=True):
            # An instance whose supervisor was killed has ended with it.
            if isinstance(each, BaseException) and not handle.child.is_over:
                raise each

    async def __aenter__(self) -> "LocalProcessRunner":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.shutdown()

    def _command(self, config: AgentConfig) -> tuple[Command, AgentProgram]:
        for what in ("name", "model_backend", "task", "context", "system_prompt", "resume"):
            if not isinstance(value := getattr(config, what), str) and (value is not None or what in _NEEDED):
                raise InvalidContext(f"AgentConfig: {what}={short_repr(value)}", hint="a text")
        if not config.name or not config.task:
            raise InvalidContext("an instance has no name, or no task")
        if not are_texts(config.arguments):
            raise InvalidContext(
                f"instance {config.name!r}: arguments={short_repr(config.arguments)}", hint='arguments=("--verbose",)'
            )
        program = program_of(config.model_backend)
        limits = self._limits.narrowed(config.limits) if self._limits is not None else config.limits
        command = Command(
            argv=program.argv(config, self.config.enable_json_streaming),
            environment=config.environment,
            inherit=config.inherit,
            working_dir=config.working_dir or self.config.working_dir,
            stdin=program.stdin,
            limits=limits,
            trust=stricter(self.config.trust, config.trust),
            output_bytes=config.output_bytes,
            lossless=config.lossless,
        )
        return command, program

    def _find(self, agent_id: str) -> AgentHandle | None:
        handle = self._running.get(agent_id)
        if handle is None and agent_id not in self._ended:
            raise NotFound(f"no instance {agent_id!r}", hint="list_agents() has them")
        return None if handle is None or handle.child.is_over else handle

    def _alive(self) -> list[AgentHandle]:
        """Returns the handles of the instances that run. Also forgets the handles of instances that have ended, with
        their output, and keeps only a view (`AgentInfo`) of each; it keeps the views of the last thousand.
        """
        for handle in [each for each in self._running.values() if each.child.is_over]:
            del self._running[handle.id]
            self._ended[handle.id] = handle.info
        while len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        return list(self._running.values())

    async def _measure_all(self) -> None:
        """Measures all instances each `health_check_interval_secs` seconds, until no instance runs."""
        while True:
            await asyncio.sleep(self.config.health_check_interval_secs)
            if not (alive := self._alive()):
                return
            for handle in alive:
                with suppress(CommunicationError):  # its supervisor was killed, so its status is Failed
                    await handle.measure()
