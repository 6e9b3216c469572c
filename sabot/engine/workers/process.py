"""The process of a worker. It joins a coordinator, executes its orders, and ends when the coordinator is gone.

Join ▶ Welcome ▶ Hello (its exchange listens) ▶ Start ▶ tasks are opened ▶ Opened ▶ RunTasks … checkpoints … ▶ Close ▶
Closed ▶ its end
"""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from sabot.base.proc import numbers_of
from sabot.base.process_exit import EXITS
from sabot.base.supervision import unexpected_end, watch_task
from sabot.base.threads import call_on_loop, run_in_thread, threads
from sabot.engine.checkpoint import CheckpointStorage, Manifest
from sabot.engine.exchange import Exchange
from sabot.engine.runtime.agents.groups import agent_groups
from sabot.engine.runtime.agents.local_agents import LocalAgents
from sabot.engine.runtime.agents.sinks import AgentSinks
from sabot.engine.runtime.agents.unfinished import to_ipc
from sabot.engine.runtime.app_spec import AppSpec
from sabot.engine.runtime.life.local_streams import LocalStreams
from sabot.engine.runtime.tasks.blocking import BlockingMonitor
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.tasks.watermark_alignment import Alignment
from sabot.engine.workers.agents import WorkerAgents
from sabot.engine.workers.connection import SILENT_SECONDS, ControlChannel
from sabot.engine.workers.drift import TELL_SECONDS
from sabot.engine.workers.joining import Ticket, join, name_of, read_ticket
from sabot.engine.workers.messages import (
    AbortBarriers,
    Beat,
    Close,
    Closed,
    Complete,
    ControlMessage,
    Drift,
    HasFirst,
    Hello,
    Hold,
    HoldReaders,
    Opened,
    Ping,
    Retained,
    RowsTaken,
    RunTasks,
    Start,
    Stop,
    Stopped,
    TapRows,
    TaskCut,
    TaskEnded,
    TasksOver,
    Trigger,
    Welcome,
    failed,
)
from sabot.engine.workers.remote import RemoteCheckpoints, RemoteTracks
from sabot.engine.workers.saving import FolderSnapshotStore, ObjectSnapshotStore, SnapshotStore
from sabot.engine.workers.share import RowExchange, WorkerPlacement
from sabot.errors import InternalError, SabotError, TransientError, UserError

_log = logging.getLogger(__name__)

AGAIN = 3  # the exit code of a worker whose attempt has failed or ended while its app goes on
BEAT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def run_worker(load: Callable[[], AppSpec], named: Callable[[str], None]) -> int:
    """Joins the coordinator that the ticket of this process names, and runs tasks until the coordinator ends the app
    or is gone. Returns the exit code. Raises UserError if the coordinator refuses the worker.

    `load`: imports the program. `named`: called with the name of this worker before `load`.
    """
    ticket = read_ticket()
    _end_with(ticket.parent)
    # A terminal or a supervisor may signal all processes: the worker ignores it, because the coordinator stops the workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return asyncio.run(_work(ticket, load, named))


