"""The control channel between a coordinator and one worker: messages over a TCP connection, with TLS where the app has it.

A frame is the length of its message, four bytes, and the message. The end of the connection tells each that the other is gone. A machine
that vanishes ends nothing, so the kernel asks after it (keepalive), also while Python is busy; a process that hangs is found by heartbeats.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from functools import reduce
from operator import or_
from typing import Any, Protocol

import msgspec

from sabot.errors import UNREADABLE, InternalError
from sabot.workers import messages
from sabot.workers.messages import ControlMessage

MESSAGE_BYTES = 64 << 20
FIRST_BYTES = 1 << 16  # of a message of somebody who has not shown the token yet
SILENT_SECONDS = 30.0  # a peer that has said nothing for so long is taken for dead
_CLOSE_SECONDS = 5.0  # for what waits to be sent
_SLACK_BYTES = 1 << 20  # of messages that wait to be sent: then figures are left out
_LENGTH = struct.Struct("!I")
_KINDS: Any = tuple(
    kind
    for name in messages.__all__
    if isinstance(kind := getattr(messages, name), type) and kind is not ControlMessage
)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(reduce(or_, _KINDS))


class ControlChannel(Protocol):
    """What a coordinator and one worker have between them, as one of the two sees it: a `ControlConnection`, or what a simulation has."""

    @property
    def congested(self) -> bool:
        """The peer does not take what was sent."""

    def send(self, message: ControlMessage) -> None:
        """Sends it behind those before. A peer that is gone is no error here: whoever receives finds out."""

    def received(self) -> AsyncIterator[ControlMessage]:
        """The messages that come, in order, until the peer is gone."""

    async def close(self) -> None:
        """Sends what waits, and closes this end."""


def frame_of(message: ControlMessage) -> bytes:
    """A message as bytes. Raises InternalError for one that is too large."""
    frame = _encoder.encode(message)
    if len(frame) > MESSAGE_BYTES:
        raise InternalError(f"a message of {len(frame)} bytes ({type(message).__name__}), more than {MESSAGE_BYTES}")
    return frame


def message_of(frame: bytes) -> ControlMessage:
    """The message that came as these bytes. Raises InternalError for what is no message."""
    try:
        message: ControlMessage = _decoder.decode(frame)
    except UNREADABLE as error:
        raise InternalError(f"a message between the processes of the app cannot be read: {error}") from error
    return message


class ControlConnection:
    """All methods on one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

        _ask_after_peer(writer.get_extra_info("socket"))
        self.local_host = _host_of(writer.get_extra_info("sockname"))
        """The address of this machine by which the peer is reached."""
        self.peer = _host_of(writer.get_extra_info("peername"))
        """The address of the peer's."""

    def send(self, message: ControlMessage) -> None:
        """Sends it behind those before. A peer that is gone is no error here: whoever receives finds out."""
        frame = frame_of(message)
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(frame)) + frame)

    @property
    def ended(self) -> bool:
        """The peer is gone, and nothing of it waits to be read."""
        return self._reader.at_eof() or self._writer.is_closing()

    @property
    def congested(self) -> bool:
        """The peer does not take what was sent."""
        return self._writer.transport.get_write_buffer_size() > _SLACK_BYTES

    async def next(self, most_bytes: int | None = None) -> ControlMessage | None:
        """The next message, of so many bytes at most; None when the peer has closed its end or is gone. Raises InternalError for what is no
        message.
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
        """The messages that come, as `next` gives them, until there are no more."""
        while (message := await self.next()) is not None:
            yield message

    async def close(self) -> None:
        """Sends what waits, and closes the socket."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()  # the peer was gone before, or takes nothing


def _host_of(address: Any) -> str:
    """ "" for a socket without addresses."""
    return str(address[0]) if isinstance(address, tuple) else ""


def _ask_after_peer(end: socket.socket | None) -> None:
    """Has the kernel ask after the peer's machine, so that the connection ends when there is no answer."""
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
