from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def binary_array(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """An array of pa.binary() from bytes objects, in one pass and without a Python call per row."""

def bytes_list(array: pa.Array[Any]) -> list[bytes | None]:
    """The values of a binary or string array (any slice) as bytes objects."""

def encode_keys(keys: pa.Array[Any]) -> list[bytes]:
    """The key of state for each row: `state_key(keys[i].as_py())`, vectorised.

    Accepts string, binary, integers, bool and floats in any encoding; else TypeError naming the type. A null raises ValueError.
    """

def key_rows(columns: Sequence[pa.Array[Any]], hashes: pa.UInt64Array) -> list[bytes]:
    """The stored key of each row: the key group of hashes[i] (2 bytes, big endian), then the msgpack of the column's value, or of an array
    of the values of several columns. Equal keys (-0.0 and 0.0, every NaN) give equal bytes; null is a value like any other.

    Columns may be bool, ints, floats, string, binary and null, else TypeError; times have to be passed as their integers.
    """

def state_key(key: object, *, scope: bytes = b"") -> bytes:
    """One key of state: 2 bytes of key group (big endian) + msgpack(key).

    With `scope` (the encoded key of a keyed agent's record, made by this function) the result is `scope + msgpack(key)`, which keeps the
    scope's key group. Floats are as in `hash_array`: -0.0 is the key 0.0, every NaN is one key.
    msgpack is self-delimiting, so no key is a prefix of another.
    key: None, bool, int (64 bit), float, str, bytes, or tuples/lists of these; anything else raises TypeError.
    """

def encode_values(values: pa.Array[Any]) -> list[bytes | None]:
    """The msgpack of each row's value; None, which deletes, for null.

    It is fast for bool, all ints, float32/64, string, binary, fixed_size_binary; lists of these and structs also work, more slowly, through
    msgspec. Timestamps, decimals and the like raise TypeError naming the type.
    """

def decode_values(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """An Arrow array from msgpack values; None becomes null.

    Ints give int64 (uint64 where one needs it and none is negative), ints and floats together float64, str gives string, bin binary, bool
    bool, and no value at all pa.null(). Other or mixed values go through msgspec and pa.array, and raise their errors. A string that is not
    UTF-8 raises ValueError.
    """
