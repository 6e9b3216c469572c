from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def binary_array(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """bytes objects -> pa.binary(), one pass, no per-row Python call."""

def bytes_list(array: pa.Array[Any]) -> list[bytes | None]:
    """A binary or string array (any slice) -> bytes objects."""

def encode_keys(keys: pa.Array[Any]) -> list[bytes]:
    """Keys of state, vectorised: row i -> `state_key(keys[i].as_py())`.

    string, binary, integers, bool, floats, in any encoding; else TypeError naming the type. A null is a ValueError.
    """

def key_rows(columns: Sequence[pa.Array[Any]], hashes: pa.UInt64Array) -> list[bytes]:
    """Row i -> the key that state stands under: the key group of hashes[i] (2 bytes, big endian), then msgpack of the column's value, of
    several columns of an array of them. Equal keys (-0.0 and 0.0, every NaN) give equal bytes; null is a value like others.

    Columns: bool, ints, floats, string, binary, null. TypeError for others: times come as the integers that they are.
    """

def state_key(key: object, *, scope: bytes = b"") -> bytes:
    """One key of state: 2 bytes key group (big endian) + msgpack(key).

    With `scope` (an encoded key, made by this function, of a keyed agent's own key) the result is `scope + msgpack(key)`:
    it keeps the scope's key group. Floats as in `hash_array`: -0.0 is the key 0.0, every NaN is one key.
    msgpack is self-delimiting, so no key is a prefix of another.
    key: None, bool, int (64 bit), float, str, bytes, or tuples/lists of these; anything else is a TypeError.
    """

def encode_values(values: pa.Array[Any]) -> list[bytes | None]:
    """Arrow values -> msgpack, row by row (null -> None = delete).

    Fast for bool, all ints, float32/64, string, binary, fixed_size_binary; lists of these and structs also work
    (through msgspec, slower). Timestamps, decimals and the like: TypeError that names the type.
    """

def decode_values(values: Sequence[bytes | None]) -> pa.Array[Any]:
    """msgpack values -> an Arrow array; None -> null.

    All ints -> int64 (uint64 where one needs it and none is negative), ints and floats -> float64, str -> string, bin -> binary,
    bool -> bool; other or mixed values go through msgspec and pa.array, with their errors; no value at all -> pa.null().
    Strings that are no UTF-8: ValueError.
    """
