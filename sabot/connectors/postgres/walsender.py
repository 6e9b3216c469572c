"""The thread that owns a replication connection. It answers the server also while nobody takes what it has received.

The server ends a connection on which it hears nothing for wal_sender_timeout. So the thread sends a status three times in that time,
whatever its reader does. It holds at most BUFFER_BYTES: then it leaves messages in the network, but goes on sending.
"""

import logging
import os
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from sabot.base.dataclass import dataclass
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.postgres.link import IN_USE, PostgresLink, lsn_text
from sabot.connectors.sql.database import quoted
from sabot.errors import ServerRefusal, TransientError

_log = logging.getLogger(__name__)

BUFFER_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_GATHER_BYTES = 256 << 10
_GATHER_SECONDS = 0.005
_OBJECT_BYTES = 48  # of a message in memory, beside its text
_PAUSE_SECONDS = 0.5  # between two tries to reach a server that is away
_ASK_SECONDS = 1.0  # after so long without a message the server is asked how far its log has gone
_STATUS_SECONDS = 10.0
_EPOCH_SECONDS = 946_684_800  # 2000-01-01, from which PostgreSQL counts
_JOIN_SECONDS = 15.0
_STATUS = struct.Struct(">cQQQqB")
_ALIVE = struct.Struct(">cQqB")
_START = struct.Struct(">Q")


@dataclass(frozen=True)
class WalChunk:
    """Messages in the order of the log, of so many bytes. `end`: the place that the server had reached behind them, or 0."""

    messages: list[bytes]
    size: int
    end: int


