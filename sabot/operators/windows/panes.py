"""Panes, of which windows of event time consist: the windows of a row, their ends, and which rows are late.

Panes do not overlap. A tumbling window is one pane, a hopping window size / slide panes. A cumulative window grows by
a pane with each step.
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
    """The panes of a window, in ms. Every window ends where a pane ends, and is named by its end."""

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
        """Returns the least event time whose last window is not over at this watermark. Rows before that time are
        late.
        """
        time = self.pane(watermark - self.size) + self.step
        if self.grows:
            time = watermark - (watermark - self.offset) % self.size
        return max(START_OF_TIME, min(time, END_OF_TIME))

    def ends(self, panes: Sequence[int], after: int, upto: int | None = None) -> Iterator[int]:
        """Yields the ends of windows with rows, after < end <= upto, ascending. Windows without rows take no time.

        `panes`: the starts of the panes with rows, ascending. `upto`: None for no bound.
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
        """Returns the ends, ascending, of windows with one of these panes that are over at this watermark, but not
        with lateness added.
        """
        ends: set[int] = set()
        for pane in panes:
            first = max(pane, self.pane(watermark - lateness)) + self.step
            last = min(self.last_end(pane), self.pane(watermark))
            ends.update(range(first, last + 1, self.step))
        return sorted(ends)


def window_text(window: Window) -> str:
    """Returns the window as `state_schema` has it, with its times in ms: "hopping(300, 100)"."""
    figures = [value for name, value in vars(window).items() if (value or name != "offset_ms") and value != "event"]
    return f"{stored_name(type(window)).removesuffix('Window').lower()}({', '.join(map(str, figures))})"


def stored_window(window: TimeWindow) -> list[Any]:
    """Returns the window as `state_reader` describes it: the name of its class, and the values of its fields by name."""
    kind = type(window)
    return [stored_name(kind), {stored_field(kind, each.name): getattr(window, each.name) for each in fields(kind)}]


def window_of(reader: Mapping[str, Any]) -> Any:
    """Returns the window that `stored_window` has described in `reader["window"]`."""
    name, values = reader["window"]
    kind = _WINDOWS[name]
    return kind(
        **{each.name: values[stored] for each in fields(kind) if (stored := stored_field(kind, each.name)) in values}
    )


_WINDOWS = {stored_name(each): each for each in (TumblingWindow, HoppingWindow, CumulativeWindow)}
