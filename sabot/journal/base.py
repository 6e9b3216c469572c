"""The contract of journals. `tests/contracts/test_journal_contract.py` checks it for every home: SQLite, PostgreSQL,
Kafka, memory.

A journal is the log of the effects that jobs have asked for, and of their results. It has three interfaces. The
**owner** (`Journal`) appends; there is one, and it holds the claim. A **reader** (`JournalReader`) reads durable
entries, beside the owner or without one, and changes nothing. An **inbox** (`Inbox`) takes letters from outside
(answers, signals, cancels), beside the owner or without one.

These rules always hold:

- Appends have an order in each partition. The durable entries are a prefix of it, at any moment and after any crash.
- An entry that was reported as durable can be read until it is trimmed. After a crash an entry may also be there that was
 not reported yet.
- A failed append ends the run. Nothing is appended after it, all who wait get JournalFailed, and this process does not try
 again: after a failed fsync nobody knows what is on the disk. The next owner reads what is there, and goes on behind it.
- Several appends that wait become durable in one step, with one commit of the disk.
- A letter is taken once: it becomes an entry in the same step in which it leaves the inbox.

If a home has several partitions, all entries of a job are in one of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sabot.base.accounts import Amounts
from sabot.clock import Clock
from sabot.errors import CorruptJournal, LetterRefused, OtherJournal
from sabot.journal.ended_jobs import EndedJob, EndedQuery, HistoryBounds
from sabot.journal.entries import Answer, Body, Cancel, Entry, Letter, Signal

MAY_BEGIN_AGAIN = ("failed", "cancelled")
"""The outcomes of jobs that begin again if a dead letter of theirs is sent again. Each failure has one. A job that was
cancelled has one if it had failed before, and a crash came before the END of that was durable.
"""


class Position(NamedTuple):
    """The place of an entry. The offsets of a partition only grow, with gaps where entries were trimmed."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class JobMark:
    """The facts of a job that a journal knows without reading its entries: the place of its BEGIN, and its outcome (""
    while it is open).

    A mark outlives the entries of an ended job (`trim`), so that a job that comes again is recognized. `digest` is that
    of BEGIN, and `result` that of END.
    """

    job: str
    began: Position
    digest: bytes
    outcome: str = ""
    result: str = ""
    ended_ms: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question: an intent with a token. `due_ms` is its deadline in milliseconds since 1970, 0 for none. `closed` is
    the outcome, or "" while it is open.
    """

    job: str
    ordinal: int
    due_ms: int
    closed: str = ""


class JobHistory(ABC):
    """The jobs whose entries `trim` has moved out of the log, for as long as the owner keeps them (`Journal.keeping`).
    Every method may block, may be called from any thread, and raises the errors of a reader.

    A job moves in one step: at any moment and after any crash it is in the log or in the history, and in both only if
    it has begun again since.
    """

    @abstractmethod
    def entries(self, job: str) -> Iterator[tuple[Position, Entry]]:
        """Yields all entries of a job in order, wherever they are: those in the history, then those in the log."""

    @abstractmethod
    def find(self, query: EndedQuery, most: int) -> list[EndedJob]:
        """Returns the jobs of the history that a query selects, the newest first, and no more than `most`."""

    @abstractmethod
    def counts(self, query: EndedQuery) -> dict[str, int]:
        """Returns the number of jobs of the history that a query selects, by status."""

    @abstractmethod
    def known(self, jobs: Collection[str]) -> list[EndedJob]:
        """Returns the rows of the jobs among these that are in the history."""

    @abstractmethod
    def used_below(self, jobs: Collection[str]) -> dict[str, Amounts]:
        """Returns, for each of these jobs, the use of all jobs of the history below it; a job without such jobs is missing."""


@dataclass(frozen=True, slots=True)
class JobKeeping:
    """The rule by which `trim` moves entries into the history.

    `describe`: a function that makes the row of a job out of its entries, or returns None if they are not kept; it blocks, and raises only
    what reading raises. `seconds`, `most_bytes`: for how long ended jobs are kept, and how many bytes of them.
    """

    describe: Callable[["JournalReader", str], EndedJob | None]
    seconds: float
    most_bytes: int

    def bounds(self, now: float) -> HistoryBounds:
        """Returns the bounds at this time, in seconds since 1970."""
        return HistoryBounds(round((now - self.seconds) * 1000), self.most_bytes)


class JournalReader(ABC):
    """A reader of the durable entries. It changes nothing. Every method may block, and may be called from any thread.
    Methods raise CorruptJournal, UserError for a version that this Sabot does not know, and TransientError if the
    journal is on a server that does not answer.
    """

    where: str
    """The journal's name in messages: a path, a topic, an address without its password."""
    identity: str
    """The random id of the journal, which never changes."""
    key: bytes
    """32 secret random bytes: the key of all digests (`effects.digest`), so that others cannot guess the digested values."""

    @abstractmethod
    def positions(self) -> dict[int, int]:
        """Returns, by partition, the offset behind the last durable entry. A checkpoint keeps it with `identity`
        (`check_place`).
        """

    @abstractmethod
    def trimmed(self) -> dict[int, int]:
        """Returns, by partition, the offset behind the last END of a job whose entries `trim` has removed; partitions
        without such jobs are missing. A checkpoint that needs entries before that offset is refused (`check_place`).
        """

    @property
    def is_new(self) -> bool:
        """True if nothing was ever appended."""
        return not any(self.positions().values())

    @abstractmethod
    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        """Yields the durable entries in order, partition by partition: those of one job or of all, from the offsets in
        `start` on.

        Entries that become durable meanwhile may be among them or not. A long body is a StoredBody, which `load` loads.
        """

    @abstractmethod
    def load(self, body: Body) -> bytes:
        """Returns the bytes of a body. Raises CorruptJournal if a stored body does not fit its hash."""

    @abstractmethod
    def job(self, job: str) -> JobMark | None:
        """Returns the durable facts of a job, or None if it has not begun here or is forgotten."""

    @abstractmethod
    def question(self, token: str) -> Question | None:
        """Returns the question with this token, or None."""

    @abstractmethod
    def letters(self) -> list[Letter]:
        """Returns the letters that the owner has not taken, in the order in which they came."""

    @property
    @abstractmethod
    def history(self) -> JobHistory:
        """The jobs that `trim` has moved out of the log."""

    @abstractmethod
    def close(self) -> None:
        """Closes all connections and files. Idempotent."""


