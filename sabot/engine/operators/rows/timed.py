"""Steps that give rows another event time, with watermarks of that time: `with_time`, and windows of processing time; and the step
that adds the watermark as a column.
"""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Watermark
from sabot.api.arguments import RowPolicy
from sabot.api.expr import Expr, col
from sabot.api.nodes import times as nodes
from sabot.api.nodes.read import path_of
from sabot.engine.operators.aggregates.combining import repeated
from sabot.engine.operators.base import (
    END_OF_TIME,
    START_OF_TIME,
    TIME_COLUMN,
    HoldsMarks,
    Operator,
    OperatorContext,
    Polled,
    Saved,
    with_time,
    without_marks,
    without_time,
)
from sabot.engine.operators.event_time import ComputedTime
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.bad import BadRows
from sabot.engine.operators.rows.origin import of_selected, reselected, with_columns_of
from sabot.engine.operators.state_facts import OwnFacts, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts
from sabot.errors import DataError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_INSTANT = pa.timestamp("ms", "UTC")
_MOST_STEPS = 1024
_MOST_BATCHES, _MOST_ROWS = 64, 1 << 16


class EventTimeProgress:
    """The greatest new event time of a `with_time` step, over all its subtasks. Called from any thread.

    A row is included once the input's watermark has passed the former event time of the row. So the result does not
    depend on the number of partitions and readers, even if one partition is read far ahead of the others, and a
    subtask without rows does not hold it back.
    """

    def __init__(self) -> None:
        self._parts: dict[int, _SubtaskProgress] = {}
        self._lock = threading.Lock()

    def join(self, subtask: int) -> None:
        """Adds a subtask without rows. If the subtask is known already, its rows are dropped."""
        with self._lock:
            self._parts[subtask] = _SubtaskProgress()

    def record(self, subtask: int, former_ms: "np.ndarray[Any, Any]", new_ms: "np.ndarray[Any, Any]") -> None:
        """Records the former and the new event times of a batch of a subtask."""
        with self._lock:
            self._parts[subtask].add(former_ms, new_ms)

    def advance(self, subtask: int, watermark_ms: int) -> int:
        """Records a watermark of this subtask's input. Returns the greatest new event time, over all subtasks, of
        rows whose former event time is not above this watermark.
        """
        with self._lock:
            self._parts[subtask].watermark_ms = watermark_ms
            least_ms = min(part.watermark_ms for part in self._parts.values())
            for part in self._parts.values():
                part.settle(least_ms)
            return max(part.new_time_at(watermark_ms) for part in self._parts.values())

    def facts(self, subtask: int) -> OwnFacts:
        """Returns the recorded times of this subtask, for a checkpoint."""
        with self._lock:
            greatest_ms, ahead = self._parts[subtask].steps()
        return {"greatest": greatest_ms, "ahead": ahead}

    def load(self, subtask: int, facts: dict[str, Any]) -> None:
        """Adds recorded times from a checkpoint to this subtask."""
        with self._lock:
            part = self._parts[subtask]
            part.record(START_OF_TIME, facts["greatest"])
            for former_ms, new_ms in facts["ahead"]:
                part.record(former_ms, new_ms)


