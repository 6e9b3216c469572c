"""The state of a pattern: its partial matches, in memory, on disk, in a checkpoint, and in `sabot state`.

Everything of a key is one row of the file `matches`, behind the columns of the key:

    partials   its partial matches, in order
    nodes      the rows of the partial matches: each points to its row and to the node before it
    rows       the kept columns of these rows; left out if no columns are kept

Older checkpoints have a file for each of the three.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.pattern import PatternTable
from sabot.api.patterns import MATCH_START
from sabot.engine.operators.base import OperatorContext, Restorable, Saved
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.patterns.measures import TIMESTAMP
from sabot.engine.operators.patterns.pattern_rows import PatternRows
from sabot.engine.operators.slot_state import SlotState, saved_rows
from sabot.engine.operators.state_facts import StateSchema
from sabot.engine.operators.state_parts import Owned, key_hashes, owned_or_all, read_batches
from sabot.errors import CorruptCheckpoint

Array: TypeAlias = pa.Array

_FILE = "matches"
_GARBAGE_ROWS = 65_536  # fewer rows that are not needed any more are not worth a copy
_NEVER = 2**63 - 1
_OTHER = "this is not the state of this pattern"
_HINT = "keys, pattern and measures cannot change between a checkpoint and its restore"


class PartialMatches(SlotState):
    """The partial matches of a table, with their keys and rows. Above the memory budget, the keys that have had no
    row for longest are moved to disk.

    `schema`: returns the result of `Pattern.state_schema`. `within_ms`: how long after its first row a partial match
    ends, or None for never. `ends`: True if the end of the input ends all partial matches. A restore raises
    CorruptCheckpoint for a checkpoint that kept other rows or values.
    """

    def __init__(
        self,
        known: GroupTable,
        key_indices: Sequence[int],
        table: PatternTable,
        rows: PatternRows,
        schema: Callable[[], StateSchema],
        within_ms: int | None,
        context: OperatorContext,
        *,
        ends: bool = False,
    ) -> None:
        self._table, self._rows, self._ends = table, rows, ends
        self._schema, self._within_ms = schema, within_ms
        self._keys = list(range(len(key_indices)))
        partials, nodes = table.export(pa.array([], pa.int32()))
        self._inner = {"partials": pa.schema(list(partials.schema)[1:]), "nodes": nodes.schema, "rows": rows.schema}
        if not len(rows.schema):
            del self._inner["rows"]
        named = [field.with_name(f"key.{i}") for i, field in enumerate(known.keys)]
        lists = [pa.field(name, pa.list_(pa.struct(list(inner)))) for name, inner in self._inner.items()]
        super().__init__(known, key_indices, {_FILE: pa.schema([*named, *lists])}, self._keys, context)

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self.known.nbytes + self._rows.nbytes

    def tidy(self) -> None:
        """Removes the keys and rows that no partial match needs. Called inside `changing`."""
        vacant = self._table.vacant()
        if len(vacant):
            self.known.remove(vacant)
        if len(self._rows) > 4 * self._table.live_nodes + _GARBAGE_ROWS:
            self._rows.keep(self._table.renumber())

    def clear(self) -> None:
        """Removes all keys."""
        if not self.is_held:
            self.known.clear()
            self._rows.clear()
        self.close()

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        partials, nodes = self._table.export(slots)
        slot, node = partials.column("slot").to_numpy(), partials.column("node").to_numpy()
        starts = np.flatnonzero(np.diff(slot, prepend=-1))
        # the first partial match of a key has the first of the key's nodes
        of_partials, of_nodes = np.append(starts, len(slot)), np.append(node[starts], nodes.num_rows)
        key_of = np.repeat(np.arange(len(starts)), np.diff(of_nodes))
        prev, row = nodes.column("prev").to_numpy(), nodes.column("row").to_numpy()
        prev = np.where(prev < 0, -1, prev - of_nodes[key_of])
        numbers, of_rows, row = _number_rows(row, key_of, len(starts))
        local = pa.array(node - np.repeat(of_nodes[:-1], np.diff(of_partials)))
        found = {
            "partials": (of_partials, [*partials.columns[1:9], local, *partials.columns[10:]]),
            "nodes": (of_nodes, [pa.array(row), pa.array(prev), *nodes.columns[2:]]),
        }
        if "rows" in self._inner:
            found["rows"] = of_rows, self._rows.taken(numbers).columns
        lists = [_lists(bounds, columns, self._inner[name]) for name, (bounds, columns) in found.items()]
        keys = self.known.key_columns(pa.array(slot[starts]))
        return [pa.RecordBatch.from_arrays([*keys, *lists], schema=self.files[_FILE])]

    def put(self, rows: Rows) -> pa.Int32Array:
        (data,) = rows
        slots = self.known.resolve(data, self._keys)
        self.note(slots)
        columns, counts, firsts = {}, {}, {}
        for name in self._inner:
            column = data.column(name)
            if column.null_count:
                raise CorruptCheckpoint(_OTHER, hint=_HINT)
            columns[name] = dict(zip(self._inner[name].names, column.flatten().flatten(), strict=True))
            counts[name] = pc.list_value_length(column).to_numpy()
            firsts[name] = np.cumsum(counts[name]) - counts[name]
        first_row = self._table.next_row
        try:
            of_partials = np.repeat(np.arange(len(slots)), counts["partials"])
            of_nodes = np.repeat(np.arange(len(slots)), counts["nodes"])
            columns["partials"]["node"] = _global_places(
                columns["partials"]["node"], of_partials, firsts, counts, "nodes", 0
            )
            columns["nodes"]["prev"] = _global_places(columns["nodes"]["prev"], of_nodes, firsts, counts, "nodes", -1)
            if "rows" in self._inner:
                columns["nodes"]["row"] = _global_places(columns["nodes"]["row"], of_nodes, firsts, counts, "rows", -1)
            partials = pa.record_batch({"slot": slots.take(pa.array(of_partials)), **columns["partials"]})
            self._table.load(partials, pa.record_batch(columns["nodes"]), first_row)
        except ValueError as error:
            raise CorruptCheckpoint(f"{_OTHER}: {error}", hint=_HINT) from error
        if "rows" in self._inner and counts["rows"].sum():
            self._rows.append(
                pa.RecordBatch.from_arrays(list(columns["rows"].values()), schema=self._inner["rows"]), first_row
            )
        return slots

    def forget(self, slots: pa.Int32Array) -> None:
        self._table.evict(slots)
        self.known.remove(slots)
        self._rows.keep(self._table.renumber())

    def due_of(self, rows: Rows) -> Any:
        if self._within_ms is None:
            return np.full(rows[0].num_rows, _NEVER) if self._ends else None
        partials = rows[0].column("partials")
        counts = pc.list_value_length(partials).to_numpy()
        first = partials.flatten().field("first").to_numpy()[np.cumsum(counts) - counts]
        return np.where(first >= _NEVER - self._within_ms, _NEVER, first + min(self._within_ms, _NEVER - 1) + 1)

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        mine = self._schema()
        for part in saved:
            if any(part.facts["schema"][name] != mine[name] for name in ("kept", "remembered")):
                raise _other_pattern(part)
        if any((part.directory / "partials.arrow").exists() for part in saved):
            for part in saved:
                for partials in read_batches(part.directory, "partials"):
                    self._load(part, partials, owned)
            self.settle()
        else:
            super().restore(saved, owned)

    def _load(self, part: Saved, partials: pa.RecordBatch, owned: Owned | None) -> None:
        """Loads the partial matches of one subtask from an older checkpoint, if their keys belong to this subtask."""
        width, first_row = len(self._keys), self._table.next_row
        keys = [field.type for field in self.known.keys]
        (nodes,) = read_batches(part.directory, "nodes")
        rows = list(read_batches(part.directory, "rows"))
        if partials.schema.types[:width] != keys or any(not each.schema.equals(self._rows.schema) for each in rows):
            raise _other_pattern(part)
        mine = _owned_of(partials, width, owned)
        if not mine.num_rows:
            return
        slots = self.known.resolve(mine, self._keys)
        loaded = pa.RecordBatch.from_arrays([slots, *mine.columns[width:]], names=["slot", *mine.schema.names[width:]])
        try:
            self._table.load(loaded, nodes, first_row, sum(piece.num_rows for piece in rows))
        except ValueError as error:
            raise _other_pattern(part) from error
        for piece in rows:
            if piece.num_rows:
                self._rows.append(piece, first_row)
            first_row += piece.num_rows
        self.tidy()


class PatternState(Restorable):
    """The state of a Pattern, read without the program: `contents` yields its partial matches, without their rows.

    It is not a `StatefulOperator`: it needs no kernel, and never saves anything.
    """

    def __init__(self, keys: Sequence[str], steps: Sequence[str]) -> None:
        self._names, self._steps = list(keys), list(steps)
        self._pieces: list[pa.RecordBatch] = []

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._keys = pa.schema([context.input.field(name) for name in self._names])
        return _contents_schema(self._keys)

    def restore(self, saved: list[Saved], forgets: frozenset[str] = frozenset()) -> None:
        owned = owned_or_all(self._context, len(self._keys) > 0)
        for part in saved:
            for partials in read_batches(part.directory, "partials"):  # from an older checkpoint
                self._pieces.append(_owned_of(partials, len(self._keys), owned))
            for rows in saved_rows(part, _FILE):
                self._pieces.append(_owned_of(_flat_partials(rows, len(self._keys)), len(self._keys), owned))

    def contents(self) -> Iterator[pa.RecordBatch]:
        for piece in self._pieces:
            yield from contents_of(piece.columns[: len(self._keys)], self._keys, piece, self._steps)


def contents_of(
    keys: Sequence[Array], fields: pa.Schema, partials: pa.RecordBatch, steps: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yields partial matches as `sabot state` shows them: their keys, match_start, their current step, and their
    number of rows.
    """
    named = pa.array(steps, pa.string()).take(partials.column("step"))
    columns = [*keys, partials.column("first").view(TIMESTAMP), named, partials.column("rows")]
    if partials.num_rows:
        yield pa.RecordBatch.from_arrays(columns, schema=_contents_schema(fields))


