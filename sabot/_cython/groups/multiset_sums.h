/* Exact sums by slot: a value that was added and then removed leaves no trace, whatever was added in between.

   A sum is an integer multiple of a power of two, kept as digits of 32 bits in signed words of 64 bits. So an
   addition touches only the digits of its number, and carries are deferred for 2^30 additions (Neal, Fast exact
   summation using small and large superaccumulators, 2015). Only digits in the range of the numbers so far exist: a
   few, for numbers of similar size. NaN and infinities are counted.

   Nothing here needs the GIL. Adding and saving may throw std::bad_alloc; `load` throws std::invalid_argument for a
   damaged state (`except +`). */
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "groups/multiset_store.h"
#include "groups/quotient.h"

namespace sabot {

constexpr uint64_t DIGIT = 0xffffffffULL;

/* The absolute value of a number: the sum of digits[i] * 2^(32 * (base + i)). */
struct Magnitude {
    std::vector<uint32_t> digits; /* the last one is not 0 */
    int32_t base = 0;
    bool negative = false;
};

class Digits {
    std::vector<int64_t> digits_;
    int32_t base_ = 0; /* the weight of digits_[0] is 2^(32 * base_) */
    uint32_t pending_ = 0;

  public:
    int64_t nbytes() const { return static_cast<int64_t>(digits_.capacity() * 8); }

    /* Adds digits, the first of which has weight 2^(32 * at). */
    template <class D>
    void add(const D* digits, int count, int32_t at, bool negative) {
        if (count == 0) return;
        if (digits_.empty()) {
            base_ = at;
            digits_.assign(count, 0);
        } else {
            if (at < base_) {
                digits_.insert(digits_.begin(), base_ - at, 0);
                base_ = at;
            }
            if (at + count > base_ + static_cast<int32_t>(digits_.size())) digits_.resize(at + count - base_, 0);
        }
        int64_t* to = digits_.data() + (at - base_);
        for (int i = 0; i < count; i++) to[i] += negative ? -static_cast<int64_t>(digits[i]) : static_cast<int64_t>(digits[i]);
        if (++pending_ >= (1u << 30)) carry();
    }
    /* Adds number * 2^exponent. */
    void add(unsigned __int128 number, int32_t exponent, bool negative) {
        const int32_t at = exponent >> 5, shift = exponent & 31; /* rounds down */
        uint32_t digits[5];
        const unsigned __int128 low = number << shift;
        int count = 4;
        for (int i = 0; i < 4; i++) digits[i] = static_cast<uint32_t>(low >> (32 * i));
        digits[4] = shift ? static_cast<uint32_t>(number >> (128 - shift)) : 0;
        if (digits[4]) count = 5;
        while (count > 0 && digits[count - 1] == 0) count--;
        int skipped = 0;
        while (skipped < count && digits[skipped] == 0) skipped++;
        add(digits + skipped, count - skipped, at + skipped, negative);
    }
    /* Makes all digits 0 to 2^32 - 1, except the last, which has the sign. Removes zero digits at both ends. */
    void carry() {
        int64_t over = 0;
        for (int64_t& digit : digits_) {
            const int64_t sum = digit + over;
            over = sum >> 32;
            digit = sum & static_cast<int64_t>(DIGIT);
        }
        while (over != 0 && over != -1) {
            digits_.push_back(over & static_cast<int64_t>(DIGIT));
            over >>= 32;
        }
        if (over == -1) digits_.push_back(-1);
        while (!digits_.empty() && digits_.back() == 0) digits_.pop_back();
        size_t zeros = 0;
        while (zeros < digits_.size() && digits_[zeros] == 0) zeros++;
        digits_.erase(digits_.begin(), digits_.begin() + zeros);
        base_ = digits_.empty() ? 0 : base_ + static_cast<int32_t>(zeros);
        pending_ = 0;
    }
    Magnitude magnitude() const {
        Digits copy(*this);
        Magnitude result;
        copy.carry();
        if (!copy.digits_.empty() && copy.digits_.back() < 0) {
            result.negative = true;
            for (int64_t& digit : copy.digits_) digit = -digit;
            copy.carry();
        }
        result.base = copy.base_;
        result.digits.assign(copy.digits_.begin(), copy.digits_.end());
        return result;
    }
    void save(std::string& out) {
        carry();
        append(out, base_);
        append(out, static_cast<uint32_t>(digits_.size()));
        for (const int64_t digit : digits_) append(out, digit);
    }
    void load(Reader& reader) { /* adds a saved sum */
        const int32_t base = reader.get<int32_t>();
        const uint32_t count = reader.get<uint32_t>();
        std::vector<int64_t> digits;
        for (uint32_t i = 0; i < count; i++) digits.push_back(reader.get<int64_t>());
        add(digits.data(), static_cast<int>(count), base, false);
    }
};

/* An approximation of number * 2^exponent. The top bit of `number` is set; its last bit is set if nonzero digits were
   cut off. */
struct Rounded {
    uint64_t number = 0;
    int exponent = 0;
    bool negative = false;

