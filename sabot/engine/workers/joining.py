"""The connection of a worker to its coordinator: over TCP, with the ticket that the worker reads from its standard
input.

    the coordinator                                  the process of a worker
    listens; starts it, with a Ticket ─────────────▶ reads the Ticket from its standard input
                                          ◀───────── connects, Join: token, number, versions
    Welcome, or JoinRefused with the reason ───────────▶

So no token is an argument or in the environment, where other processes could read it. TLS, if it is used, is mutual.
"""

import asyncio
import os
import platform
import socket
import ssl
import sys

import msgspec
import pyarrow as pa

from sabot.base.redaction import keep_secret
from sabot.base.version import sabot_version
from sabot.engine.exchange import Tls
from sabot.engine.workers.connection import ControlConnection
from sabot.engine.workers.messages import Join, JoinRefused, Welcome
from sabot.engine.workers.secrets import CERTIFIED_NAME, WorkerSecrets
from sabot.errors import UNREADABLE, TransientError, UserError

_TICKET_BYTES = 1 << 16
_CONNECT_SECONDS = 10.0


class Ticket(msgspec.Struct, frozen=True):
    """The ticket of a worker's process.

    `address`: that of the coordinator. `token`: the secret that the worker has to show. `number`: the worker's
    number, from 0, or None if the coordinator chooses it. `secrets`: the folder of certificates, or None without TLS.
    `parent`: the pid of the process that has started the worker; the worker ends when that process ends.
    """

    address: str
    token: str
    number: int | None = None
    secrets: str | None = None
    parent: int = 0

    @classmethod
    def read(cls, encoded: bytes) -> "Ticket":
        """Returns the ticket that these bytes encode. Raises one of UNREADABLE for other bytes."""
        return msgspec.msgpack.decode(encoded, type=cls)

    def encoded(self, parent: int) -> bytes:
        """Returns the bytes for the standard input of a process that `parent` starts."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, parent=parent))


class JoinedApp(msgspec.Struct, frozen=True):
    """The connection of a worker that the coordinator has accepted, and the coordinator's answer. `host`: the address
    of this machine from which it has connected.
    """

    connection: ControlConnection
    welcome: Welcome
    host: str
    tls: Tls | None


def versions() -> dict[str, str]:
    """Returns the versions that must be equal in all processes of an app, because they share plans, rows and state."""
    return {"sabot": sabot_version(), "Python": platform.python_version(), "pyarrow": pa.__version__}


def name_of(worker: int) -> str:
    """Returns the name of a worker for people. Its number begins at 0."""
    return f"worker {worker + 1}"


def parse_address(text: str, what: str) -> tuple[str, int]:
    """Splits "host:port", or "[host]:port" for an IPv6 address. Raises UserError. `what`: the option, for the
    message.
    """
    given, colon, port = text.rpartition(":")
    host = given[1:-1] if given[:1] == "[" and given[-1:] == "]" else given
    known = host and (":" in host) == (host != given)
    if not colon or not known or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UserError(
            f"{what}: {text!r} is not an address",
            hint="write host:port, such as 10.0.0.7:7077 or [fd00::7]:7077; a name stands for its IPv4 address",
        )
    return host, int(port)


def family_of(host: str) -> socket.AddressFamily:
    """Returns the address family of a host: IPv6 for such an address, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def read_ticket() -> Ticket:
    """Reads the ticket of this process from standard input. Called once. Raises UserError for a process that was
    started without one.
    """
    try:
        given = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read(_TICKET_BYTES)
        ticket = Ticket.read(given)
    except UNREADABLE:
        raise UserError(
            "only the coordinator of an app may start this command",
            hint="`sabot run module:app --workers N` starts workers",
        ) from None
    nothing = os.open(os.devnull, os.O_RDONLY)  # for a program that reads its standard input
    os.dup2(nothing, 0)
    os.close(nothing)
    keep_secret(ticket.token)
    return ticket


async def join(ticket: Ticket) -> JoinedApp:
    """Connects, and waits until the coordinator accepts this worker.

    Raises TransientError if nobody answers or the coordinator is gone; UserError if the coordinator refuses this
    worker, or if the two do not trust each other's certificates.
    """
    secrets = None if ticket.secrets is None else WorkerSecrets.read(ticket.secrets)
    context = None if secrets is None else secrets.context(server=False)
    host, port = parse_address(ticket.address, "the coordinator")
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                family=family_of(host),
                ssl=context,
                server_hostname=None if context is None else CERTIFIED_NAME,
            )
    except ssl.SSLError as error:
        raise UserError(
            f"the coordinator at {ticket.address} and this worker do not trust each other: {error.reason or error}",
            hint=f"use certificates of one authority for the name {CERTIFIED_NAME} at both ends, or TLS at neither",
        ) from error
    except (OSError, TimeoutError) as error:
        raise TransientError(f"no coordinator answers at {ticket.address}: {error or 'no answer in time'}") from error
    connection = ControlConnection(reader, writer)
    connection.send(Join(ticket.token, ticket.number, os.getpid(), socket.gethostname(), versions()))
    message = await connection.next()
    if isinstance(message, Welcome):
        return JoinedApp(connection, message, connection.local_host, None if secrets is None else secrets.tls)
    await connection.close()
    if isinstance(message, JoinRefused):
        raise UserError(
            f"the coordinator at {ticket.address} refuses this worker: {message.message}", hint=message.hint
        )
    raise TransientError(
        f"the coordinator at {ticket.address} has ended the connection",
        hint="use TLS at both ends or at neither; or its app has ended",
    )
