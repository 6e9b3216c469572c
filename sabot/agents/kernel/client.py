"""JobClient: begins the jobs of a kernel from another process, and awaits them.

start ─▶ letter in the inbox of the journal ─▶ the kernel takes it: BEGIN ─▶ … ─▶ END ─▶ result
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sabot.agents.actions import ActionManager
from sabot.agents.app_jobs import AppJobs, AppJobStore, JournalAddress
from sabot.agents.context import BudgetSpec, checked_word
from sabot.agents.jobs import JobRecord, JobSpec
from sabot.agents.kernel.handle import JobHandle, outcome_of
from sabot.agents.kernel.jobs import (
    ExecutionRequest,
    ExecutionResult,
    check_attempts,
    check_same,
    digest_of,
    encode_request,
    job_id_of,
    recorded_result,
)
from sabot.base.checks import Of, check
from sabot.base.config import checked_name
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_in_thread
from sabot.calls.judging import repeated_around
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import JournalFailed, LetterRefused, TransientError, UserError, short_repr
from sabot.jobs.core import SEQUENCES_APART
from sabot.jobs.open_jobs import begun_or_queued, whole_entry
from sabot.journal import Inbox, Journal, JournalReader
from sabot.journal.entries import REQUEST, Begin, End, Letter, encode_entry
from sabot.journal.memory import MemoryStorage

_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 1.0  # between two looks for the end of a job
_PART_OF_WAIT = 0.1  # of the time that was waited for a job: the time until the next look


class KernelStore(AppJobStore):
    """The store through which `jobs` and `actions` of a kernel, and of its clients, read the kernel's journal. `journal` is
    the open journal while a kernel in this process has it open, otherwise None.
    """

    def __init__(self, place: "str | Path | Journal | MemoryStorage", name: str, clock: Clock) -> None:
        self.journal = place if isinstance(place, Journal) else None
        found = place if isinstance(place, MemoryStorage) else JournalAddress(str(place), name, {})
        super().__init__(lambda: found, clock, lambda: self.journal)

    async def own_writes(self) -> None:
        """Waits until readers of the journal can see every change that a handle has already reported. A handle reports
        the end of its job as soon as the END entry is written, but readers see only entries that are durable.
        """
        if self.journal is not None:
            with suppress(JournalFailed):  # the kernel raises it; what is durable can be read all the same
                await self.journal.flush()

    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        raise UserError("jobs of a kernel begin with requests", hint="await kernel.execute(ExecutionRequest(prompt=…))")


class ClientHandle(JobHandle):
    """The handle of a job that a JobClient has begun or found."""

    __slots__ = ("_ends",)

    def __init__(self, client: "JobClient", job_id: str, ends: "_Ends") -> None:
        super().__init__(job_id, client.actions, client.post)
        self._ends = ends

    async def result(self) -> ExecutionResult:
        """Waits until the job has ended, and returns its result. It is found within a tenth of the time that was waited for
        it, and within a second. A job waits, without a word, while no process runs the kernel.

        `output` is what a function has returned. It is None for an Agent, whose answer is the text `content`, as JSON if it
        has an output type: only the program of the kernel knows the type.

        If the job has ended without success, raises the errors of `ExecutionHandle.result`. Raises UserError if the journal
        has forgotten the result of the job, and the errors of a JournalReader.
        """
        end = await self._ends.of(self.job_id)
        assert isinstance(end.body, bytes)
        outcome = outcome_of(self.job_id, end.outcome, end.body)
        if isinstance(outcome, BaseException):
            raise outcome
        return recorded_result(self.job_id, outcome)


@answers_wrong_options
class JobClient:
    """A client of a kernel whose jobs run in another process: `JobClient("jobs")` begins jobs in the journal that
    `RuntimeKernel.create(agent=…, journal="jobs")` has open. A web server, a script or a cron job enqueues work in this way.

    A job is durable when `start` returns. The kernel takes it within 50 ms if it runs, and else at its next start. `jobs` (an
    AppJobs) and `actions` (an ActionManager) read and change the jobs and their questions, as those of the kernel do. A
    client has no connection between two calls, so it need not be closed. It belongs to one event loop.
    """

    def __init__(
        self, journal: str | Path | MemoryStorage, *, name: str = "kernel", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """Makes a client.

        - `journal`: the folder of the kernel's journal (SQLite), or its postgresql:// or kafka:// address.
        - `name`: the name of the kernel.
        - `clock`: the clock for the times of letters.

        Raises UserError for arguments that are not valid.
        """
        self.name = checked_name(name, "JobClient: name")
        if not isinstance(journal, str | Path | MemoryStorage) or journal == "":
            raise UserError(f"JobClient: journal={short_repr(journal)}", hint="a folder, or an address")
        self._store = KernelStore(journal, self.name, clock)
        self._durable = not isinstance(journal, MemoryStorage)
        self._ends = _Ends(self._store)
        self.jobs, self.actions = AppJobs(self._store), ActionManager(self._store)

    @answers_wrong_options
    async def start(
        self,
        agent: str,
        message: Any,
        *,
        scope: str = "default",
        principal: str = "",
        session: str = "",
        idempotency_key: str = "",
        budgets: BudgetSpec | Mapping[str, Any] | None = None,
        max_turns: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ClientHandle:
        """Begins a job, and returns its handle when the job is durable.

        - `agent`: the name of the agent. `message`: the prompt of an Agent, or the input of a function.
        - `scope`, `principal`, `session`: the tenant, the person and the conversation for which the job runs.
        - `idempotency_key`: if the agent already has a job of this scope with the same key, from a client or from
          `RuntimeKernel.execute`, no second job is begun, and the handle is that of the first.
        - `budgets`, `max_turns`, `metadata`: as in an ExecutionRequest.

        A job of an agent that the kernel does not have stays queued, for a kernel that has it; the kernel logs a warning.

        Raises IdempotencyConflict if that job had another request. Raises UserError for arguments that are not valid, if
        there is no journal yet (the kernel makes it when it starts), and in an effect that may be repeated, without an
        `idempotency_key`. Raises TransientError if a server does not answer: the job may have been begun or not.
        """
        request = ExecutionRequest(
            prompt=message,
            agent=agent,
            scope_id=scope,
            principal_id=principal,
            session_id=session,
            idempotency_key=idempotency_key,
            budgets=BudgetSpec.of(budgets),
            max_turns=max_turns,
            metadata={} if metadata is None else metadata,
        )
        (handle,) = await self.start_all([request])
        return handle

    async def start_all(self, requests: Iterable[ExecutionRequest]) -> list[ClientHandle]:
        """Begins a job for each request, in their order, and returns the handles when all are durable. Each request names its
        agent. Raises the errors of `start`; the jobs of the requests before that one have begun.
        """
        asked = [
            check("start_all: requests", each, Of(ExecutionRequest, "ExecutionRequest(prompt=…)")) for each in requests
        ]
        for each in asked:
            checked_word(each.agent, "start: agent", empty=False)
            if each.policy_ref is not None:
                raise UserError("start: policy_ref= is for RuntimeKernel.execute", hint="the kernel has its own policy")
            keyed = bool(each.idempotency_key) and self._durable
            if repeated_around(keyed=keyed) is not None:
                raise UserError(
                    f"no job of {each.agent} was begun: the effect that begins it may be repeated, and would begin another one each time",
                    hint="start(…, idempotency_key=…), from the arguments of the tool, or `effect.key` of a parameter `effect: Effect`",
                )
            if keyed:
                check_attempts(job_id_of(f"{self.name}.{each.agent}", each))
        found = await run_in_thread(self._start_all, asked)
        return [ClientHandle(self, job_id, self._ends) for job_id in found]

    def _start_all(self, requests: list[ExecutionRequest]) -> list[str]:
        with self._store.reader() as reader, self._store.inbox() as inbox:
            return [self._start(reader, inbox, each) for each in requests]

    def _start(self, reader: JournalReader, inbox: Inbox, request: ExecutionRequest) -> str:
        agent = f"{self.name}.{request.agent}"
        job_id, record = job_id_of(agent, request), encode_request(request)
        named = digest_of(reader.key, agent, request) if request.idempotency_key else b""
        begin = Begin(
            job_id,
            round(self._store.clock.time() * 1000),
            agent,
            record,
            digest=named,
            scope=request.scope_id,
            principal=request.principal_id,
            session=request.session_id,
            seed=SEQUENCES_APART,
            form=REQUEST,
        )
        try:
            inbox.post(Letter("begin", job=job_id, name=agent, body=encode_entry(begin)))
        except LetterRefused:  # it was begun before
            mark, queued = begun_or_queued(reader, job_id)
            if (before := queued or mark) is not None:  # else it was forgotten meanwhile
                check_same(request, job_id, before.digest, reader.key, agent)
        return job_id

    async def handle(self, job_id: str) -> ClientHandle:
        """Returns the handle of a job, whoever has begun it. `job_id` is its id, or its id in the form for URLs
        (`ClientHandle.url_id`). Raises UserError if there is no such job.
        """
        return ClientHandle(self, (await self.jobs.get(job_id)).job_id, self._ends)

    async def post(self, letter: Letter) -> None:
        """Writes a letter into the inbox of the journal, as `RuntimeKernel.post` does."""
        check("post: letter", letter, Of(Letter))
        await run_in_thread(self._store.post, letter)


@dataclass(slots=True, eq=False)
class _Awaited:
    """A job whose end somebody awaits. `since_s`: since when, by the clock of the event loop. `callers`: how many await it."""

    end: "asyncio.Future[End]"
    since_s: float
    callers: int = 0


class _Ends:
    """Finds the ends of jobs, by looking into the journal while somebody awaits one: one task and one reader for all."""

    def __init__(self, store: KernelStore) -> None:
        self._store = store
        self._awaited: dict[str, _Awaited] = {}
        self._task: asyncio.Task[None] | None = None

    async def of(self, job_id: str) -> End:
        """Waits until a job has ended, and returns its END entry with its body."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._awaited = {}
            self._task = loop.create_task(self._look(), name="the ends of jobs")
        found = self._awaited.get(job_id)
        if found is None:
            found = self._awaited[job_id] = _Awaited(loop.create_future(), loop.time())
        found.callers += 1
        try:
            return await asyncio.shield(found.end)
        finally:
            found.callers -= 1
            if not found.callers and self._awaited.get(job_id) is found:
                del self._awaited[job_id]

    async def _look(self) -> None:
        loop, due = asyncio.get_running_loop(), dict[str, float]()
        try:
            with ExitStack() as stack:
                reader = await run_in_thread(stack.enter_context, self._store.reader())
                while self._awaited:
                    now = loop.time()
                    some = [job_id for job_id in self._awaited if due.get(job_id, 0.0) <= now]
                    for job_id, end in (await run_in_thread(_ends_in, reader, some)).items():
                        due.pop(job_id, None)
                        if (awaited := self._awaited.get(job_id)) is None:
                            continue  # nobody waits for it any more
                        if end is None:
                            waited_s = loop.time() - awaited.since_s
                            due[job_id] = loop.time() + min(max(_FIRST_LOOK_S, waited_s * _PART_OF_WAIT), _LAST_LOOK_S)
                            continue
                        del self._awaited[job_id]
                        if isinstance(end, End):
                            awaited.end.set_result(end)
                        else:
                            awaited.end.set_exception(end)
                    if self._awaited:
                        await asyncio.sleep(_FIRST_LOOK_S)
        except Exception as error:
            for awaited in self._awaited.values():
                awaited.end.set_exception(error)
            self._awaited = {}


def _ends_in(reader: JournalReader, jobs: Iterable[str]) -> dict[str, End | UserError | None]:
    """Returns, by job, its END entry with its body, None if it has not ended, or why it has none. Blocks."""
    found: dict[str, End | UserError | None] = {}
    for job_id in jobs:
        with suppress(TransientError):  # it is looked for again
            found[job_id] = _end_in(reader, job_id)
        found.setdefault(job_id, None)
    return found


def _end_in(reader: JournalReader, job_id: str) -> End | UserError | None:
    mark, queued = begun_or_queued(reader, job_id)
    if mark is None:
        if queued is not None:
            return None
        return UserError(f"job {job_id}: there is none of this name in {reader.where}")
    if not mark.outcome:
        return None
    for _, entry in reversed(list(reader.history.entries(job_id))):
        if isinstance(entry, End):
            end: End = whole_entry(reader, entry)
            return end
    return UserError(
        f"job {job_id} has ended so long ago that its result is forgotten",
        hint="keep_jobs= of the kernel says how many are kept",
    )
