"""A view of the jobs of a journal, their effects and their questions, computed from the entries of the journal.

   entry ─▶ JobView.apply ─▶ JobChange     the job, the effects that the entry changed, the question that it asks or closes

Job stores, events, the command line and the console all use this view, while jobs run and when a journal is read again.
A view keeps the state of each job and the job's open effects. It does not keep effects that are over; `job_effects`
collects those from the changes.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

import msgspec

from sabot.agents.accounts.journal_rows import rows_of
from sabot.agents.actions import ActionRecord, ActionStatus
from sabot.agents.entry_values import as_plain, beginnings, value_of
from sabot.agents.jobs import ENDS, JobRecord, JobSpec, JobStatus, OpenEffect
from sabot.base.accounts import NOTHING, Amounts
from sabot.errors import UNREADABLE, CorruptJournal, EffectError, InternalError, UserError
from sabot.jobs.answers import edit_of, says_yes, starred_in
from sabot.jobs.guard import CONFIRM, Decision, decode_verdict
from sabot.jobs.history import ASKS, IN_DOUBT, always_of
from sabot.jobs.values import unpack
from sabot.journal.base import JobMark, JournalReader
from sabot.journal.begin_facts import key_text
from sabot.journal.entries import (
    REQUEST,
    Answer,
    Attempt,
    Begin,
    Body,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    JobOrigin,
    Signal,
)

EffectState: TypeAlias = Literal[
    "open", "in_doubt", "needs_approval", "done", "failed", "denied", "answered", "expired", "withdrawn", "closed"
]
"""The state of an effect. in_doubt: a person is asked whether the effect was made. needs_approval: a person is asked
whether the effect may be made. withdrawn: the question was taken back. closed: the job ended, or began anew, while the
effect was open.
"""

_MOST_ROWS = 20  # of a batch in the arguments of a question
_MOST_MESSAGES = 20  # of a long request to a model
_MOST_CHARS = 65_536  # of long arguments
_FEW = 1000  # jobs whose entries are looked up by their names
_ANSWERS: dict[str, EffectState] = {"resolved": "answered", "expired": "expired"}
_QUESTIONS: dict[str, EffectState] = {IN_DOUBT: "in_doubt", CONFIRM: "needs_approval"}
_CLOSED = {"resolved": ActionStatus.RESOLVED, "expired": ActionStatus.EXPIRED}
_OF_SPEC = [each.name for each in fields(JobSpec)]


class HasBodies(Protocol):
    """A journal as seen by code that needs the bodies of its entries (inputs, arguments, results, answers). Large
    bodies are stored outside of their entries. `where` is the name of the journal in error messages.
    """

    where: str

    def load(self, body: Body) -> bytes:
        """Returns the bytes of a body. If the body is stored outside of its entry, reads it from the journal
        (`JournalReader.load`).
        """


@dataclass(slots=True, eq=False)
class EffectView:
    """An effect of a job, as the entries that a `JobView` has applied so far describe it. The view changes this object
    when it applies later entries of the effect.

    - `intent`: the INTENT entry with which the job requested the effect.
    - `result`: the entry that ended the effect, or None.
    - `question`: the INTENT entry of the open question to a person about the effect, or None.
    - `attempts`: the number of times that the effect was made or may have been made.
    - `ended_at`: the time at which the effect ended, in seconds since 1970; None while it is open.
    - `outcome`: "ok", or the type of the error; "" while the effect is open.
    - `by`: the person who answered the last question about the effect, or "".
    - `used`: the usage that counts in budgets.
    - `doubts`: the part of `used` that is only an upper bound, because nobody knows whether the call has to be paid.
    - `answers`: for each closed question about the effect, a tuple of the type of the question and its ANSWER entry.
    - `again`: a tuple for each attempt that was the first one after an answer: the number of answers before that
      attempt, and its time in seconds since 1970.
    """

    intent: Intent
    state: EffectState = "open"
    result: EffectResult | Answer | Signal | None = None
    question: Intent | None = None
    attempts: int = 1
    ended_at: float | None = None
    outcome: str = ""
    by: str = ""
    used: Amounts = NOTHING
    doubts: Amounts = NOTHING
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    again: tuple[tuple[int, float], ...] = ()

    def close(self, state: EffectState, at: float) -> None:
        """Marks the effect as ended, with the state `state`, at the time `at` in seconds since 1970."""
        self.state, self.question, self.ended_at = state, None, at

    def reopen(self) -> None:
        """Marks the effect as open again, without a result."""
        self.state, self.question, self.ended_at, self.outcome, self.result = "open", None, None, "", None

    def of_record(self) -> OpenEffect:
        """Returns this effect as an OpenEffect, for the field `JobRecord.open`."""
        intent, question = self.intent, self.question
        return OpenEffect(
            intent.ordinal,
            intent.kind,
            intent.name,
            asked_at=intent.at_ms / 1000,
            due_at=intent.due_ms / 1000 if intent.due_ms else None,
            in_doubt=question is not None and question.name == IN_DOUBT,
            needs_approval=question is not None and question.name == CONFIRM,
        )


@dataclass(slots=True, eq=False)
class JobState:
    """A job, as the entries that a `JobView` has applied so far describe it. Times are in seconds since 1970.

    - `begun`: False if the view has applied entries of the job, but not its BEGIN entry.
    - `spec`: the request with which the job was created, by a JobManager or a kernel; None for a job of an app, and for
      one of a kernel whose journal an older Sabot has written.
    - `moved_at`, `last_at`: the time of the last change of status, and the time of the last entry.
    - `ran_seconds`: the number of seconds that the job had run at the time `moved_at`.
    - `open`: the effects without a result, by ordinal.
    - `failed`: the effects that ended with an error, by ordinal. If the job makes such an effect again, the effect
      moves back to `open`.
    - `early`: by signal name, the number of signals that have arrived and that the job has not waited for yet.
    - `questions`: the INTENT entries of the open questions, by token.
    - `inherited`: for a job that continues from a checkpoint of another job, the number of copied entries that the view
      has not applied yet. 0 for any other job.
    - `used`, `doubts`: the usage of the job's own calls, and the part of it that is only an upper bound.
    - `blocked`: the reason why the job cannot continue, or "". No entry has it (`JobView.note_marks`).
    - `waits`: why the queued job does not begin yet, or "". `worker`: the number of the worker that holds the job, or 0. No entry
      has these either.
    """

    job_id: str
    begun: bool = False
    agent: str = ""
    scope: str = ""
    principal: str = ""
    session: str = ""
    spec: JobSpec | None = None
    origin: JobOrigin | None = None
    digest: bytes = b""
    key: bytes = b""
    status: JobStatus = JobStatus.QUEUED
    created_at: float = 0.0
    moved_at: float = 0.0
    last_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    ran_seconds: float = 0.0
    result_ref: str = ""
    error: str = ""
    attempt: int = 1
    effects: int = 0
    children: int = 0
    last_ordinal: int = 0
    used: Amounts = NOTHING
    doubts: Amounts = NOTHING
    inherited: int = 0
    open: dict[int, EffectView] = field(default_factory=dict)
    failed: dict[int, EffectView] = field(default_factory=dict)
    early: Counter[str] = field(default_factory=Counter)
    questions: dict[str, Intent] = field(default_factory=dict)
    blocked: str = ""
    waits: str = ""
    worker: int = 0

    @property
    def ended(self) -> bool:
        """True if the job has a final status."""
        return self.status in ENDS

    def move(self, status: JobStatus, at: float) -> None:
        """Sets the status of the job at the time `at` (seconds since 1970). If the job was running before, adds the
        time since the last change of status to `ran_seconds`.
        """
        if self.status is JobStatus.RUNNING:
            self.ran_seconds += max(0.0, at - self.moved_at)
        self.status, self.moved_at = status, at

    def open_effects(self) -> tuple[OpenEffect, ...]:
        """Returns the effects without a result, the last one first, or () if the job has ended.

        A timer is left out as soon as the job has an entry from the timer's due time or later. The journal gets no
        entry when the function of the job cancels a timer. So until then, a cancelled timer is returned as if it were
        open.
        """
        if self.ended:
            return ()
        return tuple(
            effect.of_record()
            for _, effect in sorted(self.open.items(), reverse=True)
            if effect.intent.kind != "sleep" or effect.intent.due_ms / 1000 > self.last_at
        )

    def record(self) -> JobRecord:
        """Returns the state of the job at its last entry as a JobRecord."""
        shared: dict[str, Any] = {
            "job_id": self.job_id,
            "status": self.status,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "completed_at": self.completed_at,
            "ran_seconds": self.ran_seconds,
            "result_ref": self.result_ref,
            "error": self.error,
            "tokens": self.used.tokens,
            "dollars": self.used.cost,
            "doubt_tokens": self.doubts.tokens,
            "doubt_dollars": self.doubts.cost,
        }
        said = {} if self.spec is None else {name: getattr(self.spec, name) for name in _OF_SPEC}
        if not self.agent and said:
            return JobRecord(updated_at=self.moved_at, **said, **shared)
        if (origin := self.origin) is not None:
            restored = {"job": origin.job, "checkpoint": origin.checkpoint}
            said["metadata"] = {**said.get("metadata", {}), "restored": restored}
        if self.status is JobStatus.RUNNING:
            shared["ran_seconds"] = self.ran_seconds + max(0.0, self.last_at - self.moved_at)
        said |= {"scope_id": self.scope, "principal_id": self.principal, "session_id": self.session}
        return JobRecord(
            **said,
            updated_at=self.last_at,
            agent=self.agent,
            attempt=self.attempt,
            effects=self.effects,
            open=self.open_effects(),
            key=key_text(self.key),
            children=self.children,
            blocked="" if self.ended else self.blocked,
            waits=self.waits if self.status is JobStatus.QUEUED else "",
            worker=0 if self.ended else self.worker,
            **shared,
        )


class JobChange(NamedTuple):
    """The changes that one entry of the journal makes.

    - `job`: the job of the entry, after the change.
    - `effects`: the changed effects, after the change.
    - `question`: the INTENT entry of the question that this entry asks or closes, or None.
    - `inherited`: True if the entry is a copy of an entry of another job, from whose checkpoint this job continues.
    """

    job: JobState
    effects: tuple[EffectView, ...] = ()
    question: Intent | None = None
    inherited: bool = False


class JobView:
    """The jobs and questions of a journal, computed from its entries. A program gives the entries to `apply` in the
    order of the journal.

    - `states`: the jobs by id, in the order in which their first entries were applied.
    - `actions`: the questions by id.
    - `cancelled`: by job id, the reason of a cancel that was requested and has not yet ended the job.
    """

    def __init__(self, bodies: HasBodies | None = None) -> None:
        """Makes an empty view. `bodies` is the journal, from which the bodies of entries are loaded. With None no
        bodies are loaded. Then the view has no `actions`, its jobs have no `spec`, and the error of a failed job has no
        message.
        """
        self.bodies = bodies
        self.states: dict[str, JobState] = {}
        self.actions: dict[str, ActionRecord] = {}
        self.cancelled: dict[str, str] = {}
        self._tokens: dict[str, str] = {}
        self._ends: dict[
            int, int
        ] = {}  # by run of the journal: the offset behind the last entry that `follow` has taken

    @classmethod
    def of(cls, reader: JournalReader, job_id: str | None = None) -> Self:
        """Returns a view of all jobs in the log of a journal. With a `job_id` it returns a view of that job only; this
        also works for a job whose entries were moved out of the log. Blocks the thread. Raises CorruptJournal for an
        entry that cannot be read.
        """
        view = cls(reader)
        for _, entry in reader.read() if job_id is None else reader.history.entries(job_id):
            view.apply(entry)
        if job_id is not None:
            view.note_marks(filter(None, [reader.job(job_id)]))
        return view

    @classmethod
    def of_jobs(cls, reader: JournalReader, job_ids: Collection[str]) -> Self:
        """Returns a view of these jobs, as far as the log of a journal has them. Reads their entries, or the whole log for
        so many jobs that this takes less time. Blocks the thread. Raises CorruptJournal for an entry that cannot be read.
        """
        view = cls(reader)
        if len(job_ids) > _FEW:
            chosen = set(job_ids)
            for _, entry in reader.read():
                if entry.job in chosen:
                    view.apply(entry)
        else:
            for _, entry in reader.read_jobs(job_ids):
                view.apply(entry)
            # as they were asked for, and not by their names
            view.states = {job: state for job in job_ids if (state := view.states.get(job)) is not None}
            rank = {job: number for number, job in enumerate(job_ids)}
            view.actions = dict(sorted(view.actions.items(), key=lambda item: rank[item[1].job_id]))
        return view

    def is_over(self, job_id: str) -> bool:
        """Returns True if the view has a job that has ended."""
        return job_id in self.states and self.states[job_id].status in ENDS

    def apply_queued(self, begin: Entry, waits: str = "") -> None:
        """Applies the BEGIN entry that the owner of the journal will make from a letter. The job is queued until then. `waits`: why it
        does not begin yet.
        """
        self.apply(begin)
        job = self.states[begin.job]
        job.status, job.started_at, job.waits = JobStatus.QUEUED, None, waits

    def note_marks(self, marks: Iterable[JobMark]) -> None:
        """Notes which jobs are blocked, and which worker holds them: no entry of a journal has it, but the marks of jobs."""
        for mark in marks:
            if (job := self.states.get(mark.job)) is not None:
                job.blocked, job.worker = mark.blocked, mark.worker

    def follow(self, reader: JournalReader) -> dict[str, int]:
        """Applies the entries that were added to the journal's log since the last call. Returns, by job id, the offset
        of the last new entry of each job that has new entries. Jobs that have ended remain in the view until
        `forget_ended` is called. Blocks the thread.

        Raises CorruptJournal for an entry that cannot be read. The next call continues with the entry after it.
        """
        last, before = dict[str, int](), {} if self._ends else reader.trimmed()
        for run, end in sorted(reader.ends().items()):
            if self._ends.get(run, 0) >= end:
                continue
            for position, entry in reader.read_run(run, self._ends.get(run, 0)):
                if position.offset >= end:
                    break
                self._ends[run] = position.offset + 1
                self.apply(entry)
                last[entry.job] = position.offset
        for run, behind in before.items():  # a view that is new misses nothing of that
            self._ends[run] = max(self._ends.get(run, 0), behind)
        return last

    def has_missed(self, reader: JournalReader) -> bool:
        """Returns True if entries were removed from the journal's log before `follow` had read them. Then the view is
        incomplete.
        """
        return any(offset > self._ends.get(run, 0) for run, offset in reader.trimmed().items())

    def seen(self) -> Iterator[JobRecord]:
        """Yields the records of all jobs whose BEGIN entry the view has applied, in the order in which
        the jobs began.
        """
        return (job.record() for job in self.states.values() if job.begun)

    def job(self, job_id: str) -> JobRecord | None:
        """Returns the record of a job, or None if the view has not applied the job's BEGIN entry."""
        job = self.states.get(job_id)
        return None if job is None or not job.begun else job.record()

    def present(self, job_id: str) -> JobRecord:
        """Returns the record of a job that the view certainly has. Raises InternalError if it does not have it."""
        job = self.job(job_id)
        if job is None:
            raise InternalError(f"job {job_id} was written, and is not known")
        return job

    def of_token(self, token: str) -> ActionRecord | None:
        """Returns the action with this token, or None if there is none."""
        return self.actions.get(self._tokens.get(token, ""))

    def next_ordinal(self, job_id: str) -> int:
        """Returns the ordinal that the next effect of a job will have: one more than the last, and 1 if the view has no
        entry of the job.
        """
        job = self.states.get(job_id)
        return 1 if job is None else job.last_ordinal + 1

    def digest_of(self, job_id: str) -> bytes | None:
        """Returns the digest of the request with which a job began, or None if the view has not applied the job's BEGIN
        entry.
        """
        job = self.states.get(job_id)
        return None if job is None or not job.begun else job.digest

    def forget(self, job_id: str) -> None:
        """Removes a job from the view, but not its actions."""
        self.states.pop(job_id, None)

    def forget_ended(self) -> None:
        """Removes the jobs that have ended from the view. Also removes all actions (questions to people) of jobs that
        are not in the view.
        """
        for job_id in [job_id for job_id, job in self.states.items() if job.ended]:
            del self.states[job_id]
        for action in [action for action in self.actions.values() if action.job_id not in self.states]:
            del self.actions[action.action_id], self._tokens[action.resume_token]

    def apply(self, entry: Entry) -> JobChange:
        """Applies the next entry of the journal, and returns the changes. Raises CorruptJournal if the request or the
        question in the entry cannot be read.
        """
        at, job = entry.at_ms / 1000, self.states.get(entry.job)
        if job is None:
            job = self.states[entry.job] = JobState(entry.job)
        job.last_at = at
        inherited = job.inherited > 0
        job.inherited -= inherited
        effects: tuple[EffectView, ...] = ()
        question: Intent | None = None
        match entry:
            case Begin():
                inherited = False
                effects = self._begin(job, entry, at)
            case Attempt(ordinal=0):
                job.attempt = entry.attempt
                if job.begun and not job.ended:
                    job.move(JobStatus.RUNNING, at)
                    job.started_at = at if job.started_at is None else job.started_at
            case Attempt():
                effects = _attempt(job, entry)
            case Intent():
                effects = _intend(job, entry, at)
                if entry.kind == "ask":
                    question = entry
                    self._ask(job, entry, at)
            case EffectResult():
                effects = _result(job, entry, at)
            case Answer():
                effects = _answer(job, entry, at)
                question = self._answer(job, entry, at)
            case Signal():
                effects = _signal(job, entry, at)
            case Cancel() if job.begun and not job.ended:
                self.cancelled[entry.job] = entry.reason
            case End():
                effects = self._end(job, entry, at)
        return JobChange(job, effects, question, inherited)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _begin(self, job: JobState, entry: Begin, at: float) -> tuple[EffectView, ...]:
        if entry.origin is not None:
            job.inherited, at = entry.origin.entries, entry.origin.at_ms / 1000
        closed: tuple[EffectView, ...] = ()
        if job.ended:  # its dead letter was sent again: the open effects are open again
            job.attempt += 1
            closed = tuple(job.open.values())
            for effect in closed:
                effect.reopen()
        elif job.begun:  # it continues with a new history: ctx.continue_as
            job.attempt = 1
            closed = self._closed(job, at)
            job.open, job.failed, job.early = {}, {}, Counter()
        if not job.begun or not entry.agent:
            job.created_at, job.origin = at, entry.origin
            job.started_at = at if entry.agent else None
        job.begun, job.agent, job.digest, job.key = True, entry.agent, entry.digest, entry.key
        job.scope, job.principal, job.session, job.questions = entry.scope, entry.principal, entry.session, {}
        job.status = JobStatus.RUNNING if entry.agent else JobStatus.QUEUED
        job.moved_at, job.completed_at, job.ran_seconds, job.result_ref, job.error = at, None, 0.0, "", ""
        if not entry.agent and self.bodies is not None:
            job.spec = self._decoded(self.bodies, entry.body, JobSpec, entry.job)
            job.scope, job.principal, job.session = job.spec.scope_id, job.spec.principal_id, job.spec.session_id
        elif entry.form == REQUEST and self.bodies is not None:
            job.spec = _requested(self.bodies, entry)
        return closed

    def _end(self, job: JobState, entry: End, at: float) -> tuple[EffectView, ...]:
        self.cancelled.pop(entry.job, None)
        _use(job, None, entry)
        closed = self._closed(job, at)
        if not job.begun:
            del self.states[entry.job]
            return closed
        job.move(end_of(entry.outcome), at)
        job.completed_at = at
        if job.status is JobStatus.SUCCEEDED:
            job.result_ref = entry.result
        else:
            job.error = self._why(entry)
        return closed

    def _closed(self, job: JobState, at: float) -> tuple[EffectView, ...]:
        """Closes the open effects of a job that has ended or that begins a new history (`ctx.continue_as`), at the time
        `at` in seconds since 1970, and cancels its questions. Returns these effects. They remain in `job.open`, because
        they are reopened if an ended job begins again.
        """
        for token in job.questions:
            if (action := self.of_token(token)) is not None:
                action.status, action.resolved_at = ActionStatus.CANCELLED, at
        job.questions = {}
        for effect in job.open.values():
            effect.close("closed", at)
        return tuple(job.open.values())

    def _why(self, end: End) -> str:
        """Returns the reason for which a job has ended without success. For a failed job of an agent, it is the class
        of the error and its message; for any other job, it is the text in the END entry.
        """
        if end.outcome == JobStatus.FAILED and self.bodies is not None:
            error = value_of(end, self.bodies.load(end.body))
            if isinstance(error, EffectError):
                return f"{error.type}: {error.message}"
        return end.result

    # -- questions ----------------------------------------------------------------------------------------------------

    def _decoded(self, bodies: HasBodies, body: Body, kind: Any, what: str) -> Any:
        try:
            return msgspec.json.decode(bodies.load(body) or b"{}", type=kind)
        except (*UNREADABLE, UserError) as error:
            raise CorruptJournal(f"{bodies.where}: {what}: what it was asked cannot be read: {error}") from error

    def _ask(self, job: JobState, entry: Intent, at: float) -> None:
        job.questions[entry.token] = entry
        if job.status is JobStatus.RUNNING:
            job.move(JobStatus.WAITING_ACTION, at)
        if self.bodies is None:
            return
        payload = self._decoded(self.bodies, entry.body, dict[str, Any], f"{entry.job}/{entry.ordinal}")
        action_id = f"{entry.job}/{action_number(entry, payload)}"
        # a rule asks about an effect; a tool's own question has all that is shown
        ruled = entry.name == CONFIRM and payload.keys() >= {"effect", "rule"}
        if ruled or (entry.name == IN_DOUBT and "attempt" in payload):
            payload |= _arguments(job, entry, self.bodies)
            payload |= self._edited(entry)
        if ruled:
            payload |= _may_answer(job, entry, payload.get("arguments"))
        self.actions[action_id] = ActionRecord(
            action_id=action_id,
            job_id=entry.job,
            type=entry.name,
            payload=payload,
            resume_token=entry.token,
            created_at=at,
            expires_at=entry.due_ms / 1000 if entry.due_ms else None,
        )
        self._tokens[entry.token] = action_id

    def _edited(self, question: Intent) -> dict[str, Any]:
        """Returns {"edited": the arguments that a person has changed who has approved the effect}, for the question whether
        it was made. Returns {} if no argument was changed.
        """
        approval = self.actions.get(f"{question.job}/{question.ordinal}")
        if question.name != IN_DOUBT or approval is None or approval.type != CONFIRM:
            return {}
        edited = approval.resolution.get("arguments")
        return {"edited": edited} if edited else {}

    def _answer(self, job: JobState, entry: Answer, at: float) -> Intent | None:
        question = job.questions.pop(entry.token, None)
        action = self.of_token(entry.token)
        if action is not None and action.status is ActionStatus.PENDING:
            assert self.bodies is not None
            action.status = _CLOSED.get(entry.outcome, ActionStatus.CANCELLED)
            action.resolved_at, action.by = at, entry.by
            if action.status is ActionStatus.RESOLVED:
                action.resolution = resolution_of(self.bodies.load(entry.body))
        if question is not None and job.status is JobStatus.WAITING_ACTION and not job.questions:
            job.move(JobStatus.RUNNING, at)
        return question


