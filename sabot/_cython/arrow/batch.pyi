from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

Position = tuple[str, int]

class Batch:
    """An Arrow RecordBatch with its source offsets: the only unit that moves between steps. Immutable.

    `data`: any object with `__arrow_c_array__` or `__arrow_c_stream__`, which is imported once (the chunks of a
    stream are joined); a pa.RecordBatch is used as it is. Raises TypeError for an object without Arrow capsules.
    `offsets`: {(topic, partition): the next offset to read}; committing them covers every row of the batch.
    `selection`: the rows of `data` that belong to the batch. Raises ValueError unless `records` has as many rows as
    the batch and `rejected` together.
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
        they are not known. Inside a stream this can be the origin of the rows instead
        (`operators.rows.origin.RowOrigin`).
        """
    @property
    def rejected(self) -> tuple[BadRow, ...]:
        """The rows of `records`, in order, that could not be decoded and are not in `data`."""
    @property
    def selection(self) -> pa.Int32Array | None:
        """The numbers of the rows of `data` that belong to the batch, in order, or None if all do. Only batches
        inside a compiled chain have a selection.
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
        """The number of rows: of the selected rows, if there is a selection."""
    @property
    def nbytes(self) -> int:
        """The bytes of the selected rows (of a slice: its share), including children, offsets and `records`."""
    @property
    def schema(self) -> pa.Schema: ...
    def with_data(self, data: Any) -> Batch:
        """Returns a batch with the rows `data` and the same offsets and topic. It has no `records` and no `rejected`,
        since these belong to the former rows.
        """
    def with_selection(self, selection: pa.Int32Array | None, hashes: pa.UInt64Array | None = None) -> Batch:
        """Returns a batch with the same data, offsets and topic, and another selection. `selection`: None for all
        rows. `hashes`: the key hash of every row of `data`, or None.
        """
    def taken(self) -> pa.RecordBatch:
        """Returns the selected rows as a copy, or `data` itself if there is no selection."""
    def slice(self, offset: int, length: int | None = None) -> Batch:
        """Returns a part of the rows without copying. If the part has the last row, it has all offsets; otherwise it
        has none.

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
