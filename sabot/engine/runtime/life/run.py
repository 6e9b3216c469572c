"""One run of an app, from its start to its stop: what is open, what ends it, and how everything is closed.

open ─▶ until_over ─▶ stop (last checkpoint, its output delivered) ─▶ release (everything closed, whatever happened)
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from sabot.api.nodes.read import endless_read
from sabot.base.claims import FileClaim
from sabot.base.supervision import unexpected_end, watch_task
from sabot.base.threads import Handle, call_on_loop, end_tasks, run_in_thread, run_to_end, threads, wait_all
from sabot.engine.calls.judging import with_judge
from sabot.engine.checkpoint import CheckpointStorage, Coordinator, Manifest, Requests, serve
from sabot.engine.delivery import StagedSinks
from sabot.engine.plan import ending
from sabot.engine.runtime.app_spec import AppSpec, AppStatus
from sabot.engine.runtime.life.kafka_lease import take_lease
from sabot.engine.runtime.life.local_parts import LocalParts
from sabot.engine.runtime.life.origin import Origin
from sabot.engine.runtime.life.parts import RunParts
from sabot.engine.runtime.life.restore import check_app, restore_state
from sabot.engine.runtime.life.run_journal import RunJournal
from sabot.engine.runtime.life.settings import RunSettings, checkpoint_interval
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.tasks.manifest_facts import check_facts
from sabot.engine.runtime.watch.app_watch import AppWatch
from sabot.engine.state import StateBackend
from sabot.engine.state.files import claim_directory
from sabot.errors import AgentFailed, AppLocked, CheckpointFailed, SabotError, TransientError, UserError

_log = logging.getLogger(__name__)

# The longest wait of `start` for the first record of a stream without a schema; `run` waits without a limit.
_FIRST_RECORD_SECONDS = 10.0
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
        status: AppStatus,
        watch: AppWatch,
        stop_asked: asyncio.Event,
        heed: Callable[[BaseException | None], None],
        in_run: bool,
    ) -> None:
        """`stop_asked`: set when the user asks for a stop. `heed`: called with each failure, which may be a request to exit
        the process. `in_run`: True if a caller waits in `AppRunner.run`, which begins another run after this one when
        `goes_on` is set.
        """
        self.app = app
        self.agents = app.agents
        self._closing = False  # everything is being closed: a failure from now on does not concern the next run
        self._ran = False  # everything was open
        self.restored_from: int | None = None
        self.ended = False  # all inputs have ended: output that is not delivered now stays undelivered
        self.left: list[tuple[str, Handle]] = []  # threads that did not end, with the user's objects in which they hang
        self._judge: Any = None  # of the calls by functions of the app that belong to no agent
        self.left_behind: list[str] = []  # calls that ignored their cancellation
        self.taken: AppLocked | None = None  # set if, at the end of the run, another worker holds the lock of the app
        self.can_go_back = False  # another run can resume from the last checkpoint
        self.goes_on = asyncio.Event()  # set to end this run and begin another one with other settings
        self.parts: RunParts | None = None  # the streams and the agents
        self._writes = app.ends
        self._coordinator = coordinator
        self._origin = origin
        self._status = status
        self._watch = watch
        self._stop_asked = stop_asked
        self._heed = heed
        self._in_run = in_run
        self._loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._awaited = False  # True while `until_over` waits and will raise the error of `_broken`
        self._agents_broken = asyncio.Event()  # their state or a sink has failed: no further checkpoint is possible
        self._periodic: list[asyncio.Task[None]] = []  # the tasks for checkpoints and for requests of the command line
        self._fresh = False
        self._storage: CheckpointStorage | None = None
        self._refilled_as: Manifest | None = None  # the checkpoint that this start has made by refilling steps
        self._journal = RunJournal(app)
        self._backend: StateBackend | None = None  # the state of the agents, if they are in this process
        self._owns_backend = False
        self._tables: FileClaim | None = None  # of the directory in which the tables of streams are
        self._delivery: StagedSinks | None = None
        self._let_go: Callable[[], None] = lambda: None  # releases the lease at the broker

    @property
    def journal(self) -> Any:
        """The journal of durable agents (`journal.Journal`), or None if it is not open here."""
        return None if self._journal.opened is None else self._journal.opened.journal

    @property
    def _runs(self) -> bool:
        """True while everything is open, before the stop begins."""
        return not self._closing and self._status.phase == "running"

    # -- the start ----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Restores the checkpoint, if there is one, opens everything, and starts it. Raises StoppedEarly if a stop
        was requested meanwhile. After an error, call `release`.
        """
        app, coordinator = self.app, self._coordinator
        for agent in self.agents.values():
            agent.starts(app.settings.broker, app.settings.kafka)
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
        delivery = self._delivery = self._watch.delivery = coordinator.delivery = self._new_delivery(
            manifest, incarnation
        )
        coordinator.on_lost = coordinator.on_broken = self.break_
        if manifest is not None:
            await restore_state(self._backend, manifest)
            self.restored_from = manifest.checkpoint_id
        self._judge = app.judge_of_functions()
        if not await app.lifespan.open(self._stop_asked, self._judge):
            raise StoppedEarly(f"app {app.id}: stopped before its start was complete")
        app.check_names()  # here, because the guards count the costs of opening resources too
        if manifest is not None and storage is not None and self._origin.asked.refill:
            manifest = await self._refilled(storage, manifest)
        parts = self.parts = self._watch.parts = self._new_parts(self._settings(delivery), delivery)
        await parts.open(manifest)
        self._let_go = await take_lease(app, storage, self.agents, self._writes, self._stop_asked, self.break_)
        delivery.check_restored()
        await run_to_end(delivery.open(partial(self._origin.give_up_earlier, storage)))
        self._let_run(parts, delivery)
        if storage is not None and storage.request_folder is not None:
            from sabot.engine.runtime.life.requests import AppRequests

            anew = self.goes_on.set if self._in_run else None
            asked = AppRequests(
                app,
                storage,
                coordinator,
                parts,
                self._status,
                self._watch,
                begin_anew=anew,
                stop=self._stop_asked.set if self._in_run else None,
            )
            requests = serve(Requests(storage.request_folder), asked.answer)
            self._periodic.append(self._beside(requests, "requests"))
        if self._origin.savepoint is not None:
            coordinator.beat()  # so that the next start resumes from a checkpoint of this run
        if manifest is not None:
            _log.info("app %s resumes from checkpoint %d", app.id, manifest.checkpoint_id)

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
            self._watch.backend = self._backend

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
        from sabot.engine.runtime.life.refilling import Refilling

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
            first_record_s=math.inf if self._in_run else _FIRST_RECORD_SECONDS,
        )

    def _new_parts(self, settings: RunSettings, delivery: StagedSinks) -> RunParts:
        parts: RunParts
        if self.app.workers is not None:
            parts = self.app.workers(self._writes, settings, self._coordinator, delivery, self.agents)
        else:
            opened, broke = self._journal.opened, self._agents_broke
            parts = LocalParts(self.app, settings, backend=self._backend, journal=opened, on_agents_broken=broke)
        parts.on_failed, parts.on_agent_failed = self.break_, self._agent_failed
        return parts

    def _let_run(self, parts: RunParts, delivery: StagedSinks) -> None:
        parts.run()
        for running in parts.running:
            running.add_done_callback(self._part_over)
        self._watch.follow()
        self._hold(delivery.full)
        self._status.phase, self._ran = "running", True
        interval = checkpoint_interval(self.app.settings, exactly_once=delivery.exactly_once)
        self._periodic.append(self._beside(self._coordinator.run(interval), "checkpoints"))
        beside = with_judge(self._beside, self._judge)
        self._periodic += [beside(tick(), name) for name, tick in self.app.lifespan.ticking()]
        self.checkpoint_ended()

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Starts a task that should run as long as the app does. If it ends before that, the run is broken. `name`:
        for messages.
        """
        task = asyncio.create_task(work, name=name)
        return watch_task(task, f"the task of {name}", self.break_, stopped=lambda: not self._runs)

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
        agents = self.parts is not None and self.parts.needs_checkpoint
        if self._runs and (agents or (self._delivery is not None and self._delivery.needs_checkpoint)):
            self._coordinator.beat()

    def _hold(self, held: bool) -> None:
        """Stops reading if `held` is True, because too much output waits for delivery; otherwise resumes it. From any
        thread.
        """
        held = held or self._status.failure is not None
        if self.parts is not None:
            self.parts.hold(held)
        if held:  # the output may wait for a checkpoint that is not due for long
            call_on_loop(self._loop, self._coordinator.beat)

    def _part_over(self, over: asyncio.Future[None]) -> None:
        self._heed(None if over.cancelled() else over.exception())

    def _agent_failed(self, agent_id: str, failure: AgentFailed) -> None:
        self._heed(failure)
        if self.app.workers is not None and not self._writes and all(each.error for each in self.agents.values()):
            self._agents_broken.set()  # no agent is left, though a task of one that has several may read on
        if self.parts is not None and self.parts.linked:  # the streams cannot go on without the agent
            self._agents_broken.set()
            if not self._awaited and self._status.stalled_by is None:
                self._status.stalled_by = failure
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
        """The error that broke the task of the agents, or None; the failure of a single agent does not break it."""
        return None if self.parts is None else self.parts.agents_failure

    def break_(self, error: BaseException) -> None:
        """Marks the run as broken: it cannot go on, whatever its tasks do."""
        if self._closing:
            return
        self._heed(error)
        self._coordinator.refuse(str(error))
        if not self._broken.done():
            failure = unexpected_end("the run", error)
            _log.error("%s", failure)
            self._broken.set_exception(failure)
            # Marks the exception as retrieved: `until_over`, the stop or the next call raises it.
            self._broken.exception()
            self._status.failure = failure
            self._hold(True)  # the next run reads these rows again
            if not self._awaited:
                for agent in self.agents.values():
                    agent.halted(failure)

    async def until_over(self) -> None:
        """Returns when every input has ended, no agent is left, or a stop is requested. Raises the failure if the run
        is broken.
        """
        self._awaited = True
        broken = asyncio.shield(self._broken)
        ends = (self._stop_asked.wait(), self._agents_broken.wait(), self.goes_on.wait())
        waits: set[asyncio.Future[Any]] = {*map(asyncio.ensure_future, ends), broken}
        parts = self.parts
        assert parts is not None
        parts.awaited = True
        over = asyncio.ensure_future(wait_all(list(parts.running)))
        waits.add(over)
        if parts.was_complete:
            if parts.open_durable:
                told = (
                    "app %s had read all its inputs with checkpoint %s: nothing is read twice, and open jobs go on: %d"
                )
                _log.warning(told, self.app.id, self.restored_from, parts.open_durable)
            else:
                self._check_ended()
                told = "app %s had ended with checkpoint %s: nothing is read twice (start afresh with --fresh)"
                _log.warning(told, self.app.id, self.restored_from)
        alive = [agent.process for agent in self.agents.values() if agent.process is not None]
        if alive and not self._writes and self.app.workers is None:
            waits.add(asyncio.ensure_future(asyncio.wait(alive)))  # ends when the last agent has failed
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if broken in done:
                broken.result()
            if over in done and not self._closing:
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
        self._status.phase = "stopping"
        failure: CheckpointFailed | None = None
        try:
            await end_tasks(self._periodic)
            for agent in self.agents.values():
                agent.stops()
            parts = self.parts
            assert parts is not None
            # If the app was complete at its start, nothing was opened.
            complete = not self.agents and parts.was_complete
            if not complete and not self._is_broken():
                await parts.stop(drain=drain)
                if not self._is_broken():
                    await self._coordinator.take()
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
        return self._broken.done() or (self.parts is not None and self.parts.broken)

    async def _deliver_the_rest(self) -> None:
        """Delivers the output of the last checkpoint. If all inputs have ended, completes the results, and takes a checkpoint of that."""
        delivery = self._delivery
        assert delivery is not None

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
                await self._coordinator.take()
            except CheckpointFailed as error:
                _log.warning("%s; the next start asks the receivers which output they have", error)

    async def release(self) -> None:
        """Closes everything that is open. Failed agents stay FAILED."""
        backend, storage, coordinator, delivery = self._backend, self._storage, self._coordinator, self._delivery
        self._closing = True
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
            last.callback(self._watch.metrics.settle)  # from here on no scrape reads the backend
            for agent in self.agents.values():
                last.callback(agent.released)
            if delivery is not None:
                last.push_async_callback(delivery.close)
            last.callback(setattr, coordinator, "delivery", None)
            last.push_async_callback(coordinator.close)
            if self.parts is not None:
                last.callback(self._note_left, self.parts)
                last.push_async_callback(self.parts.close)
            last.callback(self._watch.keep)  # it asks the parts and the app's clock, which may raise

    def _note_left(self, parts: RunParts) -> None:
        self.left_behind += parts.left_behind
        self.left += parts.left
