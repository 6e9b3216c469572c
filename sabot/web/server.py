"""The HTTP server of the console: uvicorn in a thread with an event loop of its own, with limits for slow clients."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sabot.base.probes import is_reserved, most_connections
from sabot.errors import UserError

_log = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.requests")  # a scan of ports must not fill the app's log
_quiet.setLevel(logging.CRITICAL)

HOST = "127.0.0.1"
DEFAULT_PORT = 8420
_PORTS = 20  # this many ports are tried, from the wanted one on
_HEAD_SECONDS = 5.0
_WRITE_SECONDS = 10.0  # in which a client has to read _LEAST_READ bytes of what waits for it
_LEAST_READ = 16_384
_MOST_CONNECTIONS = 256
_MOST_HEAD_BYTES = 16_384
_STOP_SECONDS = 1
_WAITING_MOST = 1_024  # connections that the kernel keeps until they are accepted
_AT_ONCE = 32  # connections that are accepted in one go, before other events of the loop
_PAUSE_SECONDS = 0.02  # after so many at once: a flood of connections must not take the interpreter from the app
_SWEEP_SECONDS = 0.5
_NO_PLACE_SECONDS = 1.0  # until the next try, if the process has no descriptor to spare
_TOLD_SECONDS = 60.0  # between two messages about that


class _LimitedProtocol(H11Protocol):
    """A connection that is closed if its request does not arrive within five seconds, and aborted if the client does not read."""

    def __init__(self, *args: Any, left: "Callable[[_LimitedProtocol], None]", **options: Any) -> None:
        """`left`: called when the connection has ended."""
        super().__init__(*args, **options)
        self.logger = _quiet
        self._left = left
        self.since = self.loop.time()
        """The time of the event loop since which the connection has waited for a request, if it does."""
        self._unread = (
            0.0,
            0,
        )  # the time since which the client has not read, and the bytes that waited for it then; 0 for none

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left(self)

    @property
    def waiting(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def known(self) -> bool:
        """True if the last request of this connection had a session."""
        return self.scope is not None and self.scope.get("session") is not None

    @property
    def peer(self) -> str:
        """The address of the client, without its port."""
        return "" if self.client is None else self.client[0]

    def abort(self) -> None:
        """Ends the connection at once, whatever waits to be written: `close` would wait for a client that does not read."""
        if self.transport is not None:
            self.transport.abort()

    def check(self, now: float) -> None:
        """Ends the connection if it has waited too long, for its client's request or for its client to read."""
        if self.transport is None:
            return
        unread = self.transport.get_write_buffer_size()
        since, before = self._unread
        if not unread or not before or unread <= before - _LEAST_READ:
            self._unread = (now, unread)
        elif now - since > _WRITE_SECONDS:
            self.abort()
        if self.waiting and now - self.since > _HEAD_SECONDS and not self.transport.is_closing():
            self.transport.close()


def _same(protocol: _LimitedProtocol) -> _LimitedProtocol:
    return protocol


class _Door:
    """Accepts the connections of the server. asyncio's own server accepts all that come, and tells of each that it cannot accept: whoever
    connects often enough takes all descriptors of the app, and fills its log.

    There are at most `most` connections; further ones wait in the kernel, where they cost the app nothing. If all places are taken, a
    connection without a session loses its own, or one that waits for its next request. Used by the thread of the server.
    """

    def __init__(self, listening: socket.socket, make: Callable[..., _LimitedProtocol]) -> None:
        self._socket = listening
        self._make = make
        self._most = most_connections(_MOST_CONNECTIONS)
        self._loop = asyncio.get_running_loop()
        self._open: set[_LimitedProtocol] = set()
        self._beginning: set[asyncio.Task[Any]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._accepting = self._ended = False
        self._told = -float("inf")

    async def serve(self) -> None:
        """Accepts connections until it is cancelled."""
        self._socket.setblocking(False)
        self._accept_again()
        try:
            while True:
                await asyncio.sleep(_SWEEP_SECONDS)
                now = self._loop.time()
                for each in list(self._open):
                    each.check(now)
        finally:
            self._ended = True
            self._rest(None)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if len(self._open) >= self._most and not self._make_room():
                self._rest(None)  # until a connection ends
                return
            try:
                made, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._tell(str(error))
                self._rest(_NO_PLACE_SECONDS)
                return
            if is_reserved(made.fileno()):
                made.close()
                self._make_room()
                self._tell("the app uses so many descriptors that the rest is kept for it")
                self._rest(_NO_PLACE_SECONDS)
                return
            made.setblocking(False)
            protocol = self._make(left=self._leave)
            self._open.add(protocol)
            begin = self._loop.create_task(self._loop.connect_accepted_socket(partial(_same, protocol), made))
            self._beginning.add(begin)
            begin.add_done_callback(partial(self._begun, protocol))
        self._rest(_PAUSE_SECONDS)

    def _begun(self, protocol: _LimitedProtocol, begin: "asyncio.Task[Any]") -> None:
        self._beginning.discard(begin)
        if begin.cancelled() or begin.exception() is not None:
            self._leave(protocol)
        elif protocol not in self._open:  # it lost its place before it had begun
            protocol.abort()

    def _make_room(self) -> bool:
        """Ends the connection that is missed least: one without a session before one that waits for its next request, of the peer that
        has most, and the oldest. Returns False if there is none but those whose requests are being answered.
        """
        peers = Counter(each.peer for each in self._open)
        spare = [each for each in self._open if each.waiting or not each.known]
        if not spare:
            return False
        least = min(spare, key=lambda each: (each.known, -peers[each.peer], each.since))
        self._open.discard(least)
        least.abort()
        return True

    def _leave(self, protocol: _LimitedProtocol) -> None:
        self._open.discard(protocol)
        if self._again is None and len(self._open) < self._most:
            self._accept_again()

    def _rest(self, seconds: float | None) -> None:
        """Accepts nothing for so many seconds; None: until `_accept_again` is called."""
        if self._accepting:
            self._loop.remove_reader(self._socket)
            self._accepting = False
        if self._again is not None:
            self._again.cancel()
        self._again = None if seconds is None else self._loop.call_later(seconds, self._accept_again)

    def _accept_again(self) -> None:
        self._again = None
        if not self._accepting and not self._ended:
            self._loop.add_reader(self._socket, self._accept)
            self._accepting = True

    def _tell(self, why: str) -> None:
        now = self._loop.time()
        if now - self._told > _TOLD_SECONDS:
            self._told = now
            _log.warning("the console accepts no connections for a while: %s", why)


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
            http=H11Protocol,
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
            loop = asyncio.get_running_loop()
            door = _Door(self._socket, partial(_LimitedProtocol, config, server.server_state, {}))
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
            made.listen(_WAITING_MOST)
        except OSError as error:
            made.close()
            last = error
            continue
        return made
    raise UserError(
        f"the console has no port: {port} and the next {_PORTS - 1} are taken ({last})", hint="give another --web-port"
    )
