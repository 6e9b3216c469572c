"""Users' functions over rows: over whole batches (`map_batches`), or row by row (`flat_map`)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.border import validate
from sabot.api.arguments import RowPolicy
from sabot.api.nodes import rows as nodes
from sabot.api.nodes.node import Node, time_column
from sabot.api.words import hint_of_arrow, name_of, not_arrow
from sabot.base.arrays import batch_of_rows, empty_batch, is_time, python_rows, to_ms, twice_named
from sabot.engine.calls.judging import JUDGE, OnceJudge, present_judge
from sabot.engine.operators.base import TIME_COLUMN, Operator, OperatorContext, with_time, without_time
from sabot.engine.operators.event_time import within_range
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.rows.bad import BadRows, batch_place, nulls_of, row_place
from sabot.engine.operators.rows.marked import check_given_names
from sabot.engine.operators.rows.origin import of_selected
from sabot.errors import DataError, UserError, short_repr

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_FLAT_ROWS = 65_536  # the most rows of a batch that flat_map emits

Row = dict[str, Any]


class MapBatches(Operator):
    """Calls the user's function with whole batches. The function gets a RecordBatch, and returns Arrow data, or None
    for no rows.

    `schema`: the columns of the results, or None: then `open` calls the function with an empty batch to learn them.
    `time`: the name of the column that is the stream's event time, or None. If the results have this column, their
    event time is read from it. If they do not, each row keeps its event time, and the function must return as many
    rows as it got. `fixed`: the names of other columns from which event time was computed. The function must return
    these columns unchanged, or leave them out. `rows`: the most rows of a call, or None for whole batches.
    """

    def __init__(
        self,
        function: Callable[[pa.RecordBatch], Any],
        schema: pa.Schema | None = None,
        *,
        time: str | None = None,
        fixed: Sequence[str] = (),
        on_error: RowPolicy = "fail",
        rows: int | None = None,
    ) -> None:
        self.function = function
        self.rows = rows
        self.schema = schema
        self.time, self.fixed = time, fixed
        self.on_error = on_error
        self.name = f"map_batches({name_of(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        self._input = without_time(context.input)
        self._timed = TIME_COLUMN in context.input.names
        schema = self._learn_schema() if self.schema is None else self.schema
        schema = normalise(empty_batch(schema)).schema.remove_metadata()
        check_given_names(self.name, schema.names)
        if self._timed and self.time in schema.names:
            _check_time(self.name, schema.field(self.time))
        self._output = schema
        self._bad = BadRows(self.name, self.on_error, context)
        # between operators all columns are nullable
        self._nullable = pa.schema([(field.name, field.type) for field in schema])
        return with_time(self._nullable, self._timed)

    def process(self, batch: Batch) -> None:
        if self.rows is None or batch.num_rows <= self.rows:
            return self._process(batch)
        whole = of_selected(batch, batch.taken())
        for start in range(0, whole.num_rows, self.rows):
            self._process(whole.slice(start, self.rows))

    def _process(self, batch: Batch) -> None:
        self._once, self._calls = OnceJudge(present_judge()), 0
        for piece, made in self._bad.halved(batch, self._result_of, self._nulls):
            if made is not None and made.num_rows:
                self.emit(of_selected(piece, made) if made.num_rows == piece.num_rows else piece.with_data(made))

    def _result_of(self, batch: Batch) -> pa.RecordBatch | None:
        """Returns the function's result for these rows, with event time, or None for no rows."""
        data = batch.data
        stamps = data.column(data.num_columns - 1) if self._timed else None
        given = self._call(batch, data.select(self._input.names))
        if given is None:
            return None
        made = pa.RecordBatch.from_arrays(self._checked(given, batch).columns, schema=self._nullable)
        return made.append_column(TIME_COLUMN, self._stamps(made, stamps, batch)) if self._timed else made

    def _nulls(self, batch: Batch) -> pa.RecordBatch | None:
        """Returns one row of nulls for each row of the batch, with the row's event time."""
        made = nulls_of(self._nullable, batch.num_rows)
        return made.append_column(TIME_COLUMN, batch.data.column(TIME_COLUMN)) if self._timed else made

    def close(self) -> None:
        if hasattr(self, "_bad"):
            self._bad.close()

    def statistics(self) -> "ToldStep":
        return {"function": self.name, **self._bad.statistics()}

    def _learn_schema(self) -> pa.Schema:
        empty = empty_batch(self._input)
        hint = "give its columns with map_batches(…, schema=): then it is not called with an empty batch"
        try:
            given = self.function(empty)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.name} failed for an empty batch, from which its columns are inferred: {reason}",
                hint=hint_of_arrow(error, hint),
            ) from error
        if given is None:
            raise UserError(
                f"{self.name} returned None for an empty batch, from which its columns are inferred", hint=hint
            )
        schema = _arrow(self.name, given).schema
        if twice := twice_named(schema):
            raise UserError(f"{self.name}: two columns are called {twice!r}", hint="give one of them another name")
        return schema

    def _call(self, batch: Batch, data: pa.RecordBatch) -> Any:
        self._once.begin(self._calls)
        self._calls += 1
        before = JUDGE.set(self._once)  # not for the steps that follow: they get the results within `_process`
        try:
            made = self.function(data)
            self._once.forget()
            return made
        except Exception as error:
            said = f"{self.name}: {type(error).__name__}: {error}; {batch_place(batch)}"
            raise UserError(said, hint=hint_of_arrow(error)) from error
        finally:
            JUDGE.reset(before)

    def _checked(self, given: Any, batch: Batch) -> pa.RecordBatch:
        """Returns the function's result with the expected columns, in their order. Raises UserError if it has other
        columns or types, and for nulls that the schema does not allow.
        """
        made, want = _arrow(self.name, given), self._output
        if made.schema.equals(want):
            return made.replace_schema_metadata(None) if made.schema.metadata else made
        have = {field.name: field.type for field in made.schema}
        names = [f"no column {field.name!r}" for field in want if field.name not in have]
        names += [f"an extra column {name!r}" for name in have if name not in want.names]
        types = [
            f"{f.name!r} is {have[f.name]}, not {f.type}"
            for f in want
            if f.name in have and not _same_types(have[f.name], f.type)
        ]
        if names or types or len(have) != made.num_columns:
            what = "; ".join([*names, *types]) or "two columns with one name"
            against = "its schema has" if self.schema is not None else "for an empty batch"
            raise UserError(
                f"{self.name} returned other columns than {against}: {what}; {batch_place(batch)}",
                hint="cast in the function, or give schema=",
            ) from (DataError(what) if types and not names else None)  # the values of some rows may decide on a type
        columns = [made.column(field.name) for field in want]
        for i, field in enumerate(want):
            if columns[i].null_count and not field.nullable:
                nulls = f"{field.name!r} has {columns[i].null_count} nulls"
                raise UserError(
                    f"{self.name}: {nulls}; {batch_place(batch)}", hint="its schema allows no nulls"
                ) from DataError(nulls)
            if columns[i].type != field.type:
                columns[i] = pc.cast(columns[i], field.type)
        return pa.RecordBatch.from_arrays(columns, schema=want)

    def _stamps(self, made: pa.RecordBatch, before: pa.Array, batch: Batch) -> pa.Array:
        if self.time in made.schema.names:
            return _times(self.name, made.column(self.time), batch)
        if made.num_rows != len(before):
            raise UserError(
                f"{self.name} returned {made.num_rows} rows for {len(before)}, so their event times are unknown; {batch_place(batch)}",
                hint=f"keep the column {self.time!r}" if self.time else "give the source time=, and keep that column",
            )
        check_fixed(self.name, self.fixed, made, batch.data, batch)
        return before


