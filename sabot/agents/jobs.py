"""Jobs: their requests, their status, and how they ended.

   queued ──▶ running ◀──▶ waiting_action
      │          │               │
      ▼          ▼               ▼
   cancelled   succeeded       failed       an end is final
   timed_out   failed          cancelled
               cancelled       timed_out
               timed_out

A `JobStore` keeps jobs. The stores of Sabot keep them in a journal (`store.JournalStore`). Programs use `JobManager`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sabot.agents.context import (
    BudgetSpec,
    ExecutionContext,
    PolicyRef,
    RunVersions,
    check_request,
    checked_fields,
    checked_word,
)
from sabot.base.checks import TEXTS, Of, check, check_called, is_number
from sabot.base.options import answers_wrong_options
from sabot.clock import Clock
from sabot.errors import IdempotencyConflict, IllegalTransition, UserError
from sabot.jobs.url_ids import stored_id, url_id

OnEvent = Callable[[str, Mapping[str, Any]], None]
"""A function that is called on the event loop with the name of an event and its data. If it raises an error, the method
that caused the event raises it.
"""


class JobStatus(StrEnum):
    """The status of a job. SUCCEEDED, FAILED, CANCELLED and TIMED_OUT are final. WAITING_ACTION means that the job
    waits for the answer of a person.
    """

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_ACTION = "waiting_action"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


ENDS = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT})

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.TIMED_OUT}),
    JobStatus.RUNNING: frozenset({JobStatus.WAITING_ACTION, *ENDS}),
    JobStatus.WAITING_ACTION: frozenset(
        {JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT}
    ),
    **{end: frozenset() for end in ENDS},
}

# made once, since their checks took most of the time of a long list
_NO_LIMITS, _NO_VERSIONS = BudgetSpec(), RunVersions()


def no_job(job_id: str) -> UserError:
    """Returns the error for an id that no job has."""
    return UserError(
        f"job {job_id}: there is none of this name",
        hint="`find` lists the jobs, as does `sabot jobs list`; a job that ended long ago is forgotten",
    )


def check_move(job_id: str, before: JobStatus, after: JobStatus) -> None:
    """Raises IllegalTransition if a job may not change from the status `before` to the status `after`."""
    if after not in TRANSITIONS[before]:
        allowed = ", ".join(sorted(TRANSITIONS[before]))
        raise IllegalTransition(
            f"job {job_id} is {before}, and cannot become {after}",
            hint=f"from {before} it may become {allowed}" if allowed else f"{before} is an end",
        )


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The specification of a new job.

    - `scope_id`, `principal_id`, `session_id`: the tenant, the actor and the conversation.
    - `run_id`: an id that the caller can give to several jobs in order to mark that they belong together.
    - `idempotency_key`: if a job with the same key already exists in the scope, no second job is made. If that job has
      other content, IdempotencyConflict is raised. `run_id`, `versions` and `deadline` do not belong to the content.
    - `deadline`: the time, in seconds since 1970, after which the job is timed out, even if it has not started; None
      sets no limit.
    - `metadata`, `tags`: must be JSON.
    """

    scope_id: str
    principal_id: str = ""
    session_id: str = ""
    run_id: str = ""
    idempotency_key: str = ""
    budgets: BudgetSpec = field(default_factory=BudgetSpec)
    policy_ref: PolicyRef | None = None
    versions: RunVersions = field(default_factory=RunVersions)
    metadata: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    deadline: float | None = None

    def __post_init__(self) -> None:
        check_request(self, "session_id", "idempotency_key")
        if self.deadline is not None and not (is_number(self.deadline) and 0 <= self.deadline < math.inf):
            raise UserError(f"deadline={self.deadline!r}: seconds since 1970 are wanted, as `clock.time()` gives them")
        checked_fields(self.tags, "tags")

    @classmethod
    def of(cls, context: ExecutionContext, *, idempotency_key: str = "", deadline: float | None = None) -> "JobSpec":
        """Returns a JobSpec with the scope, actor, limits, policy, versions and metadata of `context`."""
        return cls(
            scope_id=context.scope_id,
            principal_id=context.principal_id,
            session_id=context.session_id,
            run_id=context.run_id,
            idempotency_key=idempotency_key,
            budgets=context.budgets,
            policy_ref=context.policy_ref,
            versions=context.versions,
            metadata=dict(context.metadata),
            deadline=deadline,
        )

    @property
    def content(self) -> dict[str, Any]:
        """The fields that must be equal in two specs with the same idempotency key."""
        names = ("scope_id", "principal_id", "session_id", "budgets", "policy_ref", "metadata", "tags")
        return {**{name: getattr(self, name) for name in names}, "budgets": self.budgets.content}


