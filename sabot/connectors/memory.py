"""The broker inside the process: topics, partitions, offsets, groups; `memory://` in an address.

A partition is a log of Arrow chunks. A batch that a sink writes becomes a chunk, a batch that a source reads
is a slice of one: no record becomes a Python object. Records published one at a time gather in an open tail,
which is sealed into a chunk when somebody reads it; small neighbours are merged as they are sealed, so the
log stays short.

Everything may be called from any thread and any event loop. Each topic has one lock, held for slices and list
work only. The log dies with the process.
"""

import asyncio
import bisect
import itertools
import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.batch import Batch
from sabot._cython.partition import hash_rows
from sabot._cython.rows import bytes_list
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import (
    Headers,
    Record,
    build_records,
    carries_changes,
    encode_json,
    encode_key,
    iterate_records,
    refuse_json_types,
    to_records,
)
from sabot.config import parse_broker
from sabot.connectors.base import Lane, Positions, Sink, Source, Token
from sabot.errors import JobLocked, TransientError, UserError
from sabot.steps import step

__all__ = ["CountSink", "MemoryBroker", "MemorySink", "MemorySource", "TableSink"]

log = logging.getLogger(__name__)

RUN_ROWS = 8192  # null keys change partition, small chunks merge and small reads gather up to here
GATHER_BYTES = 64 << 20  # a read that copies stops here, far below the 2 GiB that an Arrow binary column can hold
RECORD_BYTES = 64  # what a record in the open tail is taken to cost beside its own bytes


