"""A sender of webhooks for the tests, in a process of its own, that repeats each request until it is answered with 2xx.

`python web_sender.py FOLDER URL` sends the rows of the SQLite file `outbox.db`, one at a time, each under its number as Webhook-Id. What
was answered is noted in the file afterwards, so a sender that is killed in between sends a row again, as real ones do.
"""

import http.client
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 30.0


def opened(folder: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(folder / "outbox.db", timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, row TEXT, tries INTEGER, sent INTEGER)"
    )
    return connection


class WebSender:
    """A sender that runs from `start` to `stop`, which kills it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        folder.mkdir(parents=True, exist_ok=True)
        opened(folder).close()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        from tools.leftovers import leftovers

        self._process = subprocess.Popen([sys.executable, "-I", __file__, str(self.folder), self.url])
        leftovers().process(self._process.pid)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(60)

    def put(self, rows: Sequence[str]) -> None:
        with closing(opened(self.folder)) as connection, connection:
            connection.executemany("INSERT INTO rows (row, tries, sent) VALUES (?, 0, 0)", [(row,) for row in rows])

    def repeated(self) -> int:
        """How many rows were sent more than once."""
        with closing(opened(self.folder)) as connection:
            return int(connection.execute("SELECT count(*) FROM rows WHERE tries > 1").fetchone()[0])


def send(connection: http.client.HTTPConnection, path: str, number: int, row: str) -> bool:
    try:
        headers = {"Webhook-Id": str(number), "Content-Type": "application/json"}
        connection.request("POST", path, row.encode(), headers)
        answer = connection.getresponse()
        answer.read()
        return 200 <= answer.status < 300
    except (OSError, http.client.HTTPException):
        connection.close()
        return False


def main() -> None:
    address = urlsplit(sys.argv[2])
    assert address.hostname is not None
    to = http.client.HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_SECONDS)
    with closing(opened(Path(sys.argv[1]))) as outbox, suppress(KeyboardInterrupt):
        while True:
            found = outbox.execute("SELECT number, row FROM rows WHERE sent = 0 ORDER BY number LIMIT 1").fetchone()
            if found is None:
                time.sleep(0.005)
                continue
            with outbox:
                outbox.execute("UPDATE rows SET tries = tries + 1 WHERE number = ?", found[:1])
            if send(to, address.path, *found):
                with outbox:
                    outbox.execute("UPDATE rows SET sent = 1 WHERE number = ?", found[:1])
            else:
                time.sleep(0.01)


if __name__ == "__main__":
    main()
