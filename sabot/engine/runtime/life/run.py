"""One run of an app, from its start to its stop: what is open, what ends it, and how everything is closed.

open ─▶ until_over ─▶ stop (last checkpoint, its output delivered) ─▶ release (everything closed, whatever happened)
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Read, endless_read
from sabot.base.claims import FileClaim
from sabot.base.metrics import Metrics, Sample
from sabot.base.supervision import unexpected_end, watch_task
from sabot.base.threads import Handle, call_on_loop, end_tasks, run_in_thread, run_to_end, threads, wait_all
from sabot.engine.calls.judging import with_judge
from sabot.engine.calls.model_figures import RunEngines
from sabot.engine.checkpoint import CheckpointStorage, Coordinator, Manifest, Requests, serve
from sabot.engine.delivery import StagedSinks
from sabot.engine.plan import ending, walk
from sabot.engine.runtime.agents.groups import TASK
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.lease import take_lease
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.life.origin import Origin
from sabot.engine.runtime.life.refilling import Refilling
from sabot.engine.runtime.life.requests import AppRequests
from sabot.engine.runtime.life.restore import check_app, restore_state
from sabot.engine.runtime.life.run_journal import RunJournal
from sabot.engine.runtime.life.settings import RunSettings, checkpoint_interval
from sabot.engine.runtime.life.streams import SpreadStreams, Streams
from sabot.engine.runtime.tasks.facts import check_facts
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.state import StateBackend
from sabot.engine.state.files import claim_directory
from sabot.errors import AgentFailed, AppLocked, CheckpointFailed, SabotError, TransientError, UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from sabot.engine.runtime.agents.local_agents import LocalAgents

_log = logging.getLogger(__name__)

LASTING = ("delivery", "streams", "engines", "sources", "sinks")  # figures that stay readable after the run
_AGAIN_SECONDS = 1.0  # between a failed checkpoint and the next request, if output waits for it
_DELIVER_SECONDS = 60.0  # for the delivery after all inputs have ended
_STOP_SECONDS = 10.0  # for the delivery at a stop


class Undelivered(TransientError):
    """The error of an app whose inputs have all ended, while a receiver does not accept the rest of the output."""


class Run:
    """One run of an app. All methods run on one event loop, unless said otherwise. A run is started once."""

    def __init__(
        self,
        app: AppSpec,
        *,
        coordinator: Coordinator,
        origin: Origin,
        metrics: Metrics,
        stop_asked: asyncio.Event,
        first_record_s: float,
        heed: Callable[[BaseException | None], None],
        restarts: int,
        figures: Callable[[], dict[str, Any]],
        in_run: bool,
    ) -> None:
        """`stop_asked`: set when the user asks for a stop. `first_record_s`: as in RunSettings. `heed`: called with
        each failure, which may be a request to exit the process. `restarts`: the number of restarts so far. `figures`:
        returns those of the app, from any thread. `in_run`: True if `AppRunner.run` begins another run after this one
        when `goes_on` is set.
        """
        self.app = app
        self.agents = app.agents
        self.failure: SabotError | None = (
            None  # the failure that ended the run, if it did not come from one of its tasks
        )
        self.stalled_by: SabotError | None = (
            None  # the first failure of an agent without which streams cannot go on, if nobody awaits the run
        )
        self.running = False  # everything is open, and the stop has not begun
        self._ran = False  # everything was open
        self.restored_from: int | None = None
        self.ended = False  # all inputs have ended: output that is not delivered now stays undelivered
        self.left: list[tuple[str, Handle]] = []  # threads that did not end, with the user's objects in which they hang
        self._judge: Any = None  # of the calls by functions of the app that belong to no agent
        self.left_behind: list[str] = []  # calls that ignored their cancellation
        self.taken: AppLocked | None = None  # set if, at the end of the run, another worker holds the lock of the app
        self.can_go_back = False  # another run can resume from the last checkpoint
        self.goes_on = asyncio.Event()  # set to end this run and begin another one with other settings
        self.last_figures: dict[str, Any] = {name: {} for name in LASTING}
        self._writes = app.ends
        self._coordinator = coordinator
        self._origin = origin
        self._metrics = metrics
        self._stop_asked = stop_asked
        self._first_record_s = first_record_s
        self._heed = heed
        self._restarts = restarts
        self._figures = figures
        self._in_run = in_run
        self._loop = asyncio.get_running_loop()
        self._engines = RunEngines()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._over = False  # a failure from now on does not concern the next run
        self._awaited = False  # True while `until_over` waits and will raise the error of `_broken`
        self._agents_broken = asyncio.Event()  # their state or a sink has failed: no further checkpoint is possible
        self._periodic: list[asyncio.Task[None]] = []  # the tasks for checkpoints and for requests of the command line
        self._fresh = False
        self._storage: CheckpointStorage | None = None
        self._refilled_as: Manifest | None = None  # the checkpoint that this start has made by refilling steps
        self._journal = RunJournal(app)
        self._backend: StateBackend | None = None
        self._owns_backend = False
        self._tables: FileClaim | None = None  # of the directory in which the tables of streams are
        self._delivery: StagedSinks | None = None
        self._let_go: Callable[[], None] = lambda: None  # releases the lease at the broker
        self._agents: LocalAgents | None = None
        self._streams: Streams | None = None
        self._spread: SpreadStreams | None = None  # the same object, if streams and agents are in other processes

    @property
    def journal(self) -> Any:
        """The journal of durable agents (`journal.Journal`), or None if it is not open here."""
        return None if self._journal.opened is None else self._journal.opened.journal

    def busy(self) -> tuple[Sequence[tuple[str, float | None, int | None]], dict[str, int]]:
        """Returns the stream tasks, and for each agent the number of waiting records (`BlockingMonitor`)."""
        agents = {} if self._agents is None else dict(self._agents.task.operators)
        waiting = {agent_id: operator.held.rows for agent_id, operator in agents.items()}
        return [] if self._streams is None else [each.taking for each in self._streams.tasks], waiting

    # -- the start ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Restores the checkpoint, if there is one, opens everything, and starts it. Raises StoppedEarly if a stop
        was requested meanwhile. After an error, call `release`.
        """
        app, coordinator = self.app, self._coordinator
        for agent in self.agents.values():
            agent.starts(app.settings.broker, app.settings.kafka)
        if app.settings.metrics_port is not None and self._metrics.port is None:  # else it is open since an earlier run
            self._metrics.serve(app.settings.metrics_port, app.settings.metrics_host)
        self._origin.begin()
        # Not on the event loop: taking the lock, wiping a database and reading a manifest wait for the disk.
        await run_to_end(run_in_thread(self._open))
        storage = self._storage
        if storage is None:
            self._origin.refuse_without_storage()
        # It may claim the app, and changes the settings of the next start.
        manifest = None if storage is None else await run_to_end(run_in_thread(self._origin.find, storage))
        await run_to_end(run_in_thread(self._check_journal, manifest))
        incarnation = manifest.incarnation if manifest is not None else uuid.uuid4().hex
        if storage is not None:
            coordinator.keep_in(storage, self._origin.describe(manifest), incarnation)
        if manifest is not None:
            check_app(manifest, app.id)
            check_facts(manifest)
            coordinator.begin_after(manifest.checkpoint_id)
        self._delivery = coordinator.delivery = self._new_delivery(manifest, incarnation)
        coordinator.on_lost = coordinator.on_broken = self.break_
        if manifest is not None:
            await restore_state(self._backend, manifest)
            self.restored_from = manifest.checkpoint_id
        self._judge = app.judge_of_functions()
        if not await app.lifespan.open(self._stop_asked, self._judge):
            raise StoppedEarly(f"app {app.id}: stopped before its start was complete")
        specs = self.app.agent_specs
        for guard in app.guards:  # this counts the costs of opening resources too
            guard.check_names(
                [each.func for each in specs],
                [each.agent_id for each in specs],
                f"app {app.id}: its policy",
                {each.agent_id: [each.func, each.on_timer or each.func] for each in specs if not each.durable},
            )
        if any(each.durable for each in specs):
            app.durable_kind().warn_of_lost_labels(specs, self._writes)
        self._check_skipping(specs)
        if manifest is not None and storage is not None and self._origin.asked.refill:
            manifest = await self._refilled(storage, manifest)
        await self._open_parts(manifest, self._settings(self._delivery))
        self._let_go = await take_lease(app, storage, self.agents, self._writes, self._stop_asked, self.break_)
        self._delivery.check_restored()
        await run_to_end(self._delivery.open(partial(self._origin.give_up_earlier, storage)))
        self._let_run()
        if storage is not None and storage.request_folder is not None:
            anew = self.goes_on.set if self._in_run else None
            asked = AppRequests(
                app,
                storage,
                coordinator,
                self._spread,
                restarts=self._restarts,
                figures=self._figures,
                tap=self.tap,
                begin_anew=anew,
                stop=self._stop_asked.set if self._in_run else None,
            )
            requests = serve(Requests(storage.request_folder), asked.answer)
            self._periodic.append(self._beside(requests, "requests"))
        if self._origin.savepoint is not None:
            coordinator.beat()  # so that the next start resumes from a checkpoint of this run
        if manifest is not None:
            _log.info("app %s resumes from checkpoint %d", app.id, manifest.checkpoint_id)

    def _check_skipping(self, specs: Sequence[AgentSpec]) -> None:
        """Raises UserError for a name in `from_earliest=` that is no topic of the app."""
        reads = {node.name for node in walk(self._writes) if isinstance(node, Read)}
        reads |= {topic for spec in specs for topic in spec.topics}
        if unknown := sorted(self.app.settings.skipping - reads):
            raise UserError(
                f"--from-earliest {unknown[0]}: the app reads no topic of that name",
                hint=f"it reads {', '.join(sorted(reads))}",
            )

    def _open(self) -> None:
        """Opens everything. Each object is assigned to its attribute as soon as it is open, so that `release` finds
        it. Blocks.
        """
        self._fresh = self.app.settings.fresh
        self._origin.check_place()
        self._journal.open()
        self._storage = self.app.open_storage()
        if self.app.settings.forget_effects:
            self._origin.give_up_earlier(self._storage)  # the journal, which they need, is empty now
        self._origin.opened(self._storage)
        # The checkpoints, which are locked, may be elsewhere. With workers this is the only claim of the directory.
        if self._writes and (tables := self.app.open_tables()) is not None:
            self._tables = claim_directory(tables)
        if self.app.workers is None:
            self._backend, self._owns_backend = self.app.open_state()

    def _check_journal(self, manifest: Manifest | None) -> None:
        """Compares the journal with the checkpoint. Blocks."""
        facts = self._journal.check(manifest, None if self._storage is None else self._storage.directory)
        if facts is not None and self._origin.savepoint is not None and self._storage is not None:
            assert manifest is not None
            self._journal.tell_of_savepoint(facts, self._storage)
            self._storage.note(manifest, self._origin.savepoint)  # a start may go back to it from here, too

    async def _refilled(self, storage: CheckpointStorage, manifest: Manifest) -> Manifest:
        """Returns a new checkpoint, with the positions of `manifest`, in which the state of the steps that the user refills is
        computed again, or `manifest` if the tables above these steps fill them.
        """
        specs = self.app.agent_specs
        refilling = Refilling(self.app, self._writes, specs, storage, manifest)
        decided = await run_in_thread(refilling.look, self._origin.asked)
        asked, refill = decided.asked, decided.refill
        self._origin.asked = replace(asked, drop=refill.left_to_drop(asked.drop), refill=refill.tables)
        if not refill.topics:
            return manifest
        self._refilled_as = made = await refilling.run(refill, self._stop_asked)
        self._coordinator.begin_after(made.checkpoint_id)
        return made

    def _settings(self, delivery: StagedSinks) -> RunSettings:
        return replace(
            self.app.settings_of_run(self._coordinator),
            staged=delivery.staged,
            drop=self._origin.asked.drop,
            refill=self._origin.asked.refill,
            reemit=self._origin.asked.reemit,
            is_savepoint=self._origin.savepoint is not None,
            stop_asked=self._stop_asked.is_set,
            first_record_s=self._first_record_s,
        )

    async def _open_parts(self, manifest: Manifest | None, settings: RunSettings) -> None:
        """Opens the streams and the agents."""
        if self.app.workers is not None:
            assert self._delivery is not None
            spread = self.app.workers(self._writes, settings, self._coordinator, self._delivery, self.agents)
            spread.agents.on_failed = self._agent_failed
            self._streams = self._spread = spread
            await spread.open(manifest)
            return
        specs = self.app.agent_specs
        if self.agents:
            from sabot.engine.runtime.agents.local_agents import (
                LocalAgents,  # imported late, because it loads the rooms of agents
            )

            self._agents = LocalAgents(
                specs,
                settings,
                coordinator=self._coordinator,
                open_source=lambda spec, topic: self.agents[spec.agent_id].open_source(topic, spec.group_id),
                backend=self._backend,
                counters=self.agents,
                on_failed=self._agent_failed,
                ends=self._writes,
                journal=self._journal.opened,
            )
        for agent in self.agents.values():
            agent.state_backend = self._backend
        if self._writes:
            wanted = {} if self._agents is None else self._agents.sinks.wanted
            streams = self._streams = LocalStreams(self._writes, settings, agents=specs, wanted=wanted)
            if self._agents is not None:
                self._agents.streams = streams
            await streams.open(manifest)
        if self._agents is not None:  # after the streams, as opening those may wait for their first record
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
            agent.runs_elsewhere() if agents is None else agent.runs_in(agents)
        self._metrics.follow(self._task_samples)
        assert self._delivery is not None
        self._hold(self._delivery.full)
        self.running = self._ran = True
        interval = checkpoint_interval(self.app.settings, exactly_once=self._delivery.exactly_once)
        self._periodic.append(self._beside(self._coordinator.run(interval), "checkpoints"))
        beside = with_judge(self._beside, self._judge)
        self._periodic += [beside(tick(), name) for name, tick in self.app.lifespan.ticking()]
        self.checkpoint_ended()

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Starts a task that should run as long as the app does. If it ends before that, the run is broken. `name`:
        for messages.
        """
        task = asyncio.create_task(work, name=name)
        return watch_task(task, f"the task of {name}", self.break_, stopped=lambda: not self.running)

    def _new_delivery(self, manifest: Manifest | None, incarnation: str) -> StagedSinks:
        return StagedSinks(
            self.app.id,
            self._storage,
            manifest,
            incarnation=incarnation,
            spawn=threads.spawn,
            clock=self.app.clock,
            newest=self._origin.savepoint is None,
            choice=self.app.settings.redeliver,
            fresh=self._fresh and manifest is None,  # a savepoint has rules of its own
            on_full=self._hold,
            on_broken=lambda error: call_on_loop(self._loop, self.break_, error),
        )

    # -- while it runs ----------------------------------------------------------------------------------------------------

    def checkpoint_ended(self, *, failed: bool = False) -> None:
        """Requests another checkpoint if sources are paused until output is saved in one, or if durable jobs wait for
        their first one. Called when a checkpoint has ended; if it has `failed`, the request follows after a pause.
        """
        self._loop.call_later(_AGAIN_SECONDS if failed else 0.0, self._beat_if_needed)

    def _beat_if_needed(self) -> None:
        runs = self._agents if self._spread is None else self._spread.agents
        agents = runs is not None and runs.needs_checkpoint
        if self.running and (agents or (self._delivery is not None and self._delivery.needs_checkpoint)):
            self._coordinator.beat()

    def _hold(self, held: bool) -> None:
        """Stops reading if `held` is True, because too much output waits for delivery; otherwise resumes it. From any
        thread.
        """
        held = held or self.failure is not None
        for part in self._parts():
            part.hold(held)
        if held:  # the output may wait for a checkpoint that is not due for long
            call_on_loop(self._loop, self._coordinator.beat)

    def _streams_over(self, over: asyncio.Future[None]) -> None:
        failure = None if over.cancelled() else over.exception()
        self._heed(failure)
        if failure is not None and self._agents is not None:
            self._agents.task.streams_failed()

    def _agent_failed(self, agent_id: str, failure: AgentFailed) -> None:
        agent = self.agents[agent_id]
        agent.on_failed(failure) if self._spread is None else agent.failed_elsewhere(failure)
        self._heed(failure)
        if self._spread is not None and not self._writes and all(each.error for each in self.agents.values()):
            self._agents_broken.set()  # no agent is left, though a task of one that has several may read on
        if self._streams is not None and self._streams.linked:  # the streams cannot go on without the agent
            self._agents_broken.set()
            if not self._awaited and self.stalled_by is None:
                self.stalled_by = failure
                _log.error(
                    "app %s: its streams wait for agent %s, which has failed; stop() takes a last checkpoint",
                    self.app.id,
                    agent_id,
                )

    def _agents_broke(self) -> None:
        self._agents_broken.set()
        broken = self.agents_failure
        self._heed(broken)
        if broken is not None and not self._awaited:
            self.break_(broken)

    @property
    def agents_failure(self) -> SabotError | None:
        """Returns the error that broke the task of the agents, or None; the failure of a single agent does not break
        it.
        """
        return None if self._agents is None else self._agents.task.broken

    def break_(self, error: BaseException) -> None:
        """Marks the run as broken: it cannot go on, whatever its tasks do."""
        if self._over:
            return
        self._heed(error)
        self._coordinator.refuse(str(error))
        if not self._broken.done():
            failure = unexpected_end("the run", error)
            _log.error("%s", failure)
            self._broken.set_exception(failure)
            # Marks the exception as retrieved: `until_over`, the stop or the next call raises it.
            self._broken.exception()
            self.failure = failure
            self._hold(True)  # the next run reads these rows again
            if not self._awaited:
                for agent in self.agents.values():
                    agent.halted(failure)

    async def _checkpoint(self) -> Manifest:
        return await self._coordinator.wait(self._coordinator.trigger())

    async def until_over(self) -> None:
        """Returns when every input has ended, no agent is left, or a stop is requested. Raises the failure if the run
        is broken.
        """
        self._awaited = True
        broken = asyncio.shield(self._broken)
        ends = (self._stop_asked.wait(), self._agents_broken.wait(), self.goes_on.wait())
        waits: set[asyncio.Future[Any]] = {*map(asyncio.ensure_future, ends), broken}
        parts = self._parts()
        over = asyncio.ensure_future(wait_all([part.running for part in parts]))
        if self._streams is not None:
            self._streams.awaited = True
        if parts:
            waits.add(over)
            if all(part.was_complete for part in parts):
                durable = None if self._agents is None else self._agents.task.jobs
                if durable is not None and durable.go_on:
                    told = "app %s had read all its inputs with checkpoint %s: nothing is read twice, and open jobs go on: %d"
                    _log.warning(told, self.app.id, self.restored_from, durable.go_on)
                else:
                    self._check_ended()
                    told = "app %s had ended with checkpoint %s: nothing is read twice (start afresh with --fresh)"
                    _log.warning(told, self.app.id, self.restored_from)
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
            self._awaited = False  # from here on, `stop` raises the error that breaks the run
        finally:
            for wait in {*waits, over}:
                wait.cancel()

    def _check_ended(self) -> None:
        """Raises UserError if a stream of an app that had ended reads a topic without an end now. What has come since would not be read:
        its windows are closed.
        """
        endless = filter(None, map(endless_read, ending(self._writes, self.app.settings.end_at)))
        if (read := next(endless, None)) is not None:
            raise UserError(
                f"app {self.app.id} had ended with checkpoint {self.restored_from} at the end that until= set, so what {read.name} has "
                "got since is not read: windows and joins have given their last results",
                hint="a run that is to go on has no until=, and is stopped; --fresh reads everything again",
            )

    # -- the stop -----------------------------------------------------------------------------------------------------

    async def stop(self, *, drain: bool) -> None:
        """Takes a last checkpoint, and stops everything. `drain`: True to process rows that were read first.

        Raises the failure that broke the run, unless `until_over` raises it; otherwise CheckpointFailed, if the last
        checkpoint has failed.
        """
        self.running = False
        failure: CheckpointFailed | None = None
        try:
            await end_tasks(self._periodic)
            for agent in self.agents.values():
                agent.stops()
            parts = self._parts()
            # If the app was complete at its start, nothing was opened.
            complete = not self.agents and self._streams is not None and self._streams.was_complete
            if parts and not complete and not self._is_broken():
                # At the same time, because each may end inputs of the other.
                await asyncio.gather(*(part.stop(drain=drain) for part in parts))
                if not self._is_broken():
                    await self._checkpoint()
                    await self._deliver_the_rest()
        except CheckpointFailed as error:
            failure = error
        finally:
            await run_to_end(self.release())
        if self._broken.done() and not self._awaited:
            self._broken.result()  # raises the error, which nothing else would
        if failure is not None:
            again = "the next start resumes from the checkpoint before"
            hint = f"{failure.hint}; {again}" if failure.hint else again
            raise CheckpointFailed(f"no last checkpoint: {failure.message}", hint=hint) from failure

    def _is_broken(self) -> bool:
        return self._broken.done() or any(part.broken for part in self._parts())

    async def _deliver_the_rest(self) -> None:
        """Delivers the output of the last checkpoint. If all inputs have ended, completes the results, and takes a checkpoint of that."""
        delivery = self._delivery
        if delivery is None:
            return

        def patient() -> bool:
            return self.ended and not self._stop_asked.is_set()  # a stop may be requested meanwhile

        if not await delivery.drained(_DELIVER_SECONDS, _STOP_SECONDS, patient):
            missing = Undelivered(
                f"app {self.app.id}: {delivery.undelivered()}",
                hint="this output is saved in the last checkpoint; the next start delivers it",
            )
            await asyncio.sleep(0)  # callbacks of a track that broke run first
            if patient() and not self._is_broken():
                raise missing
            _log.warning("%s", missing)
        elif await delivery.finish() or delivery.has_news:
            try:
                await self._checkpoint()
            except CheckpointFailed as error:
                _log.warning("%s; the next start asks the receivers which output they have", error)

    def _parts(self) -> "list[LocalAgents | Streams]":
        """Returns the open parts of the run: its agents and its streams."""
        return [part for part in (self._agents, self._streams) if part is not None]

    async def release(self) -> None:
        """Closes everything that is open. Failed agents stay FAILED."""
        backend, storage, coordinator, delivery = self._backend, self._storage, self._coordinator, self._delivery
        self._over = True
        self.last_figures = self._last_figures()
        # The state of a user's own backend is replaced when a checkpoint is restored; without a checkpoint it would not be cleared.
        known = self.restored_from is not None or coordinator.statistics()["completed"] > 0
        self.can_go_back = storage is not None and (backend is None or self._owns_backend or known)
        if storage is not None:
            try:  # a worker that has lost the app must not claim it back with a restart
                await run_in_thread(storage.check_owner)
            except SabotError as error:
                self.taken = error if isinstance(error, AppLocked) else None
        coordinator.refuse("the app is stopping")  # requests that wait must not reach tasks that have ended
        async with AsyncExitStack() as last:  # closes in reverse order, even if one of them raises
            if storage is not None:
                last.push_async_callback(run_in_thread, storage.unlock)
                if self._refilled_as is not None and not self._ran:  # the start was refused, and changes nothing
                    last.push_async_callback(run_in_thread, storage.withdraw, self._refilled_as)
            last.push_async_callback(run_in_thread, self._let_go)
            if self._tables is not None:
                last.callback(self._tables.release)
            if backend is not None and self._owns_backend:
                last.push_async_callback(backend.close)
            last.push_async_callback(run_in_thread, partial(self._journal.close, ran=self._ran))
            last.push_async_callback(self.app.lifespan.close)
            last.callback(self._metrics.settle)  # from here on no scrape reads the backend
            for agent in self.agents.values():
                last.callback(agent.released)
            if delivery is not None:
                last.push_async_callback(delivery.close)
            last.callback(setattr, coordinator, "delivery", None)
            last.push_async_callback(coordinator.close)
            for part in self._parts():
                last.callback(self._note_left, part)
                last.push_async_callback(part.close)

    def _note_left(self, part: "LocalAgents | Streams") -> None:
        self.left_behind += part.left_behind
        self.left += part.left

    # -- figures, from any thread -------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes of the bounded sources of streams, or None if there are none."""
        return None if self._streams is None else self._streams.progress()

    def tap(self, point: TapPoint) -> "list[pa.RecordBatch]":
        """Copies rows behind a step, as `LocalStreams.tap` does."""
        return [] if self._over or self._streams is None else self._streams.tap(point)

    def statistics(self) -> dict[str, Any]:
        """Returns the figures of the open parts: state, sources, operators, sinks, gate, workers, delivery, streams."""
        if self._over:
            return self.last_figures
        return {
            **self._last_figures(),
            "state": {} if self._backend is None else self._backend.statistics(),
            **({} if self._agents is None else self._agents.task.statistics()),
            **({} if self._spread is None else self._spread.agents.statistics()),
            "workers": [] if self._streams is None else self._streams.workers(),
        }

    def _last_figures(self) -> dict[str, Any]:
        agents: Mapping[str, Any] = {} if self._agents is None else self._agents.task.statistics()
        return {
            "sources": agents.get("sources", {}),
            "sinks": agents.get("sinks", {}),
            "delivery": {} if self._delivery is None else self._delivery.statistics(),
            "streams": {} if self._streams is None else self._streams.statistics(),
            "engines": self._engines.statistics(),
        }

    def _task_samples(self) -> Iterator[Sample]:
        """Yields metrics samples of the running tasks, and the counters of the delivery."""
        if self._streams is not None:
            yield from self._streams.samples()
        if self._agents is not None:
            yield from self._agents.task.samples()
        yield from self._engines.samples()
        for track, figures in ({} if self._delivery is None else self._delivery.statistics()).items():
            yield Sample("sabot_delivered_records_total", figures["delivered_rows"], track, figures["sink"])
            yield Sample("sabot_delivery_failures_total", figures["failures_total"], track, figures["sink"])

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples of the state, and of the output that waits for its delivery. All are gauges."""
        if self._over:
            return
        for track, figures in ({} if self._delivery is None else self._delivery.statistics()).items():
            yield Sample("sabot_undelivered_records", figures["undelivered_rows"], track, figures["sink"])
        if self._backend is not None:
            state = self._backend.statistics()
            yield Sample("sabot_state_bytes", state["bytes"], TASK)
            yield Sample("sabot_state_keys", state["keys"], TASK)
