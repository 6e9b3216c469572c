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
from typing import Any, Protocol, runtime_checkable

from sabot.agents.actions import ActionRecord, ActionSpec, ActionStatus, ActionStore, check_resolution, no_action
from sabot.agents.context import checked_word
from sabot.agents.job_entries import (
    as_json,
    begin_entry,
    check_same,
    digest_of,
    move_entry,
    name_of,
    question_entry,
    shown_json,
)
from sabot.agents.job_view import JobState, JobView, end_of
from sabot.agents.jobs import JobRecord, JobSpec, JobStatus, JobStore
from sabot.base.checks import TEXTS, Of, check
from sabot.base.config import Duration, parse_ms
from sabot.base.options import answers_wrong_options
from sabot.base.quantities import counted_words
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import (
    InternalError,
    LetterRefused,
    TransientError,
    UserError,
)
from sabot.journal.base import Journal
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
    "shown_json",
]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.1


def cancel_letter(job_id: str, reason: str = "", by: str = "") -> Letter:
    """Returns a letter, which is a request for the inbox of a journal, that requests the cancel of a job. `reason` is
    stored as the reason of the cancel, and `by` is the person who cancels.
    """
    return Letter("cancel", job=job_id, name=reason, by=by)


class JobsAndActions(JobStore, ActionStore):
    """The base class of stores that keep both jobs and actions."""


