"""Calls of the user's coroutine functions, as `map_async` and `lookup` describe them: checked, immutable."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from sabot.api.agent import as_schema
from sabot.config import Duration, parse_seconds
from sabot.errors import UserError

__all__ = ["AsyncCall", "CallError", "LookupCall", "check_coroutine_function", "function_name"]

CallError = Literal["fail", "skip"]

_MOST_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True)
class AsyncCall:
    """One call for each row, or (batch) for each slice of at most `rows` rows; times in seconds.

    schema: of what it gives. concurrency: calls in flight. ordered: results come out in the order of the input. timeout_s: of one
    attempt; None: it may take as long as it likes. retries: so many more attempts after the first, the first after backoff_s, each
    next one after twice as long, at most 30 s. on_error: what happens when all of them have failed.
    """

    function: Callable[[Any], Awaitable[Any]]
    schema: pa.Schema
    concurrency: int = 100
    ordered: bool = True
    timeout_s: float | None = 30.0
    retries: int = 0
    backoff_s: float = 0.1
    on_error: CallError = "fail"
    batch: bool = False
    rows: int = 1024

    @classmethod
    def of(
        cls,
        function: Callable[[Any], Awaitable[Any]],
        *,
        schema: pa.Schema | Mapping[str, Any],
        concurrency: int = 100,
        ordered: bool = True,
        timeout: Duration | None = "30s",
        retries: int = 0,
        backoff: Duration = "100ms",
        on_error: CallError = "fail",
        batch: bool = False,
        rows: int = 1024,
        step: str = "map_async",
    ) -> "AsyncCall":
        """Checks what the user wrote; raises UserError that names the step and the function."""
        check_coroutine_function(function, step)
        where = f"{step}({function_name(function)})"
        if not isinstance(schema, pa.Schema | Mapping):
            raise UserError(f"{where}: schema={schema!r}", hint='{"name": "type", …} of what the function gives')
        columns = as_schema(schema if isinstance(schema, pa.Schema) else dict(schema), where=where)
        twice = [name for name in columns.names if columns.names.count(name) > 1]
        if twice or not columns.names:
            what = f"two columns are called {twice[0]!r}" if twice else "there are no columns"
            raise UserError(f"{where}: schema: {what}", hint='{"name": "type", …} of what the function gives')
        _whole(where, "concurrency", concurrency, 1, _MOST_AT_ONCE)
        _whole(where, "retries", retries, 0)
        _whole(where, "rows", rows, 1)
        if on_error not in ("fail", "skip"):
            raise UserError(f"{where}: on_error={on_error!r}", hint="one of 'fail', 'skip'")
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        if timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='more than nothing ("30s"), or None for no limit')
        backoff_s = parse_seconds(backoff, name="backoff")
        return cls(
            function,
            columns,
            concurrency,
            bool(ordered),
            timeout_s,
            retries,
            backoff_s,
            on_error,
            bool(batch),
            rows,
        )

    @property
    def name(self) -> str:
        """The function's."""
        return function_name(self.function)

    def options(self) -> dict[str, Any]:
        """What operators take by name, beside function and schema."""
        return {
            "concurrency": self.concurrency,
            "ordered": self.ordered,
            "timeout_s": self.timeout_s,
            "retries": self.retries,
            "backoff_s": self.backoff_s,
            "on_error": self.on_error,
        }


@dataclass(frozen=True, slots=True)
class LookupCall:
    """`call.function(key)` for the keys of rows, the columns `on`: equal keys in flight share a call, and its answer is kept.

    how: rows without an answer have nulls ("left"), or go no further ("inner"). cache_rows: answers that are kept, the last used; 0:
    none. cache_ttl_s: for so long; None: as long as there is room.
    """

    call: AsyncCall
    on: tuple[str, ...]
    how: Literal["left", "inner"] = "left"
    cache_rows: int = 10_000
    cache_ttl_s: float | None = 600.0

    @classmethod
    def of(
        cls,
        function: Callable[[Any], Awaitable[Any]],
        *,
        on: str | Sequence[str],
        schema: pa.Schema | Mapping[str, Any],
        how: Literal["left", "inner"] = "left",
        cache: int = 10_000,
        cache_ttl: Duration | None = "10m",
        **options: Any,
    ) -> "LookupCall":
        """Checks what the user wrote. options: those of `AsyncCall.of` but batch and rows. Raises UserError."""
        for name in ("batch", "rows", "step"):
            if name in options:
                raise UserError(f"lookup: {name}= is not for lookups", hint="map_async(…, batch=True) takes batches")
        call = AsyncCall.of(function, schema=schema, step="lookup", **options)
        where = f"lookup({call.name})"
        columns = (on,) if isinstance(on, str) else tuple(on)
        if not columns or not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
            raise UserError(
                f"{where}: on={on!r}", hint='the column whose values are looked up: on="account"; or several'
            )
        if how not in ("left", "inner"):
            raise UserError(f"{where}: how={how!r}", hint="one of 'left', 'inner'")
        _whole(where, "cache", cache, 0)
        ttl_s = None if cache_ttl is None else parse_seconds(cache_ttl, name="cache_ttl")
        return cls(call, columns, how, cache, ttl_s)


def check_coroutine_function(function: Any, step: str) -> None:
    """Raises UserError for what is not `async def`."""
    target = getattr(function, "func", function)  # functools.partial
    if not inspect.isroutine(target) and callable(target):
        target = type(target).__call__
    if inspect.iscoroutinefunction(target):
        return
    if not callable(function):
        raise UserError(f"{step}: {function!r} is no function", hint=f"{step}(f, …) with async def f(row): …")
    name = function_name(function)
    if inspect.isasyncgenfunction(target):
        raise UserError(f"{step}({name}): the function yields", hint="return a list of dicts")
    instead = "map_batches and flat_map take functions that do not wait" if step == "map_async" else ""
    raise UserError(
        f"{step}({name}): the function is not a coroutine function",
        hint="; ".join(filter(None, [f"write async def {name.rpartition('.')[2]}(…)", instead])),
    )


def function_name(function: Any) -> str:
    """As people know it."""
    target = getattr(function, "func", function)
    return str(getattr(target, "__qualname__", type(target).__name__))


def _whole(where: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{where}: {name}={value!r}", hint=f"a whole number, {bounds}")
