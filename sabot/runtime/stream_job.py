"""The streams of an app on this worker: a plan -> tasks and channels; started, restored, stopped."""

import asyncio
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from sabot._cython.batch import Batch
from sabot._cython.channel import IDLE, Channel
from sabot.api.nodes.read import Read, Write
from sabot.checkpoint import Manifest, TaskSnapshot
from sabot.checkpoint.kept import SavedAlready
from sabot.codecs import Codec, JsonCodec, TableCodec
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Delivery, Sink, Source, agreed_delivery
from sabot.disk import make_folder, own_folder
from sabot.errors import SabotError, UserError
from sabot.faults import taking_over
from sabot.metrics import Sample
from sabot.operators.base import Operator, OperatorContext, without_marks
from sabot.operators.reading import parts_of
from sabot.operators.sink import SinkWriter
from sabot.plan import Edge, Plan, Reading, Stage, Step, check, check_alike, column_types, walk
from sabot.runtime.host import interpreter
from sabot.runtime.inputs import GateInput
from sabot.runtime.reading import SourceInput
from sabot.runtime.restore import plan_of, positions_in, stored_streams, verdicts_of
from sabot.runtime.settings import Settings
from sabot.runtime.task import Chain, Link, Output, StreamTask, close_tasks, receiver_of, refused
from sabot.runtime.watermarks import Watermarks
from sabot.runtime.writing import open_writer
from sabot.threads import Handle, aside, tell, to_the_end

__all__ = ["StoppedEarly", "StreamJob"]

_log = logging.getLogger(__name__)

_INFERENCE_ROWS = 1000
_SETTLE_SECONDS = 0.2  # how long the inference of a schema waits for more records than it has
_PATIENCE_SECONDS = 2.0  # how long that wait is nothing special
_JOIN_SECONDS = 30.0
_reading: set[int] = set()  # ids of Source objects that some run of this process reads
_reading_lock = threading.Lock()


class StoppedEarly(SabotError):
    """The app was stopped while it waited for the first records of a stream."""


@dataclass
class _Built:
    """A stage with its tasks."""

    stage: Stage
    tasks: list[StreamTask]
    gates: list[list[Channel]] = field(default_factory=list)  # by subtask, the channels that come in
    right: list[set[int]] = field(default_factory=list)  # by subtask, which of those channels are the second input's
    first: list[set[int]] = field(
        default_factory=list
    )  # by subtask, those for whose end the readers of the others wait
    schema: pa.Schema | None = None  # of what comes in
    right_schema: pa.Schema | None = None
    coming: list[pa.Schema] = field(default_factory=list)  # of a sink, by stream that goes into it
    by_agents: bool = False  # a sink that agents write too

    @property
    def mixed(self) -> bool:
        """A sink into which rows of different columns go."""
        return self.by_agents or any(not schema.equals(self.coming[0]) for schema in self.coming)


class _SideRoad:
    """Where rows leave an operator beside the main road; known when the operator is open."""

    receive: Callable[[Batch], None]

    def __call__(self, batch: Batch) -> None:
        self.receive(batch)


