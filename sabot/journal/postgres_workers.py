"""A journal in PostgreSQL that several workers share: each holds some of the jobs, and appends their entries.

   workers       a row for each worker: its lease, and the place behind its last durable entry
   jobs.worker   the worker that holds the job; the one that began it, or that took it last
   inbox.worker  the worker that has claimed a letter which begins a job; 0 for none
   places        a sequence of ranges of places
   crashes       jobs with which workers have died (`crashes`)
   limits, seats limits of jobs (`seats`)
   refusals      jobs that the code of workers cannot continue (`refusals`)

**Queue.** A letter that begins a job is the job's place in the queue. A worker claims it, and appends BEGIN. Letters to a
job are taken by its worker only.

**Looks go on where the last one has ended.** While somebody has a long dump, the server keeps the index entries of all letters
that were claimed since, and a look would read them all. So a worker remembers, by agent and priority, up to which number no letter
waits, and which letters it has claimed itself; and of letters to jobs, up to which number none waits for any worker. It passes over
a number when each transaction that may have drawn a lower one has ended: those that had begun to write when a look saw the number.
Whoever puts a letter back into the queue draws a range of places afterwards, which lets all workers look at the whole queue once.
They do so without a reason too, after thirty times the time that the last such look took: a process may be killed between the two.

**Places** come in ranges, which a sequence of the database gives out. A worker draws another range when it takes jobs from
another worker: so the entries that it appends to them have higher places than those before, and within a job places rise.
Between jobs they have no order in time, and there are gaps: no reader looks for missing entries.

**The fence** is the row of the worker, which each commit and each take locks with FOR KEY SHARE: these do not wait for each other,
nor for a renewal of the lease. Each statement that ends the right to commit, for all jobs or for those that are given back, locks the
row with FOR UPDATE first, and so waits for all of them. Behind the fence a commit fails if a job of its entries is not this worker's.
Only renewals, five in the time of a lease, leave an old version of the row, which a long dump keeps. Whether a commit was made whose
outcome is unknown is seen by its last entry.

**A dead worker**, whose lease is over or whose process has certainly ended, is marked as gone by another one, which locks its
row, or looks again later while a commit has it locked: so either a commit of it comes before, or never. Jobs that a stopping worker
gives back belong to worker 0, which is gone.

**Jobs of workers that are gone** are taken in turn: each worker takes its part of all open jobs, whole trees, at most 64 jobs at
once and as many as it has room for. What is left behind after two seconds belongs to whoever has room: others may have none.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from sabot.base.proc import is_over, life_of_this_process
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock, boot_seconds
from sabot.errors import JournalFailed, TransientError
from sabot.journal.base import EVERY, MAY_BEGIN_AGAIN, Beginnings, JournalReader, Position
from sabot.journal.crashes import ASIDE, KEEP_EARLIER, MOST, OF_TREE, ROOT, SUSPECTS, Suspects, blame, in_trees, tree_of
from sabot.journal.entries import Entry, Letter, decode_letter
from sabot.journal.job_tables import WITHOUT_SESSION
from sabot.journal.lanes import JobLimit
from sabot.journal.owner_inbox import OwnerInbox
from sabot.journal.postgres import (
    END_SESSIONS,
    JournalLease,
    PostgresInbox,
    PostgresJournal,
    PostgresReader,
    session_of,
)
from sabot.journal.refusals import REFUSED, refuse, to_try
from sabot.journal.schemas import RANGE, Statements
from sabot.journal.seats import (
    AGENTS,
    ARE_DUE,
    BECOME_DUE,
    DUE,
    LIMITS,
    PASSES,
    RETRIES,
    TO_JOBS,
    SharedLanes,
    cancelled,
    cancels_of,
    index_lanes,
    limit_of,
    note_agents,
    park_seats,
    retries_of,
    set_limits,
)
from sabot.journal.tables import SqlReader, StoredEntry, add
from sabot.journal.writing import GroupWriter
from sabot.steps import step

_log = logging.getLogger(__name__)

_MOST = 64  # letters that are claimed, or jobs that are taken, at once
_MOST_QUEUES = 256  # agents with a priority that a look asks for

_ENTER = (
    "INSERT INTO workers (owner, described, life, written, until) VALUES (%s, %s, %s, %s, "
    "clock_timestamp() + %s * interval '1 second') ON CONFLICT (owner) DO UPDATE SET epoch = workers.epoch + 1, until = excluded.until, "
    "written = excluded.written, gone = false RETURNING number, epoch"
)
# An UPDATE alone would not wait for a commit of the old session, whose COMMIT may arrive later than the error here.
_LOCK_MINE = "SELECT 1 FROM workers WHERE owner = %s FOR UPDATE"
_COME_BACK = (
    "UPDATE workers SET epoch = epoch + 1, until = clock_timestamp() + %s * interval '1 second' "
    "WHERE owner = %s AND NOT gone RETURNING epoch"
)
# whether there was an entry at a place: it may have been trimmed since
_WAS_WRITTEN = (
    "SELECT EXISTS (SELECT 1 FROM entries WHERE place = %(place)s) "
    "OR EXISTS (SELECT 1 FROM gone WHERE first <= %(place)s AND behind > %(place)s)"
)
_RENEW = "UPDATE workers SET until = clock_timestamp() + %s * interval '1 second' WHERE number = %s AND epoch = %s AND NOT gone RETURNING 1"
# Both are an error, a division by zero, where the worker is gone or has another session.
_FENCE = "SELECT 1 / count(*)::int FROM (SELECT 1 FROM workers WHERE number = %s AND epoch = %s AND NOT gone FOR KEY SHARE) AS mine"
_RENEWING_FENCE = f"WITH mine AS ({_RENEW}) SELECT 1 / count(*)::int FROM mine"
_DECLARE = "INSERT INTO meta (name, value) SELECT unnest(%s::text[]), 'declared' ON CONFLICT (name) DO NOTHING"
_DECLARED = "SELECT name FROM meta WHERE value = 'declared'"
_LEAVE = (
    "WITH mine AS (UPDATE workers SET gone = true WHERE owner = %s RETURNING number) UPDATE inbox SET worker = 0 FROM mine "
    "WHERE worker = mine.number AND taken = 0"
)
_MINE_FIRST = "SELECT 1 FROM workers WHERE number = %s AND NOT gone FOR KEY SHARE"
_DEAD = "other workers have declared this one dead, and go on with its jobs"
# Waits for a commit of this worker that is under way: behind it the jobs may belong to somebody else.
_MINE_ALONE = "SELECT 1 FROM workers WHERE number = %s FOR UPDATE"
# Behind the fence, in a statement of its own: the fence may have waited for a give-back, and its snapshot is older than that. It locks no
# row of `jobs`, since only this worker and whoever has declared it dead take jobs from it, and both lock its row in `workers` first.
# A row of which the log has no entries, or no BEGIN, says nothing: nobody holds it.
_NOT_MINE = "SELECT job, worker FROM jobs WHERE job = ANY(%s) AND worker <> %s AND created_ms IS NOT NULL"
_ALL_MINE = f"SELECT 1 / (count(*) = 0)::int FROM ({_NOT_MINE}) AS theirs"

_UNTAKEN = f"{ASIDE}, {REFUSED}"  # of these no job is taken without a reason

_MINE = "taken = 0 AND worker = ? AND worker <> 0 AND starts_with(once, 'begin:')"


def _to_me(claimed: str) -> str:
    """Returns the statement that selects the letters which this worker takes. `claimed`: of those that begin jobs."""
    return (
        f"SELECT number, letter, passes FROM (SELECT number, priority, letter, {PASSES} AS passes FROM {claimed} "
        f"UNION ALL SELECT i.number, i.priority, i.letter, false FROM (SELECT * FROM inbox WHERE {TO_JOBS} AND number > ?) i "
        "JOIN jobs j ON j.job = i.job "
        "WHERE j.worker = ? AND (i.worker <> 0 OR i.agent <> ALL(?))) AS mine ORDER BY priority, number"
    )


def _unclaimed(queues: str, behind: str = "") -> str:
    """Returns the statement that selects the first letters which nobody has claimed, of each of the `queues`."""
    return (
        f"SELECT i.* FROM unnest({queues}) CROSS JOIN LATERAL (SELECT number, agent, priority FROM inbox "
        f"WHERE {DUE} AND inbox.agent = a.agent{behind} ORDER BY priority, number LIMIT {_MOST}) i "
        f"ORDER BY i.priority, i.number LIMIT {_MOST}"
    )


# By True all of them, by False those of which this worker knows that they may be there. OFFSET 0 lets each number be looked up.
_TO_ME = {
    True: _to_me(f"inbox WHERE {_MINE}"),
    False: _to_me(
        "unnest(?::bigint[]) AS known (claimed) CROSS JOIN LATERAL "
        f"(SELECT * FROM inbox WHERE number = known.claimed OFFSET 0) i WHERE {_MINE}"
    ),
}
_UNCLAIMED = {
    True: _unclaimed("?::text[]) AS a (agent"),
    False: _unclaimed(
        # up to the next priority that is known: there may be letters of priorities that are not
        "?::text[], ?::bigint[], ?::bigint[], ?::bigint[]) AS a (agent, priority, passed, last",
        # a comparison of rows: with `priority =` the planner takes the index of all letters by number
        " AND (priority, number) > (a.priority, a.passed) AND priority <= a.last",
    ),
}
# Two queries of their own, each by an index: with EXISTS the planner plans both twice, and again with each look
_LIMITED = (
    f"SELECT a.agent FROM unnest(?::text[]) AS a (agent) WHERE (SELECT 1 FROM inbox WHERE {DUE} AND inbox.agent = a.agent "
    "ORDER BY agent, priority, number LIMIT 1) IS NOT NULL UNION "
    f"SELECT i.agent FROM (SELECT * FROM inbox WHERE {RETRIES}) i WHERE i.agent = ANY(?) "
    "AND (SELECT worker FROM jobs WHERE jobs.job = i.job) = ?"
)
_STRANGERS = (  # by agent, the first letter, each found by a search in the index
    f"WITH RECURSIVE firsts (agent, letter) AS ((SELECT agent, letter FROM inbox WHERE {DUE} AND agent >= chr(11) ORDER BY agent LIMIT 1) "
    f"UNION ALL SELECT n.agent, n.letter FROM firsts f CROSS JOIN LATERAL (SELECT agent, letter FROM inbox WHERE {DUE} "
    "AND agent > f.agent ORDER BY agent, priority, number LIMIT 1) n) SELECT letter FROM firsts WHERE agent <> ALL(?)"
)
# by a range of the index: few jobs are cancelled while they are queued
_CANCELLED = (
    f"SELECT number, agent FROM inbox WHERE {DUE} AND agent >= chr(10) AND agent < chr(11) AND agent <> ALL(?) "
    f"ORDER BY agent, priority, number LIMIT {_MOST}"
)
_CLAIM = (
    "UPDATE inbox SET worker = %s WHERE number IN (SELECT number FROM inbox WHERE number = ANY(%s) AND worker = 0 AND taken = 0 "
    "FOR UPDATE SKIP LOCKED) RETURNING number"
)
# a retry of a job whose worker is gone, and a cancel of one that is set aside
_ORPHANS = (
    f"SELECT DISTINCT j.job FROM (SELECT * FROM inbox WHERE {TO_JOBS} AND number > ?) i JOIN jobs j ON j.job = i.job "
    "LEFT JOIN workers w ON w.number = j.worker WHERE w.gone IS NOT FALSE "
    f"AND (j.ended IS NOT NULL OR (j.worker IN ({_UNTAKEN}) AND starts_with(i.once, 'cancel:')))"
)
_OTHERS = "SELECT number, owner, described, life, until < clock_timestamp() FROM workers WHERE NOT gone AND number <> ?"
_OF_OTHERS = f"SELECT 1 FROM jobs WHERE worker <> ? AND worker NOT IN ({_UNTAKEN}) AND ended IS NULL LIMIT 1"
_BURY = (
    "UPDATE workers SET gone = true, earlier = CASE WHEN %(certain)s THEN earlier ELSE greatest(earlier, "
    "clock_timestamp() + %(lease_s)s * interval '1 second') END WHERE number IN (SELECT number FROM workers WHERE number = %(number)s "
    "AND NOT gone AND (%(certain)s OR until < clock_timestamp()) FOR UPDATE SKIP LOCKED) RETURNING number"
)
# True for a worker that holds open jobs, by a search in the index. EXISTS would be a join with all open jobs, and a search for this very
# number reads them all where most of them have one worker. The search ends behind the number: a long dump keeps the index entries of all
# jobs that the next worker has ended.
_HOLDS = "(SELECT true FROM jobs j WHERE j.worker >= w.number AND j.worker <= w.number AND j.ended IS NULL ORDER BY j.worker LIMIT 1)"
_LEFT = f"SELECT DISTINCT w.number = {SUSPECTS} FROM workers w WHERE w.gone AND {_HOLDS}"
# All that a worker looks for regularly, by one query: the letters that it takes, and whether there is more. Not by EXISTS, which drops
# the order and the limit of a query, and with them the index.
_LOOK = {
    whole: f"SELECT ARRAY(SELECT number FROM ({_TO_ME[whole]}) AS mine), ({ARE_DUE}) IS NOT NULL, "
    f"(SELECT 1 FROM ({_UNCLAIMED[whole]}) AS free LIMIT 1) IS NOT NULL, (SELECT 1 FROM ({_LEFT}) AS behind LIMIT 1) IS NOT NULL, "
    "coalesce((SELECT max(number) FROM inbox), 0), (SELECT last_value FROM places), "
    "txid_snapshot_xmin(txid_current_snapshot()), txid_snapshot_xmax(txid_current_snapshot()), "
    f"(SELECT number FROM inbox WHERE {TO_JOBS} AND number > ? ORDER BY number LIMIT 1)"
    for whole in (True, False)
}
# Trees move whole, with the jobs that have ended: one of these may be retried, and runs where the others are. So one worker at a
# time takes trees, behind the lock of the row of worker 0.
_ONE_TAKES = "SELECT 1 FROM workers WHERE number = 0 FOR UPDATE SKIP LOCKED"
_CHOSEN = (
    f"WITH dead AS MATERIALIZED (SELECT number FROM workers w WHERE gone AND number >= 0 AND {_HOLDS}) "
    "SELECT job FROM jobs JOIN dead ON worker = number WHERE ended IS NULL LIMIT %s"
)
_OF_SUSPECTS = f"FROM jobs LEFT JOIN crashes ON tree = {ROOT} WHERE worker = {SUSPECTS} AND ended IS NULL"
_SUSPECT = f"SELECT job {_OF_SUSPECTS} ORDER BY count, job LIMIT 1"
_TAKE = (
    f"WITH roots AS MATERIALIZED (SELECT DISTINCT {ROOT} AS root FROM jobs WHERE job = ANY(%s)), "
    f"theirs AS MATERIALIZED (SELECT jobs.job, w.earlier FROM jobs LEFT JOIN workers w "
    f"ON w.number = CASE WHEN jobs.worker < 0 THEN {SUSPECTS} ELSE jobs.worker END WHERE {in_trees('roots')} AND w.gone IS NOT FALSE) "
    "UPDATE jobs SET worker = %s FROM theirs WHERE jobs.job = theirs.job "
    "RETURNING jobs.job, jobs.ended IS NULL, extract(epoch FROM theirs.earlier - clock_timestamp())::float8"
)
# the part of a worker of all open jobs, and what it has of that
_PART = (
    "SELECT (count(*) + n - 1) / n, count(*) FILTER (WHERE worker = ?) FROM jobs, "
    "(SELECT greatest(1, count(*)) AS n FROM workers WHERE NOT gone) AS living "
    f"WHERE ended IS NULL AND worker NOT IN ({_UNTAKEN}) GROUP BY n"
)
_GIVEN = f"(SELECT DISTINCT {ROOT} AS root FROM unnest(%s::text[]) AS given (job)) AS trees"
_IN_GIVEN = f"SELECT job FROM {_GIVEN} CROSS JOIN LATERAL ({OF_TREE}) AS theirs"
# The jobs are values here, so that the server knows how many they are: as the result of a query it takes them for a few.
_GIVE_BACK = "UPDATE jobs SET worker = 0 WHERE job = ANY(%s) AND worker = %s"
_FORGET = (
    f"WITH forgotten AS (DELETE FROM workers w WHERE gone AND number > 0 AND {_HOLDS} IS NULL "
    "AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.worker = w.number AND i.taken = 0 AND i.worker <> 0) RETURNING number) "
    f"DELETE FROM meta WHERE name IN (SELECT '{AGENTS}' || number FROM forgotten)"
)
# without rows that a transaction whose connection has broken may still change: it has them locked
_SETTLED = "SELECT job, worker = ? AND ended IS NULL FROM jobs WHERE job = ANY(?) FOR SHARE SKIP LOCKED"
_FREE = (
    "UPDATE inbox SET worker = 0 WHERE number IN (SELECT i.number FROM workers w CROSS JOIN LATERAL (SELECT number FROM inbox "
    "WHERE inbox.worker = w.number AND taken = 0 AND inbox.worker <> 0 FOR UPDATE SKIP LOCKED) i WHERE w.gone) "
    "RETURNING number, agent, priority"
)


_ENDED = (
    "SELECT job FROM jobs WHERE ended IS NOT NULL AND ended_ms < ? AND created_ms IS NOT NULL "
    f"AND ((outcome NOT IN ({', '.join(map(repr, MAY_BEGIN_AGAIN))}){{}}) OR ended_ms < ?) LIMIT 200"
)


_WORKERS = (
    "SELECT number, described, CASE WHEN number < 0 THEN 'waits' WHEN gone THEN 'has ended' "
    "WHEN until < clock_timestamp() THEN 'is not heard of' ELSE 'runs' END, "
    "(SELECT count(*) FROM jobs j WHERE j.worker = w.number AND j.ended IS NULL) FROM workers w "
    f"WHERE NOT gone OR {_HOLDS} ORDER BY number"
)


def workers_of(reader: JournalReader) -> list[tuple[int, str, str, int]]:
    """Returns the workers of a journal that several share, and those that have ended and whose jobs nobody has taken yet: the
    number, the process, the state in words, and the number of open jobs of each. Returns [] for other journals. Blocks.
    """
    if not isinstance(reader, PostgresReader) or not reader.is_shared:
        return []
    return [(number, described, state, held) for number, described, state, held in reader.select(_WORKERS)]


def drawn(connection: Any) -> int:
    """Returns the first place of a range of places that nobody else has."""
    ((number,),) = connection.execute("SELECT nextval('places')").fetchall()
    return int(number) * RANGE


class WorkersInbox(PostgresInbox):
    """An inbox of a journal that several workers share. A start of this process that waits for an open transaction of a caller holds up
    none of its takes.
    """

    no_entries = "LOCK TABLE workers IN EXCLUSIVE MODE"  # the rows alone would let a worker that joins commit

    def __init__(self, url: str, app: str | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(url, app, clock=clock)
        self.beginning = self.another_session()


class WorkerLease(JournalLease):
    """The lease of one of several workers: a row of the table `workers`. `number`: the number of the worker. `first`: its first
    place.
    """

    number = first = 0

    def take(self, connection: Any, wait: Callable[[float], object]) -> None:
        asked = boot_seconds()
        with self.place.server.explained(), step("journal", f"{self.place.where}: claim"):
            self.first = self.end = drawn(connection)
            values = self.owner, self.described, life_of_this_process(), self.end, self.lease_s
            ((self.number, self.epoch),) = connection.execute(_ENTER, values).fetchall()
        self.renewed = self.asked = asked

    def bring_up_to_date(self, connection: Any) -> None:
        """Does nothing: the tables of a shared journal are up to date."""

    def fence(self, renews: bool) -> tuple[str, tuple[Any, ...]]:
        return (_RENEWING_FENCE, self.renewal()[1]) if renews else (_FENCE, (self.number, self.epoch))

    def renewal(self) -> tuple[str, tuple[Any, ...]]:
        return _RENEW, (self.lease_s, self.number, self.epoch)

    def come_back(self, connection: Any, behind: int | None) -> int:
        with connection.transaction():
            connection.execute(_LOCK_MINE, (self.owner,))
            found = connection.execute(_COME_BACK, (self.lease_s, self.owner)).fetchall()
        if not found:
            raise self.lost(_DEAD)
        ((self.epoch,),) = found
        if behind is not None and self._was_written(connection, behind - 1):
            return behind
        if self.end > self.first and not self._was_written(connection, self.end - 1):
            raise JournalFailed(
                f"{self.place.where}: entry {self.end - 1}, which this worker has written, is missing",
                hint="the server has lost what it had committed: it was restored, or another one has taken its place",
            )
        return self.end

    def _was_written(self, connection: Any, place: int) -> bool:
        ((found,),) = connection.execute(_WAS_WRITTEN, {"place": place}).fetchall()
        return bool(found)

    def leave(self, connection: Any) -> None:
        with connection.transaction():
            connection.execute(_LOCK_MINE, (self.owner,))
            freed = connection.execute(_LEAVE, (self.owner,)).rowcount
        if freed:
            drawn(connection)  # others have passed over these letters


class _WorkerBeginnings(Beginnings):
    """Asks the worker."""

    def __init__(self, worker: "PostgresWorker") -> None:
        super().__init__(worker)
        self._worker, self.shared = worker, True

    def limit(self, limits: Mapping[str, JobLimit]) -> None:
        self._worker.limit(limits)

    def lacks(self, declared: Collection[str]) -> list[str]:
        return self._worker.lacks(declared)

    def rests(self, job: str) -> None:
        self._worker.suspects.rests(job)

    def give_back(self, jobs: Collection[str]) -> None:
        self._worker.give_back(jobs)

    def refuse(self, reasons: Mapping[str, str]) -> None:
        self._worker.refuse(reasons)


class PostgresWorker(PostgresJournal):
    """A worker of a journal in PostgreSQL that several processes share. A missing journal is created. A journal with one
    owner becomes one that is shared, for good, unless it has an owner now: then the constructor raises AppLocked.

    The parameters are those of PostgresJournal. `lease_s`: the jobs of this worker belong to others when it was not heard of
    for this many seconds, or at once when its process has certainly ended.
    """

    look_s = 0.05
    full_s = 0.1
    """The seconds between two looks into the queues of agents whose seats are all taken."""

    reap_s = 2.0
    """The seconds between two looks for workers that are gone."""

    patient = 30
    """How many times as long as a look at the whole queue a worker waits for the next one, at most that many seconds."""

    kept_s = 86_400.0
    """The seconds for which it is known of a job that its worker before may have begun calls: longer than these take."""

    lease: WorkerLease
    lease_type = WorkerLease
    inbox: WorkersInbox
    inbox_type = WorkersInbox

    def make_tables(self, connection: Any, url: str, app: str | None) -> None:
        self.lease.place.share(connection, lambda: PostgresJournal(url, app).close())

    def start(self, writer: GroupWriter, inbox: OwnerInbox, clock: Clock) -> None:
        super().start(writer, inbox, clock)
        self.begins = _WorkerBeginnings(self)
        self._seen: dict[int, int] = {}  # letters that became entries: the places of these
        self._claimed: set[int] = set()  # letters that begin jobs and that it may have claimed
        self._passed: dict[tuple[str, int], int] = {}  # by agent and priority: no letter up to this number waits
        self._answered = 0  # no letter to a job up to this number waits, whosever it is
        self._settled = 0  # no letter up to this number will still come
        self._newest = (0, 0)  # the first transaction that had not begun to write at a look, and the last letter then
        self._drawn = 0  # the last range of places that anybody had drawn at the look before
        self._whole_at = -math.inf  # when the whole queue is looked at again
        self._whole_s = 0.0  # the time that this took
        self._earlier: dict[str, float] = {}  # until when the worker before may begin calls, by job, by `boot_seconds`
        self._strangers_at = -math.inf  # when letters to agents that are not here are looked for again
        self._reaped = -math.inf
        self._unsure: list[str] = []  # jobs that were taken, if the transaction was committed
        self._warned = False  # that open jobs wait for `resume`
        self._left_since = math.inf  # when jobs of workers that are gone were seen first
        self._part = 0  # the number of these that belong to this worker
        self.suspects = Suspects()
        self._told_declared = frozenset[str]()  # what this one has noted that it has
        self._said_behind = False  # the log has that others declare what this worker has not
        self.begins.lanes = self._lanes = SharedLanes()
        # before this time the queues of agents with limits are not looked at, since all of their seats are taken
        self._full_until = -math.inf

    def lacks(self, declared: Collection[str]) -> list[str]:
        if not self._told_declared.issuperset(declared):
            with self.inbox.session.using() as connection, step("journal", f"{self.where}: declare"):
                connection.execute(_DECLARE, (sorted(declared),))
            self._told_declared = frozenset(declared)
        return self._noted_beyond(declared)

    def _noted_beyond(self, declared: Collection[str]) -> list[str]:
        return sorted({name for (name,) in self.select(_DECLARED)}.difference(declared))

    def _is_behind(self) -> bool:
        """Returns True if a worker that has started later has a policy or budgets, and this one has not: from then on it takes
        no jobs, since nobody would judge or count their calls here.
        """
        missing = self._noted_beyond(self.begins.declared)
        if missing and not self._said_behind:
            self._said_behind = True
            _log.error(
                "%s: other workers have %s now, and this one has not: it begins no jobs any more, and only goes on with those that it "
                "holds. Start it anew with the same options",
                *(self.where, " and ".join(f"{each}=" for each in missing)),
            )
        return bool(missing)

    def limit(self, limits: Mapping[str, JobLimit]) -> None:
        with self.inbox.session.using() as connection, step("journal", f"{self.where}: limits"):
            index_lanes(connection, limits.values())
            with connection.transaction():
                set_limits(connection, self.begins.agents, limits)
                note_agents(connection, self.lease.number, self.begins.agents)
        self._read_limits()

    def _read_limits(self) -> None:
        self._lanes.limits = {agent: limit_of(spec) for agent, spec in self.select(LIMITS)}

    # -- entries -----------------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> Position:
        position = super().append(entry)
        self.suspects.sees(entry)
        return position

    def insert(self, connection: Any, rows: list[StoredEntry]) -> None:
        connection.execute(_ALL_MINE, self._jobs_of(rows))
        add(Statements(connection), rows, worker=self.lease.number)
        if rows[-1].place % RANGE >= RANGE // 2:  # fewer entries than half a range wait
            self.writer.jump(drawn(connection))

    def _jobs_of(self, rows: list[StoredEntry]) -> tuple[list[str], int]:
        """Returns the values of `_NOT_MINE`: a child that begins has no row, and is in the tree of its first job."""
        jobs = {row.entry.job for row in rows}
        return sorted(jobs.union(map(tree_of, jobs))), self.lease.number

    def check_rows(self, connection: Any, rows: list[StoredEntry]) -> None:
        for job, worker in connection.execute(_NOT_MINE, self._jobs_of(rows)).fetchall():
            raise JournalFailed(
                f"an entry of the tree of job {job} was written by worker {self.lease.number}, and "
                f"{f'worker {worker}' if worker > 0 else 'no worker'} has the job",
                hint="that is a fault of Sabot, and nothing was written with that entry: start this process anew, and report it",
            )

    async def flush(self) -> dict[int, int]:
        ((_, behind),) = (await super().flush()).items()
        return {(behind - 1) // RANGE: behind} if behind > self.lease.first else {}

    def predecessor_left(self, job: str) -> float:
        return self._earlier.get(job, -math.inf) - boot_seconds()

    def positions(self) -> dict[int, int]:
        return SqlReader.positions(self)

    def unfinished(self, since: Mapping[int, int]) -> list[str]:
        """Returns the ids of the jobs that this worker holds."""
        return [
            job
            for (job,) in self.select("SELECT job FROM jobs WHERE worker = ? AND ended IS NULL", (self.lease.number,))
        ]

    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        """Trims as `Journal.trim` does, by the time of the last job of this worker that has ended before the offset: the
        places of other workers say nothing about it.
        """
        chosen = "SELECT max(ended_ms) FROM jobs WHERE worker = ? AND ended < ?"
        ((self._ended_ms,),) = self.select(chosen, (self.lease.number, before.get(0, 0)))
        return 0 if self._ended_ms is None else super().trim({0: EVERY}, forget_before_ms, sessions=sessions)

    def ended(self, before: int, before_ms: int, *, sessions: bool = False) -> list[str]:
        chosen = _ENDED.format(WITHOUT_SESSION if sessions else "")
        return [job for (job,) in self.select(chosen, (self._ended_ms, before_ms))]

    # -- letters and jobs --------------------------------------------------------------------------------------------------

    def untaken(self, after: int = 0) -> list[tuple[int, Letter]]:
        self._forget_seen()
        whole = self._is_whole()
        rows = self._read(whole, _TO_ME, self._of_mine(whole))
        if whole:
            self._claimed = {number for number, *_ in rows}
            self._wait_patiently()
        letters = [(number, decode_letter(data, self.where), p) for number, data, p in rows if number not in self._seen]
        # a cancel of a job that has not begun comes with the letter that begins it, so that its function is not called
        cancels = cancels_of(self.select, [letter.job for _, letter, passes in letters if passes])
        # and one of a job that waits to run again with the letter that begins that run: alone it would cancel the run before
        again = retries_of(self.select, [letter.job for _, letter, _ in letters if letter.kind == "cancel"])
        there = {number for number, *_ in letters}.union(self._seen)
        found = list[tuple[int, Letter]]()
        for number, letter, passes in letters:
            if letter.kind == "cancel" and again.get(letter.job, number) not in there:
                continue
            found.append((number, letter))
            if passes and (cancel := cancels.get(letter.job)) is not None:
                found.append((cancel[0], decode_letter(cancel[1], self.where)))
        return found

    def _of_mine(self, whole: bool) -> tuple[Any, ...]:
        """Returns the values of the statement `_TO_ME`."""
        mine = self.lease.number, 0 if whole else self._answered, self.lease.number, list(self._lanes.limits)
        return mine if whole else (list(self._claimed), *mine)

    def _is_whole(self) -> bool:
        return boot_seconds() >= self._whole_at

    def _read(self, whole: bool, statements: Mapping[bool, str], values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        began = boot_seconds()
        rows = self.select(statements[whole], values)
        if whole:
            self._whole_s = max(self._whole_s, boot_seconds() - began)
        return rows

    def _wait_patiently(self) -> None:
        """Notes that the whole queue was looked at."""
        self._whole_at = boot_seconds() + min(self.patient * self._whole_s, self.patient)
        self._whole_s = 0.0

    def _queues(self, agents: Collection[str], whole: bool) -> tuple[list[Any], ...]:
        """Returns the values of the statement `_UNCLAIMED` for the letters of these agents."""
        if whole:
            return (list(agents),)
        if len(self._passed) > _MOST_QUEUES:
            self._look_at_all()
        for agent in agents:
            self._passed.setdefault((agent, 0), 0)
        priorities: dict[str, list[int]] = {agent: [] for agent in agents}
        for agent, priority in sorted(self._passed):
            # a cancel lets a letter through that was passed over before, and these are few
            if agent in priorities and agent in self.begins.agents:
                priorities[agent].append(priority)
        found = list[tuple[str, int, int, int]]()
        for agent, known in priorities.items():
            lasts = [*(each - 1 for each in known), EVERY]
            starts = [(-EVERY, 0), *((each, self._passed[agent, each]) for each in known)]
            found += [(agent, *start, last) for start, last in zip(starts, lasts, strict=True)]
        return tuple(map(list, zip(*found, strict=True))) if found else ([], [], [], [])

    def _settle(self, newest: int, oldest: int, next_one: int) -> None:
        """Notes up to which number no letter will still come: the last one that an earlier look has seen, if each transaction has
        ended that had begun to write then. Each does that before it draws a number, and a dump never does.

        `newest`: the number of the last letter. `oldest`: the first transaction that runs and has begun to write. `next_one`: the first
        one that has not.
        """
        if self._newest[0] <= oldest:
            self._settled, self._newest = self._newest[1], (next_one, newest)

    def _pass_over(self, agents: Collection[str]) -> None:
        """Notes that no letter of these agents waits where a look has looked."""
        for key, passed in list(self._passed.items()):
            if key[0] in agents:
                self._passed[key] = max(passed, self._settled)

    def _look_at_all(self) -> None:
        """Lets looks begin at the first letters."""
        self._passed = {}

    def _look_before(self, letters: Collection[tuple[int, str, int]]) -> None:
        """Lets looks begin at letters that wait now and were passed over before. `letters`: in any order."""
        known = dict(self._passed)
        self._look_from(
            sorted((min(number, known.get((agent, each), 0) + 1), agent, each) for number, agent, each in letters)
        )

    def _look_from(self, letters: Collection[tuple[int, str, int]]) -> None:
        """Lets looks begin at letters that wait, of each agent and priority at the first. `letters`: in the order of their numbers."""
        firsts = {(agent, priority): number for number, agent, priority in reversed(list(letters))}
        for key, number in firsts.items():
            self._passed[key] = min(number - 1, max(self._passed.get(key, 0), self._settled))

    def _forget_seen(self) -> None:
        """Forgets the letters whose entries are durable: these are no letters any more."""
        durable = self.writer.durable_offset
        for number in [number for number, place in self._seen.items() if place < durable]:
            del self._seen[number]
            self._claimed.discard(number)

    def letters(self) -> list[Letter]:
        """Returns the letters to all workers, for lists."""
        return [letter for _, letter in SqlReader.untaken(self)]

    async def look(self) -> bool:
        return await run_in_thread(self._has_work)

    def _put_back(self, connection: Any, letters: Collection[tuple[int, str, int]]) -> None:
        """Notes that letters wait again, and lets the other workers know of it unless this one takes all of them now. Called when
        they do.
        """
        self._look_before(letters)
        known, others = self._unlimited(), [agent for _, agent, _ in letters if agent not in self._lanes.limits]
        if others and (len(others) > self.begins.room() or not {*others}.issubset(known) or self._is_behind()):
            drawn(connection)

    def _has_work(self) -> bool:
        self._forget_seen()
        agents = self._unlimited() if self.begins.room() > 0 else []
        whole = self._is_whole()
        values = *self._of_mine(whole), *self._queues(agents, whole), self._answered
        ((numbers, due, unclaimed, left, newest, drew, *running, first),) = self._read(whole, _LOOK, values)
        self._settle(newest, *running)
        self._answered = max(self._answered, self._settled if first is None else min(self._settled, first - 1))
        if not unclaimed:
            self._pass_over(agents)
        if drew != self._drawn:  # the next look has a newer snapshot
            self._drawn = drew
            self._look_at_all()
        if due or any(number not in self._seen for number in numbers) or (unclaimed and not self._is_behind()):
            return True  # the take looks at the whole queue too, if this was such a look
        if whole:
            self._wait_patiently()
        if self._lanes.parks or self._lanes.wants or self._limited() or self.suspects.has_cleared:
            return True
        if self.begins.resumes:
            if not left:
                self._left_since = math.inf
            return self._is_late() or (left and self._takes() != (0, False))
        if not self._is_late() or self.select(_ORPHANS, (self._answered,)) or self._cancelled_strangers():
            return self._is_late()
        self._reaped = boot_seconds()
        self._tell_of_strangers()
        self._warn_of_open()
        return False

    def _warn_of_open(self) -> None:
        """Logs, once, that jobs are open with which no worker goes on. Not at the first call: `resume` may follow."""
        living = len(self.select(_OTHERS, (self.lease.number,))) - len(list(self._dead()))
        if self._warned or living or not self.select(_OF_OTHERS, (self.lease.number,)):
            return
        if self._left_since == math.inf:
            self._left_since = boot_seconds()
            return
        self._warned = True
        _log.warning(
            "%s has open jobs, and no worker goes on with them before `await kernel.resume()`: call it once after each start",
            self.where,
        )

    def _is_late(self) -> bool:
        return boot_seconds() >= self._reaped + self.reap_s

    def _takes(self) -> tuple[int, bool]:
        """Returns how many jobs of workers that are gone this one takes now: up to its part of all open jobs, and after
        `reap_s` as many as there are. And whether it takes a tree to try it alone.
        """
        left, room = {suspect for (suspect,) in self.select(_LEFT)}, self.begins.room()
        alone = True in left and room > 0 and not self.suspects.alone
        if left and self._is_behind():
            return 0, False
        if False not in left:
            self._left_since = math.inf
            return 0, alone
        now = boot_seconds()
        if self._left_since == math.inf:
            self._left_since = now
            ((whole, mine),) = self.select(_PART, (self.lease.number,)) or [(0, 0)]
            self._part = whole - mine
        most = EVERY if now >= self._left_since + self.reap_s else self._part
        return max(0, min(most, _MOST, room)), alone

    def _claimable(self) -> list[int]:
        """Returns the numbers of letters that begin jobs of the agents that are here, as many as there is room for."""
        room, whole = self.begins.room(), self._is_whole()
        found = self._read(whole, _UNCLAIMED, self._queues(self._unlimited(), whole)) if room > 0 else []
        self._look_from([(number, agent, priority) for number, agent, priority in found])
        return [] if found and self._is_behind() else [number for number, *_ in found[:room]]

    def _unlimited(self) -> list[str]:
        """Returns the agents, as letters name them, that are here and whose jobs begin without a seat."""
        agents = self.begins.agents
        return [*(each for each in agents if each not in self._lanes.limits), *map(cancelled, agents)]

    def _limited(self) -> list[str]:
        """Returns the agents that are here and have a limit and letters that begin jobs, while there is room."""
        agents = [agent for agent in self._lanes.limits if agent in self.begins.agents]
        full = boot_seconds() < self._full_until and not self._lanes.may_have_more
        if not agents or full or self.begins.room() <= 0:
            return []
        found = [agent for (agent,) in self.select(_LIMITED, (agents, agents, self.lease.number))]
        return [] if found and self._is_behind() else found

    def _cancelled_strangers(self) -> list[int]:
        """Returns the numbers of letters that begin cancelled jobs of agents that are not here, and maybe nowhere: any worker ends
        them, since their functions are not called.
        """
        known = list(map(cancelled, self.begins.agents))
        return [number for number, _ in self.select(_CANCELLED, (known,))]

    def _tell_of_strangers(self) -> None:
        """Logs which letters begin jobs of agents that are not here, of each agent the first one."""
        began = boot_seconds()
        if began < self._strangers_at:
            return
        for (data,) in self.select(_STRANGERS, (list(self.begins.agents),)):
            self.begins.leave(decode_letter(data, self.where))
        self._strangers_at = boot_seconds() + min(self.patient * (boot_seconds() - began), self.patient)

    def _dead(self) -> Iterator[tuple[int, str, str, bool]]:
        """Yields the workers that have died and that nobody has declared dead: the number, the session and the words for each,
        and whether it has certainly ended.
        """
        for number, owner, described, life, over in self.select(_OTHERS, (self.lease.number,)):
            if (certain := is_over(life)) or over:
                yield number, owner, described, certain

    def take(self) -> list[tuple[Position, Any]]:
        late = self._is_late()
        try:
            if self.claim_left():
                self.begins.taken_over += self._reap(late)
            self.claim_letters(strangers=late)
            if late:
                self._tell_of_strangers()
        except TransientError:
            self._look_at_all()  # it may have put letters back into the queue
            return []
        if late:
            self._reaped = boot_seconds()
        return super().take()

    def claim_letters(self, *, strangers: bool = False) -> None:
        """Claims letters that begin jobs, as many as there is room for. Lets jobs go on that have waited for a seat. `strangers`:
        True to claim cancelled ones of other agents too, which need no room.
        """
        if self.select(ARE_DUE):
            with self.inbox.session.using() as connection:
                self._put_back(connection, connection.execute(BECOME_DUE).fetchall())
        numbers, parks = self._claimable(), set(self._lanes.parks)
        wanting = {job.partition("/")[0] for job in list(self._lanes.wants)}
        limited = sorted(wanting.union(self._limited()))
        self._lanes.looks_into(limited)
        unrun = self._cancelled_strangers() if strangers else []
        if not (numbers or parks or limited or unrun):
            return
        room = 0 if wanting and self._is_behind() else self.begins.room() - len(numbers)
        with (
            self.inbox.session.using() as connection,
            step("journal", f"{self.where}: take"),
            connection.transaction(),
        ):
            self._check_lease(connection)
            if numbers or unrun:
                chosen = [*numbers, *unrun]
                self._claimed.update(n for (n,) in connection.execute(_CLAIM, (self.lease.number, chosen)).fetchall())
            if parks:
                park_seats(connection, parks)
            granted = list[str]()
            for agent in limited:
                jobs, letters = self._lanes.claim(connection, agent, self.lease.number, room)
                granted += jobs
                self._claimed.update(letters)
                room -= len(letters)
        self._lanes.parks -= parks
        self.begins.granted += self._lanes.granted(granted)
        if room == self.begins.room() - len(numbers):
            self._full_until = boot_seconds() + self.full_s

    def note_taken(self, number: int, position: Position | None) -> None:
        self._seen[number] = EVERY if position is None else position.offset

    def give_back(self, jobs: Collection[str]) -> None:
        with (
            self.inbox.session.using() as connection,
            step("journal", f"{self.where}: give back"),
            connection.transaction(),
        ):
            connection.execute(_MINE_ALONE, (self.lease.number,))
            if (earlier_s := self.lease.predecessor_until - boot_seconds()) > 0:
                connection.execute(KEEP_EARLIER, (earlier_s, 0))
            theirs = [job for (job,) in connection.execute(_IN_GIVEN, (list(jobs),)).fetchall()]
            connection.execute(_GIVE_BACK, (theirs, self.lease.number))

    def refuse(self, reasons: Mapping[str, str]) -> None:
        with (
            self.inbox.session.using() as connection,
            step("journal", f"{self.where}: give back"),
            connection.transaction(),
        ):
            connection.execute(_MINE_ALONE, (self.lease.number,))
            self._check_lease(connection)
            connection.execute(KEEP_EARLIER, (max(0.0, self.lease.predecessor_until - boot_seconds()), SUSPECTS))
            refuse(connection, reasons, self.begins.version, self.lease.number)

    def _reap(self, late: bool) -> list[str]:
        """Takes trees of workers that are gone: of open jobs, if this worker goes on with these, and of jobs that are to be
        retried. Returns the ids of the open jobs. If it was unknown whether an earlier call has taken some, returns these too
        if it has. That is decided when the server has ended the transaction of that call: its COMMIT may arrive later than the
        error here. `late`: True to look for workers that have died, and for retries.
        """
        if late:
            self._read_limits()
            if self._lanes.limits:
                with self.inbox.session.using() as connection:
                    self._lanes.forget(connection)
        settled = dict(self.select(_SETTLED, (self.lease.number, self._unsure))) if self._unsure else {}
        taken = [job for job, mine in settled.items() if mine]
        unsure = [job for job in self._unsure if job not in settled]
        if late and self.begins.resumes:
            dead = list(self._dead())
            with self.inbox.session.using() as connection, step("journal", f"{self.where}: take"):
                self._bury(connection, dead)
                self._put_back(connection, connection.execute(_FREE).fetchall())
                if dead:
                    drawn(connection)  # one of them may have put letters back, and told nobody
                connection.execute(_FORGET)
        if self.suspects.has_cleared:
            with self.inbox.session.using() as connection:
                self.suspects.clear(connection)
        retried = [job for (job,) in self.select(_ORPHANS, (self._answered,))] if late else []
        if late and self.begins.resumes and (room := min(_MOST, self.begins.room())) > 0:
            asked = to_try(self.lease.number, self.begins.version, room)
            retried += [job for (job,) in self.select(*asked)]
        retried = [] if retried and self._is_behind() else retried
        most, alone = self._takes() if self.begins.resumes else (0, False)
        if most or alone or retried:
            with (
                self.inbox.session.using() as connection,
                step("journal", f"{self.where}: take"),
                connection.transaction(),
            ):
                self._check_lease(connection)
                found = self._take_trees(connection, most, alone, retried)
                now = boot_seconds()
                ends = {job: now + earlier_s for job, _, earlier_s in found if earlier_s is not None}
                known = {job: until for job, until in self._earlier.items() if until > now - self.kept_s}
                # not for all jobs: each take would delay what is in doubt in those before
                self._earlier = known | {job: max(until, known.get(job, until)) for job, until in ends.items()}
                self.lease.predecessor_until = max([self.lease.predecessor_until, *ends.values()])
                went_on = [job for job, is_open, _ in found if is_open]
                taken += went_on
                self._unsure = [*unsure, *taken]
            self._part -= len(went_on)
        self._unsure = [job for job in unsure if job not in taken]  # that transaction may have ended since the look
        return taken

    def _take_trees(
        self, connection: Any, most: int, alone: bool, jobs: list[str]
    ) -> list[tuple[str, bool, float | None]]:
        """Takes the trees of up to `most` open jobs of workers that are gone, and those of `jobs`; with `alone` also one with
        which workers have died. Returns for each job in them its id, whether it is open, and the seconds for which its worker
        may still begin calls, or None.
        """
        if not connection.execute(_ONE_TAKES).fetchall():
            return []
        self.writer.jump(drawn(connection))  # behind the last draw of workers that are gone
        chosen = connection.execute(_CHOSEN, (most,)).fetchall() if most else []
        chosen += connection.execute(_SUSPECT).fetchall() if alone else []
        found: list[tuple[str, bool, float | None]]
        found = connection.execute(_TAKE, ([*jobs, *(job for (job,) in chosen)], self.lease.number)).fetchall()
        earlier_s = max((left_s for *_, left_s in found if left_s is not None), default=0.0)
        if earlier_s > 0:  # for who takes them when this worker has died
            connection.execute(KEEP_EARLIER, (earlier_s, self.lease.number))
        self.suspects.add(connection, [job for job, is_open, _ in found if is_open])
        return found

    def _check_lease(self, connection: Any) -> None:
        """Raises JournalFailed if other workers have declared this one dead. Until the end of the transaction they cannot."""
        if not connection.execute(_MINE_FIRST, (self.lease.number,)).fetchall():
            raise self.lease.lost(_DEAD)

    def _bury(self, connection: Any, dead: list[tuple[int, str, str, bool]]) -> None:
        for number, owner, described, certain in dead:
            connection.execute(END_SESSIONS, (session_of(owner),))
            facts = {"number": number, "certain": certain, "lease_s": self.lease.lease_s}
            with connection.transaction():
                if not connection.execute(_BURY, facts).fetchall():
                    continue
                aside = blame(connection, number)
            _log.warning("%s: %s has ended without leaving: its jobs go on elsewhere", self.where, described)
            for tree in aside:
                _log.error(
                    "%s: job %s is set aside: %d workers in a row have died while they ran it; see their logs, then retry it",
                    *(self.where, tree, MOST),
                )
