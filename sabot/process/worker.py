"""One process of an instance of the runtime: its states, and what is said with it on stdin and stdout, a JSON value a line (JSON-RPC 2.0).

    to it      {"id": …, "method": "task/execute", "params": {…}}                       a task, one at a time
    from it    {"id": …, "result": …}, or {"id": …, "error": {"message": …}}            its answer; the id may be left out
    from it    {"id": …, "method": "tools/call", "params": {"name": …, "arguments": {…}}}    answered by a line with this id
    from it    {"method": "ready"}, {"method": "heartbeat"}

What it writes besides, and its stderr, is its log.
"""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Any, Final

import msgspec

from sabot.clock import Clock
from sabot.errors import UNREADABLE, IllegalTransition
from sabot.process.client import Child, Supervisor
from sabot.process.command import Command
from sabot.process.errors import (
    AgentError,
    CommunicationError,
    ExecutionError,
    ResourceLimitExceeded,
    SpawnFailed,
    Timeout,
)
from sabot.process.limits import ResourceLimits
from sabot.process.status import ExitStatus, ProcessUsage
from sabot.threads import run_to_end

_LAST_WORDS = 4000  # characters
_NO_MEMORY = (
    "MemoryError",  # Python
    "std::bad_alloc",
    "annot allocate memory",  # of the C library
    "out of memory",  # Go, V8, shells
    "OutOfMemoryError",  # Java
    "memory allocation of",  # Rust
)


class ProcessState(StrEnum):
    """Where a process of the runtime is."""

    INITIAL = "Initial"
    STARTING = "Starting"
    READY = "Ready"
    BUSY = "Busy"
    IDLE = "Idle"
    SHUTTING_DOWN = "ShuttingDown"
    TERMINATED = "Terminated"


_NEXT: Final[Mapping[ProcessState, tuple[ProcessState, ...]]] = {
    ProcessState.INITIAL: (ProcessState.STARTING,),
    ProcessState.STARTING: (ProcessState.READY, ProcessState.SHUTTING_DOWN),
    ProcessState.READY: (ProcessState.BUSY, ProcessState.SHUTTING_DOWN),
    ProcessState.BUSY: (ProcessState.IDLE, ProcessState.SHUTTING_DOWN),
    ProcessState.IDLE: (ProcessState.BUSY, ProcessState.SHUTTING_DOWN),
    ProcessState.SHUTTING_DOWN: (ProcessState.TERMINATED,),
    ProcessState.TERMINATED: (),
}


