/* Comparisons of strings with a constant, 64 rows at a time: first by length, then by words of eight bytes.

   Nothing here needs the GIL. `LiteralSet.add` and `ready` may throw std::bad_alloc (`except +`); the rest is
   noexcept. */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace sabot {

/* The rows of a string or binary array. Read only; owns no memory. */
struct Strings {
    const int32_t* offsets;  // length + 1 offsets; not read if length is 0
    const uint8_t* data;     // may be NULL if all strings are empty
    int64_t length;

    int32_t size(int64_t row) const { return offsets[row + 1] - offsets[row]; }
    const uint8_t* at(int64_t row) const { return data + offsets[row]; }

    /* Returns the first row that has fewer than `reach` bytes between its first byte and the end of the buffer. */
    int64_t end_of_reach(int64_t reach) const {
        if (length == 0) return 0;
        const int64_t last = static_cast<int64_t>(offsets[length]) - reach;
        return std::upper_bound(offsets, offsets + length, last, [](int64_t most, int32_t offset) { return most < offset; }) -
               offsets;
    }
};

static inline uint64_t word_at(const uint8_t* data) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    return word;
}

/* Returns a mask for the first `size` bytes of a word, at most 8. The masks are in a table, because branches on
   lengths are mispredicted. */
static inline uint64_t word_mask(int32_t size) {
    static constexpr uint64_t masks[9] = {
        0, 0xff, 0xffff, 0xffffff, 0xffffffff, 0xffffffffff, 0xffffffffffff, 0xffffffffffffff, 0xffffffffffffffff,
    };
    return masks[std::min(size, 8)];
}

static inline bool same_bytes(const uint8_t* a, const void* b, int64_t size) {
    return size == 0 || std::memcmp(a, b, static_cast<size_t>(size)) == 0;
}

/* Packs 64 bytes, each 0 or 1, into bits; the first byte becomes the lowest bit. */
static inline uint64_t bits_of(const uint8_t* flags) {
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits |= ((word_at(flags + 8 * i) * 0x0102040810204080) >> 56) << (8 * i);
    return bits;
}

/* Compares 64 consecutive values of one width with `wanted`. Returns one bit per value. */
template <class Value>
static inline uint64_t same_values(const uint8_t* data, uint64_t wanted) {
    uint8_t flags[64];
    for (int i = 0; i < 64; i++) {
        Value value;
        std::memcpy(&value, data + i * sizeof(Value), sizeof(Value));
        flags[i] = value == static_cast<Value>(wanted);
    }
    return bits_of(flags);
}

/* Writes bit `skip + row` of `out` for each row. `one(row)` computes one bit. `block(row)` computes 64 bits and is
   called only for rows before `blocks_end`. OUT: all bytes that hold such bits; their other bits become 0. */
template <class One, class Block>
static inline void write_bits(int64_t rows, int skip, int64_t blocks_end, uint8_t* out, One one, Block block) {
    std::memset(out, 0, static_cast<size_t>((skip + rows + 7) / 8));
    int64_t row = 0;
    const auto single = [&] {
        out[(skip + row) >> 3] |= static_cast<uint8_t>(one(row) << ((skip + row) & 7));
        row++;
    };
    while (row < rows && ((skip + row) & 7)) single();
    for (; row + 64 <= blocks_end; row += 64) {
        const uint64_t bits = block(row);
        std::memcpy(out + ((skip + row) >> 3), &bits, 8);
    }
    while (row < rows) single();
}

/* Finds the strings that equal `wanted` or, if `prefix`, begin with it. Writes `out` like `write_bits`. */
template <bool prefix>
static void match_literal(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) {
    const bool two_words = size > 8;
    uint64_t head = 0, tail = 0;
    if (size) std::memcpy(&head, wanted, std::min<size_t>(size, 8));
    if (two_words) tail = word_at(wanted + size - 8);
    const uint64_t mask = word_mask(size);
    const int64_t end = strings.end_of_reach(std::max(size, 8));
    const auto fits = [=](int32_t found) { return prefix ? found >= size : found == size; };

    write_bits(
        strings.length, skip, end, out,
        [&](int64_t row) { return fits(strings.size(row)) && same_bytes(strings.at(row), wanted, size); },
        [&](int64_t row) -> uint64_t {
            const int32_t* offsets = strings.offsets + row;
            int some = 0, all = 1;
            for (int i = 0; i < 64; i++) {
                const int fit = fits(offsets[i + 1] - offsets[i]);
                some |= fit;
                all &= fit;
            }
            if (!some) return 0;
            if (!prefix && all) {  // all strings have the wanted length, so they lie in memory like numbers of that width
                const uint8_t* first = strings.data + offsets[0];
                switch (size) {
                    case 1: return same_values<uint8_t>(first, head);
                    case 2: return same_values<uint16_t>(first, head);
                    case 4: return same_values<uint32_t>(first, head);
                    case 8: return same_values<uint64_t>(first, head);
                }
            }
            uint8_t flags[64];
            for (int i = 0; i < 64; i++) flags[i] = ((word_at(strings.data + offsets[i]) ^ head) & mask) == 0;
            if (two_words)
                for (int i = 0; i < 64; i++) flags[i] &= word_at(strings.data + offsets[i] + size - 8) == tail;
            if (!all)
                for (int i = 0; i < 64; i++) flags[i] &= fits(offsets[i + 1] - offsets[i]);
            uint64_t bits = bits_of(flags);
            if (size > 16)
                for (uint64_t left = bits; left; left &= left - 1) {
                    const int i = __builtin_ctzll(left);
                    if (!same_bytes(strings.at(row + i) + 8, wanted + 8, size - 16)) bits &= ~(uint64_t{1} << i);
                }
            return bits;
        });
}

