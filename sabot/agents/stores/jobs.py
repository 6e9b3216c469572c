"""The tables `runtime_jobs` and `runtime_actions` in PostgreSQL, which show the jobs and actions of journals.

   journal ─▶ new entries ─▶ records of their jobs ─▶ the table `runtime_sequence` ─▶ the tables
                                                      a row is only written if its last entry is newer than that of the row in the table

So any reader of the journal may write the tables, also several readers at once, and also late. If the tables are lost,
`rebuild` makes them anew from the journal.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sabot.agents.actions import ActionRecord, ActionStatus
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.stores.tables import PostgresTables
from sabot.base.threads import run_in_thread, run_to_end
from sabot.journal.base import JournalReader

_AT_ONCE = 1000  # the most jobs in one statement
_LATEST = 253_402_300_000.0  # seconds since 1970, in the year 9999: many clients know no later one

TABLES = {
    "runtime_jobs": """
CREATE TABLE runtime_jobs (job_id TEXT PRIMARY KEY, scope_id TEXT NOT NULL, principal_id TEXT NOT NULL, session_id TEXT NOT NULL,
    run_id TEXT NOT NULL, status TEXT NOT NULL, created_at TIMESTAMPTZ NOT NULL, updated_at TIMESTAMPTZ NOT NULL, started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ, deadline FLOAT, progress FLOAT, budgets JSONB NOT NULL, policy_ref JSONB, versions JSONB NOT NULL,
    metadata JSONB NOT NULL, tags JSONB NOT NULL);
CREATE INDEX runtime_jobs_of_scope ON runtime_jobs (scope_id, status)
""",
    "runtime_actions": """
CREATE TABLE runtime_actions (action_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, type TEXT NOT NULL, status TEXT NOT NULL,
    payload JSONB NOT NULL, resolution JSONB, resume_token TEXT NOT NULL UNIQUE, created_at TIMESTAMPTZ NOT NULL, expires_at TIMESTAMPTZ,
    resolved_at TIMESTAMPTZ);
CREATE INDEX runtime_actions_of_job ON runtime_actions (job_id)
""",
    "runtime_sequence": """
