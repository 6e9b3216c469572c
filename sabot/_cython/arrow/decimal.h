/* Decimals as Arrow stores them: whole numbers, with one scale for the whole column. All functions are noexcept. */
#pragma once

#include <cstdint>

namespace sabot {

static constexpr uint64_t TENS[] = {
    1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000, 10000000000, 100000000000, 1000000000000,
    10000000000000, 100000000000000, 1000000000000000, 10000000000000000, 100000000000000000, 1000000000000000000,
    10000000000000000000ull};

/* A decimal without its point, as a whole number of up to 76 digits: in two's complement, the lowest word first. */
struct Whole {
    uint64_t words[4] = {0, 0, 0, 0};

    void times_plus(uint64_t factor, uint64_t more) {
        for (uint64_t& word : words) {
            const unsigned __int128 product = static_cast<unsigned __int128>(word) * factor + more;
            word = static_cast<uint64_t>(product);
            more = static_cast<uint64_t>(product >> 64);
        }
    }
    void negate() {
        bool carry = true;
        for (uint64_t& word : words) {
            word = ~word + carry;
            carry = carry && word == 0;
        }
    }
    /* Divides the number, which must not be negative, and returns the remainder. */
    uint64_t divide(uint64_t by) {
        unsigned __int128 rest = 0;
        for (int i = 3; i >= 0; i--) {
            rest = rest << 64 | words[i];
            words[i] = static_cast<uint64_t>(rest / by);
            rest %= by;
        }
        return static_cast<uint64_t>(rest);
    }
    bool is_zero() const { return (words[0] | words[1] | words[2] | words[3]) == 0; }
    bool is_negative() const { return words[3] >> 63; }
    /* Returns true if the magnitude of the number is below `limit`, which is positive. */
    bool is_below(const Whole& limit) const {
        Whole size = *this;
        if (size.is_negative()) size.negate();
        for (int i = 3; i > 0; i--)
            if (size.words[i] != limit.words[i]) return size.words[i] < limit.words[i];
        return size.words[0] < limit.words[0];
    }
};

/* Returns ten to the power of `digits`, which is at most 76. */
static inline Whole power_of_ten(int digits) {
    Whole made;
    made.words[0] = 1;
    for (; digits > 19; digits -= 19) made.times_plus(TENS[19], 0);
    made.times_plus(TENS[digits], 0);
    return made;
}

}  // namespace sabot