def _end_with(parent: int) -> None:
    """Makes this process end when its parent ends, even while a call holds the interpreter and nobody reads the
    connection.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


async def _work(ticket: Ticket, load: Callable[[], AppSpec], named: Callable[[str], None]) -> int:
    try:
        joined = await join(ticket)
    except TransientError as error:
        _log.warning("%s", error)
        return AGAIN
    named(name_of(joined.welcome.worker))
    try:
        app = load()
        exchange = Exchange(joined.welcome.token, host=joined.host, tls=joined.tls)
        worker = AppWorker(app, joined.connection, joined.welcome, exchange)
        code = 0 if await worker.run() else AGAIN
        # The process has nothing left to do, and running calls would delay its end.
        if code or worker.left_behind:
            await joined.connection.close()
            logging.shutdown()
            os._exit(code)
        return code
    except (Exception, *EXITS) as error:
        joined.connection.send(failed(unexpected_end("the start of the worker", error)))
        return AGAIN
    finally:
        await joined.connection.close()


@dataclass
class _OpenShare:
    """The open parts of a worker."""

    streams: LocalStreams
    agents: list[WorkerAgents]
    share: WorkerPlacement
    checkpoints: RemoteCheckpoints
    tracks: RemoteTracks

    @property
    def parts(self) -> list[LocalStreams | LocalAgents]:
        """The streams and agents that run here."""
        return [self.streams, *(each.local for each in self.agents)]

    def run(self) -> list[asyncio.Future[None]]:
        """Starts all parts, and returns the futures of their ends."""
        self.share.connect()
        self.streams.run()
        self.streams.awaited = True
        for each in self.agents:
            each.run()
        return [*([self.streams.running] if self.streams.tasks else []), *(each.local.running for each in self.agents)]


class AppWorker:
    """A worker of an app. All methods run on one event loop."""

    def __init__(self, app: AppSpec, connection: ControlChannel, welcome: Welcome, exchange: RowExchange) -> None:
        """`connection`: the connection to the coordinator, which has sent `welcome`."""
        self.left_behind: list[str] = []  # calls of the user's that refused to be cancelled
        self._app = app
        self._connection = connection
        self._worker = welcome.worker
        self._loop = asyncio.get_running_loop()
        self._open: _OpenShare | None = None
        self._stop_asked = asyncio.Event()
        self._running: list[asyncio.Future[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None  # reports the event times of this worker
        self._again = False  # the app goes on with other workers
        self._unheard = 0  # heartbeats since the last message of the coordinator
        app.configure(**welcome.settings)
        self._exchange = exchange
        self._exchange.on_failed = self._edge_failed

    async def run(self) -> bool:
        """Works until the coordinator sends `Close`, or is gone. Returns True if the app has ended; False if the
        coordinator is gone or the worker should join again.
        """
        self._connection.send(Hello(self._exchange.address))
        working = asyncio.create_task(self._work(), name="messages")
        beating = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            await asyncio.wait([working, beating], return_when=asyncio.FIRST_COMPLETED)
            in_order = working.result() if working.done() else beating.result()
        finally:
            for task in (working, beating, self._telling):
                if task is not None:
                    task.cancel()
        if not in_order:
            _log.error("the coordinator is gone or silent: the worker ends")
        return in_order and not self._again

    async def _work(self) -> bool:
        """Follows the coordinator's messages. Returns True if it has ended the app."""
        doing: asyncio.Task[None] | None = None  # long work, in a task so that messages are read meanwhile
        async for message in self._connection.received():
            self._unheard = 0
            if isinstance(message, Start):
                doing = asyncio.create_task(self._start(message), name="start")
            elif isinstance(message, Close):
                if doing is not None:
                    await asyncio.wait([doing])
                await self.close()
                self._again = message.again
                self._connection.send(Closed(self.left_behind))
                return True
            elif not isinstance(message, Ping):
                self._heed(message)
        return False

    def _heed(self, message: ControlMessage) -> None:
        opened = self._open
        if opened is None:
            return  # it could not open its tasks, and has reported that
        streams = opened.streams
        if isinstance(message, RunTasks):
            opened.tracks.begin(message.given)
            self._running = opened.run()
            for each in self._running:
                each.add_done_callback(self._over)
        elif isinstance(message, Trigger):
            opened.checkpoints.trigger(message.checkpoint_id)
        elif isinstance(message, AbortBarriers):
            opened.checkpoints.abort(message.checkpoint_id)
        elif isinstance(message, Complete):
            opened.checkpoints.complete(message)
        elif isinstance(message, Retained):
            opened.checkpoints.retained(message.oldest_id)
        elif isinstance(message, Hold):
            for running in opened.parts:
                running.hold(message.held)
        elif isinstance(message, TapRows):
            for rows in streams.tap(TapPoint(message.origin, message.branch), message.rows):
                self._connection.send(RowsTaken(message.origin, message.branch, to_ipc(rows)))
        elif isinstance(message, HoldReaders):
            for reader in streams.build.readers_before(message.stage):
                (reader.pause_for if message.held else reader.resume_for)(message.name)
        elif isinstance(message, Drift):
            streams.build.alignments[message.stage].elsewhere(message.least_ms, message.least_unread_ms)
        elif isinstance(message, HasFirst):
            streams.build.has_first(message.stage, message.task)
        elif isinstance(message, Stop):
            self._stopping = asyncio.create_task(self._stop(opened, drain=message.drain), name="stop")
        else:
            raise InternalError(f"a worker got an unexpected message: {type(message).__name__}")

    async def _start(self, start: Start) -> None:
        try:
            self._open = await self._opened(start)
            self._tell_drifts(self._open.streams.build.alignments)
            self._connection.send(Opened())
        except (Exception, *EXITS) as error:
            self._connection.send(failed(unexpected_end("the start of the worker", error)))

    async def _opened(self, start: Start) -> _OpenShare:
        app = self._app
        if start.folder is not None:
            await run_in_thread(_check_shared, Path(start.folder), start.proof)
        share = WorkerPlacement(app.id, self._worker, start, self._exchange, self._tell)
        storage = None if start.folder is None and start.store is None else app.checkpoints()
        saved = saved_of(start, self._worker, storage)
        checkpoints = RemoteCheckpoints(self._tell, saved, storage)
        tracks = RemoteTracks(start.tracks, saved, checkpoints)
        app.reprocess.clear()
        app.reprocess.update(start.reprocess)
        settings = replace(
            app.settings_of_run(checkpoints),
            staged=tracks.staged,
            drop=frozenset(start.drop),
            refill=frozenset(start.refill),
            reemit=frozenset(start.reemit),
            is_savepoint=start.is_savepoint,
            stop_asked=self._stop_asked.is_set,
            first_record_s=0.0,
            placement=share,
        )
        await app.lifespan.open(self._stop_asked, app.judge_of_functions())
        restored = None
        if start.checkpoint is not None:
            restored = await run_in_thread(_read, app, start.checkpoint, start.place, storage)
        specs = app.agent_specs
        ends = [] if start.over else app.ends
        wanted = AgentSinks(specs, ends, settings).wanted
        streams = LocalStreams(ends, settings, agents=specs, wanted=wanted)
        await streams.open(restored if ends else None)
        here = [group for group in agent_groups(specs, ends) if share.is_here(group.task)]
        agents = [WorkerAgents(app, group, self._connection.send) for group in here]
        for each in agents:
            await each.open(settings, streams, restored)
        return _OpenShare(streams, agents, share, checkpoints, tracks)

    async def _stop(self, opened: _OpenShare, *, drain: bool) -> None:
        try:
            await asyncio.gather(*(each.stop(drain=drain) for each in opened.parts))
        except (Exception, *EXITS) as error:
            self._connection.send(failed(unexpected_end("the stop of the worker", error)))
            return
        self._connection.send(self._figures())
        self._connection.send(Stopped())

    async def close(self) -> None:
        """Closes everything that is open."""
        opened = self._open
        if opened is not None:
            await opened.streams.close()
            for each in opened.agents:
                await each.close()
            await run_in_thread(opened.checkpoints.close)
            self.left_behind = [call for each in opened.parts for call in each.left_behind]
        await run_in_thread(self._exchange.close)
        await self._app.lifespan.close()
        await self._app.let_go()

    # -- what the coordinator is told ---------------------------------------------------------------------------------

    def _tell(self, message: ControlMessage) -> None:
        """Sends a message to the coordinator. From any thread."""
        call_on_loop(self._loop, self._send, message)

    def _send(self, message: ControlMessage) -> None:
        # The last checkpoint writes what still waited for a sink, and the coordinator keeps the figures of the run when
        # every task has a part in it: they must be there before.
        if self._stopping is not None and isinstance(message, TaskCut | TaskEnded):
            self._connection.send(self._figures())
        self._connection.send(message)

    def _over(self, running: asyncio.Future[None]) -> None:
        error = None if running.cancelled() else running.exception()
        if error is not None:
            self._connection.send(failed(error))
        elif all(each.done() and not each.cancelled() for each in self._running):
            self._connection.send(TasksOver())

    def _edge_failed(self, edge: str, error: BaseException) -> None:
        """Called from a thread of the exchange when an edge has failed."""
        named = (
            error if isinstance(error, SabotError) else InternalError(f"edge {edge}: {type(error).__name__}: {error}")
        )
        self._tell(failed(named, edge=True))

    async def _beat(self) -> bool:
        """Sends a heartbeat. Returns False if the coordinator has been silent for too long."""
        watch = None if threads.simulated else BlockingMonitor(self._busy)
        try:
            # Counted, not measured: while a call of the program holds the event loop, messages wait to be read.
            while self._unheard * BEAT_SECONDS <= SILENT_SECONDS:
                self._unheard += 1
                if not self._connection.congested:
                    self._connection.send(self._figures())
                await asyncio.sleep(BEAT_SECONDS)
            return False
        finally:
            if watch is not None:
                watch.close()

    def _tell_drifts(self, alignments: Mapping[str, Alignment]) -> None:
        if alignments:
            self._telling = asyncio.create_task(self._tell_drift(alignments), name="event time")
            watch_task(self._telling, "the exchange of event times", lambda error: self._connection.send(failed(error)))

    async def _tell_drift(self, alignments: Mapping[str, Alignment]) -> None:
        told: dict[str, Drift] = {}
        while True:
            for stage, alignment in alignments.items():
                found = Drift(stage, *alignment.here(int(self._app.clock.monotonic() * 1000)))
                if told.get(stage) != found:
                    told[stage] = found
                    self._connection.send(found)
            await asyncio.sleep(TELL_SECONDS)

    def _busy(self) -> tuple[list[tuple[str, float | None, int | None]], dict[str, int]]:
        if self._open is None:
            return [], {}
        waiting = {agent_id: rows for each in self._open.agents for agent_id, rows in each.waiting().items()}
        return [each.taking for each in self._open.streams.tasks], waiting

    def _figures(self) -> Beat:
        opened = self._open
        memory_bytes, cpu_seconds = numbers_of(os.getpid()) or (None, None)
        if opened is None or not opened.streams.started:
            return Beat(memory_bytes=memory_bytes, cpu_seconds=cpu_seconds)
        figures = msgspec.to_builtins(opened.streams.statistics(), enc_hook=str)
        samples = [
            (
                each.name,
                list(each.value) if isinstance(each.value, tuple) else each.value,
                each.operator,
                each.topic,
                each.partition,
            )
            for each in [
                *opened.streams.samples(),
                *(sample for agents in opened.agents for sample in agents.samples()),
            ]
        ]
        agents = {
            each.local.task.name: msgspec.to_builtins(each.statistics(engines=not number), enc_hook=str)
            for number, each in enumerate(opened.agents)
        }
        hints = opened.checkpoints.hints()
        saving = opened.checkpoints.saving()
        return Beat(opened.streams.progress(), figures, samples, hints, agents, memory_bytes, cpu_seconds, saving)


