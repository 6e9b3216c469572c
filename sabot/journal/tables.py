"""The tables of a journal: in SQLite, in PostgreSQL, and in the local copy of a Kafka topic.

   entries   the journal itself: a row for each entry
   bodies    long bodies, by hash
   uses      which entry names which long body
   jobs, questions, inbox   indexes of the entries and the letters, by which an inbox checks a letter without the owner

The indexes change in the same transactions as the entries. Pages of a SQLite database have no checksums, so each entry
has a checksum of its own.

Functions that take a connection work in the transaction of their caller. Their statements work in both databases, with
`?` for values. The functions `connected`, `transaction`, `explained` and `make` are for SQLite only.
"""

import sqlite3
import threading
import zlib
from abc import abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sabot.base.os_errors import hint_of
from sabot.base.sqlite_files import error_of, open_database
from sabot.errors import CorruptJournal, UserError
from sabot.journal.base import (
    MAY_BEGIN_AGAIN,
    Approval,
    JobMark,
    JournalReader,
    Position,
    Question,
    once_of,
    queued_mark,
    queued_once,
    retried_mark,
    retried_once,
)
from sabot.journal.ended_jobs import EndedJob, JobQuery, cut, descendants
from sabot.journal.entries import (
    Answer,
    Attempt,
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
    hash_of,
    with_stored_body,
)
from sabot.journal.entry_counts import (
    COUNTED,
    COUNTS,
    ENDS,
    GONE,
    WRITTEN_END,
    Connection,
    among,
    begin_to_count,
    check_counted,
    count_anew,
    end_of_log,
    end_of_rows,
    make_tables,
    note_gone,
    parts,
    runs_of,
    written,
)
from sabot.journal.history_tables import (
    KEPT,
    SESSIONS,
    SqlHistory,
    add_sessions,
    count_history,
    drop_bodies,
    fill_sessions,
    make_history,
    move_entries,
)
from sabot.journal.job_marks import JobMarks, below, selected
from sabot.journal.job_tables import (
    ANSWERED,
    APPROVED,
    ASKED,
    BEGAN,
    BEGAN_HELD,
    BEGUN_WITHIN,
    BELOW,
    HELD_MARKS,
    LISTED,
    MARKS,
    SHARED_FORMATS,
    TRIED,
    WITHIN,
    WITHOUT_SESSION,
    begin_values,
    bring_list_up_to_date,
    counts_of_row,
    decode_approval,
    fill_list,
    find_statement,
    is_unlisted,
    make_list,
    mark_of_row,
    note_approvals,
    statement_of_counts,
    unlist,
)
from sabot.journal.writing import Appended

_APPLICATION = 0x5AB07  # SQLite's application_id, which marks the databases of a program
_FORMAT = SESSIONS
_WAIT_SECONDS = 30.0  # the wait for others that write to the same database: inboxes, a trim
_LOG_BYTES = 64 << 20  # the most bytes that the write-ahead log keeps on the disk when it begins anew
_CHUNK = 1000  # the most rows that are read at once
# conditions on the kind of an entry, which is behind the version and the head of the array
_BUT_RESULTS = "substr(entry, 3, 7) <> ?", b"\xa6result"  # results are half of a log
_LATER_BEGINNINGS = "substr(entry, 5, 6) = ?", b"\xa5begin"  # with 16 values or more: those that may have `within`
_BEGINNINGS = "? IN (substr(entry, 3, 6), substr(entry, 5, 6))", b"\xa5begin"
_MOST_RANGES = 100  # of ids, in one statement
_TRIMMED_AT_ONCE = 200  # the most jobs in one transaction: entries of the owner wait for it
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

ENTRY = "INSERT INTO entries (place, job, sum, entry) VALUES (?, ?, ?, ?)"
"""Adds an entry."""

_BODY = "INSERT INTO bodies (hash, body) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING"
_USE = "INSERT INTO uses (place, hash) VALUES (?, ?)"
ENDED = (
    "INSERT INTO jobs (job, began, digest, ended, outcome, result, ended_ms) VALUES (?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (job) DO UPDATE SET ended = excluded.ended, outcome = excluded.outcome, result = excluded.result, "
    "ended_ms = excluded.ended_ms, asks = 0, blocked = ''"
)
"""Notes an END entry."""

LEFT = "UPDATE questions SET closed = ? WHERE job = ? AND closed = ''"
"""Closes the questions of a job that has ended."""

