"""The inbox of a host's journal. Other processes post letters into it: answers, signals, cancels and retries. The host takes the
letters out.

A host also posts letters itself, to withdraw questions of its jobs. Both an answer and a withdrawal are letters, so the
inbox decides which of the two came first.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable

from sabot.base.threads import run_in_thread
from sabot.errors import LetterRefused
from sabot.jobs.events import LettersCame
from sabot.jobs.host_state import HostState
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import JobLog
from sabot.journal.base import Position
from sabot.journal.entries import Begin, Cancel, Letter


class JobLetters:
    """The part of a host (`JobHost`) that handles the inbox of the journal: it turns the letters (class `Letter`) of
    other processes into entries. It also withdraws questions of the host's own jobs, by letters that it posts itself.
    """

    def __init__(
        self,
        host: HostState,
        log: JobLog,
        fetch_trees: Callable[[Iterable[str], Collection[str]], Awaitable[None]],
    ) -> None:
        """`fetch_trees`: `JobHost._fetch_trees`."""
        self._host = host
        self._log = log
        self._fetch_trees = fetch_trees
        self._posting: Counter[str] = Counter()  # by job: the number of posted letters that are not taken yet

    def under_way(self, job_id: str) -> bool:
        """Returns True if this host has posted a letter that withdraws a question of this job, and has not read that
        letter from the inbox yet.
        """
        return job_id in self._posting

    async def take(self) -> list[tuple[Position, Begin]]:
        """Removes all letters from the inbox, and turns them into entries (`Journal.take`). Adds the entries to
        `HostState.told`, from where the host delivers them. If an entry cancels a job, also appends a CANCEL entry
        for each job below it (see `JobTree.cancel`). Returns the BEGIN entries of jobs that have to run, for the first
        time or again, with their places.
        """
        host, entries = self._host, await run_in_thread(self._host.journal.take)
        self._log.note_taken(entries)
        begun = [entry for _, entry in entries if isinstance(entry, Begin)]
        needed = [each.job for each in begun if each.run > 1]
        needed += [entry.job for _, entry in entries if isinstance(entry, Cancel)]
        await self._fetch_trees(needed, {each.job for each in begun})
        host.told.extend(entries)
        for _, entry in entries:
            for each in host.jobs.cancel(entry, host.now_ms()) if isinstance(entry, Cancel) else ():
                host.told.append((self._log.append(each), each))
        return [(position, entry) for position, entry in entries if isinstance(entry, Begin)]

    def withdraw(self, job_id: str, ordinal: int, token: str, why: str) -> None:
        """Withdraws a question of a job, by posting a letter that closes the question. If an answer was posted before
        that letter, the answer is used and the withdrawal has no effect. `token`: the token of the question. `why`:
        "expired" or "cancelled".
        """
        letter = Letter("withdraw", token, name=why, by=job_id)
        self._posting[job_id] += 1
        self._host.spawn(self._posted(letter, job_id), f"the withdrawal of question {ordinal} of job {job_id}")

    async def _posted(self, letter: Letter, job_id: str) -> None:
        await self._host.journal.flush()  # the question must be durable before the letter
        try:
            # a repeated post may be refused because of itself, which is fine
            await call_journal(self._host.journal.post, letter)
        except LetterRefused as refused:
            if refused.reason == "expired":  # an expired question is only refused for answers
                raise
        self._host.put(LettersCame(posted_by=job_id))

    def taken(self, job_id: str) -> bool:
        """Records that the host has read one of the letters that it has posted for this job. Returns True if no
        further such letter is on its way.
        """
        self._posting[job_id] -= 1
        if self._posting[job_id]:
            return False
        del self._posting[job_id]
        return True
