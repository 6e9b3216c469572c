from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class RowCodec:
    """Converts rows of columns to bytes objects, one per row, and back. Types are resolved once, at construction.

    A row has a bit per column (1: not null), padded to bytes, then the values that are not null, in order: numbers as in memory (little
    endian), bool as a byte, strings and binaries behind their length in 4 bytes. With `as_keys`, values that are equal as keys (-0.0 and
    0.0, every NaN) are equal as bytes. The constructor raises TypeError for types other than fixed-width numbers, times, bool, string
    and binary.
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
