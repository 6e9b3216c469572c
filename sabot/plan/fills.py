"""Finds the path of rows from a step that keeps a table to a later step. Along this path a start fills state that has
not seen the table's rows.

    upsert by id ──▶ filter ──▶ | by key group of maker | ──▶ with columns ──▶ group by maker
      the maker                     an edge                                      is filled

All steps on the path must handle each row by itself. `against` decides what is filled, and `runtime.filling` fills
it.
"""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass

from sabot.operators.layout.stages import Edge, Stage, Step
from sabot.plan.stages import Plan


@dataclass(frozen=True)
class Way:
    """The path of rows from the step that keeps their table (`maker`) to a later step. `through`: the steps and edges
    between them, in order.
    """

    maker: Step
    through: tuple[Step | Edge, ...]


@dataclass(frozen=True)
class _Place:
    """The position of a step or an edge in the plan: its stage, and the step before it in the chain, or None if it is
    the first.
    """

    stage: Stage
    behind: Step | None


def ways(plan: Plan, keeping: Container[str]) -> dict[str, list[Way | None]]:
    """Returns, by the id of each step over changes, one path for each of its inputs, from the step that makes the
    changes.

    A path is None if there is more than one, or if a step on it keeps state. `keeping`: the ids of the steps that
    keep state.
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
