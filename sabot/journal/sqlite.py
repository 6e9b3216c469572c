"""A journal in SQLite: one database, `journal.db`, in a folder of its own, beside the lock of its owner.

With a write-ahead log and `synchronous=FULL`, a commit is one fsync of the log, and is on the disk when it returns. One
thread writes entries, in groups (`writing.GroupWriter`). Readers see the last commit and delay nobody. An inbox writes
its letter in a transaction of its own, so the command line needs no running app, and the database orders two processes
that answer the same question.

The write-ahead log has checksums. If a crash has left a write incomplete, SQLite reads the log up to the first damaged
frame, so the first entries remain, without a gap. `tables` describes the database. `epoch` counts owners: each commit
of entries checks that it has not changed, so an owner whose lock file somebody removed notices it, and writes nothing.
"""

import logging
import os
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sabot.base.claims import FileClaim
from sabot.base.config import checked_path
from sabot.base.disk import own_folder, private, sync
from sabot.base.os_errors import errno_of, hint_of
from sabot.base.quantities import counted_words
from sabot.base.sqlite_files import HELD, is_held
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import AppLocked, CorruptJournal, JournalFailed, SabotError, UserError
from sabot.journal.entry_counts import COUNTED, Connection, begin_to_count
from sabot.journal.history_tables import KEPT, make_history
from sabot.journal.owner_inbox import SqlInbox, SqlJournal
from sabot.journal.tables import (
    HISTORY_TYPES,
    StoredEntry,
    TablesReader,
    add,
    connected,
    explained,
    facts_of,
    make,
    rows_of,
    transaction,
)
from sabot.journal.writing import CAPACITY_BYTES, Appended, GroupWriter
from sabot.steps import step

DATABASE = "journal.db"
_LOCK = "LOCK"
_OF_FILES = {".db", ".db3", ".sqlite", ".sqlite3"}

_log = logging.getLogger(__name__)


def database_of(path: Path | str) -> Path:
    """Returns the path of the database: for the path of the database itself, of its folder, or of a state directory
    with a folder `journal`. Raises UserError if there is none.
    """
    path = Path(checked_path(path, "journal: path"))
    if path.is_file():
        return path
    for found in (path / DATABASE, path / "journal" / DATABASE):
        if found.is_file():
            return found
    raise UserError(f"{path} has no journal", hint=f"give the path of a {DATABASE}, its folder, or a state directory")


class SqliteReader(TablesReader):
    """A reader of the journal at `path`: that of the database, its folder, or a state directory. Raises UserError if
    there is no journal.
    """

    def __init__(self, path: Path | str) -> None:
        database = database_of(path)
        super().__init__(database, f"journal {database}")


