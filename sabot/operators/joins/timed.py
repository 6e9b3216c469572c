"""The base of joins by key and event time: within an interval, in a window, as of a time.

The watermark bounds which rows a row can still meet, so a row is kept until none can come. Rows are only added to the result. A row that
is late (its time is below the watermark when it comes) is dropped and counted, or leaves by the branch "late" or "late_right", without
TIME_COLUMN.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.operators.base import CHUNK_ROWS, END_OF_TIME, START_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.operators.columns import no_event_time
from sabot.operators.joins.sides import Joined, Rows, Side
from sabot.operators.keeping import last_watermark

__all__ = ["LONGEST_MS", "TimedJoin", "within"]

LONGEST_MS = 2**60  # the longest interval or tolerance


class TimedJoin(Joined):
    """A join whose two sides have event time."""

    def open(self, context: OperatorContext) -> pa.Schema:
        for name, schema in (("left", context.input), ("right", context.right)):
            if schema is not None and TIME_COLUMN not in schema.names:
                raise no_event_time(f"{self.kind}: the {name} side has no event time")
        self.set_watermark(START_OF_TIME)
        return super().open(context)

    def set_watermark(self, watermark_ms: int) -> None:
        self.watermark = watermark_ms
        self.late_before = watermark_ms  # rows with a time below this are late

    def punctual(self, side: Side, batch: Batch) -> Rows:
        """The rows that are not late; late rows are counted, and leave by their branch."""
        rows = side.rows(batch)
        late = side.times(rows) < self.late_before
        if not late.any():
            return rows
        self.late_rows += int(np.count_nonzero(late))
        put = self.context.branches.get("late" if side is self.left else "late_right")
        if put is not None:
            put(batch.with_data(batch.taken().filter(pa.array(late)).drop_columns([TIME_COLUMN])))
        return rows.where(~late)

    def emit_alone(self, side: Side, rows: pa.RecordBatch, times: Any, bounds: tuple[int, int] | None = None) -> None:
        """Emits rows of one side, with nulls for the other."""
        left, right = (rows, None) if side is self.left else (None, rows)
        self.emission.add(self.result.rows(left, right, times, bounds=bounds))

    def emit_rows(self, side: Side, rows: Rows, times: Any) -> None:
        for start in range(0, len(rows), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(rows))
            self.emit_alone(side, rows.at(pa.array(np.arange(start, end, dtype=np.int32))), times[start:end])

    def noted(self) -> dict[str, Any]:
        return {**super().noted(), "watermark": self.watermark}

    def recall(self, saved: Sequence[Saved]) -> None:
        super().recall(saved)
        self.set_watermark(last_watermark(saved, START_OF_TIME))


def within(ms: int) -> int:
    """The time within the range of event time."""
    return max(START_OF_TIME, min(ms, END_OF_TIME))
