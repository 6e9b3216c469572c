"""The state of process functions (values of keys, timers, time, and the maps that all keys share), and the base class
of the callers of the functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.timers import EVENT, PROCESSING
from sabot._cython.groups.partition import hash_columns
from sabot._cython.text.records import state_key
from sabot.api.arguments import RowPolicy
from sabot.api.functions import ProcessSpec
from sabot.engine.calls.judging import JUDGE, OnceJudge, present_judge
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME, TIME_COLUMN, OperatorContext, without_marks
from sabot.engine.operators.columns import no_event_time
from sabot.engine.operators.functions.timed import KeysWithTimers
from sabot.engine.operators.functions.transaction import Transaction
from sabot.engine.operators.rows.bad import CALLS, BadRows, nulls_of
from sabot.engine.operators.rows.origin import of_selected
from sabot.engine.state.base import StateBackend
from sabot.engine.state.expiry import EventExpiry
from sabot.engine.state.keyed_values import open_values
from sabot.engine.state.reading import json_text
from sabot.engine.state.values import PlainList, PlainMap, PlainValue, hashable
from sabot.errors import UNREADABLE, CorruptCheckpoint, UserError

Array: TypeAlias = pa.Array

TIMERS_OF_A_KEY = 100_000  # the most timers that a key may set in one `advance` without a later time
NO_SLOTS = pa.nulls(0, pa.int32())
KIND_NAMES = ("event", "processing")
_KINDS = {"event": EVENT, "processing": PROCESSING}
_LIST = 1  # the msgpack extension for a list; the other one is for a map (`state.values`)
_INTEGERS = {32: pa.int32(), 64: pa.int64()}

_decode = msgspec.msgpack.Decoder().decode


class Side:
    """The columns of one input of a process function. `keys`: the indices of its key columns. `names`: the columns
    that the function sees. `time`: the index of the column of event time, or -1.
    """

    def __init__(self, input: pa.Schema, keys: Sequence[int]) -> None:
        self.keys = list(keys)
        self.names: list[str] = without_marks(input).names
        self.time = int(input.get_field_index(TIME_COLUMN))


class FunctionState:
    """The state, the timers and the time of a step's functions. Only the subtask's thread may use it."""

    def __init__(
        self, spec: ProcessSpec, keys: pa.Schema, timed: bool, context: OperatorContext, on_error: RowPolicy
    ) -> None:
        self.spec, self.keys, self.timed = spec, keys, timed
        self.expiry = None if spec.ttl_ms is None else EventExpiry(spec.ttl_ms)
        self.values = open_values(context.directory, context.memory_budget * 7 // 10, self.expiry)
        self.timer_state = KeysWithTimers(keys, context)
        self.known, self.timers = self.timer_state.known, self.timer_state.timers
        self.bad = BadRows(spec.name, on_error, context)
        self.transaction = None if self.bad.fails else Transaction(self.values, self.expiry, self.timers)
        # The backend that functions use. In a transaction, their writes reach `values` when the calls are kept.
        self.call_values: StateBackend = self.values if self.transaction is None else self.transaction.values
        self.maps: dict[str, SharedMap] = {}
        self.names: set[str] = set()  # the names under which functions have kept values
        self.forgets: frozenset[str] = frozenset()  # the names whose state the user drops
        self.broadcasting = False  # True while the function of the broadcast side runs
        self.interleaves = False  # True if event timers fire between the rows of a batch, which come in order of time
        self.watermark_ms: int | None = None
        self.latest_ms = START_OF_TIME  # the latest event time of all rows
        self.poll_ms: int | None = None
        self.subtask = context.subtask
        self._clock = context.clock

    def registered(self, name: Any) -> str:
        """Returns `name`, and adds it to the names of state. Raises UserError if it is not a text, or empty."""
        self.names.add(namespace_of(name))
        return str(name)

    def guard(self) -> None:
        """Starts to count the timers that each key sets. Called before event timers fire."""
        self.timers.guard(TIMERS_OF_A_KEY)

    def clock_ms(self) -> int:
        """Returns the processing time in ms."""
        return int(self._clock.time() * 1000) if self.poll_ms is None else self.poll_ms

    def now(self) -> int:
        """Returns the event time for code that runs without a row: the watermark, or, before the first one, the
        greatest event time of the rows so far.
        """
        return self.latest_ms if self.watermark_ms is None else self.watermark_ms

    def times_of(self, data: pa.RecordBatch, side: Side) -> Array | None:
        """Returns the event times of an input's rows, or None if neither input has event time. If only the other
        input has event time, all rows get `now()`.
        """
        if side.time >= 0:
            return data.column(side.time)
        if not self.timed:
            return None
        now = self.now()
        return pa.array(np.full(data.num_rows, 0 if now == START_OF_TIME else now))

    def set_time(self, at: int) -> None:
        """Sets the event time that decides which values have expired, for the reads and writes that follow."""
        if self.expiry is not None:
            self.expiry.now_ms = at

    def forget_expired(self, watermark_ms: int) -> None:
        """Removes the values that have expired at this watermark. After this, no function may read values at an
        earlier event time.
        """
        if self.expiry is not None:
            self.expiry.passed_ms = watermark_ms
            self.values.remove_expired()

    def slots(self, keys: Sequence[Array], hashes: pa.UInt64Array) -> pa.Int32Array:
        """Returns the slots of these keys. A new key gets a slot, which `settle` frees again if the key has no timer."""
        rows = pa.RecordBatch.from_arrays(list(keys), schema=self.keys)
        return self.timer_state.slots_of(rows, hashes)

    def settle(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Frees the slots of keys without timers, among `slots` and the keys whose last timer has fired. Returns the
        freed slots.
        """
        return self.timer_state.free(slots)

    def map(self, name: str) -> "SharedMap":
        """Returns the broadcast map of this name. A map that does not exist is created."""
        known = self.maps.get(name)
        if known is None:
            known = self.maps[name] = SharedMap(name, self)
        return known

    def check_timers(self, at_event: bool) -> None:
        """Raises UserError if no timer can be set now: the current row has no key, the step has no `on_timer`
        function, or an event timer is set and rows have no event time.

        `at_event`: True for a timer of event time.
        """
        if self.broadcasting:
            raise UserError("a timer needs a key, and rows of the broadcast side have none")
        if self.spec.on_timer is None:
            raise UserError("a timer is set, but the step has no on_timer function", hint="process(..., on_timer=f)")
        if at_event and not self.timed:
            raise no_event_time("an event timer needs event time")

    def key_of(self, columns: Sequence[Array]) -> dict[str, Any]:
        """Returns the key of the first row, for errors."""
        return {field.name: column[0].as_py() for field, column in zip(self.keys, columns, strict=True)}

    def endless(self) -> UserError:
        """Returns the error for a key whose timers set further timers that are due at once, without end."""
        key = self.key_of(self.known.key_columns(pa.array([self.timers.over], pa.int32())))
        if self.watermark_ms == END_OF_TIME:
            what, hint = "after the end of the input", "set none when ctx.watermark is the end of time, 2**63 - 1"
        else:
            what, hint = "that are due at once", "set them to a later time than the one that fires"
        return UserError(f"{self.spec.name}: the key {key} has set {TIMERS_OF_A_KEY:,} timers {what}", hint=hint)

    def contents(self) -> Iterator[tuple[Any, str, str]]:
        """Yields (key as decoded from msgpack, name, value as JSON text)."""
        for name in self.values.namespaces():
            for stored, data in self.values.items(name):
                parts = parts_of(stored[2:])
                if len(parts) == 1:
                    yield parts[0], name, json_text(_decode(data))
                elif len(parts) == 2 and parts[1] is None:  # the head of a list or map, before its entries
                    yield parts[0], name, json_text(self._contained(_decode(data).code, name, stored[:-1]))

    def _contained(self, code: int, name: str, under: bytes) -> Any:
        """Returns the entries of a list or map. `code`: says which of the two it is. `name`: its name. `under`: the
        encoded key to which it belongs.
        """
        if code == _LIST:
            return PlainList(self.values, name).entries_at(head_key(under))
        return PlainMap(self.values, name).items_at(head_key(under))


