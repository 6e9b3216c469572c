"""Steps without state: what a row becomes depends on the row (and the function) alone.

Columns are picked, dropped and renamed without touching rows. Where something is computed and the selection leaves few rows, only
those are taken, else all are computed and the selection stays.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch, normalise
from sabot._cython.border import validate
from sabot._cython.keyed import select_rows
from sabot.api.expr import Expr, col
from sabot.arrays import is_time, to_ms
from sabot.errors import DataError, UserError
from sabot.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    Cut,
    Operator,
    OperatorContext,
    Saved,
    with_marks,
    with_time,
    without_marks,
    without_time,
)
from sabot.operators.expressions import Compiled, compile_expr, compile_predicate

__all__ = [
    "AsInserts",
    "Drop",
    "EndVersions",
    "Filter",
    "FlatMap",
    "MapBatches",
    "Rename",
    "Sample",
    "Select",
    "WithColumns",
    "WithoutPairs",
    "WithoutTime",
]

_MARKS = (OP_COLUMN, TIME_COLUMN)  # in the order in which they stand behind the user's columns
_FLAT_ROWS = 65_536  # of a batch that flat_map emits
_FEW = 4  # where less than one row in so many counts, taking them costs less than computing all

NO_ARROW = "texts are UTF-8, and offsets ascend: array.validate(full=True) says where they do not"
Row = dict[str, Any]
Named = Sequence[tuple[str, Expr]]


class Filter(Operator):
    """Rows where the predicate is true. Makes a selection; nothing is copied, and empty batches end here.

    Of an update whose rows do not pass together a delete or an insert is left.
    """

    def __init__(self, predicate: Expr) -> None:
        self.predicate = predicate
        self.rows_in = self.rows_out = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        self._rows = _Rows([self.predicate], context.input, compile_predicate)
        self._changes = OP_COLUMN in context.input.names
        return context.input

    def process(self, batch: Batch) -> None:
        alone, (mask,) = self._rows(batch)
        selection = batch.selection
        kept = select_rows(mask, None if alone else selection)
        self.rows_in += batch.num_rows
        self.rows_out += len(kept)
        if len(kept) == 0:
            return
        if len(kept) == batch.num_rows:
            self.emit(batch)
            return
        if alone and selection is not None:
            kept = selection.take(kept)
        hashes = batch.hashes
        if self._changes:
            batch = _parted(batch)
        self.emit(batch.with_selection(kept, hashes))

    def statistics(self) -> dict[str, Any]:
        return {"rows_in": self.rows_in, "rows_out": self.rows_out}


class Select(Operator):
    """These columns, in this order: (name, expression) each."""

    def __init__(self, columns: Named) -> None:
        self.columns = tuple(columns)

    def open(self, context: OperatorContext) -> pa.Schema:
        _check_names("select", [name for name, _ in self.columns])
        self._outputs = _Outputs(context.input, dict(self.columns))
        return self._outputs.schema

    def process(self, batch: Batch) -> None:
        self.emit(self._outputs(batch))


class WithColumns(Operator):
    """All columns, and these: (name, expression) each, behind the others, or in the place of the one of that name."""

    def __init__(self, columns: Named) -> None:
        self.columns = tuple(columns)

    def open(self, context: OperatorContext) -> pa.Schema:
        _check_names("with_columns", [name for name, _ in self.columns])
        outputs = {name: col(name) for name in without_marks(context.input).names}
        replaced = any(name in outputs for name, _ in self.columns)
        outputs.update(self.columns)
        self._outputs = _Outputs(context.input, outputs, keep_hashes=not replaced)
        return self._outputs.schema

    def process(self, batch: Batch) -> None:
        self.emit(self._outputs(batch))


class Drop(Operator):
    """All columns but these. unread: the plan has checked the names, and left out columns that nobody uses."""

    def __init__(self, names: Sequence[str], *, unread: bool = False) -> None:
        self.names = tuple(names)
        self._unread = unread

    def open(self, context: OperatorContext) -> pa.Schema:
        if not self._unread:
            _check_there("drop", self.names, context.input)
        self._kept = [i for i, name in enumerate(context.input.names) if name not in self.names]
        if all(context.input.names[i] in _MARKS for i in self._kept):
            raise UserError(f"drop: no column would be left of {', '.join(self.names)}")
        return pa.schema([context.input.field(i) for i in self._kept])

    def process(self, batch: Batch) -> None:
        self.emit(_over(batch, batch.data.select(self._kept)))


class EndVersions(Operator):
    """Versions of a table's rows. INSERT: from here on this one; DELETE: from here on none, as where the predicate is not true."""

    def __init__(self, predicate: Expr) -> None:
        self.predicate = predicate

    def open(self, context: OperatorContext) -> pa.Schema:
        self._rows = _Rows([self.predicate], context.input, compile_predicate)
        self._op = context.input.get_field_index(OP_COLUMN)
        return context.input

    def process(self, batch: Batch) -> None:
        batch = batch.with_data(batch.taken())
        _, (mask,) = self._rows(batch)
        ops = pc.if_else(
            pc.fill_null(mask, pa.scalar(False)), batch.data.column(self._op), pa.scalar(DELETE, pa.int8())
        )
        self.emit(batch.with_data(batch.data.set_column(self._op, batch.data.schema.field(self._op), ops)))


