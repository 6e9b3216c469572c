"""Calls of the user's coroutine functions in `map_async`, `lookup` and `map_llm`: checked, immutable descriptions."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict, Unpack

import pyarrow as pa

from sabot.api.agent import as_schema
from sabot.api.prompts import Prompt, text_of
from sabot.base.arrays import python_value
from sabot.base.checks import FLAG, OneOf, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.base.options import declare, with_defaults
from sabot.engine.calls import CallOptions
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.options import CALL_WORDS
from sabot.errors import UserError

CallError = Literal["fail", "skip"]

_POLICIES = ("fail", "skip")


class AsyncOptions(TypedDict, total=False):
    """The options of steps that call a coroutine function."""

    concurrency: Annotated[int, declare(100, "the number of calls in flight in each subtask; further rows wait")]
    ordered: Annotated[bool, declare(True, "True emits results in the order of the rows, False as they complete")]
    timeout: Annotated[Duration | None, declare("30s", "the longest time of one attempt")]
    retries: Annotated[int, declare(0, "the number of further attempts")]
    backoff: Annotated[Duration, declare("100ms", "the wait before the first further attempt; it doubles each time")]
    rate: Annotated[
        str | float | None, declare(None, 'the number of attempts that may begin, over all subtasks: "50/s", "300/m"')
    ]
    on_error: Annotated[
        CallError,
        declare("fail", 'the reaction to a last attempt that failed: "fail" ends the app, "skip" drops the row'),
    ]


class MapAsyncOptions(AsyncOptions, total=False):
    """The options of `map_async`."""

    batch: Annotated[bool, declare(False, "True if the function takes a RecordBatch and returns Arrow data")]
    rows: Annotated[int, declare(1024, "the largest number of rows of a batch")]


class LookupOptions(AsyncOptions, total=False):
    """The options of `lookup` with a coroutine function."""

    schema: Annotated[pa.Schema | Mapping[str, Any] | None, declare(None, "the columns that the function returns")]
    cache: Annotated[int, declare(10_000, "the number of answers that are kept, those used last; 0 keeps none")]
    cache_ttl: Annotated[
        Duration | None, declare("10m", "the time for which an answer is kept; None: while there is room")
    ]


@dataclass(frozen=True, slots=True)
class AsyncCall:
    """A call of the user's coroutine function for each row; with `batch`, for each slice of at most `rows` rows. A
    function for one row may also be an async generator: each dict that it yields is a row of the result.

    - `schema`: the columns of the results.
    - `options`: the limits of the calls, such as the number in flight and the timeout. Their `on_error` is "fail" or
      "skip".
    - `ordered`: True if results are emitted in the order of the input; False if they are emitted as they arrive.
    """

    function: Callable[[Any], Awaitable[Any]]
    schema: pa.Schema
    options: CallOptions
    ordered: bool = True
    batch: bool = False
    rows: int = 1024

    @classmethod
    def of(
        cls,
        function: Callable[[Any], Awaitable[Any]],
        *,
        schema: pa.Schema | Mapping[str, Any] | None,
        step: str = "map_async",
        **options: Unpack[MapAsyncOptions],
    ) -> "AsyncCall":
        """Returns the checked description of a call from the user's arguments. Raises UserError if an argument is not
        valid; the message contains the names of the step and of the function. `step`: the name of the step that calls
        the function.
        """
        given = with_defaults(step, MapAsyncOptions, options)
        check_coroutine_function(function, step, pieces=step == "map_async" and not given["batch"])
        where = f"{step}({function_name(function)})"
        if not isinstance(schema, pa.Schema | Mapping):
            raise UserError(
                f"{where}: schema={schema!r} is not a schema",
                hint='{"name": "type", …} with the columns of the results',
            )
        columns = as_schema(schema if isinstance(schema, pa.Schema) else dict(schema), where=where)
        twice = [name for name in columns.names if columns.names.count(name) > 1]
        if twice or not columns.names:
            what = f"two columns are called {twice[0]!r}" if twice else "there are no columns"
            raise UserError(f"{where}: schema: {what}", hint='{"name": "type", …} with the columns of the results')
        calls = CallOptions.of(where, policies=_POLICIES, **{word: given[word] for word in CALL_WORDS})
        ordered, batch = (check(f"{where}: {word}", given[word], FLAG) for word in ("ordered", "batch"))
        rows = check(f"{where}: rows", python_value(given["rows"]), Whole(1))
        return cls(function, columns, calls, ordered, batch, rows)

    @property
    def name(self) -> str:
        """The name of the function."""
        return function_name(self.function)

    @property
    def facts(self) -> tuple[Any, ...]:
        """The values that distinguish this call from others in the digest of a step (`engine/plan/paths`). Their order must
        not change, because checkpoints contain such digests.
        """
        made = self.options
        attempts = (made.timeout_s, made.retry.retries, made.retry.backoff_s, made.on_error)
        return (self.function, self.schema, made.concurrency, self.ordered, *attempts, self.batch, self.rows)


@dataclass(frozen=True, slots=True)
class LookupCall:
    """A call of the user's function with the key of a row, whose answer adds columns to the row. Rows with equal keys
    share a call while it is in flight, and the answer is cached.

    - `on`: the columns of the key.
    - `how`: "left" keeps rows without an answer, with nulls; "inner" drops them.
    - `cache_rows`: the number of cached answers; the most recently used ones are kept. 0 caches none.
    - `cache_ttl_s`: the seconds for which an answer is cached; None for no limit of time.
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
        how: Literal["left", "inner"] = "left",
        **options: Unpack[LookupOptions],
    ) -> "LookupCall":
        """Returns the checked description of a lookup from the user's arguments. Raises UserError if an argument is
        not valid.
        """
        given = with_defaults("lookup", LookupOptions, options)
        cache, ttl = (given.pop(word) for word in ("cache", "cache_ttl"))
        call = AsyncCall.of(function, step="lookup", **given)
        where = f"lookup({call.name})"
        columns = (on,) if isinstance(on, str) else tuple(on)
        if not columns or not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
            raise UserError(
                f"{where}: on={on!r} is not a list of columns",
                hint='the column whose values are looked up: on="account"; or several',
            )
        check(f"{where}: how", how, OneOf(("left", "inner")))
        cache = check(f"{where}: cache", python_value(cache), Whole())
        ttl_s = None if ttl is None else parse_seconds(ttl, name="cache_ttl")
        return cls(call, columns, how, cache, ttl_s)


