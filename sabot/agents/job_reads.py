"""Reads the jobs of a journal, and returns records. The command line renders these records; the console also looks
into the records that jobs were begun with (`web/job_reading`)."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest

from sabot.agents.job_history import amounts_of, ended_records, record_of, searched
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.base.accounts import NOTHING, Amounts
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import UserError
from sabot.jobs.tree import child_id, is_retry, parent_of
from sabot.journal.base import EVERY, JobMark, JournalReader, entry_of_letter
from sabot.journal.ended_jobs import BLOCKED, EndedJob, JobQuery, cursor_of, cut
from sabot.journal.entries import Begin, Letter
from sabot.journal.job_marks import JobMarks, selected


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a list of jobs.

    - `jobs`: the jobs of the page, the newest first.
    - `used`: by the id of each job of the page, two amounts: the usage of the calls of the job and of all its
      descendants, and the part of it that is only an upper bound, because nobody knows whether a call has to be paid.
      Descendants in the journal's table of ended jobs are not included in the second one.
    - `found`: the number of jobs on all pages.
    - `counts`: for each status, the number of jobs that have it and that fulfil the other conditions of the query.
    - `following`: the cursor of the next page (`JobQuery.after`), or "" if this is the last page.
    """

    jobs: list[JobRecord]
    used: dict[str, tuple[Amounts, Amounts]]
    found: int
    counts: dict[str, int]
    following: str


def shown_status(job: JobRecord) -> str:
    """Returns the status that lists show of a job: BLOCKED for a job that is blocked, otherwise the job's own status."""
    return BLOCKED if job.blocked else str(job.status)


def jobs_that_ask(reader: JournalReader) -> list[str]:
    """Returns the jobs that may have open questions, the oldest first. Some of those that are blocked have none. Blocks."""
    marks = [
        mark for status in (JobStatus.WAITING_ACTION, BLOCKED) for mark in reader.logged(JobQuery(status=status), EVERY)
    ]
    return [mark.job for mark in oldest_first(marks) if mark.asks]


def queued_begins(reader: JournalReader, letters: Iterable[Letter]) -> tuple[dict[str, Begin], dict[str, JobMark]]:
    """Returns, by job, the BEGIN entries in the letters for jobs that the owner of the journal has not begun yet, or not yet
    again; and the marks of those that have ended and wait to run again. `letters`: those of the inbox, read before anything else:
    then a job that begins meanwhile is seen twice, and not missed. Blocks.
    """
    queued, over = dict[str, Begin](), dict[str, JobMark]()
    begins = [letter for letter in letters if letter.kind in ("begin", "retry")]
    marks = reader.marked([letter.job for letter in begins])
    for letter in begins:
        mark = marks.get(letter.job)
        if letter.kind == "retry" and mark is not None and mark.outcome and letter.name == str(mark.began.offset):
            over[letter.job] = mark
        elif letter.kind == "retry" or mark is not None:
            continue
        begin = entry_of_letter(letter, None, 0)
        assert isinstance(begin, Begin)
        queued[letter.job] = begin
    return queued, over


def _queued_marks(queued: Mapping[str, Begin], over: Mapping[str, JobMark], query: JobQuery) -> list[JobMark]:
    """Returns the marks of the queued jobs that a query selects, but for its text. The others: the result of `queued_begins`."""
    marks = JobMarks()
    for begin in queued.values():
        if not is_retry(begin):
            marks.apply(-1, begin)
    again = (replace(mark, outcome="", result="", ended_ms=0) for mark in over.values())
    return selected((replace(mark, tried=False) for mark in (*marks.marks.values(), *again)), query)


def age_of(job: JobRecord) -> tuple[int, str]:
    """Returns the time at which a job was created, in milliseconds since 1970, and its id. A list has its jobs in the
    reverse order of these values.
    """
    return round(job.created_at * 1000), job.job_id


