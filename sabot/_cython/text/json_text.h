/* Functions on JSON text that the reader and the writer share: scanning 16 bytes at a time, and UTF-8.

All of it is `nogil`. Appending to a buffer may throw std::bad_alloc, or std::overflow_error above 2 GiB; the rest is noexcept. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define SABOT_LIKELY(x) __builtin_expect(!!(x), 1)
#define SABOT_UNLIKELY(x) __builtin_expect(!!(x), 0)

namespace sabot {

constexpr int64_t MAX_OFFSET = 0x7fffffff; /* Arrow's 32-bit offsets */

/* A growing byte buffer from malloc, so that it can be handed over to Arrow, whose release callback frees it. */
struct Bytes {
    uint8_t* data = nullptr;
    int64_t len = 0, cap = 0;

    Bytes() = default;
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { std::free(data); }

    /* Makes room for `more` bytes, plus 16 that a block store may touch. Throws overflow_error beyond Arrow's offsets. */
    inline void ensure(int64_t more) {
        if (SABOT_UNLIKELY(len + more + 16 > cap)) grow(more);
    }
    __attribute__((noinline)) void grow(int64_t more) {
        if (len + more > MAX_OFFSET)
            throw std::overflow_error("a column of this batch has more than 2 GiB of text: use smaller batches");
        int64_t want = len + more + 64;
        if (want < cap * 2) want = cap * 2;
        if (want > MAX_OFFSET + 16) want = MAX_OFFSET + 16; /* not more, so that every overflow of the offsets is noticed here */
        void* grown = std::realloc(data, static_cast<size_t>(want));
        if (grown == nullptr) throw std::bad_alloc();
        data = static_cast<uint8_t*>(grown);
        cap = want;
    }
    inline void put(const void* from, int64_t n) {
        ensure(n);
        std::memcpy(data + len, from, static_cast<size_t>(n));
        len += n;
    }
    inline void put_byte(uint8_t c) {
        ensure(1);
        data[len++] = c;
    }
    uint8_t* take() {
        uint8_t* taken = data;
        data = nullptr;
        len = cap = 0;
        return taken;
    }
};

static inline uint64_t load8(const uint8_t* p) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    return word;
}

/* Length of the valid UTF-8 sequence (2 to 4 bytes) that begins at p with a byte >= 0x80; 0 if it is not valid. */
static inline int utf8_length(const uint8_t* p, const uint8_t* end) {
    auto follows = [](uint8_t c) { return (c & 0xC0) == 0x80; };
    const uint8_t c = p[0];
    const int64_t n = end - p;
    if (c < 0xC2 || c > 0xF4) return 0;
    if (c < 0xE0) return n >= 2 && follows(p[1]) ? 2 : 0;
    if (c < 0xF0) {
        if (n < 3 || !follows(p[1]) || !follows(p[2])) return 0;
        if (c == 0xE0 && p[1] < 0xA0) return 0; /* overlong */
        if (c == 0xED && p[1] > 0x9F) return 0; /* surrogates */
        return 3;
    }
    if (n < 4 || !follows(p[1]) || !follows(p[2]) || !follows(p[3])) return 0;
    if (c == 0xF0 && p[1] < 0x90) return 0; /* overlong */
    if (c == 0xF4 && p[1] > 0x8F) return 0; /* above U+10FFFF */
    return 4;
}

static inline int utf8_write(uint32_t point, uint8_t* out) {
    if (point < 0x80) {
        out[0] = static_cast<uint8_t>(point);
        return 1;
    }
    if (point < 0x800) {
        out[0] = static_cast<uint8_t>(0xC0 | point >> 6);
        out[1] = static_cast<uint8_t>(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = static_cast<uint8_t>(0xE0 | point >> 12);
        out[1] = static_cast<uint8_t>(0x80 | (point >> 6 & 0x3F));
        out[2] = static_cast<uint8_t>(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = static_cast<uint8_t>(0xF0 | point >> 18);
    out[1] = static_cast<uint8_t>(0x80 | (point >> 12 & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (point >> 6 & 0x3F));
    out[3] = static_cast<uint8_t>(0x80 | (point & 0x3F));
    return 4;
}

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
