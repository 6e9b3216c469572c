from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

Position = tuple[str, int]

class Batch:
    """An Arrow RecordBatch with its source offsets: the only unit that moves. Immutable.

    `data` is anything that speaks the Arrow C Data Interface (`__arrow_c_array__`, or `__arrow_c_stream__`, whose chunks are joined);
    it is imported once; a pa.RecordBatch is kept as it is. What speaks no Arrow is a TypeError.
    `offsets` maps (topic, partition) to the NEXT offset to read: committing them covers every row of the batch.
    """
    def __init__(
        self,
        data: Any,
        offsets: Mapping[Position, int] | None = None,
        topic: str = "",
        records: pa.RecordBatch | None = None,
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
    def records(self) -> pa.RecordBatch | None:
        """Of a decoded batch: the undecoded records, for dead letters and checkpoints."""
    @property
    def rejected(self) -> tuple[BadRow, ...]:
        """Rows of `records`, in order, that could not be decoded and are not in `data` (ValueError if the numbers of rows do not fit)."""
    @property
    def selection(self) -> pa.Int32Array | None:
        """Inside a compiled chain: the rows of `data` that count, in order; None: all."""
    @property
    def hashes(self) -> pa.UInt64Array | None:
        """The key hash of each row of `data`, where a shuffle has computed it."""
    @property
    def bad(self) -> pa.RecordBatch | None:
        """Of a batch straight from a source that decodes by itself: the records that it set apart since the batch before
        (codecs.records.BAD_SCHEMA), for the dead letters. No other batch has them: neither a slice nor `with_data`."""
    @property
    def num_rows(self) -> int:
        """Rows that count."""
    @property
    def nbytes(self) -> int:
        """Bytes that the rows of this batch take (of a slice: the slice's share), children, offsets and `records` included."""
    @property
    def schema(self) -> pa.Schema: ...
    def with_data(self, data: Any) -> Batch:
        """The same offsets and topic over other rows. `records` and `rejected` stay behind: they belong to these rows."""
    def with_selection(self, selection: pa.Int32Array | None, hashes: pa.UInt64Array | None = None) -> Batch:
        """The same data, offsets and topic; only these rows count."""
    def taken(self) -> pa.RecordBatch:
        """`data` without the rows that the selection leaves out; `data` itself where there is none."""
    def slice(self, offset: int, length: int | None = None) -> Batch:
        """Rows without copying. The slice keeps all offsets only when it holds the last row; else it has none.

        Slices that lie end to end share out `records` and `rejected`. IndexError outside 0..num_rows, ValueError for a negative length.
        """
    def __arrow_c_schema__(self) -> object: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

def normalise(data: Any) -> pa.RecordBatch:
    """Any Arrow capsule -> a RecordBatch of canonical types.

    View, large, dictionary and run-end types become string/binary/list/plain; decimal128 and all else stay.
    Called once at every border (user code, polars, DuckDB, files); kernels then see canonical types only.
    """
