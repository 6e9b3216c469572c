"""Process functions as users write them: the rows of a key, its state, and its timers.

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

The protocols below describe the `ctx` of a function. A `ProcessSpec` is the checked description of a step.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import pyarrow as pa

from sabot.api.arguments import check_called, is_async, optional_ms, schema_of
from sabot.api.words import name_of
from sabot.base.checks import FLAG, check
from sabot.base.config import Duration, checked_name
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

Array: TypeAlias = pa.Array
Row: TypeAlias = dict[str, Any]


class Timer(NamedTuple):
    """A timer that fires now. `at`: the time for which it was set, in ms. `kind`: "event" or "processing"."""

    at: int
    name: str
    kind: str


def checked_ms(at: Any) -> int:
    """Returns the time of a timer as an int. Raises UserError if it is not a whole number of ms that fits into 64
    bits.
    """
    if type(at) is not int or not -(2**63) <= at < 2**63:
        raise UserError(f"a timer is set to {at!r}", hint="milliseconds since 1970, an int: ctx.timestamp + 60_000")
    return at


class KeyState(Protocol):
    """A value that is stored for the key: None, bool, int (64 bits), float, str, bytes, or lists and dicts of these.
    Each read returns a copy.
    """

    def get(self) -> Any:
        """Returns the value, or None if there is none."""

    def put(self, value: Any) -> None:
        """Sets the value. None deletes it."""

    def delete(self) -> None:
        """Deletes the value."""


class KeyList(Protocol):
    """A list that is stored for the key. The cost of adding a value does not depend on the length of the list."""

    def add(self, value: Any) -> None:
        """Adds a value at the end."""

    def get(self) -> list[Any]:
        """Returns the whole list, in order; [] if there is none."""

    def delete(self) -> None:
        """Deletes the whole list."""


class KeyMap(Protocol):
    """A dict that is stored for the key. The cost of reading or writing one field does not depend on the number of
    fields.
    """

    def get(self, field: Any) -> Any:
        """Returns the value of the field, or None if there is none."""

    def put(self, field: Any, value: Any) -> None:
        """Sets the value of the field. None deletes the field."""

    def items(self) -> dict[Any, Any]:
        """Returns all fields and their values."""

    def delete(self, field: Any = ...) -> None:
        """Deletes one field. Without `field`, deletes all fields."""


class Timers(Protocol):
    """The timers of the key. A timer is identified by its kind, time and name; if it is set twice, it fires once. A
    timer whose time has passed already fires as soon as possible.
    """

    def event(self, at_ms: int, name: str = "") -> None:
        """Sets a timer that fires when the watermark reaches `at_ms`. At the end of the input all event timers fire."""

    def processing(self, at_ms: int, name: str = "") -> None:
        """Sets a timer that fires when the clock reaches `at_ms`. If a bounded input ends before that time, the timer
        does not fire.
        """

    def delete(self, at_ms: int, name: str = "", *, kind: str = "event") -> None:
        """Deletes a timer; does nothing if there is no such timer.

        `kind`: "event" or "processing". Agents only have processing timers, so they need not give `kind`.
        """


class BroadcastMap(Protocol):
    """A map that all keys share, and that is the same in every subtask. The values that it returns must not be
    changed.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        """Returns the value of the key, or `default` if there is none."""

    def items(self) -> Mapping[Any, Any]:
        """Returns all keys and values, in the order in which the keys were first put."""

    def put(self, key: Any, value: Any) -> None:
        """Sets the value of a key. None deletes the key. Only the function for the rows of the broadcast stream may
        call this; in any other function it raises UserError.
        """

    def delete(self, key: Any) -> None:
        """Deletes a key. Only the function for the rows of the broadcast stream may call this; in any other function
        it raises UserError.
        """


