"""Joins of two streams by key: the regular join, whose result changes as rows come, and the lookup in the current
table.

    rows of the left  ──▶ kept by key ◀──▶ kept by key ◀──  rows of the right
                              └─────── partners ───────┘

The rows of each side are kept in a RowStore. A row that comes is joined with its partners on the other side. The
event time of a pair is the later of both. Joins by event time are in `interval`, `window` and `asof`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import joins as nodes
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    FilledFromTable,
    Operator,
    OperatorContext,
    Saved,
)
from sabot.engine.operators.changes.weaving import same_rows
from sabot.engine.operators.columns import no_event_time
from sabot.engine.operators.joins.sides import JoinOperator, Result, Rows, Side, Sides, later
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import JoinOptions, OwnFacts
from sabot.engine.operators.state_parts import last_watermark
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

__all__ = ["PLANNERS", "STATE_READERS", "Join", "Sides", "TableLookup", "plan_sides"]


class Join(JoinOperator, FilledFromTable):
    """The join of SQL over two tables that change: all pairs of rows with equal keys.

    `how`: "inner"; "left", "right" or "full", where a row without a partner is emitted with nulls, and that is
    removed when its first partner comes; "semi" or "anti", which emit the rows of the left that have, or do not have,
    a partner. A row with a null in its key has no partner. The result is changes, unless both inputs only add rows
    and `how` is "inner" or "semi". If a row is without a partner only between two changes of one batch, its row with
    nulls is not emitted.

    - `left_changes`, `right_changes`: True if rows of that side carry OP_COLUMN. A removed row is found by all its columns
      but event time.
    - `broadcast`: True if every subtask gets all rows of the right, and rows of the left stay in their subtask. The left
      must then only add rows.
    - `left_keep_ms`, `right_keep_ms`: rows of that side are removed when the watermark has passed them by so many ms; their
      results stay. Only for a side that only adds rows. None keeps rows for ever, with one exception: a semi or anti join
      whose right only adds rows removes the rows of the left that have a partner, and keeps only the keys of the right.

    Raises UserError for combinations that these rules exclude, such as `broadcast` with "right" or "full".
    """

    kind = "join"

    def __init__(
        self,
        sides: Sides,
        how: str,
        *,
        left_changes: bool = False,
        right_changes: bool = False,
        broadcast: bool = False,
        left_keep_ms: int | None = None,
        right_keep_ms: int | None = None,
    ) -> None:
        super().__init__(sides, how)
        self._left_keep_ms, self._right_keep_ms = left_keep_ms, right_keep_ms
        for name, ms, changes in (("left", left_keep_ms, left_changes), ("right", right_keep_ms, right_changes)):
            if ms is not None and ms < 0:
                raise UserError(
                    f"join: rows of the {name} side cannot be kept for {ms} ms, which is below 0",
                    hint="give 0 ms or more",
                )
            if ms is not None and changes:
                raise UserError(
                    f"join: the {name} side is a stream of changes, which says itself when its rows are removed",
                    hint="give the time to the step that makes the changes, or leave it out here",
                )
        if right_keep_ms is not None and (broadcast or how in ("semi", "anti")):
            what = "a right side that is broadcast" if broadcast else f"the right side of how={how!r}"
            raise UserError(
                f"join: rows of {what} are kept for ever", hint="use between=(…) to say how near a partner must be"
            )
        self._left_changes, self._right_changes, self._broadcast = left_changes, right_changes, broadcast
        if broadcast and how in ("right", "full"):
            raise UserError(
                f"join: how={how!r} does not work with a broadcast right side, whose rows each subtask would emit",
                hint="leave .broadcast() out, or swap the sides",
            )
        if broadcast and left_changes:
            raise UserError(
                "join: the left side must only add rows if the right side is broadcast", hint="leave .broadcast() out"
            )
        self._is_semi_or_anti = how in ("semi", "anti")
        self._changes = left_changes or right_changes or how not in ("inner", "semi")

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        how, sides = self.how, self.sides
        timed_left, timed_right = TIME_COLUMN in left.names, TIME_COLUMN in right.names
        timed = (
            (timed_left and timed_right)
            or (timed_left and how in ("inner", "left", "semi", "anti"))
            or (timed_right and how in ("inner", "right"))
        )
        result = Result(sides, left, right, op=self._changes, timed=timed)
        names = [source for source, _ in sides.right_names]
        changes = self._left_changes, self._right_changes
        order = ["hash" if side else "time" for side in changes]
        for name, ms, schema in (("left", self._left_keep_ms, left), ("right", self._right_keep_ms, right)):
            if ms is not None and TIME_COLUMN not in schema.names:
                raise no_event_time(f"join: rows of the {name} side are kept for {ms} ms, and have no event time")
        # a row has a count, which says that it has had a partner: the partner itself may have been removed
        counted = [self._stays("left") and self._right_keep_ms is not None]
        counted.append(self._stays("right") and self._left_keep_ms is not None)
        self.left = Side("left", left, sides.left_keys, context, order=order[0], changes=changes[0], counted=counted[0])
        if self._is_semi_or_anti:  # of each key one row is kept, with the number of the key's rows
            self.right = Side(
                "right",
                right,
                sides.right_keys,
                context,
                read=[],
                order="arrival",
                changes=changes[1],
                counted=changes[1],
            )
        else:
            self.right = Side(
                "right",
                right,
                sides.right_keys,
                context,
                read=names,
                order=order[1],
                changes=changes[1],
                counted=counted[1],
            )
        if timed and not timed_right:  # the event time of the right's rows is the watermark when they come
            self.right.now = START_OF_TIME
        return result

    def process(self, batch: Batch) -> None:
        if self._is_semi_or_anti:
            self._check_left(batch)
        else:
            self._pairs(self.left, self.right, batch)
        self.output.flush()

    def process_right(self, batch: Batch) -> None:
        if self._is_semi_or_anti:
            self._check_right(batch)
        else:
            self._pairs(self.right, self.left, batch)
        self.output.flush()

    # inner, left, right, full

    def _pairs(self, mine: Side, other: Side, batch: Batch) -> None:
        takes, adds = mine.netted(batch)
        unmatched = self._stays(mine.name)
        others_unmatched = self._stays(other.name) and not other.counted  # with counts, `_join` removes them
        takes, null_takes = mine.with_keys(takes)
        adds, null_adds = mine.with_keys(adds)
        known = mine.match(takes) if len(takes) else np.zeros(0, np.int64)
        takes = takes.where(known >= 0)
        # Before the batch changes what is kept: a row whose key has no number yet is the first partner of the other side's rows, and
        # of a key without rows the number is lost.
        before_takes, before = self._numbers(mine, takes, others_unmatched), self._numbers(mine, adds, others_unmatched)
        mine.table.remove(pa.array(known[known >= 0]))
        ids = mine.insert(adds)

        # A receiver that keeps one row for a key has the last one that comes. So what goes is told before what takes its place: a pair
        # before the row with nulls that is left of it, and a row with nulls before the pair with its first partner.
        self._join(mine, other, takes, DELETE, unmatched)
        if others_unmatched:
            new = adds.where(before < 0)
            self._emit_null_rows(mine, other, new, self._numbers(mine, new, True), DELETE)
            gone = self._numbers(mine, takes, True) < 0
            self._emit_null_rows(mine, other, takes.where(gone), before_takes[gone], INSERT)
        met = self._join(mine, other, adds, INSERT, unmatched)
        if mine.counted:
            mine.table.add_counts(ids, pa.array(met.astype(np.int32)))
        if unmatched:
            self._emit_one_side(mine, null_takes, DELETE)
            self._emit_one_side(mine, null_adds, INSERT)

    def _stays(self, side: str) -> bool:
        """Returns True if rows of this side without a partner are emitted with nulls."""
        return self.how in ("full", side)

    def _numbers(self, side: Side, rows: Rows, wanted: bool) -> Any:
        return side.key_numbers(rows) if wanted and len(rows) else np.zeros(len(rows), np.int32)

    def _join(self, mine: Side, other: Side, rows: Rows, op: int, unmatched: bool) -> Any:
        """Emits these rows with their partners. If `unmatched` is True, rows without a partner are emitted with nulls.
        Returns True for each row that has a partner (numpy).
        """
        met = np.zeros(len(rows), bool)
        if not len(rows):
            return met
        times = mine.times(rows)
        for i, ids in other.table.find_chunks(
            rows.data, mine.key_indices, hashes=rows.hashes, selection=rows.selection
        ):
            numbers = i.to_numpy()
            met[numbers] = True
            partners, others = other.stored(ids, of_partners=not other.counted)
            both = later(None if times is None else times[numbers], others)
            if other.counted:
                self._retract_null_rows(other, ids, partners, both)
            self.output.add(self._result_rows(mine, rows.at(i), partners, both, op))
        if unmatched:
            self._emit_one_side(mine, rows.where(~met), op)
        return met

    def _retract_null_rows(self, side: Side, ids: pa.Int64Array, rows: pa.RecordBatch, times: Any) -> None:
        """Increases the partner counts of rows that have been emitted before. If a row had no partner until now, it
        was emitted with nulls; this row is removed from the result by a DELETE.

        `side`: the side of the rows. `ids`: their ids, once for each new partner. `rows`: the rows, in the same
        order. `times`: the event times of the pairs, or None.
        """
        first = np.unique(ids.to_numpy(), return_index=True)[1]
        first = pa.array(first[side.table.counts(ids.take(pa.array(first))).to_numpy() == 0])
        if len(first):
            gone = None if times is None else times[first.to_numpy()]
            self.output.add(self._result_rows(side, rows.take(first), None, gone, DELETE))
        side.table.add_counts(ids, 1)

    def _emit_one_side(self, side: Side, rows: Rows, op: int) -> None:
        for piece in rows.pieces():
            if len(piece):
                self.output.add(self._result_rows(side, piece.taken(), None, side.times(piece), op))

    def _emit_null_rows(self, mine: Side, other: Side, rows: Rows, numbers: Any, op: int) -> None:
        """Emits the other side's rows with nulls, as changes. With the op DELETE, it removes them for rows that have
        got their first partner; with INSERT, it adds them for rows that have lost their last partner.

        `rows`: the partners, on the side `mine`. `numbers`: a number for the key of each partner. The event time is
        that of the earliest partner for DELETE, of the latest for INSERT.
        """
        for _, rows_of, times in self._partners(mine, other, rows, numbers, latest=op == INSERT):
            self.output.add(self._result_rows(other, rows_of, None, times, op))

    def _partners(
        self, mine: Side, other: Side, rows: Rows, numbers: Any, *, latest: bool
    ) -> Iterator[tuple[pa.Int64Array, pa.RecordBatch, Any]]:
        """Yields (ids, rows, times) of all rows of the other side that have a key of these rows, each row once."""
        if not len(rows):
            return
        rows, times = _one_per_key(rows, numbers, mine.times(rows), latest)
        for i, ids in other.table.find_chunks(
            rows.data, mine.key_indices, hashes=rows.hashes, selection=rows.selection
        ):
            found, others = other.stored(ids)
            yield ids, found, later(None if times is None else times[i.to_numpy()], others)

    def _result_rows(
        self, mine: Side, rows: pa.RecordBatch, partners: pa.RecordBatch | None, times: Any, op: int
    ) -> pa.RecordBatch:
        left, right = (rows, partners) if mine is self.left else (partners, rows)
        return self.result.rows(left, right, times, op=op)

    # semi, anti

    def _check_left(self, batch: Batch) -> None:
        left, right, semi = self.left, self.right, self.how == "semi"
        takes, adds = left.netted(batch)
        takes, null_takes = left.with_keys(takes)
        adds, null_adds = left.with_keys(adds)
        if len(takes):
            there = right.key_numbers(takes, left) >= 0
            kept = np.ones(len(takes), bool) if self._right_changes else ~there
            known = left.match(takes.where(kept))
            left.table.remove(pa.array(known[known >= 0]))
            kept[kept] = known < 0
            self._emit_one_side(left, takes.where((there if semi else ~there) & ~kept), DELETE)
        if not semi:
            self._emit_one_side(left, null_takes, DELETE)
            self._emit_one_side(left, null_adds, INSERT)
        there = right.key_numbers(adds, left) >= 0
        self._emit_one_side(left, adds.where(there if semi else ~there), INSERT)
        adds = adds if self._right_changes else adds.where(~there)
        left.insert(adds)

    def _check_right(self, batch: Batch) -> None:
        right = self.right
        takes, adds = right.netted(batch)
        takes, adds = right.with_keys(takes)[0], right.with_keys(adds)[0]
        came = right.key_numbers(adds) < 0
        new = adds.where(came)
        new_numbers = same_rows(right.only_keys(new))
        right.insert(_one_per_key(new, new_numbers, None, False)[0])
        gone, gone_numbers = takes, np.zeros(0, np.int64)
        if self._right_changes:
            i, ids = right.find(takes)
            right.unknown_takes += len(takes) - len(i)
            right.table.add_counts(ids, -1)
            right.table.add_counts(right.find(adds)[1], 1)
            empty = right.table.counts(ids).to_numpy() <= 0
            gone, gone_numbers = takes.only(i.to_numpy()[empty]), ids.to_numpy()[empty]
        first, second = (INSERT, DELETE) if self.how == "semi" else (DELETE, INSERT)
        for op in (DELETE, INSERT):  # as above, whichever of both a new key of the right means
            if op == second:
                self._emit_left_of(gone, gone_numbers, op, latest=True)
            if op == first:
                self._emit_left_of(new, new_numbers, op, latest=False)
        right.table.remove(pa.array(np.unique(gone_numbers)))

    def _emit_left_of(self, rows: Rows, numbers: Any, op: int, *, latest: bool) -> None:
        """Emits, with the op, the rows of the left whose keys have appeared on the right or disappeared from it.
        `rows`: the rows of the right.
        """
        over = []
        for ids, found, times in self._partners(self.right, self.left, rows, numbers, latest=latest):
            self.output.add(self._result_rows(self.left, found, None, times, op))
            over.append(ids)
        if over and not self._right_changes:
            self.left.table.remove(pa.concat_arrays(over))

    def advance(self, watermark_ms: int) -> None:
        for side, ms in ((self.left, self._left_keep_ms), (self.right, self._right_keep_ms)):
            if ms is not None:
                side.table.remove(side.table.below(max(watermark_ms - ms, START_OF_TIME)))
        if self.right.now is not None:
            self.right.now = watermark_ms

    def own_facts(self) -> OwnFacts:
        return {**super().own_facts(), "unknown_takes": self._unknown_takes(), "now": self.right.now}

    def _unknown_takes(self) -> int:
        return self.left.unknown_takes + self.right.unknown_takes

    def after_restore(self, saved: Sequence[Saved]) -> None:
        super().after_restore(saved)
        self.left.unknown_takes += self.state_parts.once(saved, "unknown_takes")
        if self.right.now is not None:
            self.right.now = last_watermark(saved, START_OF_TIME, "now")

    def _is_everywhere(self, side: Side) -> bool:
        return self._broadcast and side is self.right

    def _state_options(self) -> JoinOptions:
        return {
            "left_changes": self._left_changes,
            "right_changes": self._right_changes,
            "broadcast": self._broadcast,
            "left_keep_ms": self._left_keep_ms,
            "right_keep_ms": self._right_keep_ms,
        }

    def statistics(self) -> "ToldStep":
        figures = super().statistics()
        return {**figures, "unknown_takes": self._unknown_takes()} if figures else figures


class TableLookup(JoinOperator, FilledFromTable):
    """A join of each row of the left with a row of the table on the right: the row that the left row's key has there
    when the left row arrives. Later changes of the table do not change results.

    The right is a stream of changes with unique keys, or only adds rows; the last row of each key is then the
    table's. `how`: "left" (nulls if the table has no row) or "inner". The event time is that of the left's row. The
    result depends on which rows of the right have arrived, and may differ between runs; an as-of join by event time
    gives the same result each time.

    `broadcast`: True if every subtask gets all rows of the right, and rows of the left stay in their subtask.
    """

    kind = "lookup"
    hows = ("left", "inner")

    def __init__(self, sides: Sides, how: str, *, broadcast: bool = False) -> None:
        super().__init__(sides, how)
        self._broadcast = broadcast

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides = self.sides
        result = Result(sides, left, right, op=False, timed=TIME_COLUMN in left.names)
        self.left = Side("left", left, sides.left_keys, context, order=None)
        names = [source for source, _ in sides.right_names]
        self.right = Side(
            "right",
            right,
            sides.right_keys,
            context,
            read=names,
            order="arrival",
            changes=OP_COLUMN in right.names,
        )
        return result

    def _kept_sides(self) -> list[Side]:
        return [self.right]

    def _is_everywhere(self, side: Side) -> bool:
        return self._broadcast

    def _state_options(self) -> JoinOptions:
        return {"broadcast": True} if self._broadcast else {}  # older checkpoints do not have this fact

    def process_right(self, batch: Batch) -> None:
        right = self.right
        rows = right.rows(batch)
        keyed = right.has_key(rows)
        ops = right.ops(batch) if right.changes else np.zeros(len(rows), np.int8)
        if keyed is not None:
            rows, ops = rows.where(keyed), ops[keyed]
        if not len(rows):
            return
        numbers = same_rows(right.only_keys(rows))
        last = len(rows) - 1 - np.unique(numbers[::-1], return_index=True)[1]
        rows, ops = rows.only(last), ops[last]
        right.table.remove(right.find(rows)[1])
        right.insert(rows.where(ops & 1 == 0))

    def process(self, batch: Batch) -> None:
        rows = self.left.rows(batch)
        for piece in rows.pieces():
            i, ids = self.right.find(piece, self.left)
            if self.how == "left":
                found = np.full(len(piece), -1, np.int64)
                found[i.to_numpy()] = ids.to_numpy()
                i, ids = pa.array(np.arange(len(piece), dtype=np.int32)), pa.array(found)
            if len(i):
                data = piece.at(i)
                times = data.column(self.left.time).to_numpy() if self.left.timed else None
                self.output.add(self.result.rows(data, self.right.table.take(ids), times))
        self.output.flush()


def _one_per_key(rows: Rows, numbers: Any, times: Any, latest: bool) -> tuple[Rows, Any]:
    """Returns one row for each of the numbers, the earliest or the latest, and the times of these rows."""
    order = np.arange(len(rows))
    if times is not None:
        order = np.argsort(-times if latest else times, kind="stable")
    chosen = np.sort(order[np.unique(numbers[order], return_index=True)[1]])
    return rows.only(chosen), None if times is None else times[chosen]


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_join(node: nodes.Join, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    def make(sides: Sides) -> Operator:
        left_keep_ms, right_keep_ms = node.keep_ms
        return Join(
            sides,
            node.how,
            left_changes=left.changes,
            right_changes=right.changes,
            broadcast=node.broadcast,
            left_keep_ms=left_keep_ms,
            right_keep_ms=right_keep_ms,
        )

    return plan_sides(node, left, right, make)


def plan_lookup(node: nodes.Lookup, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    return plan_sides(node, left, right, lambda sides: TableLookup(sides, node.how, broadcast=node.broadcast))


def plan_sides(node: nodes.Join, left: PlanPoint, right: PlanPoint, make: Callable[[Sides], Operator]) -> PlanPoint:
    """Adds a join to the plan. `make`: makes its operator from the columns that are joined. Raises UserError if the
    columns of an input are not known.
    """
    names, used = node.right_names, left.layout.used.get(id(node))
    if names is not None and used is not None:
        names = [(old, new) for old, new in names if new in used]

    def made() -> Operator:
        if names is None:
            raise UserError(
                f"{node.word}: the columns of both streams must be known before the app runs",
                hint="give the columns of map_batches with schema=",
            )
        return make(Sides(node.left_keys, node.right_keys, tuple(names)))

    point = left.layout.connect(node, "join", left, right, (node.left_keys, node.right_keys))
    point = point.step(node.text(), made, id=node.id)
    assert point.last is not None
    point.last.scattered = node.broadcast
    if isinstance(node, nodes.JoinByTime):
        point.late_to("late", node.late, right.dead_letter)
        replace(point, topic=right.topic).late_to("late_right", node.late_right, right.dead_letter)
    return point


PLANNERS: Planners = {nodes.Join: plan_join, nodes.Lookup: plan_lookup}


STATE_READERS: StateReaders = {"join": Join.read_with}
