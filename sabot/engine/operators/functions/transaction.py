"""The changes of users' calls that may still be undone. `keep` makes them final when the calls have succeeded; `undo`
reverts them.

    call ─▶ its writes              made, and logged with the former values (with a ttl: held in an overlay before the values)
            timers, broadcast maps  changed, and logged with the call that undoes the change
            results, as columns     ──▶ keep: they are emitted
                                    ──▶ undo: all is as before, and the calls are repeated without the row that failed
"""

from collections.abc import Callable, Sequence
from typing import Any

from sabot._cython.flow.timers import EVENT, TimerTable
from sabot.engine.state.base import LocalBackend
from sabot.engine.state.expiry import EventExpiry
from sabot.engine.state.overlay import ExpiringOverlay, LoggedWrites

HELD_ROWS = 131_072  # the most results that are held: beyond it, the calls so far are kept, and can no longer be undone


class Transaction:
    """The changes since the last `keep` or `undo`. Only the subtask's thread may use it."""

    def __init__(self, values: LocalBackend, expiry: EventExpiry | None, timers: TimerTable) -> None:
        self.values = LoggedWrites(values) if expiry is None else ExpiringOverlay(values, expiry)
        self.log: list[Any] | None = self.values.log if isinstance(self.values, LoggedWrites) else None
        """The log of `values`, in which a caller must note writes that it makes elsewhere; None with a ttl."""
        self.set_events: list[int] = []
        """Event timers without a name that were set: slot, time, slot, time, …"""
        self.results: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """The calls that emit the results, with their arguments, in order."""
        self.rows = 0  # the number of rows in the results
        self._timers = timers
        self._changes: list[
            tuple[Any, ...]
        ] = []  # the calls that undo changes of other timers and of maps, with their arguments

    def note(self, undo: Callable[..., Any], *given: Any) -> None:
        """Logs a change. `undo(*given)` reverts it."""
        self._note_set_events()
        self._changes.append((undo, *given))

    def hold(self, emit: Callable[..., None], rows: int, *given: Any) -> None:
        """Holds results until the calls are kept; then the caller emits them by `emit(*given)`. `rows`: the number of
        rows.
        """
        self.results.append((emit, given))
        self.rows += rows

    def keep_changes(self) -> None:
        """Makes the changes final, so that `undo` cannot revert them. The results are still held."""
        self.values.keep()
        self.set_events.clear()
        self._changes.clear()

    def keep(self) -> Sequence[tuple[Callable[..., None], tuple[Any, ...]]]:
        """Makes the changes final. Returns the held results, as (emit, arguments), which the caller must emit."""
        self.keep_changes()
        results, self.results, self.rows = self.results, [], 0
        return results

    def undo(self) -> None:
        """Reverts all changes, and drops the results."""
        self.values.undo()
        self._note_set_events()
        for change, *given in reversed(self._changes):
            change(*given)
        self._changes.clear()
        self.results, self.rows = [], 0

    def _note_set_events(self) -> None:
        pairs = iter(self.set_events)
        self._changes += [(self._timers.unset, slot, at, EVENT, "") for slot, at in zip(pairs, pairs, strict=True)]
        self.set_events.clear()
