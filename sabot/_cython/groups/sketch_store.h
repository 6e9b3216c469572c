/* Sketches by slot, which estimate the number of distinct values, and quantiles. See sketch.pyi.

   Distinct: HyperLogLog (Flajolet et al. 2007) with 2^12 registers and the estimator of Ertl (New cardinality
   estimation algorithms for HyperLogLog sketches, 2017), which needs no bias correction from zero to billions. While
   there are few distinct values, their hashes are kept instead, in the same memory, and the answer is exact.

   Quantiles: DDSketch (Masson, Rim, Lee 2019). Values are counted in bins whose width is proportional to their
   position, so that the middle of a bin is within ALPHA of all its values. Bins are never merged: their number is
   bounded, because the range of a double has some 35,000 bins on either side of 0. So a sketch does not depend on the
   order of values, and a value can be removed.

   Nothing here needs the GIL. Functions throw std::bad_alloc, and `load` std::invalid_argument for a damaged state
   (`except +`). */
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "groups/multiset_store.h"

namespace sabot {

constexpr int REGISTER_BITS = 12;
constexpr int REGISTERS = 1 << REGISTER_BITS;
constexpr size_t MOST_HASHES = REGISTERS / 8; /* as many hashes as fit into the bytes of the registers */
constexpr int RANKS = 64 - REGISTER_BITS + 1; /* the greatest value of a register */

static inline uint64_t remixed(uint64_t hash) { /* splitmix64: the low bits of a key hash are those of its key group */
    hash ^= hash >> 30;
    hash *= 0xbf58476d1ce4e5b9ULL;
    hash ^= hash >> 27;
    hash *= 0x94d049bb133111ebULL;
    return hash ^ (hash >> 31);
}

class Distinct {
    struct Group {
        std::vector<uint64_t> hashes; /* the first `sorted` ascending and distinct, the others in the order of arrival */
        std::vector<uint8_t> registers; /* replace the hashes when there are many */
        size_t sorted = 0;

        void tidy() {
            std::sort(hashes.begin() + sorted, hashes.end());
            std::inplace_merge(hashes.begin(), hashes.begin() + sorted, hashes.end());
            hashes.erase(std::unique(hashes.begin(), hashes.end()), hashes.end());
            sorted = hashes.size();
        }
        void put(uint64_t hash) {
            const uint64_t rest = hash << REGISTER_BITS;
            const uint8_t rank = static_cast<uint8_t>(rest ? __builtin_clzll(rest) + 1 : RANKS);
            uint8_t& to = registers[hash >> (64 - REGISTER_BITS)];
            if (rank > to) to = rank;
        }
        void add(uint64_t hash) {
            if (!registers.empty()) return put(hash);
            if (std::binary_search(hashes.begin(), hashes.begin() + sorted, hash)) return;
            if (sorted < hashes.size() && hashes.back() == hash) return;
            hashes.push_back(hash);
            if (hashes.size() - sorted < 16 && hashes.size() <= MOST_HASHES) return;
            if (hashes.size() - sorted >= std::max<size_t>(16, sorted / 4) || hashes.size() > MOST_HASHES) tidy();
            if (hashes.size() > MOST_HASHES) grow();
        }
        void grow() {
            registers.assign(REGISTERS, 0);
            for (const uint64_t hash : hashes) put(hash);
            hashes.clear();
            hashes.shrink_to_fit();
            sorted = 0;
        }
        int64_t nbytes() const { return static_cast<int64_t>(hashes.capacity() * 8 + registers.capacity()); }
    };
    std::vector<Group> slots_;

    static double sigma(double x) {
        if (x == 1) return std::numeric_limits<double>::infinity();
        double y = 1, z = x, before;
        do {
            x *= x;
            before = z;
            z += x * y;
            y += y;
        } while (z != before);
        return z;
    }
    static double tau(double x) {
        if (x == 0 || x == 1) return 0;
        double y = 1, z = 1 - x, before;
        do {
            x = std::sqrt(x);
            before = z;
            y *= 0.5;
            z -= (1 - x) * (1 - x) * y;
        } while (z != before);
        return z / 3;
    }

