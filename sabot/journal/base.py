"""The contract of journals. What is written here, `tests/contracts/test_journal_contract.py` checks for every home.

A journal is the log of what jobs have asked of the world and what came of it. It has three faces. The **owner** (`Journal`) appends;
there is one, and it holds the claim. A **reader** (`JournalReader`) reads what is durable, beside the owner or without one, and changes
nothing. An **inbox** (`Inbox`) takes letters from outside (answers, signals, cancels), beside the owner or without one.

What always holds:

- Appends have an order in each partition. What is durable is a prefix of it, at any moment and after any crash.
- What was once said to be durable is read for ever, until it is trimmed. It may also be read when nobody was told: a crash comes between.
- A failed append ends the run. Nothing is appended behind it, all who wait are told (`JournalFailed`), and nothing of it is tried again in
  this process: after a failed fsync nobody knows what the disk has. The next owner reads what is there, and goes on behind it.
- Several appends that wait become durable in one step, in one commit of the disk.
- A letter is taken once: it becomes an entry in the same step in which it leaves the inbox.

Where a home has several partitions, all entries of a job are in one of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sabot.clock import Clock
from sabot.errors import CorruptJournal, LetterRefused, OtherJournal
from sabot.journal.ended_jobs import EndedJob, EndedQuery, HistoryBounds, Use
from sabot.journal.entries import Answer, Body, Cancel, Entry, Letter, Signal

MAY_BEGIN_AGAIN = ("failed", "cancelled")
"""How a job has ended that begins again when its dead letter is sent again."""


class Position(NamedTuple):
    """Where an entry stands. Offsets of a partition only grow, and may have gaps where entries were trimmed."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class JobMark:
    """What a journal knows of a job without reading its entries: where it began, and how it ended ("": it has not).

    It outlives the entries of an ended job (`trim`), so that a job that comes again is known. digest: of BEGIN. result: of END.
    """

    job: str
    began: Position
    digest: bytes
    outcome: str = ""
    result: str = ""
    ended_ms: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """An intent with a token. due_ms: its deadline, 0 for none. closed: how it was closed ("": it is open)."""

    job: str
    ordinal: int
    due_ms: int
    closed: str = ""


class JobHistory(ABC):
    """The jobs whose entries `trim` has taken out of the log, for as long as the owner keeps them (`Journal.keeping`). Every method may
    block, may be called from any thread, and raises as those of a reader.

    A job moves in one step of the home: it is in the log or in the history, at any moment and after any crash, and in both only if it has
    begun again since.
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
        """Returns the rows of those of these jobs that are in the history."""

    @abstractmethod
    def used_below(self, jobs: Collection[str]) -> dict[str, Use]:
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
    """Reads what is durable. Every method may block, may be called from any thread, and raises CorruptJournal, UserError for a version
    that this Sabot does not know, or TransientError where the home is elsewhere and does not answer now. Nothing that is there is changed.
    """

    where: str
    """For messages: a path, a topic, an address without its password."""
    identity: str
    """Made with the journal, and never again."""
    key: bytes
    """32 secret bytes, made with the journal: digests are made with them (`effects.digest`), so that they tell nothing to others."""

    @abstractmethod
    def positions(self) -> dict[int, int]:
        """Per partition, the offset behind the last durable entry. With `identity` it is what a checkpoint keeps (`check_place`)."""

    @abstractmethod
    def trimmed(self) -> dict[int, int]:
        """Per partition, the offset behind the last END whose job has lost its entries by `trim`; a partition that is missing has lost
        nothing. A checkpoint that needs what stands before it is refused (`check_place`).
        """

    @property
    def is_new(self) -> bool:
        """Nothing was ever appended."""
        return not any(self.positions().values())

    @abstractmethod
    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        """Durable entries in order, partition by partition: of one job, or of all; from these offsets on.

        Entries that become durable while it reads may come or not. A long body is a StoredBody; `load` gives it.
        """

    @abstractmethod
    def load(self, body: Body) -> bytes:
        """The bytes of a body. A stored one is checked against its hash: CorruptJournal."""

    @abstractmethod
    def job(self, job: str) -> JobMark | None:
        """What is durable of a job; None: it has not begun here, or is forgotten."""

    @abstractmethod
    def question(self, token: str) -> Question | None:
        """The question of a token; None: there is none."""

    @abstractmethod
    def letters(self) -> list[Letter]:
        """The letters that the owner has not taken, in the order in which they came."""

    @property
    @abstractmethod
    def history(self) -> JobHistory:
        """The jobs that `trim` has taken out of the log."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything. Idempotent."""