class AgentLog:
    """The newest that the processes of an instance have written, apart from answers. dropped_bytes: how much is not kept any more."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._kept = bytearray()
        self.dropped_bytes = 0

    def add(self, piece: bytes) -> None:
        """Keeps it, in the place of the oldest."""
        self._kept += piece
        if (excess := len(self._kept) - self._capacity) > 0:
            del self._kept[:excess]
            self.dropped_bytes += excess

    @property
    def size(self) -> int:
        """Bytes that were ever added."""
        return self.dropped_bytes + len(self._kept)

    def text(self, start: int = 0) -> str:
        """What is kept, of what was added behind the first `start` bytes."""
        return self._kept[max(0, start - self.dropped_bytes) :].decode(errors="replace")


class WorkerProcess:
    """A process, from its start to its end: there is no second one. It gets one task at a time.

    changed: called with the state before and the new one. ended: called once, when nothing of it is left. limits that count for each task
    are held here, the others by the command. why: what it was ended for by the runtime. by_task: it was ended because of its task.
    strikes: health checks in a row that found it stopped.
    """

    def __init__(
        self,
        name: str,
        log: AgentLog,
        clock: Clock,
        *,
        max_output_bytes: int | None,
        max_memory_bytes: int | None,
        changed: Callable[[ProcessState, ProcessState], None],
        ended: Callable[["WorkerProcess"], None],
    ) -> None:
        self._name = name
        self._log = log
        self._clock = clock
        self._max_output = max_output_bytes
        self._max_memory = max_memory_bytes
        self._changed = changed
        self._ended = ended
        self._said: asyncio.Queue[dict[str, Any] | AgentError] | None = None
        self._output_before = self._log_before = 0
        self._has_exceeded = False
        self._ready = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._beats = False
        self._heard_at = 0.0
        self.state = ProcessState.INITIAL
        self.child: Child | None = None
        self.status: ExitStatus | None = None
        self.why = ""
        self.by_task = False
        self.was_ready = False
        self.strikes = 0

    @property
    def is_usable(self) -> bool:
        """Whether it can be given a task."""
        return self.state in (ProcessState.READY, ProcessState.IDLE)

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP)."""
        return self.child is not None and self.child.paused

    @property
    def silent_seconds(self) -> float:
        """For how long nothing was heard of it; 0 where it has never sent a heartbeat."""
        return self._clock.monotonic() - self._heard_at if self._beats else 0.0

    async def start(self, command: Command, *, within: float, wait_ready: bool) -> None:
        """Starts it. wait_ready: it is ready when it says so. Raises SpawnFailed; Timeout, if it is not ready `within` so many seconds."""
        self._to(ProcessState.STARTING)
        try:
            async with asyncio.timeout(within):
                await run_to_end(self._begin(command))
                if wait_ready:
                    await self._ready.wait()
                if self.state is not ProcessState.STARTING:
                    raise SpawnFailed(f"instance {self._name!r} has ended before it was ready: {self.how()}")
        except TimeoutError as error:
            await run_to_end(self.stop())
            raise Timeout(
                f"instance {self._name!r} was not ready in {within:g} s",
                hint='it says {"method": "ready"} on its stdout',
            ) from error
        except BaseException:
            await run_to_end(self.stop())
            raise
        self.was_ready = True
        self._to(ProcessState.READY)

    async def stop(self, grace_seconds: float = 0.0, *, why: str = "", by_task: bool = False) -> None:
        """Ends it and all that it has started; returns when nothing of it is left."""
        if self._life is None:  # it was never there
            if self.state is ProcessState.STARTING:
                self._to(ProcessState.SHUTTING_DOWN)
                self._to(ProcessState.TERMINATED)
            return
        assert self.child is not None
        if self.state not in (ProcessState.SHUTTING_DOWN, ProcessState.TERMINATED):
            self.why, self.by_task = why, by_task
            self._to(ProcessState.SHUTTING_DOWN)
        with suppress(CommunicationError):  # the supervisor was killed, and the child with it
            await self.child.stop(grace_seconds)
        await asyncio.wait([self._life])

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """It is at a task, inside."""
        assert self.child is not None
        self._to(ProcessState.BUSY)
        self._said = asyncio.Queue()
        self._output_before, self._log_before = self.child.output_bytes, self._log.size
        self._has_exceeded = False
        try:
            yield
        finally:
            self._said = None
            if self.state is ProcessState.BUSY:
                self._to(ProcessState.IDLE)

    async def tell(self, message: Mapping[str, Any]) -> None:
        """Gives it a line. Does nothing when it does not read any more: then it ends, or its answer does not come."""
        assert self.child is not None
        assert self.child.stdin is not None
        whole = {"jsonrpc": "2.0", **message}
        try:
            line = msgspec.json.encode(whole)
        except UnicodeEncodeError:  # its own id has half a surrogate pair
            line = json.dumps(whole).encode()
        with suppress(CommunicationError):
            self.child.stdin.write(line + b"\n")
            await self.child.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """What it says next: an answer, or a call of a tool. Raises ResourceLimitExceeded; ExecutionError, when it has ended."""
        assert self._said is not None
        message = await self._said.get()
        if isinstance(message, AgentError):
            raise message
        return message

    def how(self) -> str:
        """How it has ended."""
        if self.why:
            return self.why
        return "its supervisor was killed" if self.status is None else self.status.how

    async def _begin(self, command: Command) -> None:
        self.child = await (await Supervisor.running()).spawn(command)
        self._heard_at = self._clock.monotonic()
        self._life = asyncio.create_task(self._live(self.child))

    async def _live(self, child: Child) -> None:
        """Its life: reads it, and tells of its end."""
        reading = [asyncio.ensure_future(self._read_answers(child)), asyncio.ensure_future(self._read_log(child))]
        with suppress(CommunicationError):  # the supervisor was killed: `status` stays None
            self.status = await child.wait()
        await asyncio.wait(reading)
        if self.state is not ProcessState.SHUTTING_DOWN:
            self._to(ProcessState.SHUTTING_DOWN)
        self._to(ProcessState.TERMINATED)
        if self._said is not None:
            what = f"instance {self._name!r} has ended in its task: {self.how()}"
            limit = None if self.status is None else self.status.limit
            if limit is None and self._was_denied_memory():
                limit = "max_memory_bytes"
                what = f"{what}, and its last words are those of a program that was denied memory"
            self.by_task |= limit is not None
            self._said.put_nowait(ExecutionError(what) if limit is None else ResourceLimitExceeded(what, limit=limit))
        self._ready.set()
        self._ended(self)

    def _was_denied_memory(self) -> bool:
        """Whether the program ended badly and says that it got no memory. What no machine has is denied at once, and never measured."""
        if self.status is None or self.status.code == 0 or self._max_memory is None:
            return False
        words = self._log.text(self._log_before)[-_LAST_WORDS:]
        return any(each in words for each in _NO_MEMORY)

    async def _read_answers(self, child: Child) -> None:
        assert child.stdout is not None
        try:
            async for line in child.stdout.lines():
                self._heard_at = self._clock.monotonic()
                self._count_output(child)
                if self._has_exceeded:
                    break  # it is being ended: nobody wants to know what it still says
                self._take(line)
                if self.by_task or (self.why and self._said is None):  # likewise; its log is read
                    while rest := child.stdout.read_nowait():
                        self._log.add(rest)
        except CommunicationError:  # a line that is longer than all its output may be
            self._exceeded()
        child.stdout.close()

    async def _read_log(self, child: Child) -> None:
        if child.stderr is not None:
            while piece := await child.stderr.read():
                self._count_output(child)
                self._log.add(piece)

    def _take(self, line: bytes) -> None:
        message: Any = None
        if line.lstrip().startswith(b"{"):
            with suppress(*UNREADABLE):
                message = json.loads(line)
        match message:
            case {"method": "ready"}:
                self._ready.set()
            case {"method": "heartbeat"}:
                self._beats = True
            case {"method": "tools/call"} | {"result": _} | {"error": _} if self._said is not None:
                self._said.put_nowait(message)
            case _:
                self._log.add(line + b"\n")

    def _count_output(self, child: Child) -> None:
        if self._max_output is not None and child.output_bytes - self._output_before > self._max_output:
            self._exceeded()

    def _exceeded(self) -> None:
        if self._said is not None and not self._has_exceeded:
            self._has_exceeded = True
            what = f"instance {self._name!r} has written more for its task than {self._max_output} bytes"
            self._said.put_nowait(ResourceLimitExceeded(what, limit="max_output_bytes"))

    def _to(self, state: ProcessState) -> None:
        before = self.state
        if state not in _NEXT[before]:
            raise IllegalTransition(f"instance {self._name!r}: a process that is {before} does not become {state}")
        self.state = state
        self._changed(before, state)