@dataclass(frozen=True, slots=True)
class OpenEffect:
    """An effect of an agent's job that has no result yet. Times are in seconds since 1970.

    - `kind`: "call", "recall", "ask", "sleep", "wait" or "child".
    - `name`: the name of the tool, the type of the question, the name of the signal, or the id of the agent.
    - `asked_at`: the time at which the job requested the effect.
    - `due_at`: the time at which a timer ends or a question expires; None if there is no such time.
    - `in_doubt`: True while a person is asked whether the effect was made.
    - `needs_approval`: True while a person is asked whether the effect may be made.
    """

    ordinal: int
    kind: str
    name: str
    asked_at: float
    due_at: float | None = None
    in_doubt: bool = False
    needs_approval: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """The state of a job at the time of reading. Times are in seconds since 1970.

    - `result_ref`: the text that the caller of `JobManager.complete` has given, from which the program can find the
      result of the job.
    - `error`: the reason of a failure, a cancel or a time-out.
    - `ran_seconds`: the number of seconds that the job had run at the time `updated_at`.

    Only the job of a durable agent has values in these fields:

    - `agent`: the id of the agent.
    - `attempt`: the number of the attempt, from 1.
    - `effects`: the number of effects that the job has requested.
    - `open`: the effects that have no result yet, the last one first.
    - `key`: the key of the job's record, as a text.
    - `children`: the number of jobs that the job has begun.
    - `tokens`, `dollars`: the usage of the job's own calls, as it counts in budgets. Without budgets it is the usage
      that the answers of models report.
    - `doubt_tokens`, `doubt_dollars`: the part of that usage which is only an upper bound, because nobody knows whether
      a call has to be paid.
    - `blocked`: the reason why the present code of the agent cannot continue the job, or "". Its status stays as it was.
    - `waits`: why a queued job does not begin yet, as far as the reader of the journal knows it, or "".
    - `worker`: the number of the worker that holds the open job, in a journal that several share (`sabot jobs list` has their
      processes). 0 if none holds it, and in other journals.
    """

    job_id: str
    scope_id: str
    principal_id: str = ""
    session_id: str = ""
    run_id: str = ""
    status: JobStatus = JobStatus.QUEUED
    created_at: float = 0.0
    updated_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    deadline: float | None = None
    ran_seconds: float = 0.0
    budgets: BudgetSpec = _NO_LIMITS
    policy_ref: PolicyRef | None = None
    versions: RunVersions = _NO_VERSIONS
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str = ""
    result_ref: str = ""
    error: str = ""
    agent: str = ""
    attempt: int = 1
    effects: int = 0
    open: tuple[OpenEffect, ...] = ()
    key: str = ""
    children: int = 0
    tokens: int = 0
    dollars: Decimal = Decimal(0)
    doubt_tokens: int = 0
    doubt_dollars: Decimal = Decimal(0)
    blocked: str = ""
    waits: str = ""
    worker: int = 0

    @property
    def url_id(self) -> str:
        """The id of the job in a form that is one part of a URL: without a slash, or any character that URLs escape."""
        return url_id(self.job_id)

    @property
    def ended(self) -> bool:
        """True if the job has a final status."""
        return self.status in ENDS

    def ran_until(self, now: float) -> float:
        """Returns the number of seconds that the job has run until the time `now` (seconds since 1970). If `now` is
        before `updated_at`, because the clock was set back, returns `ran_seconds`.
        """
        running = max(0.0, now - self.updated_at) if self.status is JobStatus.RUNNING else 0.0
        return self.ran_seconds + running

    def overdue(self, now: float) -> str:
        """Returns a description of the time limit that the job has exceeded at the time `now` (seconds since 1970): its
        deadline, or the running time of its budget. Returns "" if it has exceeded none, or has ended. Also returns "" for
        the job of an agent: the app or the kernel that runs it ends it.
        """
        if self.ended or self.agent:
            return ""
        if self.deadline is not None and now > self.deadline:
            return "its deadline has passed"
        most = self.budgets.max_runtime_seconds
        if most is not None and self.ran_until(now) > most:
            return f"it has run longer than {most:g} s"
        return ""


class JobStore(ABC):
    """A store of jobs. Only one event loop may use a store object. If the store is durable, each method returns only
    when its changes are durable.
    """

    clock: Clock

    @abstractmethod
    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        """Stores a new job with the status `queued`. Returns the job and True.

        If the scope already has a job with the same idempotency key, stores nothing, and returns that job and False.
        This is also certain if two calls come at the same time. Raises IdempotencyConflict if the existing job has
        other content.
        """

    @abstractmethod
    async def get(self, job_id: str) -> JobRecord | None:
        """Returns the present state of the job with this id, or None if there is no such job."""

    @abstractmethod
    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        """Changes the status of a job, and returns the job. `result_ref` is stored for a job that succeeds, and `error`
        for one that ends in another way. Raises IllegalTransition if the job may not change to this status, and
        UserError for an unknown job.
        """

    @abstractmethod
    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        """Returns the jobs of a scope, or of all scopes if `scope_id` is None, in the order in which they were created.
        Only jobs in one of `statuses` are returned; () means all.
        """


