"""Process functions as users write them: rows of a key, its state, its timers.

    def three_declines(row, ctx):                                # a row at a time
        seen = (ctx.state("declined").get() or 0) + 1
        ctx.state("declined").put(seen)
        ctx.timers.event(ctx.timestamp + 60_000)                 # on_timer is called a minute later, in event time
        if seen == 3:
            return {"account": ctx.key, "why": "three declines"}

    keyed.process(three_declines, schema={"account": "string", "why": "string"}, on_timer=forget)

    def totals(keys, batch, ctx):                                # batch=True: a batch at a time, nothing is done per row
        state = ctx.state("total")
        ...
        state.put_many(keys, sums)
        ctx.timers.event_many(keys, pc.add(ctx.timestamp, 60_000))

What a function gets as `ctx` is described by the protocols below. A `ProcessSpec` is the checked description of a step.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import pyarrow as pa

from sabot.api.arguments import schema_of
from sabot.api.words import name_of
from sabot.checks import FLAG, check
from sabot.config import Duration, checked_name, parse_ms
from sabot.errors import UserError

Array: TypeAlias = pa.Array
Row: TypeAlias = dict[str, Any]


class Timer(NamedTuple):
    """A timer that fires. at: ms, as it was set. kind: "event" or "processing"."""

    at: int
    name: str
    kind: str


def checked_ms(at: Any) -> int:
    """Returns the time of a timer. Raises UserError for a value that is no time in ms."""
    if type(at) is not int or not -(2**63) <= at < 2**63:
        raise UserError(f"a timer is set to {at!r}", hint="milliseconds since 1970, an int: ctx.timestamp + 60_000")
    return at


class KeyState(Protocol):
    """One value of the key: None, bool, int (64 bit), float, str, bytes, lists and dicts of these. Each read gives a copy."""

    def get(self) -> Any:
        """The value; None when absent."""

    def put(self, value: Any) -> None:
        """Sets the value. None deletes it."""

    def delete(self) -> None:
        """Removes the value."""


class KeyList(Protocol):
    """A list of the key. Adding to it costs the same however long it is."""

    def add(self, value: Any) -> None:
        """Adds a value at the end."""

    def get(self) -> list[Any]:
        """The whole list, in order; [] when absent."""

    def delete(self) -> None:
        """Removes the whole list."""


class KeyMap(Protocol):
    """A dict of the key. Reading or writing one field costs the same however many fields there are."""

    def get(self, field: Any) -> Any:
        """The value of the field; None when absent."""

    def put(self, field: Any, value: Any) -> None:
        """Sets the value of the field. None removes the field."""

    def items(self) -> dict[Any, Any]:
        """All fields and their values."""

    def delete(self, field: Any = ...) -> None:
        """Removes one field, or without `field` all of them."""


class Timers(Protocol):
    """The timers of the key. A timer (kind, time, name) that is set twice fires once. A timer in the past fires at the next opportunity."""

    def event(self, at_ms: int, name: str = "") -> None:
        """Sets a timer that fires when the watermark reaches `at_ms`. At the end of the input all of these fire."""

    def processing(self, at_ms: int, name: str = "") -> None:
        """Sets a timer that fires when the clock reaches `at_ms`. Those still pending when a bounded input ends do not fire."""

    def delete(self, at_ms: int, name: str = "", *, kind: str = "event") -> None:
        """Deletes a timer, if there is one. An agent, whose timers all go by the clock, does not need kind=."""


class BroadcastMap(Protocol):
    """A map that all keys share, the same in every subtask. The values it returns must not be changed."""

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of the key; `default` when absent."""

    def items(self) -> Mapping[Any, Any]:
        """All keys and values, in the order in which the keys were first put."""

    def put(self, key: Any, value: Any) -> None:
        """Sets the value of a key. None deletes the key. Only the function of the broadcast side may call it; others get UserError."""

    def delete(self, key: Any) -> None:
        """Deletes a key. Raises UserError as `put` does."""


