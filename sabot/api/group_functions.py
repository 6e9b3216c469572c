"""Functions of the user over all rows of a group at once: `@sabot.aggregate`, and `window(…).apply(…)`.

The state of a group is its rows, as a list of Arrow streams. Of two neighbouring streams the earlier one is longer, as in a binary
counter, so n rows that come one by one are copied about log n times.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import normalise
from sabot.api.aggregates import Aggregate, UserAggregate, aggregate_with
from sabot.api.arguments import Schema, function_of, schema_of
from sabot.api.expr import Expr
from sabot.api.words import hint_of_arrow, name_of, not_arrow
from sabot.base.arrays import exact_cast, twice_named
from sabot.codecs.engine_columns import TIME_COLUMN
from sabot.errors import DataError, UserError

_BEFORE = -(2**63)  # the time of rows without one: they come before all others


class _GroupRows(UserAggregate):
    """An aggregate whose state is all rows of the group. `finished`: a function that is called with all these rows,
    in order of event time, then of arrival, and returns the value of the aggregate.

    Rows have their event time as a last column, `TIME_COLUMN`, if their step goes by it. The rows of checkpoints of earlier
    versions lack it: they come first, in order of arrival.
    """

    wants_time = True  # `operators.aggregates.user` adds the column

    def __init__(self, name: str, type: pa.DataType, finished: Callable[[pa.RecordBatch], Any]) -> None:
        self.name = name
        self.type = type
        self._finished = finished

    def init(self) -> list[bytes]:
        return []

    def accumulate(self, state: list[bytes], batch: pa.RecordBatch) -> list[bytes]:
        return self.merge(state, [_packed([batch])])

    def merge(self, a: list[bytes], b: list[bytes]) -> list[bytes]:
        for piece in b:
            a.append(piece)
            while len(a) > 1 and len(a[-1]) >= len(a[-2]):
                last = a.pop()
                a[-1] = _packed([*_unpacked(a[-1]), *_unpacked(last)])
        return a

    def finish(self, state: list[bytes]) -> Any:
        if not state:
            return None
        rows = _by_time(_one([batch for piece in state for batch in _unpacked(piece)]))
        try:
            return self._finished(rows)
        except UserError:
            raise
        except Exception as error:
            said = f"{self.name}: {type(error).__name__}: {error}; {rows.num_rows} rows"
            raise UserError(said, hint=hint_of_arrow(error)) from error


def aggregate(type: str | pa.DataType) -> Callable[[Callable[..., Any]], Callable[..., Aggregate]]:
    """Makes an aggregate of the function below this decorator. The function gets all values of a group at once.

    ```python
    import pyarrow.compute as pc

    import sabot
    from sabot import App


    @sabot.aggregate("float64")
    def spread(amounts):
        return pc.max(amounts).as_py() - pc.min(amounts).as_py()


    payments = App("spread").stream([{"k": "a", "amount": 2.0, "at": 0}, {"k": "a", "amount": 5.0, "at": 1}], time="at")
    windows = payments.key_by("k").window(sabot.tumbling("1m"))
    print(windows.aggregate(spread=spread("amount")).select("k", "spread").collect().to_pylist())
    ```

    ```text
    [{'k': 'a', 'spread': 3.0}]
    ```

    The function gets the values of a group as a pyarrow Array for each of its columns, nulls included. It returns the value of
    the group, or None. `type`: the type of this value, such as "float64" or a pa.DataType.

    All values of the open groups are kept as state. If the value can be computed without having all rows at once, a
    UserAggregate (`aggregate_with`) needs less state. Raises UserError for an unknown type.
    """
    if callable(type):
        raise UserError(
            f"aggregate: the type of the value of {name_of(type)} is not given", hint='@sabot.aggregate("float64")'
        )
    kind = schema_of({"value": type}).field(0).type

    def decorated(function: Callable[..., Any]) -> Callable[..., Aggregate]:
        rows = _GroupRows(name_of(function_of(function, "aggregate")), kind, lambda rows: function(*rows.columns))

        @wraps(function)
        def called(*columns: str | Expr) -> Aggregate:
            return aggregate_with(rows, *columns)

        return called

    return decorated


def applied(function: Any, schema: Schema, columns: Sequence[str]) -> tuple[Aggregate, list[str]]:
    """Returns the aggregate with which `apply` calls the user's function, and the names of the result's columns. The
    value of the aggregate is a list of the rows that `function` returns for all rows of the group.

    `schema`: the columns of the result. `columns`: the names of the columns that `function` gets, in a pa.Table.
    """
    call, wanted = function_of(function, "apply", "table"), schema_of(schema)
    name = f"apply({name_of(call)})"

    def finished(rows: pa.RecordBatch) -> Any:
        made = call(pa.Table.from_batches([rows]))
        if made is None:
            return None
        found = pa.StructArray.from_arrays(_fitted(name, made, wanted), fields=list(wanted))
        return pa.ListArray.from_arrays(pa.array([0, len(found)], pa.int32()), found)[0]

    kind = pa.list_(pa.struct(list(wanted)))
    return aggregate_with(_GroupRows(name, kind, finished), *columns), list(wanted.names)


def _fitted(name: str, made: Any, wanted: pa.Schema) -> list[Any]:
    """Returns the columns of a result of the user's function, in the order and with the types of `wanted`. Raises
    UserError if the result is not Arrow data, or lacks a column. `name`: the name of the function, for messages.
    `made`: the result.
    """
    try:
        batch = normalise(made)
    except (TypeError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise not_arrow(name, made, error) from error
    if twice := twice_named(batch.schema):
        raise UserError(f"{name}: two columns are called {twice!r}", hint="give one of them another name")
    missing = [each for each in wanted.names if each not in batch.schema.names]
    if missing:
        raise UserError(
            f"{name} returned no column {', '.join(map(repr, missing))}, but {', '.join(batch.schema.names) or 'none'}",
            hint="schema= names the columns of its result",
        )
    try:
        return [exact_cast(batch.column(field.name), field.type) for field in wanted]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{name}: {error}", hint="schema= has the types of its result") from DataError(str(error))


def _packed(batches: list[pa.RecordBatch]) -> bytes:
    whole = _one(batches)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_batch(whole)
    return bytes(sink.getvalue())


def _unpacked(piece: bytes) -> list[pa.RecordBatch]:
    with pa.ipc.open_stream(piece) as reader:
        return list(reader)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    if any(TIME_COLUMN in batch.schema.names for batch in batches):
        batches = [
            batch
            if TIME_COLUMN in batch.schema.names
            else batch.append_column(TIME_COLUMN, pa.nulls(batch.num_rows, pa.int64()))
            for batch in batches
        ]
    return pa.concat_batches(batches)


def _by_time(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the rows in order of event time, without the column of it."""
    if TIME_COLUMN not in rows.schema.names:
        return rows
    times = pc.fill_null(rows.column(TIME_COLUMN), _BEFORE).to_numpy()
    rows = rows.drop_columns([TIME_COLUMN])
    return rows if (times[1:] >= times[:-1]).all() else rows.take(pa.array(np.argsort(times, kind="stable")))