class StreamJob:
    """All methods on one event loop; not started twice."""

    def __init__(
        self,
        writes: Sequence[Write],
        settings: Settings,
        *,
        written: Collection[str] = (),
        wanted: Mapping[str | int, Delivery] | None = None,
    ) -> None:
        """written: topics that agents of the app write. wanted: by the id of a Sink that agents write, delivery=."""
        self.writes = list(writes)
        self.settings = settings
        self._written = written
        self._wanted = wanted or {}
        self.was_complete = False
        self.awaited = False  # somebody waits for `running`, and will hear of a failure
        self.on_failed: Callable[[BaseException], None] = lambda error: _log.error("%s", error)  # where nobody does
        self.plan: Plan | None = None
        self._built: dict[str, _Built] = {}
        self._inputs: list[tuple[Reading, StreamTask, SourceInput]] = []
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._left = 0
        self._closed = False
        self._started = False
        self._late_sides: set[str] = set()  # operators whose late rows go somewhere
        self._sources: list[Source] = []  # objects of the user's that this run reads
        self._afresh = True  # no checkpoint is restored
        self._cancelled = threading.Event()
        self.left: list[tuple[str, Handle]] = []  # threads that did not come back at the stop
        self.shared = {  # by the id of a Sink that agents write too, their way into it
            id(sink): Channel(name=f"agents to {sink.name}") for sink in _sinks(self.writes) if id(sink) in self._wanted
        }

    # -- building -----------------------------------------------------------------------------------------------------

    async def start(self, restored: Manifest | None = None) -> None:
        """`open`, then `run`."""
        await self.open(restored)
        self.run()

    async def open(self, restored: Manifest | None = None) -> None:
        """Opens everything, and puts it where the checkpoint says. Raises what opening raises; then nothing is left open."""
        if restored is not None and self._was_complete(restored):
            return
        building = asyncio.ensure_future(aside(self._build, restored))
        try:
            await asyncio.shield(building)
        except BaseException:
            self._cancelled.set()
            await to_the_end(self._give_up(building))
            raise

    def run(self) -> None:
        """Lets run what is open."""
        if self.was_complete:
            return
        for task in self.tasks:
            source = next((each for _, owner, each in self._inputs if owner is task), None)
            inject = source.request_barrier if source is not None else task.expect
            abort = task.input.gate.abort if isinstance(task.input, GateInput) else _nothing
            self.settings.coordinator.attach(task.name, inject, abort, task.hint)
        self.settings.coordinator.on_complete.append(self._commit)
        self._left = len(self.tasks)
        self._started = True
        interpreter.suit()
        for task in self.tasks:
            task.on_over = self._task_over
            task.start()
        names = ", ".join(sorted({reading.node.name for reading, _, _ in self._inputs}))
        _log.info("streams run in %d tasks, reading %s", len(self.tasks), names)

    async def _give_up(self, building: asyncio.Future[None]) -> None:
        await asyncio.wait([building])
        building.exception()  # the start was cancelled, or raises it itself
        await self.close()

    def _was_complete(self, restored: Manifest) -> bool:
        """Every task of the checkpoint had ended, its input read to the end: nothing is opened, and later checkpoints keep what
        this one says. A job that was drained before the end of its inputs is not complete.
        """
        if self.shared:
            return False
        stored = stored_streams(restored)
        metas = [task.meta for task in stored.values()]
        if not stored or not all(meta["ended"] and meta["input"].get("exhausted", True) for meta in metas):
            return False
        if not all(lane.finished for lane_id, lane in restored.lanes.items() if lane_id.startswith("streams.")):
            return False
        for name, task in stored.items():
            states = {state: SavedAlready(restored.state_directory(name, state)) for state in task.states}
            self.settings.coordinator.detach(name, TaskSnapshot(task.meta, {}, states))
        self.was_complete = True
        self._over.set_result(None)
        return True

    def _build(self, restored: Manifest | None) -> None:
        """Blocking: sources are asked for their schema, everything is opened."""
        self._take_sources()
        self.plan = plan_of(
            self.writes,
            restored,
            parallelism=self.settings.parallelism,
            written=self._written,
            infer=self._inferred,
        )
        self._afresh = restored is None
        readers = {stage.id: self._readers(stage) for stage in self.plan.stages if stage.reading is not None}
        for stage in self.plan.stages:
            if stage.id in readers:
                stage.parallelism = len(readers[stage.id][0])
            tasks = [
                StreamTask(f"{stage.id}/{i}", self.settings.coordinator, self.settings.clock)
                for i in range(stage.parallelism)
            ]
            self._built[stage.id] = _Built(
                stage, tasks, [[] for _ in tasks], [set() for _ in tasks], [set() for _ in tasks]
            )
        self._let_agents_in()
        for stage in self.plan.stages:
            built = self._built[stage.id]
            if stage.reading is not None:
                built.schema = stage.reading.rows
                watermarks = Watermarks(stage.reading.node.lateness_ms, stage.reading.node.idle_ms)
            for number, task in enumerate(built.tasks):
                if stage.reading is None:
                    task.input = GateInput(built.gates[number], built.right[number], built.first[number])
                task.chain = self._chain(built, number)
                if stage.reading is not None:
                    sources, codec = readers[stage.id]
                    own = None if codec is None else codec.another()
                    self._open_reader(stage.reading, task, sources[number], own, watermarks, restored)
        for built in self._built.values():
            if any(built.first):
                self._wait_for_first(built)
        if restored is not None:
            with taking_over("the streams", restored.path):
                self._restore(restored)

    def _let_agents_in(self) -> None:
        """Into the stages of sinks that agents write too: one thread writes for both, by one delivery=."""
        for built in self._built.values():
            sink = None if built.stage.sink is None else built.stage.sink[0]
            if not isinstance(sink, Sink) or id(sink) not in self.shared:
                continue
            if built.stage.changes is not None:
                raise UserError(
                    f"sink {sink.name}: a stream writes changes into it, and an agent rows that are none",
                    hint="make one for each",
                )
            built.by_agents = True
            built.stage.delivery = agreed_delivery(sink, built.stage.delivery, self._wanted[id(sink)])
            built.gates[0].append(self.shared[id(sink)])

    def _wait_for_first(self, built: _Built) -> None:
        """The sources of a stage's other inputs are not read before its first ones have ended, and their rows have been processed there."""
        stage, missing = built.stage, {task.name for task in built.tasks}
        others = self.plan.reads_of(stage) if self.plan is not None else set()
        waiting = [source for reading, _, source in self._inputs if reading.node in others]

        def over(name: str) -> None:
            missing.discard(name)
            if not missing:
                for source in waiting:
                    source.go_on(stage.id)

        for source in waiting:
            source.waits_for.add(stage.id)
        for task in built.tasks:
            assert isinstance(task.input, GateInput)
            task.input.on_first_over = partial(over, task.name)

    def _take_sources(self) -> None:
        """A Source object is read by one run at a time."""
        with _reading_lock:
            sources = {id(n.source): n.source for n in walk(self.writes) if isinstance(n, Read)}
            for source in sources.values():
                if isinstance(source, Source):
                    if id(source) in _reading:
                        raise UserError(
                            f"this very Source, {source.name}, is being read by another run",
                            hint="make one for each, or wait for the other",
                        )
                    _reading.add(id(source))
                    self._sources.append(source)

    def _inferred(self, node: Read) -> pa.Schema:
        """From the data, or from the first records, which may have to be waited for."""
        source = node.source if isinstance(node.source, Source) else self._open_source(node.source)
        inferred = source.infer_schema()
        return self._wait_for_records(node, source) if inferred is None else inferred

    def _wait_for_records(self, node: Read, source: Source) -> pa.Schema:
        """The schema of the first records of a topic."""
        codec = JsonCodec()
        source.open(None, "earliest")
        try:
            rows: list[pa.RecordBatch] = []
            count, deadline = 0, float("inf")
            patience = self.settings.clock.monotonic() + _PATIENCE_SECONDS
            while count < _INFERENCE_ROWS and self.settings.clock.monotonic() < deadline:
                if self._cancelled.is_set() or self.settings.stop_asked():
                    raise StoppedEarly(f"stream {node.name}: stopped before its first record came")
                batch = source.read_batch(_INFERENCE_ROWS - count, 0.05)
                if batch is not None:
                    rows.append(batch.data.select(["payload"]))
                    count += batch.num_rows
                    deadline = min(deadline, self.settings.clock.monotonic() + _SETTLE_SECONDS)
                elif source.exhausted:
                    break
                elif not rows and self.settings.clock.monotonic() > patience:
                    patience = float("inf")
                    _log.warning(
                        "stream %s: waiting for its first record, to learn its columns (schema= says them)", node.name
                    )
            if rows:
                codec.decode(pa.concat_batches(rows))
        finally:
            source.close()
        if codec.schema is None:
            raise UserError(
                f"stream {node.name}: its first records are no JSON objects", hint="give the stream schema="
            )
        return codec.schema

    def _open_source(self, topic: str) -> Source:
        """Not open yet; all streams of an app are one consumer group."""
        return self.settings.open_source(topic, f"{self.settings.app}-group")

    def _readers(self, stage: Stage) -> tuple[Sequence[Source], Codec | None]:
        """The sources of the stage's subtasks, as many as the plan has, or fewer; and what decodes their records, where they do not."""
        reading = stage.reading
        assert reading is not None
        node, schema = reading.node, reading.schema
        assert schema is not None
        assert node.schema is not None
        if node.time is not None and node.time not in schema.names:
            schema = schema.append(node.schema.field(node.time))
        source = node.source if isinstance(node.source, Source) else self._open_source(node.source)
        codec: Codec | None = None
        if not source.scan(node.schema, schema.names):
            table = node.table
            codec = JsonCodec(schema) if table is None else TableCodec(schema, table.keys, table.format, node.time)
        return source.readers(stage.parallelism), codec

    def _open_reader(
        self,
        reading: Reading,
        task: StreamTask,
        source: Source,
        codec: Codec | None,
        watermarks: Watermarks,
        restored: Manifest | None,
    ) -> None:
        node = reading.node
        assert reading.rows is not None
        source_input = SourceInput(
            node.name,
            source,
            codec=codec,
            schema=reading.rows,
            time=node.time,
            timed=reading.timed,
            watermarks=watermarks,
            dead_letter=self._dead_letter(reading, task),
            origin=self._origin(task),
            inferred=node.schema if node.inferred else None,
            clock=self.settings.clock,
        )
        task.input = source_input
        facts = None if restored is None or task.name not in restored.tasks else restored.tasks[task.name].meta["input"]
        positions = None
        if facts is not None:
            if facts["source"] != node.name:
                raise UserError(
                    f"task {task.name} of the checkpoint reads {facts['source']}, this program's reads {node.name}",
                    hint="run the program that wrote it; or start afresh (--fresh)",
                )
            if facts["log"] == source.log_id:
                positions = positions_in(facts)
            else:
                _log.warning(
                    "source %s: its log died with the process that wrote the checkpoint; reading from its start",
                    node.name,
                )
        self._inputs.append((reading, task, source_input))
        try:
            source_input.open(positions, self.settings.start, facts)
        except SabotError:
            raise
        except Exception as error:
            raise refused(f"source {node.name}", error) from error

    def _dead_letter(self, reading: Reading, task: StreamTask) -> Callable[[pa.RecordBatch], None]:
        edge = reading.dead_letters
        assert edge is not None
        output = self._output(edge, task, None)
        task.chain.add_beside(output)
        return lambda records: output.put(Batch(records, None, reading.node.name))

    def _origin(self, task: StreamTask) -> dict[str, Any]:
        """What dead letters say of who set them apart."""
        return {"agent": f"{self.settings.app}/{task.name}", "version": self.settings.version}

    # -- chains -------------------------------------------------------------------------------------------------------

    def _chain(self, built: _Built, number: int) -> Chain:
        """Operators, opened from the first to the last, since each says what columns the next one gets."""
        stage, task = built.stage, built.tasks[number]
        outputs: list[Output] = []
        if stage.sink is not None:
            return Chain([Link(self._sink_writer(built), [])], [])
        assert built.schema is not None
        roots = [self._link(target, built.schema, task, number, stage, outputs) for target in stage.targets]
        return Chain(roots, outputs)

    def _link(
        self, target: Step | Edge, schema: pa.Schema, task: StreamTask, number: int, stage: Stage, outputs: list[Output]
    ) -> Link | Output:
        if isinstance(target, Edge):
            output = self._output(target, task, schema)
            outputs.append(output)
            return output
        operator = target.make()
        operator.id, operator.text = target.id, target.text
        operator.named, operator.path = target.named, target.path
        context = OperatorContext(
            schema,
            number,
            stage.parallelism,
            None if self.settings.directory is None else self._directory(task, operator),
            self.settings.memory_budget // max(1, stage.parallelism),
            right=self._built[stage.id].right_schema if operator.inputs == 2 else None,
            clock=self.settings.clock,
            loop=lambda: self._loop,
        )
        operator.wake = task.wake
        if "late" in target.sides:
            self._late_sides.add(target.id)
        roads = {name: _SideRoad() for name in target.sides}
        context.side.update(roads)
        columns = operator.open(context)
        sides = {
            name: [self._link(each, operator.side_schema(name, schema), task, number, stage, outputs) for each in side]
            for name, side in target.sides.items()
        }
        for name, road in roads.items():
            road.receive = receiver_of(sides[name])
        targets = [self._link(each, columns, task, number, stage, outputs) for each in target.targets]
        return Link(operator, targets, sides)

    def _directory(self, task: StreamTask, operator: Operator) -> Path:
        assert self.settings.directory is not None
        own_folder(self.settings.directory)
        directory = self.settings.directory / task.name.replace("/", "-") / operator.id
        shutil.rmtree(directory, ignore_errors=True)  # of an earlier run; the checkpoint is the only authority
        make_folder(directory)
        return directory

    def _output(self, edge: Edge, task: StreamTask, schema: pa.Schema | None) -> Output:
        """A channel into each subtask of the stage behind the edge. schema: of the rows, where the stage must know it."""
        built = self._built[edge.target.id]
        if edge.right:
            built.right_schema = schema
        elif schema is not None:
            if built.stage.sink is not None:
                built.coming.append(schema)
            if built.schema is None:
                built.schema = schema
            elif built.stage.sink is None and not built.schema.equals(
                schema
            ):  # of a union: what may be null in one may be null
                check_alike(built.schema, schema)
                built.schema = pa.schema(column_types(schema))
        channels = []
        stage, own = task.name.rsplit("/", 1)
        straight = edge.straight and len(built.gates) == len(self._built[stage].tasks)
        for number, gate in enumerate(built.gates):
            if straight and number != int(own):
                continue
            channel = Channel(name=f"{task.name} to {built.tasks[number].name}")
            if edge.right:
                built.right[number].add(len(gate))
            if edge.first:
                built.first[number].add(len(gate))
            if edge.timeless:
                channel.put_nowait(IDLE)
            gate.append(channel)
            channels.append(channel)
        return Output(channels, edge.keys or (), task, everywhere=edge.everywhere, in_turn=edge.straight)

    def _sink_writer(self, built: _Built) -> Operator:
        assert built.stage.sink is not None
        sink, key = built.stage.sink
        opened = self.settings.open_sink(sink) if isinstance(sink, str) else sink
        opened = self.settings.staged("streams", opened, built.stage.delivery)
        if self._afresh:
            opened.start_afresh()
        expected = None if built.mixed or built.schema is None else without_marks(built.schema)
        clock = self.settings.clock
        writer = SinkWriter(opened, key, expected, lambda: int(clock.time() * 1000), changes=built.stage.changes)
        writer.id = built.stage.id
        open_writer(writer, [without_marks(schema) for schema in built.coming], built.schema or RECORD_SCHEMA)
        return writer

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _restore(self, restored: Manifest) -> None:
        """Each subtask gets its own state; with another parallelism all of it, and takes its key groups."""
        if not stored_streams(restored):
            return
        assert self.plan is not None
        verdicts = verdicts_of(self.plan, restored)
        saved_as = check(verdicts, restored.checkpoint_id)
        for each in verdicts:
            if each.outcome in ("migrate", "drop"):
                _log.info("%s: %s: %s", each.id, each.outcome, each.why)
        saved = {operator: parts_of(restored, before) for operator, before in saved_as.items()}
        subtasks = Counter(operator.id for task in self.tasks for operator in task.chain.operators)
        scattered = {step.id for stage in self._stages for step in stage.steps() if step.scattered}
        for task in self.tasks:
            states = {}
            for operator in task.chain.operators:
                parts = saved.get(operator.id, {})
                same = len(parts) == subtasks[operator.id] and task.name in parts and operator.id not in scattered
                states[operator.id] = [parts[task.name]] if same else list(parts.values())
            task.restore(states)

    def _commit(self, manifest: Manifest) -> None:
        for _, task, source in self._inputs:
            stored = manifest.tasks.get(task.name)
            if stored is not None:
                source.request_commit(positions_in(stored.meta["input"]))

    @property
    def _stages(self) -> list[Stage]:
        return [built.stage for built in self._built.values()]

    # -- running ------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> list[StreamTask]:
        """Upstream first."""
        return [task for built in self._built.values() for task in built.tasks]

    @property
    def running(self) -> asyncio.Future[None]:
        """Done when every task has ended; raises what a task failed with."""
        return self._over

    @property
    def failure(self) -> BaseException | None:
        """What the first task failed with."""
        return self._over.exception() if self._over.done() and not self._over.cancelled() else None

    @property
    def broken(self) -> bool:
        """A task failed: no checkpoint can be taken any more."""
        return any(task.error is not None for task in self.tasks)

    def _task_over(self, task: StreamTask) -> None:
        """In the task's thread."""
        tell(self._loop, self._count_out, task)

    def _count_out(self, task: StreamTask) -> None:
        self._left -= 1
        if self._over.done():
            return
        if task.error is not None:
            self.settings.coordinator.refuse(f"task {task.name} has failed: {task.error}")
            self._over.set_exception(task.error)
            for other in self.tasks:
                other.stop()
            if not self.awaited:
                self.on_failed(task.error)
        elif self._left == 0:
            self._over.set_result(None)

    def hold(self, held: bool) -> None:
        """Read no more while it is so; barriers pass. From any thread."""
        for _, _, source in self._inputs:
            source.hold(held)

    async def stop(self, *, drain: bool) -> None:
        """Stops reading. `drain`: what was read is processed to its end, windows close, tasks end."""
        for _, _, source in self._inputs:
            source.end() if drain else source.pause()
        if drain and self.tasks:
            await asyncio.wait([self._over])

    async def close(self) -> None:
        """Ends the threads, closes everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._cancelled.set()
        if self._started:
            interpreter.restore()
        coordinator = self.settings.coordinator
        if self._commit in coordinator.on_complete:
            coordinator.on_complete.remove(self._commit)
        for task in self.tasks:
            coordinator.abandon(task.name)
        self.left += await aside(close_tasks, [task for task in self.tasks if task.built], _JOIN_SECONDS)
        self._tell_of_late_rows()
        with _reading_lock:
            _reading.difference_update(map(id, self._sources))
        if self._over.done() and not self._over.cancelled():
            self._over.exception()  # told by whoever ran the job
        elif not self._over.done():
            self._over.cancel()

    def _tell_of_late_rows(self) -> None:
        """Rows that came too late and had no place to go are counted; somebody should know."""
        late: Counter[str] = Counter()
        for task in self.tasks:
            for operator in task.chain.operators if task.built else []:
                if operator.id not in self._late_sides:
                    late[operator.text] += operator.statistics().get("late_rows", 0)
        for text, rows in late.items():
            if rows:
                _log.warning(
                    "%d rows came too late for %s, and do not count (lateness= of the stream says how late rows may be)",
                    rows,
                    text,
                )

    @property
    def left_behind(self) -> list[str]:
        """After `close`: calls of the user's that refused to be cancelled."""
        tasks = [task for task in self.tasks if task.built]
        return [call for task in tasks for operator in task.chain.operators for call in operator.left_behind]

    # -- figures ------------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[float, float] | None:
        """(bytes read, all bytes) of the bounded sources; None where there are none."""
        parts = [part for _, _, source in self._inputs if (part := source.source.progress()) is not None]
        return (sum(part[0] for part in parts), sum(part[1] for part in parts)) if parts else None

    def statistics(self) -> dict[str, Any]:
        """By task; from any thread."""
        return {task.name: task.statistics() | {"input": task.input.statistics()} for task in self.tasks if task.built}

    def samples(self) -> Iterator[Sample]:
        """For metrics; from any thread."""
        now_ms = self.settings.clock.time() * 1000
        for reading, task, source in self._inputs:
            topic = reading.node.name
            yield Sample("sabot_records_in_total", source.rows_in, task.name, topic)
            yield Sample("sabot_dead_letters_total", source.dead_letters, task.name, topic)
            if reading.timed and task.watermark_ms is not None:
                yield Sample("sabot_watermark_lag_seconds", (now_ms - task.watermark_ms) / 1000, task.name, topic)
            for (name, partition), lag in source.source.lag().items():
                yield Sample("sabot_consumer_lag", lag, task.name, name, str(partition))
        for task in self.tasks:
            yield Sample("sabot_checkpoint_sync_seconds", task.cut_seconds, task.name)
            if isinstance(task.input, GateInput):
                aligned = task.input.gate.statistics()["alignment_seconds"]
                yield Sample("sabot_checkpoint_alignment_seconds", aligned, task.name)
                yield Sample("sabot_channel_rows", task.input.gate.statistics()["rows"], task.name, "")
            for operator in task.chain.operators:
                figures: Mapping[str, Any] = operator.statistics()
                if "late_rows" in figures:
                    yield Sample("sabot_records_late_total", figures["late_rows"], f"{task.name} {operator.id}", "")
                if "rows_out" in figures:
                    yield Sample("sabot_records_out_total", figures["rows_out"], task.name, operator.id)


def _sinks(writes: Sequence[Write]) -> list[Sink]:
    """All Sink objects that streams write: results, late rows, dead letters."""
    ends: list[Any] = [write.sink for write in writes]
    for node in walk(writes):
        ends += [getattr(node, "late", None), getattr(node, "dead_letter", None)]
    return [end for end in ends if isinstance(end, Sink)]


def _nothing(checkpoint_id: int) -> None:
    """Its barrier comes in-band."""