def _requested(bodies: HasBodies, begin: Begin) -> JobSpec:
    """Returns the request of a kernel with which a job has begun, without its prompt."""
    try:
        said: dict[str, Any] = unpack(bodies.load(begin.body))
        said = {name: said[name] for name in _OF_SPEC if name in said}
        metadata = as_plain(said.get("metadata", {}))
        return msgspec.convert({**said, "scope_id": begin.scope, "metadata": metadata}, JobSpec, strict=False)
    except (*UNREADABLE, UserError) as error:
        raise CorruptJournal(f"{bodies.where}: {begin.job}: its request cannot be read: {error}") from error


def end_of(outcome: str) -> JobStatus:
    """Returns the status of a job whose END entry has this outcome. An outcome that is not the name of a final status
    returns FAILED.
    """
    return JobStatus(outcome) if outcome in ENDS else JobStatus.FAILED


def action_number(question: Intent, payload: Any) -> str:
    """Returns the part of an action's id that distinguishes the action from the other actions of its job. `payload` is
    the decoded body of `question`. The result has one of these forms:

    - "3": the ordinal of the effect.
    - "3.1": for the question whether an effect was made, the ordinal and the number of the attempt.
    - "3.1.2": the same after look-ups (the answer "look-up"), with their number at the end.
    """
    if question.name != IN_DOUBT or not isinstance(payload, Mapping) or "attempt" not in payload:
        return f"{question.ordinal}"
    looked = f".{payload['looked']}" if "looked" in payload else ""
    return f"{question.ordinal}.{payload['attempt']}{looked}"


