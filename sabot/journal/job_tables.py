"""The list of a journal's jobs, in SQLite and PostgreSQL: columns of the table `jobs`, which change in the transactions
that write the entries. So a list, a count or a look for open questions reads rows of jobs, and no entries.

   jobs.agent, scope, principal, session, key   from the last BEGIN entry of the job (`JobMark`)
   jobs.created_ms       the time of its first BEGIN entry; NULL if the log has none of its entries any more
   jobs.tried, again     0 or 1, as in `JobMark`
   jobs.asks             the number of its open questions to people
   jobs.blocked          the reason why it cannot continue, or ""; no entry has it
   jobs.within           the key of the effect whose tool has begun it (`Begin.within`), or ""; it stays with the row
   approvals             approvals of people that hold for other jobs too, by their digests (`base.Approval`)
   questions.place       the place of the INTENT entry: a question from before the job's last BEGIN entry is not counted

The statements work in both databases, with `?` for values. Functions that take a connection work in the transaction of
their caller.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from sabot.journal.base import Approval, JobMark, Position
from sabot.journal.begin_facts import created_of, facts_of
from sabot.journal.ended_jobs import BLOCKED, OUTCOMES, JobQuery, cut
from sabot.journal.entries import Begin, Entry, Intent
from sabot.journal.entry_counts import Connection, among, fill
from sabot.journal.history_tables import shared_conditions, where
from sabot.journal.job_marks import JobMarks

LISTED = 5
"""The first version of the tables' format whose list of jobs is complete. Version 4 has no reasons of blocked jobs."""

APPROVED = 6
"""The first version of the tables' format that has approvals."""

WITHIN = 8
"""The first version of the tables' format whose jobs have the column `within`. Journals with one owner have it."""

SHARED = 13
"""The version of the tables of a journal that several workers share (`postgres_workers`). The places of its entries have
gaps. It has all that SESSIONS has.
"""

WITHOUT_SESSIONS = 11
"""The version of such tables whose history lacks the column `session`."""

KEYS_OF_ALL = 10
"""The version of such tables in which a limit by key counts a key of all scopes as one."""

WITHOUT_SEATS = 9
"""The version of such tables without limits of jobs (`seats`). Some lack the tables `crashes` and `refusals`."""

SHARED_BEFORE = 7
"""The version of such tables without the column `within`. They have all that version 6 has."""

WITH_SEATS = (KEYS_OF_ALL, WITHOUT_SESSIONS, SHARED)
"""The versions of such tables whose inbox has the columns of `seats`."""

SHARED_FORMATS = (SHARED_BEFORE, WITHOUT_SEATS, *WITH_SEATS)
"""All versions of the tables of shared journals."""

_BLOCKED_UNKNOWN = 4

_TABLES = (
    *(
        f"ALTER TABLE jobs ADD COLUMN {name} {{text}} NOT NULL DEFAULT ''"
        for name in ("agent", "scope", "principal", "session", "key")
    ),
    "ALTER TABLE jobs ADD COLUMN created_ms {whole}",
    "ALTER TABLE jobs ADD COLUMN tried {whole} NOT NULL DEFAULT 1",
    "ALTER TABLE jobs ADD COLUMN asks {whole} NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN again {whole} NOT NULL DEFAULT 0",
    "ALTER TABLE questions ADD COLUMN place {whole} NOT NULL DEFAULT 0",
    "CREATE INDEX jobs_by_creation ON jobs (created_ms, job) WHERE created_ms IS NOT NULL",
    "CREATE INDEX jobs_begun_again ON jobs (job) WHERE again = 1",
)
_BLOCKED_TABLES = ("ALTER TABLE jobs ADD COLUMN blocked {text} NOT NULL DEFAULT ''",)
_APPROVALS_TABLES = (
    "CREATE TABLE approvals (name {blob} PRIMARY KEY, job {text} NOT NULL, approval {blob} NOT NULL)",
    "CREATE INDEX approvals_of_job ON approvals (job)",
)
_WITHIN_TABLES = (
    "ALTER TABLE jobs ADD COLUMN within {text} NOT NULL DEFAULT ''",
    "CREATE INDEX jobs_begun_within ON jobs (within) WHERE within <> ''",
)
# with `ended`, which SQLite would look up in the row else
_INDEX_OF_OPEN = "CREATE INDEX IF NOT EXISTS jobs_open ON jobs (agent, ended) WHERE ended IS NULL"
NO_INDEX_OF_OPEN = "DROP INDEX IF EXISTS jobs_open"
"""Removes the index of open jobs: workers that share a journal find them by the worker."""