class FlatMap(Operator):
    """Calls the user's function with single rows. The function gets a dict, and returns None, a dict, or an iterable of
    dicts.

    `time`, `fixed`: as in MapBatches. If the results lack the column of event time, each has the time of its input
    row.
    """

    def __init__(
        self,
        function: Callable[[Row], Row | Iterable[Row] | None],
        schema: pa.Schema,
        *,
        time: str | None = None,
        fixed: Sequence[str] = (),
        on_error: RowPolicy = "fail",
    ) -> None:
        self.function = function
        self.schema = pa.schema([(field.name, field.type) for field in schema])
        self.time, self.fixed = time, fixed
        self.on_error = on_error
        self.name = f"flat_map({name_of(function)})"

    def open(self, context: OperatorContext) -> pa.Schema:
        check_given_names(self.name, self.schema.names)
        self._bad = BadRows(self.name, self.on_error, context)
        self._timed = TIME_COLUMN in context.input.names
        self._own_time = self._timed and self.time in self.schema.names
        if self._own_time:
            _check_time(self.name, self.schema.field(self.time))
        return with_time(self.schema, self._timed)

    def process(self, batch: Batch) -> None:
        last: Batch | None = None
        for made in self._pieces(of_selected(batch, batch.taken())):
            if last is not None:  # only the last batch covers all rows, so only it carries the offsets
                self.emit(Batch(last.data, None, batch.topic, last.records))
            last = made
        if last is not None:
            self.emit(last)

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        data = batch.data
        stamps = data.column(data.num_columns - 1).to_pylist() if self._timed else None
        if self._timed:
            data = data.select(range(data.num_columns - 1))
        rows: list[Row] = []
        of: list[int] = []  # for each result, the index of the row from which it was made
        for i, row in enumerate(self._given(data)):
            before = len(rows)
            try:
                for made in self._call(row, i, batch):
                    rows.append(made)
                    if len(rows) - before == _FLAT_ROWS:  # too many to hold until the call has ended
                        of += [i] * _FLAT_ROWS
                        yield from self._as_batches(rows, of, stamps, batch)
                        rows, of, before = [], [], 0
            except UserError as error:
                if not self._bad.are_at_fault(error):
                    raise
                del rows[before:]
                self._bad.set_apart(batch, {i: error})
                if self._bad.nulls:
                    rows.append({})
            of += [i] * (len(rows) - before)
            if len(rows) >= _FLAT_ROWS:
                yield from self._as_batches(rows, of, stamps, batch)
                rows, of = [], []
        if rows:
            yield from self._as_batches(rows, of, stamps, batch)

    def _given(self, data: pa.RecordBatch) -> list[Row] | list[pa.RecordBatch]:
        """Returns the rows for the function. If one of them has no Python value, returns all as batches of one row."""
        try:
            return python_rows(data)
        except DataError:
            return [data.slice(i, 1) for i in range(data.num_rows)]

    def _call(self, given: Row | pa.RecordBatch, i: int, batch: Batch) -> Iterator[Row]:
        try:
            (row,) = python_rows(given) if isinstance(given, pa.RecordBatch) else [given]
            made: Any = self.function(row)
            if isinstance(made, dict):
                yield made
            elif isinstance(made, str | bytes) or not isinstance(made, Iterable | None):
                raise UserError(f"it returned {short_repr(made)}", hint="return a dict, an iterable of dicts, or None")
            elif made is not None:
                yield from made
        except GeneratorExit:
            raise
        except (DataError, UserError) as error:
            raise UserError(f"{self.name}: {error.message}; {row_place(batch, i)}", hint=error.hint) from error
        except Exception as error:
            raise UserError(f"{self.name}: {type(error).__name__}: {error}; {row_place(batch, i)}") from error

    def _as_batches(self, rows: list[Row], of: list[int], stamps: list[int] | None, batch: Batch) -> Iterator[Batch]:
        """Yields the result rows as batches. Rows whose results do not fit the schema are set apart.

        `rows`: the result rows. `of`: for each, the index of its input row in `batch`. `stamps`: the event times of
        the input rows, or None.
        """
        try:
            data = self._columns(rows, of, stamps, batch)
        except UserError as error:
            if not self._bad.are_at_fault(error):
                raise
            bad = self._misfits(rows, of, stamps, batch)
            if not bad:
                raise error
            self._bad.set_apart(batch, bad)
            kept = [(row, i) for row, i in zip(rows, of, strict=True) if i not in bad]
            if self._bad.nulls:
                kept = sorted([*kept, *(({}, i) for i in bad)], key=lambda pair: pair[1])
            rows, of = [row for row, _ in kept], [i for _, i in kept]
            data = self._columns(rows, of, stamps, batch)
        if self._timed and self.fixed:
            # without the empty rows in place of rows that failed
            places = [place for place, row in enumerate(rows) if row or not self._bad.nulls]
            names = [name for name in self.fixed if name in batch.data.schema.names]
            before = batch.data.select(names).take(pa.array([of[place] for place in places], pa.int32()))
            check_fixed(self.name, self.fixed, data.take(pa.array(places, pa.int32())), before, batch)
        origin = None if batch.records is None else batch.records.taken(pa.array(of, pa.int32()))
        made = Batch(data, batch.offsets, batch.topic, origin)
        for start in range(0, made.num_rows, _FLAT_ROWS):
            yield made.slice(start, _FLAT_ROWS)

    def _misfits(self, rows: list[Row], of: list[int], stamps: list[int] | None, batch: Batch) -> dict[int, UserError]:
        """Returns the input rows whose results do not fit the schema, by index, each with its error. `_as_batches`
        explains the parameters.
        """
        made: dict[int, list[Row]] = {}
        for row, i in zip(rows, of, strict=True):
            made.setdefault(i, []).append(row)
        found = {}
        for i, own in made.items():
            try:
                self._columns(own, [i] * len(own), stamps, batch)
            except UserError as error:
                found[i] = error
        return found

    def _columns(self, rows: list[Row], of: list[int], stamps: list[int] | None, batch: Batch) -> pa.RecordBatch:
        try:
            made = batch_of_rows(rows, self.schema)
        except Exception as error:
            raise UserError(
                f"{self.name}: its rows do not fit the schema: {type(error).__name__}: {error}; {batch_place(batch)}",
                hint="return an iterable of dicts whose values have the types of schema=",
            ) from error
        if extra := set().union(*rows) - set(self.schema.names):
            raise UserError(
                f"{self.name}: a row has {sorted(map(str, extra))[0]!r}, which is not a column of its schema; "
                f"{batch_place(batch)}",
                hint=f"the columns are {', '.join(self.schema.names)}",
            )
        if stamps is None:
            return made
        if self._own_time and not self._bad.nulls:
            return made.append_column(TIME_COLUMN, _times(self.name, made.column(self.time), batch))
        times = pa.array([stamps[i] for i in of], pa.int64())
        if self._own_time:  # the rows in place of rows that failed have the input's time
            times = pc.coalesce(within_range(to_ms(made.column(self.time))), times)
        return made.append_column(TIME_COLUMN, times)

    def close(self) -> None:
        if hasattr(self, "_bad"):
            self._bad.close()

    def statistics(self) -> "ToldStep":
        return {"function": self.name, **self._bad.statistics()}


