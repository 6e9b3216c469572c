"""Panes: the pieces into which windows of event time are divided. The functions compute the pane of a row, the
windows of a pane, and which rows are late.

Panes do not overlap. A tumbling window is one pane, a hopping window has size / slide panes. A cumulative window
grows by a pane with each step.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow, Window
from sabot.errors import UserError
from sabot.operators.base import END_OF_TIME, START_OF_TIME
from sabot.stored_names import stored_field, stored_name

PANE_COLUMN = "__pane"  # the start of the pane in ms, in partial states and in checkpoints

TimeWindow = TumblingWindow | HoppingWindow | CumulativeWindow


class WindowShape:
    """The times of a window's panes, in ms. Every window ends where a pane ends, and is identified by this end.
    Raises UserError if the size is not a multiple of the slide or step.
    """

    def __init__(self, window: TimeWindow) -> None:
        self.size = window.size_ms
        self.offset = window.offset_ms
        self.step = window.size_ms
        if isinstance(window, HoppingWindow):
            self.step = window.slide_ms
        elif isinstance(window, CumulativeWindow):
            self.step = window.step_ms
        self.grows = isinstance(window, CumulativeWindow)
        if self.size % self.step:
            raise UserError(
                f"a window of {self.size} ms is not a multiple of {self.step} ms",
                hint="choose a size that is a multiple of the step or slide",
            )

    def pane(self, time: int) -> int:
        """Returns the start of the pane of a row with this time."""
        return time - (time - self.offset) % self.step

    def start(self, end: int) -> int:
        """Returns the start of the window with this end."""
        return end - self.step - (end - self.step - self.offset) % self.size if self.grows else end - self.size

    def last_end(self, pane: int) -> int:
        """Returns the end of the last window that contains this pane."""
        return (pane - (pane - self.offset) % self.size if self.grows else pane) + self.size

    def late_before(self, watermark: int) -> int:
        """Returns the event time below which rows are late at this watermark: all windows of an earlier row are over."""
        time = self.pane(watermark - self.size) + self.step
        if self.grows:
            time = watermark - (watermark - self.offset) % self.size
        return max(START_OF_TIME, min(time, END_OF_TIME))

    def ends(self, panes: Sequence[int], after: int, upto: int | None = None) -> Iterator[int]:
        """Yields, ascending, the ends of windows that have rows, with after < end <= upto. Windows without rows are
        skipped, not visited one by one.

        `panes`: the starts of the panes with rows, ascending. `upto`: the last end, or None for no bound.
        """
        if not panes:
            return
        if upto is None:
            upto = self.last_end(panes[-1])
        end = self.pane(after) + self.step
        while end <= upto:
            at = bisect_left(panes, self.start(end))
            if at == len(panes):
                return
            if panes[at] < end:
                yield end
                end += self.step
            else:
                end = panes[at] + self.step

    def reopened_ends(self, panes: Iterable[int], watermark: int, lateness: int) -> list[int]:
        """Returns, ascending, the ends of windows that contain one of these panes, are over at this watermark, and
        still accept late rows.
        """
        ends: set[int] = set()
        for pane in panes:
            first = max(pane, self.pane(watermark - lateness)) + self.step
            last = min(self.last_end(pane), self.pane(watermark))
            ends.update(range(first, last + 1, self.step))
        return sorted(ends)


def window_text(window: Window) -> str:
    """Returns the window as text for `state_schema`, with its times in ms: "hopping(300, 100)"."""
    figures = [value for name, value in vars(window).items() if (value or name != "offset_ms") and value != "event"]
    return f"{stored_name(type(window)).removesuffix('Window').lower()}({', '.join(map(str, figures))})"


def stored_window(window: TimeWindow) -> list[Any]:
    """Returns the window for `state_reader`: the stored name of its class, and the values of its fields by stored
    name.
    """
    kind = type(window)
    return [stored_name(kind), {stored_field(kind, each.name): getattr(window, each.name) for each in fields(kind)}]


def window_of(reader: Mapping[str, Any]) -> Any:
    """Returns the window from `reader["window"]`, where `stored_window` has put it."""
    name, values = reader["window"]
    kind = _WINDOWS[name]
    return kind(
        **{each.name: values[stored] for each in fields(kind) if (stored := stored_field(kind, each.name)) in values}
    )


_WINDOWS = {stored_name(each): each for each in (TumblingWindow, HoppingWindow, CumulativeWindow)}
