"""The alignment of sources whose rows meet in a step that keeps rows by event time: they are read at about the same
event time, so that the step does not have to keep all rows of the faster source.
"""

from collections.abc import Callable, Iterable

from sabot.engine.operators.base import END_OF_TIME, START_OF_TIME
from sabot.engine.runtime.tasks.watermarks import Watermarks


class Alignment:
    """A limit on reading: no partition of these sources is read further than `max_drift_ms` past the partition with
    the least event time. Called from the threads of the readers.

    Partitions that are idle or have ended are ignored. A partition without rows to read holds back only sources with
    a backlog, and only until it is idle, because rows that arrive live must not wait. The partition with the least
    event time is always read, so sources cannot block each other, whatever the number of alignments.
    """

    def __init__(self, max_drift_ms: int, sources: Iterable[Watermarks], *, whole: bool = True) -> None:
        """Makes an alignment. Each reader that follows it has it in `alignments`.

        `max_drift_ms`: the event time in ms by which a partition may be ahead of the partition with the least event
        time. `sources`: the watermarks of the readers; readers of one source share them. `whole`: True if no other process reads these
        sources; if False, partitions of other processes are treated as unread until `elsewhere` is called.
        """
        self._max_drift_ms = max_drift_ms
        self._elsewhere: tuple[int | None, int | None] = (None, None) if whole else (START_OF_TIME, START_OF_TIME)
        self._sources = list({id(each): each for each in sources}.values())
        self._waiting: dict[int, Callable[[], None]] = {}  # by reader: the function that wakes it

    def here(self, now_ms: int) -> tuple[int | None, int | None]:
        """Returns two event times of this process, for the other processes: that of the partition that is furthest
        behind, and that of the furthest behind among the partitions with rows to read. Each is None if there is no
        such partition. `now_ms`: ms of the monotonic clock.
        """
        return self._least(now_ms, unread=False), self._least(now_ms, unread=True)

    def elsewhere(self, least_ms: int | None, least_unread_ms: int | None) -> None:
        """Sets the two event times of `here` for all other processes together. Each is None if these processes have
        no such partition. May be called from any thread.
        """
        # One assignment, because readers take both in their threads, without a lock.
        self._elsewhere = least_ms, least_unread_ms
        self.moved()

    def _least(self, now_ms: int, *, unread: bool) -> int | None:
        found = (each.least(now_ms, unread=unread) for each in self._sources)
        return min((ms for ms in found if ms is not None), default=None)

    def limit(self, now_ms: int, *, backlog: bool) -> int:
        """Returns the event time past which a partition is paused. `now_ms`: ms of the monotonic clock. `backlog`:
        True if its source has much to read.
        """
        found = self._least(now_ms, unread=not backlog), self._elsewhere[0 if backlog else 1]
        least = min((ms for ms in found if ms is not None), default=END_OF_TIME)
        return least + self._max_drift_ms

    def waits(self, reader: object, wake: Callable[[], None] | None) -> None:
        """Makes `moved` call `wake` for this reader; None removes the reader."""
        if wake is None:
            self._waiting.pop(id(reader), None)
        else:
            self._waiting[id(reader)] = wake

    def moved(self) -> None:
        """Wakes the waiting readers, because rows came or a source has ended."""
        for wake in list(self._waiting.values()):  # a copy, because readers come and go in their own threads
            wake()
