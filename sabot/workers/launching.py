"""Who starts the processes of the workers, and how each of them has ended."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from sabot.workers.joining import Ticket

__all__ = ["Ended", "LaunchedProcess", "Launcher", "LocalLauncher", "how_it_ended"]


class Ended(NamedTuple):
    """How a process has ended, to be read behind its name; and why, or what to do."""

    how: str
    why: str


class LaunchedProcess(Protocol):
    """The process of one worker. All methods on one event loop."""

    pid: int | None  # None: not known here

    async def wait(self) -> Ended:
        """Returns when it has ended. May be called by several."""

    def kill(self) -> None:
        """Ends it at once. Idempotent."""


class Launcher(Protocol):
    """Starts the workers of one epoch. All methods on one event loop."""

    async def open(self, workers: int) -> str:
        """Makes ready for so many. -> the host at which they reach this process. Raises SabotError; then nothing is left."""

    async def launch(self, ticket: Ticket) -> LaunchedProcess:
        """Starts one. `ticket.parent` is the launcher's to say."""

    async def close(self) -> None:
        """When all processes have ended. Idempotent."""


class LocalLauncher:
    """Starts processes of this machine: new interpreters, which inherit nothing but the standard output and error."""

    def __init__(self, command: Sequence[str]) -> None:
        """command: starts one, which imports the program and calls `run_worker`."""
        self._command = command

    async def open(self, workers: int) -> str:
        """Loopback."""
        return "127.0.0.1"

    async def launch(self, ticket: Ticket) -> LaunchedProcess:
        """See `Launcher`."""
        process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(ticket.encoded(os.getpid()))  # less than a pipe holds
        process.stdin.close()
        return _LocalProcess(process)

    async def close(self) -> None:
        """Nothing is left to do."""


class _LocalProcess:
    """A child of this process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid: int | None = process.pid
        self._process = process
        self._kills = _kills_for_memory()

    async def wait(self) -> Ended:
        return how_it_ended(await self._process.wait(), out_of_memory=_kills_for_memory() > self._kills)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


def how_it_ended(code: int, *, out_of_memory: bool = False) -> Ended:
    """code: as `subprocess` says it. out_of_memory: the system has killed processes for that, meanwhile."""
    if code != -signal.SIGKILL:
        return Ended(_how(code), "its last words are in the log before this line")
    if out_of_memory:
        return Ended(
            _how(code),
            "the system has killed processes meanwhile because memory ran out: fewer workers, or a smaller memory_budget=",
        )
    return Ended(_how(code), "somebody has killed it")


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
