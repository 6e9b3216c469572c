"""Event time of a source: its watermark over all partitions, and what each of its readers has told of it."""

import threading
from collections.abc import Iterable
from typing import Any

from sabot._cython.flow.channel import ACTIVE, IDLE, Watermark
from sabot.operators.base import START_OF_TIME

__all__ = ["Told", "Watermarks"]


class Watermarks:
    """Event time of a source, by partition: no row below the watermark is expected any more. Its readers share one; any thread.

    A partition's watermark is its greatest time less the lateness; the source's, the least of those that are not idle. A partition
    that has had no rows to read for `idle_ms` is idle (one whose rows were not read yet is not); one that is new begins at the
    source's watermark. When all were idle, all are awake again with the first row: silence begins anew. Never goes back.

    That readers share it makes the answer the same for any number of them: none can run ahead of what another has not read.
    """

    def __init__(self, lateness_ms: int, idle_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._idle_ms = idle_ms
        self._greatest: dict[tuple[str, int], int] = {}
        self._seen_ms: dict[tuple[str, int], int] = {}
        self._watermark_ms = START_OF_TIME
        self._busy: set[tuple[str, int]] = set()  # partitions whose reader is not back from its last batch
        self._came: set[tuple[str, int]] = set()  # partitions that had rows since all were idle
        self._idle = False
        self._lock = threading.Lock()

    def know(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Partitions that exist, whether or not rows came."""
        with self._lock:
            for partition in partitions:
                if partition not in self._greatest:
                    self._greatest[partition] = self._watermark_ms
                    self._seen_ms[partition] = now_ms

    def see(self, partition: tuple[str, int], greatest_ms: int, now_ms: int) -> None:
        """Rows of a partition came, the latest of this time."""
        with self._lock:
            if self._idle:
                self._seen_ms = dict.fromkeys(self._seen_ms, now_ms)
            self._seen_ms[partition] = now_ms
            self._came.add(partition)
            if greatest_ms > self._greatest.get(partition, START_OF_TIME):
                self._greatest[partition] = greatest_ms

    def awake(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """These are not silent: they have rows, which were not read yet."""
        with self._lock:
            for partition in partitions:
                if partition in self._seen_ms:
                    self._seen_ms[partition] = now_ms

    def busy(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Their reader has given a batch, and cannot look for more before it has been processed: no silence."""
        with self._lock:
            self._busy.update(partitions)

    def back(self, partitions: Iterable[tuple[str, int]], now_ms: int) -> None:
        """Their reader looks again."""
        with self._lock:
            for partition in self._busy.intersection(partitions):
                self._busy.discard(partition)
                self._seen_ms[partition] = now_ms

    def end(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Nothing more will come of these."""
        with self._lock:
            for partition in partitions:
                self._greatest.pop(partition, None)
                self._seen_ms.pop(partition, None)
                self._busy.discard(partition)

    def read(self, now_ms: int) -> tuple[bool, int]:
        """-> (whether the whole source is idle, its watermark)."""
        with self._lock:
            awake = [p for p in self._greatest if p in self._busy or now_ms - self._seen_ms[p] < self._idle_ms]
            if not awake and not self._idle:
                # all turn idle: those that were silent before the others no longer count
                self._pass([p for p in self._came if p in self._greatest])
                self._came.clear()
            self._idle = not awake
            self._pass(awake)
            return self._idle, self._watermark_ms

    def _pass(self, partitions: list[tuple[str, int]]) -> None:
        """The watermark comes as far as the last of these."""
        least = min((self._greatest[partition] for partition in partitions), default=START_OF_TIME)
        if least > START_OF_TIME:
            self._watermark_ms = max(self._watermark_ms, least - self._lateness_ms)

    def facts(self, partitions: Iterable[tuple[str, int]]) -> list[list[Any]]:
        """Of these partitions, for the checkpoint."""
        with self._lock:
            found = [(place, self._greatest.get(place, START_OF_TIME)) for place in partitions]
        return [[topic, number, ms] for (topic, number), ms in found if ms > START_OF_TIME]

    def restore(self, watermark_ms: int, greatest_ms: list[list[Any]], now_ms: int) -> None:
        """What a checkpoint says of one reader. The source stands where the reader stood that was least far."""
        with self._lock:
            before = self._watermark_ms
            self._watermark_ms = watermark_ms if before == START_OF_TIME else min(before, watermark_ms)
        for topic, number, ms in greatest_ms:
            self.see((topic, number), ms, now_ms)


class Told:
    """What one reader has told of its source's event time."""

    def __init__(self, watermarks: Watermarks) -> None:
        self.watermark_ms = START_OF_TIME
        self.idle = False
        self._watermarks = watermarks

    def progress(self, now_ms: int) -> list[Any]:
        """The marks that have become true since the last call."""
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
