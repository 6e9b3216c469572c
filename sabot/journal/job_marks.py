"""The facts about jobs that lists show (`JobMark`), made from the entries of the jobs. A journal in memory keeps them, and
a journal of an older format makes them when it is read, or when its next owner opens it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import nlargest

from sabot.journal.base import JobMark, Position
from sabot.journal.begin_facts import created_of, facts_of
from sabot.journal.ended_jobs import JobQuery, cut, descendants
from sabot.journal.entries import Answer, Attempt, Begin, End, Entry, Intent


@dataclass(slots=True)
class JobMarks:
    """The marks of jobs, from their entries. `marks`: by job, its mark. `asked`: by job, the tokens of its open
    questions.
    """

    marks: dict[str, JobMark] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)

    def apply(self, offset: int, entry: Entry, *, again: bool = False) -> None:
        """Applies the next entry of the log. `offset`: its place. `again`: for a BEGIN entry, True if the history has
        the job.
        """
        mark = self.marks.get(entry.job)
        match entry:
            case Begin():
                self.asked.pop(entry.job, None)
                created_ms = None if mark is None else mark.created_ms
                self.marks[entry.job] = JobMark(
                    entry.job,
                    Position(0, offset),
                    entry.digest,
                    "",
                    "",
                    0,
                    *facts_of(entry),
                    created_of(entry) if created_ms is None else created_ms,
                    tried=bool(entry.agent),
                    again=again,
                )
            case Attempt(ordinal=0) if mark is not None and not mark.tried:
                self.marks[entry.job] = replace(mark, tried=True)
            case Intent(kind="ask") if entry.token:
                self.asked.setdefault(entry.job, set()).add(entry.token)
                self._count(mark)
            case Answer() if entry.token in self.asked.get(entry.job, ()):
                self.asked[entry.job].discard(entry.token)
                self._count(mark)
            case End():
                self.asked.pop(entry.job, None)
                mark = mark or JobMark(entry.job, Position(0, offset), b"")
                self.marks[entry.job] = replace(
                    mark, outcome=entry.outcome, result=entry.result, ended_ms=entry.at_ms, asks=0, blocked=""
                )

    def note_blocked(self, reasons: Mapping[str, str]) -> None:
        """Notes which jobs are blocked, as `Journal.note_blocked` does."""
        for job, why in reasons.items():
            if (mark := self.marks.get(job)) is not None and not mark.outcome:
                self.marks[job] = replace(mark, blocked=cut(why))

    def _count(self, mark: JobMark | None) -> None:
        if mark is not None and not mark.outcome:
            self.marks[mark.job] = replace(mark, asks=len(self.asked[mark.job]))


def selected(marks: Iterable[JobMark], query: JobQuery, most: int | None = None) -> list[JobMark]:
    """Returns the jobs with entries in the log that fulfil a query, as `JournalReader.logged` does: the newest first.
    `most`: how many; None for all, in no order.
    """
    query, last = replace(query, text=""), query.last
    found = [
        (mark.created_ms, mark.job, mark)
        for mark in marks
        if mark.created_ms is not None
        and query.status in ("", mark.status)
        and (last is None or (mark.created_ms, mark.job) < last)
        and query.fits(mark.agent, mark.scope, mark.session, mark.created_ms, mark.key, str)
    ]
    chosen = found if most is None else nlargest(most, found, key=lambda each: each[:2])
    return [mark for _, _, mark in chosen]


def below(marks: Iterable[JobMark], jobs: Iterable[str]) -> list[str]:
    """Returns the ids of the descendants of jobs that have entries in the log, as `JournalReader.logged_below` does."""
    names, found = sorted(mark.job for mark in marks if mark.created_ms is not None), set[str]()
    for job in jobs:
        first, behind = descendants(job)
        found.update(names[bisect_left(names, first) : bisect_left(names, behind)])
    return sorted(found)
