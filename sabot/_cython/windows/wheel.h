/* What is due when: a timing wheel.

      buckets[b % SIZE] ──▶ (due, id), (due, id), …        bucket b is the stretch of 2^shift ms from b * 2^shift on

A bucket is at most a 512th of the longest wait. Those of other rounds of the wheel stand in the same place: who takes a bucket puts
back what is later than the watermark. To put an entry in is O(1), an advance costs what it passes.

All of it is `nogil`; `put` may throw std::bad_alloc (`except +`), the rest is noexcept. */
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

    /* For spans that wait for at most `ms`: that takes at least SPOKES buckets, where a bucket is 1 ms or more. */
    void waits_for(int64_t ms) noexcept {
        while (ms >> (shift + 1) >= SPOKES) shift++;
    }
    void put(int64_t due, int32_t id) {
        const int64_t bucket = due >> shift;
        buckets[static_cast<uint64_t>(bucket < now ? now : bucket) % SIZE].emplace_back(due, id);
        entries++;
    }
    /* The watermark is here: `take` gives what stands from where it was to where it is. */
    void advance(int64_t watermark) noexcept {
        const int64_t before = now;
        if (watermark >> shift > now) now = watermark >> shift;
        const uint64_t passed = static_cast<uint64_t>(now) - static_cast<uint64_t>(before);
        left = passed < SIZE ? passed + 1 : SIZE;
    }
    /* Moves the entries of the next bucket out; -> whether there was one. Those later than the watermark are to be put back. */
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
    static constexpr int64_t SPOKES = 512; /* at most half of the wheel */

    std::vector<std::vector<Entry>> buckets = std::vector<std::vector<Entry>>(SIZE);
    int64_t now = INT64_MIN; /* the bucket of the watermark */
    uint64_t left = 0;       /* buckets up to `now` that `take` has still to give */
    int shift = 0;
};

}  // namespace sabot
