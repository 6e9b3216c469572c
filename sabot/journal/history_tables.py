"""The tables of a journal's history: in SQLite, in PostgreSQL, and in the local copy of a journal in Kafka.

   history          a row for each job that was moved into the history (`EndedJob`), with the number of bytes of its entries
   history_entries  the entries of these jobs, at the places that they had in the log

The table `uses` of the log also records which long bodies the moved entries name. The statements work in SQLite and
PostgreSQL, with `?` for values. Functions that take a connection work in the transaction of their caller.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from sabot.base.accounts import Amounts
from sabot.errors import UserError
from sabot.journal.base import JobHistory, Position
from sabot.journal.begin_facts import facts_of
from sabot.journal.ended_jobs import EndedJob, HistoryBounds, JobQuery, descendants, dollars_of
from sabot.journal.entries import Begin, Entry
from sabot.journal.entry_counts import Connection, among, fill, parts

KEPT = 3
"""The first version of the tables' format that has a history."""

SESSIONS = 12
"""The first version of the tables' format whose history has the column `session`. Journals with one owner have it."""

Select = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_COLUMNS = ", ".join(EndedJob.__struct_fields__)
_COLUMNS_BEFORE = _COLUMNS.replace("session", "''")  # in a format before SESSIONS
_TABLES = (
    "CREATE TABLE history (job {text} PRIMARY KEY, agent {text} NOT NULL, name {text} NOT NULL, scope {text} NOT NULL, "
    "key {text} NOT NULL, status {text} NOT NULL, created_ms {whole} NOT NULL, ended_ms {whole} NOT NULL, "
    "searched {text} NOT NULL, tokens {whole} NOT NULL, nanodollars {whole} NOT NULL, record {blob} NOT NULL, size {whole} NOT NULL)",
    "CREATE INDEX history_by_creation ON history (created_ms, job)",
    "CREATE INDEX history_by_end ON history (ended_ms, job, size)",
    "CREATE TABLE history_entries (place {whole} PRIMARY KEY, job {text} NOT NULL, sum {whole} NOT NULL, entry {blob} NOT NULL)",
    "CREATE INDEX history_entries_of_job ON history_entries (job, place)",
    "INSERT INTO meta (name, value) VALUES ('kept_bytes', '0')",
)
_SESSIONS_TABLES = (
    "ALTER TABLE history ADD COLUMN session {text} NOT NULL DEFAULT ''",
    "CREATE INDEX history_of_session ON history (session, created_ms) WHERE session <> ''",
)
_JOB_ENTRIES = (
    "SELECT place, job, sum, entry FROM {table} WHERE job = ? AND place >= ?"  # both tables have these columns
)
_WRITE = f"INSERT INTO history ({_COLUMNS}, size) VALUES "
_SESSION = "coalesce((SELECT session FROM jobs WHERE jobs.job = ?), '')"
_ROW = f"({', '.join(_SESSION if name == 'session' else '?' for name in EndedJob.__struct_fields__)}, ?)"
_BYTES = "SELECT value FROM meta WHERE name = 'kept_bytes'"
_OLD = "SELECT job, size FROM history WHERE ended_ms < ? ORDER BY ended_ms LIMIT ?"
_OLDEST = "SELECT job, size FROM history ORDER BY ended_ms, job LIMIT ?"
_BELOW = "SELECT CAST(? AS text), sum(tokens), sum(nanodollars) FROM history WHERE job >= ? AND job < ?"
_CHUNK = 1000  # the most rows that are read at once, and jobs that expire in one transaction
_MOST_NAMED = 100  # the most jobs in one statement


def make_history(connection: Connection, *, whole: str, text: str, blob: str) -> None:
    """Creates the tables of the history. The parameters are names of column types: `whole` for integers of 63 bits,
    `text` for texts that are sorted by their bytes, and `blob` for bytes.
    """
    for statement in _TABLES + _SESSIONS_TABLES:
        connection.execute(statement.format(whole=whole, text=text, blob=blob))


def add_sessions(connection: Connection, entries: Iterable[tuple[Position, Entry]], text: str) -> None:
    """Adds the sessions of ended jobs to the tables of an older format. `entries`: as for `fill_sessions`. `text`: as in
    `make_history`.
    """
    for statement in _SESSIONS_TABLES:
        connection.execute(statement.format(text=text))
    fill_sessions(connection, entries)


def fill_sessions(connection: Connection, entries: Iterable[tuple[Position, Entry]]) -> None:
    """Writes the sessions of the jobs in the history. `entries`: at least the BEGIN entries of the history, in order."""
    begins = ((entry.job, facts_of(entry)[3]) for _, entry in entries if isinstance(entry, Begin))
    fill(connection, "history", "job, session", [(job, session) for job, session in dict(begins).items() if session])


