"""The join of each row with the row of the other side that is nearest in time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import joins as nodes
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    DELETE,
    END_OF_TIME,
    START_OF_TIME,
    UPDATE_BEFORE,
    OperatorContext,
    Saved,
)
from sabot.engine.operators.joins.join import plan_sides
from sabot.engine.operators.joins.sides import Result, Side, Sides
from sabot.engine.operators.joins.timed import LONGEST_MS, TimedJoin, within
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import JoinOptions
from sabot.errors import UserError

_GONE = "__gone"


class AsofJoin(TimedJoin):
    """Joins each row of the left with the row of the right that has the same key and is nearest in time.

    `how`: "left" (nulls if there is none) or "inner". `strategy`: "backward" (the last row with a time <= the
    left's), "forward" (the first with a time >= the left's) or "nearest" (the nearer of the two, and the earlier if
    both are equally near). `tolerance_ms`: the greatest distance in time; "forward" and "nearest" need it. If rows of
    the right have equal times, the last to arrive is used. A row with a null in its key has no partner.

    Rows of the left wait until the watermark has passed them; with "forward" and "nearest", until it has passed them
    by the tolerance, and the watermark that is passed on is lower by the tolerance. They are emitted in order of
    time, with their own event times. Rows of the right are removed when no row of the left can match them any more;
    the last row of each key below the watermark stays. A late row of the right is counted and goes to its branch. It
    is also joined with rows of the left that are still waiting.

    `right_changes`: True if the right is a stream of changes. An added row is then the next version of its key. A
    deleted row ends the version: from its event time until the next version the key has no row. Rows with
    UPDATE_BEFORE are ignored. Only for "backward".

    Raises UserError for an unknown strategy, a tolerance that is missing or out of range, and changes with other
    strategies.
    """

    kind = "as-of join"
    hows = ("left", "inner")
    fate_of_right = (
        "are partners only of rows that come out after them; a reference whose rows are out of order is a table "
        "(app.table(…)), files in order (files(…, sort=)), or a stream with a greater lateness="
    )

    def __init__(
        self,
        sides: Sides,
        how: str,
        *,
        strategy: str = "backward",
        tolerance_ms: int | None = None,
        right_changes: bool = False,
    ) -> None:
        super().__init__(sides, how)
        if strategy not in ("backward", "forward", "nearest"):
            raise UserError(f"as-of join: strategy={strategy!r} is not known", hint="one of backward, forward, nearest")
        if tolerance_ms is not None and not 0 <= tolerance_ms <= LONGEST_MS:
            raise UserError(f"as-of join: a tolerance of {tolerance_ms} ms is out of range")
        if strategy != "backward" and tolerance_ms is None:
            raise UserError(
                f"as-of join: strategy={strategy!r} needs a tolerance, or rows would wait for ever",
                hint="tolerance='5m'",
            )
        if strategy != "backward" and right_changes:
            raise UserError(
                f"as-of join: strategy={strategy!r} does not work with changes on the right, whose versions are valid from their time on",
                hint="strategy='backward'",
            )
        self._strategy, self._tolerance, self._right_changes = strategy, tolerance_ms, right_changes
        self._ahead = 0 if strategy == "backward" else tolerance_ms or 0

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, names = self.sides, [source for source, _ in self.sides.right_names]
        result = Result(sides, left, right, op=False, timed=True)
        self.left = Side("left", left, sides.left_keys, context)
        extra = [pa.field(_GONE, pa.bool_())] if self._right_changes else []
        self.right = Side(
            "right", right, sides.right_keys, context, read=names, changes=self._right_changes, extra=extra
        )
        self._ended = np.zeros(0, np.int64)  # the ids of kept rows of the right that end a version
        return result

    def process(self, batch: Batch) -> None:
        rows = self.punctual(self.left, batch)
        if self.how == "inner":
            rows = self.left.with_keys(rows)[0]
        self.left.insert(rows)

    def process_right(self, batch: Batch) -> None:
        right = self.right
        rows = right.rows(batch)
        self.reject(right, batch, rows)
        gone = None
        if self._right_changes:
            ops = right.ops(batch)
            versions = ops != UPDATE_BEFORE
            rows, gone = rows.where(versions), ops[versions] == DELETE
        mask = right.has_key(rows)
        if mask is not None:
            rows, gone = rows.where(mask), None if gone is None else gone[mask]
        ids = right.insert(rows, None if gone is None else pa.array(gone))
        if gone is not None:
            self._ended = np.concatenate([self._ended, ids.to_numpy()[gone]])

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms > self.watermark:
            before = watermark_ms if watermark_ms == END_OF_TIME else within(watermark_ms - self._ahead)
            self._emit_before(before)
            self.set_watermark(watermark_ms)
            self._expire_right(before)
        return within(watermark_ms - self._ahead) if self._ahead and watermark_ms < END_OF_TIME else None

    def _emit_before(self, before: int) -> None:
        """Emits the rows of the left with times below `before`."""
        left, right = self.left, self.right
        ids = left.table.below(before)
        for start in range(0, len(ids), CHUNK_ROWS):
            rows, times = left.stored(ids.slice(start, CHUNK_ROWS))
            found = self._partners(rows, times)
            if self.how == "inner" and not (found >= 0).all():
                there = found >= 0
                rows, times, found = rows.filter(pa.array(there)), times[there], found[there]
            if len(found):
                self.output.add(self.result.rows(rows, right.table.take(pa.array(found), right.beside_keys), times))
        left.table.remove(ids)
        self.output.flush()

    def _partners(self, rows: pa.RecordBatch, times: Any) -> Any:
        """Returns for each of these rows of the left the id of its partner, or -1 if there is none (numpy)."""
        table, keys = self.right.table, self.left.key_indices
        tolerance = LONGEST_MS if self._tolerance is None else self._tolerance
        before = after = np.full(len(times), -1, np.int64)
        if self._strategy != "forward":
            before = table.last_at(rows, keys, pa.array(times)).to_numpy()
            if self._tolerance is not None:
                before = np.where(self._orders(before, -(2**62)) >= times - tolerance, before, -1)
        if self._strategy != "backward":
            first = table.first_at(rows, keys, pa.array(times)).to_numpy()
            at = self._orders(first, START_OF_TIME)
            after = table.last_at(rows, keys, pa.array(at)).to_numpy()  # of the rows with that time, the last to arrive
            after = np.where((first >= 0) & (at <= times + tolerance), after, -1)
        if self._strategy == "nearest":
            near = times - self._orders(before, -(2**62)) <= self._orders(after, 2**62) - times
            before = np.where((before >= 0) & (near | (after < 0)), before, after)
        found = after if self._strategy == "forward" else before
        if self._right_changes:
            there = found >= 0
            gone = table.take(pa.array(found[there]), [len(self.right.kept) - 1]).column(0)
            there[there] = gone.to_numpy(zero_copy_only=False)
            found = np.where(there, -1, found)
        return found

    def _orders(self, ids: Any, missing: int) -> Any:
        """Returns the event times of the rows of the right with these ids (numpy). For the id -1 the result is
        `missing`.
        """
        times = np.full(len(ids), missing)
        there = ids >= 0
        times[there] = self.right.table.orders(pa.array(ids[there])).to_numpy()
        return times

    def _expire_right(self, before: int) -> None:
        """Removes the rows of the right that cannot be the partner of a row of the left with a time >= `before`."""
        table = self.right.table
        if self._strategy == "backward":
            old = table.superseded(before)
            table.remove(old)
            if len(self._ended):
                self._remove_ends(before, old.to_numpy())
        if self._tolerance is not None and self._strategy != "forward":
            before = before if before == END_OF_TIME else within(before - self._tolerance)
        if self._tolerance is not None:
            old = table.below(before)
            table.remove(old)
            self._ended = self._ended[~np.isin(self._ended, old.to_numpy())]

    def _remove_ends(self, before: int, removed: Any) -> None:
        """Removes rows that end a version, if their times are below `before`. All versions before them have been
        removed, and a key without rows gives the same result as one whose version has ended.
        """
        ended = self._ended[~np.isin(self._ended, removed)]
        over = self.right.table.orders(pa.array(ended)).to_numpy() < before
        self.right.table.remove(pa.array(ended[over]))
        self._ended = ended[~over]

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        if self._right_changes:
            table = self.right.table
            ids = table.below(END_OF_TIME)
            for start in range(0, len(ids), CHUNK_ROWS):
                some = ids.slice(start, CHUNK_ROWS)
                ended = some.filter(table.take(some, [len(self.right.kept) - 1]).column(0))
                self._ended = np.concatenate([self._ended, ended.to_numpy()])

    def _visible(self, side: Side, rows: pa.RecordBatch) -> pa.RecordBatch:
        if side is self.right and self._right_changes:
            rows = rows.filter(pa.array(~rows.column(_GONE).to_numpy(zero_copy_only=False)))
        return rows

    def _state_options(self) -> JoinOptions:
        return {"strategy": self._strategy, "tolerance_ms": self._tolerance, "right_changes": self._right_changes}


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_asof_join(node: nodes.AsofJoin, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    options: dict[str, Any] = {"strategy": node.strategy, "tolerance_ms": node.tolerance_ms}
    options["right_changes"] = right.changes
    return plan_sides(node, left, right, lambda sides: AsofJoin(sides, node.how, **options))


PLANNERS: Planners = {nodes.AsofJoin: plan_asof_join}


STATE_READERS: StateReaders = {"as-of join": AsofJoin.read_with}
