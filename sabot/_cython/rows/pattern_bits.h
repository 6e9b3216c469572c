/* Packs several bool columns into one word per row. All functions are `noexcept nogil`. */
#pragma once

#include <cstdint>
#include <cstring>

#include "arrow/column.h"

namespace sabot {

/* Returns 64 bits of a bitmap from bit `at` on; bits from `end` on are 0. */
static inline uint64_t word_at(const uint8_t* bitmap, int64_t at, int64_t end) {
    const int64_t first = at >> 3, bytes = ((end + 7) >> 3) - first, shift = at & 7;
    uint64_t word = 0;
    std::memcpy(&word, bitmap + first, bytes < 8 ? bytes : 8);
    word >>= shift;
    if (shift && bytes > 8) word |= static_cast<uint64_t>(bitmap[first + 8]) << (64 - shift);
    if (end - at < 64) word &= (1ull << (end - at)) - 1;
    return word;
}

/* Sets `bit` in masks[i] if row i (of the selection, if there is one) is true; null is not true. */
static inline void add_bits(const View& view, const int32_t* chosen, int64_t count, uint64_t bit, uint64_t* masks) {
    if (view.type == Type::nothing || view.length == 0) return;
    if (chosen) {
        for (int64_t i = 0; i < count; i++)
            if (view.truth(chosen[i]) && view.valid(chosen[i])) masks[i] |= bit;
        return;
    }
    const uint8_t* values = static_cast<const uint8_t*>(view.values);
    const int64_t end = view.start + count;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t word = word_at(values, view.start + base, end);
        if (view.validity) word &= word_at(view.validity, view.start + base, end);
        for (; word; word &= word - 1) masks[base + __builtin_ctzll(word)] |= bit;
    }
}

}  // namespace sabot
