"""The common parts of all joins: a side with its kept rows, the columns of the result, and the base class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot._cython.rows.row_table import RowTable
from sabot.base.disk import make_folder
from sabot.codecs.json import schema_text
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    OperatorContext,
    SecondInput,
    with_marks,
    without_marks,
)
from sabot.engine.operators.changes.steps import net
from sabot.engine.operators.changes.weaving import same_rows
from sabot.engine.operators.columns import check_distinct
from sabot.engine.operators.output import OutputBuffer
from sabot.engine.operators.state_facts import JoinOptions, StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts, StorePart, columns_schema, fewer_columns
from sabot.engine.state.tables.rows import RowStore
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array

_ALL_HOW = ("inner", "left", "right", "full", "semi", "anti")
_WINDOW_TIME = pa.timestamp("ms", "UTC")


@dataclass(frozen=True)
class Sides:
    """The columns of a join: the keys of both sides, and the columns of the right side in the result.

    `right_names`: (name in the right side, name in the result), in order and without the keys; empty for semi and
    anti joins.
    """

    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    right_names: tuple[tuple[str, str], ...] = ()


class Rows:
    """The rows of `data` that `selection` names, or all rows if it is None. Nothing is copied before `at` or `taken`.

    `hashes`: the key hashes of all rows of `data`, or None. Methods count only the selected rows: row i is the i-th
    of them.
    """

    def __init__(
        self, data: pa.RecordBatch, selection: pa.Int32Array | None = None, hashes: pa.UInt64Array | None = None
    ) -> None:
        self.data, self.selection, self.hashes = data, selection, hashes

    def __len__(self) -> int:
        return int(self.data.num_rows if self.selection is None else len(self.selection))

    def column(self, index: int) -> Array:
        column = self.data.column(index)
        return column if self.selection is None else column.take(self.selection)

    def where(self, mask: Any) -> "Rows":
        """Returns the rows where the mask (numpy bool) is True."""
        return self if mask.all() else self.only(np.flatnonzero(mask))

    def only(self, numbers: Any) -> "Rows":
        """Returns the rows with these numbers (numpy)."""
        chosen = pa.array(numbers.astype(np.int32))
        return Rows(self.data, chosen if self.selection is None else self.selection.take(chosen), self.hashes)

    def at(self, numbers: Array) -> pa.RecordBatch:
        """Copies the rows with these numbers. Nothing is copied if they are all rows in their order."""
        if len(numbers) == len(self) and np.array_equal(numbers.to_numpy(), np.arange(len(numbers))):
            return self.taken()
        return self.data.take(numbers if self.selection is None else self.selection.take(numbers))

    def taken(self) -> pa.RecordBatch:
        return self.data if self.selection is None else self.data.take(self.selection)

    def pieces(self) -> Iterator["Rows"]:
        """Yields all rows, in pieces of at most CHUNK_ROWS."""
        if len(self) <= CHUNK_ROWS:
            yield self
            return
        for start in range(0, len(self), CHUNK_ROWS):
            yield self.only(np.arange(start, min(start + CHUNK_ROWS, len(self))))


class Side:
    """One input of a join: the columns that the join reads, and the kept rows.

    `read`: the columns that are read beside the keys, or None for all of the user's. The rows of the side have these
    columns, in the order of the input, and TIME_COLUMN if the input has it. `order`: the order in which the rows of a
    key are kept: by "time", by "arrival", or by a "hash" of the row, so that `match` finds one row among many; None
    if no rows are kept. `changes`: True if the rows carry OP_COLUMN. `extra`: further columns of the join, behind
    those of the side. `counted`: True if each kept row has a count.

    Raises UserError for missing columns, and for keys of a type that cannot be kept.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        keys: Sequence[str],
        context: OperatorContext,
        *,
        read: Sequence[str] | None = None,
        order: str | None = "time",
        changes: bool = False,
        extra: Sequence[pa.Field] = (),
        counted: bool = False,
    ) -> None:
        self.name, self.keys = name, list(keys)
        there = _known(name, schema, keys)
        self.timed = TIME_COLUMN in schema.names
        names = [*(there if read is None else [n for n in there if n in {*read, *keys}])]
        users = len(names)
        names += [TIME_COLUMN] if self.timed else []
        self._columns = [schema.get_field_index(n) for n in names]
        self.changes = changes
        self._op = schema.get_field_index(OP_COLUMN) if changes else -1
        if changes and self._op < 0:
            raise UserError(f"join: the {name} side is not a stream of changes: it has no column {OP_COLUMN}")
        self.schema = pa.schema([schema.field(i) for i in self._columns])
        self.key_indices = [names.index(key) for key in keys]
        self.time = len(names) - 1 if self.timed else -1
        self.now: int | None = (
            None  # the event time of this side's rows, if the result has event time and the side has none
        )
        self.by_time = order == "time" and self.timed
        self._by_hash = order == "hash"
        beside = [i for i in range(len(names)) if i not in self.key_indices or _has_two_forms(self.schema.types[i])]
        kept = names if self._by_hash else names[:users]
        self.kept = pa.schema([*(self.schema.field(n) for n in kept), *extra])
        self.beside_keys = [i for i in beside if i < len(kept)] or None
        self._store: RowStore | None = None
        if order is not None:
            folder = None if context.directory is None else context.directory / name
            if folder is not None:
                make_folder(folder)
            order_of = self._row_hashes if self._by_hash else None
            home: Any = {"directory": folder, "memory_bytes": context.memory_budget // 2}
            try:
                self._store = RowStore(self.kept, keys, counted=counted, order_of=order_of, **home)
            except TypeError as error:
                raise UserError(
                    f"join: the keys {self.keys} of the {name} side cannot be keys of a join: {error}"
                ) from error
        self.counted = counted
        self._hashed = [i for i in range(users) if i not in self.key_indices and _has_hash(self.schema.types[i])]
        self.unknown_takes = 0

    @property
    def store(self) -> RowStore:
        assert self._store is not None, "no rows are kept"
        return self._store

    @property
    def table(self) -> RowTable:
        return self.store.table

    def rows(self, batch: Batch) -> Rows:
        """Returns the selected rows of a batch with the columns that are read, without the op."""
        return Rows(batch.data.select(self._columns), batch.selection, batch.hashes)

    def netted(self, batch: Batch) -> tuple[Rows, Rows]:
        """Returns (rows to remove, rows to add), after opposite changes have cancelled out."""
        if self._op < 0:
            rows = self.rows(batch)
            return Rows(rows.data.slice(0, 0)), rows
        data = batch.data.select([*self._columns, self._op])
        takes, adds = net(Batch(data, selection=batch.selection))
        return Rows(takes), Rows(adds)

    def ops(self, batch: Batch) -> Any:
        """Returns the ops of the selected rows (numpy)."""
        ops = batch.data.column(self._op)
        return (ops if batch.selection is None else ops.take(batch.selection)).to_numpy()

    def times(self, rows: Rows) -> Any:
        """Returns the event times of the rows (numpy). For a side without event time, all are `now`; if that is None,
        returns None.
        """
        if self.timed:
            return rows.column(self.time).to_numpy()
        return None if self.now is None else np.full(len(rows), self.now)

    def has_key(self, rows: Rows) -> Any:
        """Returns True for each row without a null in its key (numpy), or None if all rows are. Other rows have no
        partners.
        """
        mask: Any = None
        for index in self.key_indices:
            if rows.data.column(index).null_count:
                valid = rows.column(index).is_valid().to_numpy(zero_copy_only=False)
                mask = valid if mask is None else mask & valid
        return mask

    def with_keys(self, rows: Rows) -> tuple[Rows, Rows]:
        """Returns (rows without a null in their key, rows with one)."""
        mask = self.has_key(rows)
        if mask is None:
            return rows, Rows(rows.data.slice(0, 0))
        return rows.where(mask), rows.where(~mask)

    def only_keys(self, rows: Rows) -> pa.RecordBatch:
        """Returns the key columns of the rows."""
        return Rows(rows.data.select(self.key_indices), rows.selection).taken()

    def stored(self, ids: pa.Int64Array, *, of_partners: bool = False) -> tuple[pa.RecordBatch, Any]:
        """Returns (the kept rows with these ids, their event times (numpy), or None if the side has none). Reads from
        RocksDB: call it once per batch.

        `of_partners`: True if the rows are partners of rows from the other side. Key columns whose equal values
        always have equal bits are then left out, because the partner has them: a 7 meets only a 7. A key column of
        floats is read, because 0.0 also meets -0.0.
        """
        rows = self.table.take(ids, self.beside_keys if of_partners else None)
        if not self.timed:
            return rows, None
        return rows, (self.table.orders(ids) if self.by_time else rows.column(TIME_COLUMN)).to_numpy()

    def insert(self, rows: Rows, extra: Array | None = None) -> pa.Int64Array:
        """Keeps the rows, and returns their ids. `extra`: the values of the column `extra`, one for each row."""
        order = None
        if extra is not None:
            rows = Rows(rows.taken())
        if self.by_time:
            order = rows.data.column(self.time)
        elif self._by_hash:
            order = self._row_hashes(rows.data)
        data = rows.data
        if extra is not None:
            data = pa.RecordBatch.from_arrays([*data.columns[: len(self.kept) - 1], extra], schema=self.kept)
        return self.table.insert(data, order, hashes=rows.hashes, selection=rows.selection)

    def key_numbers(self, rows: Rows, of: "Side | None" = None) -> Any:
        """Returns for each row a number that identifies its key, or -1 if no row of the key is kept (numpy).

        `of`: the side that the rows come from, or None for this one.
        """
        indices = (of or self).key_indices
        return self.table.key_ids(rows.data, indices, hashes=rows.hashes, selection=rows.selection).to_numpy()

    def find(self, rows: Rows, of: "Side | None" = None) -> tuple[pa.Int32Array, pa.Int64Array]:
        """Returns two arrays: the numbers of those rows whose key has a kept row on this side, and for each the id of
        one such kept row. `of`: the side that the rows come from, or None for this one.
        """
        indices = (of or self).key_indices
        return self.table.find(rows.data, indices, hashes=rows.hashes, selection=rows.selection, limit=1)

    def _row_hashes(self, data: pa.RecordBatch) -> pa.Int64Array:
        """Returns a hash of each row, without its event time. Equal rows have equal hashes."""
        if not self._hashed:
            return pa.array(np.zeros(data.num_rows, np.int64))
        return pa.array(
            (hash_columns([data.column(i) for i in self._hashed]).to_numpy() >> np.uint64(1)).view(np.int64)
        )

    def match(self, takes: Rows) -> Any:
        """Returns for each row the id of a kept row that is equal in all columns but event time, or -1 if there is
        none (numpy). No id occurs twice.
        """
        data = takes.taken()
        if not data.num_rows:
            return np.zeros(0, np.int64)
        numbers = same_rows(data)
        first, place, size = _places(numbers)
        distinct = data.take(pa.array(first))
        found = self._equal(distinct, int(size.max()))
        short = np.bincount(found[0], minlength=len(first)) < size
        if short.any():  # different rows with the same hash may have filled the limit: search again without one
            some = np.flatnonzero(short)
            again = self._equal(distinct.take(pa.array(some)), None)
            others = ~short[found[0]]
            found = (
                np.concatenate([found[0][others], some[again[0]]]),
                np.concatenate([found[1][others], again[1]]),
            )
            order = np.argsort(found[0], kind="stable")
            found = (found[0][order], found[1][order])
        begins = np.searchsorted(found[0], np.arange(len(first) + 1))
        at = begins[numbers] + place
        ids = np.full(data.num_rows, -1, np.int64)
        there = at < begins[numbers + 1]
        ids[there] = found[1][at[there]]
        self.unknown_takes += int(np.count_nonzero(~there))
        return ids

    def _equal(self, data: pa.RecordBatch, limit: int | None) -> tuple[Any, Any]:
        """Returns two numpy arrays of pairs, sorted by row: the number of a row, and the id of a kept row that equals
        it. `limit`: the greatest number of kept rows to compare with each row, or None for all.
        """
        order = self._row_hashes(data)
        numbers, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for i, id in self.table.find_chunks(data, self.key_indices, lower=order, upper=order, limit=limit):
            stored = self.table.take(id)
            pairs = zip(data.columns[: stored.num_columns], stored.columns, strict=True)
            both = [pa.concat_arrays(pair) for pair in pairs]
            same = same_rows(pa.RecordBatch.from_arrays(both, names=stored.schema.names))
            equal = same[i.to_numpy()] == same[data.num_rows :]
            numbers.append(i.to_numpy()[equal].astype(np.int64))
            ids.append(id.to_numpy()[equal])
        return np.concatenate(numbers), np.concatenate(ids)


def _has_two_forms(kind: pa.DataType) -> bool:
    """Returns True if values of this type can be equal with different bits, as 0.0 and -0.0."""
    return bool(pa.types.is_floating(kind) or pa.types.is_nested(kind))


def _has_hash(kind: pa.DataType) -> bool:
    try:
        hash_columns([pa.array([], kind)])
    except TypeError:
        return False
    return True


def _places(numbers: Any) -> tuple[Any, Any, Any]:
    """Returns three numpy arrays: for each number, the place where it first occurs; for each place, how many equal
    numbers come before it; and for each number, how often it occurs.

    `numbers`: consists of 0, 1, …, each at least once.
    """
    order = np.argsort(numbers, kind="stable")
    size = np.bincount(numbers)
    begins = np.cumsum(size) - size
    place = np.empty(len(numbers), np.int64)
    place[order] = np.arange(len(numbers)) - np.repeat(begins, size)
    return order[begins], place, size


def _known(side: str, schema: pa.Schema, names: Sequence[str]) -> list[str]:
    """Returns the names of the side's columns that users see. Raises UserError if one of `names` is not among them."""
    there: list[str] = without_marks(schema).names
    for name in names:
        if name not in there:
            raise UserError(f"join: the {side} side has no column {name!r}", hint=f"it has {', '.join(there)}")
    return there


def later(one: Any, other: Any) -> Any:
    """Returns the later of both times for each row (numpy). If one argument is None, returns the other."""
    if one is None or other is None:
        return other if one is None else one
    return np.maximum(one, other)


class Result:
    """The columns of a join's result: those of the left (with the keys), the bounds of a window, those of the right,
    the marks. Makes rows of the result.

    Raises UserError for missing columns, keys of different types, and names that occur twice.
    """

    def __init__(
        self, sides: Sides, left: pa.Schema, right: pa.Schema, *, op: bool, timed: bool, windowed: bool = False
    ) -> None:
        self.op, self.timed = op, timed
        users = without_marks(left)
        _known("left", left, sides.left_keys)
        _known("right", right, [*sides.right_keys, *(name for name, _ in sides.right_names)])
        partner = dict(zip(sides.left_keys, sides.right_keys, strict=True))
        for one, other in partner.items():
            if left.field(one).type != right.field(other).type:
                kinds = f"{left.field(one).type} on the left, {other!r} is {right.field(other).type} on the right"
                raise UserError(f"join: {one!r} is {kinds}", hint="cast one of them: both keys must have the same type")
        bounds = ["window_start", "window_end"] if windowed else []
        names = [*users.names, *bounds, *(name for _, name in sides.right_names)]
        check_distinct(names, "join: ", "rename one, or give a suffix=")
        self._left = [(name, partner.get(name)) for name in users.names]
        self._right = [source for source, _ in sides.right_names]
        fields = [pa.field(field.name, field.type) for field in users]
        fields += [pa.field(name, _WINDOW_TIME) for name in bounds]
        fields += [pa.field(name, right.field(source).type) for source, name in sides.right_names]
        self.schema = with_marks(pa.schema(fields), op=op, timed=timed)

    def rows(
        self,
        left: pa.RecordBatch | None,
        right: pa.RecordBatch | None,
        times: Any = None,
        *,
        op: int = INSERT,
        bounds: tuple[int, int] | None = None,
    ) -> pa.RecordBatch:
        """Makes rows of the result, each from one row of either side. If a side is None, its columns are null, except
        that keys are then taken from the right. `times`: the event times (numpy), or None. `bounds`: the start and
        end of the window.
        """
        one = left if left is not None else right
        assert one is not None
        count = one.num_rows
        columns: list[Array] = []
        for place, (name, key) in enumerate(self._left):
            if left is not None and (key is None or left.schema.get_field_index(name) >= 0):
                columns.append(left.column(name))
            elif key is not None and right is not None:
                columns.append(right.column(key))
            else:
                columns.append(pa.nulls(count, self.schema.types[place]))
        if bounds is not None:
            columns += [pa.array(np.full(count, ms)).view(_WINDOW_TIME) for ms in bounds]
        for name in self._right:
            if right is not None:
                columns.append(right.column(name))
            else:
                columns.append(pa.nulls(count, self.schema.types[len(columns)]))
        if self.op:
            columns.append(pa.array(np.full(count, op, np.int8)))
        if self.timed:
            columns.append(pa.array(times))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


class JoinOperator(StatefulOperator, SecondInput):
    """The base of all joins: an operator with two sides, which are kept, saved and restored together."""

    spent_at_end = True  # the rows wait for partners that cannot come any more
    kind = ""  # the kind of the state; error messages begin with it
    hows: tuple[str, ...] = _ALL_HOW

    def __init__(self, sides: Sides, how: str) -> None:
        if how not in self.hows:
            raise UserError(f"{self.kind}: how={how!r} is not known", hint=f"one of {', '.join(self.hows)}")
        if len(sides.left_keys) != len(sides.right_keys):
            raise UserError(
                f"{self.kind}: {len(sides.left_keys)} keys on the left, {len(sides.right_keys)} on the right"
            )
        if how in ("semi", "anti") and not sides.left_keys:
            raise UserError(f"{self.kind}: how={how!r} without keys", hint="name the columns to join on")
        self.sides, self.how = sides, how

    def open(self, context: OperatorContext) -> pa.Schema:
        if context.right is None:
            raise UserError(f"{self.kind}: there is no second input")
        self.context = context
        self._input, self._other = context.input, context.right
        self.result = self._open_sides(context, context.input, context.right)
        stores = [StorePart(side.name, side.store, everywhere=self._is_everywhere(side)) for side in self._kept_sides()]
        self.state_parts = StateParts(context, stores, keyed=len(self.sides.left_keys) > 0)
        self.output = OutputBuffer(lambda batch: self.emit(batch))
        return self.result.schema

    def _open_sides(self, context: OperatorContext, left: pa.Schema, right: pa.Schema) -> Result:
        """Opens the two sides: sets `left` and `right`, and returns the Result. Called by `open`."""
        raise NotImplementedError

    left: Side
    right: Side

    def _kept_sides(self) -> list[Side]:
        """Returns the sides that keep rows."""
        return [self.left, self.right]

    def group_count(self) -> int:
        return sum(len(side.table) for side in self._kept_sides())

    def _is_everywhere(self, side: Side) -> bool:
        """Returns True if every subtask has all rows of this side."""
        return False

    def state_schema(self) -> StateSchema:
        keys = [self._input.field(name) for name in self.sides.left_keys]
        schema: StateSchema = {
            "kind": self.kind,
            "keys": columns_schema(keys),
            "right_keys": columns_schema(self._other.field(name) for name in self.sides.right_keys),
            "how": self.how,
            **cast(StateSchema, self._state_options()),  # a dict type may have further names, these have none
        }
        for side in self._kept_sides():
            schema["left" if side is self.left else "right"] = columns_schema(side.kept)
        return schema

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """Lets the state continue if the program reads fewer columns of a side: `RowStore` leaves them out. Rows that
        become equal because a column is missing are still separate rows.
        """
        may = any(side.name == fact for side in self._kept_sides())
        return fewer_columns(before, now, f" of the {fact}") if may else None

    def _state_options(self) -> JoinOptions:
        """Returns the arguments of the constructor on which the state depends, as JSON values."""
        return {}

    def state_reader(self) -> StateReader:
        """Returns the facts for `read_with`, as JSON values."""
        return {
            "keys": list(self.sides.left_keys),
            "input": schema_text(self._input),
            "right": schema_text(self._other),
            "sides": asdict(self.sides),
            "how": self.how,
            **cast(StateReader, self._state_options()),
        }

    @classmethod
    def read_with(cls, reader: Mapping[str, Any]) -> "JoinOperator":
        """Makes a join that only reads state. `reader`: the facts of `state_reader`."""
        given = dict(reader)
        figures = given.pop("sides")
        names = tuple((source, name) for source, name in figures["right_names"])
        sides = Sides(tuple(figures["left_keys"]), tuple(figures["right_keys"]), names)
        how = given.pop("how")
        for name in ("keys", "input", "right"):
            del given[name]
        return cls._with_options(sides, how, given)

    @classmethod
    def _with_options(cls, sides: Sides, how: str, given: dict[str, Any]) -> "JoinOperator":
        return cls(sides, how, **given)

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows of both sides: the column "side", then the columns of the result, which are null if the
        side has none of that name.
        """
        empty = pa.schema([pa.field("side", pa.string()), *without_marks(self.result.schema)])
        partner = dict(zip(self.sides.left_keys, self.sides.right_keys, strict=True))
        renamed: dict[str, str] = {name: source for source, name in self.sides.right_names}
        for side in self._kept_sides():
            for kept in side.store.contents():
                rows = self._visible(side, kept)
                names = [n if side is self.left else partner.get(n, renamed.get(n)) for n in empty.names[1:]]
                columns = [
                    rows.column(name) if name in rows.schema.names else pa.nulls(rows.num_rows, kind)
                    for name, kind in zip(names, empty.types[1:], strict=True)
                ]
                which = pa.array([side.name]).take(pa.array(np.zeros(rows.num_rows, np.int32)))
                yield pa.RecordBatch.from_arrays([which, *columns], schema=empty)

    def _visible(self, side: Side, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Returns those of the kept rows that `contents` shows."""
        return rows

    def close(self) -> None:
        if hasattr(self, "result"):
            for side in self._kept_sides():
                side.store.close()

    def statistics(self) -> "ToldStep":
        if not hasattr(self, "result"):
            return {}
        figures: ToldStep = {}
        for side in self._kept_sides():
            rows, nbytes = len(side.table), side.table.nbytes
            if side is self.left:
                figures |= {"left_rows": rows, "left_bytes": nbytes}
            else:
                figures |= {"right_rows": rows, "right_bytes": nbytes}
        return figures
