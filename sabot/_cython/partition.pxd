"""The key hash, and msgpack as keys are written in it. Both are part of what checkpoints hold: see HASH_VERSION."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from sabot._cython.arrow cimport (
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


cdef extern from *:
    """
    #include <cmath>
    #include <cstdint>
    #include <cstring>

    static const int64_t SABOT_KEY_GROUPS = 1024;
    static const int SABOT_HASH_VERSION = 1;

    // The first 64 bits of the fractional parts of the square roots of 2, 3, 5 and 7 (as in SHA-512), made odd.
    static const uint64_t SABOT_K0 = 0x6a09e667f3bcc909ULL, SABOT_K1 = 0xbb67ae8584caa73bULL,
                          SABOT_K2 = 0x3c6ef372fe94f82bULL, SABOT_K3 = 0xa54ff53a5f1d36f1ULL;

    static inline uint64_t sabot_load64(const uint8_t* p) {
        uint64_t word;
        std::memcpy(&word, p, 8);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    static inline uint64_t sabot_mix(uint64_t a, uint64_t b) {
        const unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    static inline uint64_t sabot_step(uint64_t hash, uint64_t a, uint64_t b, uint64_t constant) {
        return sabot_mix(a ^ constant, b ^ hash) + ((hash << 27) | (hash >> 37));
    }

    static inline uint64_t sabot_hash(const uint8_t* data, int64_t size) {
        uint64_t hash = SABOT_K0 ^ (uint64_t)size;
        int64_t left = size;
        for (; left >= 16; left -= 16, data += 16)
            hash = sabot_step(hash, sabot_load64(data), sabot_load64(data + 8), SABOT_K1);
        if (left > 0) {
            uint64_t a, b = 0;
            if (left >= 8) {
                a = sabot_load64(data);
                for (int64_t i = 8; i < left; i++) b |= (uint64_t)data[i] << (8 * (i - 8));
            } else {
                a = 0;
                for (int64_t i = 0; i < left; i++) a |= (uint64_t)data[i] << (8 * i);
            }
            hash = sabot_step(hash, a, b, SABOT_K2);
        }
        return sabot_mix(hash ^ SABOT_K3, SABOT_K0 + (uint64_t)size);
    }

    // Head of a msgpack value whose length is `size`, by the first bytes of its short, 8, 16 and 32 bit forms (0: no such form).
    static inline int sabot_put_head(uint8_t* out, uint64_t size, uint8_t fix, uint64_t fix_below, uint8_t tag8, uint8_t tag16) {
        if (size < fix_below) { out[0] = (uint8_t)(fix | size); return 1; }
        if (tag8 && size < 0x100) { out[0] = tag8; out[1] = (uint8_t)size; return 2; }
        if (size < 0x10000) { out[0] = tag16; out[1] = (uint8_t)(size >> 8); out[2] = (uint8_t)size; return 3; }
        out[0] = tag16 + 1;
        for (int i = 0; i < 4; i++) out[1 + i] = (uint8_t)(size >> (24 - 8 * i));
        return 5;
    }
    static inline int sabot_put_str_head(uint8_t* out, uint64_t size) { return sabot_put_head(out, size, 0xa0, 32, 0xd9, 0xda); }
    static inline int sabot_put_bin_head(uint8_t* out, uint64_t size) { return sabot_put_head(out, size, 0, 0, 0xc4, 0xc5); }
    static inline int sabot_put_array_head(uint8_t* out, uint64_t size) { return sabot_put_head(out, size, 0x90, 16, 0, 0xdc); }

    // `tag` and the low `bytes` bytes of `value`, big endian.
    static inline int sabot_put_word(uint8_t* out, uint8_t tag, uint64_t value, int bytes) {
        out[0] = tag;
        for (int i = 0; i < bytes; i++) out[1 + i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
        return 1 + bytes;
    }
    static inline int sabot_put_uint(uint8_t* out, uint64_t value) {
        if (value < 0x80) { out[0] = (uint8_t)value; return 1; }
        if (value < 0x100) return sabot_put_word(out, 0xcc, value, 1);
        if (value < 0x10000) return sabot_put_word(out, 0xcd, value, 2);
        if (value < 0x100000000ULL) return sabot_put_word(out, 0xce, value, 4);
        return sabot_put_word(out, 0xcf, value, 8);
    }
    static inline int sabot_put_int(uint8_t* out, int64_t value) {
        if (value >= 0) return sabot_put_uint(out, (uint64_t)value);
        if (value >= -32) { out[0] = (uint8_t)value; return 1; }
        if (value >= -0x80) return sabot_put_word(out, 0xd0, (uint64_t)value, 1);
        if (value >= -0x8000) return sabot_put_word(out, 0xd1, (uint64_t)value, 2);
        if (value >= -0x80000000LL) return sabot_put_word(out, 0xd2, (uint64_t)value, 4);
        return sabot_put_word(out, 0xd3, (uint64_t)value, 8);
    }
    static inline int sabot_put_float(uint8_t* out, double value) {
        uint64_t bits;
        std::memcpy(&bits, &value, 8);
        return sabot_put_word(out, 0xcb, bits, 8);
    }
    // Keys that compare equal must be written alike: -0.0 as 0.0, every NaN as the one quiet NaN.
    static inline int sabot_put_key_float(uint8_t* out, double value) {
        if (std::isnan(value)) return sabot_put_word(out, 0xcb, 0x7ff8000000000000ULL, 8);
        return sabot_put_float(out, value == 0.0 ? 0.0 : value);
    }
    """
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
