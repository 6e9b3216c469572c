"""A store of jobs and actions over a journal. Everything that the store returns is computed from the entries of the
journal.

   create    Begin          start    Attempt of ordinal 0         an end    End
   ask       Intent         answer   Answer (out of the inbox)    a cancel from outside    Cancel, then End

Every change is first written as an entry. Then the entry is applied, in the order of the journal, by the function that
also reads the journal when a store is opened. So a store that was killed and opened again has the same state as one
that was not killed. An answer always goes through the inbox of the journal, even if it is given in this process,
because another process may answer at the same moment, and the inbox accepts only one answer.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from sabot.agents.actions import ActionRecord, ActionSpec, ActionStatus, ActionStore, no_action
from sabot.agents.context import checked_word
from sabot.agents.job_entries import as_json, begin_entry, check_same, digest_of, move_entry, name_of, question_entry
from sabot.agents.job_view import JobView, end_of
from sabot.agents.jobs import JobRecord, JobSpec, JobStatus, JobStore
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, parse_ms
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import (
    InternalError,
    LetterRefused,
    TransientError,
    UserError,
)
from sabot.journal.base import Journal, Position
from sabot.journal.entries import End, Entry, Letter
from sabot.journal.memory import MemoryJournal

__all__ = [
    "InMemoryActionStore",
    "InMemoryJobStore",
    "JobsAndActions",
    "JournalStore",
    "LentStore",
    "as_json",
    "cancel_letter",
]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.1


def _record(job_id: str, spec: JobSpec, at: float) -> JobRecord:
    shared = {name: getattr(spec, name) for name in JobSpec.__dataclass_fields__}
    return JobRecord(job_id=job_id, created_at=at, updated_at=at, **shared)


def cancel_letter(job_id: str, reason: str = "", by: str = "") -> Letter:
    """Returns the letter that asks the owner of a journal to cancel a job."""
    return Letter("cancel", job=job_id, name=reason, by=by)


class JobsAndActions(JobStore, ActionStore):
    """A store that is both a store of jobs and a store of actions."""


@runtime_checkable
class LentStore(Protocol):
    """A store that can also show the jobs and actions of a kernel (`RuntimeKernel(job_store=…, action_store=…)`).

    `home`: the place where a kernel without `journal=` keeps its journal. It is the store's own journal, or the address
    of the store's database, or None if the store has no such place.
    """

    @property
    def home(self) -> Journal | str | None: ...

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel. From now on the store passes its calls on to `to`, the kernel's own store.
        Raises UserError if the store is connected with a kernel already.
        """

    async def show(self, journal: Journal) -> None:
        """Begins to show the jobs of the kernel's journal. If they contradict jobs that the store has shown before,
        logs a warning.
        """

    async def became_durable(self) -> None:
        """Called when more entries of the journal have become durable. Must not raise an error if a server does not
        answer; the next call then has to show the missed entries too.
        """

    async def leave(self) -> None:
        """Called before the kernel closes its journal, when the store has shown all durable entries."""


