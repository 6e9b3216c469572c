"""An app over many workers in the simulation: the real coordinator and the real control protocol, with workers that have a model of tasks.

The app, its plan, `AppRunner`, `Coordinator`, `WorkerStreams`, the storage of checkpoints and the delivery are real, and so is what
a worker has in their places (`RemoteCheckpoints`, `RemoteTracks`), channels and gates. The tasks are models, because a thousand workers
with real ones would have a million edges:

    source/i   gives the rows (i, 0), (i, 1), …, each batch to one of its receivers
    keyed/j    has counted the rows of each source that came to it, and passes them on
    sink/0     has counted them again, and writes them into the parts of an exactly-once sink
    letters/0  gets no rows: nothing is wrong with them

So of each complete checkpoint it is known whether it is whole: what each source has given is what all keyed tasks have counted of it, and
what the sink has. At the end the receiver has each row once. What is to go wrong is in `cluster`, and here the end of the coordinator, or
a second one, which takes the first one for dead.
"""

import asyncio
import heapq
import itertools
import json
import logging
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from cluster import KINDS, Faults, Network, Peer, Rendezvous, Wire, supervised

from sabot import App, Source
from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import END, Abort, Barrier, Channel, Gate
from sabot.base.claims import FileClaim
from sabot.connectors.base import Bounded, Positions, Scans
from sabot.engine.checkpoint import CheckpointStorage, Manifest, TaskSnapshot
from sabot.engine.checkpoint.places import LocalPlace
from sabot.engine.workers import over_workers, streams_maker
from sabot.engine.workers.launching import ProcessEnd, how_it_ended
from sabot.engine.workers.messages import (
    AbortBarriers,
    Beat,
    Close,
    Closed,
    Complete,
    ControlMessage,
    Hello,
    Hold,
    Opened,
    Ping,
    Retained,
    RunTasks,
    Start,
    Stop,
    Stopped,
    TasksOver,
    Trigger,
    Welcome,
    failed,
)
from sabot.engine.workers.process import BEAT_SECONDS
from sabot.engine.workers.remote import RemoteCheckpoints, RemoteTracks
from sabot.engine.workers.saving import FolderSnapshotStore
from sabot.engine.workers.streams import SILENT_SECONDS, WorkerStreams
from sabot.errors import AppLocked, SabotError
from sabot.steps import watch
from sabot.testing import ListSink
from sabot.testing.lives import Crash, temporary_directory
from sabot.testing.loop import SimulatedLoop, SimulatedProcess, process_here
from tools.agent_tools import Remembered

_log = logging.getLogger(__name__)

COLUMNS = pa.schema([("source", pa.int64()), ("n", pa.int64())])
WAYS = 3  # keyed tasks that a source gives rows to
NAME = "numbers"
TRACK = "out"


class Numbers(Source, Bounded, Scans):
    """What the plan is told of the sources; nobody reads it."""

    name = NAME
    exhausted = False
    schema = COLUMNS

    def readers(self, count: int) -> Sequence[Source]:
        return [Numbers() for _ in range(count)]

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        return True

    def infer_schema(self) -> pa.Schema:
        return COLUMNS

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        raise NotImplementedError

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        raise NotImplementedError

    def positions(self) -> Positions:
        return {}

    def close(self) -> None:
        """Nothing to let go of."""


class Receiver(ListSink):
    """Of one coordinator. What has arrived is in one place for all."""

    def another(self) -> "Receiver":
        made = Receiver(self.name)
        made._arrived, made._last, made._lock = self._arrived, self._last, self._lock
        return made


class Counts:
    """A cut of what a task has counted."""

    def __init__(self, counts: Counter[int], fails: bool) -> None:
        self._text = json.dumps(sorted(counts.items()))
        self._fails = fails

    def save(self, directory: Path) -> int:
        if self._fails:
            raise OSError("the model of a disk is full")
        return (directory / "counts").write_text(self._text)

    def discard(self) -> None:
        """Nothing to let go of."""


# -- workers ----------------------------------------------------------------------------------------------------------------


