"""A journal in SQLite: one database, `journal.db`, in a folder that is ours alone, beside the lock of its owner.

Write-ahead log, `synchronous=FULL`: a commit is one fsync of the log, and is on the disk when it returns. One thread writes entries, in
groups (`writing.GroupWriter`). Readers see the last commit and hold nobody up. An inbox writes its letter in a transaction of its own, so
the command line needs no running app, and two processes that answer the same question are put in order by the database.

What the tables are: `entries`, the journal; `bodies`, the long ones by hash, with `uses` that say which entry names which. `jobs`,
`questions` and `inbox` are indexes of the entries, kept in the same transactions, so that a token can be judged where no owner is.

The log has checksums: what a torn write leaves of it is dropped from the first bad frame on, so a prefix is read. Pages of the database
have none, so each entry has its own. `epoch` counts owners: each commit of entries looks whether it is still ours, so an owner whose lock
file somebody removed is told and writes nothing.
"""

import os
import secrets
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.disk import lock, own_folder, private, sync
from sabot.errors import CorruptJournal, JobLocked, JournalFailed, JournalFull, LetterRefused, SabotError, UserError
from sabot.faults import fault_of, hint_of
from sabot.journal.base import Inbox, JobMark, Journal, JournalReader, Position, Question, check_letter, entry_of_letter
from sabot.journal.entries import (
    Answer,
    Begin,
    Body,
    End,
    Entry,
    Intent,
    Letter,
    StoredBody,
    body_of,
    decode_entry,
    decode_letter,
    encode_entry,
    encode_letter,
    hash_of,
    with_stored_body,
)
from sabot.journal.writing import CAPACITY_BYTES, Appended, GroupWriter
from sabot.steps import step

__all__ = ["DATABASE", "SqliteInbox", "SqliteJournal", "SqliteReader"]

DATABASE = "journal.db"

