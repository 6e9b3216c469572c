"""Sources that meet where rows are kept by event time are read at about the same event time, so that none of them fills the state."""

from collections.abc import Callable, Sequence
from typing import Protocol

from sabot.operators.base import END_OF_TIME, START_OF_TIME
from sabot.runtime.watermarks import Watermarks


class AlignedReader(Protocol):
    """A reader, and what it obeys."""

    watermarks: Watermarks
    alignments: "list[Alignment]"


class Alignment:
    """How far the partitions of these sources may be read: no further than `max_drift_ms` past the one that is furthest behind.

    Those that are idle or have ended do not count. One that has nothing to read counts only for a source with a backlog, until it is idle:
    rows that come as they happen wait for nobody. The partition that is furthest behind of all is always read, so with any number of
    alignments something goes on. Called from the threads of the readers.
    """

    def __init__(self, max_drift_ms: int, readers: Sequence[AlignedReader], *, whole: bool = True) -> None:
        """Readers of one source share its watermarks. From here on they obey this alignment. whole: no other process reads these sources;
        otherwise those have read nothing before `elsewhere` says more.
        """
        self._max_drift_ms = max_drift_ms
        self._elsewhere: tuple[int | None, int | None] = (None, None) if whole else (START_OF_TIME, START_OF_TIME)
        self._sources = list({id(each.watermarks): each.watermarks for each in readers}.values())
        for each in readers:
            each.alignments.append(self)
        self._waiting: dict[int, Callable[[], None]] = {}  # by reader: what wakes it

    def here(self, now_ms: int) -> tuple[int | None, int | None]:
        """(The event time of the partition that is furthest behind, that of those with rows to read), for the app's other processes.

        now_ms: of the monotonic clock, as for `limit`.
        """
        return self._least(now_ms, unread=False), self._least(now_ms, unread=True)

    def elsewhere(self, least_ms: int | None, least_unread_ms: int | None) -> None:
        """The same of all other processes together; None: they have no partition that counts. From any thread."""
        self._elsewhere = least_ms, least_unread_ms
        self.moved()

    def _least(self, now_ms: int, *, unread: bool) -> int | None:
        found = (each.least(now_ms, unread=unread) for each in self._sources)
        return min((ms for ms in found if ms is not None), default=None)

    def limit(self, now_ms: int, *, backlog: bool) -> int:
        """The event time past which a partition waits. backlog: its source has much to read."""
        found = self._least(now_ms, unread=not backlog), self._elsewhere[0 if backlog else 1]
        least = min((ms for ms in found if ms is not None), default=END_OF_TIME)
        return least + self._max_drift_ms

    def waits(self, reader: object, wake: Callable[[], None] | None) -> None:
        """A reader waits until event time moves on (`moved` calls `wake` then), or, with None, no longer does."""
        if wake is None:
            self._waiting.pop(id(reader), None)
        else:
            self._waiting[id(reader)] = wake

    def moved(self) -> None:
        """Rows came, or a source has ended: those that wait look again."""
        for wake in list(self._waiting.values()):
            wake()
