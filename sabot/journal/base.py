"""The contract of journals. `tests/contracts/test_journal_contract.py` checks it for every implementation: in SQLite,
PostgreSQL, Kafka and memory.

A journal is the log of the effects that jobs have asked for, and of the results of these effects. It has three
interfaces. The **owner** (`Journal`) appends entries; there is one owner at a time, and it holds the claim. A
**reader** (`JournalReader`) reads durable entries and changes nothing. An **inbox** (`Inbox`) takes letters from
outside (answers, signals, cancels). Readers and inboxes work whether an owner runs or not.

These rules always hold:

- The entries of a partition have an order, in which they are appended. At any moment, and after any crash, the durable
 entries are the first ones in this order, without a gap.
- An entry that was reported as durable can be read until it is trimmed. After a crash, a reader may also find entries
 that were not reported as durable.
- If an append fails, the owner appends nothing more: all callers that wait get JournalFailed, and this process does not
 try again, because after a failed fsync nobody knows what is on the disk. The next owner reads what is there, and
 appends behind it.
- Several entries that wait become durable in one step, with one commit of the disk.
- A letter is taken once: it becomes an entry in the same step in which it leaves the inbox.

If a journal has several partitions, all entries of a job are in one of them.
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
    """The facts of a job that a journal knows without reading the job's entries: `began` is the place of its BEGIN, and
    `outcome` is its outcome, or "" while the job is open.

    `trim` removes the entries of an ended job and leaves its mark, so that the journal recognizes a job that is asked
    for again. `digest` is the digest in BEGIN, and `result` the result in END.
    """

    job: str
    began: Position
    digest: bytes
    outcome: str = ""
    result: str = ""
    ended_ms: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question: an intent with a token, by which somebody outside can answer it. `due_ms` is its deadline in
    milliseconds since 1970, or 0 if it has none. `closed` is the outcome, or "" while the question is open.
    """

    job: str
    ordinal: int
    due_ms: int
    closed: str = ""


