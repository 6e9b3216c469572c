"""Alignment of sources (`max_drift=`) that different workers read.

Each worker reports to the coordinator the event times of its own partitions that are furthest behind. The coordinator
sends each worker the least event times of all others. These are up to two `TELL_SECONDS` old, and event times only
rise. So a reader may wait that much longer than in one process, but it reads no further than in one process, except
for a partition that was idle and has rows again.
"""

from collections.abc import Iterable, Mapping

from sabot.engine.operators.base import START_OF_TIME
from sabot.engine.plan import Plan
from sabot.engine.workers.messages import Drift

TELL_SECONDS = 0.02

Behind = tuple[int | None, int | None]
"""A pair of event times as `Alignment.here` returns it."""


def aligned_workers(plan: Plan, placement: Mapping[str, int]) -> dict[str, set[int]]:
    """Returns, for each stage with aligned sources, the workers that read them."""
    found = {}
    for stage in plan.stages:
        tasks = [f"{read.id}/{number}" for read in plan.aligned(stage) for number in range(read.parallelism)]
        if stage.aligned is not None:
            found[stage.id] = {placement[task] for task in tasks}
    return found


class Drifts:
    """The event times that the workers have reported. Partitions of a worker are treated as unread until its first
    report.
    """

    def __init__(self, workers: Mapping[str, Iterable[int]]) -> None:
        """`workers`: for each stage, the workers that read its sources."""
        beginning: Behind = (START_OF_TIME, START_OF_TIME)
        self._told = {stage: dict.fromkeys(numbers, beginning) for stage, numbers in workers.items()}
        self._known: dict[
            tuple[str, int], Behind
        ] = {}  # by stage and worker: the event times in the last message about the others

    @property
    def wanted(self) -> bool:
        """True if there are aligned sources."""
        return bool(self._told)

    def told(self, worker: int, message: Drift) -> None:
        """Stores a worker's report about its partitions."""
        self._told[message.stage][worker] = (message.least_ms, message.least_unread_ms)

    def news(self) -> list[tuple[int, Drift]]:
        """Returns, with their workers, the messages for workers for which the least event time of the others has
        changed.
        """
        found = []
        for stage, told in self._told.items():
            of_others = zip(
                _others([each[0] for each in told.values()]), _others([each[1] for each in told.values()]), strict=True
            )
            for worker, behind in zip(told, of_others, strict=True):
                if self._known.get((stage, worker), (START_OF_TIME, START_OF_TIME)) != behind:
                    self._known[stage, worker] = behind
                    found.append((worker, Drift(stage, *behind)))
        return found


def _others(values: list[int | None]) -> list[int | None]:
    """Returns for each value the least of all other values, or None if there is none."""
    least = sorted((ms, place) for place, ms in enumerate(values) if ms is not None)[:2]
    return [next((ms for ms, other in least if other != place), None) for place in range(len(values))]
