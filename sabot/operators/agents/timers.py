"""Timers of a record agent's keys: set in its calls, due by the clock, given back to it as calls of `on_timer`.

    call ends well ──▶ table ──── due ───▶ lanes ──── call of on_timer ends ──▶ gone
                       (TimerTable)        (at most _IN_LANES of them)

The table is that of process functions. It knows keys by slots; here a slot stands for the scope of a key that has timers (`Row.scope`).
A timer that is due moves from the table into the lane of its key, behind the rows that wait there. A barrier saves the timers of the
table and of the lanes alike, so a timer whose call has not ended fires again after a restore. Those of the table are read by the thread
that saves them (`operators.cuts`): the loop puts aside what it is about to change.

The event loop is told the time of the next timer only, so pending timers cost memory and no more. It looks at the clock at least
each _LOOK_SECONDS while there are timers, as the clock may be set, or be one that is moved by hand.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.flow.timers import PROCESSING, TimerTable
from sabot._cython.text.records import state_key
from sabot.api.context import TimerChange
from sabot.clock import Clock
from sabot.codecs.records import encode_json
from sabot.errors import CorruptCheckpoint, SabotError
from sabot.operators.cuts import OpenCuts, OpenRows, Rows
from sabot.operators.state_parts import Batches, PartsCut, read_batches
from sabot.state.base import Cut
from sabot.supervision import watch_call

DueTimer = tuple[bytes, int, str]
"""The scope of its key, its time in ms, its name."""

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [("key", pa.binary()), ("at", pa.int64()), ("name", pa.string()), ("serial", pa.int64()), ("order", pa.int64())]
)
"""Timers in a checkpoint. key: a scope, so it begins with the key group. serial, order: see `TimerTable.rows_of`; older checkpoints do not
have them, and have the timers in the order in which they are set again.
"""

_OLDER = pa.schema(list(_SCHEMA)[:3])
_FILE = "timers"
_IN_LANES = 1024  # due timers whose calls have not ended: more stay in the table, however many are due
_LOOK_SECONDS = 0.05
_UNSETTLED = 1024  # timers that may be gone before slots of keys without timers are freed
_GROUP_BYTES = 2
_NEVER = 2**63 - 1
_NO_SLOTS = pa.array([], pa.int32())

_decode = msgspec.msgpack.Decoder().decode


class KeyTimers:
    """The timers of one agent. All of it belongs to the event loop, but for the rows of a cut."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        put: Callable[[list[DueTimer]], None],
        broke: Callable[[str, SabotError], None],
    ) -> None:
        """name: of the agent, for errors. put: takes timers that are due into lanes; `ended` is told of each. After `let_out` it is called
        for none too, as who waits for the last one may go on. broke: is told of our own errors.
        """
        self._what = f"what looks for due timers of {name}"
        self._clock, self._loop, self._put = clock, asyncio.get_running_loop(), put
        self._look_safely = watch_call(self._look, self._what, partial(broke, self._what))
        self._table = TimerTable()
        self._cuts = OpenCuts()
        self._slots: dict[bytes, int] = {}  # of the keys that have timers
        self._scopes: list[bytes] = []  # by slot
        self._unused: list[int] = []  # slots
        self._unsettled = 0  # timers that have left the table since slots were freed
        self._in_lanes: set[DueTimer] = set()
        self._running = False
        self._last = _NEVER  # only timers up to this time fire
        self._looking: asyncio.TimerHandle | None = None
        self._looks_for = _NEVER  # the time of the timer that `_looking` waits for

    def __len__(self) -> int:
        return len(self._table) + len(self._in_lanes)

    # -- their life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Timers fire from here on; those that are due do at once."""
        self._running, self._last = True, _NEVER
        self._arm()

    def stop(self) -> None:
        """No more timers go into lanes."""
        self._running = False
        self._disarm()

    def let_out(self) -> None:
        """Of the timers that are there, or are set, only those fire that are due by now: there will be no more input."""
        if self._running and self._last == _NEVER:
            self._last = self._now()
            self._disarm()
            self._arm()

    @property
    def left_to_fire(self) -> bool:
        """After `let_out`: some have not fired."""
        return self._running and (bool(self._in_lanes) or self._table.soonest(PROCESSING) <= self._last)

    def drop(self) -> None:
        """All that are pending are gone. A cut that is not saved yet goes on with what it had."""
        self._table, self._slots, self._scopes, self._unused = TimerTable(), {}, [], []

    # -- from calls ---------------------------------------------------------------------------------------------------

    def apply(self, scope: bytes, changes: Iterable[TimerChange]) -> None:
        """What a call of this key, which ended well, has set and deleted."""
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
        """Of a timer in a lane: it was not deleted while it waited there."""
        return timer in self._in_lanes

    def ended(self, timer: DueTimer) -> None:
        """The call of a timer in a lane is over; what it has set is applied after that, so it may set itself again."""
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
        """Its timers will change."""
        if self._cuts.holds():
            self._cuts.note(pa.array([slot], pa.int32()))

    def _free_slots(self) -> None:
        """Of keys that have no timers any more."""
        self._unsettled = 0
        for slot in self._table.vacant(_NO_SLOTS).to_pylist():
            del self._slots[self._scopes[slot]]
            self._scopes[slot] = b""
            self._unused.append(slot)

    # -- the clock ----------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return int(self._clock.time() * 1000)

    def _arm(self) -> None:
        """Looks again when the next timer is due."""
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
        """Timers that are due go into lanes, as many as may be there."""
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
            self._looks_for = -_NEVER  # no timer that is set meanwhile is looked for: `ended` looks again
        if due or self._last != _NEVER:
            self._put(due)

    def _taken(self, limit: int) -> Iterator[tuple[int, int, str]]:
        """Takes the timers that are due out of the table, as long as there is room in the lanes."""
        table, noted = self._table, set[int]()
        is_read = self._cuts.holds()
        if is_read:  # most of them together
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
        """All timers as they are now; None: there are none. They are read by who saves them."""
        if not len(self):
            return None
        due = sorted(self._in_lanes, key=_time)
        waiting = self._cuts.open(partial(_rows_of, self._table, self._scopes, len(due)), len(self._scopes))
        return PartsCut({_FILE: Batches(_SCHEMA, partial(_rows, due, waiting), partial(self._cuts.over, [waiting]))})

    def load(self, directory: Path) -> None:
        """The timers that a cut has saved there; before `start`."""
        for batch in _checked(directory):
            slots = pa.array([self._slot(scope) for scope in batch.column(0).to_pylist()], pa.int32())
            kinds = pa.array(np.full(batch.num_rows, PROCESSING, np.int8))
            _, at, name, serial, order = batch.columns
            columns = [slots, at, kinds, name, serial, order]
            names = ["slot", "at", "kind", "name", "serial", "order"]
            try:
                self._table.put_back(slots, pa.RecordBatch.from_arrays(columns, names=names))
            except ValueError as error:
                raise CorruptCheckpoint(f"{directory}: the timers cannot be set: {error}") from error

    def statistics(self) -> dict[str, int]:
        """Timers that are set, with those in lanes; how many have fired."""
        return {"timers": len(self), "timers_fired": self._table.statistics()["fired"] - len(self._in_lanes)}


