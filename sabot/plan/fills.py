"""How rows of a table that a step keeps get to a step behind it: by these a start fills state that has not seen the rows that came before.

    upsert by id ──▶ filter ──▶ | by key group of maker | ──▶ with columns ──▶ group by maker
      the maker                     an edge                                      is filled

The way must lead over single rows alone. What is filled, `against` decides; `runtime.filling` does it.
"""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass

from sabot.operators.layout.stages import Edge, Stage, Step
from sabot.plan.stages import Plan


@dataclass(frozen=True)
class Way:
    """The way of rows from the step that keeps them to a step behind it. through: the steps and edges between, in order."""

    maker: Step
    through: tuple[Step | Edge, ...]


@dataclass(frozen=True)
class _Place:
    """Where a step or an edge stands: in which stage, and behind which step of its chain; None: it is the first."""

    stage: Stage
    behind: Step | None


def ways(plan: Plan, keeping: Container[str]) -> dict[str, list[Way | None]]:
    """Returns, by the id of a step with changes, the way to it from the maker of the changes of each input.

    None: there is no one way, or it does not lead over single rows alone. keeping: the ids of the steps that keep state.
    """
    places: dict[int, _Place] = {}
    into: dict[tuple[str, bool], list[Edge]] = defaultdict(list)
    steps: list[Step] = []

    def visit(stage: Stage, targets: list[Step | Edge], behind: Step | None) -> None:
        for target in targets:
            places[id(target)] = _Place(stage, behind)
            if isinstance(target, Edge):
                into[target.target.id, target.right].append(target)
            else:
                steps.append(target)
                visit(stage, target.targets, target)

    for stage in plan.stages:
        visit(stage, stage.targets, None)

    def way_to(step: Step, maker: str, right: bool) -> Way | None:
        through: list[Step | Edge] = []
        here: Step | Edge = step
        while True:
            place = places[id(here)]
            if place.behind is None:
                edges = into[place.stage.id, right]
                if len(edges) != 1:
                    return None
                here, right = edges[0], False
                through.insert(0, here)
                place = places[id(here)]
                if place.behind is None:
                    return None
            here = place.behind
            if here.id == maker:
                return Way(here, tuple(through))
            if here.id in keeping:
                return None
            through.insert(0, here)

    found: dict[str, list[Way | None]] = {}
    for step in steps:
        if step.lineage:
            makers = [sorted({each["from"] for each in lineages}) for lineages in step.lineage]
            found[step.id] = [
                way_to(step, names[0], number == 1) if len(names) == 1 else None for number, names in enumerate(makers)
            ]
    return found
