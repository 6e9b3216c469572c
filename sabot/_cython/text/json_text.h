/* Functions on JSON text that the reader and the writer share: scanning 16 bytes at a time. All of it is noexcept. */
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "arrow/bytes.h"

namespace sabot {

/* The index of the first of the 16 bytes at p that ends plain ASCII text: a quote, backslash, control or non-ASCII byte. 16: none. */
static inline int plain16(const uint8_t* p) {
#if defined(__SSE2__)
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    /* As signed numbers bytes >= 0x80 are negative, so one comparison finds controls and non-ASCII. */
    const __m128i odd = _mm_or_si128(
        _mm_cmplt_epi8(v, _mm_set1_epi8(0x20)),
        _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\'))));
    return __builtin_ctz(static_cast<unsigned>(_mm_movemask_epi8(odd)) | 0x10000u);
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

}  // namespace sabot
