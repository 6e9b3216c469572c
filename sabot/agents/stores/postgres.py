"""A store of jobs and actions in PostgreSQL. Any number of stores and processes can use the same database.

   a call ─▶ one transaction: the job's lock ─▶ its entries ─▶ allowed? ─▶ the next entry ─▶ runtime_jobs, runtime_actions

There are two kinds of jobs in the tables. The jobs of a JobManager have no effects and no code to run. The store keeps
their entries itself, in the table `runtime_entries`, which is like a small journal without an owner.

The jobs of a kernel are in the kernel's journal, whose owner writes the same tables. The store passes calls about them
on: questions about their state to that journal, answers and cancels to its inbox.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from sabot.agents.actions import ActionRecord, ActionSpec, ActionStatus, check_resolution, no_action
from sabot.agents.app_jobs import AppJobStore, JournalAddress
from sabot.agents.context import checked_word
from sabot.agents.job_entries import as_json, begin_entry, check_same, digest_of, move_entry, name_of, question_entry
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord, JobSpec, JobStatus, no_job
from sabot.agents.store import JobsAndActions
from sabot.agents.stores.jobs import TABLES, PostgresJobViews, forget_jobs, show_jobs
from sabot.agents.stores.tables import PostgresTables
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.quantities import counted_words
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.sql.server import address_of
from sabot.errors import CorruptJournal, LetterRefused, SabotError, TransientError, UserError
from sabot.journal.base import Journal, Question, check_letter, entry_of_letter
from sabot.journal.entries import Body, Entry, Intent, Letter, StoredBody, decode_entry, encode_entry
from sabot.journal.schemas import app_of_journal, split_app

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_PATIENCE_SECONDS, _AGAIN_SECONDS = 5.0, 0.1
_OURS = ""  # the value in `runtime_sequence` for jobs that are in no journal
_KEY = b""  # digests need no secret key: the content stands beside them
_ENTRIES = {
    "runtime_entries": """
CREATE TABLE runtime_entries (job_id TEXT COLLATE "C" NOT NULL, number BIGINT NOT NULL, token TEXT COLLATE "C" NOT NULL,
    entry BYTEA NOT NULL, PRIMARY KEY (job_id, number));
