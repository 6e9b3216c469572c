"""The HTTP server of the console: uvicorn in a thread with an event loop of its own, with limits for slow clients."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sabot.errors import UserError

_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.requests")  # a scan of ports must not fill the app's log
_quiet.setLevel(logging.CRITICAL)

HOST = "127.0.0.1"
DEFAULT_PORT = 8420
_PORTS = 20  # this many ports are tried, from the wanted one on
_HEAD_SECONDS = 5.0
_MOST_CONNECTIONS = 256
_MOST_HEAD_BYTES = 16_384
_STOP_SECONDS = 1


class _LimitedProtocol(H11Protocol):
    """A connection that is closed if its request does not arrive within five seconds. If there are too many connections, that
    one which has waited longest for a request is closed.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = _quiet
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self._close_if_waiting)
        if len(self.connections) > _MOST_CONNECTIONS:
            waiting = [each for each in self.connections if isinstance(each, _LimitedProtocol) and each.waiting]
            if waiting:
                min(waiting, key=lambda each: each.since).transport.close()

    @property
    def waiting(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def since(self) -> float:
        """The time of the event loop at which the connection is closed if it goes on waiting."""
        return 0.0 if self._deadline is None else self._deadline.when()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._cancel()
        self._deadline = self.loop.call_later(_HEAD_SECONDS, self._close_if_waiting)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_if_waiting(self) -> None:
        if self.waiting and not self.transport.is_closing():
            self.transport.close()


class ConsoleServer:
    """A server on a port, and its thread."""

    def __init__(self, port: int, host: str = HOST) -> None:
        """Takes the port of an address, or the next free one. Raises UserError if none of twenty is free."""
        self._socket = _bind(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._end: Callable[[], object] | None = None

    def start(self, pages: ASGIApp, beside: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None]) -> None:
        """Serves the pages. `beside`: a coroutine function that runs on the server's event loop until the server stops. `end`: called on
        that loop when the server begins to stop; it ends the answers that would go on.
        """
        config = uvicorn.Config(
            pages,
            http=_LimitedProtocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = server = uvicorn.Server(config)

        async def serve() -> None:
            self._end = partial(asyncio.get_running_loop().call_soon_threadsafe, end)
            other = asyncio.create_task(beside())
            try:
                await server.serve(sockets=[self._socket])
            finally:
                other.cancel()

        def run() -> None:
            try:
                asyncio.run(serve())
            except Exception:
                _log.exception("the console has ended")

        self._thread = threading.Thread(target=run, name="sabot-console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the server and frees the port."""
        if self._server is not None and self._thread is not None:
            if self._end is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended by itself
                    self._end()
            self._server.should_exit = True
            self._thread.join(2 * _STOP_SECONDS + 1)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    last: OSError | None = None
    for each in range(port, min(port + _PORTS, 65_536)) if port else [0]:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, each))
            made.listen(128)
        except OSError as error:
            made.close()
            last = error
            continue
        return made
    raise UserError(
        f"the console has no port: {port} and the next {_PORTS - 1} are taken ({last})", hint="give another --web-port"
    )
