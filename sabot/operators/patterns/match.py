"""Sequences of rows of a key (`api/patterns` says what a match is).

Predicates become bool columns, a batch at a time; `PatternTable` walks the rows. What it needs of earlier rows to compare with, it
keeps by itself; what measures need stands beside it in columns (`_Rows`), row by number, for as long as a partial match has the row.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.pattern import PatternTable, TooManyPartials
from sabot.api import patterns
from sabot.api.expr import Expr, col
from sabot.api.nodes import patterns as nodes
from sabot.api.patterns import MATCH_END, MATCH_START, check_measures, split, step_values, with_step_values
from sabot.arrays import shown
from sabot.codecs.json import schema_text
from sabot.errors import CorruptCheckpoint, UserError
from sabot.operators.aggregates.aggregator import Aggregator, Call, key_columns
from sabot.operators.base import END_OF_TIME, TIME_COLUMN, Cut, Operator, OperatorContext, Saved
from sabot.operators.expressions.casts import common_type
from sabot.operators.expressions.compiled import Compiled, compile_expr, compile_predicate
from sabot.operators.keeping import Batches, KeptCut, columns_schema, owned_groups, read_batches
from sabot.operators.keyed.ordered import in_order
from sabot.operators.layout.sites import Places, Site
from sabot.operators.readers import Readers
from sabot.operators.windows.sessions import CHUNK_ROWS, key_table, result_schema, time_index

__all__ = ["PLACES", "READERS", "Pattern", "PatternState"]

MAX_PARTIAL = 10_000
_TIMESTAMP = pa.timestamp("ms", "UTC")
_MOST = 63  # of tests and of slots that the kernel takes
_ROWS_A_PARTIAL = 100  # that a key may have on the average, where it has as many partial matches as it may
_GARBAGE_ROWS = 65_536  # fewer rows that nobody needs are not worth a copy
_PIECE_ROWS, _PIECES = (
    16_384,
    256,
)  # pieces of fewer rows are put together, when they are so many rows or so many pieces

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
        self._measures = _Measures(self._given, names, self._keys, context.input)
        plan = _Plan(self._pattern, self._measures.kept, context.input)
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
        self._rows = _Rows(self._measures.rows)
        bounds = [pa.field(MATCH_START, _TIMESTAMP), pa.field(MATCH_END, _TIMESTAMP)]
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
                begin.view(_TIMESTAMP),
                over.view(_TIMESTAMP),
            ]
            found = _Found(
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
            self._rows = _Rows(self._measures.rows)

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
        [*keys, pa.field(MATCH_START, _TIMESTAMP), pa.field("step", pa.string()), pa.field("rows", pa.int32())]
    )


def _contents(
    keys: Sequence[Array], fields: pa.Schema, partials: pa.RecordBatch, steps: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    named = pa.array(steps, pa.string()).take(partials.column("step"))
    columns = [*keys, partials.column("first").view(_TIMESTAMP), named, partials.column("rows")]
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


# -- what the kernel is told ------------------------------------------------------------------------------------------------


class _Plan:
    """A pattern over columns as the kernel takes it: tests are bool columns, operands what comparisons with earlier rows need."""

    def __init__(self, pattern: patterns.Pattern, kept: Sequence[str], input: pa.Schema) -> None:
        self._input = input
        self._known: dict[str, int] = {}  # the text of a predicate -> its column
        self._columns: dict[tuple[str, str], int] = {}  # the text of an operand and its type -> its column
        self._slots: dict[tuple[int, bool, int], int] = {}
        self.tests: list[Compiled] = []
        self.operands: list[Callable[[pa.RecordBatch], Array]] = []
        self.can_fail = False  # some value makes one of them raise a DataError
        self.kinds: list[str] = []  # of operands
        self.slots: list[tuple[int, bool, str, int]] = []
        self._names = [each.name for each in pattern.steps]
        self.steps: list[Any] = []
        for number, each in enumerate(pattern.steps):
            test = self._test(each.predicate, number)
            rows = (each.least, each.most, each.before, each.between)
            self.steps.append((*rows, each.is_optional, each.is_greedy, kept[number], test))
        gaps = [*(each.forbidden for each in pattern.steps), pattern.ending]
        self.gaps = [[self._test(predicate, -1) for predicate in gap] for gap in gaps]
        if len(self.tests) > _MOST or len(self.slots) > _MOST:
            raise UserError(
                f"the pattern has {len(self.tests)} predicates and {len(self.slots)} values of earlier rows, each at most {_MOST}",
                hint="make columns of some, or a shorter pattern",
            )

    def _test(self, predicate: Expr, own: int) -> tuple[int, list[Any]]:
        alone, comparisons = split(predicate)
        column = -1
        if alone is not None:
            column = self._known.setdefault(alone.text(), len(self.tests))
            if column == len(self.tests):
                self.tests.append(compile_predicate(alone, self._input))
                self.can_fail |= self.tests[-1].can_fail
        return column, [self._condition(each, own) for each in comparisons]

    def _condition(self, given: patterns.Comparison, own: int) -> Any:
        compile_predicate(Expr(given.op, (given.left, given.right)), self._input)  # says what does not fit
        sides = [compile_expr(each, self._input) for each in (given.left, given.right)]
        common = common_type(sides[0].type, sides[1].type)
        kind = None if common is None else _kind(common)
        if common is None or kind is None:
            types = " and ".join(str(each.type) for each in sides)
            raise UserError(
                f"{given.left.text()} {given.op} {given.right.text()}, of another row: {types} cannot be remembered",
                hint='cast them: .cast("float64")',
            )
        ends = []
        for expr, side, row in zip((given.left, given.right), sides, (given.left_of, given.right_of), strict=True):
            column = self._operand(expr.text(), side, common, kind)
            if row is None:
                ends.append((False, column))
                continue
            place = (self._names.index(row[0]), row[1] == "first", column)
            slot = self._slots.setdefault(place, len(self.slots))
            if slot == len(self.slots):
                self.slots.append((*place[:2], kind, column))
            ends.append((True, slot))
        itself = own >= 0 and self._names[own] in [row[0] for row in (given.left_of, given.right_of) if row is not None]
        return given.op, ends[0], ends[1], itself

    def _operand(self, text: str, side: Compiled, common: pa.DataType, kind: str) -> int:
        place = (text, str(common))
        if place not in self._columns:
            self._columns[place] = len(self.operands)
            self.operands.append(_canonical(side, common, kind))
            self.can_fail |= side.can_fail
            self.kinds.append(kind)
        return self._columns[place]


def _kind(type: pa.DataType) -> str | None:
    """What the kernel calls values of this type; None: it does not keep them."""
    if pa.types.is_uint64(type):
        return "unsigned"
    if pa.types.is_integer(type) or pa.types.is_boolean(type) or pa.types.is_temporal(type):
        return None if pa.types.is_interval(type) else "signed"
    if pa.types.is_floating(type):
        return "float"
    return "bytes" if pa.types.is_string(type) or pa.types.is_binary(type) else None


def _canonical(side: Compiled, common: pa.DataType, kind: str) -> Callable[[pa.RecordBatch], Array]:
    """The values as the kernel keeps that kind."""
    to = {"signed": pa.int64(), "unsigned": pa.uint64(), "float": pa.float64(), "bytes": common}[kind]
    narrow = pa.types.is_date32(common) or pa.types.is_time32(common)

    def values(data: pa.RecordBatch) -> Array:
        array = side(data)
        array = array if array.type == common else array.cast(common)
        if narrow:
            array = array.cast(pa.int32())
        return array if array.type == to else array.cast(to)

    return values


# -- measures ---------------------------------------------------------------------------------------------------------------

_CALLS = {"list": "collect_list"}  # others are called alike
_MATCH, _WEIGHT = (
    "__match",
    "__rows",
)  # columns of the rows of matches: which match it is of, how many rows it stands for


class _Found(NamedTuple):
    """Rows of matches; those of match i are from offsets[i] to offsets[i + 1]: step, number, how many it stands for."""

    offsets: Any
    steps: Any
    rows: Any
    weights: pa.Int64Array


class _Measures:
    """What is measured. rows: the columns that have to be kept of rows; kept: of each step which rows; results: a field a measure."""

    def __init__(
        self, measures: Sequence[tuple[str, Expr]], steps: Sequence[str], keys: pa.Schema, input: pa.Schema
    ) -> None:
        values = {value.text(): value for _, measure in measures for value in step_values(measure)}
        arguments = {each.text(): each for value in values.values() for each in value.inputs}
        for each in arguments.values():
            compile_expr(each, input)  # says which columns are missing
        used = frozenset().union(*(each.columns for each in arguments.values()))
        self._input = pa.schema([field for field in input if field.name in used])
        self._arguments = [compile_expr(each, self._input) for each in arguments.values()]
        self.rows = pa.schema(
            [pa.field(text, each.type) for text, each in zip(arguments, self._arguments, strict=True)]
        )
        self._of_match = pa.schema([pa.field(_MATCH, pa.int64()), pa.field(_WEIGHT, pa.int64()), *self.rows])
        self._of_step: list[tuple[int, Aggregator, bool]] = []
        self.kept: list[str] = []
        fields: list[pa.Field] = []
        for number, step in enumerate(steps):
            asked = {text: value for text, value in values.items() if value.option("step") == step}
            kinds = {value.kind for value in asked.values()} - {"step.count"}
            self.kept.append("each" if kinds - {"step.first", "step.last"} else "ends" if kinds else "count")
            if asked:
                calls = [_call(text, value) for text, value in asked.items()]
                aggregator = Aggregator([_MATCH], calls, self._of_match)
                self._of_step.append((number, aggregator, bool(kinds)))
                fields += list(aggregator.schema)[1:]
        bounds = [pa.field(MATCH_START, _TIMESTAMP), pa.field(MATCH_END, _TIMESTAMP)]
        self._values = pa.schema([*keys, *bounds, *fields])
        found = {
            text: col(text).fill_null(0) if each.kind == "step.count" else col(text) for text, each in values.items()
        }
        self._exprs = [compile_expr(with_step_values(measure, found), self._values) for _, measure in measures]
        self.results = [pa.field(name, each.type) for (name, _), each in zip(measures, self._exprs, strict=True)]

    def of_rows(self, data: pa.RecordBatch, rows: pa.Int32Array) -> pa.RecordBatch:
        """The columns `rows` of these rows."""
        chosen = data.select(self._input.names).take(rows)
        return pa.RecordBatch.from_arrays([each(chosen) for each in self._arguments], schema=self.rows)

    def of_matches(
        self, bounds: Sequence[Array], found: "_Found", taken: Callable[[Any], pa.RecordBatch]
    ) -> list[Array]:
        """A column a measure. bounds: keys, match_start, match_end."""
        count = len(found.offsets) - 1
        matches = np.repeat(np.arange(count), np.diff(found.offsets))
        everyone = self._rows_of(np.arange(count), pa.nulls(count, pa.int64()), None)
        columns = list(bounds)
        for step, aggregator, has_columns in self._of_step:
            there = np.flatnonzero(found.steps == step)
            data = taken(found.rows[there]) if has_columns else None
            table, extras = aggregator.table(), aggregator.extras()
            slots = table.resolve(everyone, [0])  # also those without rows of the step
            aggregator.add(table, extras, self._rows_of(matches[there], found.weights.take(pa.array(there)), data))
            columns += aggregator.finish(table, extras, slots).columns[1:]
        values = pa.RecordBatch.from_arrays(columns, schema=self._values)
        return [each(values) for each in self._exprs]

    def _rows_of(self, matches: Any, weights: pa.Int64Array, data: pa.RecordBatch | None) -> pa.RecordBatch:
        """Rows of matches as aggregates take them; without `data` all its columns are null."""
        columns = [pa.nulls(len(matches), field.type) for field in self.rows] if data is None else data.columns
        return pa.RecordBatch.from_arrays([pa.array(matches), weights, *columns], schema=self._of_match)


def _call(text: str, value: Expr) -> Call:
    kind = value.kind.removeprefix("step.")
    if kind == "count":
        return Call(text, "sum", _WEIGHT)
    return Call(text, _CALLS.get(kind, kind), value.inputs[0].text())


# -- rows that matches have -------------------------------------------------------------------------------------------------


class _Rows:
    """Columns of rows by their numbers, which ascend without gaps: pieces side by side."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._pieces: list[pa.RecordBatch] = []
        self._first: list[int] = []  # of each piece, the number of its first row
        self._small = self._loose = 0  # rows in the small pieces at the end, and how many these are

    def __len__(self) -> int:
        return sum(piece.num_rows for piece in self._pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    def append(self, data: pa.RecordBatch, first: int) -> None:
        """Rows first, first + 1, …"""
        self._pieces.append(data)
        self._first.append(first)
        small = data.num_rows < _PIECE_ROWS
        self._small, self._loose = (self._small + data.num_rows, self._loose + 1) if small else (0, 0)
        if self._small < _PIECE_ROWS and self._loose < _PIECES:
            return
        tail: list[pa.RecordBatch] = []
        while self._pieces and self._pieces[-1].num_rows < _PIECE_ROWS:
            tail.append(self._pieces.pop())
            first = self._first.pop()
        together = pa.concat_batches(tail[::-1])
        self._pieces.append(together)
        self._first.append(first)
        self._small, self._loose = (0, 0) if self._small >= _PIECE_ROWS else (together.num_rows, 1)

    def taken(self, rows: Any) -> pa.RecordBatch:
        """These rows (numpy, any order, any number of times)."""
        return _gathered(self._schema, self._pieces, self._first, rows)

    def keep(self, rows: pa.Int64Array) -> None:
        """Only these rows stay; the i-th has the number i."""
        kept = list(_pieces(self.taken, rows.to_numpy()))
        self._pieces, self._first, self._small, self._loose = [], [], 0, 0
        for first, data in kept:
            self.append(data, first)

    def frozen(self) -> Callable[[Any], pa.RecordBatch]:
        """`taken` of the rows as they are now, for another thread."""
        schema, pieces, first = self._schema, list(self._pieces), list(self._first)
        return lambda rows: _gathered(schema, pieces, first, rows)


def _pieces(taken: Callable[[Any], pa.RecordBatch], rows: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(where it begins, the rows) of many rows: texts of one array are at most 2 GiB."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield start, taken(rows[start : start + CHUNK_ROWS])


def _gathered(schema: pa.Schema, pieces: Sequence[pa.RecordBatch], first: Sequence[int], rows: Any) -> pa.RecordBatch:
    """Rows by number: each piece is asked once."""
    if not len(rows) or not len(schema):
        return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    bounds = [*np.searchsorted(ascending, first), len(ascending)]
    parts = [
        piece.take(pa.array(ascending[low:high] - start))
        for piece, start, low, high in zip(pieces, first, bounds, bounds[1:], strict=False)
        if high > low
    ]
    together = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
    if (order[1:] > order[:-1]).all():
        return together
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return together.take(pa.array(back))


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
        rows = [data for _, data in _pieces(self._rows, live)]
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
