"""JobClient: begins the jobs of a kernel from another process, and awaits them.

start ─▶ letter in the inbox of the journal ─▶ the kernel takes it: BEGIN ─▶ … ─▶ END ─▶ result
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sabot.agents.actions import ActionManager
from sabot.agents.app_jobs import AppJobs, AppJobStore, JournalAddress
from sabot.agents.context import BudgetSpec, checked_word
from sabot.agents.events.bus import RuntimeEvent
from sabot.agents.events.job_events import JobEvents, events_of
from sabot.agents.jobs import JobRecord, JobSpec
from sabot.agents.kernel.handle import JobHandle, outcome_in
from sabot.agents.kernel.jobs import (
    ExecutionRequest,
    ExecutionResult,
    check_attempts,
    check_same,
    digest_of,
    effect_around,
    encode_request,
    job_id_of,
    read_earlier_attempts,
    recorded_result,
)
from sabot.agents.kernel.schedules import Schedules
from sabot.base.checks import Of, check
from sabot.base.config import Duration, checked_name
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_connected, run_in_thread
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.judging import labels_here, note_labels, repeated_around
from sabot.errors import JournalFailed, TransientError, UserError, short_repr
from sabot.jobs.core import SEQUENCES_APART
from sabot.jobs.log import notices_of
from sabot.jobs.open_jobs import begun_or_queued, jobs_begun_within, whole_entry
from sabot.journal import Journal, JournalReader, Position
from sabot.journal.begin_facts import stored_key
from sabot.journal.entries import REQUEST, Begin, End, Letter, encode_entry
from sabot.journal.memory import MemoryStorage, salt_of, salt_of_key
from sabot.journal.opening import schema_of
from sabot.journal.postgres_begins import begin_jobs

T = TypeVar("T")

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
    """The handle of a job that a JobClient has begun or found. `created` is True if the call that returned the handle has begun
    the job, and False if the job was there.
    """

    __slots__ = ("_looks", "created")

    def __init__(self, client: "JobClient", job_id: str, looks: "JobLooks", *, created: bool) -> None:
        super().__init__(job_id, client.actions, client.post)
        self._looks = looks
        self.created = created

    async def result(self) -> ExecutionResult:
        """Waits until the job has ended, and returns its result. It is found within a tenth of the time that was waited for
        it, and within a second. A job waits, without a word, while no process runs the kernel, and while the server of the
        journal does not answer.

        `output` is what a function has returned. It is None for an Agent, whose answer is the text `content`, as JSON if it
        has an output type: only the program of the kernel knows the type.

        If the job has ended without success, raises the errors of `ExecutionHandle.result`. Raises UserError if the journal
        has forgotten the result of the job, and CorruptJournal if the journal is damaged.
        """
        end = await self._looks.end(self.job_id)
        note_labels(frozenset(end.labels))  # it may be asked for by a tool of a job
        outcome = outcome_in(end)
        if isinstance(outcome, BaseException):
            raise outcome
        return recorded_result(self.job_id, outcome, end.form)

    async def events(self) -> AsyncGenerator[RuntimeEvent, None]:
        """Yields the events of the job from its beginning, and each new one as soon as the journal is seen to have it: within
        a tenth of the time since the one before, and within a second. The last event is `final.result` or `final.error`. They
        are those of `ExecutionHandle.events`, without the pieces of answers, which only the process of the kernel has.

        Raises UserError if the job has ended and its entries are no longer in the journal.
        """
        told: list[RuntimeEvent] = []

        async def keep(event: RuntimeEvent) -> None:
            told.append(event)

        events, behind, over = JobEvents(keep, lambda event_type, job_id: True), dict[int, int](), False
        while True:
            found = await self._looks.until(partial(_entries_in, job_id=self.job_id, behind=behind))
            for notice in notices_of([entry for _, entry in found]):
                await events.publish(notice)
            behind = {position.partition: position.offset + 1 for position, _ in found}
            for event in told:
                yield event
            told.clear()
            for _, entry in found:
                over = isinstance(entry, End) or (over and not isinstance(entry, Begin))  # a retry begins again
            if over:
                return

    @property
    def _is_agent(self) -> None:
        return None

    async def _recorded_events(self, job_id: str) -> list[RuntimeEvent]:
        found = await self._looks.until(partial(_recorded_in, job_id=job_id))
        return await events_of([entry for _, entry in found])


def refuse_memory(owner: str, journal: object, instead: str) -> None:
    """Raises UserError if the journal is "memory". Of an App it is none of a folder; here it would be a folder of this name.

    - `owner`: the class that has got it. `instead`: what to do, for the hint.
    """
    if journal == "memory":
        raise UserError(
            f"{owner}: journal='memory' would be a folder of this name",
            hint=f'{instead}; journal="./memory" is the folder',
        )


_Around = tuple[str, tuple[str, ...]]


@answers_wrong_options
class JobClient:
    """A client of a kernel whose jobs run in another process: `JobClient("jobs")` begins jobs in the journal that
    `RuntimeKernel.create(agent=…, journal="jobs")` has open. A web server, a script or a cron job enqueues work in this way.
    `schedules` pauses and triggers the schedules of the kernel (`find`, `pause`, `go_on`, `trigger`, `remove`).

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
        name = checked_name(name, "JobClient: name")
        if not isinstance(journal, str | Path | MemoryStorage) or journal == "":
            raise UserError(f"JobClient: journal={short_repr(journal)}", hint="a folder, or an address")
        refuse_memory("JobClient", journal, "a kernel in another process cannot have its journal in memory")
        self._set(KernelStore(journal, name, clock), name, durable=not isinstance(journal, MemoryStorage))

    @classmethod
    def of_store(cls, store: AppJobStore, name: str, declared: Sequence[str] = ()) -> "JobClient":
        """Returns a client over an open store: that through which a kernel begins jobs that wait in the queue, and watches those
        of other workers; or that of the console. `declared`: which of the options "policy" and "budgets" the kernel has.
        """
        made = cls.__new__(cls)
        made._set(store, name, durable=True, declared=declared)
        return made

    def _set(self, store: AppJobStore, name: str, *, durable: bool, declared: Sequence[str] = ()) -> None:
        self.name, self._store, self._durable, self.looks = name, store, durable, JobLooks(store)
        self._declared = tuple(sorted(declared))
        self.jobs, self.actions = AppJobs(store), ActionManager(store)
        self.schedules = Schedules(name, store, self._start_one)

    async def _start_one(self, request: ExecutionRequest) -> ClientHandle:
        (handle,) = await self.start_all([request])
        return handle

    @answers_wrong_options
    async def start(
        self,
        agent: str,
        message: Any,
        *,
        scope: str = "default",
        principal: str = "",
        session: str | None = None,
        key: str | None = None,
        idempotency_key: str | None = None,
        budgets: BudgetSpec | Mapping[str, Any] | None = None,
        max_turns: int | None = None,
        start_after: Duration | datetime | None = None,
        priority: int = 0,
        metadata: Mapping[str, Any] | None = None,
        connection: Any = None,
    ) -> ClientHandle:
        """Begins a job, and returns its handle when the job is durable.

        - `agent`: the name of the agent. `message`: the prompt of an Agent, or the input of a function.
        - `scope`, `principal`, `session`: the tenant, the person and the conversation for which the job runs. The session, and
          each of the two keys, is None or a text that is not empty: "" raises UserError.
        - `idempotency_key`: if the agent already has a job of this scope with the same key, from a client or from
          `RuntimeKernel.execute`, no second job is begun, and the handle is that of the first.
        - `key`, `start_after`, `priority`: the key of the job, the time before which it does not begin, and its place in the
          queue. `budgets`, `max_turns`, `metadata`: the limits and the data of the job. All as in an ExecutionRequest.
        - `connection`: a connection of psycopg (`Connection` or `AsyncConnection`) to the database of the journal, in whose open
          transaction the job begins: it is there when the caller commits, and never if the caller rolls back. Until then nobody
          finds it. For journals in PostgreSQL that workers share; the user of the connection needs the rights on its tables.

        A job of an agent that the kernel does not have stays queued, for a kernel that has it, or until it is cancelled; the kernel
        logs a warning.

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
            key=key,
            start_after=start_after,
            priority=priority,
            metadata={} if metadata is None else metadata,
        )
        (handle,) = await self.begin([_checked(request)], connection)
        return handle

    async def start_all(self, requests: Iterable[ExecutionRequest]) -> list[ClientHandle]:
        """Begins a job for each request, in their order, and returns the handles when all are durable: several hundred with one
        commit. Each request names its agent. Two of the same `idempotency_key`, scope and agent are one job.

        Raises the errors of `start`. IdempotencyConflict comes when the jobs of all other requests have begun; UserError for
        arguments before any has begun; after another error any of them may have begun.
        """
        asked = [
            check("start_all: requests", each, Of(ExecutionRequest, "ExecutionRequest(prompt=…)")) for each in requests
        ]
        return await self.begin(list(map(_checked, asked)))

    async def begin(self, requests: Sequence[ExecutionRequest], connection: Any = None) -> list[ClientHandle]:
        """Begins jobs as `start_all` does, or with a connection as `start`. The requests were checked."""
        requests = [await each.permitted(f"{self.name}.{each.agent}") for each in requests]
        for each in requests:
            keyed = bool(each.idempotency_key) and self._durable
            if repeated_around(keyed=keyed) is not None:
                raise UserError(
                    f"no job of {each.agent} was begun: the effect that begins it may be repeated, and would begin another one each time",
                    hint="start(…, idempotency_key=…), from the arguments of the tool, or `effect.key` of a parameter `effect: Effect`",
                )
            if keyed:
                await read_earlier_attempts(lambda effect: run_connected(self._begun_within, effect))
                check_attempts(job_id_of(f"{self.name}.{each.agent}", each))
        around = effect_around() if self._durable else "", tuple(sorted(labels_here()))
        if connection is None:
            found = await run_connected(self._start_all, requests, around)
        else:
            found = await self._start_within(connection, requests, around)
        return [ClientHandle(self, job_id, self.looks, created=created) for job_id, created in found]

    def _begun_within(self, effect: str) -> frozenset[str]:
        with self._store.reader() as reader:
            return jobs_begun_within(reader, effect)

    def _start_all(self, requests: Sequence[ExecutionRequest], around: _Around) -> list[tuple[str, bool]]:
        with self._store.inbox() as inbox:
            key = inbox.key
            letters = [self._letter(each, key, salt_of(inbox), around) for each in requests]
            posted = inbox.begin(letters)
        begun = list(zip(requests, letters, posted, strict=True))
        if not all(posted):
            with self._store.reader() as reader:
                for request, letter in [(request, letter) for request, letter, created in begun if not created]:
                    mark, queued = begun_or_queued(reader, letter.job)
                    if (before := queued or mark) is not None:  # else it was forgotten meanwhile
                        check_same(request, letter.job, before.digest, key, letter.name)
        return [(letter.job, created) for _, letter, created in begun]

    async def _start_within(
        self, connection: Any, requests: Sequence[ExecutionRequest], around: _Around
    ) -> list[tuple[str, bool]]:
        """Begins jobs in the transaction that a caller has open on a connection."""
        address = self._store.address()
        place = None if address is None else schema_of(address.place, address.app)
        if place is None:
            raise UserError(
                "start: connection= is for a journal in PostgreSQL, whose tables its transaction can change",
                hint="leave it out: the job is durable when start returns, whatever the transaction does",
            )
        told = list[tuple[bytes, Letter]]()

        def letters_of(key: bytes) -> list[Letter]:
            told[:] = [(key, self._letter(each, key, salt_of_key(key), around)) for each in requests]
            return [letter for _, letter in told]

        found = await place.server.run_within(connection, begin_jobs(place, letters_of), "start: connection")
        for request, (key, letter), (created, before) in zip(requests, told, found, strict=True):
            if not created and before is not None:
                check_same(request, letter.job, before, key, letter.name)
        return [(letter.job, created) for (_, letter), (created, _) in zip(told, found, strict=True)]

    def _letter(self, request: ExecutionRequest, key: bytes, salt: bytes, around: _Around) -> Letter:
        """Returns the letter that begins the job of a request. `key`, `salt`: those of the journal (`salt_of`).
        `around`: the effect whose tool begins the job, or "", and the labels so far.
        """
        agent = f"{self.name}.{request.agent}"
        job_id, now = job_id_of(agent, request), self._store.clock.time()
        within, labels = around
        begin = Begin(
            job_id,
            round(now * 1000),
            agent,
            encode_request(request),
            digest=digest_of(key, agent, request) if request.idempotency_key else b"",
            scope=request.scope_id,
            principal=request.principal_id,
            session=request.session_id or "",
            seed=SEQUENCES_APART,
            salt=salt,
            form=REQUEST,
            within=within if request.idempotency_key else "",
            labels=labels,
            key=stored_key(request.key or ""),
            declared=self._declared,
        )
        after_ms, priority = request.begins_ms(now), request.priority
        body = encode_entry(begin)
        return Letter("begin", job=job_id, name=agent, body=body, after_ms=after_ms, priority=priority)

    async def handle(self, job_id: str) -> ClientHandle:
        """Returns the handle of a job, whoever has begun it. `job_id` is its id, or its id in the form for URLs
        (`ClientHandle.url_id`). Raises UserError if there is no such job.
        """
        return ClientHandle(self, (await self.jobs.get(job_id)).job_id, self.looks, created=False)

    async def post(self, letter: Letter) -> None:
        """Writes a letter into the inbox of the journal, as `RuntimeKernel.post` does."""
        check("post: letter", letter, Of(Letter))
        await run_connected(self._store.post, letter)


def _checked(request: ExecutionRequest) -> ExecutionRequest:
    """Returns the request of a client. Raises UserError if it names no agent, or a policy."""
    checked_word(request.agent, "start: agent", empty=False)
    if request.policy_ref is not None:
        raise UserError("start: policy_ref= is for RuntimeKernel.execute", hint="the kernel has its own policy")
    return request


@dataclass(slots=True, eq=False)
class _Look:
    """A look into the journal that is made again until it finds something. `since_s`: since when, and `due_s`: when the next
    one is due, by the clock of the event loop. `at`: the ends of the journal at the last one.
    """

    find: Callable[[JournalReader], Any]
    found: "asyncio.Future[Any]"
    since_s: float
    due_s: float
    at: dict[int, int] | None = None


class JobLooks:
    """Looks into the journal while somebody awaits something in it: one task and one reader for all. Only the journal's
    ends are read while it gets no entry.
    """

    def __init__(self, store: AppJobStore) -> None:
        self._store = store
        self._awaited: set[_Look] = set()
        self._task: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    async def until(self, find: Callable[[JournalReader], T | None]) -> T:
        """Calls `find` with a reader, in a thread, until its result is not None, and returns the result. Raises the error of
        `find`, but for a TransientError: then it looks again.
        """
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._awaited, self._asked = set(), asyncio.Event()
            self._task = loop.create_task(self._look(), name="what clients of a journal await")
        look = _Look(find, loop.create_future(), loop.time(), 0.0)
        self._awaited.add(look)
        self._asked.set()
        try:
            found: T = await look.found
        finally:
            self._awaited.discard(look)
        return found

    async def end(self, job_id: str) -> End:
        """Waits until a job has ended, and returns its END entry, with its body. Raises UserError if there is no such job, or
        if the journal has forgotten the result.
        """
        return await self.until(partial(_end_in, job_id=job_id))

    async def _look(self) -> None:
        loop, stack, reader = asyncio.get_running_loop(), ExitStack(), None
        try:
            while self._awaited:
                self._asked.clear()
                due = [look for look in self._awaited if look.due_s <= loop.time()]
                found = dict[_Look, Any]()
                try:
                    if reader is None:
                        reader = await run_in_thread(stack.enter_context, self._store.reader())
                    found = await run_in_thread(_found, reader, due)
                except TransientError:  # the server does not answer: the next round opens another reader
                    reader = None
                    with suppress(TransientError):
                        await run_in_thread(stack.close)
                self._tell(due, found, loop.time())
                if self._awaited:
                    next_s = min(look.due_s for look in self._awaited) - loop.time()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(max(next_s, _FIRST_LOOK_S)):
                            await self._asked.wait()
        except Exception as error:
            self._tell(self._awaited, dict.fromkeys(self._awaited, error), 0.0)
        finally:  # without an await: `until` would take this task for one that looks
            stack.close()

    def _tell(self, looks: Iterable[_Look], found: Mapping[_Look, Any], now_s: float) -> None:
        for look in list(looks):
            result = found.get(look)
            if look.found.done():  # its caller was cancelled
                continue
            if result is None:
                look.due_s = now_s + min(max(_FIRST_LOOK_S, (now_s - look.since_s) * _PART_OF_WAIT), _LAST_LOOK_S)
                continue
            self._awaited.discard(look)
            if isinstance(result, Exception):
                look.found.set_exception(result)
            else:
                look.found.set_result(result)


def _found(reader: JournalReader, looks: Iterable[_Look]) -> dict[_Look, Any]:
    """Returns what looks have found, or the error that they have raised. Leaves those out that have found nothing. Blocks.
    Raises TransientError.
    """
    at, found = reader.ends(), dict[_Look, Any]()
    for look in looks:
        if look.at == at:  # no entry has come since
            continue
        try:
            result = look.find(reader)
        except TransientError:
            raise
        except Exception as error:
            result = error
        look.at = at
        if result is not None:
            found[look] = result
    return found


def _end_in(reader: JournalReader, job_id: str) -> End | None:
    """Returns the END entry of a job, with its body; None if it has not ended, or waits to run again. Raises UserError if there
    is no such job, or if its result is forgotten. Blocks.
    """
    mark, queued = begun_or_queued(reader, job_id)
    if mark is None and queued is None:
        raise UserError(f"job {job_id}: there is none of this name in {reader.where}")
    if mark is None or queued is not None or not mark.outcome:
        return None
    for _, entry in reversed(list(reader.history.entries(job_id))):
        if isinstance(entry, Begin):  # it runs again since
            return None
        if isinstance(entry, End):
            end: End = whole_entry(reader, entry)
            return end
    raise _forgotten(job_id, "result")


def _forgotten(job_id: str, what: str) -> UserError:
    return UserError(
        f"job {job_id} has ended so long ago that its {what} is forgotten",
        hint="keep_jobs= of the kernel says how many are kept",
    )


def _recorded_in(reader: JournalReader, job_id: str) -> list[tuple[Position, Any]]:
    """Returns all entries of a job, with their bodies. Blocks."""
    return [(position, whole_entry(reader, entry)) for position, entry in reader.history.entries(job_id)]


def _entries_in(reader: JournalReader, job_id: str, behind: Mapping[int, int]) -> list[tuple[Position, Any]] | None:
    """Returns the entries of a job, with their bodies, beyond the last ones that were told; None if there are none yet.
    `behind`: by partition, the offset behind the last one. Raises UserError if there is no such job, or if its entries are
    forgotten. Blocks.
    """
    if behind:
        further = [(position, whole_entry(reader, entry)) for position, entry in reader.read(job_id, behind)]
        if further:
            return further
    mark, queued = begun_or_queued(reader, job_id)
    if mark is None and queued is None:
        raise UserError(f"job {job_id}: there is none of this name in {reader.where}")
    if mark is None or (behind and not mark.outcome):
        return None
    # of a job that has ended, entries may have moved out of the log
    every = _recorded_in(reader, job_id)
    if not every and mark.outcome:
        raise _forgotten(job_id, "history")
    return [each for each in every if each[0].offset >= behind.get(each[0].partition, 0)] or None
