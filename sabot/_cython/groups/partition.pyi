from collections.abc import Sequence
from typing import Any

import pyarrow as pa

KEY_GROUPS: int  # the number of key groups, 1024
HASH_VERSION: int  # stored in every manifest; changes when the hash changes

def check_keys(keys: pa.Schema) -> None:
    """Raises UserError for a key with more than 32 columns that are not text: a table of keys supports no more."""

def key_hash(data: bytes) -> int:
    """Returns the stable 64-bit hash of an encoded key. It is the same on every platform and Python version."""

def key_group(data: bytes) -> int:
    """Returns the key group of an encoded key: key_hash(data) % KEY_GROUPS."""

def hash_array(keys: pa.Array[Any]) -> pa.UInt64Array:
    """Returns the key_hash of msgpack(keys[i]) for each row i. All integer widths hash alike, -0.0 like 0.0, every
    NaN alike, null like msgpack nil.

    Accepts bool, integers, float32/64, string, binary, fixed-size binary and null, in any encoding. Raises TypeError
    naming any other type.
    """

def hash_columns(columns: Sequence[pa.Array[Any]], selection: pa.Int32Array | None = None) -> pa.UInt64Array:
    """Returns the stable hash of each row's key: an array as long as the columns. Rows outside the selection have
    arbitrary values.

    For one column the result is that of `hash_array`, with dates and times as the integers that store them. The
    hashes of several columns are combined in order (part of HASH_VERSION). The GIL is released. Raises TypeError for
    types without a hash, ValueError for no column or columns of different lengths, IndexError for a selection beyond
    the rows.
    """

def hash_rows(keys: list[bytes | None]) -> list[int]:
    """Returns the key_hash of each record key (raw bytes), or 0 for None. Raises TypeError for any other key."""

def partition_indices(
    hashes: pa.UInt64Array, parts: int, selection: pa.Int32Array | None = None
) -> tuple[pa.Int32Array, pa.Int32Array]:
    """Sorts rows by part, in a stable counting sort. Key groups are divided evenly over the parts: key group g
    belongs to part g * parts // KEY_GROUPS.

    Returns the row numbers ordered by part, and `parts + 1` bounds into them. Rows keep their order inside a part.
    With a selection, only its rows are sorted. Raises IndexError for a selection beyond the hashes, ValueError unless
    `parts` is 1 to KEY_GROUPS.
    """
