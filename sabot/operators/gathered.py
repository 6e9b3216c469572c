"""Aggregates without a fixed width: lists, distinct values, texts, what user functions keep. Values are gathered by slot.

Each batch adds its values as columns (slot, value, …); when they have doubled they are reduced to what the aggregate must keep:
one a group for a least text, the distinct ones, all of a list. A batch costs what its rows cost, memory is at most twice what
must be kept and one batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.errors import UserError

__all__ = ["Extras", "Gather", "UserAggregate", "joined"]

REDUCE_ROWS = 65_536  # fewer are not worth it
_NAN_AND_ZERO = {kind: (pa.scalar(float("nan"), kind), pa.scalar(0.0, kind)) for kind in (pa.float32(), pa.float64())}
_ROWS = ("least", "greatest", "latest")  # reductions that keep one row a slot, by its rank

Array: TypeAlias = pa.Array


class UserAggregate(Protocol):
    """An aggregate of the user's. States are what msgpack can say; nothing but these functions looks into them."""

    type: pa.DataType
    """Of `finish`'s values."""

    def init(self) -> Any:
        """The state of no rows."""

    def accumulate(self, state: Any, values: Any) -> Any:
        """The state with the rows of a batch that belong to one group: a pa.Array of the argument (without one: a RecordBatch)."""

    def merge(self, state: Any, other: Any) -> Any:
        """The state of both's rows."""

    def finish(self, state: Any) -> Any:
        """The result."""


@dataclass(frozen=True)
class Gather:
    """What one call gathers. `states`: its columns in an export, one row a group: a list of what is kept, for each kept column.

    argument, rank, where, order: column indices of the rows, -1 where there is none; width: how many columns the rows have.
    reduce, what is kept of a slot: "least" and "greatest", the row with that rank (of equal ones with the least order, then the first
    to come); "latest", the row that came last of those with the greatest rank; "min", "max", "sum", the value; "distinct", each value
    once; "list", all; "user", a state.
    """

    name: str
    reduce: str
    type: pa.DataType
    columns: tuple[pa.Field, ...]
    argument: int
    rank: int
    where: int
    order: int
    skip_null_rank: bool
    width: int
    function: Any = None

    @staticmethod
    def of(
        name: str, kind: str, input: pa.Schema, argument: int, *, by: int, where: int, order: int, function: Any = None
    ) -> "Gather":
        """The call `kind(argument)` over rows of `input`; UserError where the column's type cannot be."""
        if kind == "user":
            state = (pa.field("state", pa.binary()),)
            return Gather(name, "user", function.type, state, argument, -1, where, order, False, len(input), function)
        value = input.field(argument).type
        rank, skip, ordered = -1, False, False
        if kind in ("min", "max"):
            reduce, result = kind, value
            _check(name, f"{kind} of", input.field(argument))
        elif kind == "sum":
            value = result = (
                pa.decimal256(76, value.scale) if pa.types.is_decimal256(value) else pa.decimal128(38, value.scale)
            )
            reduce = "sum"
        elif kind == "count_distinct":
            reduce, result = "distinct", pa.int64()
            _check(name, "count_distinct of", input.field(argument))
        elif kind == "collect_list":
            reduce, result, ordered = "list", pa.list_(value), order >= 0
        elif kind in ("first", "any", "last"):
            reduce, result, rank = "latest" if kind == "last" else "least", value, order
        else:
            reduce, result, rank = "least" if kind == "arg_min" else "greatest", value, by
            skip, ordered = True, order >= 0
            _check(name, f"{kind} by", input.field(by))
        columns: tuple[pa.Field, ...] = (pa.field("value", value),)
        if reduce in _ROWS:
            columns += (pa.field("rank", pa.int64() if rank < 0 else input.field(rank).type),)
        if ordered:
            columns += (pa.field("order", pa.int64()),)
        return Gather(name, reduce, result, columns, argument, rank, where, order, skip, len(input))

    @property
    def states(self) -> list[pa.Field]:
        return [pa.field(f"{self.name}.{column.name}", pa.list_(column.type)) for column in self.columns]


