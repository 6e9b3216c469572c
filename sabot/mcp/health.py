"""The health of sessions, judged once for all of their users.

    a call is out of time ─▶ ping ─┬─ answered: the tool is slow, and the session stays
                                   └─ no answer: hung. The session ends, and the next call opens another one;
                                      while other calls of it still have time, new ones fail at once

A server that hangs again and again, or at its start, is not started for each call: `ServerBackoff` says how long
nothing is asked of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from mcp import MCPError
from mcp.types import JSONRPCNotification

from sabot.base.backoff import Backoff
from sabot.mcp.config import SessionKey
from sabot.mcp.errors import McpUnavailable
from sabot.mcp.loop_thread import seen

_PING_SECONDS = 5.0
_BACKOFF = Backoff(5.0, 60.0)  # before the next session with a server whose sessions hang
_UNASKED_PER_SECOND = 50.0  # notifications, while nothing is asked of the server
_UNASKED_BURST = 500.0
_LOOK_SECONDS = 0.02


class SessionHealth:
    """The health of one session. `server`: the name for messages. `ping`: sends a request that any server answers. `end`: ends the session,
    for a reason.

    `hung`: True if a ping was not answered. `under_way`: the number of requests that wait for an answer.
    """

    def __init__(
        self, server: str, ping: Callable[[], Awaitable[Any]], end: Callable[[str], object], *, most_seconds: float
    ) -> None:
        self.hung = False
        self.under_way = 0
        self._server = server
        self._ping = ping
        self._end = end
        self._seconds = min(_PING_SECONDS, most_seconds)
        self._asking: asyncio.Task[None] | None = None
        self._why = ""

    def doubt(self, what: str) -> None:
        """Notes that a request is out of time, and pings the server; nothing new is sent until the answer. `what`: the request, for
        messages.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(what))
            self._asking.add_done_callback(seen)

    async def checked(self) -> None:
        """Waits for the answer to a ping that is under way. Raises McpUnavailable if the session hangs; nothing was sent then."""
        if self._asking is not None:
            await asyncio.shield(self._asking)
        if self.hung:
            raise McpUnavailable(self._server, self._why, hint="it was sent nothing, so the call may be made again")

    def begun(self) -> None:
        """Notes that a request is sent."""
        self.under_way += 1

    def answered(self) -> None:
        """Notes an answer of the server."""
        self.hung = False

    def over(self) -> None:
        """Notes that a request waits no longer."""
        self.under_way -= 1
        self._end_if_hung()

    def stop(self) -> None:
        """Stops the ping: the session is over."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self, what: str) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._ping()
        except TimeoutError:
            self.hung = True
            self._why = f"it hangs: {what}, and a ping was not answered within {self._seconds:g} s"
        except MCPError:
            self.hung = False  # an error is an answer, too; a session that has ended says so itself
        finally:
            self._asking = None
        self._end_if_hung()

    def _end_if_hung(self) -> None:
        if self.hung and not self.under_way:
            self._end(self._why)


class ServerBackoff:
    """Sessions whose servers hung, in a row without an answer to a call, and the times until which nothing is asked of them.

    After the first hang in a call, the next session is opened at once. After further ones, or a hang while it was opened, it waits, each
    time twice as long.
    """

    def __init__(self) -> None:
        self._hung: dict[SessionKey, tuple[int, float, str]] = {}  # how often, until when, why

    def hung(self, key: SessionKey, why: str, opened: bool) -> None:
        """Notes that a session was given up. `opened`: True if it was open before."""
        times = self._hung.get(key, (0, 0.0, ""))[0] + 1
        rest = _BACKOFF.wait_s(times - opened)
        self._hung[key] = (times, asyncio.get_running_loop().time() + rest, why)

    def answered(self, key: SessionKey) -> None:
        """Notes that the server has answered a call."""
        self._hung.pop(key, None)

    def check(self, key: SessionKey) -> None:
        """Raises McpUnavailable while nothing is asked of the server."""
        times, until, why = self._hung.get(key, (0, 0.0, ""))
        left = until - asyncio.get_running_loop().time()
        if left > 0:
            raise McpUnavailable(
                key.server,
                f"{why} ({times} sessions in a row); another one is opened in {left:.1f} s at the earliest",
                hint="it was sent nothing, so the call may be made again",
            )


class PacedStream:
    """A stream of messages. While nothing is asked of the server, notifications are read at a bounded rate, so that a flood of them waits
    instead of keeping a core busy. `is_awaited`: returns True while something is asked.
    """

    def __init__(self, stream: Any, is_awaited: Callable[[], bool]) -> None:
        self._stream = stream
        self._is_awaited = is_awaited
        self._room = _UNASKED_BURST
        self._seen = asyncio.get_running_loop().time()

    @property
    def last_context(self) -> Any:
        """As the SDK's streams have it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        """Returns the next message."""
        found = await self._stream.receive()
        if isinstance(getattr(found, "message", None), JSONRPCNotification):
            while not (self._has_room() or self._is_awaited()):  # noqa: ASYNC110 - room comes with the time, and nothing tells
                await asyncio.sleep(_LOOK_SECONDS)
            self._room = max(0.0, self._room - 1.0)
        return found

    def _has_room(self) -> bool:
        now = asyncio.get_running_loop().time()
        self._room = min(_UNASKED_BURST, self._room + (now - self._seen) * _UNASKED_PER_SECOND)
        self._seen = now
        return self._room >= 1.0

    async def aclose(self) -> None:
        """Closes the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> "PacedStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "PacedStream":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()