class ProcessContext(Protocol):
    """The `ctx` of a function over rows. It is valid only during the call."""

    key: Any
    """The key: a value, or a tuple where there are several columns; None for a row of a broadcast side."""
    timestamp: int | None
    """Event time in ms of the row, or of the timer (of a processing timer: the watermark); None where the stream has none."""
    watermark: int | None
    """No row with an earlier event time is expected; one that comes all the same is processed like the others. None: no watermark yet."""

    def now(self) -> int:
        """The clock, in ms since 1970. It is another one when rows are processed again after a restart."""

    def state(self, name: str = "state") -> KeyState:
        """The value of this name that belongs to the key. Its methods raise UserError for a row of a broadcast side, which has no key."""

    def list(self, name: str) -> KeyList:
        """The list of this name that belongs to the key. Raises UserError as `state` does."""

    def map(self, name: str) -> KeyMap:
        """The dict of this name that belongs to the key. Raises UserError as `state` does."""

    @property
    def timers(self) -> Timers:
        """The timers of the key, which fire in `on_timer`. Raises UserError where there is no on_timer, or the row has no key."""

    def side(self, name: str, row: Row) -> None:
        """Emits a row into one of `sides=`. Its event time is that of the current row or timer."""

    def broadcast(self, name: str = "broadcast") -> BroadcastMap:
        """The map of this name that all keys share; only rows of the broadcast side may change it."""


class BatchState(Protocol):
    """One value for each key. `keys`: an array like the one that the function gets.

    With a ttl, values are read and put at the time of the latest row, or timer, of the call.
    """

    def get_many(self, keys: Array) -> Array:
        """Row i -> the value of keys[i], null when absent; of the type that the values have: where no key has one, of type null, so cast it
        before pc.fill_null.
        """

    def put_many(self, keys: Array, values: Array) -> None:
        """Sets the values of these keys. Null deletes; of equal keys the last value counts. Times and decimals have to be cast first."""

    def delete_many(self, keys: Array) -> None:
        """Removes the values of these keys."""


class BatchTimers(Protocol):
    """Timers of many keys; `at`: int64 ms, one for each key, or one for all."""

    def event_many(self, keys: Array, at: Array | int) -> None:
        """Sets for each key a timer that fires when the watermark reaches its time."""

    def processing_many(self, keys: Array, at: Array | int) -> None:
        """Sets for each key a timer that fires when the clock reaches its time."""

    def delete_many(self, keys: Array, at: Array | int, *, kind: str = "event") -> None:
        """Deletes the timers of these keys at these times, where there are any."""


class BatchProcessContext(Protocol):
    """The `ctx` of a function over batches.

    It gives None, or anything that speaks Arrow: with as many rows as it got, these have their event times; with other rows it gives
    a pair (data, their event times in ms).
    """

    timestamp: Array | None
    """int64: event time in ms of each row, or timer (of processing timers: the watermark); None where the stream has none."""
    watermark: int | None
    kind: str
    """In `on_timer`: "event" or "processing"."""

    def now(self) -> int:
        """The clock, in ms since 1970. It is another one when rows are processed again after a restart."""

    def state(self, name: str = "state") -> BatchState:
        """The values of this name, one for each key."""

    @property
    def timers(self) -> BatchTimers:
        """The timers of all keys, which fire in `on_timer`. Setting one raises UserError where the step has no on_timer."""

    def side(self, name: str, data: Any, times: Array | None = None) -> None:
        """Emits rows (anything that speaks Arrow) into one of `sides=`. They get their event times as returned rows do."""

    def broadcast(self, name: str = "broadcast") -> BroadcastMap:
        """The map of this name that all keys share; only rows of the broadcast side may change it."""


