"""Reads the jobs of a journal, and returns records. The command line and the page of an app only render these records."""

import re
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

_MOMENT = re.compile(r"-?\d{1,18}", re.ASCII)  # in ms; more digits have no place in 64 bits
BLOCKED = "blocked"
"""The status that lists show for an open job that the code of today cannot continue."""


@dataclass(frozen=True, slots=True)
class JobList:
    """The jobs of a journal that a search has found.

    - `found`: the jobs that fulfil the conditions of the search. Jobs in the journal's table of ended jobs come first.
      Within each part, the oldest job is the first.
    - `known`: all jobs whose entries are still in the journal's log, by id. With it, a list can also show the states of
      child jobs.
    """

    found: list[JobRecord]
    known: Mapping[str, JobRecord]


@dataclass(frozen=True, slots=True)
class JobQuery:
    """A query for a list of jobs. It selects the jobs that fulfil all conditions; "" and 0 are no condition. Times are
    in seconds since 1970.

    - `agent`: the id APP.NAME of the job's agent, or NAME alone.
    - `scope`, `status`: the tenant and the status of the job.
    - `key`: the key of the job's record, as a text.
    - `text`: a text that occurs in the id, the agent, the scope, the principal, the key or the error. Upper and lower
      case are equal.
    - `since`, `until`: the job was created at the time `since` or later, and before the time `until`.
    - `after`: the cursor of the page, from `JobPage.following` of the page before; "" for the first page.
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
        """Returns this query in the form for the journal's table of ended jobs. With `any_status=True` the conditions
        on the status and the page are left out, for example in order to count the jobs on all pages.
        """
        since_ms, until_ms = round(self.since * 1000), round(self.until * 1000)
        status, after = ("", None) if any_status else (self.status, self.cursor())
        return EndedQuery(self.agent, self.scope, self.key, status, self.text, since_ms, until_ms, after)

    def status_of(self, job: JobState) -> str:
        """Returns the status of a job that the list shows: BLOCKED for an open job whose id is in `blocked`, otherwise
        the job's own status.
        """
        return BLOCKED if job.job_id in self.blocked and not job.ended else str(job.status)

    def cursor(self) -> tuple[int, str] | None:
        """Returns the decoded cursor `after`: the time at which the last job of the page before was created, in
        milliseconds since 1970, and the id of that job. Returns None for the first page. Raises UserError for an
        invalid cursor.
        """
        if not self.after:
            return None
        at, _, job_id = self.after.partition(":")
        if not _MOMENT.fullmatch(at):
            raise UserError(f"{self.after!r} is no cursor of a list of jobs", hint="begin with the first page")
        return int(at), job_id


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A row in a list of jobs.

    - `record`: the job.
    - `status`: the status of the record, or BLOCKED if the running app reports the job as blocked.
    - `used`: the usage of the calls of the job and of all its descendants.
    - `doubts`: the part of `used` that is only an upper bound, because nobody knows whether a call has to be paid.
      Descendants in the journal's table of ended jobs are not included in it.
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
    - `counts`: for each status, the number of jobs that have it and that fulfil the other conditions of the query.
    - `following`: the cursor of the next page (`JobQuery.after`), or "" if this is the last page.
    """

    jobs: list[ListedJob]
    found: int
    counts: dict[str, int]
    following: str


def jobs_page(reader: JournalReader, query: JobQuery, most: int = 200) -> JobPage:
    """Returns a page of at most `most` jobs that the query selects. Reads the whole log of the journal, and a part of
    its table of ended jobs. Blocks the thread. Raises UserError for an invalid cursor.
    """
    return _page(reader, query, most, JobView.of(reader))


def short_jobs_page(reader: JournalReader, query: JobQuery, most: int, most_entries: int) -> JobPage | None:
    """Returns a page of at most `most` jobs as `jobs_page` does. Returns None if the log of the journal has more than
    `most_entries` entries, because reading them would take too long.
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
    """Returns True if a job fulfils the conditions of the query, except the condition on its status. Conditions that
    are cheap to check are checked first, because a log may have many jobs.
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
    """Returns the rows of a page of jobs. The usage in each row includes that of the job's descendants. It is computed
    from the journal's table of ended jobs and from `view`.
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
    """Returns the jobs that fulfil all conditions: they belong to the agent and the scope, and are in one of
    `statuses`. None and () are no condition. Reads the log of the journal and its table of ended jobs, and blocks the
    thread.

    `agent` is the id APP.NAME of an agent, or NAME alone for the agents with this name in all apps. Raises UserError if
    the journal has no job of such an agent.
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
    """Returns the ids in `known` of the agents that `word` names: `word` itself if it is an id, otherwise all ids
    APP.NAME where NAME is `word`. Raises UserError if there is none. `where` names the journal in the error message.
    """
    found = {word} & set(known) or {each for each in known if each.rpartition(".")[2] == word}
    if not found:
        raise UserError(
            f"{where} has no job of an agent {word}",
            hint=f"it has jobs of {', '.join(sorted(known))}" if known else "it has no job of any agent",
        )
    return found
