from collections.abc import Sequence

import pyarrow as pa

from sabot._cython.arrow.batch import Batch

def gathered(parts: Sequence[Batch]) -> tuple[pa.RecordBatch, pa.UInt64Array | None]:
    """The rows of these batches that count, one batch behind the other, and their key hashes (None where those of one are not known).

    Rows and hashes are copied once, without the GIL. The batches (one at least) have the same columns, else ValueError.
    """
