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

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import msgspec

from sabot.base.accounts import Amounts
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import CorruptJournal, LetterRefused, OtherJournal
from sabot.journal.ended_jobs import BLOCKED, OUTCOMES, EndedJob, HistoryBounds, JobQuery
from sabot.journal.entries import Answer, Begin, Body, Cancel, End, Entry, Letter, Signal, decode_entry
from sabot.journal.lanes import JobLimit, Lanes, starts_at

_log = logging.getLogger(__name__)

MAY_BEGIN_AGAIN = ("failed", "cancelled")
"""The outcomes of jobs that may begin again, because somebody may send their dead letter again. Every failed job has a
dead letter. A cancelled job has one in a rare case: it had failed, and a crash came before its END entry was durable.
"""


_FEW = 10  # letters that are looked up one by one, in place of reading all

EVERY = 1 << 62
"""As the parameter `most` of `JournalReader.logged`: all jobs."""


Approval = tuple[str, str, str, str, str, str]
"""An approval of a person that holds for calls of other jobs too: the id of the job that has got it, the scope of the
others, their session ("" for all sessions of the scope), the tool, model or agent, the rule that has asked, and the words
that say who has approved.
"""


class Position(NamedTuple):
    """The place of an entry in a journal: its partition, and its offset in that partition. Each new entry has a
    higher offset than all earlier ones. Offsets of removed entries are not used again.
    """

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class JobMark:
    """The facts about a job that a journal can look up without reading the job's entries. The mark remains when
    `trim` removes the entries of an ended job. So if the same job is requested again, the journal still knows how it
    has ended.

    - `began`: the place of the job's BEGIN entry. `digest`: the digest in that entry.
    - `outcome`: the outcome of the job; "" while the job is open. `result`: the field `result` of its END entry.
    - `ended_ms`: the time of its END in milliseconds since 1970; 0 while the job is open.

    The other fields are those of lists of jobs (`JournalReader.logged`). They are empty in a journal of an older format.

    - `agent`: the id of its agent. `scope`, `principal`, `session`: the tenant, the person, the conversation. `key`: the
      key of its record as a text. Each has at most 500 characters.
    - `created_ms`: the time of its first BEGIN entry in the log, in milliseconds since 1970; None if the log has none of
      its entries any more.
    - `tried`: False for a job that was requested and whose function has not run yet.
    - `asks`: the number of its open questions to people.
    - `again`: True if it began again after its earlier entries had moved into the history.
    - `blocked`: the reason why the present code of its agent cannot continue the job (`Journal.note_blocked`), in at most
      500 characters; "" if it can, or if the job has ended.
    - `worker`: the number of the worker that holds the open job, in a journal that several share; 0 in other journals, and
      if none holds it.
    """

    job: str
    began: Position
    digest: bytes
    outcome: str = ""
    result: str = ""
    ended_ms: int = 0
    agent: str = ""
    scope: str = ""
    principal: str = ""
    session: str = ""
    key: str = ""
    created_ms: int | None = None
    tried: bool = True
    asks: int = 0
    again: bool = False
    blocked: str = ""
    worker: int = 0

    @property
    def status(self) -> str:
        """The status of the job, as lists show it: BLOCKED, "queued", "running", "waiting_action", or the way in which
        it ended. An outcome that Sabot does not know is "failed".
        """
        if self.outcome:
            return self.outcome if self.outcome in OUTCOMES else "failed"
        if self.blocked:
            return BLOCKED
        if not self.tried:
            return "queued"
        return "waiting_action" if self.asks else "running"


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a person, which is recorded as an INTENT entry with a token. Anybody who knows the token may
    answer the question.

    - `job`, `ordinal`: the id of the job, and the ordinal of the effect that is or concerns the question.
    - `due_ms`: the deadline in milliseconds since 1970; 0 for none.
    - `closed`: how the question has ended, such as "resolved" or "expired"; "" while it is open.
    """

    job: str
    ordinal: int
    due_ms: int
    closed: str = ""


class JobHistory(ABC):
    """The archive of a journal: it contains ended jobs whose entries `trim` has moved out of the log.
    `Journal.keeping` decides how long a job remains in it. Every method may block, may be called from any thread, and
    raises the errors of a `JournalReader`.

    A job moves in one step: at any moment, and after any crash, its entries are either in the log or in the history.
    If a job begins again after it was moved, its old entries are in the history and its new ones in the log.
    """

    @abstractmethod
    def entries(self, job: str) -> Iterator[tuple[Position, Entry]]:
        """Yields all entries of a job in order: first those in the history, and then those in the journal's log."""

    @abstractmethod
    def find(self, query: JobQuery, most: int) -> list[EndedJob]:
        """Returns the jobs of the history that fulfil a query, the newest first, and at most `most` of them."""

    @abstractmethod
    def counts(self, query: JobQuery) -> dict[str, int]:
        """Returns the numbers of jobs of the history that fulfil a query. The key is the status of the jobs, such as
        "failed".
        """

    @abstractmethod
    def known(self, jobs: Collection[str]) -> list[EndedJob]:
        """Returns the rows of these jobs. Leaves out jobs that are not in the history."""

    @abstractmethod
    def used_below(self, jobs: Collection[str]) -> dict[str, Amounts]:
        """Returns, by job, the total usage of the job's descendants that are in the history. Leaves out jobs without
        such descendants.
        """