class Inbox(ABC):
    """Takes letters, whether an owner is there or not."""

    @abstractmethod
    def post(self, letter: Letter) -> None:
        """Durable when it returns, and accepted: the owner takes it. From any thread and any process; blocks.

        Raises LetterRefused with the reason: the token is unknown, its question is closed, its deadline has passed, or another letter
        came first. Two that come at once are ordered by the journal: one is accepted. After a crash in the middle it is there or not;
        posting it again then says that another letter came first. So it is after a TransientError: the home is elsewhere and has not
        answered, or another process held it. Raises UserError for a letter that could not be read again.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything. Idempotent."""


class Journal(JournalReader, Inbox):
    """The owner. Made, it has the claim: AppLocked where another process, or another object of this one, holds it.

    A claim ends with `close` or with the process, however that ends. An owner that lost its claim all the same (its lock was removed) is
    told at its next append, which fails: JournalFailed.
    """

    clock: Clock
    """By which letters are judged and dated; who works over a journal takes it too."""

    keeping: JobKeeping | None = None
    """What `trim` does with the entries that it removes; None: they are gone."""

    look_s: float = 0.02
    """How often its owner looks for letters: what a look costs where the journal is, against how soon an answer is taken."""

    def abandon(self) -> None:
        """`close`, where the start that has opened it is refused. What this opening has made, and nobody has used since, goes with it where
        it is on this machine.
        """
        self.close()

    def may_have_letters(self) -> bool:
        """Whether something may have come since this was last asked: False where the home knows, at less cost than `letters`, that nobody
        has written. Never waits for another machine or a disk; asked by one thread.
        """
        return True

    def claim_left(self) -> float:
        """Seconds for which this owner surely still has the claim, on the machine's monotonic clock: who sends something out asks just
        before. 0.0: it may be gone, and nothing must be sent. `math.inf` where a claim ends with the process and not by time. Never blocks.
        """
        return math.inf

    def predecessor_left(self) -> float:
        """Seconds for which an earlier owner, that was paused or cut off and does not know that its claim is over, may still begin a call.
        Its last call ends by a time-out after that, and only then is judged what is in doubt of its effects; so the seconds are negative
        where its time was over before now. `-math.inf`: there is none, it has said goodbye (`close`), or its process is known to be
        gone. Never blocks.
        """
        return -math.inf

    @abstractmethod
    def append(self, entry: Entry) -> Position:
        """Takes the entry as the next one of its partition. Never blocks; from any thread; the order is that of the calls.

        When it returns nothing is durable yet: `durable` says when. Raises JournalFull, and takes nothing, when too much waits for the
        disk (await `room` first); JournalFailed when an append has failed before; UserError when it is closed.
        """

    @abstractmethod
    async def room(self) -> None:
        """Returns when `append` would take an entry. On an event loop; who appends there without another `await` is not refused, unless
        other threads append too. Raises JournalFailed.
        """

    @abstractmethod
    async def durable(self, position: Position) -> None:
        """Returns when the entry is durable, and with it all before it in its partition. On an event loop. Raises JournalFailed."""

    @abstractmethod
    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        """As `durable`, for threads: blocks. False: it is not after so many seconds."""

    @abstractmethod
    async def flush(self) -> dict[int, int]:
        """Returns `positions` when all that was appended before the call is durable: what a barrier waits for. Raises JournalFailed."""

    @abstractmethod
    def take(self) -> list[tuple[Position, Entry]]:
        """Letters that came since, as entries that were appended now, in the order in which they came. Reads the inbox, and does not wait
        for the entries to be durable. Takes fewer where the queue of appends is full. When a crash comes before such an entry is durable,
        its letter is in the inbox still.
        """

    @abstractmethod
    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0) -> int:
        """Removes the entries of jobs whose END stands before these offsets (of the oldest retained checkpoint), with bodies that nobody
        names any more; returns how many entries. Their marks stay, until they are older than `forget_before_ms` (epoch), and so do the
        entries of jobs that may begin again (MAY_BEGIN_AGAIN): they must find what they have done. Blocks. Jobs that have not ended keep
        all of theirs. Appends go on meanwhile; a crash in the middle leaves some jobs trimmed whole, others not at all. With `keeping` the
        entries move into the history, and what is too old there, or too much, goes.
        """

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Since it was opened: entries, commits, waiting (entries that are not durable), bytes_waiting, bodies, letters, refused. Never
        blocks.
        """


def check_letter(letter: Letter, question: Question | None, mark: JobMark | None, earlier: bool, now_ms: int) -> str:
    """The rule of every inbox, asked in the step that would take the letter. Returns the job that it is for.

    question: of the letter's token. mark: of the job that a signal or cancel names. earlier: a letter of the same `once` is there. Raises
    LetterRefused.
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
    """The entry that a letter becomes when the owner takes it. question: of its token, for answers and withdrawals."""
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
    """A checkpoint's word on its journal against the one that is there. needed: from where on the checkpoint needs the entries of jobs that
    have ended; None: from `positions` on. Raises OtherJournal, with the choice, for another one, for one that is behind, and for one that
    was trimmed further than that: effects that the state knows of, or that came after the checkpoint, would be made again.
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
