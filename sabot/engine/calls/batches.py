"""Arrow batches, tables and data frames among the arguments of a call, by their columns."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import table_of
from sabot.errors import UserError, message_of

_ROWS = (pa.RecordBatch, pa.Table)


def rows_of(value: Any) -> pa.Table | None:
    """Returns the rows of an Arrow batch or table, or of a data frame of pandas or polars, as a table. None for any other
    value, also for a reader, which could be read only once, or a column alone. Raises UserError for a frame that holds
    other values than its rows in Arrow would: whoever gets the frame sees what a rule would not.
    """
    if not has_rows(type(value)) or not hasattr(value, "schema" if isinstance(value, _ROWS) else "columns"):
        return None
    try:
        return table_of(value)
    except (pa.ArrowException, TypeError, ValueError) as error:  # objects that Arrow has no type for
        kind = type(value)
        raise UserError(
            f"the rows of a {kind.__module__.partition('.')[0]}.{kind.__qualname__} cannot be read: {message_of(error)}",
            hint="give the values of a column one type, and each column a name of its own",
        ) from error


def has_rows(kind: type) -> bool:
    """Returns True if values of this type may have rows: it gives its columns to Arrow, and knows their length."""
    return hasattr(kind, "__arrow_c_stream__") and hasattr(kind, "__len__")


def column_values(column: pa.Array | pa.ChunkedArray, *, extremes: bool) -> list[Any]:
    """Returns each value of a column once, also None. `extremes`: only the least and the greatest one, None and NaN."""
    try:
        if extremes and len(column):
            has_nan = pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py()
            found = pc.min_max(column).as_py().values()
            return [*found, *([None] * bool(column.null_count)), *([float("nan")] * bool(has_nan))]
        return pc.unique(column).to_pylist()  # type: ignore[no-any-return]
    except pa.ArrowNotImplementedError:  # a nested type
        return column.to_pylist()  # type: ignore[no-any-return]


def with_values(column: pa.ChunkedArray, change: Callable[[Any], Any]) -> pa.ChunkedArray:
    """Returns a column whose values are changed; the column itself if `change` returns each value itself. Equal values are
    changed once where the type allows it.
    """
    try:
        old = pc.unique(column)
    except pa.ArrowNotImplementedError:  # a nested type
        old = None
    values = column.to_pylist() if old is None else old.to_pylist()
    made = [change(each) for each in values]
    if all(new is each for new, each in zip(made, values, strict=True)):
        return column
    if old is not None:
        shown = dict(zip(values, made, strict=True))
        made = [shown[each] for each in column.to_pylist()]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return pa.chunked_array([pa.array(made, kind)])
