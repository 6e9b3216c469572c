"""The key hash, and msgpack as keys are written in it. Both are part of what checkpoints hold: see HASH_VERSION."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool

from sabot._cython.arrow cimport (
    ArrowArray,
    ArrowSchema,
    KIND_BINARY,
    KIND_BOOL,
    KIND_FIXED,
    KIND_FLOAT32,
    KIND_FLOAT64,
    KIND_STRING,
    KIND_UINT64,
    Column,
    bool_at,
    float_at,
    int_at,
)


cdef extern from "key_hash.h":
    const int64_t KEY_GROUP_COUNT "SABOT_KEY_GROUPS"
    const int CURRENT_HASH_VERSION "SABOT_HASH_VERSION"
    uint64_t hash_bytes "sabot_hash"(const uint8_t* data, int64_t size) noexcept nogil

    # Writers of msgpack: each returns the bytes written to `out`, at most 9.
    int put_str_head "sabot_put_str_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_bin_head "sabot_put_bin_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_array_head "sabot_put_array_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_uint "sabot_put_uint"(uint8_t* out, uint64_t value) noexcept nogil
    int put_int "sabot_put_int"(uint8_t* out, int64_t value) noexcept nogil
    int put_float "sabot_put_float"(uint8_t* out, double value) noexcept nogil
    int put_key_float "sabot_put_key_float"(uint8_t* out, double value) noexcept nogil


cdef extern from "column.h" namespace "sabot" nogil:
    ctypedef enum Type "sabot::Type":
        TYPE_OTHER "sabot::Type::other"      # only where its nulls are can be read

    cppclass View:
        # A flat view of one array, temporal types included (as the integers that they are): IN only, owns nothing.
        Type type
        int64_t length
        cbool nullable() noexcept

    View view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) noexcept


cdef extern from "key_hash.h" namespace "sabot" nogil:
    # OUT hashes[row], of all rows or of the `count` that `chosen` names; none of the views is TYPE_OTHER
    void hash_views "sabot::hash_columns"(
        const View* views, int columns, const int32_t* chosen, int64_t count, uint64_t* hashes
    ) noexcept


cdef inline int64_t group_of(const uint8_t* data, int64_t size) noexcept nogil:
    """The key group of an encoded key."""
    return <int64_t> (hash_bytes(data, size) % <uint64_t> KEY_GROUP_COUNT)


cdef inline bint has_bytes(const Column* column) noexcept nogil:
    """Values of this column are a head and bytes; else they fit in 9 bytes."""
    return column.kind == KIND_STRING or column.kind == KIND_BINARY or column.kind == KIND_FIXED


cdef inline int put_scalar(uint8_t* out, const Column* column, int64_t row, bint as_key) noexcept nogil:
    """Row `row` of a column without bytes, not null, in msgpack; -> bytes written, at most 9."""
    if column.kind == KIND_BOOL:
        out[0] = 0xC3 if bool_at(column, row) else 0xC2
        return 1
    if column.kind == KIND_FLOAT64 or column.kind == KIND_FLOAT32:
        return put_key_float(out, float_at(column, row)) if as_key else put_float(out, float_at(column, row))
    if column.kind == KIND_UINT64:
        return put_uint(out, <uint64_t> int_at(column, row))
    return put_int(out, int_at(column, row))


cdef inline int put_head(uint8_t* out, const Column* column, int64_t size) noexcept nogil:
    """The head of a value of a column with bytes; -> bytes written, at most 5."""
    return put_str_head(out, size) if column.kind == KIND_STRING else put_bin_head(out, size)