class MemoryBroker:
    """One broker per process and name. Get it with `MemoryBroker.get("memory://")` or `get("memory://name")`.

    `retention_bytes` bounds each topic. A full topic makes a writing sink wait for its live readers; what no
    live reader still needs is dropped oldest first (`statistics()["dropped_rows"]`).
    """

    _brokers: dict[str, "MemoryBroker"] = {}  # noqa: RUF012 - the registry itself
    _registry = threading.Lock()

    def __init__(self, name: str) -> None:
        self.name = name
        self.retention_bytes = 1 << 30
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}
        self.log_id = uuid.uuid4().hex  # which log the offsets count in
        self._groups: dict[tuple[str, str], dict[int, int]] = {}
        self._lanes: dict[str, tuple[object, Token | None]] = {}  # -> who claimed it last, what it has

    @classmethod
    def get(cls, url: str = "memory://") -> "MemoryBroker":
        """The broker of this address, made on first use; UserError when the address is not memory://."""
        scheme, name = parse_broker(url)
        if scheme != "memory":
            raise UserError(f"{url!r} is no embedded broker", hint="write memory:// or memory://name")
        with cls._registry:
            return cls._brokers.setdefault(name, cls(name))

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Makes the topic, or grows it to `partitions`; a topic never shrinks."""
        if partitions < 1:
            raise UserError(f"topic {name!r}: {partitions} partitions", hint="a topic has at least 1")
        self._topic(name).grow(partitions)

    def topics(self) -> dict[str, int]:
        """Name -> number of partitions."""
        with self._lock:
            return {name: len(topic.partitions) for name, topic in self._topics.items()}

    def publish(
        self,
        topic: str,
        values: Sequence[Any],
        *,
        key: Any = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
    ) -> int:
        """Appends the values and returns the offset of the last one (-1 when there are none).

        A value that is bytes goes as it is, None is a null payload, anything else becomes JSON. `key` (bytes,
        str as UTF-8, else JSON), `headers` and `timestamp` (ms, default now) hold for all of them. The
        partition is the one given, else that of the key, else the next in turn (which changes every 8,192
        values). Never waits: raises TransientError when the topic is full of what a live reader has not read.
        """
        if isinstance(values, bytes | str | dict):
            raise UserError(f"publish({topic!r}) takes a list of values, not one {type(values).__name__}")
        payloads = [v if v is None or isinstance(v, bytes) else encode_json(v) for v in values]
        where = self._topic(topic)
        stamp = int(SYSTEM_CLOCK.time() * 1000) if timestamp is None else int(timestamp)
        last = where.publish(payloads, encode_key(key), partition, tuple(headers), stamp)
        if last is None:
            raise where.full()
        return last

    async def send(
        self,
        topic: str,
        payload: bytes | None,
        key: bytes | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        partition: int | None = None,
    ) -> int:
        """Appends one record and returns its offset; waits (without holding the loop) while the topic is
        full.
        """
        where = self._topic(topic)
        stamp = int(SYSTEM_CLOCK.time() * 1000) if timestamp is None else int(timestamp)
        pairs = tuple(headers)
        while True:
            offset = where.publish([payload], key, partition, pairs, stamp)
            if offset is not None:
                return offset
            await where.writers.turn(lambda: where.has_room(_size(payload, key, pairs)))

    def records(self, topic: str) -> list[Record]:
        """Every record that the topic holds, by partition and offset; [] for a topic that does not exist."""
        with self._lock:
            where = self._topics.get(topic)
        return [] if where is None else where.records()

    def reset(self) -> None:
        """Forgets all topics, groups and tokens. Sources and sinks that are open end with a UserError that says so."""
        with self._lock:
            topics = list(self._topics.values())
            self.log_id = uuid.uuid4().hex
            self._topics.clear()
            self._groups.clear()
            self._lanes.clear()
        for topic in topics:
            topic.forget()

    def commit(self, group: str, topic: str, positions: dict[int, int]) -> None:
        """Notes the group's next offset per partition."""
        with self._lock:
            self._groups.setdefault((group, topic), {}).update(positions)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> the group's next offset, where it has one."""
        with self._lock:
            return dict(self._groups.get((group, topic), {}))

    def claim(self, lane: Lane, owner: object, *, again: bool) -> Token | None:
        """From now on only `owner` delivers on this lane -> its token. `again`: it was his before; JobLocked when another has
        claimed it since.
        """
        with self._lock:
            now, token = self._lanes.get(lane.key, (owner, None))
            if again and now is not owner:
                raise self._lost(lane)
            self._lanes[lane.key] = (owner, token)
        return token

    def advance(self, lane: Lane, owner: object, seq: int, then: Callable[[], None], *, anyhow: bool = False) -> None:
        """`then` and the new token, together; nothing where the token says that this part is here, unless `anyhow`.

        JobLocked for who does not own the lane.
        """
        with self._lock:
            now, token = self._lanes.get(lane.key, (None, None))
            if now is not owner:
                raise self._lost(lane)
            if anyhow or token is None or token.incarnation != lane.incarnation or token.seq < seq:
                then()
                self._lanes[lane.key] = (owner, Token(seq, lane.incarnation))

    def _lost(self, lane: Lane) -> JobLocked:
        return JobLocked(
            f"another job of this process delivers {lane.key!r} into memory://{self.name} now",
            hint="stop one of the two; a job that is not the same needs another name (App(id))",
        )

    def statistics(self) -> dict[str, int]:
        """topics, rows and bytes held, rows_total ever written, dropped_rows by retention; readers open."""
        with self._lock:
            topics = list(self._topics.values())
        total = {"topics": len(topics), "retention_bytes": self.retention_bytes}
        for topic in topics:
            for name, value in topic.statistics().items():
                total[name] = total.get(name, 0) + value
        return total

    def _topic(self, name: str) -> "_Topic":
        with self._lock:
            topic = self._topics.get(name)
            if topic is None:
                topic = self._topics[name] = _Topic(name, self)
            return topic


class _Waiters:
    """Callbacks of event loops that wait for a topic to change; called once each, from whichever thread
    changed it.
    """

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


