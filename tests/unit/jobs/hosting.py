"""Runs functions as jobs of one agent over a journal, without an app: what the tests of `sabot.jobs` share."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sabot.agents.durable.context import DurableContext, durable_context
from sabot.api.child_limits import DEFAULT_LIMITS, ChildLimits
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.state import BackendConfig, MemoryBackend
from sabot.errors import NonDeterminism
from sabot.jobs.guard import NOBODY, Behalf, EffectGuard
from sabot.jobs.host import JobHost
from sabot.jobs.open_jobs import last_begin
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack, unpack
from sabot.journal import Journal
from sabot.journal.entries import Entry
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from tools.agent_tools import PATIENCE

AGENT = "app.agent"


@dataclass
class Record:
    value: Any
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: int = 0
    topic: str = "t"
    partition: int = 0
    offset: int = 0
    scope: bytes = b""


@dataclass
class Agent:
    """The owner of jobs whose function is `func`. What ends is in `done`: by job, its value, or its error."""

    func: Callable[[DurableContext], Coroutine[Any, Any, Any]]
    clock: Clock = SYSTEM_CLOCK
    verdict: AfterFailure = "end"
    leaves_at_once: bool = False
    sleep_counts: bool = False
    timeout_s: float | None = None
    code: str = "1"
    done: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, NonDeterminism] = field(default_factory=dict)
    sleeping: set[str] = field(default_factory=set)
    wakes: Counter[str] = field(default_factory=Counter)
    host: JobHost | None = None
    before: list[OpenJob] = field(default_factory=list)
    backend: MemoryBackend = field(default_factory=lambda: MemoryBackend(BackendConfig()))

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        message = unpack(job.history.begin.body)
        return self.func(durable_context(job, Record(message), self.backend, AGENT, "", self.clock))

    def ended(self, job: JobRun, value: Any) -> bytes:
        self.done[job.job_id] = value
        return pack(value, "output")

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        self.errors[job.job_id] = error
        return self.verdict

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        return None if self.timeout_s is None else (self.timeout_s, f"timeout={self.timeout_s:g}s")

    def backoff_s(self, attempt: int) -> float:
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        assert self.host is not None
        before = last_begin(self.host.journal, job_id) if failed else None
        run = 1 if before is None else before.run + 1
        self.host.begin(AGENT, job_id, record=pack(message, "input"), key=b"", digest=b"", run=run, behalf=behalf)

    def continued(self, job: JobRun, message: Any) -> bytes:
        return pack(message, "input")

    def parked(self, job_id: str) -> None:
        self.sleeping.add(job_id)

    def woken(self, job_id: str) -> None:
        self.sleeping.discard(job_id)
        self.wakes[job_id] += 1
        assert self.host is not None
        self.host.parking.wake(job_id)

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        self.blocks[job_id] = error

    def job_closed(self, job_id: str, outcome: str) -> None:
        self.outcomes[job_id] = outcome

    def had_ended(self, job: OpenJob) -> None:
        self.before.append(job)


@dataclass
class Hosting:
    host: JobHost
    agent: Agent
    journal: Journal
    open: list[OpenJob]
    broken: list[tuple[str, BaseException]]
    rested: list[str]

    def begin(self, job_id: str, message: Any = None, behalf: Behalf = NOBODY) -> None:
        self.host.begin(AGENT, job_id, record=pack(message, "input"), key=b"", digest=b"", behalf=behalf)

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                if self.broken:
                    raise self.broken[0][1]
                await asyncio.sleep(0.001)

    async def over(self, *job_ids: str) -> None:
        """Until these jobs have ended, or are blocked."""
        await self.until(lambda: all(job in {**self.agent.outcomes, **self.agent.blocks} for job in job_ids))

    async def parks(self, job_id: str, wakes: int = 0) -> None:
        """Until it is parked, after it has been woken so often."""
        await self.until(lambda: job_id in self.agent.sleeping and self.agent.wakes[job_id] >= wakes)


@asynccontextmanager
async def hosting(
    journal: Journal | MemoryStorage,
    agent: Agent,
    *,
    resume: bool = True,
    grace_s: float = 0.0,
    restored: Any = (None, None),
    notes: Any = None,
    listener: Any = None,
    guard: EffectGuard | None = None,
    children: ChildLimits = DEFAULT_LIMITS,
) -> Any:
    """A host over this journal; jobs that are open in it go on. restored: the arguments of `JobHost.open`. notes: of parked jobs. guard:
    decides what they may do.
    """
    owned = MemoryJournal(journal) if isinstance(journal, MemoryStorage) else journal
    broken: list[tuple[str, BaseException]] = []
    host = JobHost(
        owned,
        clock=agent.clock,
        on_broken=lambda what, error: broken.append((what, error)),
        stop_grace_s=grace_s,
        notes=notes,
        listener=listener,
        guard=guard,
    )
    host.register(AGENT, agent, children)
    agent.host = host
    found = await host.open(*restored)
    host.start()
    rested = [job.job_id for job in found if resume and host.stays_parked(job)]
    for job in found if resume else []:
        if job.job_id not in rested:
            host.resume(job)
    try:
        yield Hosting(host, agent, owned, found, broken, rested)
    finally:
        await host.close()
        if isinstance(journal, MemoryStorage):
            owned.close()


def prefix(home: MemoryStorage, count: int) -> MemoryStorage:
    """A journal with the first `count` entries of another one, as a crash leaves it."""
    cut = MemoryStorage(home.clock)
    cut.identity, cut.key = home.identity, home.key
    whole = MemoryJournal(cut)
    for _, entry in list(MemoryReader(home).read())[:count]:
        whole.append(entry)
    whole.close()
    return cut


def entries(home: MemoryStorage) -> list[Entry]:
    return [entry for _, entry in MemoryReader(home).read()]