class SqliteInbox(SqlInbox):
    """An inbox of the journal at `path`: that of the database, its folder, or a state directory. Raises UserError if
    there is no journal.
    """

    def __init__(self, path: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = database_of(path)
        self._where = f"journal {self._path}"
        self.clock = clock
        self._lock = threading.Lock()
        with explained(self._where):
            self._connection = connected(self._path, "rw")
            try:
                facts_of(self._connection, self._where)
            except BaseException:
                self._connection.close()
                raise

    @contextmanager
    def transaction(self, what: str) -> Iterator[Connection]:
        told = step("journal", f"{self._path}: {what}")
        with explained(self._where), self._lock, told, transaction(self._connection):
            yield self._connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _check_name(folder: Path) -> None:
    """Raises UserError if a new folder has the name of a file, such as journal.db. A folder that exists may keep such a
    name.
    """
    if folder.name == DATABASE or folder.is_file():
        raise UserError(
            f"{folder}: a journal is a folder, and this names a file", hint=f'give its folder: "{folder.parent}"'
        )
    if folder.suffix in _OF_FILES and not (folder / DATABASE).exists():
        raise UserError(
            f"{folder}: a journal is a folder, in which it makes its {DATABASE}, and this is the name of a file",
            hint=f'give a folder: "{folder.with_suffix("")}"',
        )


def _made(folder: Path) -> Path:
    """Returns the path of the database in a folder, and creates a missing database. It is created under another name
    and then renamed, so that no other process ever finds an incomplete one.
    """
    database = folder / DATABASE
    if database.exists():
        return database
    log = folder / f"{DATABASE}-wal"
    if log.exists() and log.stat().st_size:  # SQLite would write the pages of the log into any database of this name
        raise CorruptJournal(
            f"{database} is gone, and its log {log.name} is there",
            hint="bring back a copy of the whole folder; or move the log away, and the journal begins anew: effects may be made again",
        )
    unfinished = folder / f"{DATABASE}.new"
    for left in folder.glob(f"{DATABASE}.new*"):
        left.unlink()
    with step("journal", f"{database}: made"):
        with open(unfinished, "xb", opener=private):  # SQLite gives the log and the index the same mode
            pass
        make(unfinished, uuid.uuid4().hex, secrets.token_bytes(32))
        sync(unfinished)
        unfinished.rename(database)
        sync(folder)
    return database


def _remove(folder: Path) -> None:
    """Removes the journal in a folder. The write-ahead log is removed first, because a log without a database would be
    refused at the next start.
    """
    with explained(f"journal {folder}"), step("journal", f"{folder}: removed"):
        for name in (f"{DATABASE}-wal", f"{DATABASE}-shm", DATABASE):
            (folder / name).unlink(missing_ok=True)
        sync(folder)


class SqliteJournal(SqliteReader, SqlJournal):
    """The owner of the journal in `folder`, which is created if it is missing: with mode 0700, its files with 0600.

    With `anew` an existing journal is removed first. `capacity_bytes` limits the entries that wait for the disk. Raises
    AppLocked if another owner has it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        anew: bool = False,
        capacity_bytes: int = CAPACITY_BYTES,
    ) -> None:
        folder = Path(checked_path(folder, "SqliteJournal: folder"))
        self._has_made_folder = not folder.exists()
        _check_name(folder)
        try:
            own_folder(folder)
            self._claim = FileClaim(
                folder / _LOCK,
                f"process {os.getpid()}",
                lambda holder: AppLocked(
                    f"the journal in {folder} belongs to {holder or 'another process'}", hint="stop that one first"
                ),
            )
            self._claim.take()
        except OSError as error:
            raise UserError(
                f"the journal in {folder} cannot be opened: {error.strerror or error}", hint=hint_of(error)
            ) from error
        try:
            if anew:
                _remove(folder)
            self._open(folder, clock, capacity_bytes)
        except BaseException:
            self._claim.release()
            raise

    def _open(self, folder: Path, clock: Clock, capacity_bytes: int) -> None:
        self._closed = False
        with ExitStack() as opened:
            with explained(f"journal {folder}"):
                self._has_made = not (folder / DATABASE).exists()
                database = _made(folder)
                self._writing = connected(database, "rw")
                opened.callback(self._writing.close)
                facts = facts_of(self._writing, database)
                (mode,) = self._writing.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise UserError(
                        f"the file system of {folder} has no shared memory for a write-ahead log",
                        hint="give a directory on a local disk",
                    )
                with transaction(self._writing):
                    self._epoch = int(facts["epoch"]) + 1
                    self._writing.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch,))
                    if facts["format"] < COUNTED:
                        begin_to_count(self._writing, "INTEGER")
                    if facts["format"] < KEPT:
                        make_history(self._writing, **HISTORY_TYPES)
                        self._writing.execute(f"PRAGMA user_version = {KEPT}")
            super().__init__(database)
            opened.callback(super().close)
            self.check_end()
            self._watching = connected(database, "ro")
            opened.callback(self._watching.close)
            self._seen = 0
            inbox = SqliteInbox(database, clock=clock)
            opened.callback(inbox.close)
            (first,) = TablesReader.positions(self).values()
            self.start(GroupWriter(self.where, 0, first, self._commit, capacity_bytes), inbox, clock)
            opened.pop_all()  # nothing failed: keep everything open

    def close(self) -> None:
        if not self._closed:
            self._shut()
            self._claim.release()

    def _shut(self) -> None:
        """Closes everything, except that the claim is kept."""
        self._closed = True
        self.writer.close()
        self.inbox.close()
        self._watching.close()
        super().close()
        self._writing.close()  # closed last, which moves the log into the database

    def abandon(self) -> None:
        if self._closed:
            return
        unused, folder = self._has_made and self.is_new, self.database.parent
        self._shut()
        try:
            if unused:
                _remove(folder)
            if unused and self._has_made_folder and os.listdir(folder) == [_LOCK]:
                with explained(self.where):
                    (folder / _LOCK).unlink()
                    folder.rmdir()
        finally:
            self._claim.release()

    def may_have_letters(self) -> bool:
        """Returns True if another connection has committed since the last call. SQLite counts commits in memory that
        all processes share, so this reads no file.
        """
        seen = self._seen
        try:
            ((self._seen,),) = self._watching.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:  # the reading of the letters will raise the error
            return True
        return self._seen != seen

    def _commit(self, group: list[Appended]) -> None:
        """Commits a group in one transaction, with one fsync. While another process holds the database, entries wait.
        Called in the writer's thread.
        """
        rows = rows_of(group)
        self.bodies += sum(bool(row.body) for row in rows)
        while not self._committed(rows):
            _log.warning(
                "%s: another process holds it; waiting: %s. %s", self.where, counted_words(len(rows), "entry"), HELD
            )

    def _committed(self, rows: list[StoredEntry]) -> bool:
        """Tries to commit rows. Returns True if they are committed. Returns False, and has changed nothing, if another
        process holds the database; if the journal is being closed, it raises an error in that case.
        """
        try:
            with step("journal", self.database), transaction(self._writing):
                ((epoch,),) = self._writing.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall()
                if epoch != self._epoch:
                    raise JournalFailed(
                        "another owner has taken the journal over", hint="its lock was removed; stop one of the two"
                    )
                add(self._writing, rows)
            return True
        except sqlite3.Error as error:
            if is_held(error) and not self._closed:
                return False
            hint = hint_of(error) if errno_of(error) else ""
            raise SabotError(f"{type(error).__name__}: {error}", hint=hint) from error
