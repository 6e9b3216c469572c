"""Process functions over batches: the function is called once for a batch, `on_timer` once for a group of due timers."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.border import validate
from sabot._cython.flow.timers import EVENT, PROCESSING
from sabot._cython.groups.partition import hash_columns
from sabot._cython.text.records import decode_values, encode_values, key_rows
from sabot.api.functions import checked_ms
from sabot.api.words import not_arrow
from sabot.base.arrays import exact_cast
from sabot.engine.calls.judging import OnceJudge, present_judge
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME
from sabot.engine.operators.functions.state import (
    KIND_NAMES,
    NO_SLOTS,
    FunctionCaller,
    FunctionState,
    SharedMap,
    Side,
    kind_of,
    no_key,
    plain_keys,
)
from sabot.engine.operators.rows.bad import batch_place
from sabot.engine.state.base import StateBackend
from sabot.errors import UserError

Array: TypeAlias = pa.Array

_TIMER_ROWS = 65_536  # the most timers that fire in one call


class BatchCaller(FunctionCaller):
    """Calls the function once for each batch, and `on_timer` once for each group of due timers."""

    def __init__(self, state: FunctionState, *ways: Any) -> None:
        super().__init__(state, *ways)
        self._ctx = _BatchContext(state, self)
        self._slots: list[pa.Int32Array] = []  # the slots of keys that this call asked for
        # the keys of the call: as the function gets them, as columns, and their hashes
        self._call_keys: tuple[Any, list[Array], pa.UInt64Array] | None = None
        self._call_rows: list[bytes] | None = None
        self._stamps: Array | None = None  # the event times of the call's rows or timers
        self._count = 0  # the number of rows or timers of the call
        self._pending: list[
            tuple[Callable[..., Any], tuple[Any, ...]]
        ] = []  # changes of timers and values that are made when the call succeeds

    def _call(self, function: Callable[..., Any], side: Side, batch: Batch) -> None:
        state, ctx, data = self._state, self._ctx, batch.taken()
        if not data.num_rows:
            return
        times = state.times_of(data, side)
        latest = pc.max(times).as_py() if times is not None and side.time >= 0 else START_OF_TIME
        state.latest_ms = max(state.latest_ms, latest)
        keys = None
        if side.keys:
            columns, hashes = self._keys_of(side, batch, data)
            keys = self._remember_keys(columns, hashes)
        ctx.timestamp, ctx.kind = times, ""
        self._stamps, self._count = times, data.num_rows
        state.set_time(max(latest, START_OF_TIME if state.watermark_ms is None else state.watermark_ms))
        state.broadcasting = keys is None
        try:
            given = function(keys, data.select(side.names), ctx)
            made = None if given is None else self._results_of(given)
            self._apply_pending()
        except Exception as error:
            raise self._failed(error, batch_place(batch)) from error
        finally:
            state.broadcasting = False
            self._end_call()
        if made is not None:
            self.emit_or_hold(self._emit_rows, made[0].num_rows, *made, batch)
        self.keep()

    def _clear(self) -> None:
        self._pending.clear()
        self._ctx.forget()

    def apply_or_hold(self, change: Callable[..., Any], *given: Any) -> None:
        """Calls `change(*given)`, which changes timers or values. If calls can be undone, the change is made when the
        current call has succeeded; otherwise at once.
        """
        if self._state.transaction is None:
            change(*given)
        else:
            self._pending.append((change, given))

    def _apply_pending(self) -> None:
        for change, given in self._pending:
            change(*given)
        self._pending.clear()

    def fire(self, kind: int, limit: int, passed: int) -> None:
        state, timers = self._state, self._state.timers
        ended = kind == EVENT and limit == END_OF_TIME
        self._ctx.kind = KIND_NAMES[kind]
        once = OnceJudge(present_judge())
        while True:
            slots, at = timers.take(limit, kind, _TIMER_ROWS)
            if not len(slots):
                break
            # The keys are read before the first call: the end of a call frees the slots of keys without timers.
            pieces = [(state.known.key_columns(slots), state.known.hashes(slots), at, 0)]
            while pieces:
                columns, hashes, at, attempts = pieces.pop()
                timers.floor(limit if ended else at[0].as_py())
                once.begin(attempts)
                try:
                    self.call_once(once, self._fire, kind, columns, hashes, at, passed)
                except Exception as error:
                    if state.transaction is None or error is self.downstream_error or not state.bad.are_at_fault(error):
                        raise
                    state.transaction.undo()
                    self._clear()
                    if len(at) == 1:
                        timer = {"at": at[0].as_py(), "name": "", "kind": KIND_NAMES[kind]}
                        self.set_timer_apart(columns, timer, error)
                        continue
                    half = len(at) // 2
                    for start, size in ((half, len(at) - half), (0, half)):
                        parts = [column.slice(start, size) for column in columns]
                        pieces.append((parts, hashes.slice(start, size), at.slice(start, size), attempts + 1))

    def _fire(self, kind: int, columns: list[Array], hashes: pa.UInt64Array, at: pa.Int64Array, passed: int) -> None:
        """Calls `on_timer` once for a group of due timers of one kind, and emits its result.

        `columns`, `hashes`: the keys of the timers, and their hashes. `at`: the times of the timers. `passed`: as in
        `fire`.
        """
        state, ctx, function = self._state, self._ctx, self._spec.on_timer
        assert function is not None
        keys = self._remember_keys(columns, hashes)
        stamps = pa.array(np.maximum(at.to_numpy(), passed) if kind == EVENT else np.full(len(at), passed))
        ctx.timestamp = at if kind == EVENT else (stamps if state.timed else None)
        self._stamps, self._count = stamps, len(at)
        state.set_time(stamps[-1].as_py())
        try:
            given = function(keys, at, ctx)
            made = None if given is None else self._results_of(given)
            self._apply_pending()
            if state.timers.over >= 0:
                raise state.endless()
        except Exception as error:
            where = f"while {len(at)} timers fired, the first for the key {state.key_of(columns)}"
            raise self._failed(error, where) from error
        self._end_call()
        if made is not None:
            self.emit_or_hold(self._emit_rows, made[0].num_rows, *made, None)
        self.keep()

    def _remember_keys(self, columns: list[Array], hashes: pa.UInt64Array) -> Array:
        """Stores the keys of the current call, and returns them as the function gets them: an array, or a struct
        array if there are several key columns.
        """
        names = self._state.keys.names
        keys = columns[0] if len(columns) == 1 else pa.StructArray.from_arrays(columns, names)
        self._call_keys, self._call_rows = (keys, columns, hashes), None
        return keys

    def _end_call(self) -> None:
        """Drops the keys of the call that has ended, and frees the slots of keys that have no timer."""
        slots, self._slots, self._call_keys, self._call_rows = self._slots, [], None, None
        self._state.settle(pa.concat_arrays(slots) if slots else NO_SLOTS)

    def slots_of(self, keys: Any) -> pa.Int32Array:
        slots = self._state.slots(*self._columns_of(keys))
        self._slots.append(slots)
        return slots

    def rows_of(self, keys: Any) -> list[bytes]:
        """Returns the keys as they are encoded in the state. `keys`: the object that the function got, or other keys
        that it has made. Raises UserError if these have another type.
        """
        if self._call_keys is not None and keys is self._call_keys[0]:
            if self._call_rows is None:
                self._call_rows = key_rows(plain_keys(self._call_keys[1]), self._call_keys[2])
            return self._call_rows
        columns, hashes = self._columns_of(keys)
        return key_rows(plain_keys(columns), hashes)

    def _columns_of(self, keys: Any) -> tuple[list[Array], pa.UInt64Array]:
        if self._state.broadcasting:
            raise no_key()
        if self._call_keys is not None and keys is self._call_keys[0]:
            return self._call_keys[1], self._call_keys[2]
        fields = list(self._state.keys)
        given = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
        wanted = fields[0].type if len(fields) == 1 else pa.struct(fields)
        try:
            if not isinstance(given, pa.Array):
                given = pa.array(given, wanted)
            columns = [given.field(field.name) for field in fields] if len(fields) > 1 else [given]
            columns = [c if c.type == f.type else pc.cast(c, f.type) for c, f in zip(columns, fields, strict=True)]
        except (pa.ArrowException, TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"the keys are not an array of {wanted}: {error}", hint="use the keys that the function got"
            ) from error
        return columns, hash_columns(columns)

    def side(self, name: str, data: Any, times: Any) -> None:
        if name not in self._spec.sides:
            raise self.unknown_side(name)
        made = self._as_columns(data, self._spec.sides[name], f"side {name!r}")
        stamps = self._times_of(made, times, "ctx.side(name, data, times)")
        self.emit_or_hold(self._emit_to_branch, made.num_rows, name, made, stamps)

    def _results_of(self, given: Any) -> tuple[pa.RecordBatch, Array | None]:
        """Returns the result of a call as columns of the output schema, and the event times, or None without event
        time. `given`: data, or (data, times).
        """
        data, times = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        made = self._as_columns(data, self._spec.schema, "schema")
        return made, self._times_of(made, times, "return data, times")

    def _times_of(self, made: pa.RecordBatch, times: Any, how: str) -> Array | None:
        """Returns the event times of a result, or None if the step has no event time.

        `times`: the times that the function gave, or None: then each row has the time of the input row in the same
        position. `how`: the call by which a function gives event times, for the error that names it. Raises UserError
        if the number of rows differs, or if `times` are not ms.
        """
        if not self._state.timed:
            return None
        if times is None:
            if made.num_rows != self._count:
                raise UserError(
                    f"it returned {made.num_rows} rows for {self._count}, so their event times are unknown",
                    hint=f"give their event times: {how}; ctx.timestamp has those of the rows that the function got",
                )
            return self._stamps
        try:
            times = times.combine_chunks() if isinstance(times, pa.ChunkedArray) else times
            times = times if isinstance(times, pa.Array) else pa.array(times, pa.int64())
            times = times if times.type == pa.int64() else pc.cast(times, pa.int64())
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise UserError(f"the event times are not int64: {error}", hint="give ms since 1970") from error
        if len(times) != made.num_rows or times.null_count:
            raise UserError(f"it returned {len(times) - times.null_count} event times for {made.num_rows} rows")
        return times

    def _as_columns(self, given: Any, schema: pa.Schema, what: str) -> pa.RecordBatch:
        """Returns the result as columns of `schema`. `what`: the name of the schema in errors. Raises UserError if
        the result is not Arrow data or has other columns.
        """
        try:
            made = normalise(given)
            validate(made)
        except (TypeError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise not_arrow("it", given, error) from error
        if made.schema.equals(schema):
            return made.replace_schema_metadata(None)
        have = made.schema.names
        wrong = [f"no column {name!r}" for name in schema.names if name not in have]
        wrong += [f"an extra column {name!r}" for name in have if name not in schema.names]
        if wrong or len(have) != len(schema):
            reason = "; ".join(wrong) or "two columns with one name"
            raise UserError(f"the columns that it returned differ from its {what}: {reason}")
        columns = []
        for field in schema:
            column = made.column(field.name)
            try:
                columns.append(column if column.type == field.type else exact_cast(column, field.type))
            except pa.ArrowException as error:
                reason = f"{field.name!r} is {column.type}, not {field.type}: {error}"
                raise UserError(
                    f"a column that it returned differs from its {what}: {reason}", hint="cast it"
                ) from error
        return pa.RecordBatch.from_arrays(columns, schema=schema)


class _BatchContext:
    """The `BatchProcessContext` that batch functions get. All calls of a subtask share one object."""

    __slots__ = ("_caller", "_kept", "_state", "kind", "timers", "timestamp")

    def __init__(self, state: FunctionState, caller: BatchCaller) -> None:
        self._state, self._caller = state, caller
        self.timestamp: Any = None
        self.kind = ""
        self._kept: dict[str, _BatchState] = {}
        self.timers = _BatchTimers(state, caller)

    @property
    def watermark(self) -> int | None:
        return self._state.watermark_ms

    def now(self) -> int:
        return self._state.clock_ms()

    def state(self, name: str = "state") -> "_BatchState":
        known = self._kept.get(name)
        if known is None:
            known = self._kept[name] = _BatchState(self._state.values, self._caller, name)
        return known

    def forget(self) -> None:
        """Drops the writes of a call that has failed."""
        for each in self._kept.values():
            each.forget()

    def side(self, name: str, data: Any, times: Any = None) -> None:
        self._caller.side(name, data, times)

    def broadcast(self, name: str = "broadcast") -> "SharedMap":
        return self._state.map(name)


class _BatchState:
    """The `BatchState` of `ctx.state(name)`: reads and writes the values of keys. If calls can be undone, writes are
    buffered until the call has succeeded.
    """

    __slots__ = ("_caller", "_held", "_values", "name")

    def __init__(self, values: StateBackend, caller: BatchCaller, name: str) -> None:
        self._values, self._caller, self.name = values, caller, caller._state.registered(name)
        self._held: list[tuple[list[bytes], Sequence[bytes | None]]] = []  # the writes of this call

    def get_many(self, keys: Any) -> Array:
        rows = self._caller.rows_of(keys)
        values = self._values.read_many(self.name, rows)
        for held_rows, held in self._held:
            now = dict(zip(held_rows, held, strict=True))
            values = [now.get(row, value) for row, value in zip(rows, values, strict=True)]
        return decode_values(values)

    def put_many(self, keys: Any, values: Any) -> None:
        if len(keys) != len(values):
            raise UserError(f"state {self.name!r}: {len(keys)} keys for {len(values)} values")
        try:
            encoded = encode_values(values)
        except TypeError as error:
            raise UserError(f"state {self.name!r}: {error}") from error
        self._hold(self._caller.rows_of(keys), encoded)

    def delete_many(self, keys: Any) -> None:
        rows = self._caller.rows_of(keys)
        self._hold(rows, [None] * len(rows))

    def _hold(self, rows: list[bytes], values: Sequence[bytes | None]) -> None:
        self._held.append((rows, values))
        self._caller.apply_or_hold(self._write_held)

    def _write_held(self) -> None:
        rows, values = self._held.pop(0)
        self._values.write_many(self.name, rows, values)

    def forget(self) -> None:
        """Drops the writes of a call that has failed."""
        self._held.clear()


class _BatchTimers:
    """The `BatchTimers` of `ctx.timers`: sets and deletes timers of keys."""

    __slots__ = ("_caller", "_state")

    def __init__(self, state: FunctionState, caller: BatchCaller) -> None:
        self._state, self._caller = state, caller

    def event_many(self, keys: Any, at: Any) -> None:
        self._state.check_timers(True)
        self._caller.apply_or_hold(
            self._state.timers.add, self._caller.slots_of(keys), _times_for(at, len(keys)), EVENT
        )

    def processing_many(self, keys: Any, at: Any) -> None:
        self._state.check_timers(False)
        self._caller.apply_or_hold(
            self._state.timers.add, self._caller.slots_of(keys), _times_for(at, len(keys)), PROCESSING
        )

    def delete_many(self, keys: Any, at: Any, *, kind: str = "event") -> None:
        self._state.check_timers(False)
        self._caller.apply_or_hold(
            self._state.timers.delete, self._caller.slots_of(keys), _times_for(at, len(keys)), kind_of(kind)
        )


def _times_for(at: Any, rows: int) -> Array:
    """Returns times as int64, one for each of `rows` keys. Raises UserError for other types, nulls and other lengths."""
    if isinstance(at, int):
        return pa.array(np.full(rows, checked_ms(at), np.int64))
    try:
        at = at.combine_chunks() if isinstance(at, pa.ChunkedArray) else at
        at = at if isinstance(at, pa.Array) else pa.array(at)
        at = at if at.type == pa.int64() else pc.cast(at, pa.int64())
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise UserError(
            f"timers cannot be set to {at!r:.80}: {error}", hint="give an int64 array of ms, one for each key"
        ) from error
    if len(at) != rows or at.null_count:
        raise UserError(f"{len(at) - at.null_count} times for the timers of {rows} keys")
    return at
