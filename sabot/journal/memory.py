"""A journal in memory, for tests and scripts. It works like the other journals, and ends with the process.

`MemoryStorage` holds the entries, as a folder does for SQLite: a second `MemoryJournal` over the same storage, opened
after the first is closed, has the entries of the first.
"""

import secrets
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b

from sabot.base.accounts import Amounts
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import AppLocked, CorruptJournal, LetterRefused, UserError
from sabot.journal.base import (
    MAY_BEGIN_AGAIN,
    Approval,
    Beginnings,
    Inbox,
    JobHistory,
    JobKeeping,
    JobMark,
    Journal,
    JournalReader,
    Position,
    Question,
    check_letter,
    entry_of_letter,
    once_of,
    queued_mark,
    queued_once,
    retried_mark,
    retried_once,
)
from sabot.journal.ended_jobs import EndedJob, HistoryBounds, JobQuery, descendants, dollars_of, newest_first
from sabot.journal.entries import (
    Answer,
    Body,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    StoredBody,
    body_of,
    decode_entry,
    encode_entry,
    encode_letter,
    hash_of,
    with_stored_body,
)
from sabot.journal.entry_counts import Run, check_counted, joined, runs_of
from sabot.journal.job_marks import JobMarks, below, selected


class MemoryStorage:
    """The content of a journal in memory. One lock guards all of it."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.identity = uuid.uuid4().hex
        self.key = secrets.token_bytes(32)
        self.clock = clock
        self.lock = threading.RLock()
        self.owner: object | None = None
        self.next = 0
        self.removed = 0  # the offset behind the last END whose job was trimmed
        self.gone: list[Run] = []  # the places of trimmed entries (`entry_counts`)
        self.entries: dict[int, tuple[str, bytes]] = {}
        self.of_job: dict[str, list[int]] = {}
        self.bodies: dict[bytes, bytes] = {}
        self.uses: dict[int, bytes] = {}
        self.known = JobMarks()
        self.questions: dict[str, Question] = {}
        self.tokens: dict[str, list[str]] = {}  # by job: the tokens of its questions
        self.letters: dict[str, tuple[str, int]] = {}  # by name (`base.once_of`): the job, and the number of the letter
        self.untaken: dict[int, Letter] = {}  # by number, in order
        self.posted: list[int] = []  # the numbers of letters that the owner has not looked at
        self.last_letter = 0
        self.notes: dict[str, str] = {}
        self.approvals: set[Approval] = set()
        self.history: dict[str, EndedJob] = {}
        self.history_entries: dict[str, dict[int, bytes]] = {}  # by job in the history: its entries by offset
        self.sizes: dict[str, int] = {}  # by job in the history: the bytes of its entries and their bodies

    @property
    def marks(self) -> dict[str, JobMark]:
        """The marks of the jobs, by job."""
        return self.known.marks


class MemoryReader(JournalReader):
    """A reader of a `MemoryStorage`."""

    where = "journal in memory"

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.identity = storage.identity
        self.key = storage.key

    def positions(self) -> dict[int, int]:
        return {0: self.storage.next}

    def trimmed(self) -> dict[int, int]:
        return {0: self.storage.removed}

    def read(self, job: str | None = None, start: Mapping[int, int] | None = None) -> Iterator[tuple[Position, Entry]]:
        first = (start or {}).get(0, 0)
        with self.storage.lock:
            offsets = list(self.storage.entries) if job is None else list(self.storage.of_job.get(job, ()))
            if job is None:
                self._check(first, offsets)
        for offset in offsets:
            found = self.storage.entries.get(offset)
            if offset >= first and found is not None:
                yield Position(0, offset), decode_entry(found[1], self.where)

    def unfinished(self, since: Mapping[int, int]) -> list[str]:
        first = since.get(0, 0)
        with self.storage.lock:
            self._check(0, list(self.storage.entries))
            of_job, marks = self.storage.of_job, self.storage.marks
            return [job for job, mark in marks.items() if not mark.outcome or of_job.get(job, [-1])[-1] >= first]

    def _check(self, first: int, offsets: list[int]) -> None:
        """Raises CorruptJournal if an entry at the offset `first` or later is missing and was not trimmed. `offsets`:
        the offsets of all entries that exist.
        """
        later = [offset for offset in offsets if offset >= first]
        check_counted(lambda *_: self.storage.gone, self.where, first, later, max(first, self.storage.next))

    def load(self, body: Body) -> bytes:
        if isinstance(body, bytes):
            return body
        found = self.storage.bodies.get(body.hash)
        if found is None or hash_of(found) != body.hash:
            raise CorruptJournal(f"{self.where}: body {body.hash.hex()} is missing or damaged")
        return found

    def job(self, job: str) -> JobMark | None:
        return self.storage.marks.get(job)

    def logged(self, query: JobQuery, most: int) -> list[JobMark]:
        return selected(list(self.storage.marks.values()), query, most)

    def logged_counts(self, query: JobQuery) -> dict[str, int]:
        return Counter(mark.status for mark in selected(list(self.storage.marks.values()), query))

    def logged_below(self, jobs: Collection[str]) -> list[str]:
        return below(list(self.storage.marks.values()), jobs)

    def begun_again(self) -> list[str]:
        return [mark.job for mark in list(self.storage.marks.values()) if mark.again]

    def question(self, token: str) -> Question | None:
        return self.storage.questions.get(token)

    def letters(self) -> list[Letter]:
        return list(self.storage.untaken.values())

    def letter(self, once: str) -> Letter | None:
        _, number = self.storage.letters.get(once, ("", 0))
        return self.storage.untaken.get(number)

    def notes(self, prefix: str) -> dict[str, str]:
        with self.storage.lock:
            return {name: value for name, value in self.storage.notes.items() if name.startswith(prefix)}

    def approvals(self, jobs: Collection[str] | None = None) -> list[Approval] | None:
        with self.storage.lock:
            return sorted(each for each in self.storage.approvals if jobs is None or each[0] in jobs)

    @property
    def history(self) -> JobHistory:
        return _MemoryHistory(self.storage, self.where)

    def close(self) -> None:
        """Does nothing."""


class _MemoryHistory(JobHistory):
    def __init__(self, storage: MemoryStorage, where: str) -> None:
        self._storage = storage
        self._where = where

    def entries(self, job: str) -> Iterator[tuple[Position, Entry]]:
        storage = self._storage
        with storage.lock:
            found = dict(storage.history_entries.get(job, {}))
            found |= {at: storage.entries[at][1] for at in storage.of_job.get(job, ())}
        for offset, data in sorted(found.items()):
            yield Position(0, offset), decode_entry(data, self._where)

    def find(self, query: JobQuery, most: int) -> list[EndedJob]:
        return newest_first([job for job in self._all() if query.selects(job)])[:most]

    def counts(self, query: JobQuery) -> dict[str, int]:
        return dict(Counter(job.status for job in self._all() if query.selects(job)))

    def known(self, jobs: Collection[str]) -> list[EndedJob]:
        return [job for job in self._all() if job.job in jobs]

    def used_below(self, jobs: Collection[str]) -> dict[str, Amounts]:
        found, known = {}, self._all()
        for job in jobs:
            first, behind = descendants(job)
            if below := [each for each in known if first <= each.job < behind]:
                dollars = dollars_of(sum(each.nanodollars for each in below))
                found[job] = Amounts(sum(each.tokens for each in below), dollars)
        return found

    def _all(self) -> list[EndedJob]:
        with self._storage.lock:
            return list(self._storage.history.values())


class MemoryInbox(Inbox):
    """An inbox over a `MemoryStorage`."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.key = storage.key

    def post(self, letter: Letter) -> None:
        storage = self._storage
        with storage.lock:
            now_ms = round(storage.clock.time() * 1000)
            question, mark = storage.questions.get(letter.token), storage.marks.get(letter.job)
            if mark is None and queued_once(letter) in storage.letters:
                mark = queued_mark(letter.job)
            if mark is not None and storage.letters.get(retried_once(letter, mark), ("", 0))[1] in storage.untaken:
                mark = retried_mark(mark)
            once = once_of(letter, mark)
            job = check_letter(letter, question, mark, once in storage.letters, now_ms)
            encode_letter(letter)  # raises for a letter that could not be decoded again, as the other journals do
            storage.last_letter += 1
            storage.letters[once] = (job, storage.last_letter)
            storage.untaken[storage.last_letter] = letter
            storage.posted.append(storage.last_letter)

    def note(self, name: str, value: str, before: str | None = None) -> bool:
        with self._storage.lock:
            if before not in (None, self._storage.notes.get(name, "")):
                return False
            self._storage.notes.pop(name, None)
            if value:
                self._storage.notes[name] = value
        return True

    def close(self) -> None:
        """Does nothing."""


