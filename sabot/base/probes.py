"""The small HTTP server of a worker, for pages that are made on request: metrics and health; and the share of a process's descriptors
that servers may take.
"""

import errno
import json
import logging
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

from sabot.clock import SYSTEM_CLOCK

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0  # for a client that neither sends nor reads
_MOST_CONNECTIONS = 64
_ROOM_SECONDS = 0.5  # a request has at least so long if others wait for its place, and it has so long to end then


def most_connections(wanted: int) -> int:
    """Returns the number of connections that a server may have open at once: `wanted`, or a quarter of the descriptors of this process
    if these are fewer.
    """
    return max(1, min(wanted, _descriptors() // 4))


def is_reserved(descriptor: int) -> bool:
    """Returns True if a new descriptor is one of the last quarter of those that this process may have. A new one has the lowest free
    number, so all below it are in use; the rest is for the files of the app, without which checkpoints fail.
    """
    limit = _descriptors()
    return descriptor >= limit - limit // 4


def _descriptors() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


class Page(NamedTuple):
    """The answer for a path."""

    status: int
    content_type: str
    body: bytes


def page_of(report: Mapping[str, Any], *, good: bool) -> Page:
    """Makes a JSON page of a report, with status 200 if `good`, else 503, on which Kubernetes and load balancers act."""
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Page(status, "application/json", json.dumps(report).encode() + b"\n")


class PageServer:
    """An HTTP server that answers GET and HEAD of the given paths, each request in a thread. Other paths get 404, and
    other methods 501.

    `pages`: for each path the function that makes its page; it gets the value of the request's Accept header. Raises
    OSError if the address cannot be bound.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[str], Page]]) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # not at the start of each program

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE_SECONDS
            server_version, sys_version = "sabot", ""

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                make = pages.get(path)
                if make is None:
                    there = ", ".join(sorted(pages))
                    page = Page(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", f"there is {there}\n".encode())
                else:
                    page = make(self.headers.get("Accept", ""))
                self.send_response(page.status)
                self.send_header("Content-Type", page.content_type)
                self.send_header("Content-Length", str(len(page.body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(page.body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Logs nothing, because a scrape comes every few seconds."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            places = threading.Semaphore(most_connections(_MOST_CONNECTIONS))
            lock = threading.Lock()
            # The requests in work, the oldest first, with the time when each began.
            working: dict[socket.socket, float] = {}  # noqa: RUF012

            def get_request(self) -> tuple[socket.socket, Any]:
                try:
                    return super().get_request()
                except OSError as error:
                    if error.errno in (errno.EMFILE, errno.ENFILE):
                        time.sleep(_ROOM_SECONDS)  # the connection stays ready to be accepted: the loop would spin
                    raise

            def process_request(self, request: Any, client_address: Any) -> None:
                if is_reserved(request.fileno()) or not self.wait_for_place():
                    self.shutdown_request(request)
                    return
                with self.lock:
                    self.working[request] = SYSTEM_CLOCK.monotonic()
                super().process_request(request, client_address)

            def wait_for_place(self) -> bool:
                """Takes one of the places, which are as many as the threads and descriptors that clients may take of the app. A scrape is
                short, so a request that is old when all places are taken is one of a client that does not send or read: it is ended.
                """
                if self.places.acquire(blocking=False):
                    return True
                with self.lock:
                    oldest, began = next(iter(self.working.items()), (None, 0.0))
                if self.places.acquire(timeout=max(0.0, began + _ROOM_SECONDS - SYSTEM_CLOCK.monotonic())):
                    return True
                with suppress(OSError):  # it has ended by itself
                    if oldest is not None:
                        oldest.shutdown(socket.SHUT_RDWR)
                return self.places.acquire(timeout=_ROOM_SECONDS)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    with self.lock:
                        self.working.pop(request, None)
                    self.places.release()

            def handle_error(self, request: Any, client_address: Any) -> None:
                error = sys.exception()
                if not isinstance(error, OSError):  # a client that has disconnected is not logged
                    _log.error("a page could not be made", exc_info=error)

        self._server = Server((host, port), Handler)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="sabot-probes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the server and frees the port. Blocks up to two seconds. Call it once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
