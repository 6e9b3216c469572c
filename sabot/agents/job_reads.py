"""Reads the jobs of a journal, and returns records. The command line and the page of an app only render these records."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest

from sabot.agents.entry_values import key_text
from sabot.agents.job_history import amounts_of, ended_records, record_of, searched
from sabot.agents.job_view import JobState, JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.base.accounts import NOTHING, Amounts
from sabot.errors import UserError
from sabot.jobs.tree import parent_of
from sabot.journal.base import JournalReader
from sabot.journal.ended_jobs import EndedJob, EndedQuery

BLOCKED = "blocked"
"""The status that lists show for an open job that the code of today cannot continue."""


@dataclass(frozen=True, slots=True)
class JobList:
    """The jobs of a journal that a list shows.

    - `found`: the jobs that were asked for, the oldest first. Jobs of the history come before jobs of the log.
    - `known`: all jobs of the log by id, so that the states of children can be shown.
    """

    found: list[JobRecord]
    known: Mapping[str, JobRecord]


@dataclass(frozen=True, slots=True)
class JobQuery:
    """A query for a list of jobs. It selects the jobs that fulfil all conditions; "" and 0 are no condition. Times are
    in seconds since 1970.

    - `agent`: the id APP.NAME of the job's agent, or NAME alone.
    - `key`: the key of the job's record, as a text.
    - `text`: is searched in the id, the agent, the scope, the principal, the key and the error, in any letter case.
    - `since`, `until`: the job was created at the time `since` or later, and before the time `until`.
    - `after`: the cursor that the page before has returned (`JobPage.following`).
    - `blocked`: the ids of the jobs that the running app reports as blocked. Their status in the list is BLOCKED.
    """

    agent: str = ""
    scope: str = ""
    key: str = ""
    status: str = ""
    text: str = ""
    since: float = 0.0
    until: float = 0.0
    after: str = ""
    blocked: frozenset[str] = frozenset()

    def of_history(self, *, any_status: bool = False) -> EndedQuery:
        """Returns the query for the jobs in the history. If `any_status` is True, it selects jobs in any status, and
        begins at the first page.
        """
        since_ms, until_ms = round(self.since * 1000), round(self.until * 1000)
        status, after = ("", None) if any_status else (self.status, self.cursor())
        return EndedQuery(self.agent, self.scope, self.key, status, self.text, since_ms, until_ms, after)

    def status_of(self, job: JobState) -> str:
        """Returns the status that the list shows for a job of the log: BLOCKED for an open job in `blocked`, otherwise
        its own.
        """
        return BLOCKED if job.job_id in self.blocked and not job.ended else str(job.status)

    def cursor(self) -> tuple[int, str] | None:
        """Returns the place from which the page continues: the time of creation and the id of the last job on the page
        before. Returns None for the first page. Raises UserError for an invalid cursor.
        """
        at, _, job_id = self.after.partition(":")
        try:
            return (int(at), job_id) if self.after else None
        except ValueError:
            raise UserError(
                f"{self.after!r} is no cursor of a list of jobs", hint="begin with the first page"
            ) from None


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in a list.

    - `status`: the status of the record, or BLOCKED.
    - `used`: the usage of the calls of the job and of all its descendants.
    - `doubts`: the part of `used` that is an upper bound, because nobody knows whether a call has to be paid.
      Descendants in the history are left out of it.
    """

    record: JobRecord
    status: str
    used: Amounts
    doubts: Amounts


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a list of jobs.

    - `jobs`: the jobs of the page, the newest first.
    - `found`: the number of jobs on all pages.
    - `counts`: for each status, the number of jobs in this status that fulfil all conditions other than the status.
    - `following`: the cursor of the next page, or "" if this is the last one.
    """

    jobs: list[ListedJob]
    found: int
    counts: dict[str, int]
    following: str


def jobs_page(reader: JournalReader, query: JobQuery, most: int = 200) -> JobPage:
    """Returns a page of at most `most` jobs from the log and the history. Reads the log and blocks. Raises UserError
    for an invalid cursor.
    """
    return _page(reader, query, most, JobView.of(reader))


def short_jobs_page(reader: JournalReader, query: JobQuery, most: int, most_entries: int) -> JobPage | None:
    """Returns a page of jobs as `jobs_page` does, or None if the log has more than `most_entries` entries, so that
    reading it would take too long.
    """
    view = JobView(reader)
    for number, (_, entry) in enumerate(reader.read()):
        if number == most_entries:
            return None
        view.apply(entry)
    return _page(reader, query, most, view)


def _page(reader: JournalReader, query: JobQuery, most: int, view: JobView) -> JobPage:
    after, asked = query.cursor(), query.of_history(any_status=True)
    logged = {job_id: job for job_id, job in view.states.items() if job.begun}
    # jobs that have begun again: the log has their present state
    both = {job.job for job in reader.history.known(logged)}
    chosen = [job for job in logged.values() if _selects(asked, job)]
    counts = Counter(query.status_of(job) for job in chosen) + Counter(reader.history.counts(asked))
    counts.subtract(job.status for job in reader.history.known(both) if asked.selects(job))
    chosen = [
        job for job in chosen if query.status in ("", query.status_of(job)) and (after is None or _age(job) < after)
    ]
    ended = reader.history.find(query.of_history(), most + 1 + len(both))
    rows: list[JobState | EndedJob] = [*chosen, *(job for job in ended if job.job not in both)]
    rows = nlargest(most + 1, rows, key=_age)
    page = rows[:most]
    following = "{}:{}".format(*_age(page[-1])) if len(rows) > most else ""
    found = counts[query.status] if query.status else counts.total()
    return JobPage(
        _listed(reader, query, page, view), found, {name: each for name, each in counts.items() if each}, following
    )


def _selects(query: EndedQuery, job: JobState) -> bool:
    """Returns True if a job of the log fulfils the conditions of the query. Conditions that are cheap to check come
    first, because a log may have many jobs.
    """
    created_ms = round(job.created_at * 1000)
    return (
        query.agent in ("", job.agent, job.agent.rpartition(".")[2])
        and query.scope in ("", job.scope)
        and created_ms >= query.since_ms
        and (not query.until_ms or created_ms < query.until_ms)
        and (not query.key or query.key == key_text(job.key))
        and (not query.text or query.text.casefold() in searched(job.record()))
    )


def _age(job: JobState | EndedJob) -> tuple[int, str]:
    return (job.created_ms, job.job) if isinstance(job, EndedJob) else (round(job.created_at * 1000), job.job_id)


def _listed(
    reader: JournalReader, query: JobQuery, page: Sequence[JobState | EndedJob], view: JobView
) -> list[ListedJob]:
    """Returns the jobs of a page, each with the usage of itself and its descendants, which is read from the history and
    the view.
    """
    records = [record_of(job) if isinstance(job, EndedJob) else job.record() for job in page]
    parents = {record.job_id for record in records if record.children}
    used = reader.history.used_below(parents)
    doubts: dict[str, Amounts] = {}
    for each in view.states.values() if parents else ():
        above = each.job_id
        while above := parent_of(above)[0]:
            if above in parents:
                used[above] = used.get(above, NOTHING).plus(each.used)
                doubts[above] = doubts.get(above, NOTHING).plus(each.doubts)
    listed = []
    for job, record in zip(page, records, strict=True):
        status = job.status if isinstance(job, EndedJob) else query.status_of(job)
        own, own_doubts = amounts_of(record)
        job_id = record.job_id
        listed.append(
            ListedJob(record, status, own.plus(used.get(job_id, NOTHING)), own_doubts.plus(doubts.get(job_id, NOTHING)))
        )
    return listed


def find_jobs(
    reader: JournalReader, *, agent: str | None = None, scope: str | None = None, statuses: Sequence[JobStatus] = ()
) -> JobList:
    """Returns the jobs of an agent, of a scope, and in one of `statuses`. None and () set no condition. Reads the log
    and the history, and blocks.

    `agent` is the id APP.NAME, or NAME alone for the agents of this name in all apps. Raises UserError if no agent of
    the journal has this id or name.
    """
    known = {job.job_id: job for job in JobView.of(reader).seen()}
    kept = ended_records(reader, EndedQuery(agent or "", scope or ""), statuses, known)
    agents = None
    if agent is not None:
        logged = {job.agent for job in known.values() if job.agent} | {job.agent for job in kept}
        agents = _agents_named(agent, logged, reader.where)
    found = [
        job
        for job in known.values()
        if (agents is None or job.agent in agents)
        and scope in (None, job.scope_id)
        and (not statuses or job.status in statuses)
    ]
    return JobList([*reversed(kept), *found], known)


def _agents_named(word: str, known: Collection[str], where: str) -> set[str]:
    """Returns the ids of the agents that `word` names: `word` itself if it is an id, or else all ids APP.NAME where
    NAME is `word`. Raises UserError if no agent in `known` has this id or name. `where` names the journal in the
    message.
    """
    found = {word} & set(known) or {each for each in known if each.rpartition(".")[2] == word}
    if not found:
        raise UserError(
            f"{where} has no job of an agent {word}",
            hint=f"it has jobs of {', '.join(sorted(known))}" if known else "it has no job of any agent",
        )
    return found
