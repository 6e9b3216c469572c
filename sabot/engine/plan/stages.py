"""A plan, with its stages and queries about them. `planner` makes it."""

from collections.abc import Callable, Collection, Iterable

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.agent import AgentSpec
from sabot.base.dataclass import dataclass
from sabot.base.quantities import span_words
from sabot.connectors.base import Sink
from sabot.connectors.places import Place
from sabot.engine.operators.base import Operator, OperatorContext, SecondInput, branch_schema
from sabot.engine.operators.layout.stages import Edge, Reading, Stage, Step, column_types
from sabot.errors import UserError


@dataclass
class Plan:
    """The stages of a program, upstream before downstream; those of agents come last."""

    stages: list[Stage]

    def before_first(self) -> set[str]:
        """Returns the ids of the stages whose rows must be read first: sources of other stages wait for them
        (`Edge.first`).
        """
        stages = [stage for stage in self.stages if any(edge.first for edge in stage.edges())]
        return {stage.id for stage in stages}.union(*map(self.before, stages))

    def before(self, stage: Stage) -> set[str]:
        """Returns the ids of all stages whose rows reach this one, directly or through other stages."""
        found: set[str] = set()
        wanted = [stage]
        while wanted:
            target = wanted.pop()
            for each in self.stages:
                if each.id not in found and any(edge.target is target for edge in each.edges()):
                    found.add(each.id)
                    wanted.append(each)
        return found

    def leading_to(self, ids: Collection[str]) -> tuple[set[str], set[str]]:
        """Returns the ids of the stages, and those of the steps, through which rows reach one of these steps, with the steps
        themselves.
        """
        stages: set[str] = set()
        steps = set(ids)

        def leads(targets: list[Step | Edge]) -> bool:
            found = False
            for target in targets:
                if isinstance(target, Edge):
                    found |= target.target.id in stages
                    continue
                inside = [leads(each) for each in (target.targets, *target.branches.values())]
                if any(inside) or target.id in ids:
                    steps.add(target.id)
                    found = True
            return found

        before = -1
        while len(stages) > before:
            before = len(stages)
            stages.update(stage.id for stage in self.stages if leads(stage.targets))
        return stages, steps

    def up_to(self, ids: Collection[str], sink: Callable[[str], Sink]) -> "Plan":
        """Returns the part of the plan through which rows reach these steps. It has no other sinks than those of dead letters,
        which `sink` makes by their names, and reads no source more slowly than another. Changes this plan.
        """
        stages, steps = self.leading_to(ids)

        def kept(targets: list[Step | Edge]) -> list[Step | Edge]:
            found: list[Step | Edge] = []
            for target in targets:
                if isinstance(target, Edge):
                    found += [target] if target.target.id in stages else []
                elif target.id in steps:
                    target.targets = kept(target.targets)
                    target.branches = {name: left for name, each in target.branches.items() if (left := kept(each))}
                    found.append(target)
            return found

        letters: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.id in stages:
                stage.targets, stage.aligned = kept(stage.targets), None
                if stage.dead_letters is not None:
                    target = stage.dead_letters.target
                    assert target.sink is not None
                    name = target.sink[0] if isinstance(target.sink[0], str) else target.sink[0].name
                    target.sink, target.delivery = (sink(name), None), None
                    letters[target.id] = target
        return Plan([*(stage for stage in self.stages if stage.id in stages), *letters.values()])

    def aligned(self, stage: Stage) -> list[Stage]:
        """Returns the stages whose sources are read at about the same event time because a step of this stage
        requires it (`Aligned`).

        A bounded source for which other sources wait is left out: it is read as fast as possible.
        """
        if stage.aligned is None:
            return []
        as_they_come = self.before_first()
        found = [(each, each.reading) for each in self.stages if each.reading is not None and each.reading.timed]
        return [
            each
            for each, reading in found
            if reading.node in stage.aligned.sources and not (reading.node.bounded and each.id in as_they_come)
        ]

    def check(self) -> None:
        """Opens and closes every operator whose columns are known. Raises UserError for names and types that do not fit."""
        self.schemas()

    def schemas(
        self,
        look: Callable[[Stage, Step, Operator, OperatorContext], None] | None = None,
        along: Callable[[Edge, pa.Schema], None] | None = None,
    ) -> dict[str, pa.Schema]:
        """Returns the columns that come into each stage, by its id, as far as they are known. Opens and closes every
        operator. Raises UserError for names and types that do not fit.

        `look`: called with every operator while it is open, and with its context. `along`: called with every edge and
        its columns, except edges of dead letters.
        """
        schemas: dict[str, pa.Schema] = {}
        rights: dict[str, pa.Schema] = {}

        def visit(stage: Stage, targets: list[Step | Edge], schema: pa.Schema) -> None:
            for target in targets:
                if isinstance(target, Edge):
                    if along is not None:
                        along(target, schema)
                    known = (rights if target.right else schemas).setdefault(target.target.id, schema)
                    if target.target.sink is None:
                        check_alike(known, schema)
                    continue
                operator = target.make()
                two_inputs = isinstance(operator, SecondInput)
                if two_inputs and stage.id not in rights:
                    continue
                context = OperatorContext(schema, right=rights[stage.id] if two_inputs else None)
                context.branches.update(dict.fromkeys(target.branches, _nowhere))
                try:
                    columns = operator.open(context)
                    if look is not None:
                        look(stage, target, operator, context)
                    beside = {name: branch_schema(operator, name, schema) for name in target.branches}
                finally:
                    operator.close()
                visit(stage, target.targets, columns)
                for name, side in target.branches.items():
                    visit(stage, side, beside[name])

        for stage in self.stages:
            if stage.agent is not None:  # only the agent's function knows what becomes of its rows
                continue
            reading = stage.reading
            schema = schemas.get(stage.id) if reading is None else reading.rows
            if schema is not None:
                visit(stage, stage.targets, schema)
        return schemas

    def text(self) -> str:
        """Returns a description of the plan for people: the input, the steps and the outputs of each stage."""
        lines: list[str] = []
        for stage in self.stages:
            if stage.agent is not None:
                lines += _of_agent(stage.agent)
                _describe(stage.targets, "  ", lines)
                continue
            lines.append(f"stage {stage.id}" + (f"  x{stage.parallelism}" if stage.parallelism > 1 else ""))
            if stage.reading is not None:
                lines.append(f"  read {stage.reading.node.name}: {reading_text(stage.reading)}")
            if stage.sink is not None:
                sink, key = stage.sink
                name = sink if isinstance(sink, str) else sink.name
                lines.append(f"  write {name}" + ("" if key is None else f", key {key}"))
            if stage.aligned is not None and (read := self.aligned(stage)):
                names = ", ".join(dict.fromkeys(each.reading.node.name for each in read if each.reading is not None))
                lines.append(f"  {names}: read at most {span_words(stage.aligned.max_drift_ms)} apart (max_drift)")
            _describe(stage.targets, "  ", lines)
        return "\n".join(lines)


