"""The marks: the engine's own columns, behind the user's columns (the op of changes, event time). This module has the
operators with which the plan adds or removes marks, and functions that change them.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.codecs.engine_columns import RESERVED
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    Operator,
    OperatorContext,
    with_marks,
    without_time,
)
from sabot.engine.operators.rows.origin import with_columns_of
from sabot.errors import UserError

MARKS = (OP_COLUMN, TIME_COLUMN)  # in their order behind the user's columns


class WithoutPairs(Operator):
    """Turns each update pair into a delete and an insert, which may go to different subtasks."""

    def process(self, batch: Batch) -> None:
        self.emit(pairs_split(batch))


class AsInserts(Operator):
    """Turns the rows of an append stream into changes that are all inserts."""

    def open(self, context: OperatorContext) -> pa.Schema:
        self._timed = TIME_COLUMN in context.input.names
        self._schema = with_marks(without_time(context.input), op=True, timed=self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        columns = list(batch.data.columns)
        inserts = pa.array(np.full(batch.data.num_rows, INSERT, np.int8))
        columns.insert(len(columns) - 1 if self._timed else len(columns), inserts)
        self.emit(with_columns_of(batch, pa.RecordBatch.from_arrays(columns, schema=self._schema)))


class WithoutTime(Operator):
    """Removes event time, for a union with a stream that has none."""

    def open(self, context: OperatorContext) -> pa.Schema:
        return without_time(context.input)

    def process(self, batch: Batch) -> None:
        data = batch.data
        self.emit(with_columns_of(batch, data.remove_column(data.schema.get_field_index(TIME_COLUMN))))


def pairs_split(batch: Batch) -> Batch:
    """Returns the same changes, with each update pair as a delete and an insert."""
    place = batch.data.schema.get_field_index(OP_COLUMN)
    ops = batch.data.column(place).to_numpy()
    data = batch.data.set_column(place, batch.data.schema.field(place), pa.array((ops & 1) * np.int8(DELETE)))
    return with_columns_of(batch, data)


def check_given_names(what: str, names: Sequence[str], *, among: Sequence[str] = ()) -> None:
    """Raises UserError if `names` is empty, has a name twice, or has a reserved name.

    `what`: the step, for the message. `among`: all column names of the result, if `names` does not have the marks; a
    mark that is in it twice is refused too.
    """
    if not names:
        raise UserError(f"{what}: there are no columns")
    for name in sorted({*RESERVED.intersection(names), *(mark for mark in MARKS if list(among).count(mark) > 1)}):
        raise UserError(f"{what}: no column can be called {name!r}", hint="Sabot uses this name itself")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{what}: two columns are called {twice!r}", hint="give one of them another name")
