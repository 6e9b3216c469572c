"""Makes the entries by which a store changes its jobs and actions, and refuses changes that are not allowed. All stores
that keep entries use it.
"""

import secrets
import uuid
from hashlib import blake2b

import msgspec

from sabot.agents.actions import ActionSpec
from sabot.agents.context import checked_word
from sabot.agents.jobs import ENDS, JobRecord, JobSpec, JobStatus, check_move, no_job
from sabot.errors import IdempotencyConflict, IllegalTransition, UserError
from sabot.journal.effects import digest
from sabot.journal.entries import Attempt, Begin, End, Intent

_MOST_MS = 1e18  # the longest time-out, 31 million years: databases hold no number above 2^63


def as_json(value: object, what: str) -> bytes:
    """Encodes a value as JSON. Raises UserError for a value that JSON cannot represent."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{what} cannot be written as JSON: {error}") from error


def name_of(spec: JobSpec) -> str:
    """Returns the job id for a spec. Specs with the same idempotency key and scope have the same id, so a store finds
    the job as long as it keeps ended jobs.
    """
    if not spec.idempotency_key:
        return f"job-{uuid.uuid4().hex}"
    name = f"{spec.scope_id}\0{spec.idempotency_key}"
    return f"job-{blake2b(name.encode(), digest_size=16).hexdigest()}"


def digest_of(spec: JobSpec, key: bytes) -> bytes:
    """Returns a digest of the content of a spec (`JobSpec.content`), which must be equal in specs with the same
    idempotency key. `key` is the key of the digests. Raises UserError for a value that JSON cannot represent.
    """
    try:
        content = msgspec.to_builtins(spec.content, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"the job cannot be written as JSON: {error}") from error
    return digest(key, "job", "", content)


def check_same(job_id: str, spec: JobSpec, content: bytes, before: bytes) -> None:
    """Raises IdempotencyConflict if a new spec differs from that of an existing job with the same idempotency key.
    `content` is the digest of the new spec, and `before` that of the existing job's spec.
    """
    if content != before:
        raise IdempotencyConflict(
            f"idempotency key {spec.idempotency_key!r} of scope {spec.scope_id} is that of job {job_id}, with other content",
            hint="give this job another key, or ask for the same",
        )


def begin_entry(job_id: str, spec: JobSpec, content: bytes, now_ms: int) -> Begin:
    """Returns the entry that begins a job. Raises UserError for a value that JSON cannot represent."""
    return Begin(job_id, now_ms, body=as_json(spec, "the job"), digest=content)


def move_entry(
    job: JobRecord | None, job_id: str, status: JobStatus, now_ms: int, result_ref: str, error: str
) -> Attempt | End:
    """Returns the entry that gives a job the status `status`. Raises IllegalTransition if the job may not change from
    its present status to this one, and UserError if `job` is None.
    """
    if job is None:
        raise no_job(job_id)
    check_move(job_id, job.status, status)
    if JobStatus.WAITING_ACTION in (status, job.status) and status not in ENDS:
        raise IllegalTransition(
            f"job {job_id} is {job.status}: it waits while an action of it is open, and for nothing else",
            hint="ask with ActionManager.require_action, and resolve it",
        )
    if status is JobStatus.RUNNING:
        return Attempt(job_id, now_ms, 0, 1)
    return End(job_id, now_ms, status, checked_word(result_ref or error, "result_ref, error"))


def question_entry(job: JobRecord | None, ordinal: int, spec: ActionSpec, now_ms: int, key: bytes) -> Intent:
    """Returns the entry by which a job asks a question. `ordinal` is the ordinal of the question in the job, and `job`
    is None if the store does not know the job. Raises IllegalTransition if the job does not run.
    """
    if job is not None and job.status is not JobStatus.WAITING_ACTION:  # a waiting job may ask further questions
        check_move(spec.job_id, job.status, JobStatus.WAITING_ACTION)
    seconds = spec.timeout_seconds
    due_ms = 0 if seconds is None else now_ms + round(min(float(seconds) * 1000, _MOST_MS))  # type: ignore[arg-type]
    payload = as_json(spec.payload, "payload")
    asked = digest(key, "ask", spec.type, spec.payload)
    token = secrets.token_hex(20)  # hexadecimal, so that it never begins with "-" on a command line
    return Intent(spec.job_id, now_ms, ordinal, "ask", spec.type, asked, "", payload, token, due_ms)
