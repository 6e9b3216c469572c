from collections.abc import Sequence
from typing import Any

import pyarrow as pa

KEY_GROUPS: int  # 1024
HASH_VERSION: int  # in every manifest; a change of the hash changes it

def check_keys(keys: pa.Schema) -> None:
    """Raises UserError for a key with more than 32 columns that are no text, which no table of keys takes."""

def key_hash(data: bytes) -> int:
    """The stable 64-bit hash of an encoded key. The same on every platform and Python version."""

def key_group(data: bytes) -> int:
    """key_hash(data) % KEY_GROUPS."""

def hash_array(keys: pa.Array[Any]) -> pa.UInt64Array:
    """Row i -> key_hash(msgpack(keys[i])). All integer widths hash alike, -0.0 as 0.0, every NaN alike, null as msgpack nil.

    bool, integers, float32/64, string, binary, fixed-size binary, null, in any encoding; else TypeError naming the type.
    """

def hash_columns(columns: Sequence[pa.Array[Any]], selection: pa.Int32Array | None = None) -> pa.UInt64Array:
    """Row i -> the stable hash of its key, as long as the columns; rows outside of the selection are not computed (any value).

    One column: `hash_array` (dates and times: as the integers that they are stored as). Several: combined in order, stably
    (part of HASH_VERSION). The GIL is released. TypeError for types without a hash, IndexError for a selection beyond the rows.
    """

def hash_rows(keys: list[bytes | None]) -> list[int]:
    """Record keys (raw bytes) -> key_hash of each; None -> 0."""

def partition_indices(hashes: pa.UInt64Array, parts: int) -> tuple[pa.Int32Array, pa.Int32Array]:
    """A stable counting sort of rows by key group, key groups split evenly over `parts`.

    -> (row indices ordered by part, `parts + 1` bounds into them). Rows keep their order inside a part.
    Key group g belongs to part g * parts // KEY_GROUPS; `parts` is 1 to KEY_GROUPS (else ValueError).
    """
