"""The control channel between a coordinator and one worker: messages over a socket that only these two processes hold.

A frame is the length of its message, four bytes, and the message. The socket is made by the coordinator and inherited by the worker it
starts, so nobody else can write into it, and its end tells each that the other is gone.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from functools import reduce
from operator import or_
from typing import Any

import msgspec

from sabot.errors import UNREADABLE, InternalError
from sabot.workers import messages
from sabot.workers.messages import ControlMessage

__all__ = ["ControlConnection"]

MESSAGE_BYTES = 64 << 20
_SLACK_BYTES = 1 << 20  # of messages that wait to be sent: then figures are left out
_LENGTH = struct.Struct("!I")
_KINDS: Any = tuple(
    kind
    for name in messages.__all__
    if isinstance(kind := getattr(messages, name), type) and kind is not ControlMessage
)


class ControlConnection:
    """All methods on one event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(reduce(or_, _KINDS))

    @classmethod
    async def over(cls, end: socket.socket) -> "ControlConnection":
        """Over a connected socket, which it closes."""
        end.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer)

    def send(self, message: ControlMessage) -> None:
        """Sends it behind those before. A peer that is gone is no error here: whoever receives finds out."""
        frame = self._encoder.encode(message)
        if len(frame) > MESSAGE_BYTES:
            raise InternalError(
                f"a message of {len(frame)} bytes ({type(message).__name__}), more than {MESSAGE_BYTES}"
            )
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(len(frame)) + frame)

    @property
    def congested(self) -> bool:
        """The peer does not take what was sent."""
        return self._writer.transport.get_write_buffer_size() > _SLACK_BYTES

    async def received(self) -> AsyncIterator[ControlMessage]:
        """The messages that come, until the peer has closed its end or is gone. Raises InternalError for what is no message."""
        while True:
            try:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MESSAGE_BYTES:
                    raise InternalError(f"a message of {length} bytes was announced, more than {MESSAGE_BYTES}")
                frame = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, OSError):
                return
            try:
                yield self._decoder.decode(frame)
            except UNREADABLE as error:
                raise InternalError(f"a message between the processes of the job cannot be read: {error}") from error

    async def close(self) -> None:
        """Sends what waits, and closes the socket."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # the peer was gone before
