"""The state of a pattern: its partial matches, in a checkpoint and as people read them.

Three files of a checkpoint have it: `partials`, a row for each partial match, behind the columns of its key; `nodes`, how partial
matches hang together and which rows they have; `rows`, what is kept of these rows, numbered from 0.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.pattern import PatternTable
from sabot.api.patterns import MATCH_START
from sabot.errors import CorruptCheckpoint
from sabot.operators.base import Cut, Operator, OperatorContext, Saved
from sabot.operators.keeping import Batches, Kept, Owned, key_hashes, owned_or_all, read_batches
from sabot.operators.patterns.kept_rows import KeptRows, row_pieces
from sabot.operators.patterns.measures import TIMESTAMP

__all__ = ["Partials", "PatternState", "contents_of"]

Array: TypeAlias = pa.Array


class Partials(Kept):
    """The partial matches of a table, their keys and rows.

    schema: what `Pattern.state_schema` says; a checkpoint that kept other rows or values raises CorruptCheckpoint. tidy: called after
    each load, since the rows of a checkpoint may also be those of other subtasks' keys.
    """

    def __init__(
        self,
        known: GroupTable,
        table: PatternTable,
        rows: KeptRows,
        keys: pa.Schema,
        schema: Callable[[], dict[str, Any]],
        tidy: Callable[[], None],
    ) -> None:
        self._known, self._table, self._rows, self._keys = known, table, rows, keys
        self._schema, self._tidy = schema, tidy

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        """The rows are looked up, and numbered anew, in the thread that saves them."""
        if not len(self._table):
            return {}, {}
        partials, nodes = self._table.export()
        columns = [*self._known.key_columns(partials.column("slot")), *partials.columns[1:]]
        names = [*(f"key.{i}" for i in range(len(self._keys))), *partials.schema.names[1:]]
        saved = pa.RecordBatch.from_arrays(columns, names=names)
        numbers, taken = nodes.column("row").to_numpy(), self._rows.frozen()

        @cache
        def live() -> Any:
            return np.unique(numbers[numbers >= 0])

        def renumbered() -> Iterator[pa.RecordBatch]:
            ranks = np.where(numbers >= 0, np.searchsorted(live(), numbers), -1)
            yield nodes.set_column(0, nodes.schema.field(0), pa.array(ranks, pa.int64()))

        return {}, {
            "partials": Batches(saved.schema, [saved]),
            "nodes": Batches(nodes.schema, renumbered),
            "rows": Batches(self._rows.schema, lambda: (rows for _, rows in row_pieces(taken, live()))),
        }

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        mine = self._schema()
        for part in saved:
            if any(part.facts["schema"][name] != mine[name] for name in ("kept", "remembered")):
                raise _other_pattern(part)
            for partials in read_batches(part.directory, "partials"):
                self._load(part, partials, owned)

    def _load(self, part: Saved, partials: pa.RecordBatch, owned: Owned | None) -> None:
        """The partial matches of one subtask, as far as their keys belong here."""
        width, first_row = len(self._keys), self._table.next_row
        (nodes,) = read_batches(part.directory, "nodes")
        rows = list(read_batches(part.directory, "rows"))
        if partials.schema.types[:width] != self._keys.types or any(
            not each.schema.equals(self._rows.schema) for each in rows
        ):
            raise _other_pattern(part)
        mine = _owned_of(partials, width, owned)
        if not mine.num_rows:
            return
        slots = self._known.resolve(mine, list(range(width)))
        loaded = pa.RecordBatch.from_arrays([slots, *mine.columns[width:]], names=["slot", *mine.schema.names[width:]])
        try:
            self._table.load(loaded, nodes, first_row, sum(piece.num_rows for piece in rows))
        except ValueError as error:
            raise _other_pattern(part) from error
        for piece in rows:
            if piece.num_rows:
                self._rows.append(piece, first_row)
            first_row += piece.num_rows
        self._tidy()


class PatternState(Operator):
    """The state of a Pattern, read without the program: its partial matches (`contents`), no rows.

    It is no `Keeping`: it takes in one of the three files, without the kernel, and never saves anything.
    """

    def __init__(self, keys: Sequence[str], steps: Sequence[str]) -> None:
        self._names, self._steps = list(keys), list(steps)
        self._pieces: list[pa.RecordBatch] = []

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._keys = pa.schema([context.input.field(name) for name in self._names])
        return _contents_schema(self._keys)

    def restore(self, saved: list[Saved]) -> None:
        owned = owned_or_all(self._context, len(self._keys) > 0)
        for part in saved:
            for partials in read_batches(part.directory, "partials"):
                self._pieces.append(_owned_of(partials, len(self._keys), owned))

    def contents(self) -> Iterator[pa.RecordBatch]:
        for piece in self._pieces:
            yield from contents_of(piece.columns[: len(self._keys)], self._keys, piece, self._steps)


def contents_of(
    keys: Sequence[Array], fields: pa.Schema, partials: pa.RecordBatch, steps: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Partial matches as people read them: their keys, match_start, the step that they are in, and how many rows they have."""
    named = pa.array(steps, pa.string()).take(partials.column("step"))
    columns = [*keys, partials.column("first").view(TIMESTAMP), named, partials.column("rows")]
    if partials.num_rows:
        yield pa.RecordBatch.from_arrays(columns, schema=_contents_schema(fields))


def _contents_schema(keys: pa.Schema) -> pa.Schema:
    return pa.schema(
        [*keys, pa.field(MATCH_START, TIMESTAMP), pa.field("step", pa.string()), pa.field("rows", pa.int32())]
    )


def _owned_of(partials: pa.RecordBatch, width: int, owned: Owned | None) -> pa.RecordBatch:
    """The partial matches whose keys, the first `width` columns, belong to this subtask."""
    return (
        partials if owned is None else partials.filter(owned(key_hashes(partials.columns[:width], partials.num_rows)))
    )


def _other_pattern(part: Saved) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{part.directory}: the state is not that of this pattern",
        hint="keys, pattern and what is measured cannot change between a checkpoint and its restore",
    )
