"""`KafkaSource`: the engine's source of a topic, which user code can also read record by record."""

from collections import deque
from collections.abc import AsyncIterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.config import Duration
from sabot.base.threads import run_in_thread, wait_done
from sabot.codecs.records import Record, iterate_records
from sabot.connectors.base import (
    Commits,
    HasIdentity,
    HoldsPartitions,
    LimitsRecords,
    Positions,
    ReadsInParallel,
    ReportsBacklog,
    ReportsLag,
    SkipsHeaders,
    Source,
    TakesBound,
)
from sabot.connectors.defaults import leave_headers, record_bytes_of, with_headers
from sabot.connectors.memory import MemorySource
from sabot.connectors.places import Bound, Until, checked_until
from sabot.errors import UserError
from sabot.kafka.topics import open_source

FETCH_ROWS = 1024  # how many records the record-by-record interface fetches ahead
FETCH_SECONDS = 0.5  # how long its thread waits for Kafka in one call, and so how long `stop` may take


class KafkaSource(
    Source,
    TakesBound,
    ReadsInParallel,
    SkipsHeaders,
    LimitsRecords,
    HasIdentity,
    Commits,
    ReportsLag,
    ReportsBacklog,
    HoldsPartitions,
):
    """A source that reads a topic of a kafka:// or memory:// broker.

    The engine uses the methods of `Source` and of its abilities. User code calls `await start()`, then `await
    get_next()`, `await next_record()` or `async for value in source`, and at the end `await stop()`. Reading begins
    at the group's committed offsets, or at the earliest record; `stop` commits the offsets of the records that were
    returned.

    `until`: the place where the source ends, as for `App.stream`, or None. At that place `async for` ends, and
    `get_next` raises UserError. `partition_check`: the time between two looks for new partitions. Other keyword
    arguments are settings of the Kafka client, with dots: `**{"security.protocol": "ssl"}`.
    """

    def __init__(
        self,
        topic: str,
        broker: str = "memory://",
        group_id: str = "",
        *,
        partition_check: Duration = "30s",
        until: Until | None = None,
        **kafka: Any,
    ) -> None:
        self.name = topic
        self.broker = broker
        self.group_id = group_id
        self._source = open_source(topic, broker, group_id, kafka, partition_check=partition_check)
        self.record_bytes = record_bytes_of(self._source)
        self._open = False
        self._thread: ThreadPoolExecutor | None = None  # reads from Kafka for the record-by-record interface
        self._fetch: Future[Batch | None] | None = None
        self._records: deque[Record] = deque()  # fetched, but not returned yet
        self._given: Positions = {}
        bound = checked_until(until, f"topic {topic!r}")
        if bound is not None:
            self.end_at(Bound(bound))

    # The engine's interface

    def end_at(self, bound: Bound) -> None:
        self._source.end_at(bound)
        super().end_at(bound)

    def skip_removed(self) -> None:
        if isinstance(self._source, TakesBound):
            self._source.skip_removed()

    @property
    def exhausted(self) -> bool:
        return self._source.exhausted and not self._records

    def leave_headers(self) -> None:
        leave_headers(self._source)

    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        return with_headers(self._source, records)

    def readers(self, count: int) -> Sequence[Source]:
        return self._source.readers(count)

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        if self._open:
            self.close()
        self._source.open(positions, start)
        self._open = True

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._records or self._fetch is not None:
            raise UserError(f"topic {self.name!r}: read_batch and get_next cannot be mixed on one source")
        return self._source.read_batch(max_rows, timeout)

    def positions(self) -> Positions:
        held = self._source.positions()
        for record in reversed(self._records):
            held[(record.topic, record.partition)] = record.offset
        return held

    @property
    def log_id(self) -> str:
        return self._source.log_id

    def topic_id(self) -> str:
        return self._source.topic_id()

    def identity(self) -> str | None:
        return self._source.identity()

    def commit(self, positions: Positions) -> None:
        self._source.commit(positions)

    def lag(self) -> dict[tuple[str, int], int]:
        return self._source.lag()

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        self._source.hold(partitions)

    def backlog(self) -> int | None:
        return self._source.backlog()

    def close(self) -> None:
        self._open = False
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread = self._fetch = None
        self._records.clear()
        self._given = {}
        self._source.close()

    # Record by record

    async def start(self) -> None:
        """Opens the source, if it is not open. Raises as `open` does."""
        if not self._open:
            await run_in_thread(self.open, None, "committed")

    async def stop(self) -> None:
        """Commits the offsets of the records that were returned, and closes the source, if it is open."""
        if self._open:
            await run_in_thread(self._commit_and_close)

    async def next_record(self) -> Record:
        """Waits for the next record and returns it. A cancelled call consumes nothing. Raises UserError after the
        last record before `until=`.
        """
        record = await self._next_record()
        if record is None:
            raise UserError(f"topic {self.name!r} has been read up to until=", hint="async for ends there by itself")
        return record

    async def _next_record(self) -> Record | None:
        """Waits for the next record and returns it, or None at the bound."""
        while not self._records:
            if not self._open:
                raise UserError(f"the source of topic {self.name!r} is not started", hint="await source.start()")
            if self._fetch is None and self.exhausted:
                return None
            batch = await self._next_batch()
            if batch is not None:
                self._records.extend(iterate_records(batch.data, self.name))
        record = self._records.popleft()
        self._given[(record.topic, record.partition)] = record.offset + 1
        return record

    async def get_next(self) -> Any:
        """Returns the next record's payload, decoded as JSON. Raises DataError if it is not JSON; that record is then
        consumed.
        """
        return (await self.next_record()).value

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (record := await self._next_record()) is not None:
            yield record.value

    async def _next_batch(self) -> Batch | None:
        if isinstance(self._source, MemorySource):  # this source waits for records without a thread
            return await self._source.read_batch_async(FETCH_ROWS)
        if self._fetch is None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kafka-{self.name}")
            self._fetch = self._thread.submit(self._source.read_batch, FETCH_ROWS, FETCH_SECONDS)
        fetch = self._fetch
        await wait_done(fetch)
        if self._fetch is not fetch:  # another call has taken the result
            return None
        self._fetch = None
        return fetch.result()

    def _commit_and_close(self) -> None:
        try:
            if self._given:
                self._source.commit(self._given)
        finally:
            self.close()
