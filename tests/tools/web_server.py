"""A web server for the tests, in a process of its own: it takes rows, and keeps them in a SQLite file before it answers.

`python web_server.py FOLDER PORT` runs it. A request to /rows is a row or an array of rows; each is kept with the key of its request, and a
request whose key is known is answered without being kept again if the folder has a file `idempotent`. A row with "refuse" is answered
with that status, as a whole. A file `faults` has one fault a line, as JSON, and each request takes the first that is left:

    {"status": 503, "headers": {…}}   that answer, and nothing is kept; "says" is its body
    {"lost": true}                    the rows are kept, and the connection ends without an answer
    {"killed": true}                  the rows are kept, and the process ends without an answer
    {"half": true}                    half of the body of an answer of 200 is sent
    {"slow": true}                    a byte of the head every 0.05 s, without an end
    {"bytes": 1000000}                an answer with such a body
    {"gzip": 1000000}                 a page of so many spaces, as small as gzip makes it
    {"text": "<html>"}                a page of text
    {"events": "data: x\\n\\n"}        an answer with these events, which then ends
    {"silent": true}                  an answer with the head of a stream of events, and nothing else
"""

import gzip
import http.server
import json
import os
import select
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PAGE = 4
_START_SECONDS = 60.0
_lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    last: "Handler | None" = None  # of /events?once

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.note(body)
        fault = self.fault()
        if "status" in fault:
            self.say(fault["status"], fault.get("says", "no").encode(), fault.get("headers", {}))
            return
        if fault.get("slow"):
            self.trickle()
            return
        rows = json.loads(body)
        rows = rows if isinstance(rows, list) else [rows]
        refused = [row["refuse"] for row in rows if row.get("refuse")]
        if refused:
            self.say(refused[0], b'{"error": "a bad row"}', {})
            return
        self.keep(rows)
        if fault.get("killed"):
            os._exit(9)
        if fault.get("lost"):
            self.close_connection = True
            return
        self.say(200, b"{}" if "bytes" not in fault else b"x" * fault["bytes"], {}, half=fault.get("half", False))

    do_PUT = do_PATCH = do_POST

    def do_GET(self) -> None:
        """Answers /pages?page=3 (an array, and a Link to the page behind a full one) and /items?after=3 (a cursor)."""
        self.note(b"")
        fault = self.fault()
        if "status" in fault:
            self.say(fault["status"], fault.get("says", "no").encode(), fault.get("headers", {}))
        elif fault.get("slow"):
            self.trickle()
        elif "gzip" in fault:
            self.say(200, gzip.compress(b"[" + b" " * fault["gzip"]), {"Content-Encoding": "gzip"})
        elif "text" in fault:
            self.say(200, fault["text"].encode(), {"Content-Type": "text/html"})
        elif self.path.startswith("/events"):
            self.events(fault)
        else:
            self.page(half=fault.get("half", False))

    def page(self, *, half: bool) -> None:
        parts = urlsplit(self.path)
        asked = {name: int(value) for name, value in parse_qsl(parts.query) if value.isdigit()}
        first = asked.get("after", asked.get("page", 0) * PAGE)
        with closing(opened(self.folder)) as connection:
            found = connection.execute("SELECT row FROM rows ORDER BY number LIMIT ? OFFSET ?", (PAGE, first))
            rows = [json.loads(row) for (row,) in found]
        headers = {"ETag": f'"{first}-{len(rows)}"', "Content-Type": "application/json"}
        if self.headers.get("If-None-Match") == headers["ETag"]:
            self.say(304, b"", headers)
            return
        answer: Any = rows
        if parts.path == "/items":
            answer = {"data": {"rows": rows}, "cursor": first + len(rows)}
        elif len(rows) == PAGE:
            headers["Link"] = f'</pages?page=0>; rel="first", </pages?page={first // PAGE + 1}>; rel="next"'
        self.say(200, json.dumps(answer).encode(), headers, half=half)

    def events(self, fault: dict[str, Any]) -> None:
        """Sends the rows behind Last-Event-ID as events, and those that come, until the client goes."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if "events" in fault:
            self.wfile.write(fault["events"].encode())
            return
        last = int(self.headers.get("Last-Event-ID") or 0)
        self.wfile.write(b": welcome\nretry: 50\n\n")
        with closing(opened(self.folder)) as connection, suppress(OSError):
            if self.path.endswith("?once"):
                self.once(connection)
                return
            while not self.gone(0.01):
                if fault.get("silent"):
                    continue
                found = connection.execute("SELECT number, row FROM rows WHERE number > ? ORDER BY number", (last,))
                for number, row in found.fetchall():
                    self.wfile.write(f"id: {number}\ndata: {row}\n\n".encode())
                    last = number

    def once(self, connection: sqlite3.Connection) -> None:
        """Sends each row that was put for once, without an id, if this is the last client that has asked for such rows."""
        Handler.last = self
        while not self.gone(0.01) and Handler.last is self:
            rows = connection.execute("SELECT number, row FROM rows WHERE key = 'once' ORDER BY number").fetchall()
            if not rows or self.gone(0):
                continue
            with connection:
                connection.execute("DELETE FROM rows WHERE key = 'once' AND number <= ?", (rows[-1][0],))
            for _, row in rows:
                self.wfile.write(f"data: {row}\n\n".encode())

    def gone(self, seconds: float) -> bool:
        """Waits so long, or until the client has gone."""
        return bool(select.select([self.connection], [], [], seconds)[0])

    def keep(self, rows: list[Any]) -> None:
        key = self.headers.get("Idempotency-Key", "")
        with _lock, closing(opened(self.folder)) as connection, connection:
            known = connection.execute("SELECT 1 FROM rows WHERE key = ?", (key,)).fetchone()
            if not (known and (self.folder / "idempotent").exists()):
                pairs = [(key, json.dumps(row)) for row in rows]
                connection.executemany("INSERT INTO rows (key, row) VALUES (?, ?)", pairs)

    def note(self, body: bytes) -> None:
        """Keeps what was asked, for tests that look at it."""
        if (self.folder / "noted").exists():
            with _lock, open(self.folder / "noted", "a") as file:
                headers = {name.lower(): value for name, value in self.headers.items()}
                print(json.dumps([self.command, self.path, headers, body.decode()]), file=file)

    def fault(self) -> dict[str, Any]:
        path = self.folder / "faults"
        with _lock:
            lines = path.read_text().splitlines() if path.exists() else []
            if not lines:
                return {}
            part = path.with_suffix(".part")
            part.write_text("".join(f"{line}\n" for line in lines[1:]))
            part.replace(path)
        found: dict[str, Any] = json.loads(lines[0])
        return found

    def say(self, status: int, body: bytes, headers: dict[str, str], *, half: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = self.close_connection or half

    def trickle(self) -> None:
        """Sends an answer that never ends."""
        try:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            self.close_connection = True


def opened(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "kept.db", timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, key TEXT, row TEXT)")
    return connection


class WebServer:
    """A server that runs from `start` to `stop`, which kills it. It keeps its port and its folder."""

    def __init__(self, folder: Path, *, idempotent: bool = False, certificate: Path | None = None) -> None:
        from tools.broker import free_ports

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._certificate = [] if certificate is None else [str(certificate)]
        (self.port,) = free_ports(1)
        self.origin = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}"
        self.url = f"{self.origin}/rows"
        self._process: subprocess.Popen[bytes] | None = None
        self.clear(idempotent=idempotent)
        self.start()

    def clear(self, *, idempotent: bool = False) -> None:
        """Forgets rows, faults and notes. `idempotent`: a request whose key is known is not kept again."""
        for name in ("faults", "noted", "idempotent"):
            (self.folder / name).unlink(missing_ok=True)
        if idempotent:
            (self.folder / "idempotent").touch()
        with closing(opened(self.folder)) as connection, connection:
            connection.execute("DELETE FROM rows")

    def start(self) -> None:
        from tools.leftovers import leftovers

        self.wait()
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(self.folder), str(self.port), *self._certificate]
        )
        leftovers().process(self._process.pid)
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5):
                    return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.005)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.wait()

    def wait(self) -> None:
        """Waits until the process has ended."""
        process, self._process = self._process, None
        if process is not None:
            process.wait(60)

    def fail(self, *faults: dict[str, Any]) -> None:
        """Gives these faults to the next requests, one each."""
        (self.folder / "faults").write_text("".join(f"{json.dumps(each)}\n" for each in faults))

    def watch(self) -> None:
        """Notes requests from now on."""
        (self.folder / "noted").write_text("")

    @property
    def requests(self) -> list[list[Any]]:
        """[method, path, headers, body] of each request that was noted."""
        return [json.loads(line) for line in (self.folder / "noted").read_text().splitlines()]

    def put(self, rows: Sequence[Any], key: str = "") -> None:
        """Adds rows, which no request has sent. Those with the key "once" are sent once, at /events?once."""
        with closing(opened(self.folder)) as connection, connection:
            connection.executemany(
                "INSERT INTO rows (key, row) VALUES (?, ?)", [(key, json.dumps(row)) for row in rows]
            )

    def rows(self) -> list[Any]:
        with closing(opened(self.folder)) as connection:
            return [json.loads(row) for (row,) in connection.execute("SELECT row FROM rows ORDER BY number")]

    def keys(self) -> list[str]:
        with closing(opened(self.folder)) as connection:
            return [key for (key,) in connection.execute("SELECT key FROM rows ORDER BY number")]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    opened(Handler.folder).close()
    server = _Server(("127.0.0.1", int(sys.argv[2])), Handler)
    if sys.argv[3:]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3])
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