def _arrow(name: str, given: Any) -> pa.RecordBatch:
    try:
        made = normalise(given)
        validate(made)
    except (TypeError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise not_arrow(name, given, error) from error
    return made


def _same_types(have: pa.DataType, want: pa.DataType) -> bool:
    """Returns True if both types are equal apart from nullability and the names of list items."""
    if pa.types.is_list(have) and pa.types.is_list(want):
        return _same_types(have.value_type, want.value_type)
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        pairs = list(zip(have, want, strict=False))
        return have.num_fields == want.num_fields and all(
            a.name == b.name and _same_types(a.type, b.type) for a, b in pairs
        )
    return bool(have == want)


def _times(name: str, column: pa.Array, batch: Batch) -> pa.Array:
    made = within_range(to_ms(column))
    if made.null_count:
        what = f"{made.null_count} rows have no event time, or one that is out of range"
        raise UserError(f"{name}: {what}; {batch_place(batch)}", hint="leave such rows out") from DataError(what)
    return made


def _check_time(name: str, field: pa.Field) -> None:
    if not is_time(field.type):
        raise UserError(
            f"{name}: the column of event time, {field.name!r}, is {field.type}",
            hint="make it a timestamp, or int64 ms",
        )


def check_fixed(name: str, fixed: Sequence[str], made: pa.RecordBatch, before: pa.RecordBatch, batch: Batch) -> None:
    """Raises UserError if one of the columns `fixed` of `made` has other values than in `before`. Row i of `before`
    is the input row of row i of `made`.
    """
    for each in fixed:
        if each in made.schema.names and not _is_unchanged(made.column(each), before, each):
            raise UserError(
                f"{name} changes {each!r}, from which event time was computed: windows would still use the former values; "
                f"{batch_place(batch)}",
                hint="give the new column another name, or compute event time from it with .with_time(…) after this step",
            )


def _is_unchanged(column: pa.Array, data: pa.RecordBatch, name: str) -> bool:
    """Returns True if `column` has the same values as the column `name` of `data`; the types may differ."""
    if name not in data.schema.names:
        return False
    before = data.column(name)
    if column.type != before.type:
        try:
            column = pc.cast(column, before.type)
        except pa.ArrowException:
            return False
    return bool(column.equals(before))


def times_of(node: Node, point: PlanPoint, *, follows: bool = True) -> dict[str, Any]:
    """Returns the parameters `time` and `fixed` of a step with a user's function (`MapBatches`).

    `fixed` is empty if no later step depends on event time. `follows`: False if the step's results keep their event
    times even if the function changes the column `time`; it is then one of the `fixed` columns.
    """
    time = time_column(node.inputs[0]) if follows else None
    matters = id(node) in point.layout.matters
    return {"time": time, "fixed": [name for name in node.inputs[0].event_times if matters and name != time]}


def plan_map_batches(node: nodes.MapBatches, point: PlanPoint) -> PlanPoint:
    make = partial(
        MapBatches,
        *(node.function, node.schema),
        **times_of(node, point),
        on_error=point.policy(node.on_error),
        rows=node.most_rows,
    )
    return point.step(node.text(), make, keys=None)


def plan_flat_map(node: nodes.FlatMap, point: PlanPoint) -> PlanPoint:
    make = partial(FlatMap, node.function, node.schema, **times_of(node, point), on_error=point.policy(node.on_error))
    return point.step(node.text(), make, keys=None)


PLANNERS: Planners = {nodes.MapBatches: plan_map_batches, nodes.FlatMap: plan_flat_map}
