"""Aggregates without a fixed width: lists, distinct values, texts, what user functions keep. Values are gathered by slot.

Each batch adds its values as columns (slot, value, …); when they have doubled they are reduced to what the aggregate must keep:
one a group for a least text, the distinct ones, all of a list. Asked for some slots' values, what has come since is sorted by slot
and becomes a run; runs are merged so that each is at least twice as long as the next (a log-structured merge tree: O'Neil, Cheng,
Gawlick, O'Neil 1996). So a row costs a logarithm, and a question what it touches, however many groups there are. Memory is at most
twice a list's values, and six times what must be kept of reduced ones, which runs and the tail may have again; and two batches.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import sum_overflow
from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.sketch import Distinct, Quantiles
from sabot.config import is_whole
from sabot.errors import UserError, short_repr
from sabot.operators.aggregates.packed import ordered

__all__ = ["Extras", "Gather", "UserAggregate", "fits", "joined", "quantile_column"]

REDUCE_ROWS = 65_536  # fewer are not worth it
PIECE_ROWS = 32_768  # reduced at once: what is looked up stays in the processor's cache
RUN_BYTES = 1 << 29  # runs of lists are not merged to more: the offsets of texts have 31 bits
_NAN_AND_ZERO = {kind: (pa.scalar(float("nan"), kind), pa.scalar(0.0, kind)) for kind in (pa.float32(), pa.float64())}
_ROWS = ("least", "greatest", "latest")  # reductions that keep one row a slot, by its rank
_VALUES = ("min", "max", "sum", "distinct", "top")  # to which nulls are nothing

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

    kept_as: the name of its columns in an export; empty: `name`. With it the call may get another name while its state stays.
    argument, rank, where, order: column indices of the rows, -1 where there is none; width: how many columns the rows have.
    reduce, what is kept of a slot: "least" and "greatest", the row with that rank (of equal ones with the least order, then the first
    to come); "latest", the row that came last of those with the greatest rank; "min", "max", "sum", the value; "distinct", each value
    once; "list", all; "top", the `option` greatest values, greatest first; "user", a state; "sketch", a sketch of the values.
    option: how many values of "top"; the quantiles, one or several, of a sketch.
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
    kept_as: str = ""
    option: Any = None

    @staticmethod
    def of(
        name: str,
        kind: str,
        input: pa.Schema,
        argument: int,
        *,
        by: int,
        where: int,
        order: int,
        function: Any = None,
        kept_as: str = "",
        option: Any = None,
    ) -> "Gather":
        """The call `kind(argument)` over rows of `input`; UserError where the column's type cannot be."""
        if kind == "user":
            state = (pa.field("state", pa.binary()),)
            return Gather(
                name, "user", function.type, state, argument, -1, where, order, False, len(input), function, kept_as
            )
        value = input.field(argument).type
        if kind in ("approx_count_distinct", "approx_quantile"):
            result = _sketched(name, kind, input.field(argument), option)
            state = (pa.field("state", pa.large_binary()),)
            return Gather(
                name, "sketch", result, state, argument, -1, where, order, False, len(input), None, kept_as, option
            )
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
        elif kind == "top_k":
            if not is_whole(option, 1):
                raise UserError(f"{name}: top_k of {option!r} values", hint="a whole number, 1 or more")
            reduce, result = "top", pa.list_(value)
            _check(name, "top_k of", input.field(argument))
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
        return Gather(
            name, reduce, result, columns, argument, rank, where, order, skip, len(input), None, kept_as, option
        )

    @property
    def states(self) -> list[pa.Field]:
        name = self.kept_as or self.name
        return [pa.field(f"{name}.{column.name}", pa.list_(column.type)) for column in self.columns]


class Extras:
    """What a table's kernel cannot keep, by the table's slots. One owner; the extras of one pane."""

    def __init__(self, gathers: Sequence[Gather]) -> None:
        self._parts: list[_Part] = [_KEPT_BY.get(gather.reduce, _Pairs)(gather) for gather in gathers]

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
        """What slot source[i] has goes to slot into[i]; the sources are empty then. None is named twice, or is an `into` too.

        Of values that this brings together, and that have the same order, any may be first.
        """
        for part in self._parts:
            part.move(into.to_numpy(), source.to_numpy())

    def remove(self, slots: pa.Int32Array) -> None:
        """These slots, each named once, are empty."""
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