# of an inbox that keeps the letters of all jobs which were not trimmed
_INDEX_OF_LETTERS = "CREATE INDEX IF NOT EXISTS letters_to_take ON inbox (number) WHERE taken = 0"
_INDEXES_OF_LISTS = (
    "CREATE INDEX IF NOT EXISTS jobs_of_session ON jobs (session, created_ms) WHERE session <> ''",
    "CREATE INDEX IF NOT EXISTS jobs_of_key ON jobs (key, created_ms) WHERE key <> ''",
)
_FACTS = "agent, scope, principal, session, key"
_COUNTED = "token = ? AND questions.job = jobs.job AND closed = '' AND place > jobs.began"  # a question that is open
_STATUS = (  # as `JobMark.status`
    f"CASE WHEN outcome IN ({', '.join(map(repr, OUTCOMES))}) THEN outcome WHEN outcome <> '' THEN 'failed' "
    f"WHEN blocked <> '' THEN '{BLOCKED}' WHEN tried = 0 THEN 'queued' WHEN asks > 0 THEN 'waiting_action' ELSE 'running' END"
)
# Statuses as conditions: counted by these, the rows need no sorting into groups. "failed" and "running" are what is left.
_ENDS = {each: f"outcome = '{each}'" for each in OUTCOMES if each != "failed"}
_OPEN = {
    BLOCKED: "outcome = '' AND blocked <> ''",
    "queued": "outcome = '' AND tried = 0 AND blocked = ''",
    "waiting_action": "asks > 0 AND outcome = '' AND tried <> 0 AND blocked = ''",
}
_COUNTS = ", ".join(
    f"count(*) FILTER (WHERE {each})" for each in ("outcome = ''", "outcome <> ''", *_OPEN.values(), *_ENDS.values())
)

_NOTE_AGAIN = "UPDATE jobs SET again = 1 WHERE created_ms IS NOT NULL AND job IN (SELECT job FROM history)"

MARKS = f"SELECT job, began, digest, outcome, result, ended_ms, {_FACTS}, created_ms, tried, asks, again, blocked, 0 FROM jobs"
"""The statement that selects the rows for `mark_of_row`."""

HELD_MARKS = MARKS.replace(", 0 FROM", ", CASE WHEN ended IS NULL AND worker > 0 THEN worker ELSE 0 END FROM")
"""This statement in a journal that several workers share. Numbers below 1 stand for jobs that no worker holds."""

BEGUN_WITHIN = "SELECT job FROM jobs WHERE within = ? AND within <> ''"
"""Selects the jobs that the tool of an effect has begun. The second condition is that of the index."""

WITHOUT_SESSION = " AND session = ''"
"""A condition: the job belongs to no session."""

BELOW = "SELECT job FROM jobs WHERE job >= ? AND job < ? AND created_ms IS NOT NULL"
"""Selects the jobs with ids from one to before another (`ended_jobs.descendants`)."""

BEGAN = (
    f"INSERT INTO jobs (job, began, digest, {_FACTS}, created_ms, tried, within, again) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT count(*) FROM history WHERE job = ?)) ON CONFLICT (job) DO UPDATE SET "
    "began = excluded.began, digest = excluded.digest, ended = NULL, outcome = '', result = '', ended_ms = 0, "
    + ", ".join(f"{name} = excluded.{name}" for name in _FACTS.split(", "))
    + ", created_ms = coalesce(jobs.created_ms, excluded.created_ms), tried = excluded.tried, asks = 0, again = excluded.again, "
    "blocked = '', within = CASE excluded.within WHEN '' THEN jobs.within ELSE excluded.within END"
)
"""Notes a BEGIN entry, with the values of `begin_values`."""

BEGAN_HELD = (
    BEGAN.replace("again) VALUES", "again, worker) VALUES").replace("?)) ON CONFLICT", "?), ?) ON CONFLICT")
    + ", worker = excluded.worker"
)
"""The same in a journal that several workers share. The last value is the number of the worker that holds the job."""

