"""Parks jobs that wait for something that takes long. A parked job has no coroutine and no task. Its history is in the
journal.

   quiet, all open effects take long ─▶ parked ─ timer, answer, signal, cancel ─▶ its owner lets it run ─▶ its history is read ─▶ it runs

A checkpoint keeps a note of the things for which a parked job waits. The note saves a replay at a start of the app. If
the job has got no entry since the note, and the code is the same, a replay would end in the same state. So the job is
parked again without one.

Some parked jobs have no note: a job that waits for a child, because the child may have to be begun again; a job with an
effect in doubt; and a job with a letter of its own that the host has not taken yet.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from sabot.jobs.core import APPROVAL, DOUBT, question_token
from sabot.jobs.events import Loaded
from sabot.jobs.history import Delivery
from sabot.jobs.host_state import HostState
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.open_jobs import whole_histories
from sabot.jobs.owner import JobOwner, OpenJob, RunningJob
from sabot.jobs.timers import JobTimers
from sabot.journal import Position
from sabot.journal.entries import EffectResult, Entry, Signal

_LOADS, _TOGETHER = 2, 8  # reads at once, and histories that each reads
_NOTED = ("ask", "sleep", "wait")


class ParkedNote(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A note that a checkpoint stores about a parked job, so that a start of the app can park the job again without a
    replay. New fields are only added at the end.

    - `partition`, `offset`: the position of the job's last entry in the journal.
    - `code`: the version of the function that ran.
    - `waits`: the names of the signals for which the job waits.
    - `timers`: the timers for which it waits, as pairs of the ordinal and the time at which the timer is due, in
      milliseconds since 1970.
    - `questions`: the questions with a deadline for which it waits, as pairs of the ordinal and the deadline.
    - `at_ms`: the time of the note; 0 in notes of an earlier version of Sabot.
    - `tokens`: the tokens of those of these questions that tools have asked in a later attempt of the job, as pairs of the
      ordinal and the token. The tokens of all others follow from their ordinals (`core.question_token`).
    """

    partition: int
    offset: int
    code: str
    waits: tuple[str, ...] = ()
    timers: tuple[tuple[int, int], ...] = ()
    questions: tuple[tuple[int, int], ...] = ()
    at_ms: int = 0
    tokens: tuple[tuple[int, str], ...] = ()


