from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class RowCodec:
    """Rows of columns <-> bytes, one bytes object a row. Resolved once for its types.

    A row is a bit a column (1: not null), padded to bytes, then the values that are not null, in order: numbers as they stand in
    memory (little endian), bool as a byte, strings and binaries behind their length in 4 bytes. Keys that are equal as keys
    (-0.0 and 0.0, every NaN) are equal as bytes with `as_keys`. TypeError at construction for types that are not fixed-width
    numbers, times, bool, string or binary.
    """

    def __init__(self, types: Sequence[pa.DataType], *, as_keys: bool = False) -> None: ...
    def pack(
        self, columns: Sequence[pa.Array[Any]], *, pane: int = 0, heads: pa.UInt64Array | None = None
    ) -> list[bytes]:
        """With `heads`, each row begins with the pane (8 bytes that sort as the number does) and its head (8 bytes, big endian).

        Holds the GIL: give it a few thousand rows at a time.
        """
    def unpack(self, rows: Sequence[bytes], *, skip: int = 0) -> list[pa.Array[Any]]:
        """The columns of packed rows, without their first `skip` bytes. ValueError for bytes that are no row."""
