"""Rows that an operator is about to emit: small batches become one, so that the steps behind it do not work for each of them."""

from collections.abc import Callable

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.engine.operators.base import CHUNK_ROWS


class OutputBuffer:
    """A buffer of rows to be emitted, which joins small batches, in order, up to CHUNK_ROWS."""

    def __init__(self, emit: Callable[[Batch], None]) -> None:
        self._emit = emit
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, rows: pa.RecordBatch) -> None:
        if not rows.num_rows:
            return
        if self._rows + rows.num_rows > CHUNK_ROWS:
            self.flush()
        self._held.append(rows)
        self._rows += rows.num_rows

    def flush(self) -> None:
        """Emits all rows that were added."""
        held, self._held, self._rows = self._held, [], 0
        if held:
            self._emit(Batch(held[0] if len(held) == 1 else pa.concat_batches(held)))
