"""The spool of a receiver: what has arrived, on the disk of this machine, until a checkpoint covers it.

It is a SQLite file with a write-ahead log. One thread writes: it takes all that waits for it, commits it in one transaction with one fsync,
and only then tells of each. While it does, what arrives next waits for the next transaction, so a busy spool has fewer fsyncs, not longer
waits. Readers see what is committed.
"""

import logging
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sabot.base.claims import FileClaim
from sabot.base.sqlite_files import error_of, open_database
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import Headers
from sabot.errors import AppLocked, UserError
from sabot.steps import step

__all__ = ["Arrival", "Spool", "SpoolRow", "Stored"]

_log = logging.getLogger(__name__)

_FORMAT = 1  # in user_version
WAIT_SECONDS = 10.0
_AT_ONCE_BYTES = 8 << 20  # of a transaction
_ROW_BYTES = 100  # of a row, beside what came
_READ_BYTES = 16 << 20
_FORGET_SECONDS = 60.0  # between two looks for old keys
_JOIN_SECONDS = 30.0
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE rows (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, key BLOB, headers BLOB NOT NULL, payload BLOB NOT NULL);
CREATE TABLE keys (digest BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_by_time ON keys (at);
"""


class Stored(Enum):
    """The fate of an arrival. NEW: it is a row, on the disk. KNOWN: its key was there, so that row is on the disk. FULL: there is no
    room. FAILED: the disk did not take it.
    """

    NEW = "new"
    KNOWN = "known"
    FULL = "full"
    FAILED = "failed"


class Arrival(NamedTuple):
    """A request that has arrived. `key`: by which it is known again, or None. `at_ms`: when. `told`: called by the thread that writes."""

    payload: bytes
    key: bytes | None
    headers: Headers
    at_ms: int
    told: Callable[[Stored], object]

    @property
    def size(self) -> int:
        return len(self.payload) + len(self.key or b"") + sum(len(n) + len(v) for n, v in self.headers) + _ROW_BYTES


class SpoolRow(NamedTuple):
    """A row, in the order of the columns of its table."""

    number: int
    at_ms: int
    key: bytes | None
    headers: Headers
    payload: bytes


class Spool:
    """The spool in a file. `most_bytes`: the size of the rows that it keeps. `keys_s`: for how long it knows a key again.

    `first`: the number of the first row that is kept; those before it were trimmed. `end`: the number of the next row. `bytes`: the size
    of the rows. All are what is on the disk.
    """

    def __init__(self, path: Path, most_bytes: int, keys_s: float) -> None:
        self.path = path
        self._most_bytes, self._keys_s = most_bytes, keys_s
        self._claim = FileClaim(path.with_name(f"{path.name}.lock"), "", self._held)
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Condition()  # of what follows
        self._waiting: deque[Arrival] = deque()
        self._trim_to = 0
        self._ends = False
        self.id = ""
        self.first = self.end = self.bytes = 0
        self.waiting_bytes = 0
        self._epoch = self._forget_at = 0.0  # of the time by which keys are old
        self._unknown = False  # what the last transaction has done
        self._taken: list[Arrival] = []  # by the thread that writes, and not told yet

    # -- open and close -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Takes the file, which it makes if it is missing, and starts the thread. Raises AppLocked if another process has it, UserError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._claim.take()
            self._writing = open_database(self.path, wait_s=WAIT_SECONDS, write_ahead=True, synchronous="FULL")
            self._make(self._writing)
            self._reading = open_database(self.path, wait_s=WAIT_SECONDS, mode="rw")
            self._load(self._writing)
        except OSError as error:
            self.close()
            raise UserError(
                f"spool {self.path}: {error.strerror or error}", hint="give a file in a folder of the app"
            ) from error
        except sqlite3.Error as error:
            self.close()
            raise error_of(error, f"spool {self.path}", wait_s=WAIT_SECONDS) from error
        except BaseException:
            self.close()
            raise
        self._ends = False
        self._thread = threading.Thread(
            target=self._run, args=(self._writing,), name=f"spool {self.path.name}", daemon=True
        )
        self._thread.start()

    def _held(self, holder: str) -> AppLocked:
        return AppLocked(f"spool {self.path}: another process receives into it", hint="stop it, or give another file")

    def _make(self, connection: sqlite3.Connection) -> None:
        ((version,),) = connection.execute("PRAGMA user_version")
        if version == _FORMAT:
            return
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        if version or tables:
            raise UserError(
                f"spool {self.path}: it is another file, or of another version of Sabot", hint="give another path"
            )
        facts = [("id", uuid.uuid4().hex), ("first", 0), ("end", 0)]
        connection.execute("BEGIN IMMEDIATE")
        for statement in _TABLES.split(";\n"):
            connection.execute(statement)
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts)
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
        connection.execute("COMMIT")

    def _load(self, connection: sqlite3.Connection) -> None:
        self._look(connection)
        ((newest,),) = connection.execute("SELECT max(at) FROM keys")
        # A clock that is set forward must not make keys old, nor one that is set back keep them for ever: the time goes on from here by
        # a clock that nobody sets.
        self._epoch = max(SYSTEM_CLOCK.time(), newest or 0.0) - SYSTEM_CLOCK.monotonic()
        self._forget_at = 0.0
        self._trim_to = self.first

    def _look(self, connection: sqlite3.Connection) -> None:
        """Reads what the disk has: at the start, and after a transaction of which nobody knows whether it is there."""
        facts = dict(connection.execute("SELECT name, value FROM facts"))
        size = _bytes_of(connection, int(facts["end"]))
        with self._lock:
            self.id, self.first, self.end, self.bytes = str(facts["id"]), int(facts["first"]), int(facts["end"]), size
            self._unknown = False
            self._lock.notify_all()

    @staticmethod
    def id_of(path: Path) -> str:
        """Returns the id of the spool in a file, or "" if there is none. Raises UserError."""
        if not path.exists():
            return ""
        try:
            with closing(open_database(path, wait_s=WAIT_SECONDS, mode="ro")) as connection:
                found = connection.execute("SELECT value FROM facts WHERE name = 'id'").fetchone()
        except sqlite3.Error as error:
            raise error_of(error, f"spool {path}", wait_s=WAIT_SECONDS, hint="give another path") from error
        return str(found[0]) if found else ""

    def close(self) -> None:
        """Writes what waits, and releases all."""
        with self._lock:
            self._ends = True
            self._lock.notify_all()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_SECONDS)
        for each in (self._writing, self._reading):
            if each is not None:
                each.close()
        self._writing = self._reading = None
        self._claim.release()

    # -- any thread ---------------------------------------------------------------------------------------------------

    def put(self, arrival: Arrival) -> None:
        """Gives an arrival to the thread that writes. Never blocks. `told` is called when it is on the disk, or will not be."""
        with self._lock:
            if not self._ends:
                self._waiting.append(arrival)
                self.waiting_bytes += arrival.size
                self._lock.notify_all()
                return
        arrival.told(Stored.FAILED)

    def trim(self, number: int) -> None:
        """Lets the rows before this number be removed. Never blocks."""
        with self._lock:
            if number > self._trim_to:
                self._trim_to = number
                self._lock.notify_all()

    # -- the reader's thread ------------------------------------------------------------------------------------------

    def take(self, number: int, most: int, seconds: float) -> list[SpoolRow]:
        """Returns the rows from this number on, at most so many; [] if there are none for some seconds."""
        with self._lock:
            self._lock.wait_for(lambda: self.end > number or self._ends, max(0.0, seconds))
            if self.end <= number or self._reading is None:
                return []
        rows: list[SpoolRow] = []
        size = 0
        for at, ms, key, headers, payload in self._reading.execute(
            "SELECT number, at, key, headers, payload FROM rows WHERE number >= ? ORDER BY number LIMIT ?",
            (number, most),
        ):
            rows.append(SpoolRow(at, ms, key, msgspec.msgpack.decode(headers, type=Headers), payload))
            size += len(payload)
            if size >= _READ_BYTES:
                break
        return rows

    # -- the thread that writes ---------------------------------------------------------------------------------------

    def _run(self, connection: sqlite3.Connection) -> None:
        try:
            self._serve(connection)
        finally:  # nobody waits for a thread that has ended
            with self._lock:
                self._ends = True
                left = [*self._taken, *self._waiting]
                self._waiting.clear()
                self._lock.notify_all()
            for each in left:
                each.told(Stored.FAILED)

    def _serve(self, connection: sqlite3.Connection) -> None:
        failed = False
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._waiting or self._ends or self._trim_to > self.first)
                taken = self._taken = []
                size = 0
                while self._waiting and size < _AT_ONCE_BYTES:
                    taken.append(self._waiting.popleft())
                    size += taken[-1].size
                trim_to = min(self._trim_to, self.end)
                self._trim_to = self.first  # asked for again by the next checkpoint, if this one fails
                if not taken and self._ends:
                    return
            try:
                outcomes = self._write(connection, taken, trim_to)
                if failed:
                    _log.info("spool %s takes what arrives again", self.path)
                failed = False
            except sqlite3.Error as error:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                if not failed:
                    _log.warning("spool %s cannot be written, and takes nothing until it can: %s", self.path, error)
                failed = self._unknown = True
                outcomes = [Stored.FAILED] * len(taken)
            with self._lock:
                self.waiting_bytes -= size
                self._lock.notify_all()
            self._taken = []
            for each, outcome in zip(taken, outcomes, strict=True):
                each.told(outcome)

    def _write(self, connection: sqlite3.Connection, taken: Sequence[Arrival], trim_to: int) -> list[Stored]:
        if self._unknown:
            self._look(connection)
        now = self._epoch + SYSTEM_CLOCK.monotonic()
        outcomes: list[Stored] = []
        rows: list[tuple[Any, ...]] = []
        end, size = self.end, self.bytes
        with step("spool", str(self.path)):
            connection.execute("BEGIN IMMEDIATE")
            for each in taken:
                digest = None if each.key is None else blake2b(each.key, digest_size=16).digest()
                if (
                    digest is not None
                    and connection.execute("SELECT 1 FROM keys WHERE digest = ?", (digest,)).fetchone()
                ):
                    outcomes.append(Stored.KNOWN)
                    continue
                headers = msgspec.msgpack.encode(each.headers)
                added = len(each.payload) + len(each.key or b"") + len(headers) + _ROW_BYTES
                if size + added > self._most_bytes:
                    outcomes.append(Stored.FULL)
                    continue
                if digest is not None:
                    connection.execute("INSERT INTO keys VALUES (?, ?)", (digest, now))
                rows.append((end, each.at_ms, each.key, headers, each.payload))
                end, size = end + 1, size + added
                outcomes.append(Stored.NEW)
            connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", rows)
            first = max(self.first, trim_to)
            if first > self.first:
                size -= _bytes_of(connection, first)
                connection.execute("DELETE FROM rows WHERE number < ?", (first,))
            if now >= self._forget_at:
                connection.execute("DELETE FROM keys WHERE at < ?", (now - self._keys_s,))
                self._forget_at = now + _FORGET_SECONDS
            connection.executemany("UPDATE facts SET value = ? WHERE name = ?", [(first, "first"), (end, "end")])
            connection.execute("COMMIT")
        with self._lock:
            self.first, self.end, self.bytes = first, end, size
            self._lock.notify_all()
        return outcomes


def _bytes_of(connection: sqlite3.Connection, before: int) -> int:
    """Returns the size of the rows before a number."""
    ((found,),) = connection.execute(
        "SELECT coalesce(sum(length(payload) + coalesce(length(key), 0) + length(headers) + ?), 0) FROM rows WHERE number < ?",
        (_ROW_BYTES, before),
    )
    return int(found)
