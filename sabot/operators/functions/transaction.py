"""What calls of the user's functions change, until it is known that they pass: then it is kept, else it is as if they had not been made.

call ─▶ its writes            made, and logged with what was there before (with a ttl: held before the values)
        timers, broadcast maps  changed, with what undoes it
        results, as columns     ──▶ keep: they are emitted
                                ──▶ undo: all of it is gone, and the calls are made again without the row that failed
"""

from collections.abc import Callable, Sequence
from typing import Any

from sabot._cython.flow.timers import EVENT, TimerTable
from sabot.state.base import LocalBackend
from sabot.state.expiry import EventExpiry
from sabot.state.overlay import ExpiringOverlay, LoggedWrites

HELD_ROWS = 131_072  # results that are held; with more of them the calls so far are kept, and cannot be undone any more


class Transaction:
    """The changes since the last `keep` or `undo`. One owner, the subtask's thread."""

    def __init__(self, values: LocalBackend, expiry: EventExpiry | None, timers: TimerTable) -> None:
        self.values = LoggedWrites(values) if expiry is None else ExpiringOverlay(values, expiry)
        self.log: list[Any] | None = self.values.log if isinstance(self.values, LoggedWrites) else None
        """Where writes that go past `values` are noted, as it says."""
        self.set_events: list[int] = []
        """Event timers without a name that were set: slot, time, slot, time, …"""
        self.results: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """What emits the results, with its arguments, in order."""
        self.rows = 0  # of the results
        self._timers = timers
        self._changes: list[
            tuple[Any, ...]
        ] = []  # what undoes each change of other timers and of maps, with its arguments

    def note(self, undo: Callable[..., Any], *given: Any) -> None:
        """A change was made, which `undo(*given)` takes back."""
        self._note_set_events()
        self._changes.append((undo, *given))

    def hold(self, emit: Callable[..., None], rows: int, *given: Any) -> None:
        """Results that are emitted when the calls are kept."""
        self.results.append((emit, given))
        self.rows += rows

    def keep_changes(self) -> None:
        """Makes the changes last; the results are held on."""
        self.values.keep()
        self.set_events.clear()
        self._changes.clear()

    def keep(self) -> Sequence[tuple[Callable[..., None], tuple[Any, ...]]]:
        """Makes the changes last; -> the results, for the caller to emit."""
        self.keep_changes()
        results, self.results, self.rows = self.results, [], 0
        return results

    def undo(self) -> None:
        """Takes all changes back."""
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
