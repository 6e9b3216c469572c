"""Jobs and actions in a journal: the journal is what is true, and what is here is made of its entries, live as at a start.

    create    Begin          start    Attempt of ordinal 0         an end    End
    ask       Intent         answer   Answer (out of the inbox)    a cancel from outside    Cancel, then End

Every change is an entry first. It is applied by the same function that reads the journal at a start, in the journal's order, so a store
that was killed and one that was not say the same. An answer always goes through the inbox, also one that this process gives, since another
process may answer at the same moment: one of them is accepted.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import msgspec

from sabot.agents.actions import ActionRecord, ActionSpec, ActionStatus, ActionStore
from sabot.agents.context import checked_word
from sabot.agents.job_entries import as_json, begin_entry, check_same, digest_of, move_entry, name_of, question_entry
from sabot.agents.jobs import ENDS, JobRecord, JobSpec, JobStatus, JobStore
from sabot.agents.progress import Progress, as_plain, value_of
from sabot.checks import TEXTS, Of, check
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.config import Duration, parse_ms
from sabot.errors import (
    UNREADABLE,
    CorruptJournal,
    EffectError,
    InternalError,
    LetterRefused,
    TransientError,
    UserError,
)
from sabot.jobs.guard import CONFIRM
from sabot.jobs.history import IN_DOUBT
from sabot.journal.base import Journal, JournalReader, Position
from sabot.journal.entries import Answer, Attempt, Begin, Body, Cancel, End, Entry, Intent, JobOrigin, Letter
from sabot.journal.memory import MemoryJournal
from sabot.threads import run_in_thread, run_to_end

__all__ = [
    "HasBodies",
    "InMemoryActionStore",
    "InMemoryJobStore",
    "JobView",
    "JobsAndActions",
    "JobsOfJournal",
    "JournalStore",
    "as_json",
    "cancel_letter",
]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.1
_CLOSED = {"resolved": ActionStatus.RESOLVED, "expired": ActionStatus.EXPIRED}


class HasBodies(Protocol):
    """What entries are loaded from. where: for messages."""

    where: str

    def load(self, body: Body) -> bytes:
        """As `JournalReader.load`."""


class JobsOfJournal:
    """What the entries of a journal say of jobs and actions. Only reads; the stores add."""

    def __init__(self, reader: HasBodies, job_id: str | None = None, *, blank: bool = False) -> None:
        """job_id: only of this job. blank: nothing is read; who made it gives it the entries, which need not be of a journal."""
        self.reader = reader
        self.jobs: dict[str, JobRecord] = {}
        self.actions: dict[str, ActionRecord] = {}
        self.cancelled: dict[str, str] = {}  # jobs that somebody outside wants to end, and that have not: why
        self.digests: dict[str, bytes] = {}  # of what jobs were asked for with
        self._tokens: dict[str, str] = {}
        self._open: dict[str, set[str]] = {}
        self._ordinals: dict[str, int] = {}
        self._progress: dict[str, Progress] = {}  # of jobs of agents
        if not blank:
            assert isinstance(reader, JournalReader)
            for _, entry in reader.read(job_id):
                self.apply(entry)

    def seen(self) -> Iterator[JobRecord]:
        """The jobs, in the order in which they began; those of agents with how far they are."""
        return map(self._seen, self.jobs.values())

    def job(self, job_id: str) -> JobRecord | None:
        """One of them."""
        job = self.jobs.get(job_id)
        return None if job is None else self._seen(job)

    def _seen(self, job: JobRecord) -> JobRecord:
        far = self._progress.get(job.job_id)
        if far is None:
            return job
        return replace(job, updated_at=far.last_at, attempt=far.attempt, effects=far.effects, open=far.open())

    def of_token(self, token: str) -> ActionRecord | None:
        """The action of a token."""
        return self.actions.get(self._tokens.get(token, ""))

    def next_ordinal(self, job_id: str) -> int:
        """Of the next effect of a job."""
        return self._ordinals.get(job_id, 0) + 1

    def forget_ended(self) -> None:
        """Jobs that have ended, and their actions, are not known any more."""
        for job_id in [job_id for job_id, job in self.jobs.items() if job.ended]:
            for known in (self.jobs, self.digests, self._open, self._ordinals, self._progress):
                known.pop(job_id, None)
        for action in [action for action in self.actions.values() if action.job_id not in self._ordinals]:
            del self.actions[action.action_id], self._tokens[action.resume_token]

    def apply(self, entry: Entry) -> None:
        """The next entry of the journal."""
        at, job = entry.at_ms / 1000, self.jobs.get(entry.job)
        far = self._progress.get(entry.job)
        if far is not None:
            far.add(entry)
        match entry:
            case Begin():
                self.jobs[entry.job] = self._begun(entry, at)
                self.digests[entry.job] = entry.digest
            case Attempt(ordinal=0) if job is not None and not job.ended:
                began = job.started_at if job.started_at is not None else at
                self.jobs[entry.job] = replace(job, status=JobStatus.RUNNING, started_at=began, updated_at=at)
            case Intent():
                self._ordinals[entry.job] = max(entry.ordinal, self._ordinals.get(entry.job, 0))
                if entry.kind == "ask":
                    self._ask(entry, at)
            case Answer():
                self._answer(entry, at)
            case Cancel() if job is not None and not job.ended:
                self.cancelled[entry.job] = entry.reason
            case End():
                self._end(entry, at)

    def _begun(self, entry: Begin, at: float) -> JobRecord:
        if entry.agent:  # a job of an agent: its input is a record, and no JobSpec
            before, origin = self.jobs.get(entry.job), entry.origin
            if origin is not None:
                at = origin.at_ms / 1000
            self._progress.setdefault(entry.job, Progress(last_at=at))
            return JobRecord(
                job_id=entry.job,
                scope_id=entry.scope,
                principal_id=entry.principal,
                status=JobStatus.RUNNING,
                created_at=at if before is None else before.created_at,
                updated_at=at,
                started_at=at if before is None else before.started_at,
                agent=entry.agent,
                metadata=_restored(origin) if before is None else before.metadata,
            )
        spec = self._decoded(entry.body, JobSpec, entry.job)
        return _record(entry.job, spec, at)

    def _decoded(self, body: Any, kind: Any, what: str) -> Any:
        try:
            return msgspec.json.decode(self.reader.load(body) or b"{}", type=kind)
        except (*UNREADABLE, UserError) as error:
            raise CorruptJournal(f"{self.reader.where}: {what}: what it was asked cannot be read: {error}") from error

    def _ask(self, entry: Intent, at: float) -> None:
        action_id = f"{entry.job}/{entry.ordinal}"
        payload = self._decoded(entry.body, dict[str, Any], action_id)
        if entry.name == IN_DOUBT and "attempt" in payload:  # the same effect may be in doubt again
            action_id = f"{action_id}.{payload['attempt']}"
            payload |= self._arguments(entry)
        elif entry.name == CONFIRM and payload.keys() >= {"effect", "rule"}:  # a tool's own question is complete
            payload |= self._arguments(entry)
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
        self._open.setdefault(entry.job, set()).add(action_id)
        job = self.jobs.get(entry.job)
        if job is not None and job.status is JobStatus.RUNNING:
            waiting = JobStatus.WAITING_ACTION
            self.jobs[entry.job] = replace(job, status=waiting, ran_seconds=job.ran_until(at), updated_at=at)

    def _arguments(self, question: Intent) -> dict[str, Any]:
        """What the effect that the question is about is called with, unless that is long."""
        far = self._progress.get(question.job)
        intent, about = (None, None) if far is None else far.asked.get(question.ordinal, (None, None))
        if intent is None or about is None or not isinstance(intent.body, bytes):
            return {}
        return {"arguments": as_plain(value_of(intent, intent.body))}

    def _answer(self, entry: Answer, at: float) -> None:
        action = self.of_token(entry.token)
        if action is None or action.status is not ActionStatus.PENDING:
            return  # its job had ended before the letter was taken
        action.status = _CLOSED.get(entry.outcome, ActionStatus.CANCELLED)
        action.resolved_at, action.by = at, entry.by
        if action.status is ActionStatus.RESOLVED:
            action.resolution = self._resolution(entry.body)
        waiting = self._open.get(entry.job, set())
        waiting.discard(action.action_id)
        job = self.jobs.get(entry.job)
        if job is not None and job.status is JobStatus.WAITING_ACTION and not waiting:
            self.jobs[entry.job] = replace(job, status=JobStatus.RUNNING, updated_at=at)

    def _resolution(self, body: Any) -> dict[str, Any]:
        """What was answered. Who has a token may put any bytes into the inbox, and they must not make the journal unreadable: what is no
        JSON object is the text of an answer.
        """
        answered = self.reader.load(body)
        try:
            resolution: dict[str, Any] = msgspec.json.decode(answered or b"{}", type=dict[str, Any])
        except UNREADABLE:
            return {"answer": answered.decode(errors="replace")}
        return resolution

    def _end(self, entry: End, at: float) -> None:
        for action_id in self._open.pop(entry.job, ()):
            action = self.actions[action_id]
            action.status, action.resolved_at = ActionStatus.CANCELLED, at
        self.cancelled.pop(entry.job, None)
        job = self.jobs.get(entry.job)
        if job is None:
            return
        status = _end_of(entry.outcome)
        self.jobs[entry.job] = replace(
            job,
            status=status,
            updated_at=at,
            completed_at=at,
            ran_seconds=job.ran_until(at),
            result_ref=entry.result if status is JobStatus.SUCCEEDED else "",
            error="" if status is JobStatus.SUCCEEDED else self._why(entry),
        )

    def _why(self, end: End) -> str:
        """Of a job of an agent that has failed, the class of its error and the message."""
        error = value_of(end, self.reader.load(end.body)) if end.outcome == JobStatus.FAILED else None
        return f"{error.type}: {error.message}" if isinstance(error, EffectError) else end.result


def _end_of(outcome: str) -> JobStatus:
    """The status of a job that ended so; an agent of an app may have other words for a failure."""
    return JobStatus(outcome) if outcome in ENDS else JobStatus.FAILED


def _restored(origin: JobOrigin | None) -> dict[str, Any]:
    return {} if origin is None else {"restored": {"job": origin.job, "checkpoint": origin.checkpoint}}


def _record(job_id: str, spec: JobSpec, at: float) -> JobRecord:
    shared = {name: getattr(spec, name) for name in JobSpec.__dataclass_fields__}
    return JobRecord(job_id=job_id, created_at=at, updated_at=at, **shared)


def cancel_letter(job_id: str, reason: str = "", by: str = "") -> Letter:
    """Asks the owner of a journal to cancel a job."""
    return Letter("cancel", job=job_id, name=reason, by=by)


class JobsAndActions(JobStore, ActionStore):
    """Both in one."""


@runtime_checkable
class JobView(Protocol):
    """A store in which jobs and actions of another owner are seen (`RuntimeKernel(job_store=…, action_store=…)`). home: over what a kernel
    runs that is given no journal: the store's own, or the address of a database; None: the store has none to give.
    """

    @property
    def home(self) -> Journal | str | None: ...

    def lend(self, to: JobsAndActions) -> None:
        """Somebody else runs jobs over a journal, and says from now on what is in it. What the store is asked is passed on. Raises
        UserError where it was lent before.
        """

    async def show(self, journal: Journal) -> None:
        """The jobs of this journal, from now on. The log says where the store has said something else."""

    async def became_durable(self) -> None:
        """More of the journal is. Nothing is raised where a server is away: the next call catches up."""

    async def leave(self) -> None:
        """The owner of the jobs is about to close the journal, and all that is durable was shown."""


class JournalStore(JobsAndActions):
    """Jobs and actions over a journal, whose owner this store is from now on. Made, it has read the journal, which may block.

    Give the same store to a JobManager and an ActionManager: then a job waits while an action of it is open. Given to a RuntimeKernel, it
    is a view of the kernel's jobs (`lend`).
    """

    def __init__(self, journal: Journal) -> None:
        check("JournalStore: journal", journal, Of(Journal))
        self.journal = journal
        self.clock: Clock = journal.clock
        self._known = JobsOfJournal(journal)
        self._positions: dict[str, Position] = {}  # of the last entry of a job, until it is durable
        # Around what looks, appends and applies: entries are applied in the journal's order.
        self._lock = asyncio.Lock()
        self._lent: JobsAndActions | None = None

    @property
    def home(self) -> Journal:
        """As `JobView.home`: its journal."""
        return self.journal

    def lend(self, to: JobsAndActions) -> None:
        """As `JobView.lend`. Its own journal may be the one over which the jobs run."""
        if self._lent is not None:
            raise UserError(f"the store of {self.journal.where} is that of another kernel", hint="make one for each")
        self._lent = to

    async def show(self, journal: Journal) -> None:
        """As `JobView.show`. Where it is not the store's own, and that has jobs too, the log says that they are not shown."""
        if journal is not self.journal and (others := len(self._known.jobs)):
            _log.warning(
                "%s has %d jobs that are not those of %s: the journal of the kernel holds, and only its jobs are shown",
                self.journal.where,
                others,
                journal.where,
            )

    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        if self._lent is not None:
            return await self._lent.create(spec)
        check("create: spec", spec, Of(JobSpec, "JobSpec(scope_id=…)"))
        job_id, content = name_of(spec), digest_of(spec, self.journal.key)
        begin = begin_entry(job_id, spec, content, self._now_ms())
        async with self._lock:
            known = self._known.jobs.get(job_id)
            mark = await run_in_thread(self.journal.job, job_id) if spec.idempotency_key and known is None else None
            before = mark.digest if mark is not None else self._known.digests.get(job_id, content)
            check_same(job_id, spec, content, before)
            if mark is not None:  # it has ended, and its entries are trimmed
                known = replace(
                    _record(job_id, spec, mark.ended_ms / 1000),
                    status=_end_of(mark.outcome),
                    completed_at=mark.ended_ms / 1000,
                    result_ref=mark.result if mark.outcome == JobStatus.SUCCEEDED else "",
                    error="" if mark.outcome == JobStatus.SUCCEEDED else mark.result,
                )
            new = known is None
            if known is None:
                await self._append(begin)
                known = self._known.jobs[job_id]
        await self._settled(job_id)
        return known, new

    async def get(self, job_id: str) -> JobRecord | None:
        if self._lent is not None:
            return await self._lent.get(job_id)
        await self._look()
        job = self._known.jobs.get(checked_word(job_id, "job_id"))  # before the wait: what others append is not durable
        await self._settled(job_id)
        return job

    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        if self._lent is not None:
            return await self._lent.move(job_id, status, result_ref=result_ref, error=error)
        check("move: status", status, Of(JobStatus, "JobStatus.SUCCEEDED, …"))
        await self._look()
        async with self._lock:
            before = self._known.jobs.get(checked_word(job_id, "job_id"))
            await self._append(move_entry(before, job_id, status, self._now_ms(), result_ref, error))
            job = self._known.jobs[job_id]
        await self._settled(job_id)
        return job

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        if self._lent is not None:
            return await self._lent.find(scope_id=scope_id, statuses=statuses)
        check("find: statuses", statuses, TEXTS)
        await self._look()
        found = [
            job
            for job in self._known.jobs.values()
            if scope_id in (None, job.scope_id) and (not statuses or job.status in statuses)
        ]
        await self.journal.flush()
        return found

    async def require(self, spec: ActionSpec) -> ActionRecord:
        if self._lent is not None:
            return await self._lent.require(spec)
        check("require: spec", spec, Of(ActionSpec, "ActionSpec(job_id=…)"))
        await self._look()
        async with self._lock:
            job, ordinal = self._known.jobs.get(spec.job_id), self._known.next_ordinal(spec.job_id)
            asked = question_entry(job, ordinal, spec, self._now_ms(), self.journal.key)
            await self._append(asked)
            action = self._known.of_token(asked.token)
        await self._settled(spec.job_id)
        if action is None:
            raise InternalError("an action that was asked is not known")
        return action

    async def action(self, action_id: str) -> ActionRecord | None:
        if self._lent is not None:
            return await self._lent.action(action_id)
        await self._look()
        action = self._known.actions.get(checked_word(action_id, "action_id"))
        if action is not None:
            await self._settled(action.job_id)
        return action

    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        if self._lent is not None:
            return await self._lent.resolve(token, resolution, by)
        check("resolve: resolution", resolution, Of(Mapping, 'an object, as in {"approved": True}'))
        token, body = checked_word(token, "resolve: token"), as_json(dict(resolution), "resolution")
        await run_in_thread(self.journal.post, Letter("answer", token, body=body, by=checked_word(by, "by")))
        return await self._taken(token)

    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        if self._lent is not None:
            return await self._lent.close_action(action_id, status)
        check("close_action: status", status, Of(ActionStatus, "ActionStatus.CANCELLED, or EXPIRED"))
        action = await self.action(action_id)
        if action is None:
            raise UserError(f"action {action_id}: there is none of this name")
        try:
            await run_in_thread(self.journal.post, Letter("withdraw", action.resume_token, name=status))
        except LetterRefused as refused:
            if refused.reason not in ("second", "closed"):
                raise
        return await self._taken(action.resume_token)

    async def _taken(self, token: str) -> ActionRecord:
        """The action, whose letter is durable: who posted it is told so, though the journal's home goes away meanwhile and comes back."""
        while True:
            try:
                await self._look()
                break
            except TransientError:
                await asyncio.sleep(_AGAIN_SECONDS)
        action = self._known.of_token(token)
        if action is None:
            raise InternalError("a letter was accepted for an action that is not known")
        await self._settled(action.job_id)
        return action

    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        if self._lent is not None:
            return await self._lent.actions(job_id=job_id, statuses=statuses)
        check("actions: statuses", statuses, TEXTS)
        await self._look()
        found = [
            action
            for action in self._known.actions.values()
            if job_id in (None, action.job_id) and (not statuses or action.status in statuses)
        ]
        await self.journal.flush()
        return found

    async def trim(self, keep_seconds: Duration) -> int:
        """Removes the history of jobs that have ended, and forgets those that ended more than so many seconds ago: only then their
        idempotency keys are free again. Returns how many entries went. Raises UserError for seconds that are negative or not finite.
        """
        before_ms = max(1, self._now_ms() - parse_ms(keep_seconds, name="trim: keep_seconds"))
        async with self._lock:
            removed = await run_in_thread(self.journal.trim, await self.journal.flush(), before_ms)
            self._known.forget_ended()
        return removed

    def _now_ms(self) -> int:
        return round(self.clock.time() * 1000)

    async def _append(self, entry: Entry) -> None:
        """Under the lock."""
        await self.journal.room()
        self._positions[entry.job] = self.journal.append(entry)
        self._known.apply(entry)

    async def _look(self) -> None:
        """Takes what came from outside."""
        async with self._lock:
            await run_to_end(self._take())
            for job_id, reason in list(self._known.cancelled.items()):
                await self._append(End(job_id, self._now_ms(), JobStatus.CANCELLED, reason))

    async def _take(self) -> None:
        """Under the lock. It must not be cancelled half way: the thread would go on, and nobody apply the entries that it appends."""
        for position, entry in await run_in_thread(self.journal.take):
            self._positions[entry.job] = position
            self._known.apply(entry)

    async def _settled(self, job_id: str) -> None:
        """What is known of the job is durable: nothing of it is told before."""
        position = self._positions.get(job_id)
        if position is not None:
            await self.journal.durable(position)
            if self._positions.get(job_id) == position:
                del self._positions[job_id]
            await self.became_durable()

    async def became_durable(self) -> None:
        """Called when an entry is durable, before what it says is told. A store that shows entries elsewhere does it here."""

    async def leave(self) -> None:
        """As `JobView.leave`."""


class InMemoryJobStore(JournalStore):
    """Jobs, and actions too, in memory: gone with the process."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(MemoryJournal(clock=clock))


class InMemoryActionStore(InMemoryJobStore):
    """The same, under the name that it has where only actions are kept."""
