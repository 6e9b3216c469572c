"""The join of rows whose times are near each other."""

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import joins as nodes
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, OperatorContext
from sabot.engine.operators.joins.join import plan_sides
from sabot.engine.operators.joins.sides import Result, Rows, Side, Sides, later
from sabot.engine.operators.joins.timed import LONGEST_MS, TimedJoin, within
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import JoinOptions
from sabot.errors import UserError

_FIRST_PROBE = 64  # the rows of the first piece of a search


class IntervalJoin(TimedJoin):
    """Joins rows with equal keys whose times are near: the right's time is in [left's + lower_ms, left's + upper_ms],
    both ends included.

    `how`: "inner", "left", "right", "full", "semi" or "anti". `lower_ms`, `upper_ms`: None for no bound. If the
    missing bound is the one by which rows of a side expire, these rows are kept until the end of the input. A row
    with a null in its key has no partner.

    - A pair is emitted when both rows are there. Its event time is the later of both. With `left_time` (of "inner" and
      "left", with `upper_ms`) it is that of the left, so the watermark that is passed on is lower by `upper_ms`.
    - A row without a partner is emitted when the watermark shows that none can come. It keeps its event time, as do the rows
      of a semi join, so the watermark that is passed on is lower: by `upper_ms` for rows of the left, by `-lower_ms` for
      rows of the right.
    - In a semi join without `upper_ms`, a row has the event time of its partner if that is later.

    Raises UserError if lower_ms > upper_ms, for a bound out of range, and if rows without a partner are wanted and
    the bound that they need is None.
    """

    kind = "interval join"

    def __init__(
        self, sides: Sides, how: str, lower_ms: int | None, upper_ms: int | None, *, left_time: bool = False
    ) -> None:
        super().__init__(sides, how)
        if lower_ms is not None and upper_ms is not None and lower_ms > upper_ms:
            raise UserError(
                f"interval join: the lower bound {lower_ms} ms is above the upper bound {upper_ms} ms",
                hint="between=(lower, upper) says how much later than the left the right may be",
            )
        for ms in (lower_ms, upper_ms):
            if ms is not None and abs(ms) > LONGEST_MS:
                raise UserError(f"interval join: a bound of {ms} ms is out of range")
        # by how many ms the emitted rows of each side may be behind the watermark
        self._behind = {
            "left": upper_ms if how in ("left", "full", "anti") else 0,
            "right": None if lower_ms is None else -lower_ms,
        }
        if how not in ("right", "full"):
            self._behind["right"] = 0
        for side, bound in (("left", "upper"), ("right", "lower")):
            if self._behind[side] is None:
                raise UserError(
                    f"interval join: how={how!r} needs the {bound} bound, or a row of the {side} might get a partner at any time",
                    hint=f"give the {bound} bound, as in between=('-1h', '5m')",
                )
        self._lower, self._upper = lower_ms, upper_ms
        self._single = how in ("semi", "anti")
        self._keeps_unmatched = {"left": how in ("left", "full", "anti"), "right": how in ("right", "full")}
        if (how == "semi" and upper_ms is not None) or left_time:
            self._behind["left"] = upper_ms
        self._left_time = left_time

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, names = self.sides, [source for source, _ in self.sides.right_names]
        result = Result(sides, left, right, op=False, timed=True)
        counted = self._keeps_unmatched["left"] and not self._single
        self.left = Side("left", left, sides.left_keys, context, counted=counted)
        self.right = Side("right", right, sides.right_keys, context, read=names, counted=self._keeps_unmatched["right"])
        return result

    def process(self, batch: Batch) -> None:
        rows = self.punctual(self.left, batch)
        if self._single:
            self._single_left(rows)
        else:
            self._pairs(self.left, self.right, rows)
        self.output.flush()

    def process_right(self, batch: Batch) -> None:
        rows = self.punctual(self.right, batch)
        if self._single:
            self._single_right(rows)
        else:
            self._pairs(self.right, self.left, rows)
        self.output.flush()

    def _bounds(self, side: Side, rows: Rows) -> tuple[pa.Int64Array | None, pa.Int64Array | None]:
        """Returns the earliest and the latest time of a partner, for all rows of the data; None for no bound."""
        times = rows.data.column(side.time).to_numpy()
        lower, upper = self._lower, self._upper
        if side is self.right:
            lower, upper = None if upper is None else -upper, None if lower is None else -lower
        return None if lower is None else pa.array(times + lower), None if upper is None else pa.array(times + upper)

    def _pairs(self, mine: Side, other: Side, rows: Rows) -> None:
        rows, without = mine.with_keys(rows)
        unmatched, others_unmatched = self._keeps_unmatched[mine.name], self._keeps_unmatched[other.name]
        if unmatched:
            self.emit_rows(mine, without, mine.times(without))
        if not len(rows):
            return
        ids, times = mine.insert(rows), mine.times(rows)
        found = np.zeros(len(rows), np.int32)
        lower, upper = self._bounds(mine, rows)
        for i, partners in other.table.find_chunks(
            rows.data, mine.key_indices, hashes=rows.hashes, selection=rows.selection, lower=lower, upper=upper
        ):
            theirs, their_times = other.stored(partners, of_partners=True)
            left, right = (rows.at(i), theirs) if mine is self.left else (theirs, rows.at(i))
            own = times[i.to_numpy()]
            time = later(own, their_times) if not self._left_time else own if mine is self.left else their_times
            self.output.add(self.result.rows(left, right, time))
            if unmatched:
                found[i.to_numpy()] = 1
            if others_unmatched:
                other.table.add_counts(partners, 1)
        if unmatched:
            mine.table.add_counts(ids, pa.array(found))

    # semi, anti: a row of the left is kept until it has its first partner

    def _single_left(self, rows: Rows) -> None:
        left, right, semi = self.left, self.right, self.how == "semi"
        rows, without = left.with_keys(rows)
        if not semi:
            self.emit_rows(left, without, left.times(without))
        if not len(rows):
            return
        lower, upper = self._bounds(left, rows)
        most = pa.array(np.full(rows.data.num_rows, END_OF_TIME)) if upper is None else upper
        last = right.table.last_at(
            rows.data, left.key_indices, most, hashes=rows.hashes, selection=rows.selection
        ).to_numpy()
        there = last >= 0
        if lower is not None:
            least = Rows(pa.RecordBatch.from_arrays([lower], names=["least"]), rows.selection).column(0).to_numpy()
            there[there] = right.table.orders(pa.array(last[there])).to_numpy() >= least[there]
        if semi:
            chosen = rows.where(there)
            self.emit_rows(left, chosen, left.times(chosen))
        left.insert(rows.where(~there))

    def _single_right(self, rows: Rows) -> None:
        """Stores the rows of the right, for a semi or anti join. Rows of the left that get their first partner from
        them are emitted by a semi join, and removed by an anti join.
        """
        rows = self.right.with_keys(rows)[0]
        self.right.insert(rows)
        start, size = 0, _FIRST_PROBE
        while start < len(rows):  # in growing pieces: each piece removes rows, so that the next ones find fewer
            end = min(start + size, len(rows))
            self._remove_matched(rows.only(np.arange(start, end)))
            start, size = end, min(2 * size, CHUNK_ROWS)

    def _remove_matched(self, rows: Rows) -> None:
        left, right = self.left, self.right
        lower, upper = self._bounds(right, rows)
        times = right.times(rows)
        met, causes = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for i, ids in left.table.find_chunks(
            rows.data, right.key_indices, hashes=rows.hashes, selection=rows.selection, lower=lower, upper=upper
        ):
            met = np.concatenate([met, ids.to_numpy()])
            causes = np.concatenate([causes, times[i.to_numpy()]])
            met, first = np.unique(met, return_index=True)
            causes = causes[first]
        for start in range(0, len(met), CHUNK_ROWS):
            if self.how == "semi":
                found, own = left.stored(pa.array(met[start : start + CHUNK_ROWS]))
                cause = None if self._upper is not None else causes[start : start + CHUNK_ROWS]
                self.emit_one_side(left, found, later(own, cause))
        left.table.remove(pa.array(met))

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms > self.watermark:
            self.set_watermark(watermark_ms)
            self._expire(self.left, self._upper)
            self._expire(self.right, None if self._lower is None else -self._lower)
            self.output.flush()
        behind = max(0, *(ms for ms in self._behind.values() if ms is not None))
        return within(watermark_ms - behind) if behind and watermark_ms < END_OF_TIME else None

    def _expire(self, side: Side, ms: int | None) -> None:
        """Removes the rows of a side that the watermark has passed by more than `ms`. If `ms` is None, removes them
        only at the end of time. Emits the rows that never had a partner, if the join emits such rows.
        """
        before = END_OF_TIME if self.watermark == END_OF_TIME else None if ms is None else self.watermark - ms
        if before is None:
            return
        ids = side.table.below(within(before))
        if self._keeps_unmatched[side.name]:
            for start in range(0, len(ids), CHUNK_ROWS):
                some = ids.slice(start, CHUNK_ROWS)
                if not self._single:
                    some = some.filter(pa.array(side.table.counts(some).to_numpy() == 0))
                if len(some):
                    self.emit_one_side(side, *side.stored(some))
        side.table.remove(ids)

    def _state_options(self) -> JoinOptions:
        return {"lower_ms": self._lower, "upper_ms": self._upper}


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_interval_join(node: nodes.IntervalJoin, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    def made(sides: Sides) -> IntervalJoin:
        return IntervalJoin(sides, node.how, node.lower_ms, node.upper_ms, left_time=node.left_time)

    return plan_sides(node, left, right, made)


PLANNERS: Planners = {nodes.IntervalJoin: plan_interval_join}


STATE_READERS: StateReaders = {"interval join": IntervalJoin.read_with}
