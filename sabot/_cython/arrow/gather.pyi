from collections.abc import Sequence

import pyarrow as pa

from sabot._cython.arrow.batch import Batch

def gathered(parts: Sequence[Batch]) -> tuple[pa.RecordBatch, pa.UInt64Array | None]:
    """Joins the selected rows of the batches, in order. Returns the rows, and their key hashes or None if one batch
    has no hashes.

    Rows and hashes are copied once, without the GIL. There must be at least one batch. Raises ValueError if the
    columns of the batches differ.
    """