def _contents_schema(keys: pa.Schema) -> pa.Schema:
    return pa.schema(
        [*keys, pa.field(MATCH_START, TIMESTAMP), pa.field("step", pa.string()), pa.field("rows", pa.int32())]
    )


def _owned_of(partials: pa.RecordBatch, width: int, owned: Owned | None) -> pa.RecordBatch:
    """Returns the partial matches whose keys (the first `width` columns) belong to this subtask."""
    return (
        partials if owned is None else partials.filter(owned(key_hashes(partials.columns[:width], partials.num_rows)))
    )


def _flat_partials(rows: pa.RecordBatch, width: int) -> pa.RecordBatch:
    """Returns the partial matches of all keys as rows, behind the columns of the keys."""
    partials = rows.column("partials")
    key_of = pa.array(np.repeat(np.arange(rows.num_rows), pc.list_value_length(partials).to_numpy()))
    found = partials.flatten()
    names = [*rows.schema.names[:width], *(field.name for field in found.type)]
    return pa.RecordBatch.from_arrays(
        [*(key.take(key_of) for key in rows.columns[:width]), *found.flatten()], names=names
    )


def _lists(bounds: Any, columns: Sequence[Array], schema: pa.Schema) -> Array:
    """Returns a list for each key. `bounds`: where the values of each key begin, and behind them the end of the last."""
    return pa.ListArray.from_arrays(
        pa.array(bounds.astype(np.int32)), pa.StructArray.from_arrays(list(columns), fields=list(schema))
    )


