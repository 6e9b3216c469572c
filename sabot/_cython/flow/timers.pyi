import pyarrow as pa

EVENT: int
"""The kind of timers that are due when the watermark reaches their event time."""
PROCESSING: int
"""The kind of timers that are due when the clock reaches their processing time."""

class TimerTable:
    """A table of timers by key. A timer is a slot (>= 0, the caller's number for the key), a time in ms, a kind and a
    name. Equal timers are one timer.

    The two kinds are independent. Due timers are returned in the order of time; at equal times, the key that has had
    timers for longer without interruption comes first; for one key, the timer that was set first. The table has one
    owner thread. Setting and taking a timer takes some tens of nanoseconds, however many there are.
    """

    over: int
    """The slot that exceeded the limit of `guard`, or -1."""
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def removed_from(self) -> tuple[int, int]:
        """The serial and the order (see `rows_of`) of the timer that `take_one` or `unset` has removed last."""
    def set(self, slot: int, at: int, kind: int, name: str = "", serial: int = 0, order: int = 0) -> bool:
        """Sets one timer. Its time may be in the past. Returns True if the timer is new. Raises IndexError for a
        negative slot.

        `serial`, `order`: those of a timer that was removed, which gets back its place among timers of its time.
        """
    def unset(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        """Deletes one timer. Returns True if it existed."""
    def add(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """Sets a timer without a name for each row, in order. Returns how many are new. The GIL is released."""
    def delete(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """Deletes the timer without a name of each row. Returns how many existed. The GIL is released."""
    def next_slot(self, limit: int, kind: int) -> int | None:
        """Returns the slot of the timer that `take_one` would return, or None."""
    def take_one(self, limit: int, kind: int) -> tuple[int, int, str] | None:
        """Removes the next timer with time <= limit. Returns its (slot, time, name), or None if no timer is due."""
    def take(self, limit: int, kind: int, rows: int) -> tuple[pa.Int32Array, pa.Int64Array]:
        """Removes the next timers with time <= limit, at most `rows`. Returns their slots and times. The GIL is
        released.

        In one result a slot has only one time: the result ends before a timer whose slot is in it with another time.
        So timers that the caller then sets for one of these keys are returned before any later timer of the key.
        """
    def soon(self, limit: int, kind: int, rows: int) -> pa.Int32Array:
        """Returns slots that probably have the next timers with time <= limit. The caller looks up their state
        together.
        """
    def soonest(self, kind: int) -> int:
        """Returns a lower bound of the times (ms) of the timers of this kind, or 2**63 - 1 if there are none. The
        bound may be the time of a deleted timer.

        Timers that are held back (`hold`) are ignored.
        """
    def hold(self, kind: int) -> None:
        """Holds back timers of this kind that are set from now on: they are not returned before `release`, even if
        they are evicted and put back meanwhile.
        """
    def release(self, kind: int) -> None: ...
    def guard(self, limit: int) -> None:
        """Starts to count, for each key, the timers that are set at or before the floor. If a key sets more than
        `limit`, `over` becomes its slot. A limit of 0 ends the counting.
        """
    def floor(self, at: int) -> None:
        """Sets the floor for `guard`: only timers at or before this time (ms) are counted."""
    def vacant(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Returns the slots that have no timers, each once, among these slots and all slots whose last timer was
        removed since the last call.
        """
    @property
    def last(self) -> tuple[int, int]:
        """The greatest serial and the greatest order given so far (see `rows_of`)."""
    def due(self, limit: int, kind: int) -> pa.Int32Array:
        """Returns the slots of the timers with time <= limit, with repeats."""
    def rows_of(self, slots: pa.Int32Array) -> pa.RecordBatch:
        """Returns the timers of these slots: slot, at (ms), kind, name, serial and order. The serial of a key is a
        number that rises with the time at which the key got its first timer; the order of a timer rises with the time
        at which it was set. Another thread may call it while the owner changes timers of other slots.
        """
    def put_back(self, slots: pa.Int32Array, rows: pa.RecordBatch, serial: int = 0, order: int = 0) -> None:
        """Sets timers that `rows_of` returned, with the slots that their keys have in this table. Their relative
        order is kept; `serial` and `order` are added to their own. Raises ValueError for rows that cannot be timers.
        """
    def evict(self, slots: pa.Int32Array) -> None:
        """Removes the timers of these slots. `vacant` does not report these slots."""
    def statistics(self) -> dict[str, int]:
        """Returns timers (in the table), fired (so far), names (in use) and bytes."""
