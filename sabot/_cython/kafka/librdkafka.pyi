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

    def __init__(self, make: Callable[[dict[str, Any]], Any], schema: pa.Schema, conf: dict[str, Any]) -> None:
        """make: confluent_kafka's Consumer, called with `conf` and the setting that lets us read it. schema: names for the columns payload,
        key (binary), timestamp (int64, ms), partition (int32), offset (int64) and headers (lists of structs: a string, binary).

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

    def close(self) -> None:
        """Frees the queue, with what is in it; a read that waits in another thread returns. A second call does nothing."""
