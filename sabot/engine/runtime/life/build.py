"""Builds the tasks of an app's streams from the plan, with channels between them, at the positions of the checkpoint."""

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from sabot._cython.flow.channel import Channel
from sabot.api.agent import AgentSpec
from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.read import Read, StreamEnd, Write
from sabot.base.config import dead_letter_topic
from sabot.base.disk import make_folder, own_folder
from sabot.base.os_errors import restoring
from sabot.codecs import Codec
from sabot.codecs.records import RECORD_SCHEMA
from sabot.connectors.base import Delivery, Sink, Source, TakesBound, columns_of, ends, overrides, scan
from sabot.connectors.checks import agreed_delivery
from sabot.connectors.memory import CountSink
from sabot.engine.checkpoint import Manifest
from sabot.engine.delivery import StagedSink
from sabot.engine.operators.base import (
    Operator,
    OperatorContext,
    SecondInput,
    StepInfo,
    WaitsForCalls,
    branch_schema,
    without_marks,
)
from sabot.engine.operators.reading import parts_of
from sabot.engine.operators.sink import SinkWriter
from sabot.engine.plan import (
    Edge,
    Plan,
    Reading,
    SinkTable,
    Stage,
    Step,
    agreed_nans,
    check,
    ending,
    only_letters,
    place_of_sink,
    tables_in,
    walk,
)
from sabot.engine.runtime.agents.output import AgentInput, AgentOutput
from sabot.engine.runtime.life.restore import Asked, decide, plan_of, positions_in, readers_in, sinks_in, stored_streams
from sabot.engine.runtime.life.settings import RunSettings
from sabot.engine.runtime.tasks.chain import Chain, Link, Output, receiver_of
from sabot.engine.runtime.tasks.edges import Branch, BuiltStage, DeadLetterOutput, Edges, stage_of
from sabot.engine.runtime.tasks.event_time import SourceTime, source_time
from sabot.engine.runtime.tasks.filling import Filling
from sabot.engine.runtime.tasks.inference import wait_for_columns
from sabot.engine.runtime.tasks.inputs import GateInput
from sabot.engine.runtime.tasks.manifest_facts import left_columns
from sabot.engine.runtime.tasks.reading import Reader, SourceInput
from sabot.engine.runtime.tasks.source_codec import codec_of, format_facts
from sabot.engine.runtime.tasks.source_log import is_same_log, recall, remembers, use_clock
from sabot.engine.runtime.tasks.task import StreamTask
from sabot.engine.runtime.tasks.watermark_alignment import Alignment
from sabot.engine.runtime.tasks.watermarks import Watermarks
from sabot.engine.runtime.tasks.writing import open_writer, refused
from sabot.errors import SabotError, UserError

if TYPE_CHECKING:
    from sabot.engine.runtime.tasks.replay import Replay

_log = logging.getLogger(__name__)

_reading: set[int] = set()  # ids of the Source objects that some run of this process reads
_reading_lock = threading.Lock()