def jobs_page(reader: JournalReader, query: JobQuery, most: int = 200) -> JobPage:
    """Returns a page of at most `most` jobs that the query selects. Reads the rows of jobs in the journal, and the
    entries of the jobs on the page and of those below them. For a text, it reads more: the rows of all jobs in the log,
    and the entries of those that have failed. Blocks the thread. Raises UserError for an invalid cursor.
    """
    rows, counts, queued = _rows(reader, query, most)
    return _page(reader, query, rows, most, counts, queued, JobView.of_jobs(reader, _read_for(reader, rows[:most])))


def selected_jobs(reader: JournalReader, query: JobQuery, statuses: Collection[str]) -> list[str]:
    """Returns the jobs on all pages of a query that have one of these statuses, the oldest first. Leaves a job out if it is
    below another one of them, because what is asked of a job concerns those below it. Blocks the thread.
    """
    rows, _, _ = _rows(reader, replace(query, after=""), EVERY)
    found = {row.job: None for row in reversed(rows) if row.status in statuses}
    return [job for job in found if not any(above in found for above in _above(job))]


def _above(job: str) -> Iterator[str]:
    while job := parent_of(job)[0]:
        yield job


def short_jobs_page(reader: JournalReader, query: JobQuery, most: int, most_entries: int) -> JobPage | None:
    """Returns a page of at most `most` jobs as `jobs_page` does. Returns None if that would take too long: if the jobs of
    the page and those below them have more than `most_entries` entries, or if a text is looked for in more jobs than that.
    """
    if query.text and sum(reader.logged_counts(query.of_all_pages).values()) > most_entries:
        return None
    rows, counts, queued = _rows(reader, query, most)
    view = JobView(reader)
    for number, (_, entry) in enumerate(reader.read_jobs(_read_for(reader, rows[:most]))):
        if number == most_entries:
            return None
        view.apply(entry)
    return _page(reader, query, rows, most, counts, queued, view)


def _read_for(reader: JournalReader, rows: Sequence[JobMark | EndedJob]) -> list[str]:
    """Returns the jobs whose entries a page with these rows needs: those of the log, and those below all of them, whose
    doubts count for the jobs above.
    """
    logged = [row.job for row in rows if isinstance(row, JobMark)]
    return list(dict.fromkeys([*logged, *reader.logged_below([row.job for row in rows])]))


def _rows(
    reader: JournalReader, query: JobQuery, most: int
) -> tuple[list[JobMark | EndedJob], "Counter[str]", dict[str, Begin]]:
    """Returns the rows of the jobs of a page, and one more if there is another page. Also returns the numbers of jobs on
    all pages, by status, and the BEGIN entries of `queued_begins`.
    """
    counted, letters = query.of_all_pages, reader.letters()
    # jobs that have begun again: the log has their present state
    both = {job.job: job for job in reader.history.known(reader.begun_again())}
    queued, over = queued_begins(reader, letters)
    marks, counts = _logged(reader, query, most + 1, queued, over)
    counts.update(reader.history.counts(counted))
    # the history counts jobs by their former end, and cannot leave those out that have begun again
    counts.subtract(job.status for job in both.values() if counted.selects(job))
    # as many more as may be left out below, so that the page is full
    ended = reader.history.find(query, most + 1 + len(both))
    in_log = both.keys() | {mark.job for mark in marks}  # or they were, and have moved since
    found: list[JobMark | EndedJob] = [*marks, *(job for job in ended if job.job not in in_log)]
    return nlargest(most + 1, found, key=_age_of_row), counts, queued


def _page(
    reader: JournalReader,
    query: JobQuery,
    rows: list[JobMark | EndedJob],
    most: int,
    counts: "Counter[str]",
    queued: Mapping[str, Begin],
    view: JobView,
) -> JobPage:
    apply_queued(reader, view, queued, [row.job for row in rows[:most]])
    view.note_marks(row for row in rows if isinstance(row, JobMark))
    page = [record for row in rows[:most] if (record := _record(reader, view, row)) is not None]
    following = cursor_of(*_age_of_row(rows[most - 1])) if len(rows) > most else ""
    found = counts[query.status] if query.status else counts.total()
    known_counts = {name: each for name, each in counts.items() if each}
    return JobPage(page, _used_by(page, reader, view), found, known_counts, following)