class Process:
    """The base class for a step that is written as an object: `keyed.process(Declines(limit=3), schema=...)`.

    One object serves all subtasks, each in its thread: what belongs to a key goes into `ctx.state`, not into `self`.
    """

    def process(self, row: Row, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """Called for each row. Returns nothing, a row, or several rows."""
        raise NotImplementedError

    def process_right(self, row: Row, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """A row of the other side."""
        raise NotImplementedError

    def on_timer(self, timer: Timer, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """A timer of the key fires."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ProcessSpec:
    """A checked process step.

    schema: what the functions give, without marks. sides: name -> columns of rows that leave by it. ttl_ms: a value is forgotten when
    so much event time has passed since it was put. broadcast: the right side has no key, and all subtasks get its rows.
    """

    name: str
    function: Callable[..., Any]
    right: Callable[..., Any] | None
    on_timer: Callable[..., Any] | None
    schema: pa.Schema
    sides: Mapping[str, pa.Schema]
    batch: bool
    ttl_ms: int | None
    broadcast: bool

    @property
    def keeps_times(self) -> bool:
        """Whether event times are in its state: of timers, or of values that are forgotten."""
        return self.on_timer is not None or self.ttl_ms is not None


def process_spec(
    function: Any,
    *,
    schema: pa.Schema | Mapping[str, Any],
    batch: bool = False,
    on_timer: Callable[..., Any] | None = None,
    sides: Mapping[str, pa.Schema | Mapping[str, Any]] | None = None,
    ttl: Duration | None = None,
    right: Callable[..., Any] | None = None,
    two_inputs: bool = False,
    broadcast: bool = False,
) -> ProcessSpec:
    """The description of `keyed.process(...)` (or of `keyed.connect(other).process(...)`: two_inputs). UserError for what cannot be.

    function: a callable, or an object with the methods process and, as it needs them, on_timer and process_right.
    """
    whole = function
    method = _method(whole, "process")
    if method is not None:
        function = method
        on_timer = on_timer or _method(whole, "on_timer")
        right = right or (_method(whole, "process_right") if two_inputs else None)
    if isinstance(whole, type) and callable(getattr(whole, "process", None)):
        raise UserError(
            f"process: {whole.__qualname__} is a class", hint=f"give an object: process({whole.__qualname__}(), …)"
        )
    if not callable(function):
        raise UserError(
            f"process: {whole!r} is no function, and has no method `process`", hint="process(f, schema=...)"
        )
    name = f"process({name_of(whole)})"
    if any(inspect.iscoroutinefunction(each) for each in (function, on_timer, right)):
        raise UserError(
            f"{name}: a process function cannot be async", hint="call out in stream.map_async(...) before it"
        )
    for what, each in (("on_timer", on_timer), ("right", right)):
        if each is not None and not callable(each):
            raise UserError(f"{name}: {what}={each!r} is no function")
    if two_inputs and right is None:
        raise UserError(
            f"{name}: nothing is said of the rows of the other side", hint="give it right=, a second function"
        )
    if right is not None and not two_inputs:
        raise UserError(f"{name}: right= has no rows", hint="keyed.connect(other).process(f, right=g, ...)")
    ttl_ms = None if ttl is None else parse_ms(ttl, name="ttl")
    if ttl_ms is not None and ttl_ms < 1:
        raise UserError(f"{name}: ttl={ttl!r} is less than a millisecond")
    columns = _schema(name, "schema", schema)
    named = {
        checked_name(side, f"{name}: side"): _schema(name, f"sides[{side!r}]", each)
        for side, each in (sides or {}).items()
    }
    return ProcessSpec(
        name, function, right, on_timer, columns, named, check(f"{name}: batch", batch, FLAG), ttl_ms, broadcast
    )


def _method(whole: Any, name: str) -> Callable[..., Any] | None:
    """The object's method, if it is more than the one of `Process`."""
    if isinstance(whole, type):
        return None
    method = getattr(whole, name, None)
    if not callable(method) or getattr(type(whole), name, None) is getattr(Process, name):
        return None
    return method  # type: ignore[no-any-return]


def _schema(name: str, what: str, given: Any) -> pa.Schema:
    schema = pa.schema([(field.name, field.type) for field in schema_of(given, f"{name}: {what}")])
    if not len(schema):
        raise UserError(f"{name}: {what} has no columns")
    for column in schema.names:
        if column.startswith("__") or schema.names.count(column) > 1:
            reason = "stands for something of ours" if column.startswith("__") else "is there twice"
            raise UserError(f"{name}: {what}: the column {column!r} {reason}", hint="give it another name")
    return schema
