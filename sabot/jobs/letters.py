"""The inbox of a host's journal: its letters are taken, and jobs post into it what they do not want any more.

A question is closed by a letter, as by an answer, so that the inbox decides which of the two came first.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from sabot.api.child_limits import ChildLimits
from sabot.base.threads import run_in_thread, run_to_end
from sabot.errors import LetterRefused
from sabot.jobs.core import GIVEN_UP
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import JobLog
from sabot.jobs.owner import HostServices, RunningJob
from sabot.jobs.run import Ask
from sabot.jobs.tree import child_id
from sabot.jobs.values import pack_error
from sabot.journal import Position
from sabot.journal.entries import Cancel, EffectResult, Entry, Letter

UNAWAITED_CHILD = "its parent waits no longer"
"""Why a child is cancelled that nobody waits for."""


class JobLetters:
    """Its methods are items of the host's task, or put some."""

    def __init__(self, host: HostServices, log: JobLog, *, all_taken: Callable[[str], None]) -> None:
        """all_taken: no letter of this job is under way any more."""
        self._host = host
        self._log = log
        self._all_taken = all_taken
        self._posting: Counter[str] = Counter()  # letters of jobs that are not taken

    def under_way(self, job_id: str) -> bool:
        """Whether a letter of this job is not taken."""
        return job_id in self._posting

    def take(self) -> Awaitable[None]:
        """Letters become entries, and their jobs hear of them before anything else is delivered."""

        async def take() -> None:
            entries = await run_in_thread(self._host.journal.take)
            self._log.note_taken(entries)
            self._host.deliver([*entries, *self._cancelled_with(entries)])

        return run_to_end(take())

    def _cancelled_with(self, entries: Sequence[tuple[Position, Entry]]) -> list[tuple[Position, Entry]]:
        """What is told to the jobs below those that are cancelled. All of them are told before any goes on, so that none begins another."""
        told = list[tuple[Position, Entry]]()
        for entry in [entry for _, entry in entries if isinstance(entry, Cancel)]:
            told += self._below(entry)
        return told

    def _below(self, entry: Cancel) -> list[tuple[Position, Entry]]:
        host, told = self._host, list[tuple[Position, Entry]]()
        for below in host.jobs.cancel(entry.job):
            cancel = Cancel(below, host.now_ms(), f"job {entry.job} was cancelled: {entry.reason}", entry.by)
            told.append((host.append(cancel), cancel))
        return told

    def left(self, running: RunningJob, limits: Mapping[str, ChildLimits]) -> list[tuple[Position, Entry]]:
        """The job is about to end, or to begin anew: nobody will wait for its children. -> what is told to them, and those below.
        limits: of each agent; they may say that children outlive the job.
        """
        job, host, told = running.job, self._host, list[tuple[Position, Entry]]()
        if limits[job.history.begin.agent].outlive:
            return told
        for ask in [ask for ask in job.open.values() if ask.kind == "child" and ask.recorded and ask.attempt]:
            child = child_id(job.job_id, ask.ordinal)
            if host.jobs.drop(child):
                cancel = Cancel(
                    child, host.now_ms(), job.late or f"job {job.job_id} has ended, and did not wait for it"
                )
                told += [(host.append(cancel), cancel), *self._below(cancel)]
        return told

    def dropped(self, running: RunningJob, ask: Ask) -> None:
        """The function waits no longer for a question, or for a child."""
        job_id, ordinal = running.job.job_id, ask.ordinal
        if ask.token:
            self.withdraw(job_id, ordinal, ask.token, "cancelled")
        if ask.kind != "child":
            return
        if self._host.jobs.drop(child := child_id(job_id, ordinal)):
            cancel = Letter("cancel", job=child, name=running.job.late or UNAWAITED_CHILD)
            self._post(cancel, job_id, f"the cancellation of child {ordinal} of job {job_id}")
        if running.in_memory and not running.job.history.has_result(ordinal):
            told = pack_error(asyncio.CancelledError(UNAWAITED_CHILD))
            entry = EffectResult(job_id, self._host.now_ms(), ordinal, 1, GIVEN_UP, told)
            self._host.deliver([(self._host.append(entry, running), entry)])  # another attempt asks for another child

    def withdraw(self, job_id: str, ordinal: int, token: str, why: str) -> None:
        """Closes a question, unless an answer came first. why: "expired" or "cancelled"."""
        letter = Letter("withdraw", token, name=why, by=job_id)
        self._post(letter, job_id, f"the withdrawal of question {ordinal} of job {job_id}")

    def _post(self, letter: Letter, job_id: str, what: str) -> None:
        self._posting[job_id] += 1
        self._host.spawn(self._posted(letter, job_id), what)

    async def _posted(self, letter: Letter, job_id: str) -> None:
        await self._host.journal.flush()  # what it is about
        try:
            await call_journal(self._host.journal.post, letter)  # sent again, it may be told that it was the first
        except LetterRefused as refused:
            if refused.reason == "expired":  # only answers are
                raise
        self._host.put(self.take)
        self._host.put(partial(self._taken, job_id))

    def _taken(self, job_id: str) -> None:
        self._posting[job_id] -= 1
        if not self._posting[job_id]:
            del self._posting[job_id]
            self._all_taken(job_id)
