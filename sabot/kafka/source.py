"""`KafkaSource`: a topic, which user code can read record by record. The engine reads it by `kafka/reader`."""

from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from sabot._cython.arrow.batch import Batch
from sabot.base.config import Duration
from sabot.base.threads import run_in_thread, wait_done
from sabot.codecs.records import Record, iterate_records
from sabot.connectors.base import Positions, Source, TakesBound, stands_before
from sabot.connectors.memory import MemorySource
from sabot.connectors.places import Bound, Until, checked_until
from sabot.errors import UserError
from sabot.kafka.topics import open_source

if TYPE_CHECKING:
    from sabot.kafka.reader import KafkaReader

FETCH_ROWS = 1024  # how many records the record-by-record interface fetches ahead
FETCH_SECONDS = 0.5  # how long its thread waits for Kafka in one call, and so how long `stop` may take


@stands_before("source")
class KafkaSource(Source, TakesBound):
    """A source that reads a topic of a kafka:// or memory:// broker.

    Streams read the source that `readers` returns, which stands behind this one. User code calls `await start()`, then
    `await get_next()`, `await next_record()` or `async for value in source`, and at the end `await stop()`. Reading
    begins at the group's committed offsets, or at the earliest record; `stop` commits the offsets of the records that
    were returned.

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
        self.source = open_source(topic, broker, group_id, kafka, partition_check=partition_check)
        self._records = _Records(self.source)
        bound = checked_until(until, f"topic {topic!r}")
        if bound is not None:
            self.end_at(Bound(bound))

    @property
    def exhausted(self) -> bool:
        return self.source.exhausted and not self._records.fetched

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        if self._records.is_open:
            self.close()
        self.source.open(positions, start)
        self._records = _Records(self.source, is_open=True)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self._records.begun:
            raise UserError(f"topic {self.name!r}: read_batch and get_next cannot be mixed on one source")
        return self.source.read_batch(max_rows, timeout)

    def positions(self) -> Positions:
        return self.source.positions() | self._records.first

    def close(self) -> None:
        self._records.close()
        self.source.close()

    # Record by record

    async def start(self) -> None:
        """Opens the source, if it is not open. Raises as `open` does."""
        if not self._records.is_open:
            await run_in_thread(self.open, None, "committed")

    async def stop(self) -> None:
        """Commits the offsets of the records that were returned, and closes the source, if it is open."""
        if self._records.is_open:
            await run_in_thread(self._commit_and_close)

    def _commit_and_close(self) -> None:
        try:
            if self._records.given:
                self.commit(self._records.given)
        finally:
            self.close()

    async def next_record(self) -> Record:
        """Waits for the next record and returns it. A cancelled call consumes nothing. Raises UserError after the
        last record before `until=`.
        """
        record = await self._records.next()
        if record is None:
            raise UserError(f"topic {self.name!r} has been read up to until=", hint="async for ends there by itself")
        return record

    async def get_next(self) -> Any:
        """Returns the next record's payload, decoded as JSON. Raises DataError if it is not JSON; that record is then
        consumed.
        """
        return (await self.next_record()).value

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (record := await self._records.next()) is not None:
            yield record.value


class _Records:
    """The records of a source, one by one, from its `open` to its `close`."""

    def __init__(self, source: "KafkaReader | MemorySource", *, is_open: bool = False) -> None:
        self.is_open = is_open
        self.fetched: deque[Record] = deque()  # not returned yet
        self.given: Positions = {}  # behind the records that were returned
        self._source = source
        self._thread: ThreadPoolExecutor | None = None
        self._fetch: Future[Batch | None] | None = None

    @property
    def begun(self) -> bool:
        """True if records were fetched that `read_batch` would not return again."""
        return bool(self.fetched) or self._fetch is not None

    @property
    def first(self) -> Positions:
        """The offsets of the first fetched record of each partition."""
        return {(record.topic, record.partition): record.offset for record in reversed(self.fetched)}

    async def next(self) -> Record | None:
        """Waits for the next record and returns it, or None at the bound."""
        while not self.fetched:
            if not self.is_open:
                raise UserError(
                    f"the source of topic {self._source.name!r} is not started", hint="await source.start()"
                )
            if self._fetch is None and self._source.exhausted:
                return None
            batch = await self._next_batch()
            if batch is not None:
                self.fetched.extend(iterate_records(batch.data, self._source.name))
        record = self.fetched.popleft()
        self.given[(record.topic, record.partition)] = record.offset + 1
        return record

    async def _next_batch(self) -> Batch | None:
        if isinstance(self._source, MemorySource):  # this source waits for records without a thread
            return await self._source.read_batch_async(FETCH_ROWS)
        if self._fetch is None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"kafka-{self._source.name}")
            self._fetch = self._thread.submit(self._source.read_batch, FETCH_ROWS, FETCH_SECONDS)
        fetch = self._fetch
        await wait_done(fetch)
        if self._fetch is not fetch:  # another call has taken the result
            return None
        self._fetch = None
        return fetch.result()

    def close(self) -> None:
        """Waits for the thread, and drops what was fetched."""
        self.is_open = False
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread = self._fetch = None
        self.fetched.clear()
        self.given = {}