class _Partition:
    """One log: sealed chunks of RECORD_SCHEMA, then the open tail. Guarded by the topic's lock."""

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
        self.first = 0  # the oldest offset held
        self.end = 0  # the next offset to give
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
        """Appends to the tail; `nbytes` is what the records together are taken to cost."""
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
        """Takes a batch of RECORD_SCHEMA; its partition and offset columns are replaced."""
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
        self.end -= rows
        self.nbytes -= self.tail_bytes
        chunk = build_records(
            self.payloads,
            None if not any(key is not None for key in self.keys) else self.keys,
            self.stamps,
            self.index,
            np.arange(self.end, self.end + rows),
            self.headers if any(self.headers) else None,
        )
        self._new_tail()
        self._push(chunk)

    def _push(self, chunk: pa.RecordBatch) -> None:
        start, size = self.end, chunk.nbytes
        self.end += chunk.num_rows
        self.nbytes += size
        # merge while the neighbour is no bigger: each row is copied log2(RUN_ROWS) times at most
        while (
            self.chunks
            and self.chunks[-1].num_rows <= chunk.num_rows
            and self.chunks[-1].num_rows + chunk.num_rows <= RUN_ROWS
            and self.sizes[-1] + size <= GATHER_BYTES
        ):
            chunk = _concat([self.chunks.pop(), chunk])
            start = self.starts.pop()
            self.nbytes += chunk.nbytes - size - self.sizes.pop()
            size = chunk.nbytes
        self.starts.append(start)
        self.chunks.append(chunk)
        self.sizes.append(size)

    def slices(self, position: int, rows: int) -> list[pa.RecordBatch]:
        """The chunks' slices from `position`, `rows` at most."""
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
        """Lets go of the first chunk; how many rows went."""
        rows: int = self.chunks.pop(0).num_rows
        del self.starts[0]
        self.nbytes -= self.sizes.pop(0)
        self.first += rows
        return rows

    def offset_at(self, stamp: int) -> int:
        """The first offset whose timestamp is `stamp` or later; the end when there is none."""
        self.seal()
        for start, chunk in zip(self.starts, self.chunks, strict=True):
            late = chunk.column(2).to_numpy() >= stamp
            if late.any():
                return start + int(late.argmax())
        return self.end


