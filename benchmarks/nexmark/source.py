"""The rows of one kind as a Source: made when they are read, and only the columns that are used."""

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sabot import Batch, Source, UserError
from sabot.connectors.base import Bounded, Positions, Scans

from .draws import Ints
from .generator import PER_EPOCH, SCHEMAS, Generator, count_rows

BLOCK_EPOCHS = 256  # readers take turns by so many epochs, which are 12,800 events


class NexmarkSource(Source, Bounded, Scans):
    """The people, auctions or bids among the first `events` events of a seed. A position is a row's number among those of its reader.

    Several readers take blocks of rows in turns. A block has whole epochs, so rows of the same time are in one block, and come in order. A
    batch has rows of as many blocks as it needs.
    """

    def __init__(self, kind: str, events: int, generator: Generator, *, block_epochs: int = BLOCK_EPOCHS) -> None:
        self.name = kind
        self.cpu_s = 0.0
        """Processor time that making the rows took."""
        self._generator = generator
        self._rows = count_rows(kind, events)
        self._block_rows = block_epochs * PER_EPOCH[kind][1]
        self._reader = 0
        self.count = 1
        """How many readers share the rows."""
        self._columns: Sequence[str] | None = None
        self._at = 0
        self._parts: list[NexmarkSource] = []

    def readers(self, count: int) -> Sequence[Source]:
        count = min(count, -(-self._rows // self._block_rows))
        if count <= 1:
            return [self]
        self._parts = [self._part(number, count) for number in range(count)]
        return self._parts

    def _part(self, number: int, count: int) -> "NexmarkSource":
        part = NexmarkSource.__new__(NexmarkSource)
        part.__dict__.update(self.__dict__, _reader=number, count=count)
        return part

    def total_cpu_s(self) -> float:
        """`cpu_s` of this source and of the readers that were made of it."""
        return self.cpu_s + sum(part.cpu_s for part in self._parts)

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        known = SCHEMAS[self.name]
        wanted = columns if columns is not None else schema.names if schema is not None else known.names
        if missing := [name for name in wanted if name not in known.names]:
            raise UserError(f"{self.name} has no column {', '.join(missing)}", hint=f"it has {', '.join(known.names)}")
        self._columns = list(wanted)
        return True

    def infer_schema(self) -> pa.Schema:
        return SCHEMAS[self.name]

    @property
    def schema(self) -> pa.Schema:
        known = SCHEMAS[self.name]
        return known if self._columns is None else pa.schema([known.field(name) for name in self._columns])

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        ours = {partition: at for (name, partition), at in (positions or {}).items() if name == self.name}
        if ours and len(ours) != self.count:
            raise UserError(
                f"{self.name}: the checkpoint has {len(ours)} readers, and {self.count} go on",
                hint="go on with the parallelism of the checkpoint, or start afresh",
            )
        self._at = ours.get(self._reader, 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        began = time.thread_time()
        numbers = self._numbers(max_rows)
        if not len(numbers):
            return None
        data = self._generator.rows_at(self.name, numbers, self._columns)
        self.cpu_s += time.thread_time() - began
        self._at += data.num_rows
        return Batch(data, self.positions(), self.name)

    @property
    def exhausted(self) -> bool:
        return not len(self._numbers(1))

    def _numbers(self, count: int) -> Ints:
        """The numbers of the next rows of this reader, at most so many."""
        block, inside = np.divmod(np.arange(self._at, self._at + count), self._block_rows)
        numbers = (block * self.count + self._reader) * self._block_rows + inside
        return numbers[: np.searchsorted(numbers, self._rows)]

    def positions(self) -> Positions:
        return {(self.name, self._reader): self._at}

    def close(self) -> None:
        """There is nothing to release."""
