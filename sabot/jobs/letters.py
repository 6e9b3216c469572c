"""The inbox of a host's journal: its letters are taken, and jobs withdraw their questions by letters.

A question is closed by a letter, as by an answer, so that the inbox decides which of the two came first.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from sabot.base.threads import run_in_thread, run_to_end
from sabot.errors import LetterRefused
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import JobLog
from sabot.jobs.owner import HostServices
from sabot.journal.entries import Cancel, Letter


class JobLetters:
    """The letters of a host. Its methods are items of the host's task, or put some."""

    def __init__(self, host: HostServices, log: JobLog, *, all_taken: Callable[[str], None]) -> None:
        """all_taken: called with a job when none of its letters is under way any more."""
        self._host = host
        self._log = log
        self._all_taken = all_taken
        self._posting: Counter[str] = Counter()  # letters of jobs that are not taken

    def under_way(self, job_id: str) -> bool:
        """True if a letter of this job was posted, and is not taken yet."""
        return job_id in self._posting

    def take(self) -> Awaitable[None]:
        """Makes entries of the letters, and delivers them before anything else. A cancel is followed by those of all jobs below."""

        async def take() -> None:
            host, entries = self._host, await run_in_thread(self._host.journal.take)
            self._log.note_taken(entries)
            cancels = [entry for _, entry in entries if isinstance(entry, Cancel)]
            below = [each for cancel in cancels for each in host.jobs.cancel(cancel, host.now_ms())]
            host.deliver([*entries, *((host.append(each), each) for each in below)])

        return run_to_end(take())

    def withdraw(self, job_id: str, ordinal: int, token: str, why: str) -> None:
        """Closes a question, unless an answer came first. why: "expired" or "cancelled"."""
        letter = Letter("withdraw", token, name=why, by=job_id)
        self._posting[job_id] += 1
        self._host.spawn(self._posted(letter, job_id), f"the withdrawal of question {ordinal} of job {job_id}")

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
