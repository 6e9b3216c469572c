/* The key hash, the msgpack encoding of keys, and the hashes of a column's rows. See `key_hash` in partition.pyx for
   the definition.

   The encoding of keys and the combination of the hashes of several columns are part of the format of checkpoints. A
   change of either must change SABOT_HASH_VERSION.

   All functions are `noexcept nogil`. */
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "arrow/column.h"

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

// Writes the head of a msgpack value of length `size` and returns the bytes written. `fix`, `tag8` and `tag16` are
// the first bytes of its short, 8-bit and 16-bit forms (0: no such form).
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

// Writes `tag` and the low `bytes` bytes of `value`, big endian.
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
// Writes a float as a key: equal keys have equal bits, so -0.0 becomes 0.0 and every NaN the one quiet NaN.
static inline int sabot_put_key_float(uint8_t* out, double value) {
    if (std::isnan(value)) return sabot_put_word(out, 0xcb, 0x7ff8000000000000ULL, 8);
    return sabot_put_float(out, value == 0.0 ? 0.0 : value);
}

namespace sabot {

struct Words {
    uint64_t low, high;
};
struct WordMasks { /* masks of the first n bytes, for each n */
    Words of[17];
    constexpr WordMasks() : of() {
        for (int size = 0; size <= 16; size++) {
            of[size].low = size >= 8 ? ~0ULL : (1ULL << 8 * size) - 1;
            of[size].high = size >= 16 ? ~0ULL : size <= 8 ? 0 : (1ULL << 8 * (size - 8)) - 1;
        }
    }
};
static constexpr WordMasks WORD_MASKS;

/* Returns the first `size` (at most 16) bytes at p as two little-endian words, padded with zeros. Reads nothing at
   `end` or beyond. */
static inline Words short_words(const uint8_t* p, int64_t size, const uint8_t* end) {
    Words words;
    if (__builtin_expect(end - p >= 16, 1)) {
        words = {sabot_load64(p), sabot_load64(p + 8)};
    } else {
        uint8_t copy[16] = {0};
        if (size) std::memcpy(copy, p, size);
        words = {sabot_load64(copy), sabot_load64(copy + 8)};
    }
    words.low &= WORD_MASKS.of[size].low;
    words.high &= WORD_MASKS.of[size].high;
    return words;
}

/* Returns the sabot_hash of 1 to 16 bytes that are already in two words. */
static inline uint64_t hash_words(uint64_t a, uint64_t b, uint64_t size) {
    const uint64_t hash = sabot_step(SABOT_K0 ^ size, a, b, size == 16 ? SABOT_K1 : SABOT_K2);
    return sabot_mix(hash ^ SABOT_K3, SABOT_K0 + size);
}

static inline uint64_t hash_null() { return hash_words(0xc0, 0, 1); }

/* The msgpack form of an integer, one for each number of bits that it needs. */
struct IntForm {
    uint64_t own;      /* a mask for the part of the value that is in the tag byte */
    uint64_t behind;   /* a mask for the bytes after the tag: the value in big endian, after the shift */
    uint8_t tag, shift, size;
};
struct IntForms {
    IntForm of[130];
    constexpr IntForms() : of() {
        for (int bits = 0; bits <= 64; bits++) {
            set(of[bits], bits <= 7 ? 0 : bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : 8, 0xcc);
            set(of[65 + bits], bits <= 5 ? 0 : bits <= 7 ? 1 : bits <= 15 ? 2 : bits <= 31 ? 4 : 8, 0xd0);
        }
    }
    static constexpr void set(IntForm& form, int bytes, int tag) {
        form.own = bytes ? 0 : 0xff;
        form.behind = bytes ? ~0ULL >> (64 - 8 * bytes) : 0;
        form.tag = static_cast<uint8_t>(bytes == 0 ? 0 : tag + (bytes == 1 ? 0 : bytes == 2 ? 1 : bytes == 4 ? 2 : 3));
        form.shift = static_cast<uint8_t>((64 - 8 * bytes) & 63);
        form.size = static_cast<uint8_t>(1 + bytes);
    }
};
static constexpr IntForms INT_FORMS;

static inline const IntForm& form_of(uint64_t value, bool negative) {
    const uint64_t magnitude = value ^ (0 - static_cast<uint64_t>(negative));
    return INT_FORMS.of[64 + 65 * negative - __builtin_clzll(magnitude | 1)];
}

/* Returns the sabot_hash of the bytes that sabot_put_int (or, if not `negative`, sabot_put_uint) writes for the
   value. Has no branches. */
static inline uint64_t hash_int(uint64_t value, bool negative) {
    const IntForm& form = form_of(value, negative);
    const uint64_t big_endian = __builtin_bswap64(value) >> form.shift & form.behind;
    return hash_words(form.tag | (value & form.own) | big_endian << 8, big_endian >> 56, form.size);
}

static inline uint64_t hash_float(double value) {
    const uint64_t bits = value != value ? 0x7ff8000000000000ULL : bits_of(value == 0.0 ? 0.0 : value);
    const uint64_t big_endian = __builtin_bswap64(bits);
    return hash_words(0xcb | big_endian << 8, big_endian >> 56, 9);
}

/* Returns the sabot_hash of a head followed by 16 or more bytes, which are not copied. */
static inline uint64_t hash_long(uint64_t head, int head_size, const uint8_t* data, int64_t size) {
    const uint64_t total = head_size + size;
    const int shift = 8 * head_size;
    const uint64_t a = sabot_load64(data), b = sabot_load64(data + 8);
    uint64_t hash = sabot_step(SABOT_K0 ^ total, head | a << shift, b << shift | a >> (64 - shift), SABOT_K1);
    int64_t at = 16 - head_size;
    for (; size - at >= 16; at += 16) hash = sabot_step(hash, sabot_load64(data + at), sabot_load64(data + at + 8), SABOT_K1);
    if (at < size) { /* the last 16 bytes, without those already hashed */
        unsigned __int128 last = (unsigned __int128)sabot_load64(data + size - 8) << 64 | sabot_load64(data + size - 16);
        last >>= 8 * (16 - (size - at));
        hash = sabot_step(hash, (uint64_t)last, (uint64_t)(last >> 64), SABOT_K2);
    }
    return sabot_mix(hash ^ SABOT_K3, SABOT_K0 + total);
}

static inline uint64_t hash_text(const uint8_t* data, int64_t size, const uint8_t* end, bool text) {
    const int head_size = text ? 1 : 2;
    if (__builtin_expect(size + head_size <= 16, 1)) {
        const uint64_t head = text ? 0xa0 | size : 0xc4 | size << 8;
        const int shift = 8 * head_size;
        const Words words = short_words(data, size, end);
        return hash_words(head | words.low << shift, words.high << shift | words.low >> (64 - shift), head_size + size);
    }
    uint8_t head[8] = {0};
    const int put = text ? sabot_put_str_head(head, size) : sabot_put_bin_head(head, size);
    if (size >= 16) return hash_long(sabot_load64(head), put, data, size);
    uint8_t whole[24];
    std::memcpy(whole, head, put);
    std::memcpy(whole + put, data, size);
    return sabot_hash(whole, put + size);
}

/* Combines the hash of the columns so far with the hash of the next column. */
static inline uint64_t hash_combined(uint64_t hash, uint64_t next) { return sabot_step(hash, next, SABOT_K0, SABOT_K2); }

/* Writes the hash of each row of a block to out[i]. For a `further` column, combines it with the hash that is there. */
static inline void hash_block(const View& view, const Rows& rows, bool further, uint64_t* out) {
    const uint64_t null_hash = hash_null();
    const bool nullable = view.nullable();
    auto put = [&](auto hash_of) {
        auto combine = [&](auto row_hash) {
            if (further) each_row(rows, [&](int i, int64_t row) SABOT_INLINE { out[i] = hash_combined(out[i], row_hash(row)); });
            else each_row(rows, [&](int i, int64_t row) SABOT_INLINE { out[i] = row_hash(row); });
        };
        if (nullable) combine([&](int64_t row) SABOT_INLINE { return view.valid(row) ? hash_of(row) : null_hash; });
        else combine(hash_of);
    };
    auto bytes_hash = [&](auto text) {
        put([&](int64_t row) SABOT_INLINE {
            int64_t size;
            const uint8_t* data = view.bytes_at(row, &size);
            return hash_text(data, size, view.end, decltype(text)::value);
        });
    };
    switch (view.type) {
        case Type::nothing: return put([&](int64_t) SABOT_INLINE { return null_hash; });
        case Type::bool_: return put([&](int64_t row) SABOT_INLINE { return hash_words(view.truth(row) ? 0xc3 : 0xc2, 0, 1); });
        case Type::text: return bytes_hash(std::true_type());
        case Type::bytes: case Type::fixed: return bytes_hash(std::false_type());
        default: break;
    }
    with_number(view.type, [&](auto zero) {
        using T = decltype(zero);
        const T* values = static_cast<const T*>(view.values) + view.start;
        put([&](int64_t row) SABOT_INLINE {
            const T value = values[row];
            if constexpr (std::is_floating_point_v<T>) return hash_float(value);
            else return hash_int(static_cast<uint64_t>(value), value < 0);
        });
    });
}

/* Fills hashes[row] for all rows, or for the `count` rows in `chosen`. */
static inline void hash_columns(const View* views, int columns, const int32_t* chosen, int64_t count, uint64_t* hashes) {
    uint64_t block[BLOCK_ROWS];
    for (int64_t base = 0; base < count; base += BLOCK_ROWS) {
        const Rows rows{chosen, base, static_cast<int>(count - base < BLOCK_ROWS ? count - base : BLOCK_ROWS)};
        uint64_t* out = chosen ? block : hashes + base;
        for (int c = 0; c < columns; c++) hash_block(views[c], rows, c > 0, out);
        if (chosen) each_row(rows, [&](int i, int64_t row) SABOT_INLINE { hashes[row] = block[i]; });
    }
}

/* Returns the msgpack size in bytes of a value that is not null. */
static inline int64_t value_size(const View& view, int64_t row) {
    switch (view.type) {
        case Type::bool_: return 1;
        case Type::float32: case Type::float64: return 9;
        case Type::text: case Type::bytes: case Type::fixed: {
            int64_t size;
            view.bytes_at(row, &size);
            if (view.type == Type::text && size < 32) return 1 + size;
            return (size < 0x100 ? 2 : size < 0x10000 ? 3 : 5) + size;
        }
        default: {
            const int64_t value = view.integer(row);
            return form_of(static_cast<uint64_t>(value), value < 0 && view.type != Type::uint64).size;
        }
    }
}

/* Writes a value that is not null in msgpack. Returns the bytes written. `keys`: true to write floats that compare
   equal as equal bytes. */
static inline int64_t put_value(uint8_t* out, const View& view, int64_t row, bool keys) {
    switch (view.type) {
        case Type::bool_: *out = view.truth(row) ? 0xc3 : 0xc2; return 1;
        case Type::float32: case Type::float64:
            return keys ? sabot_put_key_float(out, view.real(row)) : sabot_put_float(out, view.real(row));
        case Type::text: case Type::bytes: case Type::fixed: {
            int64_t size;
            const uint8_t* data = view.bytes_at(row, &size);
            const int head = view.type == Type::text ? sabot_put_str_head(out, size) : sabot_put_bin_head(out, size);
            if (size) std::memcpy(out + head, data, size);
            return head + size;
        }
        case Type::uint64: return sabot_put_uint(out, static_cast<uint64_t>(view.integer(row)));
        default: return sabot_put_int(out, view.integer(row));
    }
}

/* Returns the msgpack size in bytes of a key: the value of one column, or an array of the values of several. A null
   is nil. */
static inline int64_t key_size(const View* views, int columns, int64_t row) {
    int64_t size = columns == 1 ? 0 : columns < 16 ? 1 : 3;
    for (int c = 0; c < columns; c++) size += views[c].valid(row) ? value_size(views[c], row) : 1;
    return size;
}
static inline void put_key(uint8_t* out, const View* views, int columns, int64_t row) {
    if (columns > 1) out += sabot_put_array_head(out, columns);
    for (int c = 0; c < columns; c++) {
        if (views[c].valid(row)) out += put_value(out, views[c], row, true);
        else *out++ = 0xc0;
    }
}

}  // namespace sabot
