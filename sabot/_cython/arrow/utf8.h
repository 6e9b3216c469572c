/* UTF-8 as Arrow's strings require it: shortest forms, no surrogates, up to U+10FFFF. All functions are noexcept. */
#pragma once

#include <cstdint>

#include "arrow/bytes.h"

namespace sabot {

/* Returns the length (2 to 4) of the UTF-8 sequence at p, whose first byte is >= 0x80, or 0 if the sequence is
   invalid. */
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

/* Returns true if the n bytes are valid UTF-8. ASCII is checked 8 bytes at a time, because most text is ASCII. */
static inline bool is_utf8(const uint8_t* p, int64_t n) {
    const uint8_t* const end = p + n;
    while (p < end) {
        if (end - p >= 8 && (load8(p) & 0x8080808080808080ull) == 0) {
            p += 8;
        } else if (*p < 0x80) {
            p++;
        } else {
            const int size = utf8_length(p, end);
            if (size == 0) return false;
            p += size;
        }
    }
    return true;
}

}  // namespace sabot