_APPLICATION = 0x5AB07  # SQLite's application_id: which program a database belongs to
_FORMAT = 1
_WAIT_SECONDS = 30.0  # for others that write the same database: inboxes, a trim
_LOG_BYTES = 64 << 20  # that the write-ahead log keeps on the disk when it begins anew
_CHUNK = 1000  # rows read, jobs trimmed in one transaction
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE entries (place INTEGER PRIMARY KEY, job TEXT NOT NULL, sum INTEGER NOT NULL, entry BLOB NOT NULL);
CREATE INDEX entries_of_job ON entries (job);
CREATE TABLE bodies (hash BLOB PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE uses (place INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE INDEX uses_of_hash ON uses (hash);
CREATE TABLE jobs (job TEXT PRIMARY KEY, began INTEGER NOT NULL, digest BLOB NOT NULL, ended INTEGER, outcome TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '', ended_ms INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX ended_jobs ON jobs (ended) WHERE ended IS NOT NULL;
CREATE TABLE questions (token TEXT PRIMARY KEY, job TEXT NOT NULL, ordinal INTEGER NOT NULL, due_ms INTEGER NOT NULL,
    closed TEXT NOT NULL DEFAULT '') WITHOUT ROWID;
CREATE INDEX questions_of_job ON questions (job);
CREATE TABLE inbox (number INTEGER PRIMARY KEY AUTOINCREMENT, once TEXT NOT NULL UNIQUE, job TEXT NOT NULL, letter BLOB NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0);
CREATE INDEX inbox_of_job ON inbox (job);
"""

_ENTRY = "INSERT INTO entries (place, job, sum, entry) VALUES (?, ?, ?, ?)"
_BODY = "INSERT OR IGNORE INTO bodies (hash, body) VALUES (?, ?)"
_USE = "INSERT INTO uses (place, hash) VALUES (?, ?)"
_BEGIN = (
    "INSERT INTO jobs (job, began, digest) VALUES (?, ?, ?) ON CONFLICT (job) DO UPDATE SET "
    "began = excluded.began, digest = excluded.digest, ended = NULL, outcome = '', result = '', ended_ms = 0"
)
_END = (
    "INSERT INTO jobs (job, began, digest, ended, outcome, result, ended_ms) VALUES (?1, ?2, x'', ?2, ?3, ?4, ?5) "
    "ON CONFLICT (job) DO UPDATE SET ended = excluded.ended, outcome = excluded.outcome, result = excluded.result, "
    "ended_ms = excluded.ended_ms"
)
_LEAVE = "UPDATE questions SET closed = ? WHERE job = ? AND closed = ''"
_ASK = "INSERT OR REPLACE INTO questions (token, job, ordinal, due_ms) VALUES (?, ?, ?, ?)"
_CLOSE = "UPDATE questions SET closed = ? WHERE token = ?"
_HAS_ENTRIES = "EXISTS (SELECT 1 FROM entries WHERE entries.job = jobs.job)"
_ENDED = (  # before a place, ?1
    "SELECT job FROM jobs WHERE ended < ?1 "
    "AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.job = jobs.job AND place >= ?1)"
)
_OF_JOB = "place IN (SELECT place FROM entries WHERE job = ?)"
_UNUSED = "DELETE FROM bodies WHERE hash = ?1 AND NOT EXISTS (SELECT 1 FROM uses WHERE hash = ?1)"
_KEEP_PLACE = (  # where the next entry stands must not begin again when the last one goes
    "UPDATE meta SET value = max(value, (SELECT coalesce(max(place) + 1, 0) FROM entries)) WHERE name = 'trimmed'"
)
_TAKEN = "UPDATE inbox SET taken = 1, letter = x'' WHERE number = ?"


def database_of(path: Path | str) -> Path:
    """The database that is meant: by its own path, by its folder, or by a state directory that has the folder `journal`."""
    path = Path(path)
    if path.is_file():
        return path
    for found in (path / DATABASE, path / "journal" / DATABASE):
        if found.is_file():
            return found
    raise UserError(f"{path} has no journal", hint=f"give the path of a {DATABASE}, its folder, or a state directory")


@contextmanager
def _explained(where: object) -> Iterator[None]:
    """SQLite's errors as ours: damage, or what stands in the way."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGE or (isinstance(error, sqlite3.OperationalError) and "no such table" in str(error)):
            raise CorruptJournal(
                f"{where} is damaged, or no journal: {error}",
                hint="go back to a copy of its whole folder; keep what is there",
            ) from error
        raise UserError(f"{where}: {error}", hint=hint_of(error)) from error
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}", hint=hint_of(error)) from error


def _connected(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(os.fspath(path))}?mode={mode}",
        uri=True,
        timeout=_WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def _facts(connection: sqlite3.Connection, where: object) -> dict[str, Any]:
    """What `meta` says, of a database that is a journal of a format that we know. Raises UserError, CorruptJournal."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise CorruptJournal(f"{where} is a database, and no journal of Sabot", hint="give another directory")
    if form != _FORMAT:
        raise UserError(
            f"{where} has format {form}, and this Sabot knows {_FORMAT}",
            hint="a newer Sabot has written it: start with that one",
        )
    facts = dict(connection.execute("SELECT name, value FROM meta"))
    if not {"identity", "key", "epoch"} <= facts.keys():
        raise CorruptJournal(f"{where} has lost its identity")
    return facts


def _sum(place: int, job: str, data: bytes) -> int:
    """Of an entry and of where it stands."""
    return zlib.crc32(data, zlib.crc32(f"{place}\0{job}".encode()))


class SqliteReader(JournalReader):
    """Reads the journal at `path`: of the database, its folder, or a state directory. Raises UserError where there is none."""

    def __init__(self, path: Path | str) -> None:
        self._path = database_of(path)
        self.where = f"journal {self._path}"
        self._lock = threading.Lock()
        with _explained(self.where):
            self._reading = _connected(self._path, "ro")
            try:
                facts = _facts(self._reading, self.where)
            except BaseException:
                self._reading.close()
                raise
        self.identity: str = facts["identity"]
        self.key: bytes = facts["key"]

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with _explained(self.where), self._lock:
            return self._reading.execute(statement, values).fetchall()

    def positions(self) -> dict[int, int]:
        ((last, trimmed),) = self._all(
            "SELECT (SELECT max(place) FROM entries), (SELECT value FROM meta WHERE name = 'trimmed')"
        )
        return {0: max(-1 if last is None else last + 1, trimmed or 0, 0)}

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        first = (start or {}).get(0, 0)
        chosen, values = ("", ()) if job is None else ("AND job = ? ", (job,))
        while True:  # in chunks: a long look would keep the log from beginning anew
            rows = self._all(
                f"SELECT place, job, sum, entry FROM entries WHERE place >= ? {chosen}ORDER BY place LIMIT {_CHUNK}",
                (first, *values),
            )
            for place, named, checksum, data in rows:
                if not isinstance(data, bytes) or _sum(place, named, data) != checksum:
                    raise CorruptJournal(f"{self.where}: entry {place} is damaged", hint="go back to a copy of it")
                yield Position(0, place), decode_entry(data, self.where)
            if len(rows) < _CHUNK:
                return
            first = rows[-1][0] + 1

    def load(self, body: Body) -> bytes:
        if isinstance(body, bytes):
            return body
        rows = self._all("SELECT body FROM bodies WHERE hash = ?", (body.hash,))
        if not rows or hash_of(rows[0][0]) != body.hash:
            raise CorruptJournal(f"{self.where}: body {body.hash.hex()} is missing or damaged")
        return bytes(rows[0][0])

    def job(self, job: str) -> JobMark | None:
        return _mark(self._all(f"{_MARK} WHERE job = ?", (job,)))

    def question(self, token: str) -> Question | None:
        return _question(self._all(f"{_QUESTION} WHERE token = ?", (token,)))

    def letters(self) -> list[Letter]:
        rows = self._all("SELECT letter FROM inbox WHERE taken = 0 ORDER BY number")
        return [decode_letter(data, self.where) for (data,) in rows]

    def close(self) -> None:
        with self._lock:
            self._reading.close()


_MARK = "SELECT job, began, digest, outcome, result, ended_ms FROM jobs"
_QUESTION = "SELECT job, ordinal, due_ms, closed FROM questions"


def _mark(rows: list[tuple[Any, ...]]) -> JobMark | None:
    for job, began, *rest in rows:
        return JobMark(job, Position(0, began), *rest)
    return None


def _question(rows: list[tuple[Any, ...]]) -> Question | None:
    return Question(*rows[0]) if rows else None


class SqliteInbox(Inbox):
    """Posts into the journal at `path`: of the database, its folder, or a state directory. Raises UserError where there is none."""

    def __init__(self, path: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = database_of(path)
        self._where = f"journal {self._path}"
        self._clock = clock
        self._lock = threading.Lock()
        with _explained(self._where):
            self._connection = _connected(self._path, "rw")
            try:
                _facts(self._connection, self._where)
            except BaseException:
                self._connection.close()
                raise

    def post(self, letter: Letter) -> None:
        told = step("journal", f"{self._path}: letter")
        with _explained(self._where), self._lock, told, _transaction(self._connection):
            now_ms = round(self._clock.time() * 1000)
            run = self._connection.execute
            question = _question(run(f"{_QUESTION} WHERE token = ?", (letter.token,)).fetchall())
            mark = _mark(run(f"{_MARK} WHERE job = ?", (letter.job,)).fetchall())
            earlier = bool(run("SELECT 1 FROM inbox WHERE once = ?", (letter.once,)).fetchall())
            job = check_letter(letter, question, mark, earlier, now_ms)
            run("INSERT INTO inbox (once, job, letter) VALUES (?, ?, ?)", (letter.once, job, encode_letter(letter)))

    def trim(self, jobs: Sequence[str], before: int) -> int:
        """Removes the entries, questions and letters of those of these jobs that had ended before this place, in one transaction. Returns
        how many entries. It asks again whether they had: a job may have begun again since it was chosen.
        """
        removed = 0
        told = step("journal", f"{self._path}: trim")
        with _explained(self._where), self._lock, told, _transaction(self._connection):
            run = self._connection.execute
            run(_KEEP_PLACE)
            for job in jobs:
                if not run(f"{_ENDED} AND job = ?2", (before, job)).fetchall():
                    continue
                bodies = run(f"SELECT DISTINCT hash FROM uses WHERE {_OF_JOB}", (job,)).fetchall()
                run(f"DELETE FROM uses WHERE {_OF_JOB}", (job,))
                self._connection.executemany(_UNUSED, bodies)
                removed += run("DELETE FROM entries WHERE job = ?", (job,)).rowcount
                run("DELETE FROM questions WHERE job = ?", (job,))
                run("DELETE FROM inbox WHERE job = ?", (job,))
        return removed

    def forget(self, before_ms: int) -> None:
        """The marks of jobs that had ended then, and have no entries any more, go too."""
        with _explained(self._where), self._lock, _transaction(self._connection):
            self._connection.execute(
                f"DELETE FROM jobs WHERE ended IS NOT NULL AND ended_ms < ? AND NOT {_HAS_ENTRIES}", (before_ms,)
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # the error that is on its way says more
                connection.execute("ROLLBACK")
        raise


def _made(folder: Path) -> Path:
    """The database of a journal, made where it is missing: under another name first, so that no half of one is ever found."""
    database = folder / DATABASE
    if database.exists():
        return database
    log = folder / f"{DATABASE}-wal"
    if log.exists() and log.stat().st_size:  # SQLite would write its pages into whatever database has this name
        raise CorruptJournal(
            f"{database} is gone, and its log {log.name} is there",
            hint="bring back a copy of the whole folder; or move the log away, and the journal begins anew: effects may be made again",
        )
    unfinished = folder / f"{DATABASE}.new"
    for left in folder.glob(f"{DATABASE}.new*"):
        left.unlink()
    with step("journal", f"{database}: made"):
        with open(unfinished, "xb", opener=private):  # its log and index get the same mode
            pass
        connection = _connected(unfinished, "rw")
        try:
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            facts = {"identity": uuid.uuid4().hex, "key": secrets.token_bytes(32), "epoch": 0, "trimmed": 0}
            connection.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", facts.items())
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_FORMAT}")
        finally:
            connection.close()
        sync(unfinished)
        unfinished.rename(database)
        sync(folder)
    return database


class SqliteJournal(SqliteReader, Journal):
    """The owner of the journal in `folder`, which is made where it is missing: 0700, its files 0600.

    capacity_bytes: of entries that wait for the disk. Raises JobLocked where another owner has it.
    """

    def __init__(
        self, folder: Path | str, *, clock: Clock = SYSTEM_CLOCK, capacity_bytes: int = CAPACITY_BYTES
    ) -> None:
        folder = Path(folder)
        try:
            own_folder(folder)
            self._claim = lock(
                folder / "LOCK",
                f"process {os.getpid()}",
                lambda holder: JobLocked(
                    f"the journal in {folder} belongs to {holder or 'another process'}", hint="stop that one first"
                ),
            )
        except OSError as error:
            raise UserError(
                f"the journal in {folder} cannot be opened: {error.strerror or error}", hint=hint_of(error)
            ) from error
        try:
            self._open(folder, clock, capacity_bytes)
        except BaseException:
            self._claim.close()
            raise

    def _open(self, folder: Path, clock: Clock, capacity_bytes: int) -> None:
        self.clock = clock
        with ExitStack() as opened:
            with _explained(f"journal {folder}"):
                database = _made(folder)
                self._writing = _connected(database, "rw")
                opened.callback(self._writing.close)
                facts = _facts(self._writing, database)
                (mode,) = self._writing.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise UserError(
                        f"the file system of {folder} has no shared memory for a write-ahead log",
                        hint="give a directory on a local disk",
                    )
                with _transaction(self._writing):
                    self._epoch = int(facts["epoch"]) + 1
                    self._writing.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch,))
            super().__init__(database)
            opened.callback(super().close)
            self._inbox = SqliteInbox(database, clock=clock)
            opened.callback(self._inbox.close)
            self._writer = GroupWriter(self.where, 0, SqliteReader.positions(self)[0], self._commit, capacity_bytes)
            opened.pop_all()  # all is open, and stays so
        self._last_letter = 0
        self._letters = self._refused = self._bodies = 0
        self._closed = False

    def append(self, entry: Entry) -> Position:
        return self._writer.append(entry)

    async def room(self) -> None:
        await self._writer.room()

    async def durable(self, position: Position) -> None:
        await self._writer.durable(position.offset)

    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        return self._writer.wait_durable(position.offset, timeout)

    async def flush(self) -> dict[int, int]:
        last = self._writer.next_offset
        await self._writer.durable(last - 1)
        return {0: last}

    def positions(self) -> dict[int, int]:
        return {0: self._writer.durable_offset}

    def post(self, letter: Letter) -> None:
        try:
            self._inbox.post(letter)
        except LetterRefused:
            self._refused += 1
            raise

    def take(self) -> list[tuple[Position, Entry]]:
        taken: list[tuple[Position, Entry]] = []
        rows = self._all(
            "SELECT number, letter FROM inbox WHERE taken = 0 AND number > ? ORDER BY number", (self._last_letter,)
        )
        for number, data in rows:
            letter = decode_letter(data, self.where)
            at_ms = round(self.clock.time() * 1000)
            entry = entry_of_letter(letter, self.question(letter.token), at_ms)
            try:
                taken.append((self._writer.append(entry, number), entry))
            except JournalFull:
                break  # the rest is taken when there is room
            self._last_letter = number
        self._letters += len(taken)
        return taken

    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0) -> int:
        removed, place = 0, before.get(0, 0)
        while True:
            jobs = self._all(f"{_ENDED} AND {_HAS_ENTRIES} LIMIT {_CHUNK}", (place,))
            removed += self._inbox.trim([job for (job,) in jobs], place) if jobs else 0
            if len(jobs) < _CHUNK:
                break
        if forget_before_ms:
            self._inbox.forget(forget_before_ms)
        return removed

    def statistics(self) -> dict[str, Any]:
        return {
            **self._writer.statistics(),
            "bodies": self._bodies,
            "letters": self._letters,
            "refused": self._refused,
        }

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self._inbox.close()
        super().close()
        self._writing.close()  # the last one: it moves the log into the database
        self._claim.close()

    def _commit(self, group: list[Appended]) -> None:
        """In the writer's thread: one transaction, one fsync."""
        entries: list[tuple[int, str, int, bytes]] = []
        indexes: list[tuple[str, tuple[Any, ...]]] = []
        for each in group:
            entry, data, body = each.entry, each.data, b""
            if not data:
                entry, body = with_stored_body(entry)
                data = encode_entry(entry)
                self._bodies += 1
            named = body_of(entry)
            if isinstance(named, StoredBody):
                indexes += [(_BODY, (named.hash, body))] if body else []
                indexes.append((_USE, (each.offset, named.hash)))
            entries.append((each.offset, entry.job, _sum(each.offset, entry.job, data), data))
            indexes += _indexed(each.offset, entry)
            if each.letter:
                indexes.append((_TAKEN, (each.letter,)))
        try:
            with step("journal", self._path), _transaction(self._writing):
                ((epoch,),) = self._writing.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall()
                if epoch != self._epoch:
                    raise JournalFailed(
                        "another owner has taken the journal over", hint="its lock was removed; stop one of the two"
                    )
                self._writing.executemany(_ENTRY, entries)
                for statement, values in indexes:
                    self._writing.execute(statement, values)
        except sqlite3.Error as error:
            hint = hint_of(error) if fault_of(error) else ""
            raise SabotError(f"{type(error).__name__}: {error}", hint=hint) from error


def _indexed(offset: int, entry: Entry) -> list[tuple[str, tuple[Any, ...]]]:
    """The statements that keep `jobs` and `questions` in step with an entry."""
    if isinstance(entry, Begin):
        return [(_BEGIN, (entry.job, offset, entry.digest))]
    if isinstance(entry, End):
        return [
            (_END, (entry.job, offset, entry.outcome, entry.result, entry.at_ms)),
            (_LEAVE, (f"the job has ended: {entry.outcome}", entry.job)),
        ]
    if isinstance(entry, Intent) and entry.token:
        return [(_ASK, (entry.token, entry.job, entry.ordinal, entry.due_ms))]
    if isinstance(entry, Answer):
        return [(_CLOSE, (entry.outcome, entry.token))]
    return []
