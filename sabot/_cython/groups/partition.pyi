from collections.abc import Sequence
from typing import Any

import pyarrow as pa

KEY_GROUPS: int  # 1024
HASH_VERSION: int  # stored in every manifest; it changes when the hash changes

def check_keys(keys: pa.Schema) -> None:
    """Raises UserError for a key with more than 32 columns that are not text, which a table of keys does not support."""

def key_hash(data: bytes) -> int:
    """The stable 64-bit hash of an encoded key. The same on every platform and Python version."""

def key_group(data: bytes) -> int:
    """key_hash(data) % KEY_GROUPS."""

def hash_array(keys: pa.Array[Any]) -> pa.UInt64Array:
    """The key_hash of msgpack(keys[i]) for each row i. All integer widths hash alike, -0.0 as 0.0, every NaN alike, null as msgpack nil.

    Accepts bool, integers, float32/64, string, binary, fixed-size binary and null, in any encoding; else TypeError naming the type.
    """

def hash_columns(columns: Sequence[pa.Array[Any]], selection: pa.Int32Array | None = None) -> pa.UInt64Array:
    """The stable hash of each row's key, an array as long as the columns; the values of rows outside the selection are arbitrary.

    For one column the result is that of `hash_array`, with dates and times as the integers that store them. The hashes of several columns
    are combined in order (part of HASH_VERSION). The GIL is released. Raises TypeError for types without a hash, IndexError for a
    selection beyond the rows.
    """

def hash_rows(keys: list[bytes | None]) -> list[int]:
    """The key_hash of each record key (raw bytes); 0 for None."""

def partition_indices(
    hashes: pa.UInt64Array, parts: int, selection: pa.Int32Array | None = None
) -> tuple[pa.Int32Array, pa.Int32Array]:
    """Sorts rows by part (a stable counting sort), where key groups are divided evenly over `parts`.

    Returns the row numbers ordered by part, and `parts + 1` bounds into them. Rows keep their order inside a part. Of a selection, only
    its rows are sorted. Raises IndexError for a selection beyond the hashes.
    Key group g belongs to part g * parts // KEY_GROUPS; `parts` is 1 to KEY_GROUPS (else ValueError).
    """