class WithoutPairs(Operator):
    """Updates become deletes and inserts, which may go different ways."""

    def process(self, batch: Batch) -> None:
        self.emit(_parted(batch))


class AsInserts(Operator):
    """Rows of an append stream as changes."""

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        self._schema = with_marks(without_time(context.input), op=True, timed=self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        columns = list(batch.data.columns)
        inserts = pa.array(np.full(batch.data.num_rows, INSERT, np.int8))
        columns.insert(len(columns) - 1 if self._timed else len(columns), inserts)
        self.emit(_over(batch, pa.RecordBatch.from_arrays(columns, schema=self._schema)))


class Sample(Operator):
    """Each row with the probability `fraction`: by a generator of this subtask, which goes on where the checkpoint left it."""

    def __init__(self, fraction: float, seed: int) -> None:
        self._fraction, self._seed = fraction, seed

    def open(self, context: OperatorContext) -> pa.Schema:
        self._random = np.random.Generator(np.random.PCG64([self._seed, context.subtask]))
        return context.input

    def process(self, batch: Batch) -> None:
        kept = pa.array(np.flatnonzero(self._random.random(batch.num_rows) < self._fraction).astype(np.int32))
        if len(kept):
            selection = kept if batch.selection is None else batch.selection.take(kept)
            self.emit(batch.with_selection(selection, batch.hashes))

    def snapshot(self) -> tuple[dict[str, Any], Cut | None]:
        state = self._random.bit_generator.state["state"]
        return {"state": str(state["state"]), "inc": str(state["inc"]), **self.about_state(0)}, None

    def state_schema(self) -> dict[str, Any]:
        return {"kind": "sample", "fraction": self._fraction, "seed": self._seed}

    def restore(self, saved: list[Saved]) -> None:
        if len(saved) == 1:  # with another parallelism there are other generators
            own = {name: int(saved[0].facts[name]) for name in ("state", "inc")}
            self._random.bit_generator.state = {**self._random.bit_generator.state, "state": own}


class WithoutTime(Operator):
    """Takes event time off: rows go on among others that have none."""

    def open(self, context: OperatorContext) -> pa.Schema:
        return without_time(context.input)

    def process(self, batch: Batch) -> None:
        data = batch.data
        taken = batch.with_data(data.remove_column(data.schema.get_field_index(TIME_COLUMN)))
        self.emit(taken.with_selection(batch.selection, batch.hashes))


class Rename(Operator):
    """Other names for some columns: {old: new}. unread: as in Drop."""

    def __init__(self, names: Mapping[str, str], *, unread: bool = False) -> None:
        self.names = dict(names)
        self._unread = unread

    def open(self, context: OperatorContext) -> pa.Schema:
        if not self._unread:
            _check_there("rename", self.names, context.input)
        names = [self.names.get(name, name) for name in context.input.names]
        _check_names("rename", [name for name in names if name not in _MARKS], among=names)
        self._schema = pa.schema([field.with_name(name) for field, name in zip(context.input, names, strict=True)])
        return self._schema

    def process(self, batch: Batch) -> None:
        self.emit(_over(batch, pa.RecordBatch.from_arrays(batch.data.columns, schema=self._schema)))


class MapBatches(Operator):
    """The user's function over whole batches: a RecordBatch in, anything that speaks Arrow out, or None for nothing.

    schema: of what it gives; without one, `open` calls it with an empty batch to see. time: the name of the stream's column of event
    time; where the output has it, event time is read from it, else each row keeps its own and their number must stay.
    """

    def __init__(
        self, function: Callable[[pa.RecordBatch], Any], schema: pa.Schema | None = None, *, time: str | None = None
    ) -> None:
        self.function = function
        self.schema = schema
        self.time = time
        self.name = f"map_batches({getattr(function, '__qualname__', type(function).__name__)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        self._input = without_time(context.input)
        self._timed = TIME_COLUMN in context.input.names
        schema = self._learnt() if self.schema is None else self.schema
        schema = normalise(schema.empty_table()).schema.remove_metadata()
        _check_names(self.name, schema.names)
        if self._timed and self.time in schema.names:
            _check_time(self.name, schema.field(self.time))
        self._output = schema
        self._nullable = pa.schema([(field.name, field.type) for field in schema])  # as all that goes down a chain
        return with_time(self._nullable, self._timed)

    def process(self, batch: Batch) -> None:
        data = batch.taken()
        stamps = data.column(data.num_columns - 1) if self._timed else None
        given = self._called(batch, data.select(self._input.names))
        if given is None:
            return
        made = pa.RecordBatch.from_arrays(self._fitted(given, batch).columns, schema=self._nullable)
        if self._timed:
            made = made.append_column(TIME_COLUMN, self._stamps(made, stamps, batch))
        if made.num_rows:
            self.emit(batch.with_data(made))

    def _learnt(self) -> pa.Schema:
        empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in self._input], schema=self._input)
        hint = "give map_batches(…, schema=) what its columns are, then it is not called with an empty batch"
        try:
            given = self.function(empty)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.name} failed over an empty batch, by which its columns are found: {reason}", hint=hint
            ) from error
        if given is None:
            raise UserError(f"{self.name} gave None for an empty batch, by which its columns are found", hint=hint)
        return _arrow(self.name, given).schema

    def _called(self, batch: Batch, data: pa.RecordBatch) -> Any:
        try:
            return self.function(data)
        except Exception as error:
            raise UserError(f"{self.name}: {type(error).__name__}: {error}; {_where(batch)}") from error

    def _fitted(self, given: Any, batch: Batch) -> pa.RecordBatch:
        """What the function gave, as the columns that it is to give."""
        made, want = _arrow(self.name, given), self._output
        if made.schema.equals(want):
            return made.replace_schema_metadata(None) if made.schema.metadata else made
        have = {field.name: field.type for field in made.schema}
        wrong = [f"no column {field.name!r}" for field in want if field.name not in have]
        wrong += [f"a column {name!r} more" for name in have if name not in want.names]
        wrong += [
            f"{f.name!r} is {have[f.name]}, not {f.type}"
            for f in want
            if f.name in have and not _alike(have[f.name], f.type)
        ]
        if wrong or len(have) != made.num_columns:
            what = "; ".join(wrong) or "two columns of one name"
            against = "its schema says" if self.schema is not None else "for an empty batch"
            raise UserError(
                f"{self.name} gave other columns than {against}: {what}; {_where(batch)}",
                hint="cast in the function, or give schema=",
            )
        columns = [made.column(field.name) for field in want]
        for i, field in enumerate(want):
            if columns[i].null_count and not field.nullable:
                nulls = f"{field.name!r} has {columns[i].null_count} nulls"
                raise UserError(f"{self.name}: {nulls}; {_where(batch)}", hint="its schema allows none")
            if columns[i].type != field.type:
                columns[i] = pc.cast(columns[i], field.type)
        return pa.RecordBatch.from_arrays(columns, schema=want)

    def _stamps(self, made: pa.RecordBatch, before: pa.Array, batch: Batch) -> pa.Array:
        if self.time in made.schema.names:
            return _times(self.name, made.column(self.time), batch)
        if made.num_rows != len(before):
            raise UserError(
                f"{self.name} made {made.num_rows} rows of {len(before)}, which leaves them without event time; {_where(batch)}",
                hint=f"keep the column {self.time!r}" if self.time else "give the stream time=, and keep that column",
            )
        return before


