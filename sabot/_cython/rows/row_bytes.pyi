from collections.abc import Sequence
from typing import Any

import pyarrow as pa

class RowCodec:
    """Converts rows of columns to bytes objects, one per row, and back. Types are resolved once, at construction.

    A row has a bit per column (1 if not null), padded to bytes, then the values that are not null, in order: numbers
    as in memory (little endian), bool as a byte, strings and binaries after their length in 4 bytes. With `as_keys`,
    values that are equal as keys (-0.0 and 0.0, every NaN) are equal as bytes. Raises TypeError for types other than
    fixed-width numbers, times, bool, string and binary.
    """

    def __init__(self, types: Sequence[pa.DataType], *, as_keys: bool = False) -> None: ...
    def pack(
        self, columns: Sequence[pa.Array[Any]], *, pane: int = 0, heads: pa.UInt64Array | None = None
    ) -> list[bytes]:
        """Packs each row into a bytes object. With `heads`, a row begins with the pane (8 bytes that sort like the
        number) and its head (8 bytes, big endian).

        Holds the GIL: call it for a few thousand rows at a time. Raises TypeError for columns of other types,
        ValueError for columns of different lengths.
        """
    def unpack(self, rows: Sequence[bytes], *, skip: int = 0) -> list[pa.Array[Any]]:
        """Returns the columns of packed rows, without the first `skip` bytes of each row. Raises ValueError for bytes
        that are not a row, UserError for more than 2 GiB of text.
        """
