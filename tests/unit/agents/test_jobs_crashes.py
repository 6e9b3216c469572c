"""A program of jobs and actions that crashes before and after each step by which its journal changes the disk, and is started again."""

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    ActionStatus,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    SqliteInbox,
    SqliteJournal,
)
from sabot.errors import SabotError
from sabot.journal import Letter
from sabot.journal.entries import kind_of
from sabot.journal.sqlite import SqliteReader
from sabot.steps import watch


class Crash(Exception):
    """The process is gone, as far as the disk is concerned."""


class CrashAt:
    """Raises at one of the moments before and after a step, counted from 1, and at all that follow."""

    def __init__(self, moment: int) -> None:
        self._moment = moment
        self._lock = threading.Lock()
        self.moments = 0

    def _pass(self) -> None:
        with self._lock:
            self.moments += 1
            if self._moment and self.moments >= self._moment:
                raise Crash

    def before(self, name: str, what: str) -> None:
        self._pass()

    def after(self, name: str, what: str) -> None:
        self._pass()

    def torn(self, name: str, what: str, size: int) -> int:
        return size


async def program(folder: Path, returned: list[str]) -> None:
    """It asks under a key, looks how far it is, and goes on there. Another process withdraws one question, and answers the other."""
    journal = SqliteJournal(folder / "journal")
    try:
        store = JournalStore(journal)
        jobs, actions = JobManager(store), ActionManager(store, poll="1ms")
        job = await jobs.create(JobSpec(scope_id="s", idempotency_key="k"))
        returned.append("begin")
        if job.status is JobStatus.QUEUED:
            job = await jobs.start(job.job_id)
            returned.append("attempt")
        if job.status is not JobStatus.SUCCEEDED:
            asked = await actions.find(job_id=job.job_id)
            while len(asked) < 2:
                asked.append(await actions.require_action(ActionSpec(job_id=job.job_id)))
                returned.append("intent")
            first, second = asked
            if first.status is ActionStatus.PENDING:
                await actions.cancel(first.action_id)
                returned.append("answer")
            if second.status is ActionStatus.PENDING:
                inbox = SqliteInbox(folder)
                inbox.post(Letter("answer", second.resume_token, body=b'{"n": 1}'))
                inbox.close()
                await actions.wait_for_resolution(second.action_id)
                returned.append("answer")
            await jobs.complete(job.job_id, "done")
            returned.append("end")
    finally:
        journal.close()


def run(folder: Path, moment: int) -> tuple[list[str], int]:
    """(what returned, how many moments there were) of a run that crashes at this moment; 0: it does not."""
    returned: list[str] = []
    watcher = CrashAt(moment)
    watch(watcher)
    try:
        if moment:
            with pytest.raises((Crash, SabotError)):
                asyncio.run(program(folder, returned))
        else:
            asyncio.run(program(folder, returned))
    finally:
        watch(None)
    return returned, watcher.moments


def counted(folder: Path) -> Counter[str]:
    reader = SqliteReader(folder)
    found = Counter(kind_of(entry) for _, entry in reader.read())
    reader.close()
    return found


def test_after_a_crash_at_any_step_what_had_returned_is_there_and_the_program_ends_as_if_there_had_been_none(
    tmp_path: Path,
) -> None:
    whole = {"begin": 1, "attempt": 1, "intent": 2, "answer": 2, "end": 1}
    _, moments = run(tmp_path / "whole", 0)
    assert counted(tmp_path / "whole") == whole
    assert moments >= 2 * 9
    for moment in range(1, moments + 1):
        folder = tmp_path / f"crash-{moment}"
        returned, _ = run(folder, moment)
        if returned:
            assert counted(folder) >= Counter(returned), f"moment {moment}"
        run(folder, 0)
        assert counted(folder) == whole, f"moment {moment}"
        reader = SqliteReader(folder)
        assert reader.letters() == []
        reader.close()
