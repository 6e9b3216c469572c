"""The rows of partial matches, with the columns that measures need, by the numbers of the rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.base.arrays import empty_batch
from sabot.engine.operators.base import CHUNK_ROWS

_PIECE_ROWS = 16_384  # smaller pieces are joined when they have so many rows together
_PIECES = 256  # or when there are so many pieces


class PatternRows:
    """Rows by number. Rows are added in pieces. Numbers ascend from piece to piece, and have no gaps within one."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._pieces: list[pa.RecordBatch] = []
        self._first: list[int] = []  # the number of the first row of each piece
        self._small = self._loose = 0  # the rows of the small pieces at the end, and the number of these pieces

    def __len__(self) -> int:
        return sum(piece.num_rows for piece in self._pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self._pieces)

    def append(self, data: pa.RecordBatch, first: int) -> None:
        """Adds rows with the numbers first, first + 1, …. Joins small pieces."""
        self._pieces.append(data)
        self._first.append(first)
        small = data.num_rows < _PIECE_ROWS
        self._small, self._loose = (self._small + data.num_rows, self._loose + 1) if small else (0, 0)
        if self._small < _PIECE_ROWS and self._loose < _PIECES:
            return
        tail: list[pa.RecordBatch] = []
        while self._pieces and self._pieces[-1].num_rows < _PIECE_ROWS:
            tail.append(self._pieces.pop())
            first = self._first.pop()
        together = pa.concat_batches(tail[::-1])
        self._pieces.append(together)
        self._first.append(first)
        self._small, self._loose = (0, 0) if self._small >= _PIECE_ROWS else (together.num_rows, 1)

    def taken(self, rows: Any) -> pa.RecordBatch:
        """Returns the rows with these numbers (numpy, in any order, with repeats)."""
        return _take_rows(self.schema, self._pieces, self._first, rows)

    def clear(self) -> None:
        """Removes all rows."""
        self._pieces, self._first, self._small, self._loose = [], [], 0, 0

    def keep(self, rows: pa.Int64Array) -> None:
        """Removes all other rows, and renumbers: the i-th of `rows` gets the number i."""
        kept = list(row_pieces(self.taken, rows.to_numpy()))
        self.clear()
        for first, data in kept:
            self.append(data, first)

    def frozen(self) -> Callable[[Any], pa.RecordBatch]:
        """Returns a function like `taken` that reads the rows as they are now, even if the rows change later. Another
        thread may call it.
        """
        schema, pieces, first = self.schema, list(self._pieces), list(self._first)
        return lambda rows: _take_rows(schema, pieces, first, rows)


def row_pieces(taken: Callable[[Any], pa.RecordBatch], rows: Any) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows as (the place of the first row, the rows), in pieces of CHUNK_ROWS, since an array of text can
    have at most 2 GiB.
    """
    for start in range(0, len(rows), CHUNK_ROWS):
        yield start, taken(rows[start : start + CHUNK_ROWS])


def _take_rows(schema: pa.Schema, pieces: Sequence[pa.RecordBatch], first: Sequence[int], rows: Any) -> pa.RecordBatch:
    """Returns the rows with these numbers. Looks into each piece once."""
    if not len(rows) or not len(schema):
        return empty_batch(schema)
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    bounds = [*np.searchsorted(ascending, first), len(ascending)]
    parts = [
        piece.take(pa.array(ascending[low:high] - start))
        for piece, start, low, high in zip(pieces, first, bounds, bounds[1:], strict=False)
        if high > low
    ]
    together = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
    if (order[1:] > order[:-1]).all():
        return together
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return together.take(pa.array(back))
