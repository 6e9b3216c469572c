"""The stages of a plan while they are built, and the channels between their tasks, within a process and to other
processes.
"""

from collections.abc import Callable
from dataclasses import field

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import IDLE, Channel
from sabot.base.dataclass import dataclass
from sabot.engine.plan import Edge, Plan, Stage, check_alike, column_types
from sabot.engine.runtime.tasks.chain import Output
from sabot.engine.runtime.tasks.placement import TaskPlacement
from sabot.engine.runtime.tasks.task import StreamTask


@dataclass
class BuiltStage:
    """A stage with its tasks."""

    stage: Stage
    # By subtask: those that run in this process.
    tasks: dict[int, StreamTask]
    # By subtask: its input channels.
    gates: list[list[Channel]] = field(default_factory=list)
    # By subtask: the numbers of the channels that belong to the second input.
    right: list[set[int]] = field(default_factory=list)
    # By subtask: the numbers of the channels that must be complete before sources of the other channels are read (`GateInput`).
    first: list[set[int]] = field(default_factory=list)
    schema: pa.Schema | None = None  # the columns of its input
    right_schema: pa.Schema | None = None
    coming: list[pa.Schema] = field(default_factory=list)  # for a sink: the columns of each stream that it receives
    by_agents: bool = False  # agents write this sink too

    @property
    def mixed(self) -> bool:
        """True for a sink that receives rows with different columns."""
        return self.by_agents or any(not schema.equals(self.coming[0]) for schema in self.coming)

    def note_columns(self, edge: Edge, schema: pa.Schema | None) -> None:
        """Records the columns of the rows that come along an edge. `schema`: None if the stage need not know them."""
        if edge.right:
            self.right_schema = schema
        elif schema is not None:
            if self.stage.sink is not None:
                self.coming.append(schema)
            if self.schema is None:
                self.schema = schema
            elif self.stage.sink is None and not self.schema.equals(schema):
                # The inputs of a union may differ in which columns are nullable.
                check_alike(self.schema, schema)
                self.schema = pa.schema(column_types(schema))


@dataclass(frozen=True)
class DeadLetterOutput:
    """An output for the dead letters of a task. `topic`: the topic that the task reads, or "" if it reads none."""

    output: Output
    topic: str

    def __call__(self, records: pa.RecordBatch) -> None:
        self.output.put(Batch(records, None, self.topic))


class Branch:
    """An output for rows that leave an operator by a branch, such as late rows. `receive` is set once the operator is
    open: the function that gets these rows.
    """

    receive: Callable[[Batch], None]

    def __call__(self, batch: Batch) -> None:
        self.receive(batch)


# The capacity in rows of a channel to another process. It is small, because a barrier has to follow all rows before it: those in this
# channel, those in the channel of the other process, and about as many between the two processes.
_LEAVING_ROWS = 8_192


class Edges:
    """A maker of the channels between tasks. If two tasks are in different processes, their edge has a channel in
    each process, both with the same name.
    """

    def __init__(self, plan: Plan, stages: dict[str, BuiltStage], placement: TaskPlacement) -> None:
        self._stages = stages
        self._placement = placement
        self._tell = plan.before_first()  # ids of the stages that pass COMPLETE on
        self._columns: dict[Edge, pa.Schema] = {}
        self._own: dict[str, list[int]] = {}
        if not placement.whole:  # operators of tasks elsewhere are not opened here, so their columns are unknown
            plan.schemas(along=self._columns.__setitem__)

    def tells(self, stage: Stage) -> bool:
        """Returns True if the tasks of the stage pass on the mark COMPLETE. It says that all rows that the sources
        had at the start have been read.
        """
        return stage.id in self._tell

    def output(self, edge: Edge, stage: Stage, task: str, schema: pa.Schema | None) -> Output:
        """Makes the channels from the task of this name to the subtasks of the edge's target. `schema`: the columns of the rows,
        or None if the target need not know them.
        """
        built = self._stages[edge.target.id]
        built.note_columns(edge, schema)
        channels = []
        for number in self._targets(edge, stage, int(task.rsplit("/", 1)[1])):
            target = f"{edge.target.id}/{number}"
            name = f"{task} to {target}"
            if self._placement.is_here(target):
                channel = Channel(name=name)
                self._enters(channel, edge, number)
            else:
                channel = Channel(capacity_rows=_LEAVING_ROWS, name=name)
                self._placement.leaves(self._name(edge, stage, task, target), channel, target)
            channels.append(channel)
        return Output(
            channels,
            edge.keys or (),
            target=edge.target.id,
            right=edge.right,
            everywhere=edge.everywhere,
            in_turn=edge.straight,
            last=built.stage.sink is not None or built.stage.agent is not None,
            tells=bool(edge.first) or edge.target.id in self._tell,
            timeless=edge.timeless,
        )

    def from_elsewhere(self, stage: Stage, own: int) -> None:
        """Makes the channels of this process for rows from task number `own` of a stage, which runs in another
        process.
        """
        task = f"{stage.id}/{own}"
        for edge in _all_edges(stage):
            self._stages[edge.target.id].note_columns(edge, self._columns.get(edge))
            for number in self._here(edge.target.id):
                if number in self._targets(edge, stage, own):
                    target = f"{edge.target.id}/{number}"
                    channel = Channel(name=f"{task} to {target}")
                    self._placement.arrives(self._name(edge, stage, task, target), channel)
                    self._enters(channel, edge, number)

    def _targets(self, edge: Edge, stage: Stage, own: int) -> range:
        """Returns the numbers of the target's subtasks to which subtask `own` of the stage sends rows."""
        count = len(self._stages[edge.target.id].gates)
        return range(own, own + 1) if edge.straight and count == stage.parallelism else range(count)

    def _here(self, stage: str) -> list[int]:
        """Returns the numbers of the stage's subtasks that run in this process. The result is cached, because each
        task of every other process asks for it.
        """
        if stage not in self._own:
            numbers = range(len(self._stages[stage].gates))
            self._own[stage] = [number for number in numbers if self._placement.is_here(f"{stage}/{number}")]
        return self._own[stage]

    def _enters(self, channel: Channel, edge: Edge, number: int) -> None:
        built = self._stages[edge.target.id]
        gate = built.gates[number]
        if edge.right:
            built.right[number].add(len(gate))
        if edge.first:
            built.first[number].add(len(gate))
        if edge.timeless:
            channel.put_nowait(IDLE)
        gate.append(channel)

    def _name(self, edge: Edge, stage: Stage, task: str, target: str) -> str:
        """Returns the name of an edge between two tasks. Several edges between the same two tasks are told apart by
        their position in the plan, which is the same in every process.
        """
        return f"{task}.{_all_edges(stage).index(edge)}>{target}"


def _all_edges(stage: Stage) -> list[Edge]:
    return [*stage.edges(), *([] if stage.dead_letters is None else [stage.dead_letters])]


def stage_of(task: str) -> str:
    """Returns the id of the stage of a task."""
    return task.rsplit("/", 1)[0]