class ProcessContext(Protocol):
    """The argument `ctx` of a function over rows. It is valid only during the call."""

    key: Any
    """The key: a value, or a tuple if the key has several columns; None for a row of a broadcast stream."""
    timestamp: int | None
    """The event time of the row or timer in ms (for a processing timer, the watermark); None if the stream has no
    event time.
    """
    watermark: int | None
    """The watermark in ms, or None before the first one. No row with an earlier event time is expected; if such a row
    comes, it is processed like any other row.
    """

    def now(self) -> int:
        """Returns the time of the clock in ms since 1970. If rows are processed again after a restart, the time is a
        different one.
        """

    def state(self, name: str = "state") -> KeyState:
        """Returns the value that is stored under this name for the key. Its methods raise UserError for a row of a
        broadcast stream, which has no key.
        """

    def list(self, name: str) -> KeyList:
        """Returns the list that is stored under this name for the key. Its methods raise UserError for a row without
        a key.
        """

    def map(self, name: str) -> KeyMap:
        """Returns the dict that is stored under this name for the key. Its methods raise UserError for a row without
        a key.
        """

    @property
    def timers(self) -> Timers:
        """The timers of the key, which fire in `on_timer`. Raises UserError if the step has no `on_timer`, or the row
        has no key.
        """

    def side(self, name: str, row: Row) -> None:
        """Emits a row into the output branch of this name (`sides=`), with the event time of the current row or
        timer.
        """

    def broadcast(self, name: str = "broadcast") -> BroadcastMap:
        """Returns the map of this name that all keys share. Only the function for the rows of the broadcast stream
        may change it.
        """


class BatchState(Protocol):
    """One value for each key. The argument `keys` of its methods is an array with one element per key, as the user's
    function gets it.

    If the step has a `ttl`, a value expires when so much event time has passed since it was put. All puts and reads
    of one call are treated as if they were made at the time of the latest row or timer of the call.
    """

    def get_many(self, keys: Array) -> Array:
        """Returns an array with the value of each key, in the order of `keys`; null for a key without a value.

        The array has the type of the stored values. If no key has a value, its type is null: cast it before
        `pc.fill_null`.
        """

    def put_many(self, keys: Array, values: Array) -> None:
        """Sets the values of these keys. A null deletes the value of its key. If a key occurs several times, its last
        value is stored. Times and decimals cannot be stored: cast them to numbers or texts first.
        """

    def delete_many(self, keys: Array) -> None:
        """Deletes the values of these keys."""


class BatchTimers(Protocol):
    """The timers of many keys. The argument `at` of its methods is an int64 array with a time in ms for each key, or
    one time for all keys.
    """

    def event_many(self, keys: Array, at: Array | int) -> None:
        """Sets for each key a timer that fires when the watermark reaches its time."""

    def processing_many(self, keys: Array, at: Array | int) -> None:
        """Sets for each key a timer that fires when the clock reaches its time."""

    def delete_many(self, keys: Array, at: Array | int, *, kind: str = "event") -> None:
        """Deletes the timers of these keys at these times, if there are any."""


class BatchProcessContext(Protocol):
    """The argument `ctx` of a function over batches. It is valid only during the call.

    The function returns None, or Arrow data such as a pa.RecordBatch or a data frame of polars. A result with as many
    rows as the input gets the event times of the input. For another number of rows the function returns a pair: the
    data, and an array of its event times in ms.
    """

    timestamp: Array | None
    """The event time of each row or timer in ms, as int64 (for processing timers, the watermark); None if the stream
    has no event time.
    """
    watermark: int | None
    kind: str
    """The kind of the timers in `on_timer`: "event" or "processing"."""

    def now(self) -> int:
        """Returns the time of the clock in ms since 1970. If rows are processed again after a restart, the time is a
        different one.
        """

    def state(self, name: str = "state") -> BatchState:
        """Returns the values of this name, one for each key."""

    @property
    def timers(self) -> BatchTimers:
        """The timers of all keys, which fire in `on_timer`. Setting one raises UserError if the step has no
        `on_timer`.
        """

    def side(self, name: str, data: Any, times: Array | None = None) -> None:
        """Emits rows into the output branch of this name (`sides=`).

        `data`: Arrow data, such as a pa.RecordBatch or a data frame of polars. `times`: the event times of the rows
        in ms; they may be left out if `data` has as many rows as the input.
        """

    def broadcast(self, name: str = "broadcast") -> BroadcastMap:
        """Returns the map of this name that all keys share. Only the function for the rows of the broadcast stream
        may change it.
        """