def oldest_first(marks: Iterable[JobMark]) -> list[JobMark]:
    """Returns the jobs in the order in which they began."""
    return sorted(marks, key=lambda mark: (mark.created_ms or 0, mark.began))


def _age_of_row(row: JobMark | EndedJob) -> tuple[int, str]:
    return row.created_ms or 0, row.job


def _record(reader: JournalReader, view: JobView, row: JobMark | EndedJob) -> JobRecord | None:
    if isinstance(row, EndedJob):
        return record_of(row)
    record = view.job(row.job)
    if record is None:  # it moved into the history since its row was read
        return next(map(record_of, reader.history.known([row.job])), None)
    return record


def moved_records(
    reader: JournalReader, marks: Iterable[JobMark], view: JobView, statuses: Collection[str]
) -> list[JobRecord]:
    """Returns the records of those jobs that a view lacks, since they have moved into the history after their marks were read.
    Only jobs in one of `statuses` are returned; () means all. Blocks.
    """
    moved = [mark.job for mark in marks if mark.job not in view.states]
    found = map(record_of, reader.history.known(moved) if moved else ())
    return [job for job in found if not statuses or job.status in statuses]


def apply_queued(
    reader: JournalReader,
    view: JobView,
    queued: Mapping[str, Begin],
    jobs: Iterable[str],
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Adds those of the jobs to a view that are queued, and have not begun since, with the reasons."""
    added = [
        job
        for job in jobs
        if job in queued and (view.is_over(job) if is_retry(queued[job]) else job not in view.states)
    ]
    waits = reader.waits(added, clock) if added else {}
    for job in added:
        view.apply_queued(queued[job], waits.get(job, ""))


def _logged(
    reader: JournalReader, query: JobQuery, most: int, queued: Mapping[str, Begin], over: Mapping[str, JobMark]
) -> tuple[list[JobMark], "Counter[str]"]:
    """Returns the newest jobs in the log, and of those that are queued, that a query selects: at most `most` of them, and by
    status the numbers of those on all pages. `queued`, `over`: the result of `queued_begins`.
    """
    counted, last = query.of_all_pages, query.last
    waiting = _queued_marks(queued, over, counted)
    if not query.text:
        marks = [mark for mark in reader.logged(query, most + len(over)) if mark.job not in over]
        begun = {mark.job for mark in marks}
        waiting = [mark for mark in waiting if mark.job not in begun]
        counts = Counter(reader.logged_counts(counted)) + Counter(mark.status for mark in waiting)
        counts.subtract(mark.status for mark in selected(over.values(), counted))
        return nlargest(most, [*marks, *selected(waiting, query)], key=_age_of_row), counts
    logged = [mark for mark in reader.logged(counted, EVERY) if mark.job not in over]
    begun = {mark.job for mark in logged}
    logged += [mark for mark in waiting if mark.job not in begun]
    every = nlargest(
        EVERY, [mark for mark in logged if _has_text(reader, mark, query.text.casefold())], key=_age_of_row
    )
    found = [mark for mark in every if query.status in ("", mark.status) and (last is None or _age_of_row(mark) < last)]
    return found[:most], Counter(mark.status for mark in every)


def _has_text(reader: JournalReader, mark: JobMark, text: str) -> bool:
    """Returns True if a job has the text, in lower case, where `searched` looks for it. The error of a failed job is in
    its END entry only.
    """
    words = mark.job, mark.agent, mark.scope, mark.principal, mark.key
    if text in "\n".join(map(cut, words)).casefold():
        return True
    if not mark.outcome or mark.status == JobStatus.SUCCEEDED:
        return False
    record = JobView.of_jobs(reader, [mark.job]).job(mark.job)
    return record is not None and text in searched(record)


def _used_by(page: Sequence[JobRecord], reader: JournalReader, view: JobView) -> dict[str, tuple[Amounts, Amounts]]:
    parents = {record.job_id for record in page if record.children}
    below = reader.history.used_below(parents)
    doubts: dict[str, Amounts] = {}
    for each in view.states.values() if parents else ():
        above = each.job_id
        while above := parent_of(above)[0]:
            if above in parents:
                below[above] = below.get(above, NOTHING).plus(each.used)
                doubts[above] = doubts.get(above, NOTHING).plus(each.doubts)
    used = {}
    for record in page:
        own, own_doubts = amounts_of(record)
        job_id = record.job_id
        used[job_id] = own.plus(below.get(job_id, NOTHING)), own_doubts.plus(doubts.get(job_id, NOTHING))
    return used


def find_jobs(
    reader: JournalReader,
    *,
    agent: str | None = None,
    scope: str | None = None,
    session: str | None = None,
    statuses: Sequence[str] = (),
) -> tuple[list[JobRecord], Mapping[str, JobRecord]]:
    """Returns the jobs that fulfil all conditions: they belong to the agent, the scope and the session, and have one of
    `statuses` in lists (`shown_status`). None and () are no condition. Jobs in the journal's table of ended jobs come first; within
    each part, the oldest job is the first. Also returns, by id, the found jobs of the log and those that these wait for, so that a list
    can show the states of child jobs. Reads the entries of these jobs, and the table of ended jobs. Blocks the thread.

    `agent` is the id APP.NAME of an agent, or NAME alone for the agents with this name in all apps. Raises UserError if
    the journal has no job of such an agent.
    """
    query = JobQuery(agent or "", cut(scope or ""), session=cut(session or ""))
    queued, over = queued_begins(reader, reader.letters())
    every = [mark for mark in reader.logged(query, EVERY) if mark.job not in over]
    begun = {mark.job for mark in every}
    every += [mark for mark in _queued_marks(queued, over, query) if mark.job not in begun]
    kept = ended_records(reader, query, statuses, {mark.job for mark in every})
    if agent is not None:
        agents = _agents_named(agent, {each.agent for each in every} | {each.agent for each in kept}, reader)
        every = [mark for mark in every if mark.agent in agents]
        kept = [job for job in kept if job.agent in agents]
    marks = [mark for mark in every if not statuses or mark.status in statuses]
    view = JobView.of_jobs(reader, [mark.job for mark in oldest_first(marks)])
    apply_queued(reader, view, queued, [mark.job for mark in oldest_first(marks)])
    view.note_marks(marks)
    kept += moved_records(reader, marks, view, statuses)
    kept.sort(key=age_of, reverse=True)
    found = [job for job in view.seen() if scope in (None, job.scope_id)]
    children = [child_id(job.job_id, effect.ordinal) for job in found for effect in job.open if effect.kind == "child"]
    known = JobView.of_jobs(reader, {child for child in children if child not in view.states})
    known.note_marks(every)
    return [*reversed(kept), *found], {job.job_id: job for job in (*found, *known.seen())}


def _agents_named(word: str, known: Collection[str], reader: JournalReader) -> set[str]:
    """Returns the ids in `known` of the agents that `word` names: `word` itself if it is an id, otherwise all ids
    APP.NAME where NAME is `word`. Raises UserError if the journal has no job of such an agent.
    """
    found = {word} & set(known) or {each for each in known if each.rpartition(".")[2] == word}
    if found or any(reader.logged_counts(JobQuery(word)).values()) or reader.history.find(JobQuery(word), 1):
        return found
    others = {mark.agent for mark in reader.logged(JobQuery(), EVERY) if mark.agent}
    raise UserError(
        f"{reader.where} has no job of an agent {word}",
        hint=f"it has jobs of {', '.join(sorted(others))}" if others else "it has no job of any agent",
    )
