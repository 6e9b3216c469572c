from collections.abc import Sequence

import pyarrow as pa

EVENT: int
"""A kind of timer: due when the watermark has come so far."""
PROCESSING: int
"""A kind of timer: due when the clock has."""

class TimerTable:
    """Timers by key. A timer is a slot (of its key: >= 0, the caller's), a time in ms, a kind and a name; equal ones are one timer.

    The kinds do not know of each other. Timers are given in the order of (time, since when the key has had timers without a break,
    when they were set). One owner. Setting and giving a timer costs some tens of nanoseconds however many there are.
    """

    over: int
    """The slot that broke the guard; -1: none did."""
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def set(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        """One timer; -> whether it is new. It may be in the past."""
    def unset(self, slot: int, at: int, kind: int, name: str = "") -> bool:
        """It is gone; -> whether it was there."""
    def add(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """A timer without a name for each row, in order; -> how many are new. The GIL is released."""
    def load(
        self, slots: pa.Int32Array, at: pa.Int64Array, kinds: pa.Int8Array, names: pa.Int32Array, texts: Sequence[str]
    ) -> None:
        """Timers that were exported are set again, row by row; names are places in `texts`."""
    def delete(self, slots: pa.Int32Array, at: pa.Int64Array, kind: int) -> int:
        """As `unset` for each row; -> how many were there. The GIL is released."""
    def take_one(self, limit: int, kind: int) -> tuple[int, int, str] | None:
        """(slot, time, name) of the next timer with time <= limit, which is gone then."""
    def take(self, limit: int, kind: int, rows: int) -> tuple[pa.Int32Array, pa.Int64Array]:
        """The next timers, at most so many, as slots and times; the GIL is released.

        A slot comes at one time only: they end before one that has come at another. So who sets timers for a key that it was given
        gets those before any later one of that key.
        """
    def soon(self, limit: int, kind: int, rows: int) -> pa.Int32Array:
        """Slots of timers of which some are the next with time <= limit: to look up together what will be needed one by one."""
    def soonest(self, kind: int) -> int:
        """No timer of this kind is due before this time (ms), which may be that of a deleted one; 2**63 - 1 where there are none.

        Held timers do not count.
        """
    def hold(self, kind: int) -> None:
        """Timers of this kind that are set from here on are not given before `release`."""
    def release(self, kind: int) -> None: ...
    def guard(self, limit: int) -> None:
        """A round begins, in which no key should set more than so many timers at or before the floor: `over` says which did. 0: ends."""
    def floor(self, at: int) -> None:
        """Timers at or before this count for the guard."""
    def vacant(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Of these, and of all slots whose last timer has gone since the last call, those without timers: each once."""
    def export(self) -> tuple[pa.RecordBatch, list[str]]:
        """All timers: slot, at, kind, name (a place in the list beside it), serial and order.

        Set again in the order of (serial, order), they are given in the same order as here.
        """
    def statistics(self) -> dict[str, int]:
        """timers, fired (so far), bytes."""
