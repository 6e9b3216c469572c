"""The listener to which the workers of one attempt connect. It accepts workers with the right token and the same
software as the coordinator, and one worker for each number.
"""

import asyncio
import hmac
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from sabot.base.doors import WAITING_MOST, Door
from sabot.base.os_errors import hint_of
from sabot.base.supervision import TaskSet
from sabot.base.threads import run_in_thread
from sabot.engine.exchange import address_of
from sabot.engine.workers.connection import FIRST_BYTES, ControlConnection
from sabot.engine.workers.joining import family_of, versions
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import ControlMessage, Join, JoinRefused
from sabot.engine.workers.secrets import check_certified
from sabot.errors import InternalError, UserError

_log = logging.getLogger(__name__)

_FIRST_SECONDS = 10.0  # for a connection to send its Join
_STRANGERS_MAX = 256  # connections that have not sent it yet
_STANDBY_MAX = 64  # workers without a place


class JoinListener:
    """A listener for the workers of one attempt. All methods run on one event loop.

    A worker that the coordinator has started has a number and gets the place with this number. A worker that others
    have started has none, and gets the first free place.
    """

    def __init__(
        self,
        members: Sequence[Member],
        token: str,
        welcome: Callable[[Member], ControlMessage],
        *,
        numbered: bool,
    ) -> None:
        """`welcome`: returns the message for a worker that is accepted. `numbered`: True if this process starts the
        workers, and gives each its number.
        """
        self.address = ""
        self._members = members
        self._token = token.encode()
        self._welcome = welcome
        self._numbered = numbered
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._standing_by: list[ControlConnection] = []
        self._greetings = TaskSet("a worker that joins")

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listens; port 0 takes a free one. Raises UserError if the address cannot be bound."""
        try:
            made = await run_in_thread(socket.create_server, (host, port), family=family_of(host), backlog=WAITING_MOST)
        except OSError as error:
            raise UserError(
                f"workers cannot join at {host}:{port}: {error.strerror or error}",
                hint=hint_of(error, "an address of this machine, and a port that is free"),
            ) from error
        self._socket = made
        self.address = address_of(host, made.getsockname()[1])
        door = Door(
            "the listener of workers",
            made,
            lambda left: _Stranger(self._come, left),
            _STRANGERS_MAX,
            ssl=context,
            ssl_handshake_timeout=_handshake(context),
        )
        self._accepting = asyncio.get_running_loop().create_task(door.serve())

    @property
    def standing_by(self) -> int:
        """The number of connected workers without a place."""
        self._standing_by = [each for each in self._standing_by if not each.ended]
        return len(self._standing_by)

    async def close(self) -> None:
        """Accepts nobody any more; workers that were accepted stay. Idempotent."""
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            accepting.cancel()
            await asyncio.wait([accepting])
        if self._socket is not None:
            self._socket.close()
        await self._greetings.cancel()
        waiting, self._standing_by = self._standing_by, []
        await asyncio.gather(*(each.close() for each in waiting))

    def _come(self, stranger: "_Stranger", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._accepting is None:
            stranger.abort()
            return
        self._greetings.begin(self._greet(stranger, ControlConnection(reader, writer)))

    async def _greet(self, stranger: "_Stranger", connection: ControlConnection) -> None:
        """Accepts a worker, or sends the reason for the refusal and closes the connection."""
        taken = False
        try:
            if connection.certificate is not None:
                check_certified(connection.certificate, connection.peer)
            join = await self._first_words(stranger, connection)
            if join is not None:
                taken = self._let_in(connection, join)
        except UserError as why:
            _log.warning("%s", why)
            connection.send(JoinRefused(why.message, why.hint))
        finally:
            if taken:
                stranger.joins()
            else:
                await connection.close()

    async def _first_words(self, stranger: "_Stranger", connection: ControlConnection) -> Join | None:
        """Returns the peer's first message, or None if it is no valid Join."""
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                message = await connection.next(FIRST_BYTES)
        except (InternalError, TimeoutError) as error:
            if stranger.dropped:
                return None
            _log.warning(
                "a connection from %s is closed, because it is not from a worker: %s",
                connection.peer,
                error or "it has sent no message",
            )
            return None
        return message if isinstance(message, Join) else None

    def _let_in(self, connection: ControlConnection, join: Join) -> bool:
        """Accepts a worker, or lets it stand by. Returns True. Raises UserError if the worker is refused."""
        if not hmac.compare_digest(join.token.encode("utf-8", "replace"), self._token):
            raise UserError(
                f"a worker at {connection.peer} has another token than this app",
                hint="use the same file `token` on each machine; a worker of an earlier start is refused too",
            )
        where = f"{connection.peer} (pid {join.pid} on {join.host[:100]})"
        if self._numbered is (join.worker is None):
            raise UserError(
                f"the worker at {where} was not started for this coordinator",
                hint="sabot join is for a coordinator that waits for workers: sabot run … --workers N --listen HOST:PORT",
            )
        member = self._place(join.worker, where)
        if join.versions != versions():
            error = UserError(
                f"the worker at {where} runs other software than its coordinator: {_words(join.versions)}, not {_words(versions())}",
                hint="install the same versions on all machines",
            )
            if self._numbered and member is not None:
                member.give_up(error)
            raise error
        if member is None:
            self._stand_by(connection, where)
        else:
            member.join(connection, join, self._welcome(member))
        return True

    def _place(self, number: int | None, where: str) -> Member | None:
        """Returns the place for a worker, or None if all places are taken."""
        if number is None:
            return next((each for each in self._members if not each.joined.done()), None)
        if not 0 <= number < len(self._members):
            raise UserError(
                f"the worker at {where} has number {number + 1}, but the app has {len(self._members)} workers"
            )
        if self._members[number].joined.done():
            raise UserError(
                f"the worker at {where} is refused, because {self._members[number].text} has joined already"
            )
        return self._members[number]

    def _stand_by(self, connection: ControlConnection, where: str) -> None:
        """Keeps the connection of a worker without a place until the end of the attempt. In the next attempt the
        worker may get the place of a worker that is gone. Raises UserError if too many workers stand by.
        """
        if self.standing_by >= _STANDBY_MAX:
            raise UserError(f"the worker at {where} is refused, because {_STANDBY_MAX} workers stand by already")
        self._standing_by.append(connection)
        _log.info("the worker at %s stands by, because the app has all its %d workers", where, len(self._members))


class _Stranger(asyncio.StreamReaderProtocol):
    """A connection whose other side has not joined yet. The door counts it until then."""

    known = False

    def __init__(
        self,
        come: "Callable[[_Stranger, asyncio.StreamReader, asyncio.StreamWriter], None]",
        left: "Callable[[_Stranger], None]",
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(asyncio.StreamReader(loop=loop), lambda reader, writer: come(self, reader, writer), loop)
        self._left = left
        self._made: Any = None
        self.since = loop.time()
        self.peer = ""
        self.waiting = True
        self.dropped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = transport
        self.peer = str((transport.get_extra_info("peername") or [""])[0])
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left(self)

    def joins(self) -> None:
        """Gives the place of the connection to another one, because its worker belongs to the app now."""
        self._left(self)

    def abort(self) -> None:
        self.dropped = True
        if self._made is not None:
            self._made.abort()

    def check(self, now: float) -> None:
        """Does nothing: `_greet` ends the connection if it sends no message."""


def _handshake(context: ssl.SSLContext | None) -> float | None:
    return None if context is None else _FIRST_SECONDS


def _words(of: dict[str, str]) -> str:
    return ", ".join(f"{name[:50]} {value[:50]}" for name, value in list(of.items())[:10])
