"""The streams and agents of an app in processes of their own, as its run uses them (`runtime.life.parts.RunParts`).

The process that the user has started is the coordinator: it owns the app, makes the plan, takes the checkpoints, and
delivers exactly-once output. Workers, which it starts or which join it, run the tasks. An attempt is the time from
the start of the workers to their end. It has failed if a worker fails, dies, or sends nothing for too long: all
workers are ended, and the run ends with an error. The app then restarts from its last checkpoint, as it does in one
process.
"""

import asyncio
import logging
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from sabot.api.nodes.read import StreamEnd
from sabot.base.metrics import Sample
from sabot.base.supervision import watch_task
from sabot.base.threads import Handle, call_on_loop, run_in_thread, run_to_end
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint import Coordinator, Manifest
from sabot.engine.delivery import StagedSinks
from sabot.engine.runtime.agents.runnable import RunnableAgent
from sabot.engine.runtime.agents.unfinished import from_ipc
from sabot.engine.runtime.life.build import Build
from sabot.engine.runtime.life.origin import place_and_number
from sabot.engine.runtime.life.parts import had_ended, keep_finals
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.blocking import Working
from sabot.engine.runtime.tasks.inference import StoppedEarly
from sabot.engine.runtime.tasks.taps import ROWS_A_SECOND, TapPoint, share_of
from sabot.engine.workers.connection import SILENT_SECONDS
from sabot.engine.workers.drift import TELL_SECONDS, Drifts, aligned_workers
from sabot.engine.workers.member import Member
from sabot.engine.workers.messages import (
    AbortBarriers,
    AgentHasFailed,
    Beat,
    Close,
    ControlMessage,
    Declined,
    Drift,
    HasFirst,
    Hold,
    HoldReaders,
    PartSealed,
    Ping,
    Retained,
    RowsTaken,
    RunTasks,
    Start,
    Stop,
    TapRows,
    TaskCut,
    TaskEnded,
    TasksOver,
    TrackEnded,
    Trigger,
    Welcome,
    WorkerFailed,
    error_of,
)
from sabot.engine.workers.placement import fingerprint, place
from sabot.engine.workers.process import BEAT_SECONDS
from sabot.engine.workers.remote import part_of, snapshot_of
from sabot.engine.workers.remote_agents import RemoteAgents
from sabot.engine.workers.rendezvous import BeginRound
from sabot.engine.workers.secrets import new_token
from sabot.engine.workers.share import CoordinatorPlacement
from sabot.errors import AgentFailed, SabotError, WorkerLost

if TYPE_CHECKING:
    from sabot.base.figures import ToldAgents, ToldTask

_log = logging.getLogger(__name__)

_IMPORT_SECONDS = 300.0  # the time in which a worker has to import the program
_OPEN_SECONDS = (
    300.0  # how long a worker may be silent while it opens its tasks: a call of the program may hold the interpreter
)
_CLOSE_SECONDS = 45.0  # the time in which a worker has to close everything
_EDGE_SECONDS = (
    2.0  # the wait after an error on an edge: the worker at its other end may have ended, which is the better error
)


