from typing import Any

import pyarrow as pa

HEADER_BYTES: int
"""The number of bytes of the header: a byte 0 and the id of a schema in 4 bytes."""

def schema_ids(payloads: pa.Array[Any]) -> tuple[list[int | None], pa.Int32Array | None]:
    """Reads the schema ids at the beginning of the payloads. Returns the ids, each once in the order of first
    appearance, with None for payloads without the header (and null payloads); and for each payload the index of its
    id, or None if all have the first.

    Raises TypeError unless the payloads are an Arrow array of binary or string. The GIL is released.
    """
