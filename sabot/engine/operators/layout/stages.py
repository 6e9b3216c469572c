"""The parts of a plan: stages, which are chains of operators that run in one thread, and the edges between them.

A stage ends where rows must change threads: before keyed work with more than one subtask (a row goes to the subtask
that owns its key group), before a step of two inputs, before a union, and before a sink. All other steps are one
chain of plain calls. A chain may fork; it never joins.
"""

from collections.abc import Callable
from dataclasses import field

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.read import Read
from sabot.base.dataclass import dataclass
from sabot.codecs.base import Format
from sabot.connectors.base import Delivery, OnNan, Sink
from sabot.engine.operators.base import Operator, StepInfo, with_marks

HINT_OF_MANY_STEPS = (
    "steps in a row call one another, some 200 at most: write what comes in the middle to a topic or a file, and read it "
    "in a program of its own"
)
"""The hint of errors of a program that has more steps in a row than Python allows calls one in another."""


@dataclass(eq=False)
class Edge:
    """A connection from a chain to another stage, over which rows are sent.

    `keys`: the columns whose key group decides which subtask gets a row, or None if the stage has one subtask.
    `right`: True if the rows are the second input of the stage. `everywhere`: True if each subtask gets all rows.
    `straight`: True if rows of a subtask are sent to the subtask with the same number; if the stages differ in
    parallelism, batches are sent to the subtasks in turn. `timeless`: True if no event time is passed on, because the
    rows have none, as dead letters, or because the stage does not use it. `first`: the sources that must wait: they
    are not read until this edge has delivered all rows that its own sources had at the start. `changes`: True if the
    rows are changes.
    """

    target: "Stage"
    keys: tuple[str, ...] | None = None
    right: bool = False
    everywhere: bool = False
    straight: bool = False
    timeless: bool = False
    first: frozenset[Read] = frozenset()
    changes: bool = False


@dataclass(eq=False)
class Step(StepInfo):
    """One operator of a chain.

    `make`: returns a new operator; called for each subtask. `targets`: the steps and edges to which its rows go.
    `branches`: the targets of its output branches, by name. `by_time`: True if a result behind the step depends on
    event time. `scattered`: True if rows may come to any subtask although state is restored by key group.
    """

    make: Callable[[], Operator] = field(kw_only=True)
    targets: list["Step | Edge"] = field(default_factory=list)
    branches: dict[str, list["Step | Edge"]] = field(default_factory=dict)
    by_time: bool = False
    scattered: bool = False


@dataclass(eq=False)
class Reading:
    """The way a source is read.

    `columns`: the columns that are decoded, or None for all. `timed`: True if rows get TIME_COLUMN as their last
    column. `closing`: for an idle source, a function from the greatest event time of its rows to the watermark that
    closes their windows; None if idleness closes no windows. `most_rows`: the most rows of a batch, or None for the usual number.
    """

    node: Read
    columns: tuple[str, ...] | None
    timed: bool
    closing: Callable[[int], int] | None = None
    most_rows: int | None = None

    @property
    def schema(self) -> pa.Schema | None:
        """The columns that are decoded, or None if they are unknown before the first records."""
        known = self.node.columns
        if known is None or self.columns is None:
            return known
        return pa.schema([known.field(name) for name in self.columns])

    @property
    def rows(self) -> pa.Schema | None:
        """The columns that go down the chain, or None if they are unknown. All may be null: a record with a null that
        its schema forbids is a dead letter.
        """
        if self.schema is None:
            return None
        return with_marks(pa.schema(column_types(self.schema)), op=self.node.table is not None, timed=self.timed)


@dataclass(frozen=True)
class Aligned:
    """A group of sources. No partition of them is read more than `max_drift_ms` of event time ahead of another."""

    sources: frozenset[Read]
    max_drift_ms: int


@dataclass(eq=False)
class Stage:
    """A chain with its input: a source (`reading`), or the edges of other stages.

    The stage of a sink (`sink`) has no steps. The stage of an agent (`agent`) has none either: all agents of an app
    run in one task on the event loop, and each has a stage in the plan.
    """

    id: str
    parallelism: int
    reading: Reading | None = None
    sink: tuple[str | Sink, str | None] | None = None  # (topic or Sink, the column that is the key)
    agent: AgentSpec | None = None
    delivery: Delivery = None  # the delivery that the user has chosen, or None for the default of the sink
    nan: OnNan = None  # the policy for floats that the sink's format cannot represent
    format: Format | None = None  # the format of rows in a topic, or None if no writer has given one
    changes: tuple[str, ...] | None = None  # the key of the changes that the sink gets, or None if it gets no changes
    # For each stream that a sink gets: its path (`plan.paths`), and its columns and filters since the last step with state, as text.
    fed: list[tuple[str, str]] = field(default_factory=list)
    targets: list[Step | Edge] = field(default_factory=list)
    aligned: "Aligned | None" = None  # the sources that are read at about the same event time for this stage
    dead_letters: Edge | None = None  # for records and rows of the chain that cannot be processed
    refused: str | Sink | None = None  # of a sink: the topic or Sink for rows that its receiver refuses
    by_time: bool = True  # True if a result, here or later, depends on the position of watermarks among rows

    @property
    def gathers(self) -> bool:
        """True if the stage's tasks wait for more rows when a batch is small. They do if the stage has several tasks,
        no result depends on the position of watermarks among rows, and the stage is not that of a sink.
        """
        return self.parallelism > 1 and not self.by_time and self.sink is None

    def steps(self) -> list[Step]:
        """Returns all steps of the chain, upstream before downstream."""
        found: list[Step] = []

        def visit(targets: list[Step | Edge]) -> None:
            for target in targets:
                if isinstance(target, Step):
                    found.append(target)
                    visit(target.targets)
                    for branch in target.branches.values():
                        visit(branch)

        visit(self.targets)
        return found

    def edges(self) -> list[Edge]:
        """Returns all edges that leave the chain, except that of dead letters."""
        steps = self.steps()
        targets = [*self.targets, *(target for step in steps for target in step.targets)]
        targets += [target for step in steps for branch in step.branches.values() for target in branch]
        return [target for target in targets if isinstance(target, Edge)]


def column_types(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """Returns the names and types of the columns, in order. They must be equal in streams that are joined by a union."""
    return [(field.name, field.type) for field in schema]
