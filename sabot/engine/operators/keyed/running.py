"""Operators by key without windows of time: running aggregates, reduce, deduplicate, and windows of a number of rows.

If a key has one result for ever, a TableStore has the state. If a key begins anew after a time or a number of rows,
its rows form *runs*: a `RunTable` decides which run a row belongs to, and `KeyedRuns` has the state of each run. Both
keep to a memory budget.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.windows.sessions import RunTable
from sabot.api.nodes import keyed as nodes
from sabot.api.windows import WINDOW_END, WINDOW_START, CountWindow
from sabot.api.words import name_of
from sabot.base.arrays import column_of, python_rows
from sabot.codecs.json import schema_text
from sabot.engine.operators.aggregates.aggregator import (
    AggregateColumn,
    Aggregator,
    aggregates_reader,
    aggregates_schema,
)
from sabot.engine.operators.aggregates.arguments import with_arguments
from sabot.engine.operators.aggregates.decimals import named_by, too_wide
from sabot.engine.operators.aggregates.migration import StateLayout, StateMigration, migration_of
from sabot.engine.operators.aggregates.user import fits
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, TIME_COLUMN, Operator, OperatorContext, Saved
from sabot.engine.operators.columns import key_at, key_columns, key_table, result_schema, time_index
from sabot.engine.operators.keyed.ordered import in_order
from sabot.engine.operators.keyed.reduced import ReducedRuns
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders, aggregates_of, described, no_function
from sabot.engine.operators.rows.origin import of_selected, reselected
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StatePart, StateParts, TablesPart, columns_schema
from sabot.engine.operators.windows.panes import window_text
from sabot.engine.operators.windows.sessions import KeyedRuns, RunAggregates, plus_ms
from sabot.engine.state.tables.store import TableStore
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array
Row = dict[str, Any]

_TIMESTAMP = pa.timestamp("ms", "UTC")
# kinds that have no result after each row
_WHOLE = frozenset(["count_distinct", "collect_list", "collect_set", "arg_min", "arg_max", "user"])


class _KeyedOperator(StatefulOperator):
    """The base of these operators. The state is either in `_store`, or in `_state` by the runs in `_runs`."""

    _store: TableStore | None = None
    _runs: RunTable | None = None
    _migration: StateMigration | None = None  # the conversion of groups of a checkpoint with other aggregates

    def __init__(self, keys: Sequence[str]) -> None:
        self._names = list(keys)
        self._state: Any = None  # a KeyedRuns if there are `_runs`

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._keys, self._key_indices = key_columns(self._names, context.input)
        self._time = int(context.input.get_field_index(TIME_COLUMN))
        self._schema = self._open(context)
        kept: StatePart = self._state if self._store is None else TablesPart("", self._store, lambda: self._migration)
        self.state_parts = StateParts(context, [kept], keyed=len(self._names) > 0)
        return self._schema

    @abstractmethod
    def _open(self, context: OperatorContext) -> pa.Schema:
        """Completes `open`: creates the state, and returns the columns of the results. Each subclass implements it."""

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        if self._state is not None:
            self._state.clear()

    def statistics(self) -> "ToldStep":
        holder = self._state if self._store is None else self._store
        return {} if holder is None else holder.statistics()

    def group_count(self) -> int:
        """Returns about how many keys or runs have state."""
        if self._store is not None:
            return self._store.statistics()["groups"]
        return 0 if self._runs is None else int(self._state.count)

    def _forget_runs(self, watermark_ms: int) -> None:
        """Removes the runs that are over at this watermark."""
        if self._runs is not None:
            for _ in self._state.due(watermark_ms):
                with self._state.changing:
                    self._state.remove(self._runs.advance(watermark_ms))

    def _taken(self, batch: Batch, indices: Sequence[int]) -> list[Array]:
        """Returns the columns with these indices, with only the selected rows of the batch."""
        columns = [batch.data.column(index) for index in indices]
        return columns if batch.selection is None else [column.take(batch.selection) for column in columns]

    def _times(self, batch: Batch) -> Array | None:
        """Returns the column of event times of the whole batch, selected or not, or None if rows have no event time."""
        return batch.data.column(self._time) if self._time >= 0 else None


class RunningAggregate(_KeyedOperator):
    """Emits a row for each input row: its keys, the `aggregates` over all rows of its key up to and including this
    row, and TIME_COLUMN if the input has it.

    `ttl_ms`: a key begins anew if it had no row for this event time, or None for never. Rows are aggregated in order
    of arrival, even if a row is older than the rows before it. Raises UserError for kinds without accumulators of
    fixed width, which have no result after each row.
    """

    def __init__(
        self, keys: Sequence[str], aggregates: Sequence[AggregateColumn], *, ttl_ms: int | None = None
    ) -> None:
        super().__init__(keys)
        self._aggregates, self._ttl_ms = list(aggregates), ttl_ms
        _check_ms("ttl", ttl_ms)
        _check_running([aggregate for aggregate in aggregates if aggregate.kind in _WHOLE])

    def _open(self, context: OperatorContext) -> pa.Schema:
        _check_running(
            [c for c in self._aggregates if self._aggregating([c], context.input).needs_slots],
            context.input,
        )
        if self._ttl_ms is None:
            self._aggregator = self._aggregating(self._aggregates, context.input)
            self._store = self._aggregator.store(context)
            results = list(self._aggregator.schema)[len(self._keys) :]
        else:
            time_index(context.input, "running aggregates with a ttl")
            self._runs = RunTable(idle_ms=self._ttl_ms)
            due = _end_after(self._ttl_ms, "last")
            self._state = RunAggregates(self._names, self._aggregates, context, self._runs, due, running=True)
            results = self._state.results
        return result_schema([*self._keys, *results], timed=self._time >= 0)

    def _aggregating(self, aggregates: Sequence[AggregateColumn], input: pa.Schema) -> Aggregator:
        order = TIME_COLUMN if TIME_COLUMN in input.names else None
        return Aggregator(self._names, aggregates, input, order=order, running=True)

    def process(self, batch: Batch) -> None:
        with named_by(partial(key_at, batch, self._key_indices)):
            results = self._running_all(self._store, batch) if self._store is not None else self._running_runs(batch)
        times = [self._time] if self._time >= 0 else []
        columns = [*self._taken(batch, self._key_indices), *results, *self._taken(batch, times)]
        self.emit(of_selected(batch, pa.RecordBatch.from_arrays(columns, schema=self._schema)))

    def _running_all(self, store: TableStore, batch: Batch) -> list[Array]:
        aggregator, table, selection = self._aggregator, store.table(), batch.selection
        slots = table.resolve(batch.data, self._key_indices, hashes=batch.hashes, selection=selection)
        data = aggregator.columns(batch.data)
        kernel = table.running(
            slots, data, aggregator.arguments, aggregator.filters, order=aggregator.order, selection=selection
        )
        results = aggregator.compose(kernel, [])
        store.settle()
        return results

    def _running_runs(self, batch: Batch) -> list[Array]:
        assert self._runs is not None
        state: RunAggregates = self._state
        with state.changing:
            ids, began, _, ended = self._runs.add(state.resolve(batch), self._times(batch), batch.selection)
            state.begin(began)
            results = state.running(ids.to_numpy(), batch.data, batch.selection)
            state.remove(ended)
            state.settle()
        return results

    def advance(self, watermark_ms: int) -> None:
        self._forget_runs(watermark_ms)

    def before_restore(self, saved: Sequence[Saved]) -> None:
        if self._store is None:
            self._state.before_restore(saved, self.forgets)
            return
        now, layout = self.state_schema()["aggregates"], self._aggregator.layout
        self._migration = migration_of(saved, now, self.forgets, layout, self._layout_in)

    def _layout_in(self, reader: Mapping[str, Any]) -> StateLayout:
        return self._aggregating(*described(reader)).layout

    def state_schema(self) -> StateSchema:
        keys = columns_schema(self._keys)
        results = [self._schema.field(aggregate.name) for aggregate in self._aggregates]
        aggregates = aggregates_schema(self._aggregates, results, self._context.input)
        return {"kind": "running aggregate", "keys": keys, "ttl": self._ttl_ms, **aggregates}

    def state_reader(self) -> StateReader:
        return {**aggregates_reader(self._names, self._aggregates, self._context.input), "ttl_ms": self._ttl_ms}

    def contents(self) -> Iterator[pa.RecordBatch]:
        if self._store is not None:
            yield from self._aggregator.results(self._store, 0, self._aggregator.extras())
            return
        names = [*self._names, *(aggregate.name for aggregate in self._aggregates)]
        for _, keys, aggregates in self._state.contents():
            yield pa.RecordBatch.from_arrays([*keys, *aggregates], names=names)


class CountAggregate(_KeyedOperator):
    """`aggregates` over every `size` rows of a key, in order of arrival: keys, window_start, window_end, aggregates.

    window_start is the least event time of the rows, window_end the greatest + 1 ms. If the input has no event time,
    the result has neither of them. At the end of the input, windows with fewer rows are emitted too.
    """

    def __init__(self, size: int, keys: Sequence[str], aggregates: Sequence[AggregateColumn]) -> None:
        super().__init__(keys)
        if size < 1:
            raise UserError(f"a window of {size} rows", hint="give 1 or more")
        self._size, self._aggregates = size, list(aggregates)

    def _open(self, context: OperatorContext) -> pa.Schema:
        self._runs = RunTable(rows=self._size)
        self._state = RunAggregates(self._names, self._aggregates, context, self._runs, None)
        timed = self._time >= 0
        bounds = [pa.field(WINDOW_START, _TIMESTAMP), pa.field(WINDOW_END, _TIMESTAMP)] if timed else []
        return result_schema([*self._keys, *bounds, *self._state.results], timed=timed)

    def process(self, batch: Batch) -> None:
        assert self._runs is not None
        state: RunAggregates = self._state
        with state.changing:
            ids, began, _, ended = self._runs.add(state.resolve(batch), self._times(batch), batch.selection)
            state.begin(began)
            state.add(ids.to_numpy(), batch.data, batch.selection)
        self._emit(self._runs, ended)
        with state.changing:
            state.settle()

    def _emit(self, runs: RunTable, windows: pa.Int32Array) -> None:
        """Emits the results of these windows, and removes their state."""
        for start in range(0, len(windows), CHUNK_ROWS):
            with self._state.changing:
                rows = self._rows(runs, windows.slice(start, CHUNK_ROWS))
            self.emit(Batch(rows))
        with self._state.changing:
            self._state.remove(windows)

    def _rows(self, runs: RunTable, windows: pa.Int32Array) -> pa.RecordBatch:
        columns, aggregates = self._state.key_columns(windows), self._state.aggregates(windows)
        if self._time >= 0:
            first, last = runs.bounds(windows)
            end = pa.array(last.to_numpy() + 1)
            columns = [*columns, first.view(_TIMESTAMP), end.view(_TIMESTAMP), *aggregates, last]
        else:
            columns = [*columns, *aggregates]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def advance(self, watermark_ms: int) -> None:
        if watermark_ms == END_OF_TIME:  # the next operator must get the results before END_OF_TIME
            self.finish()

    def finish(self) -> None:
        if self._runs is not None:
            for _ in self._state.every():
                self._emit(self._runs, self._runs.export().column("run"))

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._state.before_restore(saved, self.forgets)

    def state_schema(self) -> StateSchema:
        aggregates: StateSchema = self._state.aggregates_schema()
        return {
            "kind": "window",
            "keys": columns_schema(self._keys),
            "window": window_text(CountWindow(self._size)),
            **aggregates,
            "order": "event time" if self._time >= 0 else "arrival",
        }

    def state_reader(self) -> StateReader:
        return {**aggregates_reader(self._names, self._aggregates, self._context.input), "size": self._size}

    def contents(self) -> Iterator[pa.RecordBatch]:
        assert self._runs is not None
        for numbers in self._state.numbers():
            yield self._rows(self._runs, numbers)

    def statistics(self) -> "ToldStep":
        return {"windows": 0 if self._runs is None else self._state.count, **super().statistics()}


class Deduplicate(_KeyedOperator):
    """A step that emits the first row of each key to arrive, and drops later rows of the key. No row is copied: a
    batch is emitted with a selection.

    `within_ms`: the step emits a row of the key again if its event time is at least this many ms after that of the
    last emitted row of the key. None: it emits one row of each key for ever. When the watermark reaches the end of
    that time, the state of the key is removed. A later row of the key is then emitted even if its event time is
    within the time.
    """

    def __init__(self, keys: Sequence[str], within_ms: int | None = None) -> None:
        super().__init__(keys)
        _check_ms("within", within_ms)
        self._within_ms = within_ms
        self._dropped_rows = 0

    def _open(self, context: OperatorContext) -> pa.Schema:
        if self._within_ms is None:
            key_table(self._keys)  # raises for types that cannot be keys
            directory, budget = context.directory, context.memory_budget
            self._store = TableStore(self._keys, [("count", None)], directory=directory, memory_budget=budget)
        else:
            time_index(context.input, "deduplicate within a time")
            self._runs = RunTable(span_ms=self._within_ms)
            self._state = KeyedRuns(self._names, context, self._runs, _end_after(self._within_ms, "first"))
        return context.input

    def process(self, batch: Batch) -> None:
        first = self._first_within(batch) if self._store is None else self._first_ever(self._store, batch)
        self._dropped_rows += batch.num_rows - len(first)
        if len(first) == batch.num_rows:
            self.emit(batch)
        elif len(first):
            self.emit(reselected(batch, first, batch.hashes))

    def _first_ever(self, store: TableStore, batch: Batch) -> pa.Int32Array:
        table, selection = store.table(), batch.selection
        slots = table.resolve(batch.data, self._key_indices, hashes=batch.hashes, selection=selection)
        counts = table.running(slots, batch.data, [-1], selection=selection)[0]
        store.settle()
        first = pa.array(np.flatnonzero(counts.to_numpy() == 1).astype(np.int32))
        return first if selection is None else selection.take(first)

    def _first_within(self, batch: Batch) -> pa.Int32Array:
        assert self._runs is not None
        with self._state.changing:
            _, _, first, ended = self._runs.add(self._state.resolve(batch), self._times(batch), batch.selection)
            self._state.remove(ended)
            self._state.settle()
        return first

    def advance(self, watermark_ms: int) -> None:
        self._forget_runs(watermark_ms)

    def own_facts(self) -> OwnFacts:
        return {"dropped_rows": self._dropped_rows}

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._dropped_rows = self.state_parts.once(saved, "dropped_rows")

    def state_schema(self) -> StateSchema:
        return {"kind": "deduplicate", "keys": columns_schema(self._keys), "within": self._within_ms}

    def state_reader(self) -> StateReader:
        return {**aggregates_reader(self._names, [], self._context.input), "within_ms": self._within_ms}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the keys of which a row was emitted. With `within_ms`, yields the event time of the last emitted row
        too.
        """
        if self._store is not None:
            for columns in self._store.finish():
                yield pa.RecordBatch.from_arrays(columns[: len(self._keys)], schema=self._keys)
        elif self._runs is not None:
            for numbers in self._state.numbers():
                passed = self._runs.bounds(numbers)[0].view(_TIMESTAMP)
                names = [*self._names, "passed_at"]
                yield pa.RecordBatch.from_arrays([*self._state.key_columns(numbers), passed], names=names)

    def statistics(self) -> "ToldStep":
        return {"dropped_rows": self._dropped_rows, **super().statistics()}


