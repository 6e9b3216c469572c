"""The figures that a drawing of a running app shows, as the app or its console has read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sabot.plan.drawing.graph import LinkKey

SHARES = ("busy", "contended", "backpressured", "waiting", "aligning", "idle")
"""The shares of a task's time, by the names of the states of `runtime.task_times`."""


@dataclass(frozen=True)
class BoxFigures:
    """Figures of a task, or of a step.

    `shares`: the part of the time by its name in `SHARES`, 0 to 1. `watermark_lag_s`: the seconds by which event time
    is behind the clock, or None. `late`, `dead_letters`, `restarts`: counts since the start.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    watermark_lag_s: float | None = None
    late: int = 0
    dead_letters: int = 0
    restarts: int = 0


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
