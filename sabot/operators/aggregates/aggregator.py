"""Aggregates by group. The kernel has accumulators of fixed width (`GroupTable`); values without a fixed width are gathered beside it,
by the table's slots (`Extras`).

An Aggregator is only a description: the caller owns tables, stores and extras, one for each pane, window or session.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot.arrays import decimal_floats
from sabot.codecs.json import schema_text
from sabot.errors import UserError
from sabot.operators.aggregates.decimals import (
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
from sabot.operators.aggregates.extras import Extras
from sabot.operators.aggregates.gather import Gather
from sabot.operators.aggregates.migration import StateLayout, StatePlace
from sabot.operators.base import CHUNK_ROWS, TIME_COLUMN, OperatorContext
from sabot.operators.columns import check_distinct, column_index, key_columns
from sabot.state.tables.store import TableStore

_NUMERIC = ["sum", "mean", "variance", "stddev"]
_PICKED = ["min", "max", "first", "last", "any", "arg_min", "arg_max"]
_SKETCHED = ["approx_count_distinct", "approx_quantile"]
KINDS = frozenset(["count", *_NUMERIC, *_PICKED, "count_distinct", "collect_list", "top_k", *_SKETCHED, "user"])
_BY_ORDER = frozenset(
    ["first", "last", "any", "arg_min", "arg_max", "collect_list"]
)  # their result depends on the order
_WORDS = frozenset(["min", "max", "first", "last", "any"])  # of decimals, after each row: see `_picked_decimals`
_ZERO, _ONE, _NO_NUMBER = (pa.scalar(value, pa.float64()) for value in (0.0, 1.0, None))

Array: TypeAlias = pa.Array


@dataclass(frozen=True)
class AggregateColumn:
    """One aggregate. `argument`, `by` (of arg_min and arg_max) and `where` (bool: only rows where it is true) name input columns.

    function: for the kind "user" (see `user.UserAggregate`). ddof: for variance and stddev. q: the quantile or quantiles of
    approx_quantile. k: for top_k. text: the aggregate as the user wrote it, where its argument is an expression without a name.
    shares: its state is that of an older checkpoint, in which a variance with another ddof shares accumulators with other aggregates.
    rounds: its state is that of an older checkpoint, where a mean of decimals adds the nearest floats.
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
        """The aggregate as text, without the name of its column."""
        if self.text:
            return self.text
        options = {"ddof": None if self.ddof == 1 else self.ddof, "q": self.q, "k": self.k}
        said = [f"{name}={value}" for name, value in options.items() if value is not None]
        given = [self.argument, self.by, *said]
        words = f"{self.kind}({', '.join(each for each in given if each is not None)})"
        return words if self.where is None else f"{words}.filter({self.where})"

    def adds_decimals(self, input: pa.Schema) -> bool:
        """Whether it is a mean of decimals that keeps their exact sum."""
        if self.kind != "mean" or self.rounds or self.argument not in input.names:
            return False
        return bool(pa.types.is_decimal(input.field(self.argument).type))


