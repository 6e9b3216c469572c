"""A journal in SQLite: one database, `journal.db`, in a folder of its own. The lock of its owner is in the same folder.

With a write-ahead log and `synchronous=FULL`, a commit is one fsync of that log, and is on the disk when it returns.
One thread writes entries, in groups (`writing.GroupWriter`). Readers see the last commit and delay nobody. An inbox
writes a letter in a transaction of its own, so the command line can post letters while no app runs. If two processes
answer the same question, the database decides which answer is the first.

The write-ahead log has checksums. If a crash has left a write incomplete, SQLite reads the log up to the first damaged
frame. So the entries before that frame remain, without a gap. `tables` describes the tables. The value `epoch` in the
table `meta` counts the owners. Each commit of entries checks that `epoch` has not changed. So if somebody removes the
lock file of an owner and another owner begins, the first one notices it and writes nothing.
"""

import glob
import logging
import os
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sabot.base.claims import FileClaim
from sabot.base.config import checked_path
from sabot.base.disk import own_folder, private, sync
from sabot.base.options import answers_wrong_options
from sabot.base.os_errors import errno_of, hint_of
from sabot.base.quantities import counted_words
from sabot.base.sqlite_files import HELD, is_held
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import AppLocked, CorruptJournal, JournalFailed, NoJournal, SabotError, UserError
from sabot.journal.entry_counts import Connection
from sabot.journal.history_tables import SESSIONS
from sabot.journal.job_tables import index_jobs
from sabot.journal.owner_inbox import SqlInbox, SqlJournal
from sabot.journal.tables import (
    HISTORY_TYPES,
    StoredEntry,
    TablesReader,
    add,
    bring_up_to_date,
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
_COPY = f"{DATABASE}.format-"  # and the number of the format
_LOCK = "LOCK"
_OF_FILES = {".db", ".db3", ".sqlite", ".sqlite3"}

_log = logging.getLogger(__name__)


def database_of(path: Path | str) -> Path:
    """Returns the path of the database `journal.db`. `path` may be the path of the database, of its folder, or of a
    state directory that has the folder `journal`. Raises UserError if there is no database.
    """
    path = Path(checked_path(path, "journal: path"))
    if path.is_file():
        return path
    for found in (path / DATABASE, path / "journal" / DATABASE):
        if found.is_file():
            return found
    raise NoJournal(f"{path} has no journal", hint=f"give the path of a {DATABASE}, its folder, or a state directory")


class SqliteReader(TablesReader):
    """A reader of the journal at `path`, which is the path of the database, of its folder, or of a state directory.
    Raises UserError if there is no journal.
    """

    def __init__(self, path: Path | str) -> None:
        database = database_of(path)
        super().__init__(database, f"journal {database}")


@answers_wrong_options
class SqliteInbox(SqlInbox):
    """An inbox of the journal at `path`, which is the path of the database, of its folder, or of a state directory.
    Raises UserError if there is no journal.
    """

    def __init__(self, path: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = database_of(path)
        self._where = f"journal {self._path}"
        self.clock = clock
        self._lock = threading.Lock()
        with explained(self._where):
            self._connection = connected(self._path, "rw")
            try:
                self.key = facts_of(self._connection, self._where)["key"]
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
    """Raises UserError if the path of the folder looks like the path of a file: it ends with journal.db, or it is an
    existing file, or it has a suffix of databases such as .sqlite and there is no journal in it.
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
    """Returns the path of the database in a folder. Creates the database if it is missing. It is created under
    another name and renamed when it is complete, so no other process ever finds an incomplete database. Raises
    CorruptJournal if only the write-ahead log of a database is there.
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


def _keep_copy(connection: sqlite3.Connection, database: Path, form: int) -> None:
    """Copies a journal of an older format before it is migrated: the Sabot that wrote it does not read it afterwards.
    Overwrites the copy of a migration that did not end.
    """
    copy, unfinished = database.with_name(f"{_COPY}{form}"), database.with_name(f"{DATABASE}.new-copy")
    unfinished.unlink(missing_ok=True)
    with step("journal", f"{database}: copied"):
        with open(unfinished, "xb", opener=private):
            pass
        with closing(sqlite3.connect(unfinished)) as target:
            connection.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # all of it is in one file
        sync(unfinished)
        unfinished.rename(copy)
        sync(database.parent)
    _log.warning(
        "%s has format %d and is migrated to %d, which earlier versions of Sabot do not read; it is kept as it was in %s "
        "until the next savepoint",
        *(database, form, SESSIONS, copy),
    )


def _copies(database: Path) -> list[Path]:
    return sorted(database.parent.glob(f"{glob.escape(_COPY)}[0-9]*"))


def _remove(folder: Path) -> None:
    """Removes the journal in a folder. Removes the write-ahead log first. If a crash left the log without its
    database, the next start of the app would be refused.
    """
    with explained(f"journal {folder}"), step("journal", f"{folder}: removed"):
        for name in (f"{DATABASE}-wal", f"{DATABASE}-shm", DATABASE):
            (folder / name).unlink(missing_ok=True)
        for copy in _copies(folder / DATABASE):
            copy.unlink(missing_ok=True)
        sync(folder)


@answers_wrong_options
class SqliteJournal(SqliteReader, SqlJournal):
    """The owner of the journal in `folder`. A missing folder is created with mode 0700, and its files with mode 0600.

    `anew`: True to remove an existing journal first. `capacity_bytes`: the most bytes of entries that may wait for
    the disk. Raises AppLocked if another owner has the claim.
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
                if facts["format"] < SESSIONS:
                    _keep_copy(self._writing, database, facts["format"])
                with transaction(self._writing):
                    self._epoch = int(facts["epoch"]) + 1
                    self._writing.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch,))
                    if facts["format"] < SESSIONS:
                        bring_up_to_date(self._writing, facts["format"], f"journal {database}", **HISTORY_TYPES)
                        self._writing.execute(f"PRAGMA user_version = {SESSIONS}")
                    index_jobs(self._writing)
            super().__init__(database)
            opened.callback(super().close)
            self.check_end()
            with explained(self.where):
                self._watching = connected(database, "ro")
            opened.callback(self._watching.close)
            self._seen, self._has_letters = 0, False
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
        """Closes the writer, the inbox and all connections. Does not release the claim on the journal."""
        self._closed = True
        self.writer.close()
        self.inbox.close()
        self._watching.close()
        super().close()
        self._writing.close()  # closed last, which moves the log into the database

    def drop_copies(self, before_ms: int) -> None:
        """Removes the copies of this journal from before migrations that a savepoint has followed. Blocks.

        `before_ms`: when the newest savepoint was made, in milliseconds since 1970.
        """
        for copy in _copies(self.database):
            try:
                if copy.stat().st_mtime * 1000 < before_ms:
                    copy.unlink()
                    _log.info("%s is removed: a savepoint has been made since the migration", copy)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", copy, error.strerror or error)

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

    async def look(self) -> bool:
        """Returns True as `Journal.look` does. Reads no file while no other connection has committed since the last look:
        SQLite counts the commits in memory that all processes share. It reads the letters again if the last look has
        found some, because not all of them may have been taken.
        """
        seen = self._seen
        try:
            ((self._seen,),) = self._watching.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:  # the reading of the letters will raise the error
            self._has_letters = True
        if self._has_letters or self._seen != seen:
            self._has_letters = True
            self._has_letters = await super().look()
        return self._has_letters

    def _commit(self, group: list[Appended]) -> None:
        """Commits a group of entries in one transaction, with one fsync. While another process has locked the
        database, waits and tries again. Called in the thread of the GroupWriter.
        """
        rows = rows_of(group)
        self.bodies += sum(bool(row.body) for row in rows)
        while not self._committed(rows):
            _log.warning(
                "%s: another process holds it; waiting: %s. %s", self.where, counted_words(len(rows), "entry"), HELD
            )

    def _committed(self, rows: list[StoredEntry]) -> bool:
        """Tries to commit rows. Returns True if they are committed. Returns False if another process has locked the
        database; nothing has changed then. If the journal is being closed, raises an error instead of returning
        False. Raises JournalFailed if another owner has the claim.
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
