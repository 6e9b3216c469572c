"""Event time of sources that are read at about the same (`max_drift=`), between the workers that read them.

Each worker tells the coordinator how far behind its own partitions are, and the coordinator tells each worker how far behind those of all
others are. What a worker knows is up to two `TELL_SECONDS` old, and event time of partitions rises: so a reader may wait that much longer
than in one process, and reads no further, but for a partition that was idle and has rows again.
"""

from collections.abc import Iterable, Mapping

from sabot.operators.base import START_OF_TIME
from sabot.plan import Plan
from sabot.workers.messages import Drift

TELL_SECONDS = 0.02

Behind = tuple[int | None, int | None]
"""As `Alignment.here` says it."""


def aligned_workers(plan: Plan, placement: Mapping[str, int]) -> dict[str, set[int]]:
    """By each stage for which sources are read at about the same event time: the workers that read them."""
    found = {}
    for stage in plan.stages:
        tasks = [f"{read.id}/{number}" for read in plan.aligned(stage) for number in range(read.parallelism)]
        if stage.aligned is not None:
            found[stage.id] = {placement[task] for task in tasks}
    return found


class Drifts:
    """What the coordinator knows. Until a worker has told something, its partitions stand at the beginning of time."""

    def __init__(self, workers: Mapping[str, Iterable[int]]) -> None:
        """workers: those that read, by stage."""
        beginning: Behind = (START_OF_TIME, START_OF_TIME)
        self._told = {stage: dict.fromkeys(numbers, beginning) for stage, numbers in workers.items()}
        self._known: dict[
            tuple[str, int], Behind
        ] = {}  # what each worker knows of the others; as it begins: the beginning of time

    @property
    def wanted(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._told)

    def told(self, worker: int, message: Drift) -> None:
        """A worker has told of its partitions."""
        self._told[message.stage][worker] = (message.least_ms, message.least_unread_ms)

    def news(self) -> list[tuple[int, Drift]]:
        """What each worker does not know yet of the others."""
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
    """For each of them the least of all others; None where there is none."""
    least = sorted((ms, place) for place, ms in enumerate(values) if ms is not None)[:2]
    return [next((ms for ms, other in least if other != place), None) for place in range(len(values))]
