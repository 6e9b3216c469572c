"""A websocket server for the tests, in a process of its own, that sends each row once: to who is connected when its turn comes.

`python web_feed.py FOLDER PORT` sends the rows of the SQLite file `feed.db`. A row is noted as sent before it is, so one that is on its way
when somebody is killed never comes again. The first message of a connection is {"n": -N, "key": 0}, if N rows were sent before it.
"""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

_START_SECONDS = 60.0
_LOOK_SECONDS = 0.005
_AT_ONCE = 50


def opened(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "feed.db", timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, row TEXT, sent INTEGER)")
    return connection


class WebFeed:
    """A server that runs from `start` to `stop`, which kills it. It keeps its port and its folder."""

    def __init__(self, folder: Path) -> None:
        from tools.broker import free_ports

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        opened(folder).close()
        (self.port,) = free_ports(1)
        self.url = f"ws://127.0.0.1:{self.port}/feed"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        from tools.leftovers import leftovers

        self._process = subprocess.Popen([sys.executable, "-I", __file__, str(self.folder), str(self.port)])
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
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def put(self, rows: Sequence[str]) -> None:
        with closing(opened(self.folder)) as connection, connection:
            connection.executemany("INSERT INTO rows (row, sent) VALUES (?, 0)", [(row,) for row in rows])


def main() -> None:
    folder = Path(sys.argv[1])
    turn = threading.Lock()  # an earlier connection may not have ended yet

    def send(connection: ServerConnection) -> None:
        with turn, closing(opened(folder)) as rows, suppress(ConnectionClosed):
            ((sent,),) = rows.execute("SELECT count(*) FROM rows WHERE sent = 1")
            if sent:
                connection.send(json.dumps({"n": -sent, "key": 0}))
            while True:
                found = rows.execute(
                    "SELECT number, row FROM rows WHERE sent = 0 ORDER BY number LIMIT ?", (_AT_ONCE,)
                ).fetchall()
                if found:
                    with rows:
                        rows.execute("UPDATE rows SET sent = 1 WHERE number <= ?", (found[-1][0],))
                for _, row in found:
                    connection.send(row)
                if not found:
                    with suppress(TimeoutError):  # until the next look, or the end of the connection
                        connection.recv(timeout=_LOOK_SECONDS)

    with serve(send, "127.0.0.1", int(sys.argv[2])) as server, suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