TRIED = "UPDATE jobs SET tried = 1 WHERE job = ? AND tried = 0"
"""Notes that the function of a job runs."""

ASKED = f"UPDATE jobs SET asks = asks + 1 WHERE job = ? AND outcome = '' AND NOT EXISTS (SELECT 1 FROM questions WHERE {_COUNTED})"
"""Counts a question of a job, before it is noted in `questions`. Its values are the job and the token."""

ANSWERED = (
    f"UPDATE jobs SET asks = asks - 1 WHERE job = ? AND asks > 0 AND EXISTS (SELECT 1 FROM questions WHERE {_COUNTED})"
)
"""Counts the end of a question, before it is noted in `questions`. Its values are the job and the token."""


_APPROVE = "INSERT INTO approvals (name, job, approval) VALUES (?, ?, ?) ON CONFLICT (name) DO NOTHING"
_encode_approval = msgspec.msgpack.Encoder().encode
decode_approval = msgspec.msgpack.Decoder(Approval).decode

_NOTE_BLOCKED = "UPDATE jobs SET blocked = ? WHERE job = ? AND outcome = ''"


def begin_values(offset: int, begin: Begin) -> tuple[Any, ...]:
    """Returns the values of the statement `BEGAN` for an entry at the place `offset`."""
    tried, within = int(bool(begin.agent)), cut(begin.within)
    return begin.job, offset, begin.digest, *facts_of(begin), created_of(begin), tried, within, begin.job


def mark_of_row(row: Sequence[Any]) -> JobMark:
    """Returns the mark of a job from its row, which the statement `MARKS` has selected."""
    job, began, digest, outcome, result, ended_ms, *facts, created_ms, tried, asks, again, blocked, worker = row
    agent, scope, principal, session, key = facts
    return JobMark(
        job,
        Position(0, began),
        digest,
        outcome,
        result,
        ended_ms,
        agent,
        scope,
        principal,
        session,
        key,
        created_ms,
        bool(tried),
        asks,
        bool(again),
        blocked,
        worker,
    )


def find_statement(marks: str, query: JobQuery, most: int) -> tuple[str, list[Any]]:
    """Returns the statement for `JournalReader.logged`, and its values. `marks`: MARKS or HELD_MARKS, as the journal has it."""
    chosen, values = _conditions(query, "created_ms IS NOT NULL")
    return f"{marks}{chosen} ORDER BY created_ms DESC, job DESC LIMIT ?", [*values, most]


def statement_of_counts(query: JobQuery) -> tuple[str, list[Any]]:
    """Returns the statement for `counts_of_row`, and its values."""
    # the sign keeps the index away: its order is of no use here, and each row would be looked up by key
    chosen, values = _conditions(query, "+created_ms IS NOT NULL")
    return f"SELECT {_COUNTS} FROM jobs{chosen}", values


def counts_of_row(row: Sequence[int]) -> dict[str, int]:
    """Returns what `JournalReader.logged_counts` does, from the only row of `statement_of_counts`."""
    opened, ended, *counts = row
    found = dict(zip((*_OPEN, *_ENDS), counts, strict=True))
    found |= {
        "running": opened - sum(map(found.__getitem__, _OPEN)),
        "failed": ended - sum(map(found.__getitem__, _ENDS)),
    }
    return {status: count for status, count in found.items() if count}


def _conditions(query: JobQuery, has_entries: str) -> tuple[str, list[Any]]:
    conditions: list[tuple[str, Sequence[Any]]] = [(has_entries, ())]
    if query.agent and "." in query.agent:
        conditions.append(("agent = ?", (query.agent,)))
    elif query.agent:  # the end of an id, behind its last dot
        conditions.append(
            (
                "(agent = ? OR substr(agent, length(agent) - ?) = ?)",
                (query.agent, len(query.agent), f".{query.agent}"),
            )
        )
    if query.status:
        conditions.append((f"{_STATUS} = ?", (query.status,)))
    return where([*conditions, *shared_conditions(query)])


def note_blocked(connection: Connection, reasons: Mapping[str, str]) -> None:
    """Notes which jobs are blocked, as `Journal.note_blocked` does."""
    for job, why in reasons.items():
        connection.execute(_NOTE_BLOCKED, (cut(why), job))


