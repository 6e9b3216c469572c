from typing import Any

import pyarrow as pa

HEADER_BYTES: int
"""The length of the header: the first byte, which is 0, and the id of a schema."""

def schema_ids(payloads: pa.Array[Any]) -> tuple[list[int | None], pa.Int32Array | None]:
    """The ids that the payloads begin with, each once, in the order of their first appearance; None among them stands for payloads without
    the header, null ones too. And for each payload which of them it has; None where all have the first.

    Accepts an Arrow array of binary or string, any slice; else TypeError. The GIL is released.
    """