class Task:
    """A model of a task. inputs: by the name of the task before it."""

    def __init__(self, name: str, worker: "Worker", stage: str) -> None:
        self.name = name
        self.stage = stage
        self.number = int(name.rpartition("/")[2])
        self.worker = worker
        self.inputs: dict[str, Channel] = {}
        self.gate: Gate | None = None
        self.outputs: list[str] = []  # the names of the tasks behind it
        self.counts: Counter[int] = Counter()  # rows, by source
        self.ended = False
        self._arrivals: dict[int, float] = defaultdict(float)

    @property
    def meta(self) -> dict[str, Any]:
        reader: dict[str, Any] = {}
        if self.stage == "source":
            reader = {"source": NAME, "exhausted": self.ended, "log": "", "schema": None, "rows_in": 0}
            reader |= {"positions": [(NAME, self.number, self.counts[self.number])], "watermark_ms": 0}
            reader |= {"greatest_ms": []}
        counts = sorted(self.counts.items())
        return {
            "ended": self.ended,
            "input": reader,
            "operators": {},
            "texts": {},
            "stage": self.stage,
            "counts": counts,
        }

    def snapshot(self) -> TaskSnapshot:
        fails = not self.ended and self.worker.dice.random() < self.worker.world.declines
        sealed = {}
        if self.stage == "sink":
            self.worker.sink.flush()
            sealed = dict(self.worker.sink.sealed)
        return TaskSnapshot(self.meta, {}, {"counts": Counts(self.counts, fails)}, sealed)

    def give(self, element: Any, to: int | None = None) -> None:
        """To all receivers, or to one; each gets what is given to it in order, after a while."""
        network = self.worker.network
        for at, name in enumerate(self.outputs):
            if to in (None, at):
                task = self.worker.attempt[name]
                self._arrivals[at] = max(self._arrivals[at], network.loop.time() + network.delay())
                task.worker.at(self._arrivals[at], task.take, self.name, element)

    def take(self, name: str, element: Any) -> None:
        if not self.ended:
            assert self.inputs[name].put_nowait(element)
            self.go_on()

    def abort(self, checkpoint_id: int) -> None:
        assert self.gate is not None
        self.gate.abort(checkpoint_id)
        self.go_on()

    def go_on(self) -> None:
        assert self.gate is not None
        while (came := self.gate.next_nowait()) is not None:
            element = came[1]
            if isinstance(element, Barrier):
                self.cut(element)
            elif isinstance(element, Abort):
                self.give(element)
            elif element is END:
                self.end()
            else:
                self.counts[element.data["source"][0].as_py()] += element.num_rows
                if self.stage == "sink":
                    self.worker.sink.write(element)
                else:
                    self.give(element, 0)

    def cut(self, barrier: Barrier) -> None:
        self.give(barrier)
        self.worker.later(self.worker.checkpoints.acknowledge, barrier.checkpoint_id, self.name, self.snapshot())

    def end(self) -> None:
        self.ended = True
        self.give(END)
        if self.stage == "sink":
            self.worker.sink.finish()
        self.worker.later(self.worker.has_ended, self.name, self.snapshot())


class Giver(Task):
    """Gives its rows, some at a time."""

    def produce(self) -> None:
        worker = self.worker
        if self.ended:
            return
        at = self.counts[self.number]
        if worker.draining or at >= worker.world.rows:
            self.end()
            return
        if not worker.held:
            rows = min(worker.dice.randint(1, worker.world.most), worker.world.rows - at)
            data = pa.record_batch([[self.number] * rows, list(range(at, at + rows))], schema=COLUMNS)
            self.counts[self.number] += rows
            self.give(Batch(data), worker.dice.randrange(len(self.outputs)))
        worker.at(worker.network.loop.time() + worker.dice.random() * worker.world.pace_s, self.produce)

    def inject(self, checkpoint_id: int) -> None:
        if not self.ended:
            self.cut(Barrier(checkpoint_id))


