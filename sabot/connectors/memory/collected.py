"""Sinks that keep or count rows, and write nowhere."""

import logging
from collections.abc import Callable

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.quantities import counted_words
from sabot.connectors.base import Sink

log = logging.getLogger(__name__)


class CountSink(Sink):
    """A sink that counts rows, drops them, and logs the count at the end. It takes the dead letters of a run that has
    no other place for them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0

    def open(self) -> None:
        """There is nothing to open."""

    def write(self, batch: Batch) -> None:
        self.rows += batch.num_rows

    def flush(self) -> None:
        """Does nothing: no row is kept."""

    def close(self) -> None:
        if self.rows:
            were = "was" if self.rows == 1 else "were"
            log.warning("%s: %s %s set apart, and not in the result", self.name, counted_words(self.rows, "row"), were)


class TableSink(Sink):
    """A sink that keeps up to `limit` rows in memory, for `Stream.collect`. `on_full`: called at least once when it
    has so many, in the thread that writes.
    """

    def __init__(self, name: str = "table", *, limit: int | None = None) -> None:
        self.name = name
        self.on_full: Callable[[], object] = lambda: None
        self._free = limit
        self._schema: pa.Schema | None = None
        self._batches: list[pa.RecordBatch] = []

    def expect(self, schema: pa.Schema) -> None:
        self._schema = schema

    def open(self) -> None:
        if self._free == 0:
            self.on_full()

    def write(self, batch: Batch) -> None:
        data = batch.data if self._free is None else batch.data.slice(0, self._free)
        self._batches.append(data)
        if self._free is not None:
            self._free -= data.num_rows
            if self._free == 0:
                self.on_full()

    def flush(self) -> None:
        """Does nothing: the rows are in memory."""

    def close(self) -> None:
        """Does nothing: the rows stay."""

    def table(self) -> pa.Table:
        """Returns all rows so far."""
        schema = self._batches[0].schema if self._schema is None and self._batches else self._schema
        return pa.Table.from_batches(self._batches, schema=schema or pa.schema([]))