class MemoryJournal(MemoryReader, Journal):
    """The owner of a `MemoryStorage`. An entry is regarded as durable as soon as it was appended, so nobody has to
    wait for it, and no append fails. The entries are lost when the process ends.
    """

    def __init__(self, storage: MemoryStorage | None = None, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(storage if storage is not None else MemoryStorage(clock))
        self.begins = Beginnings(self)
        with self.storage.lock:
            if self.storage.owner is not None:
                raise AppLocked(f"{self.where}: another owner holds it", hint="close that one first")
            self.storage.owner, self.storage.posted = self, list(self.storage.untaken)
        self.clock = self.storage.clock
        self._first = self.storage.next
        self._letters = self._refused = 0

    def append(self, entry: Entry) -> Position:
        with self.storage.lock:
            self._check_open()
            offset = self.storage.next
            entry, body = with_stored_body(entry)
            data = encode_entry(entry)
            self.storage.next += 1
            if body:
                self.storage.bodies.setdefault(hash_of(body), body)
            named = body_of(entry)
            if isinstance(named, StoredBody):
                self.storage.uses[offset] = named.hash
            self.storage.entries[offset] = (entry.job, data)
            self.storage.of_job.setdefault(entry.job, []).append(offset)
            self._index(offset, entry)
        return Position(0, offset)

    def _check_open(self) -> None:
        if self.storage.owner is not self:
            raise UserError(f"{self.where} is closed")

    def _index(self, offset: int, entry: Entry) -> None:
        if type(entry) is EffectResult:  # most entries; the others are indexed
            return
        storage = self.storage
        storage.known.apply(offset, entry, again=entry.job in storage.history)
        if isinstance(entry, End):
            for token in storage.tokens.get(entry.job, ()):
                question = storage.questions.get(token)
                if question is not None and question.job == entry.job and not question.closed:
                    storage.questions[token] = replace(question, closed=f"the job has ended: {entry.outcome}")
        elif isinstance(entry, Intent) and entry.token:
            storage.questions[entry.token] = Question(entry.job, entry.ordinal, entry.due_ms)
            storage.tokens.setdefault(entry.job, []).append(entry.token)
        elif isinstance(entry, Answer) and entry.token in storage.questions:
            storage.questions[entry.token] = replace(storage.questions[entry.token], closed=entry.outcome)

    async def room(self) -> None:
        self._check_open()

    async def durable(self, position: Position) -> None:
        """Returns at once, because all entries are regarded as durable."""

    def wait_durable(self, position: Position, timeout: float | None = None) -> bool:
        return True

    async def flush(self) -> dict[int, int]:
        return self.positions()

    def post(self, letter: Letter) -> None:
        try:
            MemoryInbox(self.storage).post(letter)
        except LetterRefused:
            self._refused += 1
            raise

    def note(self, name: str, value: str, before: str | None = None) -> bool:
        return MemoryInbox(self.storage).note(name, value, before)

    def waits(self, jobs: Collection[str], clock: Clock = SYSTEM_CLOCK) -> dict[str, str]:
        return self.begins.waits(jobs, round(self.clock.time() * 1000))

    async def look(self) -> bool:
        return bool(self.storage.posted)

    def take(self) -> list[tuple[Position, Entry]]:
        taken = list[tuple[Position, Entry]]()

        def append_all(entries: Sequence[tuple[Entry, int]]) -> list[Position]:
            return [self.append(entry) for entry, _ in entries]

        def take_together(some: Sequence[tuple[int, Letter]]) -> None:
            at_ms = round(self.clock.time() * 1000)

            def entry_of(letter: Letter) -> Entry:
                question = self.storage.questions.get(letter.token)
                return entry_of_letter(letter, question, at_ms, self.begins.declared)

            for number, position, entry in self.begins.take(some, entry_of, append_all, at_ms):
                if position is not None:
                    taken.append((position, entry))
                    self.storage.untaken.pop(number, None)  # it is gone where its job was trimmed

        with self.storage.lock:
            posted, self.storage.posted = self.storage.posted, []
            for number in posted:
                if (letter := self.storage.untaken.get(number)) is None:  # its job was trimmed
                    continue
                if some := self.begins.arrive(number, letter, round(self.clock.time() * 1000)):
                    take_together(some)
            while (due := self.begins.next_due(round(self.clock.time() * 1000))) is not None:
                take_together([due])
        self._letters += len(taken)
        return taken

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        with self.storage.lock:
            self._check_open()
            self.storage.known.note_blocked(reasons)

    def note_approval(self, approval: Approval) -> None:
        with self.storage.lock:
            self.storage.approvals.add(approval)

    def trim(self, before: Mapping[int, int], forget_before_ms: int = 0, *, sessions: bool = False) -> int:
        def goes(mark: JobMark) -> bool:
            offsets = self.storage.of_job.get(mark.job, [])
            needed = mark.outcome in MAY_BEGIN_AGAIN or (sessions and mark.session)
            kept = needed and mark.ended_ms >= forget_before_ms
            return not kept and not (offsets and offsets[-1] >= before.get(0, 0))

        return self._remove(goes, self.keeping, forget_before_ms)

    def forget(self, jobs: Collection[str]) -> int:
        return self._remove(lambda mark: mark.job in jobs, None, 0)

    def _remove(self, goes: Callable[[JobMark], object], keeping: JobKeeping | None, forget_before_ms: int) -> int:
        """Removes the jobs that have ended and that `goes` selects, as `trim` and `forget` do."""
        storage, removed = self.storage, 0
        trimmed: set[str] = set()
        with storage.lock:
            for job, mark in list(storage.marks.items()):
                if not mark.outcome or not goes(mark):
                    continue
                offsets = storage.of_job.get(job, [])
                ends = [at for at in offsets if isinstance(decode_entry(storage.entries[at][1], self.where), End)]
                described = keeping.describe(self, job) if keeping is not None and offsets else None
                if described is not None:
                    self._move(described, offsets)
                storage.removed = max(storage.removed, 0, *(at + 1 for at in ends))
                storage.gone = joined([*storage.gone, *runs_of(offsets)])
                for offset in offsets:
                    del storage.entries[offset]
                    if described is None:
                        storage.uses.pop(offset, None)
                removed += len(offsets)
                storage.of_job.pop(job, None)
                trimmed.add(job)
                for token in storage.tokens.pop(job, ()):
                    storage.questions.pop(token, None)
                if mark.ended_ms < forget_before_ms:
                    del storage.marks[job]
                else:
                    storage.marks[job] = replace(mark, created_ms=None, again=False)
            for once, (job, number) in list(storage.letters.items()):
                if job in trimmed:
                    del storage.letters[once]
                    storage.untaken.pop(number, None)
            if keeping is not None:
                self._expire(keeping.bounds(self.clock.time()))
            storage.approvals = {each for each in storage.approvals if each[0] not in trimmed}
            named = set(storage.uses.values())
            storage.bodies = {name: body for name, body in storage.bodies.items() if name in named}
        return removed

    def _move(self, job: EndedJob, offsets: list[int]) -> None:
        storage, size = self.storage, 0
        kept = storage.history_entries.setdefault(job.job, {})
        for offset in offsets:
            kept[offset] = storage.entries[offset][1]
            size += len(kept[offset]) + len(storage.bodies.get(storage.uses.get(offset, b""), b""))
        storage.history[job.job] = job
        storage.sizes[job.job] = storage.sizes.get(job.job, 0) + size

    def _expire(self, bounds: HistoryBounds) -> None:
        storage, held = self.storage, sum(self.storage.sizes.values())
        for job in sorted(storage.history.values(), key=lambda job: (job.ended_ms, job.job)):
            if job.ended_ms >= bounds.before_ms and held <= bounds.most_bytes:
                return
            held -= storage.sizes.pop(job.job)
            del storage.history[job.job]
            for offset in storage.history_entries.pop(job.job):
                storage.uses.pop(offset, None)

    def statistics(self) -> dict[str, int]:
        appended = self.storage.next - self._first
        return {
            "entries": appended,
            "commits": appended,
            "waiting": 0,
            "bytes_waiting": 0,
            "bodies": len(self.storage.bodies),
            "letters": self._letters,
            "refused": self._refused,
        }

    def close(self) -> None:
        with self.storage.lock:
            if self.storage.owner is self:
                self.storage.owner = None


def salt_of(journal: JournalReader | Inbox) -> bytes:
    """Returns the salt in the keys of the effects of jobs that begin in this journal (`Begin.salt`), which no other journal
    has. It does not tell the key of the journal.

    It is b"" for a journal in memory: when its process has ended, and the source gives the same record again, the job has the
    same id, and the called service must know its calls again.
    """
    return b"" if isinstance(journal, MemoryReader | MemoryInbox) else salt_of_key(journal.key)


def salt_of_key(key: bytes) -> bytes:
    """Returns the salt of a journal that is not in memory, from its key."""
    return blake2b(b"effect keys", key=key, digest_size=8).digest()