def _arguments(job: JobState, question: Intent, bodies: HasBodies) -> dict[str, Any]:
    """Returns {"arguments": the arguments of the effect that a question is about}. Returns {} if the question is not about
    an effect. Batches have their first rows. Arguments that are so long that they are stored outside of their entry have
    the beginnings of their parts, and "cut" is then True: whoever waits for many answers keeps all questions in memory.
    """
    effect = job.open.get(question.ordinal)
    if effect is None or effect.question is None:
        return {}
    body = effect.intent.body
    shown = as_plain(value_of(effect.intent, bodies.load(body)), _MOST_ROWS)
    if isinstance(body, bytes):
        return {"arguments": shown}
    if effect.intent.name == ASKS and isinstance(shown, list) and shown and isinstance(shown[-1], list):
        shown[-1] = shown[-1][-_MOST_MESSAGES:]  # a person is asked about the last message
    return {"arguments": beginnings(shown, _MOST_CHARS), "cut": True}


def _may_answer(job: JobState, question: Intent, arguments: Any) -> dict[str, Any]:
    """Returns {"editable": …, "always": …} for the question whether an effect may be made: whether the answer may change
    the arguments, and the words by which it may hold for later calls too. Adds "hidden", the paths of hidden values in
    the arguments of the question, if it hides some.
    """
    effect = job.open.get(question.ordinal)
    verdict = None if effect is None else decode_verdict(effect.intent.note)
    if effect is None or verdict is None:
        return {}
    tool = effect.intent.kind == "call" and not verdict.about
    said = {"editable": tool and verdict.editable, "always": [] if verdict.once else list(always_of(job.session))}
    named = arguments[1] if isinstance(arguments, list) and len(arguments) > 1 else {}
    hidden = starred_in(named) if verdict.hidden is None else verdict.hidden
    return said | ({"hidden": [*hidden]} if hidden else {})


