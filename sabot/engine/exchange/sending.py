"""The sending end of edges: a thread for each edge, and one for each worker that receives edges.

    channel ─▶ Framing ─▶ frames ─▶ a call of Flight per edge ──────▶ the receiver's channel
                  ▲ waits when its credit is used up  ◀── an answer for each quarter of the credit that is in the channel

Credit is the number of rows and bytes that an edge may have sent without an answer. If the receiver's channel is
full, it sends no answer, which stops this edge and no other: rows for a full channel never block the connection that
all edges to a worker share.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pyarrow as pa
from pyarrow import flight

from sabot._cython.flow.channel import Channel
from sabot.engine.exchange.frames import Frame, Framing, parts_of
from sabot.engine.exchange.link import CLOSED, Tls, credentials, location, reason
from sabot.errors import TransientError

_log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_MESSAGE_BYTES = 512  # the cost of a message besides its rows
_SHARES = 4  # the sender asks after each quarter of the credit


class Credit:
    """The rows and bytes that an edge may have sent without an answer; the limit that is reached first counts. One
    more message may exceed it.
    """

    def __init__(self, rows: int, nbytes: int) -> None:
        self._row_bytes = nbytes // rows
        self._most = nbytes
        self._shares: deque[int] = deque()  # the bytes sent before each question that is not answered
        self._out = 0
        self._unasked = 0

    @property
    def is_over(self) -> bool:
        """True if the next message has to wait for an answer."""
        return self._out >= self._most

    def spend(self, rows: int, nbytes: int) -> bool:
        """Adds a message with rows to those without an answer. Returns True if the message has to ask the receiver
        for an answer: once for each quarter of the credit.
        """
        cost = max(nbytes, rows * self._row_bytes) + _MESSAGE_BYTES
        self._out += cost
        self._unasked += cost
        if self._unasked * _SHARES < self._most:
            return False
        self._shares.append(self._unasked)
        self._unasked = 0
        return True

    def answered(self) -> None:
        """Returns the credit of the oldest question, which the receiver has answered."""
        self._out -= self._shares.popleft()


class Sender:
    """One edge to another worker. `lost` and `stop` may be called from any thread; the rest runs in the sender's own
    thread.
    """

    def __init__(self, edge: str, channel: Channel, peer: "Peer") -> None:
        self.edge = edge
        self.rows_out = 0
        self.messages_out = 0
        self.waits = 0  # for credit
        self._channel = channel
        self._peer = peer
        self._credit = peer.credit()
        self._lock = threading.Lock()  # of the next three
        self._stopped = False
        self._why: BaseException | None = None
        self._writer: Any = None
        self._reader: Any = None
        self._schema: pa.Schema | None = None
        self._thread = threading.Thread(target=self._run, name=f"sabot-send {edge}", daemon=True)

    def start(self) -> None:
        """Starts to drain the channel."""
        self._thread.start()

    def lost(self, error: BaseException) -> None:
        """Makes the edge fail with this error, because its receiver is lost."""
        with self._lock:
            if self._why is None:
                self._why = error
            reader = self._reader
        if reader is not None:
            reader.cancel()
        self._channel.close()

    def stop(self) -> None:
        """Ends the edge without a report. Idempotent."""
        with self._lock:
            self._stopped = True
            reader = self._reader
        if reader is not None:
            reader.cancel()
        self._channel.close()

    def join(self, timeout: float) -> None:
        """Returns when the thread has ended, or after `timeout` seconds."""
        self._thread.join(timeout)

    def statistics(self) -> dict[str, int]:
        """Returns the rows and messages that were sent, and how often the edge waited for credit."""
        return {"rows": self.rows_out, "messages": self.messages_out, "waits": self.waits}

    def _run(self) -> None:
        try:
            self._send()
        except Exception as error:
            self._end(error)
        finally:
            self._peer.forget(self)
            if self._writer is not None:
                with suppress(pa.ArrowException, flight.FlightError):  # the call had ended before, for a known reason
                    self._writer.close()
            self._writer = self._reader = None

    def _end(self, error: BaseException) -> None:
        with self._lock:
            stopped, why = self._stopped, self._why or error
        if stopped:
            return
        if isinstance(why, flight.FlightError) and why.extra_info == CLOSED:
            self._channel.close()  # as if the reader had closed this one
            return
        self._peer.on_failed(self.edge, self._peer.failure(self.edge, why))
        self._channel.close()

    def _send(self) -> None:
        framing = Framing(self._channel)
        self._open()
        while (found := framing.next()) is not None:
            data, frame = found
            if data is None:
                self._writer.write_metadata(_encode(frame))
            else:
                self._rows(data, frame)
            if frame.is_last:
                self._finish()
                return
        raise TransientError("the channel was closed before END")

    def _rows(self, data: pa.RecordBatch, frame: Frame) -> None:
        if self._schema is None or not data.schema.equals(self._schema, check_metadata=True):
            if self._schema is not None:
                self._writer.write_metadata(_encode(Frame(goes_on=True)))
                self._finish()
                self._open()
            self._writer.begin(data.schema)
            self._schema = data.schema
        parts = parts_of(data, self._peer.message_bytes)
        for number, (part, nbytes) in enumerate(parts, 1):
            while self._credit.is_over:
                self.waits += 1
                if not self._answer():
                    raise TransientError("the receiver ended the call")
            says = frame if number == len(parts) else Frame(frame.topic, has_origin=frame.has_origin)
            says.asks = self._credit.spend(part.num_rows, nbytes)
            self._writer.write_with_metadata(part, _encode(says))
            self.rows_out += part.num_rows
            self.messages_out += 1

    def _answer(self) -> bool:
        """Waits for the next answer of the receiver. Returns False if the receiver has ended the call."""
        try:
            self._reader.read_chunk()
        except StopIteration:
            return False
        self._credit.answered()
        return True

    def _open(self) -> None:
        with self._lock:
            if self._stopped or self._why is not None:
                raise TransientError("the edge was stopped")
            self._writer, self._reader = self._peer.call(self.edge)
        self._writer.write_metadata(_encode(Frame()))
        self._reader.read_chunk()  # waits for the receiver's first answer; raises if it does not know this edge

    def _finish(self) -> None:
        """Waits until the receiver has put all rows of this call into its channel."""
        self._writer.done_writing()
        while self._answer():
            pass


class Peer:
    """A worker that receives edges: one connection to it, and a thread that asks it eight times in each `timeout`
    whether it is alive.
    """

    def __init__(
        self,
        address: str,
        token: str,
        session: str,
        on_failed: Callable[[str, BaseException], None],
        *,
        tls: Tls | None,
        timeout: float,
        credit: Callable[[], Credit],
        message_bytes: int,
    ) -> None:
        self.address = address
        self.on_failed = on_failed
        self.credit = credit
        self.message_bytes = message_bytes
        self._session = session
        self._timeout = timeout
        self._headers = credentials(token)
        self._lock = threading.Lock()
        self._senders: set[Sender] = set()
        self._gone: BaseException | None = None  # the reason why it does not answer any more
        self._over = threading.Event()
        options = (
            {}
            if tls is None
            else {
                "tls_root_certs": tls.authority,
                "cert_chain": tls.certificate,
                "private_key": tls.key,
                "override_hostname": tls.server_name or None,
            }
        )
        self._client = flight.FlightClient(location(address, tls), **options)
        self._thread = threading.Thread(target=self._ask, name=f"sabot-peer {address}", daemon=True)
        self._thread.start()

    def send(self, edge: str, channel: Channel) -> Sender:
        """Starts to drain this channel into the other end of the edge, and returns its sender."""
        sender = Sender(edge, channel, self)
        with self._lock:
            self._senders.add(sender)
            gone = self._gone
        if gone is not None:
            sender.lost(gone)
        sender.start()
        return sender

    def call(self, edge: str) -> tuple[Any, Any]:
        """Opens a call of the edge. Returns its writer and its reader."""
        descriptor = flight.FlightDescriptor.for_path(edge, self._session)
        writer, reader = self._client.do_exchange(descriptor, flight.FlightCallOptions(headers=self._headers))
        return writer, reader

    def failure(self, edge: str, error: BaseException) -> TransientError:
        """Returns the error for an edge that has failed."""
        made = TransientError(
            f"the edge {edge!r} to the worker at {self.address} is broken: {reason(error)}",
            hint="the app resumes from its last checkpoint",
        )
        made.__cause__ = error
        return made

    def forget(self, sender: Sender) -> None:
        """Forgets a sender whose thread ends."""
        with self._lock:
            self._senders.discard(sender)

    def close(self) -> None:
        """Ends all edges and threads. Blocks until each thread has ended, or for `timeout` seconds. Idempotent."""
        self._over.set()
        senders = self._all()
        for sender in senders:
            sender.stop()
        for sender in senders:
            sender.join(self._timeout)
        self._thread.join(self._timeout)
        self._client.close()

    def _all(self) -> list[Sender]:
        with self._lock:
            return list(self._senders)

    def _ask(self) -> None:
        """Asks the other worker whether it is alive, until `close`, or until an answer does not come in time. The
        questions also tell the other worker that this one is alive.
        """
        options = flight.FlightCallOptions(timeout=self._timeout, headers=self._headers)
        question = flight.Action("alive", self._session.encode())
        while not self._over.wait(self._timeout / 8):
            try:
                broken = {result.body.to_pybytes().decode() for result in self._client.do_action(question, options)}
            except Exception as error:
                if isinstance(error, flight.FlightTimedOutError):
                    error = TransientError(f"it has not answered for {self._timeout:g} s")
                with self._lock:
                    self._gone = error
                for sender in self._all():
                    sender.lost(error)
                if not self._over.is_set():
                    _log.info("the worker at %s is lost: %s", self.address, reason(error))
                return
            for sender in self._all() if broken else ():
                if sender.edge in broken:
                    sender.lost(TransientError("the receiver has reported a failure"))