    explicit Rounded(const Magnitude& from) : negative(from.negative) {
        const int count = static_cast<int>(from.digits.size());
        if (count == 0) return;
        unsigned __int128 top = 0;
        for (int i = count - 1; i >= count - 3; i--) top = top << 32 | (i >= 0 ? from.digits[i] : 0);
        int shift = 0; /* to the right, in 96 bits */
        while (top >> shift >> 64) shift++;
        number = static_cast<uint64_t>(top >> shift);
        bool rest = (top & (((unsigned __int128)1 << shift) - 1)) != 0;
        for (int i = 0; i < count - 3 && !rest; i++) rest = from.digits[i] != 0;
        number |= rest;
        exponent = 32 * (from.base + count - 3) + shift;
    }
    double as_double() const {
        const double value = std::ldexp(static_cast<double>(number), exponent);
        return negative ? -value : value;
    }
    long double as_long_double() const {
        const long double value = std::ldexp(static_cast<long double>(number), exponent);
        return negative ? -value : value;
    }
};

/* Returns the nearest double to a number divided by a count of at least 1. */
static inline double quotient(const Magnitude& from, uint64_t divisor) {
    const int count = static_cast<int>(from.digits.size());
    if (count == 0) return 0.0;
    unsigned __int128 top = 0;
    for (int i = count - 1; i >= count - 4; i--) top = top << 32 | (i >= 0 ? from.digits[i] : 0);
    int exponent = 32 * (from.base + count - 4);
    bool rest = false;
    if (count > 4) { /* all 128 bits are filled */
        const int shift = __builtin_clz(from.digits[count - 1]);
        const uint64_t next = static_cast<uint64_t>(from.digits[count - 5]) << shift;
        top = top << shift | next >> 32;
        exponent -= shift;
        rest = static_cast<uint32_t>(next) != 0;
        for (int i = 0; i < count - 5 && !rest; i++) rest = from.digits[i] != 0;
    }
    const double value = nearest_quotient(top, exponent, rest, divisor);
    return from.negative ? -value : value;
}

static inline Magnitude product(const Magnitude& a, const Magnitude& b) {
    Magnitude result;
    result.base = a.base + b.base;
    result.digits.assign(a.digits.size() + b.digits.size(), 0);
    for (size_t i = 0; i < a.digits.size(); i++) {
        uint64_t over = 0;
        for (size_t j = 0; j < b.digits.size(); j++) {
            const uint64_t sum = static_cast<uint64_t>(a.digits[i]) * b.digits[j] + result.digits[i + j] + over;
            result.digits[i + j] = static_cast<uint32_t>(sum);
            over = sum >> 32;
        }
        result.digits[i + b.digits.size()] = static_cast<uint32_t>(over);
    }
    return result;
}

struct Sum {
    int64_t count = 0, nans = 0, ups = 0, downs = 0; /* number of values; of NaN, of infinity, of -infinity among them */
    Digits sum, squares;

    bool special(double* out) const {
        if (nans == 0 && ups == 0 && downs == 0) return false;
        const double infinity = std::numeric_limits<double>::infinity();
        *out = nans || (ups && downs) ? std::numeric_limits<double>::quiet_NaN() : ups ? infinity : -infinity;
        return true;
    }
};

/* The sum of the numbers of each slot and, if `squares`, the sum of their squares. */
class ExactSums {
    std::vector<Sum> slots_;
    bool squares_;

  public:
    explicit ExactSums(bool squares) : squares_(squares) {}