_ASK = (
    "INSERT INTO questions (token, job, ordinal, due_ms, closed, place) VALUES (?, ?, ?, ?, '', ?) ON CONFLICT (token) DO UPDATE SET "
    "job = excluded.job, ordinal = excluded.ordinal, due_ms = excluded.due_ms, closed = '', place = excluded.place"
)
_CLOSE = "UPDATE questions SET closed = ? WHERE token = ?"
_HAS_ENTRIES = "EXISTS (SELECT 1 FROM entries WHERE entries.job = jobs.job)"
_ENDED = (  # jobs that had ended before a place
    "SELECT job FROM jobs WHERE ended < ? "
    "AND NOT EXISTS (SELECT 1 FROM entries WHERE entries.job = jobs.job AND place >= ?)"
)
_UNFINISHED = "SELECT job FROM jobs WHERE ended IS NULL OR ended >= ?"
_OPEN_AGENTS = "SELECT agent, count(*) FROM jobs WHERE ended IS NULL GROUP BY agent"
_REOPENED = f"({', '.join(map(repr, MAY_BEGIN_AGAIN))})"
_KEEPS_APPROVALS = "SELECT 1 FROM meta WHERE name = 'approvals'"
_REMOVED = "SELECT value FROM meta WHERE name = 'removed'"  # the place behind the last END whose job was trimmed
NOTE = "note:"
"""The first characters of the names of notes (`Inbox.note`) in the table `meta`."""

HISTORY_TYPES = {"whole": "INTEGER", "text": "TEXT", "blob": "BLOB"}
"""The column types of SQLite, as arguments of `history_tables.make_history`."""

GO_BACK = "go back to a copy of the whole journal; keep what is there"
"""The hint about a journal that has lost a part of itself."""

TAKEN = "UPDATE inbox SET taken = 1, letter = ? WHERE number = ?"
"""Notes that a letter has become an entry."""


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Runs the `with` block, and converts errors of SQLite and of the operating system. Raises CorruptJournal if the
    database is damaged, and otherwise another error of Sabot that says what is wrong. `where`: the name of the
    journal, for messages.
    """
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGE or (isinstance(error, sqlite3.OperationalError) and "no such table" in str(error)):
            raise CorruptJournal(
                f"{where} is damaged, or no journal: {error}",
                hint=GO_BACK,
            ) from error
        raise error_of(error, where, wait_s=_WAIT_SECONDS) from error
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}", hint=hint_of(error)) from error


def connected(path: Path, mode: Literal["ro", "rw"], *, synced: bool = True) -> sqlite3.Connection:
    """Returns a new connection to a SQLite database. It begins no transactions by itself. `mode`: "ro" only to read,
    "rw" to read and write. `synced`: True if a commit has to be on the disk when it returns.
    """
    connection = open_database(path, wait_s=_WAIT_SECONDS, mode=mode, synchronous="FULL" if synced else "OFF")
    try:
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def facts_of(connection: sqlite3.Connection, where: object) -> dict[str, Any]:
    """Returns the values in the table `meta` of a journal in SQLite, by name, and its `format`. Raises CorruptJournal
    if the database is not a journal, and UserError if this Sabot does not know its format. `where`: the name of the
    journal, for messages.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (form,) = connection.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise CorruptJournal(f"{where} is a database, and no journal of Sabot", hint="give another directory")
    if not 1 <= form <= _FORMAT:
        raise UserError(
            f"{where} has format {form}, and this Sabot knows {_FORMAT}",
            hint=f"a newer Sabot has written it: start with that one; or, to go back to a savepoint from before its migration, "
            f"put the copy {where}.format-N, if it is there, in its place: effects since then may be made again",
        )
    facts = {**dict(connection.execute("SELECT name, value FROM meta")), "format": form}
    if not {"identity", "key", "epoch"} <= facts.keys():
        raise CorruptJournal(f"{where} has lost its identity", hint=GO_BACK)
    return facts


def checksum(place: int, job: str, data: bytes) -> int:
    """Returns the checksum of an entry at a place. `data`: the encoded entry."""
    return zlib.crc32(data, zlib.crc32(f"{place}\0{job}".encode()))


def decoded(rows: Iterable[Sequence[Any]], where: object) -> Iterator[tuple[Position, Entry]]:
    """Yields the entries of rows (place, job, sum, entry) with their places. Raises CorruptJournal if one is damaged.
    `where`: the name of the journal, for messages.
    """
    for place, named, told, data in rows:
        if not isinstance(data, bytes) or checksum(place, named, data) != told:
            raise CorruptJournal(f"{where}: entry {place} is damaged", hint="go back to a copy of it")
        yield Position(0, place), decode_entry(data, where)


