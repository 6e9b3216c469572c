"""A journal in PostgreSQL: the tables of `tables`, in a schema that belongs to the app (`schemas`).

A group of entries is one transaction, whose statements are sent without waits between them. The server confirms a
commit when it is on the server's disk (`synchronous_commit`).

**The claim is a lease** in the table `claim`, whose only row has the owner, the end of the lease, and the epoch (a
number that each new owner and each new session raises). The thread that writes entries renews the lease. Each transaction of entries locks
the row with the epoch of its owner, and fails if there is no such row. So if a worker was paused for longer than its
lease, another one may become the owner, and the next commit of the paused one fails.

The claim itself is no lock that a connection holds, because a paused process would keep it. The server's clock decides when the lease
ends. The owner counts the lease from before it sends its request, on a clock that goes on while the machine is
suspended, and does not rely on the last tenth. If the process of the owner was on this machine and has ended, a new
owner does not wait.

**A commit whose outcome is unknown** (the connection broke, or the server ended) is resolved. A new connection ends the
old session and raises the epoch, so the old session can commit nothing later. Then it reads where the log ends. So it
knows whether the group of entries was committed, and if not, sends it again. While the server does not answer, entries
wait and the claim runs out. The owner goes on afterwards if nobody else has taken the claim.

Each letter locks the row `identity` in the table `meta`, one after the other, so the numbers of letters grow in the
order of their commits. A trim locks this row too, and also the row of the claim, so no entries are written meanwhile.
"""

import logging
import math
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from sabot.base.backoff import Backoff
from sabot.base.options import answers_wrong_options
from sabot.base.proc import is_over, life_of_this_process
from sabot.clock import SYSTEM_CLOCK, Clock, boot_seconds
from sabot.errors import (
    AppLocked,
    BrokerUnavailable,
    JournalFailed,
    LetterRefused,
    SabotError,
    TransientError,
    UserError,
    short_repr,
)
from sabot.journal.base import Approval, Position
from sabot.journal.crashes import tree_of, trees_to_try, tries_again
from sabot.journal.entries import Entry, Letter
from sabot.journal.entry_counts import Connection, end_of_log, parts
from sabot.journal.history_tables import SESSIONS, SqlHistory
from sabot.journal.job_tables import SHARED, SHARED_FORMATS, WITH_SEATS
from sabot.journal.owner_inbox import SqlInbox, SqlJournal
from sabot.journal.postgres_begins import Asked, lock_format, post_begins
from sabot.journal.schemas import RANGE, JournalSchema, PostgresSession, Statements
from sabot.journal.seats import columns_of, let_one_through, let_through, still_queued, waits_of_letters
from sabot.journal.tables import SqlReader, StoredEntry, add, decoded, rows_of
from sabot.journal.writing import CAPACITY_BYTES, Appended, GroupWriter
from sabot.steps import step

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LONGEST_KEY = 600  # the most characters of an id or a token; an index holds 2,704 bytes
_RENEWALS = 5  # renewals in the time of a lease
_MARGIN = 0.1  # the fraction of a lease on which its owner does not rely
_BACKOFF = Backoff(0.05, 1.0)  # the waits between attempts
_AT_THE_START = 30.0  # seconds for which a start tries again, once the server has answered
_AT_THE_END = 5.0  # seconds for which `close` waits for a server that does not answer

