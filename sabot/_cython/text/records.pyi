from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def binary_array(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """Returns an array of pa.binary() with these bytes objects, made in one pass without a Python call per row.

    Raises TypeError for an item that is neither bytes nor None, UserError if the bytes do not fit one array (2 GiB).
    """

def bytes_list(array: pa.Array[Any]) -> list[bytes | None]:
    """Returns the values of a binary or string array (any slice) as bytes objects. Raises TypeError for other types."""

def encode_keys(keys: pa.Array[Any]) -> list[bytes]:
    """Returns the key of state for each row: `state_key(keys[i].as_py())`, vectorised.

    Accepts string, binary, integers, bool and floats in any encoding; raises TypeError naming any other type,
    ValueError for a null.
    """

def key_rows(columns: Sequence[pa.Array[Any]], hashes: pa.UInt64Array) -> list[bytes]:
    """Returns the stored key of each row: the key group of hashes[i] (2 bytes, big endian), then the msgpack of the
    column's value, or of an array of the values of several columns. Equal keys (-0.0 and 0.0, every NaN) give equal
    bytes; null is a value like any other.

    Columns may be bool, ints, floats, string, binary and null, else TypeError; pass times as their integers. Raises
    ValueError for no columns, and for columns and hashes of different lengths.
    """

def state_key(key: object, *, scope: bytes = b"") -> bytes:
    """Returns one key of state: 2 bytes of key group (big endian) and msgpack(key).

    `scope`: the encoded key of a keyed agent's record, made by this function; the result is then `scope +
    msgpack(key)`, in the scope's key group. `key`: None, bool, int (64 bit), float, str, bytes, or tuples/lists of
    these (64 deep); raises TypeError for anything else. Floats are as in `hash_array`: -0.0 is the key 0.0, every NaN
    is one key. msgpack marks the end of each value, so no key is a prefix of another.
    """

def encode_values(values: pa.Array[Any]) -> list[bytes | None]:
    """Returns the msgpack of each row's value; None for null, which deletes.

    It is fast for bool, all ints, float32/64, string, binary, fixed_size_binary; lists of these and structs work too,
    more slowly, through msgspec. Timestamps, decimals and the like raise TypeError naming the type.
    """

def decode_values(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """Returns an Arrow array of msgpack values; None becomes null.

    Ints give int64 (uint64 if one needs it and none is negative), ints and floats together float64, str gives string,
    bin binary, bool bool, and no value at all pa.null(). Other or mixed values go through msgspec and pa.array, and
    raise their errors. A string that is not UTF-8 raises ValueError.
    """
