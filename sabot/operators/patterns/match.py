"""Sequences of rows of a key (`api/patterns` says what a match is).

Predicates become bool columns, a batch at a time; `PatternTable` walks the rows. What it needs of earlier rows to compare with, it
keeps by itself; what measures need stands beside it in columns (`KeptRows`), row by number, for as long as a partial match has the row.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.pattern import PatternTable, TooManyPartials
from sabot.api import patterns
from sabot.api.expr import Expr
from sabot.api.nodes import patterns as nodes
from sabot.api.patterns import MATCH_END, MATCH_START, check_measures
from sabot.arrays import shown
from sabot.codecs.json import schema_text
from sabot.errors import CorruptCheckpoint, UserError
from sabot.operators.base import END_OF_TIME, TIME_COLUMN, Cut, Operator, OperatorContext, Saved
from sabot.operators.columns import key_columns, key_table, result_schema, time_index
from sabot.operators.keeping import Batches, KeptCut, columns_schema, owned_groups, read_batches
from sabot.operators.keyed.ordered import in_order
from sabot.operators.layout.sites import Places, Site
from sabot.operators.patterns.kept_rows import CHUNK_ROWS, KeptRows, row_pieces
from sabot.operators.patterns.measures import TIMESTAMP, MatchedRows, Measures
from sabot.operators.patterns.plan import PatternPlan
from sabot.operators.readers import Readers

__all__ = ["PLACES", "READERS", "Pattern", "PatternState"]

MAX_PARTIAL = 10_000
_ROWS_A_PARTIAL = 100  # that a key may have on the average, where it has as many partial matches as it may
_GARBAGE_ROWS = 65_536  # fewer rows that nobody needs are not worth a copy

Array: TypeAlias = pa.Array


class Pattern(Operator):
    """The matches of a pattern: keys, match_start, match_end, measures; event time is match_end.

    match_start and match_end are the times of a match's first and last row (timestamp[ms, UTC], both inclusive); where a `without`
    stands at the end, match_end is when that time was over. Rows of a key must come in order of event time: those below the watermark
    are late, they go to the side "late", without TIME_COLUMN. State is kept in memory: the partial matches, of which a pattern with
    `within` forgets those that the watermark has left behind, and the columns of their rows that measures and predicates ask for.

    measures: (name, expression over values of steps; keys, match_start and match_end may stand in it too).
    max_partial: partial matches that a key may have; more is a UserError.
    """

    def __init__(
        self,
        keys: Sequence[str],
        pattern: patterns.Pattern,
        skip: str,
        measures: Sequence[tuple[str, Expr]],
        *,
        max_partial: int = MAX_PARTIAL,
        id: str = "",
    ) -> None:
        self.id = id
        self._names, self._pattern, self._skip = list(keys), pattern, skip
        self._given = check_measures(pattern, skip, dict(measures))
        self._max_partial = max_partial
        self._watermark_ms: int | None = None
        self._late_rows = self._matches = 0
        self._opened = False

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._time = time_index(context.input, "patterns")
        self._keys, self._key_indices = key_columns(self._names, context.input)
        self._known = key_table(self._keys)
        names = [each.name for each in self._pattern.steps]
        self._measures = Measures(self._given, names, self._keys, context.input)
        plan = PatternPlan(self._pattern, self._measures.kept, context.input)
        self._tests, self._operands, self._remembered = plan.tests, plan.operands, plan.slots
        self._can_fail = plan.can_fail
        self._table = PatternTable(
            plan.steps,
            plan.gaps,
            plan.slots,
            plan.kinds,
            within_ms=self._pattern.within_ms,
            skip=self._skip,
            max_partial=self._max_partial,
            max_rows=_ROWS_A_PARTIAL * self._max_partial,
        )
        self._rows = KeptRows(self._measures.rows)
        bounds = [pa.field(MATCH_START, TIMESTAMP), pa.field(MATCH_END, TIMESTAMP)]
        self._schema = result_schema([*self._keys, *bounds, *self._measures.results], timed=True)
        self._opened = True
        return self._schema

    def process(self, batch: Batch) -> None:
        batch = self._on_time(batch)
        if self._can_fail and batch.selection is not None:
            batch = batch.with_data(batch.taken())  # rows that do not count must not raise
        data, table = batch.data, self._table
        rows, starts = table.choose([test(data) for test in self._tests], data.num_rows, batch.selection)
        if not len(rows) or not (len(starts) or len(self._known)):
            return
        hashes = batch.hashes
        if hashes is None and len(starts):
            hashes = hash_columns([data.column(index) for index in self._key_indices], rows) if self._names else None
        if len(starts):  # only these make a key known
            self._known.resolve(data, self._key_indices, hashes=hashes, selection=starts)
        slots = self._known.resolve(data, self._key_indices, hashes=hashes, selection=rows, insert=False)
        table.begin(slots, data.column(self._time), [operand(data) for operand in self._operands])
        done = False
        while not done:
            try:
                done = table.walk()
            except TooManyPartials as error:
                raise self._crowded(error.args[0]) from None
            self._emit(data)
        self._tidy()

    def _on_time(self, batch: Batch) -> Batch:
        """Without the rows that are late."""
        times, watermark = batch.data.column(self._time), self._watermark_ms
        if watermark is None or not len(times) or pc.min(times).as_py() >= watermark:
            return batch
        rows = np.arange(len(times), dtype=np.int32) if batch.selection is None else batch.selection.to_numpy()
        late = times.to_numpy()[rows] < watermark
        if not late.any():
            return batch
        self._late_rows += int(late.sum())
        if "late" in self._context.side:
            self._context.side["late"](Batch(batch.data.drop_columns([TIME_COLUMN]).take(pa.array(rows[late]))))
        return batch.with_selection(pa.array(rows[~late]), batch.hashes)

    def _crowded(self, slot: int) -> UserError:
        keys = self._known.key_columns(pa.array([slot], pa.int32()))
        words = ", ".join(f"{name} = {shown(key[0])}" for name, key in zip(self._names, keys, strict=True))
        return UserError(
            f"more than {self._max_partial:,} partial matches (or {_ROWS_A_PARTIAL * self._max_partial:,} rows in them) of one key, "
            f"{words or 'there are no keys'}, of the pattern {self._pattern.text()}",
            hint="give it a shorter within, a stricter first step, then() in place of then_any(), greedy() or fewer times, "
            'skip="past_last", or a greater max_partial; of steps with many rows measure count(), first() and last() alone',
        )

    def _emit(self, data: pa.RecordBatch | None) -> None:
        """The matches that were found. data: the batch of which rows were taken."""
        slots, first, last, offsets, steps, rows, weights, taken = self._table.matches()
        if data is not None and len(taken) and len(self._measures.rows):
            self._rows.append(self._measures.of_rows(data, taken), self._table.next_row - len(taken))
        self._matches += len(slots)
        bounds = offsets.to_numpy()
        for start in range(0, len(slots), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(slots))
            low, count = bounds[start], bounds[end] - bounds[start]
            begin, over = first.slice(start, end - start), last.slice(start, end - start)
            columns = [
                *self._known.key_columns(slots.slice(start, end - start)),
                begin.view(TIMESTAMP),
                over.view(TIMESTAMP),
            ]
            found = MatchedRows(
                bounds[start : end + 1] - low,
                steps.slice(low, count).to_numpy(),
                rows.slice(low, count).to_numpy(),
                weights.slice(low, count),
            )
            columns += self._measures.of_matches(columns, found, self._rows.taken)
            self.emit(Batch(pa.RecordBatch.from_arrays([*columns, over], schema=self._schema)))

    def _tidy(self) -> None:
        """Keys and rows that nobody needs go."""
        vacant = self._table.vacant()
        if len(vacant):
            self._known.remove(vacant)
        if len(self._rows) > 4 * self._table.live_nodes + _GARBAGE_ROWS:
            self._rows.keep(self._table.renumber())

    def advance(self, watermark_ms: int) -> None:
        if self._watermark_ms is None or watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
        done = False
        while not done:
            done = self._table.expire(watermark_ms)
            self._emit(None)
        self._tidy()

    def state_schema(self) -> dict[str, Any]:
        return {
            "kind": "pattern",
            "keys": columns_schema(self._keys),
            "pattern": self._pattern.text(),
            "skip": self._skip,
            "columns": columns_schema(self._measures.rows),
            "kept": [[step, kept] for step, kept in zip(self._steps(), self._measures.kept, strict=True)],
            "remembered": [[*slot[:2], str(slot[2])] for slot in self._remembered],
        }

    def state_reader(self) -> dict[str, Any]:
        keys = pa.schema([*self._keys, pa.field(TIME_COLUMN, pa.int64())])
        return {
            "keys": self._names,
            "steps": [step.name for step in self._pattern.steps],
            "input": schema_text(keys),
        }

    def contents(self) -> Iterator[pa.RecordBatch]:
        partials, _ = self._table.export()
        yield from _contents(self._known.key_columns(partials.column("slot")), self._keys, partials, self._steps())

    def _steps(self) -> list[str]:
        return [step.name for step in self._pattern.steps]

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        facts = {"watermark": self._watermark_ms, "late_rows": self._late_rows, **self.about_state(len(self._table))}
        if not len(self._table):
            return facts, None
        partials, nodes = self._table.export()
        columns = [*self._known.key_columns(partials.column("slot")), *partials.columns[1:]]
        names = [*(f"key.{i}" for i in range(len(self._keys))), *partials.schema.names[1:]]
        saved = pa.RecordBatch.from_arrays(columns, names=names)
        return facts, _PatternCut(saved, nodes, self._rows.frozen())

    def restore(self, saved: list[Saved]) -> None:
        watermarks = [part.facts["watermark"] for part in saved]
        if watermarks and None not in watermarks and min(watermarks) < END_OF_TIME:
            self._watermark_ms = min(watermarks)  # at END_OF_TIME it was drained: time begins anew
        if self._context.subtask == 0:  # the job's sum stays what it was
            self._late_rows = sum(part.facts["late_rows"] for part in saved)
        mine = self.state_schema()
        for part in saved:
            if any(part.facts["schema"][name] != mine[name] for name in ("kept", "remembered")):
                raise _other_columns(part.directory)
            for partials in read_batches(part.directory, "partials"):
                self._load(part.directory, partials)

    def _load(self, directory: Path, partials: pa.RecordBatch) -> None:
        """The partial matches of one subtask, as far as their keys belong here."""
        width, first_row = len(self._keys), self._table.next_row
        keys = partials.columns[:width]
        (nodes,) = read_batches(directory, "nodes")
        rows = list(read_batches(directory, "rows"))
        if [key.type for key in keys] != self._keys.types or any(
            not each.schema.equals(self._measures.rows) for each in rows
        ):
            raise _other_columns(directory)
        mine = partials.filter(_owned(self._context, keys, partials.num_rows))
        if not mine.num_rows:
            return
        slots = self._known.resolve(mine, list(range(width)))
        columns = [slots, *mine.columns[width:]]
        names = ["slot", *mine.schema.names[width:]]
        loaded = pa.RecordBatch.from_arrays(columns, names=names)
        try:
            self._table.load(loaded, nodes, first_row, sum(piece.num_rows for piece in rows))
        except ValueError as error:
            raise _other_columns(directory) from error
        for piece in rows:
            if piece.num_rows:
                self._rows.append(piece, first_row)
            first_row += piece.num_rows
        self._tidy()  # of rows of other subtasks' keys

    def close(self) -> None:
        if self._opened:  # one whose columns were refused is closed too
            self._known.clear()
            self._rows = KeptRows(self._measures.rows)

    def statistics(self) -> dict[str, Any]:
        return {
            "partial_matches": len(self._table),
            "keys": len(self._known),
            "held_rows": len(self._rows),
            "matches": self._matches,
            "late_rows": self._late_rows,
            "bytes": self._table.nbytes + self._known.nbytes + self._rows.nbytes,
        }


class PatternState(Operator):
    """The state of a Pattern, read without the program: its partial matches (`contents`), no rows."""

    def __init__(self, keys: Sequence[str], steps: Sequence[str]) -> None:
        self._names, self._steps = list(keys), list(steps)
        self._pieces: list[pa.RecordBatch] = []

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._keys = pa.schema([context.input.field(name) for name in self._names])
        return _contents_schema(self._keys)

    def restore(self, saved: list[Saved]) -> None:
        for part in saved:
            for partials in read_batches(part.directory, "partials"):
                keys = partials.columns[: len(self._keys)]
                self._pieces.append(partials.filter(_owned(self._context, keys, partials.num_rows)))

    def contents(self) -> Iterator[pa.RecordBatch]:
        for piece in self._pieces:
            yield from _contents(piece.columns[: len(self._keys)], self._keys, piece, self._steps)


def _contents_schema(keys: pa.Schema) -> pa.Schema:
    """Of partial matches, as people read them: keys, match_start, the step that they are in, and how many rows they have."""
    return pa.schema(
        [*keys, pa.field(MATCH_START, TIMESTAMP), pa.field("step", pa.string()), pa.field("rows", pa.int32())]
    )


def _contents(
    keys: Sequence[Array], fields: pa.Schema, partials: pa.RecordBatch, steps: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    named = pa.array(steps, pa.string()).take(partials.column("step"))
    columns = [*keys, partials.column("first").view(TIMESTAMP), named, partials.column("rows")]
    if partials.num_rows:
        yield pa.RecordBatch.from_arrays(columns, schema=_contents_schema(fields))


def _owned(context: OperatorContext, keys: Sequence[Array], rows: int) -> pa.BooleanArray:
    hashes = hash_columns(keys) if keys else pa.array(np.zeros(rows, np.uint64))
    return owned_groups(context, keyed=len(keys) > 0)(hashes)


def _other_columns(directory: Path) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{directory}: the state is not that of this pattern",
        hint="keys, pattern and what is measured cannot change between a checkpoint and its restore",
    )


class _PatternCut:
    """Partial matches at a barrier (a Cut). Their rows are looked up, and counted anew, in the thread that saves them."""

    def __init__(self, partials: pa.RecordBatch, nodes: pa.RecordBatch, rows: Callable[[Any], pa.RecordBatch]) -> None:
        self._partials, self._nodes = partials, nodes
        self._rows: Callable[[Any], pa.RecordBatch] | None = rows

    def save(self, directory: Path) -> int:
        assert self._rows is not None
        numbers = self._nodes.column("row").to_numpy()
        live = np.unique(numbers[numbers >= 0])
        ranks = np.where(numbers >= 0, np.searchsorted(live, numbers), -1)
        nodes = self._nodes.set_column(0, "row", pa.array(ranks, pa.int64()))
        rows = [data for _, data in row_pieces(self._rows, live)]
        files: dict[str, Cut | Batches] = {
            "partials": Batches(self._partials.schema, [self._partials]),
            "nodes": Batches(nodes.schema, [nodes]),
        }
        if rows:
            files["rows"] = Batches(rows[0].schema, rows)
        return KeptCut(files).save(directory)

    def discard(self) -> None:
        self._rows = None


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def place_match(node: nodes.Match, site: Site) -> Site:
    site = in_order(site.together(node.keys, "pattern"), node.keys, node.id)
    make = partial(Pattern, node.keys, node.pattern, node.skip, node.measures, max_partial=node.max_partial)
    return site.step(node.text(), make, id=node.id)


PLACES: Places = {nodes.Match: place_match}


READERS: Readers = {"pattern": lambda reader: PatternState(reader["keys"], reader["steps"])}
