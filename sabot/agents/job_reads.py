"""Reads of the jobs of a journal that return records: the command line and the page of an app only render them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sabot.agents.actions import ActionRecord
from sabot.agents.entry_values import value_of
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.errors import UserError
from sabot.journal.base import JournalReader
from sabot.journal.entries import Begin, End


@dataclass(frozen=True, slots=True)
class JobList:
    """The jobs of a journal that a list shows.

    `found`: the jobs that were asked for, the oldest first. `known`: all jobs of the journal by id, for the states of children.
    """

    found: list[JobRecord]
    known: Mapping[str, JobRecord]


@dataclass(frozen=True, slots=True)
class JobDetails:
    """One job with its actions and, if it is a job of an agent, its values.

    `values`: the decoded input under "input" and, if the job has succeeded, the output under "output".
    """

    record: JobRecord
    actions: list[ActionRecord] = field(default_factory=list)
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobPage:
    """One page of a list of jobs.

    `jobs`: the jobs of the page, the newest first. `found`: the number of jobs on all pages. `counts`: the number of jobs by status, in
    any status, that the other conditions select. `following`: the cursor of the next page, or "" if there is none.
    """

    jobs: list[JobRecord]
    found: int
    counts: Mapping[str, int]
    following: str


def jobs_page(
    reader: JournalReader,
    *,
    agent: str = "",
    scope: str = "",
    status: str = "",
    text: str = "",
    since: float = 0.0,
    after: str = "",
    most: int = 200,
) -> JobPage:
    """Returns a page of the jobs that all conditions select; "" and 0 stand for all. Reads the whole journal and blocks.

    `agent`: the id APP.NAME, or NAME alone. `text`: a text in the id, the agent, the scope or the principal, in any letter case.
    `since`: the earliest time at which a job was created, in seconds since 1970. `after`: the cursor of this page, from the page before.
    `most`: the number of jobs of a page.
    """
    wanted = text.casefold()
    selected = [
        job
        for job in JobView.of(reader).seen()
        if agent in ("", job.agent, job.agent.rpartition(".")[2])
        and scope in ("", job.scope_id)
        and job.created_at >= since
        and wanted in "\n".join((job.job_id, job.agent, job.scope_id, job.principal_id)).casefold()
    ]
    counts = Counter(str(job.status) for job in selected)
    found = sorted((job for job in selected if status in ("", job.status)), key=_age, reverse=True)
    at, _, last = after.partition(":")
    rest = found
    if after:
        try:
            rest = [job for job in found if _age(job) < (float(at), last)]
        except ValueError:
            raise UserError(f"{after!r} is no cursor of a list of jobs", hint="begin with the first page") from None
    page = rest[:most]
    following = f"{page[-1].created_at!r}:{page[-1].job_id}" if len(rest) > most else ""
    return JobPage(page, len(found), dict(counts), following)


def _age(job: JobRecord) -> tuple[float, str]:
    return job.created_at, job.job_id


def find_jobs(
    reader: JournalReader, *, agent: str | None = None, scope: str | None = None, statuses: Sequence[JobStatus] = ()
) -> JobList:
    """Returns the jobs of an agent, of a scope and in one of `statuses`; None and () stand for all. Reads the whole journal and blocks.

    `agent`: the id APP.NAME, or NAME alone for the agents of this name in all apps. Raises UserError if no agent of the journal has it.
    """
    known = {job.job_id: job for job in JobView.of(reader).seen()}
    agents = None
    if agent is not None:
        agents = _agents_named(agent, {job.agent for job in known.values() if job.agent}, reader.where)
    found = [
        job
        for job in known.values()
        if scope in (None, job.scope_id)
        and (agents is None or job.agent in agents)
        and (not statuses or job.status in statuses)
    ]
    return JobList(found, known)


def job_details(reader: JournalReader, job_id: str) -> JobDetails:
    """Returns one job. Reads its entries and blocks. Raises UserError if the journal does not have the job."""
    known = JobView.of(reader, job_id)
    record = known.job(job_id)
    if record is None:
        raise UserError(f"{reader.where} has no job {job_id}", hint="sabot jobs list shows the jobs")
    values = _input_and_output(reader, job_id) if record.agent else {}
    return JobDetails(record, list(known.actions.values()), values)


def _agents_named(word: str, known: Collection[str], where: str) -> set[str]:
    """Returns the ids of the agents that `word` names: the id `word` itself, or all ids APP.NAME where NAME is `word`.

    Raises UserError if no agent of the journal has this id or name.
    """
    found = {word} & set(known) or {each for each in known if each.rpartition(".")[2] == word}
    if not found:
        raise UserError(
            f"{where} has no job of an agent {word}",
            hint=f"it has jobs of {', '.join(sorted(known))}" if known else "it has no job of any agent",
        )
    return found


def _input_and_output(reader: JournalReader, job_id: str) -> dict[str, Any]:
    """Returns the input of an agent's job and, if the job has succeeded, its output."""
    found: dict[str, Any] = {}
    for _, entry in reader.read(job_id):
        if isinstance(entry, Begin):
            found = {"input": value_of(entry, reader.load(entry.body))}
        elif isinstance(entry, End) and entry.outcome == JobStatus.SUCCEEDED:
            found["output"] = value_of(entry, reader.load(entry.body))
    return found