@runtime_checkable
class LentStore(Protocol):
    """The interface of a store that can also show the jobs and actions of a kernel, if it is passed to the kernel
    (`RuntimeKernel(job_store=…, action_store=…)`).

    `home` is the place of the journal for a kernel to which no `journal=` is passed: a Journal that the store has, or
    the address of the store's database. It is None if the store offers no place.
    """

    @property
    def home(self) -> Journal | str | None: ...

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel. After that, the store passes calls about the jobs of the kernel to `to`,
        the kernel's own store. Raises UserError if the store is connected with a kernel already.
        """

    async def show(self, journal: Journal) -> None:
        """Begins to show the jobs of the kernel's journal. If they contradict what the store has shown before, logs a
        warning.
        """

    async def became_durable(self) -> None:
        """Shows the entries of the kernel's journal that have become durable since the last call. The kernel calls
        this. If a server does not answer, raises no error; then the next call also shows the entries that this call
        could not show.
        """

    async def leave(self) -> None:
        """Stops showing the jobs of the kernel. The kernel calls this after the last `became_durable`, before it closes
        its journal.
        """


class JournalStore(JobsAndActions):
    """A store of jobs and actions in a journal. The store becomes the only writer of the journal that is passed to it.
    The constructor reads the whole log of the journal, and blocks the thread meanwhile.

    If the same store is passed to a JobManager and to an ActionManager, a job has the status `waiting_action` while one
    of its actions is open. If the store is passed to a RuntimeKernel, it shows the jobs of the kernel instead.
    """

    def __init__(self, journal: Journal) -> None:
        check("JournalStore: journal", journal, Of(Journal))
        self.journal = journal
        self.clock: Clock = journal.clock
        self._known = JobView.of(journal)
        # Held while entries are taken, appended and applied, so that they are applied in the journal's order.
        self._lock = asyncio.Lock()
        self._lent: JobsAndActions | None = None

    @property
    def home(self) -> Journal:
        """The store's own journal. A kernel uses it if no `journal=` is passed to the kernel."""
        return self.journal

    def lend(self, to: JobsAndActions) -> None:
        """Connects the store with a kernel. After that, the store passes all calls of its methods to `to`, the kernel's
        own store, and so shows only the jobs of the kernel. Raises UserError if the store is connected with a kernel
        already.
        """
        if self._lent is not None:
            raise UserError(f"the store of {self.journal.where} is that of another kernel", hint="make one for each")
        self._lent = to

    async def show(self, journal: Journal) -> None:
        """Logs a warning if the kernel has another journal than this store, and the store's own journal has jobs: these
        jobs are not shown while the store is connected with the kernel.
        """
        if journal is not self.journal and (others := len(self._known.states)):
            _log.warning(
                "%s has %s of its own, and not those of %s: the journal of the kernel holds, and only its jobs are shown",
                self.journal.where,
                counted_words(others, "job"),
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
                at, status = mark.ended_ms / 1000, end_of(mark.outcome)
                ended = JobState(job_id, spec=spec, status=status, created_at=at, moved_at=at, completed_at=at)
                if status is JobStatus.SUCCEEDED:
                    ended.result_ref = mark.result
                else:
                    ended.error = mark.result
                known = ended.record()
            new = known is None
            if known is None:
                await self._append(begin)
                known = self._known.present(job_id)
        await self.journal.flush()
        return known, new

    async def get(self, job_id: str) -> JobRecord | None:
        if self._lent is not None:
            return await self._lent.get(job_id)
        await self._look()
        # read before the wait, since later entries of others may not be durable after it
        job = self._known.job(checked_word(job_id, "job_id"))
        await self.journal.flush()
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
        await self.journal.flush()
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
        await self.journal.flush()
        if action is None:
            raise InternalError("an action that was asked is not known")
        return action

    async def action(self, action_id: str) -> ActionRecord | None:
        if self._lent is not None:
            return await self._lent.action(action_id)
        await self._look()
        action = self._known.actions.get(checked_word(action_id, "action_id"))
        if action is not None:
            await self.journal.flush()
        return action

    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        if self._lent is not None:
            return await self._lent.resolve(token, resolution, by)
        check("resolve: resolution", resolution, Of(Mapping, 'an object, as in {"approved": True}'))
        token, body = checked_word(token, "resolve: token"), as_json(dict(resolution), "resolution")
        if (asked := self._known.of_token(token)) is not None:
            check_resolution(asked, resolution)
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
        """Reads the inbox of the journal, to which the caller has posted an answer or a withdrawal for the action with
        this token. Returns the action with its new state when that is durable. If the server of the journal does not
        answer, tries again without a limit.
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
        await self.journal.flush()
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
        """Removes the entries of jobs that have ended from the journal. The entries of failed and cancelled jobs are
        removed only if the job ended more than `keep_seconds` ago. Returns the number of removed entries.

        The idempotency key of a job remains known until the job ended more than `keep_seconds` ago. After that, a new
        job may use it. All jobs that have ended, and their actions, are no longer found by `get`, `find` and `actions`.
        Failed and cancelled jobs whose entries were kept are found again by a store that is made over the same journal
        later. Raises UserError if `keep_seconds` is negative or not finite.
        """
        before_ms = max(1, self._now_ms() - parse_ms(keep_seconds, name="trim: keep_seconds"))
        async with self._lock:
            removed = await run_in_thread(self.journal.trim, await self.journal.flush(), before_ms)
            self._known.forget_ended()
        return removed

    def _now_ms(self) -> int:
        return round(self.clock.time() * 1000)

    async def _append(self, entry: Entry) -> None:
        """Appends an entry to the journal, and applies it to the jobs in memory. The caller has acquired `_lock`."""
        await self.journal.room()
        self.journal.append(entry)
        self._known.apply(entry)

    async def _look(self) -> None:
        """Applies the letters in the inbox of the journal: answers, withdrawals and cancels. Then writes the END of
        each job for which a cancel was requested.
        """
        async with self._lock:
            await run_to_end(self._take())
            for job_id, reason in list(self._known.cancelled.items()):
                await self._append(End(job_id, self._now_ms(), JobStatus.CANCELLED, reason))

    async def _take(self) -> None:
        """Moves the letters (answers, withdrawals, signals and cancels) from the inbox into the journal as entries, and
        applies these entries to the jobs in memory. The caller has acquired `_lock`.

        This call must not be cancelled. The thread that moves the letters would continue, and its entries would not be
        applied.
        """
        for _, entry in await run_in_thread(self.journal.take):
            self._known.apply(entry)

    async def became_durable(self) -> None:
        """Does nothing, because the store copies no jobs of the kernel to another place."""

    async def leave(self) -> None:
        """Does nothing, because the store has copied no jobs of the kernel to another place."""


@answers_wrong_options
class InMemoryJobStore(JournalStore):
    """A store of jobs and actions in memory. They are lost when the process ends."""

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(MemoryJournal(clock=clock))


InMemoryActionStore = InMemoryJobStore
"""Another name of the store, for programs that only keep actions."""
