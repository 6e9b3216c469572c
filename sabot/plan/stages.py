"""A plan: stages, which are chains of operators that run in one thread, and the edges between them. `planner` makes it.

A stage ends where rows must change threads: before keyed work with more than one subtask (rows go to the owner of their key
group), before a step of two inputs, a union, a sink. Everything else is fused: plain calls within a chain. A chain may fork; it
never joins.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from sabot._cython.batch import Batch
from sabot.api.nodes import Read
from sabot.connectors.base import Delivery, Sink
from sabot.errors import UserError
from sabot.operators.base import Operator, OperatorContext, with_marks

__all__ = ["Edge", "Plan", "Reading", "Stage", "Step", "check_alike", "column_types"]


@dataclass(eq=False)
class Edge:
    """Rows of a chain go to another stage. keys: to the owner of the key group of these columns; None: all to its one subtask.

    right: they are the second input of the stage. everywhere: all of them go to each subtask. straight: those of a subtask stay with the
    one of the same number; where these are more or fewer, batches go to them in turn. changes: they are not an append stream.
    timeless: they have no event time, and do not hold it back. first: what comes by other edges is not read before they have ended.
    """

    target: "Stage"
    keys: tuple[str, ...] | None = None
    right: bool = False
    everywhere: bool = False
    straight: bool = False
    timeless: bool = False
    first: bool = False
    changes: bool = False


@dataclass(eq=False)
class Step:
    """One operator of a chain. `make` gives a new one for each subtask; `targets` is where its rows go, `sides` where some go beside."""

    id: str
    text: str
    make: Callable[[], Operator]
    targets: list["Step | Edge"] = field(default_factory=list)
    sides: dict[str, list["Step | Edge"]] = field(default_factory=dict)
    named: bool = False  # the user gave the id
    path: str = ""  # stands for all steps before it, back to the sources
    scattered: bool = False  # rows come to any subtask; what is restored is dealt out by key group all the same


@dataclass(eq=False)
class Reading:
    """How a source is read: `columns` are decoded (None: all), event time is put beside them if `timed`."""

    node: Read
    columns: tuple[str, ...] | None
    timed: bool
    dead_letters: Edge | None = None

    @property
    def schema(self) -> pa.Schema | None:
        """Of what is decoded; None: not known before the first records."""
        known = self.node.schema
        if known is None or self.columns is None:
            return known
        return pa.schema([known.field(name) for name in self.columns])

    @property
    def rows(self) -> pa.Schema | None:
        """The columns that go down the chain. Any of them may be null: what must not be was set apart."""
        if self.schema is None:
            return None
        return with_marks(pa.schema(column_types(self.schema)), op=self.node.table is not None, timed=self.timed)


@dataclass(eq=False)
class Stage:
    """A chain with what feeds it: a source (`reading`), the edges of other stages, or for a sink (`sink`) both of them and no steps."""

    id: str
    parallelism: int
    reading: Reading | None = None
    sink: tuple[str | Sink, str | None] | None = None  # (topic or Sink, the column that is the key)
    delivery: Delivery = None  # of the sink; None: what suits it
    changes: tuple[str, ...] | None = None  # of the sink: the key of the changes that it gets; None: it gets none
    targets: list[Step | Edge] = field(default_factory=list)

    def steps(self) -> list[Step]:
        """All operators of the chain, those upstream first."""
        found: list[Step] = []

        def visit(targets: list[Step | Edge]) -> None:
            for target in targets:
                if isinstance(target, Step):
                    found.append(target)
                    visit(target.targets)
                    for side in target.sides.values():
                        visit(side)

        visit(self.targets)
        return found

    def edges(self) -> list[Edge]:
        """All that leave the chain, dead letters aside."""
        steps = self.steps()
        targets = [*self.targets, *(target for step in steps for target in step.targets)]
        targets += [target for step in steps for side in step.sides.values() for target in side]
        return [target for target in targets if isinstance(target, Edge)]


@dataclass
class Plan:
    """Stages, upstream before downstream."""

    stages: list[Stage]

    def reads_of(self, stage: Stage) -> set[Read]:
        """What is read for the inputs of a stage but those that come first."""
        found: set[Read] = set()
        seen: set[str] = set()
        wanted = [(stage, False)]
        while wanted:
            target, whole = wanted.pop()
            for each in self.stages:
                edges = [edge for edge in each.edges() if edge.target is target and (whole or not edge.first)]
                if edges and each.id not in seen:
                    seen.add(each.id)
                    wanted.append((each, True))
                    if each.reading is not None:
                        found.add(each.reading.node)
        return found

    def check(self) -> None:
        """Opens every operator whose columns are known, and closes it again. Raises UserError for names and types that do not fit."""
        self.schemas()

    def schemas(self, look: Callable[[Stage, Step, Operator], None] | None = None) -> dict[str, pa.Schema]:
        """By the id of a stage, the columns that come into it, as far as they are known. Raises what `check` raises.

        look: is shown every operator, open.
        """
        schemas: dict[str, pa.Schema] = {}
        rights: dict[str, pa.Schema] = {}

        def visit(stage: Stage, targets: list[Step | Edge], schema: pa.Schema) -> None:
            for target in targets:
                if isinstance(target, Edge):
                    known = (rights if target.right else schemas).setdefault(target.target.id, schema)
                    if target.target.sink is None:
                        check_alike(known, schema)
                    continue
                operator = target.make()
                if operator.inputs == 2 and stage.id not in rights:
                    continue
                context = OperatorContext(schema, right=rights[stage.id] if operator.inputs == 2 else None)
                context.side.update(dict.fromkeys(target.sides, _nowhere))
                try:
                    columns = operator.open(context)
                    if look is not None:
                        look(stage, target, operator)
                    beside = {name: operator.side_schema(name, schema) for name in target.sides}
                finally:
                    operator.close()
                visit(stage, target.targets, columns)
                for name, side in target.sides.items():
                    visit(stage, side, beside[name])

        for stage in self.stages:
            reading = stage.reading
            schema = schemas.get(stage.id) if reading is None else reading.rows
            if schema is not None:
                visit(stage, stage.targets, schema)
        return schemas

    def text(self) -> str:
        """For people: what each stage reads, does, and sends where."""
        lines: list[str] = []
        for stage in self.stages:
            lines.append(f"stage {stage.id}" + (f"  x{stage.parallelism}" if stage.parallelism > 1 else ""))
            if stage.reading is not None:
                reading = stage.reading
                columns = "all columns" if reading.columns is None else ", ".join(reading.columns) or "no columns"
                by = reading.node.time
                time = (
                    f"; event time from {by or 'the records'}" if reading.timed else f"; {by} is not null" if by else ""
                )
                lines.append(f"  read {reading.node.name}: {columns}{time}")
            if stage.sink is not None:
                sink, key = stage.sink
                name = sink if isinstance(sink, str) else sink.name
                lines.append(f"  write {name}" + ("" if key is None else f", key {key}"))
            _describe(stage.targets, "  ", lines)
        return "\n".join(lines)


def _nowhere(batch: Batch) -> None:
    """For an operator that is opened to be asked for its columns."""


def column_types(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """What must be alike where streams meet: names and types, in order."""
    return [(field.name, field.type) for field in schema]


def check_alike(one: pa.Schema, other: pa.Schema) -> None:
    """Raises UserError where streams of different columns would meet."""
    if column_types(one) != column_types(other):
        first, second = (", ".join(f"{name}: {kind}" for name, kind in column_types(each)) for each in (one, other))
        raise UserError(
            f"union: the streams have different columns: {first} and {second}",
            hint="select the same columns, in the same order, with the same types",
        )


def _describe(targets: Iterable[Step | Edge], indent: str, lines: list[str]) -> None:
    for target in targets:
        if isinstance(target, Edge):
            how = "" if target.keys is None else f" by key group of {', '.join(target.keys)}"
            how += ", all rows to each subtask" if target.everywhere else ""
            how += ", changes" if target.changes else ""
            how += ", before all others" if target.first else ""
            lines.append(f"{indent}-> stage {target.target.id}{' (right)' if target.right else ''}{how}")
        else:
            lines.append(f"{indent}{target.text}")
            for name, side in target.sides.items():
                lines.append(f"{indent}  {name}:")
                _describe(side, indent + "    ", lines)
            _describe(target.targets, indent if len(target.targets) < 2 else indent + "  ", lines)
