"""The figures that a drawing of a running app shows, as the app or its console has read them."""

from collections.abc import Mapping
from dataclasses import field

from sabot.base.dataclass import dataclass
from sabot.engine.plan.drawing.graph import LinkKey, TaskFrame

SHARE_WORDS = {
    "busy": "computes",
    "contended": "has work, and waits for a processor or for the interpreter's lock, or sleeps in its function",
    "backpressured": "waits for room behind it: a full channel, a sink, or calls at their limit",
    "waiting": "waits for calls",
    "aligning": "waits for a checkpoint's barrier on another input, or for a source that is behind",
    "idle": "waits for rows",
}
"""The meanings of the states of a task's time, in the order of their drawing, for the legends of all pages and commands."""

SHARES = tuple(SHARE_WORDS)
"""The shares of a task's time, by the names of the states of `runtime.tasks.task_times`."""


@dataclass(frozen=True)
class BoxFigures:
    """Figures of a task, or of a step.

    `shares`: the part of the task's time by its name in `SHARES`, 0 to 1. `own_time`: the part of it in which the task works in
    the step, or None. `watermark_lag_s`: the seconds by which event time
    is behind the clock, or None. `late`, `dead_letters`, `restarts`: counts since the start.
    `subtasks`: the number of subtasks of a task that run, or None if it is not known.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    watermark_lag_s: float | None = None
    late: int = 0
    dead_letters: int = 0
    restarts: int = 0
    own_time: float | None = None
    subtasks: int | None = None


@dataclass(frozen=True)
class LinkFigures:
    """Figures of a link. `rate`: rows per second. `fill`: the part of its channel that is full, 0 to 1. None: not known."""

    rate: float | None = None
    fill: float | None = None


@dataclass(frozen=True)
class PlanFigures:
    """The figures of a plan at one time: of tasks by the id of their stage, of steps by their id, and of links."""

    tasks: Mapping[str, BoxFigures] = field(default_factory=dict)
    steps: Mapping[str, BoxFigures] = field(default_factory=dict)
    links: Mapping[LinkKey, LinkFigures] = field(default_factory=dict)

    def subtasks(self, task: TaskFrame) -> int:
        """Returns the number of subtasks of a task: those that run, which a rescale changes, or else those of the plan."""
        own = self.tasks.get(task.id)
        return task.parallelism if own is None or own.subtasks is None else own.subtasks
