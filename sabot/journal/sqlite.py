"""A journal in SQLite: one database, `journal.db`, in a folder that is ours alone, beside the lock of its owner.

Write-ahead log, `synchronous=FULL`: a commit is one fsync of the log, and is on the disk when it returns. One thread writes entries, in
groups (`writing.GroupWriter`). Readers see the last commit and hold nobody up. An inbox writes its letter in a transaction of its own, so
the command line needs no running app, and two processes that answer the same question are put in order by the database.

The log has checksums: what a torn write leaves of it is dropped from the first bad frame on, so a prefix is read. `tables` says what the
database holds. `epoch` counts owners: each commit of entries looks whether it is still ours, so an owner whose lock
file somebody removed is told and writes nothing.
"""

import os
import secrets
import sqlite3
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.disk import lock, own_folder, private, sync
from sabot.errors import CorruptJournal, JobLocked, JournalFailed, JournalFull, LetterRefused, SabotError, UserError
from sabot.faults import fault_of, hint_of
from sabot.journal.base import Inbox, Journal, Position, check_letter, entry_of_letter
from sabot.journal.entries import Entry, Letter, encode_letter
from sabot.journal.tables import (
    TablesReader,
    add,
    add_letter,
    connected,
    explained,
    facts_of,
    forget,
    letter_facts,
    make,
    remove,
    rows_of,
    transaction,
)
from sabot.journal.writing import CAPACITY_BYTES, Appended, GroupWriter
from sabot.steps import step

__all__ = ["DATABASE", "SqliteInbox", "SqliteJournal", "SqliteReader"]

DATABASE = "journal.db"


def database_of(path: Path | str) -> Path:
    """The database that is meant: by its own path, by its folder, or by a state directory that has the folder `journal`."""
    path = Path(path)
    if path.is_file():
        return path
    for found in (path / DATABASE, path / "journal" / DATABASE):
        if found.is_file():
            return found
    raise UserError(f"{path} has no journal", hint=f"give the path of a {DATABASE}, its folder, or a state directory")


class SqliteReader(TablesReader):
    """Reads the journal at `path`: of the database, its folder, or a state directory. Raises UserError where there is none."""

    def __init__(self, path: Path | str) -> None:
        database = database_of(path)
        super().__init__(database, f"journal {database}")


class SqliteInbox(Inbox):
    """Posts into the journal at `path`: of the database, its folder, or a state directory. Raises UserError where there is none."""

    def __init__(self, path: Path | str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = database_of(path)
        self._where = f"journal {self._path}"
        self._clock = clock
        self._lock = threading.Lock()
        with explained(self._where):
            self._connection = connected(self._path, "rw")
            try:
                facts_of(self._connection, self._where)
            except BaseException:
                self._connection.close()
                raise

    def post(self, letter: Letter) -> None:
        told = step("journal", f"{self._path}: letter")
        with explained(self._where), self._lock, told, transaction(self._connection):
            now_ms = round(self._clock.time() * 1000)
            job = check_letter(letter, *letter_facts(self._connection, letter), now_ms)
            add_letter(self._connection, letter.once, job, encode_letter(letter))

    def trim(self, jobs: Sequence[str], before: int) -> int:
        """As `tables.remove`, in one transaction."""
        told = step("journal", f"{self._path}: trim")
        with explained(self._where), self._lock, told, transaction(self._connection):
            return remove(self._connection, jobs, before)

    def forget(self, before_ms: int) -> None:
        """As `tables.forget`, in one transaction."""
        with explained(self._where), self._lock, transaction(self._connection):
            forget(self._connection, before_ms)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


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
        make(unfinished, uuid.uuid4().hex, secrets.token_bytes(32))
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
            with explained(f"journal {folder}"):
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
        for number, letter in self.untaken(self._last_letter):
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
            jobs = self.ended(place)
            if not jobs:
                break
            removed += self._inbox.trim(jobs, place)
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
        rows = rows_of(group)
        self._bodies += sum(bool(row.body) for row in rows)
        try:
            with step("journal", self.database), transaction(self._writing):
                ((epoch,),) = self._writing.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchall()
                if epoch != self._epoch:
                    raise JournalFailed(
                        "another owner has taken the journal over", hint="its lock was removed; stop one of the two"
                    )
                add(self._writing, rows)
        except sqlite3.Error as error:
            hint = hint_of(error) if fault_of(error) else ""
            raise SabotError(f"{type(error).__name__}: {error}", hint=hint) from error