def _time(timer: DueTimer) -> int:
    return timer[1]


def _rows_of(table: TimerTable, scopes: Sequence[bytes], first: int, slots: pa.Int32Array) -> Rows:
    """The timers of these slots, behind the `first` ones."""
    found = table.rows_of(slots)
    slot, at, _, name, serial, order = found.take(
        pc.sort_indices(found, [("serial", "ascending"), ("order", "ascending")])
    ).columns
    keys = pa.array([scopes[each] for each in slot.to_pylist()], pa.binary())
    columns = [keys, at, name, pc.add(serial, first), pc.add(order, first)]
    return [pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)]


def _rows(due: Sequence[DueTimer], waiting: OpenRows) -> Iterator[pa.RecordBatch]:
    """Timers in lanes, which stand before all others, then those of the table."""
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
    """The timers of a checkpoint, as a cut has saved them: whoever wrote the file, their keys are keys."""
    place = 0
    for batch in read_batches(directory, _FILE):
        if batch.schema.equals(_OLDER):
            places = pa.array(np.arange(place + 1, place + batch.num_rows + 1))
            place += batch.num_rows
            batch = pa.RecordBatch.from_arrays([*batch.columns, places, places], schema=_SCHEMA)
        if not batch.schema.equals(_SCHEMA) or any(column.null_count for column in batch.columns):
            raise CorruptCheckpoint(f"{directory}: these are no timers of an agent")
        for scope in batch.column(0).unique().to_pylist():
            key = key_of(scope)
            if isinstance(key, bytes) or state_key(key) != scope:
                raise CorruptCheckpoint(f"{directory}: {scope[:40]!r} is no key of an agent's timer")
        yield batch


def state_name(agent_id: str) -> str:
    """The name of the state that an agent's timers are in a checkpoint, among those of the task of the agents."""
    return f"{_FILE} {agent_id}"


def saved_timers(directory: Path) -> Iterator[tuple[Any, str, int]]:
    """(key, name, time in ms) of the timers of a checkpoint. Raises CorruptCheckpoint."""
    for batch in _checked(directory):
        scope, at, name, *_ = (column.to_pylist() for column in batch.columns)
        yield from zip(map(key_of, scope), name, at, strict=True)


def cut_timers(agents: Mapping[str, KeyTimers]) -> dict[str, Cut]:
    """The timers of agents, by agent id, as they are now -> by the names of their states, where there are any."""
    cuts = {state_name(agent_id): timers.cut() for agent_id, timers in agents.items()}
    return {name: cut for name, cut in cuts.items() if cut is not None}


def restore_timers(
    agents: Mapping[str, KeyTimers], before: Iterable[str], stored: Collection[str], folder: Callable[[str], Path]
) -> None:
    """The timers that agents of a checkpoint had set. before: the ids of these agents. stored: the names of the states that it has;
    folder: where one of them was saved.
    """
    for agent_id in before:
        if (name := state_name(agent_id)) in stored:
            if agent_id in agents:
                agents[agent_id].load(folder(name))
            else:
                _log.warning("agent %s has no on_timer= any more; the timers that it had set are dropped", agent_id)


def key_of(scope: bytes) -> Any:
    """The key that a scope stands for, as the message had it."""
    return _decode(scope[_GROUP_BYTES:])


def key_bytes(key: Any) -> bytes:
    """The key of records that a timer makes: text as it is, anything else as JSON."""
    return key.encode() if isinstance(key, str) else encode_json(key)
