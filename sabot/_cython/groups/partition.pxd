"""The key hash and the msgpack encoding of keys. Both are part of the format of checkpoints: see HASH_VERSION."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool

from sabot._cython.arrow.columns cimport View


cdef extern from "groups/key_hash.h":
    const int64_t KEY_GROUP_COUNT "SABOT_KEY_GROUPS"
    const int CURRENT_HASH_VERSION "SABOT_HASH_VERSION"
    uint64_t hash_bytes "sabot_hash"(const uint8_t* data, int64_t size) noexcept nogil

    # Writers of msgpack. Each returns the number of bytes written to `out`, at most 9.
    int put_str_head "sabot_put_str_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_bin_head "sabot_put_bin_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_array_head "sabot_put_array_head"(uint8_t* out, uint64_t size) noexcept nogil
    int put_uint "sabot_put_uint"(uint8_t* out, uint64_t value) noexcept nogil
    int put_int "sabot_put_int"(uint8_t* out, int64_t value) noexcept nogil
    int put_key_float "sabot_put_key_float"(uint8_t* out, double value) noexcept nogil


cdef extern from "groups/key_hash.h" namespace "sabot" nogil:
    # OUT hashes[row] for all rows, or for the `count` rows in `chosen`. No view may be TYPE_OTHER.
    void hash_views "sabot::hash_columns"(
        const View* views, int columns, const int32_t* chosen, int64_t count, uint64_t* hashes
    ) noexcept
    # Writes a value that is not null in msgpack and returns its size. OUT `out`, value_size bytes. `keys`: true to
    # write floats that compare equal as equal bytes.
    int64_t value_size(const View& view, int64_t row) noexcept
    int64_t put_value(uint8_t* out, const View& view, int64_t row, cbool keys) noexcept
    # Writes a key in msgpack: the value of one view, or an array of the values of several; a null is nil. OUT `out`,
    # key_size bytes.
    int64_t key_size(const View* views, int columns, int64_t row) noexcept
    void put_key(uint8_t* out, const View* views, int columns, int64_t row) noexcept


cdef inline int64_t group_of(const uint8_t* data, int64_t size) noexcept nogil:
    """Returns the key group (0 to KEY_GROUP_COUNT - 1) of an encoded key."""
    return <int64_t> (hash_bytes(data, size) % <uint64_t> KEY_GROUP_COUNT)