@dataclass(frozen=True, slots=True)
class JobKeeping:
    """The rule by which `trim` moves the entries of ended jobs into the history of the journal (`JobHistory`).

    - `describe`: a function that gets a reader and the id of a job. It returns the job's row for the history, or None
      if the job must not be in the history. It may block, and raises only errors of the reader.
    - `seconds`: how long a job remains in the history after its end.
    - `most_bytes`: the maximum size of the history in bytes.
    """

    describe: Callable[["JournalReader", str], EndedJob | None]
    seconds: float
    most_bytes: int

    def bounds(self, now: float) -> HistoryBounds:
        """Returns the limits that apply to the history at the time `now`, which is in seconds since 1970."""
        return HistoryBounds(round((now - self.seconds) * 1000), self.most_bytes)


class JournalReader(ABC):
    """A reader of the durable entries of a journal. It changes nothing. Every method may block, and may be called
    from any thread.

    All methods may raise these errors:

    - CorruptJournal: the journal is damaged.
    - UserError: the journal has a format version that this Sabot does not know.
    - TransientError: the journal is on a server that does not answer.
    """

    where: str
    """The journal's name in messages: a path, a topic, an address without its password."""
    identity: str
    """The random id of the journal, which never changes."""
    key: bytes
    """32 random bytes, which are secret. They are the key of all digests (`effects.digest`), so that nobody without
    them can guess the digested values.
    """

    @abstractmethod
    def positions(self) -> dict[int, int]:
        """Returns, by partition, the offset of the last durable entry plus 1. A checkpoint saves these offsets and
        the `identity` of the journal. At the next start of the app, `check_place` compares them with the journal.
        """

    @abstractmethod
    def trimmed(self) -> dict[int, int]:
        """Returns, by partition, the offset behind the last END entry of the jobs that `trim` has removed. A checkpoint
        from before this offset cannot be restored any more if it needs the entries of these jobs (see `check_place`).
        For a partition in which no job was removed, the offset is 0 or is left out. Of a journal that several workers share:
        by run (`ends`), the offset behind the last entry that was removed.
        """

    def ends(self) -> dict[int, int]:
        """Returns, by run, the offset of the last durable entry plus 1. Within a run, entries become durable in the order of
        their offsets, so a reader that remembers the ends goes on from there. A run is a partition; or if several workers
        share the journal, a range of offsets of one of them, because another may write below the last entry. Entries of a
        job in a higher run come later. If nothing was trimmed, two results are equal only if no entry came between them.
        """
        return self.positions()

    def read_run(self, run: int, first: int) -> Iterator[tuple[Position, Entry]]:
        """Yields the durable entries of a run (`ends`) from the offset `first` on, as `read` does. A reader of several runs
        stops at the ends that it knows: else it may find a later entry of a job, and not an earlier one in a lower run.
        """
        start = {**self.positions(), run: first}
        return ((position, entry) for position, entry in self.read(start=start) if position.partition == run)

    @property
    def is_new(self) -> bool:
        """True if no entry was ever appended to the journal."""
        return not any(self.positions().values())

    @abstractmethod
    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        """Yields the durable entries with their places, one partition after the other, each in order.

        - `job`: yields only the entries of this job; None for those of all jobs.
        - `start`: by partition, the offset of the first entry to yield; 0 for partitions that are missing, and for
          None.

        An entry that becomes durable during the reading may be yielded or not. If the body of an entry is long, the
        entry contains a StoredBody instead, which `load` loads.
        """

    def read_jobs(self, jobs: Collection[str]) -> Iterator[tuple[Position, Entry]]:
        """Yields the durable entries of these jobs with their places: the entries of one job after those of another,
        each in order. Otherwise as `read`.
        """
        for job in jobs:
            yield from self.read(job)

    @abstractmethod
    def unfinished(self, since: Mapping[int, int]) -> list[str]:
        """Returns the ids of the jobs that have not ended, and of at least those ended ones whose END entry is at or
        behind an offset. Reads no entries. Raises CorruptJournal if the log lacks entries that nobody has trimmed.

        `since`: by partition, that offset, which is 0 for a partition that is missing.
        """

    def open_agents(self) -> dict[str, int]:
        """Returns the numbers of the jobs that have not ended, by agent. Otherwise as `unfinished`."""
        self.unfinished(self.positions())
        return Counter(mark.agent for mark in self.open_marks())

    def open_marks(self) -> list[JobMark]:
        """Returns the jobs that have not ended, in the order of their last BEGIN entries. Reads no entries."""
        marks = (mark for mark in self.logged(JobQuery(), EVERY) if not mark.outcome)
        return sorted(marks, key=lambda mark: mark.began)

    @abstractmethod
    def load(self, body: Body) -> bytes:
        """Returns the bytes of a body. If the body is a StoredBody, reads the bytes from the journal. Raises
        CorruptJournal if they are missing or do not match their hash.
        """

    @abstractmethod
    def job(self, job: str) -> JobMark | None:
        """Returns the facts about a job that the journal knows without its entries. Returns None if the journal has
        no BEGIN of this job, or if `trim` has forgotten the job.
        """

    def marked(self, jobs: Collection[str]) -> dict[str, JobMark]:
        """Returns what `job` returns of each of these jobs, without those for which it returns None."""
        return {job: mark for job in jobs if (mark := self.job(job)) is not None}

    @abstractmethod
    def logged(self, query: JobQuery, most: int) -> list[JobMark]:
        """Returns the jobs with entries in the log that fulfil a query, the newest first, and at most `most` of them.
        Reads no entries, unless the journal has an older format. The condition on `text` is not looked at. Raises
        UserError if `after` is no cursor.
        """

    @abstractmethod
    def logged_counts(self, query: JobQuery) -> dict[str, int]:
        """Returns the numbers of the jobs that `logged` returns for a query, by their `JobMark.status`."""

    @abstractmethod
    def logged_below(self, jobs: Collection[str]) -> list[str]:
        """Returns the ids of the descendants of these jobs that have entries in the log."""

    def begun_within(self, effect: str) -> list[str]:
        """Returns the jobs that the tool of an effect has begun by idempotency keys (`Begin.within`). `effect`: the key of
        the effect. Reads the whole log, unless the journal keeps these jobs elsewhere.
        """
        begins = [entry for _, entry in self.read() if isinstance(entry, Begin) and entry.within] if effect else []
        return list({entry.job for entry in begins if entry.within == effect})

    @abstractmethod
    def begun_again(self) -> list[str]:
        """Returns the jobs with entries in the log that may also be in the history, because they have begun again."""

    @abstractmethod
    def question(self, token: str) -> Question | None:
        """Returns the question with this token, or None if there is none."""

    @abstractmethod
    def letters(self) -> list[Letter]:
        """Returns the letters in the inbox that the owner has not turned into entries yet, in the order in which they
        were posted.
        """

    def letter(self, once: str) -> Letter | None:
        """Returns the letter of this name (`Letter.once`) that the owner has not turned into an entry yet, or None."""
        return next((letter for letter in self.letters() if letter.once == once), None)

    def waits(self, jobs: Collection[str], clock: Clock = SYSTEM_CLOCK) -> dict[str, str]:
        """Returns, by job, what these jobs wait for whose letters are in the inbox, as far as it is known here: the owner of the
        journal knows its limits, other readers the times before which jobs do not begin, by `clock`, and the agents that the
        owner has, or the last one had. Leaves out the other jobs.
        """
        now_ms, letters = round(clock.time() * 1000), _beginnings_of(self, jobs)
        noted = self.notes(_AGENTS).get(_AGENTS) if letters else None
        there: list[str] | None = None if noted is None else msgspec.json.decode(noted)
        found = dict[str, str]()
        for job, each in letters.items():
            if there is not None and each.name not in there:
                found[job] = f"no worker that runs has agent {each.name}{'' if there else OF_AN_APP}"
            elif each.after_ms > now_ms:
                found[job] = starts_at(each.after_ms)
        return found

    def notes(self, prefix: str) -> dict[str, str]:
        """Returns the notes (`Inbox.note`) whose names begin with a prefix, by name."""
        return {}

    def approvals(self, jobs: Collection[str] | None = None) -> list[Approval] | None:
        """Returns the approvals that hold for other jobs too (`Journal.note_approval`). Returns None if the
        journal does not keep them: then the entries of all jobs have them. `jobs`: only those that these jobs have got;
        None for all.
        """
        return None

    @property
    @abstractmethod
    def history(self) -> JobHistory:
        """The ended jobs whose entries `trim` has moved out of the log."""

    @abstractmethod
    def close(self) -> None:
        """Closes all connections and files. Idempotent."""