class FlatMap(Operator):
    """The user's function over single rows: a dict in, an iterable of dicts out. Python for each row, as he wrote it.

    time: as for MapBatches; without that column each row has the event time of the one that it was made of.
    """

    def __init__(self, function: Callable[[Row], Iterable[Row]], schema: pa.Schema, *, time: str | None = None) -> None:
        self.function = function
        self.schema = pa.schema([(field.name, field.type) for field in schema])
        self.time = time
        self.name = f"flat_map({getattr(function, '__qualname__', type(function).__name__)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        _check_names(self.name, self.schema.names)
        self._timed = TIME_COLUMN in context.input.names
        self._own_time = self._timed and self.time in self.schema.names
        if self._own_time:
            _check_time(self.name, self.schema.field(self.time))
        return with_time(self.schema, self._timed)

    def process(self, batch: Batch) -> None:
        last: Batch | None = None
        for made in self._pieces(batch):
            if last is not None:  # only the last one covers all rows, so only it has the offsets
                self.emit(Batch(last.data, None, batch.topic))
            last = batch.with_data(made)
        if last is not None:
            self.emit(last)

    def _pieces(self, batch: Batch) -> Iterator[pa.RecordBatch]:
        data = batch.taken()
        stamps = data.column(data.num_columns - 1).to_pylist() if self._timed else None
        if self._timed:
            data = data.select(range(data.num_columns - 1))
        rows: list[Row] = []
        times: list[int] = []
        for i, row in enumerate(data.to_pylist()):
            for made in self._called(row, i, batch):
                rows.append(made)
                if stamps is not None:
                    times.append(stamps[i])
                if len(rows) == _FLAT_ROWS:
                    yield self._joined(rows, times, batch)
                    rows, times = [], []
        if rows:
            yield self._joined(rows, times, batch)

    def _called(self, row: Row, i: int, batch: Batch) -> Iterator[Row]:
        try:
            yield from self.function(row)
        except GeneratorExit:
            raise
        except Exception as error:
            raise UserError(f"{self.name}: {type(error).__name__}: {error}; row {i} of {_where(batch)}") from error

    def _joined(self, rows: list[Row], times: list[int], batch: Batch) -> pa.RecordBatch:
        try:
            made = pa.RecordBatch.from_pylist(rows, schema=self.schema)
        except Exception as error:
            raise UserError(
                f"{self.name}: its rows do not fit the schema: {type(error).__name__}: {error}; {_where(batch)}",
                hint="it gives an iterable of dicts, whose values are of the types of schema=",
            ) from error
        if not self._timed:
            return made
        stamps = _times(self.name, made.column(self.time), batch) if self._own_time else pa.array(times, pa.int64())
        return made.append_column(TIME_COLUMN, stamps)