class Process:
    """The base class for a process step that is written as an object: `keyed.process(Declines(limit=3), schema=...)`.

    One object is used by all subtasks, each in its own thread. So data of a key must be stored in `ctx.state`, not in
    `self`.
    """

    def process(self, row: Row, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """Handles a row. Returns None, a row, or several rows, which are emitted."""
        raise NotImplementedError

    def process_right(self, row: Row, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """Handles a row of the other stream of `connect`. Returns None, a row, or several rows, which are emitted."""
        raise NotImplementedError

    def on_timer(self, timer: Timer, ctx: ProcessContext) -> Row | Iterable[Row] | None:
        """Handles a timer of the key that fires. Returns None, a row, or several rows, which are emitted."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ProcessSpec:
    """A checked process step.

    - `function`, `right`, `on_timer`: the user's functions for rows, for rows of the right stream, and for timers.
    - `schema`: the columns of the result, without metadata. `sides`: the columns of each output branch, by its name.
    - `ttl_ms`: a value of the state expires when so many ms of event time have passed since it was last put; None for
      never.
    - `broadcast`: True if the right stream has no key, and all subtasks get its rows.
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
        """True if the state contains event times, because it has timers or values that expire."""
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
    """Returns the checked description of `keyed.process(...)`; with `two_inputs`, of
    `keyed.connect(other).process(...)`.

    `function`: a function, or an object with the method `process` and, if needed, `on_timer` and `process_right`.
    Raises UserError for async functions and for classes in place of objects. Also raises it if `right=` is missing
    with two streams, or is given with one, and for schemas without columns or with reserved names.
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
            f"process: {whole!r} is neither a function nor an object with a method `process`",
            hint="process(f, schema=...)",
        )
    name = f"process({name_of(whole)})"
    if any(map(is_async, (function, on_timer, right))):
        raise UserError(
            f"{name}: a process function cannot be async",
            hint="make the async calls in a step before it: stream.map_async(…)",
        )
    for what, each in (("on_timer", on_timer), ("right", right)):
        if each is not None and not callable(each):
            raise UserError(f"{name}: {what}={each!r} is not a function")
    if two_inputs and right is None:
        raise UserError(
            f"{name}: there is no function for the rows of the other side",
            hint="process(f, right=g, …) calls g for these rows",
        )
    if right is not None and not two_inputs:
        raise UserError(
            f"{name}: right= has no rows, because there is no second stream",
            hint="keyed.connect(other).process(f, right=g, ...)",
        )
    flag = check(f"{name}: batch", batch, FLAG)
    rows, timers = (("keys", "batch", "ctx"), ("keys", "at", "ctx")) if flag else (("row", "ctx"), ("timer", "ctx"))
    for what, each, given in (("", function, rows), ("on_timer: ", on_timer, timers), ("right: ", right, rows)):
        if each is not None:
            check_called(partial(_refused, f"{name}: {what}"), each, given)
    ttl_ms = optional_ms(ttl, f"{name}: ttl")
    columns = _schema(name, "schema", schema)
    named = {
        checked_name(side, f"{name}: side"): _schema(name, f"sides[{side!r}]", each)
        for side, each in (sides or {}).items()
    }
    return ProcessSpec(name, function, right, on_timer, columns, named, flag, ttl_ms, broadcast)


def _refused(where: str, message: str, hint: str) -> UserError:
    return UserError(where + message, hint=hint)


def _method(whole: Any, name: str) -> Callable[..., Any] | None:
    """Returns the method of this name of the object. Returns None if the object has no such method, or only inherits
    it from `Process`.
    """
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
            reason = "is reserved for Sabot" if column.startswith("__") else "is there twice"
            raise UserError(f"{name}: {what}: the column {column!r} {reason}", hint="give it another name")
    return schema