def note_approvals(connection: Connection, approvals: Iterable[Approval]) -> None:
    """Notes approvals, as `Journal.note_approval` does."""
    for approval in approvals:
        data = _encode_approval(approval)
        # a digest, since an index of PostgreSQL takes neither long texts nor a NUL
        connection.execute(_APPROVE, (blake2b(data, digest_size=16).digest(), approval[0], data))


def make_list(connection: Connection, *, whole: str, text: str, blob: str) -> None:
    """Adds the columns of the list and the table of approvals to the tables of a journal. `whole`, `text`, `blob`: the
    column types for integers of 63 bits, for texts that are sorted by their bytes, and for bytes.
    """
    for statement in _TABLES + _BLOCKED_TABLES + _APPROVALS_TABLES + _WITHIN_TABLES:
        connection.execute(statement.format(whole=whole, text=text, blob=blob))
    index_jobs(connection)


def index_jobs(connection: Connection) -> None:
    """Adds the indexes by which the jobs of a session or a key, open jobs and letters that were not taken are found, for a journal with
    one owner. Otherwise as `index_lists`.
    """
    index_lists(connection)
    connection.execute(_INDEX_OF_OPEN)
    connection.execute(_INDEX_OF_LETTERS)


def index_lists(connection: Connection) -> None:
    """Adds the indexes by which the jobs of a session, and of a key, are found. Does nothing if they are there: tables of the same
    version of the format may have been made before there were any.
    """
    for statement in _INDEXES_OF_LISTS:
        connection.execute(statement)


def bring_list_up_to_date(
    connection: Connection, form: int, entries: Iterable[tuple[Position, Entry]], *, whole: str, text: str, blob: str
) -> None:
    """Adds what the list lacks in tables of an older format. `form`: the version of the format. `entries`: the entries
    of the log, in order; all but results if the tables have no list (`is_unlisted`), else those that begin jobs.
    `whole`, `text`, `blob`: as in `make_list`.

    The table of approvals stays empty: the owner reads them from the entries (`Journal.keep_approvals`).
    """
    if is_unlisted(form):
        make_list(connection, whole=whole, text=text, blob=blob)
        fill_list(connection, entries)
        return
    blocked = _BLOCKED_TABLES if form == _BLOCKED_UNKNOWN else ()
    for statement in blocked + (_APPROVALS_TABLES if form < APPROVED else ()) + _WITHIN_TABLES:
        connection.execute(statement.format(text=text, blob=blob))
    within = {entry.job: cut(entry.within) for _, entry in entries if isinstance(entry, Begin) and entry.within}
    fill(connection, "jobs", "job, within", list(within.items()))
    index_jobs(connection)


def is_unlisted(form: int) -> bool:
    """Returns True if tables of this version of the format have no list of jobs."""
    return form < _BLOCKED_UNKNOWN


def unlist(connection: Connection, jobs: Sequence[str]) -> None:
    """Notes that the log has no entries of these jobs any more. `jobs`: no more than fit into one statement."""
    connection.execute(f"UPDATE jobs SET created_ms = NULL, again = 0 WHERE job {among(jobs)}", jobs)
    connection.execute(f"DELETE FROM approvals WHERE job {among(jobs)}", jobs)


def fill_list(connection: Connection, entries: Iterable[tuple[Position, Entry]]) -> None:
    """Fills the list from all entries of the log, in order: for a journal of an older format, and for a local copy whose
    tables were filled anew.
    """
    known, places, within = JobMarks(), dict[str, int](), dict[str, str]()
    for position, entry in entries:
        known.apply(position.offset, entry)
        if isinstance(entry, Intent) and entry.token:
            places[entry.token] = position.offset
        if isinstance(entry, Begin) and entry.within:
            within[entry.job] = cut(entry.within)
    rows = [
        (mark.job, *(getattr(mark, name) for name in _FACTS.split(", ")), mark.created_ms, int(mark.tried), mark.asks)
        for mark in known.marks.values()
        if mark.created_ms is not None
    ]
    fill(connection, "jobs", f"job, {_FACTS}, created_ms, tried, asks", rows)
    fill(connection, "jobs", "job, within", list(within.items()))
    fill(connection, "questions", "token, place", list(places.items()))
    connection.execute(_NOTE_AGAIN)
