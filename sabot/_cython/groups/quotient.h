/* Means: exact sums divided by counts, rounded once to the nearest double, halves to the even one. */
#ifndef SABOT_QUOTIENT_H
#define SABOT_QUOTIENT_H

#include <cmath>
#include <cstdint>

namespace sabot {

/* Returns value * 2^exponent / count, for a count from 1 to 2^63 - 1. `rest`: true if the value lacks a fraction
   below its last bit; then the first bit of `value` is 1. */
static inline double nearest_quotient(unsigned __int128 value, int exponent, bool rest, uint64_t count) {
    if (value == 0) return 0.0;
    const uint64_t high = static_cast<uint64_t>(value >> 64);
    const int shift = high ? __builtin_clzll(high) : 64 + __builtin_clzll(static_cast<uint64_t>(value));
    value <<= shift;
    unsigned __int128 quotient = value / count; /* 65 bits at least, so the last bit only says that more digits follow */
    if (rest || quotient * count != value) quotient |= 1;
    return std::ldexp(static_cast<double>(quotient), exponent - shift);
}

static inline double nearest_mean(__int128 total, int64_t count) {
    const int64_t narrow = static_cast<int64_t>(total);
    constexpr int64_t exact = int64_t{1} << 53;
    if (narrow == total && -exact <= narrow && narrow <= exact && count <= exact)
        return static_cast<double>(narrow) / static_cast<double>(count);
    const unsigned __int128 size = total < 0 ? -static_cast<unsigned __int128>(total) : static_cast<unsigned __int128>(total);
    const double mean = nearest_quotient(size, 0, false, static_cast<uint64_t>(count));
    return total < 0 ? -mean : mean;
}

} // namespace sabot

#endif
