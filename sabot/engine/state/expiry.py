"""Time to live, for all backends: a stored value carries the time at which it expires.

    sealed value = 8 bytes expiry (big endian) + value

For agents the time is processing time (ms since 1970 UTC). It is read from the backend's clock, or is that of a
durable job, which is the same in every replay (`Expiry.at_ms`). For process functions it is event time, set by the
owner (ms since 1970 UTC plus 2**63, so that times before 1970 sort correctly as bytes). An expired value reads as
absent. It is removed later: when a snapshot is taken, or when the watermark says that no reader can see it any more.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from sabot.clock import Clock

MARK_BYTES = 8
"""The length in bytes of the expiry before a sealed value."""
_ZERO = 1 << 63  # added to event times in sealed values
_BUCKETS = 16  # buckets per time to live: the precision of the index in memory

Tables = dict[str, dict[bytes, bytes]]


class Table(Protocol):
    """The methods of a dict of values in the order in which they were written."""

    def get(self, key: bytes, /) -> bytes | None: ...
    def pop(self, key: bytes, default: None, /) -> object: ...
    def items(self) -> Iterable[tuple[bytes, bytes]]: ...
    def __delitem__(self, key: bytes, /) -> None: ...


class Expiry:
    """Seals values with an expiry `ttl_ms` from now, and opens sealed values that have not expired.

    `at_ms`: the current time for reads and writes, in ms since 1970, or None to read the clock. Its owner sets it
    around a read or a write. `needed_ms`: the earliest time at which a later read may happen, or None if no later
    read is before the clock's time. Values that have expired by then may be removed.
    """

    __slots__ = ("_clock", "at_ms", "needed_ms", "ttl_ms")

    def __init__(self, ttl_ms: int, clock: Clock) -> None:
        self.ttl_ms = ttl_ms
        self.at_ms: int | None = None
        self.needed_ms: int | None = None
        self._clock = clock

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000) if self.at_ms is None else self.at_ms

    def now_mark(self) -> bytes:
        """Returns the current time as a mark: a sealed value has expired if its first 8 bytes are not greater."""
        return self._now_ms().to_bytes(MARK_BYTES, "big")

    def passed_mark(self) -> bytes:
        """Returns the mark up to which expired values may be removed, because no read at an earlier time will come."""
        now_ms = self._now_ms()
        return (now_ms if self.needed_ms is None else min(now_ms, self.needed_ms)).to_bytes(MARK_BYTES, "big")

    def end_mark(self) -> bytes:
        """Returns the expiry of a value that is written now."""
        return (self._now_ms() + self.ttl_ms).to_bytes(MARK_BYTES, "big")

    def order(self) -> "ExpiryOrder":
        """Returns a new index that finds expired values in tables in memory. Each backend has one."""
        return ExpiryOrder()

    def seal(self, value: bytes | None) -> bytes | None:
        return None if value is None else self.end_mark() + value

    def open(self, sealed: bytes | None) -> bytes | None:
        if sealed is None or sealed[:MARK_BYTES] <= self.now_mark():
            return None
        return sealed[MARK_BYTES:]

    def seal_many(self, values: Sequence[bytes | None]) -> list[bytes | None]:
        end = self.end_mark()
        return [None if value is None else end + value for value in values]

    def open_many(self, sealed: Sequence[bytes | None]) -> list[bytes | None]:
        now = self.now_mark()
        return [None if value is None or value[:MARK_BYTES] <= now else value[MARK_BYTES:] for value in sealed]


class EventExpiry(Expiry):
    """Expiry by event time. Its owner sets `now_ms`, the event time of the row or timer, before each read and write;
    and `passed_ms`, the time before which nothing will be read, as the watermark rises.
    """

    __slots__ = ("now_ms", "passed_ms")

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.now_ms = self.passed_ms = -_ZERO

    def now_mark(self) -> bytes:
        return event_mark(self.now_ms)

    def passed_mark(self) -> bytes:
        return event_mark(self.passed_ms)

    def end_mark(self) -> bytes:
        return event_mark(self.now_ms + self.ttl_ms)

    def order(self) -> "ExpiryOrder":
        return _ByBucket(self)


def event_mark(ms: int) -> bytes:
    """Returns an event time as a mark, the form in which sealed values carry it."""
    return min(ms + _ZERO, 2**64 - 1).to_bytes(MARK_BYTES, "big")


class ExpiryOrder:
    """Finds the expired values of tables in memory without reading the others.

    Processing time does not run backwards, so values expire in the order in which they were written, which is the
    order of the dict. A durable job may write at an earlier time than the clock's. Its value then expires before
    values that were written earlier, and is removed together with them, later than it expires.
    """

    def written(self, namespace: str, table: Table, keys: Iterable[bytes]) -> None:
        """Moves those of the keys that exist already to the end of the order. Called before the values of the keys
        are written.
        """
        for key in keys:
            table.pop(key, None)

    def restored(self, tables: Tables) -> Tables:
        """Returns the tables of a checkpoint in the order of expiry."""
        return {
            name: dict(sorted(table.items(), key=lambda pair: pair[1][:MARK_BYTES])) for name, table in tables.items()
        }

    def remove(self, tables: Mapping[str, Table], passed: bytes) -> None:
        """Removes the values whose expiry is at most `passed`, at a cost that depends only on their number."""
        for table in tables.values():
            expired = []
            for key, value in table.items():  # the oldest first
                if value[:MARK_BYTES] > passed:
                    break
                expired.append(key)
            for key in expired:
                del table[key]


class _ByBucket(ExpiryOrder):
    """Finds expired values by event time, which may run backwards from row to row: keys are indexed by the bucket, an
    interval of time, in which their values expire. A bucket is read once, when all of it has passed.
    """

    def __init__(self, expiry: EventExpiry) -> None:
        self._expiry = expiry
        self._width = max(expiry.ttl_ms // _BUCKETS, 1)
        self._due: dict[
            int, dict[str, set[bytes]]
        ] = {}  # bucket -> namespace -> keys that were written to expire in it
        self._buckets: list[int] = []  # a heap of the buckets

    def written(self, namespace: str, table: Table, keys: Iterable[bytes]) -> None:
        self._expiring(namespace, self._expiry.now_ms + self._expiry.ttl_ms).update(keys)

    def restored(self, tables: Tables) -> Tables:
        self._due, self._buckets = {}, []
        for namespace, table in tables.items():
            for key, value in table.items():
                self._expiring(namespace, int.from_bytes(value[:MARK_BYTES], "big") - _ZERO).add(key)
        return tables

    def remove(self, tables: Mapping[str, Table], passed: bytes) -> None:
        passed_ms = int.from_bytes(passed, "big") - _ZERO
        while self._buckets and (self._buckets[0] + 1) * self._width <= passed_ms:
            for namespace, keys in self._due.pop(heapq.heappop(self._buckets)).items():
                table = tables.get(namespace)
                if table is not None:
                    for key in keys:
                        value = table.get(key)
                        if value is not None and value[:MARK_BYTES] <= passed:
                            del table[key]

    def _expiring(self, namespace: str, until_ms: int) -> set[bytes]:
        bucket = until_ms // self._width
        known = self._due.get(bucket)
        if known is None:
            known = self._due[bucket] = {}
            heapq.heappush(self._buckets, bucket)
        keys = known.get(namespace)
        if keys is None:
            keys = known[namespace] = set()
        return keys


def convert(value: bytes, sealed: bool, expiry: Expiry | None) -> bytes:
    """Returns a value of a checkpoint in the form in which a backend with `expiry` stores it. If the program has
    gained a ttl, a value without an expiry gets a full time to live from now; if the program has lost it, a sealed
    value loses its expiry.
    """
    if sealed and expiry is None:
        return value[MARK_BYTES:]
    if not sealed and expiry is not None:
        return expiry.end_mark() + value
    return value
