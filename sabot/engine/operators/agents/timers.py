"""Timers of a record agent's keys. Calls set them, and when they are due, the agent's `on_timer` is called.

    call succeeds ──▶ table ──── due ───▶ lanes ──── call of on_timer ends ──▶ removed
                      (TimerTable)        (at most _IN_LANES of them)

The table is that of process functions, which identifies keys by slots. Here a slot stands for the scope of a key that
has timers (`Row.scope`). A due timer moves from the table into the lane of its key, behind the rows that wait there.
A barrier saves the timers of the table and of the lanes, so a timer whose call has not ended fires again after a
restore. The thread that saves the table reads it piece by piece (`operators.cuts`), and the event loop first copies
what it is about to change.

Only the next timer is scheduled on the event loop, so pending timers cost only memory. While there are timers, the
clock is read at least every _LOOK_SECONDS, because it may be set, or be one that tests move by hand.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.flow.timers import PROCESSING, TimerTable
from sabot._cython.text.records import state_key
from sabot.api.context import TimerChange
from sabot.base.supervision import watch_call
from sabot.clock import Clock
from sabot.codecs.records import encode_json
from sabot.engine.operators.cuts import OpenCuts, OpenRows, Rows
from sabot.engine.operators.state_parts import Batches, PartsCut, read_batches
from sabot.engine.state.base import Cut
from sabot.errors import CorruptCheckpoint, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

DueTimer = tuple[bytes, int, str]
"""(the scope of the timer's key, its time in ms, its name)."""

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [("key", pa.binary()), ("at", pa.int64()), ("name", pa.string()), ("serial", pa.int64()), ("order", pa.int64())]
)
"""The columns of timers in a checkpoint. `key` is a scope, so it begins with the key group. `serial`, `order`: see
`TimerTable.rows_of`. Older checkpoints lack these two, and have the timers in the order in which they must be set.
"""

_OLDER = pa.schema(list(_SCHEMA)[:3])
_FILE = "timers"
_IN_LANES = 1024  # the most due timers whose calls have not ended; others stay in the table
_LOOK_SECONDS = 0.05
_UNSETTLED = 1024  # the number of timers that may be removed before slots of keys without timers are freed
_GROUP_BYTES = 2
_NEVER = 2**63 - 1
_NO_SLOTS = pa.nulls(0, pa.int32())

_decode = msgspec.msgpack.Decoder().decode