def bring_up_to_date(connection: Connection, form: int, where: object, *, whole: str, text: str, blob: str) -> None:
    """Adds what the tables of an older format lack, and fills the list of jobs from the entries. The caller has the
    claim, and notes the new format in the same transaction.

    `form`: the present version of the format. `where`: the name of the journal, for messages. `whole`, `text`, `blob`: the
    column types, as for `history_tables.make_history`.
    """
    if form < COUNTED:
        begin_to_count(connection, whole)
    if form < KEPT:
        make_history(connection, whole=whole, text=text, blob=blob)
    elif form < SESSIONS:
        add_sessions(connection, _entries(connection, where, *_BEGINNINGS, table="history_entries"), text)
    if form < WITHIN:
        entries = _entries(connection, where, *(_BUT_RESULTS if is_unlisted(form) else _LATER_BEGINNINGS))
        bring_list_up_to_date(connection, form, entries, whole=whole, text=text, blob=blob)


def _entries(
    connection: Connection, where: object, chosen: str, kind: bytes, *, table: str = "entries"
) -> Iterator[tuple[Position, Entry]]:
    """Yields the entries of the log that a condition on their kind selects. `chosen`: the condition. `kind`: its value.
    `table`: "history_entries" for those of the history.
    """
    first, rows = 0, [()]
    while rows:
        rows = connection.execute(
            f"SELECT place, job, sum, entry FROM {table} WHERE place >= ? AND {chosen} ORDER BY place LIMIT {_CHUNK}",
            (first, kind),
        ).fetchall()
        yield from decoded(rows, where)
        first = rows[-1][0] + 1 if rows else first