class RuntimeAgent:
    """An instance of a runtime, over all its processes.

    failures: processes that have ended by themselves since a task was done. restarts: since the beginning. usage: as last measured.
    """

    def __init__(self, name: str, kind: str, command: Command, limits: ResourceLimits, log: AgentLog) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.type = kind
        self.command = command
        self.limits = limits
        self.log = log
        self.lock = asyncio.Lock()
        self.process: WorkerProcess | None = None
        self.wait_ready = False
        self.failures = 0
        self.restarts = 0
        self.is_over = False
        self.degraded = False
        self.why = ""
        self.usage: ProcessUsage | None = None
        self.tool_calls = deque[float]()  # when it called tools, in the last minute
        self.changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<RuntimeAgent {self.name!r} {self.id} {'degraded' if self.degraded else self.state}>"

    @property
    def state(self) -> ProcessState:
        """That of its process, of which it has one after the other."""
        return ProcessState.INITIAL if self.process is None else self.process.state

    @property
    def pid(self) -> int:
        """Its process; 0 for none."""
        child = None if self.process is None else self.process.child
        return 0 if child is None or child.is_over else child.pid

    async def usable(self) -> WorkerProcess | None:
        """Its process, once it lives; None when there will be none any more."""
        while not self.is_over:
            if self.process is not None and self.process.is_usable:
                return self.process
            self.changed.clear()
            await self.changed.wait()
        return None

    def over(self, why: str, *, degraded: bool = False) -> None:
        """It gets no other process."""
        self.is_over, self.degraded, self.why = True, degraded, why
        self.changed.set()