class KeyTimers:
    """The timers of one agent. The methods are called on the event loop; only the rows of a snapshot are read by
    another thread.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        put: Callable[[list[DueTimer]], None],
        broke: Callable[[str, SabotError], None],
    ) -> None:
        """`name`: the agent's name, for errors. `put`: puts due timers into lanes, after which `ended` must be called
        for each. After `fire_due_only` it is also called without timers, because a caller that waits for the last one may
        be able to continue. `broke`: called with errors of the engine.
        """
        self._what = f"the look for due timers of {name}"
        self._clock, self._loop, self._put = clock, asyncio.get_running_loop(), put
        self._look_safely = watch_call(self._look, self._what, partial(broke, self._what))
        self._table = TimerTable()
        self._cuts = OpenCuts()
        self._slots: dict[bytes, int] = {}  # by scope, of the keys that have timers
        self._scopes: list[bytes] = []  # by slot
        self._unused: list[int] = []  # slots
        self._unsettled = 0  # the timers that have left the table since slots were last freed
        self._in_lanes: set[DueTimer] = set()
        self._running = False
        self._last = _NEVER  # only timers up to this time fire
        self._looking: asyncio.TimerHandle | None = None
        self._looks_for = _NEVER  # the time of the timer that `_looking` waits for

    def __len__(self) -> int:
        return len(self._table) + len(self._in_lanes)

    # -- start and end ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the timers. Those that are due fire at once."""
        self._running, self._last = True, _NEVER
        self._arm()

    def stop(self) -> None:
        """Stops the timers: no more of them go into lanes."""
        self._running = False
        self._disarm()

    def fire_due_only(self) -> None:
        """Lets only those timers fire that are due by now, because no more input will come."""
        if self._running and self._last == _NEVER:
            self._last = self._now()
            self._disarm()
            self._arm()

    @property
    def left_to_fire(self) -> bool:
        """True if, after `fire_due_only`, some timers have not fired."""
        return self._running and (bool(self._in_lanes) or self._table.soonest(PROCESSING) <= self._last)

    def drop(self) -> None:
        """Removes all timers. A snapshot that is not saved yet still contains them."""
        self._table, self._slots, self._scopes, self._unused = TimerTable(), {}, [], []

    # -- from calls ---------------------------------------------------------------------------------------------------

    def apply(self, scope: bytes, changes: Iterable[TimerChange]) -> None:
        """Applies the timers that a successful call of this key has set and deleted."""
        table, soonest = self._table, _NEVER
        with self._cuts.changing:
            if scope in self._slots:
                self._note(self._slots[scope])
            for is_set, at, name in changes:
                timer = (scope, at, name)
                if not is_set:
                    if timer in self._in_lanes:
                        self._in_lanes.remove(timer)
                    elif (slot := self._slots.get(scope)) is not None:
                        self._unsettled += table.unset(slot, at, PROCESSING, name)
                elif timer not in self._in_lanes:
                    table.set(self._slot(scope), at, PROCESSING, name)
                    soonest = min(soonest, at)
            if self._unsettled >= _UNSETTLED:
                self._free_slots()
        if soonest < self._looks_for:
            self._arm()

    def is_set(self, timer: DueTimer) -> bool:
        """Returns True if a timer that waits in a lane still exists, so that its call must be made."""
        return timer in self._in_lanes

    def ended(self, timer: DueTimer) -> None:
        """Removes a timer that was in a lane, when its call has ended. The changes that the call has made are applied
        afterwards, so the call may set an equal timer.
        """
        self._in_lanes.discard(timer)
        if self._looking is None and 2 * len(self._in_lanes) <= _IN_LANES:
            self._arm()

    def _slot(self, scope: bytes) -> int:
        slot = self._slots.get(scope)
        if slot is None:
            if self._unused:
                slot = self._unused.pop()
                self._note(slot)
                self._scopes[slot] = scope
            else:
                slot = len(self._scopes)
                self._scopes.append(scope)
            self._slots[scope] = slot
        return slot

    def _note(self, slot: int) -> None:
        """Prepares the timers of a slot for a change: copies them if a snapshot is not saved yet."""
        if self._cuts.holds():
            self._cuts.note(pa.array([slot], pa.int32()))

    def _free_slots(self) -> None:
        """Frees the slots of keys that have no timers any more."""
        self._unsettled = 0
        for slot in self._table.vacant(_NO_SLOTS).to_pylist():
            del self._slots[self._scopes[slot]]
            self._scopes[slot] = b""
            self._unused.append(slot)

    # -- the clock ----------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._clock.time() * 1000)

    def _arm(self) -> None:
        """Schedules `_look` for the time of the next timer."""
        if not self._running:
            return
        self._disarm()
        self._looks_for = soonest = self._table.soonest(PROCESSING)
        if soonest <= self._last and soonest != _NEVER:
            seconds = min(max(0.0, (soonest - self._now()) / 1000), _LOOK_SECONDS)
            self._looking = self._loop.call_later(seconds, self._look_safely)

    def _disarm(self) -> None:
        self._looks_for = _NEVER
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        """Puts due timers into lanes, up to the limit."""
        self._looking = None
        in_lanes, limit = self._in_lanes, min(self._now(), self._last)
        with self._cuts.changing:
            due: list[DueTimer] = []
            for slot, at, name in self._taken(limit):
                timer = (self._scopes[slot], at, name)
                in_lanes.add(timer)
                due.append(timer)
            self._unsettled += len(due)
            if self._unsettled >= _UNSETTLED:
                self._free_slots()
        if len(in_lanes) < _IN_LANES:
            self._arm()
        else:
            self._looks_for = -_NEVER  # no timer that is set meanwhile schedules `_look`, because `ended` does
        if due or self._last != _NEVER:
            self._put(due)

    def _taken(self, limit: int) -> Iterator[tuple[int, int, str]]:
        """Removes due timers from the table, as long as the lanes have room, and yields them."""
        table, noted = self._table, set[int]()
        is_read = self._cuts.holds()
        if is_read:  # notes most of the slots in one call
            soon = table.soon(limit, PROCESSING, _IN_LANES)
            self._cuts.note(soon)
            noted.update(soon.to_pylist())
        while len(self._in_lanes) < _IN_LANES:
            if is_read and (slot := table.next_slot(limit, PROCESSING)) is not None and slot not in noted:
                self._note(slot)
            taken = table.take_one(limit, PROCESSING)
            if taken is None:
                return
            yield taken

    # -- barriers -----------------------------------------------------------------------------------------------------

    def cut(self) -> Cut | None:
        """Returns a snapshot of all timers, or None if there are none. The thread that saves it reads the timers."""
        if not len(self):
            return None
        due = sorted(self._in_lanes, key=_time)
        waiting = self._cuts.open(partial(_rows_of, self._table, self._scopes, len(due)), len(self._scopes))
        return PartsCut({_FILE: Batches(_SCHEMA, partial(_rows, due, waiting), partial(self._cuts.over, [waiting]))})

    def load(self, directory: Path) -> None:
        """Loads the timers of a snapshot that was saved in the directory. Called before `start`. Raises
        CorruptCheckpoint.
        """
        for batch in _checked(directory):
            slots = pa.array([self._slot(scope) for scope in batch.column(0).to_pylist()], pa.int32())
            kinds = pa.array(np.full(batch.num_rows, PROCESSING, np.int8))
            _, at, name, serial, order = batch.columns
            columns = [slots, at, kinds, name, serial, order]
            names = ["slot", "at", "kind", "name", "serial", "order"]
            try:
                self._table.put_back(slots, pa.RecordBatch.from_arrays(columns, names=names))
            except ValueError as error:
                raise CorruptCheckpoint(f"{directory}: the timers cannot be restored: {error}") from error

    def statistics(self) -> "ToldStep":
        """Returns the number of timers, with those in lanes, and the number of timers that have fired."""
        return {"timers": len(self), "timers_fired": self._table.statistics()["fired"] - len(self._in_lanes)}


