"""One worker, as its coordinator sees it: its process, its connection, its reports, and its end."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from sabot.base.process_exit import EXITS
from sabot.base.supervision import unexpected_end
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.workers.connection import ControlChannel
from sabot.engine.workers.joining import name_of
from sabot.engine.workers.launching import LaunchedProcess
from sabot.engine.workers.messages import Beat, Closed, ControlMessage, Hello, Join, Opened, Stopped
from sabot.engine.workers.pace import Pace
from sabot.errors import SabotError, WorkerLost

_log = logging.getLogger(__name__)

_END_SECONDS = 5.0  # for a process to end whose connection has ended


class Member:
    """A worker of an attempt. All methods run on one event loop. `on_message` and `on_gone` are set before `run` and
    `join`.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = name_of(number)
        self.on_message: Callable[[Member, ControlMessage], None]
        self.on_gone: Callable[[SabotError], None]  # called if it is gone and was not asked to end
        loop = asyncio.get_running_loop()
        self.joined: asyncio.Future[Join] = loop.create_future()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.stopped: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[list[str]] = loop.create_future()  # the calls that refused to be cancelled
        self.beat = Beat()
        self.pace = Pace()
        self.heard_s = SYSTEM_CLOCK.monotonic()  # the time of its last message
        self.unheard = 0  # the coordinator's checks since then
        self._connection: ControlChannel | None = None
        self._process: LaunchedProcess | None = None  # None if others have started it
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False

    @property
    def pid(self) -> int:
        """The pid of its process, on its machine, or 0 if it is not known yet."""
        if self.joined.done():
            return self.joined.result().pid
        return (self._process.pid or 0) if self._process is not None else 0

    @property
    def text(self) -> str:
        """The worker's name in messages."""
        if not self.joined.done():
            return f"{self.name} (pid {self.pid})" if self.pid else self.name
        host = self.joined.result().host[:100]
        return f"{self.name} (pid {self.pid}{'' if host == socket.gethostname() else f' on {host}'})"

    def run(self, process: LaunchedProcess) -> None:
        """Begins to watch the started process of the worker, which joins when it is ready."""
        self._process = process
        self._tasks.append(asyncio.create_task(self._wait(process), name=f"{self.name} process"))

    def join(self, connection: ControlChannel, join: Join, welcome: ControlMessage) -> None:
        """Resolves `joined` with the worker's message `join`, begins to read its connection, and sends it `welcome`.
        Called once.
        """
        self._connection = connection
        self._hears()
        self.joined.set_result(join)
        self._tasks.append(asyncio.create_task(self._listen(connection), name=f"{self.name} messages"))
        self.send(welcome)

    def give_up(self, error: SabotError) -> None:
        """Marks the worker as gone, because it can never join. `error`: the reason."""
        self._is_gone(error)

    def send(self, message: ControlMessage) -> None:
        """Sends a message, unless the worker is gone."""
        if self._connection is not None:
            self._connection.send(message)

    async def _listen(self, connection: ControlChannel) -> None:
        try:
            async for message in connection.received():
                self._hears()
                self._note(message)
                self.on_message(self, message)
        except (Exception, *EXITS) as error:
            self._is_gone(unexpected_end(f"the connection of {self.text}", error))
            return
        if self._process is None:
            self._is_gone(
                WorkerLost(
                    f"{self.text} has closed its connection",
                    hint="its own log has the reason, unless its machine was lost",
                )
            )
            return
        # usually the end of the process is noticed meanwhile, and its error says more
        await asyncio.sleep(_END_SECONDS)
        self._is_gone(WorkerLost(f"{self.text} has closed its connection, but its process has not ended"))

    def _hears(self) -> None:
        self.heard_s, self.unheard = SYSTEM_CLOCK.monotonic(), 0

    def _note(self, message: ControlMessage) -> None:
        for kind, told in ((Hello, self.hello), (Opened, self.opened), (Stopped, self.stopped)):
            if isinstance(message, kind) and not told.done():
                told.set_result(message if isinstance(message, Hello) else None)  # type: ignore[arg-type]
        if isinstance(message, Beat):
            self.beat = message
            self.pace.add(self.heard_s, message)
        elif isinstance(message, Closed) and not self.closed.done():
            self.closed.set_result(message.left_behind)

    async def _wait(self, process: LaunchedProcess) -> None:
        ended = await process.wait()
        memory_bytes = self.beat.memory_bytes if ended.out_of_memory else None
        had = "" if memory_bytes is None else f"; it had {memory_bytes / 1e6:,.0f} MB a second before"
        self._is_gone(WorkerLost(f"{self.text} {ended.how}{had}", hint=ended.why))

    def _is_gone(self, error: SabotError) -> None:
        if not self._ending:
            self._ending = True
            self.on_gone(error)

    async def end(self, patience_s: float) -> None:
        """Waits `patience_s` for the worker to end by itself, then kills it, and returns when it is gone. If others
        have started the worker, only its connection is ended.
        """
        self._ending = True
        if self._process is not None:
            await self._end(self._process, patience_s)
        elif patience_s and self.joined.done():
            waits: list[asyncio.Future[Any]] = [self.closed, *self._tasks]
            await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._connection is not None:
            await self._connection.close()

    async def _end(self, process: LaunchedProcess, patience_s: float) -> None:
        ending = asyncio.ensure_future(process.wait())
        await asyncio.wait([ending], timeout=patience_s)
        if not ending.done():
            if patience_s:
                _log.error("%s has not ended within %g s, and is killed", self.text, patience_s)
            process.kill()
        await ending