class Inbox(ABC):
    """The inbox of a journal: it takes letters, whether an owner runs or not."""

    @abstractmethod
    def post(self, letter: Letter) -> None:
        """Posts a letter. When it returns, the letter is durable, and the owner will take it. May be called in any
        thread and any process. Blocks.

        Raises LetterRefused with the reason: the token is unknown, its question is closed, its deadline has passed, or
        another letter came first. Of two letters at the same time the journal accepts one. A crash in the middle
        leaves the letter stored or not; if it is, posting it again says that another letter came first. The same holds after
        a TransientError, which is raised if a server does not answer, or another process holds the database. Raises
        UserError for a letter that could not be read again.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes all connections and files. Idempotent."""


class Journal(JournalReader, Inbox):
    """The owner of a journal. The constructor takes the claim, and raises AppLocked if another process, or another
    object of this one, holds it.

    A claim ends with `close` or with the process. An owner that has lost its claim in another way (somebody removed its
    lock) learns it at its next append, which raises JournalFailed.
    """

    clock: Clock
    """The clock by which letters are judged and dated. Code that works over a journal uses it too."""

    keeping: JobKeeping | None = None
    """The rule by which `trim` keeps the entries that it removes, or None to delete them."""

    look_s: float = 0.02
    """The seconds between two looks for letters: short if a look is cheap in this home, so that answers are taken soon."""

    def abandon(self) -> None:
        """Closes the journal when the start that has opened it is refused. If this opening has made the journal on this
        machine, and nobody has used it since, it is removed.
        """
        self.close()

    def may_have_letters(self) -> bool:
        """Returns False if the home knows, at less cost than `letters`, that no letter has come since the last call.
        Never waits for another machine or a disk. Called by one thread.
        """
        return True

    def claim_left(self) -> float:
        """Returns the seconds, on the machine's monotonic clock, for which this owner certainly still has the claim;
        asked just before a call is sent. 0.0 means that the claim may be lost, and nothing may be sent. `math.inf`
        means that the claim ends with the process and not by time. Never blocks.
        """
        return math.inf

    def predecessor_left(self) -> float:
        """Returns the seconds for which an earlier owner, which was paused or cut off and does not know that its claim
        is over, may still begin a call. Never blocks.

        That call ends by its time-out after these seconds, and only then its effects in doubt are judged; so the number
        is negative if the time was over before now. `-math.inf` means that there is no such owner: it has closed the
        journal, or its process is known to be gone.
        """
        return -math.inf

    @abstractmethod
    def append(self, entry: Entry) -> Position:
        """Appends the entry to its partition, and returns its place. Never blocks; may be called in any thread; the
        order is that of the calls.

        The entry is not durable yet when it returns: await `durable`. Raises JournalFull, and appends nothing, if too
        much waits for the disk (await `room` first); JournalFailed if an append has failed before; UserError if the
        journal is closed.
        """

    @abstractmethod
    async def room(self) -> None:
        """Waits until `append` would take an entry. Awaited on an event loop; an `append` right after it, without
        another `await` in between, is not refused unless another thread appends too. Raises JournalFailed.
        """

    @abstractmethod
    async def durable(self, position: Position) -> None:
        """Returns when the entry, and all before it in its partition, are durable. For event loops. Raises
        JournalFailed.
        """

    @abstractmethod
    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        """Waits as `durable` does, for threads: blocks, and returns False if the entry is not durable after so many
        seconds.
        """

    @abstractmethod
    async def flush(self) -> dict[int, int]:
        """Returns `positions` when all that was appended before the call is durable. Barriers wait for it. Raises
        JournalFailed.
        """

    @abstractmethod
    def take(self) -> list[tuple[Position, Entry]]:
        """Takes letters from the inbox in the order in which they came, appends their entries, and returns these,
        without waiting for them to be durable. Takes fewer if the queue of appends is full. If a crash comes before an
        entry is durable, its letter is still in the inbox.
        """

    @abstractmethod
    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0) -> int:
        """Removes the entries of jobs whose END stands before these offsets (those of the oldest retained checkpoint),
        with bodies that no other entry names. Returns the number of removed entries. Blocks; appends go on meanwhile.

        The marks of these jobs stay until they are older than `forget_before_ms` (milliseconds since 1970), and so do
        the entries of jobs that may begin again (MAY_BEGIN_AGAIN), which need their earlier results. Jobs that have not
        ended keep all entries. A crash in the middle leaves some jobs trimmed whole, and others not at all. With
        `keeping` the entries move into the history, and jobs that are too old or too many for it are removed from
        there.
        """

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Returns numbers since the opening: entries, commits, waiting (entries that are not durable), bytes_waiting,
        bodies, letters, refused. Never blocks.
        """


def check_letter(letter: Letter, question: Question | None, mark: JobMark | None, earlier: bool, now_ms: int) -> str:
    """Decides whether an inbox accepts a letter, in the step that would take it. Returns the job of the letter. Raises
    LetterRefused.

    `question` is that of the letter's token, and `mark` that of the job which a signal or cancel names; both may be
    None. `earlier` is True if the inbox has a letter with the same `once`.
    """
    if letter.kind in ("signal", "cancel"):
        if mark is None:
            raise LetterRefused(f"job {letter.job}: there is none of this name", reason="unknown")
        if mark.outcome:
            raise LetterRefused(f"job {letter.job} has ended: {mark.outcome}", reason="closed")
        if letter.kind == "signal" and not letter.token:
            raise LetterRefused("a signal needs a token of its sender", reason="unknown")
        if earlier:
            raise LetterRefused(f"job {letter.job}: this {letter.kind} was already sent", reason="second")
        return letter.job
    if question is None:
        raise LetterRefused("no question has this token", reason="unknown")
    if question.closed and not earlier:
        raise LetterRefused(f"the question of job {question.job} is closed: {question.closed}", reason="closed")
    if earlier:
        raise LetterRefused(f"the question of job {question.job} was already answered or withdrawn", reason="second")
    if letter.kind == "answer" and 0 < question.due_ms < now_ms:
        late = (now_ms - question.due_ms) / 1000
        raise LetterRefused(f"the question of job {question.job} has expired {late:,.0f} s ago", reason="expired")
    return question.job


def entry_of_letter(letter: Letter, question: Question | None, at_ms: int) -> Entry:
    """Returns the entry that a letter becomes when the owner takes it. `question` is the question of its token, for
    answers and withdrawals.
    """
    if letter.kind == "signal":
        return Signal(letter.job, at_ms, letter.name, letter.token, letter.body, letter.by)
    if letter.kind == "cancel":
        return Cancel(letter.job, at_ms, letter.name, letter.by)
    if question is None:
        raise CorruptJournal("a letter answers a question that the journal does not have")
    outcome = "resolved" if letter.kind == "answer" else letter.name
    return Answer(question.job, at_ms, question.ordinal, letter.token, outcome, letter.body, letter.by)


def check_place(
    journal: JournalReader, identity: str, positions: Mapping[int, int], needed: Mapping[int, int] | None = None
) -> None:
    """Checks that a journal is the one with which a checkpoint was made, by its `identity` and `positions`.

    `needed` has the offsets from which on the checkpoint needs the entries of ended jobs; None means from `positions`
    on. Raises OtherJournal, with the choices in its hint, for another journal, for one that ends before `positions`,
    and for one that was trimmed behind `needed`. With such a journal, effects that the state knows, or that came after
    the checkpoint, would be made again.
    """
    hint = "give the journal that the job had; or start --fresh, and effects that it had made may be made again"
    if journal.identity != identity:
        raise OtherJournal(
            f"{journal.where} is journal {journal.identity}, and the checkpoint was made with {identity}", hint=hint
        )
    there = journal.positions()
    for partition, offset in positions.items():
        if there.get(partition, 0) < offset:
            raise OtherJournal(
                f"{journal.where} ends at {there.get(partition, 0)} in partition {partition}, and the checkpoint knows of {offset}",
                hint=hint,
            )
    needed = positions if needed is None else needed
    for partition, offset in journal.trimmed().items():
        if needed.get(partition, 0) < offset:
            raise OtherJournal(
                f"{journal.where} has lost the entries of jobs that ended before {offset} in partition {partition}, and the checkpoint "
                f"needs those from {needed.get(partition, 0)} on: it was kept where the job does not know of it, or was dropped",
                hint="start from a newer checkpoint or savepoint; or --fresh --forget-effects, and effects may be made again",
            )