    int64_t nbytes() const {
        int64_t digits = 0;
        for (const Sum& sum : slots_) digits += sum.sum.nbytes() + sum.squares.nbytes();
        return static_cast<int64_t>(slots_.capacity() * sizeof(Sum)) + digits;
    }
    void reach(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(std::max<size_t>(slot + 1, 2 * slots_.size()));
    }
    void add_real(int32_t slot, double value, bool take) {
        reach(slot);
        Sum& to = slots_[slot];
        const int64_t by = take ? -1 : 1;
        to.count += by;
        if (value != value) to.nans += by;
        else if (std::isinf(value)) (value > 0 ? to.ups : to.downs) += by;
        else if (value != 0) {
            int exponent;
            const double fraction = std::frexp(std::fabs(value), &exponent); /* 0.5 to 1 */
            const uint64_t number = static_cast<uint64_t>(std::ldexp(fraction, 53));
            put(to, number, exponent - 53, value < 0, take);
        }
    }
    /* Adds a whole number, given as words; two's complement if `is_signed`. `take`: true to subtract it. */
    void add_words(int32_t slot, const uint64_t* words, int count, bool is_signed, bool take) {
        reach(slot);
        Sum& to = slots_[slot];
        to.count += take ? -1 : 1;
        const bool negative = is_signed && static_cast<int64_t>(words[count - 1]) < 0;
        uint64_t own[4];
        uint64_t over = 1;
        for (int i = 0; i < count; i++) {
            own[i] = negative ? ~words[i] + over : words[i];
            over = negative && over && own[i] == 0;
        }
        if (count == 1) put(to, own[0], 0, negative, take);
        else for (int i = 0; i < count; i++) to.sum.add((unsigned __int128)own[i], 64 * i, negative != take);
    }
    /* Computes the sums. OUT values and valid; a slot without a value becomes null. */
    void sums(const int32_t* slots, int64_t count, double* values, uint8_t* valid) const {
        each(slots, count, values, valid, 0, [](const Sum& of) { return Rounded(of.sum.magnitude()).as_double(); });
    }
    void means(const int32_t* slots, int64_t count, double* values, uint8_t* valid) const {
        each(slots, count, values, valid, 0, [](const Sum& of) {
            return quotient(of.sum.magnitude(), static_cast<uint64_t>(of.count));
        });
    }
    /* Computes (sum of squares - square of the sum / n) / (n - ddof). The numerator times n is exact. */
    void variances(const int32_t* slots, int64_t count, int64_t ddof, double* values, uint8_t* valid) const {
        each(slots, count, values, valid, ddof, [ddof](const Sum& of) {
            Magnitude n;
            n.digits = {static_cast<uint32_t>(of.count), static_cast<uint32_t>(of.count >> 32)};
            Digits difference;
            const Magnitude all = of.sum.magnitude(), first = product(of.squares.magnitude(), n), second = product(all, all);
            difference.add(first.digits.data(), static_cast<int>(first.digits.size()), first.base, false);
            difference.add(second.digits.data(), static_cast<int>(second.digits.size()), second.base, true);
            const long double divisor = static_cast<long double>(of.count) * static_cast<long double>(of.count - ddof);
            return static_cast<double>(Rounded(difference.magnitude()).as_long_double() / divisor);
        });
        for (int64_t i = 0; i < count; i++) /* the variance of infinite values is NaN */
            if (std::isinf(values[i]) && special_at(slots[i])) values[i] = std::numeric_limits<double>::quiet_NaN();
    }
    /* Computes sums of whole numbers. OUT words: two's complement, `width` words per row. Returns -1, or the row
       whose sum does not fit. */
    int64_t whole(const int32_t* slots, int64_t count, int width, uint64_t* words, uint8_t* valid) const {
        for (int64_t i = 0; i < count; i++) {
            uint64_t* out = words + i * width;
            for (int w = 0; w < width; w++) out[w] = 0;
            valid[i] = has(slots[i]) && slots_[slots[i]].count > 0;
            if (!valid[i]) continue;
            const Magnitude sum = slots_[slots[i]].sum.magnitude();
            for (size_t d = 0; d < sum.digits.size(); d++) {
                const int64_t at = sum.base + static_cast<int64_t>(d); /* at least 0: these are whole numbers */
                if (at >= 2 * width) return i;
                out[at / 2] |= static_cast<uint64_t>(sum.digits[d]) << (32 * (at % 2));
            }
            if (static_cast<int64_t>(out[width - 1]) < 0) return i;
            uint64_t over = 1;
            for (int w = 0; sum.negative && w < width; w++) {
                out[w] = ~out[w] + over;
                over = over && out[w] == 0;
            }
        }
        return -1;
    }
    void save(const int32_t* slots, int64_t count, Strings& out) {
        for (int64_t i = 0; i < count; i++) {
            if (has(slots[i])) {
                Sum& sum = slots_[slots[i]];
                for (const int64_t number : {sum.count, sum.nans, sum.ups, sum.downs}) append(out.data, number);
                sum.sum.save(out.data);
                sum.squares.save(out.data);
            }
            out.add({});
        }
    }
    void load(int32_t slot, const char* data, int64_t size) {
        reach(slot);
        if (size == 0) return;
        Reader reader{data, data + size};
        Sum& sum = slots_[slot];
        for (int64_t* number : {&sum.count, &sum.nans, &sum.ups, &sum.downs}) *number += reader.get<int64_t>();
        sum.sum.load(reader);
        sum.squares.load(reader);
    }
    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++)
            if (has(slots[i])) slots_[slots[i]] = {};
    }
    void clear() {
        slots_.clear();
        slots_.shrink_to_fit();
    }

  private:
    bool has(int32_t slot) const { return static_cast<size_t>(slot) < slots_.size(); }
    bool special_at(int32_t slot) const {
        double value;
        return slots_[slot].special(&value);
    }
    void put(Sum& to, uint64_t number, int exponent, bool negative, bool take) {
        to.sum.add((unsigned __int128)number, exponent, negative != take);
        if (squares_) to.squares.add((unsigned __int128)number * number, 2 * exponent, take);
    }
    /* Writes body(sum) for each slot; null for slots that do not have more values than `ddof`. */
    template <class Body>
    void each(const int32_t* slots, int64_t count, double* values, uint8_t* valid, int64_t ddof, Body body) const {
        for (int64_t i = 0; i < count; i++) {
            const Sum* sum = has(slots[i]) ? &slots_[slots[i]] : nullptr;
            valid[i] = sum != nullptr && sum->count > ddof;
            values[i] = 0;
            if (valid[i] && !sum->special(&values[i])) values[i] = body(*sum);
        }
    }
};

}  // namespace sabot
