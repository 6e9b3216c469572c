"""The figures that a drawing of a running app shows, as the app or its console has read them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sabot.plan.drawing.graph import LinkKey

SHARES = ("computes", "ready", "blocked", "calls", "aligns", "idle")
"""The shares of a task's time: it computes; it could run, but the interpreter or a processor is not free; it waits for
what stands behind it, for calls, for barriers, or for input."""


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