class Aggregator:
    """`aggregates` over rows of `input`, grouped by the columns `keys`. order: the int64 column that says which row is first.
    running: results are asked for after each row, so sums of decimals too are kept in the kernel.

    schema: the columns of results, which are the keys, then the aggregates. kernel: the accumulators that its GroupTable has. states:
    keys and all accumulators as columns, one row for each group, as `merge` takes them. needs_slots: there are extras, and tables must
    stay in memory. layout: where the state of each aggregate stands.
    Nulls: a sum or mean of no value is null; count and count_distinct of no value are 0; collect_list keeps nulls, and goes by `order`,
    then arrival. For first, last and any nulls are values; of rows with equal `order` the first (last) to arrive is taken. For arg_min
    and arg_max, rows with equal `by` go by the least `order`, then arrival; rows whose `by` is null or NaN are passed over.
    Raises UserError for a column that is not there, or of a type that the kind cannot take.
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
        self._asked: list[int] = []  # the accumulators of one aggregate, while it is resolved
        places: list[StatePlace] = []
        for aggregate in aggregates:
            self._asked, before = [], len(self._gathers)
            self._outputs.append(self._resolve(aggregate))
            beside = [field.name for gather in self._gathers[before:] for field in gather.states]
            places.append(StatePlace(self._asked, beside))
        self._asked = []
        if not self.kernel:  # a batch of states needs a column to have rows
            self._kernel("count", None, -1, -1)
        table = self.table()
        self.needs_slots = bool(self._gathers)
        gathered = [field for gather in self._gathers for field in gather.states]
        self.states = pa.schema([*table.states, *gathered])
        self._kernel_states = table.states.names
        self.gathered = pa.schema([*self.keys, *gathered])
        self.layout = StateLayout(self.table, self.gathered, places)
        empty = self.compose(
            [pa.array([], kind) for kind in table.results], [pa.array([], g.type) for g in self._gathers]
        )
        columns = [pa.field(aggregate.name, column.type) for aggregate, column in zip(aggregates, empty, strict=True)]
        self.schema = pa.schema([*self.keys, *columns])
        check_distinct(self.schema.names)

    # What callers hold

    def table(self) -> GroupTable:
        """An empty table outside of any store."""
        return GroupTable(self.keys, self.kernel)

    def store(self, context: OperatorContext) -> TableStore:
        """A store of such tables. Where there are extras, groups stay in memory."""
        return TableStore(
            self.keys,
            self.kernel,
            directory=context.directory,
            memory_budget=context.memory_budget,
            evictable=not self.needs_slots,
            owners=context.owners(self.keys.names),
        )

    def extras(self, before: Callable[[pa.Int32Array], None] = lambda slots: None) -> Extras:
        """An empty holder of what the kernel cannot keep, for one table. before: as for `Extras`."""
        return Extras(self._gathers, before)

    # Rows in

    def columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """`data` with the derived columns behind it to which indices of `arguments` and `filters` may point."""
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
        """Adds the rows of `data` that `selection` names."""
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
        """Adds states that `export` of another table gave (columns by name; others are passed over). -> the slot of each row."""
        slots = table.merge(state.select(self._kernel_states), selection=selection)
        if self.needs_slots:
            with named_by(partial(_key_of, table)):
                extras.merge(slots, state if selection is None else state.take(selection))
        return slots

    @property
    def width(self) -> int:
        """How many columns `columns` gives."""
        return len(self.input) + len(self._derived)

    def kernel_index(self, kind: str, column: str) -> int:
        """The index among the kernel's accumulators of `kind` of that column, without a filter."""
        return self._known[kind, self.input.get_field_index(column), -1, False]

    # Results out

    def compose(self, kernel: Sequence[Array], gathered: Sequence[Array]) -> list[Array]:
        """Makes one column for each aggregate of the results of the kernel and of the extras, which are columns of the same groups."""
        return [output(kernel, gathered) for output in self._outputs]

    def finish(self, table: GroupTable, extras: Extras, slots: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Results (`schema`) of these slots, or of all groups."""
        if slots is None and self.needs_slots:
            slots = table.slots()
        columns = table.finish(slots)
        gathered = [] if slots is None else self._gathered(table, extras, slots)
        return self._result(columns, gathered)

    def values(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> list[Array]:
        """Results of these slots, one column for each aggregate, without the keys."""
        return self.compose(table.values(slots), self._gathered(table, extras, slots) if self.needs_slots else [])

    def _gathered(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> list[Array]:
        with named_by(partial(_key_of, table)):
            return extras.results(slots)

    def results(self, store: TableStore, pane: int, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Results of all groups of a pane, in pieces of at most CHUNK_ROWS rows."""
        if self.needs_slots:
            yield from self.results_of(store.table(pane), extras)
        else:
            for columns in store.finish(pane):
                yield self._result(columns, [])

    def results_of(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """As `results`, for a table outside of a store."""
        for slots in slot_pieces(table):
            yield self.finish(table, extras, slots)

    def export(self, store: TableStore, pane: int, extras: Extras) -> Iterator[pa.RecordBatch]:
        """States (`states`) of all groups of a pane, in pieces of at most CHUNK_ROWS rows."""
        if self.needs_slots:
            yield from self.export_of(store.table(pane), extras)
        else:
            yield from store.export(pane)

    def export_of(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """As `export`, for a table outside of a store."""
        for slots in slot_pieces(table):
            yield self.export_slots(table, extras, slots)

    def export_slots(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        """States (`states`) of these slots."""
        state = table.export(slots)
        if not self.needs_slots:
            return state
        return pa.RecordBatch.from_arrays([*state.columns, *extras.states(slots)], schema=self.states)

    def export_gathered(self, table: GroupTable, extras: Extras) -> Iterator[pa.RecordBatch]:
        """Keys and extras alone (`gathered`), which a checkpoint saves beside the store."""
        if self.needs_slots:
            for slots in slot_pieces(table):
                yield self.gathered_of(table, extras, slots)

    def gathered_of(self, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> pa.RecordBatch:
        """Keys and extras alone of these slots."""
        columns = [*table.key_columns(slots), *extras.states(slots)]
        return pa.RecordBatch.from_arrays(columns, schema=self.gathered)

    def merge_gathered(self, table: GroupTable, extras: Extras, state: pa.RecordBatch) -> None:
        """Adds what `export_gathered` gave to groups that the table has already."""
        keys = list(range(len(self.keys)))
        extras.merge(table.resolve(state, keys), state)

    def _result(self, columns: Sequence[Array], gathered: Sequence[Array]) -> pa.RecordBatch:
        width = len(self.keys)
        aggregates = self.compose(columns[width:], gathered)
        return pa.RecordBatch.from_arrays([*columns[:width], *aggregates], schema=self.schema)

    # From aggregates to accumulators

    def _resolve(self, aggregate: AggregateColumn) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        """-> a function that makes the aggregate's column of the kernel's results and the gathered ones."""
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
        if pa.types.is_float16(kind):
            raise UserError(f"{aggregate.name}: {aggregate.argument!r} is halffloat", hint="cast it to float32")
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
        # Accumulators are shared by aggregates that keep the same alone: so one that is added to a program begins empty beside the others.
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
        """As many parts as the result has, whatever the column's precision: it may change, and the state stays. Apart from means, as these
        may be those of a checkpoint without the sum."""
        result, what = sum_type(self.input.field(argument).type), f"{aggregate.name}: a sum of {aggregate.argument!r}"
        columns = self._parts(argument, result.bit_width // 32)
        count = self._kernel("count", pa.int64(), columns[0], where, apart=True)
        sums = [self._kernel("sum", pa.int64(), column, where, apart=True) for column in columns]
        return lambda kernel, gathered: decimal_sums(kernel[count], [kernel[each] for each in sums], result, what)

    def _picked_decimals(
        self, aggregate: AggregateColumn, argument: int, where: int, kind: pa.DataType
    ) -> Callable[[Sequence[Array], Sequence[Array]], Array]:
        """One of the values, by its words: the first (last) row is the same for all of them, and the least word is that of the least
        value where there is only one.
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
        """The indices of derived int64 columns: the parts of decimals."""
        return [
            self._derive(("part", argument, place, count), partial(_part, argument=argument, place=place, count=count))
            for place in range(count)
        ]

    def _kernel(
        self, kind: str, argument_type: pa.DataType | None, argument: int, where: int, *, apart: bool = False
    ) -> int:
        """The index of an accumulator; aggregates that need the same one share it. apart: only with others that are apart."""
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
                raise UserError(f"{aggregate.name}: {aggregate.kind} needs the column to go by")
            by = column_index(self.input, aggregate.by, aggregate.name)
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

    def _valid(self, argument: int, where: int) -> int:
        """The index of a derived bool column: the argument is not null, and the filter holds."""
        return self._derive(("valid", argument, where), partial(_valid, argument=argument, where=where))

    def _cast(self, argument: int, kind: pa.DataType) -> int:
        return self._derive(("cast", argument, kind), lambda data: decimal_floats(data.column(argument), kind))

    def _derive(self, what: tuple[Any, ...], compute: Callable[[pa.RecordBatch], Array]) -> int:
        if what not in self._derived:
            self._derived[what] = (len(self.input) + len(self._derived), compute)
        return self._derived[what][0]


def aggregates_schema(
    aggregates: Sequence[AggregateColumn], results: Sequence[pa.Field], input: pa.Schema
) -> dict[str, Any]:
    """The aggregates for `Stateful.state_schema`: [name, text, type of the result] each. results: one field for each of them."""
    schema: dict[str, Any] = {
        "aggregates": [
            [aggregate.name, f"{'exact ' * aggregate.adds_decimals(input)}{aggregate.description()}", str(field.type)]
            for aggregate, field in zip(aggregates, results, strict=True)
        ]
    }
    if any(aggregate.kind in _BY_ORDER for aggregate in aggregates):
        schema["order"] = "event time" if TIME_COLUMN in input.names else "arrival"
    return schema


def aggregates_reader(keys: Sequence[str], aggregates: Sequence[AggregateColumn], input: pa.Schema) -> dict[str, Any]:
    """Keys, aggregates and the columns that they use, for `Stateful.state_reader`. The users' functions are left out."""
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
    """Whether the kernel has accumulators for this type."""
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
    """The variance with the divisor n - ddof; null where that is not above 0.

    The kernel's variance of one value is null, so the sum of squares of one value is computed anew: 0, or NaN.
    """
    n = count.cast(pa.float64())
    squares = pc.if_else(pc.equal(n, _ONE), pc.subtract(mean, mean), pc.multiply(variance, pc.subtract(n, _ONE)))
    left = pc.subtract(n, pa.scalar(float(ddof)))
    result = pc.divide(squares, pc.if_else(pc.greater(left, _ZERO), left, _NO_NUMBER))
    return pc.sqrt(result) if root else result


def slot_pieces(table: GroupTable) -> Iterator[pa.Int32Array]:
    """All slots of a table, at most CHUNK_ROWS at a time."""
    slots = table.slots()
    for start in range(0, len(slots), CHUNK_ROWS):
        yield slots.slice(start, CHUNK_ROWS)
