import pyarrow as pa

EVENT: int
"""The kind of timers that are due by event time, when the watermark reaches their time."""
PROCESSING: int
"""The kind of timers that are due by processing time, when the clock reaches their time."""

class TimerTable:
    """Timers by key. A timer consists of the slot of its key (>= 0, assigned by the caller), a time in ms, a kind and a name; equal timers
    are one timer.

    The kinds are independent of each other. Due timers are returned in the order of (time, since when the key has had timers without
    interruption, when they were set). Has one owner. Setting and taking a timer takes some tens of nanoseconds however many there are.
    """

    over: int
    """The slot that exceeded the bound of `guard`; -1: none did."""
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def set(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        """Sets one timer, and returns whether it is new. Its time may be in the past."""
    def unset(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        """Deletes one timer, and returns whether it existed."""
    def add(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """Sets a timer without a name for each row, in order, and returns how many are new. The GIL is released."""
    def delete(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """Deletes the timer of each row, and returns how many existed. The GIL is released."""
    def next_slot(self, limit: int, kind: int) -> int | None:
        """The slot of the timer that `take_one` would return; None if there is none."""
    def take_one(self, limit: int, kind: int) -> tuple[int, int, str] | None:
        """Removes the next timer with time <= limit, and returns its (slot, time, name); None if there is none."""
    def take(self, limit: int, kind: int, rows: int) -> tuple[pa.Int32Array, pa.Int64Array]:
        """Removes the next timers, at most `rows`, and returns their slots and times; the GIL is released.

        A slot occurs with one time only: the result ends before a timer whose slot occurs with another time already. So timers that the
        caller then sets for one of these keys are returned before any later timer of that key.
        """
    def soon(self, limit: int, kind: int, rows: int) -> pa.Int32Array:
        """Slots that probably have the next timers with time <= limit, so that the caller can look up their state together."""
    def soonest(self, kind: int) -> int:
        """A lower bound of the times (ms) of timers of this kind, which may be that of a deleted timer; 2**63 - 1 where there are none.

        Timers that are held back do not count.
        """
    def hold(self, kind: int) -> None:
        """Holds back the timers of this kind that are set from here on: they are not returned before `release`, also where they have been
        evicted and put back meanwhile.
        """
    def release(self, kind: int) -> None: ...
    def guard(self, limit: int) -> None:
        """Begins a round in which no key should set more than `limit` timers at or before the floor; `over` tells which did. 0 ends it."""
    def floor(self, at: int) -> None:
        """Sets the floor of `guard`: timers at or before this time count."""
    def vacant(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Of these slots, and of all slots whose last timer was removed since the last call, those without timers, each once."""
    @property
    def last(self) -> tuple[int, int]:
        """The greatest serial and the greatest order so far."""
    def due(self, limit: int, kind: int) -> pa.Int32Array:
        """The slots of the timers with time <= limit, with repeats."""
    def rows_of(self, slots: pa.Int32Array) -> pa.RecordBatch:
        """The timers of these slots: slot, at, kind, name, serial and order. Another thread may call it while the owner changes those of
        other slots.
        """
    def put_back(self, slots: pa.Int32Array, rows: pa.RecordBatch, serial: int = 0, order: int = 0) -> None:
        """Sets timers of `rows_of`, with the slots that their keys have here. They are returned in the same order among each other; serial
        and order are added to theirs. Raises ValueError for rows that no timer has.
        """
    def evict(self, slots: pa.Int32Array) -> None:
        """Removes the timers of these slots, which `vacant` does not name for that."""
    def statistics(self) -> dict[str, int]:
        """timers, fired (so far), names (that timers have), bytes."""
