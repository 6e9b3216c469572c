"""The acceptance of connections by the servers of an app, whose clients may be anybody who can reach the port."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from sabot.base.probes import is_reserved, most_connections

_log = logging.getLogger(__name__)

WAITING_MOST = 1_024
"""The number of connections that the kernel keeps until they are accepted."""

SESSION = "session"
"""The key that an application sets in the ASGI scope of a request of one of its clients: a door keeps its connection longest."""

_AT_ONCE = 32  # connections that are accepted in one go, before other events of the loop
_PAUSE_SECONDS = 0.02  # after so many at once: a flood of connections must not take the interpreter from the app
_SWEEP_SECONDS = 0.5
_NO_PLACE_SECONDS = 1.0  # until the next try, if the process has no descriptor to spare
_TOLD_SECONDS = 60.0  # between two messages about places


class Visitor(Protocol):
    """The protocol of a connection, a `asyncio.BaseProtocol`, as the door sees it."""

    since: float
    """The time of the event loop since which the connection has waited, if it does."""

    @property
    def waiting(self) -> bool:
        """True if the server does nothing for this connection."""

    @property
    def known(self) -> bool:
        """True if the client has shown that it is one of those for whom the server is."""

    @property
    def peer(self) -> str:
        """The address of the client, without its port."""

    def abort(self) -> None:
        """Ends the connection at once: another one needs its place."""

    def check(self, now: float) -> None:
        """Ends the connection if it has waited too long at this time of the event loop."""


def _same(protocol: Any) -> Any:
    return protocol


def _is_spare(visitor: Visitor) -> bool:
    return visitor.waiting or not visitor.known


class Door:
    """The part of a server that accepts its connections. asyncio's own server accepts all that come, and tells of each that it cannot
    accept: whoever connects often enough takes all descriptors of the app, and fills its log.

    There are at most `most` connections; further ones wait in the kernel, where they cost the app nothing. If all places are taken, a
    connection of an unknown client loses its own, or one that waits for its next request. Used by the thread of the event loop.
    """

    def __init__(
        self,
        name: str,
        listening: socket.socket,
        make: Callable[[Callable[["Visitor"], None]], "Visitor"],
        most: int,
        **tls: Any,
    ) -> None:
        """`name`: the name of the server for the log. `make`: makes the protocol of a connection; it gets a function to call when the
        connection has ended. `most`: the wanted number of connections, which is lower if the process may have few descriptors. `tls`:
        further arguments of `connect_accepted_socket`.
        """
        self._name = name
        self._socket = listening
        self._make = make
        self._tls = tls
        self._most = most_connections(most)
        self._loop = asyncio.get_running_loop()
        self._open: set[Visitor] = set()
        self._beginning: dict[Visitor, asyncio.Task[Any]] = {}
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
            full = len(self._open) >= self._most
            if full and not any(map(_is_spare, self._open)):
                self._rest(None)  # until a connection ends
                return
            try:
                made, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._tell(f"accepts no connections for a while: {error}")
                self._rest(_NO_PLACE_SECONDS)
                return
            if is_reserved(made.fileno()):
                made.close()
                self._make_room()
                self._tell(
                    "accepts no connections for a while: the app uses so many descriptors that the rest is kept for it"
                )
                self._rest(_NO_PLACE_SECONDS)
                return
            if full:
                self._make_room()
                self._tell(f"has all its {self._most} connections, and ends the slowest for each that comes")
            made.setblocking(False)
            protocol = self._make(self._leave)
            self._open.add(protocol)
            begin = self._loop.create_task(
                self._loop.connect_accepted_socket(partial(_same, protocol), made, **self._tls)
            )
            self._beginning[protocol] = begin
            begin.add_done_callback(partial(self._begun, protocol))
        self._rest(_PAUSE_SECONDS)

    def _begun(self, protocol: Visitor, begin: "asyncio.Task[Any]") -> None:
        del self._beginning[protocol]
        if begin.cancelled() or begin.exception() is not None:
            self._leave(protocol)

    def _make_room(self) -> None:
        """Ends the connection that is missed least: one without a session before one that waits for its next request, of the peer that
        has most, and the oldest. Ends none of those with a session whose requests are being answered.
        """
        peers = Counter(each.peer for each in self._open)
        spare = list(filter(_is_spare, self._open))
        if not spare:
            return
        least = min(spare, key=lambda each: (each.known, -peers[each.peer], each.since))
        self._open.discard(least)
        least.abort()
        if (begin := self._beginning.get(least)) is not None:  # it has no transport yet; a TLS handshake may never end
            begin.cancel()

    def _leave(self, protocol: Visitor) -> None:
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

    def _tell(self, what: str) -> None:
        now = self._loop.time()
        if now - self._told > _TOLD_SECONDS:
            self._told = now
            _log.warning("%s %s", self._name, what)
