"""Joins of two streams by key and event time: within an interval, in a window, as of a time.

What a row can still meet is bounded by the watermark: rows are kept for so long, and no longer. Rows are only added to the result. A row
that is late (its time is below the watermark when it comes) is dropped and counted; it goes to the side "late", or "late_right", without
TIME_COLUMN.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.windows.window import split_panes
from sabot.api import windows
from sabot.api.nodes import joins as nodes
from sabot.errors import UserError
from sabot.operators.base import DELETE, END_OF_TIME, START_OF_TIME, TIME_COLUMN, UPDATE_BEFORE, OperatorContext, Saved
from sabot.operators.joins.join import place_sides
from sabot.operators.joins.sides import CHUNK_ROWS, Joined, Result, Rows, Side, Sides, later
from sabot.operators.keeping import last_watermark
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers
from sabot.operators.windows.panes import TimeWindow, WindowShape
from sabot.operators.windows.sessions import window_words

__all__ = ["PLACES", "READERS", "AsofJoin", "IntervalJoin", "WindowJoin"]

_LONGEST_MS = 2**60  # of an interval or a tolerance
_FIRST_PROBE = 64  # rows
_GONE = "__gone"


class _TimedJoin(Joined):
    """Both sides have event time."""

    def open(self, context: OperatorContext) -> pa.Schema:
        for name, schema in (("left", context.input), ("right", context.right)):
            if schema is not None and TIME_COLUMN not in schema.names:
                hint = "name its column: app.stream(..., time='ts')"
                raise UserError(f"{self.kind}: the {name} side has no event time", hint=hint)
        self._set_watermark(START_OF_TIME)
        return super().open(context)

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = watermark_ms  # rows with a time below this are late

    def _punctual(self, side: Side, batch: Batch) -> Rows:
        """The rows that are not late; the others go to the side."""
        rows = side.rows(batch)
        late = side.times(rows) < self._late_before
        if not late.any():
            return rows
        self._late_rows += int(np.count_nonzero(late))
        put = self._context.side.get("late" if side is self._left else "late_right")
        if put is not None:
            put(batch.with_data(batch.taken().filter(pa.array(late)).drop_columns([TIME_COLUMN])))
        return rows.where(~late)

    def _emit_alone(self, side: Side, rows: pa.RecordBatch, times: Any, bounds: tuple[int, int] | None = None) -> None:
        """Rows without one of the other side."""
        left, right = (rows, None) if side is self._left else (None, rows)
        self._emission.add(self._result.rows(left, right, times, bounds=bounds))

    def _emit_rows(self, side: Side, rows: Rows, times: Any) -> None:
        for start in range(0, len(rows), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(rows))
            self._emit_alone(side, rows.at(pa.array(np.arange(start, end, dtype=np.int32))), times[start:end])

    def noted(self) -> dict[str, Any]:
        return {**super().noted(), "watermark": self._watermark}

    def recall(self, saved: Sequence[Saved]) -> None:
        super().recall(saved)
        watermark = last_watermark(saved)
        if watermark is not None:
            self._set_watermark(watermark)


class IntervalJoin(_TimedJoin):
    """Pairs with equal keys whose times are near: the right's is in [left's + lower_ms, left's + upper_ms], both ends included.

    A bound of None is none: what it would bound is kept until the end of the input. A null in a key has no partner.
    how: "inner", "left", "right", "full", "semi", "anti". Pairs come out when both rows are there; their time is the later of both.
    A row that has no partner comes out when the watermark says that none can come. It has its own time, and so have the rows of a semi
    join: what follows is told a watermark that is so much behind (`upper_ms` for rows of the left, `-lower_ms` for those of the right).
    For rows without a partner the bound is needed: UserError. A row of a semi join without it has the time of its partner, if later.
    """

    kind = "interval join"

    def __init__(self, sides: Sides, how: str, lower_ms: int | None, upper_ms: int | None, *, id: str = "") -> None:
        super().__init__(sides, how, id)
        if lower_ms is not None and upper_ms is not None and lower_ms > upper_ms:
            raise UserError(
                f"interval join: nothing is between {lower_ms} ms and {upper_ms} ms",
                hint="between=(least, most): how much later than the left the right may be",
            )
        for ms in (lower_ms, upper_ms):
            if ms is not None and abs(ms) > _LONGEST_MS:
                raise UserError(f"interval join: a bound of {ms} ms is out of range")
        # whose rows come out without a partner, and how far behind
        self._behind = {
            "left": upper_ms if how in ("left", "full", "anti") else 0,
            "right": None if lower_ms is None else -lower_ms,
        }
        if how not in ("right", "full"):
            self._behind["right"] = 0
        for side, bound in (("left", "upper"), ("right", "lower")):
            if self._behind[side] is None:
                raise UserError(
                    f"interval join: with how={how!r} and no {bound} bound it is never known that a row of the {side} has no partner",
                    hint=f"give the {bound} bound: between=('-1h', '5m')",
                )
        self._lower, self._upper = lower_ms, upper_ms
        self._single = how in ("semi", "anti")
        self._alone = {"left": how in ("left", "full", "anti"), "right": how in ("right", "full")}
        if how == "semi" and upper_ms is not None:
            self._behind["left"] = upper_ms

    def _opened(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, names = self._sides, [source for source, _ in self._sides.right_names]
        result = Result(sides, left, right, op=False, timed=True)
        counted = self._alone["left"] and not self._single
        self._left = Side("left", left, sides.left_keys, context, counted=counted)
        self._right = Side("right", right, sides.right_keys, context, read=names, counted=self._alone["right"])
        return result

    def process(self, batch: Batch) -> None:
        rows = self._punctual(self._left, batch)
        if self._single:
            self._single_left(rows)
        else:
            self._pairs(self._left, self._right, rows)
        self._emission.flush()

    def process_right(self, batch: Batch) -> None:
        rows = self._punctual(self._right, batch)
        if self._single:
            self._single_right(rows)
        else:
            self._pairs(self._right, self._left, rows)
        self._emission.flush()

    def _bounds(self, side: Side, rows: Rows) -> tuple[pa.Int64Array | None, pa.Int64Array | None]:
        """Between which times a partner is, for all rows of the data."""
        times = rows.data.column(side.time).to_numpy()
        lower, upper = self._lower, self._upper
        if side is self._right:
            lower, upper = None if upper is None else -upper, None if lower is None else -lower
        return None if lower is None else pa.array(times + lower), None if upper is None else pa.array(times + upper)

    def _pairs(self, mine: Side, other: Side, rows: Rows) -> None:
        rows, without = mine.with_keys(rows)
        alone, others_alone = self._alone[mine.name], self._alone[other.name]
        if alone:
            self._emit_rows(mine, without, mine.times(without))
        if not len(rows):
            return
        ids, times = mine.insert(rows), mine.times(rows)
        found = np.zeros(len(rows), np.int32)
        lower, upper = self._bounds(mine, rows)
        for i, partners in other.table.find_chunks(
            rows.data, mine.key_indices, hashes=rows.hashes, selection=rows.selection, lower=lower, upper=upper
        ):
            theirs, their_times = other.stored(partners, of_partners=True)
            left, right = (rows.at(i), theirs) if mine is self._left else (theirs, rows.at(i))
            self._emission.add(self._result.rows(left, right, later(times[i.to_numpy()], their_times)))
            if alone:
                found[i.to_numpy()] = 1
            if others_alone:
                other.table.add_counts(partners, 1)
        if alone:
            mine.table.add_counts(ids, pa.array(found))

    # semi, anti: a row of the left is kept until it has a partner

    def _single_left(self, rows: Rows) -> None:
        left, right, semi = self._left, self._right, self._how == "semi"
        rows, without = left.with_keys(rows)
        if not semi:
            self._emit_rows(left, without, left.times(without))
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
            self._emit_rows(left, chosen, left.times(chosen))
        left.insert(rows.where(~there))

    def _single_right(self, rows: Rows) -> None:
        """Rows of the left that have their first partner now come out, or are forgotten."""
        rows = self._right.with_keys(rows)[0]
        self._right.insert(rows)
        start, size = 0, _FIRST_PROBE
        while start < len(rows):  # in growing pieces: after each, the rows that it found are not there any more
            end = min(start + size, len(rows))
            self._meet(rows.only(np.arange(start, end)))
            start, size = end, min(2 * size, CHUNK_ROWS)

    def _meet(self, rows: Rows) -> None:
        left, right = self._left, self._right
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
            if self._how == "semi":
                found, own = left.stored(pa.array(met[start : start + CHUNK_ROWS]))
                cause = None if self._upper is not None else causes[start : start + CHUNK_ROWS]
                self._emit_alone(left, found, later(own, cause))
        left.table.remove(pa.array(met))

    def advance(self, watermark_ms: int) -> int | None:
        if watermark_ms > self._watermark:
            self._set_watermark(watermark_ms)
            self._expire(self._left, self._upper)
            self._expire(self._right, None if self._lower is None else -self._lower)
            self._emission.flush()
        behind = max(0, *(ms for ms in self._behind.values() if ms is not None))
        return _within(watermark_ms - behind) if behind and watermark_ms < END_OF_TIME else None

    def _expire(self, side: Side, ms: int | None) -> None:
        """Rows go that the watermark has passed by more than this."""
        before = END_OF_TIME if self._watermark == END_OF_TIME else None if ms is None else self._watermark - ms
        if before is None:
            return
        ids = side.table.below(_within(before))
        if self._alone[side.name]:
            for start in range(0, len(ids), CHUNK_ROWS):
                some = ids.slice(start, CHUNK_ROWS)
                if not self._single:
                    some = some.filter(pa.array(side.table.counts(some).to_numpy() == 0))
                if len(some):
                    self._emit_alone(side, *side.stored(some))
        side.table.remove(ids)

    def _described(self) -> dict[str, Any]:
        return {"lower_ms": self._lower, "upper_ms": self._upper}


class WindowJoin(_TimedJoin):
    """Pairs with equal keys in the same window, when it is over. Result: the left's columns, window_start, window_end, the right's columns.

    how: "inner", "left", "right", "full", "semi", "anti", in each window for itself. A null in a key has no partner. The time is the
    window's last ms. Windows come out in the order of their ends. A row is late when all its windows are over.
    """

    kind = "window join"

    def __init__(self, sides: Sides, how: str, window: windows.Window, *, id: str = "") -> None:
        super().__init__(sides, how, id)
        if not isinstance(window, TimeWindow):
            raise UserError(
                f"a join in a {type(window).__name__}: the two sides would not have the same windows",
                hint="tumbling, hopping or cumulative; or between=(…) for rows that are near each other",
            )
        self._window, self._shape = window, WindowShape(window)

    def _opened(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, how = self._sides, self._how
        result = Result(sides, left, right, op=False, timed=True, windowed=True)
        names = [source for source, _ in sides.right_names]
        self._left = Side("left", left, sides.left_keys, context)
        self._right = Side("right", right, sides.right_keys, context, read=names)
        self._alone = {"left": how in ("left", "full", "anti"), "right": how in ("right", "full")}
        self._panes: list[int] = []  # those that hold rows, ascending
        return result

    def _set_watermark(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms
        self._late_before = self._shape.late_before(watermark_ms)

    def process(self, batch: Batch) -> None:
        self._keep(self._left, self._punctual(self._left, batch))

    def process_right(self, batch: Batch) -> None:
        self._keep(self._right, self._punctual(self._right, batch))

    def _keep(self, side: Side, rows: Rows) -> None:
        if not self._alone[side.name]:
            rows = side.with_keys(rows)[0]
        if len(rows):
            shape = self._shape
            _, panes = split_panes(rows.data.column(side.time), shape.step, shape.offset, rows.selection)
            self._add_panes([pane for pane, _ in panes])
            side.insert(rows)

    def _add_panes(self, panes: list[int]) -> None:
        for pane in panes:
            at = bisect_left(self._panes, pane)
            if at == len(self._panes) or self._panes[at] != pane:
                insort(self._panes, pane)

    def advance(self, watermark_ms: int) -> None:
        if watermark_ms <= self._watermark:
            return
        for end in self._shape.ends(self._panes, self._watermark, watermark_ms):
            self._emit_window(self._shape.start(end), end)
            self._expire(self._shape.late_before(end))
        self._set_watermark(watermark_ms)
        self._expire(self._late_before)
        self._emission.flush()
        del self._panes[: bisect_left(self._panes, self._late_before)]

    def _expire(self, before: int) -> None:
        for side in (self._left, self._right):
            side.table.remove(side.table.below(before))

    def _emit_window(self, start: int, end: int) -> None:
        left, right, single = self._left, self._right, self._how in ("semi", "anti")
        for rows in self._rows_in(left, start, end):
            alone = np.ones(len(rows), bool)
            if single:
                alone = ~self._met(rows, left, right, start, end)
            else:
                bounds = {
                    "lower": pa.array(np.full(len(rows), start)),
                    "upper": pa.array(np.full(len(rows), end - 1)),
                }
                for i, ids in right.table.find_chunks(rows.data, left.key_indices, **bounds):
                    times = np.full(len(i), end - 1)
                    self._emission.add(self._result.rows(rows.at(i), right.table.take(ids), times, bounds=(start, end)))
                    alone[i.to_numpy()] = False
            if self._how == "semi":
                alone = ~alone
            if self._alone["left"] or self._how == "semi":
                self._emit_where(left, rows, alone, start, end)
        if self._alone["right"]:
            for rows in self._rows_in(right, start, end):
                self._emit_where(right, rows, ~self._met(rows, right, left, start, end), start, end)

    def _rows_in(self, side: Side, start: int, end: int) -> Iterator[Rows]:
        """The rows of a window, by time."""
        ids = side.table.below(end)
        ids = ids.slice(int(np.searchsorted(side.table.orders(ids).to_numpy(), start)))
        for first in range(0, len(ids), CHUNK_ROWS):
            yield Rows(side.table.take(ids.slice(first, CHUNK_ROWS)))

    def _met(self, rows: Rows, mine: Side, other: Side, start: int, end: int) -> Any:
        """Which of them have a partner in the window (numpy)."""
        last = other.table.last_at(rows.data, mine.key_indices, pa.array(np.full(len(rows), end - 1))).to_numpy()
        met = last >= 0
        met[met] = other.table.orders(pa.array(last[met])).to_numpy() >= start
        return met

    def _emit_where(self, side: Side, rows: Rows, mask: Any, start: int, end: int) -> None:
        chosen = rows.where(mask)
        if len(chosen):
            self._emit_alone(side, chosen.taken(), np.full(len(chosen), end - 1), (start, end))

    def recall(self, saved: Sequence[Saved]) -> None:
        super().recall(saved)
        for side in (self._left, self._right):
            times = side.table.orders(side.table.below(END_OF_TIME)).to_numpy()
            self._add_panes(np.unique(times - (times - self._shape.offset) % self._shape.step).tolist())

    def _described(self) -> dict[str, Any]:
        return {"window": window_words(self._window)}

    def state_reader(self) -> dict[str, Any]:
        return {**super().state_reader(), "window": [type(self._window).__name__, asdict(self._window)]}

    @classmethod
    def _made(cls, sides: Sides, how: str, given: dict[str, Any]) -> Joined:
        name, figures = given["window"]
        return cls(sides, how, getattr(windows, name)(**figures))

    def statistics(self) -> dict[str, Any]:
        figures = super().statistics()
        return {**figures, "panes": len(self._panes)} if figures else figures


class AsofJoin(_TimedJoin):
    """Each row of the left with the right's row of the same key that is nearest in time. how: "left" (none: nulls), "inner".

    strategy: "backward" (the last with a time <= the left's), "forward" (the first with one >=), "nearest" (the nearer of the two; of
    equally near ones the earlier); tolerance_ms: how far it may be at most, which "forward" and "nearest" need. Of rows of the right of
    equal time the last to come counts. A null in a key has no partner.

    Rows of the left wait until the watermark has passed them (of "forward" and "nearest" by the tolerance, and what follows is told a
    watermark that is so much behind), and come out by time, with their own time. Of the right what no row can meet any more is
    forgotten: of each key the last row below the watermark stays. A row of the right that is late is counted, and counts for the rows
    of the left that have not come out.
    right_changes: rows of the right that are added are versions of their key; one that is deleted ends it: from its time on there is
    none, until the next. An update's row before is passed over. Only for "backward".
    """

    kind = "as-of join"
    hows = ("left", "inner")

    def __init__(
        self,
        sides: Sides,
        how: str,
        *,
        strategy: str = "backward",
        tolerance_ms: int | None = None,
        right_changes: bool = False,
        id: str = "",
    ) -> None:
        super().__init__(sides, how, id)
        if strategy not in ("backward", "forward", "nearest"):
            raise UserError(f"as-of join: strategy={strategy!r} is not known", hint="one of backward, forward, nearest")
        if tolerance_ms is not None and not 0 <= tolerance_ms <= _LONGEST_MS:
            raise UserError(f"as-of join: a tolerance of {tolerance_ms} ms is out of range")
        if strategy != "backward" and tolerance_ms is None:
            raise UserError(
                f"as-of join: with strategy={strategy!r} and no tolerance a row would wait for ever",
                hint="tolerance='5m'",
            )
        if strategy != "backward" and right_changes:
            raise UserError(
                f"as-of join: strategy={strategy!r} of a right side with changes: its versions hold from their time on",
                hint="strategy='backward'",
            )
        self._strategy, self._tolerance, self._right_changes = strategy, tolerance_ms, right_changes
        self._ahead = 0 if strategy == "backward" else tolerance_ms or 0

    def _opened(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        sides, names = self._sides, [source for source, _ in self._sides.right_names]
        result = Result(sides, left, right, op=False, timed=True)
        self._left = Side("left", left, sides.left_keys, context)
        extra = [pa.field(_GONE, pa.bool_())] if self._right_changes else []
        self._right = Side(
            "right", right, sides.right_keys, context, read=names, changes=self._right_changes, extra=extra
        )
        self._ended = np.zeros(0, np.int64)  # ids of the right's rows that end a version
        return result

    def process(self, batch: Batch) -> None:
        rows = self._punctual(self._left, batch)
        if self._how == "inner":
            rows = self._left.with_keys(rows)[0]
        self._left.insert(rows)

    def process_right(self, batch: Batch) -> None:
        right = self._right
        rows = right.rows(batch)
        self._late_rows += int(np.count_nonzero(right.times(rows) < self._late_before))
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
        if watermark_ms > self._watermark:
            before = watermark_ms if watermark_ms == END_OF_TIME else _within(watermark_ms - self._ahead)
            self._give(before)
            self._set_watermark(watermark_ms)
            self._forget(before)
        return _within(watermark_ms - self._ahead) if self._ahead and watermark_ms < END_OF_TIME else None

    def _give(self, before: int) -> None:
        """Rows of the left below this time come out."""
        left, right = self._left, self._right
        ids = left.table.below(before)
        for start in range(0, len(ids), CHUNK_ROWS):
            rows, times = left.stored(ids.slice(start, CHUNK_ROWS))
            found = self._partners(rows, times)
            if self._how == "inner" and not (found >= 0).all():
                there = found >= 0
                rows, times, found = rows.filter(pa.array(there)), times[there], found[there]
            if len(found):
                self._emission.add(self._result.rows(rows, right.table.take(pa.array(found), right.beside_keys), times))
        left.table.remove(ids)
        self._emission.flush()

    def _partners(self, rows: pa.RecordBatch, times: Any) -> Any:
        """The ids of the right's rows for these of the left; -1: there is none (numpy)."""
        table, keys = self._right.table, self._left.key_indices
        tolerance = _LONGEST_MS if self._tolerance is None else self._tolerance
        before = after = np.full(len(times), -1, np.int64)
        if self._strategy != "forward":
            before = table.last_at(rows, keys, pa.array(times)).to_numpy()
            if self._tolerance is not None:
                before = np.where(self._orders(before, -(2**62)) >= times - tolerance, before, -1)
        if self._strategy != "backward":
            first = table.first_at(rows, keys, pa.array(times)).to_numpy()
            at = self._orders(first, START_OF_TIME)
            after = table.last_at(rows, keys, pa.array(at)).to_numpy()  # of those of that time the last
            after = np.where((first >= 0) & (at <= times + tolerance), after, -1)
        if self._strategy == "nearest":
            near = times - self._orders(before, -(2**62)) <= self._orders(after, 2**62) - times
            before = np.where((before >= 0) & (near | (after < 0)), before, after)
        found = after if self._strategy == "forward" else before
        if self._right_changes:
            there = found >= 0
            gone = table.take(pa.array(found[there]), [len(self._right.kept) - 1]).column(0)
            there[there] = gone.to_numpy(zero_copy_only=False)
            found = np.where(there, -1, found)
        return found

    def _orders(self, ids: Any, missing: int) -> Any:
        """The times of the right's rows with these ids; `missing` for -1."""
        times = np.full(len(ids), missing)
        there = ids >= 0
        times[there] = self._right.table.orders(pa.array(ids[there])).to_numpy()
        return times

    def _forget(self, before: int) -> None:
        """What a row of the left at this time, or a later one, cannot meet."""
        table = self._right.table
        if self._strategy == "backward":
            old = table.superseded(before)
            table.remove(old)
            if len(self._ended):
                self._end(before, old.to_numpy())
        if self._tolerance is not None and self._strategy != "forward":
            before = before if before == END_OF_TIME else _within(before - self._tolerance)
        if self._tolerance is not None:
            old = table.below(before)
            table.remove(old)
            self._ended = self._ended[~np.isin(self._ended, old.to_numpy())]

    def _end(self, before: int, removed: Any) -> None:
        """A version's end, when nothing is left before it, is as good as nothing."""
        ended = self._ended[~np.isin(self._ended, removed)]
        over = self._right.table.orders(pa.array(ended)).to_numpy() < before
        self._right.table.remove(pa.array(ended[over]))
        self._ended = ended[~over]

    def recall(self, saved: Sequence[Saved]) -> None:
        super().recall(saved)
        if self._right_changes:
            table = self._right.table
            ids = table.below(END_OF_TIME)
            for start in range(0, len(ids), CHUNK_ROWS):
                some = ids.slice(start, CHUNK_ROWS)
                ended = some.filter(table.take(some, [len(self._right.kept) - 1]).column(0))
                self._ended = np.concatenate([self._ended, ended.to_numpy()])

    def _shown(self, side: Side, rows: pa.RecordBatch) -> pa.RecordBatch:
        if side is self._right and self._right_changes:
            rows = rows.filter(pa.array(~rows.column(_GONE).to_numpy(zero_copy_only=False)))
        return rows

    def _described(self) -> dict[str, Any]:
        return {"strategy": self._strategy, "tolerance_ms": self._tolerance, "right_changes": self._right_changes}


def _within(ms: int) -> int:
    """As a time that there is."""
    return max(START_OF_TIME, min(ms, END_OF_TIME))


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_interval_join(node: nodes.IntervalJoin, left: Site, right: Site) -> Site:
    return place_sides(node, left, right, lambda sides: IntervalJoin(sides, node.how, node.lower_ms, node.upper_ms))


def place_window_join(node: nodes.WindowJoin, left: Site, right: Site) -> Site:
    return place_sides(node, left, right, lambda sides: WindowJoin(sides, node.how, node.window))


def place_asof_join(node: nodes.AsofJoin, left: Site, right: Site) -> Site:
    options: dict[str, Any] = {"strategy": node.strategy, "tolerance_ms": node.tolerance_ms}
    options["right_changes"] = right.changes
    return place_sides(node, left, right, lambda sides: AsofJoin(sides, node.how, **options))


PLACES: Places = {
    nodes.IntervalJoin: place_interval_join,
    nodes.WindowJoin: place_window_join,
    nodes.AsofJoin: place_asof_join,
}


READERS: Readers = {
    "interval join": IntervalJoin.read_with,
    "window join": WindowJoin.read_with,
    "as-of join": AsofJoin.read_with,
}