static inline void equal_to(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) {
    match_literal<false>(strings, wanted, size, skip, out);
}

static inline void begin_with(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) {
    match_literal<true>(strings, wanted, size, skip, out);
}

/* Finds the strings that contain `wanted`. Writes `out` like `write_bits`. All strings are searched as one text:
   first and last byte are compared at 64 positions at once, then the bytes between them. A match that reaches into
   the next string does not count. */
static void contain(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) {
    std::memset(out, size ? 0 : 0xff, static_cast<size_t>((skip + strings.length + 7) / 8));
    if (size == 0 || strings.length == 0) return;
    // the first position at which `wanted` cannot begin any more
    const int64_t end = static_cast<int64_t>(strings.offsets[strings.length]) - size + 1;
    const uint8_t first = wanted[0], last = wanted[size - 1];
    int64_t row = 0;
    const auto candidate = [&](int64_t place) {
        if (size > 2 && !same_bytes(strings.data + place + 1, wanted + 1, size - 2)) return;
        while (strings.offsets[row + 1] <= place) row++;
        if (place + size <= strings.offsets[row + 1]) out[(skip + row) >> 3] |= 1 << ((skip + row) & 7);
    };
    int64_t place = strings.offsets[0];
    for (; place + 64 <= end; place += 64) {
        const uint8_t *heads = strings.data + place, *tails = heads + size - 1;
        uint8_t flags[64];
        int some = 0;
        for (int i = 0; i < 64; i++) {
            flags[i] = (heads[i] == first) & (tails[i] == last);
            some |= flags[i];
        }
        if (!some) continue;
        for (uint64_t left = bits_of(flags); left; left &= left - 1) candidate(place + __builtin_ctzll(left));
    }
    for (; place < end; place++)
        if (strings.data[place] == first && strings.data[place + size - 1] == last) candidate(place);
}

/* A small set of strings in a hash table without collisions. If all strings are shorter than a word, the key is their
   bytes and length in one word; otherwise it is their length, first eight bytes and last eight bytes. The factors of
   the hash are found by trial. If none are found (two strings can agree in length, head and tail), each row is
   compared with every string of the set. */
class LiteralSet {
  public:
    void add(const uint8_t* data, int64_t size) { values_.emplace_back(reinterpret_cast<const char*>(data), size); }

    /* Builds the table. Call it after the last `add` and before the first `match`. */
    void ready() {
        std::sort(values_.begin(), values_.end());
        values_.erase(std::unique(values_.begin(), values_.end()), values_.end());
        entries_.assign(1, Entry{-1, 0, 0, nullptr});  // the entry of all empty slots: no string has length -1
        for (const std::string& value : values_) {
            Entry entry{static_cast<int32_t>(value.size()), 0, 0, reinterpret_cast<const uint8_t*>(value.data())};
            std::memcpy(&entry.head, entry.data, std::min<size_t>(value.size(), 8));
            entry.tail = value.size() > 8 ? word_at(entry.data + value.size() - 8) : entry.head;
            entries_.push_back(entry);
            longest_ = std::max(longest_, entry.size);
        }
        for (int bits = 4; bits <= MOST_BITS; bits++) {
            if ((size_t{1} << bits) < 2 * entries_.size()) continue;
            for (int attempt = 0; attempt < 16; attempt++) {
                hash_ = Hash{next_factor(), next_factor(), next_factor(), 64 - bits};
                apart_ = longest_ < 8 ? place_words() : place_entries();
                if (apart_) return;
            }
        }
    }

    /* Finds the strings that are in the set. Writes `out` like `write_bits`. */
    void match(const Strings& strings, int skip, uint8_t* out) const {
        const int64_t end = apart_ ? strings.end_of_reach(8) : 0;
        const auto one = [&](int64_t row) { return holds(strings.at(row), strings.size(row)); };
        if (longest_ < 8)
            write_bits(strings.length, skip, end, out, one, [&](int64_t row) { return block_of_words(strings, row); });
        else
            write_bits(strings.length, skip, end, out, one, [&](int64_t row) { return block_of_entries(strings, row); });
    }

