"""Makes the entries by which a store changes its jobs and actions, and refuses changes that are not allowed. All stores
that keep entries use it.
"""

import math
import secrets
import uuid
from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from sabot.agents.actions import ActionSpec
from sabot.agents.context import checked_word
from sabot.agents.jobs import ENDS, JobRecord, JobSpec, JobStatus, check_move, no_job
from sabot.engine.calls.effects import digest
from sabot.errors import IdempotencyConflict, IllegalTransition, UserError
from sabot.jobs.values import in_order
from sabot.journal.entries import Attempt, Begin, End, Intent

_MOST_MS = 1e18  # the longest time-out, 31 million years: databases hold no number above 2^63


def as_json(value: object, what: str) -> bytes:
    """Encodes a value as JSON. Raises UserError for a value that JSON cannot represent. `what` is the name of the value
    in the error message.
    """
    data = shown_json(value, what)
    if b"null" in data and (number := _no_number(msgspec.to_builtins(in_order(value)))) is not None:
        raise UserError(
            f"{what} cannot be written as JSON: {number} is no number of JSON, which would read it as null",
            hint="give a number, or a text",
        )
    return data


def shown_json(value: object, what: str) -> bytes:
    """Encodes as `as_json` does, but for a reader: numbers that JSON does not have (NaN, infinities) are null."""
    try:
        return msgspec.json.encode(in_order(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{what} cannot be written as JSON: {error}") from error


def _no_number(value: object) -> float | None:
    """Returns a number within a value of plain types that JSON does not have, or None if it has all of them."""
    match value:
        case float():
            return None if math.isfinite(value) else value
        case dict():
            inner: Iterable[object] = value.values()
        case list() | tuple():
            inner = value
        case _:
            return None
    return next((found for each in inner if (found := _no_number(each)) is not None), None)


def name_of(spec: JobSpec) -> str:
    """Returns the id for the job that `spec` describes. Two specs with the same scope and the same idempotency key have
    the same job id. So a store recognizes a repeated request, as long as it keeps the job. A spec without a key gets a
    random id.
    """
    if not spec.idempotency_key:
        return f"job-{uuid.uuid4().hex}"
    name = f"{spec.scope_id}\0{spec.idempotency_key}"
    return f"job-{blake2b(name.encode(), digest_size=16).hexdigest()}"


def digest_of(spec: JobSpec, key: bytes) -> bytes:
    """Returns the digest of those fields of a spec that must be equal in two specs with the same idempotency key
    (`JobSpec.content`). `key` is the secret key with which the digest is made. Raises UserError for a value that JSON
    cannot represent.
    """
    try:
        content = msgspec.to_builtins(spec.content, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"the job cannot be written as JSON: {error}") from error
    return digest(key, "job", "", content)


def check_same(job_id: str, spec: JobSpec, content: bytes, before: bytes) -> None:
    """Compares a new spec with the spec of the existing job `job_id`, which has the same idempotency key. `content` is
    the digest of the new spec, and `before` is that of the old one. Raises IdempotencyConflict if they differ.
    """
    if content != before:
        raise IdempotencyConflict(
            f"idempotency key {spec.idempotency_key!r} of scope {spec.scope_id} is that of job {job_id}, with other content",
            hint="give this job another key, or ask for the same",
        )


def begin_entry(job_id: str, spec: JobSpec, content: bytes, now_ms: int) -> Begin:
    """Returns the BEGIN entry of a new job, which contains its spec. `content` is the digest of the spec (`digest_of`),
    and `now_ms` is the time in milliseconds since 1970. Raises UserError for a value that JSON cannot represent.
    """
    return Begin(
        job_id,
        now_ms,
        body=as_json(spec, "the job"),
        digest=content,
        scope=spec.scope_id,
        principal=spec.principal_id,
        session=spec.session_id,
    )


def move_entry(
    job: JobRecord | None, job_id: str, status: JobStatus, now_ms: int, result_ref: str, error: str
) -> Attempt | End:
    """Returns the journal entry that gives a job the status `status`: an ATTEMPT for RUNNING, and an END for any status
    in which a job ends. The END contains `result_ref`, or `error` if that is "". `now_ms` is the time in milliseconds
    since 1970. Raises IllegalTransition if the job may not change from its present status to this one, and UserError if
    `job` is None.
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
    """Returns the INTENT entry by which a job asks the question `spec`.

    - `job`: the job, or None if the store does not have it. Then its status is not checked.
    - `ordinal`: the ordinal that the question gets in the job.
    - `now_ms`: the time in milliseconds since 1970.
    - `key`: the secret key with which the digest of the question is made.

    Raises IllegalTransition if the job neither runs nor waits for another answer.
    """
    if job is not None and job.status is not JobStatus.WAITING_ACTION:  # a waiting job may ask further questions
        check_move(spec.job_id, job.status, JobStatus.WAITING_ACTION)
    seconds = spec.timeout_seconds
    due_ms = 0 if seconds is None else now_ms + round(min(float(seconds) * 1000, _MOST_MS))  # type: ignore[arg-type]
    payload = as_json(spec.payload, "payload")
    asked = digest(key, "ask", spec.type, spec.payload)
    token = secrets.token_hex(20)  # hexadecimal, so that it never begins with "-" on a command line
    return Intent(spec.job_id, now_ms, ordinal, "ask", spec.type, asked, "", payload, token, due_ms)