class Build:
    """The running part of the streams: their tasks by stage, and the inputs of these tasks."""

    def __init__(
        self,
        ends: Sequence[StreamEnd],
        settings: RunSettings,
        *,
        agents: Sequence[AgentSpec],
        wanted: Mapping[str | int, Delivery],
        loop: asyncio.AbstractEventLoop,
        replay: "Replay | None" = None,
    ) -> None:
        """`agents`: the agents of the app. `wanted`: `delivery=` of each Sink that agents write, by the id of the
        Sink. `loop`: the event loop that runs async calls. `replay`: set to process only the rows before a checkpoint,
        in only some of the steps.
        """
        self.settings = settings
        self.plan: Plan | None = None
        self.stages: dict[str, BuiltStage] = {}  # upstream first
        self.inputs: list[tuple[Reading, StreamTask, SourceInput]] = []
        self.of_agents: list[tuple[Reading, StreamTask, SourceInput]] = []  # as `inputs`: those that read agents
        self.given: dict[str, AgentOutput] = {}  # by the id of an agent: the source through which a stream reads it
        self.cancelled = threading.Event()  # the start was given up
        self.shared = {  # by the id of a Sink that agents write too: the port for their rows
            id(sink): Channel(name=f"agents to {sink.name}") for sink in _sinks(ends) if id(sink) in wanted
        }
        self.alignments: dict[
            str, Alignment
        ] = {}  # by the stage for which sources are read at about the same event time
        self.ends = ending(ends, settings.app.end_at)
        self._agents = agents
        self._only_letters = only_letters(agents, ends)
        self._wanted = wanted
        self._loop = loop
        self.replay = replay
        self._sources: list[Source] = []  # the user's Source objects that this run reads
        self._letter_writers: dict[str | int, SinkWriter] = {}  # by the place of a sink (`place_of_sink`)
        self._letters_lock = threading.Lock()
        self._written: Mapping[str, SinkTable] = {}  # what the sinks have since the start, by the ids of their stages
        self._afresh = True  # no checkpoint is restored
        self._restored: Manifest | None = None
        self._edges: Edges
        # By stage with an input that must be processed first: the tasks that have not done so, and the readers here that wait for them.
        self._first: dict[str, tuple[set[str], list[SourceInput]]] = {}

    @property
    def tasks(self) -> list[StreamTask]:
        """Returns all tasks of this process, upstream first."""
        # A copy first: figures are asked for on the event loop while the thread of `open` still adds stages.
        return [task for built in list(self.stages.values()) for task in built.tasks.values()]

    def open(self, restored: Manifest | None) -> None:
        """Determines the columns of the sources, opens everything, and restores positions and state from the
        checkpoint, if there is one. Blocks. If it raises, the caller closes the parts that are open.
        """
        self._take_sources()
        self.plan = plan_of(
            self.ends,
            restored,
            agents=self._agents,
            parallelism=self.settings.app.parallelism,
            infer=self._inferred,
            refresh=self.settings.app.refresh_schema,
        )
        if self.replay is not None:
            self.plan = self.plan.up_to(self.replay.steps, CountSink)
        self._written = tables_in(self.plan)
        readers = {stage.id: self._readers(stage, restored) for stage in self.plan.stages if stage.reading is not None}
        restored = None if self.replay is not None else restored
        self._afresh, self._restored = restored is None, restored
        for stage in self.plan.stages:
            if stage.id in readers:
                stage.parallelism = len(readers[stage.id][0])
        self.settings.placement.agree(self.plan)
        for stage in self.plan.stages:
            self.stages[stage.id] = self._built(stage)
        self._edges = Edges(self.plan, self.stages, self.settings.placement)
        self._let_agents_in()
        for stage in self.plan.stages:
            built = self.stages[stage.id]
            if stage.agent is not None:
                continue
            if stage.reading is not None:
                built.schema = stage.reading.rows
                node = stage.reading.node
                watermarks = Watermarks(node.lateness_ms, node.idle_ms, stage.reading.closing)
                time = source_time(node)
            for number in range(stage.parallelism):
                if number not in built.tasks:
                    self._edges.from_elsewhere(stage, number)
                    continue
                task = built.tasks[number]
                if stage.reading is None:
                    numbers = built.right[number], built.first[number]
                    passes = self._edges.tells(stage)
                    task.input = GateInput(built.gates[number], *numbers, passes=passes, gathers=stage.gathers)
                letters = self._dead_letters(stage, task)
                task.chain = self._chain(built, number, letters)
                if stage.reading is not None:
                    sources, codec = readers[stage.id]
                    own = None if codec is None else codec.another()
                    assert letters is not None
                    self._open_reader(stage.reading, task, sources[number], own, time, watermarks, restored, letters)
        for built in self.stages.values():
            if any(edge.first and edge.target is built.stage for stage in self.plan.stages for edge in stage.edges()):
                self._wait_for_first(built)
        for stage in self.plan.stages:
            if stage.aligned is not None:
                read = {each.id for each in self.plan.aligned(stage)}
                members = [source for _, task, source in self.inputs if stage_of(task.name) in read]
                if members:
                    whole = self.settings.placement.whole
                    marks = (each.watermarks for each in members)
                    alignment = Alignment(stage.aligned.max_drift_ms, marks, whole=whole)
                    self.alignments[stage.id] = alignment
                    for each in members:
                        each.alignments.append(alignment)
        for stage_id, task in self.waits_for_calls():
            task.readers_before += self.readers_before(stage_id)
            elsewhere = self.settings.placement.readers_elsewhere(stage_id)
            task.readers_before += [] if elsewhere is None else [elsewhere]
        if restored is not None:
            with restoring("the streams", restored.path):
                self._restore(restored)
        for task in self.tasks:
            for writer in task.chain.writers:
                if (table := self._written.get(stage_of(task.name))) is not None:
                    writer.stands = msgspec.structs.asdict(table)

    def _built(self, stage: Stage) -> BuiltStage:
        """Builds the tasks of a stage. For an agent, only the channels into it are made here."""
        names = {number: f"{stage.id}/{number}" for number in range(stage.parallelism)}
        tasks = {}
        if stage.agent is None:
            tasks = {
                number: StreamTask(name, self.settings.coordinator, self.settings.clock)
                for number, name in names.items()
                if self.settings.placement.is_here(name)
            }
        return BuiltStage(stage, tasks, [[] for _ in names], [set() for _ in names], [set() for _ in names])

    @property
    def feeds(self) -> dict[str, list[Channel]]:
        """The channels from streams into agents, by the id of the agent. Valid once everything is open."""
        return {each.stage.id: each.gates[0] for each in self.stages.values() if each.stage.agent is not None}

    def readers_before(self, stage_id: str) -> list[Reader]:
        """Returns the readers of streams whose rows reach this stage or agent, also through other agents."""
        assert self.plan is not None
        before = self.plan.before(self.stages[stage_id].stage)
        return [source for _, task, source in self.inputs if stage_of(task.name) in before]

    def agents_before(self, stage_id: str) -> set[str]:
        """Returns the ids of the agents whose rows reach this stage or agent."""
        assert self.plan is not None
        return {id for id in self.plan.before(self.stages[stage_id].stage) if self.stages[id].stage.agent is not None}

    def waits_for_calls(self) -> Iterator[tuple[str, StreamTask]]:
        """Yields (stage id, task) for the tasks whose rows may wait, for calls of users' functions or for timers, and
        which get barriers from channels. Such a task must accept the rows before a barrier even if it has no room.
        """
        for built in self.stages.values():
            for task in built.tasks.values():
                if task.chain.polled and task.input.brings_barriers:
                    yield built.stage.id, task

    def _let_agents_in(self) -> None:
        """Connects agents to the sinks that streams write too, so that one thread writes for both. Raises UserError
        if they set different delivery= or nan=, and if the stream writes changes.
        """
        for built in self.stages.values():
            sink = None if built.stage.sink is None else built.stage.sink[0]
            if not isinstance(sink, Sink) or id(sink) not in self.shared:
                continue
            if built.stage.changes is not None:
                raise UserError(
                    f"sink {sink.name}: a stream writes changes into it, but an agent writes plain rows",
                    hint="make a Sink for each of them",
                )
            agreed_nans(self._agents, (sink, built.stage.nan))
            built.by_agents = True
            built.stage.delivery = agreed_delivery(sink, built.stage.delivery, self._wanted[id(sink)])
            built.gates[0].append(self.shared[id(sink)])

    def _wait_for_first(self, built: BuiltStage) -> None:
        """Pauses sources whose rows are joined with a table, until the input of the table has been read up to the end
        that it had at the start, and the stage has processed these rows.
        """
        assert self.plan is not None
        stage = built.stage
        origin, edge = next(
            (each, edge) for each in self.plan.stages for edge in each.edges() if edge.first and edge.target is stage
        )
        waiting = [source for reading, _, source in self.inputs if reading.node in edge.first]
        names = ", ".join(sorted({node.name for node in edge.first}))
        for source in [
            source for _, task, source in self.inputs if stage_of(task.name) in {origin.id, *self.plan.before(origin)}
        ]:
            if self.replay is not None or not ends(source.source):  # a replay stays open at its end
                source.awaited_by = names if not source.awaited_by else f"{source.awaited_by}, {names}"
        self._first[stage.id] = {f"{stage.id}/{number}" for number in range(stage.parallelism)}, waiting
        for source in waiting:
            source.pause_for(stage.id)
        for task in built.tasks.values():
            assert isinstance(task.input, GateInput)
            task.input.on_first_over = partial(self._has_first, stage.id, task.name)

    def _has_first(self, stage_id: str, task: str) -> None:
        """Calls `has_first`, and notifies the other processes. Called in the task's thread."""
        self.has_first(stage_id, task)
        self.settings.placement.has_first(stage_id, task)

    def has_first(self, stage_id: str, task: str) -> None:
        """Notes that a task, of this or another process, has processed the table input for which sources wait. When
        all tasks of the stage have, the sources begin to read. From any thread.
        """
        missing, waiting = self._first[stage_id]
        missing.discard(task)
        if not missing:
            for source in waiting:
                source.resume_for(stage_id)

    def _inferred(self, node: Read, readers: Sequence[Mapping[str, Any]]) -> pa.Schema:
        """Returns the columns of a stream without a given schema: from its source or its format if they know them,
        else from records, for which it may have to wait.

        `readers`: the entries of the checkpoint about the stream's readers. If they have positions of this source,
        the records that follow these positions are used, else the first records.
        """
        if (known := self.settings.placement.columns_of(node.name)) is not None:
            return known
        source = self.settings.source_of(node)
        for inferred in (partial(columns_of, source), partial(node.format.columns, node.name)):
            if (columns := inferred()) is not None:
                return columns
        # A source with a memory would need it to open at positions: its first records are looked at.
        known = [] if remembers(source) else [facts for facts in readers if is_same_log(source, facts)]
        positions = {place: at for facts in known for place, at in positions_in(facts).items()}
        patience_s = self.settings.first_record_s
        return wait_for_columns(
            node.name, source, node.format, self.settings.clock, self._is_stopped, patience_s, positions
        )

    def _is_stopped(self) -> bool:
        return self.cancelled.is_set() or self.settings.stop_asked()

    def _readers(self, stage: Stage, restored: Manifest | None) -> tuple[Sequence[Source], Codec | None]:
        """Returns the sources for the subtasks of a stage (at most as many as the plan says), and the codec for their
        records, or None if the sources decode rows themselves.
        """
        reading = stage.reading
        assert reading is not None
        node, schema = reading.node, reading.schema
        assert schema is not None
        assert node.columns is not None
        time = frozenset([node.time_column]) if node.time_expr is None else node.time_expr.columns
        for name in sorted(name for name in time if name is not None and name not in schema.names):
            schema = schema.append(node.columns.field(name))
        source = self.settings.source_of(node)
        if node.name in self.settings.app.skipping and isinstance(source, TakesBound):
            source.skip_removed()
        if isinstance(node, AgentRead):
            source = self.given[node.agent.agent_id] = AgentOutput(node.agent.agent_id, node.schema)
        codec: Codec | None = None
        if not scan(source, node.schema, schema.names, node.guessed):
            before = [] if restored is None else readers_in(restored, node.name)
            codec = codec_of(node, schema, before, refresh=self.settings.app.refresh_schema)
        return source.readers(stage.parallelism), codec

    def _open_reader(
        self,
        reading: Reading,
        task: StreamTask,
        source: Source,
        codec: Codec | None,
        time: SourceTime | None,
        watermarks: Watermarks,
        restored: Manifest | None,
        dead_letters: Callable[[pa.RecordBatch], None],
    ) -> None:
        node = reading.node
        assert reading.rows is not None
        source_input = (AgentInput if isinstance(node, AgentRead) else SourceInput)(
            node.name,
            source,
            codec=codec,
            schema=reading.rows,
            time=time,
            timed=reading.timed,
            watermarks=watermarks,
            dead_letter=dead_letters,
            origin=self._origin(task),
            inferred=node.schema if node.inferred else None,
            format=format_facts(node.format, codec),
            clock=self.settings.clock,
            letters_to=_letters_to(node) if self.settings.has_dead_letters else "",
            most_rows=reading.most_rows,
        )
        task.input = source_input
        source_input.said_time = node.said_time if reading.timed else ""
        facts = None if restored is None or task.name not in restored.tasks else restored.tasks[task.name].meta["input"]
        positions = None
        use_clock(source, self.settings.clock)
        if self.replay is not None:
            recall(source, node.name, self.replay.manifest, task.name, again=True)
        if facts is not None:
            if facts["source"] != node.name:
                raise UserError(
                    f"task {task.name} reads {facts['source']} in the checkpoint, but {node.name} in this program",
                    hint="run the program that wrote it; or start afresh (--fresh)",
                )
            if is_same_log(source, facts):
                assert restored is not None
                positions = positions_in(facts)
                recall(source, node.name, restored, task.name)
            else:
                _log.warning(
                    "source %s: its rows are not those of the checkpoint, as rows in memory end with their process; reading from its start",
                    node.name,
                )
        (self.of_agents if isinstance(source_input, AgentInput) else self.inputs).append((reading, task, source_input))
        try:
            source_input.open(positions, node.begins(self.settings.app.start_at), facts)
            if self.replay is not None:
                self.replay.begin(task.name, source_input)
        except SabotError:
            raise
        except Exception as error:
            raise refused(f"source {node.name}", error) from error

    def _dead_letters(self, stage: Stage, task: StreamTask) -> DeadLetterOutput | None:
        """Returns the path of a task's dead letters to their sink, or None if its stage has no sink for them."""
        if stage.dead_letters is None:
            return None
        return DeadLetterOutput(
            self._edges.output(stage.dead_letters, stage, task.name, None),
            stage.reading.node.name if stage.reading else "",
        )

    def _origin(self, task: StreamTask) -> dict[str, Any]:
        """Returns the fields of a dead letter that name the task."""
        return {"agent": f"{self.settings.app_id}/{task.name}", "version": self.settings.app.version}

    # -- chains -------------------------------------------------------------------------------------------------------

    def _chain(self, built: BuiltStage, number: int, letters: DeadLetterOutput | None) -> Chain:
        """Makes and opens the operators of a subtask, from the first to the last: each determines the columns of the
        next one's input. `number`: the number of the subtask. `letters`: the output for dead letters, or None.
        """
        stage, task = built.stage, built.tasks[number]
        outputs: list[Output] = []
        if stage.sink is not None:
            return Chain([Link(self._sink_writer(built, self._sink_of(built)), [])], [])
        assert built.schema is not None
        link = partial(self._link, task=task, number=number, stage=stage, outputs=outputs, letters=letters)
        chain = Chain([link(target, built.schema) for target in stage.targets], outputs)
        if letters is not None:
            chain.add_beside(letters.output)
        return chain

    def _link(
        self,
        target: Step | Edge,
        schema: pa.Schema,
        *,
        task: StreamTask,
        number: int,
        stage: Stage,
        outputs: list[Output],
        letters: DeadLetterOutput | None,
    ) -> Link | Output:
        if isinstance(target, Edge):
            output = self._edges.output(target, stage, task.name, schema)
            outputs.append(output)
            return output
        operator = target.make()
        operator.step = target
        context = OperatorContext(
            schema,
            number,
            stage.parallelism,
            None if self.settings.directory is None else self._directory(task, operator),
            self.settings.app.memory_budget_bytes // max(1, stage.parallelism),
            right=self.stages[stage.id].right_schema if isinstance(operator, SecondInput) else None,
            clock=self.settings.clock,
            loop=lambda: self._loop,
            dead_letters=letters if self.settings.has_dead_letters else None,
            **self._origin(task),
        )
        if isinstance(operator, WaitsForCalls):
            operator.wake = task.wake
        branches = {name: Branch() for name in target.branches}
        context.branches.update(branches)
        columns = operator.open(context)
        link = partial(self._link, task=task, number=number, stage=stage, outputs=outputs, letters=letters)
        behind = {
            name: [link(each, branch_schema(operator, name, schema)) for each in steps]
            for name, steps in target.branches.items()
        }
        for name, branch in branches.items():
            branch.receive = receiver_of(behind[name])
        targets = [link(each, columns) for each in target.targets]
        return Link(operator, targets, behind, branches)

    def _directory(self, task: StreamTask, operator: Operator) -> Path:
        assert self.settings.directory is not None
        own_folder(self.settings.directory)
        directory = self.settings.directory / task.name.replace("/", "-") / operator.step.id
        shutil.rmtree(directory, ignore_errors=True)  # left by an earlier run; only the checkpoint counts
        make_folder(directory)
        return directory

    def open_deliveries(self) -> None:
        """Opens the exactly-once sinks of tasks that run in other processes. Blocks. Raises the errors of opening."""
        for built in self.stages.values():
            if built.stage.sink is not None and not built.tasks:
                sink = self._sink_of(built)
                if isinstance(sink, StagedSink):
                    self._sink_writer(built, sink)

    def _sink_of(self, built: BuiltStage) -> Sink:
        """Returns the sink into which the task of the stage writes, not open yet."""
        assert built.stage.sink is not None
        sink = built.stage.sink[0]
        opened = self.settings.open_sink(sink, built.stage.format) if isinstance(sink, str) else sink
        # Before `staged`: it is the receiver that waits for its first letter, not the StagedSink before it.
        opened.only_letters = place_of_sink(sink) in self._only_letters
        return self.settings.staged("streams", opened, built.stage.delivery)

    def _sink_writer(self, built: BuiltStage, opened: Sink) -> SinkWriter:
        assert built.stage.sink is not None
        key = built.stage.sink[1]
        records = built.schema is None or built.schema.equals(RECORD_SCHEMA)  # nothing is known of the columns then
        expected = None if built.mixed or records else without_marks(built.schema)
        stage, clock = built.stage, self.settings.clock
        writer = SinkWriter(opened, key, expected, lambda: int(clock.time() * 1000), stage.changes, stage.nan)
        writer.step = StepInfo(stage.id)
        if self._afresh:
            writer.start_afresh()
        assert stage.sink is not None
        self._letter_writers[place_of_sink(stage.sink[0])] = writer
        if stage.refused is not None and self.settings.has_dead_letters:
            origin = {"step": stage.id, "agent": f"{self.settings.app_id}/{stage.id}"}
            origin["version"] = self.settings.app.version
            writer.letters_to(partial(self.write_letters, stage.refused), clock, origin)
        if expected is not None:
            self._note_columns(writer, stage, expected)
        open_writer(writer, [without_marks(schema) for schema in built.coming], built.schema or RECORD_SCHEMA)
        return writer

    def write_letters(self, sink: str | Sink, letters: pa.RecordBatch) -> None:
        """Writes dead letters of rows that the receiver of another sink has refused. When it returns they are safe. Called
        from any thread.
        """
        with self._letters_lock:
            writer = self._letter_writers.get(place_of_sink(sink))
            if writer is None:  # another process writes this sink
                opened = self.settings.open_sink(sink, None) if isinstance(sink, str) else sink
                writer = SinkWriter(opened, None, None, lambda: int(self.settings.clock.time() * 1000))
                self._letter_writers[place_of_sink(sink)] = writer
        writer.write_aside(letters)

    def _note_columns(self, writer: SinkWriter, stage: Stage, columns: pa.Schema) -> None:
        """Gives the writer the columns that the app has written so far, and logs those that it does not write any more."""
        assert self.plan is not None
        assert stage.sink is not None
        sink = stage.sink[0]
        if not isinstance(sink, Sink) or not overrides(sink, "expect"):
            return
        wrote, newly = left_columns(self._restored, sink, sinks_in(self.plan), columns.names)
        if newly:
            told = "sink %s: the program does not write %s any more, so rows from now on are without it (sabot plan --against says more)"
            _log.warning(told, sink.name, ", ".join(newly))
        writer.wrote, writer.left = msgspec.structs.asdict(wrote), wrote.left

    # -- sources and state ------------------------------------------------------------------------------------------------

    def _take_sources(self) -> None:
        """Claims the user's Source objects for this run. Raises UserError if another run reads one of them."""
        with _reading_lock:
            sources = {id(n.source): n.source for n in walk(self.ends) if isinstance(n, Read)}
            for source in sources.values():
                if isinstance(source, Source):
                    if id(source) in _reading:
                        raise UserError(
                            f"the Source object {source.name} is read by another run",
                            hint="make a Source for each run, or wait until the other run has ended",
                        )
                    _reading.add(id(source))
                    self._sources.append(source)

    def give_back_sources(self) -> None:
        """Releases the Source objects for another run."""
        with _reading_lock:
            _reading.difference_update(map(id, self._sources))

    def _restore(self, restored: Manifest) -> None:
        """Restores each subtask from its own state. If the parallelism has changed, each subtask reads the states of
        all subtasks, and takes the key groups that it owns.
        """
        if not stored_streams(restored):
            return
        assert self.plan is not None
        settings = self.settings
        decided = decide(
            self.plan,
            restored,
            Asked(settings.drop, settings.refill, settings.reemit),
            start_at=settings.app.start_at,
            is_savepoint=settings.is_savepoint,
        )
        decided.tell_what_is_done()
        verdicts, reemits = decided.verdicts, decided.reemits
        self._written = decided.tables
        saved_as = check(verdicts, restored.checkpoint_id)
        forgets = {each.id: each.forgets for each in verdicts}
        for each in verdicts:
            loses = each.given_up or bool(each.forgets) or any(part.outcome == "drop" for part in each.parts)
            if each.outcome in ("migrate", "drop") or each.fills or loses:
                _log.log(logging.WARNING if loses else logging.INFO, "%s: %s: %s", each.id, each.outcome, each.why)
        saved = {operator: parts_of(restored, before) for operator, before in saved_as.items()}
        subtasks = {
            operator.step.id: self.stages[stage_of(task.name)].stage.parallelism
            for task in self.tasks
            for operator in task.chain.stateful
        }
        scattered = {step.id for built in self.stages.values() for step in built.stage.steps() if step.scattered}
        states_of = {operator: list(parts.values()) for operator, parts in saved.items()}
        decided.tell_of_tables()
        filling = Filling(self.plan, verdicts, states_of, self.settings.directory, reemits)
        for task in self.tasks:
            states = {}
            for operator in task.chain.stateful:
                id = operator.step.id
                parts = saved.get(id, {})
                same = len(parts) == subtasks[id] and task.name in parts and id not in scattered
                same = same and tuple(parts[task.name].facts.get("parted_by", ())) == operator.parted_by
                states[id] = [replace(parts[task.name], own=True)] if same else list(parts.values())
            task.restore(states, forgets)
            for operator in task.chain.stateful:
                fill = filling.of(operator, task.name, subtasks[operator.step.id])
                if fill is not None:
                    task.fills.append(fill)
            if (sink := stage_of(task.name)) not in reemits:
                continue
            if (again := filling.into(task.chain.operators[0], task.name, sink)) is not None:
                task.fills.append(again)
                _log.info("%s: its table is written again", task.chain.operators[0].step.id)


def _sinks(ends: Sequence[StreamEnd]) -> list[Sink]:
    """Returns all Sink objects that streams write: results, late rows and dead letters."""
    sinks: list[Any] = [end.sink for end in ends if isinstance(end, Write)]
    for node in walk(ends):
        sinks += [getattr(node, name, None) for name in ("late", "late_right", "dead_letter")]
    return [sink for sink in sinks if isinstance(sink, Sink)]


def _letters_to(node: Read) -> str:
    """Returns the name of the topic or sink of a stream's dead letters."""
    given = node.dead_letter
    return f"topic {dead_letter_topic(given, node.name)}" if isinstance(given, str) else f"sink {given.name}"