class _Run:
    """Columns (home, value[, rank][, order]), reduced, ascending by home."""

    def __init__(self, batch: pa.RecordBatch, age: int) -> None:
        self.batch = batch
        self.homes = batch.column(0).to_numpy()
        self.rows: int = batch.num_rows
        self.nbytes: int = batch.nbytes
        self.age = age
        """A row is there unless its home was emptied after this."""
        self.dead = 0  # rows that are not there

    def spans(self, homes: Any, born: Any) -> tuple[Any, Any]:
        """First row of each of these homes, ascending, and how many."""
        first = np.searchsorted(self.homes, homes)
        sizes = np.searchsorted(self.homes, homes, side="right") - first
        if born is not None:
            sizes[born[homes] > self.age] = 0
        return first, sizes

    def living(self, born: Any) -> pa.RecordBatch:
        """Without the rows that are not there."""
        return self.batch.filter(pa.array(born[self.homes] <= self.age)) if self.dead else self.batch


class _Pairs(_Part):
    """Values as columns (home, value[, rank][, order]): runs, and a tail as they came.

        runs    older, longer ── newer, shorter │ tail
        home    0 0 0 1 2 2 2 … │ 0 2 2 │ 1 2 2 │ 2 0 1 0 …

    The rows of slot s are those of home[s]. So two slots are joined by moving the rows of the one that has fewer, which then has the
    other's home: a row is not moved more often than its slot's rows have doubled. A home is emptied by a stamp: rows of older runs are
    not there, and go with the next merge; at the latest when they are half of all.
    """

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._schema = pa.schema([pa.field("slot", pa.int32()), *gather.columns])
        self._reducer = partial(_top, gather.option) if gather.reduce == "top" else _REDUCERS[gather.reduce]
        self._arrived = 0  # rows so far: the rank of first and last where there is no order
        self.clear()

    def clear(self) -> None:
        self._runs: list[_Run] = []
        self._home: Any = None  # by slot; None: each is its own, and none was emptied
        self._born: Any = None  # by home: rows of runs that are older are not there
        self._age = 0
        self._empty_tail()

    def _empty_tail(self) -> None:
        self._tail: list[pa.RecordBatch] = []
        self._tail_rows = self._tail_bytes = 0
        self._reduced_rows = 0  # that the last reduction left

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
        elif gather.reduce in _VALUES:
            columns = [_plain_floats(value).cast(gather.columns[0].type)]
        if gather.columns[-1].name == "order":
            columns.append(_taken(data.column(gather.order), selection))
        batch = pa.RecordBatch.from_arrays([slots, *columns], schema=self._schema)
        if gather.reduce in _VALUES:
            batch = _without(batch, value, nan=gather.reduce == "top")
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
        batch, bounds = self._rows_of(slots.to_numpy())
        values = batch.column(1)
        if self.gather.reduce == "distinct":
            return pa.array(np.diff(bounds))
        if self.gather.reduce in ("list", "top"):
            return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values)
        return values.take(pa.array(bounds[:-1], mask=bounds[:-1] == bounds[1:]))

    def states(self, slots: pa.Int32Array) -> list[Array]:
        batch, bounds = self._rows_of(slots.to_numpy())
        offsets = pa.array(bounds.astype(np.int32))
        return [pa.ListArray.from_arrays(offsets, column) for column in batch.columns[1:]]

    def move(self, into: Any, source: Any) -> None:
        self._flush()
        if not self._runs or not len(source):
            return
        targets, which = np.unique(into, return_inverse=True)
        self._reach(max(source.max(), targets.max()))
        self._swap(targets, which, source)
        homes = self._home[source]
        batch, bounds = self._rows_of(source)
        self._vacate(homes)
        if batch.num_rows:
            self._to_tail(_renumbered(batch, np.repeat(self._home[into], np.diff(bounds))))

    def _swap(self, targets: Any, which: Any, source: Any) -> None:
        """Each target gets the home with the most rows, of its own and those of its sources; the source gets the target's."""
        members = np.concatenate([targets, source])
        group = np.concatenate([np.arange(len(targets)), which])
        sizes = np.sum([sizes for _, _, sizes in self._spans(self._home[members])], axis=0)
        by_size = np.lexsort((-sizes, group))  # stable: the target before sources that have as many
        largest = members[by_size[np.flatnonzero(np.diff(group[by_size], prepend=-1))]]
        self._home[targets], self._home[largest] = self._home[largest], self._home[targets]

    def remove(self, slots: Any) -> None:
        self._flush()
        if self._runs and len(slots):
            self._reach(slots.max())
            self._vacate(self._home[slots])

    @property
    def nbytes(self) -> int:
        stamps = 0 if self._home is None else self._home.nbytes + self._born.nbytes
        return int(stamps) + self._tail_bytes + sum(run.nbytes for run in self._runs)

    def _arrivals(self, rows: int) -> Array:
        self._arrived += rows
        return pa.array(np.arange(self._arrived - rows, self._arrived))

    def _append(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            if self._home is not None:
                slots = batch.column(0).to_numpy()
                self._reach(slots.max())
                batch = _renumbered(batch, self._home[slots])
            self._to_tail(batch)

    def _to_tail(self, batch: pa.RecordBatch) -> None:
        self._tail.append(batch)
        self._tail_rows += batch.num_rows
        self._tail_bytes += batch.nbytes
        if self._tail_bytes > RUN_BYTES:
            self._flush()
        elif self._tail_rows >= max(2 * self._reduced_rows, REDUCE_ROWS):
            reduced = self._reducer(joined(self._tail))
            self._tail, self._tail_rows, self._tail_bytes = [reduced], reduced.num_rows, reduced.nbytes
            self._reduced_rows = reduced.num_rows

    def _flush(self) -> None:
        """The tail becomes a run."""
        if self._tail:
            batch = joined(self._tail)
            self._empty_tail()
            self._push(batch)

    def _push(self, batch: pa.RecordBatch) -> None:
        """A run of these rows and of the runs before it that are not twice as long."""
        parts, rows, size = [batch], batch.num_rows, batch.nbytes
        while self._runs and self._runs[-1].rows < 2 * rows:
            if self.gather.reduce == "list" and self._runs[-1].nbytes + size > RUN_BYTES:
                break
            run = self._runs.pop()
            rows, size = rows + run.rows, size + run.nbytes
            parts.append(run.living(self._born))
        if parts := [part for part in reversed(parts) if part.num_rows]:
            self._runs.append(_Run(self._reduced(joined(parts)), self._age))

    def _reduced(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What must be kept, ascending. Rows of a slot stay together, so that pieces can be reduced one by one."""
        batch = _sorted(batch)
        if self.gather.reduce == "list":
            return batch
        slots = batch.column(0).to_numpy()
        cuts = np.unique(np.searchsorted(slots, slots[::PIECE_ROWS])).tolist()  # first rows of slots
        ends = [*cuts[1:], len(slots)]
        return joined(
            [_sorted(self._reducer(batch.slice(cut, end - cut))) for cut, end in zip(cuts, ends, strict=True)]
        )

    def _rows_of(self, slots: Any) -> tuple[pa.RecordBatch, Any]:
        """What is kept of these slots, in their order (and a list by order, then arrival); rows of slots[i]: bounds[i] to bounds[i + 1].

        Column 0 is i.
        """
        self._flush()
        homes = slots
        if self._home is not None:
            self._reach(slots.max(initial=-1))
            homes = self._home[slots]
        pieces = []
        for run, first, sizes in self._spans(homes):
            if sizes.any():
                taken = run.batch.take(pa.array(_ranges(first, sizes)))
                pieces.append(_renumbered(taken, np.repeat(np.arange(len(slots), dtype=np.int32), sizes)))
        if not pieces:
            return _empty(self._schema), np.zeros(len(slots) + 1, np.int64)
        batch = joined(pieces)
        if len(pieces) > 1:
            batch = self._reduced(batch)
        if self.gather.reduce == "list" and len(batch.columns) > 2:
            batch = _ordered(batch)
        return batch, np.searchsorted(batch.column(0).to_numpy(), np.arange(len(slots) + 1))

    def _spans(self, homes: Any) -> Iterator[tuple[_Run, Any, Any]]:
        """For each run: the first row of each home, and how many."""
        ascending = np.argsort(homes)
        asked = homes[ascending]
        for run in self._runs:
            first, sizes = np.empty((2, len(homes)), np.int64)
            first[ascending], sizes[ascending] = run.spans(asked, self._born)
            yield run, first, sizes

    def _reach(self, slot: int) -> None:
        """There are stamps up to this slot, and for all rows of runs."""
        known = 0 if self._home is None else len(self._home)
        if slot >= known:
            slot = max([slot, *(int(run.homes[-1]) for run in self._runs)])
            grown = np.arange(max(2 * known, slot + 1, 64), dtype=np.int32)
            born = np.zeros(len(grown), np.int64)
            if known:
                grown[:known], born[:known] = self._home, self._born
            self._home, self._born = grown, born

    def _vacate(self, homes: Any) -> None:
        """Their rows are not there; they go when they are half of all."""
        for run, _, sizes in self._spans(homes):
            run.dead += int(sizes.sum())
        self._age += 1
        self._born[homes] = self._age
        if 2 * sum(run.dead for run in self._runs) > sum(run.rows for run in self._runs):
            runs, self._runs = self._runs, []
            for run in runs:
                self._push(run.living(self._born))


class _User(_Part):
    """States of a user's function, by slot. What it raises is a UserError that names it."""

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
            state = self._states[slot] if slot in self._states else self._call("init")
            self._states[slot] = self._call("accumulate", state, values.slice(start, end - start))

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        for slot, states in zip(slots.to_pylist(), columns[0].to_pylist(), strict=True):
            for packed in states:
                self._join(slot, msgspec.msgpack.decode(packed))

    def results(self, slots: pa.Int32Array) -> Array:
        call, states, kind = self._call, self._states, self.gather.type
        values = [call("finish", states[slot] if slot in states else call("init")) for slot in slots.to_pylist()]
        try:
            return pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            wrong = next((value for value in values if not fits(value, kind)), None)
            raise UserError(
                f"{self._what('finish')} gave {short_repr(wrong)}, which is no {kind}",
                hint="its `type` says what finish gives: change one of them",
            ) from error

    def states(self, slots: pa.Int32Array) -> list[Array]:
        packed = [[self._packed(self._states[slot])] if slot in self._states else [] for slot in slots.to_pylist()]
        return [pa.array(packed, pa.list_(pa.binary()))]

    def _packed(self, state: Any) -> bytes:
        try:
            return msgspec.msgpack.encode(state)
        except Exception as error:
            raise UserError(
                f"{self._what('state')} cannot be kept: {type(error).__name__}: {error}; it is {short_repr(state)}",
                hint="a state is of numbers, texts, bytes, lists and dicts",
            ) from error

    def move(self, into: Any, source: Any) -> None:
        for target, slot in zip(into.tolist(), source.tolist(), strict=True):
            if slot in self._states:
                self._join(target, self._states.pop(slot))

    def remove(self, slots: Any) -> None:
        for slot in slots.tolist():
            self._states.pop(slot, None)

    def _join(self, slot: int, state: Any) -> None:
        self._states[slot] = self._call("merge", self._states[slot], state) if slot in self._states else state

    def _call(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self._function, method)(*given)
        except Exception as error:
            rows: Any = given[1] if method == "accumulate" else []
            over = (
                f"; over {len(rows)} rows, the first {short_repr(rows.slice(0, 1).to_pylist()[0])}" if len(rows) else ""
            )
            raise UserError(f"{self._what(method)}: {type(error).__name__}: {error}{over}") from error

    def _what(self, method: str) -> str:
        name = getattr(self._function, "name", type(self._function).__qualname__)
        return f"aggregate {self.gather.name}: {name}.{method}"


class _Sketch(_Part):
    """A sketch of each slot's values."""

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._counts = Distinct() if gather.option is None else None
        self._places = Quantiles() if gather.option is not None else None
        self._store: Distinct | Quantiles = self._counts or self._places  # type: ignore[assignment]

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        values = _taken(data.column(gather.argument), selection)
        keep = None if values.null_count == 0 else values.is_valid()
        if gather.where >= 0:
            mask = _taken(data.column(gather.where), selection)
            keep = mask if keep is None else pc.and_(keep, mask)
        if keep is not None:
            slots, values = slots.filter(keep), values.filter(keep)
        if self._counts is not None:
            self._counts.add(slots.to_numpy(), value_hashes(values))
        elif self._places is not None:
            self._places.add(slots.to_numpy(), values.cast(pa.float64(), safe=False).to_numpy())

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        parents = pc.list_parent_indices(columns[0])
        self._store.load(slots.take(parents).to_numpy(), pc.list_flatten(columns[0]))

    def results(self, slots: pa.Int32Array) -> Array:
        if self._counts is not None:
            return pa.array(self._counts.estimates(slots.to_numpy()))
        assert self._places is not None
        return quantile_column(self._places, slots.to_numpy(), self.gather.option)

    def states(self, slots: pa.Int32Array) -> list[Array]:
        saved = self._store.save(slots.to_numpy())
        ends = np.frombuffer(saved.buffers()[1], np.int64)
        there = ends[1:] > ends[:-1]
        offsets = np.concatenate([[0], np.cumsum(there)]).astype(np.int32)
        return [pa.ListArray.from_arrays(pa.array(offsets), saved.filter(pa.array(there)))]

    def move(self, into: Any, source: Any) -> None:
        self._store.load(into, self._store.save(source))
        self._store.remove(source)

    def remove(self, slots: Any) -> None:
        self._store.remove(slots)

    def clear(self) -> None:
        self._store.clear()

    @property
    def nbytes(self) -> int:
        return self._store.nbytes


_KEPT_BY: dict[str, Any] = {"user": _User, "sketch": _Sketch}


def value_hashes(values: Array) -> Any:
    """A hash for each value, none of them null (numpy uint64)."""
    if pa.types.is_decimal(values.type) or pa.types.is_fixed_size_binary(values.type):
        values = ordered(values).cast(pa.binary())
    return hash_columns([values]).to_numpy()


def quantile_column(sketch: Quantiles, slots: Any, of: Any) -> Array:
    """The result of approx_quantile, of these slots: `of` is a number, or several."""
    several = isinstance(of, list | tuple)
    found, there = sketch.quantiles(slots, of if several else [of])
    mask = None if there.all() else pa.array(~there)
    if not several:
        return pa.array(found[:, 0], mask=None if mask is None else ~there)
    bounds = pa.array(np.arange(len(found) + 1, dtype=np.int32) * found.shape[1])
    return pa.ListArray.from_arrays(bounds, pa.array(found.reshape(-1)), mask=mask)


def _sketched(name: str, kind: str, field: pa.Field, option: Any) -> pa.DataType:
    """What the sketch gives; UserError where the column's type, or the quantiles, cannot be."""
    _check(name, f"{kind} of", field)
    if kind == "approx_count_distinct":
        return pa.int64()
    types = pa.types
    if not (types.is_integer(field.type) or types.is_floating(field.type) or types.is_decimal(field.type)):
        raise UserError(f"{name}: {kind} of {field.name!r}, which is {field.type}", hint="cast it to a number")
    several = option if isinstance(option, list | tuple) else [option]
    for each in several:
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= 1:
            raise UserError(f"{name}: there is no quantile {each!r}", hint="from 0 to 1: 0.5 is the median")
    return pa.list_(pa.float64()) if several is option else pa.float64()


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches of one schema, with rows, end to end. UserError where they are more than a batch can hold."""
    if len(batches) == 1:
        return batches[0]
    whole = pa.Table.from_batches(batches).combine_chunks().to_batches()
    if len(whole) > 1:
        raise UserError(
            "the values to be aggregated at once are more than 2 GiB of text",
            hint="take less of each row, use shorter windows, or a higher parallelism",
        )
    return whole[0]


def fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a Python value can stand in a column of this type."""
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _check(name: str, what: str, field: pa.Field) -> None:
    kind = field.type
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}",
            hint=f"cast it: pa.decimal128({kind.precision}, {kind.scale})",
        )
    if pa.types.is_interval(kind) or isinstance(kind, pa.BaseExtensionType):
        raise UserError(
            f"{name}: {what} {field.name!r}, which is {kind}", hint="cast it to another type, or leave it out"
        )
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