CREATE UNIQUE INDEX runtime_entries_of_token ON runtime_entries (token) WHERE token <> ''
"""
}
# 438: a seed of our own, so that locks of other programs do not collide
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 438))"
_READ = "SELECT job_id, entry FROM runtime_entries WHERE job_id = ANY(%s) ORDER BY job_id, number"
_ADD = "INSERT INTO runtime_entries (job_id, number, token, entry) VALUES (%s, %s, %s, %s)"
_SAME = "SELECT 1 FROM runtime_entries WHERE job_id = %s AND number = %s AND entry = %s"
_ALL = "SELECT DISTINCT job_id FROM runtime_entries ORDER BY job_id"
_OF_TOKEN = "SELECT job_id FROM runtime_entries WHERE token = %s"
_JOURNAL_OF_TOKEN = (
    "SELECT a.job_id, s.journal FROM runtime_actions a JOIN runtime_sequence s USING (job_id) WHERE a.resume_token = %s"
)
_JOURNAL_OF_JOB = "SELECT journal FROM runtime_sequence WHERE job_id = %s"
_SECONDS = "extract(epoch FROM {})::float8"
_TIMES = ("created_at", "updated_at", "started_at", "completed_at")
_WORDS = ("job_id", "scope_id", "principal_id", "session_id", "run_id", "status")
_JOB_WORDS = (*_WORDS, *_TIMES, "deadline", "budgets", "policy_ref", "versions", "metadata", "tags")
_FIND_JOBS = (
    f"SELECT s.journal, {', '.join(_SECONDS.format(f'j.{word}') if word in _TIMES else f'j.{word}' for word in _JOB_WORDS)} "
    "FROM runtime_jobs j JOIN runtime_sequence s USING (job_id) WHERE (%s::text IS NULL OR j.scope_id = %s) "
    "AND (%s::text[] = '{}' OR j.status = ANY(%s)) AND (%s::text IS NULL OR j.job_id = %s) ORDER BY j.created_at, j.job_id"
)
_ACTION_TIMES = ("created_at", "expires_at", "resolved_at")
_ACTION_WORDS = ("action_id", "job_id", "type", "status", "payload", "resolution", "resume_token", *_ACTION_TIMES)
_FIND_ACTIONS = (
    f"SELECT s.journal, {', '.join(_SECONDS.format(f'a.{word}') if word in _ACTION_TIMES else f'a.{word}' for word in _ACTION_WORDS)} "
    "FROM runtime_actions a JOIN runtime_sequence s USING (job_id) WHERE (%s::text IS NULL OR a.job_id = %s) "
    "AND (%s::text[] = '{}' OR a.status = ANY(%s)) ORDER BY a.created_at, a.action_id"
)
_TRIM = (
    "WITH over AS (SELECT job_id FROM runtime_jobs JOIN runtime_sequence USING (job_id) WHERE journal = '' "
    "AND completed_at < to_timestamp(%s)), shown AS (DELETE FROM runtime_actions a USING over WHERE a.job_id = over.job_id), "
    "jobs AS (DELETE FROM runtime_jobs j USING over WHERE j.job_id = over.job_id), "
    "seen AS (DELETE FROM runtime_sequence s USING over WHERE s.job_id = over.job_id) "
    "DELETE FROM runtime_entries e USING over WHERE e.job_id = over.job_id"
)


class _Stored:
    """The loader for the bodies of entries in the table `runtime_entries`. It reads nothing, because these entries
    contain their bodies.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def load(self, body: Body) -> bytes:
        """Returns `body`, which already consists of the bytes. Raises CorruptJournal if it is only a reference to bytes
        that are stored outside of the entry.
        """
        if isinstance(body, StoredBody):
            raise CorruptJournal(f"{self.where}: an entry names a body that stands elsewhere")
        return body


