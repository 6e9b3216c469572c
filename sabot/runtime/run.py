"""One run of an app, from its start to its stop: what is open in it, what may end it, and how it is closed.

open ─▶ until_over ─▶ stop (last checkpoint, its output delivered) ─▶ release (everything closed, whatever happened)
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from sabot._cython.groups.partition import HASH_VERSION
from sabot.api.nodes.read import StreamEnd
from sabot.checkpoint import CheckpointStorage, Coordinator, Manifest, Requests, serve
from sabot.delivery import StagedSinks
from sabot.errors import CheckpointFailed, JobLocked, SabotError, TransientError, UserError
from sabot.faults import taking_over
from sabot.kafka import open_sink, open_source
from sabot.metrics import Metrics, Sample
from sabot.operators import AgentOperator
from sabot.runtime.agent_job import Agent, AgentJob
from sabot.runtime.facts import check_facts
from sabot.runtime.origin import Origin, identity
from sabot.runtime.restore import check_app
from sabot.runtime.settings import AppSettings, Settings, checkpoint_interval
from sabot.runtime.stream_job import StreamJob
from sabot.state import StateBackend, load_snapshot
from sabot.threads import Handle, aside, tell, threads, to_the_end
from sabot.watch import unexpected, watched

__all__ = ["Run", "Undelivered"]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0  # after a checkpoint that failed, where output waits for one
_DELIVER_SECONDS = 60.0  # how long the end of all inputs waits for output to be delivered
_STOP_SECONDS = 10.0  # how long a stop does


class Undelivered(TransientError):
    """All inputs have ended, and a receiver does not take what is left for it."""


class Run:
    """All methods on one event loop, unless said otherwise; not started twice."""

    def __init__(
        self,
        app: AppSettings,
        agents: Mapping[str, Agent],
        writes: Sequence[StreamEnd],
        *,
        coordinator: Coordinator,
        origin: Origin,
        metrics: Metrics,
        stop_asked: asyncio.Event,
        heed: Callable[[BaseException | None], None],
    ) -> None:
        """stop_asked: by the user. heed: is told of everything that fails, as the user's code may have asked for the end of the process."""
        self.app = app
        self.agents = agents
        self.failure: SabotError | None = None  # what ended the run beside its tasks
        self.running = False  # all is open, and the stop has not begun
        self.restored_from: int | None = None
        self.ended = False  # all inputs had ended: what is not delivered now stays so
        self.left: list[tuple[str, Handle]] = []  # threads that did not come back, with the user's objects
        self.left_behind: list[str] = []  # calls that refused to be cancelled
        self.taken: JobLocked | None = None  # another worker has the job, as this run found at its end
        self.can_go_back = False  # another run can go on from the last checkpoint
        self.last_figures: dict[str, Any] = {"delivery": {}, "streams": {}}  # those that stay to be seen after the run
        self._writes = writes
        self._coordinator = coordinator
        self._origin = origin
        self._metrics = metrics
        self._stop_asked = stop_asked
        self._heed = heed
        self._loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._over = False  # what breaks now has nothing to do with the next run
        self._awaited = False  # somebody hears of `_broken`
        self._agents_broken = asyncio.Event()  # their state or a sink failed: nothing more can be saved
        self._periodic: list[asyncio.Task[None]] = []  # checkpoints, and what is asked of the job
        self._fresh = False
        self._storage: CheckpointStorage | None = None
        self._backend: StateBackend | None = None
        self._owns_backend = False
        self._delivery: StagedSinks | None = None
        self._agents: AgentJob | None = None
        self._streams: StreamJob | None = None

    # -- the start ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Restores the checkpoint to go on from, if there is one, opens everything, and lets it run. After an error: `release`."""
        app, coordinator = self.app, self._coordinator
        for agent in self.agents.values():
            agent.starts(app.broker, app.kafka)
        if app.metrics_port is not None:
            self._metrics.serve(app.metrics_port)
        self._origin.begin()
        # Off the loop: taking the lock, wiping a database and reading a manifest wait for the disk.
        await to_the_end(aside(self._open))
        storage = self._storage
        if storage is None:
            self._origin.refuse_without_storage()
        manifest = None if storage is None else await aside(self._origin.find, storage)
        incarnation = manifest.incarnation if manifest is not None else uuid.uuid4().hex
        if storage is not None:
            facts: dict[str, Any] = {"app": app.id, "version": app.version, "hash": HASH_VERSION}
            if manifest is not None:  # the savepoint at the beginning, if there was one
                savepoint = self._origin.savepoint
                facts["from"] = manifest.describe.get("from") if savepoint is None else identity(manifest)
            coordinator.keep_in(storage, facts, incarnation)
        if manifest is not None:
            check_app(manifest, app.id)
            check_facts(manifest)
            coordinator.begin_after(manifest.checkpoint_id)
        self._delivery = coordinator.delivery = self._new_delivery(manifest, incarnation)
        coordinator.on_lost = coordinator.on_broken = self.break_
        if manifest is not None:
            await self._restore_state(manifest)
            self.restored_from = manifest.checkpoint_id
        await self._open_jobs(manifest, self._settings(self._delivery))
        self._delivery.check_restored()
        await to_the_end(self._delivery.open())
        self._let_run()
        if storage is not None and isinstance(storage.directory, Path):
            self._periodic.append(
                self._beside(serve(Requests(storage.directory), partial(self._answer, storage)), "requests")
            )
        if self._origin.savepoint is not None:
            coordinator.beat()  # the next start goes on from here
        if manifest is not None:
            _log.info("app %s goes on from checkpoint %d", app.id, manifest.checkpoint_id)

    def _open(self) -> None:
        """Blocking. What is open stands in the attributes at once, so that `release` finds it."""
        self._fresh = self.app.fresh
        self._origin.check_place()
        self._storage = self.app.open_storage()
        self._origin.opened(self._storage)
        self._backend, self._owns_backend = self.app.open_state()

    async def _restore_state(self, manifest: Manifest) -> None:
        """Of the agents."""
        stored = manifest.tasks.get("agents")
        if stored is not None and self._backend is not None and "state" in stored.states:
            with taking_over("agents' state", manifest.path):
                await self._backend.restore(load_snapshot(manifest.state_directory("agents", "state")))

    def _settings(self, delivery: StagedSinks) -> Settings:
        app = self.app
        return Settings(
            app=app.id,
            coordinator=self._coordinator,
            open_source=lambda topic, group: open_source(topic, app.broker, group, app.kafka),
            open_sink=lambda topic: open_sink(topic, app.broker, app.kafka),
            staged=delivery.staged,
            clock=app.clock,
            version=app.version,
            start=app.start_at,
            parallelism=app.parallelism,
            directory=app.open_tables(),
            memory_budget=app.memory_budget_bytes,
            hung_after_s=app.checkpoint_timeout_s,
            stop_asked=self._stop_asked.is_set,
        )

    async def _open_jobs(self, manifest: Manifest | None, settings: Settings) -> None:
        """The streams and the agents."""
        specs = [agent.spec for agent in self.agents.values() if agent.spec is not None]
        if self.agents:
            self._agents = AgentJob(
                specs,
                settings,
                open_source=lambda spec, topic: self.agents[spec.agent_id].open_source(topic, spec.group_id),
                backend=self._backend,
                counters=self.agents,
                on_failed=self._agent_failed,
                ends=self._writes,
            )
        for agent in self.agents.values():
            agent.state_backend = self._backend
        if self._writes:
            wanted = {} if self._agents is None else self._agents.wanted
            self._streams = StreamJob(self._writes, settings, agents=specs, wanted=wanted)
            await self._streams.open(manifest)
        if self._agents is not None:  # after the streams, which may wait for their first record
            self._agents.streams = self._streams
            await self._agents.open(manifest)

    def _let_run(self) -> None:
        streams, agents = self._streams, self._agents
        if streams is not None:
            streams.on_failed = self.break_
            streams.run()
            streams.running.add_done_callback(self._streams_over)
        if agents is not None:
            agents.task.on_broken = self._agents_broke
            agents.run()
            for agent in self.agents.values():
                agent.runs_in(agents)
        self._metrics.follow(self._task_samples)
        assert self._delivery is not None
        self._hold(self._delivery.full)
        self.running = True
        interval = checkpoint_interval(self.app, exactly_once=self._delivery.exactly_once)
        self._periodic.append(self._beside(self._coordinator.run(interval), "checkpoints"))

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that runs as long as the app does; without it the run is broken."""
        task = asyncio.create_task(work, name=name)
        return watched(task, f"the task of {name}", self.break_, stopped=lambda: not self.running)

    def _new_delivery(self, manifest: Manifest | None, incarnation: str) -> StagedSinks:
        return StagedSinks(
            self.app.id,
            self._storage,
            manifest,
            incarnation=incarnation,
            spawn=threads.spawn,
            clock=self.app.clock,
            newest=self._origin.savepoint is None,
            choice=self.app.redeliver,
            fresh=self._fresh and manifest is None,  # with a savepoint its own rules hold
            on_full=self._hold,
            on_broken=lambda error: tell(self._loop, self.break_, error),
        )

    # -- what happens meanwhile ---------------------------------------------------------------------------------------

    def checkpoint_followed(self) -> None:
        """One is complete: output that it has let go may wait for another one."""
        self._ask_for_another(0.0)

    def checkpoint_failed(self) -> None:
        """One is not."""
        self._ask_for_another(_AGAIN_SECONDS)

    def _ask_for_another(self, seconds: float) -> None:
        """The sources may be held by output that only a further checkpoint lets go."""
        if self.running and self._delivery is not None and self._delivery.needs_checkpoint:
            self._loop.call_later(seconds, self._coordinator.beat)

    def _hold(self, held: bool) -> None:
        """Too much output waits: nothing more is read. From any thread."""
        held = held or self.failure is not None
        for job in self._jobs():
            job.hold(held)
        if held:  # it may wait for a checkpoint that is far away
            tell(self._loop, self._coordinator.beat)

    def _streams_over(self, over: asyncio.Future[None]) -> None:
        failure = _failure_of(over)
        self._heed(failure)
        if failure is not None and self._agents is not None:
            self._agents.task.streams_failed()

    def _agent_failed(self, operator: AgentOperator) -> None:
        self.agents[operator.spec.agent_id].on_failed(operator)
        self._heed(operator.failure)
        if self._streams is not None and self._streams.linked:  # they cannot go on without it
            self._agents_broken.set()

    def _agents_broke(self) -> None:
        self._agents_broken.set()
        broken = self.agents_failure
        self._heed(broken)
        if broken is not None and not self._awaited:
            self.break_(broken)

    @property
    def agents_failure(self) -> SabotError | None:
        """What broke the task of the agents: not an agent's own failure."""
        return None if self._agents is None else self._agents.task.broken

    def break_(self, error: BaseException) -> None:
        """The run cannot go on, whatever its tasks do."""
        if self._over:
            return
        self._heed(error)
        self._coordinator.refuse(str(error))
        if not self._broken.done():
            failure = unexpected("the run", error)
            _log.error("%s", failure)
            self._broken.set_exception(failure)
            self._broken.exception()  # somebody waits for it, or the next call raises it
            self.failure = failure
            self._hold(True)  # what is read now would be read again
            if not self._awaited:
                for agent in self.agents.values():
                    agent.halted(failure)

    async def _answer(self, storage: CheckpointStorage, request: Mapping[str, Any]) -> dict[str, Any]:
        """To what the command line asks of this job (`checkpoint.requests`)."""
        location = request.get("savepoint")
        if location is not None and not isinstance(location, str):
            raise UserError(f"savepoint: a {type(location).__name__} is no place")
        manifest = await self._checkpoint()
        path: Path | str | None = manifest.path
        if location is not None:
            path = await aside(storage.copy_to, manifest, location)
        return {"checkpoint": manifest.checkpoint_id, "path": str(path)}

    async def _checkpoint(self) -> Manifest:
        return await self._coordinator.wait(self._coordinator.trigger())

    async def until_over(self) -> None:
        """Until every input has ended, no agent is left, the stop is asked for, or the run is broken: raises what broke it."""
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
            if over in done and not self._over:
                over.result()
                self.ended = True
            self._awaited = False  # what breaks from here on is told by the stop
        finally:
            for wait in {*waits, over}:
                wait.cancel()

    # -- the stop -----------------------------------------------------------------------------------------------------

    async def stop(self, *, drain: bool) -> None:
        """Stops everything behind a last checkpoint, and closes it. drain: first what was read is processed.

        Raises CheckpointFailed for the last checkpoint, and what broke the run where nobody else hears of it.
        """
        self.running = False
        failure: CheckpointFailed | None = None
        try:
            for task in self._periodic:
                task.cancel()
            if self._periodic:
                await asyncio.wait(self._periodic)
            for agent in self.agents.values():
                agent.stops()
            jobs = self._jobs()
            complete = not self.agents and self._streams is not None and self._streams.was_complete
            if jobs and not complete and not self._is_broken():  # complete: nothing was opened
                await asyncio.gather(*(job.stop(drain=drain) for job in jobs))  # they may end each other's inputs
                if not self._is_broken():
                    await self._checkpoint()
                    await self._deliver_the_rest()
        except CheckpointFailed as error:
            failure = error
        finally:
            await to_the_end(self.release())
        if self._broken.done() and not self._awaited:
            self._broken.result()  # nobody else would hear of it
        if failure is not None:
            raise CheckpointFailed(
                f"no last checkpoint: {failure.message}", hint="the next start goes on from the one before"
            ) from failure

    def _is_broken(self) -> bool:
        return self._broken.done() or any(job.broken for job in self._jobs())

    async def _deliver_the_rest(self) -> None:
        """The output of the last checkpoint; then results whose input has ended are completed, and a checkpoint says so."""
        delivery = self._delivery
        if delivery is None:
            return

        def patient() -> bool:
            return self.ended and not self._stop_asked.is_set()  # a stop may be asked for meanwhile

        if not await delivery.drained(_DELIVER_SECONDS, _STOP_SECONDS, patient):
            missing = Undelivered(
                f"app {self.app.id}: {delivery.undelivered()}",
                hint="it is safe in the last checkpoint; the next start delivers it",
            )
            await asyncio.sleep(0)  # what a track told before it broke is heard
            if patient() and not self._is_broken():
                raise missing
            _log.warning("%s", missing)
        elif await delivery.finish() or delivery.has_news:
            try:
                await self._checkpoint()
            except CheckpointFailed as error:
                _log.warning("%s; the next start looks at what was delivered", error)

    def _jobs(self) -> list[AgentJob | StreamJob]:
        """What runs: the agents, if there are any, and the streams."""
        return [job for job in (self._agents, self._streams) if job is not None]

    async def release(self) -> None:
        """Closes what is open; failed agents stay FAILED."""
        backend, storage = self._backend, self._storage
        coordinator, delivery = self._coordinator, self._delivery
        self._over = True
        self.last_figures = self._last_figures()
        # a backend of the user's is put back by a checkpoint, not emptied
        known = self.restored_from is not None or coordinator.statistics()["completed"] > 0
        self.can_go_back = storage is not None and (backend is None or self._owns_backend or known)
        if storage is not None:
            try:  # who has lost the job must not claim it back by a restart
                await aside(storage.check_owner)
            except SabotError as error:
                self.taken = error if isinstance(error, JobLocked) else None
        coordinator.refuse("the job is stopping")  # what waits must not be taken of tasks that are gone
        async with AsyncExitStack() as last:  # from the last to the first, whatever one of them raises
            if storage is not None:
                last.push_async_callback(aside, storage.unlock)
            if backend is not None and self._owns_backend:
                last.push_async_callback(backend.close)
            last.push_async_callback(aside, self._metrics.close)
            last.callback(self._metrics.settle)  # no scrape reads the backend from here
            for agent in self.agents.values():
                last.callback(agent.released)
            if delivery is not None:
                last.push_async_callback(delivery.close)
            last.callback(setattr, coordinator, "delivery", None)
            last.push_async_callback(coordinator.close)
            for job in self._jobs():
                last.callback(self._note_left, job)
                last.push_async_callback(job.close)

    def _note_left(self, job: AgentJob | StreamJob) -> None:
        self.left_behind += job.left_behind
        self.left += job.left

    # -- figures, from any thread -------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """(done, all) in bytes, of the bounded sources of streams; None where there are none."""
        return None if self._streams is None else self._streams.progress()

    def statistics(self) -> dict[str, Any]:
        """Of what is open: state, sources, operators, sinks, gate, delivery, streams."""
        if self._over:
            return self.last_figures
        return {
            "state": {} if self._backend is None else self._backend.statistics(),
            **({} if self._agents is None else self._agents.task.statistics()),
            **self._last_figures(),
        }

    def _last_figures(self) -> dict[str, Any]:
        return {
            "delivery": {} if self._delivery is None else self._delivery.statistics(),
            "streams": {} if self._streams is None else self._streams.statistics(),
        }

    def _task_samples(self) -> Iterator[Sample]:
        """For metrics: what runs."""
        if self._streams is not None:
            yield from self._streams.samples()
        if self._agents is not None:
            yield from self._agents.task.samples()

    def samples(self) -> Iterator[Sample]:
        """For metrics: the delivery and the state."""
        if self._over:
            return
        for track, figures in ({} if self._delivery is None else self._delivery.statistics()).items():
            yield Sample("sabot_delivered_records_total", figures["delivered_rows"], track, figures["sink"])
            yield Sample("sabot_undelivered_records", figures["undelivered_rows"], track, figures["sink"])
            yield Sample("sabot_delivery_failures_total", figures["failures_total"], track, figures["sink"])
        if self._backend is not None:
            state = self._backend.statistics()
            yield Sample("sabot_state_bytes", state["bytes"])
            yield Sample("sabot_state_keys", state["keys"])


async def _all_over(running: list[asyncio.Future[None]]) -> None:
    """Returns when all have ended; raises what the first one failed with."""
    if running:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        for one in done:
            one.result()


def _failure_of(over: asyncio.Future[None]) -> BaseException | None:
    return None if over.cancelled() else over.exception()
