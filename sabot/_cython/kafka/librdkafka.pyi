from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

PLUGINS: str
"""The setting that names the plugins of a client."""

def load_client(library: str) -> str:
    """Finds librdkafka's functions through the loaded shared object at this path, which uses the library: there must be one librdkafka in a
    process. Called once before the first RecordQueue is made. Returns the version of librdkafka.

    Raises UserError naming the first function that cannot be found.
    """

class RecordQueue:
    """The records of a consumer's partitions, in batches of columns.

    Every method may be called from any thread, and waits for one that another thread has called. The client itself has to be polled
    (`client.poll(0)`) for its callbacks; no record comes from there.
    """

    client: Any
    """What `make` has returned. It is not closed here; it must not be closed before `close`."""

    def __init__(
        self, make: Callable[[dict[str, Any]], Any], schema: pa.Schema, conf: dict[str, Any], *, headers: bool = True
    ) -> None:
        """make: confluent_kafka's Consumer, called with `conf` and the setting that lets us read it. schema: names for the columns payload,
        key (binary), timestamp (int64, ms), partition (int32), offset (int64) and headers (lists of structs: a string, binary).
        headers: False leaves that column null; `headers` then gives those of single records.

        Raises what `make` raises, and UserError where it makes no client of the library that was loaded.
        """

    def follow(self, topic: str, partitions: Iterable[int]) -> None:
        """Has the records of these partitions come here. Called before they are assigned, else some are lost. Raises UserError."""

    def read(
        self, max_rows: int, seconds: float
    ) -> tuple[pa.RecordBatch | None, dict[int, int], list[tuple[int, str, int, int]]]:
        """Takes up to `max_rows` records that are there; where there are none, waits so long for the first. The GIL is released.

        Returns the records, which have memory of their own (None: there are none), the offset behind the last record of each of their
        partitions, and the events among them: code and text of the client's error, partition, offset. An event may come alone, before
        the time is over. After `close` there is nothing. Raises UserError for records that take more than 2 GiB together.
        """

    def hold(self, partitions: Iterable[int]) -> list[int]:
        """Says whose records `read` gives from now on: those of all partitions but these. Returns those that are new among them and are to
        be paused now (`client.pause`).

        The records of two partitions stay in queues of their own, each up to what the client fetches ahead, and nothing of them is fetched
        again. Of further ones, which are paused, the client drops what it has fetched. Up to 200,000 records and 128 MiB of all partitions
        are kept here before, and come first once their partition is held no longer; the rest, and what was on its way, is fetched again.
        """

    def headers(self, partitions: Any, offsets: Any) -> pa.ListArray:
        """The headers of records of the last `read`, in any order, each any number of times; null for records that are not in it.

        partitions, offsets: numpy arrays of int32 and int64. Only of a queue that was made with `headers=False`.
        """

    def close(self) -> None:
        """Frees the queue, with what is in it; a read that waits in another thread returns. A second call does nothing."""

def rows_above(data: pa.RecordBatch, limit: int) -> dict[int, int]:
    """The rows whose payload, key and headers take more than `limit` bytes, each with these bytes. A header counts with its name, its
    value, and 10 bytes for their lengths. Takes what `RecordProducer.produce` takes.
    """

class RecordProducer:
    """Sends batches of records to one topic.

    Every method may be called from any thread. The client itself has to be polled (`client.poll(0)`) for its callbacks; none comes for a
    record. It may be flushed, be asked, and run transactions, but takes no records of its own: `client.produce` would leak memory.
    """

    client: Any
    """What `make` has returned. It must not be closed before this object is gone."""

    def __init__(
        self, make: Callable[[dict[str, Any]], Any], topic: str, partitions: int, conf: dict[str, Any]
    ) -> None:
        """make: confluent_kafka's Producer, called with `conf` and the setting that lets us use it. partitions: how many the topic has, if
        the client chooses them by `murmur2`; it is then given the rows by partition, which takes less than half of its time. With 1 it
        is given them in their order, as it must be with another partitioner.

        Raises what `make` raises, and UserError where it makes no client of the library that was loaded, or for a name that is no topic's.
        """

    def produce(self, data: pa.RecordBatch, taken: int) -> tuple[int, tuple[int, str] | None]:
        """Gives the rows to the client, which copies them, until it does not take one. The columns are payload, key (binary), timestamp
        (int64, ms), partition (int32), offset (int64) and headers (lists of structs: a string, binary). Partition and offset are ignored:
        the client chooses by key. A null timestamp, and 0, is the time of now. Rows of one key, and those without a key, stay in order;
        so do rows with keys in one partition, if there are `partitions`. The GIL is released.

        taken: what the last call for this batch has returned, at first 0. Returns how many rows the client has taken, and where these are
        not all, code and text of its error; None where its queue is merely full. Raises TypeError for other columns.
        """

    def wait(self, seconds: float) -> None:
        """Returns when a quarter of the records that are on their way were delivered or given up, or after so long. The GIL is released."""

    def refused(self) -> tuple[int, int, int, bytes | None, int] | None:
        """None: no record was refused since the last call. Else how many, and of the first of them the code of the client's error, the
        partition (-1: none was chosen), the first 64 bytes of its key, and the bytes of its payload and key.

        A record is known to be delivered when `client.flush` has returned 0 after it was taken and this returns None.
        """
