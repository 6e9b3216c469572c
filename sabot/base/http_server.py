"""An HTTP server in a thread with an event loop of its own, by uvicorn, with limits for slow clients. Loaded only by what serves."""

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sabot.base.doors import WAITING_MOST, Door
from sabot.base.http_connections import MOST_HEAD_BYTES, LimitedHttp
from sabot.errors import UserError

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]
"""What answers requests: an application of ASGI 3, with those of Starlette."""

_PORTS = 20  # this many ports are tried, from the wanted one on
MOST_CONNECTIONS = 256
_HANDSHAKE_SECONDS = 5.0
_STOP_SECONDS = 1


class LimitedServer:
    """A server on a port, and its thread."""

    def __init__(
        self, port: int, host: str, *, name: str, option: str, ports: int = _PORTS, tls: ssl.SSLContext | None = None
    ) -> None:
        """Takes the port of an address, or the next free one of `ports`. Raises UserError if none is free. `name`, `option`: of the server
        and of the option with the port, for messages. `tls`: with the certificate that the server shows; None for HTTP without TLS.
        """
        self._name = name
        self._tls = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": _HANDSHAKE_SECONDS}
        self._socket = _bind(host, port, name, option, ports)
        self.port: int = self._socket.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._end: Callable[[], object] | None = None

    def start(self, pages: AsgiApp, beside: Callable[[], Coroutine[Any, Any, None]], end: Callable[[], None]) -> None:
        """Serves the pages. `beside`: a coroutine function that runs on the server's event loop until the server stops. `end`: called on
        that loop when the server begins to stop; it ends the answers that would go on.
        """
        config = uvicorn.Config(
            pages,
            interface="asgi3",
            http=H11Protocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MOST_HEAD_BYTES,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = server = uvicorn.Server(config)

        async def serve() -> None:
            loop = asyncio.get_running_loop()

            def make(left: Callable[[Any], None]) -> LimitedHttp:
                return LimitedHttp(config, server.server_state, {}, left=left)

            door = Door(self._name, self._socket, make, MOST_CONNECTIONS, **self._tls)
            beside_it = asyncio.create_task(beside()), asyncio.create_task(door.serve())

            def stop() -> None:
                beside_it[1].cancel()
                end()

            self._end = partial(loop.call_soon_threadsafe, stop)
            try:
                await server.serve(sockets=[])  # the door accepts
            finally:
                for each in beside_it:
                    each.cancel()

        def run() -> None:
            try:
                asyncio.run(serve())
            except Exception:
                _log.exception("%s has ended", self._name)

        self._thread = threading.Thread(target=run, name="sabot-http", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """True from `start` until the server has ended."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Stops the server and frees the port."""
        if self._server is not None and self._thread is not None:
            if self._end is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended by itself
                    self._end()
            self._server.should_exit = True
            self._thread.join(2 * _STOP_SECONDS + 1)
        self._socket.close()


def _bind(host: str, port: int, name: str, option: str, ports: int) -> socket.socket:
    last: OSError | None = None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for each in range(port, min(port + ports, 65_536)) if port else [0]:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, each))
            made.listen(WAITING_MOST)
        except OSError as error:
            made.close()
            last = error
            continue
        return made
    taken = f"{port} and the next {ports - 1} are" if ports > 1 else f"{port} is"
    raise UserError(f"{name} has no port: {taken} taken ({last})", hint=f"give another {option}")