def _renumbered(batch: pa.RecordBatch, slots: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(slots), *batch.columns[1:]], schema=batch.schema)


def _ranges(first: Any, sizes: Any) -> Any:
    """first[0], first[0] + 1, …: sizes[0] of them; then those of first[1], …"""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1]) + np.repeat(first - ends + sizes, sizes)


def _sorted(batch: pa.RecordBatch) -> pa.RecordBatch:
    """By slot; of one, as they come."""
    slots = batch.column(0).to_numpy()
    if (slots[1:] >= slots[:-1]).all():
        return batch
    keys = slots.astype(np.int64) << 32 | np.arange(len(slots))  # sorted whole: far faster than a stable argsort
    keys.sort()
    return batch.take(pa.array(keys & 0xFFFFFFFF))


def _ordered(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Ascending slots: those of one slot by order, nulls last, then as they come."""
    column = batch.column("order")
    slots, order = batch.column(0).to_numpy(), column.fill_null(0).to_numpy()
    if column.null_count:
        return batch.take(pa.array(np.lexsort((order, column.is_null().to_numpy(zero_copy_only=False), slots))))
    if ((order[1:] >= order[:-1]) | (slots[1:] != slots[:-1])).all():
        return batch
    least = int(order.min())
    places = len(slots).bit_length()
    times = (int(order.max()) - least).bit_length()
    if places + times + int(slots[-1]).bit_length() > 63:
        return batch.take(pa.array(np.lexsort((order, slots))))
    keys = (slots.astype(np.int64) << times | order - least) << places | np.arange(len(slots))
    keys.sort()
    return batch.take(pa.array(keys & (1 << places) - 1))


def _grouped(batch: pa.RecordBatch, column: str, kind: str) -> pa.RecordBatch:
    """One row a slot, in any order: (slot, column) with that aggregate of the column."""
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


_plain_sum = _one_value("sum")


def _sum_of_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """pyarrow's sums wrap: where these could be too many digits, they are made of more, and must fit."""
    values, kind = batch.column(1), batch.schema.field(1).type
    most = pc.sum(pc.abs(pc.cast(values, pa.float64()))).as_py() or 0.0
    if most < 0.99 * 10.0 ** (kind.precision - kind.scale):
        return _plain_sum(batch)
    if most < 5.0 * 10.0 ** (76 - kind.scale):  # of 2**255 - 1, less what a float rounds
        wide = pa.RecordBatch.from_arrays(
            [batch.column(0), values.cast(pa.decimal256(76, kind.scale))], batch.schema.names
        )
        found = _grouped(wide, "value", "sum")
        with contextlib.suppress(pa.ArrowInvalid):
            return pa.RecordBatch.from_arrays([found.column(0), found.column(1).cast(kind)], schema=batch.schema)
    raise sum_overflow(f"a sum is more than {kind} holds")


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
    """By sorting slots with numbers of values: a third of what a hash table of pairs takes. Ascending by slot."""
    values = batch.column(1).dictionary_encode()
    pairs = batch.column(0).to_numpy().astype(np.int64) << 32 | values.indices.to_numpy()
    pairs.sort()
    pairs = pairs[np.concatenate([pairs[:1] == pairs[:1], pairs[1:] != pairs[:-1]])]
    columns = [pa.array((pairs >> 32).astype(np.int32)), values.dictionary.take(pa.array(pairs & 0xFFFFFFFF))]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _top(most: int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The greatest values of each slot, greatest first. Ascending by slot."""
    batch = batch.take(pc.sort_indices(batch, [("slot", "ascending"), ("value", "descending")]))
    slots = batch.column(0).to_numpy()
    begins = np.flatnonzero(np.diff(slots, prepend=-1))
    sizes = np.diff(np.append(begins, len(slots)))
    if sizes.max(initial=0) <= most:
        return batch
    return batch.filter(pa.array(np.arange(len(slots)) - np.repeat(begins, sizes) < most))


_REDUCERS = {
    "least": _one_row("min"),
    "greatest": _one_row("max"),
    "latest": _one_row("max", last=True),
    "min": _one_value("min"),
    "max": _one_value("max"),
    "sum": _sum_of_decimals,
    "distinct": _distinct,
    "list": lambda batch: batch,
}
