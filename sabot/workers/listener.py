"""The listener to which the workers of one attempt connect. It accepts workers with the right token and the same
software as the coordinator, and one worker for each number.
"""

import asyncio
import hmac
import logging
import ssl
from collections.abc import Callable, Sequence

from sabot.base.os_errors import hint_of
from sabot.base.supervision import TaskSet
from sabot.errors import InternalError, UserError
from sabot.exchange import address_of
from sabot.workers.connection import FIRST_BYTES, ControlConnection
from sabot.workers.joining import family_of, versions
from sabot.workers.member import Member
from sabot.workers.messages import ControlMessage, Join, JoinRefused
from sabot.workers.secrets import check_certified

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
        self._server: asyncio.Server | None = None
        self._strangers = 0
        self._standing_by: list[ControlConnection] = []
        self._greetings = TaskSet("a worker that joins")

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listens; port 0 takes a free one. Raises UserError if the address cannot be bound."""
        try:
            self._server = await asyncio.start_server(
                self._come, host, port, family=family_of(host), ssl=context, ssl_handshake_timeout=_handshake(context)
            )
        except OSError as error:
            raise UserError(
                f"workers cannot join at {host}:{port}: {error.strerror or error}",
                hint=hint_of(error, "an address of this machine, and a port that is free"),
            ) from error
        self.address = address_of(host, self._server.sockets[0].getsockname()[1])

    @property
    def standing_by(self) -> int:
        """The number of connected workers without a place."""
        self._standing_by = [each for each in self._standing_by if not each.ended]
        return len(self._standing_by)

    async def close(self) -> None:
        """Accepts nobody any more; workers that were accepted stay. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._greetings.cancel()
        waiting, self._standing_by = self._standing_by, []
        await asyncio.gather(*(each.close() for each in waiting))

    def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or self._strangers >= _STRANGERS_MAX:
            writer.transport.abort()
            return
        self._strangers += 1
        self._greetings.begin(self._greet(ControlConnection(reader, writer)))

    async def _greet(self, connection: ControlConnection) -> None:
        """Accepts a worker, or sends the reason for the refusal and closes the connection."""
        taken = False
        try:
            if connection.certificate is not None:
                check_certified(connection.certificate, connection.peer)
            join = await self._first_words(connection)
            if join is not None:
                taken = self._let_in(connection, join)
        except UserError as why:
            _log.warning("%s", why)
            connection.send(JoinRefused(why.message, why.hint))
        finally:
            self._strangers -= 1
            if not taken:
                await connection.close()

    async def _first_words(self, connection: ControlConnection) -> Join | None:
        """Returns the peer's first message, or None if it is no valid Join."""
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                message = await connection.next(FIRST_BYTES)
        except (InternalError, TimeoutError) as error:
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


def _handshake(context: ssl.SSLContext | None) -> float | None:
    return None if context is None else _FIRST_SECONDS


def _words(of: dict[str, str]) -> str:
    return ", ".join(f"{name[:50]} {value[:50]}" for name, value in list(of.items())[:10])
