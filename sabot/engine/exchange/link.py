"""The connections between workers: addresses, the app's token, certificates, and how to end connections."""

import hmac
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyarrow import flight

from sabot.errors import UserError

CLOSED = b"closed"  # sent by a receiver whose reader has closed the channel
_HEADER = "authorization"


@dataclass(frozen=True)
class Tls:
    """Certificates for mutual TLS: each worker shows its certificate, and accepts only those that the authority has
    signed. All are PEM texts.

    `server_name`: the name in the certificates, or "" if it is the address by which a worker is reached.
    """

    certificate: bytes
    key: bytes
    authority: bytes
    server_name: str = ""


def address_of(host: str, port: int) -> str:
    """Returns "host:port", or "[host]:port" for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def location(address: str, tls: Tls | None) -> flight.Location:
    """Returns an address of `address_of` in Flight's form. Raises UserError for any other text."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(
            f"{address!r} is not the address of a worker's exchange",
            hint="use the text host:port that `Exchange.address` returns",
        )
    make = flight.Location.for_grpc_tcp if tls is None else flight.Location.for_grpc_tls
    return make(host, int(port))


def credentials(token: str) -> list[tuple[bytes, bytes]]:
    """Returns the headers with the app's token, which each call sends."""
    return [(_HEADER.encode(), f"Bearer {token}".encode())]


class TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow has no types
    """A Flight middleware that refuses every call without the app's token."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()
        self.refused_total = 0

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Checks the token before a call. Raises FlightUnauthenticatedError. The comparison takes the same time for
        every wrong token.
        """
        shown = [value for name, values in headers.items() if name.lower() == _HEADER for value in values]
        given = shown[0] if len(shown) == 1 else ""
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._wanted):
            self.refused_total += 1
            raise flight.FlightUnauthenticatedError("this call does not have the token of this app")


def reason(error: BaseException) -> str:
    """Returns the text of a library's error without the debug context that the gRPC client appends."""
    text = str(error) or type(error).__name__
    for tail in (". Detail:", " gRPC client debug context", ". gRPC client"):
        text = text.partition(tail)[0]
    return text[:500]


def cut_off(port: int, peers: set[str]) -> int:
    """Ends the connections from these clients to the server at `port`, and returns their number.

    `peers`: clients as `ServerCallContext.peer` names them, "ipv4:127.0.0.1:40000". A call that reads from such a
    connection gets an error. A Flight server in Python has no other way: a call whose client has vanished waits for
    ever, and the server's `shutdown` waits for the call.
    """
    wanted = {unquote(each).partition(":")[2] for each in peers}
    ended = 0
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # closed meanwhile, or not connected
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    ended += _end(connection, port, wanted)
    return ended


def _end(connection: socket.socket, port: int, peers: set[str]) -> bool:
    """Ends the connection if it is one from these clients to a server at this port; returns whether it was."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != port:
        return False
    host, far = connection.getpeername()[:2]
    host = host.removeprefix("::ffff:")
    if address_of(host, far) not in peers:
        return False
    connection.shutdown(socket.SHUT_RDWR)
    return True