class Reduce(_KeyedOperator):
    """Emits a row for each input row: all rows of its key up to and including this row, reduced to one row by calls
    of `function(a, b)`. The columns are those of the input.

    `a` is the result of the rows before, as a dict by column; `b` is the row. The first row of a key is its own
    result. Key columns and TIME_COLUMN are always those of the row; the function does not see TIME_COLUMN. A column
    that the result lacks is null. Raises UserError, with key and column, if the function fails, for a column that the
    input lacks, and for a value that its column cannot hold. The state in memory is Python objects, whose size is
    estimated for the budget.

    `ttl_ms`: a key begins anew if it had no row for this event time, or None for never.
    """

    def __init__(self, keys: Sequence[str], function: Callable[[Row, Row], Row], ttl_ms: int | None = None) -> None:
        super().__init__(keys)
        _check_ms("ttl", ttl_ms)
        self._function, self._ttl_ms = function, ttl_ms

    def _open(self, context: OperatorContext) -> pa.Schema:
        if self._ttl_ms is not None:
            time_index(context.input, "reduce with a ttl")
        self._runs = RunTable(idle_ms=self._ttl_ms or 0)
        self._columns = [i for i, name in enumerate(context.input.names) if name != TIME_COLUMN]
        self._row_schema = pa.schema([context.input.field(i) for i in self._columns])
        due = None if self._ttl_ms is None else _end_after(self._ttl_ms, "last")
        self._state = ReducedRuns(self._names, context, self._runs, due, {"rows": self._row_schema})
        self._numbers = _numbers(self._row_schema)
        nested = any(pa.types.is_nested(field.type) for field in self._row_schema)
        self._copied: Callable[[Row], Row] = deepcopy if nested else dict
        return context.input

    def process(self, batch: Batch) -> None:
        assert self._runs is not None
        taken = pa.RecordBatch.from_arrays(self._taken(batch, self._columns), schema=self._row_schema)
        rows = python_rows(taken, "reduce")
        with self._state.changing:
            ids, began, _, ended = self._runs.add(self._state.resolve(batch), self._times(batch), batch.selection)
            self._state.begin(began.to_pylist())
            made = self._reduced(ids.to_pylist(), rows)
            self._state.remove(ended)
            self._state.settle()
        columns = {
            field.name: column if field.name in self._names else self._column(made, field)
            for field, column in zip(self._row_schema, taken.columns, strict=True)
        }
        if self._time >= 0:
            columns[TIME_COLUMN] = self._taken(batch, [self._time])[0]
        arrays = [columns[name] for name in self._schema.names]
        self.emit(of_selected(batch, pa.RecordBatch.from_arrays(arrays, schema=self._schema)))

    def _reduced(self, runs: list[int], rows: list[Row]) -> list[Row]:
        """Returns the result after each row, and stores the last result of each run. `rows`: the input rows. `runs`:
        for each row, the number of its run. The function gets copies, so that it cannot change an earlier result. It
        gets numbers as their columns keep them (a float32 rounded), so that a restart changes nothing.
        """
        function, state, copied, names = self._function, self._state.made, self._copied, self._row_schema.names
        numbers = self._numbers
        made = []
        for run, row in zip(runs, rows, strict=True):
            before = state[run]
            if before is not None:
                key = {name: row[name] for name in self._names}
                try:
                    result = function(copied(before), row)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    raise UserError(f"reduce: {name_of(function)} failed at the key {key}: {reason}") from error
                if not isinstance(result, dict) or not result.keys() <= before.keys():
                    raise _no_row(result, key, names)
                row = copied({name: result.get(name) for name in names} | key)
                for name, plain, kind in numbers:
                    value = row[name]
                    if type(value) is not plain and value is not None:
                        row[name] = _as_kept(value, kind)
            state[run] = row
            made.append(row)
        return made

    def _column(self, rows: list[Row], field: pa.Field) -> Array:
        try:
            return column_of([row[field.name] for row in rows], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            for row in rows:
                if not fits(row[field.name], field.type):
                    key = {name: row[name] for name in self._names}
                    raise UserError(
                        f"reduce: {field.name!r} of the key {key} is {field.type}, and cannot be {row[field.name]!r}",
                        hint="return values that the column can hold, or cast the column first",
                    ) from error
            raise

    def advance(self, watermark_ms: int) -> None:
        self._forget_runs(watermark_ms)

    def state_schema(self) -> StateSchema:
        columns = columns_schema(self._row_schema)
        return {"kind": "reduce", "keys": columns_schema(self._keys), "ttl": self._ttl_ms, "columns": columns}

    def state_reader(self) -> StateReader:
        return {"keys": self._names, "ttl_ms": self._ttl_ms, "input": schema_text(self._context.input)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        for numbers in self._state.numbers():
            rows = [self._state.made[run] for run in numbers.to_pylist()]
            yield pa.RecordBatch.from_pylist(rows, schema=self._row_schema)


def _numbers(columns: pa.Schema) -> list[tuple[str, type | None, pa.DataType]]:
    """Returns the name and the type of each column of numbers, and between them the Python type of the values that the
    column keeps unchanged, or None if it may round all values.
    """
    types = pa.types
    whole = [(each.name, int, each.type) for each in columns if types.is_integer(each.type)]
    real = [each for each in columns if types.is_floating(each.type)]
    return whole + [(each.name, float if types.is_float64(each.type) else None, each.type) for each in real]


def _as_kept(value: Any, kind: pa.DataType) -> Any:
    try:
        made = pa.scalar(value, kind).as_py()
        whole = math.isfinite(made) or not math.isfinite(value) if pa.types.is_floating(kind) else made == value
        return made if whole else value
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return value  # `_column` refuses it, with the key


def _end_after(ms: int, column: str) -> Callable[[pa.RecordBatch], Any]:
    """Returns a function that computes when each run ends: `ms` after its time in `column`."""
    return lambda runs: plus_ms(runs.column(column), ms)


def _check_running(whole: Sequence[AggregateColumn], input: pa.Schema | None = None) -> None:
    """Raises UserError if `whole` is not empty. `whole`: the aggregates that need all rows of a group at once.
    `input`: the columns of the input, for the hint, or None.
    """
    if whole:
        hints = [
            too_wide(c.kind, input.field(c.argument).type)
            for c in whole
            if input is not None and c.argument is not None
        ]
        named = ", ".join(
            f"{c.name.removeprefix('__')} ({c.kind}{f' of {c.argument}' if c.argument else ''})" for c in whole
        )
        raise UserError(
            f"{named}: this aggregate has no result after each row",
            hint=hints[0]
            if hints and all(hints)
            else "aggregate in a window instead: .window(tumbling(...)), session(...) or count_window(...)",
        )


def _check_ms(name: str, ms: int | None) -> None:
    if ms is not None and ms < 1:
        raise UserError(f"{name}: {ms} ms is too short", hint="give 1 ms or more, or None")


def _no_row(result: Any, key: Row, names: Sequence[str]) -> UserError:
    if not isinstance(result, dict):
        return UserError(f"reduce: the function returned {result!r} for the key {key}", hint="return a dict of columns")
    extra = sorted(result.keys() - set(names))[0]
    return UserError(
        f"reduce: the result for the key {key} has {extra!r}, which is not a column of the input",
        hint=f"the columns are {', '.join(names)}",
    )


def _by_key(point: PlanPoint, node: nodes.RunningAggregate | nodes.Reduce | nodes.Deduplicate) -> PlanPoint:
    """Returns a plan point at which each subtask gets all rows of its keys. If the step depends on a span of time,
    the rows arrive there in order of event time.
    """
    point = point.partition_by(node.keys, "keyed")
    return in_order(point, node.keys, node.id) if node.needs_time else point


def plan_running_aggregate(node: nodes.RunningAggregate, point: PlanPoint) -> PlanPoint:
    point, aggregates = with_arguments(_by_key(point, node), node.aggregates, node.keys)
    return point.step(node.text(), partial(RunningAggregate, node.keys, aggregates, ttl_ms=node.ttl_ms), id=node.id)


def plan_reduce(node: nodes.Reduce, point: PlanPoint) -> PlanPoint:
    make = partial(Reduce, node.keys, node.function, ttl_ms=node.ttl_ms)
    return _by_key(point, node).step(node.text(), make, id=node.id)


def plan_deduplicate(node: nodes.Deduplicate, point: PlanPoint) -> PlanPoint:
    make: Callable[[], Operator] = partial(Deduplicate, node.keys, within_ms=node.within_ms)
    if point.changes:  # the first of the rows of a key that were not taken away
        make = partial(TopN, node.keys, 1, (), ties="row_number", rank=None, changes=True)
    return _by_key(point, node).step(node.text(), make, id=node.id)


PLANNERS: Planners = {
    nodes.RunningAggregate: plan_running_aggregate,
    nodes.Reduce: plan_reduce,
    nodes.Deduplicate: plan_deduplicate,
}


STATE_READERS: StateReaders = {
    "count": lambda reader: CountAggregate(reader["size"], reader["keys"], aggregates_of(reader)),
    "running aggregate": lambda reader: RunningAggregate(
        reader["keys"], aggregates_of(reader), ttl_ms=reader["ttl_ms"]
    ),
    "deduplicate": lambda reader: Deduplicate(reader["keys"], reader["within_ms"]),
    "reduce": lambda reader: Reduce(reader["keys"], no_function, reader["ttl_ms"]),
}
