"""Finds the matches of a pattern among the rows of a key (`api/patterns` defines a match).

Predicates become bool columns, for a whole batch at a time, and a `PatternTable` walks the rows. The table keeps the
values of earlier rows that later rows are compared with. `PatternRows` keeps the columns that measures need, by the
numbers of the rows, as long as a partial match has the row.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.pattern import PatternTable, TooManyPartials
from sabot.api import patterns
from sabot.api.arguments import RowPolicy
from sabot.api.expr import Expr
from sabot.api.nodes import patterns as nodes
from sabot.api.patterns import MATCH_END, MATCH_START, check_measures
from sabot.base.arrays import shown
from sabot.codecs.json import schema_text
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, START_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.columns import key_columns, key_table, result_schema, time_index
from sabot.engine.operators.keyed.ordered import in_order
from sabot.engine.operators.late_rows import LateRows
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.patterns.measures import TIMESTAMP, MatchedRows, Measures
from sabot.engine.operators.patterns.pattern_rows import PatternRows
from sabot.engine.operators.patterns.plan import PatternPlan
from sabot.engine.operators.patterns.state import PartialMatches, PatternState, contents_of
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.rows.bad import BadRows, values_or_nulls
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts, columns_schema, last_watermark
from sabot.errors import DataError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

MAX_PARTIAL = 10_000
_ROWS_A_PARTIAL = 100  # the most rows of a key, for each partial match of `max_partial`

Array: TypeAlias = pa.Array


class Pattern(StatefulOperator):
    """A step that finds the matches of a pattern, and emits for each: keys, match_start, match_end, measures. The
    event time is match_end, or later if it was certain only later that the match counts (`overlap="begun"`).

    match_start and match_end are the times of a match's first and last row (timestamp[ms, UTC]). If the pattern ends
    with `without`, match_end is the time at which its `within` is over. Rows of a key must come in order of event
    time. Rows below the watermark are late, and go to the output branch "late". The state is the partial matches,
    with the columns of their rows that measures and predicates need. A pattern with `within` drops a partial match
    when the watermark has passed its first row by more than `within`.

    `measures`: (name, expression over values of steps; keys, match_start and match_end may occur in it).
    `max_partial`: the most partial matches of a key; above it `process` raises UserError. `on_error`: the policy for
    rows for which a predicate, or a value of the row that a measure uses, cannot be computed: such a row is in no
    match. It is also the policy for matches whose measures cannot be computed; their dead letters have the keys,
    match_start and match_end.
    """

    def __init__(
        self,
        keys: Sequence[str],
        pattern: patterns.Pattern,
        skip: patterns.Skip,
        measures: Sequence[tuple[str, Expr]],
        *,
        overlap: patterns.Overlap = "complete",
        max_partial: int = MAX_PARTIAL,
        on_error: RowPolicy = "fail",
    ) -> None:
        self._on_error = on_error
        self._names, self._pattern, self._skip, self._overlap = list(keys), pattern, skip, overlap
        self._given = check_measures(pattern, skip, dict(measures), overlap)
        self._max_partial = max_partial
        self._watermark_ms: int | None = None
        self._matches = 0
        self._opened = False

    def open(self, context: OperatorContext) -> pa.Schema:
        self._late = LateRows(context, self.step.text, place=self.step.origin.place)
        self._time = time_index(context.input, "patterns")
        self._keys, self._key_indices = key_columns(self._names, context.input)
        self._known = key_table(self._keys)
        names = list(dict.fromkeys(each.name for each in self._pattern.steps))
        self._measures = Measures(self._given, names, self._keys, context.input)
        self._plan = plan = PatternPlan(self._pattern, self._skip, self._measures.kept, context.input)
        self._variables = np.array(plan.variables)
        self._checked = [*plan.checked, *self._measures.checked]
        self._bad = BadRows(self.step.text or "pattern", self._on_error, context, self.step)
        self._table = PatternTable(
            plan.steps,
            plan.edges,
            plan.slots,
            plan.kinds,
            within_ms=self._pattern.within_ms,
            skip="to_slot" if isinstance(self._skip, tuple) else self._skip,
            skip_slot=plan.skip_slot,
            overlap=self._overlap,
            max_partial=self._max_partial,
            max_rows=_ROWS_A_PARTIAL * self._max_partial,
        )
        self._rows = PatternRows(self._measures.rows)
        self._state = PartialMatches(
            self._known,
            self._key_indices,
            self._table,
            self._rows,
            self.state_schema,
            self._pattern.within_ms,
            context,
            ends=self._overlap == "begun",
        )
        self.state_parts = StateParts(context, [self._state], keyed=len(self._names) > 0)
        bounds = [pa.field(MATCH_START, TIMESTAMP), pa.field(MATCH_END, TIMESTAMP)]
        self._schema = result_schema([*self._keys, *bounds, *self._measures.results], timed=True)
        self._opened = True
        return self._schema

    def process(self, batch: Batch) -> None:
        batch = self._without_late(batch)
        if self._checked and batch.selection is not None:
            batch = batch.with_data(batch.taken())  # a row that is not selected must not raise an error
        try:
            tests, operands = self._computed(batch.data)
        except DataError:
            batch = self._without_bad(batch)
            tests, operands = self._computed(batch.data)
        data, table, state = batch.data, self._table, self._state
        with state.changing:
            rows, starts = table.choose(tests, data.num_rows, batch.selection)
            if not len(rows) or not (len(starts) or len(self._known) or state.cold_rows):
                return
            hashes = batch.hashes
            if hashes is None and self._names and (len(starts) or state.cold_rows):
                hashes = hash_columns([data.column(index) for index in self._key_indices], rows)
            if state.cold_rows:
                state.fetch(data, hashes, rows)
            if len(starts):  # only a row that can begin a match adds its key
                self._known.resolve(data, self._key_indices, hashes=hashes, selection=starts)
            slots = self._known.resolve(data, self._key_indices, hashes=hashes, selection=rows, insert=False)
            if state.is_held:
                state.note(slots.filter(pc.greater_equal(slots, 0)))
            table.begin(slots, data.column(self._time), operands)
        done = False
        while not done:
            with state.changing:
                try:
                    done = table.walk()
                except TooManyPartials as error:
                    raise self._too_many_error(error.args[0]) from None
                found = self._new_matches(data)
            self._emit(found)
        self._settle()

    def _settle(self) -> None:
        """Removes the rows and keys that no partial match needs. Above the memory budget, moves keys to disk."""
        with self._state.changing:
            self._state.tidy()
            self._state.settle()

    def _without_late(self, batch: Batch) -> Batch:
        """Returns the batch without its late rows. Late rows are counted, and sent to the output branch "late"."""
        times, watermark = batch.data.column(self._time), self._watermark_ms
        self._late.came(batch.num_rows)
        if watermark is None or not len(times) or pc.min(times).as_py() >= watermark:
            return batch
        rows = np.arange(len(times), dtype=np.int32) if batch.selection is None else batch.selection.to_numpy()
        late = times.to_numpy()[rows] < watermark
        if not late.any():
            return batch
        self._late.reject(batch, pa.array(rows[late]), watermark)
        return batch.with_selection(pa.array(rows[~late]), batch.hashes)

    def _computed(self, data: pa.RecordBatch) -> tuple[list[pa.Array], list[Any]]:
        """Returns the columns of the tests and the operands. Raises DataError if a row has no value of one of them, or
        of an expression that a measure takes from it.
        """
        for each in self._measures.checked:
            each(data)
        return [test(data) for test in self._plan.tests], [operand(data) for operand in self._plan.operands]

    def _without_bad(self, batch: Batch) -> Batch:
        """Returns the batch, whose rows are all selected, without those for which an expression fails. They are set
        apart.
        """
        data, bad = batch.data, dict[int, DataError]()
        for each in self._checked:
            values_or_nulls("", each, data, bad)
        errors = dict(sorted(bad.items()))
        if errors and self._bad.fails:
            row, error = next(iter(errors.items()))
            hint = error.hint or 'with on_error="dead_letter" such rows become dead letters'
            raise DataError(f"{self._bad.step}: {self._bad.message(batch, row, error)}", hint=hint) from error
        self._bad.set_apart(batch, errors)
        good = np.ones(data.num_rows, np.bool_)
        good[list(errors)] = False
        return batch.with_data(data.filter(pa.array(good)))

    def _too_many_error(self, slot: int) -> UserError:
        keys = self._known.key_columns(pa.array([slot], pa.int32()))
        words = ", ".join(f"{name} = {shown(key[0])}" for name, key in zip(self._names, keys, strict=True))
        return UserError(
            f"more than {self._max_partial:,} partial matches (or {_ROWS_A_PARTIAL * self._max_partial:,} rows in them) of one key, "
            f"{words or 'without key columns'}, in the pattern {self._pattern.text()}",
            hint="use a shorter within, a stricter first step, then() in place of then_any(), greedy() or fewer times, "
            'skip="past_last", or a greater max_partial; for steps with many rows measure only count(), first() and last()',
        )

    def _new_matches(self, data: pa.RecordBatch | None) -> tuple[Any, ...]:
        """Returns the matches that were found since the last call, for `_emit`.

        `data`: the batch whose rows the table has added to matches, or None.
        """
        *found, taken = self._table.matches()
        if data is not None and len(taken) and len(self._measures.rows):
            self._rows.append(self._measures.of_rows(data, taken), self._table.next_row - len(taken))
        self._matches += len(found[0])
        return tuple(found)

    def _emit(self, matches: tuple[Any, ...]) -> None:
        count = len(matches[0])
        for start in range(0, count, CHUNK_ROWS):
            self._emit_some(matches, start, min(start + CHUNK_ROWS, count))

    def _emit_some(self, matches: tuple[Any, ...], start: int, end: int) -> None:
        """Emits the matches from `start` to before `end`. If their measures cannot be computed, emits each half by
        itself, and so on down to single matches, which are set apart.
        """
        slots, first, last, known, offsets, steps, rows, weights = matches
        bounds = offsets.slice(start, end - start + 1).to_numpy()
        low, count = bounds[0], bounds[-1] - bounds[0]
        begin, over = first.slice(start, end - start), last.slice(start, end - start)
        columns = [
            *self._known.key_columns(slots.slice(start, end - start)),
            begin.view(TIMESTAMP),
            over.view(TIMESTAMP),
        ]
        found = MatchedRows(
            bounds - low,
            self._variables[steps.slice(low, count).to_numpy()],
            rows.slice(low, count).to_numpy(),
            weights.slice(low, count),
        )
        try:
            measures = self._measures.of_matches(columns, found, self._rows.taken)
        except DataError as error:
            if self._bad.fails:
                raise
            if end - start > 1:
                middle = (start + end) // 2
                self._emit_some(matches, start, middle)
                self._emit_some(matches, middle, end)
                return
            match = pa.RecordBatch.from_arrays(columns, names=self._schema.names[: len(columns)])
            self._bad.set_apart(Batch(match), {0: error})
            if not self._bad.nulls:
                return
            measures = [pa.nulls(1, field.type) for field in self._measures.results]
        columns += [*measures, known.slice(start, end - start)]
        self.emit(Batch(pa.RecordBatch.from_arrays(columns, schema=self._schema)))

    def advance(self, watermark_ms: int) -> None:
        before, self._watermark_ms = self._watermark_ms, max(watermark_ms, self._watermark_ms or watermark_ms)
        state, table = self._state, self._table
        over = watermark_ms == END_OF_TIME and self._overlap == "begun"
        for _ in state.due(watermark_ms) if self._pattern.within_ms is not None or over else ():
            with state.changing:
                if state.is_held:
                    state.note(table.due(watermark_ms))
            self._drain(partial(table.expire, watermark_ms))
            if over:  # no row can complete a partial match any more, so those that wait for it count
                with state.changing:
                    if state.is_held:
                        state.note(table.occupied())
                self._drain(partial(table.flush, START_OF_TIME if before is None else before))
            with state.changing:
                state.tidy()
        self._settle()

    def _drain(self, more: Callable[[], bool]) -> None:
        """Calls `more` until it returns True, and emits the matches that each call finds."""
        done = False
        while not done:
            with self._state.changing:
                done = more()
                found = self._new_matches(None)
            self._emit(found)

    def state_schema(self) -> StateSchema:
        return {
            "kind": "pattern",
            "keys": columns_schema(self._keys),
            "pattern": self._pattern.text(),
            "skip": patterns.skip_text(self._skip, self._overlap),
            "columns": columns_schema(self._measures.rows),
            "kept": [
                [step, self._measures.kept[i]] for step, i in zip(self._steps(), self._plan.variables, strict=True)
            ],
            "remembered": self._plan.remembered,
        }

    def state_reader(self) -> StateReader:
        keys = pa.schema([*self._keys, pa.field(TIME_COLUMN, pa.int64())])
        return {
            "keys": self._names,
            "steps": self._steps(),
            "input": schema_text(keys),
        }

    def contents(self) -> Iterator[pa.RecordBatch]:
        yield from self._contents(None)
        for slots in self._state.every_read():
            yield from self._contents(slots.unique())

    def _contents(self, slots: pa.Int32Array | None) -> Iterator[pa.RecordBatch]:
        partials, _ = self._table.export(slots)
        yield from contents_of(self._known.key_columns(partials.column("slot")), self._keys, partials, self._steps())

    def _steps(self) -> list[str]:
        return self._plan.visits

    def group_count(self) -> int:
        return len(self._table) + self._state.cold_rows

    def own_facts(self) -> OwnFacts:
        return {"watermark": self._watermark_ms, **self._late.facts()}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._watermark_ms = last_watermark(saved, None)
        self._late.restore(self.state_parts.share(saved))

    def close(self) -> None:
        if self._opened:  # False if `open` has refused the columns
            self._state.clear()
            self._late.tell_rest()
            self._bad.close()

    def statistics(self) -> "ToldStep":
        return {
            **self._state.figures(),
            "partial_matches": len(self._table),
            "keys": self._state.key_count,
            "held_rows": len(self._rows),
            "matches": self._matches,
            **self._late.statistics(),
            **self._bad.statistics(),
        }


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_match(node: nodes.Match, point: PlanPoint) -> PlanPoint:
    point = in_order(point.partition_by(node.keys, "pattern"), node.keys, node.id)
    make = partial(
        Pattern,
        node.keys,
        node.pattern,
        node.skip,
        node.measures,
        overlap=node.overlap,
        max_partial=node.max_partial,
        on_error=point.policy(),
    )
    return point.step(node.text(), make, id=node.id).late_to("late", node.late)


PLANNERS: Planners = {nodes.Match: plan_match}


STATE_READERS: StateReaders = {"pattern": lambda reader: PatternState(reader["keys"], reader["steps"])}
