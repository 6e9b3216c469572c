"""The join of rows in the same window."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import joins as nodes
from sabot.api.windows import TimeWindow, Window
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, OperatorContext, Saved
from sabot.engine.operators.joins.join import plan_sides
from sabot.engine.operators.joins.sides import JoinOperator, Result, Rows, Side, Sides
from sabot.engine.operators.joins.timed import TimedJoin
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import JoinOptions, StateReader
from sabot.engine.operators.windows.panes import shape_of, stored_window, window_of, window_text
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep


class WindowJoin(TimedJoin):
    """A join of rows with equal keys in the same window. When a window ends, it emits the pairs: the left's columns,
    window_start, window_end, the right's columns.

    `how`: "inner", "left", "right", "full", "semi" or "anti"; it applies to each window by itself. A row with a null
    in its key has no partner. The event time of the result is the last ms of the window. Windows are emitted in the
    order of their ends. A row is late if all its windows have ended. Raises UserError for windows that depend on the
    rows, such as sessions.
    """

    kind = "window join"

    def __init__(self, sides: Sides, how: str, window: Window) -> None:
        super().__init__(sides, how)
        if not isinstance(window, TimeWindow):
            raise UserError(
                f"window join: the two sides would not have the same windows with a {type(window).__name__}",
                hint="use tumbling, hopping or cumulative windows, or between=(…) for rows that are near each other",
            )
        self._window, self._shape = window, shape_of(window)

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, how = self.sides, self.how
        result = Result(sides, left, right, op=False, timed=True, windowed=True)
        names = [source for source, _ in sides.right_names]
        self.left = Side("left", left, sides.left_keys, context)
        self.right = Side("right", right, sides.right_keys, context, read=names)
        self._keeps_unmatched = {"left": how in ("left", "full", "anti"), "right": how in ("right", "full")}
        self._panes: list[int] = []  # the starts of the panes that have rows, ascending
        return result

    def set_watermark(self, watermark_ms: int) -> None:
        self.watermark = watermark_ms
        self.late_before = self._shape.late_before(watermark_ms)

    def process(self, batch: Batch) -> None:
        self._keep(self.left, self.punctual(self.left, batch))

    def process_right(self, batch: Batch) -> None:
        self._keep(self.right, self.punctual(self.right, batch))

    def _keep(self, side: Side, rows: Rows) -> None:
        if not self._keeps_unmatched[side.name]:
            rows = side.with_keys(rows)[0]
        if len(rows):
            times = rows.data.column(side.time)
            _, panes = self._shape.split(times, rows.selection)
            for _, some in self._shape.partly_over(panes, self.watermark):
                late = times if some is None else times.take(some)
                self.late[side.name].note(late.to_numpy(), self.watermark, partly=True)
            self._add_panes([pane for pane, _ in panes])
            side.insert(rows)

    def _add_panes(self, panes: list[int]) -> None:
        for pane in panes:
            at = bisect_left(self._panes, pane)
            if at == len(self._panes) or self._panes[at] != pane:
                insort(self._panes, pane)

    def advance(self, watermark_ms: int) -> None:
        if watermark_ms <= self.watermark:
            return
        for end in self._shape.ends(self._panes, self.watermark, watermark_ms):
            self._emit_window(self._shape.start(end), end)
            self._expire(self._shape.late_before(end))
        self.set_watermark(watermark_ms)
        self._expire(self.late_before)
        self.output.flush()
        del self._panes[: bisect_left(self._panes, self.late_before)]

    def _expire(self, before: int) -> None:
        for side in (self.left, self.right):
            side.table.remove(side.table.below(before))

    def _emit_window(self, start: int, end: int) -> None:
        left, right, single = self.left, self.right, self.how in ("semi", "anti")
        for rows in self._rows_in(left, start, end):
            unmatched = np.ones(len(rows), bool)
            if single:
                unmatched = ~self._has_partner(rows, left, right, start, end)
            else:
                bounds = {
                    "lower": pa.array(np.full(len(rows), start)),
                    "upper": pa.array(np.full(len(rows), end - 1)),
                }
                for i, ids in right.table.find_chunks(rows.data, left.key_indices, **bounds):
                    times = np.full(len(i), end - 1)
                    self.output.add(self.result.rows(rows.at(i), right.table.take(ids), times, bounds=(start, end)))
                    unmatched[i.to_numpy()] = False
            if self.how == "semi":
                unmatched = ~unmatched
            if self._keeps_unmatched["left"] or self.how == "semi":
                self._emit_where(left, rows, unmatched, start, end)
        if self._keeps_unmatched["right"]:
            for rows in self._rows_in(right, start, end):
                self._emit_where(right, rows, ~self._has_partner(rows, right, left, start, end), start, end)

    def _rows_in(self, side: Side, start: int, end: int) -> Iterator[Rows]:
        """Yields the rows of a side in a window, by time, in pieces."""
        ids = side.table.below(end)
        ids = ids.slice(int(np.searchsorted(side.table.orders(ids).to_numpy(), start)))
        for first in range(0, len(ids), CHUNK_ROWS):
            yield Rows(side.table.take(ids.slice(first, CHUNK_ROWS)))

    def _has_partner(self, rows: Rows, mine: Side, other: Side, start: int, end: int) -> Any:
        """Returns True for each row that has a partner in the window (numpy)."""
        last = other.table.last_at(rows.data, mine.key_indices, pa.array(np.full(len(rows), end - 1))).to_numpy()
        met = last >= 0
        met[met] = other.table.orders(pa.array(last[met])).to_numpy() >= start
        return met

    def _emit_where(self, side: Side, rows: Rows, mask: Any, start: int, end: int) -> None:
        chosen = rows.where(mask)
        if len(chosen):
            self.emit_one_side(side, chosen.taken(), np.full(len(chosen), end - 1), (start, end))

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        for side in (self.left, self.right):
            _, panes = self._shape.split(side.table.orders(side.table.below(END_OF_TIME)), None)
            self._add_panes([pane for pane, _ in panes])

    def _state_options(self) -> JoinOptions:
        return {"window": window_text(self._window)}

    def state_reader(self) -> StateReader:
        return {**super().state_reader(), "window": stored_window(self._window)}

    @classmethod
    def _with_options(cls, sides: Sides, how: str, given: dict[str, Any]) -> JoinOperator:
        return cls(sides, how, window_of(given))

    def statistics(self) -> "ToldStep":
        figures = super().statistics()
        return {**figures, "panes": len(self._panes)} if figures else figures


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_window_join(node: nodes.WindowJoin, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    return plan_sides(node, left, right, lambda sides: WindowJoin(sides, node.how, node.window))


PLANNERS: Planners = {nodes.WindowJoin: plan_window_join}


STATE_READERS: StateReaders = {"window join": WindowJoin.read_with}
