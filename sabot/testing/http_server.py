"""An HTTP server inside of a test's process: on a free port of the loopback interface, in a thread with an event loop
of its own.

It is small and fast rather than complete: HTTP/1.1, bodies with a Content-Length, connections that stay open, and one
request at a time on each connection.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any, TypeAlias, TypeVar

from sabot.testing.witness_server import HttpRequest, parse_head, response

T = TypeVar("T")

_MOST_HEAD = 64 << 10


class HttpExchange:
    """A request, and the methods to answer it. They are called in the server's event loop."""

    def __init__(self, request: HttpRequest, transport: asyncio.Transport) -> None:
        self.request = request
        self._transport = transport
        self.ended = False
        """True if the answer is complete, so that the connection may have another request."""

    def answer(self, status: int, body: object, headers: dict[str, str]) -> None:
        """Sends the whole answer, with `body` as JSON."""
        self._transport.write(response(status, body, {"Connection": "keep-alive", **headers}))
        self.ended = True

    def begin(self, headers: dict[str, str]) -> None:
        """Begins an answer with status 200 that is sent in parts."""
        lines = [
            "HTTP/1.1 200 OK",
            "Transfer-Encoding: chunked",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self._transport.write("\r\n".join([*lines, "", ""]).encode())

    def write(self, part: bytes) -> None:
        """Sends a part, which must not be empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))

    def end(self) -> None:
        """Ends an answer that was sent in parts. The connection stays open."""
        self._transport.write(b"0\r\n\r\n")
        self.ended = True

    def truncate(self, status: int, body: object, headers: dict[str, str]) -> None:
        """Sends the headers of an answer and the first half of its body, and closes the connection."""
        data = response(status, body, headers)
        body_at = data.index(b"\r\n\r\n") + 4
        self._transport.write(data[: (body_at + len(data)) // 2])
        self.break_off()

    def break_off(self) -> None:
        """Closes the connection after sending what was written."""
        self._transport.close()

    def reset(self) -> None:
        """Resets the connection, so that the caller gets a ConnectionResetError."""
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


Handler: TypeAlias = Callable[[HttpExchange], Awaitable[None]]


class _HttpConnection(asyncio.Protocol):
    def __init__(self, handle: Handler, connections: "set[_HttpConnection]") -> None:
        self._handle = handle
        self._connections = connections
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._begin_next()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def _begin_next(self) -> None:
        """Begins to serve the next request, if all of it has been received."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > _MOST_HEAD:
                self._refuse("its head is too long")
            return
        try:
            method, path, headers, length = parse_head(bytes(self._received[:end]))
        except ValueError as error:
            self._refuse(str(error))
            return
        end += 4
        if len(self._received) >= end + length:
            body = bytes(self._received[end : end + length])
            del self._received[: end + length]
            request = HttpRequest(method, path, headers, body)
            self._task = asyncio.get_running_loop().create_task(self._serve(request))

    async def _serve(self, request: HttpRequest) -> None:
        exchange = HttpExchange(request, self.transport)
        try:
            await self._handle(exchange)
        finally:
            self._task = None
            if not exchange.ended:
                self.transport.close()
            elif not self.transport.is_closing():
                self._begin_next()

    def _refuse(self, why: str) -> None:
        self.transport.write(response(HTTPStatus.BAD_REQUEST, {"error": {"message": f"not an HTTP request: {why}"}}))
        self.transport.close()


class HttpServer:
    """A server that runs from `start` to `stop`. `handle`: the coroutine function that answers a request; it is
    cancelled if the caller disconnects. `port`: the port, which stays the same when the server is started again.
    `connections`: the number of connections so far.

    Its methods may be called from any thread except the server's own.
    """

    def __init__(self, handle: Handler) -> None:
        self.handle = handle
        self.port = 0
        self.connections = 0
        self._open: set[_HttpConnection] = set()
        self._listening: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the server. Does nothing if it runs already."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="sabot http server", daemon=True)
            self._thread.start()
            try:
                self.run(self._listen())
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Breaks all connections, and stops the server. Does nothing if it is stopped."""
        loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            self.run(self._end())
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the coroutine in the server's event loop, and returns its result. Blocks until then."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._connected, "127.0.0.1", self.port, backlog=4096)
        self.port = self._listening.sockets[0].getsockname()[1]

    def _connected(self) -> _HttpConnection:
        self.connections += 1
        return _HttpConnection(self.handle, self._open)

    async def _end(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._open):
            connection.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets transports close their sockets