class SharedMap:
    """The `BroadcastMap` of `ctx.broadcast(name)`: a map that all keys share. Only the function of the broadcast side
    may write to it; a write by another function raises UserError.
    """

    def __init__(self, name: str, state: FunctionState) -> None:
        self.stored: dict[bytes, bytes] = {}
        self._found: dict[Any, Any] = {}
        self._view = MappingProxyType(self._found)
        self._state, self._value = state, PlainValue(state.values, namespace_of(name))

    def get(self, key: Any, default: Any = None) -> Any:
        return self._found.get(key, default)

    def items(self) -> Mapping[Any, Any]:
        return self._view

    def put(self, key: Any, value: Any) -> None:
        self._check()
        data = self._value.encoded(key)
        if self._state.transaction is not None:
            self._state.transaction.note(self._put_back, key, data, self._found.get(key), self.stored.get(data))
        if value is None:
            self.stored.pop(data, None)
            self._found.pop(key, None)
        else:
            self.store(data, self._value.encoded(value))

    def delete(self, key: Any) -> None:
        self.put(key, None)

    def store(self, key: bytes, value: bytes) -> None:
        """Stores an entry whose key and value are encoded as in a checkpoint."""
        self.stored[key] = value
        self._found[hashable(_decode(key))] = _decode(value)

    def _put_back(self, key: Any, data: bytes, value: Any, stored: bytes | None) -> None:
        if stored is None:
            self.stored.pop(data, None)
            self._found.pop(key, None)
        else:
            self.stored[data], self._found[key] = stored, value

    def _check(self) -> None:
        if not self._state.broadcasting:
            raise UserError(
                "a broadcast map can be written only by the function of the broadcast side",
                hint="the map must be equal in all subtasks; keep values of a key in ctx.state",
            )