  public:
    int64_t nbytes() const {
        int64_t held = 0;
        for (const Group& group : slots_) held += group.nbytes();
        return held + static_cast<int64_t>(slots_.capacity() * sizeof(Group));
    }
    void reach(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(std::max<size_t>(slot + 1, 2 * slots_.size()));
    }
    void add(int32_t slot, uint64_t hash) {
        reach(slot);
        slots_[slot].add(remixed(hash));
    }
    int64_t estimate(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) return 0;
        Group& group = slots_[slot];
        if (group.registers.empty()) {
            group.tidy();
            return static_cast<int64_t>(group.hashes.size());
        }
        int counts[RANKS + 1] = {0};
        for (const uint8_t rank : group.registers) counts[rank]++;
        const double m = REGISTERS;
        double z = m * tau(1 - counts[RANKS] / m);
        for (int k = RANKS - 1; k >= 1; k--) z = 0.5 * (z + counts[k]);
        z += m * sigma(counts[0] / m);
        return std::llround(m / (2 * std::log(2.0)) * m / z);
    }
    void save(int32_t slot, Strings& out) {
        if (static_cast<size_t>(slot) < slots_.size()) {
            Group& group = slots_[slot];
            if (group.registers.empty()) {
                group.tidy();
                for (const uint64_t hash : group.hashes) append(out.data, hash);
            } else {
                out.data.push_back('r'); /* one byte more, so that the length tells registers from hashes */
                out.data.append(reinterpret_cast<const char*>(group.registers.data()), REGISTERS);
            }
        }
        out.add({});
    }
    void load(int32_t slot, const char* data, int64_t size) {
        reach(slot);
        Group& group = slots_[slot];
        if (size == REGISTERS + 1) {
            if (group.registers.empty()) group.grow();
            for (int i = 0; i < REGISTERS; i++) {
                const uint8_t rank = static_cast<uint8_t>(data[1 + i]);
                if (rank > RANKS) throw std::invalid_argument("a state of distinct values is damaged");
                group.registers[i] = std::max(group.registers[i], rank);
            }
            return;
        }
        if (size % 8) throw std::invalid_argument("a state of distinct values is damaged");
        Reader reader{data, data + size};
        while (reader.at < reader.end) group.add(reader.get<uint64_t>());
    }
    void remove(int32_t slot) {
        if (static_cast<size_t>(slot) < slots_.size()) slots_[slot] = {};
    }
    void clear() {
        slots_.clear();
        slots_.shrink_to_fit();
    }
};

constexpr double ALPHA = 0.0099; /* 1 %, less a margin for rounding */
constexpr int32_t MIDDLE = 1 << 17;   /* the bin of 1, so that the bins of positive values are above 0 */
constexpr int32_t INFINITE = 1 << 19; /* the bin of infinity */

struct Bin {
    int32_t place; /* the number of the bin; ascends with the values; 0 is the bin of zeros, negative values have lower numbers */
    int64_t count;
};

class Quantiles {
    std::vector<std::vector<Bin>> slots_;
    const double width_ = std::log((1 + ALPHA) / (1 - ALPHA));

    int32_t place_of(double value) const {
        if (value == 0) return 0;
        const double size = std::fabs(value);
        const int32_t place =
            std::isinf(size) ? INFINITE : MIDDLE + static_cast<int32_t>(std::ceil(std::log(size) / width_));
        return value < 0 ? -place : place;
    }
    double value_of(int32_t place) const {
        if (place == 0) return 0;
        const int32_t size = std::abs(place);
        const double value = size == INFINITE ? std::numeric_limits<double>::infinity()
                                              : std::exp((size - MIDDLE) * width_ + std::log(1 - ALPHA));
        return place < 0 ? -value : value;
    }
    void put(int32_t slot, int32_t place, int64_t by) {
        reach(slot);
        std::vector<Bin>& bins = slots_[slot];
        const auto at =
            std::partition_point(bins.begin(), bins.end(), [place](const Bin& bin) { return bin.place < place; });
        if (at == bins.end() || at->place != place) bins.insert(at, {place, by});
        else if ((at->count += by) == 0) bins.erase(at);
    }

  public:
    int64_t nbytes() const {
        int64_t held = 0;
        for (const auto& bins : slots_) held += static_cast<int64_t>(bins.capacity() * sizeof(Bin));
        return held + static_cast<int64_t>(slots_.capacity() * sizeof(slots_[0]));
    }
    void reach(int32_t slot) {
        if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(std::max<size_t>(slot + 1, 2 * slots_.size()));
    }
    void add(int32_t slot, double value, bool take) {
        if (value == value) put(slot, place_of(value), take ? -1 : 1);
    }
    /* Writes each of the `count` quantiles in `of` to `out`. Returns false if the slot has no values. */
    bool quantiles(int32_t slot, const double* of, int64_t count, double* out) const {
        if (static_cast<size_t>(slot) >= slots_.size()) return false;
        const std::vector<Bin>& bins = slots_[slot];
        int64_t total = 0;
        for (const Bin& bin : bins) total += bin.count;
        if (total <= 0) return false;
        for (int64_t q = 0; q < count; q++) {
            const int64_t rank = static_cast<int64_t>(std::floor(of[q] * static_cast<double>(total - 1)));
            int64_t below = 0;
            size_t b = 0;
            while (b + 1 < bins.size() && below + bins[b].count <= rank) below += bins[b++].count;
            out[q] = value_of(bins[b].place);
        }
        return true;
    }
    void save(int32_t slot, Strings& out) const {
        if (static_cast<size_t>(slot) < slots_.size()) {
            for (const Bin& bin : slots_[slot]) {
                append(out.data, bin.place);
                append(out.data, bin.count);
            }
        }
        out.add({});
    }
    void load(int32_t slot, const char* data, int64_t size) {
        Reader reader{data, data + size};
        while (reader.at < reader.end) {
            const int32_t place = reader.get<int32_t>();
            put(slot, place, reader.get<int64_t>());
        }
    }
    void remove(int32_t slot) {
        if (static_cast<size_t>(slot) < slots_.size()) slots_[slot] = {};
    }
    void clear() {
        slots_.clear();
        slots_.shrink_to_fit();
    }
};

}  // namespace sabot
