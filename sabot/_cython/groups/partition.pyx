"""The key hash, key groups, and the partitioning of a batch by them. See partition.pyi for the contract."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.string cimport memset
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_OTHER, TYPE_UINT64, Numbers, View, open_key, open_view, rows_of

from sabot.errors import UserError

__all__ = [
    "HASH_VERSION",
    "KEY_GROUPS",
    "check_keys",
    "hash_array",
    "hash_columns",
    "hash_rows",
    "key_group",
    "key_hash",
    "partition_indices",
]

KEY_GROUPS = KEY_GROUP_COUNT
HASH_VERSION = CURRENT_HASH_VERSION

_KEY_NUMBERS = 32  # the most key columns that are not text: each has a null bit in one half of a word


def check_keys(keys):
    """Raises UserError for a key with more columns than a table supports."""
    types = pa.types
    numbers = sum([not (types.is_string(kind) or types.is_binary(kind) or types.is_decimal(kind)) for kind in keys.types])
    if numbers > _KEY_NUMBERS:
        raise UserError(
            f"a key has {numbers} columns that are not text ({', '.join(keys.names[:3])}, …): at most {_KEY_NUMBERS} are allowed",
            hint='make one text of some of them before: col("a").cast("string") + "/" + col("b").cast("string")',
        )


def key_hash(bytes data not None):
    """Returns the stable 64-bit hash of an encoded key, version 1.

    With 64-bit arithmetic, K0..K3 the odd constants of key_hash.h, and mix(a, b) the upper half of the 128-bit product
    a * b xor its lower half:

        step(h, a, b, K) = mix(a ^ K, b ^ h) + rotate_left(h, 27)
        h = K0 ^ size
        for every whole block of 16 bytes, as two little-endian words a, b:    h = step(h, a, b, K1)
        if bytes are left, filled up with zeros to 16 bytes:                   h = step(h, a, b, K2)
        the hash is mix(h ^ K3, K0 + size)

    The multiply-and-fold mixing is that of Wang Yi's wyhash; the added rotation preserves earlier blocks if a factor is 0.
    The hash resists accidents, not attackers: it has no seed, because state outlives the process.
    """
    return hash_bytes(<const uint8_t*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def key_group(bytes data not None):
    """Returns the key group of an encoded key: key_hash(data) % KEY_GROUPS."""
    return group_of(<const uint8_t*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


def hash_array(keys):
    """Returns the key_hash of msgpack(keys[i]) for each row i. See partition.pyi."""
    array = plain_array(keys)
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type == TYPE_OTHER or view.temporal:
        raise TypeError(f"cannot hash keys of type {array.type}: use bool, integers, floats, string or binary")
    buffer = pa.allocate_buffer(view.length * 8)
    cdef uint64_t* hashes = <uint64_t*> <size_t> buffer.address
    with nogil:
        hash_views(&view, 1, NULL, view.length, hashes)
    return pa.Array.from_buffers(pa.uint64(), view.length, [None, buffer], 0)


def hash_columns(columns, selection=None):
    """Returns the stable hash of each row's key. See partition.pyi.

    Several columns are combined with `step` and the constants of `key_hash`. With h the hash so far and g the hash of
    the next column, h = step(h, g, K0, K2).
    """
    cdef vector[View] views
    cdef list alive = []
    cdef View view
    if not columns:
        raise ValueError("no column to hash")
    for column in columns:
        array = plain_array(column)
        alive.append(open_key(array, &view))
        if view.type == TYPE_OTHER:
            raise TypeError(
                f"cannot hash keys of type {array.type}: use bool, integers, floats, decimals, string, binary, dates or times"
            )
        if views.size() and view.length != views[0].length:
            raise ValueError(f"key columns have {views[0].length} and {view.length} rows")
        views.push_back(view)
    cdef int64_t length = views[0].length
    cdef Numbers rows = rows_of(selection, length)
    buffer = pa.allocate_buffer(length * 8)
    cdef uint64_t* hashes = <uint64_t*> <size_t> buffer.address
    cdef const int32_t* chosen = rows.int32()
    with nogil:
        hash_views(views.data(), <int> views.size(), chosen, rows.length, hashes)
    return pa.Array.from_buffers(pa.uint64(), length, [None, buffer], 0)


def hash_rows(list keys not None):
    """Returns the key_hash of each record key (raw bytes), or 0 for None."""
    hashes = []
    for key in keys:
        if key is None:
            hashes.append(0)
        elif PyBytes_Check(key):
            hashes.append(hash_bytes(<const uint8_t*> PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)))
        else:
            raise TypeError(f"a record key must be bytes or None, not {type(key).__name__}")
    return hashes


def partition_indices(hashes, int64_t parts, selection=None):
    """Sorts rows by part, in a stable counting sort. See partition.pyi.

    Key group g belongs to part g * parts // KEY_GROUPS. `parts` is 1 to KEY_GROUPS; `hashes` is uint64 without nulls.
    """
    if not 1 <= parts <= KEY_GROUP_COUNT:
        raise ValueError(f"parts must be 1 to {KEY_GROUP_COUNT}, not {parts}")
    array = plain_array(hashes)
    if array.null_count:
        raise ValueError("hashes must not be null")
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type != TYPE_UINT64:
        raise TypeError(f"hashes must be uint64, not {array.type}")
    cdef Numbers rows = rows_of(selection, view.length)
    cdef const int32_t* chosen = rows.int32()
    index_buffer = pa.allocate_buffer(rows.length * 4)
    bound_buffer = pa.allocate_buffer((parts + 1) * 4)
    cdef int32_t* indices = <int32_t*> <size_t> index_buffer.address
    cdef int32_t* bounds = <int32_t*> <size_t> bound_buffer.address
    with nogil:
        _counting_sort(view.uint64s(), chosen, rows.length, parts, indices, bounds)
    return (
        pa.Array.from_buffers(pa.int32(), rows.length, [None, index_buffer], 0),
        pa.Array.from_buffers(pa.int32(), parts + 1, [None, bound_buffer], 0),
    )


cdef inline int64_t _part(uint64_t hash, int64_t parts) noexcept nogil:
    return <int64_t> (hash % <uint64_t> KEY_GROUP_COUNT) * parts // KEY_GROUP_COUNT


cdef void _counting_sort(
    const uint64_t* hashes, const int32_t* chosen, int64_t length, int64_t parts, int32_t* indices, int32_t* bounds
) noexcept nogil:
    # IN hashes, chosen[length] (NULL for all rows). OUT indices[length], bounds[parts + 1].
    cdef int32_t next_free[1024]
    cdef int64_t i, row, part
    memset(bounds, 0, (parts + 1) * sizeof(int32_t))
    for i in range(length):
        bounds[_part(hashes[chosen[i] if chosen else i], parts) + 1] += 1
    for part in range(parts):
        next_free[part] = bounds[part]
        bounds[part + 1] += bounds[part]
    for i in range(length):
        row = chosen[i] if chosen else i
        part = _part(hashes[row], parts)
        indices[next_free[part]] = <int32_t> row
        next_free[part] += 1
