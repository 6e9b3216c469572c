"""The exchange of a worker: the rows that its tasks send to tasks of other workers, and the rows that they receive."""

import atexit
import secrets
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from sabot._cython.flow.channel import Channel
from sabot.base.redaction import keep_secret
from sabot.engine.exchange.link import Tls, address_of
from sabot.engine.exchange.receiving import EdgeServer
from sabot.engine.exchange.sending import Credit, Peer
from sabot.errors import InternalError, UserError


class Exchange:
    """A worker's Flight server, and its connections to the workers to which it sends. One per process. Its methods
    may be called from any thread.

    An edge has a name, the same at both ends, which is used once. Its two channels behave as one. Elements keep their
    order. If the receiver's channel is full, the sender's fills. If the receiver's reader closes its channel, the
    sender's is closed too, and its producer gets ChannelClosed. END arrives only if END was put.

    `token`: the app's secret; a call with it is trusted, and others are refused. It crosses the network in the clear
    unless there is `tls`, so a `host` other than loopback needs TLS. `credit_rows`, `credit_bytes`: the most that an
    edge may have under way beside the contents of its two channels. `message_bytes`: the largest message; a larger
    single row is a message of its own. `timeout`: the seconds after which a silent worker counts as lost. Raises
    UserError for a token of less than 16 characters.
    """

    def __init__(
        self,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls | None = None,
        timeout: float = 10.0,
        credit_rows: int = 65_536,
        credit_bytes: int = 8 << 20,
        message_bytes: int = 4 << 20,
    ) -> None:
        if len(token) < 16:
            raise UserError("the token of an exchange has 16 characters or more", hint="secrets.token_hex(16)")
        keep_secret(token, owner=self)
        # Called once for each edge that broke, in a thread of the exchange: (edge, error). Not after `close`.
        self.on_failed: Callable[[str, BaseException], None] = _unheard
        self._token = token
        self._tls = tls
        self._timeout = timeout
        self._credit = partial(Credit, credit_rows, credit_bytes)
        self._message_bytes = message_bytes
        self._session = secrets.token_hex(8)
        self._lock = threading.Lock()  # of the next three
        self._peers: dict[str, Peer] = {}
        self._sent: dict[str, Any] = {}
        self._closed = False
        self._server = EdgeServer(
            token, self._failed, host=host, port=port, tls=tls, timeout=timeout, most_bytes=(1 << 31) - 1
        )
        self.address = address_of(host, self._server.port)
        # Before the server's own finalizer, which waits for calls whose client may have vanished.
        atexit.register(self.close)

    def receive(self, edge: str, channel: Channel) -> None:
        """Puts the elements of this edge into this channel. Raises InternalError if `receive` was called for the edge
        before.
        """
        self._server.expect(edge, channel)

    def send(self, edge: str, channel: Channel, address: str) -> None:
        """Sends the elements of this channel to the other end of the edge. `address`: that of the receiving exchange,
        which may call `receive` later. Raises InternalError if the edge is sent already, or the exchange is closed.
        """
        with self._lock:
            if self._closed:
                raise InternalError(f"the exchange is closed; {edge!r} cannot be sent")
            if edge in self._sent:
                raise InternalError(f"the edge {edge!r} is sent already")
            peer = self._peers.get(address)
            if peer is None:
                peer = self._peers[address] = Peer(
                    address,
                    self._token,
                    self._session,
                    self._failed,
                    tls=self._tls,
                    timeout=self._timeout,
                    credit=self._credit,
                    message_bytes=self._message_bytes,
                )
            self._sent[edge] = peer.send(edge, channel)

    def statistics(self) -> dict[str, Any]:
        """Returns per edge the rows and messages that were `received` and `sent`, and how often a sending edge waited
        for credit; the number of `peers`; and the number of calls that were `refused` because they had no valid
        token.
        """
        received = self._server.statistics()
        with self._lock:
            sent = {edge: sender.statistics() for edge, sender in self._sent.items()}
            peers = len(self._peers)
        return {"received": received["edges"], "sent": sent, "peers": peers, "refused": received["refused"]}

    def close(self) -> None:
        """Ends all edges without waiting for their rows, and all threads and connections. The channels of `send` are
        closed. Idempotent.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            peers = list(self._peers.values())
        for peer in peers:
            peer.close()
        self._server.close()

    def _failed(self, edge: str, error: BaseException) -> None:
        if not self._closed:
            self.on_failed(edge, error)


def _unheard(edge: str, error: BaseException) -> None:
    """Raises InternalError, because `on_failed` was not set."""
    raise InternalError(
        f"the edge {edge!r} has failed, and on_failed is not set", hint="set on_failed before send and receive"
    ) from error