# -- what they share ------------------------------------------------------------------------------------------------------


class _Rows:
    """Expressions over the rows of a batch that count: over all where that is safe and not much more, else over those alone."""

    def __init__(
        self, exprs: Sequence[Expr], schema: pa.Schema, make: Callable[[Expr, pa.Schema], Compiled] = compile_expr
    ) -> None:
        self.types = [make(each, schema).type for each in exprs]  # an error names all columns
        used = frozenset().union(*(each.columns for each in exprs)) or {
            schema.names[0]
        }  # a batch needs a column to have rows
        self._names = [name for name in schema.names if name in used]
        narrow = pa.schema([schema.field(name) for name in self._names])
        self._exprs = [make(each, narrow) for each in exprs]
        self._can_fail = any(each.can_fail for each in self._exprs)

    def __call__(self, batch: Batch) -> tuple[bool, list[pa.Array]]:
        """(whether the values are of the selected rows only, the values)."""
        data, selection = batch.data.select(self._names), batch.selection
        alone = selection is not None and (self._can_fail or _FEW * len(selection) < data.num_rows)
        try:
            return alone, self._values(data.take(selection) if alone else data)
        except DataError as error:
            failed = error
        if selection is not None and not alone:  # it may be a row that does not count
            try:
                return True, self._values(data.take(selection))
            except DataError as error:
                failed = error
        raise DataError(f"{failed.message}; {_where(batch)}", hint=failed.hint) from failed

    def _values(self, data: pa.RecordBatch) -> list[pa.Array]:
        return [each(data) for each in self._exprs]


