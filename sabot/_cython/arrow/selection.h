/* Selects rows of a batch by a mask and returns their numbers. All functions are `noexcept nogil`. See selection.pyi. */
#pragma once

#include <cstdint>
#include <cstring>

#include "arrow/column.h"

namespace sabot {

/* Returns 64 bits of a bitmap from bit `start` on. It reads only bytes that hold some of these bits. */
static inline uint64_t bits_at(const uint8_t* bitmap, int64_t start) {
    uint64_t bits;
    std::memcpy(&bits, bitmap + (start >> 3), 8);
    const int shift = start & 7;
    return shift ? bits >> shift | static_cast<uint64_t>(bitmap[(start >> 3) + 8]) << (64 - shift) : bits;
}

/* Finds the rows where the mask is true and not null, among all rows or, if `chosen` is not null, among the chosen
   ones. OUT out[count]: the row numbers. Returns the number of rows found. */
static inline int64_t select_rows(const View& mask, const int32_t* chosen, int64_t count, int32_t* out) {
    int64_t n = 0;
    if (chosen) {
        for (int64_t i = 0; i < count; i++) {
            out[n] = chosen[i];
            n += mask.truth(chosen[i]) & mask.valid(chosen[i]);
        }
        return n;
    }
    const uint8_t* truths = static_cast<const uint8_t*>(mask.values);
    int64_t row = 0;
    for (; row + 64 <= count; row += 64) {
        uint64_t bits = bits_at(truths, mask.start + row);
        if (mask.validity) bits &= bits_at(mask.validity, mask.start + row);
        for (; bits; bits &= bits - 1) out[n++] = static_cast<int32_t>(row + __builtin_ctzll(bits));
    }
    for (; row < count; row++) {
        out[n] = static_cast<int32_t>(row);
        n += mask.truth(row) & mask.valid(row);
    }
    return n;
}

}  // namespace sabot
