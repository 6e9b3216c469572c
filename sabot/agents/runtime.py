"""AgentRuntime: the life of an app. Its agents run together in one job, so that their state has one owner and one cut (design
decision 10); its streams beside them; one coordinator makes the checkpoints of both. What the engine does stands in `runtime`.

    run  ─▶ start_all (restore, open all, claim all lanes, let run) ─▶ until all is over, or broken ─▶ stop_all (last checkpoint, its
    output delivered, everything closed) ─▶ again, where `restart=` says so
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sabot._cython.partition import HASH_VERSION
from sabot.agents.process import AgentProcess, AgentState
from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Write
from sabot.checkpoint import CheckpointStorage, Coordinator, Delivery, Manifest, Requests
from sabot.clock import Clock
from sabot.config import Restart, parse_broker
from sabot.connectors.base import Source
from sabot.connectors.memory import CountSink, MemoryBroker
from sabot.errors import (
    AgentFailed,
    BrokerUnavailable,
    CheckpointFailed,
    CorruptCheckpoint,
    JobLocked,
    SabotError,
    TransientError,
    UserError,
)
from sabot.exits import Exit, exit_in
from sabot.faults import taking_over
from sabot.kafka import open_sink, open_source
from sabot.metrics import Metrics, Sample
from sabot.operators import AgentOperator
from sabot.redaction import redacted_url, scrubbed
from sabot.runtime.agent_job import AgentJob
from sabot.runtime.facts import check_facts
from sabot.runtime.restore import check_app, topics_written
from sabot.runtime.stream_job import StoppedEarly, StreamJob, Surroundings
from sabot.state import StateBackend, load_snapshot
from sabot.threads import Handle, aside, tell, threads, to_the_end
from sabot.watch import unexpected, watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["AgentProcess", "AgentRuntime", "AgentState"]

_log = logging.getLogger(__name__)

_EPOCH_SECONDS = 1.0  # between checkpoints, with an exactly-once sink: its results wait so long
_CHECKPOINT_SECONDS = 60.0  # without
_DELIVER_SECONDS = 60.0  # how long the end of all inputs waits for output to be delivered
_STOP_SECONDS = 10.0  # how long a stop does
_REQUEST_SECONDS = 0.25
_FAR_GENERATIONS = 4096  # from a savepoint to what goes on from it: the job it was taken from uses the numbers between
_RESTART_MEMORY_SECONDS = 600.0  # failures longer ago do not count against `restart=`


class _Undelivered(TransientError):
    """All inputs have ended, and a receiver does not take what is left for it."""


class Settings(Protocol):
    """What the runtime reads of its app."""

    id: str
    broker: str
    kafka: dict[str, Any]
    version: str
    clock: Clock
    checkpoint_timeout_s: float
    metrics_port: int | None
    parallelism: int
    memory_budget_bytes: int
    start_at: str | int
    checkpoint_interval_s: float | None
    restart: Restart
    redeliver: str | None
    from_: str | None
    fresh: bool

    def open_tables(self) -> "Path | None":
        """The directory for the tables of streams; None: in memory."""

    def open_state(self) -> "tuple[StateBackend | None, bool]":
        """The backend, and whether the runtime closes it."""

    def open_storage(self) -> CheckpointStorage | None:
        """Where checkpoints go, locked; None: nowhere."""


class AgentRuntime:
    """Runs the agents and the streams of an app together, and their checkpoints."""

    def __init__(self, app: Settings) -> None:
        self.app = app
        self.agents: dict[str, AgentProcess] = {}
        self.writes: list[Write] = []  # the ends of the app's streams
        self.checkpoint_coordinator = Coordinator(timeout=app.checkpoint_timeout_s, clock=app.clock)
        self.checkpoint_coordinator.on_complete.append(self._followed)
        self.checkpoint_coordinator.on_failed = lambda: self._ask_for_another(_EPOCH_SECONDS)
        self.metrics = Metrics(app.id, self._samples)
        self.restored_from: int | None = None
        self.left_behind: list[str] = []  # calls that refused to be cancelled when the app stopped
        self.restarts = 0
        self._periodic: list[asyncio.Task[None]] = []  # checkpoints, and what is asked of the job
        self._delivery: Delivery | None = None
        self._last_delivery: dict[str, Any] = {}
        self._broken: asyncio.Future[None] | None = None  # what ended the run beside its tasks
        self._awaited = False  # `run` hears of `_broken`
        self._failure: SabotError | None = None  # what ended the run, or the last one
        self._ended = False  # all inputs had ended: what is not delivered now stays so
        self._engine_failure: SabotError | None = None  # of the last run: not an agent's own
        self._taken: JobLocked | None = None  # another worker has the job, as the last run found at its end
        self._left: list[
            tuple[str, Handle]
        ] = []  # threads of earlier runs that did not come back, with the user's objects
        self._has_run = self._can_go_back = self._fresh = False
        self._from: str | None = None  # a savepoint that no checkpoint has followed yet
        self._last_place: object = None  # of checkpoints, in this run or the last one
        self._back_to: tuple[object, int] | None = None  # in a restart: where, and which checkpoint has to be there
        self._running = False
        self._leaving: asyncio.Task[None] | None = None
        self._in_run = False  # `run` is told of everything; `start` has nobody
        self._exit: Exit | None = None  # the user's code asked for the end of the process
        self._job: AgentJob | None = None
        self._streams: StreamJob | None = None
        self._last_streams: dict[str, Any] = {}  # figures of the last run
        self._backend: StateBackend | None = None
        self._owns_backend = False
        self._storage: CheckpointStorage | None = None
        self._starting: asyncio.Event | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._stop_asked: asyncio.Event | None = None
        self._agents_broken = asyncio.Event()  # their state or a sink failed: nothing more can be saved
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def running(self) -> bool:
        """Between the start and the end of `stop_all`."""
        return self._running or self._job is not None

    def add_stream(self, write: Write) -> None:
        """A stream that runs with the app."""
        if self._running:
            raise UserError("the app runs already", hint="say where streams go (.to) before the start")
        self.writes.append(write)

    @property
    def failure(self) -> SabotError | None:
        """What ended this run unexpectedly, or the last one: nothing more is read or saved. None where all is well."""
        return self._failure

    def raise_failure(self) -> None:
        """For calls on an app that runs since `start_all`: raises what has ended it meanwhile. `run` raises it itself."""
        if self._running and self._loop is not None and self._loop.is_closed():
            raise UserError(
                f"the event loop that app {self.app.id} was started on has ended, and the app with it",
                hint="start, send and stop belong into one asyncio.run(…); this process still holds the app's directories",
            )
        if self._failure is not None and self._running and not self._in_run:
            raise self._failure

    # -- agents -------------------------------------------------------------------------------------------------------

    async def register_agent(self, agent_id: str, agent_func: Callable[..., Any], topic: Any, **options: Any) -> None:
        """Adds an agent; `options` are those of `App.agent`."""
        self.add(AgentSpec.of(agent_id, agent_func, topic, **options))

    def add(self, spec: AgentSpec) -> None:
        """Adds an agent before the start. Raises UserError for a name that is taken, except by a re-run notebook cell."""
        if self._running:
            raise UserError(f"agent {spec.agent_id}: the app runs already", hint="register agents before the start")
        taken = self.agents.get(spec.agent_id)
        if taken is not None and not _same_cell(taken.agent_func, spec.func):
            raise UserError(f"there is an agent {spec.agent_id} already", hint="give this one another name=")
        self.agents[spec.agent_id] = AgentProcess(
            agent_id=spec.agent_id,
            agent_func=spec.func,
            topic=spec.topics[0] if len(spec.topics) == 1 else list(spec.topics),
            broker=self.app.broker,
            spec=spec,
            kafka=self.app.kafka,
            clock=self.app.clock,
        )

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start_all(self) -> None:
        """Restores the last checkpoint, if there is one, and starts every agent and the periodic checkpoints."""
        if self._running:
            self.raise_failure()
            return
        self._expect_stop()
        try:
            await self._start_all()
        except SabotError as error:
            if (asked := exit_in(error)) is not None:
                raise asked from None
            raise

    def _expect_stop(self) -> None:
        """From here on `request_stop` counts, for the run that begins. Idempotent until it is over."""
        if self._running or self._in_run or self._starting is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        self._exit = None

    async def _start_all(self) -> None:
        if self._starting is not None:
            raise UserError(f"app {self.app.id} is starting already")
        self._failure = None
        self._agents_broken = asyncio.Event()
        self._starting = asyncio.Event()
        try:
            await self._start()
        except BaseException:
            await to_the_end(self._release())
            for agent in self.agents.values():
                agent.state = AgentState.STOPPED
            raise
        finally:
            self._starting.set()
            self._starting = None

    async def _start(self) -> None:
        if left := [name for name, thread in self._left if thread.is_alive()]:
            raise UserError(
                f"app {self.app.id}: {left[0]} of the run before has not come back",
                hint="start the process again; its objects cannot be used by two runs at once",
            )
        for agent in self.agents.values():
            restarting = agent.state is AgentState.FAILED
            agent.state = AgentState.RESTARTING if restarting else AgentState.STARTING
            agent.broker, agent.kafka = self.app.broker, self.app.kafka
        if self.app.metrics_port is not None:
            self.metrics.serve(self.app.metrics_port)
        self._from = self.app.from_
        # Off the loop: taking the lock, wiping a database and reading a manifest wait for the disk.
        await to_the_end(aside(self._open))
        storage = self._storage
        if storage is None and self._from is not None:
            raise UserError(
                f"app {self.app.id}: it cannot start from {redacted_url(self._from)} and then keep no checkpoints",
                hint="App(..., state=DIRECTORY), or checkpoint_dir=",
            )
        manifest = None if storage is None else await aside(self._to_restore, storage)
        coordinator = self.checkpoint_coordinator
        incarnation = manifest.incarnation if manifest is not None else uuid.uuid4().hex
        if storage is not None:
            facts: dict[str, Any] = {"app": self.app.id, "version": self.app.version, "hash": HASH_VERSION}
            if manifest is not None:  # the savepoint at the beginning, if there was one
                facts["from"] = manifest.describe.get("from") if self._from is None else _identity(manifest)
            coordinator.keep_in(storage, facts, incarnation)
        if manifest is not None:
            check_app(manifest, self.app.id)
            check_facts(manifest)
            coordinator.begin_after(manifest.checkpoint_id)
        self._broken = asyncio.get_running_loop().create_future()
        self._delivery = coordinator.delivery = self._new_delivery(manifest, incarnation)
        coordinator.on_lost = coordinator.on_broken = self._break
        stored = None if manifest is None else manifest.tasks.get("agents")
        if manifest is not None and stored is not None and self._backend is not None and "state" in stored.states:
            with taking_over("agents' state", manifest.path):
                await self._backend.restore(load_snapshot(manifest.state_directory("agents", "state")))
        self.restored_from = None if manifest is None else manifest.checkpoint_id
        self._job = job = AgentJob(
            [agent.spec for agent in self.agents.values() if agent.spec is not None],
            open_source=self._open_source,
            open_sink=lambda topic: open_sink(topic, self.app.broker, self.app.kafka),
            staged=partial(self._delivery.staged, "agents"),
            backend=self._backend,
            coordinator=coordinator,
            clock=self.app.clock,
            counters=self.agents,
            on_failed=self._agent_failed,
            version=self.app.version,
            hung_after_s=self.app.checkpoint_timeout_s,
        )
        for agent in self.agents.values():
            agent.state_backend = self._backend
        if self.writes:
            self._streams = StreamJob(self.writes, replace(self._surroundings(), wanted=job.wanted))
            await self._streams.open(manifest)
            job.shared = self._streams.shared
        if self.agents:  # after the streams, which may wait for their first record
            await job.open(manifest)
        self._delivery.check_restored()
        await to_the_end(self._delivery.open())
        if self._streams is not None:
            self._streams.on_failed = self._break
            self._streams.run()
            self._streams.running.add_done_callback(lambda over: self._heed(_failure_of(over)))
            self.metrics.follow(self._streams.samples)
        if self.agents:
            job.task.on_broken = self._agents_broke
            job.run()
            self.metrics.follow(job.task.samples)
            for agent in self.agents.values():
                agent.run_in(job)
        self._hold(self._delivery.full)
        self._running = self._has_run = True
        self._ended = self._awaited = False
        self._periodic = [self._beside(self._checkpoint_loop(), "checkpoints")]
        if storage is not None and isinstance(storage.directory, Path):
            requests = Requests(storage.directory)
            self._periodic.append(self._beside(self._serve_requests(storage, requests), "requests"))
        if self._from is not None:
            self.checkpoint_coordinator.beat()  # the next start goes on from here
        if manifest is not None:
            _log.info("app %s goes on from checkpoint %d", self.app.id, manifest.checkpoint_id)

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        """A task that runs as long as the app does; without it the run is broken."""
        task = asyncio.create_task(work, name=name)
        return watched(task, f"the task of {name}", self._break, stopped=lambda: not self._running)

    def _gone(self, directory: object, checkpoint_id: int) -> UserError:
        return UserError(
            f"app {self.app.id} cannot go back to checkpoint {checkpoint_id}, which it has made: {directory} has it no more",
            hint="was the directory removed, renamed or unmounted while the job ran? Bring it back, and start again",
        )

    def _to_restore(self, storage: CheckpointStorage) -> Manifest | None:
        """The newest checkpoint, or the savepoint that was asked for. Blocking."""
        if self._from is None:
            found = storage.latest()
            if self._back_to is not None and (found is None or found.checkpoint_id < self._back_to[1]):
                raise self._gone(*self._back_to)
            return found
        try:
            newest = storage.latest()
        except CorruptCheckpoint as error:
            _log.warning("%s; the savepoint takes its place", error.message)
            newest = None
        location, _, number = self._from.rpartition("@") if re.search(r"@\d+$", self._from) else (self._from, "", "")
        savepoint = CheckpointStorage(location)
        found = savepoint.read(int(number)) if number else savepoint.latest()
        if found is None:
            raise UserError(
                f"{savepoint.directory} holds no checkpoint",
                hint="give the directory that `sabot savepoint create` named",
            )
        if number:
            savepoint.verify(found)
        if newest is not None and newest.describe.get("from") == _identity(found):
            _log.warning(
                "app %s has gone on from %s before, and goes on from where it was then (back to the savepoint once more: --fresh)",
                *(self.app.id, f"{savepoint.directory}@{number}" if number else savepoint.directory),
            )
            self._from = self.app.from_ = None
            return newest
        ours = newest is not None and newest.incarnation == found.incarnation
        storage.claim_above(found.generation + (0 if ours else _FAR_GENERATIONS))
        return found

    def _followed(self, manifest: Manifest) -> None:
        """A checkpoint of our own follows the savepoint: the next start goes on from there."""
        self._from = self.app.from_ = self.app.redeliver = None
        self._ask_for_another(0.0)

    def _ask_for_another(self, seconds: float) -> None:
        """The sources may be held by output that only a further checkpoint lets go."""
        if self._running and self._delivery is not None and self._delivery.needs_checkpoint and self._loop is not None:
            self._loop.call_later(seconds, self.checkpoint_coordinator.beat)

    def _new_delivery(self, manifest: Manifest | None, incarnation: str) -> Delivery:
        loop = asyncio.get_running_loop()
        return Delivery(
            self.app.id,
            self._storage,
            manifest,
            incarnation=incarnation,
            spawn=threads.spawn,
            clock=self.app.clock,
            newest=self._from is None,
            choice=self.app.redeliver,
            fresh=self._fresh and manifest is None,  # with a savepoint its own rules hold
            on_full=self._hold,
            on_broken=lambda error: tell(loop, self._break, error),
        )

    def _hold(self, held: bool) -> None:
        """Too much output waits: nothing more is read. From any thread."""
        held = held or self._failure is not None
        for job in self._jobs():
            job.hold(held)
        if held and self._loop is not None:  # it may wait for a checkpoint that is far away
            tell(self._loop, self.checkpoint_coordinator.beat)

    def _agent_failed(self, operator: AgentOperator) -> None:
        self.agents[operator.spec.agent_id].on_failed(operator)
        self._heed(operator.failure)

    def _agents_broke(self) -> None:
        self._agents_broken.set()
        broken = None if self._job is None else self._job.task.broken
        self._heed(broken)
        if broken is not None and not self._awaited:
            self._break(broken)

    def _heed(self, error: BaseException | None) -> None:
        """Something failed. If the user's code asked for the end of the process, everything stops in good order first."""
        asked = exit_in(error)
        if asked is None or self._exit is not None or self._loop is None:
            return
        self._exit = asked
        if self._stop_asked is not None:
            self._stop_asked.set()
        if not self._in_run:
            self._leaving = self._loop.create_task(self._leave(asked), name="the user's exit")

    async def _leave(self, asked: Exit) -> None:
        """Nobody waits in `run`: the exit is the event loop's, once all is closed."""
        try:
            await self.stop_all()
        except SabotError as error:
            _log.error("%s", error)
        asyncio.get_running_loop().call_soon(_raise, asked)

    def _break(self, error: BaseException) -> None:
        """The run cannot go on, whatever its tasks do."""
        if self._broken is None:
            return  # it is over, and the next one has nothing to do with it
        self._heed(error)
        self.checkpoint_coordinator.refuse(str(error))
        if not self._broken.done():
            failure = unexpected("the run", error)
            _log.error("%s", failure)
            self._broken.set_exception(failure)
            self._broken.exception()  # somebody waits for it, or the next call raises it
            self._failure = failure
            self._hold(True)  # what is read now would be read again
            if not self._awaited:
                for agent in self.agents.values():
                    agent.halted(failure)

    def _surroundings(self) -> Surroundings:
        app = self.app
        return Surroundings(
            open_source=lambda topic: open_source(topic, app.broker, f"{app.id}-group", app.kafka),
            open_sink=lambda topic: open_sink(topic, app.broker, app.kafka),
            staged=(lambda sink, wanted: sink) if self._delivery is None else partial(self._delivery.staged, "streams"),
            coordinator=self.checkpoint_coordinator,
            clock=app.clock,
            app=app.id,
            version=app.version,
            start=app.start_at,
            parallelism=app.parallelism,
            memory_budget=app.memory_budget_bytes,
            directory=app.open_tables(),
            written=topics_written(agent.spec for agent in self.agents.values() if agent.spec is not None),
            stop_asked=lambda: self._stop_asked is not None and self._stop_asked.is_set(),
        )

    async def run_streams(self, writes: list[Write]) -> None:
        """Runs these alone to their end: no agents, no checkpoints, state in memory."""
        around = replace(
            self._surroundings(),
            coordinator=Coordinator(clock=self.app.clock),
            directory=None,
            open_sink=CountSink,
            staged=lambda sink, wanted: sink,
        )
        job = StreamJob(writes, around)
        try:
            await job.start()
            job.awaited = True
            try:
                await job.running
            finally:
                await job.close()
        except SabotError as error:
            if (asked := exit_in(error)) is not None:
                raise asked from None
            raise

    def _open(self) -> None:
        """Blocking. What is open stands in the attributes at once, so that `_release` finds it."""
        self._fresh = self.app.fresh
        if self._back_to is not None and isinstance(self._back_to[0], Path) and not self._back_to[0].exists():
            raise self._gone(*self._back_to)
        self._storage = self.app.open_storage()
        self._last_place = None if self._storage is None else self._storage.directory
        self._backend, self._owns_backend = self.app.open_state()

    def _open_source(self, topic: str, group_id: str) -> Source:
        return self.agents[group_id.removesuffix("-group")].open_source(topic, group_id)

    async def stop_all(self, *, drain: bool = False) -> None:
        """Stops every agent behind a last checkpoint. `drain`: first processes what was read. Idempotent."""
        if self._loop is not None and self._loop.is_closed():
            self.raise_failure()
        if self._starting is not None:
            if self._stop_asked is not None:
                self._stop_asked.set()  # it may wait for the first record of a stream
            await self._starting.wait()
        if self._stopping is None:
            if not self._running:
                return
            self._stopping = asyncio.ensure_future(self._stop(drain))
            self._stopping.add_done_callback(lambda _: setattr(self, "_stopping", None))
        stopping = self._stopping
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:  # without the last checkpoint then, but everything is closed
            stopping.cancel()
            await to_the_end(_ended(stopping))
            raise

    async def _stop(self, drain: bool) -> None:
        self._running = False
        failure: CheckpointFailed | None = None
        try:
            for task in self._periodic:
                task.cancel()
            if self._periodic:
                await asyncio.wait(self._periodic)
            for agent in self.agents.values():
                if agent.state is AgentState.RUNNING:
                    agent.state = AgentState.STOPPING
            jobs = self._jobs()
            complete = (
                not self.agents and self._streams is not None and self._streams.was_complete
            )  # nothing was opened
            if jobs and not complete and not self._is_broken(jobs):
                for job in jobs:
                    await job.stop(drain=drain)
                if not self._is_broken(jobs):
                    await self.trigger_checkpoint()
                    await self._deliver_the_rest()
        except CheckpointFailed as error:
            failure = error
        finally:
            broken = self._broken
            await to_the_end(self._release())
        if broken is not None and broken.done() and not self._awaited:
            broken.result()  # nobody else would hear of it
        if failure is not None:
            raise CheckpointFailed(
                f"no last checkpoint: {failure.message}", hint="the next start goes on from the one before"
            ) from failure

    def _is_broken(self, jobs: "list[AgentJob | StreamJob]") -> bool:
        return any(job.broken for job in jobs) or (self._broken is not None and self._broken.done())

    async def _deliver_the_rest(self) -> None:
        """The output of the last checkpoint; then results whose input has ended are completed, and a checkpoint says so."""
        delivery = self._delivery
        if delivery is None:
            return
        asked = self._stop_asked

        def patient() -> bool:
            return self._ended and (asked is None or not asked.is_set())  # a stop may be asked for meanwhile

        if not await delivery.drained(_DELIVER_SECONDS, _STOP_SECONDS, patient):
            missing = _Undelivered(
                f"app {self.app.id}: {delivery.undelivered()}",
                hint="it is safe in the last checkpoint; the next start delivers it",
            )
            await asyncio.sleep(0)  # what a lane told before it broke is heard
            if patient() and not self._is_broken(self._jobs()):
                raise missing
            _log.warning("%s", missing)
        elif await delivery.finish() or delivery.has_news:
            try:
                await self.trigger_checkpoint()
            except CheckpointFailed as error:
                _log.warning("%s; the next start looks at what was delivered", error)

    def _jobs(self) -> list[AgentJob | StreamJob]:
        """What runs: the agents, if there are any, and the streams."""
        return [job for job in (self._job if self.agents else None, self._streams) if job is not None]

    async def _release(self) -> None:
        """Closes what is open; failed agents stay FAILED."""
        job, streams, backend, storage = self._job, self._streams, self._backend, self._storage
        self._job = self._streams = self._backend = self._storage = None
        delivery, self._delivery, self._broken = self._delivery, None, None
        if job is not None and job.task.broken is not None:
            self._engine_failure = job.task.broken
        # a backend of the user's is put back by a checkpoint, not emptied
        known = self.restored_from is not None or self.checkpoint_coordinator.statistics()["completed"] > 0
        self._can_go_back = storage is not None and (backend is None or self._owns_backend or known)
        if storage is not None and self._has_run:
            try:  # who has lost the job must not claim it back by a restart
                await aside(storage.check_owner)
            except SabotError as error:
                self._taken = error if isinstance(error, JobLocked) else None
        self.checkpoint_coordinator.refuse("the job is stopping")  # what waits must not be taken of tasks that are gone
        if streams is not None:
            self._last_streams = streams.statistics()
        if delivery is not None:
            self._last_delivery = delivery.statistics()
        async with AsyncExitStack() as last:  # from the last to the first, whatever one of them raises
            if storage is not None:
                last.push_async_callback(aside, storage.unlock)
            if backend is not None and self._owns_backend:
                last.push_async_callback(backend.close)
            last.push_async_callback(aside, self.metrics.close)
            last.callback(self.metrics.settle)  # no scrape reads the backend from here
            for agent in self.agents.values():
                last.callback(agent.released)
            if delivery is not None:
                last.push_async_callback(delivery.close)
            last.callback(setattr, self.checkpoint_coordinator, "delivery", None)
            last.push_async_callback(self.checkpoint_coordinator.close)
            if job is not None:
                last.callback(lambda: self.left_behind.extend(job.left_behind))
                last.callback(lambda: self._left.extend(job.left))
                last.push_async_callback(job.close)
            if streams is not None:
                last.callback(lambda: self.left_behind.extend(streams.left_behind))
                last.callback(lambda: self._left.extend(streams.left))
                last.push_async_callback(streams.close)
            self.left_behind.clear()

    async def run(self, listening: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Blocks until every input has ended, no agent is left, or the app is stopped. Raises AgentFailed at the end, or the
        KeyboardInterrupt or SystemExit that the user's code raised.

        listening: around all of it, who may ask for the stop; `request_stop` counts from its beginning.
        """
        if not self.agents and not self.writes:
            raise UserError(
                f"app {self.app.id} has no agents and no streams",
                hint="put @app.agent(...) above a function, or let a stream go somewhere: app.stream(...).to(...)",
            )
        self._expect_stop()
        before, self._in_run = self._in_run, True
        try:
            with listening():
                await self._run_again_and_again()
        finally:
            self._in_run = before

    async def _run_again_and_again(self) -> None:
        failed_at: list[float] = []
        self._back_to = None
        while True:
            error, unfinished = await self._run_once()
            self._failure = error or self._engine_failure or self._failure
            for each in (error, self._engine_failure, unfinished):
                self._heed(each)
            if self._exit is not None:
                raise self._exit
            refused = (
                None if isinstance(unfinished, CheckpointFailed | BrokerUnavailable | _Undelivered) else unfinished
            )
            cause = error or self._engine_failure or refused
            if cause is None or not await self._may_restart(cause, failed_at):
                break
        if error is not None:
            raise error
        failures = [agent.error for agent in self.agents.values() if agent.error is not None]
        if not failures and unfinished is not None:
            raise unfinished
        if failures:
            raise AgentFailed("; ".join(f.message for f in failures), hint=failures[0].hint) from failures[0].__cause__

    async def _run_once(self) -> tuple[SabotError | None, SabotError | None]:
        """From a start to its stop; -> what ended it, and what the stop complains of."""
        error: SabotError | None = None
        self._engine_failure = self._taken = None
        assert self._stop_asked is not None
        if self._stop_asked.is_set():
            return None, None
        try:
            await self._start_all()
            await self._until_over()
        except StoppedEarly as stopped:
            _log.info("%s", stopped)
        except SabotError as failed:
            error = failed
        finally:
            unfinished = await self._stopped()
        return (error if error is None or self._taken is None else self._taken), unfinished

    async def _may_restart(self, error: SabotError, failed_at: list[float]) -> bool:
        """Whether the job goes on from its last checkpoint, after the wait that `restart=` says.

        Not after what will be so again: a UserError, unless the user's function was let down by the world around it.
        """
        attempts, delay_s = self.app.restart
        lasting = isinstance(error, UserError) and not isinstance(error.__cause__, OSError | TransientError)
        assert self._stop_asked is not None
        hanging = any(thread.is_alive() for _, thread in self._left)
        if lasting or hanging or not self._has_run or not self._can_go_back or self._stop_asked.is_set():
            return False
        now = self.app.clock.monotonic()
        failed_at[:] = [*(at for at in failed_at if now - at < _RESTART_MEMORY_SECONDS), now]
        if len(failed_at) > attempts:
            return False
        self.restarts += 1
        if (made := self.checkpoint_coordinator.statistics()["last_id"]) and self._last_place is not None:
            self._back_to = self._last_place, made
        _log.error(
            "app %s: %s; restart %d of %d from the last checkpoint in %g s",
            *(self.app.id, error, len(failed_at), attempts, delay_s),
        )
        stopping = asyncio.ensure_future(self._stop_asked.wait())
        stopped, _ = await asyncio.wait([stopping], timeout=delay_s)
        stopping.cancel()
        return not stopped

    async def _stopped(self) -> SabotError | None:
        """Stops; what `stop_all` raises comes back, to be told only where there is nothing worse to tell."""
        try:
            await self.stop_all()
        except SabotError as error:
            return error
        return None

    async def _until_over(self) -> None:
        assert self._stop_asked is not None
        assert self._broken is not None
        self._awaited = True
        broken = asyncio.shield(self._broken)
        ends = (self._stop_asked.wait(), self._agents_broken.wait())
        waits: set[asyncio.Future[Any]] = {*map(asyncio.ensure_future, ends), broken}
        jobs = self._jobs()
        over = asyncio.ensure_future(_all_over([job.running for job in jobs]))
        if self._streams is not None:
            self._streams.awaited = True
        if jobs:
            waits.add(over)
            if all(job.was_complete for job in jobs):
                _log.warning(
                    "app %s had ended with checkpoint %s: nothing is read twice (start afresh with --fresh)",
                    self.app.id,
                    self.restored_from,
                )
        alive = [agent.process for agent in self.agents.values() if agent.process is not None]
        if alive and self._streams is None:
            waits.add(asyncio.ensure_future(asyncio.wait(alive)))  # ends when the last agent has failed
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if broken in done:
                broken.result()
            if over in done and self._job is not None:  # None: stopped from beside
                over.result()
                self._ended = True
            self._awaited = False  # what breaks from here on is told by the stop
        finally:
            for wait in {*waits, over}:
                wait.cancel()

    def request_stop(self) -> None:
        """Makes `run` stop in good order; from any thread or signal handler."""
        if self._loop is not None and self._stop_asked is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    async def _checkpoint_loop(self) -> None:
        """A checkpoint each `_checkpoint_interval` seconds; failures are logged and the next one is tried."""
        await self.checkpoint_coordinator.run(self._checkpoint_interval)

    @property
    def _checkpoint_interval(self) -> float:
        """As the user said; else by whether results wait for it."""
        if self.app.checkpoint_interval_s is not None:
            return self.app.checkpoint_interval_s
        staged = self._delivery is not None and self._delivery.exactly_once
        return _EPOCH_SECONDS if staged else _CHECKPOINT_SECONDS

    async def _serve_requests(self, storage: CheckpointStorage, requests: Requests) -> None:
        """Answers what the command line asks of this job (`checkpoint.requests`)."""
        unread = False
        try:
            await aside(requests.clear)
        except OSError as error:
            _log.warning("old requests of the command line cannot be removed: %s", error)
        while True:
            await asyncio.sleep(_REQUEST_SECONDS)
            try:
                pending = await aside(requests.pending)
            except OSError as error:  # no permission, no more files: the job needs no requests
                if not unread:
                    _log.warning("requests of the command line cannot be read: %s", error)
                unread = True
                continue
            unread = False
            for request_id, request in pending:
                try:
                    answer = await self._serve(storage, request)
                except Exception as error:  # whatever was asked, the next one is answered
                    answer = {"error": scrubbed(str(error))}
                    _log.warning("request %s failed: %s", request_id, answer["error"])
                try:
                    await aside(requests.answer, request_id, answer)
                except OSError as error:
                    _log.warning("request %s cannot be answered: %s", request_id, error)

    async def _serve(self, storage: CheckpointStorage, request: "Mapping[str, Any]") -> dict[str, Any]:
        location = request.get("savepoint")
        if location is not None and not isinstance(location, str):
            raise UserError(f"savepoint: a {type(location).__name__} is no place")
        checkpoint_id = await self.trigger_checkpoint()
        manifest = await self.checkpoint_coordinator.wait(checkpoint_id)
        path: Path | str | None = manifest.path
        if location is not None:
            path = await aside(storage.copy_to, manifest, location)
        return {"checkpoint": checkpoint_id, "path": str(path)}

    async def trigger_checkpoint(self) -> int:
        """Takes a checkpoint now; returns its id when all running agents have acknowledged. Raises CheckpointFailed."""
        if self._starting is not None:  # a checkpoint is of all tasks
            await self._starting.wait()
        self.raise_failure()
        checkpoint_id = self.checkpoint_coordinator.trigger()
        await self.checkpoint_coordinator.wait(checkpoint_id)
        return checkpoint_id

    def checkpoint_from_outside(self) -> None:
        """Takes one and waits for it, where the app runs on the event loop of another thread; else nothing."""
        if not self._running or self._loop is None or self._loop.is_closed() or _in_loop(self._loop):
            return
        asyncio.run_coroutine_threadsafe(self.trigger_checkpoint(), self._loop).result()

    # -- figures ------------------------------------------------------------------------------------------------------

    def get_stats(self) -> "dict[str, dict[str, Any]]":
        """{agent_id: {state, messages_processed, errors, last_message_time, dead_letters, failure}}"""
        return {
            agent_id: {
                "state": agent.state.value,
                "messages_processed": agent.messages_processed,
                "errors": agent.errors_count,
                "last_message_time": agent.last_message_time,
                "dead_letters": agent.dead_letters,
                "failure": agent.failure,
            }
            for agent_id, agent in self.agents.items()
        }

    def progress(self) -> tuple[float, float] | None:
        """(done, all) in bytes, of the bounded sources of streams; None where there are none. From any thread."""
        return None if self._streams is None else self._streams.progress()

    def statistics(self) -> "Mapping[str, Any]":
        """Figures of everything that lives long here, as `App.statistics` says."""
        job, backend = self._job, self._backend
        tasks = {"sources": {}, "operators": {}, "sinks": {}, "gate": {}} if job is None else job.task.statistics()
        scheme, _ = parse_broker(self.app.broker)
        return {
            "agents": self.get_stats(),
            "checkpoints": self.checkpoint_coordinator.statistics(),
            "state": {} if backend is None else backend.statistics(),
            **tasks,
            "delivery": self._last_delivery if self._delivery is None else self._delivery.statistics(),
            "streams": self._last_streams if self._streams is None else self._streams.statistics(),
            "broker": MemoryBroker.get(self.app.broker).statistics() if scheme == "memory" else {},
            "metrics": self.metrics.statistics(),
            "failure": None if self._failure is None else str(self._failure),
        }

    def _samples(self) -> "Iterator[Sample]":
        """For metrics: the checkpoints and the state. The agents' come from the job."""
        checkpoints = self.checkpoint_coordinator.statistics()
        yield Sample("sabot_checkpoint_failed_total", checkpoints["failed"])
        if checkpoints["completed"]:
            yield Sample("sabot_checkpoint_seconds", checkpoints["last_seconds"])
            yield Sample("sabot_checkpoint_bytes", checkpoints["last_bytes"])
        yield Sample("sabot_restarts_total", self.restarts)
        for lane, figures in ({} if self._delivery is None else self._delivery.statistics()).items():
            yield Sample("sabot_delivered_records_total", figures["delivered_rows"], lane, figures["sink"])
            yield Sample("sabot_undelivered_records", figures["undelivered_rows"], lane, figures["sink"])
            yield Sample("sabot_delivery_failures_total", figures["failures_total"], lane, figures["sink"])
        backend = self._backend
        if backend is not None:
            state = backend.statistics()
            yield Sample("sabot_state_bytes", state["bytes"])
            yield Sample("sabot_state_keys", state["keys"])


async def _all_over(running: list[asyncio.Future[None]]) -> None:
    """Returns when all have ended; raises what the first one failed with."""
    if running:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        for one in done:
            one.result()


def _identity(manifest: Manifest) -> list[Any]:
    """Which checkpoint it is, wherever it lies."""
    return [manifest.incarnation, manifest.generation, manifest.checkpoint_id]


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _failure_of(over: "asyncio.Future[None]") -> BaseException | None:
    return None if over.cancelled() else over.exception()


def _raise(asked: Exit) -> None:
    raise asked


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])


def _same_cell(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """A notebook cell that was run again: the same qualified name in `__main__`."""
    return getattr(new, "__module__", None) == "__main__" == getattr(old, "__module__", None) and getattr(
        new, "__qualname__", new
    ) == getattr(old, "__qualname__", old)
