"""Connections of HTTP servers with limits for slow clients, by uvicorn. Loaded only by the servers."""

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sabot.base.doors import SESSION

_quiet = logging.getLogger(f"{__name__}.requests")  # a scan of ports must not fill the app's log
_quiet.setLevel(logging.CRITICAL)

MOST_HEAD_BYTES = 16_384
_HEAD_SECONDS = 5.0
_WRITE_SECONDS = 10.0  # in which a client has to read _LEAST_READ bytes of what waits for it
_LEAST_READ = 16_384


class LimitedHttp(H11Protocol):
    """A connection that is closed if its request does not arrive within five seconds, and aborted if the client does not read."""

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
        """Ends the connection at once, whatever waits to be written: `close` would wait for a client that does not read."""
        if self.transport is not None:
            self.transport.abort()

    def check(self, now: float) -> None:
        """Ends the connection if it has waited too long, for its client's request or for its client to read."""
        if self.transport is None:
            return
        unread = self.transport.get_write_buffer_size()
        since, before = self._unread
        if not unread or not before or unread <= before - _LEAST_READ:
            self._unread = (now, unread)
        elif now - since > _WRITE_SECONDS:
            self.abort()
        if self.waiting and now - self.since > _HEAD_SECONDS and not self.transport.is_closing():
            self.transport.close()
