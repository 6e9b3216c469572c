"""A source whose rows follow from a seed and their number, so that a restart makes the same ones again."""

import threading
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.connectors.base import Bounded, Positions, Source

Numbers = npt.NDArray[np.int64]

Field = Callable[[np.random.Generator, Numbers, Numbers], pa.Array]
"""A function that returns the values of a column in some rows. It is called with random numbers, the numbers of the rows and
their times in ms since 1970.
"""

BLOCK = 4096
"""Rows that are made at once, unless they are long. Their random numbers depend on the seed, the column and the number of the
block.
"""

_BLOCK_BYTES = 16 << 20

_TICKS = 20  # a second: rows come in groups, since a batch for each would cost more than its rows


class GeneratedSource(Source, Bounded):
    """A source of made rows, `per_second` of them, each at its time. The offset of a row is its number.

    `fields`: a function for each column of `schema`. `rows`: how many there are, or None for no end. `row_bytes`: the size
    of a row; so many are made at once that they take 16 MiB at most. The time of row n is the moment of the first start
    plus n / `per_second`; checkpoints keep that moment, so a restart repeats times too.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        fields: Mapping[str, Field],
        *,
        rows: int | None,
        per_second: int,
        row_bytes: int = 0,
        seed: int = 0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = name
        self.bounded = rows is not None
        self._schema = schema
        self._fields = fields
        self._rows = rows
        self._per_second = per_second
        self._block_rows = max(1, min(BLOCK, _BLOCK_BYTES // max(1, row_bytes)))
        self._seed = seed
        self._clock = clock
        self._at = 0
        self._first_ms: int | None = None
        self._opened_at = (0, 0.0)  # the row and the steady time of `open`
        self._block: tuple[int, pa.RecordBatch] | None = None
        self._closed = threading.Event()

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._at = (positions or {}).get((self.name, 0), 0)
        if self._first_ms is None:
            self._first_ms = int(self._clock.time() * 1000)
        self._opened_at = self._at, self._clock.monotonic()
        self._closed.clear()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.exhausted:
            return None
        number, within = divmod(self._at, self._block_rows)
        wanted = min(max_rows, self._block_rows - within)
        if self._rows is not None:
            wanted = min(wanted, self._rows - self._at)
        group = min(wanted, max(1, self._per_second // _TICKS))
        due_s = self._due_s(group)
        if due_s > 0:
            self._closed.wait(min(timeout, due_s))
            if self._due_s(group) > 0:
                return None
        if self._block is None or self._block[0] != number:
            self._block = number, self.made(number)
        data = self._block[1].slice(within, min(wanted, self._due()))
        self._at += data.num_rows
        return Batch(data, self.positions(), self.name)

    def made(self, number: int) -> pa.RecordBatch:
        """Returns all rows of a block."""
        numbers = np.arange(number * self._block_rows, (number + 1) * self._block_rows, dtype=np.int64)
        times = (self._first_ms or 0) + numbers * 1000 // self._per_second
        columns = []
        for name in self._schema.names:
            key = np.array([self._seed, zlib.crc32(name.encode())], np.uint64)
            counter = np.array([0, 0, number, 0], np.uint64)
            columns.append(
                self._fields[name](np.random.Generator(np.random.Philox(counter=counter, key=key)), numbers, times)
            )
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _due(self) -> int:
        """Returns the number of rows whose time has come, and that are not read."""
        row, began_s = self._opened_at
        return row + int((self._clock.monotonic() - began_s) * self._per_second) + 1 - self._at

    def _due_s(self, rows: int) -> float:
        """Returns the seconds until so many further rows are due."""
        row, began_s = self._opened_at
        return (self._at + rows - 1 - row) / self._per_second - (self._clock.monotonic() - began_s)

    @property
    def exhausted(self) -> bool:
        return self._rows is not None and self._at >= self._rows

    def positions(self) -> Positions:
        return {(self.name, 0): self._at}

    def remember(self) -> Mapping[tuple[str, int], bytes]:
        return {} if self._first_ms is None else {(self.name, 0): self._first_ms.to_bytes(8, "little")}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        if (self.name, 0) in memory:
            self._first_ms = int.from_bytes(memory[self.name, 0], "little")

    def identity(self) -> None:
        """Returns None: other options make other rows under the same numbers."""

    def backlog(self) -> int | None:
        return None if self._rows is None else self._rows - self._at

    def close(self) -> None:
        self._closed.set()