class Worker:
    """A model of a worker, as a process (`cluster.LaunchedWorker`). It speaks the protocol over its wire.

    A worker that has been killed may live on for a while, as on a machine that nobody reaches: what it still does must have no effect.
    """

    def __init__(self, world: "World", network: Network, number: int, attempt: dict[str, Task]) -> None:
        """attempt: its tasks, by name."""
        self.world = world
        self.attempt = attempt
        self.network = network
        self.number = number
        self.pid: int | None = next(network.pids)
        self._ended: ProcessEnd | None = None
        self.owner = SimulatedProcess(f"worker {number + 1}")
        self.dice = random.Random(network.dice.random())
        self.wire = Wire(network, self.owner)
        self.held = self.draining = False
        self.tasks: dict[str, Task] = {}
        self.checkpoints: RemoteCheckpoints
        self.sink: Any
        self._over = asyncio.Event()
        self._due = 0.0
        self._left = 0
        network.processes.append(self)
        network.loop.create_task(self._live(), context=self.owner.context)

    def kill(self) -> None:
        """Seen from the coordinator it has ended, though it may live on."""
        if self._ended is None:
            self._ended = how_it_ended(-9)
            self.wire.worker.hang_up()
            self.wire.worker.end()
            self._over.set()
            self.network.loop.call_later(self.dice.choice([0, 0, 0.1, 10]), self._die)

    def break_edge(self, dice: random.Random) -> None:
        raise NotImplementedError

    def _die(self) -> None:
        self.owner.dead = True
        for task in list(self.owner.tasks):
            task.cancel()

    async def wait(self) -> ProcessEnd:
        await self._over.wait()
        assert self._ended is not None
        return self._ended

    def later(self, what: Callable[..., None], *values: Any) -> None:
        """In order, after a while: state is saved beside what a task does."""
        self._due = max(self._due, self.network.loop.time() + self.network.delay())
        self.at(self._due, what, *values)

    def at(self, when: float, what: Callable[..., None], *values: Any) -> None:
        """Something that then happens in this process."""
        loop = self.network.loop
        handle = asyncio.TimerHandle(when, self._unless_dead, (what, values), loop, self.owner.context)
        loop.add_timer(handle)  # type: ignore[attr-defined]

    def _unless_dead(self, what: Callable[..., None], values: tuple[Any, ...]) -> None:
        if not self.owner.dead:
            try:
                what(*values)
            except (SabotError, OSError) as error:  # also of one that lives on, whose folders are no more
                self.say(failed(error))
                self._die()
            except Exception as error:
                self.world.fail(error)

    async def _live(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            async for message in self.wire.worker.received():
                self._unless_dead(self._heed, (message,))
        finally:
            beating.cancel()
        self.kill()

    async def _beat(self) -> None:
        while True:
            self.say(Beat())
            await asyncio.sleep(BEAT_SECONDS)

    def say(self, message: ControlMessage) -> None:
        self.wire.worker.send(message)

    def _heed(self, message: ControlMessage) -> None:
        if isinstance(message, Welcome):
            self.say(Hello(f"{self.pid}"))
        elif isinstance(message, Start):
            self._start(message)
        elif isinstance(message, RunTasks):
            self.tracks.begin(message.given)
            for task in self.tasks.values():
                if isinstance(task, Giver) and not task.ended:
                    self.at(self.network.loop.time() + self.dice.random(), task.produce)
        elif isinstance(message, Trigger):
            self.checkpoints.trigger(message.checkpoint_id)
        elif isinstance(message, AbortBarriers):
            self.checkpoints.abort(message.checkpoint_id)
        elif isinstance(message, Complete):
            self.checkpoints.complete(message)
        elif isinstance(message, Hold):
            self.held = message.held
        elif isinstance(message, Stop):
            self.held, self.draining = not message.drain, message.drain
            if self.world.stops_killed:
                self.world.stops_killed -= 1
                self.world.faults.done.append(f"{self.owner.name} is killed when it is to stop")
                self.kill()
            self.say(Stopped())
        elif isinstance(message, Retained):
            self.checkpoints.retained(message.oldest_id)
        elif isinstance(message, Close):
            self.say(Closed([]))
            self._ended = how_it_ended(0)
            self.wire.worker.hang_up()
            self._over.set()
            self._die()
        elif not isinstance(message, Ping):
            raise AssertionError(message)

    def _start(self, start: Start) -> None:
        assert start.folder is not None
        saved = FolderSnapshotStore(Path(start.folder, str(self.number)))
        self.checkpoints = RemoteCheckpoints(self.say, saved)
        self.tracks = RemoteTracks(start.tracks, saved, self.checkpoints)
        self.sink = self.tracks.staged("streams", self.world.receiver.another(), "exactly_once")
        stored: dict[str, Any] = {}
        if start.checkpoint is not None:
            assert start.place is not None
            stored = {
                name: task.meta for name, task in CheckpointStorage(start.place).read(start.checkpoint).tasks.items()
            }
        stages = list(dict.fromkeys(name.rpartition("/")[0] for name in start.placement))
        kinds = dict(zip(stages, ("source", "keyed", "sink", "letters"), strict=True))
        for name, worker in start.placement.items():
            if worker == self.number:
                stage = kinds[name.rpartition("/")[0]]
                task = (Giver if stage == "source" else Task)(name, self, stage)
                task.counts.update(dict(stored.get(name, {}).get("counts", ())))
                self.tasks[name] = task
        self.attempt.update(self.tasks)
        self._wire_up(start, kinds)
        self._left = len(self.tasks)
        for name, task in self.tasks.items():
            if isinstance(task, Giver):
                self.checkpoints.attach(name, task.inject, lambda checkpoint_id: None)
            else:
                self.checkpoints.attach(name, lambda checkpoint_id: None, task.abort)
        self.say(Opened())

    def _wire_up(self, start: Start, kinds: dict[str, str]) -> None:
        """Which task gives rows to which is a function of their numbers."""
        by_kind: dict[str, list[str]] = defaultdict(list)
        for name in start.placement:
            by_kind[kinds[name.rpartition("/")[0]]].append(name)
        count = len(by_kind["keyed"])
        ways = min(WAYS, count)
        for task in self.tasks.values():
            if task.stage == "source":
                names = [by_kind["keyed"][(task.number + way) % count] for way in range(ways)]
            elif task.stage == "keyed":
                names = by_kind["sink"] + by_kind["letters"]
                before = [by_kind["source"][(task.number - way) % count] for way in range(ways)]
                task.inputs = {name: Channel(name=name) for name in before}
            else:
                names = []
                task.inputs = {name: Channel(name=name) for name in by_kind["keyed"]}
            task.gate = Gate(list(task.inputs.values())) if task.inputs else None
            task.outputs = names

    def has_ended(self, name: str, final: TaskSnapshot) -> None:
        self.checkpoints.detach(name, final)
        self._left -= 1
        if not self._left:
            self.say(TasksOver())


# -- the app ----------------------------------------------------------------------------------------------------------------


class MeteredLoop(SimulatedLoop):
    """Notes the time of the processor that each process takes. None: the runner itself."""

    def __init__(self, dice: random.Random, workers: int, **bounds: Any) -> None:
        """workers: take their turns beside each other, so that a turn of many of them is shorter."""
        super().__init__(dice, **bounds)
        self._turn_seconds /= max(1.0, workers / 10)
        self.spent: defaultdict[SimulatedProcess | None, float] = defaultdict(float)

    def _metered(self, what: Callable[[Any], None], given: Any, context: Any) -> None:
        began = time.thread_time()
        what(given)
        process = context.run(process_here) if context is not None else None
        self.spent[process] += time.thread_time() - began

    def add_timer(self, handle: asyncio.TimerHandle) -> None:
        """As `call_at`, in the context of the handle."""
        heapq.heappush(self._timers, (handle.when(), next(self._numbers), handle))

    def _work(self, key: int) -> None:
        self._metered(super()._work, key, self._calls[key][0]._context)

    def _call(self, handle: asyncio.Handle) -> None:
        self._metered(super()._call, handle, handle._context)  # type: ignore[attr-defined]


class _Crashes:
    """Lets no step happen of a process that is dead."""

    def before(self, name: str, what: str) -> None:
        process = process_here()
        if process is not None and process.dead:
            raise Crash(f"{name} {what}: after the crash")

    def after(self, name: str, what: str) -> None:
        """Done."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@contextmanager
def _watched() -> Iterator[None]:
    watch(_Crashes())
    try:
        yield
    finally:
        watch(None)


def _scratch_of_each(place: LocalPlace, lock_path: Path, scratch: Path) -> None:
    """In place of `places.base.take_scratch`: without the lock, which only coordinators of one machine share."""
    scratch.mkdir(exist_ok=True)
    place.scratch = Path(tempfile.mkdtemp(dir=scratch))
    place._claim = FileClaim(place.scratch / "lock", "", AppLocked)
    place._claim.take()


class World:
    """One seed: the rows, the receiver, the lives of coordinators. `run` raises AssertionError where something is not as it must be.

    rivals: so often another coordinator is started beside one that runs. faults: of workers and of what is between.
    """

    def __init__(
        self,
        seed: int,
        workers: int,
        *,
        rows: int = 40,
        faults: int | None = None,
        coordinators: int | None = None,
        rivals: int = 0,
        declines: float | None = None,
    ) -> None:
        self.seed = seed
        self.workers = workers
        self.rows = rows
        self.dice = random.Random(f"world {seed}")
        self.most = self.dice.choice([1, 5, 20])
        self.pace_s = self.dice.choice([0.1, 1.0, 5.0])
        self.declines = self.dice.choice([0.0, 0.02]) / max(1, workers // 20) if declines is None else declines
        self.faults = Faults(self.dice.choice([0, 1, 3, 6]) if faults is None else faults)
        self.coordinators = self.dice.choice([0, 0, 1, 2]) if coordinators is None else coordinators  # that die
        self.rivals = rivals
        self.rivals_at_all = rivals > 0
        self.stops_killed = 0  # so many workers are killed when the coordinator has them stop
        self.receiver = Receiver(TRACK)
        self.completed: list[tuple[int, int]] = []  # (generation, checkpoint)
        self.checked = 0
        self.error: BaseException | None = None
        self.alive: list[Coordinator] = []
        self.lives = 0
        self.attempts = 0
        self.loop = MeteredLoop(random.Random(f"loop {seed}"), workers, most_turns=50_000_000, longest_s=36_000.0)  # type: ignore[abstract]
        self.networks: list[Network] = []
        self._directory: Path

    def run(self) -> "World":
        try:
            with ExitStack() as around:
                self._directory = around.enter_context(temporary_directory())
                around.enter_context(_watched())
                around.enter_context(patch.object(streams_maker, "_WORKERS_MAX", 1 << 20))
                if self.rivals:  # an object store has no lock that keeps coordinators apart
                    around.enter_context(patch("sabot.engine.checkpoint.places.local.take_scratch", _scratch_of_each))
                try:
                    self.loop.run_until_complete(self._live())
                finally:
                    self.loop.close()
        except BaseException as error:
            error.add_note(f"seed {self.seed}, {self.workers} workers; {self}")
            raise
        found = Counter((row["source"], row["n"]) for row in self.receiver.rows)
        wanted = Counter(itertools.product(range(self.workers), range(self.rows)))
        assert found == wanted, f"{(wanted - found).total()} rows lack, {(found - wanted).total()} are too many; {self}"
        return self

    def __str__(self) -> str:
        return (
            f"{self.lives} lives, {self.attempts} attempts, checkpoints {self.completed}; {'; '.join(self.faults.done)}"
        )

    def fail(self, error: BaseException) -> None:
        """Something is not as it must be. Where it shows, errors are only logged."""
        self.error = self.error or error
        for coordinator in self.alive:
            coordinator.end()

    async def _live(self) -> None:
        """Lives of coordinators, one after the other; the last one of them comes to the end."""
        over = False
        while not over:
            coordinator = Coordinator(self)
            dies = self.coordinators > 0 and self.dice.random() < 0.7
            if dies:
                self.coordinators -= 1
                coordinator.kill_later()
            elif self.rivals:
                self.rivals -= 1
                await coordinator.until_messages(round(10 ** self.dice.uniform(1.5, 3.5)))
                rival = Coordinator(self)
                over = await rival.ended()
                over |= await coordinator.ended()
                continue
            over = await coordinator.ended()

    def look(self, manifest: Manifest) -> None:
        """A checkpoint is complete: it must be whole, and of a coordinator that still owns the app."""
        generation = manifest.generation
        newest = max((each for each, _ in self.completed), default=0)
        assert generation >= newest, f"generation {generation} completes a checkpoint behind generation {newest}"
        self.completed.append((generation, manifest.checkpoint_id))
        tasks = manifest.tasks
        assert len(tasks) == 2 * self.workers + 2, f"{len(tasks)} tasks are in checkpoint {manifest.checkpoint_id}"
        sums: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for task in tasks.values():
            sums[task.meta["stage"]].update(dict(task.meta["counts"]))
        given, keyed, sunk = sums["source"], sums["keyed"], sums["sink"]
        differ = {number for number in range(self.workers) if not given[number] == keyed[number] == sunk[number]}
        assert not differ, f"checkpoint {manifest.checkpoint_id} is not whole: of {len(differ)} sources"
        self.checked += 1
        if self.rivals_at_all:  # a start removes what another coordinator reads
            return
        name = self.dice.choice(sorted(manifest.tasks))
        state = json.loads((manifest.state_directory(name, "counts") / "counts").read_text())
        assert [tuple(each) for each in state] == [tuple(each) for each in manifest.tasks[name].meta["counts"]], (
            f"the state of {name}"
        )


class Coordinator:
    """A life of a coordinator: a process, with the app, that has workers."""

    def __init__(self, world: World) -> None:
        world.lives += 1
        self.world = world
        self.owner = SimulatedProcess(f"coordinator {world.lives}")
        self.network = Network(random.Random(world.dice.random()), world.faults, KINDS)
        self._attempt: dict[str, Task] = {}
        self._made: Remembered | None = None
        self._ran = False
        world.networks.append(self.network)
        world.alive.append(self)
        self._main = world.loop.create_task(self._run(), context=self.owner.context)

    async def _run(self) -> None:
        world = self.world
        app = App(
            "model",
            checkpoint_dir=world._directory / "checkpoints",
            checkpoint_interval=world.dice.choice([0.3, 2.0]),
            checkpoint_timeout="20s",
            parallelism=world.workers,
            restart="fixed(1000, 100ms)",
        )
        rows = app.stream(Numbers())
        rows.deduplicate("source", "n").to(world.receiver.another(), delivery="exactly_once")

        def launch(number: int) -> Worker:
            if number == 0:
                self._attempt = {}
                world.attempts += 1
            return Worker(world, self.network, number, self._attempt)

        self._made = Remembered(over_workers(app.spec, Rendezvous(self.network, launch).begin, world.workers))
        app.spec.workers = self._made
        app.agent_runtime.runner.coordinator.on_complete.append(self._look)
        silence = asyncio.create_task(self._look_for_silence())
        try:
            await supervised(app.run, world.faults)()
            self._ran = True
        finally:
            silence.cancel()

    def _look(self, manifest: Manifest) -> None:
        try:
            self.world.look(manifest)
        except Exception as error:
            self.world.fail(error)

    def end(self) -> None:
        self._main.cancel()

    async def _look_for_silence(self) -> None:
        """A worker of which nothing comes fails the attempt in time: so many looks later, since no time counts in which nobody can look."""
        looks: dict[tuple[Peer, float], int] = {}  # of workers, with when something came of them
        while True:
            await asyncio.sleep(1.0)
            streams: WorkerStreams | None = self._made.runs[-1] if self._made is not None and self._made.runs else None
            if streams is None or streams.broken or streams.running[0].done() or not streams.placement:
                continue
            if not all(member.opened.done() for member in streams.members):
                continue
            workers = self.network.processes[-self.world.workers :]
            heard = [(worker, worker.wire.coordinator.heard_s) for worker in workers]
            looks = {each: looks.get(each, 0) + 1 for each in heard}
            for (worker, _), count in looks.items():
                if count > SILENT_SECONDS + 2 * BEAT_SECONDS + 1:
                    text = f"{worker.owner.name} is silent for {count} s; the attempt goes on"
                    self.world.fail(AssertionError(text))
                    return

    def kill_later(self) -> None:
        self.world.loop.create_task(self._kill(round(10 ** self.world.dice.uniform(1.5, 3.5))))

    async def _kill(self, messages: int) -> None:
        await self.until_messages(messages)
        if not self._main.done():
            self.world.faults.done.append(f"{self.world.loop.time():.3f} s: kill of {self.owner.name}")
            self.owner.dead = True
            self._main.cancel()
            for worker in self.network.processes:
                worker.kill()

    async def until_messages(self, count: int) -> None:
        """Until so many have arrived, or it has ended."""
        while self.network.messages < count and not self._main.done():  # noqa: ASYNC110 - virtual time has to pass anyway
            await asyncio.sleep(0.05)

    async def ended(self) -> bool:
        """Waits for its end; -> whether the app has come to its own."""
        await asyncio.wait([self._main])
        dead, self.owner.dead = self.owner.dead, True
        for worker in self.network.processes:
            worker.kill()
        self.world.alive.remove(self)
        if self.world.error is not None:
            raise self.world.error
        if not dead and not self._main.cancelled() and (error := self._main.exception()) is not None:
            if not (self.world.networks[-1] is not self.network and isinstance(error, SabotError)):
                raise error
            _log.debug("%s has lost the app: %s", self.owner.name, error)
        return self._ran
