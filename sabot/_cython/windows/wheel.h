/* A timing wheel.

        buckets[b % SIZE] ──▶ (due, id), (due, id), …        bucket b covers 2^shift ms from b * 2^shift on

   A bucket is at most a 512th of the longest wait. The buckets also hold entries of later rounds of the wheel: the caller
   of `take` has to put back the entries that are later than the watermark. Inserting an entry is O(1); an advance costs the
   buckets that it passes.

   Nothing here needs the GIL. `put` may throw std::bad_alloc (`except +`); the rest is noexcept. */
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace sabot {

class Wheel {
   public:
    using Entry = std::pair<int64_t, int32_t>; /* (due, id) */
    static constexpr int64_t EMPTY_BYTES = 2048 * 24;

    int64_t entries = 0;

    /* Sets the longest wait to `ms`. It spans at least SPOKES buckets, unless buckets would be shorter than 1 ms. */
    void waits_for(int64_t ms) noexcept {
        while (ms >> (shift + 1) >= SPOKES) shift++;
    }
    void put(int64_t due, int32_t id) {
        const int64_t bucket = due >> shift;
        buckets[static_cast<uint64_t>(bucket < now ? now : bucket) % SIZE].emplace_back(due, id);
        entries++;
    }
    /* Moves the watermark. `take` then returns the buckets between the old one and the new one. */
    void advance(int64_t watermark) noexcept {
        const int64_t before = now;
        if (watermark >> shift > now) now = watermark >> shift;
        const uint64_t passed = static_cast<uint64_t>(now) - static_cast<uint64_t>(before);
        left = passed < SIZE ? passed + 1 : SIZE;
    }
    /* Takes the entries of the next bucket. Returns false if there is no bucket left. The caller puts back entries
       later than the watermark. */
    bool take(std::vector<Entry>& out) noexcept {
        out.clear();
        if (!left) return false;
        left--;
        out.swap(buckets[(static_cast<uint64_t>(now) - left) % SIZE]);
        entries -= static_cast<int64_t>(out.size());
        return true;
    }
    void clear() noexcept {
        for (auto& bucket : buckets) bucket.clear();
        entries = 0;
    }

   private:
    static constexpr uint64_t SIZE = 2048;
    static constexpr int64_t SPOKES = 512; /* at most half of the wheel's buckets */

    std::vector<std::vector<Entry>> buckets = std::vector<std::vector<Entry>>(SIZE);
    int64_t now = INT64_MIN; /* the bucket of the watermark */
    uint64_t left = 0;       /* the number of buckets up to `now` that `take` has not returned yet */
    int shift = 0;
};

}  // namespace sabot
