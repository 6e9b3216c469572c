/* A growing byte buffer that can become a buffer of an Arrow array, and loads of several bytes at once.

   Nothing here needs the GIL. Appending to a buffer may throw std::bad_alloc, or std::overflow_error above 2 GiB; the
   rest is noexcept. */
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#define SABOT_LIKELY(x) __builtin_expect(!!(x), 1)
#define SABOT_UNLIKELY(x) __builtin_expect(!!(x), 0)

namespace sabot {

constexpr int64_t MAX_OFFSET = 0x7fffffff; /* the largest of Arrow's 32-bit offsets */

/* A growing byte buffer. Its memory comes from malloc, because an Arrow array that takes it frees it with free(). */
struct Bytes {
    uint8_t* data = nullptr;
    int64_t len = 0, cap = 0;

    Bytes() = default;
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { std::free(data); }

    /* Makes room for `more` bytes, plus 16 bytes that a store of a whole block may overwrite. Throws overflow_error
       above MAX_OFFSET. */
    inline void ensure(int64_t more) {
        if (SABOT_UNLIKELY(len + more + 16 > cap)) grow(more);
    }
    __attribute__((noinline)) void grow(int64_t more) {
        if (len + more > MAX_OFFSET)
            throw std::overflow_error("a column of this batch has more than 2 GiB of text: use smaller batches");
        int64_t want = len + more + 64;
        if (want < cap * 2) want = cap * 2;
        if (want > MAX_OFFSET + 16) want = MAX_OFFSET + 16; /* no larger, so that this function sees every overflow */
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

}  // namespace sabot