class JobHistory(ABC):
    """The ended jobs whose entries `trim` has moved out of the log. They stay here for as long as `Journal.keeping`
    says. Every method may block, may be called from any thread, and raises the errors of a `JournalReader`.

    A job moves in one step: at any moment, and after any crash, a job is either in the log or in the history. A job
    that has begun again after it was moved is in both.
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
        """Returns the rows of those jobs among `jobs` that are in the history; others are left out."""

    @abstractmethod
    def used_below(self, jobs: Collection[str]) -> dict[str, Amounts]:
        """Returns the usage of the descendants of each of these jobs, as far as they are in the history. A job without
        such descendants is missing in the result.
        """


@dataclass(frozen=True, slots=True)
class JobKeeping:
    """The rule by which `trim` moves entries into the history.

    `describe` is a function of a reader and the id of a job. It returns the job's row for the history, or None if the
    job is not to be kept; it may block, and raises only errors of the reader. Ended jobs are kept for `seconds`
    seconds, and at most `most_bytes` bytes of them.
    """

    describe: Callable[["JournalReader", str], EndedJob | None]
    seconds: float
    most_bytes: int

    def bounds(self, now: float) -> HistoryBounds:
        """Returns the bounds of the history at the time `now`, in seconds since 1970."""
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
        """Returns, by partition, the offset behind the last durable entry. A checkpoint saves these offsets and the
        `identity` of the journal; `check_place` compares them at the next start.
        """

    @abstractmethod
    def trimmed(self) -> dict[int, int]:
        """Returns, by partition, the offset behind the last END of a job whose entries `trim` has removed. A partition
        without such jobs is missing. `check_place` refuses a checkpoint that needs entries before that offset.
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
        """Returns the mark of a job. Returns None if the journal has no BEGIN of this job, or has forgotten the job."""

    @abstractmethod
    def question(self, token: str) -> Question | None:
        """Returns the question with this token, or None if there is none."""

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

        Raises LetterRefused with the reason: nobody knows the token or the job; the question is closed, or its deadline
        has passed; the job has ended; or the inbox has accepted such a letter before. Of two letters that answer the
        same question at the same time, the inbox accepts one.

        After a crash, or a TransientError (a server does not answer, or another process holds the database), the letter
        may be stored or not. The caller may post it again: if it was stored, LetterRefused says that there was one
        before. Raises UserError for a letter that could not be decoded again.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes all connections and files. Idempotent."""


class Journal(JournalReader, Inbox):
    """The owner of a journal. The constructor takes the claim. It raises AppLocked if another process, or another
    object of this process, holds the claim.

    A claim ends with `close` or with the process. An owner may lose its claim in another way, for example because
    somebody removes its lock; then its next append raises JournalFailed.
    """

    clock: Clock
    """The clock by which letters are judged and dated. Code that works over a journal uses it too."""

    keeping: JobKeeping | None = None
    """The rule by which `trim` keeps the entries that it removes, or None to delete them."""

    look_s: float = 0.02
    """The seconds between two looks for letters. They are few if a look is cheap, so that answers are taken soon."""

    def abandon(self) -> None:
        """Closes the journal of an app whose start is refused. If this process has just created the journal and nobody
        else has used it, it is removed.
        """
        self.close()

    def may_have_letters(self) -> bool:
        """Returns True if letters may have come since the last call. Returns False if certainly none has come. An
        implementation that cannot find out cheaply returns True. Never waits for another machine or a disk. Called by
        one thread.
        """
        return True

    def claim_left(self) -> float:
        """Returns the number of seconds for which this owner certainly still has the claim, by the machine's monotonic
        clock. The caller asks just before it sends a call. 0.0 means that another process may have the claim, and that
        the call must not be sent. `math.inf` means that the claim ends with the process and not by time. Never blocks.
        """
        return math.inf

    def predecessor_left(self) -> float:
        """Returns the number of seconds for which the owner before this one may still begin a call, because it was
        paused or cut off, and has not noticed that it has lost its claim. Never blocks.

        The number is negative if that time is already over. It is `-math.inf` if there is no such owner: the one before
        has closed the journal, or its process has certainly ended. A call that it began ends at the latest by its own
        time-out, counted from the end of these seconds. Until then, effects in doubt are not decided on.
        """
        return -math.inf

    @abstractmethod
    def append(self, entry: Entry) -> Position:
        """Appends the entry to its partition, and returns its place. Entries stand in the order of these calls. Never
        blocks. May be called in any thread.

        The entry is not durable yet when this method returns: await `durable`. Raises JournalFull, and appends nothing,
        if too many bytes wait for the disk (await `room` first). Raises JournalFailed if an append has failed before,
        and UserError if the journal is closed.
        """

    @abstractmethod
    async def room(self) -> None:
        """Waits until `append` has room for an entry. To be awaited on an event loop. If `append` follows without
        another `await` in between, it does not raise JournalFull, unless another thread appends too. Raises
        JournalFailed.
        """

    @abstractmethod
    async def durable(self, position: Position) -> None:
        """Waits until the entry at this place, and all entries before it in its partition, are durable. To be awaited
        on an event loop. Raises JournalFailed.
        """

    @abstractmethod
    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        """Blocks a thread until the entry at this place is durable, and returns True. Returns False if it is not
        durable after `timeout` seconds; None waits without a limit. Raises JournalFailed.
        """

    @abstractmethod
    async def flush(self) -> dict[int, int]:
        """Waits until all entries that were appended before this call are durable, and returns `positions`. Barriers
        wait for it. Raises JournalFailed.
        """

    @abstractmethod
    def take(self) -> list[tuple[Position, Entry]]:
        """Takes letters from the inbox in the order in which they came, appends an entry for each, and returns these
        entries. The entries are not durable yet. If the queue of appends is full, the remaining letters stay in the
        inbox for a later call. After a crash, a letter whose entry was not durable is still in the inbox.
        """

    @abstractmethod
    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0) -> int:
        """Removes the entries of jobs that ended before the offsets in `before`, and long bodies that no remaining entry names.
        `before` has, by partition, the offset of the journal in the oldest retained checkpoint. Returns the number of removed
        entries. Blocks; other threads may append meanwhile.

        Of a job that ended at or after `forget_before_ms` (milliseconds since 1970) its `JobMark` stays, and also its entries if
        it may begin again (MAY_BEGIN_AGAIN), because it then needs its earlier results. Jobs that have
        not ended keep all entries. After a crash in the middle, each job is either trimmed completely or not at all. If
        `keeping` is set, the entries move into the history, and jobs that are too old or too many for the history are
        removed from there.
        """

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Returns figures since the journal was opened: the numbers of entries, of commits, of entries that are not
        durable yet (`waiting`) and their bytes (`bytes_waiting`), of stored bodies, and of letters that were taken
        (`letters`) or `refused`. Never blocks.
        """


def check_letter(letter: Letter, question: Question | None, mark: JobMark | None, earlier: bool, now_ms: int) -> str:
    """Returns the id of the job that a letter is for. Raises LetterRefused if the inbox must not accept the letter. The
    inbox calls this in the transaction that stores the letter.

    `question` is the question with the letter's token, or None if there is none. `mark` is the mark of the job that a
    signal or a cancel names, or None if the journal does not know the job. `earlier` is True if the inbox already has a
    letter with the same `once`.
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
    """Returns the entry that a letter becomes when the owner takes it. `question` is the question with the letter's
    token; only answers and withdrawals need it.
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
    """Checks that a checkpoint belongs to this journal. `identity` and `positions` are those that the checkpoint has
    saved.

    `needed` has, by partition, the offset from which on the checkpoint needs the entries of ended jobs; None stands for
    `positions`. Raises OtherJournal if the identity differs, if the journal ends before `positions`, or if entries
    behind `needed` were trimmed. The hint names the choices. With such a journal the app would make effects again that
    it has made before.
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
