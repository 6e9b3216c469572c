"""Jobs that have ended, in the history of a journal. A job is kept there as a row, which is made of its entries, and
from which its record is made again.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec

from sabot.agents.job_view import JobView
from sabot.agents.jobs import ENDS, JobRecord, JobStatus
from sabot.base.accounts import Amounts
from sabot.base.config import parse_keep
from sabot.errors import CorruptJournal, UserError
from sabot.journal.base import JobKeeping, JournalReader
from sabot.journal.ended_jobs import MOST_CHARS, EndedJob, JobQuery, cursor_of, cut, dollars_of, nanodollars_of

_MOST_TOKENS = 2**62
_PAGE = 1_000


class _KeptRecord(msgspec.Struct, frozen=True, array_like=True):
    """The fields of an ended job's record that have no column of their own in its row; they are stored together in one
    column. New fields are only added at the end, with a default, so that old rows can be read.
    """

    principal: str = ""
    started_at: float | None = None
    completed_at: float | None = None
    ran_seconds: float = 0.0
    attempt: int = 1
    effects: int = 0
    children: int = 0
    result_ref: str = ""
    error: str = ""
    origin: tuple[str, str] | None = None
    doubt_tokens: int = 0
    doubt_nanodollars: int = 0


def job_keeping(keep: str) -> JobKeeping | None:
    """Returns the rule by which the journal of an app keeps ended jobs. `keep` is the setting `keep_jobs` of the app:
    "30d, 512MB" means 30 days and at most 512 MB. Returns None for "none": then no ended jobs are kept. Raises
    UserError for a text of another form.
    """
    parsed = parse_keep(keep, name="keep_jobs")
    return None if parsed is None else JobKeeping(ended_job, parsed.seconds, parsed.most_bytes)


def ended_job(reader: JournalReader, job_id: str) -> EndedJob | None:
    """Returns the row that the journal's table of ended jobs stores for a job. Returns None if the journal no longer
    has the job's BEGIN entry. Reads the entries of the job, and blocks the thread.

    If an entry cannot be read, no error is raised; the returned row has the status "failed" and the error. So a damaged
    job does not prevent the removal of old entries from the journal.
    """
    view, last_ms = JobView(reader), 0
    try:
        for _, entry in reader.history.entries(job_id):
            view.apply(entry)
            last_ms = entry.at_ms
        record = view.job(job_id)
    except (CorruptJournal, UserError) as error:
        message = f"its entries cannot be read: {error.message}"
        record = JobRecord(job_id=job_id, scope_id="", status=JobStatus.FAILED, error=message)
    if record is None:
        return None
    origin = record.metadata.get("restored")
    kept = _KeptRecord(
        record.principal_id,
        record.started_at,
        record.completed_at,
        record.ran_seconds,
        record.attempt,
        record.effects,
        record.children,
        record.result_ref,
        record.error[:MOST_CHARS],
        None if origin is None else (origin["job"], origin["checkpoint"]),
        min(record.doubt_tokens, _MOST_TOKENS),
        min(nanodollars_of(record.doubt_dollars), _MOST_TOKENS),
    )
    return EndedJob(
        job_id,
        record.agent,
        record.agent.rpartition(".")[2],
        cut(record.scope_id),
        cut(record.key),
        str(record.status),
        round(record.created_at * 1000),
        last_ms if record.completed_at is None else round(record.completed_at * 1000),
        searched(record),
        min(record.tokens, _MOST_TOKENS),
        min(nanodollars_of(record.dollars), _MOST_TOKENS),
        msgspec.msgpack.encode(kept),
        cut(record.session_id),
    )


def record_of(job: EndedJob) -> JobRecord:
    """Returns the record of an ended job, made from its row in the journal's table of ended jobs."""
    kept = msgspec.msgpack.decode(job.record, type=_KeptRecord)
    restored = None if kept.origin is None else {"job": kept.origin[0], "checkpoint": kept.origin[1]}
    return JobRecord(
        job_id=job.job,
        scope_id=job.scope,
        principal_id=kept.principal,
        session_id=job.session,
        status=JobStatus(job.status),
        created_at=job.created_ms / 1000,
        updated_at=job.ended_ms / 1000,
        started_at=kept.started_at,
        completed_at=kept.completed_at,
        ran_seconds=kept.ran_seconds,
        metadata={} if restored is None else {"restored": restored},
        result_ref=kept.result_ref,
        error=kept.error,
        agent=job.agent,
        attempt=kept.attempt,
        effects=kept.effects,
        key=job.key,
        children=kept.children,
        tokens=job.tokens,
        dollars=dollars_of(job.nanodollars),
        doubt_tokens=kept.doubt_tokens,
        doubt_dollars=dollars_of(kept.doubt_nanodollars),
    )


def ended_records(
    reader: JournalReader, query: JobQuery, statuses: Sequence[str], without: Collection[str] = ()
) -> list[JobRecord]:
    """Returns the records of the ended jobs that a query selects, the newest first. Only jobs in one of `statuses` are
    returned; () means all. Jobs whose ids are in `without` are left out. Reads the journal's table of ended jobs, and
    blocks the thread.
    """
    if statuses and not ENDS.intersection(statuses):
        return []
    found: list[JobRecord] = []
    while page := reader.history.find(query, _PAGE):
        rows = [job for job in page if job.job not in without and (not statuses or job.status in statuses)]
        found += map(record_of, rows)
        query = replace(query, after=cursor_of(page[-1].created_ms, page[-1].job))
    return found


def amounts_of(job: JobRecord) -> tuple[Amounts, Amounts]:
    """Returns two amounts of tokens and dollars: the usage of all calls that the job itself has made, and the part of
    that usage which is only an upper bound. The usage of child jobs is not included.
    """
    return Amounts(job.tokens, job.dollars), Amounts(job.doubt_tokens, job.doubt_dollars)


def searched(record: JobRecord) -> str:
    """Returns the text in which `JobQuery.text` is searched: the ids, the key and the error of a job, in lower case."""
    texts = record.job_id, record.agent, record.scope_id, record.principal_id, record.key, record.error
    return "\n".join(map(cut, texts)).casefold()