def move_entries(connection: Connection, jobs: Sequence[EndedJob]) -> None:
    """Copies the entries of these jobs into the history, and writes a row for each job. The caller then has to remove
    the entries from the log.

    `jobs`: no more than fit into one SQL statement (`entry_counts.parts`). If a job has entries in the history already,
    because it has begun again since, the new entries are added to these. The session of a job is that of its row in `jobs`,
    since the frames of an earlier Sabot in Kafka do not have it.
    """
    names = [job.job for job in jobs]
    chosen = among(names)
    connection.execute(
        f"INSERT INTO history_entries (place, job, sum, entry) SELECT place, job, sum, entry FROM entries WHERE job {chosen}",
        names,
    )
    sizes = _sizes(connection, names)
    before = connection.execute(f"SELECT sum(size) FROM history WHERE job {chosen}", names).fetchall()
    connection.execute(f"DELETE FROM history WHERE job {chosen}", names)
    rows = [(*msgspec.structs.astuple(replace(job, session=job.job)), sizes.get(job.job, 0)) for job in jobs]
    connection.execute(_WRITE + ", ".join([_ROW] * len(rows)), [value for row in rows for value in row])
    _count(connection, sum(sizes.values()) - int(before[0][0] or 0))


def _sizes(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """Returns, by job, the number of bytes that the job's entries in the history have, including their long bodies.
    `names`: the ids of the jobs.
    """
    found: dict[str, int] = {}
    for what, source in (
        ("entry", "history_entries"),
        (
            "body",
            "history_entries JOIN uses ON uses.place = history_entries.place JOIN bodies ON bodies.hash = uses.hash",
        ),
    ):
        statement = f"SELECT job, sum(length({what})) FROM {source} WHERE job {among(names)} GROUP BY job"
        for job, nbytes in connection.execute(statement, names).fetchall():
            found[job] = found.get(job, 0) + int(nbytes)
    return found


def _count(connection: Connection, more: int) -> None:
    ((before,),) = connection.execute(_BYTES).fetchall()
    connection.execute("UPDATE meta SET value = ? WHERE name = 'kept_bytes'", (str(int(before) + more),))


def count_history(connection: Connection) -> None:
    """Computes the number of bytes of the whole history, and stores it."""
    ((found,),) = connection.execute("SELECT sum(size) FROM history").fetchall()
    connection.execute("UPDATE meta SET value = ? WHERE name = 'kept_bytes'", (str(int(found or 0)),))


def expiring(select: Select, bounds: HistoryBounds) -> list[str]:
    """Returns jobs that have to be removed from the history, the oldest first. A job has to be removed if it is older
    than `bounds` allows, or if the history has more bytes than `bounds` allows. One call may return only some of
    these jobs. The caller removes them, and calls again until the list is empty. `select`: a function that runs an
    SQL query.
    """
    ((held,),) = select(_BYTES, ())
    old = select(_OLD, (bounds.before_ms, _CHUNK))
    if old or int(held) <= bounds.most_bytes:
        return [job for job, _ in old]
    found, over = [], int(held) - bounds.most_bytes
    for job, size in select(_OLDEST, (_CHUNK,)):
        if over <= 0:
            break
        found.append(job)
        over -= int(size)
    return found


def expire(connection: Connection, jobs: Sequence[str]) -> None:
    """Removes jobs from the history, together with those long bodies that no other entry refers to."""
    for names in parts(jobs, _MOST_NAMED):
        chosen = among(names)
        before = connection.execute(f"SELECT sum(size) FROM history WHERE job {chosen}", names).fetchall()
        drop_bodies(connection, "history_entries", names)
        connection.execute(f"DELETE FROM history_entries WHERE job {chosen}", names)
        connection.execute(f"DELETE FROM history WHERE job {chosen}", names)
        _count(connection, -int(before[0][0] or 0))


def drop_bodies(connection: Connection, table: str, jobs: Sequence[str]) -> None:
    """Removes the long bodies to which only the entries of these jobs refer. `table`: the table that has these
    entries. The caller then has to remove the entries.
    """
    chosen = f"place IN (SELECT place FROM {table} WHERE job {among(jobs)})"
    bodies = [name for (name,) in connection.execute(f"SELECT DISTINCT hash FROM uses WHERE {chosen}", jobs).fetchall()]
    connection.execute(f"DELETE FROM uses WHERE {chosen}", jobs)
    for hashes in parts(bodies):
        unused = "NOT EXISTS (SELECT 1 FROM uses WHERE uses.hash = bodies.hash)"
        connection.execute(f"DELETE FROM bodies WHERE hash {among(hashes)} AND {unused}", hashes)


class SqlHistory(JobHistory):
    """The history of a journal (`JobHistory`) in the tables of an SQL database.

    - `select`: a function that runs an SQL query.
    - `decoded`: a function that checks and decodes rows of entries.
    - `form`: the version of the tables' format. Before KEPT, no method finds jobs in the history; before SESSIONS, a query
      for a session raises UserError. `where`: the name of the journal, for that error.
    """

    def __init__(
        self,
        select: Select,
        decoded: Callable[[Iterable[Sequence[Any]]], Iterator[tuple[Position, Entry]]],
        *,
        form: int,
        where: str,
    ) -> None:
        self._select = select
        self._decoded = decoded
        self._there = form >= KEPT
        self._form = form
        self._where = where
        self._columns = _COLUMNS if form >= SESSIONS else _COLUMNS_BEFORE

    def entries(self, job: str) -> Iterator[tuple[Position, Entry]]:
        tables = ("history_entries", "entries") if self._there else ("entries",)
        one = " UNION ALL ".join(_JOB_ENTRIES.format(table=table) for table in tables)
        first = 0
        # one statement sees both tables at one moment, so that a job is found even if it moves between two statements
        while True:
            rows = self._select(f"{one} ORDER BY place LIMIT {_CHUNK}", (job, first) * len(tables))
            yield from self._decoded(rows)
            if len(rows) < _CHUNK:
                return
            first = rows[-1][0] + 1

    def find(self, query: JobQuery, most: int) -> list[EndedJob]:
        if not self._there:
            return []
        chosen, values = self._conditions(query)
        statement = f"SELECT {self._columns} FROM history{chosen} ORDER BY created_ms DESC, job DESC LIMIT ?"
        return [EndedJob(*row) for row in self._select(statement, (*values, most))]

    def counts(self, query: JobQuery) -> dict[str, int]:
        if not self._there:
            return {}
        chosen, values = self._conditions(query)
        return dict(self._select(f"SELECT status, count(*) FROM history{chosen} GROUP BY status", values))

    def known(self, jobs: Collection[str]) -> list[EndedJob]:
        return [
            EndedJob(*row)
            for names in parts(list(jobs) if self._there else [], _MOST_NAMED)
            for row in self._select(f"SELECT {self._columns} FROM history WHERE job {among(names)}", names)
        ]

    def used_below(self, jobs: Collection[str]) -> dict[str, Amounts]:
        found = {}
        for names in parts(list(jobs) if self._there else [], _MOST_NAMED):
            values = [value for name in names for value in (name, *descendants(name))]
            for job, tokens, nanodollars in self._select(" UNION ALL ".join([_BELOW] * len(names)), values):
                if tokens is not None:
                    found[job] = Amounts(int(tokens), dollars_of(int(nanodollars)))
        return found

    def _conditions(self, query: JobQuery) -> tuple[str, list[Any]]:
        if query.session and self._form < SESSIONS:
            raise UserError(
                f"{self._where} has format {self._form}, whose ended jobs are not listed by session",
                hint="start its app, kernel or workers with this Sabot: the first start brings the journal up to date",
            )
        return _conditions(query)


def _conditions(query: JobQuery) -> tuple[str, list[Any]]:
    """Returns a WHERE clause for a query of the history, and the values for its `?`. The clause is "" if the query
    selects all jobs.
    """
    conditions: list[tuple[str, Sequence[Any]]] = []
    if query.agent:
        conditions.append(("(agent = ? OR name = ?)", (query.agent, query.agent)))
    if query.status:
        conditions.append(("status = ?", (query.status,)))
    if query.text:
        words = query.text.casefold().replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        conditions.append((r"searched LIKE ? ESCAPE '\'", (f"%{words}%",)))
    return where([*conditions, *shared_conditions(query)])


def shared_conditions(query: JobQuery) -> list[tuple[str, Sequence[Any]]]:
    """Returns those conditions of a query that read the same in each list of jobs, with the values for their `?`."""
    conditions: list[tuple[str, Sequence[Any]]] = [
        # the second part is the condition of the indexes
        (f"{name} = ?" if name == "scope" else f"{name} = ? AND {name} <> ''", (value,))
        for name in ("scope", "key", "session")
        if (value := getattr(query, name))
    ]
    if query.since:
        conditions.append(("created_ms >= ?", (query.since_ms,)))
    if query.until:
        conditions.append(("created_ms < ?", (query.until_ms,)))
    if (last := query.last) is not None:
        conditions.append(("(created_ms, job) < (?, ?)", last))  # of rows: the index is searched, and not walked
    return conditions


def where(conditions: Sequence[tuple[str, Sequence[Any]]]) -> tuple[str, list[Any]]:
    """Returns a WHERE clause of conditions, and the values for its `?`. The clause is "" if there is no condition."""
    chosen = " AND ".join(each for each, _ in conditions)
    return f" WHERE {chosen}" if chosen else "", [value for _, values in conditions for value in values]
