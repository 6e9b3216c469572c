"""The plan as a drawing in SVG, with the figures of a running app where they are given.

`graph` makes boxes and links of a plan, `layout` places them, `texts` measures and shortens their text, `render` writes
the drawing. The same plan gives the same drawing, to the byte.
"""

from sabot.engine.plan.drawing.figures import SHARE_WORDS, SHARES, BoxFigures, LinkFigures, PlanFigures
from sabot.engine.plan.drawing.graph import AGENT_SINK, LinkKey, TaskFrame, flat_frames, frames_from, frames_of

__all__ = [
    "AGENT_SINK",
    "SHARES",
    "SHARE_WORDS",
    "BoxFigures",
    "LinkFigures",
    "LinkKey",
    "PlanFigures",
    "TaskFrame",
    "flat_frames",
    "frames_from",
    "frames_of",
]
