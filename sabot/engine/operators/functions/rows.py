"""Process functions over rows: the function is called once for each row, `on_timer` once for each timer."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.timers import EVENT, PROCESSING
from sabot._cython.text.records import key_rows
from sabot.api.functions import Row, Timer, checked_ms
from sabot.base.arrays import batch_of_rows, python_rows
from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME
from sabot.engine.operators.functions.state import (
    KIND_NAMES,
    NO_SLOTS,
    FunctionCaller,
    FunctionState,
    SharedMap,
    Side,
    head_key,
    key_values,
    kind_of,
    no_key,
    plain_keys,
)
from sabot.engine.operators.functions.transaction import HELD_ROWS
from sabot.engine.operators.rows.bad import row_place
from sabot.engine.state.values import PlainList, PlainMap, PlainValue
from sabot.errors import UserError

Array: TypeAlias = pa.Array

_OUT_ROWS = 8192  # the number of rows that are gathered before they are emitted
_KNOWN_KEYS = 100_000  # the most keys that are remembered by slot, as Python objects
_AHEAD = 1024  # the number of keys that are looked up together when timers fire


class RowCaller(FunctionCaller):
    """Calls the function once for each row, and `on_timer` once for each timer."""

    def __init__(self, state: FunctionState, *ways: Any) -> None:
        super().__init__(state, *ways)
        self._ctx = _RowContext(state, self)
        self._out: list[Row] = []
        self._times: list[int] = []
        self.sides: dict[str, tuple[list[Row], list[Any]]] = {name: ([], []) for name in self._spec.sides}
        self._keys: list[Array] = []  # the key columns of the current rows
        self._hashes: Any = None
        self._slots: list[int] | None = None  # the slots of the current rows, when one was needed
        self._resolved = NO_SLOTS  # the same slots as an array
        self._found: dict[int, tuple[Any, bytes]] = {}  # by slot: the key, and its encoded form
        state.timer_state.forgotten = self._drop_found

    def _call(self, function: Callable[..., Any], side: Side, batch: Batch) -> None:
        state, ctx, data, transaction = self._state, self._ctx, batch.taken(), self._state.transaction
        count = data.num_rows
        if not count:
            return
        stamps = state.times_of(data, side)
        times: list[Any] = [None] * count if stamps is None else stamps.to_pylist()
        if side.time >= 0:
            state.latest_ms = max(state.latest_ms, max(times, default=START_OF_TIME))
        keys, stored = self._begin(side, batch, data)
        rows = python_rows(data.select(side.names), "process")
        expiry, floor = state.expiry, START_OF_TIME if state.watermark_ms is None else state.watermark_ms
        out, stamps, take, at = self._out, self._times, self._take, 0
        due = state.timers.next_slot if state.interleaves else None
        brought = START_OF_TIME if state.interleaves and state.timer_state.cold_rows else END_OF_TIME
        state.broadcasting = not side.keys
        ctx._slot = -1
        called = firing = False
        try:
            for at, (row, key, under, time) in enumerate(zip(rows, keys, stored, times, strict=True)):
                if due is not None and (time > brought or due(time, EVENT) is not None):
                    firing = True
                    if time > brought:
                        brought = self._bring_timers(at, time, times[-1], floor)
                    else:
                        self._fire_before(at, time, floor)
                    firing = False
                ctx.key, ctx.timestamp, ctx._state_key, ctx._at, ctx._time = key, time, under, at, time
                if expiry is not None:
                    expiry.now_ms = time if time > floor else floor
                made = function(row, ctx)
                if made is None:
                    continue
                if type(made) is dict:
                    out.append(made)
                    stamps.append(time)
                else:
                    take(made, time)
                if len(out) >= _OUT_ROWS:
                    self._flush(None)
                    if transaction is not None and transaction.rows >= HELD_ROWS:
                        self.keep()
                        self._kept = at + 1
            called = True
            self._flush(batch)
        except Exception as error:
            if firing:
                self._failed_at = None
                raise
            self._failed_at = None if called else at
            key = {name: rows[at][name] for name in (data.schema.names[i] for i in side.keys)}
            where = row_place(batch, at)
            raise self._failed(error, f"at the key {key}, {where}" if side.keys else where) from error
        finally:
            state.broadcasting = False
        self.keep()
        self._forget(self._resolved)

    def _clear(self) -> None:
        for rows, times in ((self._out, self._times), *self.sides.values()):
            rows.clear()
            times.clear()
        self._ctx.forget()
        self._forget(self._resolved)

    def _begin(self, side: Side, batch: Batch, data: pa.RecordBatch) -> tuple[list[Any], list[bytes]]:
        """Starts a batch. Returns the keys of its rows, as functions see them, and encoded as in the state."""
        self._slots, self._resolved = None, NO_SLOTS
        if not side.keys:
            return [None] * data.num_rows, [b""] * data.num_rows
        self._keys, self._hashes = self._keys_of(side, batch, data)
        return key_values(self._keys), key_rows(plain_keys(self._keys), self._hashes)

    def slot(self, ctx: "_RowContext") -> int:
        """Returns the slot of the current key: the key of the row or of the timer for which the function runs."""
        if ctx._slot >= 0:
            return ctx._slot
        slots = self._resolve() if self._slots is None else self._slots
        slot = slots[ctx._at]
        if len(self._found) < _KNOWN_KEYS:
            self._found[slot] = (ctx.key, ctx._state_key)
        return slot

    def _resolve(self) -> list[int]:
        """Finds the slots of the current rows, and returns them."""
        self._resolved = self._state.slots(self._keys, self._hashes)
        self._slots = self._resolved.to_pylist()
        return self._slots

    def fire(self, kind: int, limit: int, passed: int) -> None:
        self._fire(kind, limit, passed)
        self._flush(None)
        self.keep()
        self._forget(NO_SLOTS)

    def _fire_before(self, at: int, time: int, passed: int) -> None:
        """Fires the event timers in memory up to the time of row `at` of the current batch, before its call. No slot is
        freed, since the batch has them still. `passed`: the last watermark.
        """
        state = self._state
        if self.careful:
            self._flush(None)
            self.keep()
            self._kept = at
        if state.timer_state.is_held:
            state.timer_state.bring(EVENT, time)
        state.guard()
        try:
            self._fire(EVENT, time, passed, None if self.careful else at)
        finally:
            state.timers.guard(0)
        if self.careful:
            self._flush(None)
            self.keep()
        self._ctx._slot = -1

    def _bring_timers(self, at: int, time: int, last: int, passed: int) -> int:
        """Fires the event timers up to the time of row `at` of the current batch, in memory and on disk, and brings later
        ones into memory, as `KeysWithTimers.firing` does. Returns the time up to which they are in memory, at most
        `last`. The batch so far is kept, so that its slots can be freed.
        """
        state = self._state
        self._flush(None)
        self.keep()
        self._kept = at
        self._forget(self._resolved)  # before keys go to disk
        self._slots, self._resolved, self._ctx._slot = None, NO_SLOTS, -1
        state.guard()
        try:
            for limit in state.timer_state.firing(EVENT, time):
                self.fire(EVENT, limit, passed)
        finally:
            state.timers.guard(0)
        self._ctx._slot = -1
        return state.timer_state.bring_some(EVENT, time, last)

    def _fire(self, kind: int, limit: int, passed: int, before: int | None = None) -> None:
        """Fires timers as `fire` does, and keeps the results. `before`: the row of the current batch before which they
        fire, so that they are undone with the calls of the batch; None: each call is kept or undone by itself.
        """
        state, ctx, timers, function = self._state, self._ctx, self._state.timers, self._spec.on_timer
        assert function is not None
        transaction, word, ended = state.transaction, KIND_NAMES[kind], kind == EVENT and limit == END_OF_TIME
        out, new_timer = self._out, tuple.__new__  # Timer(...) takes twice as long
        while (due := timers.take_one(limit, kind)) is not None:
            slot, at, name = due
            if before is not None and transaction is not None:
                transaction.note(timers.set, slot, at, kind, name, *timers.removed_from)
            found = self._found.get(slot)
            ctx.key, ctx._state_key = self._look_up(slot, kind, limit) if found is None else found
            ctx._slot = slot
            time = (at if at > passed else passed) if kind == EVENT else passed
            ctx.timestamp = at if kind == EVENT else (passed if state.timed else None)
            ctx._time = time
            state.set_time(time)
            timers.floor(limit if ended else at)
            timer = new_timer(Timer, (at, name, word))
            count, sides = len(out), [len(rows) for rows, _ in self.sides.values()] if self.sides else ()
            try:
                made = function(timer, ctx)
                if timers.over >= 0:
                    raise state.endless()
                if made is not None:
                    self._take(made, time)
            except Exception as error:
                failed = self._failed(error, f"at the key {ctx.key!r}, as {timer} fired")
                failed.__cause__ = error
                if transaction is None or before is not None or self._cannot_undo or not state.bad.are_at_fault(failed):
                    raise failed from error
                transaction.undo()
                self._drop_results([count, *sides])
                self.set_timer_apart(
                    state.known.key_columns(pa.array([slot], pa.int32())),
                    {"at": at, "name": name, "kind": word},
                    failed,
                )
                continue
            if transaction is not None and before is None:
                transaction.keep_changes()
            if len(out) >= _OUT_ROWS:
                self._flush(None)
                if before is None:
                    self.keep()
                elif transaction is not None and transaction.rows >= HELD_ROWS:
                    self.keep()
                    self._kept = before

    def _drop_results(self, counts: list[int]) -> None:
        """Drops the results of a failed call. `counts`: the numbers of rows to keep, of the main output and of each
        side.
        """
        for count, (rows, times) in zip(counts, ((self._out, self._times), *self.sides.values()), strict=True):
            del rows[count:], times[count:]
        self._ctx.forget()

    def _look_up(self, slot: int, kind: int, limit: int) -> tuple[Any, bytes]:
        """Returns the key of a slot, and its encoded form. The keys of the timers that fire next are looked up in the
        same call.
        """
        if len(self._found) >= _KNOWN_KEYS:
            self._found.clear()
        soon = self._state.timers.soon(limit, kind, _AHEAD)
        slots = pa.concat_arrays([pa.array([slot], pa.int32()), soon])
        columns = self._state.known.key_columns(slots)
        stored = key_rows(plain_keys(columns), self._state.known.hashes(slots))
        self._found.update(zip(slots.to_pylist(), zip(key_values(columns), stored, strict=True), strict=True))
        return self._found[slot]

    def _forget(self, slots: pa.Int32Array) -> None:
        self._drop_found(self._state.settle(slots))

    def _drop_found(self, slots: pa.Int32Array) -> None:
        """Drops the cached keys of these slots, which may have been given to other keys."""
        if self._found:
            for slot in slots.to_pylist():
                self._found.pop(slot, None)

    def _take(self, made: Any, time: Any) -> None:
        """Collects the result of a call: a row, or an iterable of rows. Raises UserError for another value."""
        if isinstance(made, dict):
            self._out.append(made)
            self._times.append(time)
            return
        if isinstance(made, str | bytes) or not isinstance(made, Iterable):
            raise UserError(f"it returned {made!r}", hint="return a dict, an iterable of dicts, or None")
        most = _OUT_ROWS if self._state.transaction is None else HELD_ROWS
        for row in made:
            self._out.append(_copied(row))
            self._times.append(time)
            if len(self._out) >= most:
                self._flush(None)
                self.keep()
                self._cannot_undo = True
        self._cannot_undo = False

    def _flush(self, batch: Batch | None) -> None:
        """Emits the collected rows, or holds them if calls can be undone. `batch`: the input batch if it has ended,
        else None.
        """
        for name, (rows, times) in self.sides.items():
            if rows:
                data, stamps = self._as_columns(rows, times, self._spec.sides[name], f"side {name!r}")
                self.emit_or_hold(self._emit_to_branch, data.num_rows, name, data, stamps)
        if self._out:
            data, stamps = self._as_columns(self._out, self._times, self._spec.schema, "schema")
            self.emit_or_hold(self._emit_rows, data.num_rows, data, stamps, batch)

    def _as_columns(
        self, rows: list[Row], times: list[Any], schema: pa.Schema, what: str
    ) -> tuple[pa.RecordBatch, Array | None]:
        """Returns rows and their times as columns, and empties both lists. Raises UserError for rows that do not fit
        the schema.
        """
        name = self._spec.name
        try:
            made = batch_of_rows(rows, schema)
            extra = set().union(*rows) - set(schema.names)  # columns that a row lacks are null
            if extra:
                raise UserError(
                    f"{name}: a row has {sorted(map(str, extra))[0]!r}, which is not a column of its {what}",
                    hint=f"the columns are {', '.join(schema.names)}",
                )
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{name}: its rows do not fit the {what}: {type(error).__name__}: {error}",
                hint="return dicts whose values have the types of the schema",
            ) from error
        stamps = pa.array(times, pa.int64()) if self._state.timed else None
        rows.clear()
        times.clear()
        return made, stamps


def _copied(row: Any) -> Any:
    """Returns a copy of a row, because the function goes on, and may use the dict for its next row."""
    return row.copy() if type(row) is dict else row


class _RowContext:
    """The `ProcessContext` that row functions get. All calls of a subtask share one object."""

    __slots__ = ("_at", "_caller", "_kept", "_slot", "_state", "_state_key", "_time", "key", "timers", "timestamp")

    def __init__(self, state: FunctionState, caller: RowCaller) -> None:
        self._state, self._caller = state, caller
        self.key: Any = None
        self.timestamp: int | None = None
        self._state_key = b""  # the encoded key, or b"" if the row has none
        self._at = 0  # the index of the row
        self._time: int | None = None  # the event time of results
        self._slot = -1  # the slot of the key, or -1 if it is not known yet
        self._kept: dict[str, _KeyState] = {}
        self.timers = _RowTimers(self)

    @property
    def watermark(self) -> int | None:
        return self._state.watermark_ms

    def now(self) -> int:
        return self._state.clock_ms()

    def state(self, name: str = "state") -> "_KeyState":
        known = self._kept.get(name)
        if known is None:
            known = self._kept[name] = _KeyState(self, name)
        return known

    def list(self, name: str) -> "_KeyList":
        return _KeyList(self, name)

    def map(self, name: str) -> "_KeyMap":
        return _KeyMap(self, name)

    def side(self, name: str, row: Row) -> None:
        side = self._caller.sides.get(name)
        if side is None:
            raise self._caller.unknown_side(name)
        side[0].append(_copied(row))
        side[1].append(self._time)

    def broadcast(self, name: str = "broadcast") -> "SharedMap":
        return self._state.map(name)

    def forget(self) -> None:
        """Drops cached values after calls have been undone."""
        for each in self._kept.values():
            each.forget()

    def _key(self) -> bytes:
        if not self._state_key:
            raise no_key()
        return self._state_key


class _RowTimers:
    """The `Timers` of `ctx.timers`: sets and deletes timers of the current key."""

    __slots__ = ("_ctx",)

    def __init__(self, ctx: _RowContext) -> None:
        self._ctx = ctx

    def event(self, at_ms: int, name: str = "") -> None:
        state = self._ctx._state
        state.check_timers(True)
        slot = self._ctx._caller.slot(self._ctx)
        if state.timers.set(slot, checked_ms(at_ms), EVENT, name) and (transaction := state.transaction) is not None:
            if name:
                transaction.note(state.timers.unset, slot, at_ms, EVENT, name)
            else:
                transaction.set_events.append(slot)
                transaction.set_events.append(at_ms)

    def processing(self, at_ms: int, name: str = "") -> None:
        state = self._ctx._state
        state.check_timers(False)
        given = self._ctx._caller.slot(self._ctx), checked_ms(at_ms), PROCESSING, name
        if state.timers.set(*given) and state.transaction is not None:
            state.transaction.note(state.timers.unset, *given)

    def delete(self, at_ms: int, name: str = "", *, kind: str = "event") -> None:
        state = self._ctx._state
        state.check_timers(False)
        given = self._ctx._caller.slot(self._ctx), checked_ms(at_ms), kind_of(kind), name
        if state.timers.unset(*given) and state.transaction is not None:
            state.transaction.note(state.timers.set, *given, *state.timers.removed_from)


class _KeyState:
    """The `KeyState` of `ctx.state(name)`: one value of the current key. The value that was read before the first
    write of a call is logged, so that an undo can restore it.
    """

    __slots__ = ("_before", "_ctx", "_log", "_read", "_state_key", "_value", "_write", "namespace")

    def __init__(self, ctx: _RowContext, name: str) -> None:
        state = ctx._state
        self._ctx = ctx
        self.namespace = state.registered(name)
        self._value = PlainValue(state.call_values, self.namespace)
        self._log = None if state.transaction is None else state.transaction.log
        backend = state.call_values if self._log is None else state.values  # without the log, which `put` writes
        self._read, self._write = backend.read, backend.write
        self._state_key: bytes | None = None  # the key that was read last
        self._before: bytes | None = None  # its value

    def get(self) -> Any:
        self._state_key = under = self._ctx._state_key or self._ctx._key()
        self._before = data = self._read(self.namespace, under)
        return None if data is None else self._value.decoded(data)

    def put(self, value: Any) -> None:
        under = self._ctx._state_key or self._ctx._key()
        data = None if value is None else self._value.encoded(value)
        if self._log is not None:
            before = self._before if self._state_key is under else self._read(self.namespace, under)
            self._log.extend((self.namespace, under, before))
            self._state_key = None
        self._write(self.namespace, under, data)

    def delete(self) -> None:
        self.put(None)

    def forget(self) -> None:
        """Drops the cached value, which may have changed."""
        self._state_key = None


class _KeyList:
    """The `KeyList` of `ctx.list(name)`: a list of the current key."""

    __slots__ = ("_base", "_list")

    def __init__(self, ctx: _RowContext, name: str) -> None:
        self._list = PlainList(ctx._state.call_values, ctx._state.registered(name))
        self._base = head_key(ctx._key())

    def add(self, value: Any) -> None:
        self._list.add_at(self._base, value)

    def get(self) -> Any:
        return self._list.entries_at(self._base)

    def delete(self) -> None:
        self._list.delete_at(self._base)


class _KeyMap:
    """The `KeyMap` of `ctx.map(name)`: a map of the current key."""

    __slots__ = ("_base", "_map")

    def __init__(self, ctx: _RowContext, name: str) -> None:
        self._map = PlainMap(ctx._state.call_values, ctx._state.registered(name))
        self._base = head_key(ctx._key())

    def get(self, field: Any) -> Any:
        return self._map.value_at(self._base, field)

    def put(self, field: Any, value: Any) -> None:
        self._map.put_at(self._base, field, value)

    def items(self) -> dict[Any, Any]:
        return self._map.items_at(self._base)

    def delete(self, *field: Any) -> None:
        if field:
            self._map.remove_at(self._base, *field)
        else:
            self._map.delete_at(self._base)
