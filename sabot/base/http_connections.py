"""Connections of HTTP servers with limits for slow clients, by uvicorn. Loaded only by the servers."""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sabot.base.doors import SESSION

_quiet = logging.getLogger(f"{__name__}.requests")  # a scan of ports must not fill the app's log
_quiet.setLevel(logging.CRITICAL)

MOST_HEAD_BYTES = 16_384
HEAD_SECONDS = 5.0  # in which the head of a request has to arrive
_WRITE_SECONDS = 10.0  # in which a client has to read _LEAST_READ bytes of what waits for it
_LEAST_READ = 16_384
_RETRY_SECONDS = 5


class LimitedHttp(H11Protocol):
    """A connection that is ended if the head of its request does not arrive within five seconds, or its client does not read."""

    def __init__(self, *args: Any, left: Callable[[Any], None], **options: Any) -> None:
        """`left`: called when the connection has ended."""
        super().__init__(*args, **options)
        self.logger = _quiet
        self._left = left
        self.since = self.loop.time()
        """The time of the event loop since which the connection has waited for a request, if it does."""
        # the time since which the client has not read, and the bytes that waited for it then; 0 for none
        self._unread = (0.0, 0)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._left(self)

    @property
    def waiting(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def known(self) -> bool:
        """True if the application has found the last request of this connection to be of one of its clients."""
        return self.scope is not None and self.scope.get(SESSION) is not None

    @property
    def peer(self) -> str:
        """The address of the client, without its port."""
        return "" if self.client is None else self.client[0]

    def abort(self) -> None:
        """Ends the connection at once, because another one needs its place, and says so to a client that has got no answer yet."""
        self._refuse(503, "the server has too many connections, and a newer one has got the place of this one")

    def check(self, now: float) -> None:
        """Ends the connection if it has waited too long, for its client's request or for its client to read."""
        if self.transport is None:
            return
        unread = self.transport.get_write_buffer_size()
        since, before = self._unread
        if not unread or not before or unread <= before - _LEAST_READ:
            self._unread = (now, unread)
        elif now - since > _WRITE_SECONDS:
            self.transport.abort()
        if self.waiting and now - self.since > HEAD_SECONDS and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                self._refuse(408, f"the head of the request has not come in {HEAD_SECONDS:g} s")
            else:  # a client that has sent nothing asks for nothing
                self.transport.close()

    def _refuse(self, status: int, why: str) -> None:
        """Ends the connection at once, with an answer unless one has begun. `close` would wait for a client that does not read, so the
        part of the answer is dropped that the kernel does not take at once.
        """
        if self.transport is None:
            return
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not begun and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\nretry-after: {_RETRY_SECONDS}\r\n"
            body = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(why)}\r\n\r\n{why}"
            self.transport.write((head + body).encode())
        self.transport.abort()