class JournalStore(JobsAndActions):
    """A store of jobs and actions over a journal. From now on the store is the owner of the journal. The constructor
    reads the journal, and blocks meanwhile.

    If the same store is given to a JobManager and to an ActionManager, a job waits while one of its actions is open. If
    the store is given to a RuntimeKernel, it shows the jobs of the kernel (`lend`).
    """

    def __init__(self, journal: Journal) -> None:
        check("JournalStore: journal", journal, Of(Journal))
        self.journal = journal
        self.clock: Clock = journal.clock
        self._known = JobView.of(journal)
        self._positions: dict[str, Position] = {}  # by job: the position of its last entry, until that is durable
        # Held while entries are taken, appended and applied, so that they are applied in the journal's order.
        self._lock = asyncio.Lock()
        self._lent: JobsAndActions | None = None

    @property
    def home(self) -> Journal:
        """The store's own journal. A kernel without `journal=` keeps its jobs in it (`LentStore.home`)."""
        return self.journal

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel. From now on the store shows the jobs of the kernel, whose journal is this
        one or another one. Raises UserError if the store is connected with a kernel already.
        """
        if self._lent is not None:
            raise UserError(f"the store of {self.journal.where} is that of another kernel", hint="make one for each")
        self._lent = to

    async def show(self, journal: Journal) -> None:
        """Called with the journal of the kernel. If that is not the store's own journal, and the store's own journal
        has jobs too, logs a warning that those are not shown.
        """
        if journal is not self.journal and (others := len(self._known.states)):
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
            known = self._known.job(job_id)
            mark = await run_in_thread(self.journal.job, job_id) if spec.idempotency_key and known is None else None
            before = mark.digest if mark is not None else self._known.digest_of(job_id)
            check_same(job_id, spec, content, content if before is None else before)
            if mark is not None:  # the job has ended, and its entries are trimmed
                known = replace(
                    _record(job_id, spec, mark.ended_ms / 1000),
                    status=end_of(mark.outcome),
                    completed_at=mark.ended_ms / 1000,
                    result_ref=mark.result if mark.outcome == JobStatus.SUCCEEDED else "",
                    error="" if mark.outcome == JobStatus.SUCCEEDED else mark.result,
                )
            new = known is None
            if known is None:
                await self._append(begin)
                known = self._known.present(job_id)
        await self._settled(job_id)
        return known, new

    async def get(self, job_id: str) -> JobRecord | None:
        if self._lent is not None:
            return await self._lent.get(job_id)
        await self._look()
        # read before the wait, since later entries of others may not be durable after it
        job = self._known.job(checked_word(job_id, "job_id"))
        await self._settled(job_id)
        return job

    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        if self._lent is not None:
            return await self._lent.move(job_id, status, result_ref=result_ref, error=error)
        check("move: status", status, Of(JobStatus, "JobStatus.SUCCEEDED, …"))
        await self._look()
        async with self._lock:
            before = self._known.job(checked_word(job_id, "job_id"))
            await self._append(move_entry(before, job_id, status, self._now_ms(), result_ref, error))
            job = self._known.present(job_id)
        await self._settled(job_id)
        return job

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        if self._lent is not None:
            return await self._lent.find(scope_id=scope_id, statuses=statuses)
        check("find: statuses", statuses, TEXTS)
        await self._look()
        found = [
            job
            for job in self._known.seen()
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
            job, ordinal = self._known.job(spec.job_id), self._known.next_ordinal(spec.job_id)
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
            raise no_action(action_id)
        try:
            await run_in_thread(self.journal.post, Letter("withdraw", action.resume_token, name=status))
        except LetterRefused as refused:
            if refused.reason not in ("second", "closed"):
                raise
        return await self._taken(action.resume_token)

    async def _taken(self, token: str) -> ActionRecord:
        """Returns the action with this token after the caller has posted an answer to it: takes letters from the inbox
        until the answer is applied. If the server of the journal does not answer, tries again until it does.
        """
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
        """Removes the entries of jobs that have ended. Returns the number of removed entries. Failed and cancelled jobs
        keep their entries until they are forgotten.

        Forgets the jobs that ended more than `keep_seconds` ago. Their idempotency keys are free again after that, and
        not before. Raises UserError if `keep_seconds` is negative or not finite.
        """
        before_ms = max(1, self._now_ms() - parse_ms(keep_seconds, name="trim: keep_seconds"))
        async with self._lock:
            removed = await run_in_thread(self.journal.trim, await self.journal.flush(), before_ms)
            self._known.forget_ended()
        return removed

    def _now_ms(self) -> int:
        return round(self.clock.time() * 1000)

    async def _append(self, entry: Entry) -> None:
        """Appends an entry to the journal, and applies it to the store. The caller holds the lock."""
        await self.journal.room()
        self._positions[entry.job] = self.journal.append(entry)
        self._known.apply(entry)

    async def _look(self) -> None:
        """Takes letters from the inbox, and ends the jobs that were cancelled."""
        async with self._lock:
            await run_to_end(self._take())
            for job_id, reason in list(self._known.cancelled.items()):
                await self._append(End(job_id, self._now_ms(), JobStatus.CANCELLED, reason))

    async def _take(self) -> None:
        """Takes letters from the inbox, and applies their entries to the store. The caller holds the lock. Must not be
        cancelled: the thread that takes the letters would go on, and nobody would apply the entries that it appends.
        """
        for position, entry in await run_in_thread(self.journal.take):
            self._positions[entry.job] = position
            self._known.apply(entry)

    async def _settled(self, job_id: str) -> None:
        """Waits until the entries of the job are durable. The store returns a state of the job only after that."""
        position = self._positions.get(job_id)
        if position is not None:
            await self.journal.durable(position)
            if self._positions.get(job_id) == position:
                del self._positions[job_id]
            await self.became_durable()

    async def became_durable(self) -> None:
        """Called when an entry is durable, before the store returns the new state. Does nothing here. A subclass that
        shows entries elsewhere overrides it.
        """

    async def leave(self) -> None:
        """Does nothing, because the store shows nothing elsewhere (`LentStore.leave`)."""


class InMemoryJobStore(JournalStore):
    """A store of jobs and actions in memory. It ends with the process."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(MemoryJournal(clock=clock))


InMemoryActionStore = InMemoryJobStore
"""Another name of the store, for programs that only keep actions."""