@answers_wrong_options
class JobManager:
    """A manager of the jobs in a store. If the store keeps them in a journal on disk, the jobs survive the process.

    `on_event` is called as `on_event(name, data)` when a job with an idempotency key is created. The name is
    "idempotency.start" for a new job, "idempotency.hit" if the job existed already, and "idempotency.conflict" if it
    existed with other content. `data` is a dict with scope_id, idempotency_key and job_id, which is "" for a conflict.

    The manager uses the clock of the store. A job is timed out if its deadline is over, or if it has run longer than
    its budget allows. This happens when the job is next read by its id, or when `expire` is called.
    """

    def __init__(self, store: JobStore, *, on_event: OnEvent | None = None) -> None:
        check_called("JobManager", on_event=on_event)
        check("JobManager: store", store, Of(JobStore, "an InMemoryJobStore, a PostgresJobStore, a JournalStore"))
        self.store = store
        self._on_event = on_event

    async def create(self, spec: JobSpec) -> JobRecord:
        """Stores a new job with the status `queued`, and returns it. If the scope already has a job with the same
        idempotency key, returns that job instead. Raises IdempotencyConflict if the existing job has other content.
        """
        check("create: spec", spec, Of(JobSpec, "JobSpec(scope_id=…)"))
        try:
            record, new = await self.store.create(spec)
        except IdempotencyConflict:
            self._fire("conflict", spec, "")
            raise
        if spec.idempotency_key:
            self._fire("start" if new else "hit", spec, record.job_id)
        return record

    def _fire(self, event: str, spec: JobSpec, job_id: str) -> None:
        if self._on_event is not None:
            facts = {"scope_id": spec.scope_id, "idempotency_key": spec.idempotency_key, "job_id": job_id}
            self._on_event(f"idempotency.{event}", facts)

    async def get(self, job_id: str) -> JobRecord:
        """Returns the present state of the job with this id, which may be in the form for URLs (`JobRecord.url_id`).
        Times the job out first if it has exceeded its deadline or its running time. Raises UserError for an unknown job.
        """
        record = await self.store.get(checked_word(job_id, "job_id"))
        if record is None and (other := stored_id(job_id)) != job_id:
            record = await self.store.get(other)
        if record is None:
            raise no_job(job_id)
        job_id = record.job_id
        if why := record.overdue(self.store.clock.time()):
            try:
                return await self.store.move(job_id, JobStatus.TIMED_OUT, error=why)
            except IllegalTransition:  # the job has ended meanwhile
                return await self.store.get(job_id) or record
        return record

    async def start(self, job_id: str) -> JobRecord:
        """Marks a queued job as running, and returns it. A job whose deadline has passed is timed out first. Raises
        IllegalTransition if the job is then not queued, and UserError for an unknown job.
        """
        return await self._moved(job_id, JobStatus.RUNNING)

    async def complete(self, job_id: str, result_ref: str = "") -> JobRecord:
        """Marks a running job as succeeded, and returns it. `result_ref` is any text from which the program can later
        find the result, for example a file name; it is stored in the job. A job that has exceeded its deadline or its
        running time is timed out first. Raises IllegalTransition if the job then does not run, and UserError for an
        unknown job.
        """
        return await self._moved(job_id, JobStatus.SUCCEEDED, result_ref=checked_word(result_ref, "result_ref"))

    async def fail(self, job_id: str, error: str = "") -> JobRecord:
        """Marks the job as failed, and returns it. `error` is the reason, which is stored in the job. Raises
        IllegalTransition if the job neither runs nor waits for an action, and UserError for an unknown job.
        """
        return await self._moved(job_id, JobStatus.FAILED, error=checked_word(error, "error"))

    async def cancel(self, job_id: str, reason: str = "") -> JobRecord:
        """Cancels the job and its open actions, and returns the job. Raises IllegalTransition if the job has ended, and
        UserError for an unknown job.

        A job that an app or a kernel runs ends a little later: when this method returns, only the request is durable,
        and the returned job is as it was before. If a cancel of that job was requested before, LetterRefused is raised.
        """
        return await self._moved(job_id, JobStatus.CANCELLED, error=checked_word(reason, "reason"))

    async def _moved(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        job = await self.get(job_id)  # a job that is overdue is timed out first
        return await self.store.move(job.job_id, status, result_ref=result_ref, error=error)

    async def expire(self) -> list[JobRecord]:
        """Times out all jobs that are past their deadline or have run longer than their budget allows. Returns these
        jobs.
        """
        now = self.store.clock.time()
        overdue = [job.job_id for job in await self.store.find() if job.overdue(now)]
        ended = [await self.get(job_id) for job_id in overdue]
        return [job for job in ended if job.status is JobStatus.TIMED_OUT]

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        """Returns the jobs of a scope, or of all scopes if `scope_id` is None, in the order in which they were created.
        Only jobs in one of `statuses` are returned; () means all.
        """
        check("find: statuses", statuses, TEXTS)
        return await self.store.find(scope_id=scope_id, statuses=statuses)