class SqlReader(JournalReader):
    """A reader of a journal's tables in a database.

    `format`: the version of the tables. An owner that opens tables of an older version adds what is missing. From the
    version COUNTED on, the tables record which entries were written and which were trimmed, so that a read of all
    jobs detects a missing entry (`entry_counts`). From the version KEPT on, `trim` can move the entries of ended jobs
    into tables of their own instead of deleting them. From the version LISTED on, lists of jobs read no entries
    (`job_tables`); before, they read all. From the version APPROVED on, approvals for other jobs have rows; from the
    version WITHIN on, the jobs that the tool of an effect has begun are looked up; from the version SESSIONS on, ended jobs
    are listed by session.
    """

    format: int
    _of_entries: tuple[dict[int, int], list[JobMark]] | None = None

    @abstractmethod
    def select(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs an SQL query, and returns the rows that it finds. Only durable rows are found. Raises the errors of a
        `JournalReader`.
        """

    def positions(self) -> dict[int, int]:
        return {0: end_of_rows(self.select(ENDS, ()))}

    @property
    def _marks(self) -> str:
        """The statement that selects the rows for `mark_of_row`."""
        return HELD_MARKS if self.format in SHARED_FORMATS else MARKS

    def _is_counted(self) -> bool:
        """Returns True if the places of the log have no gaps, and the tables say how many entries there are."""
        return self.format >= COUNTED and self.format not in SHARED_FORMATS

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        first = (start or {}).get(0, 0)
        chosen, values = ("", ()) if job is None else ("AND job = ? ", (job,))
        counted = self._is_counted() and job is None
        # the end at this moment: entries may be added meanwhile
        end = self._written_end() if counted else 0
        while True:  # in chunks, because a long read would delay writers
            rows = self.select(
                f"SELECT place, job, sum, entry FROM entries WHERE place >= ? {chosen}ORDER BY place LIMIT {_CHUNK}",
                (first, *values),
            )
            if counted:
                behind = rows[-1][0] + 1 if len(rows) == _CHUNK else max(end, rows[-1][0] + 1 if rows else first)
                check_counted(self._gone, self.where, first, [row[0] for row in rows], behind)
            yield from self._decoded(rows)
            if len(rows) < _CHUNK:
                return
            first = rows[-1][0] + 1

    def read_jobs(self, jobs: Collection[str]) -> Iterator[tuple[Position, Entry]]:
        for some in parts(sorted(jobs)):
            left, job, behind = list(some), "", 0
            while left:  # in chunks, as in `read`
                rows = self.select(
                    f"SELECT place, job, sum, entry FROM entries WHERE job {among(left)} AND (job > ? OR place >= ?) "
                    f"ORDER BY job, place LIMIT {_CHUNK}",
                    (*left, job, behind),
                )
                yield from self._decoded(rows)
                if len(rows) < _CHUNK:
                    break
                job, behind = rows[-1][1], rows[-1][0] + 1
                left = left[left.index(job) :]

    def unfinished(self, since: Mapping[int, int]) -> list[str]:
        self._check_entries()
        return [job for (job,) in self.select(_UNFINISHED, (since.get(0, 0),))]

    def open_agents(self) -> dict[str, int]:
        if self.format < LISTED:
            return super().open_agents()
        self._check_entries()
        return dict(self.select(_OPEN_AGENTS))

    def open_marks(self) -> list[JobMark]:
        if self.format < LISTED:
            return super().open_marks()
        return list(map(mark_of_row, self.select(f"{self._marks} WHERE ended IS NULL ORDER BY began")))

    def _check_entries(self) -> None:
        """Raises CorruptJournal if the log lacks entries that nobody has trimmed."""
        ((found, written),) = self.select(COUNTS) if self._is_counted() else [(0, 0)]
        if found != written:
            for _ in SqlReader.read(self):  # tells which entry is missing
                pass

    def _decoded(self, rows: Iterable[Sequence[Any]]) -> Iterator[tuple[Position, Entry]]:
        return decoded(rows, self.where)

    def approvals(self, jobs: Collection[str] | None = None) -> list[Approval] | None:
        if self.format < APPROVED or not self.select(_KEEPS_APPROVALS):
            return None
        chosen = "SELECT approval FROM approvals"
        if jobs is None:
            return [decode_approval(data) for (data,) in self.select(chosen)]
        several = parts(list(jobs))
        rows = [row for some in several for row in self.select(f"{chosen} WHERE job {among(some)}", some)]
        return [decode_approval(data) for (data,) in rows]

    def notes(self, prefix: str) -> dict[str, str]:
        whole, skipped = f"{NOTE}{prefix}", len(NOTE)
        rows = self.select("SELECT name, value FROM meta WHERE substr(name, 1, ?) = ?", (len(whole), whole))
        return {name[skipped:]: value for name, value in rows}

    @property
    def history(self) -> SqlHistory:
        return SqlHistory(self.select, self._decoded, form=self.format, where=self.where)

    def _written_end(self) -> int:
        """Returns the place behind the last entry that was ever written. Raises CorruptJournal if nothing tells it."""
        rows = self.select(WRITTEN_END)
        if not rows:
            raise CorruptJournal(f"{self.where} has lost the count of its entries", hint=GO_BACK)
        return int(rows[0][0])

    def _gone(self, first: int, behind: int) -> list[tuple[int, int]]:
        return [(int(at), int(end)) for at, end in self.select(GONE, (first, behind))]

    def check_end(self) -> None:
        """Raises CorruptJournal if entries at the end of the log are missing. An owner calls this, because it would
        otherwise write new entries at their places.
        """
        (behind,) = SqlReader.positions(self).values()
        if self._is_counted():
            check_counted(self._gone, self.where, behind, (), self._written_end())

    def trimmed(self) -> dict[int, int]:
        rows = self.select(_REMOVED)
        return {0: int(rows[0][0])} if rows else {}

    def load(self, body: Body) -> bytes:
        if isinstance(body, bytes):
            return body
        rows = self.select("SELECT body FROM bodies WHERE hash = ?", (body.hash,))
        if not rows or hash_of(rows[0][0]) != body.hash:
            raise CorruptJournal(f"{self.where}: body {body.hash.hex()} is missing or damaged", hint=GO_BACK)
        return bytes(rows[0][0])

    def job(self, job: str) -> JobMark | None:
        if self.format < LISTED:
            return _mark(self.select(f"{_MARK} WHERE job = ?", (job,)))
        rows = self.select(f"{self._marks} WHERE job = ?", (job,))
        return mark_of_row(rows[0]) if rows else None

    def marked(self, jobs: Collection[str]) -> dict[str, JobMark]:
        if self.format < LISTED:
            return super().marked(jobs)
        rows = [
            row for some in parts(list(jobs)) for row in self.select(f"{self._marks} WHERE job {among(some)}", some)
        ]
        return {mark.job: mark for mark in map(mark_of_row, rows)}

    def logged(self, query: JobQuery, most: int) -> list[JobMark]:
        if self.format < LISTED:
            return selected(self._marks_of_entries(), query, most)
        return list(map(mark_of_row, self.select(*find_statement(self._marks, query, most))))

    def logged_counts(self, query: JobQuery) -> dict[str, int]:
        if self.format < LISTED:
            return Counter(mark.status for mark in selected(self._marks_of_entries(), query))
        (row,) = self.select(*statement_of_counts(query))
        return counts_of_row(row)

    def logged_below(self, jobs: Collection[str]) -> list[str]:
        if self.format < LISTED:
            return below(self._marks_of_entries(), jobs)
        found = {
            each
            for some in parts(list(jobs), _MOST_RANGES)
            for (each,) in self.select(
                " UNION ALL ".join([BELOW] * len(some)), [bound for job in some for bound in descendants(job)]
            )
        }
        return sorted(found)

    def begun_within(self, effect: str) -> list[str]:
        if self.format < WITHIN:
            return super().begun_within(effect)
        return [job for (job,) in self.select(BEGUN_WITHIN, (cut(effect),))]

    def begun_again(self) -> list[str]:
        if self.format < LISTED:
            return [job.job for job in self.history.known([mark.job for mark in self._marks_of_entries()])]
        return [job for (job,) in self.select("SELECT job FROM jobs WHERE again = 1")]

    def _marks_of_entries(self) -> Iterable[JobMark]:
        """Returns the marks of the jobs that have entries, by reading all of these, unless there are no others than at
        the call before: tables of an older format have no list of jobs.
        """
        now = {**SqlReader.positions(self), -1: sum(self.trimmed().values())}
        if self._of_entries is None or self._of_entries[0] != now:
            known = JobMarks()
            for position, entry in self.read():
                known.apply(position.offset, entry)
            self._of_entries = now, list(known.marks.values())
        return self._of_entries[1]

    def question(self, token: str) -> Question | None:
        return _question(self.select(f"{_QUESTION} WHERE token = ?", (token,)))

    def questions(self, tokens: Sequence[str]) -> dict[str, Question]:
        """Returns, by token, the questions that have these tokens. Leaves out tokens without a question."""
        return {
            token: Question(*facts)
            for some in parts(tokens)
            for token, *facts in self.select(f"{_QUESTIONS} WHERE token {among(some)}", some)
        }

    def letters(self) -> list[Letter]:
        return [letter for _, letter in self.untaken()]

    def letter(self, once: str) -> Letter | None:
        rows = self.select("SELECT letter FROM inbox WHERE taken = 0 AND once = ?", (once,))
        return decode_letter(rows[0][0], self.where) if rows else None

    def untaken(self, after: int = 0) -> list[tuple[int, Letter]]:
        """Returns the letters that the owner has not turned into entries yet, each with its number. Only letters with
        numbers above `after` are returned.
        """
        rows = self.select("SELECT number, letter FROM inbox WHERE taken = 0 AND number > ? ORDER BY number", (after,))
        return [(number, decode_letter(data, self.where)) for number, data in rows]

    def ended(self, before: int, before_ms: int, *, sessions: bool = False) -> list[str]:
        """Returns up to `_TRIMMED_AT_ONCE` jobs whose entries can be trimmed: they have entries, and ended before the
        place `before`. A job that may begin again (MAY_BEGIN_AGAIN) must also have ended before `before_ms`, in
        milliseconds since 1970. So must one that belongs to a session, with `sessions`.
        """
        free = f"outcome NOT IN {_REOPENED}{WITHOUT_SESSION if sessions else ''}"
        chosen = f"{_ENDED} AND {_HAS_ENTRIES} AND (({free}) OR ended_ms < ?) LIMIT {_TRIMMED_AT_ONCE}"
        return [job for (job,) in self.select(chosen, (before, before, before_ms))]


class TablesReader(SqlReader):
    """A reader of a journal's tables in the SQLite database at the path `database`. `where`: the name of the journal in
    messages.
    """

    def __init__(self, database: Path, where: str) -> None:
        self.database = database
        self.where = where
        self._lock = threading.Lock()
        with explained(self.where):
            self._reading = connected(database, "ro")
            try:
                facts = facts_of(self._reading, self.where)
            except BaseException:
                self._reading.close()
                raise
        self.identity: str = facts["identity"]
        self.key: bytes = facts["key"]
        self.format = facts["format"]

    def select(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with explained(self.where), self._lock:
            return self._reading.execute(statement, values).fetchall()

    def close(self) -> None:
        with self._lock:
            self._reading.close()


_MARK = "SELECT job, began, digest, outcome, result, ended_ms FROM jobs"  # in each format
_QUESTION = "SELECT job, ordinal, due_ms, closed FROM questions"
_QUESTIONS = "SELECT token, job, ordinal, due_ms, closed FROM questions"


def _mark(rows: list[tuple[Any, ...]]) -> JobMark | None:
    for job, began, *rest in rows:
        return JobMark(job, Position(0, began), *rest)
    return None


def _question(rows: list[tuple[Any, ...]]) -> Question | None:
    return Question(*rows[0]) if rows else None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # the first error says more
                connection.execute("ROLLBACK")
        raise


def _indexed(offset: int, entry: Entry, worker: int | None) -> list[tuple[str, tuple[Any, ...]]]:
    """Returns the SQL statements that update the tables `jobs` and `questions` for a new entry, as pairs of a
    statement and its values. `offset`: the place of the entry. `worker`: as in `add`.
    """
    if isinstance(entry, Begin):
        began = begin_values(offset, entry)
        return [(BEGAN, began) if worker is None else (BEGAN_HELD, (*began, worker))]
    if isinstance(entry, End):
        return [
            (ENDED, (entry.job, offset, b"", offset, entry.outcome, entry.result, entry.at_ms)),
            (LEFT, (f"the job has ended: {entry.outcome}", entry.job)),
        ]
    if isinstance(entry, Intent) and entry.token:
        asks = (_ASK, (entry.token, entry.job, entry.ordinal, entry.due_ms, offset))
        return [(ASKED, (entry.job, entry.token)), asks] if entry.kind == "ask" else [asks]
    if isinstance(entry, Answer):  # counted first, since it closes the question by which it is counted
        return [(ANSWERED, (entry.job, entry.token)), (_CLOSE, (entry.outcome, entry.token))]
    if isinstance(entry, Attempt) and not entry.ordinal:
        return [(TRIED, (entry.job,))]
    return []


def letter_facts(connection: Connection, letter: Letter) -> tuple[Question | None, JobMark | None, bool]:
    """Returns three arguments for `base.check_letter`, as a tuple:

    - the question with the letter's token, or None;
    - the JobMark of the job that the letter names, or None; also one for a job whose beginning, or retry, is in the inbox;
    - True if the inbox has already accepted a letter with the same name (`base.once_of`).
    """
    run = connection.execute
    question = _question(run(f"{_QUESTION} WHERE token = ?", (letter.token,)).fetchall())
    mark = _mark(run(f"{_MARK} WHERE job = ?", (letter.job,)).fetchall())
    known = "SELECT 1 FROM inbox WHERE once = ?"
    if mark is None and (begins := queued_once(letter)) and run(known, (begins,)).fetchall():
        mark = queued_mark(letter.job)
    if (
        mark is not None
        and (again := retried_once(letter, mark))
        and run(f"{known} AND taken = 0", (again,)).fetchall()
    ):
        mark = retried_mark(mark)
    earlier = run(known, (once_of(letter, mark),)).fetchall()
    if letter.kind == "signal" and not earlier:  # as earlier versions have named it
        earlier = run(f"{known} AND job = ?", (f"signal:{letter.token}", letter.job)).fetchall()
    return question, mark, bool(earlier)


def known_jobs(connection: Connection, jobs: Sequence[str]) -> set[str]:
    """Returns those of the jobs that the journal knows, also by a letter that begins them. `jobs`: no more than fit into one
    statement.
    """
    run = connection.execute
    found = {job for (job,) in run(f"SELECT job FROM jobs WHERE job {among(jobs)}", jobs).fetchall()}
    names = [f"begin:{job}" for job in jobs]
    return found.union(job for (job,) in run(f"SELECT job FROM inbox WHERE once {among(names)}", names).fetchall())


def add_letter(
    connection: Connection,
    once: str,
    job: str,
    data: bytes,
    number: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> bool:
    """Stores a letter in the inbox, and returns True. If the inbox has already accepted a letter with the same
    `once`, returns False and changes nothing. `number`: the number of the letter, above 0; None to use the next
    number. `beside`: the values of further columns, by their names.
    """
    row = {**({} if number is None else {"number": number}), "once": once, "job": job, "letter": data, **(beside or {})}
    done = connection.execute(
        f"INSERT INTO inbox ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT DO NOTHING",
        tuple(row.values()),
    )
    return bool(done.rowcount == 1)


class StoredEntry(NamedTuple):
    """An entry in the form in which it is stored.

    - `place`, `entry`: the place of the entry, and the entry itself. `data`: the entry as bytes.
    - `body`: the long body to which the entry refers; b"" if it has none, or if the body is stored already.
    - `letter`: the number of the letter from which the entry was made; 0 for none.
    - `approvals`: the approvals that are noted with the entry. `goes_on`: True if the next entry is stored in the same step.
    """

    place: int
    entry: Entry
    data: bytes
    body: bytes
    letter: int
    approvals: tuple[Approval, ...] = ()
    goes_on: bool = False


def rows_of(group: Iterable[Appended]) -> list[StoredEntry]:
    """Returns the entries of a group in the form in which they are stored."""
    rows = []
    for each in group:
        entry, data, body = each.entry, each.data, b""
        if not data:
            entry, body = with_stored_body(entry)
            data = encode_entry(entry)
        rows.append(StoredEntry(each.offset, entry, data, body, each.letter, each.approvals, each.goes_on))
    return rows


def add(connection: Connection, rows: Sequence[StoredEntry], *, worker: int | None = None) -> None:
    """Adds entries with their long bodies to the tables, and updates the tables that are indexes of the entries.
    Marks the letters from which entries were made as taken. `worker`: in a journal that several workers share, the
    number of the one that holds the jobs. The places of such a journal have gaps.
    """
    connection.executemany(
        ENTRY, [(row.place, row.entry.job, checksum(row.place, row.entry.job, row.data), row.data) for row in rows]
    )
    if worker is None:
        written(connection, rows[0].place, rows[-1].place + 1)
    for row in rows:
        named = body_of(row.entry)
        if isinstance(named, StoredBody):
            if row.body:
                connection.execute(_BODY, (named.hash, row.body))
            connection.execute(_USE, (row.place, named.hash))
        if row.approvals:
            note_approvals(connection, row.approvals)
    for statement, several in _together(rows, worker):
        connection.executemany(statement, several)
    if letters := [(b"", row.letter) for row in rows if row.letter]:
        connection.executemany(TAKEN, letters)


def _together(rows: Iterable[StoredEntry], worker: int | None) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Returns the statements of `_indexed` for all of these entries, each with the values of several jobs: those of different jobs
    change different rows. Those of one job stay in their order, and no statement has two rows of it.

        job a: BEGAN TRIED ENDED LEFT          BEGAN of a, b
        job b: BEGAN TRIED            ─▶       TRIED of a, b
        job c:             ENDED LEFT          ENDED of a, c
                                               LEFT of a, c
    """
    made = list[tuple[str, list[tuple[Any, ...]]]]()
    places = dict[str, list[int]]()  # by statement
    last = dict[str, int]()  # by job, the place of its last statement
    for row in rows:
        for statement, values in _indexed(row.place, row.entry, worker):
            known = places.setdefault(statement, [])
            behind = bisect_right(known, last.get(row.entry.job, -1))
            if behind == len(known):
                known.append(len(made))
                made.append((statement, []))
            made[known[behind]][1].append(values)
            last[row.entry.job] = known[behind]
    return made


def remove(
    connection: Connection, jobs: Sequence[str], before: int, kept: Sequence[EndedJob] = (), letters: int = 1 << 62
) -> int:
    """Removes the entries, the questions and the letters of these jobs. Returns the number of removed entries. Skips a
    job that had not ended before the place `before`: it may have begun again after the caller chose it.

    `kept`: rows of the history. Each of these jobs that has a row here moves into the history; the others are deleted.
    `letters`: a number. The letters to these jobs are removed up to the letter with this number.
    """
    described = {job.job: job for job in kept}
    removed = 0
    run = connection.execute
    end = end_of_log(connection)
    # so that places do not begin again when the last entry is removed
    run("UPDATE meta SET value = ? WHERE name = 'trimmed'", (str(end),))
    for some in parts(jobs):
        ended = [job for (job,) in run(f"{_ENDED} AND job {among(some)}", (before, before, *some)).fetchall()]
        if not ended:
            continue
        theirs = f"job {among(ended)}"
        ((last,),) = run(f"SELECT max(ended) FROM jobs WHERE {theirs}", ended).fetchall()
        _set_removed(connection, max(last + 1, removed_before(connection)))
        if moved := [described[job] for job in ended if job in described]:
            move_entries(connection, moved)
        if gone := [job for job in ended if job not in described]:
            drop_bodies(connection, "entries", gone)
        places = run(f"SELECT place FROM entries WHERE {theirs} ORDER BY place", ended).fetchall()
        note_gone(connection, runs_of(place for (place,) in places))
        removed += run(f"DELETE FROM entries WHERE {theirs}", ended).rowcount
        unlist(connection, ended)
        run(f"DELETE FROM questions WHERE {theirs}", ended)
        run(f"DELETE FROM inbox WHERE {theirs} AND number <= ?", (*ended, letters))
    return removed


def keep_approvals(connection: Connection, approvals: Iterable[Approval]) -> None:
    """Notes all approvals of a journal, as `Journal.keep_approvals` does."""
    note_approvals(connection, approvals)
    connection.execute("INSERT INTO meta (name, value) VALUES ('approvals', '1') ON CONFLICT (name) DO NOTHING")


def removed_before(connection: Connection) -> int:
    """Returns the place behind the last END entry among the jobs that were trimmed; 0 if no job was trimmed."""
    rows = connection.execute(_REMOVED).fetchall()
    return int(rows[0][0]) if rows else 0


def _set_removed(connection: Connection, place: int) -> None:
    connection.execute("DELETE FROM meta WHERE name = 'removed'")
    connection.execute("INSERT INTO meta (name, value) VALUES ('removed', ?)", (str(place),))


def forget(connection: Connection, before_ms: int) -> None:
    """Removes the marks of jobs that ended before `before_ms` (in milliseconds since 1970) and that have no entries
    any more.
    """
    connection.execute(
        f"DELETE FROM jobs WHERE ended IS NOT NULL AND ended_ms < ? AND NOT {_HAS_ENTRIES}", (before_ms,)
    )


def make(database: Path, identity: str, key: bytes) -> None:
    """Creates the tables in an empty SQLite database file. `identity`, `key`: the identity and the key of the new
    journal.
    """
    connection = connected(database, "rw")
    try:
        connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        make_tables(connection, "INTEGER")
        make_history(connection, **HISTORY_TYPES)
        make_list(connection, **HISTORY_TYPES)
        facts = {"identity": identity, "key": key, "epoch": 0, "trimmed": 0, "approvals": 1}
        connection.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", facts.items())
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_FORMAT}")
    finally:
        connection.close()