def _check_shared(folder: Path, proof: str) -> None:
    """Raises UserError if this is not the folder of the coordinator. Blocks."""
    try:
        found = (folder / "proof").read_text("utf-8")
    except (OSError, ValueError):
        found = ""
    if found != proof:
        raise UserError(
            f"this machine ({socket.gethostname()}) cannot read the coordinator's folder {folder}, where workers save state and output",
            hint="with several machines, use a folder that all of them share (NFS, EFS) at the same path; or "
            "checkpoint_dir= an object store, such as s3://bucket/path",
        )


def saved_of(start: Start, worker: int, storage: CheckpointStorage | None) -> SnapshotStore | None:
    """Returns the store into which a worker saves snapshots, or None without checkpoints. Raises UserError if its
    checkpoints are elsewhere than the coordinator's.
    """
    if start.folder is not None:
        return FolderSnapshotStore(Path(start.folder, str(worker)))
    if start.store is None:
        return None
    if storage is None or str(storage.directory) != start.store:
        raise UserError(
            f"this worker has its checkpoints in {None if storage is None else storage.directory}, but the coordinator in {start.store}",
            hint="compute checkpoint_dir= from nothing that differs between processes, such as the environment; then start again",
        )
    return ObjectSnapshotStore(storage.writer(start.generation, f"{start.attempt}-{worker}"))


def _read(app: AppSpec, checkpoint_id: int, place: str | None, storage: CheckpointStorage | None) -> Manifest:
    """Returns a checkpoint. `storage`: the storage of the app's own checkpoints, or None. `place`: the location of
    the checkpoint, if it is elsewhere, else None. Raises UserError if both are None.
    """
    if place is not None:
        storage = CheckpointStorage(place)
    if storage is None:
        raise UserError(
            f"app {app.id} has no place for checkpoints in this worker, but the coordinator has one",
            hint="run the same program",
        )
    return storage.read(checkpoint_id)