@answers_wrong_options
class PostgresJobStore(JobsAndActions):
    """A store of jobs and actions in a PostgreSQL database. Other programs can read them in the tables `runtime_jobs`
    and `runtime_actions`. Any number of stores, in any number of processes, can use the same database.
    `PostgresActionStore` is another name of this class.

    If the store is passed to a RuntimeKernel, it also shows the jobs and actions of the kernel. If no `journal=` is
    passed to that kernel, it keeps its journal in the same database. Then stores in other processes can also find the
    kernel's jobs, answer their questions and cancel them.

    When a method returns, its change is durable. Methods raise BrokerUnavailable or TransientError if the server does
    not answer; then nobody knows whether the change was made. They raise UserError if the server refuses it.
    """

    def __init__(self, pool: Any, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Makes a store, and does not connect yet.

        `pool` is the address of the database, or a pool of asyncpg, of which only the address is used, because the
        store opens its own connections. `?app=NAME` in the address is the name of the app under which a kernel keeps
        its journal if no `journal=` is passed to it. Raises UserError for another `pool`, and MissingExtra if psycopg
        is not installed.
        """
        self.clock = clock
        self.home = address_of(pool, "PostgresJobStore")
        """The address at which a kernel without `journal=` keeps its journal."""
        database, _ = split_app(self.home)
        self.views = PostgresJobViews(database)
        self._tables = PostgresTables(database, "jobs", "PostgresJobStore", TABLES | _ENTRIES)
        self._stored = _Stored(self._tables.where)
        self._elsewhere: dict[str, AppJobStore] = {}  # by the identity of a journal
        self._lent: JobsAndActions | None = None
        self._shown: Journal | None = None
        self._mine: str | None = None  # the identity of the journal of this process's kernel
        self._told = False

    async def create_tables(self) -> None:
        """Creates missing tables now. Otherwise the first use creates them."""
        await run_to_end(run_in_thread(self._tables.create))

    async def close(self) -> None:
        """Closes the connections that the store has opened. The next use opens new ones. A pool that was passed to the
        constructor remains open.
        """
        await run_to_end(run_in_thread(self._tables.close))
        await self.views.close()

    # -- one job's entries --------------------------------------------------------------------------------------------

    def _known(self, connection: Any, job_ids: Collection[str]) -> tuple[JobView, dict[str, int]]:
        """Reads the entries of these jobs from `runtime_entries`. Returns a view of the jobs, and a dict of the number
        of entries by job id.
        """
        known, counts = JobView(self._stored), dict[str, int]()
        for job_id, data in connection.execute(_READ, (list(job_ids),)).fetchall():
            known.apply(decode_entry(bytes(data), f"{self._tables.where}: runtime_entries"))
            counts[job_id] = counts.get(job_id, 0) + 1
        return known, counts

    async def _read(self, job_ids: Collection[str]) -> JobView:
        def read() -> JobView:
            with self._tables.transaction() as connection:
                return self._known(connection, job_ids)[0]

        return await self._patiently(read)

    async def _change(
        self, job_id: str, next_entry: Callable[[JobView], Entry | None], *, known_only: bool = False
    ) -> JobView | None:
        """Appends an entry to a job, and writes the rows of the job, in one transaction. Returns a view of the job
        after the change.

        - `next_entry`: a function that gets the view of the job before the change and returns the entry, or None to
          append nothing. If it raises an error, nothing is changed and the error is raised.
        - `known_only`: True changes nothing and returns None if the job has no entries in this store.
        """

        tried: tuple[int, bytes] | None = None  # the entry of a transaction whose outcome is not known

        def change() -> JobView | SabotError | None:
            nonlocal tried
            with self._tables.transaction() as connection:
                connection.execute(_LOCK, (job_id,))
                known, counts = self._known(connection, [job_id])
                number = counts.get(job_id, 0)
                if tried is not None and connection.execute(_SAME, (job_id, *tried)).fetchall():
                    return known
                if known_only and not number:
                    return None
                try:
                    entry = next_entry(known)
                except SabotError as error:  # raised outside of the transaction, so that the connection is kept
                    return error
                if entry is not None:
                    token, data = entry.token if isinstance(entry, Intent) else "", encode_entry(entry)
                    tried = number, data
                    connection.execute(_ADD, (job_id, number, token, data))
                    known.apply(entry)
                    show_jobs(connection, _OURS, {job_id: number}, known)
                return known

        done = await self._patiently(change)
        if isinstance(done, SabotError):
            raise done
        return done

    async def _patiently(self, call: Callable[[], _T]) -> _T:
        """Calls a function in a thread, and returns its result. If it raises a TransientError, because the server does
        not answer, calls it again. After 5 seconds raises that error.
        """
        until = SYSTEM_CLOCK.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return await run_to_end(run_in_thread(call))
            except TransientError:
                if SYSTEM_CLOCK.monotonic() > until:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)

    def _now_ms(self) -> int:
        return round(self.clock.time() * 1000)

    # -- jobs of kernels ----------------------------------------------------------------------------------------------

    async def _asked(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return await self._patiently(partial(self._tables.select, statement, values))

    async def _owner(self, job_id: str) -> JobsAndActions | None:
        """Returns the store that is responsible for a job which has no entries in this store. It is the store of this
        process's kernel, or a store over the journal of another kernel in this database. Returns None if the job is
        unknown.
        """
        if self._lent is not None and await self._lent.get(job_id) is not None:
            return self._lent
        rows = await self._asked(_JOURNAL_OF_JOB, (job_id,))
        return await self._of_journal(rows[0][0], job_id) if rows and rows[0][0] != _OURS else None

    async def _of_journal(self, identity: str, job_id: str) -> JobsAndActions:
        """Returns a store of the jobs in the journal with this identity. `job_id` is only used in the error message.
        Raises UserError if the journal is not in this database, or if the user of the database may not read it.
        """
        if self._lent is not None and identity == self._mine:
            return self._lent
        found = self._elsewhere.get(identity)
        if found is None:

            def app() -> str | None:
                with self._tables.transaction() as connection:
                    return app_of_journal(connection, identity)

            name = await run_to_end(run_in_thread(app))
            if name is None:
                raise UserError(
                    f"job {job_id} is shown in {self._tables.where}, and its journal is not in this database, or not open to this user",
                    hint="ask where its kernel or its app keeps it: sabot jobs, sabot actions",
                )
            database, _ = split_app(self.home)
            mark = "&" if "?" in database else "?"
            address = JournalAddress(f"{database}{mark}app={name}", "", {})
            found = self._elsewhere[identity] = AppJobStore(lambda: address, self.clock)
        return found

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        check("create: spec", spec, Of(JobSpec, "JobSpec(scope_id=…)"))
        job_id, content, new = name_of(spec), digest_of(spec, _KEY), False

        def begin(known: JobView) -> Entry | None:
            nonlocal new
            before = known.digest_of(job_id)
            new = before is None
            check_same(job_id, spec, content, content if before is None else before)
            return begin_entry(job_id, spec, content, self._now_ms()) if new else None

        known = await self._change(job_id, begin)
        assert known is not None
        return known.present(job_id), new

    async def get(self, job_id: str) -> JobRecord | None:
        job = (await self._read([checked_word(job_id, "job_id")])).job(job_id)
        if job is not None:
            return job
        try:
            owner = await self._owner(job_id)
        except UserError:  # its journal cannot be reached from here: the tables are all there is
            rows = await self._asked(_FIND_JOBS, (None, None, [], [], job_id, job_id))
            return _job_of(rows[0][1:]) if rows else None
        return None if owner is None else await owner.get(job_id)

    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        check("move: status", status, Of(JobStatus, "JobStatus.SUCCEEDED, …"))
        checked_word(job_id, "job_id")

        def move(known: JobView) -> Entry:
            return move_entry(known.job(job_id), job_id, status, self._now_ms(), result_ref, error)

        known = await self._change(job_id, move, known_only=True)
        if known is not None:
            return known.present(job_id)
        owner = await self._owner(job_id)
        if owner is None:
            raise no_job(job_id)
        return await owner.move(job_id, status, result_ref=result_ref, error=error)

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        check("find: statuses", statuses, TEXTS)
        words = list(map(str, statuses))
        rows = await self._asked(_FIND_JOBS, (scope_id, scope_id, words, words, None, None))
        ours = await self._read([row[1] for row in rows if row[0] == _OURS])
        found = [ours.present(row[1]) if row[0] == _OURS else _job_of(row[1:]) for row in rows if row[0] != self._mine]
        if self._lent is not None:
            found += await self._lent.find(scope_id=scope_id, statuses=statuses)
        return found

    # -- actions ------------------------------------------------------------------------------------------------------

    async def require(self, spec: ActionSpec) -> ActionRecord:
        check("require: spec", spec, Of(ActionSpec, "ActionSpec(job_id=…)"))
        owner = await self._owner(spec.job_id)
        if owner is not None:
            return await owner.require(spec)

        token = ""

        def ask(known: JobView) -> Entry:
            nonlocal token
            job, ordinal = known.job(spec.job_id), known.next_ordinal(spec.job_id)
            entry = question_entry(job, ordinal, spec, self._now_ms(), _KEY)
            token = entry.token
            return entry

        known = await self._change(spec.job_id, ask)
        action = None if known is None else known.of_token(token)
        assert action is not None
        return action

    async def action(self, action_id: str) -> ActionRecord | None:
        job_id = checked_word(action_id, "action_id").rpartition("/")[0]
        found = (await self._read([job_id])).actions.get(action_id)
        if found is not None:
            return found
        try:
            owner = await self._owner(job_id)
        except UserError:
            rows = await self._asked(_FIND_ACTIONS, (job_id, job_id, [], []))
            return next((_action_of(row[1:]) for row in rows if row[1] == action_id), None)
        return None if owner is None else await owner.action(action_id)

    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        check("actions: statuses", statuses, TEXTS)
        words = list(map(str, statuses))
        rows = await self._asked(_FIND_ACTIONS, (job_id, job_id, words, words))
        ours = await self._read({row[2] for row in rows if row[0] == _OURS})
        found = [
            ours.actions[row[1]] if row[0] == _OURS else _action_of(row[1:]) for row in rows if row[0] != self._mine
        ]
        if self._lent is not None:
            found += await self._lent.actions(job_id=job_id, statuses=statuses)
        return found

    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        check("resolve: resolution", resolution, Of(Mapping, 'an object, as in {"approved": True}'))
        token, body = checked_word(token, "resolve: token"), as_json(dict(resolution), "resolution")
        answer = Letter("answer", token, body=body, by=checked_word(by, "by"))
        rows = await self._asked(_OF_TOKEN, (token,))
        if rows:
            return await self._answered(rows[0][0], answer, resolution)
        if self._lent is not None:
            try:
                return await self._lent.resolve(token, resolution, by)
            except LetterRefused as refused:
                if refused.reason != "unknown":
                    raise
        rows = await self._asked(_JOURNAL_OF_TOKEN, (token,))
        if not rows:
            raise LetterRefused("no question has this token", reason="unknown")
        owner = await self._of_journal(rows[0][1], rows[0][0])
        return await owner.resolve(token, resolution, by)

    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        check("close_action: status", status, Of(ActionStatus, "ActionStatus.CANCELLED, or EXPIRED"))
        job_id = checked_word(action_id, "action_id").rpartition("/")[0]
        found = (await self._read([job_id])).actions.get(action_id)
        if found is not None:
            try:
                return await self._answered(job_id, Letter("withdraw", found.resume_token, name=status))
            except LetterRefused as refused:  # the question was closed before
                if refused.reason not in ("second", "closed"):
                    raise
                return (await self._read([job_id])).actions[action_id]
        owner = await self._owner(job_id)
        if owner is None:
            raise no_action(action_id)
        return await owner.close_action(action_id, status)

    async def _answered(self, job_id: str, letter: Letter, resolution: Mapping[str, Any] | None = None) -> ActionRecord:
        """Closes a question of a job whose entries are in this store, and returns the action.

        - `letter`: the answer to the question, or its withdrawal.
        - `resolution`: the content of the answer, which is checked; None for a withdrawal.

        Raises LetterRefused if the question is closed already, or if its deadline has passed.
        """

        def answer(known: JobView) -> Entry:
            action, now_ms = known.of_token(letter.token), self._now_ms()
            if action is None:
                raise LetterRefused("no question has this token", reason="unknown")
            job, pending = known.job(job_id), action.status is ActionStatus.PENDING
            due_ms = 0 if action.expires_at is None else round(action.expires_at * 1000)
            ordinal = int(action.action_id.rpartition("/")[2])
            asked = Question(job_id, ordinal, due_ms, "" if pending else str(action.status))
            check_letter(letter, asked, None, not pending and (job is None or not job.ended), now_ms)
            if resolution is not None:
                check_resolution(action, resolution)
            return entry_of_letter(letter, asked, now_ms)

        known = await self._change(job_id, answer)
        action = None if known is None else known.of_token(letter.token)
        assert action is not None
        return action

    # -- upkeep -------------------------------------------------------------------------------------------------------

    async def trim(self, keep_seconds: Duration) -> int:
        """Removes the jobs that ended more than `keep_seconds` ago, and their actions, from this store. Jobs of kernels
        are not removed. Returns the number of removed entries. After that, new jobs may use the idempotency keys of the
        removed jobs. Raises UserError if `keep_seconds` is negative or not finite.
        """
        before = self.clock.time() - parse_seconds(keep_seconds, name="trim: keep_seconds")

        def trim() -> int:
            with self._tables.transaction() as connection:
                return int(connection.execute(_TRIM, (before,)).rowcount)

        return await run_to_end(run_in_thread(trim))

    async def rebuild(self) -> int:
        """Writes all rows of `runtime_jobs` and `runtime_actions` again, for example after they were lost. The rows are
        made from the entries in this store and, if a kernel of this process is connected, from those in its journal.
        Returns the number of jobs.
        """

        def rebuild() -> int:
            with self._tables.transaction(look=True) as connection:
                forget_jobs(connection, _OURS)
                job_ids = [job_id for (job_id,) in connection.execute(_ALL).fetchall()]
                known, counts = self._known(connection, job_ids)
                return show_jobs(connection, _OURS, {job_id: count - 1 for job_id, count in counts.items()}, known)

        shown = await run_to_end(run_in_thread(rebuild))
        if self._shown is None:
            return shown
        await self._shown.flush()
        return shown + await self.views.rebuild(self._shown)

    # -- the view of a kernel's jobs ----------------------------------------------------------------------------------

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel, whose jobs it shows from then on besides its own. `to` is the kernel's own
        store, to which calls about the kernel's jobs are passed. Raises UserError if the store is connected with a
        kernel already.
        """
        if self._lent is not None:
            raise UserError(f"the store of {self._tables.where} is that of another kernel", hint="make one for each")
        self._lent = to

    async def show(self, journal: Journal) -> None:
        """Begins to copy the jobs of the kernel's journal to the tables. If rows in the tables contradict the journal,
        logs a warning, and writes all rows of the journal again.
        """
        self._shown, self._mine = journal, journal.identity
        await journal.flush()
        wrong = await self.views.wrong(journal)
        if wrong:
            _log.warning(
                "%s: the tables are wrong about %s, %s among them: the journal holds, and they are made anew",
                journal.where,
                counted_words(len(wrong), "job"),
                wrong[0],
            )
            await self.views.rebuild(journal)
        await self.became_durable()

    async def became_durable(self) -> None:
        """Copies the new durable entries of the kernel's journal to the tables. If that fails, logs the error once and
        raises none; the next call then also copies what this call could not copy.
        """
        if self._shown is None:
            return
        try:
            await self.views.refresh(self._shown)
            self._told = False
        except (TransientError, UserError) as error:  # the tables are only a view: the entries are durable
            if not self._told:
                _log.warning("%s: the tables of jobs are behind: %s", self._shown.where, error)
            self._told = True

    async def leave(self) -> None:
        """Stops copying the jobs of the kernel's journal to the tables."""
        self._shown = None


PostgresActionStore = PostgresJobStore
"""Another name of the store, for programs that only keep actions."""


def _job_of(row: Sequence[Any]) -> JobRecord:
    """Returns the record of a job from its row in `runtime_jobs`. Fields of a JobRecord that have no column are read
    from the key "sabot" of the row's `metadata`.
    """
    said = dict(zip(_JOB_WORDS, row, strict=True))
    said["metadata"] = dict(said["metadata"])
    ours = said["metadata"].pop("sabot", {})
    return msgspec.convert({**ours, **said}, JobRecord, strict=False)


def _action_of(row: Sequence[Any]) -> ActionRecord:
    said = {name: value for name, value in zip(_ACTION_WORDS, row, strict=True) if value is not None}
    return msgspec.convert({"expires_at": None, **said}, ActionRecord, strict=False)
