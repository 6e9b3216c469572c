"""What each task of an app did between two readings of its figures. Nothing here judges (`bottleneck`)."""

from collections.abc import Mapping
from typing import TypeVar

from sabot.base.figures import AppFigures, EdgeFigures, StepFigures, TaskFigures, ThreadFigures
from sabot.engine.plan.drawing import SHARES
from sabot.engine.runtime.watch.app_rates import rate_of, shares_of

_T = TypeVar("_T")

_TURNS = 100  # a thread that waits for the interpreter's lock wakes up at least so often a second
_LEAST_SECONDS = 0.5  # two readings that are closer say nothing


class ThreadSpan:
    """A thread between two readings."""

    def __init__(self, name: str, before: ThreadFigures, now: ThreadFigures) -> None:
        self.name, self.stage = name, stage_of(name)
        self.seconds = max(0.0, sum(now.time.values()) - sum(before.time.values()))
        self.shares = dict.fromkeys(SHARES, 0.0) | shares_of(before, now)
        self.queued = min(1.0, rate_of(before.queued_seconds, now.queued_seconds, self.seconds))
        self.turns = None if now.turns is None or before.turns is None else max(0, now.turns - before.turns)

    @property
    def wakes_for_lock(self) -> bool:
        """True if the thread got a processor often enough in its contended time to have waited for the interpreter's
        lock: a thread that waits for the lock wakes up every 5 ms. False if it slept. True too if the system does not
        count this.
        """
        contended = self.shares["contended"] * self.seconds
        return self.turns is None or self.turns >= _TURNS * contended

    @property
    def load(self) -> float:
        """The share of time in which the thread computed, or was ready to compute."""
        return self.shares["busy"] + self.shares["contended"]


class TaskSpan(ThreadSpan):
    """A task of streams between two readings."""

    def __init__(self, name: str, before: TaskFigures, now: TaskFigures) -> None:
        super().__init__(name, before, now)
        self.before, self.now = before, now
        self.rows = now.rows - before.rows
        self.lag = {name: rows for name, rows in (now.input.lag or {}).items() if rows is not None}

    @property
    def fill(self) -> float | None:
        """The mean fill of its input at the two readings, from 0 to 1, or None if it reads a source."""
        fills = [each.input.fill for each in (self.before, self.now) if each.input.fill is not None]
        return sum(fills) / 2 if len(fills) == 2 else None

    def late(self) -> dict[str, float]:
        """Returns the seconds for which it waited for a barrier of each task before it."""
        before = self.before.input.late_seconds
        return {name: seconds - before.get(name, 0.0) for name, seconds in self.now.input.late_seconds.items()}

    @property
    def targets(self) -> list[EdgeFigures]:
        """The edges to other tasks."""
        return [edge for edge in self.now.edges if edge.fill is not None]

    def main_work(self) -> tuple[str, float]:
        """Returns the piece of work that takes most of the task's time, and its share of the time of all pieces: a step by its id,
        "reading", "cutting", or "to STAGE".
        """
        before, now = self.before, self.now
        work = {
            id: figures.seconds - before.operators.get(id, StepFigures()).seconds
            for id, figures in now.operators.items()
        }
        for own, was in zip(now.edges, before.edges, strict=False):
            if own.fill is not None:
                place = f"to {own.to}"
                work[place] = work.get(place, 0.0) + own.seconds - was.seconds
        work["reading"] = now.reading_seconds - before.reading_seconds
        work["cutting"] = now.cutting_seconds - before.cutting_seconds
        name = max(work, key=lambda each: work[each])
        total = sum(work.values())
        return name, work[name] / total if total > 0 else 0.0


class AppSpan:
    """The tasks of an app between two readings. Those that are not in both, or hardly ran, are left out."""

    def __init__(self, before: AppFigures, now: AppFigures) -> None:
        self.before, self.now = before, now
        self.tasks = [
            task
            for name, (was, is_) in both(before.streams, now.streams)
            if was.time and is_.state and (task := TaskSpan(name, was, is_)).seconds >= _LEAST_SECONDS
        ]
        self.senders: dict[str, list[TaskSpan]] = {}  # by stage: the tasks that send it rows
        for task in self.tasks:
            for edge in task.targets:
                if task not in self.senders.setdefault(edge.to, []):
                    self.senders[edge.to].append(task)

    def backpressured_before(self, task: TaskSpan) -> float:
        """Returns the share of time for which a task that sends rows to this one waited for room, at most."""
        return max((each.shares["backpressured"] for each in self.senders.get(task.stage, ())), default=0.0)

    def divides_by_key(self, stage: str) -> bool:
        """Returns True if rows come to the tasks of the stage by their key."""
        return any(edge.to == stage and edge.keys for each in self.senders.get(stage, ()) for edge in each.targets)

    def cpu(self, task: TaskSpan) -> float | None:
        """Returns how many processors the process of the task used, or None if that is not known."""
        if task.now.worker is not None:
            found = next((each.cpu_percent for each in self.now.workers if each.worker == task.now.worker), None)
            return None if found is None else found / 100
        before, now = self.before.process.cpu_seconds, self.now.process.cpu_seconds
        return None if before is None or now is None or not task.seconds else (now - before) / task.seconds

    def cpus(self, task: TaskSpan) -> float:
        """Returns the number of processors that the process of the task may use; infinite if that is not known."""
        known = self.now.process.cpus
        return float("inf") if known is None or task.now.worker is not None else float(known)


def both(before: Mapping[str, _T], now: Mapping[str, _T]) -> list[tuple[str, tuple[_T, _T]]]:
    """Returns the figures that are in both readings, by name."""
    return [(name, (before[name], now[name])) for name in now if name in before]


def stage_of(task: str) -> str:
    """Returns the stage of a task by the task's name."""
    stage, slash, number = task.rpartition("/")
    return stage if slash and number.isdigit() else task