class WalReceiver:
    """One stream of the changes of a slot, from `position`. `connect`: checks the slot, and returns a connection for it, with the server's
    wal_sender_timeout in seconds, or 0; called again while it raises TransientError. `again`: True for a stream in place of one that has
    ended.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[PostgresLink, float]],
        slot: str,
        publication: str,
        position: int,
        stopped: threading.Event,
        where: str,
        *,
        again: bool,
    ) -> None:
        self._connect, self._stopped, self._where, self._again = connect, stopped, where, again
        self._link: PostgresLink | None = None
        self._slot, self._publication, self._position = slot, publication, position
        self._chunks: deque[WalChunk] = deque()
        self._held = 0  # bytes of chunks
        self._lock = threading.Condition()
        self._over: Exception | None = None
        self._done = False
        self._confirmed = self._told = 0  # in this stream: what the server has been told before stays
        self._received = position
        self._every_seconds = _STATUS_SECONDS
        self.end = position  # the greatest place that the server has told
        self.backend = 0  # the id of the server's process
        self._waker, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"changes of {slot}", daemon=True)
        self._thread.start()

    # -- the reader's thread ------------------------------------------------------------------------------------------

    def take(self, seconds: float) -> WalChunk | None:
        """Returns the next messages, or None if none come in time. If some are there already, waits up to 5 ms for more. Raises the error
        that has ended the stream, behind its messages: TransientError if another stream can go on.
        """
        with self._lock:
            if not self._chunks and self._over is None:
                self._lock.wait(seconds)
            elif self._over is None:
                # The reader is behind. While it works, the other thread gets the interpreter after 5 ms each time, for a few dozen
                # messages, so each batch would be as small. While it waits here, the messages of a few thousand rows arrive.
                self._lock.wait_for(lambda: self._held >= _GATHER_BYTES or self._over is not None, _GATHER_SECONDS)
            if self._chunks:
                chunk = self._chunks.popleft()
                while self._chunks and not chunk.end and chunk.size < _GATHER_BYTES:
                    more = self._chunks.popleft()
                    chunk.messages.extend(more.messages)
                    chunk = WalChunk(chunk.messages, chunk.size + more.size, more.end)
                self._held -= chunk.size
                self._lock.notify_all()
                return chunk
            if self._over is not None:
                raise self._over
        return None

    def confirm(self, position: int) -> None:
        """Lets the server forget what lies before this place. Never blocks."""
        if position > self._confirmed:
            with self._lock:
                self._confirmed = position
                self._lock.notify_all()
            self._wake()

    @property
    def held(self) -> int:
        """The bytes that were received and not taken. From any thread."""
        return self._held

    def close(self) -> None:
        self._done = True
        self._wake()
        self._thread.join(_JOIN_SECONDS)
        if not self._thread.is_alive():
            os.close(self._waker)
            os.close(self._wakes)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # it is awake already
            os.write(self._wakes, b"x")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: Exception = TransientError(f"{self._where}: the stream was closed")
        try:
            link = self._connected()
            if link is not None:
                self._stream(link)
        except Exception as raised:  # `take` raises it
            error = raised
        finally:
            if self._link is not None:
                self._link.close()
            with self._lock:
                self._over = error
                self._lock.notify_all()

    def _ends(self) -> bool:
        return self._done or self._stopped.is_set()

    def _connected(self) -> PostgresLink | None:
        """Returns the connection on which the server has begun to send, or None if the stream was closed before."""
        away = False
        if self._again:
            self._stopped.wait(_PAUSE_SECONDS / 5)
        while not self._ends():
            try:
                if self._link is None:
                    self._link, timeout = self._connect()
                    self._every_seconds = min(_STATUS_SECONDS, timeout / 3 or _STATUS_SECONDS)
                self._begin(self._link)
                if away:
                    _log.info("%s answers again", self._where)
                return self._link
            except TransientError as error:
                if self._link is not None:
                    self._link.close()
                    self._link = None
                if not away and not self._ends():  # else it was closed while it connected
                    _log.warning("%s cannot be read, and is tried again until it answers: %s", self._where, error)
                away = True
                self._stopped.wait(_PAUSE_SECONDS)
        return None

    def _begin(self, link: PostgresLink) -> None:
        self.backend = link.backend
        names = quoted(self._publication).replace("'", "''")
        try:
            link.begin_copy(
                f"START_REPLICATION SLOT {quoted(self._slot)} LOGICAL {lsn_text(self._position)} "
                f"(proto_version '1', publication_names '{names}', binary 'true')"
            )
        except ServerRefusal as error:
            if error.state == IN_USE:  # since the slot was looked at: the next look says by whom
                raise TransientError(str(error)) from error
            raise

    def _stream(self, link: PostgresLink) -> None:
        every = self._every_seconds
        heard = SYSTEM_CLOCK.monotonic()
        told = heard - every
        asked = False
        while not self._ends():
            now = SYSTEM_CLOCK.monotonic()
            idle = not asked and now - heard >= _ASK_SECONDS
            if idle or now - told >= every or self._confirmed > self._told:
                self._tell(link, asks=idle)
                told, asked = now, asked or idle
            fetches = self._held < BUFFER_BYTES
            if not fetches:
                self._pause(every / 2)
                continue
            messages: list[bytes] = []
            size, over = link.take(messages, _CHUNK_BYTES)
            if messages:
                heard, asked = SYSTEM_CLOCK.monotonic(), False
                if self._sort(messages):
                    self._tell(link)
                    told = heard
            if over:
                link.end_copy()
                raise TransientError(f"{self._where}: the server has ended the stream")
            if not size:
                link.wait(min(every / 2, _ASK_SECONDS), self._waker)
                self._drain()
                if asked and SYSTEM_CLOCK.monotonic() - heard > _ASK_SECONDS:
                    heard, asked = SYSTEM_CLOCK.monotonic(), False  # it is asked again

    def _sort(self, messages: list[bytes]) -> bool:
        """Gives messages to the reader. Returns True if the server waits for a status."""
        asks = False
        pending: list[bytes] = []
        for message in messages:
            if message[:1] == b"w":
                pending.append(message)
            elif message[:1] == b"k":
                _, end, _, wanted = _ALIVE.unpack(message)
                asks |= bool(wanted)
                self._give(pending, end)
                pending = []
        if pending:
            self._give(pending, 0)
        return asks

    def _give(self, messages: list[bytes], end: int) -> None:
        size = sum(map(len, messages)) + _OBJECT_BYTES * len(messages)
        if messages:
            self._received = max(self._received, _START.unpack_from(messages[-1], 1)[0])
        if not messages and end <= self.end:
            return  # nothing new
        self._received = max(self._received, end)
        self.end = max(self.end, self._received)
        with self._lock:
            self._chunks.append(WalChunk(messages, size, end))
            self._held += size
            self._lock.notify_all()

    def _tell(self, link: PostgresLink, *, asks: bool = False) -> None:
        """Sends a status. A place is confirmed once: a server that shuts down waits until all is confirmed that it has sent, if anything
        is, and else until all is received.
        """
        confirmed = self._confirmed if self._confirmed > self._told else 0
        at = int((SYSTEM_CLOCK.time() - _EPOCH_SECONDS) * 1_000_000)
        link.put(_STATUS.pack(b"r", max(self._received, confirmed), confirmed, confirmed, at, asks))
        self._told = max(self._told, confirmed)

    def _pause(self, seconds: float) -> None:
        """Waits until there is room, or for some seconds."""
        with self._lock:
            if self._held >= BUFFER_BYTES and not self._ends():
                self._lock.wait_for(
                    lambda: self._held < BUFFER_BYTES or self._confirmed > self._told or self._ends(), min(seconds, 0.2)
                )
        self._drain()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._waker, 4096)
