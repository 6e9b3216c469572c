"""Brings an app's workers and its coordinator together: starts the workers if needed, and accepts their connections."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from sabot.base.addresses import is_loopback
from sabot.base.quantities import counted_words
from sabot.base.threads import run_in_thread
from sabot.engine.workers.joining import Ticket, parse_address
from sabot.engine.workers.launching import Launcher
from sabot.engine.workers.listener import JoinListener
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import ControlMessage
from sabot.engine.workers.secrets import WorkerSecrets, new_token
from sabot.errors import UserError

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 300.0  # the time in which a started process has to connect; it loads Sabot first


class JoinRound(Protocol):
    """The workers of one attempt (from their start to their end) until all have joined. All methods run on one event
    loop.
    """

    @property
    def within_s(self) -> float | None:
        """The seconds within which a worker has to join, or None if people start the workers."""

    async def open(self) -> None:
        """Begins to accept workers, and starts those that this process has to start. Raises SabotError; the caller
        still has to call `close`.
        """

    def check(self) -> None:
        """Raises UserError if the workers cannot reach each other. Called when all have sent `Hello`."""

    async def make_room(self, more: int) -> None:
        """Raises UserError if the next attempt cannot have `more` additional workers. The workers of this attempt run
        on.
        """

    async def close(self, patience_s: float) -> None:
        """Stops accepting workers, and ends all workers. They have `patience_s` seconds to end by themselves.
        Idempotent.
        """


BeginRound: TypeAlias = Callable[[Sequence[Member], Callable[[Member], ControlMessage]], JoinRound]
"""A function that begins an attempt with these workers, over TCP (`TcpRendezvous.begin`) or in a simulation. Its second argument returns
the message for each worker that joins.
"""


@dataclass(frozen=True)
class TcpRendezvous:
    """A rendezvous over TCP, by the user's settings.

    `launcher`: makes the launcher of an attempt's workers, or None if others start them with `sabot join`. `host`,
    `port`: where the coordinator listens; None and 0 leave that to the launcher, at a free port. `secrets`: the token
    and the certificates, or None.
    """

    launcher: Callable[[], Launcher] | None
    host: str | None
    port: int
    secrets: WorkerSecrets | None

    @classmethod
    def of(cls, launcher: Callable[[], Launcher] | None, listen: str | None, secrets: str | None) -> "TcpRendezvous":
        """Returns the rendezvous for a user's settings. Blocks. Logs a warning if it listens to other machines
        without TLS.

        `launcher`: makes the launcher of an attempt's workers, or None if others start them with `sabot join`.
        `listen`: "host:port" of the coordinator, or None. `secrets`: the folder with the token and the certificates,
        or None. Raises UserError if the address or the folder cannot be used, and if there is neither a launcher nor
        a token.
        """
        known = None if secrets is None else WorkerSecrets.read(secrets)
        host, port = (None, 0) if listen is None else parse_address(listen, "--listen")
        if launcher is None and (known is None or known.token is None):
            raise UserError(
                "workers that join must show a token, but the coordinator has none",
                hint="give --secrets DIR, with the same file `token` on each machine: openssl rand -hex 32 > DIR/token",
            )
        if host is not None and not is_loopback(host) and (known is None or known.tls is None):
            _log.warning("the token and all rows cross the network unencrypted: certificates in --secrets turn TLS on")
        return cls(launcher, host, port, known)

    def begin(self, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]) -> JoinRound:
        """Begins an attempt with these workers."""
        return _TcpJoinRound(self, members, welcome)


class _TcpJoinRound:
    """A JoinRound over TCP."""

    def __init__(
        self, rendezvous: TcpRendezvous, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]
    ) -> None:
        self._rendezvous = rendezvous
        self._members = members
        self._launcher = None if rendezvous.launcher is None else rendezvous.launcher()
        known = None if rendezvous.secrets is None else rendezvous.secrets.token
        # Workers that are started here get a token of this attempt alone, so that none of an earlier attempt can join.
        self._token = known if self._launcher is None and known is not None else new_token()
        self._listener = JoinListener(members, self._token, welcome, numbered=self._launcher is not None)

    @property
    def within_s(self) -> float | None:
        """The seconds within which a worker has to join, or None if people start the workers."""
        return None if self._launcher is None else _JOIN_SECONDS

    async def open(self) -> None:
        """Listens, and starts the workers unless others start them."""
        rendezvous, secrets = self._rendezvous, self._rendezvous.secrets
        ours = "" if self._launcher is None else await self._launcher.open(len(self._members))
        context = None if secrets is None else await run_in_thread(secrets.context, server=True)
        await self._listener.open(rendezvous.host or ours, rendezvous.port, context)
        if self._launcher is None:
            _log.info("waiting for %s at %s", counted_words(len(self._members), "worker"), self._listener.address)
            return
        folder = None if secrets is None else secrets.folder
        for member in self._members:
            ticket = Ticket(self._listener.address, self._token, member.number, folder)
            member.run(await self._launcher.launch(ticket))

    def check(self) -> None:
        """Raises UserError if a worker listens for rows at an address that others cannot reach. Called when all have
        sent `Hello`.
        """
        near = [each for each in self._members if is_loopback(_host_of(each))]
        if near and len(near) < len(self._members):
            raise UserError(
                f"{near[0].text} has joined over loopback, so workers on other machines cannot reach it",
                hint="let all workers join at an address of the coordinator that other machines can reach",
            )

    async def make_room(self, more: int) -> None:
        """Asks the launcher, if there is one, for room in the next attempt."""
        if self._launcher is not None:
            await self._launcher.make_room(more)
        elif more > (waiting := self._listener.standing_by):
            raise UserError(
                f"the app needs {more} more workers, but only {waiting} stand by at {self._listener.address}",
                hint="run `sabot join` once for each missing worker, on any machine; then try again",
            )

    async def close(self, patience_s: float) -> None:
        """Stops accepting workers, and ends all workers."""
        await self._listener.close()
        await asyncio.gather(*(member.end(patience_s) for member in self._members))
        if self._launcher is not None:
            await self._launcher.close()


def _host_of(member: Member) -> str:
    """Returns the host at which other workers reach a worker that has joined."""
    return parse_address(member.hello.result().address, "the address of a worker")[0]