class Extras:
    """What a table's kernel cannot keep, by the table's slots. One owner; the extras of one pane."""

    def __init__(self, gathers: Sequence[Gather]) -> None:
        self._parts: list[_Part] = [_User(g) if g.reduce == "user" else _Pairs(g) for g in gathers]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        """Row i of the selection goes to slots[i]. `data` may have further columns behind those that calls know."""
        for part in self._parts:
            part.add(slots, data, selection)

    def merge(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        """Row i of what `states` gave (columns by name) goes to slots[i]."""
        for part in self._parts:
            part.merge(slots, [state.column(field.name) for field in part.gather.states])

    def results(self, slots: pa.Int32Array) -> list[Array]:
        """One column a call."""
        return [part.results(slots) for part in self._parts]

    def states(self, slots: pa.Int32Array) -> list[Array]:
        """The columns that `merge` takes."""
        return [column for part in self._parts for column in part.states(slots)]

    def move(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """What slot source[i] has goes to slot into[i]; the sources are empty then. Takes time by all that is kept."""
        for part in self._parts:
            part.move(into.to_numpy(), source.to_numpy())

    def remove(self, slots: pa.Int32Array) -> None:
        """These slots are empty. Takes time by all that is kept."""
        for part in self._parts:
            part.remove(slots.to_numpy())

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that gathered columns take (states of user functions are not counted)."""
        return sum(part.nbytes for part in self._parts)


class _Part(ABC):
    """What one call has gathered."""

    def __init__(self, gather: Gather) -> None:
        self.gather = gather

    @abstractmethod
    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None: ...
    @abstractmethod
    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None: ...
    @abstractmethod
    def results(self, slots: pa.Int32Array) -> Array: ...
    @abstractmethod
    def states(self, slots: pa.Int32Array) -> list[Array]: ...
    @abstractmethod
    def move(self, into: Any, source: Any) -> None: ...
    @abstractmethod
    def remove(self, slots: Any) -> None: ...
    @abstractmethod
    def clear(self) -> None: ...
    @property
    def nbytes(self) -> int:
        return 0


class _Pairs(_Part):
    """Values as columns (slot, value[, rank][, order])."""

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._schema = pa.schema([pa.field("slot", pa.int32()), *gather.columns])
        self._arrived = 0  # rows so far: the rank of first and last where there is no order
        self.clear()

    def clear(self) -> None:
        self._chunks: list[pa.RecordBatch] = []
        self._rows = 0
        self._reduced_rows = 0  # that the last reduction left
        self._reduced = True  # nothing has come since
        self._sorted: tuple[pa.RecordBatch, Any] | None = None

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        if gather.where >= 0:
            mask = _taken(data.column(gather.where), selection)
            selection = pc.indices_nonzero(mask).cast(pa.int32()) if selection is None else selection.filter(mask)
            slots = slots.filter(mask)
        value = _taken(data.column(gather.argument), selection)
        columns = [value]
        if gather.reduce in _ROWS:
            columns.append(
                self._arrivals(len(slots)) if gather.rank < 0 else _taken(data.column(gather.rank), selection)
            )
        elif gather.reduce in ("min", "max", "sum", "distinct"):
            columns = [_plain_floats(value).cast(gather.columns[0].type)]
        if gather.columns[-1].name == "order":
            columns.append(_taken(data.column(gather.order), selection))
        batch = pa.RecordBatch.from_arrays([slots, *columns], schema=self._schema)
        if gather.reduce in ("min", "max", "sum", "distinct"):
            batch = _without(batch, value)
        elif gather.skip_null_rank:
            batch = _without(batch, columns[1], nan=True)
        self._append(batch)

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        parents = pc.list_parent_indices(columns[0])
        flat = [pc.list_flatten(column) for column in columns]
        if self.gather.reduce in _ROWS and self.gather.rank < 0:
            flat[1] = self._arrivals(len(parents))
        self._append(pa.RecordBatch.from_arrays([slots.take(parents), *flat], schema=self._schema))

    def results(self, slots: pa.Int32Array) -> Array:
        batch, bounds = self._by_slot()
        first, end = _spans(bounds, slots)
        if self.gather.reduce == "distinct":
            return pa.array(end - first)
        if self.gather.reduce == "list":
            return _lists(batch.column(1), first, end)
        return batch.column(1).take(pa.array(first, mask=first == end))

    def states(self, slots: pa.Int32Array) -> list[Array]:
        batch, bounds = self._by_slot()
        first, end = _spans(bounds, slots)
        return [_lists(column, first, end) for column in batch.columns[1:]]

    def move(self, into: Any, source: Any) -> None:
        self._renumber(lambda target: target.__setitem__(source, into), max(source.max(initial=0), into.max(initial=0)))

    def remove(self, slots: Any) -> None:
        self._renumber(lambda target: target.__setitem__(slots, -1), slots.max(initial=0))

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)

    def _arrivals(self, rows: int) -> Array:
        self._arrived += rows
        return pa.array(np.arange(self._arrived - rows, self._arrived))

    def _append(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._chunks.append(batch)
            self._rows += batch.num_rows
            self._reduced = False
            self._sorted = None
            if self._rows >= max(2 * self._reduced_rows, REDUCE_ROWS):
                self._reduce()

    def _reduce(self) -> pa.RecordBatch:
        """Only what must be kept, as one chunk."""
        if not self._chunks:
            return _empty(self._schema)
        if not self._reduced:
            batch = _REDUCERS[self.gather.reduce](joined(self._chunks))
            self._chunks, self._rows, self._reduced_rows = [batch], batch.num_rows, batch.num_rows
            self._reduced = True
        return self._chunks[0]

    def _by_slot(self) -> tuple[pa.RecordBatch, Any]:
        """What is kept, ordered by slot (and a list by order, then arrival); rows of slot s: bounds[s] to bounds[s + 1]."""
        if self._sorted is None:
            batch = self._reduce()
            by = ["slot", "order"] if self.gather.reduce == "list" and "order" in self._schema.names else ["slot"]
            if len(by) == 1:
                indices: Any = np.argsort(batch.column(0).to_numpy(), kind="stable")
            else:
                indices = pc.sort_indices(batch, [(name, "ascending") for name in by])
            batch = batch.take(pa.array(indices))
            counts = np.bincount(batch.column(0).to_numpy())
            self._sorted = batch, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
            self._chunks = [batch] if batch.num_rows else []
        return self._sorted

    def _renumber(self, change: Any, largest: int) -> None:
        """`change` of the array 0, 1, … says which slot each becomes; -1: it is empty."""
        if not self._chunks:
            return
        batch = joined(self._chunks)
        slots = batch.column(0).to_numpy()
        target = np.arange(max(largest, slots.max()) + 1, dtype=np.int32)
        change(target)
        moved = target[slots]
        keep = moved >= 0
        batch = pa.RecordBatch.from_arrays([pa.array(moved), *batch.columns[1:]], schema=self._schema)
        if not keep.all():
            batch = batch.filter(pa.array(keep))
        self._chunks, self._rows = [batch] if batch.num_rows else [], batch.num_rows
        self._reduced = False  # slots may have been joined
        self._sorted = None


class _User(_Part):
    """States of a user's function, by slot."""

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._function: UserAggregate = gather.function
        self._states: dict[int, Any] = {}

    def clear(self) -> None:
        self._states = {}

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        if gather.where >= 0:
            mask = _taken(data.column(gather.where), selection)
            selection = pc.indices_nonzero(mask).cast(pa.int32()) if selection is None else selection.filter(mask)
            slots = slots.filter(mask)
        if not len(slots):
            return
        numbers = slots.to_numpy()
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        rows = pa.array(order) if selection is None else selection.take(pa.array(order))
        among = data.select(list(range(gather.width))) if gather.argument < 0 else data.column(gather.argument)
        values = among.take(rows)
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            slot = int(numbers[start])
            state = self._states[slot] if slot in self._states else self._function.init()
            self._states[slot] = self._function.accumulate(state, values.slice(start, end - start))

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        for slot, states in zip(slots.to_pylist(), columns[0].to_pylist(), strict=True):
            for packed in states:
                self._join(slot, msgspec.msgpack.decode(packed))

    def results(self, slots: pa.Int32Array) -> Array:
        finish, init, states = self._function.finish, self._function.init, self._states
        values = [finish(states[slot] if slot in states else init()) for slot in slots.to_pylist()]
        return pa.array(values, self.gather.type)

    def states(self, slots: pa.Int32Array) -> list[Array]:
        pack, states = msgspec.msgpack.encode, self._states
        packed = [[pack(states[slot])] if slot in states else [] for slot in slots.to_pylist()]
        return [pa.array(packed, pa.list_(pa.binary()))]

    def move(self, into: Any, source: Any) -> None:
        for target, slot in zip(into.tolist(), source.tolist(), strict=True):
            if slot in self._states:
                self._join(target, self._states.pop(slot))

    def remove(self, slots: Any) -> None:
        for slot in slots.tolist():
            self._states.pop(slot, None)

    def _join(self, slot: int, state: Any) -> None:
        self._states[slot] = self._function.merge(self._states[slot], state) if slot in self._states else state


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of one schema, with rows, end to end."""
    return batches[0] if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _check(name: str, what: str, field: pa.Field) -> None:
    kind = field.type
    if pa.types.is_nested(kind) or pa.types.is_null(kind):
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}", hint="take a number, a text or a time out of it"
        )


def _taken(column: Array, selection: pa.Int32Array | None) -> Array:
    return column if selection is None else column.take(selection)


def _plain_floats(values: Array) -> Array:
    """-0.0 as 0.0, every NaN as the one: what is equal has equal bytes."""
    if not pa.types.is_floating(values.type):
        return values
    nan, zero = _NAN_AND_ZERO[values.type]
    return pc.if_else(pc.is_nan(values), nan, pc.add(values, zero))


def _without(batch: pa.RecordBatch, column: Array, nan: bool = False) -> pa.RecordBatch:
    """The rows where `column` is not null (nor NaN)."""
    floats = nan and pa.types.is_floating(column.type)
    if column.null_count == 0 and not floats:
        return batch
    keep = pc.is_valid(column)
    return batch.filter(pc.and_not(keep, pc.is_nan(column)) if floats else keep)


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _spans(bounds: Any, slots: pa.Int32Array) -> tuple[Any, Any]:
    """First and end row of each slot; slots beyond the bounds have none."""
    numbers = slots.to_numpy()
    last = len(bounds) - 1
    return bounds[np.minimum(numbers, last)], bounds[np.minimum(numbers + 1, last)]


def _lists(values: Array, first: Any, end: Any) -> Array:
    """Row i: values[first[i]:end[i]]."""
    sizes = end - first
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], sizes)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values.take(pa.array(rows)))


def _grouped(batch: pa.RecordBatch, column: str, kind: str) -> pa.RecordBatch:
    """One row a slot: (slot, column) with that aggregate of the column, in order of the slots' first rows."""
    table = pa.Table.from_batches([batch]).group_by("slot", use_threads=False).aggregate([(column, kind)])
    columns = [table.column("slot"), table.column(f"{column}_{kind}")]
    return pa.RecordBatch.from_arrays([c.combine_chunks() for c in columns], names=["slot", column])


def _one_value(kind: str) -> Any:
    def reduce(batch: pa.RecordBatch) -> pa.RecordBatch:
        found = _grouped(batch, "value", kind)
        return pa.RecordBatch.from_arrays(
            [found.column(0), found.column(1).cast(batch.column(1).type)], schema=batch.schema
        )

    return reduce


def _one_row(kind: str, last: bool = False) -> Any:
    """The row of each slot with the least (greatest) rank; of these, the one with the least order; of these, the first (last)."""

    def reduce(batch: pa.RecordBatch) -> pa.RecordBatch:
        batch = _best(batch, "rank", kind)
        if "order" in batch.schema.names:
            batch = _best(batch, "order", "min")
        slots = batch.column(0).to_numpy()
        rows = np.arange(len(slots))
        kept = np.empty(slots.max() + 1, np.int64)
        if last:
            kept[slots] = rows
        else:
            kept[slots[::-1]] = rows[::-1]
        alone = kept[slots] == rows
        return batch if alone.all() else batch.filter(pa.array(alone))

    return reduce


def _best(batch: pa.RecordBatch, column: str, kind: str) -> pa.RecordBatch:
    """The rows whose `column` is the slot's best."""
    best = _grouped(batch, column, kind)
    slots = best.column(0).to_numpy()
    where = np.empty(slots.max() + 1, np.int64)
    where[slots] = np.arange(len(slots))
    bests = best.column(1).take(pa.array(where[batch.column(0).to_numpy()]))
    return batch.filter(pc.equal(batch.column(column), bests))


def _distinct(batch: pa.RecordBatch) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch]).group_by(["slot", "value"], use_threads=False).aggregate([])
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=batch.schema)


_REDUCERS = {
    "least": _one_row("min"),
    "greatest": _one_row("max"),
    "latest": _one_row("max", last=True),
    "min": _one_value("min"),
    "max": _one_value("max"),
    "sum": _one_value("sum"),
    "distinct": _distinct,
    "list": lambda batch: batch,
}
