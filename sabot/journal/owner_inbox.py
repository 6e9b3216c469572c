"""The base classes for the owner of a journal in tables and for its inbox. SQLite, PostgreSQL and the local copy of a
Kafka topic share them.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import JournalFull, LetterRefused
from sabot.journal.base import (
    EVERY,
    Approval,
    Beginnings,
    Inbox,
    Journal,
    Position,
    check_letter,
    entry_of_letter,
    once_of,
    refusal_of,
)
from sabot.journal.ended_jobs import EndedJob
from sabot.journal.entries import Entry, Letter, encode_letter
from sabot.journal.entry_counts import Connection, parts
from sabot.journal.history_tables import expire, expiring
from sabot.journal.job_tables import note_blocked
from sabot.journal.tables import (
    NOTE,
    SqlReader,
    add_letter,
    forget,
    keep_approvals,
    known_jobs,
    letter_facts,
    remove,
)
from sabot.journal.writing import GroupWriter


class OwnerInbox(Inbox):
    """The inbox of a journal for the owner of the journal. It has the methods of an `Inbox`, and in addition methods
    that remove old entries and jobs, which `SqlJournal` calls. There is a subclass for each kind of database, and one
    for a Kafka topic.
    """

    @abstractmethod
    def trim(self, jobs: Sequence[str], before: int, kept: Sequence[EndedJob]) -> int:
        """Removes entries of jobs. The parameters and the result are those of `tables.remove`. Removes all of the
        entries or none. When this returns, the removal is durable.
        """

    @abstractmethod
    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        """Notes which jobs are blocked, as `Journal.note_blocked` does. Notes all of them or none."""

    def keep_approvals(self, approvals: Collection[Approval]) -> None:
        """Notes all approvals of the journal, as `Journal.keep_approvals` does."""

    @abstractmethod
    def expire(self, jobs: Sequence[str]) -> None:
        """Removes jobs from the history, as `history_tables.expire` does. Removes all of them or none. When this
        returns, the removal is durable.
        """

    @abstractmethod
    def forget(self, before_ms: int) -> None:
        """Removes the marks of jobs that ended before `before_ms` (milliseconds since 1970) and that have no entries any
        more. A crash meanwhile leaves either all of these marks or none. When this returns, the removal is durable.
        """


class SqlInbox(OwnerInbox):
    """The inbox of a journal in the tables of a database, for the owner of the journal. `clock`: decides whether the
    deadline of a question has passed.
    """

    clock: Clock

    @abstractmethod
    def transaction(self, what: str) -> AbstractContextManager[Connection]:
        """Runs the `with` block as one transaction. When the block has ended, the changes are durable. Raises the
        errors of `Inbox.post`.

        While the block runs, nobody else can post a letter. In PostgreSQL, the owner can write entries meanwhile,
        except if `what` is "trim" or "expire". In SQLite, it cannot. `what`: "letter", "note", "blocked", "approvals",
        "trim" or "expire".
        """

    def post(self, letter: Letter) -> None:
        (refused,) = self.post_all([letter])
        if refused is not None:
            raise refused

    def post_all(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        """Posts letters as `Inbox.post_all` does, several hundred in one transaction: others post theirs in between."""
        return [refused for some in parts(letters) for refused in self.post_some(some)]

    def post_some(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        """Posts letters in one transaction."""
        with self.transaction("letter") as connection:
            refused = [refusal_of(partial(self._post_within, connection), letter) for letter in letters]
            self.posted(connection, [letter for letter, why in zip(letters, refused, strict=True) if why is None])
        return refused

    def _post_within(self, connection: Connection, letter: Letter) -> None:
        """Posts a letter in an open transaction, which stays as it is where the letter is refused."""
        question, mark, earlier = letter_facts(connection, letter)
        job = check_letter(letter, question, mark, earlier, round(self.clock.time() * 1000))
        add_letter(connection, once_of(letter, mark), job, encode_letter(letter), beside=self.beside(letter))

    def begin(self, letters: Sequence[Letter]) -> list[bool]:
        """Posts letters as `Inbox.begin` does, several hundred in one transaction: others post theirs in between."""
        return [posted for some in parts(letters) for posted in self._begin_some(some)]

    def _begin_some(self, letters: Sequence[Letter]) -> list[bool]:
        encoded, posted = list(map(encode_letter, letters)), list[bool]()
        with self.transaction("letter") as connection:
            known = known_jobs(connection, [letter.job for letter in letters])
            for letter, data in zip(letters, encoded, strict=True):
                posted.append(letter.job not in known)
                if posted[-1]:
                    known.add(letter.job)
                    add_letter(connection, letter.once, letter.job, data, beside=self.beside(letter))
        return posted

    def note(self, name: str, value: str, before: str | None = None) -> bool:
        whole, put = f"{NOTE}{name}", "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO"
        with self.transaction("note") as connection:
            if before:  # whoever replaces it too waits for this transaction, and then finds another text
                gone = connection.execute("DELETE FROM meta WHERE name = ? AND value = ?", (whole, before))
                if not gone.rowcount:
                    return False
            if before is not None and value:
                return bool(connection.execute(f"{put} NOTHING", (whole, value)).rowcount)
            if value:
                connection.execute(f"{put} UPDATE SET value = excluded.value", (whole, value))
            else:
                connection.execute("DELETE FROM meta WHERE name = ?", (whole,))
        return True

    def posted(self, connection: Connection, letters: Sequence[Letter]) -> None:
        """Called in the transaction that has stored these letters."""

    def beside(self, letter: Letter) -> Mapping[str, Any]:
        """Returns the values of further columns of the inbox for a letter, by their names."""
        return {}

    def trim(self, jobs: Sequence[str], before: int, kept: Sequence[EndedJob]) -> int:
        with self.transaction("trim") as connection:
            return remove(connection, jobs, before, kept)

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        with self.transaction("blocked") as connection:
            note_blocked(connection, reasons)

    def keep_approvals(self, approvals: Collection[Approval]) -> None:
        with self.transaction("approvals") as connection:
            keep_approvals(connection, approvals)

    def expire(self, jobs: Sequence[str]) -> None:
        with self.transaction("expire") as connection:
            expire(connection, jobs)

    def forget(self, before_ms: int) -> None:
        with self.transaction("trim") as connection:
            forget(connection, before_ms)


class SqlJournal(SqlReader, Journal):
    """A base class of journals in an SQL database. The constructor of a subclass has to open the database and then to
    call `start`. The subclass runs the SQL statements, and has to close the database in `close`.
    """

    writer: GroupWriter
    inbox: OwnerInbox
    bodies: int
    """The number of long bodies that were stored since the journal was opened. The subclass counts them."""

    def start(self, writer: GroupWriter, inbox: OwnerInbox, clock: Clock) -> None:
        """Sets the parts of the journal. `writer`: makes appended entries durable. `inbox`: stores posted letters.
        `clock`: the clock for the times of entries that are made from letters.
        """
        self.begins = Beginnings(self)
        self.writer = writer
        self.inbox = inbox
        self.clock = clock
        self._last_letter = 0
        self.bodies = self._letters = self._refused = 0

    def append(self, entry: Entry) -> Position:
        return self.writer.append(entry)

    async def room(self) -> None:
        await self.writer.room()

    async def durable(self, position: Position) -> None:
        await self.writer.durable(position.offset)

    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        return self.writer.wait_durable(position.offset, timeout)

    async def flush(self) -> dict[int, int]:
        last = self.writer.last_offset
        await self.writer.durable(last)
        return {0: last + 1}

    def positions(self) -> dict[int, int]:
        return {0: self.writer.durable_offset}

    def post(self, letter: Letter) -> None:
        try:
            self.inbox.post(letter)
        except LetterRefused:
            self._refused += 1
            raise

    def post_all(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        found = self.inbox.post_all(letters)
        self._refused += len(found) - found.count(None)
        return found

    def begin(self, letters: Sequence[Letter]) -> list[bool]:
        posted = self.inbox.begin(letters)
        self._refused += posted.count(False)
        return posted

    def note(self, name: str, value: str, before: str | None = None) -> bool:
        return self.inbox.note(name, value, before)

    def waits(self, jobs: Collection[str], clock: Clock = SYSTEM_CLOCK) -> dict[str, str]:
        return self.begins.waits(jobs, round(self.clock.time() * 1000))

    async def look(self) -> bool:
        return bool(await run_in_thread(self.untaken, self._last_letter))

    def take(self) -> list[tuple[Position, Entry]]:
        taken: list[tuple[Position, Entry]] = []
        letters = self.untaken(self._last_letter)
        questions = self.questions([letter.token for _, letter in letters if letter.token])
        self.begins.look(letter for _, letter in letters)

        def take_together(some: Sequence[tuple[int, Letter]]) -> None:
            at_ms = round(self.clock.time() * 1000)

            def entry_of(letter: Letter) -> Entry:
                return entry_of_letter(letter, questions.get(letter.token), at_ms, self.begins.declared)

            for number, position, entry in self.begins.take(some, entry_of, self.writer.append_all, at_ms):
                if position is not None:
                    taken.append((position, entry))
                if number:
                    self.note_taken(number, position)

        with suppress(JournalFull):  # the other letters are taken when there is room
            for number, letter in letters:
                if some := self.begins.arrive(number, letter, round(self.clock.time() * 1000)):
                    take_together(some)
                self._last_letter = number
            while (due := self.begins.next_due(round(self.clock.time() * 1000))) is not None:
                take_together([due])
        self.begins.look(())
        self._letters += len(taken)
        return taken

    def note_taken(self, number: int, position: Position | None) -> None:
        """Notes that a letter was looked at. `position`: that of its entry, which is not durable yet; None if it stays."""

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        self.inbox.note_blocked(reasons)

    def note_approval(self, approval: Approval) -> None:
        self.writer.note(approval)

    def keep_approvals(self, approvals: Collection[Approval]) -> None:
        self.inbox.keep_approvals(approvals)

    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        removed, place, keeping = 0, before.get(0, 0), self.keeping
        while jobs := self.ended(place, forget_before_ms, sessions=sessions):
            described = [] if keeping is None else [keeping.describe(self, job) for job in jobs]
            removed += self.inbox.trim(jobs, place, [job for job in described if job is not None])
        if forget_before_ms:
            self.inbox.forget(forget_before_ms)
        if keeping is not None:
            while jobs := expiring(self.select, keeping.bounds(self.clock.time())):
                self.inbox.expire(jobs)
        return removed

    def forget(self, jobs: Collection[str]) -> int:
        return self.inbox.trim(sorted(jobs), EVERY, [])

    def statistics(self) -> dict[str, int]:
        return {
            **self.writer.statistics(),
            "bodies": self.bodies,
            "letters": self._letters,
            "refused": self._refused,
        }