class _Outputs:
    """Columns made of columns: (name, expression) each, those of ours behind them where they are there."""

    def __init__(self, input: pa.Schema, columns: Mapping[str, Expr], *, keep_hashes: bool = True) -> None:
        columns = {**columns, **{name: col(name) for name in _MARKS if name in input.names}}
        self._keep_hashes = keep_hashes
        made = {name: expr for name, expr in columns.items() if expr.column is None}
        self._rows = _Rows(list(made.values()), input) if made else None
        types = dict(zip(made, self._rows.types if self._rows else [], strict=True))
        self._plan: list[int | None] = []  # the place of a column that is picked; None: the next computed one
        fields = []
        for name, expr in columns.items():
            picked = expr.column
            if picked is None:
                self._plan.append(None)
                fields.append(pa.field(name, types[name]))
                continue
            compile_expr(expr, input)  # it is there, and once
            self._plan.append(input.get_field_index(picked))
            fields.append(input.field(picked).with_name(name))
        self.schema = pa.schema(fields)

    def __call__(self, batch: Batch) -> Batch:
        data = batch.data
        if self._rows is None:
            columns = [data.column(place) for place in self._plan if place is not None]
            return _over(batch, pa.RecordBatch.from_arrays(columns, schema=self.schema))
        alone, values = self._rows(batch)
        computed = iter(values)
        columns = [
            next(computed)
            if place is None
            else data.column(place).take(batch.selection)
            if alone
            else data.column(place)
            for place in self._plan
        ]
        made = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        if alone:
            return batch.with_data(made)
        return batch.with_data(made).with_selection(batch.selection, batch.hashes if self._keep_hashes else None)


def _parted(batch: Batch) -> Batch:
    """Changes whose updates are deletes and inserts. 0 1 2 3 -> 0 3 0 3."""
    place = batch.data.schema.get_field_index(OP_COLUMN)
    ops = batch.data.column(place).to_numpy()
    data = batch.data.set_column(place, batch.data.schema.field(place), pa.array((ops & 1) * np.int8(DELETE)))
    return _over(batch, data)


def _over(batch: Batch, data: pa.RecordBatch) -> Batch:
    """The same rows with other columns."""
    return batch.with_data(data).with_selection(batch.selection, batch.hashes)


def _arrow(name: str, given: Any) -> pa.RecordBatch:
    try:
        made = normalise(given)
        validate(made)
    except TypeError as error:
        raise UserError(
            f"{name} gave a {type(given).__name__}, which speaks no Arrow",
            hint="return a pa.RecordBatch or pa.Table, a polars or pandas DataFrame, or None",
        ) from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{name} gave data that is no valid Arrow: {error}", hint=NO_ARROW) from error
    return made


def _alike(have: pa.DataType, want: pa.DataType) -> bool:
    """The same but for what may be null and what the items of lists are called."""
    if pa.types.is_list(have) and pa.types.is_list(want):
        return _alike(have.value_type, want.value_type)
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        pairs = list(zip(have, want, strict=False))
        return have.num_fields == want.num_fields and all(a.name == b.name and _alike(a.type, b.type) for a, b in pairs)
    return bool(have == want)


def _times(name: str, column: pa.Array, batch: Batch) -> pa.Array:
    made = to_ms(column)
    if made.null_count:
        raise UserError(
            f"{name}: {made.null_count} rows have no event time; {_where(batch)}", hint="leave such rows out"
        )
    return made


def _check_time(name: str, field: pa.Field) -> None:
    if not is_time(field.type):
        raise UserError(
            f"{name}: the column of event time, {field.name!r}, is {field.type}", hint="a timestamp, or int64 ms"
        )


def _check_names(what: str, names: Sequence[str], *, among: Sequence[str] = ()) -> None:
    if not names:
        raise UserError(f"{what}: there are no columns")
    for mark in _MARKS:
        if mark in names or list(among).count(mark) > 1:
            raise UserError(f"{what}: no column can be called {mark!r}", hint="a column of ours stands there")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{what}: two columns are called {twice!r}", hint="give one of them another name")


def _check_there(what: str, names: Iterable[str], schema: pa.Schema) -> None:
    for name in names:
        if name in _MARKS:
            raise UserError(f"{what}: {name!r} is ours, and stays")
        try:
            compile_expr(col(name), schema)
        except UserError as error:
            raise UserError(f"{what}: {error.message}", hint=error.hint) from None


def _where(batch: Batch) -> str:
    """Which rows these are, as far as is known: what they come from, and the offset behind the last of them."""
    places = [
        f"{topic}[{partition}] before offset {offset}"
        for (topic, partition), offset in sorted(batch.offsets.items())[:5]
    ]
    return f"a batch of {batch.num_rows} rows of {', '.join(places) or batch.topic or 'unknown origin'}"