class ParkedNotes(ABC):
    """A store for the notes about parked jobs (`ParkedNote`, encoded). The store is a part of the agent's state, so
    each checkpoint saves it. Belongs to the event loop.
    """

    @abstractmethod
    def put(self, job_id: str, note: bytes) -> None:
        """Stores a note, and replaces an earlier note of the job."""

    @abstractmethod
    def remove(self, job_id: str) -> None:
        """Removes the note of a job, if there is one."""

    @abstractmethod
    def items(self) -> Iterable[tuple[str, bytes]]:
        """Returns pairs of the id of a job and the note about it. Blocks."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ParkedNote).decode


class _Parked(msgspec.Struct, gc=False):  # of 100,000 of them the garbage collector would look at each, again and again
    """A parked job: its function waits for something that takes long, and its coroutine was removed from memory. The
    history of the job is in the journal.

    - `agent`: the id of its agent.
    - `waits`: the names of the signals for which it waits.
    - `timers`, `questions`: the ordinals of its timers, and of its questions with a deadline. `tokens`: as in its note.
    - `limit_s`: the time at which its attempt has to end, by the monotonic clock; 0 for no limit.
    - `last`: the position of the last entry that the function has got.
    - `woken`: True once the owner was told that the job has to run again.
    """

    agent: str
    waits: tuple[str, ...]
    timers: tuple[int, ...]
    questions: tuple[int, ...]
    last: tuple[int, int]
    tokens: tuple[tuple[int, str], ...] = ()
    limit_s: float = 0.0
    woken: bool = False


class Parking:
    """The part of a host (`JobHost`) for parked jobs, whose coroutines were removed from memory because they wait for
    something that takes long. It also reads the histories of jobs that have to run again.
    """

    def __init__(self, host: HostState, notes: ParkedNotes | None, *, has_letter: Callable[[str], bool]) -> None:
        """Makes the part of a host for parked jobs.

        - `notes`: stores the notes about parked jobs. With None there are no notes, and the history of each open job
          is replayed when the app starts.
        - `has_letter`: a function that returns True if the host has posted a letter for this job and has not read it
          from the inbox yet.
        """
        self._host = host
        self._notes = notes
        self._has_letter = has_letter
        self._parked: dict[str, _Parked] = {}
        self._unnoted: dict[str, ParkedNote] = {}  # until their letters are taken
        self._noted: dict[str, ParkedNote] = {}  # of open jobs that are not taken up yet
        self._loading: dict[str, list[tuple[Position, Entry]]] = {}  # what has come for it meanwhile
        self._got: dict[str, tuple[int, int]] = {}  # of these: the position of the last entry before they were parked
        self._to_load: deque[str] = deque()
        self._loads = 0

    @property
    def parked(self) -> int:
        """The number of parked jobs."""
        return len(self._parked)

    @property
    def loading(self) -> int:
        """The number of jobs whose history is being read."""
        return len(self._loading)

    def is_loading(self, job_id: str) -> bool:
        """Returns True while the history of the job is being read."""
        return job_id in self._loading

    def awaits(self, job_id: str, ordinal: int) -> bool:
        """Returns True if a timer of a parked job is still needed. `ordinal`: the ordinal of the effect for which the
        timer was set; 0 for the time limit of the job's attempt. While the history of the job is being read, always
        returns True, because it is unknown then which timers the job needs.
        """
        parked = self._parked.get(job_id)
        if parked is None:
            return job_id in self._loading
        return ordinal in parked.timers or ordinal in parked.questions or (not ordinal and parked.limit_s > 0)

    def asks(self, job_id: str, ordinal: int) -> bool:
        """Returns True if the job is parked, and the effect with this ordinal is a question with a deadline."""
        parked = self._parked.get(job_id)
        return parked is not None and ordinal in parked.questions

    def token_of(self, job_id: str, ordinal: int) -> str:
        """Returns the token of a question with a deadline of a parked job."""
        return dict(self._parked[job_id].tokens).get(ordinal) or question_token(self._host.journal.key, job_id, ordinal)

    def park(self, running: RunningJob, agent_id: str) -> None:
        """Parks a job that the caller has removed from the jobs in memory. Stores a small record of the job and the
        note about it, and ends its coroutines. The owner of the job is told.
        """
        job_id, asks, at = running.job.job_id, running.job.open.values(), running.last
        assert at is not None
        note = ParkedNote(
            at.partition,
            at.offset,
            running.job.code,
            tuple(ask.name for ask in asks if ask.kind == "wait"),
            tuple((ask.ordinal, ask.due_ms) for ask in asks if ask.due_ms and ask.kind == "sleep"),
            tuple((ask.ordinal, ask.due_ms) for ask in asks if ask.due_ms and ask.kind != "sleep"),
            self._host.now_ms(),
            tuple((ask.ordinal, ask.token) for ask in asks if ask.due_ms and ask.attempt and ask.phase is APPROVAL),
        )
        self._add_parked(job_id, agent_id, note, running.limit_s)
        if self._notes is not None and all(
            ask.kind in _NOTED or (ask.token and ask.phase is not DOUBT) for ask in asks
        ):
            self._unnoted[job_id] = note
            if not self._has_letter(job_id):
                self.letters_taken(job_id)
        running.job.discard()
        running.owner.parked(job_id)

    def letters_taken(self, job_id: str) -> None:
        """Stores the note about a parked job. The note has to wait while the inbox contains letters that this host has
        posted for the job. `park` calls this method if there are none; otherwise it is called when the host has read
        the last one.
        """
        note = self._unnoted.pop(job_id, None)
        if note is not None and self._notes is not None:
            self._notes.put(job_id, _encode(note))

    def open(self, jobs: Iterable[OpenJob]) -> None:
        """Reads the stored notes when the app starts. A note is valid if the job is open and no entry follows the one
        that the note names. Keeps the valid notes. Removes all others, because their jobs have continued or ended
        since. Blocks.
        """
        if self._notes is None:
            return
        lasts = {job.job_id: job.last for job in jobs if job.ended is None}
        for job_id, data in list(self._notes.items()):
            note = _decode(data)
            if lasts.get(job_id) == (note.partition, note.offset):
                self._noted[job_id] = note
            else:
                self._notes.remove(job_id)

    def take_up(self, job: OpenJob, owner: JobOwner, timers: JobTimers) -> bool:
        """Parks an open job again when the app starts, if there is a valid note about it. Returns True if the job is
        parked, and False if its history has to be replayed instead.
        """
        note = self._noted.pop(job.job_id, None)
        if note is None or self._notes is None:
            return False
        if note.code != owner.code:  # what the new code does over that history is known when it has run
            self._notes.remove(job.job_id)
            return False
        self._add_parked(job.job_id, job.agent, note)
        for ordinal, due_ms in (*note.timers, *note.questions):
            timers.add_rest(note.at_ms, due_ms, job.job_id, ordinal)
        owner.parked(job.job_id)
        return True

    def _add_parked(self, job_id: str, agent_id: str, note: ParkedNote, limit_s: float = 0.0) -> None:
        timers, questions = ([ordinal for ordinal, _ in each] for each in (note.timers, note.questions))
        self._parked[job_id] = _Parked(
            agent_id, note.waits, tuple(timers), tuple(questions), (note.partition, note.offset), note.tokens, limit_s
        )

    def deliver(self, position: Position, entry: Delivery) -> None:
        """Handles a new entry for a job that is not in memory. If the history of the job is being read, the entry is
        added to that history. If the job is parked, it is woken, unless the entry is a signal for which it does not
        wait. Does nothing if the job has ended.
        """
        job_id = entry.job
        if job_id in self._loading:
            self._loading[job_id].append((position, entry))
            return
        parked = self._parked.get(job_id)
        if parked is None:
            return  # it has ended
        if isinstance(entry, EffectResult):
            parked.timers = tuple(each for each in parked.timers if each != entry.ordinal)
        if not (isinstance(entry, Signal) and entry.name not in parked.waits):  # else it comes when the job runs
            self._wake(job_id, parked)

    def time_out(self, job_id: str) -> None:
        """Wakes a parked job if the time limit of its attempt has passed. Does nothing if the job is not parked, or
        if it has no time limit while it is parked.
        """
        parked = self._parked.get(job_id)
        if parked is not None and 0 < parked.limit_s <= self._host.steady_s():
            self._wake(job_id, parked)

    def let_run(self, job_id: str) -> None:
        """Wakes a job if it is parked, though no entry has come for it."""
        parked = self._parked.get(job_id)
        if parked is not None:
            self._wake(job_id, parked)

    def _wake(self, job_id: str, parked: _Parked) -> None:
        if parked.woken:
            return
        parked.woken = True
        self._unnoted.pop(job_id, None)
        if self._notes is not None:
            self._notes.remove(job_id)
        self._host.owners[parked.agent].woken(job_id)

    def wake(self, job_id: str) -> None:
        """Makes a parked job run again: removes it from the parked jobs, and starts to read its history. The owner of
        the job calls this, after its method `woken` was called.
        """
        self._got[job_id] = self._parked.pop(job_id).last
        self.load(job_id)

    def load(self, job_id: str) -> None:
        """Starts to read the history of a job from the journal. When it was read, the event Loaded is put into the
        queue, and the host then replays the history and lets the function of the job run on.
        """
        self._loading[job_id] = []
        self._to_load.append(job_id)
        if self._loads < _LOADS:
            self._loads += 1
            self._host.spawn(self._read(), "the reading of histories of jobs")

    async def _read(self) -> None:
        try:
            while self._to_load:
                jobs = [self._to_load.popleft() for _ in range(min(_TOGETHER, len(self._to_load)))]
                await self._host.journal.flush()  # what woke the jobs must be among what is read
                found = await call_journal(whole_histories, self._host.journal, jobs)
                for job_id in jobs:
                    self._host.put(Loaded(job_id, found[job_id]))
        finally:
            self._loads -= 1

    def loaded(self, job_id: str, entries: list[tuple[Position, Entry]]) -> tuple[list[tuple[Position, Entry]], int]:
        """Returns the whole history of a job: `entries`, which were read from the journal, and then the entries that
        were appended while these were being read. Also returns how many of them were there when the job was parked; 0
        if it was not.
        """
        behind, got = self._loading.pop(job_id), self._got.pop(job_id, None)
        last = entries[-1][0] if entries else None
        whole = [*entries, *(each for each in behind if last is None or each[0] > last)]
        return whole, 0 if got is None else sum(position <= got for position, _ in whole)
