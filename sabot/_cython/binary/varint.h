/* Base-128 numbers (7 bits per byte, the lowest first) and their zigzag form (0, -1, 1, -2, … as 0, 1, 2, 3, …), for
   Avro and Protobuf. All functions are noexcept, except that appending to a buffer may throw (arrow/bytes.h). */
#pragma once

#include <cstdint>

#include "arrow/bytes.h"

namespace sabot {

constexpr int64_t VARINT_MAX = 10; /* bytes of a 64-bit number */

__attribute__((noinline)) static const uint8_t* read_long_varint(const uint8_t* p, uint64_t& value) {
    value = 0;
    for (int i = 0; i < 9; i++) {
        value |= static_cast<uint64_t>(p[i] & 0x7F) << (7 * i);
        if (p[i] < 0x80) return p + i + 1;
    }
    if (p[9] > 1) return nullptr;
    value |= static_cast<uint64_t>(p[9]) << 63;
    return p + 10;
}

/* Reads the number at p, where VARINT_MAX bytes can be read, whatever they contain. Returns the address after it, or
   nullptr if it has more than 64 bits. There is no branch on lengths of two to eight bytes, because lengths of times
   and ids are unpredictable. */
__attribute__((always_inline)) static inline const uint8_t* read_varint(const uint8_t* p, uint64_t& value) {
    if (SABOT_LIKELY(*p < 0x80)) {
        value = *p;
        return p + 1;
    }
    uint64_t word = load8(p);
    const uint64_t stop = ~word & 0x8080808080808080ull; /* the lowest of these bits is in the last byte */
    if (SABOT_UNLIKELY(stop == 0)) return read_long_varint(p, value);
    word &= (stop ^ (stop - 1)) & 0x7F7F7F7F7F7F7F7Full;
    /* 7 bits in one byte become 14 bits in two, 28 in four, 56 in eight */
    word = (word & 0x007F007F007F007Full) | (word & 0x7F007F007F007F00ull) >> 1;
    word = (word & 0x00003FFF00003FFFull) | (word & 0x3FFF00003FFF0000ull) >> 2;
    value = (word & 0x000000000FFFFFFFull) | (word & 0x0FFFFFFF00000000ull) >> 4;
    return p + (__builtin_ctzll(stop) >> 3) + 1;
}

/* Reads the number at p. Returns nullptr if it does not end before `end` or has more than 64 bits. */
static inline const uint8_t* read_varint(const uint8_t* p, const uint8_t* end, uint64_t& value) {
    if (SABOT_LIKELY(end - p >= VARINT_MAX)) return read_varint(p, value);
    value = 0;
    for (int shift = 0; p < end; shift += 7, p++) {
        value |= static_cast<uint64_t>(*p & 0x7F) << shift;
        if (*p < 0x80) return p + 1;
    }
    return nullptr;
}

static inline int64_t zigzag_decode(uint64_t value) { return static_cast<int64_t>((value >> 1) ^ (0 - (value & 1))); }

static inline uint64_t zigzag_encode(int64_t value) {
    return (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63);
}

/* Appends the number. */
static inline void write_varint(Bytes& out, uint64_t value) {
    out.ensure(VARINT_MAX);
    uint8_t* p = out.data + out.len;
    for (; value >= 0x80; value >>= 7) *p++ = static_cast<uint8_t>(value | 0x80);
    *p++ = static_cast<uint8_t>(value);
    out.len = p - out.data;
}

}  // namespace sabot
