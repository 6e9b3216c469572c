"""One worker, as its coordinator sees it: the process, what it has said of itself, and how it ended."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sabot.clock import SYSTEM_CLOCK
from sabot.errors import SabotError, TransientError
from sabot.exits import EXITS
from sabot.watch import unexpected
from sabot.workers.connection import ControlConnection
from sabot.workers.messages import Beat, Closed, ControlMessage, Hello, Opened, Stopped
from sabot.workers.process import SOCKET, name_of

__all__ = ["Member"]

_log = logging.getLogger(__name__)

_END_SECONDS = 5.0  # for a process to end whose connection has ended


class Member:
    """All methods on one event loop. `on_message` and `on_gone` are set before `start`."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = name_of(number)
        self.on_message: Callable[[Member, ControlMessage], None]
        self.on_gone: Callable[[SabotError], None]  # it is gone, and nobody has asked it to end
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.stopped: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[list[str]] = loop.create_future()  # calls that it has left behind
        self.beat = Beat()
        self.heard_s = SYSTEM_CLOCK.monotonic()  # when it said something
        self._connection: ControlConnection | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self._kills = _kills_for_memory()

    @property
    def pid(self) -> int:
        """Of its process; 0 before the start."""
        return 0 if self._process is None else self._process.pid

    @property
    def text(self) -> str:
        """For messages."""
        return f"{self.name} (pid {self.pid})"

    async def start(self, command: Sequence[str], environment: Mapping[str, str], welcome: ControlMessage) -> None:
        """Starts the process: a new interpreter, which inherits its end of the socket and nothing else."""
        ours, theirs = socket.socketpair()
        try:
            said = {SOCKET: f"{theirs.fileno()}:{os.getpid()}:{self.number}"}
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, env={**environment, **said}, pass_fds=[theirs.fileno()]
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._connection = await ControlConnection.over(ours)
        self._tasks = [
            asyncio.create_task(self._listen(self._connection), name=f"{self.name} messages"),
            asyncio.create_task(self._wait(self._process), name=f"{self.name} process"),
        ]
        self.send(welcome)

    def send(self, message: ControlMessage) -> None:
        """Sends it, unless the worker is gone."""
        if self._connection is not None:
            self._connection.send(message)

    async def _listen(self, connection: ControlConnection) -> None:
        try:
            async for message in connection.received():
                self.heard_s = SYSTEM_CLOCK.monotonic()
                self._note(message)
                self.on_message(self, message)
        except (Exception, *EXITS) as error:
            self._is_gone(unexpected(f"the connection of {self.text}", error))
            return
        await asyncio.sleep(_END_SECONDS)  # the end of the process, which comes first as a rule, says more
        self._is_gone(TransientError(f"{self.text} has closed its connection, and still runs"))

    def _note(self, message: ControlMessage) -> None:
        for kind, told in ((Hello, self.hello), (Opened, self.opened), (Stopped, self.stopped)):
            if isinstance(message, kind) and not told.done():
                told.set_result(message if isinstance(message, Hello) else None)  # type: ignore[arg-type]
        if isinstance(message, Beat):
            self.beat = message
        elif isinstance(message, Closed) and not self.closed.done():
            self.closed.set_result(message.left_behind)

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self._is_gone(TransientError(f"{self.text} {_how(code)}", hint=self._why(code)))

    def _why(self, code: int) -> str:
        if code != -signal.SIGKILL:
            return "its last words are in the log before this line"
        if _kills_for_memory() > self._kills:
            return "the system has killed processes meanwhile because memory ran out: fewer workers, or a smaller memory_budget="
        return "somebody has killed it"

    def _is_gone(self, error: SabotError) -> None:
        if not self._ending:
            self._ending = True
            self.on_gone(error)

    async def end(self, patience_s: float) -> None:
        """Waits so long for the process to end by itself, then kills it, and returns when it is gone."""
        self._ending = True
        if self._process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), patience_s)
            if self._process.returncode is None:
                if patience_s:
                    _log.error("%s has not ended in %g s, and is killed", self.text, patience_s)
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._connection is not None:
            await self._connection.close()


def _how(code: int) -> str:
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed because memory ran out; 0 where it does not say."""
    if sys.platform != "linux":
        return 0
    try:
        text = Path("/proc/vmstat").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
