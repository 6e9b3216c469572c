"""The jobs of a kernel while it has its journal open: which jobs run, and which wait for a place, the right to run. When a
job is over, its handle gets the outcome.

caller ─▶ place? ─▶ begun ─▶ runs ◀── woken, resumed, begun by another job: these go first
                             │
                             └─▶ parked, or over: the place is free
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from sabot.agents.accounts.guard import use_of_answer
from sabot.agents.admission import JobAdmission, Place
from sabot.agents.context import BudgetSpec
from sabot.agents.events.bus import InMemoryEventBus
from sabot.agents.events.job_events import JobEvents
from sabot.agents.kernel.handle import ExecutionHandle, outcome_in, outcome_of
from sabot.agents.kernel.jobs import (
    ExecutionRequest,
    JobWatch,
    KernelAgent,
    check_attempts,
    check_same,
    digest_of,
    effect_around,
    encode_request,
    read_earlier_attempts,
)
from sabot.agents.kernel.pieces import KeptPieces
from sabot.agents.session_turns import Recalled, SessionId, recall
from sabot.agents.store import LentStore
from sabot.api.child_limits import ChildLimits
from sabot.base.quantities import counted_words
from sabot.base.supervision import unexpected_end, watch_task
from sabot.base.threads import run_in_thread
from sabot.clock import Clock
from sabot.engine.calls.judging import labels_here, permitted_begin, repeated_around
from sabot.errors import (
    EffectError,
    IdempotencyConflict,
    InternalError,
    JournalFailed,
    NonDeterminism,
    SabotError,
    UserError,
)
from sabot.jobs.events import LettersCame
from sabot.jobs.guard import Behalf, EffectGuard, declared_by
from sabot.jobs.history import History
from sabot.jobs.host import JobHost
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import Blocked, EarlierEnd, Fragment, Notice
from sabot.jobs.open_jobs import (
    begun_or_queued,
    cancelled_unrun,
    jobs_begun_within,
    last_begin,
    whole_entries,
)
from sabot.jobs.owner import OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.tree import first_of, parent_of
from sabot.jobs.values import pack_error, unpack
from sabot.journal import Journal, Position
from sabot.journal.base import EVERY, JobMark
from sabot.journal.ended_jobs import JobQuery, cut
from sabot.journal.entries import REQUEST, Answer, Begin, Cancel, EffectResult, End, Entry, Signal
from sabot.journal.lanes import JobLimit, pace_of
from sabot.journal.memory import MemoryJournal

if TYPE_CHECKING:
    from sabot.base.figures import ToldJobs

_log = logging.getLogger(__name__)

_WANT_TO_GO_ON: dict[type, str] = {Answer: "an answer", Signal: "a signal", Cancel: "a cancel"}

_TURNS = 20  # turns of the event loop in which a caller that got a handle may begin to listen
_RETOLD_ENTRIES = 1_024  # last entries of the journal: the events of jobs that ended there are published again
_SHOWS = "what shows jobs in stores"
_FETCHED_AT_ONCE = 64  # open jobs that are read together, and a tree more
_TRIMS = 10  # times that the journal is trimmed while `keep_jobs` jobs end


class KernelHost(JobWatch):
    """The part of a kernel that runs its jobs, while the kernel has its journal open. All methods are called on the
    event loop of the kernel. `open` contains, by id, the jobs in memory that were open in the journal when the host was
    started and were not resumed yet; others may be in the journal only (`JobHost.left`). `resumed` is True if the
    program has asked for that, or was warned that it has not. `closed` is True once the kernel has closed the host and
    its journal.
    """

    def __init__(
        self,
        journal: Journal,
        agents: Mapping[str, KernelAgent],
        handle: Callable[[str, KernelAgent, bytes], ExecutionHandle],
        events: InMemoryEventBus,
        shown: Sequence[LentStore] = (),
        *,
        clock: Clock,
        max_jobs: int,
        keep_jobs: int,
        dedupe_s: float,
        grace_s: float,
        policy: EffectGuard | None,
        around: dict[str, Any],
        children: ChildLimits,
        limits: Mapping[str, JobLimit],
        on_lost: Callable[[], None] | None,
    ) -> None:
        """Makes a host. Arguments that are not explained here are those of `RuntimeKernel`.

        - `agents`: the agents of the kernel, by their ids.
        - `handle`: a function that makes the handle of a job, from its id, its agent and the digest of its request.
        - `events`: the bus to which events are published.
        - `shown`: the stores of the program that also show the jobs of this kernel.
        - `limits`: by the id of an agent, the limit of its jobs.
        - `around`: by job, the judge of the code that has begun it, if this code may be repeated (`JobLimits.around`).
        - `on_lost`: a function that is called when this worker of a shared journal has lost its lease, and its host was
          stopped: its jobs go on in others. None for an owner that ends then.
        - `dedupe_s`, `grace_s`: the options `dedupe` and `stop_grace` of `RuntimeKernel`, in seconds.
        """
        self.journal = journal
        self._limits, self._lanes = limits, journal.begins.lanes
        self.handles: dict[str, ExecutionHandle] = {}  # by id, for jobs that have not ended; blocked ones too
        self.failure: SabotError | None = None
        self.failed = asyncio.Event()  # set with `failure`
        self.resumed = self.closed = False
        self._by_letters = 0  # the number of jobs that letters have begun, for the first time or again
        self._of_clients = 0  # that of the first time
        self._agents, self._new, self._clock = agents, handle, clock
        self._max_jobs, self._keep_jobs, self._dedupe_s, self._around = max_jobs, keep_jobs, dedupe_s, around
        self._children, self._on_lost = children, on_lost
        # by job that has asked no model yet: set when a caller has its handle
        self._given: dict[str, asyncio.Event] = {}
        self._is_given = asyncio.Event()  # for all whose callers have it
        self._is_given.set()
        self._shown = shown
        self._showing: asyncio.Task[None] | None = None
        self._news = False  # the journal has entries that the stores do not show yet
        self._listener = _KernelEvents(events, self._given, self._look_at, self._show if shown else None)
        self._declared = declared_by(policy)
        how: dict[str, Any] = {"clock": clock, "stop_grace_s": grace_s, "listener": self._listener, "guard": policy}
        how["use_of"] = use_of_answer
        how["on_letter"], how["refusal"] = self._begun_by_letter, self._refusal
        self._host = JobHost(journal, on_broken=self._broke, **how)
        for agent in agents.values():
            agent.watch = self
            self._host.register(agent.agent_id, agent, children)
        self.open = self._host.fetched
        self._admission = JobAdmission[_Seat](max_jobs, lambda seat, was_parked: seat.go())
        self._seats: dict[str, _Seat] = {}  # by id, for jobs that run or wait for a place
        self._of_trees = Counter[str]()  # their number, by the first job of their tree
        self._callers: set[asyncio.Future[None]] = set()  # callers of `execute` that wait until their job may run
        self._said: dict[
            str, tuple[bytes | BaseException, Collection[str]]
        ] = {}  # by job that is about to end: the outcome for its handle, and the labels
        # the outcomes of jobs whose END entries are not durable yet
        self._untold: list[tuple[ExecutionHandle, bytes | BaseException]] = []
        self._telling = False
        self._ended = 0
        self._ends: Mapping[int, int] = {}  # of the journal's partitions at the start
        self._positions: Mapping[int, int] = {}  # the same, until events are told again
        # the number of ended jobs, and the journal's positions then
        self._marks: deque[tuple[int, Mapping[int, int]]] = deque()

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the host. After that, new jobs can begin. Leaves the open jobs in the journal, but for those with calls whose
        use budgets have reserved. Raises UserError if the journal has open jobs of an agent that the kernel does not have.
        """
        shared = self.journal.begins.shared
        self._ends = self._positions = await run_in_thread(self.journal.positions)
        leaves = shared or await run_in_thread(self.journal.approvals, ()) is not None
        found = await self._host.open(self._positions, leaves=leaves)
        agents = {} if shared else await run_in_thread(self.journal.open_agents)
        agents.pop("", None)  # a job without an agent belongs to a JobManager
        gone = sorted(agents.keys() - set(map(cut, self._agents)))
        if gone:
            raise UserError(
                f"{self.journal.where} has open jobs of agents that this kernel does not have: {', '.join(gone)}",
                hint="give it these agents too, and the name= that the kernel had",
            )
        self._host.left = sum(agents.values()) - sum(1 for job in found if job.agent) if leaves and agents else 0
        ends = [job for job in found if job.agent and job.cut]
        self.open.update((job.job_id, job) for job in found if job.agent and not job.cut)
        await self._take_seats()
        if agents:
            _log.info(
                "%s has %s: await kernel.resume() goes on with what is open",
                self.journal.where,
                counted_words(sum(agents.values()), "open job"),
            )
        try:
            for store in self._shown:
                await store.show(self.journal)
        except BaseException:
            for store in self._shown:
                await store.leave()
            raise
        self.journal.begins.room = lambda: self._max_jobs - self._admission.running - self._admission.waiting
        codes = sorted((agent_id, agent.code) for agent_id, agent in self._agents.items())
        self.journal.begins.version = blake2b(repr(codes).encode(), digest_size=16).hexdigest()
        self._host.start()
        for job in ends:
            self._host.end_cut(job)

    async def _take_seats(self) -> None:
        """Sets the limits, gives the open jobs their seats, and counts for the rates what has begun before the start."""
        begins = self.journal.begins
        begins.agents = frozenset(self._agents)
        await call_journal(self.journal.begins.limit, self._limits)
        if begins.shared:
            return
        agents = {cut(agent): agent for agent in self._lanes.limits}
        for mark in await call_journal(self.journal.open_marks) if agents else ():
            if mark.agent in agents and not parent_of(mark.job)[0]:
                self._lanes.was_open(mark.job, agents[mark.agent], mark.scope, mark.key)
        for agent, limit in self._lanes.limits.items():
            most, within_ms = pace_of(limit)
            if most:
                since = self._clock.time() - within_ms / 1000
                marks = await call_journal(self.journal.logged, JobQuery(agent=agent, since=since), EVERY)
                for mark in reversed([mark for mark in marks if not parent_of(mark.job)[0]]):
                    self._lanes.had_begun(agent, mark.scope, mark.key, mark.created_ms or 0)

    async def close(self, why: SabotError) -> None:
        """Stops the host. The stores of the program copy the last entries of the journal.

        The handles of jobs that have not ended get the error `why`, unless an error has stopped the host before: then
        they have that error. If a store of the program fails during this call, nothing is raised here, but `check`
        raises the error.
        """
        try:
            await self._host.close()
            if self.failure is None:
                await self._tell_ended()
        except JournalFailed as error:
            self._broke("the journal", error)
        finally:
            self._end_all(self.failure or why)
        if self._showing is not None:
            await asyncio.wait([self._showing])
        self._news = True
        try:
            await self._show_all()
        except Exception as error:  # the journal still has to be closed
            self._broke(_SHOWS, error)
        for store in self._shown:
            await store.leave()

    def _broke(self, what: str, error: BaseException) -> None:
        """Stops the host after an unexpected error in one of its parts. All handles get an error that is made of
        `what`, the name of that part, and `error`.
        """
        if self.failure is not None:
            return
        self.failure, self._host.stopping, left_s = unexpected_end(what, error), True, self.journal.claim_left()
        self.failed.set()
        if self._on_lost is None or left_s or not isinstance(self.failure, JournalFailed):
            self._end_all(self.failure)
            return
        self._host.stop_grace_s = 0.0  # no outcome can be recorded any more
        hint = "await JobClient(journal).handle(job_id): the job goes on in another worker"
        self._end_all(JournalFailed(self.failure.message, hint=hint))
        self._on_lost()

    def _end_all(self, error: SabotError) -> None:
        untold, self._untold = self._untold, []
        for handle in (*self.handles.values(), *(handle for handle, _ in untold)):
            handle.settle(error, ended=False)
            handle.begun(False)
        self.handles.clear()
        for seat in self._seats.values():
            if seat.place == "waiting":
                self._admission.leave(seat)
        for caller in self._callers:
            if not caller.done():
                caller.set_exception(error)

    def check(self) -> None:
        """Raises the error that has stopped the host. Does nothing if no error has stopped it."""
        if self.failure is not None:
            raise self.failure

    def _look_at(self, notice: Notice) -> None:
        """Logs a warning for the first entry by which somebody wants a job to go on that this kernel does not run."""
        if self._waits and not self.resumed:
            self._host.spawn(self._warn_of(notice.job, _WANT_TO_GO_ON[type(notice)]), f"the look for job {notice.job}")

    async def _warn_of(self, job_id: str, what: str) -> None:
        if await self.is_left(job_id):
            self._warn_of_open(f"job {job_id} has got {what}, and nothing follows: ")

    @property
    def _waits(self) -> int:
        """The number of jobs that were open at the start and that nothing goes on with."""
        return len(self.open) + self._host.left

    def _warn_of_open(self, why: str = "") -> None:
        """Logs, once, that jobs are open which the program has not resumed."""
        if self._waits and not self.resumed:
            self.resumed = True
            _log.warning(
                "%s%s has %s from before the start of the kernel. Nothing of it goes on before `await kernel.resume()`: "
                "call it once after each start",
                *(why, self.journal.where, counted_words(self._waits, "open job")),
            )

    async def is_left(self, job_id: str) -> bool:
        """Returns True if a job was open at the start, and nothing goes on with it."""
        if job_id in self.open or not self._host.left or job_id in self._host.jobs:
            return job_id in self.open
        await self.journal.flush()  # it may have ended just now
        mark = await call_journal(self.journal.job, job_id)
        return job_id in self.open or (mark is not None and self._is_left(mark))

    def _is_left(self, mark: JobMark) -> bool:
        began, is_old = mark.began, mark.agent and not mark.outcome and mark.job not in self._host.jobs
        return bool(is_old) and began.offset < self._ends.get(began.partition, 0)

    def _check_begins(self) -> None:
        """Raises the error that has stopped the host, or UserError if the host is stopping. A job that began then would
        have a handle that nobody settles.
        """
        self.check()
        if self._host.stopping:
            raise UserError("the kernel was closed before the job had begun")

    def statistics(self) -> "ToldJobs":
        """Returns the figures of `JobHost.statistics`, and as "waiting" the number of jobs that wait because `max_jobs`
        others run.
        """
        return {**self._host.statistics(), "waiting": self._admission.waiting}

    # -- jobs begin ---------------------------------------------------------------------------------------------------

    async def execute(self, agent: KernelAgent, job_id: str, request: ExecutionRequest) -> ExecutionHandle:
        self._warn_of_open()
        request = await request.permitted(agent.agent_id)
        record = encode_request(request)
        name = b""  # a digest is only needed for a request that may come again
        if request.idempotency_key:
            name = digest_of(self.journal.key, agent.agent_id, request)
        keyed = bool(name) and not isinstance(self.journal, MemoryJournal)
        if keyed:
            await read_earlier_attempts(lambda effect: call_journal(jobs_begun_within, self.journal, effect))
        while (other := self.handles.get(job_id)) is not None:
            self._check_same(request, other, other.digest)
            if await other.begins():
                await self.journal.flush()
                return other
            self._check_begins()
        handle = self.handles[job_id] = self._new(job_id, agent, name)
        try:
            self._begins_within(job_id, keyed=keyed)
        except BaseException:
            del self.handles[job_id]
            handle.begun(False)
            raise
        behalf = Behalf(*request.behalf[:2], tuple(sorted(labels_here())), request.behalf.session)
        inputs = {"record": record, "key": b"", "digest": name, "behalf": behalf, "form": REQUEST}
        if keyed:
            inputs["within"] = effect_around()
        if not request.idempotency_key:
            return await self._begun(handle, inputs)
        self.journal.begins.reserve(job_id)  # a client may begin the job of this key too
        try:
            return await self._begun(handle, inputs, request)
        finally:
            self.journal.begins.release(job_id)

    def run_beside(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Starts a task that ends with the host. An error in it stops the host."""
        self._host.spawn(work, what)

    def is_limited(self, agent: KernelAgent) -> bool:
        """Returns True if jobs of an agent have a limit."""
        return agent.agent_id in self._lanes.limits

    async def expect(self, agent: KernelAgent, job_id: str, request: ExecutionRequest) -> ExecutionHandle:
        """Returns the handle of a job that was posted as a letter. The job begins as soon as it may."""
        self._warn_of_open()
        handle = self.handles.get(job_id)
        if handle is None:
            name = digest_of(self.journal.key, agent.agent_id, request) if request.idempotency_key else b""
            handle = self.handles[job_id] = self._new(job_id, agent, name)
            await self.take_letters()
            if job_id not in self._given and not handle.done:
                await self._settle_if_ended(handle)
        return handle

    async def _settle_if_ended(self, handle: ExecutionHandle) -> None:
        """Settles a handle that was made when its job was over: the letter was taken before, and nobody else knows the handle."""
        job_id = handle.job_id
        await self.journal.flush()
        mark = await self._host.mark_of(job_id)
        if mark is not None and mark.outcome and job_id not in self._given and not handle.done:
            await self.settle_from_journal(handle)
            self.handles.pop(job_id, None)
            handle.begun()

    async def take_letters(self) -> None:
        """Takes the letters that are in the inbox now, as far as there is room for the jobs that they begin."""
        await self._host.take_letters()

    async def take_over(self, agent: KernelAgent, entries: Sequence[Entry]) -> ExecutionHandle:
        """Begins a new job with entries that were copied from the history of another job (`jobs.fork_history`). The new
        job continues after these entries. First waits until fewer than `max_jobs` jobs run. Returns the handle of the
        job.
        """
        begin, *copied = entries
        assert isinstance(begin, Begin)
        job_id = begin.job
        await permitted_begin(agent.agent_id, unpack(self.journal.load(begin.body)).get("prompt"))
        entries = [msgspec.structs.replace(begin, labels=tuple(sorted({*begin.labels, *labels_here()}))), *copied]
        handle = self.handles[job_id] = self._new(job_id, agent, b"")
        self._begins_within(job_id, keyed=False)
        return await self._begun(handle, {"record": b"", "key": b"", "digest": b"", "taken": entries})

    def _begins_within(self, job_id: str, *, keyed: bool) -> None:
        """Notes the code that begins a job, if it may be repeated. `keyed`: True if it begins the same job then."""
        judge = repeated_around(keyed=keyed)
        if judge is not None:
            self._around[job_id] = judge
        elif keyed:
            check_attempts(job_id)

    async def _begun(
        self, handle: ExecutionHandle, inputs: Mapping[str, Any], named: ExecutionRequest | None = None
    ) -> ExecutionHandle:
        """Begins the job of `handle`, and returns `handle` when the BEGIN entry of the job is durable.

        - `inputs`: keyword arguments for `JobHost.begin`.
        - `named`: the request if it has an idempotency key, otherwise None.

        With `named`, first looks in the journal for an older job with that key. If there is one, begins no job:
        `handle` becomes the handle of the older job, and is returned at once. Otherwise waits until fewer than
        `max_jobs` jobs run, and then begins the job.

        Raises these errors:

        - IdempotencyConflict if the older job had another request.
        - UserError if the result of the older job is no longer in the journal, or if the kernel is closed before the
          job has begun.
        - The error that stops the kernel, if this happens before the job has begun.
        """
        job_id = handle.job_id
        try:
            before = None if named is None else await self._before(handle, named)
            if before is not None:
                return before
            await self._place(job_id)
            given = self._given[job_id] = asyncio.Event()
            self._host.begin(handle.agent.agent_id, job_id, **inputs)
        except BaseException:
            if self.handles.get(job_id) is handle:
                del self.handles[job_id]
            self._around.pop(job_id, None)
            self._leave(job_id)
            handle.begun(False)
            raise
        try:
            if not await handle.begins():
                self._check_begins()
            await self.journal.flush()
        finally:
            given.set()
        return handle

    async def _before(self, handle: ExecutionHandle, request: ExecutionRequest) -> ExecutionHandle | None:
        """Looks in the journal for an older job with the id of `handle`, open or ended. Returns None if there is none.
        Otherwise `handle` becomes the handle of that job, and is returned. If the job is open, it continues, together
        with its open child jobs and all open jobs below them.

        Raises IdempotencyConflict if the older job had another request, and UserError if its result is no longer in the
        journal.
        """
        job_id = handle.job_id
        if self._host.left and await self.is_left(job_id):
            await self._host.fetch_tree(job_id)
            self._check_begins()
        job = self.open.pop(job_id, None)
        if job is not None:
            try:
                self._check_same(request, handle, job.digest)
            except IdempotencyConflict:
                self.open[job_id] = job
                for each in [each for each in self.open if self.journal.begins.resumes and first_of(each) == job_id]:
                    self._resume(self.open.pop(each))  # `resume` has left the tree to this call
                raise
            self._resume(job, handle)
            for child in [each for each in self.open if first_of(each) == job_id]:  # their parents wait for them
                self._resume(self.open.pop(child))
            return handle
        if self.journal.begins.begun != self._of_clients:
            await self.journal.flush()  # a letter may have begun it since the last turn
        mark, queued = await call_journal(begun_or_queued, self.journal, job_id)
        self._check_begins()  # it may have been closed meanwhile
        if queued is not None:
            self._check_same(request, handle, queued.digest)
        if mark is None:
            return None
        self._check_same(request, handle, mark.digest)
        if not mark.outcome:  # its END is not durable yet, or a letter has begun it since the last turn
            await self.journal.flush()
            mark = await self._host.mark_of(job_id)
            self._check_begins()
            if mark is not None and not mark.outcome:
                if not await handle.begins():
                    self._check_begins()
                return handle
        await self.settle_from_journal(handle)
        self.handles.pop(job_id, None)
        self._around.pop(job_id, None)
        handle.begun()
        return handle

    def _check_same(self, request: ExecutionRequest, handle: ExecutionHandle, before: bytes) -> None:
        check_same(request, handle.job_id, before, self.journal.key, handle.agent.agent_id)

    def kept_pieces(self, job_id: str) -> list[Fragment]:
        """Returns the texts of the answers that models are writing in a job: for each answer one piece, which has all
        of its text so far.
        """
        return self._listener.kept.of(job_id)

    async def caught_up(self) -> None:
        """Waits until the events of all entries that the journal has now are published."""
        await self._host.log.wait_caught_up()

    async def forget(self, jobs: Collection[str]) -> None:
        """Removes ended jobs, and the approvals for other jobs that they have got (`JobHost.forget`)."""
        await self._host.forget(jobs)

    async def settle_from_journal(self, handle: ExecutionHandle) -> None:
        """Reads the outcome of an ended job from the journal, and sets it in the handle of the job. Raises UserError if
        the journal no longer has the END entry of the job.
        """
        await self.journal.flush()
        for _, entry in reversed(await call_journal(whole_entries, self.journal, handle.job_id)):
            if isinstance(entry, End):
                handle.ends(entry.labels)
                handle.settle(outcome_in(entry), ended=True)
                return
        raise UserError(
            f"job {handle.job_id} has ended so long ago that its result is forgotten",
            hint="keep_jobs= says how many are kept; another idempotency key makes another job",
        )

    async def tell_again(self) -> None:
        """Publishes again the events of the jobs that ended last before this host was started, because a crash may have
        lost these events. These are the jobs whose END is among the last 1,024 entries of a partition of the journal.
        Only the first call does this.
        """
        ends, self._positions = {} if self.journal.begins.shared else self._positions, {}
        start = {partition: max(0, end - _RETOLD_ENTRIES) for partition, end in ends.items()}

        def histories() -> list[list[tuple[Position, Entry]]]:
            tail = self.journal.read(start=start)
            ended = {each.job: at for at, each in tail if isinstance(each, End) and at.offset < ends[at.partition]}
            return [whole_entries(self.journal, job_id) for job_id in ended]

        for entries in await call_journal(histories) if any(ends.values()) else []:
            if entries and isinstance(begin := entries[0][1], Begin) and begin.agent in self._agents:
                self._host.log.publish_again(entries)

    async def resume(self) -> list[ExecutionHandle]:
        """Continues all jobs that were open at the start. Returns their handles at once, in the order in which the jobs began.
        Those that are still in the journal only are read tree by tree, when those before them run. A job waits for its
        turn if `max_jobs` jobs run. Raises UserError if the host is stopping.
        """
        self._check_begins()
        self.journal.begins.resumes = True
        marks = await call_journal(self.journal.open_marks) if self._host.left else []
        self._check_begins()
        found = [(job.began, self._resume(self.open.pop(job.job_id))) for job in list(self.open.values())]
        agents = {cut(agent_id): agent for agent_id, agent in self._agents.items()}
        trees: dict[str, list[str]] = {}
        executed = set(self.handles)  # `execute` goes on with the trees of these
        for mark in marks:
            root = first_of(mark.job)
            if self._is_left(mark) and root not in executed:
                handle = self.handles[mark.job] = self._new(mark.job, agents[mark.agent], mark.digest)
                handle.begun()
                found.append((mark.began, handle))
                trees.setdefault(root, []).append(mark.job)
        if trees:
            self._host.spawn(self._go_on(deque(trees.values())), "what goes on with open jobs")
        return [handle for _, handle in sorted(found, key=itemgetter(0))]

    async def _go_on(self, trees: deque[list[str]]) -> None:
        """Reads trees of open jobs, some at a time, and lets them run."""
        while trees:
            some = list[str]()
            while trees and len(some) < _FETCHED_AT_ONCE:
                some += trees.popleft()
            await self._host.fetch(some)
            for job_id in some:
                if (job := self.open.pop(job_id, None)) is not None:
                    self._resume(job, self.handles.get(job_id))
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            seat = _Seat(partial(_let_in, turn))
            self._admission.wait(seat, continues=True)
            self._admission.go_on()
            try:
                await turn  # those before it run
            finally:
                self._admission.leave(seat)
                self._admission.go_on()
        self._host.left = 0

    def _resume(self, job: OpenJob, handle: ExecutionHandle | None = None) -> ExecutionHandle:
        if handle is None:
            handle = self.handles[job.job_id] = self._new(job.job_id, self._agents[job.agent], job.digest)
        handle.begun()
        self._given[job.job_id] = self._is_given
        self._when_free(job.job_id, partial(self._host.resume, job))
        return handle

    def _begun_by_letter(self, job: OpenJob) -> None:
        """Lets a job that a letter has begun, for the first time or again, or that another worker had, run as soon as fewer
        than `max_jobs` jobs run. Tells of the end of one that was cancelled before it has begun.
        """
        job_id, goes_on = job.job_id, job.run > 1 or not job.fresh
        self._by_letters += 1
        self._of_clients += not goes_on
        if job.ended is not None:  # it was cancelled in the queue, and its agent may be missing here
            if (waited := self.handles.get(job_id)) is not None:
                waited.begun()
            self.over(job_id, job.ended.outcome)
            return
        if job_id not in self.handles:
            self.handles[job_id] = self._new(job_id, self._agents[job.agent], job.digest)
        self.handles[job_id].begun()
        self._given[job_id] = self._is_given
        wait = partial(self._wait, job_id, partial(self._host.resume, job), continues=goes_on)
        if goes_on and not job.fresh:
            self._lanes.go_on(first_of(job_id), wait)
        else:
            wait()

    async def _refusal(self, job: OpenJob) -> str:
        """Returns the reason why the agents here cannot continue a job of another worker, or "". It is found out before the
        job is in memory, so that nothing of it has to be taken back.
        """
        agent = self._agents.get(job.agent)
        if agent is None:
            return f"this code has no agent {job.agent}"
        entries = [entry for _, entry in await call_journal(whole_entries, self.journal, job.job_id)]
        if cancelled_unrun(entries) is not None:  # its function is not called, so it fits
            return ""
        blocked = self.why_blocked(agent, entries)
        return "" if blocked is None else str(blocked)

    def why_blocked(self, agent: KernelAgent, entries: Sequence[Entry]) -> SabotError | None:
        """Returns the error that would block a job with these entries, or None. Runs its function over its recorded results,
        without calling anything; the job is not in memory then.
        """
        job_id = entries[0].job
        history = History.of(job_id, entries, parked=len(entries))
        run = JobRun(job_id, history, key=self.journal.key, code=agent.code)
        run.lost_policy = history.lost(self._declared)
        try:
            run.start(agent.coroutine)
        finally:
            run.discard()
        return run.blocked

    async def await_letter(self, job_id: str) -> ExecutionHandle | None:
        """Waits until a job begins whose beginning or retry is in the inbox of the journal, and returns the handle of this
        run. Returns None if no such letter is there. Raises UserError if the kernel is closed before the job begins.
        """
        while True:
            before, (_, begin) = self._by_letters, await call_journal(begun_or_queued, self.journal, job_id)
            if begin is None:
                await self.take_letters()  # it may have left the inbox a moment ago, and its job may not run yet
            if (known := self.handles.get(job_id)) is not None:
                return known
            # else the letter may have been taken meanwhile, and the job may have ended
            if begin is None or self._by_letters == before:
                break
        if begin is None or begin.agent not in self._agents:
            return None
        self._check_begins()
        handle = self.handles[job_id] = self._new(job_id, self._agents[begin.agent], begin.digest)
        if not await handle.begins():
            self._check_begins()
        await self.journal.flush()
        return handle

    # -- places -------------------------------------------------------------------------------------------------------

    async def _place(self, job_id: str) -> None:
        """Waits until fewer than `max_jobs` jobs run, and counts this job as running."""
        free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._callers.add(free)
        try:
            self._wait(job_id, partial(_let_in, free), continues=False)
            await free
        finally:
            self._callers.discard(free)

    def _when_free(self, job_id: str, go: Callable[[], object]) -> None:
        self._wait(job_id, go, continues=True)

    def _wait(self, job_id: str, go: Callable[[], object], *, continues: bool) -> None:
        self._leave(job_id)
        seat = self._seats[job_id] = _Seat(go)
        self._of_trees[first_of(job_id)] += 1
        self._admission.wait(seat, continues=continues)
        self._admission.go_on()

    def _show(self) -> None:
        """Starts a task in which the stores of the program copy the new entries of the journal. If the task runs
        already, it continues until these entries are copied too. The listener calls this when entries have become
        durable.
        """
        self._news = True
        # not a task of the host, which would cancel it when it closes
        if self._showing is None or self._showing.done():
            self._showing = asyncio.get_running_loop().create_task(self._show_all(), name=_SHOWS)
            watch_task(self._showing, _SHOWS, partial(self._broke, _SHOWS), stopped=lambda: self._host.stopping)

    async def _show_all(self) -> None:
        while self._news:
            self._news = False
            for store in self._shown:
                await store.became_durable()

    def _leave(self, job_id: str) -> None:
        seat = self._seats.pop(job_id, None)
        if seat is not None:
            root = first_of(job_id)
            self._of_trees[root] -= 1
            if not self._of_trees[root]:
                del self._of_trees[root]
            self._admission.leave(seat)
            self._admission.go_on()

    # -- called by its agents (`jobs.JobWatch`) -----------------------------------------------------------------------

    def began(self, job_id: str) -> None:
        handle = self.handles.get(job_id)
        if handle is not None:
            handle.begun()

    def rests(self, job_id: str) -> None:
        self.journal.begins.rests(job_id)
        self._leave(job_id)
        root = first_of(job_id)
        if self._lanes.limits and root not in self._of_trees and self._lanes.park(root):
            self._host.put(LettersCame())

    def wakes(self, job_id: str) -> None:
        go_on = partial(self._when_free, job_id, partial(self._host.parking.wake, job_id))
        self._lanes.go_on(first_of(job_id), go_on)

    def child(self, agent: KernelAgent, job_id: str, request: ExecutionRequest, behalf: Behalf) -> None:
        if job_id in self.handles:
            return
        parent = self._host.running.get(parent_of(job_id)[0])
        if parent is not None and isinstance(parent.owner, KernelAgent):
            request = replace(request, policy_ref=parent.owner.policy_of(parent.job))
        if parent is not None and parent.due_s and not self._children.outlive:
            left_s = max(0.0, parent.due_s - self._host.steady_s())
            request = replace(request, budgets=BudgetSpec(max_runtime_seconds=left_s))
        record = encode_request(request)
        self.handles[job_id] = self._new(job_id, agent, b"")
        inputs: dict[str, Any] = {"record": record, "key": b"", "digest": b"", "behalf": behalf, "form": REQUEST}
        begin = partial(self._host.begin, agent.agent_id, job_id, **inputs)

        # If the child ended, but a crash came before its parent was told, it runs over its own history again.
        async def look() -> None:
            await self.journal.flush()  # it may have ended just now
            mark = await call_journal(self.journal.job, job_id)
            if mark is not None and not mark.outcome:  # another worker has it: it would run twice
                why = EffectError("JobCancelled", f"job {job_id} was cancelled, and a call of it is still under way")
                self.handles.pop(job_id).settle(why, ended=False)
                self._host.child_not_begun(job_id, "cancelled", pack_error(why))
                return
            before = await call_journal(last_begin, self.journal, job_id)
            self._when_free(job_id, partial(begin, run=1 if before is None else before.run + 1))

        self._host.spawn(look(), f"the look for job {job_id}")

    async def recall(self, session: SessionId) -> Recalled:
        await self.journal.flush()  # a caller may have the result of the job before, whose END is not durable yet
        return await call_journal(recall, self.journal, session)

    def says(self, job_id: str, said: bytes | BaseException, labels: Collection[str]) -> None:
        self._said[job_id] = said, labels

    def over(self, job_id: str, outcome: str) -> None:
        said, labels = self._said.pop(job_id, (None, ()))
        handle = self.handles.pop(job_id, None)
        self._given.pop(job_id, None)
        if handle is not None:
            if outcome == "cancelled":
                said = outcome_of(job_id, outcome, b"")
            elif isinstance(said, BaseException):
                said = outcome_of(job_id, outcome, pack_error(said))
            elif said is None:
                said = InternalError(f"job {job_id} has ended ({outcome}), and nobody said how")
            handle.ends(labels)
            self._untold.append((handle, said))
            if not self._telling:
                self._telling = True
                self._host.spawn(self._tell_all(), "what tells callers of the ends of jobs")
        self._leave(job_id)
        self._gives_up(job_id)
        self._trim()

    async def _tell_all(self) -> None:
        try:
            while self._untold:
                await self._tell_ended()
        finally:
            self._telling = False

    async def _tell_ended(self) -> None:
        """Waits until the END entries of the jobs that have ended are durable, then sets the outcomes of their handles. Without
        the wait, a crash or a full disk could undo an end of which a caller knows: the next start would run the job again.
        """
        if count := len(self._untold):
            await self.journal.flush()
            told, self._untold = self._untold[:count], self._untold[count:]
            for handle, outcome in told:
                handle.settle(outcome, ended=True)

    def _gives_up(self, job_id: str, *, blocked: bool = False) -> None:
        """Ends the seat of a job that is over, or that is blocked."""
        if self._lanes.leave(job_id, blocked=blocked):
            self._host.put(LettersCame())

    def is_blocked(self, job_id: str, error: NonDeterminism) -> None:
        self._given.pop(job_id, None)
        handle = self.handles.get(job_id)  # it stays, since the job has not ended
        if handle is not None:
            handle.settle(error, ended=False)
        self._leave(job_id)
        self._gives_up(job_id, blocked=True)

    def asked_to_exit(self, job_id: str, error: BaseException) -> None:
        self._broke(f"job {job_id}", error)

    def _trim(self) -> None:
        """Counts one ended job. Each time after `keep_jobs / 10` more jobs have ended, also removes old entries from
        the journal. The histories of the last `keep_jobs` ended jobs remain.
        """
        self._ended += 1
        if self._ended % max(1, self._keep_jobs // _TRIMS):
            return
        self._marks.append((self._ended, dict(self._host.log.facts()["positions"])))
        before: Mapping[int, int] | None = None
        while self._marks and self._ended - self._marks[0][0] >= self._keep_jobs:
            _, before = self._marks.popleft()
        if before is not None:
            found = before
            before_ms = max(1, round((self._clock.time() - self._dedupe_s) * 1000))
            self._host.log.trim(lambda: found, before_ms, sessions=True)


class _Seat(msgspec.Struct, eq=False):
    """The data of a job of a kernel for its JobAdmission, which decides when the job runs. `go` is a function that lets
    the job begin or continue. `place` is the state of the job in the admission.
    """

    go: Callable[[], object]
    place: Place = ""


def _let_in(caller: "asyncio.Future[None]") -> None:
    """Lets a caller of `execute` continue, because its job may now run. Does nothing if that caller was cancelled
    meanwhile; `KernelHost._begun` then removes the job from the admission.
    """
    if not caller.done():
        caller.set_result(None)


class _KernelEvents(JobEvents):
    def __init__(
        self,
        events: InMemoryEventBus,
        given: dict[str, asyncio.Event],
        seen: Callable[[Notice], None],
        durable: Callable[[], None] | None,
    ) -> None:
        """Makes the listener that publishes the events of a kernel's jobs, and keeps the pieces of answers until they
        are recorded.

        - `events`: the bus.
        - `given`: by job id, an asyncio.Event for each job that has not called a model yet. It is set when the caller
          of `execute` has got the handle of the job.
        - `seen`: a function that is called with each notice.
        - `durable`: a function that is called each time after entries have become durable, or None.
        """
        super().__init__(events.publish, events.wants)
        self._given, self._seen, self._durable = given, seen, durable
        self.kept = KeptPieces()

    async def wants_fragments(self, job_id: str) -> bool:
        """Returns True, because somebody may listen when the model has begun its answer. This is called before each
        request to a model.

        Before the first request of a job, this method waits until the caller of `execute` has the handle of the job,
        and then for 20 turns of the event loop. In this time the caller can begin to iterate over
        `ExecutionHandle.events`, and so gets the pieces of even the quickest model apart.
        """
        given = self._given.get(job_id)
        if given is not None:
            await given.wait()
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self._given.pop(job_id, None)
        return True

    async def publish(self, notice: Notice) -> None:
        if type(notice) is Fragment:
            self.kept.add(notice)  # before it is published: what a listener finds kept, it may leave out of its queue
        await super().publish(notice)
        if type(notice) is EffectResult:
            if self.kept:
                self.kept.drop(notice.job, notice.ordinal)
        elif type(notice) is End:
            self.kept.drop(notice.job)
        elif type(notice) in _WANT_TO_GO_ON:
            self._seen(notice)
        elif type(notice) in (Fragment, Blocked, EarlierEnd):
            return
        if self._durable is not None:
            self._durable()