@dataclass(frozen=True, slots=True)
class PromptCall:
    """A call of a model with the prompt of a row. Equal prompts are sent once.

    - `call`: the call; its `schema` has the columns of an answer.
    - `prompt`: the template, expression or function that makes the prompt of a row.
    - `cache_rows`: the number of cached answers; the most recently used ones are kept. 0 caches none.
    """

    call: AsyncCall
    prompt: Prompt
    cache_rows: int

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        asking: Any = self.call.function
        return str(asking.model)

    def text(self) -> str:
        """Returns the model and the prompt, as plans show them."""
        return f"{self.model}, {text_of(self.prompt)}"


def check_coroutine_function(function: Any, step: str, *, pieces: bool = False) -> None:
    """Raises UserError if the function is not declared with `async def`, or if it yields. `pieces`: True if it may
    yield. `step`: the name of the step, for the message.
    """
    target = unwrap(function)
    if inspect.iscoroutinefunction(target) or (pieces and inspect.isasyncgenfunction(target)):
        return
    if not callable(function):
        raise UserError(f"{step}: {function!r} is not a function", hint=f"{step}(f, …) with async def f(row): …")
    name = function_name(function)
    if inspect.isasyncgenfunction(target):
        what = "one batch" if step == "map_async" else "a dict"
        raise UserError(f"{step}({name}): the function yields", hint=f"return {what}")
    instead = "map_batches and flat_map take functions that do not wait" if step == "map_async" else ""
    raise UserError(
        f"{step}({name}): the function is not a coroutine function",
        hint="; ".join(filter(None, [f"write async def {name.rpartition('.')[2]}(…)", instead])),
    )


def function_name(function: Any) -> str:
    """Returns the qualified name of a function. For a functools.partial it is the name of its function; for any other
    callable object, the name of its class.
    """
    target = getattr(function, "func", function)
    return str(getattr(target, "__qualname__", type(target).__name__))