CREATE TABLE runtime_sequence (job_id TEXT PRIMARY KEY, journal TEXT NOT NULL, sequence BIGINT NOT NULL);
CREATE INDEX runtime_sequence_of_journal ON runtime_sequence (journal)
""",
}
_NEWER = (
    "INSERT INTO runtime_sequence AS s SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]) ON CONFLICT (job_id) DO UPDATE "
    "SET journal = excluded.journal, sequence = excluded.sequence "
    "WHERE s.sequence < excluded.sequence OR s.journal <> excluded.journal RETURNING job_id"
)
_TIMES = "to_timestamp(%s)"
_JOB = (
    f"INSERT INTO runtime_jobs AS j VALUES (%s, %s, %s, %s, %s, %s, {_TIMES}, {_TIMES}, {_TIMES}, {_TIMES}, %s, %s, %s::jsonb, %s::jsonb, "
    "%s::jsonb, %s::jsonb, %s::jsonb) ON CONFLICT (job_id) DO UPDATE SET (scope_id, principal_id, session_id, run_id, status, "
    "updated_at, completed_at, deadline, progress, budgets, policy_ref, versions, metadata, tags) = (excluded.scope_id, "
    "excluded.principal_id, excluded.session_id, excluded.run_id, excluded.status, excluded.updated_at, excluded.completed_at, "
    "excluded.deadline, excluded.progress, excluded.budgets, excluded.policy_ref, excluded.versions, excluded.metadata, excluded.tags), "
    "created_at = least(j.created_at, excluded.created_at), started_at = least(j.started_at, excluded.started_at)"
)
_ACTION = (
    f"INSERT INTO runtime_actions VALUES (%s, %s, %s, %s, %s::jsonb, %s::jsonb, %s, {_TIMES}, {_TIMES}, {_TIMES}) ON CONFLICT (action_id) "
    "DO UPDATE SET status = excluded.status, resolution = excluded.resolution, resolved_at = excluded.resolved_at"
)
_SHOWN = (
    "SELECT s.job_id, s.sequence, j.status FROM runtime_sequence s LEFT JOIN runtime_jobs j USING (job_id) WHERE s.journal = %s "
    "ORDER BY s.job_id"
)
_FORGET = (
    "DELETE FROM runtime_actions a USING runtime_sequence s WHERE a.job_id = s.job_id AND s.journal = %s",
    "DELETE FROM runtime_jobs j USING runtime_sequence s WHERE j.job_id = s.job_id AND s.journal = %s",
    "DELETE FROM runtime_sequence WHERE journal = %s",
)


class PostgresJobViews:
    """A writer of the tables `runtime_jobs` and `runtime_actions` in PostgreSQL, from which other programs can read the
    jobs and actions of a journal. It makes the rows from the entries of the journal, which may be of any kind. The same
    tables can show several journals. Missing tables are created.
    """

    def __init__(self, pool: Any) -> None:
        """Makes a writer, and does not connect yet. `pool` is the address of the database, or a pool of asyncpg, of
        which only the address is used. Raises UserError for anything else, and MissingExtra if psycopg is not
        installed.
        """
        self._tables = PostgresTables(pool, "jobs", "PostgresJobViews", TABLES)
        self._known: JobView | None = None
        self._turn = asyncio.Lock()

    async def create_tables(self) -> None:
        """Creates missing tables now. Otherwise the first use creates them. Raises the errors of `refresh`."""
        await run_to_end(run_in_thread(self._tables.create))

    async def refresh(self, journal: JournalReader) -> int:
        """Updates the tables to the durable entries of the journal. Returns the number of jobs whose rows were written.

        Reads the entries that are new since the last call. The first call reads all entries in the log, and so does a
        call after a failure. Raises TransientError if a server does not answer, UserError if it refuses, and
        CorruptJournal for an entry that cannot be read.
        """
        async with self._turn:
            return await run_to_end(run_in_thread(self._refresh, journal))

    async def wrong(self, journal: JournalReader) -> list[str]:
        """Returns the ids of the jobs whose rows contradict this journal. A row that is only older than the journal is
        not a contradiction. Jobs that the journal no longer has are not checked. Raises the errors of `refresh`.
        """
        async with self._turn:
            return await run_to_end(run_in_thread(self._wrong, journal))

    def _wrong(self, journal: JournalReader) -> list[str]:
        known, end = JobView(journal), max(journal.positions().values(), default=0)
        last = known.follow(journal)
        found = []
        for job_id, sequence, status in self._tables.select(_SHOWN, (journal.identity,)):
            job = known.job(job_id)
            if job is None:
                # else the journal has trimmed the job
                if sequence >= end and journal.job(job_id) is None:
                    found.append(job_id)
            elif sequence > last[job_id] or (sequence == last[job_id] and status != job.status):
                found.append(job_id)
        return found

    async def rebuild(self, journal: JournalReader) -> int:
        """Deletes all rows of this journal, and writes the rows of those jobs that its log still has. Returns the
        number of jobs that were written. Raises the errors of `refresh`.
        """
        async with self._turn:
            return await run_to_end(run_in_thread(self._refresh, journal, True))

    def _refresh(self, journal: JournalReader, anew: bool = False) -> int:
        known = self._known
        self._known = None
        if known is None or known.bodies is not journal or anew:
            known = JobView(journal)
        last = known.follow(journal)
        with self._tables.transaction(look=anew) as connection:
            if anew:
                forget_jobs(connection, journal.identity)
            newer = show_jobs(connection, journal.identity, last, known)
        known.forget_ended()
        self._known = known
        return newer

    async def close(self) -> None:
        """Closes the connection. The next use opens a new one."""
        await run_to_end(run_in_thread(self._tables.close))


def forget_jobs(connection: Any, identity: str) -> None:
    """Deletes the rows of all jobs and actions of the journal with this identity."""
    for statement in _FORGET:
        connection.execute(statement, (identity,))


def show_jobs(connection: Any, identity: str, last: Mapping[str, int], known: JobView) -> int:
    """Writes the rows of jobs and of their actions, and returns the number of jobs that were written. If the table
    already has the row of a job from this journal, and that row is as new as the entries, the job is left out.

    - `connection`: the connection, in a transaction.
    - `identity`: the identity of the journal.
    - `last`: by the id of each job to write, the number of its last entry in the journal. The row with the higher
      number is the newer one.
    - `known`: the view from which the rows are made.
    """
    actions: dict[str, list[ActionRecord]] = {}
    for action in known.actions.values():
        if action.job_id in last:
            actions.setdefault(action.job_id, []).append(action)
    newer = 0
    ordered = sorted(last.items())  # all writers lock jobs in this order, so that none deadlock
    for part in (ordered[begin : begin + _AT_ONCE] for begin in range(0, len(ordered), _AT_ONCE)):
        columns = [list(values) for values in zip(*part, strict=True)]
        rows = (columns[0], [identity] * len(part), columns[1])
        written = {job_id for (job_id,) in connection.execute(_NEWER, rows).fetchall()}
        newer += len(written)
        jobs = [job for job_id in written if (job := known.job(job_id)) is not None]
        _each(connection, _JOB, map(_job_row, jobs))
        _each(connection, _ACTION, (_action_row(one) for job_id in written for one in actions.get(job_id, ())))
    return newer


def _each(connection: Any, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(statement, list(rows))


def _json(value: object) -> str:
    """Returns a value as JSON text for the database. NUL characters in texts are replaced by the replacement character
    U+FFFD, because PostgreSQL does not accept them.
    """
    text = msgspec.json.encode(value).decode()
    return msgspec.json.encode(_shown(msgspec.json.decode(text))).decode() if r"\u0000" in text else text


def _shown(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        case list():
            return [_shown(each) for each in value]
        case dict():
            return {_shown(name): _shown(each) for name, each in value.items()}
    return value


def _at(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, _LATEST)


def _job_row(job: JobRecord) -> tuple[Any, ...]:
    ours = {name: getattr(job, name) for name in ("agent", "error", "result_ref", "idempotency_key")}
    said: Mapping[str, Any] = {name: value for name, value in ours.items() if value}
    return (
        *(_shown(each) for each in (job.job_id, job.scope_id, job.principal_id, job.session_id, job.run_id)),
        str(job.status),
        *(_at(each) for each in (job.created_at, job.updated_at, job.started_at, job.completed_at)),
        job.deadline,
        1.0 if job.status is JobStatus.SUCCEEDED else None,
        _json(job.budgets),
        None if job.policy_ref is None else _json(job.policy_ref),
        _json(job.versions),
        _json({**job.metadata, "sabot": said} if said else job.metadata),
        _json(job.tags),
    )


def _action_row(action: ActionRecord) -> tuple[Any, ...]:
    return (
        action.action_id,
        action.job_id,
        action.type,
        str(action.status),
        _json(action.payload),
        _json(action.resolution) if action.status is ActionStatus.RESOLVED else None,
        action.resume_token,
        *(_at(each) for each in (action.created_at, action.expires_at, action.resolved_at)),
    )
