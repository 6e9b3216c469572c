"""How the workers of an app and its coordinator find each other: who starts them, where they join, and with which secrets."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sabot.errors import UserError
from sabot.threads import run_in_thread
from sabot.workers.joining import Ticket, parse_address
from sabot.workers.launching import Launcher
from sabot.workers.listener import JoinListener
from sabot.workers.member import Member
from sabot.workers.messages import ControlMessage
from sabot.workers.secrets import WorkerSecrets, new_token

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 300.0  # for a process that was started to connect: it loads Sabot first


class JoinRound(Protocol):
    """The workers of one epoch, until all have joined. All methods on one event loop."""

    @property
    def within_s(self) -> float | None:
        """How long a worker may take to join; None: as long as somebody needs to start one."""

    async def open(self) -> None:
        """From now on workers join; those that are ours to start are started. Raises SabotError; `close` follows all the same."""

    def check(self) -> None:
        """Once all have said `Hello`. Raises UserError where they cannot reach each other."""

    async def make_room(self, more: int) -> None:
        """While the workers of this epoch run: makes sure that the next one may have so many more. Raises UserError where it may not."""

    async def close(self, patience_s: float) -> None:
        """Lets nobody in any more, and ends all workers: they have so long to end by themselves. Idempotent."""


class Rendezvous(Protocol):
    """How the workers of an app come to its coordinator: over TCP, or as a simulation has it."""

    def begin(self, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]) -> JoinRound:
        """For an epoch with these workers. welcome: what each is told that joins."""


@dataclass(frozen=True)
class TcpRendezvous:
    """What the user has said of it.

    launcher: makes what starts the workers of an epoch; None: others start them, with `sabot join`. host, port: where the coordinator
    listens; None and 0: as the launcher says, at a free port. secrets: of those who join, and for TLS.
    """

    launcher: Callable[[], Launcher] | None
    host: str | None
    port: int
    secrets: WorkerSecrets | None

    @classmethod
    def of(cls, launcher: Callable[[], Launcher] | None, listen: str | None, secrets: str | None) -> "TcpRendezvous":
        """listen: "host:port". secrets: the folder. Raises UserError for what does not go together."""
        known = None if secrets is None else WorkerSecrets.read(secrets)
        host, port = (None, 0) if listen is None else parse_address(listen, "--listen")
        if launcher is None and (known is None or known.token is None):
            raise UserError(
                "workers that join show a token, and none is given",
                hint="--secrets DIR, with the same file `token` in it on each machine: openssl rand -hex 32 > DIR/token",
            )
        if host is not None and not _is_loopback(host) and (known is None or known.tls is None):
            _log.warning("the token and all rows cross the network in the clear: certificates in --secrets turn TLS on")
        return cls(launcher, host, port, known)

    def begin(self, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]) -> JoinRound:
        """See `Rendezvous`."""
        return _TcpJoinRound(self, members, welcome)


class _TcpJoinRound:
    """See `JoinRound`."""

    def __init__(
        self, rendezvous: TcpRendezvous, members: Sequence[Member], welcome: Callable[[Member], ControlMessage]
    ) -> None:
        self._rendezvous = rendezvous
        self._members = members
        self._launcher = None if rendezvous.launcher is None else rendezvous.launcher()
        known = None if rendezvous.secrets is None else rendezvous.secrets.token
        # Those that are started here show a token of this epoch alone, so that none of an earlier one gets in.
        self._token = known if self._launcher is None and known is not None else new_token()
        self._listener = JoinListener(members, self._token, welcome, numbered=self._launcher is not None)

    @property
    def within_s(self) -> float | None:
        """See `JoinRound`."""
        return None if self._launcher is None else _JOIN_SECONDS

    async def open(self) -> None:
        """Listens, and starts the workers, where that is not somebody else's to do."""
        rendezvous, secrets = self._rendezvous, self._rendezvous.secrets
        ours = "" if self._launcher is None else await self._launcher.open(len(self._members))
        context = None if secrets is None else await run_in_thread(secrets.context, server=True)
        await self._listener.open(rendezvous.host or ours, rendezvous.port, context)
        if self._launcher is None:
            _log.info("%d workers are waited for at %s", len(self._members), self._listener.address)
            return
        folder = None if secrets is None else secrets.folder
        for member in self._members:
            ticket = Ticket(self._listener.address, self._token, member.number, folder)
            member.run(await self._launcher.launch(ticket))

    def check(self) -> None:
        """Once all have said `Hello`. Raises UserError where one listens for rows at an address that others cannot reach."""
        near = [each for each in self._members if _is_loopback(each.hello.result().address)]
        if near and len(near) < len(self._members):
            raise UserError(
                f"{near[0].text} has joined over loopback, where workers on other machines do not reach it",
                hint="let all join at the address by which the other machines reach the coordinator's",
            )

    async def make_room(self, more: int) -> None:
        """See `JoinRound`."""
        if self._launcher is not None:
            await self._launcher.make_room(more)
        elif more > (waiting := self._listener.standing_by):
            raise UserError(
                f"{more} more workers are wanted than the app has, and {waiting} stand by at {self._listener.address}",
                hint="sabot join on some machine, as often as workers are missing; then again",
            )

    async def close(self, patience_s: float) -> None:
        """See `JoinRound`."""
        await self._listener.close()
        await asyncio.gather(*(member.end(patience_s) for member in self._members))
        if self._launcher is not None:
            await self._launcher.close()


def _is_loopback(address: str) -> bool:
    """Of a host, or of an address with its port."""
    return address.startswith(("127.", "[::1]:")) or address == "::1" or address.partition(":")[0] == "localhost"
