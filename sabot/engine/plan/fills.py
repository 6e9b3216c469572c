"""Finds the path of rows from a step that keeps a table to a later step. Along this path a start fills state that has
not seen the table's rows.

    upsert by id ──▶ filter ──▶ | by key group of maker | ──▶ with columns ──▶ group by maker
      the maker                     an edge                                      is filled

All steps on the path must handle each row by itself. `against` decides what is filled, and `runtime.tasks.filling` fills
it.
"""

from collections import defaultdict
from collections.abc import Container

from sabot.base.dataclass import dataclass
from sabot.engine.operators.layout.stages import Edge, Stage, Step
from sabot.engine.plan.stages import Plan


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


class _Paths:
    """The paths of a plan, followed against the rows. `keeping`: the ids of the steps that keep state."""

    def __init__(self, plan: Plan, keeping: Container[str]) -> None:
        self.into: dict[tuple[str, bool], list[Edge]] = defaultdict(list)  # by the id of a stage and its second input
        self.steps: list[Step] = []
        self._places: dict[int, _Place] = {}
        self._keeping = keeping
        for stage in plan.stages:
            self._visit(stage, stage.targets, None)

    def _visit(self, stage: Stage, targets: list[Step | Edge], behind: Step | None) -> None:
        for target in targets:
            self._places[id(target)] = _Place(stage, behind)
            if isinstance(target, Edge):
                self.into[target.target.id, target.right].append(target)
            else:
                self.steps.append(target)
                self._visit(stage, target.targets, target)

    def way_to(self, here: Step | Edge, right: bool = False) -> Way | None:
        """Returns the path from the next step before `here` that keeps state, or None if there is more than one path, or
        none. `right`: True if it comes through the second input of the step `here`. If `here` is an edge, it is part of the path.
        """
        through: list[Step | Edge] = [here] if isinstance(here, Edge) else []
        while True:
            place = self._places.get(id(here))
            if place is None:  # it is in an output branch
                return None
            if place.behind is None:
                edges = self.into[place.stage.id, right]
                if len(edges) != 1:
                    return None
                here, right = edges[0], False
                through.insert(0, here)
                continue
            here = place.behind
            if here.id in self._keeping:
                return Way(here, tuple(through))
            through.insert(0, here)


def ways(plan: Plan, keeping: Container[str]) -> dict[str, list[Way | None]]:
    """Returns, by the id of each step over changes, one path for each of its inputs, from the step that makes the
    changes.

    A path is None if there is more than one, or if a step on it keeps state. `keeping`: the ids of the steps that
    keep state.
    """
    paths = _Paths(plan, keeping)
    found: dict[str, list[Way | None]] = {}
    for step in paths.steps:
        if step.lineage:
            makers = [sorted({each["from"] for each in lineages}) for lineages in step.lineage]
            leading = [
                paths.way_to(step, number == 1) if len(names) == 1 else None for number, names in enumerate(makers)
            ]
            found[step.id] = [
                way if way is not None and [way.maker.id] == names else None
                for way, names in zip(leading, makers, strict=True)
            ]
    return found


def ways_into(plan: Plan, sink: Stage, keeping: Container[str]) -> list[Way | None]:
    """Returns the path of each stream that is written into a sink, from the step that keeps its table."""
    paths = _Paths(plan, keeping)
    return [paths.way_to(edge) for edge in paths.into[sink.id, False]]
