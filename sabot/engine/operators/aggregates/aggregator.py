"""Aggregates by group. The kernel's `GroupTable` has accumulators of fixed width. Values without a fixed width are
stored in `Extras`, which uses the slot numbers of the table.

An Aggregator holds no groups: it describes how aggregates are computed. Its caller owns the tables, the stores and
the extras, one of each for a pane, a window or a session, and passes them to the methods.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot.base.arrays import decimal_floats, empty_array, scalar_of
from sabot.base.dataclass import dataclass
from sabot.codecs.json import schema_text
from sabot.engine.operators.aggregates.decimals import (
    decimal_means,
    decimal_sums,
    decimals_of,
    named_by,
    part_count,
    part_of,
    sum_type,
    word_count,
    word_of,
)
from sabot.engine.operators.aggregates.extras import Extras
from sabot.engine.operators.aggregates.gather import Gather
from sabot.engine.operators.aggregates.migration import StateLayout, StatePlace
from sabot.engine.operators.base import CHUNK_ROWS, TIME_COLUMN, OperatorContext
from sabot.engine.operators.columns import check_distinct, column_index, key_columns
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.state.tables.store import TableStore
from sabot.errors import UserError

_NUMERIC = ["sum", "mean", "variance", "stddev"]
_PICKED = ["min", "max", "first", "last", "any", "arg_min", "arg_max"]
_SKETCHED = ["approx_count_distinct", "approx_quantile"]
KINDS = frozenset(
    ["count", *_NUMERIC, *_PICKED, "count_distinct", "collect_list", "collect_set", "top_k", *_SKETCHED, "user"]
)
# the result depends on the order of rows
_BY_ORDER = frozenset(["first", "last", "any", "arg_min", "arg_max", "collect_list"])
# the state follows from the type of the result
_BY_RESULT = frozenset(["count", "sum", "variance", "stddev", "min", "max", "first", "last", "any"])
_WORDS = frozenset(["min", "max", "first", "last", "any"])  # running aggregates of decimals: see `_picked_decimals`
_ZERO, _ONE, _NO_NUMBER = (scalar_of(value, pa.float64()) for value in (0.0, 1.0, None))

Array: TypeAlias = pa.Array


@dataclass(frozen=True)
class AggregateColumn:
    """One aggregate. `argument`, `by` and `where` name input columns.

    `argument`: the column that is aggregated, or None for `count()` and for a user's aggregate of whole rows. `by`:
    the column by whose least (arg_min) or greatest (arg_max) value a row is chosen. `where`: a bool column; only rows
    where it is true are aggregated. `ddof`: the delta degrees of freedom of variance and stddev. `function`: the
    user's aggregate for the kind "user" (`user.UserAggregate`). `text`: the aggregate as the user wrote it, if its
    argument is an expression without a name. `q`: the quantile or quantiles of approx_quantile. `k`: the number of
    values of top_k. `shares`: True if the state was written by an older version, in which a variance with a ddof
    other than 1 shared accumulators with other aggregates. `rounds`: True if the state was written by an older
    version, in which the mean of decimals was computed from floats instead of exact sums.
    """

    name: str
    kind: str
    argument: str | None = None
    by: str | None = None
    where: str | None = None
    ddof: int = 1
    function: Any = None
    text: str = ""
    q: Any = None
    k: int | None = None
    shares: bool = False
    rounds: bool = False

    def description(self) -> str:
        """Returns the aggregate as text, without the name of the result column: "sum(x).filter(y)"."""
        if self.text:
            return self.text
        options = {"ddof": None if self.ddof == 1 else self.ddof, "q": self.q, "k": self.k}
        said = [f"{name}={value}" for name, value in options.items() if value is not None]
        given = [self.argument, self.by, *said]
        words = f"{self.kind}({', '.join(each for each in given if each is not None)})"
        return words if self.where is None else f"{words}.filter({self.where})"

    def adds_decimals(self, input: pa.Schema) -> bool:
        """Returns True if this is a mean of decimals whose state is their exact sum."""
        if self.kind != "mean" or self.rounds or self.argument not in input.names:
            return False
        return bool(pa.types.is_decimal(input.field(self.argument).type))


class Aggregator:
    """The aggregates of rows with the columns `input`, grouped by the columns `keys`.

    `order`: the int64 column that decides which row is the first or the last, or None for the order of arrival.
    `running`: True if the caller reads results after each row. Sums and picked values of decimals are then stored in
    the kernel's accumulators, if they fit, instead of the extras.

    `schema`: the columns of results: the keys, then the aggregates. `kernel`: the accumulators of its GroupTable, as
    (kind, type of the argument). `states`: the columns that `export` yields and `merge` reads: keys and all state,
    one row for each group. `needs_slots`: True if some state is in extras. The tables must then stay in memory.
    `has_functions`: True if an aggregate is a user's function.
    `layout`: for each aggregate, the columns in which its state is stored.

    Nulls: a sum or mean of no value is null; count and count_distinct of no value are 0. collect_list includes nulls,
    and sorts its values by `order`, then by arrival. For first, last and any a null is a value; among rows with equal
    `order` the first (last) to arrive is chosen. arg_min and arg_max skip rows whose `by` is null or NaN; among rows
    with equal `by` they choose the one with the least `order`, then the first to arrive.

    Raises UserError for a missing column, and for a type that the kind cannot aggregate.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        input: pa.Schema,
        *,
        order: str | None = None,
        running: bool = False,
    ) -> None:
        self.input = input
        self._running = running
        self.keys, self.key_indices = key_columns(keys, input)
        self.order = -1 if order is None else column_index(input, order, "order")
        self.kernel: list[tuple[str, pa.DataType | None]] = []
        self.arguments: list[int] = []
        self.filters: list[int] = []
        self._derived: dict[tuple[Any, ...], tuple[int, Callable[[pa.RecordBatch], Array]]] = {}
        self._known: dict[tuple[Any, ...], int] = {}
        self._gathers: list[Gather] = []
        self._outputs: list[Callable[[Sequence[Array], Sequence[Array]], Array]] = []
        self._asked: list[int] = []  # the accumulators of the aggregate that is being resolved
        places: list[StatePlace] = []
        for aggregate in aggregates:
            self._asked, before = [], len(self._gathers)
            self._outputs.append(self._resolve(aggregate))
            beside = [field.name for gather in self._gathers[before:] for field in gather.states]
            places.append(StatePlace(self._asked, beside))
        self._asked = []
        if not self.kernel:  # a batch without columns would have no row count
            self._kernel("count", None, -1, -1)
        table = self.table()
        self.needs_slots = bool(self._gathers)
        self.has_functions = any(gather.reduce == "user" for gather in self._gathers)
        gathered = [field for gather in self._gathers for field in gather.states]
        self.states = pa.schema([*table.states, *gathered])
        self._kernel_states = table.states.names
        self.gathered = pa.schema([*self.keys, *gathered])
        self.layout = StateLayout(self.table, self.gathered, places)
        empty = self.compose(
            [empty_array(kind) for kind in table.results], [empty_array(g.type) for g in self._gathers]
        )
        columns = [pa.field(aggregate.name, column.type) for aggregate, column in zip(aggregates, empty, strict=True)]
        self.schema = pa.schema([*self.keys, *columns])
        check_distinct(self.schema.names)

    # Tables, stores and extras

    def table(self) -> GroupTable:
        """Returns an empty table that belongs to no store."""
        return GroupTable(self.keys, self.kernel)

    def store(self, context: OperatorContext) -> TableStore:
        """Returns an empty store of such tables, one for each pane. If there are extras, all its groups stay in
        memory; otherwise groups beyond the memory budget go to disk.
        """
        return TableStore(
            self.keys,
            self.kernel,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not self.needs_slots,
            owners=context.owners(self.keys.names),
        )

    def extras(self, before: Callable[[pa.Int32Array], None] = lambda slots: None) -> Extras:
        """Returns an empty `Extras` for one table. `before`: the parameter of `Extras`."""
        return Extras(self._gathers, before)

    # Rows in

    def columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns `data` with the derived columns appended. `arguments` and `filters` are indices into these columns."""
        for (name, *_), (_, compute) in self._derived.items():
            data = data.append_column(str(name), compute(data))
        return data

    def add(
        self,
        table: GroupTable,
        extras: Extras,
        data: pa.RecordBatch,
        selection: pa.Int32Array | None = None,
        hashes: pa.UInt64Array | None = None,
    ) -> None:
        """Adds the rows of `data` that `selection` names, or all rows if it is None, to their groups in `table` and
        `extras`.

        `hashes`: the hashes of the keys of all rows of `data`, or None if the caller does not have them.
        """
        if self._derived:
            data = self.columns(data)
        slots = table.update(
            data,
            self.key_indices,
            self.arguments,
            self.filters,
            order=self.order,
            hashes=hashes,
            selection=selection,
            want_slots=self.needs_slots,
        )
        if slots is not None and self.needs_slots:
            with named_by(partial(_key_of, table)):
                extras.add(slots, data, selection)

    def merge(
        self, table: GroupTable, extras: Extras, state: pa.RecordBatch, selection: pa.Int32Array | None = None
    ) -> pa.Int32Array:
        """Merges partial states into the table and the extras, and returns the slot of each row. `state`: rows that
        `export` of another table has yielded.

        Columns are found by name; columns that are not among `states` are ignored.
        """
        slots = table.merge(state.select(self._kernel_states), selection=selection)
        if self.needs_slots:
            with named_by(partial(_key_of, table)):
                extras.merge(slots, state if selection is None else state.take(selection))
        return slots

    @property
    def width(self) -> int:
        """The number of columns that `columns` returns."""
        return len(self.input) + len(self._derived)

    def kernel_index(self, kind: str, column: str) -> int:
        """Returns the index of the kernel's accumulator of this kind and column, without a filter."""
        return self._known[kind, self.input.get_field_index(column), -1, False]

    # Results out

    def compose(self, kernel: Sequence[Array], gathered: Sequence[Array]) -> list[Array]:
        """Returns one column for each aggregate.

        `kernel`: the results of the kernel's accumulators. `gathered`: the results of the extras. Both have a row for
        each of the same groups.
        """
        return [output(kernel, gathered) for output in self._outputs]

    def finish(self, table: GroupTable, extras: Extras, slots: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Returns the results (`schema`) of these slots, or of all groups if `slots` is None."""
        if slots is None and self.needs_slots:
            slots = table.slots()
        columns = table.finish(slots)
        gathered = [] if slots is None else self._gathered(table, extras, slots)
        return self._result(columns, gathered)

    def values(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> list[Array]:
        """Returns the results of these slots without the keys: one column for each aggregate."""
        return self.compose(table.values(slots), self._gathered(table, extras, slots) if self.needs_slots else [])

    def _gathered(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> list[Array]:
        with named_by(partial(_key_of, table)):
            return extras.results(slots)

    def over(
        self, keys: Sequence[Array], columns: Sequence[Array], extras: Extras, slots: Any, first: Any, sizes: Any
    ) -> list[Array]:
        """Returns the results of ranges of slots: one column for each aggregate. `keys`: the keys of the results.
        `columns`: the results of the kernel's accumulators. `slots`, `first`, `sizes`: as for
        `GatheredValues.results_over`.
        """

        def key_of(place: int) -> pa.RecordBatch:
            names = self.keys.names[: len(keys)]
            return pa.RecordBatch.from_arrays([column.slice(place, 1) for column in keys], names=names)

        with named_by(key_of):
            return self.compose(columns, extras.results_over(slots, first, sizes))

    def results(self, store: TableStore, pane: int, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Yields the results of all groups of a pane, in pieces of at most CHUNK_ROWS rows."""
        if self.needs_slots:
            yield from self.results_of(store.table(pane), extras)
        else:
            for columns in store.finish(pane):
                yield self._result(columns, [])

    def results_of(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Yields the results of all groups of a table that belongs to no store, in pieces of at most CHUNK_ROWS rows."""
        for slots in slot_pieces(table):
            yield self.finish(table, extras, slots)

    def export(self, store: TableStore, pane: int, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Yields the states (`states`) of all groups of a pane, in pieces of at most CHUNK_ROWS rows."""
        if self.needs_slots:
            yield from self.export_of(store.table(pane), extras)
        else:
            yield from store.export(pane)

    def export_of(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Yields the states (`states`) of a table that belongs to no store, in pieces of at most CHUNK_ROWS rows."""
        for slots in slot_pieces(table):
            yield self.export_slots(table, extras, slots)

    def export_slots(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the states (`states`) of these slots."""
        state = table.export(slots)
        if not self.needs_slots:
            return state
        return pa.RecordBatch.from_arrays([*state.columns, *extras.states(slots)], schema=self.states)

    def export_gathered(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Yields the keys with the state in extras (columns `gathered`), without the accumulators. A checkpoint saves
        these rows beside the store. Yields nothing if there are no extras.
        """
        if self.needs_slots:
            for slots in slot_pieces(table):
                yield self.gathered_of(table, extras, slots)

    def gathered_of(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the keys and extras of these slots, without the accumulators."""
        columns = [*table.key_columns(slots), *extras.states(slots)]
        return pa.RecordBatch.from_arrays(columns, schema=self.gathered)

    def merge_gathered(self, table: GroupTable, extras: Extras, state: pa.RecordBatch) -> None:
        """Adds rows that `export_gathered` has yielded to the extras. Their groups must be in the table already."""
        keys = list(range(len(self.keys)))
        extras.merge(table.resolve(state, keys), state)

    def _result(self, columns: Sequence[Array], gathered: Sequence[Array]) -> pa.RecordBatch:
        width = len(self.keys)
        aggregates = self.compose(columns[width:], gathered)
        return pa.RecordBatch.from_arrays([*columns[:width], *aggregates], schema=self.schema)

    # From aggregates to accumulators

    def _resolve(self, aggregate: AggregateColumn) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        """Finds or makes the accumulators of an aggregate. Returns a function that computes the aggregate's column
        from the results of the kernel and of the extras.
        """
        if aggregate.kind not in KINDS:
            raise UserError(
                f"{aggregate.name}: there is no aggregate {aggregate.kind!r}", hint=f"one of {', '.join(sorted(KINDS))}"
            )
        where = -1 if aggregate.where is None else column_index(self.input, aggregate.where, aggregate.name)
        if where >= 0 and not pa.types.is_boolean(self.input.field(where).type):
            raise UserError(
                f"{aggregate.name}: the filter {aggregate.where!r} is {self.input.field(where).type}, not bool"
            )
        if aggregate.argument is None:
            if aggregate.kind not in ("count", "user"):
                raise UserError(f"{aggregate.name}: {aggregate.kind} needs a column")
            if aggregate.kind == "count":
                return _kernel_at(self._kernel("count", None, -1, where))
            return self._gather(aggregate, -1, where)
        argument = column_index(self.input, aggregate.argument, aggregate.name)
        kind = self.input.field(argument).type
        self._refuse_half_floats(aggregate, argument)
        if aggregate.kind == "count":
            if _fixed(kind):
                return _kernel_at(self._kernel("count", kind, argument, where))
            return _kernel_at(self._kernel("count", None, -1, self._valid(argument, where)))
        if aggregate.kind in _NUMERIC:
            return self._numeric(aggregate, argument, where, kind)
        if aggregate.kind in ("min", "max", "first", "last", "any") and _fixed(kind):
            return _kernel_at(
                self._kernel("first" if aggregate.kind == "any" else aggregate.kind, kind, argument, where)
            )
        if self._running and pa.types.is_decimal(kind) and aggregate.kind in _WORDS:
            return self._picked_decimals(aggregate, argument, where, kind)
        return self._gather(aggregate, argument, where)

    def _numeric(
        self, aggregate: AggregateColumn, argument: int, where: int, kind: pa.DataType
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        if pa.types.is_decimal(kind) and aggregate.kind == "sum":
            add = self._sum_of_decimals if self._running else self._gather
            return add(aggregate, argument, where)
        if aggregate.adds_decimals(self.input):
            return self._mean_of_decimals(argument, where, kind)
        if pa.types.is_decimal(kind):
            argument, kind = self._cast(argument, pa.float64()), pa.float64()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise UserError(
                f"{aggregate.name}: {aggregate.kind} of {aggregate.argument!r}, which is {kind}",
                hint="cast it to a number",
            )
        if aggregate.kind in ("sum", "mean"):
            return _kernel_at(self._kernel(aggregate.kind, kind, argument, where))
        # A variance with another ddof shares no accumulators, so adding one to a program leaves the state of others as it is.
        apart = aggregate.ddof != 1 and not aggregate.shares
        variance = self._kernel("variance", kind, argument, where, apart=apart)
        root = aggregate.kind == "stddev"
        if aggregate.ddof == 1:
            return lambda kernel, gathered: pc.sqrt(kernel[variance]) if root else kernel[variance]
        count = self._kernel("count", kind, argument, where, apart=apart)
        mean = self._kernel("mean", kind, argument, where, apart=apart)
        return lambda kernel, gathered: _with_ddof(kernel[variance], kernel[count], kernel[mean], aggregate.ddof, root)

    def _mean_of_decimals(
        self, argument: int, where: int, kind: pa.DataType
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        columns = self._parts(argument, part_count(kind))
        count = self._kernel("count", pa.int64(), columns[0], where)
        sums = [self._kernel("sum", pa.int64(), column, where) for column in columns]
        return lambda kernel, gathered: decimal_means(kernel[count], [kernel[each] for each in sums], kind.scale)

    def _sum_of_decimals(
        self, aggregate: AggregateColumn, argument: int, where: int
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        """Finds or makes the accumulators of an exact sum of decimals, and returns the function for its column, as
        `_resolve`. The number of parts follows from the result type, so the state stays the same when the precision
        of the column changes. The sum shares no accumulators with means: a checkpoint may have the mean and not the
        sum.
        """
        result, what = sum_type(self.input.field(argument).type), f"{aggregate.name}: a sum of {aggregate.argument!r}"
        columns = self._parts(argument, result.bit_width // 32)
        count = self._kernel("count", pa.int64(), columns[0], where, apart=True)
        sums = [self._kernel("sum", pa.int64(), column, where, apart=True) for column in columns]
        return lambda kernel, gathered: decimal_sums(kernel[count], [kernel[each] for each in sums], result, what)

    def _picked_decimals(
        self, aggregate: AggregateColumn, argument: int, where: int, kind: pa.DataType
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        """Finds or makes the accumulators of min, max, first, last or any of decimals: one for each 64-bit word of
        the values. Returns the function for the column, as `_resolve`.

        The accumulators of all words choose the same row for first, last and any. For min and max they would choose
        different rows, so a min or max of values of several words is stored in the extras.
        """
        count = word_count(kind)
        if count > 1 and aggregate.kind in ("min", "max"):
            return self._gather(aggregate, argument, where)
        words = [
            self._derive(("word", argument, place), partial(_word, argument=argument, place=place))
            for place in range(count)
        ]
        name = "first" if aggregate.kind == "any" else aggregate.kind
        picked = [self._kernel(name, pa.int64(), word, where) for word in words]
        return lambda kernel, gathered: decimals_of([kernel[each] for each in picked], kind)

    def _parts(self, argument: int, count: int) -> list[int]:
        """Returns the indices of derived int64 columns: the parts of decimals, 32 bits each."""
        return [
            self._derive(("part", argument, place, count), partial(_part, argument=argument, place=place, count=count))
            for place in range(count)
        ]

    def _kernel(
        self, kind: str, argument_type: pa.DataType | None, argument: int, where: int, *, apart: bool = False
    ) -> int:
        """Returns the index of the accumulator of this kind, argument and filter, which is added if it is missing.

        Aggregates that need an equal accumulator share one. `apart`: True if it may be shared only among calls with
        `apart=True`.
        """
        known = (kind, argument, where, apart)
        if known not in self._known:
            self._known[known] = len(self.kernel)
            self.kernel.append((kind, argument_type))
            self.arguments.append(argument)
            self.filters.append(where)
        self._asked.append(self._known[known])
        return self._known[known]

    def _gather(
        self, aggregate: AggregateColumn, argument: int, where: int
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        by = -1
        if aggregate.kind in ("arg_min", "arg_max"):
            if aggregate.by is None:
                raise UserError(f"{aggregate.name}: {aggregate.kind} needs `by`, the column to compare")
            by = column_index(self.input, aggregate.by, aggregate.name)
            self._refuse_half_floats(aggregate, by)
        index = len(self._gathers)
        self._gathers.append(
            Gather.of(
                aggregate.name,
                aggregate.kind,
                self.input,
                argument,
                by=by,
                where=where,
                order=self.order,
                function=aggregate.function,
                kept_as=f"gathered {index}",
                option=aggregate.k if aggregate.kind == "top_k" else aggregate.q,
            )
        )
        return lambda kernel, gathered: gathered[index]

    def _refuse_half_floats(self, aggregate: AggregateColumn, index: int) -> None:
        field = self.input.field(index)
        if pa.types.is_float16(field.type):
            raise UserError(f"{aggregate.name}: {field.name!r} is halffloat", hint="cast it to float32")

    def _valid(self, argument: int, where: int) -> int:
        """Returns the index of a derived bool column: True where the argument is not null and the filter holds."""
        return self._derive(("valid", argument, where), partial(_valid, argument=argument, where=where))

    def _cast(self, argument: int, kind: pa.DataType) -> int:
        return self._derive(("cast", argument, kind), lambda data: decimal_floats(data.column(argument), kind))

    def _derive(self, what: tuple[Any, ...], compute: Callable[[pa.RecordBatch], Array]) -> int:
        if what not in self._derived:
            self._derived[what] = (len(self.input) + len(self._derived), compute)
        return self._derived[what][0]


def aggregates_schema(
    aggregates: Sequence[AggregateColumn], results: Sequence[pa.Field], input: pa.Schema
) -> StateSchema:
    """Returns the aggregates for `Stateful.state_schema`: a list [name, text, type of the result] for each, the types
    of their arguments (`state_arguments`), and the order of rows if a result depends on it.

    `results`: the fields of the results, one for each aggregate.
    """
    schema: StateSchema = {
        "aggregates": [
            [aggregate.name, f"{'exact ' * aggregate.adds_decimals(input)}{aggregate.description()}", str(field.type)]
            for aggregate, field in zip(aggregates, results, strict=True)
        ]
    }
    if arguments := state_arguments(aggregates, input):
        schema["arguments"] = arguments
    if any(aggregate.kind in _BY_ORDER for aggregate in aggregates):
        schema["order"] = "event time" if TIME_COLUMN in input.names else "arrival"
    return schema


def state_arguments(aggregates: Sequence[AggregateColumn], input: pa.Schema) -> dict[str, str]:
    """Returns, by name, what the state of an aggregate depends on in the types of its arguments, as text. Left out are
    aggregates whose state follows from the type of the result, and those whose columns `input` lacks.
    """
    found = {}
    for each in aggregates:
        columns = [name for name in (each.argument, each.by) if name is not None]
        by_result = each.kind in _BY_RESULT and each.ddof == 1  # with another ddof, a variance keeps a mean too
        if not by_result and columns and all(name in input.names for name in columns):
            kinds = [input.field(name).type for name in columns]
            found[each.name] = " by ".join(_state_of(each, kind, input) for kind in kinds)
    return found


def _state_of(aggregate: AggregateColumn, kind: pa.DataType, input: pa.Schema) -> str:
    if aggregate.adds_decimals(input):  # the parts of unscaled values: the digits matter as far as they change these
        return f"decimals of scale {kind.scale} in {32 * part_count(kind)} bits"
    if getattr(aggregate.function, "wants_time", False):  # it keeps the rows themselves
        return str(kind)
    if aggregate.kind == "user" and pa.types.is_struct(kind):  # its columns
        return ", ".join(f"{field.name} {_state_of(aggregate, field.type, input)}" for field in kind)
    user = aggregate.kind == "user"
    if user or aggregate.kind in _NUMERIC:  # the same values of Python; the same 128 bits or floats
        if pa.types.is_integer(kind) or (pa.types.is_boolean(kind) and not user):
            return "integers"
        if pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and not user):
            return "floats"
    return str(kind)


def aggregates_reader(keys: Sequence[str], aggregates: Sequence[AggregateColumn], input: pa.Schema) -> StateReader:
    """Returns the keys, the aggregates and the columns that they read, for `Stateful.state_reader`. The functions of
    users' aggregates are left out.
    """
    used = {*keys, TIME_COLUMN}.union(
        *((aggregate.argument, aggregate.by, aggregate.where) for aggregate in aggregates)
    )
    columns = pa.schema([field for field in input if field.name in used])
    described = [
        {
            name: value
            for name, value in asdict(replace(aggregate, function=None)).items()
            if value is not None and name not in ("shares", "rounds")
        }
        for aggregate in aggregates
    ]
    return {"keys": list(keys), "calls": described, "input": schema_text(columns), "shares": False, "rounds": False}


def _fixed(kind: pa.DataType) -> bool:
    """Returns True if the kernel has accumulators for this type."""
    return bool(
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float64(kind)
        or pa.types.is_date(kind)
        or pa.types.is_time(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_duration(kind)
    )


def _key_of(table: GroupTable, slot: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(table.key_columns(pa.array([slot], pa.int32())), schema=table.keys)


def _kernel_at(index: int) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
    return lambda kernel, gathered: kernel[index]


def _valid(data: pa.RecordBatch, argument: int, where: int) -> Array:
    valid = pc.is_valid(data.column(argument))
    return valid if where < 0 else pc.and_(valid, data.column(where))


def _part(data: pa.RecordBatch, argument: int, place: int, count: int) -> Array:
    return part_of(data.column(argument), place, count)


def _word(data: pa.RecordBatch, argument: int, place: int) -> Array:
    return word_of(data.column(argument), place)


def _with_ddof(variance: Array, count: Array, mean: Array, ddof: int, root: bool) -> Array:
    """Returns the variance, or its root if `root` is True, with the divisor n - ddof. The result is null where this
    divisor is 0 or negative.

    The kernel's variance of a single value is null. So its sum of squares is computed from the mean: 0, or NaN if the
    value is not finite.
    """
    n = count.cast(pa.float64())
    squares = pc.if_else(pc.equal(n, _ONE), pc.subtract(mean, mean), pc.multiply(variance, pc.subtract(n, _ONE)))
    left = pc.subtract(n, pa.scalar(float(ddof)))
    result = pc.divide(squares, pc.if_else(pc.greater(left, _ZERO), left, _NO_NUMBER))
    return pc.sqrt(result) if root else result


def slot_pieces(table: GroupTable) -> Iterator[pa.Int32Array]:
    """Yields all slots of a table, at most CHUNK_ROWS at a time."""
    slots = table.slots()
    for start in range(0, len(slots), CHUNK_ROWS):
        yield slots.slice(start, CHUNK_ROWS)
