from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

Position = tuple[str, int]

class Batch:
    """An Arrow RecordBatch with its source offsets: the only unit that moves between steps. Immutable.

    `data`: any object with `__arrow_c_array__` or `__arrow_c_stream__` (the chunks of a stream are joined), imported
    once; a pa.RecordBatch is kept as it is. Raises TypeError for an object without Arrow capsules. `offsets`:
    {(topic, partition): the next offset to read}; committing them covers every row of the batch. Raises ValueError if
    the rows of `data` and `rejected` are not together the rows of `records`.
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
        """The undecoded records of a decoded batch (pa.RecordBatch), for dead letters and checkpoints, or None if
        they are not known. Inside a stream they may be replaced by the origin of the rows
        (`operators.rows.origin.RowOrigin`).
        """
    @property
    def rejected(self) -> tuple[BadRow, ...]:
        """The rows of `records`, in order, that could not be decoded and are not in `data`."""
    @property
    def selection(self) -> pa.Int32Array | None:
        """The row numbers of `data` that count, in order, or None for all rows. Only batches inside a compiled chain
        have a selection.
        """
    @property
    def hashes(self) -> pa.UInt64Array | None:
        """The key hash of each row of `data`, or None if no shuffle has computed it."""
    @property
    def bad(self) -> pa.RecordBatch | None:
        """The records (codecs.records.BAD_SCHEMA) that a decoding source could not decode since its last batch, for
        the dead letters; or None. Slices and results of `with_data` do not have them.
        """
    @property
    def num_rows(self) -> int:
        """The number of rows that count."""
    @property
    def nbytes(self) -> int:
        """The bytes of the rows that count (of a slice: the slice's share), including children, offsets and
        `records`.
        """
    @property
    def schema(self) -> pa.Schema: ...
    def with_data(self, data: Any) -> Batch:
        """Returns a batch of other rows with the same offsets and topic. It has no `records` and `rejected`, which
        belong to the old rows.
        """
    def with_selection(self, selection: pa.Int32Array | None, hashes: pa.UInt64Array | None = None) -> Batch:
        """Returns a batch of the same data, offsets and topic in which only these rows count (all for None).
        `hashes`: the key hash of every row of `data`, or None.
        """
    def taken(self) -> pa.RecordBatch:
        """Returns the rows that count: `data` itself if there is no selection, else a copy."""
    def slice(self, offset: int, length: int | None = None) -> Batch:
        """Returns a part of the rows without copying. It keeps all offsets if it holds the last row; otherwise it has
        none.

        Consecutive slices divide `records` and `rejected` among them. Raises IndexError if `offset` is outside
        0..num_rows, ValueError for a negative `length`.
        """
    def __arrow_c_schema__(self) -> object: ...
    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]: ...

def normalise(data: Any) -> pa.RecordBatch:
    """Converts any Arrow data to a RecordBatch of canonical types.

    View, large, dictionary and run-end types become string, binary, list or plain types; all others stay. Call it
    wherever data comes from outside (user code, polars, DuckDB, files), so that kernels see canonical types only.
    Raises TypeError for an object without Arrow capsules, UserError for data that has no canonical form or whose
    buffers are too small. Offsets and values inside the buffers are not checked: `border.validate` does that.
    """