class Inbox(ABC):
    """The inbox of a journal. Any process can post letters to jobs into it: answers, signals and cancels (class
    `Letter`). It accepts letters whether or not an app currently runs with the journal.
    """

    key: bytes
    """The key of the journal, as in `JournalReader`."""

    @abstractmethod
    def post(self, letter: Letter) -> None:
        """Posts a letter. When this returns, the letter is durable, and the owner will turn it into an entry. Blocks.
        May be called in any thread and any process.

        Raises LetterRefused in these cases:

        - The journal does not know the token or the job; or for a beginning: it knows the job already.
        - The question is closed, or its deadline has passed.
        - The job has ended; or for a retry: the job has succeeded, or has not ended.
        - A signal has no token.
        - The inbox has already accepted a letter with the same name (`once_of`). For example, of two letters that
          answer the same question at the same time, it accepts one.

        Raises TransientError if a server does not answer, or if another process has locked the database. After that,
        or after a crash, the letter may be stored or not. The caller may post it again. If it was stored the first
        time, the second time raises LetterRefused.

        Raises UserError for a letter that could not be decoded again.
        """

    def post_all(self, letters: Sequence[Letter]) -> list[LetterRefused | None]:
        """Posts letters to jobs, in their order. Returns for each None if it was accepted, and else the error that `post` raises.
        When this returns, those that were accepted are durable. Blocks. May be called in any thread and any process.

        Raises TransientError and UserError as `post` does. After an error, or after a crash, any of them may be stored or not.
        """
        return [refusal_of(self.post, letter) for letter in letters]

    def begin(self, letters: Sequence[Letter]) -> list[bool]:
        """Posts letters that begin jobs, in their order. Returns for each True if it was accepted, and False if the journal
        knows its job already: so of two letters for one job it accepts the first. When this returns, those that were accepted
        are durable. Blocks. May be called in any thread and any process.

        Raises TransientError and UserError as `post` does. After an error, or after a crash, any of them may be stored or not.
        """
        return [refused is None for refused in self.post_all(letters)]

    def note(self, name: str, value: str, before: str | None = None) -> bool:
        """Keeps a short text beside the log, in place of an earlier one of this name; "" removes that. Returns True when it is
        durable. Returns False, and keeps nothing, if `before` is given and is not the earlier one ("" if there is none), and in a
        journal that has no place for notes, as those in Kafka. Blocks. May be called in any thread and any process. Raises
        TransientError as `post` does.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Closes all connections and files. Idempotent."""