def _time(timer: DueTimer) -> int:
    return timer[1]


def _rows_of(table: TimerTable, scopes: Sequence[bytes], first: int, slots: pa.Int32Array) -> Rows:
    """Returns the timers of these slots. `first`: the number of timers that are saved before them."""
    found = table.rows_of(slots)
    slot, at, _, name, serial, order = found.take(
        pc.sort_indices(found, [("serial", "ascending"), ("order", "ascending")])
    ).columns
    keys = pa.array([scopes[each] for each in slot.to_pylist()], pa.binary())
    columns = [keys, at, name, pc.add(serial, first), pc.add(order, first)]
    return [pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)]


def _rows(due: Sequence[DueTimer], waiting: OpenRows) -> Iterator[pa.RecordBatch]:
    """Yields the timers in lanes, which come first, then those of the table."""
    if due:
        places = range(1, len(due) + 1)
        columns = [
            pa.array(values, field.type)
            for values, field in zip([*zip(*due, strict=True), places, places], _SCHEMA, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
    for (rows,) in waiting.read():
        yield rows


def _checked(directory: Path) -> Iterator[pa.RecordBatch]:
    """Yields the timers of a checkpoint. Raises CorruptCheckpoint for other columns and for keys that are not valid."""
    place = 0
    for batch in read_batches(directory, _FILE):
        if batch.schema.equals(_OLDER):
            places = pa.array(np.arange(place + 1, place + batch.num_rows + 1))
            place += batch.num_rows
            batch = pa.RecordBatch.from_arrays([*batch.columns, places, places], schema=_SCHEMA)
        if not batch.schema.equals(_SCHEMA) or any(column.null_count for column in batch.columns):
            raise CorruptCheckpoint(f"{directory}: these are not the timers of an agent")
        for scope in batch.column(0).unique().to_pylist():
            key = key_of(scope)
            if isinstance(key, bytes) or state_key(key) != scope:
                raise CorruptCheckpoint(f"{directory}: {scope[:40]!r} is not the key of an agent's timer")
        yield batch


def state_name(agent_id: str) -> str:
    """Returns the name of an agent's timers in a checkpoint, among the states of the agent task."""
    return f"{_FILE} {agent_id}"


def saved_timers(directory: Path) -> Iterator[tuple[Any, str, int]]:
    """Yields (key, name, time in ms) for the timers of a checkpoint. Raises CorruptCheckpoint."""
    for batch in _checked(directory):
        scope, at, name, *_ = (column.to_pylist() for column in batch.columns)
        yield from zip(map(key_of, scope), name, at, strict=True)


def cut_timers(agents: Mapping[str, KeyTimers]) -> dict[str, Cut]:
    """Returns snapshots of the timers of agents, by the names of their states. `agents`: timers by agent id; agents
    without timers are left out.
    """
    cuts = {state_name(agent_id): timers.cut() for agent_id, timers in agents.items()}
    return {name: cut for name, cut in cuts.items() if cut is not None}


def restore_timers(
    agents: Mapping[str, KeyTimers], before: Iterable[str], stored: Collection[str], folder: Callable[[str], Path]
) -> None:
    """Restores the timers of agents from a checkpoint. Timers of an agent that has no on_timer= any more are dropped
    with a warning.

    `before`: the ids of the agents that had timers then. `stored`: the names of the states in the checkpoint.
    `folder`: returns the folder of a state.
    """
    for agent_id in before:
        if (name := state_name(agent_id)) in stored:
            if agent_id in agents:
                agents[agent_id].load(folder(name))
            else:
                _log.warning("agent %s has no on_timer= any more; its timers are dropped", agent_id)


def key_of(scope: bytes) -> Any:
    """Returns the key from which a scope was encoded."""
    return _decode(scope[_GROUP_BYTES:])


def key_bytes(key: Any) -> bytes:
    """Returns the key for records that a timer's call emits: text as it is, anything else as JSON."""
    return key.encode() if isinstance(key, str) else encode_json(key)
