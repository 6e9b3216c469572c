"""RuntimeKernel: the interface of a kernel."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sabot.agents.accounts.budgets import Budget
from sabot.agents.accounts.contract import LedgerWriter, checked_writer
from sabot.agents.accounts.guard import LedgerGuard, checked_budgets, ledger_of
from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.accounts.journal_rows import update_ledger
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.rows import InMemoryLedgerWriter
from sabot.agents.actions import ActionManager, ActionStore
from sabot.agents.app_jobs import AppJobs
from sabot.agents.context import PolicyRef, checked_word
from sabot.agents.events.bus import InMemoryEventBus, RuntimeEvent
from sabot.agents.events.job_events import events_of
from sabot.agents.job_checks import CheckedJob, verdict_of
from sabot.agents.jobs import JobStore
from sabot.agents.kernel.client import ClientHandle, JobClient, KernelStore, refuse_memory
from sabot.agents.kernel.handle import ElsewhereHandle, ExecutionHandle, outcome_in
from sabot.agents.kernel.hosting import KernelHost
from sabot.agents.kernel.jobs import ExecutionRequest, KernelAgent, job_id_of, other_policy, policy_words
from sabot.agents.kernel.schedules import Schedule, ScheduleClock, Schedules, check_steps
from sabot.agents.replay import JobCode, Recording, record_job
from sabot.agents.session_turns import SessionId, jobs_of
from sabot.agents.store import LentStore
from sabot.api.child_limits import ChildLimits, checked_limits
from sabot.base.backoff import Backoff
from sabot.base.checks import Of, Whole, check
from sabot.base.claims import ObjectClaims
from sabot.base.config import Duration, checked_name, checked_text, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.threads import run_connected, run_in_thread, run_to_end, threads
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.judging import judged_clock, refuse_without_rules
from sabot.engine.runtime.life.host import interpreter
from sabot.engine.runtime.tasks.blocking import BlockingMonitor
from sabot.errors import AppLocked, SabotError, TransientError, UserError, short_repr
from sabot.jobs.guard import EffectGuard, checked_guard, declared_by, guard_of
from sabot.jobs.history import History
from sabot.jobs.host import STOP_GRACE_SECONDS
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.log import Fragment
from sabot.jobs.open_jobs import begun_or_queued, open_jobs, whole_entries
from sabot.jobs.run import JobRun
from sabot.jobs.url_ids import stored_id
from sabot.journal import Journal, JournalReader
from sabot.journal.entries import Begin, Entry, Letter
from sabot.journal.lanes import JobLimit
from sabot.journal.memory import MemoryJournal, MemoryStorage
from sabot.journal.opening import ServerWait, open_journal
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine

_log = logging.getLogger(__name__)

_SCHEDULE = 'Schedule("report", "reporter", "0 9 * * *")'
_running: "ObjectClaims[RuntimeKernel]" = ObjectClaims()  # of journals
_ANEW = Backoff(0.1, 5.0)  # the waits between attempts to open the journal again


@answers_wrong_options
class RuntimeKernel:
    """A kernel: it runs agents as durable jobs, whose steps are recorded in a journal. For example, `kernel =
    RuntimeKernel.create(agent=agent, journal="jobs")`.

    A kernel belongs to one event loop. It opens its journal when it is first used, or with `async with`. Until the
    kernel is closed, no other process can open that journal. Jobs that are already open in the journal continue only
    after `resume` is called.

    `kernel.jobs` (an AppJobs) and `kernel.actions` (an ActionManager) read and change the jobs and their questions.
    They work at any time: while this kernel has the journal open, while another process has it open, and while it is
    closed.
    """

    def __init__(
        self,
        engine: ExecutionEngine | None,
        agent: "Agent | Callable[..., Any] | Sequence[Agent | Callable[..., Any]]",
        *,
        journal: str | Path | Journal | None = None,
        policy: EffectGuard | None = None,
        budgets: Sequence[Budget] | Ledger | None = None,
        ledger_writer: LedgerWriter | None = None,
        job_store: JobStore | None = None,
        action_store: ActionStore | None = None,
        name: str = "kernel",
        event_bus: InMemoryEventBus | None = None,
        max_jobs: int = 256,
        children: ChildLimits | None = None,
        keep_jobs: int = 10_000,
        dedupe: Duration = "7d",
        stop_grace: Duration = STOP_GRACE_SECONDS,
        version: str = "",
        shared: bool = False,
        limits: Sequence[JobLimit] = (),
        schedules: Sequence[Schedule] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Makes a kernel. Raises UserError if an argument is not valid.

        - `engine`: the engine through which all agents call models, in place of their own engines. With None, each
          Agent uses its own.
        - `agent`: an Agent, a function that takes a DurableContext, or a list of these. If there are several, a request
          names one of them, and `ctx.child` can begin jobs of each.
        - `journal`: the folder of the journal (SQLite), a postgresql:// or kafka:// address, or a Journal, which the
          kernel does not close. With None it is the journal of `job_store` or `action_store` if they have one;
          otherwise the journal is in memory.
        - `policy`: decides which effects jobs may make. None allows all.
        - `budgets`: the budgets that limit the usage of scopes: a list of Budgets, or a Ledger, which the kernel does
          not close. [] means that usage is recorded in a ledger, but not limited. None means that there is no ledger,
          unless there is a `ledger_writer`; then the journal has the usage of answers.
        - `ledger_writer`: stores the recorded usage. By default the usage is stored in the folder of the journal, if
          that is a folder.
        - `job_store`, `action_store`: stores that also show the jobs and actions of this kernel.
        - `name`: the name of the kernel. The ids of its agents begin with it, so a later kernel with the same name
          finds its jobs in the journal.
        - `event_bus`: the bus to which the kernel publishes events. With None the kernel makes one.
        - `max_jobs`: the most jobs that run at the same time. Jobs that were removed from memory, because they wait for
          something that takes long, do not count.
        - `children`: the limits for the jobs that one job may begin.
        - `keep_jobs`: the journal keeps the histories of at least this number of ended jobs, those that ended last.
        - `dedupe`: the time for which the journal keeps the ids of ended jobs, and the histories of failed jobs.
        - `stop_grace`: the time that calls of tools and models have to finish when the kernel is closed.
        - `version`: the version of the code. With "" it is a digest of the code.
        - `shared`: True for one of several workers: kernels of the same code over one journal in PostgreSQL. Each takes
          jobs that clients begin, and after `resume` goes on with the jobs of workers that have ended.
        - `limits`: the limits of agents (JobLimit): how many of their jobs run at a time, and begin in a time. At most one for
          each agent.
        - `schedules`: the schedules (Schedule) by which this kernel begins jobs while it is open. Several kernels over one journal
          begin one job for each time.
        - `clock`: the clock of the kernel. A Journal that is passed as `journal` has its own clock, which is then used
          instead.
        """
        self.name = checked_name(name, "RuntimeKernel: name")
        for word, given, kind, hint in (
            ("engine", engine, ExecutionEngine, "an ExecutionEngine"),
            ("event_bus", event_bus, InMemoryEventBus, "an InMemoryEventBus"),
            ("journal", journal, str | Path | Journal | MemoryStorage, "a folder, an address, or a Journal"),
        ):
            if given is not None and (given == "" or not isinstance(given, kind)):
                raise UserError(f"RuntimeKernel: {word}={short_repr(given)}", hint=hint)
        refuse_memory("RuntimeKernel", journal, "leave journal= out for a journal in memory")
        self._shown, self._shared = _stores_of(job_store, action_store), shared
        if journal is None:
            journal = next((home for each in self._shown if (home := each.home) is not None), None)
        check("RuntimeKernel: max_jobs", max_jobs, Whole(1))
        check("RuntimeKernel: keep_jobs", keep_jobs, Whole(0))
        self.event_bus = event_bus if event_bus is not None else InMemoryEventBus()
        self._options: dict[str, Any] = {
            "max_jobs": max_jobs,
            "children": checked_limits("RuntimeKernel", children),
            "keep_jobs": keep_jobs,
            "dedupe_s": parse_seconds(dedupe, name="dedupe", zero=False),
            "grace_s": parse_seconds(stop_grace, name="stop_grace"),
            "clock": judged_clock(journal.clock if isinstance(journal, Journal) else clock),
        }
        version, clock = checked_text(version, "version"), self._options["clock"]
        one = isinstance(agent, Agent) or callable(agent)
        if not one and (isinstance(agent, str | bytes) or not isinstance(agent, Sequence)):
            raise UserError(
                f"RuntimeKernel: agent={short_repr(agent)}", hint="an Agent, `async def f(ctx)`, or a list of them"
            )
        agents: list[Any] = [agent] if one else list(agent)  # type: ignore[arg-type]
        made = [KernelAgent(self.name, each, engine, clock, version, checked_guard(policy)) for each in agents]
        self._agents = {each.name: each for each in made}
        if not made or len(self._agents) < len(made):
            names = ", ".join(each.name for each in made)
            raise UserError(
                f"kernel {self.name}: its agents are {names or 'none'}", hint="one or more, each with its own name"
            )
        self._limits = self._checked_limits(limits)
        self._schedules = self._checked_schedules(schedules)
        self._place = MemoryStorage(clock) if journal is None else journal
        self.policy, self._budgets, self._writer = checked_guard(policy), budgets, ledger_writer
        if budgets is not None:
            checked_budgets(budgets)
        if ledger_writer is not None:
            checked_writer(ledger_writer)
        stores = {
            "job_store": job_store,
            "action_store": action_store,
            "budgets": budgets,
            "ledger_writer": ledger_writer,
        }
        alone = [
            f"{word}="
            for word, value in stores.items()
            if value is not None and not (isinstance(value, Ledger) and value.shared)
        ]
        if shared and alone:
            raise UserError(
                f"kernel {self.name} has shared=True and {', '.join(alone)}: they know of the jobs of one worker only",
                hint="budgets=Ledger(PostgresLedgerWriter(URL, shared=True), budgets=[…]) counts the calls of all workers; "
                "kernel.jobs and kernel.actions show their jobs; BudgetSpec limits each job",
            )
        self.ledger: Ledger | None = budgets if isinstance(budgets, Ledger) else None
        if budgets is None and ledger_writer is not None:
            self._budgets = []
        self._store = KernelStore(self._place, self.name, clock)
        self.jobs, self.actions = AppJobs(self._store), ActionManager(self._store)
        self.schedules = Schedules(self.name, self._store, self.execute)
        for each in self._shown:
            each.lend(self._store)
        self._host: KernelHost | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the host
        self._watch: BlockingMonitor | None = None
        self._opening = asyncio.Lock()
        self._booking = asyncio.Lock()  # held while the ledger is made
        self._closed = False
        self._client = JobClient.of_store(KernelStore(self._place, self.name, clock), self.name, self._declared())
        self._elsewhere_jobs: dict[asyncio.Task[None], ExecutionHandle] = {}  # handles of jobs of other workers
        self._anew: asyncio.Task[None] | None = None  # makes this kernel another worker, after it has lost its lease
        self._between = False  # the host has lost its lease, and `_anew` has not ended

    def _checked_limits(self, limits: Sequence[JobLimit]) -> dict[str, JobLimit]:
        """Returns the limits by the ids of their agents. Raises UserError."""
        found: dict[str, JobLimit] = {}
        if isinstance(limits, str | bytes | JobLimit) or not isinstance(limits, Sequence):
            raise UserError(
                f"RuntimeKernel: limits={short_repr(limits)}", hint='limits=[JobLimit("support", concurrency=5)]'
            )
        for each in limits:
            check("RuntimeKernel: limits", each, Of(JobLimit, 'JobLimit("support", concurrency=5)'))
            agent = self._agent(each.agent).agent_id
            if agent in found:
                raise UserError(
                    f"kernel {self.name} has two limits of agent {each.agent}", hint="one JobLimit for each agent"
                )
            found[agent] = replace(each, agent=agent)
        return found

    def _checked_schedules(self, schedules: Sequence[Schedule]) -> list[Schedule]:
        if isinstance(schedules, str | bytes | Schedule) or not isinstance(schedules, Sequence):
            raise UserError(f"RuntimeKernel: schedules={short_repr(schedules)}", hint=f"schedules=[{_SCHEDULE}]")
        for each in schedules:
            agent = self._agent(check("RuntimeKernel: schedules", each, Of(Schedule, _SCHEDULE)).agent)
            agent.check_prompt(each.request(0))
            check_steps(each)
        names = [each.name for each in schedules]
        if len({*names}) < len(names):
            raise UserError(f"kernel {self.name} has schedules {', '.join(names)}", hint="each with its own name")
        return list(schedules)

    async def _look(self, find: Callable[[JournalReader], Any]) -> Any:
        """Returns what a function finds in the journal."""

        def look() -> Any:
            with self._store.reader() as reader:
                return find(reader)

        return await run_connected(look)

    @classmethod
    def create(cls, *, agent: Any, engine: ExecutionEngine | None = None, **options: Any) -> "RuntimeKernel":
        """Makes a kernel. `options` are the other keyword arguments of `RuntimeKernel(…)`."""
        return cls(engine, agent, **options)

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> "RuntimeKernel":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Opens the journal. Repeated calls do nothing. If the server of the journal does not answer, waits until it does, and
        logs a warning: containers start in any order. So does `async with`.

        Raises AppLocked if another process has the journal open. Raises UserError if the journal has open jobs of agents that
        this kernel does not have, or if the kernel was closed; also if the server refuses the user, the password or the
        database, and if the name of its host stays unknown for a minute.
        """
        wait = ServerWait()
        while True:
            try:
                await self._started()
                return
            except TransientError as error:
                wait_s = wait.next_s(error)
                _log.warning("kernel %s waits for its journal: %s", self.name, " ".join(str(error).split()))
            await asyncio.sleep(wait_s)

    async def serve(self) -> None:
        """Runs the jobs of the journal: those that are open, as after `resume`, and those that clients begin. Never returns.
        Cancel it to stop, and close the kernel. Raises the error that stops the kernel, and the errors of `start`.
        """
        await self.resume()
        while True:
            await (await self._started()).failed.wait()

    async def _started(self) -> KernelHost:
        if (anew := self._anew) is not None and anew.get_loop() is asyncio.get_running_loop():
            await asyncio.wait([anew])
        if self._host is None:
            async with self._opening:
                if self._host is None:
                    self._host = await self._opened()
        if self._closed:
            raise UserError(f"kernel {self.name} is closed", hint="make another one over its journal")
        if self._loop is not asyncio.get_running_loop():
            raise self._elsewhere()
        self._host.check()
        return self._host

    def _elsewhere(self) -> UserError:
        over = "that has ended" if self._loop is None or self._loop.is_closed() else "that runs elsewhere"
        return UserError(
            f"kernel {self.name} was started on another event loop, {over}: its jobs run there, and nowhere else",
            hint="use it within one asyncio.run(main()); in each further one make another kernel over its journal, after "
            "`await kernel.close()`, or in `async with RuntimeKernel.create(…) as kernel:`",
        )

    def _declared(self) -> list[str]:
        return [name for name, given in (("policy", self.policy), ("budgets", self._budgets)) if given is not None]

    async def _opened(self) -> KernelHost:
        if self._closed:
            raise UserError(f"kernel {self.name} is closed", hint="make another one over its journal")
        refuse_without_rules(f"kernel {self.name}", self._declared())
        place = self._place
        if self.policy is not None:
            functions = [each.agent for each in self._agents.values() if not isinstance(each.agent, Agent)]
            ids = [each.agent_id for each in self._agents.values()]
            self.policy.check_names(functions, ids, f"kernel {self.name}: its policy")
        agents = {each.agent_id: each for each in self._agents.values()}
        opened: list[Journal] = []  # has the journal even if this call is cancelled while a thread opens it
        try:
            await run_to_end(self._open_journal(opened))
            journal = opened[0]
            self._claim(journal)
            limits = JobLimits()
            policy = guard_of(await self._guards(limits))
            if missing := await call_journal(journal.begins.lacks, declared_by(policy)):
                raise self._lacks(journal, missing)
            how = {**self._options, "policy": policy, "around": limits.around, "limits": self._limits}
            how["on_lost"] = self._lost if self._shared and journal is not place else None
            host = KernelHost(journal, agents, partial(ExecutionHandle, self), self.event_bus, self._shown, **how)
            await host.start()
        except BaseException:
            for each in opened:
                if each is not place:
                    await run_to_end(run_in_thread(each.close))
            raise
        self._store.journal = journal
        for schedule in self._schedules:
            agent_id = self._agent(schedule.agent).agent_id
            clock, begin = self._options["clock"], self._begin_scheduled
            times = ScheduleClock(schedule, agent_id, clock, self._look, begin, self.schedules)
            host.run_beside(times.run(), f"schedule {schedule.name}")
        self._loop = asyncio.get_running_loop()
        if not threads.simulated:
            self._watch = BlockingMonitor()
        interpreter.suit()
        return host

    def _lacks(self, journal: Journal, missing: Sequence[str]) -> UserError:
        options = " and ".join(f"{each}=" for each in missing)
        return UserError(
            f"kernel {self.name} has no {options}, and other workers of the {journal.where} have: it would make calls of the same jobs "
            "that nobody judges or counts",
            hint="give each worker the same options; policy=PolicyEngine([]) says that no rule is meant",
        )

    def _claim(self, journal: Journal) -> None:
        """Raises AppLocked if another kernel of this process runs over the same Journal: each would make the calls of all of
        its jobs.
        """
        other = _running.take(journal, self, gives_way=lambda before: not before._runs)
        if other is not None:
            raise AppLocked(
                f"kernel {self.name}: the {journal.where} belongs to kernel {other.name} of this process",
                hint="give one kernel all agents, RuntimeKernel.create(agent=[…]); or close that one first",
            )

    @property
    def _runs(self) -> bool:
        alive = self._loop is not None and not self._loop.is_closed()
        return alive and self._host is not None and self._host.failure is None

    def _lost(self) -> None:
        self._between = True
        if not self._closed:
            self._anew = asyncio.get_running_loop().create_task(
                self._begin_anew(), name=f"kernel {self.name} begins anew"
            )

    async def _begin_anew(self) -> None:
        """Makes this kernel another worker of its journal, after it has lost its lease: drops the jobs in memory, which go on
        elsewhere. If it has called `resume`, so does the new one. Until then all calls of the kernel wait. They raise the
        error that has stopped the old one if the journal cannot be opened again.
        """
        async with self._opening:
            lost, failures = self._host, 0
            assert lost is not None
            assert lost.failure is not None
            _log.warning("kernel %s begins anew, as another worker: %s", self.name, lost.failure)
            resumes = lost.journal.begins.resumes
            await run_to_end(self._drop(lost, lost.failure))
            while True:
                try:
                    host = await self._opened()
                    break
                except TransientError as error:
                    failures += 1
                    _log.warning("kernel %s does not begin anew yet: %s", self.name, error)
                    await asyncio.sleep(_ANEW.wait_s(failures))
                except Exception:
                    _log.exception("kernel %s does not begin anew", self.name)
                    self._between = False
                    return
            self._host, self._between = host, False
            if resumes:
                host.resumed = True
                await host.resume()
            _log.warning("kernel %s goes on as another worker", self.name)

    async def _open_journal(self, opened: list[Journal]) -> None:
        """Opens the journal of this kernel, and appends it to `opened`."""
        place, clock = self._place, self._options["clock"]
        if isinstance(place, Journal):
            opened.append(place)
        elif isinstance(place, MemoryStorage) and not self._shared:
            opened.append(MemoryJournal(place))
        else:
            address = "the memory of this process" if isinstance(place, MemoryStorage) else place
            opened.append(
                await run_in_thread(partial(open_journal, address, app=self.name, clock=clock, shared=self._shared))
            )

    async def _guards(self, limits: JobLimits) -> list[EffectGuard]:
        """Returns the objects that decide on each call of a job, in this order: the policy, the limits of jobs, and the
        ledger with its budgets.
        """
        guards = [*([] if self.policy is None else [self.policy]), limits]
        if self._budgets is None:
            return guards
        ledger = await self._accounts(self._budgets)
        return [*guards, LedgerGuard(ledger, closes=ledger is not self._budgets)]

    async def _accounts(self, budgets: Sequence[Budget] | Ledger) -> Ledger:
        async with self._booking:
            if self.ledger is None:
                clock, place = self._options["clock"], self._place
                if self._writer is not None and not isinstance(budgets, Ledger):
                    self.ledger = Ledger(self._writer, budgets=budgets, clock=clock)
                else:
                    in_folder = isinstance(place, Path) or (isinstance(place, str) and "://" not in place)
                    folder = Path(str(place)) if in_folder else None
                    self.ledger = await run_to_end(run_in_thread(ledger_of, budgets, folder, clock))
            return self.ledger

    async def accounts(self) -> Ledger | None:
        """Returns the ledger of this kernel, from which a program can read the recorded usage. Returns None if there
        is no ledger (`budgets` and `ledger_writer` are None).

        This also works while another process has the journal open. If the rows of the ledger are stored nowhere else,
        they are read from the journal. The kernel closes a ledger that it has made itself. If this kernel is never
        started, the caller has to close the ledger.
        """
        if self._budgets is None:
            return None
        ledger = await self._accounts(self._budgets)
        if self._host is None and isinstance(ledger.writer, InMemoryLedgerWriter) and "://" in str(self._place):
            with self._store.reader() as reader:
                await update_ledger(ledger, reader)
        return ledger

    async def close(self) -> None:
        """Stops the kernel. Calls of tools and models have the time `stop_grace` to finish. Open jobs remain in the
        journal, and their handles raise UserError. They continue when a later kernel over this journal calls `resume`.
        The engine is not closed. Repeated calls do nothing. If the event loop of the kernel was closed before, only the
        journal is closed.

        After everything is closed, raises the error that had stopped the kernel before. If `job_store` or
        `action_store` fails during the close, raises that error.
        """
        anew = self._anew
        if anew is not None and anew.get_loop() is asyncio.get_running_loop() and not anew.done():
            anew.cancel()
            await asyncio.wait([anew])
        async with self._opening:
            was_closed, self._closed = self._closed, True
            if self._host is None or was_closed:
                return
            why = UserError(
                f"kernel {self.name} was closed before the end of the job", hint="await kernel.resume() goes on with it"
            )
            alive = self._loop is asyncio.get_running_loop()
            if not alive and self._loop is not None and not self._loop.is_closed():
                self._closed = False
                raise self._elsewhere()
            for task, handle in list(self._elsewhere_jobs.items()) if alive else ():
                task.cancel()
                handle.settle(why, ended=False)
            await self._drop(self._host, why if alive else None)
        if alive and not self._between:  # a lost lease has stopped no kernel: its jobs go on in other workers
            self._host.check()

    async def _drop(self, host: KernelHost, why: SabotError | None) -> None:
        """Stops a host, and closes its journal. `why`: the error for its handles; None if its event loop has ended, and its
        tasks with it.
        """
        if host.closed:
            return
        host.closed, journal = True, host.journal
        _running.release(journal, self)
        if self._watch is not None:
            self._watch.close()
        try:
            if why is not None:
                await run_to_end(host.close(why))
        finally:  # also if this call is cancelled: a second one does nothing
            interpreter.restore()
            if journal is not self._place:
                self._store.journal = None
                await run_to_end(run_in_thread(journal.close))

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def execute(self, request: ExecutionRequest) -> ExecutionHandle:
        """Begins a job, and returns its handle when the beginning of the job is durable. First waits until fewer than
        `max_jobs` jobs run.

        If the agent already has a job of this scope with the same idempotency key, begins no job, and returns the
        handle of that job without waiting for other jobs. If that job was open when the kernel opened the journal, and
        `resume` was not called yet, it continues now, together with the jobs below it.

        If several workers share the journal, a job with an idempotency key begins in any of them, and the call waits for no
        other jobs. The handle is good wherever the job runs; it has no pieces of answers of another worker.

        Raises IdempotencyConflict if that job had another request, and UserError if its result is no longer in the
        journal. Raises UserError if the request is not valid, or if the kernel is closed before the job has begun.
        Raises JournalFailed if the journal cannot be written.
        """
        check("execute: request", request, Of(ExecutionRequest, "ExecutionRequest(prompt=…)"))
        self._check_policy(request.policy_ref)
        host = await self._started()
        agent = self._agent(request.agent)
        agent.check_prompt(request)
        shared = host.journal.begins.shared
        declared = self._declared() if shared else []
        if shared and (missing := await call_journal(host.journal.begins.lacks, declared)):
            raise self._lacks(host.journal, missing)
        if (shared and request.idempotency_key) or request.waits or host.is_limited(agent):
            return await self._execute_queued(host, agent, replace(request, agent=agent.name))
        return await host.execute(agent, job_id_of(agent.agent_id, request), request)

    async def _begin_scheduled(self, request: ExecutionRequest) -> None:
        """Begins a job of a schedule. A worker of another version may have its agent: then it waits for that one."""
        if request.agent in self._agents:
            await self.execute(request)
        else:
            await self._client.start_all([request])

    async def _execute_queued(self, host: KernelHost, agent: KernelAgent, request: ExecutionRequest) -> ExecutionHandle:
        """Begins a job as a client does: one that may have to wait in the queue; or one with an idempotency key, since the
        journal decides which of several workers that are asked at once begins it. If this one has room, the job runs here.
        """
        (begun,) = await self._client.begin([request])
        if not host.journal.begins.shared:
            if begun.created or (await call_journal(begun_or_queued, host.journal, begun.job_id))[0] is None:
                return await host.expect(agent, begun.job_id, request)
            return await host.execute(agent, begun.job_id, request)
        if begun.created:
            await host.take_letters()
        return host.handles.get(begun.job_id) or self._watch_elsewhere(begun, agent)

    def _watch_elsewhere(self, client: ClientHandle, agent: KernelAgent) -> ExecutionHandle:
        """Returns the handle of a job that another worker runs, or that has ended."""
        handle = ElsewhereHandle(self, client, agent)

        async def watch() -> None:
            try:
                end = await self._client.looks.end(handle.job_id)
                handle.ends(end.labels)
                handle.settle(outcome_in(end), ended=True)
            except SabotError as error:
                handle.settle(error, ended=True)

        task = asyncio.create_task(watch(), name=f"the end of job {handle.job_id} elsewhere")
        self._elsewhere_jobs[task] = handle
        task.add_done_callback(lambda task: self._elsewhere_jobs.pop(task, None))
        return handle

    def _agent(self, name: str) -> KernelAgent:
        """Returns the agent with this name, or the first agent if the name is "". Raises UserError if there is no agent
        with this name.
        """
        found = self._agents.get(name) if name else next(iter(self._agents.values()))
        if found is None:
            raise UserError(f"kernel {self.name} has no agent {name!r}", hint=f"it has {', '.join(self._agents)}")
        return found

    def _check_policy(self, asked: PolicyRef | None) -> None:
        """Checks that this kernel has the policy for which a request asks. Raises UserError if not (`other_policy`)."""
        if not other_policy(self.policy, asked):
            return
        assert asked is not None
        name = "" if self.policy is None else self.policy.name
        has = (
            f"its policy is {name!r}, version {getattr(self.policy, 'version', '')}"
            if name
            else "its policy has no name"
        )
        raise UserError(
            f"kernel {self.name} has no {policy_words(asked)}",
            hint=f"{'it has none' if self.policy is None else has}; PolicyEngine([…], name={asked.name!r}) gives it one",
        )

    async def take_over(self, taken: Sequence[Entry]) -> ExecutionHandle:
        """Begins a new job that continues after the entries `taken`, and returns its handle. `StateManager.restore` has
        copied these entries from the history of another job, and has given them the id of the new job, which no other
        job may have. First waits until fewer than `max_jobs` jobs run.

        Raises these errors, and then begins nothing:

        - NonDeterminism if the present code of the agent requests other effects than the entries have.
        - UserError if `taken` is not a list that begins with a BEGIN entry, or if this kernel does not have the agent
          of the job.
        """
        begin = taken[0] if isinstance(taken, Sequence) and taken else None
        if not isinstance(begin, Begin):
            raise UserError(
                f"take_over: taken={short_repr(taken)}",
                hint="await StateManager(kernel).restore(job_id) begins such a job",
            )
        host = await self._started()
        agent = self._agent(begin.agent.removeprefix(f"{self.name}."))
        if (blocked := host.why_blocked(agent, taken)) is not None:
            raise blocked
        return await host.take_over(agent, taken)

    async def resume(self) -> list[ExecutionHandle]:
        """Continues all jobs that were open when the kernel opened the journal, except those that `execute` has
        continued already. Returns their handles, in the order in which the jobs began, before their entries are read. A
        second call returns [].

        An effect that has a recorded result is not made again. If nobody knows whether an effect was made before the
        kernel stopped, its effect class decides what happens: it is made again, looked up, or a person is asked. The
        events of these jobs, and of the jobs that ended last, are published again with the same event ids.
        """
        await self.start()
        host = await self._started()
        host.resumed = True
        await host.tell_again()
        return await host.resume()

    async def handle(self, job_id: str) -> ExecutionHandle:
        """Returns the handle of a job of this kernel that runs, is blocked or has ended. If a JobClient has begun the job,
        waits until the kernel has taken it, unless several workers share the journal; the handle is good for jobs of all of
        them. If a retry of the job was asked for (`kernel.jobs.retry`), it is the handle of
        the next run. `job_id` is its id, or its id in the form for URLs (`ExecutionHandle.url_id`). Raises UserError if there
        is no such job, if the job is open but `resume` was not called, or if the journal no longer has the END entry of the
        job.
        """
        job_id = await self._stored_id(job_id, "handle")
        host = await self._started()
        known = host.handles.get(job_id)
        if known is not None:
            return known
        if await host.is_left(job_id):
            raise UserError(f"job {job_id} is open, and not resumed", hint="await kernel.resume()")
        if not host.journal.begins.shared and (begun := await host.await_letter(job_id)) is not None:
            return begun
        shared = host.journal.begins.shared
        # first: if a worker takes the letter meanwhile, the entry is there
        mark, queued = await call_journal(begun_or_queued, host.journal, job_id) if shared else (None, None)
        begin = next((entry for entry in await self._entries(job_id) if isinstance(entry, Begin)), queued)
        agent = None if begin is None else self._agents.get(begin.agent.removeprefix(f"{self.name}."))
        if agent is None:
            raise UserError(f"job {job_id}: there is none of this name in {host.journal.where}")
        if shared and (mark is None or queued is not None or not mark.outcome):
            return self._watch_elsewhere(await self._client.handle(job_id), agent)
        handle = ExecutionHandle(self, job_id, agent)
        await host.settle_from_journal(handle)
        return handle

    async def forget_session(
        self, session_id: str, *, agent: str = "", scope_id: str = "default", principal_id: str = ""
    ) -> int:
        """Removes a conversation from the journal: the jobs of a session and those below them, with their prompts, calls and
        answers. Returns the number of jobs. Their ids remain known for the time `dedupe`, so no job runs twice. The names
        are those of the requests. The ledger, stores and brokers keep their rows and messages.

        Raises UserError if a job of the session has not ended, since it would go on with what it has recalled.
        """
        names = {"session_id": session_id, "agent": agent, "scope_id": scope_id, "principal_id": principal_id}
        for name, given in names.items():
            checked_word(given, f"forget_session: {name}", empty=name in ("agent", "principal_id"))
        host = await self._started()
        asked = SessionId(self._agent(agent).agent_id, scope_id, principal_id, session_id)
        await host.journal.flush()
        jobs, is_open = await call_journal(jobs_of, host.journal, asked)
        if is_open:
            raise UserError(
                f"session {session_id} has the open job {is_open}", hint="await kernel.jobs.cancel(…), and its end"
            )
        await host.forget(jobs)
        return len(jobs)

    async def record(self, job_id: str) -> Recording:
        """Returns a recording of a job, which a program can save to a file or replay. Raises UserError if the journal
        does not have the job.
        """
        job_id = await self._stored_id(job_id, "record")
        host = await self._started()
        await host.journal.flush()
        return await call_journal(record_job, host.journal, job_id)

    def code(self, agent: str = "") -> JobCode:
        """Returns the code of an agent, as `ReplayPlayer.replay(mode="verify", code=…)` needs it. Forks of the code are
        judged by the policy and the budgets of this kernel. `agent` is the name
        of the agent; "" means the first one. Raises UserError if there is no agent with that name.
        """
        checked_word(agent, "code: agent")
        found = self._agent(agent)
        return JobCode(found.coroutine, found.packed, found.continued, self.policy, self.accounts)

    async def recorded_events(self, job_id: str) -> list[RuntimeEvent]:
        """Returns the events of a job, made from the entries that the journal has of it. First waits until the
        subscribers of the event bus have been sent these events.
        """
        job_id = await self._stored_id(job_id, "recorded_events")
        await (await self._started()).caught_up()
        return await events_of(await self._entries(job_id))

    def kept_pieces(self, job_id: str) -> list[Fragment]:
        """Returns the texts of the answers that models are writing in a job. They are not in the journal yet."""
        checked_word(job_id, "kept_pieces: job_id")
        return [] if self._host is None else self._host.kept_pieces(job_id)

    async def _stored_id(self, text: str, where: str) -> str:
        """Returns the id of the job that `text` names: `text` itself, or the id whose form for URLs it is."""
        other = stored_id(checked_word(text, f"{where}: job_id"))
        if other == text or text in (await self._started()).handles or await self._entries(text):
            return text
        return other

    async def _entries(self, job_id: str) -> list[Any]:
        host = await self._started()
        await host.journal.flush()
        return [entry for _, entry in await call_journal(whole_entries, host.journal, job_id)]

    async def post(self, letter: Letter) -> None:
        """Writes a letter into the inbox of the journal. A letter is a request to change a job: an answer, a withdrawn
        question, a signal or a cancel. Raises LetterRefused if the letter cannot be applied, for example because the
        job has ended.
        """
        check("post: letter", letter, Of(Letter))
        await run_in_thread(self._store.post, letter)

    def statistics(self) -> dict[str, Any]:
        """Returns the figures of this kernel, or {} before the journal is opened.

        - `running`: the number of jobs that run.
        - `parked`: the number of jobs that were removed from memory, because they wait for something that takes long.
        - `waiting`: the number of jobs that wait because `max_jobs` others run.
        - `blocked`: the reasons why jobs are blocked, by job id.
        - `begun`, `ended`: the numbers of jobs that have begun and that have ended since the journal was opened.
        - `effects`: the number of effects since the journal was opened.
        - `doubts`: the number of questions since then that asked a person whether an effect was made.
        - `in_flight`: the number of calls that have no outcome yet.
        - `tools`: the figures of each tool, by its name.
        - `journal`: the figures of the journal.
        """
        return {} if self._host is None else {**self._host.statistics()}


def _stores_of(job_store: Any, action_store: Any) -> list[LentStore]:
    """Returns the stores that show the jobs of a kernel: `job_store` and `action_store`. In place of a cache, the store
    behind the cache is returned. A store that is given twice is returned once. Raises UserError for a store that cannot
    show the jobs of a kernel.
    """
    found: list[LentStore] = []
    for name, store in (("job_store", job_store), ("action_store", action_store)):
        while store is not None and not isinstance(store, LentStore):
            if not isinstance(inner := getattr(store, "store", None), JobStore):
                raise UserError(
                    f"{name}={short_repr(store)} does not show the jobs of a kernel",
                    hint="a JournalStore, InMemoryJobStore, PostgresJobStore or RedisActionStore; a RedisJobCache before one",
                )
            store = inner  # the store behind a cache
        if store is not None and all(store is not each for each in found):
            found.append(store)
    return found


def check_kernel(kernel: RuntimeKernel, reader: JournalReader) -> Iterator[CheckedJob]:
    """Checks each open job that the kernel would continue if it were started over a journal now. Runs the jobs over their
    recorded results in memory, without calling anything. Yields one result for each job, in the order in which the jobs
    began. Blocks the thread. `reader`: the journal of the kernel, which may run meanwhile.

    Raises CorruptJournal for an entry that cannot be read.
    """
    agents = {each.agent_id: each for each in kernel._agents.values()}
    declared = kernel._declared()
    for job in open_jobs(reader, reader.positions(), {}):
        if job.ended is not None:  # since the positions were read
            continue
        entries = [entry for _, entry in whole_entries(reader, job.job_id)]
        history, agent = History.of(job.job_id, entries, parked=len(entries)), agents.get(job.agent)
        verdict, then = "gone", "the kernel has no agent of this name"
        if agent is not None:
            run = JobRun(job.job_id, history, key=reader.key, code=agent.code)
            run.lost_policy = history.lost(declared)
            verdict, then = verdict_of(run, agent.coroutine)
        yield CheckedJob(job.job_id, job.agent, verdict, history.last_ordinal, then)