class _SubtaskProgress:
    """The event times of one subtask's rows. new[i] is the greatest new event time of the rows whose former event
    time is at most former[i]. Both lists ascend. The last rows are kept one by one, so that the part of a batch that a
    watermark has passed counts, however rows come in batches.
    """

    def __init__(self) -> None:
        self.watermark_ms = self.greatest_ms = START_OF_TIME
        self.former: list[int] = []
        self.new: list[int] = []
        self._rows: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def add(self, former_ms: "np.ndarray[Any, Any]", new_ms: "np.ndarray[Any, Any]") -> None:
        self._rows.append((former_ms, new_ms))
        left = sum(len(former) for former, _ in self._rows)
        # no watermark has come for long: a batch counts when its last row has been passed
        while left > _MOST_ROWS or len(self._rows) > _MOST_BATCHES:
            former, new = self._rows.pop(0)
            self.record(int(former.max()), int(new.max()))
            left -= len(former)

    def steps(self) -> tuple[int, list[tuple[int, int]]]:
        """Returns the greatest new time of rows that all subtasks have passed, and the steps of the rows ahead."""
        whole = _SubtaskProgress()
        whole.greatest_ms, whole.former, whole.new = self.greatest_ms, [*self.former], [*self.new]
        for former, new in self._rows:
            order = np.argsort(former, kind="stable")
            highest = np.maximum.accumulate(new[order])
            rises = np.flatnonzero(np.diff(highest, prepend=highest[0] - 1))
            for at in rises[:: -max(1, len(rises) // _MOST_STEPS)].tolist():
                whole.record(int(former[order[at]]), int(highest[at]))
        return whole.greatest_ms, [*zip(whole.former, whole.new, strict=True)]

    def record(self, former_ms: int, new_ms: int) -> None:
        at = bisect_right(self.former, former_ms)
        if new_ms <= (self.new[at - 1] if at else self.greatest_ms):
            return
        end = bisect_right(self.new, new_ms, lo=at)
        if at and self.former[at - 1] == former_ms:
            at -= 1
        self.former[at:end], self.new[at:end] = [former_ms], [new_ms]
        if len(self.former) > _MOST_STEPS:  # of two neighbours only the later stays: a time counts later, never earlier
            del self.former[:-1:2], self.new[:-1:2]

    def new_time_at(self, watermark_ms: int) -> int:
        at = bisect_right(self.former, watermark_ms)
        passed = [int(new[past].max()) for former, new in self._rows if (past := former <= watermark_ms).any()]
        return max([self.greatest_ms, *self.new[at - 1 : at], *passed])

    def settle(self, watermark_ms: int) -> None:
        """Drops the entries whose former event time is at most this watermark, because every subtask's input has
        reached it.
        """
        at = bisect_right(self.former, watermark_ms)
        passed, rows = [self.greatest_ms, *self.new[at - 1 : at]], self._rows
        del self.former[:at], self.new[:at]
        self._rows = []
        for former, new in rows:
            ahead = former > watermark_ms
            passed.append(int(np.max(new, where=~ahead, initial=START_OF_TIME)))
            if ahead.any():
                self._rows.append((former[ahead], new[ahead]))
        self.greatest_ms = max(passed)


class NewTime(StatefulOperator, HoldsMarks):
    """A step that gives each row a new event time, computed from its columns. It does not pass on the watermarks of
    its input. Its own watermark is the greatest event time in `progress`, less the lateness. If the input has no
    event time, the watermark depends on the rows of this subtask only.

    Rows whose value is no time are set apart. With on_error="null" they are counted and dropped, because a row cannot
    be without event time.
    """

    def __init__(
        self,
        time: str | Expr,
        lateness_ms: int,
        *,
        unit: str | None = None,
        format: str | None = None,
        zone: str | None = None,
        on_error: RowPolicy = "fail",
        progress: EventTimeProgress | None = None,
    ) -> None:
        self._time, self._unit, self._format, self._zone = time, unit, format, zone
        self._lateness_ms = lateness_ms
        self._on_error: RowPolicy = on_error
        self._progress = EventTimeProgress() if progress is None else progress

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        rows = without_time(context.input)
        expr = self._time
        if isinstance(expr, str):
            expr = col(expr) if expr in rows.names else path_of(expr)
        self._computed = ComputedTime("with_time", expr, self._unit, self._format, rows, self._zone)
        self._bad = BadRows(self.step.text or "with_time", self._on_error, context, self.step)
        self._subtask = context.subtask
        self._progress.join(context.subtask)
        self._greatest_ms = self._sent_ms = START_OF_TIME
        self._schema = with_time(rows)
        self.state_parts = StateParts(context)
        return self._schema

    def process(self, batch: Batch) -> None:
        batch = of_selected(batch, batch.taken())
        former = batch.data.column(TIME_COLUMN) if self._timed else None
        data = batch.data.drop_columns([TIME_COLUMN]) if self._timed else batch.data
        times, reasons = self._computed.of(data)
        if times.null_count:
            no = np.flatnonzero(np.asarray(times.is_null()))
            errors = {row: DataError(reasons.get(row, self._computed.without)) for row in no.tolist()}
            if self._bad.fails:
                row, error = next(iter(errors.items()))
                raise DataError(
                    f"{self._bad.step}: {self._bad.message(batch, row, error)}",
                    hint='with on_error="dead_letter" such rows become dead letters',
                )
            self._bad.set_apart(batch, errors)
            left = pa.array(np.delete(np.arange(len(times), dtype=np.int32), no))
            data, times = data.take(left), times.take(left)
            batch = of_selected(reselected(batch, left, None), data)
            former = None if former is None else former.take(left)
        if not data.num_rows:
            return
        self.emit(of_selected(batch, data.append_column(self._schema.field(TIME_COLUMN), times)))
        if former is not None:
            self._progress.record(self._subtask, former.to_numpy(), times.to_numpy())
        else:
            self._greatest_ms = max(self._greatest_ms, pc.max(times).as_py())
            self._advance_to(self._greatest_ms)

    def hold(self, mark: Any) -> None:
        if not isinstance(mark, Watermark) or mark.timestamp_ms == END_OF_TIME:
            self.on_mark(mark)
        elif self._timed:
            self._advance_to(self._progress.advance(self._subtask, mark.timestamp_ms))

    def _advance_to(self, greatest_ms: int) -> None:
        if greatest_ms > START_OF_TIME and greatest_ms - self._lateness_ms > self._sent_ms:
            self._sent_ms = greatest_ms - self._lateness_ms
            self.on_mark(Watermark(self._sent_ms))

    def own_facts(self) -> OwnFacts:
        return self._progress.facts(self._subtask) if self._timed else {"greatest": self._greatest_ms, "ahead": []}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        for part in saved:
            self._progress.load(self._subtask, part.facts)
        self._greatest_ms = min(part.facts["greatest"] for part in saved)

    def state_schema(self) -> StateSchema:
        return {"kind": "with_time"}

    def close(self) -> None:
        if hasattr(self, "_bad"):
            self._bad.close()

    def statistics(self) -> "ToldStep":
        return self._bad.statistics() if hasattr(self, "_bad") else {}


class ArrivalTime(StatefulOperator, HoldsMarks, Polled):
    """Gives rows the time at which they arrive at this step as event time. Its watermark is the clock.

    The time never goes back: if the clock goes back, or is behind the time in the checkpoint, the event time stays at
    its last value until the clock has caught up.
    """

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        self._schema = with_time(without_time(context.input))
        self._clock = context.clock
        self._now_ms = self._sent_ms = START_OF_TIME
        self.state_parts = StateParts(context)
        return self._schema

    def process(self, batch: Batch) -> None:
        self._now_ms = max(self._now_ms, int(self._clock.time() * 1000))
        data = batch.data
        columns = data.columns[:-1] if self._timed else data.columns
        data = pa.RecordBatch.from_arrays([*columns, repeated(self._now_ms, data.num_rows)], schema=self._schema)
        self.emit(with_columns_of(batch, data))

    def poll(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)
        if self._now_ms > self._sent_ms:
            self._sent_ms = self._now_ms
            self.on_mark(Watermark(self._now_ms))

    def hold(self, mark: Any) -> None:
        if isinstance(mark, Watermark) and mark.timestamp_ms == END_OF_TIME:
            self.on_mark(mark)

    def own_facts(self) -> OwnFacts:
        return {"now": self._now_ms}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._now_ms = max(part.facts["now"] for part in saved)

    def state_schema(self) -> StateSchema:
        return {"kind": "processing time"}


class WatermarkColumn(Operator):
    """Adds the last watermark to each row, as a column behind those of the user. After a restart it is null until the next one."""

    def __init__(self, name: str) -> None:
        self._name = name

    def open(self, context: OperatorContext) -> pa.Schema:
        self._place = len(without_marks(context.input))
        self._field = pa.field(self._name, _INSTANT)
        self._passed: int | None = None
        return context.input.insert(self._place, self._field)

    def process(self, batch: Batch) -> None:
        column = pa.repeat(pa.scalar(self._passed, _INSTANT), batch.data.num_rows)
        self.emit(with_columns_of(batch, batch.data.add_column(self._place, self._field, column)))

    def advance(self, watermark_ms: int) -> int | None:
        self._passed = watermark_ms if START_OF_TIME < watermark_ms < END_OF_TIME else self._passed
        return None


def by_arrival(point: PlanPoint) -> PlanPoint:
    """Returns the plan point behind a step that makes the time of arrival the event time."""
    return point.step("processing time", ArrivalTime, timed=True)


def plan_with_time(node: nodes.WithTime, point: PlanPoint) -> PlanPoint:
    make = partial(
        NewTime,
        *(node.time, node.lateness_ms),
        unit=node.time_unit,
        format=node.time_format,
        zone=node.time_zone,
        on_error=point.policy(),
        progress=EventTimeProgress(),
    )
    return point.step(node.text(), make, id=node.id, timed=True)


def plan_watermark(node: nodes.WithWatermark, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), partial(WatermarkColumn, node.name))


PLANNERS: Planners = {nodes.WithTime: plan_with_time, nodes.WithWatermark: plan_watermark}

STATE_READERS: StateReaders = {"with_time": "the progress of event time", "processing time": "the time of the clock"}