def edit_of_effect(effect: EffectView) -> dict[str, Any]:
    """Returns the arguments that a person has changed who has approved the effect; {} if nobody has."""
    for question, answer in reversed(effect.answers):
        if question == CONFIRM and says_yes(answer):
            changes = edit_of(answer)
            return changes if isinstance(changes, dict) else {}
    return {}


def resolution_of(answered: bytes) -> dict[str, Any]:
    """Returns an answer, which is stored as JSON, as a dict. If the bytes are not a JSON object, returns {"answer": the
    bytes as text} and raises no error. Anybody who has a token can send any bytes, and these must not make the journal
    unreadable.
    """
    try:
        resolution: dict[str, Any] = msgspec.json.decode(answered or b"{}", type=dict[str, Any])
    except UNREADABLE:
        return {"answer": answered.decode(errors="replace")}
    return resolution


# -- effects ------------------------------------------------------------------------------------------------------------


def _intend(job: JobState, intent: Intent, at: float) -> tuple[EffectView, ...]:
    job.last_ordinal = max(intent.ordinal, job.last_ordinal)
    known = job.open.get(intent.ordinal)
    if known is not None and intent.kind == "ask":  # a question about an effect has the ordinal of the effect
        known.question, known.state = intent, _QUESTIONS.get(intent.name, "open")
        return (known,)
    job.effects += 1
    job.children += intent.kind == "child"
    made = EffectView(intent)
    if intent.kind == "wait" and job.early[intent.name]:
        job.early[intent.name] -= 1
        made.close("done", at)
    elif intent.kind == "patch":
        made.close("done", at)
    else:
        job.open[intent.ordinal] = made
    return (made,)


