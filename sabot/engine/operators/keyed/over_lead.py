"""Lead: rows that wait for the later rows to which they refer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.windows.over import WaitTable
from sabot.base.arrays import empty_batch
from sabot.engine.operators.base import CHUNK_ROWS, TIME_COLUMN, Cut, OperatorContext, Saved
from sabot.engine.operators.columns import key_table
from sabot.engine.operators.cuts import Rows
from sabot.engine.operators.keyed.over_columns import OverColumn
from sabot.engine.operators.keyed.over_state import (
    MARKS,
    Array,
    OverSlots,
    argument_of,
    default_of,
    new_table,
    or_default,
)
from sabot.engine.operators.state_parts import Batches, Owned, with_columns_of

_NEXT = "waiting next"  # the name of a fact: the number of the next row
_NOTED_SLOTS = 8_192  # the number of slots that are put aside at a time


class LeadState(OverSlots):
    """The rows that wait for later rows. They are stored with the columns that `Over` has added so far; `columns` is
    the schema of both together.

    Rows are emitted in the order in which they arrived, once they are complete. At the end of the input, rows on disk
    are emitted after the rows in memory.
    """

    def __init__(self, keys: list[str], added: Sequence[OverColumn], made: pa.Schema, context: OperatorContext) -> None:
        self.columns = made
        self._added, self._names = added, keys
        indices = [made.get_field_index(name) for name in keys]
        self._time = made.get_field_index(TIME_COLUMN)
        self.fields = [pa.field(each.name, argument_of(each, context.input).type) for each in added]
        self._defaults = [default_of(each, field.type) for each, field in zip(added, self.fields, strict=True)]
        self._offsets = sorted({each.offset for each in added})
        self._wanted = [
            sorted({made.get_field_index(each.argument) for each in added if each.offset == offset})
            for offset in self._offsets
        ]
        self.table = new_table(lambda: WaitTable(made, self._offsets, self._wanted))
        known = key_table(pa.schema([made.field(index) for index in indices]))
        places = [len(MARKS) + index for index in indices]
        super().__init__(known, indices, {"waiting": pa.schema([*MARKS, *made])}, context, places)

    def add(self, rows: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """Adds rows. Yields the rows that have become complete, in pieces, each with its lead columns by name."""
        with self.changing:
            slots = self.resolve(Batch(rows))
            pieces = self.table.add(slots, rows, rows.column(self._time), rows=CHUNK_ROWS)
            self.settle()
        return self._with_leads(pieces)

    def flush(self) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        """Ends the input: yields the rows that still wait, in pieces, each with its lead columns by name."""
        for _ in self.every():
            with self.changing:
                if self.is_held:
                    every = self.known.slots()
                    for start in range(0, len(every), _NOTED_SLOTS):
                        self.note(every.slice(start, _NOTED_SLOTS))
                slots, pieces = self.table.flush(CHUNK_ROWS)
                if len(slots):
                    self.known.remove(slots)
            yield from self._with_leads(pieces)

    @property
    def least(self) -> int | None:
        """The least event time of a waiting row, or None if no row waits."""
        there = [time for time in (self.table.least, self.least_due) if time is not None]
        return min(there, default=None)

    def _with_leads(self, pieces: list[Any]) -> Iterator[tuple[pa.RecordBatch, dict[str, Array]]]:
        for columns, _, by_offset in pieces:
            leads = {}
            for each, default in zip(self._added, self._defaults, strict=True):
                at = self._offsets.index(each.offset)
                there, values = by_offset[at]
                value = values[self._wanted[at].index(self.columns.get_field_index(each.argument))]
                leads[each.name] = or_default(there, value, default)
            yield pa.RecordBatch.from_arrays(columns, schema=self.columns), leads

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        facts, cuts = super().cut()
        return {**facts, _NEXT: self.table.next_number}, cuts

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        super().restore(saved, owned)
        told = [part.facts.get(_NEXT, 0) for part in saved]  # rows on disk have numbers too
        self.table.next_number = max([self.table.next_number, *told])

    def rows_of(self, slots: pa.Int32Array) -> Rows:
        rows = self.table.export(CHUNK_ROWS, slots)
        return [pa.concat_batches(rows) if rows else empty_batch(self.files["waiting"])]

    def due_of(self, rows: Rows) -> Any:
        return rows[0].column(1).to_numpy()

    def put(self, rows: Rows) -> Any:
        state = self.with_slots(rows[0])
        waiting = state.select(range(len(MARKS), state.num_columns))
        self.table.load(state.column(0), waiting, state.column(1), state.column(2))
        return state.column(0)

    def forget(self, slots: pa.Int32Array) -> None:
        self.table.remove(slots)
        self.known.remove(slots)

    def renewed(self, rows: Rows) -> Rows:
        schema, (then,) = self.files["waiting"], rows
        if self.migration is not None:
            then = self.migration.rows(schema, then)
        return [with_columns_of(schema, then)]

    @property
    def rows(self) -> int:
        return len(self.table)

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + int(self.table.nbytes)
