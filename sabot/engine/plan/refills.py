"""Decides how steps that the user wants to refill get the rows so far: from the tables above them, or from their topics, which are
then read once more.

    topic cars ──▶ upsert by id ──▶ group by maker: max(seats)

`--refill` of the upsert reads the topic again, up to the positions of the checkpoint. That of the group needs no topic, because the
upsert keeps the rows: the group begins anew, and is filled from the upsert's table (`continuity`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sabot.base.dataclass import dataclass
from sabot.engine.operators.base import Operator, OperatorContext, WaitsForCalls
from sabot.engine.operators.layout.stages import Stage, Step
from sabot.engine.plan.fills import Way, ways_into
from sabot.engine.plan.stages import Plan
from sabot.engine.plan.standing import name_of_sink
from sabot.engine.plan.verdicts import Planned, steps_of_tables
from sabot.errors import UserError


@dataclass(frozen=True)
class Refill:
    """The steps to refill at a start.

    `tables`: the steps that begin anew and are filled from the tables above them, as after `--drop`. `topics`: the steps that are
    computed again from their topics. `replayed`: these, and all steps with state before them, whose state is computed again too.
    `sources`: the names of the topics and sources that are read once more.
    """

    tables: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    replayed: frozenset[str] = frozenset()
    sources: tuple[str, ...] = ()

    def left_to_drop(self, drop: Collection[str]) -> frozenset[str]:
        """Returns those names in `drop` whose state is not computed again anyway."""
        gone = [(each, f"{each}.") for each in self.replayed]
        return frozenset(name for name in drop if not any(name == id or name.startswith(part) for id, part in gone))


def refill_of(plan: Plan, operators: Sequence[Planned], names: Collection[str]) -> Refill:
    """Returns how the steps with these names are refilled. Raises UserError for a name that is no step with state, and for a step
    whose rows cannot be computed again.

    `operators`: those of the plan that keep state.
    """
    known = {each.id: each for each in operators}
    if unknown := sorted(set(names) - known.keys()):
        raise UserError(
            f"--refill {unknown[0]}: the program has no step of that name that keeps state",
            hint=f"there are {', '.join(known)}" if known else "nothing in it keeps state",
        )
    tables = frozenset(name for name in names if _fills(known[name], known))
    stages, steps = plan.leading_to(frozenset(names) - tables)
    tables -= steps  # those before a step that is computed again from its topics are computed again with it
    topics = frozenset(names) - tables
    _check(plan, stages, steps, sorted(topics))
    sources = (stage.reading.node.name for stage in plan.stages if stage.id in stages and stage.reading is not None)
    return Refill(tables, topics, frozenset(steps & known.keys()), tuple(dict.fromkeys(sources)))


def _fills(step: Planned, known: Mapping[str, Planned]) -> bool:
    """Returns True if the tables above the step have all rows that it needs."""
    if step.unfit is None or step.unfit(frozenset()) or not any(step.lineage):
        return False
    return all(_has_rows(step, number, lineages, known) for number, lineages in enumerate(step.lineage))


def _has_rows(step: Planned, number: int, lineages: Sequence[Any], known: Mapping[str, Planned]) -> bool:
    if not lineages:
        return number == 0 and step.keeps_copy
    way = step.ways[number] if number < len(step.ways) else None
    return way is not None and known[way.maker.id].gives_table


def _check(plan: Plan, stages: Collection[str], steps: Collection[str], names: Sequence[str]) -> None:
    """Raises UserError if a step on the way from the topics to `names` cannot process its rows a second time."""
    said = ", ".join(names)
    for stage in plan.stages:
        if stage.agent is not None and stage.id in stages:
            raise UserError(
                f"--refill {said}: its rows come from agent {stage.id}, whose calls would be made again",
                hint="write the results of the agent into a topic, and read that topic",
            )

    def look(stage: Stage, step: Step, operator: Operator, context: OperatorContext) -> None:
        if step.id in steps and isinstance(operator, WaitsForCalls):
            raise UserError(
                f"--refill {said}: its rows pass {step.text}, whose calls would be made again",
                hint="write the answers into a topic, and read that topic",
            )

    if names:
        plan.schemas(look)


def reemit_of(plan: Plan, operators: Sequence[Planned], names: Collection[str]) -> dict[str, list[Way]]:
    """Returns, by the id of the stage of each of these sinks, the paths from the steps that keep the tables which are
    written into it. Raises UserError for a name that is no sink of a table, and for a table that no step keeps.
    """
    if not names:
        return {}
    known = {each.id: each for each in operators}
    tables = _tables(plan)
    names = set(names)
    for topic, step in steps_of_tables(operators).items():
        if topic in names - tables.keys():  # all sinks of this table
            fed = {sink for sink, stage in tables.items() if step in _makers(ways_into(plan, stage, known))}
            names = names - {topic} | fed if fed else names
    if unknown := sorted(set(names) - tables.keys()):
        raise UserError(
            f"--reemit {unknown[0]}: the program writes no table into a sink of that name",
            hint=f"the tables are written into {', '.join(tables)}"
            if tables
            else "only changes (.upsert(…)) are a table",
        )
    found: dict[str, list[Way]] = {}
    for name in sorted(names):
        ways, makers = _kept(plan, tables[name], known)
        if makers or None in ways:
            said = f"{' and '.join(makers)}, which keeps no table" if makers else "steps that keep no table"
            raise UserError(
                f"--reemit {name}: its rows are the results of {said}",
                hint="a join over tables emits all of its results when it is filled again: --drop NAME",
            )
        found[tables[name].id] = [way for way in ways if way is not None]
    return found


def kept_tables(plan: Plan, operators: Sequence[Planned]) -> list[str]:
    """Returns the names of the sinks whose tables are kept, so that they can be written again (`reemit_of`)."""
    known = {each.id: each for each in operators}
    kept = {name: _kept(plan, stage, known) for name, stage in _tables(plan).items()}
    return [name for name, (ways, makers) in kept.items() if not makers and None not in ways]


def _tables(plan: Plan) -> dict[str, Stage]:
    return {name_of_sink(stage): stage for stage in plan.stages if stage.sink is not None and stage.changes is not None}


def _kept(plan: Plan, sink: Stage, known: Mapping[str, Planned]) -> tuple[list[Way | None], list[str]]:
    """Returns the paths of the streams that are written into a sink, and the ids of the steps at their beginnings that keep
    no table.
    """
    ways = ways_into(plan, sink, known)
    return ways, sorted(maker for maker in _makers(ways) if not known[maker].gives_table)


def _makers(ways: Sequence[Way | None]) -> set[str]:
    return {way.maker.id for way in ways if way is not None}
