"""Converts the results of users' coroutine functions to columns.

The outcome of a call is kept until its rows are emitted. It is None (no row), a tuple of values (one row), a list of
tuples, a RecordBatch, or `Failed`. Values of many calls are converted to columns together.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import column_of
from sabot.engine.operators.base import OP_COLUMN, TIME_COLUMN, OperatorContext
from sabot.engine.operators.rows.mapped import MapBatches
from sabot.errors import UserError

_NOT_CONVERTED = (pa.ArrowException, TypeError, ValueError, OverflowError)


class Answers:
    """A converter of results that are dicts with the columns of `schema`. A column that a dict lacks is null.

    `name`: the step's name, for errors. `several`: True if a result may be a list of dicts. `self.schema`: the
    columns for the next steps, which all may be null. Raises UserError if a column has a name that Sabot uses itself.
    """

    def __init__(self, name: str, schema: pa.Schema, *, several: bool) -> None:
        for column in schema.names:
            if column in (TIME_COLUMN, OP_COLUMN):
                raise UserError(f"{name}: no column can be called {column!r}", hint="Sabot uses this name itself")
        self.schema = pa.schema([(field.name, field.type) for field in schema])
        self._name, self._several = name, several
        self._names = schema.names
        self._set = frozenset(schema.names)
        self._needed = [field.name for field in schema if not field.nullable]

    def outcome(self, result: Any) -> Any:
        """Returns the outcome for a result. Raises UserError for a result of another kind or with other columns."""
        if isinstance(result, dict):
            return self._values(result)
        if result is None:
            return None
        if self._several and isinstance(result, list | tuple):
            return [self._values(each) for each in result]
        raise self._refuse(result)

    def _values(self, result: Any) -> tuple[Any, ...]:
        if not isinstance(result, dict):
            raise self._refuse(result)
        if not result.keys() <= self._set:
            more = next(name for name in result if name not in self._set)
            raise UserError(
                f"the result has a column {more!r}, which schema= has not", hint=f"schema= has {', '.join(self._names)}"
            )
        return tuple(map(result.get, self._names))

    def _refuse(self, result: Any) -> UserError:
        ways = "a dict, a list of dicts, or None" if self._several else "a dict, or None"
        return UserError(f"the result is a {type(result).__name__}", hint=f"return {ways}")

    def columns(
        self, outcomes: Sequence[Any], refuse: Callable[[int, str], Any]
    ) -> tuple[pa.RecordBatch, "np.ndarray[Any, Any]", list[Any]]:
        """Returns (the rows of all outcomes, in order; the number of rows of each outcome; the outcomes).

        If the values of an outcome do not fit the schema, calls `refuse` with the number of the outcome and the
        reason. `refuse` raises, or returns an outcome to use instead.
        """
        try:
            return (*self._assembled(outcomes), list(outcomes))
        except _NOT_CONVERTED:
            kept = [self._checked(number, outcome, refuse) for number, outcome in enumerate(outcomes)]
            return (*self._assembled(kept), kept)

    def _checked(self, number: int, outcome: Any, refuse: Callable[[int, str], Any]) -> Any:
        try:
            self._assembled([outcome])
        except _NOT_CONVERTED as error:
            return refuse(number, str(error))
        return outcome

    def _assembled(self, outcomes: Iterable[Any]) -> tuple[pa.RecordBatch, "np.ndarray[Any, Any]"]:
        counts: list[int] = []
        pieces: list[pa.RecordBatch] = []
        values: list[tuple[Any, ...]] = []
        for outcome in outcomes:
            if type(outcome) is tuple:
                values.append(outcome)
                counts.append(1)
            elif type(outcome) is list:
                values.extend(outcome)
                counts.append(len(outcome))
            elif isinstance(outcome, pa.RecordBatch):
                if values:
                    pieces.append(self._columns_of(values))
                    values = []
                pieces.append(outcome)
                counts.append(outcome.num_rows)
            else:
                counts.append(0)
        if values or not pieces:
            pieces.append(self._columns_of(values))
        return joined(pieces), np.array(counts, np.int64)

    def _columns_of(self, rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
        """Returns the rows as columns. Raises one of _NOT_CONVERTED, whose text names the column."""
        columns = []
        for field, values in zip(
            self.schema, zip(*rows, strict=True) if rows else [()] * len(self.schema), strict=True
        ):
            try:
                column = column_of(values, field.type)
            except _NOT_CONVERTED as error:
                raise ValueError(f"column {field.name!r} cannot be {field.type}: {error}") from error
            if column.null_count and field.name in self._needed:
                raise ValueError(f"column {field.name!r} is null, which schema= does not allow")
            columns.append(column)
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


class BatchAnswers:
    """A converter of results that are whole batches: it casts them to `schema` as map_batches does. If rows have
    event time, it is the last column of `self.schema`.
    """

    def __init__(
        self, name: str, schema: pa.Schema, context: OperatorContext, time: str | None, fixed: Sequence[str]
    ) -> None:
        self._given: Any = None
        self._results: pa.RecordBatch | None = None
        self._fit = MapBatches(lambda batch: self._given, schema, time=time, fixed=fixed)
        self._fit.name = name
        self._fit.emit = self._take
        self.schema = self._fit.open(context)

    def _take(self, batch: Batch) -> None:
        self._results = batch.data

    def outcome(self, given: Any, data: pa.RecordBatch) -> pa.RecordBatch | None:
        """Returns the batch for the result `given`, or None if it has no rows. Raises UserError for a result that
        does not fit.

        `data`: the rows of the call, with their event times.
        """
        if given is None:
            return None
        self._given, self._results = given, None
        try:
            self._fit.process(Batch(data))
            return self._results
        finally:
            self._given = self._results = None


def joined(pieces: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Joins pieces, at least one, to one batch."""
    return pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