class WorkerStreams:
    """The streams of one run in worker processes. All methods run on one event loop, unless said otherwise. It is
    started once.
    """

    def __init__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        coordinator: Coordinator,
        delivery: StagedSinks,
        agents: Mapping[str, RunnableAgent],
        rendezvous: BeginRound,
        told: dict[str, Any],
        workers: int,
        savepoint: str | None,
    ) -> None:
        """`rendezvous`: connects the workers to this process. `told`: the settings that the user has given beside the
        program (`App.configure`). `workers`: their number. `savepoint`: the savepoint from which the app starts, or
        None.
        """
        self.was_complete = False
        self.awaited = False
        self.on_failed: Callable[[BaseException], None] = lambda error: _log.error("%s", error)
        self.on_agent_failed: Callable[[str, AgentFailed], None] = lambda agent_id, failure: None
        self.agents_failure: SabotError | None = None  # always, as no task of agents is in this process
        self.open_durable = 0  # always, likewise
        self.left: list[tuple[str, Handle]] = []
        self.left_behind: list[str] = []
        self.broken = False
        self.goes_on = False
        self.placement: dict[str, int] = {}
        self._tasks: dict[str, Member] = {}
        self._streams_over = False  # True if the streams had ended in the restored checkpoint
        self._settings = settings
        self._coordinator = coordinator
        self._delivery = delivery
        self._savepoint = savepoint
        token = new_token()
        self.agents = RemoteAgents(agents, ends, settings)
        own = sum(group.own for group in self.agents.groups)
        self._workers = workers if ends or own < len(self.agents.groups) else 0  # the workers that may get any task
        self.members = [Member(number) for number in range(self._workers + own)]
        self._arrival = rendezvous(self.members, lambda member: Welcome(member.number, token, told))
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._build = self._new_build(ends)
        self._folder: Path | None = None  # for state that workers hand over
        self._proof = new_token()  # in the folder, so that a worker knows it
        self._drifts = Drifts({})
        self._tapped: dict[TapPoint, deque[bytes]] = {}  # the rows that workers have copied, and nobody has taken yet
        self._left: set[int] = set()  # workers whose tasks have not all ended
        self._started = self._closed = False
        self._triggered = self._aborted = 0
        self._watching: list[asyncio.Task[None]] = []

    def _new_build(self, ends: Sequence[StreamEnd]) -> Build:
        settings, agents = replace(self._settings, placement=CoordinatorPlacement()), self.agents
        return Build(list(ends), settings, agents=agents.specs, wanted=agents.sinks.wanted, loop=self._loop)

    @property
    def linked(self) -> bool:
        """True if the streams pass rows to agents, or get rows from them."""
        return self.agents.linked

    @property
    def needs_checkpoint(self) -> bool:
        """True if jobs of durable agents wait for the first checkpoint that contains the position of their journal."""
        return self.agents.needs_checkpoint

    @property
    def running(self) -> Sequence[asyncio.Future[None]]:
        """One future, which is done when every task has ended. It raises the error by which the attempt has failed."""
        return [self._over]

    # -- the start ----------------------------------------------------------------------------------------------------

    async def open(self, restored: Manifest | None = None) -> None:
        """Starts the workers, and makes them open the tasks at the positions of the checkpoint. If it raises, nothing
        is left open.
        """
        if restored is not None and not self.linked and not self._build.shared and had_ended(restored):
            keep_finals(restored, self._coordinator)
            if not self.agents.specs:
                self.was_complete = True
                self._over.set_result(None)
                return
            self._build, self._streams_over = self._new_build([]), True
        self.agents.restores(restored, kept=self._coordinator.storage is not None)
        try:
            await self._open(restored)
        except BaseException:
            self._build.cancelled.set()
            await run_to_end(self.close())
            raise

    async def _open(self, restored: Manifest | None) -> None:
        for member in self.members:
            member.on_message, member.on_gone = self._heed, self._fail
        self._watching.append(asyncio.create_task(self._watch(), name="heartbeats of workers"))
        opening = asyncio.ensure_future(self._arrival.open())
        try:
            await self._unless_failed([opening])
        finally:
            opening.cancel()
            await asyncio.wait([opening])
        planning = asyncio.ensure_future(run_in_thread(self._plan, restored))
        try:
            await self._unless_failed([planning])
            within_s = self._arrival.within_s
            await self._unless_failed([each.joined for each in self.members], within_s, "has not joined")
            hellos = [each.hello for each in self.members]
            await self._unless_failed(hellos, _IMPORT_SECONDS, "has not imported the program")
        finally:
            self._build.cancelled.set()
            await asyncio.wait([planning])
            planning.exception()  # raised above, unless another error was
        self._arrival.check()
        start = self._start(restored)
        for member in self.members:
            member.send(start)
        await self._unless_failed([each.opened for each in self.members])
        _log.info(
            "streams run in %d tasks on %d workers: pids %s",
            *(len(self.placement), len(self.members), ", ".join(str(each.pid) for each in self.members)),
        )

    def _plan(self, restored: Manifest | None) -> None:
        """Makes the plan, opens the coordinator's parts of it, and places the tasks. Blocks."""
        self._build.open(restored if self._build.ends else None)
        self._build.open_deliveries()
        self.agents.sinks.by_streams = self._build.write_letters
        self.agents.open_deliveries(self._build.shared, afresh=restored is None)
        assert self._build.plan is not None
        self.placement = place(self._build.plan.stages, self._workers, self.agents.groups, self._build.shared)
        self._tasks = {
            name: self.members[worker] for name, worker in self.placement.items() if self.agents.is_task(name)
        }
        self.agents.placed(self._tasks)
        self._drifts = Drifts(aligned_workers(self._build.plan, self.placement))
        self._left = {member.number for member in self._tasks.values()}  # a worker may have no task
        storage = self._coordinator.storage
        if storage is not None and not storage.is_remote:
            self._folder = storage.keep().absolute()
            with storage.explained():
                (self._folder / "proof").write_text(self._proof, "utf-8")

    def _start(self, restored: Manifest | None) -> Start:
        plan = self._build.plan
        assert plan is not None
        storage = self._coordinator.storage
        stored = storage is not None and storage.is_remote
        readings = [stage.reading.node for stage in plan.stages if stage.reading is not None]
        return Start(
            attempt=uuid.uuid4().hex,
            placement=self.placement,
            addresses=[each.hello.result().address for each in self.members],
            columns={node.name: node.schema.serialize().to_pybytes() for node in readings if node.schema is not None},
            plan=fingerprint(self._settings.app_id, plan),
            checkpoint=None if restored is None else restored.checkpoint_id,
            place=None if restored is None else self._place_of(restored),
            folder=None if self._folder is None else os.fspath(self._folder),
            tracks={
                track: "" if stored else os.path.abspath(self._delivery.part_folder(track))
                for track in self._delivery.given()
            },
            drop=sorted(self._settings.drop),
            refill=sorted(self._settings.refill),
            reemit=sorted(self._settings.reemit),
            is_savepoint=self._settings.is_savepoint,
            over=self._streams_over,
            reprocess=sorted(self._settings.reprocess),
            proof=self._proof,
            store=str(storage.directory) if storage is not None and stored else None,
            generation=0 if storage is None else storage.generation,
        )

    def _place_of(self, restored: Manifest) -> str | None:
        """Returns the place where workers read this checkpoint, or None if it is among the app's own."""
        if restored.path is not None:
            return os.path.abspath(restored.path.parents[1])
        return None if self._savepoint is None else place_and_number(self._savepoint)[0]

    async def _unless_failed(
        self, waits: Sequence[asyncio.Future[Any]], seconds: float | None = None, what: str = ""
    ) -> None:
        """Waits for all futures. Raises the attempt's error if the attempt fails meanwhile, and WorkerLost if the
        future of a worker is not done within `seconds`. `what`: words that say what this worker has not done.
        """
        for number, each in enumerate(waits):
            while not each.done():
                done, _ = await asyncio.wait([each, self._over], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if self._over.done():
                    self._over.result()
                if not done:
                    silent = self.members[number].text
                    raise WorkerLost(f"{silent} {what} in {seconds:g} s", hint="its log may show what it is doing")
            each.result()

    def run(self) -> None:
        """Makes the workers run their tasks, and attaches these to the checkpoints."""
        if self.was_complete:
            return
        self._started = True
        for task, member in self._tasks.items():
            hint, saving = partial(self._hint, member, task), partial(_saves, member, task)
            self._coordinator.attach(task, self._trigger, self._abort, hint, saving)
        self._coordinator.on_complete.append(self._commit)
        self._coordinator.on_retained.append(self._retained)
        run = RunTasks(self._delivery.given())
        for member in self.members:
            member.send(run)
        self.agents.run()
        if self._drifts.wanted:
            telling = asyncio.create_task(self._tell_drift(), name="event time of workers")
            self._watching.append(watch_task(telling, "the exchange of event times", self._fail))

    def _hint(self, member: Member, task: str) -> str:
        return f"{member.beat.hints.get(task, 'nothing is known of it')}; on {member.text}"

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _trigger(self, checkpoint_id: int) -> None:
        """Called for each task; the first call for a checkpoint sends the request to all workers."""
        if checkpoint_id > self._triggered:
            self._triggered = checkpoint_id
            self._tell(Trigger(checkpoint_id))

    def _abort(self, checkpoint_id: int) -> None:
        if checkpoint_id > self._aborted:
            self._aborted = checkpoint_id
            self._tell(AbortBarriers(checkpoint_id))

    def _commit(self, manifest: Manifest) -> None:
        for member, message in self.agents.complete(manifest, self.members, self._tasks):
            member.send(message)
        self._settings.reprocess.clear()

    def _retained(self, oldest_id: int) -> None:
        for member in self.agents.members:
            member.send(Retained(oldest_id))

    # -- what workers say ---------------------------------------------------------------------------------------------

    def _heed(self, member: Member, message: ControlMessage) -> None:
        coordinator = self._coordinator
        if self._closed:
            return
        if isinstance(message, TaskCut):
            coordinator.acknowledge(
                message.checkpoint_id, message.task, snapshot_of(message, coordinator.storage, self._folder)
            )
        elif isinstance(message, TaskEnded):
            coordinator.detach(message.task, snapshot_of(message, coordinator.storage, self._folder))
        elif isinstance(message, Declined):
            coordinator.decline(message.checkpoint_id, message.task, message.why)
        elif isinstance(message, PartSealed):
            local = isinstance(message.file, str) and message.track in self._delivery.given()
            shared = self._delivery.part_folder(message.track) if local else None
            self._delivery.add(message.track, part_of(message, shared))
        elif isinstance(message, TrackEnded):
            self._delivery.has_ended(message.track)
        elif isinstance(message, Drift):
            self._drifts.told(member.number, message)
        elif isinstance(message, HoldReaders | HasFirst):
            for other in self.members:
                if other is not member:
                    other.send(message)
        elif isinstance(message, RowsTaken):
            taken = self._tapped.setdefault(TapPoint(message.origin, message.branch), deque(maxlen=ROWS_A_SECOND))
            taken.append(message.rows)
        elif isinstance(message, TasksOver):
            self._left.discard(member.number)
            if not self._left and not self._over.done():
                self._over.set_result(None)
        elif isinstance(message, Beat):
            self.agents.heed(message)
        elif isinstance(message, AgentHasFailed):
            self.on_agent_failed(message.agent, self.agents.failed(member, message))
        elif isinstance(message, WorkerFailed):
            error = error_of(message, member.text)
            if message.edge:  # most often the effect of another worker's death, whose error says more
                self._loop.call_later(_EDGE_SECONDS, self._fail, error)
            else:
                self._fail(error)

    def _fail(self, error: SabotError) -> None:
        """Marks the attempt as failed."""
        if self._closed or self.broken:
            return
        self.broken = True
        for member in self.members:  # nobody has to wait for their stop any more
            if not member.stopped.done():
                member.stopped.set_result(None)
        if self._started:
            self._coordinator.refuse(error.message)
        if not self._over.done():
            self._over.set_exception(error)
            self._over.exception()  # a caller that awaits it gets the error
            if self._started and not self.awaited:
                self.on_failed(error)
        elif self._started:  # every task has ended, and the last checkpoint, which delivers the rest, is still to come
            self.on_failed(error)

    async def _watch(self) -> None:
        """Sends signs of life to the workers. Fails the attempt if a running worker is silent, or if a stop is
        requested before all run.
        """
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._tell(Ping())
            if not self._started and self._settings.stop_asked():
                self._fail(StoppedEarly(f"app {self._settings.app_id}: stopped before all workers were there"))
            patience_s = SILENT_SECONDS if self._started else _OPEN_SECONDS
            for member in [each for each in self.members if each.hello.done()]:
                # Counted, not measured: while something else holds this event loop, messages wait to be read.
                member.unheard += 1
                if member.unheard * BEAT_SECONDS > patience_s:
                    silent_s = SYSTEM_CLOCK.monotonic() - member.heard_s
                    self._fail(
                        WorkerLost(
                            f"{member.text} has sent no message for {silent_s:.0f} s",
                            hint="its process is stopped or its machine is lost, or a call of the program holds the interpreter's lock",
                        )
                    )

    async def _tell_drift(self) -> None:
        while True:
            for worker, message in self._drifts.news():
                self.members[worker].send(message)
            await asyncio.sleep(TELL_SECONDS)

    # -- running ------------------------------------------------------------------------------------------------------

    def _tell(self, message: ControlMessage) -> None:
        for member in self.members:
            member.send(message)

    def hold(self, held: bool) -> None:
        """Pauses reading while `held`; barriers pass. From any thread."""
        self._loop.call_soon_threadsafe(self._tell, Hold(held))

    def tap(self, point: TapPoint) -> list[pa.RecordBatch]:
        """Makes the workers copy rows at this point, as `LocalStreams.tap` does, and returns the rows that have come since the last call.
        From any thread.
        """
        stages = [] if self._build.plan is None else self._build.plan.stages
        tasks = sum(
            each.parallelism for each in stages if point.origin in (each.id, *(step.id for step in each.steps()))
        )
        call_on_loop(self._loop, self._tell, TapRows(point.origin, point.branch, share_of(tasks)))
        return [from_ipc(part) for part in self._tapped.pop(point, ())]

    async def stop(self, *, drain: bool) -> None:
        """Stops reading. `drain`: True to process the rows that were read to their end: windows close, tasks end."""
        self._tell(Stop(drain))
        await asyncio.wait([asyncio.gather(*(member.stopped for member in self.members))])
        if drain:
            await asyncio.wait([self._over])

    async def make_room(self, workers: int) -> None:
        """Raises UserError if the next run cannot have this number of workers. This run is not changed."""
        if 0 < self._workers < workers:
            await self._arrival.make_room(workers - self._workers)

    async def close(self) -> None:
        """Ends the workers: in good order, or at once if the attempt has failed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._commit in self._coordinator.on_complete:
            self._coordinator.on_complete.remove(self._commit)
            self._coordinator.on_retained.remove(self._retained)
        for task in self._tasks if self._started else ():
            self._coordinator.abandon(task)
        in_order = self._started and not self.broken
        if in_order:
            self._tell(Close(again=self.goes_on))
        await self._arrival.close(_CLOSE_SECONDS if in_order else 0.0)
        for watching in self._watching:  # only those so far, because workers that close still need signs of life
            watching.cancel()
        self.left_behind += [call for each in self.members if each.closed.done() for call in each.closed.result()]
        self._build.give_back_sources()
        if self._folder is not None:
            await run_in_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if not self._over.done():
            self._over.cancel()

    # -- figures ------------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """Returns the bytes read and the total bytes of the bounded sources, or None if there are none."""
        parts = [each.beat.progress for each in self.members if each.beat.progress is not None]
        return (sum(part[0] for part in parts), sum(part[1] for part in parts)) if parts else None

    def busy(self) -> Working:
        """Returns nothing, because no task is in this process."""
        return [], {}

    def agent_statistics(self) -> "ToldAgents":
        """Returns the figures of the agents from the last heartbeats. From any thread."""
        return cast("ToldAgents", self.agents.statistics())

    def statistics(self) -> "dict[str, ToldTask]":
        """Returns the figures of each task from the last heartbeats, with the number of its worker. From any thread."""
        return {
            task: cast("ToldTask", {**figures, "worker": member.number + 1})
            for member in self.members
            for task, figures in member.beat.figures.items()
        }

    def workers(self) -> list[dict[str, Any]]:
        """Returns the tasks of each worker, and the resources of its process, from its last heartbeats. From any
        thread.
        """
        now_s = SYSTEM_CLOCK.monotonic()
        tasks: dict[int, list[str]] = {}
        for task, member in self._tasks.items():
            tasks.setdefault(member.number, []).append(task)
        return [
            {
                "worker": member.number + 1,
                "pid": member.pid,
                **member.pace.report(tasks.get(member.number, ()), now_s),
            }
            for member in self.members
        ]

    def samples(self) -> Iterator[Sample]:
        """Yields metrics samples from the last heartbeats. From any thread."""
        for member in self.members:
            yield from member.beat.read(str(member.number + 1))


def _saves(member: Member, task: str) -> bool:
    return task in member.beat.saving


def _words(of: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items())
