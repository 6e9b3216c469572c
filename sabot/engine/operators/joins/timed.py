"""The base of joins by key and event time: within an interval, in a window, as of a time.

The watermark says which rows a kept row can still meet; the joins remove a row when there are none (`_expire`). Such joins only add
rows to the result. A row is late if its event time is below the watermark when it comes. Late rows are counted, and
go to the output branch "late" or "late_right".
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes.joins import MADE_KEY
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    HasBranches,
    OperatorContext,
    Saved,
)
from sabot.engine.operators.columns import no_event_time
from sabot.engine.operators.joins.sides import JoinOperator, Rows, Side
from sabot.engine.operators.late_rows import DROPPED, LateRows
from sabot.engine.operators.state_facts import OwnFacts
from sabot.engine.operators.state_parts import last_watermark

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

LONGEST_MS = 2**60  # the longest interval or tolerance


class TimedJoin(JoinOperator, HasBranches):
    """A join whose sides both have event time. Raises UserError if one has none."""

    fate_of_right: ClassVar[str] = DROPPED  # of late rows of the right, for the log

    def open(self, context: OperatorContext) -> pa.Schema:
        for name, schema in (("left", context.input), ("right", context.right)):
            if schema is not None and TIME_COLUMN not in schema.names:
                raise no_event_time(f"{self.kind}: the {name} side has no event time")
        self.set_watermark(START_OF_TIME)
        step, sides = self.step.text or self.kind, self.sides
        left, right, place = _hidden(sides.left_keys), _hidden(sides.right_keys), self.step.origin.place
        self.late = {
            "left": LateRows(context, step, "late", left, place=place),
            "right": LateRows(context, step, "late_right", right, self.fate_of_right, place),
        }
        return super().open(context)

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        columns, keys = self.context.input, self.sides.left_keys
        if name == "late_right":
            assert self.context.right is not None, "a join has two inputs"
            columns, keys = self.context.right, self.sides.right_keys
        return pa.schema([field for field in columns if field.name not in _hidden(keys)])

    def set_watermark(self, watermark_ms: int) -> None:
        self.watermark = watermark_ms
        self.late_before = watermark_ms  # rows with a time below this are late

    def punctual(self, side: Side, batch: Batch) -> Rows:
        """Returns the rows of a batch that are not late. Late rows are counted and go to their branch."""
        rows = side.rows(batch)
        late = self.reject(side, batch, rows)
        return rows if late is None else rows.where(~late)

    def reject(self, side: Side, batch: Batch, rows: Rows) -> Any:
        """Counts the late rows, and sends them to their branch. `rows`: the rows of `batch`. Returns True for each
        late row (numpy), or None if there are none.
        """
        self.late[side.name].came(len(rows))
        late = side.times(rows) < self.late_before
        if not late.any():
            return None
        numbers = np.flatnonzero(late).astype(np.int32) if rows.selection is None else rows.selection.to_numpy()[late]
        self.late[side.name].reject(batch, pa.array(numbers), self.watermark)
        return late

    def emit_one_side(
        self, side: Side, rows: pa.RecordBatch, times: Any, bounds: tuple[int, int] | None = None
    ) -> None:
        """Emits rows of one side, with nulls for the columns of the other."""
        left, right = (rows, None) if side is self.left else (None, rows)
        self.output.add(self.result.rows(left, right, times, bounds=bounds))

    def emit_rows(self, side: Side, rows: Rows, times: Any) -> None:
        for start in range(0, len(rows), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(rows))
            self.emit_one_side(side, rows.at(pa.array(np.arange(start, end, dtype=np.int32))), times[start:end])

    def own_facts(self) -> OwnFacts:
        late = {side: each.facts() for side, each in self.late.items()}
        return {**super().own_facts(), "watermark": self.watermark, "late_rows": self.late_rows, "late": late}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        self.set_watermark(last_watermark(saved, START_OF_TIME))
        sides = [facts.get("late", {"left": facts}) for facts in self.state_parts.share(saved)]
        for side, late in self.late.items():  # earlier versions stored one number for both sides
            late.restore(each[side] for each in sides if side in each)

    @property
    def late_rows(self) -> int:
        """The number of late rows of both sides."""
        return sum(each.count for each in self.late.values())

    def close(self) -> None:
        super().close()
        for each in self.late.values() if hasattr(self, "late") else ():
            each.tell_rest()

    def statistics(self) -> "ToldStep":
        figures = super().statistics()
        return {**LateRows.together(self.late.values()), **figures} if figures else figures


def _hidden(keys: Sequence[str]) -> list[str]:
    """Returns the names of the columns that late rows of a side do not have in their branch: event time, and keys
    that the planner made for the join.
    """
    return [TIME_COLUMN, *(key for key in keys if key.startswith(MADE_KEY))]


def within(ms: int) -> int:
    """Returns the time, limited to the range of event time."""
    return max(START_OF_TIME, min(ms, END_OF_TIME))