  private:
    static constexpr int MOST_BITS = 14;

    struct Entry {
        int32_t size;
        uint64_t head, tail;  // the first and the last 8 bytes; for a shorter string both are its bytes, padded with zeros
        const uint8_t* data;
    };

    struct Hash {
        uint64_t head, tail, size;  // factors of the hash
        int shift;

        size_t slot(uint64_t word) const { return (word * head) >> shift; }
        size_t slot(int32_t length, uint64_t first, uint64_t last) const {
            return (first * head + last * tail + static_cast<uint64_t>(length) * size) >> shift;
        }
    };

    /* Packs a string of fewer than 8 bytes into a word with its length as the last byte. For a longer string it
       returns a word that differs from all of these. */
    static uint64_t packed(uint64_t head, int32_t size) {
        return (head & word_mask(size)) | static_cast<uint64_t>(std::min(size, 8)) << 56;
    }

    uint64_t block_of_words(const Strings& strings, int64_t row) const {
        const int32_t* offsets = strings.offsets + row;
        const uint64_t* words = words_.data();
        const Hash hash = hash_;
        uint8_t flags[64];
        for (int i = 0; i < 64; i++) {
            const uint64_t word = packed(word_at(strings.data + offsets[i]), offsets[i + 1] - offsets[i]);
            flags[i] = words[hash.slot(word)] == word;
        }
        return bits_of(flags);
    }

    uint64_t block_of_entries(const Strings& strings, int64_t row) const {
        const int32_t* offsets = strings.offsets + row;
        const Entry* entries = entries_.data();
        const uint16_t* slots = slots_.data();
        const Hash hash = hash_;
        uint16_t found[64];
        uint8_t flags[64];
        for (int i = 0; i < 64; i++) {
            const int32_t size = offsets[i + 1] - offsets[i];
            const uint8_t* data = strings.data + offsets[i];
            const uint64_t mask = word_mask(size);
            const uint64_t head = word_at(data) & mask, tail = word_at(data + std::max(size - 8, 0)) & mask;
            found[i] = slots[hash.slot(size, head, tail)];
            const Entry& entry = entries[found[i]];
            flags[i] = (entry.size == size) & (entry.head == head) & (entry.tail == tail);
        }
        uint64_t bits = bits_of(flags);
        for (uint64_t left = longest_ > 16 ? bits : 0; left; left &= left - 1) {
            const int i = __builtin_ctzll(left);
            const Entry& entry = entries[found[i]];
            if (entry.size > 16 && !same_bytes(strings.at(row + i) + 8, entry.data + 8, entry.size - 16))
                bits &= ~(uint64_t{1} << i);
        }
        return bits;
    }

    bool holds(const uint8_t* data, int32_t size) const {
        for (const Entry& entry : entries_)
            if (entry.size == size && same_bytes(data, entry.data, size)) return true;
        return false;
    }

    /* Tries to put each string into a slot of its own with the current factors. Returns false if two strings share a
       slot. */
    bool place_words() {
        words_.assign(size_t{1} << (64 - hash_.shift), NO_WORD);
        for (size_t i = 1; i < entries_.size(); i++) {
            const uint64_t word = packed(entries_[i].head, entries_[i].size);
            uint64_t& taken = words_[hash_.slot(word)];
            if (taken != NO_WORD) return false;
            taken = word;
        }
        return true;
    }

    bool place_entries() {
        slots_.assign(size_t{1} << (64 - hash_.shift), 0);
        for (size_t i = 1; i < entries_.size(); i++) {
            uint16_t& taken = slots_[hash_.slot(entries_[i].size, entries_[i].head, entries_[i].tail)];
            if (taken) return false;
            taken = static_cast<uint16_t>(i);
        }
        return true;
    }

    uint64_t next_factor() {  // the next number of a splitmix64 sequence
        seed_ += 0x9e3779b97f4a7c15;
        uint64_t z = seed_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return (z ^ (z >> 31)) | 1;
    }

    static constexpr uint64_t NO_WORD = uint64_t{0x10} << 56;  // `packed` never returns this word: its last byte is at most 8

    std::vector<std::string> values_;
    std::vector<Entry> entries_;
    std::vector<uint64_t> words_;  // used if all strings are shorter than a word
    std::vector<uint16_t> slots_;  // used otherwise: the index of an entry, or 0 for an empty slot
    Hash hash_{};
    uint64_t seed_ = 0;
    int32_t longest_ = 0;
    bool apart_ = false;
};

}  // namespace sabot
