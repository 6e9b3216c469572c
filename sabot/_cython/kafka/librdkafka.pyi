from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

PLUGINS: str
"""The setting that names the plugins of a client."""

def load_client(library: str) -> str:
    """Finds librdkafka's functions through the loaded shared object at this path, which uses the library, so that the
    process has one librdkafka. Call it once, before the first RecordQueue is made. Returns the version of librdkafka.

    Raises UserError naming the first function that cannot be found.
    """

class RecordQueue:
    """Reads the records of a consumer's partitions in batches of columns.

    Every method may be called from any thread; a call waits for a call in another thread. The client itself has to be
    polled (`client.poll(0)`) for its callbacks; `poll` returns no records.
    """

    client: Any
    """The client that `make` returned. This object does not close it; it must not be closed before `close`."""

    def __init__(
        self, make: Callable[[dict[str, Any]], Any], schema: pa.Schema, conf: dict[str, Any], *, headers: bool = True
    ) -> None:
        """`make`: confluent_kafka's Consumer, called with `conf` and the setting that gives us access to its records.
        `schema`: names for the columns payload, key (binary), timestamp (int64, ms), partition (int32), offset
        (int64) and headers (lists of structs: a string, binary). `headers`: False leaves that column null; the method
        `headers` then returns those of single records.

        Raises the errors of `make`, and UserError if it does not make a client of the loaded library.
        """

    def follow(self, topic: str, partitions: Iterable[int]) -> None:
        """Makes `read` return the records of these partitions. Call it before they are assigned, else some records
        are lost. Raises UserError if the client has no queue for a partition.
        """

    def read(
        self, max_rows: int, seconds: float
    ) -> tuple[pa.RecordBatch | None, dict[int, int], list[tuple[int, str, int, int]]]:
        """Reads up to `max_rows` records that have arrived; if there are none, waits up to `seconds` for the first.
        The GIL is released.

        Returns the records, which own their memory, or None; the offset after the last record of each of their
        partitions; and the events of partitions: code and text of the client's error, partition, offset. An event may
        end the waiting. After `close` it returns nothing. Raises UserError for records that take more than 2 GiB
        together.
        """

    def hold(self, partitions: Iterable[int]) -> list[int]:
        """Stops `read` from returning records of these partitions, and allows it again for all others. Returns the
        newly held partitions that the caller must pause now (`client.pause`).

        Two held partitions keep their records in queues of their own, each up to the amount that the client fetches
        ahead; these records are not fetched again. Further held partitions are paused, and the client drops what it
        has fetched of them. Before that, up to 200,000 records and 128 MiB of all partitions are copied to this
        object; `read` returns them first when their partition is not held any more. All other records are fetched
        again.
        """

    def headers(self, partitions: Any, offsets: Any) -> pa.ListArray:
        """Returns the headers of records of the last `read`, in any order, each any number of times; null for records
        that are not in it.

        `partitions`, `offsets`: numpy arrays of int32 and int64. Only for a queue that was made with `headers=False`.
        Raises ValueError if their lengths differ.
        """

    def close(self) -> None:
        """Frees the queue with its records. A `read` that waits in another thread returns. A second call does
        nothing.
        """

def rows_above(data: pa.RecordBatch, limit: int) -> dict[int, int]:
    """Returns {row: bytes} for the rows whose payload, key and headers take more than `limit` bytes. A header counts
    with its name, its value, and 10 bytes for their lengths. `data`: as for `RecordProducer.produce`.
    """

class RecordProducer:
    """Sends batches of records to one topic.

    Every method may be called from any thread. The client itself has to be polled (`client.poll(0)`) for its
    callbacks; records have none. The client may be flushed and run transactions, but must not send records of its
    own: `client.produce` would leak memory.
    """

    client: Any
    """The client that `make` returned. It must not be closed as long as this object exists."""

    def __init__(
        self, make: Callable[[dict[str, Any]], Any], topic: str, partitions: int, conf: dict[str, Any]
    ) -> None:
        """`make`: confluent_kafka's Producer, called with `conf` and the setting that gives us access to it.
        `partitions`: the number of partitions of the topic, if the client chooses them by `murmur2`; rows are then
        passed to it grouped by partition, which takes less than half of its time. With 1 they are passed in their
        order, as another partitioner requires. With 0 the client does not know the topic until `open_topic`: a broker
        may make the topics that a client asks for.

        Raises the errors of `make`, and UserError if it does not make a client of the loaded library, or refuses the
        name of the topic.
        """

    def open_topic(self, topic: str, partitions: int) -> None:
        """Opens the topic of a producer that was made with 0 partitions. Raises UserError if the client refuses the
        name of the topic, and ValueError for a second call.
        """

    def produce(self, data: pa.RecordBatch, taken: int) -> tuple[int, tuple[int, str] | None]:
        """Passes rows to the client, which copies them, until it refuses one. The columns are payload, key (binary),
        timestamp (int64, ms), partition (int32), offset (int64) and headers (lists of structs: a string, binary).
        Partition and offset are ignored: the client chooses by key. A timestamp of null or 0 becomes the current
        time. Rows with the same key, and rows without a key, stay in order; so do rows with keys in one partition, if
        `partitions` is more than 1. The GIL is released.

        `taken`: the number that the last call for this batch returned, at first 0. Returns the number of rows that
        the client has taken so far, and the code and text of its error if these are not all, or None if its queue is
        only full. Raises TypeError for other columns, ValueError for an impossible `taken`.
        """

    def wait(self, seconds: float) -> None:
        """Waits until a quarter of the records in flight were delivered or given up, or for `seconds`. The GIL is
        released.
        """

    def refused(self) -> tuple[int, int, int, bytes | None, int] | None:
        """Returns None if no record was refused since the last call. Otherwise returns the number of refused records,
        and for the first of them the code of the client's error, the partition (-1 if none was chosen), the first 64
        bytes of its key, and the bytes of its payload and key.

        A taken record is known to be delivered when `client.flush` has returned 0 after it, and then this method
        returns None.
        """
