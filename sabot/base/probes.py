"""The small HTTP server of a worker, for pages that are made on request: metrics and health."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 10.0  # for a client that neither sends nor reads


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

            def handle_error(self, request: Any, client_address: Any) -> None:
                error = sys.exception()
                if not isinstance(error, OSError):  # a client that has disconnected is not logged
                    _log.error("a page could not be made", exc_info=error)

        self._server = Server((host, port), Handler)
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="sabot-probes", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the server and frees the port. Blocks up to half a second. Call it once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