_COPIED = {  # the columns of each table, but for those that `index_anew` fills; new ones are only added at the end
    "entries": ("place", "job", "sum", "entry"),
    "bodies": ("hash", "body"),
    "uses": ("place", "hash"),
    "jobs": ("job", "began", "digest", "ended", "outcome", "result", "ended_ms", "blocked"),
    "questions": ("token", "job", "ordinal", "due_ms", "closed"),
    "inbox": ("number", "once", "job", "letter", "taken"),
    "history_entries": ("place", "job", "sum", "entry"),
    "history": (*(name for name in EndedJob.__struct_fields__ if name != "session"), "size"),
}


def copied(connection: sqlite3.Connection, most_bytes: int) -> Iterator[tuple[str, list[Sequence[Any]]]]:
    """Yields all rows of all tables, as pairs of the name of a table and a list of some of its rows. A list has about
    `most_bytes` bytes. The caller has to begin a transaction before, so that all rows are from one snapshot of the
    database.
    """
    for table, names in _COPIED.items():
        portion: list[Sequence[Any]] = []
        nbytes = 0
        for row in connection.execute(f"SELECT {', '.join(names)} FROM {table}"):
            portion.append(row)
            nbytes += sum(len(value) if isinstance(value, bytes | str) else 8 for value in row)
            if nbytes >= most_bytes:
                yield table, portion
                portion, nbytes = [], 0
        if portion:
            yield table, portion


