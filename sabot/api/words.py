"""The texts of functions, keys, orders, windows and aggregates in plans and errors."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr
from sabot.api.over import OverFunction
from sabot.base.quantities import span_words
from sabot.errors import UserError

ALL_ROWS = 2**62
"""The size of a count window that only the end of the input closes."""


def check_names(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises UserError for the first of `names` that is not one of the columns `known`."""
    for name in names:
        if name not in known:
            raise no_column(name, known, where)


def no_column(name: str, known: Collection[str], where: str = "") -> UserError:
    """Returns the error for a column that does not exist. Its hint suggests the column with the most similar name."""
    near = difflib.get_close_matches(name, known, 1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    struct, _, field = name.partition(".")
    if field and struct in known and not any(each.startswith(f"{struct}.") for each in known):
        guess = (
            f'first with_columns({field.rpartition(".")[2]}=col("{struct}")["' + '"]["'.join(field.split(".")) + '"]); '
        )
    also = ""
    if not near and where.startswith(("with_columns", "select")):
        is_written_out = 'col("' in name
        also = "; concat_str(…) puts texts and columns together" if is_written_out else f'; lit("{name}") is a text'
    what = f"{where}: " if where else ""
    return UserError(f"{what}there is no column {name!r}", hint=f"{guess}the columns are {', '.join(known)}{also}")


def name_of(function: Any) -> str:
    """Returns the qualified name of a function; for a callable object, the name of its class."""
    return str(getattr(function, "__qualname__", type(function).__name__))


_TABLES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda given: hasattr(given, "to_frame"), "a Series is one column: return series.to_frame()"),
    (lambda given: hasattr(given, "collect_schema"), "return frame.collect(): a LazyFrame has no rows yet"),
    (inspect.isawaitable, "map_async(function, schema=…) waits for the result of a function"),
    (lambda given: isinstance(given, Iterator), "return all of it at once, such as pl.concat(list(…))"),
    (lambda given: isinstance(given, dict), 'return pa.table({"x": [1, 2]}) for a dict of columns'),
    (lambda given: isinstance(given, list | tuple), "return pa.Table.from_pylist(rows) for a list of dicts"),
    (lambda given: isinstance(given, pa.Array | pa.ChunkedArray), 'return pa.table({"x": array})'),
)
"""What a function may return in place of a table, and what to write."""


def not_arrow(said: str, given: Any, error: Exception) -> UserError:
    """Returns the error for a function that has returned `given`, which is no table. `said`: the name of the function,
    with which the message begins. `error`: what the conversion raised: ArrowInvalid for Arrow data with a fault,
    ValueError for a frame of pandas with two columns of one name.
    """
    is_frame = isinstance(error, ValueError) and not isinstance(error, pa.ArrowInvalid)
    names = list(map(str, getattr(given, "columns", ()))) if is_frame else []
    if twice := [name for name in names if names.count(name) > 1]:
        return UserError(f"{said}: two columns are called {twice[0]!r}", hint="give one of them another name")
    hint = next((hint for fits, hint in _TABLES if fits(given)), "")
    if isinstance(error, pa.ArrowInvalid) and not hint:
        fault = "texts must be UTF-8, and offsets must ascend: array.validate(full=True) finds the fault"
        return UserError(f"{said} returned data that is not valid Arrow: {error}", hint=fault)
    usual = "return a pa.RecordBatch or pa.Table, a polars or pandas DataFrame, or None"
    return UserError(f"{said} returned a {type(given).__name__}, which is not Arrow data", hint=hint or usual)


def hint_of_arrow(error: Exception, otherwise: str = "") -> str:
    """Returns the hint for an error of a user's function that used Arrow data as a data frame; `otherwise` for any
    other error.
    """
    used = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
    if isinstance(used, pa.Table | pa.RecordBatch | pa.ChunkedArray | pa.Array):
        kind = type(used).__name__
        return f"a pa.{kind} has not the methods of a data frame: polars.from_arrow(x) and x.to_pandas() have them"
    return otherwise


def by_keys(keys: tuple[str, ...]) -> str:
    """Returns " by account, item", or "" without keys."""
    return f" by {', '.join(keys)}" if keys else ""


def column_text(name: str, expr: Expr) -> str:
    """Returns the text of a column of a step's result, for plans. It is only the name if the column is an unchanged
    column of that name.
    """
    return name if expr.column == name else f"{name} = {expr.text()}"


def select_text(columns: Iterable[tuple[str, Expr]]) -> str:
    """Returns the text of a step whose result has exactly these columns."""
    return "select " + ", ".join(column_text(name, expr) for name, expr in columns)


def with_text(columns: Iterable[tuple[str, Expr]]) -> str:
    """Returns the text of a step that adds these columns."""
    return "with " + ", ".join(column_text(name, expr) for name, expr in columns)


def named_texts(columns: Iterable[tuple[str, Aggregate | OverFunction]]) -> str:
    """Returns the text of aggregates, or of columns of `over`: "n = count(), total = sum(amount)"."""
    return ", ".join(f"{name} = {each.text()}" for name, each in columns)


def order_text(by: Iterable[tuple[str, bool]]) -> str:
    """Returns the text of an order. `by` has pairs of a column and True if its greatest values come first."""
    return ", ".join(f"{name} {'descending' if down else 'ascending'}" for name, down in by)


def window_text(window: object) -> str:
    """Returns the text of a window, such as "tumbling window (1 min)"."""
    if getattr(window, "size", 0) == ALL_ROWS:
        return "count window (all rows, at their end)"
    given = {name: value for name, value in vars(window).items() if name != "time" and (name != "offset_ms" or value)}
    facts = {name.removesuffix("_ms"): value for name, value in given.items()}
    sizes = ", ".join(
        span_words(value) if f"{name}_ms" in vars(window) else str(value) for name, value in facts.items()
    )
    by = " of processing time" if getattr(window, "time", "event") == "processing" else ""
    return f"{type(window).__name__.removesuffix('Window').lower()} window ({sizes}){by}"
