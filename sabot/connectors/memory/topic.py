"""A topic of the embedded broker: its partitions, readers and writers. Its one lock is held only to slice and edit lists.

A partition is a log of Arrow chunks. Small neighbours are merged when they are sealed.
"""

import asyncio
import bisect
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sabot._cython.groups.partition import hash_rows
from sabot._cython.text.records import bytes_list
from sabot.codecs.records import Headers, Record, build_records, iterate_records
from sabot.errors import TransientError, UserError

log = logging.getLogger(__name__)

# In rows: records without a key go to the next partition after this many; small chunks are merged, and small reads gathered, up to it.
RUN_ROWS = 8192
# A read that gathers chunks stops at this size, far below the 2 GiB that an Arrow binary column can hold.
GATHER_BYTES = 64 << 20
# The bytes that a record in the open tail counts for, in addition to those of its contents.
_RECORD_COST = 64


class Reader(Protocol):
    """A reader of a topic. The topic keeps the rows that it has not read yet."""

    def position_of(self, part: "Partition") -> int:
        """Returns the next offset of the partition that this reader will read."""


class Waiters:
    """Callbacks of event loops that wait for a topic to change. Each is called once, in the thread that changed the topic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    def add(self, callback: Callable[[], object]) -> None:
        with self._lock:
            self._callbacks.append(callback)

    def remove(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def wake(self) -> None:
        if not self._callbacks:
            return
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def turn(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Returns when `ready()` may have become true, or after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        self.add(wake)
        try:
            if not ready():
                async with asyncio.timeout(timeout):
                    await changed.wait()
        except TimeoutError:
            return
        finally:
            self.remove(wake)


class Partition:
    """One log: sealed chunks of RECORD_SCHEMA, then the open tail. The lock of the topic guards it."""

    __slots__ = (
        "chunks",
        "end",
        "first",
        "headers",
        "index",
        "keys",
        "nbytes",
        "payloads",
        "sizes",
        "stamps",
        "starts",
        "tail_bytes",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.first = 0  # the oldest offset that is held
        self.end = 0  # the offset of the next record to be appended
        self.nbytes = 0
        self.starts: list[int] = []  # first offset of each chunk
        self.chunks: list[pa.RecordBatch] = []
        self.sizes: list[int] = []  # bytes of each chunk
        self.tail_bytes = 0
        self._new_tail()

    def _new_tail(self) -> None:
        self.payloads: list[bytes | None] = []
        self.keys: list[bytes | None] = []
        self.stamps: list[int] = []
        self.headers: list[Headers] = []
        self.tail_bytes = 0

    def extend(
        self, payloads: list[bytes | None], key: bytes | None, stamp: int, headers: Headers, nbytes: int
    ) -> None:
        """Appends records to the tail. nbytes: the size that they are counted as."""
        rows = len(payloads)
        self.payloads.extend(payloads)
        self.keys.extend([key] * rows)
        self.stamps.extend([stamp] * rows)
        self.headers.extend([headers] * rows)
        self.tail_bytes += nbytes
        self.nbytes += nbytes
        self.end += rows
        if len(self.payloads) >= RUN_ROWS or self.tail_bytes >= GATHER_BYTES:
            self.seal()

    def append_chunk(self, data: pa.RecordBatch) -> None:
        """Appends a batch of RECORD_SCHEMA, whose partition and offset columns are replaced."""
        self.seal()
        rows = data.num_rows
        columns = data.columns
        columns[3] = pa.array(np.full(rows, self.index, dtype=np.int32))
        columns[4] = pa.array(np.arange(self.end, self.end + rows, dtype=np.int64))
        self._push(pa.RecordBatch.from_arrays(columns, schema=data.schema))

    def seal(self) -> None:
        """Turns the open tail into a chunk."""
        rows = len(self.payloads)
        if not rows:
            return
        chunk = build_records(
            self.payloads,
            None if not any(key is not None for key in self.keys) else self.keys,
            self.stamps,
            self.index,
            np.arange(self.end - rows, self.end),
            self.headers if any(self.headers) else None,
        )
        self.end -= rows
        self.nbytes -= self.tail_bytes
        self._new_tail()
        self._push(chunk)

    def _push(self, chunk: pa.RecordBatch) -> None:
        start, size = self.end, chunk.nbytes
        self.end += chunk.num_rows
        self.nbytes += size
        # Merge while the previous chunk is not larger: each row is copied at most log2(RUN_ROWS) times.
        while (
            self.chunks
            and self.chunks[-1].num_rows <= chunk.num_rows
            and self.chunks[-1].num_rows + chunk.num_rows <= RUN_ROWS
            and self.sizes[-1] + size <= GATHER_BYTES
        ):
            chunk = concat([self.chunks.pop(), chunk])
            start = self.starts.pop()
            self.nbytes += chunk.nbytes - size - self.sizes.pop()
            size = chunk.nbytes
        self.starts.append(start)
        self.chunks.append(chunk)
        self.sizes.append(size)

    def slices(self, position: int, rows: int) -> list[pa.RecordBatch]:
        """Returns slices of the chunks from `position` on, with at most `rows` rows."""
        if position >= self.end:
            return []
        if not self.chunks or position + rows > self.starts[-1] + self.chunks[-1].num_rows:
            self.seal()
        found: list[pa.RecordBatch] = []
        place = bisect.bisect_right(self.starts, position) - 1
        while rows > 0 and place < len(self.chunks):
            inside = position - self.starts[place]
            piece = self.chunks[place].slice(inside, rows)
            found.append(piece)
            position += piece.num_rows
            rows -= piece.num_rows
            place += 1
        return found

    def drop_oldest(self) -> int:
        """Drops the first chunk. Returns its number of rows."""
        rows: int = self.chunks.pop(0).num_rows
        del self.starts[0]
        self.nbytes -= self.sizes.pop(0)
        self.first += rows
        return rows

    def offset_at(self, stamp: int) -> int:
        """Returns the first offset whose timestamp is `stamp` or later; the end if there is none."""
        self.seal()
        for start, chunk in zip(self.starts, self.chunks, strict=True):
            late = chunk.column(2).to_numpy() >= stamp
            if late.any():
                return start + int(late.argmax())
        return self.end


class Topic:
    """The partitions of a topic, its readers and its writers."""

    def __init__(self, name: str, retention_bytes: Callable[[], int]) -> None:
        self.name = name
        self._retention_bytes = retention_bytes
        self.lock = threading.Lock()
        self.readable = threading.Condition(self.lock)
        self.writable = threading.Condition(self.lock)
        self.readers = Waiters()
        self.writers = Waiters()
        self.sources: weakref.WeakSet[Reader] = weakref.WeakSet()
        self.partitions = [Partition(0)]
        self.forgotten = False
        self._turn = 0
        self._turn_rows = 0
        self._dropped = 0
        self._warned = False

    def grow(self, partitions: int) -> None:
        with self.lock:
            for index in range(len(self.partitions), partitions):
                self.partitions.append(Partition(index))

    def publish(
        self,
        payloads: list[bytes | None],
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        stamp: int,
    ) -> int | None:
        """Appends records and returns the last offset. Appends nothing and returns None if the topic is full of
        unread rows.
        """
        if not payloads:
            return -1
        sizes = [size_of(payload, key, headers) for payload in payloads]
        run = max(1, min(RUN_ROWS, GATHER_BYTES // max(sizes)))
        with self.lock:
            self.check_alive()
            if not self._make_room(sum(sizes)):
                return None
            where = self._choose(partition, key)
            for start in range(0, len(payloads), run):
                part = payloads[start : start + run]
                if partition is None and key is None:
                    where = self._next_in_turn(len(part))
                where.extend(part, key, stamp, headers, sum(sizes[start : start + run]))
            last = where.end - 1
            self.readable.notify_all()
        self.readers.wake()
        return last

    def write(
        self,
        batches: Sequence[pa.RecordBatch],
        closed: Callable[[], bool],
        timeout: float,
        together: Callable[[Callable[[], None]], None] = lambda append: append(),
    ) -> None:
        """Appends batches of RECORD_SCHEMA, all at once. Waits while the topic is full. Raises TransientError after
        `timeout` seconds, or if `closed()` becomes True. The rows are appended by `together(append)`, which may leave
        out the call of `append`.
        """
        ready: list[tuple[pa.RecordBatch, Any]] = []
        for data in batches:
            if data.num_rows == 0:
                continue
            if data.get_total_buffer_size() > 2 * data.nbytes + 65536:
                data = take(data, np.arange(data.num_rows))  # a small slice would keep the whole parent batch in memory
            hashes = None
            if len(self.partitions) > 1 and data.column(1).null_count < data.num_rows:
                hashes = np.asarray(hash_rows(bytes_list(data.column(1))), dtype=np.uint64)
            ready.append((data, hashes))
        nbytes = sum(data.nbytes for data, _ in ready)
        with self.lock:

            def may_go() -> bool:
                return self.forgotten or closed() or nbytes == 0 or self._make_room(nbytes)

            def append() -> None:
                for data, hashes in ready:
                    for where, part in self._split(data, hashes):
                        where.append_chunk(part)

            if not self.writable.wait_for(may_go, timeout):
                raise self.full()
            self.check_alive()
            if closed():
                raise TransientError(f"topic {self.name!r}: the sink was closed while it waited to write")
            together(append)
            self.readable.notify_all()
        self.readers.wake()

    def _split(self, data: pa.RecordBatch, hashes: Any) -> list[tuple[Partition, pa.RecordBatch]]:
        count = len(self.partitions)
        if count == 1:
            return [(self.partitions[0], data)]
        if hashes is None:
            return [
                (self._next_in_turn(min(RUN_ROWS, data.num_rows - start)), data.slice(start, RUN_ROWS))
                for start in range(0, data.num_rows, RUN_ROWS)
            ]
        chosen = (hashes % np.uint64(count)).astype(np.int64)
        null = data.column(1).is_null().to_numpy(zero_copy_only=False)
        if null.any():
            chosen[null] = self._next_in_turn(int(null.sum())).index
        order = np.argsort(chosen, kind="stable")
        bounds = np.searchsorted(chosen[order], np.arange(count + 1))
        sorted_data = take(data, order)
        return [
            (self.partitions[index], sorted_data.slice(int(low), int(high - low)))
            for index, (low, high) in enumerate(itertools.pairwise(bounds))
            if high > low
        ]

    def _choose(self, partition: int | None, key: bytes | None) -> Partition:
        if partition is not None:
            if not 0 <= partition < len(self.partitions):
                raise UserError(
                    f"topic {self.name!r} has no partition {partition}",
                    hint=f"it has {len(self.partitions)}; MemoryBroker.create_topic makes more",
                )
            return self.partitions[partition]
        if key is None or len(self.partitions) == 1:
            return self.partitions[0]
        return self.partitions[hash_rows([key])[0] % len(self.partitions)]

    def _next_in_turn(self, rows: int) -> Partition:
        where = self.partitions[self._turn % len(self.partitions)]
        self._turn_rows += rows
        if self._turn_rows >= RUN_ROWS:
            self._turn, self._turn_rows = self._turn + 1, 0
        return where

    def has_room(self, nbytes: int) -> bool:
        """Returns True if a record of this size could be appended now."""
        with self.lock:
            return self.forgotten or self._make_room(nbytes)

    def _make_room(self, needed: int) -> bool:
        """Drops the oldest chunks that no live reader needs, until `needed` bytes fit. Returns False if they do not
        fit before readers have read more.
        """
        limit = self._retention_bytes()
        held = sum(part.nbytes for part in self.partitions)
        if held + needed <= limit:
            return True
        sources = list(self.sources)
        for part in sorted(self.partitions, key=lambda part: part.nbytes, reverse=True):
            if not part.chunks:
                part.seal()
            read = min((source.position_of(part) for source in sources), default=part.end)
            while part.chunks and held + needed > limit and part.starts[0] + part.chunks[0].num_rows <= read:
                before = part.nbytes
                self._dropped += part.drop_oldest()
                held += part.nbytes - before
                if not sources and not self._warned:
                    self._warned = True
                    log.warning(
                        "topic %r: more than %d bytes and nobody reads; the oldest records go",
                        self.name,
                        limit,
                    )
        return held + needed <= limit or held == 0  # an empty topic takes one batch above the limit

    def full(self) -> TransientError:
        return TransientError(
            f"topic {self.name!r} holds {self._retention_bytes()} bytes that a reader has not read",
            hint="find the reader that does not read, or raise MemoryBroker.get(url).retention_bytes",
        )

    def forget(self) -> None:
        with self.lock:
            self.forgotten = True
            self.partitions = [Partition(0)]
            self.readable.notify_all()
            self.writable.notify_all()
        self.readers.wake()
        self.writers.wake()

    def check_alive(self) -> None:
        if self.forgotten:
            raise UserError(
                f"topic {self.name!r}: the embedded broker was reset while this was open",
                hint="stop the app before MemoryBroker.reset()",
            )

    def records(self) -> list[Record]:
        with self.lock:
            pieces = [piece for part in self.partitions for piece in part.slices(part.first, part.end - part.first)]
        return [record for piece in pieces for record in iterate_records(piece, self.name)]

    def statistics(self) -> dict[str, int]:
        with self.lock:
            return {
                "rows": sum(part.end - part.first for part in self.partitions),
                "bytes": sum(part.nbytes for part in self.partitions),
                "rows_total": sum(part.end for part in self.partitions),
                "dropped_rows": self._dropped,
                "readers": len(self.sources),
            }


def size_of(payload: bytes | None, key: bytes | None, headers: Headers) -> int:
    """Returns the number of bytes that a record in the open tail adds to the size of the topic."""
    pairs = sum(len(name) + len(value or b"") for name, value in headers) if headers else 0
    return _RECORD_COST + len(payload or b"") + len(key or b"") + pairs


def take(data: pa.RecordBatch, rows: Any) -> pa.RecordBatch:
    """Returns a copy of these rows."""
    indices: Any = pa.array(rows)
    return data.take(indices)


def concat(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns one batch of all pieces; a single piece is returned as it is."""
    if len(pieces) == 1:
        return pieces[0]
    batches: list[pa.RecordBatch] = pa.Table.from_batches(pieces).combine_chunks().to_batches()
    return batches[0]