_AGENTS = "agents"
"""The name of the note in which the owner of a journal has the ids of its agents, as a list in JSON."""

OF_AN_APP = " (jobs of an App begin with the records of its agents: write one)"


class Beginnings:
    """Decides which letters of clients the owner of a journal may turn into BEGIN entries, so that a job begins once, and only
    in a program that has its agent.

    - `agents`: the ids of the agents whose jobs letters may begin. It is empty for an app.
    - `begun`: the number of jobs that letters have begun for the first time.
    - `declared`: those of the options "policy" and "budgets" that this program has.
    - `lanes`: the limits of jobs, and the letters that wait for their time, a seat, or room, of a journal with one owner.
    - `room`: returns how many more jobs of letters may begin now. `cancelled`: returns the body of the END entry of a job that
      was cancelled before it has begun, from the reason. The host of the jobs sets both.
    - `shared`: True if other workers append to the journal too. Each holds some of the jobs, and gets their letters.

    Only if it is shared these have a meaning:

    - `granted`: calls that let jobs go on which have waited for a seat. `Journal.take` adds them, and the host removes them.
    - `resumes`: True if this worker goes on with the jobs of workers that are gone. `version`: the version of its code. The
      kernel sets them.
    - `taken_over`: the ids of open jobs of such workers that `Journal.take` has taken. From then on this worker holds them.
      The host removes those with which it goes on.
    """

    def __init__(self, journal: "Journal") -> None:
        self.agents: frozenset[str] = frozenset()
        self.declared: frozenset[str] = frozenset()
        self.begun = 0
        self.room: Callable[[], int] = lambda: EVERY
        self.cancelled: Callable[[str], bytes] = lambda why: b""
        self.shared = self.resumes = False
        self.version = ""
        self.taken_over: list[str] = []
        self._journal = journal
        self._taking = threading.Lock()  # held while the BEGIN entry of a letter is appended
        self._reserved: set[str] = set()
        self._reservations = 0
        self._looked: tuple[int, Collection[str], Collection[str]] = (0, (), ())  # as `look` has found it
        self._left: set[str] = set()  # jobs of agents that are not there: the log has named them
        self._cancels = frozenset[str]()  # jobs of which `look` has found cancels
        self.lanes = Lanes()
        self.granted: list[Callable[[], object]] = []
        self._begun_now = 0  # jobs that letters have begun since the last look for room

    def limit(self, limits: Mapping[str, JobLimit]) -> None:
        """Sets the limits of the agents that are here, by their ids; of a shared journal for all workers. Notes the agents, so that
        readers know which jobs have nobody who begins them. Blocks.
        """
        self.lanes.limits = limits
        agents = msgspec.json.encode(sorted(self.agents)).decode()
        if self._journal.notes(_AGENTS).get(_AGENTS) != agents:  # a start that changes nothing is no commit
            self._journal.note(_AGENTS, agents)

    def lacks(self, declared: Collection[str]) -> list[str]:
        """Notes which of the options "policy" and "budgets" this worker of a shared journal has, for later ones. Returns those
        that other workers have and this one lacks: it would make calls that nobody judges or counts. Blocks.
        """
        return []

    def rests(self, job: str) -> None:
        """Notes that all functions of a job wait for something that takes long, so that it does not kill this worker of a shared
        journal.
        """

    def give_back(self, jobs: Collection[str]) -> None:
        """Gives jobs of a shared journal back, so that another worker takes them. All of their entries are durable, and this
        worker appends no others. Blocks. Raises TransientError if a server does not answer: they may have been given back or not.
        """

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Gives jobs back that the code of this worker cannot continue, for workers of another version. `reasons`: by the id of
        a job in each tree. As `give_back` otherwise.
        """

    def reserve(self, job: str) -> None:
        """Reserves the id of a job that the owner is about to begin itself: until `release`, no letter begins this job."""
        with self._taking:
            self._reserved.add(job)
            self._reservations += 1

    def release(self, job: str) -> None:
        """Ends a reservation. By then the BEGIN entry of the job is durable, or the owner does not begin the job."""
        with self._taking:
            self._reserved.discard(job)

    def arrive(self, number: int, letter: Letter, now_ms: int) -> list[tuple[int, Letter]]:
        """Returns the letters that are to be taken together, now that this one has arrived: itself, or none, or a beginning with
        the letters to its job up to a cancel (`Lanes.arrive`). Whoever takes the letters ends a job that is cancelled before it has
        begun, also that of an agent which nobody has. A worker of a shared journal has claimed its letters in their order.
        """
        if self.shared:
            if letter.job not in self._cancels:
                return [(number, letter)]
            if letter.kind in ("begin", "retry"):
                self.lanes.hold(number, letter)
                return []
        elif letter.kind == "begin" and letter.name not in self.agents:
            self.leave(letter)
            if self.agents:  # an app, which has none, knows nothing of such jobs
                self.lanes.hold(number, letter)
            return []
        return self.lanes.arrive(number, letter, now_ms)

    def next_due(self, now_ms: int) -> tuple[int, Letter] | None:
        """Returns the next letter that may be taken of those that have waited, with its number, or None."""
        return self.lanes.next_due(now_ms, self._left_room())

    def is_due(self, now_ms: int) -> bool:
        """Returns True if `next_due` returns a letter."""
        return self.lanes.is_due(now_ms, self._left_room())

    def waits(self, jobs: Collection[str], now_ms: int) -> dict[str, str]:
        """Does what `JournalReader.waits` says, at a time."""
        found = self.lanes.waits(jobs, now_ms, self._left_room())
        for job, letter in _beginnings_of(self._journal, [job for job in jobs if job not in found]).items():
            if letter.name not in self.agents:
                found[job] = f"this program has no agent {letter.name}{'' if self.agents else OF_AN_APP}"
            elif letter.after_ms > now_ms:  # it was not taken from the inbox yet
                found[job] = starts_at(letter.after_ms)
        return found

    def _left_room(self) -> int:
        return self.room() - self._begun_now

    def begun_all(self) -> None:
        """Notes that `room` counts all jobs that letters have begun."""
        self._begun_now = 0

    def look(self, letters: Iterable[Letter]) -> None:
        """Looks which jobs of these letters have begun, by one query for the calls of `take` that follow. Blocks."""
        found = list(letters)
        self._cancels = frozenset(letter.job for letter in found if letter.kind == "cancel")
        self._look_for({letter.job for letter in found if letter.kind == "begin"})

    def _look_for(self, jobs: Collection[str]) -> None:
        reservations = self._reservations
        self._looked = reservations, jobs, self._journal.marked(jobs) if jobs else ()

    def take(
        self,
        letters: Sequence[tuple[int, Letter]],
        entry_of: Callable[[Letter], Entry],
        append: Callable[[Sequence[tuple[Entry, int]]], list[Position]],
        now_ms: int,
    ) -> list[tuple[int, Position | None, Entry]]:
        """Appends the entries of letters that are to be taken together (`arrive`), in one step. Behind those of a job that is
        cancelled before it has begun comes its END. Appends nothing for a letter that begins a job of an agent that is not in
        `agents`, unless it is cancelled, or a job that has begun or is reserved. Returns the entries with the numbers of their
        letters, or 0, and their places, or None for those that were not appended.

        - `entry_of`: makes the entry of a letter. `append`: appends entries, with the numbers of their letters, in one step.
        """
        first, rest = letters[0][1], letters[1:]
        made = [(entry_of(letter), number) for number, letter in letters]
        begin, last = made[0][0], made[-1][0]
        if isinstance(begin, Begin) and isinstance(last, Cancel):
            body = self.cancelled(last.reason)
            made.append((End(begin.job, now_ms, "cancelled", last.reason, body=body, labels=begin.labels), 0))
        append_all = partial(append, made)
        places = append_all() if first.kind != "begin" else self._begin(first, append_all, ends=bool(rest))
        self.lanes.taken(first, now_ms, begun=places is not None)
        if places is None:
            found: list[tuple[int, Position | None, Entry]] = [(letters[0][0], None, begin)]
            for each in rest:
                found += self.take([each], entry_of, append, now_ms)
            return found
        self._begun_now += first.kind == "begin" and not rest
        for _, letter in rest:
            self.lanes.taken(letter, now_ms, begun=True)
        return [(number, place, entry) for (entry, number), place in zip(made, places, strict=True)]

    def _begin(self, letter: Letter, append: Callable[[], list[Position]], *, ends: bool) -> list[Position] | None:
        if letter.name not in self.agents and not ends:
            self.leave(letter)
            return None
        while True:
            reservations, looked, known = self._looked
            if letter.job not in looked:
                self._look_for([letter.job])
                continue
            with self._taking:
                if reservations != self._reservations:  # the owner may have begun the job since the look
                    self._looked = 0, (), ()
                    continue
                if letter.job in known or letter.job in self._reserved:
                    return None
                places = append()
                self.begun += 1
                return places

    def leave(self, letter: Letter) -> None:
        """Logs, once for each job, that its agent is not in `agents`, so that its letter stays in the inbox."""
        if letter.job not in self._left:
            self._left.add(letter.job)
            has = ", ".join(sorted(self.agents)) or "none whose jobs clients begin"
            hint = "" if self.agents else OF_AN_APP
            _log.warning(
                "%s: a client has begun job %s of agent %s, and this program has %s: it stays queued for one that has it%s",
                *(self._journal.where, letter.job, letter.name, has, hint),
            )


class Journal(JournalReader, Inbox):
    """A journal, opened by its owner, which is the only object that may append to it. The constructor acquires the
    claim, a lock that makes this object the owner. It raises AppLocked if another process, or another object of this
    process, has the claim.

    A claim ends with `close` or when the process ends. An owner may also lose the claim earlier, for example because
    somebody removes the lock file. Its next append then fails with JournalFailed.
    """

    clock: Clock
    """The clock that gives letters their times and tells whether they came too late. Code that works over a journal
    uses it too.
    """

    begins: Beginnings
    """Decides which letters may begin jobs."""

    keeping: JobKeeping | None = None
    """The rule by which `trim` moves entries into the history. None: `trim` deletes the entries."""

    look_s: float = 0.02
    """The seconds between two looks for letters. The number is small if a look costs little, so that answers are taken
    soon.
    """

    def abandon(self) -> None:
        """Closes the journal of an app that did not start, for example because a check before the start has failed.
        Also deletes the journal if this process has just created it and nobody has used it.
        """
        self.close()

    async def look(self) -> bool:
        """Returns True if there may be letters that `take` would take, or open jobs of workers that are gone. Changes
        nothing in the journal. An implementation that finds out cheaply that nobody has posted since the last look asks no
        further. Raises TransientError if a server does not answer; then the next look tells.
        """
        return bool(await run_in_thread(self.letters))

    def claim_left(self) -> float:
        """Returns the seconds for which this owner certainly still has the claim, by the machine's monotonic clock.
        Never blocks.

        The caller checks this just before it sends a call. If the result is 0.0, another process may have the claim,
        so the call must not be sent. If it is `math.inf`, the claim only ends with the process.
        """
        return math.inf

    def predecessor_left(self, job: str) -> float:
        """Returns the seconds for which the previous owner of a job may still begin calls of it. That owner may be paused or
        without a connection, and may not know yet that it has lost the claim. Never blocks.

        A negative number is returned after this time. `-math.inf` means that no previous owner can begin calls: it
        has closed the journal, or its process has certainly ended.

        A call that the previous owner begins in the last moment ends after the time limit of its tool. Until then,
        nobody decides on effects in doubt (effects of which nobody knows whether they were made).
        """
        return -math.inf

    @abstractmethod
    def append(self, entry: Entry) -> Position:
        """Appends an entry to the partition of its job, and returns the place of the entry. The order of the entries
        is the order of the calls of this method. Never blocks. May be called in any thread.

        The entry is not durable yet when this method returns: await `durable`. If too many bytes wait to become
        durable, raises JournalFull and appends nothing (await `room` first). Raises JournalFailed if an append has
        failed before, and UserError if the journal is closed.
        """

    @abstractmethod
    async def room(self) -> None:
        """Waits until `append` can accept an entry. Raises JournalFailed if an append has failed. If the caller then
        calls `append` without another `await` in between, `append` does not raise JournalFull, unless another thread
        appends too.
        """

    @abstractmethod
    async def durable(self, position: Position) -> None:
        """Waits until the entry at this place, and all entries before it in its partition, are durable. Raises
        JournalFailed if they cannot become durable.
        """

    @abstractmethod
    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        """Blocks the thread until the entry at this place is durable, and returns True. Returns False if the entry is
        not durable after `timeout` seconds; None means no limit. Raises JournalFailed if it cannot become durable.
        """

    @abstractmethod
    async def flush(self) -> dict[int, int]:
        """Waits until all entries that were appended before this call are durable. Returns, by run (`ends`), the offset
        behind the last of these entries; of a journal that several workers share only by the run of the last one. Each
        checkpoint barrier waits for this. Raises JournalFailed.
        """

    @abstractmethod
    def take(self) -> list[tuple[Position, Entry]]:
        """Removes letters from the inbox, in the order in which they were posted, and appends an entry for each.
        Returns these entries with their places. They are not durable yet. Leaves letters there that it must not take
        (`Beginnings.take`). A worker of a shared journal also takes the open jobs of workers that are gone
        (`Beginnings.taken_over`).

        If too many bytes wait to become durable, the remaining letters stay in the inbox for a later call. After a
        crash, a letter whose entry was not durable is still in the inbox.
        """

    @abstractmethod
    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        """Notes which open jobs the present code of their agents cannot continue, in their marks (`JobMark.blocked`).
        Durable when this returns. The log gets no entry: another start may have other code. A BEGIN or END entry of a job
        removes its note. Blocks. Raises TransientError if a server does not answer; the caller may try again.

        `reasons`: by job, the reason why it cannot continue; "" to remove the note. Jobs whose BEGIN entries are not
        durable, and jobs that have ended, are left out.
        """

    def note_approval(self, approval: Approval) -> None:
        """Notes an approval beside the log, unless it is there. It becomes durable in one step with the next entry that is
        appended, so at the latest with the END entry of the job that has got it, and goes when that job is trimmed. Never
        blocks. Does nothing in a journal that does not keep approvals.
        """

    def keep_approvals(self, approvals: Collection[Approval]) -> None:
        """Notes the approvals that the log has, all at once, for a journal of an older format whose `approvals` are None.
        Durable when this returns; from then on `approvals` returns them. Blocks. Raises TransientError if a server does
        not answer. Does nothing in a journal that does not keep approvals.
        """

    @abstractmethod
    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        """Removes the entries of jobs that ended before the offsets in `before`, and the long bodies that no
        remaining entry refers to. Returns the number of removed entries. Blocks; other threads may append meanwhile.

        - `before`: by partition, the offset of the journal in the oldest retained checkpoint.
        - `forget_before_ms`: a time in milliseconds since 1970. A job that ended before it is forgotten completely. A
          job that ended later keeps its `JobMark`. If such a job may begin again (MAY_BEGIN_AGAIN), it also keeps its
          entries, because it then needs its earlier results.
        - `sessions`: True if a job that belongs to a session keeps its entries for as long: later jobs of the session need
          them.

        A job that has not ended keeps all entries. After a crash during a trim, each job is either trimmed completely
        or not at all. If `keeping` is set, the removed entries move into the history, and jobs that exceed the limits
        of the history are removed from it.
        """

    @abstractmethod
    def forget(self, jobs: Collection[str]) -> int:
        """Removes the entries of these jobs, and their long bodies, as far as they have ended; they do not move into the
        history. Their `JobMark` stays, as after `trim`. Returns the number of removed entries. Blocks. After a crash, each job
        is either removed completely or not at all.
        """

    @abstractmethod
    def statistics(self) -> dict[str, int]:
        """Returns figures since the journal was opened. Never blocks.

        - `entries`: the number of entries that were appended. `commits`: the number of steps in which entries became
          durable.
        - `waiting`, `bytes_waiting`: the number of entries that are not durable yet, and the number of their bytes.
        - `bodies`: the number of long bodies that were stored.
        - `letters`: the number of letters that were turned into entries. `refused`: the number of letters that were
          refused.
        """


def _beginnings_of(reader: JournalReader, jobs: Collection[str]) -> dict[str, Letter]:
    """Returns, by job, the letters that begin these jobs and are in the inbox. Blocks."""
    few = len(jobs) <= _FEW
    letters = (reader.letter(f"begin:{job}") for job in jobs) if few else iter(reader.letters())
    wanted = set(jobs)
    return {each.job: each for each in letters if each is not None and each.kind == "begin" and each.job in wanted}


def refusal_of(post: Callable[[Letter], object], letter: Letter) -> LetterRefused | None:
    """Calls `post` with a letter. Returns the LetterRefused that it raises, or None."""
    try:
        post(letter)
    except LetterRefused as refused:
        return refused
    return None


def once_of(letter: Letter, mark: JobMark | None) -> str:
    """Returns the name under which an inbox stores a letter. The inbox accepts only one letter of each name. The name
    is `Letter.once`. For a cancel or a retry, the place of the job's last BEGIN entry is added, so that a job which begins
    again can be cancelled, and begun, again. `mark`: what the journal knows about the job that the letter names; None if
    it names none.
    """
    once_a_run = letter.kind in ("cancel", "retry") and mark is not None
    return f"{letter.once}@{mark.began.offset}" if once_a_run and mark is not None else letter.once


def queued_once(letter: Letter) -> str:
    """Returns the name of the letter that begins the job to which this letter is; "" for a letter that a job cannot get
    before it has begun.
    """
    return f"begin:{letter.job}" if letter.kind in ("signal", "cancel") else ""


def queued_mark(job: str) -> JobMark:
    """Returns the mark of a job whose beginning is in the inbox, while the journal has no entry of the job."""
    return JobMark(job, Position(0, -1), b"", tried=False)


def retried_once(letter: Letter, mark: JobMark | None) -> str:
    """Returns the name of the letter that would begin the ended job of this cancel again; "" for any other letter."""
    over = letter.kind == "cancel" and mark is not None and mark.outcome in MAY_BEGIN_AGAIN
    return once_of(Letter("retry", job=letter.job), mark) if over else ""


def retried_mark(mark: JobMark) -> JobMark:
    """Returns the mark of a job whose retry is in the inbox. A cancel of that run has another name than one of the run before."""
    return replace(mark, outcome="", began=Position(mark.began.partition, -2 - mark.began.offset))


def check_letter(letter: Letter, question: Question | None, mark: JobMark | None, earlier: bool, now_ms: int) -> str:
    """Checks whether an inbox may accept a letter. Returns the id of the job that the letter is for. Raises
    LetterRefused if the letter must not be accepted. The inbox calls this in the transaction that stores the letter.

    - `question`: the question with the letter's token; None if there is none.
    - `mark`: what the journal knows about the job that the letter names; None if it does not know the job.
    - `earlier`: True if the inbox has already accepted a letter with the same name (`once_of`).
    - `now_ms`: the present time, in milliseconds since 1970.
    """
    if letter.kind == "begin":
        if mark is not None or earlier:
            raise LetterRefused(f"job {letter.job}: there is one of this name already", reason="second")
        return letter.job
    if letter.kind in ("signal", "cancel", "retry"):
        if mark is None:
            raise LetterRefused(f"job {letter.job}: there is none of this name", reason="unknown")
        if letter.kind == "retry":
            _check_retry(letter, mark)
        elif mark.outcome:
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


def _check_retry(letter: Letter, mark: JobMark) -> None:
    """Raises LetterRefused if the job must not begin again, or if it has begun again since the sender has read it."""
    if mark.outcome and mark.outcome not in MAY_BEGIN_AGAIN:
        raise LetterRefused(f"job {letter.job} has ended: {mark.outcome}", reason="closed")
    if not mark.outcome or letter.name != str(mark.began.offset):
        raise LetterRefused(f"job {letter.job} has begun again already, or has not ended", reason="second")


def entry_of_letter(letter: Letter, question: Question | None, at_ms: int, declared: Collection[str] = ()) -> Entry:
    """Returns the entry that the owner of the journal makes from a letter: an Answer, a Signal or a Cancel, or the BEGIN
    entry of a retry or of a new job. `question`: the question with the letter's token; None for the other kinds.
    `at_ms`: the time of the entry, in milliseconds since 1970; 0 for the time of the letter, of a retry or a beginning.
    `declared`: what the program that takes the letter has declared, for a BEGIN entry (`Begin.declared`).
    """
    if letter.kind in ("retry", "begin"):
        begin = decode_entry(letter.body, f"the letter ({letter.kind}) of job {letter.job}")
        if not isinstance(begin, Begin) or begin.job != letter.job:
            raise CorruptJournal(f"the letter ({letter.kind}) of job {letter.job} has no BEGIN entry of it")
        told = tuple(sorted({*begin.declared, *declared}))
        return msgspec.structs.replace(begin, at_ms=at_ms or begin.at_ms, declared=told)
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
    """Checks that a checkpoint belongs to this journal. With another journal, the app would make effects again that it
    has made before.

    - `identity`, `positions`: the identity of the journal and its offsets by partition, as the checkpoint has saved
      them.
    - `needed`: by partition, the offset from which on a restore of the checkpoint needs the journal: no job that ended
      at or after it may have been trimmed. None to use `positions`.

    Raises OtherJournal if the journal has another identity, if it ends before `positions`, or if jobs that ended at or
    after `needed` were trimmed. The hint of the error says what the user can do.
    """
    hint = (
        "put the app's journal there, or a copy that was made after the checkpoint, before the start; or start --fresh, "
        "and effects that were made may be made again"
    )
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
