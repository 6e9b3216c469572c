"""The control channel between a coordinator and one worker: messages over a TCP connection, with TLS if the app uses
it.

A frame is the length of its message in four bytes, and the message. If one process ends, its connection ends, and the
other process notices. If a machine vanishes, no connection ends, so the kernel probes the peer (keepalive), also
while Python is busy. A process that hangs is found by missing heartbeats.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from functools import reduce
from operator import or_
from typing import Any, Protocol

import msgspec

from sabot.engine.workers import messages
from sabot.engine.workers.messages import ControlMessage
from sabot.errors import UNREADABLE, InternalError

MESSAGE_BYTES = 64 << 20
FIRST_BYTES = 1 << 16  # the largest message of a peer that has not shown the token yet
SILENT_SECONDS = 30.0  # a peer that is silent for longer counts as dead
_CLOSE_SECONDS = 5.0  # for waiting messages to be sent
_SLACK_BYTES = 1 << 20  # of waiting messages, above which figures are left out
_LENGTH = struct.Struct("!I")
_KINDS: Any = tuple(
    kind
    for name in messages.__all__
    if isinstance(kind := getattr(messages, name), type) and kind is not ControlMessage
)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(reduce(or_, _KINDS))


class ControlChannel(Protocol):
    """One end of the channel between a coordinator and one worker: a `ControlConnection`, or the channel of a
    simulation.
    """

    @property
    def congested(self) -> bool:
        """True if the peer does not read sent messages."""

    def send(self, message: ControlMessage) -> None:
        """Sends a message after the earlier ones. Does not raise if the peer is gone; `received` then ends."""

    def received(self) -> AsyncIterator[ControlMessage]:
        """Yields the received messages, in order, until the peer is gone."""

    async def close(self) -> None:
        """Sends waiting messages, and closes this end."""


def frame_of(message: ControlMessage) -> bytes:
    """Returns the bytes of a message. Raises InternalError if it is too large."""
    frame = _encoder.encode(message)
    if len(frame) > MESSAGE_BYTES:
        raise InternalError(f"a message of {len(frame)} bytes ({type(message).__name__}), more than {MESSAGE_BYTES}")
    return frame


def message_of(frame: bytes) -> ControlMessage:
    """Returns the message of these bytes. Raises InternalError if they are no message."""
    try:
        message: ControlMessage = _decoder.decode(frame)
    except UNREADABLE as error:
        raise InternalError(f"a message between the processes of the app cannot be read: {error}") from error
    return message


class ControlConnection:
    """A ControlChannel over TCP. All methods run on one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

        _ask_after_peer(writer.get_extra_info("socket"))
        self.local_host = _host_of(writer.get_extra_info("sockname"))
        """The address of this machine by which the peer is reached."""
        self.peer = _host_of(writer.get_extra_info("peername"))
        """The address of the peer's."""
        self.certificate: dict[str, Any] | None = writer.get_extra_info("peercert")
        """The peer's certificate, as `SSLObject.getpeercert` returns it; None without TLS."""

    def send(self, message: ControlMessage) -> None:
        """Sends a message after the earlier ones. Does not raise if the peer is gone; `received` then ends."""
        frame = frame_of(message)
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(frame)) + frame)

    @property
    def ended(self) -> bool:
        """True if the peer is gone, and all its messages were read."""
        return self._reader.at_eof() or self._writer.is_closing()

    @property
    def congested(self) -> bool:
        """True if the peer does not read sent messages."""
        return self._writer.transport.get_write_buffer_size() > _SLACK_BYTES

    async def next(self, most_bytes: int | None = None) -> ControlMessage | None:
        """Returns the next message, or None if the peer has closed its end or is gone. Raises InternalError for bytes
        that are no message, or a message of more than `most_bytes`.
        """
        most = MESSAGE_BYTES if most_bytes is None else most_bytes
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > most:
                raise InternalError(f"a message of {length} bytes was announced, more than {most}")
            frame = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None
        return message_of(frame)

    async def received(self) -> AsyncIterator[ControlMessage]:
        """Yields the received messages until there are no more."""
        while (message := await self.next()) is not None:
            yield message

    async def close(self) -> None:
        """Sends waiting messages, and closes the socket."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()  # the peer was gone before, or does not read


def _host_of(address: Any) -> str:
    """Returns the host of an address, or "" for a socket without addresses."""
    return str(address[0]) if isinstance(address, tuple) else ""


def _ask_after_peer(end: socket.socket | None) -> None:
    """Makes the kernel probe the peer's machine, so that the connection ends if there is no answer."""
    if end is None or end.family not in (socket.AF_INET, socket.AF_INET6):
        return
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    third = int(SILENT_SECONDS / 3)
    # macOS names the first of them otherwise, and lacks the last.
    for option, value in (
        ("TCP_KEEPIDLE", third),
        ("TCP_KEEPALIVE", third),
        ("TCP_KEEPINTVL", third),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", int(SILENT_SECONDS * 1000)),
    ):
        if hasattr(socket, option):
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
