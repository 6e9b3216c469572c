"""Event time of a source: its watermark over all partitions, and the watermark that each reader has emitted."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from sabot._cython.flow.channel import ACTIVE, IDLE, Watermark
from sabot.engine.operators.base import START_OF_TIME


class Watermarks:
    """The event time of a source by partition: no row below the watermark is expected any more. The readers of the
    source share one, from any thread.

    The watermark of a partition is its greatest event time less the lateness. The watermark of the source is the
    least one of the partitions that are not idle, and never goes back. A partition is idle if it has had no rows to
    read for `idle_ms`; one with unread rows is not idle. A new partition begins at the watermark of the source. If
    all partitions were idle, the first row makes them all active again, and the wait for idleness begins anew.

    `closing`: a function of the greatest event time of all rows; it returns the watermark to which time goes when all
    partitions have become idle.

    Because readers share it, the watermark does not depend on their number: no reader can run ahead of rows that
    another has not read.
    """

    def __init__(self, lateness_ms: int, idle_ms: int, closing: Callable[[int], int] | None = None) -> None:
        self.latest_ms = START_OF_TIME  # the greatest event time of all rows
        self._closing = closing
        self._lateness_ms = lateness_ms
        self._idle_ms = idle_ms
        self._greatest: dict[tuple[str, int], int] = {}
        self._seen_ms: dict[tuple[str, int], int] = {}
        self._watermark_ms = START_OF_TIME
        # The time since which the reader of a partition does not poll. The partition's wait for idleness stands still meanwhile.
        self._busy: dict[tuple[str, int], int] = {}
        self._unread: set[tuple[str, int]] = set()  # partitions that have rows to read, as far as it is known
        self._came: set[tuple[str, int]] = set()  # partitions that had rows since all were idle
        self._idle = False
        self._lock = threading.Lock()

    def know(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Adds partitions that exist, whether or not they have had rows."""
        with self._lock:
            for partition in partitions:
                self._unread.add(partition)
                if partition not in self._greatest:
                    self._greatest[partition] = self._watermark_ms
                    self._seen_ms[partition] = now_ms

    def see(self, partition: tuple[str, int], greatest_ms: int, now_ms: int) -> None:
        """Records that rows of a partition came, the latest of them with this event time."""
        with self._lock:
            if self._idle:
                self._seen_ms = dict.fromkeys(self._seen_ms, now_ms)
            self._seen_ms[partition] = now_ms
            self._came.add(partition)
            self.latest_ms = max(self.latest_ms, greatest_ms)
            if greatest_ms > self._greatest.get(partition, START_OF_TIME):
                self._greatest[partition] = greatest_ms

    def awake(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Marks partitions as active: they have rows that were not read yet."""
        with self._lock:
            for partition in partitions:
                if partition in self._seen_ms:
                    self._seen_ms[partition] = now_ms

    def busy(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Marks partitions as busy: their reader cannot poll them before its batch is processed, so they do not
        become idle meanwhile.
        """
        with self._lock:
            for partition in partitions:
                self._busy.setdefault(partition, now_ms)

    def back(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Ends `busy`, because the reader polls these partitions again. A short time of `busy` counts as time without
        rows, because the poll before it found none.
        """
        with self._lock:
            for partition in self._busy.keys() & set(partitions):
                away_ms = now_ms - self._busy.pop(partition)
                if away_ms * 10 >= self._idle_ms and partition in self._seen_ms:
                    self._seen_ms[partition] += away_ms

    def resume(self, now_ms: int, away_ms: float) -> None:
        """Makes all partitions active, and their wait for idleness begin anew, as after a restart: the process was
        paused for this time, so rows of each may have come that were not read. A short pause counts as silence.
        """
        with self._lock:
            if away_ms * 10 >= self._idle_ms:
                self._seen_ms = dict.fromkeys(self._seen_ms, now_ms)
                self._busy = dict.fromkeys(self._busy, now_ms)

    def unread(self, partitions: Iterable[tuple[str, int]], found: Iterable[tuple[str, int]]) -> None:
        """Records which of these partitions have rows to read."""
        with self._lock:
            self._unread.difference_update(partitions)
            self._unread.update(found)

    def least(self, now_ms: int, *, unread: bool) -> int | None:
        """Returns the least of the greatest event times of the partitions that are not idle, or None if all are.
        `unread`: True to use only partitions with rows to read.
        """
        with self._lock:
            return min(
                (
                    ms
                    for place, ms in self._greatest.items()
                    if (place in self._unread or not unread) and self._silent_ms(place, now_ms) < self._idle_ms
                ),
                default=None,
            )

    def beyond(
        self, partitions: Iterable[tuple[str, int]], limit_ms: int, *, unread: bool
    ) -> tuple[frozenset[tuple[str, int]], bool]:
        """Returns two values: those of these partitions that have been read past `limit_ms` of event time, and True
        if at least one of the others may be read. `unread`: True to consider, among the others, only partitions with
        rows to read.
        """
        with self._lock:
            known = [place for place in partitions if place in self._greatest]
            ahead = frozenset(place for place in known if self._greatest[place] > limit_ms)
            return ahead, any((place in self._unread or not unread) and place not in ahead for place in known)

    def end(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Records that no more rows will come from these partitions."""
        with self._lock:
            for partition in partitions:
                self._greatest.pop(partition, None)
                self._seen_ms.pop(partition, None)
                self._unread.discard(partition)
                self._busy.pop(partition, None)

    def read(self, now_ms: int) -> tuple[bool, int]:
        """Returns True if the whole source is idle, and its watermark."""
        with self._lock:
            awake = [p for p in self._greatest if self._silent_ms(p, now_ms) < self._idle_ms]
            if not awake and not self._idle:
                # All have become idle: partitions that were idle before the last ones no longer hold the watermark back.
                self._pass([p for p in self._came if p in self._greatest])
                self._came.clear()
                if self._closing is not None and self.latest_ms > START_OF_TIME:
                    self._watermark_ms = max(self._watermark_ms, self._closing(self.latest_ms))
            self._idle = not awake
            self._pass(awake)
            return self._idle, self._watermark_ms

    def _pass(self, partitions: list[tuple[str, int]]) -> None:
        """Raises the source's watermark to the least watermark of these partitions."""
        least = min((self._greatest[partition] for partition in partitions), default=START_OF_TIME)
        if least > START_OF_TIME:
            self._watermark_ms = max(self._watermark_ms, least - self._lateness_ms)

    def facts(self, partitions: Iterable[tuple[str, int]]) -> list[list[Any]]:
        """Returns the facts about these partitions that a checkpoint keeps."""
        with self._lock:
            found = [(place, self._greatest.get(place, START_OF_TIME)) for place in partitions]
        return [[topic, number, ms] for (topic, number), ms in found if ms > START_OF_TIME]

    def silent(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> list[list[Any]]:
        """Returns [topic, partition, ms] for each of these partitions, for a checkpoint: for how long it has had no
        rows, at most `idle_ms`.
        """
        with self._lock:
            silent = [(place, self._silent_ms(place, now_ms)) for place in partitions]
        return [[*place, min(max(0, ms), self._idle_ms)] for place, ms in silent]

    def _silent_ms(self, partition: tuple[str, int], now_ms: int) -> int:
        """Returns for how many ms a partition has had no rows, without the time during which its reader does not
        poll.
        """
        return self._busy.get(partition, now_ms) - self._seen_ms.get(partition, now_ms)

    def restore(
        self,
        watermark_ms: int,
        greatest_ms: list[list[Any]],
        silent_ms: list[list[Any]],
        now_ms: int,
        latest_ms: int = START_OF_TIME,
    ) -> None:
        """Restores the event time of one reader from a checkpoint. The source resumes at the least watermark of its
        readers.

        Each partition has `idle_ms` from now for rows that came meanwhile, and then the rest of its earlier wait. So
        a partition that was silent for less time than another becomes idle as much later, and the watermark moves as
        without a restart.
        """
        silent = {(topic, number): min(max(0, ms), self._idle_ms) for topic, number, ms in silent_ms}
        with self._lock:
            before, latest_ms = self._watermark_ms, max(latest_ms, self.latest_ms)
            self._watermark_ms = watermark_ms if before == START_OF_TIME else min(before, watermark_ms)
        for topic, number, ms in greatest_ms:
            place = (topic, number)
            self.see(place, ms, now_ms + self._idle_ms - silent.get(place, self._idle_ms))
        with self._lock:  # a partition that was known and had no rows yet has the watermark as its greatest time
            self.latest_ms = latest_ms


class EmittedMarks:
    """The watermark and the idleness that one reader has emitted."""

    def __init__(self, watermarks: Watermarks) -> None:
        self.watermark_ms = START_OF_TIME
        self.idle = False
        self._watermarks = watermarks

    def progress(self, now_ms: int) -> list[Any]:
        """Returns the marks to emit for what has changed since the last call."""
        idle, watermark_ms = self._watermarks.read(now_ms)
        marks: list[Any] = []
        if self.idle and not idle:
            marks.append(ACTIVE)
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
            marks.append(Watermark(watermark_ms))
        if idle and not self.idle:
            marks.append(IDLE)
        self.idle = idle
        return marks
