from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

Position = tuple[str, int]

class Batch:
    """An Arrow RecordBatch with its source offsets: the only unit that moves. Immutable.

    `data` is anything that speaks the Arrow C Data Interface (`__arrow_c_array__`, or `__arrow_c_stream__`, whose chunks are joined);
    it is imported once; a pa.RecordBatch is kept as it is. Raises TypeError for an object without Arrow capsules.
    `offsets` maps (topic, partition) to the NEXT offset to read, so committing them covers every row of the batch.
    """
    def __init__(
        self,
        data: Any,
        offsets: Mapping[Position, int] | None = None,
        topic: str = "",
        records: Any = None,
        rejected: Sequence[BadRow] = (),
        selection: pa.Int32Array | None = None,
        hashes: pa.UInt64Array | None = None,
        bad: pa.RecordBatch | None = None,
    ) -> None: ...
    @property
    def data(self) -> pa.RecordBatch: ...
    @property
    def offsets(self) -> dict[Position, int]: ...
    @property
    def topic(self) -> str: ...
    @property
    def records(self) -> Any:
        """The undecoded records of a decoded batch (pa.RecordBatch), for dead letters and checkpoints; on the way through a stream, where
        its rows come from (`operators.rows.origin.RowOrigin`). None: not known.
        """
    @property
    def rejected(self) -> tuple[BadRow, ...]:
        """The rows of `records`, in order, that could not be decoded and are not in `data`. (The constructor raises ValueError where the
        numbers of rows do not add up.)
        """
    @property
    def selection(self) -> pa.Int32Array | None:
        """The rows of `data` that count, in order, inside a compiled chain; None: all."""
    @property
    def hashes(self) -> pa.UInt64Array | None:
        """The key hash of each row of `data`, where a shuffle has computed it."""
    @property
    def bad(self) -> pa.RecordBatch | None:
        """The records (codecs.records.BAD_SCHEMA) that a source which decodes by itself has set apart since its last batch, for the dead
        letters. Only the batch that the source made has them: neither a slice nor the result of `with_data` does."""
    @property
    def num_rows(self) -> int:
        """Rows that count."""
    @property
    def nbytes(self) -> int:
        """Bytes that the rows of this batch take (of a slice: the slice's share), children, offsets and `records` included."""
    @property
    def schema(self) -> pa.Schema: ...
    def with_data(self, data: Any) -> Batch:
        """The same offsets and topic with other rows, without `records` and `rejected`, which belong to the rows of this batch."""
    def with_selection(self, selection: pa.Int32Array | None, hashes: pa.UInt64Array | None = None) -> Batch:
        """The same data, offsets and topic, of which only these rows count."""
    def taken(self) -> pa.RecordBatch:
        """`data` without the rows that the selection leaves out; `data` itself where there is none."""
    def slice(self, offset: int, length: int | None = None) -> Batch:
        """A part of the rows, without copying. The slice keeps all offsets when it holds the last row; otherwise it has none.

        Consecutive slices divide `records` and `rejected` among them. Raises IndexError outside 0..num_rows, ValueError for a negative
        length.
        """
    def __arrow_c_schema__(self) -> object: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

def normalise(data: Any) -> pa.RecordBatch:
    """Converts any Arrow data to a RecordBatch of canonical types.

    View, large, dictionary and run-end types become string, binary, list or plain types; decimal128 and all others stay. It is called
    once wherever data comes from outside (user code, polars, DuckDB, files), so that kernels see canonical types only.
    """
