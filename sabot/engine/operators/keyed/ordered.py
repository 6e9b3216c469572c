"""Rows in the order of event time, for steps whose result depends on the order."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes.times import InTimeOrder
from sabot.codecs.json import schema_text
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    without_time,
)
from sabot.engine.operators.late_rows import LateRows
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import RowsPart, SavesWatermark, StateParts, columns_schema

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_SMALL_ROWS = 16_384


class EventOrder(SavesWatermark):
    """A step that buffers rows until the watermark is above their event time, and then emits them sorted by event
    time. Rows of equal time keep their order of arrival. Late rows are emitted at once.

    The readers of a source progress through event time at different speeds, so the order of arrival is arbitrary.
    With this operator before them, steps that depend on the order have the same result for any number of readers.

    `order`: a function that returns the numbers of rows in an order which begins with their event time, or None.
    """

    def __init__(self, keys: tuple[str, ...], order: Callable[[pa.RecordBatch], pa.Array] | None = None) -> None:
        self._keys = keys
        self._order = order
        self._held: list[pa.RecordBatch] = []
        self._topic = ""  # the topic of the newest rows
        self._small = 0  # the number of rows in the small batches at the end of `_held`

    def open(self, context: OperatorContext) -> pa.Schema:
        self._schema = context.input
        keys = [self._schema.get_field_index(name) for name in self._keys]
        held = RowsPart("held", lambda: list(self._held), self._hold, schema=self._schema, keys=keys, others=True)
        self.state_parts = StateParts(context, [held], keyed=len(self._keys) > 0)
        self._time = context.input.get_field_index(TIME_COLUMN)
        return context.input

    def process(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        self._topic = batch.topic
        self._hold(batch.taken())
        if pc.min(batch.data.column(self._time)).as_py() < self._watermark:
            self._emit_ready()  # there are late rows, which are emitted at once

    def _hold(self, data: pa.RecordBatch) -> None:
        """Buffers the rows. Each batch is sorted, so that `_emit_ready` takes the beginning of it and copies no row
        that stays. Small batches are concatenated, so that there are few.
        """
        self._held.append(self._by_time(data))
        self._small = self._small + data.num_rows if data.num_rows < _SMALL_ROWS else 0
        if self._small >= _SMALL_ROWS:
            tail: list[pa.RecordBatch] = []
            while self._held and self._held[-1].num_rows < _SMALL_ROWS:
                tail.append(self._held.pop())
            self._held.append(self._by_time(pa.concat_batches(tail[::-1])))
            self._small = 0

    def _by_time(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows sorted by event time. Rows of equal time keep their order."""
        times = data.column(self._time).to_numpy()
        if (times[1:] < times[:-1]).any():
            return data.take(pa.array(np.argsort(times, kind="stable")))
        return data

    def advance(self, watermark_ms: int) -> int | None:
        self._watermark = watermark_ms
        self._emit_ready()
        return None

    def _emit_ready(self) -> None:
        """Emits the rows below the watermark, sorted by event time."""
        ready: list[pa.RecordBatch] = []
        held: list[pa.RecordBatch] = []
        for data in self._held:
            below = int(np.searchsorted(data.column(self._time).to_numpy(), self._watermark))
            if below:
                ready.append(data.slice(0, below))
            if below < data.num_rows:
                held.append(_compact(data.slice(below)) if below else data)
        if not ready:
            return
        self._held, self._small = held, sum(data.num_rows for data in held if data.num_rows < _SMALL_ROWS)
        rows = ready[0] if len(ready) == 1 else pa.concat_batches(ready)
        rows = self._by_time(rows) if self._order is None else rows.take(self._order(rows))
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            self.emit(Batch(rows.slice(start, CHUNK_ROWS), None, self._topic))

    def group_count(self) -> int:
        return sum(data.num_rows for data in self._held)

    def state_schema(self) -> StateSchema:
        keys = columns_schema(self._schema.field(name) for name in self._keys)
        return {"kind": "rows in order", "keys": keys, "columns": columns_schema(without_time(self._schema))}

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        if fact != "columns":
            return None
        then = dict(before)
        if not groups:
            return "it has other columns; no rows wait in it"
        if any(then.get(name, kind) != kind for name, kind in now):
            return None
        new = [name for name, _ in now if name not in then]
        kept = f"rows that wait keep only {', '.join(name for name, _ in now)}"
        return f"in rows that wait, {', '.join(new)} is null" if new else kept

    def state_reader(self) -> StateReader:
        return {"keys": list(self._keys), "input": schema_text(self._schema)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the buffered rows."""
        yield from self._held

    def statistics(self) -> "ToldStep":
        held = list(self._held)
        return {"held_rows": sum(data.num_rows for data in held), "held_bytes": sum(data.nbytes for data in held)}


def _compact(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows, copied if less than half of the memory that they hold is theirs."""
    if 2 * rows.nbytes < rows.get_total_buffer_size():
        return rows.take(pa.array(np.arange(rows.num_rows)))
    return rows


class SortedByTime(EventOrder):
    """A step that emits all rows of a stream in the order of their event time. Late rows go to the output branch
    "late".

    Rows wait until the watermark has passed them by `within_ms`, and the next operator gets a watermark that is so much
    lower. So rows that are late by less are in order, and no step after this one finds them late.
    """

    def __init__(self, within_ms: int) -> None:
        super().__init__(())
        self._within_ms = within_ms
        self._opened = False

    def open(self, context: OperatorContext) -> pa.Schema:
        self._late = LateRows(context, self.step.text)
        self._opened = True
        return super().open(context)

    def process(self, batch: Batch) -> None:
        self._late.came(batch.num_rows)
        times = batch.data.column(self._time).to_numpy()
        rows = np.arange(len(times), dtype=np.int32) if batch.selection is None else batch.selection.to_numpy()
        late = times[rows] < self._watermark
        if late.any():
            self._late.reject(batch, pa.array(rows[late]), self._watermark)
            batch = batch.with_selection(pa.array(rows[~late]))
        super().process(batch)

    def advance(self, watermark_ms: int) -> int:
        if watermark_ms != END_OF_TIME:
            watermark_ms = max(watermark_ms, START_OF_TIME + self._within_ms) - self._within_ms
        # After a restore with a greater `within_ms` it would be less than before.
        super().advance(max(watermark_ms, self._watermark))
        return self._watermark

    def own_facts(self) -> OwnFacts:
        return {**super().own_facts(), **self._late.facts()}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        if all("late_rows" in part.facts for part in saved):  # state of `EventOrder` has no such fact
            self._late.restore(self.state_parts.share(saved))

    def close(self) -> None:
        if self._opened:
            self._late.tell_rest()

    def statistics(self) -> "ToldStep":
        return {**super().statistics(), **self._late.statistics()}


# -- their place in a plan ----------------------------------------------------------------------------------------------


def in_order(point: PlanPoint, keys: tuple[str, ...], id: str) -> PlanPoint:
    """Adds an EventOrder to the plan, and returns the plan point behind it. `keys`: the keys of the step that needs
    the order. `id`: the id that the user gave to this step, or "".
    """
    return point.step("order by event time", partial(EventOrder, keys), id=f"{id}.order" if id else "")


def plan_in_time_order(node: InTimeOrder, point: PlanPoint) -> PlanPoint:
    point = point.partition_by((), "order")
    return point.step(node.text(), partial(SortedByTime, node.wait_ms), id=node.id).late_to("late", node.late)


PLANNERS: Planners = {InTimeOrder: plan_in_time_order}


STATE_READERS: StateReaders = {"rows in order": lambda reader: EventOrder(tuple(reader["keys"]))}