class _Topic:
    """The partitions of a topic, its readers and its writers."""

    def __init__(self, name: str, broker: MemoryBroker) -> None:
        self.name = name
        self.broker = broker
        self.lock = threading.Lock()
        self.readable = threading.Condition(self.lock)
        self.writable = threading.Condition(self.lock)
        self.readers = _Waiters()
        self.writers = _Waiters()
        self.sources: weakref.WeakSet[MemorySource] = weakref.WeakSet()
        self.partitions = [_Partition(0)]
        self.forgotten = False
        self._turn = 0
        self._turn_rows = 0
        self._dropped = 0
        self._warned = False

    def grow(self, partitions: int) -> None:
        with self.lock:
            for index in range(len(self.partitions), partitions):
                self.partitions.append(_Partition(index))

    def publish(
        self,
        payloads: list[bytes | None],
        key: bytes | None,
        partition: int | None,
        headers: Headers,
        stamp: int,
    ) -> int | None:
        """The last offset; None, with nothing appended, when the topic is full of unread rows."""
        if not payloads:
            return -1
        sizes = [_size(payload, key, headers) for payload in payloads]
        run = max(1, min(RUN_ROWS, GATHER_BYTES // max(sizes)))
        with self.lock:
            self._alive()
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
        """Appends batches of RECORD_SCHEMA, all at once; waits while the topic is full, TransientError after `timeout`
        seconds. `together` is given what appends them, and calls it or not.
        """
        ready: list[tuple[pa.RecordBatch, Any]] = []
        for data in batches:
            if data.num_rows == 0:
                continue
            if data.get_total_buffer_size() > 2 * data.nbytes + 65536:
                data = _take(data, np.arange(data.num_rows))  # a small slice would keep its whole parent in memory
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
            self._alive()
            if closed():
                raise TransientError(f"topic {self.name!r}: the sink was closed while it waited to write")
            together(append)
            self.readable.notify_all()
        self.readers.wake()

    def _split(self, data: pa.RecordBatch, hashes: Any) -> list[tuple[_Partition, pa.RecordBatch]]:
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
        sorted_data = _take(data, order)
        return [
            (self.partitions[index], sorted_data.slice(int(low), int(high - low)))
            for index, (low, high) in enumerate(itertools.pairwise(bounds))
            if high > low
        ]

    def _choose(self, partition: int | None, key: bytes | None) -> _Partition:
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

    def _next_in_turn(self, rows: int) -> _Partition:
        where = self.partitions[self._turn % len(self.partitions)]
        self._turn_rows += rows
        if self._turn_rows >= RUN_ROWS:
            self._turn, self._turn_rows = self._turn + 1, 0
        return where

    def has_room(self, nbytes: int) -> bool:
        """True when a record of this size would be taken now."""
        with self.lock:
            return self.forgotten or self._make_room(nbytes)

    def _make_room(self, needed: int) -> bool:
        """Drops what is oldest and needed by no live reader, until `needed` bytes fit. False: readers must go
        on first.
        """
        limit = self.broker.retention_bytes
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
        return held + needed <= limit or held == 0  # one batch above the limit passes through an empty topic

    def full(self) -> TransientError:
        return TransientError(
            f"topic {self.name!r} holds {self.broker.retention_bytes} bytes that a reader has not read",
            hint="a reader stands still, or raise MemoryBroker.get(url).retention_bytes",
        )

    def forget(self) -> None:
        with self.lock:
            self.forgotten = True
            self.partitions = [_Partition(0)]
            self.readable.notify_all()
            self.writable.notify_all()
        self.readers.wake()
        self.writers.wake()

    def _alive(self) -> None:
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


class MemorySource(Source):
    """Reads a topic of the embedded broker, all its partitions. `read_batch` waits on a condition; nothing
    polls.
    """

    def __init__(
        self, topic: str, broker_url: str = "memory://", group_id: str = "", *, share: tuple[int, int] = (0, 1)
    ) -> None:
        """share: (i, n) reads every n-th partition, from the i-th on."""
        self.name = topic
        self.group_id = group_id
        self._share = share
        self._broker_url = broker_url
        self._broker = MemoryBroker.get(broker_url)
        self._topic: _Topic | None = None
        self._positions: dict[int, int] = {}
        self._turn = 0

    @property
    def log_id(self) -> str:
        return self._broker.log_id

    def partition_count(self) -> int:
        """Of the topic now."""
        return len(self._broker._topic(self.name).partitions)

    def readers(self, count: int) -> Sequence[Source]:
        readers = min(count, self.partition_count())
        if readers < 2:
            return [self]
        return [
            MemorySource(self.name, self._broker_url, self.group_id, share=(index, readers)) for index in range(readers)
        ]

    def _owns(self, part: _Partition) -> bool:
        return part.index % self._share[1] == self._share[0]

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        topic = self._broker._topic(self.name)
        committed = self._broker.committed(self.group_id, self.name)
        restored = {index: offset for (name, index), offset in (positions or {}).items() if name == self.name}
        with topic.lock:
            if restored and max(restored) >= len(topic.partitions):
                raise self._lost(max(restored), restored[max(restored)], 0, 0)
            for part in filter(self._owns, topic.partitions):
                position = restored.get(part.index)
                if position is None:
                    position = part.first if restored else _start_of(part, start, committed)
                if not part.first <= position <= part.end:
                    raise self._lost(part.index, position, part.first, part.end)
                self._positions[part.index] = position
            topic.sources.add(self)
            self._topic = topic

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        topic = self._opened()
        with topic.lock:
            if not topic.readable.wait_for(self._ready, timeout):
                return None
            topic._alive()
            if self._topic is None:
                return None
            pieces, offsets = self._take(topic, max_rows)
            topic.writable.notify_all()
        topic.writers.wake()
        return Batch(_concat(pieces), offsets, self.name)

    async def read_batch_async(self, max_rows: int, timeout: float | None = None) -> Batch | None:
        """As `read_batch`, for an event loop: waits without a thread; None after `timeout` seconds (None: for
        ever).
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
        """True when `read_batch` would not wait."""
        with self._opened().lock:
            return self._ready()

    def positions(self) -> Positions:
        return {(self.name, index): offset for index, offset in list(self._positions.items())}

    def position_of(self, part: _Partition) -> int:
        """The next offset that this source will read of the partition."""
        return self._positions.get(part.index, 0) if self._owns(part) else part.end

    def commit(self, positions: Positions) -> None:
        own = {index: offset for (name, index), offset in positions.items() if name == self.name}
        self._broker.commit(self.group_id, self.name, own)

    def lag(self) -> dict[tuple[str, int], int]:
        topic = self._topic
        if topic is None:
            return {}
        return {
            (self.name, part.index): part.end - self.position_of(part) for part in topic.partitions if self._owns(part)
        }

    def close(self) -> None:
        topic, self._topic = self._topic, None
        if topic is None:
            return
        with topic.lock:
            topic.sources.discard(self)
            topic.readable.notify_all()  # a thread that waits in read_batch of this source
            topic.writable.notify_all()
        topic.readers.wake()
        topic.writers.wake()

    def _ready(self) -> bool:
        topic = self._topic
        if topic is None or topic.forgotten:
            return True
        return any(self.position_of(part) < part.end for part in topic.partitions)

    def _take(self, topic: _Topic, max_rows: int) -> tuple[list[pa.RecordBatch], Positions]:
        """Slices in order per partition, partitions in turn. One big slice goes alone, without a copy."""
        pieces: list[pa.RecordBatch] = []
        offsets: Positions = {}
        rows = nbytes = 0
        count = len(topic.partitions)
        first = self._turn
        for further in range(count):
            part = topic.partitions[(first + further) % count]
            for piece in part.slices(self.position_of(part), max_rows - rows):
                if pieces and (rows + piece.num_rows > RUN_ROWS or nbytes + piece.nbytes > GATHER_BYTES):
                    return pieces, offsets
                pieces.append(piece)
                rows += piece.num_rows
                nbytes += piece.nbytes
                position = self.position_of(part) + piece.num_rows
                self._positions[part.index] = offsets[(self.name, part.index)] = position
                self._turn = part.index + 1
                if rows >= min(max_rows, RUN_ROWS):
                    return pieces, offsets
        return pieces, offsets

    def _opened(self) -> _Topic:
        if self._topic is None:
            raise UserError(f"the source of topic {self.name!r} is not open")
        return self._topic

    def _lost(self, partition: int, position: int, first: int, end: int) -> UserError:
        return UserError(
            f"{self.name}[{partition}]: position {position} does not exist; the broker holds {first} to {end}",
            hint="memory:// dies with its process and keeps retention_bytes a topic; start afresh (--fresh)",
        )


class MemorySink(Sink):
    """Writes to a topic of the embedded broker. What `write` took is there at once. Changes become records with keys, and tombstones.

    A topic full of what its live readers have not read makes `write` wait; after `write_timeout` seconds it
    raises TransientError. Delivers exactly once, as long as the process lives: tokens are the broker's.
    """

    keeps_token = True
    lasting = False
    takes_changes = True

    def __init__(self, topic: str, broker_url: str = "memory://", *, write_timeout: float = 300.0) -> None:
        self.name = topic
        self._broker = MemoryBroker.get(broker_url)
        self._write_timeout = write_timeout
        self._topic: _Topic | None = None
        self._lane: Lane | None = None
        self._owner: object = None
        self._keys: Sequence[str] | None = None  # of the table whose changes come

    def check_types(self, schema: pa.Schema) -> None:
        refuse_json_types(schema, f"topic {self.name!r}")

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._keys = keys

    def open(self) -> None:
        self._lane = None
        self._topic = self._broker._topic(self.name)

    def write(self, batch: Batch) -> None:
        topic = self._opened()
        data = self._records(batch.taken())
        with step("append", self.name):
            topic.write([data], lambda: self._topic is None, self._write_timeout)

    def flush(self) -> None:
        """Nothing to do: `write` returns when the rows are in the log."""

    def claim(self, lane: Lane) -> Token | None:
        again = lane == self._lane
        if not again:
            self._owner = object()
        self.open()
        with step("claim", lane.key):
            token = self._broker.claim(lane, self._owner, again=again)
        self._lane = lane
        return token

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Changes as records, which know their keys whatever the program is that delivers them."""
        return self._records(data) if self._keys is not None and carries_changes(data.schema) else data

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        topic, lane, owner = self._opened(), self._claimed(), self._owner
        # a copy: what is delivered may be mapped from a file that is removed next
        rows = [_take(self._records(data), np.arange(data.num_rows)) for data in batches if data.num_rows]

        def together(append: Callable[[], None]) -> None:
            self._broker.advance(lane, owner, seq, append)

        with step("append", self.name):
            topic.write(rows, lambda: self._topic is None, self._write_timeout, together)

    def settle(self, seq: int) -> None:
        self._opened()
        with step("token", self.name):
            self._broker.advance(self._claimed(), self._owner, seq, lambda: None, anyhow=True)

    def close(self) -> None:
        topic, self._topic, self._lane = self._topic, None, None
        if topic is not None:
            with topic.lock:
                topic.writable.notify_all()

    def _records(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return to_records(Batch(data), int(SYSTEM_CLOCK.time() * 1000), self._keys)

    def _opened(self) -> _Topic:
        if self._topic is None:
            raise UserError(f"the sink of topic {self.name!r} is not open")
        return self._topic

    def _claimed(self) -> Lane:
        if self._lane is None:
            raise UserError(f"the sink of topic {self.name!r} is not open for parts: no lane was claimed")
        return self._lane


class CountSink(Sink):
    """Counts rows and forgets them, and says at the end how many: dead letters of a run that has no place for them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        self.rows += batch.num_rows

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        if self.rows:
            log.warning("%s: %d rows were set apart and are not in the result", self.name, self.rows)


class TableSink(Sink):
    """Keeps everything that is written, in memory: what `Stream.collect` gives."""

    def __init__(self, name: str = "table") -> None:
        self.name = name
        self._schema: pa.Schema | None = None
        self._batches: list[pa.RecordBatch] = []

    def expect(self, schema: pa.Schema) -> None:
        self._schema = schema

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        self._batches.append(batch.data)

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: the rows stay."""

    def table(self) -> pa.Table:
        """All rows so far."""
        schema = self._batches[0].schema if self._schema is None and self._batches else self._schema
        return pa.Table.from_batches(self._batches, schema=schema)


def _start_of(part: _Partition, start: str | int, committed: dict[int, int]) -> int:
    if start == "earliest":
        return part.first
    if start == "latest":
        return part.end
    if start == "committed":
        return committed.get(part.index, part.first)
    if isinstance(start, int):
        return part.offset_at(start)
    raise UserError(
        f"start={start!r} is no place to start", hint='"earliest", "latest", "committed" or a timestamp in ms'
    )


def _size(payload: bytes | None, key: bytes | None, headers: Headers) -> int:
    pairs = sum(len(name) + len(value or b"") for name, value in headers) if headers else 0
    return RECORD_BYTES + len(payload or b"") + len(key or b"") + pairs


def _take(data: pa.RecordBatch, rows: Any) -> pa.RecordBatch:
    indices: Any = pa.array(rows)
    return data.take(indices)


def _concat(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(pieces) == 1:
        return pieces[0]
    batches: list[pa.RecordBatch] = pa.Table.from_batches(pieces).combine_chunks().to_batches()
    return batches[0]