def _attempt(job: JobState, entry: Attempt) -> tuple[EffectView, ...]:
    known = job.failed.pop(entry.ordinal, None)
    if known is not None:
        known.reopen()
        job.open[entry.ordinal] = known
    else:
        known = job.open.get(entry.ordinal)
    if known is None:
        return ()
    known.attempts = max(entry.attempt, known.attempts)
    if (count := len(known.answers)) and (not known.again or known.again[-1][0] < count):
        known.again += ((count, entry.at_ms / 1000),)
    return (known,)


def _result(job: JobState, entry: EffectResult, at: float) -> tuple[EffectView, ...]:
    known = job.open.pop(entry.ordinal, None)
    _use(job, known, entry)
    if known is None:
        return ()
    known.attempts, known.outcome, known.result = max(entry.attempt, known.attempts), entry.outcome, entry
    if entry.outcome == "ok":
        known.close("done", at)
    else:
        verdict = decode_verdict(known.intent.note)
        known.close("denied" if verdict is not None and verdict.decision is Decision.DENY else "failed", at)
        job.failed[entry.ordinal] = known
    return (known,)


def _answer(job: JobState, entry: Answer, at: float) -> tuple[EffectView, ...]:
    known = job.open.get(entry.ordinal)
    if known is None:
        return ()
    known.by = entry.by
    if known.question is not None:
        known.answers.append((known.question.name, entry))
        known.question, known.state = None, "open"
    else:
        del job.open[entry.ordinal]
        known.result = entry
        known.close(_ANSWERS.get(entry.outcome, "withdrawn"), at)
    return (known,)


def _signal(job: JobState, entry: Signal, at: float) -> tuple[EffectView, ...]:
    for ordinal, known in job.open.items():
        if known.intent.kind == "wait" and known.intent.name == entry.name:
            del job.open[ordinal]
            known.by, known.result = entry.by, entry
            known.close("done", at)
            return (known,)
    job.early[entry.name] += 1
    return ()


def _use(job: JobState, effect: EffectView | None, entry: EffectResult | End) -> None:
    if not entry.usage:
        return
    for row in rows_of([entry]):
        for each in (job,) if effect is None else (job, effect):
            each.used, each.doubts = each.used.plus(row.adds), each.doubts.plus(row.doubts)
