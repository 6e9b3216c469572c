"""The receiving end of edges: a Flight server, with one thread for each edge that is being received.

A call of `do_exchange` carries an edge: its descriptor contains the edge and the session of the sending worker. A
call ends with END, or with a frame that says that another call continues the edge. Any other end of a call is a
failure, which is reported to this worker (`on_failed`).

Callers with the app's token are trusted. Arrow decodes the messages and refuses anything but record batches of the
call's schema. Values, such as offsets of texts, are not checked (`_cython.arrow.border` checks those of users' data).
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec
from pyarrow import flight

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Channel, ChannelClosed
from sabot.engine.exchange.frames import Frame, element_of, word_aligned
from sabot.engine.exchange.link import CLOSED, Tls, TokenCheck, address_of, cut_off, location, reason
from sabot.errors import UNREADABLE, InternalError, SabotError, TransientError

_log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(Frame).decode
_ANSWER = b"\0"
_WAIT_SECONDS = 0.1  # one wait for a full channel
_ROUNDS = 8  # the number of checks for silent workers within one time-out


class Inbound:
    """The receiving end of one edge."""

    def __init__(self, edge: str, channel: Channel) -> None:
        self.edge = edge
        self.channel = channel
        self.session = ""  # the session of the sending worker, or "" before the first call
        self.peer = ""  # the address of its connection
        self.serving = False
        self.over = False  # after END, or a failure
        self.broken = False
        self.lost = False  # its worker was silent for longer than the time-out
        self.rows_in = 0
        self.messages_in = 0


class EdgeServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """A Flight server that receives edges, and puts the elements of each edge into the channel from `expect`. All
    methods may be called from any thread.

    `on_failed`: called with an edge and the error when the edge fails. `timeout`: the seconds after which a silent
    sending worker counts as lost. If an edge is called before `expect`, the call waits for so many seconds, and then
    fails. `most_bytes`: the largest accepted message.
    """

    def __init__(
        self,
        token: str,
        on_failed: Callable[[str, BaseException], None],
        *,
        host: str,
        port: int,
        tls: Tls | None,
        timeout: float,
        most_bytes: int,
    ) -> None:
        self._on_failed = on_failed
        self._timeout = timeout
        self._most_bytes = most_bytes
        self._token_check = TokenCheck(token)
        self._changed = threading.Condition()  # of all below
        self._edges: dict[str, Inbound] = {}
        self._silent: dict[str, int] = {}  # by session: the rounds in which it was silent
        self._closing = False
        self._over = threading.Event()
        options = (
            {}
            if tls is None
            else {
                "tls_certificates": [(tls.certificate, tls.key)],
                "verify_client": True,
                "root_certificates": tls.authority,
            }
        )
        super().__init__(location(address_of(host, port), tls), middleware={"token": self._token_check}, **options)
        self._thread = threading.Thread(target=self._watch, name="sabot-peers", daemon=True)
        self._thread.start()

    def expect(self, edge: str, channel: Channel) -> None:
        """Accepts a call of this edge from now on, and puts its elements into the channel. Raises InternalError if
        `expect` was called for this edge before.
        """
        with self._changed:
            if edge in self._edges:
                raise InternalError(f"the edge {edge!r} is received already")
            self._edges[edge] = Inbound(edge, channel)
            self._changed.notify_all()

    def statistics(self) -> dict[str, Any]:
        """Returns per edge the rows and messages received, and the number of calls that were `refused` because they
        had no valid token.
        """
        with self._changed:
            edges = {name: {"rows": each.rows_in, "messages": each.messages_in} for name, each in self._edges.items()}
        return {"edges": edges, "refused": self._token_check.refused_total}

    def close(self) -> None:
        """Ends all calls and threads. Workers that still send get an error for their edges."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            waiting = {each.peer for each in self._edges.values() if each.serving and not each.over}
        self._over.set()
        cut_off(self.port, waiting)
        self.shutdown()
        self._thread.join()

    # -- calls, each in a thread of the server ---------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> list[bytes]:
        """Answers the question `alive` of a sending worker: records that its session is alive, and returns those of
        its edges that have failed here, because the sender may not have noticed. Raises FlightServerError for any
        other question.
        """
        if action.type != "alive":
            raise flight.FlightServerError(f"there is no action {action.type[:100]!r}")
        session = action.body.to_pybytes()[:100].decode(errors="replace")
        with self._changed:
            if session in self._silent:
                self._silent[session] = 0
            return [each.edge.encode() for each in self._edges.values() if each.session == session and each.broken]

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Receives one call of an edge, in a thread of the server."""
        inbound = self._claim(descriptor, context.peer())
        try:
            writer.write_metadata(_ANSWER)
            self._take(inbound, reader, writer, context)
        except ChannelClosed:
            inbound.over = True
            raise flight.FlightServerError(f"{inbound.edge!r} is closed by its reader", CLOSED) from None
        except Exception as error:
            raise flight.FlightServerError(self._failed(inbound, error)) from None
        finally:
            inbound.serving = False

    def _claim(self, descriptor: Any, peer: str) -> Inbound:
        """Returns the edge of a call. Waits for `expect`, because workers do not start at the same moment. Raises an
        error of Flight for an unknown edge, for one that has or had another sender, and when the server closes.
        """
        path = [part.decode(errors="replace")[:1000] for part in descriptor.path or ()]
        if len(path) != 2 or not all(path):
            raise flight.FlightServerError("the descriptor of a call must be an edge and a session")
        edge, session = path
        with self._changed:
            self._changed.wait_for(lambda: self._closing or edge in self._edges, self._timeout)
            inbound = self._edges.get(edge)
            if self._closing:
                raise flight.FlightUnavailableError("this worker closes its exchange")
            if inbound is None:
                raise flight.FlightServerError(f"this worker receives no edge {edge!r}")
            if inbound.over or inbound.serving or inbound.session not in ("", session):
                raise flight.FlightServerError(f"the edge {edge!r} has, or had, another sender")
            inbound.session, inbound.peer, inbound.serving = session, peer, True
            self._silent.setdefault(session, 0)
        return inbound

    def _take(self, inbound: Inbound, reader: Any, writer: Any, context: Any) -> None:
        while True:
            try:
                message = reader.read_chunk()
            except StopIteration:
                raise TransientError("the call ended before END") from None
            frame = _frame(message)
            if message.data is not None:
                batch = element_of(word_aligned(message.data), frame)
                if batch.nbytes > self._most_bytes:
                    raise InternalError(
                        f"a message of {batch.nbytes} bytes was received; the most is {self._most_bytes}"
                    )
                self._put(inbound, batch, context)
                inbound.rows_in += message.data.num_rows
                inbound.messages_in += 1
                if frame.asks:
                    writer.write_metadata(_ANSWER)
            for mark in frame.elements():
                self._put(inbound, mark, context)
                if mark is END:
                    inbound.over = True
                    return
            if frame.goes_on:
                return

    def _put(self, inbound: Inbound, element: Any, context: Any) -> None:
        if not isinstance(element, Batch):
            inbound.channel.put_nowait(element)
            return
        while not inbound.channel.put(element, timeout=_WAIT_SECONDS):
            if inbound.lost or self._closing or context.is_cancelled():
                raise TransientError("the edge was ended while its channel was full")

    # -- failures -----------------------------------------------------------------------------------------------------------

    def _failed(self, inbound: Inbound, error: BaseException) -> str:
        """Marks the edge as failed, reports that once (`on_failed`), and returns the text of the error."""
        with self._changed:
            told, inbound.over = inbound.over, True
            inbound.broken = inbound.broken or not told
            silent = inbound.lost
        why = f"its worker has sent nothing for {self._timeout:g} s" if silent else reason(error)
        text = f"the edge {inbound.edge!r} from the worker at {inbound.peer.partition(':')[2]} is broken: {why}"
        if not told and not self._closing:
            if isinstance(error, SabotError | flight.FlightError | OSError):
                made: SabotError = TransientError(text, hint="the app resumes from its last checkpoint")
            else:
                made = InternalError(text)
            made.__cause__ = error
            self._on_failed(inbound.edge, made)
        return text

    def _watch(self) -> None:
        """Finds sending workers that are silent: those that have asked nothing for some rounds of this loop. Rounds
        are counted, not seconds, so that a pause of this process does not make its peers look silent.
        """
        while not self._over.wait(self._timeout / _ROUNDS):
            with self._changed:
                for session in self._silent:
                    self._silent[session] += 1
                gone = {session for session, rounds in self._silent.items() if rounds > _ROUNDS}
                for session in gone:
                    del self._silent[session]
                lost = [each for each in self._edges.values() if each.session in gone and not each.over]
                for each in lost:
                    each.lost = True
            for each in lost:
                if not each.serving:  # between two calls
                    self._failed(each, TransientError("no call has continued it"))
            if lost:
                cut_off(self.port, {each.peer for each in lost if each.serving})


def _frame(message: Any) -> Frame:
    if message.app_metadata is None:
        raise InternalError("a message without a frame was received")
    try:
        return _decode(message.app_metadata)
    except UNREADABLE as error:
        raise InternalError(f"a frame cannot be read: {error}") from None