class FunctionCaller(ABC):
    """Calls the user's functions: once for each row (`RowCaller`) or once for each batch (`BatchCaller`).

    `emit`: called with result rows, their event times, and the input batch if these are its last results.
    `emit_side`: called with the name of an output branch, rows, and their event times.
    """

    def __init__(
        self,
        state: FunctionState,
        emit: Callable[[pa.RecordBatch, Array | None, Batch | None], None],
        emit_side: Callable[[str, pa.RecordBatch, Array | None], None],
    ) -> None:
        self._state, self._emit, self._emit_side = state, emit, emit_side
        self._spec = state.spec
        self.downstream_error: Exception | None = None  # the error of a later step to which rows were emitted
        self._once: OnceJudge | None = None  # the judge of the tools that the function calls
        self._outer: Any = None  # the judge around it
        self._kept = 0
        self._failed_at: int | None = None
        self._cannot_undo = False  # True if results of the failed row were emitted already
        self.careful = False  # True if the calls of timers between rows are kept one by one, since a call has failed

    def rows(self, function: Callable[..., Any], side: Side, batch: Batch) -> None:
        """Calls the function with the rows of a batch of one input.

        If a call fails, all changes since the last `keep` are undone. The rows since then are processed again, in
        smaller batches, and the row that failed is set apart. Raises the error if rows cannot have caused it, or if
        `on_error` is "fail".
        """
        transaction = self._state.transaction
        if transaction is None:
            self._call(function, side, batch)
            return
        start, size, calls = 0, batch.num_rows, 0
        piece, self.careful = batch, False
        # `reached`: failed calls have got the rows before it
        once, attempts, reached = (OnceJudge(present_judge()), 0, 0)
        while start < batch.num_rows:
            self._kept, self._failed_at, self._cannot_undo = 0, None, False
            if start >= reached:
                attempts = 0
            once.begin(attempts)
            try:
                self.call_once(once, self._call, function, side, piece)
                start, size = start + piece.num_rows, 2 * size
            except Exception as error:
                attempts += 1
                reached = max(reached, start + (piece.num_rows if self._failed_at is None else self._failed_at + 1))
                transaction.undo()
                self._clear()
                if error is self.downstream_error or self._cannot_undo or not self._state.bad.are_at_fault(error):
                    raise
                start, left = start + self._kept, piece.num_rows - self._kept
                retried, self.careful = self.careful or not self._state.interleaves, self._state.interleaves
                calls += retried
                if not retried:
                    size = left  # it may be the call of a timer that failed
                elif left == 1 or (calls >= CALLS and self._failed_at is None):
                    self._set_apart(side, piece.slice(self._kept, left), error)
                    start += left
                else:
                    size = max(1, left // 2 if self._failed_at is None else self._failed_at - self._kept)
            if start < batch.num_rows:
                piece = of_selected(batch, batch.taken()).slice(start, size)

    def call_once(self, once: OnceJudge, call: Callable[..., None], *given: Any) -> None:
        """Calls the function by `call(*given)`, for rows or timers that it may get again after a failure. It calls no tool
        then that must not be called twice, if an earlier call for them has called it.
        """
        self._outer, self._once = JUDGE.get(), once
        before = JUDGE.set(once)
        try:
            call(*given)
            once.forget()
        finally:
            self._once = None
            JUDGE.reset(before)

    def _outside(self, emit: Callable[..., None], *given: Any) -> None:
        """Emits results by calling `emit(*given)`. The calls of later steps are not those of this function."""
        if self._once is None:
            emit(*given)
            return
        before = JUDGE.set(self._outer)
        try:
            emit(*given)
        finally:
            JUDGE.reset(before)

    def _set_apart(self, side: Side, rows: Batch, error: Exception) -> None:
        state, given = self._state, dict.fromkeys(range(rows.num_rows), error)
        if not side.keys and state.subtask:
            state.bad.count += len(given)  # the first subtask has the same broadcast row, and reports it
            return
        state.bad.set_apart(rows, given)
        if state.bad.nulls:
            self._emit_rows(nulls_of(self._spec.schema, rows.num_rows), state.times_of(rows.data, side), rows)

    def set_timer_apart(self, keys: Sequence[Array], timer: Mapping[str, Any], error: Exception) -> None:
        """Writes a timer whose call has failed to the dead letters. The timer counts as fired: it is not called
        again.
        """
        facts = {name: pa.array([value]) for name, value in timer.items()}
        columns = dict(zip(self._state.keys.names, keys, strict=True)) | facts
        self._state.bad.set_apart(Batch(pa.RecordBatch.from_pydict(columns)), {0: error})

    def emit_or_hold(self, emit: Callable[..., None], rows: int, *given: Any) -> None:
        """Emits results by calling `emit(*given)`: at once if calls cannot be undone, otherwise when `keep` is
        called. `rows`: the number of rows.
        """
        if self._state.transaction is None:
            emit(*given)
        else:
            self._state.transaction.hold(emit, rows, *given)

    def keep(self) -> None:
        """Makes the changes of the calls so far final, and emits their results."""
        if self._state.transaction is not None:
            for emit, given in self._state.transaction.keep():
                emit(*given)

    @abstractmethod
    def _call(self, function: Callable[..., Any], side: Side, batch: Batch) -> None:
        """Calls the function with these rows, keeps its changes, and emits its results. If it raises, it has set
        `_kept` to the number of rows whose results were kept, and `_failed_at` to the row that failed, or to None if
        that is unknown.
        """

    @abstractmethod
    def _clear(self) -> None:
        """Drops the results and writes of calls that were undone."""

    @abstractmethod
    def fire(self, kind: int, limit: int, passed: int) -> None:
        """Fires all timers of the kind with time <= limit, in order of time. `passed`: the last watermark that was
        passed on; no result is below it.
        """

    def _emit_rows(self, data: pa.RecordBatch, times: Array | None, batch: Batch | None) -> None:
        try:
            self._outside(self._emit, data, times, batch)
        except Exception as error:
            self.downstream_error = error
            raise

    def _emit_to_branch(self, name: str, data: pa.RecordBatch, times: Array | None) -> None:
        try:
            self._outside(self._emit_side, name, data, times)
        except Exception as error:
            self.downstream_error = error
            raise

    def _failed(self, error: Exception, where: str) -> UserError:
        """Returns the error for a user's function that has raised. `where`: the row or the timer. An error that a
        later step raised while rows were emitted is raised again, unchanged.
        """
        if error is self.downstream_error:
            raise error
        if isinstance(error, UserError):
            said = error.message.startswith(self._spec.name)
            return UserError(error.message if said else f"{self._spec.name}: {error.message}; {where}", hint=error.hint)
        return UserError(f"{self._spec.name}: {type(error).__name__}: {error}; {where}")

    def _keys_of(self, side: Side, batch: Batch, data: pa.RecordBatch) -> tuple[list[Array], pa.UInt64Array]:
        columns = [data.column(index) for index in side.keys]
        hashes = batch.hashes
        if hashes is None:
            hashes = hash_columns(columns)
        elif batch.selection is not None:
            hashes = hashes.take(batch.selection)
        return columns, hashes

    def unknown_side(self, name: Any) -> UserError:
        """Returns the error for `ctx.side(name)` with a name that is not in sides=."""
        there = ", ".join(self._spec.sides) or "none"
        return UserError(f"there is no side {name!r}", hint=f"add it to sides=, which has {there}")


def head_key(under: bytes) -> bytes:
    """Returns the key under which the head entry of a list or map is stored. The head entry says that the list or map
    exists, and which of the two it is. `under`: the encoded key to which the list or map belongs.
    """
    return state_key(None, scope=under)


def parts_of(data: bytes) -> list[Any]:
    """Decodes a key of state: [key] for a value, [key, null] for the head of a list or map, [key, null, index or
    field] for one of its entries. Raises CorruptCheckpoint.
    """
    for count in (1, 2, 3):
        try:
            parts: list[Any] = _decode(bytes([0x90 + count]) + data)
        except UNREADABLE:
            continue
        return parts
    raise CorruptCheckpoint(f"{data[:40]!r} is not a key of state")


def plain_keys(columns: Sequence[Array]) -> list[Array]:
    """Returns the key columns with times as integers, and decimals as bytes."""
    return [c.view(plain) if (plain := plain_key(c.type)) is not None else c for c in columns]


def plain_key(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type to which `plain_keys` converts a column of this type, or None if the column is not converted."""
    if pa.types.is_decimal(kind):
        return pa.binary(kind.byte_width)
    return _INTEGERS[kind.bit_width] if pa.types.is_temporal(kind) else None


def key_values(columns: Sequence[Array]) -> list[Any]:
    """Returns the keys as Python values: the value of the key column, or a tuple if there are several key columns."""
    if len(columns) == 1:
        values: list[Any] = columns[0].to_pylist()
        return values
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def namespace_of(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise UserError(f"{name!r} cannot be the name of state", hint='give a text: ctx.state("seen")')
    return name


def kind_of(kind: str) -> int:
    if kind not in _KINDS:
        raise UserError(f"there is no kind of timer {kind!r}", hint='the kinds are "event" and "processing"')
    return _KINDS[kind]


def no_key() -> UserError:
    return UserError(
        "state and timers need a key, and rows of the broadcast side have none", hint="use ctx.broadcast(name)"
    )
