/* Scans of JSON text, 16 to 64 bytes at a time, for the reader and the writer. All functions are noexcept. */
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "arrow/bytes.h"

namespace sabot {

#if defined(__SSE2__)
/* Returns one bit for each of the 16 bytes at p that ends plain ASCII text. */
static inline uint32_t odd16(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    /* As signed numbers bytes >= 0x80 are negative, so one comparison finds controls and non-ASCII. */
    const __m128i odd = _mm_or_si128(
        _mm_cmplt_epi8(v, _mm_set1_epi8(0x20)),
        _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\'))));
    return static_cast<uint32_t>(_mm_movemask_epi8(odd));
}
#endif

/* Returns the index of the first of the 16 bytes at p that ends plain ASCII text: a quote, backslash, control or
   non-ASCII byte. Returns 16 if there is none. */
static inline int plain16(const uint8_t* p) {
#if defined(__SSE2__)
    return __builtin_ctz(odd16(p) | 0x10000u);
#else
    constexpr uint64_t ones = 0x0101010101010101ull, high = 0x8080808080808080ull;
    for (int half = 0; half < 16; half += 8) {
        const uint64_t w = load8(p + half);
        const uint64_t quote = w ^ (ones * '"'), slash = w ^ (ones * '\\');
        /* A borrow may mark a byte above the first hit, never one below it. */
        const uint64_t odd = ((w - ones * 0x20) | (quote - ones) | (slash - ones) | w) & high;
        if (odd) return half + (__builtin_ctzll(odd) >> 3);
    }
    return 16;
#endif
}

/* Return the same for 32 and for 64 bytes. */
static inline int plain32(const uint8_t* p) {
#if defined(__SSE2__)
    return __builtin_ctzll(odd16(p) | static_cast<uint64_t>(odd16(p + 16)) << 16 | uint64_t{1} << 32);
#else
    const int n = plain16(p);
    return n < 16 ? n : 16 + plain16(p + 16);
#endif
}

static inline int plain64(const uint8_t* p) {
#if defined(__SSE2__)
    const uint64_t odd = odd16(p) | static_cast<uint64_t>(odd16(p + 16)) << 16 | static_cast<uint64_t>(odd16(p + 32)) << 32 |
                         static_cast<uint64_t>(odd16(p + 48)) << 48;
    return odd ? __builtin_ctzll(odd) : 64;
#else
    const int n = plain32(p);
    return n < 32 ? n : 32 + plain32(p + 32);
#endif
}

}  // namespace sabot
