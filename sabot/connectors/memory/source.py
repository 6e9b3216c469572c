"""A source that reads a topic of the embedded broker."""

from collections.abc import Collection, Sequence, Set

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.base import Positions, Source, TakesBound
from sabot.connectors.memory.broker import MemoryBroker
from sabot.connectors.memory.topic import GATHER_BYTES, RUN_ROWS, Partition, Topic, concat
from sabot.connectors.places import Bound, goes_on_at, offsets_of
from sabot.errors import UserError


class MemorySource(Source, TakesBound):
    """A source that reads all partitions of a topic of the embedded broker. `read_batch` waits on a condition,
    without polling.
    """

    def __init__(
        self, topic: str, broker_url: str = "memory://", group_id: str = "", *, share: tuple[int, int] = (0, 1)
    ) -> None:
        """`share`: (i, n) reads every n-th partition, from the i-th on."""
        self.name = topic
        self.group_id = group_id
        self._share = share
        self._broker_url = broker_url
        self._broker = MemoryBroker.get(broker_url)
        self._topic: Topic | None = None
        self._positions: dict[int, int] = {}
        self._ends: dict[int, int] = {}  # the ends of the partitions at `open`
        self._held: set[int] = set()  # partitions of which no rows are wanted
        self._turn = 0

    @property
    def log_id(self) -> str:
        return self._broker.log_id

    def identity(self) -> str:
        return f"{self._broker.log_id}/{self.name}"

    def partition_count(self) -> int:
        """Returns the number of partitions that the topic has now."""
        return len(self._broker.topic(self.name).partitions)

    def readers(self, count: int) -> Sequence[Source]:
        readers = min(count, self.partition_count())
        if readers < 2:
            return [self]
        found = [
            MemorySource(self.name, self._broker_url, self.group_id, share=(index, readers)) for index in range(readers)
        ]
        for reader in found:
            reader.skips_removed = self.skips_removed
            if self.bound is not None:
                reader.end_at(Bound(self.bound.asked))
        return found

    def _owns(self, part: Partition) -> bool:
        return part.index % self._share[1] == self._share[0]

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        topic = self._broker.topic(self.name)
        log = _OpenLog(topic, self._broker.committed(self.group_id, self.name))
        restored = {index: offset for (name, index), offset in (positions or {}).items() if name == self.name}
        with topic.lock:
            if restored and max(restored) >= len(topic.partitions):
                raise self._lost(max(restored), restored[max(restored)], 0, 0)
            own = [part.index for part in topic.partitions if self._owns(part)]
            every = range(len(topic.partitions))
            begin = offsets_of("earliest" if restored else start, log, own, every) | restored
            if self.bound is not None:
                self.bound.settle(log, own, every)
            for part in (topic.partitions[index] for index in own):
                held = part.first, part.end
                position = goes_on_at(self.name, part.index, begin[part.index], held, skips=self.skips_removed)
                self._positions[part.index] = position
                self._ends[part.index] = self._end(part)
                if self.bound is not None:
                    self.bound.comes(part.index, position)
            topic.sources.add(self)
            self._topic, self._held = topic, set()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        topic = self._opened()
        if self.exhausted:
            return None
        with topic.lock:
            if not topic.readable.wait_for(self._ready, timeout):
                return None
            topic.check_alive()
            if self._topic is None:
                return None
            pieces, offsets = self._take(topic, max_rows)
            topic.writable.notify_all()
        topic.writers.wake()
        return Batch(concat(pieces), offsets, self.name)

    async def read_batch_async(self, max_rows: int, timeout: float | None = None) -> Batch | None:
        """Returns the next rows, as `read_batch`, but waits without blocking a thread. Returns None after `timeout`
        seconds; if `timeout` is None, it waits without limit.
        """
        topic = self._opened()
        while True:
            batch = self.read_batch(max_rows, 0)
            if batch is not None:
                return batch
            before = SYSTEM_CLOCK.monotonic()
            await topic.readers.turn(self.ready, timeout)
            if self._topic is None:
                return None
            if timeout is not None:
                timeout -= SYSTEM_CLOCK.monotonic() - before
                if timeout <= 0:
                    return self.read_batch(max_rows, 0)

    def ready(self) -> bool:
        """Returns True if `read_batch` would not wait."""
        with self._opened().lock:
            return self._ready()

    def positions(self) -> Positions:
        return {(self.name, index): offset for index, offset in list(self._positions.items())}

    @property
    def exhausted(self) -> bool:
        return self.bound is not None and self._topic is not None and self.bound.reached

    def position_of(self, part: Partition) -> int:
        """Returns the next offset that this source will read of the partition, or the partition's end if it will read
        none.
        """
        over = self.bound is not None and self.bound.is_over(part.index)
        return self._positions.get(part.index, 0) if self._owns(part) and not over else part.end

    def _end(self, part: Partition) -> int:
        """Returns the offset before which this source reads, of the records that are there."""
        return part.end if self.bound is None else min(part.end, self.bound.of(part.index))

    def _unread(self, part: Partition) -> int:
        """Returns the number of records that the partition has now and that this source will still read."""
        return max(0, self._end(part) - self.position_of(part))

    def commit(self, positions: Positions) -> None:
        own = {index: offset for (name, index), offset in positions.items() if name == self.name}
        self._broker.commit(self.group_id, self.name, own)

    def lag(self) -> dict[tuple[str, int], int]:
        topic = self._topic
        if topic is None:
            return {}
        return {(self.name, part.index): self._unread(part) for part in topic.partitions if self._owns(part)}

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        self._held = {index for name, index in partitions if name == self.name}

    def backlog(self) -> int:
        return sum(max(0, end - self._positions[index]) for index, end in self._ends.items())

    def close(self) -> None:
        topic, self._topic = self._topic, None
        if topic is None:
            return
        with topic.lock:
            topic.sources.discard(self)
            topic.readable.notify_all()  # wakes a thread that waits in `read_batch` of this source
            topic.writable.notify_all()
        topic.readers.wake()
        topic.writers.wake()

    def _ready(self) -> bool:
        topic = self._topic
        if topic is None or topic.forgotten:
            return True
        return any(self._unread(part) for part in topic.partitions if part.index not in self._held)

    def _take(self, topic: Topic, max_rows: int) -> tuple[list[pa.RecordBatch], Positions]:
        """Takes slices in order within each partition, from the partitions in turn. A large slice is taken alone,
        without a copy.
        """
        pieces: list[pa.RecordBatch] = []
        offsets: Positions = {}
        rows = nbytes = 0
        count = len(topic.partitions)
        first = self._turn
        for further in range(count):
            part = topic.partitions[(first + further) % count]
            if part.index in self._held:
                continue
            for piece in part.slices(self.position_of(part), min(max_rows - rows, self._unread(part))):
                if pieces and (rows + piece.num_rows > RUN_ROWS or nbytes + piece.nbytes > GATHER_BYTES):
                    return pieces, offsets
                pieces.append(piece)
                rows += piece.num_rows
                nbytes += piece.nbytes
                position = self.position_of(part) + piece.num_rows
                self._positions[part.index] = offsets[(self.name, part.index)] = position
                if self.bound is not None:
                    self.bound.comes(part.index, position)
                self._turn = part.index + 1
                if rows >= min(max_rows, RUN_ROWS):
                    return pieces, offsets
        return pieces, offsets

    def _opened(self) -> Topic:
        if self._topic is None:
            raise UserError(f"the source of topic {self.name!r} is not open")
        return self._topic

    def _lost(self, partition: int, position: int, first: int, end: int) -> UserError:
        return UserError(
            f"{self.name}[{partition}]: position {position} does not exist; the log holds {first} to {end}",
            hint="memory:// ends with its process, and keeps retention_bytes of a topic; start afresh (--fresh)",
        )


class _OpenLog:
    """A topic, whose lock is held, in the form that `offsets_of` needs. `committed`: the offsets of a group."""

    def __init__(self, topic: Topic, committed: dict[int, int]) -> None:
        self.name = topic.name
        self._partitions = topic.partitions
        self._committed = committed

    def span(self, partition: int) -> tuple[int, int]:
        return self._partitions[partition].first, self._partitions[partition].end

    def committed(self, partitions: Collection[int]) -> dict[int, int]:
        return self._committed

    def at(self, partitions: Collection[int], ms: int) -> dict[int, int]:
        return {partition: self._partitions[partition].offset_at(ms) for partition in partitions}