def put_back(connection: sqlite3.Connection, table: str, rows: Sequence[Sequence[Any]]) -> None:
    """Inserts rows that `copied` has yielded into a table. Rows that an earlier version of Sabot has copied may have
    fewer columns. Raises KeyError if there is no such table.
    """
    names = _COPIED[table][: len(rows[0])]
    marks = ", ".join("?" * len(names))
    connection.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)


def index_anew(connection: sqlite3.Connection, where: object) -> None:
    """Makes anew what the tables of a local copy derive from their rows, after `put_back` has filled them. `where`: the
    name of the journal, for messages.
    """
    count_anew(connection)
    count_history(connection)
    fill_list(connection, _entries(connection, where, *_BUT_RESULTS))
    fill_sessions(connection, _entries(connection, where, *_BEGINNINGS, table="history_entries"))


def clear(connection: sqlite3.Connection, next_place: int, removed: int) -> None:
    """Removes all rows from the tables of a local copy, so that `put_back` can fill them.

    `next_place`: the place of the next new entry. If `put_back` then inserts entries up to a higher place, the next
    entry follows these. `removed`: the value that `removed_before` returns from now on.
    """
    for table in _COPIED:
        connection.execute(f"DELETE FROM {table}")
    connection.execute("UPDATE meta SET value = ? WHERE name = 'trimmed'", (next_place,))
    connection.execute("DELETE FROM meta WHERE name = 'approvals'")  # frames have none
    _set_removed(connection, removed)
    count_anew(connection)
    count_history(connection)


def add_body(connection: sqlite3.Connection, body: bytes) -> None:
    """Stores a long body under its hash, unless it is stored already."""
    connection.execute(_BODY, (hash_of(body), body))
