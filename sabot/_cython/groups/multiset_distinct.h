/* The distinct numbers of each slot, counted for several filters at once: for aggregates that count the distinct values of
   one column in different rows. A value is stored once, with a bit for each filter that accepted one of its rows:

       slots_[3] ─▶ [ 17: 011 ] [ empty ] [ 42: 001 ] [ empty ]      a hash table with linear probing; 17 is counted by filters 0 and 1
       counts_    … [ 3 * filters + 0: 2 ] [ + 1: 1 ] [ + 2: 0 ]

   Values cannot be removed. A state has the format of `Multisets`, with the count 1 for each value.

   Nothing here needs the GIL. Adding and saving may throw std::bad_alloc; `load` throws std::invalid_argument for a damaged
   state (`except +`). */
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "groups/multiset_store.h"

namespace sabot {

class DistinctNumbers {
    struct Entry {
        uint64_t word;
        uint32_t filters; /* 0 if the place is empty */
    };
    struct Group {
        std::vector<Entry> places; /* a power of two; at most three quarters are in use */
        size_t taken = 0;
    };
    int filters_;
    std::vector<Group> slots_;
    std::vector<int64_t> counts_; /* by slot and filter */
    int64_t places_ = 0;          /* the places of all slots */

    static size_t hash(uint64_t word) {
        word *= 0x9E3779B97F4A7C15;
        return static_cast<size_t>(word ^ (word >> 32));
    }
    static Entry& place_of(std::vector<Entry>& places, uint64_t word) {
        const size_t mask = places.size() - 1;
        size_t at = hash(word) & mask;
        while (places[at].filters != 0 && places[at].word != word) at = (at + 1) & mask;
        return places[at];
    }
    bool has(int32_t slot) const { return static_cast<size_t>(slot) < slots_.size(); }

    void grow(Group& group) {
        std::vector<Entry> places(group.places.empty() ? 4 : 2 * group.places.size());
        for (const Entry& entry : group.places)
            if (entry.filters != 0) place_of(places, entry.word) = entry;
        places_ += static_cast<int64_t>(places.size() - group.places.size());
        group.places.swap(places);
    }

  public:
    explicit DistinctNumbers(int filters) : filters_(filters) {}

    int64_t nbytes() const {
        return places_ * static_cast<int64_t>(sizeof(Entry)) +
               static_cast<int64_t>(slots_.capacity() * sizeof(Group) + counts_.capacity() * 8);
    }

    /* Adds a number to a slot. `filters`: the bits of the filters that accepted the row. */
    void add(int32_t slot, uint64_t word, uint32_t filters) {
        if (filters == 0) return;
        if (!has(slot)) {
            const size_t size = std::max<size_t>(static_cast<size_t>(slot) + 1, 2 * slots_.size());
            counts_.resize(size * static_cast<size_t>(filters_));
            slots_.resize(size);
        }
        Group& group = slots_[slot];
        if (4 * (group.taken + 1) > 3 * group.places.size()) grow(group);
        Entry& entry = place_of(group.places, word);
        if (entry.filters == 0) {
            entry.word = word;
            group.taken++;
        }
        for (uint32_t fresh = filters & ~entry.filters; fresh != 0; fresh &= fresh - 1)
            counts_[static_cast<size_t>(slot) * filters_ + __builtin_ctz(fresh)]++;
        entry.filters |= filters;
    }

    void differing(const int32_t* slots, int64_t count, int filter, int64_t* out) const {
        for (int64_t i = 0; i < count; i++)
            out[i] = has(slots[i]) ? counts_[static_cast<size_t>(slots[i]) * filters_ + filter] : 0;
    }

    /* Saves the numbers that one filter counts, each as its last `width` bytes, highest byte first. */
    void save(const int32_t* slots, int64_t count, int filter, int width, Strings& out) const {
        for (int64_t i = 0; i < count; i++) {
            if (has(slots[i])) {
                for (const Entry& entry : slots_[slots[i]].places) {
                    if (((entry.filters >> filter) & 1) == 0) continue;
                    append(out.data, static_cast<int64_t>(1));
                    append(out.data, static_cast<uint32_t>(width));
                    const uint64_t bytes = __builtin_bswap64(entry.word);
                    out.data.append(reinterpret_cast<const char*>(&bytes) + 8 - width, static_cast<size_t>(width));
                }
            }
            out.add({});
        }
    }

    void load(int32_t slot, const char* data, int64_t size, int filter, int width) {
        Reader reader{data, data + size};
        while (reader.at < reader.end) {
            const int64_t rows = reader.get<int64_t>();
            const uint32_t length = reader.get<uint32_t>();
            if (rows <= 0 || length != static_cast<uint32_t>(width)) throw std::invalid_argument("the state is of values with another width, or damaged");
            uint64_t word = 0;
            std::memcpy(reinterpret_cast<char*>(&word) + 8 - width, reader.bytes(length).data(), length);
            add(slot, __builtin_bswap64(word), 1u << filter);
        }
    }

    void remove(const int32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            if (!has(slots[i])) continue;
            places_ -= static_cast<int64_t>(slots_[slots[i]].places.size());
            slots_[slots[i]] = {};
            for (int filter = 0; filter < filters_; filter++) counts_[static_cast<size_t>(slots[i]) * filters_ + filter] = 0;
        }
    }

    void clear() { *this = DistinctNumbers(filters_); }
};

}  // namespace sabot
