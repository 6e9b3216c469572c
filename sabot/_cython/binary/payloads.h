/* Access to the payloads of a batch, for decoders of binary formats. */
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "arrow/bytes.h"

namespace sabot {

struct BadRow {
    int64_t row;
    std::string reason;
};

/* The n values of a binary array. `offsets` has n + 1 entries; `validity` is null, or bits from `bit` on. After each
   value PADDING bytes can be read, whatever they contain; the last values are copied for that. Throws bad_alloc. */
class Payloads {
  public:
    static constexpr int64_t PADDING = 16;
    const int64_t count;

    Payloads(const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n)
        : count(n), offsets_(offsets), data_(data), validity_(validity), bit_(bit), safe_(n ? offsets[n] - PADDING : 0) {}

    bool is_null(int64_t i) const { return validity_ && !(validity_[(bit_ + i) >> 3] >> ((bit_ + i) & 7) & 1); }
    int64_t size(int64_t i) const { return offsets_[i + 1] - offsets_[i]; }

    /* Returns the address of value i, valid until the next call. */
    const uint8_t* at(int64_t i) {
        const uint8_t* const from = data_ + offsets_[i];
        return SABOT_LIKELY(offsets_[i + 1] <= safe_) ? from : copied(from, size(i));
    }

  private:
    const int32_t* const offsets_;
    const uint8_t* const data_;
    const uint8_t* const validity_;
    const int64_t bit_, safe_; /* a value that ends after `safe_` has fewer than PADDING readable bytes after it */
    Bytes copy_;

    __attribute__((noinline)) const uint8_t* copied(const uint8_t* from, int64_t size) {
        copy_.len = 0;
        copy_.ensure(size + PADDING);
        if (size) std::memcpy(copy_.data, from, static_cast<size_t>(size));
        std::memset(copy_.data + size, 0, PADDING);
        return copy_.data;
    }
};

}  // namespace sabot