def _nowhere(batch: Batch) -> None:
    """Drops the rows of a branch of an operator that is opened only to learn its columns."""


def check_alike(one: pa.Schema, other: pa.Schema) -> None:
    """Raises UserError if streams that a union joins have different columns."""
    if column_types(one) != column_types(other):
        first, second = (", ".join(f"{name}: {kind}" for name, kind in column_types(each)) for each in (one, other))
        raise UserError(
            f"union: the streams have different columns: {first} and {second}",
            hint="select the same columns, in the same order, with the same types",
        )


def reading_text(reading: Reading) -> str:
    """Returns the columns that are read of a source, its event time, and where reading ends, for people."""
    columns = "all columns" if reading.columns is None else ", ".join(reading.columns) or "no columns"
    by = reading.node.time_text
    time = f"; event time from {by or 'the records'}" if reading.timed else f"; {by} is not null" if by else ""
    return columns + time + _up_to(reading.node.until)


def _up_to(until: Place | None) -> str:
    return "" if until is None else f"; until {until}"


def _of_agent(spec: AgentSpec) -> list[str]:
    """Returns the lines for an agent: its topics and sinks, without other agents and streams."""
    lines = [f"agent {spec.agent_id}"]
    lines += [f"  read {topic}{_up_to(spec.until)}" for topic in spec.topics]
    return [*lines, *(f"  write {name}" for name in spec.sinks)]


def _describe(targets: Iterable[Step | Edge], indent: str, lines: list[str]) -> None:
    for target in targets:
        if isinstance(target, Edge):
            how = "" if target.keys is None else f" by key group of {', '.join(target.keys)}"
            how += ", all rows to each subtask" if target.everywhere else ""
            how += ", changes" if target.changes else ""
            how += ", before all others" if target.first else ""
            kind = "stage" if target.target.agent is None else "agent"
            lines.append(f"{indent}-> {kind} {target.target.id}{' (right)' if target.right else ''}{how}")
        else:
            lines.append(f"{indent}{target.text}")
            for name, side in target.branches.items():
                lines.append(f"{indent}  {name}:")
                _describe(side, indent + "    ", lines)
            _describe(target.targets, indent if len(target.targets) < 2 else indent + "  ", lines)
