"""The conversation with one process of an instance of the runtime, on its stdin and stdout, one JSON value a line
(JSON-RPC 2.0).

   to the process      {"id": …, "method": "task/execute", "params": {…}}                       a task, one at a time
   from the process    {"id": …, "result": …}, or {"id": …, "error": {"message": …}}            its answer; the id may be left out
   from the process    {"id": …, "method": "tools/call", "params": {"name": …, "arguments": {…}}}    answered by a line with this id
   from the process    {"method": "ready"}, {"method": "heartbeat"}

Other lines of its stdout, and its stderr, are its log.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from sabot.base.backoff import Failures
from sabot.clock import Clock
from sabot.process.client import Child
from sabot.process.errors import AgentError, CommunicationError, ExecutionError, ResourceLimitExceeded
from sabot.process.limits import ResourceLimits
from sabot.process.streams import LastWords, json_of

_LAST_WORDS = 4000  # characters
_NO_MEMORY = (
    "MemoryError",  # Python
    "std::bad_alloc",
    "annot allocate memory",  # of the C library
    "out of memory",  # Go, V8, shells
    "OutOfMemoryError",  # Java
    "memory allocation of",  # Rust
)


class TaskLines:
    """The exchange of JSON lines with one process: tasks and results of tools are sent to it, and answers and calls
    of tools come back. The process gets one task at a time.

    - `ready`: an asyncio event that is set when the process has reported that it is ready.
    - `stops`: counts the health checks in a row that have found the process stopped (SIGSTOP).
    - `beat_at_s`: None until the first heartbeat of the process. After that, the time of the last line that it wrote,
      in seconds of a monotonic clock.
    - `is_at_fault`: True if an end of the process counts as a failure of the program. False if the process ends
      because of its task, for example because the task has exceeded a limit.
    """

    def __init__(self, label: str, child: Child, log: LastWords, limits: ResourceLimits, clock: Clock) -> None:
        """Begins to read the output of `child`.

        - `label`: the name of the instance in messages.
        - `log`: a buffer for all output that is no answer. Its last lines also show whether the program ended for
          lack of memory.
        - `limits`: the limits of the instance. The limit of output is enforced here, for each task.
        """
        self.child = child
        self.ready = asyncio.Event()
        self.stops = Failures()
        self.beat_at_s: float | None = None
        self.is_at_fault = True
        self._label = label
        self._log = log
        self._limits = limits
        self._clock = clock
        self._said: asyncio.Queue[dict[str, Any] | AgentError] | None = None
        self._output_before = self._log_before = 0
        self._has_exceeded = False
        self._reading = [asyncio.ensure_future(self._read_answers()), asyncio.ensure_future(self._read_log())]

    def begin_task(self) -> None:
        """Starts to accept an answer, and to count the output of the process for the task's limit. Called before a
        task is sent.
        """
        self._said = asyncio.Queue()
        self._output_before, self._log_before = self.child.output_bytes, self._log.size
        self._has_exceeded = False

    def end_task(self) -> None:
        """Stops accepting an answer. An answer that comes later is put in the log."""
        self._said = None

    async def tell(self, message: Mapping[str, Any]) -> None:
        """Writes the message as a line to the process. Does not raise an error if the process does not read any more:
        the caller notices this because `hear` raises an error when the process has ended, or because the task exceeds
        its time limit.
        """
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
        """Waits for the next message of the process, and returns it: an answer, or a call of a tool. Raises
        ResourceLimitExceeded if the task has exceeded a limit; ExecutionError if the process has ended.
        """
        assert self._said is not None
        message = await self._said.get()
        if isinstance(message, AgentError):
            raise message
        return message

    async def read_to_end(self, why: str) -> None:
        """Reads the rest of the output of a process that has ended. If it had a task, `hear` then raises an error with the reason `why`."""
        await asyncio.wait(self._reading)
        if self._said is not None:
            what = f"instance {self._label} has ended in its task: {why}"
            limit = None if self.child.status is None else self.child.status.limit
            if limit is None and self._was_denied_memory():
                limit = "max_memory_bytes"
                what = f"{what}, and its last words are those of a program that was denied memory"
            self.is_at_fault &= limit is None
            self._said.put_nowait(ExecutionError(what) if limit is None else ResourceLimitExceeded(what, limit=limit))

    def _was_denied_memory(self) -> bool:
        """Returns True if the program probably ended because it got no memory: it has a memory limit, did not end
        with 0, and its last lines report such an error.

        Measurements cannot show such an end: the kernel denies a request for too much memory before any of it is
        used.
        """
        status = self.child.status
        if status is None or status.code == 0 or self._limits.max_memory_bytes is None:
            return False
        words = self._log.text(self._log_before)[-_LAST_WORDS:]
        return any(each in words for each in _NO_MEMORY)

    async def _read_answers(self) -> None:
        stdout = self.child.stdout
        assert stdout is not None
        try:
            async for line in stdout.lines():
                if self.beat_at_s is not None:
                    self.beat_at_s = self._clock.monotonic()
                self._count_output()
                if self._has_exceeded:
                    break  # the process is being ended, and its further answers are of no use
                self._take(line)
                if not self.is_at_fault:  # likewise; only its log is of use
                    while rest := stdout.read_nowait():
                        self._log.add(rest)
        except CommunicationError:  # a line that is longer than the limit of the whole output
            self._exceeded()
        stdout.close()

    async def _read_log(self) -> None:
        if self.child.stderr is not None:
            while piece := await self.child.stderr.read():
                self._count_output()
                self._log.add(piece)

    def _take(self, line: bytes) -> None:
        message: Any = json_of(line, whole=False) if line.lstrip().startswith(b"{") else None
        match message:
            case {"method": "ready"}:
                self.ready.set()
            case {"method": "heartbeat"}:
                self.beat_at_s = self._clock.monotonic()
            case {"method": "tools/call"} | {"result": _} | {"error": _} if self._said is not None:
                self._said.put_nowait(message)
            case _:
                self._log.add(line + b"\n")

    def _count_output(self) -> None:
        most = self._limits.max_output_bytes
        if most is not None and self.child.output_bytes - self._output_before > most:
            self._exceeded()

    def _exceeded(self) -> None:
        if self._said is not None and not self._has_exceeded:
            self._has_exceeded = True
            what = f"instance {self._label} has written more for its task than {self._limits.max_output_bytes} bytes"
            self._said.put_nowait(ResourceLimitExceeded(what, limit="max_output_bytes"))
