"""The streams of a child, at the worker's end of their pipes. They belong to the event loop that spawned the child.

The worker reads the output of a child as soon as it comes, even if no caller wants it yet, and keeps it in a buffer.
When `capacity_bytes` are in the buffer, the worker stops reading, and the child blocks when it writes more. The child
of a lossless stream stays blocked until a caller reads.

In any other stream, the worker reads on after a second, so that the child can go on and end. Until a caller reads
again, it drops the oldest bytes of the buffer. If a caller had read from the stream before, its next call raises an
error for the dropped bytes. A first reader gets no error; `dropped_bytes` has their number.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from sabot.base.present_job import refuse_in_job
from sabot.base.surrogates import has_lone_halves, whole_texts
from sabot.errors import UNREADABLE
from sabot.process.errors import CommunicationError

CAPACITY_BYTES = 1 << 20
_PIECE = 1 << 16
_MOST_WAITING = 64 << 20
_ROOM = 1 << 16
_LINES_AT_ONCE = 1000  # then others of the event loop have their turn
_PATIENCE_SECONDS = 1.0  # for a reader of a full stream
IN_A_STEP = "await ctx.step(f, …) calls f outside of the job, once"


def json_of(line: bytes | str, *, whole: bool = True) -> Any:
    """Returns the JSON value in a line. Returns None for a line that is not JSON, and also for `null`. With `whole`,
    halves of surrogate pairs in its texts become U+FFFD, because neither a journal nor a sink can hold them. A byte
    order mark before it is ignored.
    """
    try:
        value = json.loads(line.removeprefix("\ufeff") if isinstance(line, str) else line)
    except UNREADABLE:
        return None
    return whole_texts(value) if whole and has_lone_halves(line.encode() if isinstance(line, str) else line) else value


class ChildOutput:
    """The stdout or the stderr of a child.

    - `name`: the stream's name in errors. `capacity_bytes`: the most unread bytes that the stream keeps.
    - `lossless`: with True no bytes are ever dropped, and the child has to wait for the reader.
    - `wrote`: a function that is called with the number of bytes of each piece of output; None at first.
    - `total_bytes`: the number of all bytes so far. `dropped_bytes`: the number of those that were dropped.
    - `is_cut_off`: True if the last one of `lines` had no line end, because the stream has ended within it.

    If a stream that is not lossless stays full for more than a second, the oldest bytes are dropped.

    - If somebody has read from the stream before, the next call that reads raises CommunicationError. The call after
      that returns the bytes that were kept.
    - If nobody has read yet, no error is raised: the first call returns the bytes that were kept.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        name: str = "the child's output",
        capacity_bytes: int = CAPACITY_BYTES,
        lossless: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._capacity = capacity_bytes
        self._lossless = lossless
        self._kept = bytearray()
        self._searched = 0  # of `_kept`, up to here there is no end of a line
        self._torn = False  # the beginning of the first line was dropped
        self._more = asyncio.Event()
        self._held = False
        self._name = name
        self._has_been_read = False
        self._is_expected = True  # that somebody reads
        self._patience: asyncio.TimerHandle | None = None
        self._missed = 0  # bytes that were dropped since the reader's last call
        self.dropped_bytes = 0
        self.total_bytes = 0
        self.is_cut_off = False
        self.wrote: Callable[[int], None] | None = None
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._receive)

    @property
    def at_end(self) -> bool:
        """True if all output was read, and no more can come: all writers have closed the stream, or this reader has."""
        return self._descriptor < 0 and not self._kept

    @property
    def has_unread(self) -> bool:
        """True if there is output that nobody has read."""
        if not self._kept and self._descriptor >= 0:
            self._receive()
        return bool(self._kept)

    async def read(self, most_bytes: int = _PIECE) -> bytes:
        """Waits for output, and returns at most `most_bytes` of it. Returns b"" at the end of the stream."""
        self._check_gap()
        while not self._kept and self._descriptor >= 0:
            await self._wait()
        return self._take(most_bytes)

    def read_nowait(self, most_bytes: int = _PIECE) -> bytes | None:
        """Returns at most `most_bytes` of output without waiting. Returns None if there is none now, and b"" at the end
        of the stream.
        """
        self._check_gap()
        if not self._kept and self._descriptor >= 0:
            self._receive()
        return None if not self._kept and self._descriptor >= 0 else self._take(most_bytes)

    async def lines(self) -> AsyncGenerator[bytes]:
        """Yields the lines without their line ends, which are LF or CR LF. If the beginning of a line was dropped, its
        rest is dropped, too. Raises CommunicationError for a line that is longer than the capacity of the stream.
        """
        taken = 0
        while True:
            if taken == _LINES_AT_ONCE:
                taken = 0
                await asyncio.sleep(0)
            self._check_gap()
            end = self._kept.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._kept)
                if self._descriptor >= 0:
                    if self._held:
                        self._refuse_line()
                        continue
                    await self._wait()
                    continue
                end = len(self._kept)
                if not end:
                    return
            taken += 1
            is_torn = self._torn
            line = self._take(end)
            ended = self._take(1)
            self.is_cut_off = not ended
            if ended:
                line = line.removesuffix(b"\r")
            if is_torn:
                self._torn = False
                self.dropped_bytes += len(line) + len(ended)
            else:
                yield line

    async def json_lines(self) -> AsyncIterator[Any]:
        """Yields the JSON value of each line, and skips empty lines. Raises CommunicationError for a line that is not
        JSON. The lines after that one can be read by another call.
        """
        async for line in self.lines():
            if words := line.strip():
                if (value := json_of(words)) is None and words != b"null":
                    said = line[:80].decode(errors="replace")
                    raise CommunicationError(f"the child's line is not JSON: {said!r}")
                yield value

    def close(self) -> None:
        """Closes the stream. Nothing more is read from the child, whose next write fails. Does nothing if the stream is
        closed already.
        """
        if self._descriptor >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._descriptor)
            if self._patience is not None:
                self._patience.cancel()
            os.close(self._descriptor)
            self._descriptor = -1
            self._more.set()

    def forget(self) -> None:
        """Closes the descriptor in a fork of the worker. Does not remove it from the event loop: the fork shares the
        loop's registrations with the worker, which still needs them.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _receive(self) -> None:
        if self._held:
            return
        try:
            piece = os.read(self._descriptor, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.close()
            return
        self.total_bytes += len(piece)
        if self.wrote is not None:
            self.wrote(len(piece))
        self._kept += piece
        if self._lossless or self._is_expected:
            if len(self._kept) >= self._capacity:
                self._held = True
                self._loop.remove_reader(self._descriptor)
                if not self._lossless:
                    self._patience = self._loop.call_later(_PATIENCE_SECONDS, self._stop_expecting)
        else:
            self._drop()
        self._more.set()

    def _drop(self) -> None:
        excess = len(self._kept) - self._capacity
        if excess > 0:
            self._torn = self._kept[excess - 1] != 0x0A
            del self._kept[:excess]
            self._searched = max(0, self._searched - excess)
            self.dropped_bytes += excess
            self._missed += excess if self._has_been_read else 0

    def _stop_expecting(self) -> None:
        """Starts to drop the oldest output, so that the child can continue to write. Called when the stream has been
        full for a second, and nobody has read from it.
        """
        self._is_expected = False
        self._go_on()
        self._drop()

    def _go_on(self) -> None:
        self._held = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._receive)

    def _refuse_line(self) -> None:
        """Handles a line that is longer than the capacity of the stream: the stream is full, and has no line end.
        Raises CommunicationError.

        If the stream is not lossless, this call drops what was read of the line. Further calls for the rest of the
        same line drop it without an error.
        """
        was_told = self._torn
        if not self._lossless:
            self.dropped_bytes += len(self._kept)
            self._kept.clear()
            self._searched, self._torn = 0, True
            self._go_on()
        if self._lossless or not was_told:
            raise CommunicationError(
                f"{self._name}: a line of the child is longer than {self._capacity} bytes",
                hint="give the stream more with output_bytes=",
            )

    def _check_gap(self) -> None:
        self._has_been_read = self._is_expected = True
        if self._missed:
            missed, self._missed = self._missed, 0
            raise CommunicationError(
                f"{self._name}: {missed:,} bytes were dropped, because nobody has read them in time: of what was not read"
                f" {self._capacity:,} bytes are kept",
                hint="lossless=True lets the program wait for its reader, output_bytes= keeps more",
            )

    def _take(self, most_bytes: int) -> bytes:
        taken = bytes(self._kept[:most_bytes])
        del self._kept[:most_bytes]
        self._torn = self._torn and b"\n" not in taken
        self._searched = 0
        if self._held and len(self._kept) < self._capacity:
            self._go_on()
        return taken

    async def _wait(self) -> None:
        self._more.clear()
        await self._more.wait()


class LastWords:
    """A buffer with the newest output of a child, or of several children one after the other. `dropped_bytes`: the
    number of older bytes that were dropped to make room.
    """

    def __init__(self, most_bytes: int, output: ChildOutput | None = None) -> None:
        """Makes a buffer that keeps the newest `most_bytes` bytes. `output`: a stream that the buffer reads to its end, so that
        the child does not wait for a reader; None if the owner calls `add`.
        """
        self._most = most_bytes
        self._kept = bytearray()
        self.dropped_bytes = 0
        self._output = output
        self._reading = None if output is None else asyncio.create_task(self._read(output))

    async def over(self, *, close: bool = False, timeout_s: float | None = None) -> None:
        """Waits until the child has closed its output, but at most `timeout_s` seconds (None for no limit); returns
        in both cases. `close`: True to close the stream now, without reading the rest.
        """
        assert self._output is not None
        assert self._reading is not None
        if close:
            self._output.close()
        await asyncio.wait([self._reading], timeout=timeout_s)

    def add(self, piece: bytes) -> None:
        """Adds a piece of output. Drops the oldest bytes if the buffer has more than `most_bytes`."""
        self._kept += piece
        if (excess := len(self._kept) - self._most) > 0:
            del self._kept[:excess]
            self.dropped_bytes += excess

    @property
    def size(self) -> int:
        """The number of bytes that were ever added."""
        return self.dropped_bytes + len(self._kept)

    def text(self, start: int = 0) -> str:
        """Returns the output that was added after the first `start` bytes, as far as the buffer still keeps it. The text may
        contain secrets of the command.
        """
        return self._kept[max(0, start - self.dropped_bytes) :].decode(errors="replace")

    async def _read(self, output: ChildOutput) -> None:
        while piece := await output.read():
            self.add(piece)


class ChildInput:
    """The stdin of a child, to which the worker writes. If the pipe is full, further bytes are kept in memory until
    the child reads.
    """

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._broken = False
        os.set_blocking(descriptor, False)

    @property
    def is_open(self) -> bool:
        """True if neither the worker nor the child has closed the stream, as far as is known."""
        return not self._closing and not self._broken

    @property
    def has_unsent(self) -> bool:
        """True if some of the written bytes are still in memory, because the pipe was full."""
        return bool(self._waiting)

    @property
    def has_room(self) -> bool:
        """True if at most 64 KB of the written bytes are still in memory, so that `drain` returns at once."""
        return self._room.is_set()

    def write(self, data: bytes) -> None:
        """Writes bytes without waiting. If the pipe is full, keeps the rest in memory, so await `drain()` before the
        next call. Raises CommunicationError if the child does not read any more, if `close` was called, or if 64 MB
        are already in memory. Raises UserError in the function of a job.
        """
        refuse_in_job("writes to the stdin of a child process", IN_A_STEP)
        if not self.is_open:
            raise self._error()
        if len(self._waiting) > _MOST_WAITING:
            raise CommunicationError(
                f"{len(self._waiting)} bytes wait for a child that does not read its stdin",
                hint="await drain() before the next write",
            )
        empty = not self._waiting
        self._waiting += data
        if empty:
            self._send()
            if self._waiting and self._descriptor >= 0:
                self._loop.add_writer(self._descriptor, self._send)
        if len(self._waiting) > _ROOM:
            self._room.clear()
        if self._broken:
            raise self._error()

    async def drain(self) -> None:
        """Waits until at most 64 KB of the written bytes are still in memory. Raises CommunicationError if the child
        does not read any more.
        """
        await self._room.wait()
        if self._broken:
            raise self._error()

    def close(self) -> None:
        """Closes the stream as soon as all bytes that were written are in the pipe. Does nothing if it is closed
        already.
        """
        refuse_in_job("closes the stdin of a child process", IN_A_STEP)
        self._closing = True
        if not self._waiting:
            self.abandon()

    def abandon(self) -> None:
        """Closes the stream at once. Bytes that are still in memory are lost."""
        self._closing = True
        self._broken |= bool(self._waiting)
        self._waiting.clear()
        if self._descriptor >= 0:
            if not self._loop.is_closed():
                self._loop.remove_writer(self._descriptor)
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
            self._room.set()

    def forget(self) -> None:
        """Closes the descriptor in a fork of the worker. Does not remove it from the event loop: the fork shares the
        loop's registrations with the worker, which still needs them.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _send(self) -> None:
        try:
            while self._waiting:
                with memoryview(self._waiting)[:_PIECE] as piece:
                    sent = os.write(self._descriptor, piece)
                del self._waiting[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._broken = True
            self.abandon()
            return
        if len(self._waiting) <= _ROOM:
            self._room.set()
        if not self._waiting:
            self._loop.remove_writer(self._descriptor)
            if self._closing:
                self.abandon()

    def _error(self) -> CommunicationError:
        return CommunicationError("the stdin of the child is closed: the child does not read it, or has ended")