# takes the claim of an owner that is gone for certain, or whose lease is over and which may still be sending calls
_TAKE_CLAIM = (
    "UPDATE claim SET epoch = epoch + 1, owner = %(mine)s, described = %(described)s, life = %(life)s, "
    "until = clock_timestamp() + %(lease_s)s * interval '1 second', "
    "earlier = CASE WHEN %(gone)s THEN earlier ELSE greatest(earlier, until) END "
    "WHERE owner = %(owner)s AND (%(gone)s OR until < clock_timestamp()) "
    "RETURNING epoch, extract(epoch FROM earlier - clock_timestamp())::float8"
)
_SEE_CLAIM = (
    "SELECT owner, described, life, until, extract(epoch FROM until - clock_timestamp())::float8, "
    "until < clock_timestamp() FROM claim"
)
_COME_BACK = "UPDATE claim SET epoch = epoch + 1, until = clock_timestamp() + %s * interval '1 second' WHERE owner = %s RETURNING epoch"
_RENEW = "UPDATE claim SET until = clock_timestamp() + %s * interval '1 second' WHERE epoch = %s RETURNING 1"
# Both are an error, a division by zero, where the epoch is another. A renewal leaves an old version of the row, and those would pile up
# while somebody takes a long dump; so not each commit is one.
_FENCE = "SELECT 1 / count(*)::int FROM (SELECT 1 FROM claim WHERE epoch = %s FOR SHARE) AS mine"
_RENEWING_FENCE = f"WITH mine AS ({_RENEW}) SELECT 1 / count(*)::int FROM mine"
_RELEASE = "UPDATE claim SET owner = '', life = '', until = 'epoch' WHERE owner = %s"
_SAFETY = (  # settings that make a commit safe: its disk, the standbys that it waits for, and those that exist
    "SELECT current_setting('fsync'), current_setting('synchronous_standby_names'), count(*) FROM pg_stat_replication"
)
END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = %s AND state <> 'idle' AND pid <> pg_backend_pid()"
)
_RUNS = (  # the ranges of places that have entries, and the place behind the last one of each: two seeks for a range
    f"WITH RECURSIVE runs (run) AS ((SELECT place / {RANGE} FROM entries ORDER BY place LIMIT 1) UNION ALL "
    f"SELECT (SELECT place / {RANGE} FROM entries WHERE place >= (run + 1) * {RANGE} ORDER BY place LIMIT 1) FROM runs "
    "WHERE run IS NOT NULL) "
    f"SELECT run, (SELECT max(place) + 1 FROM entries WHERE place >= run * {RANGE} AND place < (run + 1) * {RANGE}) "
    "FROM runs WHERE run IS NOT NULL"
)
_TRIMMED_RUNS = f"SELECT (behind - 1) / {RANGE}, max(behind) FROM gone GROUP BY 1"
_ENTRIES_OF_RUN = "SELECT place, job, sum, entry FROM entries WHERE place >= ? AND place < ? ORDER BY place LIMIT 1000"
# One letter at a time. It waits for who brings the tables up to date, and has the format behind that: the row is read again. It does
# not wait for a transaction of a caller that begins jobs (`postgres_begins`).
_ONE_LETTER = "SELECT name, value FROM meta WHERE name IN ('format', 'identity') ORDER BY name FOR NO KEY UPDATE"


def session_of(owner: str) -> str:
    """Returns the name that the connections of an owner for writing have on the server."""
    return f"sabot-journal-{owner}"


