"""Checks the arguments of the methods of streams: names of columns, expressions, durations, keys, orders."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from numbers import Number
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa

from sabot.api.aggregates import Aggregate
from sabot.api.elsewhere import NamedElsewhere
from sabot.api.expr import Expr, When, as_type, col
from sabot.api.over import OverFunction
from sabot.api.words import name_of
from sabot.base.arrays import python_value, twice_named
from sabot.base.checks import FLAG, OneOf, check, is_whole
from sabot.base.config import DURATIONS, Duration, parse_seconds
from sabot.errors import UserError, short_repr

Keys: TypeAlias = str | Expr | Sequence[str | Expr]
"""Names of columns, or expressions over columns."""

Schema: TypeAlias = pa.Schema | Mapping[str, Any]

RowPolicy = Literal["dead_letter", "null", "fail"]
"""The treatment of a row for which an expression or a function fails.

"dead_letter": the row goes to the dead letters of its source. "null": the value that could not be computed becomes
null. "fail": the app stops with an error that names the row.
"""

TimeUnit = Literal["s", "ms", "us", "ns"]
"""The unit in which numbers of event time count since 1970 UTC."""


def row_policy(where: str, on_error: Any) -> Any:
    return check(f"{where}: on_error", on_error, OneOf(get_args(RowPolicy)))


def join_keys(where: str, on: Any, left_on: Any, right_on: Any) -> tuple[list[str | Expr], list[str | Expr]]:
    """Returns the keys of the left stream and those of the right stream. A key that only names a column is returned
    as its name, any other key as an expression.

    Raises UserError if `on=` is combined with `left_on=` or `right_on=`, if the two streams have different numbers of
    keys, and for a key that is repeated.
    """
    if on is not None and (left_on is not None or right_on is not None):
        raise UserError(f"{where}: on= excludes left_on= and right_on=", hint="give on=, or the other two")
    left, right = (_keys_of(where, each) for each in ((on, on) if on is not None else (left_on, right_on)))
    if not left or len(left) != len(right):
        raise UserError(
            f"{where} needs as many keys of the left as of the right", hint='on="account", or left_on= and right_on='
        )
    for keys in (left, right):
        texts = [repr(key) for key in keys]
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise UserError(
                f"{where}: the key {twice[0]} is named twice",
                hint="compare the other column in a filter after the join",
            )
    return left, right


def _keys_of(where: str, given: Any) -> list[str | Expr]:
    keys: list[str | Expr] = []
    for key in flat([() if given is None else given]):
        plain = key.column if isinstance(key, Expr) else key
        if not isinstance(plain, str | None) or (plain is None and not isinstance(key, Expr)):
            raise UserError(
                f"{where}: {key!r} is neither a column nor an expression", hint='"account", col("account").str.lower()'
            )
        keys.append(key if plain is None else plain)
    return keys


def keep_ms(keep: Any) -> tuple[int | None, int | None]:
    left, right = keep if isinstance(keep, tuple | list) and len(keep) == 2 else (keep, keep)
    return optional_ms(left, "keep"), optional_ms(right, "keep")


def interval_ms(between: Any, how: str) -> tuple[int | None, int | None]:
    """Returns the bounds of the option `between=` of a join as (lower, upper), in ms. A bound is None if `between=`
    leaves it open, and negative if it is before the time of the left row, such as "-1h".

    Raises UserError if the interval is empty, or if `how` needs a bound that is open.
    """
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise UserError(
            f"join: between={between!r} is not a pair of durations",
            hint='between=("-1h", "5m"): from an hour before to five minutes after',
        )
    lower, upper = (None if each is None else _signed_ms(each) for each in between)
    if lower is not None and upper is not None and lower > upper:
        raise UserError(f"join: between={between!r} is empty", hint="the earlier end comes first")
    # A left row has no partner for certain once the watermark has passed its upper bound; a right row, once it has passed its lower bound.
    if (how in ("left", "full", "anti") and upper is None) or (how in ("right", "full") and lower is None):
        raise UserError(
            f"join: how={how!r} cannot know that a row has no partner, because this end of between= is open",
            hint='give both ends of between=, or how="inner"',
        )
    return lower, upper


def _signed_ms(value: Any) -> int:
    if isinstance(value, str) and value.strip().startswith("-"):
        return -whole_ms(value.strip()[1:].strip(), "between")
    value = python_value(value)
    if isinstance(value, int | float) and value < 0:
        return -whole_ms(-value, "between")
    if isinstance(value, timedelta) and value < timedelta(0):
        return -whole_ms(-value, "between")
    return whole_ms(value, "between")


def order_of(where: str, n: Any, by: Any, descending: Any) -> tuple[int, tuple[tuple[str, bool], ...]]:
    n = python_value(n)
    if not is_whole(n, 1):
        raise UserError(f"{where}: {n!r} is not a number of rows", hint="a whole number, 1 or more")
    names = column_names(flat([by]), where)
    if not names:
        raise UserError(f"{where} needs the columns to order by", hint='by="amount"')
    return n, tuple(zip(names, flags_of(where, "descending", descending, len(names)), strict=True))


def flags_of(where: str, name: str, given: Any, count: int) -> list[bool]:
    """Returns the values of a boolean option for `count` columns, as a list. `given`: one bool for all columns, or a
    list with one for each. `where`, `name`: the step and the option, for error messages. Raises UserError for a list
    of another length.
    """
    flags = [given] * count if not isinstance(given, list | tuple) else list(given)
    if len(flags) != count:
        raise UserError(f"{where}: {name}= has {len(flags)} values for {count} columns", hint=f"{name}=[True, False]")
    return [check(f"{where}: {name}", flag, FLAG) for flag in flags]


def schema_of(schema: Schema, said: str = "schema") -> pa.Schema:
    """Returns the pa.Schema of a dict {"name": type}; returns a pa.Schema unchanged. A type is a pa.DataType, or its
    name in pyarrow or Python, such as "int64" or "int".

    `said`: the name of the argument for messages. Raises UserError for anything else, for an unknown type, and for columns
    or fields of a struct with one name.
    """
    if isinstance(schema, pa.Schema):
        found = schema
    elif isinstance(schema, Mapping):
        found = pa.schema([pa.field(str(name), as_type(kind)) for name, kind in schema.items()])
    else:
        raise UserError(
            f"{said}={schema!r} is not a schema", hint='{"account": "string", "amount": "float64"}, or a pa.Schema'
        )
    if twice := twice_named(found):
        raise UserError(f"{said}: two columns are called {twice!r}", hint="give one of them another name")
    return found


def whole_ms(value: Duration, name: str, *, least: int = 0, hint: str = DURATIONS) -> int:
    """Returns a duration of event time in ms. Raises UserError for a fraction of a millisecond, for less than `least`,
    and in the same cases as `parse_seconds`. `hint`: the hint of the error for a value that is no duration.
    """
    ms = parse_seconds(value, name=name, hint=hint) * 1000
    whole = round(min(ms, 2**63 - 1))
    if whole < least or not math.isclose(ms, whole, rel_tol=1e-12, abs_tol=1e-6):
        raise UserError(f"{name}: {value!r} is not a whole number of milliseconds, {least} or more")
    return whole


def optional_ms(value: Duration | None, name: str) -> int | None:
    return None if value is None else whole_ms(value, name, least=1)


def expression_of(value: Any, where: str) -> Expr:
    if not isinstance(value, Expr):
        raise UserError(
            f"{where}: {' '.join(short_repr(value).split())} is not an expression", hint=_expression_for(value)
        )
    return value


def _expression_for(value: Any) -> str:
    """Returns the hint for a value that was given in place of an expression."""
    if isinstance(value, Aggregate):
        return f"group_by(…).aggregate(x={value!r}) for a row of each key, key_by(…).over(x={value!r}) for each row"
    if isinstance(value, OverFunction):
        return f"key_by(…).over(x={value!r})"
    if isinstance(value, Mapping):
        return 'name=expression: total=col("amount") * 2; ** before a dict gives it as names and expressions'
    if isinstance(value, When):
        return "when(…).then(…).otherwise(…)"
    if isinstance(owner := getattr(value, "__self__", None), NamedElsewhere) and hasattr(value, "__name__"):
        return f"{value.__name__} is a method of {type(owner).__name__}: call it, {value.__name__}(…)"
    if (
        type(value).__module__.partition(".")[0] == "polars"
        and hasattr(value, "alias")
        and not hasattr(value, "to_frame")
    ):
        return "sabot.col and sabot.lit in place of those of polars"
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        return (
            "rows of a stream have no number to which the values could belong: join(app.stream(…), on=…) adds columns"
        )
    if callable(value):
        return 'col("amount") * 2; a function of your own is for map_batches(function) or flat_map(function, schema=…)'
    return 'col("amount") > 10'


def function_of(value: Any, where: str, *given: str) -> Any:
    """Returns the user's function. Raises UserError for an async function, and for one that cannot be called with these
    positional arguments.

    `given`: the names of the arguments for the message; without them the number is not checked.
    """
    if not callable(value):
        raise UserError(f"{where}: {value!r} is not a function")
    if is_async(value):
        raise UserError(
            f"{where}: {name_of(value)} is an async function, and this step does not wait for its result",
            hint="map_async(function, schema=…) waits; or write def in place of async def",
        )
    if given:
        check_called(lambda message, hint: UserError(f"{where}: {message}", hint=hint), value, given)
    return value


def is_async(value: Any) -> bool:
    """Returns True for an async function, also one that yields, and for an object with an async `__call__`."""
    called = (value, getattr(type(value), "__call__", None))  # noqa: B004 (not to learn whether it is callable)
    return any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in called)


def check_called(refuse: Callable[[str, str], UserError], func: Callable[..., Any], given: tuple[str, ...]) -> None:
    """Raises an error if the function cannot be called with so many positional arguments. `given`: the names of the
    arguments, such as ("batch", "ctx"). `refuse`: makes the error from a message and a hint.
    """
    try:
        signature = inspect.signature(func)
    except (TypeError, ValueError):  # a function written in C has no signature
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        name = str(getattr(func, "__name__", ""))
        called = f"{name if name.isidentifier() else 'function'}({', '.join(given)})"
        raise refuse(
            f"it is called as {called}, but its function has the signature {signature}: {error}", f"def {called}"
        ) from error


def flat(values: Iterable[Any]) -> list[Any]:
    """Returns the arguments as one list. They may be given one by one, or in lists."""
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]


def column_names(names: Sequence[Any], where: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r} is not a column name")
    return tuple(names)


def named_columns_of(columns: Sequence[Any], named: Mapping[str, Any], where: str) -> tuple[tuple[str, Expr], ...]:
    pairs = list(_pairs(columns, named, where))
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise UserError(f"{where}: two columns are called {name!r}", hint='name one of them: .alias("…")')
        seen.add(name)
    return tuple(pairs)


def _pairs(columns: Sequence[Any], named: Mapping[str, Any], where: str) -> Iterator[tuple[str, Expr]]:
    for column in flat(columns):
        expr = col(column) if isinstance(column, str) else expression_of(column, where)
        yield expr.name, expr
    for name, value in named.items():
        if value is None or isinstance(value, Number | bytes | date | timedelta):
            of_app = "threads are of the whole app: App(parallelism=…); a column: " if name == "parallelism" else ""
            raise UserError(f"{where}, {name}: {value!r} is not an expression", hint=f"{of_app}{name}=lit({value!r})")
        yield name, col(value) if isinstance(value, str) else expression_of(value, f"{where}, {name}")


Computed: TypeAlias = tuple[tuple[str, Expr], ...]
"""The results as (name, expression over the columns of the step), or an empty tuple if no result is computed from
aggregates.
"""


def aggregates_of_keywords(
    unnamed: Sequence[Any], aggregates: Mapping[str, Any]
) -> tuple[tuple[tuple[str, Aggregate], ...], Computed]:
    """Splits the keyword arguments of `aggregate` into aggregates and results. Returns a pair.

    The first value has the aggregates, with their names. The second has all results, as (name, expression over the
    columns of the aggregates); it is empty if every result is an aggregate itself. For example, `a=sum("x") /
    count()` adds two aggregates with internal names, and the result `a`, which is their quotient.

    Raises UserError for an argument without a name, and for a result that contains no aggregate.
    """
    if unnamed:
        raise UserError(f"aggregate: {unnamed[0]!r} needs a name for its column", hint=f"aggregate(n={unnamed[0]!r})")
    if not aggregates:
        raise UserError(
            "aggregate needs at least one aggregate", hint='aggregate(n=sabot.count(), total=sabot.sum("amount"))'
        )
    aggregates = {name: _written_out(each) for name, each in aggregates.items()}
    known = {name: each for name, each in aggregates.items() if isinstance(each, Aggregate)}
    results: list[tuple[str, Expr]] = []
    for name, each in aggregates.items():
        if not isinstance(each, Aggregate | Expr) or (isinstance(each, Expr) and not _has_aggregates(each)):
            raise UserError(f"aggregate: {name}={each!r} is not an aggregate", hint=f'{name}=sabot.sum("amount")')
        results.append((name, _over(each, known, name) if isinstance(each, Expr) else col(name)))
    return tuple(known.items()), tuple(results) if known.keys() != aggregates.keys() else ()


def _written_out(given: Any) -> Any:
    """Returns the expression of an aggregate whose result is computed from its value, such as `median`. Returns any
    other argument unchanged.
    """
    return given.expression() if isinstance(given, Aggregate) and given.computed is not None else given


def _has_aggregates(expr: Expr) -> bool:
    return expr.kind == "aggregate" or any(map(_has_aggregates, expr.inputs))


def _over(expr: Expr, known: dict[str, Aggregate], result: str) -> Expr:
    """Returns the expression with each aggregate in it replaced by the column that contains the aggregate's value. An
    aggregate that `known` does not contain is added there, under an internal name. `result`: the name of the result,
    with which the internal names begin.
    """
    if expr.kind != "aggregate":
        if not expr.inputs:
            return expr
        return Expr(expr.kind, tuple(_over(each, known, result) for each in expr.inputs), expr.options)
    wanted: Aggregate = expr.option("of")
    for name, each in known.items():
        if each.same(wanted):
            return col(name)
    names = (f"__{result}", *(f"__{result}_{number}" for number in range(2, len(known) + 3)))
    name = next(each for each in names if each not in known)
    known[name] = wanted
    return col(name)