def _number_rows(row: Any, key_of: Any, keys: int) -> tuple[Any, Any, Any]:
    """Returns (the numbers of all rows of nodes, each once, key by key; the bounds of each key's numbers; for each
    node the place of its row among those of its key, or -1 if it has no row).

    `row`: for each node the number of its row, or -1. `key_of`: for each node its key.
    """
    has = np.flatnonzero(row >= 0)
    order = has[np.lexsort((row[has], key_of[has]))]  # a row has only one key
    numbers, key = row[order], key_of[order]
    new = (np.diff(numbers, prepend=-1) != 0) | (np.diff(key, prepend=-1) != 0)
    bounds = np.append(0, np.cumsum(np.bincount(key[new], minlength=keys)))
    places = np.full(len(row), -1, np.int64)
    places[order] = np.cumsum(new) - 1 - bounds[key]
    return numbers[new], bounds, places


def _global_places(places: Array, key_of: Any, firsts: Any, counts: Any, name: str, least: int) -> Array:
    """Converts places within each key to places over all keys. Raises ValueError for a place that the key does not
    have.
    """
    found = places.to_numpy()
    if len(found) and ((found < least) | (found >= counts[name][key_of])).any():
        raise ValueError(f"a key does not have so many {name}")
    return pa.array(np.where(found < 0, -1, found + firsts[name][key_of]), pa.int64())


def _other_pattern(part: Saved) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{part.directory}: {_OTHER}", hint=_HINT)