class PostgresReader(SqlReader):
    """A reader of an app's journal in a PostgreSQL database. Raises UserError if there is no journal, and
    BrokerUnavailable if no server answers.

    `app`: the id of the app, if the address does not have it (`postgresql://user@host/database?app=refunds`). If
    neither names an app, the database must have exactly one journal, which is then read.
    """

    def __init__(self, url: str, app: str | None = None) -> None:
        self._look_at(JournalSchema(url, app))

    def _look_at(self, place: JournalSchema) -> None:
        self.where, self._place = place.where, place
        self._reading = PostgresSession(place)
        with self._reading.using() as connection:
            facts = place.known_facts(connection)
        self.identity = facts["identity"]
        self.key = bytes.fromhex(facts["key"])
        self.format = int(facts["format"])

    def select(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._select(statement, values)
        except BrokerUnavailable:
            raise
        except TransientError:  # the connection broke after it was last used
            return self._select(statement, values)

    def _select(self, statement: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._reading.using() as connection:
            found: list[tuple[Any, ...]] = Statements(connection).execute(statement, values).fetchall()
        return found

    def _look_again(self) -> None:
        """Reads the format again: since this reader was opened, workers may have shared the journal, or brought its tables up to date."""
        if self.format != SHARED:
            ((form,),) = self.select("SELECT value FROM meta WHERE name = 'format'")
            self.format = self._place.known_format(form)

    def waits(self, jobs: Collection[str], clock: Clock = SYSTEM_CLOCK) -> dict[str, str]:
        self._look_again()
        return waits_of_letters(self.select, jobs) if self.format in WITH_SEATS else super().waits(jobs, clock)

    @property
    def is_shared(self) -> bool:
        """True if several workers share the journal."""
        return self.format in SHARED_FORMATS

    @property
    def history(self) -> SqlHistory:
        if self.format < SESSIONS:
            self._look_again()
        return super().history

    def ends(self) -> dict[int, int]:
        self._look_again()
        return dict(self.select(_RUNS)) if self.is_shared else super().ends()

    def trimmed(self) -> dict[int, int]:
        self._look_again()
        return dict(self.select(_TRIMMED_RUNS)) if self.is_shared else super().trimmed()

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        if job is None:
            self._look_again()
        if job is not None or not self.is_shared:
            yield from super().read(job, start)
            return
        first = (start or {}).get(0, 0)
        for run, end in sorted(self.ends().items()):
            for position, entry in self.read_run(run, first):
                if position.offset >= end:
                    break
                yield position, entry

    def read_run(self, run: int, first: int) -> Iterator[tuple[Position, Entry]]:
        if not self.is_shared:
            yield from super().read_run(run, first)
            return
        first, behind = max(first, run * RANGE), (run + 1) * RANGE
        while rows := self.select(_ENTRIES_OF_RUN, (first, behind)):
            yield from decoded(rows, self.where)
            first = rows[-1][0] + 1

    def close(self) -> None:
        self._reading.close()


@answers_wrong_options
class PostgresInbox(SqlInbox):
    """An inbox of an app's journal in a PostgreSQL database. `url` and `app` have the same meaning as in
    `PostgresReader`, and the same errors are raised.
    """

    no_entries = "SELECT 1 FROM claim FOR UPDATE"
    """The statement after which no owner commits entries until the end of the transaction."""

    def __init__(self, url: str, app: str | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._place = JournalSchema(url, app)
        self.clock = clock
        self.session = PostgresSession(self._place)
        self.beginning = self.session  # for letters that begin jobs, which may wait for an open transaction of a caller
        with self.session.using() as connection:
            facts = self._place.known_facts(connection)
        self.key = bytes.fromhex(facts["key"])
        # as the last transaction has found it: workers may bring the tables up to date
        self._format = self._place.known_format(facts["format"])

    @property
    def _has_seats(self) -> bool:
        return self._format in WITH_SEATS

    def another_session(self) -> PostgresSession:
        """Returns another connection to the journal, which opens when it is used first."""
        return PostgresSession(self._place)

    def post_all(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        tried = self._tried_again([letter.job for letter in letters if letter.kind == "retry"])
        others = [letter for letter in letters if letter.kind != "retry" or letter.job not in tried]
        found = iter(super().post_all(others))
        return [None if letter.kind == "retry" and letter.job in tried else next(found) for letter in letters]

    def _tried_again(self, jobs: Sequence[str]) -> set[str]:
        """Lets trees that were set aside be tried again. Returns those of the jobs that are in one. Each is a transaction, which has the
        rows of no other tree locked: a worker takes several trees at once, in another order.
        """
        tried = set[str]()
        if jobs and self._format in SHARED_FORMATS:
            for some in parts(jobs):
                with self.session.using() as connection:
                    trees = trees_to_try(connection, some)
                for job in [job for job in some if tree_of(job) in trees]:
                    with self.transaction("letter") as connection:
                        if tries_again(connection, job):
                            tried.add(job)
        return tried

    def post_some(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        refused = super().post_some(letters)
        cancelled = [
            each.job for each, why in zip(letters, refused, strict=True) if each.kind == "cancel" and why is None
        ]
        if self._has_seats and cancelled:
            with self.session.using() as connection:
                statements = Statements(connection)
                for number in still_queued(statements, cancelled):
                    let_one_through(statements, number)
        return refused

    def begin(self, letters: Sequence[Letter]) -> list[bool]:
        if not self._has_seats:  # the numbers of letters to one owner rise in the order of their commits
            return super().begin(letters)
        return [posted for some in parts(letters) for posted in self._begin_beside(some)]

    def _begin_beside(self, letters: Sequence[Letter]) -> list[bool]:
        with step("journal", f"{self._place.where}: letter"), self.beginning.using("BEGIN") as connection:
            self._format = _answered(connection, lock_format(self._place))
            posted = _answered(connection, post_begins(self._place, letters))
            connection.execute("COMMIT")
        return posted

    def beside(self, letter: Letter) -> Mapping[str, Any]:
        if self._has_seats:
            return columns_of(letter)
        if self._format in SHARED_FORMATS and (letter.after_ms or letter.priority):
            raise UserError(
                f"job {letter.job}: the workers of {self._place.where} are of an earlier Sabot, without start_after= and priority=",
                hint="stop all workers, then start those of the new Sabot, which bring the tables up to date",
            )
        return {}

    def posted(self, connection: Connection, letters: Sequence[Letter]) -> None:
        cancelled = [letter.job for letter in letters if letter.kind == "cancel"]
        if self._has_seats and cancelled:
            let_through(connection, cancelled)

    @contextmanager
    def transaction(self, what: str) -> Iterator[Connection]:
        with step("journal", f"{self._place.where}: {what}"), self.session.using("BEGIN") as connection:
            facts = dict(connection.execute(_ONE_LETTER).fetchall())
            self._format = self._place.known_format(facts["format"])
            if what in ("trim", "expire"):  # a commit under way may name a long body that nothing else names any more
                connection.execute(self.no_entries)
            yield Statements(connection)
            connection.execute("COMMIT")

    def close(self) -> None:
        self.session.close()
        self.beginning.close()


def _answered(connection: Any, asked: Asked[T]) -> T:
    """Runs the statements of `asked` on a connection, and returns its result."""
    rows: list[tuple[Any, ...]] | None = None
    while True:
        try:
            statement, values = asked.send(rows)  # type: ignore[arg-type]  # the first one gets None
        except StopIteration as done:
            found: T = done.value
            return found
        rows = connection.execute(statement, values).fetchall()


class JournalLease:
    """The claim of the one owner of a journal: the row of the table `claim`.

    - `owner`: the id of this owner, in no other claim. `epoch`: the number of its session.
    - `end`: the place behind the last entry of this owner that is durable.
    - `renewed`, `asked`: the times of the last renewal, and of the last attempt, by `boot_seconds`.
    - `predecessor_until`: the time until which the owner before may begin calls, by `boot_seconds`.
    """

    def __init__(self, place: JournalSchema, lease_s: float) -> None:
        self.place, self.lease_s = place, lease_s
        self.owner = uuid.uuid4().hex
        self.described = f"process {os.getpid()} on {socket.gethostname()}"
        self.epoch = self.end = 0
        self.renewed = self.asked = 0.0
        self.predecessor_until = -math.inf

    def left_s(self) -> float:
        """Returns the seconds for which the lease is certainly held."""
        return max(0.0, self.renewed + self.lease_s * (1 - _MARGIN) - boot_seconds())

    def is_due(self, now: float) -> bool:
        """Returns True if a fifth of the lease has passed since the last attempt to renew it."""
        return now >= self.asked + self.lease_s / _RENEWALS

    def take(self, connection: Any, wait: Callable[[float], object]) -> None:
        """Acquires the lease. If another owner has it, first waits until that lease has expired, or until the process
        of that owner has certainly ended. Raises AppLocked if that owner renews it meanwhile. `wait`: waits for seconds.
        """
        run = connection.execute
        mine = {
            "mine": self.owner,
            "described": self.described,
            "life": life_of_this_process(),
            "lease_s": self.lease_s,
        }
        seen = None
        with self.place.server.explained():
            while True:
                asked = boot_seconds()
                ((owner, described, life, until, left, over),) = run(_SEE_CLAIM).fetchall()
                # our own claim: the connection broke after it was taken
                gone = owner in ("", self.owner) or is_over(life)
                if over or gone:
                    with step("journal", f"{self.place.where}: claim"):
                        run(END_SESSIONS, (session_of(owner),))  # a session that hangs holds the row
                        taken = run(_TAKE_CLAIM, {**mine, "owner": owner, "gone": gone}).fetchall()
                    if taken:
                        break
                    continue
                if seen not in (None, until):
                    raise AppLocked(f"{self.place.where} belongs to {described}", hint="stop that one first")
                if seen is None:
                    _log.warning("%s belongs to %s, whose lease ends in %.1f s", self.place.where, described, left)
                seen = until
                wait(min(max(left, 0.01), 0.2))
            ((self.epoch, earlier_s),) = taken
            self.renewed = self.asked = asked
            self.predecessor_until = -math.inf if earlier_s is None else boot_seconds() + earlier_s

    def bring_up_to_date(self, connection: Any) -> None:
        """Brings the tables up to date. Renews the lease meanwhile, and raises JournalFailed if another owner has it."""

        def renew(connection: Any) -> None:
            asked = boot_seconds()
            if self.is_due(asked):
                if not connection.execute(*self.renewal()).fetchall():
                    raise JournalFailed(
                        f"{self.place.where}: another owner has taken the journal over during its migration"
                    )
                self.renewed = self.asked = asked

        self.place.bring_up_to_date(connection, renew)
        with self.place.server.explained():
            self.end = end_of_log(Statements(connection))

    def fence(self, renews: bool) -> tuple[str, tuple[Any, ...]]:
        """Returns the statement that a commit begins with, and its values. It fails if the lease is not held any more.
        `renews`: True to renew the lease with the commit.
        """
        return (_RENEWING_FENCE, (self.lease_s, self.epoch)) if renews else (_FENCE, (self.epoch,))

    def renewal(self) -> tuple[str, tuple[Any, ...]]:
        """Returns the statement that renews the lease, and its values. It has a row if the lease is still held."""
        return _RENEW, (self.lease_s, self.epoch)

    def come_back(self, connection: Any, behind: int | None) -> int:
        """Renews the lease for a new session, so that the old one can commit nothing from now on. Returns the place behind
        the last durable entry of this owner. Raises JournalFailed if another owner has the lease. `behind`: the place behind
        the last entry of a group of which it is unknown whether it was committed, or None.
        """
        found = connection.execute(_COME_BACK, (self.lease_s, self.owner)).fetchall()
        if not found:
            ((described,),) = connection.execute("SELECT described FROM claim").fetchall()
            raise self.lost(f"another owner has taken the journal over: {described}")
        ((self.epoch,),) = found
        return end_of_log(Statements(connection))

    def lost(self, what: str) -> JournalFailed:
        """Returns the error of an owner whose lease another one has ended, and notes that it is not held."""
        self.renewed = -math.inf
        return JournalFailed(
            what, hint=f"this one was not heard of for {self.lease_s:g} s: it was paused, or had no connection"
        )

    def leave(self, connection: Any) -> None:
        """Ends the lease, if this owner still has it."""
        connection.execute(_RELEASE, (self.owner,))


@answers_wrong_options
class PostgresJournal(PostgresReader, SqlJournal):
    """The owner of an app's journal in a PostgreSQL database. A missing journal is created.

    - `url`, `app`: as in `PostgresReader`.
    - `capacity_bytes`: the most bytes of entries that may wait for the server.
    - `lease_s`: an owner has a claim on the journal, which it renews. The claim is valid for this many seconds after
      each renewal. Another process can take the claim when these are over, when the owner has closed the journal, or
      when the process of the owner has certainly ended.
    - `patience_s`: the journal has failed if the server does not answer for this many seconds.

    If another owner has the claim, the constructor waits until it can take the claim. Raises AppLocked if that owner
    renews its claim meanwhile.
    """

    look_s = 0.1  # a look is a query
    lease_type = JournalLease
    inbox_type = PostgresInbox

    def __init__(
        self,
        url: str,
        app: str | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        capacity_bytes: int = CAPACITY_BYTES,
        lease_s: float = 10.0,
        patience_s: float = 300.0,
    ) -> None:
        place = self._place = JournalSchema(url, app)
        self.lease = self.lease_type(place, lease_s)
        self._patience_s = patience_s
        self._ending = threading.Event()
        self._silent = False  # the server does not answer, and that was logged
        self._closed = False
        self._writing: Any = None
        began, failures, answered = boot_seconds(), 0, False
        while True:
            try:
                self._writing = place.connect(session_of(self.lease.owner))
                answered = True
                self._open(url, app, clock, capacity_bytes)
                return
            except TransientError as error:
                # no server has ever answered: the address may be wrong
                if not answered or boot_seconds() > began + _AT_THE_START:
                    raise
                _log.warning("%s: the connection broke during the start, which is tried again: %s", place.where, error)
            failures += 1
            self._ending.wait(_BACKOFF.wait_s(failures))

    def _open(self, url: str, app: str | None, clock: Clock, capacity_bytes: int) -> None:
        """Creates the journal if it is missing, acquires the lease, brings the tables up to date, and opens the reader,
        the inbox and the writer. The connection for writing, `self._writing`, must be open already. If this raises an
        error, everything is closed again, that connection too. The parameters are those of the class.
        """
        place, lease = self._place, self.lease
        with ExitStack() as opened:
            opened.callback(self._drop)
            self.make_tables(self._writing, url, app)
            lease.take(self._writing, self._ending.wait)
            opened.callback(self._release)
            self._tell_of_safety()
            lease.bring_up_to_date(self._writing)
            self._look_at(place)
            opened.callback(super().close)
            self.check_end()
            inbox = self.inbox_type(url, app, clock=clock)
            opened.callback(inbox.close)
            writer = GroupWriter(
                self.where, 0, lease.end, self._commit, capacity_bytes, "server", idle=self._keep_lease
            )
            self.start(writer, inbox, clock)
            opened.pop_all()  # nothing failed: keep everything open

    def make_tables(self, connection: Any, url: str, app: str | None) -> None:
        """Creates the journal if it is missing."""
        self._place.make(connection)

    def claim_left(self) -> float:
        return self.lease.left_s()

    def predecessor_left(self, job: str) -> float:
        return self.lease.predecessor_until - boot_seconds()

    def append(self, entry: Entry) -> Position:
        for name in ("job", "token", "outcome", "result"):
            text = getattr(entry, name, "")
            if isinstance(text, str) and ("\0" in text or (len(text) > _LONGEST_KEY and name in ("job", "token"))):
                raise UserError(
                    f"{self.where}: {name} of an entry, {short_repr(text)}, is no text that PostgreSQL keeps in an index",
                    hint=f"it has no NUL, and {_LONGEST_KEY} characters at most",
                )
        return super().append(entry)

    def take(self) -> list[tuple[Position, Entry]]:
        """Turns letters into entries as `Journal.take` does. While the server does not answer, returns [] and leaves
        the letters in the inbox.
        """
        if not self.claim_left():
            return []
        try:
            return super().take()
        except TransientError:  # the renewal of the claim reports it
            return []

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        if not self.claim_left():
            raise TransientError(f"{self.where}: the claim on it has to be renewed first")
        super().note_blocked(reasons)

    def keep_approvals(self, approvals: Collection[Approval]) -> None:
        if not self.claim_left():
            raise TransientError(f"{self.where}: the claim on it has to be renewed first")
        super().keep_approvals(approvals)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ending.set()
        self.writer.close()
        self.inbox.close()
        super().close()
        self._release()
        self._drop()

    # -- the lease ---------------------------------------------------------------------------------------------------------

    def _tell_of_safety(self) -> None:
        """Logs a warning if the server may lose what it has committed."""
        with self._place.server.explained():
            ((fsync, awaited, copies),) = self._writing.execute(_SAFETY).fetchall()
        if fsync == "off":
            _log.warning(
                "%s: its server has fsync=off, and loses what was durable when its machine ends", self._place.where
            )
        if copies and not awaited:
            _log.warning(
                "%s: its server has standbys (%d), and waits for none of them (synchronous_standby_names): one that takes its place may "
                "lack the last entries, and effects that were made may be made again",
                self._place.where,
                copies,
            )

    def _keep_lease(self) -> None:
        """Renews the lease of the claim if a fifth of its time has passed since the last renewal. Called in the
        thread of the GroupWriter while there is nothing to write. Raises JournalFailed if another owner has the
        claim.
        """
        asked = boot_seconds()
        if not self.lease.is_due(asked):
            return
        self.lease.asked = asked
        try:
            if self._writing is None:
                self._come_back()
            else:
                with self._place.server.explained():
                    kept = self._writing.execute(*self.lease.renewal()).fetchall()
                if not kept:
                    self._come_back()
                self.lease.renewed = asked
        except TransientError as error:
            self._drop()
            self._tell_silence(error)

    def _come_back(self, behind: int | None = None) -> None:
        """Makes a new connection after an error, and ensures that the old connection can commit nothing from now on.
        Sets the end of the lease to the end of the log.

        `behind`: if it is unknown whether a group of entries was committed, the place behind the last entry of that
        group; else None. The log then ends there if the group was committed.

        Raises JournalFailed if another owner has the claim, or if durable entries are missing. Raises TransientError if
        the server does not answer.
        """
        self._drop()
        lease, session = self.lease, session_of(self.lease.owner)
        connection = self._place.connect(session)
        try:
            with self._place.server.explained():
                connection.execute(END_SESSIONS, (session,))
                asked = boot_seconds()
                end = lease.come_back(connection, behind)
        except BaseException:
            connection.close()
            raise
        self._writing = connection
        lease.renewed = asked
        self._reading.stale = True  # another server may have replaced the one that it is connected to
        if end not in (lease.end, behind):
            raise JournalFailed(
                f"the log ends at {end}, and this owner has written up to {lease.end}",
                hint="the server has lost what it had committed: it was restored, or another one has taken its place",
            )
        lease.end = end
        if self._silent:
            self._silent = False
            _log.warning("%s answers again", self._place.where)

    def _tell_silence(self, error: Exception) -> None:
        if not self._silent:
            self._silent = True
            _log.warning("%s does not answer, entries wait: %s", self._place.where, error)

    def _release(self) -> None:
        if self._writing is None:
            return
        try:
            with self._place.server.explained(), step("journal", f"{self._place.where}: claim"):
                self.lease.leave(self._writing)
        except SabotError as error:
            _log.warning("%s: the claim ends with its lease only: %s", self._place.where, error)

    def _drop(self) -> None:
        connection, self._writing = self._writing, None
        if connection is not None:
            connection.close()

    # -- entries -----------------------------------------------------------------------------------------------------------

    def _commit(self, group: list[Appended]) -> None:
        """Commits a group of entries in one transaction. If the connection breaks during the commit, makes a new one
        and checks whether the entries are in the log; if not, commits them again. Called in the thread of the
        GroupWriter.
        """
        rows = rows_of(group)
        self.bodies += sum(bool(row.body) for row in rows)
        behind = rows[-1].place + 1
        failures, began, ending = 0, boot_seconds(), 0.0
        while True:
            try:
                if self._writing is None:
                    self._come_back(behind)
                if self.lease.end != behind:  # otherwise the group was committed
                    self.write(rows)
                self.lease.end = behind
                return
            except TransientError as error:
                self._drop()
                self._tell_silence(error)
                now = boot_seconds()
                ending = ending or (now if self._ending.is_set() else 0.0)
                if now > began + self._patience_s or (ending and now > ending + _AT_THE_END):
                    raise
            except UserError:
                self._come_back()  # raises if the claim was lost
                with self._place.server.explained():
                    self.check_rows(self._writing, rows)
                raise
            failures += 1
            self._ending.wait(_BACKOFF.wait_s(failures))

    def write(self, rows: list[StoredEntry]) -> None:
        """Commits the rows of a group of entries in one transaction. Called in the thread of the GroupWriter."""
        connection, server, lease = self._writing, self._place.server, self.lease
        asked = boot_seconds()
        renews = lease.is_due(asked)
        with step("journal", self.where), server.explained():
            with server.pipeline(connection):
                connection.execute("BEGIN")
                connection.execute(*lease.fence(renews))
                self.insert(connection, rows)
                done = connection.execute("COMMIT")
            if done.statusmessage != "COMMIT":
                raise JournalFailed(f"the server has answered {done.statusmessage} to a COMMIT")
        if renews:
            lease.renewed = lease.asked = asked

    def check_rows(self, connection: Any, rows: list[StoredEntry]) -> None:
        """Raises JournalFailed if the server has refused these rows since another worker has their jobs."""

    def insert(self, connection: Any, rows: list[StoredEntry]) -> None:
        """Adds the rows of a group of entries to the tables, in a transaction that has begun. Called in the thread of the
        GroupWriter.
        """
        add(Statements(connection), rows)
