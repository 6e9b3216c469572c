"""Launchers, which start the processes of workers, and the ends of these processes."""

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from sabot.base.os_errors import hint_of
from sabot.engine.workers.joining import Ticket, name_of
from sabot.engine.workers.memory import KillCounts, MemoryKills
from sabot.errors import TransientError

_MORE_MEMORY = "fewer workers, a smaller memory_budget=, or more memory"
_UNKNOWN = KillCounts(None, None)


class ProcessEnd(NamedTuple):
    """The end of a process. `how`: what happened, worded to follow the name of the process ("was killed"). `why`: the
    cause, or a hint.
    """

    how: str
    why: str
    out_of_memory: bool = False


class LaunchedProcess(ABC):
    """The process of one worker. All methods are called on one event loop."""

    pid: int | None  # None: not known here

    @abstractmethod
    async def wait(self) -> ProcessEnd:
        """Returns when the process has ended. Several callers may wait."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the process at once. Idempotent."""


class Launcher(ABC):
    """Starts the workers of one attempt (the time from the start of a set of workers to their end). All methods run
    on one event loop.
    """

    @abstractmethod
    async def open(self, workers: int) -> str:
        """Prepares for this number of workers. Returns the host at which they reach this process. If it raises
        (SabotError), nothing is left open.
        """

    @abstractmethod
    async def make_room(self, more: int) -> None:
        """Makes sure, while the workers run, that the next start can have `more` additional workers. Raises UserError
        if it cannot.
        """

    @abstractmethod
    async def launch(self, ticket: Ticket) -> LaunchedProcess:
        """Starts one worker. The launcher sets `ticket.parent`."""

    @abstractmethod
    async def close(self) -> None:
        """Releases everything. Called when all processes have ended. Idempotent."""


class LocalLauncher(Launcher):
    """Starts processes on this machine: new interpreters, which inherit only the standard output and error."""

    def __init__(self, command: Sequence[str]) -> None:
        """`command`: the command of a worker's process, which imports the program and calls `run_worker`."""
        self._command = command

    async def open(self, workers: int) -> str:
        """Returns the loopback address."""
        return "127.0.0.1"

    async def make_room(self, more: int) -> None:
        """Does nothing: the machine has room for as many workers as an app may have."""

    async def launch(self, ticket: Ticket) -> LaunchedProcess:
        # The process gets its own process group, because Ctrl-C would kill a process that is starting: the coordinator stops the workers.
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, process_group=0
            )
        except OSError as error:
            raise TransientError(
                f"{name_of(ticket.number or 0)}: its process cannot be started: {error.strerror or error}",
                hint=hint_of(error, "fewer workers, or more processes and memory for this user"),
            ) from error
        assert process.stdin is not None
        process.stdin.write(ticket.encoded(os.getpid()))  # less than a pipe holds
        process.stdin.close()
        return _LocalProcess(process)

    async def close(self) -> None:
        """Does nothing."""


class _LocalProcess(LaunchedProcess):
    """A child of this process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid: int | None = process.pid
        self._process = process
        self._kills = MemoryKills()
        self._before = self._kills.so_far()

    async def wait(self) -> ProcessEnd:
        return how_it_ended(await self._process.wait(), self._kills, self._before)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()


def how_it_ended(code: int, kills: MemoryKills | None = None, before: KillCounts = _UNKNOWN) -> ProcessEnd:
    """Returns the end of a process with this exit code, as `subprocess` has it. `kills`: the counts of kills for lack
    of memory, if the process was on this machine; `before`: the counts at its start.
    """
    if code != -signal.SIGKILL:
        return ProcessEnd(_how(code), "the lines before this one in the log have its error")
    now = _UNKNOWN if kills is None else kills.so_far()
    if kills is not None and _more(before.group, now.group):
        limit = (
            ""
            if kills.limit_bytes is None
            else f" (the limit of its control group is {kills.limit_bytes / 1e6:,.0f} MB)"
        )
        return ProcessEnd(f"was killed by the system because memory ran out{limit}", _MORE_MEMORY, out_of_memory=True)
    if _more(before.machine, now.machine):
        how = f"{_how(code)} when the system killed processes because memory ran out"
        return ProcessEnd(how, _MORE_MEMORY, out_of_memory=True)
    known = now.group is not None or now.machine is not None
    return ProcessEnd(
        _how(code),
        "a user or a program has killed it"
        if known
        else "a user or a program has killed it, or the system because memory ran out",
    )


def _more(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before


def _how(code: int) -> str:
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
